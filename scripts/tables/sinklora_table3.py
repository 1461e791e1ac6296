#!/usr/bin/env python3
"""SinkLoRA (arXiv 2406.05678), table 3: SF-Attn at 16,384, the longest context of its machine of two A100, tested at 2,048 to 16,384.

    python scripts/tables/sinklora_table3.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 119 GPU-hours on H100 (tokens over the rates of table_cost.py); --published-only: about 59.
Uncertain: text, training and base, as in table 2; the text is not named, PG19's test split is measured.
"""
import dataclasses

from paper_table import SF4, Row, Run, Table, columns, main, values

N = (2048, 4096, 8192, 12288, 16384)


def rows(name: str, run: Run, *ppl: float) -> list[Row]:
    return [Row(f"{name}: SF-Attn, 4 sinks, LoRA+", run, values(N, *ppl), name),
            Row(f"{name}: S2-Attn, LoRA+", dataclasses.replace(run, options="--attention S2"), group=name, role="s2", ours=True)]


TABLE = Table("sinklora_table3", rows("LLaMA-2-7B", Run(SF4, 16384), 8.73, 8.55, 8.30, 8.13, 8.05)
              + rows("LLaMA-3-8B", Run(SF4, 16384, "Meta-Llama-3-8B"), 5.11, 5.02, 4.89, 4.77, 4.72), columns(N, "pg19/test"),
              ["Both of the paper's rows are SF-Attn: no share of a gap can be made of them."])

if __name__ == "__main__":
    main(TABLE, __doc__)
