"""A design vector to a prediction, and to what an optimiser sees of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from deepflow.config import with_overrides
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import derive_hardware
from deepflow.prediction import Prediction, predict
from deepflow.search.objectives import METRICS, OBJECTIVES
from deepflow.search.space import Case, Search

PENALTY = 10.0
"""Merit of a limit that is exceeded e-fold: more than what exceeding it can gain."""

REMEMBERED = 50_000

# They act through the derived device alone.
_BUDGETS = ("area_breakdown.", "power_breakdown.", "perimeter_breakdown.")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One design and what it is worth.

    ``cost`` is what is minimised: the objective, its inverse if more is better, of several the
    weighted geometric mean; infinite for an impossible design. ``excess`` adds up how far limits
    are exceeded (logarithms), ``overflow`` is needed over available memory.
    """

    design: tuple[float, ...]
    prediction: Prediction
    cost: float
    excess: float
    overflow: float
    within_budgets: bool

    @property
    def merit(self) -> float:
        """What optimisers minimise: logarithm of the cost, with a penalty for limits."""
        return math.log(self.cost) + PENALTY * self.excess

    @property
    def feasible(self) -> bool:
        return self.within_budgets and self.excess == 0 and math.isfinite(self.cost)


Evaluate = Callable[[Sequence[float]], Evaluation]


def evaluator(search: Search, case: Case, start: int) -> Evaluate:
    """The function from designs to evaluations, for one start of a case.

    Designs of which the same device comes out are predicted once: numbers of banks, stacks and
    links are whole, so small steps often change nothing.
    """
    weights = search.weights(start)
    wanted = [name for name, weight in zip(search.objectives, weights, strict=True) if weight]
    weights = tuple(weight for weight in weights if weight)
    remembered: dict[Hashable, Prediction] = {}

    def evaluate(given: Sequence[float]) -> Evaluation:
        design = tuple(map(float, given))
        prediction = _predicted(search, case, design, remembered)
        within = search.space.within_budgets(design)
        if prediction.time_s is None:
            return Evaluation(design, prediction, math.inf, 0.0, 0.0, within)
        cost = 1.0
        for name, weight in zip(wanted, weights, strict=True):
            value = _known(METRICS[name].of(prediction), name, "objectives", search, case)
            if value <= 0:
                raise DeepFlowError(f"objective {name} is {value:g}, of which there is no best")
            cost *= (1 / value if OBJECTIVES[name] else value) ** weight
        needed, there = prediction.peak_memory_bytes, prediction.memory_capacity_bytes
        overflow = needed / there if needed is not None and there else 0.0
        excess = math.log(overflow) if search.must_fit and overflow > 1 else 0.0
        for limit in search.limits:
            found = METRICS[limit.metric].of(prediction)
            excess += limit.excess(
                _known(found, limit.metric, f"constraints.{limit.metric}", search, case)
            )
        return Evaluation(design, prediction, cost, excess, overflow, within)

    return evaluate


def _predicted(
    search: Search, case: Case, design: Sequence[float], remembered: dict[Hashable, Prediction]
) -> Prediction:
    of_hardware, of_model = search.space.changes(design, case.hardware)
    try:
        hardware = derive_hardware(with_overrides(case.hardware, of_hardware))
        model = with_overrides(case.model, of_model) if of_model else case.model
    except InfeasiblePoint as error:
        return Prediction(status=error.status, reason=str(error))
    except ConfigError as error:
        # A key that is missing is missing in every design; values have been accepted one by one.
        if error.value is None:
            raise
        return Prediction(status="infeasible", reason=str(error))
    others = tuple(
        (path, value) for path, value in of_hardware.items() if not path.startswith(_BUDGETS)
    )
    key = (hardware.accelerator, others, tuple(of_model.items()))
    found = remembered.get(key)
    if found is None:
        try:
            found = predict(hardware, model)
        except InfeasiblePoint as error:
            found = Prediction(status=error.status, reason=str(error))
        if len(remembered) >= REMEMBERED:
            remembered.clear()
        remembered[key] = found
    return found


def _known(value: float | None, name: str, key: str, search: Search, case: Case) -> float:
    """A metric that the search needs; raises ConfigError if predictions do not have it."""
    if value is None:
        raise ConfigError(
            f"{name} is not known for model {case.model.name} on hardware {case.hardware.name}:"
            " it means nothing to this model, or the hardware file lacks what it follows from",
            file=search.file,
            key=key,
        )
    return value
