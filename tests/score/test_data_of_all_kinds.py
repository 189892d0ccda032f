"""Files as people have them: odd folders, arrays and tables, which are scored whole or refused by name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import score_rows

import fastrnn
from fastrnn.scoring import parts, sources


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(1)
    W, R = (rng.standard_normal((9, n)).astype(np.float32) for n in (2, 3))
    return fastrnn.from_arrays("gru", W=W, R=R, threads=1)


def rows_of(*lengths):
    rng = np.random.default_rng(2)
    return [rng.standard_normal((n, 2)).astype(np.float32) for n in lengths]


def table(rows, **more):
    return pa.table({**more, "x": score_rows.column(rows)})


@pytest.fixture
def one(tmp_path):
    """A file of two rows."""
    pq.write_table(table(rows_of(3, 1), id=["a", "b"]), tmp_path / "one.parquet")
    return tmp_path / "one.parquet"


def test_a_run_that_begins_anew_leaves_the_folder_of_another_run_alone(one, model, tmp_path):
    fastrnn.score(one, model, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with parts.alone(tmp_path / "out"), pytest.raises(fastrnn.FastRNNError, match="another run writes to"):
        fastrnn.score(one, model, tmp_path / "out", columns="none", restart=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_urls_are_refused_where_files_are_expected(one, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/calls", "gs://bucket/calls", "memory://calls", "hdfs://host/calls"):
        with pytest.raises(fastrnn.FastRNNError, match=f"{url}.*files of this machine.*fastrnn.ray.score"):
            fastrnn.score(url, model, tmp_path / "out")
        with pytest.raises(fastrnn.FastRNNError, match=f"{url}.*files of this machine"):
            fastrnn.score(one, model, url)
    assert [p.name for p in tmp_path.iterdir()] == ["one.parquet"]


def test_urls_of_files_are_paths(one, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fastrnn.score(f"file://{one}", model, f"file://{tmp_path}/out%20of%20it")
    assert pq.read_table(tmp_path / "out of it").num_rows == 2
    assert not (tmp_path / "file:").exists()


def test_the_columns_of_partitioned_folders_come_along(model, tmp_path):
    for day, kind in (("2024-05-01", "a%20b"), ("2024-05-02", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "calls" / f"day={day}" / f"kind={kind}"
        folder.mkdir(parents=True)
        pq.write_table(table(rows_of(3, 1), id=["a", "b"]), folder / "0.parquet")
    fastrnn.score(tmp_path / "calls", model, tmp_path / "out")
    found = pq.read_table(tmp_path / "out")
    assert found.column_names == ["id", "day", "kind", "y"]
    assert found["day"].to_pylist() == ["2024-05-01"] * 2 + ["2024-05-02"] * 2
    assert found["kind"].to_pylist() == ["a b"] * 2 + [None] * 2
    fastrnn.score(tmp_path / "calls", model, tmp_path / "days", columns=["day"])
    assert pq.read_table(tmp_path / "days").column_names == ["day", "y"]
    pq.write_table(table(rows_of(1), id=["a"]), tmp_path / "calls" / "0.parquet")
    with pytest.raises(fastrnn.FastRNNError, match=r"differ from those of 0.parquet"):
        fastrnn.score(tmp_path / "calls", model, tmp_path / "more")


def test_data_without_rows_give_a_file_without_rows(model, tmp_path):
    pq.write_table(table([np.zeros((1, 2), np.float32)], id=["a"]).slice(1), tmp_path / "none.parquet")
    np.save(tmp_path / "none.npy", np.zeros((0, 5, 2), np.float32))
    for name, columns in (("none.parquet", ["id", "y"]), ("none.npy", ["y"])):
        for resumed in (0, 1):
            found = fastrnn.score(tmp_path / name, model, tmp_path / f"{name} out")
            assert (found.rows, found.parts, found.resumed) == (0, 1, resumed)
        answers = pq.read_table(tmp_path / f"{name} out")
        assert (answers.column_names, answers.num_rows) == (columns, 0)


def test_rows_without_steps_are_not_dropped(model, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 0, 2), np.float32))
    with pytest.raises(fastrnn.FastRNNError, match=r"x.npy, row 0: .* is empty"):
        fastrnn.score(tmp_path / "x.npy", model, tmp_path / "out")
    found = fastrnn.score(tmp_path / "x.npy", model, tmp_path / "null", on_error="null")
    assert (found.rows, found.failed, pq.read_table(tmp_path / "null").num_rows) == (2, 2, 2)


@pytest.mark.parametrize("lengths", [[2.0, 2.5, 3.0], [[2], [1], [3]], ["2", "1", "3"]], ids=["real", "2-D", "text"])
def test_lengths_that_are_none(lengths, model, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4, 2), np.float32), lengths=np.array(lengths))
    with pytest.raises(fastrnn.FastRNNError, match=r"x.npz: lengths must be one whole number a row"):
        fastrnn.score(tmp_path / "x.npz", model, tmp_path / "out")


def test_two_columns_of_one_name(model, tmp_path):
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), score_rows.column(rows_of(3))], ["id", "id", "x"])
    pq.write_table(twice, tmp_path / "x.parquet")
    for options in ({}, {"columns": "all"}, {"columns": ["id"]}):
        with pytest.raises(fastrnn.FastRNNError, match="the data have two columns 'id': rename one"):
            fastrnn.score(tmp_path / "x.parquet", model, tmp_path / "out", **options)
    fastrnn.score(tmp_path / "x.parquet", model, tmp_path / "out", columns="none")


def test_a_column_of_the_data_has_the_name_of_that_of_errors(one, model, tmp_path):
    pq.write_table(table(rows_of(3), error=["mine"]), one)
    with pytest.raises(fastrnn.FastRNNError, match=r"two columns 'error'.*leave the column out .columns. or rename it"):
        fastrnn.score(one, model, tmp_path / "out", on_error="null")


def test_no_files(model, tmp_path):
    with pytest.raises(fastrnn.FastRNNError, match="no data: name a file"):
        fastrnn.score([], model, tmp_path / "out")


def test_a_record_that_is_something_else(one, model, tmp_path):
    for text in ("[]", "null", "3"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / parts.RECORD).write_text(text)
        with pytest.raises(fastrnn.FastRNNError, match="is damaged: begin anew"):
            fastrnn.score(one, model, tmp_path / "out")
    assert fastrnn.score(one, model, tmp_path / "out", restart=True).rows == 2


def test_a_file_that_is_damaged_in_its_middle_is_named(one, model, tmp_path):
    blob = bytearray(one.read_bytes())
    blob[4:60] = bytes(56)
    one.write_bytes(bytes(blob))
    with pytest.raises((fastrnn.FastRNNError, OSError), match=r"one.parquet"):
        fastrnn.score(one, model, tmp_path / "out")


def test_rows_that_repeat_themselves_take_no_more_memory(tmp_path):
    """Parquet keeps them in a few bytes; what a batch takes is what they are in memory."""
    flat = pa.array(np.zeros(400 * 100_000, np.float32))
    steps = pa.ListArray.from_arrays(pa.array(np.arange(401, dtype=np.int32) * 100_000), flat)
    pq.write_table(pa.table({"x": steps}), tmp_path / "x.parquet")
    (source,) = sources.sources_of(tmp_path / "x.parquet")
    (first, *_) = source.units(0, 1024, 1 << 16)
    assert first.batch * 100_000 * 4 <= sources.MOST_BYTES


def test_a_batch_that_arrow_cuts_in_two_is_refused(monkeypatch):
    """Arrow cuts columns of text at 2 GiB when it joins pieces."""
    batch = pa.RecordBatch.from_pydict({"id": [1, 2]})
    two = pa.Table.from_batches([batch, batch])
    assert sources.joined(two).num_rows == 4

    class Cut:
        num_rows = 4

        def combine_chunks(self):
            return two

    with pytest.raises(fastrnn.FastRNNError, match=r"4 rows.*more than one batch of Arrow holds.*--batch-rows"):
        sources.joined(Cut())


def test_two_writers_of_one_part_do_not_meet(tmp_path):
    """Of equal blocks in Ray, or a call that was sent again: each writes a file of its own, whole."""
    schema = pa.schema([("a", pa.int64())])
    batch = pa.RecordBatch.from_pydict({"a": [1]}, schema=schema)
    (tmp_path / "out").mkdir()
    folder, other = parts.Folder.joined(tmp_path / "out"), parts.Folder.joined(tmp_path / "out")

    def interrupted():
        yield batch
        other.write("part-0-0.parquet", schema, [batch], {})

    folder.write("part-0-0.parquet", schema, interrupted(), {})
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["part-0-0.parquet"]
    assert pq.read_table(tmp_path / "out" / "part-0-0.parquet").num_rows == 1


def test_a_column_that_can_not_fit_is_refused_before_the_folder_is_made(one, model, tmp_path):
    """Else the folder has the record of a run that can't go on, and refuses the right model."""
    with pytest.raises(fastrnn.FastRNNError, match="2 levels of lists; the column has 0"):
        fastrnn.score(one, model, tmp_path / "out", inputs={"x": "id"})
    assert not (tmp_path / "out").exists()


def test_folders_behind_links_count_once(one, tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for folder in (data / "a", tmp_path / "far"):
        (folder / "x.parquet").write_bytes(one.read_bytes())
    (data / "b").symlink_to(tmp_path / "far")
    assert [source.label for source in sources.sources_of(data)] == ["a/x.parquet", "b/x.parquet"]
    for target in (tmp_path / "far", data, data / "a"):
        (data / "c").symlink_to(target)
        with pytest.raises(fastrnn.FastRNNError, match="again, by a symbolic link: its rows would count twice"):
            sources.sources_of(data)
        (data / "c").unlink()


def test_a_folder_that_can_not_be_read_is_not_skipped(one, tmp_path, monkeypatch):
    def walk(top, onerror=None, **_):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "closed")))
        yield from ()

    monkeypatch.setattr(sources.os, "walk", walk)
    with pytest.raises(PermissionError, match="closed"):
        sources.sources_of(tmp_path)
