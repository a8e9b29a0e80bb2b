#include "engine/goldens.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "engine/must.h"
#include "src/model/safetensors.h"
#include "volley/base/check.h"

namespace volley::engine {
namespace {

template <class T>
std::vector<T> values_of(const model::SafetensorsFile& file, const model::TensorInfo& info,
                         const std::string& dtype) {
  VOLLEY_CHECK(info.dtype == dtype);
  std::vector<T> values(info.element_count());
  VOLLEY_CHECK(values.size() * sizeof(T) == info.end - info.begin);
  std::memcpy(values.data(), file.bytes().data() + info.begin, info.end - info.begin);
  return values;
}

Table table_of(const model::SafetensorsFile& file, const model::TensorInfo& info) {
  VOLLEY_CHECK(info.shape.size() == 2);
  return {.cols = info.shape[1], .values = values_of<float>(file, info, "F32")};
}

}  // namespace

double range_of(const Table& table) {
  const auto [low, high] = std::minmax_element(table.values.begin(), table.values.end());
  return *high - *low;
}

std::vector<uint32_t> choose(std::span<const float> values, size_t top_k) {
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  // Ties to the lower index, as the router does.
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
  order.resize(top_k);
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<double> gaps(std::span<const float> values, std::span<const float> golden,
                         size_t top_k) {
  const std::vector<uint32_t> chosen = choose(golden, top_k);
  std::vector<double> result;
  for (const uint32_t one : chosen) {
    for (uint32_t other = 0; other < golden.size(); ++other) {
      if (std::binary_search(chosen.begin(), chosen.end(), other)) continue;
      result.push_back(double{values[one]} - values[other]);
    }
  }
  return result;
}

size_t GoldenCase::positions() const {
  size_t count = 0;
  for (const GoldenPrompt& prompt : prompts) count += prompt.tokens.size();
  return count;
}

uint32_t GoldenCase::tokens_max() const {
  size_t longest = 0;
  for (const GoldenPrompt& prompt : prompts) longest = std::max(longest, prompt.tokens.size());
  return static_cast<uint32_t>(longest);
}

double GoldenCase::logit_spread() const {
  double sum = 0, squares = 0, count = 0;
  for (const GoldenPrompt& prompt : prompts) {
    for (const double value : prompt.logits.values) {
      sum += value;
      squares += value * value;
    }
    count += static_cast<double>(prompt.logits.values.size());
  }
  return std::sqrt(squares / count - sum / count * (sum / count));
}

GoldenCase load_golden_case(const std::string& name) {
  GoldenCase result{.name = name, .folder = VOLLEY_TEST_DATA "/goldens/" + name, .prompts = {}};
  const auto file = must(model::SafetensorsFile::open(result.folder + "/goldens.safetensors"));
  const model::TensorTable& tensors = file.tensors();
  for (size_t p = 0; tensors.contains(fmt::format("tokens.{}", p)); ++p) {
    GoldenPrompt prompt;
    prompt.tokens = values_of<int32_t>(file, tensors.at(fmt::format("tokens.{}", p)), "I32");
    prompt.logits = table_of(file, tensors.at(fmt::format("logits.{}", p)));
    VOLLEY_CHECK(prompt.logits.rows() == prompt.tokens.size());
    for (size_t layer = 0;; ++layer) {
      const auto router = tensors.find(fmt::format("router_logits.{}.{}", p, layer));
      if (router == tensors.end()) break;
      prompt.router_logits.push_back(table_of(file, router->second));
      VOLLEY_CHECK(prompt.router_logits.back().rows() == prompt.tokens.size());
    }
    result.prompts.push_back(std::move(prompt));
  }
  VOLLEY_CHECK(!result.prompts.empty());
  return result;
}

}  // namespace volley::engine
