#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "table.h"
#include "volley/bench/m2n_bench.h"

namespace volley::bench {
namespace {

std::string how_peers_waited(const M2nReport& report) {
  const bool shared =
      std::any_of(report.results.begin(), report.results.end(), [&](const M2nResult& result) {
        return result.shape.senders + result.shape.receivers > report.core_count;
      });
  return fmt::format(
      "{}; waiting peers {}; {} {}{}, {}",
      report.cores.empty() ? "not pinned"
                           : fmt::format("pinned to {}", fmt::join(report.cores, ",")),
      report.polling ? "poll" : "sleep", report.core_count,
      report.core_count == 1 ? "core" : "cores", report.busy ? ", all kept busy" : "",
      shared ? "shared by the peers" : "one for each peer");
}

std::string share(double value) {
  return value > 0 ? percent(value) : "-";
}
std::string micro(double seconds) {
  return seconds > 0 ? three_digits(seconds / 1e-6) : "-";
}

}  // namespace

std::string format_m2n_report(const M2nReport& report) {
  std::string out =
      fmt::format("{}, {} cores, {}\n{}, {}", report.machine.cpu_name, report.machine.cores.size(),
                  report.date, report.system, m2n_pattern_name(report.pattern));
  if (report.pattern != M2nPattern::kRoundTrip) {
    out += fmt::format(", {} messages under way on a link", report.window);
  }
  out += fmt::format("\n{}\n\n", how_peers_waited(report));
  std::vector<std::vector<std::string>> rows = {
      {"M", "N", "BYTES", "ANSWER", "COUNT", "BEST us", "MEDIAN us", "P99 us", "P99.9 us",
       "DISPATCH GB/s", "ANSWER GB/s", "BOUND us", "SHARE", "MEDIAN SHARE", "PLAIN us"}};
  for (const M2nResult& result : report.results) {
    rows.push_back({std::to_string(result.shape.senders), std::to_string(result.shape.receivers),
                    std::to_string(result.shape.bytes), std::to_string(result.shape.answer_bytes),
                    std::to_string(result.iterations), micro(result.best_seconds),
                    micro(result.median_seconds), micro(result.p99_seconds),
                    micro(result.p999_seconds), three_digits(result.dispatch_gbps),
                    three_digits(result.answer_gbps), micro(result.bound_seconds),
                    share(result.best_share), share(result.median_share),
                    micro(result.plain_seconds)});
  }
  return out + format_table(rows, 0);
}

std::string m2n_report_json(const M2nReport& report) {
  nlohmann::json json = {{"bench", "m2n"},
                         {"date", report.date},
                         {"cpu", report.machine.cpu_name},
                         {"cores", report.machine.cores.size()},
                         {"system", report.system},
                         {"pattern", m2n_pattern_name(report.pattern)},
                         {"window", report.window},
                         {"pinned_to", report.cores},
                         {"polling", report.polling},
                         {"busy", report.busy},
                         {"shared_cores", report.core_count},
                         {"results", nlohmann::json::array()}};
  for (const M2nResult& result : report.results) {
    json["results"].push_back({{"senders", result.shape.senders},
                               {"receivers", result.shape.receivers},
                               {"row_bytes", result.shape.row_bytes},
                               {"bytes", result.shape.bytes},
                               {"answer_bytes", result.shape.answer_bytes},
                               {"iterations", result.iterations},
                               {"best_seconds", result.best_seconds},
                               {"median_seconds", result.median_seconds},
                               {"p99_seconds", result.p99_seconds},
                               {"p999_seconds", result.p999_seconds},
                               {"mean_seconds", result.mean_seconds},
                               {"dispatch_gbps", result.dispatch_gbps},
                               {"answer_gbps", result.answer_gbps},
                               {"bound_seconds", result.bound_seconds},
                               {"share_best", result.best_share},
                               {"share_median", result.median_share},
                               {"plain_seconds", result.plain_seconds}});
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace volley::bench
