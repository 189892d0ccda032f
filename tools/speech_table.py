"""Export streaming encoders of speech recognisers and decoders with growing caches, try each file, and write their
tables in docs/guide/modern.md.

    PYTHONPATH=. python tools/speech_table.py          # writes the page
    PYTHONPATH=. python tools/speech_table.py --show   # prints, writes nothing

Needs torch, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from modern import decoders  # noqa: E402
from modern.speech import conformer, emformer, memory, zipformer  # noqa: E402
from modern.speech.files import Encoder, exported, seeded  # noqa: E402
from modern.speech.trials import tried, tried_in_chunks  # noqa: E402

PAGE = ROOT / "docs" / "guide" / "modern.md"
BEGIN, END = "<!-- table: tools/speech_table.py -->", "<!-- end of the table of encoders -->"
DECODERS = "<!-- table of decoders: tools/speech_table.py -->", "<!-- end of the table of decoders -->"
# Each by the older exporter from its own example, and by the newer one, which needs a batch of two to leave it open.
ENCODERS = (
    (zipformer.zipformer, lambda: zipformer.zipformer(2)),
    (emformer.emformer, lambda: emformer.emformer(2)),
    (conformer.wenet, conformer.wenet),
    (conformer.wenet_batch, conformer.wenet_batch),
    (conformer.nemo, conformer.nemo),
    (memory.fsmn, memory.fsmn),
    (memory.mdtc, memory.mdtc),
)


def verdict(encoder: Encoder, exporter: str) -> str:
    """yes, or what fails."""
    try:
        content = exported(encoder, exporter)
    except Exception:  # whatever an exporter raises: it says nothing about fastrnn
        return "not exported"
    failed = tried_in_chunks(encoder, content) if encoder.chunk == 1 else tried(encoder, content, exporter)
    return "; ".join(f"{k}: {v}" for k, v in failed.items()) or "yes"


def table() -> str:
    """The table in Markdown."""
    rows = ["| encoder | older exporter | newer exporter |", "|---|---|---|"]
    for old, new in ENCODERS:
        encoder = old()
        rows.append(f"| {encoder.name} | {verdict(encoder, 'script')} | {verdict(new(), 'dynamo')} |")
    return "\n".join(rows)


def verdict_of_decoder(case: decoders.Case, exporter: str) -> str:
    """yes, or what fails."""
    try:
        content = decoders.exported(seeded(case.make), exporter)
    except Exception:  # whatever an exporter raises: it says nothing about fastrnn
        return "not exported"
    return "; ".join(f"{k}: {v}" for k, v in decoders.tried(case, content).items()) or "yes"


def table_of_decoders() -> str:
    """The table in Markdown."""
    rows = [
        "| decoder | inputs of a call | inputs of a step | older exporter | newer exporter |",
        "|---|---|---|---|---|",
    ]
    for case in decoders.CASES:
        module = case.make()
        given = [f"`{n}`" for n in ("input_ids", *module.names()) if not n.startswith(("past.", "encoder."))]
        given += ["`past`s"] if not module.stacked else []
        given += ["keys and values of an encoder"] if module.memory else []
        asks = ", ".join(f"`{n}`" for n in case.asks)
        yes = [verdict_of_decoder(case, exporter) for exporter in ("script", "dynamo")]
        rows.append(f"| {case.name} | {', '.join(given)} | {asks} | {' | '.join(yes)} |")
    return "\n".join(rows)


def write(made: str, begin: str, end: str) -> None:
    """Put a table between its two marks on the page."""
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n\n{made}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", action="store_true", help="print the table and write nothing")
    show = parser.parse_args().show
    torch.set_num_threads(1)
    for make, marks in ((table, (BEGIN, END)), (table_of_decoders, DECODERS)):
        made = make()
        print(made)
        if not show:
            write(made, *marks)


if __name__ == "__main__":
    main()
