"""Costs of operators and blocks on one device: time by class, FLOPs, bytes, energy.

Matrix multiplications use the tile search of ``gemm.py``, fused attention the blocks of
``attention.py``; everything else runs at memory speed (roofline, Williams et al. 2009). Every
kernel pays the launch overhead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import add, attrgetter
from typing import NamedTuple

from deepflow.config.hardware import SoftwareParameters
from deepflow.cost.attention import attention_cost, attention_limits
from deepflow.cost.collectives import COPIES_OWN_PART, CollectiveCost, collective_cost
from deepflow.cost.elementwise import larger
from deepflow.cost.gemm import ElementBytes, GemmCost, Shape, gemm_cost, gemm_costs
from deepflow.cost.grouped_gemm import grouped_gemm_cost
from deepflow.cost.roofline import roofline_time
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group
from deepflow.workload.operators import (
    Attention,
    Block,
    Collective,
    Elementwise,
    Gemm,
    GroupedGemm,
    Operator,
    stays_wide,
)

# Conversions of narrow integers to 16 bits, per cycle and bundle (CUDA programming guide, table of
# arithmetic throughput, compute capabilities 8.0 and 9.0), and rows of a block that share one.
CONVERSIONS_PER_CYCLE = 64
WIDENING_ROWS = 128


@dataclass(frozen=True, slots=True)
class Cost:
    """What running something once on one device takes. Times in seconds.

    The times are disjoint and add up to ``time``. Those of communication are times in which the
    device waits for a group: context, expert, data, or (``communication``) any other, which is
    the tensor group in passes and the next stage in transfers; ``host_transfer`` is waiting for
    what is offloaded. ``issue`` is no part of the time: what the host takes to issue the kernels,
    which it does ahead of the device. In a batch of points each field may be an array.
    """

    gemm: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    communication: float = 0.0
    context_communication: float = 0.0
    expert_communication: float = 0.0
    data_communication: float = 0.0
    host_transfer: float = 0.0
    launch: float = 0.0
    flops: float = 0.0
    dram_bytes: float = 0.0
    l2_bytes: float = 0.0
    intra_node_bytes: float = 0.0
    inter_node_bytes: float = 0.0
    issue: float = 0.0

    @property
    def time(self) -> float:
        """Seconds of all classes together; ``issue`` is not among them."""
        return (
            self.gemm
            + self.attention
            + self.elementwise
            + self.waiting
            + self.host_transfer
            + self.launch
        )

    @property
    def waiting(self) -> float:
        """Time of communication, whatever the group."""
        return (
            self.communication
            + self.context_communication
            + self.expert_communication
            + self.data_communication
        )

    def paced(self) -> Cost:
        """The device waits for the host where issuing takes longer; that is launch overhead."""
        return self + Cost(launch=larger(0.0, self.issue - self.time))

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(add, _AMOUNTS(self), _AMOUNTS(other)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*[amount * times for amount in _AMOUNTS(self)])


COST_FIELDS = tuple(item.name for item in fields(Cost))
_TIMES = COST_FIELDS.index("launch") + 1

_AMOUNTS = attrgetter(*COST_FIELDS)

# Class of the time in which a device waits for a group.
WAITING_CLASSES = {
    "context": "context_communication",
    "expert": "expert_communication",
    "data": "data_communication",
    "expert_data": "data_communication",
}


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator with its cost and what bounds it ("compute", a memory level, a network).

    ``ranks``: size of the group of a collective that sends anything, ``ranks_in_node`` how many
    of them are in one node.
    """

    operator: Operator
    cost: Cost
    bound: str
    ranks: int = 1
    ranks_in_node: int = 1

    @property
    def kernels(self) -> int:
        """Kernels that the host has to issue; a collective over one rank is none."""
        match self.operator:
            case Elementwise(kernels=kernels):
                return kernels
            case Collective(times=times):
                return times if self.cost.waiting else 0
            case _:
                return 1


class ChainSpan(NamedTuple):
    """What a device or a link does from ``start`` to ``end``, in seconds from a chain's beginning.

    ``position``: of the operator in the chain. ``waits``: the device does nothing but wait for it;
    ``launch`` of that time are its launches.
    """

    position: int
    start: float
    end: float
    waits: bool
    launch: float


@dataclass(frozen=True, slots=True)
class ChainSpans:
    """Where the time of a chain goes: on the device without gaps, and on links by their group."""

    device: list[ChainSpan] = field(default_factory=list)
    links: list[ChainSpan] = field(default_factory=list)


def operator_cost(
    operator: Operator, hardware: Hardware, groups: Mapping[str, Group]
) -> OperatorCost:
    """Cost of one operator; ``groups`` by the name of the parallel dimension."""
    software = hardware.config.sw_param
    launch = software.kernel_launch_overhead
    accelerator = hardware.accelerator
    match operator:
        case Gemm():
            sizes, rate = formats(hardware, operator)
            found = gemm_cost(
                accelerator, operator.m, operator.k, operator.n, sizes, operator.batch, rate
            )
            if operator.stored_bytes is not None:
                rows, weights = operator.m, operator.batch * operator.k * operator.n
                widened = _widened_time(hardware, rows, weights, operator.flops, rate)
                found = replace(found, time=max(found.time, widened))
            return product_cost(operator, found, launch)
        case GroupedGemm():
            sizes, rate = formats(hardware, operator)
            grouped = grouped_gemm_cost(
                accelerator,
                operator.rows,
                operator.experts,
                operator.k,
                operator.n,
                sizes,
                rate,
                sums_rows=operator.sums_rows,
            )
            time = grouped.time
            if operator.stored_bytes is not None:
                matrices = min(operator.rows, operator.experts) * operator.k * operator.n
                each = operator.rows / operator.experts
                widened = _widened_time(hardware, each, matrices, operator.flops, rate)
                time = max(time, widened)
            cost = Cost(
                gemm=time,
                launch=launch,
                flops=operator.flops,
                dram_bytes=grouped.dram_bytes,
                l2_bytes=grouped.l2_bytes,
            )
            return OperatorCost(operator, cost, grouped.bound)
        case Attention():
            size = software.precision
            keys: float = size if operator.key_bytes is None else operator.key_bytes
            attention = attention_cost(operator, attention_limits(hardware), size, keys)
            cost = Cost(
                attention=attention.time,
                launch=launch,
                flops=operator.flops,
                dram_bytes=attention.dram_bytes,
            )
            return OperatorCost(operator, cost, attention.bound)
        case Elementwise():
            cost = Cost(
                elementwise=roofline_time(accelerator, 0.0, operator.bytes_moved),
                launch=launch * operator.kernels,
                flops=operator.flops,
                dram_bytes=operator.bytes_moved,
            )
            return OperatorCost(operator, cost, accelerator.memory[-1].name)
        case Collective():
            group = groups[operator.group]
            message, times = operator.message_bytes / operator.times, operator.times
            sent = collective_cost(operator.kind, message, group)
            backend = hardware.config.execution_backend
            if backend.model == "astra" and sent.time:
                from deepflow.astra.hybrid import simulated_time

                memory = accelerator.memory[-1].bandwidth
                time = simulated_time(operator.kind, message, group, backend.astra, memory)
                sent = CollectiveCost(time, sent.intra_bytes, sent.inter_bytes)
            copied = 0.0
            if sent.time and operator.kind in COPIES_OWN_PART:
                # A rank's own part is read from one buffer and written to the other.
                copied = 2 * message / group.size
            waiting = sent.time + roofline_time(accelerator, 0.0, copied)
            # A send belongs to the kernel that made its data.
            launches = times if sent.time and operator.kind != "send" else 0
            cost = Cost(
                dram_bytes=copied * times,
                launch=launch * launches,
                intra_node_bytes=sent.intra_bytes * times,
                inter_node_bytes=sent.inter_bytes * times,
                **{WAITING_CLASSES.get(operator.group, "communication"): waiting * times},
            )
            ranks = group.size if sent.time else 1
            return OperatorCost(
                operator, cost, f"{operator.group} network", ranks, group.intra_size
            )


def formats(hardware: Hardware, operator: Gemm | GroupedGemm) -> tuple[float | ElementBytes, float]:
    """Sizes of elements, and rate relative to that of the device's own type."""
    software = hardware.config.sw_param
    narrow = software.matrix_dtype
    stored, own = operator.stored_bytes, software.precision
    weights = isinstance(operator, GroupedGemm) or operator.weight
    if narrow is None or not weights or stays_wide(operator):
        return own if stored is None else ElementBytes(own, stored, own), 1.0
    size = software.operand_bytes
    rate = hardware.config.tech_param.core.usable_rate(narrow, software.dtype)
    return ElementBytes(size, size if stored is None else stored, own), rate


def _widened_time(
    hardware: Hardware, rows: float, weights: float, flops: float, rate: float
) -> float:
    """Seconds of products whose weights are widened on their way to the matrix units.

    Every block of rows widens the ``weights`` again, in turns with its arithmetic.
    """
    core = hardware.accelerator.core
    widened = weights * max(1, -(-rows // WIDENING_ROWS))
    conversions = CONVERSIONS_PER_CYCLE * core.num_bundles * core.operating_frequency
    return flops / (rate * core.usable_flops) + widened / conversions


def product_cost(operator: Gemm, found: GemmCost, launch: float) -> OperatorCost:
    """Cost of a product with its launch; of many products, everything in arrays."""
    cost = Cost(
        gemm=found.time,
        launch=launch,
        flops=operator.flops,
        dram_bytes=found.bytes_by_level[3],
        l2_bytes=found.bytes_by_level[2],
    )
    return OperatorCost(operator, cost, found.bound)


def block_cost(
    block: Block, hardware: Hardware, groups: Mapping[str, Group]
) -> tuple[OperatorCost, ...]:
    """Costs of a block's operators, in order; ``total`` adds them up."""
    return block_costs([block], hardware, groups)[0]


def block_costs(
    blocks: Sequence[Block],
    hardware: Hardware,
    groups: Mapping[str, Group],
    known: dict[Operator, OperatorCost] | None = None,
) -> list[tuple[OperatorCost, ...]]:
    """``block_cost`` of each block, quicker for many: new products are searched together.

    Blocks may share operators, as a backward pass has those that it computes again. ``known``
    remembers costs on this device and in these groups for the next call.
    """
    operators = {id(operator): operator for block in blocks for operator in block.operators}
    costs: dict[int, OperatorCost] = {}
    if known is not None:
        costs = {key: known[item] for key, item in operators.items() if item in known}
        operators = {key: item for key, item in operators.items() if key not in costs}
    shapes: dict[tuple[float | ElementBytes, float], list[Shape]] = {}
    for operator in operators.values():
        if type(operator) is Gemm:
            shape = (operator.m, operator.k, operator.n, operator.batch)
            shapes.setdefault(formats(hardware, operator), []).append(shape)
    for form, of_form in shapes.items():
        gemm_costs(hardware.accelerator, of_form, *form)
    for key, operator in operators.items():
        costs[key] = operator_cost(operator, hardware, groups)
    if known is not None:
        known |= {operator: costs[key] for key, operator in operators.items()}
    return [tuple([costs[id(operator)] for operator in block.operators]) for block in blocks]


def total(costs: Iterable[OperatorCost], software: SoftwareParameters | None = None) -> Cost:
    """Sum over a chain of operators.

    Operators run one after another, but for collectives with ``beside``: those run on their link
    while the operators after them do, so only what is left of them when they are waited for counts
    as time. A link carries one collective at a time. With ``software`` the sum knows how long the
    host takes to issue the chain; ``Cost.paced`` makes it wait for that.
    """
    costs = tuple(costs)
    if not costs:
        return Cost()
    columns = zip(*[_AMOUNTS(item.cost) for item in costs], strict=True)
    sums: list[float] = [sum(column) for column in columns]
    if any(type(item.operator) is Collective and item.operator.beside for item in costs):
        sums[:_TIMES] = _overlapped_times(costs)
    if software is not None:
        sums[-1] = sum([_issue_time(item, software) for item in costs])
    return Cost(*sums)


def _issue_time(item: OperatorCost, software: SoftwareParameters) -> float:
    """Time of the host to issue an operator, framework and communication library included."""
    time = software.host_time_per_kernel * item.kernels
    if isinstance(item.operator, Collective) and item.ranks > 1:
        check = software.check_time(item.ranks, item.ranks_in_node)
        time += item.operator.times * (software.host_time_per_collective + check)
    return time


def chain_spans(costs: Iterable[OperatorCost]) -> ChainSpans:
    """When the operators of a chain run, by the rules of ``total``."""
    spans = ChainSpans()
    _overlapped_times(tuple(costs), spans)
    return spans


def _overlapped_times(
    costs: tuple[OperatorCost, ...], spans: ChainSpans | None = None
) -> list[float]:
    """The times of ``Cost`` for a chain in which collectives run beside other operators.

    ``spans``, if given, are filled with what runs when.
    """
    times = [0.0] * _TIMES
    now = 0.0
    link_free: dict[str, float] = {}
    # What runs beside: (position that waits for it, end, index of its class of time, its own).
    beside: list[tuple[int, float, int, int]] = []
    for position, item in enumerate(costs):
        operator, spent = item.operator, _AMOUNTS(item.cost)[:_TIMES]
        for waits, end, index, own in beside:
            if waits == position and end > now:
                if spans is not None:
                    spans.device.append(ChainSpan(own, now, end, True, 0.0))
                times[index] += end - now
                now = end
        if not isinstance(operator, Collective):
            times = [x + y for x, y in zip(times, spent, strict=True)]
            if spans is not None:
                taken = now + item.cost.time
                spans.device.append(ChainSpan(position, now, taken, False, item.cost.launch))
            now += item.cost.time
            continue
        index = COST_FIELDS.index(WAITING_CLASSES.get(operator.group, "communication"))
        end = max(now, link_free.get(operator.group, 0.0)) + item.cost.time
        if spans is not None:
            spans.links.append(ChainSpan(position, end - item.cost.time, end, False, 0.0))
        link_free[operator.group] = end
        if operator.beside:
            beside.append((position + operator.beside + 1, end, index, position))
        else:
            if spans is not None:
                spans.device.append(ChainSpan(position, now, end, True, item.cost.launch))
            times[index] += end - now - item.cost.launch
            times[_TIMES - 1] += item.cost.launch
            now = end
    for waits, end, index, own in beside:
        if waits >= len(costs) and end > now:
            if spans is not None:
                spans.device.append(ChainSpan(own, now, end, True, 0.0))
            times[index] += end - now
            now = end
    return times
