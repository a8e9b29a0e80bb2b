#include "architectures.h"

#include "mixtral.h"

namespace volley::model {

std::span<const Architecture> architectures() {
  static constexpr Architecture kArchitectures[] = {
      {"MixtralForCausalLM", fill_mixtral},
  };
  return kArchitectures;
}

}  // namespace volley::model
