#!/usr/bin/env python3
"""Tables and plots of scripts/tables/miniature.py's rows.

    python scripts/tables/miniature_report.py RUN/rows.jsonl [--plots FOLDER --name A]     # the table; plots as SVG

"gap closed" is (P_s2 - P) / (P_s2 - P_full) at the longest context: 0 for S2-Attn, 1 for full attention. A value of several
seeds is their mean, with half their range behind it; the gap compares a row with s2 and full of its own seeds, which saw the
same samples in the same order.
"""
import argparse
import html
import math
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from paper_table import read_records  # noqa: E402

AS_THEY_ARE = ("untuned", "settled")  # how the names of rows begin that no pattern of attention has trained
ELSEWHERE = "not settled"  # how the names of rows end that began at another model: their gap would say nothing of attention


def merged(rows: list[dict]) -> dict[str, dict]:
    """By row name, untrained ones first, then in order of appearance: perplexities {text: {context: {seed: }}} and the first
    seed's cost."""
    found: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: not row["row"].startswith(AS_THEY_ARE)):
        entry = found.setdefault(row["row"], {"ppl": {}, "step_ms": row.get("step_ms"), "mem_gib": row.get("mem_gib")})
        for text, values in row["ppl"].items():
            for context, ppl in values.items():
                entry["ppl"].setdefault(text, {}).setdefault(context, {})[row["seed"]] = ppl
    return found


def mean(by_seed: dict[int, float]) -> float:
    return statistics.mean(by_seed.values())


def spread(by_seed: dict[int, float]) -> str:
    values = by_seed.values()
    digits = 2 if mean(by_seed) >= 10 else 3
    return f"{mean(by_seed):.{digits}f}" + (f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else "")


def gap(found: dict, name: str, text: str, context: str) -> float | None:
    if name.startswith(AS_THEY_ARE) or name.endswith(ELSEWHERE) or not {"s2", "full", name} <= set(found):
        return None
    s2, full, ours = (found[row]["ppl"][text][context] for row in ("s2", "full", name))
    seeds = s2.keys() & full.keys() & ours.keys()
    total = sum(s2[seed] - full[seed] for seed in seeds)
    return sum(s2[seed] - ours[seed] for seed in seeds) / total if total else None


def markdown(rows: list[dict], texts: list[str]) -> str:
    found = merged(rows)
    contexts = {text: sorted({c for row in found.values() for c in row["ppl"].get(text, {})}, key=int) for text in texts}
    columns = ["trained with", *[f"{text} {int(c):,}" for text in texts for c in contexts[text]],
               *[f"gap closed, {text}" for text in texts], "step, ms", "over s2", "GiB"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, row in found.items():
        cells = [name]
        cells += [spread(row["ppl"][text][c]) if c in row["ppl"].get(text, {}) else "" for text in texts for c in contexts[text]]
        for text in texts:
            share = gap(found, name, text, contexts[text][-1])
            cells.append("" if share is None else f"{100 * share:.0f} %")
        base = found.get("s2", {}).get("step_ms")
        cells.append(f"{row['step_ms']:.1f}" if row["step_ms"] else "")
        cells.append(f"{row['step_ms'] / base:.2f}" if row["step_ms"] and base else "")
        cells.append(f"{row['mem_gib']:.2f}" if row["mem_gib"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


COLOURS = ["#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#2c3e50", "#7f8c8d", "#16a085"]


def svg(series: dict[str, list[tuple[float, float]]], title: str, x_label: str, y_label: str, named: bool = False) -> str:
    """Lines over a logarithmic x; with `named` points alone, each with its name, over a linear x."""
    width, height, left, bottom, top, right = 720, 420, 70, 50, 36, 150
    points = [p for line in series.values() for p in line]
    fx = (lambda x: x) if named else (lambda x: math.log2(x + 1))
    xs, ys = [fx(x) for x, _ in points], [y for _, y in points]
    pad = 0.06 * (max(ys) - min(ys) or 1)
    x0, x1, y0, y1 = min(xs), max(xs), min(ys) - pad, max(ys) + pad

    def at(x, y):
        return (left + (fx(x) - x0) / ((x1 - x0) or 1) * (width - left - right),
                height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>', f'<text x="{left}" y="20" font-size="14">{html.escape(title)}</text>',
           f'<text x="{(width - right + left) / 2:.0f}" y="{height - 10}" text-anchor="middle">{x_label}</text>',
           f'<text transform="translate(16 {(height - bottom + top) / 2:.0f}) rotate(-90)" text-anchor="middle">{y_label}</text>',
           f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="black"/>']
    step = 10 ** math.floor(math.log10((y1 - y0) / 4))
    step *= next(k for k in (1, 2, 5, 10) if 5 * k * step >= y1 - y0)
    digits = max(0, -math.floor(math.log10(step)))
    for i in range(math.ceil(y0 / step), math.floor(y1 / step) + 1):
        y = i * step
        py = at(points[0][0], y)[1]
        out.append(f'<text x="{left - 6}" y="{py + 4:.1f}" text-anchor="end">{y:.{digits}f}</text><path d="M{left} {py:.1f}h{width - left - right}" stroke="#ddd"/>')
    for x in sorted({x for x, _ in points}) if not named else [min(xs), (min(xs) + max(xs)) / 2, max(xs)]:
        px = at(x, y0)[0]
        out.append(f'<text x="{px:.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:.0f}</text>')
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        placed = [at(x, y) for x, y in sorted(line)]
        if not named:
            out.append('<polyline fill="none" stroke="%s" stroke-width="1.8" points="%s"/>' % (colour, " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)))
            out.append(f'<text x="{width - right + 10}" y="{top + 14 + 16 * i}" fill="{colour}">{html.escape(name)}</text>')
        for x, y in placed:
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            if named:
                out.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" fill="{colour}" font-size="10">{html.escape(name)}</text>')
    return "\n".join(out + ["</svg>", ""])


def plots(rows: list[dict], folder: pathlib.Path, name: str) -> None:
    found = merged(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for text in next(iter(found.values()))["ppl"]:
        shown = [n for n in ("untuned", "untuned, PI x4", "settled, PI x4", "full", "s2", "sf-4", "sf-64") if n in found]
        curves = {n: [(int(c), mean(v)) for c, v in found[n]["ppl"][text].items()] for n in shown}
        # What the untuned model does beyond its context is off every scale.
        most = 1.15 * max(y for n, line in curves.items() if not n.startswith("untuned") for _, y in line)
        curves = {n: [p for p in line if p[1] <= most] for n, line in curves.items()}
        curves = {n: line for n, line in curves.items() if line}
        (folder / f"{name}-{text}-context.svg").write_text(svg(curves, f"{name}: perplexity on {text}", "context, tokens", "perplexity"))
        longest = max(found["full"]["ppl"][text], key=int)
        sinks = {0: "S&R only"} | {n: f"sf-{n}" for n in (1, 4, 16, 64, 256)}
        gaps = [(n, 100 * gap(found, row, text, longest)) for n, row in sinks.items() if row in found]
        (folder / f"{name}-{text}-sinks.svg").write_text(
            svg({"sf, rho 1/4": gaps}, f"{name}: gap between S2 and full closed, {text} at {int(longest):,}", "sinks", "% of the gap closed"))
        # Seeds move all rows together: the first one of each.
        cost = {n: [(row["step_ms"], next(iter(row["ppl"][text][longest].values())))] for n, row in found.items()
                if row["step_ms"] and not n.endswith(ELSEWHERE)}
        (folder / f"{name}-{text}-cost.svg").write_text(
            svg(cost, f"{name}: quality against cost (first seed), {text} at {int(longest):,}", "step, ms", "perplexity", named=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("--plots", type=pathlib.Path)
    parser.add_argument("--name", default="table")
    args = parser.parse_args()
    rows = read_records(args.rows)
    print(markdown(rows, list(rows[0]["ppl"])), end="")
    if args.plots:
        plots(rows, args.plots, args.name)


if __name__ == "__main__":
    main()
