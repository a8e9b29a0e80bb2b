#pragma once

// Rows with guard bytes, seeded contents, and the comparison of every instruction set and thread
// count with the reference, bit for bit.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/elements.h"
#include "kernels/cpu_kernels.h"
#include "volley/base/random.h"
#include "volley/base/thread_pool.h"

namespace volley::kernels::testing {

/// Unit roundoff of f32 and of the storage types.
inline constexpr double kUnit = 0x1p-24;
inline double unit_of(DType dtype) {
  return dtype == DType::kF32 ? kUnit : 0x1p-8;
}

/// Bound on the relative error of a sum of `terms` products, each added by one rounding.
inline double gamma(double terms) {
  return terms * kUnit / (1.0 - terms * kUnit);
}

inline float random_f32(SplitMix64& random, float scale = 1.0f) {
  return scale * static_cast<float>(2.0 * random.unit() - 1.0);
}

inline std::vector<float> random_vector(SplitMix64& random, size_t count, float scale = 1.0f) {
  std::vector<float> values(count);
  for (float& value : values) value = random_f32(random, scale);
  return values;
}

/// Rows that lie apart, each at an odd multiple of its element size and between guard bytes, as
/// rows in slots may.
class RowBuffer {
 public:
  RowBuffer(size_t rows, size_t width, DType dtype)
      : width_(width),
        dtype_(dtype),
        row_bytes_(width * dtype_bytes(dtype)),
        pitch_((row_bytes_ + 2 * kGuardBytes + 3) / 4 * 4),
        bytes_(rows * pitch_, kGuard),
        pointers_(rows) {
    for (size_t row = 0; row < rows; ++row) pointers_[row] = &bytes_[row * pitch_ + kGuardBytes];
  }
  RowBuffer(const RowBuffer& other) : RowBuffer(other.rows(), other.width_, other.dtype_) {
    bytes_ = other.bytes_;
  }
  RowBuffer& operator=(const RowBuffer&) = delete;

  static RowBuffer random(SplitMix64& random, size_t rows, size_t width, DType dtype,
                          float scale = 1.0f) {
    RowBuffer buffer(rows, width, dtype);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t i = 0; i < width; ++i) buffer.set(row, i, random_f32(random, scale));
    }
    return buffer;
  }

  size_t rows() const { return pointers_.size(); }
  size_t width() const { return width_; }
  DType dtype() const { return dtype_; }
  float at(size_t row, size_t i) const { return load_element(pointers_[row], dtype_, i); }
  void set(size_t row, size_t i, float value) { store_element(pointers_[row], dtype_, i, value); }
  void* row(size_t index) const { return pointers_[index]; }
  Rows rows_out() const { return pointers_; }
  ConstRows rows_in() const { return {const_cast<const void* const*>(pointers_.data()), rows()}; }

  bool guards_intact() const {
    for (size_t row = 0; row < rows(); ++row) {
      for (size_t i = 0; i < pitch_; ++i) {
        const bool inside = i >= kGuardBytes && i < kGuardBytes + row_bytes_;
        if (!inside && bytes_[row * pitch_ + i] != kGuard) return false;
      }
    }
    return true;
  }

 private:
  static constexpr size_t kGuardBytes = 68;
  static constexpr std::byte kGuard{0xa5};
  size_t width_;
  DType dtype_;
  size_t row_bytes_;
  size_t pitch_;
  std::vector<std::byte> bytes_;
  std::vector<void*> pointers_;
};

/// Memory at the alignment that the contracts ask for.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t count)
      : data_(static_cast<std::byte*>(::operator new (count + 64, std::align_val_t{64}))) {
    std::memset(data_, 0xff, count + 64);  // NaNs, so that a read of what nobody wrote is seen.
  }
  AlignedBytes(AlignedBytes&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  AlignedBytes& operator=(AlignedBytes&&) = delete;
  ~AlignedBytes() { ::operator delete (data_, std::align_val_t{64}); }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_;
};

/// A packed random matrix with its row-major values, as rounded by storage.
struct Weights {
  PackedMatrix packed;
  std::vector<float> values;  // [rows, cols]
  AlignedBytes storage;

  static Weights random(SplitMix64& random, uint32_t rows, uint32_t cols, DType dtype,
                        float scale = 1.0f) {
    Weights weights = {.packed = {},
                       .values = random_vector(random, size_t{rows} * cols, scale),
                       .storage = AlignedBytes(packed_bytes(rows, cols, dtype))};
    for (float& value : weights.values) value = round_to(value, dtype);
    pack_matrix(weights.values.data(), SourceDType::kF32, rows, cols, dtype,
                weights.storage.data());
    weights.packed = {.data = weights.storage.data(), .rows = rows, .cols = cols, .dtype = dtype};
    return weights;
  }
};

inline const CpuKernels& reference_kernels() {
  return **select_cpu_kernels("reference");
}

/// Calls `body(kernels, pool, name)` for each instruction set of this processor and 1, 2, 3
/// threads, and for the reference with several threads.
template <class Body>
void for_each_variant(Body body) {
  for (const uint32_t threads : {1u, 2u, 3u}) {
    ThreadPool pool(threads);
    for (const char* isa : {"reference", "avx2", "avx512", "avx512_bf16"}) {
      const auto kernels = select_cpu_kernels(isa);
      if (!kernels.ok()) continue;
      body(**kernels, pool, fmt::format("{}, threads {}", isa, threads));
    }
  }
}

/// Equal bits; any NaN equals any other, as which one an operation returns is not part of the
/// contracts.
inline bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

/// Expects equal bits everywhere; reports the worst element.
inline void expect_same(const RowBuffer& expected, const RowBuffer& actual,
                        const std::string& what) {
  EXPECT_TRUE(actual.guards_intact()) << what << ": wrote outside its rows";
  size_t worst_row = 0;
  size_t worst_column = 0;
  double worst = -1.0;
  for (size_t row = 0; row < expected.rows(); ++row) {
    for (size_t i = 0; i < expected.width(); ++i) {
      if (same_bits(expected.at(row, i), actual.at(row, i))) continue;
      const double difference = std::abs(double{expected.at(row, i)} - actual.at(row, i));
      if (std::isnan(difference) || difference > worst) {
        worst = std::isnan(difference) ? INFINITY : difference;
        worst_row = row;
        worst_column = i;
      }
    }
  }
  EXPECT_LT(worst, 0.0) << what << ": row " << worst_row << ", column " << worst_column
                        << ": expected " << std::hexfloat << expected.at(worst_row, worst_column)
                        << ", got " << actual.at(worst_row, worst_column);
}

}  // namespace volley::kernels::testing
