"""The figures that a sweep asks for: which rows of its table they show, and what is left out.

``figures`` draws them. Every figure says below its data which points it leaves out, and why.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import did_you_mean
from deepflow.errors import ConfigError
from deepflow.files import unusable
from deepflow.prediction import MEMORY_COLUMNS, TIME_COLUMNS
from deepflow.style import Width, new_figure, put_caption, put_title, save
from deepflow.sweep.schema import PLOT_SCHEMA, check_object
from deepflow.sweep.settings import find_file
from deepflow.sweep.where import Condition, identifier, parse_condition

if TYPE_CHECKING:
    import pandas as pd

FALLBACK_REASON = "fallback_reason"
STACKS = {
    "breakdown": ("time_s", TIME_COLUMNS),
    "memory": ("peak_memory_bytes", MEMORY_COLUMNS),
}
"""Kinds that stack the parts of a whole: the columns of both."""

KIND_OF_TIME = {
    "time_to_first_token_s": "time per request",
    "num_microbatches": "time per step",
}
"""What ``time_s`` is where a column has values: of inference, of training."""

LOW, HIGH = "_low", "_high"
"""What the columns of a measured range end in."""

_COMMON = {"kind", "name", "title", "where", "out_of_memory", "width"}
_SCALES = {"log_x", "log_y"}
_PANELS = {"row", "column"}
_KEYS = {
    "line": ({"x", "y"}, {"hue", "style", "goal", "measured"} | _SCALES | _PANELS),
    "scatter": ({"x", "y"}, {"hue", "style", "measured"} | _SCALES | _PANELS),
    "heatmap": ({"x", "y", "value"}, {"goal"} | _PANELS),
    "pareto": ({"x", "y"}, {"hue", "style", "goal", "goal_x", "fronts", "label"} | _SCALES),
    "breakdown": (set(), {"x", "best"}),
    "memory": (set(), {"x", "best"}),
}


@dataclass(frozen=True)
class Plot:
    """One figure; the keys are those of ``schema.PLOT_SCHEMA``. ``name`` is the file's stem."""

    name: str
    kind: str
    title: str
    x: str | None = None
    y: str | None = None
    value: str | None = None
    hue: str | None = None
    style: str | None = None
    row: str | None = None
    column: str | None = None
    where: str | None = None
    out_of_memory: bool = False
    log_x: bool | None = None
    log_y: bool | None = None
    width: Width = "page"
    measured: str | None = None
    best: int = 12
    goal: str | None = None
    goal_x: str | None = None
    fronts: str | None = None
    label: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that a point needs to be shown."""
        named = [self.x, self.y, self.value, self.hue, self.style, self.row, self.column]
        named += [self.fronts, *self.label]
        if self.kind in STACKS:
            named += ["point", "time_s", STACKS[self.kind][0]]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def measured_columns(self) -> list[str]:
        """The columns that its table of measured points must have, but for those of ``where``."""
        named = [self.x, self.y, self.hue, self.style, self.row, self.column]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def fingerprint(self) -> str:
        """What the figure depends on beside the table: its keys, and what was measured."""
        content = b"" if self.measured is None else Path(self.measured).read_bytes()
        return f"{self!r} {hashlib.sha256(content).hexdigest()}"


def parse_plots(content: Sequence[object], file: str, title: str) -> tuple[Plot, ...]:
    """The ``plots`` of a sweep file; ``title`` heads those that have none of their own.

    Raises ConfigError for keys that are unknown, missing, or mean nothing to the kind.
    """
    plots: dict[str, Plot] = {}
    for number, item in enumerate(content, 1):
        place = f"plots[{number}]"
        keys = check_object(item, PLOT_SCHEMA, file, place)
        kind = keys["kind"]
        required, optional = _KEYS[kind]
        for key in required - keys.keys():
            raise ConfigError(f"a {kind} plot needs it", file=file, key=f"{place}.{key}")
        for key in keys.keys() - required - optional - _COMMON:
            raise ConfigError(
                f"means nothing to a {kind} plot",
                file=file,
                key=f"{place}.{key}",
                allowed=", ".join(sorted(required | optional | _COMMON)),
            )
        name = keys.get("name", f"{number}-{kind}")
        if not re.fullmatch(PLOT_SCHEMA["properties"]["name"]["pattern"], name):
            raise ConfigError("is no file name", file=file, key=f"{place}.name", value=name)
        if name in plots:
            raise ConfigError("two plots have this name", file=file, key=place, value=name)
        label = tuple(keys.get("label", ()))
        if not all(isinstance(column, str) for column in label):
            raise ConfigError("must be a list of columns", file=file, key=f"{place}.label")
        if "measured" in keys:
            keys = {**keys, "measured": find_file(keys["measured"], f"{place}.measured", file)}
        plots[name] = Plot(**{"title": title, **keys, "name": name, "label": label})
    return tuple(plots.values())


def check_plots(plots: Sequence[Plot], columns: Sequence[str], file: str) -> None:
    """Raises ConfigError if a plot names a column that the table will not have.

    The same holds for a plot's table of measured points.
    """
    for plot in plots:
        for column in plot.columns:
            if column not in columns:
                raise ConfigError(
                    f"no column is called {column!r}{did_you_mean(column, columns)}",
                    file=file,
                    key=f"plots: {plot.name}",
                    allowed=", ".join(columns),
                )
        condition = condition_of(plot, columns, file)
        if plot.measured is not None:
            _check_measured(plot, plot.measured, columns, condition)


def _check_measured(
    plot: Plot, file: str, columns: Sequence[str], condition: Condition | None
) -> None:
    try:
        with Path(file).open(encoding="utf-8", newline="") as lines:
            header = next(csv.reader(lines), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot be read as a CSV table: {error}", file=file) from None
    filtered = columns_read(condition, columns)
    for column in [*plot.measured_columns, *filtered]:
        if column not in header:
            raise ConfigError(
                f"has no column {column!r}, which the plot '{plot.name}' uses"
                + did_you_mean(column, header),
                file=file,
            )


def condition_of(plot: Plot, columns: Sequence[str], file: str) -> Condition | None:
    """What ``where`` of a plot of ``columns`` asks for."""
    if plot.where is None:
        return None
    names = [identifier(column) for column in columns]
    return parse_condition(plot.where, names, file, f"plots: {plot.name}: where")


def columns_read(condition: Condition | None, columns: Sequence[str]) -> list[str]:
    """Those of ``columns`` that a condition reads."""
    return [name for name in columns if condition and identifier(name) in condition.names]


@dataclass(frozen=True)
class Meaning:
    """What a column holds: its unit ("" for none) and, if it is an axis, the key it sets."""

    unit: str
    path: str = ""


@dataclass(frozen=True)
class Drawing:
    """What a figure is drawn from: points that ``where`` lets through, and those of them to draw.

    ``measured``: points of the table of measurements, if the plot names one. Of all panels
    together, by column: ``ends``, the least and the greatest value drawn, and ``places``, the
    values of an axis in order.
    """

    plot: Plot
    file: str
    table: pd.DataFrame
    rows: pd.DataFrame
    measured: pd.DataFrame | None
    meanings: Mapping[str, Meaning]
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    places: Mapping[str, list[Any]] = field(default_factory=dict)


def draw_plot(plot: Plot, summary: str | Path, outputs: Sequence[str | Path], file: str) -> None:
    """Draw ``plot`` from the table ``summary`` (Parquet) into files such as PNG and SVG.

    ``file`` is the sweep file, for errors: ConfigError if the plot does not suit the table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepflow.sweep.figures import draw

    try:
        schema = pq.read_schema(summary)
    except (OSError, pa.ArrowException) as error:
        raise unusable(summary, error) from None
    check_plots([plot], schema.names, file)
    condition = condition_of(plot, schema.names, file)
    filtered = columns_read(condition, schema.names)
    parts = STACKS[plot.kind][1] if plot.kind in STACKS else ()
    extra = [*parts, "status", "memory_capacity_bytes", FALLBACK_REASON, *KIND_OF_TIME]
    wanted = dict.fromkeys([*plot.columns, *filtered, *extra])
    table = pq.read_table(
        summary, columns=[name for name in wanted if name in schema.names]
    ).to_pandas()
    meanings = {}
    for item in schema:
        about = item.metadata or {}
        kind, _, path = about.get(b"description", b"").decode().partition(" ")
        meanings[item.name] = Meaning(
            about.get(b"unit", b"").decode(), path if kind == "axis" else ""
        )
    rows, caption = _drawn_rows(plot, table, condition, filtered)
    measured, of_measured = None, ""
    if plot.measured is not None:
        measured, of_measured = _measured_rows(plot, plot.measured, condition, filtered, rows)
    if rows.empty:
        figure = new_figure(plot.width, 1.0)
        put_caption(figure, f"nothing to draw: {caption}")
    else:
        if condition is not None:
            table = table[holds(condition, table, filtered)]
        drawing = Drawing(plot, file, table, rows, measured, meanings)
        figure, note = draw(drawing)
        put_caption(figure, caption + of_measured + note)
    put_title(figure, plot.title)
    save(figure, outputs)


def _drawn_rows(
    plot: Plot, table: pd.DataFrame, condition: Condition | None, filtered: Sequence[str]
) -> tuple[pd.DataFrame, str]:
    """Rows that can and shall be drawn, and a sentence on those that are not."""
    usable = {"ok", "out_of_memory"} if plot.out_of_memory else {"ok"}
    by_status = table["status"].isin(usable)
    complete = table[plot.columns].notna().all(axis=1)
    counts = table.loc[~by_status, "status"].value_counts()
    left_out = [f"{count} {str(status).replace('_', ' ')}" for status, count in counts.items()]
    if (by_status & ~complete).any():
        left_out.append(f"{(by_status & ~complete).sum()} without these columns")
    rows = table[by_status & complete]
    if condition is not None:
        kept = holds(condition, rows, filtered)
        if not kept.all():
            left_out.append(f"{(~kept).sum()} by where: {condition.text}")
        rows = rows[kept]
    caption = f"{len(rows)} of {len(table)} points"
    if left_out:
        caption += f" (left out: {', '.join(left_out)})"
    if count := (rows["status"] == "out_of_memory").sum():
        caption += f"; {count} do not fit in memory"
    if count := fell_back(rows).sum():
        caption += f"; {count} fell back to closed forms"
    return rows, caption


def holds(condition: Condition, rows: pd.DataFrame, filtered: Sequence[str]) -> pd.Series[bool]:
    """Whether ``condition``, which reads the columns ``filtered``, holds for each of ``rows``.

    It is evaluated once per combination of values; it does not hold where one is missing.
    """
    import pandas as pd

    if not filtered:
        return pd.Series(condition.holds({}), index=rows.index)
    names = [identifier(name) for name in filtered]
    known = rows[list(filtered)].dropna()
    combination = known.groupby(list(filtered), sort=False, observed=True).ngroup()
    first = ~combination.duplicated()
    answers = [
        condition.holds(dict(zip(names, values, strict=True)))
        for values in known[first].astype(object).itertuples(index=False, name=None)
    ]
    held = combination.isin(combination[first][answers])
    return held.reindex(rows.index, fill_value=False)


def front_of(
    rows: pd.DataFrame, x: str, y: str, maximum_x: bool = False, maximum_y: bool = False
) -> pd.DataFrame:
    """The rows that no other beats in ``x`` and ``y``, from the best x to the best y."""
    ordered = rows.sort_values([x, y], ascending=[not maximum_x, not maximum_y], kind="stable")
    values = ordered[y]
    before = (values.cummax() if maximum_y else values.cummin()).shift()
    improves = values.gt(before) if maximum_y else values.lt(before)
    improves.iloc[:1] = True
    return ordered[improves]


def _measured_rows(
    plot: Plot,
    file: str,
    condition: Condition | None,
    filtered: Sequence[str],
    rows: pd.DataFrame,
) -> tuple[pd.DataFrame, str]:
    """The measured points to draw, and a sentence on them.

    Those of classes or panels of which nothing was predicted are left out.
    """
    import pandas as pd

    y = str(plot.y)
    table = pd.read_csv(file)
    for column in (y, y + LOW, y + HIGH):
        if column in table and table[column].dtype.kind not in "if":
            raise ConfigError("must be numbers in SI units", file=file, key=column)
    if {y + LOW, y + HIGH} <= set(table) and (table[y + LOW] > table[y + HIGH]).any():
        raise ConfigError(f"is above {y}{HIGH} in a row", file=file, key=y + LOW)
    kept = table[table[plot.measured_columns].notna().all(axis=1)]
    if condition is not None:
        kept = kept[holds(condition, kept, filtered)]
    for name in (plot.hue, plot.style, plot.row, plot.column):
        if name is not None:
            kept = kept[kept[name].isin(rows[name])]
    text = f"; {len(kept)} of {len(table)} measured points of {Path(file).name}"
    if len(kept) < len(table):
        text += " (of the others nothing is drawn here)"
    return kept, text


def fell_back(rows: pd.DataFrame) -> pd.Series[bool]:
    """Rows for which the simulator had no answer, so that closed forms stand in."""
    return rows[FALLBACK_REASON].fillna("").ne("")
