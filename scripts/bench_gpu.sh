#!/usr/bin/env bash
# scripts/bench_gpu.sh [OUT]: builds with CUDA, runs the GPU tests and repeats the GPU part of docs/benchmarks.md, in less than 30 minutes on
# one GPU with 80 GB and 16 cores. OUT (bench-gpu) gets JSON lines a part (*.jsonl) and each part's log; a short table comes last. Every part
# has a budget of its own; one that fails or runs out of it does not stop the next, and makes the exit code 1.
#   SINKLORA_BIN=PATH   this program instead of a build (and the sinklora_gpu_tests beside it, if there are any)
#   PYTHON=PATH         a Python with torch, transformers and peft (python3): with them the reference stack is timed on the same GPU
#   MINUTES=N           of the whole (29)
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-bench-gpu}
python=${PYTHON:-python3}
deadline=$((SECONDS + 60 * ${MINUTES:-29}))
failed=()
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo "bench-gpu: no GPU is visible (nvidia-smi lists none)" >&2
  exit 1
fi
mkdir -p "$out" || exit 1
rm -f "$out"/*.jsonl "$out"/*.json "$out"/*.out "$out"/*.log

# part NAME SECONDS COMMAND...: its standard output goes to NAME.out, errors to NAME.log.
part() {
  local name=$1 budget=$2 begun=$SECONDS code=0
  shift 2
  ((budget < deadline - SECONDS)) || budget=$((deadline - SECONDS))
  if ((budget < 1)); then
    code=124
  else
    timeout --kill-after=10 "$budget" "$@" >"$out/$name.out" 2>"$out/$name.log" </dev/null || code=$?
  fi
  if ((code == 0)); then
    printf '%-28s %4d s\n' "$name" $((SECONDS - begun))
  else
    printf '%-28s %4d s  FAILED (%s): %s\n' "$name" $((SECONDS - begun)) \
      "$( ((code == 124)) && echo "out of time" || echo "exit code $code")" "$(cat "$out/$name.out" "$out/$name.log" 2>/dev/null | tail -n 1)"
    failed+=("$name")
  fi
  return $code
}
# A list of flat JSON objects, or one object, as lines of FILE.
lines() { sed -e 's/^\[//' -e 's/\]$//' -e 's/},{/}\n{/g' "$out/$1.out" >>"$out/$2.jsonl"; }

program=${SINKLORA_BIN:-}
if [ -z "$program" ]; then
  program=$here/build-cuda/sinklora
  part build 600 env CUDACXX="$("$here/scripts/find_nvcc.sh")" "$here/scripts/build.sh" cuda sinklora sinklora_gpu_tests
fi
tests=$(dirname "$program")/sinklora_gpu_tests
part machine 20 "$program" env --json - && lines machine machine
if [ -x "$tests" ]; then
  part tests 300 "$tests" '-tce=timing*'
  part operations 60 "$tests" -ns '-tc=timing of memory-bound ops,timing of products'
fi

attention() { # NAME SECONDS OPTION...
  part "$1" "$2" "$program" bench attention "${@:3}" --json - && lines "$1" attention
}
attention attention 90 --context 8192,16384,32768 --patterns full,fixed,s2,sf
attention attention-64-sinks 60 --context 8192,16384,32768 --patterns sf --sinks 64
attention attention-grouped 30 --context 8192 --kv-heads 8 --patterns full,sf
part gemm 60 "$program" bench gemm --shape llama2-7b --context 8192 --json - && lines gemm gemm

step() { # SHAPE CONTEXT ATTENTION RECOMPUTE [OPTION...]
  local name=step-$1-$2-$3-$4
  part "$name" 75 "$program" bench step --shape "$1" --context "$2" --attention "$3" --recompute "$4" "${@:5}" --json - &&
    lines "$name" step
}
step llama2-7b 8192 sf cheap
step llama2-7b 8192 s2 cheap
step llama2-7b 8192 full cheap
step llama2-7b 8192 sf block
step llama2-7b 16384 sf cheap --warmup 1 --steps 3
step llama2-7b 32768 sf auto --warmup 1 --steps 3
step llama2-7b 32768 sf block --warmup 1 --steps 3
step llama2-7b 65536 sf auto --warmup 1 --steps 1
step llama3-8b 4096 sf cheap
decode() { # SHAPE CACHE BATCH: after a prompt of 32,768 tokens; budgets of a fifth
  part "decode-$1-$2-$3" 75 "$program" bench decode --shape "$1" --prompt 32768 --cache "$2" --cache-budget 0.2 --batch "$3" --json - &&
    lines "decode-$1-$2-$3" decode
}
for cache in full h2o streaming; do decode llama2-7b $cache 1; done
for cache in full h2o; do decode llama2-7b $cache 0; done # as many sequences as memory holds
decode llama3-8b full 1
part profile 75 "$program" bench step --shape llama2-7b --context 8192 --attention sf --recompute cheap --profile --json "$out/profile.json"
[ -s "$out/profile.json" ] && tr -d '\n' <"$out/profile.json" >"$out/profile.jsonl"

if "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
  peer() { # NAME SECONDS OPTION...
    part "$1" "$2" "$python" "$here/scripts/compare/time_gpu_peer.py" "${@:3}"
    [ ! -s "$out/$1.out" ] || grep '^{' "$out/$1.out" >>"$out/$(cut -d- -f1,2 <<<"$1").jsonl"
  }
  peer peer-attention 120 --attention
  peer peer-step-8192 150 --step --contexts 8192
  peer peer-step-8192-checkpointing 150 --step --contexts 8192 --checkpointing
  peer peer-step-16384-checkpointing 150 --step --contexts 16384 --checkpointing --steps 3
  peer peer-step-32768-checkpointing 150 --step --contexts 32768 --checkpointing --steps 3
else
  echo "peers: left out, $python has no torch, transformers and peft"
fi

# table FILE HEADING FIELD...: those fields of each line.
table() {
  [ -s "$out/$1.jsonl" ] || return 0
  printf '\n%s\n' "$2"
  local line field value
  while IFS= read -r line; do
    for field in "${@:3}"; do
      value=$(sed -n "s/.*\"$field\": *\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$line")
      if [ "$field" = error ]; then printf '%s' "$value"; else printf '%-16.15s' "$value"; fi
    done
    echo
  done <"$out/$1.jsonl"
}
table attention "attention: pattern, sinks, KV heads, context, direction, ms, TFLOP/s" pattern sinks kv_heads context direction ms tflops
table gemm "linears: name, LoRA rank, direction, ms, TFLOP/s" linear lora_rank direction ms tflops
table step "steps: shape, context, attention, recompute, tokens/s, ms, GiB" shape context attention recompute tokens_per_s step_ms peak_mem_gib
table decode "decoding: shape, cache, tokens of it, sequences, tokens/s, ms a step, GB/s, tokens/s of the prompt" \
  shape cache budget batch tokens_per_s step_ms gb_per_s prefill_tokens_per_s
for listed in operations profile; do
  [ ! -s "$out/$listed.out" ] || { echo && grep -v '^\[doctest\]\|^===' "$out/$listed.out"; }
done
table peer-attention "reference stack, attention: backend, layout, context, direction, ms, TFLOP/s" \
  backend layout context direction ms tflops error
table peer-step "reference stack, steps: context, attention, kernel, checkpointing, tokens/s, ms, GiB" \
  context attention kernel checkpointing tokens_per_s step_ms peak_allocated_gib error
printf '\n%d minutes; everything is in %s\n' $((SECONDS / 60)) "$out"
if ((${#failed[@]} > 0)); then
  echo "failed: ${failed[*]}"
  exit 1
fi
