"""Drawing: a figure for each kind of plot that a sweep can ask for.

A class of points differs by colour and by marker or dashes, so that figures are readable in grey.
Points that do not fit in memory are hollow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from deepflow.errors import ConfigError
from deepflow.style import (
    COLORS,
    DASHES,
    GRAY,
    HATCHES,
    MANY,
    SEQUENTIAL,
    WIDTHS,
    class_dashes,
    class_looks,
    new_figure,
    put_legend,
    set_logarithmic,
    take_legend,
)
from deepflow.sweep.identity import JOINT
from deepflow.sweep.labels import (
    doubles,
    ends_of,
    is_logarithmic,
    is_text,
    label_of,
    name_of,
    scale,
    short_name,
    sorted_values,
    text_of,
    tick_format,
)
from deepflow.sweep.plots import HIGH, LOW, STACKS, Drawing, Plot, fell_back, front_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 12
"""Up to this many different numbers, each gets its own tick or legend entry."""

ANNOTATED_CELLS = 100
NARROWEST = 1.5
"""Inches of a panel in a row of panels."""

# Columns that are drawn: places on the axes, and classes as the legend calls them.
_X, _Y, _HUE, _STYLE = "drawn x", "drawn y", "drawn hue", "drawn style"

_FALLBACK = "closed forms, not simulated"
_NO_ROOM = "does not fit in memory"
_PARTS = {
    "time_gemm_s": "matrix products",
    "time_attention_s": "attention",
    "time_elementwise_s": "element-wise",
    "time_offload_s": "waiting for host memory",
    "time_launch_s": "kernel launch",
    "logits_bytes": "logits",
    "temporary_bytes": "temporary",
    "reserved_bytes": "driver, libraries",
}


def draw(drawing: Drawing) -> tuple[Figure, str]:
    """The figure without title and caption, and what the caption has to say of it.

    Raises ConfigError if the plot does not suit its rows, which must not be none.
    """
    plot = drawing.plot
    if plot.kind in STACKS:
        return _stack(drawing)
    notes: list[str] = []
    if plot.kind in ("line", "heatmap"):
        drawing, note = _one_per_place(drawing)
        notes.append(note)
    shown = [name for name in (plot.x, plot.y, plot.value, plot.hue) if name is not None]
    drawing = replace(
        drawing,
        ends={name: ends_of(drawing, name) for name in shown if not is_text(drawing, name)},
        places={name: sorted_values(drawing.table[name].dropna()) for name in shown[:2]},
    )
    drawing, note = _above_zero(drawing)
    notes.append(note)
    panels = _panels(drawing)
    inches = WIDTHS[plot.width]
    wide = len({values.get(str(plot.column)) for values in panels})
    if plot.row is None:
        # Panels that would be too narrow go on further lines.
        wide = min(wide, int(inches / NARROWEST))
    lines = math.ceil(len(panels) / wide)
    height = inches * (0.52 if len(panels) == 1 else 0.62 / wide)
    figure = new_figure(plot.width, max(1.4, height) * lines)
    grid = list(figure.subplots(lines, wide, sharex=True, sharey=True, squeeze=False).flat)
    kinds = {"line": _line, "scatter": _scatter, "heatmap": _heatmap, "pareto": _pareto}
    handles: list[Artist] = []
    looks: dict[str, Any] = {}
    if plot.kind != "heatmap":
        drawing, looks = _class_looks(drawing)
    for axes, values in zip(grid, panels, strict=False):
        found, note = kinds[plot.kind](_part(drawing, values), looks, axes)
        title = _panel_title(drawing, values)
        if plot.measured and title and note:
            note = f"; {title}: {note.removeprefix('; ')}"
        notes += [note] if note not in notes else []
        handles += [item for item in found if item.get_label() not in _labels(handles)]
        axes.set_title(title)
    for place, axes in enumerate(grid[: len(panels)]):
        if plot.kind in ("line", "scatter"):
            # Only now: seaborn would take the mean of logarithms on an axis that is shared.
            _finish(drawing, axes)
        axes.label_outer()
        if place + wide >= len(panels):
            # There may be no panel below, even if this is not the last line.
            axes.xaxis.set_label_text(grid[0].get_xlabel() or axes.get_xlabel())
            axes.tick_params(labelbottom=True)
    for axes in grid[len(panels) :]:
        axes.remove()
    drawn = list(figure.axes)
    if plot.kind == "heatmap":
        _color_bar(figure, drawing, str(plot.value), drawn)
        put_legend(figure, handles, below=True)
    else:
        columns = [name for name in dict.fromkeys((plot.hue, plot.style)) if name is not None]
        if "hue_norm" in looks:
            _color_bar(figure, drawing, columns[0], drawn)
            columns.clear()
        # Panels of a single column need its whole width.
        below = plot.width == "column" and len(panels) > 1
        heading = name_of(drawing, columns[0]) if len(columns) == 1 else None
        put_legend(figure, handles, heading, below)
    return figure, "".join(notes)


def _above_zero(drawing: Drawing) -> tuple[Drawing, str]:
    """The drawing with ends above zero for logarithmic axes, and what these leave out."""
    plot, ends, note = drawing.plot, dict(drawing.ends), ""
    for key, column, wanted in (("x", plot.x, plot.log_x), ("y", plot.y, plot.log_y)):
        if column is None or not wanted or column not in ends or ends[column][0] > 0:
            continue
        values = drawing.rows[column]
        if not (values > 0).any():
            raise ConfigError(
                f"{column} has no value above 0, as a logarithmic axis needs",
                file=drawing.file,
                key=f"plots: {plot.name}: log_{key}",
            )
        ends[column] = values[values > 0].min(), ends[column][1]
        count = (values <= 0).sum()
        note += f"; {count} without {name_of(drawing, column)} are not on its logarithmic axis"
    return replace(drawing, ends=ends), note


def _panel_title(drawing: Drawing, values: dict[str, Any]) -> str:
    titles = []
    for name, value in values.items():
        text = text_of(value, drawing.meanings[name].unit)
        # Names of files say what they are.
        titles.append(text if name in ("hardware", "model") else f"{name_of(drawing, name)} {text}")
    return ", ".join(titles)


def _labels(handles: Sequence[Artist]) -> list[object]:
    return [item.get_label() for item in handles]


def _panels(drawing: Drawing) -> list[dict[str, Any]]:
    """What the columns ``row`` and ``column`` are in each panel, line by line."""
    found: list[dict[str, Any]] = [{}]
    for key, name in (("row", drawing.plot.row), ("column", drawing.plot.column)):
        values = [] if name is None else sorted_values(drawing.rows[name])
        if len(values) > FEW:
            raise ConfigError(
                f"{name} has {len(values)} values, and each would be a panel; leave some out by"
                " where",
                file=drawing.file,
                key=f"plots: {drawing.plot.name}: {key}",
                allowed=f"up to {FEW}",
            )
        if name is not None:
            found = [{**panel, name: value} for panel in found for value in values]
    return found


def _part(drawing: Drawing, values: dict[str, Any]) -> Drawing:
    """The points of one panel."""

    def of(rows: pd.DataFrame) -> pd.DataFrame:
        for name, value in values.items():
            rows = rows[rows[name] == value]
        return rows

    measured = None if drawing.measured is None else of(drawing.measured)
    return replace(drawing, table=of(drawing.table), rows=of(drawing.rows), measured=measured)


def _one_per_place(drawing: Drawing) -> tuple[Drawing, str]:
    """The drawing with the best point for each place, where ``goal`` says which that is."""
    plot, rows = drawing.plot, drawing.rows
    if plot.kind == "line":
        value, names = str(plot.y), [plot.x, plot.hue, plot.style, plot.row, plot.column]
    else:
        value, names = str(plot.value), [plot.x, plot.y, plot.row, plot.column]
    place = [name for name in dict.fromkeys(names) if name is not None]
    if not rows.duplicated(place).any():
        return drawing, ""
    if plot.goal is not None:
        ordered = rows.sort_values(value, ascending=plot.goal == "minimum", kind="stable")
        rows = ordered.drop_duplicates(place).sort_index()
        return replace(drawing, rows=rows), f"; of points at one place the {plot.goal}"
    if plot.kind == "line":
        return drawing, "; line: mean of the points at one place, band: their range"
    raise ConfigError(
        f"several points have the same {' and '.join(place)}; say by goal which one counts, or"
        " leave some out by where",
        file=drawing.file,
        key=f"plots: {plot.name}",
        allowed="goal: minimum, goal: maximum",
    )


def _class_looks(drawing: Drawing) -> tuple[Drawing, dict[str, Any]]:
    """The drawing with the columns that seaborn draws, and how: the same in all panels."""
    plot, rows = drawing.plot, drawing.rows
    hue = plot.hue or plot.style
    numbers = hue is not None and rows[hue].dtype.kind in "if"
    continuous = plot.hue is not None and numbers and rows[plot.hue].nunique() > FEW
    style = plot.style or hue
    looks: dict[str, Any] = {"x": _X, "y": _Y, "color": COLORS[0]}
    names: dict[str, dict[Any, str]] = {}
    if hue is not None and not continuous:
        names[hue] = _class_names(drawing, hue)
        looks |= {"hue": _HUE, **class_looks(names[hue].values(), numbers)}
    elif hue is not None:
        looks |= {"hue": _HUE, "palette": SEQUENTIAL, "hue_norm": _norm(drawing, hue)}
    if style is not None and (style != hue or not continuous):
        names[style] = _class_names(drawing, style)
        of_style = class_looks(names[style].values())
        looks |= {key: of_style[key] for key in ("style_order", "markers")}
        looks["style"] = _HUE if style == hue else _STYLE

    def mapped(rows: pd.DataFrame) -> pd.DataFrame:
        columns = {}
        for drawn, name in ((_X, str(plot.x)), (_Y, str(plot.y))):
            columns[drawn] = _positions(drawing, name, rows[name])
        for drawn, column in ((_HUE, hue), (_STYLE, style)):
            values: Any = "" if column is None else rows[column]
            columns[drawn] = values.map(names[column]) if column in names else values
        return rows.assign(**columns)

    measured = None if drawing.measured is None else mapped(drawing.measured)
    return replace(drawing, rows=mapped(rows), measured=measured), looks


def _entries(drawing: Drawing, looks: dict[str, Any], axes: Axes) -> list[Artist]:
    """What seaborn has to say in a legend, under headings if there are two kinds of classes."""
    handles = take_legend(axes)
    labels = _labels(handles)
    for drawn, column in ((_HUE, drawing.plot.hue), (_STYLE, drawing.plot.style)):
        if drawn in labels:
            handles[labels.index(drawn)].set_label(name_of(drawing, str(column)))
    if "hue_norm" in looks:  # A colour bar says it.
        return handles[labels.index(_STYLE) :] if _STYLE in labels else []
    return handles


def _class_names(drawing: Drawing, column: str) -> dict[Any, str]:
    """What a legend calls the values of a column, in order; no two of them the same."""
    values = sorted_values(drawing.rows[column])
    names = [text_of(value, drawing.meanings[column].unit) for value in values]
    if len(set(names)) < len(names):
        names = [str(value) for value in values]
    return dict(zip(values, names, strict=True))


def _line(drawing: Drawing, looks: dict[str, Any], axes: Axes) -> tuple[list[Artist], str]:
    import seaborn

    plot, rows, measured = drawing.plot, drawing.rows, drawing.measured
    lines: dict[str, Any] = {"dashes": False, "markeredgewidth": 0}
    lines |= {"marker": "." if "hue_norm" in looks else "o"}
    if plot.style or measured is not None:
        lines["dashes"] = class_dashes(looks.get("style_order", []))
    if measured is not None:
        lines |= {"marker": "", "markers": False}
    if rows.duplicated([_X, _HUE, _STYLE]).any():
        # The range of points at one place.
        lines |= {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.2, "linewidth": 0}}
    if len(rows):
        seaborn.lineplot(rows, ax=axes, **{"errorbar": None, **looks, **lines})
    handles = _entries(drawing, looks, axes)
    _draw_points(rows[rows["status"] == "out_of_memory"], looks, axes)
    note, differences = "", []
    if measured is not None:
        _draw_measured(drawing, measured, looks, axes)
        for (hue, style), points in measured.groupby([_HUE, _STYLE]):
            predicted = rows[(rows[_HUE] == hue) & (rows[_STYLE] == style)]
            differences += _differences(predicted.groupby(_X)[_Y].mean(), points)
    if differences:
        median = sorted(map(abs, differences))[len(differences) // 2]
        note = f"; predictions differ from them by {100 * median:.2g} % in the median"
    return [*handles, *_notable(drawing, axes)], note


def _differences(predicted: pd.Series[Any], measured: pd.DataFrame) -> list[float]:
    """Predicted over measured values less one, where predictions lie to both sides.

    Between predictions is a straight line, as it is drawn.
    """
    import numpy as np

    points = measured[measured[_X].between(predicted.index.min(), predicted.index.max())]
    if points.empty:
        return []
    return list(np.interp(points[_X], predicted.index, predicted) / points[_Y] - 1)


def _draw_measured(
    drawing: Drawing, measured: pd.DataFrame, looks: dict[str, Any], axes: Axes
) -> None:
    y = str(drawing.plot.y)
    low, high = (measured.get(y + ending, measured[y]) for ending in (LOW, HIGH))
    ends = [(measured[y] - low).clip(lower=0), (high - measured[y]).clip(lower=0)]
    if any(end.any() for end in ends):
        bars: dict[str, Any] = {"ecolor": GRAY, "elinewidth": 0.8, "capsize": 2, "zorder": 2.8}
        axes.errorbar(measured[_X], measured[_Y], yerr=ends, fmt="none", **bars)
    _draw_points(measured, looks, axes, edgecolor="black", linewidth=0.4, zorder=3)


def _draw_points(rows: pd.DataFrame, looks: dict[str, Any], axes: Axes, **more: Any) -> None:
    """Points of their classes, hollow where they do not fit in memory."""
    import numpy as np
    import seaborn

    more = {"legend": False, "linewidth": 0, "rasterized": len(rows) > MANY, **looks, **more}
    if rows.empty:
        return
    seaborn.scatterplot(rows, ax=axes, **more)
    if "status" in rows and (hollow := (rows["status"] == "out_of_memory").to_numpy()).any():
        points: Any = axes.collections[-1]
        colors = np.broadcast_to(points.get_facecolor(), (len(rows), 4))
        points.set(edgecolor=colors, linewidth=np.where(hollow, 1, 0), zorder=2.5)
        points.set_facecolor(np.where(hollow[:, None], 1, colors))


def _scatter(drawing: Drawing, looks: dict[str, Any], axes: Axes) -> tuple[list[Artist], str]:
    _draw_points(drawing.rows, looks, axes, alpha=0.85, legend="auto")
    handles = _entries(drawing, looks, axes)
    if drawing.measured is not None:
        _draw_measured(drawing, drawing.measured, looks, axes)
    return [*handles, *_notable(drawing, axes)], ""


def _notable(drawing: Drawing, axes: Axes) -> list[Artist]:
    """Marks points that fell back; what legends say of these, hollow and measured points."""
    from matplotlib.lines import Line2D

    plot, rows = drawing.plot, drawing.rows
    handles: list[Artist] = []
    if plot.measured:
        if plot.kind == "line":
            handles.append(Line2D([], [], color=GRAY, label="predicted"))
        handles.append(
            Line2D([], [], color=GRAY, marker="o", linestyle="none", mec="black", label="measured")
        )
    if (rows["status"] == "out_of_memory").any():
        handles.append(
            Line2D([], [], color=GRAY, marker="o", mfc="white", linestyle="none", label=_NO_ROOM)
        )
    marked = rows[fell_back(rows)]
    if len(marked):
        handles += axes.plot(
            marked[_X],
            marked[_Y],
            linestyle="none",
            color="black",
            marker="s",
            markerfacecolor="none",
            markersize=9,
            markeredgewidth=0.7,
            label=f"{_FALLBACK} ({len(marked)})",
        )
    return handles


def _pareto(drawing: Drawing, looks: dict[str, Any], axes: Axes) -> tuple[list[Artist], str]:
    handles, _ = _scatter(drawing, looks, axes)
    _finish(drawing, axes)
    plot, rows = drawing.plot, drawing.rows
    fitting = rows[rows["status"] == "ok"]
    if plot.fronts is None:
        front = _front(plot, fitting)
        handles += _step_line(front, axes, "black", f"Pareto front ({len(front)})")
        handles += _number(drawing, front, axes)
        whose = "front"
    else:
        values = sorted_values(fitting[plot.fronts])
        for place, value in enumerate(values):
            front = _front(plot, fitting[fitting[plot.fronts] == value])
            name = text_of(value, drawing.meanings[plot.fronts].unit)
            label = f"front of {name} ({len(front)})"
            dash = DASHES[place % len(DASHES)]
            own: list[Any] = [
                item for item in handles if plot.hue == plot.fronts and item.get_label() == name
            ]
            color = own[0].get_color() if own else "black"
            step = _step_line(front, axes, color, label, dash)
            if own:
                # One entry for a class and its front where these are the same.
                own[0].set(label=label, linestyle=dash, linewidth=1)
            else:
                handles += step
            _write_labels(drawing, front, axes)
        whose = f"a front for each {name_of(drawing, plot.fronts)}"
        if plot.label:
            written = ", ".join(name_of(drawing, name) for name in plot.label)
            whose += f", at its points {written} where it changes"
    if plot.out_of_memory and len(fitting) < len(rows):
        whose += ", of points that fit"
    handles += _capacity(drawing, axes)
    goals = ((str(plot.x), plot.goal_x), (str(plot.y), plot.goal))
    better = " and ".join(
        f"{'more' if goal == 'maximum' else 'less'} {name_of(drawing, column)}"
        for column, goal in goals
    )
    return handles, f"; {whose}: {better} are better"


def _capacity(drawing: Drawing, axes: Axes) -> list[Artist]:
    """A line at the capacity where memory is an axis and some points need more."""
    plot, rows = drawing.plot, drawing.rows
    sizes = drawing.table["memory_capacity_bytes"].dropna().unique()
    if len(sizes) != 1 or "peak_memory_bytes" not in (plot.x, plot.y):
        return []
    if rows["peak_memory_bytes"].max() < 0.7 * sizes[0]:
        return []
    draw_line = axes.axvline if plot.x == "peak_memory_bytes" else axes.axhline
    return [draw_line(sizes[0], color=GRAY, linestyle=(0, (5, 3)), linewidth=1, label="capacity")]


def _front(plot: Plot, rows: pd.DataFrame) -> pd.DataFrame:
    best = plot.goal_x == "maximum", plot.goal == "maximum"
    return front_of(rows, str(plot.x), str(plot.y), *best)


def _step_line(
    front: pd.DataFrame, axes: Axes, color: Any, label: str, linestyle: Any = "solid"
) -> list[Artist]:
    return list(
        axes.plot(
            front[_X],
            front[_Y],
            drawstyle="steps-post",
            color=color,
            linestyle=linestyle,
            linewidth=1,
            marker="o",
            markerfacecolor="none",
            markeredgewidth=0.8,
            markersize=7.5,
            label=label,
        )
    )


def _number(drawing: Drawing, front: pd.DataFrame, axes: Axes) -> list[Artist]:
    """Number points of the front, best y first; legend entries that explain the numbers."""
    from matplotlib.lines import Line2D

    plot = drawing.plot
    handles: list[Artist] = []
    best_first = front[::-1].head(FEW) if plot.label else front.head(0)
    for number, (_, row) in enumerate(best_first.iterrows(), 1):
        _write(plot, row, str(number), axes)
        text = ", ".join(
            f"{short_name(name)} {text_of(row[name], drawing.meanings[name].unit)}"
            for name in plot.label
        )
        handles.append(Line2D([], [], linestyle="none", label=f"{number}: {text}"))
    return handles


def _write_labels(drawing: Drawing, front: pd.DataFrame, axes: Axes) -> None:
    """Values beside the points of one front of several, which leave no room in the legend.

    Only where they differ from those of the point before.
    """
    plot = drawing.plot
    if plot.label:
        before = ""
        for _, row in front.iterrows():
            texts = (text_of(row[name], drawing.meanings[name].unit) for name in plot.label)
            text = ", ".join(texts)
            if text != before:
                _write(plot, row, text, axes)
            before = text


def _write(plot: Plot, row: pd.Series[Any], text: str, axes: Axes) -> None:
    """``text`` outside of the front, above the texts that are there already."""
    axes.autoscale_view()
    taken = [other.get_window_extent() for other in axes.texts]
    right = plot.goal_x == "maximum"
    note = axes.annotate(
        text,
        (row[_X], row[_Y]),
        xytext=(5 if right else -5, 3),
        textcoords="offset points",
        ha="left" if right else "right",
    )
    for line in range(1, 3):
        if not any(note.get_window_extent().overlaps(other) for other in taken):
            break
        note.xyann = (note.xyann[0], 3 + 9 * line)


def _heatmap(drawing: Drawing, _: object, axes: Axes) -> tuple[list[Artist], str]:
    import seaborn
    from matplotlib.patches import Patch, Rectangle
    from seaborn.utils import relative_luminance

    plot, rows = drawing.plot, drawing.rows
    x, y, value = str(plot.x), str(plot.y), str(plot.value)
    # Values whose points cannot be drawn keep their row or column.
    columns, lines = drawing.places[x], drawing.places[y]
    cells = rows.pivot(index=y, columns=x, values=value).reindex(index=lines, columns=columns)
    big, grid = cells.size > 2500, axes.get_subplotspec()
    least, most = ends_of(drawing, value)
    seaborn.heatmap(
        cells.astype(float),
        cmap=SEQUENTIAL,
        norm=_norm(drawing, value),
        vmin=least,  # Otherwise seaborn looks for them, even in an empty panel.
        vmax=most,
        annot=_annotations(drawing, cells, 1 if grid is None else grid.get_gridspec().ncols),
        fmt="",
        linewidths=0 if big else 0.5,
        rasterized=big,
        cbar=False,
        xticklabels=False,
        yticklabels=False,
        ax=axes,
    )
    axes.invert_yaxis()
    mesh: Any = axes.collections[0]
    mesh.update_scalarmappable()
    colors = mesh.get_facecolor()[cells.notna().to_numpy().ravel()]
    for text, color in zip(axes.texts, colors, strict=False):
        # Half of the colours are too light for seaborn's white.
        text.set_color("white" if relative_luminance(color) < 0.18 else "black")
    axes.set_facecolor("#E4E4E4")
    axes.grid(visible=False)
    for axis, name, numbers in ((axes.xaxis, x, columns), (axes.yaxis, y, lines)):
        unit = drawing.meanings[name].unit
        axis.set_ticks(
            [place + 0.5 for place in range(len(numbers))],
            [text_of(number, unit) for number in numbers],
        )
        axis.set_label_text(name_of(drawing, name))
        axis.set_tick_params(length=0)
    handles: list[Artist] = []
    for marked, hatch, label in (
        (rows[fell_back(rows)], "///", _FALLBACK),
        (rows[rows["status"] == "out_of_memory"], "\\\\\\", _NO_ROOM),
    ):
        for column, line in zip(marked[x], marked[y], strict=True):
            corner = (columns.index(column), lines.index(line))
            axes.add_patch(
                Rectangle(corner, 1, 1, fill=False, hatch=hatch, edgecolor="white", linewidth=0)
            )
        if len(marked):
            handles.append(Patch(facecolor=GRAY, hatch=hatch, edgecolor="white", label=label))
    note = "; colours on a logarithmic scale" if is_logarithmic(drawing, value) else ""
    note += _empty_cells(drawing, cells, axes)
    return handles, note


def _annotations(drawing: Drawing, cells: pd.DataFrame, panels: int) -> pd.DataFrame | None:
    """What to write into the cells, if there are few and they are wide enough."""
    factor = scale(drawing, str(drawing.plot.value))[0]
    texts = (cells / factor).map(lambda value: text_of(value, ""))
    inches = 0.62 * WIDTHS[drawing.plot.width] / panels / cells.shape[1]
    widest = max(0.071 * len(text) - 0.03 * ("." in text) for text in texts.to_numpy().flat)
    return None if cells.size > ANNOTATED_CELLS or widest + 0.02 > inches else texts


def _empty_cells(drawing: Drawing, cells: pd.DataFrame, axes: Axes) -> str:
    """Writes into cells without a value why there is none."""
    x, y = str(drawing.plot.x), str(drawing.plot.y)
    missing = cells.isna()
    if not missing.any(axis=None):
        return ""
    statuses = drawing.table.groupby([y, x])["status"].agg(set).to_dict()
    signs = set()
    for i, line in enumerate(cells.index):
        for j, column in enumerate(cells.columns):
            if not missing.iat[i, j]:
                continue
            found = statuses.get((line, column), set())
            sign = "OOM" if "out_of_memory" in found else "\N{MULTIPLICATION SIGN}" if found else ""
            if found == {"ok"}:
                sign = ""
            signs.add(sign)
            if cells.size <= ANNOTATED_CELLS:
                axes.text(j + 0.5, i + 0.5, sign, ha="center", va="center", color=GRAY)
    meanings = {
        "": "empty: no point",
        "OOM": "OOM: only points that are out of memory or infeasible",
        "\N{MULTIPLICATION SIGN}": "\N{MULTIPLICATION SIGN}: infeasible",
    }
    if cells.size > ANNOTATED_CELLS:
        return "; gray: no point that can be drawn"
    return "; gray, " + ", ".join(meanings[sign] for sign in sorted(signs))


def _color_bar(figure: Figure, drawing: Drawing, column: str, axes: Sequence[Axes]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FuncFormatter

    factor = scale(drawing, column)[0]
    mappable = ScalarMappable(_norm(drawing, column), SEQUENTIAL)
    bar = figure.colorbar(mappable, ax=list(axes), label=label_of(drawing, column), aspect=30)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / factor:.6g}"))
    values = drawing.rows[column]
    if is_logarithmic(drawing, column) and values.max() < 1000 * values.min():
        bar.ax.yaxis.set_minor_formatter(
            FuncFormatter(
                lambda value, _: f"{value / factor:.6g}" if f"{value:e}"[0] in "25" else ""
            )
        )
    else:
        bar.ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _norm(drawing: Drawing, column: str) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    make = LogNorm if is_logarithmic(drawing, column) else Normalize
    return make(*ends_of(drawing, column))


def _stack(drawing: Drawing) -> tuple[Figure, str]:
    """The parts of a whole: bars for the fastest points, or for each value of x."""
    plot, rows = drawing.plot, drawing.rows
    whole, columns = STACKS[plot.kind]
    fastest = rows.sort_values("time_s", kind="stable")
    if plot.x is not None:
        values = fastest[plot.x].nunique()
        fastest = fastest.drop_duplicates([plot.x]).head(plot.best).sort_values(plot.x)
        names = [text_of(value, drawing.meanings[plot.x].unit) for value in fastest[plot.x]]
        note = f"; the fastest point for each {name_of(drawing, plot.x)}"
        if len(fastest) < values:
            note += f", for the best {len(fastest)} of its {values} values"
    else:
        fastest = fastest.head(plot.best)
        width = 36 if plot.width == "page" else 18
        names, common = _distinct_names(fastest["point"].tolist(), width)
        note = f"; the {len(fastest)} fastest points, fastest first"
        if common:
            note += f", all with {', '.join(common)}"
    lines = sum(name.count("\n") + 1 for name in names)
    figure = new_figure(plot.width, 0.6 + 0.12 * lines + 0.12 * len(names))
    axes = figure.subplots()
    places = list(range(len(fastest)))
    left = [0.0] * len(fastest)
    handles: list[Any] = []
    shown = [name for name in columns if fastest[name].fillna(0).any()]
    for number, column in enumerate(shown):
        widths = fastest[column].fillna(0).tolist()
        label = _PARTS.get(column, name_of(drawing, column).removeprefix("time "))
        handles += [
            axes.barh(
                places,
                widths,
                left=left,
                label=label,
                color=COLORS[number % len(COLORS)],
                # Neighbours differ by hatch too; a second round of colours has others.
                hatch=HATCHES[(number + number // len(COLORS)) % len(HATCHES)],
                edgecolor="white",
                linewidth=0.3,
            )
        ]
        left = [start + width for start, width in zip(left, widths, strict=True)]
    marked = fell_back(fastest)
    if marked.any():
        at = [place for place, mark in zip(places, marked, strict=True) if mark]
        ends = [end for end, mark in zip(left, marked, strict=True) if mark]
        handles.append(
            axes.barh(at, ends, label=_FALLBACK, color="none", edgecolor="black", linewidth=1)
        )
    factor = scale(drawing, whole)[0]
    for place, total, status in zip(places, fastest[whole], fastest["status"], strict=True):
        text = f" {total / factor:.3g}"
        if status == "out_of_memory":
            text += " OOM"
        axes.annotate(text, (total, place), va="center")
    exceeds = (fastest["status"] == "out_of_memory").any()
    note += f"; OOM: {_NO_ROOM}" if exceeds else ""
    axes.margins(x=0.3 if exceeds else 0.18)
    axes.set_xlim(left=0)
    if plot.kind == "memory":
        handles += _capacities(fastest, axes)
    axes.set_yticks(places, names)
    axes.set_ylabel("" if plot.x is None else name_of(drawing, plot.x))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label_of(drawing, whole))
    axes.xaxis.set_major_formatter(tick_format(drawing, whole))
    put_legend(figure, handles)
    return figure, note


def _capacities(rows: pd.DataFrame, axes: Axes) -> list[Artist]:
    """A tick at each bar for the memory that its device has."""
    sizes = rows["memory_capacity_bytes"]
    known = [place for place, size in enumerate(sizes) if size == size]
    return [
        axes.vlines(
            sizes.iloc[known],
            [place - 0.5 for place in known],
            [place + 0.5 for place in known],
            color="black",
            linestyle=(0, (4, 2)),
            linewidth=1,
            label="capacity",
        )
    ]


def _distinct_names(points: Sequence[str], width: int) -> tuple[list[str], list[str]]:
    """Ids of points without what they all have in common, on lines; and what that is."""
    parts = [point.split(JOINT) for point in points]
    common = [part for part in parts[0] if all(part in other for other in parts)]
    if len(common) == len(parts[0]):
        common = []
    names = []
    for point in parts:
        lines = [""]
        for part in point:
            if part in common:
                continue
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += (" " if lines[-1] else "") + part
        names.append("\n".join(lines))
    return names, common


def _positions(drawing: Drawing, column: str, values: Any) -> Any:
    """Where ``values`` are on an axis: numbers themselves, names by their order."""
    import numpy as np

    if not is_text(drawing, column):
        return np.asarray(values, dtype=float)
    order = {name: place for place, name in enumerate(drawing.places[column])}
    return np.array([order[value] for value in values], dtype=float)


def _finish(drawing: Drawing, axes: Axes) -> None:
    """Labels, scales and ticks of both axes."""
    plot = drawing.plot
    sides: tuple[tuple[Literal["x", "y"], str, bool | None], ...] = (
        ("x", str(plot.x), plot.log_x),
        ("y", str(plot.y), plot.log_y),
    )
    for side, column, wanted in sides:
        axis = axes.xaxis if side == "x" else axes.yaxis
        if is_text(drawing, column):
            names = drawing.places[column]
            axis.set_ticks(range(len(names)), names)
            axis.set_label_text(name_of(drawing, column))
            continue
        axis.set_label_text(label_of(drawing, column))
        logarithmic = bool(wanted)
        if wanted is None:
            logarithmic = is_logarithmic(drawing, column) or doubles(drawing, column)
        if logarithmic:
            least, most = ends_of(drawing, column)
            set_logarithmic(axes, side, least, most, scale(drawing, column)[0])
        else:
            axis.set_major_formatter(tick_format(drawing, column))
            if side == "y" and plot.kind == "line" and axes.get_ylim()[0] > 0:
                axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
        chosen = _chosen_values(drawing, column)
        if side == "x" and chosen:
            _set_chosen_ticks(drawing, column, chosen, logarithmic, axis)


def _chosen_values(drawing: Drawing, column: str) -> list[Any]:
    """Values that ``column`` takes to put ticks at, if people chose them."""
    values = sorted_values(drawing.rows[column])
    chosen = drawing.meanings[column].path or drawing.rows[column].dtype.kind == "i"
    return values[:: math.ceil(len(values) / FEW)] if chosen else []


def _set_chosen_ticks(
    drawing: Drawing, column: str, values: list[Any], logarithmic: bool, axis: Any
) -> None:
    unit = drawing.meanings[column].unit
    factor = scale(drawing, column)[0]
    texts = [f"{value / factor:.6g}" for value in values]
    if logarithmic and unit and (unit == "bytes" or max(values) >= 1e6 * min(values)):
        # No unit suits them all; sizes are powers of two.
        texts = [text_of(value, unit) for value in values]
        axis.set_label_text(name_of(drawing, column))
    axis.set_ticks(values, texts)
    axis.set_ticks([], minor=True)
