#!/usr/bin/env python3
"""The negative log-likelihood of token rows by the reference stack: what `sinklora eval ppl` should print.

    python scripts/compare/nll_blocks.py --model DIR --data stream.bin|SHARDS --context N
        [--adapter DIR] [--protocol blocks|sliding] [--stride 256] [--rope-linear F] [--backend transformers|numpy]
        [--windows K] [--threads T]

blocks   Rows of `context` tokens one behind the other, each forwarded on its own and scored on its context - 1 next-token
         positions; a remainder is dropped. nll is the mean over all scored positions. Of HDF5 shards ([rows, 3, context]:
         ids, loss mask, targets) the positions with a loss mask are scored, each row as one sequence.
sliding  LongLoRA's eval.py: windows of `context` tokens begin at 0, stride, 2 stride ... < tokens - context, and the last
         start is dropped. nll is the mean of the windows' means; ppl is 2.71828 ** nll. Streams (.bin) only.

float32, full causal attention, log-softmax in float32, sums in double. The numpy backend is a float64 forward pass of its
own for tiny models (dense_llama.py), without adapters. Prints one JSON object. Needs torch, transformers, peft, h5py.
"""
import argparse
import json
import math
import pathlib
import sys

import numpy as np

LOGIT_ROWS = 512  # logits held at a time


def read_stream(path: pathlib.Path, protocol: str, context: int, stride: int):
    """Windows as (ids, targets, scored)."""
    data = np.fromfile(path, dtype="<u2").astype(np.int64)
    if protocol == "blocks":
        starts = [row * context for row in range(len(data) // context)]
    else:
        starts = list(range(0, len(data) - context, stride))[:-1]
    for start in starts:
        window = data[start : start + context]
        yield window[:-1], window[1:], np.ones(context - 1, dtype=bool)


def read_shards(path: pathlib.Path, context: int):
    import h5py

    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files:
        sys.exit(f"{path}: no .h5 file in it")
    for file in files:
        with h5py.File(file) as h5:
            if h5["data"].shape[1:] != (3, context):
                sys.exit(f"{file}: rows of shape {h5['data'].shape[1:]}, expected (3, {context})")
            for row in h5["data"]:
                ids, mask, targets = row.astype(np.int64)
                length = int(np.max(np.nonzero(mask)[0], initial=-1)) + 1  # causal: what follows has no influence
                if length:
                    yield ids[:length], targets[:length], mask[:length] > 0


def transformers_scorer(args):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if args.threads:
        torch.set_num_threads(args.threads)
    config = AutoConfig.from_pretrained(args.model)
    if args.rope_linear:
        config.rope_parameters = {"rope_type": "linear", "rope_theta": config.rope_parameters["rope_theta"],
                                  "factor": args.rope_linear}
    model = AutoModelForCausalLM.from_pretrained(args.model, config=config, dtype=torch.float32).eval()
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter).eval().get_base_model()

    def score(ids, targets):
        hidden = model.model(torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
        pieces = []
        for begin in range(0, len(ids), LOGIT_ROWS):
            logits = model.lm_head(hidden[begin : begin + LOGIT_ROWS])
            target = torch.from_numpy(targets[begin : begin + LOGIT_ROWS])
            pieces.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
        return torch.cat(pieces).double().numpy()

    return torch.no_grad()(score)


def numpy_scorer(args):
    from dense_llama import DenseLlama

    if args.adapter or args.rope_linear:
        sys.exit("the numpy backend takes neither --adapter nor --rope-linear")
    return DenseLlama(args.model).nll


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--protocol", choices=["blocks", "sliding"], default="blocks")
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--rope-linear", type=float, help="position interpolation by this factor")
    parser.add_argument("--backend", choices=["transformers", "numpy"], default="transformers")
    parser.add_argument("--windows", type=int, help="stop after so many")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.data.suffix == ".bin":
        windows = read_stream(args.data, args.protocol, args.context, args.stride)
    elif args.protocol == "sliding":
        sys.exit("--protocol sliding reads a .bin stream")
    else:
        windows = read_shards(args.data, args.context)
    score = (transformers_scorer if args.backend == "transformers" else numpy_scorer)(args)
    count, tokens, total, means = 0, 0, 0.0, []
    for ids, targets, scored in windows:
        nll = score(ids, targets)[scored]
        count, tokens, total = count + 1, tokens + len(nll), total + nll.sum()
        means.append(nll.mean())
        if count == args.windows:
            break
    if not count:
        sys.exit(f"{args.data}: not one window of {args.context} tokens")
    mean = float(total / tokens if args.protocol == "blocks" else np.mean(means))
    perplexity = math.exp(mean) if args.protocol == "blocks" else 2.71828**mean
    print(json.dumps({
        "protocol": args.protocol, "context": args.context,
        "stride": args.context if args.protocol == "blocks" else args.stride, "windows": count, "tokens": tokens,
        "nll": mean, "ppl": perplexity, "attention": "full",
        "precision": "fp32" if args.backend == "transformers" else "fp64", "device": "cpu", "model": args.model,
        "adapter": args.adapter, "backend": args.backend}))


if __name__ == "__main__":
    main()
