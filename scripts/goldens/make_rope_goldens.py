#!/usr/bin/env python3
"""Records RoPE's inverse frequencies as transformers computes them: test/golden/rope.json.

Needs torch and transformers. Each case is stored in both spellings of config.json: that of transformers 4
(rope_theta, rope_scaling) and that of transformers 5 (rope_parameters).
"""
import json
import pathlib

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

OUT = pathlib.Path(__file__).resolve().parents[2] / "test" / "golden" / "rope.json"
LLAMA2 = dict(hidden_size=512, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096)
LLAMA3 = dict(hidden_size=512, num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=131072)
LLAMA31_SCALING = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=8192)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=4096)
CASES = {
    "default llama-2": (LLAMA2, 10000.0, None, [4096]),
    "default llama-3": (LLAMA3, 500000.0, None, [8192]),
    "linear 8": (LLAMA2, 10000.0, dict(type="linear", factor=8.0), [32768]),
    "dynamic 2": (LLAMA2, 10000.0, dict(rope_type="dynamic", factor=2.0), [100, 4096, 4097, 16384]),
    "llama-3.1 8B": (LLAMA3, 500000.0, LLAMA31_SCALING, [131072]),
    "llama-3.2 1B": (dict(LLAMA3, hidden_size=256), 500000.0, dict(LLAMA31_SCALING, factor=32.0), [131072]),
    "yarn 4": (LLAMA2, 10000.0, YARN, [16384]),
    "yarn attention factor": (LLAMA2, 10000.0, dict(YARN, attention_factor=1.25), [16384]),
    "yarn mscale": (LLAMA2, 10000.0, dict(YARN, factor=40.0, mscale=1.0, mscale_all_dim=0.707), [16384]),
    "yarn betas, no truncation": (LLAMA2, 10000.0, dict(YARN, beta_fast=16.0, beta_slow=2.0, truncate=False), [16384]),
}


def frequencies(config: LlamaConfig, rope_type: str, length: int) -> tuple[list[float], float]:
    if rope_type == "default":
        values, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config, device="cpu")
    else:
        values, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)
    return [float(f"{value:.9g}") for value in values.tolist()], float(factor)


def main() -> None:
    cases = []
    for name, (shape, theta, scaling, lengths) in CASES.items():
        rope_type = "default" if scaling is None else scaling.get("rope_type", scaling.get("type"))
        old = dict(model_type="llama", **shape, rope_theta=theta, rope_scaling=scaling)
        modern = {k: v for k, v in (scaling or {}).items() if k != "type"}
        new = dict(model_type="llama", **shape, rope_parameters=dict(modern, rope_type=rope_type, rope_theta=theta))
        results = []
        for length in lengths:
            found = [frequencies(LlamaConfig(**json.loads(json.dumps(c))), rope_type, length) for c in (old, new)]
            assert found[0] == found[1], name
            results.append(dict(length=length, inv_freq=found[0][0], attention_factor=found[0][1]))
        cases.append(dict(name=name, old=old, new=new, results=results))
    text = json.dumps(dict(transformers=transformers.__version__, cases=cases), separators=(",", ":"))
    OUT.write_text(text.replace('{"name"', '\n{"name"') + "\n")
    print(f"{OUT}: {len(cases)} cases, {OUT.stat().st_size} bytes, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
