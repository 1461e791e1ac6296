"""Who sees whom, written out as each paper words it. numpy only.

Independent of the C++ definition (kernels/attention_pattern.h), which computes key ranges; here every pattern is built
the way its authors build it, and comes out as one boolean matrix a head: mask[h, i, j] says that query i sees key j.

`length` tokens, `group_size` G even. Heads from `first_shifted_head(...)` on are shifted by G / 2.
"""
import math

import numpy as np

PATTERNS = ("full", "fixed", "s2", "s2-wrap", "sf")
SHIFTED_FRACTION = {"full": 0.0, "fixed": 0.0, "s2": 0.5, "s2-wrap": 0.5, "sf": 0.25}  # rho, at the end of the heads


def first_shifted_head(pattern: str, heads: int) -> int:
    """Head h is unshifted when h < heads - rho * heads. 9 heads: the last 4 shifted in s2, the last 2 in sf."""
    return math.ceil(heads - SHIFTED_FRACTION[pattern] * heads)


def full(length: int) -> np.ndarray:
    """Causal attention: key j is not after query i."""
    i, j = np.arange(length)[:, None], np.arange(length)[None, :]
    return j <= i


def fixed(length: int, group_size: int) -> np.ndarray:
    """Causal attention inside windows of `group_size` tokens."""
    i, j = np.arange(length)[:, None], np.arange(length)[None, :]
    return (j <= i) & (i // group_size == j // group_size)


def shifted_without_wrap(length: int, group_size: int) -> np.ndarray:
    """LongLoRA's released flash-attention code: cumulative sequence lengths cut the row at G/2, 3G/2, 5G/2, ...; each
    piece is a causal sequence of its own, the first and the last one shorter."""
    cumulative = [0] + list(range(group_size // 2, length, group_size)) + [length]
    mask = np.zeros((length, length), dtype=bool)
    for begin, end in zip(cumulative[:-1], cumulative[1:]):
        mask[begin:end, begin:end] = full(end - begin)
    return mask


def shifted_with_wrap(length: int, group_size: int) -> np.ndarray:
    """LongLoRA, Algorithm 1: roll the tokens by -G/2, cut them into groups of G, causal attention in the rolled order
    inside each group, roll back. The seam's group joins the last half group with the first one, which sees its future."""
    token_at = np.roll(np.arange(length), -(group_size // 2))  # the token at each rolled position
    rolled_mask = np.zeros((length, length), dtype=bool)
    for begin in range(0, length, group_size):
        end = min(begin + group_size, length)
        rolled_mask[begin:end, begin:end] = full(end - begin)
    mask = np.zeros((length, length), dtype=bool)
    mask[np.ix_(token_at, token_at)] = rolled_mask
    return mask


def sf(length: int, group_size: int, shift: int, num_sinks: int) -> np.ndarray:
    """SF-Attn (SinkLoRA) for a head of this shift: causal, and in the query's group or among the first `num_sinks`."""

    def group_of(token: int) -> int:
        return token // group_size if shift == 0 else (token + group_size - shift) // group_size

    mask = np.zeros((length, length), dtype=bool)
    for i in range(length):
        for j in range(length):
            mask[i, j] = j <= i and (group_of(i) == group_of(j) or j < num_sinks)
    return mask


def head_masks(pattern: str, heads: int, length: int, group_size: int, num_sinks: int) -> np.ndarray:
    """bool [heads, length, length]. `num_sinks` matters to sf alone."""
    unshifted = {
        "full": lambda: full(length),
        "fixed": lambda: fixed(length, group_size),
        "s2": lambda: fixed(length, group_size),
        "s2-wrap": lambda: fixed(length, group_size),
        "sf": lambda: sf(length, group_size, 0, num_sinks),
    }[pattern]()
    boundary = first_shifted_head(pattern, heads)
    masks = [unshifted] * boundary
    if boundary < heads:
        shifted = {
            "s2": lambda: shifted_without_wrap(length, group_size),
            "s2-wrap": lambda: shifted_with_wrap(length, group_size),
            "sf": lambda: sf(length, group_size, group_size // 2, num_sinks),
        }[pattern]()
        masks += [shifted] * (heads - boundary)
    return np.stack(masks)
