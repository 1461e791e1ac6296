#!/usr/bin/env python3
"""Assembles LongAlpaca-plus, SinkLoRA's 28,000 instruction records, from files that are here already.

    python3 scripts/build_longalpaca_plus.py --natural-questions nq.jsonl.gz --redpajama rp/*.jsonl \\
        --book-summaries booksum.jsonl --longqa LongAlpaca-12k.json --out longalpaca-plus.json

The paper gives the mix (Natural Questions 12,320, RedPajama 7,560, Book Summarization 5,040, LongQA 3,080) and neither
the files nor how a record is worded. So this is a reconstruction, and says in its record what it is made of.

Input: JSON arrays (.json) or lines (.jsonl), plain or .gz, .bz2, .xz (unpack .zst first). A record of any part may be
  {"instruction", "output", "input"?}, as LongAlpaca is; {"input", "output"}, as LongQLoRA's set is;
  {"prompt", "completion"}; or {"text"} with one last line "Answer: ..." (Long-Data-Collections).
Besides, by part:
  natural-questions  the simplified release: {"question_text", "document_text", "annotations": [{"short_answers":
                     [{"start_token", "end_token"}], "yes_no_answer", "long_answer": {...}}]}; HTML tags go, records without
                     an answer are left out
  redpajama          {"text"}: the record asks to continue the text, and the answer is its last quarter, at most
                     --continuation bytes
  book-summaries     {"chapter" or "text", "summary_text" or "summary"}
  longqa             records shorter than --shortest-longqa bytes, LongAlpaca's short ones, are left out

Which records are taken depends on --seed and on their content alone, not on their order or the number of files; equal
records are taken once. A part that is missing or has too few records is an error, unless --generate-missing names it (or
is "all"): then questions about --books fill it (sinklora corpus --books), and the record says so.

Writes OUT, a JSON array with a record a line ("source" names its part), in random order, and beside it OUT.record.json:
seed, options that decide the output, counts, the program's version if it made questions, and name, size and SHA-256 of
every file. Standard library only. Memory: the records taken, and one input file if it is an array.
"""
import argparse
import bz2
import gzip
import hashlib
import heapq
import json
import lzma
import os
import pathlib
import re
import subprocess
import sys
import tempfile

DECISIVE = ("total", "continuation", "shortest_longqa", "generate_missing", "shortest", "longest")  # options that decide the output
PARTS = {"natural-questions": 12320, "redpajama": 7560, "book-summaries": 5040, "longqa": 3080}
TOTAL = sum(PARTS.values())


def fail(message):
    sys.exit(f"build_longalpaca_plus: {message}")


def counts_of(total):
    """Records of each part: the paper's shares of `total`, rounded so that they add up."""
    exact = {name: total * count / TOTAL for name, count in PARTS.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(PARTS, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[:total - sum(counts.values())]:
        counts[name] += 1
    return counts


def read_records(path):
    """(place, record) for every element of an array or every line."""
    packed = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    open_file = packed.get(path.suffix, open)
    plain = path.with_suffix("") if path.suffix in packed else path
    if path.suffix == ".zst":
        fail(f"{path}: unpack it first (zstd -d {path.name})")
    place = str(path)
    try:
        with open_file(path, "rt", encoding="utf-8-sig") as file:
            if plain.suffix == ".json":
                elements = json.load(file)
                if not isinstance(elements, list):
                    fail(f"{path}: not a JSON array")
                for number, element in enumerate(elements):
                    yield f"{path}: record {number}", element
            else:
                for number, line in enumerate(file, 1):
                    place = f"{path}: line {number}"
                    if line.strip():
                        yield place, json.loads(line)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, ValueError) as error:
        fail(f"{place}: {error}")


def text_of(record, *keys):
    for key in keys:
        if isinstance(record.get(key), str) and record[key].strip():
            return record[key]
    return None


def without_tags(words):
    return " ".join(word for word in words if not re.fullmatch(r"<[^>]*>", word))


def from_natural_question(record):
    words = record["document_text"].split(" ")
    for annotation in record.get("annotations", []):
        spans = [words[a["start_token"]:a["end_token"]] for a in annotation.get("short_answers", [])]
        answer = ", ".join(filter(None, map(without_tags, spans)))
        if not answer and annotation.get("yes_no_answer") in ("YES", "NO"):
            answer = annotation["yes_no_answer"].capitalize()
        long = annotation.get("long_answer", {})
        if not answer and long.get("start_token", -1) >= 0:
            answer = without_tags(words[long["start_token"]:long["end_token"]])
        if answer:
            question = record["question_text"].strip().rstrip("?")
            return (f"Answer the question with what the document below says.\n\n{without_tags(words)}\n\n"
                    f"The document ends here. {question[:1].upper()}{question[1:]}?"), answer
    return None


def from_running_text(text, continuation):
    size = len(text.encode())
    start = text.rfind(" ", 0, len(text) - max(1, min(size // 4, continuation) * len(text) // size))
    if start <= 0:
        return None
    return f"Below is the beginning of a text. Continue it.\n\n{text[:start]}", text[start + 1:]


def normalized(part, record, arguments):
    """(instruction, output) of a record, or None where it has none."""
    if not isinstance(record, dict):
        return None
    output = text_of(record, "output", "completion")
    instruction = text_of(record, "instruction", "prompt")
    more = text_of(record, "input")
    if output and (instruction or more):
        pair = "\n".join(filter(None, (instruction, more))), output
    elif part == "natural-questions" and isinstance(record.get("document_text"), str) and text_of(record, "question_text"):
        pair = from_natural_question(record)
    elif part == "book-summaries" and text_of(record, "summary_text", "summary"):
        book = text_of(record, "chapter", "text")
        pair = book and (f"Below is a part of a book. Summarize it.\n\n{book}\n\nThe part of the book ends here. Summarize it.",
                         text_of(record, "summary_text", "summary"))
    elif part == "redpajama":
        text = text_of(record, "text")
        pair = text and from_running_text(text, arguments.continuation)
    else:
        text = text_of(record, "text")
        asked, found, answer = text.rpartition("\nAnswer:") if text else ("", "", "")
        pair = (asked + "\nAnswer:", answer) if found else None
    if not pair or not pair[0].strip() or not pair[1].strip():
        return None
    "".join(pair).encode()  # fails here, where the place is known, on half a surrogate pair
    if part == "longqa" and len(pair[0].encode()) < arguments.shortest_longqa:
        return None
    return pair


def describe(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def key_of(seed, pair):
    """Equal for equal records; records in the order of their keys are in random order."""
    return hashlib.sha256(json.dumps([seed, *(" ".join(text.split()) for text in pair)]).encode()).hexdigest()


def take(part, files, wanted, taken, arguments):
    """The `wanted` records of smallest keys that no earlier part has, and what was read."""
    best, keys, read = [], set(), []  # a heap of the largest key first: negated as numbers
    for path in files:
        facts = describe(path) | {"records": 0, "unusable": 0, "duplicates": 0}
        for place, record in read_records(path):
            facts["records"] += 1
            try:
                pair = normalized(part, record, arguments)
            except (KeyError, TypeError, AttributeError, IndexError, UnicodeEncodeError) as error:
                fail(f"{place}: not understood as {part} ({type(error).__name__}: {error})")
            if not pair:
                facts["unusable"] += 1
                continue
            key = key_of(arguments.seed, pair)
            if key in keys or key in taken:
                facts["duplicates"] += 1
                continue
            keys.add(key)
            heapq.heappush(best, (-int(key, 16), key, pair))
            if len(best) > wanted:
                heapq.heappop(best)
        read.append(facts)
    return {key: pair for _, key, pair in best}, read


def version_of(program):
    return "sinklora " + subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def generate(part, count, arguments):
    """`count` questions about the books, by the program; other ones for every part."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "questions.json"
        command = [arguments.program, "corpus", "--out", str(out), "--format", "alpaca", "--documents", str(count),
                   "--shortest", str(arguments.shortest), "--longest", str(arguments.longest), "--seed",
                   str(arguments.seed * len(PARTS) + list(PARTS).index(part)), "--books", *map(str, arguments.books)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            fail(f"--program {arguments.program}: {error}")
        if done.returncode:
            fail(f"{arguments.program} corpus: {done.stderr.strip()}")
        pairs = [(record["instruction"], record["output"]) for record in json.loads(out.read_text())]
    return {key_of(arguments.seed, pair): pair for pair in pairs}


def write_text(path, text):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part, count in PARTS.items():
        parser.add_argument(f"--{part}", type=pathlib.Path, nargs="+", default=[], metavar="FILE", help=f"{count} records")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total", type=int, default=TOTAL, help="another size, in the same shares (%(default)s)")
    parser.add_argument("--continuation", type=int, default=2000, metavar="BYTES", help="%(default)s")
    parser.add_argument("--shortest-longqa", type=int, default=4000, metavar="BYTES", help="of the instruction (%(default)s)")
    parser.add_argument("--generate-missing", nargs="+", default=[], choices=[*PARTS, "all"], metavar="PART")
    parser.add_argument("--books", type=pathlib.Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--shortest", type=int, default=8000, metavar="BYTES", help="of generated passages (%(default)s)")
    parser.add_argument("--longest", type=int, default=32000, metavar="BYTES", help="of generated passages (%(default)s)")
    parser.add_argument("--program", default=str(pathlib.Path(__file__).resolve().parents[1] / "build" / "sinklora"))
    arguments = parser.parse_args()
    if arguments.generate_missing and not arguments.books:
        parser.error("--generate-missing asks questions about --books: name some")
    for path in [file for part in PARTS for file in getattr(arguments, part.replace("-", "_"))] + arguments.books:
        if not path.is_file():
            parser.error(f"{path}: no such file")
    if not arguments.out.parent.is_dir():
        parser.error(f"--out {arguments.out}: no such folder")
    if arguments.total < 1:
        parser.error("--total must be at least 1")
    return arguments


def main():
    arguments = parse_arguments()
    records, taken, parts = [], set(), {}
    for part, wanted in counts_of(arguments.total).items():
        files = getattr(arguments, part.replace("-", "_"))
        found, read = take(part, files, wanted, taken, arguments)
        generated = {}
        if len(found) < wanted:
            if not {part, "all"} & set(arguments.generate_missing):
                what = f"{len(found)} usable records in the files of --{part}" if files else f"no --{part}"
                fail(f"{what}, {wanted} wanted; give more files, or --generate-missing {part} --books FILE...")
            generated = generate(part, wanted - len(found), arguments)
        for source, pairs in ((part, found), (f"generated for {part}", generated)):
            taken |= pairs.keys()
            records += [(key, source, pair) for key, pair in pairs.items()]
        parts[part] = {"wanted": wanted, "from_files": len(found), "generated": len(generated), "files": read}
        print(f"{part}: {len(found)} from {len(files)} files, {len(generated)} generated")
    records.sort()
    lines = (json.dumps({"instruction": pair[0], "input": "", "output": pair[1], "source": source}, ensure_ascii=False)
             for _, source, pair in records)
    write_text(arguments.out, "[\n" + ",\n".join(lines) + "\n]\n")
    record = {"name": "LongAlpaca-plus, reconstructed", "seed": arguments.seed,
              "options": {name: getattr(arguments, name) for name in DECISIVE}, "records": len(records), "parts": parts,
              "books": [], "output": describe(arguments.out)}
    if any(part["generated"] for part in parts.values()):
        record |= {"books": [describe(book) for book in arguments.books], "program": version_of(arguments.program)}
    write_text(arguments.out.with_name(arguments.out.name + ".record.json"), json.dumps(record, indent=1) + "\n")
    print(f"{arguments.out}: {len(records)} records")


if __name__ == "__main__":
    main()
