"""Export the models of fixture_graphs.py, and similar Keras models, into tests/data/graphs.tar.xz, with goldens.

Run by hand, the results are committed:

    tf-env/bin/python tools/make_keras_graphs.py build/graphs  # Keras by tf2onnx (see make_tf2onnx_fixtures.py)
    python tools/make_graph_fixtures.py build/graphs           # PyTorch by both exporters; packs the folder

The archive holds `manifest.json` (a list of entries as in tests/data/manifest.json), one `.onnx` per file and one
`.npz` per model: three runs, as make_torch_fixtures.py makes them, at the sizes of RUNS. Weights are rounded to
multiples of 1/64, which costs nothing here and compresses well.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
from fixture_graphs import GRAPHS
from make_torch_fixtures import WAYS, describe, export
from onnx import helper, numpy_helper

ARCHIVE = Path(__file__).resolve().parent.parent / "tests" / "data" / "graphs.tar.xz"
RUNS = ((8, 2), (12, 3), (5, 1))
TAGS = ("dynamo", "dynamo_frozen", "script", "script_frozen")
STEP = np.float32(1 / 32)  # of the quantised activations


def goldens(model, module) -> dict[str, np.ndarray]:
    """Inputs and outputs of all RUNS: float64 inside, float32 stored."""
    arrays, module = {}, module.double()
    for k, (time, batch) in enumerate(RUNS):
        torch.manual_seed(1000 * time + batch)
        inputs = [torch.round(a * 64) / 64 if a.is_floating_point() else a for a in model.example(time, batch)]
        with torch.no_grad():
            outputs = module(*[a.double() if a.is_floating_point() else a for a in inputs])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for name, value in zip(model.inputs + model.outputs, (*inputs, *outputs), strict=True):
            value = value.numpy()
            arrays[f"r{k}.{name}"] = value.astype(np.float32) if value.dtype.kind == "f" else value
    module.float()
    return arrays


def quantise(proto: onnx.ModelProto) -> None:
    """Weights of LSTM and MatMul as int8 and their scales; the input and the LSTM's output through integers too."""
    graph = proto.graph
    held = {t.name: t for t in graph.initializer}
    before = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name not in held or numpy_helper.to_array(held[name]).ndim < 2 or node.op_type not in ("LSTM", "MatMul"):
                continue
            array = numpy_helper.to_array(held[name])
            whole = np.clip(np.rint(array * 64), -127, 127).astype(np.int8)
            graph.initializer.remove(held[name])
            graph.initializer.append(numpy_helper.from_array(whole, f"{name}.int8"))
            graph.initializer.append(numpy_helper.from_array(np.float32(1 / 64), f"{name}.scale"))
            before.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [f"{name}.real"]))
            node.input[i] = f"{name}.real"
    graph.initializer.append(numpy_helper.from_array(STEP, "step"))
    graph.initializer.append(numpy_helper.from_array(np.int8(3), "zero"))
    for node in graph.node:
        node.input[:] = ["x.rounded" if i == "x" else i for i in node.input]
    for a, b in (("x", "x.rounded"),):
        before.append(helper.make_node("QuantizeLinear", [a, "step", "zero"], [f"{a}.int8"]))
        before.append(helper.make_node("DequantizeLinear", [f"{a}.int8", "step", "zero"], [b]))
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def make(name: str, folder: Path) -> list[dict]:
    """Write the files of one model; return their manifest entries."""
    model = GRAPHS[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    module = model.build().eval()
    for parameter in module.parameters():
        parameter.data = torch.round(parameter.data * 64) / 64
    torch.manual_seed(1)
    entries = []
    for tag in TAGS:
        if name == "quantised" and "dynamo" in tag:
            continue  # its weights are sliced and transposed inside the file before they reach the node
        path = folder / f"{name}.{tag}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export(model, module, model.example(*RUNS[0]), WAYS[tag], path)
        if name == "quantised":
            proto = onnx.load(path)
            quantise(proto)
            onnx.checker.check_model(proto)
            onnx.save(proto, path)
        entries.append(entry(describe(model, name, WAYS[tag], path), name, path))
    arrays = goldens(model, module)
    if name == "quantised":  # the rounding of x, which is exact in float32, belongs to the model
        for k in range(len(RUNS)):
            x = np.clip(np.rint(arrays[f"r{k}.x"] / STEP) + 3, -128, 127) - 3
            with torch.no_grad():
                y = module.double()(torch.from_numpy(x.astype(np.float64) * float(STEP)))
            arrays[f"r{k}.y"] = y.numpy().astype(np.float32)
    np.savez(folder / f"{name}.npz", **arrays)
    return entries


def entry(described: dict, name: str, path: Path) -> dict:
    """A manifest entry as the test reads it."""
    keep = ("inputs", "outputs", "states", "frozen", "streamable", "about", "made_by")
    return {"file": path.name, "golden": f"{name}.npz", **{k: described[k] for k in keep}}


def pack(folder: Path, entries: list[dict]) -> None:
    """Write the archive: names sorted, no times, no owners."""
    files = {"manifest.json": json.dumps(sorted(entries, key=lambda e: e["file"]), indent=0).encode()}
    for e in entries:
        for name in (e["file"], e["golden"]):
            files[name] = (folder / name).read_bytes()
    # Sort similar names next to each other: content shared by several exports is then stored once.
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    print(f"{len(entries)} files, {ARCHIVE.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the single files go, and where Keras's are")
    parser.add_argument("--only", default="", help="make again only models whose name contains this")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in GRAPHS:
        if args.only in name:
            (args.folder / f"{name}.json").write_text(json.dumps(make(name, args.folder)))
            print(name)
    pack(args.folder, [e for path in sorted(args.folder.glob("*.json")) for e in json.loads(path.read_text())])


if __name__ == "__main__":
    main()
