// Goal: the safetensors reader takes what the format allows and refuses everything else with an
// error that names file, tensor, field and value. Method: hand-written headers, one fault each;
// folders on disk.

#include "src/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint/checkpoint_files.h"

namespace volley::model {
namespace {

using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::safetensors_raw;
using testing::TempFolder;
using testing::TestTensors;

constexpr const char* kOrigin = "weights.safetensors";

Result<TensorTable> parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), kOrigin);
}

TEST(SafetensorsHeader, ReadsTensorsWithOffsetsInTheFile) {
  const std::string header = R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},)"
                             R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                             R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[28,36]},)"
                             R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[28,28]},)"
                             R"("__metadata__":{"format":"pt"}}  )";
  const Result<TensorTable> table = parse(safetensors_raw(header, 36));
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->size(), 4u);
  const uint64_t data = 8 + header.size();
  EXPECT_EQ(table->at("a").begin, data);
  EXPECT_EQ(table->at("b").begin, data + 4);
  EXPECT_EQ(table->at("b").end, data + 28);
  EXPECT_EQ(table->at("b").dtype, "F32");
  EXPECT_EQ(table->at("b").shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(table->at("scalar").element_count(), 1u);
  EXPECT_EQ(table->at("none").element_count(), 0u);
}

TEST(SafetensorsHeader, AcceptsAnUnknownDTypeUntilItIsAskedFor) {
  const Result<TensorTable> table =
      parse(safetensors_raw(R"({"a":{"dtype":"F4","shape":[6],"data_offsets":[0,3]}})", 3));
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->at("a").dtype, "F4");
  EXPECT_FALSE(source_dtype("F4").has_value());
}

/// A file of one tensor "t" with this entry and 8 bytes of data.
std::string one(const std::string& entry) {
  return safetensors_raw("{\"t\":" + entry + "}", 8);
}

std::string with_length(uint64_t length, const std::string& rest) {
  std::string file = safetensors_raw("", 0) + rest;
  for (int i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return file;
}

TEST(SafetensorsHeader, EveryFaultIsNamed) {
  struct Case {
    std::string file;
    std::vector<std::string> expected;
  };
  const std::vector<Case> cases = {
      {"", {"0 bytes"}},
      {"1234567", {"7 bytes"}},
      {with_length(3, "{}"), {"header length is 3", "10 bytes"}},
      {with_length(100'000'001, "{}"), {"header length is 100000001"}},
      {with_length(~uint64_t{0}, "{}"), {"header length is 18446744073709551615"}},
      {with_length(~uint64_t{0} - 7, "{}"), {"header length"}},
      {safetensors_raw("", 0), {"not valid JSON"}},
      {safetensors_raw("{", 0), {"not valid JSON"}},
      {safetensors_raw("[]", 0), {"must be an object"}},
      {safetensors_raw("{}x", 0), {"not valid JSON"}},
      {safetensors_raw("{\"\xff\":1}", 0), {"not valid JSON"}},
      {safetensors_raw("{\"t\":[[[[]]]]}", 0), {"nested deeper"}},
      {safetensors_raw(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                       R"("t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                       8),
       {"\"t\" occurs twice"}},
      {one(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
       {"\"dtype\" occurs twice"}},
      {safetensors_raw(R"({"__metadata__":{"a":1}})", 0), {"__metadata__"}},
      {safetensors_raw(R"({"__metadata__":"a"})", 0), {"__metadata__"}},
      {one("3"), {"tensor \"t\"", "is 3"}},
      {one(R"({"shape":[2],"data_offsets":[0,8]})"), {"tensor \"t\"", "dtype"}},
      {one(R"({"dtype":"F32","data_offsets":[0,8]})"), {"tensor \"t\"", "shape"}},
      {one(R"({"dtype":"F32","shape":[2]})"), {"tensor \"t\"", "data_offsets"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})"), {"tensor \"t\"", "\"x\""}},
      {one(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"), {"tensor \"t\"", "dtype is 7"}},
      {one(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"), {"tensor \"t\"", "shape is 2"}},
      {one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "shape is [-2]"}},
      {one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "shape is [2.0]"}},
      {one(R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})"), {"tensor \"t\"", "shape"}},
      {one(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "at most 8 dimensions"}},
      {one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "shape", "64 bits"}},
      {one(R"({"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "4611686018427387906 elements of 4 bytes"}},
      {one(R"({"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "shape"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"),
       {"tensor \"t\"", "data_offsets is [0]"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,-8]})"), {"tensor \"t\"", "[0,-8]"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
       {"tensor \"t\"", "begin <= end <= 8"}},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[1,9]})"),
       {"tensor \"t\"", "begin <= end <= 8"}},
      {one(R"({"dtype":"F32","shape":[2],)"
           R"("data_offsets":[18446744073709551608,18446744073709551615]})"),
       {"tensor \"t\"", "begin <= end <= 8"}},
      {one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
       {"tensor \"t\"", "[0,8], 8 bytes", "dtype F32 and shape [3]", "3 elements of 4 bytes"}},
      {one(R"({"dtype":"BF16","shape":[2],"data_offsets":[0,4]})"), {"end at byte 4 of 8"}},
      {one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), {"tensor \"t\"", "hole"}},
      {safetensors_raw(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                       8),
       {"tensor \"b\"", "begins at 4", "overlaps", "8"}},
      {safetensors_raw("{}", 1), {"end at byte 0 of 1"}},
  };
  for (const Case& bad : cases) {
    const Result<TensorTable> table = parse(bad.file);
    ASSERT_EQ(table.status().code(), StatusCode::kInvalidArgument) << bad.expected.front();
    EXPECT_THAT(message_of(table.status()), HasSubstr(kOrigin));
    for (const std::string& part : bad.expected) {
      EXPECT_THAT(message_of(table.status()), HasSubstr(part));
    }
  }
}

TEST(SafetensorsHeader, EveryTruncationIsAnError) {
  const std::string file = safetensors_bytes(
      {{"a", {"F32", {2}, std::string(8, 'x')}}, {"b", {"BF16", {3}, std::string(6, 'y')}}});
  ASSERT_TRUE(parse(file).ok());
  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_EQ(parse(file.substr(0, length)).status().code(), StatusCode::kInvalidArgument)
        << length;
  }
}

TEST(SafetensorsHeader, HostileNamesAreEscapedAndCutInErrors) {
  const std::string name = "\\u001b[31m" + std::string(1000, 'n');
  const Status status = parse(safetensors_raw("{\"" + name + "\":3}", 0)).status();
  EXPECT_THAT(message_of(status), HasSubstr("\\u001b"));
  EXPECT_LT(message_of(status).size(), 300u);
}

TEST(SafetensorsIndex, AFileNameStaysInTheFolder) {
  for (const char* name : {"../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\u0000b"}) {
    const std::string text = std::string(R"({"weight_map":{"t":")") + name + "\"}}";
    const auto index = parse_safetensors_index(text, "index.json");
    EXPECT_EQ(index.status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(message_of(index.status()), HasSubstr("index.json: weight_map: tensor \"t\""));
  }
  EXPECT_TRUE(parse_safetensors_index(R"({"weight_map":{"t":"..x"}})", "i").ok());
  for (const char* text : {"{}", R"({"weight_map":[]})", R"({"weight_map":{"t":1}})"}) {
    EXPECT_EQ(parse_safetensors_index(text, "i").status().code(), StatusCode::kInvalidArgument);
  }
}

class Folder : public ::testing::Test {
 protected:
  static std::string tensor_file(const std::string& name) {
    return safetensors_bytes({{name, {"F32", {2}, std::string(8, 'x')}}});
  }
  TempFolder folder_;
};

TEST_F(Folder, ShardsAreFoundThroughTheIndex) {
  folder_.write("1.safetensors", tensor_file("a"));
  folder_.write("2.safetensors", tensor_file("b"));
  folder_.write(
      "model.safetensors.index.json",
      R"({"metadata":{"total_size":16},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  const Result<SafetensorsFolder> opened = SafetensorsFolder::open(folder_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->find("a")->file->path(), folder_.file("1.safetensors"));
  EXPECT_EQ(opened->find("b")->file->path(), folder_.file("2.safetensors"));
  const auto missing = opened->find("c");
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(missing.status()), HasSubstr(folder_.path() + ": no tensor \"c\""));
}

TEST_F(Folder, AMissingShardIsNamed) {
  folder_.write("1.safetensors", tensor_file("a"));
  folder_.write("model.safetensors.index.json",
                R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  const Status status = SafetensorsFolder::open(folder_.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(status), HasSubstr("index.json"));
  EXPECT_THAT(message_of(status), HasSubstr(folder_.file("2.safetensors")));
}

TEST_F(Folder, ATensorThatIsNotWhereTheIndexSaysIsNamed) {
  folder_.write("1.safetensors", tensor_file("a"));
  folder_.write("model.safetensors.index.json",
                R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors"}})");
  const Status status = SafetensorsFolder::open(folder_.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(status), HasSubstr("tensor \"b\" is said to be in \"1.safetensors\""));
}

TEST_F(Folder, AFolderWithoutWeightsSaysWhatItLacks) {
  const Status status = SafetensorsFolder::open(folder_.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(message_of(status), HasSubstr("model.safetensors.index.json"));
}

TEST_F(Folder, ABrokenFileIsNotMistakenForAnAbsentOne) {
  folder_.write("model.safetensors", "short");
  folder_.write("model.safetensors.index.json", R"({"weight_map":{}})");
  const Status status = SafetensorsFolder::open(folder_.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(status), HasSubstr(folder_.file("model.safetensors")));
}

}  // namespace
}  // namespace volley::model
