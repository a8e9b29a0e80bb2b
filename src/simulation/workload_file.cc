// Requests from a file of JSON lines.

#include <fmt/format.h>

#include "volley/config/json_fields.h"
#include "volley/config/json_reader.h"
#include "volley/config/text_file.h"
#include "volley/simulation/simulation_file.h"

namespace volley::simulation {
namespace {

constexpr size_t kFileBytesMax = size_t{1} << 30;
constexpr uint32_t kTokensMax = 4'000'000;
constexpr double kArrivalMax = 1e9;
constexpr config::JsonLimits kLineLimits{.bytes_max = 4096, .depth_max = 2, .values_max = 16};

Result<RequestRecord> parse_request(std::string_view line, const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const nlohmann::json object,
                          config::parse_json_object(line, kLineLimits, origin));
  for (const auto& [key, value] : object.items()) {
    if (key == "arrival_s" || key == "input" || key == "output") continue;
    return invalid_argument("{}: unknown field {}; known: arrival_s, input, output", origin,
                            config::in_quotes(key));
  }
  const config::JsonFields fields(object, origin);
  RequestRecord record;
  VOLLEY_ASSIGN_OR_RETURN(record.arrival_s, fields.number("arrival_s", 0, kArrivalMax));
  VOLLEY_ASSIGN_OR_RETURN(record.input, fields.integer("input", {1, kTokensMax}));
  VOLLEY_ASSIGN_OR_RETURN(record.output, fields.integer("output", {1, kTokensMax}));
  return record;
}

}  // namespace

Result<std::vector<RequestRecord>> parse_requests(const std::string& text,
                                                  const std::string& origin) {
  std::vector<RequestRecord> requests;
  const std::string_view all = text;
  size_t begin = 0;
  for (uint32_t number = 1; begin < all.size(); ++number) {
    const size_t newline = all.find('\n', begin);
    const size_t end = newline == std::string_view::npos ? all.size() : newline;
    const std::string_view line = all.substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", origin, number);
    VOLLEY_ASSIGN_OR_RETURN(const RequestRecord record, parse_request(line, place));
    if (!requests.empty() && record.arrival_s < requests.back().arrival_s) {
      return invalid_argument("{}: arrival_s: {} is before the line above, {}", place,
                              record.arrival_s, requests.back().arrival_s);
    }
    requests.push_back(record);
  }
  if (requests.empty()) return invalid_argument("{}: no request in it", origin);
  return requests;
}

Result<std::vector<RequestRecord>> load_requests(const std::string& file) {
  VOLLEY_ASSIGN_OR_RETURN(const std::string text, config::read_text_file(file, kFileBytesMax));
  return parse_requests(text, file);
}

}  // namespace volley::simulation
