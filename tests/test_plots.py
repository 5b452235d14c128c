"""Figures of sweeps: what they show, what they say they leave out, and how they look."""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import seaborn
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from deepflow.errors import ConfigError
from deepflow.prediction import MEMORY_COLUMNS, TIME_COLUMNS
from deepflow.style import COLORS, WIDTHS, class_looks, fold, new_figure, put_legend, save
from deepflow.sweep import plots
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.plots import check_plots, draw_plot
from deepflow.sweep.points import Sweep
from deepflow.sweep.tables import gather, summary_columns, write_shard
from test_workflow import new_project

SWEEP = """\
description: Which split is best?
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-7B.yaml
set: {model.global_batch_size: 64, parallelism.zero: 1}
points_per_job: 100
grid:
  parallelism.tensor: [1, 2, 3, 4, 8]
  parallelism.micro_batch_size: [1, 2]
  hardware.tech_param.DRAM.bandwidth: [2 TB/s, 3.352e12]
  parallelism.recompute: [none, full]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plots")


@pytest.fixture(autouse=True)
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def load(folder: Path, plots: str) -> Sweep:
    path = folder / "test.yaml"
    path.write_text(SWEEP + f"plots: [{plots}]\n")
    return load_sweep(path)


@pytest.fixture(scope="module")
def summary(folder: Path, repository: Path) -> Path:
    """40 points: 8 infeasible (tensor 3), some out of memory, the others fine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        sweep = load(folder, "")
        for name in sweep.shards:
            write_shard(sweep, name, folder / "results" / "shards" / f"{name}.parquet")
        gather(sweep, folder / "results", folder / "summary.parquet")
    return folder / "summary.parquet"


def drawn(folder: Path, summary: Path, plot: str) -> str:
    """The texts of the figure, which is drawn as SVG, PNG and SVG again."""
    sweep = load(folder, plot)
    check_plots(sweep.plots, list(summary_columns(sweep)), sweep.file)
    png, svg, again = (folder / name for name in ("plot.png", "plot.svg", "again.svg"))
    draw_plot(sweep.plots[0], summary, [png, svg], sweep.file)
    draw_plot(sweep.plots[0], summary, [again], sweep.file)
    assert svg.read_bytes() == again.read_bytes()
    width, _ = struct.unpack(">II", png.read_bytes()[16:24])
    assert width == int(200 * WIDTHS[sweep.plots[0].width])
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text()))


PLOTS = {
    "{kind: line, x: bandwidth, y: time_s, hue: tensor, goal: minimum}": [
        "time per step (s)",
        "DRAM bandwidth (TB/s)",
        "tensor parallelism",
        "3.352",
        "Which split is best?",
    ],
    "{kind: line, x: tensor, y: tokens_per_second, style: micro_batch_size}": [
        "thousand tokens/s",
        "mean of the points",
        "micro batch size",
    ],
    "{kind: scatter, x: tensor, y: energy_j, hue: bandwidth, log_y: true}": [
        "energy (kJ)",
        "bandwidth",
        "2 TB/s",
    ],
    "{kind: heatmap, x: tensor, y: bandwidth, value: time_s, goal: minimum}": [
        "time per step (s)",
        "bandwidth",
        "2 TB/s",
        "\N{MULTIPLICATION SIGN}: infeasible",
    ],
    "{kind: heatmap, x: tensor, y: micro_batch_size, value: time_s, where: recompute == 'none' and"
    " bandwidth == 2e12}": ["OOM: only points that are out of memory"],
    "{kind: pareto, x: peak_memory_bytes, y: time_s, hue: tensor, label: [tensor]}": [
        "peak memory (GB)",
        "Pareto front",
        "less peak memory and less time",
        "1: tensor",
    ],
    "{kind: pareto, x: tokens_per_second, y: energy_j, goal_x: maximum, hue: tensor,"
    " fronts: tensor, label: [bandwidth]}": [
        "front of 2 (",
        "TB/s",
        "more tokens/s and less energy are better",
    ],
    "{kind: breakdown, best: 3}": ["time per step (s)", "matrix products", "the 3 fastest points"],
    "{kind: breakdown, x: tensor, title: Bars}": ["Bars", "the fastest point for each tensor"],
    "{kind: memory, x: tensor}": ["peak memory (GB)", "weights", "optimizer", "capacity"],
    "{kind: line, x: tensor, y: time_s, column: recompute, row: micro_batch_size,"
    " hue: bandwidth}": ["micro batch size 1, recompute full", "micro batch size 2"],
    "{kind: scatter, x: tensor, y: time_s, column: recompute, row: micro_batch_size, where:"
    " recompute == 'full' or micro_batch_size == 1}": ["micro batch size 2, recompute none"],
    "{kind: heatmap, x: tensor, y: bandwidth, value: time_s, column: recompute, goal: minimum}": [
        "recompute none",
        "recompute full",
    ],
    "{kind: line, x: tensor, y: time_s, where: tensor > 100}": ["nothing to draw: 0 of 40 points"],
}


@pytest.mark.parametrize(
    ("plot", "width"),
    [(plot, "page") for plot in PLOTS] + [(plot, "column") for plot in list(PLOTS)[::4]],
)
def test_figures_say_what_they_show_and_what_not(
    folder: Path, summary: Path, plot: str, width: str
) -> None:
    text = drawn(folder, summary, f"{plot[:-1]}, width: {width}}}")
    # On a column, the caption has its line breaks elsewhere.
    joined = text.replace("\n", " ")
    for part in [*PLOTS[plot], "of 40 points", "infeasible"]:
        assert part in joined, f"{part!r} is not in the figure: {text}"


@pytest.mark.parametrize("width", ["page", "column"])
def test_every_panel_has_its_own_values(folder: Path, summary: Path, width: str) -> None:
    text = drawn(
        folder,
        summary,
        "{kind: heatmap, x: micro_batch_size, y: recompute, value: time_s, column: tensor,"
        f" goal: minimum, out_of_memory: true, width: {width}}}",
    )
    table = pd.read_parquet(summary)
    best = table.groupby(["tensor", "micro_batch_size", "recompute"])["time_s"].min().dropna()
    panels = re.split(r"tensor parallelism \d", text)
    assert len(panels) == 1 + best.index.get_level_values("tensor").nunique()
    if width == "page":
        for name, panel in zip(sorted(set(best.index.get_level_values(0))), panels, strict=False):
            for value in best[name]:
                shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
                assert shown in panel, f"{shown} of tensor {name} is not in {panel}"


def test_lines_go_through_the_mean_on_logarithmic_axes_too(
    folder: Path, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, _: figures.append(figure))
    sweep = load(folder, "{kind: line, x: tensor, y: time_s, column: recompute, log_y: true}")
    draw_plot(sweep.plots[0], summary, [], sweep.file)
    table = pd.read_parquet(summary)
    rows = table[table["status"] == "ok"]
    panels = rows.groupby(["recompute", "tensor"])["time_s"].mean().groupby(level=0)
    for axes, (_, means) in zip(figures[0].axes, panels, strict=True):
        assert axes.get_yscale() == "log"
        assert list(axes.lines[0].get_ydata()) == pytest.approx(list(means))


def test_all_points_are_drawn_or_counted(folder: Path, summary: Path) -> None:
    text = drawn(folder, summary, "{kind: scatter, x: tensor, y: time_s, where: tensor < 8}")
    table = pd.read_parquet(summary)
    counts = table["status"].value_counts()
    shown = ((table["status"] == "ok") & (table["tensor"] < 8)).sum()
    assert f"{shown} of 40 points" in text
    assert f"{counts['infeasible']} infeasible" in text
    assert f"{counts['out_of_memory']} out of memory" in text
    assert f"{counts['ok'] - shown} by where" in text


def test_points_out_of_memory_are_hollow_or_hatched_and_counted(
    folder: Path, summary: Path
) -> None:
    table = pd.read_parquet(summary)
    count = (table["status"] == "out_of_memory").sum()
    for plot in (
        "{kind: scatter, x: tensor, y: time_s, out_of_memory: true}",
        "{kind: pareto, x: peak_memory_bytes, y: time_s, out_of_memory: true}",
        "{kind: heatmap, x: tensor, y: recompute, value: peak_memory_bytes, goal: maximum,"
        " out_of_memory: true}",
    ):
        text = drawn(folder, summary, plot)
        assert f"{count} do not fit in memory" in text
        assert "does not fit in memory" in text
    assert " OOM" in drawn(folder, summary, "{kind: memory, best: 40, out_of_memory: true}")


@pytest.mark.parametrize(
    ("columns", "whole"), [(TIME_COLUMNS, "time_s"), (MEMORY_COLUMNS, "peak_memory_bytes")]
)
def test_the_parts_of_a_stack_are_the_whole(
    summary: Path, columns: tuple[str, ...], whole: str
) -> None:
    table = pd.read_parquet(summary)
    rows = table[table["status"] != "infeasible"]
    assert len(rows) > 20
    parts = rows[list(columns)].fillna(0).sum(axis=1)
    pd.testing.assert_series_equal(parts, rows[whole], check_names=False, rtol=1e-6)


def test_a_short_logarithmic_axis_has_numbers(folder: Path, summary: Path) -> None:
    text = drawn(
        folder, summary, "{kind: scatter, x: hardware, y: time_s, log_y: true, where: tensor == 2}"
    )
    assert len(re.findall(r"(?<![\w.])\d+\.?\d*(?![\w.])", text.split("time per step")[0])) >= 3


def test_what_a_logarithmic_axis_cannot_show_is_counted(folder: Path, summary: Path) -> None:
    table = pd.read_parquet(summary)
    rows = table[table["status"] == "ok"]
    zeros = (rows["time_tensor_communication_s"] == 0).sum()
    assert 0 < zeros < len(rows)
    plot = "{kind: scatter, x: tensor, y: time_tensor_communication_s, log_y: true"
    text = drawn(folder, summary, plot + "}")
    assert f"{zeros} without time tensor communication are not on its logarithmic axis" in text
    with pytest.raises(ConfigError, match="has no value above 0"):
        drawn(folder, summary, plot + ", where: tensor == 1}")


def beaten(point: tuple[float, float], points: list[tuple[float, float]]) -> bool:
    """Whether another one has less x and more y, or one of them and the other equal."""
    return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in points)


def test_the_pareto_front_is_the_points_that_no_other_beats(folder: Path, summary: Path) -> None:
    text = drawn(
        folder,
        summary,
        "{kind: pareto, x: peak_memory_bytes, y: tokens_per_second, goal: maximum,"
        " out_of_memory: true}",
    )
    table = pd.read_parquet(summary)
    rows = table[table["status"] == "ok"]
    points = list(zip(rows["peak_memory_bytes"], rows["tokens_per_second"], strict=True))
    front = {point for point in points if not beaten(point, points)}
    assert f"Pareto front ({len(front)})" in text


def test_each_value_of_a_column_can_have_its_own_front(folder: Path, summary: Path) -> None:
    text = drawn(
        folder,
        summary,
        "{kind: pareto, x: tokens_per_second, goal_x: maximum, y: peak_memory_bytes,"
        " fronts: tensor}",
    )
    table = pd.read_parquet(summary)
    for tensor, rows in table[table["status"] == "ok"].groupby("tensor"):
        points = list(zip(rows["peak_memory_bytes"], rows["tokens_per_second"], strict=True))
        front = {point for point in points if not beaten(point, points)}
        assert f"front of {tensor} ({len(front)})" in text


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("{kind: line, x: tensr, y: time_s}", "did you mean 'tensor'"),
        ("{kind: line, x: tensor, y: time}", "no column is called 'time'"),
        ("{kind: line, x: tensor, y: time_s, row: recomput}", "did you mean 'recompute'"),
        ("{kind: breakdown, where: tesnor > 1}", "unknown name 'tesnor'"),
        ("{kind: memory, hue: tensor}", "means nothing to a memory plot"),
        ("{kind: line, x: tensor, y: time_s, width: poster}", "allowed: column, page"),
        ("{kind: line, x: tensor, y: time_s, measured: none.csv}", "no such file"),
    ],
)
def test_what_a_plot_cannot_show_is_refused(folder: Path, plot: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        sweep = load(folder, plot)
        check_plots(sweep.plots, list(summary_columns(sweep)), sweep.file)


def test_a_heatmap_with_several_points_per_cell_needs_a_goal(folder: Path, summary: Path) -> None:
    sweep = load(folder, "{kind: heatmap, x: tensor, y: bandwidth, value: time_s, name: heat}")
    with pytest.raises(ConfigError, match="say by goal which one counts"):
        draw_plot(sweep.plot("heat"), summary, [folder / "heat.png"], sweep.file)
    assert not (folder / "heat.png").exists()


MEASURED = (
    "{kind: line, x: tensor, y: time_s, hue: recompute, goal: minimum, measured: measured.csv}"
)


def test_measured_points_are_drawn_beside_predictions(folder: Path, summary: Path) -> None:
    table = pd.read_parquet(summary)
    rows = table[(table["status"] == "ok") & (table["recompute"] == "full")]
    best = rows.groupby("tensor")["time_s"].min()
    measured = pd.DataFrame({"tensor": best.index, "recompute": "full", "time_s": best / 1.25})
    measured["time_s_low"] = 0.9 * measured["time_s"]
    measured["time_s_high"] = 1.1 * measured["time_s"]
    # A class of which nothing was predicted cannot be drawn, and is counted.
    other = measured.assign(recompute="selective")
    pd.concat([measured, other]).to_csv(folder / "measured.csv", index=False)
    text = drawn(folder, summary, MEASURED)
    assert f"{len(measured)} of {2 * len(measured)} measured points of measured.csv" in text
    assert "predictions differ from them by 25 % in the median" in text
    assert {"predicted", "measured"} <= set(text.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tensor,time_s\n1,2\n", "has no column 'recompute'"),
        ("tensor,recompute,time_s\n1,full,2 s\n", "must be numbers in SI units"),
        ("tensor,recompute,time_s,time_s_low,time_s_high\n1,full,2,3,1\n", "above time_s_high"),
        ("", "has no column 'tensor'"),
    ],
)
def test_unusable_measurements_are_refused(
    folder: Path, summary: Path, content: str, message: str
) -> None:
    (folder / "measured.csv").write_text(content)
    sweep = load(folder, MEASURED)
    with pytest.raises(ConfigError, match=re.escape(message)):
        draw_plot(sweep.plots[0], summary, [folder / "refused.png"], sweep.file)


def test_a_figure_is_made_again_when_its_measurements_change(folder: Path) -> None:
    fingerprints = set()
    for value in (1, 2):
        (folder / "measured.csv").write_text(f"tensor,recompute,time_s\n1,full,{value}\n")
        fingerprints.add(load(folder, MEASURED).plots[0].fingerprint)
    assert len(fingerprints) == 2


def lightness(color: str) -> float:
    """Relative luminance of sRGB (IEC 61966-2-1), 0 to 1."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colors_can_be_seen_on_white_and_neighbours_told_apart_in_gray() -> None:
    assert all(1.05 / (lightness(color) + 0.05) > 2 for color in COLORS)
    for one, other in pairwise(COLORS):
        light, dark = sorted((lightness(one) + 0.05, lightness(other) + 0.05), reverse=True)
        assert light / dark > 1.15


def test_colors_are_those_of_a_palette_for_all_kinds_of_vision() -> None:
    assert set(COLORS) < {*seaborn.color_palette("colorblind").as_hex(), "#000000"}


def test_no_two_classes_look_the_same() -> None:
    looks = class_looks(range(64))
    assert len({(looks["palette"][name], looks["markers"][name]) for name in range(64)}) == 64


@given(st.text(alphabet="ab_- /", max_size=40), st.integers(1, 20))
def test_folding_keeps_all_letters(name: str, width: int) -> None:
    kept = "".join(fold(name, width).split())
    assert kept == "".join(name.split())
    longest = max(map(len, re.split(r"(?<=[ _/-])", name)), default=0)
    assert all(len(line) <= max(width, longest) for line in fold(name, width).split("\n"))


def test_a_legend_makes_a_figure_higher_and_takes_nothing_from_the_data(tmp_path: Path) -> None:
    boxes = []
    for count in (1, 20):
        figure = new_figure("column")
        axes = figure.subplots()
        for number in range(count):
            axes.plot([0, 1], [0, 1], label=f"a class with a long name {number}")
        put_legend(figure)
        save(figure, [tmp_path / "figure.png"])
        boxes.append((axes.get_window_extent().height, figure.get_figheight()))
    (alone, low), (crowded, high) = boxes
    assert crowded == pytest.approx(alone, rel=0.02)
    assert high > low + 1


def test_the_gallery_shows_a_small_figure_of_every_example(repository: Path) -> None:
    page = (repository / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(images/(\S+)\.svg\)", page)
    sweeps = {path.stem for path in (repository / "sweeps").glob("*.yaml")}
    searches = {path.stem for path in (repository / "searches").glob("*.yaml")}
    assert sweeps <= set(shown) <= sweeps | searches
    for name in shown:
        assert f"### {name}\n" in page
        assert f"sweeps/{name}.yaml" in page or f"searches/{name}/best.txt" in page
        assert (repository / "docs" / "images" / f"{name}.svg").stat().st_size < 150_000


def test_figures_of_the_documentation_are_made_again_byte_by_byte(
    repository: Path, tmp_path: Path
) -> None:
    project = new_project(tmp_path / "project", repository)
    project.sweep(
        "one",
        "hardware: hardware/first.yaml\nmodel: configs/model-config/GEMM.yaml\n"
        "grid: {model.M: [128, 256]}\nplots: [{kind: line, x: M, y: time_s}]\n",
    )
    figure = project.folder / "docs" / "images" / "one.svg"
    made = []
    for _ in range(2):
        run = project.snakemake("figures", "--config", "sweeps=sweeps/one.yaml")
        assert run.code == 0, run.text
        made.append(figure.read_bytes())
        figure.unlink()
        for drawn in (project.folder / "results" / "one" / "plots").iterdir():
            drawn.unlink()
    assert made[0] == made[1]
