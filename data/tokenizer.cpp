// Opening a tokenizer: which kind a path is, and what the files beside it say about BOS, EOS and padding.
#include "data/tokenizer.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/foreign_format.h"
#include "base/json_fields.h"
#include "data/vocabulary_tokenizer.h"

namespace sinklora {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxTokenizerBytes = 100'000'000;
constexpr int64_t kMaxConfigBytes = 10'000'000;
constexpr const char* kByteTokenizerClass = "SinkloraByteTokenizer";

Json read_object(const fs::path& path) {
  if (!fs::exists(path)) return Json::object();
  Json json = read_json(path, kMaxConfigBytes);
  if (!json.is_object()) fail_input("{}: should hold a JSON object", path.string());
  return json;
}

// A token's name: a text, or an object with its "content". Empty where it is absent or null.
std::string token_name(const Json& json, const char* key, const fs::path& path) {
  const Json value = json.value(key, Json());
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string())
    return value["content"].get<std::string>();
  fail_input("{}: {} should be a text or an object with a \"content\"", path.string(), key);
}

int32_t parse_id(const Json& value, std::string_view what, const fs::path& path) {
  if (!value.is_number_integer() || value < 0 || value > INT32_MAX)
    fail_input("{}: {} should be a token id", path.string(), what);
  return value.get<int32_t>();
}

// What these files name as a special token, in whatever part.
std::set<std::string> special_names(const std::vector<Json>& files) {
  std::set<std::string> names;
  const auto take = [&](const Json& token) {
    const Json name = token.is_object() ? token.value("content", Json()) : token;
    if (name.is_string()) names.insert(name.get<std::string>());
  };
  for (const Json& file : files)
    for (const auto& [key, value] : file.items()) {
      if (key.ends_with("_token")) take(value);
      if (key.ends_with("_special_tokens") && value.is_structured())
        for (const Json& token : value) take(token);
    }
  return names;
}

// Tokens that were added after a tokenizer.model was trained; such a file cannot hold them itself.
void add_later_tokens(VocabularyTokenizer& tokenizer, const fs::path& folder) {
  const auto add = [&](const AddedToken& token, const fs::path& path) {
    if (tokenizer.id_of(token.content) == token.id) return;
    if (token.content.empty() || token.id != tokenizer.vocab_size)
      fail_input("{}: the added token \"{}\" has id {}; the next free one is {}", path.string(),
                 token.content, token.id, tokenizer.vocab_size);
    tokenizer.add_token(token, path.string());
  };
  const auto boolean = [](const Json& json, const char* key, bool otherwise) {
    const Json value = json.value(key, Json());
    return value.is_boolean() ? value.get<bool>() : otherwise;
  };
  std::vector<AddedToken> tokens;
  const auto add_all = [&](const fs::path& path) {
    std::sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    for (const AddedToken& token : tokens) add(token, path);
    tokens.clear();
  };
  const fs::path config_path = folder / "tokenizer_config.json";
  const Json config = read_object(config_path);
  const Json decoder = config.value("added_tokens_decoder", Json());
  if (decoder.is_object())
    for (const auto& [id, json] : decoder.items()) {
      if (!json.is_object() || id.empty() || id.size() > 9 ||
          id.find_first_not_of("0123456789") != std::string::npos)
        fail_input("{}: added_tokens_decoder.{} should be an object under a token id", config_path.string(),
                   id);
      tokens.push_back({.content = token_name(json, "content", config_path),
                        .id = std::stoi(id),
                        .special = boolean(json, "special", false),
                        .single_word = boolean(json, "single_word", false),
                        .left_strip = boolean(json, "lstrip", false),
                        .right_strip = boolean(json, "rstrip", false)});
    }
  add_all(config_path);
  const fs::path added_path = folder / "added_tokens.json";
  const Json added = read_object(added_path);
  const std::set<std::string> special =
      special_names({config, read_object(folder / "special_tokens_map.json")});
  for (const auto& [content, id] : added.items())
    tokens.push_back(
        {.content = content, .id = parse_id(id, content, added_path), .special = special.contains(content)});
  add_all(added_path);
}

// An id and, where there is one, its token.
std::string shown_id(const Tokenizer& tokenizer, int64_t id) {
  if (id < 0 || id >= tokenizer.vocab_size) return fmt::format("{}", id);
  return fmt::format("{} ({})", id, shown(Json(tokenizer.piece(static_cast<int32_t>(id)))));
}

// Which token plays a part: named beside the tokenizer, known to the tokenizer's own file, numbered in the
// model's config.json, or else the first of the customary names that the vocabulary has. -1 when there is
// none. config.json comes late: one made for another tokenizer, or never given ids, holds LLaMA-2's 1 and 2.
struct SpecialFiles {
  fs::path folder;
  Json tokenizer_config, special_tokens_map, model_config;

  int32_t find(VocabularyTokenizer& tokenizer, const std::string& part, int32_t known,
               std::initializer_list<std::string_view> customary) const {
    const std::optional<int32_t> named = find_named(tokenizer, part);
    const std::vector<int64_t> numbered = find_numbered(part);
    if (part == "pad") {  // never learned nor read, so no matter which it is
      if (named || known >= 0) return named.value_or(known);
      return numbered.empty() ? usual(tokenizer, customary) : checked(tokenizer, part, numbered[0]);
    }
    if (const int32_t own = named.value_or(known); own >= 0) {
      if (!numbered.empty() && std::ranges::find(numbered, own) == numbered.end())
        note(tokenizer, part, numbered[0], "but the tokenizer has another", own);
      return own;
    }
    const int32_t best = usual(tokenizer, customary);
    if (numbered.empty()) return best;
    const int32_t id = checked(tokenizer, part, numbered[0]);
    if (id == best || tokenizer.is_added(id)) return id;
    note(tokenizer, part, id, "an ordinary piece of the vocabulary", best >= 0 ? best : id);
    return best >= 0 ? best : id;
  }

 private:
  static int32_t usual(const Tokenizer& tokenizer, std::initializer_list<std::string_view> customary) {
    for (const std::string_view name : customary)
      if (const int32_t found = tokenizer.id_of(name); found >= 0) return found;
    return -1;
  }

  std::optional<int32_t> find_named(const VocabularyTokenizer& tokenizer, const std::string& part) const {
    const std::string name_key = part + "_token";
    for (const auto& [json, file] : {std::pair(&tokenizer_config, "tokenizer_config.json"),
                                     std::pair(&special_tokens_map, "special_tokens_map.json")}) {
      const std::string name = token_name(*json, name_key.c_str(), folder / file);
      if (name.empty()) continue;
      const int32_t id = tokenizer.id_of(name);
      if (id < 0 && part != "pad")
        fail_input("{}: {} is \"{}\", which is not in the vocabulary", (folder / file).string(), name_key,
                   name);
      return id;
    }
    return {};
  }

  // LLaMA-3 lists several ends; the first ends a text.
  std::vector<int64_t> find_numbered(const std::string& part) const {
    const Json value = model_config.value(part + "_token_id", Json());
    std::vector<int64_t> ids;
    for (const Json& id : value.is_array() ? value : Json::array({value}))
      if (id.is_number_integer() && id >= 0) ids.push_back(id.get<int64_t>());
    return ids;
  }

  int32_t checked(const Tokenizer& tokenizer, const std::string& part, int64_t id) const {
    if (id < 0 || id >= tokenizer.vocab_size)
      fail_input("{}: {}_token_id is {}, but the tokenizer has {} tokens", (folder / "config.json").string(),
                 part, id, tokenizer.vocab_size);
    return static_cast<int32_t>(id);
  }

  void note(Tokenizer& tokenizer, const std::string& part, int64_t id, std::string_view why,
            int32_t taken) const {
    tokenizer.notes.push_back(
        fmt::format("{}: {}_token_id is {}, {}; texts get {} ({}_token in tokenizer_config.json decides)",
                    (folder / "config.json").string(), part, shown_id(tokenizer, id), why,
                    shown_id(tokenizer, taken), part));
  }
};

// Over a tokenizer.json only the LLaMA classes of transformers 4 heed add_bos_token: false, and models come with
// it from there; in other classes, and in all of transformers 5, the template decides.
void read_add_bos(VocabularyTokenizer& tokenizer, const Json& config, const fs::path& path) {
  const Json add_bos = config.value("add_bos_token", Json());
  if (!add_bos.is_boolean()) return;
  const Json name = config.value("tokenizer_class", Json());
  const bool heeds = tokenizer.kind == "sentencepiece" || !name.is_string() ||
                     name.get<std::string>().find("LlamaTokenizer") != std::string::npos;
  if (add_bos == false && tokenizer.add_bos && !heeds)
    tokenizer.notes.push_back(fmt::format(
        "{}: add_bos_token is false, but tokenizer.json's template puts {} in front of a text; as "
        "Hugging Face's {} does, the template is followed",
        path.string(), shown_id(tokenizer, tokenizer.bos_id), shown(name)));
  else
    tokenizer.add_bos = add_bos.get<bool>();
}

void read_files_beside(VocabularyTokenizer& tokenizer, const fs::path& folder) {
  if (tokenizer.kind == "sentencepiece") add_later_tokens(tokenizer, folder);
  const SpecialFiles files{folder, read_object(folder / "tokenizer_config.json"),
                           read_object(folder / "special_tokens_map.json"),
                           read_object(folder / "config.json")};
  tokenizer.bos_id = files.find(tokenizer, "bos", tokenizer.bos_id, {"<s>", "<|begin_of_text|>"});
  tokenizer.eos_id = files.find(tokenizer, "eos", tokenizer.eos_id,
                                {"</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"});
  tokenizer.pad_id = files.find(tokenizer, "pad", tokenizer.pad_id, {"<pad>", "[PAD]", "<|pad|>"});
  read_add_bos(tokenizer, files.tokenizer_config, folder / "tokenizer_config.json");
  if (tokenizer.bos_id < 0) tokenizer.add_bos = false;
}

bool names_byte_tokenizer(const fs::path& folder) {
  return read_object(folder / "tokenizer_config.json").value("tokenizer_class", Json()) ==
         kByteTokenizerClass;
}

}  // namespace

EncodedSegments Tokenizer::encode_segments(std::span<const Segment> segments) const {
  EncodedSegments encoded;
  for (const Segment& segment : segments) {
    const std::vector<int32_t> ids = encode(segment.text, segment.control);
    encoded.ids.insert(encoded.ids.end(), ids.begin(), ids.end());
    encoded.scored.resize(encoded.ids.size(), segment.scored);
  }
  return encoded;
}

void print_notes(const Tokenizer& tokenizer) {
  for (const std::string& note : tokenizer.notes) fmt::print(stderr, "note: {}\n", note);
}

std::string tokenizer_hash(const fs::path& path) {
  try {
    return open_tokenizer(path)->sha256;
  } catch (const Error&) {
    return {};
  }
}

std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& path) {
  if (path == "byte") return make_byte_tokenizer();
  fs::path file = path;
  if (fs::is_directory(path)) {
    file = path / "tokenizer.json";
    if (!fs::exists(file)) file = path / "tokenizer.model";
    if (!fs::exists(file)) {
      if (names_byte_tokenizer(path)) return make_byte_tokenizer();
      fail_input("{}: holds neither tokenizer.json nor tokenizer.model", path.string());
    }
  }
  const bool is_json = file.extension() == ".json";
  if (!is_json && file.extension() != ".model")
    fail_input(
        "{}: a tokenizer is a tokenizer.json, a tokenizer.model, a directory with one of them, or the word "
        "byte",
        path.string());
  const std::string bytes = read_text(file, kMaxTokenizerBytes);
  refuse_foreign_format(bytes, file.string());
  auto tokenizer =
      is_json ? parse_tokenizer_json(bytes, file.string()) : parse_sentencepiece(bytes, file.string());
  read_files_beside(*tokenizer, file.parent_path());
  return tokenizer;
}

void write_byte_tokenizer(const fs::path& directory) {
  const Json config{{"tokenizer_class", kByteTokenizerClass},
                    {"bos_token", "<s>"},
                    {"eos_token", "</s>"},
                    {"pad_token", "<pad>"},
                    {"add_bos_token", true}};
  write_json(directory / "tokenizer_config.json", config);
}

}  // namespace sinklora
