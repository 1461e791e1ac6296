#!/usr/bin/env python3
"""Compares our tokenizers with the reference libraries on texts of any size, id by id.

Needs the Python package tokenizers (for a tokenizer.json) or sentencepiece (for a tokenizer.model), and built tests.
    python3 scripts/check_tokenizer_parity.py --tokenizer llama/tokenizer.json --text novels/*.txt
Every text is checked whole in pieces of --piece characters and, up to --lines of them, line by line; the hostile texts
of test/golden/tokenizer are checked as well. Leaves with the tests' exit code.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def reference(path):
    if path.suffix == ".model":
        import sentencepiece
        return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # their names in a text stay text
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def texts(arguments):
    for line in (ROOT / "test/golden/tokenizer/gpt2.jsonl").read_text().splitlines():
        yield json.loads(line)["text"]
    for path in arguments.text:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")  # line ends as they are
        for begin in range(0, len(text), arguments.piece):
            yield text[begin:begin + arguments.piece]
        yield from text.splitlines(keepends=True)[:arguments.lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--piece", type=int, default=1_000_000)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--tests", type=Path, default=ROOT / "build/sinklora_tests")
    arguments = parser.parse_args()
    encode = reference(arguments.tokenizer)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as cases:
        for text in texts(arguments):
            cases.write(json.dumps({"text": text, "ids": encode(text)}) + "\n")
        cases.flush()
        environment = dict(os.environ, SINKLORA_PARITY_TOKENIZER=str(arguments.tokenizer.resolve()),
                           SINKLORA_PARITY_CASES=cases.name)
        sys.exit(subprocess.run([arguments.tests, "-tc=parity with recorded ids*"], env=environment).returncode)


if __name__ == "__main__":
    main()
