// A tokenizer without a file: one id for each byte, then <s> 256, </s> 257 and <pad> 258. Any bytes,
// well-formed or not, come back as they were.
#include "base/hash.h"
#include "data/vocabulary_tokenizer.h"

namespace sinklora {
namespace {

class ByteTokenizer : public VocabularyTokenizer {
 public:
  ByteTokenizer() {
    kind = "byte";
    for (int32_t byte = 0; byte < 256; ++byte) {
      const std::string text(1, static_cast<char>(byte));
      add_entry(byte, text, text, kind);
    }
    bos_id = 256, eos_id = 257, pad_id = 258;
    add_token({.content = "<s>", .id = bos_id}, kind);
    add_token({.content = "</s>", .id = eos_id}, kind);
    add_token({.content = "<pad>", .id = pad_id}, kind);
    add_bos = true;
    sha256 = sinklora::sha256(std::as_bytes(std::span(kind)));
  }

 private:
  void encode_text(std::string_view text, Place, std::vector<int32_t>& ids) const override {
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  }
};

}  // namespace

std::unique_ptr<VocabularyTokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace sinklora
