"""Global optimisers of SciPy and pymoo, in the coordinates of ``gradient.py``.

They need no slopes and look at the whole space, for which they take many times the evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from deepflow.errors import DeepFlowError
from deepflow.search.evaluate import Evaluate, Evaluation, Expect, expect_nothing
from deepflow.search.gradient import VARIABLE_WIDTH, design_of, draw
from deepflow.search.space import Space, Vector

LEAST_LOGARITHM = -6.0  # of a fraction over the largest one
IMPOSSIBLE = 1e6  # merit; SciPy takes no infinities
POPULATION_PER_DIMENSION = 4
POPULATION = 40
MUTATION_INDEX = 5  # of polynomial mutation (Deb and Goyal, 1996): the smaller, the wider
ENDLESS = 10**6


def evolve(evaluate: Evaluate, space: Space, seed: int, expect: Expect = expect_nothing) -> None:
    """Differential evolution (Storn and Price, 1997)."""
    from scipy.optimize import differential_evolution

    merit = _merit(evaluate, space)

    def of_population(coordinates: Vector) -> list[float]:
        expect([design_of(space, point).tolist() for point in coordinates.T])
        return [merit(point) for point in coordinates.T]

    differential_evolution(
        of_population,
        _bounds(space),
        vectorized=True,
        updating="deferred",
        seed=np.random.default_rng(seed),
        popsize=POPULATION_PER_DIMENSION,
        maxiter=ENDLESS,
        tol=0,
        polish=False,
    )


def anneal(evaluate: Evaluate, space: Space, seed: int, expect: Expect = expect_nothing) -> None:
    """Generalised simulated annealing with local searches (Xiang and others, 1997)."""
    from scipy.optimize import dual_annealing

    dual_annealing(
        _merit(evaluate, space),
        _bounds(space),
        seed=np.random.default_rng(seed),
        maxiter=ENDLESS,
    )


def evolve_front(
    evaluate: Evaluate, space: Space, seed: int, expect: Expect = expect_nothing
) -> None:
    """NSGA-II (Deb and others, 2002) of pymoo (Blank and Deb, 2020): the front of all objectives.

    A design that exceeds limits is worse than any that does not. Children take each coordinate from
    either parent. One of them changes on average: a number a little (polynomial mutation), an
    alternative to any other; with pymoo's own rate for these, most children change theirs.
    """
    mixed, variable = _pymoo("core.mixed"), _pymoo("core.variable")
    numbers = space.size - len(space.axes)
    variables = {
        str(place): variable.Real(bounds=bounds)
        for place, bounds in enumerate(_bounds(space)[:numbers])
    }
    variables |= {
        str(numbers + place): variable.Choice(options=list(range(len(axis.changes))))
        for place, axis in enumerate(space.axes)
    }
    generator = np.random.default_rng(seed)

    def drawn() -> dict[str, float]:
        point = draw(space, generator)
        for block in space.blocks:
            point[block] = np.maximum(point[block] - point[block].max(), LEAST_LOGARITHM)
        genes = {str(place): float(point[place]) for place in range(numbers)}
        genes |= {
            str(numbers + place): int(generator.integers(len(axis.changes)))
            for place, axis in enumerate(space.axes)
        }
        return genes

    def design(genes: Mapping[str, float]) -> list[float]:
        point = np.array([genes[str(place)] for place in range(space.size)], np.float64)
        for place, axis in enumerate(space.axes, numbers):
            point[place] *= VARIABLE_WIDTH * axis.coordinate_step
        return [float(value) for value in design_of(space, point)]

    uniform = _pymoo("operators.crossover.ux").UX()
    little = _pymoo("operators.mutation.pm").PM(eta=MUTATION_INDEX, prob_var=1 / space.size)
    any_other = _pymoo("operators.mutation.rm").ChoiceRandomMutation(prob_var=1 / space.size)
    algorithm = mixed.MixedVariableGA(
        pop_size=POPULATION,
        sampling=_pymoo("core.population").Population.new(
            X=np.array([drawn() for _ in range(POPULATION)])
        ),
        mating=mixed.MixedVariableMating(
            crossover={variable.Real: uniform, variable.Choice: uniform},
            mutation={variable.Real: little, variable.Choice: any_other},
            eliminate_duplicates=mixed.MixedVariableDuplicateElimination(),
        ),
        survival=_pymoo("algorithms.moo.nsga2").RankAndCrowding(),
    )
    problem = _pymoo("core.problem").Problem(vars=variables, n_obj=1, n_ieq_constr=1)
    endless = _pymoo("core.termination").NoTermination()
    algorithm.setup(problem, termination=endless, seed=seed, verbose=False)
    # It asks for nothing more where all alternatives have been tried.
    while (infills := algorithm.ask()) is not None and len(infills):
        designs = [design(genes) for genes in infills.get("X")]
        expect(designs)
        found = [evaluate(each) for each in designs]
        values = np.minimum(np.log([item.values for item in found]), IMPOSSIBLE)
        infills.set("F", values)
        infills.set("G", np.array([[_violation(item)] for item in found]))
        for one in infills:
            one.evaluated |= {"F", "G"}
        algorithm.tell(infills=infills)


def _pymoo(module: str) -> Any:
    """A module of pymoo, which only this optimiser needs.

    Raises DeepFlowError if it is not installed.
    """
    try:
        return import_module(f"pymoo.{module}")
    except ImportError as error:
        raise DeepFlowError(
            f"optimizer.method nsga2 needs pymoo, which cannot be imported ({error});"
            " pip install pymoo"
        ) from None


def _violation(found: Evaluation) -> float:
    """How far a design is from a possible one within limits; 0 for one that is."""
    return found.excess if math.isfinite(found.cost) else IMPOSSIBLE


def _bounds(space: Space) -> list[tuple[float, float]]:
    variables = space.size - space.fractions
    return [(LEAST_LOGARITHM, 0.0)] * space.fractions + [(0.0, VARIABLE_WIDTH)] * variables


def _merit(evaluate: Evaluate, space: Space) -> Callable[[Vector], float]:
    def merit(point: Vector) -> float:
        found = evaluate(design_of(space, point).tolist())
        return found.merit if math.isfinite(found.cost) else IMPOSSIBLE

    return merit
