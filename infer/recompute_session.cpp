#include "infer/recompute_session.h"

namespace sinklora {

std::vector<float> RecomputeSession::extend(std::span<const int32_t> ids) {
  if (ids.empty()) fail_usage("there is no text to continue: the prompt is empty");
  if (length() + static_cast<int64_t>(ids.size()) > context_)
    fail_input("the text has {} tokens and {} more do not fit into a context of {}; give a longer --context",
               length(), ids.size(), context_);
  text_.insert(text_.end(), ids.begin(), ids.end());
  const Sample sample{text_, std::vector<int32_t>(text_.size(), kNotScored), {0}};
  const Batch batch = make_batch({sample}, {0});
  return model_.logits(batch, AttentionPattern{}, batch.tokens() - 1, 1);
}

}  // namespace sinklora
