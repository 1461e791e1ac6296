#include "model/adapter_card.h"

#include <fmt/ranges.h>

#include <vector>

#include "base/files.h"

namespace sinklora {
namespace {

// All that transformers 5 may keep of the base's rope_parameters: an attention_factor would count for the new scaling.
constexpr const char* kTheta = R"("rope_theta": config.rope_parameters["rope_theta"])";

std::string python(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  return value.dump(-1, ' ', true, Json::error_handler_t::replace);
}

// What the base's config must be made to say; none where it says it.
struct RopeSettings {
  std::string items;      // of a Python dictionary
  bool none = false;      // no scaling, over a base that has one
  int64_t positions = 0;  // max_position_embeddings; 0: as it is
};

RopeSettings settings_beside_the_base(const LlamaConfig& trained) {
  RopeSettings settings;
  if (trained.rope == own_scaling(trained)) return settings;
  const Json config = config_json(trained);
  Json rope = config["rope_scaling"];
  settings.none = rope.is_null();
  if (settings.none)
    rope["rope_type"] = "default";
  else if (rope.contains("type"))  // a config.json is translated when it is read, a dictionary is not
    rope["rope_type"] = rope["type"];
  std::vector<std::string> items;
  for (const auto& [key, value] : rope.items()) items.push_back(python(key) + ": " + python(value));
  settings.items = fmt::format("{}", fmt::join(items, ", "));
  if (config["max_position_embeddings"] != trained.max_positions)
    settings.positions = config["max_position_embeddings"];
  return settings;
}

std::string lines_of(const RopeSettings& settings) {
  if (settings.items.empty()) return "";
  // Not by what the config has: transformers 4 keeps the rope_parameters of a config.json that 5 has written, unread.
  std::string lines = fmt::format(
      "rope = {{{}}}\n"
      "if transformers.__version__.startswith(\"4.\"):\n"
      "    config.rope_scaling = {}\n"
      "else:\n"
      "    config.rope_parameters = {{{}, **rope}}\n",
      settings.items, settings.none ? "None" : "rope", kTheta);
  if (settings.positions != 0)
    lines += fmt::format("config.max_position_embeddings = {}\n", settings.positions);
  return lines;
}

}  // namespace

std::string rope_remedy(const LlamaConfig& trained) {
  const RopeSettings settings = settings_beside_the_base(trained);
  if (settings.items.empty()) return "";
  return fmt::format(
      "PEFT takes the RoPE scaling of the base, and this adapter was trained with {}: load the base with a "
      "config in which config.rope_scaling = {} (transformers 5: config.rope_parameters = {{{}, {}}}){}",
      describe(trained.rope), settings.none ? "None" : "{" + settings.items + "}", kTheta, settings.items,
      settings.positions != 0 ? fmt::format(" and config.max_position_embeddings = {}", settings.positions)
                              : "");
}

void write_adapter_card(const std::filesystem::path& directory, const std::string& base_model_path,
                        const LlamaConfig& trained, int64_t context) {
  const std::string base = python(base_model_path), lines = lines_of(settings_beside_the_base(trained));
  const std::string why = fmt::format(
      "\nIt was trained with RoPE scaling {}, for which PEFT has no place: without the lines on `rope` the\n"
      "model computes something else. `sinklora merge` writes a model that needs none of them.\n",
      describe(trained.rope));
  write_text_atomically(
      directory / "README.md",
      fmt::format("---\n"
                  "base_model: {0}\n"
                  "library_name: peft\n"
                  "---\n\n"
                  "A LoRA adapter for {0}, trained by sinklora on up to {1} tokens at a time.\n\n"
                  "```python\n"
                  "import transformers\n"
                  "from peft import PeftModel\n"
                  "from transformers import AutoConfig, AutoModelForCausalLM\n\n"
                  "config = AutoConfig.from_pretrained({0})\n"
                  "{2}model = AutoModelForCausalLM.from_pretrained({0}, config=config)\n"
                  "model = PeftModel.from_pretrained(model, \"the folder of this file\")\n"
                  "```\n{3}",
                  base, context, lines, lines.empty() ? "" : why));
}

}  // namespace sinklora
