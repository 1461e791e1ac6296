// A session that says what a test wants: byte after byte of says[0], then (after the next prompt) of says[1]
// and so on, and </s> of the byte tokenizer when a text is over.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "infer/session.h"

namespace sinklora::test {

class ScriptedSession : public Session {
 public:
  explicit ScriptedSession(int64_t context) : context_(context) {}

  std::vector<float> extend(std::span<const int32_t> added) override {
    if (length() + static_cast<int64_t>(added.size()) > context_) fail_input("the context is full");
    ids.insert(ids.end(), added.begin(), added.end());
    extended.emplace_back(added.begin(), added.end());
    // One token is the reply that goes on, several are a prompt.
    if (added.size() > 1) at_ = 0, ++text_;
    const std::string text = text_ < static_cast<int64_t>(says.size()) ? says[text_] : "";
    std::vector<float> logits(259);
    logits[at_ < text.size() ? static_cast<unsigned char>(text[at_]) : 257] = 1;
    ++at_;
    return logits;
  }
  void reset() override { ids.clear(), ++resets; }
  int64_t length() const override { return static_cast<int64_t>(ids.size()); }
  int64_t context() const override { return context_; }
  int64_t cache_bytes() const override { return 1000 * length(); }

  std::vector<std::string> says;
  std::vector<int32_t> ids;
  std::vector<std::vector<int32_t>> extended;  // each call's
  int resets = 0;

 private:
  int64_t context_, text_ = -1;
  size_t at_ = 0;
};

}  // namespace sinklora::test
