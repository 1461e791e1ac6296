#!/usr/bin/env python3
"""Trains an adapter for five steps with PEFT alone and saves it with PEFT: a file from the other side to read.

    python scripts/compare/make_peft_adapter.py --model DIR --out DIR [--data stream.bin] [--trainable lora|lora+]
        [--targets q,k,v,o] [--rank 8] [--alpha 16] [--rslora] [--steps 5] [--context 128] [--lr 1e-3]

lora+ saves the embedding and all norms with the adapter (modules_to_save). A model with tied embeddings gets
ensure_weight_tying, by which PEFT keeps head and embedding one tensor and saves it under both names; without it the head
would stay as it is in the base. Without --data the tokens are random. Also writes OUT/logits.safetensors: `ids` [context]
(I32) and PEFT's float32 `logits` [context, vocab] after the last step.
"""
import argparse

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

LINEARS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "gate": "gate_proj", "up": "up_proj",
           "down": "down_proj"}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--data")
    parser.add_argument("--trainable", choices=["lora", "lora+"], default="lora+")
    parser.add_argument("--targets", default="q,k,v,o")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    saved = ["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"] if args.trainable == "lora+" else None
    model = get_peft_model(model, LoraConfig(
        r=args.rank, lora_alpha=args.alpha, target_modules=[LINEARS[t] for t in args.targets.split(",")],
        modules_to_save=saved, use_rslora=args.rslora, task_type="CAUSAL_LM",
        ensure_weight_tying=bool(saved and model.config.tie_word_embeddings)))
    count = args.steps * args.context
    if args.data:
        tokens = torch.from_numpy(np.fromfile(args.data, dtype="<u2", count=count).astype(np.int64))
    else:
        tokens = torch.randint(0, model.config.vocab_size, (count,))
    batches = tokens.view(args.steps, 1, args.context)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0)
    for step, ids in enumerate(batches):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}  loss {loss.item():.6f}")
    model.save_pretrained(args.out, save_embedding_layers=False)
    with torch.no_grad():
        logits = model.eval()(batches[0]).logits[0]
    save_file({"ids": batches[0, 0].int(), "logits": logits.contiguous()}, f"{args.out}/logits.safetensors")


if __name__ == "__main__":
    main()
