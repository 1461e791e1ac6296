#include "data/synthetic_corpus.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "data/draws.h"

namespace sinklora {
namespace {

using std::string_view;

// The words. A tiny byte-level model shall learn to copy and not to spell, so a document is a log in lower
// case whose only capitals are the keys, a value is the one byte after its key, and the other words are few.
constexpr string_view kKeys = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
constexpr string_view kValues = "0123456789abcdefghijklmnopqrstuvwxyz";
constexpr std::array<string_view, 3> kCarriers = {"boat", "train", "gate"};  // A to I, J to R, S to Z
constexpr size_t kKeysOfCarrier = 9;
constexpr std::array<string_view, 4> kMet = {"met", "saw", "passed", "called"};
constexpr std::array<string_view, 4> kStayed = {"waited", "left", "closed", "opened"};
constexpr std::array<string_view, 4> kTimes = {" at dawn", " at noon", " at night", ""};
constexpr std::array<string_view, 4> kWeather = {"the wind was cold.", "the tide came in.",
                                                 "a bell rang twice.", "the fog was thick."};

constexpr int64_t kNoFact = -1;
constexpr int kSentencesInParagraph = 6;
constexpr int64_t kBytesForEachFact = 100;
constexpr double kShareOfRecalls = 0.9;   // of the sentences that state nothing
constexpr double kShareOfMeetings = 0.9;  // of the recalls: two facts in one sentence
constexpr double kShareOfOldest = 0.25;   // of the recalled facts: the one not mentioned for longest
constexpr int64_t kShortestRecall = 16;   // bytes: about half a sentence

string_view carrier(string_view key) { return kCarriers[kKeys.find(key) / kKeysOfCarrier]; }

// Every key has a value; a document knows the first `count` of them after a shuffle.
std::vector<Fact> draw_facts(Draws& draws, int64_t count) {
  std::vector<Fact> facts;
  for (size_t i = 0; i < kKeys.size(); ++i) {
    const string_view key = kKeys.substr(i, 1);
    const auto value = static_cast<size_t>(draws.below(std::ssize(kValues)));
    facts.push_back({std::string(key), std::string(kValues.substr(value, 1)),
                     fmt::format("What is the call sign of the {} {}?", carrier(key), key)});
  }
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
    // New facts come evenly over the first third.
    if (stated_ < known && stated_ * limit_ <= 3 * size() * known) return append(stated_++, " is new here.");
    if (draws_.uniform() >= kShareOfRecalls) return append(kNoFact, std::string(draws_.one_of(kWeather)));
    const int64_t first = fact_to_recall();
    const bool meeting = draws_.uniform() < kShareOfMeetings;
    const int64_t second = meeting ? fact_to_recall() : kNoFact;
    const std::string when = fmt::format("{}.", draws_.one_of(kTimes));
    if (!meeting || first == second) return append(first, fmt::format(" {}{}", draws_.one_of(kStayed), when));
    return append(first, fmt::format(" {} ", draws_.one_of(kMet)), second, when);
  }

 private:
  int64_t size() const { return std::ssize(document_.text); }

  // The stated fact not mentioned for longest, or the one whose last mention lies nearest to a distance drawn
  // evenly on a logarithmic scale.
  int64_t fact_to_recall() {
    const double longest = std::max<double>(kShortestRecall, static_cast<double>(size()));
    const double share = draws_.uniform() < kShareOfOldest ? 1.0 : draws_.uniform();
    const double wanted = std::log(kShortestRecall) + share * std::log(longest / kShortestRecall);
    const auto off = [&](int64_t fact) {
      return std::fabs(std::log(static_cast<double>(size() - last_mention_[static_cast<size_t>(fact)])) -
                       wanted);
    };
    int64_t best = 0;
    for (int64_t fact = 1; fact < stated_; ++fact)
      if (off(fact) < off(best)) best = fact;
    return best;
  }

  // Appends a sentence in parts: a fact's carrier and call sign, or none, then words; then perhaps a second
  // call sign.
  bool append(int64_t first, const std::string& words, int64_t second = kNoFact,
              const std::string& end = "") {
    const std::string subject =
        first == kNoFact ? "" : fmt::format("{} {}", carrier(fact(first).key), call_sign(first));
    const std::string begin = subject + words + call_sign(second), text = begin + end;
    if (size() + std::ssize(text) + 1 > limit_) {
      document_.text.back() = '\n';
      return false;
    }
    note(first, size() + std::ssize(subject) - 1);
    note(second, size() + std::ssize(begin) - 1);
    document_.text += text;
    document_.text += ++sentences_ % kSentencesInParagraph == 0 ? '\n' : ' ';
    return true;
  }

  const Fact& fact(int64_t index) const { return document_.facts[static_cast<size_t>(index)]; }
  std::string call_sign(int64_t index) const {
    return index == kNoFact ? "" : fact(index).key + fact(index).value;
  }

  // Notes a mention of the fact whose value stands at `offset`.
  void note(int64_t index, int64_t offset) {
    if (index == kNoFact) return;
    const int64_t before = std::exchange(last_mention_[static_cast<size_t>(index)], offset);
    document_.mentions.push_back({index, offset, before < 0 ? -1 : offset - before});
  }

  Draws& draws_;
  SyntheticDocument& document_;
  int64_t limit_;
  std::vector<int64_t> last_mention_;  // of each fact: offset of its value, -1 before it is stated
  int64_t stated_ = 0;
  int sentences_ = 0;
};

// The fact whose last mention lies nearest to `place`, and that mention.
FactMention last_mention_near(const SyntheticDocument& document, double place) {
  std::vector<FactMention> last(document.facts.size());
  for (const FactMention& mention : document.mentions) last[static_cast<size_t>(mention.fact)] = mention;
  std::erase_if(last, [](const FactMention& mention) { return mention.offset == 0; });  // never stated
  return *std::min_element(last.begin(), last.end(), [&](const FactMention& a, const FactMention& b) {
    return std::fabs(static_cast<double>(a.offset) - place) <
           std::fabs(static_cast<double>(b.offset) - place);
  });
}

// The place for a new file: what is there is not overwritten, what a killed run left beside it goes.
std::filesystem::path unused(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(path, error)))
    fail_usage("{}: exists already; choose another output file, or remove this one", path.string());
  remove_abandoned(path);
  return path;
}

// One array with an element a line.
void write_json_array(const std::filesystem::path& path, const std::function<std::optional<Json>()>& next) {
  AtomicFile file(unused(path));
  file.write("[");
  const char* between = "\n";
  while (const std::optional<Json> element = next()) {
    file.write(between + dump_json(*element));
    between = ",\n";
  }
  file.write("\n]\n");
  file.commit();
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

LongQuestion synthetic_question(const CorpusOptions& options, uint64_t index,
                                const std::optional<double>& depth) {
  const SyntheticDocument document = synthetic_document(options, index);
  Draws draws(options.seed, "synthetic question", index);
  const FactMention mention =
      depth ? last_mention_near(document, *depth * static_cast<double>(document.text.size()))
            : document.mentions[static_cast<size_t>(draws.below(std::ssize(document.mentions)))];
  const Fact& fact = document.facts[static_cast<size_t>(mention.fact)];
  return {document.text + "\n" + fact.question, fmt::format("{} {}", carrier(fact.key), fact.key), fact.value,
          "", mention.offset};
}

CorpusSize write_synthetic_corpus(const std::filesystem::path& out, CorpusFormat format,
                                  const CorpusOptions& options, const CorpusLimit& limit) {
  CorpusSize done;
  const auto next = [&]() -> std::optional<SyntheticDocument> {
    if (limit.reached(done)) return std::nullopt;
    SyntheticDocument document = synthetic_document(options, static_cast<uint64_t>(done.documents));
    ++done.documents;
    done.bytes += std::ssize(document.text);
    return document;
  };
  if (format == CorpusFormat::text) {
    AtomicDirectory folder(out);
    while (const auto document = next())
      write_text_atomically(folder.path() / fmt::format("{:06}.txt", done.documents - 1), document->text);
    folder.commit();
  } else if (format == CorpusFormat::jsonl) {
    AtomicFile file(unused(out));
    while (const auto document = next()) file.write(Json{{"text", document->text}}.dump() + "\n");
    file.commit();
  } else {
    write_json_array(out, [&]() -> std::optional<Json> {
      if (limit.reached(done)) return std::nullopt;
      const LongQuestion question = synthetic_question(options, static_cast<uint64_t>(done.documents++));
      done.bytes += std::ssize(question.instruction);
      return to_record(question);
    });
  }
  return done;
}

CorpusSize write_book_questions(const std::filesystem::path& out, const BookQuestions& questions,
                                const CorpusOptions& options, const CorpusLimit& limit) {
  CorpusSize done;
  write_json_array(out, [&]() -> std::optional<Json> {
    if (limit.reached(done)) return std::nullopt;
    const auto index = static_cast<uint64_t>(done.documents++);
    Draws draws(options.seed, "length of a book question", index);
    const LongQuestion question =
        questions.make(index, options.min_bytes + draws.below(options.max_bytes - options.min_bytes + 1));
    done.bytes += std::ssize(question.instruction);
    return to_record(question);
  });
  return done;
}

}  // namespace sinklora
