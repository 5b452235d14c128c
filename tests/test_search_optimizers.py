"""Searches: designs predicted together, fronts, cases searched together, progress."""

from __future__ import annotations

import io
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepflow.batch.recurrent import predict_on_devices
from deepflow.cli import main
from deepflow.config import with_overrides
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import derive_hardware
from deepflow.prediction import Prediction, predict
from deepflow.schedule.recurrent import recurrent_work
from deepflow.search.evaluate import Evaluation, Evaluator
from deepflow.search.evolution import evolve_front
from deepflow.search.gradient import design_of, draw
from deepflow.search.run import Progress, run_search
from deepflow.search.space import Axis, Budget, Search, Space, load_search
from deepflow.search.tables import evaluations_of, predict_command, run_table

FILE = """\
hardware: configs/old-configs/v100.yaml
model: configs/old-configs/v100.yaml
set:
  hardware.system_hierarchy.num_devices_per_node: 16
  hardware.system_hierarchy.num_nodes: {nodes}
  model.layer_size: 2048
  model.batch_size: 256
  model.num_layers: 4
  parallelism.data: auto
  hardware.system_hierarchy.intra_derate: 2
  hardware.area_breakdown.network.intra_node: 80
  hardware.system_hierarchy.kp1_inter: null
  hardware.system_hierarchy.kp2_inter: null
  hardware.system_hierarchy.lp_inter: null
  hardware.system_hierarchy.dp_inter: {data_between}
  {settings}
budgets:
  power:
    may_save: true
    total: hardware.power_breakdown.TDP
    parts: [hardware.power_breakdown.core, hardware.power_breakdown.DRAM,
      hardware.power_breakdown.L2, hardware.power_breakdown.L1, hardware.power_breakdown.reg_mem,
      hardware.power_breakdown.network.intra_node, hardware.power_breakdown.network.inter_node]
  perimeter:
    total: 1
    parts: [hardware.perimeter_breakdown.DRAM, hardware.perimeter_breakdown.intra_node,
      hardware.perimeter_breakdown.inter_node]
variables:
  hardware.area_breakdown.proc_chip_area_budget: {{low: 430, high: 1130, step: 100}}
objectives: [time_s, energy_j]
"""
# One node and several, alone and in a layout; networks that collectives cross one after the other.
LAYOUTS = {
    "kernels": (1, "parallelism.t: RC\n  parallelism.kp1: 4\n  parallelism.kp2: 2"),
    "columns": (1, "parallelism.t: CR\n  parallelism.kp1: 8"),
    "stages": (1, "parallelism.pipeline: 4\n  parallelism.t: CR\n  parallelism.kp1: 2"),
    "layout": (
        4,
        "parallelism.t: RC\n  parallelism.kp1: 2\n  parallelism.kp2: 4\n  parallelism.pipeline: 2\n"
        "  hardware.system_hierarchy.layout: auto",
    ),
    "across nodes": (4, "parallelism.pipeline: 1"),
    "between nodes": (4, "parallelism.t: RC\n  parallelism.kp1: 4\n  parallelism.kp2: 4"),
    "handshakes": (
        4,
        "parallelism.t: CR\n  parallelism.kp1: 16\n"
        "  hardware.tech_param.network.inter_node.handshake: 1e-6",
    ),
    "split otherwise": (
        1,
        "parallelism.kp_hidden_type: 1\n  parallelism.kp_hidden_dim1: 4\n"
        "  parallelism.kp_softmax_type: 2\n  parallelism.kp_softmax_dim1: 2\n"
        "  parallelism.kp_softmax_dim2: 2",
    ),
}


@pytest.fixture(autouse=True)
def in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def search_of(tmp_path: Path, text: str) -> Search:
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return load_search(path)


def file_of(layout: str, optimizer: str = "{}") -> str:
    nodes, settings = LAYOUTS[layout]
    between = "true" if layout == "between nodes" else "null"
    return FILE.format(nodes=nodes, settings=settings, data_between=between) + (
        f"optimizer: {optimizer}\n"
    )


# --- Predicted together ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_devices_together_have_the_numbers_of_each_alone(tmp_path, layout):
    """To the last digit: a search that goes on after a stop relies on it."""
    search = search_of(tmp_path, file_of(layout))
    (case,) = search.cases.values()
    generator = np.random.default_rng(0)
    devices = []
    for number in range(24):
        design = design_of(search.space, draw(search.space, generator)).tolist()
        if number % 8 == 0:
            # Something of which there is nothing.
            design[number // 8 * 3] = 0.0
        changes = search.space.changes(design, case.hardware)[0]
        devices.append(derive_hardware(with_overrides(case.hardware, changes)))
    alone: list[Prediction | None] = []
    for device in devices:
        try:
            alone.append(predict(device, case.model))
        except InfeasiblePoint:
            alone.append(None)
    first = next(device for device, found in zip(devices, alone, strict=True) if found is not None)
    work = recurrent_work(first, case.model)
    assert predict_on_devices(devices, case.model, work) == alone
    assert None in alone
    assert len({found.time_s for found in alone if found is not None}) > 15


def test_nothing_runs_where_there_is_nothing(tmp_path):
    search = search_of(tmp_path, file_of("kernels"))
    (case,) = search.cases.values()
    design = [1 / budget.size for budget in search.space.budgets for _ in range(budget.size)]
    changes = search.space.changes([*design, 0.5], case.hardware)[0]
    whole, without = (
        derive_hardware(with_overrides(case.hardware, changes | {"power_breakdown.core": power}))
        for power in (40.0, 0.0)
    )
    work = recurrent_work(whole, case.model)
    assert predict_on_devices([without, without], case.model, work) == [None, None]


@pytest.mark.parametrize("method", ["gradient", "differential_evolution"])
def test_predicting_ahead_changes_nothing(tmp_path, monkeypatch, method):
    search = search_of(tmp_path, file_of("kernels", f"{{method: {method}, evaluations: 130}}"))
    (case,) = search.cases.values()
    ahead = run_search(search, case, 0).evaluations
    asked: list[int] = []
    monkeypatch.setattr(Evaluator, "expect", lambda self, designs: asked.append(len(designs)))
    assert run_search(search, case, 0).evaluations == ahead
    assert 1 < max(asked) <= 130


# --- Fronts ---------------------------------------------------------------------------------


class StoppedError(Exception):
    """As many evaluations as were allowed."""


def test_front_of_two_functions_is_found_from_end_to_end():
    """Both pay for the third part, so the front has none of it, and any split of the rest."""
    pytest.importorskip("pymoo")
    space = Space((Budget("all", ("a", "b", "c"), 1.0, None, 1.0, False),), ())
    found: list[tuple[float, float]] = []

    def evaluate(design):
        if len(found) == 1200:
            raise StoppedError
        assert space.within_budgets(design)
        x, y, rest = design
        values = (0.1 + x + rest, 0.1 + y + rest)
        found.append(values)
        return Evaluation(tuple(design), Prediction(time_s=1.0), 1.0, 0, 0, True, {}, values)

    with pytest.raises(StoppedError):
        evolve_front(evaluate, space, 0)
    front = [values for values in found if sum(values) < 1.2 * 1.02]
    assert min(x for x, _ in front) < 0.15
    assert min(y for _, y in front) < 0.15
    assert len(front) > 200


def test_limits_and_impossible_designs_are_left_behind():
    pytest.importorskip("pymoo")
    axis = Axis(tuple({"n": n} for n in range(4)), tuple(({}, {}) for _ in range(4)))
    space = Space((Budget("all", ("a", "b"), 1.0, None, 1.0, False),), (), (axis,))
    asked: list[tuple[float, int]] = []

    def evaluate(design):
        if len(asked) == 800:
            raise StoppedError
        number, share = space.chosen(design)["n"], design[0]
        asked.append((share, number))
        if number == 3:
            nothing = (math.inf, math.inf)
            return Evaluation(
                tuple(design), Prediction("infeasible"), math.inf, 0, 0, True, {}, nothing
            )
        values = (1 + share, 2 - share - 0.2 * number)
        excess = max(0.0, share - 0.5)
        return Evaluation(tuple(design), Prediction(time_s=1.0), 1.0, excess, 0, True, {}, values)

    with pytest.raises(StoppedError):
        evolve_front(evaluate, space, 1)
    late = asked[-200:]
    assert sum(number == 2 for _, number in late) > 100
    assert sum(share <= 0.5 for share, _ in late) > 150
    assert sum(number == 3 for _, number in late) < 50


def test_same_seed_same_front_and_a_stopped_run_goes_on(tmp_path):
    pytest.importorskip("pymoo")
    search = search_of(tmp_path, file_of("kernels", "{method: nsga2, evaluations: 120, starts: 2}"))
    (case,) = search.cases.values()
    whole, other = run_search(search, case, 0), run_search(search, case, 1)
    assert len(whole.evaluations) == 120
    assert whole.evaluations[0] != other.evaluations[0]
    known = evaluations_of(run_table(search, case, 0, whole.evaluations[:70]))
    assert run_search(search, case, 0, known=known).evaluations == whole.evaluations


def test_without_pymoo_nsga2_says_what_is_missing(tmp_path, monkeypatch):
    search = search_of(tmp_path, file_of("kernels", "{method: nsga2, evaluations: 10}"))

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("deepflow.search.evolution.import_module", missing)
    with pytest.raises(DeepFlowError, match="pip install pymoo"):
        run_search(search, next(iter(search.cases.values())), 0)


# --- Cases together -------------------------------------------------------------------------

TOGETHER = """\
technology: {logic_of_file: 14nm, logic: [14nm, 7nm, 5nm], memory: [study-HBM1, study-HBM2]}
strategies: {powers_of_two: true, pipeline: [1], layouts: none}
choices: {model.seq_len: [10, 20]}
"""


def test_cases_together_are_one_search_that_chooses_among_them(tmp_path, capsys):
    settings = "hardware.tech_param.DRAM.stack_capacity: 8 GB"
    text = FILE.format(nodes=1, settings=settings, data_between="null") + TOGETHER
    cases = "{method: differential_evolution, evaluations: 300, cases: %s}"
    separate = search_of(tmp_path, f"{text}optimizer: {cases % 'separate'}\n")
    together = search_of(tmp_path, f"{text}optimizer: {cases % 'together'}\n")
    (case,) = together.cases.values()
    assert len(separate.cases) == math.prod(len(axis.changes) for axis in together.space.axes)
    run = run_search(together, case, 0)
    best = run.best
    assert best is not None
    chosen = together.space.chosen(best.design)
    # The same design in the case that it has chosen.
    (alike,) = [other for other in separate.cases.values() if other.columns == chosen]
    design = best.design[: separate.space.size]
    assert Evaluator(separate, alike, 0)(design).prediction == best.prediction
    command = shlex.split(predict_command(together, case, best.design))
    assert main([*command[1:], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["time_s"] == pytest.approx(best.prediction.time_s, rel=1e-12)
    # Fixed values win over those of a technology.
    assert [item for item in command if "stack_capacity" in item] == [settings.replace(": ", "=")]
    frame: pd.DataFrame = run_table(together, case, 0, run.evaluations).to_pandas()
    assert set(frame["logic"]) == {"14nm", "7nm", "5nm"}
    assert frame["kp1"].dtype == np.int64
    assert frame["logic"].iloc[run.evaluations.index(best)] == chosen["logic"]


def test_descent_does_not_choose(tmp_path):
    text = FILE.format(nodes=1, settings="", data_between="null") + TOGETHER
    with pytest.raises(ConfigError, match=r"\.yaml: optimizer\.method = 'descent'"):
        search_of(tmp_path, f"{text}optimizer: {{method: descent, cases: together}}\n")


# --- Progress -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def evaluation(cost: float) -> Evaluation:
    return Evaluation((), Prediction(time_s=cost), cost, 0.0, 0.0, True)


def test_a_terminal_gets_one_line_for_each_start_and_a_log_no_controls(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("deepflow.search.run.time.monotonic", lambda: now[0])
    outputs = {}
    for output in (Terminal(), io.StringIO()):
        progress = Progress(output, 2, 100)
        for start in range(2):
            progress.begin(f"case {start}")
            for number in range(100):
                now[0] += 0.3
                progress.count(evaluation(3.0 - number / 100 + start), is_new=True)
            progress.end()
        outputs[output.isatty()] = output.getvalue()
    live, logged = outputs[True], outputs[False]
    assert live.count("\n") == logged.count("[2/2] case 1: 100 of 100 evaluations") + 1 == 2
    assert live.count("\r") > 50
    assert "\r" not in logged
    assert "\x1b" not in logged
    assert 6 <= logged.count("\n") <= 10
    first, *_, last = logged.splitlines()
    assert "best cost 2.67" in first
    assert "3 evaluations/s" in first
    assert "50 s left" in first
    assert "best cost 3.01, of all 2.01" in last
    assert "0 s left" in last


def test_what_was_known_does_not_count_as_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("deepflow.search.run.time.monotonic", lambda: now[0])
    output = io.StringIO()
    progress = Progress(output, 1, 100)
    progress.begin("case")
    for number in range(60):
        now[0] += 0.0 if number < 50 else 1.0
        progress.count(replace(evaluation(1.0), within_budgets=False), is_new=number >= 50)
    progress.end()
    assert "60 of 100 evaluations, nothing feasible yet, 1 evaluations/s, 40 s left" in (
        output.getvalue()
    )
