"""The errors of fastrnn; all derive from `FastRNNError`.

A message says where (file, node, argument), what was found and what was expected. Files that are missing or can't be
read or written raise Python's own `OSError`, such as `FileNotFoundError`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class FastRNNError(Exception):
    """Base class of the errors of fastrnn."""


class FastRNNWarning(UserWarning):
    """An option of the caller may change answers, such as `strict=False` at load. The text names node and value."""


class ModelFormatError(FastRNNError, ValueError):
    """A file or its bytes are damaged, truncated, hostile, or not of the claimed format."""


class UnsupportedError(FastRNNError, NotImplementedError):
    """A valid model uses something that fastrnn does not support.

    Parameters
    ----------
    problems : list of str
        One line per problem. One error reports all problems of a file.
    where : str
        The file or object that was read.
    """

    def __init__(self, problems: str | Iterable[str], where: str = "") -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        self.where: str = where
        head = f"{where}: " if where else ""
        if len(self.problems) == 1:
            text = head + self.problems[0]
        else:
            lines = "\n".join(f"  - {p}" for p in self.problems)
            text = f"{head}{len(self.problems)} things are not supported:\n{lines}"
        super().__init__(text)


class ShapeError(FastRNNError, ValueError):
    """An array has the wrong shape or dtype, or the dims of a graph contradict each other."""


class StateError(FastRNNError, ValueError):
    """A state is missing, ambiguous, damaged or of another model, a slot is not open, or a pool is full."""


class StreamError(FastRNNError, RuntimeError):
    """The model can't be streamed (the text names the node), or a stream is used incorrectly."""


class FastRNNMemoryError(FastRNNError, MemoryError):
    """Memory ran out. States are those before the call, and an old file that was to be written is unchanged."""


MOST_CLAIMED = 1 << 38  # bytes of one array; a file that needs more is damaged or hostile


def out_of_memory(error: MemoryError, what: str) -> FastRNNMemoryError:
    """The error to raise for this one. what: what the memory was for."""
    if isinstance(error, FastRNNMemoryError):
        return error
    detail = f" ({error})" if str(error) else ""
    advice = "free some, or raise the limit of the process or container"
    return FastRNNMemoryError(f"{what}: not enough memory{detail}: {advice}")


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turn a MemoryError into a FastRNNMemoryError. what: what the memory is for."""
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(error, what) from None


def claims_too_much(error: BaseException) -> bool:
    """Whether NumPy refused an array that is so large that the file must be wrong, not the machine too small."""
    return isinstance(error, MemoryError) and getattr(error, "_total_size", 0) > MOST_CLAIMED
