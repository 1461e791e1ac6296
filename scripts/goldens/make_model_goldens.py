#!/usr/bin/env python3
"""Makes test/golden/model: two small random LLaMAs, and their losses and gradients under every attention pattern.

    python scripts/goldens/make_model_goldens.py [OUT_DIR]

The model is transformers' LLaMA, the adapters are PEFT's, the masks come from attention_patterns.py, one for each head,
and everything is computed in float64 (exact_llama.py). Each case is computed a second time by unchanged transformers in
float32: the distance of the two is stored, as the error that a straightforward float32 evaluation makes.
test/golden/model/README.md describes the files. Needs torch, transformers, peft, safetensors; runs for half a minute.
"""
import copy
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

import attention_patterns as patterns
from exact_llama import exact_arithmetic
from sf_attention_oracle import backward, forward

NUM_SINKS = 4
RANK, ALPHA = 4, 8
ATTENTION_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEARS = ATTENTION_LINEARS + ["gate_proj", "up_proj", "down_proj"]
NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
LEARNING_RATE, BETAS, EPSILON, CLIP, STEPS = 1e-2, (0.9, 0.95), 1e-8, 1.0, 3

MODELS = {
    "plain": dict(  # untied, grouped-query attention: 3 query heads share a key/value head
        group_size=16, lengths=(61, 37), config=dict(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=False, rms_norm_eps=1e-5,
            max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
    "tied": dict(  # tied embeddings, llama3 RoPE, heads wider than hidden_size / heads
        group_size=10, lengths=(41, 23), config=dict(
            vocab_size=53, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rms_norm_eps=1e-6,
            max_position_embeddings=256, rope_parameters={
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32})),
}


def random_model(config: dict, generator: torch.Generator) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**config, bos_token_id=1, eos_token_id=2, dtype="float32",
                                         architectures=["LlamaForCausalLM"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name and not config["tie_word_embeddings"]:
                parameter.copy_(noise)
            else:  # scores and logits of order 1, so that the softmaxes are neither flat nor saturated
                parameter.copy_(noise * 1.3 / config["hidden_size"] ** 0.5)
    return model


def random_batch(lengths, vocab_size: int, generator: torch.Generator) -> list[dict]:
    """Targets are the next tokens, the last one included; a fifth of them, and the first seven, are not scored: -1."""
    sequences = []
    for length in lengths:
        tokens = torch.randint(0, vocab_size, (length + 1,), generator=generator)
        scored = torch.rand(length, generator=generator) >= 0.2
        scored[:7] = False
        targets = torch.where(scored, tokens[1:], torch.tensor(-1))
        sequences.append({"ids": tokens[:-1].tolist(), "targets": targets.tolist()})
    return sequences


def write_adapter(base: LlamaForCausalLM, folder: pathlib.Path, targets, saved, generator) -> None:
    """An adapter as it is in the middle of a training: B is not zero, the saved modules are not the base's."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, modules_to_save=saved, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + 0.1 * noise if "modules_to_save" in name else 0.2 * noise)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "base"
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: its order changes from run to run
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def open_case(root: pathlib.Path, case: str, dtype, attention: str):
    """The model of a case, its trainable parameters by the names that the goldens use."""
    model = LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.float32, attn_implementation=attention)
    tied = model.config.tie_word_embeddings
    if case != "full_training":
        model = PeftModel.from_pretrained(model, root / f"adapter_{case}", is_trainable=True)
    if case == "lora_plus" and tied:
        # PEFT would train a copy of the embedding and leave the head alone. Here both uses stay one parameter.
        model.get_input_embeddings().weight.requires_grad_(True)
    model = model.to(dtype)
    if tied and model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        raise SystemExit("the embeddings came apart")
    trainable = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            trainable[name.replace(".default.", ".")] = parameter
    return model, trainable


def pad_batch(sequences):
    longest = max(len(s["ids"]) for s in sequences)
    ids = torch.tensor([s["ids"] + [0] * (longest - len(s["ids"])) for s in sequences])
    targets = torch.tensor([s["targets"] + [-1] * (longest - len(s["targets"])) for s in sequences])
    return ids, targets


def batch_mask(pattern: str, sequences, heads: int, group_size: int) -> torch.Tensor:
    """bool [batch, heads, N, N]. Each row has the mask of its own length; padding sees itself alone."""
    longest = max(len(s["ids"]) for s in sequences)
    mask = np.broadcast_to(np.eye(longest, dtype=bool), (len(sequences), heads, longest, longest)).copy()
    for row, sequence in enumerate(sequences):
        n = len(sequence["ids"])
        mask[row, :, :n, :n] = patterns.head_masks(pattern, heads, n, group_size, NUM_SINKS)
    return torch.from_numpy(mask)


def token_nll(model, sequences, mask) -> torch.Tensor:
    """-log p(target) of every token of all sequences, back to back; 0 where not scored."""
    ids, targets = pad_batch(sequences)
    if model.config._attn_implementation == "eager":  # transformers' own: an additive mask
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    nll = nll.view(targets.shape)
    return torch.cat([nll[row, : len(s["ids"])] for row, s in enumerate(sequences)])


def mean_loss(nll: torch.Tensor, sequences) -> torch.Tensor:
    return nll.sum() / sum(target >= 0 for s in sequences for target in s["targets"])


def gradients_of(root, case, dtype, attention, sequences, mask):
    model, trainable = open_case(root, case, dtype, attention)
    nll = token_nll(model, sequences, mask)
    loss = mean_loss(nll, sequences)
    loss.backward()
    return loss.item(), nll.detach(), {name: parameter.grad for name, parameter in trainable.items()}


def float32_error(exact: dict, rounded: dict) -> float:
    """Over all tensors, the largest difference relative to the tensor's largest gradient."""
    return max(((rounded[k].double() - exact[k]).abs().max() / exact[k].abs().max()).item() for k in exact)


def make_case(root, case, pattern, sequences, mask) -> dict:
    with exact_arithmetic():
        loss, nll, gradients = gradients_of(root, case, torch.float64, "exact", sequences, mask)
    loss_f32, _, gradients_f32 = gradients_of(root, case, torch.float32, "eager", sequences, mask)
    error = float32_error(gradients, gradients_f32)
    if abs(loss - loss_f32) > 1e-5 * loss or error > 1e-3:
        raise SystemExit(f"{case} {pattern}: transformers disagrees, loss {loss} {loss_f32}, gradients {error}")
    file = f"gradients/{case}-{pattern}.safetensors"
    save_file({"nll": nll} | {k: v.contiguous() for k, v in gradients.items()}, root / file)
    norm = sum(g.pow(2).sum() for g in gradients.values()).sqrt().item()
    return {"case": case, "pattern": pattern, "file": file, "loss": loss, "loss_f32": loss_f32, "gradient_norm": norm,
            "gradient_error_f32": error}


def make_optimizer(root, sequences, mask, decay: float) -> dict:
    """AdamW as Hugging Face's Trainer runs it: the gradient clipped by its global norm, no decay on norms."""
    model, trainable = open_case(root, "lora_plus", torch.float64, "exact")
    decayed_by_trainer = Trainer.get_decay_parameter_names(None, model)
    decayed = [p for name, p in model.named_parameters() if p.requires_grad and name in decayed_by_trainer]
    kept = [p for name, p in model.named_parameters() if p.requires_grad and name not in decayed_by_trainer]
    if {id(p) for p in kept} != {id(p) for name, p in trainable.items() if "norm" in name}:
        raise SystemExit("the Trainer decays other parameters than all but the norms")
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": decay}, {"params": kept, "weight_decay": 0.0}],
                                  lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    losses, norms = [], []
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        loss = mean_loss(token_nll(model, sequences, mask), sequences)
        losses.append(loss.item())
        if step < STEPS:
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(trainable.values(), CLIP).item())
            optimizer.step()
    file = f"optimizer/decay_{decay:g}.safetensors"
    save_file({name: p.detach().contiguous() for name, p in trainable.items()}, root / file)
    return {"case": "lora_plus", "pattern": "sf", "file": file, "weight_decay": decay, "learning_rate": LEARNING_RATE,
            "beta1": BETAS[0], "beta2": BETAS[1], "epsilon": EPSILON, "clip": CLIP, "losses": losses,
            "gradient_norms": norms}


def make_attention(root) -> None:
    """SF-Attn alone, by the numpy definition, and a check of the model's attention against it."""
    random = np.random.default_rng(5)
    length, heads, kv_heads, head_dim, group_size = 37, 6, 2, 8, 16
    q, d_out = random.normal(size=(2, length, heads, head_dim))
    k, v = random.normal(size=(2, length, kv_heads, head_dim))
    out, lse = forward(q, k, v, group_size, NUM_SINKS)
    d_q, d_k, d_v = backward(q, k, v, d_out, group_size, NUM_SINKS)
    mask = patterns.head_masks("sf", heads, length, group_size, NUM_SINKS)
    scores = np.einsum("ihd,jhd->hij", q, np.repeat(k, heads // kv_heads, axis=1)) / head_dim**0.5
    p = np.exp(np.where(mask, scores, -np.inf) - lse[:, :, None])
    dense = np.einsum("hij,jhd->ihd", p, np.repeat(v, heads // kv_heads, axis=1))
    if abs(dense - out).max() > 1e-13:
        raise SystemExit("the numpy definition of SF-Attn and its mask disagree")
    arrays = dict(q=q, k=k, v=v, d_out=d_out, out=out, lse=lse, d_q=d_q, d_k=d_k, d_v=d_v)
    save_file({name: torch.from_numpy(a.reshape(a.shape[0], -1)) for name, a in arrays.items()},
              root / "sf_attention.safetensors")


def write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def make_model(root: pathlib.Path, name: str, seed: int) -> None:
    settings = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    heads, group_size = settings["config"]["num_attention_heads"], settings["group_size"]
    tied = settings["config"]["tie_word_embeddings"]
    for folder in ("base", "gradients"):
        (root / folder).mkdir(parents=True)
    base = random_model(settings["config"], generator)
    base.save_pretrained(root / "base")
    (root / "base" / "generation_config.json").unlink()
    sequences = random_batch(settings["lengths"], settings["config"]["vocab_size"], generator)
    write_adapter(base, root / "adapter_lora_plus", ATTENTION_LINEARS, NORMS + ([] if tied else ["embed_tokens"]),
                  generator)
    cases = [("lora_plus", p) for p in patterns.PATTERNS] + [("full_training", "sf")]
    if not tied:
        write_adapter(base, root / "adapter_all_linear", ALL_LINEARS, None, generator)
        cases += [("all_linear", p) for p in patterns.PATTERNS]
    masks = {p: batch_mask(p, sequences, heads, group_size) for p in patterns.PATTERNS}
    expected = {
        "group_size": group_size, "num_sinks": NUM_SINKS,
        "first_shifted_head": {p: patterns.first_shifted_head(p, heads) for p in patterns.PATTERNS},
        "scored_tokens": sum(t >= 0 for s in sequences for t in s["targets"]),
        "cases": [make_case(root, case, p, sequences, masks[p]) for case, p in cases],
    }
    if not tied:
        (root / "optimizer").mkdir()
        with exact_arithmetic():
            expected["optimizer"] = [make_optimizer(root, sequences, masks["sf"], decay) for decay in (0.0, 0.1)]
    write_json(root / "batch.json", {"sequences": sequences})
    write_json(root / "expected.json", expected)


def main() -> None:
    default = pathlib.Path(__file__).resolve().parents[2] / "test" / "golden" / "model"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.set_num_threads(1)  # one order of summation
    for seed, name in enumerate(MODELS):
        shutil.rmtree(out / name, ignore_errors=True)
        make_model(out / name, name, seed)
    make_attention(out)
    for name in MODELS:
        for case in json.loads((out / name / "expected.json").read_text())["cases"]:
            print(f"{name:6} {case['case']:13} {case['pattern']:8} loss {case['loss']:.6f}  f32 {case['loss_f32']:.6f}  "
                  f"|g| {case['gradient_norm']:.3f}  f32 gradient error {case['gradient_error_f32']:.1e}")


if __name__ == "__main__":
    main()
