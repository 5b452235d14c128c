"""Numbers for people: a power of 1000 and the unit's prefix for it."""

from __future__ import annotations

import math

_PREFIXED = {"s", "bytes", "bytes/s", "FLOP", "FLOP/s", "1/s", "J", "W", "Hz", "bit/s"}


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """(factor, unit): the power of 1000 below ``value``, and ``unit`` with its prefix.

    Units that take none, and "", have the factor 1.
    """
    short = unit.replace("bytes", "B")
    if unit not in _PREFIXED or not math.isfinite(value) or value == 0:
        return 1.0, short
    power = max(-4, min(6, math.floor(math.log10(abs(value)) / 3 + 1e-9)))
    if unit == "s":
        power = min(power, 0)
    prefix = ["p", "n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power + 4]
    return 1000.0**power, prefix + (short.removeprefix("1") if prefix else short)
