"""Build of the extensions; everything else about the package is in pyproject.toml.

Each kernels_<isa>.c is compiled with that instruction set's flags (_kernels/list_isas.h) and no other file is, so the
wheel runs on any CPU of its architecture and picks a table when it is imported. Switches, from the environment:

    FASTRNN_SANITIZE=address,undefined   compile and link with these sanitizers (run with the ASan runtime preloaded)
    FASTRNN_DEBUG=1                      -O1 -g, assertions on, bounds of Cython code checked
    FASTRNN_WERROR=1                     warnings of the C kernels are errors
"""

import contextlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

KERNELS = Path("fastrnn/_kernels")
DEBUG = os.environ.get("FASTRNN_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("FASTRNN_SANITIZE", "")
OPTIMISE = ["-O1", "-g", "-fno-omit-frame-pointer"] if DEBUG or SANITIZE else ["-O3"]
SANITIZERS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
WARNINGS = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("FASTRNN_WERROR", "0") not in ("", "0") else [])
# No -ffast-math: a NaN must stay one. No contraction: which operations are fused is written in the code, not chosen by
# the optimiser, or the bits would depend on the compiler. errno of sqrtf is not read.
KERNEL_FLAGS = ["-std=c99", *OPTIMISE, "-ffp-contract=off", "-fno-math-errno", *WARNINGS, *SANITIZERS]


def instruction_sets(compiler):
    """File name -> flags of each instruction set of the machine that `compiler` (a command as a list) makes code for:
    the rows of list_isas.h that its preprocessor leaves."""
    command = [*compiler, "-E", "-P", str(KERNELS / "list_isas.h")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {f"kernels_{name}.c": flags.split() for name, flags in re.findall(r'ISA\((\w+), "([^"]*)"', text)}


class BuildKernels(build_ext):
    """build_ext that compiles each C kernel with its own flags and links all of them into fastrnn.machine._isa."""

    def run(self):
        super().run()
        if not self.inplace:
            # A Python that is started beside setup.py finds the package of this folder, not the installed one.
            with contextlib.suppress(OSError, BaseError):  # a folder that can't be written to stays as it is
                self.copy_extensions_to_source()

    def build_extension(self, ext):
        if ext.name == "fastrnn.machine._isa":
            ext.extra_objects = self.compile_kernels()
            ext.depends = [*ext.depends, *ext.extra_objects]  # link again where one of them is newer
        super().build_extension(ext)

    def compile_kernels(self):
        sets = instruction_sets(self.compiler.compiler)
        folder = Path(self.build_temp) / "kernels"
        (folder / KERNELS).mkdir(parents=True, exist_ok=True)  # two compilers at once would each leave it to the other
        newest = max(p.stat().st_mtime for p in [*KERNELS.glob("*.h"), Path(__file__)])

        def compile_one(source):
            target = folder / KERNELS / (source.stem + ".o")
            if self.force or not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
                own = KERNEL_FLAGS + sets.get(source.name, [])
                self.compiler.compile([str(source)], output_dir=str(folder), extra_postargs=own)
            return str(target)

        with ThreadPoolExecutor(2) as pool:  # avx512 takes as long as the rest together
            return list(pool.map(compile_one, sorted(KERNELS / name for name in (*sets, "dispatch.c", "threads.c"))))


def extension(name):
    return Extension(
        f"fastrnn.{name}",
        [f"fastrnn/{name.replace('.', '/')}.pyx"],
        include_dirs=[str(KERNELS), numpy.get_include()],
        depends=[str(KERNELS / name) for name in ("frnn.h", "threads.h", "pages.h")],  # no others are for Cython
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=[*OPTIMISE, *SANITIZERS],
        extra_link_args=["-pthread", *SANITIZERS],
        libraries=["m"],
    )


MODULES = (
    "machine._isa",
    "machine._kernel_calls",
    "machine._roofline",
    "ops._walk",
    "ops._recurrence",
    "ops._rows",
    "ops._elements",
    "ops._integers",
    "ops._windows",
    "ops._attention",
    "ops._states",
    "runtime._timing",
    "runtime._executor",
    "serving._pool",
)
directives = {"language_level": 3, "freethreading_compatible": False}
if DEBUG:
    directives |= {"boundscheck": True, "wraparound": False, "cdivision": False}
setup(
    ext_modules=cythonize(
        [extension(name) for name in MODULES],
        compiler_directives=directives,
    ),
    cmdclass={"build_ext": BuildKernels},
)
