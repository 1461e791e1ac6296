// How much of a machine a run uses: operations beside its peak, and memory.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kernels/attention_pattern.h"
#include "model/config.h"

namespace sinklora {

// Operations a second of dense bf16 products by the vendor's datasheet, from describe_cuda()'s words for a GPU;
// empty for one that is not known here.
std::optional<double> dense_bf16_peak(std::string_view gpu);
// The same for what a run computes on; empty on the CPU and in other precisions.
std::optional<double> peak_operations(const std::string& device, const std::string& precision, int index);

// Elements of the linears and the head: what a token is multiplied with.
int64_t linear_weights(const LlamaConfig& config);

// Operations of forward and backward that a model needs for sequences that begin at `offsets` ([S + 1], the last
// one the end): 4 a token and weight of the linears and the head (forward and input gradient; 6 where every
// weight is trained), and 14 D a visible pair and head. Recomputation and adapters are not counted.
double model_operations(const LlamaConfig& config, const AttentionPattern& pattern,
                        std::span<const int64_t> offsets, bool trains_all);

// cuda: what the GPU has less to give than `free_before` bytes, those of other programs on it included; cpu:
// this process at its largest.
double memory_gib(const std::string& device, int device_index, int64_t free_before);

}  // namespace sinklora
