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
        action = "error" if path.name.startswith("nvidia_") else "ignore"
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


# --- Data sheets: dense 16-bit FLOP/s, memory bandwidth and size, L2, NVLink each way, NIC ----

DATA_SHEETS = {
    "nvidia_v100_sxm2_32gb": (125e12, 900e9, 32 * 2**30, 6 * 2**20, 150e9, 6.25e9),
    "nvidia_a100_sxm_80gb": (312e12, 2039e9, 80 * 2**30, 40 * 2**20, 300e9, 25e9),
    "nvidia_h100_sxm_80gb": (989.4e12, 3352e9, 80 * 2**30, 50 * 2**20, 450e9, 50e9),
}


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_presets_meet_their_data_sheets(name):
    config = load_hardware_config(ROOT / f"configs/hardware-config/{name}.yaml")
    core, dram, network = (
        config.tech_param.core,
        config.tech_param.DRAM,
        config.tech_param.network,
    )
    flops = (
        core.num_bundles
        * core.num_mcu_per_bundle
        * core.nominal_flop_rate_per_mcu
        * core.operating_frequency
    )
    derived = (
        flops,
        dram.bandwidth,
        dram.size,
        config.tech_param.SRAM_L2.size,
        network.intra_node.bandwidth,
        network.inter_node.bandwidth,
    )
    assert derived == pytest.approx(DATA_SHEETS[name], rel=0.01)
    assert config.system_hierarchy.num_devices_per_node == 8
    # What a matrix step does and what the rate says are the same unit.
    assert core.nominal_flop_rate_per_mcu == 2 * core.FMA_d1**2 * core.FMA_d2
    assert dram.num_stacks * dram.stack_capacity == dram.size
    per_link = dram.bandwidth * 8 / (dram.num_stacks * dram.num_links_per_stack)
    assert dram.nominal_frequency == pytest.approx(per_link, rel=1e-3)


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_on_chip_sizes_are_the_sum_over_sms(name):
    technology = load_hardware_config(ROOT / f"configs/hardware-config/{name}.yaml").tech_param
    sms = technology.core.num_bundles
    shared_memory = {80: 96, 108: 164, 132: 228}[sms] * 2**10
    assert technology.SRAM_L1.size == sms * shared_memory
    assert technology.SRAM_R.size == sms * 256 * 2**10
    cycle = technology.core.operating_frequency
    assert technology.SRAM_L1.bandwidth == pytest.approx(128 * sms * cycle, rel=0.01)


def test_names_in_measured_tables_lead_to_one_preset_each():
    owner: dict[str, str] = {}
    for path in HARDWARE_FILES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeepFlowWarning)
            config = load_hardware_config(path)
        for alias in (config.name, *config.aliases):
            assert alias not in owner
            owner[alias] = path.stem
    assert owner["h100_sxm"] == owner["H100 SXM5 80GB"] == "nvidia_h100_sxm_80gb"
    assert owner["a100_sxm"] == owner["A100-SXM-80GB (Selene)"] == "nvidia_a100_sxm_80gb"


# --- Published parameter counts ---------------------------------------------------------------

PUBLISHED_PARAMETERS = {
    "GPT3-175B": 174.6e9,  # "175 billion": Brown et al. 2020
    "Megatron-1T": 1008.0e9,  # Narayanan et al. 2021, table 1
    "Llama2-7B": 6.738e9,  # the released checkpoints, here and below
    "Llama2-13B": 13.016e9,
    "Llama2-70B": 68.977e9,
    "Llama3.1-8B": 8.030e9,
    "Llama3.1-70B": 70.554e9,
    "Llama3.1-405B": 405.85e9,
    "Qwen2.5-7B": 7.616e9,
    "Qwen2.5-72B": 72.706e9,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_model_presets_have_the_published_number_of_parameters(name):
    """Attention, feed-forward and embeddings; norms and biases are far below the tolerance."""
    model = load_model_config(ROOT / f"configs/model-config/{name}.yaml")
    attention = 2 * model.hidden_dim * model.head_width * (model.num_heads + model.kv_heads)
    matrices = 3 if model.activation == "swiglu" else 2
    feed_forward = matrices * model.hidden_dim * model.feed_forward_dim
    embeddings = model.vocab_size * model.hidden_dim * (1 if model.tie_embeddings else 2)
    if model.position_embedding == "learned":
        embeddings += (model.max_position or model.seq_len) * model.hidden_dim
    total = model.num_layers * (attention + feed_forward) + embeddings
    assert total == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.002)


def test_every_published_model_is_checked():
    studies = {"GEMM", "LSTM", "LLM"}
    assert {path.stem for path in MODEL_FILES} == studies | set(PUBLISHED_PARAMETERS)
