"""The error tree: everything fastrnn raises on purpose derives from `FastRNNError`.

A message says where (file, node, argument), what it got and what it expected.
"""


class FastRNNError(Exception):
    """Base of all errors that fastrnn raises on purpose."""


class FastRNNWarning(UserWarning):
    """A choice of the caller may change answers, such as `strict=False` at load; the text names node and value."""


class ModelFormatError(FastRNNError, ValueError):
    """A file or blob is damaged, truncated, hostile, or not what its name claims."""


class UnsupportedError(FastRNNError, NotImplementedError):
    """A valid model uses something fastrnn does not run.

    Parameters
    ----------
    problems : list of str
        One line a finding; all findings of a file are reported in one error.
    where : str
        The file (or object) that was being read.
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
    """An array has the wrong shape or dtype, or dims of a graph contradict each other."""


class StateError(FastRNNError, ValueError):
    """A state is missing, ambiguous, damaged, or does not belong to the model; a pool is full."""


class StreamError(FastRNNError, RuntimeError):
    """The model can't be streamed (the text names the node), or a stream is used wrongly."""
