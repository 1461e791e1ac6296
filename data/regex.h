// PCRE2 with Unicode, compiled for this machine where it can be.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/utf8.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace sinklora {

class Regex {
 public:
  // `pattern` is in PCRE2's own syntax. Throws Error(input) naming `source` when it does not compile or
  // matches the empty text.
  Regex(std::string_view pattern, std::string source);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // The memory of one search; one for each thread.
  class Matcher {
   public:
    explicit Matcher(const Regex& regex);
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;
    // The first match at or after `from`. `text` must be well-formed UTF-8. Throws Error(input) when the
    // pattern needs more steps than a sane one does.
    std::optional<TextRange> find(std::string_view text, size_t from);

   private:
    const Regex& regex_;
    pcre2_real_match_data_8* match_ = nullptr;
    pcre2_real_match_context_8* context_ = nullptr;
    pcre2_real_jit_stack_8* stack_ = nullptr;
  };

 private:
  pcre2_real_code_8* code_ = nullptr;
  std::string source_;
};

// The regular expressions of tokenizer.json are Oniguruma's. Rewrites the part of that language which means
// the same in PCRE2 (literals, classes, \s \S \d \p{..} of general categories, groups, look-around,
// quantifiers) and refuses the rest, naming `source`.
std::string oniguruma_to_pcre2(std::string_view pattern, const std::string& source);

}  // namespace sinklora
