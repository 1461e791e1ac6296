// Base and adapter as transformers and PEFT saved them, read and run here: logits against PEFT's.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "model/loaded_model.h"
#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

// In double, put together by hand: load_for_inference() has no such precision.
std::vector<float> exact_logits(const fs::path& base, const fs::path& adapter_folder, const Batch& batch) {
  const ModelDirectory directory(base);
  const Adapter adapter = read_adapter(adapter_folder, directory.config());
  const std::unique_ptr<Ops> ops = make_cpu_ops(DType::f64);
  ModelOptions options;
  options.adapters = adapter_specs(adapter);
  options.untie_head = directory.config().tied_embeddings;  // the recorded adapter has two different matrices
  options.frozen_dtype = DType::f64;
  Llama llama(*ops, directory.config(), options,
              {.max_tokens = batch.tokens(), .max_context = batch.tokens()});
  llama.allocate();
  llama.weights().load(*ops, directory);
  llama.weights().load_adapter(*ops, adapter);
  return llama.logits(batch, {}, 0, batch.tokens());
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    if (const double d = std::fabs(double{a[i]} - double{b[i]}); !(d <= largest)) largest = d;  // NaN stays
  return largest;
}

}  // namespace

TEST_CASE("adapter: logits of base and adapter equal those of PEFT") {
  for (const std::string name : {"longlora", "patterns", "expression", "tied"}) {
    CAPTURE(name);
    const fs::path base = golden(name == "tied" ? "peft/base_tied" : "peft/base"),
                   adapter = golden("peft/" + name);
    const SafetensorsFile expected(adapter / "expected.safetensors");
    Sample sample;
    sample.ids.resize(expected.find("input_ids")->bytes / sizeof(int32_t));
    expected.read_bytes(*expected.find("input_ids"), std::as_writable_bytes(std::span(sample.ids)));
    sample.targets.assign(sample.ids.size(), kNotScored);
    sample.document_starts = {0};
    const Batch batch = make_batch({sample}, {0});
    const auto logits = [&](const fs::path& with) {
      const LoadedModel model =
          load_for_inference({.model = base, .adapter = with, .context = batch.tokens()});
      return model.llama->logits(batch, {}, 0, batch.tokens());
    };
    const std::vector<float> theirs = floats_of(expected, "logits"),
                             exact = exact_logits(base, adapter, batch);
    // Both are float32 evaluations of one formula, so their errors are alike: theirs is at most three times
    // ours, which is taken to be at least four roundings of the largest logit.
    const double largest = distance(exact, std::vector<float>(exact.size()));
    const double ours = std::max(distance(logits(adapter), exact), 0x1p-21 * largest);
    CHECK(ours < 1e-6 * largest);
    CHECK(distance(theirs, exact) <= 3 * ours);
    CHECK(distance(theirs, logits({})) > 1e4 * ours);  // without the adapter nothing fits
  }
}
