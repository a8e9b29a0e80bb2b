#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/implementations.h"
#include "kernels/common/math.h"
#include "kernels/sample/passes.h"

namespace volley::kernels::reference {
namespace {

/// The sum of value(id) over all ids in the order of the contract.
template <class Value>
double sum_chunks(size_t count, double* chunk_sum, Value value) {
  double total = 0.0;
  for (size_t begin = 0; begin < count; begin += kSampleChunk) {
    double lane[kSampleGroup] = {};
    const size_t end = std::min(count, begin + kSampleChunk);
    for (size_t id = begin; id < end; ++id) lane[id % kSampleGroup] += value(id);
    const double sum = add_sample_lanes(lane);
    if (chunk_sum != nullptr) chunk_sum[begin / kSampleChunk] = sum;
    total += sum;
  }
  return total;
}

bool is_before(float logit, size_t id, SampleCut cut) {
  return logit > cut.logit || (logit == cut.logit && id < cut.end);
}

LogitScan scan(std::span<const float> logits, float* lane_largest) {
  LogitScan result{.largest = logits[0], .smallest = logits[0], .finite = true};
  const size_t chunks = (logits.size() + kSampleChunk - 1) / kSampleChunk;
  std::fill_n(lane_largest, chunks * kSampleGroup, std::numeric_limits<float>::lowest());
  for (size_t id = 0; id < logits.size(); ++id) {
    result.finite = result.finite && std::isfinite(logits[id]);
    result.largest = std::max(result.largest, logits[id]);
    result.smallest = std::min(result.smallest, logits[id]);
    float& lane = lane_largest[id / kSampleChunk * kSampleGroup + id % kSampleGroup];
    lane = std::max(lane, logits[id]);
  }
  return result;
}

double exponentials(std::span<const float> logits, float largest, float temperature,
                    float* probability, double* chunk_sum) {
  const double total = sum_chunks(logits.size(), chunk_sum, [&](size_t id) {
    const float p = exp_f32((logits[id] - largest) / temperature);
    if (probability != nullptr) probability[id] = p;
    return double{p};
  });
  if (probability != nullptr) {
    for (size_t i = logits.size(); i % kSampleGroup != 0; ++i) probability[i] = 0.0f;
  }
  return total;
}

SampleSet before(std::span<const float> logits, const float* probability, SampleCut cut) {
  SampleSet result{};
  result.sum = sum_chunks(logits.size(), nullptr, [&](size_t id) {
    if (!is_before(logits[id], id, cut)) return 0.0;
    ++result.count;
    return double{probability[id]};
  });
  return result;
}

double keep(std::span<const float> logits, SampleCut cut, float min_p, float* probability,
            double* chunk_sum) {
  return sum_chunks(logits.size(), chunk_sum, [&](size_t id) {
    if (!is_before(logits[id], id, cut) || probability[id] < min_p) probability[id] = 0.0f;
    return double{probability[id]};
  });
}

uint32_t collect(std::span<const float> logits, float above, float up_to, uint32_t* id) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > above && logits[i] <= up_to) id[count++] = i;
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

}  // namespace volley::kernels::reference
