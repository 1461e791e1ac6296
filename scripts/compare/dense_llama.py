"""A LLaMA forward pass in numpy and float64, for tiny models: the formulas, and nothing else.

Reads a Hugging Face directory by itself; shares no code with transformers or sinklora. Memory grows with the square of
the length, so it is for hundreds of tokens.
"""
import json
import pathlib

import numpy as np


def read_tensors(path: pathlib.Path) -> dict:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, tensor in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        raw = data[start + begin : start + end]
        if tensor["dtype"] == "BF16":  # the upper half of a float32
            numbers = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            numbers = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[tensor["dtype"]])
        tensors[name] = numbers.astype(np.float64).reshape(tensor["shape"])
    return tensors


def read_weights(folder: pathlib.Path) -> dict:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in read_tensors(path).items()}


def rope_frequencies(config: dict) -> np.ndarray:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or config.get("rope_theta", 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type", "default")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        wavelengths, context = 2 * np.pi / frequencies, scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = (context / wavelengths - low) / (high - low)
        mixed = (1 - smooth) * frequencies / scaling["factor"] + smooth * frequencies
        mixed = np.where(wavelengths > context / low, frequencies / scaling["factor"], mixed)
        return np.where(wavelengths < context / high, frequencies, mixed)
    if kind != "default":
        raise ValueError(f"rope_type {kind} is not written out here")
    return frequencies


def rotate(x: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """x [N, heads, D]: the two halves of a head are the two coordinates of D / 2 rotations."""
    angles = np.arange(len(x))[:, None, None] * frequencies
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)


def rms_norm(x: np.ndarray, gain: np.ndarray, epsilon: float) -> np.ndarray:
    return gain * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


class DenseLlama:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = read_weights(folder)
        self.frequencies = rope_frequencies(self.config)

    def attention(self, x, layer, mask):
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        w = {n: self.weights[f"model.layers.{layer}.self_attn.{n}_proj.weight"] for n in "qkvo"}
        q = rotate((x @ w["q"].T).reshape(len(x), heads, -1), self.frequencies)
        k = rotate((x @ w["k"].T).reshape(len(x), kv_heads, -1), self.frequencies)
        v = (x @ w["v"].T).reshape(len(x), kv_heads, -1)
        k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        p = np.exp(log_softmax(np.where(mask, scores, -np.inf)))
        return np.einsum("hij,jhd->ihd", p, v).reshape(len(x), -1) @ w["o"].T

    def mlp(self, x, layer):
        w = {n: self.weights[f"model.layers.{layer}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down")}
        gate = x @ w["gate"].T
        return (gate / (1 + np.exp(-gate)) * (x @ w["up"].T)) @ w["down"].T

    def logits(self, ids, mask=None) -> np.ndarray:
        """[N, vocab] of one sequence. mask: bool [N, N] or [heads, N, N]; causal by default."""
        mask = np.tril(np.ones((len(ids), len(ids)), dtype=bool)) if mask is None else mask
        epsilon = self.config["rms_norm_eps"]
        x = self.weights["model.embed_tokens.weight"][np.asarray(ids)]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = x + self.attention(rms_norm(x, self.weights[name + "input_layernorm.weight"], epsilon), layer, mask)
            x = x + self.mlp(rms_norm(x, self.weights[name + "post_attention_layernorm.weight"], epsilon), layer)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return rms_norm(x, self.weights["model.norm.weight"], epsilon) @ head.T

    def nll(self, ids, targets) -> np.ndarray:
        """-log p(target) of each position."""
        return -log_softmax(self.logits(ids))[np.arange(len(ids)), np.asarray(targets)]
