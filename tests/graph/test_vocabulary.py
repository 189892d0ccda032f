"""Every op of the vocabulary has what each stage needs of it."""

import pytest

from fastrnn.compile.lowering.base import lowers
from fastrnn.graph import OPS, vocabulary
from fastrnn.graph.vocabulary import ROWS
from fastrnn.streaming.rules import follows


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_op_is_whole(op):
    row = ROWS[op]
    assert row.name == op
    assert row.doc.strip()
    assert (op in lowers) == (op != "state")  # a state is lowered with its cycle
    assert (row.meets is None) == (op in follows)  # one streaming rule, not two


def test_nothing_but_ops_is_lowered_or_followed():
    assert set(lowers) - set(OPS) == {"keep"}  # which the streaming rewrite adds
    assert set(follows) <= set(OPS)


def test_the_vocabulary_prints_each_op():
    lines = vocabulary.describe().splitlines()
    assert "gather(x, indices, scale?; axis, from_zero, precision) -> y" in lines
    assert "concat(x, ...; axis) -> y" in lines
    assert sum(not line.startswith(" ") for line in lines) == len(OPS)
