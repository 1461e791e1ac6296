#include "model/merge.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "model/checksums.h"

namespace sinklora {
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 22;

// rows += scale * B[first..] A for the `count` rows of W that begin at `first`; `out` is W's width.
void add_product(const AdapterModule& module, int64_t first, int64_t count, std::span<float> rows) {
  const std::span<const float> a = module.a.floats(), b = module.b.floats();
  const int64_t width = module.a.shape[1], rank = module.rank;
#pragma omp parallel
  {
    std::vector<double> delta(static_cast<size_t>(width));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < count; ++row) {
      std::fill(delta.begin(), delta.end(), 0.0);
      for (int64_t r = 0; r < rank; ++r) {
        const double weight = b[static_cast<size_t>((first + row) * rank + r)];
        const float* a_row = &a[static_cast<size_t>(r * width)];
        for (size_t column = 0; column < delta.size(); ++column) delta[column] += weight * a_row[column];
      }
      float* to = &rows[static_cast<size_t>(row * width)];
      for (size_t column = 0; column < delta.size(); ++column)
        if (delta[column] != 0.0)  // adding +0 would turn a weight of -0 into +0
          to[column] = static_cast<float>(to[column] + module.scale * delta[column]);
    }
  }
}

void check_finite(std::span<const float> before, std::span<const std::byte> after, DType dtype,
                  const std::string& source, const std::string& name) {
  for (size_t i = 0; i < before.size(); ++i) {
    float value = 0;
    if (dtype == DType::f32) {
      std::memcpy(&value, &after[i * 4], 4);
    } else {
      uint16_t bits = 0;
      std::memcpy(&bits, &after[i * 2], 2);
      value = dtype == DType::f16 ? half_to_float(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
    }
    if (std::isfinite(before[i]) && !std::isfinite(value))
      fail_input("{}: tensor {}: {} does not fit into {}; choose --dtype bf16 or fp32", source, name,
                 before[i], name_of(dtype));
    if (!std::isfinite(before[i]))
      fail_input("{}: tensor {}: an element is {}; the weights are damaged", source, name, before[i]);
  }
}

// Produces one tensor of the result, piece by piece. `report` counts what differs from the base.
class Producer {
 public:
  Producer(const ModelDirectory& base, const Adapter& adapter, MergeReport& report)
      : base_(base), adapter_(adapter), report_(report) {
    for (const AdapterModule& module : adapter.modules) modules_[module.name + ".weight"] = &module;
  }

  // The tensor of the base that stands where `name` stands in the result.
  static const char* origin(const ModelDirectory& base, const std::string& name) {
    return name == kHead && base.config().tied_embeddings ? kEmbedding : nullptr;
  }

  void produce(const TensorSource& target, const std::function<void(std::span<const std::byte>)>& sink) {
    const char* tied_origin = origin(base_, target.name);
    const std::string from = tied_origin ? tied_origin : target.name;
    const TensorInfo& info = base_.info(from);
    const auto replaced = adapter_.replaced.find(target.name);
    const auto module = modules_.find(target.name);
    const int64_t width = target.shape.back(), base_elements = info.elements();
    int64_t total = 1, changed = 0;
    for (const int64_t dim : target.shape) total *= dim;
    const int64_t step = std::max<int64_t>(1, kPieceElements / width) * width;
    for (int64_t at = 0; at < total; at += step) {
      const int64_t count = std::min(step, total - at),
                    from_base = std::clamp(base_elements - at, int64_t{0}, count);
      base_values_.resize(static_cast<size_t>(from_base));
      if (from_base > 0) base_.read(from, at, base_values_);
      values_ = base_values_;
      if (replaced != adapter_.replaced.end()) {
        const auto new_values =
            replaced->second.floats().subspan(static_cast<size_t>(at), static_cast<size_t>(count));
        values_.assign(new_values.begin(), new_values.end());
      } else if (from_base < count) {
        append_mean_rows(from, count - from_base, width);
      }
      if (module != modules_.end()) add_product(*module->second, at / width, count / width, values_);
      bytes_.clear();
      append_as(target.dtype, values_, bytes_);
      check_finite(values_, bytes_, target.dtype, base_.path().string(), target.name);
      changed += count_changes(target.dtype);
      sink(bytes_);
    }
    report_.tensors += 1;
    report_.parameters += total;
    report_.changed_elements += changed;
    report_.changed_tensors += changed > 0;
  }

 private:
  // New tokens start as the mean of the old ones, as in LongLoRA.
  void append_mean_rows(const std::string& from, int64_t count, int64_t width) {
    const int64_t rows = base_.info(from).shape[0];
    std::vector<double> sum(static_cast<size_t>(width));
    std::vector<float> row(static_cast<size_t>(width));
    for (int64_t r = 0; r < rows; ++r) {
      base_.read(from, r * width, row);
      for (size_t i = 0; i < row.size(); ++i) sum[i] += row[i];
    }
    for (int64_t i = 0; i < count; ++i)
      values_.push_back(static_cast<float>(sum[static_cast<size_t>(i % width)] / static_cast<double>(rows)));
  }

  // Compares with what the base would be in the same dtype, so that a mere conversion is no change.
  int64_t count_changes(DType dtype) {
    base_bytes_.clear();
    append_as(dtype, base_values_, base_bytes_);
    const size_t width = static_cast<size_t>(size_of(dtype));
    int64_t changed = static_cast<int64_t>((bytes_.size() - base_bytes_.size()) / width);
    for (size_t i = 0; i < base_bytes_.size(); i += width)
      changed += std::memcmp(&bytes_[i], &base_bytes_[i], width) != 0;
    return changed;
  }

  const ModelDirectory& base_;
  const Adapter& adapter_;
  MergeReport& report_;
  std::map<std::string, const AdapterModule*> modules_;
  std::vector<float> base_values_, values_;
  std::vector<std::byte> bytes_, base_bytes_;
};

DType stored_dtype(const ModelDirectory& base, const std::string& name, const MergeOptions& options) {
  if (options.dtype) return *options.dtype;
  const char* tied_origin = Producer::origin(base, name);
  const DType dtype = base.info(tied_origin ? tied_origin : name).dtype;
  return dtype == DType::f64 ? DType::f32 : dtype;
}

LlamaConfig merged_config(const ModelDirectory& base, const Adapter& adapter, const MergeOptions& options) {
  LlamaConfig config = base.config();
  const DType head_dtype = stored_dtype(base, kEmbedding, options);
  config.tied_embeddings = config.tied_embeddings && keeps_head_tied(adapter, head_dtype);
  if (options.dtype) config.dtype = *options.dtype;
  if (options.rope) config.rope = *options.rope;
  config.max_positions = trained_reach(config, options.context);
  for (const char* name : {kEmbedding, kHead})
    if (const auto found = adapter.replaced.find(name); found != adapter.replaced.end())
      config.vocab_size = std::max(config.vocab_size, found->second.shape.at(0));
  return config;
}

// A module or tensor that matches nothing would be left out without a word.
void check_fits(const Adapter& adapter, const std::vector<TensorInfo>& expected) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const TensorInfo& info : expected) shapes[info.name] = info.shape;
  for (const AdapterModule& module : adapter.modules) {
    const auto at = shapes.find(module.name + ".weight");
    if (at == shapes.end() || at->second != std::vector<int64_t>{module.b.shape.at(0), module.a.shape.at(1)})
      fail_internal("the adapter's module {} does not fit the base", module.name);
    if (adapter.replaced.contains(module.name + ".weight"))
      fail_input("{}: both replaces {} and adds a LoRA to it", adapter.source, module.name);
  }
  for (const auto& [name, tensor] : adapter.replaced) {
    const bool folded = name == kHead && !shapes.contains(name);  // tied: equal to the embedding
    if (!folded && (!shapes.contains(name) || shapes[name] != tensor.shape))
      fail_input("{}: tensor {} has shape [{}], wanted [{}]", adapter.source, name,
                 fmt::join(tensor.shape, ", "), fmt::join(shapes[name], ", "));
  }
}

}  // namespace

DType parse_weights_dtype(const std::string& word) {
  if (word == "bf16") return DType::bf16;
  if (word == "fp16") return DType::f16;
  if (word == "fp32") return DType::f32;
  fail_usage("--dtype: '{}' is not understood; wanted bf16, fp16 or fp32", word);
}

MergeReport merge_adapter(const ModelDirectory& base, const Adapter& adapter,
                          const std::filesystem::path& out, const MergeOptions& options) {
  const LlamaConfig config = merged_config(base, adapter, options);
  const std::vector<TensorInfo> expected = expected_tensors(config);
  check_fits(adapter, expected);
  base.verify_sums();
  MergeReport report;
  report.tied = config.tied_embeddings;
  Producer producer(base, adapter, report);
  std::vector<TensorSource> tensors;
  for (const TensorInfo& info : expected) {
    TensorSource target{info.name, stored_dtype(base, info.name, options), info.shape, {}};
    target.write = [&producer, target](const auto& sink) { producer.produce(target, sink); };
    tensors.push_back(std::move(target));
  }
  AtomicDirectory directory(out);
  write_model_directory(directory.path(), config, tensors, base.path(), options.max_shard_bytes);
  directory.commit();
  return report;
}

AdapterLayout copy_adapter(const std::filesystem::path& from, const std::filesystem::path& out) {
  verify_sums(from, {"adapter_config.json", "adapter_model.safetensors", "sinklora.json"});
  AdapterLayout layout = read_adapter_layout(from);
  read_run_info(from);
  AtomicDirectory directory(out);
  for (const char* name :
       {"adapter_config.json", "adapter_model.safetensors", "sinklora.json", "README.md"}) {
    std::error_code error;
    if (std::filesystem::is_regular_file(from / name, error) &&
        !std::filesystem::copy_file(from / name, directory.path() / name, error))
      fail_input("{}: cannot copy to {}: {}", (from / name).string(), out.string(), error.message());
  }
  directory.commit();
  return layout;
}

}  // namespace sinklora
