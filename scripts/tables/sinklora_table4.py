#!/usr/bin/env python3
"""SinkLoRA (arXiv 2406.05678), table 4: LongChat's topic retrieval with LLaMA-3-8B, prompts of 3,000 to 16,000 tokens.

    python scripts/tables/sinklora_table4.py --models MODELS --data DATA --out OUT [--dry-run]

Cost: about 23 GPU-hours on H100 (tokens over the rates of table_cost.py; 8,000 tokens a record are a guess); --published-only: about 12.
Fine-tuned on DATA/longalpaca-plus.json (scripts/build_longalpaca_plus.py): 3 epochs, steps of 2 records. Uncertain: the context of that
training (16,384 here), and whether the base was the plain model. `eval topics` asks in the manner of LongChat, in words and with topics
of its own, and gives the answer's first words: its accuracies are not LongChat's. 50 questions a length (the paper's are all 0.02 apart).
"""
import dataclasses

from paper_table import SF4, Column, Row, Run, Table, main

PUBLISHED = {3000: 1.00, 6000: 1.00, 10000: 1.00, 13000: 0.98, 16000: 0.96}
SFT = Run(SF4, 16384, "Meta-Llama-3-8B", data="longalpaca-plus", steps=0, epochs=3, batch=2)
TABLE = Table("sinklora_table4", [
    Row("LLaMA-3-8B: untuned", dataclasses.replace(SFT, options="", epochs=0), ours=True),
    Row("LLaMA-3-8B: SF-Attn, 4 sinks, LoRA+", SFT, {f"{n:,}": accuracy for n, accuracy in PUBLISHED.items()}),
    Row("LLaMA-3-8B: S2-Attn, LoRA+", dataclasses.replace(SFT, options="--attention S2"), ours=True),
], [Column(f"{n:,}", n, "topics", kind="topics") for n in PUBLISHED], ["Accuracies, not perplexities."])

if __name__ == "__main__":
    main(TABLE, __doc__)
