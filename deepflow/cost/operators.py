"""Costs of operators and blocks on one device: time by class, FLOPs, bytes, energy.

Matrix multiplications use the tile search of ``gemm.py``; fused attention runs at its own
achieved fraction of the peak or at memory speed, whichever is slower; everything else at
memory speed (roofline, Williams et al. 2009). Every kernel pays the launch overhead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from deepflow.cost.attention import attention_compute_time
from deepflow.cost.collectives import collective_cost
from deepflow.cost.gemm import GemmCost, gemm_cost
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
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What running something once on one device takes. Times in seconds.

    The five times are disjoint and add up to ``time``; ``communication`` is time in which
    the device waits for its tensor group.
    """

    gemm: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    communication: float = 0.0
    launch: float = 0.0
    flops: float = 0.0
    dram_bytes: float = 0.0
    l2_bytes: float = 0.0
    intra_node_bytes: float = 0.0
    inter_node_bytes: float = 0.0

    @property
    def time(self) -> float:
        return self.gemm + self.attention + self.elementwise + self.communication + self.launch

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in COST_FIELDS))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(getattr(self, name) * times for name in COST_FIELDS))


COST_FIELDS = tuple(item.name for item in fields(Cost))


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator with its cost and what bounds it ("compute", a memory level, a network)."""

    operator: Operator
    cost: Cost
    bound: str

    @property
    def kernels(self) -> int:
        """Kernels that the host has to issue; a collective over one rank is none."""
        match self.operator:
            case Elementwise(kernels=kernels):
                return kernels
            case Collective():
                return 1 if self.cost.communication else 0
            case _:
                return 1


def operator_cost(
    operator: Operator, hardware: Hardware, groups: Mapping[str, Group]
) -> OperatorCost:
    """Cost of one operator; ``groups`` by the name of the parallel dimension."""
    software = hardware.config.sw_param
    launch = software.kernel_launch_overhead
    accelerator = hardware.accelerator
    match operator:
        case Gemm():
            found = gemm_cost(
                accelerator,
                operator.m,
                operator.k,
                operator.n,
                software.precision,
                operator.batch,
            )
            return _gemm_cost(operator, found, launch)
        case GroupedGemm():
            found = grouped_gemm_cost(
                accelerator,
                operator.rows,
                operator.experts,
                operator.k,
                operator.n,
                software.precision,
                sums_rows=operator.sums_rows,
            )
            return _gemm_cost(operator, found, launch)
        case Attention():
            moved = operator.elements_moved * software.precision
            compute = attention_compute_time(operator, hardware)
            memory = roofline_time(accelerator, 0.0, moved)
            cost = Cost(
                attention=max(compute, memory),
                launch=launch,
                flops=operator.flops,
                dram_bytes=moved,
            )
            bound = "compute" if compute >= memory else accelerator.memory[-1].name
            return OperatorCost(operator, cost, bound)
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
            sent = collective_cost(operator.kind, operator.message_bytes, group)
            copied = 0.0
            if sent.time and operator.kind in ("all_gather", "reduce_scatter"):
                # A rank's own part is read from one buffer and written to the other.
                copied = 2 * operator.message_bytes / group.size
            cost = Cost(
                communication=sent.time + roofline_time(accelerator, 0.0, copied),
                dram_bytes=copied,
                # A send belongs to the kernel that made its data.
                launch=launch if sent.time and operator.kind != "send" else 0.0,
                intra_node_bytes=sent.intra_bytes,
                inter_node_bytes=sent.inter_bytes,
            )
            return OperatorCost(operator, cost, f"{operator.group} network")


def _gemm_cost(operator: Gemm | GroupedGemm, found: GemmCost, launch: float) -> OperatorCost:
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
    return tuple(operator_cost(operator, hardware, groups) for operator in block.operators)


def total(costs: tuple[OperatorCost, ...], host_time_per_kernel: float = 0.0) -> Cost:
    """Sum over a chain of operators; what the host lags behind counts as launch overhead.

    The host issues kernels ahead of the device, so a chain takes the longer of both: the sum of
    its kernels, or the time to issue them.
    """
    sums = [0.0] * len(COST_FIELDS)
    for item in costs:
        cost = item.cost
        sums = [
            sums[0] + cost.gemm,
            sums[1] + cost.attention,
            sums[2] + cost.elementwise,
            sums[3] + cost.communication,
            sums[4] + cost.launch,
            sums[5] + cost.flops,
            sums[6] + cost.dram_bytes,
            sums[7] + cost.l2_bytes,
            sums[8] + cost.intra_node_bytes,
            sums[9] + cost.inter_node_bytes,
        ]
    if host_time_per_kernel:
        issued = host_time_per_kernel * sum(item.kernels for item in costs)
        sums[4] += max(0.0, issued - sum(sums[:5]))
    return Cost(*sums)
