#include "kernels/embed/embed.h"

#include "kernels/common/arguments.h"
#include "kernels/common/elements.h"
#include "kernels/common/implementations.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels {

void embed(const EmbedArgs& args, ThreadPool& pool) {
  check(args);
  const EmbeddingTable& table = args.table;
  pool.parallel_for(static_cast<uint32_t>(args.token.size()), [&](uint32_t row) {
    const uint32_t token = static_cast<uint32_t>(args.token[row]);
    VOLLEY_CHECK(token < table.vocab);
    float* output = static_cast<float*>(args.output[row]);
    for (uint32_t i = 0; i < table.hidden; ++i) {
      const size_t index = table.packed ? packed_index(token, i, table.hidden, table.dtype)
                                        : size_t{token} * table.hidden + i;
      output[i] = load_element(table.data, table.dtype, index);
    }
  });
}

}  // namespace volley::kernels
