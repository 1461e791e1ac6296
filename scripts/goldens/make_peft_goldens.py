#!/usr/bin/env python3
"""Records tiny random LLaMAs and adapters as transformers and PEFT save them: test/golden/peft/.

Needs torch, transformers, peft, safetensors. Beside each adapter lies expected.safetensors: PEFT's delta of each module
(in float), the merged weights in the base's dtype (sums in double, rounded once), and the logits of base + adapter in
float for a few tokens.

With --check BASE ADAPTER, loads an adapter written by sinklora with PEFT and compares every weight.
"""
import argparse
import pathlib
import shutil
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
OUT = pathlib.Path(__file__).resolve().parents[2] / "test" / "golden" / "peft"
SHAPE = dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
PREFIX = "base_model.model."


def make_base(name: str, dtype: torch.dtype, **extra) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **extra))
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3)
    model.to(dtype).save_pretrained(OUT / name)


def make_adapter(base: str, name: str, config: LoraConfig) -> None:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(OUT / base, dtype=torch.float32), config)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 0.2)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(OUT / name)
    (OUT / name / "README.md").unlink()

    expected = {}
    ids = torch.tensor([[1, 5, 9, 2, 23, 0, 17, 11]])
    with torch.no_grad():
        expected["logits"] = model(input_ids=ids).logits[0].contiguous()
    expected["input_ids"] = ids[0].to(torch.int32)
    weights = load_file(OUT / base / "model.safetensors")
    for key, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.Linear):
            key = key.removeprefix(PREFIX) + ".weight"
            a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
            expected["delta." + key] = module.get_delta_weight("default").detach().contiguous()
            weights[key] = (weights[key].double() + module.scaling["default"] * (b @ a)).to(weights[key].dtype)
    for key, value in load_file(OUT / name / "adapter_model.safetensors").items():
        if "lora_" not in key:
            key = key.removeprefix(PREFIX)
            weights[key] = value.to(weights["model.norm.weight"].dtype)
    expected |= {"merged." + key: value.contiguous() for key, value in weights.items()}
    save_file(expected, OUT / name / "expected.safetensors", metadata={"format": "pt"})


def check(base: str, adapter: str) -> None:
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    loaded = peft.get_peft_model_state_dict(model)
    stored = load_file(pathlib.Path(adapter) / "adapter_model.safetensors")
    assert loaded.keys() == stored.keys(), loaded.keys() ^ stored.keys()
    for key, value in stored.items():
        assert torch.equal(loaded[key], value), key
    print(f"{adapter}: peft {peft.__version__} loads all {len(stored)} tensors unchanged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs=2, metavar=("BASE", "ADAPTER"))
    arguments = parser.parse_args()
    if arguments.check:
        return check(*arguments.check)
    torch.manual_seed(20240608)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    make_base("base", torch.bfloat16, eos_token_id=[2, 3])
    make_base("base_tied", torch.float32, tie_word_embeddings=True)
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    make_adapter("base", "longlora", LoraConfig(
        r=4, lora_alpha=8, target_modules=attention, task_type="CAUSAL_LM",
        modules_to_save=["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"]))
    make_adapter("base", "patterns", LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True,
        rank_pattern={"^model.layers.1.self_attn.q_proj": 3, "k_proj": 2, r"layers\.0\.mlp\..*_proj": 5},
        alpha_pattern={"v_proj": 6, "layers.1.mlp.up_proj": 20}))
    make_adapter("base", "expression", LoraConfig(
        r=2, lora_alpha=3, target_modules=r".*layers\.1\.(self_attn\.(q|v)|mlp\.down)_proj", task_type="CAUSAL_LM",
        modules_to_save=["lm_head", "model.norm"]))
    make_adapter("base_tied", "tied", LoraConfig(
        r=4, lora_alpha=8, target_modules=attention, task_type="CAUSAL_LM", modules_to_save=["embed_tokens", "lm_head"]))
    total = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{OUT}: {total} bytes; peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
