// Goal: conversions and panel packing keep every value where the layout says, and round to nearest
// even. Method: each element is looked up by the layout's formula, padding included.

#include "kernels/common/types.h"

#include "kernel_testing.h"

namespace volley::kernels::testing {
namespace {

TEST(PackMatrix, PutsEveryElementIntoItsPanel) {
  SplitMix64 random(1);
  for (const uint32_t rows : {1u, 63u, 64u, 65u, 145u}) {
    for (const uint32_t cols : {1u, 7u, 32u}) {
      const std::vector<float> source = random_vector(random, size_t{rows} * cols);
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        const AlignedBytes out(packed_bytes(rows, cols, dtype));
        pack_matrix(source.data(), SourceDType::kF32, rows, cols, dtype, out.data());
        const uint32_t padded_rows = (rows + 63) / 64 * 64;
        const uint32_t inner = dtype == DType::kBf16 ? 2 : 1;
        const uint32_t padded_cols = (cols + inner - 1) / inner * inner;
        for (uint32_t row = 0; row < padded_rows; ++row) {
          for (uint32_t col = 0; col < padded_cols; ++col) {
            // [row / 64][col / inner][row % 64][col % inner]
            const size_t index =
                (size_t{row / 64} * (padded_cols / inner) + col / inner) * 64 * inner +
                row % 64 * inner + col % inner;
            const float expected =
                row < rows && col < cols ? round_to(source[size_t{row} * cols + col], dtype) : 0.0f;
            ASSERT_TRUE(same_bits(load_element(out.data(), dtype, index), expected))
                << "rows " << rows << " cols " << cols << " at " << row << ", " << col;
          }
        }
      }
    }
  }
}

TEST(PackMatrix, ReadsEverySourceType) {
  const uint16_t half[3] = {0x3c00, 0xc000, 0x0001};  // 1, -2, 2^-24.
  const Bf16 brain[3] = {{0x3f80}, {0xc000}, {0x3380}};
  for (const auto& [data, from] : {std::pair<const void*, SourceDType>{half, SourceDType::kF16},
                                   {brain, SourceDType::kBf16}}) {
    const AlignedBytes out(packed_bytes(3, 1, DType::kF32));
    pack_matrix(data, from, 3, 1, DType::kF32, out.data());
    // One column: the rows lie side by side.
    EXPECT_EQ(load_element(out.data(), DType::kF32, 0), 1.0f);
    EXPECT_EQ(load_element(out.data(), DType::kF32, 1), -2.0f);
    EXPECT_EQ(load_element(out.data(), DType::kF32, 2), 0x1p-24f);
    float converted[3];
    convert_to_f32(data, from, 3, converted);
    EXPECT_EQ(converted[2], 0x1p-24f);
  }
}

TEST(ConvertFromF32, RoundsToNearestEven) {
  const float source[4] = {1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, -0.0f, INFINITY};
  Bf16 out[4];
  convert_from_f32(source, 4, DType::kBf16, out);
  EXPECT_EQ(out[0].bits, 0x3f80);
  EXPECT_EQ(out[1].bits, 0x3f82);
  EXPECT_EQ(out[2].bits, 0x8000);
  EXPECT_EQ(out[3].bits, 0x7f80);
  float same[4];
  convert_from_f32(source, 4, DType::kF32, same);
  EXPECT_EQ(std::memcmp(same, source, sizeof(source)), 0);
}

}  // namespace
}  // namespace volley::kernels::testing
