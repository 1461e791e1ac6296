#include "eval/passkey.h"

#include <algorithm>
#include <random>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr std::string_view kTask =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will "
    "quiz "
    "you about the important information there.";
constexpr std::string_view kFiller =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
constexpr int64_t kFillerRepeats = 5000;
constexpr int64_t kFillerCharacters = kFillerRepeats * (static_cast<int64_t>(kFiller.size()) + 1) - 1;
constexpr std::string_view kQuestion = "What is the pass key? The pass key is";

// numpy's legacy randint(low, high): 32 bits of the Mersenne twister under the smallest mask that holds the
// range, drawn again until they are inside.
int64_t numpy_randint(std::mt19937& random, int64_t low, int64_t high) {
  const auto range = static_cast<uint32_t>(high - 1 - low);
  if (range == 0) return low;  // numpy draws nothing
  uint32_t mask = range;
  for (const int shift : {1, 2, 4, 8, 16}) mask |= mask >> shift;
  while (true)
    if (const uint32_t value = static_cast<uint32_t>(random()) & mask; value <= range) return low + value;
}

// The first characters of the sentences over and over, with a space between them.
std::string filler(int64_t characters) {
  std::string text;
  text.reserve(static_cast<size_t>(characters) + kFiller.size() + 1);
  while (static_cast<int64_t>(text.size()) < characters) (text += kFiller) += ' ';
  text.resize(static_cast<size_t>(characters));
  return text;
}

}  // namespace

int64_t passkey_filler(int64_t tokens) {
  return static_cast<int64_t>(3.75 * static_cast<double>(tokens)) / 1024 * 1024;
}

PasskeyPrompt passkey_prompt(int64_t filler_characters, uint32_t seed, std::optional<double> depth) {
  if (filler_characters < 1 || filler_characters > kFillerCharacters)
    fail_usage(
        "passkey: a prompt has 1024 to {} characters of filler, which is 274 to {} tokens; of {} characters "
        "there "
        "is none: choose --interval and --max-tokens inside",
        kFillerCharacters, kFillerCharacters * 100 / 375, filler_characters);
  std::mt19937 random(seed);
  int64_t before = numpy_randint(random, 0, filler_characters);
  const int64_t key = numpy_randint(random, 1, 50000);
  if (depth) before = static_cast<int64_t>(*depth * static_cast<double>(filler_characters));
  return {fmt::format("{}\n{}\nThe pass key is {}. Remember it. {} is the pass key.\n{}\n{}", kTask,
                      filler(before), key, key, filler(filler_characters - before), kQuestion),
          key};
}

// LongLoRA tokenizes the number alone, which is the same for LLaMA-2: sentencepiece puts the space in front.
std::vector<int32_t> passkey_answer(const Tokenizer& tokenizer, int64_t key) {
  const std::vector<int32_t> question = tokenizer.encode(kQuestion);
  std::vector<int32_t> ids = tokenizer.encode(fmt::format("{} {}", kQuestion, key));
  if (question.size() >= ids.size() || !std::equal(question.begin(), question.end(), ids.begin()))
    return tokenizer.encode(std::to_string(key));
  ids.erase(ids.begin(), ids.begin() + static_cast<int64_t>(question.size()));
  return ids;
}

RetrievalTask passkey_task(const Tokenizer& tokenizer) {
  return [&tokenizer](int64_t tokens, int64_t trial, const std::optional<double>& depth) {
    const auto [text, key] = passkey_prompt(passkey_filler(tokens), static_cast<uint32_t>(trial), depth);
    return RetrievalPrompt{tokenizer.encode_prompt(text), passkey_answer(tokenizer, key)};
  };
}

}  // namespace sinklora
