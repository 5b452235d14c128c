"""Which rows of a table count: the best ones, Pareto fronts, what a figure draws, a sample.

All functions work on data frames whose index is the number of the row in the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepflow.config import did_you_mean
from deepflow.errors import ConfigError
from deepflow.sweep.plots import Plot, columns_read, condition_of, front_of, holds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    Rows = npt.NDArray[np.int64]

SHOWN = 5_000
"""Points that a page holds; of larger sweeps it has a sample."""

BEST = 20
"""Points in the list of the best ones."""

_MORE_IS_BETTER = (
    "tokens_per_second",
    "tokens_per_second_per_device",
    "tokens_per_second_per_sequence",
    "requests_per_second",
    "flops_per_second_per_device",
    "model_flops_utilization",
    "bus_bandwidth",
    "algorithm_bandwidth",
)
_LESS_IS_BETTER = (
    "time_s",
    "time_to_train_s",
    "time_to_first_token_s",
    "time_per_output_token_s",
    "inter_token_latency_s",
    "energy_j",
    "energy_per_token_j",
    "average_power_w",
    "peak_memory_bytes",
    "num_devices",
)
_COSTS = ("peak_memory_bytes", "energy_j", "num_devices")
"""What a goal is weighed against in sweeps that ask for no Pareto front."""


@dataclass(frozen=True)
class Goal:
    """What makes a point good. ``source`` says in words who chose it."""

    column: str
    maximum: bool
    source: str


@dataclass(frozen=True)
class Front:
    """Points that no other beats in both columns; ``group``: of which value of a column."""

    title: str
    x: str
    y: str
    maximum_x: bool
    maximum_y: bool
    group: str
    rows: Rows


@dataclass(frozen=True)
class Figure:
    """The rows that a figure draws; those in ``kept`` carry it and are not sampled away."""

    plot: Plot
    rows: Rows
    kept: Rows
    fronts: tuple[Front, ...]
    caption: str


def goal_candidates(plots: Sequence[Plot], columns: Collection[str]) -> list[Goal]:
    """Goals from the most to the least fitting one: what figures show, tokens, then time.

    A figure's own ``goal`` says which values are better; without one, the column has to be a
    result whose better direction is known.
    """
    goals = []
    for plot in plots:
        column = plot.value if plot.kind == "heatmap" else plot.y
        if column is None or column not in columns:
            continue
        source = f"the figure {plot.name} of the sweep shows it"
        if plot.kind == "pareto" or plot.goal is not None:
            goals.append(Goal(column, plot.goal == "maximum", source))
        elif column in _MORE_IS_BETTER or column in _LESS_IS_BETTER:
            goals.append(Goal(column, column in _MORE_IS_BETTER, source))
    usual = "the usual goal: no figure of the sweep names one"
    goals.append(Goal("tokens_per_second", True, usual))
    goals.append(Goal("time_s", False, usual))
    return [goal for goal in goals if goal.column in columns]


def usable(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that can be run: status ``ok``, and of a search ``feasible``, within its limits."""
    rows = frame[frame["status"] == "ok"]
    return rows[rows["feasible"]] if "feasible" in rows else rows


def goal_of(candidates: Iterable[Goal], frame: pd.DataFrame) -> Goal | None:
    """The first goal whose column has a number in a usable row; None if nothing can be run."""
    rows = usable(frame)
    for goal in candidates:
        if rows[goal.column].dtype.kind in "if" and rows[goal.column].notna().any():
            return goal
    return None


def best_rows(frame: pd.DataFrame, goal: Goal, count: int) -> Rows:
    """The best usable rows, best first; at most ``count``."""
    values = usable(frame)[goal.column].dropna()
    ordered = values.sort_values(ascending=not goal.maximum, kind="stable")
    return _rows(ordered.head(count))


def front_rows(
    frame: pd.DataFrame, x: str, y: str, maximum_x: bool = False, maximum_y: bool = False
) -> Rows:
    """Rows that no other beats in ``x`` and ``y``, from the best x to the best y."""
    return _rows(front_of(frame[[x, y]].dropna(), x, y, maximum_x, maximum_y))


def usual_front(frame: pd.DataFrame, goal: Goal, costs: Sequence[str] = _COSTS) -> Front | None:
    """The goal against the first cost that differs between usable rows; None if none does."""
    rows = usable(frame)
    for cost in costs:
        if cost in frame and cost != goal.column and rows[cost].nunique() > 1:
            found = front_rows(rows, cost, goal.column, False, goal.maximum)
            return Front("", cost, goal.column, False, goal.maximum, "", found)
    return None


def costs_in(columns: Collection[str]) -> list[str]:
    """The columns that ``usual_front`` may need."""
    return [name for name in _COSTS if name in columns]


def figure_columns(plot: Plot, columns: Sequence[str], file: str) -> tuple[list[str], list[str]]:
    """(columns that ``plot`` shows, columns that its ``where`` reads).

    Raises ConfigError if it shows one that the table does not have.
    """
    for name in plot.columns:
        if name not in columns:
            raise ConfigError(
                f"no column is called {name!r}{did_you_mean(name, columns)}",
                file=file,
                key=f"plots: {plot.name}",
            )
    return plot.columns, columns_read(condition_of(plot, columns, file), columns)


def figure_of(plot: Plot, frame: pd.DataFrame, filtered: Sequence[str], file: str) -> Figure:
    """What ``plot`` draws of ``frame``, which has its columns, ``filtered`` and the status."""
    total = len(frame)
    wanted = ["ok", "out_of_memory"] if plot.out_of_memory else ["ok"]
    rows = frame[frame["status"].isin(wanted)]
    left_out = [f"{total - len(rows):,} by status"] if len(rows) < total else []
    complete = rows[rows[plot.columns].notna().all(axis=1)]
    if len(complete) < len(rows):
        left_out.append(f"{len(rows) - len(complete):,} without these columns")
    rows = complete
    condition = condition_of(plot, filtered, file)
    if condition is not None:
        rows = rows[holds(condition, rows, filtered)]
        if len(rows) < len(complete):
            left_out.append(f"{len(complete) - len(rows):,} by where: {plot.where}")
    caption = f"{len(rows):,} of {total:,} points"
    if left_out:
        caption += f" (left out: {', '.join(left_out)})"

    kept, fronts = _rows(rows)[:0], []
    drawn = _rows(rows)
    if plot.kind == "line" and plot.goal is not None:
        groups = [name for name in (plot.x, plot.hue, plot.style) if name is not None]
        drawn = kept = _best_of(rows, str(plot.y), plot.goal == "maximum", groups)
        caption += f"; of points at one place the {plot.goal}"
    elif plot.kind == "heatmap":
        groups = [str(plot.x), str(plot.y)]
        repeated = bool(rows.duplicated(groups).any())
        goal = plot.goal or ("maximum" if plot.value in _MORE_IS_BETTER else "minimum")
        drawn = kept = _best_of(rows, str(plot.value), goal == "maximum", groups)
        caption += f"; of points in one cell the {goal}" if repeated else ""
    elif plot.kind == "breakdown":
        drawn = kept = _fastest(plot, rows)
        whose = "the fastest point" + (f" for each {plot.x}" if plot.x is not None else "s")
        caption += f"; {whose}"
    elif plot.kind == "pareto":
        fronts = _fronts(plot, rows)
        kept = _joined([front.rows for front in fronts], kept)
    return Figure(plot, drawn, kept, tuple(fronts), caption)


def _best_of(rows: pd.DataFrame, value: str, maximum: bool, groups: list[str]) -> Rows:
    ordered = rows.sort_values(value, ascending=not maximum, kind="stable")
    return _rows(ordered.drop_duplicates(groups).sort_index())


def _fastest(plot: Plot, rows: pd.DataFrame) -> Rows:
    ordered = rows.sort_values("time_s", kind="stable")
    if plot.x is None:
        return _rows(ordered.head(plot.best))
    return _rows(ordered.drop_duplicates([plot.x]).head(plot.best).sort_values(plot.x))


def _fronts(plot: Plot, rows: pd.DataFrame) -> list[Front]:
    x, y = str(plot.x), str(plot.y)
    better = (plot.goal_x == "maximum", plot.goal == "maximum")
    groups: Iterable[tuple[str, pd.DataFrame]] = [("", rows)]
    if plot.fronts is not None:
        groups = [(str(value), part) for value, part in rows.groupby(plot.fronts, observed=True)]
    return [
        Front(plot.title, x, y, *better, group, front_rows(part, x, y, *better))
        for group, part in groups
    ]


def sample(total: int, kept: Iterable[Rows], limit: int) -> Rows:
    """Rows to show of ``total``, in order: all of ``kept``, and others up to ``limit``.

    The others are drawn evenly, the same ones each time.
    """
    import numpy as np

    if total <= limit:
        return np.arange(total)
    chosen = np.zeros(total, bool)
    for rows in kept:
        chosen[rows] = True
    missing = limit - int(chosen.sum())
    if missing > 0:
        others = np.flatnonzero(~chosen)
        drawn = np.random.default_rng(0).choice(len(others), missing, replace=False)
        chosen[others[drawn]] = True
    return np.flatnonzero(chosen)


def _rows(frame: Any) -> Rows:
    import numpy as np

    return np.asarray(frame.index, dtype=np.int64)


def _joined(parts: Sequence[Rows], empty: Rows) -> Rows:
    import numpy as np

    return np.unique(np.concatenate([empty, *parts]))
