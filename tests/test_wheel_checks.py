"""tools/wheel_checks.py finds what must not be in a wheel or an sdist, in files made here."""

import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import wheel_checks  # noqa: E402
import wheel_pythons  # noqa: E402

pytestmark = pytest.mark.any_isa
SUFFIX = ".cpython-39-x86_64-linux-gnu.so"
HEADER = ["-include", str(ROOT / "fastrnn" / "_kernels" / "glibc.h")]
CODE = """
#include <math.h>
#include <pthread.h>
#include <signal.h>
int OTHER(int), PyLong_of(int);
int NAME(void *x) {
    pthread_t thread;
    sigset_t signals = {0};
    pthread_sigmask(SIG_SETMASK, &signals, 0);
    pthread_create(&thread, 0, x, x);
    pthread_detach(thread);
    return OTHER(PyLong_of((int) pow(*(double *) x, 0.3)));
}
"""


def compiled(folder: Path, *flags: str, name: str = "PyInit_it", other: str = "PyLong_as", strip: str = "-s") -> Path:
    """A library that exports `name` and needs `other` and the functions of glibc that have newer versions."""
    compiler = shutil.which("gcc")
    if compiler is None or shutil.which("readelf") is None:
        pytest.skip("needs gcc and readelf")
    source, target = folder / "it.c", folder / f"it{SUFFIX}"
    source.write_text(CODE.replace("NAME", name).replace("OTHER", other))
    options = ["-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", strip, "-pthread"]
    subprocess.run([compiler, *options, *flags[:2], source, "-o", target, *flags[2:], "-lm"], check=True)
    return target


def test_old_versions_of_glibc_are_asked_for(tmp_path):
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(map(int, version.split("."))) >= (2, 34):
        found = wheel_checks.wrong_with_symbols(compiled(tmp_path))
        names = [text.removeprefix("needs ").split(" of ")[0] for text in found]
        assert sorted(names) == ["pow", "pthread_create", "pthread_detach", "pthread_sigmask"]
    assert wheel_checks.wrong_with_symbols(compiled(tmp_path, *HEADER)) == []


def test_each_fault_of_an_extension_is_found(tmp_path):
    def wrong(*flags, **names):
        return wheel_checks.wrong_with_symbols(compiled(tmp_path, *HEADER, *flags, **names))

    assert wrong("-Wl,-rpath,/home/me") == ["names folders of the machine that built it (RUNPATH)"]
    assert wrong(other="deflate") == ["needs deflate, which is not Python's"]
    assert wrong(name="compress") == ["exports compress, which may hide another library's"]
    compiled(tmp_path, *HEADER).rename(tmp_path / "libother.so")
    (needed,) = wrong("-Wl,--no-as-needed", f"-L{tmp_path}", "-lother")
    assert needed.startswith("needs ")
    assert needed.endswith("libother.so")
    assert wrong(strip="-g") == ["is not stripped"]


def test_each_fault_of_a_wheel_is_found(tmp_path):
    wheel = tmp_path / "fastrnn-0-cp39-cp39-manylinux_2_36_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fastrnn/__init__.py", "")
        archive.writestr("fastrnn/_kernels/frnn.h", "")
        archive.writestr("tests/test_it.py", "")
        archive.writestr("fastrnn/weights.bin", bytes(wheel_checks.MOST_BYTES))
    assert wheel_checks.wrong_with_wheel(wheel, SUFFIX, tmp_path / "files") == [
        "its tag is not manylinux_2_28 or older",
        f"has {wheel.stat().st_size:,} bytes, at most {wheel_checks.MOST_BYTES:,} are allowed",
        "also installs tests",
        "has fastrnn/_kernels/frnn.h, fastrnn/weights.bin",
        "has no extensions",
    ]


def test_an_extension_of_another_python_is_found(tmp_path):
    library = compiled(tmp_path, *HEADER)
    wheel = tmp_path / "fastrnn-0-cp310-cp310-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, f"fastrnn/{library.name}")
    assert wheel_checks.wrong_with_wheel(wheel, SUFFIX, tmp_path / "files") == []
    found = wheel_checks.wrong_with_wheel(wheel, ".cpython-310-x86_64-linux-gnu.so", tmp_path / "files")
    assert found == [
        f"fastrnn/it{SUFFIX}: is not for this Python, whose extensions end in .cpython-310-x86_64-linux-gnu.so"
    ]


def test_what_an_sdist_lacks_is_found(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a.py", "b.pyx", ".gitignore"):
        (tree / name).write_text("")
    subprocess.run(["git", "init", "-q", tree], check=True)
    subprocess.run(["git", "-C", tree, "add", "."], check=True)
    (tree / "b.c").write_text("")
    with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as archive:
        for name in ("b.pyx", "b.c"):
            archive.add(tree / name, f"it-1/{name}")
    assert wheel_checks.wrong_with_sdist(tmp_path / "it.tar.gz", tree) == ["has b.c, which Cython wrote", "lacks a.py"]


def test_a_python_that_can_not_be_had_is_skipped_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    broken = tmp_path / "python3.99"
    broken.write_text("#!/bin/sh\nexit 127\n")  # as pyenv's shims do
    broken.chmod(0o755)
    with pytest.raises(wheel_pythons.Missing, match=r"there is no python3\.99 in PATH, pyenv or uv"):
        wheel_pythons.find("3.99", tmp_path, fetch=False)
    with pytest.raises(wheel_pythons.Missing, match="mmdebstrap is not installed"):
        wheel_pythons.find("3.99", tmp_path, fetch=True)
