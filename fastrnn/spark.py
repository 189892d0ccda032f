"""Bulk scoring in Spark: `score(frame, model)` is a DataFrame with the model's outputs.

    import fastrnn.spark
    answers = fastrnn.spark.score(spark.read.parquet("calls"), "model.fastrnn", columns=["id"])
    answers.write.parquet("scores")

Rows, columns and options are those of `fastrnn score` and of `fastrnn.score`, and so are the answers. fastrnn must be
installed on the executors. Needs pyspark and Java: pip install 'fastrnn[spark]'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import FastRNNError
from .scoring import Scorer
from .scoring.shipping import Shipped

if TYPE_CHECKING:
    from .model import Model

__all__ = ["score"]


def score(
    frame: Any,
    model: Model | str | os.PathLike[str],
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Sequence[str] | Mapping[str, str] | None = None,
    columns: str | Sequence[str] = "rest",
    on_error: str = "fail",
    cast: bool = False,
    allow_nan: bool = False,
    threads: int | None = None,
) -> Any:
    """The rows of a DataFrame with a model's outputs, by `mapInArrow`; lazy, as everything in Spark.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame; a row is a whole sequence, such as array<array<float>>
    model : Model, or the path of a file on the driver; its bytes go to the executors
    threads : of a task; None: `spark.task.cpus`
    inputs, outputs, columns, on_error, cast, allow_nan : as of `fastrnn.Scorer`

    Raises
    ------
    FastRNNError : the columns don't fit the model. A bad row ends the job with a `BadRow`, unless on_error is "null".
    """
    try:
        from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
    except ImportError as error:
        raise FastRNNError(f"fastrnn.spark needs pyspark ({error}): pip install 'fastrnn[spark]'") from None
    if threads is None:
        threads = int(frame.sparkSession.sparkContext.getConf().get("spark.task.cpus", "1"))
    scorer = Scorer(
        model, inputs=inputs, outputs=outputs, columns=columns, threads=threads, on_error=on_error, cast=cast,
        allow_nan=allow_nan,
    )  # fmt: skip
    schema = scorer.schema(to_arrow_schema(frame.schema))
    shipped, count = Shipped(scorer), scorer.threads

    def answers(batches: Iterator[Any]) -> Iterator[Any]:
        return shipped.answers(batches, count)

    return frame.mapInArrow(answers, from_arrow_schema(schema))
