#include "router.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "volley/base/check.h"

namespace volley::simulation {
namespace {

// Draws in vain before the rest of a row is drawn by a scan.
constexpr uint32_t kTriesMax = 32;

std::vector<double> zipf_weights(uint32_t experts, double exponent) {
  std::vector<double> weights(experts);
  for (uint32_t rank = 0; rank < experts; ++rank) weights[rank] = std::pow(rank + 1.0, -exponent);
  return weights;
}

}  // namespace

AliasTable::AliasTable(std::span<const double> weights)
    : keep_(weights.size()), other_(weights.size()) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  VOLLEY_CHECK(!weights.empty() && sum > 0);
  const double mean = sum / static_cast<double>(weights.size());
  std::vector<double> share(weights.begin(), weights.end());
  std::vector<uint32_t> small, large;
  for (uint32_t i = 0; i < share.size(); ++i) {
    share[i] /= mean;
    (share[i] < 1 ? small : large).push_back(i);
  }
  const auto set = [&](uint32_t column, double keep, uint32_t other) {
    keep_[column] = static_cast<uint64_t>(std::llround(keep * 0x1.0p32));
    other_[column] = other;
  };
  while (!small.empty() && !large.empty()) {
    const uint32_t low = small.back(), high = large.back();
    small.pop_back();
    set(low, share[low], high);
    share[high] -= 1 - share[low];
    if (share[high] < 1) {
      large.pop_back();
      small.push_back(high);
    }
  }
  // What is left is 1 but for rounding.
  for (const uint32_t column : small) set(column, 1, column);
  for (const uint32_t column : large) set(column, 1, column);
}

Router::Router(const RouterOptions& options, uint32_t layers, uint32_t experts, uint32_t top_k,
               uint32_t rows_max, uint64_t seed)
    : options_(options),
      experts_(experts),
      top_k_(top_k),
      rows_max_(rows_max),
      random_(seed),
      weights_(zipf_weights(experts, options.zipf)),
      ranks_(weights_) {
  const uint32_t tables = options.per_layer ? std::min(layers, kTablesMax) : 1;
  expert_of_rank_.resize(tables);
  tables_.resize(tables);
  for (uint32_t table = 0; table < tables; ++table) {
    std::vector<uint32_t>& order = expert_of_rank_[table];
    order.resize(experts);
    std::iota(order.begin(), order.end(), 0u);
    // Without layers of their own the order is that of the ids, so that a test can tell the loads.
    if (options.per_layer) {
      for (uint32_t i = experts; i > 1; --i) {
        std::swap(order[i - 1], order[static_cast<uint32_t>(random_.below(i))]);
      }
    }
    tables_[table].resize((size_t{kTableRows} + rows_max) * top_k);
    fill(table);
  }
}

void Router::drift() {
  const auto moves =
      static_cast<uint32_t>(std::max(1.0, std::round(options_.drift_share * experts_ / 2)));
  for (uint32_t table = 0; table < tables_.size(); ++table) {
    for (uint32_t i = 0; i < moves; ++i) {
      std::swap(expert_of_rank_[table][random_.below(experts_)],
                expert_of_rank_[table][random_.below(experts_)]);
    }
    fill(table);
  }
}

void Router::fill(uint32_t table) {
  uint32_t* const rows = tables_[table].data();
  for (uint32_t row = 0; row < kTableRows; ++row) {
    draw_row(expert_of_rank_[table], rows + size_t{row} * top_k_);
  }
  // A stretch that begins near the end goes on at the front.
  for (uint32_t row = 0; row < rows_max_; ++row) {
    std::copy_n(rows + size_t{row % kTableRows} * top_k_, top_k_,
                rows + (size_t{kTableRows} + row) * top_k_);
  }
}

/// One expert after the other, without those that the row has already.
void Router::draw_row(std::span<const uint32_t> expert_of_rank, uint32_t* row) {
  const auto has = [&](uint32_t count, uint32_t expert) {
    return std::find(row, row + count, expert) != row + count;
  };
  uint32_t tries = 0;
  for (uint32_t count = 0; count < top_k_;) {
    if (tries++ < kTriesMax) {
      const uint32_t expert = expert_of_rank[ranks_.draw(random_)];
      if (!has(count, expert)) row[count++] = expert;
      continue;
    }
    // The popular ones are all taken: the same distribution over what is left.
    double left = 0;
    for (uint32_t rank = 0; rank < experts_; ++rank) {
      if (!has(count, expert_of_rank[rank])) left += weights_[rank];
    }
    double at = random_.unit() * left;
    uint32_t chosen = experts_;
    for (uint32_t rank = 0; rank < experts_ && at >= 0; ++rank) {
      if (has(count, expert_of_rank[rank])) continue;
      chosen = expert_of_rank[rank];
      at -= weights_[rank];
    }
    VOLLEY_CHECK(chosen < experts_);
    row[count++] = chosen;
  }
  std::sort(row, row + top_k_);
}

}  // namespace volley::simulation
