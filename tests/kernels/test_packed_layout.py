"""How packed weights are laid out in memory. Files of packed weights (docs/file_format.md) outlive a release.

If this test fails, the layout has changed: add 1 to FRNN_LAYOUT in frnn.h, so that no release reads what another one
packed, and write the digests that the test prints into DIGESTS.
"""

import hashlib

import numpy as np
import pytest

from fastrnn.graph.cells import DEFAULT_ACTIVATIONS, Activation, CellSpec
from fastrnn.machine import _isa

LAYOUT = 2
DIGESTS = {
    ("avx512", "float32"): "ceb39c08a40e3938",
    ("avx2", "float32"): "12d46a3ddedca55c",
    ("baseline", "float32"): "5adcd6dcc9b27f66",
    ("avx512", "bfloat16"): "912c2aabbcc99a33",
    ("avx2", "bfloat16"): "16de109376c8a415",
    ("baseline", "bfloat16"): "085012dc3b315231",
    ("avx512", "int8"): "20c1e76f89fcc654",
    ("avx2", "int8"): "8f85983e39d0285d",
    ("baseline", "int8"): "4d81242fdfb3337a",
}
DIGESTS |= {(isa, "int8-a16"): digest for (isa, format), digest in DIGESTS.items() if format == "int8"}
FORMS = [("rnn", False), ("lstm", False), ("gru", False), ("gru", True)]


class Spy:
    """A store that keeps nothing and shows what was packed."""

    def packed(self, what, arrays, nbytes, pack):
        self.what, self.bytes = what, pack().tobytes()


def numbers(*shape):
    """Each number occurs once, so that each place shows where it came from."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def digest(isa: str, format: str = "float32") -> str:
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
                _isa.pack_cell(spec, *weights, isa=isa, weights=format, store=spy)
                found.update(spy.bytes)
        for K in (1, 65, 130):
            _isa.pack_linear(numbers(K, H), numbers(H), isa=isa, weights=format, store=spy)
            found.update(spy.bytes)
    assert spy.what[:2] == ("layout", LAYOUT)
    return found.hexdigest()[:16]


@pytest.mark.parametrize("isa", _isa.isa_info()["available"] + _isa.isa_info()["emulated"])
@pytest.mark.parametrize("format", _isa.number_formats())
def test_the_layout_of_packed_weights_is_the_one_of_this_number(isa, format):
    name = _isa.kernels_of(isa)
    if (name, format) not in DIGESTS:
        pytest.skip(f"the layout of {isa} was not recorded")
    assert digest(isa, format) == DIGESTS[name, format]
