#!/usr/bin/env bash
# The whole way in one small run: text -> tokens -> fine-tuning to 4x the context -> perplexity -> a reply. Two to three
# minutes on two cores after the build. Everything it makes is in demo-run/.
set -euo pipefail
cd "$(dirname "$0")/.."
program=build/sinklora
model=assets/tiny-llama  # trained on windows of 256 bytes
context=1024
steps=${STEPS:-60}
out=demo-run
rm -rf "$out"
mkdir "$out"
say() { printf '\n== %s\n' "$1"; }

say "Long documents whose facts come back far apart"
"$program" corpus --out "$out/train.jsonl" --bytes 2M --seed 1
"$program" corpus --out "$out/held-out.jsonl" --bytes 150k --seed 2
head -c 300 "$out/held-out.jsonl" && echo ...

say "Tokens, in HDF5 shards of $context"
for part in train held-out; do
  "$program" tokenize --tokenizer "$model" --input "$out/$part.jsonl" --format text --context $context --out "$out/$part"
done

train() { # NAME ATTENTION TRAINABLE
  say "Fine-tuning from 256 to $context tokens: $1"
  "$program" train --model "$model" --data "$out/train" --out "$out/$1" --context $context --attention "$2" \
    --trainable "$3" --lr 2e-3 --warmup 5 --batch 4 --steps "$steps" --seed 1
}
train full full lora+
train s2 s2 lora+
train sf sf lora+

perplexity() { # NAME [ADAPTER]
  "$program" eval ppl --model "$model" ${2:+--adapter "$2"} --data "$out/held-out" --context $context --protocol blocks \
    --json "$out/ppl-$1.json" >"$out/ppl-$1.log"
  sed -n 's/.*"ppl": *\([0-9.]*\).*/\1/p' "$out/ppl-$1.json"
}
say "Perplexity of held-out documents at $context tokens, full attention (lower is better)"
printf '%-22s %s\n' "untuned" "$(perplexity untuned)"
for name in full s2 sf; do
  printf '%-22s %s\n' "fine-tuned with $name" "$(perplexity "$name" "$out/$name/$(cat "$out/$name/latest")")"
done
echo "loss plot: $out/sf/loss.svg"

say "A reply: the surname stands far above"
prompt=$(sed -n '1s/^{"text": *"\(.\{700\}\).*/\1/p' "$out/held-out.jsonl" | sed 's/\\n/\n/g')
"$program" generate --model "$model" --adapter "$out/sf/$(cat "$out/sf/latest")" --prompt "$prompt" --max-tokens 80
