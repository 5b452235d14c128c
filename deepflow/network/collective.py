"""A collective on one rank: chunks, their phases through the dimensions, and the queues.

The buffer is cut into chunks that travel independently. Each passes one phase per dimension (or
three in the hierarchical all-reduce), and waits in a queue of that dimension for its turn. See
ASTRA-sim 2.0 (arXiv 2303.14006) and "Themis" (arXiv 2110.04478) for the idea of chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from deepflow.network.algorithms import Exchange, Implementation
from deepflow.network.topology import Topology
from deepflow.record import record

FIRST_COLLECTIVE_TAG = 500_000_000
STREAMS_PER_GROUP = 1_000_000
SUBGROUP_ENDPOINT_DELAY = 10  # ns; the binary ignores the configured one in sub-groups


@record(frozen=True)
class LogicalDimension:
    """One stage of a collective: the network dimension whose queues it uses, and its algorithm."""

    index: int
    ranks: int
    implementation: Implementation


@record(frozen=True)
class Step:
    """One phase of a chunk: an elementary collective of ``data`` bytes in one dimension.

    ``queues`` says which of the dimension's queues take turns: all of them, or in the
    hierarchical all-reduce one half for the way in and the other for the way out.
    """

    dimension: LogicalDimension
    collective: str
    data: int
    queues: str = "all"


def chunk_sizes(collective: str, size: int, splits: int, ranks: int) -> tuple[int, int]:
    """(number of chunks, bytes of every chunk) of a buffer of ``size`` bytes.

    ``ranks`` are all ranks of the system, also for groups. A remainder becomes a full chunk, and
    a buffer below one byte per rank and chunk is raised to that, as in the binary.
    """
    chunk = size // splits
    if collective != "ALL_GATHER" and chunk < ranks:
        chunk, size = ranks, ranks * splits
    return -(-size // chunk), chunk


def chunk_steps(
    collective: str, dimensions: Sequence[LogicalDimension], chunk: int, hierarchical: bool
) -> list[Step]:
    """The phases of a chunk of ``chunk`` bytes.

    ``hierarchical`` (localBWAware) turns an all-reduce into reduce-scatters, one all-reduce in
    the last dimension, and all-gathers back, so that later dimensions carry less.
    """
    if collective == "ALL_REDUCE" and hierarchical:
        *inner, last = dimensions
        inward = _steps("REDUCE_SCATTER", inner, chunk, "first")
        size = _after(inward[-1]) if inward else chunk
        across = Step(last, "ALL_REDUCE", size, "first")
        outward = _steps("ALL_GATHER", inner[::-1], _after(across), "last")
        return [*inward, across, *outward]
    if collective == "ALL_GATHER":
        dimensions = dimensions[::-1]
    return _steps(collective, dimensions, chunk, "all")


def _steps(
    collective: str, dimensions: Sequence[LogicalDimension], data: int, queues: str
) -> list[Step]:
    steps: list[Step] = []
    for dimension in dimensions:
        steps.append(Step(dimension, collective, data, queues))
        data = _after(steps[-1])
    return steps


def _after(step: Step) -> int:
    """Bytes that a rank holds of the chunk after a step."""
    # The tree always runs an all-reduce of everything it gets.
    if step.dimension.implementation.name == "doubleBinaryTree":
        return step.data
    if step.collective == "ALL_GATHER":
        return step.data * step.dimension.ranks
    if step.collective == "REDUCE_SCATTER":
        return step.data // step.dimension.ranks
    return step.data


class CollectivePlan:
    """What all ranks share of one collective: its chunks, their steps, and who talks to whom."""

    def __init__(
        self,
        collective: str,
        topology: Topology,
        steps: Sequence[Step],
        chunks: int,
        endpoint_delay: int,
        local_mem_bw: float,
        group: Sequence[int] | None,
    ) -> None:
        """``group`` are the members of a communicator sub-group, None for all ranks."""
        self.collective = collective
        self.steps = steps
        self.chunks = chunks
        self.endpoint_delay = endpoint_delay
        self._topology = topology
        self._group = group
        self._local_mem_bw = local_mem_bw
        self._exchanges: dict[tuple[int, int, int], Exchange] = {}

    def members(self, index: int, rank: int) -> Sequence[int]:
        """The ranks that take part with ``rank`` in step ``index``, in the order of the line."""
        if self._group is not None:
            return self._group
        dimension = self.steps[index].dimension
        if dimension.implementation.whole:
            return range(self._topology.ranks)
        return self._topology.line(rank, dimension.index)

    def exchange(self, index: int, rank: int, direction: int) -> Exchange:
        """The packets of step ``index`` in the line of ``rank`` (not for trees)."""
        members = self.members(index, rank)
        key = (index, members[0], direction)
        exchange = self._exchanges.get(key)
        if exchange is None:
            step = self.steps[index]
            exchange = self._exchanges[key] = Exchange(
                step.dimension.implementation,
                step.collective,
                step.data,
                members,
                direction,
                subgroup=self._group is not None,
                local_mem_bw=self._local_mem_bw,
            )
        return exchange


class Phase(Protocol):
    """A running algorithm of ``algorithms``."""

    def start(self) -> None:
        """Begin."""

    def waits_for(self) -> str:
        """What would let it go on."""


class ChunkQueue:
    """Chunks in one queue of one dimension of a rank, of which at most ``capacity`` run."""

    __slots__ = ("_capacity", "_chunks", "_running")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._chunks: list[Chunk] = []
        self._running = 0

    def insert(self, chunk: Chunk) -> None:
        """Queue behind everything that runs or has at least the chunk's priority."""
        chunks = self._chunks
        place = len(chunks)
        while place and not chunks[place - 1].running:
            if chunks[place - 1].priority >= chunk.priority:
                break
            place -= 1
        chunks.insert(place, chunk)

    def remove(self, chunk: Chunk) -> None:
        """Take a finished chunk out of the list; its slot is freed by ``free_slot``."""
        self._chunks.remove(chunk)

    def free_slot(self) -> None:
        """One chunk stopped running."""
        self._running -= 1

    def start_waiting(self) -> None:
        """Start chunks, in order, while there are slots."""
        if self._running == self._capacity:
            return
        for chunk in list(self._chunks):
            if not chunk.running:
                self._running += 1
                chunk.run()
                if self._running == self._capacity:
                    return


class Chunk:
    """One chunk of one rank on its way through the phases."""

    __slots__ = ("_all_done", "_index", "_make_phase", "_queues", "phase", "priority", "running")

    def __init__(
        self,
        queues: Sequence[ChunkQueue],
        make_phase: Callable[[int, Callable[[], None]], Phase],
        priority: int,
        all_done: Callable[[], None],
    ) -> None:
        """``make_phase(index, done)`` builds phase ``index``; ``queues`` has one per phase."""
        self._queues = queues
        self._make_phase = make_phase
        self._all_done = all_done
        self._index = 0
        self.phase: Phase | None = None
        self.priority = priority
        self.running = False

    def enter(self) -> None:
        """Queue for the first phase."""
        self._queues[0].insert(self)
        self._queues[0].start_waiting()

    def run(self) -> None:
        """Start the current phase."""
        self.running = True
        self.phase = self._make_phase(self._index, self._phase_done)
        self.phase.start()

    def _phase_done(self) -> None:
        # The order of these steps is ASTRA-sim's: nodes that become free through the last chunk
        # are issued before this chunk's slot is given to the next one.
        old = self._queues[self._index]
        self._index += 1
        self.phase = None
        last = self._index == len(self._queues)
        if last:
            self._all_done()
        old.remove(self)
        self.running = False
        if not last:
            self._queues[self._index].insert(self)
        old.free_slot()
        old.start_waiting()
        if not last:
            self._queues[self._index].start_waiting()
