#!/usr/bin/env python3
"""LongLoRA (arXiv 2309.12307), table 3: LLaMA-2 7B and 13B extended to 8,192, 16,384 and 32,768, perplexity on proof-pile's test split.

    python scripts/tables/longlora_table3.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 335 GPU-hours on H100 (tokens over the rates of table_cost.py); --published-only: about 249.
Table 14 has the same models on PG19: with the same --out it trains none again. Rows without LoRA+ train every weight (the authors, in
answer to readers), not plain LoRA. Tested with full attention and the position interpolation of the training, at every length.
"""
from paper_table import RECALLED, Row, Run, Table, columns, main, values, with_ours

N = (2048, 4096, 8192, 16384, 32768)
MODELS = {"7B": "Llama-2-7b-hf", "13B": "Llama-2-13b-hf"}
PROOF_PILE = {
    ("7B", 8192): {"full": (3.14, 2.85, 2.66), "S2": (3.15, 2.86, 2.68), "LoRA+": (3.20, 2.91, 2.72)},
    ("7B", 16384): {"S2": (3.17, 2.87, 2.68, 2.55), "LoRA+": (3.17, 2.87, 2.66, 2.51)},
    ("7B", 32768): {"S2": (3.20, 2.90, 2.69, 2.54, 2.49), "LoRA+": (3.35, 3.01, 2.78, 2.61, 2.50)},
    ("13B", 8192): {"full": (2.96, 2.69, 2.53), "S2": (3.01, 2.74, 2.57), "LoRA+": (3.04, 2.77, 2.60)},
    ("13B", 16384): {"S2": (2.99, 2.72, 2.53, 2.40), "LoRA+": (3.03, 2.74, 2.55, 2.41)},
    ("13B", 32768): {"S2": (3.04, 2.75, 2.56, 2.42, 2.33), "LoRA+": (3.05, 2.77, 2.57, 2.42, 2.32)}}


def rows(published: dict) -> list[Row]:
    """Our own rows, which a gap needs, at 8,192 alone: there the paper has full attention too."""
    found: list[Row] = []
    for (size, context), of in published.items():
        name, run = f"{size}, {context:,}", Run(context=context, model=MODELS[size])
        every = f"{name}, every weight"
        if "full" in of:
            found.append(Row(f"{name}: full attention, every weight", Run("--attention full", context, MODELS[size], "full"),
                             values(N, *of["full"]), every, "full"))
        found.append(Row(f"{name}: S2-Attn, every weight", Run(context=context, model=MODELS[size], trainable="full"),
                         values(N, *of["S2"]), every, "s2"))
        found.append(Row(f"{name}: S2-Attn, LoRA+", run, values(N, *of["LoRA+"]), name, "s2"))
        if "full" in of:
            found = with_ours(found, name, run)
    return found


TABLE = Table("longlora_table3", rows(PROOF_PILE), columns(N, "proof-pile/test_sampled_data"),
              [RECALLED + " Checked: 2.72 and 2.50 (7B, LoRA+, 8,192 and 32,768), 2.49 and 2.32 at 32,768."])

if __name__ == "__main__":
    main(TABLE, __doc__)
