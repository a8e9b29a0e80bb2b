#include "sources.h"

#include <algorithm>
#include <map>

namespace volley::perf {
namespace {

constexpr const char* kSources = "sources";

struct Figure {
  std::string key;
  int line;
};

bool is_list_of_maps(const YAML::Node& node) {
  return node.IsSequence() && node.size() > 0 &&
         std::all_of(node.begin(), node.end(), [](const YAML::Node& item) { return item.IsMap(); });
}

/// The keys below which there are no other keys, in the order of the document.
void collect(const YAML::Node& node, const std::string& key, std::vector<Figure>& figures) {
  if (node.IsMap()) {
    for (const auto& entry : node) {
      const std::string& name = entry.first.Scalar();
      collect(entry.second, key.empty() ? name : key + "." + name, figures);
    }
  } else if (is_list_of_maps(node)) {
    for (size_t i = 0; i < node.size(); ++i) {
      collect(node[i], fmt::format("{}[{}]", key, i), figures);
    }
  } else {
    figures.push_back({key, node.Mark().line + 1});
  }
}

bool covers(const std::string& name, const std::string& key) {
  if (!key.starts_with(name)) return false;
  return key.size() == name.size() || key[name.size()] == '.' || key[name.size()] == '[';
}

}  // namespace

std::vector<Source> read_sources(config::YamlMap& root) {
  std::vector<Source> sources;
  root.required(kSources);
  root.list(kSources, [&](config::YamlMap& entry, uint32_t) {
    Source source;
    entry.required("figures");
    entry.required("cites");
    entry.strings("figures", source.figures);
    entry.text("cites", source.cites);
    sources.push_back(std::move(source));
  });
  return sources;
}

Status check_sources(const YAML::Node& document, const std::vector<Source>& sources,
                     const std::set<std::string>& words, const std::string& origin) {
  std::map<std::string, bool> used;  // By name in `figures`: whether it stands for some key.
  const auto bad_name = [&](size_t index, const std::string& name, const char* why) {
    const int line = document[kSources][index].Mark().line + 1;
    return invalid_argument("{}:{}: {}[{}].figures: '{}' {}", origin, line, kSources, index, name,
                            why);
  };
  for (size_t i = 0; i < sources.size(); ++i) {
    for (const std::string& name : sources[i].figures) {
      if (!used.emplace(name, false).second) return bad_name(i, name, "has a source already");
    }
  }

  std::vector<Figure> figures;
  collect(document, "", figures);
  for (const Figure& figure : figures) {
    if (words.contains(figure.key) || covers(kSources, figure.key)) continue;
    auto most_specific = used.end();
    for (auto it = used.begin(); it != used.end(); ++it) {
      if (!covers(it->first, figure.key)) continue;
      if (most_specific == used.end() || it->first.size() > most_specific->first.size()) {
        most_specific = it;
      }
    }
    if (most_specific == used.end()) {
      return invalid_argument("{}:{}: {}: has no source: name it in the figures of one of {}",
                              origin, figure.line, figure.key, kSources);
    }
    most_specific->second = true;
  }

  for (size_t i = 0; i < sources.size(); ++i) {
    for (const std::string& name : sources[i].figures) {
      if (!used.at(name)) return bad_name(i, name, "is no figure of this file");
    }
  }
  return ok_status();
}

}  // namespace volley::perf
