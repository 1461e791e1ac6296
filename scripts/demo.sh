#!/usr/bin/env bash
# The whole way in one small run: text -> tokens -> fine-tuning to 4x the context -> perplexity -> a reply. Under two
# minutes on two cores after the build; on a GPU of compute capability 8.x or 9.0 if nvcc was there for the build. Everything it makes is in demo-run/.
#   DEVICE=cpu|cuda    not the one that it finds by itself
#   SINKLORA_BIN=PATH  this program instead of a build
#   STEPS=N            of each fine-tuning (400)
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}  # threads that wait do not take the cores from other programs
program=${SINKLORA_BIN:-build/sinklora}
[ -n "${SINKLORA_BIN:-}" ] || scripts/build.sh release sinklora
device=${DEVICE:-cpu}
if [ -z "${DEVICE:-}" ] && [[ $("$program" env) == *"compute capability "[89].* ]]; then device=cuda; fi
where=(--device "$device" --precision fp32)  # bf16 is what a GPU would take, too coarse for a model as small as this one
model=assets/tiny-llama  # trained on windows of 256 bytes: scripts/make_tiny_llama.sh
context=1024
steps=${STEPS:-400}
out=demo-run
rm -rf "$out"
mkdir "$out"
say() { printf '\n== %s\n' "$1"; }

say "Long documents whose call signs come back far apart"
"$program" corpus --out "$out/train.jsonl" --bytes 2M --seed 1
"$program" corpus --out "$out/held-out.jsonl" --bytes 150k --seed 2
IFS= read -r line <"$out/held-out.jsonl"
text=${line#*:\"} # {"text":"..."}, plain ASCII: the only escape is \n
text=${text%\"\}}
text=${text//\\n/$'\n'}
printf '%s ...\n' "${text:0:280}"

say "Tokens, in HDF5 shards of $context"
for part in train held-out; do
  "$program" tokenize --tokenizer "$model" --input "$out/$part.jsonl" --format text --context $context --out "$out/$part"
done

train() { # NAME
  say "Fine-tuning from 256 to $context tokens with LoRA+, attention while training: $1"
  "$program" train "${where[@]}" --model "$model" --data "$out/train" --out "$out/$1" --context $context --attention "$1" \
    --trainable lora+ --lr 6e-3 --warmup 10 --schedule cosine --batch 1 --steps "$steps" --log-every 50 --seed 1
}
train full
train s2
train sf

perplexity() { # NAME CONTEXT [ADAPTER]
  "$program" eval ppl "${where[@]}" --model "$model" ${3:+--adapter "$3"} --data "$out/held-out" --context "$2" --protocol blocks \
    --separate-documents --json "$out/ppl-$1.json" >"$out/ppl-$1.log"
  sed -n 's/.*"ppl": *\([0-9.]*\).*/\1/p' "$out/ppl-$1.json"
}
row() { printf '%-34s %9.4f\n' "$1" "$2"; }
say "Perplexity of held-out documents, full attention (lower is better)"
row "untuned, $context tokens" "$(perplexity untuned $context)"
for name in full s2 sf; do
  row "fine-tuned with $name, $context tokens" "$(perplexity "$name" $context "$out/$name")"
done
echo "Loss plot: $out/sf/loss.svg"

# The prompt ends with the letter of the call sign that was last written farthest above.
farthest=0
for ((at = 500; at < 900; ++at)); do
  letter=${text:at:1}
  [[ $letter == [A-Z] ]] || continue
  before=${text:0:at}
  above=${before##*"$letter"}
  if ((${#above} < at && ${#above} > farthest)); then
    farthest=${#above}
    end=$at
  fi
done
letter=${text:end:1}
sign=$letter${text:end+1:1}
printf '%s' "${text:0:end+1}" >"$out/prompt.txt"

say "A reply of the model fine-tuned with sf"
echo "The prompt has $((end + 1)) bytes and ends with: ...${text:end-60:61}"
echo "The call sign $sign stands $((farthest + 1)) bytes above and nowhere nearer. The model goes on:"
"$program" generate "${where[@]}" --model "$model" --adapter "$out/sf" --prompt-file "$out/prompt.txt" --max-new-tokens 60 \
  >"$out/reply.txt"
reply=$(cat "$out/reply.txt")
printf '%s\n' "$letter$reply"
if [[ ${reply:0:1} == "${sign:1}" ]]; then
  echo "It copied the call sign: $sign is right."
else
  echo "It did not copy the call sign: $letter${reply:0:1} is wrong, $sign was wanted."
fi
