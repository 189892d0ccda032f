"""A fuzz target: whatever bytes a file holds, loading it ends in a model or in a FastRNNError.

    python tests/fuzz/fuzz_load.py -max_total_time=20 tests/fuzz/corpus

atheris (in the extra `test`, where it has wheels) makes the bytes. `one_input` is the target; test_fuzz_load.py feeds
it damaged copies of the seeds without atheris. A model that loads is run once on zeros, at batch 1 and one step.
"""

from __future__ import annotations

import contextlib
import sys

import numpy as np

LARGEST = 1 << 16  # elements of an input that is run


def one_input(data: bytes) -> bool:
    """Load the bytes and run what comes out; whether a model came out. Raises whatever must not leave a loader."""
    import fastrnn

    try:
        model = fastrnn.load(data)
    except fastrnn.FastRNNError:
        return False
    feeds = {}
    for info in model.inputs:
        shape = [d if isinstance(d, int) else 1 for d in info.dims]
        if np.prod(shape, dtype=np.float64) > LARGEST:
            return True
        feeds[info.name] = np.zeros(shape, info.dtype)
    with contextlib.suppress(fastrnn.FastRNNError):  # sizes that don't fit the graph, an index outside a table
        model.run(**feeds)
    return True


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["fastrnn"]):
        import fastrnn.importers.onnx
        import fastrnn.loading  # noqa: F401  (instrumented here, so that the loader's branches guide the bytes)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
