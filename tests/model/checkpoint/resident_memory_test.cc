// Goal: a node keeps resident what it holds, not what it read: at most its weights and 10 %.
// Method: a 64 MiB checkpoint on disk; /proc/self/statm before and after loading a quarter of its
// experts, and the peak while the whole of them is loaded.

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "model/checkpoint/checkpoint_files.h"
#include "volley/model/weights.h"

namespace volley::model {
namespace {

using kernels::DType;
using testing::TempFolder;

constexpr uint32_t kHidden = 512, kFfn = 1024, kExperts = 20;
constexpr size_t kSlackBytes = 2u << 20;  // Allocator, page tables, one block being converted.

size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

/// Writes the checkpoint tensor by tensor, so that this test itself needs little memory.
void write_checkpoint(const TempFolder& folder) {
  nlohmann::json config = testing::tiny_config();
  config["hidden_size"] = kHidden;
  config["intermediate_size"] = kFfn;
  config["num_local_experts"] = kExperts;
  config["num_hidden_layers"] = 1;
  folder.write("config.json", config.dump());
  const size_t tensor_bytes = size_t{kHidden} * kFfn * 2;
  nlohmann::json header;
  size_t end = 0;
  for (uint32_t expert = 0; expert < kExperts; ++expert) {
    for (const char* matrix : {"w1", "w2", "w3"}) {
      const bool down = matrix[1] == '2';
      header["model.layers.0.block_sparse_moe.experts." + std::to_string(expert) + "." + matrix +
             ".weight"] = {{"dtype", "BF16"},
                           {"shape", {down ? kHidden : kFfn, down ? kFfn : kHidden}},
                           {"data_offsets", {end, end + tensor_bytes}}};
      end += tensor_bytes;
    }
  }
  std::ofstream out(folder.file("model.safetensors"), std::ios::binary);
  const std::string head = testing::safetensors_raw(header.dump(), 0);
  out.write(head.data(), static_cast<std::streamsize>(head.size()));
  const std::string tensor(tensor_bytes, '\x3c');
  for (size_t i = 0; i < end / tensor_bytes; ++i) {
    out.write(tensor.data(), static_cast<std::streamsize>(tensor.size()));
  }
  ASSERT_TRUE(out.good());
}

// GCC defines macros, clang answers __has_feature.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

TEST(ResidentMemory, IsWhatTheNodeHolds) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory is resident too";
  const TempFolder folder;
  ASSERT_NO_FATAL_FAILURE(write_checkpoint(folder));
  const size_t before = resident_bytes();
  const Result<Checkpoint> checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_LE(resident_bytes(), before + kSlackBytes) << "after the digest";

  auto source = checkpoint->source();
  std::vector<ExpertWeights::Key> keys;
  for (const uint32_t count : {kExperts / 4, kExperts}) {
    keys.clear();
    for (uint32_t expert = 0; expert < count; ++expert) keys.push_back({0, expert});
    const Result<ExpertWeights> weights =
        ExpertWeights::load(checkpoint->spec, **source, DType::kBf16, keys);
    ASSERT_TRUE(weights.ok()) << weights.status();
    const size_t grown = resident_bytes() - before;
    EXPECT_GE(grown, weights->bytes());
    EXPECT_LE(grown, weights->bytes() / 10 * 11 + kSlackBytes) << "of " << weights->bytes();
  }
  EXPECT_LE(resident_bytes(), before + kSlackBytes) << "after the weights were given back";
}

}  // namespace
}  // namespace volley::model
