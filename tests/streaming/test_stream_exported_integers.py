"""Modules with integer states, as both exporters of PyTorch write them: streams against torch, step by step."""

import io
import warnings

import numpy as np
import pytest

import fastrnn

torch = pytest.importorskip("torch", reason="exports modules")
pytest.importorskip("onnxscript", reason="the newer exporter writes with it")


class Masked(torch.nn.Module):
    """Attention over the last frames, of which `lens` have been seen: as in streaming transducers."""

    size = (("cache", (6, 4)), ("lens", ()))

    def __init__(self):
        super().__init__()
        self.q, self.k = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, cache, lens):
        frames = torch.cat([cache, x.unsqueeze(1)], 1)
        ago = torch.arange(6, -1, -1)
        unseen = ago.unsqueeze(0) > lens.unsqueeze(1)
        scores = (self.k(frames) @ self.q(x).unsqueeze(2)).squeeze(2).masked_fill(unseen, -1e9)
        y = (scores.softmax(1).unsqueeze(1) @ frames).squeeze(1)
        return y, frames[:, 1:], torch.clamp(lens + 1, max=6)


class Ring(torch.nn.Module):
    """A delay line that is written at a moving place: where, places compared, remainders."""

    size = (("line", (5, 4)), ("at", ()))

    def forward(self, x, line, at):
        here = torch.arange(5).unsqueeze(0) == at.unsqueeze(1)
        line = torch.where(here.unsqueeze(2), x.unsqueeze(1), line)
        oldest = (at + 1) % 5
        y = (line * (torch.arange(5).unsqueeze(0) == oldest.unsqueeze(1)).unsqueeze(2)).sum(1)
        return y, line, oldest


class Votes(torch.nn.Module):
    """Counts of classes, and the class that leads: sums of bools, the largest of integers, floor division, minus."""

    size = (("votes", (4,)), ("best", ()))

    def forward(self, x, votes, best):
        votes = votes + (x > 0).to(votes.dtype) * 3 - (votes // 7)
        top = votes.argmax(1)
        changed = (top != best) & (votes.amax(1) > 4)
        y = torch.where(changed.unsqueeze(1), x, -x) * votes.sum(1, keepdim=True).to(x.dtype)
        return y, votes, torch.where(changed, top, best)


MODULES = {"masked": Masked, "ring": Ring, "votes": Votes}


def exported(module, arguments, names, newer: bool) -> bytes:
    outs = ["y", *(f"new_{n}" for n in names[1:])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if newer:
            shapes = tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in arguments)
            program = torch.onnx.export(
                module, arguments, input_names=names, output_names=outs, dynamo=True, dynamic_shapes=shapes,
                verbose=False,
            )  # fmt: skip
            return program.model_proto.SerializeToString()
        file = io.BytesIO()
        axes = {name: {0: "batch"} for name in (*names, *outs)}
        torch.onnx.export(
            module, arguments, file, input_names=names, output_names=outs, dynamic_axes=axes, dynamo=False,
            opset_version=17,
        )  # fmt: skip
        return file.getvalue()


@pytest.mark.parametrize(
    ("dtype", "newer"),
    [(torch.int64, False), (torch.int64, True), (torch.int32, True)],
    ids=["int64, older exporter", "int64, newer exporter", "int32, newer exporter"],
)
@pytest.mark.parametrize("kind", MODULES)
def test_integer_states_of_exported_modules(kind, dtype, newer):
    module = MODULES[kind]().eval()
    sizes = dict(module.size)
    names = ["x", *sizes]
    dtypes = {"cache": torch.float32, "line": torch.float32}
    begin = [torch.zeros(3, *size, dtype=dtypes.get(n, dtype)) for n, size in sizes.items()]
    if kind == "votes":
        begin[1] = begin[1].long()
    model = fastrnn.load(exported(module, (torch.randn(3, 4), *begin), names, newer), threads=1)
    assert dict(model.graph.states) == {n: f"new_{n}" for n in sizes}
    kinds = {info.name: info.dtype for info in model.states}
    assert kinds == {n: str(t.dtype).removeprefix("torch.") for n, t in zip(sizes, begin, strict=True)}
    stream, pool = model.stream(batch_size=3), model.pool(3)
    slots = [pool.open() for _ in range(3)]
    now, rng = begin, np.random.default_rng(4)
    for t in range(17):
        x = rng.standard_normal((3, 4)).astype(np.float32)
        want, *now = module(torch.from_numpy(x), *now)
        made = stream.step(x)
        np.testing.assert_allclose(made, want.detach().numpy(), rtol=1e-5, atol=1e-5)
        order = rng.permutation(3)
        apart = pool.step(np.array(slots)[order], np.ascontiguousarray(x[order]))
        np.testing.assert_array_equal(apart, made[order])
        for name, value in zip(sizes, now, strict=True):
            np.testing.assert_allclose(stream.state[name], value.detach().numpy(), rtol=1e-5, atol=1e-6)
        if t == 8:
            taken = stream.snapshot()
            stream = model.stream(batch_size=3)
            stream.restore(taken)
