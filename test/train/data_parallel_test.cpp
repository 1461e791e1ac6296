// Ranks as a user starts them: processes of the program on the CPU, watched from outside.
#include <doctest/doctest.h>

#include <fstream>
#include <future>

#include "base/files.h"
#include "base/hash.h"
#include "data/shard_writer.h"
#include "test/comm/processes.h"
#include "test/comm/thread_communicator.h"
#include "test/model/toy_model.h"
#include "test/run_program.h"
#include "test/temporary.h"
#include "test/train/toy_inputs.h"
#include "train/data_parallel.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

// Rows of unequal lengths and unequal shares of scored tokens; every fifth has none.
void write_rows(const fs::path& path, int64_t rows) {
  ShardInfo info;
  info.context = kContext;
  info.vocab_size = kVocab;
  ShardWriter writer(path, info);
  const RandomStream random(3, "rows");
  uint64_t n = 0;
  for (int64_t row = 0; row < rows; ++row) {
    TokenRow tokens;
    tokens.document_starts = {0};
    tokens.document_id = row;
    const auto length = static_cast<int64_t>(2 + random.below(n++, kContext - 1));
    const uint64_t scored_of_ten = row % 5 == 4 ? 0 : 1 + random.below(n++, 10);
    for (int64_t t = 0; t < length; ++t) {
      tokens.ids.push_back(t % 7 < 5 ? static_cast<int32_t>(t % 7)
                                     : static_cast<int32_t>(random.below(n++, kVocab)));
      tokens.scored.push_back(random.below(n++, 10) < scored_of_ten);
    }
    writer.append(tokens);
  }
  writer.finish();
}

class Runs {
 public:
  Runs() : folder_(memory_folder()) {
    write_toy_config(folder_ / "model");
    write_rows(folder_ / "rows.h5", 43);  // no multiple of a step's samples
  }

  fs::path out(const std::string& name) const { return folder_ / name; }
  // `train` with 8 samples a step, split among the ranks, each with `batch` in a pass.
  std::string command(const std::string& name, int ranks, const std::string& more, int batch = 1) const {
    return fmt::format(
        "train --model '{}' --init random --trainable full --data '{}' --out '{}' --context {} --lr 1e-3 "
        "--warmup 3 --save-every 0 --gpus {} --batch {} --accumulate {} {}",
        (folder_ / "model").string(), (folder_ / "rows.h5").string(), out(name).string(), kContext, ranks,
        batch, 8 / (ranks * batch), more);
  }
  std::string run(const std::string& name, int ranks, const std::string& more, int exit_code = 0,
                  int batch = 1) const {
    const ProgramRun run = run_program(command(name, ranks, more, batch));
    CHECK_MESSAGE(run.exit_code == exit_code, run.output);
    return run.output;
  }
  std::vector<double> losses(const std::string& name) const {
    std::vector<double> losses;
    std::ifstream file(out(name) / "metrics.jsonl");
    for (std::string line; std::getline(file, line) && !file.eof();)  // the last one may be under way
      losses.push_back(parse_json(line, "metrics").at("loss").get<double>());
    return losses;
  }
  fs::path checkpoint(const std::string& name, int64_t step) const {
    return out(name) / step_directory_name(step);
  }

 private:
  const TemporaryDirectory folder_;
};

std::vector<float> read_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = *file.find(name);
  std::vector<float> numbers(static_cast<size_t>(info.elements()));
  file.read(info, 0, numbers);
  return numbers;
}

double norm(const std::vector<float>& numbers) {
  double sum = 0;
  for (const float x : numbers) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

double greatest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double greatest = 0;
  for (size_t i = 0; i < a.size(); ++i) greatest = std::max(greatest, std::abs(a[i] - b[i]));
  return greatest;
}

// The processes of a launcher, in the order of their ranks.
std::vector<pid_t> ranks_of(const RunningProgram& launcher) {
  std::ifstream children(fmt::format("/proc/{0}/task/{0}/children", launcher.id()));
  std::vector<pid_t> ids;
  for (pid_t id; children >> id;) ids.push_back(id);
  return ids;
}

bool left_records(const Runs& runs, const std::string& name) {
  return fs::exists(runs.out(name) / "flight.rank0.json") || fs::exists(runs.out(name) / "flight.rank1.json");
}

bool under_way(const Runs& runs, const std::string& name) {
  return eventually(20, [&] {
    std::ifstream file(runs.out(name) / "metrics.jsonl");
    return std::count(std::istreambuf_iterator<char>(file), {}, '\n') > 2;
  });
}

}  // namespace

TEST_CASE("a backward says where gradients are complete, and ranks sum them meanwhile, bucket by bucket") {
  LlamaConfig config = toy_config();
  config.num_layers = 3;
  for (const bool tied : {false, true})
    for (const bool everything : {false, true}) {
      config.tied_embeddings = tied;
      ModelOptions options = lora_plus(config, {"q", "v", "down"});
      if (everything) {
        options = {};
        options.train_all = true;
      }
      const int world_size = 3;
      std::vector<std::vector<float>> own(world_size), summed(world_size);
      auto ranks = make_thread_communicators(world_size, {});
      // One after another, for the sake of OpenBLAS; only the sums need all ranks at once.
      std::vector<std::unique_ptr<ToyModel>> models;
      for (size_t rank = 0; rank < world_size; ++rank) {
        models.push_back(std::make_unique<ToyModel>(DType::f32, config, options, 20, Recompute::none()));
        Llama& llama = models.back()->llama;
        const Tensor all = llama.weights().gradients.whole();
        const std::span<const float> gradients(all.as<float>(), static_cast<size_t>(all.size()));
        std::vector<std::pair<int64_t, std::vector<float>>> said;
        llama.accumulate_gradients(toy_batch({11, 9}, config.vocab_size, rank), {}, 0.1,
                                   [&](int64_t first_byte) {
                                     const auto tail = gradients.subspan(static_cast<size_t>(first_byte) / 4);
                                     said.emplace_back(first_byte, std::vector(tail.begin(), tail.end()));
                                   });
        REQUIRE(said.size() == 3);
        for (const auto& [first_byte, tail] : said)
          CHECK(std::equal(tail.begin(), tail.end(), gradients.end() - std::ssize(tail)));
        CHECK(said[0].first > said[1].first);
        CHECK(said[1].first > said[2].first);
        own[rank].assign(gradients.begin(), gradients.end());
      }
      std::vector<std::future<void>> sums;
      for (size_t rank = 0; rank < world_size; ++rank)
        sums.push_back(std::async(std::launch::async, [&, rank] {
          const Weights& weights = models[rank]->llama.weights();
          GradientSum sum(*ranks[rank], weights, 1);
          // Rank 1 has nothing to compute in the second round, and starts all at once.
          for (int round = 0; round < 2; ++round) {
            for (int64_t layer = 2; layer >= 0 && (rank != 1 || round == 0); --layer)
              sum.ready_from(weights.layers[static_cast<size_t>(layer)].gradients_begin);
            sum.finish();
          }
          const auto* data = weights.gradients.whole().as<float>();
          summed[rank].assign(data, data + own[rank].size());
        }));
      for (std::future<void>& sum : sums) sum.get();
      for (size_t i = 0; i < own[0].size(); ++i) {
        const float once = (own[0][i] + own[1][i]) + own[2][i];
        for (const std::vector<float>& of_rank : summed) REQUIRE(of_rank[i] == (once + once) + once);
      }
    }
}

TEST_CASE(
    "ranks compute the gradients, the losses and the evaluation of one process; equal runs, equal bits") {
  const Runs runs;
  const auto number = [](int ranks) { return std::to_string(ranks) + "-ranks"; };
  const std::string evaluation = fmt::format("--eval-data '{}'", (runs.out("rows.h5")).string());
  // Unclipped, the first moment after one step is a tenth of the gradient.
  const std::string first = "--steps 1 --grad-clip 0";
  for (const int ranks : {1, 2, 4}) runs.run("first-" + number(ranks), ranks, first);
  runs.run("first-at-once", 1, first, 0, 8);  // means of passes would be another mean
  runs.run("first-halves", 2, first, 0, 4);
  const SafetensorsFile one(runs.checkpoint("first-1-ranks", 1) / "optimizer.safetensors");
  for (const std::string name : {"2-ranks", "4-ranks", "at-once", "halves"}) {
    CAPTURE(name);
    const SafetensorsFile several(runs.checkpoint("first-" + name, 1) / "optimizer.safetensors");
    int compared = 0;
    for (const auto& info : one.tensors()) {
      if (!info.name.ends_with(".exp_avg")) continue;
      const std::vector<float> truth = read_tensor(one, info.name);
      std::vector<float> difference = read_tensor(several, info.name);
      for (size_t i = 0; i < truth.size(); ++i) difference[i] -= truth[i];
      CAPTURE(info.name);
      CHECK(norm(truth) > 0);
      CHECK(norm(difference) <= 1e-5 * norm(truth));
      ++compared;
    }
    CHECK(compared == 21);
  }

  std::vector<std::string> evaluated;
  for (const int ranks : {1, 2, 4}) {
    const std::string output = runs.run(number(ranks), ranks, "--steps 50 --check-every 7 " + evaluation);
    evaluated.push_back(output.substr(output.find("| nll ")).substr(0, 11));  // four digits of it
    CHECK(runs.losses(number(ranks)).size() == 50);
    CHECK(greatest_difference(runs.losses(number(ranks)), runs.losses(number(1))) < 1e-3);
  }
  CHECK(evaluated[1] == evaluated[0]);
  CHECK(evaluated[2] == evaluated[0]);

  runs.run("again", 2, "--steps 50 --check-every 0");
  for (const char* file : {"model.safetensors", "optimizer.safetensors"})
    CHECK(sha256_of_file(runs.checkpoint("again", 50) / file) ==
          sha256_of_file(runs.checkpoint(number(2), 50) / file));
}

TEST_CASE("a run goes on with the same samples at another world size, if a step keeps its samples") {
  const Runs runs;
  runs.run("straight", 1, "--steps 12");
  for (const auto& [before, after] : {std::pair{2, 1}, {1, 2}, {4, 2}}) {
    const std::string name = fmt::format("{}-then-{}", before, after);
    runs.run(name, before, "--steps 7 --schedule constant");  // in the second epoch: 43 samples
    const std::string output = runs.run(name, after, "--steps 12");
    CHECK(output.find("at step 7") != std::string::npos);
    CHECK(greatest_difference(runs.losses(name), runs.losses("straight")) < 1e-4);
  }
  const std::string output = runs.run("2-then-1", 3, "--steps 13", 2);
  CHECK(output.find("the saved run had batch x accumulate x ranks = 8, this one has 6") != std::string::npos);
}

TEST_CASE("ranks that were started with different options say which before they begin") {
  const Runs runs;
  const auto start = [&](int rank, const std::string& more) {
    return std::make_unique<RunningProgram>(
        runs.command("run", 2, more), runs.out(fmt::format("log{}", rank)).string(),
        fmt::format("RANK={0} LOCAL_RANK={0} WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 SINKLORA_NONCE=1 "
                    "SINKLORA_INIT=file://{1}",
                    rank, runs.out("meet").string()));
  };
  int ranks_told = 0;
  const auto first = start(0, "--steps 3"), second = start(1, "--steps 3 --beta1 0.8");
  for (int rank = 0; rank < 2; ++rank) {
    CHECK((rank == 0 ? first : second)->exit_code(30) == 6);
    const std::string log = read_text(runs.out(fmt::format("log{}", rank)), 1 << 20);
    CAPTURE(log);
    const bool told = log.find(
                          "before step 1 the ranks disagree: beta1 is '0.9' on rank 0 and '0.8' on "
                          "rank 1") != std::string::npos;
    CHECK((told || log.find("aborted: left by an exception") != std::string::npos));  // the other one's
    ranks_told += told;
    CHECK((log.find("torchrun: rank 0 of 2") != std::string::npos) == (rank == 0));
  }
  CHECK(ranks_told >= 1);
  CHECK(newest_checkpoint(runs.out("run")) == std::nullopt);
}

TEST_CASE("a non-finite loss ends or skips the step on all ranks, with the samples of each") {
  const Runs runs;
  runs.run("first", 1, "--steps 1");
  poison(runs.checkpoint("first", 1));
  fs::remove(runs.checkpoint("first", 1) / "SHA256SUMS");
  const std::string poisoned =
      fmt::format("--init checkpoint --model '{}' --steps 2 ", runs.checkpoint("first", 1).string());
  const auto replace_model = [&](const std::string& name, const std::string& more) {
    return fmt::format("train --trainable full --data '{}' --out '{}' --context {} --gpus 2 --batch 2 {}{}",
                       runs.out("rows.h5").string(), runs.out(name).string(), kContext, poisoned, more);
  };
  const ProgramRun stopped = run_program(replace_model("stopped", ""));
  CHECK_MESSAGE(stopped.exit_code == 5, stopped.output);
  const size_t samples = stopped.output.find("samples of rank 0: ");
  REQUIRE(samples != std::string::npos);
  CHECK(stopped.output.find("; rank 1: ", samples) != std::string::npos);
  CHECK(!left_records(runs, "stopped"));
  const ProgramRun skipped = run_program(replace_model("skipped", "--on-nonfinite skip"));
  CHECK_MESSAGE(skipped.exit_code == 5, skipped.output);  // all of them
  CHECK(runs.losses("stopped").empty());
  CHECK(fs::exists(runs.checkpoint("skipped", 2)));
}

TEST_CASE(
    "a signal to one rank, to the launcher, or to all of them: one step is saved, all end with 75, and go "
    "on") {
  const Runs runs;
  for (const int victim : {-1, 0, 1, 2}) {  // -1: the launcher; 2: the ranks, and then the launcher
    const std::string name = fmt::format("to{}", victim);
    RunningProgram launcher(runs.command(name, 2, "--steps 1000000"), runs.out(name + ".log").string());
    REQUIRE(under_way(runs, name));
    const std::vector<pid_t> ranks = ranks_of(launcher);
    REQUIRE(ranks.size() == 2);
    for (int rank = 0; rank < 2; ++rank)
      if (victim == 2 || victim == rank) ::kill(ranks[static_cast<size_t>(rank)], SIGTERM);
    if (victim == 2 || victim < 0) ::kill(launcher.id(), SIGTERM);
    CHECK(launcher.exit_code(30) == 75);
    const auto steps = std::ssize(runs.losses(name));
    CHECK(newest_checkpoint(runs.out(name)) == runs.checkpoint(name, steps));
    const std::string log = read_text(runs.out(name + ".log"), 1 << 26);
    CHECK(log.find(fmt::format("saved step {}", steps)) != std::string::npos);
    CHECK(log.find(" ended with exit code") == std::string::npos);  // nobody failed
    runs.run(name, 1, fmt::format("--steps {}", steps + 1));
  }
}

TEST_CASE("a run that is refused leaves no flight records in the folder of another") {
  const Runs runs;
  runs.run("run", 1, "--steps 1");
  CHECK(run_program(runs.command("run", 2, "--steps 2 --beta1 0.8")).exit_code != 0);
  CHECK(!left_records(runs, "run"));
  const DirectoryLock other(runs.out("run"));
  CHECK(run_program(runs.command("run", 2, "--steps 2")).exit_code != 0);
  CHECK(!left_records(runs, "run"));
}

TEST_CASE("a trigger file saves without stopping") {
  const Runs runs;
  RunningProgram launcher(runs.command("run", 2, "--steps 1000000"));
  REQUIRE(under_way(runs, "run"));
  write_text_atomically(runs.out("run") / "save-now", "");
  CHECK(eventually(10, [&] { return newest_checkpoint(runs.out("run")).has_value(); }));
  CHECK(!fs::exists(runs.out("run") / "save-now"));
  const auto steps = std::ssize(runs.losses("run"));
  CHECK(eventually(10, [&] { return std::ssize(runs.losses("run")) > steps; }));
}

TEST_CASE("when a rank is killed the others end at once with its name, and none is left") {
  const Runs runs;
  for (const size_t victim : {0, 2}) {
    const std::string name = fmt::format("killed{}", victim);
    RunningProgram launcher(runs.command(name, 4, "--steps 1000000 --rank-timeout 20"),
                            runs.out(name + ".log").string());
    REQUIRE(under_way(runs, name));
    const std::vector<pid_t> ranks = ranks_of(launcher);
    REQUIRE(ranks.size() == 4);
    ::kill(ranks[victim], SIGKILL);
    CHECK(launcher.exit_code(30) == 128 + SIGKILL);
    const std::string log = read_text(runs.out(name + ".log"), 1 << 26);
    CHECK(log.find(fmt::format("sinklora: rank {} was ended by signal 9", victim)) != std::string::npos);
    for (size_t rank = 0; rank < 4; ++rank) {
      if (rank == victim) continue;
      CHECK(log.find(fmt::format("sinklora: rank {} ended with exit code 6", rank)) != std::string::npos);
      const Json flight = read_json(runs.out(name) / fmt::format("flight.rank{}.json", rank));
      CHECK(flight.dump().find(fmt::format("rank {} (", victim)) != std::string::npos);
    }
    for (const pid_t id : ranks) CHECK(::kill(id, 0) != 0);
  }
}

TEST_CASE("a rank 0 that dies before the ranks have met ends the others at once, with its name") {
  const Runs runs;
  RunningProgram launcher(runs.command("run", 3, "--steps 1000000"), runs.out("log").string());
  std::vector<pid_t> ranks;
  REQUIRE(eventually(20, [&] { return (ranks = ranks_of(launcher)).size() == 3; }));
  REQUIRE(::kill(ranks[0], SIGKILL) == 0);
  CHECK(launcher.exit_code(30) == 128 + SIGKILL);
  const std::string log = read_text(runs.out("log"), 1 << 20);
  CAPTURE(log);
  for (const int rank : {1, 2})
    CHECK(log.find(fmt::format("sinklora: rank {} ended with exit code 6", rank)) != std::string::npos);
  // In the words of how far they had come.
  const std::string said = log.substr(std::min(log.size(), log.find("[rank 1] sinklora: ")));
  CHECK(said.substr(0, said.find('\n')).find("rank 0") != std::string::npos);
  for (const pid_t id : ranks) CHECK(::kill(id, 0) != 0);
}

TEST_CASE("ranks that share the frozen base compute the same bits, whatever is recomputed") {
  const Runs runs;
  const fs::path model = runs.out("deep");  // more layers than the two buffers hold
  write_toy_config(model);
  Json config = read_json(model / "config.json");
  config["num_hidden_layers"] = 5;
  write_text_atomically(model / "config.json", config.dump());
  const auto run = [&](const std::string& name, int ranks, const std::string& more) {
    const ProgramRun ended =
        run_program(fmt::format("train --model '{}' --data '{}' --out '{}' --context {} --gpus {} --batch 1 "
                                "--accumulate {} --steps 6 "
                                "--save-every 3 --lr 1e-2 --warmup 1 --eval-every 4 --eval-data '{}' {}",
                                model.string(), runs.out("rows.h5").string(), runs.out(name).string(),
                                kContext, ranks, 6 / ranks, runs.out("rows.h5").string(), more));
    REQUIRE_MESSAGE(ended.exit_code == 0, ended.output);
    const bool shared = ranks > 1 && more.find("--shard-base") != std::string::npos;
    CHECK((ended.output.find(fmt::format("each rank keeps a share of 1/{}", ranks)) != std::string::npos) ==
          shared);
    std::string evaluations;
    std::istringstream lines(ended.output);
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("eval ")) evaluations += line;
    CHECK(evaluations != "");
    return evaluations;
  };
  run("base", 1, "--init random --trainable full");
  // Of its checkpoint, as of any model, adapters and embeddings are trained from here on.
  const fs::path base = runs.checkpoint("base", 6);
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(base / file, model / file, fs::copy_options::overwrite_existing);
  const auto same = [&](const std::string& whole, const std::string& shared) {
    CAPTURE(shared);
    for (const int64_t step : {3, 6})
      for (const char* file : {"adapter_model.safetensors", "optimizer.safetensors"})
        CHECK(sha256_of_file(runs.checkpoint(shared, step) / file) ==
              sha256_of_file(runs.checkpoint(whole, step) / file));
    CHECK(runs.losses(shared) == runs.losses(whole));
    CHECK(runs.losses(shared).size() == 6);
  };
  for (const int ranks : {1, 2, 3})
    for (const std::string precision : {"fp32", "bf16"}) {
      const std::string name = fmt::format("{}-{}", ranks, precision), options = "--precision " + precision;
      const std::string evaluations = run(name, ranks, options);
      for (const std::string& more : {std::string("--recompute none"), std::string("--recompute block")}) {
        if (precision == "bf16" && more != "--recompute none") continue;
        const std::string shared = name + more.substr(12);
        CHECK(run(shared, ranks, fmt::format("{} {} --shard-base", options, more)) == evaluations);
        same(name, shared);
      }
    }
  run("lora", 2, "--trainable lora");
  run("lora-shared", 2, "--trainable lora --recompute cheap --shard-base");
  same("lora", "lora-shared");
}

TEST_CASE("--shard-base is refused where nothing is frozen, and counted by plan") {
  const Runs runs;
  const std::string full = runs.run("full", 2, "--shard-base", 2);
  CHECK(full.find("--shard-base splits frozen weights, and --trainable full leaves none frozen") !=
        std::string::npos);
  const auto plan = [&](const std::string& more) {
    const ProgramRun planned = run_program(fmt::format("plan --model '{}' --context {} --json - {}",
                                                       SINKLORA_SOURCE_DIR "/assets/tiny-llama", 256, more));
    REQUIRE_MESSAGE(planned.exit_code == 0, planned.output);
    return parse_json(planned.output, "plan").at("bytes");
  };
  const Json whole = plan(""), shared = plan("--gpus 4 --shard-base");
  const auto bytes = [](const Json& lines, const char* what) { return lines.value(what, int64_t{0}); };
  const int64_t layers = bytes(whole, "frozen weights") - bytes(shared, "frozen weights");
  CHECK(layers > 0);
  // Equal layers: a quarter of all, and two of them, give or take what aligns a share to 64 elements.
  const int64_t tiny_layers =
      read_json(fs::path(SINKLORA_SOURCE_DIR) / "assets/tiny-llama/config.json").at("num_hidden_layers");
  CHECK(std::abs(bytes(shared, "frozen weights, a share") - layers / 4) <= tiny_layers * 256);
  CHECK(std::abs(bytes(shared, "frozen weights, two layers") - 2 * layers / tiny_layers) <= 2 * 4 * 256);
}
