"""Graph -> Graph. Each pass is pure and named. `standard_passes` lists them in the order they run.

A pass takes a valid graph and returns an equivalent one. It adds a line to `notes` if it changed something.
"""

from __future__ import annotations

from ..graph import Graph, validate
from .along_time import cut_runs, join_constants, split_reductions, step_sums
from .attention import fuse_attention, merge_steps
from .conv_pads import fold_cuts, fold_pads
from .conv_scale import fold_scales
from .conv_taps import drop_idle_taps
from .dead import remove_dead_nodes
from .linear import fuse_linear
from .moves import simplify_moves
from .parallel_forms import note_parallel_forms
from .precision import is_reduced, precision_of, set_precision
from .reshaped import undo_reshapes
from .roll_up import roll_up
from .scans import recurrences_of_parallel_forms
from .steps import fold_steps

__all__ = ["precision_of", "run", "set_precision", "standard_passes"]

standard_passes = (
    recurrences_of_parallel_forms,
    note_parallel_forms,
    cut_runs,
    step_sums,
    merge_steps,
    fuse_attention,
    simplify_moves,
    fold_steps,
    undo_reshapes,
    fuse_linear,
    roll_up,
    split_reductions,
    join_constants,
    fold_pads,
    fold_cuts,
    drop_idle_taps,
    fold_scales,
    remove_dead_nodes,
)


def run(graph: Graph) -> Graph:
    """The graph after all standard passes, validated. One in reduced precision is left as it is: it was made last."""
    if is_reduced(graph):
        return validate(graph)
    for standard in standard_passes:
        graph = standard(graph)
    return validate(graph)
