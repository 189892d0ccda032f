"""Whether a process may use the tile unit of its CPU: by the bits of the CPU, by what the operating system saves, and
by what it answers to the request."""

import ctypes
import errno
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
from fastrnn.machine import _isa, cpu

pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.skipif("amx" not in _isa.isa_info()["compiled"], reason="this build has no kernels for AMX"),
]
OSXSAVE = 1 << 27
AMX = 1 << 24 | 1 << 22 | 1 << 25  # AMX-TILE, AMX-BF16, AMX-INT8
SAVED = 3 << 17

# Another machine's answers in the place of this one's, before the import asks. The extension is loaded once, so the
# import finds what was put there.
SIMULATED = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
ecx1, edx7, xcr0, answer = map(int, sys.argv[2:])
READ = ctypes.CFUNCTYPE(None, *[ctypes.POINTER(t) for t in (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64)])
ASK = ctypes.CFUNCTYPE(ctypes.c_int)
class Probe(ctypes.Structure):
    _fields_ = [("read", READ), ("ask", ASK)]
asked = []
def read(a, b, c):
    a[0], b[0], c[0] = ecx1, edx7, xcr0
def ask():
    asked.append(1)
    return answer
probe = Probe.in_dll(library, "frnn_unit_probe_here")
probe.read, probe.ask = READ(read), ASK(ask)
import fastrnn
info = fastrnn.cpu_info().isa
fastrnn.cpu_info()
print(len(asked), "amx" in info.available, info.active == info.available[0], info.note, sep="|")
print(fastrnn.cpu_info())
"""


def simulated(ecx1, edx7, xcr0, answer=0):
    """(times that the process asked for tiles, "amx" is available, the best set is active, the note, all as text) on a
    machine that says this."""
    command = [sys.executable, "-c", SIMULATED, _isa.__file__, *map(str, (ecx1, edx7, xcr0, answer))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(fastrnn.__file__).parents[1])
    first, _, rest = done.stdout.partition("\n")
    asked, available, active, note = first.split("|")
    assert not note or note in rest
    return int(asked), available == "True", active == "True", note


def test_a_cpu_without_amx_is_not_asked():
    assert simulated(OSXSAVE, 0, SAVED) == (0, False, True, "")


@pytest.mark.parametrize("missing", [1 << 24, 1 << 22, 1 << 25])
def test_amx_without_one_of_its_products_is_not_used(missing):
    assert simulated(OSXSAVE, AMX & ~missing, SAVED) == (0, False, True, "")


@pytest.mark.parametrize(("ecx1", "xcr0"), [(OSXSAVE, 0), (OSXSAVE, 1 << 17), (OSXSAVE, 1 << 18), (0, SAVED)])
def test_an_operating_system_that_does_not_save_tiles(ecx1, xcr0):
    asked, available, active, note = simulated(ecx1, AMX, xcr0)
    assert (asked, available, active) == (0, False, True)
    assert "does not save its tiles" in note
    assert "Linux 5.16" in note


@pytest.mark.parametrize(
    ("error", "todo"),
    [(errno.EPERM, "sandbox"), (errno.EINVAL, "Linux 5.16"), (errno.ENOSPC, "signal stack"), (errno.ENOSYS, "sandbox")],
)
def test_a_refusal_is_a_note_and_vectors_are_used(error, todo):
    asked, available, active, note = simulated(OSXSAVE, AMX, SAVED, error)
    assert (asked, available, active) == (1, False, True)
    assert f"gave {errno.errorcode[error]}" in note
    assert todo in note


def test_a_granted_unit_is_asked_for_once():
    vnni = "avx512_vnni" in _isa.isa_info()["available"]  # the vectors that go with it
    assert simulated(OSXSAVE, AMX, SAVED) == (1, vnni, True, "")


def test_the_note_of_this_machine():
    info = fastrnn.cpu_info().isa
    assert bool(info.note) == (_isa.isa_info()["refusal"] != 0)
    assert "amx" not in info.available or not info.note
    assert cpu._tile_note(12345).startswith("this CPU has AMX, but Linux refused")


SECCOMP = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
arch_prctl, load, jump_equal, answer = 158, 0x20, 0x15, 0x06
program = b"".join(struct.pack("HBBI", *line) for line in [
    (load, 0, 0, 0), (jump_equal, 0, 3, arch_prctl),  # the number of the system call
    (load, 0, 0, 16), (jump_equal, 0, 1, 0x1023),  # its first argument
    (answer, 0, 0, 0x00050000 | 1), (answer, 0, 0, 0x7FFF0000)])  # EPERM, or allowed
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]
buffer = ctypes.create_string_buffer(program, len(program))
filter = Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_char_p))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter), 0, 0):  # no new privileges; seccomp
    raise SystemExit("no seccomp here")
if libc.syscall(arch_prctl, 0x1023, 18) == 0 or ctypes.get_errno() != 1:
    raise SystemExit("the filter does not refuse")
import fastrnn
print(fastrnn.cpu_info().isa.note)
print(fastrnn.cpu_info().isa.available[0], fastrnn.cpu_info().isa.active)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs seccomp")
def test_a_sandbox_that_refuses():
    """On a CPU with AMX the note says so; on any other a filter of the call changes nothing."""
    done = subprocess.run([sys.executable, "-c", SECCOMP], capture_output=True, text=True, check=False,
                          cwd=Path(fastrnn.__file__).parents[1])  # fmt: skip
    if "no seccomp here" in done.stderr:
        pytest.skip("this process may not install a filter")
    assert done.returncode == 0, done.stderr
    note, sets = done.stdout.splitlines()
    assert ("gave EPERM" in note) == ("amx" in fastrnn.cpu_info().isa.available)
    assert "amx" not in sets.split()


def test_the_extension_exports_what_these_tests_replace():
    assert ctypes.CDLL(_isa.__file__).frnn_tile_refusal() == _isa.isa_info()["refusal"]
