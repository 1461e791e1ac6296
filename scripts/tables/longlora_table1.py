#!/usr/bin/env python3
"""LongLoRA (arXiv 2309.12307), table 1: full attention, short attention and S2-Attn, trained and tested at 8,192 to 32,768, PG19 validation.

    python scripts/tables/longlora_table1.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 458 GPU-hours on H100 (tokens over the rates of table_cost.py).
The paper trains every weight here. So do our rows of the same name, with --every-weight; without it those are left out, and rows with
LoRA+ stand in their place. Its "train-free" row is the untuned model tested WITH S2-Attn (an author said so); with full attention a
reader measured 9.45 at 8,192. The pattern that "short" and "S2-Attn" are tested with is not stated: here it is full attention.
"""
from paper_table import SF4, SF64, RECALLED, Row, Run, Table, columns, main, values

N = (8192, 16384, 32768)
EVERY = "every weight"
TABLE = Table("longlora_table1", [
    Row("full attention, every weight", Run("--attention full", trainable="full"), values(N, 8.02, 8.05, 8.04), EVERY, "full"),
    Row("untuned, tested with S2-Attn", published=values(N, 15.82, 94.57, 236.99), test="--attention S2"),
    Row("untuned, tested with full attention", group="LoRA+", role="untuned", ours=True),
    Row("short attention, no shift, every weight", Run("--attention fixed", trainable="full"), values(N, 8.29, 8.83, 9.47), EVERY),
    Row("S2-Attn, every weight", Run(trainable="full"), values(N, 8.04, 8.03, 8.08), EVERY, "s2"),
    Row("full attention, LoRA+", Run("--attention full"), group="LoRA+", role="full", ours=True),
    Row("short attention, LoRA+", Run("--attention fixed"), group="LoRA+", ours=True),
    Row("S2-Attn, LoRA+", Run(), group="LoRA+", role="s2", ours=True),
    Row("SF-Attn, 4 sinks, LoRA+", Run(SF4), group="LoRA+", ours=True),
    Row("SF-Attn, 64 sinks, LoRA+", Run(SF64), group="LoRA+", ours=True),
], columns(N), [RECALLED + " Checked: 8.02, 15.82, and S2-Attn's range of 8.03 to 8.08."])

if __name__ == "__main__":
    main(TABLE, __doc__)
