// Samples of a dataset as batches, in an order that can be entered anywhere.
#pragma once

#include <cstdint>
#include <future>
#include <vector>

#include "data/dataset.h"

namespace sinklora {

// What one forward pass works on: sequences back to back, no padding.
struct Batch {
  std::vector<int32_t> ids, targets, positions;  // [T]; positions restart at 0 in every sequence
  std::vector<int64_t> offsets;                  // [S + 1]
  std::vector<int64_t> sample_ids;               // of the dataset, for messages
  int64_t scored_tokens = 0;
  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

// Joins samples; every packed document becomes a sequence of its own.
Batch make_batch(const std::vector<Sample>& samples, const std::vector<int64_t>& sample_ids);

struct LoaderOptions {
  int64_t batch = 1;       // samples of one forward pass
  int64_t accumulate = 1;  // forward passes of one optimizer step
  uint64_t seed = 0;
  bool shuffle = true;
  int64_t rank = 0, world = 1;
  int64_t first_sample = 0;  // position in the global, endless order of samples: resume here
};

// The endless order of samples is epoch after epoch, each one a seeded permutation of the dataset. Global
// step k takes the next batch * accumulate * world positions; rank r takes its own run of batch * accumulate
// of them. Hence equal step counts on all ranks whatever the dataset's size, and each sample once an epoch.
class Loader {
 public:
  Loader(const Dataset& dataset, const LoaderOptions& options);
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The micro-batches of the next step; a thread reads the one after while this one trains. Rethrows its
  // errors.
  std::vector<Batch> next();
  // Position after all steps handed out so far; give it to LoaderOptions::first_sample to go on from here.
  int64_t position() const { return position_; }
  double epoch() const;  // position / dataset size

 private:
  int64_t sample_at(int64_t place) const;
  std::vector<Batch> read(int64_t from) const;
  void read_ahead();

  const Dataset& dataset_;
  LoaderOptions options_;
  int64_t position_;
  // The step at position_. Last, so that it ends before the rest goes.
  std::future<std::vector<Batch>> ahead_;
};

}  // namespace sinklora
