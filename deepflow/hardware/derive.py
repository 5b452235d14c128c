"""From technology and budgets to a device: voltage, clock, memories, links.

Formulas are those of the DeepFlow research code (and of CrossFlow, arXiv 2211.03309), with
its faults mended; ``docs/`` and the tests name them. A part draws its nominal power at its
nominal voltage and clock; the clock follows the alpha-power law of MOS transistors (Sakurai
and Newton, 1990) with exponent 2, so at supply V above the threshold Vt

    clock ~ (V - Vt)^2 / V        power ~ V^2 clock ~ V (V - Vt)^2

and a power budget fixes the voltage. More power, area or edge never lowers the core's rate,
a memory's size, or a link's bandwidth. For a memory's own area there is one exception, which
is physics: a bigger memory leaks more, and the leakage comes out of the power that moves data.
Capacity x bandwidth never falls, because a memory is not built beyond the size at which
leakage takes half of its power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from deepflow.config import load_hardware_config
from deepflow.config.hardware import (
    CoreTechnology,
    DramTechnology,
    HardwareConfig,
    LinkTechnology,
    MemoryLevelPlace,
    SramTechnology,
)
from deepflow.errors import ConfigError
from deepflow.hardware.accelerator import Accelerator, Core, Hardware, Link, MemoryLevel
from deepflow.record import record

# A link within a node leaves the device in four directions (mesh), of which a ring uses one.
INTRA_NODE_DIRECTIONS = 4
INTER_NODE_DIRECTIONS = 1

# The names that area_breakdown and power_breakdown have for the on-chip memories.
BUDGET_OF_SRAM = {"SRAM-L2": "L2", "SRAM-L1": "L1", "SRAM-R": "reg_mem"}

Value = TypeVar("Value", bound=int | float)


def load_hardware(path: str | Path, overrides: Mapping[str, object] | None = None) -> Hardware:
    """Reads a hardware file and derives the device.

    ``overrides`` maps dotted paths inside the file to values as YAML has them.

    Raises:
        ConfigError: unreadable or invalid file, or a technology key that is needed is missing.
    """
    return derive_hardware(load_hardware_config(path, overrides or {}))


def derive_hardware(config: HardwareConfig) -> Hardware:
    """Derives rates, sizes, bandwidths and links of one device.

    Raises:
        ConfigError: a technology key that is needed is missing or contradicts another one.
    """
    system = config.system_hierarchy
    if system.num_nodes > 1 and system.inter_derate == 0:
        raise ConfigError(
            "divides the bandwidth between nodes, and there is more than one node",
            file=config.file,
            key="system_hierarchy.inter_derate",
            value=system.inter_derate,
            allowed="above 0",
        )
    core = _core(config)
    places = config.memory_hierarchy
    levels = (
        _memory(config, places.l0, core),
        _memory(config, places.l1, core),
        _memory(config, places.l2, core),
        _memory(config, places.l3, core),
    )
    intra_node = _link(config, "intra_node", INTRA_NODE_DIRECTIONS)
    inter_node = _link(config, "inter_node", INTER_NODE_DIRECTIONS)
    return Hardware(config, Accelerator(core, levels, intra_node, inter_node))


def parallel_links(hardware: Hardware) -> dict[str, tuple[float, float]]:
    """(bandwidth in bytes/s, latency in s) that each parallel dimension of old files sees.

    "kp1", "kp2", "dp" and "lp" use the network between nodes where ``system_hierarchy`` says
    so, else the one within a node; bandwidths are derated. Traffic between nodes passes the
    network within the node first if there is one. Zero means there is no such network.
    """
    system = hardware.config.system_hierarchy
    intra_link, inter_link = hardware.accelerator.intra_node, hardware.accelerator.inter_node
    intra = inter = 0.0
    if system.intra_derate and system.num_devices_per_node * system.num_nodes > 1:
        intra = intra_link.bandwidth / system.intra_derate
    if system.num_nodes > 1:
        inter = inter_link.bandwidth / system.inter_derate
        if system.intra_derate:
            inter = min(inter, intra)
    return {
        dimension: (inter, inter_link.latency) if between_nodes else (intra, intra_link.latency)
        for dimension, between_nodes in (
            ("kp1", system.kp1_inter),
            ("kp2", system.kp2_inter),
            ("dp", system.dp_inter),
            ("lp", system.lp_inter),
        )
    }


def require(config: HardwareConfig, key: str, value: Value | None) -> Value:
    """``value``, or a ConfigError that names the file, the dotted key and what would replace it."""
    if value is None:
        part = key.rpartition(".")[0]
        stated = " and ".join(_STATED.get(part, ("size", "bandwidth")))
        raise ConfigError(
            f"is needed to derive the hardware, unless the file states {stated} there",
            file=config.file,
            key=key,
        )
    return value


# The keys that make a part's derivation superfluous, if not size and bandwidth.
_STATED = {
    "tech_param.core": ("num_bundles", "operating_frequency"),
    "tech_param.network.intra_node": ("bandwidth",),
    "tech_param.network.inter_node": ("bandwidth",),
}


def _require_positive(config: HardwareConfig, key: str, value: float | None) -> float:
    """Like ``require``, for an energy or power that a budget is divided by."""
    given = require(config, key, value)
    if given == 0:
        raise ConfigError(
            "leaves the power budget without effect, so nothing can be derived from it",
            file=config.file,
            key=key,
            value=given,
            allowed="above 0",
        )
    return given


# --- Voltage and clock ----------------------------------------------------------------------


@record(frozen=True)
class _Supply:
    """Voltages of a part, in V."""

    nominal: float
    threshold: float
    minimum: float
    maximum: float

    def wanted_voltage(self, power: float) -> float:
        """The supply that spends ``power`` times the nominal power, within limits or not."""
        swing = self.nominal - self.threshold
        return drive_voltage(power * self.nominal * swing * swing, self.threshold)

    def clock(self, voltage: float) -> float:
        """Clock relative to that at the nominal voltage."""
        swing, nominal_swing = voltage - self.threshold, self.nominal - self.threshold
        return (swing * swing / voltage) / (nominal_swing * nominal_swing / self.nominal)

    def throttled(self, power: float) -> tuple[float, float]:
        """(voltage, relative clock) of a core or a DRAM data link; (0, 0) without power.

        ``power`` is relative to nominal. Below the least voltage, the clock at that voltage
        falls with (wanted / least)^2. That rule of the original overdraws a very small budget
        (links have a better one, ``metered``); published results stand on it, so it stays.
        """
        if power <= 0:
            return 0.0, 0.0
        wanted = self.wanted_voltage(power)
        voltage = min(max(wanted, self.minimum), self.maximum)
        throttle = (wanted / self.minimum) ** 2 if wanted < self.minimum else 1.0
        return voltage, self.clock(voltage) * throttle

    def metered(self, power: float) -> tuple[float, float]:
        """(voltage, relative clock) of a link between devices, or of what ``pauses``; (0, 0)
        without power.

        ``power`` is relative to nominal. Below the least voltage a link runs at that voltage
        and pauses: it sends what the power pays for at (least / nominal)^2 of the energy.
        """
        if power <= 0:
            return 0.0, 0.0
        wanted = self.wanted_voltage(power)
        if wanted >= self.minimum:
            voltage = min(wanted, self.maximum)
            return voltage, self.clock(voltage)
        return self.minimum, power * (self.nominal / self.minimum) ** 2


def drive_voltage(power: float, threshold: float) -> float:
    """The root V >= ``threshold`` of V (V - threshold)^2 = ``power`` (V, V^3).

    It is unique because the left side rises there. Newton's method on V - threshold, started
    above the root of this convex function, falls to it and stops at machine precision.
    """
    if power <= 0:
        return threshold
    excess = math.cbrt(power)
    if threshold > 0:
        excess = min(excess, math.sqrt(power / threshold))
    while True:
        error = excess * excess * (excess + threshold) - power
        lower = excess - error / (excess * (3 * excess + 2 * threshold))
        if not lower < excess:
            return threshold + excess
        excess = lower


def _supply(
    config: HardwareConfig,
    key: str,
    technology: CoreTechnology | DramTechnology | LinkTechnology,
) -> _Supply:
    nominal = require(config, key + "nominal_voltage", technology.nominal_voltage)
    threshold = require(config, key + "threshold_voltage", technology.threshold_voltage)
    margin = require(config, key + "margin_voltage", technology.margin_voltage)
    maximum = technology.max_voltage
    if nominal <= threshold:
        raise ConfigError(
            "the part does not switch at its nominal voltage",
            file=config.file,
            key=key + "nominal_voltage",
            value=nominal,
            allowed=f"above threshold_voltage {threshold:g}",
        )
    return _Supply(nominal, threshold, threshold + margin, math.inf if maximum is None else maximum)


def _operating_point(
    config: HardwareConfig,
    key: str,
    technology: CoreTechnology | DramTechnology,
    power: float,
    nominal_power: float | None,
) -> tuple[float | None, float]:
    """(voltage in V, clock in Hz) of a core or of DRAM data links on a budget of ``power`` W.

    A clock that the file fixes needs no voltage; where enough is known for one, it still says
    what a cycle costs.
    """
    fixed = technology.operating_frequency
    if fixed is None:
        clock = require(config, key + "nominal_frequency", technology.nominal_frequency)
        supply = _supply(config, key, technology)
        spend = supply.metered if technology.pauses else supply.throttled
        voltage, relative = spend(power / nominal_power if nominal_power else 0.0)
        return voltage, clock * relative
    voltages = (technology.nominal_voltage, technology.threshold_voltage, technology.margin_voltage)
    if None in voltages or not nominal_power or power <= 0:
        return None, fixed
    return _supply(config, key, technology).throttled(power / nominal_power)[0], fixed


# --- Core -----------------------------------------------------------------------------------


def _core(config: HardwareConfig) -> Core:
    technology, key = config.tech_param.core, "tech_param.core."
    area = technology.operating_area_per_mcu
    if technology.num_bundles is not None:
        num_mcu = technology.num_bundles * technology.num_mcu_per_bundle
    else:
        built = require(config, key + "operating_area_per_mcu", area)
        num_mcu = math.floor(config.area_breakdown.core / built)
    area_scaling = 1.0
    if technology.nominal_area_per_mcu is not None and area is not None:
        area_scaling = area / technology.nominal_area_per_mcu
    power_per_mcu = technology.nominal_power_per_mcu
    if technology.operating_frequency is None:
        power_per_mcu = _require_positive(config, key + "nominal_power_per_mcu", power_per_mcu)
    nominal_power = None if power_per_mcu is None else power_per_mcu * num_mcu * area_scaling
    voltage, clock = _operating_point(
        config, key, technology, config.power_breakdown.core, nominal_power
    )
    rate = _precision_rate(config)
    peak = technology.nominal_flop_rate_per_mcu * rate * area_scaling * clock * num_mcu
    width = technology.FMA_width
    return Core(
        num_mcu=num_mcu,
        num_bundles=num_mcu // technology.num_mcu_per_bundle,
        area_scaling=area_scaling,
        nominal_power=nominal_power,
        operating_voltage=voltage,
        operating_frequency=clock,
        peak_flops=peak,
        usable_flops=peak * technology.util_of(config.sw_param.dtype),
        attention_flops=peak * technology.attention_fraction(config.sw_param.attention_library),
        energy_per_flop=_energy_per_flop(technology, voltage, rate),
        matrix_rows=technology.FMA_d1 if width is None else width,
        matrix_depth=technology.FMA_d2 if width is None else width,
        dataflow=technology.dataflow,
        whole_waves=technology.whole_waves,
        exposed_epilogue=technology.exposed_epilogue,
        split_latency=technology.split_latency,
    )


def _precision_rate(config: HardwareConfig) -> float:
    """Rate of the data type in use, relative to the nominal rate; without one, that rate."""
    dtype = config.sw_param.dtype
    if dtype is None:
        return 1.0
    rates = config.tech_param.core.precision_rates.supported
    return require(config, f"tech_param.core.precision_rates.{dtype}", rates.get(dtype))


def _energy_per_flop(core: CoreTechnology, voltage: float | None, rate: float) -> float | None:
    """J/FLOP: nominal power over nominal rate, times (V/Vn)^2 where the voltage is known.

    A data type of another relative ``rate`` takes the same power. A part without a nominal
    clock is described at its operating one.
    """
    clock = core.nominal_frequency or core.operating_frequency
    if core.nominal_power_per_mcu is None or clock is None:
        return None
    energy = core.nominal_power_per_mcu / (core.nominal_flop_rate_per_mcu * rate * clock)
    if voltage is None or core.nominal_voltage is None:
        return energy
    return energy * (voltage / core.nominal_voltage) ** 2


# --- Memory ---------------------------------------------------------------------------------


def _memory(config: HardwareConfig, place: MemoryLevelPlace, core: Core) -> MemoryLevel:
    owners = {"global": 1, "mcu-bundle": core.num_bundles, "mcu": core.num_mcu}[place.scope]
    technology = config.tech_param
    if place.type == "DRAM":
        return _dram(config, technology.DRAM, place, owners)
    sram = {
        "SRAM-L2": technology.SRAM_L2,
        "SRAM-L1": technology.SRAM_L1,
        "SRAM-R": technology.SRAM_R,
    }[place.type]
    return _sram(config, sram, place, owners, core)


def _sram(
    config: HardwareConfig,
    technology: SramTechnology,
    place: MemoryLevelPlace,
    owners: int,
    core: Core,
) -> MemoryLevel:
    """Banks that fit the area; a bandwidth that the power left after leakage can feed."""
    key = f"tech_param.{place.type}."
    budget = BUDGET_OF_SRAM[place.type]
    power = float(getattr(config.power_breakdown, budget))
    size, capacity = technology.size, technology.bank_capacity
    num_banks = None
    if size is None:
        capacity = require(config, key + "bank_capacity", capacity)
        area_per_bit = require(config, key + "area_per_bit", technology.area_per_bit)
        cells = 1 - technology.overhead
        controllers = cells * core.num_bundles * technology.controller_area_per_link
        area = cells * float(getattr(config.area_breakdown, budget))
        num_banks = int(area // (capacity * 8 * area_per_bit + controllers))
        if technology.bandwidth is None:
            leakage_per_bank = technology.static_power_per_bit * 8 * capacity
            num_banks = _worth_building(num_banks, leakage_per_bank, power)
        size = num_banks * capacity
    elif capacity is not None:
        num_banks = int(size // capacity)
    leakage = technology.static_power_per_bit * 8 * size
    peak = technology.bandwidth
    if peak is None:
        energy = _require_positive(
            config, key + "dynamic_energy_per_bit", technology.dynamic_energy_per_bit
        )
        peak = max(0.0, power - leakage) / (energy * 8) if size else 0.0
    return MemoryLevel(
        name=place.type,
        scope=place.scope,
        size=size,
        size_per_tile=size / owners if owners else 0.0,
        peak_bandwidth=peak,
        bandwidth=peak * technology.util,
        latency=technology.latency,
        dynamic_energy_per_bit=technology.dynamic_energy_per_bit,
        static_power=leakage,
        num_banks=num_banks,
    )


def _worth_building(number: int, leakage: float, power: float) -> int:
    """How many of ``number`` banks or stacks to build when each leaks ``leakage`` W of ``power``.

    With a bandwidth that follows power - number * leakage, capacity x bandwidth is largest
    where leakage takes half of the power. Without this limit, more area would end in no
    bandwidth at all.
    """
    if 2 * leakage * number <= power:
        return number
    return int(power / (2 * leakage))


def _dram(
    config: HardwareConfig, technology: DramTechnology, place: MemoryLevelPlace, owners: int
) -> MemoryLevel:
    """Stacks that fit, data links that stacks and chip edge allow, a clock that power allows."""
    key = "tech_param.DRAM."
    num_stacks, size = _stacks(config, technology)
    num_links = _data_links(config, technology, num_stacks)
    leakage = technology.static_power_per_bit * 8 * size
    energy, fixed_clock = technology.dynamic_energy_per_bit, technology.operating_frequency
    peak = technology.bandwidth
    voltage: float | None = None
    clock: float | None = None
    if peak is None or fixed_clock is not None:
        if fixed_clock is None:
            energy = _require_positive(config, key + "dynamic_energy_per_bit", energy)
        nominal_clock = technology.nominal_frequency or fixed_clock
        nominal_power = None
        if energy is not None and num_links is not None and nominal_clock is not None:
            nominal_power = energy * num_links * nominal_clock
        voltage, clock = _operating_point(
            config, key, technology, config.power_breakdown.DRAM - leakage, nominal_power
        )
    if peak is None:
        require(config, key + "stack_capacity", technology.stack_capacity)
        peak = require(config, key + "num_links_per_stack", num_links) * (clock or 0.0) / 8
    return MemoryLevel(
        name=place.type,
        scope=place.scope,
        size=size,
        size_per_tile=size / owners if owners else 0.0,
        peak_bandwidth=peak,
        bandwidth=peak * technology.util,
        latency=technology.latency,
        dynamic_energy_per_bit=technology.dynamic_energy_per_bit,
        static_power=leakage,
        num_stacks=num_stacks,
        num_links=num_links,
        operating_voltage=voltage,
        operating_frequency=clock,
    )


def _stacks(config: HardwareConfig, technology: DramTechnology) -> tuple[int | None, float]:
    """(stacks, capacity in bytes); how many stacks make a given capacity may be unknown."""
    key = "tech_param.DRAM."
    capacity = technology.stack_capacity
    if technology.size is not None:
        return (None if capacity is None else int(technology.size // capacity)), technology.size
    capacity = require(config, key + "stack_capacity", capacity)
    if technology.num_stacks is not None:
        return technology.num_stacks, technology.num_stacks * capacity
    area = config.area_breakdown
    footprint = require(config, key + "area_per_stack", technology.area_per_stack)
    controller = require(config, key + "mem_ctrl_area", technology.mem_ctrl_area)
    beside_chip = max(0.0, area.device_area_budget - area.proc_chip_area_budget)
    num_stacks = int(min(beside_chip // footprint, area.DRAM // controller))
    if technology.bandwidth is None and technology.operating_frequency is None:
        leakage = technology.static_power_per_bit * 8 * capacity
        num_stacks = _worth_building(num_stacks, leakage, config.power_breakdown.DRAM)
    return num_stacks, num_stacks * capacity


def _data_links(
    config: HardwareConfig, technology: DramTechnology, num_stacks: int | None
) -> int | None:
    """Data links of all stacks, as far as the chip's edge has room; None if the file is silent.

    A given capacity brings all links of its stacks, whatever the edge.
    """
    if num_stacks is None or technology.num_links_per_stack is None:
        return None
    num_links = technology.num_links_per_stack * num_stacks
    if technology.size is not None:
        return num_links
    density = technology.num_links_per_mm
    if technology.bandwidth is None:
        density = require(config, "tech_param.DRAM.num_links_per_mm", density)
    if density is None:
        return num_links
    return min(num_links, int(_edge(config) * config.perimeter_breakdown.DRAM * density))


# --- Links between devices ------------------------------------------------------------------


def _edge(config: HardwareConfig) -> float:
    """Edge of the (square) chip in mm."""
    return 4 * math.sqrt(config.area_breakdown.proc_chip_area_budget)


def _link(config: HardwareConfig, network: str, directions: int) -> Link:
    technology: LinkTechnology = getattr(config.tech_param.network, network)
    key = f"tech_param.network.{network}."
    energy = technology.nominal_energy_per_link
    if technology.bandwidth is not None:
        return Link(
            bandwidth=technology.bandwidth * technology.util,
            latency=technology.latency,
            num_links=None,
            operating_voltage=None,
            operating_frequency=None,
            energy_per_bit=energy,
            handshake=technology.handshake,
            in_turns=technology.in_turns,
            reduction_bandwidth=technology.bandwidth * technology.reduction_util,
            reduction_latency=technology.reduction_latency,
        )
    area = float(getattr(config.area_breakdown.network, network))
    edge = float(getattr(config.perimeter_breakdown, network)) * _edge(config)
    if area == 0 or edge == 0:
        return Link(0.0, technology.latency, 0, None, None, energy)
    area_per_link = require(config, key + "nominal_area_per_link", technology.nominal_area_per_link)
    density = require(config, key + "num_links_per_mm", technology.num_links_per_mm)
    num_links = int(min(area / area_per_link, edge * density))
    energy = _require_positive(config, key + "nominal_energy_per_link", energy)
    nominal_clock = require(config, key + "nominal_frequency", technology.nominal_frequency)
    supply = _supply(config, key, technology)
    power = float(getattr(config.power_breakdown.network, network))
    nominal_power = energy * num_links * nominal_clock
    voltage, relative = supply.metered(power / nominal_power if nominal_power else 0.0)
    clock = nominal_clock * relative
    peak = num_links * clock / (8 * (technology.directions or directions))
    return Link(
        bandwidth=peak * technology.util,
        latency=technology.latency,
        num_links=num_links,
        operating_voltage=voltage,
        operating_frequency=clock,
        energy_per_bit=energy * (voltage / supply.nominal) ** 2 if voltage else energy,
        handshake=technology.handshake,
        in_turns=technology.in_turns,
        reduction_bandwidth=peak * technology.reduction_util,
        reduction_latency=technology.reduction_latency,
    )
