"""Whether fastrnn gives the same bits in every way to compute a case, and with every instruction set.

Nothing is timed. Each entrant answers by single rows, batches, other places in a batch, chunks, whole runs, a pool, two
threads and with pauses; the engine returns a digest of each. All digests of an entrant must be equal. In reduced
precision those of all instruction sets must be equal too; in float32 each instruction set has an order of sums of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import entrants
from .process import WorkerError

SECONDS = 300.0


def run(bench, names: Sequence[str], job: Mapping) -> dict[str, dict]:
    """Ask every entrant; name -> its result. An instruction set that does not start here is left out."""
    results: dict[str, dict] = {}
    for name in names:
        bench.advance(1, f"{job['id']}: {name}")
        if bench.worker(name) is None:
            continue
        try:
            asked = {**job, "precision": entrants.find(name).precision}
            ways = bench.ask(name, "bits", SECONDS, job=asked)["ways"]
            results[name] = {"status": "ok", "ways": ways, "trials": {}, "cpu_share": None}
        except WorkerError as error:
            results[name] = {"status": "refused", "reason": str(error)}
    compare(results)
    return results


def compare(results: Mapping[str, dict]) -> None:
    """Mark as "wrong" every entrant with different bits, with the ways or the entrant that it differs from."""
    first: dict[str, tuple[str, str]] = {}
    for name, result in results.items():
        if result["status"] != "ok":
            continue
        digest = next(iter(result["ways"].values()))
        different = [way for way, other in result["ways"].items() if other != digest]
        precision = entrants.find(name).precision
        against, expected = first.setdefault(precision, (name, digest))
        if different:
            reason = f"{', '.join(different)}: other bits than {next(iter(result['ways']))}"
            result.update(status="wrong", reason=reason)
        elif precision != entrants.FLOAT32 and digest != expected:
            result.update(status="wrong", reason=f"other bits than {against}")


def verdict(results: Mapping[str, dict]) -> str:
    """ "same", or "wrong" if an entrant has other bits or gave no answer."""
    if not results:
        return "no answer"
    return "same" if all(result["status"] == "ok" for result in results.values()) else "wrong"
