"""Parity plots: predicted over measured values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepflow.files import atomic_output
from deepflow.validate.machines import machine_name
from deepflow.validate.tables import ValidatedRow
from deepflow.validate.training import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points of a kind that are drawn; a parity plot of more looks the same and its file is larger.
MOST_POINTS = 2000
# What rows are called that no model can explain.
INEXPLICABLE = "inexplicable"


def draw_parity(panels: Mapping[str, Sequence[ValidatedRow]], output: str | Path) -> None:
    """A figure with a panel for each title, of rows of one quantity; PNG or SVG by name.

    Lines mark equality and errors of 30 per cent. Rows without an error are left out, and so is
    a panel without rows. Runs that no model can explain are drawn in grey.
    """
    import matplotlib

    matplotlib.use("Agg")
    import seaborn as sns
    from matplotlib.figure import Figure

    drawn = {
        title: found
        for title, rows in panels.items()
        if (found := [row for row in rows if row.error_percent is not None])
    }
    sns.set_theme(style="whitegrid", context="paper")
    matplotlib.rcParams.update({"svg.hashsalt": "deepflow", "svg.fonttype": "none"})
    columns = max(1, math.ceil(math.sqrt(len(drawn))))
    lines = max(1, math.ceil(len(drawn) / columns))
    figure = Figure(figsize=(3.6 * columns, 3.6 * lines), dpi=80, layout="constrained")
    if not drawn:
        figure.text(0.5, 0.5, "nothing was predicted", ha="center", va="center")
    for place, (title, rows) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        if rows[0].yes_or_no:
            _draw_answers(rows, axes)
        else:
            _draw_panel(rows, axes)
        axes.set_title(f"{title} ({len(rows)})")
    with atomic_output(output) as temporary:
        figure.savefig(temporary, format=Path(output).suffix.removeprefix("."))


def panels_of(rows: Sequence[ValidatedRow]) -> dict[str, list[ValidatedRow]]:
    """The rows of a table by quantity: operation of a kernel, metric of a run."""
    panels: dict[str, list[ValidatedRow]] = {}
    for item in rows:
        panels.setdefault(item.row.get("op") or metric_name(item.row), []).append(item)
    return panels


def _draw_panel(rows: Sequence[ValidatedRow], axes: Axes) -> None:
    import seaborn as sns

    step = math.ceil(len(rows) / MOST_POINTS)
    # Every so-manieth row, in the order of the measured value, keeps the range.
    kept = sorted(rows, key=lambda item: item.measured or 0.0)[::step]
    measured = [item.measured or 0.0 for item in kept]
    predicted = [item.predicted or 0.0 for item in kept]
    # Remarks in brackets do not fit into a panel.
    machine = [
        machine_name(item.row).partition(" (")[0] if item.explicable else INEXPLICABLE
        for item in kept
    ]
    names = sorted(set(machine) - {INEXPLICABLE})
    palette = dict(zip(names, sns.color_palette(n_colors=len(names)), strict=True))
    sns.scatterplot(
        x=measured,
        y=predicted,
        hue=machine,
        palette={**palette, INEXPLICABLE: (0.7, 0.7, 0.7)},
        hue_order=[*names, *([INEXPLICABLE] if INEXPLICABLE in machine else [])],
        s=12,
        alpha=0.6,
        linewidth=0,
        legend="brief",
        ax=axes,
    )
    ends = (min(measured + predicted), max(measured + predicted))
    axes.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted")
    for factor, style in ((1.0, "-"), (0.7, ":"), (1.3, ":")):
        axes.plot(ends, [factor * end for end in ends], style, color="black", linewidth=0.8)


def _draw_answers(rows: Sequence[ValidatedRow], axes: Axes) -> None:
    import seaborn as sns

    counts = [
        [sum(row.measured == m and row.predicted == p for row in rows) for p in (0, 1)]
        for m in (0, 1)
    ]
    sns.heatmap(
        counts,
        annot=True,
        fmt="d",
        cbar=False,
        cmap="Blues",
        xticklabels=["no", "yes"],
        yticklabels=["no", "yes"],
        ax=axes,
    )
    axes.set(xlabel="predicted", ylabel="measured")
