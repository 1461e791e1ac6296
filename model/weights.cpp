#include "model/weights.h"

#include <algorithm>
#include <cmath>

#include "base/random.h"

namespace sinklora {
namespace {

constexpr double kInitialDeviation = 0.02;

std::string layer_name(int64_t layer) { return fmt::format("model.layers.{}.", layer); }

// Rows [begin, begin + count) of a weight and of everything that belongs to it.
Weight rows_of(const Weight& weight, int64_t begin, int64_t count) {
  Weight part;
  part.value = weight.value.row_slice(begin, count);
  if (weight.master) part.master = weight.master.row_slice(begin, count);
  if (weight.gradient) {
    part.gradient = weight.gradient.row_slice(begin, count);
    part.m = weight.m.row_slice(begin, count);
    part.v = weight.v.row_slice(begin, count);
  }
  return part;
}

// Sets a weight, a piece at a time, from read(first element, out).
void set_weight(Ops& ops, const Weight& weight, const std::function<void(int64_t, std::span<float>)>& read) {
  const Tensor& value = weight.value;
  const int64_t rows_at_once =
      std::max<int64_t>(1, (int64_t{1} << 22) / std::max<int64_t>(1, value.row_size()));
  std::vector<float> numbers;
  for (int64_t row = 0; row < value.rows(); row += rows_at_once) {
    const int64_t count = std::min(rows_at_once, value.rows() - row);
    numbers.resize(static_cast<size_t>(count * value.row_size()));
    read(row * value.row_size(), numbers);
    upload_numbers(ops, value.row_slice(row, count), numbers);
    if (weight.master && weight.master.data != value.data)
      upload_numbers(ops, weight.master.row_slice(row, count), numbers);
  }
}

void set_weight(Ops& ops, const Weight& weight, const HostTensor& from) {
  const std::span<const float> numbers = from.floats();
  if (static_cast<int64_t>(numbers.size()) != weight.value.size())
    fail_internal("{}: {} elements for a tensor {}", from.name, numbers.size(), describe(weight.value));
  set_weight(ops, weight, [&](int64_t begin, std::span<float> out) {
    std::copy_n(numbers.begin() + begin, out.size(), out.begin());
  });
}

HostTensor to_host(Ops& ops, const std::string& name, const Tensor& tensor) {
  HostTensor host{name, DType::f32, {tensor.shape.begin(), tensor.shape.begin() + tensor.rank}, {}};
  if (tensor.dtype == DType::f32) {  // without a second copy
    host.data.resize(static_cast<size_t>(tensor.bytes()));
    ops.download(host.data.data(), tensor);
    return host;
  }
  const auto numbers = download_numbers<float>(ops, tensor);
  const auto bytes = std::as_bytes(std::span(numbers));
  host.data.assign(bytes.begin(), bytes.end());
  return host;
}

}  // namespace

std::vector<AdapterSpec> uniform_adapters(const LlamaConfig& config, const std::vector<std::string>& targets,
                                          int64_t rank, double alpha) {
  std::vector<AdapterSpec> specs;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const char* name : kLinearNames) {
      const std::string linear = name;
      const std::string target = linear.substr(0, linear.find('_'));
      if (std::find(targets.begin(), targets.end(), target) == targets.end()) continue;
      const bool attention = target.size() == 1;
      specs.push_back({layer_name(layer) + (attention ? "self_attn." : "mlp.") + linear, rank,
                       alpha / static_cast<double>(rank)});
    }
  }
  return specs;
}

std::vector<AdapterSpec> adapter_specs(const Adapter& adapter) {
  std::vector<AdapterSpec> specs;
  for (const AdapterModule& module : adapter.modules)
    specs.push_back({module.name, module.rank, module.scale});
  return specs;
}

void upload_numbers(Ops& ops, const Tensor& to, std::span<const float> numbers) {
  if (to.dtype == DType::f32) return ops.upload(to, numbers.data());
  if (to.dtype == DType::f64) {
    const std::vector<double> wide(numbers.begin(), numbers.end());
    return ops.upload(to, wide.data());
  }
  if (to.dtype != DType::bf16) fail_internal("weights of type {}", name_of(to.dtype));
  std::vector<BFloat16> rounded(numbers.size());
  std::transform(numbers.begin(), numbers.end(), rounded.begin(), [](float x) { return BFloat16(x); });
  ops.upload(to, rounded.data());
}

namespace {

template <class Stored, class Number>
std::vector<Number> download_as(Ops& ops, const Tensor& from) {
  std::vector<Stored> stored(static_cast<size_t>(from.size()));
  ops.download(stored.data(), from);
  if constexpr (std::is_same_v<Stored, Number>) {
    return stored;
  } else {
    std::vector<Number> numbers(stored.size());
    std::transform(stored.begin(), stored.end(), numbers.begin(), [](Stored x) {
      if constexpr (std::is_same_v<Stored, BFloat16>)
        return static_cast<Number>(static_cast<float>(x));
      else
        return static_cast<Number>(x);
    });
    return numbers;
  }
}

}  // namespace

template <class Number>
std::vector<Number> download_numbers(Ops& ops, const Tensor& from) {
  switch (from.dtype) {
    case DType::f32:
      return download_as<float, Number>(ops, from);
    case DType::f64:
      return download_as<double, Number>(ops, from);
    case DType::bf16:
      return download_as<BFloat16, Number>(ops, from);
    default:
      fail_internal("numbers of type {}", name_of(from.dtype));
  }
}
template std::vector<float> download_numbers(Ops&, const Tensor&);
template std::vector<double> download_numbers(Ops&, const Tensor&);

Weights::Weights(const LlamaConfig& config, const ModelOptions& options, DType act, DType stat)
    : base(options.train_all ? 1 : options.base_ranks, config.num_layers, options.frozen_dtype),
      config_(config),
      options_(options),
      act_(act),
      stat_(stat),
      tied_(config.tied_embeddings && !options.untie_head) {
  const int64_t hidden = config.hidden_size, ffn = config.intermediate_size;
  const int64_t q = config.query_width(), kv = config.kv_width();
  const bool norms = options.train_norms || options.train_all;
  take(&embedding, options.train_embeddings || options.train_all, {config.vocab_size, hidden}, true);
  // Reserved once: the arenas keep pointers into the elements until they are allocated.
  layers.resize(static_cast<size_t>(config.num_layers));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerWeights& layer = layers[static_cast<size_t>(i)];
    const std::string name = layer_name(i);
    layer.gradients_begin = gradients.bytes();
    take(&layer.attention_norm, norms, {hidden}, false);
    take_projection(&layer.qkv, i, name + "self_attn.",
                    {{"q_proj", 0, q}, {"k_proj", q, kv}, {"v_proj", q + kv, kv}}, hidden);
    take_projection(&layer.output, i, name + "self_attn.", {{"o_proj", 0, hidden}}, q);
    take(&layer.mlp_norm, norms, {hidden}, false);
    take_projection(&layer.gate_up, i, name + "mlp.", {{"gate_proj", 0, ffn}, {"up_proj", ffn, ffn}}, hidden);
    take_projection(&layer.down, i, name + "mlp.", {{"down_proj", 0, hidden}}, ffn);
  }
  base.lay_out();
  take(&final_norm, norms, {hidden}, false);
  if (!tied_) take(&head, options.train_all, {config.vocab_size, hidden}, true);
}

void Weights::take(Weight* weight, bool train, std::initializer_list<int64_t> shape, bool matrix) {
  if (!train) return frozen.take(&weight->value, matrix ? options_.frozen_dtype : act_, shape);
  trained.take(&weight->master, stat_, shape);
  if (act_ != stat_) rounded.take(&weight->value, act_, shape);
  gradients.take(&weight->gradient, stat_, shape);
  first_moments.take(&weight->m, stat_, shape);
  second_moments.take(&weight->v, stat_, shape);
}

void Weights::take_projection(Projection* projection, int64_t layer, const std::string& name,
                              std::vector<Projection::Part> parts, int64_t in) {
  for (Projection::Part& part : parts) part.module = name + part.module;
  projection->parts = std::move(parts);
  const Projection::Part& last = projection->parts.back();
  projection->trained = options_.train_all;
  if (base.active())
    base.take(layer, &projection->weight.value, {last.row_begin + last.rows, in});
  else
    take(&projection->weight, options_.train_all, {last.row_begin + last.rows, in}, true);
  projection->b.reserve(projection->parts.size());  // the arena keeps pointers to the elements
  for (const Projection::Part& part : projection->parts) {
    const auto spec = std::find_if(options_.adapters.begin(), options_.adapters.end(),
                                   [&](const AdapterSpec& s) { return s.module == part.module; });
    if (spec == options_.adapters.end()) continue;
    projection->adapters.push_back({{}, {}, part.row_begin, projection->total_rank, spec->scale});
    take(&projection->b.emplace_back(), options_.train_adapters, {part.rows, spec->rank}, false);
    projection->total_rank += spec->rank;
  }
  if (projection->total_rank > 0)
    take(&projection->a, options_.train_adapters, {projection->total_rank, in}, false);
}

void Weights::allocate(Ops& ops) {
  frozen.allocate(ops);
  base.allocate(ops);
  for (Arena* arena : {&trained, &rounded, &gradients, &first_moments, &second_moments}) arena->allocate(ops);
  const auto share = [](Weight& weight) {
    if (weight.master && !weight.value) weight.value = weight.master;
  };
  share(embedding), share(head), share(final_norm);
  if (tied_) head = embedding;
  for (LayerWeights& layer : layers) {
    share(layer.attention_norm), share(layer.mlp_norm);
    for (Projection* projection : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      share(projection->weight), share(projection->a);
      for (Weight& b : projection->b) share(b);
      bind_projection(*projection);
    }
  }
  name_parameters();
}

void Weights::bind_projection(Projection& projection) {
  for (size_t i = 0; i < projection.adapters.size(); ++i) {
    LinearAdapter& adapter = projection.adapters[i];
    const Weight a = rows_of(projection.a, adapter.u_begin, projection.b[i].value.shape[1]);
    adapter.a = a.value;
    adapter.b = projection.b[i].value;
    if (options_.train_adapters)
      projection.adapter_gradients.push_back({a.gradient, projection.b[i].gradient});
  }
}

void Weights::name_parameters() {
  const auto add = [&](const std::string& name, const Weight& weight, bool decays = true) {
    parameters.push_back({name, weight, decays});
  };
  const auto add_projection = [&](const Projection& projection, size_t layer) {
    for (const Projection::Part& part : projection.parts) {
      add(part.module + ".weight", rows_of(projection.weight, part.row_begin, part.rows));
      if (base.active()) parameters.back().base_layer = static_cast<int64_t>(layer);
    }
    for (size_t i = 0; i < projection.adapters.size(); ++i) {
      const LinearAdapter& adapter = projection.adapters[i];
      const auto part = std::find_if(projection.parts.begin(), projection.parts.end(),
                                     [&](const auto& p) { return p.row_begin == adapter.row_begin; });
      add(part->module + ".lora_A.weight", rows_of(projection.a, adapter.u_begin, adapter.a.rows()));
      add(part->module + ".lora_B.weight", projection.b[i]);
    }
  };
  add(kEmbedding, embedding);
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string name = layer_name(static_cast<int64_t>(i));
    add(name + "input_layernorm.weight", layers[i].attention_norm, false);
    add_projection(layers[i].qkv, i);
    add_projection(layers[i].output, i);
    add(name + "post_attention_layernorm.weight", layers[i].mlp_norm, false);
    add_projection(layers[i].gate_up, i);
    add_projection(layers[i].down, i);
  }
  add("model.norm.weight", final_norm, false);
  if (!tied_) add(kHead, head);
}

const Parameter& Weights::parameter(const std::string& name) const {
  const auto found =
      std::find_if(parameters.begin(), parameters.end(), [&](const auto& p) { return p.name == name; });
  if (found == parameters.end()) fail_internal("no parameter is named {}", name);
  return *found;
}

void Weights::fill(Ops& ops, const std::function<void(const Parameter&)>& set) {
  int64_t filling = -1;  // the layer of the base
  for (const Parameter& parameter : parameters) {
    if (parameter.base_layer >= 0 && parameter.base_layer != filling) {
      if (filling >= 0) base.keep(ops, filling);
      filling = parameter.base_layer;
    }
    set(parameter);
  }
  if (filling >= 0) base.keep(ops, filling);
}

void Weights::load(Ops& ops, const ModelDirectory& model) {
  fill(ops, [&](const Parameter& parameter) {
    if (parameter.name.find(".lora_") != std::string::npos) return;
    // An untied head of a tied checkpoint starts as the embedding.
    const bool tied_head = parameter.name == kHead && config_.tied_embeddings;
    const std::string name = tied_head ? kEmbedding : parameter.name;
    set_weight(ops, parameter.weight,
               [&](int64_t begin, std::span<float> out) { model.read(name, begin, out); });
  });
}

void Weights::load_adapter(Ops& ops, const Adapter& adapter) {
  for (const AdapterModule& module : adapter.modules) {
    set_weight(ops, parameter(module.name + ".lora_A.weight").weight, module.a);
    set_weight(ops, parameter(module.name + ".lora_B.weight").weight, module.b);
  }
  for (const auto& [name, tensor] : adapter.replaced)
    if (!(tied_ && name == kHead)) set_weight(ops, parameter(name).weight, tensor);
}

void Weights::initialize(Ops& ops, uint64_t seed) {
  fill(ops, [&](const Parameter& parameter) {
    if (parameter.name.find(".lora_") != std::string::npos) return;
    const RandomStream random(seed, parameter.name);
    const bool norm = parameter.name.find("norm.weight") != std::string::npos;
    set_weight(ops, parameter.weight, [&](int64_t begin, std::span<float> out) {
      for (size_t i = 0; i < out.size(); ++i)
        out[i] =
            norm ? 1.0f
                 : static_cast<float>(kInitialDeviation * random.normal(static_cast<uint64_t>(begin) + i));
    });
  });
}

void Weights::initialize_adapters(Ops& ops, uint64_t seed) {
  for (const Parameter& parameter : parameters) {
    const bool is_a = parameter.name.ends_with(".lora_A.weight");
    if (!is_a && !parameter.name.ends_with(".lora_B.weight")) continue;
    const RandomStream random(seed, parameter.name);
    const double bound = 1.0 / std::sqrt(static_cast<double>(parameter.weight.value.row_size()));
    set_weight(ops, parameter.weight, [&](int64_t begin, std::span<float> out) {
      for (size_t i = 0; i < out.size(); ++i)
        out[i] = is_a ? static_cast<float>(bound * (2 * random.uniform(static_cast<uint64_t>(begin) + i) - 1))
                      : 0.0f;
    });
  }
}

Adapter Weights::adapter(Ops& ops) const {
  Adapter result;
  for (const AdapterSpec& spec : options_.adapters) {
    const Weight& a = parameter(spec.module + ".lora_A.weight").weight;
    const Weight& b = parameter(spec.module + ".lora_B.weight").weight;
    result.modules.push_back({spec.module, spec.rank, spec.scale,
                              to_host(ops, spec.module + ".lora_A.weight", a.master ? a.master : a.value),
                              to_host(ops, spec.module + ".lora_B.weight", b.master ? b.master : b.value)});
  }
  for (const Parameter& parameter : parameters) {
    if (!parameter.trained() || parameter.name.find(".lora_") != std::string::npos) continue;
    result.replaced.emplace(parameter.name, to_host(ops, parameter.name, parameter.weight.master));
  }
  // PEFT keeps two copies of tied matrices, so both are named.
  if (const auto found = result.replaced.find(kEmbedding); tied_ && found != result.replaced.end()) {
    HostTensor copy = found->second;
    copy.name = kHead;
    result.replaced.emplace(copy.name, std::move(copy));
  }
  return result;
}

int64_t Weights::trained_elements() const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters)
    if (parameter.trained()) count += parameter.weight.gradient.size();
  return count;
}

}  // namespace sinklora
