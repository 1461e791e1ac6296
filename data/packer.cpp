#include "data/packer.h"

#include <algorithm>

namespace sinklora {

Packer::Packer(int64_t context, Packing packing, Emit emit)
    : context_(context), packing_(packing), emit_(std::move(emit)) {}

void Packer::flush(int64_t consumed) {
  const TokenRow row = std::exchange(row_, {});
  const std::vector<uint8_t> mask = loss_mask(row);
  if (std::find(mask.begin(), mask.end(), 1) != mask.end()) emit_(row, consumed);
}

void Packer::add(const EncodedDocument& document, int64_t number, int64_t consumed) {
  const auto size = static_cast<int64_t>(document.ids.size());
  const auto filled = [&] { return static_cast<int64_t>(row_.ids.size()); };
  if (packing_ == Packing::none || (packing_ == Packing::whole && filled() + size > context_)) flush(0);
  while (consumed < size) {
    const int64_t count = std::min(context_ - filled(), size - consumed);
    if (row_.ids.empty()) row_.document_id = number;
    row_.document_starts.push_back(static_cast<int32_t>(filled()));
    row_.ids.insert(row_.ids.end(), document.ids.begin() + consumed, document.ids.begin() + consumed + count);
    row_.scored.insert(row_.scored.end(), document.scored.begin() + consumed,
                       document.scored.begin() + consumed + count);
    consumed += count;
    if (filled() == context_) flush(consumed);
  }
}

void Packer::finish() { flush(0); }

}  // namespace sinklora
