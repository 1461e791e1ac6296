// train() as the only rank of a run.
#pragma once

#include "train/ranks.h"
#include "train/trainer.h"

namespace sinklora::test {

inline ExitCode train(const TrainOptions& options) {
  return work_alone({options.device, options.precision}, [&](const RankPlace& place) {
    TrainOptions mine = options;
    mine.free_memory = place.free_memory;
    return sinklora::train(mine, *place.ops, place.ranks);
  });
}

}  // namespace sinklora::test
