"""Loading, checking and overriding configurations."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest

from deepflow.config import (
    DeepFlowWarning,
    canonical_override,
    flatten,
    json_schema,
    load_hardware_config,
    load_model_config,
    parse_yaml_value,
    read_yaml,
    split_overrides,
    with_overrides,
)
from deepflow.errors import ConfigError

DATA = Path(__file__).parent / "data" / "config"
HARDWARE = (DATA / "small_hardware.yaml").read_text()
LLM = (DATA / "small_llm.yaml").read_text()


def write(folder: Path, text: str, name: str = "bad.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def hardware(folder: Path, *replacements: tuple[str, str], overrides=None):
    text = HARDWARE
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return load_hardware_config(write(folder, text), overrides or {})


def llm(folder: Path, *replacements: tuple[str, str], overrides=None):
    text = LLM
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return load_model_config(write(folder, text), overrides or {})


# --- What a good file becomes ---------------------------------------------------------------


def test_values_arrive_in_si_units_with_defaults_filled_in():
    config = load_hardware_config(DATA / "small_hardware.yaml")
    assert config.tech_param.DRAM.bandwidth == 2e12
    assert config.tech_param.DRAM.size == 80 * 2**30
    assert config.tech_param.SRAM_L2.size == 40 * 2**20
    assert config.tech_param.network.inter_node.bandwidth == 25e9
    assert config.sw_param.kernel_launch_overhead == 5e-6
    assert config.sw_param.precision == 2
    assert config.sw_param.h2d_bandwidth == 12.4 * 2**30
    assert config.scheduling_param.data == "auto"
    assert config.memory_hierarchy.l3.type == "DRAM"
    assert config.name == "small_hardware"
    assert config.file == str(DATA / "small_hardware.yaml")


def test_types_are_the_declared_ones_whatever_the_file_writes(tmp_path):
    config = hardware(tmp_path, ("num_bundles: 108", "num_bundles: 108.0"))
    assert type(config.tech_param.core.num_bundles) is int
    assert type(config.power_breakdown.TDP) is float


def test_the_same_meaning_is_the_same_configuration(tmp_path):
    one = hardware(tmp_path)
    other = hardware(
        tmp_path,
        ("kernel_launch_overhead: 5 us", "kernel_launch_overhead: 0.000005  # five microseconds"),
        ("2.0 TB/s", "2e12"),
        ("size: 80 GB", "size: 85899345920"),
        ("num_bundles: 108", "num_bundles: 0x6C"),
    )
    assert flatten(one) == flatten(other)
    assert one == other


@pytest.mark.parametrize("text", ["9e-6", "9E-6", "9.0e-06", "0.000009", "9 us", '"9e-6"'])
def test_yaml_numbers_without_a_point_or_sign_are_numbers(tmp_path, text):
    config = hardware(tmp_path, ("5 us", text))
    assert config.sw_param.kernel_launch_overhead == 9e-6


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_true_is_true_and_yes_is_text(tmp_path, word):
    section = "system_hierarchy: {"
    assert (
        hardware(tmp_path, (section, section + f"dp_inter: {word}, ")).system_hierarchy.dp_inter
        is True
    )
    with pytest.raises(ConfigError, match="dp_inter = 'yes'"):
        hardware(tmp_path, (section, section + "dp_inter: yes, "))


def test_unit_text_is_read_at_every_depth(tmp_path):
    config = hardware(tmp_path, ("latency: 2 us", "latency: 2 us, nominal_frequency: 25 Gb/s"))
    assert config.tech_param.network.intra_node.nominal_frequency == 25e9


def test_aliases_of_keys_and_sections_are_accepted(tmp_path):
    extra = "\nparallelism: {tensor: 2, lp: 4, dp: 1, mb: 8}\nbackend: {model: analytical}\n"
    degrees = load_hardware_config(write(tmp_path, HARDWARE + extra)).scheduling_param
    assert (degrees.tensor, degrees.pipeline, degrees.data) == (2, 4, 1)
    assert degrees.num_microbatches == 8
    assert llm(tmp_path, ("global_batch_size", "batch_size")).global_batch_size == 64


def test_null_means_not_given_only_where_that_is_possible(tmp_path):
    config = hardware(tmp_path, ("5 us\ntech", "5 us\n  h2d_bandwidth: null\ntech"))
    assert config.sw_param.h2d_bandwidth is None
    with pytest.raises(ConfigError, match="has no value"):
        hardware(tmp_path, ("util: 0.8", "util: null"))


def test_fma_width_sets_both_dimensions(tmp_path):
    config = hardware(tmp_path, ("util: 0.8", "util: 0.8\n    FMA_width: 16"))
    assert (config.tech_param.core.FMA_d1, config.tech_param.core.FMA_d2) == (16, 16)
    spelled_out = hardware(tmp_path, ("util: 0.8", "util: 0.8\n    FMA_d1: 16\n    FMA_d2: 16"))
    assert flatten(config) == flatten(spelled_out)


def test_model_kinds_are_told_apart_by_mode(tmp_path):
    gemm = load_model_config(
        write(tmp_path, "model_param: {mode: GEMM, M: 1, K: 2, N: 3}\n", "g.yaml")
    )
    assert (gemm.M, gemm.K, gemm.N, gemm.backward, gemm.name) == (1, 2, 3, False, "g")
    assert llm(tmp_path).head_width == 64


def test_models_derive_their_optional_widths(tmp_path):
    model = llm(tmp_path)
    assert (model.feed_forward_dim, model.kv_heads) == (4096, 4)
    model = llm(tmp_path, ("  num_kv_heads: 4\n", "  ffn_dim: 3000\n  ffn_mult: 2.5\n"))
    assert (model.feed_forward_dim, model.kv_heads) == (2560, 16)


def test_yaml_anchors_share_values(tmp_path):
    path = write(tmp_path, "a: &x {b: 1}\nc: *x\n")
    assert read_yaml(path) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3.35 TB/s", "3.35 TB/s"),
        ("9e-6", 9e-6),
        ("8", 8),
        ("null", None),
        ("off", "off"),
        ("", None),
    ],
)
def test_values_given_outside_a_file_read_like_values_in_it(text, value):
    assert parse_yaml_value(text) == value


# --- Bad files: one line that names file, key, value and what is allowed ---------------------

CORE, DRAM = "tech_param.core", "tech_param.DRAM"
SMALL_SECTION = "power_breakdown: {TDP: 400}"

BAD_HARDWARE = {
    "unknown key": (
        ("bandwidth: 2.0 TB/s", "bandwith: 2.0 TB/s"),
        f"{DRAM}.bandwith",
        ["did you mean 'bandwidth'"],
    ),
    "unknown section": (("sw_param:", "sw_params:"), "sw_params", ["did you mean 'sw_param'"]),
    "mistyped topology": (
        (SMALL_SECTION, SMALL_SECTION + "\nnetwork_topology: {inter_node: swich}"),
        "network_topology.inter_node",
        ["'swich'", "did you mean 'switch'", "fat_tree"],
    ),
    "wrong unit": (
        ("2.0 TB/s", "2.0 GHz"),
        f"{DRAM}.bandwidth",
        ["'2.0 GHz'", "'GHz' is not a unit", "TB/s"],
    ),
    "unreadable quantity": (
        ("2.0 TB/s", "about 2 TB/s"),
        f"{DRAM}.bandwidth",
        ["'about 2 TB/s'", "allowed"],
    ),
    "no unit on a large value": (
        ("2.0 TB/s", "1986"),
        f"{DRAM}.bandwidth",
        ["1986", "is a unit missing", "plausible"],
    ),
    "implausible clock": (
        ("1.41 GHz", "1.41"),
        f"{CORE}.operating_frequency",
        ["1.41", "is a unit missing"],
    ),
    "negative bandwidth": (
        ("2.0 TB/s", "-2.0 TB/s"),
        f"{DRAM}.bandwidth",
        ["-2.0 TB/s", "too small", "> 0"],
    ),
    "zero capacity": (("size: 80 GB", "size: 0"), f"{DRAM}.size", ["= 0", "too small"]),
    "fraction above one": (
        ("util: 0.8", "util: 80"),
        f"{CORE}.util",
        ["= 80", "too large", "> 0 and <= 1"],
    ),
    "nan": (("util: 0.8", "util: .nan"), f"{CORE}.util", ["nan", "not a finite number"]),
    "infinite": (("2.0 TB/s", ".inf"), f"{DRAM}.bandwidth", ["inf", "not a finite number"]),
    "text for a number": (("util: 0.8", "util: high"), f"{CORE}.util", ["'high'", "a number"]),
    "truth for a number": (("util: 0.8", "util: true"), f"{CORE}.util", ["True", "a number"]),
    "truth for a count": (
        ("num_bundles: 108", "num_bundles: true"),
        f"{CORE}.num_bundles",
        ["an integer"],
    ),
    "fractional count": (
        ("num_bundles: 108", "num_bundles: 1.5"),
        f"{CORE}.num_bundles",
        ["1.5", "not an integer"],
    ),
    "zero count": (
        ("num_mcu_per_bundle: 4", "num_mcu_per_bundle: 0"),
        f"{CORE}.num_mcu_per_bundle",
        ["= 0", ">= 1"],
    ),
    "list for a value": (("util: 0.8", "util: [0.8]"), f"{CORE}.util", ["a list", "a number"]),
    "mapping for a value": (
        ("util: 0.8", "util: {a: 1}"),
        f"{CORE}.util",
        ["a mapping", "a number"],
    ),
    "value for a section": (
        (SMALL_SECTION, "power_breakdown: 400"),
        "power_breakdown",
        ["400", "expected a mapping", "TDP"],
    ),
    "empty section": ((SMALL_SECTION, "power_breakdown:"), "power_breakdown", ["is empty", "TDP"]),
    "missing key": (
        ("    num_mcu_per_bundle: 4\n", ""),
        f"{CORE}.num_mcu_per_bundle",
        ["missing key", "an integer"],
    ),
    "missing section": ((SMALL_SECTION, ""), "power_breakdown", ["missing key"]),
    "wrong choice": (
        ("util: 0.8", "util: 0.8\n    dataflow: bset"),
        f"{CORE}.dataflow",
        ["'bset'", "wst"],
    ),
    "wrong number choice": (
        ("5 us\ntech", "5 us\n  precision: 3\ntech"),
        "sw_param.precision",
        ["= 3", "1, 2, 4, 8"],
    ),
    "number as a key": (
        (SMALL_SECTION, "power_breakdown: {1: 2}"),
        "power_breakdown.1",
        ["unknown key"],
    ),
    "contradicting FMA": (
        ("util: 0.8", "util: 0.8\n    FMA_width: 4\n    FMA_d1: 8"),
        f"{CORE}.FMA_d1",
        ["= 8", "contradicts FMA_width"],
    ),
    "dead voltage": (
        ("util: 0.8", "util: 0.8\n    nominal_voltage: 0.3\n    threshold_voltage: 0.3"),
        f"{CORE}.threshold_voltage",
        ["0.3", "below 0.3 V"],
    ),
    "chip larger than device": (
        ("device_area_budget: 1330", "device_area_budget: 800"),
        "area_breakdown.device_area_budget",
        ["800", "826"],
    ),
    "two spellings": (
        (SMALL_SECTION, SMALL_SECTION + "\nparallelism: {dp: 2, data: 2}"),
        "parallelism.data",
        ["given twice", "'dp'"],
    ),
    "two spellings of a section": (
        (SMALL_SECTION, SMALL_SECTION + "\nparallelism: {dp: 2}\nscheduling_param: {dp: 2}"),
        "scheduling_param",
        ["given twice", "'parallelism'"],
    ),
    "bad word for a degree": (
        (SMALL_SECTION, SMALL_SECTION + "\nparallelism: {data: most}"),
        "parallelism.data",
        ["'most'", "auto", "an integer"],
    ),
    "zero degree": (
        (SMALL_SECTION, SMALL_SECTION + "\nparallelism: {data: 0}"),
        "parallelism.data",
        ["= 0", ">= 1"],
    ),
    "automatic parallelism of old files": (
        (SMALL_SECTION, SMALL_SECTION + "\nparallelism: {auto: greedy}"),
        "parallelism.auto",
        ["'greedy'", "false"],
    ),
    "tensor against kernel degrees": (
        (SMALL_SECTION, SMALL_SECTION + "\nparallelism: {tensor: 8, kp1: 2, kp2: 2}"),
        "scheduling_param.tensor",
        ["= 8", "kp1 * kp2 = 4"],
    ),
    "one memory twice": (
        (SMALL_SECTION, SMALL_SECTION + "\nmemory_hierarchy: {l1: {type: SRAM-R, scope: mcu}}"),
        "memory_hierarchy",
        ["SRAM-R, SRAM-R", "four different"],
    ),
    "aliases not a list": (
        (SMALL_SECTION, SMALL_SECTION + "\naliases: h100"),
        "aliases",
        ["'h100'", "list of texts"],
    ),
}


@pytest.mark.parametrize("case", BAD_HARDWARE)
def test_bad_hardware_is_one_line_naming_file_key_value_and_allowed(tmp_path, case):
    replacement, key, expected = BAD_HARDWARE[case]
    with pytest.raises(ConfigError) as caught:
        hardware(tmp_path, replacement)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bad.yaml'}: {key}")
    assert "\n" not in message
    for part in expected:
        assert part in message


BAD_MODELS = {
    "zero batch": (
        ("global_batch_size: 64", "global_batch_size: 0"),
        "global_batch_size",
        ["= 0", ">= 1"],
    ),
    "unknown key": (("hidden_dim", "hiden_dim"), "hiden_dim", ["did you mean 'hidden_dim'"]),
    "unknown mode": (("mode: LLM", "mode: MLP"), "mode", ["'MLP'", "GEMM, LSTM, LLM"]),
    "missing mode": (("  mode: LLM\n", ""), "mode", ["missing key", "GEMM, LSTM, LLM"]),
    "key of another mode": (
        ("mode: LLM", "mode: GEMM"),
        "global_batch_size",
        ["unknown key", "M, K, N"],
    ),
    "heads that do not divide": (
        ("num_heads: 16", "num_heads: 15"),
        "num_heads",
        ["= 15", "hidden_dim = 1024"],
    ),
    "key/value heads that do not divide": (
        ("num_kv_heads: 4", "num_kv_heads: 5"),
        "num_kv_heads",
        ["= 5", "num_heads = 16"],
    ),
    "missing key": (("  num_layers: 8\n", ""), "num_layers", ["missing key", "an integer"]),
    "unit on a count": (
        ("seq_len: 1024", "seq_len: 1024 KB"),
        "seq_len",
        ["'1024 KB'", "an integer"],
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_one_line_naming_file_key_value_and_allowed(tmp_path, case):
    replacement, key, expected = BAD_MODELS[case]
    with pytest.raises(ConfigError) as caught:
        llm(tmp_path, replacement)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bad.yaml'}: model_param.{key}")
    assert "\n" not in message
    for part in expected:
        assert part in message


BAD_TEXT = {
    "empty": ("", "is empty"),
    "only comments": ("# nothing\n", "is empty"),
    "a list": ("- a\n- b\n", "expected a mapping"),
    "a word": ("hello\n", "expected a mapping"),
    "syntax": ("sw_param:\n  a: [1, 2\n", "line 3: not valid YAML"),
    "tab": ("sw_param:\n\ta: 1\n", "line 2: not valid YAML"),
    "key twice": (
        "sw_param: {}\ntech_param: {}\nsw_param: {}\n",
        "line 3: not valid YAML: key 'sw_param' is given twice",
    ),
    "code in a tag": (
        "sw_param: !!python/object/apply:os.getcwd []\n",
        "line 1: not valid YAML: tag",
    ),
    "list as key": ("? [a, b]\n: 1\n", "a key must be a single word"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "endless number": (f"sw_param: {{precision: {'9' * 5000}}}\n", "cannot be read as int"),
    "deep nesting": ("[" * 3000 + "]" * 3000, "not valid YAML"),
    "alias of itself": ("a: &a [*a]\n", "not valid YAML"),
    "control character": ("a: \x01\n", "not valid YAML"),
    "model file": (LLM, "this is a model file"),
    "one file for both": (HARDWARE + LLM, "one file for hardware and model"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_files_that_are_no_hardware_file_say_so(tmp_path, case):
    text, expected = BAD_TEXT[case]
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_hardware_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_unreadable_paths_say_so(tmp_path):
    for path, problem in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "cannot be read")):
        for load in (load_hardware_config, load_model_config):
            with pytest.raises(ConfigError, match=problem) as caught:
                load(path)
            assert str(path) in str(caught.value)


def test_a_hardware_file_is_no_model_file():
    with pytest.raises(ConfigError, match="this is a hardware file"):
        load_model_config(DATA / "small_hardware.yaml")


def test_a_model_file_has_no_other_sections(tmp_path):
    with pytest.raises(ConfigError, match="model_params: unknown key"):
        load_model_config(write(tmp_path, LLM + "model_params: {}\n"))


def test_text_that_would_grow_without_bound_is_not_printed(tmp_path):
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))
    path = write(tmp_path, "l0: &l0 [x]\n" + levels + "sw_param: *l29\n")
    with pytest.raises(ConfigError) as caught:
        load_hardware_config(path)
    assert len(str(caught.value)) < 1000


# --- Warnings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replacement", "problem"),
    [
        (
            ("device_area_budget: 1330", "device_area_budget: 1330, core: 800, L2: 100"),
            "area_breakdown",
        ),
        (("TDP: 400", "TDP: 400, core: 300, network: {intra_node: 101}"), "power_breakdown"),
        (
            (SMALL_SECTION, SMALL_SECTION + "\nperimeter_breakdown: {DRAM: 0.7, inter_node: 0.4}"),
            "perimeter_breakdown",
        ),
    ],
)
def test_budgets_larger_than_the_whole_are_warned_about(tmp_path, replacement, problem):
    with pytest.warns(DeepFlowWarning, match=problem):
        hardware(tmp_path, replacement)


def test_budgets_that_fit_are_not_warned_about(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hardware(
            tmp_path, ("device_area_budget: 1330", "device_area_budget: 1330, core: 800, L2: 26")
        )


# --- Overrides -------------------------------------------------------------------------------


def test_overrides_take_every_spelling_and_unit_text(tmp_path):
    config = hardware(
        tmp_path,
        overrides={
            "tech_param.DRAM.bandwidth": "3.35 TB/s",
            "tech_param.SRAM-L2.size": "50 MB",
            "parallelism.tensor": 4,
            "scheduling_param.lp": 2,
            "backend.model": "astra",
            "system_hierarchy.num_nodes": 8,
        },
    )
    assert config.tech_param.DRAM.bandwidth == 3.35e12
    assert config.tech_param.SRAM_L2.size == 50 * 2**20
    assert (config.scheduling_param.tensor, config.scheduling_param.pipeline) == (4, 2)
    assert config.execution_backend.model == "astra"
    assert config.system_hierarchy.num_nodes == 8
    model = llm(tmp_path, overrides={"model_param.batch_size": 128, "seq_len": 2048})
    assert (model.global_batch_size, model.seq_len) == (128, 2048)


def test_an_override_equals_the_same_edit_of_the_file(tmp_path):
    edited = hardware(tmp_path, ("2.0 TB/s", "3.35 TB/s"))
    overridden = hardware(tmp_path, overrides={"tech_param.DRAM.bandwidth": "3.35 TB/s"})
    assert edited == overridden


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("tech_param.DRAM.bandwith", 1e12, "did you mean 'tech_param.DRAM.bandwidth'"),
        ("parallelism.tensr", 2, "did you mean 'parallelism.tensor'"),
        ("num_nodes", 2, "did you mean 'system_hierarchy.num_nodes'"),
        ("tech_param.DRAM", 2, "is a section"),
        ("tech_param.DRAM.size.x", 2, "no such key"),
        ("file", "x", "no such key"),
        ("", 2, "no such key"),
        ("tech_param.DRAM.bandwidth", "fast", "cannot be read as a quantity"),
        ("tech_param.DRAM.bandwidth", 1986, "is a unit missing"),
        ("parallelism.tensor", 0, "too small"),
    ],
)
def test_bad_overrides_name_the_path_and_help(path, value, expected):
    config = load_hardware_config(DATA / "small_hardware.yaml")
    with pytest.raises(ConfigError) as caught:
        canonical_override(
            config, path, value, file="sweep.yaml", shown_key=f"grid.hardware.{path}"
        )
    assert f"sweep.yaml: grid.hardware.{path}" in str(caught.value)
    assert expected in str(caught.value)


def test_one_key_overridden_under_two_names_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="overridden twice"):
        hardware(tmp_path, overrides={"parallelism.tensor": 2, "scheduling_param.tensor": 4})


def test_canonical_overrides_apply_like_overrides_at_load():
    path = DATA / "small_hardware.yaml"
    overrides = {"tech_param.DRAM.bandwidth": "3.35 TB/s", "parallelism.dp": 4, "name": "other"}
    config = load_hardware_config(path)
    canonical = dict(canonical_override(config, key, value) for key, value in overrides.items())
    assert canonical == {
        "tech_param.DRAM.bandwidth": 3.35e12,
        "scheduling_param.data": 4,
        "name": "other",
    }
    assert with_overrides(config, canonical) == load_hardware_config(path, overrides)
    assert config == load_hardware_config(path)


def test_every_flat_path_can_be_overridden_with_its_own_value():
    for config in (
        load_hardware_config(DATA / "small_hardware.yaml"),
        load_model_config(DATA / "small_llm.yaml"),
    ):
        flat = flatten(config)
        assert "file" not in flat
        for path, value in flat.items():
            if path != "aliases":
                assert canonical_override(config, path, value) == (path, value)
        assert with_overrides(config, {k: v for k, v in flat.items() if k != "aliases"}) == config


def test_overrides_are_checked_together(tmp_path):
    with pytest.raises(ConfigError, match=r"num_heads = 48.*hidden_dim = 1024"):
        llm(tmp_path, overrides={"num_heads": 48, "num_kv_heads": 4})
    assert llm(tmp_path, overrides={"num_heads": 48, "hidden_dim": 6144}).head_width == 128
    config = hardware(tmp_path)
    with pytest.raises(ConfigError, match="contradicts kp1"):
        with_overrides(config, {"scheduling_param.tensor": 8, "scheduling_param.kp1": 2})
    with pytest.raises(ConfigError, match="contradicts FMA_width"):
        with_overrides(config, {"tech_param.core.FMA_width": 8, "tech_param.core.FMA_d1": 4})
    with pytest.raises(ConfigError, match="chip does not fit"):
        with_overrides(config, {"area_breakdown.proc_chip_area_budget": 2000.0})


def test_tensor_and_kernel_degrees_supersede_each_other(tmp_path):
    kernel = SMALL_SECTION + "\nparallelism: {kp1: 4, kp2: 1}"
    degrees = hardware(
        tmp_path, (SMALL_SECTION, kernel), overrides={"parallelism.tensor": 8}
    ).scheduling_param
    assert (degrees.tensor, degrees.kp1, degrees.kp2) == (8, None, None)
    tensor = SMALL_SECTION + "\nparallelism: {tensor: 8}"
    degrees = hardware(
        tmp_path, (SMALL_SECTION, tensor), overrides={"parallelism.kp1": 2}
    ).scheduling_param
    assert (degrees.tensor, degrees.kp1) == (None, 2)
    degrees = hardware(
        tmp_path, (SMALL_SECTION, tensor), overrides={"parallelism.kp1": 1}
    ).scheduling_param
    assert degrees.tensor == 8


def test_fma_width_can_be_overridden(tmp_path):
    core = hardware(tmp_path, overrides={"tech_param.core.FMA_width": 8}).tech_param.core
    assert (core.FMA_d1, core.FMA_d2) == (8, 8)


def test_full_paths_are_split_by_their_root():
    hardware_part, model_part = split_overrides(
        {
            "hardware.tech_param.DRAM.size": "80 GB",
            "parallelism.tensor": 8,
            "backend.model": "analytical",
            "model.seq_len": 4096,
        }
    )
    assert hardware_part == {
        "tech_param.DRAM.size": "80 GB",
        "parallelism.tensor": 8,
        "backend.model": "analytical",
    }
    assert model_part == {"seq_len": 4096}


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("tensor", "parallelism.tensor"),
        ("tech_param.DRAM.size", "hardware.tech_param.DRAM.size"),
        ("global_batch_size", "model.global_batch_size"),
        ("layer_size", "model.layer_size"),
        ("hardwrae.tech_param.DRAM.size", "hardware"),
    ],
)
def test_a_path_without_a_root_is_an_error_with_a_suggestion(path, suggestion):
    with pytest.raises(ConfigError) as caught:
        split_overrides({path: 1}, "sweep.yaml")
    assert f"sweep.yaml: {path}" in str(caught.value)
    assert f"did you mean '{suggestion}'" in str(caught.value)


# --- Flat form and schema --------------------------------------------------------------------


def test_the_flat_form_is_complete_and_can_be_written_as_json():
    config = load_hardware_config(DATA / "small_hardware.yaml")
    flat = flatten(config)
    assert flat["tech_param.SRAM_L2.size"] == 40 * 2**20
    assert flat["scheduling_param.schedule"] == "1f1b"

    def leaves(value):
        if dataclasses.is_dataclass(value):
            return sum(leaves(getattr(value, f.name)) for f in dataclasses.fields(value))
        return 1

    assert len(flat) == leaves(config) - 1
    assert json.loads(json.dumps(flat)) == flat


def test_configurations_cannot_be_changed_in_place():
    config = load_hardware_config(DATA / "small_hardware.yaml")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.tech_param.DRAM.size = 1.0


@pytest.mark.parametrize("kind", ["hardware", "model"])
def test_the_schema_is_valid_and_describes_every_key(kind):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema

    def properties(node):
        for name, below in node.get("properties", {}).items():
            yield name, below
            yield from properties(below)
        for below in node.get("anyOf", []):
            yield from properties(below)

    found = dict(properties(schema))
    assert len(found) > 20
    assert all(below.get("description") for name, below in found.items() if name != "model_param")


def test_the_schema_agrees_with_the_loader_on_good_and_bad_files():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema("hardware"))
    assert validator.is_valid(read_yaml(DATA / "small_hardware.yaml"))
    refused_by_structure = (
        "unknown key",
        "wrong unit",
        "unreadable quantity",
        "fraction above one",
        "truth for a number",
        "fractional count",
        "zero count",
        "list for a value",
        "value for a section",
        "empty section",
        "missing key",
        "missing section",
        "wrong choice",
        "wrong number choice",
        "bad word for a degree",
        "zero degree",
        "aliases not a list",
    )
    for case in refused_by_structure:
        old, new = BAD_HARDWARE[case][0]
        assert not validator.is_valid(parse_yaml_value(HARDWARE.replace(old, new))), case
    models = jsonschema.Draft202012Validator(json_schema("model"))
    assert models.is_valid(read_yaml(DATA / "small_llm.yaml"))
    for case in ("zero batch", "unknown key", "unknown mode", "missing mode", "missing key"):
        old, new = BAD_MODELS[case][0]
        assert not models.is_valid(parse_yaml_value(LLM.replace(old, new))), case


def test_there_is_no_schema_of_anything_else():
    with pytest.raises(ConfigError, match="hardware, model"):
        json_schema("hardwear")


@pytest.mark.parametrize("name", ["two\nlines", "a/b", "a\\b", "tab\there"])
def test_names_that_no_table_can_show_are_refused(tmp_path, name):
    path = tmp_path / "model.yaml"
    path.write_text(f"model_param: {{mode: GEMM, M: 1, K: 1, N: 1, name: {json.dumps(name)}}}")
    with pytest.raises(ConfigError, match="cannot be shown in tables"):
        load_model_config(path)


def test_a_file_on_a_base_holds_only_what_differs(tmp_path):
    base = Path("configs/hardware-config/nvidia_h100_sxm_80gb.yaml").resolve()
    child = tmp_path / "mine.yaml"
    child.write_text(
        f"base: {base}\ntech_param: {{DRAM: {{bandwidth: 5 TB/s}}}}\naliases: [mine]\n"
    )
    parent, config = load_hardware_config(base), load_hardware_config(child)
    assert config.name == "mine" and config.aliases == ("mine",)
    assert config.tech_param.DRAM.bandwidth == 5e12
    assert with_overrides(config, {"tech_param.DRAM.bandwidth": 3352e9}).tech_param == (
        parent.tech_param
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: nowhere.yaml", "there is no file"),
        ("base: mine.yaml", "leads back"),
        ("base: 3", "no path"),
        ("base: other.yaml", "other.yaml"),
    ],
)
def test_a_base_that_does_not_work_says_why(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("tech_param: {core: {numbundles: 3}}")
    with pytest.raises(ConfigError, match=words):
        load_hardware_config(tmp_path / "mine.yaml")
