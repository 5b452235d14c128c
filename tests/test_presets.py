"""The shipped configurations: study values unchanged, data sheets and published sizes met."""

import json
import warnings
from pathlib import Path

import pytest

from deepflow.config import (
    DeepFlowWarning,
    canonical_override,
    flatten,
    load_hardware_config,
    load_model_config,
)
from deepflow.config.hardware import DTYPE_BYTES
from deepflow.cost.gemm import gemm_cost
from deepflow.hardware import load_hardware

ROOT = Path(__file__).resolve().parent.parent
HARDWARE_FILES = sorted((ROOT / "configs/hardware-config").glob("*.yaml"))
MODEL_FILES = sorted((ROOT / "configs/model-config").glob("*.yaml"))
ORIGINAL = json.loads((ROOT / "tests/data/config/original_values.json").read_text())["files"]

# Two studies ask for 16 devices, give work to one, and have no network between them.
DELIBERATE_CHANGES = {
    ("H100_SXM5_80GB.yaml", "system_hierarchy.num_devices_per_node"): 1,
    ("v100.yaml", "system_hierarchy.num_devices_per_node"): 1,
    ("a100_80GB.yaml", "execution_backend.model"): "analytical",
    ("a100_80GB_tp.yaml", "execution_backend.model"): "analytical",
}


@pytest.mark.parametrize("path", HARDWARE_FILES + MODEL_FILES, ids=lambda path: path.name)
def test_every_shipped_file_loads_under_its_own_name(path):
    load = load_hardware_config if path in HARDWARE_FILES else load_model_config
    with warnings.catch_warnings():
        # Some studies give away more area, power or edge than they have; presets do not.
        action = "error" if path.stem in DATA_SHEETS else "ignore"
        warnings.simplefilter(action, DeepFlowWarning)
        assert load(path).name == path.stem


@pytest.mark.filterwarnings("ignore::deepflow.config.DeepFlowWarning")
@pytest.mark.parametrize("name", ORIGINAL)
def test_study_files_keep_the_values_of_the_original(name):
    path = ROOT / "configs" / name
    config = (load_hardware_config if "hardware" in name else load_model_config)(path)
    flat = flatten(config)
    compared = 0
    for key, value in ORIGINAL[name].items():
        key = key.removeprefix("model_param.")
        value = DELIBERATE_CHANGES.get((path.name, key), value)
        canonical, expected = canonical_override(config, key, value)
        assert flat[canonical] == expected, key
        compared += 1
    assert compared == len(ORIGINAL[name]) > 4


@pytest.mark.filterwarnings("ignore::deepflow.config.DeepFlowWarning")
@pytest.mark.parametrize("name", [name for name in ORIGINAL if "hardware" in name])
def test_study_files_add_no_values_of_their_own(name):
    """Every key that the original does not have is at its default."""
    config = load_hardware_config(ROOT / "configs" / name)
    given = {canonical_override(config, key, value)[0] for key, value in ORIGINAL[name].items()}
    reference = flatten(load_hardware_config(ROOT / "tests/data/config/small_hardware.yaml"))
    given_in_reference = {
        "name",
        "tech_param.core.num_bundles",
        "tech_param.core.operating_frequency",
        "tech_param.DRAM.size",
        "tech_param.DRAM.bandwidth",
        *(f"tech_param.SRAM_{x}.{y}" for x in ("L2", "L1", "R") for y in ("size", "bandwidth")),
        *(f"tech_param.network.{x}.bandwidth" for x in ("intra_node", "inter_node")),
    }
    for key, value in flatten(config).items():
        if key not in given and key not in given_in_reference:
            assert value == reference[key], key
        elif key not in given and key != "name":
            assert value is None, key


# --- Data sheets: dense 16-bit FLOP/s, memory bandwidth and size, last cache, links each way ----

GIB, MIB = 2**30, 2**20
DATA_SHEETS = {
    "nvidia_v100_sxm2_32gb": (125e12, 900e9, 32 * GIB, 6 * MIB, 150e9, 6.25e9),
    "nvidia_a100_sxm_40gb": (312e12, 1555e9, 40 * GIB, 40 * MIB, 300e9, 25e9),
    "nvidia_a100_sxm_80gb": (312e12, 2039e9, 80 * GIB, 40 * MIB, 300e9, 25e9),
    "nvidia_h100_sxm_80gb_efa": (989.4e12, 3352e9, 80 * GIB, 50 * MIB, 450e9, 50e9),
    "nvidia_a100_sxm_80gb_ethernet": (312e12, 2039e9, 80 * GIB, 40 * MIB, 300e9, 12.5e9),
    "nvidia_a100_pcie_40gb": (312e12, 1555e9, 40 * GIB, 40 * MIB, 32e9, 12.5e9),
    "nvidia_a100_pcie_80gb": (312e12, 1935e9, 80 * GIB, 40 * MIB, 32e9, 12.5e9),
    "nvidia_a100_pcie_80gb_nvlink_pairs": (312e12, 1935e9, 80 * GIB, 40 * MIB, 300e9, 32e9),
    "nvidia_h100_sxm_80gb": (989.4e12, 3352e9, 80 * GIB, 50 * MIB, 450e9, 50e9),
    "nvidia_h100_pcie_80gb": (756e12, 2039e9, 80 * GIB, 50 * MIB, 64e9, 25e9),
    "nvidia_h100_pcie_80gb_nvlink_pairs": (756e12, 2039e9, 80 * GIB, 50 * MIB, 300e9, 64e9),
    "nvidia_h200_sxm_141gb": (989.4e12, 4.8e12, 141 * GIB, 50 * MIB, 450e9, 50e9),
    "nvidia_b200_sxm_180gb": (2.25e15, 7.7e12, 180 * GIB, 126.5 * MIB, 900e9, 50e9),
    "nvidia_gb200_nvl72": (2.5e15, 8e12, 186 * GIB, 126.5 * MIB, 900e9, 50e9),
    "nvidia_l40s": (362.05e12, 864e9, 48 * GIB, 96 * MIB, 32e9, 12.5e9),
    "amd_mi300x": (1307.4e12, 5.3e12, 192 * GIB, 256 * MIB, 448e9, 50e9),
    "google_tpu_v4": (275e12, 1228e9, 32 * GIB, 128 * MIB, 300e9, 75e9),
    "google_tpu_v5p": (459e12, 2765e9, 95 * GIB, 128 * MIB, 600e9, 150e9),
}
DEVICES_PER_NODE = {
    "nvidia_a100_pcie_80gb_nvlink_pairs": 2,
    "nvidia_h100_pcie_80gb_nvlink_pairs": 2,
    "nvidia_gb200_nvl72": 72,
    "google_tpu_v4": 64,
    "google_tpu_v5p": 64,
}


def preset(name, overrides=None):
    return load_hardware(ROOT / f"configs/hardware-config/{name}.yaml", overrides or {})


def test_every_preset_is_checked():
    studies = {Path(name).stem for name in ORIGINAL if "hardware" in name}
    # A machine for studies of networks claims nothing about a device that exists; what one that is
    # described by budgets claims is in test_technology.py.
    claim_nothing = {"one_network", "budgeted_accelerator"}
    assert {path.stem for path in HARDWARE_FILES} == studies | set(DATA_SHEETS) | claim_nothing


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_presets_meet_their_data_sheets(name):
    hardware = preset(name)
    technology = hardware.config.tech_param
    core, dram, network = technology.core, technology.DRAM, technology.network
    derived = (
        hardware.accelerator.core.peak_flops,
        hardware.accelerator.memory[3].peak_bandwidth,
        hardware.accelerator.memory[3].size,
        technology.SRAM_L2.size,
        network.intra_node.bandwidth,
        network.inter_node.bandwidth,
    )
    assert derived == pytest.approx(DATA_SHEETS[name], rel=0.01)
    per_node = hardware.config.system_hierarchy.num_devices_per_node
    assert per_node == DEVICES_PER_NODE.get(name, 8)
    # What a matrix step does and what the rate says are the same unit; a systolic array takes
    # as many cycles for a step as rows stream through it.
    cycles = core.FMA_d1 if name.startswith("google") else 1
    assert core.nominal_flop_rate_per_mcu * cycles == 2 * core.FMA_d1**2 * core.FMA_d2
    if dram.num_stacks is not None:
        assert dram.num_stacks * dram.stack_capacity == dram.size
        per_link = dram.bandwidth * 8 / (dram.num_stacks * dram.num_links_per_stack)
        assert dram.nominal_frequency == pytest.approx(per_link, rel=1e-3)


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_large_products_are_bound_by_arithmetic(name):
    """No cache or register bandwidth, many of them assumptions, holds a preset back."""
    accelerator = preset(name).accelerator
    cost = gemm_cost(accelerator, 8192, 8192, 8192, 2)
    assert cost.bound == "compute"
    assert cost.flops / cost.time > 0.9 * accelerator.core.usable_flops


# Dense FLOP/s (or integer operations/s) of the other data types on the same sheets.
PEAKS = {
    "nvidia_v100_sxm2_32gb": {"fp32": 15.7e12, "fp16": 125e12},
    "nvidia_a100_sxm_80gb": {
        "fp32": 19.5e12,
        "tf32": 156e12,
        "bf16": 312e12,
        "fp16": 312e12,
        "int8": 624e12,
    },
    "nvidia_h100_sxm_80gb": {
        "fp32": 66.9e12,
        "tf32": 494.7e12,
        "bf16": 989.4e12,
        "fp16": 989.4e12,
        "fp8": 1978.9e12,
        "int8": 1978.9e12,
    },
    "nvidia_h100_pcie_80gb": {
        "fp32": 51.2e12,
        "tf32": 378e12,
        "bf16": 756e12,
        "fp16": 756e12,
        "fp8": 1513e12,
        "int8": 1513e12,
    },
    "nvidia_b200_sxm_180gb": {
        "fp32": 75e12,
        "tf32": 1.125e15,
        "bf16": 2.25e15,
        "fp16": 2.25e15,
        "fp8": 4.5e15,
        "fp4": 9e15,
        "int8": 4.5e15,
    },
    "nvidia_gb200_nvl72": {
        "fp32": 80e12,
        "tf32": 1.25e15,
        "bf16": 2.5e15,
        "fp16": 2.5e15,
        "fp8": 5e15,
        "fp4": 10e15,
        "int8": 5e15,
    },
    "nvidia_l40s": {
        "fp32": 91.6e12,
        "tf32": 183e12,
        "bf16": 362.05e12,
        "fp16": 362.05e12,
        "fp8": 733e12,
        "int8": 733e12,
    },
    "amd_mi300x": {
        "fp32": 163.4e12,
        "tf32": 653.7e12,
        "bf16": 1307.4e12,
        "fp16": 1307.4e12,
        "fp8": 2614.9e12,
        "int8": 2614.9e12,
    },
    "google_tpu_v4": {"bf16": 275e12, "int8": 275e12},
    "google_tpu_v5p": {"bf16": 459e12, "fp8": 459e12, "int8": 918e12},
}
# Boards with the same chip at the same clock.
PEAKS |= {
    name: PEAKS["nvidia_a100_sxm_80gb"] for name in DATA_SHEETS if name.startswith("nvidia_a100")
}
PEAKS["nvidia_h200_sxm_141gb"] = PEAKS["nvidia_h100_sxm_80gb"]
PEAKS["nvidia_h100_sxm_80gb_efa"] = PEAKS["nvidia_h100_sxm_80gb"]
PEAKS["nvidia_h100_pcie_80gb_nvlink_pairs"] = PEAKS["nvidia_h100_pcie_80gb"]


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_every_data_type_has_the_peak_of_the_data_sheet(name):
    rates = preset(name).config.tech_param.core.precision_rates
    assert set(rates.supported) == set(PEAKS[name])
    for dtype, peak in PEAKS[name].items():
        overrides = {"sw_param.dtype": dtype, "sw_param.precision": DTYPE_BYTES[dtype]}
        core = preset(name, overrides).accelerator.core
        assert core.peak_flops == pytest.approx(peak, rel=0.01), dtype


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_power_is_what_the_data_sheet_allows(name):
    """Core, DRAM and L2 at full rate and 10 W of links are the TDP, where one is published."""
    hardware = preset(name)
    core, budget = hardware.accelerator.core, hardware.config.power_breakdown
    if budget.TDP is None:
        assert core.energy_per_flop is None
        return
    memory = hardware.accelerator.memory
    power = core.energy_per_flop * core.peak_flops + 10
    for level in memory[2:]:
        power += level.peak_bandwidth * 8 * level.dynamic_energy_per_bit
    assert power == pytest.approx(budget.TDP, rel=0.01)


SHARED_MEMORY_OF_SMS = {80: 96, 108: 164, 114: 228, 132: 228, 142: 100, 148: 228, 152: 228}


@pytest.mark.parametrize("name", [name for name in DATA_SHEETS if name.startswith("nvidia_")])
def test_on_chip_sizes_are_the_sum_over_sms(name):
    technology = preset(name).config.tech_param
    sms = technology.core.num_bundles
    assert technology.SRAM_L1.size == sms * SHARED_MEMORY_OF_SMS[sms] * 2**10
    assert technology.SRAM_R.size == sms * 256 * 2**10
    cycle = technology.core.operating_frequency
    assert technology.SRAM_L1.bandwidth == pytest.approx(128 * sms * cycle, rel=0.01)


# Presets without measured operators of their own say that they assume those of another.
ASSUMED_AS = {
    "nvidia_v100_sxm2_32gb": "nvidia_a100_sxm_80gb",
    "nvidia_a100_sxm_40gb": "nvidia_a100_sxm_80gb",
    "nvidia_a100_pcie_40gb": "nvidia_a100_sxm_80gb",
    "nvidia_a100_pcie_80gb": "nvidia_a100_sxm_80gb",
    "nvidia_a100_pcie_80gb_nvlink_pairs": "nvidia_a100_sxm_80gb",
    "nvidia_a100_sxm_80gb_ethernet": "nvidia_a100_sxm_80gb",
    "nvidia_h100_sxm_80gb_efa": "nvidia_h100_sxm_80gb",
    "nvidia_l40s": "nvidia_a100_sxm_80gb",
    "nvidia_h100_pcie_80gb": "nvidia_h100_sxm_80gb",
    "nvidia_h100_pcie_80gb_nvlink_pairs": "nvidia_h100_sxm_80gb",
    "nvidia_h200_sxm_141gb": "nvidia_h100_sxm_80gb",
    "nvidia_b200_sxm_180gb": "nvidia_h100_sxm_80gb",
    "nvidia_gb200_nvl72": "nvidia_h100_sxm_80gb",
    "amd_mi300x": "nvidia_h100_sxm_80gb",
}


@pytest.mark.parametrize("name", ASSUMED_AS)
def test_assumed_fractions_are_those_of_the_device_that_is_named(name):
    def assumed(config):
        core = config.tech_param.core
        return (
            config.sw_param.kernel_launch_overhead,
            (core.whole_waves, core.exposed_epilogue, core.split_latency),
            (core.util, core.attention_util),
            config.tech_param.DRAM.util,
        )

    assert f"{ASSUMED_AS[name]}.yaml" in (ROOT / f"configs/hardware-config/{name}.yaml").read_text(
        encoding="utf-8"
    )
    ours, theirs = preset(name).config, preset(ASSUMED_AS[name]).config
    assert assumed(ours) == assumed(theirs)
    links, known = (config.tech_param.network.intra_node for config in (ours, theirs))
    if "pcie" not in name and name != "nvidia_l40s":
        assert (links.util, links.latency) == (known.util, known.latency)


def plain(name):
    """How names are compared: without case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


@pytest.mark.filterwarnings("ignore::deepflow.config.DeepFlowWarning")
def test_names_in_measured_tables_lead_to_one_preset_each():
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for path in HARDWARE_FILES:
        config = load_hardware_config(path)
        assert plain(config.name) not in names
        names[plain(config.name)] = path.stem
        for alias in {plain(alias) for alias in config.aliases}:
            assert alias not in aliases, alias
            aliases[alias] = path.stem
    # Tables call machines what the files of two studies happen to be called; an alias wins.
    assert names.keys() & aliases.keys() == {"a10080gb", "h100sxm580gb"}
    for measured, expected in {
        "h100_sxm": "nvidia_h100_sxm_80gb",
        "H100 SXM5 80GB": "nvidia_h100_sxm_80gb",
        "a100_sxm": "nvidia_a100_sxm_80gb",
        "A100-SXM-80GB (Selene)": "nvidia_a100_sxm_80gb",
        "A100-40GB": "nvidia_a100_sxm_40gb",
        "A100 80GB": "nvidia_a100_pcie_80gb_nvlink_pairs",
        "h200_sxm": "nvidia_h200_sxm_141gb",
        "H200 SXM": "nvidia_h200_sxm_141gb",
        "b200_sxm": "nvidia_b200_sxm_180gb",
        "gb200": "nvidia_gb200_nvl72",
    }.items():
        assert aliases[plain(measured)] == expected
