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
    DramTechnology,
    HardwareConfig,
    LinkTechnology,
    MemoryLevelPlace,
    SramTechnology,
)
from deepflow.errors import ConfigError
from deepflow.hardware.accelerator import Accelerator, Core, Hardware, Link, MemoryLevel

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
    """``value``, or an error that names the file and the dotted key that lacks it."""
    if value is None:
        raise ConfigError("is needed to derive the hardware", file=config.file, key=key)
    return value


def drive_voltage(power: float, threshold: float) -> float:
    """The root V >= ``threshold`` of V (V - threshold)^2 = ``power`` (volts, volts cubed).

    Unique because the left side rises there. Newton's method from above on u = V - threshold
    falls monotonically to the root, so the loop ends at machine precision.
    """
    if power <= 0:
        return threshold
    excess = math.cbrt(power)
    if threshold > 0:
        excess = min(excess, math.sqrt(power / threshold))
    while True:
        value = excess * excess * (excess + threshold) - power
        lower = excess - value / (excess * (3 * excess + 2 * threshold))
        if not lower < excess:
            return threshold + excess
        excess = lower


def _core(config: HardwareConfig) -> Core:
    technology = config.tech_param.core
    key = "tech_param.core."
    if technology.num_bundles is not None:
        num_mcu = technology.num_bundles * technology.num_mcu_per_bundle
    else:
        area = require(config, key + "operating_area_per_mcu", technology.operating_area_per_mcu)
        num_mcu = math.floor(config.area_breakdown.core / area)
    area_scaling = 1.0
    if technology.nominal_area_per_mcu is not None and technology.operating_area_per_mcu:
        area_scaling = technology.operating_area_per_mcu / technology.nominal_area_per_mcu
    nominal_power = None
    if technology.nominal_power_per_mcu is not None:
        nominal_power = technology.nominal_power_per_mcu * num_mcu * area_scaling

    electrics = _Electrics(config, key, technology)
    power = config.power_breakdown.core
    voltage: float | None
    if technology.operating_frequency is not None:
        frequency = technology.operating_frequency
        # A fixed clock needs no voltage; where there is one it says what a FLOP costs.
        known = electrics.known and nominal_power and power > 0
        voltage = electrics.voltage(power, nominal_power) if known and nominal_power else None
    else:
        nominal = require(config, key + "nominal_power_per_mcu", nominal_power)
        base = require(config, key + "nominal_frequency", technology.nominal_frequency)
        voltage, frequency = electrics.throttled_clock(power, nominal, base)
    peak = technology.nominal_flop_rate_per_mcu * area_scaling * frequency * num_mcu
    attention = technology.attention_util
    width = technology.FMA_width
    return Core(
        num_mcu=num_mcu,
        num_bundles=num_mcu // technology.num_mcu_per_bundle,
        area_scaling=area_scaling,
        nominal_power=nominal_power,
        operating_voltage=voltage,
        operating_frequency=frequency,
        peak_flops=peak,
        usable_flops=peak * technology.util,
        attention_flops=peak * (technology.util if attention is None else attention),
        energy_per_flop=_energy_per_flop(config, voltage),
        matrix_rows=technology.FMA_d1 if width is None else width,
        matrix_depth=technology.FMA_d2 if width is None else width,
        dataflow=technology.dataflow,
    )


def _energy_per_flop(config: HardwareConfig, voltage: float | None) -> float | None:
    """J/FLOP: nominal power over nominal rate, times (V/Vn)^2 where the voltage is known."""
    core = config.tech_param.core
    clock = core.nominal_frequency or core.operating_frequency
    if core.nominal_power_per_mcu is None or clock is None:
        return None
    energy = core.nominal_power_per_mcu / (core.nominal_flop_rate_per_mcu * clock)
    if voltage is None or core.nominal_voltage is None:
        return energy
    return energy * (voltage / core.nominal_voltage) ** 2


class _Electrics:
    """The voltage and clock rule of one part, with its keys checked."""

    def __init__(
        self, config: HardwareConfig, key: str, technology: object, maximum: float = math.inf
    ) -> None:
        self._config, self._key, self._technology = config, key, technology
        self._maximum = maximum

    @property
    def known(self) -> bool:
        """Whether the file says enough for a voltage."""
        return all(
            getattr(self._technology, name) is not None
            for name in ("nominal_voltage", "threshold_voltage", "margin_voltage")
        )

    def _get(self, name: str) -> float:
        return float(require(self._config, self._key + name, getattr(self._technology, name)))

    @property
    def threshold(self) -> float:
        return self._get("threshold_voltage")

    @property
    def minimum(self) -> float:
        return self.threshold + self._get("margin_voltage")

    @property
    def nominal(self) -> float:
        nominal = self._get("nominal_voltage")
        if nominal <= self.threshold:
            raise ConfigError(
                "the part does not switch at its nominal voltage",
                file=self._config.file,
                key=self._key + "nominal_voltage",
                value=nominal,
                allowed=f"above threshold_voltage {self.threshold:g}",
            )
        return nominal

    def speed(self, voltage: float) -> float:
        """Clock at ``voltage`` relative to that at the nominal voltage."""
        return (_speed(voltage, self.threshold)) / _speed(self.nominal, self.threshold)

    def wanted_voltage(self, power: float, nominal_power: float) -> float:
        """The supply that spends ``power``, whether or not the part works at it."""
        threshold, nominal = self.threshold, self.nominal
        return drive_voltage(
            power / nominal_power * nominal * (nominal - threshold) ** 2, threshold
        )

    def voltage(self, power: float, nominal_power: float) -> float:
        """The supply that spends ``power``, within the part's limits."""
        wanted = max(self.wanted_voltage(power, nominal_power), self.minimum)
        return min(wanted, self._maximum)

    def throttled_clock(
        self, power: float, nominal_power: float, nominal_clock: float
    ) -> tuple[float, float]:
        """(voltage, clock) of a core or a DRAM data link; (0, 0) without power.

        Below the least voltage the clock falls with (wanted/least)^2. That rule of the
        original overdraws a very small budget (links use ``metered_clock``); it is kept
        because its published results stand on it.
        """
        if power <= 0 or nominal_power <= 0:
            return 0.0, 0.0
        wanted = self.wanted_voltage(power, nominal_power)
        voltage = self.voltage(power, nominal_power)
        throttle = min(1.0, wanted / self.minimum) ** 2 if self.minimum > 0 else 1.0
        return voltage, nominal_clock * self.speed(voltage) * throttle

    def metered_clock(
        self, power: float, nominal_power: float, nominal_clock: float
    ) -> tuple[float, float]:
        """(voltage, average clock) of a link; (0, 0) without power.

        Below the least voltage a link runs at that voltage and pauses, so its bits are what
        the power pays for at V^2 per bit.
        """
        if power <= 0 or nominal_power <= 0:
            return 0.0, 0.0
        wanted = self.wanted_voltage(power, nominal_power)
        if wanted >= self.minimum:
            return wanted, nominal_clock * self.speed(wanted)
        paid = power / nominal_power * (self.nominal / self.minimum) ** 2
        return self.minimum, nominal_clock * paid


def _speed(voltage: float, threshold: float) -> float:
    return (voltage - threshold) ** 2 / voltage


def _memory(config: HardwareConfig, place: MemoryLevelPlace, core: Core) -> MemoryLevel:
    owners = {"global": 1, "mcu-bundle": core.num_bundles, "mcu": core.num_mcu}[place.scope]
    technology = config.tech_param
    match place.type:
        case "DRAM":
            return _dram(config, technology.DRAM, place, owners)
        case "SRAM-L2":
            return _sram(config, technology.SRAM_L2, place, owners, core)
        case "SRAM-L1":
            return _sram(config, technology.SRAM_L1, place, owners, core)
        case _:
            return _sram(config, technology.SRAM_R, place, owners, core)


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
    size = technology.size
    num_banks = None
    if size is None:
        capacity = require(config, key + "bank_capacity", technology.bank_capacity)
        cells = 1 - technology.overhead
        area_of_bank = 8 * capacity * require(
            config, key + "area_per_bit", technology.area_per_bit
        ) + (cells * core.num_bundles * technology.controller_area_per_link)
        num_banks = int(cells * float(getattr(config.area_breakdown, budget)) // area_of_bank)
        if technology.bandwidth is None:
            num_banks = _powered(num_banks, 8 * capacity * technology.static_power_per_bit, power)
        size = num_banks * capacity
    elif technology.bank_capacity is not None:
        num_banks = int(size // technology.bank_capacity)
    leakage = technology.static_power_per_bit * 8 * size
    peak = technology.bandwidth
    if peak is None:
        energy = require(config, key + "dynamic_energy_per_bit", technology.dynamic_energy_per_bit)
        if energy == 0:
            raise ConfigError(
                "a bandwidth cannot follow from the power budget; give the bandwidth",
                file=config.file,
                key=key + "dynamic_energy_per_bit",
                value=energy,
                allowed="above 0",
            )
        peak = max(0.0, power - leakage) / (8 * energy) if size else 0.0
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


def _powered(number: int, leakage: float, power: float) -> int:
    """How many of ``number`` equal parts to build, each leaking ``leakage`` W, on ``power`` W.

    With bandwidth ~ power - parts * leakage, capacity x bandwidth is largest where leakage
    takes half of the power; without this limit more area would end in no bandwidth at all.
    """
    return min(number, int(power / (2 * leakage))) if leakage > 0 else number


def _dram(
    config: HardwareConfig, technology: DramTechnology, place: MemoryLevelPlace, owners: int
) -> MemoryLevel:
    """Stacks that fit, data links that stacks and chip edge allow, clock that power allows."""
    key = "tech_param.DRAM."
    num_stacks, size = _stacks(config, technology)
    leakage = technology.static_power_per_bit * 8 * size
    num_links = _dram_links(config, technology, num_stacks)
    electrics = _Electrics(config, key, technology, technology.max_voltage or math.inf)
    power = config.power_breakdown.DRAM - leakage
    voltage: float | None = None
    frequency = technology.operating_frequency
    peak = technology.bandwidth
    if peak is None:
        num_links = require(config, key + "num_links_per_stack", num_links)
        if frequency is None:
            clock = require(config, key + "nominal_frequency", technology.nominal_frequency)
            energy = require(
                config, key + "dynamic_energy_per_bit", technology.dynamic_energy_per_bit
            )
            voltage, frequency = electrics.throttled_clock(power, energy * num_links * clock, clock)
        peak = num_links * frequency / 8
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
        operating_frequency=frequency,
    )


def _stacks(config: HardwareConfig, technology: DramTechnology) -> tuple[int | None, float]:
    """(stacks, capacity in bytes); the stacks of a given capacity may be unknown."""
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
    beside_chip = (area.device_area_budget - area.proc_chip_area_budget) // footprint
    num_stacks = max(0, int(min(beside_chip, area.DRAM // controller)))
    if technology.bandwidth is None and technology.operating_frequency is None:
        leakage = 8 * capacity * technology.static_power_per_bit
        num_stacks = _powered(num_stacks, leakage, config.power_breakdown.DRAM)
    return num_stacks, num_stacks * capacity


def _dram_links(
    config: HardwareConfig, technology: DramTechnology, num_stacks: int | None
) -> int | None:
    """Data links; a given capacity says how many are there, whatever the chip's edge."""
    if num_stacks is None or technology.num_links_per_stack is None:
        return None
    num_links = technology.num_links_per_stack * num_stacks
    if technology.size is not None or technology.num_links_per_mm is None:
        return num_links
    edge = config.perimeter_breakdown.DRAM * _edge(config)
    return min(num_links, int(edge * technology.num_links_per_mm))


def _edge(config: HardwareConfig) -> float:
    """Edge of the (square) chip in mm."""
    return 4 * math.sqrt(config.area_breakdown.proc_chip_area_budget)


def _link(config: HardwareConfig, network: str, directions: int) -> Link:
    technology: LinkTechnology = getattr(config.tech_param.network, network)
    key = f"tech_param.network.{network}."
    energy = technology.nominal_energy_per_link
    if technology.bandwidth is not None:
        usable = technology.bandwidth * technology.util
        return Link(usable, technology.latency, None, None, None, energy)
    area = float(getattr(config.area_breakdown.network, network))
    edge = float(getattr(config.perimeter_breakdown, network)) * _edge(config)
    if area == 0 or edge == 0:
        return Link(0.0, technology.latency, 0, None, 0.0, energy)
    num_links = int(
        min(
            area / require(config, key + "nominal_area_per_link", technology.nominal_area_per_link),
            edge * require(config, key + "num_links_per_mm", technology.num_links_per_mm),
        )
    )
    energy = require(config, key + "nominal_energy_per_link", energy)
    clock = require(config, key + "nominal_frequency", technology.nominal_frequency)
    power = float(getattr(config.power_breakdown.network, network))
    electrics = _Electrics(config, key, technology)
    voltage, frequency = electrics.metered_clock(power, energy * num_links * clock, clock)
    return Link(
        bandwidth=num_links * frequency * technology.util / (8 * directions),
        latency=technology.latency,
        num_links=num_links,
        operating_voltage=voltage,
        operating_frequency=frequency,
        energy_per_bit=energy * (voltage / electrics.nominal) ** 2 if voltage else energy,
    )
