#include "volley/bench/stage_profile.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>

#include "engine_pair.h"
#include "volley/base/clock.h"
#include "volley/bench/limits.h"
#include "volley/engine/dispatch_rows.h"
#include "volley/engine/stage_timer.h"
#include "volley/protocol/wire.h"

namespace volley::bench {
namespace {

constexpr double kLimitsSeconds = 0.5;                    // Of each kind of limit; there are six.
constexpr double kLimitsShare = 0.1, kStagesShare = 0.6;  // Of the time; the engines get the rest.
constexpr uint32_t kDecodeTokens = 24;
constexpr Nanos kEngineTimeout = 60 * kSecond;
constexpr double kNetworkRateMax = 1e12;  // In place of what is too fast to be seen.

double seconds(Nanos time) {
  return static_cast<double>(time) / static_cast<double>(kSecond);
}

/// The first layers of the model, as many as fit the budget; at least one.
model::ModelSpec shortened(const model::ModelSpec& spec, kernels::DType dtype, uint64_t bytes_max) {
  model::ModelSpec one = spec;
  one.layers.resize(1);
  std::vector<model::ExpertWeights::Key> keys;
  for (uint32_t expert = 0; expert < spec.layers.front().moe.experts; ++expert) {
    keys.push_back({.layer = 0, .expert = expert});
  }
  // Embedding and head, which do not shrink, are not in the budget.
  const uint64_t layer_bytes = model::ExpertWeights::bytes_needed(one, dtype, keys);
  model::ModelSpec result = spec;
  const uint64_t layers =
      std::clamp<uint64_t>(bytes_max / std::max<uint64_t>(layer_bytes, 1), 1, spec.layers.size());
  result.layers.resize(layers);
  return result;
}

/// Cores of the two nodes; both empty when there are too few to tell them apart.
void place(const StageProfileOptions& options, const Machine& machine,
           std::vector<uint32_t>& attention, std::vector<uint32_t>& expert) {
  const std::vector<uint32_t>& cores = options.cores.empty() ? machine.cores : options.cores;
  if (cores.size() < size_t{2} * options.threads) return;
  attention.assign(cores.begin(), cores.begin() + options.threads);
  expert.assign(cores.begin() + options.threads, cores.begin() + 2 * options.threads);
}

/// Keeps the smaller one; 0 is none.
void keep_best(double& best, double value) {
  if (best == 0 || value < best) best = value;
}

/// Sweeps all points again and again until the time is over, at least twice.
void measure_stages(engine::StageTimer& timer, const StageProfileOptions& options, uint32_t experts,
                    double time, const StageProgress& progress, StageProfile& profile) {
  for (const uint32_t rows : options.rows) {
    for (const uint32_t context : options.contexts) {
      if (timer.fits(rows, context))
        profile.attention.push_back({.rows = rows, .context = context});
    }
    std::vector<uint32_t> counts = {1, std::max(1u, experts / 2), experts};
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    for (const uint32_t count : counts) profile.expert.push_back({.experts = count, .rows = rows});
  }
  const Nanos start = monotonic_now();
  const double all = static_cast<double>(profile.attention.size() + profile.expert.size());
  for (int sweep = 0;; ++sweep) {
    const double spent = seconds(monotonic_now() - start);
    if (sweep >= 2 && spent >= time) break;
    double done = 0;
    const auto tell = [&](const std::string& what) {
      const double share = std::max(sweep >= 2 ? spent / time : 0, done++ / all * 0.1);
      progress(kLimitsShare + kStagesShare * std::min(share, 1.0), what);
    };
    for (StageProfile::AttentionPoint& point : profile.attention) {
      tell(fmt::format("attention, {} rows of {} tokens", point.rows, point.context));
      const auto step = timer.attention_step(point.rows, point.context);
      keep_best(point.layer_s, step.layer_s);
      keep_best(point.head_s, step.head_s);
    }
    for (StageProfile::ExpertPoint& point : profile.expert) {
      tell(fmt::format("{} experts, {} rows each", point.experts, point.rows));
      keep_best(point.seconds, timer.expert_layer(point.experts, point.rows));
    }
  }
}

template <class Status>
Nanos span_time(const Status& after, const Status& before, engine::Span kind) {
  return after.profile[kind].time - before.profile[kind].time;
}

Status measure_engines(EnginePair& pair, const StageProfileOptions& options,
                       const model::ModelSpec& spec, double time, const StageProgress& progress,
                       StageProfile& profile) {
  using engine::Span;
  const uint32_t top_k = spec.layers.front().moe.top_k;
  const double row_bytes = engine::dispatch_row_bytes(spec.hidden, options.dtype, false);
  for (const uint32_t rows : options.rows) {
    const double pairs = static_cast<double>(rows) * top_k;
    profile.engine.push_back(
        {.rows = rows,
         .transfer_bytes = (rows * row_bytes + pairs * (row_bytes + sizeof(protocol::Entry))) / 2 +
                           sizeof(protocol::MessageHeader)});
  }
  const Nanos start = monotonic_now();
  for (int sweep = 0;; ++sweep) {
    const double spent = seconds(monotonic_now() - start);
    if (sweep >= 2 && spent >= time) return ok_status();
    for (StageProfile::EnginePoint& point : profile.engine) {
      progress(kLimitsShare + kStagesShare +
                   (1 - kLimitsShare - kStagesShare) * std::min(1.0, spent / time),
               fmt::format("engines over {}, {} rows", options.fabric, point.rows));
      const engine::AttentionStatus attention = pair.attention();
      const engine::ExpertStatus expert = pair.expert();
      VOLLEY_RETURN_IF_ERROR(
          pair.decode(point.rows, kDecodeTokens, monotonic_now() + kEngineTimeout));
      const engine::AttentionStatus attention_after = pair.attention();
      const engine::ExpertStatus expert_after = pair.expert();
      const uint64_t steps = attention_after.steps - attention.steps;
      const uint64_t runs = expert_after.runs - expert.runs;
      if (steps == 0 || runs == 0) continue;
      Nanos books = 0, expert_books = 0;
      for (const Span kind : {Span::kSchedule, Span::kPost}) {
        books += span_time(attention_after, attention, kind);
        expert_books += span_time(expert_after, expert, kind);
      }
      for (const Span kind : {Span::kPrepare, Span::kCheck}) {
        expert_books += span_time(expert_after, expert, kind);
      }
      keep_best(point.attention_books_s,
                seconds(books) / static_cast<double>(steps * spec.layer_count()));
      keep_best(point.expert_books_s, seconds(expert_books) / static_cast<double>(runs));
      for (const engine::MeasuredTimes& measured : attention_after.measured) {
        if (measured.transfer > 0 &&
            std::abs(measured.rows - point.rows) < 0.1 * point.rows + 0.5) {
          keep_best(point.transfer_s, seconds(measured.transfer));
        }
      }
    }
  }
}

Status fit(const model::ModelSpec& spec, StageProfile& profile) {
  std::vector<perf::LinearSample> layer, step, expert, books, expert_books, network;
  for (const StageProfile::AttentionPoint& point : profile.attention) {
    const double rows = point.rows;
    layer.push_back({.x = {1, rows, rows * point.context}, .y = point.layer_s});
    step.push_back({.x = {1, rows}, .y = point.head_s});
  }
  for (const StageProfile::ExpertPoint& point : profile.expert) {
    const double experts = point.experts;
    expert.push_back({.x = {1, experts, experts * point.rows}, .y = point.seconds});
  }
  const uint32_t top_k = spec.layers.front().moe.top_k;
  for (const StageProfile::EnginePoint& point : profile.engine) {
    if (point.attention_books_s == 0) continue;
    const double rows = point.rows;
    books.push_back({.x = {1, rows}, .y = point.attention_books_s});
    expert_books.push_back({.x = {1, rows * top_k}, .y = point.expert_books_s});
    if (point.transfer_s > 0) {
      network.push_back({.x = {1, point.transfer_bytes}, .y = point.transfer_s});
    }
  }
  VOLLEY_ASSIGN_OR_RETURN(profile.layer_fit, perf::fit_linear(layer));
  VOLLEY_ASSIGN_OR_RETURN(profile.step_fit, perf::fit_linear(step));
  VOLLEY_ASSIGN_OR_RETURN(profile.expert_fit, perf::fit_linear(expert));
  VOLLEY_ASSIGN_OR_RETURN(profile.attention_books_fit, perf::fit_linear(books));
  VOLLEY_ASSIGN_OR_RETURN(profile.expert_books_fit, perf::fit_linear(expert_books));
  const auto& [own, step_own, run] =
      std::tie(profile.layer_fit.coefficients, profile.step_fit.coefficients,
               profile.expert_fit.coefficients);
  const auto& books_own = profile.attention_books_fit.coefficients;
  const auto& run_books = profile.expert_books_fit.coefficients;
  profile.times = {.layer = own[0] + books_own[0],
                   .layer_row = own[1] + books_own[1],
                   .layer_context = own[2],
                   .step = step_own[0],
                   .step_row = 0,
                   .step_emit = step_own[1],
                   .expert_layer = run[0] + run_books[0],
                   .expert = run[1],
                   .expert_row = run[2] + run_books[1]};
  profile.network = {.latency_s = 0, .bytes_per_s = kNetworkRateMax};
  if (!network.empty()) {
    VOLLEY_ASSIGN_OR_RETURN(const perf::LinearFit fitted, perf::fit_linear(network));
    profile.network.latency_s = fitted.coefficients[0];
    if (fitted.coefficients[1] > 1 / kNetworkRateMax) {
      profile.network.bytes_per_s = 1 / fitted.coefficients[1];
    }
  }
  return ok_status();
}

/// "Intel(R) Xeon(R) Gold 6230" -> "intel-r-xeon-r-gold-6230".
std::string device_name(const std::string& cpu_name) {
  std::string name;
  for (const char c : cpu_name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  while (!name.empty() && name.back() == '-') name.pop_back();
  return name.empty() ? "cpu" : name;
}

/// What the measured points are of the machine's limits.
Result<perf::Device> make_device(const model::ModelSpec& spec, const StageProfileOptions& options,
                                 const StageProfile& profile) {
  const model::LayerSpec& layer = spec.layers.front();
  const double element = static_cast<double>(kernels::dtype_bytes(options.dtype));
  perf::Device device;
  device.name = options.name.empty() ? device_name(profile.machine.cpu_name) : options.name;
  device.cpu = true;
  device.memory_bytes =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  device.memory_bytes_per_s = profile.limits.memory_gbps * 1e9;
  const double f32 = std::max({profile.limits.fma512_gflops, profile.limits.fma256_gflops,
                               profile.limits.portable_gflops}) *
                     1e9;
  device.flops[static_cast<size_t>(perf::NumberFormat::kF32)] = f32;
  const double bf16 = peak_gflops(profile.limits, profile.isa) * 1e9;
  device.flops[static_cast<size_t>(perf::NumberFormat::kBf16)] = bf16;
  const double peak = options.dtype == kernels::DType::kF32 ? f32 : bf16;
  device.network_bytes_per_s = profile.network.bytes_per_s;

  // Where weights bind, what is reached of the arithmetic is little, and so the larger of the two
  // roofs is still the measured time.
  const double weights = 3.0 * spec.hidden * layer.moe.ffn;
  std::vector<perf::Curve::Point> compute;
  double memory = 0;
  uint32_t rows_least = 0;
  std::map<uint32_t, double> by_rows;  // With all experts at work.
  for (const StageProfile::ExpertPoint& point : profile.expert) {
    if (point.experts == layer.moe.experts) by_rows[point.rows] = point.seconds / point.experts;
  }
  for (const auto& [rows, time] : by_rows) {
    compute.push_back({.x = static_cast<double>(rows), .y = 2 * weights * rows / time / peak});
    if (rows_least == 0) {
      rows_least = rows;
      memory = weights * element / time / device.memory_bytes_per_s;
    }
  }
  VOLLEY_ASSIGN_OR_RETURN(device.efficiency.compute, perf::Curve::make(std::move(compute)));
  device.efficiency.memory = perf::Curve(memory);
  const double kv_bytes = 2.0 * layer.attention.kv_heads * layer.attention.head_dim * element;
  if (profile.times.layer_context > 0) {
    device.efficiency.attention =
        perf::Curve(kv_bytes / profile.times.layer_context / device.memory_bytes_per_s);
  }
  device.efficiency.network = perf::Curve(1.0);
  device.efficiency.attention_layer_s = profile.attention_books_fit.coefficients[0];
  device.efficiency.expert_layer_s = profile.expert_books_fit.coefficients[0];
  device.efficiency.message_s = profile.network.latency_s;
  return device;
}

std::string fit_line(const char* name, const perf::LinearFit& fit,
                     const std::vector<const char*>& terms) {
  std::string text = fmt::format("  {:<16}", name);
  for (size_t i = 0; i < terms.size(); ++i) {
    text += fmt::format("{}{:.4g} us{}", i == 0 ? "" : " + ", fit.coefficients[i] * 1e6, terms[i]);
  }
  return text + fmt::format("; error: median {:.1f} %, worst {:.1f} %\n", fit.median_error * 100,
                            fit.worst_error * 100);
}

}  // namespace

Result<StageProfile> run_stage_profile(const model::Checkpoint& checkpoint,
                                       const StageProfileOptions& options,
                                       const StageProgress& progress) {
  if (options.rows.empty() || options.contexts.empty() || options.threads == 0 ||
      std::ranges::min(options.rows) == 0 || std::ranges::min(options.contexts) == 0) {
    return invalid_argument("rows, contexts and threads must not be empty or 0");
  }
  if (!std::ranges::is_sorted(options.rows, std::less_equal()) ||
      !std::ranges::is_sorted(options.contexts, std::less_equal())) {
    return invalid_argument("rows and contexts must ascend");
  }
  VOLLEY_ASSIGN_OR_RETURN(const auto* kernels, kernels::select_cpu_kernels(options.isa));
  StageProfile profile;
  VOLLEY_ASSIGN_OR_RETURN(profile.machine, inspect_machine());
  profile.date = utc_date();
  profile.isa = kernels->name;
  profile.fabric = options.fabric;
  profile.threads = options.threads;
  profile.layers = checkpoint.spec.layer_count();
  std::vector<uint32_t> attention_cores, expert_cores;
  place(options, profile.machine, attention_cores, expert_cores);

  progress(0, "limits of the machine");
  const uint32_t limit_threads =
      std::min(options.threads, static_cast<uint32_t>(profile.machine.cores.size()));
  VOLLEY_ASSIGN_OR_RETURN(
      profile.limits,
      measure_limits(limit_threads, std::min(kLimitsSeconds, options.seconds * kLimitsShare / 6)));

  model::Checkpoint shortened_checkpoint = checkpoint;
  shortened_checkpoint.spec = shortened(checkpoint.spec, options.dtype, options.weight_bytes_max);
  const model::ModelSpec& spec = shortened_checkpoint.spec;
  profile.layers_measured = spec.layer_count();
  {
    progress(kLimitsShare, "loading weights");
    Status status;
    // A thread of its own: the timer pins the one that it runs on.
    std::jthread([&] {
      status = [&]() -> Status {
        VOLLEY_ASSIGN_OR_RETURN(const auto source, checkpoint.source());
        VOLLEY_ASSIGN_OR_RETURN(const auto timer,
                                engine::StageTimer::create({.dtype = options.dtype,
                                                            .threads = options.threads,
                                                            .cores = attention_cores,
                                                            .rows_max = options.rows.back(),
                                                            .context_max = options.contexts.back()},
                                                           spec, *source, *kernels));
        measure_stages(*timer, options, spec.layers.front().moe.experts,
                       options.seconds * kStagesShare, progress, profile);
        return ok_status();
      }();
    }).join();
    VOLLEY_RETURN_IF_ERROR(status);
  }
  {
    progress(kLimitsShare + kStagesShare, "loading weights");
    VOLLEY_ASSIGN_OR_RETURN(const auto pair, EnginePair::start(shortened_checkpoint,
                                                               {.fabric = options.fabric,
                                                                .isa = options.isa,
                                                                .dtype = options.dtype,
                                                                .threads = options.threads,
                                                                .attention_cores = attention_cores,
                                                                .expert_cores = expert_cores,
                                                                .rows_max = options.rows.back()}));
    VOLLEY_RETURN_IF_ERROR(measure_engines(*pair, options, spec,
                                           options.seconds * (1 - kLimitsShare - kStagesShare),
                                           progress, profile));
  }
  progress(1, "done");
  VOLLEY_RETURN_IF_ERROR(fit(spec, profile));
  VOLLEY_ASSIGN_OR_RETURN(profile.device, make_device(spec, options, profile));
  return profile;
}

std::string format_stage_profile(const StageProfile& profile) {
  std::string text = fmt::format(
      "{}, {} thread{} a node, {} kernels, fabric {}, {}\n", profile.machine.cpu_name,
      profile.threads, profile.threads == 1 ? "" : "s", profile.isa, profile.fabric, profile.date);
  if (profile.layers_measured < profile.layers) {
    text += fmt::format("measured: {} of {} layers, by --weight-mib\n", profile.layers_measured,
                        profile.layers);
  }
  text += fmt::format("limits: memory {:.1f} GB/s, {} {:.1f} GFLOP/s\n", profile.limits.memory_gbps,
                      profile.isa, peak_gflops(profile.limits, profile.isa));
  text += "\n  rows  context    layer us     head us\n";
  for (const StageProfile::AttentionPoint& point : profile.attention) {
    text += fmt::format("{:6}{:9}{:12.1f}{:12.1f}\n", point.rows, point.context,
                        point.layer_s * 1e6, point.head_s * 1e6);
  }
  text += "\nexperts  rows each    layer us\n";
  for (const StageProfile::ExpertPoint& point : profile.expert) {
    text += fmt::format("{:7}{:11}{:12.1f}\n", point.experts, point.rows, point.seconds * 1e6);
  }
  text += "\n  rows  attention books us  expert books us  one way us   bytes\n";
  for (const StageProfile::EnginePoint& point : profile.engine) {
    text += fmt::format("{:6}{:20.1f}{:17.1f}{:12.1f}{:8.0f}\n", point.rows,
                        point.attention_books_s * 1e6, point.expert_books_s * 1e6,
                        point.transfer_s * 1e6, point.transfer_bytes);
  }
  text += "\n";
  text += fit_line("attention layer", profile.layer_fit, {"", " / row", " / context token"});
  text += fit_line("  books", profile.attention_books_fit, {"", " / row"});
  text += fit_line("step", profile.step_fit, {"", " / emitting row"});
  text += fit_line("expert layer", profile.expert_fit, {"", " / expert", " / row"});
  text += fit_line("  books", profile.expert_books_fit, {"", " / row"});
  text += fmt::format("  {:<16}{:.1f} us + bytes / {:.2f} GB/s\n", "one way",
                      profile.network.latency_s * 1e6, profile.network.bytes_per_s / 1e9);
  return text;
}

std::string stage_profile_source(const StageProfile& profile, const std::string& model) {
  return fmt::format(
      "volley profile of {} on {}, {} thread(s) a node, {}, {}; one way over {}: {:.2f} us + bytes "
      "/ {:.3f} GB/s",
      model, profile.machine.cpu_name, profile.threads, profile.isa, profile.date, profile.fabric,
      profile.network.latency_s * 1e6, profile.network.bytes_per_s / 1e9);
}

}  // namespace volley::bench
