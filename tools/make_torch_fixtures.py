"""Export small recurrent models with both PyTorch exporters into tests/data/onnx, together with goldens.

Run by hand with torch 2.13 (CPU), onnx and onnxscript installed; the results are committed:

    python tools/make_torch_fixtures.py            # writes all files and the torch part of the manifest
    python tools/make_torch_fixtures.py --only gru # those whose name contains "gru"; the manifest is merged

Seeds are fixed per model, so a second run gives the same weights and goldens (the bytes of an .onnx file also depend
on the versions of torch and onnxscript). A model is exported up to five ways, see `WAYS`; its golden `NAME.npz` is
shared by all of them and comes from the module itself, weights float32, computed in float64, stored as float32.
It holds three runs of (T, batch), see RUNS: `r0.*` at the size that most files are exported at, `r1.*` at another
length and batch, `r2.*` at T = 1, batch 1; keys are `r<k>.<name of input or output>`.
"""

from __future__ import annotations

import argparse
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from fixture_manifest import merge
from fixture_models import MODELS

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "onnx"

RUNS = ((7, 2), (11, 3), (1, 1))


@dataclass(frozen=True)
class Way:
    """One way to export.

    tag: part of the file name. free: the axes that stay symbolic. opset: None is the exporter's own default.
    size: (T, batch) of the example that is traced.
    """

    tag: str
    dynamo: bool
    free: tuple[str, ...]
    notes: str
    opset: int | None = None
    fold: bool = True
    size: tuple[int, int] = RUNS[0]


ALL = ("batch", "time")
WAYS = {
    way.tag: way
    for way in (
        Way("dynamo", True, ALL, "torch.export based exporter, dynamic batch and time"),
        Way("dynamo_frozen", True, (), "torch.export based exporter, no dynamic_shapes given"),
        # 19 steps of one row, nothing dynamic: the result of following the exporter's own first example.
        Way("dynamo_b1", True, (), "torch.export based exporter, no dynamic_shapes, batch 1", size=(19, 1)),
        Way("dynamo_batch", True, ("batch",), "torch.export based exporter, dynamic batch, time frozen"),
        Way("script", False, ALL, "TorchScript exporter, dynamic_axes for batch and time", 17),
        Way("script_frozen", False, (), "TorchScript exporter, no dynamic_axes given", 17),
        Way("script_op11", False, ALL, "TorchScript exporter, opset 11, constants not folded", 11, fold=False),
        Way("script_op9", False, ALL, "TorchScript exporter, opset 9", 9),
    )
}
USUAL = ("dynamo", "dynamo_frozen", "script", "script_frozen")


def axis_names(model, names, free) -> dict[str, dict[int, str]]:
    """{name: {axis: "batch" | "time"}} of the values `names`, for the axes in `free`."""
    return {n: {a: kind for a, kind in enumerate(model.axes[n]) if kind in free} for n in names}


def export(model, module, example, way: Way, path: Path) -> None:
    """Write one file. Exceptions of the exporter propagate."""
    common = {"input_names": list(model.inputs), "output_names": list(model.outputs)}
    if way.dynamo:
        shapes = None
        if way.free:
            # AUTO lets the exporter freeze an axis if it thinks that the model needs it, as users experience it.
            axes = axis_names(model, model.inputs, way.free)
            shapes = tuple(dict.fromkeys(axes[n], torch.export.Dim.AUTO) for n in model.inputs)
        program = torch.onnx.export(
            module, example, None, dynamo=True, dynamic_shapes=shapes, opset_version=way.opset, verbose=False, **common
        )
        proto = program.model_proto
        onnx.save(proto, path)
    else:
        torch.onnx.export(
            module,
            example,
            str(path),
            dynamo=False,
            opset_version=way.opset,
            do_constant_folding=way.fold,
            dynamic_axes=axis_names(model, model.inputs + model.outputs, way.free),
            **common,
        )
        proto = onnx.load(path)
    strip(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def strip(proto: onnx.ModelProto) -> None:
    """Drop stack traces and doc strings: they hold paths of the exporting machine and triple the size."""
    proto.doc_string = ""
    proto.graph.doc_string = ""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for item in [*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.functions]:
        item.doc_string = ""
        del item.metadata_props[:]
    for tensor in proto.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for function in proto.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def goldens(model, module) -> dict[str, np.ndarray]:
    """Inputs and outputs of all RUNS, computed in float64, stored as float32 (ints unchanged)."""
    arrays = {}
    module = module.double()
    for k, (time, batch) in enumerate(RUNS):
        inputs = model.example(time, batch)
        with torch.no_grad():
            outputs = module(*[a.double() if a.is_floating_point() else a for a in inputs])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for name, value in zip(model.inputs + model.outputs, (*inputs, *outputs), strict=True):
            value = value.numpy()
            arrays[f"r{k}.{name}"] = value.astype(np.float32) if value.dtype.kind == "f" else value
    module.float()
    return arrays


def make(name: str) -> list[dict]:
    """Write the files of one model; return their manifest entries."""
    model = MODELS[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    module = model.build().eval()
    torch.manual_seed(1)
    np.savez_compressed(OUT / f"{name}.npz", **goldens(model, module))
    entries = []
    for tag in model.ways or USUAL:
        path = OUT / f"{name}.{tag}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export(model, module, model.example(*WAYS[tag].size), WAYS[tag], path)
        entries.append(describe(model, name, WAYS[tag], path))
    return entries


def make_projected() -> dict:
    """An LSTM with proj_size: one exporter drops the projection, the other refuses (see tests/data/README.md)."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(6, 20, proj_size=8, batch_first=True).eval()
    dims = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    program = torch.onnx.export(
        module, (torch.randn(2, 7, 6),), None, dynamo=True, dynamic_shapes=dims, verbose=False, input_names=["x"]
    )
    proto = program.model_proto  # rebuilt at every access
    strip(proto)
    path = OUT / "projected.dynamo.onnx"
    onnx.save(proto, path)
    return {
        "file": f"onnx/{path.name}",
        "model": "projected",
        "made_by": WAYS["dynamo"].notes,
        "refused": "initial_c",
        "about": "LSTM 20 with proj_size 8: W, R, B cut to 8 units, the projection lost, initial_c left 20 wide",
    }


def describe(model, name: str, way: Way, path: Path) -> dict:
    """The manifest entry of one file: its contents and the meaning of its axes."""
    proto = onnx.load(path)
    initializers = {i.name for i in proto.graph.initializer}
    given = [i for i in proto.graph.input if i.name not in initializers]
    frozen = sorted(
        {
            kind
            for i in given
            for kind, dim in zip(model.axes[i.name], i.type.tensor_type.shape.dim, strict=True)
            if kind in ("batch", "time") and dim.HasField("dim_value")
        }
    )
    ops = {}
    for node in [*proto.graph.node, *(n for f in proto.functions for n in f.node)]:
        ops[node.op_type] = ops.get(node.op_type, 0) + 1
    return {
        "file": f"onnx/{path.name}",
        "golden": f"onnx/{name}.npz",
        "model": name,
        "made_by": way.notes,
        "opset": next(o.version for o in proto.opset_import if o.domain == ""),
        "inputs": {n: list(model.axes[n]) for n in model.inputs},
        "outputs": {n: list(model.axes[n]) for n in model.outputs},
        "states": dict(model.states),
        "frozen": frozen,
        "size": list(way.size),
        "streamable": model.streamable,
        **({"context": model.context} if model.context else {}),
        "ops": dict(sorted(ops.items())),
        "about": model.about,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only models whose name contains this")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if args.only in "projected":
        merge([make_projected()])
    for name in MODELS:
        if args.only in name:
            entries = make(name)
            merge(entries)
            for e in entries:
                size = (OUT.parent / e["file"]).stat().st_size
                print(f"{e['file']:48} {size:7} bytes, frozen {e['frozen']}, {e['ops']}")


if __name__ == "__main__":
    main()
