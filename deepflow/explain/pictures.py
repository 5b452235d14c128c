"""Pictures of one point: what the stages of a pipeline do when, and a roofline.

Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import atan2, degrees, log
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from deepflow.config.model import (
    CollectiveModel,
    GemmModel,
    LlmModel,
    LstmModel,
    ModelConfig,
    VitModel,
)
from deepflow.cost.operators import OperatorCost
from deepflow.errors import DeepFlowError
from deepflow.explain.lanes import DETAILS, DEVICE
from deepflow.explain.runs import gemm_run, recurrent_run, requests_run, training_run
from deepflow.explain.timeline import timeline
from deepflow.explain.training import BACKWARD, FORWARD, UPDATE, WEIGHTS
from deepflow.hardware import Hardware
from deepflow.prediction import Prediction
from deepflow.style import (
    COLORS,
    DASHES,
    GRAY,
    HATCHES,
    MARKERS,
    WIDTHS,
    Width,
    new_figure,
    put_caption,
    put_title,
    save,
    set_logarithmic,
)
from deepflow.sweep.quantity import scale_of
from deepflow.workload.operators import Attention, Collective, Elementwise, Gemm, GroupedGemm

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# --- The schedule ---------------------------------------------------------------------------

_OTHER, _WAIT = "several passes", "waiting for gradients, links or the host"
_LOOKS = {
    FORWARD: (COLORS[0], "white", ""),
    BACKWARD: (COLORS[1], "black", ""),
    WEIGHTS: (COLORS[2], "white", ""),
    UPDATE: (COLORS[3], "white", HATCHES[1]),
    "prompts": (COLORS[0], "white", ""),
    "generation": (COLORS[1], "black", ""),
    "many passes over prompts": (COLORS[0], "white", HATCHES[2]),
    "many steps of generation": (COLORS[1], "black", HATCHES[2]),
    _WAIT: ("white", "black", HATCHES[4]),
    _OTHER: ("#BBBBBB", "black", HATCHES[3]),
}
"""Colour, that of text on it, hatch."""
_IDLE = "#ECECEC"

_MOST_BARS: Mapping[Width, int] = {"page": 64, "column": 30}
"""Bars of a stage that a picture has room for; of a longer step both ends are shown."""
_SHOWN_PASSES: Mapping[Width, int] = {"page": 30, "column": 13}
_NARROW = 0.03  # inches
_NUMBER_FONT = 7.0
_WIDTH_PER_DIGIT = 0.065  # inches, at that size


class _Bar(NamedTuple):
    stage: int
    kind: str
    label: str
    lighter: bool
    start: float
    end: float


def draw_schedule(
    path: str,
    hardware: Hardware,
    model: ModelConfig,
    prediction: Prediction,
    width: Width = "page",
) -> None:
    """Draws what the device of each stage does when; of long steps the beginning and the end.

    ``hardware`` as in ``timeline``. The format follows from the ending of ``path``; ``width``: of
    the picture.

    Raises:
        DeepFlowError: the point has no passes, or the file cannot be written.
    """
    if isinstance(model, GemmModel | CollectiveModel):
        raise DeepFlowError(
            f"--schedule draws passes through stages, which {model.name} does not have; --trace"
            " shows what runs when"
        )
    found = timeline(hardware, model, prediction, details=DETAILS[4:])
    bars = [
        _Bar(
            span.process - 1,
            _kind(span.name, span.details),
            str(span.details.get("microbatch", span.details.get("step", ""))),
            span.details.get("part_of_stage", 0) % 2 == 1,
            span.start,
            span.end,
        )
        for span in found.spans
        if span.lane == DEVICE and span.end > span.start
    ]
    rows = max(bar.stage for bar in bars) + 1
    windows = _windows(bars, rows, found.time, width)
    narrow = width == "column"
    key_height = 0.5 if narrow else 0.22
    height = min(8.0, 1.4 + key_height + 0.24 * rows)
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        2, len(windows), height_ratios=[key_height, height - key_height - 1.1]
    )
    axes = [figure.add_subplot(grid[1, place]) for place in range(len(windows))]
    factor, unit = scale_of(windows[-1][1], "s")
    each = (WIDTHS[width] - 0.6) / len(windows)
    for place, (window, part) in enumerate(zip(windows, axes, strict=True)):
        shown = [bar for bar in bars if bar.end > window[0] and bar.start < window[1]]
        _draw_bars(part, shown, window, factor, each)
        part.set_xlim(window[0] / factor, window[1] / factor)
        part.set_ylim(rows - 0.5, -0.5)
        part.grid(visible=False)
        part.set_xlabel(f"time ({unit})")
        part.ticklabel_format(axis="x", useOffset=False, style="plain")
        part.locator_params(axis="x", nbins=(4 if narrow else 8) // len(windows) + 1)
        shown_rows = range(0, rows, max(1, rows // 16))
        part.set_yticks(shown_rows, [_row_name(found.processes[row + 1]) for row in shown_rows])
        if place:
            part.spines["left"].set_visible(False)
            part.tick_params(axis="y", length=0, labelleft=False)
    axes[0].set_ylabel("pipeline stage")
    _put_kinds(figure.add_subplot(grid[0, :]), [bar.kind for bar in bars], narrow)
    put_title(figure, f"{model.name} on {hardware.config.name}: {_words(prediction)}")
    caption = ""
    if any(bar.label for bar in bars):
        what = "time steps" if isinstance(model, LstmModel) else "microbatches"
        caption = f"Numbers are those of {what}."
    if any(bar.lighter for bar in bars):
        caption += " Lighter: every second part of the model on a stage."
    if len(windows) > 1:
        left, right = windows[0][1], windows[1][0]
        caption += (
            f" Not shown: {_time(left)} to {_time(right)}, which is"
            f" {100 * (right - left) / found.time:.1f}\N{NO-BREAK SPACE}% of the time."
        )
    text = " ".join([caption, *found.notes]).strip()
    if text:
        put_caption(figure, text)
    save(figure, [path])


def _row_name(process: str) -> str:
    """A process in short: its stage, and what it does if that is not all there is to do."""
    stage, _, devices = process.removeprefix("stage ").partition(":")
    doing = [what for what in ("prompts", "generation") if f"; {what}, " in devices]
    return ", ".join([stage, *doing])


def _words(prediction: Prediction) -> str:
    idle = prediction.time_pipeline_bubble_s
    text = _time(prediction.time_s or 0.0)
    if idle is not None and prediction.time_s:
        text += f", pipeline bubble {100 * idle / prediction.time_s:.1f} %"
    return text


def _time(seconds: float) -> str:
    factor, unit = scale_of(seconds, "s")
    return f"{seconds / factor:.4g}\N{NO-BREAK SPACE}{unit}"


def _kind(name: str, details: object) -> str:
    assert isinstance(details, dict)
    if name.startswith("waiting"):
        return _WAIT
    if name.startswith(UPDATE):
        return UPDATE
    if "phase" in details:
        return str(details["phase"])
    if details.get("aggregated") and "prompts" in name:
        return "many passes over prompts"
    if details.get("aggregated") and "further steps" in name:
        return "many steps of generation"
    if name.startswith("prompts"):
        return "prompts"
    if name.startswith("step"):
        return "generation"
    return _OTHER


def _windows(
    bars: Sequence[_Bar], rows: int, time: float, picture: Width
) -> list[tuple[float, float]]:
    """What is drawn: everything, or as long a part of both ends."""
    most = max(Counter(bar.stage for bar in bars).values())
    if most <= _MOST_BARS[picture]:
        return [(0.0, time)]
    usual = median(bar.end - bar.start for bar in bars)
    width = usual * (_SHOWN_PASSES[picture] + rows)
    if 2 * width >= time:
        return [(0.0, time)]
    return [(0.0, width), (time - width, time)]


def _draw_bars(
    axes: Axes, bars: Iterable[_Bar], window: tuple[float, float], factor: float, inches: float
) -> None:
    by_look: dict[tuple[str, bool], list[_Bar]] = {}
    stages = set()
    for bar in bars:
        by_look.setdefault((bar.kind, bar.lighter), []).append(bar)
        stages.add(bar.stage)
    for stage in stages:
        axes.barh(
            stage,
            (window[1] - window[0]) / factor,
            left=window[0] / factor,
            height=0.8,
            color=_IDLE,
            zorder=1,
        )
    scale = inches / (window[1] - window[0])
    for (kind, lighter), group in by_look.items():
        color, text, hatch = _LOOKS[kind]
        axes.barh(
            [bar.stage for bar in group],
            [(bar.end - bar.start) / factor for bar in group],
            left=[bar.start / factor for bar in group],
            height=0.8,
            color=(color, 0.55 if lighter else 1.0),
            edgecolor="white" if kind != _WAIT else GRAY,
            # The gap that an edge makes must not be all of a bar.
            linewidth=[0.3 if (bar.end - bar.start) * scale > _NARROW else 0.0 for bar in group],
            hatch=hatch,
            zorder=2,
        )
        for bar in group:
            start, end = max(bar.start, window[0]), min(bar.end, window[1])
            if bar.label and (end - start) * scale > _WIDTH_PER_DIGIT * (len(bar.label) + 0.6):
                axes.text(
                    (start + end) / 2 / factor,
                    bar.stage,
                    bar.label,
                    color="black" if lighter else text,
                    fontsize=_NUMBER_FONT,
                    ha="center",
                    va="center",
                    zorder=3,
                )


def _put_kinds(axes: Axes, kinds: Iterable[str], narrow: bool) -> None:
    from matplotlib.patches import Patch

    used = set(kinds)
    handles = [
        Patch(facecolor=color, hatch=hatch, edgecolor=GRAY, linewidth=0.3, label=kind)
        for kind, (color, _, hatch) in _LOOKS.items()
        if kind in used
    ]
    handles.append(Patch(facecolor=_IDLE, label="idle"))
    columns = 2 if narrow else len(handles)
    _put_key(axes, handles, columns, handlelength=1.4, columnspacing=1.2)


def _put_key(axes: Axes, handles: Sequence[Artist], columns: int, **look: float) -> None:
    """A legend in ``axes`` of its own, which it need not be as large as."""
    axes.axis("off")
    legend = axes.legend(handles=handles, loc="center left", borderaxespad=0, ncols=columns, **look)
    legend.set_in_layout(False)


# --- The roofline ---------------------------------------------------------------------------

_KINDS = ("matrix multiplication", "attention", "element-wise")
_LABELLED_SHARE = 0.015
_MOST_LABELS = 12
_ROOFLINE_HEIGHT = 4.4  # inches
_ROW = 0.055  # of a label, relative to the height of the picture


@dataclass
class _Dot:
    """Operators of one class: seconds of their kernels, FLOP, bytes, and seconds by bound."""

    kind: str
    time: float = 0.0
    flops: float = 0.0
    dram_bytes: float = 0.0
    l2_bytes: float = 0.0
    bounds: dict[str, float] = field(default_factory=dict)


def draw_roofline(
    path: str,
    hardware: Hardware,
    model: ModelConfig,
    prediction: Prediction,
    width: Width = "page",
) -> None:
    """Draws a dot per class of operators below what the device can do (Williams et al., 2009).

    The rest as in ``draw_schedule``.

    Raises:
        DeepFlowError: nothing is computed, or the file cannot be written.
    """
    if isinstance(model, CollectiveModel):
        raise DeepFlowError(
            f"--roofline draws what is computed, and {model.name} only communicates"
        )
    if isinstance(model, VitModel) or (isinstance(model, LlmModel) and not _generates(model)):
        # Steps of training run at the clock that the device keeps in long runs.
        hardware = hardware.under_load
    dots: dict[str, _Dot] = {}
    for prefix, item, runs in _operators(hardware, model):
        _count(dots, prefix, item, runs)
    computing = sum(dot.time for dot in dots.values())
    drawn = {
        name: dot
        for name, dot in sorted(dots.items(), key=lambda item: -item[1].time)
        if dot.flops and dot.dram_bytes and dot.time
    }
    narrow = width == "column"
    figure = new_figure(width, _ROOFLINE_HEIGHT)
    key_height = 1.0 if narrow else 0.5
    grid = figure.add_gridspec(
        2,
        2,
        height_ratios=[key_height, _ROOFLINE_HEIGHT - key_height - 1],
        width_ratios=[1, 0.04 if narrow else 0.62],
    )
    axes, beside = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    reach = [dot.flops / dot.dram_bytes for dot in drawn.values()]
    # The corner of the roof is always in the picture.
    core, memory = hardware.accelerator.core, hardware.accelerator.memory[-1]
    corner = core.peak_flops / memory.bandwidth
    low, high = min(min(reach) / 4, corner / 30), max(max(reach) * 4, corner * 4)
    kinds = {dot.kind for dot in drawn.values()}
    top = _draw_roofs(axes, hardware, low, high, attends=_KINDS[1] in kinds)
    floor = min(min(dot.flops / dot.time for dot in drawn.values()) / 3, top / 50)
    ceiling = top * 2
    labels: list[tuple[str, float, float]] = []
    for name, dot in drawn.items():
        share = dot.time / computing
        place = _KINDS.index(dot.kind)
        x, y = dot.flops / dot.dram_bytes, dot.flops / dot.time
        axes.scatter(
            x,
            y,
            s=18 + 500 * share,
            color=COLORS[place],
            marker=MARKERS[place],
            alpha=0.75,
            linewidths=0.4,
            edgecolors="black",
            zorder=4,
        )
        if dot.l2_bytes:
            axes.scatter(
                dot.flops / dot.l2_bytes,
                y,
                s=14,
                facecolors="none",
                edgecolors=COLORS[place],
                marker=MARKERS[place],
                linewidths=0.8,
                zorder=3,
            )
        if share >= _LABELLED_SHARE and len(labels) < _MOST_LABELS:
            bound = max(dot.bounds, key=dot.bounds.__getitem__)
            labels.append((f"{name.replace('_', ' ')}, {100 * share:.0f} %, {bound}", x, y))
    axes.set_xlim(low, high)
    axes.set_ylim(floor, ceiling)
    set_logarithmic(axes, "x", low, high)
    factor, unit = scale_of(top, "FLOP/s")
    set_logarithmic(axes, "y", floor, ceiling, factor)
    axes.set_xlim(low, high)
    axes.set_ylim(floor, ceiling)
    labels.sort(key=lambda label: -label[2])
    caption = ""
    if narrow:
        # There is room for letters only beside the picture.
        letters = [chr(ord("a") + place) for place in range(len(labels))]
        named = zip(letters, labels, strict=True)
        caption = "; ".join(f"{letter}: {label[0]}" for letter, label in named) + ". "
        labels = [(letter, *label[1:]) for letter, label in zip(letters, labels, strict=True)]
    _put_labels(axes, beside, labels, floor, ceiling)
    axes.set_xlabel("FLOP per byte of device memory")
    axes.set_ylabel(f"rate ({unit})")
    looks = figure.add_subplot(grid[0, :])
    _put_looks(looks, axes, kinds, narrow)
    put_title(figure, f"{model.name} on {hardware.config.name}: roofline")
    share = computing / _whole(model, prediction)
    put_caption(
        figure,
        f"{caption}Areas and numbers: share of the time of kernels that compute, and what bounds"
        " most of it;"
        " hollow: the same over bytes of the last-level cache. These kernels take"
        f" {100 * share:.0f}\N{NO-BREAK SPACE}% of the time; launches, communication and waiting"
        " are not drawn.",
    )
    _name_slopes(figure, axes, hardware, low, floor, top)
    save(figure, [path])


def _generates(model: ModelConfig) -> bool:
    return isinstance(model, LlmModel) and model.run_type == "inference"


def _whole(model: ModelConfig, prediction: Prediction) -> float:
    """Seconds of which the operators that ``_operators`` counts are a part."""
    stages = (prediction.pipeline_parallel or 1) if _generates(model) else 1
    assert prediction.time_s is not None
    return prediction.time_s * stages


def _operators(hardware: Hardware, model: ModelConfig) -> Iterator[tuple[str, OperatorCost, float]]:
    """(what it belongs to, operator, how often it runs), of the busiest stage of a step."""
    match model:
        case LlmModel(run_type="inference"):
            _, requests = requests_run(hardware, model)
            counts = Counter(name for part in requests.mapping.layout.parts for name in part)
            prompts = requests.batches * requests.pieces * requests.turns
            steps = requests.phases.steps * requests.mapping.groups * requests.turns
            for prefix, passed, runs in (
                ("prompt: ", requests.prompt, prompts),
                ("step: ", requests.step, steps),
            ):
                for name, chain in passed.segments.items():
                    yield from ((prefix, item, counts[name] * runs) for item in chain)
        case LlmModel() | VitModel():
            run = training_run(
                hardware, model if isinstance(model, LlmModel) else model.transformer
            )
            content = Counter(
                name for part in run.mapping.parts_of(run.bottleneck) for name in part
            )
            for name, count in content.items():
                costs, runs = run.segments[name], count * run.mapping.num_microbatches
                for item in (*costs.forward, *costs.backward):
                    yield "", item, runs
            yield from (("", item, 1.0) for item in run.updates[run.bottleneck])
        case LstmModel():
            from deepflow.schedule.recurrent import operators_of, parts_of

            step = recurrent_run(hardware, model)
            for part in parts_of(step.bottleneck, step.stage_layers):
                for what, runs in (
                    ("forward", model.seq_len),
                    ("backward", model.seq_len),
                    ("update", 1),
                ):
                    for item in operators_of(step.layers, part, what):
                        yield "", item, runs
        case GemmModel():
            product = gemm_run(hardware, model)
            yield from (("", item, 1.0) for item in (*product.compute, *product.update))
        case CollectiveModel():
            return


def _count(dots: dict[str, _Dot], prefix: str, item: OperatorCost, runs: float) -> None:
    operator, cost = item.operator, item.cost
    match operator:
        case Collective():
            return
        case Gemm() | GroupedGemm():
            kind = _KINDS[0]
        case Attention():
            kind = _KINDS[1]
        case Elementwise():
            kind = _KINDS[2]
    dot = dots.setdefault(f"{prefix}{operator.name.split('.')[0]}", _Dot(kind))
    time = (cost.time - cost.launch) * runs
    dot.time += time
    dot.flops += cost.flops * runs
    dot.dram_bytes += cost.dram_bytes * runs
    dot.l2_bytes += cost.l2_bytes * runs
    dot.bounds[item.bound] = dot.bounds.get(item.bound, 0.0) + time


def _draw_roofs(axes: Axes, hardware: Hardware, low: float, high: float, *, attends: bool) -> float:
    """Rates of the core and bandwidths of all levels; returns the highest rate in FLOP/s."""
    core, software = hardware.accelerator.core, hardware.config.sw_param
    own = software.dtype or f"{8 * software.precision:g} bit"
    rates = {f"peak, {own}": core.peak_flops, f"matrix products, {own}": core.usable_flops}
    if attends and core.attention_flops != core.usable_flops:
        rates[f"attention, {own}"] = core.attention_flops
    if software.matrix_dtype is not None:
        technology = hardware.config.tech_param.core
        rate = technology.usable_rate(software.matrix_dtype, software.dtype)
        rates[f"matrix products, {software.matrix_dtype}"] = core.usable_flops * rate
    top = max(rates.values())
    for (name, rate), style in zip(rates.items(), DASHES, strict=False):
        axes.plot(
            [low, high],
            [rate, rate],
            color="black",
            linestyle=style,
            linewidth=0.9,
            zorder=2,
            label=f"{name}: {_rate(rate, 'FLOP/s')}",
        )
    for number, level in enumerate(reversed(hardware.accelerator.memory)):
        outermost = number == 0
        axes.plot(
            [low, top / level.bandwidth],
            [low * level.bandwidth, top],
            color=GRAY,
            zorder=1,
            linewidth=1.5 if outermost else 0.9,
            linestyle="solid" if outermost else "dotted",
        )
    return top


def _name_slopes(
    figure: Figure, axes: Axes, hardware: Hardware, low: float, floor: float, top: float
) -> None:
    """Names of the bandwidths along the feet of their roofs."""
    # Where everything is has to be known before the slope is.
    figure.draw_without_rendering()
    corners = axes.transData.transform([(low, floor), (10 * low, 10 * floor)])
    (across, up) = corners[1] - corners[0]
    for level in hardware.accelerator.memory:
        foot = max(low * level.bandwidth, floor) * 1.4
        if foot < top / 4:
            axes.annotate(
                f"{level.name} {_rate(level.bandwidth, 'bytes/s')}",
                (foot / level.bandwidth, foot),
                (0, 2),
                textcoords="offset points",
                color=GRAY,
                fontsize=7.5,
                rotation=degrees(atan2(up, across)),
                rotation_mode="anchor",
                va="bottom",
            )


def _rate(value: float, unit: str) -> str:
    factor, name = scale_of(value, unit)
    return f"{value / factor:.3g} {name}"


def _put_labels(
    axes: Axes,
    beside: Axes,
    labels: Sequence[tuple[str, float, float]],
    floor: float,
    ceiling: float,
) -> None:
    """Labels of dots (text, x, y) in a column ``beside`` the picture, with a line to each dot.

    They come in order, the highest first.
    """
    from matplotlib.patches import ConnectionPatch

    beside.axis("off")
    height = log(ceiling / floor)
    # From the top down, none closer to the one above than a line of text.
    rows: list[float] = []
    for _, _, y in labels:
        row = log(y / floor) / height
        rows.append(min(row, rows[-1] - _ROW) if rows else min(row, 1.0))
    # If that runs out of the picture, everything moves up as far as it has to.
    lowest = 0.0
    for place in reversed(range(len(rows))):
        rows[place] = max(rows[place], lowest)
        lowest = rows[place] + _ROW
    for (text, x, y), row in zip(labels, rows, strict=True):
        label = beside.text(0, row, text, transform=beside.transAxes, fontsize=7, va="center")
        label.set_in_layout(False)
        line = ConnectionPatch(
            (x, y),
            (-0.01, row),
            coordsA="data",
            coordsB="axes fraction",
            axesA=axes,
            axesB=beside,
            color=GRAY,
            linewidth=0.4,
            zorder=2,
        )
        line.set_in_layout(False)
        axes.add_artist(line)


def _put_looks(key: Axes, axes: Axes, kinds: set[str], narrow: bool) -> None:
    dots = [
        axes.scatter([], [], s=30, color=COLORS[place], marker=MARKERS[place], label=kind)
        for place, kind in enumerate(_KINDS)
        if kind in kinds
    ]
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    if narrow:
        _put_key(key, [*dots, *lines], 1, labelspacing=0.2)
        return
    # Filled column by column: kinds of operators in the first one.
    empty = axes.scatter([], [], s=0, label=" ")
    rows = max(len(dots), len(lines))
    left: list[Artist] = [*dots, *[empty] * (rows - len(dots))]
    _put_key(key, [*left, *lines], 2)
