"""Builds the extensions. Everything else about the package is in pyproject.toml.

Each kernels_<isa>.c is compiled with the flags of its instruction set (_kernels/list_isas.h), and no other file is. The
wheel therefore runs on any CPU of its architecture, and the package picks a kernel table at import. Environment
variables:

    FASTRNN_SANITIZE=address,undefined   compile and link with these sanitizers (preload the ASan runtime to run)
    FASTRNN_DEBUG=1                      -O1 -g, assertions and bounds checks in Cython code
    FASTRNN_WERROR=1                     warnings in the C kernels are errors
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
CHECKED = DEBUG or bool(SANITIZE)
# -g0 comes after Python's own -g: with the symbols of a debugger, the extensions are 8 times as large.
OPTIMISE = ["-O1", "-g", "-fno-omit-frame-pointer"] if CHECKED else ["-O3", "-g0"]
# Half of the wheel is the glue that Cython writes. -O3 makes it a third larger than -Os, and no step faster than -O2.
# -fno-plt: a call of a function of Python is one instruction, not two, and needs no entry in a table.
GLUE, RARE = (OPTIMISE, OPTIMISE) if CHECKED else (["-O2", "-g0", "-fno-plt"], ["-Os", "-g0", "-fno-plt"])
NOT_IN_STEPS = {"machine._isa", "machine._kernel_calls", "machine._window_calls", "machine._roofline",
                "machine._region", "machine._forks",
                "runtime._binding", "runtime._timing", "serving._queues"}  # fmt: skip
LOOPS = {"ops._elements", "ops._integers"}  # loops over elements that the compiler turns into vectors
STRIP = [] if CHECKED else ["-Wl,--strip-all"]
# Python's own flags may ask for -flto, which ignores glibc.h in some of the parts that it cuts the code into.
OLD_GLIBC = [] if CHECKED else ["-fno-lto", "-include", str(KERNELS / "glibc.h")]
SANITIZERS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
WARNINGS = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("FASTRNN_WERROR", "0") not in ("", "0") else [])
# No -ffast-math: a NaN must stay a NaN. No contraction: the code decides which operations are fused. If the optimiser
# did, the bits would depend on the compiler. Nothing reads the errno of sqrtf.
KERNEL_FLAGS = ["-std=c99", *OPTIMISE, "-ffp-contract=off", "-fno-math-errno", *OLD_GLIBC, *WARNINGS, *SANITIZERS]

SHARED = ("dispatch.c", "threads.c", "tile_unit.c", "tile_emulated.c")  # C files for any CPU of the architecture


# Instruction sets that an older compiler or assembler may not know: code that it must translate with their flags.
RECENT = {
    "amx": '__asm__("tdpbf16ps %tmm0, %tmm1, %tmm2");',
    "avx_vnni": '__asm__("{vex} vpdpbusd %ymm0, %ymm1, %ymm2");',
}


def rows_of_list(compiler, without=()):
    """Name -> flags of each instruction set of the machine that `compiler` (a command as a list) makes code for: the
    rows of list_isas.h that its preprocessor leaves."""
    command = [*compiler, *without, "-E", "-P", str(KERNELS / "list_isas.h")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r'(?:ISA|LIKE|TILED|EMULATED)\((\w+),(?:\s*\w+,)?\s*"([^"]*)"', text)
    return {name: flags.split() for name, flags in rows}


def translates(compiler, flags, code):
    """Whether the compiler and its assembler know these flags and instructions."""
    command = [*compiler, *flags, "-x", "c", "-c", "-", "-o", os.devnull]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=False).returncode == 0


def instruction_sets(compiler):
    """(file name -> flags of each instruction set that `compiler` translates, names of those that it does not)."""
    rows = rows_of_list(compiler)
    missing = [name for name, code in RECENT.items() if name in rows and not translates(compiler, rows[name], code)]
    without = [f"-DFRNN_WITHOUT_{name}" for name in missing]
    return {f"kernels_{name}.c": flags for name, flags in rows_of_list(compiler, without).items()}, missing


class BuildKernels(build_ext):
    """build_ext that compiles each C kernel with its own flags and links all of them into fastrnn.machine._isa."""

    def run(self):
        super().run()
        if not self.inplace:
            # Python started in this folder imports the package from here, not the installed one.
            with contextlib.suppress(OSError, BaseError):  # ignored if the folder can't be written to
                self.copy_extensions_to_source()

    def build_extensions(self):
        # Python's own link command may name its folder as RUNPATH, which exists only on the machine of the build.
        for name in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, name, None) or []
            setattr(self.compiler, name, [part for part in command if not part.startswith("-Wl,-rpath")])
        super().build_extensions()

    def build_extension(self, ext):
        if ext.name == "fastrnn.machine._isa":
            ext.extra_objects = self.compile_kernels()
            ext.depends = [*ext.depends, *ext.extra_objects]  # link again if one of them is newer
        super().build_extension(ext)

    def compile_kernels(self):
        sets, missing = instruction_sets(self.compiler.compiler)
        for name in missing:
            self.warn(
                f"{self.compiler.compiler[0]} does not know the instructions of {name}: built without its kernels"
            )
        without = [f"-DFRNN_WITHOUT_{name}" for name in missing]
        folder = Path(self.build_temp) / "kernels"
        (folder / KERNELS).mkdir(parents=True, exist_ok=True)  # before the threads start, which would race to create it
        newest = max(p.stat().st_mtime for p in [*KERNELS.glob("*.h"), Path(__file__)])

        def compile_one(source):
            target = folder / KERNELS / (source.stem + ".o")
            if self.force or not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
                own = KERNEL_FLAGS + sets.get(source.name, without)
                self.compiler.compile([str(source)], output_dir=str(folder), extra_postargs=own)
            return str(target)

        with ThreadPoolExecutor(2) as pool:  # avx512 takes as long as the rest together
            return list(pool.map(compile_one, sorted(KERNELS / name for name in (*sets, *SHARED))))


def extension(name, sources=(), flags=()):
    level = RARE if name in NOT_IN_STEPS else OPTIMISE if name in LOOPS else GLUE
    return Extension(
        f"fastrnn.{name}",
        [f"fastrnn/{name.replace('.', '/')}.pyx", *sources],
        include_dirs=[str(KERNELS), numpy.get_include()],
        # No other header is for Cython.
        depends=[str(KERNELS / name) for name in ("frnn.h", "threads.h", "openmp.h", "pages.h")],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=[*level, *OLD_GLIBC, *SANITIZERS, *flags],
        extra_link_args=["-pthread", *STRIP, *SANITIZERS, *flags],
        libraries=["m"],
    )


MODULES = (
    "machine._isa",
    "machine._kernel_calls",
    "machine._window_calls",
    "machine._roofline",
    "machine._region",
    "machine._forks",
    "ops._walk",
    "ops._recurrence",
    "ops._rows",
    "ops._elements",
    "ops._integers",
    "ops._windows",
    "ops._bands",
    "ops._tiles",
    "ops._attention",
    "ops._scan",
    "ops._states",
    "runtime._timing",
    "runtime._meter",
    "runtime._binding",
    "runtime._executor",
    "runtime._parts",
    "runtime._slab",
    "runtime._runs",
    "serving._stream",
    "serving._slots",
    "serving._pool",
    "serving._queues",
    "serving.server._plain",
)
# A module of its own, and optional: the compiler may lack OpenMP, or the machine libgomp. Calls then use the team of
# threads.c.
OPENMP = extension("machine._openmp", sources=[str(KERNELS / "openmp.c")], flags=["-fopenmp"])
# Without `binding`, functions are plain builtins: a tenth of the wheel smaller, and called no slower. Their signatures
# are the first line of their docstrings, as CPython's own. No object of these classes can be pickled by default:
# copyreg refuses a layout that Python does not know, so the code that Cython writes to say no is not needed.
directives = {"language_level": 3, "freethreading_compatible": False, "binding": False, "auto_pickle": False}
directives |= {"embedsignature": True, "embedsignature.format": "clinic"}
if DEBUG:
    directives |= {"boundscheck": True, "wraparound": False, "cdivision": False}
changed = Path(__file__).stat().st_mtime  # cythonize looks at the sources alone, and not at the directives
written = [Path(f"fastrnn/{name.replace('.', '/')}.c") for name in (*MODULES, "machine._openmp")]
stale = any(path.exists() and path.stat().st_mtime < changed for path in written)
modules = cythonize([*map(extension, MODULES), OPENMP], compiler_directives=directives, force=stale)
modules[-1].optional = True
setup(
    ext_modules=modules,
    cmdclass={"build_ext": BuildKernels},
)
