"""Matrix products of many points at once: the numbers of ``prediction.predict``, sooner.

Points that lie on the same positions of the axes that change the hardware share a machine, which is
derived and mapped once. Machines that cut products alike form a group: its points are mapped by the
functions of the single point, with arrays for the sides of the products, and all their products are
searched together. Collectives and updates are costed once per machine and size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deepflow.batch import changes_at, empty_columns, fill_one_by_one
from deepflow.config import HardwareConfig, with_overrides
from deepflow.config.model import GemmModel
from deepflow.cost.gemm import ElementBytes, capacity_in_elements
from deepflow.cost.gemm_search import search_gemms
from deepflow.cost.operators import (
    COST_FIELDS,
    Cost,
    OperatorCost,
    formats,
    operator_cost,
    product_cost,
    total,
)
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import Hardware, derive_hardware
from deepflow.hardware.accelerator import RooflineLimits
from deepflow.mapping.kernel import KernelMapping, KernelSplit
from deepflow.prediction import TIME_COLUMNS, gemm_columns, memory_reason
from deepflow.schedule.gemm import GemmRun, map_gemm, rank_work
from deepflow.workload.operators import Gemm, Operator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepflow.batch import Columns, Overrides

    Indices = NDArray[np.intp]

Device = tuple[RooflineLimits, ElementBytes]


@dataclass(frozen=True)
class _Machine:
    """A device with what it does to products; ``device``: all that the search depends on."""

    hardware: Hardware
    mapping: KernelMapping
    device: Device

    @property
    def kind(self) -> tuple[object, ...]:
        """Machines of one kind can be stacked: what decides between formulas is the same."""
        accelerator, software = self.hardware.accelerator, self.hardware.config.sw_param
        energies = (
            accelerator.core.energy_per_flop,
            accelerator.intra_node.energy_per_bit,
            accelerator.inter_node.energy_per_bit,
            *[level.dynamic_energy_per_bit for level in accelerator.memory],
        )
        return (
            self.mapping.splits["gemm"],
            software.precision,
            self.mapping.data > 1,
            tuple(energy is None for energy in energies),
        )


@dataclass(frozen=True)
class _Alone:
    """A machine whose points are predicted one by one."""


Candidate = _Machine | _Alone | InfeasiblePoint

# Machines of the sweep at hand: shards follow each other in one process.
_known: tuple[HardwareConfig, Overrides, dict[tuple[int, ...], Candidate]] | None = None


def predict_gemm_points(
    hardware: HardwareConfig,
    model: GemmModel,
    overrides: Overrides,
    positions: NDArray[np.int64],
) -> Columns:
    """``predict_points`` for matrix products."""
    columns = empty_columns(len(positions))
    machines, which = _machines(hardware, overrides, positions)
    kinds: dict[tuple[object, ...], dict[int, _Machine]] = {}
    alone: list[int] = []
    for number, machine in enumerate(machines):
        if isinstance(machine, InfeasiblePoint):
            points = np.flatnonzero(which == number)
            _default(columns, points)
            columns["status"][points], columns["reason"][points] = machine.status, str(machine)
        elif isinstance(machine, _Alone):
            alone += np.flatnonzero(which == number).tolist()
        else:
            kinds.setdefault(machine.kind, {})[number] = machine
    sides: dict[str, Any] = {
        key: _of_points(model, key, overrides, positions) for key in ("M", "K", "N")
    }
    backward = _of_points(model, "backward", overrides, positions).astype(bool)
    for of_kind in kinds.values():
        members = np.full(len(machines), -1)
        members[list(of_kind)] = np.arange(len(of_kind))
        for passes in (False, True):
            points = np.flatnonzero((members[which] >= 0) & (backward == passes))
            if points.size:
                some = replace(model, backward=passes, **{k: v[points] for k, v in sides.items()})
                found = _predict(list(of_kind.values()), members[which[points]], some)
                for name, values in found.items():
                    columns[name][points] = values
    fill_one_by_one(columns, sorted(alone), hardware, model, overrides, positions)
    return columns


def _default(columns: Columns, points: Indices) -> None:
    """Texts that every point has, whether or not it can be predicted."""
    for name in ("backend_requested", "backend_used"):
        columns[name][points] = "analytical"
    columns["fallback_reason"][points] = ""


def _machines(
    hardware: HardwareConfig, overrides: Overrides, positions: NDArray[np.int64]
) -> tuple[list[Candidate], Indices]:
    """The machines of the points, and the number of each point's."""
    global _known
    if _known is None or _known[0] is not hardware or _known[1] is not overrides:
        _known = (hardware, overrides, {})
    known = _known[2]
    axes = [axis for axis, places in enumerate(overrides) if places[0][0]]
    rows = positions[:, axes]
    number = np.zeros(len(positions), np.int64)
    for axis, places in zip(axes, rows.T, strict=True):
        number = number * len(overrides[axis]) + places
    _, first, which = np.unique(number, return_index=True, return_inverse=True)
    machines = []
    for point in first.tolist():
        key = tuple(rows[point].tolist())
        if key not in known:
            changes, _ = changes_at(overrides, positions[point].tolist())
            known[key] = _machine(hardware, changes)
        machines.append(known[key])
    return machines, which


def _machine(hardware: HardwareConfig, changes: Mapping[str, object]) -> Candidate:
    """Raises DeepFlowError if the hardware cannot be derived: every point of it is a mistake."""
    try:
        config = with_overrides(hardware, changes) if changes else hardware
    except ConfigError as error:
        return InfeasiblePoint(str(error))
    if config.execution_backend.model != "analytical":
        return _Alone()
    try:
        machine = derive_hardware(config)
        mapping = map_gemm(machine)
        limits = machine.accelerator.roofline_limits
        sizes, rate = formats(machine, Gemm("gemm", 1, 1, 1))
        if not isinstance(sizes, tuple):
            sizes = ElementBytes(sizes, sizes, sizes)
        limits = limits._replace(usable_flops=rate * limits.usable_flops)
        capacity_in_elements(limits, sizes)
    except InfeasiblePoint as error:
        # Without the frames that it came through, which hold on to all that they know.
        return error.with_traceback(None)
    return _Machine(machine, mapping, (limits, sizes))


def _of_points(
    model: GemmModel, key: str, overrides: Overrides, positions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The value of a key of the model for every point."""
    for axis, places in zip(overrides, positions.T, strict=True):
        if key in axis[0][1]:
            present, which = np.unique(places, return_inverse=True)
            values: list[Any] = [axis[place][1][key] for place in present.tolist()]
            return np.array(values, np.float64)[which]
    return np.full(len(positions), float(getattr(model, key)))


def _predict(machines: Sequence[_Machine], which: Indices, model: GemmModel) -> Columns:
    """Points whose machines are of one kind; ``model`` has their sides."""
    first = machines[0]
    split: KernelSplit = first.mapping.splits["gemm"]
    work = rank_work(
        model, split, first.hardware.config.sw_param.precision, replicated=first.mapping.data > 1
    )
    launch = _values([m.hardware.config.sw_param.kernel_launch_overhead for m in machines], which)
    costs = {
        name: [_cost(item, machines, which, launch) for item in block.operators]
        for name, block in (
            ("passes", work.compute),
            ("after", work.reduction),
            ("update", work.update),
        )
    }
    parts = [total(items) for items in costs.values()]
    stacked = Hardware(
        first.hardware.config,
        _stacked([machine.hardware.accelerator for machine in machines], which),
    )
    data = _values([machine.mapping.data for machine in machines], which)
    run = GemmRun(replace(first.mapping, data=data), (), (), (), work.footprint)
    columns = gemm_columns(stacked, model, run, (parts[0], parts[1], parts[2]))
    points = len(which)
    filled: Columns = {name: np.broadcast_to(value, points) for name, value in columns.items()}
    for name in TIME_COLUMNS:
        if not np.isfinite(filled.get(name, 0.0)).all():
            raise DeepFlowError(f"a prediction is not finite: {name}")
    filled |= _texts(filled, [item for items in costs.values() for item in items])
    return filled


def _texts(columns: Columns, costs: Sequence[OperatorCost]) -> Columns:
    times = np.array([item.cost.time for item in costs])
    longest = times.argmax(axis=0)
    bounds = [np.broadcast_to(np.asarray(item.bound, object), longest.shape) for item in costs]
    bound = np.choose(longest, bounds)
    bound = np.where(columns["time_launch_s"] > columns["time_s"] / 2, "launch", bound)
    fits = columns["fits_in_memory"]
    reason = np.full(len(longest), "", object)
    needed, capacity = columns["peak_memory_bytes"], columns["memory_capacity_bytes"]
    for point in np.flatnonzero(~fits).tolist():
        reason[point] = memory_reason(float(needed[point]), float(capacity[point]))
    texts = {
        "status": np.where(fits, "ok", "out_of_memory").astype(object),
        "reason": reason,
        "bound": bound,
    }
    for name in ("backend_requested", "backend_used"):
        texts[name] = np.full(len(longest), "analytical", object)
    texts["fallback_reason"] = np.full(len(longest), "", object)
    return texts


def _cost(
    operator: Operator, machines: Sequence[_Machine], which: Indices, launch: Any
) -> OperatorCost:
    """Cost of an operator whose sizes are arrays, each place on the machine of this number."""
    if isinstance(operator, Gemm):
        return _product_cost(operator, machines, which, launch)
    sizes = {
        item.name: value
        for item in fields(operator)
        if isinstance(value := getattr(operator, item.name), np.ndarray)
    }
    distinct, back = _distinct([which, *sizes.values()])
    costs = [
        operator_cost(
            replace(operator, **dict(zip(sizes, numbers, strict=True))),
            machines[machine].hardware,
            machines[machine].mapping.groups,
        )
        for machine, *numbers in zip(
            *(values[distinct].tolist() for values in (which, *sizes.values())), strict=True
        )
    ]
    amounts: dict[str, Any] = {
        name: np.array([getattr(item.cost, name) for item in costs])[back] for name in COST_FIELDS
    }
    bound: Any = np.array([item.bound for item in costs], object)[back]
    return OperatorCost(operator, Cost(**amounts), bound)


def _product_cost(
    operator: Gemm, machines: Sequence[_Machine], which: Indices, launch: Any
) -> OperatorCost:
    numbers: dict[Device, int] = {}
    of_machine = np.array([numbers.setdefault(m.device, len(numbers)) for m in machines])
    devices = list(numbers)
    sides = [np.broadcast_to(side, which.shape) for side in (operator.m, operator.k, operator.n)]
    device = of_machine[which]
    distinct, back = _distinct([device, *sides])
    m, k, n = (side[distinct] for side in sides)
    found = search_gemms(devices, device[distinct], m, k, n, np.ones(len(distinct)))
    names = np.array([("compute", *limits.level_names) for limits, _ in devices], object)
    cost: Any = found._replace(
        time=found.time[back],
        bytes_by_level=found.bytes_by_level[:, back],
        bound=names[device[distinct], found.bound][back],
    )
    return product_cost(operator, cost, launch)


def _distinct(columns: Sequence[NDArray[Any]]) -> tuple[Indices, Indices]:
    """(places of the distinct rows, which of them each row is) of a table."""
    order = np.lexsort(columns)
    new = np.ones(len(order), bool)
    new[1:] = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    back = np.empty(len(order), np.intp)
    back[order] = np.cumsum(new) - 1
    return order[new], back


def _values(values: Sequence[float], which: Indices) -> Any:
    """One value per point, or a number if all are the same."""
    return values[0] if len(set(values)) == 1 else np.array(values)[which]


def _stacked(items: Sequence[Any], which: Indices) -> Any:
    """A record whose numbers are arrays over the points where the records differ."""
    first = items[0]
    if isinstance(first, (int, float)):
        return _values(items, which)
    if isinstance(first, tuple):
        return tuple(_stacked(part, which) for part in zip(*items, strict=True))
    if not is_dataclass(first):
        return first
    parts = {
        item.name: _stacked([getattr(each, item.name) for each in items], which)
        for item in fields(first)
    }
    return replace(first, **parts)  # type: ignore[type-var]
