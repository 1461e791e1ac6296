#include "data/synthetic_corpus.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/random.h"

namespace sinklora {
namespace {

using std::string_view;

// The words. A tiny byte-level model shall learn the copying and not the spelling: no two keys end in the
// same two letters, and a surname is three random syllables, so that every letter of it rewards looking back.
constexpr std::array<string_view, 24> kFirstNames = {"Anders", "Bruno", "Clara", "Doran", "Edith", "Felix",
                                                     "Greta",  "Hanna", "Ivor",  "Jonas", "Karin", "Lotte",
                                                     "Maren",  "Nils",  "Oscar", "Piet",  "Quinn", "Ronja",
                                                     "Signe",  "Tilda", "Ulric", "Wendy", "Yusuf", "Emil"};
constexpr string_view kConsonants = "bdfgklmnprstvz", kVowels = "aeiou";
constexpr int kSyllables = 3;
constexpr std::array<string_view, 12> kHorses = {"Osprey", "Falcon", "Gull",    "Swift", "Eagle",  "Plover",
                                                 "Dove",   "Finch",  "Kestrel", "Lark",  "Curlew", "Tern"};
constexpr std::array<string_view, 8> kStrangers = {"The old miller", "A young sailor", "The baker",
                                                   "Her brother",    "The teacher",    "My neighbour",
                                                   "A stranger",     "The doctor"};
constexpr std::array<string_view, 8> kWalked = {"walked", "ran",     "rode",     "went",
                                                "came",   "hurried", "returned", "drove"};
constexpr std::array<string_view, 8> kGoals = {"to the river",    "to the market",  "to the harbour",
                                               "to the church",   "up the hill",    "down the road",
                                               "over the bridge", "into the forest"};
constexpr std::array<string_view, 8> kTimes = {"at dawn",     "at noon",     "in the evening",  "in the rain",
                                               "after lunch", "before dark", "without a sound", "once more"};

constexpr int64_t kNoFact = -1;
constexpr int kSentencesInParagraph = 6;
constexpr int64_t kBytesForEachFact = 250;
constexpr double kShareOfRecalls = 0.6;   // of the sentences that state nothing
constexpr double kShareOfMeetings = 0.6;  // of the recalls: two facts in one sentence
constexpr int64_t kShortestRecall = 24;   // bytes: about the length of the shortest sentence

class Draws {
 public:
  Draws(uint64_t seed, string_view purpose, uint64_t document)
      : stream_(seed, purpose), next_(document << 24) {}
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(stream_.below(next_++, static_cast<uint64_t>(bound)));
  }
  double uniform() { return stream_.uniform(next_++); }
  template <size_t N>
  string_view one_of(const std::array<string_view, N>& words) {
    return words[static_cast<size_t>(below(N))];
  }
  template <class Container>
  void shuffle(Container& items) {
    for (int64_t i = std::ssize(items) - 1; i > 0; --i)
      std::swap(items[static_cast<size_t>(i)], items[static_cast<size_t>(below(i + 1))]);
  }

 private:
  RandomStream stream_;
  uint64_t next_;
};

std::string draw_surname(Draws& draws) {
  std::string name;
  for (int i = 0; i < kSyllables; ++i)
    for (const string_view letters : {kConsonants, kVowels})
      name += letters[static_cast<size_t>(draws.below(std::ssize(letters)))];
  name[0] = static_cast<char>(name[0] - 'a' + 'A');
  return name;
}

// Everybody has a surname and every horse a number; a document knows the first `count` of them after a
// shuffle.
std::vector<Fact> draw_facts(Draws& draws, int64_t count) {
  std::vector<Fact> facts;
  for (const string_view name : kFirstNames)
    facts.push_back(
        {std::string(name), draw_surname(draws), fmt::format("What is the surname of {}?", name)});
  for (const string_view horse : kHorses)
    facts.push_back({std::string(horse), std::to_string(1000 + draws.below(9000)),
                     fmt::format("What is the number of the horse {}?", horse)});
  draws.shuffle(facts);
  facts.resize(static_cast<size_t>(std::clamp<int64_t>(count, 1, std::ssize(facts))));
  return facts;
}

class Writer {
 public:
  Writer(Draws& draws, SyntheticDocument& document, int64_t limit)
      : draws_(draws), document_(document), limit_(limit), last_mention_(document.facts.size(), -1) {}

  // One sentence; false when it no longer fits.
  bool write_next() {
    const int64_t known = std::ssize(document_.facts);
    const auto walk = [&] { return fmt::format(" {} {}", draws_.one_of(kWalked), draws_.one_of(kGoals)); };
    // New facts come evenly over the first third.
    if (stated_ < known && stated_ * limit_ <= 3 * size() * known) return append(stated_++, " is new here.");
    if (draws_.uniform() >= kShareOfRecalls)
      return append(kNoFact,
                    fmt::format("{}{} {}.", draws_.one_of(kStrangers), walk(), draws_.one_of(kTimes)));
    const int64_t first = fact_to_recall();
    if (draws_.uniform() >= kShareOfMeetings) return append(first, walk() + ".");
    const int64_t second = fact_to_recall();
    if (first == second) return append(first, walk() + ".");
    return append(first, " met ", second, fmt::format(" {}.", draws_.one_of(kTimes)));
  }

 private:
  int64_t size() const { return std::ssize(document_.text); }

  // The stated fact whose last mention lies nearest to a distance drawn evenly on a logarithmic scale.
  int64_t fact_to_recall() {
    const double longest = std::max<double>(kShortestRecall, static_cast<double>(size()));
    const double wanted = std::log(kShortestRecall) + draws_.uniform() * std::log(longest / kShortestRecall);
    const auto off = [&](int64_t fact) {
      return std::fabs(std::log(static_cast<double>(size() - last_mention_[static_cast<size_t>(fact)])) -
                       wanted);
    };
    int64_t best = 0;
    for (int64_t fact = 1; fact < stated_; ++fact)
      if (off(fact) < off(best)) best = fact;
    return best;
  }

  // Appends a sentence in parts: a fact's key and value, or none, then words; twice.
  bool append(int64_t first, const std::string& words, int64_t second = kNoFact,
              const std::string& end = "") {
    const std::string begin = name(first) + words, text = begin + name(second) + end;
    if (size() + std::ssize(text) + 1 > limit_) {
      document_.text.back() = '\n';
      return false;
    }
    note(first, size());
    note(second, size() + std::ssize(begin));
    document_.text += text;
    document_.text += ++sentences_ % kSentencesInParagraph == 0 ? '\n' : ' ';
    return true;
  }

  std::string name(int64_t fact) const {
    if (fact == kNoFact) return {};
    const Fact& the = document_.facts[static_cast<size_t>(fact)];
    return the.key + " " + the.value;
  }

  // Notes a mention of the fact whose key stands at `offset`.
  void note(int64_t fact, int64_t offset) {
    if (fact == kNoFact) return;
    offset += std::ssize(document_.facts[static_cast<size_t>(fact)].key) + 1;
    const int64_t before = std::exchange(last_mention_[static_cast<size_t>(fact)], offset);
    document_.mentions.push_back({fact, offset, before < 0 ? -1 : offset - before});
  }

  Draws& draws_;
  SyntheticDocument& document_;
  int64_t limit_;
  std::vector<int64_t> last_mention_;  // of each fact: offset of its value, -1 before it is stated
  int64_t stated_ = 0;
  int sentences_ = 0;
};

Json question_record(const SyntheticDocument& document, Draws& draws) {
  const auto& mention = document.mentions[static_cast<size_t>(draws.below(std::ssize(document.mentions)))];
  const Fact& fact = document.facts[static_cast<size_t>(mention.fact)];
  return {{"instruction", document.text + "\n" + fact.question}, {"input", ""}, {"output", fact.value}};
}

}  // namespace

SyntheticDocument synthetic_document(const CorpusOptions& options, uint64_t index) {
  constexpr int64_t kSmallest = 200;  // room for a few sentences
  if (options.min_bytes < kSmallest || options.max_bytes < options.min_bytes)
    fail_usage("documents of {} to {} bytes: wanted {} <= shortest <= longest", options.min_bytes,
               options.max_bytes, kSmallest);
  Draws draws(options.seed, "synthetic document", index);
  const int64_t limit = options.min_bytes + draws.below(options.max_bytes - options.min_bytes + 1);
  SyntheticDocument document;
  document.facts = draw_facts(draws, limit / kBytesForEachFact);
  Writer writer(draws, document, limit);
  while (writer.write_next()) {
  }
  return document;
}

CorpusSize write_synthetic_corpus(const std::filesystem::path& out, CorpusFormat format,
                                  const CorpusOptions& options, int64_t bytes) {
  CorpusSize done;
  const auto for_each_document = [&](auto&& write) {
    while (done.bytes < bytes) {
      const auto index = static_cast<uint64_t>(done.documents);
      const SyntheticDocument document = synthetic_document(options, index);
      write(document);
      ++done.documents;
      done.bytes += std::ssize(document.text);
    }
  };
  if (format == CorpusFormat::text) {
    AtomicDirectory folder(out);
    for_each_document([&](const SyntheticDocument& document) {
      write_text_atomically(folder.path() / fmt::format("{:06}.txt", done.documents), document.text);
    });
    folder.commit();
    return done;
  }
  AtomicFile file(out);
  if (format == CorpusFormat::jsonl) {
    for_each_document([&](const SyntheticDocument& document) {
      file.write(Json{{"text", document.text}}.dump() + "\n");
    });
  } else {
    file.write("[\n");
    for_each_document([&](const SyntheticDocument& document) {
      Draws draws(options.seed, "synthetic question", static_cast<uint64_t>(done.documents));
      file.write((done.documents ? ",\n" : "") + question_record(document, draws).dump());
    });
    file.write("\n]\n");
  }
  file.commit();
  return done;
}

}  // namespace sinklora
