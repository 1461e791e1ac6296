#!/usr/bin/env python3
"""How fast the reference stack is on this CPU: transformers + PEFT, float32, as an expert would set it up.

    python scripts/compare/time_cpu_peer.py --model DIR [--threads 2] [--contexts 512,1024] [--steps 8] [--out FILE]

Training: LoRA rank 8, alpha 16 on q, k, v, o; embedding and norms trainable (as LongLoRA sets it: requires_grad on the
parameters themselves, so a tied head stays tied and gets its gradient), full causal attention, batch 1, AdamW, gradient
clipping. Evaluation: forward and loss under inference_mode. Tuned: SDPA attention (its CPU flash kernel: no mask is
passed), no gradient checkpointing, fused AdamW, gradients of trainable tensors only, no KV cache. Each measurement is taken
in four variants, every one in a process of its own, and the fastest by its median step is the result:
  eager, compile   torch as it comes, without and with torch.compile. Its float32 products go to Intel's MKL.
  onednn, compile+onednn  the same with the linear layers' products sent to oneDNN, which torch also carries. On CPUs not made by
                   Intel MKL uses half the vector width, and this is up to twice as fast; on others it is about the same.
cpu_ms is the processor time of a step over all threads: beside other programs on the machine, with --threads 1, it is a
steadier measure than step_ms.

Sparse patterns are not measured: without a kernel for them dense masks are slower than this. Random tokens: time does not
depend on them. Prints JSON: a list of {task, context, variant, tokens_per_s, step_ms, best_step_ms, cpu_ms, peak_rss_mib} and the
fastest of each task and context. Needs torch, transformers, peft, a C++ compiler. Cost: about ten minutes on 2 cores.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

VARIANTS = ("eager", "compile", "onednn", "compile+onednn")
WARM_UP = 2


def load(model_directory: str, task: str):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    if task == "train":
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM",
                                                 target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
        for name, parameter in model.named_parameters():
            if "embed" in name or "norm" in name:
                parameter.requires_grad_(True)
    return model.train(task == "train")


def use_onednn_linears() -> None:
    """torch.nn.functional.linear, forward and backward, by oneDNN. Only needed gradients are computed."""
    import torch

    @torch.library.custom_op("peer::product", mutates_args=())  # opaque to torch.compile, which cannot trace oneDNN's
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # x [.., in] times weight [out, in] transposed
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    @product.register_fake
    def _(x, weight):
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return product(x, weight)

        @staticmethod
        def backward(ctx, d_y):
            x, weight = ctx.saved_tensors
            d_x = product(d_y, weight.t()) if ctx.needs_input_grad[0] else None
            d_weight = product(d_y.flatten(0, -2).t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
            return d_x, d_weight

    torch.nn.Linear.forward = lambda self, x: Linear.apply(x, self.weight)


def make_step(model, task: str, variant: str, ids):
    import torch

    forward = torch.compile(model, dynamic=False) if "compile" in variant else model
    if task == "eval":
        @torch.inference_mode()
        def evaluate():
            return forward(input_ids=ids, labels=ids).loss.item()

        return evaluate
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def train():
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return train


def measure(args, task: str, context: int, variant: str) -> dict:
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if "onednn" in variant:
        use_onednn_linears()
    model = load(args.model, task)
    step = make_step(model, task, variant, torch.randint(0, model.config.vocab_size, (1, context)))
    times, processor_times = [], []
    for _ in range(WARM_UP + args.steps):
        begin, processor_begin = time.perf_counter(), time.process_time()
        loss = step()
        times.append(time.perf_counter() - begin)
        processor_times.append(time.process_time() - processor_begin)
    median = statistics.median(times[WARM_UP:])
    return {"task": task, "context": context, "variant": variant, "tokens_per_s": round(context / median, 2),
            "step_ms": round(1e3 * median, 1), "best_step_ms": round(1e3 * min(times[WARM_UP:]), 1),
            "cpu_ms": round(1e3 * min(processor_times[WARM_UP:]), 1), "last_loss": loss,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def measure_in_a_process(args, task: str, context: int, variant: str):
    """None if the variant does not run here (torch.compile needs a compiler)."""
    command = [sys.executable, __file__, "--model", args.model, "--threads", str(args.threads), "--steps",
               str(args.steps), "--one", f"{task},{context},{variant}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{task} {context} {variant} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps(result), file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", default="512,1024")
    parser.add_argument("--steps", type=int, default=8, help="timed ones, after two to warm up")
    parser.add_argument("--tasks", default="train,eval")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--out", help="also write the JSON here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        task, context, variant = args.one.split(",")
        print(json.dumps(measure(args, task, int(context), variant)))
        return
    runs = [measure_in_a_process(args, task, int(context), variant)
            for task in args.tasks.split(",") for context in args.contexts.split(",")
            for variant in args.variants.split(",")]
    runs = [run for run in runs if run]
    if not runs:
        sys.exit("no variant ran")
    import torch
    import transformers

    fastest = {}
    for run in runs:
        key = f"{run['task']}-{run['context']}"
        if key not in fastest or run["step_ms"] < fastest[key]["step_ms"]:
            fastest[key] = run
    text = json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads,
                       "load_average": os.getloadavg()[0], "runs": runs, "fastest": fastest}, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
