#include "model/config.h"

#include <doctest/doctest.h>

#include <cmath>

#include "model/rope.h"
#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

LlamaConfig parse(const std::string& text) {
  return parse_config(parse_json(text, "config.json"), "config.json");
}
// A small LLaMA with further fields.
LlamaConfig with(const std::string& fields) {
  return parse(R"({"model_type":"llama","hidden_size":64,"num_attention_heads":4)" +
               (fields.empty() ? "" : "," + fields) + "}");
}
void refuse(const std::string& fields, const std::string& part) {
  const std::string found = error_of([&] { with(fields); });
  CHECK_MESSAGE(found.find(part) != std::string::npos, fields, " -> ", found);
}

}  // namespace

TEST_CASE("config: defaults are those of transformers, null stands for absent") {
  const LlamaConfig config = parse(
      R"({"model_type":"llama","num_key_value_heads":null,"head_dim":null,"pad_token_id":null,"rope_scaling":null})");
  CHECK(config.vocab_size == 32000);
  CHECK(config.num_kv_heads == 32);
  CHECK(config.head_dim == 128);
  CHECK(config.max_positions == 2048);
  CHECK(config.rms_norm_eps == 1e-6);
  CHECK(config.rope_theta == 10000.0);
  CHECK(config.rope == RopeScaling{});
  CHECK(config.bos_id == 1);
  CHECK(config.eos_ids == std::vector<int32_t>{2});
  CHECK(config.pad_id == -1);
  CHECK(!config.tied_embeddings);
}

TEST_CASE("config: both spellings of token ids, dtype and RoPE") {
  CHECK(with(R"("eos_token_id":[128001,128008,128009])").eos_ids ==
        std::vector<int32_t>{128001, 128008, 128009});
  CHECK(with(R"("eos_token_id":null,"bos_token_id":null)").eos_ids.empty());
  CHECK(with(R"("bos_token_id":null)").bos_id == -1);
  CHECK(with(R"("dtype":"float16")").dtype == DType::f16);
  CHECK(with(R"("torch_dtype":"float32")").dtype == DType::f32);
  CHECK(with(R"("torch_dtype":"torch.float16")").dtype == DType::f16);
  CHECK(with(R"("rope_scaling":{"type":"linear","factor":4,"finetuned":true})").rope.factor == 4);
  CHECK(with(R"("rope_scaling":{"type":"linear","factor":4})").rope ==
        with(R"("rope_scaling":{"rope_type":"linear","factor":4.0})").rope);
  const LlamaConfig modern = with(
      R"("rope_parameters":{"rope_type":"llama3","rope_theta":500000.0,"factor":8.0,"low_freq_factor":1.0,
      "high_freq_factor":4.0,"original_max_position_embeddings":8192},"max_position_embeddings":131072)");
  CHECK(modern.rope_theta == 500000.0);
  CHECK(modern.rope.type == RopeScaling::Type::llama3);
  CHECK(modern.rope.original_context == 8192);
  CHECK(with(R"("rope_parameters":{"rope_type":"default","rope_theta":500000.0})").rope_theta == 500000.0);
}

TEST_CASE("config: settings that change the maths are refused by name") {
  refuse(R"("attention_bias":true)", "attention_bias");
  refuse(R"("mlp_bias":true)", "mlp_bias");
  refuse(R"("hidden_act":"gelu")", "hidden_act");
  refuse(R"("quantization_config":{"quant_method":"gptq"})", "quantization_config");
  refuse(R"("attention_dropout":0.1)", "attention_dropout");
  refuse(R"("partial_rotary_factor":0.5)", "partial_rotary_factor");
  refuse(R"("architectures":["LlamaForSequenceClassification"])", "LlamaForSequenceClassification");
  CHECK(error_of([] { parse(R"({"model_type":"mistral"})"); }).find("mistral") != std::string::npos);
  const std::string mistral = error_of([] { parse(R"({"model_type":"mistral"})"); });
  check_contains(mistral, "set model_type to \"llama\"");
  check_contains(mistral, "sliding_window");
  check_contains(error_of([] { parse(R"({"model_type":"qwen2"})"); }), "only LLaMA is implemented");
  // Of GPTQ, AWQ and most others transformers has no dequantize().
  refuse(R"("quantization_config":{"quant_method":"gptq"})",
         "or, if bitsandbytes did it, convert this one once in Python: model =");
  CHECK(error_of([] { parse("{}"); }).find("model_type is missing") != std::string::npos);
  CHECK(error_of([] { parse("[]"); }).find("JSON object") != std::string::npos);
  with(
      R"("attention_dropout":0.0,"pretraining_tp":2,"partial_rotary_factor":1.0,"architectures":["LlamaForCausalLM"])");
}

TEST_CASE("config: RoPE settings that are not understood are refused, never taken for the default") {
  refuse(R"("rope_scaling":{"rope_type":"longrope","factor":2.0,"short_factor":[1],"long_factor":[1]})",
         "longrope");
  refuse(R"("rope_scaling":{"type":"ntk","factor":2.0})", "ntk");
  refuse(R"("rope_scaling":{"factor":2.0})", "no rope_type");
  refuse(R"("rope_scaling":{"rope_type":"linear"})", "factor is missing");
  refuse(R"("rope_scaling":{"rope_type":"linear","type":"dynamic","factor":2.0})", "contradict");
  refuse(R"("rope_scaling":{"rope_type":"linear","factor":0.5})", "factor");
  refuse(R"("rope_scaling":{"rope_type":"linear","factor":"8"})", "factor");
  refuse(R"("rope_scaling":{"rope_type":"linear","factor":2.0,"beta_fast":1})", "beta_fast");
  refuse(R"("rope_scaling":{"rope_type":"llama3","factor":8.0})", "low_freq_factor");
  refuse(R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":4.0,"high_freq_factor":4.0})",
         "greater");
  refuse(R"("rope_scaling":{"rope_type":"yarn","factor":4.0,"beta_fast":1,"beta_slow":2})", "beta_fast");
  refuse(R"("rope_scaling":{"rope_type":"linear","factor":2.0,"partial_rotary_factor":0.5})",
         "partial_rotary_factor");
  refuse(R"("rope_scaling":[1])", "object");
  refuse(R"("rope_theta":10000.0,"rope_parameters":{"rope_type":"default","rope_theta":500000.0})",
         "one place");
  refuse(
      R"("rope_scaling":{"rope_type":"linear","factor":2.0},"rope_parameters":{"rope_type":"linear","factor":4.0})",
      "contradict");
  refuse(R"("rope_theta":0)", "rope_theta");
  refuse(R"("rope_scaling":{"rope_type":"dynamic","factor":2.0,"original_max_position_embeddings":1024})",
         "1024");
}

TEST_CASE(
    "config: an original context outside of the RoPE scaling, which transformers 5 prefers, must be the one "
    "in it") {
  const std::string yarn = R"("rope_scaling":{"rope_type":"yarn","factor":4.0)",
                    outside = R"(},"original_max_position_embeddings":)";
  refuse(yarn + outside + "512", "original_max_position_embeddings is 512");
  refuse(yarn + R"(,"original_max_position_embeddings":256)" + outside + "512",
         "512 outside of the RoPE scaling and 256 in it");
  CHECK(with(yarn + R"(,"original_max_position_embeddings":512)" + outside + "512").rope.original_context ==
        512);
  const std::string linear = R"("rope_scaling":{"rope_type":"linear","factor":4.0)";
  LlamaConfig config = with(linear + outside + "512");  // without influence there
  config.rope = parse_rope_scaling("yarn:4", config, 0);
  CHECK(parse_config(config_json(config), "written").rope == config.rope);
}

TEST_CASE("config: hostile numbers are refused before anything is allocated") {
  refuse(R"("num_attention_heads_":1,"num_hidden_layers":0)", "num_hidden_layers");
  refuse(R"("num_hidden_layers":-1)", "num_hidden_layers");
  refuse(R"("num_hidden_layers":1e3)", "num_hidden_layers");
  refuse(R"("num_hidden_layers":1000000)", "num_hidden_layers");
  refuse(R"("num_key_value_heads":3)", "multiple of num_key_value_heads");
  refuse(R"("num_key_value_heads":0)", "num_key_value_heads");
  refuse(R"("vocab_size":2147483648)", "vocab_size");
  refuse(R"("vocab_size":18446744073709551615)", "vocab_size");
  refuse(R"("vocab_size":"32000")", "vocab_size");
  refuse(R"("head_dim":15)", "odd");
  refuse(R"("head_dim":0)", "head_dim");
  refuse(R"("rms_norm_eps":0)", "rms_norm_eps");
  refuse(R"("rms_norm_eps":-1e-6)", "rms_norm_eps");
  refuse(R"("rms_norm_eps":null,"max_position_embeddings":0)", "max_position_embeddings");
  refuse(R"("tie_word_embeddings":1)", "tie_word_embeddings");
  refuse(R"("eos_token_id":[1,"x"])", "eos_token_id");
  refuse(R"("eos_token_id":1.5)", "eos_token_id");
  refuse(R"("bos_token_id":[1])", "bos_token_id");
  refuse(R"("dtype":"int8")", "int8");
  CHECK(error_of([] {
          parse(R"({"model_type":"llama","num_attention_heads":0})");
        }).find("num_attention_heads") != std::string::npos);
  CHECK(error_of([] { parse(R"({"model_type":"llama","hidden_size":4097})"); }).find("multiple") !=
        std::string::npos);
  CHECK(error_of([] { parse(R"({"model_type":"llama","rms_norm_eps":NaN})"); }).find("not valid JSON") !=
        std::string::npos);
  CHECK(error_of([] { parse(std::string(100'000, '[')); }).find("nesting") != std::string::npos);
}

TEST_CASE("rope: inverse frequencies equal those of transformers, from either spelling of the config") {
  const Json goldens = read_json(golden("rope.json"));
  CHECK(goldens["cases"].size() == 10);
  double worst = 0;
  for (const Json& one : goldens["cases"]) {
    CAPTURE(one["name"].get<std::string>());
    const LlamaConfig config = parse_config(one["old"], "old"), modern = parse_config(one["new"], "new");
    const LlamaConfig written = parse_config(config_json(modern), "written");
    for (const Json& result : one["results"]) {
      const auto length = result["length"].get<int64_t>();
      const std::vector<double> found = inverse_frequencies(config, length);
      CHECK(found == inverse_frequencies(modern, length));
      CHECK(found == inverse_frequencies(written, length));
      REQUIRE(found.size() == result["inv_freq"].size());
      for (size_t i = 0; i < found.size(); ++i) {
        const double wanted = result["inv_freq"][i].get<double>();
        worst = std::max(worst, std::fabs(found[i] - wanted) / wanted);
      }
      CHECK(rope_attention_factor(config) ==
            doctest::Approx(result["attention_factor"].get<double>()).epsilon(1e-12));
    }
  }
  // transformers works in float: the exponent's rounding times ln(theta), some roundings after it.
  CHECK(worst < 1e-6);
}

TEST_CASE("rope: the table holds cosine and sine of position times frequency") {
  LlamaConfig config = with(R"("rope_scaling":{"rope_type":"yarn","factor":4.0,"attention_factor":1.5})");
  const RopeTable table = make_rope_table(config, 50);
  const std::vector<double> inverse = inverse_frequencies(config, 50);
  CHECK(table.half_dim == 8);
  REQUIRE(table.cosines.size() == 400);
  for (size_t position : {0, 1, 49})
    for (size_t i = 0; i < 8; ++i) {
      const double angle = static_cast<double>(position) * inverse[i];
      CHECK(table.cosines[position * 8 + i] == 1.5 * std::cos(angle));
      CHECK(table.sines[position * 8 + i] == 1.5 * std::sin(angle));
    }
}

TEST_CASE("config: what is written is read back as it was, and unknown settings survive") {
  for (
      const char* rope :
      {R"("rope_scaling":null)", R"("rope_scaling":{"type":"linear","factor":8.0})",
       R"("rope_parameters":{"rope_type":"dynamic","factor":2.0,"rope_theta":20000.0})",
       R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":512})",
       R"("rope_scaling":{"rope_type":"yarn","factor":4.0,"truncate":false,"mscale":1.0,"mscale_all_dim":0.5,"beta_fast":16})"}) {
    const LlamaConfig config =
        with(std::string(rope) +
             R"(,"eos_token_id":[2,3],"tie_word_embeddings":true,"dtype":"float16","initializer_range":0.5)");
    const Json json = config_json(config);
    CHECK(json["initializer_range"] == 0.5);
    CHECK(!json.contains("rope_parameters"));
    const LlamaConfig again = parse_config(json, "again");
    CHECK(again.rope == config.rope);
    CHECK(again.rope_theta == config.rope_theta);
    CHECK(again.eos_ids == config.eos_ids);
    CHECK(again.pad_id == -1);
    CHECK(again.dtype == DType::f16);
    CHECK(again.tied_embeddings);
    CHECK(again.head_dim == 16);
  }
  CHECK(!with(R"("rope_scaling":{"rope_type":"yarn","factor":4.0,"truncate":null})").rope.truncate);
  CHECK(with(R"("rope_scaling":{"rope_type":"yarn","factor":4.0})").rope.truncate);
  CHECK(parse_config(config_json(LlamaConfig{}), "x").hidden_size == 4096);
  // 8 and not 8.0 makes transformers complain, and those up to 4.42 want exactly these two fields.
  for (const std::string type : {"linear", "dynamic"})
    CHECK(config_json(with(R"("rope_scaling":{"rope_type":")" + type + R"(","factor":8})"))["rope_scaling"]
              .dump() == R"({"type":")" + type + R"(","factor":8.0})");
}

TEST_CASE("YaRN is written so that transformers which take max / original for its factor find it") {
  const auto written = [](int64_t max_positions, int64_t original, double factor) {
    LlamaConfig config;
    config.max_positions = max_positions;
    config.rope.type = RopeScaling::Type::yarn;
    config.rope.factor = factor;
    config.rope.original_context = original;
    const Json json = config_json(config);
    CHECK(parse_config(json, "x").rope == config.rope);
    return json;
  };
  CHECK(!written(4096, 4096, 4)["rope_scaling"].contains("original_max_position_embeddings"));
  CHECK(written(4096, 4096, 4)["max_position_embeddings"] == 4096);
  CHECK(written(16384, 4096, 4)["rope_scaling"]["original_max_position_embeddings"] == 4096);
  CHECK(written(8192, 4096, 4)["max_position_embeddings"] == 16384);
  CHECK(written(131072, 8192, 4)["max_position_embeddings"] == 32768);  // also where the base reaches farther
  CHECK(written(131072, 4096, 2.5)["max_position_embeddings"] == 10240);
}

TEST_CASE(
    "a model that llama3 has stretched says how far it reaches, as Meta's do; one that came with it stays") {
  LlamaConfig config = with(R"("max_position_embeddings":128)");
  CHECK(trained_reach(config, 512) == 512);  // no scaling
  config.rope = parse_rope_scaling("llama3:4", config, 0);
  CHECK(trained_reach(config, 256) == 512);
  CHECK(trained_reach(config, 0) == 512);
  config.rope =
      parse_rope_scaling("linear:4", config, 0);  // there, this number is a part of the formula or none
  CHECK(trained_reach(config, 512) == 128);
  const LlamaConfig llama32 = with(
      R"("max_position_embeddings":1024,"rope_scaling":{"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,
      "high_freq_factor":4.0,"original_max_position_embeddings":64})");
  CHECK(trained_reach(llama32, 512) == 1024);
}

TEST_CASE("--rope-scaling: auto is LongLoRA's position interpolation") {
  LlamaConfig config;
  config.max_positions = 4096;
  const auto automatic = [&](int64_t context) { return parse_rope_scaling("auto", config, context); };
  CHECK(automatic(4096) == RopeScaling{});
  for (const auto& [context, factor] :
       {std::pair{8192, 2}, {16384, 4}, {32768, 8}, {65536, 16}, {100000, 25}, {18000, 5}}) {
    CHECK(automatic(context).type == RopeScaling::Type::linear);
    CHECK(automatic(context).factor == factor);
  }
  config.rope = automatic(8192);
  CHECK(automatic(8192) == config.rope);  // the model's own scaling suffices
  CHECK(automatic(16384).factor == 4);    // of the model's positions, not of those it already stretches
  LlamaConfig llama31 = config;
  llama31.max_positions = 131072;
  llama31.rope = parse_rope_scaling("llama3:8", config, 0);
  llama31.rope.original_context = 8192;
  CHECK(parse_rope_scaling("auto", llama31, 131072) == llama31.rope);
  const std::string refused = error_of([&] { parse_rope_scaling("auto", llama31, 200000); }, ExitCode::usage);
  CHECK_MESSAGE(refused.find("llama3 x8, which reaches 131072 of the 200000") != std::string::npos, refused);
  CHECK(parse_rope_scaling("none", config, 99999) == RopeScaling{});
  CHECK(parse_rope_scaling("linear:2.5", config, 0).factor == 2.5);
  CHECK(parse_rope_scaling("yarn:4", config, 0).original_context == 4096);
  CHECK(parse_rope_scaling("llama3:8", config, 0).high_freq_factor == 4.0);
  CHECK(parse_rope_scaling("dynamic:2", config, 0).type == RopeScaling::Type::dynamic);
  for (const char* wrong :
       {"", "linear", "linear:", "linear:x", "linear:0.5", "linear:nan", "linear:inf", "linear:1e9",
        "linear:2x", "linear:-2", "linear: 2", "ntk:2", "none:2", "longrope:2", "Linear:2"})
    CHECK_MESSAGE(
        error_of([&] { parse_rope_scaling(wrong, config, 0); }, ExitCode::usage).find("--rope-scaling") == 0,
        wrong);
  CHECK(describe(parse_rope_scaling("linear:4", config, 0)) == "linear x4");
  CHECK(describe(RopeScaling{}) == "none");
}
