#include "eval/passkey.h"

#include <algorithm>
#include <random>

#include "base/error.h"
#include "base/files.h"
#include "base/progress.h"
#include "infer/sampling.h"

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

std::vector<std::optional<double>> depths_of(const PasskeyOptions& options) {
  if (options.depths == 0) return {std::nullopt};
  std::vector<std::optional<double>> depths;
  for (int64_t i = 0; i < options.depths; ++i)
    depths.push_back(options.depths == 1 ? 0.5
                                         : static_cast<double>(i) / static_cast<double>(options.depths - 1));
  return depths;
}

std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  if (tokenizer.add_bos) ids.insert(ids.begin(), tokenizer.bos_id);
  return ids;
}

bool answers(Session& session, std::span<const int32_t> prompt, std::span<const int32_t> answer) {
  session.reset();
  std::vector<float> logits = session.extend(prompt);
  Sampler greedy({});
  for (size_t i = 0;; ++i) {
    if (greedy.next(logits) != answer[i]) return false;
    if (i + 1 == answer.size()) return true;
    logits = session.extend(answer.subspan(i, 1));
  }
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

int64_t passkey_context(const Tokenizer& tokenizer, const PasskeyOptions& options) {
  int64_t longest = 0;
  const int64_t characters = passkey_filler(options.max_tokens / options.interval * options.interval);
  for (const auto& depth : depths_of(options))
    for (int64_t trial = 0; trial < options.trials; ++trial) {
      const auto [text, key] = passkey_prompt(characters, static_cast<uint32_t>(trial), depth);
      longest = std::max(longest, static_cast<int64_t>(prompt_ids(tokenizer, text).size() +
                                                       passkey_answer(tokenizer, key).size()));
    }
  return longest;
}

std::vector<PasskeyCell> passkey_retrieval(Session& session, const Tokenizer& tokenizer,
                                           const PasskeyOptions& options, bool show_progress) {
  const std::vector<std::optional<double>> depths = depths_of(options);
  const int64_t lengths = options.max_tokens / options.interval;
  std::optional<Progress> progress;
  if (show_progress)
    progress.emplace("passkey",
                     static_cast<double>(lengths * options.trials) * static_cast<double>(depths.size()),
                     "trials");
  std::vector<PasskeyCell> cells;
  int64_t done = 0;
  for (int64_t length = 1; length <= lengths; ++length)
    for (const auto& depth : depths) {
      PasskeyCell cell{.wanted_tokens = length * options.interval, .depth = depth, .trials = options.trials};
      for (int64_t trial = 0; trial < options.trials; ++trial) {
        const auto [text, key] =
            passkey_prompt(passkey_filler(cell.wanted_tokens), static_cast<uint32_t>(trial), depth);
        const std::vector<int32_t> prompt = prompt_ids(tokenizer, text);
        cell.correct += answers(session, prompt, passkey_answer(tokenizer, key));
        cell.tokens += static_cast<double>(prompt.size()) / static_cast<double>(options.trials);
        if (progress) progress->update(static_cast<double>(++done));
      }
      cells.push_back(cell);
    }
  return cells;
}

void write_heat_map(const std::filesystem::path& path, const std::string& title,
                    std::span<const PasskeyCell> cells) {
  constexpr int kLeft = 80, kTop = 44, kWidth = 46, kHeight = 30, kBottom = 50;
  const auto rows = std::max<int64_t>(1, std::count_if(cells.begin(), cells.end(), [&](const PasskeyCell& c) {
                                        return c.wanted_tokens == cells[0].wanted_tokens;
                                      }));
  const int64_t columns = static_cast<int64_t>(cells.size()) / rows;
  const int64_t right = kLeft + columns * kWidth, bottom = kTop + rows * kHeight;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
      "font-size=\"12\" text-anchor=\"middle\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"24\" font-size=\"15\" text-anchor=\"start\">{3}</text>\n",
      std::max<int64_t>(right + 20, 420), bottom + kBottom, kLeft, title);
  for (size_t i = 0; i < cells.size(); ++i) {
    const PasskeyCell& cell = cells[i];
    const int64_t column = static_cast<int64_t>(i) / rows, row = static_cast<int64_t>(i) % rows;
    const int64_t x = kLeft + column * kWidth, y = kTop + row * kHeight;
    svg += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"hsl({:.0f},60%,60%)\" stroke=\"white\"/>\n"
        "<text x=\"{}\" y=\"{}\">{:.0f}</text>\n",
        x, y, kWidth, kHeight, 120 * cell.accuracy(), x + kWidth / 2, y + kHeight / 2 + 4,
        100 * cell.accuracy());
    if (row == 0)
      svg +=
          fmt::format("<text x=\"{}\" y=\"{}\">{}</text>\n", x + kWidth / 2, bottom + 16, cell.wanted_tokens);
    if (column == 0)
      svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", kLeft - 6,
                         y + kHeight / 2 + 4,
                         cell.depth ? fmt::format("{:.0f} %", 100 * *cell.depth) : "random");
  }
  svg += fmt::format(
      "<text x=\"{}\" y=\"{}\">tokens</text>\n"
      "<text transform=\"translate(20,{}) rotate(-90)\">depth of the key</text>\n</svg>\n",
      (kLeft + right) / 2, bottom + 36, (kTop + bottom) / 2);
  write_text_atomically(path, svg);
}

}  // namespace sinklora
