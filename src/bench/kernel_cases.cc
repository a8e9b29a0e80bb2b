// The shapes are those of two small MoE models that a CPU can serve: hidden size 1024 with 8
// experts of 2048 (16 heads of 64), and with 32 experts of 512 (16 heads of 128); 4 KV heads,
// vocabulary 32000.

#include "kernel_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "volley/base/bf16.h"
#include "volley/base/check.h"
#include "volley/base/random.h"

namespace volley::bench {
namespace {

using kernels::CpuKernels;
using kernels::DType;
using kernels::dtype_bytes;

constexpr uint32_t kHidden = 1024;
constexpr uint32_t kVocabulary = 32'000;
constexpr uint32_t kHeads = 16;
constexpr uint32_t kKvHeads = 4;
constexpr uint32_t kContextTokens = 1024;

float random_f32(SplitMix64& random, float scale) {
  return scale * static_cast<float>(2.0 * random.unit() - 1.0);
}

/// Rows of random numbers in [-1, 1), one after the other, from the start of a page on.
class RowBuffer {
 public:
  RowBuffer() = default;
  RowBuffer(uint32_t rows, uint32_t width, DType dtype) : row_(rows) {
    const size_t row_bytes = width * dtype_bytes(dtype);
    pages_.resize((rows * row_bytes + sizeof(Page) - 1) / sizeof(Page));
    std::byte* const first = pages_.front().bytes;
    SplitMix64 random(rows + width);
    for (uint32_t row = 0; row < rows; ++row) {
      row_[row] = first + row * row_bytes;
      for (uint32_t i = 0; i < width; ++i) {
        const float value = random_f32(random, 1.0f);
        if (dtype == DType::kF32) {
          static_cast<float*>(row_[row])[i] = value;
        } else {
          static_cast<Bf16*>(row_[row])[i] = to_bf16(value);
        }
      }
    }
  }

  kernels::Rows out() const { return row_; }
  kernels::ConstRows in() const {
    return {const_cast<const void* const*>(row_.data()), row_.size()};
  }

 private:
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  std::vector<Page> pages_;
  std::vector<void*> row_;
};

double bytes_of(double rows, double width, DType dtype) {
  return rows * width * static_cast<double>(dtype_bytes(dtype));
}

double matrix_bytes(uint32_t rows, uint32_t cols) {
  return static_cast<double>(kernels::packed_bytes(rows, cols, DType::kBf16));
}

struct GemmShape {
  const char* name;
  uint32_t features;
  uint32_t inputs;
  DType output;
  bool add_to_output;
};

class GemmCase : public KernelCase {
 public:
  GemmCase(const GemmShape& shape, uint32_t rows)
      : KernelCase("gemm", fmt::format("{} {}x{}", shape.name, shape.features, shape.inputs), rows),
        shape_(shape) {}

  KernelCost cost() const override {
    const double weights = matrix_bytes(shape_.features, shape_.inputs);
    const double outputs = bytes_of(rows(), shape_.features, shape_.output);
    return {.memory_bytes = weights,
            .total_bytes = weights + bytes_of(rows(), shape_.inputs, DType::kBf16) +
                           outputs * (shape_.add_to_output ? 2 : 1),
            .flops = 2.0 * rows() * shape_.features * shape_.inputs};
  }
  void prepare(const Arena&) override {
    input_ = RowBuffer(rows(), shape_.inputs, DType::kBf16);
    output_ = RowBuffer(rows(), shape_.features, shape_.output);
  }
  void run(const CpuKernels& kernels, Arena& arena, ThreadPool& pool) override {
    kernels::GemmArgs args{};
    args.input = input_.in();
    args.weight = arena.take_matrix(shape_.features, shape_.inputs);
    args.output = output_.out();
    args.output_dtype = shape_.output;
    args.add_to_output = shape_.add_to_output;
    kernels.gemm(args, pool);
  }

 private:
  GemmShape shape_;
  RowBuffer input_, output_;
};

/// Every expert gets the same number of rows.
class GroupedFfnCase : public KernelCase {
 public:
  GroupedFfnCase(uint32_t experts, uint32_t ffn, uint32_t rows_per_expert)
      : KernelCase(
            "grouped_ffn",
            fmt::format("{} experts {}x{}, {} rows each", experts, ffn, kHidden, rows_per_expert),
            experts * rows_per_expert),
        experts_(experts),
        ffn_(ffn),
        rows_per_expert_(rows_per_expert) {}

  KernelCost cost() const override {
    const double weights =
        experts_ * (2 * matrix_bytes(ffn_, kHidden) + matrix_bytes(kHidden, ffn_));
    return {.memory_bytes = weights,
            .total_bytes = weights + 2 * bytes_of(rows(), kHidden, DType::kBf16),
            .flops = 6.0 * rows() * ffn_ * kHidden};
  }
  void prepare(const Arena&) override {
    input_ = RowBuffer(rows(), kHidden, DType::kBf16);
    output_ = RowBuffer(rows(), kHidden, DType::kBf16);
    workspace_ = RowBuffer(rows(), ffn_, DType::kBf16);
    for (uint32_t expert = 0; expert < experts_; ++expert) {
      groups_.push_back(
          {.weights = {}, .first_row = expert * rows_per_expert_, .row_count = rows_per_expert_});
    }
  }
  void run(const CpuKernels& kernels, Arena& arena, ThreadPool& pool) override {
    for (kernels::FfnGroup& group : groups_) {
      group.weights = {.gate = arena.take_matrix(ffn_, kHidden),
                       .up = arena.take_matrix(ffn_, kHidden),
                       .down = arena.take_matrix(kHidden, ffn_)};
    }
    kernels.grouped_ffn({.groups = groups_,
                         .input = input_.in(),
                         .output = output_.out(),
                         .dtype = DType::kBf16,
                         .workspace = workspace_.out().front()},
                        pool);
  }

 private:
  uint32_t experts_, ffn_, rows_per_expert_;
  RowBuffer input_, output_, workspace_;
  std::vector<kernels::FfnGroup> groups_;
};

/// The arena as a cache: keys in its first half, values in the second. Blocks in order, as the
/// allocator hands them out where there is room, or scattered, as in a cache that is nearly full.
class PagedArena {
 public:
  PagedArena() = default;
  PagedArena(const Arena& arena, uint32_t head_dim, bool scattered)
      : view_{.keys = arena.bytes().data(),
              .values = arena.bytes().data() + arena.bytes().size() / 2,
              .kv_heads = kKvHeads,
              .head_dim = head_dim,
              .dtype = DType::kBf16} {
    view_.block_count =
        static_cast<uint32_t>(arena.bytes().size() / 2 / kKvHeads / view_.head_block_bytes());
    blocks_.resize(view_.block_count);
    std::iota(blocks_.begin(), blocks_.end(), 0u);
    if (!scattered) return;
    SplitMix64 random(head_dim);
    for (size_t i = blocks_.size() - 1; i > 0; --i) {
      std::swap(blocks_[i], blocks_[random.below(i + 1)]);
    }
  }

  const kernels::KvCacheView& view() const { return view_; }
  /// `count` blocks that nobody has read for the longest time.
  const uint32_t* take(uint32_t count) {
    VOLLEY_CHECK(count <= blocks_.size());
    if (next_ + count > blocks_.size()) next_ = 0;
    return &blocks_[std::exchange(next_, next_ + count)];
  }

 private:
  kernels::KvCacheView view_;
  std::vector<uint32_t> blocks_;
  size_t next_ = 0;
};

uint32_t blocks_for(uint32_t tokens) {
  return (tokens + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
}

/// Decode: each row is the last token of a sequence of its own. Prefill: the rows are the first
/// tokens of one sequence.
class AttentionCase : public KernelCase {
 public:
  AttentionCase(bool decode, bool scattered, uint32_t head_dim, uint32_t rows)
      : KernelCase("attention",
                   fmt::format("{}{}, {}/{} heads of {}",
                               decode ? fmt::format("decode at {}", kContextTokens) : "prefill",
                               scattered ? " scattered" : "", kHeads, kKvHeads, head_dim),
                   rows),
        decode_(decode),
        scattered_(scattered),
        head_dim_(head_dim) {}

  KernelCost cost() const override {
    const double tokens = decode_ ? 1.0 * kContextTokens * rows() : rows();
    const double visible = decode_ ? tokens : 0.5 * rows() * (rows() + 1.0);
    const double kv = 2 * bytes_of(tokens, kKvHeads * head_dim_, DType::kBf16);
    return {.memory_bytes = kv,
            .total_bytes = kv + 2 * bytes_of(rows(), kHeads * head_dim_, DType::kBf16),
            .flops = attention_flops(kHeads, head_dim_, visible)};
  }
  void prepare(const Arena& arena) override {
    query_ = RowBuffer(rows(), kHeads * head_dim_, DType::kBf16);
    output_ = RowBuffer(rows(), kHeads * head_dim_, DType::kBf16);
    cache_ = PagedArena(arena, head_dim_, scattered_);
    for (uint32_t i = 0; i < rows(); ++i) {
      row_.push_back({.blocks = nullptr, .position = decode_ ? kContextTokens - 1 : i});
    }
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    if (decode_) {
      for (kernels::AttentionRow& row : row_) row.blocks = cache_.take(blocks_for(kContextTokens));
    } else {
      const uint32_t* blocks = cache_.take(blocks_for(rows()));
      for (kernels::AttentionRow& row : row_) row.blocks = blocks;
    }
    kernels.attention({.query = query_.in(),
                       .output = output_.out(),
                       .row = row_,
                       .heads = kHeads,
                       .cache = cache_.view(),
                       .scale = 0.125f},
                      pool);
  }

 private:
  bool decode_;
  bool scattered_;
  uint32_t head_dim_;
  RowBuffer query_, output_;
  PagedArena cache_;
  std::vector<kernels::AttentionRow> row_;
};

class RmsNormCase : public KernelCase {
 public:
  explicit RmsNormCase(uint32_t rows)
      : KernelCase("rms_norm", fmt::format("{}", kHidden), rows), weight_(kHidden, 1.0f) {}

  KernelCost cost() const override {
    return {.total_bytes = bytes_of(rows(), kHidden, DType::kF32) +
                           bytes_of(rows(), kHidden, DType::kBf16) +
                           bytes_of(1, kHidden, DType::kF32),
            .flops = 4.0 * rows() * kHidden};
  }
  void prepare(const Arena&) override {
    input_ = RowBuffer(rows(), kHidden, DType::kF32);
    output_ = RowBuffer(rows(), kHidden, DType::kBf16);
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    kernels.rms_norm({.input = input_.in(),
                      .weight = weight_.data(),
                      .epsilon = 1e-5f,
                      .width = kHidden,
                      .output = output_.out(),
                      .output_dtype = DType::kBf16},
                     pool);
  }

 private:
  std::vector<float> weight_;
  RowBuffer input_, output_;
};

class RopeAppendCase : public KernelCase {
 public:
  RopeAppendCase(uint32_t head_dim, uint32_t rows)
      : KernelCase("rope_append", fmt::format("{}/{} heads of {}", kHeads, kKvHeads, head_dim),
                   rows),
        head_dim_(head_dim) {}

  KernelCost cost() const override {
    const uint32_t kv_width = kKvHeads * head_dim_;
    const uint32_t rotated = kHeads * head_dim_ + kv_width;
    return {.total_bytes = bytes_of(rows(), rotated + kv_width, DType::kF32) +
                           bytes_of(rows(), head_dim_, DType::kF32) +
                           bytes_of(rows(), rotated + kv_width, DType::kBf16),
            .flops = 3.0 * rows() * rotated};
  }
  void prepare(const Arena&) override {
    qkv_ = RowBuffer(rows(), (kHeads + 2 * kKvHeads) * head_dim_, DType::kF32);
    query_ = RowBuffer(rows(), kHeads * head_dim_, DType::kBf16);
    angles_ = RowBuffer(2 * rows(), head_dim_ / 2, DType::kF32);
    const uint32_t width = kKvHeads * head_dim_ * kernels::kKvBlockTokens;
    keys_ = RowBuffer(blocks_for(rows()), width, DType::kBf16);
    values_ = RowBuffer(blocks_for(rows()), width, DType::kBf16);
    for (uint32_t row = 0; row < rows(); ++row) {
      position_.push_back(
          {.block = row / kernels::kKvBlockTokens, .offset = row % kernels::kKvBlockTokens});
    }
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    kernels::RopeAppendArgs args{};
    args.qkv = qkv_.in();
    args.cosine = static_cast<const float*>(angles_.in()[0]);
    args.sine = static_cast<const float*>(angles_.in()[rows()]);
    args.heads = kHeads;
    args.query = query_.out();
    args.cache = {.keys = static_cast<std::byte*>(keys_.out()[0]),
                  .values = static_cast<std::byte*>(values_.out()[0]),
                  .kv_heads = kKvHeads,
                  .head_dim = head_dim_,
                  .dtype = DType::kBf16};
    args.position = position_;
    kernels.rope_append(args, pool);
  }

 private:
  uint32_t head_dim_;
  RowBuffer qkv_, query_, angles_, keys_, values_;
  std::vector<kernels::KvPosition> position_;
};

class RouterCase : public KernelCase {
 public:
  RouterCase(uint32_t experts, uint32_t top_k, uint32_t rows)
      : KernelCase("router", fmt::format("top {} of {}", top_k, experts), rows),
        experts_(experts),
        top_k_(top_k) {}

  KernelCost cost() const override {
    return {.total_bytes = bytes_of(rows(), experts_ + 2.0 * top_k_, DType::kF32)};
  }
  void prepare(const Arena&) override {
    logits_ = RowBuffer(rows(), experts_, DType::kF32);
    expert_.resize(size_t{rows()} * top_k_);
    weight_.resize(size_t{rows()} * top_k_);
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    kernels.router({.logits = logits_.in(),
                    .experts = experts_,
                    .top_k = top_k_,
                    .normalize = true,
                    .expert = expert_.data(),
                    .weight = weight_.data()},
                   pool);
  }

 private:
  uint32_t experts_, top_k_;
  RowBuffer logits_;
  std::vector<uint32_t> expert_;
  std::vector<float> weight_;
};

class CombineCase : public KernelCase {
 public:
  CombineCase(uint32_t top_k, uint32_t rows)
      : KernelCase("combine", fmt::format("top {}, {}", top_k, kHidden), rows), top_k_(top_k) {}

  KernelCost cost() const override {
    return {.total_bytes = 2 * bytes_of(rows(), kHidden, DType::kF32) +
                           bytes_of(1.0 * rows() * top_k_, kHidden, DType::kBf16),
            .flops = (2.0 * top_k_ + 1) * rows() * kHidden};
  }
  void prepare(const Arena&) override {
    residual_ = RowBuffer(rows(), kHidden, DType::kF32);
    expert_row_ = RowBuffer(rows() * top_k_, kHidden, DType::kBf16);
    weight_.assign(size_t{rows()} * top_k_, 1.0f / static_cast<float>(top_k_));
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    kernels.combine({.residual = residual_.out(),
                     .expert_row = expert_row_.in(),
                     .weight = weight_.data(),
                     .top_k = top_k_,
                     .width = kHidden,
                     .dtype = DType::kBf16},
                    pool);
  }

 private:
  uint32_t top_k_;
  RowBuffer residual_, expert_row_;
  std::vector<float> weight_;
};

/// The sums of an expert node that holds all of a row's experts.
class ReduceCase : public KernelCase {
 public:
  ReduceCase(uint32_t top_k, uint32_t rows)
      : KernelCase("reduce", fmt::format("top {}, {}", top_k, kHidden), rows), top_k_(top_k) {}

  KernelCost cost() const override {
    return {.total_bytes = bytes_of((1.0 + top_k_) * rows(), kHidden, DType::kBf16),
            .flops = 2.0 * top_k_ * rows() * kHidden};
  }
  void prepare(const Arena&) override {
    input_ = RowBuffer(rows() * top_k_, kHidden, DType::kBf16);
    output_ = RowBuffer(rows(), kHidden, DType::kBf16);
    weight_.assign(size_t{rows()} * top_k_, 1.0f / static_cast<float>(top_k_));
    for (uint32_t row = 0; row <= rows(); ++row) first_.push_back(row * top_k_);
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    kernels.reduce({.input = input_.in(),
                    .weight = weight_.data(),
                    .first = first_,
                    .output = output_.out(),
                    .width = kHidden,
                    .dtype = DType::kBf16},
                   pool);
  }

 private:
  uint32_t top_k_;
  RowBuffer input_, output_;
  std::vector<float> weight_;
  std::vector<uint32_t> first_;
};

class EmbedCase : public KernelCase {
 public:
  explicit EmbedCase(uint32_t rows)
      : KernelCase("embed", fmt::format("{}x{}", kVocabulary, kHidden), rows),
        token_(rows),
        random_(rows) {}

  KernelCost cost() const override {
    const double rows_read = bytes_of(rows(), kHidden, DType::kBf16);
    return {.memory_bytes = rows_read,
            .total_bytes = rows_read + bytes_of(rows(), kHidden, DType::kF32)};
  }
  void prepare(const Arena&) override { output_ = RowBuffer(rows(), kHidden, DType::kF32); }
  void run(const CpuKernels& kernels, Arena& arena, ThreadPool& pool) override {
    for (int32_t& token : token_) token = static_cast<int32_t>(random_.below(kVocabulary));
    const size_t table_bytes = size_t{kVocabulary} * kHidden * dtype_bytes(DType::kBf16);
    kernels.embed({.table = {.data = arena.take(table_bytes),
                             .vocab = kVocabulary,
                             .hidden = kHidden,
                             .dtype = DType::kBf16},
                   .token = token_,
                   .output = output_.out()},
                  pool);
  }

 private:
  std::vector<int32_t> token_;
  SplitMix64 random_;
  RowBuffer output_;
};

struct SampleShape {
  const char* name;
  uint32_t vocab;
  bool peaked;
  float top_p;
  uint32_t top_k;
};

/// Temperature 1. Flat: logits that differ by less than 1, as of weights that were never trained.
/// Peaked: the token of rank r has a probability that goes as r^-1.5.
class SampleCase : public KernelCase {
 public:
  SampleCase(const SampleShape& shape, uint32_t rows)
      : KernelCase("sample", fmt::format("{} of {}", shape.name, shape.vocab), rows),
        shape_(shape) {}

  KernelCost cost() const override {
    return {.total_bytes = bytes_of(rows(), shape_.vocab, DType::kF32)};
  }
  void prepare(const Arena&) override {
    SplitMix64 random(shape_.vocab);
    logits_.resize(size_t{rows()} * shape_.vocab);
    for (float& logit : logits_) {
      // A uniform number is about its own rank, as a share of the vocabulary.
      const double uniform = random.unit() + 0x1p-53;
      logit = shape_.peaked ? static_cast<float>(-1.5 * std::log(uniform))
                            : static_cast<float>(uniform - 0.5);
    }
  }
  void run(const CpuKernels& kernels, Arena&, ThreadPool& pool) override {
    if (scratch_.size() < pool.thread_count()) {  // The warm-up: later calls allocate nothing.
      scratch_.resize(pool.thread_count());
      for (kernels::SampleScratch& one : scratch_) one.reserve(shape_.vocab);
    }
    ++position_;
    const uint32_t tiles = std::min(pool.thread_count(), rows());
    pool.parallel_for(tiles, [&](uint32_t tile) {
      for (uint32_t row = tile; row < rows(); row += tiles) {
        const std::span logits(&logits_[size_t{row} * shape_.vocab], shape_.vocab);
        kernels.sample_token(logits, {.top_k = shape_.top_k, .top_p = shape_.top_p, .seed = row},
                             position_, scratch_[tile]);
      }
    });
  }

 private:
  SampleShape shape_;
  std::vector<float> logits_;
  std::vector<kernels::SampleScratch> scratch_;
  uint64_t position_ = 0;
};

}  // namespace

double attention_flops(uint32_t heads, uint32_t head_dim, double visible_tokens) {
  // A multiplication and an addition per dimension, for the score and for the value.
  return 4.0 * heads * head_dim * visible_tokens;
}

Result<Arena> Arena::create(size_t bytes) {
  VOLLEY_ASSIGN_OR_RETURN(Mapping memory, Mapping::allocate(bytes));
  // Packed as the engine packs its weights, then repeated: only the addresses must differ.
  constexpr uint32_t kRows = 256;
  constexpr uint32_t kCols = 1024;
  std::vector<float> source(size_t{kRows} * kCols);
  SplitMix64 random(1);
  for (float& value : source) value = random_f32(random, 1.0f / 32);
  const size_t part = kernels::packed_bytes(kRows, kCols, DType::kBf16);
  VOLLEY_CHECK(memory.bytes().size() >= part);
  kernels::pack_matrix(source.data(), kernels::SourceDType::kF32, kRows, kCols, DType::kBf16,
                       memory.bytes().data());
  for (size_t offset = part; offset < memory.bytes().size(); offset += part) {
    const size_t count = std::min(part, memory.bytes().size() - offset);
    std::memcpy(memory.bytes().data() + offset, memory.bytes().data(), count);
  }
  return Arena(std::move(memory));
}

std::byte* Arena::take(size_t bytes) {
  VOLLEY_CHECK(bytes <= memory_.bytes().size());
  if (next_ + bytes > memory_.bytes().size()) next_ = 0;
  std::byte* const taken = memory_.bytes().data() + next_;
  next_ += (bytes + 63) / 64 * 64;
  return taken;
}

kernels::PackedMatrix Arena::take_matrix(uint32_t rows, uint32_t cols) {
  return {.data = take(kernels::packed_bytes(rows, cols, DType::kBf16)),
          .rows = rows,
          .cols = cols,
          .dtype = DType::kBf16};
}

std::vector<std::unique_ptr<KernelCase>> make_kernel_cases() {
  constexpr GemmShape kGemmShapes[] = {
      {"qkv", 1536, kHidden, DType::kF32, false},
      {"output", kHidden, kHidden, DType::kF32, true},
      {"ffn_up", 2048, kHidden, DType::kBf16, false},
      {"ffn_down", kHidden, 2048, DType::kBf16, false},
      {"lm_head", kVocabulary, kHidden, DType::kF32, false},
  };
  std::vector<std::unique_ptr<KernelCase>> cases;
  for (const GemmShape& shape : kGemmShapes) {
    for (const uint32_t rows : {1u, 2u, 4u, 8u, 16u, 64u, 512u}) {
      cases.push_back(std::make_unique<GemmCase>(shape, rows));
    }
  }
  for (const auto& [experts, ffn] : {std::pair(8u, 2048u), std::pair(32u, 512u)}) {
    for (const uint32_t rows_per_expert : {1u, 4u, 16u, 64u, 128u}) {
      cases.push_back(std::make_unique<GroupedFfnCase>(experts, ffn, rows_per_expert));
    }
  }
  for (const uint32_t head_dim : {64u, 128u}) {
    for (const uint32_t rows : {1u, 16u, 64u}) {
      for (const bool scattered : {false, true}) {
        cases.push_back(std::make_unique<AttentionCase>(true, scattered, head_dim, rows));
      }
    }
    for (const uint32_t rows : {128u, 512u}) {
      cases.push_back(std::make_unique<AttentionCase>(false, false, head_dim, rows));
    }
  }
  constexpr uint32_t kPointwiseRows[] = {1, 64, 512};
  for (const uint32_t rows : kPointwiseRows) cases.push_back(std::make_unique<RmsNormCase>(rows));
  for (const uint32_t head_dim : {64u, 128u}) {
    for (const uint32_t rows : kPointwiseRows) {
      cases.push_back(std::make_unique<RopeAppendCase>(head_dim, rows));
    }
  }
  for (const auto& [experts, top_k] : {std::pair(8u, 2u), std::pair(32u, 4u)}) {
    for (const uint32_t rows : kPointwiseRows) {
      cases.push_back(std::make_unique<RouterCase>(experts, top_k, rows));
    }
  }
  for (const uint32_t top_k : {2u, 4u}) {
    for (const uint32_t rows : kPointwiseRows) {
      cases.push_back(std::make_unique<CombineCase>(top_k, rows));
      cases.push_back(std::make_unique<ReduceCase>(top_k, rows));
    }
  }
  for (const uint32_t rows : kPointwiseRows) cases.push_back(std::make_unique<EmbedCase>(rows));
  for (const uint32_t vocab : {kVocabulary, 151'936u}) {
    for (const SampleShape& shape : {SampleShape{"no filter", vocab, false, 1.0f, 0},
                                     {"top_p 0.9 flat", vocab, false, 0.9f, 0},
                                     {"top_p 0.9 peaked", vocab, true, 0.9f, 0},
                                     {"top_k 50", vocab, false, 1.0f, 50}}) {
      for (const uint32_t rows : {1u, 16u}) {
        cases.push_back(std::make_unique<SampleCase>(shape, rows));
      }
    }
  }
  return cases;
}

}  // namespace volley::bench
