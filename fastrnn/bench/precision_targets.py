"""The targets of reduced precision: cells against peers and against float32, errors, quantised files, same bits.

Columns of instruction sets that a machine lacks are "not measured here", with the command that fills them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from . import entrants
from .cases import ERROR_STEPS, ROUNDED_BATCHES
from .entrants import BFLOAT16, INT8, INT8_A16, own_name
from .figures import is_rival
from .target_lines import Line, absent, at_most, least_line, mean_line, of_grid, why_slow

GRID = "precision"
AMX, VNNI, AVX2 = "AMX", "VNNI without AMX", "AVX2 only"
# Wanted of int8 over float32 from H = 128 up, by the instruction set and the rows
OVER_FLOAT32 = {AMX: {1: 4.5, 16: 6.0, 128: 5.0}, VNNI: {1: 3.5, 16: 2.5, 128: 2.0}, AVX2: {1: 2.5, 16: 1.3, 128: 1.3}}
SLOWER = 0.95  # of float32's speed: a precision below this must not be chosen for its speed
Rated = list[tuple[float, str]]


def lines(record: Mapping) -> list[Line]:
    """All of them, in the order of the acceptance table."""
    cases = of_grid(record["cases"], GRID)
    why = absent(GRID, record["cases"])
    return [
        *_over_peers(cases, why, "amx" in isas_of(record)),
        *_over_float32(cases, why, record),
        *_errors(cases, why),
        *_quantized(record["cases"]),
        _bits_line(record["cases"]),
    ]


def isas_of(record: Mapping) -> dict[str, str]:
    """Instruction set -> the suffix of its entrants: "" for the one that was active."""
    names = {name for case in of_grid(record["cases"], GRID) for name in case["contests"]}
    forced = {isa: f"@{isa}" for isa in (entrants.find(name).isa for name in names) if isa}
    active = record["settings"]["isa"] or record["machine"]["isa"]["active"] if record.get("machine") else ""
    return {active: "", **forced}


def _ratios(cases: Iterable[Mapping], name: str, against: Callable[[Mapping], str | None]) -> Rated:
    """(ratio of the entrant against another one, note) of each case that has both."""
    found = []
    for case in cases:
        contest, other = case["contests"].get(name), against(case)
        if contest and other in contest["ratios"]:
            found.append((contest["ratios"][other]["ratio"], why_slow(case, {**contest, "best_peer": other})))
    return found


def _over_peers(cases: Sequence[Mapping], why: str | None, amx: bool) -> list[Line]:
    """bfloat16 over OpenVINO's, int8 over onnxruntime's (LSTM) and over the best reduced-precision peer (GRU)."""

    def best_of_int8(case: Mapping) -> str | None:
        return "ort-int8" if case["kind"] == "lstm" else _best_rounded(case)

    def openvino(_: Mapping) -> str:
        return "openvino-bf16"

    bf16, int8 = own_name(BFLOAT16), own_name(INT8)
    wanted = [
        ("bf16 over OpenVINO bf16", bf16, openvino, (4.0, 4.5, 3.0, 1.8), 1.5, "" if amx else "on AMX"),
        ("int8 over onnxruntime int8 (GRU: best peer)", int8, best_of_int8, (5.0, 5.0, 3.5, 2.5), 2.0, ""),
    ]
    found = []
    for what, name, against, means, least, only in wanted:
        for batch, limit in zip(ROUNDED_BATCHES, means, strict=True):
            chosen = [c for c in cases if c["batch"] == batch]
            rated = _complete(_ratios(chosen, name, against), chosen, why)
            line = mean_line(f"{what}, B {batch}: geometric mean", limit, rated, _why(why, what), bool(cases))
            found.append(_elsewhere(line, only))
        rated = _complete(_ratios(cases, name, against), cases, why)
        found.append(_elsewhere(least_line(f"{what}: least", least, rated, _why(why, what), bool(cases)), only))
    return found


def _best_rounded(case: Mapping) -> str | None:
    timed = {n: r for n, r in case["results"].items() if r["status"] == "ok" and is_rival(n, INT8)}
    return min(timed, key=lambda name: timed[name]["median_ns"], default=None)


def _complete(rated: Rated, cases: Sequence[Mapping], why: str | None) -> Rated:
    """The ratios if no case is missing; else none, so that a mean over fewer can't pass for the whole."""
    return rated if why is None and len(rated) == len(cases) else []


def _why(why: str | None, what: str) -> str:
    return why or f"not every case has an answer of both sides: {what}"


def _elsewhere(line: Line, only: str) -> Line:
    """The line without a verdict if it is wanted only on machines that this is not."""
    if not only or line.got is None:
        return line
    note = f"wanted {only}, which is not measured here" + (f"; {line.note}" if line.note else "")
    return replace(line, ok=None, note=note)


def _over_float32(cases: Sequence[Mapping], why: str | None, record: Mapping) -> list[Line]:
    """int8 over our own float32 by instruction set; bfloat16 with one row; what is slower than float32."""
    isas = isas_of(record)
    vnni = next((isa for isa in ("avx512_vnni", "avx_vnni") if isa in isas), None)
    column = {AMX: "amx" if "amx" in isas else None, VNNI: vnni, AVX2: "avx2" if "avx2" in isas else None}
    found = []
    for title, isa in column.items():
        suffix = isas.get(isa or "", None)
        for batch, limit in OVER_FLOAT32[title].items():
            chosen = [c for c in cases if c["batch"] == batch and c["H"] >= 128]
            rated = []
            if suffix is not None:
                rated = _complete(_ratios(chosen, own_name(INT8) + suffix, _same_isa(suffix)), chosen, why)
            note = why or f"not measured here: fastrnn bench --grid precision on a machine with {title}"
            text = f"int8 over float32, {title}, B {batch}, H >= 128: geometric mean"
            found.append(mean_line(text, limit, rated, note, bool(cases)))
    means = []
    for isa, suffix in isas.items():
        chosen = [c for c in cases if c["batch"] == 1 and c["H"] >= 256]
        rated = _complete(_ratios(chosen, own_name(BFLOAT16) + suffix, _same_isa(suffix)), chosen, why)
        line = mean_line("", 1.7, rated, "", True)
        if line.got is not None:
            means.append((line.got, isa))
    text = "bf16 over float32, one row, H >= 256: geometric mean with the slowest instruction set"
    found.append(least_line(text, 1.7, means, why or "not measured", bool(cases)))
    return [*found, _slower_line(cases, why, isas)]


def _same_isa(suffix: str) -> Callable[[Mapping], str]:
    return lambda _: f"fastrnn{suffix}"


def _slower_line(cases: Sequence[Mapping], why: str | None, isas: Mapping[str, str]) -> Line:
    """In how many cases a precision is slower than float32 although the default rules hold the layer in it. `auto`
    measures each layer, so it would leave these in float32."""
    slow: Rated = []
    for suffix in isas.values():
        for precision in (BFLOAT16, INT8, INT8_A16):
            name = own_name(precision) + suffix
            held = [c for c in cases if name in c["contests"] and not c["results"][name].get("note")]
            rated = _ratios(held, name, _same_isa(suffix))
            slow += [(ratio, f"{note}, {name}") for ratio, note in rated if ratio < SLOWER]
    text = "cases in which a precision that the layer is held in is over 5 % slower than float32"
    worst = f"slowest {min(slow)[0]:.2f}x: {min(slow)[1]}" if slow else ""
    return at_most(text, 0, None if why else len(slow), why or worst, "cases", bool(cases))


def _errors(cases: Sequence[Mapping], why: str | None) -> list[Line]:
    """rms errors over 1,000 steps with the same seeds: ours over the peer's, the worst case."""
    long = [c for c in cases if c["check_steps"] >= ERROR_STEPS]
    wanted = [
        ("bf16 over OpenVINO's", own_name(BFLOAT16), "openvino-bf16", ("lstm", "gru"), 1.0),
        ("int8 LSTM over onnxruntime's", own_name(INT8), "ort-int8", ("lstm",), 1.0),
        ("int8 GRU over PyTorch's dynamic int8", own_name(INT8), "torch-int8", ("gru",), 1.0),
        ("int8-a16 over our int8", own_name(INT8_A16), own_name(INT8), ("lstm", "gru"), 0.65),
    ]
    found = []
    for what, mine, theirs, kinds, limit in wanted:
        chosen = [c for c in long if c["kind"] in kinds]
        rated = []
        for case in chosen:
            pair = [case["results"].get(name, {}).get("rms") for name in (mine, theirs)]
            if None not in pair:
                rated.append((pair[0] / pair[1], f"{case['id']}: {pair[0]:.1e} and {pair[1]:.1e}"))
        worst = max(_complete(rated, chosen, why), default=(None, _why(why, what)))
        found.append(at_most(f"rms error, {what}: largest ratio", limit, *worst, asked=bool(cases)))
    return found


def _quantized(cases: Sequence[Mapping]) -> list[Line]:
    """Files that onnxruntime quantised: speed over its own run, and decisions."""
    why = absent("quantized", cases)
    mine = of_grid(cases, "quantized")
    rated = {c["id"]: (c["ratio"], why_slow(c)) for c in mine if c["ratio"] is not None}
    if len(rated) < len(mine):
        why = why or "not every file has an answer of both engines"

    def of(*kinds: str) -> Rated:
        return [rated[c["id"]] for c in mine if c["kind"] in kinds] if why is None else []

    decided = []
    for case in mine if why is None else ():
        ours, theirs = (case["results"][name].get("decisions") for name in ("fastrnn", "ort"))
        if ours is not None and theirs is not None:
            decided.append((ours / theirs, f"{case['id']}: {ours:.1%} and {theirs:.1%}"))
    asked, note = bool(mine), why or ""
    what = "quantised files over onnxruntime, the faster of run and IOBinding"
    return [
        mean_line(f"{what}: geometric mean", 1.5, of("lstm", "gru", "dense"), note, asked),
        least_line(f"{what}: least LSTM file", 1.5, of("lstm"), note, asked),
        least_line(f"{what}: least GRU file", 1.0, of("gru"), note, asked),
        least_line("decisions like the float net's, over onnxruntime's: least", 1.0, decided, note, asked),
    ]


def _bits_line(cases: Sequence[Mapping]) -> Line:
    """How many cases have other bits in some way to compute, or with some instruction set."""
    mine, why = of_grid(cases, "bits"), absent("bits", cases)
    text = "same bits for rows, batch, place, chunk, threads, pause, instruction set: cases that differ"
    different = [case["id"] for case in mine if case["verdict"] != "same"]
    names = dict.fromkeys(entrants.find(name).isa or "the active one" for case in mine for name in case["results"])
    note = f"such as {different[0]}" if different else f"instruction sets: {', '.join(names)}"
    return at_most(text, 0, None if why else len(different), why or note, "cases", bool(mine))
