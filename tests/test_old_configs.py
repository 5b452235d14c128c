"""Files of the older style: read with the meaning they had, and rewritten in the current style."""

import argparse
import json
import math
from pathlib import Path

import pytest

from deepflow.config import (
    DeepFlowWarning,
    GemmModel,
    LlmModel,
    LstmModel,
    flatten,
    load_hardware_config,
    load_model_config,
    read_yaml,
)
from deepflow.config.commands import add_config_command, upgrade, write_upgrade
from deepflow.errors import ConfigError
from deepflow.hardware import load_hardware
from deepflow.prediction import predict
from deepflow.sweep.expand import load_sweep

ROOT = Path(__file__).resolve().parent.parent
OLD = ROOT / "configs/old-configs"
ORIGINAL = json.loads((ROOT / "tests/data/config/old_original_values.json").read_text())["files"]
V100 = (OLD / "v100.yaml").read_text()
OLDEST = (OLD / "exp_config_10nm.yaml").read_text()

# One published study gives away more than its chip and its power.
pytestmark = pytest.mark.filterwarnings("ignore::deepflow.config.DeepFlowWarning")


def edited(folder: Path, *replacements: tuple[str, str], text: str = V100, name="old.yaml") -> Path:
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def leaves(data, path=""):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


# --- What the files mean ---------------------------------------------------------------------


def test_every_original_file_is_shipped():
    assert {path.name for path in OLD.glob("*.yaml")} == set(ORIGINAL)


@pytest.mark.parametrize("name", ORIGINAL)
def test_shipped_files_keep_keys_and_values_of_the_original(name):
    assert dict(leaves(read_yaml(OLD / name))) == ORIGINAL[name]


def test_the_v100_is_the_same_device_in_both_styles():
    """The original tool has this file in both styles; that is where the meaning comes from."""
    current = load_hardware_config(ROOT / "configs/hardware-config/v100.yaml")
    assert flatten(load_hardware_config(OLD / "v100.yaml")) == flatten(current)


@pytest.mark.parametrize("name", ORIGINAL)
def test_values_of_the_originals_arrive(name):
    """Compared with products computed here, over keys found by name, not with the translator."""
    given = ORIGINAL[name]
    config = load_hardware_config(OLD / name)
    chip, tdp = given["area_breakdown.proc_chip_area_budget"], given["power_breakdown.TDP"]
    assert config.area_breakdown.device_area_budget == given["area_breakdown.node_area_budget"]
    for older, current in {
        "core": "core",
        "DRAM": "DRAM",
        "L2": "L2",
        "L1": "L1",
        "shared_mem": "L1",
        "reg_mem": "reg_mem",
    }.items():
        if f"area_breakdown.{older}" in given:
            area = getattr(config.area_breakdown, current)
            power = getattr(config.power_breakdown, current)
            assert area == pytest.approx(given[f"area_breakdown.{older}"] * chip, rel=1e-12)
            assert power == pytest.approx(given[f"power_breakdown.{older}"] * tdp, rel=1e-12)
    for link in ("intra_node", "inter_node"):
        area = given[f"area_breakdown.network.{link}"] * chip
        assert getattr(config.area_breakdown.network, link) == pytest.approx(area, rel=1e-12)
        edge = getattr(config.perimeter_breakdown, link)
        assert edge == given[f"perimeter_breakdown.{link}"]
    technology = config.tech_param
    for memory, names in (
        (technology.SRAM_L2, ("SRAM-L2", "L2")),
        (technology.SRAM_L1, ("SRAM-L1", "shared_mem")),
        (technology.SRAM_R, ("SRAM-R", "reg_mem")),
    ):
        (section,) = [x for x in names if f"tech_param.{x}.latency" in given]
        energy = given[f"tech_param.{section}.dynamic_energy_per_bit"]
        assert memory.dynamic_energy_per_bit == energy
        assert memory.util == given.get(f"tech_param.{section}.util", 1)
        assert memory.overhead == given.get(f"tech_param.{section}.overhead", 0)
    assert technology.core.FMA_d1 == technology.core.FMA_d2 == given["tech_param.core.FMA_width"]
    places = config.memory_hierarchy
    assert [level.type for level in (places.l0, places.l1, places.l2, places.l3)] == [
        "SRAM-R",
        "SRAM-L1",
        "SRAM-L2",
        "DRAM",
    ]
    model = load_model_config(OLD / name)
    assert isinstance(model, LstmModel)
    for key, value in given.items():
        if key.startswith("model_param."):
            assert getattr(model, key.removeprefix("model_param.")) == value
    assert config.name == model.name == Path(name).stem


@pytest.mark.parametrize("name", ORIGINAL)
def test_shipped_devices_can_be_predicted_on(name):
    hardware = load_hardware(OLD / name)
    prediction = predict(hardware, GemmModel(M=4096, K=4096, N=4096))
    assert prediction.status == "ok"
    assert 0 < prediction.time_s < math.inf


def test_budgets_beyond_the_whole_are_warned_about_and_load():
    with pytest.warns(DeepFlowWarning) as caught:
        config = load_hardware_config(OLD / "exp_config_SiIF.yaml")
    assert config.area_breakdown.L1 == 1793
    texts = [str(warning.message) for warning in caught]
    assert any("area_breakdown: the parts take 2363.5 mm2" in text for text in texts)
    assert any("power_breakdown: the parts take 348 W of a TDP of 300 W" in text for text in texts)


@pytest.mark.parametrize(
    ("room", "workers", "expected"),
    [
        (1, 1, (1, 1)),
        (64, 1, (1, 1)),
        (64, 63, (63, 1)),
        (64, 64, (64, 1)),
        (64, 256, (64, 4)),
        (1, 8, (1, 8)),
    ],
)
def test_workers_fill_wafers(tmp_path, room, workers, expected):
    path = edited(
        tmp_path,
        ("num_nodes_per_wafer: 1 ", f"num_nodes_per_wafer: {room} "),
        ("num_workers: 1 ", f"num_workers: {workers} "),
    )
    system = load_hardware_config(path).system_hierarchy
    assert (system.num_devices_per_node, system.num_nodes) == expected


def test_without_counts_there_is_one_device(tmp_path):
    path = edited(
        tmp_path,
        ("  num_nodes_per_wafer: 1  # devices that a wafer has room for\n", ""),
        ("  num_workers: 1  # devices in use\n", ""),
    )
    system = load_hardware_config(path).system_hierarchy
    assert (system.num_devices_per_node, system.num_nodes) == (1, 1)


def test_wafer_topologies_become_node_topologies():
    topology = load_hardware_config(OLD / "v100.yaml").network_topology
    assert (topology.inter_node, topology.intra_node) == ("hic", "none")


def test_a_kind_of_model_that_is_given_is_kept(tmp_path):
    transformer = (
        "model_param: {mode: LLM, batch_size: 8, seq_len: 128, hidden_dim: 256, num_heads: 4,"
        " vocab_size: 1000, num_layers: 2}\n"
    )
    path = edited(tmp_path, text=transformer + V100[V100.index("sw_param") :])
    assert isinstance(load_model_config(path), LlmModel)


def test_units_are_read_where_the_current_style_has_them(tmp_path):
    path = edited(
        tmp_path,
        ("TDP: 300  # W", "TDP: 0.3 kW"),
        ("proc_chip_area_budget: 815", "proc_chip_area_budget: 815 mm2"),
    )
    config = load_hardware_config(path)
    assert flatten(config) | {"name": "v100"} == flatten(load_hardware_config(OLD / "v100.yaml"))


# --- Overrides and sweeps --------------------------------------------------------------------


def test_overrides_use_paths_and_units_of_the_current_style():
    config = load_hardware_config(
        OLD / "exp_config_10nm.yaml",
        {
            "area_breakdown.L1": 100,
            "tech_param.SRAM-L1.latency": "30 ns",
            "power_breakdown.TDP": 600,
        },
    )
    assert config.area_breakdown.L1 == 100
    assert config.tech_param.SRAM_L1.latency == 30e-9
    assert config.power_breakdown.core == 150
    model = load_model_config(OLD / "v100.yaml", {"batch_size": 128})
    assert model.batch_size == 128


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("area_breakdown.shared_mem", 0.1, "area_breakdown.shared_mem: no such key"),
        ("tech_param.shared_mem.latency", 0, "tech_param.shared_mem.latency: no such key"),
        ("area_breakdown.device_area_budget", 100, "area_breakdown.device_area_budget = 100"),
        ("tech_param.SRAM-L1.util", 2, "tech_param.SRAM-L1.util = 2"),
    ],
)
def test_errors_of_overrides_name_what_was_overridden(path, value, expected):
    with pytest.raises(ConfigError) as caught:
        load_hardware_config(OLD / "exp_config_10nm.yaml", {path: value})
    assert expected in str(caught.value)


def test_sweeps_over_an_older_file_and_its_upgrade_have_the_same_points(tmp_path):
    hardware, model = write_upgrade(OLD / "exp_config.yaml", tmp_path)
    digests = []
    for number, files in enumerate(((hardware, model), [OLD / "exp_config.yaml"] * 2)):
        sweep = tmp_path / f"sweep_{number}.yaml"
        sweep.write_text(
            f"hardware: {files[0]}\nmodel: {files[1]}\n"
            "grid:\n  hardware.tech_param.core.util: [0.5, 0.9]\n  model.batch_size: [8, 16]\n"
        )
        digests.append([point.digest for point in load_sweep(sweep).points()])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


# --- Upgrade ---------------------------------------------------------------------------------


def same_meaning(old: Path, folder: Path) -> None:
    hardware, model = write_upgrade(old, folder)
    assert flatten(load_hardware_config(hardware)) == flatten(load_hardware_config(old))
    assert load_model_config(model) == load_model_config(old)


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_upgraded_pair_means_the_same(name, tmp_path):
    same_meaning(OLD / name, tmp_path)


def test_the_upgraded_pair_means_the_same_in_unusual_spelling(tmp_path):
    old = edited(
        tmp_path,
        ("num_nodes_per_wafer: 1 ", "num_nodes_per_wafer: 16 "),
        ("num_workers: 1 ", "num_workers: 48 "),
        ('inter_wafer: "hic"', r'inter_wafer: "a \"b\" # \\ µ: é"'),
        ('intra_wafer: "none"', "intra_wafer: 'true'"),
        ("core: 0.3745", "core: 0.123456789012345678"),
        ("  precision: 2", "  h2d_bandwidth: null\n  precision: 2"),
        ("model_param:", "name: x\naliases: [a b, 'null']\nexecution_backend: {}\nmodel_param:"),
        ("  batch_size: 64", "  name: '1e3'\n  global_batch_size: 64"),
        ("stack_capacity: 4 GB", "stack_capacity: 4294967297"),
    )
    same_meaning(old, tmp_path / "new")


def test_upgraded_content_is_current_through_and_through(tmp_path):
    hardware, model = upgrade(OLD / "exp_config_10nm.yaml")
    text = json.dumps(hardware)
    for older in ("shared_mem", "node_area_budget", "num_workers", "per_wafer", "FMA_width"):
        assert older not in text
    assert hardware["area_breakdown"]["L1"] == 163
    assert list(model) == ["model_param"]
    path = edited(tmp_path, text=write_upgrade(OLD / "v100.yaml", tmp_path)[0].read_text())
    with pytest.raises(ConfigError, match="nothing to upgrade"):
        upgrade(path)


def test_upgraded_files_show_budgets_with_units(tmp_path):
    hardware, _ = write_upgrade(OLD / "v100.yaml", tmp_path)
    lines = [line.strip() for line in hardware.read_text().splitlines()]
    assert "L2: 65.7053  # mm2" in lines
    assert "core: 112.35  # W" in lines


def test_an_older_file_of_hardware_alone_becomes_one_file(tmp_path):
    path = edited(tmp_path, text=V100[V100.index("sw_param") :])
    (hardware,) = write_upgrade(path)
    assert hardware == tmp_path / "old.hardware.yaml"
    assert flatten(load_hardware_config(hardware)) == flatten(load_hardware_config(path))
    with pytest.raises(ConfigError, match="this is a hardware file"):
        load_model_config(path)


def test_existing_files_are_replaced_only_by_force(tmp_path):
    old = edited(tmp_path)
    existing = tmp_path / "old.model.yaml"
    existing.write_text("mine")
    with pytest.raises(ConfigError, match=r"old\.model\.yaml: exists already"):
        write_upgrade(old)
    assert existing.read_text() == "mine"
    assert not (tmp_path / "old.hardware.yaml").exists()
    assert write_upgrade(old, force=True) == [tmp_path / "old.hardware.yaml", existing]
    assert load_model_config(existing).num_layers == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "old.yaml",
        "old.hardware.yaml",
        "old.model.yaml",
    }
    assert old.read_text() == V100


def test_the_command_writes_where_it_is_told(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_config_command(parser.add_subparsers(required=True))
    folder = tmp_path / "new" / "folder"
    arguments = ["config", "upgrade", str(OLD / "v100.yaml"), "--output", str(folder)]
    options = parser.parse_args(arguments)
    options.run(options)
    assert capsys.readouterr().out.split() == [
        str(folder / "v100.hardware.yaml"),
        str(folder / "v100.model.yaml"),
    ]
    options = parser.parse_args(arguments)
    with pytest.raises(ConfigError, match="exists already"):
        options.run(options)
    options = parser.parse_args([*arguments, "--force"])
    options.run(options)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model_param: {mode: GEMM, M: 1, K: 1, N: 1}\n", "nothing to upgrade"),
        ("- 1\n", "nothing to upgrade"),
        ("", "nothing to upgrade"),
        (V100.replace("batch_size: 64", "batch_size: 0"), "model_param.batch_size = 0"),
        (V100[V100.index("sw_param") :] + "model_param:\n", "model_param: is empty"),
    ],
)
def test_what_cannot_be_upgraded_says_why(tmp_path, text, problem):
    path = edited(tmp_path, text=text)
    with pytest.raises(ConfigError) as caught:
        write_upgrade(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


# --- Mistakes --------------------------------------------------------------------------------

BAD = {
    "area in mm2": (
        ("  core: 0.3\n", "  core: 244.5\n"),
        "area_breakdown.core = 244.5",
        "is not a fraction of proc_chip_area_budget",
    ),
    "power in W": (
        ("DRAM: 0.16", "DRAM: 48"),
        "power_breakdown.DRAM = 48",
        "is not a fraction of TDP",
    ),
    "power with a unit": (("DRAM: 0.16", "DRAM: 48 W"), "power_breakdown.DRAM = '48 W'", "text"),
    "negative fraction": (("L2: 0.008", "L2: -0.008"), "power_breakdown.L2 = -0.008", "0 to 1"),
    "network in mm2": (
        ("inter_node: 0.1\n", "inter_node: 81.5\n"),
        "area_breakdown.network.inter_node = 81.5",
        "is not a fraction",
    ),
    "fraction of nothing": (("  TDP: 300  # W\n", ""), "power_breakdown.TDP", "missing key"),
    "fraction of less": (("TDP: 300", "TDP: -300"), "power_breakdown.TDP = -300", "too small"),
    "no chip": (
        ("  proc_chip_area_budget: 815  # mm2\n", ""),
        "area_breakdown.proc_chip_area_budget",
        "missing key",
    ),
    "no device": (
        ("  node_area_budget: 1230  # mm2: chip and memory stacks together\n", ""),
        "area_breakdown.node_area_budget",
        "missing key",
    ),
    "chip beyond device": (
        ("node_area_budget: 1230", "node_area_budget: 123"),
        "area_breakdown.node_area_budget = 123",
        "the chip does not fit",
    ),
    "current name of the device area": (
        ("node_area_budget", "device_area_budget"),
        "area_breakdown.device_area_budget",
        "is of the current style, but",
    ),
    "both names of the device area": (
        ("  node_area_budget", "  device_area_budget: 1230\n  node_area_budget"),
        "area_breakdown.device_area_budget",
        "is of the current style, but",
    ),
    "current count of devices": (
        ("num_workers: 1", "num_nodes: 1"),
        "system_hierarchy.num_nodes",
        "is of the current style, but",
    ),
    "current topology": (
        ("intra_wafer", "intra_node"),
        "network_topology.intra_node",
        "is of the current style, but",
    ),
    "misspelt older name": (
        ("node_area_budget", "node_area_budgte"),
        "area_breakdown.node_area_budgte",
        "did you mean 'node_area_budget'",
    ),
    "uneven wafers": (
        (
            "num_nodes_per_wafer: 1  # devices that a wafer has room for\n  num_workers: 1 ",
            "num_nodes_per_wafer: 64\n  num_workers: 100 ",
        ),
        "system_hierarchy.num_workers = 100",
        "up to 64, or a multiple of 64",
    ),
    "no workers": (
        ("num_workers: 1 ", "num_workers: 0 "),
        "system_hierarchy.num_workers = 0",
        "too small",
    ),
    "one count": (
        ("  num_workers: 1  # devices in use\n", ""),
        "system_hierarchy.num_workers",
        "missing key",
    ),
    "level under two names": (
        ("  SRAM-L1:", "  shared_mem: {latency: 0}\n  SRAM-L1:"),
        "tech_param.shared_mem",
        "given twice, as 'shared_mem' and as 'SRAM-L1'",
    ),
    "budget under two names": (
        ("  L1: 0.0103", "  shared_mem: 0.1\n  L1: 0.0103"),
        "area_breakdown.shared_mem",
        "given twice, as 'shared_mem' and as 'L1'",
    ),
    "matrix step": (
        ("FMA_width: 4", "FMA_width: 0"),
        "tech_param.core.FMA_width = 0",
        "too small",
    ),
    "matrix step twice": (
        ("FMA_width: 4", "FMA_d1: 8\n    FMA_width: 4"),
        "tech_param.core.FMA_d1 = 8",
        "contradicts FMA_width",
    ),
    "unknown section": (("sw_param:", "sw_params:"), "sw_params", "did you mean 'sw_param'"),
    "section without keys": (
        (
            'network_topology:\n  inter_wafer: "hic"\n  intra_wafer: "none"\n',
            "network_topology: 1\n",
        ),
        "network_topology = 1",
        "expected a mapping",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line_that_names_the_key_as_written(tmp_path, case):
    replacement, key, problem = BAD[case]
    path = edited(tmp_path, replacement)
    with pytest.raises(ConfigError) as caught:
        load_hardware_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("replacement", "key", "problem"),
    [
        (("  shared_mem:\n", "  shared_mem:\n    util: 2\n"), "tech_param.shared_mem.util = 2", ""),
        (
            ("  L2:\n", "  L2:\n    latncy: 0\n"),
            "tech_param.L2.latncy",
            "did you mean 'latency'",
        ),
    ],
)
def test_mistakes_below_an_older_name_show_that_name(tmp_path, replacement, key, problem):
    path = edited(tmp_path, replacement, text=OLDEST)
    with pytest.raises(ConfigError) as caught:
        load_hardware_config(path)
    assert str(caught.value).startswith(f"{path}: {key}")
    assert problem in str(caught.value)


def test_current_hardware_beside_a_model_is_refused_by_both_loaders(tmp_path):
    current = (ROOT / "configs/hardware-config/v100.yaml").read_text()
    path = edited(tmp_path, text=V100[: V100.index("sw_param")] + current)
    for load in (load_hardware_config, load_model_config):
        with pytest.raises(ConfigError, match="move model_param to a file of its own"):
            load(path)


def test_a_section_of_hardware_in_a_model_file_is_not_ignored(tmp_path):
    text = "model_param: {mode: GEMM, M: 1, K: 1, N: 1}\nparallelism: {tensor: 2}\n"
    path = edited(tmp_path, text=text)
    with pytest.raises(ConfigError, match="move 'parallelism' to the hardware file"):
        load_model_config(path)


def test_older_names_in_a_current_file_are_refused(tmp_path):
    current = (ROOT / "configs/hardware-config/v100.yaml").read_text()
    path = edited(tmp_path, ("num_nodes:", "num_workers:"), text=current)
    with pytest.raises(ConfigError, match="is of the current style, but"):
        load_hardware_config(path)
