"""Two tables of points: which points both have, and how much they changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepflow.compare.points import ABSENT, Setting, differing_settings
from deepflow.compare.results import SweepResult
from deepflow.config import did_you_mean
from deepflow.errors import DeepFlowError
from deepflow.prediction import COLUMNS, TIME_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

UNCHANGED = 1e-9
"""Relative changes up to this are rounding."""

MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Distribution:
    """Relative changes b / a - 1 of one column over the points where both have it, and a is not 0.

    ``changed``: how many are more than rounding. ``magnitude_90``: 90th percentile of their size.
    """

    column: str
    points: int
    changed: int
    median: float
    magnitude_90: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class PointChange:
    """One point in both tables. ``cause``: the class of time that changed most, and by how much."""

    point: str
    a: float
    b: float
    relative: float
    cause: str
    cause_s: float


@dataclass(frozen=True)
class SweepComparison:
    """``joined`` has the columns of both tables with the endings ``_a`` and ``_b``."""

    a: SweepResult
    b: SweepResult
    column: str
    keys: tuple[str, ...]
    joined: pd.DataFrame
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    statuses: Mapping[tuple[str, str], int]
    settings: tuple[Setting, ...]
    distributions: tuple[Distribution, ...]
    largest: tuple[PointChange, ...]
    versions: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def status_changes(self) -> int:
        """Points that are, say, out of memory in one table and not in the other."""
        return sum(count for (one, other), count in self.statuses.items() if one != other)


def compare_sweeps(a: SweepResult, b: SweepResult, column: str, join: str) -> SweepComparison:
    """What is different between two tables.

    ``join``: "id", "axes" (all axes that both have), or "auto": by id if any is in both, else by
    axes. ``column``: what the largest changes are of.

    Raises DeepFlowError if the tables share no point, or ``column`` is no number of both.
    """
    numbers = [
        name
        for name, described in COLUMNS.items()
        if described.dtype in (int, float) and name in a.rows and name in b.rows
    ]
    if column not in numbers:
        raise DeepFlowError(f"{column} is no number of both tables{did_you_mean(column, numbers)}")
    modes = [
        {flat.get("mode") for flat in side.configurations.get("model", {}).values()}
        for side in (a, b)
    ]
    if all(modes) and not modes[0] & modes[1]:
        raise DeepFlowError(
            f"{a.source} is of mode {', '.join(map(str, modes[0]))}, {b.source} of mode"
            f" {', '.join(map(str, modes[1]))}: their terms mean different things"
        )
    keys = _join_keys(a, b, join)
    try:
        joined = a.rows.merge(
            b.rows, on=list(keys), how="outer", suffixes=("_a", "_b"), indicator="found_in"
        )
    except ValueError:
        raise DeepFlowError(
            f"{a.source} and {b.source}: an axis has numbers in one and texts in the other"
        ) from None
    point_a, point_b = ("point", "point") if keys == ("point",) else ("point_a", "point_b")
    both = joined[joined["found_in"] == "both"].reset_index(drop=True)
    if both.empty:
        raise DeepFlowError(f"{a.source} and {b.source} have no point in common")
    statuses = Counter(zip(both["status_a"], both["status_b"], strict=True))
    return SweepComparison(
        a,
        b,
        column,
        keys,
        both,
        tuple(joined.loc[joined["found_in"] == "left_only", point_a]),
        tuple(joined.loc[joined["found_in"] == "right_only", point_b]),
        dict(sorted(statuses.items())),
        _settings(a, b),
        tuple(_distributions(both, numbers)),
        tuple(_largest(both, column, point_a)),
        (_versions(a), _versions(b)),
    )


def _join_keys(a: SweepResult, b: SweepResult, join: str) -> tuple[str, ...]:
    if join == "id" or (join == "auto" and a.rows["point"].isin(b.rows["point"]).any()):
        return ("point",)
    # Files are axes too where there are several.
    named = [
        name
        for name in ("hardware", "model")
        if max(a.rows[name].nunique(), b.rows[name].nunique()) > 1
    ]
    keys = tuple(name for name in (*named, *a.axes) if name in (*named, *b.axes))
    if not keys:
        raise DeepFlowError(f"{a.source} and {b.source} have neither points nor axes in common")
    for result in (a, b):
        repeated = result.rows[result.rows.duplicated(list(keys))]
        if not repeated.empty:
            raise DeepFlowError(
                f"{result.source}: several points have the same {', '.join(keys)}, such as"
                f" {repeated['point'].iloc[0]}: the other table lacks the axes that tell them apart"
            )
    return keys


def relative_changes(both: pd.DataFrame, column: str) -> pd.Series[float]:
    """b / a - 1 of the points where both have the column, by row of ``both``."""
    a, b = both[f"{column}_a"].astype(float), both[f"{column}_b"].astype(float)
    usable = a.notna() & b.notna() & a.ne(0)
    changes: pd.Series[float] = (b - a)[usable] / a[usable].abs()
    return changes


def _distributions(both: pd.DataFrame, numbers: Sequence[str]) -> list[Distribution]:
    found = []
    for name in numbers:
        changes = relative_changes(both, name)
        changed = int(changes.abs().gt(UNCHANGED).sum())
        if changed or name == "time_s":
            found.append(
                Distribution(
                    name,
                    len(changes),
                    changed,
                    *(
                        float(value)
                        for value in (
                            changes.median(),
                            changes.abs().quantile(0.9),
                            changes.min(),
                            changes.max(),
                        )
                    ),
                )
                if len(changes)
                else Distribution(name, 0, 0, 0.0, 0.0, 0.0, 0.0)
            )
    return found


def _largest(both: pd.DataFrame, column: str, point: str) -> list[PointChange]:
    changes = relative_changes(both, column)
    changes = changes[changes.abs() > UNCHANGED]
    order = changes.abs().sort_values(ascending=False, kind="stable").index[:MOST_SHOWN]
    parts = [name for name in TIME_COLUMNS if f"{name}_a" in both and f"{name}_b" in both]
    found = []
    rows: list[dict[Any, Any]] = both.loc[order].to_dict("records")
    for row, relative in zip(rows, changes[order], strict=True):
        differences = {name: row[f"{name}_b"] - row[f"{name}_a"] for name in parts}
        # Not a number: a part that this kind of workload does not have.
        known = {name: value for name, value in differences.items() if value == value}
        cause = max(known, key=lambda name: abs(known[name]), default="")
        found.append(
            PointChange(
                row[point],
                float(row[f"{column}_a"]),
                float(row[f"{column}_b"]),
                float(relative),
                cause,
                float(known.get(cause, 0.0)),
            )
        )
    return found


def _settings(a: SweepResult, b: SweepResult) -> tuple[Setting, ...]:
    """Keys that differ between configurations of one name, or between the only ones there are.

    Then what the sweep files set differently for all points, as they say it.
    """
    found: dict[tuple[Any, ...], Setting] = {}
    for side in ("hardware", "model"):
        one, other = a.configurations.get(side, {}), b.configurations.get(side, {})
        pairs = [(one[name], other[name]) for name in one if name in other]
        if len(one) == len(other) == 1:
            pairs = [(next(iter(one.values())), next(iter(other.values())))]
        for before, after in pairs:
            for setting in differing_settings({side: before}, {side: after}):
                found[(setting.key, repr(setting.a), repr(setting.b))] = setting
    written = [
        Setting(key, "", a.settings.get(key, ABSENT), b.settings.get(key, ABSENT))
        for key in dict.fromkeys((*a.settings, *b.settings))
        if a.settings.get(key, ABSENT) != b.settings.get(key, ABSENT)
    ]
    return (*found.values(), *written)


def _versions(result: SweepResult) -> tuple[str, ...]:
    if "model_version" not in result.rows:
        return ()
    return tuple(sorted(map(str, result.rows["model_version"].dropna().unique())))
