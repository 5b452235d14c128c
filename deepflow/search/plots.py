"""The figures of a search, drawn from its tables."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.errors import DeepFlowError
from deepflow.files import unusable
from deepflow.search.objectives import METRICS, OBJECTIVES
from deepflow.search.space import Search
from deepflow.style import (
    COLORS,
    GRAY,
    MANY,
    class_dashes,
    class_looks,
    new_figure,
    put_caption,
    put_legend,
    put_title,
    save,
    set_logarithmic,
    take_legend,
)
from deepflow.sweep.labels import axis_label, short_name
from deepflow.sweep.quantity import scale_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FEW = len(COLORS)
"""Up to this many cases have a colour and a name; of more, the best do."""

MOST_BARS = 20
CASE_CHARACTERS = 40


def plot_names(search: Search) -> list[str]:
    """The figures that a search has."""
    names = ["convergence"]
    if len(search.cases) > 1:
        names.append("cases")
    if len(search.objectives) > 1:
        names.append("pareto")
    return names


def draw_plot(search: Search, name: str, folder: str | Path, outputs: Sequence[str]) -> None:
    """Draws a figure from the tables in ``folder``.

    Raises DeepFlowError if the search has no such figure, or a table cannot be read.
    """
    if name not in plot_names(search):
        raise DeepFlowError(
            f"search {search.name} has no figure {name!r}: {', '.join(plot_names(search))}"
        )
    draw: dict[str, Callable[[Search, Path], tuple[Figure, str]]] = {
        "convergence": _convergence,
        "cases": _cases,
        "pareto": _pareto,
    }
    figure, caption = draw[name](search, Path(folder))
    put_title(figure, search.description or search.name)
    put_caption(figure, caption)
    save(figure, outputs)


def _read(folder: Path, name: str, columns: list[str] | None = None) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / f"{name}.parquet"
    try:
        frame: pd.DataFrame = pq.read_table(file, columns=columns).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise unusable(file, error) from None
    return frame


def _scale(name: str, most: float) -> tuple[float, str]:
    """(factor, label) of an axis of metric ``name`` that reaches to ``most``."""
    unit = METRICS[name].column.unit
    factor, prefixed = scale_of(most, unit)
    return factor, axis_label(name, short_name(name), unit, factor, prefixed)


def _case_name(case: object) -> str:
    """Its id, on lines."""
    words = str(case).replace("+", " ")
    return textwrap.fill(words, CASE_CHARACTERS, break_on_hyphens=False, break_long_words=False)


def _convergence(search: Search, folder: Path) -> tuple[Figure, str]:
    """Best so far over evaluations: a line for each start, one look for each case."""
    import seaborn

    frame = _read(folder, "evaluations", ["case", "start", "evaluation", "best_cost"])
    starts = frame.groupby(["case", "start"]).ngroups
    # Nothing is drawn of a start that has no feasible design.
    found = frame.dropna(subset="best_cost")
    figure = new_figure()
    axes = figure.subplots()
    axes.set_xlabel("evaluations")
    caption = f"{len(frame)} evaluations from {starts} starts"
    if found.empty:
        return figure, f"{caption}; none has found a feasible design"
    if missing := starts - found.groupby(["case", "start"]).ngroups:
        caption += f"; {missing} of them have found no feasible design and are not drawn"
    objective = search.objectives[0]
    several = len(search.objectives) > 1
    best = found["best_cost"].astype(float)
    values = 1 / best if OBJECTIVES[objective] and not several else best
    factor, label = 1.0, "cost (weighted mean of objectives)"
    if several and len({search.weights(start) for start in frame["start"].unique()}) > 1:
        caption += "; starts weigh the objectives differently"
    if not several:
        factor, label = _scale(objective, values.max())
    last = found.groupby("case")["best_cost"].min().sort_values()
    names = {case: _case_name(case) for case in last.index[:FEW]}
    drawn = found[found["case"].isin(names)]
    shown = drawn["case"].map(names)
    looks = class_looks(names.values()) | {"markers": False, "linewidth": 1, "alpha": 0.8}
    seaborn.lineplot(
        x=drawn["evaluation"],
        y=values[drawn.index],
        hue=shown,
        style=shown,
        units=drawn["start"],
        estimator=None,
        dashes=class_dashes(names.values()),
        ax=axes,
        **looks,
    )
    handles = take_legend(axes)
    axes.set_ylabel(label)
    set_logarithmic(axes, "x", 1, max(2, frame["evaluation"].max()))
    values = values[drawn.index]
    set_logarithmic(axes, "y", values.min(), values.max(), factor)
    if len(last) > len(names):
        caption += f"; the best {len(names)} of {len(last)} cases are drawn"
    if len(last) > 1:
        put_legend(figure, handles, "case")
    return figure, caption


def _cases(search: Search, folder: Path) -> tuple[Figure, str]:
    """The best design of each case."""
    import seaborn

    objective = search.objectives[0]
    frame = _read(folder, "best", ["case", objective])
    groups = frame.groupby("case")[objective]
    more = OBJECTIVES[objective]
    best = groups.max() if more else groups.min()
    # In their order in the file if all can be shown, as nodes are; otherwise the best ones.
    names = [name for name in search.cases if name in best.index]
    caption = f"the best design of each case: {'more' if more else 'less'} is better"
    if infeasible := len(search.cases) - len(names):
        caption += f"; {infeasible} cases have no feasible design"
    if len(names) > MOST_BARS:
        caption += f"; {len(names) - MOST_BARS} cases are worse than these"
        names = list(best.sort_values(ascending=not more).index[:MOST_BARS])
    shown = [_case_name(name) for name in names]
    figure = new_figure(height=0.6 + sum(0.1 + 0.13 * (1 + name.count("\n")) for name in shown))
    axes = figure.subplots()
    if not names:
        return figure, caption
    values = best[names]
    factor, label = _scale(objective, values.max())
    seaborn.barplot(x=values / factor, y=shown, color=COLORS[0], saturation=1, ax=axes)
    for place, value in enumerate(values):
        axes.annotate(f" {value / factor:.3g}", (value / factor, place), va="center")
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=label, ylabel="")
    return figure, caption


def _pareto(search: Search, folder: Path) -> tuple[Figure, str]:
    """All feasible designs in the plane of the first two objectives, and the front."""
    import seaborn

    first, second = search.objectives[:2]
    frame = _read(folder, "evaluations", ["feasible", first, second])
    feasible = frame[frame["feasible"]].dropna()
    front = _read(folder, "pareto", ["case", first, second]).sort_values(first)
    figure = new_figure()
    axes = figure.subplots()
    caption = f"{len(feasible)} feasible of {len(frame)} evaluated designs"
    if feasible.empty:
        return figure, caption
    looks: dict[str, Any] = {"color": GRAY, "s": 4, "linewidth": 0, "alpha": 0.4}
    looks |= {"label": "evaluated", "rasterized": len(feasible) > MANY}
    seaborn.scatterplot(feasible, x=first, y=second, ax=axes, **looks)
    names = {case: _case_name(case) for case in front["case"].unique()}
    shown = dict(list(names.items())[:FEW])
    best = front["case"].map(shown)
    looks = {"hue": best, "style": best, "linewidth": 0, **class_looks(shown.values())}
    seaborn.scatterplot(front, x=first, y=second, ax=axes, **looks)
    handles = take_legend(axes)
    others = front[best.isna()]
    axes.plot(others[first], others[second], linestyle="none", marker="x", color=GRAY)
    if len(names) > FEW:
        caption += f"; crosses: {len(names) - FEW} other cases of the front"
    for axis, name in (("x", first), ("y", second)):
        ends = feasible[name].min(), feasible[name].max()
        factor, label = _scale(name, ends[1])
        if ends[0] > 0:
            set_logarithmic(axes, "x" if axis == "x" else "y", *ends, factor)
        axes.set(**{f"{axis}label": label})
    goals = " and ".join(
        f"{'more' if OBJECTIVES[name] else 'less'} {short_name(name)}" for name in (first, second)
    )
    caption += f"; Pareto front of {len(front)} designs: {goals} are better"
    if len(search.objectives) > 2:
        caption += f", as are other {', '.join(map(short_name, search.objectives[2:]))}"
    put_legend(figure, handles, "Pareto front by case")
    return figure, caption
