#!/usr/bin/env python3
"""SinkLoRA (arXiv 2406.05678), table 9: patterns of attention, LLaMA-2-7B at 4,096, 6,144 and 8,192, PG19 validation.

    python scripts/tables/sinklora_table9.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 42 GPU-hours on H100 (tokens over the rates of table_cost.py).
The paper's cells could not be read anywhere; its text says: SF-Attn lowest of all, S2-Attn slightly better than full attention, stride
and random slightly worse than sparse fixed. Uncertain: whether a row is trained once at 8,192 (so here) or at every length, and with
what. Sparse Transformer's fixed and strided patterns and random attention are not in the trainer; fixed windows, which it has, are
another pattern than "sparse fixed".
"""
from paper_table import SF4, Row, Run, Table, columns, main

N = (4096, 6144, 8192)
NO_PATTERN = "the trainer does not have this pattern"
TABLE = Table("sinklora_table9", [
    Row("untuned, position interpolation", Run("", 8192, steps=0), group="LoRA+", role="untuned", ours=True),
    Row("full attention", Run("--attention full", 8192), group="LoRA+", role="full"),
    Row("S2-Attn", Run(context=8192), group="LoRA+", role="s2"),
    *[Row(name, why_not=NO_PATTERN) for name in ("sparse fixed", "stride", "random")],
    Row("fixed windows", Run("--attention fixed", 8192), group="LoRA+", ours=True),
    Row("SF-Attn, 4 sinks", Run(SF4, 8192), group="LoRA+"),
], columns(N), ["No published number of this table is known."])

if __name__ == "__main__":
    main(TABLE, __doc__)
