"""Which workers share a call: a team of fastrnn's own, or OpenMP's.

Both take the same chunks of the same loops, so the bits are the same. Our own sleep between calls. OpenMP's poll for 10
ms after each call, and libgomp ends the process if it can't make a thread. So they are used only if asked for. The
numbers are in docs/decisions/0021-openmp-on-request.md.

OpenMP is loaded when somebody asks for it. It is not used where its library is missing, nor in a process that was
forked without starting another program: libgomp hangs there if the parent has used it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from ..errors import FastRNNError
from ..records import dataclass
from . import _isa, forks

KINDS = ("auto", "team", "openmp")
FORKED_WITHOUT_EXEC = 0x40  # PF_FORKNOEXEC of Linux
FORKED = "this process was forked without starting a program, and OpenMP does not survive that"

_chosen: str | None = None  # by set_threading
_ready: str | None = None  # what the kernels were told last
_missing = ""  # why OpenMP can't be loaded; empty: it was not tried, or it is there
_lock = forks.Lock()


@dataclass(frozen=True)
class ThreadingInfo:
    """The workers that share calls.

    kind : "auto", "team" or "openmp".
    chosen_by : "set_threading", the environment variable ("FASTRNN_THREADING") or "default".
    steps, runs : the workers of steps, and of whole runs: "team" or "openmp". They are the same.
    note : why OpenMP is not used although it was asked for; else empty.
    """

    kind: str
    chosen_by: str
    steps: str
    runs: str
    note: str


def set_threading(kind: str) -> None:
    """Choose the workers that share calls, for the whole process and from the next call on.

    Parameters
    ----------
    kind : {"auto", "team", "openmp"}
        "team": threads of fastrnn's own, which sleep between calls. "openmp": OpenMP's, which poll for about 10 ms
        after each call, unless the process was started with OMP_WAIT_POLICY=passive. "auto": the team. This overrides
        the environment variable `FASTRNN_THREADING`.

    Raises
    ------
    FastRNNError
        Another kind, or OpenMP is asked for and can't be loaded.

    Notes
    -----
    The answers have the same bits for each kind. A forked child always uses a team of its own.

    OpenMP's library ends the whole process if the system refuses it a thread (a limit of processes or of memory). With
    "openmp", a call that needs more threads than before first tries whether they can be made, and uses the team
    otherwise. The system may still refuse them a moment later, so choose the team where such limits are tight.

    Examples
    --------
    >>> import fastrnn
    >>> fastrnn.set_threading("team")
    >>> fastrnn.cpu_info().threading.runs
    'team'
    >>> fastrnn.set_threading("auto")
    """
    global _chosen
    before, _chosen = _chosen, _known(kind, "set_threading")
    try:
        prepare()
    except FastRNNError:
        _chosen = before
        raise


def prepare() -> None:
    """Tell the kernels which workers to use, and load OpenMP if it is asked for.

    Raises
    ------
    FastRNNError
        `FASTRNN_THREADING` is not a kind, or it is "openmp" and OpenMP can't be loaded.
    """
    global _ready
    kind, chosen_by = _kind(os.environ)
    if kind == _ready:
        return
    with _lock:
        if kind == "openmp":
            _load()
            if _missing not in ("", FORKED):
                raise FastRNNError(f'{chosen_by} asks for "openmp": {_missing}. Use "auto" or "team"')
        _isa.set_threading(kind)
        _ready = kind


def threading_info(environ: Mapping[str, str] | None = None) -> ThreadingInfo:
    """The workers that calls use now. Loads OpenMP if it is asked for, to say whether it is there."""
    kind, chosen_by = _kind(os.environ if environ is None else environ)
    if kind != "openmp":
        return ThreadingInfo(kind, chosen_by, "team", "team", "")
    with _lock:
        _load()
    note = _missing or ("" if _isa.has_openmp() else FORKED)
    used = "team" if note else "openmp"
    return ThreadingInfo(kind, chosen_by, used, used, note)


def _kind(environ: Mapping[str, str]) -> tuple[str, str]:
    if _chosen is not None:
        return _chosen, "set_threading"
    given = environ.get("FASTRNN_THREADING", "").strip()
    return (_known(given, "FASTRNN_THREADING"), "FASTRNN_THREADING") if given else ("auto", "default")


def _known(kind: str, where: str) -> str:
    if kind not in KINDS:
        raise FastRNNError(f"{where}: expected one of {', '.join(map(repr, KINDS))}, got {kind!r:.80}")
    return kind


def _load() -> None:
    global _missing
    if _isa.has_openmp() or _missing:
        return
    if _forked():
        _missing = FORKED
        return
    try:
        import_module("fastrnn.machine._openmp")
    except ImportError as error:
        _missing = f"OpenMP can't be loaded ({error})"


def _forked(stat: str = "/proc/self/stat") -> bool:
    """Whether this process came from a fork without an exec. False if the system does not say."""
    try:
        return bool(int(Path(stat).read_text().rpartition(")")[2].split()[6]) & FORKED_WITHOUT_EXEC)
    except (OSError, ValueError, IndexError):
        return False
