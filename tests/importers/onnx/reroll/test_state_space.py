"""State-space models as language-model libraries export them: whole sequences, traced at one length."""

import io
import warnings

import numpy as np
import onnx
import pytest

import fastrnn
from fastrnn.importers.onnx import import_onnx

torch = pytest.importorskip("torch")
F = torch.nn.functional
STEPS = 9
LENGTHS = (1, 2, 5, 9, 40)


def exported(module, x, dynamo=False, dynamic=True):
    """The file that an exporter writes, as bytes."""
    file = io.BytesIO()
    axes = {0: "batch", 1: "steps"} if dynamic else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(module.eval(), (x,), dynamo=True, input_names=["x"], verbose=False)
            return program.model_proto.SerializeToString()
        torch.onnx.export(
            module.eval(), (x,), file, dynamo=False, input_names=["x"], output_names=["y"], opset_version=17,
            dynamic_axes={"x": axes} if axes else None,
        )  # fmt: skip
    return file.getvalue()


def equals_and_streams(module, file, size, lengths=LENGTHS):
    """A file is the module in float64 at any length and batch, and a stream has the bits of whole runs."""
    model = fastrnn.load(file)
    wide = module.eval().double()
    for batch, steps in ((1, lengths[-1]), *((2, n) for n in lengths)):
        x = torch.randn(batch, steps, size, generator=torch.Generator().manual_seed(steps))
        with torch.no_grad():
            want = wide(x.double()).numpy()
        np.testing.assert_allclose(model(x.numpy()), want, rtol=0, atol=3e-6 * np.abs(want).max())
    x = x.numpy()
    y, stream = model(x), model.stream()
    assert np.array_equal(np.stack([stream.step(row) for row in x[0]]), y[0])
    stream = model.stream()
    assert np.array_equal(np.concatenate([stream.push(x[1, :4]), stream.push(x[1, 4:])]), y[1])
    return model


class Mamba(torch.nn.Module):
    """A convolution whose padding is cut off by the length, then the selective scan, step by step."""

    def __init__(self, size=4, states=3, cut=None):
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv1d(size, size, 4, padding=3, groups=size)
        self.w, self.a = torch.nn.Linear(size, 1 + 2 * states), torch.nn.Parameter(-torch.rand(size, states) - 0.2)
        self.states, self.cut = states, cut

    def forward(self, x):
        steps = x.shape[1]
        u = F.silu(self.conv(x.transpose(1, 2))[:, :, : self.cut or steps])
        d, b, c = self.w(u.transpose(1, 2)).split([1, self.states, self.states], -1)
        d = F.softplus(d.transpose(1, 2) + u)
        decay = torch.exp(self.a[None, :, None] * d[..., None])
        new = d[..., None] * b[:, None] * u[..., None]
        h = torch.zeros(x.shape[0], u.shape[1], self.states, dtype=x.dtype)
        outputs = []
        for t in range(self.cut or steps):
            h = decay[:, :, t] * h + new[:, :, t]
            outputs.append((h @ c[:, t].unsqueeze(-1))[:, :, 0])
        return self.joined(torch.stack(outputs, -1), u, h)

    def joined(self, y, u, h):
        return (y + u).transpose(1, 2)


@pytest.mark.parametrize(("dynamo", "dynamic"), [(False, True), (False, False), (True, False)])
def test_mamba_written_out_for_a_length(dynamo, dynamic):
    """With `dynamic`, the file says that its length is open, but adds the nine steps of the loop to all steps."""
    module = Mamba()
    model = equals_and_streams(module, exported(module, torch.zeros(2, STEPS, 4), dynamo, dynamic), 4)
    assert any("one cycle over the steps" in note for note in model.notes)


def test_a_loop_over_the_first_steps_of_an_open_length_stays_that():
    """Only h after nine steps is used, so the file reads nine steps of any sequence, as onnxruntime does."""

    class Last(Mamba):
        def joined(self, y, u, h):
            return h

    onnxruntime = pytest.importorskip("onnxruntime")
    file = exported(Last(), torch.zeros(2, STEPS, 4))
    model, session = fastrnn.load(file), onnxruntime.InferenceSession(file)
    for steps in (9, 12, 31):
        x = np.random.default_rng(steps).normal(size=(2, steps, 4)).astype(np.float32)
        np.testing.assert_allclose(model(x), session.run(None, {"x": x})[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cut", [7, 8])
def test_a_cut_that_is_no_length_holds_the_length(cut):
    """`conv(x)[:, :, :8]` of nine steps and a padding of three."""
    graph = import_onnx(exported(Mamba(cut=cut), torch.zeros(2, STEPS, 4), dynamic=False))
    assert graph.values["x"].dims[1] == STEPS
    assert any(axis == 1 for _, axis, _ in graph.held)


def segment_sum(x):
    """[.., Q] -> [.., Q, Q]: the sums of x over (j, i], minus infinity for j > i."""
    size = x.shape[-1]
    below = torch.tril(torch.ones(size, size, dtype=torch.bool), -1)
    made = x[..., None].expand(*x.shape, size).masked_fill(~below, 0).cumsum(-2)
    return made.masked_fill(~torch.tril(torch.ones(size, size, dtype=torch.bool)), -torch.inf)


class Chunked(torch.nn.Module):
    """Mamba-2 in chunks: the sequence is padded to whole ones, with the input added before the padding is cut off."""

    def __init__(self, size=6, heads=3, states=5, chunk=4, skip=True, tied=False):
        super().__init__()
        torch.manual_seed(4)
        self.heads, self.states, self.chunk, self.skip = heads, states, chunk, skip
        self.w = torch.nn.Linear(size, size + 2 * states + heads)
        self.a, self.d = torch.nn.Parameter(torch.rand(heads) + 0.2), torch.nn.Parameter(torch.randn(heads))
        self.sizes = [size, states, states, heads]
        self.tied = tied

    def forward(self, x):
        rows, steps = x.shape[:2]
        pad = (self.chunk - steps % self.chunk) % self.chunk
        v, b, c, dt = self.w(x).split(self.sizes, -1)
        v, dt = v.reshape(rows, steps, self.heads, -1), F.softplus(dt)
        b, c = (z.reshape(rows, steps, 1, -1).expand(rows, steps, self.heads, -1) for z in (b, c))
        skipped = self.d[:, None] * self.padded(v, pad)
        v, a = v * dt[..., None], -self.a * dt
        v, a, b, c = (
            z.reshape(rows, -1, self.chunk, *z.shape[2:]) for z in (self.padded(t, pad) for t in (v, a, b, c))
        )
        a = a.permute(0, 3, 1, 2)
        sums = a.cumsum(-1)
        inside = torch.einsum("bclhn,bcshn->bclsh", c, b) * torch.exp(segment_sum(a)).permute(0, 2, 3, 4, 1)
        y = torch.einsum("bclsh,bcshp->bclhp", inside, v)
        kept = b * torch.exp(sums[..., -1:] - sums).permute(0, -2, -1, 1)[..., None]
        states = torch.einsum("bclhn,bclhp->bchpn", kept, v)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
        between = torch.exp(segment_sum(F.pad(sums[..., -1], (1, 0)))).transpose(1, 3)
        states = torch.einsum("bzch,bzhpn->bchpn", between, states)[:, :-1]
        y = y + torch.einsum("bclhn,bchpn->bclhp", c, states) * torch.exp(sums).permute(0, 2, 3, 1)[..., None]
        y = y.reshape(rows, -1, self.heads, v.shape[-1])
        y = y + skipped if self.skip else y
        return y[:, :steps].reshape(rows, steps, -1)

    def padded(self, x, pad):
        return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, pad))


def equals(module, file, size, lengths=LENGTHS):
    model, wide = fastrnn.load(file), module.eval().double()
    for steps in lengths:
        x = torch.randn(2, steps, size, generator=torch.Generator().manual_seed(steps))
        with torch.no_grad():
            want = wide(x.double()).numpy()
        np.testing.assert_allclose(model(x.numpy()), want, rtol=0, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize("chunk", [4, 16])
def test_a_sequence_padded_to_whole_chunks_has_any_length(chunk):
    """The padding is (Q - T % Q) % Q. The older exporter writes a permutation that counts from the end."""
    module = Chunked(chunk=chunk)
    file = exported(module, torch.zeros(2, STEPS, 6))
    perms = [list(a.ints) for n in onnx.load_from_string(file).graph.node for a in n.attribute if a.name == "perm"]
    assert any(min(perm) < 0 for perm in perms)
    equals(module, file, 6)
