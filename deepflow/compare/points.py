"""Two points: what differs in their configurations, and in every term of the breakdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepflow.compare.results import Flat, PointResult
from deepflow.config.hardware import HardwareConfig
from deepflow.config.model import CollectiveModel, GemmModel, LlmModel, LstmModel, VitModel
from deepflow.config.schema import key_at
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.prediction import COLUMNS, MEMORY_COLUMNS, TIME_COLUMNS

ABSENT = "absent"
"""Stands for the value of a key that a configuration does not have, which null is not."""

TOTALS = {"time_s": TIME_COLUMNS, "peak_memory_bytes": MEMORY_COLUMNS}
"""Columns that are the sum of others."""

REST = "rest"

_ROUNDING = 1e-9
"""Relative to the total: a rest below this comes from adding in another order."""

_NAMES = {"name", "aliases", "file"}
_MODELS = (LlmModel, VitModel, LstmModel, GemmModel, CollectiveModel)


@dataclass(frozen=True, slots=True)
class Setting:
    """A key whose values differ; ``unit`` is its SI unit. ``ABSENT``: only the other has it."""

    key: str
    unit: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Term:
    """A number of both predictions; None where one does not have it."""

    name: str
    unit: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float:
        """b less a; a part that is not there is 0."""
        return (self.b or 0.0) - (self.a or 0.0)

    @property
    def relative(self) -> float | None:
        """The difference over a; None if that is 0 or not there."""
        return self.difference / abs(self.a) if self.a and self.b is not None else None


@dataclass(frozen=True)
class PointComparison:
    """``parts`` of a total add up to its difference; ``terms`` are all other numbers that differ.

    A total that one of the points does not have, as of an impossible one, is left out.
    """

    a: PointResult
    b: PointResult
    settings: tuple[Setting, ...]
    totals: Mapping[str, Term]
    parts: Mapping[str, tuple[Term, ...]]
    terms: tuple[Term, ...]

    @property
    def versions_differ(self) -> bool:
        return self.a.versions != self.b.versions


def compare_points(a: PointResult, b: PointResult) -> PointComparison:
    """What is different. Raises DeepFlowError if the points predict different things."""
    if a.mode != b.mode:
        raise DeepFlowError(
            f"{a.source} is of mode {a.mode}, {b.source} of mode {b.mode}: their terms mean"
            " different things"
        )
    totals, parts = {}, {}
    for name, members in TOTALS.items():
        total = _term(a, b, name)
        if total.a is None or total.b is None:
            continue
        totals[name] = total
        parts[name] = _with_rest(total, [_term(a, b, member) for member in members])
    used = {*TOTALS, *TIME_COLUMNS, *MEMORY_COLUMNS}
    others = [
        _term(a, b, name)
        for name, column in COLUMNS.items()
        if column.dtype in (int, float) and name not in used
    ]
    return PointComparison(
        a,
        b,
        tuple(differing_settings(a.configuration, b.configuration)),
        totals,
        parts,
        tuple(term for term in others if term.a != term.b),
    )


def _term(a: PointResult, b: PointResult, name: str) -> Term:
    return Term(name, COLUMNS[name].unit, a.columns[name], b.columns[name])


def _with_rest(total: Term, members: Sequence[Term]) -> tuple[Term, ...]:
    """The parts that one of the points has, and what they leave of the total."""
    there = [term for term in members if term.a or term.b]
    rest = [
        value - math.fsum((getattr(term, side) or 0.0) for term in there)
        for side, value in (("a", total.a or 0.0), ("b", total.b or 0.0))
    ]
    larger = max(abs(total.a or 0.0), abs(total.b or 0.0))
    if any(abs(value) > _ROUNDING * larger for value in rest):
        there.append(Term(REST, total.unit, *rest))
    return tuple(there)


def differing_settings(a: Mapping[str, Flat], b: Mapping[str, Flat]) -> Iterator[Setting]:
    """The keys of hardware and model whose values differ, in their order in the files."""
    for side in ("hardware", "model"):
        one, other = a.get(side, {}), b.get(side, {})
        for path in dict.fromkeys((*one, *other)):
            values = one.get(path, ABSENT), other.get(path, ABSENT)
            if path in _NAMES or values[0] == values[1]:
                continue
            yield Setting(f"{side}.{path}", _unit(side, path), *values)


def _unit(side: str, path: str) -> str:
    """SI unit of a key; "" for one that this version does not know."""
    for kind in (HardwareConfig,) if side == "hardware" else _MODELS:
        try:
            return key_at(kind, path).option.unit
        except ConfigError:
            continue
    return ""
