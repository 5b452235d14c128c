"""What the original research code charged for kernel parallelism and LSTMs, faults included.

It prices our operators its way, so that a test can say which parts agree and which differ by a
named fault: element-wise work at the speed of the register file (A1), collectives with local
steps that take bytes for elements (B1), the random tiles of its GEMM search (A8).
"""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from pathlib import Path

from deepflow.hardware import Accelerator, Hardware, load_hardware
from deepflow.mapping.groups import Group
from deepflow.workload.operators import Collective, Elementwise, Gemm
from tests.reference_model import reference_gemm

DATA = Path(__file__).parent / "data" / "reference"


def records(name):
    """The records of one file of reference outputs."""
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def hardware_of(record) -> Hardware:
    return _hardware(record["hardware"], json.dumps(record.get("overrides", {})))


@cache
def _hardware(name: str, overrides: str) -> Hardware:
    return load_hardware(DATA / "hardware" / name, json.loads(overrides))


def register_roofline(accelerator: Accelerator, flops: float, num_bytes: float) -> float:
    """Its roofline of a single number of bytes, which are those of level 0 (A1)."""
    level, peak = accelerator.memory[0], accelerator.core.usable_flops
    if flops < num_bytes * peak / level.bandwidth:
        return num_bytes / level.bandwidth + level.latency
    return flops / peak


def link_term(kind: str, ranks: int, size: float, bandwidth: float, latency: float) -> float:
    """Time on the links alone; ``size`` as that code has it, the shard for all_gather."""
    if ranks <= 1 or size <= 0:
        return 0.0
    size = math.ceil(size)
    match kind:
        case "all_reduce":
            return 2 * (ranks - 1) * (size / ranks / bandwidth + latency)
        case "reduce_scatter" | "all_to_all":
            return (ranks - 1) * (size / ranks / bandwidth + latency)
        case "all_gather":
            return (ranks - 1) * (size / bandwidth + latency)
        case _:
            return size / bandwidth + latency


def local_term(
    accelerator: Accelerator, overhead: float, kind: str, ranks: int, size: float, local: float
) -> float:
    """What that code adds for copies and sums on the device, and for launches."""
    if ranks <= 1 or size <= 0:
        return 0.0
    size = math.ceil(size)
    copy = register_roofline(accelerator, 0, math.ceil(2 * size / ranks))
    add = register_roofline(accelerator, size / ranks, math.ceil(3 * size / ranks)) + overhead
    steps = ranks - 1
    time = {
        "all_reduce": steps * (2 * copy + add),
        "reduce_scatter": steps * (copy + add),
        "all_gather": steps * copy,
    }.get(kind, 0.0)
    if local:
        time += register_roofline(accelerator, 0, local)
    return time + (overhead if kind in ("all_reduce", "reduce_scatter", "all_gather") else 0.0)


def price(operators, hardware: Hardware, groups: dict[str, Group]) -> float:
    """The sum that code would charge for ``operators``."""
    return sum(_price(operator, hardware, groups) for operator in operators)


def _price(operator, hardware: Hardware, groups: dict[str, Group]) -> float:
    overhead = hardware.config.sw_param.kernel_launch_overhead
    accelerator = hardware.accelerator
    match operator:
        case Gemm():
            return gemm_time(hardware, (operator.m, operator.k, operator.n))
        case Elementwise():
            moved = register_roofline(accelerator, operator.flops, operator.bytes_moved)
            return moved + overhead * operator.kernels
        case Collective():
            group = groups[operator.group]
            size, local = operator.message_bytes, 0.0
            if operator.kind == "all_gather":
                size, local = math.ceil(size / group.size), 3 * size
            between = group.inter_size > 1
            bandwidth = group.inter_bandwidth if between else group.intra_bandwidth
            latency = group.inter_latency if between else group.intra_latency
            return link_term(operator.kind, group.size, size, bandwidth, latency) + local_term(
                accelerator, overhead, operator.kind, group.size, size, local
            )
    raise TypeError(operator)


def gemm_time(hardware: Hardware, shape: tuple[int, int, int]) -> float:
    """Its time of one product with launch overhead."""
    return _gemm(hardware.accelerator, shape, hardware.config.sw_param.precision) + (
        hardware.config.sw_param.kernel_launch_overhead
    )


@cache
def _gemm(accelerator: Accelerator, shape: tuple[int, int, int], precision: int) -> float:
    return reference_gemm(accelerator, shape, precision).time
