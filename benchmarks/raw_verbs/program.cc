#include "program.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>

#include "fail.h"

namespace raw_verbs {
namespace {

using nlohmann::json;

struct Options {
  EndpointOptions endpoint;
  std::string peer;  ///< Empty: this is the passive side.
  uint16_t tcp_port = 18515;
  Mode mode = Mode::kLatency;
  std::vector<uint64_t> sizes_bytes = {64, 256, 1024, 4096, 16384, 65536, 262144, 1048576};
  uint32_t messages = 1000;
  uint32_t data_mib_max = 64;
  uint32_t window = 16;
  bool check = false;
  bool acknowledge = false;
  std::string json_path;
};

const std::map<std::string, Wait> kWaits = {
    {"poll", Wait::kPoll}, {"yield", Wait::kYield}, {"event", Wait::kEvent}};
const std::map<std::string, Mode> kModes = {{"latency", Mode::kLatency},
                                            {"bandwidth", Mode::kBandwidth}};

template <class T>
std::string name_of(const std::map<std::string, T>& names, T value) {
  return std::ranges::find(names, value, [](const auto& entry) { return entry.second; })->first;
}

void add_options(CLI::App& app, const Program& program, Options& options) {
  app.add_option("--device", options.endpoint.device, "The RDMA device, such as mlx5_0")
      ->required();
  app.add_option("--device-port", options.endpoint.port, "Its port")
      ->check(CLI::Range(1, 255))
      ->capture_default_str();
  app.add_option("--gid-index", options.endpoint.gid_index, "Of the port's address")
      ->check(CLI::Range(0, 255))
      ->capture_default_str();
  app.add_option("--wait", options.endpoint.wait, "poll, yield or event")
      ->transform(CLI::CheckedTransformer(kWaits).description(""))
      ->default_str("poll");
  app.add_option("--timeout-exponent", options.endpoint.timeout_exponent,
                 "Retransmit after 4.096 us * 2^this")
      ->check(CLI::Range(1, 31))
      ->capture_default_str();
  app.add_option("--retries", options.endpoint.retries, "Before the connection fails")
      ->check(CLI::Range(0, 7))
      ->capture_default_str();
  app.add_option("--deadline-s", options.endpoint.deadline_s, "The longest wait for the peer")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--tcp-port", options.tcp_port, "Where the two processes meet")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();

  auto* peer = app.add_option("--connect", options.peer, "The host of the passive process");
  const auto active = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->needs(peer)->group("Only with --connect");
  };
  active("--mode", options.mode, "latency (round trips) or bandwidth (a window of writes)")
      ->transform(CLI::CheckedTransformer(kModes).description(""))
      ->default_str("latency");
  active("--sizes", options.sizes_bytes, "Bytes per message, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  active("--messages", options.messages, "Per size, after a tenth as warm-up")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  active("--data-mib-max", options.data_mib_max, "Fewer messages than that if they were more data")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  active("--window", options.window, "Messages in flight, for bandwidth")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  active("--json", options.json_path, "Writes the results to this file as well");
  if (!program.bare) return;
  app.add_option("--inline-max", options.endpoint.inline_bytes_max,
                 "Up to so many bytes travel in the work request")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--check", options.check,
               "Give every message bytes of its own and compare all of them; slower")
      ->needs(peer)
      ->group("Only with --connect");
  app.add_flag("--acknowledge", options.acknowledge,
               "In a stream the receiver answers each message, and only that frees its slot")
      ->needs(peer)
      ->group("Only with --connect");
}

void serve(const Program& program, const Options& options) {
  program.require_device(options.endpoint);  // Before anybody waits for this process.
  Rendezvous peer = Rendezvous::accept(options.tcp_port, options.endpoint.deadline_s);
  const auto side = program.connect(options.endpoint, peer.receive<Area>(), peer, "");
  while (true) {
    const auto plan = peer.receive<Plan>();
    if (plan.mode == Mode::kEnd) return;
    peer.meet();
    plan.mode == Mode::kLatency ? side->pong(plan) : side->drain(plan);
    peer.meet();
  }
}

/// Runs it here and there; `run` is what the active side does.
template <class Run>
auto run_both(Rendezvous& peer, Side& side, const Plan& plan, Run run) {
  peer.send(plan);
  peer.meet();
  auto result = (side.*run)(plan);
  peer.meet();
  return result;
}

json measure_latency(Rendezvous& peer, Side& side, const Plan& plan) {
  std::vector<int64_t> ns = run_both(peer, side, plan, &Side::ping);
  std::ranges::sort(ns);
  const auto us = [&](size_t at) { return static_cast<double>(ns[at]) / 1e3; };
  const json result{
      {"best", us(0)}, {"median", us(ns.size() / 2)}, {"p99", us(ns.size() * 99 / 100)}};
  fmt::print("{:>10}  {:>9}  {:>10.2f}  {:>10.2f}  {:>10.2f}\n", plan.size_bytes, ns.size(),
             result["best"].get<double>(), result["median"].get<double>(),
             result["p99"].get<double>());
  return {{"round_trip_us", result}};
}

json measure_bandwidth(Rendezvous& peer, Side& side, const Plan& plan) {
  const double seconds = run_both(peer, side, plan, &Side::stream);
  const double mb_per_s = static_cast<double>(plan.size_bytes) * plan.messages / seconds / 1e6;
  fmt::print("{:>10}  {:>9}  {:>10.4f}  {:>10.2f}\n", plan.size_bytes, plan.messages, seconds,
             mb_per_s);
  return {{"seconds", seconds}, {"mb_per_s", mb_per_s}};
}

json measure(const Options& options, Rendezvous& peer, Side& side) {
  const bool latency = options.mode == Mode::kLatency;
  fmt::print("{}\n", latency
                         ? "     BYTES      TURNS     BEST us   MEDIAN us      P99 us  (round trip)"
                         : "     BYTES   MESSAGES           s        MB/s");
  json results = json::array();
  for (const uint64_t size_bytes : options.sizes_bytes) {
    const uint64_t data_bytes_max = uint64_t{options.data_mib_max} << 20;
    const auto messages = static_cast<uint32_t>(
        std::clamp<uint64_t>(data_bytes_max / size_bytes, 1, options.messages));
    Plan plan{.mode = options.mode,
              .check = options.check,
              .acknowledge = options.acknowledge || options.check,
              .messages = messages / 10 + 1,
              .window = options.window,
              .size_bytes = size_bytes};
    latency ? static_cast<void>(run_both(peer, side, plan, &Side::ping))
            : static_cast<void>(run_both(peer, side, plan, &Side::stream));
    plan.messages = messages;
    json result = latency ? measure_latency(peer, side, plan) : measure_bandwidth(peer, side, plan);
    result["size_bytes"] = size_bytes;
    result["messages"] = messages;
    results.push_back(std::move(result));
    std::fflush(stdout);
  }
  return results;
}

void lead(const Program& program, const Options& options) {
  program.require_device(options.endpoint);
  Rendezvous peer =
      Rendezvous::connect(options.peer, options.tcp_port, options.endpoint.deadline_s);
  const Area area{
      .slots = options.mode == Mode::kBandwidth ? options.window : 1,
      .slot_bytes = static_cast<size_t>(*std::ranges::max_element(options.sizes_bytes))};
  peer.send(area);
  const auto side = program.connect(options.endpoint, area, peer, options.peer);
  const json results = measure(options, peer, *side);
  peer.send(Plan{});
  if (options.json_path.empty()) return;

  json report{{"program", program.name},
              {"mode", name_of(kModes, options.mode)},
              {"device", options.endpoint.device},
              {"gid_index", options.endpoint.gid_index},
              {"wait", name_of(kWaits, options.endpoint.wait)},
              {"window", area.slots},
              {"checked", options.check},
              {"acknowledged", options.acknowledge || options.check},
              {"results", results}};
  report.update(side->facts());
  std::ofstream file(options.json_path);
  file << report.dump(2) << "\n";
  if (!file.flush()) fail("cannot write {}", options.json_path);
}

}  // namespace

int run_program(const Program& program, int argc, char** argv) {
  Options options;
  CLI::App app(program.description);
  add_options(app, program, options);
  CLI11_PARSE(app, argc, argv);
  options.peer.empty() ? serve(program, options) : lead(program, options);
  return 0;
}

}  // namespace raw_verbs
