"""How products prefetch changes no bit: every setting at every kind of rows, on every instruction set."""

import itertools

import numpy as np
import pytest

from fastrnn.graph.cells import CellSpec
from fastrnn.machine import _isa, _roofline, tuning
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]
SETTINGS = sorted({s for some in tuning.CANDIDATES for s in some} | {64, 1 << 20})
FORMS = {"rnn": ("rnn", False), "lstm": ("lstm", False), "gru before": ("gru", False), "gru after": ("gru", True)}


@pytest.fixture(params=ISAS)
def isa(request):
    before = _roofline.tuning(request.param)
    yield request.param
    _roofline.tune(*before, request.param)


def force(isa, setting):
    """One setting for all weights and rows: every size counts as in L2."""
    _roofline.tune((1 << 60, 1 << 60), [[setting] * 3] * 3, isa)


def some(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("H", [40, 130])
def test_cells_have_the_same_bits_with_every_setting(form, H, isa):
    kind, after = FORMS[form]
    spec = CellSpec(kind, 37, H, linear_before_reset=after)
    G = spec.gates
    packed = _isa.pack_cell(spec, some(G * H, 37), some(G * H, H), some(G * H), isa=isa)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 13, 19):
        x, h, c = some(rows, 37), some(rows, H), some(rows, H)
        found = []
        for setting, backwards in itertools.product(SETTINGS, (False, True)):
            force(isa, setting)
            state = c.copy() if kind == "lstm" else None
            y = calls.cell_step(packed, x, h, state, backwards=backwards)
            pre = calls.cell_input(packed, x)
            ahead = c.copy() if kind == "lstm" else None
            summed = calls.cell_step(packed, None, h, ahead, pre=pre[0])
            found.append([a.tobytes() for a in (y, summed, state, ahead, pre) if a is not None])
        assert all(one == found[0] for one in found[1:]), f"{rows} rows"
        assert found[0][0] == found[0][1]


@pytest.mark.parametrize(("K", "N"), [(7, 20), (65, 130)])
def test_linear_layers_have_the_same_bits_with_every_setting(K, N, isa):
    packed = _isa.pack_linear(some(K, N), some(N), isa=isa)
    for rows in (1, 2, 3, 4, 6, 7, 13):
        found = []
        for setting in SETTINGS:
            force(isa, setting)
            found.append(calls.linear(packed, some(rows, K)).tobytes())
        assert len(set(found)) == 1, f"{rows} rows"


def test_settings_are_read_back_as_given(isa):
    ahead = [[64 * (3 * level + kind) for kind in range(3)] for level in range(3)]
    _roofline.tune((1000, 2000), ahead, isa)
    assert _roofline.tuning(isa) == ((1000, 2000), tuple(tuple(row) for row in ahead))


@pytest.mark.parametrize(("most", "ahead"), [((1,), [[0] * 3] * 3), ((1, 2), [[0] * 3] * 2), ((1, 2), [[0] * 2] * 3)])
def test_settings_of_another_shape_are_refused(most, ahead, isa):
    before = _roofline.tuning(isa)
    with pytest.raises(ValueError, match="2 sizes and 3 x 3 settings"):
        _roofline.tune(most, ahead, isa)
    assert _roofline.tuning(isa) == before
