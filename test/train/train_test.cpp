#include <doctest/doctest.h>

#include <cmath>
#include <fstream>

#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/random.h"
#include "data/shard_writer.h"
#include "model/checksums.h"
#include "model/loaded_model.h"
#include "model/merge.h"
#include "test/model/files.h"
#include "test/temporary.h"
#include "test/train/toy_inputs.h"
#include "test/train/train_alone.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// A model directory that holds only a config, and a token stream with repeated phrases to learn.
void write_inputs(const TemporaryDirectory& folder) {
  write_toy_config(folder / "model");
  std::ofstream data(folder / "data.bin", std::ios::binary);
  const RandomStream random(1, "data");
  for (uint64_t i = 0; i < 40 * kContext; ++i) {
    const auto id = static_cast<uint16_t>(i % 7 < 5 ? i % 7 : random.below(i, kVocab));
    data.write(reinterpret_cast<const char*>(&id), 2);
  }
}

TrainOptions base_options(const TemporaryDirectory& folder, const std::string& out) {
  TrainOptions o;
  o.model = folder / "model";
  o.data = folder / "data.bin";
  o.out = folder / out;
  o.init = "random";
  o.trainable = "full";
  o.context = kContext;
  o.batch = 2;
  o.accumulate = 2;
  o.learning_rate = 1e-2;
  o.warmup = 3;
  o.steps = 9;
  o.save_every = 0;
  o.keep_last = 0;
  o.quiet = true;
  return o;
}

// The lines of metrics.jsonl without what depends on the clock.
std::vector<std::string> timeless_metrics(const std::filesystem::path& out) {
  std::vector<std::string> lines;
  std::ifstream file(out / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    Json json = parse_json(line, "metrics");
    for (const char* key : {"tokens_per_s", "step_ms", "mem_gib"}) json.erase(key);
    lines.push_back(json.dump());
  }
  return lines;
}

// The options of a run of four steps that has been made, with a checkpoint every so often.
TrainOptions made_run(const TemporaryDirectory& folder, int64_t save_every, int64_t keep_last = 3) {
  write_inputs(folder);
  TrainOptions o = base_options(folder, "run");
  o.steps = 4;
  o.save_every = save_every;
  o.keep_last = keep_last;
  train(o);
  return o;
}

// A pretrained model for LoRA runs.
std::filesystem::path pretrain(const TemporaryDirectory& folder) {
  TrainOptions o = base_options(folder, "pretrained");
  train(o);
  return o.out / step_directory_name(o.steps);
}

// A LoRA run on one, whose inputs are written too.
TrainOptions lora_options(const TemporaryDirectory& folder) {
  write_inputs(folder);
  TrainOptions o = base_options(folder, "lora");
  o.model = pretrain(folder);
  o.init = "checkpoint";
  o.trainable = "lora";
  return o;
}

}  // namespace

TEST_CASE("a stopped and resumed run equals a straight one bit for bit") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  const std::filesystem::path model = pretrain(folder);
  for (const std::string trainable : {"lora+", "full"}) {
    CAPTURE(trainable);
    const auto options = [&](const std::string& out, int64_t steps) {
      TrainOptions o = base_options(folder, out + trainable);
      o.init = "checkpoint";
      o.model = model;
      o.trainable = trainable;
      o.steps = steps;
      return o;
    };
    // 40 samples, 4 a step: stops inside the first epoch, on its last step, and inside the second one.
    const TrainOptions straight = options("straight", 12);
    CHECK(train(straight) == ExitCode::ok);
    for (const int64_t stop : {3, 10, 11}) {
      CAPTURE(stop);
      const std::string name = "stopped-at-" + std::to_string(stop);
      train(options(name, stop));
      const TrainOptions rest = options(name, 12);
      CHECK(train(rest) == ExitCode::ok);
      const std::string step = step_directory_name(12);
      for (const auto& entry : std::filesystem::directory_iterator(straight.out / step)) {
        const auto file = entry.path().filename();
        CAPTURE(file);
        CHECK(sha256_of_file(entry.path()) == sha256_of_file(rest.out / step / file));
      }
      CHECK(timeless_metrics(straight.out) == timeless_metrics(rest.out));
    }
  }
}

TEST_CASE("a second run in the same folder is refused and touches nothing") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  const TrainOptions options = base_options(folder, "run");
  std::filesystem::create_directories(options.out / ".tmp-step-00000001");  // the first run is saving
  {
    const DirectoryLock first_run(options.out);
    CHECK_THROWS_AS(train(options), Error);
    CHECK(std::filesystem::exists(options.out / ".tmp-step-00000001"));
  }
  std::filesystem::create_directories(options.out / ".tmp-flight.rank1.json-7.0");
  CHECK(train(options) == ExitCode::ok);
  for (const auto& entry : std::filesystem::directory_iterator(options.out))
    CHECK_MESSAGE(!entry.path().filename().string().starts_with('.'), entry.path());
}

TEST_CASE("training learns, and recompute and bf16 storage keep it on the same course") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  const auto last_loss = [&](const std::string& out, const std::string& recompute) {
    TrainOptions o = base_options(folder, out);
    o.steps = 60;
    o.recompute = recompute;
    train(o);
    return parse_json(timeless_metrics(o.out).back(), "metrics").at("loss").get<double>();
  };
  const double loss = last_loss("none", "none");
  CHECK(loss < 0.5 * std::log(static_cast<double>(kVocab)));  // 5 of 7 tokens are certain once learned
  CHECK(last_loss("block", "block") == loss);
}

TEST_CASE("a damaged newest checkpoint is skipped with a reason, and refused when it is named") {
  const TemporaryDirectory folder;
  TrainOptions o = made_run(folder, 2);
  const auto newest = o.out / step_directory_name(4);
  CHECK(newest_checkpoint(o.out) == newest);
  for (const std::string file : {"model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"}) {
    CAPTURE(file);
    const std::string whole = read_text(newest / file, 1 << 28);
    std::string damaged = whole;
    damaged[damaged.size() / 2] ^= 1;
    write_text_atomically(newest / file, damaged);
    CHECK(newest_checkpoint(o.out) == o.out / step_directory_name(2));
    CHECK_THROWS_AS(verify_sums(newest), Error);
    write_text_atomically(newest / file, whole);
  }
  CHECK(newest_checkpoint(o.out) == newest);
}

TEST_CASE("a checkpoint that was copied or renamed is not taken for one of the step in its name") {
  const TemporaryDirectory folder;
  const TrainOptions o = made_run(folder, 2);
  const auto newest = o.out / step_directory_name(4);
  std::filesystem::copy(o.out / step_directory_name(2), o.out / step_directory_name(9));
  CHECK(newest_checkpoint(o.out) == newest);
  std::filesystem::copy(newest, o.out / "step-5");
  std::filesystem::copy(newest, o.out / "step-000000006");
  CHECK(newest_checkpoint(o.out) == newest);
  CHECK(step_of("step-000000006") == -1);
  CHECK(step_of("step-123456789") == 123456789);
}

TEST_CASE("a run whose metrics and evaluations are damaged goes on, and says which lines are lost") {
  const TemporaryDirectory folder;
  TrainOptions o = made_run(folder, 0);
  write_text_atomically(o.out / "metrics.jsonl", "[]\n");
  write_text_atomically(o.out / "eval.jsonl", "{\"step\":null}\n{\"nll\":1}\n");
  o.steps = 5;
  o.eval_data = o.data, o.eval_every = 1;
  train(o);
  CHECK(timeless_metrics(o.out).size() == 1);
  check_contains(read_text(o.out / "train.log", 1 << 20), "no lines of the steps after 0");
  CHECK(read_text(o.out / "eval.jsonl", 1000).starts_with("{\"step\":4,"));
}

TEST_CASE("resuming with other options names the one that differs") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  TrainOptions o = base_options(folder, "run");
  o.steps = 1;
  train(o);
  o.steps = 2;
  o.learning_rate = 3e-2;
  CHECK_THROWS_WITH_AS(train(o), doctest::Contains("learning_rate"), Error);
  o.resume = "never";
  CHECK_THROWS_WITH_AS(train(o), doctest::Contains("holds a run already"), Error);
}

TEST_CASE(
    "only the newest checkpoints are kept, and a damaged one of a later step takes no place of theirs") {
  const TemporaryDirectory folder;
  TrainOptions o = made_run(folder, 1, 2);
  const auto there = [&](int64_t step) { return std::filesystem::exists(o.out / step_directory_name(step)); };
  CHECK(!there(2));
  CHECK(there(3));
  CHECK(there(4));
  std::filesystem::create_directories(o.out / step_directory_name(90));
  std::filesystem::create_directories(o.out / step_directory_name(91));
  o.steps = 6;
  train(o);
  CHECK(!there(4));
  CHECK(newest_checkpoint(o.out) == o.out / step_directory_name(6));
  CHECK(there(5));
  // One that was damaged since, and the run has gone past.
  std::filesystem::remove(o.out / step_directory_name(6) / "model.safetensors");
  o.steps = 7, o.save_every = 0;
  train(o);
  CHECK(there(5));
  CHECK(!there(6));
  CHECK(there(7));
}

TEST_CASE("going back is refused where a later checkpoint would be gone on from next time") {
  const TemporaryDirectory folder;
  TrainOptions o = made_run(folder, 2);
  const std::vector<std::string> straight = timeless_metrics(o.out);
  o.resume = (o.out / step_directory_name(2)).string();
  CHECK_THROWS_WITH_AS(train(o), doctest::Contains("step-00000004, which is newer"), Error);
  CHECK(timeless_metrics(o.out) == straight);  // nothing is lost
  std::filesystem::rename(o.out / step_directory_name(4), o.out / "aside");
  CHECK(train(o) == ExitCode::ok);
  CHECK(timeless_metrics(o.out) == straight);
}

TEST_CASE("a non-finite gradient stops the run before anything is updated, or is skipped") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  TrainOptions o = base_options(folder, "first");
  o.steps = 1;
  o.learning_rate = 1e3;
  o.warmup = 0;
  o.epsilon = 1e-30;
  train(o);  // one absurd step, so that the next loss may be anything; make it NaN for certain
  const auto checkpoint = o.out / step_directory_name(1);
  poison(checkpoint);
  std::filesystem::remove(checkpoint / "SHA256SUMS");
  TrainOptions poisoned = base_options(folder, "poisoned");
  poisoned.init = "checkpoint";
  poisoned.model = checkpoint;
  poisoned.steps = 3;
  bool stopped = false;
  try {
    train(poisoned);
  } catch (const Error& error) {
    stopped =
        error.code == ExitCode::non_finite && std::string(error.what()).find("samples") != std::string::npos;
  }
  CHECK(stopped);
  CHECK(!newest_checkpoint(poisoned.out));
  poisoned.out = folder / "skipping";
  poisoned.on_nonfinite = "skip";
  CHECK(error_of([&] { train(poisoned); }, ExitCode::non_finite).find("all 3 steps were skipped") !=
        std::string::npos);
  CHECK(parse_json(timeless_metrics(poisoned.out).at(0), "m").value("skipped", false));
}

TEST_CASE("a step without scored tokens leaves the optimizer as it was, its bias correction too") {
  const TemporaryDirectory folder;
  write_toy_config(folder / "model");
  const auto write_rows = [&](const std::string& name, const std::vector<uint8_t>& scored) {
    ShardInfo info;
    info.context = kContext;
    info.vocab_size = kVocab;
    ShardWriter writer(folder / name, info);
    TokenRow row;
    row.document_starts = {0};
    for (int32_t t = 0; t < kContext; ++t) row.ids.push_back(t * t % kVocab);
    for (const uint8_t all : scored) {
      row.scored.assign(row.ids.size(), all);
      writer.append(row);
    }
    writer.finish();
  };
  write_rows("scored.h5", {1});
  write_rows("both.h5", {0, 1});
  write_rows("none.h5", {0, 0});

  const auto weights_after = [&](const std::string& data, const std::string& out,
                                 std::vector<int64_t> stops) {
    TrainOptions o = base_options(folder, out);
    o.data = folder / data;
    o.batch = o.accumulate = 1;
    o.shuffle = false;
    o.schedule = "constant";
    o.warmup = 0;
    for (const int64_t steps : stops) {
      o.steps = steps;
      const bool nothing = data == "both.h5" && steps == 1;
      CHECK(error_of([&] { train(o); }) ==
            (nothing ? fmt::format("--data {}: none of the 1 steps had a scored token, so that nothing was "
                                   "trained; make more steps",
                                   o.data.string())
                     : ""));
    }
    return read_text(o.out / step_directory_name(stops.back()) / "model.safetensors", 1 << 20);
  };
  const std::string plain = weights_after("scored.h5", "plain", {1});
  CHECK(weights_after("both.h5", "skipped", {2}) == plain);
  CHECK(weights_after("both.h5", "resumed", {1, 2}) == plain);
  const std::string two = weights_after("scored.h5", "two", {2});
  CHECK(two != plain);

  TrainOptions unscored = base_options(folder, "unscored");
  unscored.data = folder / "none.h5";
  check_contains(error_of([&] { train(unscored); }), "none.h5: no token of it is scored");
  unscored.data = folder / "scored.h5", unscored.eval_data = folder / "none.h5";
  check_contains(error_of([&] { train(unscored); }), "--eval-data " + unscored.eval_data.string());
  CHECK(!std::filesystem::exists(unscored.out / "metrics.jsonl"));

  // A checkpoint from before updates were counted: each of its steps was one.
  weights_after("scored.h5", "old", {1});
  const auto old = folder / "old" / step_directory_name(1);
  Json state = read_json(old / "state.json");
  state.erase("updates");
  write_text_atomically(old / "state.json", state.dump());
  std::filesystem::remove(old / "SHA256SUMS");  // which would list itself
  write_sums(old);
  CHECK(weights_after("scored.h5", "old", {2}) == two);
}

TEST_CASE("a state.json that is not what a checkpoint holds is refused by its name, whatever it is") {
  const TemporaryDirectory folder;
  TrainOptions o = made_run(folder, 4);
  const auto checkpoint = o.out / step_directory_name(4);
  const Json good = read_json(checkpoint / "state.json");
  const auto refusal = [&](const Json& state) {
    write_text_atomically(checkpoint / "state.json", state.dump());
    std::filesystem::remove(checkpoint / "SHA256SUMS");  // which would list itself
    write_sums(checkpoint);
    return error_of([&] { train(o); });
  };
  const std::string file = (checkpoint / "state.json").string();
  for (const Json& state : {Json(), Json(5), Json("text"), Json::array({1}), Json::object()})
    CHECK(refusal(state) == file + ": not a checkpoint of this program");
  struct Change {
    const char* key;
    Json value;  // null: the key is not there
    std::string message;
  };
  for (const auto& [key, value, message] :
       {Change{"schema", 1, ": not a checkpoint of this program"},
        Change{"schema", nullptr, ": not a checkpoint of this program"},
        Change{"fingerprint", nullptr, ": fingerprint is missing"},
        Change{"fingerprint", "text", ": fingerprint: found \"text\", wanted a JSON object"},
        Change{"step", nullptr, ": step is missing"}, Change{"position", "4", ": position is \"4\", wanted"},
        Change{"tokens", -1, ": tokens is -1, wanted"}, Change{"updates", 5, ": updates is 5, wanted"}}) {
    CAPTURE(message);
    Json state = good;
    state.erase(key);
    if (!value.is_null()) state[key] = value;
    CHECK(refusal(state).starts_with(file + message));
  }
  CHECK(refusal(good).empty());
}

TEST_CASE("--epochs is rounded up to whole steps") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  // Of 40 samples, 4 a step.
  for (const auto& [epochs, steps] :
       {std::pair{1.0, 10}, {1.1, 11}, {0.3, 3}, {0.31, 4}, {0.01, 1}, {1.26, 13}}) {
    CAPTURE(epochs);
    TrainOptions o = base_options(folder, fmt::format("run-{}", epochs));
    o.steps = 0;
    o.epochs = epochs;
    CHECK(train(o) == ExitCode::ok);
    CHECK(newest_checkpoint(o.out) == o.out / step_directory_name(steps));
  }
}

TEST_CASE("learning-rate schedules") {
  CHECK(learning_rate("constant", 2e-5, 1, 20, 100) == doctest::Approx(1e-6));
  CHECK(learning_rate("constant", 2e-5, 20, 20, 100) == 2e-5);
  CHECK(learning_rate("constant", 2e-5, 100, 20, 100) == 2e-5);
  CHECK(learning_rate("linear", 1.0, 60, 20, 100) == doctest::Approx(0.5));
  CHECK(learning_rate("linear", 1.0, 40, 20, 100) == doctest::Approx(0.75));
  CHECK(learning_rate("cosine", 1.0, 60, 20, 100) == doctest::Approx(0.5));
  // Half-way and at its end it meets the line.
  CHECK(learning_rate("cosine", 1.0, 21, 20, 100) > 0.999);
  CHECK(learning_rate("cosine", 1.0, 40, 20, 100) == doctest::Approx((1 + std::sqrt(0.5)) / 2));
  CHECK(learning_rate("cosine", 1.0, 100, 20, 100) == doctest::Approx(0.0));
  CHECK(learning_rate("constant", 1.0, 1, 0, 10) == 1.0);
  CHECK_THROWS_AS(learning_rate("other", 1.0, 9, 0, 10), Error);
}

TEST_CASE("frozen means frozen: a LoRA run changes adapters alone, and a plan equals what is allocated") {
  const TemporaryDirectory folder;
  TrainOptions o = lora_options(folder);
  o.steps = 3;
  train(o);
  const Adapter adapter = read_adapter(o.out / step_directory_name(3), read_config(o.model));
  CHECK(adapter.replaced.empty());
  CHECK(adapter.modules.size() == 8);
  for (const AdapterModule& module : adapter.modules) {
    const auto* b = reinterpret_cast<const float*>(module.b.data.data());
    bool moved = false;
    for (size_t i = 0; i < module.b.data.size() / 4; ++i) moved |= b[i] != 0;
    CHECK(moved);
  }
}

TEST_CASE("the adapter that is saved has the modules of --lora-targets and no others") {
  const TemporaryDirectory folder;
  TrainOptions o = lora_options(folder);
  o.lora_targets = {"q", "v"};
  o.steps = 1;
  train(o);
  const Adapter adapter = read_adapter(o.out / step_directory_name(1), read_config(o.model));
  std::vector<std::string> names;
  for (const AdapterModule& module : adapter.modules) names.push_back(module.name);
  CHECK(names ==
        std::vector<std::string>{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
                                 "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"});
  CHECK(adapter.config.at("target_modules") == Json{"q_proj", "v_proj"});
}

TEST_CASE("an adapter is evaluated with the RoPE scaling that it was trained with, at any context") {
  const TemporaryDirectory folder;
  TrainOptions o = lora_options(folder);
  o.context = 2 * kContext;  // beyond the model's positions
  o.steps = 1;
  train(o);
  const auto rope = [&](const std::filesystem::path& adapter, int64_t context, const std::string& scaling) {
    const LoadedModel loaded = load_for_inference(
        {.model = o.model, .adapter = adapter, .rope_scaling = scaling, .context = context});
    return loaded.llama->config().rope;
  };
  const auto adapter = o.out / step_directory_name(1);
  RopeScaling doubled;
  doubled.type = RopeScaling::Type::linear;
  doubled.factor = 2;
  for (const int64_t context : {kContext / 2, kContext, 2 * kContext, 4 * kContext})
    CHECK(rope(adapter, context, "auto") == doubled);
  CHECK(rope("", kContext, "auto") == RopeScaling{});
  CHECK(rope(adapter, kContext, "none") == RopeScaling{});
  // PEFT reads none of it: the checkpoint and the run's last word say what to tell it.
  const std::string line = R"({"type": "linear", "factor": 2.0, "rope_type": "linear"})";
  for (const auto& file : {adapter / "README.md", o.out / "train.log"})
    CHECK(read_text(file, 1 << 16).find(line) != std::string::npos);
  write_text_atomically(adapter / "README.md", "My model.\n");  // it is there to be edited
  CHECK_NOTHROW(verify_sums(adapter));
}

TEST_CASE("a run of which no checkpoint is whole is not begun anew over its metrics") {
  const TemporaryDirectory folder;
  TrainOptions o = made_run(folder, 2);
  for (const int64_t step : {2, 4})
    std::filesystem::resize_file(o.out / step_directory_name(step) / "model.safetensors", 1000);
  const std::string metrics = read_text(o.out / "metrics.jsonl", 1 << 20);
  o.steps = 6;
  check_contains(error_of([&] { train(o); }), "none of its checkpoints is whole");
  CHECK(read_text(o.out / "metrics.jsonl", 1 << 20) == metrics);
}

TEST_CASE("a run goes on with the base that it began with, wherever that lies now") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  std::filesystem::copy(pretrain(folder), folder / "base");
  const auto go_on = [&](int64_t steps) {
    TrainOptions o = base_options(folder, "run");
    o.init = "checkpoint", o.trainable = "lora", o.model = folder / "base", o.steps = steps;
    train(o);
    return o.out / step_directory_name(steps);
  };
  go_on(1);
  std::filesystem::rename(folder / "base", folder / "moved");
  std::filesystem::copy(folder / "moved", folder / "base");
  go_on(2);
  // Before weights were compared, a fingerprint named the path alone.
  const auto old = go_on(3);
  Json state = read_json(old / "state.json");
  state["fingerprint"].erase("base weights");
  write_text_atomically(old / "state.json", state.dump());
  std::filesystem::remove(old / "SHA256SUMS");
  write_sums(old);
  go_on(4);

  std::fstream raw(folder / "base" / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  raw.seekp(-1, std::ios::end);
  raw.put('\x40');
  raw.close();
  std::filesystem::remove(folder / "base" / "SHA256SUMS");
  check_contains(error_of([&] { go_on(5); }, ExitCode::usage), "base weights");

  // Where nothing is read but the config, that is the base.
  TrainOptions o = base_options(folder, "random");
  o.steps = 1;
  train(o);
  Json config = read_json(folder / "model" / "config.json");
  config["rms_norm_eps"] = 1e-5;
  write_text_atomically(folder / "model" / "config.json", config.dump());
  o.steps = 2;
  check_contains(error_of([&] { train(o); }, ExitCode::usage), "base weights");
}

TEST_CASE("training without scaling beyond a model's positions makes them its own") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  const std::filesystem::path model = pretrain(folder);
  const auto trained = [&](const std::string& trainable) {
    TrainOptions o = base_options(folder, trainable);
    o.init = "checkpoint", o.model = model, o.trainable = trainable, o.rope_scaling = "none";
    o.context = 2 * kContext, o.batch = 1, o.steps = 1;
    train(o);
    return o.out / step_directory_name(1);
  };
  const auto rope_of = [&](const std::filesystem::path& of, int64_t context) {
    InferenceOptions options;
    options.model = of, options.context = context;
    return load_for_inference(options).llama->config().rope;
  };
  const auto adapter = trained("lora");
  MergeOptions merge;
  const AdapterRunInfo run = read_run_info(adapter);
  merge.rope = run.rope, merge.context = run.context;
  const ModelDirectory base(model);
  merge_adapter(base, read_adapter(adapter, base.config()), folder / "merged", merge);
  for (const auto& of : {trained("full"), folder / "merged"}) {
    CHECK(read_config(of).max_positions == 2 * kContext);
    CHECK(rope_of(of, 2 * kContext) == RopeScaling{});
    CHECK(rope_of(of, 4 * kContext).factor == 2);
  }
}

TEST_CASE("a run that goes on with another end says that its schedule has changed") {
  const TemporaryDirectory folder;
  write_inputs(folder);
  TrainOptions o = base_options(folder, "run");
  o.schedule = "cosine";
  for (const int64_t steps : {4, 6, 6}) {
    o.steps = steps;
    train(o);
  }
  const std::string log = read_text(o.out / "train.log", 1 << 20), note = "ended at step 4 and now ends at 6";
  const size_t first = log.find(note);
  REQUIRE(first != std::string::npos);
  CHECK(log.find("schedule ended", first + 1) == std::string::npos);
}
