"""How packed weights are laid out in memory. Files of packed weights (docs/file_format.md) outlive a release.

If this test fails, the layout has changed: add 1 to FRNN_LAYOUT in frnn.h, so that no release reads what another one
packed, and write the digests that the test prints into DIGESTS.
"""

import hashlib

import numpy as np
import pytest

from fastrnn.graph.cells import DEFAULT_ACTIVATIONS, Activation, CellSpec
from fastrnn.machine import _isa

LAYOUT = 1
DIGESTS = {"avx512": "ceb39c08a40e3938", "avx2": "12d46a3ddedca55c", "baseline": "5adcd6dcc9b27f66"}
FORMS = [("rnn", False), ("lstm", False), ("gru", False), ("gru", True)]


class Spy:
    """A store that keeps nothing and shows what was packed."""

    def packed(self, what, arrays, nbytes, pack):
        self.what, self.bytes = what, pack().tobytes()


def numbers(*shape):
    """Each number occurs once, so that each place shows where it came from."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def digest(isa: str) -> str:
    found = hashlib.sha256()
    spy = Spy()
    for H in (1, 4, 7, 20, 33, 50, 130):
        for kind, after in FORMS:
            acts = tuple(Activation(name) for name in DEFAULT_ACTIVATIONS[kind])
            spec = CellSpec(kind, 3, H, activations=acts, linear_before_reset=after)
            rows = spec.gates * H
            peephole = numbers(3 * H) if kind == "lstm" else None
            for P in {id(None): None, id(peephole): peephole}.values():
                weights = [numbers(rows, 3), numbers(rows, H), numbers(rows), numbers(rows), P]
                _isa.pack_cell(spec, *weights, isa=isa, store=spy)
                found.update(spy.bytes)
        for K in (1, 65, 130):
            _isa.pack_linear(numbers(K, H), numbers(H), isa=isa, store=spy)
            found.update(spy.bytes)
    assert spy.what[:2] == ("layout", LAYOUT)
    return found.hexdigest()[:16]


@pytest.mark.parametrize("isa", _isa.isa_info()["available"])
def test_the_layout_of_packed_weights_is_the_one_of_this_number(isa):
    if isa not in DIGESTS:
        pytest.skip(f"the layout of {isa} was not recorded")
    assert digest(isa) == DIGESTS[isa]
