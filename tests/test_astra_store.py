"""Results of single collectives as files: the same predictions, with fewer runs of ASTRA-sim."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from astra_stand_in import StandIn
from deepflow import load_hardware, load_model, predict
from deepflow.astra import hybrid
from deepflow.astra.runner import AstraSimError
from deepflow.astra.store import last_failure, stored_collectives, write_collective
from deepflow.cli import main
from deepflow.errors import DeepFlowError
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.run import collectives_of

SWEEP = """\
hardware: {root}/configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: {root}/configs/model-config/Llama3.1-8B.yaml
set:
  model.global_batch_size: 16
  parallelism.pipeline: 2
  hardware.system_hierarchy.num_nodes: 1
  backend.model: astra
  backend.astra.simulator: binary
  backend.astra.binary: {binary}
grid:
  parallelism.tensor: [1, 2]
"""


@pytest.fixture
def astra(tmp_path: Path) -> StandIn:
    # Results kept in this process would hide runs.
    hybrid._simulated_cycles.cache_clear()
    return StandIn(tmp_path / "build")


@pytest.fixture
def points(astra: StandIn, tmp_path: Path, repository: Path):
    """The points of the sweep by their degree of tensor parallelism, with changes of its text."""

    def make(old: str = "grid:", new: str = "grid:"):
        text = SWEEP.format(root=repository, binary=astra.path)
        assert old in text
        (tmp_path / "sweep.yaml").write_text(text.replace(old, new))
        found = load_sweep(tmp_path / "sweep.yaml").points()
        return {point.axis_values["tensor"]: point for point in found}

    return make


def predicted(point):
    overrides = point.hardware_overrides
    hardware = load_hardware(point.base.hardware_file, overrides)
    return predict(hardware, load_model(point.base.model_file, point.model_overrides))


def make_files(needed, folder: Path) -> list[str]:
    """Writes what is not there, as the workflow does; returns the problems."""
    return [
        write_collective(
            stored.meaning,
            stored.binary,
            stored.timeout,
            last_failure(folder / f"{name}.json"),
            folder / f"{name}.json",
        )
        for name, stored in needed.items()
    ]


def test_files_replace_every_run_and_change_no_prediction(astra, points, tmp_path):
    for point in points().values():
        needed = collectives_of(point)
        assert astra.runs() == 0
        alone = predicted(point)
        assert astra.runs() == len(needed)
        assert make_files(needed, tmp_path / "files") == [""] * len(needed)
        assert astra.runs() == len(needed)
        hybrid._simulated_cycles.cache_clear()
        with stored_collectives(tmp_path / "files"):
            assert predicted(point) == alone
        assert astra.runs() == 0


def test_a_missing_file_is_simulated_and_a_damaged_one_is_named(astra, points, tmp_path):
    needed = collectives_of(points()[2])
    make_files(needed, tmp_path)
    lost, cut, *_ = (tmp_path / f"{name}.json" for name in needed)
    lost.unlink()
    astra.runs()
    with stored_collectives(tmp_path):
        predicted(points()[2])
    assert astra.runs() == 1
    for text in ('{"cut', "[]", '{"cycles": null, "problem": "", "last_failure": ""}'):
        cut.write_text(text)
        assert last_failure(cut), "it has to be made again"
        with stored_collectives(tmp_path), pytest.raises(DeepFlowError, match=f"{cut} is damaged"):
            predicted(points()[2])


def test_a_name_stands_for_all_that_a_result_depends_on(astra, points, tmp_path):
    def names(*change):
        return set(collectives_of(points(*change)[2]))

    first = names()
    assert len(first) > 1
    # What does not matter to the simulator shares files; what does has its own.
    assert names("grid:", "  hardware.sw_param.kernel_launch_overhead: 9 us\ngrid:") == first
    assert names("grid:", "  backend.astra.timeout: 5 s\ngrid:") == first
    assert not first & names("grid:", "  backend.astra.dataset_splits: 2\ngrid:")
    assert first & names("global_batch_size: 16", "global_batch_size: 32")
    moved = astra.path.rename(tmp_path / "elsewhere")
    assert names(str(astra.path), str(moved)) == first
    moved.rename(astra.path)
    astra.change()
    assert not first & names()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("simulator: binary", "simulator: embedded"),
        ("backend.model: astra", "backend.model: analytical"),
        ("grid:", "  backend.astra.mode: full_astrasim_hierarchical\ngrid:"),
        ("grid:", "  hardware.network_topology.intra_node: torus\ngrid:"),
        ("  backend.astra.binary: ", "  backend.astra.binary: /nowhere"),
        ("  parallelism.pipeline: 2", "  parallelism.pipeline: 3"),
    ],
)
def test_nothing_is_needed_where_no_single_collective_runs_the_program(astra, points, old, new):
    assert collectives_of(points()[2])
    assert collectives_of(points(old, new)[2]) == {}
    assert astra.runs() == 0


def test_a_failure_is_a_result_that_shows_until_it_is_mended(astra, points, tmp_path):
    point = points()[2]
    needed = collectives_of(point)
    file = tmp_path / f"{next(iter(needed))}.json"
    astra.break_down()
    alone = predicted(point)
    assert "broken on purpose" in alone.fallback_reason
    assert make_files(needed, tmp_path)[0] == alone.fallback_reason
    with stored_collectives(tmp_path):
        assert predicted(point) == alone
    failed = last_failure(file)
    assert failed
    make_files(needed, tmp_path)
    again = last_failure(file)
    assert again not in ("", failed)
    astra.mend()
    make_files(needed, tmp_path)
    assert last_failure(file) == again, "what made the file is still true"
    with stored_collectives(tmp_path):
        assert predicted(point).backend_used == "astra"


def test_input_that_cannot_be_simulated_is_no_failure_of_the_program(astra, points, tmp_path):
    stored = next(iter(collectives_of(points()[2]).values()))
    network = replace(stored.simulation.network, bandwidth=(0.0,))
    wrong = replace(stored, simulation=replace(stored.simulation, network=network))
    assert "bandwidth" in make_files({"wrong": wrong}, tmp_path)[0]
    assert last_failure(tmp_path / "wrong.json") == ""
    assert astra.runs() == 0


def test_the_command_makes_the_same_file(astra, points, tmp_path, capsys):
    name, stored = next(iter(collectives_of(points()[2]).items()))
    make_files({name: stored}, tmp_path)
    by_hand = tmp_path / "by hand.json"
    command = ["astra-collective", stored.meaning, "--binary", str(astra.path)]
    assert main([*command, "--output", str(by_hand)]) == 0
    assert by_hand.read_text() == (tmp_path / f"{name}.json").read_text()
    assert json.loads(by_hand.read_text())["cycles"] > 0

    astra.break_down()
    assert main([*command, "--output", str(by_hand)]) == 0
    assert "no result" in capsys.readouterr().err
    astra.mend()
    astra.change()
    assert main([*command, "--output", str(by_hand)]) == 1
    assert "changed since the workflow was started" in capsys.readouterr().err
    for text in ("", "[]", "{}", '{"kind": "ALL_REDUCE", "size": 1, "network": {}, "system": 3}'):
        assert main(["astra-collective", text, *command[2:], "--output", str(by_hand)]) == 1
        assert "does not describe a collective" in capsys.readouterr().err


def test_a_failure_is_an_error_where_that_is_asked_for(astra, points, tmp_path):
    point = points("grid:", "  backend.astra.fallback: error\ngrid:")[2]
    astra.break_down()
    make_files(collectives_of(point), tmp_path)
    with stored_collectives(tmp_path), pytest.raises(AstraSimError, match="broken on purpose"):
        predicted(point)


def test_the_stand_in_is_what_it_says(astra):
    assert subprocess.run([astra.path], check=False, capture_output=True).returncode == 1
    assert (astra.runs(), astra.runs()) == (1, 0)
