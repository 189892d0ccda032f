"""Named arrays of an .npz file, or of a dict, for a list of layers. Nothing in them is unpickled."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from ...errors import ModelFormatError
from .weights import NamedWeights, unwrapped

_MOST_GROWTH = 200  # unpacked bytes per byte of the file
_FREE_BYTES = 1 << 24  # any file may unpack to this many bytes


def is_npz(blob: bytes) -> bool:
    """Whether bytes are a zip of .npy files."""
    return blob.startswith(b"PK") and b".npy" in blob[:4096] and b"/data.pkl" not in blob


def read(source) -> NamedWeights:
    """The arrays of an .npz (a path or bytes) or of a dict of arrays or tensors.

    Names are those of PyTorch (rnn.weight_ih_l0) or Keras (lstm/kernel). Raises ModelFormatError for anything else.
    """
    if isinstance(source, Mapping):
        where, arrays = "the dict", {name: _array(name, value) for name, value in source.items()}
        keras = any("/" in name for name in arrays)
    else:
        blob = isinstance(source, bytes | bytearray | memoryview)
        where = "bytes" if blob else str(source)
        arrays = _unpacked(io.BytesIO(bytes(source)) if blob else source, where)
        keras = any("/" in name for name in arrays)
    if not arrays:
        raise ModelFormatError(f"{where}: it holds no arrays")
    arrays, notes = unwrapped(arrays)
    return NamedWeights(arrays, where, notes, parts=keras)


def _array(name, value) -> np.ndarray:
    if not isinstance(name, str):
        raise ModelFormatError(f"a dict of arrays has the key {name!r:.40}, expected a name such as rnn.weight_ih_l0")
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    found = np.asarray(value)
    if found.dtype.kind not in "fiub":
        text = "take one of the dicts in it" if isinstance(value, Mapping) else "expected an array of numbers"
        raise ModelFormatError(f"{name} is {type(value).__name__}: {text}")
    return found


def _unpacked(file, where: str) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(info.compress_size for info in archive.infolist())
            if sum(info.file_size for info in archive.infolist()) > _FREE_BYTES + _MOST_GROWTH * size:
                raise ModelFormatError(f"{where}: its arrays unpack to more than they can be")
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelFormatError(f"{where}: not an .npz file of numbers, or a damaged one ({error!s:.160})") from None
    except (TypeError, SyntaxError, MemoryError, OverflowError) as error:
        raise ModelFormatError(f"{where}: a damaged .npz file ({type(error).__name__})") from None
    wrong = [name for name, a in found.items() if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub"]
    if wrong:
        raise ModelFormatError(f"{where}: {wrong[0]} is not an array of numbers")
    return found
