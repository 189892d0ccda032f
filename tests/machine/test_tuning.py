"""Prefetching is measured once a machine: when, what is kept, and everything that can be wrong with the place."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.errors import FastRNNError
from fastrnn.graph.cells import CellSpec
from fastrnn.machine import _isa, _roofline, tuning

ROOT = Path(__file__).resolve().parents[2]
ISA = _isa.kernels_of()
KNOWN = {
    "L3": [[2048, [[0, 1.0], [2048, 1.2]]], [1, [[0, 1.0], [1, 1.5]]], [4096, [[0, 1.0], [4096, 1.1]]]],
    "L2": [[0, []], [0, []], [0, []]],
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """As in a process that has loaded nothing, on a machine with an empty cache and small caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTRNN_TUNE", raising=False)
    monkeypatch.setattr("fastrnn.machine.hardware.caches", lambda: {"L1d": 32 << 10, "L2": 300 << 10, "L3": 4 << 20})
    before = tuning._fixed(ISA)
    forget()
    _roofline.tune(*before, ISA)
    yield
    forget()
    _roofline.tune(*before, ISA)


def forget():
    tuning._settled.clear()
    tuning._infos.clear()


@pytest.fixture
def measured(monkeypatch):
    """The calls of the trial, which is not made; it finds KNOWN."""
    calls = []

    def measure(packed, level, sizes, known):
        calls.append((packed.nbytes, level, sizes))
        return {tuning.LEVELS[i]: KNOWN["L3"] if i else KNOWN["L2"] for i in range(level + 1)}

    monkeypatch.setattr(tuning, "measure", measure)
    return calls


def cell(H):
    """About 32 H^2 bytes."""
    return _isa.pack_cell(CellSpec("lstm", H, H), np.zeros((4 * H, H), np.float32), np.zeros((4 * H, H), np.float32))


def path():
    return tuning.Machine.found(ISA).path


def test_small_weights_neither_measure_nor_look_for_a_file(measured, monkeypatch):
    monkeypatch.setattr(tuning.Machine, "found", lambda isa: pytest.fail("it looked for a file"))
    tuning.prepare(cell(80))
    assert measured == []


def test_weights_in_L2_are_not_measured(measured):
    tuning.prepare(cell(95))  # 288 KB, which is more than LEAST and less than the L2 of these tests
    assert measured == []
    assert not path().exists()


def test_weights_past_L2_are_measured_once_and_kept(measured):
    packed = cell(128)
    tuning.prepare(packed)
    tuning.prepare(packed)
    assert [call[1] for call in measured] == [1]
    assert _roofline.tuning(ISA)[1][1] == (2048, 1, 4096)
    assert tuning.tuning_info().source == "measured"
    forget()  # the next process
    tuning.prepare(packed)
    assert len(measured) == 1
    assert tuning.tuning_info().source == str(path())


def test_larger_weights_are_measured_when_they_come(measured):
    tuning.prepare(cell(128))
    tuning.prepare(cell(350))  # 3.9 MB: beyond three quarters of the L3
    assert [call[1] for call in measured] == [1, 2]
    assert set(json.loads(path().read_text())["levels"]) == set(tuning.LEVELS)


def test_a_file_from_an_earlier_process_serves_weights_in_L2_too(measured):
    tuning.prepare(cell(128))
    forget()
    record = json.loads(path().read_text())
    record["levels"]["L2"][0][0] = 4096
    path().write_text(json.dumps(record))
    tuning.prepare(cell(95))
    assert _roofline.tuning(ISA)[1][0][0] == 4096
    assert len(measured) == 1


def test_off_keeps_the_fixed_settings_and_touches_no_file(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRNN_TUNE", "off")
    before = _roofline.tuning(ISA)
    tuning.prepare(cell(128))
    info = tuning.tuning_info()
    assert measured == []
    assert _roofline.tuning(ISA) == before
    assert not (tmp_path / "cache").exists()
    assert (info.source, info.note) == ("fixed", "FASTRNN_TUNE=off")


def test_again_measures_although_there_is_a_file(measured, monkeypatch):
    tuning.prepare(cell(128))
    forget()
    monkeypatch.setenv("FASTRNN_TUNE", "again")
    tuning.prepare(cell(128))
    tuning.prepare(cell(128))
    assert len(measured) == 2


def test_another_word_is_an_error_that_names_the_words(monkeypatch):
    monkeypatch.setenv("FASTRNN_TUNE", "yes")
    with pytest.raises(FastRNNError, match="FASTRNN_TUNE: expected one of 'auto', 'off', 'again', got 'yes'"):
        tuning.prepare(cell(128))


BAD = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"key": 1}', b"[" * 100_000, b'{"key": NaN, "levels": {}}']


@pytest.mark.parametrize("blob", BAD)
def test_a_damaged_file_is_measured_and_written_again(blob, measured):
    path().parent.mkdir(parents=True)
    path().write_bytes(blob)
    tuning.prepare(cell(128))
    assert len(measured) == 1
    assert json.loads(path().read_text())["levels"]["L3"] == KNOWN["L3"]


LEVELS = [
    {"L3": KNOWN["L3"][:2]},
    {"L3": [[77, []], [0, []], [0, []]]},
    {"L3": [[0, [[0, float("inf")]]], [0, []], [0, []]]},
    {"L3": [[0, [[0, -1.0]]], [0, []], [0, []]]},
    {"L3": [[1, []], [0, []], [0, []]]},  # spread is not a setting of one row
    {"L3": "none"},
    {"L9": KNOWN["L3"]},
    [],
]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_settings_that_make_no_sense_are_measured_again(levels, measured):
    path().parent.mkdir(parents=True)
    key = tuning.Machine.found(ISA).key
    path().write_text(json.dumps({"key": key, "levels": levels}))
    before = _roofline.tuning(ISA)[1]
    tuning._use_file(ISA, tuning.Machine.found(ISA))
    assert _roofline.tuning(ISA)[1] == before
    tuning.prepare(cell(128))
    assert len(measured) == 1


def test_a_file_of_another_machine_under_this_name_is_not_used(measured):
    tuning.prepare(cell(128))
    record = json.loads(path().read_text())
    record["key"][2] = "another CPU"
    path().write_text(json.dumps(record))
    forget()
    tuning.prepare(cell(128))
    assert len(measured) == 2


def test_each_cpu_cache_size_and_instruction_set_has_its_own_file(monkeypatch):
    names = {path().name}
    monkeypatch.setattr("fastrnn.machine.hardware.cpu_name", lambda: "another CPU")
    names.add(path().name)
    monkeypatch.setattr("fastrnn.machine.hardware.caches", dict)
    names.add(path().name)
    monkeypatch.setattr(tuning, "KERNELS", tuning.KERNELS + 1)
    names |= {path().name, tuning.Machine.found("baseline").path.name}
    assert len(names) == (5 if ISA != "baseline" else 4)


def test_without_a_place_for_the_file_nothing_is_measured(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = _roofline.tuning(ISA)
    tuning.prepare(cell(128))
    assert measured == []
    assert _roofline.tuning(ISA) == before
    assert tuning.tuning_info().note.startswith("no place to keep what is measured")


def test_a_folder_that_can_not_be_written_is_found_before_the_trial(measured, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *a: False)
    tuning.prepare(cell(128))
    assert measured == []
    assert tuning.tuning_info().source == "fixed"


def test_on_a_full_disk_the_process_uses_what_it_measured(measured, monkeypatch):
    def full(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastrnn.machine.files.replace_file", full)
    tuning.prepare(cell(128))
    tuning.prepare(cell(128))
    assert len(measured) == 1
    assert tuning.tuning_info().source == "measured"


def test_without_a_home_folder_nothing_is_measured(measured, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert tuning.tuning_info().source == "fixed"
    tuning.prepare(cell(128))
    assert measured == []


def test_while_another_process_measures_the_fixed_settings_stay(measured):
    path().parent.mkdir(parents=True)
    with open(path().with_suffix(".lock"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        tuning.prepare(cell(128))
        assert measured == []
        assert not path().exists()
    tuning.prepare(cell(128))
    assert len(measured) == 1


def test_processes_that_start_at_once_all_start(tmp_path):
    code = """
import numpy as np
from fastrnn.graph.cells import CellSpec
from fastrnn.machine import _isa, tuning
H = 400  # 5 MB
W = np.zeros((4 * H, H), np.float32)
tuning.prepare(_isa.pack_cell(CellSpec("lstm", H, H), W, W))
print(tuning.tuning_info().source)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", code]
    both = [subprocess.Popen(run, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "abc"]
    found = [(*one.communicate(timeout=120), one.returncode) for one in both]
    assert [(error, code) for _, error, code in found] == [("", 0)] * 3
    assert list((tmp_path / "cache" / "fastrnn").glob("tuning-*.json")) or "fixed" in found[0][0]


# ---- the trial -----------------------------------------------------------------------------------------------------


class Fake:
    """Steps that take as long as a table says."""

    def __init__(self, kind, ns):
        self.kind, self.table, self.made = kind, ns, 0

    def ns(self, setting, steps=1):
        self.made += 1
        return self.table[setting]


@pytest.mark.parametrize(
    ("kind", "fixed", "ns", "chosen"),
    [
        (2, 0, {0: 100, 4096: 85, 16384: 90, 1: 95}, 4096),
        (2, 4096, {0: 100, 4096: 90, 16384: 95, 1: 80}, 1),
        (1, 0, {0: 100, 4096: 98, 16384: 99, 1: 120}, 0),  # not worth a change
        (1, 16384, {0: 100, 4096: 130, 16384: 101, 1: 120}, 16384),
        (0, 0, {0: 180, 2048: 100, 4096: 120}, 2048),
    ],
)
def test_the_fastest_setting_is_chosen_if_it_is_worth_a_change(kind, fixed, ns, chosen):
    found, gains = tuning._fastest(Fake(kind, ns), fixed, 2e6)
    assert found == chosen
    assert dict(gains) == {s: pytest.approx(ns[0] / t, abs=1e-3) for s, t in ns.items()}


def test_without_time_for_three_turns_the_fixed_setting_stays():
    fake = Fake(1, {0: 100, 4096: 10, 16384: 10, 1: 10})
    assert tuning._fastest(fake, 0, 0) == [0, []]
    assert fake.made == 1


def test_the_real_trial_leaves_the_settings_as_they_were_and_knows_its_levels():
    before = _roofline.tuning(ISA)
    found = tuning.measure(cell(350), 2, tuning.Machine.found(ISA).sizes, {})
    assert _roofline.tuning(ISA) == before
    assert set(found) == set(tuning.LEVELS)
    for kinds in found.values():
        assert tuning._checked(json.loads(json.dumps(kinds))) == kinds


def test_the_text_of_the_settings_has_a_line_per_level():
    tuning._use(ISA, tuning.Machine.found(ISA), KNOWN, "measured")
    lines = str(tuning.tuning_info()).splitlines()
    assert lines[0] == "prefetching measured"
    assert lines[2].split("; ") == [
        "  weights in L3      one row: 2048 bytes (2048 bytes 1.20)",
        "a tile: spread (spread 1.50)",
        "more rows: 4096 bytes (4096 bytes 1.10)",
    ]
