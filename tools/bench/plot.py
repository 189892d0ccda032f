"""Draw a record of `fastrnn bench --json`: the speedup over each peer, and the share of the roofline.

    python tools/bench/plot.py RECORD.json [docs/performance.svg]

Needs matplotlib. The file extension selects the format: .svg (smallest and sharp), .png, .pdf. Cases without a result
are left blank, not dropped. Cases that lose are left of the line at 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastrnn.bench import load

MARKS = {"ort": "o", "ort-iobinding": "s", "torch": "^", "openvino": "D", "fastrnn-1t": "o"}
NAMES = {
    "ort": "onnxruntime, run",
    "ort-iobinding": "onnxruntime, IOBinding",
    "torch": "PyTorch",
    "openvino": "OpenVINO",
}
# Colours that colour-blind readers can distinguish (Okabe and Ito).
COLOURS = {
    "ort": "#0072b2",
    "ort-iobinding": "#56b4e9",
    "torch": "#d55e00",
    "openvino": "#009e73",
    "fastrnn-1t": "#0072b2",
}
ROW_INCHES = 0.19
SHARE_TARGET = 0.8


def draw(record: dict, path: Path) -> None:
    """Write one picture with two panels and one row per case: ratios on a logarithmic axis, shares from 0 to 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = record["cases"]
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(10, 1.6 + ROW_INCHES * len(cases)), width_ratios=[3, 1], layout="constrained"
    )
    rows = range(len(cases))
    for name in dict.fromkeys(n for c in cases for n in c["ratios"]):
        points = [(c["ratios"][name]["ratio"], y) for y, c in zip(rows, cases, strict=True) if name in c["ratios"]]
        left.scatter(
            *zip(*points, strict=True),
            s=16,
            marker=MARKS.get(name, "o"),
            color=COLOURS.get(name),
            label=NAMES.get(name, name),
        )
    left.axvline(1.0, color="black", linewidth=1)
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("times faster than the peer (right of 1: fastrnn is ahead)")
    left.set_yticks(list(rows), [c["id"] for c in cases], fontsize=7)
    left.set_ylim(len(cases) - 0.5, -0.5)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8, loc="lower right")
    shares = [(y, c["share"]) for y, c in zip(rows, cases, strict=True) if c["share"] is not None]
    colours = ["#009e73" if share >= SHARE_TARGET else "#e69f00" for _, share in shares]
    right.barh([y for y, _ in shares], [share for _, share in shares], color=colours, height=0.7)
    right.axvline(SHARE_TARGET, color="black", linewidth=1, linestyle=":")
    right.set_xlim(0, max([1.0, *(share for _, share in shares)]))
    right.set_xlabel("share of the roofline (dots: 80 %)")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
    settings = record["settings"]
    threads = "one thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    figure.suptitle(f"{record['fastrnn']}, {threads}, on {record['machine']['cpu']}", fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw a record of fastrnn bench --json.")
    parser.add_argument("record", help="the JSON file")
    parser.add_argument("picture", nargs="?", default="docs/performance.svg", help="where to (default: %(default)s)")
    args = parser.parse_args(argv)
    draw(load(args.record), Path(args.picture))
    print(f"{args.picture} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
