// sinklora generate with the tiny model that ships with the project: 259 tokens, bytes and <s>, </s>, <pad>.
#include <doctest/doctest.h>

#include "base/files.h"
#include "base/json.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::run_program;

namespace {

const std::string kGenerate =
    "generate --model '" SINKLORA_SOURCE_DIR "/assets/tiny-llama' --max-new-tokens 40 ";

Json generated(const std::string& options) {
  const auto run = run_program(kGenerate + options + " --json -");
  REQUIRE_MESSAGE(run.exit_code == 0, run.output);
  return parse_json(run.output, "generate");
}

}  // namespace

TEST_CASE("generate: the same seed gives the same text, another seed another") {
  const std::string sampled = "--prompt 'The sea' --temperature 1 --top-k 50 --top-p 0.99 --seed ";
  const Json one = generated(sampled + "1");
  CHECK(one.at("ids") == generated(sampled + "1").at("ids"));
  CHECK(one.at("ids") != generated(sampled + "2").at("ids"));
  CHECK(one.at("prompt_tokens") == 8);
  CHECK(one.at("new_tokens") == one.at("ids").size());
  CHECK(one.at("prefill_seconds") > 0);
  CHECK(one.at("decode_tokens_per_s") > 0);
  CHECK(one.at("cache_bytes") > 0);
  CHECK(one.at("ended_by") == "max new tokens");
}

TEST_CASE("generate: top-k 1 is greedy, a repetition penalty is not, and a file is a prompt") {
  const test::TemporaryDirectory folder;
  write_text_atomically(folder / "prompt", "The sea");
  const Json greedy = generated("--prompt-file '" + (folder / "prompt").string() + "'");
  CHECK(greedy.at("ids") == generated("--prompt 'The sea' --temperature 1 --top-k 1").at("ids"));
  CHECK(greedy.at("ids") != generated("--prompt 'The sea' --repetition-penalty 2").at("ids"));
}

TEST_CASE("generate: beyond a model's positions, the note says how its own RoPE scaling is kept") {
  const test::TemporaryDirectory folder;
  const std::filesystem::path tiny = SINKLORA_SOURCE_DIR "/assets/tiny-llama";
  for (const char* name : {"model.safetensors", "tokenizer_config.json"})
    std::filesystem::copy_file(tiny / name, folder / name);
  const auto noted = [&](const char* scaling) {
    Json config = read_json(tiny / "config.json");
    config["max_position_embeddings"] = 16;
    config["rope_scaling"] = parse_json(scaling, "rope_scaling");
    write_json(folder / "config.json", config);
    return run_program("generate --model '" + folder.path().string() +
                       "' --max-new-tokens 1 --prompt x --context 50")
        .output;
  };
  CHECK(noted("null").find("the model's 16 positions: RoPE linear x4 (--rope-scaling none keeps its own)") !=
        std::string::npos);
  CHECK(noted(R"({"type":"linear","factor":2.5})")
            .find("the model's 40 positions: RoPE linear x4 (--rope-scaling linear:2.5 keeps its own)") !=
        std::string::npos);
}

TEST_CASE("generate: stop strings are left out of the text, the first one counts") {
  const std::string text = generated("--prompt 'The sea'").at("text");
  REQUIRE(text.size() == 40);
  const std::string late = text.substr(20, 3), early = text.substr(10, 3);
  const Json stopped = generated("--prompt 'The sea' --stop '" + late + "' --stop '" + early + "'");
  CHECK(stopped.at("text") == text.substr(0, std::min(text.find(early), text.find(late))));
  CHECK(stopped.at("ended_by") == "stop string");
  const auto shown = run_program(kGenerate + "--prompt 'The sea' --stop '" + early + "'");
  CHECK(shown.output == text.substr(0, text.find(early)) + "\n");
}

TEST_CASE("generate: a stop string in brackets is one text, not a list") {
  const Json whole = generated("--prompt 'The sea'");
  const std::string middle = whole.at("text").get<std::string>().substr(10, 1);
  CHECK(generated("--prompt 'The sea' --stop '[" + middle + "," + middle + "]'").at("ids") ==
        whole.at("ids"));
}

TEST_CASE("what standard output was to hold is not lost in silence") {
  test::RunningProgram run(kGenerate + "--prompt 'The sea' --json -", "/dev/full");
  CHECK(run.exit_code(60) == 3);
}

TEST_CASE(
    "generate: a cache whose budget is the context changes nothing, a smaller one is as small as it says") {
  const Json full = generated("--prompt 'The sea' --context 64");
  for (const std::string kind : {"h2o", "streaming --cache-positions original"}) {
    const Json whole = generated("--prompt 'The sea' --context 64 --cache-budget 1.0 --cache " + kind);
    CHECK(whole.at("ids") == full.at("ids"));
    const Json small = generated("--prompt 'The sea' --context 64 --cache-budget 16 --cache " + kind);
    CHECK(small.at("cache_bytes").get<int64_t>() < full.at("cache_bytes").get<int64_t>() / 3);
  }
}

TEST_CASE("generate: a context that no memory holds is refused before it is taken") {
  const auto run = run_program(kGenerate + "--prompt x --context 1000000000");
  CHECK(run.exit_code == 4);
  CHECK(run.output.find("; give a shorter --context") != std::string::npos);
}

TEST_CASE("generate: what it cannot do is refused by name before the model is read") {
  for (const std::string option :
       {"--cache h2o --cache-budget 0", "--cache streaming --cache-sinks 100000000", "--cache all",
        "--stop ''", "--top-p 0", "--top-k -1", "--temperature nan", "--repetition-penalty 0"}) {
    const auto run = run_program(kGenerate + "--prompt x --context 100000000 " + option);
    CAPTURE(run.output);
    CHECK(run.exit_code == 2);
    CHECK(run.output.find(option.substr(0, option.find(' '))) != std::string::npos);
  }
}
