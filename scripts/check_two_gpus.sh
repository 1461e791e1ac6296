#!/usr/bin/env bash
# scripts/check_two_gpus.sh [OUT]: what two GPUs of one machine have to show, in less than 8 minutes: the tests of NCCL, a step of LLaMA-2-7B on
# one and two GPUs with and without --shard-base, equal gradients and losses, equal bits, and ranks that die. OUT (check-two-gpus) gets a log
# of every part and step.jsonl; a table comes last. A part that fails does not stop the next, and makes the exit code 1.
#   SINKLORA_BIN=PATH  this program instead of a build (and the sinklora_gpu_tests beside it, if there are any)
#   DEVICE=cpu         two processes on the CPU: everything but NCCL and the rates
#   MINUTES=N          of the whole (15: what is left out for lack of time fails)
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-check-two-gpus}
device=${DEVICE:-cuda}
deadline=$((SECONDS + 60 * ${MINUTES:-15}))
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0} # multicast promises no order of summation
failed=()
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
rm -rf "${out:?}"/*

program=${SINKLORA_BIN:-}
if [ -z "$program" ]; then
  preset=cuda folder=build-cuda
  [ "$device" = cuda ] || preset=release folder=build
  "$here/scripts/build.sh" "$preset" >"$out/build.log" 2>&1 || {
    tail -n 20 "$out/build.log"
    exit 1
  }
  program=$here/$folder/sinklora
fi
if [ "$device" = cuda ]; then
  if [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" -lt 2 ]; then
    echo "check-two-gpus: two GPUs are wanted (nvidia-smi -L); DEVICE=cpu tries the rest without" >&2
    exit 1
  fi
  # Where CUDA came with a Python package, so did NCCL.
  if ldd "$program" | grep -q 'libnccl.*not found'; then
    nccl=$(python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>/dev/null)/lib
    export LD_LIBRARY_PATH=$nccl${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
  shape=(--shape llama2-7b --context 8192) steps=50 timeout=15
else
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  shape=(--shape smollm2-135m --context 32 --warmup 0 --steps 1) steps=20 timeout=4
fi

note() { # NAME STATE TEXT: a line of the table.
  printf '%-28s %-7s %s\n' "$1" "$2" "$3" | tee -a "$out/table.txt"
  [ "$2" != FAILED ] || failed+=("$1")
}
limited() { # NAME SECONDS COMMAND...: its output goes to NAME.log
  local name=$1 budget=$2
  shift 2
  ((budget < deadline - SECONDS)) || budget=$((deadline - SECONDS))
  ((budget > 0)) || budget=1
  timeout --kill-after=20 "$budget" "$@" >>"$out/$name.log" 2>&1 </dev/null
}
# Whether an awk expression of numbers holds.
holds() { awk "BEGIN { exit !($1) }"; }
field() { sed -n "s/.*\"$2\": *\"\{0,1\}\([^,\"}]*\).*/\1/p" "$out/$1.json" 2>/dev/null | head -n 1; }

# ---- NCCL's own promises
tests=$(dirname "$program")/sinklora_gpu_tests
if [ "$device" = cuda ] && [ -x "$tests" ]; then
  if limited nccl-tests 200 "$tests" '-tc=nccl:*'; then
    note nccl-tests ok "$(grep 'test cases:' "$out/nccl-tests.log")"
  else
    note nccl-tests FAILED "exit code $?; see nccl-tests.log"
  fi
fi

# ---- the rates
bench() { # NAME OPTION...
  if limited "$1" 100 "$program" bench step "${shape[@]}" --attention sf --device "$device" "${@:2}" --json "$out/$1.json"; then
    cat "$out/$1.json" >>"$out/step.jsonl"
    note "$1" ok "$(field "$1" tokens_per_s) tokens/s, $(field "$1" step_ms) ms, $(field "$1" peak_mem_gib) GiB on each"
  else
    note "$1" FAILED "exit code $?: $(tail -n 1 "$out/$1.log")"
  fi
}
compare() { # NAME ONE SEVERAL LEAST
  local ratio
  ratio=$(awk "BEGIN { printf \"%.3f\", $(field "$3" tokens_per_s) / $(field "$2" tokens_per_s) }" 2>/dev/null)
  if [ -z "$ratio" ]; then
    note "$1" FAILED "no numbers"
  elif [ "$device" != cuda ] || holds "$ratio >= $4"; then
    note "$1" ok "${ratio}x, wanted ${4}x"
  else
    note "$1" FAILED "${ratio}x, wanted ${4}x"
  fi
}
for recompute in cheap none; do
  bench "step-1-$recompute" --recompute $recompute --gpus 1
  bench "step-2-$recompute" --recompute $recompute --gpus 2
  compare "ratio-$recompute" "step-1-$recompute" "step-2-$recompute" 1.96
  bench "step-2-$recompute-shard" --recompute $recompute --gpus 2 --shard-base
  compare "ratio-$recompute-shard" "step-1-$recompute" "step-2-$recompute-shard" 1.8
done
# Half of the layers' 12.06 GiB, less the two whole layers that are gathered.
saved=$(awk "BEGIN { printf \"%.2f\", $(field step-2-cheap peak_mem_gib) - $(field step-2-cheap-shard peak_mem_gib) }" 2>/dev/null)
if [ "$device" = cuda ]; then
  if [ -n "$saved" ] && holds "$saved > 5"; then
    note memory-shard ok "$saved GiB less on each GPU, of 12.06 GiB in layers"
  else
    note memory-shard FAILED "${saved:-?} GiB less on each GPU, wanted 5"
  fi
fi

# ---- equal numbers, on a model that trains in a minute
model=$here/assets/tiny-llama
limited data 60 "$program" corpus --out "$out/text.jsonl" --bytes 600k --seed 1
limited data 60 "$program" tokenize --tokenizer "$model" --input "$out/text.jsonl" --format text --context 1024 --out "$out/data" ||
  note data FAILED "see data.log"
options=(--model "$model" --data "$out/data" --context 1024 --device "$device" --lr 1e-3 --warmup 2 --batch 1 --resume never)
train() { # NAME GPUS OPTION...: four samples a step, however many share them
  limited "$1" 100 "$program" train "${options[@]}" --out "$out/$1" --gpus "$2" --accumulate $((4 / $2)) --save-every 0 "${@:3}" ||
    note "$1" FAILED "exit code $?: $(tail -n 1 "$out/$1.log")"
}
checkpoint() { echo "$out/$1/$(cat "$out/$1/latest" 2>/dev/null)"; }
train first-1 1 --trainable full --precision fp32 --steps 1 --grad-clip 0
train first-2 2 --trainable full --precision fp32 --steps 1 --grad-clip 0
difference=$(python3 "$here/scripts/compare/checkpoint_difference.py" "$(checkpoint first-1)/optimizer.safetensors" \
  "$(checkpoint first-2)/optimizer.safetensors" .exp_avg 2>&1)
if [[ $difference =~ ^[0-9] ]] && holds "${difference%% *} <= 1e-5"; then
  note first-gradients ok "relative difference $difference"
else
  note first-gradients FAILED "${difference:-no checkpoint}, wanted 1e-5"
fi

losses() { sed -n 's/.*"loss":\([^,}]*\).*/\1/p' "$out/$1/metrics.jsonl"; }
train long-1 1 --trainable full --precision fp32 --steps $steps
train long-2 2 --trainable full --precision fp32 --steps $steps
difference=$(paste <(losses long-1) <(losses long-2) |
  awk -v n=$steps '{ d = $1 - $2; if (d < 0) d = -d; if (!(d <= most)) most = d } END { if (NR == n) printf "%.3e", most }')
if [ -n "$difference" ] && holds "$difference < 1e-3"; then
  note losses ok "$difference at most in $steps steps"
else
  note losses FAILED "${difference:-too few steps}, wanted 1e-3"
fi

same() { # NAME A B FILE...: checkpoints with equal bits
  local file
  for file in "${@:4}" optimizer.safetensors; do
    cmp "$(checkpoint "$2")/$file" "$(checkpoint "$3")/$file" >>"$out/$1.log" 2>&1 || {
      note "$1" FAILED "$(tail -n 1 "$out/$1.log")"
      return
    }
  done
  note "$1" ok "$(basename "$(checkpoint "$2")") of $2 and $3 are the same bits"
}
train long-2-again 2 --trainable full --precision fp32 --steps $steps
same equal-runs long-2 long-2-again model.safetensors
for precision in fp32 bf16; do
  train lora-$precision 2 --trainable lora+ --steps $steps --precision $precision
  train lora-$precision-shard 2 --trainable lora+ --steps $steps --precision $precision --shard-base --recompute block
  same shard-bits-$precision lora-$precision lora-$precision-shard adapter_model.safetensors
done

evaluation() { # NAME FIELD VERB OPTION...: the same record from one GPU and from two
  local name=$1 field=$2 gpus whole=0
  for gpus in 1 2; do
    limited "$name-$gpus" 100 "$program" eval "${@:3}" --model "$model" --device "$device" --precision bf16 --gpus $gpus \
      --json "$out/$name-$gpus.json" && whole=$((whole + 1))
  done
  if ((whole == 2)) && cmp -s "$out/$name-1.json" "$out/$name-2.json"; then
    note "$name" ok "$field $(field "$name-1" "$field") on one GPU and on two"
  else
    note "$name" FAILED "one: $(field "$name-1" "$field"), two: $(field "$name-2" "$field"); $(tail -n 1 "$out/$name-2.log")"
  fi
}
evaluation eval-ppl ppl ppl --data "$out/data" --context 1024 --protocol sliding
evaluation eval-passkey accuracy passkey --max-tokens 1600 --interval 800 --trials 4

# ---- ranks that die or stop
memory_used() { [ "$device" != cuda ] || nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | sort -n | tail -n 1; }
children() { cat "/proc/$1/task/$1/children" 2>/dev/null; }
fail_a_rank() { # NAME RANK SIGNAL MOMENT EXIT-CODE
  local name=$1 victim=$2 signal=$3 moment=$4 before launcher done_steps ranks=() begun code=0 took left=0 free=ok
  before=$(memory_used)
  "$program" train "${options[@]}" --out "$out/$name" --gpus 2 --steps 1000000 --save-every 0 --rank-timeout "$timeout" \
    >"$out/$name.log" 2>&1 </dev/null &
  launcher=$!
  for _ in $(seq 600); do
    read -ra ranks <<<"$(children $launcher)"
    done_steps=$(grep -c . "$out/$name/metrics.jsonl" 2>/dev/null)
    if ((${#ranks[@]} == 2)) && { [ "$moment" = start ] || ((${done_steps:-0} > 2)); }; then break; fi
    [ "$moment" = start ] || sleep 0.1
  done
  kill "-$signal" "${ranks[$victim]:-0}" 2>>"$out/$name.log" || {
    kill -9 $launcher
    note "$name" FAILED "the run did not begin: $(tail -n 1 "$out/$name.log")"
    return
  }
  begun=$(date +%s.%N)
  # The launcher waits 15 s for ranks that do not end by themselves.
  timeout $((timeout + 30)) tail --pid=$launcher -f /dev/null || kill -9 $launcher
  wait $launcher 2>/dev/null || code=$?
  took=$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $begun }")
  for rank in "${ranks[@]}"; do [ ! -d "/proc/$rank" ] || left=$((left + 1)); done
  if [ "$device" = cuda ]; then
    for _ in $(seq 50); do
      (($(memory_used) > before + 100)) || break
      sleep 0.1
    done
    (($(memory_used) <= before + 100)) || free="$(memory_used) MiB in use"
  fi
  if ((code == $5 && left == 0)) && [ "$free" = ok ] && grep -q "rank ${victim}[ (]" "$out/$name.log"; then
    note "$name" ok "exit code $code after $took s, no process left"
  else
    note "$name" FAILED "exit code $code (wanted $5) after $took s, $left processes left, memory $free: $(tail -n 1 "$out/$name.log")"
  fi
}
fail_a_rank kill-rank-1 1 KILL steps 137
fail_a_rank kill-rank-0 0 KILL steps 137
fail_a_rank stop-rank-1 1 STOP steps 6
fail_a_rank stop-rank-0 0 STOP steps 6
fail_a_rank kill-rank-0-before-init 0 KILL start 137

printf '\n%d s; everything is in %s\n' $SECONDS "$out"
if ((${#failed[@]} > 0)); then
  echo "failed: ${failed[*]}"
  exit 1
fi
