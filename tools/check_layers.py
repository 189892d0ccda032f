"""Check that imports inside the package point down only.

    python tools/check_layers.py [package folder]            # complain of each import that points the wrong way
    python tools/check_layers.py --arrows [package folder]   # print the packages and the arrows between them

`ARROWS` lists the packages, lowest first, and which others each imports. `--arrows` reads the same from the code; the
picture in HACKING.md is its output. Importers of different formats never import each other. The commands use only the
public package. Foreign libraries are imported only where `FOREIGN` allows it. Imports inside functions count too: they
change when a module is loaded, not the direction of the arrow. Imports under `if TYPE_CHECKING` don't count: they never
run.
"""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# Package -> the lower packages it imports. A missing package is an error: decide where it belongs.
ARROWS = {
    "errors": "",
    "records": "",
    "typing": "",
    "tables": "",
    "machine": "errors records",
    "graph": "errors records machine",
    "passes": "errors records machine graph",
    "importers": "errors records machine graph passes",
    "streaming": "errors records machine graph",
    "ops": "machine",
    "compile": "errors records machine graph passes streaming ops",
    "runtime": "errors records machine graph passes streaming ops compile",
    "serving": "errors records typing tables machine streaming runtime",
    "model": "errors records typing tables machine graph passes importers streaming runtime serving",
    "insight": "errors records typing tables machine graph passes importers compile runtime serving model",
    "fastrnn": "errors records typing machine graph importers runtime serving model",
    "scoring": "errors records machine streaming runtime model fastrnn",
    "ray": "errors records machine runtime serving model scoring",
    "spark": "errors scoring",
    "bench": "errors records machine graph model fastrnn",
    "cli": "fastrnn bench",
}
# Modules at the top of fastrnn/ -> the entry of `ARROWS` that they belong to.
TOP = {
    "model": "model",
    "infos": "model",
    "description": "model",
    "formats": "model",
    "loading": "model",
    "onnx_files": "model",
    "selected": "model",
    "__init__": "fastrnn",
    "aio": "fastrnn",
    "dims": "fastrnn",
    "metrics": "fastrnn",
    "onnx_backend": "fastrnn",
    "onnxruntime": "fastrnn",
    "threadpools": "fastrnn",
    "spark": "spark",
    "__main__": "cli",
}
SUFFIXES = ("*.py", "*.pyx", "*.pxd", "*.pxi")
# Foreign library -> where it may be imported. numpy and the standard library may be imported anywhere.
FOREIGN = {
    "fsspec": ("ray.store", "serving.store"),
    "google": ("serving.server",),
    "graphviz": ("insight.report",),
    "grpc": ("ray.deployment", "serving.server"),
    "h5py": ("importers",),
    "httptools": ("serving.server",),
    "matplotlib": ("insight.report",),
    "opentelemetry": ("metrics", "serving.server"),
    "prometheus_client": ("metrics", "serving.server"),
    "keras": ("insight.verification.engine_keras",),
    "onnx": ("bench", "importers", "insight.verification.beside", "onnx_backend", "onnxruntime.described"),
    "onnxruntime": ("bench", "insight.verification"),
    "onnxscript": ("importers",),
    "openvino": ("bench",),
    "pyarrow": ("ray", "scoring"),
    "pyspark": ("spark",),
    "ray": ("ray",),
    "redis": ("serving.store",),
    "rich": ("bench", "cli"),
    "shtab": ("cli",),
    "safetensors": ("graph.artifact", "importers", "insight.verification.engine_torch", "runtime.snapshots"),
    "starlette": ("serving.server",),
    "soundfile": ("insight.analysis",),
    "tensorflow": (),
    "threadpoolctl": ("machine.threadpools",),
    "uvicorn": ("serving.server",),
    "uvloop": ("cli.serve",),
    "websockets": ("serving.server.direct",),
    "torch": ("bench", "importers", "insight.verification.engine_torch"),
}
ANYWHERE = {"numpy", "cython", "cpython", "libc", "openmp"}
SHARED = "shared"  # the folder of importers/ that all others may use, because it is independent of formats
CIMPORT = re.compile(
    r"^\s*(?:from\s+(?P<module>[.\w]+)\s+c?import\s+(?P<names>[^#\n]+)|c?import\s+(?P<plain>[\w., ]+))"
)


def imports_of(path: Path) -> list[tuple[int, str, int]]:
    """(line, dotted name, leading dots) of each import in a .py, .pyx or .pxd file; `from .a import b` gives "a.b"."""
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
    for name in names:
        yield line, f"{module}.{name}" if module else name, dots


def check(package: Path) -> list[str]:
    """One line per violation in the package folder, sorted by file; empty if there are none."""
    problems = []
    for path, parts in _modules(package):
        mine = _entry(parts)
        if mine is None:
            problems.append(f"{path}: {parts[0]} is in no package: add it to ARROWS or TOP in tools/check_layers.py")
            continue
        for line, name, dots in imports_of(path):
            complaint = _complaint(package, mine, parts, name, dots)
            if complaint and f"{path}:{line}: {complaint}" not in problems:
                problems.append(f"{path}:{line}: {complaint}")
    return problems + [f"modules import each other in a circle: {' -> '.join(circle)}" for circle in circles(package)]


def circles(package: Path) -> list[list[str]]:
    """A cycle of imports among the modules of the package folder, if there is one: its names, the first one twice."""
    modules = {parts[:-1] if parts[-1] == "__init__" else parts for _, parts in _modules(package)}
    graph: dict[tuple, set] = {}
    for path, parts in _modules(package):
        mine = graph.setdefault(parts[:-1] if parts[-1] == "__init__" else parts, set())
        for _, name, dots in imports_of(path):
            target = _target(package, parts, name, dots) or ()
            mine |= {next((t for t in (target, target[:-1]) if t and t in modules), parts)}
    for name, below in graph.items():
        below.discard(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [[".".join(name) for name in error.args[1]]]
    return []


def arrows(package: Path) -> dict[str, list[str]]:
    """Each entry of `ARROWS` in the package folder -> the entries that its code imports, both lowest first."""
    found: dict[str, set[str]] = {}
    for path, parts in _modules(package):
        mine = _entry(parts)
        if mine is None:
            continue
        found.setdefault(mine, set())
        for _, name, dots in imports_of(path):
            target = _target(package, parts, name, dots)
            if target is not None:
                found[mine].add(_entry(target) or "fastrnn")
    order = list(ARROWS)
    return {name: sorted(found[name] - {name}, key=order.index) for name in sorted(found, key=order.index)}


def show(package: Path) -> str:
    """The arrows as text: one line per package, lowest first."""
    found = arrows(package)
    width = max(map(len, found))
    return "".join(
        f"{name:<{width}}  -> {' '.join(below)}\n" if below else f"{name}\n" for name, below in found.items()
    )


def _modules(package: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Each file of the package with the parts of its dotted name below the package."""
    paths = sorted(p for suffix in SUFFIXES for p in package.rglob(suffix))
    return [(path, path.relative_to(package).with_suffix("").parts) for path in paths]


def _entry(parts: tuple[str, ...]) -> str | None:
    """The entry of `ARROWS` that a module belongs to; None if there is none."""
    head = parts[0] if parts else "__init__"
    return TOP.get(head, head if head in ARROWS and head != "fastrnn" else None)


def _target(package: Path, parts: tuple[str, ...], name: str, dots: int) -> tuple[str, ...] | None:
    """The target of an import, as parts below the package; None if it is foreign."""
    names = tuple(name.split("."))
    if dots:
        return (*parts[: len(parts) - dots], *names)
    return names[1:] if names[0] == package.name else None


def _complaint(package: Path, mine: str, parts: tuple[str, ...], name: str, dots: int) -> str | None:
    target = _target(package, parts, name, dots)
    if target is None:
        return _foreign(parts, name.split(".")[0])
    if mine == "cli":
        return _cli(target, name)
    head = _entry(target) or "fastrnn"
    if head != mine and head not in ARROWS[mine].split():
        allowed = ", ".join(ARROWS[mine].split()) or "nothing"
        return f"{mine} imports {head}; it may import: {allowed}"
    if mine == head == "importers" and len(target) > 1:
        source, other = parts[1], target[1]
        if source not in (other, "__init__") and other != SHARED and _is_module(package, other):
            return f"importer {source} imports importer {other}"
    return None


def _cli(target: tuple[str, ...], name: str) -> str | None:
    entry = _entry(target)
    if entry in ("bench", "cli") or entry is None or target[:1] in ((), ("__init__",)):
        return None
    return f"cli uses the public package alone: write fastrnn.{target[-1]}, not {name}"


def _foreign(parts: tuple[str, ...], library: str) -> str | None:
    mine = ".".join(parts)
    if library in FOREIGN:
        places = FOREIGN[library]
        if any(mine == place or mine.startswith(place + ".") for place in places):
            return None
        return f"{mine} imports {library}; allowed in: {', '.join(places) or 'no module'}"
    if library in ANYWHERE or library in sys.stdlib_module_names:
        return None
    return f"{mine} imports {library}, which has no entry in FOREIGN in tools/check_layers.py"


def _is_module(package: Path, importer: str) -> bool:
    place = package / "importers" / importer
    return place.is_dir() or place.with_suffix(".py").exists()


def main(argv: list[str]) -> int:
    options, places = {a for a in argv[1:] if a.startswith("--")}, [a for a in argv[1:] if not a.startswith("--")]
    if options - {"--arrows"}:
        print(__doc__)
        return 2
    package = Path(places[0]) if places else Path(__file__).resolve().parent.parent / "fastrnn"
    if options:
        print(show(package), end="")
        return 0
    problems = check(package)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} imports point the wrong way" if problems else "all imports point down")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
