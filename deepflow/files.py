"""Writing results so that what has its final name is complete, and errors of those that are not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepflow.errors import DeepFlowError


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block succeeds and vanishes if not.

    A job that is killed while it writes leaves no file under the final name. Raises
    DeepFlowError, naming ``path``, if nothing can be written there.
    """
    final = Path(path)
    if not final.name:
        raise DeepFlowError(f"'{path}' cannot be written: it names no file")
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(final)
    except OSError as error:
        # An error that names another file, such as an input, is not about this one.
        if error.filename not in (None, str(temporary), str(final.parent)):
            raise
        raise DeepFlowError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        # A path that cannot be written may be one that cannot be looked at either.
        with suppress(OSError):
            temporary.unlink()


def unusable(file: str | Path, error: Exception | None = None) -> DeepFlowError:
    """What to say of a result that could not be read, or (no ``error``) is of another sweep."""
    if isinstance(error, FileNotFoundError):
        return DeepFlowError(f"{file} is missing; run the sweep again")
    problem = "was made from other settings" if error is None else "is damaged"
    return DeepFlowError(f"{file} {problem}; delete it and run the sweep again")


def to_json(record: object) -> str:
    """JSON text; a number that JSON cannot hold is a bug and raises ValueError."""
    return json.dumps(record, allow_nan=False, indent=1)
