// Options that come from --config FILE.toml, and run.toml, which is one.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

#include "base/files.h"
#include "base/json.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::run_program;
using sinklora::test::TemporaryDirectory;

namespace {

// A folder with tokenized data, and `train` on it.
struct Folder {
  TemporaryDirectory folder;
  Folder() {
    REQUIRE(run_program("corpus --bytes 3k --out " + at("text.jsonl")).exit_code == 0);
    REQUIRE(run_program("tokenize --tokenizer byte --context 64 --input " + at("text.jsonl") + " --out " +
                        at("data"))
                .exit_code == 0);
  }
  std::string at(const std::string& name) const { return (folder.path() / name).string(); }
  test::ProgramRun train(const std::string& options, const std::string& out) const {
    return run_program("train --model '" SINKLORA_SOURCE_DIR
                       "/assets/tiny-llama' --force-tokenizer --context 64 --data " +
                       at("data") + " --out " + at(out) + " " + options);
  }
  test::ProgramRun train_again(const std::string& run, const std::string& options) const {
    return run_program("train --config " + at(run) + "/run.toml " + options);
  }
  // Without the one line that has to differ.
  std::string options_of(const std::string& run) const {
    std::string text = read_text(at(run) + "/run.toml", 1 << 20);
    const size_t out = text.find("\nout=") + 1;
    return text.erase(out, text.find('\n', out) - out);
  }
  Json fingerprint_of(const std::string& run, const std::string& step = "step-00000002") const {
    return read_json(at(run) + "/" + step + "/state.json").at("fingerprint");
  }
};

// The line of `text` that begins with `key`.
std::string line_of(const std::string& text, const std::string& key) {
  const size_t begin = text.find("\n" + key) + 1;
  return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace

TEST_CASE("run.toml says the same of a run, of the run from it and of the run from that one") {
  const Folder folder;
  for (const auto& [name, flags, shuffled, separate] :
       {std::tuple{"plain", "", true, true},
        {"in-order", "--no-shuffle --lora-targets q,v", false, true},
        {"joined", "--join-documents --lora-targets q", true, false},
        {"both", "--no-shuffle --join-documents --deterministic", false, false}}) {
    CAPTURE(name);
    const std::string first = name, second = first + "2", third = first + "3";
    REQUIRE(folder.train(std::string("--steps 2 ") + flags, first).exit_code == 0);
    CHECK(line_of(folder.options_of(first), "no-shuffle") ==
          std::string("no-shuffle=") + (shuffled ? "false" : "true"));
    CHECK(folder.train_again(first, "--out " + folder.at(second)).exit_code == 0);
    CHECK(folder.train_again(second, "--out " + folder.at(third)).exit_code == 0);
    CHECK(folder.options_of(first) == folder.options_of(second));
    CHECK(folder.options_of(first) == folder.options_of(third));
    CHECK(folder.fingerprint_of(first).at("shuffle") == shuffled);
    CHECK(folder.fingerprint_of(first).at("separate_documents") == separate);
    CHECK(folder.fingerprint_of(first) == folder.fingerprint_of(second));
    CHECK(folder.fingerprint_of(first) == folder.fingerprint_of(third));
    const auto resumed = folder.train_again(first, "--steps 3");
    CHECK_MESSAGE(resumed.exit_code == 0, resumed.output);
    CHECK(std::filesystem::exists(folder.at(first) + "/step-00000003"));
  }
}

TEST_CASE("a run.toml of before, where negated flags meant their opposite, is still a default run") {
  const Folder folder;
  REQUIRE(folder.train("--steps 2", "run").exit_code == 0);
  write_text_atomically(folder.at("old.toml"),
                        "join-documents=false\nno-shuffle=false\nlora-targets=\"[q,k,v,o]\"\nsteps=2\n");
  REQUIRE(folder.train("--config " + folder.at("old.toml"), "old").exit_code == 0);
  CHECK(folder.fingerprint_of("run") == folder.fingerprint_of("old"));
  for (const std::string wrong : {"--no-shuffle=perhaps", "--join-documents=perhaps"})
    CHECK(folder.train(wrong, "wrong").exit_code == 2);
}

TEST_CASE("of options that exclude each other, the command line's wins over the file's") {
  const Folder folder;
  const auto steps = [&](const std::string& run) {
    const std::string metrics = read_text(folder.at(run) + "/metrics.jsonl", 1 << 20);
    return std::count(metrics.begin(), metrics.end(), '\n');
  };
  REQUIRE(folder.train("--steps 2", "steps").exit_code == 0);
  const auto epochs = folder.train_again("steps", "--epochs 0.07 --out " + folder.at("epochs"));
  REQUIRE_MESSAGE(epochs.exit_code == 0, epochs.output);
  CHECK(steps("epochs") > 2);
  CHECK(line_of(folder.options_of("epochs"), "epochs") == "epochs=0.07");
  CHECK(folder.options_of("epochs").find("\nsteps=") == std::string::npos);
  const auto back = folder.train_again("epochs", "--steps 1 --out " + folder.at("back"));
  REQUIRE_MESSAGE(back.exit_code == 0, back.output);
  CHECK(steps("back") == 1);

  const std::string refused = "--steps excludes --epochs";
  const auto both = folder.train("--steps 1 --epochs 1", "both");
  CHECK(both.exit_code == 2);
  CHECK_MESSAGE(both.output.find(refused) != std::string::npos, both.output);
  write_text_atomically(folder.at("both.toml"), "steps = 1\nlr = 1e-3\nepochs = 1\n");
  const auto file = folder.train("--config " + folder.at("both.toml"), "both");
  CHECK(file.exit_code == 2);
  CHECK_MESSAGE(file.output.find(refused) != std::string::npos, file.output);
  CHECK(!std::filesystem::exists(folder.at("both")));

  const std::string bench =
      "bench attention --context 40 --patterns full --device cpu --precision fp32 --warmup 0 --repeat 1 "
      "--json - --config ";
  write_text_atomically(folder.at("heads.toml"), "heads = 4\nkv-heads = 2\n");
  const auto shape = run_program(bench + folder.at("heads.toml") + " --shape smollm2-135m");
  CHECK_MESSAGE(parse_json(shape.output, "bench").at(0).at("heads") == 9, shape.output);
  write_text_atomically(folder.at("shape.toml"), "shape = 'smollm2-135m'\n");
  const auto heads = run_program(bench + folder.at("shape.toml") + " --heads 4 --kv-heads 2");
  CHECK_MESSAGE(parse_json(heads.output, "bench").at(0).at("heads") == 4, heads.output);
}

TEST_CASE("what is wrong in a file of options is said with file, line, key and remedy") {
  const TemporaryDirectory folder;
  const std::string file = (folder / "options.toml").string();
  for (const auto& [text, place, what, remedy] : {
           std::tuple{"# for\nlr=1e-3\nstepz=3\n", ":3: ", "train.stepz: no such option; did you mean steps?",
                      "`sinklora train --help` lists the options"},
           {"lr = 1e-3\nnothing-like-it = 3\n", ":2: ", "train.nothing-like-it: no such option;",
            "`sinklora train --help`"},
           {"lr = 1e-3\n[train]\n\"stepz\" = 3\n", ":3: ", "train.stepz: no such option", "steps"},
           {"lr = 1e-3\n[other]\nsteps = 3\n", ":2: ", "[other]: no such verb", "`sinklora --help`"},
           {"lr = 1e-3\n[eval.other]\nsteps = 3\n", ":2: ", "[eval.other]: no such verb", "`train`"},
           {"steps = \"abc\"\n", ":1: ", "--steps: 'abc' is not a whole number", "`sinklora train --help`"},
           {"\ndevice = 'abc'\n", ":2: ", "--device: abc not in {cpu,cuda}", "`sinklora train --help`"},
           {"offload = perhaps\n", ":1: ", "Could not convert: --offload = perhaps",
            "`sinklora train --help`"},
           {"no-shuffle = perhaps\n", ":1: ", "Could not convert: --no-shuffle = perhaps",
            "`sinklora train --help`"},
           {"help = true\n", ":1: ", "train.help: no such option", "`sinklora train --help`"},
           {"steps = 1\nlr = 1\nsteps = 2\n", ":1: ", "steps is set twice", ""},
       }) {
    CAPTURE(text);
    write_text_atomically(file, text);
    const auto run = run_program("train --config " + file);
    CAPTURE(run.output);
    CHECK(run.exit_code == 2);
    CHECK(run.output.find("sinklora: " + file + place + what) == 0);
    CHECK(run.output.find(remedy) != std::string::npos);
    CHECK(std::count(run.output.begin(), run.output.end(), '\n') == 1);
  }
  // One file may serve several verbs.
  write_text_atomically(file, "bytes = 300\n[corpus]\nseed = 3\n[eval.ppl]\nstride = 5\n");
  const auto run = run_program("corpus --config " + file + " --out " + (folder / "x").string());
  CHECK_MESSAGE(run.exit_code == 0, run.output);
}

TEST_CASE("a value in quotes holds what begins a comment elsewhere") {
  const TemporaryDirectory folder;
  const std::string file = (folder / "options.toml").string();
  for (const auto& [name, quote] : {std::pair{"a#b", '"'}, {"#", '\''}, {"it's #1 ", '"'}, {"no", '"'}}) {
    CAPTURE(name);
    write_text_atomically(file, "# it's of \"three\nout = " + std::string(1, quote) +
                                    (folder / name).string() + quote +
                                    " # \"here\"\nbytes = 300# or more\n#seed = 2\n");
    const auto run = run_program("corpus --config " + file);
    CHECK_MESSAGE(run.exit_code == 0, run.output);
    CHECK(std::filesystem::exists(folder / name));
  }
}

TEST_CASE("options that would do nothing are refused or noted, and run.toml is read without a word") {
  const Folder folder;
  const auto said = [](const test::ProgramRun& run, const std::string& what) {
    return run.output.find(what) != std::string::npos;
  };
  const std::string eval = "eval ppl --context 64 --force-tokenizer --model '" SINKLORA_SOURCE_DIR
                           "/assets/tiny-llama' --data " +
                           folder.at("data") + " ";
  write_text_atomically(folder.at("stride.toml"), "stride = 256\n");
  for (const std::string& option : {std::string("--stride 256"), "--config " + folder.at("stride.toml")}) {
    const auto run = run_program(eval + option);
    CHECK(run.exit_code == 2);
    CHECK_MESSAGE(said(run, "--protocol sliding"), run.output);
    CHECK(run_program(eval + "--protocol sliding " + option).exit_code == 0);
  }
  write_text_atomically(folder.at("every.toml"), "eval-every = 1\n");
  for (const std::string& option : {std::string("--eval-every 1"), "--config " + folder.at("every.toml")}) {
    const auto run = folder.train("--steps 1 " + option, "every");
    CHECK(run.exit_code == 2);
    CHECK_MESSAGE(said(run, "add --eval-data"), run.output);
    CHECK(!std::filesystem::exists(folder.at("every")));
  }
  CHECK(folder.train("--steps 1 --eval-every 0", "every").exit_code == 0);

  for (const auto& [options, noted, silent] :
       {std::tuple{"--attention s2 --sinks 4 --shifted-heads 0.5 --group-ratio 0.5",
                   "--sinks, --shifted-heads", "--group-ratio"},
        {"--attention full --group-ratio 0.5", "--group-ratio does nothing with --attention full", "--sinks"},
        {"--attention fixed --sinks 8", "--sinks does nothing with --attention fixed", "--group-ratio"},
        {"--trainable full --lora-rank 4 --lora-targets q,v",
         "--lora-rank, --lora-targets do nothing with --trainable full", "--lora-alpha"}}) {
    CAPTURE(options);
    const auto run = folder.train(std::string("--steps 1 --resume never --gpus 2 ") + options, "noted");
    CHECK_MESSAGE(run.exit_code == 0, run.output);
    const std::string note = std::string("note: ") + noted;
    CHECK_MESSAGE(run.output.find(note) != std::string::npos, run.output);
    CHECK(run.output.find(note) == run.output.rfind(note));
    CHECK_MESSAGE(!said(run, silent), run.output);
    CHECK(!said(folder.train(std::string("--steps 1 --resume never --quiet ") + options, "noted"), "note:"));
    std::filesystem::remove_all(folder.at("noted"));
  }
  CHECK(
      said(run_program(eval + "--attention s2 --sinks 4"), "note: --sinks does nothing with --attention s2"));

  const auto plain = folder.train("--steps 1", "plain");
  CHECK_MESSAGE(!said(plain, "note:"), plain.output);
  for (const std::string other : {"--attention s2", "--attention full", "--trainable full"}) {
    const auto run = folder.train_again("plain", "--resume never --out " + folder.at("other") + " " + other);
    CHECK_MESSAGE(run.exit_code == 0, run.output);
    CHECK_MESSAGE(!said(run, "note:"), run.output);
    std::filesystem::remove_all(folder.at("other"));
  }
}

TEST_CASE("help of train names the code of a rank that a signal ended") {
  CHECK(run_program("train --help").output.find("137") != std::string::npos);
}

TEST_CASE("help of passkey names the unit of its lengths") {
  CHECK(run_program("eval passkey --help").output.find("3.75 characters") != std::string::npos);
  CHECK(run_program("eval lines --help").output.find("3.75 characters") == std::string::npos);
}
