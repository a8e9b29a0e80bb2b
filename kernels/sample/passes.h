#pragma once

// The passes over a whole row that sampling is made of: the part of it that each instruction set
// has in its own form. sample.cc joins them.

#include "kernels/sample/sample.h"

namespace volley::kernels {

/// A place in the order (logit descending, id ascending). Before it are the tokens with a larger
/// logit, and those with this logit and an id below `end`.
struct SampleCut {
  float logit;
  uint32_t end = 0;
};

struct LogitScan {
  float largest, smallest;
  bool finite;  ///< All of them; else the others mean nothing.
};

struct SampleSet {
  double sum;  ///< In the order of the contract.
  uint32_t count;
};

/// `probability` has the row's tokens and zeros up to a multiple of kSampleGroup; `chunk_sum` has
/// the sums of the chunks, and what is returned is their sum. No row is empty.
struct SamplePasses {
  /// Also the largest logit of each lane of each chunk; of a lane without ids, the lowest float.
  LogitScan (*scan)(std::span<const float> logits, float* lane_largest);
  /// Writes the probabilities, unless `probability` is null.
  double (*exponentials)(std::span<const float> logits, float largest, float temperature,
                         float* probability, double* chunk_sum);
  SampleSet (*before)(std::span<const float> logits, const float* probability, SampleCut cut);
  /// Sets to zero what is not before the cut or is below `min_p`.
  double (*keep)(std::span<const float> logits, SampleCut cut, float min_p, float* probability,
                 double* chunk_sum);
  /// Writes the ids with above < logit <= up_to, ascending, and returns their number.
  uint32_t (*collect)(std::span<const float> logits, float above, float up_to, uint32_t* id);
};

SampledToken sample_token_by(const SamplePasses& passes, std::span<const float> logits,
                             const SamplingParams& params, uint64_t position,
                             SampleScratch& scratch);

/// Lanes (or a group's tokens) in the order of the contract.
inline double add_sample_lanes(const double (&lane)[kSampleGroup]) {
  double sum[8];
  for (int j = 0; j < 8; ++j) sum[j] = lane[j] + lane[j + 8];
  for (int j = 0; j < 4; ++j) sum[j] += sum[j + 4];
  for (int j = 0; j < 2; ++j) sum[j] += sum[j + 2];
  return sum[0] + sum[1];
}

}  // namespace volley::kernels
