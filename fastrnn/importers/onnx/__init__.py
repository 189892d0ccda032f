"""ONNX -> Graph.

The parts of this package, in the order in which they process a file:

    reading/    bytes -> tensors (files), node records (nodes), constants (fold), kinds of values (values),
                the table of operators (registry), and NodeReader (reader), which detects what was not read
    reroll/     turns recurrences that an exporter wrote out into cells: unrolled copies (unroll), loops over a cell
                (chains), Loop over a cell (loop_cells), any Loop or Scan (loops, lift); recognise knows the equations.
                Copies of any other body become a cycle: values get numbers (numbering), copies are found (copies) and
                proved (followed), and the walk writes the cycle (repeat). Recurrences in parallel form (parallel,
                after cuts of sums are made before them: cuts)
    sizes/      sizes as symbols with examples (symbols), their roles and names (settle), frozen numbers reinterpreted
                (thaw, slices, blocks, arithmetic, positions), signs that a frozen size is intended (evidence), the
                verdict (judge), and a batch of one that can be read in several ways (guesses)
    ops/        the operators, one file per family
    selectors.py  inputs that select a branch of an If
    precheck.py   what can be refused before any value is known
    functions.py  operators that ONNX defines by others
    inputs.py     the inputs of a file, with a symbol per axis
    outputs.py    values under the names of the file's outputs
    walk.py       one walk over the nodes; it writes to build.py
    states/       states that the caller passes from call to call
    steps.py      what one step of a stream is, if the caller passes states

Imports point one way: reading imports no other part, sizes and reroll import reading, ops imports all three.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from ...errors import FastRNNError, FastRNNWarning, ModelFormatError, ShapeError, StateError, UnsupportedError
from ...graph import Graph, validate
from ...graph.casts import check_float32
from ...passes.gathered_rows import gathers_of_rows
from ..shared.ledger import Finding
from . import states as state_pairs
from .precheck import precheck
from .reading import files
from .reading.nodes import collect, known_names, reads
from .reroll import chains, copies, cuts, parallel, unroll
from .reroll.repeat import Refused
from .selectors import Selector, UndecidedError
from .sizes import given, guesses
from .sizes.evidence import Policy
from .sizes.judge import verdicts
from .sizes.settle import settle
from .sizes.symbols import Restart, SymbolTable
from .steps import one_step
from .walk import File, read_constants, walk

__all__ = ["Selector", "UndecidedError", "import_onnx"]


def import_onnx(
    source: str | Path | bytes | onnx.ModelProto,
    *,
    bind: Mapping | None = None,
    states: Mapping | None = None,
    sizes: Mapping | None = None,
    float64_as_float32: bool = False,
    streams: Callable[[Graph], bool] | None = None,
    policy: Policy | None = None,
) -> Graph:
    """Read an ONNX model.

    Parameters
    ----------
    source : path, bytes of a file, ModelProto, or `files.Read`. Only a path can have external data, inside its folder.
    bind : input name -> fixed value; the input is then removed from the graph's inputs.
    states : input name -> output name of states that the caller passes from call to call. None: found by `states/`.
    sizes : name -> number for sizes that the file leaves open, applied before the import. A name is the file's own,
        such as "sequence_length", that of an axis, such as "x[2]", or the graph's, such as "time".
    float64_as_float32 : compute a float64 model in float32; without it such a model is refused.
    streams : function that says whether a graph can be streamed. If given, a call of a file whose states the caller
        passes may be one step, whatever its length: see `steps.py`.
    policy : which frozen sizes may be freed. None: those without evidence in the file against it.

    Returns
    -------
    Graph, validated. Batch and time are free if the file allows it. If the example's sizes are written into the file,
    they are thawed, unless there is evidence that a size is intended. `notes` says what was thawed; `held` and `notes`
    say what stayed frozen and why. float16 models compute in float32.

    Raises
    ------
    ModelFormatError : the file is damaged, hostile or contradicts itself.
    UnsupportedError : lists everything in the file that is not supported; an `UndecidedError` if a branch depends on
    the values of inputs, so that `bind` may help.
    ShapeError : `bind` does not fit. StateError : `states` does not fit, or states are ambiguous.
    """
    if bind is not None and not isinstance(bind, Mapping):
        raise ShapeError(f"bind must map inputs to values, such as {{'sr': 16000}}, got {bind!r:.60}")
    if states is not None and not isinstance(states, Mapping):
        raise StateError(f"states must map inputs to outputs, such as {{'h0': 'hn'}}, got {states!r:.60}")
    if sizes is not None and not isinstance(sizes, Mapping):
        raise ShapeError(f"sizes must map names to numbers, such as {{'time': 512}}, got {sizes!r:.60}")
    read, bind = files.read_model(source), dict(bind or {})
    try:
        file = _prepare(*read, bind, float64_as_float32)
        graph, finish = _sized(file, states, sizes or {}, policy or Policy())
    except Finding as finding:
        raise UnsupportedError(str(finding), read.where) from None
    except (ModelFormatError, ShapeError) as error:
        head = "" if str(error).startswith(read.where) else f"{read.where}: "
        tail = ("" if "bind" in str(error) else _bound(bind)) + (f" (with sizes: {sizes!r:.200})" if sizes else "")
        if not head and not tail:
            raise
        raise type(error)(f"{head}{error}{tail}") from error
    for text in file.overruled:
        warnings.warn(f"{read.where}: {text}", FastRNNWarning, stacklevel=4)
    validate(graph)
    graph = finish(one_step(file.model, gathers_of_rows(graph), states, streams))
    return graph.replace(metadata={p.key: p.value for p in read.model.metadata_props})


def _sized(file: File, states: Mapping | None, sizes: Mapping, policy: Policy) -> tuple[Graph, Callable]:
    """The graph of a file at the caller's sizes, and what applies those that get their names later."""
    axes, outputs = given.OpenAxes.of(file.model.graph), [v.name for v in file.model.graph.output]

    def threads(graph: Graph) -> bool:
        return state_pairs.threads(graph, states)

    def build(fixed: given.Axes) -> Graph:
        file.folded.clear()  # constants may be computed from these numbers

        def read(file: File) -> Graph:
            return guesses.thawed(lambda table: _settled(file, table, axes), threads, policy, fixed)

        graph, why = read(file), []
        try:
            cut = _with_nodes(
                file, cuts.before_sums(file.written, file.constants, known_names(file.model.graph), outputs, graph)
            )
            other = _step_by_step(file, graph, why) if cut is None else _step_by_step(cut, read(cut), why)
        except (FastRNNError, Finding):
            return graph
        if why:
            graph = graph.replace(held=tuple((name, axis, f"{why[0]}; {text}") for name, axis, text in graph.held))
        return graph if other is None else parallel.instead(graph, lambda: read(other))

    graph, left = given.sized(axes, dict(sizes), build, len(file.nodes))
    return graph, lambda graph: given.finish(axes, left, graph) if left else graph


def _step_by_step(file: File, graph: Graph, misfits: list[str]) -> File | None:
    """The file with the recurrences of its graph that it writes in parallel replaced; None if there are none."""
    outputs = [v.name for v in file.model.graph.output]
    return _with_nodes(file, parallel.roll_up(file.written, known_names(file.model.graph), outputs, graph, misfits))


def _with_nodes(file: File, nodes: list) -> File | None:
    """The file with other nodes; None if they are its own."""
    if nodes is file.written:
        return None
    other = replace(file, written=nodes, folded={}, apart=set(), refused=set(), branches={})
    _roll_up(other)
    return other


def _bound(bind: dict) -> str:
    """What was bound, for the message of an error that the binding may have caused."""
    shown = [
        f"{name!r} is " + (f"{v.dtype}{list(v.shape)}" if isinstance(v, np.ndarray) else f"{v!r:.60}")
        for name, v in bind.items()
    ]
    return f" (with bind: {', '.join(shown)})" if bind else ""


def _prepare(model, where: str, folder, bind: dict, float64_as_float32: bool) -> File:
    versions = files.opsets(model, where)
    if model.functions:
        model = _inline(model, where)
    nodes, outputs = collect(model.graph), [v.name for v in model.graph.output]
    unknown = sorted(set(map(str, bind)) - {v.name for v in model.graph.input})
    if unknown:
        names = ", ".join(v.name for v in model.graph.input)
        raise ShapeError(f"bind: there is no input {unknown[0]!r}; the inputs are {names}")
    wanted = {name for node in nodes for name in reads(node)} | set(outputs)
    constants = read_constants(model.graph, folder, wanted)
    for name, array in constants.items() if float64_as_float32 else ():
        if array.dtype == np.float64:
            check_float32(array, f"tensor {name!r}", ModelFormatError)
    nodes = chains.roll_up(nodes, constants, known_names(model.graph), outputs, versions[""])
    nodes = unroll.roll_up(nodes, constants, known_names(model.graph), outputs, versions[""])
    file = File(where, model, versions, nodes, constants, bind, float64_as_float32, folder)
    file.written = nodes
    _roll_up(file)
    return file


def _roll_up(file: File) -> None:
    """Replace copies of one body, except those that a walk refused."""
    outputs = [v.name for v in file.model.graph.output]
    known = known_names(file.model.graph)
    file.nodes = copies.roll_up(file.written, file.constants, known, outputs, file.opsets[""], file.apart)


def _inline(model, where: str):
    """The model with calls of its functions replaced by their bodies."""
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # a C++ error without its own type
        raise ModelFormatError(f"{where}: its functions can't be inlined ({error})") from None


def _settled(file: File, table: SymbolTable, axes: given.OpenAxes) -> Graph:
    """Walk until the symbols no longer change. A walk collects what it learns, and the next one starts from that."""
    axes.tables.append(table)
    first, hints = precheck(file, file.nodes, [*file.constants, *file.bind]), table.hints
    while True:
        if table.hints != hints and file.apart:  # copies may be as many as a length that is known now
            file.apart.clear()
            _roll_up(file)
            first = precheck(file, file.nodes, [*file.constants, *file.bind])
        problems, hints = list(first), table.hints
        try:
            finished, ctx = walk(file, table, problems)
        except Restart:
            continue
        except Refused as refused:
            if not table.dirty:
                file.apart.add(refused.label)
                _roll_up(file)
                first = precheck(file, file.nodes, [*file.constants, *file.bind])
            continue
        except (FastRNNError, Finding):
            if not table.dirty:
                raise
        if table.dirty:
            continue
        if problems:
            raise file.undecided.error(problems, file.where, file.model.graph.input)
        if not settle(table, ctx, verdicts):
            notes = [*table.found.values(), *table.notes.values(), *table.surplus]
            if ctx.half:
                notes.append("the file's float16 computes in float32, and float32 goes in and out")
            file.overruled = list(table.ledger.overruled)
            notes += table.ledger.overruled
            return finished().replace(notes=tuple(notes), held=table.held(), integers=dict(table.integers))
