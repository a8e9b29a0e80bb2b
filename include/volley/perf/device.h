#pragma once

// The hardware catalogue: what the planner knows about a GPU, or about a CPU node.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "volley/base/status.h"
#include "volley/perf/curve.h"
#include "volley/perf/number_format.h"

namespace volley::perf {

/// What kernels reach of the data sheet, and what they cost besides. Fractions are of the device's
/// own figures.
struct Efficiency {
  /// Of the compute rate, by the rows that share one weight matrix (rows of a GEMM; rows per expert
  /// of a grouped FFN).
  Curve compute{0.7};
  /// Of the memory bandwidth, by the bytes that one operator reads.
  Curve memory{0.8};
  /// Of the memory bandwidth while attention reads keys and values, by the bytes of one layer.
  Curve attention{0.8};
  /// Of the intra-node link, by the bytes that one device sends in a collective.
  Curve link{0.7};
  /// Of the network, by the bytes that one device sends in one phase: the paper's Util.
  Curve network{0.9};

  double attention_layer_s =
      0;                      ///< Per layer and micro-batch on an attention node: launches, gaps.
  double expert_layer_s = 0;  ///< Per grouped FFN on an expert node.
  double step_s = 0;          ///< Per step of a micro-batch: scheduling, sampling, copies.
  double collective_s = 0;    ///< Latency of one collective inside a node.
  double message_s = 0;       ///< Latency of one M2N phase, whatever its size: alpha.

  bool operator==(const Efficiency&) const = default;
};

/// One GPU, or one CPU node. Rates are of one device and one direction.
struct Device {
  std::string name;  ///< "H20": the file's name.
  bool cpu = false;
  double memory_bytes = 0;
  double memory_bytes_per_s = 0;
  /// Dense FLOP per second, by NumberFormat; 0: not supported, computed in the next larger one.
  std::array<double, kNumberFormats> flops{};
  double link_bytes_per_s = 0;     ///< To the other devices of its node (NVLink, PCIe).
  double network_bytes_per_s = 0;  ///< Of its share of the node's NICs.
  uint32_t per_node = 1;           ///< Devices of a node: the most that tensor parallelism spans.
  double price = 0;                ///< To buy, L20 = 1; 0: unknown.
  double watts = 0;                ///< At most; 0: unknown.
  /// Of memory_bytes: for weights, KV, slots and activations. The rest is the driver's and the
  /// allocator's.
  double usable_memory = 0.92;
  Efficiency efficiency;

  bool operator==(const Device&) const = default;

  double usable_bytes() const { return memory_bytes * usable_memory; }
  /// The rate at which weights of `format` are multiplied: its own, else of the next larger format;
  /// 0 when there is none, which no device from a file has.
  double flops_of(NumberFormat format) const;
};

/// Reads one file of configs/hardware. Strict: an unknown key, a duplicate, a missing source or a
/// bad value is an error "FILE:LINE: KEY: ...".
/// Errors: kNotFound, kInvalidArgument.
Result<Device> load_device(const std::string& file);
/// The same from text; `origin` names it in messages.
Result<Device> parse_device(const std::string& text, const std::string& origin);
/// The text that parse_device() reads back to an equal device. `source` is what each figure cites.
std::string format_device(const Device& device, const std::string& source);

/// "H20" -> DIRECTORY/h20.yaml; a name with a '/' or ending in ".yaml" is a file's path.
/// Errors: as load_device(); kNotFound lists the names in `directory`.
Result<Device> find_device(const std::string& directory, const std::string& name);

}  // namespace volley::perf
