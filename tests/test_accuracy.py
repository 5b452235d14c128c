"""Predictions against measurements, on the samples of measured tables that the repository has."""

from functools import cache

import pytest

from deepflow.validate import choices, read_table, validate_table
from deepflow.validate.goals import GOALS, reached
from deepflow.validate.workflow import SAMPLES, tables_in

# Tables whose goals are reached. Small tables are samples of themselves.
REACHED = (
    "op_gemm",
    "op_attention_prefill",
    "op_attention_decode",
    "op_collectives",
    "op_collectives_dgx",
    "op_moe",
    "memory_and_time_a100_selene",
    "train_h100_ultrascale",
    "fits_memory_h100_ultrascale",
)


@cache
def validated(name):
    return list(validate_table(read_table(tables_in(SAMPLES)[name])))


@pytest.mark.parametrize("table", REACHED)
def test_goals_are_reached(table):
    found = reached({table: validated(table)})
    assert len(found) == sum(goal.table == table for goal in GOALS if "data sheet" not in goal.rows)
    assert [(item.goal.rows, item.value) for item in found if not item.met] == []


def test_every_row_of_the_samples_is_predicted_or_says_why():
    for name in tables_in(SAMPLES):
        for item in validated(name):
            assert (item.predicted is None) == bool(item.not_predicted), (name, item)


def test_the_run_that_is_predicted_fastest_is_seldom_a_slow_one():
    losses = sorted(choice.loss_percent for choice in choices(validated("train_h100_ultrascale")))
    assert len(losses) > 10
    assert losses[len(losses) // 2] <= 10
