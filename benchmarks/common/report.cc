#include "common/report.h"

#include <fmt/format.h>

#include <cerrno>
#include <ctime>
#include <fstream>
#include <span>

#include "common/children.h"
#include "volley/base/fd.h"

namespace volley::benchmarks {
namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  const std::string key = "model name";
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with(key) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

nlohmann::json run_description(int argc, char** argv) {
  const std::span<char*> arguments(argv, static_cast<size_t>(argc));
  return {{"command", fmt::format("{}", fmt::join(arguments, " "))},
          {"date", utc_now()},
          {"processor", processor_name()},
          {"cores", allowed_cores()}};
}

Status check_writable(const std::string& path) {
  if (path.empty()) return ok_status();
  std::ofstream file(path, std::ios::binary | std::ios::app);
  if (!file) return invalid_argument("cannot write {}: {}", path, errno_text(errno));
  return ok_status();
}

Status write_text_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) return unavailable("cannot write {}: {}", path, errno_text(errno));
  return ok_status();
}

}  // namespace volley::benchmarks
