"""How one configuration key is described: its unit, range, choices and meaning.

The dataclasses in ``hardware.py`` and ``model.py`` are the single place where keys are
declared; loading, validation, the JSON Schema and the reference documentation all read
these descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any

from deepflow.record import record


@record(frozen=True)
class Option:
    """Description of one key. Bounds are inclusive and in SI units (see ``unit``).

    ``plausible`` is a narrower range outside which a value is taken for a missing unit.
    ``aliases`` are other spellings accepted in files, the original tool's names included.
    """

    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    plausible: tuple[float, float] | None = None
    choices: tuple[Any, ...] | None = None
    aliases: tuple[str, ...] = ()
    key: str = ""


def option(
    doc: str,
    default: Any = MISSING,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    plausible: tuple[float, float] | None = None,
    choices: Sequence[Any] | None = None,
    aliases: Sequence[str] = (),
    key: str = "",
) -> Any:
    """A dataclass field that carries an ``Option``; without ``default`` the key is required."""
    described = Option(
        doc,
        unit,
        minimum,
        maximum,
        above,
        plausible,
        tuple(choices) if choices is not None else None,
        tuple(aliases),
        key,
    )
    if default is MISSING:
        return field(metadata={"option": described})
    return field(default=default, metadata={"option": described})
