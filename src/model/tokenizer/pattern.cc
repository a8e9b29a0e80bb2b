// Regular expressions of tokenizer files: translation from Oniguruma's (Ruby) syntax and matching.

#define PCRE2_CODE_UNIT_WIDTH 8
#include "pattern.h"

#include <pcre2.h>

#include <cctype>

#include "unicode.h"
#include "volley/base/check.h"

namespace volley::model {
namespace {

// PCRE2's default; real tokenizers stay orders of magnitude below, a pattern that explodes stops
// here.
constexpr uint32_t kMatchStepsMax = 10'000'000;
constexpr uint32_t kHeapKibMax = 64 * 1024;
constexpr size_t kPatternBytesMax = 64 * 1024;
constexpr uint32_t kOptions =
    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;

constexpr std::string_view kWordClass = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

template <auto Free>
struct PcreDelete {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using CodeHandle = std::unique_ptr<pcre2_code, PcreDelete<pcre2_code_free>>;
using MatchDataHandle = std::unique_ptr<pcre2_match_data, PcreDelete<pcre2_match_data_free>>;
using MatchContextHandle =
    std::unique_ptr<pcre2_match_context, PcreDelete<pcre2_match_context_free>>;
using CompileContextHandle =
    std::unique_ptr<pcre2_compile_context, PcreDelete<pcre2_compile_context_free>>;

std::string error_text(int error) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(error, buffer, sizeof(buffer)) < 0)
    return fmt::format("error {}", error);
  return reinterpret_cast<const char*>(buffer);
}

Result<CodeHandle> compile_code(std::string_view pattern) {
  CompileContextHandle context(pcre2_compile_context_create(nullptr));
  VOLLEY_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  CodeHandle code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                kOptions, &error, &offset, context.get()));
  if (code == nullptr) {
    return invalid_argument("regular expression '{}': {} at offset {}", pattern, error_text(error),
                            offset);
  }
  return code;
}

// One pass over the pattern. `at_` is the next byte to read; everything before it is in `out_`.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    while (at_ < pattern_.size()) {
      VOLLEY_RETURN_IF_ERROR(in_class_ ? class_item() : item());
    }
    return std::move(out_);
  }

 private:
  char peek(size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  void copy(size_t count = 1) {
    out_ += pattern_.substr(at_, count);
    at_ = std::min(pattern_.size(), at_ + count);
  }
  void replace(size_t count, std::string_view with) {
    out_ += with;
    at_ += count;
  }
  Status refuse(std::string_view what) const {
    return invalid_argument("regular expression '{}': {} at offset {} is not supported", pattern_,
                            what, at_);
  }

  Status item() {
    switch (peek()) {
      case '\\':
        return escape();
      case '[':
        in_class_ = true;
        copy();
        if (peek() == '^') copy();
        if (peek() == ']') copy();  // First in a class, it is a literal.
        return ok_status();
      case '(':
        return group();
      case '{':
        return interval();
      default:
        copy();
        return ok_status();
    }
  }

  Status class_item() {
    if (peek() == '\\') return escape();
    if (peek() == '&' && peek(1) == '&') return refuse("the class intersection '&&'");
    if (peek() == '[') {
      const size_t end = pattern_.find(":]", at_);
      if (peek(1) != ':' || end == std::string_view::npos) return refuse("a class inside a class");
      copy(end + 2 - at_);
      return ok_status();
    }
    if (peek() == ']') in_class_ = false;
    copy();
    return ok_status();
  }

  // `(?m)` lets the dot match line ends in Ruby, and something else in PCRE2.
  Status group() {
    size_t ahead = 2;
    bool has_m = false;
    if (peek(1) == '?') {
      while (std::isalpha(static_cast<unsigned char>(peek(ahead))) || peek(ahead) == '-') {
        has_m = has_m || peek(ahead) == 'm';
        ++ahead;
      }
      if (has_m && (peek(ahead) == ':' || peek(ahead) == ')')) return refuse("the option (?m)");
    }
    if (peek(1) == '*') return refuse("a verb '(*'");
    copy();
    return ok_status();
  }

  Status interval() {
    size_t ahead = 1;
    while (std::isdigit(static_cast<unsigned char>(peek(ahead))) || peek(ahead) == ',') ++ahead;
    if (peek(ahead) == '}' && ahead > 1) {
      // Ruby reads it as a repeated repetition, PCRE2 as a possessive one.
      if (peek(ahead + 1) == '+') return refuse("'{n,m}+'");
      if (peek(1) == ',') {
        replace(1, "{0");
        return ok_status();
      }
    }
    copy();
    return ok_status();
  }

  Status property() {
    const size_t end = pattern_.find('}', at_);
    if (peek(2) != '{' || end == std::string_view::npos) return refuse("a property without braces");
    std::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    const bool negated = !name.empty() && name.front() == '^';
    if (negated) name.remove_prefix(1);
    // A bare script name means the script to Oniguruma, and its extensions to PCRE2.
    const std::string script = fmt::format("script:{}", name);
    const bool is_script = name.size() > 2 && compile_code(fmt::format("\\p{{{}}}", script)).ok();
    out_ += fmt::format("\\{}{{{}{}}}", peek(1), negated ? "^" : "",
                        is_script ? script : std::string(name));
    at_ = end + 1;
    return ok_status();
  }

  Status escape() {
    const char letter = peek(1);
    const auto in_brackets = [&](std::string_view members) {
      replace(2, in_class_ ? std::string(members) : fmt::format("[{}]", members));
      return ok_status();
    };
    if (!std::isalpha(static_cast<unsigned char>(letter))) {
      copy(2);
      return ok_status();
    }
    switch (letter) {
      case 's':
        replace(2, R"(\p{White_Space})");
        return ok_status();
      case 'S':
        replace(2, R"(\P{White_Space})");
        return ok_status();
      case 'w':
        return in_brackets(kWordClass);
      case 'h':
        return in_brackets("0-9a-fA-F");
      case 'W':
      case 'H':
        if (in_class_) return refuse("'\\W' or '\\H' in a class");
        replace(2, fmt::format("[^{}]", letter == 'W' ? kWordClass : "0-9a-fA-F"));
        return ok_status();
      case 'v':
        replace(2, "\\x0b");
        return ok_status();
      case 'b':
        if (in_class_) break;
        replace(2, fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", kWordClass));
        return ok_status();
      case 'B':
        if (in_class_) break;
        replace(2, fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", kWordClass));
        return ok_status();
      case 'u': {
        const std::string_view digits = pattern_.substr(at_ + 2, 4);
        if (digits.size() != 4 ||
            digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos) {
          return refuse("'\\u' without four digits");
        }
        replace(6, fmt::format("\\x{{{}}}", digits));
        return ok_status();
      }
      case 'p':
      case 'P':
        return property();
      case 'x':
        if (peek(2) != '{' && peek(2) >= '8') return refuse("a byte above 7f");
        break;
      case 'd':
      case 'D':
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
      case 'A':
      case 'z':
      case 'Z':
      case 'k':
        break;
      default:
        return refuse(fmt::format("'\\{}'", letter));
    }
    copy(2);
    return ok_status();
  }

  std::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

struct Regex::Code {
  CodeHandle code;
  MatchContextHandle context;
};

void Regex::CodeDelete::operator()(Code* code) const {
  delete code;
}

Result<std::string> translate_pattern(std::string_view pattern) {
  return Translator(pattern).run();
}

Result<Regex> Regex::compile(const std::string& pattern) {
  if (pattern.size() > kPatternBytesMax) {
    return invalid_argument("a regular expression of {} bytes; at most {} are supported",
                            pattern.size(), kPatternBytesMax);
  }
  VOLLEY_ASSIGN_OR_RETURN(const std::string translated, translate_pattern(pattern));
  std::unique_ptr<Code, CodeDelete> code(new Code);
  auto compiled = compile_code(translated);
  if (!compiled.ok()) return annotate(compiled.status(), fmt::format("from '{}'", pattern));
  code->code = std::move(compiled).value();
  // Without executable memory there is no JIT, and the interpreter gives the same matches.
  pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  code->context.reset(pcre2_match_context_create(nullptr));
  VOLLEY_CHECK(code->context != nullptr);
  pcre2_set_match_limit(code->context.get(), kMatchStepsMax);
  pcre2_set_heap_limit(code->context.get(), kHeapKibMax);
  return Regex(std::move(code));
}

Status Regex::find_all(std::string_view text, std::vector<ByteRange>& matches) const {
  MatchDataHandle data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr));
  VOLLEY_CHECK(data != nullptr);
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto match_at = [&](size_t start, uint32_t options) {
    return pcre2_match(code_->code.get(), subject, text.size(), start, options | PCRE2_NO_UTF_CHECK,
                       data.get(), code_->context.get());
  };
  size_t start = 0;
  size_t last_end = std::string_view::npos;
  while (start <= text.size()) {
    int count = match_at(start, 0);
    // The JIT's stack is small and fixed; the interpreter has the heap limit instead.
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = match_at(start, PCRE2_NO_JIT);
    if (count == PCRE2_ERROR_NOMATCH) return ok_status();
    if (count < 0) {
      return resource_exhausted("a pattern of the tokenizer gave up at byte {} of {}: {}", start,
                                text.size(), error_text(count));
    }
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(data.get());
    const ByteRange match{ovector[0], ovector[1]};
    if (match.begin < start || match.end < match.begin) {
      return internal_error("a pattern of the tokenizer matched backwards at byte {}", start);
    }
    if (match.begin == match.end && match.end == last_end) {
      if (start == text.size()) return ok_status();
      start += character_at(text, start).bytes;
      continue;
    }
    matches.push_back(match);
    start = last_end = match.end;
  }
  return ok_status();
}

Status Pattern::find_all(std::string_view text, std::vector<ByteRange>& matches) const {
  if (regex_ != nullptr) return regex_->find_all(text, matches);
  for (size_t begin = text.find(literal_); begin != std::string_view::npos;
       begin = text.find(literal_, begin + literal_.size())) {
    matches.push_back({begin, begin + literal_.size()});
  }
  return ok_status();
}

}  // namespace volley::model
