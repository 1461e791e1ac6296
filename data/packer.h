// Cuts and joins encoded documents into rows of at most `context` tokens, in their order.
#pragma once

#include <cstdint>
#include <functional>

#include "data/encode.h"
#include "data/shard_writer.h"

namespace sinklora {

enum class Packing {
  none,    // a document begins a row; one longer than a row goes on in the next
  whole,   // as many whole documents a row as fit, in order
  stream,  // documents run on without a gap and are cut where a row is full
};

class Packer {
 public:
  // `emit` gets each row and how many tokens of the document being added lie in it or before it. No token of
  // the document or of those before is left in here then: a run can go on from that place. A row without any
  // scored position is left out.
  using Emit = std::function<void(const TokenRow& row, int64_t consumed)>;
  Packer(int64_t context, Packing packing, Emit emit);

  // `consumed`: tokens of the document that are in earlier rows already.
  void add(const EncodedDocument& document, int64_t number, int64_t consumed = 0);
  void finish();  // emits what is left

 private:
  void flush(int64_t consumed);

  int64_t context_;
  Packing packing_;
  Emit emit_;
  TokenRow row_;
};

}  // namespace sinklora
