"""Reading configurations, and writing results so that what has its final name is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deepflow.errors import ConfigError, DeepFlowError

SET_ASIDE = ".unusable"
"""What the name of a result ends in that turned out to be none."""


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
        # The libraries that write tables put words of their own around the system's.
        why = os.strerror(error.errno) if error.errno else error
        raise DeepFlowError(f"{path} cannot be written: {why}") from None
    finally:
        # A path that cannot be written may be one that cannot be looked at either.
        with suppress(OSError):
            temporary.unlink()


MOST_BYTES = 2**24
"""The most that a configuration may have; one with more takes minutes to read, and gigabytes."""


def read_limited(path: str | Path) -> bytes:
    """The content of a configuration. Raises OSError, and ConfigError if it is too long."""
    with Path(path).open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError("is too long for a configuration", file=str(path), allowed="16 MiB")
    return content


def unusable(file: str | Path, error: Exception | None = None) -> DeepFlowError:
    """What to say of a result that could not be read, or (no ``error``) is of another sweep.

    Gives such a file another name, so that the next run makes it again without being told to;
    nothing is lost that somebody may want to look at.
    """
    if isinstance(error, FileNotFoundError):
        return DeepFlowError(f"{file} is missing; run the sweep again")
    problem = "was made from other settings" if error is None else "is damaged"
    aside = f"{file}{SET_ASIDE}"
    try:
        Path(file).replace(aside)
    except OSError:
        return DeepFlowError(f"{file} {problem}; delete it and run the sweep again")
    return DeepFlowError(f"{file} {problem} (it is now {aside}); run the sweep again")


def all_unusable(problems: Sequence[DeepFlowError]) -> DeepFlowError:
    """One error that stands for what ``unusable`` said of several files."""
    more = f" (and {len(problems) - 1} other files like it)" if len(problems) > 1 else ""
    return DeepFlowError(f"{problems[0]}{more}")


def to_json(record: object) -> str:
    """JSON text; a number that JSON cannot hold is a bug and raises ValueError."""
    return json.dumps(record, allow_nan=False, indent=1)
