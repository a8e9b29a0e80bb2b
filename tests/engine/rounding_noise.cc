#include "engine/rounding_noise.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/must.h"
#include "model_runner.h"
#include "volley/base/bf16.h"
#include "volley/base/digest.h"
#include "volley/base/random.h"

// The derivation
//
// One rounding. bf16 keeps 8 significant bits: unit roundoff u = 2^-8. To nearest, the error is
// uniform in half a unit of the last place on either side, so relative to the value it is uniform
// in
// +- u / m, with m in [1, 2) the significand. Over a logarithmically uniform m its mean square is
//   eps^2 = u^2 / 3 E[m^-2] = u^2 / 3 * 0.375 / ln 2,   eps = 0.42 u = 1.66e-3,
// and the errors of different elements are independent.
//
// Where they are. The engine computes in f32 and keeps the residual stream, the logits and the
// softmax in f32. Rounded are: the output of each norm, which is the input of q, k, v, router,
// gate, up and head; q, k and v; the attention's output; the inner activations of an expert; its
// answer.
//
// As noise of weights. In y = sum w_i x_i, a relative error of x_i and one of w_i change y alike.
// So an f32 run in which every weight is off by an independent relative error of mean square n
// eps^2 has the same expected errors as a bf16 run in which n roundings touch the input or the
// output of that product:
//   q, k, v   2   input, output              gate, up     1   input
//   o         1   input                      down         2   input, output
//   router    1   input                      head         1   input
//   embedding 0   (its rows go into the residual stream as they are)
// and for weights that are no bf16 numbers, the mean square of their own rounding in addition,
// which is computed from them (0 for a bf16 checkpoint, about 1 for f16 and f32).
// Where heads of q and k are normalised, that lies between their product and its rounding, in f32,
// and hands relative errors on as they are.
//
// An fp8 dispatch rounds each element of the row that the experts get, and of no other, to a
// multiple of its E4M3 unit: scale * 2^(e - 3) for |x| / scale in [2^e, 2^(e + 1)), e at least -6,
// with scale = amax / 448. The error is uniform in half a unit on either side and independent
// between elements. The runs add just that to the rows on their way, so that all products of a row
// share its errors as they do in the engine. With bf16 the row read back is rounded to bf16 once
// more: gate and up count 2.
//
// With pre_reduce the sum that an expert node makes of a row's answers is rounded once more. Its
// error is relative to the sum, which has at most the size that its terms have together: down
// counts 3, for terms of equal signs exactly, else a little more than there is.
//
// What the noise does differs between positions by a factor of ten: a query between two keys, or a
// token between two experts, turns little noise into much. And there the errors of all logits are
// due to one number, so that they differ as the logits' share in it does. Therefore the runs are
// made, and the mean square is taken for every gap of every position by itself, over kRuns seeds.

namespace volley::engine {
namespace {

// Each root mean square is then known to 1 / sqrt(2 * 64) = 9 %.
constexpr uint64_t kRuns = 64;

double eps_square() {
  return 0x1p-16 / 3 * 0.375 / std::log(2.0);
}

/// A checkpoint's weights as f32, every one off by a random relative error: see above.
class NoisyWeights : public model::WeightSource {
 public:
  NoisyWeights(const model::Checkpoint& checkpoint, const Roundings& roundings, uint64_t seed)
      : source_(must(checkpoint.source())),
        names_(checkpoint.spec.names),
        roundings_(roundings),
        seed_(seed) {}

  Status read_packed(const std::string& name, uint32_t rows, uint32_t cols, kernels::DType dtype,
                     void* out) override {
    // A packed embedding is a tied head.
    VOLLEY_RETURN_IF_ERROR(read(name, rows, cols, roundings_of(name)));
    kernels::pack_matrix(values_.data(), kernels::SourceDType::kF32, rows, cols, dtype, out);
    return ok_status();
  }
  Status read_plain(const std::string& name, uint32_t rows, uint32_t cols, kernels::DType dtype,
                    void* out) override {
    VOLLEY_RETURN_IF_ERROR(
        read(name, rows, cols, name == names_.embedding ? 0 : roundings_of(name)));
    kernels::convert_from_f32(values_.data(), values_.size(), dtype, out);
    return ok_status();
  }
  Status read_f32(const std::string& name, uint32_t count, float* out) override {
    return source_->read_f32(name, count, out);  // Norms stay f32 in the engine.
  }

 private:
  double roundings_of(const std::string& name) const {
    for (const std::string& two : {names_.query, names_.key, names_.value}) {
      if (name.ends_with(two)) return 2;
    }
    const auto is = [&](const std::string& tensor) {
      return name.ends_with(tensor.substr(tensor.find("{}") + 2));
    };
    if (is(names_.expert_down)) return roundings_.pre_reduce ? 3 : 2;
    const bool first = is(names_.expert_gate) || is(names_.expert_up);
    return first && roundings_.fp8_dispatch ? 2 : 1;
  }

  Status read(const std::string& name, uint32_t rows, uint32_t cols, double roundings) {
    values_.resize(size_t{rows} * cols);
    VOLLEY_RETURN_IF_ERROR(
        source_->read_plain(name, rows, cols, kernels::DType::kF32, values_.data()));
    if (!roundings_.bf16) return ok_status();
    double square = 0, error_square = 0;
    for (const float value : values_) {
      const double error = double{to_f32(to_bf16(value))} - value;
      square += double{value} * value;
      error_square += error * error;
    }
    // A uniform number in +- half has the mean square half^2 / 3.
    const double half = std::sqrt(3 * (roundings * eps_square() + error_square / square));
    // The same tensor gets the same noise whenever it is read.
    SplitMix64 random(seed_ ^ digest64(std::as_bytes(std::span(name))));
    for (float& value : values_) {
      value = static_cast<float>(value * (1 + half * (2 * random.unit() - 1)));
    }
    return ok_status();
  }

  std::unique_ptr<model::WeightSource> source_;
  const model::TensorNames names_;
  const Roundings roundings_;
  const uint64_t seed_;
  std::vector<float> values_;
};

/// A wire of f32 rows that is off by what an fp8 dispatch would be: see above.
ModelRunner::Wire noisy_wire(uint32_t width, uint64_t seed) {
  return
      [width, random = SplitMix64(~seed)](kernels::ConstRows input, kernels::Rows output) mutable {
        for (size_t row = 0; row < input.size(); ++row) {
          const auto* x = static_cast<const float*>(input[row]);
          auto* y = static_cast<float*>(output[row]);
          float amax = 0;
          for (uint32_t i = 0; i < width; ++i) amax = std::max(amax, std::abs(x[i]));
          const double scale = amax / 448.0;
          for (uint32_t i = 0; i < width; ++i) {
            const int exponent = x[i] == 0 ? -6 : std::max(std::ilogb(x[i] / scale), -6);
            const double unit = scale * std::ldexp(1.0, exponent - 3);
            y[i] = static_cast<float>(x[i] + unit * (random.unit() - 0.5));
          }
        }
      };
}

/// Adds the squared changes of the golden's gaps to `sums`.
void add_squares(std::span<const float> noisy, std::span<const float> calm,
                 std::span<const float> golden, size_t top_k, std::vector<double>& sums) {
  const std::vector<double> with = gaps(noisy, golden, top_k);
  const std::vector<double> without = gaps(calm, golden, top_k);
  sums.resize(with.size());
  for (size_t i = 0; i < with.size(); ++i) {
    sums[i] += (with[i] - without[i]) * (with[i] - without[i]);
  }
}

void to_root_mean(std::vector<std::vector<double>>& sums) {
  for (std::vector<double>& position : sums) {
    for (double& value : position) value = std::sqrt(value / kRuns);
  }
}

}  // namespace

std::vector<RoundingNoise> expect_noise(const model::Checkpoint& checkpoint,
                                        const GoldenCase& golden, const Roundings& roundings) {
  const model::ModelSpec& spec = checkpoint.spec;
  const auto run_all = [&](model::WeightSource& weights, ModelRunner::Wire wire) {
    ModelRunner runner(spec, weights, kernels::DType::kF32, "auto", golden.tokens_max());
    runner.set_wire(std::move(wire));
    std::vector<ModelRunner::Trace> traces;
    for (const GoldenPrompt& prompt : golden.prompts) {
      traces.push_back(
          runner.run(prompt.tokens, golden.tokens_max(), ModelRunner::Emit::kEveryPosition));
    }
    return traces;
  };
  // The changes are from a run without noise, not from the golden: an engine that is wrong must not
  // widen its own bound.
  const std::vector<ModelRunner::Trace> calm = run_all(*must(checkpoint.source()), {});
  std::vector<RoundingNoise> noise(golden.prompts.size());
  for (uint64_t seed = 1; seed <= kRuns; ++seed) {
    NoisyWeights weights(checkpoint, roundings, seed);
    const std::vector<ModelRunner::Trace> noisy = run_all(
        weights, roundings.fp8_dispatch ? noisy_wire(spec.hidden, seed) : ModelRunner::Wire{});
    for (size_t p = 0; p < noise.size(); ++p) {
      const GoldenPrompt& prompt = golden.prompts[p];
      const size_t positions = prompt.tokens.size();
      noise[p].logits.resize(positions);
      noise[p].router_logits.resize(spec.layer_count(),
                                    std::vector<std::vector<double>>(positions));
      for (size_t i = 0; i < positions; ++i) {
        add_squares(noisy[p].logits.row(i), calm[p].logits.row(i), prompt.logits.row(i), 1,
                    noise[p].logits[i]);
        for (uint32_t layer = 0; layer < spec.layer_count(); ++layer) {
          add_squares(noisy[p].router_logits[layer].row(i), calm[p].router_logits[layer].row(i),
                      prompt.router_logits[layer].row(i), spec.layers[layer].moe.top_k,
                      noise[p].router_logits[layer][i]);
        }
      }
    }
  }
  for (RoundingNoise& of_prompt : noise) {
    to_root_mean(of_prompt.logits);
    for (auto& layer : of_prompt.router_logits) to_root_mean(layer);
  }
  return noise;
}

}  // namespace volley::engine
