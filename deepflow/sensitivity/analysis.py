"""Elasticities of a prediction in the parameters of its hardware.

The elasticity of an objective f in a parameter p is d ln f / d ln p: by how many per cent f
changes when p rises by one. It is found by a small step to each side, p (1 + h) and p / (1 + h),
and because the model has kinks (a tile that no longer fits, another algorithm, another
bottleneck) the two sides are kept apart. What a large change does, the double and the half, shows
what a slope cannot: that a parameter stops to matter, or that the point no longer fits in memory.

Prediction keeps its units: with every time twice as long and every rate half as high, time doubles
(but for the few fixed times that a network simulator has). By Euler's theorem on homogeneous
functions the elasticities then add up, each counted with the power of seconds in its parameter's
unit, to that of the objective (``Analysis.balance``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from deepflow.config import HardwareConfig, ModelConfig, flatten, with_overrides
from deepflow.config.schema import Key, key_at, resolve_path
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import Hardware, derive_hardware
from deepflow.prediction import COLUMNS, Prediction, predict

LARGE = 2.0
"""The factor of a large change."""

SMALL = 0.01
"""The default step, relative."""

LARGEST_STEP = 0.5

CONTRADICTION = "contradiction"
"""Status of a change that other keys of the file do not allow."""

OBJECTIVES = tuple(name for name, column in COLUMNS.items() if column.dtype in (int, float))

_NOTHING = 1e-9
"""Logarithmic changes below this are rounding."""

_KINK = (0.01, 0.1)
"""Sides of a small step differ if by more than this: elasticity, part of the greater side."""

_SECTIONS = (
    "sw_param.",
    "tech_param.",
    "area_breakdown.",
    "power_breakdown.",
    "perimeter_breakdown.",
    "system_hierarchy.",
    "network_topology.",
)
# How many devices there are and how work is laid out on them is what sweeps vary: with other
# numbers, degrees of parallelism change too, so that nothing is held fixed.
_COUNTS = ("system_hierarchy.num_devices_per_node", "system_hierarchy.num_nodes")

_SECONDS = {"s": 1, "bytes/s": -1, "bit/s": -1, "Hz": -1, "W": -1, "W/bit": -1}
"""The power of seconds in the units of hardware keys; energy counts as a unit of its own."""

_SECONDS_OF_RESULT = {"s": 1, "1/s": -1, "bytes/s": -1, "FLOP/s": -1, "W": -1}


@dataclass(frozen=True)
class Plan:
    """What to find out of a point.

    ``objective``: a numeric column of predictions (``OBJECTIVES``). ``step``: the small step,
    relative. ``keys``: canonical hardware paths; none means all that ``parameters_of`` finds.
    """

    objective: str = "time_s"
    step: float = SMALL
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """The point with one parameter changed.

    ``factor``: new over old value; not 2 or 1/2 where the key's range or whole numbers allow less.
    ``ratio``: the objective over that of the point; None if there is none (``status``, ``reason``).
    ``status``: that of the prediction, or ``CONTRADICTION``.
    """

    factor: float
    ratio: float | None
    status: str
    reason: str = ""
    backend: str = ""

    @property
    def slope(self) -> float | None:
        """Elasticity over the whole change."""
        if self.ratio is None or self.factor == 1:
            return None
        return math.log(self.ratio) / math.log(self.factor) if self.ratio != 1 else 0.0

    @property
    def exponent(self) -> float:
        """Logarithm of the ratio, 0 if there is none."""
        return math.log(self.ratio) if self.ratio is not None else 0.0


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one parameter does. ``doubled`` or ``halved`` is None if its range forbids any change.

    ``up`` and ``down`` are the elasticities of the small step to each side.
    """

    parameter: str
    unit: str
    value: float
    up: float | None
    down: float | None
    doubled: Change | None
    halved: Change | None
    effect: bool
    note: str

    @property
    def elasticity(self) -> float | None:
        """Mean of both sides, or the one that there is."""
        sides = [side for side in (self.up, self.down) if side is not None]
        return sum(sides) / len(sides) if sides else None

    @property
    def kink(self) -> bool:
        """The two sides differ, so that the mean describes neither."""
        return self.up is not None and self.down is not None and _differ(self.up, self.down)

    @property
    def swing(self) -> float:
        """Distance of the ends of the tornado's bar, in logarithms of the objective."""
        ends = [0.0, *(side.exponent for side in (self.doubled, self.halved) if side is not None)]
        return max(ends) - min(ends)


@dataclass(frozen=True)
class Analysis:
    """The sensitivities of a point, those that matter most first.

    ``value``: the objective. ``predictions``: how many it took.
    """

    plan: Plan
    prediction: Prediction
    value: float
    sensitivities: tuple[Sensitivity, ...]
    predictions: int

    @property
    def with_effect(self) -> tuple[Sensitivity, ...]:
        return tuple(item for item in self.sensitivities if item.effect)

    @property
    def balance(self) -> tuple[float, int]:
        """(sum, degree): elasticities times powers of seconds in units, and what Euler asks for.

        They are equal if all parameters are covered and none is at a kink or the end of its range.
        """
        total = math.fsum(
            _SECONDS.get(item.unit, 0) * (item.elasticity or 0.0) for item in self.sensitivities
        )
        return total, _SECONDS_OF_RESULT.get(COLUMNS[self.plan.objective].unit, 0)


def make_plan(
    objective: str = "time_s",
    percent: float = 100 * SMALL,
    keys: tuple[str, ...] = (),
    file: str = "",
    place: str = "",
) -> Plan:
    """A checked plan; ``keys`` are spelled as for ``--set``, ``file`` and ``place`` name errors.

    Raises ConfigError.
    """
    from deepflow.config import did_you_mean

    if objective not in OBJECTIVES:
        raise ConfigError(
            "is no number of a prediction" + did_you_mean(objective, OBJECTIVES),
            file=file,
            key=f"{place}objective",
            value=objective,
        )
    if not 0 < percent <= 100 * LARGEST_STEP:
        raise ConfigError(
            "is no small step",
            file=file,
            key=f"{place}step",
            value=percent,
            allowed=f"above 0 and at most {100 * LARGEST_STEP:g} (per cent)",
        )
    return Plan(objective, percent / 100, tuple(_canonical(key, file) for key in keys))


def _canonical(given: str, file: str) -> str:
    root, _, rest = given.partition(".")
    if root != "hardware":
        raise ConfigError("is not below hardware", file=file, key=given)
    path = resolve_path(HardwareConfig, rest, file=file, shown_key=given)
    key = key_at(HardwareConfig, path)
    if not _continuous(key):
        raise ConfigError("is no number that can be varied", file=file, key=given)
    return path


def _continuous(key: Key) -> bool:
    """A number, of which the range is not a handful of choices."""
    return bool(key.kinds & {int, float}) and key.option.choices is None


def parameters_of(hardware: HardwareConfig) -> dict[str, float]:
    """Canonical path -> SI value of every positive number that describes devices and links.

    What no file gives and no default fills in has no value to change, and is left out.
    """
    return {
        path: value
        for path, value in flatten(hardware).items()
        if path.startswith(_SECTIONS)
        and path not in _COUNTS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and value > 0
        and _continuous(key_at(HardwareConfig, path))
    }


def analyse(hardware: HardwareConfig, model: ModelConfig, plan: Plan) -> Analysis:
    """Finds what the parameters of ``hardware`` do to the objective of ``plan``.

    Raises:
        InfeasiblePoint: the point itself cannot exist.
        ConfigError: a key of the plan has no positive value, or the prediction no such objective.
        DeepFlowError: as ``predict``.
    """
    point = _Point(hardware, model, plan.objective)
    chosen = _chosen(hardware, plan.keys)
    found = [_sensitivity(point, path, value, plan.step) for path, value in chosen.items()]
    found.sort(key=lambda item: (-abs(item.elasticity or 0.0), -item.swing, not item.effect))
    return Analysis(plan, point.prediction, point.value, tuple(found), point.predictions)


def _chosen(hardware: HardwareConfig, keys: tuple[str, ...]) -> dict[str, float]:
    if not keys:
        return parameters_of(hardware)
    flat = flatten(hardware)
    chosen = {}
    for path in keys:
        value = flat[path]
        if not isinstance(value, int | float) or value <= 0:
            raise ConfigError(
                "has no positive value here, so it cannot rise by some per cent",
                file=hardware.file,
                key=path,
                value="null" if value is None else value,
            )
        chosen[path] = value
    return chosen


class _Point:
    """A point and predictions of it with other values; equal devices are predicted once."""

    def __init__(self, hardware: HardwareConfig, model: ModelConfig, objective: str) -> None:
        self.hardware, self.model, self.objective = hardware, model, objective
        self.predictions = 1
        derived = derive_hardware(hardware)
        self.prediction = predict(derived, model)
        value = getattr(self.prediction, objective)
        if value is None or not value > 0:
            raise ConfigError(
                f"{objective} is not known of {model.name} on {hardware.name}"
                if value is None
                else f"{objective} is {value:g}, which has no logarithm",
                key="objective",
            )
        self.value = value
        self._remembered = {_what_predictions_read(derived): self.prediction}

    def changed(self, path: str, old: float, new: float) -> Change:
        """The effect of ``new`` in the place of ``old``; contradictions are a status too."""
        factor = new / old
        try:
            derived = derive_hardware(with_overrides(self.hardware, {path: new}))
            prediction = self._predicted(derived)
        except InfeasiblePoint as error:
            return Change(factor, None, error.status, str(error))
        except DeepFlowError as error:
            # Each value is within its key's range, so it is the combination that is wrong.
            return Change(factor, None, CONTRADICTION, str(error))
        value = getattr(prediction, self.objective)
        ratio = value / self.value if value is not None and value > 0 else None
        return Change(factor, ratio, prediction.status, prediction.reason, prediction.backend_used)

    def _predicted(self, derived: Hardware) -> Prediction:
        key = _what_predictions_read(derived)
        if key not in self._remembered:
            self.predictions += 1
            # What there is to say has been said of the point itself.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._remembered[key] = predict(derived, self.model)
        return self._remembered[key]


def _what_predictions_read(hardware: Hardware) -> tuple[object, ...]:
    """All of ``hardware`` that a prediction depends on.

    Budgets and the technology of memories and links act through the derived device alone.
    """
    config = hardware.config
    return (
        hardware.accelerator,
        config.tech_param.core,
        config.sw_param,
        config.system_hierarchy,
        config.network_topology,
        config.scheduling_param,
        config.execution_backend,
    )


def _sensitivity(point: _Point, path: str, value: float, step: float) -> Sensitivity:
    key = key_at(HardwareConfig, path)
    doubled, halved = (_at(point, path, key, value, factor) for factor in (LARGE, 1 / LARGE))
    up = down = 0.0 if doubled is not None or halved is not None else None
    if _matters(point, doubled) or _matters(point, halved):
        above, below = (_at(point, path, key, value, side) for side in (1 + step, 1 / (1 + step)))
        up = None if above is None else above.slope
        down = None if below is None else below.slope
    effect = _matters(point, doubled) or _matters(point, halved)
    note = "; ".join(_notes(point, key, up, down, doubled, halved))
    return Sensitivity(
        f"hardware.{path}", key.option.unit, value, up, down, doubled, halved, effect, note
    )


def _at(point: _Point, path: str, key: Key, value: float, factor: float) -> Change | None:
    """The change by about ``factor`` that the key's range and type allow; None if none."""
    new: float = value * factor
    whole = float not in key.kinds
    if whole:
        new = max(value + 1, round(new)) if factor > 1 else min(value - 1, round(new))
    low, high = _limits(key)
    new = min(max(new, low), high)
    # At the end of its range, or beyond it where files may be more daring than the usual range.
    if new <= 0 or (new <= value if factor > 1 else new >= value):
        return None
    return point.changed(path, value, int(new) if whole else new)


def _limits(key: Key) -> tuple[float, float]:
    described = key.option
    plausible = described.plausible or (0.0, math.inf)
    return (
        max(described.minimum or 0.0, plausible[0]),
        min(math.inf if described.maximum is None else described.maximum, plausible[1]),
    )


def _matters(point: _Point, change: Change | None) -> bool:
    if change is None or change.status == CONTRADICTION:
        return False
    other = change.status != point.prediction.status or change.ratio is None
    return other or abs(change.exponent) > _NOTHING


def _differ(up: float, down: float) -> bool:
    least, part = _KINK
    return abs(up - down) > max(least, part * max(abs(up), abs(down)))


def _notes(
    point: _Point,
    key: Key,
    up: float | None,
    down: float | None,
    doubled: Change | None,
    halved: Change | None,
) -> Iterator[str]:
    """What the numbers alone do not say."""
    if up is not None and down is not None and _differ(up, down):
        yield f"kink: {up:+.3g} above, {down:+.3g} below"
    was = point.prediction.status
    for change, end in ((doubled, "upper"), (halved, "lower")):
        if change is None:
            yield f"at the {end} end of its range"
            continue
        if change.status == CONTRADICTION:
            yield f"not possible at x{change.factor:.3g}: {change.reason}"
        elif change.status != was:
            says = {"ok": "fits in memory", "out_of_memory": "out of memory"}
            text = f"{says.get(change.status, change.status)} at x{change.factor:.3g}"
            yield f"{text}: {change.reason}" if change.ratio is None else text
        elif change.ratio is None:
            yield f"no such objective at x{change.factor:.3g}"
        if change.backend not in ("", point.prediction.backend_used):
            yield f"{change.backend} backend at x{change.factor:.3g}"
    still = all(change is None or abs(change.exponent) <= _NOTHING for change in (doubled, halved))
    if key.option.unit == "bytes" and still and was == "ok":
        yield "capacity is not binding"
