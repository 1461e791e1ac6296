#!/usr/bin/env python3
"""The tables in miniature: what each pattern of attention costs in perplexity when a model is stretched to 4 times its context.

    python scripts/tables/miniature.py A --books DIR --tokenizer tokenizer.model --out RUN     # 41M LLaMA, 1024 -> 4096
    python scripts/tables/miniature.py B --books DIR --maths DIR --model smollm2 --out RUN     # SmolLM2-135M, 8k -> 32k

A pretrains a LLaMA of 41.7M parameters on novels at context 1024 (every weight), then extends it to 4096. B extends
SmolLM2-135M, trained at 8192, to 32,768 on novels and mathematics. Both by position interpolation (x4), a row for every pattern,
evaluated with full attention on held-out texts. In B interpolation hurts the model so much that the rows, which are short, cannot
mend it: first every weight settles into the new positions, on rows of 4096; every row goes on from there. DIR holds train/ and heldout/, as scripts/assets/prepare_texts.py makes them.

Rows are run in the order of their weight; a row that is in RUN/rows.jsonl is not run again, and --minutes stops before the row that
would end too late: start it again to go on, with the same settings and inputs, which RUN/settings.json holds. --dry-run prints the
commands. RUN/table.md is rewritten after every row; a row says with which commit, precision and data it was measured.
Cost: A 8 minutes on one H100 (0.13 GPU-hours), B 28, of which the first four rows take 8. Python 3, nothing else.
"""
import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from miniature_report import markdown  # noqa: E402
from paper_table import Commands, append_record, identity, read_records, training_summary  # noqa: E402

MODEL_A = {  # 41.7M parameters with tied embeddings
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1376,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 1024, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": True, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2}


@dataclasses.dataclass
class Row:
    name: str
    options: str  # of `train`
    seed: int = 1
    trainable: str = "lora+"
    scaling: str = "linear:4"  # another one starts from the untuned model


def rows(table: str) -> list[Row]:
    """Main rows first. sf: rho 1/4, groups of a quarter of the context, 4 sinks, unless said otherwise."""
    def sf(sinks: int, rho: float = 0.25, ratio: float = 0.25) -> str:
        return f"--attention sf --sinks {sinks} --shifted-heads {rho} --group-ratio {ratio}"

    main = [Row("full", "--attention full"), Row("s2", "--attention s2"), Row("sf-4", sf(4)), Row("sf-64", sf(64))]
    others = [
        Row("sf-256", sf(256)), Row("fixed", "--attention fixed"), Row("sf-16", sf(16)), Row("sf-1", sf(1)),
        Row("S&R only", sf(0)), Row("s2-wrap", "--attention s2-wrap"),
        Row("sf-64, rho 1/2", sf(64, 0.5)), Row("sf-4, rho 0", sf(4, 0)), Row("sf-4, rho 1/2", sf(4, 0.5)),
        Row("sf-4, groups 1/2", sf(4, ratio=0.5)), Row("sf-4, groups 1/8", sf(4, ratio=0.125)),
        Row("sf-64, groups 1/2", sf(64, ratio=0.5)), Row("sf-256, rho 1/2", sf(256, 0.5)),
        Row("sf-4, LoRA", sf(4), trainable="lora"), Row("sf-4, every weight", sf(4), trainable="full"),
        Row("full, every weight", "--attention full", trainable="full")]
    again = [dataclasses.replace(row, seed=2) for row in main]
    yarn = Row("sf-64, YaRN x4, not settled", sf(64), scaling="yarn:4")
    return main + again + others if table == "A" else main + [yarn] + others[:4] + again + others[4:]


class Runner(Commands):
    def __init__(self, args):
        self.args, self.out = args, args.out
        super().__init__(args.program, args.dry_run, time.time() + 60 * args.minutes)

    def tokenize(self, name: str, tokenizer, texts: list[pathlib.Path], context: int, *options) -> pathlib.Path:
        shards = self.out / "data" / f"{name}-{context}"
        if not (shards / "data_params.json").exists():
            self.run("tokenize", "--tokenizer", tokenizer, "--input", *texts, "--format", "text", "--context", context, "--out",
                     shards, *options, log=self.out / "log" / "tokenize.txt")
        return shards

    def device(self) -> list[str]:
        return ["--device", self.args.device, "--precision", self.args.precision]

    def evaluate(self, model, adapter, scaling: str, lengths: dict[str, list[int]], log: pathlib.Path) -> dict:
        """Perplexities {text: {context: }}, and how they were measured; some processes at a time."""
        def one(text: str, context: int):
            result = log.parent / f"{log.stem}-{text}-{context}.json"
            self.run("eval", "ppl", "--model", model, *(["--adapter", adapter] if adapter else ["--rope-scaling", scaling]),
                     "--data", self.out / "data" / f"{text}-{context}", "--context", context, "--protocol", "blocks", *self.device(),
                     "--json", result, log=log.with_suffix(f".{text}-{context}.txt"))
            return text, context, None if self.args.dry_run else json.loads(result.read_text())

        found: dict = {text: {} for text in lengths}
        how: dict = {"model": model.name, "adapter": adapter and adapter.name, "data_hash": {}}
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            tasks = [pool.submit(one, text, n) for text, contexts in lengths.items() for n in sorted(contexts, reverse=True)]
            for task in tasks:
                text, context, result = task.result()
                if result:
                    found[text][str(context)] = result["ppl"]
                    how |= {name: result.get(name) for name in ("protocol", "attention", "rope_scaling", "precision", "device", "commit")}
                    how["data_hash"][f"{text}-{context}"] = result.get("data_hash")
        return {"ppl": found, "eval": how}

    def train(self, row: Row, model, data, out: pathlib.Path, settings: list) -> dict:
        self.run("train", "--model", model, "--data", data, "--out", out, *row.options.split(), "--trainable", row.trainable,
                 "--seed", row.seed, *settings, *self.device(), "--recompute", "auto", "--log-every", 50, "--save-every", 0,
                 "--resume", "auto", log=self.out / "log" / f"{out.name}.txt")
        return {"step_ms": 0, "mem_gib": 0} if self.args.dry_run else training_summary(out)

    def table(self, todo: list[Row], model, untuned: dict[str, tuple], data, settings: dict[str, list], lengths: dict) -> None:
        """Rows go on from `model`. `untuned`: models that are measured as they are, {row: (model, RoPE scaling)}; first the untuned one."""
        records = self.out / "rows.jsonl"
        known = read_records(records)

        def record(entry: dict) -> None:
            known.append(entry)
            if self.args.dry_run:
                return
            append_record(records, entry)
            (self.out / "table.md").write_text(markdown(known, list(lengths)))

        def file_name(name: str) -> str:
            return "".join(c if c.isalnum() else "-" for c in name)

        for name, (start, scaling) in untuned.items():
            if not any(entry["row"] == name for entry in known):
                record({"row": name, "seed": 0, **self.evaluate(start, None, scaling, lengths, self.out / "eval" / file_name(name))})
        first = next(iter(untuned.values()))[0]
        longest = 0.0
        for row in todo:
            if any(entry["row"] == row.name and entry["seed"] == row.seed for entry in known):
                continue
            if time.time() + 1.2 * longest > self.end:
                print(f"{self.args.minutes} minutes do not hold another row: start again for the rest")
                break
            begun = time.time()
            name = f"{file_name(row.name)}-{row.seed}"
            start = model if row.scaling == "linear:4" else first
            out = self.out / "runs" / name  # which stands for its newest checkpoint
            trained = self.train(row, start, data, out, [*settings[row.trainable], "--rope-scaling", row.scaling])
            if row.trainable == "full":
                measured = self.evaluate(out, None, "auto", lengths, self.out / "eval" / name)
            else:
                measured = self.evaluate(start, out, "", lengths, self.out / "eval" / name)
            record({"row": row.name, "seed": row.seed, "trainable": row.trainable, "options": row.options, **trained, **measured})
            longest = max(longest, time.time() - begun)
            if not self.args.dry_run:
                print(f"{row.name}, seed {row.seed}: {measured['ppl']} in {time.time() - begun:.1f} s", flush=True)


def keep_settings(args) -> None:
    """What RUN was begun with, names of folders aside: rows of other settings or inputs would stand in one table with the old ones.
    A dry run only compares."""
    def content(path: pathlib.Path) -> str:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        return hashlib.sha256(repr([(str(file.relative_to(path)), identity(file)) for file in files]).encode()).hexdigest()[:16]

    asked = {name: getattr(args, name) for name in ("table", "steps", "before", "shrink", "most", "precision")}
    asked |= {name: content(path) for name in ("books", "maths", "tokenizer", "model") if (path := getattr(args, name))}
    kept = args.out / "settings.json"
    if not kept.exists():
        if args.dry_run:
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asked, indent=1) + "\n")
    for name, before in json.loads(kept.read_text()).items():
        if before != asked.get(name):
            sys.exit(f"{kept}: --{name} was {before} when {args.out} was begun, and is {asked.get(name)} now; rows of both would be "
                     "mixed: go on with what it was, or take another --out")


def texts(folder: pathlib.Path, part: str, most: int | None = None) -> list[pathlib.Path]:
    found = sorted((folder / part).iterdir())
    if not found:
        sys.exit(f"{folder / part}: no texts; scripts/assets/prepare_texts.py makes them")
    return found[:most]


def table_a(runner: Runner) -> None:
    args, scale = runner.args, runner.args.shrink
    short, context = 1024 // scale, 4096 // scale
    model = runner.out / "model"
    if not args.dry_run:
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(json.dumps(MODEL_A | {"max_position_embeddings": short}, indent=1))
        (model / "tokenizer.model").write_bytes(args.tokenizer.read_bytes())
    short_data = runner.tokenize("train", model, texts(args.books, "train", args.most), short)
    data = runner.tokenize("train", model, texts(args.books, "train", args.most), context)
    contexts = [context, context // 2, short]
    for n in contexts:
        runner.tokenize("novels", model, texts(args.books, "heldout", args.most), n)
    batch = 64 * 1024 // short // (1 if scale == 1 else 64)
    base = runner.out / "runs" / "base"
    runner.train(Row("base", "--attention full", trainable="full"), model, short_data, base,
                 ["--init", "random", "--context", short, "--rope-scaling", "none", "--batch", batch, "--steps", args.before, "--lr", 2e-3,
                  "--warmup", 60, "--schedule", "cosine", "--weight-decay", 0.1])
    common = ["--context", context, "--batch", 8 if scale == 1 else 1, "--steps", args.steps, "--warmup", 20]
    settings = {kind: [*common, "--lr", rate] for kind, rate in {"lora": 1e-3, "lora+": 1e-3, "full": 5e-4}.items()}
    runner.table(rows("A"), base, {"untuned": (base, "none"), "untuned, PI x4": (base, "linear:4")}, data, settings, {"novels": contexts})


def table_b(runner: Runner) -> None:
    args = runner.args
    context = 32768 // args.shrink
    contexts = [context >> shift for shift in range(5)]
    train = [*texts(args.books, "train", args.most), *texts(args.maths, "train", args.most)]
    data = runner.tokenize("train", args.model, train, context)
    for n in contexts:
        runner.tokenize("novels", args.model, texts(args.books, "heldout", min(4, args.most or 4)), n)
        runner.tokenize("maths", args.model, texts(args.maths, "heldout", args.most), n)
    short = context // 8
    short_data = runner.tokenize("train", args.model, train, short)

    def settled(name: str, scaling: str) -> pathlib.Path:
        out = runner.out / "runs" / name
        runner.train(Row(name, "--attention full", trainable="full"), args.model, short_data, out,
                     ["--context", short, "--rope-scaling", scaling, "--batch", 16 if args.shrink == 1 else 2, "--steps", args.before,
                      "--lr", 1e-3, "--warmup", 100, "--schedule", "cosine", "--weight-decay", 0.1])
        return out

    base = settled("settled", "linear:4")
    untuned = {"untuned": (args.model, "none"), "untuned, PI x4": (args.model, "linear:4"), "settled, PI x4": (base, "auto")}
    common = ["--context", context, "--batch", 2 if args.shrink == 1 else 1, "--steps", args.steps, "--warmup", 5, "--schedule", "cosine"]
    settings = {kind: [*common, "--lr", rate] for kind, rate in {"lora": 1e-4, "lora+": 1e-4, "full": 5e-5}.items()}
    lengths = {"novels": contexts, "maths": contexts}
    runner.table(rows("B"), base, untuned, data, settings, lengths)
    # What the same texts and steps do without interpolation: how much of a row's gain is adaptation to them.
    if args.dry_run or time.time() + 120 < runner.end:
        runner.table([], base, {"settled, no PI": (settled("settled-no-pi", "none"), "none")}, data, settings, lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["A", "B"])
    parser.add_argument("--books", type=pathlib.Path, required=True, help="novels: train/ and heldout/")
    parser.add_argument("--maths", type=pathlib.Path, help="B: mathematics, likewise")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="A: LLaMA-2's tokenizer.model")
    parser.add_argument("--model", type=pathlib.Path, help="B: SmolLM2-135M, as scripts/assets/fetch_smollm2.py makes it")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build-cuda/sinklora"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--minutes", type=float, default=29)
    parser.add_argument("--steps", type=int, help="of the extension (A: 200, B: 40)")
    parser.add_argument("--before", type=int, help="steps of 65,536 tokens before: A's base, at 1024 (1000); B's settling, at 4096 (400)")
    parser.add_argument("--jobs", type=int, default=3, help="evaluations at a time")
    parser.add_argument("--shrink", type=int, default=1, help="contexts divided by this, for rehearsals")
    parser.add_argument("--most", type=int, help="texts of each part, for rehearsals")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    args = parser.parse_args()
    if args.table == "A" and not args.tokenizer:
        parser.error("A needs --tokenizer")
    if args.table == "B" and not (args.maths and args.model):
        parser.error("B needs --maths and --model")
    args.steps = args.steps or {"A": 200, "B": 40}[args.table]
    args.before = args.before or {"A": 1000, "B": 400}[args.table]
    keep_settings(args)
    runner = Runner(args)
    try:
        (table_a if args.table == "A" else table_b)(runner)
    except subprocess.TimeoutExpired:
        print(f"{args.minutes} minutes are over: start again for the rest")
    if (runner.out / "table.md").exists():
        print((runner.out / "table.md").read_text())


if __name__ == "__main__":
    main()
