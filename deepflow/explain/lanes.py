"""A time line: what runs when on devices and links, with as much detail as asked for.

A process stands for devices that do the same: those of a pipeline stage. Its lanes are the device
and the links that it uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from deepflow.explain.blocks import Block, Details, Seconds

DEVICE = "device"
DEFAULT_LIMIT = 200_000
SAME = 1e-9
"""Times that differ by less, relative to the whole, differ by rounding only."""


class Span(NamedTuple):
    """Something between two times, in seconds; ``seconds`` by result column on devices."""

    process: int
    lane: str
    name: str
    start: float
    end: float
    details: Details
    seconds: Seconds


class Arrow(NamedTuple):
    """What starts something elsewhere: (process, lane, seconds) of both ends."""

    name: str
    start: tuple[int, str, float]
    end: tuple[int, str, float]


class Level(NamedTuple):
    """Bytes of a device's memory by part, from a time on."""

    process: int
    time: float
    parts: Mapping[str, float]


class Detail(NamedTuple):
    """How much is shown. Depths: 0 passes, 1 layers as well, 2 operators as well.

    ``ends`` of the first and the last microbatch (or time step), ``middle`` of the others;
    ``single``: so many at both ends are shown one by one, the others between them as one.
    ``beside``: transfers between stages and memory over time are shown.
    """

    text: str
    ends: int
    middle: int
    single: int | None = None
    beside: bool = True


DETAILS = (
    Detail("every operator", 2, 2),
    Detail("operators of the first and last microbatch or step, layers of the others", 2, 1),
    Detail("operators of the first and last microbatch or step, passes of the others", 2, 0),
    Detail("layers of the first and last microbatch or step, passes of the others", 1, 0),
    Detail("passes", 0, 0),
    Detail("passes, no transfers between stages and memory", 0, 0, None, False),
    Detail("passes of 128 microbatches or steps at both ends, the others as one", 0, 0, 128, False),
    Detail("passes of 16 microbatches or steps at both ends, the others as one", 0, 0, 16, False),
    Detail("passes of the first and last microbatch or step, the others as one", 0, 0, 1, False),
    Detail("all passes of a stage as one", 0, 0, 0, False),
)
"""From fine to coarse."""


def size_of(block: Block, depth: int) -> int:
    """Events of a block that is shown with so many levels of what it consists of."""
    if not depth or not block.children:
        return 1
    return 1 + len(block.links) + sum(size_of(child, depth - 1) for child in block.children)


class TooManyEvents(Exception):
    """A time line is full; one with less detail may do."""


@dataclass
class Timeline:
    """All of it. ``scale``: what turns the schedule's seconds into those of the prediction."""

    detail: Detail
    limit: int
    time: float
    scale: float = 1.0
    processes: dict[int, str] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lanes: set[tuple[int, str]] = field(default_factory=set)

    @property
    def events(self) -> int:
        """Events of a trace: an arrow has two ends; processes and lanes have a name and a place."""
        shown = len(self.spans) + 2 * len(self.arrows) + len(self.levels)
        return shown + 2 * (len(self.processes) + len(self.lanes))

    def _check_room(self) -> None:
        if self.events > self.limit:
            raise TooManyEvents

    def add(
        self,
        process: int,
        lane: str,
        name: str,
        start: float,
        end: float,
        details: Details | None = None,
        seconds: Seconds | None = None,
    ) -> None:
        """Something from ``start`` to ``end``; raises TooManyEvents, as all below."""
        start, end = min(start * self.scale, self.time), min(end * self.scale, self.time)
        self.spans.append(Span(process, lane, name, start, end, details or {}, seconds or {}))
        self.lanes.add((process, lane))
        self._check_room()

    def arrow(self, name: str, start: tuple[int, str, float], end: tuple[int, str, float]) -> None:
        """An arrow between (process, lane, seconds)."""
        first, then = (
            (process, lane, min(time * self.scale, self.time))
            for process, lane, time in (start, end)
        )
        self.arrows.append(Arrow(name, first, then))
        self._check_room()

    def level(self, process: int, time: float, parts: Mapping[str, float]) -> None:
        """Bytes of memory by part from ``time`` on."""
        self.levels.append(Level(process, min(time * self.scale, self.time), parts))
        self._check_room()

    def put(
        self,
        process: int,
        block: Block,
        start: float,
        depth: int,
        end: float,
        name: str = "",
        details: Details | None = None,
    ) -> None:
        """``block`` on the device of ``process``, with so many levels of what it consists of.

        ``name`` and ``details`` in the place of its own.
        """
        shown = block.children if depth else ()
        self.add(
            process,
            DEVICE,
            name or block.name,
            start,
            end,
            block.details if details is None else details,
            None if shown else block.seconds,
        )
        if not shown:
            return
        for use in block.links:
            self.add(
                process,
                use.lane,
                use.name,
                min(start + use.start, end),
                min(start + use.end, end),
                use.details,
            )
        at = start
        for place, child in enumerate(shown):
            # Sums in another order differ in the last digits; children never stick out.
            until = end if place == len(shown) - 1 else min(at + child.time, end)
            self.put(process, child, at, depth - 1, until)
            at = until


def put_simulated(found: Timeline, scheduled: float, stages: int) -> None:
    """Makes up for what a simulation of everything at once adds to a schedule, or takes from it.

    ``scheduled``: seconds of the schedule. The simulation says how long all takes, and not where.
    """
    rest = found.time - scheduled
    if abs(rest) <= SAME * found.time:
        return
    said = f"the simulation of the network says only that all takes {found.time:.6g} s"
    if rest < 0:
        found.scale = found.time / scheduled
        found.notes.append(
            f"times are those of the schedule, shortened to {100 * found.scale:.4g} %: {said}"
        )
        return
    found.notes.append(f"times are those of the schedule, and end {rest:.4g} s early: {said}")
    for stage in range(stages):
        found.add(stage + 1, DEVICE, "waiting for busy links", scheduled, found.time)


def at_ends(number: int, count: int, width: int) -> bool:
    """Whether ``number`` is among the first or last ``width`` of ``count``."""
    return number < width or number >= count - width


def in_turn(count: int, single: int) -> Iterator[tuple[int, int]]:
    """(first, how many) of ``count``: ``single`` at both ends one by one, the others as one."""
    if 2 * single >= count:
        yield from ((number, 1) for number in range(count))
        return
    yield from ((number, 1) for number in range(single))
    yield single, count - 2 * single
    yield from ((number, 1) for number in range(count - single, count))


def alike(ranks: int) -> str:
    """How many devices a process stands for."""
    return "1 device" if ranks == 1 else f"{ranks} devices that do the same"
