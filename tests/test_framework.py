"""Framework files: what they may say, and who wins over whom."""

import json
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.config import load_framework_config, load_hardware_config
from deepflow.errors import ConfigError
from deepflow.sweep.expand import load_sweep

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
FILES = sorted(Path("configs/framework-config").glob("*.yaml"))
SLOW = """\
name: slow
aliases: [Slow Trainer]
hardware:
  sw_param: {host_time_per_kernel: 200 us}
  parallelism: {recompute: full}
"""


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.yaml"
    path.write_text(SLOW)
    return path


def test_values_replace_those_of_the_hardware_file(slow):
    framework = load_framework_config(slow)
    assert (framework.name, framework.aliases) == ("slow", ("Slow Trainer",))
    before = load_hardware_config(H100)
    after = framework.applied_to(before)
    assert after.sw_param.host_time_per_kernel == pytest.approx(200e-6)
    assert after.scheduling_param.recompute == "full"
    assert after.tech_param == before.tech_param


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_the_project_suit_a_machine(path):
    framework = load_framework_config(path)
    framework.applied_to(load_hardware_config(H100))
    assert framework.name == path.stem and framework.aliases


def test_no_two_files_share_an_alias():
    aliases = [alias.casefold() for path in FILES for alias in load_framework_config(path).aliases]
    assert FILES and len(aliases) == len(set(aliases))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("names: x", "did you mean 'name'"),
        ("aliases: nanotron", "not a list"),
        ("hardware: {tech_param: {core: {util: 1}}}", "no section that a framework decides"),
        ("hardware: {sw_param: {kernel_fusion: some}}", "kernel_fusion"),
        ("hardware: {sw_param: {kernel_fusions: eager}}", "kernel_fusion"),
        ("hardware: {parallelism: {zero: 1}, scheduling_param: {zero: 1}}", "given twice"),
        ("hardware: [eager]", "expected sections"),
        ("based_on: [nanotron.yaml]", "is not a file"),
        ("based_on: missing.yaml", "no such file"),
        ("based_on: wrong.yaml", "based on another file itself"),
        ("", "no framework file"),
    ],
)
def test_mistakes_are_named(tmp_path, text, problem):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as raised:
        load_framework_config(path)
    assert ".yaml" in str(raised.value)


def test_a_variant_keeps_what_it_does_not_replace(slow, tmp_path):
    path = tmp_path / "variant.yaml"
    path.write_text("based_on: slow.yaml\nhardware: {scheduling_param: {recompute: none}}\n")
    values = dict(load_framework_config(path).values)
    assert values["scheduling_param.recompute"] == "none"
    assert values["sw_param.host_time_per_kernel"] == pytest.approx(200e-6)


def predicted_time(capsys, *options):
    command = ["predict", "--hardware", H100, "--model", "configs/model-config/Llama2-7B.yaml"]
    assert main([*command, "--json", "--set", "model.global_batch_size=8", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_command_line_wins_over_the_framework_and_the_framework_over_the_file(slow, capsys):
    plain = predicted_time(capsys)
    slowed = predicted_time(capsys, "--framework", str(slow))
    undone = predicted_time(
        capsys,
        "--framework",
        str(slow),
        "--set",
        "hardware.sw_param.host_time_per_kernel=0",
        "--set",
        "parallelism.recompute=none",
    )
    assert slowed["time_s"] > 1.2 * plain["time_s"]
    assert undone["time_s"] == plain["time_s"]
    assert slowed["digest"] != plain["digest"] == undone["digest"]


def test_points_of_a_sweep_take_the_framework_and_win_over_it(slow, tmp_path):
    text = f"""\
hardware: {H100}
model: configs/model-config/Llama2-7B.yaml
grid: {{parallelism.recompute: [none, full]}}
"""
    paths = tmp_path / "plain.yaml", tmp_path / "with.yaml"
    paths[0].write_text(text)
    paths[1].write_text(f"{text}framework: slow.yaml\n")
    plain, framed = (list(load_sweep(path).points()) for path in paths)
    assert [point.id for point in plain] == [point.id for point in framed]
    assert not {point.digest for point in plain} & {point.digest for point in framed}
    assert framed[0].base.hardware.sw_param.host_time_per_kernel == pytest.approx(200e-6)
    assert [point.hardware_overrides["scheduling_param.recompute"] for point in framed] == [
        "none",
        "full",
    ]


def test_the_schema_knows_the_keys(capsys):
    assert main(["schema", "framework"]) == 0
    schema = json.loads(capsys.readouterr().out)
    sections = schema["properties"]["hardware"]["properties"]
    assert "kernel_fusion" in sections["sw_param"]["properties"]
    assert "tech_param" not in sections
    assert not any("allOf" in section for section in sections.values())
