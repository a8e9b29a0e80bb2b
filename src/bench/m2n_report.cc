#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "table.h"
#include "volley/bench/m2n_bench.h"

namespace volley::bench {

std::string format_m2n_report(const M2nReport& report) {
  constexpr double kMicro = 1e-6;
  std::string out = fmt::format(
      "{}, {} cores, {}\n{} senders, {} receivers on {}, {} round trips each\n{}; {}; {}\n\n",
      report.machine.cpu_name, report.machine.cores.size(), report.date, report.senders,
      report.receivers, report.fabric, report.iterations,
      report.cores.empty() ? "not pinned"
                           : fmt::format("pinned to {}", fmt::join(report.cores, ",")),
      report.polling ? "waiting peers poll" : "waiting peers sleep",
      report.senders + report.receivers <= report.core_count
          ? "a core for each peer"
          : fmt::format("{} peers share {} cores", report.senders + report.receivers,
                        report.core_count));
  std::vector<std::vector<std::string>> rows = {
      {"BYTES", "ANSWER", "BEST us", "MEDIAN us", "P99 us", "P99.9 us", "DISPATCH GB/s",
       "ANSWER GB/s", "BOUND us", "SHARE", "MEDIAN SHARE", "PLAIN us"}};
  for (const M2nResult& result : report.results) {
    rows.push_back({std::to_string(result.bytes), std::to_string(result.answer_bytes),
                    three_digits(result.best_seconds / kMicro),
                    three_digits(result.median_seconds / kMicro),
                    three_digits(result.p99_seconds / kMicro),
                    three_digits(result.p999_seconds / kMicro), three_digits(result.dispatch_gbps),
                    three_digits(result.answer_gbps), three_digits(result.bound_seconds / kMicro),
                    percent(result.best_share()), percent(result.median_share()),
                    result.plain_seconds > 0 ? three_digits(result.plain_seconds / kMicro) : "-"});
  }
  return out + format_table(rows, 0);
}

std::string m2n_report_json(const M2nReport& report) {
  nlohmann::json json = {{"bench", "m2n"},
                         {"date", report.date},
                         {"cpu", report.machine.cpu_name},
                         {"cores", report.machine.cores.size()},
                         {"fabric", report.fabric},
                         {"senders", report.senders},
                         {"receivers", report.receivers},
                         {"iterations", report.iterations},
                         {"pinned_to", report.cores},
                         {"polling", report.polling},
                         {"shared_cores", report.core_count},
                         {"results", nlohmann::json::array()}};
  for (const M2nResult& result : report.results) {
    json["results"].push_back({{"bytes", result.bytes},
                               {"answer_bytes", result.answer_bytes},
                               {"best_seconds", result.best_seconds},
                               {"median_seconds", result.median_seconds},
                               {"p99_seconds", result.p99_seconds},
                               {"p999_seconds", result.p999_seconds},
                               {"dispatch_gbps", result.dispatch_gbps},
                               {"answer_gbps", result.answer_gbps},
                               {"bound_seconds", result.bound_seconds},
                               {"share_best", result.best_share()},
                               {"share_median", result.median_share()},
                               {"plain_seconds", result.plain_seconds}});
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace volley::bench
