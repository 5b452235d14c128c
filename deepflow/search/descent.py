"""The search of the DeepFlow research code, as a baseline.

It follows the commit of 2021 whose trajectories are recorded: finite differences with steps of a
half, a step of fixed length per budget, smoothing, and rescaling to the budget. It has no line
search and no test of convergence. Where the original divides by a slope of zero or infinity,
nothing moves here.
"""

from __future__ import annotations

import math
import random

from deepflow.errors import ConfigError
from deepflow.search.evaluate import Evaluate, Expect, expect_nothing
from deepflow.search.space import Space

MOST_ITERATIONS = 100
STEP = 0.5  # of the finite differences, relative
RATE = 1.0  # length of a step, in fractions
SMOOTHING = 0.9  # of the mean over iterations that is the next design
LEAST = 0.01  # where a step would leave nothing
_CONTROLLERS = "area_breakdown.DRAM"


def descend(evaluate: Evaluate, space: Space, seed: int, expect: Expect = expect_nothing) -> None:
    """Evaluates designs until time is infinite or 100 iterations are over.

    Raises:
        ConfigError: the space has something else than budgets that are spent.
    """
    if space.size > space.fractions or any(budget.may_save for budget in space.budgets):
        raise ConfigError(
            "descent knows budgets that are spent, and nothing else",
            key="optimizer.method",
            value="descent",
        )
    design = _start(space, seed)
    smoothed = [0.0] * space.size
    paths = [path for budget in space.budgets for path in budget.parts]
    controllers = paths.index(_CONTROLLERS) if _CONTROLLERS in paths else None
    evaluate(design)
    for _ in range(MOST_ITERATIONS):
        found = evaluate(design)
        before = found.cost
        slopes = []
        sides = [list(design) for _ in design]
        for index, moved in enumerate(sides):
            moved[index] *= 1 + STEP
        expect(sides)
        for fraction, moved in zip(design, sides, strict=True):
            after = evaluate(moved).cost
            known = fraction > 0 and math.isfinite(after) and math.isfinite(before)
            slopes.append((after - before) / (STEP * fraction) if known else 0.0)
        stepped = list(design)
        for block in space.blocks:
            length = math.hypot(*slopes[block])
            for index in range(block.start, block.stop):
                if length:
                    stepped[index] -= RATE * slopes[index] / length
                if stepped[index] <= 0:
                    stepped[index] = LEAST
        smoothed = [
            SMOOTHING * old + (1 - SMOOTHING) * new
            for old, new in zip(smoothed, stepped, strict=True)
        ]
        # The mean itself is never rescaled.
        design = list(smoothed)
        if found.overflow > 1 and controllers is not None:
            design[controllers] *= found.overflow
            if design[controllers] > 1:
                return
        design = _rescaled(space, design)
        if not math.isfinite(evaluate(design).cost):
            return


def _start(space: Space, seed: int) -> list[float]:
    """Whole numbers from 1 to 99, none twice in a budget, as fractions."""
    generator = random.Random(seed)
    design: list[float] = []
    for budget in space.budgets:
        drawn = generator.sample(range(1, 100), budget.size)
        design += [number / sum(drawn) * budget.share for number in drawn]
    return design


def _rescaled(space: Space, design: list[float]) -> list[float]:
    """``design`` with the fractions of each budget adding up to its share."""
    result = list(design)
    for block, share in zip(space.blocks, space.shares, strict=True):
        total = sum(design[block])
        result[block] = [fraction / total * share for fraction in design[block]]
    return result
