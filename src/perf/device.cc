#include "volley/perf/device.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "catalogue_folder.h"
#include "sources.h"
#include "volley/config/text_file.h"

namespace volley::perf {
namespace {

using config::YamlMap;

// Far beyond any device: what keeps the sums of the planner finite.
constexpr double kBytesMax = 1e16;
constexpr double kRateMin = 1e3;
constexpr double kRateMax = 1e19;
constexpr double kSecondsMax = 10;
// Above 1: what a measurement finds in caches is faster than the memory.
constexpr double kEfficiencyMax = 1000;
constexpr uint32_t kPerNodeMax = 1024;

struct CurveKey {
  const char* name;
  Curve Efficiency::*curve;
};
constexpr CurveKey kCurves[] = {{"compute", &Efficiency::compute},
                                {"memory", &Efficiency::memory},
                                {"attention", &Efficiency::attention},
                                {"link", &Efficiency::link},
                                {"network", &Efficiency::network}};

struct SecondsKey {
  const char* name;
  double Efficiency::*seconds;
};
constexpr SecondsKey kSeconds[] = {{"attention_layer_s", &Efficiency::attention_layer_s},
                                   {"expert_layer_s", &Efficiency::expert_layer_s},
                                   {"step_s", &Efficiency::step_s},
                                   {"collective_s", &Efficiency::collective_s},
                                   {"message_s", &Efficiency::message_s}};

bool in_efficiency_range(double y) {
  return y > 0 && y <= kEfficiencyMax;
}

/// A number, or a list of [x, y].
void read_curve(YamlMap& map, const std::string& key, Curve& curve) {
  const auto check = [&](double y) {
    if (!in_efficiency_range(y)) {
      map.fail(key, fmt::format("{} is not in (0, {}]", y, kEfficiencyMax));
    }
  };
  if (!map.has(key)) return;
  if (!map.is_list(key)) {
    double y = 1;
    map.number(key, y, 0, kEfficiencyMax);
    check(y);
    curve = Curve(y);
    return;
  }
  std::vector<std::pair<double, double>> pairs;
  map.number_pairs(key, pairs);
  std::vector<Curve::Point> points;
  for (const auto& [x, y] : pairs) {
    check(y);
    points.push_back({x, y});
  }
  const Result<Curve> made = Curve::make(std::move(points));
  // An error of number_pairs() is kept before this one.
  if (!made.ok()) return map.fail(key, message_of(made.status()));
  curve = *made;
}

void read_efficiency(YamlMap& map, Efficiency& efficiency) {
  for (const CurveKey& key : kCurves) read_curve(map, key.name, efficiency.*key.curve);
  for (const SecondsKey& key : kSeconds) {
    map.number(key.name, efficiency.*key.seconds, 0, kSecondsMax);
  }
}

bool is_name(const std::string& name) {
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
}

void read_device(YamlMap& root, Device& device) {
  for (const char* key :
       {"name", "memory_bytes", "memory_bytes_per_s", "flops", "network_bytes_per_s"}) {
    root.required(key);
  }
  root.text("name", device.name);
  if (!is_name(device.name)) root.fail("name", "may have letters, digits, '-', '_' and '.' only");
  root.boolean("cpu", device.cpu);
  root.number("memory_bytes", device.memory_bytes, 1, kBytesMax);
  root.number("memory_bytes_per_s", device.memory_bytes_per_s, kRateMin, kRateMax);
  root.map("flops", [&](YamlMap& map) {
    // Any other format can be computed in it.
    map.required("f32");
    for (size_t i = 0; i < kNumberFormats; ++i) {
      map.number(std::string(kNumberFormatNames[i]), device.flops[i], kRateMin, kRateMax);
    }
  });
  root.number("link_bytes_per_s", device.link_bytes_per_s, kRateMin, kRateMax);
  root.number("network_bytes_per_s", device.network_bytes_per_s, kRateMin, kRateMax);
  root.integer("per_node", device.per_node, 1, kPerNodeMax);
  if (device.per_node > 1 && device.link_bytes_per_s == 0) {
    root.fail("per_node", "above 1 needs link_bytes_per_s");
  }
  root.number("price", device.price, 0, kBytesMax);
  root.number("watts", device.watts, 0, kBytesMax);
  root.number("usable_memory", device.usable_memory, 0.01, 1);
  root.map("efficiency", [&](YamlMap& map) { read_efficiency(map, device.efficiency); });
}

std::string format_curve(const Curve& curve) {
  const std::vector<Curve::Point>& points = curve.points();
  if (curve == Curve(points.front().y)) return fmt::format("{}", points.front().y);
  std::string text;
  for (const Curve::Point& point : points) {
    text += fmt::format("{}[{}, {}]", text.empty() ? "[" : ", ", point.x, point.y);
  }
  return text + "]";
}

/// A YAML scalar in double quotes.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') result += '\\';
    if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += c;
    }
  }
  return result + "\"";
}

}  // namespace

double Device::flops_of(NumberFormat format) const {
  for (size_t i = static_cast<size_t>(format) + 1; i-- > 0;) {
    if (flops[i] > 0) return flops[i];
  }
  return 0;
}

Result<Device> parse_device(const std::string& text, const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const YAML::Node document, config::parse_yaml(text, origin));
  Device device;
  Status status;
  YamlMap root(document, "", origin, status);
  read_device(root, device);
  const std::vector<Source> sources = read_sources(root);
  root.finish();
  if (!status.ok()) return status;
  VOLLEY_RETURN_IF_ERROR(check_sources(document, sources, {"name", "cpu"}, origin));
  return device;
}

Result<Device> load_device(const std::string& file) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string text,
                          config::read_text_file(file, kCatalogueFileBytesMax));
  return parse_device(text, file);
}

std::string format_device(const Device& device, const std::string& source) {
  std::string text = fmt::format("name: {}\n", device.name);
  std::string cited;
  const auto figure = [&](const char* key, double value) {
    text += fmt::format("{}: {}\n", key, value);
    cited += fmt::format("{}{}", cited.empty() ? "" : ", ", key);
  };
  // What is 0 is unknown, and unknown figures are left out.
  const auto known_figure = [&](const char* key, double value) {
    if (value != 0) figure(key, value);
  };
  if (device.cpu) text += "cpu: true\n";
  figure("memory_bytes", device.memory_bytes);
  figure("memory_bytes_per_s", device.memory_bytes_per_s);
  text += "flops:\n";
  cited += ", flops";
  for (size_t i = 0; i < kNumberFormats; ++i) {
    if (device.flops[i] != 0) {
      text += fmt::format("  {}: {}\n", kNumberFormatNames[i], device.flops[i]);
    }
  }
  known_figure("link_bytes_per_s", device.link_bytes_per_s);
  figure("network_bytes_per_s", device.network_bytes_per_s);
  text += fmt::format("per_node: {}\n", device.per_node);
  cited += ", per_node";
  known_figure("price", device.price);
  known_figure("watts", device.watts);
  figure("usable_memory", device.usable_memory);
  text += "efficiency:\n";
  cited += ", efficiency";
  for (const CurveKey& key : kCurves) {
    text += fmt::format("  {}: {}\n", key.name, format_curve(device.efficiency.*key.curve));
  }
  for (const SecondsKey& key : kSeconds) {
    text += fmt::format("  {}: {}\n", key.name, device.efficiency.*key.seconds);
  }
  return text + fmt::format("sources:\n  - figures: [{}]\n    cites: {}\n", cited, quoted(source));
}

Result<Device> find_device(const std::string& directory, const std::string& name) {
  if (name.find('/') != std::string::npos || name.ends_with(".yaml")) return load_device(name);
  const std::string file = catalogue_file(directory, name);
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return no_such_entry("device", directory, name);
  return load_device(file);
}

}  // namespace volley::perf
