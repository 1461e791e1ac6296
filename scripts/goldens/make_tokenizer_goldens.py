#!/usr/bin/env python3
"""Makes test/golden/tokenizer: small tokenizers of our own and what the reference libraries make of hostile text; and
from them the seeds of the tokenizers' fuzz target.

Needs the Python packages tokenizers and sentencepiece. Every text is written here, so the files are the project's own.
Each NAME.jsonl holds one case a line: {"text", "ids"}, and "special": true where special tokens are parsed. prepend.json
shares those of sentencepiece.model.
    python3 scripts/goldens/make_tokenizer_goldens.py
"""
import contextlib
import json
import random
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TESTS = Path(__file__).resolve().parents[2] / "test"
OUT = TESTS / "golden" / "tokenizer"
SEEDS = TESTS / "fuzz" / "corpus" / "tokenizer"
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# A few words of many languages; sentences are drawn from them at random.
WORDS = """the of and a to in is that it was for on are with as his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did
down only way find use may water long little very after words called just where most know river stone window morning
attention tokens context sinks groups shifted training don't it's we'll I'm they've you'd he'd can't I’ve naïve café
der die und nicht über größer Straße Mädchen für wäre é à où garçon être Noël señor niño mañana corazón
привет мир это был человек время дом вода слово который Ελλάδα λόγος καὶ θάλασσα שלום עולם مرحبا بالعالم كتاب
नमस्ते दुनिया हिन्दी ไทย ภาษา không được người Việt đường 你好 世界 中文 時間 漢字 日本語 ひらがな カタカナ 한국어 안녕하세요
def return while for(int i=0;i<n;++i) {x} [i] == != -> :: // #include <vector> self.value None True 0x1F 3.14 1,000 2024
""".split()

CASES = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n", " \n", "\n ", "  \n  x", "\t\tx", "x\t", "x ", " x", "  x", "x  y",
    "Hello world!", " Hello world! ", "the river and the stone", "Hello,world", "can't CAN'T I'LL we'Ll they'VE 'tis 's'S",
    "it's ſ don'ſ we'ſt", "1", "12", "123", "1234", "1234567890", "3.14159 1,000,000 x1y22z333", "٣٤٥ ४५६ ½ ² ⅷ 一二三 ①②",
    "a" * 50, "ab" * 40, " " * 40, " " * 40 + "x", "\n" * 9, "\t" * 9 + "x", "-" * 33, "=" * 70, "....!!!???", "x" + " " * 17 + "y",
    "привет мир", "Ελλάδα", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "ภาษาไทย", "không được người Việt", " không", "你好，世界。",
    "日本語のひらがなとカタカナ", "안녕하세요 한국어", "naïve café", "e\u0301 a\u0308o\u0302", "n\u0303\u0303\u0303", "ﬁ ﬂ ǆ Ⅷ",
    "👍", "👨‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "👍🏽👎🏿", "☃️ ☃", "x👍y👍z", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈𐌰", "\U0010ffff", "\ufffd", "\ufeffBOM", "\u200b\u200c\u200d",
    "a\u00a0b", "\u00a0", "a\u2003b\u3000c", "\u0085x", "\u180ex y", "x\u2028y\u2029z", "soft\u00adhyphen", "a\x00b", "\x00", "\x01\x02\x7f",
    "▁", "a▁b", " ▁ ", "▁▁a", "line one\nline two\r\nline three\rline four\n\n\nend", "    indented = True  # comment\n\treturn x\n",
    "for(int i=0;i<n;++i) {x[i] += 0x1F;}", "#include <vector>\n\nint main() { return 0; }\n", "https://example.org/a?b=c&d=%20#e",
    "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "a<s>b</s>c", "<|endoftext|>", "<|eot_id|>x<|eot_id|>", " <s> x", "<|begin_of_text|>hi",
    "<mask>", "a <mask> b", "a<mask>b", "x  <mask>  y", "<mask><mask>", "word", "a word b", "words sword", "word-word", "wordé éword", "<tag>", "x<tag>y",
    "don’t “quote” – dash—dash…", "A" * 3 + "b" * 3 + "C" * 3, "camelCaseWords SNAKE_CASE_WORDS", "\\n \\t \\\\", "{\"key\": [1, 2, {\"k\": null}]}",
    "ABC DEF" + "\n" * 3 + "  GHI", " leading", "trailing ", "\u0301", "\u0e33\u0e33", "ᄀᄁ가힣", "ꙮ ⸘ ‽", "क्षत्रिय ज्ञान", "ｆｕｌｌ ｗｉｄｔｈ １２３",
]
SPECIAL_CASES = [
    "<s>", "<s>x", "x</s>", "<s> x </s> y", "<unk>", "a<s>b</s>c", "<s><s></s>", "<|endoftext|>", "x<|endoftext|>y", " <|endoftext|> ",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello 123<|eot_id|>", "<|eot_id", "<|eot_id|>|>", "<mask>", "a  <mask>  b",
    "word", "a word", "\n<mask>\n", "<s>\n</s>", "x <tag> y", "<|end|>  x", "x  <|end|>",
]


def training_text():
    draw = random.Random(1)
    lines = []
    for _ in range(3000):
        words = [draw.choice(WORDS[:120]) if draw.random() < 0.6 else draw.choice(WORDS) for _ in range(draw.randint(3, 14))]
        if draw.random() < 0.3:
            words.insert(draw.randrange(len(words)), str(draw.randrange(10 ** draw.randint(1, 6))))
        if draw.random() < 0.3:
            words[0] = words[0].capitalize()
        lines.append(draw.choice(["", "", "  ", "    ", "\t"]) + draw.choice([" ", " ", " ", ", "]).join(words) +
                     draw.choice([".", "", "!", "?", ";", "\n"]))
    return lines


def write_cases(name, encode):
    with open(OUT / f"{name}.jsonl", "w", encoding="ascii") as out:
        for special, texts in ((False, CASES), (True, SPECIAL_CASES)):
            for text in texts:
                case = {"text": text, "ids": encode(text, special)}
                if special:
                    case["special"] = True
                out.write(json.dumps(case, separators=(",", ":")) + "\n")


def write_json(name, document):
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    reader = Tokenizer.from_file(str(path))

    def encode(text, special):
        reader.encode_special_tokens = not special
        return reader.encode(text, add_special_tokens=False).ids

    write_cases(name, encode)


def byte_level(lines, pre_tokenizer, vocab_size, special_tokens):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def make_byte_level(lines):
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    gpt2 = byte_level(lines, plain, 700, ["<|endoftext|>"])
    document = json.loads(gpt2.to_str())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]  # as older files have them
    write_json("gpt2", document)

    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated", invert=False),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    llama3 = byte_level(lines, split, 800, [])
    document = json.loads(llama3.to_str())
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    document["model"]["ignore_merges"] = True
    # Words that no merge makes: with ignore_merges they are one token all the same.
    for word in (" không", "Hello", "  ", "123", " 👍"):
        spelled = "".join(piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word))
        vocab.setdefault(spelled, len(vocab))
    assert len(merges) < len(vocab) - 256
    document = json.loads(json.dumps(document))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    document["added_tokens"] = [dict(id=len(vocab) + i, content=name, single_word=False, lstrip=False, rstrip=False,
                                     normalized=False, special=True) for i, name in enumerate(names)]
    bos = {"id": names[0], "ids": [len(vocab)], "tokens": [names[0]]}
    document["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": names[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {names[0]: bos}}]}
    write_json("llama3", document)

    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    smollm = byte_level(lines, digits, 600, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    smollm.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("<|end|>", rstrip=True)])
    smollm.add_tokens([AddedToken("word", single_word=True), AddedToken("<tag>", lstrip=True, normalized=False)])
    write_json("smollm", json.loads(smollm.to_str()))


def train_sentencepiece(lines, name, rules="", **settings):
    """Trains in a folder of its own, under relative names: the model keeps them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("text").write_text("\n".join(line.replace("\n", " ") for line in lines), encoding="utf-8")
        if rules:
            Path("rules.tsv").write_text(rules, encoding="ascii")
            settings["normalization_rule_tsv"] = "rules.tsv"
        sentencepiece.SentencePieceTrainer.train(
            input="text", model_prefix=name, model_type="bpe", byte_fallback=True, split_digits=True, vocab_size=800,
            character_coverage=0.98, num_threads=1, minloglevel=2, allow_whitespace_only_pieces=True, **settings)
        (OUT / f"{name}.model").write_bytes(Path(f"{name}.model").read_bytes())
    return sentencepiece.SentencePieceProcessor(model_file=str(OUT / f"{name}.model"))


def split_specials(text, names):
    """Text and names of special tokens in turn, as LLaMA's tokenizer splits it."""
    parts, rest = [], text
    while rest:
        at, name = min(((rest.find(name), name) for name in names if name in rest), default=(len(rest), None))
        if at:
            parts.append((rest[:at], False))
        if name:
            parts.append((name, True))
        rest = rest[at + len(name or ""):]
    return parts


def make_sentencepiece(lines):
    model = train_sentencepiece(lines, "sentencepiece", normalization_rule_name="identity", remove_extra_whitespaces=False)

    def encode_with(processor):
        def encode(text, special):
            names = ["<unk>", "<s>", "</s>"] if special else []
            return [i for part, is_name in split_specials(text, names)
                    for i in ([processor.piece_to_id(part)] if is_name else processor.encode(part))]
        return encode

    write_cases("sentencepiece", encode_with(model))

    # A model with a charsmap, as those have that normalize text.
    rules = "".join(" ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n"
                    for source, target in (("ﬁ", "fi"), ("\u00a0", " "), ("½", "1/2"), ("…", "..."), ("é", "e\u0301")))
    normalizing = train_sentencepiece(lines[:400], "normalizing", rules, remove_extra_whitespaces=True)
    write_cases("normalizing", encode_with(normalizing))

    # The same vocabulary as tokenizer.json: a merge for every way to make a piece of two others, best score first.
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    merges = []
    for piece, i in vocab.items():
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i)):
            merges += [(i, vocab[piece[:k]], vocab[piece[k:]], piece[:k], piece[k:]) for k in range(1, len(piece))
                       if piece[:k] in vocab and piece[k:] in vocab]
    merges.sort()
    added = [dict(id=i, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for i, name in enumerate(["<unk>", "<s>", "</s>"])]
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": bos}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": [[left, right] for _, _, _, left, right in merges]}}
    write_json("prepend", document)
    shared = OUT / "prepend.jsonl"
    assert shared.read_bytes() == (OUT / "sentencepiece.jsonl").read_bytes()
    shared.unlink()

    document["normalizer"] = None
    document["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    document["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁",
                           "prepend_scheme": "first", "split": True}]}
    # Without the byte pieces, unknown characters become one <unk>.
    document["model"]["byte_fallback"] = False
    write_json("metaspace", document)


def make_fuzz_seeds():
    """Inputs of test/fuzz/fuzz_tokenizer.cpp: the length of a text, the text, a tokenizer cut down to a few entries."""
    for name in ("gpt2", "llama3", "smollm", "prepend", "metaspace"):
        document = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
        names = {token["content"] for token in document["added_tokens"]}
        vocab = list("abĠ▁1") + ["ab", "Ġa", "▁a", "<0x41>"] + sorted(names)
        document["model"]["vocab"] = {piece: i for i, piece in enumerate(vocab)}
        document["model"]["merges"] = [["a", "b"], ["Ġ", "a"], ["▁", "a"]]
        for token in document["added_tokens"]:
            token["id"] = vocab.index(token["content"])
        text = " ab a1b  <s><|eot_id|> word\n\u00e9".encode() + b"\xff\x00"
        seed = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        (SEEDS / name).write_bytes(bytes([len(text)]) + text + seed)
    (SEEDS / "sentencepiece").write_bytes(b"\x05 ab\xff\n" + (OUT / "normalizing.model").read_bytes())


if __name__ == "__main__":
    for folder in (OUT, SEEDS):
        folder.mkdir(parents=True, exist_ok=True)
    text = training_text()
    make_byte_level(text)
    make_sentencepiece(text)
    make_fuzz_seeds()
