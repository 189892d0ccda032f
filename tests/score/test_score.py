"""`fastrnn score` and `fastrnn.score`: files in, files out, the same after a kill at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import score_rows

import fastrnn
from fastrnn.cli import main
from fastrnn.scoring import parts

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "examples" / "tone_words.onnx"
RECORD = parts.RECORD


@pytest.fixture(scope="module")
def example():
    return fastrnn.load(MODEL, threads=1)


def made(rng, count, most=30):
    return [rng.standard_normal((n, 20)).astype(np.float32) for n in rng.integers(1, most, count)]


def table(rows, first=0):
    return pa.table({"id": pa.array(range(first, first + len(rows))), "bands": score_rows.column(rows)})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder of two parquet files with several row groups, their rows in order)."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    first, second = made(rng, 130), made(rng, 75)
    (folder / "b").mkdir()
    pq.write_table(table(first), folder / "a.parquet", row_group_size=50)
    pq.write_table(table(second, 130), folder / "b" / "c.parquet", row_group_size=20)
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.parquet").touch()
    return folder, first + second


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_answers_are_in_the_order_of_the_rows(data, example, tmp_path):
    folder, rows = data
    found = fastrnn.score(folder, example, tmp_path / "out", part_rows=40, batch_rows=16)
    assert (found.rows, found.scored, found.failed, found.resumed, found.first_error) == (205, 205, 0, 0, "")
    answers = pq.read_table(tmp_path / "out")
    assert answers.column_names == ["id", "words"]
    assert answers["id"].to_pylist() == list(range(205))
    for got, row in zip(answers["words"].to_pylist(), rows, strict=True):
        assert np.array_equal(np.asarray(got, np.float32), example(row[None])[0])
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [RECORD, *(f"part-00000-{at:012d}.parquet" for at in (0, 40, 80, 120)),
                     *(f"part-00001-{at:012d}.parquet" for at in (0, 40))]  # fmt: skip
    assert found.parts == 6


def test_neither_threads_nor_batches_change_a_row(data, example, tmp_path):
    folder, _ = data
    tables = []
    for i, (threads, batch, part) in enumerate([(1, 16, 40), (2, 1000, 1000), (3, 7, 33)]):
        fastrnn.score(folder, example, tmp_path / str(i), threads=threads, batch_rows=batch, part_rows=part)
        tables.append(pq.read_table(tmp_path / str(i)).combine_chunks())
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    fastrnn.score(folder, example, tmp_path / "again", threads=3, batch_rows=16, part_rows=40)
    assert files(tmp_path / "again") == files(tmp_path / "0")


def test_arrays_of_numpy(example, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 9, 20)).astype(np.float32)
    lengths = rng.integers(1, 10, 50)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", bands=x, lengths=lengths, id=np.arange(50))
    fastrnn.score(tmp_path / "x.npy", example, tmp_path / "npy", batch_rows=8)
    fastrnn.score(tmp_path / "x.npz", example, tmp_path / "npz", batch_rows=8, columns=["id"])
    whole, cut = pq.read_table(tmp_path / "npy"), pq.read_table(tmp_path / "npz")
    assert whole.column_names == ["words"]
    assert cut["id"].to_pylist() == list(range(50))
    want = example(x)
    for i in range(50):
        assert np.array_equal(np.asarray(whole["words"][i].as_py(), np.float32), want[i])
        assert np.array_equal(np.asarray(cut["words"][i].as_py(), np.float32), want[i, : lengths[i]])
    np.savez(tmp_path / "y.npz", bands=x, lengths=np.full(50, 10))
    with pytest.raises(fastrnn.FastRNNError, match=r"y.npz, row 0: its length is 10, and its array has 9 steps"):
        fastrnn.score(tmp_path / "y.npz", example, tmp_path / "y")


# -- bad data --
def test_a_bad_row_is_named_by_file_and_number(data, example, tmp_path):
    rows = [[[0.0] * 20]] * 70
    rows[65] = [[float("nan")] * 20]
    pq.write_table(
        pa.table({"bands": pa.array(rows, pa.list_(pa.list_(pa.float32())))}), tmp_path / "d.parquet", row_group_size=9
    )
    with pytest.raises(fastrnn.FastRNNError, match=r"^d.parquet, row 65: column 'bands' holds NaN: .*--on-error null"):
        fastrnn.score(tmp_path / "d.parquet", example, tmp_path / "out", batch_rows=16, part_rows=32)
    found = fastrnn.score(tmp_path / "d.parquet", example, tmp_path / "null", batch_rows=16, on_error="null")
    assert (found.failed, found.first_error) == (1, "d.parquet, row 65: column 'bands' holds NaN")
    answers = pq.read_table(tmp_path / "null")
    assert [i for i, v in enumerate(answers["words"].to_pylist()) if v is None] == [65]
    assert [i for i, v in enumerate(answers["error"].to_pylist()) if v is not None] == [65]
    # Parts that were whole before the bad row stay, and a run on corrected data is refused rather than mixed.
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 2
    rows[65] = rows[0]
    pq.write_table(
        pa.table({"bands": pa.array(rows, pa.list_(pa.list_(pa.float32())))}), tmp_path / "d.parquet", row_group_size=9
    )
    with pytest.raises(fastrnn.FastRNNError, match=r"d.parquet has changed since.*--restart"):
        fastrnn.score(tmp_path / "d.parquet", example, tmp_path / "out", batch_rows=16, part_rows=32)
    again = fastrnn.score(tmp_path / "d.parquet", example, tmp_path / "out", batch_rows=16, part_rows=32, restart=True)
    assert (again.resumed, again.scored) == (0, 70)


def test_data_that_can_not_be_read(example, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data file"):
        fastrnn.score(tmp_path / "none.parquet", example, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file that ends in"):
        fastrnn.score(tmp_path / "empty", example, tmp_path / "out")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(fastrnn.ModelFormatError, match=r"data come from \.parquet"):
        fastrnn.score(tmp_path / "x.csv", example, tmp_path / "out")
    for name in ("x.parquet", "x.npy", "x.npz"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(fastrnn.ModelFormatError, match=name):
            fastrnn.score(tmp_path / name, example, tmp_path / "out")
    np.savez(tmp_path / "rows.npz", bands=np.zeros((2, 3, 20)), id=np.zeros(3))
    with pytest.raises(fastrnn.ModelFormatError, match="must have as many rows"):
        fastrnn.score(tmp_path / "rows.npz", example, tmp_path / "out")
    one, two = tmp_path / "1.parquet", tmp_path / "2.parquet"
    pq.write_table(table(made(np.random.default_rng(0), 2)), one)
    pq.write_table(pa.table({"bands": [1.0]}), two)
    with pytest.raises(fastrnn.FastRNNError, match=r"2.parquet: its columns .* differ from those of 1.parquet"):
        fastrnn.score([one, two], example, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- a run that goes on --
@pytest.fixture
def half_done(data, example, tmp_path):
    """A folder with some of the parts missing."""
    fastrnn.score(data[0], example, tmp_path / "out", part_rows=40)
    (tmp_path / "out" / "part-00000-000000000040.parquet").unlink()
    (tmp_path / "out" / "part-00001-000000000040.parquet").unlink()
    (tmp_path / "out" / ".part-00001-000000000040.parquet.partial").write_bytes(b"half a par")
    return tmp_path / "out"


def test_only_what_is_missing_is_scored(data, example, half_done, tmp_path):
    fastrnn.score(data[0], example, tmp_path / "whole", part_rows=40)
    found = fastrnn.score(data[0], example, half_done, part_rows=40)
    assert (found.resumed, found.scored) == (4, 75)
    assert files(half_done) == files(tmp_path / "whole")
    assert fastrnn.score(data[0], example, half_done, part_rows=40).scored == 0


def test_a_changed_run_is_refused(data, example, half_done, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(data[0], folder)  # with the times of the files
    before = files(half_done)

    def refused(text, source=folder, model=example, **options):
        with pytest.raises(fastrnn.FastRNNError, match=f"{text}.*Use another folder.*--restart"):
            fastrnn.score(source, model, half_done, **{"part_rows": 40, **options})
        assert files(half_done) == before

    gru = fastrnn.from_arrays("gru", W=np.zeros((9, 20), np.float32), R=np.zeros((9, 3), np.float32))
    refused("the model had the fingerprint", model=gru, inputs={"x": "bands"})
    refused("part_rows was 40, now it is 41", part_rows=41)
    refused("allow_nan was False", allow_nan=True)
    refused("columns was 'rest'", columns="none")
    with monkeypatch.context() as patch:
        patch.setattr(fastrnn.scoring.files, "isa_info", lambda: {"active": "another"})
        refused("isa was ")
    (folder / "new.parquet").write_bytes((folder / "a.parquet").read_bytes())
    refused("new.parquet is new")
    (folder / "a.parquet").unlink()
    (folder / "new.parquet").unlink()
    refused("a.parquet is gone")
    shutil.copy(data[0] / "b" / "c.parquet", folder / "a.parquet")
    refused("a.parquet has changed since")


def test_a_folder_of_something_else_is_not_touched(data, example, tmp_path):
    (tmp_path / "part-of-my-work.txt").write_text("mine")
    with pytest.raises(fastrnn.FastRNNError, match="is not a folder of answers"):
        fastrnn.score(data[0], example, tmp_path)
    (tmp_path / "part-00000-000000000000.parquet").write_text("mine too")
    before = files(tmp_path)
    for restart in (False, True):
        with pytest.raises(fastrnn.FastRNNError, match="is not a folder of answers"):
            fastrnn.score(data[0], example, tmp_path, restart=restart)
    assert files(tmp_path) == before
    with pytest.raises(fastrnn.FastRNNError, match=r"inside of the data in .*: name another"):
        fastrnn.score(data[0], example, data[0] / "out")


def test_a_damaged_record_is_refused(data, example, half_done):
    (half_done / RECORD).write_text("{")
    with pytest.raises(fastrnn.FastRNNError, match="is damaged"):
        fastrnn.score(data[0], example, half_done, part_rows=40)


def test_two_runs_do_not_share_a_folder(data, example, half_done):
    with parts.alone(half_done), pytest.raises(fastrnn.FastRNNError, match="another run writes to"):
        fastrnn.score(data[0], example, half_done, part_rows=40)


def test_data_that_change_during_the_run_are_noticed(data, example, tmp_path):
    source = tmp_path / "d.parquet"
    shutil.copy(data[0] / "a.parquet", source)

    def progress(share, text):
        os.utime(source, ns=(1, 1))

    with pytest.raises(fastrnn.FastRNNError, match="has changed while it was read"):
        fastrnn.score(source, example, tmp_path / "out", progress=progress)
    assert list((tmp_path / "out").glob("part-*")) == []


@pytest.mark.any_isa
def test_kills_at_random_moments_leave_no_trace(tmp_path):
    """SIGKILL at random moments, until a run comes to its end: the files are those of an undisturbed run."""
    rng = np.random.default_rng(7)
    for i in range(3):
        pq.write_table(table(made(rng, 1200, 120), 1200 * i), tmp_path / f"{i}.parquet", row_group_size=500)
    sources = [str(tmp_path / f"{i}.parquet") for i in range(3)]
    code = (
        "import sys, fastrnn; print('go', flush=True); "
        f"r = fastrnn.score({sources}, {str(MODEL)!r}, sys.argv[1], part_rows=100, batch_rows=50, threads=2); "
        "print('end', flush=True)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def begin(folder):
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / folder)], env=env, stdout=subprocess.PIPE, text=True
        )

    whole = begin("whole")
    assert whole.stdout.readline() == "go\n"
    began = time.monotonic()
    assert whole.stdout.readline() == "end\n"
    takes = time.monotonic() - began
    assert whole.wait(60) == 0
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice, kills, partly = random.Random(seed), 0, 0
    for attempt in range(40):
        process = begin("killed")
        assert process.stdout.readline() == "go\n"
        if attempt < 12:
            time.sleep(dice.uniform(0, 0.5 * takes))
            process.kill()
        ended = process.wait(120)
        there = len(list((tmp_path / "killed").glob("part-*"))) if (tmp_path / "killed").exists() else 0
        kills, partly = kills + (ended == -signal.SIGKILL), partly + (0 < there < 36)
        process.stdout.close()
        if ended == 0:
            break
    whole.stdout.close()
    assert ended == 0
    assert kills >= 1
    assert files(tmp_path / "killed") == files(tmp_path / "whole"), (kills, partly)
    assert len(files(tmp_path / "whole")) == 37


# -- the command --
def test_the_command(data, example, tmp_path, capsys):
    command = [
        "score",
        str(data[0]),
        str(MODEL),
        "--out",
        str(tmp_path / "out"),
        "--output",
        "words=y",
        "--columns",
        "id",
    ]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["rows"], told["failed"], told["parts"]) == (True, 205, 0, 2)
    assert pq.read_table(tmp_path / "out").column_names == ["id", "y"]
    assert main(command) == 0
    assert "2 files were there already" in capsys.readouterr().out
    assert main([*command, "--columns", "nope", "--restart"]) == 1
    assert "error: the data have no column 'nope'; they have ['id', 'bands']" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "none"), str(MODEL), "-o", str(tmp_path / "x"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "FileNotFoundError"
    for wrong in (["--input", "x"], ["--output", "=y"], ["--threads", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *wrong])


def test_without_pyarrow_the_error_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['pyarrow'] = None; from fastrnn.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "score", "x.npy", str(MODEL), "--out", str(tmp_path / "o")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: bulk scoring needs the pyarrow package: pip install 'fastrnn[score]'\n"
