#!/usr/bin/env python3
"""checkpoint_difference.py A.safetensors B.safetensors [SUFFIX]: how far two files of F32 tensors are apart.

Prints the greatest |a - b| / |a| (Euclidean norms) of any tensor whose name ends in SUFFIX, and that tensor's
name. Where a is zero, b has to be. After one step without clipping, the .exp_avg of optimizer.safetensors are
a tenth of the gradients. Needs nothing but Python.
"""
import array
import json
import math
import struct
import sys


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        if info["dtype"] != "F32":
            sys.exit(f"{path}: {name} is {info['dtype']}, wanted F32")
        begin, end = info["data_offsets"]
        tensors[name] = array.array("f", data[begin:end])
    return tensors


def norm(numbers):
    return math.sqrt(math.fsum(x * x for x in numbers))


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    a, b = read(sys.argv[1]), read(sys.argv[2])
    suffix = sys.argv[3] if len(sys.argv) > 3 else ""
    if a.keys() != b.keys():
        sys.exit(f"different tensors: {sorted(a.keys() ^ b.keys())[:5]}")
    names = [name for name in a if name.endswith(suffix)]
    if not names:
        sys.exit(f"no tensor ends in {suffix!r}")
    worst, where = 0.0, names[0]
    for name in names:
        difference, size = norm(x - y for x, y in zip(a[name], b[name])), norm(a[name])
        relative = difference / size if size > 0 else (math.inf if difference > 0 else 0.0)
        if not relative <= worst:  # NaN is worse than anything
            worst, where = relative, name
    print(f"{worst:.3e} {where} ({len(names)} tensors)")


main()
