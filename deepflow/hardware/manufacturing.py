"""What a device costs to make: dies of a wafer, how many of them work, memory and package.

A die's price is that of its share of a wafer, over the part of the dies that work. Yield is the
negative binomial model of Stapper (IBM Journal of Research and Development 27, 1983): defects
come in clusters, and with a mean of D per area the part of dies of area A without any is
``(1 + A D / alpha) ** -alpha``. Spare units that make up for a defect (as GPUs are sold with fewer
units than they have) take their area out of A. Dies per wafer: Hennessy and Patterson, Computer
Architecture, section 1.6, which is a mean and not a whole number, so that costs have no steps.
"""

from __future__ import annotations

import math

from deepflow.config.hardware import HardwareConfig
from deepflow.errors import InfeasiblePoint
from deepflow.hardware.accelerator import Hardware
from deepflow.record import record

_GIB = 2**30
_MM2_PER_CM2 = 100.0


@record(frozen=True)
class DeviceCost:
    """Prices in US dollars."""

    die_yield: float
    die: float
    memory: float
    package: float
    total: float  # with assembly


def device_cost(hardware: Hardware) -> DeviceCost | None:
    """What a device costs, or None if the file does not say what a wafer and memory cost.

    Raises:
        InfeasiblePoint: no die of this area fits on a wafer.
    """
    making = hardware.config.manufacturing
    if making.wafer_cost is None or making.memory_cost is None:
        return None
    area = hardware.config.area_breakdown.proc_chip_area_budget
    good = die_yield(
        area * (1 - making.repairable_area), making.defect_density, making.defect_clustering
    )
    dies = dies_per_wafer(area, making.wafer_diameter)
    if dies == 0:
        raise InfeasiblePoint(
            f"no chip of {area:g} mm2 fits on a wafer of {making.wafer_diameter:g} mm"
        )
    die = making.wafer_cost / (dies * good)
    memory = making.memory_cost * hardware.accelerator.memory[3].size / _GIB
    package = making.package_cost * package_area(hardware)
    total = (die + memory + package) / making.assembly_yield + making.assembly_cost
    return DeviceCost(good, die, memory, package, total)


def dies_per_wafer(area: float, diameter: float) -> float:
    """Whole dies of ``area`` mm2 on a wafer of ``diameter`` mm, on average; 0 if none fits."""
    return max(0.0, math.pi * (diameter / 2) ** 2 / area - math.pi * diameter / math.sqrt(2 * area))


def die_yield(area: float, defect_density: float, clustering: float) -> float:
    """Part of the dies that work: ``area`` mm2 in which ``defect_density`` per cm2 are fatal."""
    return math.pow(1 + area / _MM2_PER_CM2 * defect_density / clustering, -clustering)


def package_area(hardware: Hardware) -> float:
    """mm2 of the chip and its memory stacks."""
    config = hardware.config
    stacks = hardware.accelerator.memory[3].num_stacks
    footprint = config.tech_param.DRAM.area_per_stack
    area = config.area_breakdown
    if stacks is None or footprint is None:
        return area.device_area_budget
    return area.proc_chip_area_budget + stacks * footprint


def power_of_parts(config: HardwareConfig) -> float:
    """W that the parts of the power budget have together."""
    power = config.power_breakdown
    network = power.network
    on_chip = power.core + power.L2 + power.L1 + power.reg_mem
    return on_chip + power.DRAM + network.intra_node + network.inter_node
