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

    def run(self, durations: Sequence[float]) -> Timeline:
        """Executes every task once; events of equal time in the order in which they started.

        Raises:
            DeepFlowError: tasks wait for each other in a circle, so some can never run.
        """
        kinds, resources, children = self.kinds, self.resources, self.children
        count = len(kinds)
        missing = list(self.parents)
        starts, ends = [0.0] * count, [0.0] * count
        busy = [False] * (max(resources, default=UNLIMITED) + 1)
        waiting: list[deque[int]] = [deque() for _ in busy]
        events: list[tuple[float, int, int]] = []
        now, started = 0.0, 0
        new = [task for task in range(count) if not missing[task]]
        while True:
            for task in new:
                resource = resources[task]
                if resource >= 0:
                    if busy[resource]:
                        waiting[resource].append(task)
                        continue
                    busy[resource] = True
                starts[task] = now
                heappush(events, (now + durations[kinds[task]], started, task))
                started += 1
            if not events:
                break
            now, _, done = heappop(events)
            ends[done] = now
            resource = resources[done]
            new = []
            if resource >= 0:
                busy[resource] = False
                if waiting[resource]:
                    # It became ready before anything that this event makes ready.
                    new.append(waiting[resource].popleft())
            for child in children[done]:
                missing[child] -= 1
                if not missing[child]:
                    new.append(child)
        if started != count:
            raise DeepFlowError(
                f"schedule deadlock: {count - started} of {count} tasks wait for each other"
            )
        return Timeline(tuple(starts), tuple(ends))
