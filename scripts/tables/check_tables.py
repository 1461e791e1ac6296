#!/usr/bin/env python3
"""Checks the scripts of the papers' tables without a large model, a text or a GPU; some seconds.

    python scripts/tables/check_tables.py --program build/sinklora

Of each script, with folders that hold nothing: the commands of --dry-run have a verb and options that the program's --help knows, words
it allows and everything it requires; a dry run leaves every file as it was; the cost in the script's header is what the dry run adds up;
published numbers stand in cells that the table has. With a stand-in for the program: a second run calls it for nothing, a run whose last
record is lost calls it once, a program that fails leaves no record, and records of another precision, other data or
another model are not taken, and those of a folder that was moved are, by a dry run as by a run. The program itself, with assets/tiny-llama, runs a table by
--protocol blocks; without shards of every context nothing is begun.
The published numbers of SinkLoRA's table 7 make its 92 % and 39 %. docs/results/paper_tables.md has every script, with what it costs.
miniature.py's commands are checked as well, and docs/results against its raw rows: tables and plots, which are well-formed XML. Prints every breach; exit code 1 if there is one.
"""
import argparse
import array
import collections
import contextlib
import importlib
import io
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent
TINY = HERE.parents[1] / "assets" / "tiny-llama"
sys.path.insert(0, str(HERE))
import cache_budget  # noqa: E402
import miniature_report  # noqa: E402
import paper_table  # noqa: E402

MODELS = ("Llama-2-7b-hf", "Llama-2-13b-hf", "Meta-Llama-3-8B")
DATA = ("redpajama.bin", "longalpaca-plus.json", "long-prompt.txt", "pg19/validation.bin", "pg19/test.bin", "proof-pile/test_sampled_data.bin",
        "llama3/pg19/validation-4096/0.h5", "llama3/pg19/test/0.h5", "llama3/pg19/validation/0.h5", "llama3/proof-pile/test_sampled_data/0.h5",
        "llama3/redpajama-8192/0.h5", "llama3/redpajama-16384/0.h5", "books/train/a.txt", "books/heldout/b.txt")
STAND_IN = """#!/bin/sh
echo "$*" >>"$(dirname "$0")/calls"
verb=$1
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2 ;; --json) json=$2 ;; esac
  shift
done
if [ "$verb" = train ]; then
  mkdir -p "$out"
  echo '{"step_ms": 1, "mem_gib": 1, "loss": 1, "tokens": 1}' >"$out/metrics.jsonl"
  echo step-00001000 >"$out/latest"
fi
[ -z "$json" ] || echo '{"ppl": 8.5, "accuracy": 0.5, "decode_tokens_per_s": 30}' >"$json"
"""
breaches: list[str] = []


def say(breach: str) -> None:
    breaches.append(breach)
    print(breach, flush=True)


class Options:
    """What a verb's --help says: {name: allowed words}, and the names that must be given."""

    def __init__(self, program: pathlib.Path, verb: str):
        text = subprocess.run([program, *verb.split(), "--help"], capture_output=True, text=True, check=True).stdout
        self.words: dict[str, set] = {}
        self.required, self.flags = set(), set()
        for line in text.split("Examples:")[0].splitlines():
            found = re.match(r" +((?:-\w,)?--[a-z0-9-]+(?:,--[a-z0-9-]+)*)(\{false\})?( .*)?$", line)
            if not found:
                continue
            rest = found[3] or ""
            names = [name for name in found[1].split(",") if name.startswith("--")]
            allowed = re.match(r" [A-Z|]+:\{([^}]*)\}", rest)
            for name in names:
                self.words[name] = set(allowed[1].split(",")) if allowed else set()
                if found[2] or not re.match(r" \S", rest) or rest.startswith(" Excludes"):
                    self.flags.add(name)
            if re.match(r" \S+( \.\.\.)? REQUIRED", rest):
                self.required.add(names[0])


class Program:
    def __init__(self, path: pathlib.Path):
        self.path, self.verbs = path, {}

    def check(self, script: str, line: str) -> None:
        words = shlex.split(line)[1:]
        verb = " ".join(words[:2] if words[0] == "eval" else words[:1])
        if verb not in self.verbs:
            try:
                self.verbs[verb] = Options(self.path, verb)
            except subprocess.CalledProcessError:
                return say(f"{script}: the program has no verb '{verb}'")
        options, given, last = self.verbs[verb], set(), ""
        for word in words[len(verb.split()):]:
            if word.startswith("--"):
                last = word
                given.add(word)
                if word not in options.words:
                    say(f"{script}: `{verb}` has no option {word}")
            elif not last or last in options.flags:
                say(f"{script}: '{word}' belongs to no option in: {line}")
            elif options.words.get(last) and word not in options.words[last]:
                say(f"{script}: `{verb} {last}` does not take '{word}'")
        for name in sorted(options.required - given):
            say(f"{script}: `{verb}` without {name}: {line}")


def files(folder: pathlib.Path) -> dict:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


class Scripts:
    def __init__(self, program: Program, folder: pathlib.Path):
        self.program, self.folder = program, folder
        for name in MODELS:
            (folder / "models" / name).mkdir(parents=True)
            (folder / "models" / name / "config.json").write_text("{}")
            (folder / "models" / name / "model.safetensors").write_text(f"weights of {name}")
        for name in DATA:
            path = folder / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        (folder / "bin").mkdir()
        self.stand_in = folder / "bin" / "program"
        self.stand_in.write_text(STAND_IN)
        self.stand_in.chmod(0o755)
        self.calls = folder / "bin" / "calls"

    def run(self, script: str, program, out: str, *more) -> subprocess.CompletedProcess:
        words = [sys.executable, HERE / f"{script}.py", "--models", self.folder / "models", "--data", self.folder / "data", "--out",
                 self.folder / out, "--program", program, *more]
        return subprocess.run(words, capture_output=True, text=True, env={"PYTHONDONTWRITEBYTECODE": "1"})

    def dry(self, script: str, *more) -> tuple[list[str], str]:
        """Commands, and the line of the cost."""
        before = files(self.folder)
        ended = self.run(script, self.program.path, "out-dry", "--dry-run", *more)
        if ended.returncode or not ended.stdout:
            say(f"{script}: --dry-run ended with {ended.returncode}: {ended.stderr[-500:]}")
            return [], ""
        if files(self.folder) != before:
            say(f"{script}: --dry-run has changed files: {sorted(map(str, set(files(self.folder)) ^ set(before)))}")
        *commands, cost = ended.stdout.splitlines()
        for line in commands:
            self.program.check(script, line)
        return commands, cost

    def called(self) -> int:
        calls = len(self.calls.read_text().splitlines()) if self.calls.exists() else 0
        self.calls.unlink(missing_ok=True)
        return calls

    def check_dry(self, script: str, header: str) -> None:
        if not self.dry(script)[0]:
            say(f"{script}: no commands")
        self.dry(script, "--every-weight", "--s2", "s2-wrap", "--protocol", "distributed")
        self.dry(script, "--protocol", "blocks")
        for wanted, more in (r"Cost: about ([\d,]+) GPU-hours", []), (r"--published-only: about ([\d,]+)", ["--published-only"]):
            said = re.search(wanted, header)
            if not said and not more:
                say(f"{script}: no cost in its header")
            counted = re.search(r"about ([\d,]+) GPU-hours", self.dry(script, *more)[1]) if said else None
            if counted and said[1] != counted[1]:
                say(f"{script}: {said[1]} GPU-hours by its header, {counted[1]} by its dry run {' '.join(more)}")

    def check_restart(self, script: str) -> None:
        first = self.run(script, self.stand_in, "out")
        if first.returncode:
            return say(f"{script}: ended with {first.returncode}: {first.stdout[-300:]}{first.stderr[-500:]}")
        if "published / ours" not in first.stdout:
            say(f"{script}: prints no table")
        self.called()
        again = self.run(script, self.stand_in, "out")
        if again.returncode or self.called():
            say(f"{script}: a second run repeats what is done")
        if again.stdout.splitlines() != first.stdout.splitlines()[-len(again.stdout.splitlines()):]:
            say(f"{script}: a second run prints another table")
        left = self.run(script, self.stand_in, "out", "--dry-run").stdout.splitlines()
        if len(left) != 1:
            say(f"{script}: a dry run of a finished table prints {len(left) - 1} commands")

    def check_lost_record(self, script: str) -> None:
        """As after a crash in the middle of writing a line."""
        records = self.folder / "out" / "records.jsonl"
        whole = records.read_text()
        records.write_text(whole[:-10])
        for wanted in 1, 0:
            ended = self.run(script, self.stand_in, "out")
            calls = self.called()
            if ended.returncode or calls != wanted:
                say(f"{script}: one record lost, and {calls} commands run instead of {wanted}: {ended.stderr[-300:]}")

    def check_other_inputs(self, script: str) -> None:
        """Old records are not passed off as results of another precision, of other data or of another model, wherever these lie."""
        def refused(what: str, wanted: str, *more) -> None:
            for dry in [], ["--dry-run"]:
                ended = self.run(script, self.stand_in, "out", *more, *dry)
                if not ended.returncode or wanted not in ended.stderr or self.called():
                    say(f"{script} {' '.join(dry)}: records of {what} are taken: {ended.stderr[-500:]}")

        def taken(what: str, *more) -> None:
            ended = self.run(script, self.stand_in, "out", *more)
            dry = self.run(script, self.stand_in, "out", *more, "--dry-run")
            if ended.returncode or self.called() or len(dry.stdout.splitlines()) != 1:
                say(f"{script}: {what}, and its records are not taken: {ended.stderr[-500:]}{dry.stdout[-500:]}{dry.stderr[-500:]}")
        refused("another precision", "--precision was bf16", "--precision", "fp32")
        stream = self.folder / "data" / DATA[0]
        before = stream.read_bytes()
        stream.write_bytes(before + b"more")
        refused("other data", DATA[0])
        stream.write_bytes(before)
        taken("inputs are as they were")

        data, models = self.folder / "moved" / "data", self.folder / "moved" / "models"
        shutil.copytree(self.folder / "data", data)
        shutil.copytree(self.folder / "models", models)
        there = "--data", data, "--models", models
        taken("inputs were moved", *there)
        (data / DATA[0]).write_bytes(before[:-1] + b"x")
        refused("other data of the same size in another folder", DATA[0], *there)
        (data / DATA[0]).unlink()
        (data / "redpajama").mkdir()
        (data / "redpajama" / "a.jsonl").write_text("{}")
        refused("a text in place of a stream", "redpajama/a.jsonl", *there)
        shutil.copy(stream, data / DATA[0])
        (data / "proof-pile" / "test_sampled_data.bin").write_text("of no use to this table")
        taken("what it does not use has changed", *there)
        for file, text in ("config.json", "[]"), ("model.safetensors", f"Weights of {MODELS[0]}"):
            was = (models / MODELS[0] / file).read_text()
            (models / MODELS[0] / file).write_text(text)
            refused(f"a model with another {file}", f"{MODELS[0]}: {file}", *there)
            (models / MODELS[0] / file).write_text(was)
        taken("the model is as it was", *there)

        # What is not there cannot be compared: a dry run says so, and plans with the rest.
        shutil.rmtree(models / MODELS[0])
        shutil.rmtree(data / "redpajama")
        (data / DATA[0]).unlink()
        dry = self.run(script, self.stand_in, "out", *there, "--dry-run")
        if dry.returncode or not all(f"not there: {path}" in dry.stderr for path in (models / MODELS[0], data / DATA[0])):
            say(f"{script}: a dry run does not say what is not there: {dry.stderr[-500:]}")

        inputs = self.folder / "out" / "inputs.json"
        now = inputs.read_text()
        inputs.write_text(json.dumps({"--precision": "bf16", "--device": "cuda", str(stream): stream.stat().st_size}))
        refused("what an earlier version did not write down", "remove that file")
        inputs.write_text(now)

    def check_blocks(self, script: str) -> None:
        """The program itself, with a small model, takes the commands of --protocol blocks: streams serve every context, shards one."""
        data, models, text = self.folder / "blocks" / "data", self.folder / "blocks" / "models", self.folder / "blocks" / "text"
        models.mkdir(parents=True)
        for name in MODELS:
            (models / name).symlink_to(TINY, target_is_directory=True)
        text.write_text("It was late. The rain fell on the harbour, and nobody spoke. " * 20)
        for name in "redpajama", "proof-pile/test_sampled_data":
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / f"{name}.bin").write_bytes(array.array("H", list(text.read_bytes())).tobytes())
        tests = [f"{test}-{context}" for test in ("pg19/test", "llama3/pg19/test", "llama3/proof-pile/test_sampled_data")
                 for context in (64, 96, 128)]
        for name in [*tests, "llama3/redpajama-128"]:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([self.program.path, "tokenize", "--tokenizer", TINY, "--input", text, "--context", name.split("-")[-1],
                            "--out", data / name], check=True, capture_output=True)
        there = ["--data", data, "--models", models, "--protocol", "blocks", "--device", "cpu", "--precision", "fp32", "--gpus", "1",
                 "--shrink", "64", "--steps", "1", "--global-batch", "1", "--rows", "S2-Attn"]
        ended = self.run(script, self.program.path, "out-blocks", *there)
        if ended.returncode:
            say(f"{script}: --protocol blocks ended with {ended.returncode}: {ended.stdout[-300:]}{ended.stderr[-800:]}")
        for path in (data / tests[4]).iterdir():
            path.unlink()
        ended = self.run(script, self.stand_in, "out-no-blocks", *there)
        if not ended.returncode or tests[4] not in ended.stderr or self.called():
            say(f"{script}: --protocol blocks begins without {tests[4]}: {ended.stderr[-500:]}")

    def check_failure(self, script: str) -> None:
        ended = self.run(script, "false", "out-failed")
        if ended.returncode == 0 or (self.folder / "out-failed" / "records.jsonl").exists():
            say(f"{script}: a program that fails does not stop it")

    def miniature(self, table: str, program, *more) -> subprocess.CompletedProcess:
        data = self.folder / "data"
        words = [sys.executable, HERE / "miniature.py", table, "--books", data / "books", "--maths", data / "books", "--model",
                 data / "llama3", "--tokenizer", data / "long-prompt.txt", "--out", self.folder / "miniature", "--jobs", "1",
                 "--program", program, *more]
        return subprocess.run(words, capture_output=True, text=True, env={"PYTHONDONTWRITEBYTECODE": "1"})

    def check_miniature(self) -> None:
        before = files(self.folder)
        for table in "A", "B":
            ended = self.miniature(table, self.program.path, "--dry-run")
            if ended.returncode:
                say(f"miniature: {ended.stderr[-500:]}")
            commands = ended.stdout.splitlines()
            if not commands:
                say("miniature: no commands")
            for line in commands:
                self.program.check("miniature", line)
        if files(self.folder) != before:
            say("miniature: --dry-run has changed files")

    def check_miniature_restart(self) -> None:
        """Rows of other settings or inputs do not join a table."""
        rows, book = self.folder / "miniature" / "rows.jsonl", self.folder / "data" / "books" / "train" / "a.txt"
        for _ in range(2):
            ended = self.miniature("B", self.stand_in)
            if ended.returncode or len(rows.read_text().splitlines()) != 29:
                say(f"miniature: ended with {ended.returncode}: {ended.stdout[-300:]}{ended.stderr[-500:]}")
        for dry in [], ["--dry-run"]:
            if "--steps was 40" not in self.miniature("B", self.stand_in, "--steps", "9", *dry).stderr:
                say(f"miniature {' '.join(dry)}: rows of other settings are taken")
        book.write_text("more")
        if "--books was" not in self.miniature("B", self.stand_in).stderr:
            say("miniature: rows of other texts are taken")
        book.write_text("")


def check_published(script: str) -> paper_table.Table:
    table = importlib.import_module(script).TABLE
    names = [row.name for row in table.rows]
    if table.name != script or len(set(names)) != len(names):
        say(f"{script}: another name, or two rows of one name")
    for row in table.rows:
        wrong = set(row.published) - {column.label for column in table.cells(row)}
        if wrong:
            say(f"{script}: {row.name} has published numbers outside its cells: {sorted(wrong)}")
        if row.ours and row.published:
            say(f"{script}: {row.name} is ours and published")
    return table


def check_ratios() -> None:
    table = importlib.import_module("sinklora_table7").TABLE
    rows, published = {row.name: row for row in table.rows}, paper_table.published_cells(table)
    for name, zero, wanted in [("SF-Attn, 4 sinks", "untuned", "92 %"), ("S2-Attn", "untuned", "39 %"), ("SF-Attn, 4 sinks", "s2", "87 %"),
                               ("full attention", "s2", "100 %"), ("S2-Attn", "s2", "0 %")]:
        if (got := paper_table.share(table, rows[name], published, zero)) != wanted:
            say(f"sinklora_table7: {name} from {zero}: {got}, wanted {wanted}")


def hours(scripts: list[str], folder: pathlib.Path, *more) -> dict:
    """Of dry runs that share an --out, as the index counts them."""
    args = paper_table.parser("").parse_args([*(f"--{name}={folder}" for name in ("models", "data", "out")), "--dry-run", *more])
    planned: set[str] = set()
    sums = {"training": 0.0, "evaluation": 0.0}
    for script in scripts:
        paper = paper_table.Paper(importlib.import_module(script).TABLE, args)
        paper.planned = planned
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            paper.make()
        sums = {kind: sums[kind] + paper.hours[kind] for kind in sums}
    return sums


def check_index(scripts: list[str], folder: pathlib.Path) -> None:
    """Costs in docs/results/paper_tables.md: of each table, and of all into one OUT in tens."""
    page = " ".join((HERE.parents[1] / "docs" / "results" / "paper_tables.md").read_text().split())

    def pair(scripts: list[str], kinds: tuple, places: int = 0) -> str:
        whole, published = (sum(hours(scripts, folder, *more)[kind] for kind in kinds) for more in ([], ["--published-only"]))
        return f"{round(whole, places):,.0f} ({round(published, places):,.0f})"
    for script in scripts:
        cost, training = pair([script], ("training", "evaluation")), pair([script], ("training",))
        found = re.search(rf"`{script}\.py` \| ([^|]*) \|", page)
        if not found or not found[1].startswith(cost) or ("of which" in found[1] and f", of which {training} are" not in found[1]):
            say(f"docs/results/paper_tables.md: {script} has '{found and found[1]}', its dry runs add up to {cost}, training {training}")
    wanted = f"about {pair(scripts, ('training', 'evaluation'), -1)}, of which training is {pair(scripts, ('training',), -1)}."
    if wanted not in page:
        say(f"docs/results/paper_tables.md: of all tables it does not say: {wanted}")


def retrieval_row(record: dict) -> str:
    right, trials = collections.Counter(), collections.Counter()
    for cell in record["cells"]:
        right[cell["wanted_tokens"]] += cell["correct"]
        trials[cell["wanted_tokens"]] += cell["trials"]
    name = "after" if record["model"].startswith("train-") else "before the fine-tune"
    return f"| {name} | " + " | ".join(f"{100 * right[length] / trials[length]:.0f}" for length in trials)


def check_results(folder: pathlib.Path) -> None:
    results = HERE.parents[1] / "docs" / "results"
    page = (results / "README.md").read_text()
    shown = [text.rstrip("| ") for text in page.splitlines()]

    def compare(table: str, lines: list[str]) -> None:
        for line in lines:
            if not any(text and line.startswith(text) for text in shown):  # the page may leave out columns at the end
                say(f"docs/results/README.md: {table} lacks: {line}")

    for name in "A", "B":
        rows = paper_table.read_records(results / f"miniature-{name.lower()}.jsonl")
        lines = miniature_report.markdown(rows, list(rows[0]["ppl"])).splitlines()
        compare(f"table {name}", lines[:1] + lines[2:])
        miniature_report.plots(rows, folder / "plots", name)
    budgets = paper_table.read_records(results / "cache_budget.jsonl")
    compare("the table of cache budgets", [line for line in cache_budget.markdown(budgets).splitlines() if line.startswith("| ")])
    cache_budget.plots(budgets, folder / "plots")
    compare("the table of retrieval", [retrieval_row(record) for record in paper_table.read_records(results / "sft_retrieval.jsonl")
                                       if record["protocol"] == "questions"])
    for plot in (folder / "plots").iterdir():
        xml.etree.ElementTree.parse(plot)
        if not (results / plot.name).exists() or plot.read_bytes() != (results / plot.name).read_bytes():
            say(f"docs/results/{plot.name} is not what its rows make")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, required=True)
    args = parser.parse_args()
    sys.dont_write_bytecode = True
    found = sorted(path.stem for pattern in ("longlora_*.py", "sinklora_*.py", "passkey_*.py") for path in HERE.glob(pattern))
    with tempfile.TemporaryDirectory() as folder:
        scripts = Scripts(Program(args.program.resolve()), pathlib.Path(folder))
        for script in found:
            check_published(script)
            scripts.check_dry(script, importlib.import_module(script).__doc__)
            scripts.check_restart(script)
        scripts.check_lost_record(found[-1])
        scripts.check_other_inputs(found[-1])
        scripts.check_failure(found[0])
        scripts.check_blocks("sinklora_table2")
        scripts.check_miniature()
        scripts.check_miniature_restart()
        check_results(pathlib.Path(folder))
        check_index(found, pathlib.Path(folder))
    check_ratios()
    if breaches:
        sys.exit(f"check_tables: {len(breaches)} breaches")
    print(f"check_tables: {len(found)} scripts, no breach")


if __name__ == "__main__":
    main()
