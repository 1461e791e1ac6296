// From one record of the input to token ids, each marked as scored or not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json_fields.h"
#include "data/records.h"
#include "data/tokenizer.h"

namespace sinklora {

struct EncodeOptions {
  std::string format = "text";         // text, alpaca, chat
  std::string template_name = "none";  // of alpaca and chat
  bool longlora_seam = false;          // alpaca: tokenize prompt and answer in one go, see below
  bool drop_too_long = false;  // alpaca, chat: drop what exceeds `context`, rather than cutting its end off
  int64_t context = 0;
};

struct EncodedDocument {
  std::vector<int32_t> ids;
  std::vector<uint8_t> scored;  // 1: a token to be predicted
  bool truncated = false;
  bool dropped = false;  // too long, or nothing of it would be scored; `ids` is empty
  // Dropped, and no policy could have kept it: what comes before the first scored token fills `context`.
  bool prompt_fills = false;
  bool empty_reply = false;  // of one reply, at least, only the end is scored
};

// text:   [BOS] text [EOS], all scored; a JSON record is {"text": ...}.
// alpaca: {"instruction", "output", "input"?}, null being empty: prompt not scored, answer and EOS scored.
//         The answer goes on where the prompt ends (no second dummy space of sentencepiece), but no token
//         crosses the seam, as when the model answers. LongLoRA tokenizes both in one go and masks as many
//         tokens as the prompt alone has: the same ids unless a merge crosses the seam, and then the boundary
//         shifts; `longlora_seam` repeats that.
// chat:   {"messages": [{"role", "content"}, ...]}, or ShareGPT's {"conversations": [{"from", "value"}, ...]}, or the
//         one's turns under the other's name; the assistant's scored. Calls of tools, and what else is no text, are
//         refused.
// BOS comes first where the tokenizer adds one. Texts of alpaca and chat longer than `context` are cut or
// dropped.
class DocumentEncoder {
 public:
  DocumentEncoder(const Tokenizer& tokenizer, EncodeOptions options);
  EncodedDocument encode(const Record& record) const;  // thread-safe

 private:
  EncodedDocument fit(EncodedDocument document) const;  // cut or dropped as the options say
  void add_text(EncodedDocument& document, std::string_view text, bool scored) const;
  void add_token(EncodedDocument& document, int32_t id, bool scored) const;
  void encode_instruction(const JsonFields& record, EncodedDocument& document) const;
  void encode_chat(const JsonFields& record, EncodedDocument& document) const;

  const Tokenizer& tokenizer_;
  EncodeOptions options_;
};

}  // namespace sinklora
