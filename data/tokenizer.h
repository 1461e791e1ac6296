// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sinklora {

// A stretch of a prompt. Special tokens are looked for in `control` text only: in the rest their names stay
// text.
struct Segment {
  std::string text;
  bool control = false;
  bool scored = false;  // what the model itself is to write: fine-tuning learns these tokens
};

struct EncodedSegments {
  std::vector<int32_t> ids;
  std::vector<uint8_t> scored;  // a flag for each id
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text` alone: no BOS, no EOS. Names of special tokens inside the text stay text unless
  // `parse_special`.
  virtual std::vector<int32_t> encode(std::string_view text, bool parse_special = false) const = 0;
  // The same for a prompt: after the BOS, where the reference tokenizer puts one.
  std::vector<int32_t> encode_prompt(std::string_view text) const {
    std::vector<int32_t> ids = encode(text);
    if (add_bos) ids.insert(ids.begin(), bos_id);
    return ids;
  }
  // Ids of the segments read as one text: neighbours are tokenized together, but no token crosses a border
  // where `scored` changes. This default encodes each segment by itself.
  virtual EncodedSegments encode_segments(std::span<const Segment> segments) const;
  // Bytes of the ids; special tokens are left out unless `keep_special`. encode() then decode() gives the
  // text back.
  virtual std::string decode(std::span<const int32_t> ids, bool keep_special = false) const = 0;
  // The id of one vocabulary entry by its exact name ("<s>", "<|eot_id|>"), or -1.
  virtual int32_t id_of(std::string_view piece) const = 0;
  // The text of one id ("▁Hello" -> " Hello"), control characters as they are: callers escape them.
  virtual std::string piece(int32_t id) const = 0;

  int64_t vocab_size = 0;                         // ids are in [0, vocab_size)
  int32_t bos_id = -1, eos_id = -1, pad_id = -1;  // -1: the tokenizer has none
  bool add_bos = false;            // what the reference tokenizer does by default when it encodes a text
  std::string kind;                // "sentencepiece", "bpe", "byte"
  std::string sha256;              // of the file it was read from; of its name for "byte"
  std::vector<std::string> notes;  // where the files that describe it contradict each other
};

void print_notes(const Tokenizer& tokenizer);  // on stderr

// `path`: a tokenizer.model, a tokenizer.json, a directory that holds either (tokenizer.json first;
// bos/eos/pad from tokenizer_config.json or special_tokens_map.json beside the file, the file itself, or
// config.json beside it), or the word "byte" for the built-in one (256 bytes, then <s> 256, </s> 257, <pad> 258).
// Throws Error(input) that names what is not understood.
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& path);

// The sha256 of the tokenizer that open_tokenizer(path) gives; "" where there is none that can be read.
std::string tokenizer_hash(const std::filesystem::path& path);

// Makes `directory`, which must exist, one that open_tokenizer() opens as the byte tokenizer: a
// tokenizer_config.json whose tokenizer_class is SinkloraByteTokenizer.
void write_byte_tokenizer(const std::filesystem::path& directory);

}  // namespace sinklora
