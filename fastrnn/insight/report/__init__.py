"""Reports: one HTML page each, with everything in it; and the drawing of a graph.

    page.py       the page: head, tiles, sections, tables; written atomically
    figures.py    figures as SVG text, through matplotlib
    costs.py      the page of a `Profile`
    trust.py      the page of an `Analysis`
    drawing.py    a graph as dot text or a picture, through graphviz
    names.py      long names of nodes, shortened

A page loads no external script, font or picture. matplotlib and graphviz are imported on use;
`pip install 'fastrnn[report]'` installs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import FastRNNError
from ...machine.files import check_place
from ...tables import size
from ...typing import StrPath
from .names import common_path, shortened

if TYPE_CHECKING:
    from ...graph import Graph
    from ..analysis import Analysis
    from ..profiling import Profile


def require(path: StrPath | None = None) -> None:
    """Raise FastRNNError now if a page could not be drawn later, OSError if it could not be written to path."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise FastRNNError("reports need matplotlib: pip install 'fastrnn[report]'") from None
    if path is not None:
        check_place(path)


def write_profile(profile: Profile, path: StrPath, name: str | None = None) -> None:
    """Write the page of a profile; name: the model's, for its heading.

    Raises FastRNNError without matplotlib, OSError if it can't be written.
    """
    require()
    from . import costs, page

    page.write(costs.page_of(profile, name), path)


def write_analysis(analysis: Analysis, path: StrPath, name: str | None = None) -> None:
    """Write the page of an analysis. Raises as `write_profile`."""
    require()
    from . import page, trust

    page.write(trust.page_of(analysis, name), path)


def draw(graph: Graph, path: StrPath) -> None:
    """Draw a graph: .dot is text, .svg a picture that the program `dot` of Graphviz makes.

    Raises FastRNNError for another suffix, and without graphviz (the package, or for a picture the program).
    """
    from . import drawing

    drawing.write(graph, path)


__all__ = ["common_path", "draw", "require", "shortened", "size", "write_analysis", "write_profile"]
