"""One device as the cost model sees it: a core, four memory levels, two links.

Everything here is derived by ``derive.py``; a quantity that a file does not determine is None.
"Tile" means the share of a memory level that belongs to one of its owners: a matrix unit, a
bundle of units or the whole device, as ``scope`` says.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NamedTuple

from deepflow.config.hardware import HardwareConfig
from deepflow.errors import InfeasiblePoint
from deepflow.record import record


@record(frozen=True)
class Core:
    """Compute of one device: ``num_bundles`` bundles (SMs), ``num_mcu`` matrix units in all.

    ``peak_flops`` is the rate of multiplications and additions with every unit busy,
    ``usable_flops`` what matrix multiplications achieve of it, ``attention_flops`` what fused
    attention kernels do, all in FLOP/s. A unit multiplies ``matrix_rows`` x ``matrix_depth``
    by ``matrix_depth`` x ``matrix_rows`` in one step.
    """

    num_mcu: int
    num_bundles: int
    area_scaling: float
    nominal_power: float | None  # W, of all units
    operating_voltage: float | None  # V
    operating_frequency: float  # Hz
    peak_flops: float  # FLOP/s
    usable_flops: float  # FLOP/s
    attention_flops: float  # FLOP/s
    energy_per_flop: float | None  # J/FLOP
    matrix_rows: int
    matrix_depth: int
    dataflow: str
    whole_waves: bool
    exposed_epilogue: float
    split_latency: float = 0.0  # s, of bundles that share a block's inner dimension


@record(frozen=True)
class MemoryLevel:
    """One level; sizes in bytes, bandwidths in bytes/s over the whole device."""

    name: str
    scope: str
    size: float
    size_per_tile: float
    peak_bandwidth: float
    bandwidth: float  # the usable part of peak_bandwidth
    latency: float  # s
    dynamic_energy_per_bit: float | None  # J/bit
    static_power: float  # W
    num_banks: int | None = None
    num_stacks: int | None = None
    num_links: int | None = None
    operating_voltage: float | None = None  # V
    operating_frequency: float | None = None  # bit/s of one data link


@record(frozen=True)
class Link:
    """A device's connection to others, before ``system_hierarchy`` derates it.

    ``bandwidth`` is what one device can use in each direction, bytes/s.
    """

    bandwidth: float
    latency: float  # s
    num_links: int | None
    operating_voltage: float | None  # V
    operating_frequency: float | None  # bit/s of one link
    energy_per_bit: float | None  # J/bit
    handshake: float = 0.0  # s, of a chunk of a collective
    in_turns: bool = False  # with the network within a node, for an all_reduce
    reduction_bandwidth: float = 0.0  # bytes/s, of reductions inside the switch
    reduction_latency: float = 0.0  # s, of one


class RooflineLimits(NamedTuple):
    """What bounds a kernel, flat and quick to hash; memory levels nearest first."""

    usable_flops: float  # FLOP/s
    bandwidths: tuple[float, float, float, float]  # bytes/s
    latencies: tuple[float, float, float, float]  # s
    l1_bytes_per_tile: float
    l2_bytes_per_tile: float
    matrix_rows: int
    matrix_depth: int
    dataflow: str
    num_bundles: int
    whole_waves: bool
    exposed_epilogue: float
    split_latency: float  # s
    level_names: tuple[str, str, str, str]


@record(frozen=True)
class Accelerator:
    """``memory`` holds l0 (nearest the units) to l3 (device memory)."""

    core: Core
    memory: tuple[MemoryLevel, MemoryLevel, MemoryLevel, MemoryLevel]
    intra_node: Link
    inter_node: Link

    @cached_property
    def roofline_limits(self) -> RooflineLimits:
        """What bounds a kernel on this device.

        Raises:
            InfeasiblePoint: the core or a level has no throughput, so nothing can ever finish.
        """
        if self.core.usable_flops <= 0:
            raise InfeasiblePoint(
                "the core has no throughput; see power_breakdown.core and area_breakdown.core"
            )
        for level in self.memory:
            if level.bandwidth <= 0:
                raise InfeasiblePoint(
                    f"memory level {level.name} has no bandwidth; see its tech_param section and"
                    " its shares of area_breakdown, power_breakdown and perimeter_breakdown"
                )
        l0, l1, l2, l3 = self.memory
        return RooflineLimits(
            self.core.usable_flops,
            (l0.bandwidth, l1.bandwidth, l2.bandwidth, l3.bandwidth),
            (l0.latency, l1.latency, l2.latency, l3.latency),
            l1.size_per_tile,
            l2.size_per_tile,
            self.core.matrix_rows,
            self.core.matrix_depth,
            self.core.dataflow,
            self.core.num_bundles,
            self.core.whole_waves,
            self.core.exposed_epilogue,
            self.core.split_latency,
            (l0.name, l1.name, l2.name, l3.name),
        )


@record(frozen=True)
class Hardware:
    """A hardware file and the device derived from it."""

    config: HardwareConfig
    accelerator: Accelerator

    @cached_property
    def layouts(self) -> dict[Any, Any]:
        """Layouts of inference that were worked out for this machine, by model."""
        return {}

    @cached_property
    def under_load(self) -> Hardware:
        """The same device at the clock that it keeps in long runs, without the bundles that
        communicate; peaks stay those of the chip.

        Raises:
            InfeasiblePoint: no bundle is left to compute.
        """
        core = self.accelerator.core
        communicating = self.config.sw_param.communication_bundles
        clock = self.config.tech_param.core.sustained_frequency
        if clock is None or clock >= core.operating_frequency:
            clock = core.operating_frequency
            if not communicating:
                return self
        if communicating >= core.num_bundles:
            raise InfeasiblePoint(
                f"sw_param.communication_bundles is {communicating}, and the device has"
                f" {core.num_bundles} bundles"
            )
        slowdown = clock / core.operating_frequency
        # Fractions that the power limit decides hold at this clock already.
        technology = self.config.tech_param.core
        before = technology.util_of(self.config.sw_param.dtype)
        utils = asdict(technology.precision_utils)
        limited = {name: min(1.0, util / slowdown) for name, util in utils.items() if util}
        technology = replace(
            technology, precision_utils=replace(technology.precision_utils, **limited)
        )
        share = slowdown * technology.util_of(self.config.sw_param.dtype) / before
        computing = 1 - communicating / core.num_bundles
        slower = replace(
            core,
            num_bundles=core.num_bundles - communicating,
            operating_frequency=clock,
            usable_flops=core.usable_flops * share * computing,
            attention_flops=core.attention_flops * slowdown * computing,
        )
        config = replace(self.config, tech_param=replace(self.config.tech_param, core=technology))
        return replace(self, config=config, accelerator=replace(self.accelerator, core=slower))
