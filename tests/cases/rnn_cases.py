"""The shared list of RNN cases: `CASES`, and for each its ONNX model, its inputs, its graph and its float64 answer.

    make_model(case)   a valid onnx.ModelProto with one RNN, LSTM or GRU node
    make_inputs(case)  input name -> array, as the model takes them (the same on every call)
    graph_of(case)     the same as a fastrnn Graph, with no importer between
    expected(case)     output name -> float64 array, in the model's own axis order
    ort_supports(case) None, or why onnxruntime can't be asked as the case stands
    ort_run(case, inputs)  onnxruntime's answers, asked in a way that it understands

Most cases are drawn so that every pair of switches (kind x direction, lengths x layout, ...) occurs together; `SEED`
makes the list. The nasty ones are written out by hand. Words: D directions, G gates, the rest as in graph/types.py.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import numpy as np
from graph_builder import GraphBuilder

from fastrnn.graph import Graph, reference
from fastrnn.graph.cells import ACTIVATIONS, GATES, CellSpec, activation
from fastrnn.graph.dims import BATCH, TIME

SEED = 20240607
DRAWN = {"rnn": 95, "lstm": 130, "gru": 105}  # how many drawn cases a kind

# ONNX's names of activations, which a file may write in any case -> fastrnn's, and which of alpha, beta they take.
ONNX_ACTIVATIONS = {
    "Relu": ("relu", ""),
    "Tanh": ("tanh", ""),
    "Sigmoid": ("sigmoid", ""),
    "Affine": ("affine", "ab"),
    "LeakyRelu": ("leaky_relu", "a"),
    "ThresholdedRelu": ("thresholded_relu", "a"),
    "ScaledTanh": ("scaled_tanh", "ab"),
    "HardSigmoid": ("hard_sigmoid", "ab"),
    "Elu": ("elu", "a"),
    "Softsign": ("softsign", ""),
    "Softplus": ("softplus", ""),
}
_SPELT = {name.lower(): name for name in ONNX_ACTIVATIONS}


@dataclass(frozen=True)
class RnnCase:
    """One case. Sizes first, then the switches of the ONNX operators.

    lengths: None (no input), "full", "ones", "mixed" (1..T), "zeros" (mixed, some rows 0) or "all_zero".
    activations: (name, alpha, beta) for f (g, h), for each direction one after the other; () leaves the attribute out;
    alpha and beta are None where the file does not give them.
    outputs: the names that are not omitted. frozen: the file writes T and batch as numbers.
    weights: "plain" (products about 1), "saturating" (W some ten times larger) or "tiny".
    x: "normal", "sparse" (most elements, and whole steps, exactly 0) or "zeros".
    """

    id: str
    kind: str
    I: int  # noqa: E741  (the project's word for the input size)
    H: int
    T: int
    batch: int
    direction: str = "forward"
    layout: int = 0
    lengths: str | None = None
    bias: bool = True
    h0: bool = False
    c0: bool = False
    peephole: bool = False
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False
    activations: tuple = ()
    outputs: tuple[str, ...] = ("Y", "Y_h")
    opset: int = 14
    frozen: bool = False
    weights: str = "plain"
    x: str = "normal"
    seed: int = 0

    @property
    def D(self) -> int:
        """How many directions."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def G(self) -> int:
        """How many gates."""
        return GATES[self.kind]

    @property
    def streamable(self) -> bool:
        """Whether every step's answer is known at that step: forward, and no lengths (a stream has none)."""
        return self.direction == "forward" and self.lengths is None


# ---- the list --------------------------------------------------------------------------------------------------------

_FORMS = {  # activation sets a kind; names in odd cases on purpose
    "rnn": [
        (),
        (("Relu", None, None),),
        (("sIgMoId", None, None),),
        (("HardSigmoid", 0.3, 0.4),),
        (("HARDSIGMOID", None, None),),
        (("softplus", None, None),),
        (("Elu", 0.7, None),),
        (("Affine", 0.6, 0.1),),
        (("ThresholdedRelu", 0.2, None),),
        (("LeakyRelu", 0.1, None),),
        (("ScaledTanh", 1.2, 0.8),),
        (("Softsign", None, None),),
    ],
    "lstm": [
        (),
        (("sigmoid", None, None), ("TANH", None, None), ("tAnh", None, None)),
        (("HardSigmoid", None, None), ("Tanh", None, None), ("Tanh", None, None)),
        (("HardSigmoid", 0.3, 0.6), ("ScaledTanh", 1.1, 0.9), ("Softsign", None, None)),
        (("Sigmoid", None, None), ("Relu", None, None), ("Softplus", None, None)),
        (("Sigmoid", None, None), ("Affine", 0.5, 0.05), ("Elu", 0.8, None)),
        (("Softsign", None, None), ("ThresholdedRelu", 0.1, None), ("LeakyRelu", 0.2, None)),
    ],
    "gru": [
        (),
        (("SIGMOID", None, None), ("tanh", None, None)),
        (("HardSigmoid", None, None), ("Tanh", None, None)),
        (("HardSigmoid", 0.25, 0.55), ("ScaledTanh", 1.1, 0.9)),
        (("Sigmoid", None, None), ("Relu", None, None)),
        (("Sigmoid", None, None), ("Elu", 0.8, None)),
        (("Softsign", None, None), ("LeakyRelu", 0.2, None)),
        (("Sigmoid", None, None), ("Affine", 0.5, 0.05)),
        (("hardsigmoid", 0.3, 0.5), ("Softplus", None, None)),
        (("Sigmoid", None, None), ("ThresholdedRelu", 0.1, None)),
    ],
}
_OUTPUTS = {
    "rnn": [("Y", "Y_h"), ("Y",), ("Y_h",)],
    "gru": [("Y", "Y_h"), ("Y",), ("Y_h",)],
    "lstm": [("Y", "Y_h", "Y_c"), ("Y",), ("Y_h",), ("Y_c",), ("Y_h", "Y_c"), ("Y", "Y_c")],
}
_SIZES = {  # each list is walked round, so every size occurs
    "I": [1, 2, 3, 4, 5, 7, 8, 13, 16, 19, 31, 32, 40, 65],
    "H": [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 20, 24, 31, 32, 33, 40, 50, 64, 65, 100, 128, 130],
    "T": [1, 2, 3, 7, 20],
    "batch": [1, 2, 3, 5, 6, 7, 13],
}


def switches(kind: str) -> dict[str, list]:
    """Switch -> the values it takes; every pair of values of two switches occurs in some drawn case of the kind."""
    table = {
        "direction": ["forward", "reverse", "bidirectional"],
        "layout": [0, 1],
        "lengths": [None, "full", "ones", "mixed", "zeros", "all_zero"],
        "bias": [True, False],
        "h0": [True, False],
        "clip": [None, 0.4, 3.0],
        "activations": list(range(len(_FORMS[kind]))),
        "outputs": _OUTPUTS[kind],
        "opset": [7, 14, 22],
        "frozen": [False, True],
        "weights": ["plain", "plain", "saturating", "tiny"],
        "x": ["normal", "normal", "sparse", "zeros"],
    }
    if kind == "lstm":
        table |= {"c0": [True, False], "peephole": [True, False], "input_forget": [False, True]}
    if kind == "gru":
        table |= {"linear_before_reset": [False, True]}
    return table


def possible(choice: dict) -> bool:
    """False for what no file can say or no test should ask: layout came with opset 14."""
    return not (choice["layout"] == 1 and choice["opset"] == 7)


def pairs(choice: dict) -> set:
    """All pairs ((switch, value), (switch, value)) of a choice of switches."""
    return set(itertools.combinations(sorted((k, repr(v)) for k, v in choice.items()), 2))


CHOICES: dict[str, dict] = {}  # id of a drawn case -> its choice of switches


def _drawn(kind: str) -> list[RnnCase]:
    """Greedy pairwise cover: of some random choices keep the one with most pairs not seen yet."""
    rng = random.Random(f"{SEED} {kind}")
    table, seen, cases = switches(kind), set(), []
    sizes = {name: itertools.cycle(rng.sample(values, len(values))) for name, values in _SIZES.items()}
    for number in range(DRAWN[kind]):
        choices = [{name: rng.choice(values) for name, values in table.items()} for _ in range(60)]
        best = max(filter(possible, choices), key=lambda choice: len(pairs(choice) - seen))
        seen |= pairs(best)
        choice = dict(best)
        forms, first = _FORMS[kind], best["activations"]
        if best["direction"] == "bidirectional" and first:
            best["activations"] = forms[first] + forms[rng.randrange(1, len(forms))]
        else:
            best["activations"] = forms[first]
        drawn = {name: next(values) for name, values in sizes.items()}
        case = RnnCase(id="", kind=kind, **drawn, **best, seed=rng.randrange(1 << 30))
        cases.append(replace(case, id=f"{kind}-{number:03d}-{_summary(case)}"))
        CHOICES[cases[-1].id] = choice
    return cases


def _summary(case: RnnCase) -> str:
    words = [f"{case.I}x{case.H}", f"T{case.T}", f"b{case.batch}", case.direction[:2]]
    words += ["layout1"] if case.layout else []
    words += [f"len_{case.lengths}"] if case.lengths else []
    words += [name for name in ("peephole", "input_forget", "linear_before_reset") if getattr(case, name)]
    words += [f"clip{case.clip:g}"] if case.clip is not None else []
    words += [name.lower() for name, _, _ in case.activations]
    return "-".join(words)


def _written() -> list[RnnCase]:
    """The nasty ones, by hand."""
    every = {"rnn": ("Y", "Y_h"), "gru": ("Y", "Y_h"), "lstm": ("Y", "Y_h", "Y_c")}
    cases = []

    def add(name, kind, I, H, T, batch, **more):  # noqa: E741
        more.setdefault("outputs", every[kind])
        cases.append(RnnCase(f"{kind}-{name}", kind, I, H, T, batch, seed=SEED + len(cases), **more))

    for kind in GATES:
        states = {"h0": True, "c0": kind == "lstm"}
        add("smallest", kind, 1, 1, 1, 1)
        add("one_step_lengths", kind, 3, 5, 1, 3, lengths="zeros", direction="reverse")
        add("bidirectional_lengths_states", kind, 7, 17, 7, 6, lengths="zeros", direction="bidirectional", **states)
        add(
            "reverse_lengths_states_layout1", kind, 5, 9, 7, 5, lengths="mixed", direction="reverse", layout=1, **states
        )
        add("all_rows_empty", kind, 4, 8, 3, 3, lengths="all_zero", direction="bidirectional", **states)
        add("clip_bites", kind, 16, 33, 20, 2, clip=0.05, **states)
        add("saturating", kind, 40, 64, 20, 3, weights="saturating", opset=22, **states)
        add("zero_input", kind, 8, 20, 7, 2, x="zeros", bias=False)
        add("wide_batch", kind, 13, 24, 3, 33, **states)
        add("one_row_wide", kind, 65, 130, 7, 1, opset=7, **states)
        add("long", kind, 4, 31, 50, 2, lengths="mixed", **states)
        add("only_last", kind, 9, 15, 20, 1, outputs=("Y_h",))
        mixed = _FORMS[kind][-1] + _FORMS[kind][3]
        add("two_directions_two_forms", kind, 6, 16, 7, 3, direction="bidirectional", activations=mixed, layout=1)
    for kind, direction in itertools.product(GATES, ("forward", "reverse", "bidirectional")):
        after = {"direction": direction, "linear_before_reset": kind == "gru"}  # what torch's modules are
        states = {"h0": True, "c0": kind == "lstm"}
        add(f"as_torch_{direction}", kind, 20, 40, 7, 3, **after, **states)
        add(f"as_torch_{direction}_ragged", kind, 8, 33, 20, 5, lengths="mixed", **after)
    sizes = itertools.cycle(
        [(1, 3, 7, 1), (16, 16, 7, 5), (5, 31, 20, 2), (40, 65, 3, 1), (13, 20, 7, 3), (2, 50, 7, 7)]
    )
    for kind, layout, form in itertools.product(GATES, (0, 1), range(4)):  # what a service steps, one stream or some
        more = {
            "layout": layout,
            "activations": _FORMS[kind][[0, 0, 3, -1][form]],
            "clip": [None, 0.7, None, 2.0][form],
        }
        more |= {"peephole": form == 1, "input_forget": form == 2} if kind == "lstm" else {}
        more |= {"linear_before_reset": form % 2 == 1} if kind == "gru" else {}
        more |= {"h0": form < 2, "c0": form < 2 and kind == "lstm", "bias": form != 3}
        add(f"live{layout}{form}", kind, *next(sizes), **more)
    add("as_torch_relu", "rnn", 8, 33, 20, 5, activations=(("Relu", None, None),) * 2, direction="bidirectional")
    for forget in (False, True):
        add(f"everything_{forget}", "lstm", 19, 40, 7, 7, direction="bidirectional", lengths="zeros", h0=True, c0=True,
            peephole=True, clip=0.6, input_forget=forget, activations=_FORMS["lstm"][3] * 2, layout=1)  # fmt: skip
        add(f"peephole_saturating_{forget}", "lstm", 12, 50, 20, 3, peephole=True, input_forget=forget, c0=True,
            weights="saturating")  # fmt: skip
        add(f"reset_{forget}_clip_lengths", "gru", 19, 40, 7, 7, linear_before_reset=forget, clip=0.5, h0=True,
            direction="bidirectional", lengths="zeros")  # fmt: skip
        add(f"reset_{forget}_no_bias", "gru", 16, 65, 20, 1, linear_before_reset=forget, bias=False, h0=True)
    add("c0_without_h0", "lstm", 5, 7, 3, 2, c0=True)
    add("h0_without_c0", "lstm", 5, 7, 3, 2, h0=True)
    return cases


# ---- arrays ----------------------------------------------------------------------------------------------------------


def make_weights(case: RnnCase) -> dict[str, np.ndarray]:
    """W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] and P [D, 3*H] (the last two where the case has them), float32."""
    rng = np.random.default_rng([SEED, case.seed, 1])
    scale = {"plain": 1.0, "saturating": 12.0, "tiny": 1e-3}[case.weights]
    D, GH = case.D, case.G * case.H

    def draw(*shape, size):
        return (rng.normal(size=shape) * size).astype(np.float32)

    # R is kept contracting (norm below 1 or so): otherwise rounding grows with T and no two float32 runs agree.
    weights = {
        "W": draw(D, GH, case.I, size=scale / np.sqrt(case.I)),
        "R": draw(D, GH, case.H, size=0.5 * min(scale, 1.0) / np.sqrt(case.H)),
    }
    if case.bias:
        weights["B"] = draw(D, 2 * GH, size=0.3)
    if case.peephole:
        weights["P"] = draw(D, 3 * case.H, size=0.5)
    return weights


def make_lengths(case: RnnCase) -> np.ndarray | None:
    """int32 [batch], or None."""
    rng = np.random.default_rng([SEED, case.seed, 2])
    T, batch = case.T, case.batch
    if case.lengths is None:
        return None
    if case.lengths == "full":
        return np.full(batch, T, np.int32)
    if case.lengths == "ones":
        return np.ones(batch, np.int32)
    if case.lengths == "all_zero":
        return np.zeros(batch, np.int32)
    lengths = rng.integers(1, T + 1, batch).astype(np.int32)
    lengths[rng.integers(batch)] = T  # one row is as long as the array, as exporters pad
    if case.lengths == "zeros":
        lengths[rng.permutation(batch)[: (batch + 2) // 3]] = 0
    return lengths


def make_inputs(case: RnnCase) -> dict[str, np.ndarray]:
    """X, and sequence_lens, initial_h, initial_c where the case has them, in the model's axis order."""
    rng = np.random.default_rng([SEED, case.seed, 3])
    x = rng.normal(size=(case.T, case.batch, case.I)).astype(np.float32)
    if case.x == "sparse":
        x[rng.random(x.shape) < 0.7] = 0
        x[rng.random(case.T) < 0.5] = 0
    if case.x == "zeros":
        x[:] = 0
    inputs = {"X": x.swapaxes(0, 1).copy() if case.layout else x}
    if case.lengths is not None:
        inputs["sequence_lens"] = make_lengths(case)
    for name, there in (("initial_h", case.h0), ("initial_c", case.c0)):
        state = rng.normal(size=(case.D, case.batch, case.H)).astype(np.float32)
        if there:
            inputs[name] = state.swapaxes(0, 1).copy() if case.layout else state
    return inputs


def _value_lists(case: RnnCase) -> tuple[list[float], list[float]]:
    """activation_alpha and activation_beta as the file has them: float32, one for each activation that takes one, in
    the order of `activations` (onnxruntime reads them so); empty where every value is the default."""
    lists = []
    for letter, index in (("a", 1), ("b", 2)):
        taking = [act for act in case.activations if letter in ONNX_ACTIVATIONS[_SPELT[act[0].lower()]][1]]
        defaults = [ACTIVATIONS[ONNX_ACTIVATIONS[_SPELT[act[0].lower()]][0]][index - 1] for act in taking]
        values = [d if act[index] is None else act[index] for act, d in zip(taking, defaults, strict=True)]
        written = any(act[index] is not None for act in taking)
        lists.append([float(np.float32(v)) for v in values] if written else [])
    return lists[0], lists[1]


def spec_of(case: RnnCase, d: int) -> CellSpec:
    """The CellSpec of direction d, with the numbers that the file holds."""
    alphas, betas = map(iter, _value_lists(case))
    acts = []
    for name, _, _ in case.activations:
        ours, takes = ONNX_ACTIVATIONS[_SPELT[name.lower()]]
        acts.append(
            activation(ours, next(alphas, None) if "a" in takes else None, next(betas, None) if "b" in takes else None)
        )
    count = len(acts) // case.D
    return CellSpec(
        case.kind,
        case.I,
        case.H,
        activations=tuple(acts[d * count : (d + 1) * count]),
        reverse=case.direction == "reverse" or d == 1,
        clip=None if case.clip is None else float(np.float32(case.clip)),
        input_forget=case.input_forget,
        linear_before_reset=case.linear_before_reset,
    )


def expected(case: RnnCase, inputs=None, weights=None) -> dict[str, np.ndarray]:
    """Output name -> float64 array: reference.cell for each direction, put together as the ONNX text says.

    inputs, weights : as make_inputs and make_weights give them, which are taken where they are None.
    """
    inputs, weights = inputs or make_inputs(case), weights or make_weights(case)
    swap = (lambda a: a.swapaxes(0, 1)) if case.layout else (lambda a: a)
    GH, parts = case.G * case.H, []
    for d in range(case.D):
        B = weights["B"][d].astype(np.float64) if case.bias else np.zeros(2 * GH)
        parts.append(
            reference.cell(
                spec_of(case, d),
                swap(inputs["X"]),
                weights["W"][d],
                weights["R"][d],
                B[:GH],
                B[GH:],
                weights["P"][d] if case.peephole else None,
                swap(inputs["initial_h"])[d] if case.h0 else None,
                swap(inputs["initial_c"])[d] if case.c0 else None,
                inputs.get("sequence_lens"),
            )
        )
    y, h_n, c_n = (np.stack(p) for p in zip(*parts, strict=True))  # [D, T, batch, H], [D, batch, H] twice
    answers = {
        "Y": y.transpose(2, 1, 0, 3) if case.layout else y.transpose(1, 0, 2, 3),
        "Y_h": swap(h_n),
        "Y_c": swap(c_n),
    }
    return {name: answers[name] for name in case.outputs}


# ---- the ONNX model --------------------------------------------------------------------------------------------------


def make_model(case: RnnCase):
    """A valid onnx.ModelProto: weights are initializers, X, sequence_lens, initial_h and initial_c are inputs."""
    from onnx import TensorProto, helper, numpy_helper

    weights, inputs = make_weights(case), make_inputs(case)
    there = {"X", *weights, *inputs}
    names = [n if n in there else "" for n in ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")]
    outputs = [n if n in case.outputs else "" for n in ("Y", "Y_h", "Y_c")]
    while not names[-1]:
        names.pop()
    while not outputs[-1]:
        outputs.pop()
    T, batch = (case.T, case.batch) if case.frozen else ("time", "batch")

    def dims(kind):  # of an input or output, in the layout's order
        first, second = (batch, T) if case.layout else (T, batch)
        lead = [batch, case.D] if case.layout else [case.D, batch]
        tail = [second, case.D, case.H] if case.layout else [case.D, second, case.H]
        return {"X": [first, second, case.I], "Y": [first, *tail], "sequence_lens": [batch]}.get(kind, [*lead, case.H])

    def info(name):
        dtype = TensorProto.INT32 if name == "sequence_lens" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, dtype, dims(name))

    node = helper.make_node(case.kind.upper(), names, outputs, name=f"the_{case.kind}", **_attributes(case))
    graph = helper.make_graph(
        [node],
        case.id,
        [info(name) for name in inputs],
        [info(name) for name in case.outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)


def _attributes(case: RnnCase) -> dict:
    attributes = {"hidden_size": case.H, "direction": case.direction}
    for name in ("layout", "input_forget", "linear_before_reset"):
        if getattr(case, name):
            attributes[name] = int(getattr(case, name))
    if case.clip is not None:
        attributes["clip"] = case.clip
    if case.activations:
        attributes["activations"] = [name for name, _, _ in case.activations]
        for name, values in zip(("activation_alpha", "activation_beta"), _value_lists(case), strict=True):
            attributes |= {name: values} if values else {}
    return attributes


# ---- the graph -------------------------------------------------------------------------------------------------------


def graph_of(case: RnnCase) -> Graph:
    """The case as a Graph with the inputs and outputs of its ONNX model; batch and time are symbols."""
    b, weights = GraphBuilder(case.id), make_weights(case)
    inputs = {}
    for name in make_inputs(case):
        if name == "X":
            lead = (BATCH, TIME) if case.layout else (TIME, BATCH)
            inputs[name] = b.input(name, "float32", *lead, case.I)
        elif name == "sequence_lens":
            inputs[name] = b.add("cast", b.input(name, "int32", BATCH), name="lengths", to="int64")
        else:
            lead = (BATCH, case.D) if case.layout else (case.D, BATCH)
            inputs[name] = b.input(name, "float32", *lead, case.H)
    x = b.add("transpose", inputs["X"], perm=(1, 0, 2)) if case.layout else inputs["X"]
    parts = {"Y": [], "Y_h": [], "Y_c": []}
    axis = 1 if case.layout else 0  # the axis of D in initial_h, initial_c, Y_h, Y_c

    def state(name, d):
        if name not in inputs:
            return None
        one = b.add("slice", inputs[name], axis=axis, start=d, stop=d + 1, step=1)
        return b.add("reshape", one, dims=(BATCH, case.H))

    for d in range(case.D):
        named = {key: b.constant(f"{key}{d}", array[d]) for key, array in weights.items() if key != "B"}
        if case.bias:
            for key, half in zip(("Wb", "Rb"), np.split(weights["B"][d], 2), strict=True):
                named[key] = b.constant(f"{key}{d}", half)
        optional = [named.get(key) for key in ("Wb", "Rb", "P")]
        states = [state("initial_h", d), state("initial_c", d)]
        outs = tuple(f"{key}_{d}" if key in case.outputs else None for key in parts)
        args = (x, named["W"], named["R"], *optional, *states, inputs.get("sequence_lens"))
        b.add("cell", *args, outputs=outs, name=f"cell_{d}", spec=spec_of(case, d))
        for key, out in zip(parts, outs, strict=True):
            if out is not None:
                dims = (
                    (TIME, 1, BATCH, case.H) if key == "Y" else ((BATCH, 1) if case.layout else (1, BATCH)) + (case.H,)
                )
                parts[key].append(b.add("reshape", out, dims=dims))
    for key in case.outputs:
        both = b.add("concat", *parts[key], axis=1 if key == "Y" else axis)
        perm = (2, 0, 1, 3) if key == "Y" and case.layout else None
        last = b.add("transpose", both, perm=perm) if perm else both
        b.add("unary", last, name=key, fn="affine", alpha=1.0, beta=0.0)
    return b.done(*case.outputs)


# ---- what others can compute -----------------------------------------------------------------------------------------


def ort_supports(case: RnnCase) -> str | None:
    """None where onnxruntime's CPU provider computes the case as the ONNX text says, else why not."""
    if case.layout == 1:
        return "onnxruntime refuses layout=1"
    if case.kind == "rnn" and any(name not in ONNX_ACTIVATIONS for name, _, _ in case.activations):
        return "onnxruntime's RNN refuses activations that are not spelt as in the ONNX text"
    shown = (case.h0 and "Y_h" in case.outputs) or (case.c0 and "Y_c" in case.outputs)
    if case.lengths in ("zeros", "all_zero") and shown:
        return "onnxruntime gives 0, not the initial state, as the last state of a row that has no steps"
    return None


def ort_twin(case: RnnCase) -> RnnCase:
    """The same arithmetic as onnxruntime accepts it: layout 0 and the ONNX text's spellings."""
    return replace(case, layout=0, activations=tuple((_SPELT[n.lower()], a, b) for n, a, b in case.activations))


def ort_run(case: RnnCase, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """onnxruntime's answers (float32, one thread, the case's own axis order), computed on the twin of the case.

    Rows that have no steps hold the initial state in Y_h and Y_c, as in the reference, not onnxruntime's 0.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it speaks of refusals on stderr; they are raised too
    model = make_model(ort_twin(case)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    swapped = {"X", "initial_h", "initial_c"} if case.layout else set()
    feeds = {n: np.ascontiguousarray(a.swapaxes(0, 1)) if n in swapped else a for n, a in inputs.items()}
    answers = dict(zip(case.outputs, session.run(list(case.outputs), feeds), strict=True))
    for name, initial in (("Y_h", "initial_h"), ("Y_c", "initial_c")):
        if name in answers and initial in feeds and "sequence_lens" in feeds:
            answers[name] = np.where((feeds["sequence_lens"] == 0)[:, None], feeds[initial], answers[name])
    if case.layout:
        perms = {"Y": (2, 0, 1, 3), "Y_h": (1, 0, 2), "Y_c": (1, 0, 2)}
        answers = {name: a.transpose(perms[name]) for name, a in answers.items()}
    return answers


CASES: list[RnnCase] = [case for kind in GATES for case in _drawn(kind)] + _written()
BY_ID = {case.id: case for case in CASES}
