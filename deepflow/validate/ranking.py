"""Does the model choose well: is what it takes for the fastest configuration a fast one?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deepflow.record import record
from deepflow.validate.machines import machine_name
from deepflow.validate.tables import ValidatedRow
from deepflow.validate.training import metric_name

THROUGHPUTS = ("tok_per_s_per_gpu", "throughput")
GOOD_CHOICE_PERCENT = 5.0


@record(frozen=True)
class Choice:
    """Measured runs of one model on as many devices, and the one that is predicted fastest.

    ``loss_percent``: how much slower, as measured, it is than the fastest run.
    """

    machine: str
    model: str
    devices: int
    runs: int
    loss_percent: float

    @property
    def good(self) -> bool:
        return self.loss_percent <= GOOD_CHOICE_PERCENT


def choices(rows: Iterable[ValidatedRow]) -> list[Choice]:
    """Every group of at least two throughputs of one model on as many devices.

    Only runs that the model can explain and has predicted take part.
    """
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for item in rows:
        if metric_name(item.row) not in THROUGHPUTS or not item.explicable:
            continue
        if item.predicted is not None and item.measured is not None:
            groups.setdefault(_group_of(item.row), []).append((item.predicted, item.measured))
    return [
        Choice(machine, model, int(devices), len(runs), _loss_percent(runs))
        for (machine, model, devices), runs in groups.items()
        if len(runs) > 1
    ]


def ranking_text(found: Iterable[Choice]) -> str:
    """One line on how often the choice was good; "" without choices."""
    found = list(found)
    if not found:
        return ""
    good = sum(choice.good for choice in found)
    return (
        f"ranking: the run predicted fastest is within {GOOD_CHOICE_PERCENT:g} % of the fastest in"
        f" {good} of {len(found)} groups of one model and device count"
    )


def _group_of(row: Mapping[str, str]) -> tuple[str, str, str]:
    return machine_name(row), row.get("model", ""), row["n_gpus"]


def _loss_percent(runs: list[tuple[float, float]]) -> float:
    chosen = max(runs)[1]
    return 100 * (1 - chosen / max(measured for _, measured in runs))
