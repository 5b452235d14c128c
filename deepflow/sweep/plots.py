"""The figures that a sweep asks for, drawn from its table.

Every figure is 1200 x 800 pixels, names its units, and says below which points it leaves out.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import did_you_mean
from deepflow.errors import ConfigError
from deepflow.files import atomic_output, unusable
from deepflow.sweep.identity import JOINT
from deepflow.sweep.quantity import scale_of
from deepflow.sweep.schema import PLOT_SCHEMA, check_object
from deepflow.sweep.where import Condition, identifier, parse_condition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FEW = 12
"""Up to this many different values, each gets its own tick or legend entry."""

CAPTION_WIDTH = 180
"""Characters of the small print that are as wide as a figure."""

_REASON = "fallback_reason"
_FALLBACK = "closed forms, not simulated"

_COMMON = {"kind", "name", "title", "where", "out_of_memory"}
_KEYS = {
    "line": ({"x", "y"}, {"hue", "style", "log_x", "log_y", "goal"}),
    "scatter": ({"x", "y"}, {"hue", "style", "log_x", "log_y"}),
    "heatmap": ({"x", "y", "value"}, {"goal"}),
    "pareto": (
        {"x", "y"},
        {"hue", "style", "log_x", "log_y", "goal", "goal_x", "fronts", "label"},
    ),
    "breakdown": (set(), {"x", "best"}),
}
_PARTS = {
    "time_gemm_s": "matrix multiplication",
    "time_attention_s": "attention",
    "time_elementwise_s": "element-wise",
    "time_tensor_communication_s": "tensor communication",
    "time_data_communication_s": "data communication",
    "time_pipeline_bubble_s": "pipeline bubble",
    "time_optimizer_s": "optimizer",
    "time_launch_s": "kernel launch",
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
    where: str | None = None
    out_of_memory: bool = False
    log_x: bool = False
    log_y: bool = False
    best: int = FEW
    goal: str | None = None
    goal_x: str | None = None
    fronts: str | None = None
    label: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that the figure shows."""
        named = [self.x, self.y, self.value, self.hue, self.style, self.fronts, *self.label]
        if self.kind == "breakdown":
            named += ["point", "time_s", *_PARTS]
        return list(dict.fromkeys(name for name in named if name is not None))


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
        plots[name] = Plot(**{"title": title, **keys, "name": name, "label": label})
    return tuple(plots.values())


def check_plots(plots: Sequence[Plot], columns: Sequence[str], file: str) -> None:
    """Raises ConfigError if a plot names a column that the table will not have."""
    for plot in plots:
        for column in plot.columns:
            if column not in columns:
                raise ConfigError(
                    f"no column is called {column!r}{did_you_mean(column, columns)}",
                    file=file,
                    key=f"plots: {plot.name}",
                    allowed=", ".join(columns),
                )
        _condition(plot, columns, file)


def _condition(plot: Plot, columns: Sequence[str], file: str) -> Condition | None:
    if plot.where is None:
        return None
    names = [identifier(column) for column in columns]
    return parse_condition(plot.where, names, file, f"plots: {plot.name}: where")


@dataclass(frozen=True)
class _Drawing:
    """What a figure is drawn from: the rows to draw and, of all columns, units and axes."""

    plot: Plot
    file: str
    table: pd.DataFrame
    rows: pd.DataFrame
    units: Mapping[str, str]
    axis_columns: frozenset[str]

    def scale(self, column: str) -> tuple[float, str]:
        """(factor, unit) that bring the drawn values of ``column`` between 1 and 1000."""
        return scale_of(self.rows[column].max(), self.units[column])

    def label(self, column: str) -> str:
        """ "time (ms)" for ``time_s`` of some milliseconds."""
        unit = self.scale(column)[1] if self.units[column] else ""
        return f"{_name(column)} ({unit})" if unit else _name(column)

    def ticks(self, column: str) -> Any:
        from matplotlib.ticker import FuncFormatter

        factor = self.scale(column)[0]
        return FuncFormatter(lambda value, _: f"{value / factor:.6g}")

    def tick_values(self, column: str) -> list[Any]:
        """The values that ``column`` takes, where there are few that people chose."""
        values = sorted(self.rows[column].unique())
        chosen = column in self.axis_columns or self.rows[column].dtype.kind == "i"
        return values if chosen and len(values) <= FEW else []


def draw_plot(plot: Plot, summary: str | Path, outputs: Sequence[str | Path], file: str) -> None:
    """Draw ``plot`` from the table ``summary`` (Parquet) into files such as PNG and SVG.

    ``file`` is the sweep file, for errors: ConfigError if the plot does not suit the table.
    """
    import matplotlib

    matplotlib.use("Agg")
    import pyarrow as pa
    import pyarrow.parquet as pq
    import seaborn as sns
    from matplotlib.figure import Figure

    try:
        schema = pq.read_schema(summary)
    except (OSError, pa.ArrowException) as error:
        raise unusable(summary, error) from None
    check_plots([plot], schema.names, file)
    condition = _condition(plot, schema.names, file)
    filtered = [name for name in schema.names if condition and identifier(name) in condition.names]
    wanted = dict.fromkeys([*plot.columns, *filtered, "status", _REASON])
    table = pq.read_table(summary, columns=list(wanted)).to_pandas()
    about = {field.name: field.metadata or {} for field in schema}
    rows, caption = _drawn_rows(plot, table, condition, filtered)
    drawing = _Drawing(
        plot=plot,
        file=file,
        table=table,
        rows=rows,
        units={name: data.get(b"unit", b"").decode() for name, data in about.items()},
        axis_columns=frozenset(
            name
            for name, data in about.items()
            if data.get(b"description", b"").startswith(b"axis ")
        ),
    )

    sns.set_theme(style="whitegrid", context="notebook")
    # Fixed ids and no date: the same table gives the same SVG file. Its text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "deepflow", "svg.fonttype": "none"})
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if rows.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"nothing to draw: {caption}", ha="center", va="center", wrap=True)
    else:
        kinds = {
            "line": _line,
            "scatter": _scatter,
            "heatmap": _heatmap,
            "pareto": _pareto,
            "breakdown": _breakdown,
        }
        caption += kinds[plot.kind](drawing, axes)
    figure.suptitle(plot.title, fontsize=14, wrap=True)
    small = textwrap.fill(caption, CAPTION_WIDTH)
    figure.supxlabel(small, fontsize=9, color="dimgray", x=0.01, ha="left")
    # Arranged once, so that all files show the same.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for output in outputs:
        ending = Path(output).suffix.removeprefix(".")
        with atomic_output(output) as temporary:
            metadata = {"Date": None} if ending == "svg" else None
            figure.savefig(temporary, format=ending, metadata=metadata)


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
        names = [identifier(name) for name in filtered]
        known = rows[list(filtered)].notna().all(axis=1)
        values = rows[list(filtered)].astype(object).itertuples(index=False, name=None)
        kept = [
            bool(whole) and condition.holds(dict(zip(names, row, strict=True)))
            for whole, row in zip(known, values, strict=True)
        ]
        if not all(kept):
            left_out.append(f"{kept.count(False)} by where: {condition.text}")
        rows = rows[kept]
    caption = f"{len(rows)} of {len(table)} points"
    if left_out:
        caption += f" (left out: {', '.join(left_out)})"
    if count := _fell_back(rows).sum():
        caption += f"; {count} fell back to closed forms"
    return rows, caption


def _fell_back(rows: pd.DataFrame) -> pd.Series[bool]:
    """Rows for which the simulator had no answer, so that closed forms stand in."""
    return rows[_REASON].fillna("").ne("")


def _line(drawing: _Drawing, axes: Axes) -> str:
    import seaborn as sns

    plot, rows = drawing.plot, drawing.rows
    groups = [name for name in (plot.x, plot.hue, plot.style) if name is not None]
    repeated = bool(rows.duplicated(groups).any())
    note = ""
    if repeated and plot.goal is not None:
        rows = _best(rows, str(plot.y), plot.goal, groups)
        note = f"; of points at one place the {plot.goal}"
    elif repeated:
        note = "; line: mean of the points at one place, band: their range"
    sns.lineplot(
        _with_categories(drawing, rows),
        x=plot.x,
        y=plot.y,
        **_semantics(drawing),
        markers=plot.style is not None,
        marker=None if plot.style is not None else "o",
        errorbar=("pi", 100) if repeated and plot.goal is None else None,
        ax=axes,
    )
    _circle_fallbacks(drawing, rows, axes)
    _finish(drawing, axes)
    if not plot.log_y and axes.get_ylim()[0] > 0:
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
    return note


def _scatter(drawing: _Drawing, axes: Axes) -> str:
    import seaborn as sns

    plot = drawing.plot
    sns.scatterplot(
        _with_categories(drawing, drawing.rows),
        x=plot.x,
        y=plot.y,
        **_semantics(drawing),
        s=60,
        alpha=0.8,
        ax=axes,
    )
    _circle_fallbacks(drawing, drawing.rows, axes)
    _finish(drawing, axes)
    return ""


def _circle_fallbacks(drawing: _Drawing, rows: pd.DataFrame, axes: Axes) -> None:
    marked = rows[_fell_back(rows)]
    if marked.empty:
        return
    axes.plot(
        marked[str(drawing.plot.x)],
        marked[str(drawing.plot.y)],
        linestyle="none",
        color="black",
        marker="s",
        markerfacecolor="none",
        markersize=13,
        label=f"{_FALLBACK} ({len(marked)})",
    )


def _pareto(drawing: _Drawing, axes: Axes) -> str:
    import seaborn as sns

    _scatter(drawing, axes)
    plot, rows = drawing.plot, drawing.rows
    if plot.fronts is None:
        front = _front(plot, rows)
        _step_line(plot, front, axes, "black", f"Pareto front ({len(front)})")
        _number(drawing, front, axes)
        whose = "front"
    else:
        values = sorted(rows[plot.fronts].unique())
        numbers = rows[plot.fronts].dtype.kind in "if"
        # The colours of the points, where these are told apart by the same column.
        colors = sns.color_palette("viridis" if numbers else "colorblind", len(values))
        for value, color in zip(values, colors, strict=True):
            front = _front(plot, rows[rows[plot.fronts] == value])
            name = f"front of {_text(value, drawing.units[plot.fronts])} ({len(front)})"
            same = plot.fronts == plot.hue
            _step_line(plot, front, axes, color if same else "black", name)
            _write_labels(drawing, front, axes)
        whose = f"a front for each {_name(plot.fronts)}"
        if plot.label:
            whose += f", at its points {', '.join(_name(name) for name in plot.label)}"
    _legend(drawing, axes)
    goals = ((str(plot.x), plot.goal_x), (str(plot.y), plot.goal))
    better = " and ".join(
        f"{'more' if goal == 'maximum' else 'less'} {_name(column)}" for column, goal in goals
    )
    return f"; {whose}: {better} are better"


def _front(plot: Plot, rows: pd.DataFrame) -> pd.DataFrame:
    """The points that no other beats in both, from the best x to the best y."""
    x, y, less = str(plot.x), str(plot.y), plot.goal != "maximum"
    ordered = rows.sort_values([x, y], ascending=[plot.goal_x != "maximum", less])
    reached = ordered[y].cummin() if less else ordered[y].cummax()
    improves = ordered[y].lt(reached.shift()) if less else ordered[y].gt(reached.shift())
    improves.iloc[0] = True
    return ordered[improves]


def _step_line(plot: Plot, front: pd.DataFrame, axes: Axes, color: Any, label: str) -> None:
    axes.plot(
        front[str(plot.x)],
        front[str(plot.y)],
        drawstyle="steps-post",
        color=color,
        linewidth=1.5,
        marker="o",
        markerfacecolor="none",
        markersize=11,
        label=label,
    )


def _number(drawing: _Drawing, front: pd.DataFrame, axes: Axes) -> None:
    """Number points of the front, best y first, and explain the numbers in the legend."""
    plot = drawing.plot
    best_first = front[::-1].head(FEW) if plot.label else front.head(0)
    for number, (_, row) in enumerate(best_first.iterrows(), 1):
        _write(plot, row, str(number), axes)
        text = ", ".join(
            f"{_name(name)} {_text(row[name], drawing.units[name])}" for name in plot.label
        )
        axes.plot([], [], linestyle="none", marker=f"${number}$", color="black", label=text)


def _write_labels(drawing: _Drawing, front: pd.DataFrame, axes: Axes) -> None:
    """Values beside the points of one front of several, which leave no room in the legend."""
    plot = drawing.plot
    if plot.label:
        for _, row in front.iterrows():
            texts = (_text(row[name], drawing.units[name]) for name in plot.label)
            _write(plot, row, ", ".join(texts), axes)


def _write(plot: Plot, row: pd.Series[Any], text: str, axes: Axes) -> None:
    at = (row[str(plot.x)], row[str(plot.y)])
    right = plot.goal_x == "maximum"  # Outside of the front.
    axes.annotate(
        text,
        at,
        xytext=(9 if right else -9, 5),
        textcoords="offset points",
        fontsize=9,
        ha="left" if right else "right",
    )


def _heatmap(drawing: _Drawing, axes: Axes) -> str:
    import seaborn as sns
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch, Rectangle

    plot, rows = drawing.plot, drawing.rows
    x, y, value = str(plot.x), str(plot.y), str(plot.value)
    note = ""
    if rows.duplicated([x, y]).any():
        if plot.goal is None:
            raise ConfigError(
                f"several points have the same {x} and {y}; say by goal which one counts, or"
                " leave some out by where",
                file=drawing.file,
                key=f"plots: {plot.name}",
                allowed="goal: minimum, goal: maximum",
            )
        rows = _best(rows, value, plot.goal, [x, y])
        note = f"; of points in one cell the {plot.goal}"
    # Values whose points are all left out keep their gray row or column.
    columns, lines = (sorted(drawing.table[name].dropna().unique()) for name in (x, y))
    cells = rows.pivot(index=y, columns=x, values=value).reindex(index=lines[::-1], columns=columns)
    small = cells.size <= 150
    factor, _ = drawing.scale(value)
    decades = rows[value].min() > 0 and rows[value].max() > 30 * rows[value].min()
    sns.heatmap(
        cells,
        ax=axes,
        cmap="viridis",
        norm=LogNorm(rows[value].min(), rows[value].max()) if decades else None,
        annot=(cells / factor).map(lambda number: _text(float(number), "")) if small else False,
        fmt="",
        annot_kws={"fontsize": 10},
        xticklabels=[_text(number, drawing.units[x]) for number in columns] if small else "auto",
        yticklabels=[_text(number, drawing.units[y]) for number in lines[::-1]]
        if small
        else "auto",
        cbar_kws={"label": drawing.label(value), "format": drawing.ticks(value)},
    )
    axes.set_facecolor("lightgray")
    marked = rows[_fell_back(rows)]
    for column, line in zip(marked[x], marked[y], strict=True):
        corner = (columns.index(column), lines[::-1].index(line))
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="/", edgecolor="white"))
    if not marked.empty:
        sample = Patch(facecolor="gray", hatch="/", edgecolor="white", label=_FALLBACK)
        axes.legend(handles=[sample], loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    axes.grid(visible=False)
    axes.set_xlabel(_name(x))
    axes.set_ylabel(_name(y))
    axes.tick_params(axis="y", rotation=0)
    note += "; colors on a logarithmic scale" if decades else ""
    return note + ("; gray: no point" if cells.isna().any(axis=None) else "")


def _breakdown(drawing: _Drawing, axes: Axes) -> str:
    import seaborn as sns

    plot = drawing.plot
    fastest = drawing.rows.sort_values("time_s", kind="stable")
    if plot.x is not None:
        fastest = fastest.drop_duplicates([plot.x]).head(plot.best).sort_values(plot.x)
        names = [_text(value, drawing.units[plot.x]) for value in fastest[plot.x]]
        note = f"; the fastest point for each {_name(plot.x)}"
    else:
        fastest = fastest.head(plot.best)
        names = [_folded(point) for point in fastest["point"]]
        note = f"; the {len(fastest)} fastest points, fastest first"
    places = list(range(len(fastest)))
    left = [0.0] * len(fastest)
    colors = sns.color_palette("colorblind", len(_PARTS))
    for (column, label), color in zip(_PARTS.items(), colors, strict=True):
        widths = fastest[column].tolist()
        if any(widths):
            axes.barh(places, widths, left=left, label=label, color=color, edgecolor="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    marked = _fell_back(fastest)
    if marked.any():
        at = [place for place, mark in zip(places, marked, strict=True) if mark]
        widths = [width for width, mark in zip(left, marked, strict=True) if mark]
        axes.barh(
            at, widths, label=_FALLBACK, color="none", hatch="//", edgecolor="black", linewidth=0
        )
    axes.set_yticks(places, names, fontsize=8 if plot.x is None else 11)
    axes.set_ylabel("" if plot.x is None else _name(plot.x))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(drawing.label("time_s"))
    axes.xaxis.set_major_formatter(drawing.ticks("time_s"))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="part of the time")
    return note


def _best(rows: pd.DataFrame, value: str, goal: str, groups: list[str]) -> pd.DataFrame:
    ordered = rows.sort_values(value, ascending=goal == "minimum", kind="stable")
    return ordered.drop_duplicates(groups).sort_index()


def _is_category(drawing: _Drawing, column: str | None) -> bool:
    """Whether ``column`` is drawn as separate classes: text, or few different numbers.

    Seaborn would draw numbers as a continuous scale whose legend skips values.
    """
    if column is None:
        return False
    values = drawing.rows[column]
    return values.dtype.kind not in "if" or values.nunique() <= FEW


def _with_categories(drawing: _Drawing, rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the columns of classes as text, unless they are an axis too."""
    data = rows.copy()
    for column in {drawing.plot.hue, drawing.plot.style} - {drawing.plot.x, drawing.plot.y, None}:
        if column is not None and _is_category(drawing, column):
            data[column] = [_text(value, drawing.units[column]) for value in rows[column]]
    return data


def _semantics(drawing: _Drawing) -> dict[str, Any]:
    """Arguments of a seaborn plot for hue and style, classes in ascending order."""
    plot = drawing.plot
    arguments: dict[str, Any] = {"hue": plot.hue, "style": plot.style}
    for role, column in (("hue", plot.hue), ("style", plot.style)):
        if column is None or not _is_category(drawing, column) or column in (plot.x, plot.y):
            continue
        values = sorted(drawing.rows[column].unique())
        arguments[f"{role}_order"] = [_text(value, drawing.units[column]) for value in values]
    if plot.hue is not None:
        numeric = drawing.rows[plot.hue].dtype.kind in "if"
        arguments["palette"] = "viridis" if numeric else "colorblind"
    return arguments


def _finish(drawing: _Drawing, axes: Axes) -> None:
    """Labels, scales and ticks of both axes, and the legend."""
    plot = drawing.plot
    for column, logarithmic, axis, set_scale in (
        (str(plot.x), plot.log_x, axes.xaxis, axes.set_xscale),
        (str(plot.y), plot.log_y, axes.yaxis, axes.set_yscale),
    ):
        if drawing.rows[column].dtype.kind not in "if":
            axis.set_label_text(_name(column))
            continue
        axis.set_label_text(drawing.label(column))
        if logarithmic:
            set_scale("log")
        axis.set_major_formatter(drawing.ticks(column))
        ticks = drawing.tick_values(column)
        if ticks and column == plot.x:
            axis.set_ticks(ticks)
            unit = drawing.units[column]
            if logarithmic and unit and (unit == "bytes" or max(ticks) >= 1e6 * min(ticks)):
                # No unit suits them all; sizes are powers of two.
                axis.set_ticklabels([_text(value, drawing.units[column]) for value in ticks])
                axis.set_label_text(_name(column))
            axis.set_ticks([], minor=True)
        elif logarithmic:
            _set_logarithmic_ticks(drawing, column, axis)
    _legend(drawing, axes)


def _set_logarithmic_ticks(drawing: _Drawing, column: str, axis: Any) -> None:
    """Labels between the powers of ten: none, at 2 and 5, or at most digits on a short axis.

    A very short axis may hold no such value and gets round values in even steps.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    values = drawing.rows[column]
    factor = drawing.scale(column)[0]
    span = values.max() / values.min() if values.min() > 0 else math.inf
    if span < 3:
        axis.set_major_locator(MaxNLocator(nbins=6))
        axis.set_minor_locator(NullLocator())
        return
    digits = "234568" if span < 10 else "25" if span < 100 else ""
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value / factor:.6g}" if f"{value:e}"[0] in digits else "")
    )


def _legend(drawing: _Drawing, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    plot = drawing.plot
    titles = [name for name in dict.fromkeys((plot.hue, plot.style)) if name is not None]
    # With two meanings seaborn puts their names among the entries, with one it does not.
    title = _name(titles[0]) if len(titles) == 1 else None
    names = [_name(label) if label in titles else label for label in labels]
    axes.legend(
        handles,
        names,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        fontsize=9 if len(names) > FEW else None,
    )


def _name(column: str) -> str:
    """``time_s`` as "time": a column without its unit, in words."""
    name = column.removeprefix("axis_")
    for ending in ("_s", "_bytes", "_j", "_w"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def _text(value: Any, unit: str) -> str:
    """A value for a legend, a cell or a tick: a few digits, prefixed where the unit allows."""
    # Values of a table are NumPy scalars; ``item`` makes Python's own of them.
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (str, bool)):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return ""
    if not unit:
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.3g}"
    if unit == "bytes" and number >= 1024 and number % 1024 == 0:
        # What people choose as a size is a multiple of a power of two.
        power = min(
            (int(number) & -int(number)).bit_length() // 10, 5, int(math.log2(number)) // 10
        )
        return f"{number / 1024**power:.4g} {' KMGTP'[power]}iB"
    factor, prefixed = scale_of(number, unit)
    return f"{number / factor:.4g} {prefixed}"


def _folded(point: str, width: int = 34) -> str:
    """A point's id on several lines of about ``width`` characters."""
    lines = [""]
    for part in point.split(JOINT):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += (JOINT if lines[-1] else "") + part
    return "\n".join(lines)
