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


NOTE = "took a recurrence in parallel form step by step"


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(("chunk", "skip"), [(4, True), (16, True), (4, False)])
def test_a_sequence_padded_to_whole_chunks(chunk, skip, dynamic):
    """The padding is (Q - T % Q) % Q. The older exporter writes a permutation that counts from the end."""
    module = Chunked(chunk=chunk, skip=skip)
    file = exported(module, torch.zeros(2, STEPS, 6), dynamic=dynamic)
    perms = [list(a.ints) for n in onnx.load_from_string(file).graph.node for a in n.attribute if a.name == "perm"]
    assert any(min(perm) < 0 for perm in perms)
    model = equals_and_streams(module, file, 6)
    assert any(NOTE in note for note in model.notes)


def test_a_sequence_padded_to_whole_chunks_by_the_newer_exporter():
    module = Chunked()
    equals_and_streams(module, exported(module, torch.zeros(2, STEPS, 6), dynamo=True, dynamic=False), 6)


class Language(torch.nn.Module):
    """Words in, after a convolution whose padding is cut off."""

    def __init__(self, layers=2):
        super().__init__()
        torch.manual_seed(5)
        self.words, self.mixers = torch.nn.Embedding(11, 6), torch.nn.ModuleList(Chunked() for _ in range(layers))
        self.convs = torch.nn.ModuleList(torch.nn.Conv1d(6, 6, 4, padding=3, groups=6) for _ in range(layers))

    def forward(self, x):
        y = self.words(x)
        for conv, mixer in zip(self.convs, self.mixers, strict=True):
            y = y + mixer(F.silu(conv(y.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2))
        return y


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_model_of_words_with_several_layers(dynamic):
    module = Language().eval()
    ids = torch.randint(0, 11, (2, 40), generator=torch.Generator().manual_seed(2))
    model = fastrnn.load(exported(module, ids[:, :STEPS], dynamic=dynamic))
    wide = Language().eval().double()
    for steps in LENGTHS:
        with torch.no_grad():
            want = wide(ids[:, :steps]).numpy()
        np.testing.assert_allclose(model(ids[:, :steps].numpy()), want, rtol=0, atol=1e-5)
    y, stream = model(ids.numpy()), model.stream()
    assert np.array_equal(np.stack([stream.step(i) for i in ids[0].numpy()]), y[0])


class Forgetful(Chunked):
    """Each chunk begins anew."""

    def padded(self, x, pad):
        return super().padded(x, pad)

    def forward(self, x):
        rows, steps = x.shape[:2]
        pad = (self.chunk - steps % self.chunk) % self.chunk
        v, _, _, dt = self.w(x).split(self.sizes, -1)
        v = v.reshape(rows, steps, self.heads, -1)
        a = self.padded(-F.softplus(dt), pad).reshape(rows, -1, self.chunk, self.heads).permute(0, 3, 1, 2)
        u = self.padded(v, pad).reshape(rows, -1, self.chunk, *v.shape[2:])
        y = torch.einsum("bhcls,bcshp->bclhp", torch.exp(segment_sum(a)), u)
        y = y.reshape(rows, -1, *v.shape[2:]) + self.padded(v, pad)
        return y[:, :steps].reshape(rows, steps, -1)


class PaddedInFront(Chunked):
    """What is cut off is not what was added."""

    def padded(self, x, pad):
        return F.pad(x, (*(0, 0) * (x.ndim - 2), pad, 0))


@pytest.mark.parametrize("kind", [Forgetful, PaddedInFront])
def test_what_is_no_recurrence_over_all_steps_stays_as_it_is(kind):
    module = kind()
    model, wide = fastrnn.load(exported(module, torch.zeros(2, STEPS, 6))), kind().eval().double()
    for steps in LENGTHS:
        x = torch.randn(2, steps, 6, generator=torch.Generator().manual_seed(steps))
        with torch.no_grad():
            want = wide(x.double()).numpy()
        np.testing.assert_allclose(model(x.numpy()), want, rtol=0, atol=3e-6 * np.abs(want).max())
    assert not any(NOTE in note for note in model.notes)
    with pytest.raises(fastrnn.StreamError, match="pads a sequence"):
        model.stream()
