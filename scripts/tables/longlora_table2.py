#!/usr/bin/env python3
"""LongLoRA (arXiv 2309.12307), table 2: LoRA's rank against training norms and embeddings as well, 7B at 32,768, PG19 validation.

    python scripts/tables/longlora_table2.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 561 GPU-hours on H100 (tokens over the rates of table_cost.py).
Uncertain: alpha of the ranks beyond 8 (here 16 for all, the constant of LongLoRA's code), and that every row is trained with S2-Attn,
the full fine-tune too. The trainer has embeddings and norms trained together or not at all: the two rows with one of them are not run.
"""
from paper_table import Row, Run, Table, columns, main, values, with_ours

N = 32768
ONE_OF_THEM = "embeddings and norms are trained together or not at all"


def row(name: str, ppl: float, run: Run | None = None, role: str = "", **more) -> Row:
    return Row(name, run or Run(context=N), values([N], ppl), "LoRA+", role, **more)


TABLE = Table("longlora_table2", with_ours([
    Row("every weight, S2-Attn", Run(context=N, trainable="full"), values([N], 8.08)),
    *[row(f"LoRA, rank {rank}", ppl, Run(f"--attention S2 --lora-rank {rank} --lora-alpha 16", N, trainable="lora"))
      for rank, ppl in {8: 11.44, 16: 11.82, 32: 11.92, 64: 11.96, 128: 11.97, 256: 11.98}.items()],
    row("rank 8 and norms", 10.49, why_not=ONE_OF_THEM),
    row("rank 8 and embeddings", 8.29, why_not=ONE_OF_THEM),
    row("rank 8, norms and embeddings (LoRA+)", 8.12, role="s2"),
], "LoRA+", Run(context=N)), columns([N]), ["Published cells were read from an image of the paper's table."])

if __name__ == "__main__":
    main(TABLE, __doc__)
