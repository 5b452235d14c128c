"""Global optimisers of SciPy, in the coordinates of ``gradient.py``.

They need no slopes and look at the whole space, for which they take many times the evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deepflow.search.evaluate import Evaluate
from deepflow.search.gradient import VARIABLE_WIDTH, design_of
from deepflow.search.space import Space, Vector

LEAST_LOGARITHM = -6.0  # of a fraction over the largest one
IMPOSSIBLE = 1e6  # merit; SciPy takes no infinities
POPULATION_PER_DIMENSION = 4
ENDLESS = 10**6


def evolve(evaluate: Evaluate, space: Space, seed: int) -> None:
    """Differential evolution (Storn and Price, 1997)."""
    from scipy.optimize import differential_evolution

    differential_evolution(
        _merit(evaluate, space),
        _bounds(space),
        seed=np.random.default_rng(seed),
        popsize=POPULATION_PER_DIMENSION,
        maxiter=ENDLESS,
        tol=0,
        polish=False,
    )


def anneal(evaluate: Evaluate, space: Space, seed: int) -> None:
    """Generalised simulated annealing with local searches (Xiang and others, 1997)."""
    from scipy.optimize import dual_annealing

    dual_annealing(
        _merit(evaluate, space),
        _bounds(space),
        seed=np.random.default_rng(seed),
        maxiter=ENDLESS,
    )


def _bounds(space: Space) -> list[tuple[float, float]]:
    variables = space.size - space.fractions
    return [(LEAST_LOGARITHM, 0.0)] * space.fractions + [(0.0, VARIABLE_WIDTH)] * variables


def _merit(evaluate: Evaluate, space: Space) -> Callable[[Vector], float]:
    def merit(point: Vector) -> float:
        found = evaluate(design_of(space, point).tolist())
        return found.merit if math.isfinite(found.cost) else IMPOSSIBLE

    return merit
