"""transformers' LLaMA in float64 from end to end.

transformers computes RoPE's angles, RMSNorm and the softmax in float32 whatever the model's dtype. exact_arithmetic()
replaces these three by the same formulas in the dtype of their input, so that a double model gives a double result.
"""
import contextlib
import math

import torch
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama as llama


def _norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def inverse_frequencies(config) -> torch.Tensor:
    """theta^(-2i/D), and its llama3 stretching: long wavelengths divided by the factor, short ones kept, between them a
    mixture of the two that is linear in original_context / wavelength."""
    settings = config.rope_parameters
    i = torch.arange(config.head_dim // 2, dtype=torch.float64)
    frequencies = settings["rope_theta"] ** (-2 * i / config.head_dim)
    if settings["rope_type"] == "default":
        return frequencies
    if settings["rope_type"] != "llama3":
        raise ValueError(settings["rope_type"])
    context = settings["original_max_position_embeddings"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = context * frequencies / (2 * math.pi)  # of a frequency over the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / settings["factor"])


def _rotary(self, x, position_ids):
    angles = position_ids[..., None].double() * inverse_frequencies(self.config)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def exact_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """attention_mask: bool [batch, heads, queries, keys], a matrix of its own for every query head."""
    key = llama.repeat_kv(key, module.num_key_value_groups)
    value = llama.repeat_kv(value, module.num_key_value_groups)
    scores = (query @ key.transpose(2, 3)) * scaling
    p = torch.softmax(scores.masked_fill(~attention_mask, -torch.inf), dim=-1)
    return (p @ value).transpose(1, 2).contiguous(), p


AttentionInterface.register("exact", exact_attention)


@contextlib.contextmanager
def exact_arithmetic():
    kept = llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward
    llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = _norm, _rotary
    try:
        yield
    finally:
        llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = kept
