"""Phases as timers, and a watch over what happens in the same nanosecond.

ASTRA-sim executes a rank's events of one nanosecond in the order of their registration. A phase
of a collective ends with a local delay, so a timer has to register its end when that delay
begins, and not when the phase does. Two events that are registered together for the same
nanosecond would need the events inside the phase to be put in order. If that could matter, the
answer is left to the event model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepflow.network.closed_forms import Timing
from deepflow.network.events import Call, EventQueue, LocalEvents


class OrderMattersError(Exception):
    """Something whose outcome only the event model knows."""


class PhaseEvents(LocalEvents):
    """Local events of one rank, some of them ends of phases."""

    __slots__ = ("_registered",)

    def __init__(self, queue: EventQueue) -> None:
        super().__init__(queue)
        self._registered: dict[int, dict[int, object]] = {}

    def register(self, delay: int, call: Call, argument: Any) -> None:
        """Register the end of an issued node; their order is that in which they are issued."""
        self._mark(delay, None)
        super().register(delay, call, argument)

    def register_end(self, group: object, delay: int, call: Call, argument: Any) -> None:
        """Register the end of a phase, which may come before or after others of its ``group``."""
        self._mark(delay, group)
        super().register(delay, call, argument)

    def opened(self, time: int) -> None:
        """The first event for ``time`` is being registered."""

    def _mark(self, delay: int, group: object) -> None:
        now = self.queue.now
        marks = self._registered.get(now + delay)
        if marks is None:
            self._registered[now + delay] = {now: group}
            self.opened(now + delay)
        elif marks.setdefault(now, group) != group:
            raise OrderMattersError

    def _run(self, calls: list[tuple[Call, Any]]) -> None:
        super()._run(calls)
        del self._registered[self.queue.now]


class Timer:
    """A phase of known duration."""

    __slots__ = ("_done", "_events", "_group", "timing")

    def __init__(
        self, events: PhaseEvents, timing: Timing, group: object, done: Callable[[], None]
    ) -> None:
        self._events = events
        self._group = group
        self._done = done
        self.timing = timing

    def start(self) -> None:
        """Wait until the local delay at the end begins."""
        queue, timing = self._events.queue, self.timing
        queue.schedule(queue.now + timing.duration - timing.tail, self.last_delay, None)

    def waits_for(self) -> str:
        """Timers wait for nobody."""
        return "its timer"

    def last_delay(self, _: object) -> None:
        """The local delay at the end begins."""
        self._events.register_end(self._group, self.timing.tail, self._end, None)

    def _end(self, _: object) -> None:
        self._done()
