#!/usr/bin/env python3
"""How fast the reference stack is on this GPU, as an expert would set it up: what `sinklora bench` is compared with.

    python scripts/compare/time_gpu_peer.py --attention [--contexts 8192,16384,32768] [--out FILE]
    python scripts/compare/time_gpu_peer.py --step [--contexts 8192] [--checkpointing] [--pattern s2-wrap|full] [--out FILE]
    python scripts/compare/time_gpu_peer.py --attention --step --device cpu --tiny      # tries all of its logic in a minute

--attention: torch's scaled_dot_product_attention forced to FlashAttention-2 ("flash") and to cuDNN ("cudnn"), causal, H = 32,
D = 128, bf16: whole sequences, and groups of a quarter of the context as a batch of four. Forward keeps what the backward
needs; the backward is timed by itself. TFLOP/s over visible pairs: 4 D a pair and head forward, 10 D backward. Times are CUDA
events, the median of --repeat after three calls, going round over two sets of inputs.

--step: a training step of the LLaMA-2-7B shape, random bf16 weights made on the GPU, batch 1: PEFT LoRA rank 8, alpha 16 on
q, k, v, o; embeddings and norms trainable; gradient clipping; fused AdamW. Attention is S2-Attn as LongLoRA's Algorithm 1 has it, with
the wrap ("s2-wrap"): the upper half of the heads rolled by half a group, groups as a batch. (Its first half group sees the last
one; keeping them apart takes a second call of the kernel.) Tuned: cuDNN attention (FlashAttention-2 where that does not run);
torch.compile of the decoder layer (one compilation serves all layers) and of head with loss; adapters, trained weights and
Adam's moments in bf16, which is less traffic and memory than f32 masters. --checkpointing recomputes every layer. Peak memory is the
allocator's, allocated and reserved.

Prints one JSON object a line; a part that fails prints one with "error" and the next goes on. Needs torch, transformers, peft. Cost on an
H100: about half a minute for --attention, and for each context of --step, most of it compilation.
"""
import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import time

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
WARM_UP = 3


class Report:
    def __init__(self, path: str | None):
        self.file = open(path, "a") if path else None

    def line(self, result: dict) -> None:
        text = json.dumps(result)
        print(text, flush=True)
        if self.file:
            self.file.write(text + "\n")
            self.file.flush()

    @contextlib.contextmanager
    def guarded(self, **what):
        self.failed = None
        try:
            yield
        except Exception as error:  # an option that this build or GPU lacks, or memory
            self.failed = type(error).__name__
            self.line(what | {"error": f"{self.failed}: {str(error).splitlines()[0] if str(error) else ''}"})


class Clock:
    """Milliseconds of each of some calls, on the device."""

    def __init__(self, device: str):
        import torch

        self.cuda = torch.cuda if device == "cuda" else None

    def times(self, calls) -> list[float]:
        if not self.cuda:
            times = []
            for call in calls:
                begin = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - begin))
            return times
        events = []
        for call in calls:
            pair = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
            pair[0].record()
            call()
            pair[1].record()
            events.append(pair)
        self.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def median(self, call, repeat: int) -> float:
        """call(i), with i counting up."""
        self.times([lambda i=i: call(i) for i in range(WARM_UP)])
        return statistics.median(self.times([lambda i=i: call(i) for i in range(repeat)]))


def attention_inputs(args, batch: int, length: int, heads: int, dim: int) -> list:
    import torch

    def numbers(grad: bool):  # [B, H, N, D] in the memory of [B, N, H, D], as linear layers leave it
        x = torch.randn(batch, length, heads, dim, device=args.device, dtype=torch.bfloat16).transpose(1, 2)
        return x.requires_grad_(grad)

    return [([numbers(True) for _ in "qkv"], numbers(False)) for _ in range(2)]


def time_attention(args, report: Report, backend: str, layout: str, context: int) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, dim = (2, 16) if args.tiny else (32, 128)
    batch, length = (4, context // 4) if layout == "groups" else (1, context)
    kind = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[backend]
    inputs = attention_inputs(args, batch, length, heads, dim)
    pairs = batch * heads * length * (length + 1) / 2
    clock = Clock(args.device)

    def forward(i: int):
        return torch.nn.functional.scaled_dot_product_attention(*inputs[i % 2][0], is_causal=True)

    with sdpa_kernel(kind):
        forward_ms = clock.median(forward, args.repeat)
        outputs = [forward(0), forward(1)]
        backward_ms = clock.median(
            lambda i: torch.autograd.grad(outputs[i % 2], inputs[i % 2][0], inputs[i % 2][1], retain_graph=True), args.repeat)
    for direction, ms, operations in (("forward", forward_ms, 4 * dim * pairs), ("backward", backward_ms, 10 * dim * pairs)):
        report.line({"what": "attention", "backend": backend, "layout": layout, "direction": direction, "batch": batch,
                     "heads": heads, "context": context, "head_dim": dim, "ms": round(ms, 4),
                     "tflops": round(operations / ms * 1e-9, 4), "device": args.device, "torch": torch.__version__})


def s2_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """transformers' contract: q, k, v [B, H, N, D] in, [B, N, H, D] out."""
    import torch

    length, heads, group = query.shape[2], query.shape[1], module.config.s2_group
    half, repeats = heads // 2, heads // key.shape[1]

    def roll_upper_half(x, shift: int):  # [B, N, H, D]
        return torch.cat([x[:, :, :half], x[:, :, half:].roll(shift, dims=1)], dim=2)

    def grouped(x):
        x = roll_upper_half(x.transpose(1, 2), -(group // 2))
        return x.reshape(-1, group, heads, x.shape[-1]).transpose(1, 2)

    if group == length:  # full attention
        query, key, value = (x if x.shape[1] == heads else x.repeat_interleave(repeats, 1) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None
    key, value = (x if repeats == 1 else x.repeat_interleave(repeats, 1) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(grouped(query), grouped(key), grouped(value), is_causal=True,
                                                           scale=scaling)
    out = out.transpose(1, 2).reshape(query.shape[0], length, heads, -1)
    return roll_upper_half(out, group // 2), None


def build_model(args, context: int):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

    AttentionInterface.register("peer_s2", s2_attention)
    AttentionMaskInterface.register("peer_s2", lambda *_, **__: None)
    size = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, vocab_size=128) if args.tiny else {}
    config = LlamaConfig(**({"max_position_embeddings": context, "use_cache": False} | size))  # its defaults are LLaMA-2-7B's
    config.s2_group = context if args.pattern == "full" else context // 4
    config._attn_implementation = "peer_s2"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(args.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    adapters = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    peft = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    for name, parameter in peft.named_parameters():
        if "embed" in name or "norm" in name:
            parameter.requires_grad_(True)
    model.train()
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def head_loss(hidden, weight, targets):
    import torch

    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight).float(), targets)


def time_step(args, report: Report, context: int, kernel: str) -> None:
    import torch

    torch.manual_seed(0)
    model = build_model(args, context)
    loss_of = head_loss
    torch._dynamo.utils.counters.clear()
    if args.compile != "none":
        torch._dynamo.reset()
        loss_of = torch.compile(head_loss, dynamic=False)
        if args.compile == "layers":
            for layer in model.model.layers:
                layer.compile(dynamic=False)
        else:
            model.model.compile(dynamic=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (1, context), device=args.device)
    targets = torch.cat([ids[0, 1:], ids.new_full((1,), -100)])
    losses = []

    def step(_: int) -> None:
        hidden = model.model(input_ids=ids).last_hidden_state
        loss = loss_of(hidden[0], model.lm_head.weight, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    begin = time.perf_counter()
    step(0)
    if args.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    first = time.perf_counter() - begin
    ms = Clock(args.device).median(step, args.steps)
    gpu = torch.cuda if args.device == "cuda" else None
    report.line({"what": "step", "shape": "tiny" if args.tiny else "llama2-7b", "context": context, "attention": args.pattern,
                 "kernel": kernel, "checkpointing": args.checkpointing, "compile": args.compile,
                 "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
                 "trained_elements": sum(p.numel() for p in trainable), "tokens_per_s": round(1e3 * context / ms, 1),
                 "step_ms": round(ms, 2), "first_step_s": round(first, 1),
                 "peak_allocated_gib": round(gpu.max_memory_allocated() / 2**30, 2) if gpu else None,
                 "peak_reserved_gib": round(gpu.max_memory_reserved() / 2**30, 2) if gpu else None,
                 "first_loss": float(losses[0]), "last_loss": float(losses[-1]), "device": args.device,
                 "torch": torch.__version__})


def force_kernel(name: str) -> None:
    """For the steps: globally, because a context manager inside a compiled layer would cut its graph."""
    import torch

    for other in ("cudnn", "flash", "mem_efficient", "math"):
        getattr(torch.backends.cuda, f"enable_{other}_sdp")(other == name)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--contexts", help="8192,16384,32768 for --attention, 8192 for --step")
    parser.add_argument("--pattern", choices=["s2-wrap", "full"], default="s2-wrap", help="of --step")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", choices=["layers", "whole", "none"], default="layers")
    parser.add_argument("--repeat", type=int, default=11, help="timed calls of --attention")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of --step")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script itself")
    parser.add_argument("--out", help="also append the lines here")
    args = parser.parse_args()
    if not args.attention and not args.step:
        parser.error("nothing to do: give --attention, --step or both")
    return args


def main() -> None:
    args = parse_arguments()
    report = Report(args.out)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU; --device cpu --tiny tries the script without one")

    def contexts(default: str) -> list[int]:
        numbers = [int(n) for n in (args.contexts or ("64" if args.tiny else default)).split(",")]
        for number in numbers:
            if number % 8 != 0:
                sys.exit(f"--contexts {number}: four groups that are shifted by half take a multiple of 8")
        return numbers

    def clean() -> None:
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()

    if args.attention:
        for context in contexts("8192,16384,32768"):
            for layout in ("full", "groups"):
                for backend in ("flash", "cudnn"):
                    with report.guarded(what="attention", backend=backend, layout=layout, context=context):
                        time_attention(args, report, backend, layout, context)
                    clean()
    if args.step:
        for context in contexts("8192"):
            for kernel in ("cudnn", "flash"):  # the second where the first does not run
                if args.device == "cuda":
                    force_kernel(kernel)
                with report.guarded(what="step", context=context, attention=args.pattern, kernel=kernel,
                                    checkpointing=args.checkpointing, compile=args.compile):
                    time_step(args, report, context, kernel if args.device == "cuda" else "torch's choice")
                clean()
                if report.failed in (None, "OutOfMemoryError"):
                    break


if __name__ == "__main__":
    main()
