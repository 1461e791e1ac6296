#include "train/data_parallel.h"

#include "base/hash.h"

namespace sinklora {
namespace {

std::span<std::byte> bytes_of(const Arena& arena) {
  const Tensor all = arena.whole();
  return {all.as<std::byte>(), static_cast<size_t>(all.bytes())};
}

}  // namespace

GradientSum::GradientSum(Communicator& ranks, const Weights& weights, int64_t bucket_bytes)
    : ranks_(ranks), gradients_(bytes_of(weights.gradients)) {
  if (const Tensor all = weights.gradients.whole(); all && all.dtype != DType::f32)
    fail_internal("gradients are {}, ranks sum f32", name_of(all.dtype));
  int64_t end = std::ssize(gradients_);
  const auto cut = [&](int64_t begin) {
    if (begin < end) buckets_.push_back({begin, end});
    end = begin;
  };
  for (auto layer = weights.layers.rbegin(); layer != weights.layers.rend(); ++layer)
    if (end - layer->gradients_begin >= bucket_bytes || std::next(layer) == weights.layers.rend())
      cut(layer->gradients_begin);
  cut(0);
}

void GradientSum::ready_from(int64_t first_byte) {
  if (ranks_.world_size() == 1) return;
  while (started_.size() < buckets_.size() && buckets_[started_.size()].begin >= first_byte) {
    const Bucket& bucket = buckets_[started_.size()];
    started_.push_back(
        ranks_.start_all_reduce_sum({reinterpret_cast<float*>(gradients_.data() + bucket.begin),
                                     static_cast<size_t>(bucket.end - bucket.begin) / sizeof(float)}));
  }
}

void GradientSum::finish() {
  ready_from(0);
  for (const Ticket ticket : started_) ranks_.wait(ticket);
  started_.clear();
}

AbortOnError::~AbortOnError() {
  if (std::uncaught_exceptions() == exceptions_) return;
  ranks_.abort("left by an exception");
  try {
    ranks_.finish();
  } catch (const std::exception&) {  // the one that passes says more
  }
}

void agree_on_run(Communicator& ranks, const Json& fingerprint, std::vector<Field> more) {
  for (const auto& [name, value] : fingerprint.items()) more.push_back({name, dump_json(value)});
  agree(ranks, more, "before step 1");
}

void check_drift(Communicator& ranks, Ops& ops, const Weights& weights, int64_t step) {
  const auto numbers = download_numbers<float>(ops, weights.trained.whole());
  const uint64_t hash =
      xxh3_64({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(float)});
  agree(ranks, {{"the hash of the trained weights", fmt::format("{:016x}", hash)}},
        fmt::format("after step {}", step),
        "a rank computes wrong: test its memory and its device, then resume from an older checkpoint");
}

void share_state(Communicator& ranks, Weights& weights, TrainState& state) {
  if (ranks.world_size() == 1) return;
  for (const Arena* arena :
       {&weights.trained, &weights.rounded, &weights.first_moments, &weights.second_moments})
    ranks.broadcast(bytes_of(*arena), 0);
  const std::vector<int64_t> all =
      gather(ranks, std::vector{state.step, state.position, state.tokens, state.updates});
  state = {all[0], all[1], all[2], all[3]};
}

std::string samples_of_all(Communicator& ranks, const std::vector<Batch>& batches) {
  std::vector<int64_t> mine;
  for (const Batch& batch : batches)
    mine.insert(mine.end(), batch.sample_ids.begin(), batch.sample_ids.end());
  const std::vector<int64_t> all = gather(ranks, mine);
  std::vector<std::string> parts;
  for (size_t rank = 0; rank * mine.size() < all.size(); ++rank)
    parts.push_back(fmt::format("rank {}: {}", rank,
                                fmt::join(std::span(all).subspan(rank * mine.size(), mine.size()), " ")));
  return fmt::format("{}", fmt::join(parts, "; "));
}

}  // namespace sinklora
