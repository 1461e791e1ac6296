#!/usr/bin/env python3
"""SinkLoRA (arXiv 2406.05678), table 5 and figure 6: LLaMA-3-8B with a cache of keys and values that H2O, or a window, cuts to a budget.

    python scripts/tables/sinklora_h2o.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 1 GPU-hours on H100 (tokens over the rates of table_cost.py; 8,000 tokens/s through a cache are a guess).
The paper measures accuracy and hours on OpenBookQA; this program has no multiple-choice test. What can be done: perplexity of PG19
validation (shards of 4,096: DATA/llama3/pg19/validation-4096) whose windows go through the cache, and tokens/s of writing 512 tokens
behind DATA/long-prompt.txt (a text of some 3,500 tokens, yours). A budget is a part of 4,096 tokens. "Local" keeps the most recent
alone. Uncertain: whether the paper's model is the plain or the fine-tuned one (plain here), its sizes in tokens, and the cells beyond
those named below the table.
"""
from paper_table import Column, Row, Run, Table, main

N, BUDGETS = 4096, ("1.0", "0.5", "0.2")
PLAIN = Run("", N, "Meta-Llama-3-8B", steps=0)
LOCAL = "--cache streaming --cache-sinks 0 --cache-positions original"


def after(found: dict) -> list[str]:
    """What the paper says in hours, in rates."""
    lines = ["Published: at the whole budget 4.7 h with the full cache and 4.4 h with H2O; half the cache makes inference 1.5 times as fast."]
    full = found.get(("full cache", "tokens/s 1.0"))
    for budget in BUDGETS:
        rate = found.get(("H2O", f"tokens/s {budget}"))
        if full and rate:
            lines.append(f"Ours: H2O with a budget of {budget} writes {rate / full:.2f} times the tokens/s of the full cache.")
    return lines


TABLE = Table("sinklora_h2o", [
    Row("full cache", PLAIN, test="--cache full", only=("PPL 1.0", "tokens/s 1.0")),
    Row("H2O", PLAIN, test="--cache h2o"),
    Row("local", PLAIN, test=LOCAL),
], [Column(f"PPL {b}", N, "pg19/validation", f"--cache-budget {b}", protocol="blocks") for b in BUDGETS]
    + [Column(f"tokens/s {b}", N, "long-prompt.txt", f"--cache-budget {b}", "speed") for b in BUDGETS],
    ["No accuracy on OpenBookQA: it wants a multiple-choice test. ROUGE is not in the paper's text."], after)

if __name__ == "__main__":
    main(TABLE, __doc__)
