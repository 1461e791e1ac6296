// Decoding on the GPU: attention and eviction for the next token of several sequences, products with few
// rows, and recorded repetitions.
#include "infer/cached_session.h"
#include "kernels/backend.h"
#include "test/cuda/gpu_test.h"
#include "test/model/toy_model.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

struct Case {
  std::vector<int64_t> counts;  // of each sequence's cache
  int64_t capacity, heads, kv_heads, dim, padding;
  int64_t sequences() const { return static_cast<int64_t>(counts.size()); }
};
// Query heads that share keys and those that do not, packed heads and others, whole and broken runs, empty
// and full caches, more sequences than a launch takes.
const Case kCases[] = {{{0}, 3, 4, 2, 64, 8},
                       {{256, 5, 300}, 300, 6, 2, 64, 8},
                       {{255, 256, 257}, 600, 4, 4, 128, 8},
                       {{1000, 40}, 1000, 8, 2, 128, 8},
                       {{700}, 701, 16, 2, 128, 8},
                       {{5000}, 5000, 9, 3, 64, 8},
                       {{70, 33}, 70, 4, 1, 80, 0},
                       {{12}, 12, 2, 1, 256, 8},
                       {std::vector<int64_t>(35, 20), 20, 2, 2, 64, 8}};
enum Index {
  kOut,
  kLse,
  kNewMass,
  kMass,
  kPositions,
  kRanks,
  kCachedK,
  kCachedV,
  kQ,
  kK,
  kV,
  kCounts,
  kCosines,
  kSines
};

std::vector<Argument> arguments_of(const Case& c) {
  const int64_t s = c.sequences(), width = c.heads * c.dim, kv_width = c.kv_heads * c.dim;
  const int64_t slots = s * c.capacity, half = c.dim / 2, keys = c.capacity + 1, terms = keys + c.dim;
  Values cosines, sines, counts, ranks(static_cast<size_t>(s * c.kv_heads * c.capacity)), mass = ranks;
  for (int64_t p = 0; p < keys; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * std::pow(100.0, -static_cast<double>(i) / 8.0);
      cosines.push_back(std::cos(angle)), sines.push_back(std::sin(angle));
    }
  for (int64_t n = 0; n < s; ++n) {
    const int64_t count = c.counts[static_cast<size_t>(n)];
    counts.push_back(static_cast<double>(count)), counts.push_back(static_cast<double>(3 * count + 1));
    for (int64_t g = 0; g < c.kv_heads; ++g)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t slot = (i * (count % 7 == 0 ? 1 : 7) + g) % count;
        const auto at = static_cast<size_t>((n * c.kv_heads + g) * c.capacity + slot);
        ranks[at] = static_cast<double>(i);
        mass[at] =
            1 + static_cast<double>((i * (count % 11 == 0 ? 1 : 11) + n) % count);  // far apart, no ties
      }
  }
  const Values positions = [&] {
    Values all = ranks;
    for (double& x : all) x *= 3;
    return all;
  }();
  const auto act = [&](const char* name, int64_t rows, int64_t columns, int64_t padding, bool output) {
    return Argument{.name = name,
                    .rows = rows,
                    .columns = columns,
                    .values = normal_values(rows * columns, name),
                    .output = output,
                    .padding = padding,
                    .terms = terms};
  };
  Argument out = act("out", s, width, c.padding, true);
  out.values.clear();
  const auto stat = [&](const char* name, int64_t rows, int64_t columns, Values values, bool output) {
    return Argument{.name = name,
                    .kind = Kind::stat,
                    .rows = rows,
                    .columns = columns,
                    .values = std::move(values),
                    .output = output,
                    .terms = c.heads / c.kv_heads + terms};
  };
  const auto whole = [&](const char* name, int64_t rows, int64_t columns, Values values, bool output) {
    return Argument{.name = name,
                    .kind = Kind::i32,
                    .rows = rows,
                    .columns = columns,
                    .values = std::move(values),
                    .output = output};
  };
  const int64_t rows = s * c.kv_heads;
  return {out,
          stat("lse", c.heads, s, {}, true),
          stat("new mass", rows, 1, {}, true),
          stat("mass", rows, c.capacity, mass, true),
          whole("positions", rows, c.capacity, positions, true),
          whole("ranks", rows, c.capacity, ranks, true),
          act("cached k", slots, kv_width, 0, true),
          act("cached v", slots, kv_width, 0, true),
          act("q", s, width, c.padding, false),
          act("k", s, kv_width, c.padding, false),
          act("v", s, kv_width, c.padding, false),
          whole("counts", s, 2, counts, false),
          stat("cosines", keys, half, cosines, false),
          stat("sines", keys, half, sines, false)};
}

void decode(Ops& ops, const Case& c, const std::vector<Tensor>& t, bool turned) {
  std::vector<KvStep> steps;
  for (int64_t n = 0; n < c.sequences(); ++n) {
    const auto slots = [&](int index) {
      return t[static_cast<size_t>(index)].row_slice(n * c.capacity, c.capacity);
    };
    const auto heads = [&](int index) {
      return t[static_cast<size_t>(index)].row_slice(n * c.kv_heads, c.kv_heads);
    };
    const int64_t count = c.counts[static_cast<size_t>(n)], sinks = c.capacity / 10, recent = c.capacity / 3;
    steps.push_back({{slots(kCachedK), slots(kCachedV), heads(kPositions), turned ? heads(kRanks) : Tensor{},
                      heads(kMass), count},
                     {sinks, c.capacity - sinks - recent, recent},
                     heads(kNewMass),
                     3 * count + 1,
                     count});
  }
  ops.decode_attention(t[kOut], t[kLse], t[kQ], t[kK], t[kV], steps, t[kCounts], t[kCosines], t[kSines],
                       c.dim);
}

}  // namespace

TEST_CASE("decode_attention on the GPU: outputs, masses and what the caches keep against f64") {
  for (const Case& c : kCases)
    for (const bool turned : {false, true}) {
      CAPTURE(c.counts.front());
      CAPTURE(c.heads);
      CAPTURE(c.dim);
      CAPTURE(turned);
      check_op(arguments_of(c), [&](Ops& ops, const std::vector<Tensor>& t) { decode(ops, c, t, turned); });
    }
}

TEST_CASE("linear_forward on the GPU: few rows against f64; a row's bits do not depend on the others") {
  constexpr int64_t kMost = 33;
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{712, 333}, {4096, 16}, {64, 40}, {2056, 17}}) {
    CAPTURE(in);
    CAPTURE(out);
    const auto arguments = [&, in = in, out = out](int64_t rows) {
      return std::vector<Argument>{
          {.name = "y",
           .rows = rows,
           .columns = out,
           .values = {},
           .output = true,
           .padding = 3,
           .terms = in},
          {.name = "x", .rows = rows, .columns = in, .values = normal_values(rows * in, "x"), .padding = 8},
          {.name = "w", .rows = out, .columns = in, .values = normal_values(out * in, "w")}};
    };
    const Op multiply = [](Ops& on, const std::vector<Tensor>& t) {
      on.linear_forward(t[0], {}, t[1], {t[2], {}});
    };
    for (const int64_t rows : {1, 2, 7, 9, 16, 24, 31, 32, 33}) check_op(arguments(rows), multiply);
    const Values most = evaluate(*backends().bf16, arguments(kMost - 1), multiply)[0];
    for (int64_t rows = 1; rows < kMost; ++rows) {
      std::vector<Argument> some = arguments(rows);
      CHECK(evaluate(*backends().bf16, some, multiply)[0] == Values(most.begin(), most.begin() + rows * out));
    }
  }
}

TEST_CASE("decoding on the GPU: recorded repetitions give the bits of steps that run one by one") {
  const int64_t context = quick() ? 24 : 72;  // steps are recorded anew at 1, 2, 4, ... 64 keys
  const LlamaConfig config = toy_config();
  const ModelOptions options = lora_plus(config, {"q", "k", "v", "o"});
  for (const char* const precision : {"fp32", "bf16"})
    for (const KvCachePolicy& policy : {KvCachePolicy{context, false, {}, KvPositions::original},
                                        KvCachePolicy{20, true, {0, 10, 10}, KvPositions::original},
                                        KvCachePolicy{20, true, {2, 0, 18}, KvPositions::index}}) {
      CAPTURE(precision);
      CAPTURE(policy.capacity);
      ToyModel toy(make_ops("cuda", precision), config, options, context, Recompute::block(), kMlpTile,
                   context);
      KvCache first(toy.llama.ops(), config, policy, context),
          second(toy.llama.ops(), config, policy, context), third(toy.llama.ops(), config, policy, context);
      const Batch text = toy_batch({context}, config.vocab_size, 3);
      // Steps of two sequences, one a token behind. What comes between steps leaves nothing to repeat.
      const auto run = [&](bool disturbed) {
        std::vector<float> all;
        first.clear(), second.clear(), third.clear();
        const auto id = [&](int64_t at) { return std::span(text.ids).subspan(static_cast<size_t>(at), 1); };
        for (int64_t i = 0; i + 1 < context; ++i) {
          const Continuation both[]{{id(i), &first}, {id(i + 1), &second}}, other{id(i), &third};
          const std::vector<float> logits = toy.llama.extend(both);
          all.insert(all.end(), logits.begin(), logits.end());
          if (disturbed) toy.llama.absorb({&other, 1});
        }
        return all;
      };
      const std::vector<float> repeated = run(false), alone = run(true);
      CHECK(repeated == alone);
      KvCache copy(toy.llama.ops(), config, policy, context);
      copy.copy_from(first);
      const std::vector<int32_t> next{text.ids[5]};
      const Continuation of_copy{next, &copy}, of_first{next, &first};
      CHECK(toy.llama.extend({&of_copy, 1}) == toy.llama.extend({&of_first, 1}));
    }
}

TEST_CASE("a full cache that evicts nothing refuses a step on the GPU, also one that would be repeated") {
  constexpr int64_t kCapacity = 70, kContext = 120;  // the last six steps are one recording
  const LlamaConfig config = toy_config();
  ToyModel toy(make_ops("cuda", "bf16"), config, lora_plus(config, {"q"}), kContext, Recompute::block(),
               kMlpTile, kContext);
  KvCache cache(toy.llama.ops(), config, {kCapacity, false, {}, KvPositions::original}, kContext);
  const Batch text = toy_batch({kContext}, config.vocab_size, 3);
  const auto step = [&](int64_t at) {
    const Continuation one{std::span(text.ids).subspan(static_cast<size_t>(at), 1), &cache};
    toy.llama.absorb({&one, 1});
  };
  for (int64_t i = 0; i < kCapacity; ++i) step(i);
  CHECK_THROWS_AS(step(kCapacity), Error);
}
