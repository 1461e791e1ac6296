#include "train/plan.h"

#include <doctest/doctest.h>

#include "kernels/timed_ops.h"

using namespace sinklora;

namespace {

// A model whose activations are much larger than everything else.
TrainSetup wide_setup(int64_t tokens) {
  TrainSetup setup;
  setup.config.vocab_size = 64, setup.config.hidden_size = 64, setup.config.intermediate_size = 160;
  setup.config.num_layers = 6, setup.config.num_heads = 4, setup.config.num_kv_heads = 2;
  setup.config.head_dim = 16;
  setup.model.adapters = uniform_adapters(setup.config, {"q", "v", "down"}, 4, 8);
  setup.model.train_adapters = true;
  setup.pattern = make_pattern({}, tokens, setup.config.num_heads);
  setup.max_tokens = tokens;
  return setup;
}

struct Listening final : TimedOps {
  Listening() : TimedOps(make_cpu_ops(DType::f32)) {}
  int64_t scratch_bytes(const PassShape& shape) const override {
    sequences = shape.sequences;
    return TimedOps::scratch_bytes(shape);
  }
  mutable int64_t sequences = 0;
};

}  // namespace

TEST_CASE("plan: auto keeps as much as fits, and drops what is cheapest per byte first") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(DType::f32);
  TrainOptions options;
  options.context = 65536;
  const TrainSetup setup = wide_setup(options.context);
  const auto total = [&](const char* level) {
    options.recompute = level;
    return plan_memory(options, setup, *ops).total;
  };
  const int64_t none = total("none"), cheap = total("cheap"), block = total("block");
  CHECK(none > cheap);
  CHECK(cheap > block);

  options.recompute = "auto";
  const auto choices = kept_choices(options, setup);
  for (size_t i = 1; i < choices.size(); ++i) CHECK(choices[i - 1].cost() <= choices[i].cost());
  for (double part = 0.02; part < 1; part += 0.07) {
    const auto limit = block + static_cast<int64_t>(part * static_cast<double>(none - block));
    options.memory_limit = static_cast<double>(limit) / 1073741824.0;
    const MemoryPlan plan = plan_memory(options, setup, *ops);
    CHECK(plan.fits());
    CHECK(plan.total <= limit);
    // What one more layer of the last group dropped would take: no more than that is left unused.
    const int64_t largest = 4 * 2 * setup.config.intermediate_size * setup.max_tokens;
    CHECK(plan.total > limit - largest - 4096);
    // Groups are dropped in the order of their cost: none is kept in part before all cheaper ones are gone.
    bool kept = false;
    for (const KeptChoice& choice : choices) {
      Recompute recompute = plan.recompute;
      if (kept) CHECK(recompute[choice.group] >= setup.config.num_layers);
      kept = kept || recompute[choice.group] > 0;
    }
  }
  options.memory_limit = static_cast<double>(block - 4096) / 1073741824.0;
  CHECK_FALSE(plan_memory(options, setup, *ops).fits());
}

TEST_CASE("plan: scratch is for as many documents as the data has, or for documents of 1024 tokens") {
  Listening ops;
  TrainOptions options;
  options.context = 8192, options.batch = 2;
  TrainSetup setup = wide_setup(options.batch * options.context);
  const auto planned = [&](int64_t most_documents) {
    setup.most_documents = most_documents;
    plan_memory(options, setup, ops);
    return ops.sequences;
  };
  CHECK(planned(0) == 2 * 8 + 8);
  CHECK(planned(1) == 2);
  CHECK(planned(500) == 1000);
}
