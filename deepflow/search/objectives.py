"""What a search may make best, and what it may bound.

A metric is a column of a prediction or follows from some. Objectives are metrics with a direction.
"""

from __future__ import annotations

from collections.abc import Callable

from deepflow.prediction import COLUMNS, Column, Prediction
from deepflow.record import record

Value = float | None


@record(frozen=True)
class Metric:
    """A number of a prediction; None where it is not known."""

    column: Column
    of: Callable[[Prediction], Value]


def _result(name: str) -> Callable[[Prediction], Value]:
    def of(prediction: Prediction) -> Value:
        value = getattr(prediction, name)
        return None if value is None else float(value)

    return of


def _product(one: str, other: str) -> Callable[[Prediction], Value]:
    def of(prediction: Prediction) -> Value:
        first, second = getattr(prediction, one), getattr(prediction, other)
        return None if first is None or second is None else first * second

    return of


def _ratio(one: str, other: str) -> Callable[[Prediction], Value]:
    def of(prediction: Prediction) -> Value:
        first, second = getattr(prediction, one), getattr(prediction, other)
        return first / second if first is not None and second else None

    return of


DERIVED: dict[str, Metric] = {
    "energy_delay_js": Metric(
        Column(float, "J s", "energy_j times time_s"), _product("energy_j", "time_s")
    ),
    "tokens_per_second_per_watt": Metric(
        Column(float, "1/J", "tokens_per_second over average_power_w: tokens per joule"),
        _ratio("tokens_per_second", "average_power_w"),
    ),
    "power_per_device_w": Metric(
        Column(float, "W", "average_power_w over num_devices"),
        _ratio("average_power_w", "num_devices"),
    ),
}

METRICS: dict[str, Metric] = {
    name: Metric(column, _result(name))
    for name, column in COLUMNS.items()
    if column.dtype in (int, float)
} | DERIVED

# Objective -> whether more of it is better.
OBJECTIVES: dict[str, bool] = {
    "time_s": False,
    "energy_j": False,
    "energy_delay_js": False,
    "power_per_device_w": False,
    "time_to_train_s": False,
    "time_to_first_token_s": False,
    "time_per_output_token_s": False,
    "inter_token_latency_s": False,
    "energy_per_token_j": False,
    "peak_memory_bytes": False,
    "tokens_per_second": True,
    "tokens_per_second_per_device": True,
    "tokens_per_second_per_sequence": True,
    "tokens_per_second_per_watt": True,
    "model_flops_utilization": True,
}
