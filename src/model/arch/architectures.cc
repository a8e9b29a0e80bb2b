#include "architectures.h"

#include "mixtral.h"
#include "qwen3_moe.h"

namespace volley::model {

std::span<const Architecture> architectures() {
  static constexpr Architecture kArchitectures[] = {
      {"MixtralForCausalLM", fill_mixtral},
      {"Qwen3MoeForCausalLM", fill_qwen3_moe},
  };
  return kArchitectures;
}

}  // namespace volley::model
