"""The workflow as users run it: real Snakemake in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from deepflow.sweep.expand import load_sweep

GEMM = """\
description: A few multiplications
hardware: [hardware/first.yaml, hardware/second.yaml]
model: configs/model-config/GEMM.yaml
set: {model.backward: false}
grid:
  model.M: [128, 256]
  model.N: [512]
"""
PLOT = "plots: [{kind: line, x: M, y: time_s, hue: hardware}]\n"
BREAK_ON_PURPOSE = """\
import os

if os.path.exists("broken"):
    import deepflow.prediction

    predict = deepflow.prediction.predict

    def predict_or_fail(hardware, model):
        if model.M == 256:
            raise deepflow.prediction.DeepFlowError("broken on purpose")
        return predict(hardware, model)

    deepflow.prediction.predict = predict_or_fail
"""


@dataclass(frozen=True)
class Run:
    """What one call of Snakemake did. ``made`` are the files below results/ that it wrote."""

    code: int
    text: str
    made: frozenset[str]

    @property
    def points(self) -> set[str]:
        return {Path(name).stem for name in self.made if "/points/" in name}


@dataclass(frozen=True)
class Project:
    """A scratch copy of the workflow with two hardware files that a test may edit."""

    folder: Path
    repository: Path

    def sweep(self, name: str, text: str) -> None:
        (self.folder / "sweeps" / f"{name}.yaml").write_text(text)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def snakemake(self, *arguments: str, within: Sequence[str] = ()) -> Run:
        before = self._results()
        with self.start(*arguments, within=within) as process:
            text, _ = process.communicate()
        after = self._results()
        made = {name for name in after if after[name] != before.get(name)}
        return Run(process.returncode, text, frozenset(made))

    def start(self, *arguments: str, within: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Snakemake in a session of its own, ``within`` a command that runs commands."""
        paths = [str(self.folder / "python"), str(self.repository)]
        return subprocess.Popen(
            [*within, sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, sweep: str, *arguments: str, within: Sequence[str] = ()) -> Run:
        return self.snakemake(*arguments, "--config", f"sweeps=sweeps/{sweep}.yaml", within=within)

    def table(self, sweep: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "results" / sweep / "summary.parquet")

    def _results(self) -> dict[str, int]:
        files = (path for path in (self.folder / "results").rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.folder)): path.stat().st_mtime_ns
            for path in files
            if "logs" not in path.parts
        }


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Project:
    return new_project(tmp_path / "a project", repository)


def new_project(folder: Path, repository: Path) -> Project:
    """A copy of the workflow in ``folder``, which is made."""
    folder.mkdir()
    shutil.copy(repository / "Snakefile", folder)
    for part in ("rules", "profiles", "configs"):
        shutil.copytree(repository / part, folder / part)
    for part in ("hardware", "sweeps", "python"):
        (folder / part).mkdir()
    source = repository / "configs" / "hardware-config" / "nvidia_h100_sxm_80gb.yaml"
    for name in ("first", "second"):
        text = source.read_text().replace("name: nvidia_h100_sxm_80gb", f"name: {name}")
        (folder / "hardware" / f"{name}.yaml").write_text(text)
    return Project(folder, repository)


def test_the_life_of_a_sweep(project: Project) -> None:
    project.sweep("life", GEMM + PLOT + "csv: true\n")
    first, second = (
        {f"hardware={name}+M={rows}+N=512" for rows in (128, 256)} for name in ("first", "second")
    )

    planned = project.run("life", "--dry-run")
    assert planned.code == 0
    assert "sweep life: 4 points, one job each" in planned.text
    assert "output files have to be generated" in planned.text
    assert not planned.made

    whole = project.run("life")
    assert whole.code == 0, whole.text
    assert whole.points == first | second
    assert "8 of 8 steps (100%) done" in whole.text
    expected = {"summary.parquet", "summary.csv", "plots/1-line.png", "plots/1-line.svg"}
    assert {f"results/life/{name}" for name in expected} <= whole.made
    table = project.table("life")
    assert table["hardware"].tolist() == ["first", "first", "second", "second"]
    assert table["M"].tolist() == [128, 256, 128, 256]
    assert not list((project.folder / "results").rglob("*.tmp"))

    # Nothing reruns for a file that is touched, or says the same in other words.
    for file in project.folder.rglob("*.yaml"):
        file.touch()
    project.edit("sweeps/life.yaml", "grid:", "# the axes\ngrid:")
    project.edit("hardware/first.yaml", "3352 GB/s", "3.352 TB/s")
    assert project.run("life").made == frozenset()

    # One value of one machine: its points, and what is made from them.
    project.edit("hardware/second.yaml", "3352 GB/s", "4 TB/s")
    planned = project.run("life", "--dry-run")
    assert re.search(r"^point +2$", planned.text, re.MULTILINE)
    assert "params have changed since last execution:\n        point" in planned.text
    changed = project.run("life")
    assert changed.points == second
    assert "results/life/summary.parquet" in changed.made

    # One more value on an axis: the new points only.
    project.edit("sweeps/life.yaml", "[128, 256]", "[128, 192, 256]")
    added = project.run("life")
    assert added.points == {"hardware=first+M=192+N=512", "hardware=second+M=192+N=512"}
    assert project.table("life")["M"].tolist() == [128, 192, 256] * 2

    # A plot of its own.
    project.edit("sweeps/life.yaml", "kind: line", "title: Another title, kind: line")
    assert {Path(name).name for name in project.run("life").made} == {"1-line.png", "1-line.svg"}


def test_impossible_points_are_rows_and_do_not_stop_a_sweep(project: Project) -> None:
    project.sweep(
        "splits",
        "hardware: hardware/first.yaml\nmodel: configs/model-config/Llama2-7B.yaml\n"
        "set: {model.global_batch_size: 8, parallelism.recompute: full, parallelism.zero: 1}\n"
        "grid: {parallelism.tensor: [3, 8]}\n",
    )
    assert project.run("splits").code == 0
    table = project.table("splits").set_index("tensor")
    assert table["status"].to_dict() == {3: "infeasible", 8: "ok"}
    assert table.loc[3, "reason"]
    assert project.run("splits").made == frozenset()


def test_a_failing_point_leaves_the_others_and_is_retried_alone(project: Project) -> None:
    (project.folder / "python" / "sitecustomize.py").write_text(BREAK_ON_PURPOSE)
    (project.folder / "broken").touch()
    project.sweep("fails", GEMM.replace("[128, 256]", "[64, 128, 256]"))
    failed = project.run("fails")
    assert failed.code == 1
    assert "broken on purpose" in failed.text
    assert failed.points == {
        f"hardware={name}+M={rows}+N=512" for name in ("first", "second") for rows in (64, 128)
    }
    log = project.folder / "results/fails/logs/points/hardware=first+M=256+N=512.log"
    assert log.read_text().splitlines()[-1] == "deepflow: error: broken on purpose"

    (project.folder / "broken").unlink()
    retried = project.run("fails")
    assert retried.code == 0, retried.text
    assert retried.points == {f"hardware={name}+M=256+N=512" for name in ("first", "second")}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_keeps_its_points_and_goes_on(project: Project, end: int) -> None:
    project.sweep("long", GEMM.replace("[128, 256]", "{start: 1, stop: 150, step: 1}"))
    points = project.folder / "results" / "long" / "points"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in a job that a shell put into the background; Snakemake would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with project.start("--config", "sweeps=sweeps/long.yaml") as process:
        while len(list(points.glob("*.json"))) < 10:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(end)
        try:
            assert process.wait(60) != 0
        finally:
            process.kill()
    kept = {path.stem for path in points.glob("*.json")}
    assert len(kept) < 300
    if end == signal.SIGKILL:
        assert project.snakemake("--unlock").code == 0
    resumed = project.run("long")
    assert resumed.code == 0, resumed.text
    # Jobs that were under way when the signal came are made again.
    assert len(resumed.points & kept) <= 2
    assert len(project.table("long")) == 300


def test_one_point_is_a_target_with_and_without_shards(project: Project) -> None:
    project.sweep("single", GEMM + "points_per_job: 1\n")
    project.sweep("large", GEMM + "points_per_job: 2\n")
    records = []
    for sweep in ("single", "large"):
        target = f"results/{sweep}/points/hardware=second+M=256+N=512.json"
        done = project.snakemake(target)
        assert done.code == 0, done.text
        assert done.made == {target}
        records.append(json.loads((project.folder / target).read_text()))
    assert records[0] == records[1]
    assert records[0]["configuration"]["model"]["M"] == 256

    # The first line of the log is the command, and it works by itself.
    log = project.folder / "results/single/logs/points/hardware=second+M=256+N=512.log"
    command = log.read_text().splitlines()[0]
    (project.folder / target.replace("large", "single")).unlink()
    environment = {**os.environ, "PYTHONPATH": str(project.repository)}
    subprocess.run(command, shell=True, cwd=project.folder, env=environment, check=True)
    again = project.folder / target.replace("large", "single")
    assert json.loads(again.read_text()) == records[0]

    unknown = project.snakemake("results/single/points/hardware=second+M=3+N=512.json")
    assert unknown.code == 1
    assert "Error: sweeps/single.yaml: the sweep has no point 'hardware=second" in unknown.text
    assert "Traceback" not in unknown.text


def test_shards_rerun_where_their_points_changed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GEMM.replace("[128, 256]", "{start: 1, stop: 50, step: 1}")
    project.sweep("large", text + "points_per_job: 25\n")
    whole = project.run("large")
    assert whole.code == 0, whole.text
    assert "sweep large: 100 points, 4 shards of about 25" in whole.text
    shards = {name for name in whole.made if "/shards/" in name}
    assert len(shards) == 4
    assert not whole.points
    assert len(project.table("large")) == 100
    assert project.run("large").made == frozenset()

    monkeypatch.chdir(project.folder)
    before = load_sweep("sweeps/large.yaml").shards
    project.edit("sweeps/large.yaml", "stop: 50", "stop: 49")
    after = load_sweep("sweeps/large.yaml").shards
    expected = {
        f"results/large/shards/{name}.parquet"
        for name in after
        if after[name].digest != before[name].digest
    }
    assert 0 < len(expected) < 4
    changed = project.run("large")
    assert {name for name in changed.made if "/shards/" in name} == expected
    assert project.table("large")["M"].max() == 49


def test_a_mistake_is_one_message_and_keeps_what_is_finished(project: Project) -> None:
    project.sweep("typo", GEMM)
    assert project.run("typo").code == 0
    project.edit("sweeps/typo.yaml", "model.M", "model.MM")
    wrong = project.run("typo")
    assert wrong.code == 1
    errors = [line for line in wrong.text.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "sweeps/typo.yaml: grid.model.MM: no such key" in errors[0]
    assert "Traceback" not in wrong.text
    assert len(project.table("typo")) == 4
    # The lock is gone too, and other sweeps still work.
    project.edit("sweeps/typo.yaml", "model.MM", "model.M")
    assert project.run("typo").made == frozenset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "sweep=sweeps/x.yaml"), "unknown key 'sweep'; did you mean 'sweeps'?"),
        (("--config", "sweeps=sweeps/nowhere.yaml"), "sweeps/nowhere.yaml: no such file"),
        (("--config", "sweeps=,"), "sweeps = ',' is neither a file nor a list of files"),
        (("results/nowhere/summary.parquet",), "no sweep is called 'nowhere'"),
        (("results/known/plots/x.png",), "sweeps/known.yaml: the sweep has no plot 'x'"),
        (("results/known/shards/1of9.parquet",), "sweeps/known.yaml: the sweep has no shard"),
    ],
)
def test_wrong_targets_are_explained(
    project: Project, arguments: tuple[str, ...], message: str
) -> None:
    project.sweep("known", GEMM)
    done = project.snakemake("--dry-run", *arguments)
    assert done.code == 1
    assert f"Error: {message}" in done.text or f"Error: config: {message}" in done.text
    assert "Traceback" not in done.text


def test_a_damaged_point_is_named(project: Project) -> None:
    project.sweep("damage", GEMM)
    assert project.run("damage").code == 0
    bad = "results/damage/points/hardware=first+M=128+N=512.json"
    (project.folder / bad).write_text('{"cut')
    (project.folder / "results/damage/summary.parquet").unlink()
    done = project.run("damage")
    assert done.code == 1
    assert f"{bad} is damaged (it is now {bad}.unusable); run the sweep again" in done.text
    assert project.run("damage").code == 0


def test_the_workflow_passes_the_lint(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
