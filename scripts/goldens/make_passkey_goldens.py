#!/usr/bin/env python3
"""Makes test/golden/passkey.json: prompts of LongLoRA's passkey retrieval as its protocol words them, by numpy.

    python scripts/goldens/make_passkey_goldens.py [OUT_FILE]

Long prompts are given by their hash. Written from the protocol: a task line, filler, the pass key, filler, a question;
the filler is five sentences over and over, cut by characters; numpy's legacy generator, seeded with the trial's number,
draws first the characters in front of the key and then the key. Needs numpy.
"""
import hashlib
import json
import pathlib
import sys

import numpy as np

TASK = ("There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.")
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "What is the pass key? The pass key is"


def prompt_of(filler_characters: int, seed: int) -> tuple[str, int]:
    random = np.random.RandomState(seed)
    before = random.randint(0, filler_characters)
    key = random.randint(1, 50000)
    filler = " ".join([FILLER] * 5000)
    lines = [TASK, filler[:before], f"The pass key is {key}. Remember it. {key} is the pass key.",
             filler[:filler_characters - before], QUESTION]
    return "\n".join(lines), int(key)


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                       pathlib.Path(__file__).parents[2] / "test" / "golden" / "passkey.json")
    cases = []
    for index, interval in ((0, 1000), (1, 1000), (31, 1000), (0, 300), (6, 1111), (99, 1000)):
        filler_characters = int(3.75 * (index + 1) * interval // 1024 * 1024)
        for seed in (0, 1, 5, 9, 666):
            prompt, key = prompt_of(filler_characters, seed)
            cases.append({"index": index, "interval": interval, "seed": seed, "filler_characters": filler_characters,
                          "key": key, "characters": len(prompt),
                          "sha256": hashlib.sha256(prompt.encode()).hexdigest()})
    short, key = prompt_of(1024, 3)
    out.write_text(json.dumps({"cases": cases, "short": {"filler_characters": 1024, "seed": 3, "key": key,
                                                         "prompt": short}}, indent=1) + "\n")


main()
