#!/usr/bin/env bash
# Makes assets/tiny-llama, the model of the demo, from random weights: a byte-level LLaMA of 0.77 million parameters,
# trained on windows of 256 bytes of the synthetic corpus. Half of the text is short documents, whose call signs come
# back inside such a window, so that the model learns to copy them.
# Cost: COST_LINE
set -euo pipefail
cd "$(dirname "$0")/.."
program=${PROGRAM:-build/sinklora}
model=assets/tiny-llama  # its config.json and tokenizer_config.json are the input, model.safetensors the output
run=${RUN:-build/tiny-llama}
mkdir -p "$run"

"$program" corpus --out "$run/short.jsonl" --bytes 6M --seed 11 --shortest 200 --longest 800
"$program" corpus --out "$run/long.jsonl" --bytes 6M --seed 12
"$program" tokenize --tokenizer byte --input "$run/short.jsonl" "$run/long.jsonl" --context 256 --out "$run/shards"
"$program" train --model "$model" --init random --trainable full --attention full --context 256 --rope-scaling none \
  --data "$run/shards" --out "$run/run" --batch 64 --steps 2000 --lr 3e-3 --warmup 100 --schedule cosine --beta2 0.98 \
  --weight-decay 0.1 --save-every 250 --log-every 50 --seed 1
