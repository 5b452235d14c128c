"""Every kind of bad input: one line that says what is wrong and where, exit 1, no traceback.

Through the real command line; most in this process, a handful as processes of their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deepflow.cli import main

HARDWARE = """\
sw_param: {kernel_launch_overhead: 5 us}
tech_param:
  core:
    nominal_flop_rate_per_mcu: 1024
    num_mcu_per_bundle: 4
    num_bundles: 132
    operating_frequency: 1.8 GHz
    util: 0.8
  DRAM: {size: 80 GB, bandwidth: 3.3 TB/s, latency: 500 ns}
  SRAM-L2: {size: 50 MB, bandwidth: 10 TB/s}
  SRAM-L1: {size: 30 MB, bandwidth: 30 TB/s}
  SRAM-R: {size: 33 MB, bandwidth: 120 TB/s}
  network:
    intra_node: {latency: 1 us, bandwidth: 450 GB/s}
    inter_node: {latency: 5 us, bandwidth: 50 GB/s}
area_breakdown: {proc_chip_area_budget: 814, device_area_budget: 1600}
power_breakdown: {TDP: 700}
system_hierarchy: {num_devices_per_node: 8, num_nodes: 1}
parallelism: {tensor: 4, pipeline: 2, num_microbatches: 4}
"""
MODEL = """\
model_param:
  mode: LLM
  global_batch_size: 16
  seq_len: 1024
  hidden_dim: 1024
  num_heads: 16
  vocab_size: 32000
  num_layers: 8
"""
SWEEP = """\
hardware: hardware.yaml
model: model.yaml
grid:
  parallelism.tensor: [1, 2, 4]
  model.global_batch_size: [16, 32]
"""


@dataclass(frozen=True)
class Inputs:
    """The three files in ``folder``, valid until a case spoils one of them."""

    folder: Path

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} must stand once in {file}"
        path.write_text(text.replace(old, new))

    def write(self, file: str, content: str | bytes) -> None:
        (self.folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


@dataclass(frozen=True)
class Case:
    """``spoil`` breaks the input; ``named`` are words that the message must contain."""

    name: str
    named: tuple[str, ...]
    spoil: Callable[[Inputs], None] = field(default=lambda inputs: None)
    arguments: tuple[str, ...] = ()


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.chdir(tmp_path)
    files = Inputs(tmp_path)
    files.write("hardware.yaml", HARDWARE)
    files.write("model.yaml", MODEL)
    files.write("sweep.yaml", SWEEP)
    return files


def run(arguments: list[str]) -> int:
    """Exit status of ``deepflow ARGUMENTS`` in this process."""
    try:
        return main(arguments) or 0
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def predict_arguments(*more: str) -> list[str]:
    return ["predict", "--hardware", "hardware.yaml", "--model", "model.yaml", *more]


def assert_one_clear_line(errors: str, named: tuple[str, ...]) -> None:
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    for word in named:
        assert word in lines[0], f"{word!r} is missing in: {lines[0]}"


def in_hardware(old: str, new: str) -> Callable[[Inputs], None]:
    return lambda inputs: inputs.replace("hardware.yaml", old, new)


def in_model(old: str, new: str) -> Callable[[Inputs], None]:
    return lambda inputs: inputs.replace("model.yaml", old, new)


def in_sweep(old: str, new: str) -> Callable[[Inputs], None]:
    return lambda inputs: inputs.replace("sweep.yaml", old, new)


def hardware_is(content: str | bytes) -> Callable[[Inputs], None]:
    return lambda inputs: inputs.write("hardware.yaml", content)


def replaced_by_directory(inputs: Inputs) -> None:
    (inputs.folder / "hardware.yaml").unlink()
    (inputs.folder / "hardware.yaml").mkdir()


def replaced_by_circular_link(inputs: Inputs) -> None:
    (inputs.folder / "hardware.yaml").unlink()
    (inputs.folder / "hardware.yaml").symlink_to("hardware.yaml")


def output_is_a_directory(inputs: Inputs) -> None:
    (inputs.folder / "taken").mkdir()


FILE = "hardware.yaml"
BANDWIDTH = "tech_param.DRAM.bandwidth"
PREDICT_CASES = [
    # files that cannot be read
    Case(
        "hardware file is missing",
        (FILE, "no such file"),
        lambda inputs: (inputs.folder / FILE).unlink(),
    ),
    Case(
        "model file is missing",
        ("model.yaml", "no such file"),
        lambda inputs: (inputs.folder / "model.yaml").unlink(),
    ),
    Case("directory instead of a file", (FILE, "directory"), replaced_by_directory),
    Case("file that cannot be opened", (FILE, "cannot be read"), replaced_by_circular_link),
    Case("empty file", (FILE, "empty"), hardware_is("")),
    Case("only comments", (FILE, "empty"), hardware_is("# nothing yet\n")),
    Case(
        "binary file", (FILE, "YAML"), hardware_is(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe")
    ),
    Case("list instead of a mapping", (FILE, "mapping"), hardware_is("- 1\n- 2\n")),
    Case("text instead of a mapping", (FILE, "mapping"), hardware_is("hello\n")),
    Case("two documents in one file", (FILE,), hardware_is(HARDWARE + "---\n" + HARDWARE)),
    Case(
        "model file given as the hardware file",
        (FILE, "model_param"),
        hardware_is(MODEL),
    ),
    # YAML
    Case("bracket that is not closed", (FILE, "YAML", "line"), in_hardware("700}", "700")),
    Case("tab as indentation", (FILE, "YAML"), in_hardware("  DRAM:", "\tDRAM:")),
    Case(
        "key given twice",
        (FILE, "TDP", "twice"),
        in_hardware("{TDP: 700}", "{TDP: 700, TDP: 400}"),
    ),
    Case(
        "tag that would build an object",
        (FILE, "tag"),
        in_hardware("TDP: 700", "TDP: !!python/object/apply:os.getcwd []"),
    ),
    Case(
        "alias without an anchor",
        (FILE, "line 17", "alias"),
        in_hardware("TDP: 700", "TDP: *watts"),
    ),
    Case(
        "anchor that contains itself",
        (FILE,),
        in_hardware("{TDP: 700}", "&loop {TDP: *loop}"),
    ),
    # keys
    Case(
        "misspelt key",
        (FILE, "tech_param.DRAM.bandwith", "did you mean 'bandwidth'"),
        in_hardware("{size: 80 GB, bandwidth", "{size: 80 GB, bandwith"),
    ),
    Case(
        "misspelt section",
        (FILE, "powr_breakdown", "did you mean 'power_breakdown'"),
        in_hardware("power_breakdown", "powr_breakdown"),
    ),
    Case(
        "required key is missing",
        ("model.yaml", "model_param.num_layers"),
        in_model("  num_layers: 8\n", ""),
    ),
    Case(
        "key of hardware that nothing else gives",
        (FILE, "tech_param.core.", "needed"),
        in_hardware("    operating_frequency: 1.8 GHz\n", ""),
    ),
    Case(
        "two spellings of one key",
        ("model.yaml", "batch_size", "global_batch_size"),
        in_model("  seq_len", "  batch_size: 16\n  seq_len"),
    ),
    # values
    Case("wrong unit", (FILE, BANDWIDTH, "3.3 GHz"), in_hardware("3.3 TB/s", "3.3 GHz")),
    Case("unknown unit", (FILE, BANDWIDTH, "3.3 XB/s"), in_hardware("3.3 TB/s", "3.3 XB/s")),
    Case(
        "magnitude of a forgotten unit",
        (FILE, BANDWIDTH, "1986", "implausible", "unit"),
        in_hardware("3.3 TB/s", "1986"),
    ),
    Case("negative bandwidth", (FILE, BANDWIDTH, "-3"), in_hardware("3.3 TB/s", "-3.3 TB/s")),
    Case("not a number", (FILE, BANDWIDTH, "nan"), in_hardware("3.3 TB/s", ".nan")),
    Case("infinite", (FILE, BANDWIDTH, "inf"), in_hardware("3.3 TB/s", ".inf")),
    Case("null", (FILE, "core.util"), in_hardware("util: 0.8", "util: null")),
    Case("fraction above one", (FILE, "core.util", "1.2"), in_hardware("util: 0.8", "util: 1.2")),
    Case(
        "word for a number",
        ("model.yaml", "seq_len", "long"),
        in_model("1024\n  hidden", "long\n  hidden"),
    ),
    Case(
        "boolean for a number",
        ("model.yaml", "num_layers", "true"),
        in_model("layers: 8", "layers: true"),
    ),
    Case(
        "fractional layers",
        ("model.yaml", "num_layers", "8.5"),
        in_model("layers: 8", "layers: 8.5"),
    ),
    Case("list for a number", ("model.yaml", "num_heads"), in_model("heads: 16", "heads: [16]")),
    Case(
        "mapping for a number", ("model.yaml", "num_heads"), in_model("heads: 16", "heads: {n: 16}")
    ),
    Case(
        "number for a section",
        (FILE, "tech_param.core"),
        in_hardware(HARDWARE[HARDWARE.index("  core:") : HARDWARE.index("  DRAM:")], "  core: 5\n"),
    ),
    Case("zero batch", ("model.yaml", "global_batch_size", "0"), in_model("size: 16", "size: 0")),
    Case(
        "number beyond all bounds",
        ("model.yaml", "seq_len"),
        in_model("seq_len: 1024", "seq_len: 1e400"),
    ),
    Case("unknown mode", ("model.yaml", "mode", "LLN", "LLM"), in_model("mode: LLM", "mode: LLN")),
    Case("no mode", ("model.yaml", "mode"), in_model("  mode: LLM\n", "")),
    Case(
        "unknown backend",
        (FILE, "astral", "analytical"),
        in_hardware("parallelism:", "backend: {model: astral}\nparallelism:"),
    ),
    Case(
        "memory level given twice",
        (FILE, "memory_hierarchy"),
        in_hardware(
            "parallelism:", "memory_hierarchy: {l1: {type: SRAM-L2, scope: global}}\nparallelism:"
        ),
    ),
    # values that do not go together
    Case(
        "hidden dimension that the heads do not divide",
        ("model.yaml", "num_heads", "1024"),
        in_model("num_heads: 16", "num_heads: 15"),
    ),
    Case(
        "key/value heads that do not divide the heads",
        ("model.yaml", "num_kv_heads", "16"),
        in_model("num_heads: 16", "num_heads: 16\n  num_kv_heads: 5"),
    ),
    Case(
        "degrees that do not multiply to the devices",
        ("tensor", "pipeline", "8"),
        arguments=("--set", "parallelism.tensor=3"),
    ),
    Case(
        "explicit degrees that do not multiply",
        ("data 5", "8 devices"),
        arguments=("--set", "parallelism.data=5"),
    ),
    Case(
        "batch that does not divide",
        ("global_batch_size", "17"),
        arguments=("--set", "model.global_batch_size=17"),
    ),
    Case(
        "more stages than layers",
        ("pipeline", "num_layers"),
        in_model("num_layers: 8", "num_layers: 1"),
    ),
    Case(
        "nodes without a network between them",
        ("inter_node",),
        in_hardware("bandwidth: 50 GB/s", "bandwidth: 0"),
        (
            "--set",
            "hardware.system_hierarchy.num_nodes=2",
        ),
    ),
    # overrides
    Case(
        "override of a key that is not there",
        ("tech_param.DRAM.bandwith", "'tech_param.DRAM.bandwidth'"),
        arguments=("--set", "hardware.tech_param.DRAM.bandwith=1 TB/s"),
    ),
    Case(
        "override below no known root",
        ("hardwares.tech_param.DRAM.bandwidth", "hardware"),
        arguments=("--set", "hardwares.tech_param.DRAM.bandwidth=1 TB/s"),
    ),
    Case(
        "override of a section",
        ("tech_param.DRAM", "section"),
        arguments=("--set", "hardware.tech_param.DRAM=5"),
    ),
    Case(
        "override with a wrong unit",
        ("DRAM.bandwidth", "5 W"),
        arguments=("--set", "hardware.tech_param.DRAM.bandwidth=5 W"),
    ),
    Case(
        "result that cannot be written",
        ("taken",),
        output_is_a_directory,
        ("--json", "--output", "taken"),
    ),
]

SWEEP_CASES = [
    Case(
        "sweep is missing",
        ("sweep.yaml", "no such file"),
        lambda inputs: (inputs.folder / "sweep.yaml").unlink(),
    ),
    Case("sweep is empty", ("sweep.yaml",), lambda inputs: inputs.write("sweep.yaml", "")),
    Case(
        "misspelt key of a sweep",
        ("sweep.yaml", "gird", "did you mean 'grid'"),
        in_sweep("grid:", "gird:"),
    ),
    Case("sweep without a model", ("sweep.yaml", "model"), in_sweep("model: model.yaml\n", "")),
    Case(
        "file of a sweep is missing",
        ("hardwear.yaml",),
        in_sweep("hardware.yaml", "hardwear.yaml"),
    ),
    Case(
        "axis that hits nothing",
        ("sweep.yaml", "parallelism.tensr", "parallelism.tensor"),
        in_sweep("parallelism.tensor", "parallelism.tensr"),
    ),
    Case(
        "axis below no known root",
        ("sweep.yaml", "tensor"),
        in_sweep("parallelism.tensor", "tensor"),
    ),
    Case("axis without values", ("sweep.yaml", "parallelism.tensor"), in_sweep("[1, 2, 4]", "[]")),
    Case(
        "axis that is one value", ("sweep.yaml", "parallelism.tensor"), in_sweep("[1, 2, 4]", "4")
    ),
    Case(
        "value of an axis out of range",
        ("sweep.yaml", "parallelism.tensor", "-2"),
        in_sweep("[1, 2, 4]", "[1, -2, 4]"),
    ),
    Case(
        "value of an axis with a wrong unit",
        ("sweep.yaml", "DRAM.bandwidth", "2 TB/h"),
        in_sweep(
            "parallelism.tensor: [1, 2, 4]", "hardware.tech_param.DRAM.bandwidth: [1 TB/s, 2 TB/h]"
        ),
    ),
    Case(
        "the same value twice",
        ("sweep.yaml", "parallelism.tensor", "same point"),
        in_sweep("[1, 2, 4]", "[1, 2, 2]"),
    ),
    Case(
        "range without an end",
        ("sweep.yaml", "parallelism.tensor", "stop"),
        in_sweep("[1, 2, 4]", "{start: 1, step: 1}"),
    ),
    Case(
        "range that never ends",
        ("sweep.yaml", "parallelism.tensor", "step"),
        in_sweep("[1, 2, 4]", "{start: 1, stop: 4, step: 0}"),
    ),
    Case(
        "zipped lists of different length",
        ("sweep.yaml", "zip"),
        in_sweep("grid:", "zip:\n  - {model.seq_len: [512, 1024], model.num_layers: [8]}\ngrid:"),
    ),
    Case(
        "one key in two axes",
        ("sweep.yaml", "global_batch_size"),
        in_sweep("grid:", "set: {model.global_batch_size: 64}\ngrid:"),
    ),
    Case(
        "condition with a misspelt name",
        ("sweep.yaml", "where", "tensr", "tensor"),
        lambda inputs: inputs.write("sweep.yaml", SWEEP + "where: tensr <= 2\n"),
    ),
    Case(
        "condition with code in it",
        ("sweep.yaml", "where"),
        lambda inputs: inputs.write(
            "sweep.yaml", SWEEP + "where: __import__('os').system('touch broken') == 0\n"
        ),
    ),
    Case(
        "condition that is no expression",
        ("sweep.yaml", "where"),
        lambda inputs: inputs.write("sweep.yaml", SWEEP + "where: tensor <=\n"),
    ),
    Case(
        "condition that no point fulfils",
        ("sweep.yaml", "where"),
        lambda inputs: inputs.write("sweep.yaml", SWEEP + "where: tensor > 4\n"),
    ),
    Case(
        "points_per_job of zero",
        ("sweep.yaml", "points_per_job", "0"),
        lambda inputs: inputs.write("sweep.yaml", SWEEP + "points_per_job: 0\n"),
    ),
    Case(
        "unknown kind of plot",
        ("sweep.yaml", "pie", "line"),
        lambda inputs: inputs.write("sweep.yaml", SWEEP + "plots: [{kind: pie}]\n"),
    ),
]

COMMAND_LINES = {
    "no command": [],
    "unknown command": ["pradict"],
    "unknown option": predict_arguments("--jason"),
    "option without its value": ["predict", "--hardware"],
    "required option is missing": ["predict", "--hardware", "hardware.yaml"],
    "override without a value": predict_arguments("--set", "parallelism.tensor"),
    "sweep command without a file": ["sweep", "points"],
}


def test_the_unspoilt_input_works(inputs, capsys):
    assert run(predict_arguments("--json")) == 0
    assert capsys.readouterr().err == ""
    assert run(["sweep", "points", "sweep.yaml"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.parametrize("case", PREDICT_CASES, ids=lambda case: case.name)
def test_prediction_from_bad_input_fails_with_one_clear_line(case, inputs, capsys):
    case.spoil(inputs)
    assert run(predict_arguments(*case.arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_one_clear_line(captured.err, case.named)


@pytest.mark.parametrize("case", SWEEP_CASES, ids=lambda case: case.name)
def test_bad_sweep_fails_with_one_clear_line(case, inputs, capsys):
    case.spoil(inputs)
    assert run(["sweep", "points", "sweep.yaml"]) == 1
    assert_one_clear_line(capsys.readouterr().err, case.named)
    assert not (inputs.folder / "broken").exists()


@pytest.mark.parametrize("arguments", COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_wrong_command_line_exits_with_2(arguments, inputs, capsys):
    assert run(arguments) == 2
    assert_one_clear_line(capsys.readouterr().err, ("deepflow", "--help"))


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (predict_arguments("--set", "model.global_batch_size=0"), 1, ("global_batch_size", "0")),
        (predict_arguments("--set", "parallelism.tensor=3"), 1, ("tensor",)),
        (["sweep", "points", "nowhere.yaml"], 1, ("nowhere.yaml",)),
        (["predict"], 2, ()),
    ],
    ids=["bad value", "infeasible point", "missing sweep", "wrong command line"],
)
def test_real_process_has_the_same_status_and_message(arguments, status, named, inputs, repository):
    environment = dict(os.environ, PYTHONPATH=str(repository))
    result = subprocess.run(
        [sys.executable, "-m", "deepflow", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == status
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if status == 1:
        assert_one_clear_line(result.stderr, named)


def test_failed_prediction_leaves_an_older_result_alone(inputs, capsys):
    assert run(predict_arguments("--json", "--output", "point.json")) == 0
    before = (inputs.folder / "point.json").read_bytes()
    arguments = ("--json", "--output", "point.json", "--set", "model.global_batch_size=0")
    assert run(predict_arguments(*arguments)) == 1
    assert (inputs.folder / "point.json").read_bytes() == before
    assert sorted(path.name for path in inputs.folder.iterdir()) == [
        "hardware.yaml",
        "model.yaml",
        "point.json",
        "sweep.yaml",
    ]
