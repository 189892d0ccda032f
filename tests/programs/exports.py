"""Files of a program, by both of PyTorch's exporters: nothing free, time free, batch and time free."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
import zlib
from pathlib import Path

import torch

from .registry import Program

EXPORTERS = ("script", "dynamo")
OPEN = {"frozen": "", "time": "T", "both": "TB"}  # which axes a file of this form leaves open
KINDS = tuple(f"{e}.{o}" for e in EXPORTERS for o in OPEN)


class NotExported(Exception):
    """The exporter refuses the program."""


def applies(program: Program, kind: str) -> bool:
    """Whether the kind differs from one before it: a program without a batch has no form with a free batch."""
    return all(program.has(axis) for axis in OPEN[kind.split(".")[1]])


def exported(program: Program, kind: str, cache: Path | None = None) -> bytes:
    """The file's bytes, from the cache if it holds them. Raises NotExported, and keeps that in the cache too."""
    path = None
    if cache is not None:
        path = cache / f"{program.name}-{zlib.crc32(program.source.encode()):08x}.{kind}.onnx"
        if path.exists():
            return path.read_bytes()
        if path.with_suffix(".err").exists():
            raise NotExported(path.with_suffix(".err").read_text())
    try:
        content = export(program, kind)
    except NotExported as e:
        if path is not None:
            path.with_suffix(".err").write_text(str(e))
        raise
    if path is not None:
        whole = path.with_suffix(".part")
        whole.write_bytes(content)
        os.replace(whole, path)
    return content


def export(program: Program, kind: str) -> bytes:
    exporter, form = kind.split(".")
    net, args = program.net(), program.tensors(program.T, program.B)
    free = {i.name: {k: a for k, a in enumerate(i.axes) if set(a) & set(OPEN[form])} for i in program.inputs}
    with quiet():
        try:
            return _script(program, net, args, free) if exporter == "script" else _dynamo(net, args, free)
        except Exception as e:  # whatever an exporter raises: it is no finding about fastrnn
            raise NotExported(f"{type(e).__name__}: {str(e)[:300]}") from e


def _script(program, net, args, free) -> bytes:
    out = io.BytesIO()
    axes = {
        n: {k: "time" if a == "T" else "batch" if a == "B" else f"{n}_{k}" for k, a in d.items()}
        for n, d in free.items()
    }
    torch.onnx.export(
        net,
        args,
        out,
        dynamo=False,
        opset_version=17,
        input_names=[i.name for i in program.inputs],
        dynamic_axes={n: d for n, d in axes.items() if d},
    )
    return out.getvalue()


def _dynamo(net, args, free) -> bytes:
    ways = (torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO) if any(free.values()) else (None,)
    for way in ways:
        shapes = {n: dict.fromkeys(d, way) for n, d in free.items()} if way is not None else None
        try:
            made = torch.onnx.export(net, args, dynamo=True, dynamic_shapes=shapes, verbose=False)
        except Exception:
            if way is ways[-1]:
                raise
            continue
        return made.model_proto.SerializeToString()
    raise AssertionError


@contextlib.contextmanager
def quiet():
    """Exporters log and warn, and print from Python and from C++."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
        logging.disable(before)
