"""Writing results so that what has its final name is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block succeeds and vanishes if not.

    A job that is killed while it writes leaves no file under the final name.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(record: object) -> str:
    """JSON text; a number that JSON cannot hold is a bug and raises ValueError."""
    return json.dumps(record, allow_nan=False, indent=1)
