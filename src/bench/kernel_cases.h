#pragma once

// What `volley bench kernels` measures: one object per kernel, shape and number of rows.

#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "volley/base/fd.h"
#include "volley/bench/kernel_report.h"

namespace volley::bench {

/// Memory of small finite bf16 numbers, many times larger than the L3. Weights and KV are taken
/// from it one after the other, around and around, by all cases alike: what is taken was last read
/// so long ago that no cache has it. Any part of it is a valid packed matrix or KV block in any
/// layout.
class Arena {
 public:
  /// Takes and fills at least `bytes`. Errors: kResourceExhausted.
  static Result<Arena> create(size_t bytes);

  /// The next `bytes`, at most bytes().size(), 64-byte aligned.
  std::byte* take(size_t bytes);
  kernels::PackedMatrix take_matrix(uint32_t rows, uint32_t cols);
  std::span<std::byte> bytes() const { return memory_.bytes(); }

 private:
  explicit Arena(Mapping memory) : memory_(std::move(memory)) {}

  Mapping memory_;
  size_t next_ = 0;
};

class KernelCase {
 public:
  KernelCase(std::string kernel, std::string shape, uint32_t rows)
      : kernel_(std::move(kernel)), shape_(std::move(shape)), rows_(rows) {}
  virtual ~KernelCase() = default;

  const std::string& kernel() const { return kernel_; }
  const std::string& shape() const { return shape_; }
  uint32_t rows() const { return rows_; }
  std::string name() const { return fmt::format("{}/{}/rows={}", kernel_, shape_, rows_); }

  virtual KernelCost cost() const = 0;
  /// Takes the memory of inputs and outputs and fills it. Called once, before run().
  virtual void prepare(const Arena& arena) = 0;
  /// One call of the kernel. Allocates nothing.
  virtual void run(const kernels::CpuKernels& kernels, Arena& arena, ThreadPool& pool) = 0;

 private:
  std::string kernel_;
  std::string shape_;
  uint32_t rows_;
};

/// All of them, in the order of the table.
std::vector<std::unique_ptr<KernelCase>> make_kernel_cases();

/// The operations of one attention call over rows that see `visible_tokens` in sum.
double attention_flops(uint32_t heads, uint32_t head_dim, double visible_tokens);

}  // namespace volley::bench
