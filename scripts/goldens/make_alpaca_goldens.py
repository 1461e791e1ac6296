#!/usr/bin/env python3
"""Makes test/golden/alpaca: 200 instruction records, and the ids and labels that LongLoRA's supervised preprocessing
gives them.

    python3 scripts/goldens/make_alpaca_goldens.py [--llama2 DIRECTORY]

A transcription of the definition, with the reference tokenizers. A record's source is its instruction in the template
(with the input, where that is a non-empty string), its target the output and EOS. `together`, which is LongLoRA's way
(--mask-compat longlora): source and target are tokenized as one text, cut at the context, and as many labels as the
source alone has tokens, cut at the context too, are IGNORED. `apart`: the target's tokens are appended to the
source's, tokenized as the text goes on there (sentencepiece puts no second dummy space). Where every label is IGNORED, a
mean over the scored ones is 0/0: such records have "scored": 0.

The records are drawn here, and the small tokenizers are the project's own (make_tokenizer_goldens.py). Ids and labels
are given as hashes, those of the first ten records in full. --llama2: a directory with llama2-tokenizer.model and
llama2-tokenizer.json, which must agree; what is written then holds the hashes of LLaMA-2's ids too (and not one piece of
its vocabulary). Needs the Python packages tokenizers and sentencepiece.
"""
import argparse
import array
import hashlib
import json
import random
import sys
from pathlib import Path

import sentencepiece
import tokenizers

GOLDEN = Path(__file__).resolve().parents[2] / "test" / "golden"
IGNORED = -100
RECORDS = 200
CONTEXT = 640
SHOWN = 10

SYSTEM = ("You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
          "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
          "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
          "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
          "not correct. If you don't know the answer to a question, please don't share false information.")
TEMPLATES = {  # name: (without input, with input)
    "llama2": ("[INST]{instruction}[/INST]", "[INST] <<SYS>>\n" + SYSTEM + "\n<</SYS>> \n\n {instruction} \n{input} [/INST]"),
    "alpaca": ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
               "### Instruction:\n{instruction}\n\n### Response:",
               "Below is an instruction that describes a task, paired with an input that provides further context. "
               "Write a response that appropriately completes the request.\n\n"
               "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"),
    "none": ("{instruction}", "{instruction}\n{input}"),
}
WORDS = ("the river and a stone window in morning light they had found it was not there but who could know that time "
         "would make one little house over water find use long after words called what when 1815 3.14 naïve Straße мир 世界 "
         "it's don't (x) \"quoted\" dash—dash [INST] <b>").split()
SEAMS = ["", "", "", "", " ", "\n", "(", ",", ".", "; ", "]", ":", "s ", "'s ", "ing ", "12", "é", "世", "\n\n", "### "]


def draw_records():
    draw = random.Random(6)

    def text(low, high):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    records = []
    for number in range(RECORDS):
        long_source, long_target = number % 20 == 7, number % 20 == 13
        record = {"instruction": text(450, 500) if long_source else text(1, 90),
                  "output": draw.choice(SEAMS) + (text(450, 500) if long_target else text(0, 40))}
        kind = number % 5
        if kind == 1:
            record["input"] = None
        elif kind == 2:
            record["input"] = ""
        elif kind == 3:
            record["input"] = text(1, 12)
        if number % 4 == 0:
            record["file"] = draw.choice([None, "", "paper.pdf"])
        if number % 50 == 20:
            record["output"] = None
        records.append(record)
    return records


class SentencePiece:
    """Ids as LLaMA-2's tokenizer gives them; `more`: of a text that goes on behind another."""

    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos, self.eos = self.model.bos_id(), self.model.eos_id()
        self.line = self.model.encode("\n")

    def text(self, text):
        return self.model.encode(text)

    def more(self, text):
        ids = self.model.encode("\n" + text)
        assert ids[:len(self.line)] == self.line, "the line break must be a token of its own"
        return ids[len(self.line):]


class ByteLevel:
    """A byte-level BPE: a text that goes on is tokenized like any other."""

    def __init__(self, path):
        self.model = tokenizers.Tokenizer.from_file(str(path))
        self.bos = None  # this tokenizer begins a text with nothing
        self.eos = self.model.token_to_id("<|endoftext|>")

    def text(self, text):
        return self.model.encode(text, add_special_tokens=False).ids

    more = text


def preprocess(record, tokenizer, template, together):
    without_input, with_input = TEMPLATES[template]
    source = (with_input if record.get("input") else without_input).format_map(
        {"instruction": record["instruction"], "input": record.get("input")})
    target = record["output"] or ""
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    source_ids = begin + tokenizer.text(source)
    ids = begin + tokenizer.text(source + target) if together else source_ids + tokenizer.more(target)
    ids = (ids + [tokenizer.eos])[:CONTEXT]
    labels = list(ids)
    masked = min(len(source_ids), CONTEXT)
    labels[:masked] = [IGNORED] * len(labels[:masked])
    return ids, labels


def digest(numbers):
    values = array.array("i", numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def golden_of(records, tokenizer, template):
    result = {"template": template}
    for name in ("apart", "together"):
        cases = []
        for number, record in enumerate(records):
            ids, labels = preprocess(record, tokenizer, template, name == "together")
            case = {"tokens": len(ids), "scored": sum(label != IGNORED for label in labels), "ids": digest(ids),
                    "labels": digest(labels)}
            if number < SHOWN:
                case |= {"all_ids": ids, "all_labels": labels}
            cases.append(case)
        result[name] = cases
    return result


def without_pieces(golden):
    for name in ("apart", "together"):
        for case in golden[name]:
            case.pop("all_ids", None), case.pop("all_labels", None)
    return golden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama2", type=Path, metavar="DIRECTORY")
    arguments = parser.parse_args()
    out = GOLDEN / "alpaca"
    out.mkdir(exist_ok=True)
    records = draw_records()
    (out / "records.json").write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n")
    runs = [("sentencepiece.llama2", SentencePiece(GOLDEN / "tokenizer" / "sentencepiece.model"), "llama2"),
            ("gpt2.none", ByteLevel(GOLDEN / "tokenizer" / "gpt2.json"), "none"),
            ("gpt2.alpaca", ByteLevel(GOLDEN / "tokenizer" / "gpt2.json"), "alpaca")]
    goldens = {name: golden_of(records, tokenizer, template) for name, tokenizer, template in runs}
    if arguments.llama2:
        tokenizer = SentencePiece(arguments.llama2 / "llama2-tokenizer.model")
        fast = tokenizers.Tokenizer.from_file(str(arguments.llama2 / "llama2-tokenizer.json"))
        for record in records:
            text = TEMPLATES["llama2"][0].format_map(record) + (record["output"] or "")
            assert fast.encode(text, add_special_tokens=False).ids == tokenizer.text(text)
        goldens["llama2.llama2"] = without_pieces(golden_of(records, tokenizer, "llama2"))
    for name, golden in goldens.items():
        differ = sum(a["labels"] != b["labels"] for a, b in zip(golden["apart"], golden["together"]))
        empty = sum(case["scored"] == 0 for case in golden["together"])
        cut = sum(case["tokens"] == CONTEXT for case in golden["together"])
        print(f"{name}: {len(records)} records, {differ} differ by the seam, {cut} are cut, {empty} score nothing")
        lines = (f'  "{way}": [\n' + ",\n".join("   " + json.dumps(case) for case in golden[way]) + "\n  ]"
                 for way in ("apart", "together"))
        (out / f"{name}.json").write_text(f'{{"context": {CONTEXT}, "template": "{golden["template"]}",\n' +
                                          ",\n".join(lines) + "\n}\n")


main()
