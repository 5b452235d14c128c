"""Architecture search: spaces, optimisers, resuming, tables, the command and its mistakes."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import shlex
from collections import deque
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deepflow.cli import main
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.prediction import Prediction
from deepflow.search.descent import descend
from deepflow.search.evaluate import Evaluation, evaluator
from deepflow.search.gradient import design_of, draw, follow_gradient, shortest_in_hull
from deepflow.search.run import best_of, run_search
from deepflow.search.space import Budget, Space, Variable, load_search
from deepflow.search.tables import (
    evaluations_of,
    pareto_rows,
    predict_command,
    read_run,
    run_table,
    write_table,
)

SEARCHES = sorted((Path(__file__).parent.parent / "searches").glob("*.yaml"))
REFERENCE = Path(__file__).parent / "data/reference/gd_search_2021.json.gz"
SMALL = """\
hardware: configs/old-configs/v100.yaml
model: configs/old-configs/v100.yaml
set: {model.layer_size: 512, model.batch_size: 16}
budgets:
  power:
    total: hardware.power_breakdown.TDP
    parts: [hardware.power_breakdown.core, hardware.power_breakdown.DRAM,
      hardware.power_breakdown.L2, hardware.power_breakdown.L1, hardware.power_breakdown.reg_mem]
objectives: time_s
optimizer: {evaluations: 40}
"""


@pytest.fixture(autouse=True)
def in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def search_of(tmp_path: Path, text: str = SMALL, *changes: tuple[str, str]):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return load_search(path)


def evaluation(design, cost: float, overflow: float = 0.0) -> Evaluation:
    return Evaluation(tuple(design), Prediction(time_s=cost), cost, 0.0, overflow, True)


# --- The original's descent -----------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_descent_asks_for_the_designs_that_the_original_asked_for(number):
    """Given the times that the original found, every design of its trajectory follows."""
    record = json.loads(gzip.decompress(REFERENCE.read_bytes()))[number]
    classes = ("area_breakdown", "power_breakdown", "perimeter_breakdown")
    first = record["evals"][0]["params"]
    budgets = tuple(
        Budget(
            name,
            tuple(f"{name}.{part}" for part in first[name]),
            1.0,
            None,
            sum(first[name].values()),
            False,
        )
        for name in classes
    )
    recorded = deque(record["evals"])

    class RecordEndsError(Exception):
        pass

    def evaluate(design):
        if not recorded:
            raise RecordEndsError
        found = recorded.popleft()
        wanted = [value for name in classes for value in found["params"][name].values()]
        assert design == pytest.approx(wanted, rel=1e-9)
        return evaluation(design, found["time"], found["mem_overflow"])

    with pytest.raises(RecordEndsError):
        descend(evaluate, Space(budgets, ()), record["args"]["index"])


def test_descent_refuses_what_the_original_does_not_know():
    space = Space((), (Variable("hardware.x", 0.0, 1.0, False, False, None),))
    with pytest.raises(ConfigError, match="descent"):
        descend(lambda design: evaluation(design, 1.0), space, 0)


# --- The default ----------------------------------------------------------------------------


class Stopped(Exception):
    """As many evaluations as were allowed."""


def lowest(optimise, cost, space: Space, allowed: int, seed: int = 0) -> float:
    """The least cost within so many evaluations; checks that every design is in the space."""
    found: list[float] = []

    def evaluate(design):
        if len(found) >= allowed:
            raise Stopped
        assert space.within_budgets(design)
        assert min(design) >= 0
        found.append(cost(design))
        return evaluation(design, found[-1])

    with pytest.raises(Stopped):
        optimise(evaluate, space, seed)
    return min(found)


SHARED = Space((Budget("all", tuple("abcde"), 1.0, None, 1.0, False),), ())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_finds_the_minimum_of_a_smooth_function(seed):
    """The sum of w / x over a simplex is least at x ~ sqrt(w), where it is (sum of sqrt(w))^2."""
    weights = np.array([1.0, 4.0, 9.0, 0.25, 0.01])
    best = np.sqrt(weights).sum() ** 2
    found = lowest(
        follow_gradient, lambda x: float((weights / np.array(x)).sum()), SHARED, 800, seed
    )
    assert best <= found <= best * 1.002


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_gets_through_the_kinks_of_a_bottleneck(seed):
    """The longest of w / x is least where all are equal: every way along one part goes up there."""
    weights = np.array([1.0, 2.0, 3.0, 4.0, 0.1])
    found = lowest(
        follow_gradient, lambda x: float((weights / np.array(x)).max()), SHARED, 1200, seed
    )
    assert weights.sum() <= found <= weights.sum() * 1.02


def test_default_finds_a_whole_number_among_steps():
    space = Space((), (Variable("hardware.x", 0.0, 20.0, False, True, 1.0),))
    (variable,) = space.variables
    found = lowest(follow_gradient, lambda x: 1 + abs(variable.value(x[0]) - 13), space, 200)
    assert found == 1


def test_shortest_vector_of_a_hull():
    assert shortest_in_hull(np.array([[1.0, 1.0], [1.0, -1.0]])) == pytest.approx([1.0, 0.0])
    assert shortest_in_hull(np.array([[3.0, 4.0]])) == pytest.approx([3.0, 4.0])


def test_same_seed_same_designs_and_another_seed_others(tmp_path):
    search = search_of(tmp_path, SMALL, ("40}", "40, starts: 2}"))
    (case,) = search.cases.values()
    first, again, other = (run_search(search, case, start) for start in (0, 0, 1))
    assert first.evaluations == again.evaluations
    assert first.evaluations[0].design != other.evaluations[0].design


@pytest.mark.parametrize("method", ["descent", "differential_evolution", "dual_annealing"])
def test_other_methods_take_their_evaluations_and_find_something(tmp_path, method):
    search = search_of(
        tmp_path, SMALL, ("{evaluations: 40}", f"{{method: {method}, evaluations: 80}}")
    )
    (case,) = search.cases.values()
    run = run_search(search, case, 0)
    assert len(run.evaluations) == 80
    assert run.best is not None
    assert len({item.design for item in run.evaluations}) > 40


# --- Running and resuming -------------------------------------------------------------------


def test_going_on_after_a_stop_gives_what_an_unbroken_run_gives(tmp_path):
    search = search_of(tmp_path)
    (case,) = search.cases.values()
    whole = run_search(search, case, 0)
    file = tmp_path / "part.parquet"
    write_table(run_table(search, case, 0, whole.evaluations[:25]), file)
    known = evaluations_of(read_run(file, search, case, 0))
    assert run_search(search, case, 0, known=known).evaluations == whole.evaluations


def test_evaluations_of_something_else_are_refused(tmp_path):
    search = search_of(tmp_path)
    (case,) = search.cases.values()
    with pytest.raises(DeepFlowError, match="do not fit"):
        run_search(search, case, 0, known=[evaluation([0.2] * 5, 1.0)])


def test_table_of_another_search_is_refused(tmp_path):
    search = search_of(tmp_path)
    (case,) = search.cases.values()
    file = tmp_path / "run.parquet"
    write_table(run_table(search, case, 0, run_search(search, case, 0).evaluations), file)
    other = search_of(tmp_path, SMALL, ("layer_size: 512", "layer_size: 1024"))
    with pytest.raises(DeepFlowError, match="other settings"):
        read_run(file, other, next(iter(other.cases.values())), 0)


def test_best_design_predicted_by_the_command_line_has_the_same_time(tmp_path, capsys):
    search = search_of(tmp_path)
    (case,) = search.cases.values()
    best = run_search(search, case, 0).best
    assert best is not None
    command = shlex.split(predict_command(search, case, best.design))
    assert main([*command[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time_s"] == pytest.approx(best.cost, rel=1e-12)


def test_command_runs_a_search_and_does_nothing_twice(tmp_path, capsys):
    search_of(tmp_path)
    arguments = ["search", str(tmp_path / "small.yaml"), "--results", str(tmp_path / "results")]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert "evaluations/s" in first.err
    made = tmp_path / "results/runs/base/0.parquet"
    before = made.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out == first.out
    assert made.stat().st_mtime_ns == before
    table = pq.read_table(tmp_path / "results/evaluations.parquet").to_pandas()
    assert len(table) == 40
    assert table["best_cost"].is_monotonic_decreasing
    budget = table[["core", "DRAM", "L2", "L1", "reg_mem"]].sum(axis=1)
    assert budget.to_numpy() == pytest.approx(300.0)
    assert (tmp_path / "results/plots/convergence.png").exists()


# --- Objectives, limits and fronts ----------------------------------------------------------


def test_saving_power_helps_where_energy_counts(tmp_path):
    """With an energy objective and a budget that need not be spent, some of it is saved."""
    text = SMALL.replace("objectives: time_s", "objectives: energy_j").replace(
        "  power:\n", "  power:\n    may_save: true\n"
    )
    text = text.replace("evaluations: 40", "evaluations: 300")
    search = search_of(tmp_path, text)
    (case,) = search.cases.values()
    best = run_search(search, case, 0).best
    assert best is not None
    assert best.design[-1] > 0.05


def test_limits_hold_for_the_best_design(tmp_path):
    free = search_of(tmp_path, SMALL, ("evaluations: 40", "evaluations: 200"))
    (case,) = free.cases.values()
    best = run_search(free, case, 0).best
    assert best is not None
    limit = 0.7 * best.prediction.average_power_w
    bound = f"constraints: {{average_power_w: {{at_most: {limit}}}}}\nobjectives"
    text = SMALL.replace("objectives", bound).replace(
        "  power:\n", "  power:\n    may_save: true\n"
    )
    search = search_of(tmp_path, text, ("evaluations: 40", "evaluations: 300"))
    found = run_search(search, case, 0).best
    assert found is not None
    assert found.prediction.average_power_w <= limit
    assert found.cost >= best.cost


def test_out_of_memory_and_overdrawn_designs_are_never_the_best():
    good = evaluation([1.0], 3.0)
    too_big = Evaluation((1.0,), Prediction(time_s=1.0), 1.0, 0.5, 1.6, True)
    overdrawn = Evaluation((1.5,), Prediction(time_s=1.0), 1.0, 0.0, 0.5, False)
    assert best_of([too_big, good, overdrawn]) == good
    assert best_of([too_big, overdrawn]) is None


def test_front_holds_what_nothing_beats_and_nothing_else():
    generator = random.Random(1)
    rows = [
        {"feasible": index % 7 > 0, "time_s": generator.random(), "tokens_per_second": value}
        for index, value in enumerate(generator.random() for _ in range(200))
    ]
    frame = pd.DataFrame(rows)
    front = pareto_rows(frame, ("time_s", "tokens_per_second"))

    def beaten(row, others) -> bool:
        return any(
            other["time_s"] < row["time_s"]
            and other["tokens_per_second"] > row["tokens_per_second"]
            for other in others
        )

    feasible = [row for row in rows if row["feasible"]]
    expected = {row["time_s"] for row in feasible if not beaten(row, feasible)}
    assert set(front["time_s"]) == expected


def test_starts_of_two_objectives_go_from_one_to_the_other(tmp_path):
    search = search_of(tmp_path, SMALL, ("time_s", "[time_s, energy_j]"), ("40}", "40, starts: 3}"))
    assert [search.weights(start) for start in range(3)] == [(1, 0), (0.5, 0.5), (0, 1)]


# --- Spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_example_searches_load_and_their_designs_are_predicted_by_command(path, capsys):
    search = load_search(path)
    case = next(iter(search.cases.values()))
    even = [
        budget.share / budget.size for budget in search.space.budgets for _ in range(budget.size)
    ]
    evaluate = evaluator(search, case, 0)
    generator = np.random.default_rng(0)
    designs = [even + [0.5] * (search.space.size - len(even))]
    designs += [design_of(search.space, draw(search.space, generator)).tolist() for _ in range(30)]
    found = next(item for item in map(evaluate, designs) if math.isfinite(item.cost))
    assert search.space.within_budgets(found.design)
    command = predict_command(search, case, found.design)
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["time_s"] == pytest.approx(found.prediction.time_s, rel=1e-12)


def test_meaning_and_not_spelling_decides_the_digest(tmp_path):
    def digest(*changes: tuple[str, str]) -> str:
        search = search_of(tmp_path, SMALL, *changes)
        return search.run_digest(next(iter(search.cases.values())), 0)

    same = digest(("set: {model", "# a remark\nset: {model"), ("16}", "16.0}"))
    assert digest() == same
    assert digest(("batch_size: 16", "batch_size: 32")) != same
    assert digest(("evaluations: 40", "evaluations: 41")) != same
    assert digest(("time_s", "energy_j")) != same


def test_steps_and_logarithms_of_variables():
    stepped = Variable("hardware.x", 430.0, 1130.0, False, False, 100.0)
    values = {stepped.value(x) for x in np.linspace(-0.1, 1.1, 400).tolist()}
    assert values == {430.0 + 100 * k for k in range(8)}
    log = Variable("hardware.x", 1.0, 100.0, True, False, None)
    assert log.value(0.5) == pytest.approx(10)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("objectives: time_s", "objectives: tme_s", "time_s"),
        ("objectives: time_s", "objectives: []", "objectives"),
        ("hardware.power_breakdown.TDP", "0", "budgets.power.total"),
        ("hardware.power_breakdown.TDP", "-3", "budgets.power.total"),
        ("hardware.power_breakdown.TDP", "1e300", "budgets.power.total"),
        ("    parts:", "    share: 1.5\n    parts:", "budgets.power.share"),
        ("hardware.power_breakdown.core", "hardware.power_breakdown.cores", "did you mean"),
        ("hardware.power_breakdown.core,", "hardware.power_breakdown.L2,", "twice"),
        ("set: {", "set: {hardware.power_breakdown.core: 3, ", "both set and searched"),
        ("objectives", "variables: {model.seq_len: {low: 5, high: 5}}\nobjectives", "nothing"),
        (
            "objectives",
            "variables: {hardware.tech_param.DRAM.latency:"
            " {low: 0, high: 1e-6, scale: log}}\nobjectives",
            "logarithm",
        ),
        ("objectives", "constraints: {time: {at_most: 1}}\nobjectives", "no such result"),
        (
            "objectives",
            "constraints: {time_s: {at_most: 1, at_least: 2}}\nobjectives",
            "cannot be met",
        ),
        ("objectives", "technology: {memory: HBM9}\nobjectives", "no such technology"),
        ("objectives", "technology: {logic: 5nm}\nobjectives", "logic_of_file"),
        ("objectives", "technology: {memory: []}\nobjectives", "names no technology"),
        ("objectives", "constraints: {time_s: {at_most: .nan}}\nobjectives", "finite number"),
        ("hardware.power_breakdown.TDP", "300 W", "budgets.power.total"),
        (
            "objectives",
            "variables: {model.seq_len: {low: 5, high: 9, step: 8}}\nobjectives",
            "step",
        ),
        ("evaluations: 40", "evaluations: 0", "too small"),
        ("evaluations: 40", "method: magic", "method"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, old, new, named):
    with pytest.raises(ConfigError) as caught:
        search_of(tmp_path, SMALL, (old, new))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_space_without_any_feasible_design_is_an_error_that_says_why(tmp_path, capsys):
    search_of(tmp_path, SMALL, ("layer_size: 512", "layer_size: 500000"), ("40}", "30}"))
    file = str(tmp_path / "small.yaml")
    assert main(["search", file, "--results", str(tmp_path / "results")]) == 1
    assert (tmp_path / "results/evaluations.parquet").exists()
    assert not (tmp_path / "results/best.txt").exists()
    assert f"{file}: no design is feasible: of " in capsys.readouterr().err.splitlines()[-1]


def test_constraint_that_no_design_meets_is_named(tmp_path, capsys):
    search_of(tmp_path, SMALL, ("objectives", "constraints: {time_s: {at_most: 1e-9}}\nobjectives"))
    file = str(tmp_path / "small.yaml")
    assert main(["search", file, "--results", str(tmp_path / "results")]) == 1
    assert "40 miss constraints.time_s.at_most = 1e-09" in capsys.readouterr().err
    # One case of several may have no feasible design, so a start alone is no error.
    assert main(["search", file, "--start", "0", "--results", str(tmp_path / "results")]) == 0


def test_objective_that_the_model_does_not_have_is_an_error(tmp_path):
    search = search_of(tmp_path, SMALL, ("objectives: time_s", "objectives: time_to_first_token_s"))
    (case,) = search.cases.values()
    with pytest.raises(ConfigError, match="time_to_first_token_s is not known"):
        run_search(search, case, 0)


# --- Costs, area and power ------------------------------------------------------------------

PRICES = """\
hardware.manufacturing.wafer_cost: 4000, hardware.manufacturing.memory_cost: 20,
  hardware.manufacturing.package_cost: 0.3"""
DEARER = """\
hardware: configs/old-configs/v100.yaml
model: configs/old-configs/v100.yaml
set: {model.layer_size: 512, model.batch_size: 16, hardware.tech_param.DRAM.num_stacks: 4,
  %s}
variables: {hardware.area_breakdown.proc_chip_area_budget: {low: 500, high: 1100}}
objectives: device_cost_usd
optimizer: {evaluations: 30}
"""


def test_the_cheapest_chip_is_the_smallest(tmp_path):
    search = search_of(tmp_path, DEARER % PRICES)
    (case,) = search.cases.values()
    best = run_search(search, case, 0).best
    assert best.device["chip_area_mm2"] == pytest.approx(500, rel=0.01)
    limited = search_of(
        tmp_path,
        DEARER % PRICES + "constraints: {chip_area_mm2: {at_least: 800}}\n",
        ("evaluations: 30", "evaluations: 80"),
    )
    (case,) = limited.cases.values()
    best_within = run_search(limited, case, 0).best
    assert best_within.device["chip_area_mm2"] == pytest.approx(800, rel=0.02)
    assert best_within.cost > best.cost


def test_costs_that_are_not_known_are_an_error(tmp_path):
    search = search_of(tmp_path, SMALL, ("objectives: time_s", "objectives: cost_delay_usd_s"))
    (case,) = search.cases.values()
    with pytest.raises(ConfigError, match="cost_delay_usd_s is not known"):
        run_search(search, case, 0)


def test_the_first_of_several_objectives_ranks_the_best(tmp_path, capsys):
    changes = (("objectives: time_s", "objectives: [tokens_per_second, energy_j]"),)
    search_of(tmp_path, SMALL, *changes, ("40}", "30, starts: 3}"))
    file, results = str(tmp_path / "small.yaml"), tmp_path / "results"
    assert main(["search", file, "--results", str(results)]) == 0
    best = pd.read_parquet(results / "best.parquet")["tokens_per_second"]
    assert len(best) == 3
    assert best.is_monotonic_decreasing
    assert f"tokens_per_second = {best[0]:.6g}" in capsys.readouterr().out


def test_what_costs_consist_of(tmp_path):
    changes = ("objectives: time_s", "objectives: cost_delay_usd_s")
    search = search_of(tmp_path, SMALL.replace("16}", f"16,\n  {PRICES}}}"), changes)
    (case,) = search.cases.values()
    found = evaluator(search, case, 0)([0.2] * 5)
    time, device = found.prediction.time_s, found.device
    assert found.cost == pytest.approx(device["device_cost_usd"] * time)
    row = run_table(search, case, 0, [found]).to_pylist()[0]
    assert row["system_cost_usd"] == device["device_cost_usd"]
    assert row["power_budget_w"] == pytest.approx(300 + 0.00935 * 300)
    (read,) = evaluations_of(run_table(search, case, 0, [found]))
    assert (read.device, read.cost, read.design) == (device, found.cost, found.design)


def test_more_of_a_budget_makes_no_design_and_no_best_worse(tmp_path):
    same, best = [], []
    for power in (150, 300, 600):
        changes = (("hardware.power_breakdown.TDP", str(power)), ("40}", "150}"))
        search = search_of(tmp_path, SMALL, *changes)
        (case,) = search.cases.values()
        same.append(evaluator(search, case, 0)([0.2] * 5).cost)
        best.append(run_search(search, case, 0).best.cost)
    assert same == sorted(same, reverse=True)
    assert best == sorted(best, reverse=True)


def test_example_of_the_documentation_loads(tmp_path, repository):
    page = (repository / "docs/architecture-search.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    assert len(search_of(tmp_path, example).cases) == 2
