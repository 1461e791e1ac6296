// A session that remembers nothing but the ids: each new token is a pass over the whole text. Slow, and what
// every cache is compared with.
#pragma once

#include "infer/session.h"
#include "model/llama.h"

namespace sinklora {

class RecomputeSession : public Session {
 public:
  // `model` was laid out for sequences of `context` tokens.
  RecomputeSession(Llama& model, int64_t context) : model_(model), context_(context) {}

  std::vector<float> extend(std::span<const int32_t> ids) override;
  void reset() override { text_.clear(); }
  int64_t length() const override { return static_cast<int64_t>(text_.size()); }
  int64_t context() const override { return context_; }
  int64_t cache_bytes() const override { return length() * static_cast<int64_t>(sizeof text_[0]); }

 private:
  Llama& model_;
  int64_t context_;
  std::vector<int32_t> text_;
};

}  // namespace sinklora
