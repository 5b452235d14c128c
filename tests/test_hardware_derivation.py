"""Derived hardware: agreement with the original code, its faults mended, and monotony."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from deepflow.config import GemmModel, load_hardware_config, with_overrides
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.hardware import Accelerator, Hardware, derive_hardware, load_hardware, parallel_links
from deepflow.hardware.derive import drive_voltage
from deepflow.prediction import predict

REFERENCE = Path(__file__).parent / "data" / "reference"
RECORDS: list[dict[str, Any]] = json.loads(
    gzip.decompress((REFERENCE / "hardware_derived.json.gz").read_bytes())
)
GOOD = [record for record in RECORDS if "error" not in record]

# Some of the original's files hand out more area, edge or power than there is.
pytestmark = pytest.mark.filterwarnings("ignore::deepflow.config.DeepFlowWarning")


def reference_hardware(name: str, overrides: dict[str, Any] | None = None) -> Hardware:
    return load_hardware(REFERENCE / "hardware" / name, overrides or {})


@cache
def derived(index: int) -> Hardware:
    return reference_hardware(GOOD[index]["hardware"], GOOD[index]["overrides"])


def label(record: dict[str, Any]) -> str:
    return f"{record['hardware'].removesuffix('.yaml')}-{record['tag']}"


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=0)


# --- Agreement with the original ------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(GOOD)), ids=[label(record) for record in GOOD])
def test_core_agrees_with_the_original(index: int) -> None:
    hardware, record = derived(index), GOOD[index]
    core, expected = hardware.accelerator.core, record["core"]
    technology = hardware.config.tech_param.core
    assert core.num_mcu == expected["num_mcu"]
    assert core.num_bundles == expected["num_bundle"]
    assert core.operating_voltage == close(expected["operating_voltage"])
    assert core.operating_frequency == close(expected["operating_freq"])
    assert core.area_scaling == close(expected["area_scaling"])
    assert core.nominal_power == close(expected["nominal_power"])
    assert core.peak_flops == close(expected["operating_throughput"])
    assert core.usable_flops == close(expected["throughput"])
    assert technology.nominal_flop_rate_per_mcu * core.area_scaling == close(
        expected["operating_flop_rate_per_mcu"]
    )


@pytest.mark.parametrize("index", range(len(GOOD)), ids=[label(record) for record in GOOD])
def test_memory_levels_agree_with_the_original(index: int) -> None:
    hardware, record = derived(index), GOOD[index]
    power = hardware.config.power_breakdown
    budgets = {"SRAM-R": power.reg_mem, "SRAM-L1": power.L1, "SRAM-L2": power.L2}
    for level, expected in zip(hardware.accelerator.memory, record["memory"], strict=True):
        assert (level.name, level.scope) == (expected["type"], expected["scope"])
        assert level.size == close(expected["size"])
        assert level.size_per_tile == close(expected["size_per_bundle"])
        assert level.peak_bandwidth == close(expected["dynamic_throughput"])
        assert level.bandwidth == close(expected["throughput"])
        assert level.latency == expected["latency"]
        if level.name == "DRAM":
            assert level.num_stacks == expected["num_stacks"]
            assert level.num_links == expected["num_links"]
            assert level.operating_voltage == close(expected["operating_voltage"])
            assert level.operating_frequency == close(expected["operating_freq"])
            assert power.DRAM - level.static_power == close(expected["dynamic_power"])
        else:
            assert level.num_banks == expected["num_banks"]
            assert level.static_power == close(expected["static_power"])
            assert budgets[level.name] - level.static_power == close(expected["dynamic_power"])


@pytest.mark.parametrize("index", range(len(GOOD)), ids=[label(record) for record in GOOD])
def test_links_agree_with_the_original(index: int) -> None:
    hardware, record = derived(index), GOOD[index]
    for where, link in (
        ("intra", hardware.accelerator.intra_node),
        ("inter", hardware.accelerator.inter_node),
    ):
        expected = record["network"][where]
        assert link.num_links == expected["num_links"]
        assert link.latency == expected["latency"]
        assert link.bandwidth == close(expected["throughput"])
        if link.num_links:
            technology = getattr(hardware.config.tech_param.network, f"{where}_node")
            least = technology.threshold_voltage + technology.margin_voltage
            assert link.operating_frequency == close(expected["operating_freq"])
            # Fault B11 of the original: it reports a supply below the least one.
            assert link.operating_voltage == close(max(expected["operating_voltage"], least))
    links = parallel_links(hardware)
    for dimension, suffix in (("kp1", "K1"), ("kp2", "K2"), ("dp", "D"), ("lp", "L")):
        expected_links = record["parallel_links"]
        assert links[dimension] == (expected_links[f"IB{suffix}"], expected_links[f"LL{suffix}"])


def test_below_the_least_voltage_a_link_sends_what_its_power_pays_for() -> None:
    """In the reference records this is most points; here against the energy balance itself."""
    record = next(record for record in GOOD if record["tag"] == "net1W10.0mm2")
    link = reference_hardware(record["hardware"], record["overrides"]).accelerator.intra_node
    assert record["network"]["intra"]["operating_voltage"] < 0.7 == link.operating_voltage
    assert link.energy_per_bit == close(1e-12 * 0.7**2)
    # A fourth of the links leaves in each direction.
    assert link.bandwidth * 4 * 8 * 1e-12 * 0.7**2 == close(1.0)


# --- Faults of the original, mended ---------------------------------------------------------


def test_a7_no_power_means_exactly_no_rate() -> None:
    """The original's root finder returned Vt + 1e-8 V, hence about 1e-5 bytes/s on a link."""
    overrides = {
        "power_breakdown.core": 0,
        "power_breakdown.network.inter_node": 0,
        "power_breakdown.network.intra_node": 0,
    }
    hardware = reference_hardware("exp_config_new_MCM.yaml", overrides)
    accelerator = hardware.accelerator
    assert accelerator.core.peak_flops == 0
    assert accelerator.inter_node.bandwidth == 0
    assert accelerator.intra_node.bandwidth == 0

    technology = hardware.config.tech_param.network.inter_node
    threshold, nominal = technology.threshold_voltage, technology.nominal_voltage
    assert threshold is not None
    assert nominal is not None
    assert technology.margin_voltage is not None
    assert technology.nominal_frequency is not None
    voltage = threshold + 1e-8
    speed = (voltage - threshold) ** 2 / voltage * nominal / (nominal - threshold) ** 2
    throttle = (voltage / (threshold + technology.margin_voltage)) ** 2
    links = accelerator.inter_node.num_links
    assert links is not None
    faulty = links * technology.nominal_frequency * speed * throttle * technology.util / 8
    assert 1e-6 < faulty < 1e-3

    with pytest.raises(InfeasiblePoint, match="core has no throughput"):
        _ = accelerator.roofline_limits


@pytest.mark.parametrize("name", ["DRAM", "L2", "L1", "reg_mem"])
def test_a7_no_power_for_a_memory_means_no_bandwidth(name: str) -> None:
    accelerator = reference_hardware("v100.yaml", {f"power_breakdown.{name}": 0}).accelerator
    dead = {"DRAM": 3, "L2": 2, "L1": 1, "reg_mem": 0}[name]
    assert accelerator.memory[dead].bandwidth == 0
    with pytest.raises(InfeasiblePoint, match=accelerator.memory[dead].name):
        _ = accelerator.roofline_limits


def test_b8_dram_voltage_is_clamped_to_its_maximum() -> None:
    """One stack on the power of four: the original failed, for want of an attribute."""
    record = next(record for record in RECORDS if "error" in record)
    assert "AttributeError" in record["error"]
    dram = reference_hardware(record["hardware"], record["overrides"]).accelerator.memory[3]
    assert dram.num_stacks == 1
    assert dram.operating_voltage == 1.8
    speed = (1.8 - 0.4) ** 2 / 1.8 / ((1.2 - 0.4) ** 2 / 1.2)
    assert dram.bandwidth == close(1024 * 1.38e9 * speed / 8)


def test_b8_no_division_by_a_zero_inter_node_derate() -> None:
    several = {"system_hierarchy.num_nodes": 2, "system_hierarchy.inter_derate": 0}
    with pytest.raises(ConfigError, match=r"v100\.yaml: system_hierarchy\.inter_derate = 0"):
        reference_hardware("v100.yaml", several)
    alone = {"system_hierarchy.num_nodes": 1, "system_hierarchy.inter_derate": 0}
    assert parallel_links(reference_hardware("v100.yaml", alone))["dp"] == (0.0, 5e-6)


def test_leakage_never_takes_more_than_half_of_a_memorys_power() -> None:
    """The original fills the area, and from some size on nothing is left to move data."""
    thrifty = {"power_breakdown.L2": 0.001}
    small = reference_hardware("v100.yaml", {**thrifty, "area_breakdown.L2": 30}).accelerator
    large = reference_hardware("v100.yaml", {**thrifty, "area_breakdown.L2": 400}).accelerator
    leakage_if_filled = 8.4e-12 * 8 * 400 / 30 * small.memory[2].size
    assert leakage_if_filled > 0.001
    assert large.memory[2].static_power <= 0.0005
    assert large.memory[2].bandwidth >= 0.45 * 0.0005 / (8 * 130e-15)
    assert large.memory[2].size > small.memory[2].size


# --- Values given instead of derived --------------------------------------------------------


MINIMAL: dict[str, Any] = {
    "sw_param": {"kernel_launch_overhead": 5e-6},
    "tech_param": {
        "core": {
            "nominal_flop_rate_per_mcu": 1024,
            "num_mcu_per_bundle": 4,
            "num_bundles": 100,
            "operating_frequency": 1e9,
            "util": 0.5,
        },
        "DRAM": {"size": "80 GB", "bandwidth": "2 TB/s", "util": 0.9},
        "SRAM-L2": {"size": "50 MB", "bandwidth": "6 TB/s"},
        "SRAM-L1": {"size": "20 MB", "bandwidth": "20 TB/s"},
        "SRAM-R": {"size": "25 MB", "bandwidth": "100 TB/s"},
        "network": {
            "intra_node": {"latency": 2e-6, "bandwidth": 450e9, "util": 0.8},
            "inter_node": {"latency": 5e-6, "bandwidth": 50e9},
        },
    },
    "area_breakdown": {"proc_chip_area_budget": 800, "device_area_budget": 1600},
    "power_breakdown": {},
}


def test_given_sizes_and_bandwidths_need_no_technology(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    accelerator = load_hardware(path).accelerator
    assert accelerator.core.peak_flops == 1024 * 400 * 1e9
    assert accelerator.core.usable_flops == accelerator.core.attention_flops
    assert accelerator.core.energy_per_flop is None
    dram = accelerator.memory[3]
    assert (dram.size, dram.bandwidth) == (80 * 2**30, 0.9 * dram.peak_bandwidth)
    assert dram.num_stacks is None
    # A link's bandwidth is the whole device's: no share per direction of a mesh.
    assert accelerator.intra_node.bandwidth == 0.8 * 450e9
    assert accelerator.inter_node.bandwidth == 50e9


def test_overrides_and_attention_utilisation(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    core = load_hardware(path, {"tech_param.core.attention_util": 0.25}).accelerator.core
    assert core.attention_flops == 0.25 * core.peak_flops
    assert core.usable_flops == 0.5 * core.peak_flops


@pytest.mark.parametrize(
    "key",
    [
        "tech_param.core.operating_area_per_mcu",
        "tech_param.core.nominal_power_per_mcu",
        "tech_param.core.nominal_frequency",
        "tech_param.core.nominal_voltage",
        "tech_param.core.margin_voltage",
        "tech_param.DRAM.stack_capacity",
        "tech_param.DRAM.area_per_stack",
        "tech_param.DRAM.mem_ctrl_area",
        "tech_param.DRAM.num_links_per_mm",
        "tech_param.DRAM.num_links_per_stack",
        "tech_param.DRAM.dynamic_energy_per_bit",
        "tech_param.DRAM.nominal_frequency",
        "tech_param.DRAM.threshold_voltage",
        "tech_param.SRAM-L2.bank_capacity",
        "tech_param.SRAM-L1.area_per_bit",
        "tech_param.SRAM-R.dynamic_energy_per_bit",
        "tech_param.network.inter_node.nominal_area_per_link",
        "tech_param.network.inter_node.num_links_per_mm",
        "tech_param.network.inter_node.nominal_energy_per_link",
        "tech_param.network.inter_node.nominal_frequency",
        "tech_param.network.inter_node.threshold_voltage",
    ],
)
def test_a_missing_key_is_named_with_its_file(key: str, tmp_path: Path) -> None:
    content = yaml.safe_load((REFERENCE / "hardware" / "v100.yaml").read_text())
    section = content
    *parents, last = key.split(".")
    for parent in parents:
        section = section[parent]
    del section[last]
    path = tmp_path / "incomplete.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as raised:
        load_hardware(path)
    assert (raised.value.key, raised.value.file) == (key, str(path))


@pytest.mark.parametrize(
    "key",
    [
        "tech_param.core.nominal_power_per_mcu",
        "tech_param.DRAM.dynamic_energy_per_bit",
        "tech_param.SRAM-L2.dynamic_energy_per_bit",
        "tech_param.network.inter_node.nominal_energy_per_link",
    ],
)
def test_a_budget_cannot_be_divided_by_zero_energy(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        reference_hardware("v100.yaml", {key: 0})
    assert raised.value.key == key


def test_a_nominal_voltage_below_threshold_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nominal_voltage"):
        reference_hardware("v100.yaml", {"tech_param.core.nominal_voltage": 0.15})


def test_a_budget_without_links_needs_no_link_technology(tmp_path: Path) -> None:
    content = yaml.safe_load((REFERENCE / "hardware" / "v100.yaml").read_text())
    content["tech_param"]["network"]["intra_node"] = {"latency": 1e-6}
    path = tmp_path / "alone.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_hardware(path).accelerator.intra_node.bandwidth == 0


# --- Data types -----------------------------------------------------------------------------


def with_rates(tmp_path: Path, **software: object) -> Path:
    """A device whose FP8 products run at twice the nominal rate, FP32 at a sixteenth."""
    content = json.loads(json.dumps(MINIMAL))
    content["tech_param"]["core"] |= {
        "precision_rates": {"fp32": 0.0625, "bf16": 1, "fp8": 2, "fp4": 4, "int8": None},
        "nominal_power_per_mcu": 1.0,
        "attention_util": 0.25,
    }
    content["sw_param"] |= software
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("dtype", "size", "rate"),
    [("fp32", 4, 0.0625), ("bf16", 2, 1), ("fp8", 1, 2), ("fp4", 0.5, 4)],
)
def test_a_data_type_scales_every_rate_at_the_same_power(
    tmp_path: Path, dtype: str, size: float, rate: float
) -> None:
    nominal = load_hardware(with_rates(tmp_path)).accelerator.core
    core = load_hardware(with_rates(tmp_path, dtype=dtype, precision=size)).accelerator.core
    assert core.peak_flops == rate * nominal.peak_flops
    assert core.usable_flops == rate * nominal.usable_flops
    assert core.attention_flops == rate * nominal.attention_flops
    assert core.energy_per_flop is not None and nominal.energy_per_flop is not None
    assert core.energy_per_flop * core.peak_flops == close(
        nominal.energy_per_flop * nominal.peak_flops
    )


def test_four_bit_elements_halve_the_traffic_of_eight_bit_ones(tmp_path: Path) -> None:
    path = with_rates(tmp_path, dtype="fp4", precision=0.5)
    model = GemmModel(M=1, K=8192, N=8192)
    four_bit = predict(load_hardware(path), model)
    eight_bit = predict(
        load_hardware(path, {"sw_param.dtype": "fp8", "sw_param.precision": 1}), model
    )
    assert four_bit.dram_bytes == eight_bit.dram_bytes / 2 > 0


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_data_type_without_a_rate_is_refused_with_those_that_have_one(
    tmp_path: Path, dtype: str
) -> None:
    with pytest.raises(ConfigError, match=rf"sw_param.dtype = '{dtype}'.*fp32, bf16, fp8, fp4"):
        load_hardware(with_rates(tmp_path, dtype=dtype))
    config = load_hardware_config(with_rates(tmp_path))
    with pytest.raises(ConfigError, match=f"sw_param.dtype = '{dtype}'"):
        with_overrides(config, {"sw_param.dtype": dtype})


def test_files_without_rates_have_the_nominal_one_only(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match=r"sw_param.dtype.*precision_rates is empty"):
        load_hardware(path, {"sw_param.dtype": "bf16"})


def test_the_size_of_elements_has_to_be_that_of_the_data_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sw_param.precision = 2.*fp8.*allowed: 1"):
        load_hardware(with_rates(tmp_path, dtype="fp8", precision=2))
    with pytest.raises(ConfigError, match=r"sw_param.precision = 0.5.*allowed: 2"):
        load_hardware(with_rates(tmp_path, dtype="bf16"), {"sw_param.precision": 0.5})


# --- Energy, links per dimension ------------------------------------------------------------


def test_energy_per_flop_follows_the_voltage() -> None:
    """At full load the FLOPs cost what the power budget has: energy x rate = power."""
    for power in (60, 112.35):
        core = reference_hardware("v100.yaml", {"power_breakdown.core": power}).accelerator.core
        assert core.energy_per_flop is not None
        assert core.energy_per_flop * core.peak_flops == close(power)


def test_links_per_parallel_dimension() -> None:
    system = {
        "system_hierarchy.num_devices_per_node": 4,
        "system_hierarchy.num_nodes": 3,
        "system_hierarchy.intra_derate": 2,
        "system_hierarchy.inter_derate": 5,
        "system_hierarchy.dp_inter": True,
        "system_hierarchy.lp_inter": True,
        "tech_param.network.inter_node.latency": 7e-6,
    }
    name = "exp_config_new_MCM.yaml"
    hardware = reference_hardware(name, system)
    intra = hardware.accelerator.intra_node.bandwidth / 2
    inter = hardware.accelerator.inter_node.bandwidth / 5
    assert inter < intra
    expected = {
        "kp1": (intra, 5e-6),
        "kp2": (intra, 5e-6),
        "dp": (inter, 7e-6),
        "lp": (inter, 7e-6),
    }
    assert parallel_links(hardware) == expected

    # Traffic between nodes first passes the node's own network, if there is one.
    narrow = reference_hardware(name, {**system, "system_hierarchy.intra_derate": 2000})
    assert parallel_links(narrow)["dp"] == (intra / 1000, 7e-6)
    without = reference_hardware(name, {**system, "system_hierarchy.intra_derate": 0})
    assert parallel_links(without)["dp"] == (inter, 7e-6)
    assert parallel_links(without)["kp1"] == (0.0, 5e-6)
    one_node = reference_hardware(name, {**system, "system_hierarchy.num_nodes": 1})
    assert parallel_links(one_node)["dp"] == (0.0, 7e-6)


# --- The voltage rule -----------------------------------------------------------------------


@given(
    st.floats(1e-30, 1e9),
    st.one_of(st.just(0.0), st.floats(1e-6, 20.0)),
)
def test_drive_voltage_spends_the_power(power: float, threshold: float) -> None:
    voltage = drive_voltage(power, threshold)
    assert voltage >= threshold
    # The root in V - Vt loses digits where that is tiny beside Vt.
    spacing = 4 * math.ulp(voltage)
    low, high = (max(0.0, voltage - threshold + sign * spacing) for sign in (-1, 1))
    assert low * low * (voltage - spacing) <= power <= high * high * (voltage + spacing)


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 2.0))
def test_drive_voltage_rises_with_power(first: float, second: float, threshold: float) -> None:
    low, high = sorted((first, second))
    assert drive_voltage(low, threshold) <= drive_voltage(high, threshold)


# --- More budget is never slower ------------------------------------------------------------


BASE = load_hardware_config(
    REFERENCE / "hardware" / "exp_config_new_MCM.yaml", {"power_breakdown.TDP": 450}
)

# What may vary around each comparison, so that every regime is visited: starved, limited by
# area, by edge, by stacks, below the least voltage, at the highest.
SURROUNDINGS = st.fixed_dictionaries(
    {},
    optional={
        "power_breakdown.core": st.floats(0.1, 1e3),
        "power_breakdown.DRAM": st.floats(0.01, 1e3),
        "power_breakdown.L2": st.floats(1e-5, 100.0),
        "power_breakdown.L1": st.floats(1e-5, 100.0),
        "power_breakdown.network.intra_node": st.floats(0.01, 1e3),
        "area_breakdown.core": st.floats(1.0, 1e3),
        "area_breakdown.L2": st.floats(0.01, 1e3),
        "area_breakdown.L1": st.floats(0.01, 1e3),
        "area_breakdown.DRAM": st.floats(1.0, 200.0),
        "area_breakdown.network.intra_node": st.floats(0.01, 500.0),
        "area_breakdown.device_area_budget": st.floats(900.0, 5e3),
        "perimeter_breakdown.DRAM": st.floats(0.001, 1.0),
        "perimeter_breakdown.intra_node": st.floats(0.001, 1.0),
        "tech_param.core.threshold_voltage": st.floats(0.0, 0.7),
        "tech_param.core.margin_voltage": st.floats(0.0, 1.0),
        "tech_param.DRAM.max_voltage": st.floats(1.1, 3.0),
        "tech_param.DRAM.static_power_per_bit": st.floats(0.0, 1e-11),
        "tech_param.SRAM_L2.static_power_per_bit": st.floats(0.0, 1e-9),
    },
)


def compare(
    surroundings: dict[str, float], key: str, factor: float
) -> tuple[Accelerator, Accelerator]:
    """The device before and after multiplying the budget ``key`` by ``factor`` >= 1."""
    base = with_overrides(BASE, surroundings)
    budget: Any = base
    for name in key.split("."):
        budget = getattr(budget, name)
    more = budget * factor
    assume(more <= 1 or not key.startswith("perimeter"))
    return (
        derive_hardware(base).accelerator,
        derive_hardware(with_overrides(base, {key: more})).accelerator,
    )


def at_least(after: float, before: float) -> bool:
    return after >= before * (1 - 1e-12)


Measure = Callable[[Accelerator], tuple[float, ...]]
RATES: dict[str, Measure] = {
    "power_breakdown.core": lambda device: (device.core.peak_flops,),
    "area_breakdown.core": lambda device: (device.core.peak_flops, device.core.num_mcu),
    "power_breakdown.DRAM": lambda device: (device.memory[3].bandwidth, device.memory[3].size),
    "perimeter_breakdown.DRAM": lambda device: (device.memory[3].bandwidth, device.memory[3].size),
    "power_breakdown.L2": lambda device: (device.memory[2].bandwidth, device.memory[2].size),
    "power_breakdown.L1": lambda device: (device.memory[1].bandwidth, device.memory[1].size),
    "power_breakdown.network.intra_node": lambda device: (device.intra_node.bandwidth,),
    "area_breakdown.network.intra_node": lambda device: (device.intra_node.bandwidth,),
    "perimeter_breakdown.intra_node": lambda device: (device.intra_node.bandwidth,),
    # A larger memory leaks more, so here capacity and capacity x bandwidth are what grows.
    "area_breakdown.L2": lambda device: (
        device.memory[2].size,
        device.memory[2].size * device.memory[2].bandwidth,
    ),
    "area_breakdown.L1": lambda device: (
        device.memory[1].size,
        device.memory[1].size * device.memory[1].bandwidth,
    ),
    "area_breakdown.DRAM": lambda device: (
        device.memory[3].size,
        device.memory[3].size * device.memory[3].bandwidth,
    ),
    "area_breakdown.device_area_budget": lambda device: (
        device.memory[3].size,
        device.memory[3].size * device.memory[3].bandwidth,
    ),
}


@pytest.mark.parametrize("key", RATES)
@given(surroundings=SURROUNDINGS, factor=st.floats(1.0, 30.0))
def test_more_budget_is_never_slower(
    key: str, surroundings: dict[str, float], factor: float
) -> None:
    before, after = compare(surroundings, key, factor)
    for less, more in zip(RATES[key](before), RATES[key](after), strict=True):
        assert at_least(more, less)


@pytest.mark.parametrize(
    ("key", "leakage", "level"),
    [
        ("area_breakdown.L2", "tech_param.SRAM_L2.static_power_per_bit", 2),
        ("area_breakdown.DRAM", "tech_param.DRAM.static_power_per_bit", 3),
        ("area_breakdown.device_area_budget", "tech_param.DRAM.static_power_per_bit", 3),
    ],
)
@given(surroundings=SURROUNDINGS, factor=st.floats(1.0, 30.0))
def test_without_leakage_more_area_never_costs_bandwidth(
    key: str, leakage: str, level: int, surroundings: dict[str, float], factor: float
) -> None:
    before, after = compare({**surroundings, leakage: 0.0}, key, factor)
    assume(before.memory[level].size > 0)
    assert at_least(after.memory[level].bandwidth, before.memory[level].bandwidth)


@given(surroundings=SURROUNDINGS, factor=st.floats(1.0, 30.0))
def test_leakage_costs_an_sram_at_most_its_share_of_the_power(
    surroundings: dict[str, float], factor: float
) -> None:
    before, after = compare(surroundings, "area_breakdown.L2", factor)
    power = with_overrides(BASE, surroundings).power_breakdown.L2
    lost = (after.memory[2].static_power - before.memory[2].static_power) / power
    assume(before.memory[2].size > 0)
    left = 1 - before.memory[2].static_power / power
    assert after.memory[2].bandwidth == pytest.approx(
        before.memory[2].bandwidth * (1 - lost / left), rel=1e-9
    )
