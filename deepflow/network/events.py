"""The event loop: time -> list of calls, in the order in which they were asked for.

Order within one nanosecond decides who gets a link or a queue slot first, so it is part of the
semantics: a call for the current time goes to the end of the list that is being executed.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

from deepflow.network.graph import NetworkError

Call: TypeAlias = "Callable[[Any], None]"
Event: TypeAlias = "tuple[Call, Any]"


class EventQueue:
    """Calls with one argument at whole nanoseconds; ``now`` is the current time."""

    __slots__ = ("_calls", "_times", "now")

    def __init__(self) -> None:
        self.now = 0
        self._calls: dict[int, list[Event]] = {}
        self._times: list[int] = []

    def schedule(self, time: int, call: Call, argument: Any) -> None:
        """Call ``call(argument)`` at ``time``, which is not before ``now``."""
        calls = self._calls.get(time)
        if calls is None:
            self._calls[time] = [(call, argument)]
            heapq.heappush(self._times, time)
        else:
            calls.append((call, argument))

    def schedule_two(self, time: int, event: Event, later: int, other: Event) -> None:
        """Two events, the one at ``time`` first: what a link does with a message.

        Written out, because these are most events of a simulation with queues.
        """
        pending = self._calls
        calls = pending.get(time)
        if calls is None:
            pending[time] = [event]
            heapq.heappush(self._times, time)
        else:
            calls.append(event)
        calls = pending.get(later)
        if calls is None:
            pending[later] = [other]
            heapq.heappush(self._times, later)
        else:
            calls.append(other)

    def run(self) -> None:
        """Execute everything, including what is added on the way.

        Raises NetworkError if something is due at time 0 already: ASTRA-sim's clock has to move
        before the first event, and its binaries abort there.
        """
        if 0 in self._calls:
            raise NetworkError(
                "something takes 0 ns at time 0 (an endpoint delay of 0, a computation below 1 ns"
                " or a message that occupies its link for less than 1 ns): the clock cannot start"
            )
        times, pending = self._times, self._calls
        # Nearly all objects made here are freed by their reference counts; looking for cycles
        # among the many that wait would take as long as the simulation itself.
        collects = gc.isenabled()
        gc.disable()
        try:
            while times:
                self.now = time = heapq.heappop(times)
                for call, argument in pending[time]:
                    call(argument)
                del pending[time]
        finally:
            if collects:
                gc.enable()


class LocalEvents:
    """The events of one rank, which share one place in the global order per nanosecond.

    ASTRA-sim keeps a table per rank: only the first event of a tick enters the global queue and
    the others of the rank ride along with it.
    """

    __slots__ = ("_calls", "_run_now", "queue")

    def __init__(self, queue: EventQueue) -> None:
        self.queue = queue
        self._calls: dict[int, list[tuple[Call, Any]]] = {}
        self._run_now: Call = self._run

    def register(self, delay: int, call: Call, argument: Any) -> None:
        """Call ``call(argument)`` after ``delay`` ns, together with the rank's other events."""
        queue = self.queue
        time = queue.now + delay
        calls = self._calls.get(time)
        if calls is None:
            self._calls[time] = calls = [(call, argument)]
            queue.schedule(time, self._run_now, calls)
        else:
            calls.append((call, argument))

    def _run(self, calls: list[tuple[Call, Any]]) -> None:
        for call, argument in calls:
            call(argument)
        del self._calls[self.queue.now]
