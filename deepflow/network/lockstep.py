"""All ranks, but collectives as timers: exact wherever the members of a collective keep step.

Ranks of a model run different traces (pipeline stages, groups), yet those that share a collective
usually reach it in the same nanosecond. Then its phases have closed forms, and only sends,
receives and nodes are events. If the members of any collective come at different times, or if
two things of one nanosecond could go either way, ``simulate_lockstep`` gives up and returns
None. Only for networks without contention: there, nothing else couples ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepflow.network.closed_forms import Timing, exchange_timing
from deepflow.network.collective import CollectivePlan, Phase
from deepflow.network.event_model import Inputs, Simulation
from deepflow.network.events import EventQueue
from deepflow.network.graph import NetworkError, Node, Result
from deepflow.network.rank import Rank, Trace
from deepflow.network.timers import OrderMattersError, PhaseEvents, Timer
from deepflow.network.topology import Topology
from deepflow.network.transport import DelayTransport, Notify

KEPT_TIMES = 256  # of a rank's watch, before those that are over are dropped


def simulate_lockstep(inputs: Inputs) -> Result | None:
    """The result of the event model up to the order of ranks that finish together, or None."""
    options = inputs.options
    if options.congestion or options.rendezvous or options.link_states:
        return None
    if options.collectives_in_flight != 1 or options.num_queues_per_dim != 1:
        return None
    simulation = LockstepSimulation(inputs)
    try:
        result = simulation.run()
    except (OrderMattersError, NetworkError):
        # The event model knows better what the ranks wait for.
        return None
    return result if simulation.all_together else None


class _Watch:
    """What is due for a rank, by its time.

    Messages are executed in the order in which they left, and in an order nobody follows here if
    they left in the same nanosecond. A message and the rank's own events of one nanosecond have
    no known order at all: an event inside a phase may have put the latter first.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue
        self._messages: dict[int, dict[int, int]] = {}
        self._own: set[int] = set()

    def message(self, time: int, source: int) -> None:
        """A message that leaves now is due at ``time``."""
        now = self._queue.now
        if len(self._messages) > KEPT_TIMES:
            kept = {due: sources for due, sources in self._messages.items() if due >= now}
            self._messages = kept
        sources = self._messages.setdefault(time, {})
        if time in self._own or sources.setdefault(now, source) != source:
            raise OrderMattersError

    def own(self, time: int) -> None:
        """Events of the rank itself are due at ``time``."""
        if time in self._messages:
            raise OrderMattersError
        if len(self._own) > KEPT_TIMES:
            self._own = {due for due in self._own if due >= self._queue.now}
        self._own.add(time)


class _Events(PhaseEvents):
    """Local events of one rank that are watched."""

    def __init__(self, queue: EventQueue, watch: _Watch) -> None:
        super().__init__(queue)
        self._watch = watch

    def opened(self, time: int) -> None:
        self._watch.own(time)


class _Transport(DelayTransport):
    """Messages that are watched at both ends."""

    def __init__(self, queue: EventQueue, topology: Topology, watches: list[_Watch]) -> None:
        super().__init__(queue, topology, rendezvous=False)
        self._watches = watches

    def transmit(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        time = self.queue.now + self.topology.delay(source, destination, size)
        if time == self.queue.now:
            raise OrderMattersError
        self._watches[source].message(time, source)
        self._watches[destination].message(time, source)
        super().transmit(source, destination, size, tag, sent)


class _Rank(Rank):
    """A rank that takes a collective of a single phase as one timer."""

    def __init__(
        self, rank: int, trace: Trace, events: _Events, simulation: LockstepSimulation
    ) -> None:
        super().__init__(rank, trace, events, simulation)
        self._phase_events = events
        self._lockstep = simulation

    def run_plan(self, node: Node, plan: CollectivePlan) -> None:
        """Chunks of a single phase pass through their queue in rounds."""
        if len(plan.steps) > 1:
            super().run_plan(node, plan)
            return
        timing = self._lockstep.timing(plan, 0, self.rank, 1)
        rounds = -(-plan.chunks // self._lockstep.queue_capacity)
        whole = Timing(rounds * timing.duration, timing.tail, None)
        Timer(self._phase_events, whole, id(plan), lambda: self.complete(node)).start()


class LockstepSimulation(Simulation):
    """The event model with timers in the place of phases."""

    def make_ranks(self, traces: Sequence[Sequence[Node]]) -> list[Rank]:
        """All ranks, with events that are watched."""
        watches = [_Watch(self.queue) for _ in traces]
        self.transport = _Transport(self.queue, self.topology, watches)
        self._events = [_Events(self.queue, watch) for watch in watches]
        self._timings: dict[tuple[int, int, int, int], Timing] = {}
        # Collectives under way: since when, and how many members are still to come.
        self._joined: dict[tuple[object, ...], tuple[int, int]] = {}
        self._streams: dict[tuple[int, int], int] = {}
        shared: dict[int, Trace] = {}
        for nodes in traces:
            if id(nodes) not in shared:
                shared[id(nodes)] = Trace(nodes, self.duration)
        return [
            _Rank(rank, shared[id(nodes)], self._events[rank], self)
            for rank, nodes in enumerate(traces)
        ]

    @property
    def all_together(self) -> bool:
        """Whether no collective is left in which members are missing."""
        return not self._joined

    def plan(self, node: Node, rank: int) -> CollectivePlan:
        """The plan of a collective that ``rank`` joins now.

        Raises OrderMattersError if other members joined it at another time.
        """
        plan = super().plan(node, rank)
        stream = self._streams.get((rank, node.group), 0)
        self._streams[rank, node.group] = stream + plan.chunks
        first, members = self._members(plan, rank)
        key = (id(plan), first, stream)
        now = self.queue.now
        since, missing = self._joined.get(key, (now, members))
        if since != now:
            raise OrderMattersError
        if missing > 1:
            self._joined[key] = (now, missing - 1)
        else:
            del self._joined[key]
        return plan

    def make_phase(
        self,
        rank: Rank,
        plan: CollectivePlan,
        index: int,
        choice: int,
        tag: int,
        done: Callable[[], None],
    ) -> Phase:
        """A timer for one chunk's phase."""
        timing = self.timing(plan, index, rank.rank, choice)
        return Timer(self._events[rank.rank], timing, (id(plan), index), done)

    def timing(self, plan: CollectivePlan, index: int, rank: int, direction: int) -> Timing:
        """What a phase takes in the line of ``rank``; raises OrderMattersError if unknown."""
        key = (id(plan), index, plan.members(index, rank)[0], direction)
        timing = self._timings.get(key)
        if timing is None:
            timing = self._timings[key] = self._time(plan, index, rank, direction)
        return timing

    def _members(self, plan: CollectivePlan, rank: int) -> tuple[int, int]:
        """(a rank that names the set, number) of those who are coupled by a collective."""
        first, count = rank, 1
        for step in {step.dimension.index: step for step in plan.steps}.values():
            members = plan.members(plan.steps.index(step), first)
            first = members[0]
            count *= len(members)
        return first, count

    def _time(self, plan: CollectivePlan, index: int, rank: int, direction: int) -> Timing:
        step = plan.steps[index]
        tree = step.dimension.implementation.name == "doubleBinaryTree"
        if tree or plan.endpoint_delay == 0:
            raise OrderMattersError
        members = plan.members(index, rank)
        count = len(members)
        exchange = plan.exchange(index, rank, direction)
        partners_by_mask = exchange.name == "halvingDoubling"

        def delay(step: int, size: int) -> int:
            delays = {
                self.topology.delay(
                    member,
                    members[place ^ step if partners_by_mask else (place + step) % count],
                    size,
                )
                for place, member in enumerate(members)
            }
            if len(delays) > 1:
                raise OrderMattersError
            return delays.pop()

        timing = exchange_timing(exchange, plan.endpoint_delay, delay, stride=1)
        if timing is None:
            raise OrderMattersError
        return timing
