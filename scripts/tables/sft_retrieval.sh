#!/usr/bin/env bash
# scripts/tables/sft_retrieval.sh [--dry-run] MODEL BOOKS OUT: what a supervised fine-tune on generated questions about long
# documents does to retrieval at 4x a model's context. Questions about BOOKS/train/*.txt -> tokens -> fine-tunes of MODEL ->
# accuracy before and after, on BOOKS/heldout/*.txt, with names and numbers that training never had
# (scripts/assets/prepare_texts.py makes BOOKS). Restartable: finished parts are kept. A part that fails or takes too long does
# not stop the others, and makes the exit code 1. OUT gets a JSON a measurement, logs, heat maps; a table comes last.
# Cost: model of 41 million parameters at 4096 on one H100, about 0.3 GPU-hours.
#   SINKLORA_BIN=PATH  the program (build-cuda/sinklora, or build/sinklora for DEVICE=cpu)
#   DEVICE=cuda|cpu  CONTEXT=4096  STEPS=3000  BATCH=8  RANK=32  TRIALS=10  LENGTHS=4
#   RUNS="sf:lora+:2e-3 full:lora+:2e-3 sf:full:1e-3"  the fine-tunes: attention while training, what is trained, learning rate
#   FACTS=8          planted in a passage, and asked for in one training question at most; measured with one asked for
#   BASE_STEPS=0     more: MODEL has a config and a tokenizer only; it is first trained at a quarter of CONTEXT, on BOOKS/train
#                    and on pages of them that repeat themselves (scripts/assets/repeat_passages.py): novels alone teach no copying
#   EXTEND_STEPS=0   more: then at CONTEXT, every weight, on longer such pages
#   KINDS="questions lines"  what is asked: the same kind of questions; also lines of a register, which no training has seen
#   MINUTES=N        of one part, at most (20)
set -uo pipefail
dry=
[ "${1:-}" != --dry-run ] || { dry=1 && shift; }
[ $# = 3 ] || { sed -n '2,19s/^# \{0,1\}//p' "$0" && exit 2; }
here=$(cd "$(dirname "$0")/../.." && pwd)
model=$1 tokenizer=$1 books=$2 out=$3
device=${DEVICE:-cuda} context=${CONTEXT:-4096} trials=${TRIALS:-10} facts=${FACTS:-8} kinds=${KINDS:-questions lines}
program=${SINKLORA_BIN:-$here/build$([ "$device" = cpu ] || echo -cuda)/sinklora}
precision=$([ "$device" = cpu ] && echo fp32 || echo bf16)
read -ra runs <<<"${RUNS:-sf:lora+:2e-3 full:lora+:2e-3 sf:full:1e-3}"
train_books=("$books"/train/*.txt) held_out_books=("$books"/heldout/*.txt)
[ -n "$dry" ] || [ -x "$program" ] || { echo "sft_retrieval: no $program; build it, or set SINKLORA_BIN" >&2 && exit 2; }
[ -n "$dry" ] || [ -f "${held_out_books[0]}" ] || { echo "sft_retrieval: no $books/heldout/*.txt" >&2 && exit 2; }
[ -n "$dry" ] || mkdir -p "$out" || exit 1
failed=()

# part NAME RESULT COMMAND...: skipped when RESULT is there already; its output goes to NAME.log.
part() {
  local name=$1 result=$2 begun=$SECONDS code=0
  shift 2
  if [ -n "$dry" ]; then
    printf '%q ' "$@" && echo
    return
  fi
  [ ! -e "$result" ] || return 0
  timeout --kill-after=10 $((60 * ${MINUTES:-20})) "$@" >"$out/$name.log" 2>&1 </dev/null || code=$?
  printf '%-24s %5d s%s\n' "$name" $((SECONDS - begun)) "$( ((code == 0)) || echo "  FAILED ($code): $(tail -n 1 "$out/$name.log")")"
  ((code == 0)) || failed+=("$name")
  return $code
}

# whole NAME COMMAND...: a part that leaves its result there when it is cut off, too.
whole() {
  part "$1" "$out/$1.done" "${@:2}" && { [ -n "$dry" ] || touch "$out/$1.done"; }
}

questions() { # NAME SEED DOCUMENTS SHORTEST LONGEST
  part "$1" "$out/$1.json" "$program" corpus --out "$out/$1.json" --format alpaca --books "${train_books[@]}" --facts "$facts" \
    --asked "$facts" --seed "$2" --documents "$3" --shortest "$4" --longest "$5"
}
tokenize() { # NAME FILE OPTION...
  part "tokens-$1" "$out/$1/data_params.json" "$program" tokenize --tokenizer "$tokenizer" --input "$2" --out "$out/$1" "${@:3}"
}
sft=(--format alpaca --template llama2 --too-long drop --context "$context")

every_token=(--trainable full --attention full --schedule cosine --weight-decay 0.1 --device "$device" --precision "$precision"
  --log-every 100 --seed 1)
pages() { # NAME SHORTEST LONGEST: pages that repeat themselves, from which looking back is learned
  whole "$1" python3 "$here/scripts/assets/repeat_passages.py" "$out/$1.jsonl" "${train_books[@]}" --bytes "${PAGES:-60e6}" \
    --shortest "$2" --longest "$3"
}

if ((${BASE_STEPS:-0} > 0)); then
  pages short-pages $((context / 2)) $((context * 3 / 4))
  part tokens-base "$out/base-tokens/data_params.json" "$program" tokenize --tokenizer "$tokenizer" --format text --context $((context / 4)) \
    --input "${train_books[@]}" "$out/short-pages.jsonl" --out "$out/base-tokens"
  whole base "$program" train --model "$model" --init random --data "$out/base-tokens" --out "$out/base" \
    --rope-scaling none --context $((context / 4)) --batch 64 --steps "$BASE_STEPS" --lr 2e-3 --warmup 100 "${every_token[@]}"
  model=$out/base
fi
if ((${EXTEND_STEPS:-0} > 0)); then
  pages long-pages $((context * 2)) $((context * 3))
  part tokens-extend "$out/extend-tokens/data_params.json" "$program" tokenize --tokenizer "$tokenizer" --format text --context "$context" \
    --input "$out/long-pages.jsonl" --out "$out/extend-tokens"
  whole extend "$program" train --model "$model" --data "$out/extend-tokens" --out "$out/extend" \
    --context "$context" --batch "${BATCH:-8}" --steps "$EXTEND_STEPS" --lr 5e-4 --warmup 50 "${every_token[@]}"
  model=$out/extend
fi

# Bytes that are one token here, from a few questions whose bytes surely fit.
part probe "$out/probe.json" "$program" corpus --out "$out/probe.json" --format alpaca --books "${train_books[@]}" \
  --facts "$facts" --documents 100 --shortest "$context" --longest "$context"
tokenize probe-tokens "$out/probe.json" --format alpaca --template llama2 --context $((2 * context)) --json "$out/probe-tokens.json"
tokens=$(sed -n 's/.*"tokens": *\([0-9]*\).*/\1/p' "$out/probe-tokens.json" 2>/dev/null || true)
# Bytes of a question that hardly fits: a model answers badly from places that no training question reached.
fits=$((104 * context * context / ${tokens:-$((100 * context))}))

# Half of the records are short: many answers a row, all of them in sight of every pattern.
smallest=$((190 + 90 * facts))
documents=$((${STEPS:-3000} * ${BATCH:-8}))
short=$((fits / 4 > smallest * 5 / 4 ? fits / 4 : smallest * 5 / 4))
questions short 1 $((2 * documents)) "$smallest" "$short"
questions long 2 $((documents / 2)) "$short" "$fits"
part tokens-sft "$out/sft/data_params.json" "$program" tokenize --tokenizer "$tokenizer" --input "$out/short.json" "$out/long.json" \
  "${sft[@]}" --pack --out "$out/sft"

measure() { # NAME --model DIR [--adapter DIR]
  local common=("${@:2}" --device "$device" --precision "$precision" --context "$context")
  local lengths=(--max-tokens $((context - 16)) --interval $(((context - 16) / ${LENGTHS:-4})))
  [[ $kinds != *questions* ]] || part "questions-$1" "$out/questions-$1.json" "$program" eval questions "${common[@]}" "${lengths[@]}" --template llama2 \
    --books "${held_out_books[@]}" --held-out --facts "$facts" --depths 5 --trials "$trials" --seed 7 \
    --plot "$out/questions-$1.svg" --json "$out/questions-$1.json"
  [[ $kinds != *lines* ]] || part "lines-$1" "$out/lines-$1.json" "$program" eval lines "${common[@]}" "${lengths[@]}" --template llama2 --depths 5 \
    --trials "$trials" --json "$out/lines-$1.json"
}
measure before --model "$model"
for run in "${runs[@]}"; do
  IFS=: read -r pattern trainable rate <<<"$run"
  name=$pattern-$trainable
  if ! whole "train-$name" "$program" train --model "$model" --data "$out/sft" --out "$out/train-$name" \
    --context "$context" --attention "$pattern" --trainable "$trainable" --lora-rank "${RANK:-32}" --lora-alpha $((2 * ${RANK:-32})) \
    --lr "$rate" --warmup 100 --schedule cosine --beta2 0.98 --batch "${BATCH:-8}" --steps "${STEPS:-3000}" --device "$device" \
    --precision "$precision" --log-every 100 --seed 1; then
    continue
  fi
  if [ "$trainable" = full ]; then
    measure "$name" --model "$out/train-$name"
  else
    measure "$name" --model "$model" --adapter "$out/train-$name"
  fi
done
[ -z "$dry" ] || exit 0

# Accuracy in percent, a column a length.
row() { # NAME FILE
  awk -v name="$1" '/"wanted_tokens"/ { n = $2 + 0 } /"trials"/ { t = $2 + 0 }
    /"correct"/ { if (!(n in all)) order[++k] = n; right[n] += $2; all[n] += t }
    END { printf "%-24s", name; for (i = 1; i <= k; ++i) printf "  %5d: %5.1f", order[i], 100 * right[order[i]] / all[order[i]]; print "" }' \
    "$2" 2>/dev/null || echo "$1: not measured"
}
echo
echo "Right answers in percent, by tokens of the prompt (held-out books, names and numbers)"
for kind in $kinds; do
  for name in before "${runs[@]%:*}"; do row "$kind, ${name/:/ }" "$out/$kind-${name/:/-}.json"; done
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
