"""Try the fastrnn that is installed: run by build_wheels.py in an environment of its own, on each instruction set.

    python tools/wheel_trial.py MODEL.fastrnn > digest.json

Imports every extension, loads the model with nothing but NumPy, and steps, pushes, pools, snapshots and saves it. All
ways of running must give the same bits. Prints JSON: the instruction sets, a digest of those bits, and whether there
is an OpenMP library.
"""

import hashlib
import importlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

import fastrnn


def extensions() -> list[str]:
    """Names of all modules of the distribution that are compiled."""
    files = [file for file in metadata.files("fastrnn") or () if file.suffix == ".so"]
    return [".".join([*file.parent.parts, file.name.split(".")[0]]) for file in files]


def same(what: str, ours, expected) -> None:
    if ours.tobytes() != expected.tobytes():
        raise SystemExit(f"{what} gave other bits than a whole run")


def main() -> None:
    where = Path(fastrnn.__file__).resolve().parent
    if where.parent != Path(metadata.distribution("fastrnn").locate_file("")).resolve():
        raise SystemExit(f"fastrnn was imported from {where}, not from the wheel that is installed")
    if fastrnn.__version__ != metadata.version("fastrnn"):
        raise SystemExit(f"fastrnn.__version__ is {fastrnn.__version__}, installed is {metadata.version('fastrnn')}")
    names = extensions()
    if len(names) < 10:
        raise SystemExit(f"the wheel has {len(names)} extensions, expected at least 10")
    with_openmp = True
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if name != "fastrnn.machine._openmp" or "libgomp" not in str(error):
                raise
            with_openmp = False  # the machine has no libgomp, and the package must do without

    model = fastrnn.load(sys.argv[1])
    features = model.inputs[0].dims[-1]
    x = np.random.default_rng(1).standard_normal((1, 50, features)).astype(np.float32)
    whole = model(x)
    stream = model.stream()
    same("a stream", np.stack([stream.step(row) for row in x[0]]), whole[0])
    stream.reset()
    half = stream.push(x[0, :25])
    blob = stream.snapshot()
    other = model.stream()
    other.restore(blob)
    same("a restored stream", np.concatenate([half, other.push(x[0, 25:])]), whole[0])
    pool = model.pool(capacity=3)
    slots = [pool.open(), pool.open()]
    both = np.stack([pool.step(slots, np.stack([row, row])) for row in x[0]])
    same("a pool", both[:, 1], whole[0])
    model.save("again.fastrnn")
    same("the saved file", fastrnn.load("again.fastrnn")(x), whole)

    loaded = [name for name in ("onnx", "h5py", "rich", "safetensors", "torch") if name in sys.modules]
    if loaded:
        raise SystemExit(f"a .fastrnn file needed {', '.join(loaded)}")
    isa = fastrnn.cpu_info().isa
    forced = os.environ.get("FASTRNN_ISA", isa.active)
    if isa.active != forced:
        raise SystemExit(f"the instruction set is {isa.active}, asked for was {forced}")
    digest = hashlib.sha256(whole.tobytes()).hexdigest()
    print(json.dumps({"available": list(isa.available), "digest": digest, "openmp": with_openmp}))


if __name__ == "__main__":
    main()
