"""Figures of comparisons: the waterfall of two points, the changes of two sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepflow.compare.points import PointComparison
from deepflow.compare.report import number_text, value_text
from deepflow.compare.results import PointResult
from deepflow.compare.sweeps import SweepComparison, relative_changes
from deepflow.errors import DeepFlowError
from deepflow.prediction import COLUMNS
from deepflow.style import (
    COLORS,
    GRAY,
    HATCHES,
    MARKERS,
    new_figure,
    put_caption,
    put_legend,
    put_title,
    save,
)
from deepflow.sweep.identity import JOINT
from deepflow.sweep.quantity import scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNSEEN = 1e-4
"""Parts that change by less than this, relative to the larger total, are left out."""

FEW = 4
"""Up to this many keys that differ are in the caption."""


def draw_waterfall(found: PointComparison, outputs: Sequence[str | Path]) -> None:
    """From the time of A to that of B: what each part takes away or adds.

    Raises DeepFlowError if one of the points has no time.
    """
    if "time_s" not in found.totals:
        raise DeepFlowError("a point that cannot exist has no time to draw")
    total, parts = found.totals["time_s"], found.parts["time_s"]
    before, after = float(total.a or 0.0), float(total.b or 0.0)
    seen = [part for part in parts if abs(part.difference) > _UNSEEN * max(before, after)]
    unseen = sum(part.difference for part in parts if part not in seen)
    steps = sorted(((part.name, part.difference) for part in seen), key=lambda step: step[1])
    if abs(unseen) > 0:
        steps.append(("rest", unseen))
    factor, unit = scale_of(max(before, after), "s")
    figure = new_figure("page", height=0.8 + 0.26 * (len(steps) + 2))
    axes = figure.add_subplot()
    put_title(figure, "Where the time of B differs from that of A")
    names = ["A"]
    _bar(axes, 0, 0.0, before, factor, None)
    level = before
    for place, (name, difference) in enumerate(steps, 1):
        names.append(name.removeprefix("time_").removesuffix("_s").replace("_", " "))
        _bar(axes, place, level, difference, factor, difference > 0)
        axes.plot([level / factor] * 2, [place - 1, place], color=GRAY, linewidth=0.6)
        level += difference
    names.append("B")
    _bar(axes, len(steps) + 1, 0.0, after, factor, None)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"time ({unit})")
    axes.set_xlim(0, max(before, after, *_levels(before, steps)) / factor * 1.18)
    change = abs(100 * (total.relative or 0.0))
    put_caption(
        figure,
        f"B takes {change:.2f} % {'more' if total.difference > 0 else 'less'} time than A."
        f" A: {_point_of(found.a)}. B: {_point_of(found.b)}. {_differing(found)}. Hatched: more"
        " time",
    )
    save(figure, outputs)


def _levels(before: float, steps: Sequence[tuple[str, float]]) -> list[float]:
    levels = [before]
    for _, difference in steps:
        levels.append(levels[-1] + difference)
    return levels


def _differing(found: PointComparison) -> str:
    """The keys that differ with both values, or how many if they are more than a caption holds."""
    if len(found.settings) > FEW:
        return f"{len(found.settings)} keys differ"
    texts = [
        f"{'.'.join(setting.key.split('.')[-2:])}"
        f" {value_text(setting.a, setting.unit)} -> {value_text(setting.b, setting.unit)}"
        for setting in found.settings
    ]
    return ", ".join(texts) or "No key differs"


def _point_of(result: PointResult) -> str:
    """What a point is called, with spaces where lines may break."""
    called = Path(result.source).stem.replace(JOINT, ", ")
    return f"{result.model} on {result.hardware} ({called})"


def _bar(
    axes: Axes, place: int, start: float, length: float, factor: float, grows: bool | None
) -> None:
    style = 0 if grows is None else 1 if grows else 2
    axes.barh(
        place,
        length / factor,
        left=start / factor,
        height=0.7,
        color=(GRAY, COLORS[1], COLORS[0])[style],
        hatch=("", HATCHES[1], "")[style],
        edgecolor="white",
        linewidth=0.3,
    )
    text = number_text(length, "s")
    end = max(start, start + length) / factor
    axes.annotate(
        text if grows is None or length <= 0 else f"+{text}",
        (end, place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
    )


def draw_changes(found: SweepComparison, outputs: Sequence[str | Path]) -> None:
    """The change of every point in both tables over its value in A."""
    both, column = found.joined, found.column
    changes = relative_changes(both, column)
    values = both.loc[changes.index, f"{column}_a"].astype(float)
    statuses = both.loc[changes.index, "status_a"] + " -> " + both.loc[changes.index, "status_b"]
    unit = COLUMNS[column].unit
    factor, prefixed = scale_of(float(values.max()), unit) if len(values) else (1.0, unit)
    figure = new_figure("page")
    axes = figure.add_subplot()
    put_title(figure, f"Changes of {column} from A to B")
    for number, status in enumerate(sorted(statuses.unique())):
        of_status = statuses == status
        one, _, other = status.partition(" -> ")
        words = one if one == other else status
        axes.plot(
            values[of_status] / factor,
            100 * changes[of_status],
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            alpha=0.8,
            label=f"{words.replace('_', ' ')} ({int(of_status.sum())})",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_xscale("log")
    axes.set_xlabel(f"{column} of A" + (f" ({prefixed})" if prefixed else ""))
    axes.set_ylabel(f"change of {column} (%)")
    put_legend(figure)
    missing = len(both) - len(changes)
    caption = f"A: {found.a.source}; B: {found.b.source}; {len(changes)} points of both"
    caption += f"; {missing} more have no such value in A or B" if missing else ""
    caption += f"; {len(found.only_a)} only in A, {len(found.only_b)} only in B"
    put_caption(figure, caption)
    save(figure, outputs)
