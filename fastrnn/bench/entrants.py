"""Who takes part in a case: an engine, and the precision, instruction set and threads that it is asked for.

An entrant is a column of a table. Its name says what it is: `fastrnn`, `fastrnn-int8`, `fastrnn-int8@avx2` (with that
instruction set forced), `ort-int8`, `openvino-bf16`. Precisions of one engine share a worker process.
"""

from __future__ import annotations

from dataclasses import replace

from ..records import dataclass

# The engines that a run can be asked for -> file of engines/
ENGINES = {
    "fastrnn": "on_fastrnn.py",
    "ort": "on_onnxruntime.py",
    "ort-iobinding": "on_onnxruntime.py",
    "torch": "on_torch.py",
    "openvino": "on_openvino.py",
}
PEERS = tuple(name for name in ENGINES if name != "fastrnn")
ROOFLINE = "roofline"
FILES = {ROOFLINE: "on_roofline.py"}  # of programs that are no engine
FLOAT32, BFLOAT16, INT8, INT8_A16 = "float32", "bfloat16", "int8", "int8-a16"
PRECISIONS = (FLOAT32, BFLOAT16, INT8, INT8_A16)
WEIGHT_SHARE = {FLOAT32: 1.0, BFLOAT16: 0.5, INT8: 0.25, INT8_A16: 0.25}  # of the bytes of a weight in float32
SHORT = {FLOAT32: "", BFLOAT16: "-bf16", INT8: "-int8", INT8_A16: "-int8-a16"}


@dataclass(frozen=True)
class Entrant:
    """One column of a table.

    name : in tables and records; engine : of `ENGINES`, which runs it and which --engines must name
    precision : of `PRECISIONS`; isa : forced for fastrnn; threads : whatever --threads says
    way : how fastrnn is called, if not by streams: "run" of a model, or of a "session" as onnxruntime's
    """

    name: str
    engine: str
    precision: str = FLOAT32
    isa: str | None = None
    threads: int | None = None
    way: str = ""

    @property
    def own(self) -> bool:
        """Whether it is fastrnn."""
        return self.engine == "fastrnn"

    @property
    def process(self) -> str:
        """The name of its worker process."""
        return self.name if self.precision == FLOAT32 else self.engine + (f"@{self.isa}" if self.isa else "")

    @property
    def file(self) -> str:
        """The program that runs it."""
        return FILES[self.engine] if self.engine in FILES else ENGINES[self.engine]


def own_name(precision: str, isa: str | None = None) -> str:
    """fastrnn's name in a precision, with a forced instruction set if one is given."""
    return f"fastrnn{SHORT[precision]}" + (f"@{isa}" if isa else "")


_SPECIAL = [
    *(Entrant(own_name(p), "fastrnn", p) for p in PRECISIONS),
    Entrant("fastrnn-1t", "fastrnn", threads=1),
    Entrant("fastrnn-2t", "fastrnn", threads=2),
    Entrant("fastrnn-plain", "fastrnn"),
    Entrant("fastrnn-run", "fastrnn", way="run"),
    Entrant("fastrnn-session", "fastrnn", way="session"),
    Entrant("ort-gather", "ort"),
    Entrant("ort-sessions", "ort"),
    Entrant("ort-int8", "ort", INT8),
    Entrant("openvino-bf16", "openvino", BFLOAT16),
    Entrant("openvino-int8", "openvino", INT8),
    Entrant("torch-bf16", "torch", BFLOAT16),
    Entrant("torch-int8", "torch", INT8),
    Entrant(ROOFLINE, ROOFLINE),
]
_BY_NAME = {entrant.name: entrant for entrant in _SPECIAL}


def find(name: str) -> Entrant:
    """The entrant of that name: one of the table, with @ISA after it or without, or an engine as it is."""
    base, _, isa = name.partition("@")
    found = _BY_NAME.get(base) or Entrant(base, base)
    return replace(found, name=name, isa=isa) if isa else found


EMULATED = "amx_emulated"


def every_isa() -> tuple[str, ...]:
    """Every instruction set with a fused multiply-add that this machine has, but the active one; and tiles emulated.
    None if the active one has no fused multiply-add, and so bits of its own."""
    from ..machine.cpu import cpu_info

    isa = cpu_info().isa
    if isa.active == "baseline":
        return ()
    return (*(name for name in isa.available if name not in (isa.active, "baseline")), EMULATED)


def forced_isas() -> tuple[str, ...]:
    """The instruction sets that the grids of reduced precision compare beside the active one: AMX, VNNI without AMX
    and AVX2 without VNNI, or NEON, as far as this machine has them."""
    from ..machine.cpu import cpu_info

    isa = cpu_info().isa
    vnni = next((name for name in ("avx512_vnni", "avx_vnni") if name in isa.available), None)
    columns = ("amx", vnni, "avx2", "neon")
    return tuple(name for name in columns if name in isa.available and name != isa.active)
