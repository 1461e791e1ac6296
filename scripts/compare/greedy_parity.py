#!/usr/bin/env python3
"""Does `sinklora generate` choose the tokens that transformers chooses? Greedy, float32, with a cache, on five prompts.

    python scripts/compare/greedy_parity.py --model DIR [--program build/sinklora] [--devices cpu,cuda] [--tokens 200]

Prints a JSON line a device and prompt: how many tokens are equal before the first that differs, and there the difference of
transformers' two best logits, which tells a tie of rounding from a mistake. Exit code 1 where one differs. Needs torch, transformers.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The lighthouse keeper had not spoken to anyone for eleven days when",
    "The first law of thermodynamics states that",
    "Ingredients: flour, two eggs, a pinch of salt. First",
    "import numpy as np\n\ndef main():",
    "In the year 1815 the harbour of Bristol",
]


def ours(args, device: str, prompt: str, folder: pathlib.Path) -> list[int]:
    reply = folder / "reply.json"
    subprocess.run([str(args.program), "generate", "--model", str(args.model), "--prompt", prompt, "--max-new-tokens", str(args.tokens),
                    "--device", device, "--precision", "fp32", "--json", str(reply)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(reply.read_text())["ids"]


@torch.no_grad()
def theirs(model, tokenizer, device: str, prompt: str, tokens: int) -> tuple[list[int], list[float]]:
    """Their tokens, and by how much the chosen one's logit was ahead."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
    begin = ids.shape[1]
    result = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, num_beams=1, output_logits=True,
                            return_dict_in_generate=True, repetition_penalty=1.0, pad_token_id=model.config.eos_token_id)
    best = [torch.topk(logits[0], 2).values for logits in result.logits]
    return result.sequences[0, begin:].tolist(), [float(pair[0] - pair[1]) for pair in best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build/sinklora"))
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        for device in args.devices.split(","):
            model.to(device)
            for prompt in PROMPTS:
                a, (b, margins) = ours(args, device, prompt, pathlib.Path(folder)), theirs(model, tokenizer, device, prompt, args.tokens)
                # A token that ends the text belongs to transformers' reply and not to ours.
                if b and b[-1] == model.config.eos_token_id and len(b) == len(a) + 1:
                    b = b[:-1]
                equal = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                same = equal == len(a) == len(b)
                differ |= not same
                print(json.dumps({"device": device, "prompt": prompt, "tokens": len(b), "equal": equal, "same": same,
                                  "least_margin": min(margins), "margin_there": None if same else margins[min(equal, len(margins) - 1)]}), flush=True)
    sys.exit(differ)


if __name__ == "__main__":
    main()
