"""The benchmark: every engine in a process of its own, all engines of a case in turns, the limits beside.

    cases.py      what is measured: grids of cases, and the least work of each
    entrants.py   who takes part: engines, in which precision, with which instruction set and threads
    models.py     the files and inputs that a case's engines get, and the answer they must give; cells.py and
                  quantized.py write the files, published.py knows those that exist
    worker.py     the program that runs one engine; engines/ has a file for each
    runner.py     starts workers, lets them take turns, collects the record
    answers.py    compares their answers with the true ones
    figures.py    arithmetic on the record: ratios, means, shares of the roofline, verdicts
    same_bits.py  compares the bits of every way to compute a case
    targets.py    the project's targets beside what was reached; precision_targets.py has those of reduced precision
    costs.py      what an import, a load and a stream cost
    machine.py    what it ran on
    comparison.py two records side by side

A record is plain dicts, lists and numbers; `save` and `load` keep it as JSON.
"""

from .cases import DEFAULT_GRIDS, GRIDS, GROUPS
from .comparison import compare
from .entrants import ENGINES, PEERS
from .errors import BenchError
from .figures import geometric_mean
from .records import load, merge, save
from .runner import Options, run

__all__ = [
    "DEFAULT_GRIDS",
    "ENGINES",
    "GRIDS",
    "GROUPS",
    "PEERS",
    "BenchError",
    "Options",
    "compare",
    "geometric_mean",
    "load",
    "merge",
    "run",
    "save",
]
