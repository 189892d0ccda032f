"""What a wheel and an sdist must be like, read from the files themselves: nothing is installed or run."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 3_000_000  # decision 0048
NEWEST_GLIBC = (2, 28)
LIBRARIES = re.compile(r"lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux-[\w-]+\.so\.\d")
OPENMP = "libgomp.so.1"  # only _openmp needs it, which the package does without
EXPORTS = re.compile(r"PyInit_|frnn_|__pyx_")
SUFFIXES = {".py", ".pyi", ".pxd", ".so", ".typed"}
NOT_SHIPPED = {".gitignore"}


def readelf(*arguments: str | Path) -> str:
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True).stdout


def wrong_with_symbols(path: Path) -> list[str]:
    """What an extension would need of a machine besides Python and an old glibc, and what it would force on others."""
    wrong, dynamic = [], readelf("-d", path)
    if "RPATH" in dynamic or "RUNPATH" in dynamic:
        wrong.append("names folders of the machine that built it (RUNPATH)")
    for library in re.findall(r"NEEDED.*\[(.+)\]", dynamic):
        if not LIBRARIES.match(library) and (library != OPENMP or not path.name.startswith("_openmp.")):
            wrong.append(f"needs {library}")
    for line in readelf("--dyn-syms", path).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit() or fields[4] == "LOCAL":
            continue
        name, _, version = fields[7].partition("@")
        version = version.lstrip("@")
        if fields[6] != "UND":
            if not EXPORTS.match(name):
                wrong.append(f"exports {name}, which may hide another library's")
        elif version.startswith("GLIBC_"):
            if tuple(map(int, version[6:].split("."))) > NEWEST_GLIBC:
                wrong.append(f"needs {name} of {version}")
        elif version.startswith(("GOMP_", "OMP_")) and path.name.startswith("_openmp."):
            continue
        elif version or not (name.startswith(("Py", "_Py")) or fields[4] == "WEAK"):
            wrong.append(f"needs {name}{version and ' of ' + version}, which is not Python's")
    if "DEBUG" in (sections := readelf("-S", path)).upper() or ".symtab" in sections:
        wrong.append("is not stripped")
    return wrong


def wrong_with_tag(wheel: Path) -> list[str]:
    """The file name must promise a glibc that is old enough."""
    found = [tuple(map(int, pair)) for pair in re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)]
    if found and min(found) <= NEWEST_GLIBC:
        return []
    return [f"its tag is not manylinux_{NEWEST_GLIBC[0]}_{NEWEST_GLIBC[1]} or older"]


def _belongs(path: Path) -> bool:
    """Whether a wheel may have this file."""
    page = path.parent.name == "page" and path.suffix in {".html", ".css", ".js"}  # of the server
    return page or path.suffix in SUFFIXES or path.name.startswith("LICENSE")


def wrong_with_wheel(wheel: Path, suffix: str, folder: Path) -> list[str]:
    """Everything that is wrong with a wheel whose extensions must end in `suffix`; unpacks it into `folder`."""
    wrong = wrong_with_tag(wheel)
    if (size := wheel.stat().st_size) > MOST_BYTES:
        wrong.append(f"has {size:,} bytes, at most {MOST_BYTES:,} are allowed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        names = [name for name in archive.namelist() if not name.endswith("/")]
    ours = [name for name in names if name.startswith("fastrnn/")]
    if odd := sorted({name.split("/")[0] for name in names if name not in ours and ".dist-info/" not in name}):
        wrong.append(f"also installs {', '.join(odd)}")
    if odd := sorted(name for name in ours if not _belongs(Path(name))):
        wrong.append(f"has {', '.join(odd)}")
    extensions = [name for name in ours if name.endswith(".so")]
    if not extensions:
        wrong.append("has no extensions")
    for name in extensions:
        if not name.endswith(suffix):
            wrong.append(f"{name}: is not for this Python, whose extensions end in {suffix}")
        wrong += [f"{name}: {text}" for text in wrong_with_symbols(folder / name)]
    return wrong


def wrong_with_sdist(sdist: Path, root: Path) -> list[str]:
    """Files that git tracks and the sdist lacks, and C files of Cython, which would be used instead of the .pyx."""
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wrong = [f"has {name}, which Cython wrote" for name in sorted(names) if is_made(name, names)]
    listed = subprocess.run(["git", "-C", str(root), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:  # built from an sdist
        return wrong
    missing = sorted(name for name in listed.stdout.splitlines() if name not in names | NOT_SHIPPED)
    return wrong + [f"lacks {name}" for name in missing if (root / name).exists()]


def is_made(name: str, names: set[str]) -> bool:
    return name.endswith(".c") and name[:-2] + ".pyx" in names
