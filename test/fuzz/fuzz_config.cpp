// config.json: what is accepted has finite angles and a shape that can be listed, and is written and read
// back equal.
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "model/hf_directory.h"
#include "model/rope.h"

using namespace sinklora;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const LlamaConfig config = parse_config(parse_json(text, "fuzz"), "fuzz");
    if (config.head_dim <= 4096)
      for (const double f : inverse_frequencies(config, 2 * config.max_positions))
        if (!std::isfinite(f) || f < 0) std::abort();
    if (!std::isfinite(rope_attention_factor(config))) std::abort();
    if (config.num_layers <= 64)
      for (const TensorInfo& info : expected_tensors(config))
        if (info.elements() <= 0 || info.bytes <= 0) std::abort();
    try {
      const LlamaConfig again = parse_config(parse_json(config_json(config).dump(), "again"), "again");
      if (!(again.rope == config.rope) || again.rope_theta != config.rope_theta ||
          again.eos_ids != config.eos_ids || again.head_dim != config.head_dim || again.dtype != config.dtype)
        std::abort();
    } catch (const Error&) {
      std::abort();
    }
  } catch (const Error& error) {
    if (error.code != ExitCode::input) std::abort();
  }
  return 0;
}
