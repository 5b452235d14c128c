"""The default: exponentiated gradient with line search, on finite differences.

Fractions of a budget are multiplied by factors and rescaled to their share, which is descent in
their logarithms (exponentiated gradient: Kivinen and Warmuth, 1997), so no design leaves its
budgets. Variables move between their bounds.

What a device can do changes in steps (stacks, banks, tiles that fit) and has kinks where another
part becomes the bottleneck; a gradient alone gets stuck at both. So differences are central and as
wide as the steps of the search, and their designs are taken if they are the best. At a kink the
gradients on its two sides cancel along it: the direction that goes down on both is the shortest
vector in their convex hull (gradient sampling: Burke, Lewis and Overton, 2005), here of the last
few gradients. Where nothing of this is better the width is halved, and below ``LEAST_WIDTH`` the
search has converged. What evaluations are left begin again beside the best design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deepflow.search.evaluate import Evaluate, Expect, expect_nothing
from deepflow.search.space import Space, Vector

FIRST_WIDTH = 0.5  # of differences and steps, in logarithms of fractions
LEAST_WIDTH = 0.004
DRAWN_PER_DIMENSION = 3  # designs, of which the best is the start
REMEMBERED_GRADIENTS = 6
PERTURBATION = 0.4  # standard deviation around the best, where the search begins again
VARIABLE_WIDTH = 4.0  # from one bound of a variable to the other, to compare with logarithms
SMALLEST = -12.0  # logarithm of a fraction over the largest one of its budget
FIRST_STEPS = (2.0, 0.5)  # along a line, in widths: the second if the first is no better
_IMPROVED = 1e-7  # less, in logarithm of the objective, is no progress


class _Merits:
    """Merits of points, infinite for impossible ones."""

    def __init__(self, evaluate: Evaluate, expect: Expect, space: Space) -> None:
        self._evaluate, self._expect, self._space = evaluate, expect, space

    def __call__(self, point: Vector) -> float:
        found = self._evaluate(design_of(self._space, point).tolist())
        return found.merit if math.isfinite(found.cost) else math.inf

    def expect(self, points: Sequence[Vector]) -> None:
        """Points of which merits will, or may, be asked next."""
        self._expect([design_of(self._space, point).tolist() for point in points])


def follow_gradient(
    evaluate: Evaluate, space: Space, seed: int, expect: Expect = expect_nothing
) -> None:
    """Evaluates designs as long as it is let; announces to ``expect`` what it will ask next."""
    generator = np.random.default_rng(seed)
    merit = _Merits(evaluate, expect, space)
    drawn = [draw(space, generator) for _ in range(DRAWN_PER_DIMENSION * space.size)]
    merit.expect(drawn)
    value, first = min((merit(point), index) for index, point in enumerate(drawn))
    while not math.isfinite(value):
        # Impossible designs have no slope to follow.
        drawn, first = [draw(space, generator)], 0
        value = merit(drawn[0])
    best, lowest = _converge(space, drawn[first], value, FIRST_WIDTH, merit)
    while True:
        beside = best + PERTURBATION * generator.normal(size=space.size)
        point = bounded(space, beside)
        value = merit(point)
        if math.isfinite(value):
            point, value = _converge(space, point, value, FIRST_WIDTH / 2, merit)
            if value < lowest:
                best, lowest = point, value


def draw(space: Space, generator: np.random.Generator) -> Vector:
    """A random point: fractions even over all that add up to their share, variables in bounds."""
    point = VARIABLE_WIDTH * generator.random(space.size)
    for block in space.blocks:
        point[block] = np.log(generator.dirichlet(np.ones(block.stop - block.start)) + 1e-4)
    return bounded(space, point)


def design_of(space: Space, point: Vector) -> Vector:
    """The design vector of a point: logarithms of fractions, then scaled coordinates."""
    design = np.clip(point / VARIABLE_WIDTH, 0.0, 1.0)
    for block, share in zip(space.blocks, space.shares, strict=True):
        fractions = np.exp(point[block] - point[block].max())
        design[block] = fractions / fractions.sum() * share
    return design


def bounded(space: Space, point: Vector) -> Vector:
    """The nearest point within the bounds of variables and of ratios between fractions."""
    result = np.clip(point, 0.0, VARIABLE_WIDTH)
    for block in space.blocks:
        result[block] = np.maximum(point[block] - point[block].max(), SMALLEST)
    return result


def _converge(
    space: Space, point: Vector, value: float, width: float, merit: _Merits
) -> tuple[Vector, float]:
    """The best (point, merit) on the way down from ``point``."""
    # Variables with steps would not change within a narrow difference.
    least = np.zeros(space.size)
    least[space.fractions :] = [1.01 * VARIABLE_WIDTH * step for step in space.coordinate_steps]
    gradients: list[Vector] = []
    while width > LEAST_WIDTH:
        widths = np.maximum(width, least)
        (best, lowest), upper, lower = _differences(space, point, value, widths, merit)
        gradients = [*gradients, (upper - lower) / (2 * widths)][-REMEMBERED_GRADIENTS:]
        gains = np.where(upper < np.minimum(value, lower), value - upper, 0.0)
        gains -= np.where(lower < np.minimum(value, upper), value - lower, 0.0)
        directions = [-gradients[-1], gains, -shortest_in_hull(np.array(gradients))]
        lengths = [np.abs(direction).max() for direction in directions]
        directions = [
            direction / length
            for direction, length in zip(directions, lengths, strict=True)
            if length > 0
        ]
        # The first two steps along each; it is quicker to predict one in vain than one alone.
        merit.expect(
            [
                bounded(space, point + factor * width * direction)
                for direction in directions
                for factor in FIRST_STEPS
            ]
        )
        for direction in directions:
            start = point, best, lowest
            best, lowest = _search_line(space, start, direction, width, merit)
        if lowest < value - _IMPROVED:
            point, value = best, lowest
        else:
            width /= 2
            gradients = []
    return point, value


def _differences(
    space: Space, point: Vector, value: float, widths: Vector, merit: _Merits
) -> tuple[tuple[Vector, float], Vector, Vector]:
    """(best of all points seen, its merit), and merits above and below ``point`` in each
    coordinate; an impossible one counts as a step up."""
    best, lowest = point, value
    moves = np.diag(widths)
    points = [bounded(space, point + sign * move) for move in moves for sign in (1.0, -1.0)]
    merit.expect(points)
    sides = np.empty(len(points))
    for place, moved in enumerate(points):
        found = merit(moved)
        if found < lowest:
            best, lowest = moved, found
        sides[place] = found if math.isfinite(found) else value + 1.0
    return (best, lowest), sides[::2], sides[1::2]


def _search_line(
    space: Space,
    start: tuple[Vector, Vector, float],
    direction: Vector,
    width: float,
    merit: _Merits,
) -> tuple[Vector, float]:
    """(best, its merit) with points from ``point`` along ``direction``, of largest entry 1.

    ``start``: the point, the best seen so far, and its merit. A first step that is no better is
    cut to a quarter once; as long as a step is better, the next is twice as long.
    """
    point, best, lowest = start
    length = FIRST_STEPS[0] * width
    moved = bounded(space, point + length * direction)
    found = merit(moved)
    if found >= lowest:
        length = FIRST_STEPS[1] * width
        moved = bounded(space, point + length * direction)
        found = merit(moved)
    while found < lowest - _IMPROVED:
        best, lowest = moved, found
        length *= 2
        moved = bounded(space, point + length * direction)
        found = merit(moved)
    return best, lowest


def shortest_in_hull(vectors: npt.NDArray[np.float64]) -> Vector:
    """The shortest vector in the convex hull of the rows, by the method of Frank and Wolfe (1956).

    A few hundredths of its length are precise enough for a direction, hence the fixed steps.
    """
    products = vectors @ vectors.T
    weights = np.full(len(vectors), 1 / len(vectors))
    for _ in range(100):
        slopes = products @ weights
        towards = -weights
        towards[int(np.argmin(slopes))] += 1.0
        curvature = float(towards @ products @ towards)
        if curvature <= 0:
            break
        step = min(1.0, -float(towards @ slopes) / curvature)
        if step <= 1e-9:
            break
        weights = weights + step * towards
    shortest: Vector = weights @ vectors
    return shortest
