#include "volley/perf/linear_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace volley::perf {
namespace {

constexpr size_t kTermsMax = 8;
// Of a column, after the others are taken out of it: below, it says nothing of its own.
constexpr double kPivotMin = 1e-9;

using Row = std::vector<double>;

/// Solves the normal equations for the terms in `chosen`; false when they are not independent.
/// `rows` have y in their last place.
bool solve(const std::vector<Row>& rows, const std::vector<size_t>& chosen, Row& solution) {
  const size_t n = chosen.size();
  const size_t y = rows.front().size() - 1;
  std::vector<Row> matrix(n, Row(n + 1, 0.0));
  for (size_t i = 0; i < n; ++i) {
    for (const Row& row : rows) {
      for (size_t j = 0; j < n; ++j) matrix[i][j] += row[chosen[i]] * row[chosen[j]];
      matrix[i][n] += row[chosen[i]] * row[y];
    }
  }
  for (size_t column = 0; column < n; ++column) {
    size_t pivot = column;
    for (size_t i = column + 1; i < n; ++i) {
      if (std::abs(matrix[i][column]) > std::abs(matrix[pivot][column])) pivot = i;
    }
    std::swap(matrix[column], matrix[pivot]);
    if (std::abs(matrix[column][column]) < kPivotMin) return false;
    for (size_t i = 0; i < n; ++i) {
      if (i == column) continue;
      const double factor = matrix[i][column] / matrix[column][column];
      for (size_t j = column; j <= n; ++j) matrix[i][j] -= factor * matrix[column][j];
    }
  }
  solution.resize(n);
  for (size_t i = 0; i < n; ++i) solution[i] = matrix[i][n] / matrix[i][i];
  return true;
}

}  // namespace

Result<LinearFit> fit_linear(std::span<const LinearSample> samples) {
  if (samples.empty()) return invalid_argument("there is nothing to fit");
  const size_t terms = samples.front().x.size();
  if (terms == 0 || terms > kTermsMax) {
    return invalid_argument("a fit of {} terms, allowed: 1 to {}", terms, kTermsMax);
  }
  // Relative errors: every sample over its y, which becomes 1. Columns of one size: rows times
  // context is a million times a constant.
  Row scale(terms, 0.0);
  for (size_t i = 0; i < samples.size(); ++i) {
    const LinearSample& sample = samples[i];
    if (sample.x.size() != terms || !std::isfinite(sample.y) || !(sample.y > 0)) {
      return invalid_argument("sample {} has {} terms and y = {}", i, sample.x.size(), sample.y);
    }
    for (size_t j = 0; j < terms; ++j) {
      if (!std::isfinite(sample.x[j]) || sample.x[j] < 0) {
        return invalid_argument("term {} of sample {} is {}", j, i, sample.x[j]);
      }
      scale[j] = std::max(scale[j], sample.x[j] / sample.y);
    }
  }
  std::vector<Row> rows;
  for (const LinearSample& sample : samples) {
    Row& row = rows.emplace_back();
    for (size_t j = 0; j < terms; ++j) {
      row.push_back(scale[j] > 0 ? sample.x[j] / sample.y / scale[j] : 0);
    }
    row.push_back(1.0);
  }

  // The best non-negative solution has some of its terms at 0 and is the free one of the others:
  // with so few terms all choices can be tried.
  LinearFit best{.coefficients = Row(terms, 0.0)};
  double best_sum = std::numeric_limits<double>::infinity();
  for (uint32_t mask = 0; mask < (1u << terms); ++mask) {
    std::vector<size_t> chosen;
    for (size_t j = 0; j < terms; ++j) {
      if ((mask >> j & 1u) != 0) chosen.push_back(j);
    }
    Row solution;
    if (!solve(rows, chosen, solution)) continue;
    if (std::ranges::any_of(solution, [](double value) { return value < 0; })) continue;
    double sum = 0;
    for (const Row& row : rows) {
      double error = -row.back();
      for (size_t i = 0; i < chosen.size(); ++i) error += solution[i] * row[chosen[i]];
      sum += error * error;
    }
    if (sum >= best_sum) continue;
    best_sum = sum;
    std::ranges::fill(best.coefficients, 0.0);
    for (size_t i = 0; i < chosen.size(); ++i) {
      best.coefficients[chosen[i]] = solution[i] / scale[chosen[i]];
    }
  }

  std::vector<double> errors;
  for (const LinearSample& sample : samples) {
    double fitted = 0;
    for (size_t j = 0; j < terms; ++j) fitted += best.coefficients[j] * sample.x[j];
    errors.push_back(std::abs(fitted - sample.y) / sample.y);
  }
  best.worst_sample = static_cast<size_t>(std::ranges::max_element(errors) - errors.begin());
  best.worst_error = errors[best.worst_sample];
  std::ranges::nth_element(errors, errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2));
  best.median_error = errors[errors.size() / 2];
  return best;
}

}  // namespace volley::perf
