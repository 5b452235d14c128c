"""The order in which equal ranks execute the same event, as a chain of changes.

All ranks start in the order of their numbers. A message hands a rank's place to its receiver, so
every exchange changes the order in a way that follows from its pattern alone. Nobody needs the
order until the ranks finish, so only the changes are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Turn(Protocol):
    """A change of the order."""

    def apply(self, order: list[int]) -> list[int]:
        """The order after the change."""

    def merged(self, later: Turn) -> Turn | None:
        """This change and a later one as a single change, if there is one."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """Everybody hands over to the rank ``distance`` places further on its line."""

    stride: int
    size: int
    distance: int

    def apply(self, order: list[int]) -> list[int]:
        """The order after the change."""
        stride, size, distance = self.stride, self.size, self.distance % self.size
        return [
            rank + ((rank // stride + distance) % size - rank // stride % size) * stride
            for rank in order
        ]

    def merged(self, later: Turn) -> Turn | None:
        """The sum of two rotations of the same lines."""
        if isinstance(later, Rotation) and (later.stride, later.size) == (self.stride, self.size):
            distance = (self.distance + later.distance) % self.size
            return Rotation(self.stride, self.size, distance)
        return None


@dataclass(frozen=True, slots=True)
class ExclusiveOr:
    """Everybody hands over to the rank at its position XOR ``mask``."""

    stride: int
    size: int
    mask: int

    def apply(self, order: list[int]) -> list[int]:
        """The order after the change."""
        stride, size = self.stride, self.size
        return [
            rank + ((rank // stride % size ^ self.mask) - rank // stride % size) * stride
            for rank in order
        ]

    def merged(self, later: Turn) -> Turn | None:
        """Both masks at once, on the same lines."""
        if isinstance(later, ExclusiveOr) and (later.stride, later.size) == (
            self.stride,
            self.size,
        ):
            return ExclusiveOr(self.stride, self.size, self.mask ^ later.mask)
        return None


@dataclass(frozen=True, slots=True)
class Direct:
    """Everybody sends to the positions ``steps`` further, in turn; the first message counts."""

    stride: int
    size: int
    steps: tuple[int, ...]

    def apply(self, order: list[int]) -> list[int]:
        """The order after the change."""
        stride, size = self.stride, self.size
        after: dict[int, None] = {}
        missing: dict[int, int] = {}
        for rank in order:
            position = rank // stride % size
            line = rank - position * stride
            left = missing.setdefault(line, size)
            if not left:
                continue
            for step in self.steps:
                receiver = line + (position + step) % size * stride
                if receiver not in after:
                    after[receiver] = None
                    left -= 1
            missing[line] = left
        return list(after)

    def merged(self, later: Turn) -> Turn | None:
        """Two such changes stay two."""
        return None


class Ranking:
    """An order of ranks: changes since the start, newest first."""

    __slots__ = ("_before", "_turn")

    def __init__(self, before: Ranking | None = None, turn: Turn | None = None) -> None:
        self._before = before
        self._turn = turn

    def after(self, turns: tuple[Turn, ...]) -> Ranking:
        """The order after ``turns``."""
        ranking = self
        for turn in turns:
            merged = ranking._turn.merged(turn) if ranking._turn else None
            ranking = Ranking(ranking._before, merged) if merged else Ranking(ranking, turn)
        return ranking

    def order(self, ranks: int) -> tuple[int, ...]:
        """The ranks in their order."""
        turns: list[Turn] = []
        ranking: Ranking | None = self
        while ranking is not None:
            if ranking._turn is not None:
                turns.append(ranking._turn)
            ranking = ranking._before
        order = list(range(ranks))
        for turn in reversed(turns):
            order = turn.apply(order)
        return tuple(order)
