// A conversation with a model: tokens go in, the logits of the next one come out. What is remembered of the
// tokens, and how much memory that takes, is the cache's affair.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sinklora {

class Session {
 public:
  virtual ~Session() = default;
  // Appends tokens and returns the logits [V] after the last one. Throws Error(input) when the model's
  // context is full.
  virtual std::vector<float> extend(std::span<const int32_t> ids) = 0;
  // Forgets everything.
  virtual void reset() = 0;
  virtual int64_t length() const = 0;       // tokens so far
  virtual int64_t context() const = 0;      // tokens that it can take
  virtual int64_t cache_bytes() const = 0;  // held for them now
};

}  // namespace sinklora
