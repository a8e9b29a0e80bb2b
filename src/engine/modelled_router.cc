#include "modelled_router.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "volley/base/check.h"
#include "volley/base/random.h"

namespace volley::engine {
namespace {

// Draws that hit an expert again are repeated; where few experts have nearly all the weight, the
// rest of the choice goes to the likeliest that are left.
constexpr uint32_t kDrawsPerExpert = 32;

}  // namespace

ModelledRouter::ModelledRouter(uint64_t seed, double skew, uint32_t layers, uint32_t experts,
                               uint32_t top_k)
    : seed_(seed), experts_(experts), top_k_(top_k) {
  VOLLEY_CHECK(top_k <= experts && skew >= 0);
  double sum = 0;
  for (uint32_t rank = 0; rank < experts; ++rank) {
    sum += std::pow(1.0 + rank, -skew);
    upto_.push_back(sum);
  }
  for (double& share : upto_) share /= sum;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const size_t first = of_rank_.size();
    of_rank_.resize(first + experts);
    std::iota(of_rank_.begin() + static_cast<std::ptrdiff_t>(first), of_rank_.end(), 0u);
    SplitMix64 random(seed * 0x9e3779b97f4a7c15u + layer);
    for (uint32_t left = experts; left > 1; --left) {
      std::swap(of_rank_[first + left - 1], of_rank_[first + random.below(left)]);
    }
  }
}

uint32_t ModelledRouter::draw(uint32_t layer, uint32_t word) const {
  const double u = word * 0x1.0p-32;
  const auto rank = static_cast<uint32_t>(std::ranges::upper_bound(upto_, u) - upto_.begin());
  return of_rank_[size_t{layer} * experts_ + std::min(rank, experts_ - 1)];
}

void ModelledRouter::choose(uint32_t layer, uint32_t position, int32_t token,
                            uint32_t* chosen) const {
  uint32_t count = 0;
  const auto add = [&](uint32_t expert) {
    if (std::find(chosen, chosen + count, expert) == chosen + count) chosen[count++] = expert;
  };
  const std::array<uint32_t, 2> key{static_cast<uint32_t>(seed_),
                                    static_cast<uint32_t>(seed_ >> 32)};
  for (uint32_t block = 0; count < top_k_ && block * 4 < top_k_ * kDrawsPerExpert; ++block) {
    for (const uint32_t word :
         philox4x32({position, static_cast<uint32_t>(token), layer, block}, key)) {
      if (count < top_k_) add(draw(layer, word));
    }
  }
  for (uint32_t rank = 0; count < top_k_; ++rank) add(of_rank_[size_t{layer} * experts_ + rank]);
  std::sort(chosen, chosen + top_k_);
}

}  // namespace volley::engine
