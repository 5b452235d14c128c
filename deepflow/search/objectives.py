"""What a search may make best, and what it may bound.

A metric is a column of a prediction, a number of the device that it is for, or follows from some.
Objectives are metrics with a direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deepflow.hardware import Hardware
from deepflow.hardware.manufacturing import device_cost, package_area, power_of_parts
from deepflow.prediction import COLUMNS, Column, Prediction
from deepflow.record import record

Value = float | None
Device = Mapping[str, Value]

DEVICE_COLUMNS: dict[str, Column] = {
    "chip_area_mm2": Column(float, "mm2", "the chip"),
    "package_area_mm2": Column(float, "mm2", "the chip and its memory stacks"),
    "power_budget_w": Column(float, "W", "what the parts of a device may draw together"),
    "die_yield": Column(float, "", "chips that work; empty without costs"),
    "device_cost_usd": Column(
        float, "USD", "what making a device costs; empty without hardware.manufacturing"
    ),
}


def device_numbers(hardware: Hardware) -> dict[str, Value]:
    """The numbers of a device that do not depend on what it runs: ``DEVICE_COLUMNS``."""
    cost = device_cost(hardware)
    return {
        "chip_area_mm2": hardware.config.area_breakdown.proc_chip_area_budget,
        "package_area_mm2": package_area(hardware),
        "power_budget_w": power_of_parts(hardware.config),
        "die_yield": None if cost is None else cost.die_yield,
        "device_cost_usd": None if cost is None else cost.total,
    }


@record(frozen=True)
class Metric:
    """A number of a prediction and the device that it is for; None where it is not known."""

    column: Column
    of: Callable[[Prediction, Device], Value]


def _found(name: str, prediction: Prediction, device: Device) -> Value:
    value = device.get(name) if name in DEVICE_COLUMNS else getattr(prediction, name)
    return None if value is None else float(value)


def _result(name: str) -> Callable[[Prediction, Device], Value]:
    def of(prediction: Prediction, device: Device) -> Value:
        return _found(name, prediction, device)

    return of


def _product(*names: str) -> Callable[[Prediction, Device], Value]:
    def of(prediction: Prediction, device: Device) -> Value:
        product = 1.0
        for name in names:
            value = _found(name, prediction, device)
            if value is None:
                return None
            product *= value
        return product

    return of


def _ratio(one: str, *others: str) -> Callable[[Prediction, Device], Value]:
    below = _product(*others)

    def of(prediction: Prediction, device: Device) -> Value:
        first, second = _found(one, prediction, device), below(prediction, device)
        return first / second if first is not None and second else None

    return of


DERIVED: dict[str, Metric] = {
    **{name: Metric(column, _result(name)) for name, column in DEVICE_COLUMNS.items()},
    "system_cost_usd": Metric(
        Column(float, "USD", "device_cost_usd times num_devices"),
        _product("device_cost_usd", "num_devices"),
    ),
    "cost_delay_usd_s": Metric(
        Column(float, "USD s", "system_cost_usd times time_s: how long how much is taken up"),
        _product("device_cost_usd", "num_devices", "time_s"),
    ),
    "tokens_per_second_per_usd": Metric(
        Column(float, "1/(s USD)", "tokens_per_second over system_cost_usd"),
        _ratio("tokens_per_second", "device_cost_usd", "num_devices"),
    ),
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
    "chip_area_mm2": False,
    "device_cost_usd": False,
    "system_cost_usd": False,
    "cost_delay_usd_s": False,
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
    "tokens_per_second_per_usd": True,
    "model_flops_utilization": True,
}
