"""Execution of a task graph on in-order streams.

A stream is a queue of tasks that run one after another, as on a device's compute stream or a
network link: a task starts when the task before it in its stream has ended and everything that
it depends on has arrived. This is event-driven execution without choice, so one pass in
dependency order gives every start and end exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deepflow.errors import DeepFlowError
from deepflow.record import record


@dataclass
class StreamGraph:
    """Tasks under construction: ``add`` returns a task's number.

    ``kind`` of a task and of a dependency are indices into the lists of durations and delays
    given to ``execute``, so that one graph serves every point with the same structure.
    """

    stream: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    dependencies: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    label: list[tuple[str, int, int]] = field(default_factory=list)

    def add(
        self,
        label: tuple[str, int, int],
        stream: int,
        kind: int,
        dependencies: Sequence[tuple[int, int]] = (),
    ) -> int:
        """Appends a task to the end of ``stream``.

        ``label`` is (what, stage, microbatch); ``dependencies`` are pairs (task, kind of delay
        between its end and its arrival here; 0 is no delay). A dependency may be added later
        in the list than the task that waits for it.
        """
        self.stream.append(stream)
        self.kind.append(kind)
        self.dependencies.append(tuple(dependencies))
        self.label.append(label)
        return len(self.stream) - 1

    def compile(self) -> CompiledGraph:
        """Orders the tasks.

        Raises:
            DeepFlowError: tasks wait for each other in a circle (deadlock).
        """
        count = len(self.stream)
        last_in_stream: dict[int, int] = {}
        waits_for: list[list[tuple[int, int]]] = []
        for task in range(count):
            waiting = list(self.dependencies[task])
            before = last_in_stream.get(self.stream[task])
            if before is not None:
                waiting.append((before, 0))
            last_in_stream[self.stream[task]] = task
            waits_for.append(waiting)
        followers: list[list[int]] = [[] for _ in range(count)]
        open_count = [len(waiting) for waiting in waits_for]
        for task, waiting in enumerate(waits_for):
            for other, _ in waiting:
                followers[other].append(task)
        ready = [task for task in range(count) if not open_count[task]]
        order: list[int] = []
        while ready:
            task = ready.pop()
            order.append(task)
            for follower in followers[task]:
                open_count[follower] -= 1
                if not open_count[follower]:
                    ready.append(follower)
        if len(order) != count:
            raise DeepFlowError(
                f"schedule deadlock: {count - len(order)} of {count} tasks wait for each other"
            )
        steps = tuple((task, self.kind[task], tuple(waits_for[task])) for task in order)
        return CompiledGraph(steps, tuple(self.label), tuple(self.stream), tuple(self.kind))


@record(frozen=True)
class CompiledGraph:
    """An executable task graph: ``steps`` are (task, kind, ((task, delay kind), ...))."""

    steps: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]
    label: tuple[tuple[str, int, int], ...]
    stream: tuple[int, ...]
    kind: tuple[int, ...]

    def execute(self, durations: Sequence[float], delays: Sequence[float]) -> list[float]:
        """End of every task in seconds; it started its duration earlier."""
        ends = [0.0] * len(self.steps)
        for task, kind, waits_for in self.steps:
            start = 0.0
            for other, delay in waits_for:
                arrival = ends[other] + delays[delay]
                if arrival > start:
                    start = arrival
            ends[task] = start + durations[kind]
        return ends
