"""Parity plots: predicted over measured values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.style import (
    COLORS,
    GRAY,
    SEQUENTIAL,
    class_looks,
    fold,
    new_figure,
    put_caption,
    put_legend,
    put_title,
    save,
    set_logarithmic,
    take_legend,
)
from deepflow.sweep.quantity import scale_of
from deepflow.validate.goals import GOALS
from deepflow.validate.machines import machine_name
from deepflow.validate.tables import ValidatedRow
from deepflow.validate.training import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points of a panel that are drawn; a parity plot of more looks the same and its file is larger.
MOST_POINTS = 400
# What rows are called that no model can explain.
INEXPLICABLE = "inexplicable"
COLUMNS = 3
# Of many panels on a screen, not on paper.
PNG_DPI = 100
LINE_PERCENT = 30
_TYPICAL = ("median", "mean")
"""Statistics of goals that say how far off a typical row may be."""


def draw_parity(panels: Mapping[str, Sequence[ValidatedRow]], output: str | Path) -> None:
    """A figure with a panel for each title, of rows of one quantity; PNG or SVG by name.

    Lines mark equality and errors of 30 per cent, a band what a table of that name has for a
    goal, bars the range of repeated measurements. Rows without an error are left out, and so is
    a panel without rows. Runs that no model can explain are drawn in grey.
    """
    drawn = {
        title: found
        for title, rows in panels.items()
        if (found := [row for row in rows if row.error_percent is not None])
    }
    columns = max(1, min(COLUMNS, math.ceil(math.sqrt(len(drawn)))))
    lines = max(1, math.ceil(len(drawn) / columns))
    figure = new_figure("page" if columns > 1 else "column", (6.6 / columns + 0.1) * lines)
    if not drawn:
        put_title(figure, "nothing was predicted")
        save(figure, [output])
        return
    looks = _machine_looks(drawn)
    present: dict[str, Any] = {}
    thinned = 0
    for place, (title, rows) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_title(fold(f"{title} ({len(rows)})", 24 if columns == COLUMNS else 36))
        if rows[0].yes_or_no:
            _draw_answers(rows, axes)
            continue
        step = math.ceil(len(rows) / MOST_POINTS)
        thinned += step > 1
        present |= _draw_panel(title, rows[::step], looks, axes)
    count, everything = (sum(map(len, some.values())) for some in (drawn, panels))
    caption = f"{count} of {everything} rows"
    caption += " (the others were not predicted)" if count < everything else ""
    caption += f"; lines: equality and errors of {LINE_PERCENT} %"
    if "goal" in present:
        caption += "; band: the goal for the median or mean error of the table"
    if "range" in present:
        caption += "; bars: range of repeated measurements"
    if thinned:
        caption += f"; of larger panels ({thinned}) about {MOST_POINTS} rows, evenly"
    put_caption(figure, caption)
    order = [*looks["hue_order"], "goal", "range"]
    handles = [present[name] for name in order if name in present]
    put_legend(figure, handles, below=True)
    save(figure, [output], dpi=PNG_DPI)


def panels_of(rows: Sequence[ValidatedRow]) -> dict[str, list[ValidatedRow]]:
    """The rows of a table by quantity: operation of a kernel, metric of a run."""
    panels: dict[str, list[ValidatedRow]] = {}
    for item in rows:
        panels.setdefault(item.row.get("op") or metric_name(item.row), []).append(item)
    return panels


def _machine(item: ValidatedRow) -> str:
    """The family of a row's machine: "A100" for "A100-SXM-80GB (Selene)"."""
    if not item.explicable:
        return INEXPLICABLE
    name = machine_name(item.row)
    family = re.search(r"(?<![a-z0-9])(gb|mi|[a-z])\d{2,4}[a-z]*", name.casefold())
    return family[0].upper() if family else name.partition(" (")[0]


def _machine_looks(panels: Mapping[str, Sequence[ValidatedRow]]) -> dict[str, Any]:
    """Colour and marker of each machine, the same in all panels."""
    found = {_machine(item) for rows in panels.values() for item in rows if not item.yes_or_no}
    looks = class_looks([*sorted(found - {INEXPLICABLE}), INEXPLICABLE])
    looks["palette"][INEXPLICABLE], looks["markers"][INEXPLICABLE] = "#B5B5B5", "X"
    return looks


def _draw_panel(
    title: str, rows: Sequence[ValidatedRow], looks: dict[str, Any], axes: Axes
) -> dict[str, Any]:
    """Draws a panel of numbers; legend entries by name."""
    import seaborn
    from matplotlib.lines import Line2D

    present: dict[str, Any] = {}
    values = [value for item in rows for value in (item.measured or 0.0, item.predicted or 0.0)]
    least, most = min(values), max(values)
    ends = (0.8 * least, 1.25 * most)
    limits = [goal.limit for goal in GOALS if goal.table == title and goal.statistic in _TYPICAL]
    if limits:
        part = max(limits) / 100
        present["goal"] = axes.fill_between(
            ends,
            [(1 - part) * end for end in ends],
            [(1 + part) * end for end in ends],
            color=COLORS[3],
            alpha=0.35,
            linewidth=0,
            label="goal",
        )
    axes.plot(ends, ends, color="black", linewidth=0.7)
    for factor in (1 - LINE_PERCENT / 100, 1 + LINE_PERCENT / 100):
        axes.plot(ends, [factor * end for end in ends], color="black", linewidth=0.7, linestyle=":")
    ranges = [(*found, item.predicted) for item in rows if (found := _range(item)) is not None]
    if ranges:
        low, high, at = zip(*ranges, strict=True)
        axes.hlines(at, low, high, color=GRAY, linewidth=0.5, alpha=0.6, rasterized=True)
        present["range"] = Line2D([], [], color=GRAY, linewidth=0.5, label="range of repeats")
    machines = [_machine(item) for item in rows]
    seaborn.scatterplot(
        x=[item.measured or 0.0 for item in rows],
        y=[item.predicted or 0.0 for item in rows],
        hue=machines,
        style=machines,
        s=6,
        linewidth=0,
        alpha=0.7,
        rasterized=len(rows) > 100,
        zorder=2,
        ax=axes,
        **looks,
    )
    for handle in take_legend(axes):
        if handle.get_label() in machines:
            handle.set(markersize=5, alpha=1)
            present[str(handle.get_label())] = handle
    factor, unit = 1.0, _unit(rows[0])
    if least > 0:
        factor, unit = scale_of(math.sqrt(least * most), "s") if unit == "s" else (1.0, unit)
        set_logarithmic(axes, "x", least, most, factor)
        set_logarithmic(axes, "y", least, most, factor)
    axes.set(xlim=ends, ylim=ends)
    unit = unit.replace("us", "µs")
    axes.set_xlabel(f"measured ({unit})" if unit else "measured")
    axes.set_ylabel("predicted")
    return present


def _unit(item: ValidatedRow) -> str:
    # Remarks in brackets do not fit into a panel.
    return "us" if "latency_us" in item.row else (item.row.get("unit") or "").partition(" (")[0]


def _range(item: ValidatedRow) -> tuple[float, float] | None:
    """The least and the greatest of repeated measurements, in the row's unit."""
    for name in ("latency_us", "latency"):
        low, high = item.row.get(f"{name}_min"), item.row.get(f"{name}_max")
        if low and high:
            return float(low), float(high)
    return None


def _draw_answers(rows: Sequence[ValidatedRow], axes: Axes) -> None:
    import seaborn

    counts = [
        [sum(row.measured == m and row.predicted == p for row in rows) for p in (0, 1)]
        for m in (0, 1)
    ]
    answers = ["no", "yes"]
    looks = {"cmap": SEQUENTIAL, "vmin": 0, "linewidths": 0.5, "cbar": False}
    seaborn.heatmap(
        counts, annot=True, fmt="d", xticklabels=answers, yticklabels=answers, ax=axes, **looks
    )
    axes.invert_yaxis()
    axes.tick_params(length=0, labelrotation=0)
    axes.set(xlabel="predicted", ylabel="measured")
