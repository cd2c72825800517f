"""The errors of noetherflow: a handful of classes under one base, each carrying its data as attributes."""

from typing import Any


class NoetherflowError(Exception):
    """Base of every error raised on purpose.

    A message says what failed, what was got, what was expected and what to do. What the message speaks of is kept as data, so that
    a caller need not read the message. Instances survive pickling (they cross process borders in sweeps) if their data do.

    Parameters
    ----------
    message
        The sentence shown to the user.
    **data
        Facts about the failure; each becomes an attribute, and all of them stand in `data`.

    Examples
    --------
    >>> error = GraphError("Node 'fc' has no input. Connect one before deriving.", node="fc")
    >>> str(error), error.data["node"]
    ("Node 'fc' has no input. Connect one before deriving.", 'fc')
    """

    data: dict[str, Any]

    def __init__(self, message: str, /, **data: Any) -> None:
        super().__init__(message)
        self.data = data
        # Straight into __dict__, which is also what pickling restores.
        self.__dict__.update(data)


class GraphError(NoetherflowError):
    """An architecture graph is malformed, or asks for an operation or shape that it cannot have."""


class TraceError(NoetherflowError):
    """A module could not be turned into an architecture graph."""


class RuleError(NoetherflowError):
    """A learning rule is unknown, incomplete or given impossible hyper-parameters."""


class DataError(NoetherflowError):
    """A data set is missing, damaged, or too small for what was asked of it."""


class ModelError(NoetherflowError):
    """A model was asked for with a name or sizes that it cannot have."""


class RunError(NoetherflowError):
    """A training run could not be started, watched or continued."""


class ReportError(NoetherflowError):
    """A report was asked for something that it does not hold."""


class SourceError(NoetherflowError):
    """A citation key is not in the bibliography, or the bibliography is malformed."""
