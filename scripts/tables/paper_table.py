"""What the scripts of the papers' tables share: trainings and measurements as `sinklora` commands, records, the printed table, the cost.

A table script gives rows, columns and published numbers to main(); everything else is here. Folders:
  --models DIR   a Hugging Face folder for each model: Llama-2-7b-hf, Llama-2-13b-hf, Meta-Llama-3-8B
  --data DIR     redpajama.bin (a uint16 stream), or redpajama/*.jsonl, which is tokenized for every context; longalpaca-plus.json;
                 pg19/validation.bin, pg19/test.bin, proof-pile/test_sampled_data.bin: LongLoRA's files, or folders of shards of the
                 same names without .bin. LLaMA-3's ids do not fit uint16: its evaluation data are folders of shards in DIR/llama3/,
                 its training data redpajama/*.jsonl, or shards. What is trained on, and what --protocol blocks measures, is shards
                 of exactly its context: a folder NAME-CONTEXT for each, as llama3/redpajama-8192, llama3/pg19/test-4096.
  --out DIR      may be that of other tables: what one has trained or measured, the others take
OUT/records.jsonl gets a line for every training and measurement that ended well, and what has a line is not run again. A training
that was interrupted goes on from its newest checkpoint. --dry-run prints the commands that are left and their cost, and writes nothing;
it is refused where OUT holds results of something else, as a run is, and says on stderr which models and data are not there.
"""
import argparse
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import time
import typing

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import table_cost  # noqa: E402

# What the text says of ours; the papers have no such rows.
SF4 = "--attention sf --shifted-heads 0.25 --sinks 4"
SF64 = "--attention sf --shifted-heads 0.25 --sinks 64"
ORIGINAL_CONTEXT = {"Meta-Llama-3-8B": 8192}  # else 4096
RECALLED = "The published cells were written down from memory and only partly checked against the paper: see docs/results/paper_tables.md."
# By `sinklora plan` at 8,192 and 32,768 tokens; state of the optimizer is not shared among GPUs.
FULL_FINETUNE = {"Llama-2-7b-hf": "trains every weight: 104 to 110 GiB on each GPU; --every-weight runs it",
                 "Llama-2-13b-hf": "trains every weight: 198 GiB on each GPU"}


class Commands:
    """Runs the program, its output in a log; or prints the command lines alone."""

    def __init__(self, program, dry_run: bool, end: float | None = None):
        self.program, self.dry_run, self.end = str(program), dry_run, end
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the program that runs is ended, too

    def run(self, *command, log: pathlib.Path) -> None:
        words = [self.program, *[str(word) for word in command]]
        if self.dry_run:
            sys.stdout.write(shlex.join(words) + "\n")  # in one piece, whatever other threads print
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        limit = None if self.end is None else max(1.0, self.end - time.time())
        with open(log, "a") as to, subprocess.Popen(words, stdout=to, stderr=subprocess.STDOUT) as program:
            try:
                code = program.wait(limit)
            except BaseException:  # also sys.exit() out of a signal's handler
                program.terminate()  # a training saves where it is
                try:
                    program.wait(60)
                except subprocess.TimeoutExpired:
                    program.kill()
                raise
        if code != 0:
            sys.exit(f"{shlex.join(words)}\nended with {code}; its output is in {log}:\n" + log.read_text()[-800:])


def read_records(path: pathlib.Path) -> list[dict]:
    """A last line that was cut off by a crash does not count."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_record(path: pathlib.Path, entry: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as to:
        to.seek(0)
        to.truncate(to.read().rfind(b"\n") + 1)  # what a crash has cut off
        to.write(json.dumps(entry).encode() + b"\n")


def training_summary(out: pathlib.Path) -> dict:
    """Speed, memory and loss of a run's later half."""
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    late = steps[len(steps) // 2:]
    return {"step_ms": statistics.median(s["step_ms"] for s in late), "mem_gib": max(s["mem_gib"] for s in steps),
            "train_loss": statistics.mean(s["loss"] for s in late), "tokens": steps[-1]["tokens"]}


@functools.cache  # most files have more than one use
def identity(path: pathlib.Path) -> str:
    """Size and a sum of the content: of all of it up to 1 MiB, else of 16 pieces from end to end."""
    size, piece, digest = path.stat().st_size, 1 << 16, hashlib.sha256()
    with open(path, "rb") as file:
        for i in range(16):
            file.seek(max(0, size - piece) * i // 15 if size > 16 * piece else i * piece)
            digest.update(file.read(piece))
    return f"{size} bytes {digest.hexdigest()[:16]}"


def has_shards(folder: pathlib.Path) -> bool:
    return any(folder.glob("*.h5"))


def is_data(path: pathlib.Path) -> bool:
    return path.is_file() or has_shards(path)


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """A file itself; of a folder, the shards, weights, settings and tokenizers in it."""
    found = path.rglob("*") if path.is_dir() else [path]
    return sorted(f for f in found if f == path or (f.is_file() and f.suffix in (".h5", ".json", ".model", ".safetensors")))


def gap_closed(s2: float, ppl: float, full: float) -> float | None:
    """0: as S2-Attn; 1: as full attention."""
    return (s2 - ppl) / (s2 - full) if s2 != full else None


@dataclasses.dataclass(frozen=True)
class Run:
    """A training. Equal runs are trained once in an --out. context 0: the column's. steps and epochs 0: the untuned model."""
    options: str = "--attention S2"  # S2: what --s2 says
    context: int = 0
    model: str = "Llama-2-7b-hf"
    trainable: str = "lora+"
    data: str = "redpajama"
    steps: int = 1000
    epochs: int = 0
    batch: int = 64
    lr: float = 2e-5

    def untuned(self) -> bool:
        return not self.steps and not self.epochs


UNTUNED = Run("", steps=0)


@dataclasses.dataclass(frozen=True)
class Column:
    label: str
    context: int
    data: str = "pg19/validation"
    test: str = ""  # options of the measurement; "same": the pattern that the row was trained with
    kind: str = "ppl"  # ppl, topics, passkey, speed
    protocol: str = ""  # of ppl, where not what --protocol says


@dataclasses.dataclass
class Row:
    name: str
    run: Run = UNTUNED
    published: dict = dataclasses.field(default_factory=dict)  # by label of column
    group: str = ""  # rows that are compared with one another
    role: str = ""  # in its group: untuned, s2, full
    ours: bool = False  # the paper has no such row
    why_not: str = ""  # this trainer cannot
    test: str = ""  # options of its measurements
    only: tuple = ()  # labels of the columns that it has, where not all up to its context


@dataclasses.dataclass
class Table:
    name: str
    rows: list[Row]
    columns: list[Column]
    notes: list[str]
    after: typing.Callable | None = None  # of {(row, label): value}: more lines

    def cells(self, row: Row) -> list[Column]:
        limit = row.run.context or math.inf
        return [c for c in self.columns if (c.label in row.only if row.only else c.context <= limit)]


def columns(contexts, data: str = "pg19/validation", **more) -> list[Column]:
    return [Column(f"{n:,}", n, data, **more) for n in contexts]


def values(contexts, *numbers) -> dict:
    return {f"{n:,}": number for n, number in zip(contexts, numbers)}


def with_ours(rows: list[Row], group: str, run: Run) -> list[Row]:
    """The rows that a gap needs and the paper lacks: full attention and SF-Attn with LoRA+, trained as `run` is."""
    def row(name: str, options: str, role: str = "") -> Row:
        return Row(name if group == "LoRA+" else f"{group}: {name}", dataclasses.replace(run, options=options), group=group, role=role, ours=True)
    return rows + [row("full attention, LoRA+", "--attention full", "full"), row("SF-Attn, 4 sinks, LoRA+", SF4),
                   row("SF-Attn, 64 sinks, LoRA+", SF64)]


def slug(text: str) -> str:
    words = text.replace("--attention ", "").replace("--", "").split()
    return "-".join(words).replace("/", "-")


class Paper:
    """Makes one table."""

    def __init__(self, table: Table, args):
        self.table, self.args, self.out = table, args, args.out
        self.commands = Commands(args.program, args.dry_run)
        self.records = self.out / "records.jsonl"
        self.known = {entry["key"]: entry for entry in read_records(self.records)}
        self.planned: set[str] = set()  # of a dry run
        self.hours = {"training": 0.0, "evaluation": 0.0}
        self.folders = dict(pair.split("=", 1) for pair in args.folder)

    def settings(self, row: Row, column: Column) -> Run:
        run = row.run
        context = (run.context or column.context) // self.args.shrink
        steps = 0 if not run.steps else self.args.steps or run.steps
        batch = self.args.global_batch or run.batch
        return dataclasses.replace(run, options=self.words(run.options), context=context, steps=steps, batch=batch)

    def words(self, options: str) -> str:
        return options.replace("--attention S2", f"--attention {self.args.s2}")

    def model(self, run: Run) -> pathlib.Path:
        return self.args.models / self.folders.get(run.model, run.model)

    def name(self, run: Run) -> str:
        """Of its model, in keys, which are names of files as well."""
        return self.folders.get(run.model, run.model).replace("/", "-")

    def data(self, run: Run, name: str, context: int = 0) -> pathlib.Path:
        """A stream, which serves every context, or shards: of this one, if one is given."""
        folder = self.args.data / ("llama3" if "Llama-3" in run.model else "") / name
        shards, stream = folder.with_name(f"{folder.name}-{context}" if context else folder.name), folder.with_name(folder.name + ".bin")
        sharded = "Llama-3" in run.model or not stream.exists() and (has_shards(shards) or has_shards(folder))
        return shards if sharded else stream

    def protocol(self, column: Column) -> str:
        return column.protocol or self.args.protocol

    def test_data(self, run: Run, column: Column) -> pathlib.Path:
        if column.kind != "ppl":
            return self.args.data / column.data
        return self.data(run, column.data, column.context // self.args.shrink if self.protocol(column) == "blocks" else 0)

    def machine(self) -> list:
        return ["--device", self.args.device, "--precision", self.args.precision]

    def key(self, run: Run) -> str:
        name = f"{self.name(run)}-{run.context}"
        if run.untuned():
            return f"{name}-untuned"
        length = f"{run.epochs}epochs" if run.epochs else f"{run.steps}"
        return f"{name}-{slug(run.options)}-{run.trainable}-{run.data}-{run.batch}x{length}-lr{run.lr:g}-seed{self.args.seed}"

    def scaling(self, run: Run) -> str:
        """Position interpolation as LongLoRA does it, for what has no adapter that says it."""
        factor = math.ceil(run.context / (ORIGINAL_CONTEXT.get(run.model, 4096) // self.args.shrink))
        return f"linear:{factor}" if factor > 1 else "none"

    def do(self, key: str, hours: float, kind: str, work: typing.Callable) -> dict:
        """Unless its record is there: work(), and a record. Hours: what it costs on one GPU."""
        if key in self.known or key in self.planned:
            return self.known.get(key, {})
        self.hours[kind] += hours
        self.planned.add(key)
        begun = time.time()
        entry = {"key": key, **work()}
        if self.args.dry_run:
            return {}
        entry["hours"] = (time.time() - begun) / 3600
        self.known[key] = entry
        append_record(self.records, entry)
        print(f"{key}: {entry['hours']:.2f} h", flush=True)
        return entry

    def source(self, run: Run) -> list[pathlib.Path]:
        """Training data: instructions or texts to tokenize, else a stream, which serves every context, or shards of this one."""
        if run.data.startswith("longalpaca"):
            return [self.args.data / f"{run.data}.json"]
        path = self.data(run, run.data, run.context)
        if path.suffix == ".bin" and path.exists():
            return [path]
        return sorted((self.args.data / run.data).glob("*.jsonl")) or [path]

    def tokenized(self, run: Run) -> pathlib.Path:
        source = self.source(run)
        if source[0].suffix not in (".json", ".jsonl"):
            return source[0]
        shards = self.out / "data" / f"{run.data}{'-llama3' if 'Llama-3' in run.model else ''}-{run.context}"
        form = ["--format", "text"] if source[0].suffix == ".jsonl" else [
            "--format", "alpaca", "--template", "llama2", "--mask-compat", "longlora"]
        command = ["tokenize", "--tokenizer", self.model(run), "--input", *source, *form, "--context", run.context, "--out", shards]
        self.do(f"tokens {shards.name}", 0, "training", lambda: self.commands.run(*command, log=self.out / "log" / "tokenize.txt") or {})
        return shards

    def train(self, run: Run) -> pathlib.Path:
        """Its folder, which stands for its newest checkpoint."""
        key = self.key(run)
        out = self.out / "runs" / key
        gpus = math.gcd(self.args.gpus, run.batch)
        length = ["--epochs", run.epochs] if run.epochs else ["--steps", run.steps]

        def work() -> dict:
            data = self.tokenized(run)
            self.commands.run(
                "train", "--model", self.model(run), "--data", data, "--out", out, "--context", run.context, *run.options.split(),
                "--trainable", run.trainable, "--lr", run.lr, "--beta2", 0.95, "--warmup", 20, "--schedule", "constant", "--join-documents",
                "--batch", 1, "--accumulate", run.batch // gpus, *length, "--seed", self.args.seed, *self.machine(), "--gpus", gpus,
                "--recompute", "auto", "--save-every", self.args.save_every, "--keep-last", 1, "--resume", "auto", "--log-every", 10,
                log=self.out / "log" / f"{key}.txt")
            return {} if self.args.dry_run else training_summary(out)
        self.do(key, table_cost.training(run), "training", work)
        return out

    def measure(self, row: Row, column: Column) -> float | None:
        run = self.settings(row, column)
        context = column.context // self.args.shrink
        test = self.words(f"{row.test} {run.options if column.test == 'same' else column.test}").replace("--attention full", "").strip()
        protocol = self.protocol(column)
        how = f"{protocol}{self.args.stride if protocol != 'blocks' else ''}" if column.kind == "ppl" else column.kind
        key = f"{self.key(run)} @ {slug(column.data)}-{context}-{how}-{slug(test) or 'full'}"
        if key in self.known:
            return self.known[key]["value"]
        trained = None if run.untuned() else self.train(run)
        if run.untuned() or run.trainable == "full":
            model = ["--model", trained or self.model(run), "--rope-scaling", self.scaling(run)]
        else:
            model = ["--model", self.model(run), "--adapter", trained]

        def work() -> dict:
            name = key.replace(" @ ", "@")
            result = self.out / "eval" / f"{name}.json"
            verb, options, wanted = self.command(column, run, context, protocol)
            if not self.args.dry_run:
                result.parent.mkdir(parents=True, exist_ok=True)
            self.commands.run(*verb.split(), *model, *options, *test.split(), *self.machine(), "--json", result,
                              log=self.out / "log" / f"{name}.txt")
            return {} if self.args.dry_run else {"value": json.loads(result.read_text())[wanted]}
        return self.do(key, table_cost.evaluation(run, column, test, protocol, self.args.stride), "evaluation", work).get("value")

    def command(self, column: Column, run: Run, context: int, protocol: str) -> tuple[str, list, str]:
        """Verb, options, and the word in its JSON that is wanted."""
        if column.kind == "ppl":
            stride = [] if protocol == "blocks" else ["--stride", self.args.stride]
            return "eval ppl", ["--data", self.test_data(run, column), "--context", context, "--protocol", protocol, *stride,
                                "--gpus", self.args.gpus], "ppl"
        if column.kind == "speed":
            return "generate", ["--prompt-file", self.test_data(run, column), "--context", context,
                                "--max-new-tokens", 512 // self.args.shrink], "decode_tokens_per_s"
        trials = ["--template", "llama2", "--trials", 50] if column.kind == "topics" else ["--trials", 10]
        return f"eval {column.kind}", ["--max-tokens", context, "--interval", context, *trials, "--gpus", self.args.gpus], "accuracy"

    def reason(self, row: Row) -> str:
        """Why a row is not run; empty if it is."""
        if row.why_not:
            return row.why_not
        if row.run.trainable == "full" and not (self.args.every_weight and row.run.model == "Llama-2-7b-hf"):
            return FULL_FINETUNE[row.run.model]
        if row.ours and self.args.published_only:
            return "not of the paper, and --published-only"
        if self.args.rows and not any(word in row.name for word in self.args.rows):
            return "not among --rows"
        if not self.args.dry_run and not self.model(row.run).is_dir():
            return f"no {self.model(row.run)}"
        return ""

    def cells(self) -> list[tuple[Run, Column]]:
        """What is run."""
        return [(self.settings(row, column), column) for row in self.table.rows if not self.reason(row)
                for column in self.table.cells(row)]

    def used_models(self) -> dict[str, pathlib.Path]:
        """Folders, by their names in keys."""
        return {self.name(run): self.model(run) for run, _ in self.cells()}

    def used_data(self) -> dict[str, list[pathlib.Path]]:
        """Files and folders, by what they are used for."""
        found = {}
        for run, column in self.cells():
            family = "llama3/" if "Llama-3" in run.model else ""
            if column.kind in ("ppl", "speed"):
                how = self.protocol(column) if column.kind == "ppl" else column.kind
                found[f"{how} on {family}{column.data} at {column.context // self.args.shrink}"] = [self.test_data(run, column)]
            if not run.untuned():
                found[f"training on {family}{run.data} at {run.context}"] = self.source(run)
        return found

    def missing(self) -> list[str]:
        """Files that would be missed only after hours of training."""
        return sorted({str(path) for paths in self.used_data().values() for path in paths if not is_data(path)})

    def make(self) -> None:
        missing = self.missing()
        if self.args.dry_run:
            for folder in sorted(str(folder) for folder in self.used_models().values() if not folder.is_dir()):
                print(f"# not there: {folder}; a run leaves its rows out", file=sys.stderr)
            for path in missing:
                print(f"# not there: {path}, or without shards; a run does not begin", file=sys.stderr)
        elif missing:
            sys.exit("not there, or without shards: " + ", ".join(missing))
        self.keep_inputs()
        found: dict = {}
        for row in self.table.rows:
            if self.reason(row):
                continue
            # The longest first: if memory does not reach, that shows at once.
            for column in sorted(self.table.cells(row), key=lambda c: -c.context):
                value = self.measure(row, column)
                if value is not None:
                    found[row.name, column.label] = value
            if not self.args.dry_run:
                self.write(found)
        if self.args.dry_run:
            cost = ", ".join(f"{kind} {hours:,.0f}" for kind, hours in self.hours.items())
            print(f"# {self.table.name}: about {sum(self.hours.values()):,.0f} GPU-hours left ({cost})")
        else:
            print(self.write(found))

    def inputs(self) -> dict[str, dict]:
        """What keys do not say: settings, and the files of models and data by their paths there, so that either folder may be moved.
        What a dry run lacks is left out."""
        found = {"settings": {"--precision": self.args.precision, "--device": self.args.device, "--shrink": self.args.shrink}}
        for name, folder in self.used_models().items():
            if folder.is_dir():
                found[f"model {name}"] = {str(f.relative_to(folder)): identity(f) for f in files_of(folder)}
        for use, paths in self.used_data().items():
            if all(is_data(path) for path in paths):
                found[use] = {str(f.relative_to(self.args.data)): identity(f) for path in paths for f in files_of(path)}
        return found

    def keep_inputs(self) -> None:
        """Records do not say what they were made from: this folder's settings, models and data are those that it began with.
        A dry run only compares."""
        path = self.out / "inputs.json"
        before, now = json.loads(path.read_text()) if path.exists() else {}, self.inputs()
        if before and "settings" not in before:
            sys.exit(f"{path}: an earlier version wrote it, and did not say of which models. If {self.out} holds results of these "
                     "--models and --data, remove that file and run again; else take another --out")
        changed = [f"{use}: {name} was {before[use].get(name, 'not there')} and is {now[use].get(name, 'not there')}"
                   for use in sorted(before.keys() & now.keys()) for name in sorted(before[use].keys() | now[use].keys())
                   if before[use].get(name) != now[use].get(name)]
        if changed:
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            sys.exit(f"{self.out} holds results of something else: {'; '.join(changed[:5])}{more}. Take another --out, or put it back")
        if not self.args.dry_run:
            self.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(before | now, indent=1))

    def write(self, found: dict) -> str:
        text = markdown(self.table, found, {row.name: self.reason(row) for row in self.table.rows})
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{self.table.name}.md").write_text(text)
        return text


def share(table: Table, row: Row, found: dict, zero: str, narrowest: float = 0) -> str:
    """Where a row is from its group's row `zero` to full attention, at the longest context that they all have; "" if it cannot be said."""
    rows = {r.role: r for r in table.rows if r.group == row.group and r.role and any((r.name, c.label) in found for c in table.columns)}
    if not {zero, "full"} <= set(rows) or row.role == "untuned":
        return ""
    at = [c.label for c in table.columns if c.kind == "ppl" and all((r.name, c.label) in found for r in (row, rows[zero], rows["full"]))]
    if not at:
        return ""
    low, ppl, full = (found[r.name, at[-1]] for r in (rows[zero], row, rows["full"]))
    closed = gap_closed(low, ppl, full) if abs(low - full) >= narrowest else None
    return f"(gap {low - full:.2f})" if closed is None else f"{100 * closed:.0f} %"


def published_cells(table: Table) -> dict:
    return {(row.name, label): number for row in table.rows for label, number in row.published.items()}


def markdown(table: Table, found: dict, reasons: dict) -> str:
    """Every cell: published / ours."""
    published = published_cells(table)

    def both(one, other) -> str:
        return f"{one or '-'} / {other or '-'}" if one or other else ""

    def number(value) -> str:
        return "" if value is None else f"{value:.2f}"
    heads = ["published / ours", *[c.label for c in table.columns], "gap between S2 and full closed", "of what untuned lacks to full"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in table.rows:
        cells = [both(number(published.get((row.name, c.label))), number(found.get((row.name, c.label)))) for c in table.columns]
        # Published values have two decimals: a gap of a few of the last is rounding, and nothing to divide by.
        cells += [both(share(table, row, published, zero, 0.05), share(table, row, found, zero)) for zero in ("s2", "untuned")]
        lines.append("| " + " | ".join([row.name, *cells]) + " |")
    lines += ["", *[f"* {note}" for note in table.notes], *[f"* Not run, {name}: {why}." for name, why in reasons.items() if why]]
    lines += [f"* {line}" for line in (table.after(found) if table.after else [])]
    return f"# {table.name}\n\n" + "\n".join(lines) + "\n"


def parser(description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=pathlib.Path, required=True)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--program", type=pathlib.Path, default=pathlib.Path("build-cuda/sinklora"))
    p.add_argument("--gpus", type=int, default=8, help="of this machine; a step keeps its number of samples")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    p.add_argument("--s2", default="s2", choices=["s2", "s2-wrap"],
                   help="S2-Attn as LongLoRA's code has it since October 2023 (s2), or with the paper's wrap-around")
    p.add_argument("--protocol", default="sliding", choices=["sliding", "distributed", "blocks"],
                   help="perplexity: LongLoRA's eval.py, its eval_distributed.py, or windows side by side")
    p.add_argument("--stride", type=int, default=256, help="of the sliding windows; the papers' is 256, the cost goes with its inverse")
    p.add_argument("--steps", type=int, help="instead of the paper's")
    p.add_argument("--global-batch", type=int, help="samples of a step, instead of the paper's")
    p.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--every-weight", action="store_true", help="also 7B's rows that train every weight: GPUs of 141 GB")
    p.add_argument("--published-only", action="store_true", help="only rows that the paper has")
    p.add_argument("--rows", nargs="+", help="only rows whose names have one of these words")
    p.add_argument("--folder", nargs="+", default=[], metavar="NAME=FOLDER", help="where --models has another folder for a model")
    p.add_argument("--shrink", type=int, default=1, help="contexts divided by this, for rehearsals with a small model")
    p.add_argument("--dry-run", action="store_true", help="print the commands that are left and their cost; write nothing")
    return p


def main(table: Table, description: str) -> None:
    p = parser(description)
    args = p.parse_args()
    if any("=" not in pair for pair in args.folder):
        p.error("--folder wants NAME=FOLDER")
    if args.gpus < 1 or args.shrink < 1 or args.stride < 1:
        p.error("--gpus, --shrink and --stride are at least 1")
    if args.rows and not any(word in row.name for row in table.rows for word in args.rows):
        p.error(f"--rows {' '.join(args.rows)}: no row has such a name; there are: " + ", ".join(row.name for row in table.rows))
    Paper(table, args).make()
