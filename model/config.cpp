#include "model/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "base/error.h"
#include "base/json_fields.h"
#include "model/expected_directory.h"

namespace sinklora {
namespace {

// Bounds far beyond any LLaMA, low enough that no product of two or three of them leaves 64 bits.
constexpr int64_t kMaxVocabulary = int64_t{1} << 24;
constexpr int64_t kMaxHidden = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 16384;
constexpr int64_t kMaxPositions = int64_t{1} << 40;

// Settings that change the maths, of LLaMA and of its relatives, with the only value that means plain LLaMA.
struct NeutralSetting {
  const char* key;
  const char* neutral;  // as JSON
};
constexpr NeutralSetting kNeutral[] = {
    {"attention_bias", "false"},
    {"mlp_bias", "false"},
    {"attention_dropout", "0"},
    {"hidden_act", "\"silu\""},
    {"compression_config", "null"},
    {"partial_rotary_factor", "1"},
    {"rope_interleaved", "false"},
    {"sliding_window", "null"},
    {"attn_logit_softcapping", "null"},
    {"final_logit_softcapping", "null"},
    {"use_qk_norm", "false"},
    {"qk_layernorm", "false"},
    {"attention_multiplier", "null"},
    {"embedding_multiplier", "1"},
    {"residual_multiplier", "1"},
    {"logits_scaling", "1"},
    {"num_local_experts", "null"},
    {"no_rope_layers", "null"},
    {"auto_map", "null"},
};

// Read elsewhere, or without influence on what the model computes.
constexpr const char* kKnown[] = {
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "pretraining_tp",
    "initializer_range",
    "use_cache",
    "transformers_version",
    "_name_or_path",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "max_sequence_length",
    "quantization_config",
    "is_llama_config",
    "unsloth_version",
    "unsloth_fixed",
    "_attn_implementation_autoset",
};

RopeScaling::Type rope_type(const std::string& word, const std::string& source) {
  using Type = RopeScaling::Type;
  if (word == "default") return Type::none;
  if (word == "linear") return Type::linear;
  if (word == "dynamic") return Type::dynamic;
  if (word == "yarn") return Type::yarn;
  if (word == "llama3") return Type::llama3;
  fail_input("{}: RoPE type \"{}\" is not implemented; wanted default, linear, dynamic, yarn or llama3",
             source, word);
}

// Keys that a scaling of this type may hold.
bool rope_key_allowed(RopeScaling::Type type, const std::string& key) {
  using Type = RopeScaling::Type;
  const auto among = [&](std::initializer_list<const char*> keys) {
    return std::any_of(keys.begin(), keys.end(), [&](const char* k) { return key == k; });
  };
  // "finetuned", of the first YaRN models, says how the weights came about.
  if (among({"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"})) return true;
  if (type == Type::none) return false;
  if (among({"factor", "original_max_position_embeddings"})) return true;
  if (type == Type::llama3) return among({"low_freq_factor", "high_freq_factor"});
  if (type == Type::yarn)
    return among({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"});
  return false;
}

std::string type_word(RopeScaling::Type type) {
  constexpr const char* words[] = {"none", "linear", "dynamic", "yarn", "llama3"};
  return words[static_cast<int>(type)];
}

void parse_rope(const JsonFields& fields, LlamaConfig& config) {
  const Json& json = fields.json();
  const std::string& source = fields.source();
  std::optional<double> theta;
  const auto take_theta = [&](const JsonFields& from) {
    if (!from.given("rope_theta")) return;
    const double found = from.number("rope_theta", 1.0 + 1e-9, 1e30);
    if (theta && *theta != found)
      fail_input("{}: rope_theta is {} in one place and {} in another; keep the one that is meant", source,
                 *theta, found);
    theta = found;
  };
  take_theta(fields);
  std::optional<RopeScaling> scaling;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!fields.given(key)) continue;
    const std::string place = source + ": " + key;
    const RopeScaling found = parse_rope_object(json[key], config.max_positions, place);
    if (json[key].is_object()) take_theta(JsonFields(json[key], place));
    if (scaling && !(*scaling == found))
      fail_input("{}: rope_parameters and rope_scaling contradict each other; keep the one that is meant",
                 source);
    scaling = found;
  }
  config.rope_theta = theta.value_or(10000.0);
  config.rope = scaling.value_or(RopeScaling{});
  // transformers 5 takes the one outside, where there is one, and earlier releases never do.
  constexpr const char* original = "original_max_position_embeddings";
  const int64_t inside = config.rope.original_context,
                outside = fields.integer_or(original, inside, 1, kMaxPositions);
  if (inside != 0 && outside != inside)
    fail_input(
        "{}: {} is {} outside of the RoPE scaling and {} in it (max_position_embeddings, where it does not "
        "say); put the one that is meant into the scaling, and take away the one outside",
        source, original, outside, inside);
}

int32_t token_id(const Json& value, const char* key, const std::string& source) {
  if (value.is_number_integer()) {
    const auto id = value.get<int64_t>();
    if (id >= -1 && id < kMaxVocabulary) return static_cast<int32_t>(id);
  }
  fail_input("{}: {} is {}, wanted a token id from 0, -1 or null", source, key, shown(value));
}

void parse_token_ids(const JsonFields& fields, LlamaConfig& config) {
  const auto single = [&](const char* key, int32_t absent) {
    if (!fields.has(key)) return absent;
    return fields.given(key) ? token_id(fields.json()[key], key, fields.source()) : -1;
  };
  config.bos_id = single("bos_token_id", 1);
  config.pad_id = single("pad_token_id", -1);
  if (!fields.has("eos_token_id")) return;
  config.eos_ids.clear();
  if (!fields.given("eos_token_id")) return;
  const Json& eos = fields.json()["eos_token_id"];
  if (eos.is_array() && eos.size() > 1000)
    fail_input("{}: eos_token_id lists {} tokens; at most 1000 are expected", fields.source(), eos.size());
  if (!eos.is_array())
    config.eos_ids.push_back(token_id(eos, "eos_token_id", fields.source()));
  else
    for (const Json& id : eos) config.eos_ids.push_back(token_id(id, "eos_token_id", fields.source()));
}

DType parse_weight_dtype(const JsonFields& fields, DType absent) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!fields.given(key)) continue;
    std::string word = fields.text(key);
    if (word.starts_with("torch.")) word.erase(0, 6);  // as str(torch.bfloat16) has it
    if (word == "bfloat16") return DType::bf16;
    if (word == "float16") return DType::f16;
    if (word == "float32") return DType::f32;
    fail_input("{}: {} is \"{}\", wanted bfloat16, float16 or float32", fields.source(), key, word);
  }
  return absent;
}

void check_kind(const JsonFields& fields) {
  const Json& json = fields.json();
  const std::string& source = fields.source();
  if (fields.given("model_type") && json["model_type"] == "mistral")
    fail_input(
        "{}: model_type is \"mistral\"; without a sliding_window it is a LLaMA by another name: then set "
        "model_type to \"llama\" and architectures to [\"LlamaForCausalLM\"]",
        source);
  if (!fields.given("model_type") || json["model_type"] != "llama")
    fail_input("{}: model_type is {}, wanted \"llama\": only LLaMA is implemented", source,
               fields.given("model_type") ? shown(json["model_type"]) : "missing");
  if (fields.given("quantization_config"))
    fail_input(
        "{}: quantization_config is {}; quantized weights are not read: take the model that was quantized, "
        "or, if bitsandbytes did it, convert this one once in Python: model = "
        "AutoModelForCausalLM.from_pretrained(DIR); model.dequantize(); model.save_pretrained(NEW)",
        source, shown(json["quantization_config"]));
  if (fields.given("architectures")) {
    const Json& names = json["architectures"];
    if (!names.is_array() || std::find(names.begin(), names.end(), Json("LlamaForCausalLM")) == names.end())
      fail_input("{}: architectures is {}, wanted [\"LlamaForCausalLM\"]", source, shown(names));
  }
  for (const NeutralSetting& setting : kNeutral)
    if (fields.given(setting.key) && json[setting.key] != Json::parse(setting.neutral))
      fail_input(
          "{}: {} is {}; this setting changes what the model computes and is not implemented (wanted {})",
          source, setting.key, shown(json[setting.key]), setting.neutral);
}

}  // namespace

RopeScaling parse_rope_object(const Json& json, int64_t max_positions, const std::string& source) {
  using Type = RopeScaling::Type;
  RopeScaling scaling;
  if (json.is_null()) return scaling;
  const JsonFields fields(json, source);
  if (json.empty()) return scaling;
  const bool modern = fields.given("rope_type"), legacy = fields.given("type");
  if (modern && legacy && json["rope_type"] != json["type"])
    fail_input("{}: rope_type {} and type {} contradict each other", source, shown(json["rope_type"]),
               shown(json["type"]));
  if (modern || legacy)
    scaling.type = rope_type(fields.text(modern ? "rope_type" : "type"), source);
  else if (fields.given("factor"))
    fail_input("{}: has a factor but no rope_type", source);
  for (const auto& [key, value] : json.items())
    if (!value.is_null() && !rope_key_allowed(scaling.type, key))
      fail_input("{}: the key {} is not known for RoPE type {}", source, shown(Json(key)),
                 type_word(scaling.type));
  if (fields.given("partial_rotary_factor") && fields.number("partial_rotary_factor", 0, 1) != 1.0)
    fail_input("{}: partial_rotary_factor is {}; only whole heads (1) are implemented", source,
               shown(json["partial_rotary_factor"]));
  if (scaling.type == Type::none) return scaling;

  scaling.factor = fields.number("factor", 1.0, 1e6);
  scaling.original_context = fields.integer_or("original_max_position_embeddings", 0, 1, kMaxPositions);
  if (scaling.type == Type::linear || scaling.type == Type::dynamic) {
    // transformers reads max_position_embeddings here and ignores this key: a differing value would mislead.
    if (scaling.original_context != 0 && scaling.type == Type::dynamic &&
        scaling.original_context != max_positions)
      fail_input(
          "{}: original_max_position_embeddings {} differs from max_position_embeddings {}, which dynamic "
          "scaling "
          "starts from; make them equal",
          source, scaling.original_context, max_positions);
    scaling.original_context = 0;
    return scaling;
  }
  if (scaling.original_context == 0) scaling.original_context = max_positions;
  if (scaling.type == Type::llama3) {
    scaling.low_freq_factor = fields.number("low_freq_factor", 1e-6, 1e6);
    scaling.high_freq_factor = fields.number("high_freq_factor", 1e-6, 1e6);
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      fail_input("{}: high_freq_factor {} must be greater than low_freq_factor {}", source,
                 scaling.high_freq_factor, scaling.low_freq_factor);
  } else {
    scaling.attention_factor = fields.number_or("attention_factor", 0.0, 0.0, 1e6);
    scaling.beta_fast = fields.number_or("beta_fast", 32.0, 1e-6, 1e9);
    scaling.beta_slow = fields.number_or("beta_slow", 1.0, 1e-6, 1e9);
    scaling.mscale = fields.number_or("mscale", 0.0, 0.0, 1e6);
    scaling.mscale_all_dim = fields.number_or("mscale_all_dim", 0.0, 0.0, 1e6);
    // In transformers null is false, and no word of it true.
    scaling.truncate = fields.boolean_or("truncate", !fields.has("truncate"));
    if (scaling.beta_fast < scaling.beta_slow)
      fail_input("{}: beta_fast {} must not be below beta_slow {}", source, scaling.beta_fast,
                 scaling.beta_slow);
  }
  return scaling;
}

Json rope_object(const RopeScaling& scaling) {
  using Type = RopeScaling::Type;
  if (scaling.type == Type::none) return nullptr;
  // Releases of transformers from before "rope_type", up to 4.42, know only these two types, and refuse an object of
  // more than "type" and "factor". Later ones read it as well.
  const bool old_type = scaling.type == Type::linear || scaling.type == Type::dynamic;
  Json json = {{old_type ? "type" : "rope_type", type_word(scaling.type)}, {"factor", scaling.factor}};
  if (!old_type && scaling.original_context != 0)
    json["original_max_position_embeddings"] = scaling.original_context;
  if (scaling.type == Type::llama3) {
    json["low_freq_factor"] = scaling.low_freq_factor;
    json["high_freq_factor"] = scaling.high_freq_factor;
  }
  if (scaling.type == Type::yarn) {
    if (scaling.attention_factor != 0) json["attention_factor"] = scaling.attention_factor;
    json["beta_fast"] = scaling.beta_fast;
    json["beta_slow"] = scaling.beta_slow;
    if (scaling.mscale != 0) json["mscale"] = scaling.mscale;
    if (scaling.mscale_all_dim != 0) json["mscale_all_dim"] = scaling.mscale_all_dim;
    if (!scaling.truncate) json["truncate"] = false;
  }
  return json;
}

LlamaConfig parse_config(const Json& json, const std::string& source) {
  const JsonFields fields(json, source);
  check_kind(fields);
  LlamaConfig config;
  config.vocab_size = fields.integer_or("vocab_size", 32000, 1, kMaxVocabulary);
  config.hidden_size = fields.integer_or("hidden_size", 4096, 1, kMaxHidden);
  config.intermediate_size = fields.integer_or("intermediate_size", 11008, 1, 4 * kMaxHidden);
  config.num_layers = fields.integer_or("num_hidden_layers", 32, 1, kMaxLayers);
  config.num_heads = fields.integer_or("num_attention_heads", 32, 1, kMaxHeads);
  config.num_kv_heads = fields.integer_or("num_key_value_heads", config.num_heads, 1, kMaxHeads);
  if (config.hidden_size % config.num_heads != 0)
    fail_input("{}: hidden_size {} is not a multiple of num_attention_heads {}", source, config.hidden_size,
               config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0)
    fail_input("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", source,
               config.num_heads, config.num_kv_heads);
  config.head_dim = fields.integer_or("head_dim", config.hidden_size / config.num_heads, 1, 65536);
  if (config.head_dim % 2 != 0)
    fail_input("{}: head_dim {} is odd; RoPE turns pairs", source, config.head_dim);
  config.max_positions = fields.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  config.rms_norm_eps = fields.number_or("rms_norm_eps", 1e-6, 1e-30, 1.0);
  config.tied_embeddings = fields.boolean_or("tie_word_embeddings", false);
  // A tensor-parallel slicing of the same sums: any count computes the same function.
  fields.integer_or("pretraining_tp", 1, 1, 65536);
  parse_rope(fields, config);
  if (config.rope.type == RopeScaling::Type::dynamic && config.head_dim < 4)
    fail_input("{}: dynamic RoPE scaling needs a head_dim of 4 or more, found {}", source, config.head_dim);
  parse_token_ids(fields, config);
  config.dtype = parse_weight_dtype(fields, config.dtype);
  config.raw = json;
  return config;
}

LlamaConfig read_config(const std::filesystem::path& model_directory) {
  expect_model_directory(model_directory);
  const std::filesystem::path path = model_directory / "config.json";
  const Json json = read_json(path, int64_t{1} << 18);
  LlamaConfig config = parse_config(json, path.string());
  for (const auto& item : json.items()) {
    const std::string& key = item.key();
    const bool known =
        std::any_of(std::begin(kKnown), std::end(kKnown), [&](const char* k) { return key == k; }) ||
        std::any_of(std::begin(kNeutral), std::end(kNeutral), [&](auto& n) { return key == n.key; });
    if (!known)
      fmt::print(stderr, "{}: note: the setting {} is not known and has no effect\n", path.string(),
                 shown(Json(key)));
  }
  return config;
}

Json config_json(const LlamaConfig& config) {
  Json json = config.raw;
  if (!json.is_object())
    json = {{"architectures", Json::array({"LlamaForCausalLM"})},
            {"model_type", "llama"},
            {"hidden_act", "silu"}};
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_hidden_layers"] = config.num_layers;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["max_position_embeddings"] = config.max_positions;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["rope_theta"] = config.rope_theta;
  json["rope_scaling"] = rope_object(config.rope);
  // Of YaRN, releases of transformers up to 4.51 take max / original for the factor where both are given, so
  // that max must be what this scaling reaches, even where the base's own positions reach farther.
  if (const RopeScaling& rope = config.rope; rope.type == RopeScaling::Type::yarn) {
    if (rope.original_context == config.max_positions)
      json["rope_scaling"].erase("original_max_position_embeddings");
    else if (rope.original_context != 0)
      json["max_position_embeddings"] =
          std::llround(static_cast<double>(rope.original_context) * rope.factor);
  }
  json.erase("rope_parameters");
  json.erase("original_max_position_embeddings");  // the scaling has its own
  json["tie_word_embeddings"] = config.tied_embeddings;
  const auto id_or_null = [](int32_t id) { return id < 0 ? Json(nullptr) : Json(id); };
  json["bos_token_id"] = id_or_null(config.bos_id);
  json["eos_token_id"] = config.eos_ids.size() == 1 ? Json(config.eos_ids[0])
                         : config.eos_ids.empty()   ? Json(nullptr)
                                                    : Json(config.eos_ids);
  json["pad_token_id"] = id_or_null(config.pad_id);
  json["torch_dtype"] = config.dtype == DType::bf16  ? "bfloat16"
                        : config.dtype == DType::f16 ? "float16"
                                                     : "float32";
  json.erase("dtype");
  return json;
}

double reach_of(const LlamaConfig& config) {
  const auto positions = static_cast<double>(config.max_positions);
  const RopeScaling& own = config.rope;
  return own.original_context != 0
             ? std::max(positions, static_cast<double>(own.original_context) * own.factor)
             : positions * own.factor;
}

RopeScaling parse_rope_scaling(const std::string& text, const LlamaConfig& config, int64_t context) {
  using Type = RopeScaling::Type;
  RopeScaling scaling;
  if (text == "none") return scaling;
  if (text == "auto") {
    const auto positions = static_cast<double>(config.max_positions), wanted = static_cast<double>(context);
    const RopeScaling& own = config.rope;
    const double reach = reach_of(config);
    if (wanted <= reach) return own;
    if (own.type != Type::none && own.type != Type::linear)
      fail_usage(
          "--rope-scaling auto: the model has {}, which reaches {:.0f} of the {} positions; say which "
          "scaling "
          "it is to have",
          describe(own), reach, context);
    scaling.type = Type::linear;
    scaling.factor = std::ceil(wanted / positions);
    return scaling;
  }
  constexpr const char* wanted =
      "none, auto, linear:F, dynamic:F, yarn:F or llama3:F with a factor F from 1 to 1000000";
  const size_t colon = text.find(':');
  const std::string word = text.substr(0, colon),
                    number = colon == std::string::npos ? "" : text.substr(colon + 1);
  for (const Type type : {Type::linear, Type::dynamic, Type::yarn, Type::llama3})
    if (word == type_word(type)) scaling.type = type;
  size_t used = 0;
  try {
    scaling.factor = std::stod(number, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const bool plain = number.find_first_not_of("0123456789.") == std::string::npos;
  if (scaling.type == Type::none || used == 0 || used != number.size() || !plain ||
      !(scaling.factor >= 1.0) || scaling.factor > 1e6)
    fail_usage("--rope-scaling: '{}' is not understood; wanted {}", text, wanted);
  if (scaling.type == Type::yarn || scaling.type == Type::llama3)
    scaling.original_context =
        config.rope.original_context != 0 ? config.rope.original_context : config.max_positions;
  return scaling;
}

RopeScaling own_scaling(const LlamaConfig& config) {
  return config.raw.is_object() ? parse_config(config.raw, "config.json").rope : config.rope;
}

int64_t trained_reach(const LlamaConfig& config, int64_t context) {
  const RopeScaling& rope = config.rope;
  if (rope.type == RopeScaling::Type::none) return std::max(config.max_positions, context);
  if (rope.type != RopeScaling::Type::llama3 || rope == own_scaling(config)) return config.max_positions;
  return std::max<int64_t>(config.max_positions,
                           std::llround(static_cast<double>(rope.original_context) * rope.factor));
}

std::string describe(const RopeScaling& scaling) {
  if (scaling.type == RopeScaling::Type::none) return "none";
  return fmt::format("{} x{}", type_word(scaling.type), scaling.factor);
}

}  // namespace sinklora
