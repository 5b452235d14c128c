"""Which parameters decide a prediction: laws of elasticities, the command, sweeps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from deepflow.batch import evaluate
from deepflow.cli import main
from deepflow.config import (
    HardwareConfig,
    ModelConfig,
    load_hardware_config,
    load_model_config,
    with_overrides,
)
from deepflow.config.schema import key_at
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.sensitivity.analysis import Sensitivity, analyse, make_plan, parameters_of
from deepflow.sensitivity.sweeps import check_figures, finer, gather, write_shard
from deepflow.sweep.expand import load_sweep

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
STUDY = "configs/hardware-config/exp_config_new.yaml"
POINTS = {
    "training": (
        H100,
        "configs/model-config/Llama2-7B.yaml",
        {"scheduling_param.tensor": 4, "scheduling_param.zero": 1},
        {"global_batch_size": 64},
    ),
    "inference": (
        H100,
        "configs/model-config/Llama2-7B.yaml",
        {"scheduling_param.tensor": 8},
        {"run_type": "inference", "global_batch_size": 4, "prompt_len": 512},
    ),
    "lstm": (STUDY, "configs/model-config/LSTM.yaml", {}, {}),
    "gemm": (
        H100,
        "configs/model-config/GEMM.yaml",
        {"system_hierarchy.num_devices_per_node": 1},
        {},
    ),
    "collective": (H100, "configs/model-config/collective.yaml", {}, {}),
    "simulated": (
        H100,
        "configs/model-config/collective.yaml",
        {"execution_backend.model": "astra"},
        {},
    ),
}
SECONDS = {"s": 1, "bytes/s": -1, "bit/s": -1, "Hz": -1, "W": -1, "W/bit": -1}


@pytest.fixture(autouse=True)
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def point(name: str) -> tuple[HardwareConfig, ModelConfig]:
    hardware, model, of_hardware, of_model = POINTS[name]
    return (
        with_overrides(load_hardware_config(hardware), of_hardware),
        with_overrides(load_model_config(model), of_model),
    )


def found(name: str, *keys: str, objective: str = "time_s") -> dict[str, Sensitivity]:
    """Parameter, without the sections that all have, -> sensitivity."""
    analysis = analyse(
        *point(name), make_plan(objective, keys=tuple(f"hardware.{k}" for k in keys))
    )
    return {item.parameter.removeprefix("hardware."): item for item in analysis.sensitivities}


@pytest.mark.parametrize("name", POINTS)
def test_with_all_times_twice_and_all_rates_half_time_doubles(name: str) -> None:
    hardware, model = point(name)
    powers = {
        path: SECONDS.get(key_at(HardwareConfig, path).option.unit, 0)
        for path in parameters_of(hardware)
    }
    scaled = {
        path: value * 2.0 ** powers[path]
        for path, value in parameters_of(hardware).items()
        if powers[path]
    }
    slower = evaluate(hardware, model, scaled, {}).prediction
    before = evaluate(hardware, model, {}, {}).prediction
    # The simulator counts in nanoseconds, and some of its steps take a fixed number of them.
    accuracy = 1e-3 if name == "simulated" else 1e-9
    assert slower.time_s == pytest.approx(2 * before.time_s, rel=accuracy)


@pytest.mark.parametrize("name", POINTS)
def test_elasticities_add_up_and_have_the_right_sign(name: str) -> None:
    analysis = analyse(*point(name), make_plan())
    total, degree = analysis.balance
    assert degree == 1
    assert total == pytest.approx(1, abs=0.02)
    assert analysis.with_effect
    for item in analysis.sensitivities:
        if item.unit == "bytes/s":
            assert (item.elasticity or 0) <= 1e-9, item
        if item.unit == "s":
            assert (item.elasticity or 0) >= -1e-9, item


def test_degree_follows_from_the_unit_of_the_objective() -> None:
    for objective, degree in (("tokens_per_second", -1), ("peak_memory_bytes", 0)):
        analysis = analyse(*point("training"), make_plan(objective))
        assert analysis.balance[1] == degree
        assert analysis.balance[0] == pytest.approx(degree, abs=0.02)


@pytest.mark.parametrize("name", ["gemm", "lstm"])
def test_ratios_are_those_of_predictions_with_the_value_changed(name: str) -> None:
    hardware, model = point(name)
    analysis = analyse(hardware, model, make_plan())
    before = evaluate(hardware, model, {}, {}).prediction.time_s
    compared = 0
    for item in analysis.sensitivities:
        path = item.parameter.removeprefix("hardware.")
        for change in (item.doubled, item.halved):
            if change is None or change.ratio is None:
                continue
            after = evaluate(hardware, model, {path: item.value * change.factor}, {}).prediction
            assert change.ratio == pytest.approx(after.time_s / before, rel=1e-12), item
            compared += 1
    assert compared > 100
    assert analysis.predictions < 2 * compared


def test_bound_by_arithmetic_the_rate_is_all_that_matters() -> None:
    hardware, model = point("gemm")
    model = with_overrides(model, {"M": 16384, "N": 16384, "K": 16384})
    keys = ("hardware.tech_param.core.util", "hardware.tech_param.DRAM.latency")
    analysis = analyse(hardware, model, make_plan(keys=keys))
    elasticities = {item.parameter: item.elasticity for item in analysis.sensitivities}
    assert elasticities[keys[0]] == pytest.approx(-1, abs=0.03)
    assert elasticities[keys[1]] == pytest.approx(0, abs=1e-3)


def test_whole_numbers_change_by_whole_numbers_and_fractions_stay_below_one() -> None:
    items = found(
        "training", "tech_param.core.num_bundles", "tech_param.core.util", "tech_param.SRAM_L2.util"
    )
    bundles = items["tech_param.core.num_bundles"]
    assert bundles.doubled is not None and bundles.doubled.factor == 2
    assert bundles.up is not None
    util = items["tech_param.core.util"]
    assert util.doubled is not None
    assert util.value * util.doubled.factor == pytest.approx(1)
    assert items["tech_param.SRAM_L2.util"].doubled is None
    assert "end of its range" in items["tech_param.SRAM_L2.util"].note


def test_kink_is_said_where_the_sides_differ() -> None:
    """At the clock that it can keep in long runs, a higher one is of no use to products."""
    hardware, model = point("training")
    clock = hardware.tech_param.core.operating_frequency
    hardware = with_overrides(hardware, {"tech_param.core.sustained_frequency": clock})
    key = "hardware.tech_param.core.sustained_frequency"
    (item,) = analyse(hardware, model, make_plan(keys=(key,))).sensitivities
    assert item.kink
    assert item.up == 0
    assert item.down is not None and item.down < -0.3
    assert item.note.startswith("kink")


def test_capacity_says_what_it_decides() -> None:
    hardware, model = point("training")
    needed = evaluate(hardware, model, {}, {}).prediction.peak_memory_bytes
    key = "hardware.tech_param.DRAM.size"
    plan = make_plan(keys=(key,))
    for size, halved, note in (
        (8 * needed, "ok", "capacity is not binding"),
        (1.5 * needed, "out_of_memory", "out of memory at x0.5"),
    ):
        changed = with_overrides(hardware, {"tech_param.DRAM.size": size})
        (item,) = analyse(changed, model, plan).sensitivities
        assert item.halved is not None and item.halved.status == halved
        assert item.effect == (halved != "ok")
        assert note in item.note
    small = with_overrides(hardware, {"tech_param.DRAM.size": 0.7 * needed})
    (item,) = analyse(small, model, plan).sensitivities
    assert "fits in memory at x2" in item.note


def test_what_other_keys_forbid_is_said_and_is_no_effect() -> None:
    items = found("gemm", "area_breakdown.proc_chip_area_budget")
    item = items["area_breakdown.proc_chip_area_budget"]
    assert item.doubled is not None and item.doubled.ratio is None
    assert "device_area_budget" in item.note
    assert not item.effect


def test_budgets_of_technology_style_files_matter() -> None:
    items = found("lstm", "power_breakdown.core", "area_breakdown.core", "power_breakdown.DRAM")
    assert all(item.effect and (item.elasticity or 0) < 0 for item in items.values())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"objective": "time"}, "time_s"),
        ({"objective": "bound"}, "objective"),
        ({"percent": 0.0}, "step"),
        ({"percent": float("nan")}, "step"),
        ({"keys": ("hardware.tech_param.DRAM.bandwith",)}, "bandwidth"),
        ({"keys": ("hardware.tech_param.DRAM",)}, "section"),
        ({"keys": ("hardware.sw_param.dtype",)}, "dtype"),
        ({"keys": ("hardware.sw_param.precision",)}, "precision"),
        ({"keys": ("model.seq_len",)}, "hardware"),
    ],
)
def test_wrong_plans_are_errors_that_name_what_is_wrong(arguments, named) -> None:
    with pytest.raises(ConfigError, match=named):
        make_plan(**arguments)


def test_keys_and_objectives_without_a_value_are_errors() -> None:
    with pytest.raises(ConfigError, match="no positive value"):
        found("training", "sw_param.host_time_per_step")
    with pytest.raises(ConfigError, match="not known"):
        found("gemm", objective="tokens_per_second")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


COMMAND = ["sensitivity", "--hardware", H100, "--model", "configs/model-config/GEMM.yaml"]
FEW = ["--keys", "hardware.tech_param.DRAM.bandwidth", "hardware.tech_param.core.util"]


@pytest.mark.parametrize("command", ["sensitivity", "compare", "explain"])
def test_pictures_have_an_ending_that_can_be_drawn(command, tmp_path, capsys) -> None:
    option = "--roofline" if command == "explain" else "--plot"
    with pytest.raises(SystemExit) as stop:
        main([command, *COMMAND[1:], option, str(tmp_path / "picture.txt")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "does not end in .svg, .png, .pdf" in error and error.count("\n") == 1


def test_command_writes_tables_of_all_kinds_that_agree(capsys, tmp_path: Path) -> None:
    code, out, _ = run(capsys, *COMMAND, *FEW, "--json")
    assert code == 0
    record = json.loads(out)
    expected = {row["parameter"]: row["elasticity"] for row in record["parameters"]}
    assert len(expected) == 2
    for ending, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        file = tmp_path / f"table.{ending}"
        code, text, _ = run(capsys, *COMMAND, *FEW, "--output", str(file))
        assert code == 0
        assert "hardware.tech_param.core.util" in text
        table = read(file)
        assert dict(zip(table["parameter"], table["elasticity"], strict=True)) == pytest.approx(
            expected
        )
    file = tmp_path / "table.json"
    assert run(capsys, *COMMAND, *FEW, "--output", str(file))[0] == 0
    assert json.loads(file.read_text()) == record


def test_command_counts_what_has_no_effect_or_lists_it(capsys) -> None:
    _, few, _ = run(capsys, *COMMAND)
    _, everything, _ = run(capsys, *COMMAND, "--all")
    assert "Without effect" in few
    assert "system_hierarchy.inter_derate" not in few
    assert "system_hierarchy.inter_derate" in everything


def test_tornado_is_drawn_and_names_the_parameters(capsys, tmp_path: Path) -> None:
    picture = tmp_path / "tornado.svg"
    assert run(capsys, *COMMAND, "--plot", str(picture))[0] == 0
    text = picture.read_text()
    assert "core.util" in text and "parameter doubled" in text
    nothing = ["--keys", "hardware.tech_param.network.inter_node.latency"]
    assert run(capsys, *COMMAND, *nothing, "--plot", str(picture))[0] == 0
    assert "no parameter has an effect" in picture.read_text()


def test_command_refuses_wrong_input_in_one_line(capsys, tmp_path: Path) -> None:
    for arguments, named in (
        (["--output", str(tmp_path / "table.xlsx")], ".parquet"),
        (["--objective", "speed"], "objective"),
        (["--set", "parallelism.tensor=3"], "3"),
    ):
        code, out, err = run(capsys, *COMMAND, *arguments)
        assert (code, out) == (1, "")
        assert named in err and err.count("\n") == 1


def test_infeasible_point_is_a_result_if_asked_for(capsys) -> None:
    impossible = ["--set", "parallelism.tensor=16", "--allow-infeasible", "--json"]
    code, out, _ = run(capsys, *COMMAND, *impossible)
    assert code == 0
    record = json.loads(out)
    assert record["status"] == "infeasible"
    assert record["parameters"] == []


SWEEP = """\
description: What matters?
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
set: {parallelism.t: CR, model.K: 8192}
grid:
  model.M: [256, 8192]
  parallelism.kp1: [1, 8, 16]
sensitivity:
  keys: [hardware.tech_param.DRAM.bandwidth, hardware.tech_param.core.util]
  plots:
    - {kind: dominant, x: M, y: kp1}
    - {kind: tornado, name: best}
"""


def load(folder: Path, text: str, name: str = "small"):
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return load_sweep(file)


def test_shards_hold_every_point_and_what_the_command_says(tmp_path: Path, capsys) -> None:
    sweep = load(tmp_path, SWEEP + "points_per_job: 3\n")
    for name in finer(sweep).shards:
        write_shard(sweep, name, tmp_path / f"sensitivity/shards/{name}.parquet")
    gather(sweep, tmp_path, tmp_path / "sensitivity.parquet")
    table = pd.read_parquet(tmp_path / "sensitivity.parquet")
    assert set(table["point"]) == {point.id for point in sweep.points()}
    impossible = table[table["kp1"] == 16]
    assert set(impossible["status"]) == {"infeasible"} and impossible["parameter"].isna().all()
    assert set(table.groupby(["M", "kp1"]).size()[:, 8]) == {2}

    chosen = table[(table["M"] == 8192) & (table["kp1"] == 8)]
    settings = ["--set", "model.M=8192", "--set", "parallelism.kp1=8"]
    settings += ["--set", "parallelism.t=CR", "--set", "model.K=8192"]
    _, out, _ = run(capsys, *COMMAND, *FEW, *settings, "--json")
    record = json.loads(out)
    assert record["digest"] == chosen["digest"].iloc[0]
    expected = {row["parameter"]: row["elasticity"] for row in record["parameters"]}
    assert dict(zip(chosen["parameter"], chosen["elasticity"], strict=True)) == expected

    for figure in ("1-dominant", "best"):
        command = ["sweep", "sensitivity-plot", sweep.file, figure]
        table_file = ["--table", str(tmp_path / "sensitivity.parquet")]
        picture = tmp_path / f"{figure}.svg"
        assert main([*command, *table_file, "--output", str(picture)]) == 0
        assert "core.util" in picture.read_text()


def test_cells_that_several_points_share_are_refused(tmp_path: Path, capsys) -> None:
    crowded = "    - {kind: dominant, x: M, y: hardware}\n"
    filtered = "    - {kind: dominant, x: M, y: hardware, where: kp1 == 1}\n"
    sweep = load(tmp_path, SWEEP + crowded + filtered + "points_per_job: 100\n")
    (name,) = finer(sweep).shards
    write_shard(sweep, name, tmp_path / "table.parquet")
    for figure, expected in (("3-dominant", 1), ("4-dominant", 0)):
        command = ["sweep", "sensitivity-plot", sweep.file, figure]
        files = ["--table", str(tmp_path / "table.parquet"), "--output", str(tmp_path / "x.png")]
        code, _, err = run(capsys, *command, *files)
        assert code == expected
        assert ("several points" in err) == bool(expected)


def test_results_of_another_plan_are_refused(tmp_path: Path) -> None:
    sweep = load(tmp_path, SWEEP + "points_per_job: 30\n")
    (name,) = finer(sweep).shards
    write_shard(sweep, name, tmp_path / f"sensitivity/shards/{name}.parquet")
    other = load(
        tmp_path, SWEEP.replace("  plots:", "  step: 2\n  plots:") + "points_per_job: 30\n"
    )
    with pytest.raises(DeepFlowError, match="made from other settings"):
        gather(other, tmp_path, tmp_path / "sensitivity.parquet")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("kind: dominant, x: M", "kind: dominant, x: m"), "'M'"),
        (("kind: dominant, x: M,", "kind: dominant,"), "x"),
        (("kind: tornado,", "kind: tornado, x: M,"), "means nothing"),
        (("name: best", "point: kp1=2"), "kp1=2"),
        (("name: best", "name: 1-dominant"), "this name"),
        (("sensitivity:\n", "sensitivity:\n  step: much\n"), "step"),
        (("sensitivity:\n", "sensitivity:\n  objectiv: time_s\n"), "objective"),
        (("DRAM.bandwidth", "DRAM.bandwith"), "bandwidth"),
    ],
)
def test_mistakes_in_sweep_files_are_found_when_they_are_read(changed, named, tmp_path) -> None:
    with pytest.raises(ConfigError, match=named):
        check_figures(load(tmp_path, SWEEP.replace(*changed)))


def test_sweeps_ask_for_nothing_by_default(tmp_path: Path) -> None:
    plain = SWEEP[: SWEEP.index("sensitivity:")]
    assert load(tmp_path, plain).sensitivity is None
    assert load(tmp_path, plain + "sensitivity: false\n").sensitivity is None
    everything = load(tmp_path, plain + "sensitivity: true\n").sensitivity
    assert everything is not None and everything.plan == make_plan()


def test_example_sweep_can_be_made(repository: Path) -> None:
    sweep = load_sweep(repository / "sweeps/sensitivity_llama2_70b.yaml")
    check_figures(sweep)
    assert sweep.count <= 100


def snakemake(project: Path, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_workflow_analyses_points_again_only_if_what_is_asked_changed(
    repository: Path, tmp_path: Path
) -> None:
    for name in ("rules", "profiles"):
        shutil.copytree(repository / name, tmp_path / name)
    shutil.copy(repository / "Snakefile", tmp_path)
    for name in (H100, "configs/model-config/GEMM.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps/small.yaml"
    file.write_text(SWEEP.replace("[256, 8192]", "[256]"))
    config = ["--config", "sweeps=sweeps/small.yaml"]
    run = snakemake(tmp_path, repository, *config)
    assert run.returncode == 0, run.stderr
    results = tmp_path / "results/small"
    assert len(pd.read_parquet(results / "sensitivity.parquet")["point"].unique()) == 3
    assert (results / "sensitivity/plots/best.png").exists()

    file.write_text(
        SWEEP.replace("[256, 8192]", "[256]").replace("  plots:", "  step: 2\n  plots:")
    )
    dry = snakemake(tmp_path, repository, "--dry-run", *config)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", dry.stdout + dry.stderr, re.MULTILINE))
    assert jobs["sensitivity_point"] == "3"
    assert "point" not in jobs and "gather" not in jobs
