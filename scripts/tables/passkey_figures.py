#!/usr/bin/env python3
"""Passkey retrieval, LongLoRA's figure 4 and SinkLoRA's figure 5: 7B trained at 32,768, prompts of 1,000 to 36,000 tokens.

    python scripts/tables/passkey_figures.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 92 GPU-hours on H100 (tokens over the rates of table_cost.py), training included, which table 3 of LongLoRA shares in the same
--out. Prompts, keys and judgement are those of LongLoRA's passkey_retrivial.py, 10 trials a length. SinkLoRA words
its documents otherwise, and its English is not known. The figures are curves; of their numbers the text has the limits alone.
"""
from paper_table import SF4, Column, Row, Run, Table, main

N = 32768
LENGTHS = (1000, 4000, 8000, 12000, 16000, 20000, 24000, 28000, 30000, 32000, 33000, 34000, 36000)
LABELS = tuple(f"{n:,}" for n in LENGTHS)
TABLE = Table("passkey_figures", [
    Row("LLaMA-2-7B, untuned", Run("", 4096, steps=0), only=LABELS),
    Row("S2-Attn, LoRA+", Run(context=N), only=LABELS),
    Row("SF-Attn, 4 sinks, LoRA+", Run(SF4, N), only=LABELS),
], [Column(label, n, "passkey", kind="passkey") for label, n in zip(LABELS, LENGTHS)],
    ["Published: the untuned model fails beyond 4,000; LongLoRA is near perfect to 33,000 or 34,000 (SinkLoRA: its limits are 30,000 and "
     "34,000); SinkLoRA does not drop up to 33,000 or 36,000."])

if __name__ == "__main__":
    main(TABLE, __doc__)
