#include "eval/long_chat.h"

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "base/error.h"
#include "data/draws.h"
#include "data/synthetic_corpus.h"
#include "data/word_pairs.h"

namespace sinklora {
namespace {

using std::string_view;

constexpr string_view kLinesTask =
    "Below is a record of lines to remember. Each line begins with its name and ends with its "
    "REGISTER_CONTENT, a number. At the end of the record you will be asked for the number of one line.\n\n";
constexpr int64_t kHighestNumber = 50000;
constexpr int64_t kLongestLine = 60, kLongestQuestion = 90;

constexpr string_view kTopicsTask =
    "Below is a record of conversations between a USER and an ASSISTANT, each about a topic of its own. At "
    "the "
    "end of the record you will be asked about the topics.\n\n";
constexpr string_view kTopicsQuestion =
    "The record of conversations ends here. Which topic did USER and ASSISTANT talk about first?\n";
constexpr std::array<string_view, 16> kAspects = {
    "the history of",     "the future of",     "the cost of",      "the beauty of",
    "the care of",        "the science of",    "the invention of", "the dangers of",
    "the economy of",     "famous stories of", "the origin of",    "the art of",
    "common errors with", "the teaching of",   "the laws of",      "the design of"};
constexpr std::array<string_view, 32> kThings = {
    "lighthouses", "bicycles",  "glaciers",     "violins",    "honey",   "volcanoes", "libraries",
    "windmills",   "paper",     "chess",        "telescopes", "gardens", "bridges",   "clocks",
    "markets",     "maps",      "railways",     "perfumes",   "puppets", "kites",     "tea",
    "canals",      "mushrooms", "dictionaries", "coins",      "carpets", "fountains", "submarines",
    "cheese",      "fireworks", "mirrors",      "whales"};
constexpr int64_t kLongestConversation = 1700;
constexpr int64_t kTopics = std::ssize(kAspects) * std::ssize(kThings);
constexpr std::array<string_view, 12> kUserLines = {"That is interesting. Can you tell me more about it?",
                                                    "I did not know that. Why is it so?",
                                                    "What do people most often get wrong about this?",
                                                    "Where would you begin, if you were new to all this?",
                                                    "My neighbour says the opposite. Who is right?",
                                                    "Has this changed much in the last hundred years?",
                                                    "Could you give me an example that is easy to remember?",
                                                    "How do experts find such things out?",
                                                    "Is there a book on this that you would recommend?",
                                                    "What surprised you most when you learned about it?",
                                                    "Does the same hold in other parts of the world?",
                                                    "I see. And what happens when it goes wrong?"};
constexpr std::array<string_view, 16> kAssistantLines = {
    "Certainly. There are two schools of thought here, and both have good arguments on their side.",
    "It depends on whom you ask. The older sources are short on details, but they agree on the main points.",
    "A good way to see it is to compare the cheapest example with the most expensive one.",
    "Most of what we know comes from letters and bills that were kept by accident in an attic.",
    "In short, patience matters more than talent, and good tools matter more than both.",
    "There was a time when nobody would have asked, because everyone took the answer for granted.",
    "The numbers are smaller than most people think, yet their effect adds up over the years.",
    "If you want to try it yourself, begin with something small and write down what you see.",
    "That question was settled only recently, after a long and rather bitter debate.",
    "One should be careful with such claims, since the measurements differ from place to place.",
    "The best known case ended happily, although it took three attempts and a change of weather.",
    "I would start with the basics, and come back to the exceptions once the rule is clear.",
    "You would need three things: a quiet room, a sharp eye, and somebody who has done it before.",
    "Curiously, the two ideas were born in the same year, in towns that had never heard of each other.",
    "The short answer is yes. The long answer fills a shelf, and it is still being written.",
    "People disagree on the reasons, but hardly anyone doubts the result any more."};

std::string conversation(Draws& draws, int64_t topic) {
  const std::string name = fmt::format("{} {}", kAspects[static_cast<size_t>(topic / std::ssize(kThings))],
                                       kThings[static_cast<size_t>(topic % std::ssize(kThings))]);
  std::string text = fmt::format("USER: I would like to talk about {}.\nASSISTANT: Sure, gladly. {}\n", name,
                                 draws.one_of(kAssistantLines));
  for (int64_t turn = 2 + draws.below(3); turn > 0; --turn)
    text += fmt::format("USER: {}\nASSISTANT: {} {}\n", draws.one_of(kUserLines),
                        draws.one_of(kAssistantLines), draws.one_of(kAssistantLines));
  return text + "\n";
}

LongQuestion write_lines(uint64_t seed, int64_t bytes, int64_t trial, const std::optional<double>& depth) {
  Draws draws(seed, "retrieval lines", static_cast<uint64_t>(trial));
  const double drawn = draws.uniform();
  const Permutation names(kWordPairs, seed, static_cast<uint64_t>(trial));
  std::vector<std::string> leads, values;
  int64_t size = std::ssize(kLinesTask);
  const auto question = [&](const std::string& lead) {
    const std::string name = lead.substr(0, lead.find(':'));
    return fmt::format("\nThe record is over. What is the REGISTER_CONTENT in {}?\n", name);
  };
  while (std::ssize(leads) < kWordPairs) {
    std::string lead = fmt::format("line {}: REGISTER_CONTENT is",
                                   word_pair(static_cast<int64_t>(names(leads.size())), '-'));
    std::string value = fmt::format(" <{}>", 1 + draws.below(kHighestNumber));
    size += std::ssize(lead) + std::ssize(value) + 1;
    if (size + kLongestQuestion > bytes) break;
    leads.push_back(std::move(lead)), values.push_back(std::move(value));
  }
  const auto last = static_cast<double>(leads.size() - 1);
  const auto asked = static_cast<size_t>(depth ? *depth * last + 0.5 : drawn * (last + 1));
  LongQuestion text{std::string(kLinesTask), leads[asked], values[asked], ""};
  for (size_t i = 0; i < leads.size(); ++i) text.instruction += leads[i] + values[i] + "\n";
  text.instruction += question(leads[asked]);
  return text;
}

LongQuestion write_topics(uint64_t seed, int64_t bytes, int64_t trial) {
  Draws draws(seed, "retrieval topics", static_cast<uint64_t>(trial));
  const Permutation topics(kTopics, seed, static_cast<uint64_t>(trial));
  LongQuestion text{std::string(kTopicsTask), "The first topic was", "", ""};
  const int64_t limit = bytes - std::ssize(kTopicsQuestion);
  for (uint64_t i = 0; i < static_cast<uint64_t>(kTopics); ++i) {
    const std::string next = conversation(draws, static_cast<int64_t>(topics(i)));
    if (std::ssize(text.instruction) + std::ssize(next) > limit) break;
    if (i == 0) {
      constexpr string_view kBefore = "talk about";
      const size_t begin = next.find(kBefore) + kBefore.size();
      text.value = next.substr(begin, next.find('.') - begin);
    }
    text.instruction += next;
  }
  text.instruction += kTopicsQuestion;
  return text;
}

}  // namespace

RetrievalWriter lines_writer(uint64_t seed) {
  return {std::ssize(kLinesTask) + kLongestLine + kLongestQuestion,
          [seed](int64_t bytes, int64_t trial, const std::optional<double>& depth) {
            return write_lines(seed, bytes, trial, depth);
          }};
}

RetrievalWriter topics_writer(uint64_t seed) {
  return {std::ssize(kTopicsTask) + kLongestConversation + std::ssize(kTopicsQuestion),
          [seed](int64_t bytes, int64_t trial, const std::optional<double>&) {
            return write_topics(seed, bytes, trial);
          }};
}

RetrievalWriter book_questions_writer(BookQuestions questions) {
  const int64_t smallest = questions.smallest();
  return {smallest, [questions = std::make_shared<BookQuestions>(std::move(questions))](
                        int64_t bytes, int64_t trial, const std::optional<double>& depth) {
            return questions->make(static_cast<uint64_t>(trial), bytes, depth);
          }};
}

RetrievalWriter synthetic_questions_writer(uint64_t seed) {
  constexpr int64_t kQuestion = 48;  // bytes
  return {250, [seed](int64_t bytes, int64_t trial, const std::optional<double>& depth) {
            const CorpusOptions options{seed, bytes - kQuestion, bytes - kQuestion};
            return synthetic_question(options, static_cast<uint64_t>(trial), depth);
          }};
}

RetrievalTask worded_task(const Tokenizer& tokenizer, InstructionTemplate form, RetrievalWriter writer) {
  const auto encode = [&tokenizer, form](const LongQuestion& text, const std::string& answer) {
    const Segment parts[] = {{instruction_prompt(form, text.instruction), false, false},
                             {answer, false, true}};
    std::vector<int32_t> ids = tokenizer.encode_segments(parts).ids;
    if (tokenizer.add_bos) ids.insert(ids.begin(), tokenizer.bos_id);
    return ids;
  };
  return [encode, writer = std::move(writer)](int64_t tokens, int64_t trial,
                                              const std::optional<double>& depth) {
    const auto prompt_of = [&](int64_t bytes) {
      const LongQuestion text = writer.write(bytes, trial, depth);
      const std::vector<int32_t> lead = encode(text, text.lead), whole = encode(text, text.lead + text.value);
      // A token may reach over the border between lead and value: it is part of the answer then.
      const auto border = std::mismatch(lead.begin(), lead.end(), whole.begin(), whole.end()).second;
      return RetrievalPrompt{{whole.begin(), border}, {border, whole.end()}};
    };
    const auto fits = [&](int64_t bytes) {
      const RetrievalPrompt prompt = prompt_of(bytes);
      return std::ssize(prompt.ids) + std::ssize(prompt.answer) <= tokens;
    };
    constexpr int64_t kMostBytesPerToken = 16, kCloseEnough = 16;
    int64_t low = writer.smallest, high = tokens * kMostBytesPerToken;
    if (low > high || !fits(low)) fail_usage("{} tokens have no room for the shortest such prompt", tokens);
    while (high - low > kCloseEnough) {
      const int64_t middle = low + (high - low) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return prompt_of(low);
  };
}

}  // namespace sinklora
