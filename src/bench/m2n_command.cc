#include "volley/bench/m2n_command.h"

namespace volley::bench {

void M2nCommand::add_options(CLI::App& app) {
  app.add_option("--m", senders, "Senders")
      ->check(CLI::Range(1u, kM2nPeersMax))
      ->capture_default_str();
  app.add_option("--n", receivers, "Receivers")
      ->check(CLI::Range(1u, kM2nPeersMax))
      ->capture_default_str();
  auto* const sizes =
      app.add_option("--bytes", bytes,
                     "Sizes of a dispatch to one receiver, separated by commas: 2KB to 16MB")
          ->delimiter(',')
          ->transform(CLI::AsSizeValue(false))
          ->default_str("2KB,16KB,128KB,1MB");
  auto* const answers =
      app.add_option("--answer-bytes", answer_bytes, "Size of an answer: 2KB to 16MB")
          ->transform(CLI::AsSizeValue(false))
          ->capture_default_str();
  app.add_option("--shape", shape,
                 "In place of sizes, those of a publication: paper, paper-mn, deepep, stepmesh")
      ->check(CLI::IsMember({"paper", "paper-mn", "deepep", "stepmesh"}))
      ->excludes(sizes)
      ->excludes(answers);
  app.add_option("--pattern", pattern,
                 "round-trip; one-way: streams; both: streams in both directions at once")
      ->check(CLI::IsMember({"round-trip", "one-way", "both"}))
      ->capture_default_str();
  app.add_option("--window", bench.window, "Messages of a stream that a link has under way")
      ->check(CLI::Range(1u, kM2nWindowMax))
      ->capture_default_str();
  app.add_option("--iterations", bench.iterations, "Measured dispatches of each link")
      ->check(CLI::Range(1u, 10'000'000u))
      ->capture_default_str();
  app.add_option("--warmup", bench.warmup, "Dispatches before them")
      ->check(CLI::Range(0u, 10'000'000u))
      ->capture_default_str();
  app.add_option("--volume", bench.link_bytes_max,
                 "Fewer dispatches where these would be more bytes on a link, 30 at least")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--pin", bench.cores,
                 "Cores for the peers, separated by commas: senders first, around and around")
      ->delimiter(',');
  app.add_option("--wait", bench.wait, "How peers wait: sleep, as the engines do, or poll")
      ->check(CLI::IsMember({"sleep", "poll"}))
      ->capture_default_str();
  app.add_flag("--busy", bench.busy, "Keeps every core busy with a process of the lowest priority");
  app.add_option("--timeout-ms", bench.timeout_ms, "For all dispatches of one size")
      ->check(CLI::Range(1u, 86'400'000u))
      ->capture_default_str();
  app.add_option("--json", json, "Writes the report to this file as well");
}

Result<M2nBenchOptions> M2nCommand::options() const {
  M2nBenchOptions options = bench;
  options.pattern = pattern == "one-way" ? M2nPattern::kOneWay
                    : pattern == "both"  ? M2nPattern::kBoth
                                         : M2nPattern::kRoundTrip;
  if (!shape.empty()) {
    VOLLEY_ASSIGN_OR_RETURN(options.shapes, m2n_preset(shape, senders, receivers));
    return options;
  }
  for (const uint64_t one :
       bytes.empty() ? std::vector<uint64_t>{2048, 16'384, 131'072, 1'048'576} : bytes) {
    options.shapes.push_back(
        {.senders = senders, .receivers = receivers, .bytes = one, .answer_bytes = answer_bytes});
  }
  return options;
}

}  // namespace volley::bench
