"""Versions of a model whose sequences come from a store."""

import json

import numpy as np
import pytest
from running import ask, body

import fastrnn

pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")

pytestmark = pytest.mark.any_isa


def test_outputs_are_those_of_the_version_that_goes_on(model, frames, alone, folder, serve):
    """A sequence of the store goes on with its version, whose outputs another version does not have."""
    W = np.eye(4, 5, dtype=np.float32)
    new = fastrnn.from_equations("z = tanh(W @ x + prev(z))", inputs={"x": 5}, outputs=["z"], W=W)

    def step(server, t, output, **given):
        asked = {**json.loads(body(frames[t], sequence_id=7, **given)), "outputs": [{"name": output}]}
        return ask(server, "POST", "/v2/models/m/infer", json.dumps(asked))[:2]

    with serve({"m": model}, store=folder) as one:
        assert step(one, 0, "y", sequence_start=True)[0] == 200
    for k in range(1, 3):
        with serve({"m": {1: model, 2: new}}, store=folder) as two:
            status, answer = step(two, k, "z")
            assert (status, "there is no output 'z': the outputs are y" in str(answer)) == (400, True), answer
            status, answer = step(two, k, "y")
            assert status == 200, answer
            assert (np.float32(answer["outputs"][0]["data"]) == alone[k]).all()
