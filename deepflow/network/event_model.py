"""The event model: every message of every rank, in the order of ASTRA-sim's event queue.

With default options the result is that of ASTRA-sim's analytical backends to the cycle:
congestion-unaware, or with ``congestion`` congestion-aware. Where the binaries crash, hang or
print a number without meaning, NetworkError says why. Defects of the binaries are not imitated:
the use of freed memory that reorders packets of ``direct``, 64-bit overflows, ranks that report
to have finished although a cycle of nodes was dropped, traces that are cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deepflow.network import checks
from deepflow.network.algorithms import ExchangePhase, RingPhase, TreePhase
from deepflow.network.collective import (
    SUBGROUP_ENDPOINT_DELAY,
    CollectivePlan,
    LogicalDimension,
    Phase,
    chunk_sizes,
    chunk_steps,
)
from deepflow.network.events import EventQueue, LocalEvents
from deepflow.network.graph import (
    DEFAULT_ENDPOINT_DELAY,
    Network,
    NetworkError,
    Node,
    Options,
    RemoteMemory,
    Result,
    SystemSettings,
)
from deepflow.network.rank import LARGEST_IS_ROOT, Rank, Trace
from deepflow.network.topology import Topology
from deepflow.network.transport import DelayTransport, QueueingTransport, Transport
from deepflow.record import record

NS_PER_US = 1000
SHORTEST_NODE = 1  # ns, for nodes without a duration


@record(frozen=True)
class Inputs:
    """Everything that a simulation depends on; one trace per rank."""

    traces: Sequence[Sequence[Node]]
    network: Network
    system: SystemSettings
    options: Options
    groups: Mapping[int, Sequence[int]]
    memory: RemoteMemory | None


def check(inputs: Inputs) -> None:
    """Raise NetworkError if anything is wrong that can be seen without simulating."""
    network, system, options = inputs.network, inputs.system, inputs.options
    checks.check_network(network, options)
    checks.check_system(system, options)
    checks.check_groups(inputs.groups, network.ranks)
    if len(inputs.traces) != network.ranks:
        raise NetworkError(f"{len(inputs.traces)} traces for a network of {network.ranks} ranks")
    seen: set[int] = set()
    for rank, nodes in enumerate(inputs.traces):
        if id(nodes) not in seen:
            seen.add(id(nodes))
            has_memory = inputs.memory is not None
            checks.check_nodes(nodes, rank, network, system, options, has_memory)


class Simulation:
    """One run of the event model. ``inputs`` have passed ``check``."""

    def __init__(self, inputs: Inputs) -> None:
        self.network = inputs.network
        self.system = inputs.system
        self.options = inputs.options
        self.queue = EventQueue()
        self.topology = Topology(inputs.network, inputs.options.link_states)
        transport = QueueingTransport if inputs.options.congestion else DelayTransport
        self.transport: Transport = transport(self.queue, self.topology, inputs.options.rendezvous)
        queues, active = (
            inputs.options.num_queues_per_dim,
            inputs.system.active_chunks_per_dimension,
        )
        self.queue_capacity = -(-active // queues)
        self.order: list[int] = []
        self._groups = inputs.groups
        self._memory = inputs.memory
        self._plans: dict[tuple[object, ...], CollectivePlan] = {}
        self.ranks = self.make_ranks(inputs.traces)

    def make_ranks(self, traces: Sequence[Sequence[Node]]) -> list[Rank]:
        """The ranks that are executed: all of them."""
        shared: dict[int, Trace] = {}
        for nodes in traces:
            if id(nodes) not in shared:
                shared[id(nodes)] = Trace(nodes, self.duration)
        return [
            Rank(rank, shared[id(nodes)], LocalEvents(self.queue), self)
            for rank, nodes in enumerate(traces)
        ]

    def run(self) -> Result:
        """Issue what is free on all ranks, then run the clock until nothing is left to do.

        Raises NetworkError if ranks wait for each other, or for messages that nobody sends.
        """
        for rank in self.ranks:
            rank.issue_free_nodes()
        self.queue.run()
        stuck = [rank for rank in self.ranks if rank.finished_at is None]
        if stuck:
            shown = "; ".join(rank.stuck_nodes() for rank in stuck[:4])
            more = f"; and {len(stuck) - 4} more ranks" if len(stuck) > 4 else ""
            raise NetworkError(
                f"{len(stuck)} of {len(self.ranks)} ranks wait for ever: {shown}{more}"
            )
        cycles = tuple(rank.finished_at or 0 for rank in self.ranks)
        computed = (rank.computed for rank in self.ranks)
        exposed = tuple(end - work for end, work in zip(cycles, computed, strict=True))
        return Result(cycles, exposed, tuple(self.order))

    def make_phase(
        self,
        rank: Rank,
        plan: CollectivePlan,
        index: int,
        choice: int,
        tag: int,
        done: Callable[[], None],
    ) -> Phase:
        """The algorithm of one chunk's phase; ``choice`` is its direction, or its tree."""
        step = plan.steps[index]
        if step.dimension.implementation.name == "doubleBinaryTree":
            members = plan.members(index, rank.rank)
            largest = choice == LARGEST_IS_ROOT
            delay = plan.endpoint_delay
            return TreePhase(rank, members, step.data, largest, delay, tag, done)
        exchange = plan.exchange(index, rank.rank, choice)
        # Every message of a rendezvous is a conversation, which channels do not have.
        ring = exchange.name == "ring" and not self.options.rendezvous
        phase = RingPhase if ring else ExchangePhase
        return phase(rank, exchange, plan.endpoint_delay, tag, done)

    def plan(self, node: Node, rank: int) -> CollectivePlan:
        """The plan of a collective, made when the first rank issues it.

        Raises NetworkError if the collective cannot run in its group or on these dimensions.
        """
        assert node.collective is not None and node.size_bytes is not None
        if node.group:
            if node.group not in self._groups:
                raise NetworkError(
                    f"rank {rank}, node {node.id}: there is no communicator group {node.group}"
                )
            if rank not in self._groups[node.group]:
                raise NetworkError(
                    f"rank {rank}, node {node.id}: the rank is not in communicator group"
                    f" {node.group}, which it names"
                )
        key = (node.collective, node.size_bytes, node.group, node.involved_dimensions)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._make_plan(node, node.collective, node.size_bytes)
        return plan

    def _make_plan(self, node: Node, collective: str, size: int) -> CollectivePlan:
        group = self._groups[node.group] if node.group else None
        # A group of all ranks is no sub-group, and takes all dimensions.
        if group is not None and len(group) == self.network.ranks:
            dimensions = self._dimensions(collective, None)
            group = None
        elif group is not None:
            dimensions = [self._group_dimension(collective, len(group))]
        else:
            dimensions = self._dimensions(collective, node.involved_dimensions)
        for dimension in dimensions:
            checks.check_algorithm(
                dimension.implementation, collective, dimension.ranks, group is not None
            )
        chunks, chunk = chunk_sizes(
            collective, size, self.system.preferred_dataset_splits, self.network.ranks
        )
        hierarchical = self.system.collective_optimization == "localBWAware"
        steps = chunk_steps(collective, dimensions, chunk, hierarchical)
        endpoint_delay = self._endpoint_delay() if group is None else SUBGROUP_ENDPOINT_DELAY
        plan = CollectivePlan(
            collective,
            self.topology,
            steps,
            chunks,
            endpoint_delay,
            self.system.local_mem_bw,
            group,
        )
        for index in range(len(steps)):
            checks.check_messages(plan, index)
        return plan

    def _dimensions(
        self, collective: str, involved: tuple[bool, ...] | None
    ) -> list[LogicalDimension]:
        npus = self.network.npus
        parsed = checks.implementations(collective, self.system, len(npus))
        if parsed[0].whole:
            if involved is not None and not involved[0]:
                raise NetworkError(
                    f"{collective} with a one... implementation needs involved_dim true first"
                )
            return [LogicalDimension(0, self.network.ranks, parsed[0])]
        return [
            LogicalDimension(index, npus[index], implementation)
            for index, implementation in enumerate(parsed)
            if involved is None or involved[index]
        ]

    def _group_dimension(self, collective: str, size: int) -> LogicalDimension:
        # With several dimensions a sub-group cannot follow their wiring and falls back to a ring.
        parsed = checks.implementations(collective, self.system, len(self.network.npus))
        implementation = parsed[0] if len(parsed) == 1 else checks.parse_implementation("ring")
        return LogicalDimension(0, size, implementation)

    def _endpoint_delay(self) -> int:
        delay = self.system.endpoint_delay
        if delay is None:
            return DEFAULT_ENDPOINT_DELAY
        return int(int(delay) * self.options.injection_scale)

    def duration(self, node: Node) -> int:
        """ns of a node that runs on a timer."""
        system = self.system
        timer = node.duration_us * NS_PER_US or SHORTEST_NODE
        if system.replay_only:
            return timer
        if node.kind in ("MEM_LOAD", "MEM_STORE"):
            assert self._memory is not None and node.tensor_bytes is not None
            return int(self._memory.latency) + int(node.tensor_bytes / self._memory.bandwidth)
        if node.kind == "COMP" and system.roofline_enabled and not node.is_cpu:
            assert node.num_ops and node.tensor_bytes and system.peak_perf
            intensity = node.num_ops / node.tensor_bytes
            rate = min(system.local_mem_bw * 1e9 * intensity, system.peak_perf * 1e12)
            return int(node.num_ops / rate * 1e9)
        return timer
