"""Search YAML to a space: cases, and in each of them design vectors that mean hardware keys.

A *case* is one combination of everything that is not a number between bounds: technology, choices,
a strategy and its layout. Within a case, a *design vector* has the fractions of each budget, which
add up to its ``share``, and a coordinate from 0 to 1 for each variable. If cases are searched
``together``, there is only one, and a further coordinate for each *axis* of combinations.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepflow.config import (
    HardwareConfig,
    ModelConfig,
    did_you_mean,
    load_framework_config,
    load_hardware_config,
    load_model_config,
    read_yaml,
    split_overrides,
    with_overrides,
)
from deepflow.config.model import GemmModel, LstmModel
from deepflow.config.schema import key_at, resolve_path
from deepflow.config.technology import KINDS, TECHNOLOGY_SCHEMA, named, technology_settings
from deepflow.config.units import parse_quantity
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.search.objectives import METRICS, OBJECTIVES
from deepflow.search.schema import (
    BUDGET_SCHEMA,
    CONSTRAINT_SCHEMA,
    METHODS,
    OPTIMIZER_SCHEMA,
    SEARCH_SCHEMA,
    STRATEGIES_SCHEMA,
    VARIABLE_SCHEMA,
)
from deepflow.sweep import identity
from deepflow.sweep.schema import check_object
from deepflow.sweep.settings import Changes, Setting, canonical_settings, find_file

Vector = npt.NDArray[np.float64]

TOGETHER = "all"
"""The only case of a search that takes all cases together."""

MOST_CASES = 10_000
"""Each case is a search of its own."""


@dataclass(frozen=True)
class Budget:
    """Parts that share ``share`` of a whole: ``total`` in the unit of the parts, or a key's value.

    ``parts`` and ``total_key`` are canonical hardware paths. ``may_save``: one more fraction of
    the design vector is what is left unused.
    """

    name: str
    parts: tuple[str, ...]
    total: float | None
    total_key: str | None
    share: float
    may_save: bool

    @property
    def size(self) -> int:
        """Fractions in the design vector."""
        return len(self.parts) + self.may_save


@dataclass(frozen=True)
class Variable:
    """A key between bounds, in SI units; ``path`` begins with hardware or model."""

    path: str
    low: float
    high: float
    log: bool
    integer: bool
    step: float | None

    def value(self, coordinate: float) -> float | int:
        """The key's value at a coordinate from 0 to 1, on a step if there are steps."""
        coordinate = min(max(coordinate, 0.0), 1.0)
        if self.log:
            found = self.low * float((self.high / self.low) ** coordinate)
        else:
            found = self.low + (self.high - self.low) * coordinate
        found = min(max(found, self.low), self.high)
        if self.step is not None:
            most = math.floor((self.high - self.low) / self.step * (1 + 1e-12))
            found = self.low + self.step * min(round((found - self.low) / self.step), most)
        return round(found) if self.integer else found

    @property
    def coordinate_step(self) -> float:
        """What a coordinate has to move for another value, at the high end; 0 without steps."""
        if self.step is None:
            return 0.0
        if self.log:
            return math.log1p(self.step / self.high) / math.log(self.high / self.low)
        return self.step / (self.high - self.low)


@dataclass(frozen=True)
class Axis:
    """Alternatives of which a coordinate chooses one: result columns and changes of each."""

    columns: tuple[Mapping[str, object], ...]
    changes: tuple[Changes, ...]

    def index(self, coordinate: float) -> int:
        """Number of the alternative at a coordinate from 0 to 1."""
        return round(min(max(coordinate, 0.0), 1.0) * (len(self.changes) - 1))

    @property
    def coordinate_step(self) -> float:
        """What a coordinate has to move for another alternative; 0 if there is none."""
        return 1 / (len(self.changes) - 1) if len(self.changes) > 1 else 0.0


@dataclass(frozen=True)
class Limit:
    """A bound of a metric."""

    metric: str
    value: float
    is_upper: bool

    def excess(self, found: float) -> float:
        """Logarithm of how far ``found`` is beyond the limit, 0 within it."""
        within = found <= self.value if self.is_upper else found >= self.value
        if within:
            return 0.0
        if found <= 0 or self.value <= 0:
            return abs(found - self.value)
        return abs(math.log(found / self.value))


@dataclass(frozen=True)
class Space:
    """What a design vector means: budgets first, then variables, then axes."""

    budgets: tuple[Budget, ...]
    variables: tuple[Variable, ...]
    axes: tuple[Axis, ...] = ()

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Where the fractions of each budget are."""
        ends = np.cumsum([0, *(budget.size for budget in self.budgets)]).tolist()
        return tuple(slice(first, end) for first, end in pairwise(ends))

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """What the fractions of each budget add up to."""
        return tuple(budget.share for budget in self.budgets)

    @cached_property
    def fractions(self) -> int:
        """How many entries of a design vector are fractions of budgets."""
        return sum(budget.size for budget in self.budgets)

    @property
    def size(self) -> int:
        return self.fractions + len(self.variables) + len(self.axes)

    @property
    def parts(self) -> tuple[Budget | Variable | Axis, ...]:
        return (*self.budgets, *self.variables, *self.axes)

    @property
    def coordinate_steps(self) -> tuple[float, ...]:
        """What coordinates behind the fractions have to move for another value."""
        steps = [variable.coordinate_step for variable in self.variables]
        return (*steps, *(axis.coordinate_step for axis in self.axes))

    def chosen(self, design: Sequence[float]) -> dict[str, object]:
        """Result columns of the alternatives that ``design`` chooses on the axes."""
        coordinates = design[self.size - len(self.axes) :]
        return {
            name: value
            for axis, coordinate in zip(self.axes, coordinates, strict=True)
            for name, value in axis.columns[axis.index(coordinate)].items()
        }

    def within_budgets(self, design: Sequence[float]) -> bool:
        """Whether no budget is overdrawn, but for rounding."""
        return all(
            sum(design[block]) <= share * (1 + 1e-9)
            for block, share in zip(self.blocks, self.shares, strict=True)
        )

    def changes(self, design: Sequence[float], hardware: HardwareConfig) -> Changes:
        """Canonical (hardware, model) changes that ``design`` means on ``hardware``."""
        of_hardware: dict[str, object] = {}
        of_model: dict[str, object] = {}
        numbers = self.fractions + len(self.variables)
        for coordinate, axis in zip(design[numbers:], self.axes, strict=True):
            changes = axis.changes[axis.index(coordinate)]
            of_hardware.update(changes[0])
            of_model.update(changes[1])
        for coordinate, variable in zip(
            design[self.fractions : numbers], self.variables, strict=True
        ):
            root, _, path = variable.path.partition(".")
            side = of_model if root == "model" else of_hardware
            side[path] = variable.value(coordinate)
        for block, budget in zip(self.blocks, self.budgets, strict=True):
            total = budget.total
            if budget.total_key is not None:
                found: Any = of_hardware.get(budget.total_key)
                total = float(value_at(hardware, budget.total_key) if found is None else found)
            assert total is not None
            for path, fraction in zip(budget.parts, design[block], strict=False):
                of_hardware[path] = fraction * total
        return of_hardware, of_model


@dataclass(frozen=True)
class Case:
    """One combination of what is not searched between bounds; ``settings`` on top of the files."""

    id: str
    columns: Mapping[str, object]
    settings: tuple[Setting, ...]
    hardware: HardwareConfig
    model: ModelConfig
    digest: str


@dataclass(frozen=True)
class Optimizer:
    method: str = "gradient"
    evaluations: int = 1600
    starts: int = 1
    seed: int = 0
    cases: str = "separate"


@dataclass(frozen=True)
class Search:
    """A search file, read and checked."""

    name: str
    file: str
    text: str
    description: str
    hardware_file: str
    model_file: str
    framework_file: str | None
    space: Space
    cases: Mapping[str, Case]
    objectives: tuple[str, ...]
    limits: tuple[Limit, ...]
    must_fit: bool
    optimizer: Optimizer

    def case(self, name: str) -> Case:
        """Raises DeepFlowError if there is none of this name."""
        if name not in self.cases:
            raise DeepFlowError(
                f"search {self.name} has no case {name!r}{did_you_mean(name, self.cases)}"
            )
        return self.cases[name]

    def weights(self, start: int) -> tuple[float, ...]:
        """What each objective counts in a start: of two or more, from one alone to the other."""
        count = len(self.objectives)
        if count == 1:
            return (1.0,)
        if self.optimizer.method == "nsga2":
            # It looks for the whole front at once.
            return (1 / count,) * count
        starts = max(2, self.optimizer.starts)
        if count == 2:
            second = (start % starts) / (starts - 1)
            return (1 - second, second)
        drawn = np.random.default_rng((self.optimizer.seed, start, 1)).dirichlet(np.ones(count))
        return tuple(drawn.tolist())

    def run_digest(self, case: Case, start: int) -> str:
        """Fingerprint of all that the evaluations of a start depend on, canonical."""
        optimizer = self.optimizer
        about = {
            "case": case.digest,
            "space": [repr(item) for item in self.space.parts],
            "objectives": [self.objectives, self.weights(start)],
            "limits": sorted(repr(limit) for limit in self.limits),
            "must_fit": self.must_fit,
            "optimizer": [optimizer.method, optimizer.evaluations, optimizer.seed + start],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def summary(self) -> str:
        """One line that says how much there is to do."""
        runs = len(self.cases) * self.optimizer.starts
        return (
            f"{self.name}: {len(self.cases)} cases x {self.optimizer.starts} starts x"
            f" {self.optimizer.evaluations} evaluations = {runs * self.optimizer.evaluations:,}"
        )


def load_search(path: str | Path) -> Search:
    """Reads and checks a search file and the configurations that it names.

    Raises ConfigError for every mistake that can be seen without predicting a design.
    """
    file = str(path)
    content = check_object(read_yaml(file), SEARCH_SCHEMA, file)
    hardware_file = find_file(content["hardware"], "hardware", file)
    model_file = find_file(content["model"], "model", file)
    hardware = load_hardware_config(hardware_file)
    framework_file = None
    if "framework" in content:
        framework_file = find_file(content["framework"], "framework", file)
        hardware = load_framework_config(framework_file).applied_to(hardware)
    model = load_model_config(model_file)
    budgets = tuple(
        _budget(str(name), given, hardware, model, file)
        for name, given in content.get("budgets", {}).items()
    )
    variables = tuple(
        _variable(str(key), given, hardware, model, file)
        for key, given in content.get("variables", {}).items()
    )
    space = Space(budgets, variables)
    if not space.size:
        raise ConfigError(
            "there is nothing to search between bounds",
            file=file,
            allowed="budgets, variables, or both; combinations alone are a sweep",
        )
    searched = [f"hardware.{path}" for budget in budgets for path in budget.parts]
    searched += [variable.path for variable in variables]
    _refuse_twice(searched, file)
    optimizer = content.get("optimizer", {})
    check_object(optimizer, OPTIMIZER_SCHEMA, file, "optimizer")
    saved = any(budget.may_save for budget in budgets)
    if optimizer.get("method") == "descent" and (
        variables or saved or optimizer.get("cases") == "together"
    ):
        raise ConfigError(
            "knows budgets that are spent, but no variables, may_save, or cases together",
            file=file,
            key="optimizer.method",
            value="descent",
            allowed=", ".join(method for method in METHODS if method != "descent"),
        )
    if optimizer.get("cases") == "together":
        cases, axes = _together(content, hardware, model, searched, file)
        space = replace(space, axes=axes)
    else:
        cases = _cases(content, hardware, model, searched, file)
    return Search(
        name=identity.folder_name(file),
        file=file,
        text=Path(file).read_text(encoding="utf-8"),
        description=" ".join(content.get("description", "").split()),
        hardware_file=hardware_file,
        model_file=model_file,
        framework_file=framework_file,
        space=space,
        cases=cases,
        objectives=_objectives(content.get("objectives", "time_s"), file),
        limits=tuple(_limits(content.get("constraints", {}), file)),
        must_fit=content.get("fits_in_memory", True),
        optimizer=Optimizer(**optimizer),
    )


def value_at(config: HardwareConfig | ModelConfig, path: str) -> Any:
    """The value at a canonical path."""
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _canonical(
    path: str, hardware: HardwareConfig, model: ModelConfig, file: str, place: str
) -> tuple[str, Any]:
    """(canonical path with its root, description of the key) of a numeric key."""
    of_hardware, of_model = split_overrides({path: 0}, file)
    root, config = ("model", model) if of_model else ("hardware", hardware)
    (below,) = of_model or of_hardware
    canonical = resolve_path(type(config), below, file=file, shown_key=place)
    key = key_at(type(config), canonical)
    if not key.kinds & {int, float}:
        raise ConfigError("is not a number", file=file, key=place)
    return f"{root}.{canonical}", key


def _budget(
    name: str, given: object, hardware: HardwareConfig, model: ModelConfig, file: str
) -> Budget:
    place = f"budgets.{name}"
    keys = check_object(given, BUDGET_SCHEMA, file, place)
    parts = []
    for path in keys["parts"]:
        canonical, _ = _canonical(str(path), hardware, model, file, f"{place}.parts: {path}")
        root, _, below = canonical.partition(".")
        if root == "model":
            raise ConfigError("is no part of the machine", file=file, key=f"{place}.parts: {path}")
        parts.append(below)
    if not parts:
        raise ConfigError("has no parts", file=file, key=place)
    total, total_key = keys["total"], None
    if isinstance(total, str):
        shown = f"{place}.total: {total}"
        if not total.startswith(("hardware.", "model.", "parallelism.", "backend.")):
            raise ConfigError(
                "is no key",
                file=file,
                key=shown,
                allowed="a number in the unit of the parts, or the path of a key that has one,"
                " such as hardware.power_breakdown.TDP",
            )
        path, _ = _canonical(total, hardware, model, file, shown)
        root, _, total_key = path.partition(".")
        total = value_at(hardware, total_key) if root == "hardware" else None
    if not isinstance(total, int | float) or isinstance(total, bool) or not 0 < total < math.inf:
        raise ConfigError(
            "leaves nothing to share",
            file=file,
            key=f"{place}.total",
            value=total,
            allowed="a number above 0, or the path of a key that has one",
        )
    most = min(key_at(HardwareConfig, part).option.maximum or math.inf for part in parts)
    if total > most:
        raise ConfigError(
            "is more than its parts may have",
            file=file,
            key=f"{place}.total",
            value=total,
            allowed=f"at most {most:g}",
        )
    share = keys.get("share", 1.0)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        raise ConfigError(
            "is no fraction", file=file, key=f"{place}.share", value=share, allowed="> 0 and <= 1"
        )
    return Budget(
        name,
        tuple(parts),
        None if total_key else float(total),
        total_key,
        float(share),
        keys.get("may_save", False),
    )


def _variable(
    path: str, given: object, hardware: HardwareConfig, model: ModelConfig, file: str
) -> Variable:
    place = f"variables.{path}"
    keys = check_object(given, VARIABLE_SCHEMA, file, place)
    canonical, key = _canonical(path, hardware, model, file, place)
    bounds = []
    for which in ("low", "high"):
        changed = canonical_settings(
            [Setting(path, keys[which], f"{place}.{which}")], hardware, model, file
        )
        (value,) = (changed[0] or changed[1]).values()
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(
                "is not a number", file=file, key=f"{place}.{which}", value=keys[which]
            )
        bounds.append(float(parse_quantity(value, "")))
    low, high = bounds
    if not low < high:
        raise ConfigError(
            "leaves nothing to search",
            file=file,
            key=place,
            value=given,
            allowed="low below high",
        )
    log = keys.get("scale", "linear") == "log"
    if log and low <= 0:
        raise ConfigError(
            "has no logarithm", file=file, key=f"{place}.low", value=low, allowed="above 0"
        )
    integer = float not in key.kinds
    step = keys.get("step", 1 if integer else None)
    if step is not None:
        whole = isinstance(step, int) or (isinstance(step, float) and step.is_integer())
        if not isinstance(step, int | float) or isinstance(step, bool) or not 0 < step < math.inf:
            raise ConfigError("is no step", file=file, key=f"{place}.step", value=step)
        if step > high - low:
            raise ConfigError(
                "leaves nothing to search",
                file=file,
                key=f"{place}.step",
                value=step,
                allowed=f"at most {high - low:g}",
            )
        if integer and not whole:
            raise ConfigError(
                "leads to fractions, which the key cannot have",
                file=file,
                key=f"{place}.step",
                value=step,
            )
    return Variable(canonical, low, high, log, integer, None if step is None else float(step))


def _refuse_twice(paths: Sequence[str], file: str) -> None:
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError("is searched or set twice", file=file, key=path)


def _objectives(given: object, file: str) -> tuple[str, ...]:
    names = given if isinstance(given, list) else [given]
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(
                "no such objective" + did_you_mean(str(name), OBJECTIVES),
                file=file,
                key="objectives",
                value=name,
                allowed=", ".join(OBJECTIVES),
            )
    if not names or len(set(names)) < len(names):
        raise ConfigError("must be different objectives", file=file, key="objectives", value=given)
    return tuple(str(name) for name in names)


def _limits(given: Mapping[Any, object], file: str) -> Iterator[Limit]:
    for name, bounds in given.items():
        place = f"constraints.{name}"
        if name not in METRICS:
            raise ConfigError(
                "no such result" + did_you_mean(str(name), METRICS),
                file=file,
                key=place,
                allowed="; ".join(METRICS),
            )
        keys = check_object(bounds, CONSTRAINT_SCHEMA, file, place)
        if not keys:
            raise ConfigError("bounds nothing", file=file, key=place, allowed="at_most, at_least")
        for which, value in keys.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ConfigError(
                    "is not a finite number",
                    file=file,
                    key=f"{place}.{which}",
                    value=value,
                    allowed="a number in SI units",
                )
            yield Limit(str(name), float(value), which == "at_most")
        low, high = keys.get("at_least", -math.inf), keys.get("at_most", math.inf)
        if low > high:
            raise ConfigError("cannot be met", file=file, key=place, value=bounds)


# --- Cases ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """One position of an axis of cases."""

    label: str
    columns: Mapping[str, object]
    settings: tuple[Setting, ...]


def _cases(
    content: Mapping[str, Any],
    hardware: HardwareConfig,
    model: ModelConfig,
    searched: Sequence[str],
    file: str,
) -> dict[str, Case]:
    fixed = _fixed(content)
    axes = _choice_axes(content, hardware, file)
    count = math.prod(len(axis) for axis in axes)
    if count > MOST_CASES:
        raise _too_many(count, file)
    cases: dict[str, Case] = {}
    for combination in product(*axes):
        settings = (*(item for choice in combination for item in choice.settings), *fixed)
        # Later settings win over those of a technology, which are many and not typed by hand.
        base = _applied(settings, hardware, model, searched, file)
        below: Sequence[_Choice] = [_Choice("", {}, ())]
        if "strategies" in content:
            below = _strategies(content["strategies"], *base[:2], file)
        for split in below:
            chosen = (*combination, split)
            every = (*settings, *split.settings)
            machine, workload, digest = (
                _applied(every, hardware, model, searched, file) if split.settings else base
            )
            label = identity.point_id([choice.label for choice in chosen if choice.label])
            if label in cases:
                raise ConfigError("two cases are the same", file=file, key=label)
            columns = {k: v for choice in chosen for k, v in choice.columns.items()}
            cases[label] = Case(label, columns, every, machine, workload, digest)
        if len(cases) > MOST_CASES:
            raise _too_many(len(cases), file)
    return cases


def _together(
    content: Mapping[str, Any],
    hardware: HardwareConfig,
    model: ModelConfig,
    searched: Sequence[str],
    file: str,
) -> tuple[dict[str, Case], tuple[Axis, ...]]:
    """One case of what is fixed, and axes of all that ``_cases`` would combine."""
    fixed = _fixed(content)
    machine, workload, digest = _applied(fixed, hardware, model, searched, file)
    given = canonical_settings(fixed, hardware, model, file)

    def axis(choices: Sequence[_Choice], wins: Changes) -> Axis:
        changes = []
        for choice in choices:
            _applied((*fixed, *choice.settings), hardware, model, searched, file)
            of_hardware: dict[str, object] = {}
            of_model: dict[str, object] = {}
            for setting in choice.settings:
                new = canonical_settings([setting], hardware, model, file)
                of_hardware.update({x: v for x, v in new[0].items() if x not in wins[0]})
                of_model.update({x: v for x, v in new[1].items() if x not in wins[1]})
            changes.append((of_hardware, of_model))
        return Axis(tuple(choice.columns for choice in choices), tuple(changes))

    axes = [axis(choices, given) for choices in _choice_axes(content, hardware, file)]
    if "strategies" in content:
        splits = _strategies(content["strategies"], machine, workload, file)
        axes.append(axis(splits, ({}, {})))
    return {TOGETHER: Case(TOGETHER, {}, fixed, machine, workload, digest)}, tuple(axes)


def _fixed(content: Mapping[str, Any]) -> tuple[Setting, ...]:
    return tuple(
        Setting(str(path), value, f"set.{path}") for path, value in content.get("set", {}).items()
    )


def _choice_axes(
    content: Mapping[str, Any], hardware: HardwareConfig, file: str
) -> list[list[_Choice]]:
    """Technologies and choices."""
    axes = _technology_axes(content.get("technology", {}), hardware, file)
    choices = content.get("choices", {})
    names = identity.short_names([str(path) for path in choices])
    for (path, values), name in zip(choices.items(), names, strict=True):
        place = f"choices.{path}"
        if not isinstance(values, list) or not values:
            raise ConfigError("must be a list of values", file=file, key=place, value=values)
        axes.append(
            [
                _Choice(
                    f"{name}={identity.value_text(value)}",
                    {name: value},
                    (Setting(str(path), value, place),),
                )
                for value in values
            ]
        )
    return axes


def _too_many(count: int, file: str) -> ConfigError:
    return ConfigError(f"there are {count:,} cases", file=file, allowed=f"at most {MOST_CASES:,}")


def _applied(
    settings: Sequence[Setting],
    hardware: HardwareConfig,
    model: ModelConfig,
    searched: Sequence[str],
    file: str,
) -> tuple[HardwareConfig, ModelConfig, str]:
    """Both configurations with ``settings``, later ones first in force, and their digest."""
    of_hardware: dict[str, object] = {}
    of_model: dict[str, object] = {}
    for setting in settings:
        changes = canonical_settings([setting], hardware, model, file)
        of_hardware.update(changes[0])
        of_model.update(changes[1])
    given = [f"hardware.{path}" for path in of_hardware] + [f"model.{path}" for path in of_model]
    for path in searched:
        if path in given:
            raise ConfigError("is both set and searched", file=file, key=path)
    digest = identity.configuration_digest(hardware, model, (of_hardware, of_model))
    return with_overrides(hardware, of_hardware), with_overrides(model, of_model), digest


def _technology_axes(given: object, hardware: HardwareConfig, file: str) -> list[list[_Choice]]:
    keys = check_object(given, TECHNOLOGY_SCHEMA, file, "technology")
    axes = []
    for kind in KINDS:
        if kind not in keys:
            continue
        names = named(keys, kind, file)
        axes.append(
            [
                _Choice(
                    # All cases have the only one, so it tells none of them apart.
                    f"{kind}={identity.value_text(name)}" if len(names) > 1 else "",
                    {kind: name},
                    tuple(
                        Setting(path, value, f"technology.{kind}")
                        for path, value in technology_settings(
                            kind, name, hardware, keys.get("logic_of_file"), file
                        ).items()
                    ),
                )
                for name in names
            ]
        )
    return axes


def _strategies(
    given: object, hardware: HardwareConfig, model: ModelConfig, file: str
) -> list[_Choice]:
    found = list(_splits(given, hardware, model, file))
    if not found:
        raise ConfigError("there is no such strategy", file=file, key="strategies")
    return found


def _splits(
    given: object, hardware: HardwareConfig, model: ModelConfig, file: str
) -> Iterator[_Choice]:
    from deepflow.mapping.layout import layouts
    from deepflow.mapping.strategies import enumerate_strategies

    keys = check_object(given, STRATEGIES_SCHEMA, file, "strategies")
    if not isinstance(model, LstmModel | GemmModel):
        raise ConfigError(
            "are those of a GEMM or LSTM; list degrees of other models under choices",
            file=file,
            key="strategies",
        )
    system = hardware.system_hierarchy
    devices = system.num_devices_per_node * system.num_nodes
    batch = model.batch_size if isinstance(model, LstmModel) else devices
    wanted = keys.get("layouts", "auto")
    side = math.isqrt(system.num_devices_per_node)
    if wanted != "none" and side * side != system.num_devices_per_node:
        raise ConfigError(
            "nodes are no square meshes",
            file=file,
            key="strategies.layouts",
            value=wanted,
            allowed="none, or a square hardware.system_hierarchy.num_devices_per_node",
        )
    kernels = keys.get("kernels", ("CR", "RC"))
    for kernel in kernels:
        if kernel not in ("CR", "RC"):
            raise ConfigError(
                "is not one of the choices",
                file=file,
                key="strategies.kernels",
                value=kernel,
                allowed="CR, RC",
            )
    for strategy in enumerate_strategies(
        devices,
        batch,
        kernels=kernels,
        pipeline_degrees=keys.get("pipeline"),
        powers_of_two=keys.get("powers_of_two", False),
    ):
        degrees = strategy.degrees
        orders = [wanted]
        if wanted == "all":
            orders = [layout.name for layout in layouts(degrees, side, system.num_nodes)]
        settings = [
            Setting(f"hardware.{path}", value, "strategies")
            for path, value in strategy.overrides().items()
        ]
        for order in orders:
            columns = {"kernel": strategy.kernel or "none", **degrees._asdict(), "layout": order}
            shown = columns if wanted == "all" else {k: columns[k] for k in list(columns)[:-1]}
            yield _Choice(
                identity.point_id([f"{name}={value}" for name, value in shown.items()]),
                columns,
                (*settings, Setting("hardware.system_hierarchy.layout", order, "strategies")),
            )
