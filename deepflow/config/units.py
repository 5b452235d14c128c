"""Quantities in configuration files: SI numbers, or text with a unit.

A plain number is in the key's own SI unit. Text is a decimal number followed by one of the
units below; unit names are case-sensitive, because ``Gb`` and ``GB`` differ by eight.

=============  =====================================================================
key in         accepted text
=============  =====================================================================
``bytes``      ``B KB MB GB TB PB`` and ``KiB MiB ...``: powers of 1024, both spellings;
               ``b Kb Mb Gb ...``: bits, powers of 1024, divided by 8
``bytes/s``    ``B/s KB/s MB/s GB/s ...``: powers of 1000, as on data sheets;
               ``KiB/s MiB/s GiB/s ...``: powers of 1024;
               ``b/s Kb/s Mb/s Gb/s ...`` (also ``Gbit/s``, ``Gbps``): bits, powers of
               1000, divided by 8;
               the capacity units without ``/s``: powers of 1024 per second, the meaning
               that files of the original tool rely on (``1986 GB`` is 1986 * 2^30)
``bit/s``      ``b/s Kb/s Mb/s Gb/s ...`` (also ``Gbit/s``, ``Gbps``): powers of 1000
``s``          ``s ms us µs ns ps``
``Hz``         ``Hz kHz MHz GHz THz``
``W``          ``W kW mW uW µW nW pW``
``V``          ``V mV``
``mm2``        ``mm2 mm^2 mm² cm2 um2 µm2``
``J/bit``      ``J/bit nJ/bit pJ/bit fJ/bit aJ/bit``
``W/bit``      ``W/bit mW/bit uW/bit µW/bit nW/bit pW/bit fW/bit``
``mm2/bit``    ``mm2/bit mm^2/bit mm²/bit um2/bit µm2/bit``
``FLOP/cycle`` ``FLOP/cycle``
=============  =====================================================================

``K`` may be written ``k``. The conversion is exact decimal arithmetic rounded once, so that
``"5 us"`` and ``5e-6`` are the same number and give the same result digest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal

from deepflow.errors import ConfigError

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*(\S*)\s*", re.ASCII)
_PREFIXES = {"": 0, "K": 1, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_BITS_PER_BYTE = 8


def _capacities() -> dict[str, Decimal]:
    table = {"bytes": Decimal(1)}
    for prefix, power in _PREFIXES.items():
        factor = Decimal(1024) ** power
        for infix in ("", "i") if prefix else ("",):
            table[f"{prefix}{infix}B"] = factor
            table[f"{prefix}{infix}b"] = factor / _BITS_PER_BYTE
        table[f"{prefix}bit"] = factor / _BITS_PER_BYTE
    return table


def _bit_rates() -> dict[str, Decimal]:
    table = {}
    for prefix, power in _PREFIXES.items():
        for spelling in ("b/s", "bit/s", "bps"):
            table[prefix + spelling] = Decimal(1000) ** power
    return table


def _bandwidths() -> dict[str, Decimal]:
    table = {"bytes/s": Decimal(1)}
    for prefix, power in _PREFIXES.items():
        table[f"{prefix}B/s"] = Decimal(1000) ** power
        if prefix:
            table[f"{prefix}iB/s"] = Decimal(1024) ** power
    for unit, rate in _bit_rates().items():
        table[unit] = rate / _BITS_PER_BYTE
    return table | _capacities()


def _scaled(units: dict[str, str]) -> dict[str, Decimal]:
    return {unit: Decimal(factor) for unit, factor in units.items()}


_UNITS: dict[str, dict[str, Decimal]] = {
    "bytes": _capacities(),
    "bytes/s": _bandwidths(),
    "bit/s": _bit_rates(),
    "s": _scaled(
        {"s": "1", "ms": "1e-3", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ns": "1e-9"}
        | {"ps": "1e-12"}
    ),
    "Hz": _scaled({"Hz": "1", "kHz": "1e3", "MHz": "1e6", "GHz": "1e9", "THz": "1e12"}),
    "W": _scaled(
        {"W": "1", "kW": "1e3", "mW": "1e-3", "uW": "1e-6", "µW": "1e-6", "μW": "1e-6"}
        | {"nW": "1e-9", "pW": "1e-12"}
    ),
    "V": _scaled({"V": "1", "mV": "1e-3"}),
    "mm2": _scaled(
        {"mm2": "1", "mm^2": "1", "mm²": "1", "cm2": "100", "um2": "1e-6", "µm2": "1e-6"}
        | {"μm2": "1e-6"}
    ),
    "J/bit": _scaled(
        {"J/bit": "1", "nJ/bit": "1e-9", "pJ/bit": "1e-12", "fJ/bit": "1e-15", "aJ/bit": "1e-18"}
    ),
    "W/bit": _scaled(
        {"W/bit": "1", "mW/bit": "1e-3", "uW/bit": "1e-6", "µW/bit": "1e-6", "μW/bit": "1e-6"}
        | {"nW/bit": "1e-9", "pW/bit": "1e-12", "fW/bit": "1e-15"}
    ),
    "mm2/bit": _scaled(
        {"mm2/bit": "1", "mm^2/bit": "1", "mm²/bit": "1", "um2/bit": "1e-6", "µm2/bit": "1e-6"}
        | {"μm2/bit": "1e-6"}
    ),
    "FLOP/cycle": _scaled({"FLOP/cycle": "1"}),
}

UNIT_EXAMPLES = {
    "bytes": "'80 GB' (binary), '80 GiB'",
    "bytes/s": "'2.0 TB/s' (decimal), '900 GiB/s', '400 Gb/s' (bits), '1986 GB' (binary)",
    "bit/s": "'20 Gb/s'",
    "s": "'5 us', '100 ns'",
    "Hz": "'1.41 GHz'",
    "W": "'300 W', '130 mW'",
    "V": "'0.8 V', '800 mV'",
    "mm2": "'826 mm2'",
    "J/bit": "'4.5 pJ/bit'",
    "W/bit": "'0.6 pW/bit'",
    "mm2/bit": "'0.145 um2/bit'",
    "FLOP/cycle": "'512 FLOP/cycle'",
}


def parse_quantity(value: object, unit: str, *, file: str = "", key: str = "") -> float:
    """The value in SI units.

    ``unit`` is the SI unit of the key (see the table above); "" stands for a plain number,
    for which text is refused. Raises ConfigError, naming ``file`` and ``key``, for anything
    that is not a finite number or text with a unit of the right dimension.
    """

    def fail(problem: str) -> ConfigError:
        allowed = (
            f"a number in {unit}, or text such as {UNIT_EXAMPLES[unit]}" if unit else "a number"
        )
        return ConfigError(problem, file=file, key=key, value=shown(value), allowed=allowed)

    if isinstance(value, bool):
        raise fail("is true or false, not a number")
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            raise fail("is too large") from None
    elif isinstance(value, str):
        number = _parse_text(value, unit, fail)
    else:
        raise fail("is not a number")
    if not math.isfinite(number):
        raise fail("is not a finite number")
    return number


def quantity_pattern(unit: str) -> str:
    """Regular expression (ECMA 262, for JSON Schema) of the accepted text."""
    units = "|".join(re.escape(name) for name in sorted(_UNITS[unit]))
    return rf"^\s*{_NUMBER}\s*({units})?\s*$"


def _parse_text(text: str, unit: str, fail: Callable[[str], ConfigError]) -> float:
    if not unit:
        raise fail("is text, not a number")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise fail(f"cannot be read as a quantity in {unit}")
    digits, written = match.groups()
    # A quoted number without a unit is unambiguous: it is in the SI unit of the key.
    factor = _UNITS[unit].get(written) if written else Decimal(1)
    if factor is None:
        raise fail(f"'{written}' is not a unit of {unit}")
    return float(Decimal(digits) * factor)


def shown(value: object) -> object:
    """The value as messages print it.

    Containers are named and not printed: with YAML aliases their text can be endless.
    """
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return value
