"""One rank: it issues the nodes of its trace as their dependencies and its lanes allow.

A rank has a lane for CPU work, one for computation and one for communication, each with one node
at a time; receives need none. Free nodes are issued in the order of their ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deepflow.network.collective import (
    FIRST_COLLECTIVE_TAG,
    STREAMS_PER_GROUP,
    Chunk,
    ChunkQueue,
    CollectivePlan,
    Phase,
    Step,
)
from deepflow.network.events import LocalEvents
from deepflow.network.graph import Node

if TYPE_CHECKING:
    from deepflow.network.event_model import Simulation

CPU, COMPUTE, COMMUNICATION, RECEIVE = range(4)
LARGEST_IS_ROOT, SMALLEST_IS_ROOT = 0, 1  # the two trees that take turns


class Trace:
    """The nodes of a trace with what all ranks that run it share."""

    def __init__(self, nodes: Sequence[Node], duration: Callable[[Node], int]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.dependencies = {node.id: len(set(node.dependencies)) for node in nodes}
        self.children: dict[int, list[int]] = {node.id: [] for node in nodes}
        for node in nodes:
            for dependency in set(node.dependencies):
                self.children[dependency].append(node.id)
        self.lanes = {node.id: lane_of(node) for node in nodes}
        self.durations = {node.id: duration(node) for node in nodes}


def lane_of(node: Node) -> int:
    """The lane that a node occupies while it runs; receives have none of their own."""
    if node.kind == "RECV":
        return RECEIVE
    if node.is_cpu:
        return CPU
    return COMPUTE if node.kind == "COMP" else COMMUNICATION


class Rank:
    """Execution of one trace on one rank."""

    def __init__(
        self, rank: int, trace: Trace, events: LocalEvents, simulation: Simulation
    ) -> None:
        self.rank = rank
        self.events = events
        self.transport = simulation.transport
        self.local_mem_bw = simulation.system.local_mem_bw
        self.finished_at: int | None = None
        self.computed = 0
        self._simulation = simulation
        self._trace = trace
        self._missing = dict(trace.dependencies)
        self._unfinished = len(trace.nodes)
        self._free: list[list[int]] = [[], [], [], []]
        in_flight = simulation.options.collectives_in_flight
        everything = len(trace.nodes)
        self._slots = [1, 1, in_flight or everything, everything]
        self._ongoing: dict[int, list[Chunk]] = {}
        self._streams: dict[int, int] = {}
        self._collectives_issued = 0
        self._queue_turns: dict[tuple[int, str], int] = {}
        self._tree_turns: dict[tuple[str, int], int] = {}
        self._queues: dict[tuple[int, int], ChunkQueue] = {}
        for number, count in self._missing.items():
            if not count:
                self._free[trace.lanes[number]].append(number)
        for lane in self._free:
            heapq.heapify(lane)

    def issue_free_nodes(self) -> None:
        """Issue every free node that finds a slot in its lane, in ascending id."""
        chosen: list[int] = []
        for lane, free in enumerate(self._free):
            while free and self._slots[lane]:
                self._slots[lane] -= 1
                chosen.append(heapq.heappop(free))
        if len(chosen) > 1:
            chosen.sort()
        for number in chosen:
            self._issue(self._trace.nodes[number])

    def stuck_nodes(self) -> str:
        """What the rank was doing when nothing more could happen."""
        parts = []
        for number, chunks in sorted(self._ongoing.items())[:2]:
            node = self._trace.nodes[number]
            if node.kind == "COLL":
                running = [chunk.phase for chunk in chunks if chunk.phase is not None]
                reason = running[0].waits_for() if running else "its turn"
                group = f" of group {node.group}" if node.group else ""
                what = f"{node.collective} of {node.size_bytes} bytes{group} waits for {reason}"
            else:
                other = "from" if node.kind == "RECV" else "to"
                what = (
                    f"{node.kind} of {node.size_bytes} bytes {other} rank {node.peer}"
                    f" with tag {node.tag} has no counterpart"
                )
            parts.append(f"node {number} ({what})")
        return f"rank {self.rank} at " + ", ".join(parts)

    def _issue(self, node: Node) -> None:
        simulation = self._simulation
        self._ongoing[node.id] = []
        timed = node.kind in ("COMP", "MEM_LOAD", "MEM_STORE") or node.collective == "BROADCAST"
        if timed or simulation.system.replay_only:
            duration = self._trace.durations[node.id]
            if not node.is_cpu and (node.kind == "COMP" or simulation.system.replay_only):
                self.computed += duration
            self.events.register(duration, self.complete, node)
        elif node.kind == "COLL":
            self.run_plan(node, self._simulation.plan(node, self.rank))
        elif node.kind == "SEND":
            assert node.peer is not None and node.size_bytes is not None and node.tag is not None
            tag = node.tag % FIRST_COLLECTIVE_TAG
            self.transport.send(
                self.rank, node.peer, node.size_bytes, tag, lambda _: self.complete(node)
            )
        else:
            assert node.peer is not None and node.size_bytes is not None and node.tag is not None
            tag = node.tag % FIRST_COLLECTIVE_TAG
            self.transport.receive(
                node.peer, self.rank, node.size_bytes, tag, lambda _: self.complete(node)
            )

    def complete(self, node: Node) -> None:
        """A node has ended: free its lane and whatever waited for it, and issue what can start."""
        number = node.id
        trace = self._trace
        del self._ongoing[number]
        self._slots[trace.lanes[number]] += 1
        self._unfinished -= 1
        for child in trace.children[number]:
            self._missing[child] -= 1
            if not self._missing[child]:
                heapq.heappush(self._free[trace.lanes[child]], child)
        self.issue_free_nodes()
        if not self._unfinished:
            self.finished_at = self._simulation.queue.now
            self._simulation.order.append(self.rank)

    def run_plan(self, node: Node, plan: CollectivePlan) -> None:
        """Make the chunks of a collective and send them on their way."""
        priority = self._next_priority(node)
        remaining = plan.chunks

        def chunk_done() -> None:
            nonlocal remaining
            remaining -= 1
            if not remaining:
                self.complete(node)

        chunks = self._ongoing[node.id]
        for _ in range(plan.chunks):
            stream = self._streams.get(node.group, node.group * STREAMS_PER_GROUP)
            self._streams[node.group] = stream + 1
            tag = FIRST_COLLECTIVE_TAG + stream % FIRST_COLLECTIVE_TAG
            turns = [self._take_turns(plan.collective, step) for step in plan.steps]
            queues = [
                self._queue(step.dimension.index, queue)
                for step, (queue, _) in zip(plan.steps, turns, strict=True)
            ]
            make_phase = self._phase_maker(plan, [choice for _, choice in turns], tag)
            chunks.append(Chunk(queues, make_phase, priority, chunk_done))
            chunks[-1].enter()

    def _phase_maker(
        self, plan: CollectivePlan, choices: list[int], tag: int
    ) -> Callable[[int, Callable[[], None]], Phase]:
        def make_phase(index: int, done: Callable[[], None]) -> Phase:
            return self._simulation.make_phase(self, plan, index, choices[index], tag, done)

        return make_phase

    def _take_turns(self, collective: str, step: Step) -> tuple[int, int]:
        """(queue, direction of the logical ring or choice of the tree) of a new phase."""
        dimension = step.dimension.index
        count = self._simulation.options.num_queues_per_dim
        half = count // 2
        first, last = {"all": (0, count), "first": (0, max(1, half)), "last": (half, count)}[
            step.queues
        ]
        turn = self._queue_turns.get((dimension, step.queues), 0)
        self._queue_turns[dimension, step.queues] = turn + 1
        queue = first + turn % (last - first)
        if step.dimension.implementation.name == "doubleBinaryTree":
            key = (collective, dimension)
            trees = self._tree_turns.get(key, 0)
            self._tree_turns[key] = trees + 1
            return queue, LARGEST_IS_ROOT if trees % 2 == 0 else SMALLEST_IS_ROOT
        backwards = step.queues == "last" or (step.queues == "all" and count > 1 and queue >= half)
        return queue, -1 if backwards else 1

    def _queue(self, dimension: int, index: int) -> ChunkQueue:
        queue = self._queues.get((dimension, index))
        if queue is None:
            queue = ChunkQueue(self._simulation.queue_capacity)
            self._queues[dimension, index] = queue
        return queue

    def _next_priority(self, node: Node) -> int:
        policy = self._simulation.system.scheduling_policy
        self._collectives_issued += 1
        if policy == "EXPLICIT":
            return node.priority
        return self._collectives_issued if policy == "LIFO" else -self._collectives_issued
