#!/usr/bin/env python3
"""SF-Attn (SinkLoRA, arXiv 2406.05678), forward and backward, in numpy and float64, one query at a time.

    python scripts/goldens/sf_attention_oracle.py       checks itself by finite differences

This is the definition to read first: no tiles, no ranges, no flash. Query i of head h, in a sequence of N tokens, sees
the tokens j <= i of its own group, and the first `num_sinks` tokens (the sinks). Groups are G tokens long and begin at
multiples of G; in the last quarter of the heads they begin half a group off, so that what one head cannot see across a
group's border another one can. Query heads share key/value heads in runs (grouped-query attention).
"""
import numpy as np


def sees(i: int, j: int, head: int, heads: int, group_size: int, num_sinks: int) -> bool:
    shift = group_size // 2 if head >= heads - heads / 4 else 0
    return j <= i and ((i - shift) // group_size == (j - shift) // group_size or j < num_sinks)  # // floors, so -1 // G is -1


def forward(q, k, v, group_size, num_sinks):
    """q [N, Hq, D]; k, v [N, Hkv, D] -> out [N, Hq, D], lse [Hq, N], the logarithm of each softmax's denominator."""
    length, heads, head_dim = q.shape
    shared = heads // k.shape[1]
    out, lse = np.zeros_like(q), np.zeros((heads, length))
    for h in range(heads):
        for i in range(length):
            keys = [j for j in range(length) if sees(i, j, h, heads, group_size, num_sinks)]
            scores = k[keys, h // shared] @ q[i, h] / np.sqrt(head_dim)
            lse[h, i] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            out[i, h] = np.exp(scores - lse[h, i]) @ v[keys, h // shared]
    return out, lse


def backward(q, k, v, d_out, group_size, num_sinks):
    """Gradients of sum(out * d_out) with respect to q, k and v."""
    length, heads, head_dim = q.shape
    shared = heads // k.shape[1]
    out, lse = forward(q, k, v, group_size, num_sinks)
    d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for h in range(heads):
        kv = h // shared
        for i in range(length):
            keys = [j for j in range(length) if sees(i, j, h, heads, group_size, num_sinks)]
            p = np.exp(k[keys, kv] @ q[i, h] / np.sqrt(head_dim) - lse[h, i])
            d_p = v[keys, kv] @ d_out[i, h]
            d_scores = p * (d_p - out[i, h] @ d_out[i, h]) / np.sqrt(head_dim)
            d_v[keys, kv] += np.outer(p, d_out[i, h])
            d_q[i, h] += d_scores @ k[keys, kv]
            d_k[keys, kv] += np.outer(d_scores, q[i, h])
    return d_q, d_k, d_v


def check() -> None:
    random = np.random.default_rng(0)
    q, d_out = random.normal(size=(2, 13, 4, 6))
    k, v = random.normal(size=(2, 13, 2, 6))
    gradients = backward(q, k, v, d_out, 4, 2)
    worst, step = 0.0, 1e-5
    for argument, gradient in zip((q, k, v), gradients):
        for index in np.ndindex(argument.shape):
            kept = argument[index]
            argument[index] = kept + step
            above = (forward(q, k, v, 4, 2)[0] * d_out).sum()
            argument[index] = kept - step
            below = (forward(q, k, v, 4, 2)[0] * d_out).sum()
            argument[index] = kept
            worst = max(worst, abs((above - below) / (2 * step) - gradient[index]))
    print(f"largest difference between the backward and finite differences: {worst:.1e}")
    # Central differences are off by step^2 f'''/6 and by rounding, 1e-16 |f| / step: both below 1e-8 here.
    if worst > 1e-8:
        raise SystemExit("the backward does not match the forward")


if __name__ == "__main__":
    check()
