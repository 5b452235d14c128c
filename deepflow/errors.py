"""The two ways a prediction can fail for a reason that is the user's to mend.

Both carry one readable line. The command line prints it and exits 1; a sweep turns
``InfeasiblePoint`` into a row with a status, because an impossible combination in the
middle of a grid is a result and not a mistake.
"""

from __future__ import annotations

import reprlib


class DeepFlowError(Exception):
    """Base of every error that DeepFlow raises on purpose; ``str(error)`` is one line."""


class ConfigError(DeepFlowError):
    """Bad input: names the file, the key, the value and what is allowed.

    Parameters are kept as attributes so that callers can report them separately.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str = "",
        key: str = "",
        value: object = None,
        allowed: str = "",
    ) -> None:
        self.problem, self.file, self.key, self.value, self.allowed = (
            problem,
            file,
            key,
            value,
            allowed,
        )
        where = ": ".join(part for part in (file, key) if part)
        shown = "" if value is None else f" = {_shorten(value)}"
        text = f"{where}{shown}: {problem}" if where else problem
        if allowed:
            text += f" (allowed: {allowed})"
        super().__init__(" ".join(text.split()))


class InfeasiblePoint(DeepFlowError):
    """A well-formed point that cannot exist, e.g. layers that do not divide into stages.

    ``status`` is the machine-readable reason class that lands in the result row.
    """

    def __init__(self, reason: str, status: str = "infeasible") -> None:
        self.status = status
        super().__init__(reason)


def _shorten(value: object, limit: int = 80) -> str:
    # Values that YAML's aliases share can be endless when they are written out.
    text = reprlib.repr(value) if isinstance(value, dict | list | tuple) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
