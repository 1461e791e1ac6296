#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/files.h"
#include "base/json.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::run_program;
using sinklora::test::TemporaryDirectory;

TEST_CASE("corpus writes the same bytes for the same seed, and nothing else is left in the folder") {
  const TemporaryDirectory folder;
  const std::string out = "--bytes 20k --out '" + folder.path().string();
  REQUIRE(run_program("corpus --seed 3 " + out + "/a'").exit_code == 0);
  REQUIRE(run_program("corpus --seed 3 " + out + "/b'").exit_code == 0);
  REQUIRE(run_program("corpus --seed 4 " + out + "/c'").exit_code == 0);
  const std::string a = read_text(folder / "a", 100'000);
  CHECK(a.size() > 20'000);
  CHECK(a == read_text(folder / "b", 100'000));
  CHECK(a != read_text(folder / "c", 100'000));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 3);
}

TEST_CASE("corpus overwrites nothing, and clears up what a killed one has left") {
  const TemporaryDirectory folder;
  const std::string out = (folder / "a.json").string();
  write_text_atomically(folder / ".tmp-a.json-17.0", "half");
  REQUIRE(run_program("corpus --bytes 3k --out '" + out + "'").exit_code == 0);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  const std::string before = read_text(out, 100'000);
  for (const std::string format : {"jsonl", "alpaca", "text"}) {
    CAPTURE(format);
    const auto run = run_program("corpus --seed 2 --bytes 3k --format " + format + " --out '" + out + "'");
    CHECK(run.exit_code == 2);
    CHECK(run.output.find("a.json: exists already; choose another output") != std::string::npos);
    CHECK(read_text(out, 100'000) == before);
  }
}

TEST_CASE("a run's own run.toml starts the next one, whether steps or epochs were given") {
  const TemporaryDirectory folder;
  const auto at = [&](const std::string& name) { return (folder / name).string(); };
  REQUIRE(run_program("corpus --bytes 3k --out " + at("text.jsonl")).exit_code == 0);
  REQUIRE(run_program("tokenize --tokenizer byte --context 64 --input " + at("text.jsonl") + " --out " +
                      at("data"))
              .exit_code == 0);
  for (const auto& [length, first, next] :
       {std::array<std::string, 3>{"--steps 2", "run1", "next1"}, {"--epochs 0.05", "run2", "next2"}}) {
    REQUIRE(run_program("train --model '" SINKLORA_SOURCE_DIR
                        "/assets/tiny-llama' --force-tokenizer --context 64 --data " +
                        at("data") + " --out " + at(first) + " " + length)
                .exit_code == 0);
    const auto again =
        run_program("train --config " + at(first).append("/run.toml") + " --attention s2 --out " + at(next));
    CHECK_MESSAGE(again.exit_code == 0, again.output);
  }
}

TEST_CASE("every verb reads its options from a file, also a verb of a verb") {
  const TemporaryDirectory folder;
  write_text_atomically(folder / "options.toml",
                        "model = '" SINKLORA_SOURCE_DIR "/assets/tiny-llama'\nmax-tokens = 600\n");
  const std::string config = " --config " + (folder / "options.toml").string();
  const auto passkey = run_program("eval passkey --interval 600 --depths 1 --trials 1 --json -" + config);
  CHECK_MESSAGE(passkey.output.find("\"wanted_tokens\":600") != std::string::npos, passkey.output);
  const auto chat = run_program("chat" + config);
  CHECK(chat.exit_code == 2);
  CHECK_MESSAGE(chat.output.find("chat.max-tokens") != std::string::npos, chat.output);
}

TEST_CASE("a wrong command line ends with 2, names the option and writes nothing") {
  const TemporaryDirectory folder;
  const std::string out = " --out '" + (folder / "x").string() + "'";
  for (const std::string option : {"--bytes", "--seed", "--shortest", "--longest"})
    for (const std::string value : {"nan", "inf", "-1", "''", "010", "1e39", "99999999999999999999"}) {
      const auto run = run_program("corpus " + option + "=" + value + out);
      CAPTURE(option);
      CAPTURE(value);
      CHECK(run.exit_code == 2);
      CHECK(run.output.find(option) != std::string::npos);
    }
  CHECK(run_program("corpus --shortest 3000 --longest 2000" + out).exit_code == 2);
  CHECK(run_program("corpus --format yaml" + out).exit_code == 2);
  CHECK(run_program("corpus --no-such-option" + out).exit_code == 2);
  CHECK(run_program("corpus").exit_code == 2);
  CHECK(run_program("").exit_code == 2);
  CHECK(run_program("no-such-verb").exit_code == 2);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("output that cannot be written is refused on one line") {
  const auto run = run_program("corpus --out /no/such/folder/x");
  CHECK(run.exit_code == 3);
  CHECK(run.output.find("/no/such/folder/x: cannot create") != std::string::npos);
  CHECK(std::count(run.output.begin(), run.output.end(), '\n') == 1);
}

TEST_CASE("every verb has help with examples and exit codes") {
  for (const std::string verb :
       {"tokenize",    "inspect",        "plan",     "train", "eval ppl", "eval passkey", "eval lines",
        "eval topics", "eval questions", "generate", "chat",  "corpus",   "bench step",   "bench attention",
        "bench gemm",  "bench decode",   "env",      "merge", "export",   "verify"}) {
    CAPTURE(verb);
    const auto run = run_program(verb + " --help");
    CHECK(run.exit_code == 0);
    CHECK(run.output.find("Examples:") != std::string::npos);
    CHECK(run.output.find("Exit codes:") != std::string::npos);
  }
}

TEST_CASE("bench attention takes its heads from a model's shape, or by number") {
  const std::string bench =
      "bench attention --context 40 --patterns full --device cpu --precision fp32 --warmup 0 --repeat 1 "
      "--json - --shape smollm2-135m";
  const auto run = run_program(bench);
  CHECK(run.exit_code == 0);
  const Json row = parse_json(run.output, "bench").at(0);
  CHECK(row.at("heads") == 9);
  CHECK(row.at("kv_heads") == 3);
  CHECK(row.at("head_dim") == 64);
  const auto both = run_program(bench + " --heads 4");
  CHECK(both.exit_code == 2);
  CHECK(both.output.find("--shape excludes --heads") != std::string::npos);
}

TEST_CASE(
    "a run keeps what its console and its evaluations said; its checkpoints are read as they were saved") {
  const TemporaryDirectory folder;
  const auto at = [&](const std::string& name) { return (folder / name).string(); };
  const std::string tiny = SINKLORA_SOURCE_DIR "/assets/tiny-llama", model = " --model '" + tiny + "'";
  REQUIRE(run_program("corpus --bytes 3k --out " + at("text.jsonl")).exit_code == 0);
  const std::string tokenize = "tokenize --context 64 --input " + at("text.jsonl");
  REQUIRE(run_program(tokenize + " --tokenizer '" + tiny + "' --out " + at("data")).exit_code == 0);
  const std::string train = "train --steps 2 --eval-every 1 --quiet --context 64 --data " + at("data") +
                            " --eval-data " + at("data") + model + " --out ";
  const auto trained = run_program(train + at("run"));
  CHECK(trained.exit_code == 0);
  CHECK(trained.output == "");
  const std::string log = read_text(folder / "run/train.log", 1 << 20);
  CHECK(log.find("step 2/2 | loss") != std::string::npos);
  const std::string evaluated = read_text(folder / "run/eval.jsonl", 1 << 20);
  CHECK(std::count(evaluated.begin(), evaluated.end(), '\n') == 2);  // a step each, the last one once
  const Json last = parse_json(evaluated.substr(evaluated.rfind('{')), "eval");
  CHECK(last.at("step") == 2);
  CHECK(read_json(folder / "run/env.json").at("commit").is_string());

  const std::string eval = "eval ppl --context 64 --data " + at("data") + model + " --adapter " + at("run");
  const auto lost = run_program(eval + " --json /no/such/folder/x");  // the numbers are not
  CHECK(lost.exit_code == 3);
  const double nll = parse_json(lost.output.substr(lost.output.find("{\""),
                                                   lost.output.find("}\n") + 1 - lost.output.find("{\"")),
                                "eval")
                         .at("nll");
  CHECK(nll == doctest::Approx(last.at("nll").get<double>()).epsilon(1e-6));

  CHECK(run_program("verify " + at("run")).exit_code == 0);
  const auto weights = folder / "run/step-00000002/adapter_model.safetensors";
  std::string bytes = read_text(weights, 1 << 24);
  bytes[bytes.size() - 100] ^= 1;
  write_text_atomically(weights, bytes);
  for (const std::string& verb : {"verify " + at("run"), eval,
                                  "export --adapter-only --adapter " + at("run") + " --out " + at("exported"),
                                  "merge" + model + " --adapter " + at("run") + " --out " + at("merged")}) {
    const auto damaged = run_program(verb);
    CHECK(damaged.exit_code == 3);
    CHECK_MESSAGE(damaged.output.find("SHA-256 differs") != std::string::npos, damaged.output);
  }

  std::filesystem::copy(tiny, folder / "model");
  const auto into_model = run_program(train + at("model"));
  CHECK(into_model.exit_code == 2);
  CHECK(!std::filesystem::exists(folder / "model/metrics.jsonl"));
  write_text_atomically(folder / "model/SHA256SUMS",
                        "# in another's style\n" + std::string(64, '0') + "  a/b\n");
  CHECK(run_program("eval ppl --context 64 --data " + at("data") + " --model " + at("model")).exit_code == 0);
  std::filesystem::remove(folder / "model/tokenizer_config.json");
  std::filesystem::copy(test::golden("tokenizer/gpt2.json"), folder / "model/tokenizer.json");
  const auto other = run_program("eval ppl --context 64 --data " + at("data") + " --model " + at("model"));
  CHECK(other.exit_code == 3);
  CHECK(other.output.find("made with another tokenizer") != std::string::npos);
}

TEST_CASE("env tells versions and the machine, to people and as JSON") {
  const auto run = run_program("env --json -");
  REQUIRE(run.exit_code == 0);
  const Json environment = parse_json(run.output, "env");
  for (const char* key : {"sinklora", "compiler", "hdf5", "openblas", "cpu", "cuda", "nccl"}) {
    CAPTURE(key);
    CHECK(!environment.at(key).get<std::string>().empty());
  }
  CHECK(environment.at("cpus") >= 1);
  CHECK(environment.at("openmp_threads") >= 1);
  CHECK(environment.at("memory_bytes") > 100'000'000);
  CHECK(environment.at("available_memory_bytes") <= environment.at("memory_bytes"));
  CHECK(environment.at("free_disk_bytes") > 0);
  CHECK(run_program("env").output.find("openblas") != std::string::npos);
}
