"""Check that imports inside the package point down only. Run: python tools/check_layers.py [package folder]

Every module has a level in `LEVELS` (the table of the layout in HACKING.md). A module imports only from levels below
its own or from its own level; importers of different formats never import each other; the commands use the public
package alone; foreign libraries are imported where `FOREIGN` says. Imports inside functions count too: they change
when a module is loaded, not which way the arrow points. Those under `if TYPE_CHECKING` don't: they never run.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

# Module, or package for all modules in it -> level. A module that is not here is an error: decide where it belongs.
LEVELS = {
    "errors": 0,
    "dims": 0,
    "files": 0,
    "forks": 0,
    "_isa": 1,
    "_kernel_calls": 1,
    "_roofline": 1,
    "casts": 1,
    "cells": 1,
    "cpu": 1,
    "arguments": 1,
    "graph": 1,
    "loops": 1,
    "shapes": 1,
    "artifact": 2,
    "importers": 2,
    "passes": 2,
    "reference": 2,
    "bounds": 3,
    "follow": 3,
    "reference_windows": 2,
    "lowering": 3,
    "lowering_attention": 3,
    "lowering_elementwise": 3,
    "lowering_cells": 3,
    "lowering_fields": 3,
    "lowering_reductions": 3,
    "lowering_loops": 3,
    "lowering_windows": 3,
    "plan": 3,
    "stream_graph": 3,
    "streaming": 3,
    "tensors": 3,
    "threadpools": 2,
    "timetable": 3,
    "_frame": 4,
    "_recurrence": 4,
    "_ops": 4,
    "_timing": 4,
    "_executor": 4,
    "snapshots": 4,
    "states": 4,
    "_pool": 5,
    "pool": 5,
    "pool_paced": 5,
    "stream": 5,
    "stream_paced": 5,
    "aio": 6,
    "model": 6,
    "loading": 7,
    "limits": 7,
    "cost_model": 7,
    "profiling": 8,
    "analysis": 8,
    "report": 8,
    "inference_session": 8,
    "onnx_backend": 8,
    "verification": 8,
    "verification_inputs": 3,
    "verification_lengths": 8,
    "verification_keras": 8,
    "verification_torch": 8,
    "__init__": 9,
    "bench": 10,
    "cli": 11,
    "__main__": 12,
}
# Foreign library -> where it may be imported at all. numpy and the standard library may be anywhere.
FOREIGN = {
    "graphviz": ("report",),
    "h5py": ("importers",),
    "matplotlib": ("report",),
    "keras": ("verification_keras",),
    "onnx": ("bench", "importers", "onnx_backend"),
    "onnxruntime": ("bench", "verification"),
    "onnxscript": ("importers",),
    "openvino": ("bench",),
    "rich": ("bench", "cli"),
    "safetensors": ("verification_torch", "artifact", "importers", "snapshots"),
    "soundfile": ("analysis",),
    "tensorflow": (),
    "threadpoolctl": ("threadpools",),
    "torch": ("bench", "importers", "verification_torch"),
}
ANYWHERE = {"numpy", "cython", "cpython", "libc", "openmp"}
# Modules of importers/ that all the others may use, because they know no format.
SHARED_IMPORTERS: set[str] = {"builder", "h5", "stacks", "weights"}
CIMPORT = re.compile(
    r"^\s*(?:from\s+(?P<module>[.\w]+)\s+c?import\s+(?P<names>[^#\n]+)|c?import\s+(?P<plain>[\w., ]+))"
)


def imports_of(path: Path) -> list[tuple[int, str, int]]:
    """(line, dotted name, leading dots) of each import in a .py, .pyx or .pxd file; `from . import a` gives "a"."""
    if path.suffix == ".py":
        return list(_python_imports(ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return list(_cython_imports(path.read_text(encoding="utf-8")))


def _python_imports(tree):
    annotations = {id(n) for block in ast.walk(tree) if _for_annotations(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node.lineno, node.module or "", node.level, [alias.name for alias in node.names])


def _for_annotations(node) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _cython_imports(text):
    for number, line in enumerate(text.splitlines(), 1):
        match = CIMPORT.match(line)
        if match is None:
            continue
        if match["module"]:
            module = match["module"].lstrip(".")
            names = [name.split(" as ")[0].strip() for name in match["names"].strip(" ()").split(",")]
            yield from _from(number, module, len(match["module"]) - len(module), names)
        else:
            for name in match["plain"].split(","):
                yield number, name.split(" as ")[0].strip(), 0


def _from(line, module, dots, names):
    if module and module != "fastrnn":
        yield line, module, dots
    else:  # from . import a, b; from fastrnn import a, b
        for name in names:
            yield line, f"{module}.{name}" if module else name, dots


def check(package: Path) -> list[str]:
    """One line a violation in the package folder, sorted by file; empty when all is well."""
    problems = []
    for path in sorted(p for s in ("*.py", "*.pyx", "*.pxd") for p in package.rglob(s)):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in LEVELS:
            problems.append(f"{path}: module {parts[0]} has no level: add it to LEVELS in tools/check_layers.py")
            continue
        for line, name, dots in imports_of(path):
            complaint = _complaint(package, parts, name, dots)
            if complaint:
                problems.append(f"{path}:{line}: {complaint}")
    return problems


def _complaint(package: Path, parts: tuple[str, ...], name: str, dots: int) -> str | None:
    mine = parts[0]
    names = tuple(name.split("."))
    if dots:
        target = (*parts[: len(parts) - dots], *names)
    elif names[0] == package.name:
        target = names[1:]
    else:
        return _foreign(mine, names[0])
    if mine == "cli":
        return _cli(target, name)
    head = target[0] if target and target[0] in LEVELS else "__init__"
    if LEVELS[head] > LEVELS[mine]:
        return f"{mine} (level {LEVELS[mine]}) imports {head} (level {LEVELS[head]})"
    if mine == head == "importers" and len(target) > 1:
        source, other = parts[1], target[1]
        if source not in (other, "__init__") and other not in SHARED_IMPORTERS and _is_module(package, other):
            return f"importer {source} imports importer {other}"
    return None


def _cli(target: tuple[str, ...], name: str) -> str | None:
    if target and target[0] in ("bench", "cli"):
        return None
    if target and target[0] in LEVELS and target[0] != "__init__":
        return f"cli uses the public package alone: write fastrnn.{target[-1]}, not {name}"
    return None


def _foreign(mine: str, library: str) -> str | None:
    if library in FOREIGN:
        allowed = ", ".join(FOREIGN[library]) or "no module"
        return None if mine in FOREIGN[library] else f"{mine} imports {library}; allowed in: {allowed}"
    if library in ANYWHERE or library in sys.stdlib_module_names:
        return None
    return f"{mine} imports {library}, which has no entry in FOREIGN in tools/check_layers.py"


def _is_module(package: Path, importer: str) -> bool:
    place = package / "importers" / importer
    return place.is_dir() or place.with_suffix(".py").exists()


def main(argv: list[str]) -> int:
    package = Path(argv[1]) if len(argv) > 1 else Path(__file__).resolve().parent.parent / "fastrnn"
    problems = check(package)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} imports point the wrong way" if problems else "all imports point down")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
