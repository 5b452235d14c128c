"""Execution of a task graph on in-order streams.

A stream is a queue of tasks that run one after another, as on a device's compute stream or a
network link: a task starts when the task before it in its stream has ended and everything that
it depends on has arrived. This is event-driven execution without choice, so one pass in
dependency order gives every start and end exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepflow.errors import DeepFlowError
from deepflow.record import record


@record(frozen=True)
class CompiledStreams:
    """Tasks in an order in which each comes after all that it waits for.

    Lists in parallel: number of the task, its stream, its kind (index into the durations given
    to ``execute``), the task of another stream that it waits for (-1: none) and the kind of
    delay between that task's end and its arrival (index into the delays; 0 is no delay).
    """

    task: tuple[int, ...]
    stream: tuple[int, ...]
    kind: tuple[int, ...]
    wait: tuple[int, ...]
    delay: tuple[int, ...]
    streams: int

    def execute(self, durations: Sequence[float], delays: Sequence[float]) -> list[float]:
        """End of every task in seconds, by its number; it started its duration earlier."""
        # One more end, at index -1, stands for nothing to wait for.
        ends = [0.0] * (len(self.task) + 1)
        free = [0.0] * self.streams
        for task, stream, kind, wait, delay in zip(
            self.task, self.stream, self.kind, self.wait, self.delay, strict=True
        ):
            start = free[stream]
            arrival = ends[wait] + delays[delay]
            if arrival > start:
                start = arrival
            free[stream] = ends[task] = start + durations[kind]
        ends.pop()
        return ends


def compile_streams(
    queues: Sequence[Sequence[int]],
    kind: Sequence[int],
    wait: Sequence[int],
    delay: Sequence[int],
) -> CompiledStreams:
    """Orders the tasks of in-order streams for execution.

    ``queues``: numbers of the tasks of each stream, every task once; ``kind``, ``wait``,
    ``delay`` by task number, as in ``CompiledStreams``. A task that has to wait for several
    others comes after tasks of no duration in its stream that wait for one each.

    Raises:
        DeepFlowError: tasks wait for each other in a circle (deadlock).
    """
    count = len(kind)
    # Index -1 stands for nothing to wait for, index ``count`` for a stream without tasks left.
    done = [False] * (count + 1) + [True]
    head = [wait[queue[0]] if queue else count for queue in queues]
    at = [0] * len(queues)
    order: list[int] = []
    owner: list[int] = []
    # Work goes down the pipeline and comes back: look at the streams in both directions.
    sweep = [*range(len(queues)), *reversed(range(len(queues)))]
    while len(order) < count:
        before = len(order)
        for stream in sweep:
            if not done[head[stream]]:
                continue
            queue, first = queues[stream], at[stream]
            last, blocked = first, count
            while last < len(queue):
                task = queue[last]
                blocked = wait[task]
                if not done[blocked]:
                    break
                done[task] = True
                last += 1
            head[stream] = blocked if last < len(queue) else count
            at[stream] = last
            order += queue[first:last]
            owner += [stream] * (last - first)
        if len(order) == before:
            raise DeepFlowError(
                f"schedule deadlock: {count - before} of {count} tasks wait for each other"
            )
    return CompiledStreams(
        tuple(order),
        tuple(owner),
        tuple(map(kind.__getitem__, order)),
        tuple(map(wait.__getitem__, order)),
        tuple(map(delay.__getitem__, order)),
        len(queues),
    )
