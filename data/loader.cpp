#include <future>

#include "base/error.h"
#include "base/random.h"
#include "data/dataset.h"

namespace sinklora {

struct Loader::Impl {
  const Dataset& dataset;
  LoaderOptions options;
  int64_t position;
  std::future<std::vector<Batch>>
      ahead;  // the step at `position`; last, so that it ends before the rest goes

  int64_t step() const { return options.batch * options.accumulate * options.world; }

  int64_t sample_at(int64_t place) const {
    const int64_t size = dataset.size(), epoch = place / size, index = place % size;
    if (!options.shuffle) return index;
    const Permutation order(static_cast<uint64_t>(size), options.seed, static_cast<uint64_t>(epoch));
    return static_cast<int64_t>(order(static_cast<uint64_t>(index)));
  }

  std::vector<Batch> read(int64_t from) const {
    std::vector<Batch> batches;
    int64_t place = from + options.rank * options.batch * options.accumulate;
    for (int64_t i = 0; i < options.accumulate; ++i) {
      std::vector<Sample> samples;
      std::vector<int64_t> ids;
      for (int64_t j = 0; j < options.batch; ++j, ++place) {
        ids.push_back(sample_at(place));
        samples.push_back(dataset.read(ids.back()));
      }
      batches.push_back(make_batch(samples, ids));
    }
    return batches;
  }

  void read_ahead() {
    ahead = std::async(std::launch::async, [this, from = position] { return read(from); });
  }
};

Loader::Loader(const Dataset& dataset, const LoaderOptions& options)
    : impl_(new Impl{dataset, options, options.first_sample, {}}) {
  if (options.batch < 1 || options.accumulate < 1 || options.world < 1 || options.rank < 0 ||
      options.rank >= options.world || options.first_sample < 0)
    fail_internal("loader: batch {}, accumulate {}, rank {} of {}, first sample {}", options.batch,
                  options.accumulate, options.rank, options.world, options.first_sample);
  if (dataset.size() < 1) fail_input("the dataset is empty: {}", dataset.describe());
  impl_->read_ahead();
}

Loader::~Loader() = default;

std::vector<Batch> Loader::next() {
  // After an error the same step is tried again: it never hands out a later one instead.
  if (!impl_->ahead.valid()) impl_->read_ahead();
  std::vector<Batch> batches = impl_->ahead.get();
  impl_->position += impl_->step();
  impl_->read_ahead();
  return batches;
}

int64_t Loader::position() const { return impl_->position; }
double Loader::epoch() const {
  return static_cast<double>(impl_->position) / static_cast<double>(impl_->dataset.size());
}

}  // namespace sinklora
