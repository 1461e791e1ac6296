#!/usr/bin/env python3
"""LongLoRA (arXiv 2309.12307), table 8: variants of S2-Attn, 7B trained and tested at 8,192, PG19 validation.

    python scripts/tables/longlora_table8.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 45 GPU-hours on H100 (tokens over the rates of table_cost.py); --published-only: about 28.
S2-Attn is the paper's algorithm, which wraps around; variant 2 parts the group that wraps, which is how LongLoRA's code has had it since
October 2023 and what the trainer calls s2. The other two it has not. What is trained is not stated: here it is LoRA+.
"""
from paper_table import RECALLED, Row, Run, Table, columns, main, values, with_ours

N = 8192
NO_VARIANT = "the trainer does not have this variant"


def row(name: str, ppl: float, options: str = "", role: str = "") -> Row:
    return Row(name, Run(options, N), values([N], ppl), "LoRA+", role, why_not="" if options else NO_VARIANT)


TABLE = Table("longlora_table8", [
    row("full attention", 8.02, "--attention full", "full"),
    row("S2-Attn, wrapping around", 8.04, "--attention s2-wrap", "s2"),
    row("variant 1: shifted the other way", 8.04),
    row("variant 2: the group that wraps is parted", 8.03, "--attention s2"),
    row("variant 3: shifted tokens change places with the first", 8.05),
    *with_ours([], "LoRA+", Run(context=N))[1:],
], columns([N]), [RECALLED + " Checked: 8.02 and 8.04."])

if __name__ == "__main__":
    main(TABLE, __doc__)
