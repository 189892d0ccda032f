"""`fastrnn score` reads ahead and writes behind: what overlaps, what is bounded, and what an error leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_score import MODEL, RECORD, ROOT, files, made, table

import fastrnn
from fastrnn.scoring import beside, parts, running, sources

PATIENCE = 60.0  # seconds until a wait for another thread counts as endless


@pytest.fixture(scope="module")
def example():
    return fastrnn.load(MODEL, threads=1)


@pytest.fixture(scope="module")
def one_group(tmp_path_factory):
    """A file of 200 rows in one row group."""
    path = tmp_path_factory.mktemp("group") / "a.parquet"
    pq.write_table(table(made(np.random.default_rng(0), 200)), path)
    return path


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith(("fastrnn-read", "fastrnn-write"))] == []


# -- what overlaps --
def test_a_part_is_finished_while_the_next_one_runs(one_group, example, tmp_path, monkeypatch):
    ran, waited = threading.Semaphore(0), []
    run, finish = running.Running.run, parts._finish

    def running_(self, rows):
        found = run(self, rows)
        ran.release()
        return found

    def finishing(partial, name):
        if not waited:  # the first part, of 4 pieces: wait for the piece of another part
            waited.append([ran.acquire(timeout=PATIENCE) for _ in range(5)])
        finish(partial, name)

    monkeypatch.setattr(running.Running, "run", running_)
    monkeypatch.setattr(parts, "_finish", finishing)
    fastrnn.score(one_group, example, tmp_path / "out", part_rows=40, batch_rows=10, threads=1)
    assert waited == [[True] * 5]


def test_the_next_part_is_read_while_the_last_one_runs(one_group, example, tmp_path, monkeypatch):
    read, waited = threading.Event(), []
    run, take = running.Running.run, sources._Rows.take

    def running_(self, rows):
        if not waited:
            waited.append(read.wait(PATIENCE))
        return run(self, rows)

    def taking(self, start, stop):
        if start >= 10:
            read.set()
        return take(self, start, stop)

    monkeypatch.setattr(running.Running, "run", running_)
    monkeypatch.setattr(sources._Rows, "take", taking)
    fastrnn.score(one_group, example, tmp_path / "out", part_rows=10, threads=1)
    assert waited == [True]


def test_batches_of_one_piece_keep_all_threads_busy(one_group, example, tmp_path, monkeypatch):
    together, run = threading.Barrier(5), running.Running.run

    def running_(self, rows):
        together.wait(PATIENCE)  # raises BrokenBarrierError
        return run(self, rows)

    monkeypatch.setattr(running.Running, "run", running_)
    fastrnn.score(one_group, example, tmp_path / "out", batch_rows=10, part_rows=60, threads=5)  # 20 batches
    assert pq.read_table(tmp_path / "out").num_rows == 200


def test_a_row_group_is_read_once_for_all_its_parts(one_group, example, tmp_path, monkeypatch):
    decoded = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *given, **options):
            for batch in super().iter_batches(*given, **options):
                decoded.append(batch.num_rows)
                yield batch

    monkeypatch.setattr(sources.pq, "ParquetFile", Counted)
    fastrnn.score(one_group, example, tmp_path / "out", part_rows=20)
    assert sum(decoded) == 200


# -- what is bounded --
def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    """64 MB of one row group: a batch is 0.6 MB."""
    steps, rng = 1000, np.random.default_rng(0)
    flat = pa.array(rng.standard_normal(400 * steps * 40, np.float32))
    inner = pa.ListArray.from_arrays(pa.array(np.arange(400 * steps + 1, dtype=np.int32) * 40), flat)
    rows = pa.ListArray.from_arrays(pa.array(np.arange(401, dtype=np.int32) * steps), inner)
    pq.write_table(pa.table({"x": rows}), tmp_path / "x.parquet")
    code = (
        "import sys, numpy as np, pyarrow as pa, fastrnn\n"
        "model = fastrnn.from_arrays('gru', W=np.zeros((9, 40), np.float32), R=np.zeros((9, 3), np.float32))\n"
        "fastrnn.score(sys.argv[1], model, sys.argv[2], batch_rows=4, part_rows=100, threads=2)\n"
        "print(pa.default_memory_pool().max_memory() >> 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.parquet"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32


def test_large_rows_come_in_small_batches():
    source = sources.Source.__new__(sources.Source)
    source.rows = 100_000
    sizes = {}
    for row_bytes in (100, 16_000, 100_000, 1_000_000, 1 << 40):
        source.row_bytes = row_bytes
        sizes[row_bytes] = source.units(0, 1024, 1 << 16)[0].batch
    # 8 MiB; but 128 rows, which a model runs together, unless they are more than 32 MiB.
    assert sizes == {100: 1024, 16_000: 524, 100_000: 128, 1_000_000: 33, 1 << 40: 1}


def test_bad_rows_alone_do_not_pile_up(example, tmp_path, monkeypatch):
    """A batch that has nothing to run counts too."""
    nan = [[[float("nan")] * 20]] * 400
    pq.write_table(pa.table({"bands": pa.array(nan, pa.list_(pa.list_(pa.float32())))}), tmp_path / "n.parquet")
    most, idle = [], fastrnn.scoring.files.Job._idle

    def counting(self, pending):
        most.append(len(pending))
        return idle(self, pending)

    monkeypatch.setattr(fastrnn.scoring.files.Job, "_idle", counting)
    found = fastrnn.score(tmp_path / "n.parquet", example, tmp_path / "out", batch_rows=4, threads=5, on_error="null")
    assert (found.failed, max(most)) == (400, 6)


# -- what a resumed run reads --
@pytest.mark.parametrize("missing", [(1,), (0, 2), (1, 2, 4), (4,)])
def test_parts_do_not_depend_on_what_is_missing(example, tmp_path, missing):
    """Parts, batches and row groups begin at different rows."""
    pq.write_table(table(made(np.random.default_rng(3), 205)), tmp_path / "a.parquet", row_group_size=37)
    given = {"part_rows": 45, "batch_rows": 16}
    fastrnn.score(tmp_path / "a.parquet", example, tmp_path / "whole", **given)
    want = files(tmp_path / "whole")
    names = sorted(n for n in want if n != RECORD)
    fastrnn.score(tmp_path / "a.parquet", example, tmp_path / "out", **given)
    for k in missing:
        (tmp_path / "out" / names[k]).unlink()
    found = fastrnn.score(tmp_path / "a.parquet", example, tmp_path / "out", **given)
    assert (len(names), found.resumed) == (5, 5 - len(missing))
    assert files(tmp_path / "out") == want
    groups = pq.read_metadata(tmp_path / "out" / names[1])
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [16, 16, 13]


# -- what an error leaves --
def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != RECORD)


def test_an_error_of_the_disk_ends_the_run(one_group, example, tmp_path, monkeypatch):
    finish, written = parts._finish, []

    def full(partial, name):
        if written:
            raise OSError(28, "No space left on device", str(partial))
        written.append(name.name)
        finish(partial, name)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_finish", full)
        with pytest.raises(OSError, match="No space left"):
            fastrnn.score(one_group, example, tmp_path / "out", part_rows=20, batch_rows=4)
    assert left(tmp_path / "out") == ["part-00000-000000000000.parquet"]
    fastrnn.score(one_group, example, tmp_path / "out", part_rows=20, batch_rows=4)
    fastrnn.score(one_group, example, tmp_path / "whole", part_rows=20, batch_rows=4)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_interrupt_leaves_whole_parts_alone(one_group, example, tmp_path):
    def progress(share, text):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastrnn.score(one_group, example, tmp_path / "out", part_rows=40, batch_rows=10, progress=progress)
    assert left(tmp_path / "out") == [f"part-00000-{at:012d}.parquet" for at in (0, 40)]


def test_the_first_of_several_bad_rows_is_named(example, tmp_path, monkeypatch):
    """Batches are checked when they begin: a row that the model refuses comes before one that was seen earlier."""
    rows = made(np.random.default_rng(1), 60)
    rows[25][0, 0] = np.nan
    pq.write_table(table(rows), tmp_path / "a.parquet")
    run = running.Running.run

    def refusing(self, rows):
        found = run(self, rows)
        first = len(seen) == 1
        seen.append(len(rows))
        return [fastrnn.FastRNNError("refused"), *found[1:]] if first else found

    seen: list[int] = []
    monkeypatch.setattr(running.Running, "run", refusing)
    with pytest.raises(fastrnn.FastRNNError, match=r"a.parquet, row 1\d: refused"):
        fastrnn.score(tmp_path / "a.parquet", example, tmp_path / "out", part_rows=10, batch_rows=10, threads=1)
    assert left(tmp_path / "out") == ["part-00000-000000000000.parquet"]


def test_a_file_that_is_damaged_in_its_middle_keeps_the_parts_before(example, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(made(np.random.default_rng(2), 100)), path, row_group_size=20, compression="none")
    chunk = pq.read_metadata(path).row_group(3).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(fastrnn.FastRNNError, match=r"a\.parquet: "):
        fastrnn.score(path, example, tmp_path / "out", part_rows=20, batch_rows=10)
    assert left(tmp_path / "out") == [f"part-00000-{at:012d}.parquet" for at in (0, 20, 40)]


def test_a_channel_gives_what_was_put_before_its_error():
    channel = beside.Channel(3)
    assert channel.put(1)
    assert channel.put(2)
    channel.end(ValueError("late"))
    assert not channel.put(3)
    assert [next(channel), next(channel)] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="late"):
            next(channel)
    dropped = beside.Channel(3)
    dropped.put(1)
    dropped.end(drop=True)
    assert list(dropped) == []
