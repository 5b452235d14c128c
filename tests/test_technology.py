"""The technology library, what it makes of a device, and what a device costs."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cli import main
from deepflow.config import HardwareConfig, canonical_override, load_hardware_config, with_overrides
from deepflow.config.technology import read_library, technology_settings
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.hardware import Hardware, derive_hardware
from deepflow.hardware.manufacturing import device_cost, die_yield, dies_per_wafer
from deepflow.prediction import predict
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.tables import summary_columns

BASE = "configs/hardware-config/budgeted_accelerator.yaml"
LOGIC, MEMORY, NETWORK = (
    list(read_library(Path(__file__).parent.parent / "configs/technology" / name)["entries"])
    for name in ("logic.yaml", "memory.yaml", "network.yaml")
)
STANDARDS = ["HBM1", "HBM2", "HBM2E", "HBM3", "HBM3e", "HBM4"]


@pytest.fixture(autouse=True)
def in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def base(**changes: object) -> HardwareConfig:
    config = load_hardware_config(BASE)
    paths = {path.replace("__", "."): value for path, value in changes.items()}
    return with_overrides(config, dict(canonical_override(config, *item) for item in paths.items()))


def with_technology(
    config: HardwareConfig, kind: str, name: str, logic_of_file: str | None = None
) -> HardwareConfig:
    settings = technology_settings(kind, name, config, logic_of_file)
    return with_overrides(
        config,
        dict(
            canonical_override(config, path.removeprefix("hardware."), value)
            for path, value in settings.items()
        ),
    )


def time_of(hardware: Hardware, model: object) -> float:
    found = predict(hardware, model).time_s  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def llama(repository):
    from deepflow.config import load_model_config

    return load_model_config(
        repository / "configs/model-config/Llama2-7B.yaml", {"global_batch_size": 16}
    )


# --- A device described by budgets ----------------------------------------------------------


def test_budgets_of_an_h100_make_an_h100():
    device = derive_hardware(base()).accelerator
    # Under 700 W it keeps 1.62 GHz of the 1.83 GHz that the data sheet's rate stands for.
    assert device.core.peak_flops == pytest.approx(989.4e12, rel=0.15)
    assert device.core.operating_frequency == pytest.approx(1.62e9, rel=0.01)
    l1, l2, dram = device.memory[1:]
    assert dram.peak_bandwidth == pytest.approx(3352e9, rel=0.01)
    assert dram.size == 80 * 2**30
    assert l2.size == pytest.approx(50 * 2**20, rel=0.01)
    assert l2.peak_bandwidth == pytest.approx(8.74e12, rel=0.05)
    assert l1.size == pytest.approx(30096 * 2**10, rel=0.01)
    assert l1.peak_bandwidth == pytest.approx(30.9e12, rel=0.05)
    assert device.intra_node.bandwidth / 0.843 == pytest.approx(450e9, rel=0.01)


# The unit of an A100: half the rate and power of an H100's, and the area that 432 of them have.
A100_UNIT = {
    "tech_param__core__nominal_flop_rate_per_mcu": 512,
    "tech_param__core__nominal_power_per_mcu": 0.6275,
}
A100_BUDGETS = {
    "area_breakdown__proc_chip_area_budget": 826,
    "area_breakdown__core": 476.5,
    "area_breakdown__DRAM": 75,
    "area_breakdown__network__intra_node": 28.4,
    "perimeter_breakdown__intra_node": 0.14,
    "power_breakdown__TDP": 400,
    "power_breakdown__core": 255,
    "power_breakdown__DRAM": 64.4,
    "power_breakdown__L2": 10.8,
    "power_breakdown__L1": 29,
    "power_breakdown__reg_mem": 17,
    "power_breakdown__network__intra_node": 19.3,
    "tech_param__core__operating_area_per_mcu": 1.103,
    "tech_param__core__nominal_area_per_mcu": 1.103,
    "tech_param__DRAM__nominal_frequency": "3.186 Gb/s",
}


@pytest.mark.parametrize("node", ["TSMC-N7", "7nm"])
def test_unit_node_and_budgets_of_an_a100_make_an_a100(node):
    of_file = "TSMC-N5" if node.startswith("TSMC") else "5nm"
    config = with_technology(base(**A100_UNIT), "logic", node, of_file)
    config = with_technology(config, "memory", "HBM2E")
    config = with_technology(config, "intra_node", "NVLink3")
    changes = {path.replace("__", "."): value for path, value in A100_BUDGETS.items()}
    config = with_overrides(
        config, dict(canonical_override(config, *item) for item in changes.items())
    )
    device = derive_hardware(config).accelerator
    assert device.core.peak_flops == pytest.approx(312e12, rel=0.1)
    assert device.memory[3].peak_bandwidth == pytest.approx(2039e9, rel=0.02)
    assert device.memory[3].size == 80 * 2**30
    assert device.intra_node.bandwidth / 0.843 == pytest.approx(300e9, rel=0.01)


def test_trains_like_the_preset_of_the_same_device(llama):
    changes = {"sw_param.dtype": "bf16", "parallelism.recompute": "full", "parallelism.zero": 1}
    preset = load_hardware_config("configs/hardware-config/nvidia_h100_sxm_80gb.yaml", changes)
    ours = load_hardware_config(BASE, changes)
    times = [time_of(derive_hardware(config), llama) for config in (preset, ours)]
    assert times[1] == pytest.approx(times[0], rel=0.1)


# --- Entries --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["intra_node", "inter_node"])
@pytest.mark.parametrize("name", NETWORK)
def test_every_network_can_be_put_on_a_device(name, kind):
    areas = {f"area_breakdown__network__{kind}": 20, f"perimeter_breakdown__{kind}": 0.2}
    config = with_technology(base(**areas, **{f"power_breakdown__network__{kind}": 20}), kind, name)
    device = derive_hardware(config).accelerator
    assert getattr(device, kind).bandwidth > 1e9


@pytest.mark.parametrize("name", MEMORY)
def test_every_memory_replaces_what_a_preset_states(name):
    preset = load_hardware_config("configs/hardware-config/nvidia_h100_sxm_80gb.yaml")
    changes = {"perimeter_breakdown.DRAM": 1.0, "power_breakdown.DRAM": 300.0}
    dram = derive_hardware(
        with_overrides(with_technology(preset, "memory", name), changes)
    ).accelerator.memory[3]
    entry = read_library("memory.yaml")["entries"][name]["set"]
    rate = float(entry["hardware.tech_param.DRAM.nominal_frequency"].split()[0]) * 1e9
    links = entry["hardware.tech_param.DRAM.num_links_per_stack"]
    # The study's memories may be driven faster than nominal by power that is left.
    assert dram.peak_bandwidth >= 0.99 * 5 * links * rate / 8
    if name in STANDARDS:
        assert dram.peak_bandwidth == pytest.approx(5 * links * rate / 8, rel=0.01)


def test_stacks_have_the_bandwidth_of_their_standard():
    """JEDEC: 128, 256, 819 and 2,048 GB/s; products: 461 and 1,178."""
    found = []
    for name in STANDARDS:
        config = with_technology(base(tech_param__DRAM__num_stacks=1), "memory", name)
        found.append(derive_hardware(config).accelerator.memory[3].peak_bandwidth / 1e9)
    assert found == pytest.approx([128, 256, 460.8, 819.2, 1177.6, 2048], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "bytes_per_mm"),
    [("UCIe-S", 112e9), ("UCIe-A", 658.5e9), ("NVLink4", 38e9), ("NVLink-C2C", 35.1e9)],
)
def test_edge_decides_the_bandwidth_of_links(name, bytes_per_mm):
    """Published bandwidth of a mm of edge in one direction; a mesh has four of those."""
    config = base(
        area_breakdown__network__intra_node=1000,
        power_breakdown__network__intra_node=5000,
        tech_param__network__intra_node__util=1,
    )
    config = with_technology(config, "intra_node", name)
    directions = config.tech_param.network.intra_node.directions or 4
    edge = config.perimeter_breakdown.intra_node * 4 * math.sqrt(814)
    found = derive_hardware(config).accelerator.intra_node.bandwidth
    assert found * directions == pytest.approx(bytes_per_mm * edge, rel=0.05)


def test_links_and_memories_spend_no_more_than_their_energy_per_bit():
    for power in (1.0, 5.0, 10.0, 19.0, 100.0):
        config = base(power_breakdown__network__intra_node=power, power_breakdown__DRAM=power)
        device = derive_hardware(config).accelerator
        bits = 8 * device.intra_node.bandwidth / 0.843
        assert bits * 5.5e-12 <= power * (1 + 1e-9)
        dram = device.memory[3]
        assert 8 * dram.peak_bandwidth * 3.9e-12 + dram.static_power <= power * (1 + 1e-9)


def test_no_power_drives_a_link_beyond_its_highest_voltage():
    bandwidths = [
        derive_hardware(base(power_breakdown__network__intra_node=power)).accelerator.intra_node
        for power in (20, 40, 400)
    ]
    assert len({link.bandwidth for link in bandwidths}) == 1


@pytest.mark.parametrize("family", ["study", "TSMC"])
def test_newer_nodes_take_no_more_area_and_power_and_are_no_slower(llama, family):
    entries = read_library("logic.yaml")["entries"]
    names = [name for name, entry in entries.items() if entry["family"] == family]
    assert len(names) == 7
    for before, after in pairwise(names):
        for quantity, factor in entries[after]["factors"].items():
            assert factor <= entries[before]["factors"][quantity]
    of_file = "TSMC-N5" if family == "TSMC" else "5nm"
    times = [
        time_of(derive_hardware(with_technology(base(), "logic", name, of_file)), llama)
        for name in names
    ]
    assert times == sorted(times, reverse=True)
    assert times[-1] < times[0]


def test_newer_memory_makes_no_device_slower(llama):
    # Power for the fastest; with little, a memory of more stacks may leak more than it gains.
    config = base(power_breakdown__DRAM=300)
    times = [
        time_of(derive_hardware(with_technology(config, "memory", name)), llama)
        for name in STANDARDS
    ]
    assert times == sorted(times, reverse=True)


def test_nodes_of_different_origin_are_not_mixed():
    with pytest.raises(ConfigError, match="another origin"):
        technology_settings("logic", "7nm", base(), "TSMC-N5")


# --- Sweeps ---------------------------------------------------------------------------------

SWEEP = f"""\
hardware: {BASE}
model: configs/model-config/Llama2-7B.yaml
technology:
  logic_of_file: TSMC-N5
  logic: [TSMC-N5, TSMC-N7]
  memory: [HBM3e, study-HBM2]
  intra_node: [NVLink4, PCIe5x16]
grid: {{model.global_batch_size: [8, 16]}}
"""


def sweep_of(tmp_path: Path, text: str):
    path = tmp_path / "technologies.yaml"
    path.write_text(text, encoding="utf-8")
    return load_sweep(path)


def test_technologies_are_axes_of_a_sweep(tmp_path):
    points = list(sweep_of(tmp_path, SWEEP).points())
    assert len(points) == len({point.digest for point in points}) == 16
    assert points[0].axis_values["memory"] == "HBM3e"
    column = summary_columns(sweep_of(tmp_path, SWEEP))["memory"]
    assert (column.dtype, column.unit) == (str, "")
    for point in points:
        config = with_overrides(point.base.hardware, point.hardware_overrides)
        wanted = base()
        for kind in ("logic", "memory", "intra_node"):
            name = str(point.axis_values[kind])
            wanted = with_technology(wanted, kind, name, "TSMC-N5")
        assert derive_hardware(config).accelerator == derive_hardware(wanted).accelerator


def test_what_a_sweep_sets_wins_over_its_technology(tmp_path):
    text = SWEEP + "set: {hardware.tech_param.DRAM.stack_capacity: 20 GB}\n"
    for point in sweep_of(tmp_path, text).points():
        config = with_overrides(point.base.hardware, point.hardware_overrides)
        assert config.tech_param.DRAM.stack_capacity == 20 * 2**30


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("HBM3e,", "HBM9,", "no such technology"),
        ("logic_of_file: TSMC-N5", "logic_of_file: 5nm", "another origin"),
        (
            f"hardware: {BASE}",
            f"hardware: [{BASE}, configs/hardware-config/nvidia_l40s.yaml]",
            "several",
        ),
        (
            "intra_node: [NVLink4, PCIe5x16]",
            "intra_node: PCIe5x16\nset: {hardware.tech_param.network.intra_node.bandwidth: 1 GB/s,"
            " hardware.tech_param.network.intra_node.nominal_energy_per_link: 1e-12}",
            "changes nothing",
        ),
        ("grid: {", "grid: {hardware.tech_param.DRAM.stack_capacity: [1 GB, 2 GB], ", "twice"),
    ],
)
def test_mistakes_in_a_sweeps_technology_are_one_line(tmp_path, old, new, named):
    assert old in SWEEP
    with pytest.raises(ConfigError, match=named) as caught:
        sweep_of(tmp_path, SWEEP.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_point_of_such_a_sweep_is_predicted_by_its_settings(tmp_path, capsys):
    point = list(sweep_of(tmp_path, SWEEP).points())[3]
    hardware = derive_hardware(with_overrides(point.base.hardware, point.hardware_overrides))
    model = with_overrides(point.base.model, point.model_overrides)
    settings = [text for item in point.settings for text in ("--set", item.text)]
    files = ["--hardware", BASE, "--model", "configs/model-config/Llama2-7B.yaml"]
    assert main(["predict", *files, *settings, "--json"]) == 0
    assert repr(time_of(hardware, model)) in capsys.readouterr().out


# --- Costs ----------------------------------------------------------------------------------


def test_an_h100_costs_what_analysts_say():
    cost = device_cost(derive_hardware(base()))
    assert cost is not None
    # Raymond James, 2023, as reported: 3,320 dollars with memory; 63 of its dies fit on a wafer.
    assert cost.total == pytest.approx(3320, rel=0.1)
    assert dies_per_wafer(814, 300) == pytest.approx(63, abs=1)


def test_yield_is_stappers_and_without_clusters_poissons():
    assert die_yield(800, 0.0, 2) == 1
    assert die_yield(800, 0.1, 2) == pytest.approx((1 + 0.8 / 2) ** -2)
    assert die_yield(800, 0.1, 1e9) == pytest.approx(math.exp(-0.8))
    # Clusters leave more dies untouched.
    assert die_yield(800, 0.1, 1) > die_yield(800, 0.1, 10)


@given(
    area=st.floats(50, 5000),
    factor=st.floats(1, 3),
    density=st.floats(0, 1),
    repairable=st.floats(0, 1),
)
def test_larger_dies_and_more_defects_are_never_cheaper(area, factor, density, repairable):
    def die(area: float, density: float) -> float:
        good = die_yield(area * (1 - repairable), density, 2.0)
        return 1 / (dies_per_wafer(area, 300) * good)

    assert die(area, density) <= die(area * factor, density) * (1 + 1e-12)
    assert die(area, density) <= die(area, density * factor) * (1 + 1e-12)


def test_costs_are_unknown_without_prices_and_every_one_can_be_set():
    preset = load_hardware_config("configs/hardware-config/nvidia_h100_sxm_80gb.yaml")
    assert device_cost(derive_hardware(preset)) is None
    before = device_cost(derive_hardware(base()))
    assert before is not None
    dearer = {
        "wafer_cost": 2e4,
        "wafer_diameter": 200,
        "defect_density": 0.2,
        "defect_clustering": 5,
        "repairable_area": 0.4,
        "memory_cost": 20,
        "package_cost": 1,
        "assembly_yield": 0.9,
        "assembly_cost": 1000,
    }
    for key, value in dearer.items():
        after = device_cost(derive_hardware(base(**{f"manufacturing__{key}": value})))
        assert after is not None
        assert after.total > before.total, key


def test_a_chip_larger_than_a_wafer_is_impossible():
    config = base(
        area_breakdown__proc_chip_area_budget=60_000, area_breakdown__device_area_budget=70_000
    )
    with pytest.raises(InfeasiblePoint, match="wafer"):
        device_cost(derive_hardware(config))
