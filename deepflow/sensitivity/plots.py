"""Figures of sensitivities: the tornado of a point, and which parameter dominates where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.errors import ConfigError
from deepflow.prediction import COLUMNS
from deepflow.sensitivity.report import quantity_text
from deepflow.style import (
    COLORS,
    GRAY,
    HATCHES,
    new_figure,
    put_caption,
    put_legend,
    put_title,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 16
"""Parameters of a tornado; the others matter less."""


def draw_tornado(
    rows: Sequence[dict[str, Any]],
    title: str,
    objective: str,
    value: float,
    outputs: Sequence[str | Path],
) -> None:
    """What doubling and halving each parameter does to ``objective``, the largest swing on top.

    ``rows`` have the columns ``PARAMETER_COLUMNS``; ``value`` is the objective at the point.
    """
    swinging = sorted(rows, key=_swing, reverse=True)
    shown = [row for row in swinging if row["effect"]][:BARS]
    figure = new_figure("page", height=0.6 + 0.24 * max(4, len(shown)))
    axes = figure.add_subplot()
    put_title(figure, title)
    at_point = quantity_text(value, COLUMNS[objective].unit)
    if shown:
        _bars(axes, shown)
        # Above: the names of the parameters leave little room beside.
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
        axes.set_xlabel(f"{_words(objective)}, relative to {at_point} (logarithmic)")
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no parameter has an effect", ha="center", va="center")
    caption = f"e: elasticity. {len(rows)} parameters"
    rest = sum(bool(row["effect"]) for row in rows) - len(shown)
    if rest:
        caption += f"; {rest} with a smaller effect are not drawn"
    if any(row[side] not in (None, 0.5, 2.0) for row in shown for side in _FACTORS):
        caption += "; x: a factor that the range of the key cuts short"
    put_caption(figure, caption)
    save(figure, outputs)


def _swing(row: dict[str, Any]) -> float:
    ends = [0.0, *(math.log(row[side]) for side in _SIDES if row[side])]
    return max(ends) - min(ends)


_SIDES = ("doubled_ratio", "halved_ratio")
_FACTORS = ("doubled_factor", "halved_factor")


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    ratios = [row[side] for row in rows for side in _SIDES if row[side]] or [1.0]
    # Room for the words beside the bars, and for bars that are short.
    low, high = min(*ratios, 0.98), max(*ratios, 1.02)
    room = (high / low) ** 0.12
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for side, label, color, hatch in (
        ("doubled", "parameter doubled", COLORS[0], HATCHES[0]),
        ("halved", "parameter halved", COLORS[1], HATCHES[1]),
    ):
        ends = [row[f"{side}_ratio"] or 1.0 for row in rows]
        axes.barh(
            range(len(rows)),
            [end - 1 for end in ends],
            left=1.0,
            height=0.7,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
        for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
            _write(axes, row, side, place, end)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    ticks = _ticks(low / room, high * room)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:.4g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _write(axes: Axes, row: dict[str, Any], side: str, place: int, end: float) -> None:
    """Beside a bar's end: a factor that is not 2 or 1/2, and a status that changed."""
    factor, status = row[f"{side}_factor"], row[f"{side}_status"]
    words = []
    if factor is not None and factor not in (0.5, 2.0):
        words.append(f"x{factor:.3g}")
    if status not in (None, "ok"):
        words.append(str(status).replace("_", " "))
    if not words:
        return
    if end == 1.0:
        # No bar to stand beside: the side that faster devices are drawn to.
        left = (row["elasticity"] or 0.0) > 0 or side == "doubled"
    else:
        left = end < 1.0
    axes.annotate(
        ", ".join(words),
        (end, place),
        xytext=(-3 if left else 3, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=7,
        color=GRAY,
    )


def _label(row: dict[str, Any]) -> str:
    value = quantity_text(row["value"], row["unit"])
    slope = row["elasticity"]
    # Rounded first: there is no negative zero.
    said = "" if slope is None else f", e {round(slope, 2) + 0.0:+.2f}"
    return f"{short_parameter(row['parameter'])}  ({value}{said})"


def short_parameter(path: str) -> str:
    """A key without the sections that all have: ``core.util``, ``intra_node.bandwidth``."""
    parts = path.removeprefix("hardware.").split(".")
    return ".".join(parts[-2:])


def _ticks(low: float, high: float) -> list[float]:
    """Round ratios from ``low`` to ``high``, in steps that suit the range."""
    span = high / low
    if span > 30:
        candidates = [10.0**power for power in range(-6, 7)]
    elif span > 4:
        candidates = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20]
    else:
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step < 9)
        candidates = [step * number for number in range(int(low / step), int(high / step) + 1)]
    return [tick for tick in candidates if low <= tick <= high]


def _words(column: str) -> str:
    """``time_s`` as "time": a column without its unit."""
    for ending in ("_s", "_bytes", "_j", "_w"):
        column = column.removesuffix(ending)
    return column.replace("_", " ")


def draw_dominant(
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    title: str,
    axes_columns: tuple[str, str],
    units: Mapping[str, str],
    objective: str,
    outputs: Sequence[str | Path],
    place: str,
) -> None:
    """Over two axes, the parameter with the greatest elasticity, and that elasticity.

    ``rows``: those of the table of a sweep (``sweeps.sensitivity_columns``), one point per cell;
    ``units`` are those of its columns. ``names``: parameters in the order in which they get
    colours. Raises ConfigError, naming ``place``, if several points share a cell.
    """
    from matplotlib.patches import Patch

    x, y = axes_columns
    cells = _cells(rows, x, y, place)
    columns, lines = (
        sorted({row[name] for row in rows}, key=lambda value: (isinstance(value, str), value))
        for name in (x, y)
    )
    seen = {row["parameter"] for row in cells.values() if row is not None}
    figure = new_figure("page", height=0.6 + 0.4 * len(lines))
    axes = figure.add_subplot()
    put_title(figure, title)
    styles = {name: number % len(COLORS) for number, name in enumerate(names)}
    for (column, line), row in cells.items():
        at = (columns.index(column), lines.index(line))
        _cell(axes, at, row, None if row is None else styles[row["parameter"]])
    handles = [
        Patch(
            facecolor=COLORS[styles[name]],
            hatch=HATCHES[styles[name]],
            edgecolor="white",
            label=short_parameter(name),
        )
        for name in names
        if name in seen
    ]
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.set_xticks(range(len(columns)), [_value_text(value, units[x]) for value in columns])
    axes.set_yticks(range(len(lines)), [_value_text(value, units[y]) for value in lines])
    axes.set_xlabel(_words(x.removeprefix("axis_")))
    axes.set_ylabel(_words(y.removeprefix("axis_")))
    axes.grid(visible=False)
    put_legend(figure, handles, f"greatest elasticity of {_words(objective)}")
    put_caption(
        figure,
        f"Numbers: by how many per cent {_words(objective)} changes when the parameter rises by"
        " 1 %; (m): the point does not fit in memory; empty: no point, or one that cannot exist",
    )
    save(figure, outputs)


def strongest(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """The row with the greatest elasticity of each point; None for a point that cannot exist."""
    found: dict[str, dict[str, Any] | None] = {}
    for row in rows:
        best = found.setdefault(row["point"], None)
        if row["elasticity"] is not None and (
            best is None or abs(row["elasticity"]) > abs(best["elasticity"])
        ):
            found[row["point"]] = row
    return found


Cells = dict[tuple[Any, Any], dict[str, Any] | None]


def _cells(rows: Sequence[dict[str, Any]], x: str, y: str, place: str) -> Cells:
    """The strongest row of the point in each cell; None where it cannot exist."""
    places = {row["point"]: (row[x], row[y]) for row in rows}
    cells: Cells = {}
    for point, row in strongest(rows).items():
        at = places[point]
        if at in cells:
            raise ConfigError(
                f"several points have the same {x} and {y}; leave some out by where", key=place
            )
        cells[at] = row
    return cells


def _cell(axes: Axes, at: tuple[int, int], row: dict[str, Any] | None, style: int | None) -> None:
    from matplotlib.patches import Rectangle

    if row is None or style is None:
        return
    corner = (at[0] - 0.5, at[1] - 0.5)
    axes.add_patch(
        Rectangle(corner, 1, 1, facecolor=COLORS[style], hatch=HATCHES[style], edgecolor="white")
    )
    text = f"{row['elasticity']:+.2f}" + (" (m)" if row["status"] == "out_of_memory" else "")
    axes.text(
        *at, text, ha="center", va="center", bbox={"facecolor": "white", "pad": 1.5, "linewidth": 0}
    )


def _value_text(value: Any, unit: str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else quantity_text(float(value), unit)
