#!/usr/bin/env python3
"""Makes test/golden/sampling.json: the probabilities from which transformers' generate() samples.

    python scripts/goldens/make_sampling_goldens.py [OUT_FILE]

For each setting, the processors that GenerationMixin itself makes of it are applied to random logits, with equal ones
among them, after the same text. Needs torch and transformers; runs for seconds.
"""
import json
import pathlib
import sys

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

VOCABULARY = 37
SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 100},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.6, "top_p": 0.37},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.4},
    {"temperature": 1.0, "repetition_penalty": 0.8},
    {"temperature": 0.9, "top_k": 11, "top_p": 0.8, "repetition_penalty": 1.2},
    {"temperature": 2.0, "top_k": 8, "top_p": 0.55, "repetition_penalty": 1.9},
]


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                       pathlib.Path(__file__).parents[2] / "test" / "golden" / "sampling.json")
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8,
                                         num_hidden_layers=1, num_attention_heads=1))
    text = torch.tensor([[3, 8, 8, 21, 36, 0]])
    logits = (3 * torch.randn(VOCABULARY)).float()
    logits[11] = logits[4]  # equal ones
    top = torch.topk(logits, 5).indices
    logits[(top[4] + 1) % VOCABULARY] = logits[top[4]]  # a sixth that equals the fifth
    cases = []
    for setting in SETTINGS:
        config = GenerationConfig(do_sample=True, **{"top_k": 0, **setting})
        processors = model._get_logits_processor(config, input_ids_seq_length=text.shape[1])
        scores = processors(text, logits[None].clone())
        cases.append({**setting, "processors": [type(p).__name__ for p in processors],
                      "probabilities": torch.softmax(scores, -1)[0].double().tolist()})
    golden = {"text": text[0].tolist(), "logits": logits.double().tolist(), "cases": cases}
    out.write_text(json.dumps(golden, indent=1) + "\n")


main()
