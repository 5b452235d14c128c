"""Collectives of the user's ASTRA-sim as files of the workflow: real Snakemake, a stand-in."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from astra_stand_in import StandIn
from test_workflow import Project, project  # noqa: F401 (a fixture)

SWEEP = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama3.1-8B.yaml
set:
  hardware.system_hierarchy.num_nodes: 1
  parallelism.tensor: 2
  backend.model: astra
  backend.astra.simulator: auto
grid:
  model.global_batch_size: [16, 32, 64]
"""


@pytest.fixture
def astra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    program = StandIn(tmp_path / "build")
    monkeypatch.setenv("ASTRA_SIM_BINARY", str(program.path))
    return program


def collectives(project: Project) -> set[str]:  # noqa: F811
    folder = project.folder / "results" / "collectives"
    return {f"results/collectives/{path.name}" for path in folder.glob("*.json")}


def test_points_and_sweeps_share_collectives(project: Project, astra: StandIn) -> None:  # noqa: F811
    project.sweep("first", SWEEP)
    project.sweep("second", SWEEP.replace("16, 32, 64", "32, 128"))

    planned = project.run("first", "--dry-run")
    count = int(re.search(r"^collective +(\d+)$", planned.text, re.MULTILINE)[1])
    assert re.search(r"^point +3$", planned.text, re.MULTILINE)
    assert astra.runs() == 0

    whole = project.run("first")
    assert whole.code == 0, whole.text
    logs = (project.folder / "results/first/logs/points").glob("*.log")
    assert all("--collectives results/collectives" in log.read_text() for log in logs)
    assert astra.runs() == count == len(collectives(project))
    assert len(whole.points) == 3
    table = project.table("first")
    assert table["backend_used"].tolist() == ["astra"] * 3
    assert project.run("first").made == frozenset()
    other = project.run("second")
    assert astra.runs() == 0
    assert len(other.points) == 2

    # A file that is gone is made again, and so is what is made from it.
    lost = sorted(collectives(project))[0]
    (project.folder / lost).unlink()
    mended = project.run("first")
    assert astra.runs() == 1
    assert collectives(project) & mended.made == {lost}
    assert mended.points == whole.points
    assert project.table("first").equals(table)

    # Another build of ASTRA-sim: other targets. The embedded simulator: none.
    before = collectives(project)
    astra.change()
    built = project.run("first")
    assert built.points == whole.points
    assert astra.runs() == len(collectives(project) - before) == count
    assert (project.table("first")["time_s"] > table["time_s"]).all()
    project.edit("sweeps/first.yaml", "simulator: auto", "simulator: embedded")
    embedded = project.run("first", "--dry-run")
    assert re.search(r"^point +3$", embedded.text, re.MULTILINE)
    assert "collective" not in embedded.text


def test_a_failure_falls_back_and_is_tried_again(project: Project, astra: StandIn) -> None:  # noqa: F811
    project.sweep("fails", SWEEP)
    astra.break_down()
    failed = project.run("fails")
    assert failed.code == 0, failed.text
    count = astra.runs()
    assert count == len(collectives(project))
    table = project.table("fails")
    assert table["backend_used"].tolist() == ["analytical"] * 3
    assert table["fallback_reason"].str.contains("broken on purpose").all()

    again = project.run("fails")
    assert again.code == 0, again.text
    assert astra.runs() == count
    astra.mend()
    mended = project.run("fails")
    assert astra.runs() == count
    assert mended.points == failed.points
    assert project.table("fails")["backend_used"].tolist() == ["astra"] * 3
    assert project.run("fails").made == frozenset()


def test_shards_and_points_of_their_own_agree(project: Project, astra: StandIn) -> None:  # noqa: F811
    project.sweep("single", SWEEP)
    project.sweep("large", SWEEP + "points_per_job: 2\n")
    whole = project.run("large")
    assert whole.code == 0, whole.text
    shards = {file for file in whole.made if "/shards/" in file}
    assert not collectives(project)
    assert project.run("large").made == frozenset()
    target = "results/single/points/global_batch_size=32.json"
    done = project.snakemake(target)
    assert done.code == 0, done.text
    assert done.points == {"global_batch_size=32"}
    table = project.table("large").set_index("global_batch_size")
    assert json.loads((project.folder / target).read_text())["time_s"] == table.loc[32, "time_s"]
    # A collective is a target like any other.
    file = sorted(collectives(project))[0]
    (project.folder / file).unlink()
    astra.runs()
    assert project.run("single", file).code == 0
    assert astra.runs() == 1
    name = hashlib.sha256(b"another").hexdigest()
    unknown = project.run("single", f"results/collectives/{name}.json")
    assert unknown.code == 1
    assert f"Error: no point of single needs {name}" in unknown.text
    # Another build of ASTRA-sim.
    astra.change()
    built = project.run("large")
    assert {file for file in built.made if "/shards/" in file} == shards
    assert (project.table("large").set_index("global_batch_size")["time_s"] > table["time_s"]).all()
