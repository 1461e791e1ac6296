#!/usr/bin/env python3
"""Records files of the reference safetensors writer: test/golden/safetensors/. Needs torch and safetensors."""
import pathlib

import safetensors
import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "test" / "golden" / "safetensors"


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    ramp = torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2.5
    mixed = {
        "z.f32": ramp,
        "a.f32": ramp[0].clone(),
        "b.bf16": ramp.bfloat16(),
        "c.f16": ramp.half(),
        "d.f64": ramp.double(),
        "e.i64": torch.tensor([1, -2, 3]),
        "f.i32": torch.tensor([7], dtype=torch.int32),
        "scalar": torch.tensor(4.5),
        "empty": torch.zeros(2, 0),
        'name "quoted" \\ \t \x01 \x7f \u00e9\u65e5\U0001f600': torch.tensor([1.0]),
    }
    save_file(mixed, OUT / "mixed.safetensors", metadata={"format": "pt"})
    foreign = {
        "f8": torch.ones(4).to(torch.float8_e4m3fn),
        "flag": torch.tensor([True, False]),
        "u8": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "fine": torch.tensor([1.5, 2.5]),
    }
    save_file(foreign, OUT / "foreign.safetensors", metadata={"format": "pt", "maker": "reference"})
    save_file({}, OUT / "nothing.safetensors")
    print(f"{OUT}: safetensors {safetensors.__version__}")


if __name__ == "__main__":
    main()
