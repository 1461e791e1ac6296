// The options of `train`, shared with `plan`.
#pragma once

#include <CLI/CLI.hpp>

#include "train/options.h"

namespace sinklora {

// `options` must outlive the parser.
void add_train_options(CLI::App& verb, TrainOptions& options);

}  // namespace sinklora
