#!/usr/bin/env python3
"""What forgetting costs: perplexity and passkey retrieval against the budget of the KV cache.

    python scripts/tables/cache_budget.py --model smollm2 --books DIR --out RUN      # DIR/heldout/*.txt
    python scripts/tables/cache_budget.py --model smollm2 --data SHARDS --out RUN    # made by `sinklora tokenize`

Three policies at each budget: h2o (half heavy hitters, half recent), streaming (the first tokens and the recent) and recent
(recent ones alone); a full cache is the 100 % of all three. Positions are the original ones everywhere, so that policies differ in
what they keep alone. Windows of DIR/heldout are spread evenly over its texts (scripts/assets/prepare_texts.py makes them).

A row that is in RUN/rows.jsonl, measured with the same settings, is not measured again, and --minutes stops before the row that
would end too late: start it again to go on. --dry-run prints the commands. RUN/cache_budget.md and the plots RUN/cache_budget-*.svg
are rewritten after every row. Python 3, nothing else.
"""
import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from miniature import Runner, texts  # noqa: E402
from miniature_report import svg  # noqa: E402
from paper_table import append_record, read_records  # noqa: E402



@dataclasses.dataclass
class Row:
    policy: str
    budget: float  # percent of the context
    options: list

    def named(self, known: dict) -> bool:
        return (known["policy"], known["budget"]) == (self.policy, self.budget)


def rows(args) -> list[Row]:
    """Full first: every other row is compared with it."""
    def cell(policy: str, budget: float) -> Row:
        kind = ["h2o"] if policy == "h2o" else ["streaming", "--cache-sinks", args.sinks if policy == "streaming" else 0]
        return Row(policy, budget, ["--cache", *kind, "--cache-budget", f"{budget / 100:.6f}", "--cache-positions", "original"])

    policies = ("h2o", "streaming", "recent")
    found = [Row("full", 100.0, ["--cache", "full", "--cache-positions", "original"])]
    found += [cell(policy, 100.0) for policy in policies if args.check_full]
    return found + [cell(policy, budget) for budget in args.budgets for policy in policies]


def fitting_chunk(chunk: int, context: int, budgets: list[float]) -> int:
    """A chunk sees itself whole, so one that is large against the budget would hide what a policy forgets."""
    smallest = round(context * min(budgets) / 100)
    return max(1, min(chunk, smallest // 4))


def windows(runner: Runner) -> pathlib.Path:
    """Shards of a row each, of which every so manieth is taken: windows from all texts, not from the first one alone."""
    args = runner.args
    if args.data:
        return args.data
    every = runner.tokenize("heldout", args.model, texts(args.books, "heldout", args.most), args.context, "--rows-per-shard", 1)
    chosen = runner.out / "data" / f"heldout-{args.context}-{args.windows}"
    shards = sorted(every.glob("*.h5"))
    if args.dry_run or chosen.exists():
        return chosen
    count = min(args.windows, len(shards))
    unfinished = chosen.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    for i in range(count):
        shard = shards[i * len(shards) // count]
        if not (unfinished / shard.name).exists():
            os.link(shard, unfinished / shard.name)
    unfinished.rename(chosen)
    return chosen


class Measurements:
    def __init__(self, runner: Runner, data: pathlib.Path):
        self.runner, self.args, self.data = runner, runner.args, data
        self.folder = runner.out / "eval"
        self.records = runner.out / "rows.jsonl"
        args = self.args
        self.settings = {"model": args.model.name, "context": args.context, "windows": None if args.data else args.windows,
                         "texts": args.most, "data": args.data and args.data.name, "chunk": args.chunk, "sinks": args.sinks,
                         "precision": args.precision, "depths": args.depths, "trials": args.trials, "lengths": args.passkey_lengths}
        self.known = [entry for entry in read_records(self.records) if entry["settings"] == self.settings]

    def measure(self, row: Row, *words) -> tuple[dict, float]:
        """The program's own record, and the seconds it took."""
        name = f"{row.policy}-{row.budget:g}-" + "-".join(str(w) for w in words[:2] if not str(w).startswith("--"))
        result = self.folder / f"{name}.json"
        begun = time.time()
        self.runner.run("eval", words[0], "--model", self.args.model, *words[2:], *row.options, *self.runner.device(), "--json", result,
                        log=self.folder / f"{name}.txt")
        return {} if self.args.dry_run else json.loads(result.read_text()), time.time() - begun

    def row(self, row: Row) -> None:
        args = self.args
        ppl, seconds = self.measure(row, "ppl", args.context, "--data", self.data, "--context", args.context, "--protocol", "blocks",
                                    "--batch", args.batch, "--cache-chunk", args.chunk)
        found, begun = {}, time.time()
        for length in args.passkey_lengths:
            found[str(length)], _ = self.measure(row, "passkey", length, "--cache-chunk", args.chunk, "--max-tokens", length, "--interval", length,
                                                 "--depths", args.depths, "--trials", args.trials)
        if args.dry_run:
            return
        entry = {"policy": row.policy, "budget": row.budget, "ppl": ppl["ppl"], "nll": ppl["nll"], "measured": ppl["windows"],
                 "tokens": ppl["tokens"], "late_ppl": late_perplexity(ppl), "seconds": round(seconds, 1),
                 "passkey": {length: record["accuracy"] for length, record in found.items()},
                 "passkey_tokens": {length: statistics.mean(c["tokens"] for c in record["cells"]) for length, record in found.items()},
                 "passkey_seconds": round(time.time() - begun, 1), "commit": ppl["commit"], "settings": self.settings}
        self.known.append(entry)
        append_record(self.records, entry)
        self.report()
        print(f"{row.policy} at {row.budget:g} %: ppl {ppl['ppl']:.4f}, passkey {entry['passkey']}, "
              f"{seconds + entry['passkey_seconds']:.1f} s", flush=True)

    def all(self, todo: list[Row]) -> None:
        longest = 0.0
        for row in todo:
            if any(row.named(entry) for entry in self.known):
                continue
            if time.time() + 1.2 * longest > self.runner.end:
                print(f"{self.args.minutes:g} minutes do not hold another row: start again for the rest")
                return
            begun = time.time()
            self.row(row)
            longest = max(longest, time.time() - begun)

    def report(self) -> None:
        (self.runner.out / "cache_budget.md").write_text(markdown(self.known))
        plots(self.known, self.runner.out)

    def full_is_full(self) -> bool:
        """A budget that evicts nothing must give what a full cache gives, bit for bit."""
        full, *others = [entry for entry in self.known if entry["budget"] == 100]
        for entry in others:
            same = (entry["nll"], entry["passkey"]) == (full["nll"], full["passkey"])
            print(f"{entry['policy']} at 100 %: {'the same as' if same else 'DIFFERS from'} a full cache")
        return all((entry["nll"], entry["passkey"]) == (full["nll"], full["passkey"]) for entry in others)


def late_perplexity(record: dict) -> float:
    """Of the second half of the windows, where every budget up to a half has begun to forget."""
    late = [bucket for bucket in record["by_position"] if 2 * bucket["begin"] >= record["context"] and bucket["tokens"] > 0]
    return math.exp(sum(b["nll"] * b["tokens"] for b in late) / sum(b["tokens"] for b in late))


def caption(entry: dict) -> str:
    s = entry["settings"]
    several = ", ".join(f"{tokens:,.0f}" for tokens in entry["passkey_tokens"].values())
    return (
        f"{s['model']}, {s['precision']}. Perplexity of {entry['measured']} windows of {s['context']:,} tokens of held-out text "
        f"({entry['tokens']:,} scored), each through a cache of its own in chunks of {s['chunk']} tokens: tokens of a chunk see what the "
        f"cache has kept and one another, then enter it. Second half: of each window, where all budgets up to a half have begun to forget. "
        f"A budget is a part of those {s['context']:,} tokens, and of a passkey prompt's own. "
        f"h2o: half heavy hitters, half recent; streaming: {s['sinks']} first tokens and recent; recent: recent alone. "
        f"Positions: original. Passkey: {s['depths']} depths, {s['trials']} trials each, prompts of {several} tokens in the same chunks. "
        "Seconds are of the perplexity, with loading the model.")


def markdown(known: list[dict]) -> str:
    """Policy by policy, budgets from large to small."""
    full = next(entry for entry in known if entry["policy"] == "full")
    lengths = list(full["passkey"])
    columns = ["cache", "budget", "perplexity", "against full", "second half", "against full", *[f"passkey {int(n):,}" for n in lengths], "seconds"]
    lines = [caption(full), "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    order = {policy: i for i, policy in enumerate(("full", "h2o", "streaming", "recent"))}
    for entry in sorted(known, key=lambda e: (order[e["policy"]], -e["budget"])):
        cells = [entry["policy"], f"{entry['budget']:g} %"]
        for key in ("ppl", "late_ppl"):
            cells += [f"{entry[key]:.2f}", "" if entry is full else f"{100 * (entry[key] / full[key] - 1):+.2f} %"]
        cells += [f"{100 * entry['passkey'][n]:.0f} %" for n in lengths]
        lines.append("| " + " | ".join([*cells, f"{entry['seconds']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def curves(known: list[dict], value) -> dict[str, list[tuple[float, float]]]:
    """A line each policy, all from the full cache's point on."""
    full = next(entry for entry in known if entry["policy"] == "full")
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in known:
        if entry["budget"] != 100:
            found.setdefault(entry["policy"], [(100.0, value(full))]).append((entry["budget"], value(entry)))
    return found


def plots(known: list[dict], folder: pathlib.Path) -> None:
    by_ppl = curves(known, lambda entry: entry["ppl"])
    if not by_ppl:
        return
    # Without the first tokens a model may fall apart, which would press all other lines flat.
    kept = [y for policy, line in by_ppl.items() for _, y in line if policy != "recent"]
    most = 1.3 * max(kept) if kept else float("inf")
    shown = {policy: [point for point in line if point[1] <= most] for policy, line in by_ppl.items()}
    beyond = shown != by_ppl
    title = "perplexity against cache budget" + (f" (points above {most:.3g} left out)" if beyond else "")
    (folder / "cache_budget-ppl.svg").write_text(svg(shown, title, "budget, % of the context", "perplexity"))
    for length in known[0]["passkey"]:
        lines = curves(known, lambda entry: 100 * entry["passkey"][length])  # noqa: B023
        (folder / f"cache_budget-passkey-{length}.svg").write_text(
            svg(lines, f"passkey retrieval against cache budget, {int(length):,} tokens", "budget, % of the prompt", "right answers, %"))


def numbers(kind):
    return lambda words: [kind(word) for word in words.split(",")]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="SmolLM2-135M, as scripts/assets/fetch_smollm2.py makes it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--books", type=pathlib.Path, help="texts: heldout/, of which --windows windows are measured")
    source.add_argument("--data", type=pathlib.Path, help="shards of --context tokens, measured whole")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--context", type=int, default=8192, help="of perplexity")
    parser.add_argument("--windows", type=int, default=40, help="of --books, for perplexity")
    parser.add_argument("--batch", type=int, default=8, help="windows at once")
    parser.add_argument("--budgets", type=numbers(float), default=[50.0, 20.0, 10.0], help="percent, below 100 (50,20,10)")
    parser.add_argument("--sinks", type=int, default=4, help="of streaming")
    parser.add_argument("--chunk", type=int, default=128, help="tokens that enter the cache at once; lowered to a quarter of the least budget")
    parser.add_argument("--passkey-lengths", type=numbers(int), default=[2048, 4096], help="tokens, roughly (2048,4096)")
    parser.add_argument("--depths", type=int, default=5, help="of the passkey")
    parser.add_argument("--trials", type=int, default=10, help="of each length and depth")
    parser.add_argument("--check-full", action="store_true", help="measure every policy at 100 %% too; fails where it differs from a full cache")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build-cuda/sinklora"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--minutes", type=float, default=29)
    parser.add_argument("--most", type=int, help="texts, for rehearsals")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    return parser


def main() -> None:
    parser = options()
    args = parser.parse_args()
    if not all(0 < budget < 100 for budget in args.budgets):
        parser.error("--budgets: wanted percents above 0 and below 100")
    chunk = fitting_chunk(args.chunk, args.context, args.budgets)
    if chunk < args.chunk:
        print(f"--chunk {args.chunk} is more than a quarter of {min(args.budgets):g} % of {args.context} tokens: {chunk} instead")
    args.chunk = chunk
    runner = Runner(args)
    try:
        found = Measurements(runner, windows(runner))
        found.all(rows(args))
    except subprocess.TimeoutExpired:
        print(f"{args.minutes:g} minutes are over: start again for the rest")
    if args.dry_run or not found.known:
        return
    found.report()
    print(found.runner.out.joinpath("cache_budget.md").read_text())
    if args.check_full and not found.full_is_full():
        sys.exit(1)


if __name__ == "__main__":
    main()
