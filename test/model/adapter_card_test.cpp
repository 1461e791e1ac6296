#include "model/adapter_card.h"

#include <doctest/doctest.h>

#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// A base of 128 positions, trained with another scaling than its own.
LlamaConfig trained(const std::string& scaling, const std::string& own = "null") {
  LlamaConfig config = parse_config(
      parse_json(R"({"model_type":"llama","max_position_embeddings":128,"rope_scaling":)" + own + "}", "x"),
      "x");
  config.rope = parse_rope_scaling(scaling, config, 0);
  return config;
}

}  // namespace

TEST_CASE("adapter card: the RoPE scaling that PEFT knows nothing of, as lines of Python") {
  CHECK(rope_remedy(trained("none")).empty());
  const std::string linear = R"({"type":"linear","factor":2.0})";
  LlamaConfig own = trained("none", linear);
  own.rope = parse_rope_scaling("linear:2", own, 0);
  CHECK(rope_remedy(own).empty());
  check_contains(rope_remedy(trained("linear:4")),
                 R"(config.rope_scaling = {"type": "linear", "factor": 4.0, "rope_type": "linear"})");
  check_contains(rope_remedy(trained("linear:4")), "transformers 5: config.rope_parameters");
  check_contains(rope_remedy(trained("none", linear)), "config.rope_scaling = None");

  const auto card = [](const LlamaConfig& config) {
    const TemporaryDirectory folder;
    write_adapter_card(folder.path(), "some/base", config, 512);
    return read_text(folder / "README.md", 1 << 16);
  };
  const std::string llama3 = card(trained("llama3:4"));
  check_contains(llama3, "base_model: \"some/base\"\nlibrary_name: peft\n");
  check_contains(llama3,
                 R"({"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 128, )");
  // An attention_factor of the base's own scaling must not count for the new one.
  for (const std::string& text : {llama3, rope_remedy(trained("llama3:4"))}) {
    check_contains(text, R"(config.rope_parameters = {"rope_theta": config.rope_parameters["rope_theta"], )");
    CHECK(text.find("**config.rope_parameters") == std::string::npos);
  }
  check_contains(llama3, "PeftModel.from_pretrained(");
  CHECK(card(trained("none")).find("rope") == std::string::npos);
  LlamaConfig yarn = trained("yarn:4");
  yarn.rope.truncate = false;
  check_contains(card(yarn), R"("truncate": False)");
}
