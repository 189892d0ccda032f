"""`fastrnn.ray.score`: a dataset or files, on actors; the same answers and files as `fastrnn.score`."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import score_rows

import fastrnn

pytest.importorskip("pandas", reason="ray.data needs pandas: pip install 'fastrnn[ray]'")
ray = pytest.importorskip(
    "ray", reason="ray is not installed, or has no wheel for this Python: pip install 'fastrnn[ray]'"
)

# Ray's own code warns, of its files and sockets too.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.any_isa, pytest.mark.ray]
ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "examples" / "tone_words.onnx"


@pytest.fixture(scope="module")
def cluster():
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "score")]), "FASTRNN_TUNE": "off"}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": env})
    import_module("ray.data")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def example():
    return fastrnn.load(MODEL, threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = [rng.standard_normal((n, 20)).astype(np.float32) for n in rng.integers(1, 50, 180)]
    for name, start, stop in (("a", 0, 110), ("b", 110, 180)):
        table = pa.table({"id": range(start, stop), "bands": score_rows.column(rows[start:stop])})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=40)
    return folder, rows


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_dataset_gets_the_answers_of_each_row(cluster, data, example):
    folder, rows = data
    source = ray.data.read_parquet(str(folder))
    answers = fastrnn.ray.score(source, str(MODEL), num_cpus=2, actors=1, batch_rows=32, outputs={"words": "y"})
    found = {r["id"]: r["y"] for r in answers.take_all()}
    assert sorted(found) == list(range(180))
    for i, row in enumerate(rows):
        assert np.array_equal(np.stack([np.asarray(v, np.float32) for v in found[i]]), example(row[None])[0])


def test_tensors_of_one_and_of_many_shapes(cluster, data, example):
    x = np.random.default_rng(1).standard_normal((12, 7, 20)).astype(np.float32)
    found = fastrnn.ray.score(ray.data.from_numpy(x), example, actors=1).take_all()
    got = sorted(np.asarray(np.stack(r["words"]), np.float32).tobytes() for r in found)
    assert got == sorted(y.tobytes() for y in example(x))
    rows = data[1][:9]
    source = ray.data.from_items([{"id": i, "bands": row} for i, row in enumerate(rows)])
    found = fastrnn.ray.score(source, example, actors=1).take_all()
    assert len(found) == 9
    for r in found:
        assert np.array_equal(np.asarray(np.stack(r["words"]), np.float32), example(rows[r["id"]][None])[0])


def test_a_bad_row_is_named(cluster, example):
    rows = [np.zeros((3, 20), np.float32) for _ in range(6)]
    rows[4][1, 1] = np.nan
    source = ray.data.from_items([{"id": 10 + i, "bands": row.tolist()} for i, row in enumerate(rows)])
    with pytest.raises(Exception, match=r"\(id 14\): column 'bands' holds NaN"):
        fastrnn.ray.score(source, example, actors=1, cast=True).take_all()
    found = fastrnn.ray.score(source, example, actors=1, cast=True, on_error="null").take_all()
    assert [r["id"] for r in found if r["words"] is None] == [14]


def test_files_are_those_of_one_machine(cluster, data, example, tmp_path):
    shared = {"part_rows": 50, "batch_rows": 16, "columns": ["id"]}
    fastrnn.score(data[0], example, tmp_path / "one", **shared)
    seen = []
    found = fastrnn.ray.score(
        data[0], example, tmp_path / "ray", progress=lambda share, text: seen.append(share), **shared
    )
    assert files(tmp_path / "ray") == files(tmp_path / "one")
    assert (found.rows, found.scored, found.resumed, found.parts) == (180, 180, 0, 5)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    (tmp_path / "ray" / "part-00000-000000000064.parquet").unlink(missing_ok=True)
    (tmp_path / "ray" / "part-00001-000000000000.parquet").unlink()
    # Either one goes on with what the other has begun.
    assert fastrnn.score(data[0], example, tmp_path / "ray", **shared).resumed < 5
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def test_an_actor_that_dies_loses_no_part(cluster, data, example, tmp_path, monkeypatch):
    from fastrnn.ray import scoring

    shared = {"part_rows": 20, "batch_rows": 16}
    fastrnn.score(data[0], example, tmp_path / "one", **shared)
    monkeypatch.setattr(scoring, "_Writer", dying(tmp_path / "died"))
    fastrnn.ray.score(data[0], example, tmp_path / "ray", actors=2, **shared)
    assert (tmp_path / "died").exists()
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def dying(mark):
    """A writer whose process ends in the middle of its second part, once."""
    from fastrnn.ray.scoring import _Writer

    class Dying(_Writer):
        def write(self, unit):
            if unit.start and not mark.exists():
                mark.touch()
                (self.folder.path / ".part-00000-000000000020.parquet.0.partial").touch()  # half of it is on the disk
                answers = self.job._answers
                self.job._answers = lambda unit, tell: (
                    b if i < 1 else os._exit(1) for i, b in enumerate(answers(unit, tell))
                )
            return super().write(unit)

    return Dying


def test_blocks_are_parts_and_are_found_again(cluster, data, example, tmp_path):
    rows = [{"id": i, "bands": row} for i, row in enumerate(data[1][:60])]

    def source():
        return ray.data.from_items(rows, override_num_blocks=6)

    whole = fastrnn.ray.score(source(), example, tmp_path / "whole", batch_rows=16, actors=1)
    assert (whole.rows, whole.scored, whole.resumed) == (60, 60, 0)
    assert whole.parts == 6
    tables = [pq.read_table(p) for p in sorted((tmp_path / "whole").glob("part-*"))]
    assert pa.concat_tables(tables)["id"].to_pylist() == list(range(60))
    again = fastrnn.ray.score(source(), example, tmp_path / "whole", batch_rows=16, actors=1)
    assert (again.scored, again.resumed) == (0, 6)
    # As a run leaves it that was killed: some parts, not numbered yet.
    (tmp_path / "half").mkdir()
    for path in list((tmp_path / "whole").iterdir()):
        if path.name.startswith("part-0000000") and int(path.name[5:13]) % 2:
            name = f"part-new-{path.name.rpartition('-')[2]}"
            (tmp_path / "half" / name).write_bytes(path.read_bytes())
        elif path.name.startswith("_"):
            (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    half = fastrnn.ray.score(source(), example, tmp_path / "half", batch_rows=16, actors=1)
    assert half.resumed == 3
    assert files(tmp_path / "half") == files(tmp_path / "whole")
    # Other data leave parts that belong to none of its blocks.
    other = ray.data.from_items(rows[:7], override_num_blocks=1)
    with pytest.raises(fastrnn.FastRNNError, match="made from other data"):
        fastrnn.ray.score(other, example, tmp_path / "half", batch_rows=16, actors=1)


def test_equal_blocks_are_parts_of_their_own(cluster, example, tmp_path):
    rows = [{"bands": [[1.0] * 20]}] * 4
    source = ray.data.from_items(rows, override_num_blocks=4)
    found = fastrnn.ray.score(source, example, tmp_path / "out", cast=True, actors=1)
    assert found.parts == 4
    assert pq.read_table(tmp_path / "out").num_rows == 4


def test_what_does_not_fit_is_refused(cluster, data, example, tmp_path):
    with pytest.raises(fastrnn.FastRNNError, match="files are scored into files"):
        fastrnn.ray.score(data[0], example)
    with pytest.warns(fastrnn.FastRNNWarning, match="4 actors of 1 CPUs leave none of the cluster's 4"):
        fastrnn.ray.score(ray.data.read_parquet(str(data[0])), example, actors=4)
    with pytest.raises(fastrnn.FastRNNError, match="num_cpus must be an int"):
        fastrnn.ray.score(data[0], example, tmp_path, num_cpus=0)
    bad = pa.table({"bands": pa.array([[[0.0] * 20], None], pa.list_(pa.list_(pa.float32())))})
    pq.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(fastrnn.scoring.BadRow, match=r"^bad.parquet, row 1: column 'bands' is null"):
        fastrnn.ray.score(tmp_path / "bad.parquet", example, tmp_path / "out")
