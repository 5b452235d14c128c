"""What figures call columns and values: words, units that fit, ticks, and an order.

``Drawing.ends`` and ``Drawing.places`` make these the same in all panels of a figure.
"""

from __future__ import annotations

import math
import re
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any

from deepflow.sweep.plots import KIND_OF_TIME, Drawing
from deepflow.sweep.quantity import scale_of

if TYPE_CHECKING:
    import pandas as pd

LOGARITHMIC_FROM = 30
"""Axes and colours of values that differ more often than this are logarithmic."""

_TITLES = {
    "model_flops_utilization": "model FLOP utilization",
    "peak_memory_bytes": "peak memory",
    "global_batch_size": "global batch size",
    "num_devices": "devices",
    "num_devices_per_node": "devices per node",
}
_DEGREES = {"tensor", "pipeline", "data", "context", "expert"}
_RATE = re.compile(r"(\w+?)_per_second(_per_\w+)?")
_WORDS = {1e3: "thousand ", 1e6: "million ", 1e9: "billion "}


def label_of(drawing: Drawing, column: str) -> str:
    """Name and unit of an axis: "time per step (ms)", "thousand tokens/s per device"."""
    factor, prefixed = scale(drawing, column)
    unit = drawing.meanings[column].unit
    return axis_label(column, name_of(drawing, column), unit, factor, prefixed)


def axis_label(column: str, name: str, unit: str, factor: float, prefixed: str) -> str:
    """``name`` with the unit of values over ``factor``; ``column`` tells rates from others."""
    if not unit:
        return name
    rate = _RATE.fullmatch(column)
    if rate and (unit == "FLOP/s" or factor in (1.0, *_WORDS)):
        what = prefixed if unit == "FLOP/s" else f"{_WORDS.get(factor, '')}{rate[1]}/s"
        return what + (rate[2] or "").replace("_", " ")
    return f"{name} ({prefixed.replace('u', 'µ')})"


def name_of(drawing: Drawing, column: str) -> str:
    """A column without its unit, in words; an axis with what it is a property of."""
    path = drawing.meanings[column].path.split(".") if column in drawing.meanings else [""]
    if column.removeprefix("axis_").endswith(path[-1]):
        if path[0] == "parallelism" and path[-1] in _DEGREES:
            return f"{path[-1]} parallelism"
        section, names = path[1:2], " ".join(path[2:]).replace("_", " ")
        if section == ["tech_param"]:
            return names
        if section and section[0].endswith("_breakdown"):
            return f"{names} {section[0].removesuffix('_breakdown')}"
    if column == "time_s":
        known = (drawing.table[name].notna().any() for name in KIND_OF_TIME)
        return next(compress(KIND_OF_TIME.values(), known), "time")
    if rate := _RATE.fullmatch(column):
        return (f"{rate[1]}/s" + (rate[2] or "")).replace("_", " ").replace("flops", "FLOP")
    return _TITLES.get(column) or short_name(column)


def short_name(column: str) -> str:
    """``time_gemm_s`` as "time gemm"."""
    name = column.removeprefix("axis_")
    for ending in ("_s", "_bytes", "_j", "_js", "_w", "_mm2", "_usd"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def text_of(value: Any, unit: str) -> str:
    """A value for a legend, a cell or a tick: a few digits, prefixed where the unit allows."""
    # Values of a table are NumPy scalars; ``item`` makes Python's own of them.
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (str, bool)):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return ""
    if not unit:
        whole = number.is_integer() and abs(number) < 1e15
        return f"{number:.0f}" if whole or abs(number) >= 100 else f"{number:.3g}"
    # What people choose as a size is a multiple of a power of two.
    power = 0 if unit != "bytes" or number < 1024 else min(int(math.log2(number)) // 10, 5)
    if power and number % (1024**power) == 0:
        return f"{number / 1024**power:.4g} {' KMGTP'[power]}iB"
    factor, prefixed = scale_of(number, unit)
    return f"{number / factor:.4g} {prefixed.replace('u', 'µ')}"


def sorted_values(values: pd.Series[Any]) -> list[Any]:
    """Different values in ascending order; names by the numbers in them, 8B before 70B."""
    different = list(values.unique())
    if values.dtype.kind in "iufb":
        return sorted(different)
    return sorted(different, key=_natural_order)


def _natural_order(name: object) -> list[tuple[bool, int, str]]:
    return [
        (False, int(part), "") if part.isdecimal() else (True, 0, part)
        for part in re.findall(r"\d+|\D+", str(name))
    ]


def ends_of(drawing: Drawing, column: str) -> tuple[float, float]:
    """The least and the greatest value that is drawn, in all panels."""
    if column in drawing.ends:
        return drawing.ends[column]
    values = [drawing.rows[column]]
    if drawing.measured is not None and column in drawing.measured:
        values.append(drawing.measured[column])
    return min(part.min() for part in values), max(part.max() for part in values)


def is_text(drawing: Drawing, column: str) -> bool:
    return bool(drawing.rows[column].dtype.kind not in "iuf")


def is_logarithmic(drawing: Drawing, column: str) -> bool:
    least, most = ends_of(drawing, column)
    return least > 0 and most > LOGARITHMIC_FROM * least


def doubles(drawing: Drawing, column: str) -> bool:
    """Whether people chose values each of which is twice the one before."""
    values = sorted_values(drawing.rows[column]) if drawing.meanings[column].path else []
    return len(values) > 3 and all(2 * one == other for one, other in pairwise(values))


def scale(drawing: Drawing, column: str) -> tuple[float, str]:
    """(factor, unit) that bring the drawn values of ``column`` between 1 and 1000.

    If no factor does, because they differ too much, those in the middle.
    """
    least, most = ends_of(drawing, column)
    middle = math.sqrt(least * most) if is_logarithmic(drawing, column) else most
    return scale_of(middle, drawing.meanings[column].unit)


def tick_format(drawing: Drawing, column: str) -> Any:
    from matplotlib.ticker import FuncFormatter

    factor = scale(drawing, column)[0]
    return FuncFormatter(lambda value, _: f"{value / factor:.6g}")
