"""Sweep files: which points they mean, what the points are called, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepflow.errors import ConfigError
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.points import Sweep
from deepflow.sweep.where import parse_condition

GEMM_ON_V100 = """\
hardware: configs/hardware-config/nvidia_v100_sxm2_32gb.yaml
model: configs/model-config/GEMM.yaml
"""
LLM_ON_H100 = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-7B.yaml
"""
Load = Callable[..., Sweep]


@pytest.fixture
def load(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a sweep from text, from the root of the repository."""
    monkeypatch.chdir(repository)

    def load_text(text: str, name: str = "test") -> Sweep:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return load_sweep(path)

    return load_text


def ids(sweep: Sweep) -> list[str]:
    return [point.id for point in sweep.points()]


def test_grid_is_the_product_of_its_axes_with_the_last_one_fastest(load: Load) -> None:
    sweep = load(LLM_ON_H100 + "grid: {parallelism.tensor: [1, 2], parallelism.pipeline: [1, 4]}")
    assert ids(sweep) == [
        "tensor=1+pipeline=1",
        "tensor=1+pipeline=4",
        "tensor=2+pipeline=1",
        "tensor=2+pipeline=4",
    ]
    last = list(sweep.points())[-1]
    assert last.axis_values == {"tensor": 2, "pipeline": 4}
    assert last.hardware_overrides == {
        "scheduling_param.tensor": 2,
        "scheduling_param.pipeline": 4,
    }


def test_zipped_axes_move_together_and_quantities_become_si(load: Load) -> None:
    sweep = load(
        LLM_ON_H100
        + """
zip:
  - hardware.tech_param.DRAM.bandwidth: [3.35 TB/s, 4.8 TB/s]
    hardware.tech_param.DRAM.size: [80 GB, 141 GB]
grid: {model.global_batch_size: [64]}
"""
    )
    assert ids(sweep) == [
        "global_batch_size=64+bandwidth=3.35TBps+size=80GB",
        "global_batch_size=64+bandwidth=4.8TBps+size=141GB",
    ]
    assert [point.axis_values["bandwidth"] for point in sweep.points()] == [3.35e12, 4.8e12]
    assert [point.axis_values["size"] for point in sweep.points()] == [80 * 2**30, 141 * 2**30]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("{start: 256, stop: 1024, step: 256}", [256, 512, 768, 1024]),
        ("{start: 5, stop: 1, step: -2}", [5, 3, 1]),
        ("{start: 1, stop: 6, step: 2}", [1, 3, 5]),
        ("{log2: [1, 64]}", [1, 2, 4, 8, 16, 32, 64]),
        ("{log2: [3, 20]}", [3, 6, 12]),
    ],
)
def test_ranges(load: Load, axis: str, values: list[int]) -> None:
    sweep = load(GEMM_ON_V100 + f"grid: {{model.M: {axis}}}")
    assert [point.axis_values["M"] for point in sweep.points()] == values


def test_a_range_of_decimals_has_no_rounding_noise(load: Load) -> None:
    axis = "hardware.tech_param.core.util: {start: 0.1, stop: 0.5, step: 0.1}"
    assert ids(load(GEMM_ON_V100 + f"grid: {{{axis}}}")) == [
        "util=0.1",
        "util=0.2",
        "util=0.3",
        "util=0.4",
        "util=0.5",
    ]


def test_lists_of_files_are_axes_named_by_their_stems(load: Load) -> None:
    sweep = load(
        """
hardware:
  - configs/hardware-config/nvidia_v100_sxm2_32gb.yaml
  - configs/hardware-config/nvidia_a100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
grid: {model.M: [8]}
where: hardware == "nvidia_a100_sxm_80gb"
"""
    )
    (point,) = sweep.points()
    assert point.id == "hardware=nvidia_a100_sxm_80gb+M=8"
    assert point.base.hardware_file == "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"


def test_files_are_also_found_beside_the_sweep(load: Load, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("model_param: {mode: GEMM, M: 1, K: 2, N: 3}\n")
    sweep = load(GEMM_ON_V100.replace("configs/model-config/GEMM.yaml", "small.yaml"))
    (point,) = sweep.points()
    assert point.id == "base"
    assert point.base.model_file == str(tmp_path / "small.yaml")


def test_short_names_take_parents_until_they_are_unique(load: Load) -> None:
    sweep = load(
        LLM_ON_H100
        + """
grid:
  hardware.tech_param.DRAM.bandwidth: [1 TB/s]
  hardware.tech_param.network.intra_node.bandwidth: [100 GB/s]
  hardware.tech_param.network.inter_node.bandwidth: [50 GB/s]
where: DRAM_bandwidth > intra_node_bandwidth + inter_node_bandwidth
"""
    )
    assert ids(sweep) == [
        "DRAM.bandwidth=1TBps+intra_node.bandwidth=100GBps+inter_node.bandwidth=50GBps"
    ]


def test_fixed_values_and_backend_are_set_and_not_named(load: Load) -> None:
    sweep = load(
        LLM_ON_H100
        + "backend: astra\nset: {model.num_layers: 4}\ngrid: {parallelism.tensor: [2]}\n"
    )
    (point,) = sweep.points()
    assert point.id == "tensor=2"
    assert point.model_overrides == {"num_layers": 4}
    assert point.hardware_overrides["execution_backend.model"] == "astra"
    assert [setting.text for setting in point.settings] == [
        "model.num_layers=4",
        "backend.model=astra",
        "parallelism.tensor=2",
    ]


def test_where_leaves_out_points(load: Load) -> None:
    axes = "grid: {parallelism.tensor: [1, 2, 4], parallelism.pipeline: [1, 2, 4]}\n"
    sweep = load(LLM_ON_H100 + axes + "where: tensor * pipeline == 4 and not tensor == 1\n")
    assert ids(sweep) == ["tensor=2+pipeline=2", "tensor=4+pipeline=1"]
    assert sweep.count == 2


def test_a_point_is_found_by_its_id(load: Load) -> None:
    axes = "grid: {parallelism.tensor: [1, 2, 4], model.global_batch_size: [8, 16]}\n"
    sweep = load(LLM_ON_H100 + axes + "where: tensor < 4\n")
    for point in sweep.points():
        assert sweep.point(point.id) == point
    with pytest.raises(ConfigError, match="left out by where: tensor < 4"):
        sweep.point("tensor=4+global_batch_size=8")
    with pytest.raises(ConfigError, match=r"no point 'tensor=3\+global_batch_size=8'"):
        sweep.point("tensor=3+global_batch_size=8")


def test_very_long_ids_end_in_a_digest_and_are_found_too(load: Load) -> None:
    keys = [f"kp_{layer}_dim{side}" for layer in ("hidden", "softmax") for side in (1, 2)]
    keys += [
        "sequence_parallel",
        "overlap_gradient_reduction",
        "gradient_bytes",
        "micro_batch_size",
    ]
    axes = "".join(
        f"  parallelism.{key}: {[True] if 'overlap' in key or 'seq' in key else [2, 4]}\n"
        for key in keys
    ).replace("True", "true")
    sweep = load(LLM_ON_H100 + "grid:\n" + axes)
    names = ids(sweep)
    assert len(set(names)) == len(names) == 64
    assert all(len(name) <= 150 and name.startswith("kp_hidden_dim1=") for name in names)
    assert sweep.point(names[-1]).id == names[-1]


@pytest.mark.parametrize("method", ["random", "latin_hypercube"])
def test_samples_stay_in_range_and_repeat_with_their_seed(load: Load, method: str) -> None:
    text = (
        LLM_ON_H100
        + f"""
sample:
  method: {method}
  count: 40
  seed: 7
  axes:
    hardware.tech_param.DRAM.bandwidth: {{low: 1 TB/s, high: 8 TB/s, scale: log}}
    hardware.tech_param.core.util: {{low: 0.2, high: 0.9}}
    model.global_batch_size: {{low: 8, high: 64, integer: true}}
    parallelism.tensor: {{choices: [1, 2, 4]}}
"""
    )
    sweep = load(text)
    points = list(sweep.points())
    assert len(points) == 40
    for point in points:
        assert 1e12 <= point.axis_values["bandwidth"] <= 8e12
        assert 0.2 <= point.axis_values["util"] <= 0.9
        assert point.axis_values["global_batch_size"] in range(8, 65)
        assert point.axis_values["tensor"] in (1, 2, 4)
    assert ids(load(text)) == ids(sweep)
    assert ids(load(text.replace("seed: 7", "seed: 8"))) != ids(sweep)


def test_a_larger_random_sample_keeps_the_smaller_one(load: Load) -> None:
    text = (
        LLM_ON_H100
        + "sample: {method: random, count: 10, axes: {model.seq_len: {low: 1, high: 9999, "
        + "integer: true}}}"
    )
    assert ids(load(text.replace("10,", "20,")))[:10] == ids(load(text))


def test_a_latin_hypercube_covers_every_part_of_an_axis_once(load: Load) -> None:
    sweep = load(
        LLM_ON_H100
        + "sample: {method: latin_hypercube, count: 10, axes: "
        + "{hardware.tech_param.core.util: {low: 0.1, high: 0.6}}}"
    )
    parts = sorted(int((point.axis_values["util"] - 0.1) / 0.05) for point in sweep.points())
    assert parts == list(range(10))


def test_the_number_of_points_chooses_the_size_of_jobs(load: Load) -> None:
    axis = "grid: {{model.M: {{start: 1, stop: {points}, step: 1}}}}\n"
    assert load(GEMM_ON_V100 + axis.format(points=1000)).points_per_job == 1
    large = load(GEMM_ON_V100 + axis.format(points=10_000))
    assert large.sharded
    assert 1000 <= large.count / len(large.shards) <= 2000
    assert load(GEMM_ON_V100 + "points_per_job: 1\n" + axis.format(points=2000)).sharded is False
    assert "10000 points, 8 shards of about 1250" in large.summary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {parallelism.tensr: [1]}", "did you mean 'parallelism.tensor'"),
        ("grid: {tensor: [1]}", "did you mean 'parallelism.tensor'"),
        ("grid: {hardware.tech_param.DRAM.bandwith: [1 TB/s]}", "tech_param.DRAM.bandwidth"),
        ("gird: {parallelism.tensor: [1]}", "gird: unknown key; did you mean 'grid'?"),
        ("grid: {parallelism.tensor: []}", "without values"),
        ("grid: {parallelism.tensor: 4}", "a value for all points belongs under set"),
        ("grid: {parallelism.tensor: [[1, 2]]}", "single value"),
        ("grid: {parallelism.tensor: [0]}", "grid.parallelism.tensor = 0"),
        ("grid: {parallelism.tensor: [two]}", "grid.parallelism.tensor = 'two'"),
        ("grid: {parallelism.tensor: [2, 2]}", "make the same point"),
        ("grid: {hardware.tech_param.DRAM.size: [80 GB, 80GB]}", "values 1 (80 GB) and 2 (80GB)"),
        ("grid: {hardware.tech_param.DRAM.size: [80 GB, 80 GiB]}", "make the same point"),
        ("grid: {hardware.tech_param.DRAM.bandwidth: [1986]}", "is a unit missing"),
        ("grid: {hardware.tech_param.DRAM.bandwidth: [4 W]}", "grid.hardware.tech_param.DRAM"),
        ("grid: {hardware.tech_param.DRAM: [1]}", "is a section"),
        ("grid: {parallelism.tensor: [2]}\nset: {hardware.scheduling_param.tensor: 4}", "twice"),
        ("grid: {parallelism.tensor: {log2: [0, 8]}}", "0 < first <= limit"),
        ("grid: {parallelism.tensor: {start: 1, stop: 8, step: 0}}", "never reaches stop"),
        ("grid: {parallelism.tensor: {start: 1, stop: 8, step: -1}}", "never reaches stop"),
        ("grid: {parallelism.tensor: {from: 1, to: 8}}", "is not a range"),
        ("zip: [{parallelism.tensor: [1, 2], parallelism.pipeline: [1]}]", "differ in length"),
        ("zip: {parallelism.tensor: [1, 2]}", "zip"),
        ("points_per_job: 0", "points_per_job = 0"),
        ("points_per_job: many", "points_per_job = 'many'"),
        ("backend: astro", "did you mean 'astra'"),
        ("sample: {method: sobol, count: 1, axes: {}}", "sample.method = 'sobol'"),
        ("sample: {method: random, axes: {}}", "sample.count: is missing"),
        ("sample: {method: random, count: 2, axes: {model.seq_len: {low: 9, high: 1}}}", "low <="),
        ("where: tensr < 4\ngrid: {parallelism.tensor: [1]}", "did you mean 'tensor'?"),
        ("where: tensor > 4\ngrid: {parallelism.tensor: [1]}", "leaves no point"),
        ("where: 1 / (tensor - 1) > 0\ngrid: {parallelism.tensor: [1]}", "division by zero"),
        ("where: tensor > 'x'\ngrid: {parallelism.tensor: [1]}", "cannot be evaluated"),
        ("where: [tensor]", "where"),
        ("plots: [{kind: pie}]", "plots[1].kind = 'pie'"),
        ("plots: [{kind: line, x: tensor}]", "plots[1].y: a line plot needs it"),
        ("plots: [{kind: heatmap, x: a, y: b, value: c, hue: d}]", "means nothing to a heatmap"),
        ("plots: [{kind: breakdown, name: a/b}]", "is no file name"),
        ("plots: [{kind: breakdown, name: a}, {kind: breakdown, name: a}]", "two plots"),
        ("hardware: nowhere.yaml", "nowhere.yaml"),
        ("grid: {model.seq_len: {start: 1, stop: 90000000, step: 1}}", "at most 10,000,000"),
        ("grid: {model.seq_len: {start: 1, stop: 2, step: 1.0e-300}}", "too many values"),
        (f"grid: {{model.seq_len: {{log2: [1, 1{400 * '0'}]}}}}", "must be a finite number"),
        ("grid: {parallelism.tensor: {log2: [1.0e-299, 1.0e+299]}}", "is not an integer"),
        ("grid:", "grid: is empty (allowed: a mapping)"),
        ("sample: {method: random, count: 20000000, axes: {}}", "sample.count = 20000000"),
        ("sample: {method: random, count: 2, axes: {}}", "sample.axes: names no axis"),
        ("where: tensor < 4, tensor > 1\ngrid: {parallelism.tensor: [2]}", "is not part of"),
        ("plots: [{kind: pareto, x: a, y: b, label: [1]}]", "plots[1].label"),
    ],
)
def test_mistakes_are_named_with_file_and_key(load: Load, text: str, message: str) -> None:
    base = LLM_ON_H100 if not text.startswith("hardware:") else LLM_ON_H100.split("\n")[1] + "\n"
    with pytest.raises(ConfigError) as error:
        sweep = load(base + text)
        list(sweep.points())
    assert message in str(error.value)
    assert "test.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_machines_with_one_name_are_refused(load: Load, repository: Path, tmp_path: Path) -> None:
    source = repository / "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"
    (tmp_path / "copy.yaml").write_text(source.read_text())
    text = f"hardware: [{source}, {tmp_path}/copy.yaml]\nmodel: configs/model-config/GEMM.yaml\n"
    with pytest.raises(ConfigError, match="have the same name 'nvidia_a100_sxm_80gb'"):
        load(text)


def test_too_many_combinations_are_refused_before_they_are_made(load: Load) -> None:
    axes = "".join(f"  model.{key}: {{start: 1, stop: 1000, step: 1}}\n" for key in "MKN")
    with pytest.raises(ConfigError, match="1,000,000,000 combinations"):
        load(GEMM_ON_V100 + "grid:\n" + axes)


@pytest.mark.parametrize("name", ["with space", "semi;colon", ".hidden"])
def test_a_sweep_whose_name_cannot_be_a_directory_is_refused(load: Load, name: str) -> None:
    with pytest.raises(ConfigError, match="directory of results"):
        load(GEMM_ON_V100, name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a * b <= 64", True),
        ("a + b - 1 > 15 or a // 3 == 9", False),
        ("1 < a < b < 9", True),
        ("a % 2 == 0 and not (b == 4)", True),
        ("a in (2, 4) and s not in ['x', 'y']", True),
        ("s == 'z' and f", True),
        ("-a < +b", True),
        ("b / a == 2.0", True),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    values = {"a": 4, "b": 8, "s": "z", "f": True}
    assert parse_condition(text, list(values), "f", "where").holds(values) is expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a.real > 1",
        "a[0]",
        "(lambda: 1)()",
        "[x for x in a]",
        "a if b else c",
        "f'{a}'",
        "a ** 999999999",
        "a << 99999999",
        "a := 3",
        "print(a)",
        "{'a': 1}",
        "...",
        "b'bytes'",
        "None",
        "a and",
        "a; b",
        "(" * 500 + "a" + ")" * 500,
        "",
    ],
)
def test_anything_but_the_filter_language_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: "):
        parse_condition(text, ["a", "b", "c", "os"], "sweep.yaml", "where")


def test_text_cannot_be_blown_up_by_arithmetic() -> None:
    condition = parse_condition("s * 999999999 == 'x'", ["s"], "sweep.yaml", "where")
    with pytest.raises(ConfigError, match="arithmetic with text"):
        condition.holds({"s": "x"})
