"""Makes torch's exporters write embeddings as `fastrnn.Lookup`. In the Gather that they write, index -1 is the last
row.

An nn.Embedding refuses -1, but `table[ids]`, which also becomes a Gather, accepts it. Once exported, the two can't be
distinguished.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from onnx.defs import OpSchema

DOMAIN = "fastrnn"  # as in the ONNX importer (onnx/ops/indexing.py)
_LOCK = threading.Lock()  # the older exporter registers operators globally


def translations() -> dict:
    """custom_translation_table= of torch's newer exporter."""
    from onnxscript import values

    floats, ints = "T", "I"
    schema = OpSchema(
        "Lookup",
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("table", floats), OpSchema.FormalParameter("indices", ints)],
        outputs=[OpSchema.FormalParameter("rows", floats)],
        type_constraints=[(floats, ["tensor(float)"], ""), (ints, ["tensor(int32)", "tensor(int64)"], "")],
    )
    lookup = values.Op(values.Opset(DOMAIN, 1), "Lookup", schema)

    def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
        return lookup(weight, indices)

    return {torch.ops.aten.embedding.default: embedding}


@contextmanager
def older_form(opset: int) -> Iterator[None]:
    """While active, torch's older exporter writes embeddings as Lookup; pass it custom_opsets={DOMAIN: 1}."""

    def embedding(g, weight, indices, padding_idx, scale_grad_by_freq, sparse):
        rows = g.op(f"{DOMAIN}::Lookup", weight, indices)
        table, ids = weight.type().sizes(), indices.type().sizes()
        if table is not None and ids is not None:
            rows.setType(weight.type().with_sizes([*ids, *table[1:]]))
        return rows

    with _LOCK:
        torch.onnx.register_custom_op_symbolic("aten::embedding", embedding, opset)
        try:
            yield
        finally:
            torch.onnx.unregister_custom_op_symbolic("aten::embedding", opset)
