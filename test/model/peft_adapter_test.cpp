#include "model/peft_adapter.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>

#include "model/merge.h"
#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

LlamaConfig base_config(const std::string& name = "base") { return read_config(golden("peft/" + name)); }

// A copy of the recorded LongLoRA adapter whose config or weights can be spoilt.
struct Copy {
  TemporaryDirectory folder;
  explicit Copy(const std::string& name = "longlora") {
    for (const char* file : {"adapter_config.json", "adapter_model.safetensors"})
      fs::copy_file(golden("peft/" + name) / file, folder / file);
  }
  void set(const std::string& key, const Json& value) const {
    Json json = read_json(folder / "adapter_config.json");
    json[key] = value;
    write_text_atomically(folder / "adapter_config.json", json.dump());
  }
  std::string error(const std::string& embed_rows = "") const {
    return error_of([&] { read_adapter(folder.path(), base_config(), embed_rows); });
  }
  // The weights after `change` on their list.
  template <class Change>
  void weights(Change change) const {
    std::vector<HostTensor> tensors;
    {
      const SafetensorsFile file(folder / "adapter_model.safetensors");
      for (const TensorInfo& info : file.tensors())
        tensors.push_back({info.name, info.dtype, info.shape, bytes_of(file, info.name)});
    }
    change(tensors);
    write_safetensors(folder / "adapter_model.safetensors", tensors);
  }
};

HostTensor& named(std::vector<HostTensor>& tensors, const std::string& part) {
  for (HostTensor& tensor : tensors)
    if (tensor.name.find(part) != std::string::npos) return tensor;
  fail_internal("no tensor {}", part);
}

}  // namespace

TEST_CASE("adapter: those that PEFT saved give PEFT's own delta, with every kind of pattern") {
  for (const char* name : {"longlora", "patterns", "expression", "tied"}) {
    CAPTURE(name);
    const fs::path directory = golden("peft/") / name;
    const Adapter adapter =
        read_adapter(directory, base_config(name == std::string("tied") ? "base_tied" : "base"));
    const SafetensorsFile expected(directory / "expected.safetensors");
    size_t deltas = 0;
    for (const TensorInfo& info : expected.tensors()) deltas += info.name.starts_with("delta.");
    CHECK(adapter.modules.size() == deltas);
    for (const AdapterModule& module : adapter.modules) {
      const std::vector<float> wanted = floats_of(expected, "delta." + module.name + ".weight"),
                               a = floats_of(module.a), b = floats_of(module.b);
      const auto in = static_cast<size_t>(module.a.shape[1]), rank = static_cast<size_t>(module.rank);
      REQUIRE(wanted.size() == in * static_cast<size_t>(module.b.shape[0]));
      double worst = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        double sum = 0, magnitude = 0;
        for (size_t r = 0; r < rank; ++r) {
          const double product = module.scale * b[i / in * rank + r] * a[r * in + i % in];
          sum += product;
          magnitude += std::fabs(product);
        }
        worst = std::max(worst, std::fabs(sum - wanted[i]) / magnitude);
      }
      // PEFT adds up to five products in float and scales the sum: six roundings.
      CHECK(worst < 6 * 0x1p-24);
    }
  }
}

TEST_CASE("adapter: replaced tensors have their name in the base") {
  const Adapter longlora = read_adapter(golden("peft/longlora"), base_config());
  CHECK(longlora.replaced.size() == 6);
  CHECK(longlora.replaced.contains("model.embed_tokens.weight"));
  CHECK(longlora.replaced.contains("model.layers.1.post_attention_layernorm.weight"));
  const Adapter expression = read_adapter(golden("peft/expression"), base_config());
  CHECK(expression.replaced.size() == 2);
  CHECK(expression.replaced.contains("lm_head.weight"));
  CHECK(expression.modules.at(0).name == "model.layers.1.self_attn.q_proj");
  CHECK(expression.modules.at(0).scale == 1.5);
}

TEST_CASE("adapter: what we write has PEFT's keys, shapes and settings, and reads back equal") {
  for (const char* name : {"longlora", "tied", "expression"}) {
    CAPTURE(name);
    const LlamaConfig base = base_config(name == std::string("tied") ? "base_tied" : "base");
    const Adapter adapter = read_adapter(golden("peft/") / name, base);
    const double alpha = adapter.config["lora_alpha"].get<double>();
    const TemporaryDirectory folder;
    write_adapter(folder.path(), adapter, alpha, "some/base");
    const SafetensorsFile ours(folder / "adapter_model.safetensors"),
        theirs(golden("peft/") / name / "adapter_model.safetensors");
    REQUIRE(ours.tensors().size() == theirs.tensors().size());
    for (const TensorInfo& info : theirs.tensors()) {
      REQUIRE(ours.find(info.name));
      CHECK(ours.find(info.name)->shape == info.shape);
      CHECK(bytes_of(ours, info.name) == bytes_of(theirs, info.name));
      CHECK(info.name.find("default") == std::string::npos);
      CHECK(info.name.find("modules_to_save") == std::string::npos);
    }
    const Json config = read_json(folder / "adapter_config.json");
    for (const auto& item : config.items()) {
      const std::string& key = item.key();
      CAPTURE(key);
      CHECK(adapter.config.contains(key));
      if (key == "target_modules" || key == "modules_to_save" || key == "base_model_name_or_path") continue;
      CHECK(item.value() == adapter.config[key]);
    }
    CHECK(config["base_model_name_or_path"] == "some/base");
    // Up to 0.13 PEFT refuses a key that it does not know: one whose value is the default is only a danger.
    for (const char* key : {"revision", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern",
                            "alpha_pattern", "layers_to_transform", "layers_pattern", "ensure_weight_tying"})
      CHECK_MESSAGE(!config.contains(key), key);
    const Adapter again = read_adapter(folder.path(), base);
    CHECK(again.modules.size() == adapter.modules.size());
    CHECK(again.replaced.size() == adapter.replaced.size());
  }
}

TEST_CASE(
    "adapter: names in the config are short where a kind is complete, and never ask PEFT for more than there "
    "is") {
  Adapter adapter = read_adapter(golden("peft/longlora"), base_config());
  const TemporaryDirectory folder;
  const auto written = [&] {
    write_adapter(folder.path(), adapter, 8.0, "");
    return read_json(folder / "adapter_config.json");
  };
  CHECK(written()["target_modules"] == Json({"k_proj", "o_proj", "q_proj", "v_proj"}));
  CHECK(written()["modules_to_save"] ==
        Json({"embed_tokens", "input_layernorm", "norm", "post_attention_layernorm"}));
  adapter.replaced.erase("model.layers.0.input_layernorm.weight");
  CHECK(written()["modules_to_save"] ==
        Json({"embed_tokens", "model.layers.1.input_layernorm", "model.norm", "post_attention_layernorm"}));
  adapter.modules[0].rank = 2;  // layer 0, q_proj
  adapter.modules[0].scale = 4.0;
  adapter.modules[0].a = host_tensor("a", {2, 16}, std::vector<float>(32, 1.f));
  adapter.modules[0].b = host_tensor("b", {16, 2}, std::vector<float>(32, 1.f));
  adapter.modules.pop_back();  // layer 1, o_proj
  const Json config = written();
  CHECK(config["r"] == 2);
  CHECK(config["rank_pattern"].size() == 6);
  CHECK(config["target_modules"] == Json({"k_proj", "model.layers.0.self_attn.o_proj", "q_proj", "v_proj"}));
  const Adapter again = read_adapter(folder.path(), base_config());
  CHECK(again.modules.at(0).rank == 2);
  CHECK(again.modules.at(0).scale == 4.0);
  adapter.modules[1].scale = 3.0;
  CHECK_THROWS_AS(write_adapter(folder.path(), adapter, 8.0, ""), Error);
}

TEST_CASE(
    "adapter: PEFT is asked to keep embedding and head tied where both are the same matrix, only there") {
  Adapter adapter = read_adapter(golden("peft/tied"), base_config("base_tied"));
  const TemporaryDirectory folder;
  const auto tied = [&] {
    write_adapter(folder.path(), adapter, 8.0, "");
    return read_json(folder / "adapter_config.json").value("ensure_weight_tying", false);
  };
  CHECK(!tied());  // two different matrices
  const int64_t apart = read_adapter_layout(folder.path()).parameters;
  adapter.replaced.at("lm_head.weight").data = adapter.replaced.at("model.embed_tokens.weight").data;
  CHECK(tied());
  CHECK(read_adapter(folder.path(), base_config("base_tied")).replaced.size() == 2);
  const auto& shape = adapter.replaced.at("lm_head.weight").shape;
  CHECK(read_adapter_layout(folder.path()).parameters == apart - shape.at(0) * shape.at(1));
  adapter.replaced.erase("lm_head.weight");
  CHECK(!tied());
}

TEST_CASE("adapter: variants that are not plain LoRA are refused by name, switched-off ones are not") {
  const Copy copy;
  for (const char* key : {"use_dora", "lora_bias", "fan_in_fan_out", "use_qalora"}) {
    copy.set(key, true);
    check_contains(copy.error(), key);
    copy.set(key, false);
  }
  for (const char* key :
       {"layer_replication", "target_parameters", "alora_invocation_tokens", "trainable_token_indices"}) {
    copy.set(key, Json::array({1}));
    check_contains(copy.error(), key);
    copy.set(key, Json::array());
  }
  for (const char* key : {"loftq_config", "corda_config", "megatron_config"}) {
    copy.set(key, {{"x", 1}});
    check_contains(copy.error(), key);
    copy.set(key, Json::object());
  }
  const auto once = [&](const char* key, const Json& value, const Json& fine) {
    copy.set(key, value);
    check_contains(copy.error(), key);
    copy.set(key, fine);
  };
  once("bias", "some", "none");
  for (const char* init : {"pissa", "pissa_niter_4", "olora", "corda", "loftq"})
    once("init_lora_weights", init, "gaussian");
  copy.set("eva_config", {{"rho", 2.0}});
  for (const char* init : {"orthogonal", "eva"}) {
    copy.set("init_lora_weights", init);
    CHECK(copy.error().empty());
  }
  once("peft_type", "IA3", "LORA");
  once("r", 0, 4);
  once("r", 1e3, 4);
  once("lora_alpha", "8", 8);
  once("use_rslora", 1, false);
  once("modules_to_save", "norm", Json::array({"norm", "embed_tokens"}));
  once("modules_to_save", Json::array({1}), Json::array({"norm", "embed_tokens"}));
  once("target_modules", 3, Json::array({"q_proj", "k_proj", "v_proj", "o_proj"}));
  once("rank_pattern", {{"q_proj", -1}}, nullptr);
  once("rank_pattern", Json::array({1}), nullptr);
  once("layers_to_transform", "x", nullptr);
  once("target_modules", "(q_proj", ".*_proj");
  copy.set("target_modules", Json::array({"q_proj", "k_proj", "v_proj", "o_proj"}));
  CHECK(copy.error().empty());
  write_bytes(copy.folder / "adapter_config.json", std::string(100'000, '['));
  check_contains(copy.error(), "nesting");
}

TEST_CASE(
    "adapter: biases that PEFT was to train as well are none in a LLaMA, and refused where there are some") {
  const Copy copy;
  for (const char* bias : {"all", "lora_only"}) {
    copy.set("bias", bias);
    CHECK(copy.error().empty());
  }
  copy.weights([](auto& tensors) {
    tensors.push_back({"base_model.model.model.layers.0.self_attn.q_proj.bias",
                       DType::f32,
                       {1},
                       std::vector<std::byte>(4)});
  });
  check_contains(copy.error(), "q_proj.bias\" is not understood");
}

TEST_CASE("adapter: expressions that would run for ever are stopped") {
  const Copy copy;
  copy.set("target_modules", "(([a-z0-9._]+)*)*[^a-z]");
  check_contains(copy.error(), "reasonable time");
  copy.set("target_modules", std::string(100'000, '('));
  check_contains(copy.error(), "expression of 100000 bytes");
  copy.set("target_modules", std::string(10'000, '('));
  check_contains(copy.error(), "no regular expression");
}

TEST_CASE("adapter: config, weights and base must agree") {
  const auto spoilt = [](auto change) {
    const Copy copy;
    copy.weights(change);
    return copy.error();
  };
  check_contains(spoilt([](auto& t) { named(t, "layers.0.self_attn.q_proj.lora_A").name += "x"; }),
                 "not understood");
  check_contains(
      spoilt([](auto& t) { named(t, "layers.0.self_attn.q_proj.lora_A").name = "q_proj.lora_A.weight"; }),
      "does not begin with");
  check_contains(spoilt([](auto& t) {
                   named(t, "layers.0.self_attn.q_proj.lora_A").name =
                       "base_model.model.lm_head.lora_A.weight";
                 }),
                 "seven linears");
  check_contains(spoilt([](auto& t) {
                   named(t, "layers.1.self_attn.q_proj.lora_B").name = "base_model.model.x.lora_embedding_B";
                 }),
                 "not understood");
  check_contains(spoilt([](auto& t) {
                   t.erase(t.begin() + (&named(t, "layers.1.self_attn.v_proj.lora_B") - t.data()));
                 }),
                 "model.layers.1.self_attn.v_proj has lora_A without lora_B");
  check_contains(spoilt([](auto& t) {
                   std::erase_if(t, [](auto& x) {
                     return x.name.find("layers.1.self_attn.v_proj") != std::string::npos;
                   });
                 }),
                 "target_modules names model.layers.1.self_attn.v_proj");
  check_contains(spoilt([](auto& t) {
                   std::erase_if(t, [](auto& x) { return x.name.find("model.norm") != std::string::npos; });
                 }),
                 "modules_to_save names norm");
  check_contains(spoilt([](auto& t) { named(t, "model.norm").shape = {4, 4}; }), "has shape [4, 4]");
  check_contains(spoilt([](auto& t) { named(t, "model.norm").name = "base_model.model.model.extra.weight"; }),
                 "no tensor of the base");
  check_contains(spoilt([](auto& t) {
                   for (const char* half : {"lora_A", "lora_B"}) {
                     HostTensor& tensor = named(t, std::string("layers.0.self_attn.q_proj.") + half);
                     tensor.name.replace(tensor.name.find("layers.0"), 8, "layers.7");
                   }
                 }),
                 "model.layers.7.self_attn.q_proj is no module of the base");
  check_contains(spoilt([](auto& t) {
                   named(t, "layers.0.self_attn.q_proj.lora_A").shape = {16, 4};
                 }),
                 "do not have the rank 4");
  check_contains(spoilt([](auto& t) {
                   const float nan = std::nanf("");
                   std::memcpy(named(t, "layers.0.self_attn.q_proj.lora_A").data.data(), &nan, 4);
                 }),
                 "holds nan");
  const Copy copy;
  copy.set("target_modules", Json::array({"q_proj"}));
  check_contains(copy.error(), "target_modules does not name it");
  copy.set("target_modules", Json::array({"q_proj", "k_proj", "v_proj", "o_proj", "up_proj"}));
  check_contains(copy.error(), "target_modules names model.layers.0.mlp.up_proj");
  copy.set("layers_to_transform", Json::array({1}));
  check_contains(copy.error(), "target_modules does not name it");
  fs::rename(copy.folder / "adapter_model.safetensors", copy.folder / "adapter_model.bin");
  check_contains(copy.error(), "weights_only=True");
}

TEST_CASE("adapter: PEFT puts no LoRA on a target that modules_to_save trains whole") {
  const Copy copy;
  const LlamaConfig base = base_config();
  const std::string module = "model.layers.1.self_attn.v_proj";
  copy.weights([&](auto& tensors) {
    std::erase_if(tensors, [&](auto& tensor) { return tensor.name.find(module) != std::string::npos; });
    const int64_t out = base.kv_width(), in = base.hidden_size;
    tensors.push_back({"base_model.model." + module + ".weight",
                       DType::f32,
                       {out, in},
                       std::vector<std::byte>(static_cast<size_t>(out * in) * sizeof(float))});
  });
  copy.set("modules_to_save", Json::array({"embed_tokens", "input_layernorm", "post_attention_layernorm",
                                           "norm", "layers.1.self_attn.v_proj"}));
  CHECK(copy.error().empty());
  CHECK(read_adapter(copy.folder.path(), base).replaced.contains(module + ".weight"));
}

TEST_CASE("adapter: names that a wrapper has changed are told in one sentence") {
  const auto renamed = [](const std::string& from, const std::string& to) {
    const Copy copy;
    copy.weights([&](auto& tensors) {
      for (HostTensor& tensor : tensors)
        if (const size_t at = tensor.name.find(from); at != std::string::npos)
          tensor.name.replace(at, from.size(), to);
    });
    return copy.error();
  };
  const std::string compiled = renamed("base_model.model.", "_orig_mod.base_model.model.");
  check_contains(compiled, "torch.compile");
  CHECK(compiled.find("does not begin with") == std::string::npos);
  const std::string named = renamed(".lora_A.weight", ".lora_A.default.weight");
  check_contains(named, "save_pretrained()");
  check_contains(named, "lora_A.default.weight");
  CHECK(named.find("not understood") == std::string::npos);
}

TEST_CASE("adapter: LongLoRA's trained embeddings and norms that lie beside it are not passed over") {
  const Copy copy;
  write_bytes(copy.folder / "trainable_params.bin", "pickle");
  CHECK(copy.error().empty());  // they are in the adapter
  copy.set("modules_to_save", nullptr);
  const auto without = [&](const std::string& part) {
    copy.weights([&](auto& tensors) {
      std::erase_if(tensors, [&](const HostTensor& tensor) {
        return tensor.name.find("lora_") == std::string::npos && tensor.name.find(part) != std::string::npos;
      });
    });
    return std::array{copy.error(), error_of([&] { read_adapter_layout(copy.folder.path()); })};
  };
  for (const std::string& message : without("layers.1.post_attention_layernorm")) {
    check_contains(
        message,
        "adapter_model.safetensors lacks 1 of them: model.layers.1.post_attention_layernorm.weight;");
    check_contains(message, "take the file away");
  }
  for (const std::string& message : without("input_layernorm"))
    check_contains(message,
                   "adapter_model.safetensors lacks 3 of them: model.layers.0.input_layernorm.weight, "
                   "model.layers.1.input_layernorm.weight, model.layers.1.post_attention_layernorm.weight;");
  for (const std::string& message : without("")) {
    check_contains(
        message,
        "trainable_params.bin: the embeddings and norms of LongLoRA, and adapter_model.safetensors lacks 6");
    check_contains(message, "layers.1.input_layernorm.weight, ...; ");
    check_contains(message, R"("base_model.model." + k: v)");
    check_contains(message, R"("embed_tokens")");
  }
  fs::rename(copy.folder / "adapter_model.safetensors", copy.folder / "adapter_model.bin");
  check_contains(copy.error(), R"("base_model.model." + k: v)");
  fs::remove(copy.folder / "trainable_params.bin");
  check_contains(copy.error(), R"(torch.load("adapter_model.bin", weights_only=True))");
  CHECK(copy.error().find("trainable_params") == std::string::npos);
}

TEST_CASE("adapter: what stands where one is wanted is said") {
  const TemporaryDirectory folder;
  const auto error = [](const fs::path& path) {
    return error_of([&] { read_adapter(path, base_config()); });
  };
  fs::create_directory(folder / "saved");
  fs::copy(golden("peft/longlora"), folder / "saved/default");
  check_contains(error(folder / "saved"),
                 "its folder default does: give " + (folder / "saved/default").string());
  check_contains(error(folder / "nowhere"), "nowhere: does not exist");
  check_contains(error(folder / "saved/default/adapter_model.safetensors"), "is a file: give the directory");
  fs::create_directory(folder / "empty");
  check_contains(error(folder / "empty"), "holds no adapter_config.json");
}

TEST_CASE("adapter: more embedding rows than the base are refused unless it is said what to do") {
  const Copy copy;
  copy.weights([](auto& tensors) {
    HostTensor& embedding = named(tensors, "embed_tokens");
    embedding.shape[0] += 1;
    embedding.data.resize(embedding.data.size() + 16 * sizeof(float));
  });
  check_contains(copy.error(), "merge it with --embed-rows drop or keep");
  const auto embedding = [&](const char* rows) {
    return read_adapter(copy.folder.path(), base_config(), rows).replaced.at("model.embed_tokens.weight");
  };
  CHECK(embedding("drop").shape == std::vector<int64_t>{24, 16});
  CHECK(floats_of(embedding("drop")) ==
        floats_of(
            read_adapter(golden("peft/longlora"), base_config()).replaced.at("model.embed_tokens.weight")));
  CHECK(embedding("keep").shape == std::vector<int64_t>{25, 16});
  CHECK(!error_of([&] { embedding("both"); }, ExitCode::usage).empty());
}

TEST_CASE(
    "adapter: the two copies of an embedding that PEFT writes beside it after a resize are passed over") {
  const Copy copy;
  const auto add_copies = [&](const std::string& module) {
    copy.weights([&](auto& tensors) {
      for (const char* name : {".modules_to_save.weight", ".original_module.weight"}) {
        HostTensor extra = named(tensors, "embed_tokens.weight");
        extra.name = "base_model.model." + module + name;
        std::fill(extra.data.begin(), extra.data.end(), std::byte{});
        tensors.push_back(extra);
      }
    });
  };
  const Adapter plain = read_adapter(golden("peft/longlora"), base_config());
  const int64_t parameters = read_adapter_layout(golden("peft/longlora")).parameters;
  add_copies("model.embed_tokens");
  const Adapter adapter = read_adapter(copy.folder.path(), base_config());
  CHECK(adapter.replaced.size() == plain.replaced.size());
  CHECK(floats_of(adapter.replaced.at("model.embed_tokens.weight")) ==
        floats_of(plain.replaced.at("model.embed_tokens.weight")));
  CHECK(read_adapter_layout(copy.folder.path()).parameters == parameters);
  add_copies("lm_head");  // of what is not there itself
  check_contains(copy.error(), "lm_head.modules_to_save.weight\" is no tensor of the base");
}

TEST_CASE("adapter: how it was trained is kept beside it") {
  const TemporaryDirectory folder;
  CHECK(!read_run_info(folder.path()).rope);
  CHECK(read_run_info(folder.path()).context == 0);
  for (const char* text : {"none", "linear:8", "dynamic:2", "yarn:4", "llama3:8"}) {
    const RopeScaling rope = parse_rope_scaling(text, base_config(), 0);
    write_run_info(folder.path(), {rope, 32768});
    const AdapterRunInfo info = read_run_info(folder.path());
    REQUIRE(info.rope);
    CHECK(*info.rope == rope);
    CHECK(info.context == 32768);
  }
  write_bytes(folder / "sinklora.json", R"({"rope_scaling":{"rope_type":"longrope"}})");
  check_contains(error_of([&] { read_run_info(folder.path()); }), "longrope");
}
