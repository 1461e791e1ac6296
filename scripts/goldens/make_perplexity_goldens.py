#!/usr/bin/env python3
"""Makes test/golden/perplexity.json: LongLoRA's two perplexities of a short stream, written out in numpy.

    python scripts/goldens/make_perplexity_goldens.py [OUT_FILE]

The model is test/golden/model/plain/base, its forward pass scripts/compare/dense_llama.py in float64. Written from the
protocols of eval.py (windows that start every `stride` tokens, the last start popped; the mean of the windows' mean losses;
2.71828 to its power) and of eval_distributed.py (no start popped; the exponential of the mean over all positions). Needs numpy.
"""
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "compare"))
from dense_llama import DenseLlama, log_softmax  # noqa: E402

CONTEXT, STRIDE = 24, 7


def causal_lm_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The loss that transformers' causal models return: the mean over the shifted positions."""
    shifted, labels = logits[:-1], labels[1:]
    return float(-log_softmax(shifted)[np.arange(len(labels)), labels].mean())


def by_eval_py(model, data: np.ndarray) -> dict:
    starts = list(range(0, len(data) - CONTEXT, STRIDE))
    starts.pop()
    losses = []
    for start in starts:
        x = data[start:start + CONTEXT].astype(np.int64)
        losses.append(causal_lm_loss(model.logits(x), x))
    loss = float(np.mean(np.array(losses)))
    return {"windows": len(starts), "nll": loss, "ppl": 2.71828 ** loss}


def by_eval_distributed_py(model, data: np.ndarray) -> dict:
    total, count, windows = 0.0, 0, 0
    for start in range(0, len(data) - CONTEXT, STRIDE):
        x = data[start:start + CONTEXT].astype(np.int64)
        probabilities = np.exp(log_softmax(model.logits(x)[:-1]))
        total -= float(np.log(probabilities[np.arange(CONTEXT - 1), x[1:]]).sum())
        count += CONTEXT - 1
        windows += 1
    return {"windows": windows, "nll": total / count, "ppl": float(np.exp(total / count))}


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "test" / "golden" / "perplexity.json"
    model = DenseLlama(ROOT / "test" / "golden" / "model" / "plain" / "base")
    stream = np.random.RandomState(7).randint(0, model.config["vocab_size"], size=CONTEXT + 18 * STRIDE + 3).astype(np.uint16)
    out.write_text(json.dumps({"model": "model/plain/base", "context": CONTEXT, "stride": STRIDE, "stream": stream.tolist(),
                               "eval.py": by_eval_py(model, stream),
                               "eval_distributed.py": by_eval_distributed_py(model, stream)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
