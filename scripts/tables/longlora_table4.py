#!/usr/bin/env python3
"""LongLoRA (arXiv 2309.12307), table 4: the longest contexts that one machine of 8 GPUs trains, perplexity on proof-pile's test split.

    python scripts/tables/longlora_table4.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 1,100 GPU-hours on H100 (tokens over the rates of table_cost.py); --published-only: about 550.
Table 15 has the same models on PG19: with the same --out it trains none again. 7B to 100,000 tokens, 13B to 65,536. What LongLoRA's
proof-pile file holds beyond 32,768 tokens of a document is not stated; windows run over the ends of documents.
"""
import dataclasses

from paper_table import RECALLED, SF4, Row, Run, Table, columns, main, values

N = (2048, 4096, 8192, 16384, 32768, 65536, 100000)
B7, B13 = Run(context=100000), Run(context=65536, model="Llama-2-13b-hf")
NO_70B = "takes some 500 GPU-hours and --shard-base, and nobody has tried whether it fits"


def rows(of_7b: tuple, of_13b: tuple, of_70b: tuple) -> list[Row]:
    return [Row("7B, 100,000: S2-Attn, LoRA+", B7, values(N, *of_7b)),
            Row("7B, 100,000: SF-Attn, 4 sinks, LoRA+", dataclasses.replace(B7, options=SF4), ours=True),
            Row("13B, 65,536: S2-Attn, LoRA+", B13, values(N, *of_13b)),
            Row("13B, 65,536: SF-Attn, 4 sinks, LoRA+", dataclasses.replace(B13, options=SF4), ours=True),
            Row("70B, 32,768: S2-Attn, LoRA+", published=values(N, *of_70b), why_not=NO_70B)]


TABLE = Table("longlora_table4", rows((3.36, 3.01, 2.78, 2.60, 2.58, 2.57, 2.52),
                                      (3.20, 2.88, 2.66, 2.50, 2.39, 2.38), (2.84, 2.57, 2.39, 2.26, 2.17)),
              columns(N, "proof-pile/test_sampled_data"), [RECALLED + " Checked: 3.36 and 2.52 (7B, 2,048 and 100,000)."])

if __name__ == "__main__":
    main(TABLE, __doc__)
