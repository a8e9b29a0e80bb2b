#pragma once

#include <cstdint>
#include <vector>

#include "blockwise_source.h"
#include "volley/base/bf16.h"

namespace volley::model {

/// The tensors of a bf16 checkpoint that was never written. Element i of a tensor is a pure
/// function of (seed, name of the tensor, i): every node generates the same tensor, in any order
/// and in any part.
///
/// The function: h = SplitMix64's output for counter i under the key XXH3(name, seed); the four
/// 16-bit pieces of h are added (an Irwin-Hall sum: near normal, cut at 3.46 sigma), centred,
/// scaled to the tensor's sigma and rounded to bf16. Integers and one f32 multiplication: equal on
/// every machine.
///
/// Sigma is 1 for the embedding and 0.02 for every other matrix; norms are 1 + 0.02 x. A unit
/// embedding dominates the residual stream, so that tokens stay apart and the router's choices near
/// uniform.
class DummySource final : public BlockwiseSource {
 public:
  DummySource(std::string embedding_name, uint64_t seed)
      : embedding_name_(std::move(embedding_name)), seed_(seed) {}

 protected:
  Result<kernels::SourceDType> open_tensor(const std::string& name,
                                           std::span<const uint64_t> shape) override;
  const void* elements(size_t first, size_t count) override;
  void close_tensor() override {}

 private:
  const std::string embedding_name_;
  const uint64_t seed_;
  uint64_t key_ = 0;
  float sigma_ = 0;
  float mean_ = 0;
  std::vector<Bf16> block_;
};

}  // namespace volley::model
