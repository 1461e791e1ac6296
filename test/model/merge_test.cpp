#include "model/merge.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>

#include "base/child.h"
#include "base/hash.h"
#include "base/random.h"
#include "model/describe.h"
#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

// Runs the program; returns its exit code and keeps its output in `folder`/out.
int run(const TemporaryDirectory& folder, const std::string& arguments) {
  const std::string command =
      fmt::format("{} {} > {} 2>&1", SINKLORA_PROGRAM, arguments, (folder / "out").string());
  const int status = ::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
std::string output(const TemporaryDirectory& folder) { return read_text(folder / "out", 1 << 20); }

}  // namespace

TEST_CASE("merge: weights are those that the reference's adapters give, rounded once") {
  for (const char* name : {"longlora", "patterns", "expression", "tied"}) {
    CAPTURE(name);
    const bool tied = name == std::string("tied");
    const ModelDirectory base(golden(tied ? "peft/base_tied" : "peft/base"));
    const Adapter adapter = read_adapter(golden("peft/") / name, base.config());
    const TemporaryDirectory folder;
    const MergeReport report = merge_adapter(base, adapter, folder / "merged");
    CHECK(report.changed_tensors == static_cast<int64_t>(adapter.modules.size() + adapter.replaced.size()));
    CHECK(report.tied == false);
    const ModelDirectory merged(folder / "merged");
    CHECK(!merged.config().tied_embeddings);
    const SafetensorsFile expected(golden("peft/") / name / "expected.safetensors");
    for (const TensorInfo& info : expected_tensors(merged.config())) {
      CAPTURE(info.name);
      CHECK(merged.info(info.name).dtype == base.config().dtype);
      CHECK(bytes_of(merged, info.name) == bytes_of(expected, "merged." + info.name));
    }
    if (!tied)
      CHECK(fs::file_size(folder / "merged/model.safetensors") ==
            fs::file_size(golden("peft/base/model.safetensors")));
  }
}

TEST_CASE("merge: an adapter whose B is zero changes no bit, not even the sign of a zero") {
  const TemporaryDirectory folder;
  const ModelDirectory original(golden("peft/base"));
  std::vector<HostTensor> tensors;
  for (const TensorInfo& info : expected_tensors(original.config())) {
    tensors.push_back({info.name, DType::bf16, info.shape, bytes_of(original, info.name)});
    const uint16_t minus_zero = 0x8000;
    std::memcpy(tensors.back().data.data(), &minus_zero, 2);
  }
  fs::create_directory(folder / "base");
  fs::copy_file(golden("peft/base/config.json"), folder / "base/config.json");
  write_safetensors(folder / "base/model.safetensors", tensors);
  const ModelDirectory base(folder / "base");
  Adapter adapter = read_adapter(golden("peft/patterns"), base.config());
  for (AdapterModule& module : adapter.modules)
    std::fill(module.b.data.begin(), module.b.data.end(), std::byte{0});
  const MergeReport report = merge_adapter(base, adapter, folder / "merged");
  CHECK(report.changed_tensors == 0);
  CHECK(report.changed_elements == 0);
  CHECK(read_text(folder / "merged/model.safetensors", 1 << 20) ==
        read_text(folder / "base/model.safetensors", 1 << 20));
}

TEST_CASE("merge: tied embeddings stay tied exactly as long as both ends hold the same numbers") {
  const ModelDirectory base(golden("peft/base_tied"));
  const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  const auto values = [](float value) { return host_tensor("", {24, 16}, std::vector<float>(384, value)); };
  const auto merge = [&](std::map<std::string, HostTensor> replaced, const TemporaryDirectory& folder) {
    Adapter adapter;
    adapter.replaced = std::move(replaced);
    merge_adapter(base, adapter, folder / "merged");
    return ModelDirectory(folder / "merged");
  };
  {
    const TemporaryDirectory folder;
    CHECK(merge({{"model.norm.weight", host_tensor("", {16}, std::vector<float>(16, 2.f))}}, folder)
              .config()
              .tied_embeddings);
  }
  {
    const TemporaryDirectory folder;
    const ModelDirectory both = merge({{embedding, values(3)}, {head, values(3)}}, folder);
    CHECK(both.config().tied_embeddings);
    CHECK(bytes_of(both, embedding) == values(3).data);
  }
  {
    const TemporaryDirectory folder;
    const ModelDirectory differ = merge({{embedding, values(3)}, {head, values(4)}}, folder);
    CHECK(!differ.config().tied_embeddings);
    CHECK(bytes_of(differ, head) == values(4).data);
  }
  {
    const TemporaryDirectory folder;
    const ModelDirectory one = merge({{embedding, values(3)}}, folder);
    CHECK(!one.config().tied_embeddings);
    CHECK(bytes_of(one, embedding) == values(3).data);
    CHECK(bytes_of(one, head) == bytes_of(base, embedding));
  }
  const TemporaryDirectory folder;
  const ModelDirectory other = merge({{head, values(3)}}, folder);
  CHECK(!other.config().tied_embeddings);
  CHECK(bytes_of(other, head) == values(3).data);
  CHECK(bytes_of(other, embedding) == bytes_of(base, embedding));
}

TEST_CASE("merge: kept embedding rows make the vocabulary larger; the head gets the mean of its rows") {
  const ModelDirectory base(golden("peft/base"));
  Adapter adapter;
  const TemporaryDirectory folder;
  MergeOptions options;
  options.dtype = DType::f32;
  // Matrices are written in pieces of 2^18 rows of 16: the second one begins beyond the base's.
  for (const int64_t rows : {(int64_t{1} << 18) + 3, int64_t{25}}) {
    const fs::path out = folder / std::to_string(rows);
    const auto elements = static_cast<size_t>(rows * 16);
    adapter.replaced["model.embed_tokens.weight"] =
        host_tensor("", {rows, 16}, std::vector<float>(elements, 0.5f));
    merge_adapter(base, adapter, out, options);
    const ModelDirectory merged(out);
    CHECK(merged.config().vocab_size == rows);
    std::vector<float> head(elements);
    merged.read("lm_head.weight", 0, head);
    for (size_t column = 0; column < 16; ++column) {
      double sum = 0;
      for (size_t row = 0; row < 24; ++row) sum += head[row * 16 + column];
      for (const size_t row : {size_t{24}, static_cast<size_t>(rows - 1)})
        CHECK(head[row * 16 + column] == static_cast<float>(sum / 24));
    }
  }
  adapter.replaced["lm_head.weight"] = host_tensor("", {24, 16}, std::vector<float>(384, 0.5f));
  CHECK(error_of([&] { merge_adapter(base, adapter, folder / "no"); }).find("wanted [25, 16]") !=
        std::string::npos);
}

TEST_CASE("merge: other dtypes, shards and RoPE scaling; a type that cannot hold a weight is refused") {
  const ModelDirectory base(golden("peft/base"));
  const TemporaryDirectory folder;
  MergeOptions options;
  options.dtype = DType::f16;
  options.max_shard_bytes = 2000;
  options.rope = parse_rope_scaling("linear:4", base.config(), 0);
  const MergeReport report = merge_adapter(base, Adapter{}, folder / "merged", options);
  CHECK(report.changed_tensors == 0);
  const ModelDirectory merged(folder / "merged");
  CHECK(merged.config().dtype == DType::f16);
  CHECK(merged.config().rope == *options.rope);
  CHECK(fs::exists(folder / "merged/model.safetensors.index.json"));
  CHECK(fs::exists(folder / "merged/generation_config.json"));
  std::vector<float> a(384), b(384);
  base.read("model.embed_tokens.weight", 0, a);
  merged.read("model.embed_tokens.weight", 0, b);
  for (size_t i = 0; i < a.size(); ++i) CHECK(b[i] == half_to_float(float_to_half(a[i])));

  Adapter adapter;
  adapter.replaced["model.norm.weight"] = host_tensor("", {16}, std::vector<float>(16, 1e5f));
  CHECK(error_of([&] {
          merge_adapter(base, adapter, folder / "big", options);
        }).find("does not fit into f16") != std::string::npos);
  CHECK(!fs::exists(folder / "big"));
  CHECK(!error_of([&] { merge_adapter(base, adapter, folder / "merged"); }, ExitCode::usage).empty());
}

TEST_CASE("merge: llama3 over a model without scaling says the positions that it reaches") {
  const ModelDirectory base(golden("peft/base"));
  const TemporaryDirectory folder;
  MergeOptions options;
  options.rope = parse_rope_scaling("llama3:4", base.config(), 0);
  merge_adapter(base, Adapter{}, folder / "merged", options);
  const LlamaConfig merged = read_config(folder / "merged");
  CHECK(merged.rope == *options.rope);
  CHECK(merged.max_positions == 4 * base.config().max_positions);
}

TEST_CASE("merge: killed at any time, the result is absent or complete") {
  const TemporaryDirectory folder;
  const std::string base = golden("peft/base").string(), adapter = golden("peft/longlora").string();
  REQUIRE(run(folder, fmt::format("merge --model {} --adapter {} --out {}", base, adapter,
                                  (folder / "whole").string())) == 0);
  const std::string whole = sha256_of_file(folder / "whole/model.safetensors");
  const RandomStream random(1, "kill");
  for (uint64_t attempt = 0; attempt < 12; ++attempt) {
    const std::string out = (folder / "part").string();
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
      ::execl(SINKLORA_PROGRAM, SINKLORA_PROGRAM, "merge", "--model", base.c_str(), "--adapter",
              adapter.c_str(), "--out", out.c_str(), nullptr);
      ::_exit(99);
    }
    ::usleep(static_cast<useconds_t>(random.below(attempt, 30'000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (!fs::exists(out)) continue;
    CHECK(sha256_of_file(out + "/model.safetensors") == whole);
    CHECK_NOTHROW(ModelDirectory{out});
    fs::remove_all(out);
  }
}

TEST_CASE("the verbs merge, export and verify") {
  const TemporaryDirectory folder;
  const std::string base = golden("peft/base").string();
  fs::copy(golden("peft/longlora"), folder / "adapter");
  write_run_info(folder / "adapter", {parse_rope_scaling("linear:8", LlamaConfig{}, 0), 512});
  const std::string adapter = (folder / "adapter").string(), merged = (folder / "merged").string();
  CHECK(run(folder,
            fmt::format("merge --model {} --adapter {} --out {} --dtype fp32", base, adapter, merged)) == 0);
  CHECK(output(folder).find("14 tensors changed") != std::string::npos);
  CHECK(ModelDirectory(merged).config().rope.factor == 8.0);
  CHECK(run(folder, fmt::format("merge --model {} --adapter {} --out {}", base, adapter, merged)) == 2);
  CHECK(output(folder).find("exists already") != std::string::npos);
  CHECK(run(folder, fmt::format("export --model {} --out {} --dtype bf16 --max-shard-size 3k", merged,
                                (folder / "small").string())) == 0);
  CHECK(ModelDirectory(folder / "small").config().dtype == DType::bf16);
  CHECK(run(folder, fmt::format("export --adapter-only --adapter {} --out {}", adapter,
                                (folder / "copy").string())) == 0);
  CHECK(output(folder).find("vLLM refuses") != std::string::npos);
  check_contains(output(folder), R"("factor": 8.0)");  // its scaling is in sinklora.json alone
  CHECK(read_adapter(folder / "copy", ModelDirectory(base).config()).modules.size() == 8);
  CHECK(run(folder, "export --out x") == 2);
  // Of a base that is not to be found nothing is taken for granted.
  RopeScaling yarn = parse_rope_scaling("yarn:4", LlamaConfig{}, 0);
  for (const int64_t original : {512, 2048}) {
    yarn.original_context = original;
    write_run_info(folder / "adapter", {yarn, 512});
    const fs::path copy = folder / fmt::format("copy-{}", original);
    CHECK(run(folder, fmt::format("export --adapter-only --adapter {} --out {}", adapter, copy.string())) ==
          0);
    check_contains(output(folder), fmt::format(R"("original_max_position_embeddings": {})", original));
    check_contains(output(folder), fmt::format("config.max_position_embeddings = {}", 4 * original));
  }
  write_run_info(folder / "adapter", {parse_rope_scaling("linear:8", LlamaConfig{}, 0), 512});

  CHECK(run(folder, fmt::format("verify {} {} {}/model.safetensors", merged, adapter, base)) == 0);
  CHECK(output(folder).find("linear x8") != std::string::npos);
  fs::resize_file(folder / "merged/model.safetensors", 4000);
  CHECK(run(folder, fmt::format("verify {} {}", merged, adapter)) == 3);
  CHECK(output(folder).find("truncated") != std::string::npos);
  CHECK(output(folder).find("1 of 2 are broken") != std::string::npos);
  CHECK(run(folder, "verify /nowhere") == 3);
  CHECK(run(folder, fmt::format("verify {}", (folder / "out").string())) == 3);
  CHECK(output(folder).find("not recognised") != std::string::npos);
}

TEST_CASE("an adapter, a model and a run in place of one another are told apart") {
  const TemporaryDirectory folder;
  const std::string base = golden("peft/base").string(), adapter = golden("peft/longlora").string();
  const auto make_run = [&](const std::string& name, const std::string& content) {
    fs::create_directory(folder / name);
    fs::copy(content, folder / name / "step-00000001");
    write_text_atomically(folder / name / "latest", "step-00000001\n");
    return (folder / name).string();
  };
  const std::string tuned = make_run("tuned", adapter), full = make_run("full", base);
  const auto said = [&](const std::string& verb, const std::string& model, const std::string& lora) {
    CHECK(run(folder, fmt::format("{} --model {}{} --out {}", verb, model,
                                  lora.empty() ? "" : " --adapter " + lora, (folder / "made").string())) ==
          3);
    return output(folder);
  };
  for (const std::string& lora : {full, base}) {
    const std::string text = said("merge", base, lora);
    CHECK_MESSAGE(
        text.find("is no adapter but a model (of a run that trained every weight?): give it as --model") !=
            std::string::npos,
        text);
  }
  for (const std::string& model : {tuned, adapter})
    for (const std::string verb : {"merge", "export"}) {
      const std::string text = said(verb, model, verb == "merge" ? adapter : "");
      CHECK_MESSAGE(
          text.find("is an adapter: give it as --adapter, with its base as --model") != std::string::npos,
          text);
    }
  CHECK(said("merge", full, adapter)
            .find("is a run: give its checkpoint " + full + "/step-00000001 as --model") !=
        std::string::npos);
  for (const std::string verb : {"generate --prompt x", "chat"}) {
    run(folder, verb + " --model " + (folder / "nowhere").string());
    CHECK(output(folder).find("nowhere: does not exist") != std::string::npos);
    run(folder, verb + " --model " + folder.path().string());
    CHECK(output(folder).find("holds no config.json") != std::string::npos);
  }
}

TEST_CASE("verify: not-a-number is found wherever it is") {
  const TemporaryDirectory folder;
  write_safetensors(
      folder / "x.safetensors",
      std::vector{host_tensor("fine", {2}, {1, 2}), host_tensor("odd", {3}, {1, 2, INFINITY}, DType::bf16)});
  CHECK(error_of([&] {
          verify_safetensors(folder / "x.safetensors");
        }).find("tensor odd: element 2 is inf") != std::string::npos);
  CHECK(describe_safetensors(folder / "x.safetensors").find("2 tensors, 5 numbers as bf16/f32") !=
        std::string::npos);
  CHECK(describe_model(golden("peft/base")).find("LLaMA, 2 layers, hidden 16") != std::string::npos);
  CHECK(describe_adapter(golden("peft/patterns")).find("LoRA of rank 2/3/4/5") != std::string::npos);
}

TEST_CASE("a reader that crashes in its own process is an answer") {
  CHECK(run_in_child([] { return std::string("fine"); }).text == "fine");
  const ChildResult refused = run_in_child([]() -> std::string { fail_input("bad {}", 7); });
  CHECK(!refused.ok);
  CHECK(refused.text == "bad 7");
  const ChildResult killed = run_in_child([]() -> std::string {
    ::raise(SIGKILL);
    return "";
  });
  CHECK(!killed.ok);
  CHECK(killed.text.find("crashed") != std::string::npos);
  CHECK(!run_in_child([]() -> std::string { ::_exit(0); }).ok);
  CHECK(run_in_child([] { return std::string(200'000, 'x'); }).text.size() == 200'000);
}
