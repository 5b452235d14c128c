"""Reports: what they say of a sweep, and that nothing in a sweep can break them."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cli import main
from deepflow.errors import DeepFlowError
from deepflow.report import selection
from deepflow.report.content import gather_content, sweep_subject
from report_cases import (
    HARMFUL,
    TRAINING,
    TWO_MACHINES,
    column,
    content_of,
    predicted,
    reported,
)

INFERENCE = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama3.1-8B.yaml
framework: configs/framework-config/vllm.yaml
points_per_job: 1000
set: {model.run_type: inference, model.prompt_len: 512, model.output_len: 64}
grid: {parallelism.tensor: [1, 2], model.global_batch_size: [1, 8]}
"""
LSTM = """\
hardware: configs/hardware-config/nvidia_a100_sxm_80gb.yaml
model: configs/model-config/LSTM.yaml
points_per_job: 1000
set: {model.batch_size: 64, model.layer_size: 1024, model.vocab_size: 10000}
grid: {parallelism.data: [1, 2, 4]}
"""
COLLECTIVES = """\
hardware: configs/hardware-config/nvidia_a100_sxm_80gb.yaml
model: configs/model-config/collective.yaml
points_per_job: 1000
grid: {model.message_size: [1 MiB, 64 MiB]}
"""
ONE_POINT = """\
hardware: configs/hardware-config/nvidia_a100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
points_per_job: 1000
"""
IMPOSSIBLE = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-70B.yaml
points_per_job: 1000
grid: {parallelism.pipeline: [3, 7]}
plots: [{kind: line, x: pipeline, y: time_s}, {kind: breakdown}]
"""


@pytest.fixture(autouse=True)
def in_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


@pytest.fixture(scope="module")
def training(
    tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> tuple[dict[str, Any], Path, pd.DataFrame]:
    """Content and page of one sweep, and its table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        content, page = reported(tmp_path_factory.mktemp("training"), TRAINING)
    return content, page, pd.read_parquet(page.with_name("summary.parquet"))


# --- What is said of a sweep -----------------------------------------------------------------


def test_the_page_holds_every_value_of_the_table(training):
    _, page, table = training
    content = content_of(page)
    assert content["points"] == content["shown"] == len(table)
    for name in table:
        if table[name].isna().all():
            continue
        known = [None if pd.isna(value) else value for value in table[name]]
        known = [str(value).lower() if isinstance(value, bool) else value for value in known]
        assert column(content, name) == known, name


def test_statuses_and_reasons_count_all_points(training):
    content, _, table = training
    assert content["statuses"] == table["status"].value_counts().to_dict()
    assert sum(reason["count"] for reason in content["reasons"]) == (table["status"] != "ok").sum()
    for reason in content["reasons"]:
        row = table.set_index("point").loc[reason["point"]]
        assert (row["status"], row["reason"]) == (reason["status"], reason["example"])


def test_the_best_points_are_those_of_the_figures_goal(training):
    content, _, table = training
    assert content["goal"]["column"] == "tokens_per_second"
    assert content["goal"]["maximum"]
    ordered = table[table["status"] == "ok"].nlargest(selection.BEST, "tokens_per_second")
    points = column(content, "point")
    assert [points[row] for row in content["best"]] == ordered["point"].tolist()


def test_no_point_of_a_front_is_beaten_and_every_other_is(training):
    content, _, table = training
    (front,) = content["fronts"]
    assert (front["x"], front["y"]) == ("peak_memory_bytes", "tokens_per_second")
    candidates = table[table["status"] != "infeasible"]
    memory, speed = candidates["peak_memory_bytes"], candidates["tokens_per_second"]
    beaten = [
        ((memory <= m) & (speed >= s) & ((memory < m) | (speed > s))).any()
        for m, s in zip(memory, speed, strict=True)
    ]
    assert set(front["rows"]) == set(candidates.index[~np.array(beaten)])


def test_a_figure_draws_what_its_goal_asks_for(training):
    content, _, table = training
    line = content["figures"][0]
    fits = table[table["status"] == "ok"]
    best = fits.groupby(["pipeline", "tensor"])["tokens_per_second"].max()
    drawn = table.loc[line["rows"]].set_index(["pipeline", "tensor"])["tokens_per_second"]
    pd.testing.assert_series_equal(drawn.sort_index(), best.sort_index())
    assert f"{len(fits)} of {len(table)} points" in line["caption"]


def test_breakdowns_add_up(training):
    content, _, table = training
    known = table[table["time_s"].notna()]
    for parts, total in (("time_parts", "time_s"), ("memory_parts", "peak_memory_bytes")):
        sums = known[content[parts]].sum(axis=1)
        np.testing.assert_allclose(sums, known[total], rtol=1e-9)


def test_commands_predict_the_same_points(training, capsys):
    content, _, table = training
    words, lines = content["commands"]["words"], content["commands"]["lines"]
    for row in (content["best"][0], len(table) - 1):
        command = shlex.split(" ".join(words[code] for code in lines[row]))
        assert command[0] == "deepflow"
        assert main([*command[1:], "--json", "--allow-infeasible"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["digest"] == table["digest"][row]
        assert found["status"] == table["status"][row]


def test_differences_between_files_have_units(tmp_path):
    content, _ = reported(tmp_path, TWO_MACHINES)
    hardware, model = content["configurations"]
    assert hardware["names"] == ["nvidia_a100_sxm_80gb", "nvidia_h100_sxm_80gb"]
    assert not model["rows"]
    rows = {row["key"]: row for row in hardware["rows"]}
    bandwidth = rows["tech_param.DRAM.bandwidth"]
    assert bandwidth["unit"] == "bytes/s"
    assert bandwidth["values"][0] < bandwidth["values"][1]
    assert all(len(set(map(str, row["values"]))) > 1 for row in hardware["rows"])
    assert content["goal"]["column"] == "flops_per_second_per_device"


def test_provenance_names_files_versions_and_backends(training):
    content, _, _ = training
    said = {name: value for _, lines in content["provenance"] for name, value in lines}
    assert said["sweep file"].endswith("sweep.yaml")
    assert said["backend used"] == f"analytical ({content['points']} points)"
    assert said["fallbacks"] == "none"
    assert {"numpy", "plotly", "Python", "fingerprint of all points"} <= said.keys()
    assert content["yaml"] == TRAINING


@pytest.mark.parametrize(
    ("text", "goal", "fitting"),
    [
        pytest.param(INFERENCE, "tokens_per_second", 4, id="inference"),
        pytest.param(LSTM, "tokens_per_second", 1, id="lstm"),
        pytest.param(COLLECTIVES, "time_s", 2, id="collectives"),
        pytest.param(ONE_POINT, "time_s", 1, id="one point"),
        pytest.param(IMPOSSIBLE, None, 0, id="nothing can be run"),
    ],
)
def test_every_kind_of_sweep_has_a_page(tmp_path, text, goal, fitting):
    content, page = reported(tmp_path, text)
    assert content["statuses"].get("ok", 0) == fitting
    assert (content["goal"] or {"column": None})["column"] == goal
    assert len(content["best"]) == fitting
    assert content_of(page)["points"] == content["points"]
    if not fitting:
        assert {reason["status"] for reason in content["reasons"]} == {"infeasible"}


def test_a_search_has_a_page_too(tmp_path, capsys):
    search = tmp_path / "small.yaml"
    search.write_text(
        "hardware: configs/old-configs/v100.yaml\n"
        "model: configs/old-configs/v100.yaml\n"
        "set: {model.layer_size: 512, model.batch_size: 16}\n"
        "budgets: {power: {total: hardware.power_breakdown.TDP, parts:"
        " [hardware.power_breakdown.core, hardware.power_breakdown.DRAM]}}\n"
        "objectives: time_s\n"
        "optimizer: {evaluations: 8}\n"
    )
    results = tmp_path / "results"
    assert main(["search", str(search), "--results", str(results)]) == 0
    summary = results / "evaluations.parquet"
    assert main(["report", str(search), "--summary", str(summary)]) == 0
    content = content_of(results / "report.html")
    table = pd.read_parquet(summary)
    assert content["points"] == len(table)
    fastest = column(content, "time_s")[content["best"][0]]
    assert fastest == table.loc[table["feasible"], "time_s"].min()
    command = content["commands"]
    words = [command["words"][code] for code in command["lines"][content["best"][0]]]
    capsys.readouterr()
    assert main([*shlex.split(" ".join(words))[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time_s"] == fastest
    search.write_text(search.read_text() + "# of another day\n")
    assert main(["report", str(search), "--summary", str(summary)]) == 1
    assert "other settings" in capsys.readouterr().err


# --- Samples of large sweeps -----------------------------------------------------------------


@given(
    total=st.integers(1, 300),
    limit=st.integers(1, 60),
    kept=st.lists(st.integers(0, 299), max_size=80),
)
def test_samples_keep_what_they_must_and_fill_up_to_the_limit(total, limit, kept):
    needed = sorted({row for row in kept if row < total})
    rows = selection.sample(total, [np.array(needed, int)], limit).tolist()
    assert rows == sorted(set(rows))
    assert set(needed) <= set(rows)
    assert len(rows) == min(total, max(limit, len(needed) if total > limit else total))
    assert rows == selection.sample(total, [np.array(needed, int)], limit).tolist()


def test_a_sampled_page_keeps_best_points_fronts_and_chosen_points(tmp_path, training, monkeypatch):
    whole, _, table = training
    monkeypatch.setattr(selection, "SHOWN", 24)
    monkeypatch.setattr(selection, "BEST", 3)
    sweep, summary = predicted(tmp_path, TRAINING)
    last = str(table["point"].iloc[-1])
    content = gather_content(sweep_subject(sweep), summary, [last])
    assert content["shown"] < content["points"] == len(table)
    names, all_names = column(content, "point"), column(whole, "point")
    assert [names[row] for row in content["best"]] == [all_names[row] for row in whole["best"][:3]]
    for part, whole_part in zip(content["fronts"], whole["fronts"], strict=True):
        assert [names[r] for r in part["rows"]] == [all_names[r] for r in whole_part["rows"]]
    assert [names[row] for row in content["chosen"]] == [last]
    assert content["statuses"] == whole["statuses"]
    assert content["reasons"] == whole["reasons"]
    expected = table.set_index("point").loc[names, "time_s"]
    np.testing.assert_array_equal(
        np.array(column(content, "time_s"), float), expected.to_numpy(float)
    )


# --- Nothing in a sweep breaks a page --------------------------------------------------------


def test_texts_of_a_sweep_cannot_leave_the_content(tmp_path):
    text = ONE_POINT + f"description: {json.dumps('a <b>question</b> ' + HARMFUL)}\n"
    _, page = reported(tmp_path, text)
    assert HARMFUL not in page.read_text(encoding="utf-8")
    assert HARMFUL in content_of(page)["question"]


def test_numbers_that_json_lacks_survive(tmp_path):
    sweep, summary = predicted(tmp_path, TWO_MACHINES)
    table = pq.read_table(summary)
    values: list[float | None] = [math.inf, -math.inf, None, *[1.5] * (len(table) - 3)]
    values[4] = math.nan
    place = table.schema.get_field_index("energy_j")
    changed = table.set_column(place, table.schema.field(place), [values])
    pq.write_table(changed, summary)
    content = gather_content(sweep_subject(sweep), summary)
    json.dumps(content, allow_nan=False)
    shown = column(content, "energy_j")
    assert shown[:4] == [math.inf, -math.inf, None, 1.5]
    assert math.isnan(shown[4])


def test_a_page_asks_for_nothing_from_anywhere(training):
    _, page, _ = training
    outside = page.read_text(encoding="utf-8").split('<script type="application/json"')[0]
    assert "http://" not in outside
    assert "https://" not in outside
    assert "default-src 'none'" in outside


# --- Mistakes --------------------------------------------------------------------------------


def test_results_of_another_sweep_are_refused(tmp_path):
    _, summary = predicted(tmp_path, TWO_MACHINES)
    other, _ = predicted(tmp_path, TWO_MACHINES.replace("8192", "4096"), "shorter")
    with pytest.raises(DeepFlowError, match="other settings"):
        gather_content(sweep_subject(other), summary)
    changed, _ = predicted(tmp_path, TWO_MACHINES.replace("false}", "true}"), "changed")
    with pytest.raises(DeepFlowError, match="other settings"):
        gather_content(sweep_subject(changed), summary)
    assert summary.exists()


def test_damaged_tables_are_set_aside(tmp_path):
    sweep, summary = predicted(tmp_path, TWO_MACHINES)
    whole = summary.read_bytes()
    middle = len(whole) // 8
    for damaged in (whole[:middle], whole[:200] + bytes(middle) + whole[200 + middle :]):
        summary.write_bytes(damaged)
        with pytest.raises(DeepFlowError, match="is damaged"):
            gather_content(sweep_subject(sweep), summary)
        assert not summary.exists()


def test_a_file_that_is_no_table_keeps_its_name(tmp_path):
    sweep, _ = predicted(tmp_path, ONE_POINT)
    other = tmp_path / "summary.csv"
    other.write_text("time_s\n1\n")
    with pytest.raises(DeepFlowError, match=r"summary\.csv is no table of results"):
        gather_content(sweep_subject(sweep), other)
    assert other.exists()


def test_missing_tables_and_unknown_points_are_errors_of_one_line(tmp_path, capsys):
    sweep, summary = predicted(tmp_path, ONE_POINT)
    capsys.readouterr()
    missing = str(tmp_path / "nowhere.parquet")
    for arguments, said in (
        (["--summary", missing], "is missing"),
        (["--summary", str(summary), "--points", "M=3"], "no point 'M=3'"),
    ):
        assert main(["report", sweep.file, *arguments]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("deepflow: error: ")
        assert said in error
        assert "\n" not in error


# --- The workflow ----------------------------------------------------------------------------


def test_the_workflow_makes_pages_and_its_own_report(tmp_path, repository):
    project = tmp_path / "a project"
    project.mkdir()
    shutil.copy(repository / "Snakefile", project)
    for part in ("rules", "configs"):
        shutil.copytree(repository / part, project / part)
    (project / "sweeps").mkdir()
    (project / "sweeps/small.yaml").write_text(TWO_MACHINES + "csv: true\n")

    def snakemake(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments, "--config", "sweeps=sweeps/small.yaml"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    snakemake("--cores", "2", "all", "report")
    assert content_of(project / "results/small/report.html")["points"] == 14
    snakemake("--report", "whole.zip", "all", "report")
    with zipfile.ZipFile(project / "whole.zip") as packed:
        names = packed.namelist()
        assert {Path(name).name for name in names} >= {"report.html", "summary.csv", "1-line.svg"}
        index = packed.read("whole/report.html").decode()
    assert "one of the figures that its file asks for" in index
