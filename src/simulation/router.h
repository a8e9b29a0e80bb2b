#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "volley/base/random.h"
#include "volley/simulation/options.h"

namespace volley::simulation {

/// Draws from a discrete distribution in constant time (Walker's alias method).
class AliasTable {
 public:
  /// `weights`: not negative, some positive.
  explicit AliasTable(std::span<const double> weights);
  uint32_t draw(SplitMix64& random) const {
    const uint64_t bits = random.next();
    const auto column = static_cast<uint32_t>((bits >> 32) * keep_.size() >> 32);
    return (bits & 0xffffffff) < keep_[column] ? column : other_[column];
  }

 private:
  std::vector<uint64_t> keep_;  ///< Of 2^32.
  std::vector<uint32_t> other_;
};

/// The router's choices. A choice for a batch of rows costs one random number: the rows are a
/// stretch of a long table of choices, which is drawn anew when the hot experts drift.
class Router {
 public:
  Router(const RouterOptions& options, uint32_t layers, uint32_t experts, uint32_t top_k,
         uint32_t rows_max, uint64_t seed);

  /// [rows * top_k], the ids of a row ascending. Valid until drift().
  std::span<const uint32_t> choose(uint32_t layer, uint32_t rows) {
    const std::vector<uint32_t>& table = tables_[layer % tables_.size()];
    const uint64_t first = random_.below(kTableRows);
    return std::span(table).subspan(first * top_k_, size_t{rows} * top_k_);
  }
  /// Some experts change places in the order of popularity.
  void drift();

 private:
  static constexpr uint32_t kTableRows = 8192;
  static constexpr uint32_t kTablesMax = 8;  ///< Layers share them in turn.

  void fill(uint32_t table);
  void draw_row(std::span<const uint32_t> expert_of_rank, uint32_t* row);

  const RouterOptions options_;
  const uint32_t experts_, top_k_, rows_max_;
  SplitMix64 random_;
  std::vector<double> weights_;  ///< By rank.
  AliasTable ranks_;
  std::vector<std::vector<uint32_t>> expert_of_rank_;  ///< Per table.
  std::vector<std::vector<uint32_t>> tables_;          ///< [kTableRows + rows_max][top_k]
};

}  // namespace volley::simulation
