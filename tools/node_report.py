"""Which of the onnx package's own node tests fastrnn passes, and why it does not pass the others.

    python tools/node_report.py                      a table by reason, of the types and kinds fastrnn is built for
    python tools/node_report.py --all --json F       every node test; one record per case in F
    python tools/node_report.py --compare BEFORE     what passes now and did not, and the reverse

In scope: cases whose tensors are float32, float16, bfloat16, int32, int64, bool or 8-bit integers, without sequences,
strings, training or optional types. A case passes if all outputs have the expected shape and numbers; halves are
computed in float32, so they are compared with the tolerance of their type.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

IN_SCOPE = {"float", "float16", "bfloat16", "int32", "int64", "bool", "int8", "uint8", "undefined"}
TRAINING = ("training", "dropout_default_mask", "adam", "adagrad", "momentum", "gradient")
HALVES = {"float16": 4e-3, "bfloat16": 2e-2}


def cases():
    """onnx's node tests, by name without "test_"."""
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx makes overflowing and invalid values on purpose
        return {case.name.removeprefix("test_"): case for case in loader.load_model_tests(kind="node")}


def graphs_of(graph: onnx.GraphProto):
    """The graph and the bodies in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def types_of(model: onnx.ModelProto) -> set[str]:
    """Names of the types of its values; "sequence", "optional" and the like for those that are no tensors."""
    found = set()
    for graph in graphs_of(model.graph):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            kind = value.type.WhichOneof("value")
            number = value.type.tensor_type.elem_type
            found.add(TensorProto.DataType.Name(number).lower() if kind == "tensor_type" else str(kind))
        for array in graph.initializer:
            found.add(TensorProto.DataType.Name(array.data_type).lower())
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to":
                    found.add(TensorProto.DataType.Name(attribute.i).lower())
    return found


def in_scope(name: str, model: onnx.ModelProto) -> bool:
    """True if fastrnn is built for such a case: its types and kind, see above."""
    return types_of(model) <= IN_SCOPE and not any(word in name for word in TRAINING)


def outcome(case) -> str:
    """ "passes", or why not: the refusal, the error, or how the answer differs."""
    import fastrnn
    from fastrnn import onnx_backend

    def array_of(value):
        return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)

    try:
        ready = onnx_backend.prepare(case.model)
        for inputs, outputs in case.data_sets:
            got = ready.run([array_of(a) for a in inputs])
            for ours, theirs in zip(got, map(array_of, outputs), strict=True):
                half = HALVES.get(theirs.dtype.name)
                if ours.shape != theirs.shape or (ours.dtype != theirs.dtype and not half):
                    return f"WRONG: {ours.dtype}{ours.shape}, expected {theirs.dtype}{theirs.shape}"
                np.testing.assert_allclose(
                    ours.astype(np.float64),
                    theirs.astype(np.float64),
                    rtol=half or case.rtol,
                    atol=max(half or 0, case.atol),
                )
    except AssertionError:
        return "WRONG: other numbers"
    except fastrnn.FastRNNError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # the report must list what should not happen
        return f"ERROR {type(error).__name__}: {error}"
    return "passes"


def reason_of(text: str) -> str:
    """The refusal without what differs from case to case: names, numbers and shapes."""
    text = re.sub(r"'[^']*'", "'…'", text.splitlines()[0])
    return re.sub(r"[\[(][^\])]*[\])]|\d+", "#", text)[:110]


def print_table(records: dict[str, dict]) -> None:
    """Cases by reason, the most frequent first, and the share that passes."""
    by_reason = defaultdict(list)
    for name, record in records.items():
        by_reason[reason_of(record["outcome"])].append(name)
    for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        if reason != "passes":
            print(f"{len(names):5}  {reason}\n       {' '.join(names[:8])}{' ...' if len(names) > 8 else ''}")
    passed = len(by_reason["passes"])
    print(f"{passed} of {len(records)} pass: {passed / max(1, len(records)):.1%}")


def print_changes(before: dict[str, dict], after: dict[str, dict]) -> int:
    """What changed between two records; returns how many cases no longer pass."""
    counts: Counter = Counter()
    for name in sorted(before.keys() & after.keys()):
        was, now = before[name]["outcome"] == "passes", after[name]["outcome"] == "passes"
        if was != now:
            counts[now] += 1
            print(f"{'passes now' if now else 'NO LONGER '}  {name}" + ("" if now else f": {after[name]['outcome']}"))
    print(f"{counts[True]} more pass, {counts[False]} no longer")
    return counts[False]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also the cases out of scope")
    parser.add_argument("--case", default="", help="only names that contain this")
    parser.add_argument("--json", type=Path, help="write one record per case")
    parser.add_argument("--compare", type=Path, help="an older file of --json")
    options = parser.parse_args()
    records = {}
    for name, case in sorted(cases().items()):
        scope = in_scope(name, case.model)
        if options.case in name and (scope or options.all):
            records[name] = {"in_scope": scope, "outcome": outcome(case)}
    print_table(records)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))
    return print_changes(json.loads(options.compare.read_text()), records) if options.compare else 0


if __name__ == "__main__":
    sys.exit(main())
