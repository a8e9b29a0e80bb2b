// Goal: a device file is read strictly (every mistake is named with file, line and key, and every
// figure has exactly one source), and what format_device() writes reads back equal. Method: one
// good file, then a table of edits of it with the message each must give.

#include "volley/perf/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace volley::perf {
namespace {

using testing::HasSubstr;

const char* const kGood = R"(name: X1
memory_bytes: 80e9
memory_bytes_per_s: 2.039e12
flops:
  f32: 19.5e12
  bf16: 312e12
link_bytes_per_s: 200e9
network_bytes_per_s: 25e9
per_node: 8
price: 2.26
efficiency:
  compute: [[1, 0.1], [256, 0.6]]
  memory: 0.8
  message_s: 28e-6
sources:
  - figures: [memory_bytes, memory_bytes_per_s, flops, link_bytes_per_s, network_bytes_per_s]
    cites: the data sheet
  - figures: [per_node, price]
    cites: a price list
  - figures: [efficiency.compute]
    cites: measured
  - figures: [efficiency]
    cites: guessed
)";

std::string edited(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Device, ReadsAGoodFile) {
  const auto device = parse_device(kGood, "x1.yaml");
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, "X1");
  EXPECT_FALSE(device->cpu);
  EXPECT_EQ(device->memory_bytes, 80e9);
  EXPECT_EQ(device->memory_bytes_per_s, 2.039e12);
  EXPECT_EQ(device->network_bytes_per_s, 25e9);
  EXPECT_EQ(device->per_node, 8u);
  EXPECT_EQ(device->price, 2.26);
  EXPECT_EQ(device->watts, 0);
  EXPECT_DOUBLE_EQ(device->efficiency.compute.at(16), 0.35);
  EXPECT_EQ(device->efficiency.memory.at(1), 0.8);
  EXPECT_EQ(device->efficiency.link, Efficiency().link);
  EXPECT_EQ(device->efficiency.message_s, 28e-6);
}

TEST(Device, ComputesWhatItDoesNotSupportInTheNextLargerFormat) {
  const auto device = parse_device(kGood, "x1.yaml");
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->flops_of(NumberFormat::kF32), 19.5e12);
  EXPECT_EQ(device->flops_of(NumberFormat::kBf16), 312e12);
  EXPECT_EQ(device->flops_of(NumberFormat::kFp8), 312e12);
  EXPECT_EQ(device->flops_of(NumberFormat::kFp4), 312e12);
}

struct Mistake {
  const char* from;
  const char* to;
  const char* message;
};

TEST(Device, NamesEveryMistakeWithFileLineAndKey) {
  const Mistake mistakes[] = {
      {"price: 2.26", "prize: 2.26", "x1.yaml:10: prize: unknown key"},
      {"price: 2.26", "price: 2.26\nprice: 3", "x1.yaml:11: price: the key appears twice"},
      {"price: 2.26", "price: cheap", "x1.yaml:10: price: 'cheap' is not a number in"},
      {"price: 2.26", "price: -1", "x1.yaml:10: price: '-1' is not a number in"},
      {"price: 2.26", "price: nan", "x1.yaml:10: price: 'nan' is not a number in"},
      {"price: 2.26", "price: [1]", "x1.yaml:10: price: must be a single value"},
      {"memory_bytes: 80e9\n", "", "x1.yaml:1: memory_bytes: the key is missing"},
      {"memory_bytes: 80e9", "memory_bytes: 0", "x1.yaml:2: memory_bytes: '0' is not"},
      {"name: X1", "name: X 1", "x1.yaml:1: name: may have letters"},
      {"  f32: 19.5e12\n", "", "x1.yaml:5: flops.f32: the key is missing"},
      {"bf16: 312e12", "f16: 312e12", "x1.yaml:6: flops.f16: unknown key"},
      {"per_node: 8", "per_node: 0", "x1.yaml:9: per_node: '0' is not an integer in [1, 1024]"},
      {"link_bytes_per_s: 200e9\n", "", "x1.yaml:8: per_node: above 1 needs link_bytes_per_s"},
      {"[[1, 0.1], [256, 0.6]]", "[[256, 0.1], [1, 0.6]]",
       "x1.yaml:12: efficiency.compute: x = 1 must be above 256"},
      {"[[1, 0.1], [256, 0.6]]", "[1, 0.1]", "x1.yaml:12: efficiency.compute: must be a list of"},
      {"[[1, 0.1], [256, 0.6]]", "[]", "x1.yaml:12: efficiency.compute: a curve needs"},
      {"[[1, 0.1], [256, 0.6]]", "[[1, 0]]", "x1.yaml:12: efficiency.compute: 0 is not in"},
      {"memory: 0.8", "memory: 0", "x1.yaml:13: efficiency.memory: 0 is not in"},
      {"memory: 0.8", "memory: {a: 1}", "x1.yaml:13: efficiency.memory: must be a single value"},
      {"message_s: 28e-6", "message_s: 28", "x1.yaml:14: efficiency.message_s: '28' is not a num"},
  };
  for (const Mistake& mistake : mistakes) {
    const auto device = parse_device(edited(mistake.from, mistake.to), "x1.yaml");
    ASSERT_FALSE(device.ok()) << mistake.to;
    EXPECT_EQ(device.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(message_of(device.status()), HasSubstr(mistake.message));
  }
}

TEST(Device, EveryFigureHasExactlyOneSource) {
  const Mistake mistakes[] = {
      {"[per_node, price]", "[per_node]", "x1.yaml:10: price: has no source"},
      {"[efficiency]", "[efficiency.memory]", "x1.yaml:14: efficiency.message_s: has no source"},
      {"[per_node, price]", "[per_node, price, watts]",
       "x1.yaml:18: sources[1].figures: 'watts' is no figure of this file"},
      {"[per_node, price]", "[per_node, price, name]",
       "x1.yaml:18: sources[1].figures: 'name' is no figure of this file"},
      {"[per_node, price]", "[per_node, price, flops]",
       "x1.yaml:18: sources[1].figures: 'flops' has a source already"},
      {"[efficiency]", "[efficiency, flops.bf16, flops.f32]",
       "x1.yaml:16: sources[0].figures: 'flops' is no figure of this file"},
      {"cites: a price list", "cites: ''", "x1.yaml:19: sources[1].cites: must not be empty"},
      {"    cites: a price list\n", "", "x1.yaml:18: sources[1].cites: the key is missing"},
  };
  for (const Mistake& mistake : mistakes) {
    const auto device = parse_device(edited(mistake.from, mistake.to), "x1.yaml");
    ASSERT_FALSE(device.ok()) << mistake.to;
    EXPECT_THAT(message_of(device.status()), HasSubstr(mistake.message));
  }
  const std::string text = kGood;
  const auto none = parse_device(text.substr(0, text.find("sources:")), "x1.yaml");
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(message_of(none.status()), HasSubstr("x1.yaml:1: sources: the key is missing"));
}

TEST(Device, WhatIsWrittenReadsBackEqual) {
  const auto good = parse_device(kGood, "x1.yaml");
  ASSERT_TRUE(good.ok()) << good.status();
  Device odd = *good;
  odd.name = "this-machine";
  odd.cpu = true;
  odd.per_node = 1;
  odd.link_bytes_per_s = 0;
  // Numbers without a short decimal form.
  odd.memory_bytes = 1e12 / 7;
  odd.memory_bytes_per_s = std::nextafter(3e11, 4e11);
  odd.flops = {1e12 / 3, 0, 0, 2e12 / 3};
  odd.watts = 350.5;
  odd.efficiency.memory = *Curve::make({{2.5, 0.1}});
  odd.efficiency.message_s = 1e-6 / 3;
  for (const Device& device : {*good, odd}) {
    for (const char* source : {"measured by `volley profile`", "\"quoted\", \\ : # {\n\t\x01"}) {
      const std::string text = format_device(device, source);
      const auto back = parse_device(text, "back.yaml");
      ASSERT_TRUE(back.ok()) << back.status() << "\n" << text;
      EXPECT_TRUE(*back == device) << text;
    }
  }
}

TEST(Device, IsFoundByNameOrByPath) {
  const std::string folder = VOLLEY_SOURCE_DIR "/configs/hardware";
  const auto by_name = find_device(folder, "H20");
  ASSERT_TRUE(by_name.ok()) << by_name.status();
  const auto by_path = find_device("/nowhere", folder + "/h20.yaml");
  ASSERT_TRUE(by_path.ok()) << by_path.status();
  EXPECT_TRUE(*by_name == *by_path);

  const auto unknown = find_device(folder, "h21");
  EXPECT_EQ(unknown.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(unknown.status()), HasSubstr("no device 'h21'"));
  EXPECT_THAT(message_of(unknown.status()), HasSubstr("h20, h200"));
  EXPECT_EQ(find_device(folder, "other/h20.yaml").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(find_device("/nowhere", "h20").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace volley::perf
