"""A training step of an LSTM on many devices at once: numbers of ``predict``, in a fraction of it.

The devices are of one machine file and differ in what area, power and edge make of them, as designs
of a search do. Ranks then do the same work on all of them, at other rates. Every formula is that of
the single point and is applied to arrays with a number per device, in the same order; only what
runs beside each operator's formula, launches and copies, is put together here again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deepflow.config.model import LstmModel
from deepflow.cost.collectives import COPIES_OWN_PART, CollectiveCost, collective_cost
from deepflow.cost.gemm import ElementBytes, Shape, capacity_in_elements, gemm_costs
from deepflow.cost.gemm_search import search_gemms
from deepflow.cost.operators import Cost, OperatorCost, formats
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Accelerator, Hardware, MemoryLevel
from deepflow.hardware.accelerator import Link, RooflineLimits
from deepflow.mapping.groups import Group
from deepflow.mapping.kernel import place_groups, seen_by_dimensions
from deepflow.prediction import (
    STEP_TIMES,
    Prediction,
    bound_of,
    memory_reason,
    step_amounts,
    time_by_class,
)
from deepflow.record import record
from deepflow.schedule.recurrent import RecurrentRun, RecurrentWork, host_group, put_together
from deepflow.workload import lstm
from deepflow.workload.operators import Collective, Elementwise, Gemm, Operator

Numbers = npt.NDArray[np.float64]
Form = tuple[float | ElementBytes, float]  # sizes of elements, relative FLOP rate


class _Product(NamedTuple):
    """Seconds and bytes of a product on each device."""

    time: Numbers
    l2_bytes: Numbers
    dram_bytes: Numbers


@record(frozen=True)
class _Devices:
    """Devices in a row, with what is needed of them in arrays.

    ``like_all``: a device whose ``accelerator`` has arrays in the place of numbers that differ, and
    ``groups`` likewise.
    """

    each: Sequence[Hardware]
    like_all: Hardware
    groups: Mapping[str, Group]
    products: Mapping[tuple[Form, Shape], _Product]
    work: RecurrentWork

    @cached_property
    def separate_groups(self) -> list[dict[str, Group]]:
        """Groups of each device."""
        seen = seen_by_dimensions(self.each[0], self.work.mapping)
        return [
            place_groups(_seen_alike(seen, device.accelerator), self.work.mapping)
            for device in self.each
        ]


def predict_on_devices(
    devices: Sequence[Hardware], model: LstmModel, work: RecurrentWork
) -> list[Prediction | None]:
    """``predict(device, model)`` for each of ``devices``.

    Their configurations may differ in ``area_breakdown``, ``power_breakdown`` and
    ``perimeter_breakdown`` only, and have no simulated network. ``work``: of any of them. None for
    a device on which nothing runs, or not to an end: ``predict`` says why.
    """
    found: list[Prediction | None] = [None] * len(devices)
    shapes = _shapes(work, devices[0])
    places, limits = [], []
    for place, device in enumerate(devices):
        try:
            limits.append({form: _limits(device.accelerator, form) for form in shapes})
        except InfeasiblePoint:
            continue
        places.append(place)
    groups = _groups([devices[place] for place in places], work)
    connected = _connected(groups, len(places)).tolist()
    limits = [each for each, usable in zip(limits, connected, strict=True) if usable]
    places = [place for place, usable in zip(places, connected, strict=True) if usable]
    if not places:
        return found
    running = [devices[place] for place in places]
    products: dict[tuple[Form, Shape], _Product] = {}
    for form, of_form in shapes.items():
        products |= _products(running, [each[form] for each in limits], form, of_form)
    groups = {**_groups(running, work), "host": host_group(running[0])}
    together = _Devices(running, _like_all(running), groups, products, work)
    chains = [
        tuple([_operator_cost(operator, together) for operator in block.operators])
        for block in work.chains
    ]
    hops = [_operator_cost(hop, together).cost for hop in work.hops]
    run = put_together(running[0], model, work, chains, hops)
    for place, prediction in zip(places, _predictions(together, model, run), strict=True):
        found[place] = prediction
    return found


# --- Networks -------------------------------------------------------------------------------


def _groups(devices: Sequence[Hardware], work: RecurrentWork) -> dict[str, Group]:
    """``work.mapping.groups`` with arrays of bandwidths: what ``place_group`` makes of links."""
    if not devices:
        return {}
    accelerators = [device.accelerator for device in devices]
    intra = np.array([accelerator.intra_node.bandwidth for accelerator in accelerators])
    inter = np.array([accelerator.inter_node.bandwidth for accelerator in accelerators])
    seen = seen_by_dimensions(devices[0], work.mapping)
    groups = {}
    for name, place in work.mapping.places.items():
        system = seen[place.dimension].config.system_hierarchy
        within = intra / system.intra_derate if system.intra_derate else 0 * intra
        between = inter / system.inter_derate if system.inter_derate else 0 * inter
        if getattr(system, f"{place.dimension}_inter") and system.intra_derate:
            # A message also passes the network within its node, if there is one.
            between = np.minimum(between, within)
        groups[name] = replace(
            work.mapping.groups[name],
            intra_bandwidth=within,  # type: ignore[arg-type]
            inter_bandwidth=between,  # type: ignore[arg-type]
        )
    return groups


def _connected(groups: Mapping[str, Group], count: int) -> npt.NDArray[np.bool_]:
    """On which devices every group has the networks that it needs."""
    connected = np.ones(count, np.bool_)
    for group in groups.values():
        if group.intra_size > 1:
            connected &= group.intra_bandwidth > 0
        if group.inter_size > 1:
            connected &= group.inter_bandwidth > 0
    return connected


def _seen_alike(seen: Mapping[str, Hardware], accelerator: Accelerator) -> dict[str, Hardware]:
    """``seen`` with another device; what layouts change of it are derates and latencies."""

    def link(own: Link, before: Link) -> Link:
        return own if own.latency == before.latency else replace(own, latency=before.latency)

    alike: dict[int, Hardware] = {}
    for hardware in seen.values():
        if id(hardware) not in alike:
            before = hardware.accelerator
            changed = replace(
                accelerator,
                intra_node=link(accelerator.intra_node, before.intra_node),
                inter_node=link(accelerator.inter_node, before.inter_node),
            )
            alike[id(hardware)] = replace(hardware, accelerator=changed)
    return {dimension: alike[id(hardware)] for dimension, hardware in seen.items()}


# --- Products -------------------------------------------------------------------------------


def _shapes(work: RecurrentWork, hardware: Hardware) -> dict[Form, list[Shape]]:
    shapes: dict[Form, dict[Shape, None]] = {}
    for block in work.chains:
        for operator in block.operators:
            if isinstance(operator, Gemm):
                of_form = shapes.setdefault(formats(hardware, operator), {})
                of_form[_shape(operator)] = None
    return {form: list(of_form) for form, of_form in shapes.items()}


def _shape(operator: Gemm) -> Shape:
    return operator.m, operator.k, operator.n, operator.batch


def _limits(accelerator: Accelerator, form: Form) -> tuple[RooflineLimits, ElementBytes]:
    """What bounds products on a device; raises InfeasiblePoint if it can do none."""
    sizes, rate = form
    limits = accelerator.roofline_limits
    if rate != 1:
        limits = limits._replace(usable_flops=rate * limits.usable_flops)
    given = sizes if isinstance(sizes, ElementBytes) else ElementBytes(sizes, sizes, sizes)
    capacity_in_elements(limits, given)
    return limits, given


def _products(
    devices: Sequence[Hardware],
    limits: Sequence[tuple[RooflineLimits, ElementBytes]],
    form: Form,
    shapes: Sequence[Shape],
) -> dict[tuple[Form, Shape], _Product]:
    count = len(devices)
    if count == 1:
        found = gemm_costs(devices[0].accelerator, shapes, *form)
        numbers = np.array([(cost.time, *cost.bytes_by_level[2:]) for cost in found]).T
    else:
        which = np.tile(np.arange(count), len(shapes))
        table = np.repeat(np.array(shapes, np.float64), count, axis=0)
        costs = search_gemms(limits, which, *table.T)
        numbers = np.array((costs.time, *costs.bytes_by_level[2:]))
    numbers = numbers.reshape(3, len(shapes), count)
    return {(form, shape): _Product(*numbers[:, row]) for row, shape in enumerate(shapes)}


# --- Operators ------------------------------------------------------------------------------


def _operator_cost(operator: Operator, devices: _Devices) -> OperatorCost:
    """``operator_cost`` on all devices."""
    launch = devices.like_all.config.sw_param.kernel_launch_overhead
    match operator:
        case Gemm():
            form = formats(devices.like_all, operator)
            time, l2_bytes, dram_bytes = devices.products[form, _shape(operator)]
            cost = Cost(
                gemm=time,  # type: ignore[arg-type]
                launch=launch,
                flops=operator.flops,
                dram_bytes=dram_bytes,  # type: ignore[arg-type]
                l2_bytes=l2_bytes,  # type: ignore[arg-type]
            )
        case Elementwise():
            cost = Cost(
                elementwise=_memory_time(devices, operator.bytes_moved),
                launch=launch * operator.kernels,
                flops=operator.flops,
                dram_bytes=operator.bytes_moved,
            )
        case Collective():
            size = devices.groups[operator.group].size
            sent = _sent(operator, devices)
            sends = size > 1 and operator.message_bytes > 0
            copied = 0.0
            if sends and operator.kind in COPIES_OWN_PART:
                # A rank's own part is read from one buffer and written to the other.
                copied = 2 * operator.message_bytes / size
            waiting = sent.time + _memory_time(devices, copied)
            # A send belongs to the kernel that made its data.
            launches = 1 if sends and operator.kind != "send" else 0
            kind = "data_communication" if operator.group == "data" else "communication"
            cost = Cost(
                dram_bytes=copied,
                launch=launch * launches,
                intra_node_bytes=sent.intra_bytes,
                inter_node_bytes=sent.inter_bytes,
                **{kind: waiting},
            )
        case _:
            raise TypeError(f"no operator of an LSTM: {operator}")
    return OperatorCost(operator, cost, "")


def _memory_time(devices: _Devices, num_bytes: float) -> Any:
    """``memory_bound_time`` of device memory on all devices."""
    memory = devices.like_all.accelerator.memory[-1]
    return num_bytes / memory.bandwidth + memory.latency if num_bytes > 0 else 0.0


def _sent(operator: Collective, devices: _Devices) -> CollectiveCost:
    """``collective_cost`` in the groups of all devices."""
    kind, message, group = operator.kind, operator.message_bytes, devices.groups[operator.group]
    if _has_one_formula(kind, group):
        return collective_cost(kind, message, group)
    costs = [
        collective_cost(kind, message, groups[operator.group]) for groups in devices.separate_groups
    ]
    numbers = np.array([(cost.time, cost.intra_bytes, cost.inter_bytes) for cost in costs])
    return CollectiveCost(*numbers.T)


def _has_one_formula(kind: str, group: Group) -> bool:
    """Whether ``collective_cost`` compares nothing that depends on bandwidths."""
    links = (group.intra_protocol, group.inter_protocol)
    if any(link.handshake or link.reduction_bandwidth for link in links):
        return False
    return kind == "send" or group.inter_size == 1


# --- Results --------------------------------------------------------------------------------


def _like_all(devices: Sequence[Hardware]) -> Hardware:
    """The first device with arrays for what the formulas of a whole step read."""
    each = [device.accelerator for device in devices]
    first = each[0]

    def column(read: Callable[[Accelerator], float | None]) -> Any:
        values = [read(accelerator) for accelerator in each]
        return None if values[0] is None else np.array(values)

    def level(place: int) -> MemoryLevel:
        return replace(
            first.memory[place],
            size=column(lambda device: device.memory[place].size),
            bandwidth=column(lambda device: device.memory[place].bandwidth),
            static_power=column(lambda device: device.memory[place].static_power),
        )

    core = replace(
        first.core,
        peak_flops=column(lambda device: device.core.peak_flops),
        energy_per_flop=column(lambda device: device.core.energy_per_flop),
    )
    intra = column(lambda device: device.intra_node.energy_per_bit)
    inter = column(lambda device: device.inter_node.energy_per_bit)
    accelerator = replace(
        first,
        core=core,
        memory=(level(0), level(1), level(2), level(3)),
        intra_node=replace(first.intra_node, energy_per_bit=intra),
        inter_node=replace(first.inter_node, energy_per_bit=inter),
    )
    return replace(devices[0], accelerator=accelerator)


def _predictions(devices: _Devices, model: LstmModel, run: RecurrentRun) -> list[Prediction | None]:
    count, mapping, stages = len(devices.each), run.mapping, run.stages
    everything = Cost()
    for part in stages:
        everything += part.compute + part.update + part.gradient + part.sent
    # Memory is the same on all devices, but not which stage works longest.
    fullest = max((part.memory for part in stages), key=lambda memory: memory.total)
    busy = np.array([np.broadcast_to(part.compute.time, count) for part in stages])
    busiest = busy.argmax(axis=0)
    first, *others = np.unique(busiest).tolist()
    columns = step_amounts(
        devices.like_all,
        run.time,
        everything,
        stages[first],
        fullest,
        len(stages),
        mapping.kernel * mapping.data,
        lstm.model_flops(model),
        model.batch_size * model.seq_len,
    )
    for stage in others:
        for name, seconds in time_by_class(run.time, stages[stage]).items():
            columns[name] = np.where(busiest == stage, seconds, columns[name])
    bound = np.array([np.broadcast_to(columns[name], count) for name in STEP_TIMES]).argmax(axis=0)
    same = {
        "num_devices": mapping.num_devices,
        "tensor_parallel": mapping.kernel,
        "pipeline_parallel": mapping.pipeline,
        "data_parallel": mapping.data,
        "parameters": lstm.parameter_count(model),
    }
    varying = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            varying[name] = values.tolist()
        else:
            same[name] = values
    found: list[Prediction | None] = []
    for place, longest in enumerate(bound.tolist()):
        row = same | {name: values[place] for name, values in varying.items()}
        if not all(math.isfinite(row[name]) for name in ("time_s", *STEP_TIMES)):
            found.append(None)
            continue
        if math.isnan(row["energy_j"]):
            row["energy_j"] = row["average_power_w"] = None
        fits, capacity = row["fits_in_memory"], row["memory_capacity_bytes"]
        found.append(
            Prediction(
                status="ok" if fits else "out_of_memory",
                reason="" if fits else memory_reason(fullest.total, capacity),
                bound=bound_of(STEP_TIMES[longest]),
                **row,
            )
        )
    return found
