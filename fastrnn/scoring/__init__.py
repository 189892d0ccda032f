"""Bulk scoring: a model over files of whole sequences, on one machine, in Ray Data or in Spark.

columns.py   Arrow columns as rows of NumPy, and back
running.py   rows of different lengths through a model
scorer.py    `Scorer`: a record batch in, a record batch out; all of Ray, Spark and the command run it
sources.py   data files, their parts and fingerprints
parts.py     the folder of answers: whole parts, and the record by which a run goes on
beside.py    threads that read ahead and write behind
files.py     `score`: files to files
shipping.py  a scorer in other processes
"""

from __future__ import annotations

try:
    import pyarrow  # noqa: F401
except ImportError:
    raise ImportError("bulk scoring needs the pyarrow package: pip install 'fastrnn[score]'") from None

from .files import ScoreReport, score
from .scorer import BadRow, Scorer

__all__ = ["BadRow", "ScoreReport", "Scorer", "score"]
