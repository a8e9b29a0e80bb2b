#pragma once

// `volley profile`: what the stages of a model take on this machine, as the planner, the simulator
// and `compute: modelled` want it. docs/profiling.md says what is measured, and how.

#include <functional>
#include <string>
#include <vector>

#include "volley/bench/kernel_report.h"
#include "volley/bench/machine.h"
#include "volley/model/weights.h"
#include "volley/perf/device.h"
#include "volley/perf/linear_fit.h"
#include "volley/perf/stage_times.h"

namespace volley::bench {

struct StageProfileOptions {
  std::string isa = "auto";
  kernels::DType dtype = kernels::DType::kBf16;
  /// Of each node. The attention node gets the first so many of `cores`, the expert node the next;
  /// where there are fewer than twice as many the kernel places the threads.
  uint32_t threads = 1;
  std::vector<uint32_t> cores;  ///< Empty: those that this process may use.
  std::string fabric = "shm";   ///< "shm" or "tcp": of the messages between the two nodes.
  std::vector<uint32_t> rows = {1, 4, 16, 64};
  std::vector<uint32_t> contexts = {32, 256, 1024};
  /// Of weights: of a larger model the first layers stand for all.
  uint64_t weight_bytes_max = uint64_t{2} << 30;
  double seconds = 40;  ///< Of measuring; loading weights comes on top, three times.
  std::string name;     ///< Of the device; empty: made of the processor's name.
};

struct StageProfile {
  struct AttentionPoint {
    uint32_t rows = 0, context = 0;
    double layer_s = 0, head_s = 0;
  };
  struct ExpertPoint {
    uint32_t experts = 0, rows = 0;  ///< Rows of each of the experts.
    double seconds = 0;
  };
  /// Of a decode with m = 1 in real engines.
  struct EnginePoint {
    uint32_t rows = 0;
    double attention_books_s = 0;  ///< Per layer: schedule and post.
    double expert_books_s = 0;     ///< Per run: schedule, prepare, check and post.
    double transfer_s = 0;         ///< One way, mean of dispatch and answer; 0: not seen.
    double transfer_bytes = 0;     ///< Likewise.
  };

  Machine machine;
  std::string date, isa, fabric;
  uint32_t threads = 1;
  uint32_t layers = 0, layers_measured = 0;
  Limits limits;
  std::vector<AttentionPoint> attention;
  std::vector<ExpertPoint> expert;
  std::vector<EnginePoint> engine;

  perf::LinearFit layer_fit;   ///< layer, layer_row, layer_context; without books.
  perf::LinearFit step_fit;    ///< step, step_emit.
  perf::LinearFit expert_fit;  ///< expert_layer, expert, expert_row; without books.
  perf::LinearFit attention_books_fit, expert_books_fit;  ///< Constant, per row (per pair).
  perf::LinearTimes times;                                ///< All of it: what a real node takes.
  perf::NetworkTimes network;
  perf::Device device;
};

/// Gets the done share, in [0, 1], and what is being measured.
using StageProgress = std::function<void(double, const std::string&)>;

/// Blocks for options.seconds and the time to load the model; pins threads of its own only. Every
/// time is the best of many: other work on the machine only ever takes away.
/// Errors: kInvalidArgument, kResourceExhausted, kDeadlineExceeded (the engines hang), those of the
/// checkpoint.
Result<StageProfile> run_stage_profile(const model::Checkpoint& checkpoint,
                                       const StageProfileOptions& options,
                                       const StageProgress& progress);

/// For people.
std::string format_stage_profile(const StageProfile& profile);
/// One line: what, where and when. The `about` and `source` of the files.
std::string stage_profile_source(const StageProfile& profile, const std::string& model);

}  // namespace volley::bench
