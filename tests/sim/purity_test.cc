// Goal: the pure modules stay pure: no clock, thread, environment, hidden randomness or unordered
// iteration, so that the simulation means what production does. Method: their sources are read,
// comments and strings taken out, and searched for the names that matter.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

/// The source with comments and literals blanked out; lines stay.
std::string code_of(const std::string& source) {
  enum class In { kCode, kLine, kBlock, kString, kChar } in = In::kCode;
  std::string code;
  for (size_t i = 0; i < source.size(); ++i) {
    const char c = source[i];
    const char next = i + 1 < source.size() ? source[i + 1] : '\0';
    // An apostrophe between digits groups them: 1'000.
    const bool groups = i > 0 && std::isalnum(static_cast<unsigned char>(source[i - 1])) != 0;
    switch (in) {
      case In::kCode:
        if (c == '/' && next == '/') in = In::kLine;
        if (c == '/' && next == '*') in = In::kBlock;
        if (c == '"') in = In::kString;
        if (c == '\'' && !groups) in = In::kChar;
        code += in == In::kCode ? c : ' ';
        continue;
      case In::kLine:
        if (c == '\n') in = In::kCode;
        break;
      case In::kBlock:
        if (c == '/' && source[i - 1] == '*') in = In::kCode;
        break;
      case In::kString:
      case In::kChar:
        if (c == '\\') {
          ++i;
        } else if (c == (in == In::kString ? '"' : '\'')) {
          in = In::kCode;
        }
        break;
    }
    code += c == '\n' ? '\n' : ' ';
  }
  return code;
}

const char* const kForbidden[] = {
    R"(\bunordered_)",
    R"(\bstd::chrono\b)",
    R"(\bstd::(j?thread|async|mutex|atomic)\b)",
    R"(\brandom_device\b)",
    R"(\b(s|d)?rand\d*\()",
    R"(\bgetenv\b)",
    R"(\b(clock_get)?time\()",
    R"(\bmonotonic_now\b)",
    R"(\brandom_u64\b)",
    R"(\bthread_local\b)",
    R"(\b(sleep|usleep|nanosleep)\()",
};

std::vector<std::string> findings(const std::string& name, const std::string& source) {
  std::vector<std::string> found;
  std::istringstream lines(code_of(source));
  size_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    for (const char* pattern : kForbidden) {
      std::smatch match;
      if (std::regex_search(line, match, std::regex(pattern))) {
        found.push_back(name + ":" + std::to_string(number) + ": " + match.str());
      }
    }
  }
  return found;
}

TEST(Purity, PureModulesNameNothingImpure) {
  size_t files = 0;
  for (const char* folder :
       {"src/protocol", "src/cache", "src/scheduler", "include/volley/protocol",
        "include/volley/cache", "include/volley/scheduler"}) {
    const std::filesystem::path path = std::filesystem::path(VOLLEY_SOURCE_DIR) / folder;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      const auto extension = entry.path().extension();
      if (extension != ".cc" && extension != ".h") continue;
      std::ifstream file(entry.path());
      const std::string source((std::istreambuf_iterator<char>(file)),
                               std::istreambuf_iterator<char>());
      ASSERT_FALSE(source.empty()) << entry.path();
      ++files;
      for (const std::string& finding : findings(entry.path().string(), source))
        ADD_FAILURE() << finding;
    }
  }
  EXPECT_GE(files, 12u);
}

TEST(Purity, FindsWhatItLooksFor) {
  EXPECT_EQ(findings("x", "std::unordered_map<int, int> m;\nreturn rand();").size(), 2u);
  EXPECT_EQ(findings("x", "auto t = std::chrono::steady_clock::now();").size(), 1u);
  EXPECT_EQ(findings("x", "auto t = time(nullptr); std::thread a; getenv(\"X\");").size(), 3u);
  // Comments, strings and longer names are no use of it; digits are grouped by apostrophes.
  EXPECT_TRUE(
      findings("x", "// std::thread\n/* rand() */ f(\"getenv\"); step_time(1'000); operand();")
          .empty());
  EXPECT_EQ(findings("x", "f('\"'); rand();").size(), 1u);
}

}  // namespace
