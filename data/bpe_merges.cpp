#include "data/bpe_merges.h"

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr uint32_t kNone = ~uint32_t{0};
constexpr int32_t kGone = -1;  // a symbol that was joined to the one before it

uint64_t key_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

bool BpeMerges::add(int32_t left, int32_t right, int32_t result) {
  if (!ranks_.try_emplace(key_of(left, right), static_cast<uint32_t>(merges_.size())).second) return false;
  merges_.push_back({left, right, result});
  return true;
}

std::optional<uint32_t> BpeMerges::rank_of(int32_t left, int32_t right) const {
  const auto found = ranks_.find(key_of(left, right));
  return found == ranks_.end() ? std::nullopt : std::optional(found->second);
}

void BpeMerges::apply(std::vector<int32_t>& symbols, Scratch& scratch) const {
  if (symbols.size() >= kNone) fail_input("a word of {} symbols is too long to tokenize", symbols.size());
  const auto count = static_cast<uint32_t>(symbols.size());
  auto& next = scratch.next;
  auto& previous = scratch.previous;
  auto& queue = scratch.queue;
  next.resize(count);
  previous.resize(count);
  queue.clear();  // a heap of rank << 32 | position of the left symbol, the smallest on top
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == count ? kNone : i + 1;
    if (i + 1 == count) break;
    if (const auto rank = rank_of(symbols[i], symbols[i + 1])) queue.push_back(uint64_t{*rank} << 32 | i);
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto push = [&](uint32_t left) {
    const auto rank = rank_of(symbols[left], symbols[next[left]]);
    if (!rank) return;
    queue.push_back(uint64_t{*rank} << 32 | left);
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const Merge& merge = merges_[top >> 32];
    const auto left = static_cast<uint32_t>(top);
    const uint32_t right = next[left];
    // Either symbol may have changed since this pair was queued.
    if (symbols[left] != merge.left || right == kNone || symbols[right] != merge.right) continue;
    symbols[left] = merge.result;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[left] != kNone) {
      previous[next[left]] = left;
      push(left);
    }
    if (previous[left] != kNone) push(previous[left]);
  }
  std::erase(symbols, kGone);
}

}  // namespace sinklora
