"""One rank for all: exact results without messages where every rank does the same.

If all ranks run one trace of computations and collectives, they stay in step, and a phase of a
collective takes the same time on each. For phases without contention between chunks that time
has a closed form. So one rank is executed, with its lanes, chunks and queues as in the event
model, and each phase is a timer.

What could make ranks differ is the order of things that happen in the same nanosecond. A phase
ends with a local delay (the last endpoint delay or reduction), and ASTRA-sim executes a rank's
events of one nanosecond in the order of their registration. The timers keep these times of
registration. Where two events are registered together and their order could matter, the answer
is left to the event model: ``simulate_symmetric`` then returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deepflow.network.checks import exact_topologies
from deepflow.network.closed_forms import Timing, exchange_timing, queued_exchange_timing
from deepflow.network.collective import CollectivePlan, Phase
from deepflow.network.event_model import Inputs, Simulation
from deepflow.network.events import Call, EventQueue
from deepflow.network.graph import Node, Result
from deepflow.network.rank import Rank, Trace
from deepflow.network.ranking import Ranking
from deepflow.network.timers import OrderMattersError, PhaseEvents, Timer

SYMMETRIC_NODES = ("COMP", "COLL", "MEM_LOAD", "MEM_STORE")


def simulate_symmetric(inputs: Inputs, exact_order: bool) -> Result | None:
    """The result of the event model if it can be had without one, else None.

    Without ``exact_order`` ranks that finish together may be in another order.
    """
    if not is_symmetric(inputs):
        return None
    simulation = SymmetricSimulation(inputs)
    try:
        result = simulation.run()
    except OrderMattersError:
        return None
    return None if exact_order and not simulation.events.ranking_known else result


def is_symmetric(inputs: Inputs) -> bool:
    """Whether all ranks do the same on a network that looks the same from each of them."""
    options, first = inputs.options, inputs.traces[0]
    if options.rendezvous or options.link_states or options.collectives_in_flight != 1:
        return False
    if options.congestion and len(inputs.network.npus) > 1:
        return False
    if not exact_topologies(inputs.network):
        return False
    if not all(nodes is first or nodes == first for nodes in inputs.traces):
        return False
    return all(
        node.kind in SYMMETRIC_NODES
        and (not node.group or len(inputs.groups.get(node.group, ())) == inputs.network.ranks)
        for node in first
    )


class _Events(PhaseEvents):
    """Local events of one rank that know in which order the ranks execute them.

    The order is known as long as different things do not overlap: an event inside a phase that
    meets another one's nanosecond would take over the order of ranks of that one.
    """

    def __init__(self, queue: EventQueue) -> None:
        super().__init__(queue)
        self.ranking = Ranking()
        self.ranking_known = True
        self._rankings: dict[int, Ranking] = {}
        self._phases: dict[object, int] = {}
        self._nodes_until = 0

    def register(self, delay: int, call: Call, argument: Any) -> None:
        end = self.queue.now + delay
        self._nodes_until = max(self._nodes_until, end)
        self._forget_ended_phases()
        self.ranking_known = self.ranking_known and not self._phases
        super().register(delay, call, argument)

    def begin_phase(self, kind: object, end: int) -> None:
        """A phase begins; phases of one ``kind`` that begin together stay together."""
        now = self.queue.now
        self._forget_ended_phases()
        self._phases[kind, now] = end
        alone = len(self._phases) == 1 and self._nodes_until <= now
        self.ranking_known = self.ranking_known and alone

    def _forget_ended_phases(self) -> None:
        now = self.queue.now
        if any(end <= now for end in self._phases.values()):
            self._phases = {key: end for key, end in self._phases.items() if end > now}

    def opened(self, time: int) -> None:
        self._rankings[time] = self.ranking

    def _run(self, calls: list[tuple[Call, Any]]) -> None:
        time = self.queue.now
        self.ranking = self._rankings[time]
        super()._run(calls)
        del self._rankings[time]


class _RankedTimer(Timer):
    """A timer that also follows the order of the ranks."""

    def __init__(
        self,
        events: _Events,
        timing: Timing,
        kind: object,
        group: object,
        done: Callable[[], None],
    ) -> None:
        super().__init__(events, timing, group, done)
        self._ranked_events = events
        self._kind = kind
        self._ranking = events.ranking

    def start(self) -> None:
        """Wait until the local delay at the end begins."""
        events = self._ranked_events
        self._ranking = events.ranking
        events.begin_phase(self._kind, events.queue.now + self.timing.duration)
        super().start()

    def last_delay(self, _: object) -> None:
        """The local delay at the end begins: the order of ranks has changed since the start."""
        events = self._ranked_events
        if self.timing.turns is None:
            events.ranking_known = False
        else:
            events.ranking = self._ranking.after(self.timing.turns)
        super().last_delay(_)


class SymmetricSimulation(Simulation):
    """The event model with one rank, and timers in the place of phases."""

    events: _Events

    def make_ranks(self, traces: Sequence[Sequence[Node]]) -> list[Rank]:
        """One rank that stands for all."""
        self._timings: dict[tuple[int, int, int], Timing] = {}
        self.events = _Events(self.queue)
        return [Rank(0, Trace(traces[0], self.duration), self.events, self)]

    def run(self) -> Result:
        """Run the one rank; raises OrderMattersError if the event model is needed."""
        one = super().run()
        ranks = self.network.ranks
        order = self.events.ranking.order(ranks)
        return Result(one.cycles * ranks, one.exposed * ranks, order)

    def collective_cycles(self, node: Node) -> int | None:
        """Cycles of one collective alone, if it has a closed form of its own.

        Chunks of a single phase pass through their queues in rounds. None if there are more
        phases, or no closed form.
        """
        plan = self.plan(node, 0)
        if len(plan.steps) > 1:
            return None
        try:
            timing = self._time(plan, 0, 1)
        except OrderMattersError:
            return None
        queues = self.options.num_queues_per_dim
        if plan.steps[0].queues == "first":
            queues = max(1, queues // 2)
        capacity = self.queue_capacity
        longest_queue = -(-plan.chunks // queues)
        return -(-longest_queue // capacity) * timing.duration

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
        key = (id(plan), index, choice)
        timing = self._timings.get(key)
        if timing is None:
            timing = self._timings[key] = self._time(plan, index, choice)
        # Chunks of one collective are alike, so it does not matter which of them is first,
        # unless they go on into different queues.
        alike = len(plan.steps) == 1 or self.options.num_queues_per_dim == 1
        group: object = (id(plan), index) if alike else object()
        return _RankedTimer(self.events, timing, key, group, done)

    def _time(self, plan: CollectivePlan, index: int, direction: int) -> Timing:
        dimension = plan.steps[index].dimension
        implementation = dimension.implementation
        several = len(self.topology.dimensions) > 1
        if implementation.name == "doubleBinaryTree" or (implementation.whole and several):
            raise OrderMattersError
        if plan.endpoint_delay == 0:
            raise OrderMattersError
        wiring, stride = self.topology.dimensions[dimension.index], 1
        if not implementation.whole:
            stride = self.topology.strides[dimension.index]
        exchange = plan.exchange(index, 0, direction)
        if not self.options.congestion:

            def delay(step: int, size: int) -> int:
                return wiring.delay(0, step, size)

            timing = exchange_timing(exchange, plan.endpoint_delay, delay, stride)
        elif self.system.active_chunks_per_dimension == self.options.num_queues_per_dim == 1:
            timing = queued_exchange_timing(exchange, plan.endpoint_delay, wiring, stride)
        else:
            raise OrderMattersError
        if timing is None:
            raise OrderMattersError
        return timing
