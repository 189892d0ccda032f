"""The shared list of RNN cases through the engine, on whatever instruction set is active (FASTRNN_ISA chooses one).

Accuracy is judged against the float64 reference, with onnxruntime's own error as the bar; the promises of "same bits"
(step, chunk, batch, length as the file froze it or not) are judged bit by bit.
"""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from rnn_cases import BY_ID, CASES, expected, make_inputs, make_model, make_weights, ort_run

import fastrnn
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx

# The bar is onnxruntime's largest error of a case and a tenth; but that is the luck of a few roundings (a case may have
# a single element), so what float32 itself leaves open is added: two ulps of every number that enters and of every one
# that leaves. Onnxruntime's own errors are about as large as one half of that sum. That our errors are no larger where
# luck evens out is the next test's: it compares root mean squares over the whole list.
SLACK = 1.1
ULPS = 2


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@functools.lru_cache(maxsize=4)  # the tests of one case do not follow each other; this serves within a test
def model_of(case):
    return fastrnn.from_onnx(make_model(case))


def bits(array):
    """The array's bits as integers, so that NaNs and signs of zero count."""
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "f" else array


def assert_same_bits(ours, theirs, what=""):
    assert ours.dtype == theirs.dtype, what
    assert ours.shape == theirs.shape, what
    np.testing.assert_array_equal(bits(ours), bits(theirs), err_msg=what)


def largest(arrays):
    return max((float(np.max(np.abs(a))) for a in arrays if a.size), default=0.0)


# ---- right -----------------------------------------------------------------------------------------------------------


@named(CASES)
def test_the_imported_graph_means_the_case(case):
    """The importer alone, with the reference instead of kernels: equal to float64 noise."""
    inputs = make_inputs(case)
    answers = expected(case, inputs)
    ours = reference.run(import_onnx(make_model(case)), inputs)
    for name, array in zip(case.outputs, ours, strict=True):
        np.testing.assert_allclose(array, answers[name], rtol=1e-12, atol=1e-12, err_msg=name)


def moved(case, inputs, answers):
    """Output name -> how far its answers move when weights, inputs and states are off by an ulp, up or down."""
    rng = np.random.default_rng(case.seed)

    def off(array):
        return array if array.dtype.kind == "i" else array * (1 + rng.choice([-1, 1], array.shape) * 2.0**-23)

    weights = {name: off(array) for name, array in make_weights(case).items()}
    other = expected(case, {name: off(array) for name, array in inputs.items()}, weights)
    return {name: largest([other[name] - answers[name]]) for name in case.outputs}


@named(CASES)
def test_the_engine_is_as_accurate_as_onnxruntime(case):
    inputs = make_inputs(case)
    answers = expected(case, inputs)
    ours, theirs = model_of(case).run(**inputs), ort_run(case, inputs)
    move = moved(case, inputs, answers)
    for name, array in zip(case.outputs, ours, strict=True):
        assert array.dtype == np.float32
        assert array.shape == answers[name].shape
        our_error, their_error = largest([array - answers[name]]), largest([theirs[name] - answers[name]])
        floor = ULPS * (2.0**-23 * largest([answers[name]]) + move[name])
        assert our_error <= SLACK * their_error + floor, (name, our_error, their_error, floor)


def test_errors_are_no_larger_than_onnxruntimes_over_the_list():
    """The geometric mean, over all outputs of all cases, of our root mean square error over onnxruntime's."""
    logs = {"rnn": [], "lstm": [], "gru": []}
    for case in CASES:
        inputs = make_inputs(case)
        answers, theirs = expected(case, inputs), ort_run(case, inputs)
        for name, array in zip(case.outputs, model_of(case).run(**inputs), strict=True):
            squares = [np.mean((a - answers[name]) ** 2) for a in (array, theirs[name])]
            if min(squares) > 0:  # an answer that is exact, as all rows empty, says nothing
                logs[case.kind].append(np.log(squares[0] / squares[1]) / 2)
    ratios = {kind: float(np.exp(np.mean(values))) for kind, values in logs.items()}
    overall = float(np.exp(np.mean(np.concatenate(list(logs.values())))))
    assert overall <= SLACK, (overall, ratios)
    assert max(ratios.values()) <= 1.3, (overall, ratios)


@named([case for case in CASES if case.lengths is not None])
def test_rows_end_exactly(case):
    """y is 0, to the bit, from a row's end on; a row without steps keeps its initial states to the bit."""
    inputs = make_inputs(case)
    ours = dict(zip(case.outputs, model_of(case).run(**inputs), strict=True))
    lengths = inputs["sequence_lens"]
    if "Y" in ours:
        y = ours["Y"] if case.layout else ours["Y"].swapaxes(0, 2).swapaxes(1, 2)  # [batch, T, D, H]
        for row, length in enumerate(lengths):
            assert not bits(y[row, length:]).any()
    for name, initial in (("Y_h", "initial_h"), ("Y_c", "initial_c")):
        if name in ours:
            axis = 0 if case.layout else 1
            last = np.compress(lengths == 0, ours[name], axis)
            first = np.compress(lengths == 0, inputs[initial], axis) if initial in inputs else np.zeros_like(last)
            assert_same_bits(last, first, name)


# ---- the same bits ---------------------------------------------------------------------------------------------------


def streams(case):
    """A live stream knows its initial states: zeros, or a state that comes out where it went in."""
    paired = (not case.h0 or "Y_h" in case.outputs) and (not case.c0 or "Y_c" in case.outputs)
    return case.streamable and paired


STREAMED = [case for case in CASES if streams(case)]


def rows_first(case, name, array, steps):
    """A whole run's output as a stream gives it: [batch, T, D, H] for Y, [batch, D, H] for Y_h and Y_c."""
    if case.layout:
        return array
    return array.transpose(2, 0, 1, 3) if name == "Y" else array.swapaxes(0, 1)


def open_stream(case, model, inputs):
    """A stream of the whole batch in the case's initial states, and the outputs that it shows (states are not)."""
    stream = model.stream(batch_size=case.batch)
    threaded = {n for n in ("initial_h", "initial_c") if n in inputs}
    if threaded:
        stream.state = {**stream.state, **{n: inputs[n] for n in threaded}}
    ends = {"initial_h": "Y_h", "initial_c": "Y_c"}
    hidden = {ends[n] for n in threaded}
    return stream, [name for name in case.outputs if name not in hidden], {n: ends[n] for n in threaded}


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@named(STREAMED)
def test_steps_and_chunks_give_the_bits_of_the_whole_run(case):
    case = replace(case, frozen=False)
    model, inputs = model_of(case), make_inputs(case)
    whole = dict(zip(case.outputs, model.run(**inputs), strict=True))
    x = inputs["X"] if case.layout else inputs["X"].swapaxes(0, 1)  # [batch, T, I]
    cuts = sorted(np.random.default_rng(case.seed).integers(0, case.T + 1, 3).tolist())
    for spans in (list(range(case.T + 1)), [0, *cuts, case.T]):
        stream, shown, threaded = open_stream(case, model, inputs)
        pieces = [as_tuple(stream.push(np.ascontiguousarray(x[:, a:b]))) for a, b in itertools.pairwise(spans) if b > a]
        check_stream(case, whole, stream, shown, threaded, pieces, joined=True)
    stream, shown, threaded = open_stream(case, model, inputs)
    pieces = [as_tuple(stream.step(np.ascontiguousarray(x[:, t]))) for t in range(case.T)]
    check_stream(case, whole, stream, shown, threaded, pieces, joined=False)


def check_stream(case, whole, stream, shown, threaded, pieces, joined):
    for k, name in enumerate(shown):
        parts, want = [piece[k] for piece in pieces], rows_first(case, name, whole[name], case.T)
        got = parts[-1] if name != "Y" else np.concatenate(parts, 1) if joined else np.stack(parts, 1)
        assert_same_bits(got, want, name)
    for start, end in threaded.items():
        assert_same_bits(stream.state[start], whole[end], end)


def test_each_kind_and_layout_is_streamed():
    assert {(case.kind, case.layout) for case in STREAMED} == set(itertools.product(("rnn", "lstm", "gru"), (0, 1)))
    assert sum(case.batch == 1 for case in STREAMED) >= 6


def take_rows(case, inputs, rows):
    """The inputs of some rows of the batch alone."""
    axes = {"X": 0 if case.layout else 1, "sequence_lens": 0}
    return {n: np.ascontiguousarray(np.take(a, rows, axes.get(n, 0 if case.layout else 1))) for n, a in inputs.items()}


@named([case for case in CASES if case.batch > 1])
def test_a_row_alone_gives_its_bits_in_the_batch(case):
    case = replace(case, frozen=False)
    model, inputs = model_of(case), make_inputs(case)
    whole = dict(zip(case.outputs, model.run(**inputs), strict=True))
    last = case.batch - 1
    for rows in ([0], [last], [last // 2], list(range(last, -1, -2))):
        alone = model.run(**take_rows(case, inputs, rows))
        for name, array in zip(case.outputs, alone, strict=True):
            axis = 0 if case.layout else 2 if name == "Y" else 1
            assert_same_bits(array, np.take(whole[name], rows, axis), f"{name} of rows {rows}")


@named([case for case in CASES if case.frozen and case.T > 1])
def test_frozen_sizes_thaw(case):
    """A file that writes T and batch as numbers runs at others, with the bits of the file that does not."""
    other = replace(case, frozen=False, T=case.T + 3, batch=case.batch + 2)
    inputs = make_inputs(other)
    thawed, free = fastrnn.from_onnx(make_model(case)), model_of(other)
    for name, ours, theirs in zip(case.outputs, thawed.run(**inputs), free.run(**inputs), strict=True):
        assert_same_bits(ours, theirs, name)


@named([case for case in CASES if case.lengths == "zeros" and not case.frozen])
def test_lengths_of_run_are_those_of_the_file(case):
    """run(lengths=) on a file without sequence_lens gives the bits of the file with them."""
    inputs = make_inputs(case)
    lengths = inputs.pop("sequence_lens")
    plain = replace(case, lengths=None)
    ours = model_of(plain).run(**inputs, lengths=lengths.tolist())
    theirs = model_of(case).run(**inputs, sequence_lens=lengths)
    for name, a, b in zip(case.outputs, ours, theirs, strict=True):
        assert_same_bits(a, b, name)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_one_rows_nan_stays_in_its_row(kind):
    case = replace(BY_ID[f"{kind}-wide_batch"], T=5)
    model, inputs = model_of(case), make_inputs(case)
    clean = model.run(**inputs)
    inputs["X"][2, 7, 3], inputs["X"][1, 20, 0], inputs["X"][0, 11, 5] = np.nan, np.inf, -np.inf
    hit = [7, 11, 20]
    rest = [row for row in range(case.batch) if row not in hit]
    for name, ours, before in zip(case.outputs, model.run(**inputs), clean, strict=True):
        axis = 2 if name == "Y" else 1
        assert_same_bits(np.take(ours, rest, axis), np.take(before, rest, axis), name)
        assert np.isnan(np.take(ours, 7, axis)).any()


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_no_steps_and_no_rows(kind):
    for T, batch in ((0, 3), (4, 0)):
        case = replace(BY_ID[f"{kind}-wide_batch"], T=T, batch=batch)
        inputs = make_inputs(case)
        ours = model_of(replace(case, T=5, batch=3)).run(**inputs)
        for name, array in zip(case.outputs, ours, strict=True):
            want = expected(case, inputs)[name]
            assert_same_bits(array, want.astype(np.float32), name)


@pytest.mark.parametrize("lengths", [[6, 2], [-1, 2]])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_lengths_outside_the_steps_are_refused(kind, lengths):
    """A length is data of the caller's, and no kernel checks it: it must not reach one."""
    case = replace(BY_ID[f"{kind}-smallest"], T=5, batch=2, lengths="full")
    inputs = make_inputs(case) | {"sequence_lens": np.array(lengths, np.int32)}
    with pytest.raises(fastrnn.ShapeError, match=str(lengths[0])):
        model_of(case).run(**inputs)


@pytest.mark.parametrize("lengths", [[6, 2], [-1, 2]])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_lengths_of_run_outside_the_steps_are_refused(kind, lengths):
    case = replace(BY_ID[f"{kind}-smallest"], T=5, batch=2)
    with pytest.raises(fastrnn.ShapeError, match=str(lengths[0])):
        model_of(case).run(**make_inputs(case), lengths=lengths)
