#pragma once

// What the planner says where the paper has a figure.

#include <map>
#include <string>
#include <vector>

#include "csv.h"
#include "volley/perf/device.h"
#include "volley/perf/model_shape.h"
#include "volley/planner/plan.h"

namespace volley::paper_figures {

/// The two constants that the paper does not give and that no data sheet has, as its system had
/// them.
struct Constants {
  double compute = 0;  ///< Of the peak, at 512 rows per expert and above.
  double attention_layer_s = 0;
};

/// The catalogue's entries that the paper used, with the constants in them, and what it published.
struct Inputs {
  std::map<std::string, perf::Device> devices;  ///< By the names of the catalogue's files.
  std::vector<perf::ModelShape> models;         ///< In the order of the paper's Table 4.
  std::map<std::string, Table> paper;           ///< "fig8" ...
  Constants constants;
};

/// `catalogue` holds hardware/ and models/. The constants are chosen so that two bars come out:
/// - compute: DBRX in Fig. 8, whose plan can be inferred: 6144 sequences / 122 ms / 32 GPUs is
/// 1573,
///   8 attention nodes of two devices with 256 rows, three micro-batches, an expert per device;
/// - attention_layer_s: the first bar of Fig. 13, where attention binds.
/// Errors: those of the readers.
Result<Inputs> read_inputs(const std::string& catalogue, const std::string& data);

/// Whether a constant of the catalogue was chosen so that this value comes out well.
enum class Kind : uint8_t { kFitted, kPredicted };

struct Value {
  std::string figure;  ///< "fig8"
  std::string row;     ///< "dbrx"
  std::string column;  ///< "megascale_infer"
  std::string unit{};
  double paper = 0;
  double ours = 0;
  Kind kind = Kind::kPredicted;
  std::string note{};  ///< The plan, for example.

  double error() const { return ours / paper - 1; }
};

/// Fig. 8 and 9: throughput of the best plan found, beside colocated serving. Fig. 8 also has the
/// inferred plan.
Result<std::vector<Value>> throughput_per_gpu(const Inputs& inputs);
Result<std::vector<Value>> throughput_per_cost(const Inputs& inputs);
/// Fig. 10 and 11: the time of an M2N phase.
Result<std::vector<Value>> transfer_times(const Inputs& inputs);
/// Fig. 12: throughput by the number of micro-batches of constant size: the 128 rows on two devices
/// of the paper's worked example (7.3), an expert per device, and the number of attention nodes
/// that is best for three.
Result<std::vector<Value>> micro_batch_sweep(const Inputs& inputs);
/// Fig. 13: the plan behind the paper's figure, by the number of attention nodes.
Result<std::vector<Value>> attention_node_sweep(const Inputs& inputs);

}  // namespace volley::paper_figures
