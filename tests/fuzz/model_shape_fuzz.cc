// Goal: no model file and no config.json crashes or hangs the readers of shapes, and the sizes of
// what they accept are finite numbers in the order that they must have. Method: every input is
// tried as both.

#include <cmath>
#include <cstdlib>
#include <string>

#include "volley/perf/model_shape.h"

namespace {

void check(const volley::Result<volley::perf::ModelShape>& model) {
  using namespace volley::perf;
  if (!model.ok()) return;
  const double total = total_params(*model);
  const bool sound = model->layer_count() >= 1 && model->experts() >= model->top_k() &&
                     model->top_k() >= 1 && std::isfinite(total) &&
                     total >= active_params(*model) &&
                     sequence_kv_bytes(*model, 2) >= sequence_kv_bytes(*model, 1) &&
                     sequence_kv_bytes(*model, 1) > 0;
  if (!sound) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(volley::perf::parse_model_shape(text, "fuzz.yaml"));
  check(volley::perf::parse_config_json(text, "fuzz/config.json"));
  return 0;
}
