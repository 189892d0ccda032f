"""The errors of fastrnn; all derive from `FastRNNError`.

A message says where (file, node, argument), what was found and what was expected. Files that are missing or can't be
read or written raise Python's own `OSError`, such as `FileNotFoundError`.
"""


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

    def __init__(self, problems, where=""):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.where = where
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
