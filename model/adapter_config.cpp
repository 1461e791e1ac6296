#include "model/adapter_config.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json_fields.h"

namespace sinklora {
namespace {

constexpr size_t kMaxPatterns = 8192;
constexpr size_t kMaxExpression = 65536;  // bytes
constexpr uint32_t kMatchLimit = 100'000;
constexpr uint32_t kMatchHeapKib = 16384;
constexpr int64_t kMaxRank = 65536;

// Variants of LoRA that compute something else. Accepted only when switched off: null, false, {} or [].
constexpr const char* kRefused[] = {
    "use_dora",          "lora_bias",
    "fan_in_fan_out",    "layer_replication",
    "target_parameters", "alora_invocation_tokens",
    "use_qalora",        "loftq_config",
    "corda_config",      "lora_ga_config",
    "velora_config",     "monteclora_config",
    "use_bdlora",        "arrow_config",
    "kasa_config",       "trainable_token_indices",
    "megatron_config",
};
constexpr const char* kKnown[] = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "bias",
    "use_rslora",
    "init_lora_weights",
    "eva_config",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
};

bool switched_off(const Json& value) {
  return value.is_null() || value == Json(false) || (value.is_structured() && value.empty());
}

std::vector<std::string> names_of(const Json& list, const char* key, const std::string& source) {
  if (list.size() > kMaxPatterns)
    fail_input("{}: {} has {} entries; at most {} are read", source, key, list.size(), kMaxPatterns);
  std::vector<std::string> names;
  for (const Json& name : list) {
    if (!name.is_string() || name.get<std::string>().empty())
      fail_input("{}: {} holds {}, wanted module names", source, key, shown(name));
    names.push_back(name.get<std::string>());
  }
  return names;
}

ModuleSelection selection(const JsonFields& fields, const char* key) {
  ModuleSelection result;
  if (!fields.given(key)) return result;
  const Json& value = fields.json()[key];
  if (value.is_array()) {
    result.names = names_of(value, key, fields.source());
  } else if (value.is_string()) {
    const auto text = value.get<std::string>();
    result.all_linear = text == "all-linear";
    if (!result.all_linear) result.expression.emplace_back(text, fields.source() + ": " + key);
  } else {
    fail_input("{}: {} is {}, wanted a list of module names or a regular expression", fields.source(), key,
               shown(value));
  }
  return result;
}

// As PEFT matches the keys of rank_pattern and alpha_pattern: a tail of the module's name.
ModulePattern tail_pattern(const std::string& key, const std::string& source) {
  return ModulePattern("(?:.*\\.)?(?:" + key + ")", source);
}

template <class Value, class Read>
std::vector<std::pair<ModulePattern, Value>> patterns(const JsonFields& fields, const char* key, Read read) {
  std::vector<std::pair<ModulePattern, Value>> result;
  if (!fields.given(key)) return result;
  const std::string place = fields.source() + ": " + key;
  const JsonFields entries(fields.json()[key], place);
  if (entries.json().size() > kMaxPatterns)
    fail_input("{}: {} entries; at most {} are read", place, entries.json().size(), kMaxPatterns);
  for (const auto& [pattern, value] : entries.json().items())
    result.emplace_back(tail_pattern(pattern, place), read(entries, pattern.c_str()));
  return result;
}

std::vector<int64_t> layers(const JsonFields& fields) {
  constexpr const char* key = "layers_to_transform";
  if (!fields.given(key)) return {};
  const Json& value = fields.json()[key];
  if (!value.is_array()) return {fields.integer(key, 0, 65535)};
  if (value.size() > kMaxPatterns) fail_input("{}: {} has {} entries", fields.source(), key, value.size());
  std::vector<int64_t> result;
  for (const Json& layer : value) {
    if (!layer.is_number_unsigned() || layer.get<uint64_t>() > 65535)
      fail_input("{}: {} holds {}, wanted layer numbers", fields.source(), key, shown(layer));
    result.push_back(layer.get<int64_t>());
  }
  return result;
}

void check_plain_lora(const JsonFields& fields) {
  const Json& json = fields.json();
  const std::string& source = fields.source();
  if (!fields.given("peft_type") || json["peft_type"] != "LORA")
    fail_input("{}: peft_type is {}, wanted \"LORA\"", source,
               fields.given("peft_type") ? shown(json["peft_type"]) : "missing");
  for (const char* key : kRefused)
    if (json.contains(key) && !switched_off(json[key]))
      fail_input("{}: {} is {}; this variant of LoRA is not implemented", source, key, shown(json[key]));
  // A LLaMA has no biases to train; where the adapter has some, its base was another, and its tensors are refused.
  if (fields.given("bias") && json["bias"] != "none" && json["bias"] != "all" && json["bias"] != "lora_only")
    fail_input("{}: bias is {}, wanted \"none\", \"all\" or \"lora_only\"", source, shown(json["bias"]));
  // The others change the base's weights as well, so that this adapter would not fit the base as it is.
  const Json init = json.value("init_lora_weights", Json(nullptr));
  if (!init.is_null() && !init.is_boolean() && init != "gaussian" && init != "orthogonal" && init != "eva")
    fail_input(
        "{}: init_lora_weights is {}, which may change the base as well; wanted true, false, \"gaussian\", "
        "\"orthogonal\" or \"eva\" (let PEFT convert the adapter to a plain one when it saves it)",
        source, shown(init));
}

}  // namespace

struct ModulePattern::Code {
  std::string expression, source;
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code{nullptr, pcre2_code_free};
};

ModulePattern::ModulePattern(const std::string& expression, const std::string& source) {
  const auto code = std::make_shared<Code>();
  code->expression = expression;
  code->source = source;
  if (expression.size() > kMaxExpression)
    fail_input("{}: an expression of {} bytes; at most {} are read", source, expression.size(),
               kMaxExpression);
  int error = 0;
  size_t offset = 0;
  constexpr uint32_t options = PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C;
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(), options,
                                 &error, &offset, nullptr));
  if (!code->code) {
    unsigned char message[256] = {};
    pcre2_get_error_message(error, message, sizeof message);
    fail_input("{}: {} is no regular expression: {} at its byte {}", source, shown(Json(expression)),
               reinterpret_cast<const char*>(message), offset);
  }
  code_ = code;
}

bool ModulePattern::matches(const std::string& module) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code_->code.get(), nullptr), pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (!data || !limits) throw std::bad_alloc();
  pcre2_set_match_limit(limits.get(), kMatchLimit);
  pcre2_set_depth_limit(limits.get(), kMatchLimit);
  pcre2_set_heap_limit(limits.get(), kMatchHeapKib);
  const int result = pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(module.data()),
                                 module.size(), 0, 0, data.get(), limits.get());
  if (result < 0 && result != PCRE2_ERROR_NOMATCH)
    fail_input("{}: the expression {} cannot be matched in reasonable time (PCRE2 error {})", code_->source,
               shown(Json(code_->expression)), result);
  return result >= 0;
}

bool ModuleSelection::contains(const std::string& module) const {
  if (all_linear) return module != "lm_head" && module.find("_proj") != std::string::npos;
  if (!expression.empty()) return expression.front().matches(module);
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return module == name || module.ends_with("." + name); });
}

bool AdapterSettings::selects(const std::string& module, int64_t layer) const {
  if (!layers.empty() && std::find(layers.begin(), layers.end(), layer) == layers.end()) return false;
  return targets.contains(module) && !excluded.contains(module);
}

int64_t AdapterSettings::rank_of(const std::string& module) const {
  for (const auto& [pattern, value] : rank_pattern)
    if (pattern.matches(module)) return value;
  return rank;
}

double AdapterSettings::scale_of(const std::string& module) const {
  double scale = alpha;
  for (const auto& [pattern, value] : alpha_pattern)
    if (pattern.matches(module)) {
      scale = value;
      break;
    }
  const auto module_rank = static_cast<double>(rank_of(module));
  return scale / (rslora ? std::sqrt(module_rank) : module_rank);
}

AdapterSettings parse_adapter_config(const Json& json, const std::string& source) {
  const JsonFields fields(json, source);
  check_plain_lora(fields);
  AdapterSettings settings;
  settings.rank = fields.integer_or("r", 8, 1, kMaxRank);
  settings.alpha = fields.number_or("lora_alpha", 8.0, 0.0, 1e9);
  settings.rslora = fields.boolean_or("use_rslora", false);
  if (fields.given("base_model_name_or_path")) settings.base_model = fields.text("base_model_name_or_path");
  settings.targets = selection(fields, "target_modules");
  settings.excluded = selection(fields, "exclude_modules");
  settings.layers = layers(fields);
  if (fields.given("modules_to_save")) {
    if (!json["modules_to_save"].is_array())
      fail_input("{}: modules_to_save is {}, wanted a list of module names", source,
                 shown(json["modules_to_save"]));
    settings.modules_to_save = names_of(json["modules_to_save"], "modules_to_save", source);
  }
  settings.rank_pattern = patterns<int64_t>(
      fields, "rank_pattern",
      [](const JsonFields& entries, const char* key) { return entries.integer(key, 1, kMaxRank); });
  settings.alpha_pattern = patterns<double>(
      fields, "alpha_pattern",
      [](const JsonFields& entries, const char* key) { return entries.number(key, 0.0, 1e9); });
  return settings;
}

std::vector<std::string> unknown_adapter_keys(const Json& json) {
  std::vector<std::string> unknown;
  const auto among = [](const auto& list, const std::string& key) {
    return std::any_of(std::begin(list), std::end(list), [&](const char* k) { return key == k; });
  };
  for (const auto& [key, value] : json.items())
    if (!among(kKnown, key) && !among(kRefused, key)) unknown.push_back(key);
  return unknown;
}

}  // namespace sinklora
