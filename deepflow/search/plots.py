"""The figures of a search, drawn from its tables. Each is 1200 x 800 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.errors import DeepFlowError
from deepflow.files import atomic_output, unusable
from deepflow.search.objectives import METRICS, OBJECTIVES
from deepflow.search.space import Search

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FEW = 10
"""Up to this many cases have a colour and a name; of more, the best do."""


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
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 8), dpi=100)
    draw = {"convergence": _convergence, "cases": _cases, "pareto": _pareto}[name]
    draw(axes, search, Path(folder))
    axes.set_title(search.description or search.name, wrap=True)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    for output in outputs:
        with atomic_output(output) as temporary:
            figure.savefig(temporary, format=Path(output).suffix[1:])
    plt.close(figure)


def _read(folder: Path, name: str, columns: list[str] | None = None) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / f"{name}.parquet"
    try:
        frame: pd.DataFrame = pq.read_table(file, columns=columns).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise unusable(file, error) from None
    return frame


def _label(name: str) -> str:
    unit = METRICS[name].column.unit
    return f"{name} [{unit}]" if unit else name


def _convergence(axes: Axes, search: Search, folder: Path) -> None:
    """Best so far over evaluations: a line for each start, one colour for each case."""
    frame = _read(folder, "evaluations", ["case", "start", "evaluation", "best_cost"])
    # Nothing is drawn of a start that has no feasible design.
    frame = frame.dropna(subset="best_cost")
    last = frame.groupby("case")["best_cost"].min().sort_values()
    shown = last.index[:FEW]
    several = len(search.objectives) > 1
    objective = search.objectives[0]
    invert = OBJECTIVES[objective] and not several
    run_of = frame.groupby("case")["start"].min()
    for number, case in enumerate(shown):
        for start, run in frame[frame["case"] == case].groupby("start"):
            values = run["best_cost"].astype(float)
            axes.plot(
                run["evaluation"],
                1 / values if invert else values,
                color=f"C{number}",
                alpha=0.7,
                label=case if start == run_of[case] else None,
            )
    axes.set_xlabel("evaluations")
    axes.set_ylabel("cost (weighted mean of objectives)" if several else _label(objective))
    _logarithmic(axes, frame)
    if len(last) > 1:
        axes.legend(title=_of_all(len(shown), len(last)), fontsize="small")


def _logarithmic(axes: Axes, frame: pd.DataFrame) -> None:
    # Matplotlib finds no range for nothing.
    if len(frame):
        axes.set_xscale("log")
        axes.set_yscale("log")


def _of_all(shown: int, everything: int) -> str:
    return "case" if shown == everything else f"the best {shown} of {everything} cases"


def _cases(axes: Axes, search: Search, folder: Path) -> None:
    """The best design of each case, best first."""
    objective = search.objectives[0]
    frame = _read(folder, "best", ["case", objective])
    groups = frame.groupby("case")[objective]
    best = groups.max() if OBJECTIVES[objective] else groups.min()
    # In their order in the file if all can be shown, as nodes are; otherwise the best ones.
    names: list[Any] = [name for name in search.cases if name in best.index]
    if len(names) > 2 * FEW:
        names = list(best.sort_values(ascending=not OBJECTIVES[objective]).index[: 2 * FEW])
    axes.barh(names[::-1], best[names[::-1]])
    axes.set_xlabel(_label(objective))
    hidden = len(search.cases) - len(names)
    if hidden:
        axes.set_ylabel(f"{hidden} cases are worse, or have no feasible design")


def _pareto(axes: Axes, search: Search, folder: Path) -> None:
    """All feasible designs in the plane of the first two objectives, and the front."""
    first, second = search.objectives[:2]
    frame = _read(folder, "evaluations", ["case", "feasible", first, second])
    frame = frame[frame["feasible"]]
    front = _read(folder, "pareto", ["case", first, second]).sort_values(first)
    axes.scatter(frame[first], frame[second], s=4, alpha=0.2, color="grey", label="evaluated")
    for number, (case, rows) in enumerate(front.groupby("case", sort=False)):
        label = str(case) if number < FEW else None
        axes.scatter(rows[first], rows[second], s=20, color=f"C{number % FEW}", label=label)
    axes.set_xlabel(_label(first))
    axes.set_ylabel(_label(second))
    _logarithmic(axes, frame)
    axes.legend(title="Pareto front by case", fontsize="small")
