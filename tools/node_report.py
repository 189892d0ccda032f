"""Which of the onnx package's own node tests fastrnn passes, and why it does not pass the others.

    python tools/node_report.py                      a table by reason, of the types and kinds fastrnn is built for
    python tools/node_report.py --all --json F       every node test; one record per case in F
    python tools/node_report.py --compare BEFORE     what passes now and did not, and the reverse
    python tools/node_report.py --page docs/guide/onnx_operators.md      the page of the documentation

In scope: cases whose tensors are float32, float16, bfloat16, int32, int64, bool or 8-bit integers, without sequences,
strings, training or optional types. A case passes if all outputs have the expected shape and numbers; halves are
computed in float32, so they are compared with the tolerance of their type.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
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
    optional = any(node.op_type.startswith("Optional") for node in model.graph.node)
    return types_of(model) <= IN_SCOPE and not optional and not any(word in name for word in TRAINING)


def rounding_of(array: np.ndarray) -> float:
    """How far a number may be off that is computed in float32 from others as large as the largest of the array."""
    finite = array.astype(np.float64)[np.isfinite(array.astype(np.float64))] if array.dtype == np.float32 else []
    return float(np.abs(finite).max() * 2**-23) if len(finite) else 0.0


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
                    atol=max(half or 0, case.atol, rounding_of(theirs)),
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


PAGE = """# Which ONNX operators are read

<!-- python tools/node_report.py --page docs/guide/onnx_operators.md -->

fastrnn reads opsets 1 to {newest}. Operators whose meaning changed before opset 7 are read from opset 7 on.

## By fastrnn itself

{own}

From `com.microsoft`: {microsoft}.

## By the definition that ONNX gives

ONNX defines these by other operators, and fastrnn reads them as those
([decision 0016](../decisions/0016-function-bodies.md)):

{defined}

Any operator that reads constants alone is folded, unless it draws random numbers.

## What is refused

An operator whose output has a size that depends on the data (NonZero, Unique, Compress, NonMaxSuppression) is refused,
because the memory of a step is fixed when a model is compiled. Sequences, strings, training and optional values are
not read.

An operator that works only at known sizes names the size that it needs. If the file leaves that size open, pass
`sizes={{"name": 512}}`.

## onnx's own node tests

onnx {version} has {count} node tests whose tensors are float32, float16, bfloat16, int32, int64, bool or 8-bit
integers, without sequences, strings, training or optional types. {passed} of them ({share:.1%}) pass, run through
`fastrnn.onnx_backend`. These do not:

| cases | operator | reason | examples |
|---:|---|---|---|
{refusals}
"""


def wrapped(names) -> str:
    return textwrap.fill(", ".join(sorted(set(names))) or "none", 100)


def where_and_why(text: str) -> tuple[str, str]:
    """The operator that a refusal is about, and the reason without what differs from case to case."""
    line = next((part for part in text.splitlines() if "node " in part or "output " in part), text)
    found = re.search(r"node (?:[^ ]*/)?(\w+)\([^)]*\):? ?(?:\w+: )?(.*)", line)
    operator, why = found.groups() if found else ("", re.sub(r"^\w+: (test_\w+: )?", "", line))
    why = re.sub(r" \(with bind.*", "", why)
    return operator, "no such operator" if why.startswith("operator ") else re.sub(r"[\[(][^\])]*[\])]|\d+", "..", why)


def write_page(path: Path, records: dict[str, dict]) -> None:
    """The documentation's page: operators, the share that passes, and every refusal."""
    from fastrnn.importers.onnx.reading.registry import OPERATORS

    newest = onnx.defs.onnx_opset_version()
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == ""]
    has_body = {s.name for s in schemas if s.has_function or s.has_context_dependent_function}
    own = {name for domain, name in OPERATORS if domain == ""}
    by_reason = defaultdict(list)
    for name, record in records.items():
        if record["outcome"] != "passes":
            by_reason[where_and_why(record["outcome"])].append(name)
    rows = [
        f"| {len(names)} | {operator} | {why.replace('|', '/')} | {', '.join(names[:2])} |"
        for (operator, why), names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    passed = sum(record["outcome"] == "passes" for record in records.values())
    text = PAGE.format(
        newest=newest, own=wrapped(own), defined=wrapped(has_body - own - {"Bernoulli", "SequenceMap"}),
        microsoft=", ".join(sorted(name for domain, name in OPERATORS if domain == "com.microsoft")),
        version=onnx.__version__, count=len(records),
        passed=passed, share=passed / max(1, len(records)), refusals="\n".join(rows),
    )  # fmt: skip
    path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also the cases out of scope")
    parser.add_argument("--case", default="", help="only names that contain this")
    parser.add_argument("--json", type=Path, help="write one record per case")
    parser.add_argument("--compare", type=Path, help="an older file of --json")
    parser.add_argument("--page", type=Path, help="write the page of the documentation")
    options = parser.parse_args()
    records = {}
    for name, case in sorted(cases().items()):
        scope = in_scope(name, case.model)
        if options.case in name and (scope or options.all):
            records[name] = {"in_scope": scope, "outcome": outcome(case)}
    print_table(records)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))
    if options.page:
        write_page(options.page, records)
    return print_changes(json.loads(options.compare.read_text()), records) if options.compare else 0


if __name__ == "__main__":
    sys.exit(main())
