#include "data/loader.h"

#include <algorithm>

#include "base/error.h"
#include "base/random.h"

namespace sinklora {

Batch make_batch(const std::vector<Sample>& samples, const std::vector<int64_t>& sample_ids) {
  Batch batch;
  batch.sample_ids = sample_ids;
  batch.offsets.push_back(0);
  for (const Sample& sample : samples) {
    const auto begin = static_cast<int64_t>(batch.ids.size());
    batch.ids.insert(batch.ids.end(), sample.ids.begin(), sample.ids.end());
    batch.targets.insert(batch.targets.end(), sample.targets.begin(), sample.targets.end());
    for (size_t i = 1; i < sample.document_starts.size(); ++i)
      batch.offsets.push_back(begin + sample.document_starts[i]);
    batch.offsets.push_back(batch.tokens());
  }
  batch.positions.resize(batch.ids.size());
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s)
    for (int64_t t = batch.offsets[s]; t < batch.offsets[s + 1]; ++t)
      batch.positions[static_cast<size_t>(t)] = static_cast<int32_t>(t - batch.offsets[s]);
  batch.scored_tokens = static_cast<int64_t>(batch.targets.size()) -
                        std::count(batch.targets.begin(), batch.targets.end(), kNotScored);
  return batch;
}

Loader::Loader(const Dataset& dataset, const LoaderOptions& options)
    : dataset_(dataset), options_(options), position_(options.first_sample) {
  if (options.batch < 1 || options.accumulate < 1 || options.world < 1 || options.rank < 0 ||
      options.rank >= options.world || options.first_sample < 0)
    fail_internal("loader: batch {}, accumulate {}, rank {} of {}, first sample {}", options.batch,
                  options.accumulate, options.rank, options.world, options.first_sample);
  if (dataset.size() < 1) fail_input("the dataset is empty: {}", dataset.describe());
  read_ahead();
}

std::vector<Batch> Loader::next() {
  // After an error the same step is tried again: it never hands out a later one instead.
  if (!ahead_.valid()) read_ahead();
  std::vector<Batch> batches = ahead_.get();
  position_ += options_.batch * options_.accumulate * options_.world;
  read_ahead();
  return batches;
}

double Loader::epoch() const { return static_cast<double>(position_) / static_cast<double>(dataset_.size()); }

int64_t Loader::sample_at(int64_t place) const {
  const int64_t size = dataset_.size(), epoch = place / size, index = place % size;
  if (!options_.shuffle) return index;
  const Permutation order(static_cast<uint64_t>(size), options_.seed, static_cast<uint64_t>(epoch));
  return static_cast<int64_t>(order(static_cast<uint64_t>(index)));
}

std::vector<Batch> Loader::read(int64_t from) const {
  std::vector<Batch> batches;
  int64_t place = from + options_.rank * options_.batch * options_.accumulate;
  for (int64_t i = 0; i < options_.accumulate; ++i) {
    std::vector<Sample> samples;
    std::vector<int64_t> ids;
    for (int64_t j = 0; j < options_.batch; ++j, ++place) {
      ids.push_back(sample_at(place));
      samples.push_back(dataset_.read(ids.back()));
    }
    batches.push_back(make_batch(samples, ids));
  }
  return batches;
}

void Loader::read_ahead() {
  ahead_ = std::async(std::launch::async, [this, from = position_] { return read(from); });
}

}  // namespace sinklora
