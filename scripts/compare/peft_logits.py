#!/usr/bin/env python3
"""Does PEFT read an adapter as its writer meant it, and does the merged model say the same?

    python scripts/compare/peft_logits.py --ids FILE [--base DIR --adapter DIR] [--merged DIR] [--dump FILE] [--out FILE]

Loads base + adapter with PEFT, and the merged directory with transformers, computes the float32 logits of one sequence,
and prints the largest differences among them and with `logits` of --dump (a safetensors file [tokens, vocab]) as JSON.
--ids: a JSON list of token ids, or a safetensors file with `ids` (make_peft_adapter.py writes one, which is also a --dump).
--out keeps PEFT's logits (the merged model's, if no adapter is given) in that form.
Reports tensors of the adapter that PEFT did not use, or did not find.
"""
import argparse
import json
import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def read_ids(path: pathlib.Path) -> torch.Tensor:
    if path.suffix == ".safetensors":
        return load_file(path)["ids"].long()
    return torch.tensor(json.loads(path.read_text()))


@torch.no_grad()
def logits_of(model, ids) -> torch.Tensor:
    return model.eval()(ids[None], use_cache=False).logits[0]


def check_tensors_used(model: PeftModel, adapter: pathlib.Path, report: dict) -> None:
    """PEFT only warns about keys that it does not know. Every tensor of the file must be found in the model."""
    loaded = {name.replace(".modules_to_save.default", "").replace(".default.", "."): tensor
              for name, tensor in model.state_dict().items()}
    stored = load_file(adapter / "adapter_model.safetensors")
    report["adapter_tensors"] = len(stored)
    report["adapter_tensors_unused"] = [
        name for name, tensor in stored.items()
        if name not in loaded or not torch.equal(loaded[name].float(), tensor.float())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ids", "base", "adapter", "merged", "dump", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=name == "ids")
    args = parser.parse_args()
    if bool(args.base) != bool(args.adapter) or not (args.adapter or args.merged):
        parser.error("give --base with --adapter, or --merged, or all three")
    ids, logits, report = read_ids(args.ids), {}, {}
    if args.adapter:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32),
                                          args.adapter)
        check_tensors_used(model, args.adapter, report)
        logits["peft"] = logits_of(model, ids)
        logits["peft_merged"] = logits_of(model.merge_and_unload(), ids)  # what PEFT's own merge changes: rounding
    if args.merged:
        logits["merged"] = logits_of(AutoModelForCausalLM.from_pretrained(args.merged, dtype=torch.float32), ids)
    if args.dump:
        logits["dump"] = load_file(args.dump)["logits"].float()
    names = list(logits)
    report |= {"tokens": len(ids), "largest_logit": logits[names[0]].abs().max().item()}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if logits[first].shape != logits[second].shape:
                sys.exit(f"logits {first} {list(logits[first].shape)} and {second} {list(logits[second].shape)}")
            report[f"max_difference_{first}_{second}"] = (logits[first] - logits[second]).abs().max().item()
    if args.out:
        save_file({"ids": ids.int(), "logits": logits[names[0]].contiguous()}, args.out)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
