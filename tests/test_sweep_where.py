"""Conditions over whole axes are those over single points."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from deepflow.errors import ConfigError
from deepflow.sweep.where import parse_condition

AXES: dict[str, tuple[int, list[Any]]] = {
    "tensor": (0, [1, 2, 4, 8]),
    "data": (1, [0, 1, 3]),
    "bandwidth": (2, [1e12, 2.5e12]),
    "mixed": (2, [1, 2.5]),
    "name": (3, ["none", "full", ""]),
    "flag": (4, [False, True]),
    "empty": (4, [None, 3]),
    "huge": (5, [2**60, 2**60 + 1]),
}


@pytest.mark.parametrize(
    "text",
    [
        "tensor * data <= 8 and tensor != 2",
        "12 % (tensor * (data + 1)) == 0 or data == 3",
        "not (tensor > 2) and -data < 0",
        "1 < tensor <= 4",
        "tensor / 3 > data // 2",
        "name",
        "not name or tensor in (1, 8, data)",
        "name in ('none', 'full') and flag",
        "name not in ['none'] or name == tensor",
        "name != 1",
        "flag + flag == 2",
        "flag and data",
        "bandwidth * tensor >= 2e12",
        "mixed * 2 == 5",
        "7",
        # What arrays would not do as Python does.
        "data != 0 and tensor / data > 1",
        "data == 0 or tensor % data == 0",
        "empty == 3 and empty * 2 == 6",
        "huge == 1152921504606846976",
        "huge * huge > huge",
        "tensor * 9007199254740993 % 2 == 1",
        "name < 'g'",
        "'u' in name",
    ],
)
def test_over_axes_as_over_points(text: str) -> None:
    condition = parse_condition(text, list(AXES), "test.yaml", "where")
    found = np.broadcast_to(condition.holds_over(AXES, 6), (4, 3, 2, 3, 2, 2))
    for place in itertools.product(*(range(size) for size in found.shape)):
        point = {name: values[place[axis]] for name, (axis, values) in AXES.items()}
        assert found[place] == condition.holds(point), point


@pytest.mark.parametrize(
    "text", ["tensor / data > 1", "name + 1 > 0", "empty > 2", "name < tensor"]
)
def test_a_condition_without_an_answer_says_for_which_point(text: str) -> None:
    condition = parse_condition(text, list(AXES), "test.yaml", "where")
    with pytest.raises(ConfigError, match="cannot be evaluated for"):
        condition.holds_over(AXES, 6)
