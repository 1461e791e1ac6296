// adapter_config.json and its expressions: whatever is accepted gives every module a rank and a finite scale
// in time.
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "model/adapter_config.h"

using namespace sinklora;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const Json json = parse_json(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    const AdapterSettings settings = parse_adapter_config(json, "fuzz");
    unknown_adapter_keys(json);
    for (const char* module :
         {"model.layers.0.self_attn.q_proj", "model.layers.31.mlp.down_proj", "lm_head"}) {
      settings.selects(module, 31);
      if (settings.rank_of(module) < 1 || !std::isfinite(settings.scale_of(module))) std::abort();
    }
  } catch (const Error& error) {
    if (error.code != ExitCode::input) std::abort();
  }
  return 0;
}
