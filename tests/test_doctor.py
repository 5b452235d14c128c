"""``deepflow doctor`` finds what is wrong, and says so with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.doctor import GOOD, NOTE, PROBLEM, findings


def states(results: Path) -> dict[str, str]:
    return {item.what: item.state for item in findings(results)}


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_clone_has_no_problems(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["what"] for item in found} >= {"DeepFlow", "Python", "results", "SLURM"}


def test_a_folder_without_the_workflow_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = states(Path("results"))
    assert found["workflow"] == NOTE
    assert found["results"] == GOOD
    assert not (tmp_path / "results").exists(), "looking must not make anything"


def test_a_simulator_that_is_named_but_not_there_is_a_problem(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("ASTRA_SIM_BINARY", "/nowhere/AstraSim")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "no such program: /nowhere/AstraSim" in printed.out
    assert "1 to mend: ASTRA-sim" in printed.err


def test_results_that_cannot_be_written_are_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text("a file, not a folder")
    assert states(file)["results"] == PROBLEM


def test_a_cluster_that_answers_and_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    for name in ("sbatch", "scancel"):
        program(programs, name, "exit 0")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    program(programs, "squeue", "echo 12 RUNNING")
    (slurm,) = (item for item in findings(tmp_path) if item.what == "SLURM")
    assert slurm.state == GOOD and "1 of your jobs" in slurm.text
    program(programs, "squeue", "echo cannot connect >&2; exit 1")
    (slurm,) = (item for item in findings(tmp_path) if item.what == "SLURM")
    assert slurm.state == NOTE and "cannot connect" in slurm.text
