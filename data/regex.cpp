#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/regex.h"

#include <pcre2.h>

#include <memory>
#include <new>
#include <utility>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr size_t kMaxPatternBytes = 4096;
constexpr uint32_t kMaxSteps =
    20'000'000;  // backtracking of one search; the split rules in use need one a byte
constexpr uint32_t kMaxHeapKiB = 65536;
constexpr size_t kMaxJitStackBytes = size_t{1} << 22;

std::string message_of(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof text) < 0) return fmt::format("PCRE2 error {}", code);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

Regex::Regex(std::string_view pattern, std::string source) : source_(std::move(source)) {
  if (pattern.size() > kMaxPatternBytes)
    fail_input("{}: a regular expression of {} bytes; at most {} are read", source_, pattern.size(),
               kMaxPatternBytes);
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                        &error, &offset, context.get());
  if (!code_)
    fail_input("{}: regular expression \"{}\", at byte {}: {}", source_, pattern, offset, message_of(error));
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code_, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty) {
    pcre2_code_free(code_);
    fail_input("{}: regular expression \"{}\" matches the empty text, so it splits nothing", source_,
               pattern);
  }
  pcre2_jit_compile(code_,
                    PCRE2_JIT_COMPLETE);  // where it fails, pcre2_match() interprets the pattern instead
}

Regex::~Regex() { pcre2_code_free(code_); }

Regex::Matcher::Matcher(const Regex& regex) : regex_(regex) {
  match_ = pcre2_match_data_create_from_pattern(regex.code_, nullptr);
  context_ = pcre2_match_context_create(nullptr);
  if (!match_ || !context_) throw std::bad_alloc();
  pcre2_set_match_limit(context_, kMaxSteps);
  pcre2_set_heap_limit(context_, kMaxHeapKiB);
  // Null where there is no just-in-time compiler: assigning it then changes nothing.
  stack_ = pcre2_jit_stack_create(size_t{1} << 15, kMaxJitStackBytes, nullptr);
  pcre2_jit_stack_assign(context_, nullptr, stack_);
}

Regex::Matcher::~Matcher() {
  pcre2_jit_stack_free(stack_);
  pcre2_match_context_free(context_);
  pcre2_match_data_free(match_);
}

std::optional<TextRange> Regex::Matcher::find(std::string_view text, size_t from) {
  // Without NO_UTF_CHECK every search would read the whole text again.
  const int found = pcre2_match(regex_.code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, match_, context_);
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0)
    fail_input("{}: the split regular expression gave up at byte {} of a text: {}", regex_.source_, from,
               message_of(found));
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match_);
  return TextRange{ends[0], ends[1]};
}

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Reads an Oniguruma pattern from the left and writes its PCRE2 form.
class Translation {
 public:
  Translation(std::string_view pattern, const std::string& source) : pattern_(pattern), source_(source) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\')
        escape();
      else if (in_class_)
        class_member(c);
      else
        outside_class(c);
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const char* what) const {
    fail_input("{}: regular expression \"{}\", at byte {}: {} is not supported", source_, pattern_, at_,
               what);
  }
  char peek(size_t ahead) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  void copy(size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }

  void escape() {
    const char c = peek(1);
    if (c == 's' || c == 'S' || c == 'd') {
      // PCRE2's own \s holds U+180E, which is no white space to Unicode or to Oniguruma.
      out_ += c == 's' ? "\\p{White_Space}" : c == 'S' ? "\\P{White_Space}" : "\\p{Nd}";
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      // General categories only: scripts mean different sets of characters in the two libraries.
      const bool two = is_letter(peek(4));
      if (peek(2) != '{' || !is_letter(peek(3)) || peek(two ? 5 : 4) != '}') refuse("this property");
      copy(two ? 6 : 5);
    } else if (c == 'r' || c == 'n' || c == 't' || c == 'f') {
      copy(2);
    } else if (c == '\0' || is_digit(c) || is_letter(c) || static_cast<unsigned char>(c) >= 0x80) {
      refuse("this escape");
    } else {
      copy(2);  // an escaped punctuation mark stands for itself
    }
  }

  void class_member(char c) {
    if (c == '[') refuse("a class in a class");
    if (c == '&' && peek(1) == '&') refuse("an intersection of classes");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void outside_class(char c) {
    if (c == '[') {
      copy(peek(1) == '^' ? 2 : 1);
      if (peek(0) == ']') refuse("an empty class");
      in_class_ = true;
    } else if (c == '(') {
      group();
    } else if (c == '{') {
      counted_repeat();
    } else if (c == '^' || c == '$' || c == '.') {
      refuse("an anchor or a dot");
    } else {
      copy(1);
    }
  }

  void group() {
    if (peek(1) == '*') refuse("a verb");
    if (peek(1) != '?') return copy(1);
    for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?i:"})
      if (pattern_.substr(at_).starts_with(opening)) return copy(opening.size());
    refuse("this kind of group");
  }

  void counted_repeat() {
    size_t length = 1;
    while (is_digit(peek(length))) ++length;
    const bool counted = length > 1;
    if (peek(length) == ',') {
      ++length;
      while (is_digit(peek(length))) ++length;
    }
    if (!counted || peek(length) != '}') refuse("this brace");
    if (peek(length + 1) == '+') refuse("a counted repeat with + after it");
    copy(length + 1);
  }

  std::string_view pattern_;
  const std::string& source_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

std::string oniguruma_to_pcre2(std::string_view pattern, const std::string& source) {
  return Translation(pattern, source).run();
}

}  // namespace sinklora
