// The shapes in which others have published their figures (docs/benchmarks.md names them).

#include <algorithm>

#include "volley/bench/m2n_bench.h"

namespace volley::bench {
namespace {

constexpr uint64_t kKilobyte = 1024;
constexpr uint32_t kTokens = 128;
constexpr uint32_t kTokenBytes = 7168 * 2;  // bf16
constexpr uint32_t kTopK = 8;

M2nShape deepep(uint32_t senders, uint32_t receivers) {
  // Each token goes once to min(top-k, receivers) receivers, and every choice brings a row back.
  const uint32_t rows = (kTokens * std::min(kTopK, receivers) + receivers - 1) / receivers;
  const uint32_t answer_rows = (kTokens * kTopK + receivers - 1) / receivers;
  return {.senders = senders,
          .receivers = receivers,
          .row_bytes = kTokenBytes,
          .bytes = uint64_t{rows} * kTokenBytes,
          .answer_bytes = uint64_t{answer_rows} * kTokenBytes};
}

}  // namespace

Result<std::vector<M2nShape>> m2n_preset(const std::string& name, uint32_t senders,
                                         uint32_t receivers) {
  std::vector<M2nShape> shapes;
  if (name == "paper") {
    for (uint64_t bytes = 2 * kKilobyte; bytes <= 8192 * kKilobyte; bytes *= 2) {
      shapes.push_back({.senders = senders, .receivers = receivers, .bytes = bytes});
    }
  } else if (name == "paper-mn") {
    for (const uint32_t count : {4u, 8u, 16u, 32u}) {
      shapes.push_back({.senders = count, .receivers = count, .bytes = 256 * kKilobyte});
    }
  } else if (name == "deepep") {
    shapes.push_back(deepep(senders, receivers));
  } else if (name == "stepmesh") {
    shapes.push_back({.row_bytes = kTokenBytes,
                      .bytes = uint64_t{kTokens} * kTokenBytes,
                      .answer_bytes = uint64_t{kTokens} * kTokenBytes});
  } else {
    return invalid_argument("shape is '{}', allowed: paper, paper-mn, deepep, stepmesh", name);
  }
  return shapes;
}

}  // namespace volley::bench
