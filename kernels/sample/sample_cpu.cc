#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sample/sample_cpu.cc"

// Targets are chosen before the first header of Highway.
// clang-format off
#include "kernels/common/targets.h"
#include <hwy/foreach_target.h>
// clang-format on

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/common/implementations.h"
#include "kernels/common/vector-inl.h"
#include "kernels/sample/passes.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace volley::kernels::HWY_NAMESPACE {

// In an anonymous namespace: other operations have passes of such names too.
namespace {

using HalfTag = hn::Half<F32Tag>;
using F64Tag = hn::RepartitionToWide<F32Tag>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The sixteen lanes of a chunk's sum.
struct F64x16 {
  hn::Vec<F64Tag> part[2 * kParts];
};

HWY_INLINE F64x16 zero_lanes() {
  F64x16 lanes;
  for (size_t i = 0; i < 2 * kParts; ++i) lanes.part[i] = hn::Zero(F64Tag());
  return lanes;
}

HWY_INLINE void add_to(F64x16& lanes, F32x16 value) {
  const F64Tag f64;
  for (size_t i = 0; i < kParts; ++i) {
    const auto low = hn::PromoteTo(f64, hn::LowerHalf(HalfTag(), value.part[i]));
    const auto high = hn::PromoteTo(f64, hn::UpperHalf(HalfTag(), value.part[i]));
    lanes.part[2 * i] = hn::Add(lanes.part[2 * i], low);
    lanes.part[2 * i + 1] = hn::Add(lanes.part[2 * i + 1], high);
  }
}

HWY_INLINE double add_across(const F64x16& lanes) {
  double lane[kSampleGroup];
  for (size_t i = 0; i < 2 * kParts; ++i) {
    hn::StoreU(lanes.part[i], F64Tag(), lane + i * hn::Lanes(F64Tag()));
  }
  return add_sample_lanes(lane);
}

/// The row's group that begins at id `i`, with `filler` for what is beyond the row.
HWY_INLINE F32x16 load_group(std::span<const float> row, size_t i, float filler) {
  if (i + kSampleGroup <= row.size()) return load16(row.data() + i);
  float buffer[kSampleGroup];
  std::fill_n(buffer, kSampleGroup, filler);
  std::copy(row.begin() + static_cast<std::ptrdiff_t>(i), row.end(), buffer);
  return load16(buffer);
}

/// A cut as a comparison: a token is before it when its logit is above the threshold of its id. By
/// integers and masks, id < end, a pass takes four times as long.
class Thresholds {
 public:
  explicit Thresholds(SampleCut cut)
      : cut_(cut),
        low_(std::nextafter(cut.logit, -kInfinity)),
        low_lanes_(broadcast(low_)),
        high_lanes_(broadcast(cut.logit)) {}

  /// Of the group that begins at id `i`.
  HWY_INLINE F32x16 of_group(size_t i) const {
    if (i >= cut_.end) return high_lanes_;
    if (i + kSampleGroup <= cut_.end) return low_lanes_;
    float lane[kSampleGroup];
    for (size_t j = 0; j < kSampleGroup; ++j) lane[j] = i + j < cut_.end ? low_ : cut_.logit;
    return load16(lane);
  }

 private:
  const SampleCut cut_;
  const float low_;
  const F32x16 low_lanes_, high_lanes_;
};

LogitScan scan(std::span<const float> logits, float* lane_largest) {
  const I32Tag i32;
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const auto magnitude_bits = hn::Set(i32, 0x7fffffff);
  hn::Vec<I32Tag> magnitude[kParts];
  F32x16 smallest = broadcast(-kLowest);
  for (size_t part = 0; part < kParts; ++part) magnitude[part] = hn::Zero(i32);
  F32x16 largest = broadcast(kLowest);
  for (size_t begin = 0; begin < logits.size(); begin += kSampleChunk) {
    const size_t end = std::min(logits.size(), begin + kSampleChunk);
    F32x16 chunk_largest = broadcast(kLowest);
    for (size_t i = begin; i < end; i += kSampleGroup) {
      const F32x16 x = load_group(logits, i, kLowest);
      for (size_t part = 0; part < kParts; ++part) {
        const auto bits = hn::And(hn::BitCast(i32, x.part[part]), magnitude_bits);
        magnitude[part] = hn::Max(magnitude[part], bits);
        chunk_largest.part[part] = hn::Max(chunk_largest.part[part], x.part[part]);
      }
      const F32x16 y = load_group(logits, i, -kLowest);
      for (size_t part = 0; part < kParts; ++part) {
        smallest.part[part] = hn::Min(smallest.part[part], y.part[part]);
      }
    }
    store16(chunk_largest, lane_largest + begin / kSampleChunk * kSampleGroup);
    largest = max(largest, chunk_largest);
  }
  // The bits of an infinity; those of NaNs are larger still.
  constexpr int32_t kNotFinite = 0x7f800000;
  bool finite = true;
  for (size_t part = 0; part < kParts; ++part) {
    finite = finite && hn::AllTrue(i32, hn::Lt(magnitude[part], hn::Set(i32, kNotFinite)));
  }
  return {.largest = max_across(largest), .smallest = -max_across(neg(smallest)), .finite = finite};
}

template <bool kDivide, bool kStore>
double exponentials_as(std::span<const float> logits, float largest, float temperature,
                       float* probability, double* chunk_sum) {
  const F32x16 offset = broadcast(largest);
  const F32x16 divisor = broadcast(temperature);
  double total = 0.0;
  for (size_t begin = 0; begin < logits.size(); begin += kSampleChunk) {
    const size_t end = std::min(logits.size(), begin + kSampleChunk);
    F64x16 lanes = zero_lanes();
    for (size_t i = begin; i < end; i += kSampleGroup) {
      F32x16 x = sub(load_group(logits, i, -kInfinity), offset);
      if constexpr (kDivide) x = div(x, divisor);
      const F32x16 p = exp16_nonpositive(x);
      if constexpr (kStore) store16(p, probability + i);
      add_to(lanes, p);
    }
    const double sum = add_across(lanes);
    chunk_sum[begin / kSampleChunk] = sum;
    total += sum;
  }
  return total;
}

double exponentials(std::span<const float> logits, float largest, float temperature,
                    float* probability, double* chunk_sum) {
  const bool divide = temperature != 1.0f;
  const bool store = probability != nullptr;
  const auto chosen = divide
                          ? (store ? exponentials_as<true, true> : exponentials_as<true, false>)
                          : (store ? exponentials_as<false, true> : exponentials_as<false, false>);
  return chosen(logits, largest, temperature, probability, chunk_sum);
}

SampleSet before(std::span<const float> logits, const float* probability, SampleCut cut) {
  const I32Tag i32;
  const auto one = hn::Set(i32, 1);
  auto count = hn::Zero(i32);
  const Thresholds thresholds(cut);
  double total = 0.0;
  for (size_t begin = 0; begin < logits.size(); begin += kSampleChunk) {
    const size_t end = std::min(logits.size(), begin + kSampleChunk);
    F64x16 lanes = zero_lanes();
    for (size_t i = begin; i < end; i += kSampleGroup) {
      const F32x16 x = load_group(logits, i, -kInfinity);
      const F32x16 threshold = thresholds.of_group(i);
      F32x16 p = load16(probability + i);
      for (size_t part = 0; part < kParts; ++part) {
        const auto inside = hn::Gt(x.part[part], threshold.part[part]);
        p.part[part] = hn::IfThenElseZero(inside, p.part[part]);
        count = hn::Add(count, hn::IfThenElseZero(hn::RebindMask(i32, inside), one));
      }
      add_to(lanes, p);
    }
    total += add_across(lanes);
  }
  const auto sum = hn::GetLane(hn::SumOfLanes(i32, count));
  return {.sum = total, .count = static_cast<uint32_t>(sum)};
}

double keep(std::span<const float> logits, SampleCut cut, float min_p, float* probability,
            double* chunk_sum) {
  const auto least = hn::Set(F32Tag(), min_p);
  const Thresholds thresholds(cut);
  double total = 0.0;
  for (size_t begin = 0; begin < logits.size(); begin += kSampleChunk) {
    const size_t end = std::min(logits.size(), begin + kSampleChunk);
    F64x16 lanes = zero_lanes();
    for (size_t i = begin; i < end; i += kSampleGroup) {
      const F32x16 x = load_group(logits, i, -kInfinity);
      const F32x16 threshold = thresholds.of_group(i);
      F32x16 p = load16(probability + i);
      for (size_t part = 0; part < kParts; ++part) {
        const auto inside = hn::Gt(x.part[part], threshold.part[part]);
        const auto likely = hn::IfThenElseZero(hn::Ge(p.part[part], least), p.part[part]);
        p.part[part] = hn::IfThenElseZero(inside, likely);
      }
      store16(p, probability + i);
      add_to(lanes, p);
    }
    const double sum = add_across(lanes);
    chunk_sum[begin / kSampleChunk] = sum;
    total += sum;
  }
  return total;
}

uint32_t collect(std::span<const float> logits, float above, float up_to, uint32_t* id) {
  const F32Tag f32;
  uint32_t count = 0;
  for (size_t i = 0; i < logits.size(); i += kSampleGroup) {
    const F32x16 x = load_group(logits, i, -kInfinity);
    for (size_t part = 0; part < kParts; ++part) {
      const auto inside = hn::And(hn::Gt(x.part[part], hn::Set(f32, above)),
                                  hn::Le(x.part[part], hn::Set(f32, up_to)));
      if (hn::AllFalse(f32, inside)) continue;
      uint8_t bytes[8] = {};
      hn::StoreMaskBits(f32, inside, bytes);
      for (uint32_t bits = bytes[0] | uint32_t{bytes[1]} << 8; bits != 0; bits &= bits - 1) {
        id[count++] = static_cast<uint32_t>(i + part * kPartLanes) +
                      static_cast<uint32_t>(std::countr_zero(bits));
      }
    }
  }
  return count;
}

constexpr SamplePasses kPasses = {
    .scan = scan, .exponentials = exponentials, .before = before, .keep = keep, .collect = collect};

}  // namespace

SampledToken sample_token(std::span<const float> logits, const SamplingParams& params,
                          uint64_t position, SampleScratch& scratch) {
  return sample_token_by(kPasses, logits, params, position, scratch);
}

}  // namespace volley::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
