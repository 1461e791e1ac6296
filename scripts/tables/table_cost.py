"""GPU-hours of trainings and evaluations: tokens over measured rates.

Measured (docs/benchmarks.md): LLaMA-2-7B, LoRA+, bf16, one H100. Worked out, not measured: full attention beyond 8,192 tokens, from its
own rate and what the rest of a step takes; other models, from their weights; an evaluation, a forward pass alone, at three times the rate
of training with the pattern that it is done with. The numbers of tokens of evaluation files are estimates as well.
"""
SPARSE = {8192: 19000, 16384: 18000, 32768: 12700, 65536: 10700, 98304: 8670}  # s2, fixed, sf: tokens/s
FULL = {8192: 15000, 16384: 11800, 32768: 7300, 65536: 4750, 98304: 3450}  # measured at 8,192
WEIGHTS = {"Llama-2-7b-hf": 1.0, "Llama-2-13b-hf": 0.52, "Meta-Llama-3-8B": 0.9}  # rate over that of LLaMA-2-7B
# PG19: words of the split, times 1.4. proof-pile: LongLoRA's 128 documents of at least 32,768 tokens.
TOKENS = {"pg19/validation": 4.2e6, "pg19/test": 9.8e6, "proof-pile/test_sampled_data": 4.2e6}
SFT_RECORDS, SFT_TOKENS = 28000, 8000  # LongAlpaca-plus; tokens of a record are a guess
CACHED = 8000  # tokens/s through a cache in chunks of 32: a guess
RETRIEVAL_TRIALS = {"topics": 50, "passkey": 10}


def rate(context: int, options: str, model: str) -> float:
    full = "--attention" not in options or "--attention full" in options
    measured = FULL if full else SPARSE
    return WEIGHTS[model] * measured[min((n for n in measured if n >= context), default=max(measured))]


def training(run) -> float:
    tokens = run.epochs * SFT_RECORDS * min(SFT_TOKENS, run.context) if run.epochs else run.steps * run.batch * run.context
    # 6 operations a token and weight instead of 4.
    return tokens / rate(run.context, run.options, run.model) / (2 / 3 if run.trainable == "full" else 1) / 3600


def evaluation(run, column, test: str, protocol: str, stride: int) -> float:
    speed = 3 * rate(column.context, test, run.model)
    if column.kind == "speed":
        return 0.02
    if column.kind in RETRIEVAL_TRIALS:
        return RETRIEVAL_TRIALS[column.kind] * column.context / speed / 3600
    tokens = TOKENS[column.data]
    if "--cache " in test:
        return tokens / CACHED / 3600
    return (tokens if protocol == "blocks" else tokens / stride * column.context) / speed / 3600
