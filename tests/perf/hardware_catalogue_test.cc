// Goal: every file of configs/hardware loads and is where its name says, and the catalogue repeats
// the paper: Table 3 with its ratios, and the choice of hardware that section 4.3 draws from them.
// Method: the values of the paper (shared facts, arXiv 2504.02263v1) against the files.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "volley/perf/device.h"

namespace volley::perf {
namespace {

namespace fs = std::filesystem;

const std::string kFolder = VOLLEY_SOURCE_DIR "/configs/hardware";

Device device(const std::string& name) {
  const auto found = find_device(kFolder, name);
  EXPECT_TRUE(found.ok()) << found.status();
  return found.ok() ? *found : Device();
}

TEST(HardwareCatalogue, EveryFileLoads) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".yaml") continue;
    const auto loaded = load_device(entry.path().string());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    std::string lower = loaded->name;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](char c) { return std::tolower(c); });
    EXPECT_EQ(lower, entry.path().stem().string());
    EXPECT_GT(loaded->price, 0);
    EXPECT_GT(loaded->watts, 0);
    EXPECT_LE(loaded->flops_of(NumberFormat::kF32), loaded->flops_of(NumberFormat::kBf16));
    EXPECT_LE(loaded->flops_of(NumberFormat::kBf16), loaded->flops_of(NumberFormat::kFp8));
    EXPECT_LE(loaded->flops_of(NumberFormat::kFp8), loaded->flops_of(NumberFormat::kFp4));
    names.insert(lower);
  }
  EXPECT_EQ(names, (std::set<std::string>{"a100", "a800", "b200", "epyc-9654", "h100", "h20",
                                          "h200", "h800", "l20", "l40s"}));
}

struct Row {
  const char* name;
  double price, gigabytes, gigabytes_per_s, teraflops;
  double gigabytes_per_price, gigabytes_per_s_per_price, teraflops_per_price;
};
constexpr Row kTable3[] = {
    {"L20", 1.00, 48, 864, 119.5, 48, 864, 119.5},
    {"H800", 5.28, 80, 3350, 989, 15.2, 634.5, 187.3},
    {"A800", 2.26, 80, 2039, 312, 35.4, 902.2, 138.1},
    {"H20", 1.85, 96, 4096, 148, 51.9, 2214.1, 80.0},
    {"L40S", 1.08, 48, 864, 362, 44.4, 800.0, 335.2},
};

TEST(HardwareCatalogue, RepeatsTable3AndItsRatios) {
  for (const Row& row : kTable3) {
    const Device found = device(row.name);
    EXPECT_DOUBLE_EQ(found.price, row.price) << row.name;
    EXPECT_DOUBLE_EQ(found.memory_bytes, row.gigabytes * 1e9) << row.name;
    EXPECT_DOUBLE_EQ(found.memory_bytes_per_s, row.gigabytes_per_s * 1e9) << row.name;
    EXPECT_DOUBLE_EQ(found.flops_of(NumberFormat::kBf16), row.teraflops * 1e12) << row.name;
    // The paper prints one decimal.
    EXPECT_NEAR(found.memory_bytes / 1e9 / found.price, row.gigabytes_per_price, 0.051);
    EXPECT_NEAR(found.memory_bytes_per_s / 1e9 / found.price, row.gigabytes_per_s_per_price, 0.051);
    EXPECT_NEAR(found.flops_of(NumberFormat::kBf16) / 1e12 / found.price, row.teraflops_per_price,
                0.051);
  }
}

/// The device of Table 3 with the most of `figure` for its price.
template <class Figure>
std::string best(Figure figure) {
  std::string name;
  double most = 0;
  for (const Row& row : kTable3) {
    const Device candidate = device(row.name);
    const double value = figure(candidate) / candidate.price;
    if (value > most) {
      most = value;
      name = candidate.name;
    }
  }
  return name;
}

TEST(HardwareCatalogue, AttentionBelongsOnH20AndExpertsOnL40s) {
  EXPECT_EQ(best([](const Device& d) { return d.memory_bytes; }), "H20");
  EXPECT_EQ(best([](const Device& d) { return d.memory_bytes_per_s; }), "H20");
  EXPECT_EQ(best([](const Device& d) { return d.flops_of(NumberFormat::kBf16); }), "L40S");
}

TEST(HardwareCatalogue, TheNetworkFiguresRepeatThePapersFit) {
  // 28 us + bytes / 24.2 GB/s on a NIC of 200 Gb/s: Fig. 10, M2N medians, 8 receivers.
  const Device a800 = device("A800");
  const double rate = a800.network_bytes_per_s * a800.efficiency.network.at(1e6);
  const std::pair<double, double> medians[] = {{2048, 28e-6},     {16384, 32e-6},
                                               {131072, 73e-6},   {262144, 116e-6},
                                               {1 << 20, 373e-6}, {8 << 20, 2770e-6}};
  for (const auto& [bytes, seconds] : medians) {
    const double time = a800.efficiency.message_s + 8 * bytes / rate;
    EXPECT_NEAR(time / seconds, 1, 0.06) << bytes;
  }
}

TEST(HardwareCatalogue, TheComputeCurveIsNearThePapersExpertTimes) {
  // Fig. 13: an expert layer of DBRX by rows, seconds, three matrices of 6144 x 10752. The paper's times have
  // the wait for the slowest expert node in them, ours do not.
  const Device a800 = device("A800");
  const std::pair<double, double> layers[] = {{256, 575e-6}, {384, 833e-6}, {512, 1017e-6}};
  for (const auto& [rows, seconds] : layers) {
    const double flop = 2 * rows * 3 * 6144 * 10752;
    const double time =
        flop / (a800.flops_of(NumberFormat::kBf16) * a800.efficiency.compute.at(rows));
    EXPECT_GT(time / seconds, 0.85) << rows;
    EXPECT_LT(time / seconds, 1) << rows;
  }
}

}  // namespace
}  // namespace volley::perf
