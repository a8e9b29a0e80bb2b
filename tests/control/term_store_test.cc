// Goal: terms only grow, over restarts, lost directories and leftovers; a damaged file is an error
// that names it. Method: a temporary directory, with the file written by hand where it is to be
// damaged.

#include "volley/control/term_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace volley::control {
namespace {

class TermStoreTest : public ::testing::Test {
 protected:
  TermStoreTest() {
    std::string path = (std::filesystem::temp_directory_path() / "volley-term-XXXXXX").string();
    dir_ = mkdtemp(path.data());
  }
  ~TermStoreTest() override { std::filesystem::remove_all(dir_); }
  void write(const std::string& text) { std::ofstream(dir_ + "/term") << text; }

  std::string dir_;
};

TEST_F(TermStoreTest, EachStartTakesTheNextTerm) {
  const auto first = take_next_term(dir_ + "/new/folder");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_GT(*first, 1'700'000'000u);
  EXPECT_EQ(*take_next_term(dir_ + "/new/folder"), *first + 1);
  EXPECT_EQ(*take_next_term(dir_ + "/new/folder"), *first + 2);
}

TEST_F(TermStoreTest, AHalfWrittenSuccessorDoesNotCount) {
  write("41\n");
  std::ofstream(dir_ + "/term.new") << "9";
  EXPECT_EQ(*take_next_term(dir_), 42u);
}

TEST_F(TermStoreTest, ADamagedFileIsNamedWithItsContent) {
  for (const std::string text :
       {"", "x\n", "12", "12 \n", "-1\n", "4294967295\n", "4294967296\n"}) {
    SCOPED_TRACE(text);
    write(text);
    const auto term = take_next_term(dir_);
    EXPECT_EQ(term.status().code(), StatusCode::kDataLoss);
    EXPECT_THAT(message_of(term.status()), ::testing::HasSubstr(dir_ + "/term: '" + text + "'"));
  }
}

TEST_F(TermStoreTest, AFileInPlaceOfTheDirectoryIsAnError) {
  write("1\n");
  EXPECT_EQ(take_next_term(dir_ + "/term").status().code(), StatusCode::kInvalidArgument);
}

TEST(TermStore, WithoutADirectoryTheClockGivesTheTerm) {
  EXPECT_GT(*take_next_term(""), 1'700'000'000u);
}

}  // namespace
}  // namespace volley::control
