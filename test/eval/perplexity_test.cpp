// Perplexity: LongLoRA's two protocols against a transcription in numpy, ranks against one process, positions
// against losses of single tokens, and caches against sessions.
#include "eval/perplexity.h"

#include <doctest/doctest.h>
#include <sys/inotify.h>

#include <array>
#include <cmath>
#include <numeric>
#include <thread>

#include "base/descriptor.h"
#include "base/json.h"
#include "infer/cached_session.h"
#include "model/loaded_model.h"
#include "test/comm/thread_communicator.h"
#include "test/model/toy_model.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kContext = 40;

// Windows of unequal lengths, some positions not scored; every third one has two documents.
class ToyDataset final : public Dataset {
 public:
  explicit ToyDataset(int64_t windows) : windows_(windows) {}
  int64_t size() const override { return windows_; }
  Sample read(int64_t index) const override {
    const int64_t length = kContext - 3 * (index % 4);
    const Batch batch = toy_batch({length}, toy_config().vocab_size, static_cast<uint64_t>(index));
    Sample sample{batch.ids, batch.targets, {0}};
    if (index % 3 == 2) sample.document_starts.push_back(length / 2 + 1);
    return sample;
  }
  int64_t most_documents() const override { return 1; }
  std::string describe() const override { return "toy"; }
  std::string hash() const override { return "toy"; }

 private:
  int64_t windows_;
};

std::unique_ptr<ToyModel> toy(DType compute, int64_t windows_at_once = 4, int64_t layers = 2) {
  LlamaConfig config = toy_config();
  config.num_layers = layers;
  return std::make_unique<ToyModel>(compute, config, lora_plus(config, {"q", "v"}),
                                    windows_at_once * kContext, Recompute::block(), kMlpTile, kContext);
}

bool same(const Perplexity& a, const Perplexity& b) {
  bool equal = a.windows == b.windows && a.tokens == b.tokens && a.nll == b.nll && a.ppl == b.ppl &&
               a.by_position.size() == b.by_position.size();
  for (size_t i = 0; equal && i < a.by_position.size(); ++i)
    equal =
        a.by_position[i].nll == b.by_position[i].nll && a.by_position[i].tokens == b.by_position[i].tokens;
  return equal;
}

// How often `file` is opened while `work` runs.
int64_t opens_of(const std::string& file, const std::function<void()>& work) {
  const Descriptor watch(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  // Closing is watched as well: equal events in a row are one.
  REQUIRE(::inotify_add_watch(watch.get(), file.c_str(), IN_OPEN | IN_CLOSE) >= 0);
  work();
  std::array<inotify_event, 256> events;  // of a file, and so without names
  const ssize_t bytes = ::read(watch.get(), events.data(), sizeof events);
  REQUIRE(bytes > 0);
  return std::count_if(events.begin(), events.begin() + bytes / static_cast<ssize_t>(sizeof events[0]),
                       [](const inotify_event& event) { return (event.mask & IN_OPEN) != 0; });
}

using Measure = std::function<Perplexity(Llama&, const PerplexityOptions&)>;

// Each rank with a model of its own, as processes have.
std::vector<Perplexity> on_ranks(int world_size, const PerplexityOptions& options, const Measure& measure) {
  std::vector<Perplexity> results(static_cast<size_t>(world_size));
  auto communicators = make_thread_communicators(world_size, {});
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < results.size(); ++rank)
    threads.emplace_back([&, rank, ranks = std::move(communicators[rank])] {
      const auto model = toy(DType::f32);
      PerplexityOptions mine = options;
      mine.ranks = ranks.get();
      results[rank] = measure(model->llama, mine);
    });
  for (std::thread& thread : threads) thread.join();
  return results;
}

double nll_of(const std::vector<float>& logits, int32_t target) {
  double largest = -INFINITY, sum = 0;
  for (const float x : logits) largest = std::max(largest, static_cast<double>(x));
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - largest);
  return largest + std::log(sum) - static_cast<double>(logits[static_cast<size_t>(target)]);
}

KvCachePolicy streaming(int64_t sinks, int64_t recent, KvPositions positions) {
  return {sinks + recent, true, {sinks, 0, recent}, positions};
}
KvCachePolicy h2o(int64_t heavy, int64_t recent) {
  return {heavy + recent, true, {0, heavy, recent}, KvPositions::original};
}

}  // namespace

TEST_CASE("the sliding protocols are those of LongLoRA's eval.py and eval_distributed.py") {
  const Json expected = read_json(golden("perplexity.json"));
  const int64_t context = expected.at("context"), stride = expected.at("stride");
  const auto stream = expected.at("stream").get<std::vector<int32_t>>();
  InferenceOptions options;
  options.model = golden(expected.at("model").get<std::string>());
  options.context = context;
  options.batch = 3;
  const LoadedModel loaded = load_for_inference(options);
  for (const auto& [rule, name] :
       {std::pair{SlidingRule::eval, "eval.py"}, std::pair{SlidingRule::distributed, "eval_distributed.py"}})
    for (const int64_t batch : {1, 3}) {
      const Json& theirs = expected.at(name);
      const Perplexity ours =
          perplexity_sliding(*loaded.llama, stream, {}, context, stride, rule, {.batch = batch});
      CHECK(ours.windows == theirs.at("windows"));
      CHECK(ours.tokens == ours.windows * (context - 1));
      // Ours in float32, theirs in float64: relative errors of 1e-7 a token at most, of nll about 5.
      CHECK(std::fabs(ours.nll - theirs.at("nll").get<double>()) < 1e-6);
      CHECK(std::fabs(ours.ppl / theirs.at("ppl").get<double>() - 1) < 1e-6);
    }
}

TEST_CASE("a stream without a whole window is refused") {
  const auto model = toy(DType::f32);
  const auto measure = [&](size_t tokens, SlidingRule rule) {
    return perplexity_sliding(model->llama, std::vector<int32_t>(tokens, 1), {}, kContext, 8, rule, {})
        .windows;
  };
  CHECK_THROWS_WITH_AS(measure(kContext + 8, SlidingRule::eval),
                       "windows that slide need more than 48 tokens (context + stride); the data has 48",
                       Error);
  CHECK(measure(kContext + 9, SlidingRule::eval) == 1);
  CHECK_THROWS_WITH_AS(measure(kContext, SlidingRule::distributed),
                       "windows that slide need more than 40 tokens (context); the data has 40", Error);
  CHECK(measure(kContext + 1, SlidingRule::distributed) == 1);
}

TEST_CASE("any number of ranks gives the bits of one, idle ranks included") {
  const ToyDataset dataset(11);
  const Batch text = toy_batch({150}, toy_config().vocab_size, 5);
  const std::vector<Measure> measures{[&](Llama& model, const PerplexityOptions& o) {
                                        return perplexity_blocks(model, dataset, {}, kContext, o);
                                      },
                                      [&](Llama& model, const PerplexityOptions& o) {
                                        return perplexity_sliding(model, text.ids, {}, kContext, 9,
                                                                  SlidingRule::eval, o);
                                      },
                                      [&](Llama& model, const PerplexityOptions& o) {
                                        return perplexity_cached(model, dataset, h2o(6, 6), 5, kContext, o);
                                      }};
  for (const Measure& measure : measures)
    for (const int64_t batch : {1, 2}) {
      const PerplexityOptions options{.batch = batch, .buckets = 7};
      const auto model = toy(DType::f32);
      const Perplexity one = measure(model->llama, options);
      CHECK(one.windows > 8);
      for (const int world_size : {2, 3, 13})
        for (const Perplexity& of_rank : on_ranks(world_size, options, measure)) CHECK(same(of_rank, one));
    }
}

TEST_CASE("loss by position: every scored position once, in the bucket where it lies in its sequence") {
  const ToyDataset dataset(7);
  const auto model = toy(DType::f64);
  for (const int64_t buckets : {1, 7, 16, 40, 1000}) {
    CAPTURE(buckets);
    const Perplexity found =
        perplexity_blocks(model->llama, dataset, {}, kContext, {.batch = 2, .buckets = buckets});
    REQUIRE(static_cast<int64_t>(found.by_position.size()) == std::min(buckets, kContext));
    std::vector<double> nll(kContext), count(kContext);
    for (int64_t i = 0; i < dataset.size(); ++i) {
      const Batch batch = make_batch({dataset.read(i)}, {i});
      const std::vector<double> each = model->llama.nll(batch, {});
      for (size_t t = 0; t < each.size(); ++t) {
        nll[static_cast<size_t>(batch.positions[t])] += each[t];
        count[static_cast<size_t>(batch.positions[t])] += batch.targets[t] != kNotScored;
      }
    }
    int64_t next = 0, tokens = 0;
    for (const PositionBucket& bucket : found.by_position) {
      CHECK(bucket.begin == next);
      next = bucket.end;
      const double n = std::accumulate(count.begin() + bucket.begin, count.begin() + bucket.end, 0.0);
      const double sum = std::accumulate(nll.begin() + bucket.begin, nll.begin() + bucket.end, 0.0);
      CHECK(bucket.tokens == std::llround(n));
      CHECK(std::fabs(bucket.nll - (n > 0 ? sum / n : 0)) < 1e-12);
      tokens += bucket.tokens;
    }
    CHECK(next == kContext);
    CHECK(tokens == found.tokens);
    CHECK(std::fabs(found.nll - std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(tokens)) <
          1e-12);
  }
}

TEST_CASE("through a cache that keeps all, the perplexity is that of blocks, whatever chunk and batch") {
  const ToyDataset dataset(9);
  const auto model = toy(DType::f64);
  const Perplexity blocks =
      perplexity_blocks(model->llama, dataset, {}, kContext, {.batch = 2, .buckets = 5});
  const KvCachePolicy full{kContext, false, {}, KvPositions::original};
  for (const KvCachePolicy& policy : {full, h2o(20, 20), streaming(4, 36, KvPositions::index)})
    for (const int64_t chunk : {1, 7, 40})
      for (const int64_t batch : {1, 3}) {
        const Perplexity cached =
            perplexity_cached(model->llama, dataset, policy, chunk, kContext, {.batch = batch, .buckets = 5});
        CHECK(cached.tokens == blocks.tokens);
        CHECK(std::fabs(cached.nll - blocks.nll) < 1e-12);
        for (size_t b = 0; b < 5; ++b)
          CHECK(std::fabs(cached.by_position[b].nll - blocks.by_position[b].nll) < 1e-11);
      }
}

TEST_CASE("a cache that evicts scores each token as a session would that generates the text") {
  const ToyDataset dataset(6);
  const auto model = toy(DType::f32);
  for (const KvCachePolicy& policy :
       {h2o(5, 6), streaming(3, 8, KvPositions::index), streaming(0, 11, KvPositions::index),
        streaming(2, 5, KvPositions::original)}) {
    double sum = 0;
    int64_t tokens = 0;
    CachedSession session(model->llama, policy);
    for (int64_t i = 0; i < dataset.size(); ++i) {
      const Batch batch = make_batch({dataset.read(i)}, {i});
      for (size_t t = 0; t < batch.ids.size(); ++t) {
        if (batch.positions[t] == 0) session.reset();
        const std::vector<float> logits = session.extend(std::span(batch.ids).subspan(t, 1));
        if (batch.targets[t] == kNotScored) continue;
        sum += nll_of(logits, batch.targets[t]);
        ++tokens;
      }
    }
    const double expected = sum / static_cast<double>(tokens);
    for (const int64_t batch : {1, 4}) {
      const Perplexity found =
          perplexity_cached(model->llama, dataset, policy, 1, kContext, {.batch = batch});
      CHECK(found.tokens == tokens);
      CHECK(std::fabs(found.nll - expected) < 1e-5);  // a float32 logit of about 5: 5e-7, some of them
    }
    // A larger chunk sees more, and evicts at other moments: another number.
    const Perplexity coarse = perplexity_cached(model->llama, dataset, policy, 8, kContext, {});
    CHECK(std::fabs(coarse.nll - expected) > 1e-4);
  }
}

TEST_CASE("eval ppl records what it measured; --gpus changes nothing; a cache only goes with blocks") {
  const TemporaryDirectory folder;
  const std::string data = (folder / "rows").string();
  REQUIRE(run_program("corpus --seed 3 --bytes 20k --out '" + (folder / "text").string() + "'").exit_code ==
          0);
  REQUIRE(run_program("tokenize --tokenizer '" SINKLORA_SOURCE_DIR
                      "/assets/tiny-llama' --context 128 --input '" +
                      (folder / "text").string() + "' --out '" + data + "'")
              .exit_code == 0);
  const auto measure = [&](const std::string& more, int exit_code = 0, int context = 128) {
    const std::string file = (folder / "result.json").string();
    const ProgramRun run =
        run_program("eval ppl --model '" SINKLORA_SOURCE_DIR "/assets/tiny-llama' --data '" + data +
                    "' --context " + std::to_string(context) + " --json '" + file + "' " + more);
    CAPTURE(run.output);
    REQUIRE(run.exit_code == exit_code);
    return exit_code == 0 ? read_json(file) : Json(run.output);
  };
  const Json one = measure("--batch 2 --buckets 4");
  for (const char* key :
       {"protocol", "context", "stride", "windows", "tokens", "nll", "ppl", "by_position", "attention",
        "rope_scaling", "data", "data_hash", "precision", "device", "model", "adapter", "version", "commit"})
    CHECK_MESSAGE(one.contains(key), key);
  CHECK(one.at("by_position").size() == 4);
  CHECK(one.at("commit") != "");
  CHECK(measure("--batch 2 --buckets 4 --gpus 2") == one);
  CHECK(measure("--protocol sliding --stride 100 --gpus 3") == measure("--protocol sliding --stride 100"));
  CHECK(measure("--protocol distributed --stride 100").at("windows") ==
        measure("--protocol sliding --stride 100").at("windows").get<int64_t>() + 1);
  const Json cached = measure("--cache streaming --cache-budget 0.25 --cache-sinks 0 --cache-chunk 16");
  CHECK(cached.at("cache") == "streaming");
  CHECK(cached.at("cache_sinks") == 0);
  CHECK(cached.at("cache_chunk") == 16);
  CHECK(cached.at("nll").get<double>() != one.at("nll").get<double>());
  // Its windows are cut from the text, whatever rows the shards have.
  CHECK(measure("--protocol sliding --stride 100", 0, 50).at("context") == 50);
  CHECK(measure("--cache h2o --protocol sliding", 2)
            .get<std::string>()
            .find("--cache is for --protocol blocks") != std::string::npos);
  CHECK(measure("--cache h2o --attention s2", 2).get<std::string>().find("--attention s2") !=
        std::string::npos);
  const Json sf = measure("--attention sf --sinks 8 --group-ratio 0.5 --shifted-heads 0.5");
  CHECK(sf.at("sinks") == 8);
  CHECK(sf.at("group_ratio") == 0.5);
  CHECK(sf.at("shifted_heads") == 0.5);
  CHECK(!one.contains("sinks"));
  write_text_atomically(folder / "stream.bin", std::string(2 * 33, '\0'));
  CHECK(run_program("eval ppl --model '" SINKLORA_SOURCE_DIR "/assets/tiny-llama' --context 32 --data '" +
                    (folder / "stream.bin").string() + "'")
            .output.find("the last 1 tokens left out") != std::string::npos);
  // Opening a shard hashes it: by every protocol once.
  const auto opens = [&](const std::string& protocol) {
    return opens_of(data + "/data-00000.h5", [&] { measure("--protocol " + protocol); });
  };
  CHECK(opens("sliding --stride 100") == opens("blocks"));
  // Options that would change nothing.
  for (const char* idle : {"--cache-budget 0.2", "--cache-chunk 4", "--sinks 8", "--group-ratio 0.5",
                           "--protocol sliding --separate-documents"})
    CHECK_MESSAGE(measure(idle, 2).is_string(), idle);
}

TEST_CASE("eval ppl with windows that slide says how much of a prompt it scores; texts are all scored") {
  const TemporaryDirectory folder;
  const std::string tiny = "'" SINKLORA_SOURCE_DIR "/assets/tiny-llama'";
  std::string records, text;  // 1 + 27 tokens of a prompt, and 11 + 1 of its answer
  for (int i = 0; i < 6; ++i) {
    records += R"({"instruction": "Say how late it is, please.", "output": "It is late."})"
               "\n";
    text += "It is late. ";
  }
  write_text_atomically(folder / "records.jsonl", records);
  write_text_atomically(folder / "text", text);
  const auto data = [&](const std::string& options) {
    const std::string shards = (folder / "shards").string();
    std::filesystem::remove_all(shards);
    REQUIRE(run_program("tokenize --tokenizer " + tiny + " --context 128 --out '" + shards + "' --input '" +
                        folder.path().string() + "/" + options)
                .exit_code == 0);
  };
  const auto said = [&](const std::string& protocol) {
    const ProgramRun run = run_program("eval ppl --model " + tiny + " --data '" +
                                       (folder / "shards").string() + "' --protocol " + protocol);
    CAPTURE(run.output);
    REQUIRE(run.exit_code == 0);
    const size_t note = run.output.find("note:");
    CHECK(run.output.find("note:", note + 1) == std::string::npos);  // of one rank
    return note == std::string::npos ? "" : run.output.substr(note, run.output.find('\n', note) - note);
  };
  const std::string none = "records.jsonl' --format alpaca --template none";
  for (const std::string packing : {"", " --pack"}) {
    data(none + packing);
    CHECK(said("blocks --context 128") == "");
    for (const std::string protocol : {"sliding", "distributed"})
      CHECK(said(protocol + " --context 32 --stride 8 --gpus 2") ==
            "note: " + (folder / "shards").string() +
                ": 162 of 240 tokens are masked, as prompts are, and --protocol " + protocol +
                " scores them all the same; --protocol blocks leaves them out");
  }
  data("text'");
  CHECK(said("sliding --context 32 --stride 8") == "");
}
