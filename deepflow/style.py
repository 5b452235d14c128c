"""How figures look: one size per column of a page, one palette, one way to write them.

``new_figure`` and ``save`` begin and end every figure; what lies between is seaborn, or matplotlib
where seaborn has no such plot.

Colours are those of seaborn's palette "colorblind", which people of all kinds of colour vision tell
apart, in an order in which neighbours also differ in lightness. A class should differ by more than
its colour all the same: markers, dashes and hatches have the same order.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepflow.files import atomic_output

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

Width = Literal["column", "page"]
WIDTHS: Mapping[Width, float] = {"column": 85 / 25.4, "page": 178 / 25.4}
"""Inches: a column, or both columns and the gap, of a page of conference proceedings."""

# Written out, because seaborn takes long to import; without its pink, yellow and gray, which white
# paper or other marks swallow.
COLORS = ("#0173b2", "#de8f05", "#d55e00", "#56b4e9", "#029e73", "#ca9161", "#000000", "#cc78bc")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "solid",
    (0, (4, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MANY = 3000
"""More points of a class than this are a picture within an SVG file, to keep it small."""
HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++", "/-/-")
GRAY = "#6E6E6E"
SEQUENTIAL = "viridis"
"""For values in an order: lightness rises evenly, so that it is readable in grey too."""

PNG_DPI = 200
_FONT = 8.0
_MARGIN = 0.06  # inches
# Ids by which ``save`` finds what it puts around the data.
_TITLE, _CAPTION, _BELOW = "title", "caption", "legend_below"

_SETTINGS: dict[str, Any] = {
    # Comes with matplotlib, so that text takes the same room everywhere.
    "font.family": ["DejaVu Sans"],
    **dict.fromkeys(["font.size", "axes.titlesize", "axes.labelsize"], _FONT),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize"], _FONT),
    **dict.fromkeys(["legend.fontsize", "legend.title_fontsize"], _FONT),
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(["axes.linewidth", "xtick.major.width", "ytick.major.width"], 0.6),
    **dict.fromkeys(["xtick.minor.width", "ytick.minor.width", "hatch.linewidth"], 0.4),
    **dict.fromkeys(["xtick.major.size", "ytick.major.size"], 3.5),
    **dict.fromkeys(["xtick.minor.size", "ytick.minor.size"], 2),
    "lines.markersize": 5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "patch.force_edgecolor": False,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    # Prices are no formulas.
    "text.parse_math": False,
    # Text stays text: it can be searched, and files are small.
    "svg.fonttype": "none",
    # Ids that do not change from run to run.
    "svg.hashsalt": "deepflow",
}


def new_figure(width: Width = "page", height: float | None = None) -> Figure:
    """An empty figure; title, legend and caption are added around its ``height`` (inches).

    The default height is 0.6 of the width. Sets seaborn's theme for the process, which artists
    read when they are made.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import seaborn
    from matplotlib.figure import Figure

    # A user's own matplotlibrc changes nothing.
    mpl.rcdefaults()
    seaborn.set_theme("paper", "ticks", list(COLORS), rc=_SETTINGS)
    inches = WIDTHS[width]
    return Figure(figsize=(inches, height or 0.6 * inches), layout="constrained")


def put_title(figure: Figure, title: str) -> None:
    """A heading over the whole figure, on as many lines as it takes."""
    text = figure.text(0, 1, title, fontsize=_FONT + 1, ha="left", va="top", gid=_TITLE)
    _wrap(figure, text)


def put_caption(figure: Figure, caption: str) -> None:
    """Small print below the figure: what is not drawn, and why."""
    _wrap(figure, figure.text(0, 0, caption, color=GRAY, ha="left", va="bottom", gid=_CAPTION))


def _wrap(figure: Figure, text: Text) -> None:
    """Break ``text`` into lines that are no wider than the figure."""
    renderer, whole = _renderer(figure), text.get_text()
    most = (figure.get_figwidth() - 2 * _MARGIN) * figure.dpi
    characters = int(figure.get_figwidth() * 24)
    while text.get_window_extent(renderer).width > most and characters > 8:
        text.set_text(textwrap.fill(whole, characters))
        characters -= 1


def put_legend(
    figure: Figure,
    handles: Sequence[Artist] | None = None,
    title: str | None = None,
    below: bool = False,
) -> None:
    """A legend beside the data, or ``below`` them, as where it is wide; nothing without entries.

    ``handles`` have labels; by default they are those of the figure's first axes.
    """
    if handles is None:
        handles = figure.axes[0].get_legend_handles_labels()[0]
    if not handles:
        return
    # On a single column the data need the width themselves.
    inches = figure.get_figwidth()
    most = 0.45 * inches if inches > WIDTHS["column"] else 0.28 * inches
    columns = 1
    legend = _legend(figure, handles, title, columns)
    if below or legend.get_window_extent(_renderer(figure)).width / figure.dpi > most:
        # Below the data, in as many columns as there is room for.
        while columns < len(handles):
            wider = _legend(figure, handles, title, columns + 1)
            if wider.get_window_extent(_renderer(figure)).width / figure.dpi > inches - _MARGIN:
                break
            columns += 1
        legend = _legend(figure, handles, title, columns)
        legend.set_gid(_BELOW)
    figure.legends[:] = [legend]


def _legend(figure: Figure, handles: Sequence[Artist], title: str | None, columns: int) -> Legend:
    figure.legends.clear()
    return figure.legend(
        handles=list(handles),
        title=title,
        ncols=columns,
        loc="upper left",
        borderaxespad=0,
        alignment="left",
    )


def _renderer(figure: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure).get_renderer()


def save(figure: Figure, outputs: Sequence[str | Path], dpi: int = PNG_DPI) -> None:
    """Write ``figure`` into files such as PNG and SVG, the same bytes for the same figure.

    Raises DeepFlowError if one cannot be written.
    """
    _arrange(figure)
    for output in outputs:
        ending = Path(output).suffix.removeprefix(".")
        with atomic_output(output) as temporary:
            # A date would make each file a new one.
            metadata = {"Date": None} if ending == "svg" else None
            figure.savefig(temporary, format=ending, dpi=dpi, metadata=metadata)


def _arrange(figure: Figure) -> None:
    """Give title, caption and legend their room, once, so that all files show the same.

    The figure grows by what they need, so that the data have the room that was asked for.
    """
    renderer = _renderer(figure)

    def size(artist: Artist) -> tuple[float, float]:
        box = artist.get_window_extent(renderer)
        return box.width / figure.dpi, box.height / figure.dpi

    width, height = figure.get_size_inches()
    texts = {text.get_gid(): text for text in figure.texts}
    legend = figure.legends[0] if figure.legends else None
    below = legend is not None and legend.get_gid() == _BELOW
    legend_width, legend_height = (0.0, 0.0) if legend is None else size(legend)
    top = size(texts[_TITLE])[1] + 2 * _MARGIN if _TITLE in texts else 0.0
    bottom = size(texts[_CAPTION])[1] + 2 * _MARGIN if _CAPTION in texts else 0.0
    caption_top = bottom
    right = 0.0
    if below:
        bottom += legend_height + 2 * _MARGIN
    elif legend is not None:
        right = legend_width + 2 * _MARGIN
        height = max(height, legend_height + 2 * _MARGIN)
    whole = height + top + bottom
    figure.set_size_inches(width, whole)
    rectangle = (0, bottom / whole, 1 - right / width, height / whole)
    figure.set_layout_engine("constrained", rect=rectangle)
    for gid, place in ((_TITLE, whole - _MARGIN), (_CAPTION, _MARGIN)):
        if gid in texts:
            texts[gid].set_position((_MARGIN / width, place / whole))
    if legend is not None:
        left = _MARGIN if below else width - right + _MARGIN
        upper = caption_top + legend_height + _MARGIN if below else bottom + height - _MARGIN
        legend.set_bbox_to_anchor((left / width, upper / whole))
    figure.draw_without_rendering()
    if _make_ticks_legible(figure, renderer):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _make_ticks_legible(figure: Figure, renderer: Any) -> bool:
    """Fold, turn or leave out labels that would run into each other; whether any did.

    Numbers below an x axis are left out where the one before takes their room; names are folded,
    or turned if that is not enough. Titles of axes are folded.
    """
    changed = False
    for axes in figure.axes:
        box = axes.get_window_extent(renderer)
        for title in (axes.title, axes.xaxis.label, axes.yaxis.label):
            found = title.get_window_extent(renderer)
            along_y = title is axes.yaxis.label
            length, room = (found.height, box.height) if along_y else (found.width, box.width)
            if length > room:
                changed = True
                text = title.get_text()
                title.set_text(fold(text, int(len(text) * room / length)))
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        boxes = [label.get_window_extent(renderer) for label in labels]
        gap = 0.035 * figure.dpi
        if not any(one.x1 + gap > other.x0 for one, other in pairwise(boxes)):
            continue
        changed = True
        if any(label.get_text()[:1].isdigit() for label in labels):
            end = -math.inf
            for label, box in zip(labels, boxes, strict=True):
                if box.x0 > end + gap:
                    end = box.x1
                else:
                    label.set_visible(False)
            continue
        texts = [label.get_text() for label in labels]
        room = (boxes[1].x0 + boxes[1].x1 - boxes[0].x0 - boxes[0].x1) / 2 - gap
        widest = max(box.width / len(text) for box, text in zip(boxes, texts, strict=True))
        folded = [fold(text, max(1, int(room / widest))) for text in texts]
        fits = max(len(line) for text in folded for line in text.split("\n")) * widest <= room
        if fits and max(text.count("\n") for text in folded) < 4:
            axes.set_xticks(axes.get_xticks(), folded)
        else:
            for label in labels:
                label.set(rotation=35, ha="right", rotation_mode="anchor")
    return changed


def fold(name: str, width: int) -> str:
    """``name`` on lines of up to ``width`` characters, broken at its spaces, "_", "-", "/"."""
    lines = [""]
    for part in re.findall(r"[^ _/-]*[ _/-]?", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def set_logarithmic(
    axes: Axes, which: Literal["x", "y"], least: float, most: float, factor: float = 1.0
) -> None:
    """Makes an axis logarithmic, with ticks that are plain numbers: values over ``factor``.

    ``least`` and ``most`` are the ends of what is drawn: on a short axis, powers of ten alone
    would leave it without numbers.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / factor:.6g}"))
    span = most / least
    if span < 3:
        axis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_minor_locator(NullLocator())
        return
    digits = "2346" if span < 10 else "25" if span < 100 else ""
    axis.set_major_locator(LogLocator(numticks=8))
    if digits:
        axis.set_minor_formatter(
            FuncFormatter(
                lambda value, _: f"{value / factor:.6g}" if f"{value:e}"[0] in digits else ""
            )
        )


def class_looks(names: Iterable[Any], ordered: bool = False) -> dict[str, Any]:
    """Arguments by which seaborn's relational plots tell classes apart: palette, markers, orders.

    No two of them look the same up to 64 classes. The colours of ``ordered`` ones, such as numbers,
    go from dark to light.
    """
    import seaborn

    names, number = list(names), len(COLORS)
    palette = seaborn.color_palette(SEQUENTIAL if ordered else COLORS, len(names))
    markers = [MARKERS[(place + place // number) % number] for place in range(len(names))]
    return {
        "hue_order": names,
        "style_order": names,
        "palette": dict(zip(names, palette, strict=True)),
        "markers": dict(zip(names, markers, strict=True)),
    }


def class_dashes(names: Iterable[Any]) -> dict[Any, Any]:
    """The ``dashes`` of classes, as seaborn has them."""
    return dict(zip(names, cycle("" if dash == "solid" else dash[1] for dash in DASHES)))


def take_legend(axes: Axes) -> list[Artist]:
    """The entries of the legend that seaborn gave to ``axes``, which has none after this."""
    handles = axes.get_legend_handles_labels()[0]
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    return handles
