#!/usr/bin/env python3
"""SinkLoRA (arXiv 2406.05678), table 8: the two steps inside segmentation and reassembly (S&R), 7B at 8,192, PG19 validation.

    python scripts/tables/sinklora_table8.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 28 GPU-hours on H100 (tokens over the rates of table_cost.py); --published-only: about 17.
"Shift up" and "shift back" alone would leave the output in another order than the input. The paper does not define them far enough to be
repeated, and the trainer, which masks instead of moving tokens, has no such state: those two rows are not run. What is left are rows of
table 7; with the same --out nothing is trained again.
"""
from paper_table import Row, Run, Table, columns, main, values, with_ours

N = 8192
UNDEFINED = "one half of a permutation, not defined in the paper's text; the trainer masks and moves nothing"
TABLE = Table("sinklora_table8", [
    Row("S2-Attn", Run(context=N), values([N], 9.09), "LoRA+", "s2"),
    Row("only \"shift up\"", published=values([N], 9.35), why_not=UNDEFINED),
    Row("only \"shift back\"", published=values([N], 9.60345459), why_not=UNDEFINED),
    Row("full S&R", Run("--attention sf --shifted-heads 0.25 --sinks 0", N), values([N], 8.86), "LoRA+"),
    *with_ours([], "LoRA+", Run(context=N))[:1],
], columns([N]), ["The paper has full attention nowhere in this table, so no share of the gap of its own."])

if __name__ == "__main__":
    main(TABLE, __doc__)
