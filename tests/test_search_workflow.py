"""Searches as Snakemake targets, in a copy of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SEARCH = """\
hardware: configs/old-configs/v100.yaml
model: configs/old-configs/v100.yaml
set: {model.layer_size: 512}
choices: {model.batch_size: [16, 32]}
variables: {hardware.area_breakdown.core: {low: 100, high: 300}}
objectives: [time_s, energy_j]
optimizer: {evaluations: 12, starts: 2}
"""


@pytest.fixture
def project(repository, tmp_path) -> Path:
    for name in ("rules", "profiles"):
        shutil.copytree(repository / name, tmp_path / name)
    shutil.copy(repository / "Snakefile", tmp_path)
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches/small.yaml").write_text(SEARCH)
    shutil.copytree(repository / "configs/old-configs", tmp_path / "configs/old-configs")
    return tmp_path


def snakemake(project: Path, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_starts_tables_and_figures_are_made_and_again_when_their_meaning_changes(
    project, repository
):
    results = project / "results/searches/small"
    target = "results/searches/small/best.txt"
    dry = snakemake(project, repository, "--dry-run", target)
    assert dry.returncode == 0, dry.stderr
    assert not results.exists()

    run = snakemake(project, repository, target)
    assert run.returncode == 0, run.stderr
    assert "deepflow predict" in (results / "best.txt").read_text()
    assert len(pd.read_parquet(results / "evaluations.parquet")) == 2 * 2 * 12
    assert {path.stem for path in (results / "plots").glob("*.png")} == {
        "convergence",
        "cases",
        "pareto",
    }

    file = project / "searches/small.yaml"
    file.write_text("# a remark\n" + SEARCH.replace("[16, 32]", "[16, 64]"))
    before = {path: path.stat().st_mtime_ns for path in results.glob("runs/*/*.parquet")}
    again = snakemake(project, repository, target)
    assert again.returncode == 0, again.stderr
    after = {path: path.stat().st_mtime_ns for path in results.glob("runs/*/*.parquet")}
    made = {path.parent.name for path in after if before.get(path) != after[path]}
    assert made == {"batch_size=64"}


def test_unknown_search_and_case_are_one_line(project, repository):
    for target, named in (
        ("results/searches/smal/best.txt", "small"),
        ("results/searches/small/runs/batch_size=17/0.parquet", "batch_size=16"),
    ):
        run = snakemake(project, repository, "--dry-run", target)
        assert run.returncode == 1
        assert named in run.stderr
        assert "Traceback" not in run.stderr
