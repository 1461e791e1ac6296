#include "data/tokenizer_json.h"

#include <algorithm>
#include <initializer_list>

#include "base/error.h"
#include "base/json.h"
#include "data/metaspace.h"
#include "data/regex.h"
#include "data/utf8.h"

namespace sinklora {
namespace {

constexpr size_t kMaxAddedTokens = size_t{1} << 16;
constexpr size_t kMaxMerges = size_t{1} << 22;
constexpr size_t kMaxSteps = 16;  // of a Sequence

constexpr const char* kGpt2Split =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// One JSON object of the file and where it stands in it.
class Part {
 public:
  Part(const SortedJson& json, std::string where, const std::string& source)
      : json_(json), where_(std::move(where)), source_(source) {
    if (!json_.is_object()) fail_input("{}: {} should be a JSON object", source_, where_);
  }

  [[noreturn]] void refuse(std::string_view what) const {
    fail_input("{}: {}: {} is not supported", source_, where_, what);
  }
  const std::string& source() const { return source_; }

  // Refuses members other than these: a setting that is not understood may change every id.
  void only(std::initializer_list<std::string_view> known) const {
    for (const auto& [key, value] : json_.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        refuse(fmt::format("the setting \"{}\"", key));
  }
  bool has(const std::string& key) const { return json_.contains(key) && !json_[key].is_null(); }
  const SortedJson& at(const std::string& key) const {
    if (!json_.contains(key)) fail_input("{}: {} lacks \"{}\"", source_, where_, key);
    return json_[key];
  }
  const SortedJson& list(const std::string& key) const {
    if (!at(key).is_array()) wrong(key, "a list");
    return at(key);
  }
  Part part(const std::string& key) const { return {at(key), where_ + "." + key, source_}; }
  std::string text(const std::string& key) const {
    if (!at(key).is_string()) wrong(key, "a text");
    return at(key).get<std::string>();
  }
  std::string text(const std::string& key, const char* otherwise) const {
    return has(key) ? text(key) : otherwise;
  }
  bool flag(const std::string& key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) wrong(key, "true or false");
    return at(key).get<bool>();
  }
  int32_t id(const std::string& key) const {
    if (!at(key).is_number_integer() || at(key) < 0 || at(key) > INT32_MAX) wrong(key, "a token id");
    return at(key).get<int32_t>();
  }
  bool is(std::string_view type) const { return text("type") == type; }
  [[noreturn]] void refuse_type() const { refuse(fmt::format("the type \"{}\"", text("type"))); }

  // The steps of a Sequence whose list is `key`; of anything else, itself.
  std::vector<Part> steps(const std::string& key) const {
    if (!is("Sequence")) return {*this};
    only({"type", key});
    if (list(key).size() > kMaxSteps) refuse("a Sequence this long");
    std::vector<Part> parts;
    for (const SortedJson& step : list(key))
      parts.emplace_back(step, fmt::format("{}[{}]", where_, parts.size()), source_);
    return parts;
  }

 private:
  [[noreturn]] void wrong(const std::string& key, const char* wanted) const {
    fail_input("{}: {}.{} should be {}, found {}", source_, where_, key, wanted,
               at(key).dump(-1, ' ', true, SortedJson::error_handler_t::replace).substr(0, 100));
  }

  const SortedJson& json_;
  std::string where_;
  const std::string& source_;
};

// A merge is "left right" in older files and ["left", "right"] in newer ones.
std::pair<std::string, std::string> read_merge(const SortedJson& merge, size_t rank,
                                               const std::string& source) {
  if (merge.is_string()) {
    const auto text = merge.get<std::string>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  fail_input("{}: model.merges[{}] should be \"left right\" or [\"left\", \"right\"]", source, rank);
}

void read_model(const Part& model, BpeFile& file) {
  if (model.text("type", "BPE") != "BPE") model.refuse_type();
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
              "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (model.has("dropout") && model.at("dropout") != 0.0)
    model.refuse("dropout, which makes the ids random,");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!model.text(affix, "").empty()) model.refuse(affix);
  file.unk_token = model.text("unk_token", "");
  file.fuse_unk = model.flag("fuse_unk", false);
  file.byte_fallback = model.flag("byte_fallback", false);
  file.ignore_merges = model.flag("ignore_merges", false);
  const Part vocab = model.part("vocab");
  for (const auto& [name, id] : model.at("vocab").items()) file.vocab.emplace_back(name, vocab.id(name));
  const SortedJson& merges = model.list("merges");
  if (merges.size() > kMaxMerges) model.refuse(fmt::format("a list of {} merges", merges.size()));
  for (const SortedJson& merge : merges)
    file.merges.push_back(read_merge(merge, file.merges.size(), model.source()));
}

void read_added_tokens(const Part& root, BpeFile& file) {
  if (!root.has("added_tokens")) return;
  const SortedJson& list = root.list("added_tokens");
  if (list.size() > kMaxAddedTokens) root.refuse(fmt::format("a list of {} added tokens", list.size()));
  for (const SortedJson& json : list) {
    const Part token(json, fmt::format("added_tokens[{}]", file.added_tokens.size()), root.source());
    token.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    file.added_tokens.push_back({.content = token.text("content"),
                                 .id = token.id("id"),
                                 .special = token.flag("special", false),
                                 .single_word = token.flag("single_word", false),
                                 .left_strip = token.flag("lstrip", false),
                                 .right_strip = token.flag("rstrip", false),
                                 .normalized = token.flag("normalized", true)});
  }
}

// LLaMA-2's: put U+2581 in front, turn spaces into U+2581. Returns whether it turns spaces.
bool read_normalizer(const Part& root, BpeFile& file) {
  bool turns_spaces = false;
  if (!root.has("normalizer")) return false;
  for (const Part& step : root.part("normalizer").steps("normalizers")) {
    file.normalizes = true;
    if (step.is("Prepend")) {
      step.only({"type", "prepend"});
      if (step.text("prepend") != kMetaspace || file.prefix != BpeFile::Prefix::none)
        step.refuse("this Prepend");
      file.prefix = BpeFile::Prefix::always;
    } else if (step.is("Replace")) {
      step.only({"type", "pattern", "content"});
      if (step.at("pattern") != SortedJson{{"String", " "}} || step.text("content") != kMetaspace)
        step.refuse("a Replace other than of \" \" by U+2581");
      turns_spaces = true;
    } else {
      step.refuse_type();
    }
  }
  return turns_spaces;
}

void read_metaspace(const Part& step, BpeFile& file) {
  step.only({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
  if (step.text("replacement") != kMetaspace) step.refuse("a replacement other than U+2581");
  const std::string scheme =
      step.text("prepend_scheme", step.flag("add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never")
    step.refuse(fmt::format("the prepend_scheme \"{}\"", scheme));
  if (file.prefix != BpeFile::Prefix::none && scheme != "never")
    step.refuse("a second prefix beside the normalizer's");
  if (scheme == "always") file.prefix = BpeFile::Prefix::unless_there;
  if (scheme == "first") file.prefix = BpeFile::Prefix::beginning_unless_there;
  file.words_apart = step.flag("split", true);
}

// Returns whether there is a Metaspace step.
bool read_pre_tokenizer(const Part& root, BpeFile& file) {
  bool metaspace = false;
  if (!root.has("pre_tokenizer")) return false;
  const std::vector<Part> steps = root.part("pre_tokenizer").steps("pretokenizers");
  for (const Part& step : steps) {
    if (file.byte_level) step.refuse("a step after ByteLevel");
    if (step.is("Split")) {
      step.only({"type", "pattern", "behavior", "invert"});
      if (step.text("behavior") != "Isolated")
        step.refuse(fmt::format("the behavior \"{}\"", step.text("behavior")));
      const Part pattern = step.part("pattern");
      pattern.only({"Regex"});
      file.splits.push_back(oniguruma_to_pcre2(pattern.text("Regex"), step.source()));
    } else if (step.is("Digits")) {
      step.only({"type", "individual_digits"});
      file.splits.push_back(step.flag("individual_digits", false) ? "\\p{N}" : "\\p{N}+");
    } else if (step.is("ByteLevel")) {
      step.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
      if (step.flag("add_prefix_space", true)) step.refuse("add_prefix_space");
      if (step.flag("use_regex", true)) file.splits.push_back(oniguruma_to_pcre2(kGpt2Split, step.source()));
      file.byte_level = true;
    } else if (step.is("Metaspace") && steps.size() == 1) {
      read_metaspace(step, file);
      metaspace = true;
    } else {
      step.refuse_type();
    }
  }
  return metaspace;
}

// The post-processor may put one token in front of a text, and nothing behind it.
void read_post_processor(const Part& root, BpeFile& file) {
  if (!root.has("post_processor")) return;
  for (const Part& step : root.part("post_processor").steps("processors")) {
    if (step.is("ByteLevel")) continue;  // concerns offsets only
    if (!step.is("TemplateProcessing")) step.refuse_type();
    bool text_seen = false;
    for (const SortedJson& json : step.list("single")) {
      const Part item(json, "post_processor.single", root.source());
      if (item.has("Sequence") && !text_seen) {
        text_seen = true;
      } else if (item.has("SpecialToken") && !text_seen && file.bos.empty()) {
        file.bos = item.part("SpecialToken").text("id");
      } else {
        step.refuse("a template other than one token in front of the text");
      }
    }
    if (!text_seen) step.refuse("a template without the text");
  }
}

void read_metaspace_decoder(const Part& root, BpeFile& file) {
  if (!root.has("decoder")) root.refuse("a sentencepiece-style tokenizer without a decoder");
  for (const Part& step : root.part("decoder").steps("decoders")) {
    if (step.is("Metaspace")) {
      if (step.text("replacement") != kMetaspace) step.refuse("a replacement other than U+2581");
      file.strips_first_space =
          step.text("prepend_scheme", step.flag("add_prefix_space", true) ? "always" : "never") != "never";
    } else if (step.is("Strip")) {
      if (step.text("content") != " " || step.at("start") != 1 || step.at("stop") != 0)
        step.refuse("this Strip");
      file.strips_first_space = true;
    } else if (step.is("Replace")) {
      if (step.at("pattern") != SortedJson{{"String", kMetaspace}} || step.text("content") != " ")
        step.refuse("this Replace");
    } else if (!step.is("ByteFallback") && !step.is("Fuse")) {
      step.refuse_type();
    }
  }
}

}  // namespace

BpeFile read_tokenizer_json(std::string_view text, const std::string& source) {
  const SortedJson json = parse_sorted_json(text, source);
  const Part root(json, "tokenizer", source);
  // How much to cut off and to pad is the caller's to say, as it is in Hugging Face's own library.
  root.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
             "post_processor", "decoder", "model"});
  BpeFile file;
  read_model(root.part("model"), file);
  read_added_tokens(root, file);
  const bool normalizer_turns_spaces = read_normalizer(root, file);
  const bool metaspace_step = read_pre_tokenizer(root, file);
  read_post_processor(root, file);
  if (file.byte_level) {
    if (root.has("normalizer")) root.refuse("a normalizer before ByteLevel");
    if (file.byte_fallback) root.refuse("byte_fallback together with ByteLevel");
    if (!root.has("decoder") || !root.part("decoder").is("ByteLevel"))
      root.refuse("ByteLevel without its decoder");
  } else {
    if (!normalizer_turns_spaces && !metaspace_step)
      root.refuse("a tokenizer that is neither ByteLevel nor turns spaces into U+2581");
    if (!file.splits.empty()) root.refuse("a split of text without ByteLevel");
    read_metaspace_decoder(root, file);
  }
  return file;
}

}  // namespace sinklora
