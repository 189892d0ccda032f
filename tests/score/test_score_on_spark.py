"""`fastrnn.spark.score` on local[2]: the answers of each row, by mapInArrow."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import score_rows

import fastrnn

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'fastrnn[spark]'")
if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
    pytest.skip("Spark needs Java, and there is none in PATH or JAVA_HOME", allow_module_level=True)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.any_isa]
ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "examples" / "tone_words.onnx"


@pytest.fixture(scope="module")
def spark():
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("FASTRNN_TUNE", "off")
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        session = (
            SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", "16")
            .config("spark.driver.memory", "1g")
            .getOrCreate()
        )
        yield session
        session.stop()


@pytest.fixture(scope="module")
def example():
    return fastrnn.load(MODEL, threads=1)


def test_each_row_gets_its_answers(spark, example, tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, 20)).astype(np.float32) for n in rng.integers(1, 40, 70)]
    table = pa.table({"id": range(70), "who": ["a"] * 70, "bands": score_rows.column(rows)})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=20)
    frame = spark.read.parquet(str(tmp_path / "d.parquet")).repartition(2)
    answers = fastrnn.spark.score(frame, str(MODEL), columns=["id"], outputs={"words": "y"})
    assert answers.columns == ["id", "y"]
    found = {r["id"]: np.asarray(r["y"], np.float32) for r in answers.collect()}
    assert sorted(found) == list(range(70))
    for i, row in enumerate(rows):
        assert np.array_equal(found[i], example(row[None])[0]), i


def test_bad_rows(spark, example):
    rows = [(7, [[0.5] * 20]), (8, [[float("nan")] * 20]), (9, None)]
    frame = spark.createDataFrame(rows, "id int, bands array<array<float>>")
    found = {r["id"]: r for r in fastrnn.spark.score(frame, example, on_error="null").collect()}
    assert [found[i]["error"] for i in (7, 8, 9)] == [None, "column 'bands' holds NaN", "column 'bands' is null"]
    assert found[8]["words"] is None
    assert np.array_equal(np.asarray(found[7]["words"], np.float32), example(np.full((1, 1, 20), 0.5, np.float32))[0])
    with pytest.raises(Exception, match=r"BadRow: row \d of the batch \(id 8\): column 'bands' holds NaN"):
        fastrnn.spark.score(frame.filter("id < 9"), example).collect()
    with pytest.raises(fastrnn.FastRNNError, match="column 'nope' is not in the data"):
        fastrnn.spark.score(frame, example, inputs={"bands": "nope"})
