"""3 x 3 convolutions in tiles: right at every size of the map, with one set of bits for every row, no NaN elsewhere."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.compile import lowering
from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model


def conv(
    high, wide, channels=16, outs=16, pads=(1, 1, 1, 1), act=None, bias=True, groups=1, strides=(1, 1), front=BATCH
):
    rng = np.random.default_rng(len(f"{high} {wide}") + channels)
    b = GraphBuilder("conv")
    x = b.input("x", "float32", front, channels, high, wide)
    W = b.constant("W", rng.normal(0, 0.1, (outs, channels // groups, 3, 3)).astype(np.float32))
    more = (b.constant("bias", rng.normal(size=outs).astype(np.float32)),) if bias else ()
    y = b.add("conv", x, W, *more, strides=strides, dilations=(1, 1), pads=pads, groups=groups)
    return b.done(b.add("unary", y, fn=act, alpha=0.0, beta=0.0) if act else y)


def in_tiles(graph):
    (kind,) = (op.kind for op in lowering.lower(graph, "run", lowering.Weights()).ops if op.kind.startswith("conv"))
    return kind == "conv_tiles"


@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 0, 0, 0), (2, 0, 1, 2)])
@pytest.mark.parametrize(("channels", "outs"), [(16, 16), (17, 33), (64, 24)])
def test_a_map_of_any_size(channels, outs, pads):
    for high, wide, act in ((10, 11, None), (11, 10, "relu"), (9, 31, "tanh"), (13, 40, "sigmoid"), (32, 12, None)):
        graph = conv(high, wide, channels, outs, pads, act, bias=wide % 2 == 0)
        assert in_tiles(graph)
        x = np.random.default_rng(high).normal(size=(3, channels, high, wide)).astype(np.float32)
        model = Model(graph)
        (y,) = model.run(x)
        (want,) = reference.run(graph, {"x": x})
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5, err_msg=f"{high} x {wide}")
        for row in range(3):
            assert model.run(x[row : row + 1])[0].tobytes() == y[row : row + 1].tobytes()


def test_what_stays_as_it_is():
    assert not in_tiles(conv(9, 9, channels=8))
    assert not in_tiles(conv(9, 9, outs=8))
    assert not in_tiles(conv(9, 9, strides=(2, 1)))
    assert not in_tiles(conv(9, 9, channels=32, groups=2))
    assert not in_tiles(conv(1, 64))  # half of each tile would be beyond the map
    assert not in_tiles(conv(5, 5))  # too few tiles
    assert not in_tiles(conv(9, TIME, front=1))  # a map that grows


def test_a_nan_stays_in_the_tiles_that_hold_it():
    graph = conv(12, 12)
    x = np.random.default_rng(1).normal(size=(2, 16, 12, 12)).astype(np.float32)
    (clean,) = Model(graph).run(x)
    x[0, 3, 5, 5] = np.nan
    (y,) = Model(graph).run(x)
    assert np.isnan(y[0, :, 4:7, 4:7]).all()
    assert not np.isnan(y[1]).any()
    far = np.ones((12, 12), bool)
    far[2:8, 2:8] = False
    assert (y[0][:, far] == clean[0][:, far]).all()
