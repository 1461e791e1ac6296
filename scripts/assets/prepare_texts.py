#!/usr/bin/env python3
"""Prepares an archive of texts (novels, or LaTeX) for tokenizing: clean UTF-8, split into training and held-out ones.

    python scripts/assets/prepare_texts.py novels.tar.xz OUT_DIR
    python scripts/assets/prepare_texts.py stacks-project.tar.xz OUT_DIR --suffix .tex

Writes OUT_DIR/train/*.txt and OUT_DIR/heldout/*.txt. Byte-order marks go, CR LF and CR become LF. Of the texts in the
order of their names every ninth, from the fifth on, is held out: 10 of 90. Standard library only; some seconds.
"""
import argparse
import pathlib
import sys
import tarfile

HELD_OUT_EVERY, HELD_OUT_FIRST = 9, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--suffix", default=".txt", help="of the archive's members (.txt)")
    args = parser.parse_args()
    books = {}
    with tarfile.open(args.archive) as tar:
        for member in tar:
            name = pathlib.PurePosixPath(member.name).name
            if member.isfile() and name.endswith(args.suffix):
                if name in books:
                    sys.exit(f"{args.archive}: two texts are named {name}")
                text = tar.extractfile(member).read().decode("utf-8-sig")
                books[name] = text.replace("\r\n", "\n").replace("\r", "\n")
    if not books:
        sys.exit(f"{args.archive}: no {args.suffix} file in it")
    size = {"train": 0, "heldout": 0}
    for index, name in enumerate(sorted(books)):
        part = "heldout" if index % HELD_OUT_EVERY == HELD_OUT_FIRST else "train"
        (args.out / part).mkdir(parents=True, exist_ok=True)
        size[part] += (args.out / part / name).with_suffix(".txt").write_bytes(books[name].encode())
    for part, count in size.items():
        print(f"{args.out / part}: {count / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
