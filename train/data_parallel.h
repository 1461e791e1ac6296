// What the ranks of a data-parallel run do together. Each holds the whole model and takes its own part of the
// samples of a step (data/loader.h, Loader); gradients are summed over the ranks, and all make the same
// update.
#pragma once

#include <exception>
#include <vector>

#include "comm/agreement.h"
#include "model/llama.h"
#include "train/checkpoint.h"

namespace sinklora {

// Sums the gradients over the ranks, bucket by bucket, while the backward computes those below. The gradients
// are one memory (Weights::gradients: embedding, layers, final norm, head) and a backward completes it from
// its end to its beginning; a bucket is as many whole layers as make up `bucket_bytes`, or what lies above or
// below all layers. Equal buckets in equal order on all ranks, whatever their samples.
class GradientSum {
 public:
  static constexpr int64_t kBucketBytes = 16 << 20;
  GradientSum(Communicator& ranks, const Weights& weights, int64_t bucket_bytes = kBucketBytes);
  // Starts the buckets that lie at or behind `first_byte`: what a backward calls (GradientsReady).
  void ready_from(int64_t first_byte);
  // Starts the others and orders the ops that follow behind all.
  void finish();

 private:
  struct Bucket {
    int64_t begin, end;  // bytes
  };
  Communicator& ranks_;
  std::span<std::byte> gradients_;
  std::vector<Bucket> buckets_;  // from the end of the memory to its beginning
  std::vector<Ticket> started_;  // of this step
};

// For a scope outside of which the memory of calls under way is gone: where an exception leaves it, ends the
// calls of all ranks first.
class AbortOnError {
 public:
  explicit AbortOnError(Communicator& ranks) : ranks_(ranks) {}
  ~AbortOnError();
  AbortOnError(const AbortOnError&) = delete;
  AbortOnError& operator=(const AbortOnError&) = delete;

 private:
  Communicator& ranks_;
  const int exceptions_ = std::uncaught_exceptions();
};

// Before step 1: throws where ranks mean different runs; names the field and the ranks.
void agree_on_run(Communicator& ranks, const Json& fingerprint, std::vector<Field> more);
// Throws where the trained weights are not the same bits on all ranks.
void check_drift(Communicator& ranks, Ops& ops, const Weights& weights, int64_t step);
// Rank 0's trained weights, moments and place in the run, to all: only rank 0 reads checkpoints.
void share_state(Communicator& ranks, Weights& weights, TrainState& state);
// "rank 0: 3 5; rank 1: 7 1": which samples of a step each rank had. Equally many on all.
std::string samples_of_all(Communicator& ranks, const std::vector<Batch>& batches);

}  // namespace sinklora
