#!/usr/bin/env python3
"""Pages of books that repeat themselves: text from which a model learns to look back and copy.

    python scripts/assets/repeat_passages.py OUT.jsonl BOOK.txt ... --bytes 60e6 --shortest 800 --longest 3200

A small model that has read novels alone predicts from the last words; nothing there pays for finding a passage again. Here half of
each document comes from earlier in it: stretches of 40 to 1,000 bytes, from anywhere before, follow stretches of a book that are new.
Writes {"text": ...} a line, for `sinklora tokenize --pack`; equal arguments give equal bytes. Standard library only; 10 MB a second.
"""
import argparse
import json
import math
import pathlib
import random


def stretch(draws: random.Random, text: str) -> str:
    """Whole words of it, their length even on a logarithmic scale."""
    length = int(math.exp(draws.uniform(math.log(40), math.log(1000))))
    begin = draws.randrange(max(1, len(text) - length))
    begin = text.find(" ", begin) + 1
    end = text.find(" ", begin + length)
    return text[begin:end if end >= 0 else len(text)]


def document(draws: random.Random, book: str, length: int) -> str:
    text = stretch(draws, book)
    while len(text) < length:
        text += " " + stretch(draws, book if len(text) < 300 or draws.random() < 0.5 else text)
    return text[:length]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("books", type=pathlib.Path, nargs="+")
    parser.add_argument("--bytes", type=float, default=60e6, help="of all documents together (60e6)")
    parser.add_argument("--shortest", type=int, default=800, help="document, in bytes")
    parser.add_argument("--longest", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    books = [book.read_text() for book in args.books]
    draws, written = random.Random(args.seed), 0
    with open(args.out, "w") as to:
        while written < args.bytes:
            text = document(draws, draws.choices(books, [len(book) for book in books])[0], draws.randint(args.shortest, args.longest))
            to.write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())


if __name__ == "__main__":
    main()
