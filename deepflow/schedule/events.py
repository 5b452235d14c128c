"""Event-driven list scheduling of a task graph on exclusive resources.

Unlike the in-order streams of ``streams.py``, nothing here fixes the order in which a resource
serves its tasks: a task becomes ready when everything before it has ended, waits in first-come
order if its resource is busy, and runs to its end. Nodes stand for work on a device, edges for
transfers; an edge that takes time or a link is a task of its own between two nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from deepflow.errors import DeepFlowError
from deepflow.record import record

UNLIMITED = -1  # the resource of tasks that never wait for each other


@record(frozen=True)
class Timeline:
    """Start and end of every task in seconds, by task number."""

    starts: tuple[float, ...]
    ends: tuple[float, ...]

    @property
    def time(self) -> float:
        """End of the last task; zero without tasks."""
        return max(self.ends, default=0.0)


@dataclass
class EventGraph:
    """Tasks and their order. ``kind`` indexes the durations given to ``run``.

    Graphs of the same structure differ in durations only, so one graph serves many points.
    """

    kinds: list[int] = field(default_factory=list)
    resources: list[int] = field(default_factory=list)
    children: list[list[int]] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)

    def node(self, kind: int, resource: int = UNLIMITED) -> int:
        """Adds a task and returns its number. Resources are numbered from 0."""
        self.kinds.append(kind)
        self.resources.append(resource)
        self.children.append([])
        self.parents.append(0)
        return len(self.kinds) - 1

    def edge(
        self, parent: int, child: int, kind: int | None = None, resource: int = UNLIMITED
    ) -> None:
        """``child`` starts after ``parent``, and after a transfer between them if it has a kind.

        Edges of one parent are looked at in the order in which they were added, which decides
        who waits first for a resource.
        """
        if kind is not None:
            transfer = self.node(kind, resource)
            self.children[parent].append(transfer)
            self.parents[transfer] += 1
            parent = transfer
        self.children[parent].append(child)
        self.parents[child] += 1

    def release(self, task: int) -> None:
        """``task`` also waits for something outside, the next of the times given to ``run``."""
        self.released.append(task)
        self.parents[task] += 1

    def run(self, durations: Sequence[float], releases: Sequence[float] = ()) -> Timeline:
        """Executes every task once; events of equal time in the order in which they started.

        ``releases``: seconds, ascending, one for each call of ``release``; at equal times they
        come after what happens inside.

        Raises:
            DeepFlowError: tasks wait for each other in a circle, so some can never run.
        """
        kinds, resources, children = self.kinds, self.resources, self.children
        released, num_releases = self.released, len(self.released)
        count, missing = len(kinds), list(self.parents)
        lengths = [durations[kind] for kind in kinds]
        starts, ends = [0.0] * count, [0.0] * count
        busy = [False] * (max(resources, default=UNLIMITED) + 1)
        waiting: list[deque[int]] = [deque() for _ in busy]
        events: list[tuple[float, int, int]] = []
        now, started, releasing = 0.0, 0, 0
        # Tasks that lose one of the things that they wait for; roots wait for the beginning.
        nearer: Sequence[int] = [task for task in range(count) if not missing[task]]
        for task in nearer:
            missing[task] = 1
        while True:
            for task in nearer:
                left = missing[task] - 1
                missing[task] = left
                if left:
                    continue
                resource = resources[task]
                if resource >= 0:
                    if busy[resource]:
                        waiting[resource].append(task)
                        continue
                    busy[resource] = True
                starts[task] = now
                heappush(events, (now + lengths[task], started, task))
                started += 1
            if releasing < num_releases and (not events or releases[releasing] < events[0][0]):
                now, nearer = releases[releasing], released[releasing : releasing + 1]
                releasing += 1
                continue
            if not events:
                break
            now, _, done = heappop(events)
            ends[done] = now
            nearer = children[done]
            resource = resources[done]
            if resource >= 0:
                if waiting[resource]:
                    # It became ready before anything that this event makes ready.
                    task = waiting[resource].popleft()
                    starts[task] = now
                    heappush(events, (now + lengths[task], started, task))
                    started += 1
                else:
                    busy[resource] = False
        if started != count:
            raise DeepFlowError(
                f"schedule deadlock: {count - started} of {count} tasks wait for each other"
            )
        return Timeline(tuple(starts), tuple(ends))


def in_turn(arrivals: Sequence[float], duration: float) -> list[float]:
    """Ends of tasks of one ``duration`` on one resource that serves them as they arrive."""
    end, ends = 0.0, []
    for arrival in arrivals:
        end = (arrival if arrival > end else end) + duration
        ends.append(end)
    return ends
