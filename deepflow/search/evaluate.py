"""A design vector to a prediction, and to what an optimiser sees of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepflow.config import LstmModel, ModelConfig, with_overrides
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import Hardware, derive_hardware
from deepflow.prediction import Prediction, predict
from deepflow.search.objectives import METRICS, OBJECTIVES, Device, device_numbers
from deepflow.search.space import Case, Search

if TYPE_CHECKING:
    from deepflow.schedule.recurrent import RecurrentWork

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
    are exceeded (logarithms), ``overflow`` is needed over available memory. ``device`` holds the
    numbers of the device itself, none if there is no such device. ``values``: every objective, or
    its inverse; infinite for an impossible design.
    """

    design: tuple[float, ...]
    prediction: Prediction
    cost: float
    excess: float
    overflow: float
    within_budgets: bool
    device: Device = field(default_factory=dict)
    values: tuple[float, ...] = ()

    @property
    def merit(self) -> float:
        """What optimisers minimise: logarithm of the cost, with a penalty for limits."""
        return math.log(self.cost) + PENALTY * self.excess

    @property
    def feasible(self) -> bool:
        return self.within_budgets and self.excess == 0 and math.isfinite(self.cost)


Design = tuple[float, ...]
Evaluate = Callable[[Sequence[float]], Evaluation]
Expect = Callable[[Sequence[Sequence[float]]], None]


def expect_nothing(designs: Sequence[Sequence[float]]) -> None:
    """For functions that gain nothing by knowing what is asked next."""


class Evaluator:
    """The function from designs to evaluations, for one start of a case.

    Designs of which the same device comes out are predicted once: numbers of banks, stacks and
    links are whole, so small steps often change nothing.
    """

    def __init__(self, search: Search, case: Case, start: int) -> None:
        self._search, self._case = search, case
        self._weights = search.weights(start)
        self._expected: dict[Design, _Point] = {}
        self._works: dict[Hashable, RecurrentWork] = {}
        self._remembered: dict[Hashable, Prediction] = {}

    def expect(self, designs: Sequence[Sequence[float]]) -> None:
        """Predicts together, which is quicker, ``designs`` that may be evaluated next.

        Training steps of LSTMs only; others are predicted when they are evaluated.
        """
        together: dict[Hashable, dict[Hashable, _Point]] = {}
        self._expected = {}
        for given in designs:
            design = tuple(map(float, given))
            point = self._expected[design] = self._point(design)
            if (
                point.hardware is not None
                and isinstance(point.model, LstmModel)
                and point.hardware.config.execution_backend.model == "analytical"
                and point.key not in self._remembered
            ):
                together.setdefault(point.alike, {})[point.key] = point
        for alike, points in together.items():
            if len(points) > 1:
                self._predict_together(alike, points)

    def _predict_together(self, alike: Hashable, points: Mapping[Hashable, _Point]) -> None:
        from deepflow.batch.recurrent import predict_on_devices
        from deepflow.schedule.recurrent import recurrent_work

        devices = [point.hardware for point in points.values() if point.hardware is not None]
        model = next(iter(points.values())).model
        assert isinstance(model, LstmModel)
        if alike not in self._works:
            for device in devices:
                with suppress(InfeasiblePoint):
                    self._works[alike] = recurrent_work(device, model)
                    break
            else:
                return
        predictions = predict_on_devices(devices, model, self._works[alike])
        for key, prediction in zip(points, predictions, strict=True):
            if prediction is not None:
                self._remember(key, prediction)

    def __call__(self, given: Sequence[float]) -> Evaluation:
        search, case = self._search, self._case
        design = tuple(map(float, given))
        point = self._expected.get(design) or self._point(design)
        prediction, device = self._prediction(point), point.device
        within = search.space.within_budgets(design)
        if prediction.time_s is None:
            return Evaluation(
                design, prediction, math.inf, 0.0, 0.0, within, device, self.values(prediction, {})
            )
        values = self.values(prediction, device)
        cost = math.prod(value**weight for value, weight in zip(values, self._weights, strict=True))
        needed, there = prediction.peak_memory_bytes, prediction.memory_capacity_bytes
        overflow = needed / there if needed is not None and there else 0.0
        excess = math.log(overflow) if search.must_fit and overflow > 1 else 0.0
        for limit in search.limits:
            found = METRICS[limit.metric].of(prediction, device)
            excess += limit.excess(
                _known(found, limit.metric, f"constraints.{limit.metric}", search, case)
            )
        return Evaluation(design, prediction, cost, excess, overflow, within, device, values)

    def values(self, prediction: Prediction, device: Device) -> tuple[float, ...]:
        """``Evaluation.values`` of a prediction.

        Raises ConfigError or DeepFlowError for an objective that is not known, or not positive.
        """
        if prediction.time_s is None:
            return (math.inf,) * len(self._search.objectives)
        values = []
        for name in self._search.objectives:
            found = METRICS[name].of(prediction, device)
            value = _known(found, name, "objectives", self._search, self._case)
            if value <= 0:
                raise DeepFlowError(f"objective {name} is {value:g}, of which there is no best")
            values.append(1 / value if OBJECTIVES[name] else value)
        return tuple(values)

    def _point(self, design: Design) -> _Point:
        search, case = self._search, self._case
        of_hardware, of_model = search.space.changes(design, case.hardware)
        try:
            hardware = derive_hardware(with_overrides(case.hardware, of_hardware))
            device = device_numbers(hardware)
            model = with_overrides(case.model, of_model) if of_model else case.model
        except InfeasiblePoint as error:
            impossible = Prediction(status=error.status, reason=str(error))
            return _Point(None, case.model, impossible=impossible)
        except ConfigError as error:
            # A key that is missing is missing in all designs; values have been accepted one by one.
            if error.value is None:
                raise
            impossible = Prediction(status="infeasible", reason=str(error))
            return _Point(None, case.model, impossible=impossible)
        others = tuple(
            (path, value) for path, value in of_hardware.items() if not path.startswith(_BUDGETS)
        )
        alike = (others, tuple(of_model.items()))
        return _Point(hardware, model, alike, (hardware.accelerator, *alike), device)

    def _prediction(self, point: _Point) -> Prediction:
        if point.hardware is None:
            return point.impossible
        found = self._remembered.get(point.key)
        if found is None:
            try:
                found = predict(point.hardware, point.model)
            except InfeasiblePoint as error:
                found = Prediction(status=error.status, reason=str(error))
            self._remember(point.key, found)
        return found

    def _remember(self, key: Hashable, prediction: Prediction) -> None:
        if len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        self._remembered[key] = prediction


@dataclass(frozen=True, slots=True)
class _Point:
    """What a design means; without ``hardware`` it cannot exist, and ``impossible`` says why.

    Points that are ``alike`` differ in budgets only. Equal ``key``, equal prediction.
    """

    hardware: Hardware | None
    model: ModelConfig
    alike: Hashable = ()
    key: Hashable = ()
    device: Device = field(default_factory=dict)
    impossible: Prediction = Prediction()


def evaluator(search: Search, case: Case, start: int) -> Evaluator:
    """What evaluates designs in one start of a case."""
    return Evaluator(search, case, start)


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
