// Goal: fits of stage times find the coefficients that made the samples, never negative ones, and
// say honestly how far they are off. Method: samples made by known coefficients.

#include "volley/perf/linear_fit.h"

#include <gtest/gtest.h>

namespace volley::perf {
namespace {

std::vector<LinearSample> grid(double constant, double row, double context) {
  std::vector<LinearSample> samples;
  for (const double rows : {1., 4., 16., 64.}) {
    for (const double tokens : {32., 256., 1024.}) {
      samples.push_back(
          {.x = {1, rows, rows * tokens}, .y = constant + row * rows + context * rows * tokens});
    }
  }
  return samples;
}

TEST(LinearFit, FindsTheCoefficientsOverDecades) {
  const auto fit = fit_linear(grid(300e-6, 5e-6, 2e-9));
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_NEAR(fit->coefficients[0], 300e-6, 1e-12);
  EXPECT_NEAR(fit->coefficients[1], 5e-6, 1e-13);
  EXPECT_NEAR(fit->coefficients[2], 2e-9, 1e-15);
  EXPECT_LT(fit->worst_error, 1e-6);
}

TEST(LinearFit, CoefficientsAreNeverNegative) {
  // Larger rows are cheaper than the line through the small ones: the free solution would have a
  // negative slope for the context.
  const auto fit = fit_linear(grid(300e-6, 5e-6, -1e-9));
  ASSERT_TRUE(fit.ok()) << fit.status();
  for (const double coefficient : fit->coefficients) EXPECT_GE(coefficient, 0);
  EXPECT_EQ(fit->coefficients[2], 0);
  EXPECT_GT(fit->worst_error, 0.001);
}

TEST(LinearFit, RelativeErrorsCountAndTheWorstIsNamed) {
  // y = x but for one sample that is twice as large.
  std::vector<LinearSample> samples;
  for (const double x : {1., 10., 100., 1000., 10'000.}) samples.push_back({.x = {x}, .y = x});
  samples[3].y = 2000;
  const auto fit = fit_linear(samples);
  ASSERT_TRUE(fit.ok()) << fit.status();
  // Of sum (c - 1)^2 four times and (c / 2 - 1)^2 once: c = (4 + 1 / 2) / (4 + 1 / 4).
  EXPECT_NEAR(fit->coefficients[0], 4.5 / 4.25, 1e-9);
  EXPECT_EQ(fit->worst_sample, 3u);
  EXPECT_NEAR(fit->worst_error, 1 - 4.5 / 4.25 / 2, 1e-9);
  EXPECT_NEAR(fit->median_error, 4.5 / 4.25 - 1, 1e-9);
}

TEST(LinearFit, TermsThatCannotBeToldApartAreOne) {
  const std::vector<LinearSample> samples = {{.x = {1, 2}, .y = 6}, {.x = {2, 4}, .y = 12}};
  const auto fit = fit_linear(samples);
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_NEAR(fit->coefficients[0] + 2 * fit->coefficients[1], 6, 1e-9);
  EXPECT_LT(fit->worst_error, 1e-9);
  // One sample, two terms.
  const auto single = fit_linear(std::span(samples).first(1));
  ASSERT_TRUE(single.ok());
  EXPECT_LT(single->worst_error, 1e-9);
}

TEST(LinearFit, BadSamplesAreRefused) {
  EXPECT_EQ(fit_linear({}).status().code(), StatusCode::kInvalidArgument);
  for (const LinearSample& bad :
       {LinearSample{.x = {1}, .y = 0}, LinearSample{.x = {-1}, .y = 1},
        LinearSample{.x = {1, 1}, .y = 1}, LinearSample{.x = {1}, .y = 1.0 / 0.0}}) {
    const std::vector<LinearSample> samples = {{.x = {1}, .y = 1}, bad};
    EXPECT_EQ(fit_linear(samples).status().code(), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace volley::perf
