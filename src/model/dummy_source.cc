#include "dummy_source.h"

#include "volley/base/digest.h"

namespace volley::model {
namespace {

constexpr float kEmbeddingSigma = 1.0f;
constexpr float kMatrixSigma = 0.02f;
constexpr float kNormSigma = 0.02f;

// The sum of four uniform integers in [0, 65535]: its mean, and the inverse of its standard
// deviation sqrt((65536^2 - 1) / 3).
constexpr int32_t kSumMean = 4 * 65535 / 2;
constexpr float kSumScale = 1.0f / 37837.2272f;

/// The value that SplitMix64, started at `key`, gives at step `counter`.
uint64_t mix(uint64_t key, uint64_t counter) {
  uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float near_normal(uint64_t hash, float scale) {
  const auto sum = static_cast<int32_t>((hash & 0xffff) + (hash >> 16 & 0xffff) +
                                        (hash >> 32 & 0xffff) + (hash >> 48));
  return static_cast<float>(sum - kSumMean) * scale;
}

}  // namespace

Result<kernels::SourceDType> DummySource::open_tensor(const std::string& name,
                                                      std::span<const uint64_t> shape) {
  key_ = digest64(std::as_bytes(std::span(name)), seed_);
  const bool norm = shape.size() == 1;
  mean_ = norm ? 1.0f : 0.0f;
  sigma_ = norm ? kNormSigma : name == embedding_name_ ? kEmbeddingSigma : kMatrixSigma;
  return kernels::SourceDType::kBf16;
}

const void* DummySource::elements(size_t first, size_t count) {
  block_.resize(count);
  const float scale = sigma_ * kSumScale;
  for (size_t i = 0; i < count; ++i) {
    block_[i] = to_bf16(mean_ + near_normal(mix(key_, first + i), scale));
  }
  return block_.data();
}

}  // namespace volley::model
