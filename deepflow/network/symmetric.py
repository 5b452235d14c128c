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

from deepflow.network.algorithms import Exchange
from deepflow.network.collective import CollectivePlan, Phase
from deepflow.network.event_model import Inputs, Simulation
from deepflow.network.events import Call, EventQueue, LocalEvents
from deepflow.network.graph import Node, Result
from deepflow.network.rank import Rank, Trace
from deepflow.network.ranking import Direct, ExclusiveOr, Ranking, Rotation, Turn
from deepflow.network.topology import Dimension
from deepflow.record import record

SYMMETRIC_NODES = ("COMP", "COLL", "MEM_LOAD", "MEM_STORE")
SYMMETRIC_TOPOLOGIES = ("Ring", "Switch", "FullyConnected")


class OrderMattersError(Exception):
    """Something whose outcome only the event model knows."""


@record(frozen=True)
class Timing:
    """What a phase takes if all ranks of its line start together.

    ``duration`` in ns; ``tail`` is the local delay at its end, part of it. ``turns`` say how the
    order of ranks changes from the start to the end; None if that is not known.
    """

    duration: int
    tail: int
    turns: tuple[Turn, ...] | None


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
    if any(kind not in SYMMETRIC_TOPOLOGIES for kind in inputs.network.topology):
        return False
    if not all(nodes is first or nodes == first for nodes in inputs.traces):
        return False
    return all(
        node.kind in SYMMETRIC_NODES
        and (not node.group or len(inputs.groups.get(node.group, ())) == inputs.network.ranks)
        for node in first
    )


class _Events(LocalEvents):
    """Local events of one rank that know in which order the ranks execute them.

    They notice events that are registered together and whose order is not known. The order of
    the ranks is known as long as different things do not overlap: an event inside a phase that
    meets another one's nanosecond would take over the order of ranks of that one.
    """

    def __init__(self, queue: EventQueue) -> None:
        super().__init__(queue)
        self.ranking = Ranking()
        self.ranking_known = True
        self._rankings: dict[int, Ranking] = {}
        self._registered: dict[int, dict[int, object]] = {}
        self._phases: dict[object, int] = {}
        self._nodes_until = 0

    def register(self, delay: int, call: Call, argument: Any) -> None:
        end = self.queue.now + delay
        self._nodes_until = max(self._nodes_until, end)
        self._forget_ended_phases()
        self.ranking_known = self.ranking_known and not self._phases
        self.register_as(None, delay, call, argument)

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

    def register_as(self, group: object, delay: int, call: Call, argument: Any) -> None:
        """Register an event that may come before or after others of its ``group``.

        ``group`` None stands for issued nodes, which are registered in a known order.
        """
        now = self.queue.now
        marks = self._registered.setdefault(now + delay, {})
        if marks.setdefault(now, group) != group:
            raise OrderMattersError
        self._rankings.setdefault(now + delay, self.ranking)
        super().register(delay, call, argument)

    def _run(self, calls: list[tuple[Call, Any]]) -> None:
        time = self.queue.now
        self.ranking = self._rankings[time]
        super()._run(calls)
        del self._rankings[time], self._registered[time]


class _Timer:
    """A phase of known duration."""

    def __init__(
        self,
        events: _Events,
        timing: Timing,
        kind: object,
        group: object,
        done: Callable[[], None],
    ) -> None:
        self._events = events
        self._timing = timing
        self._kind = kind
        self._group = group
        self._done = done
        self._ranking = events.ranking

    def start(self) -> None:
        """Wait until the local delay at the end begins."""
        queue, timing = self._events.queue, self._timing
        self._ranking = self._events.ranking
        self._events.begin_phase(self._kind, queue.now + timing.duration)
        queue.schedule(queue.now + timing.duration - timing.tail, self._last_delay, None)

    def waits_for(self) -> str:
        """Timers wait for nobody."""
        return "its timer"

    def _last_delay(self, _: object) -> None:
        events = self._events
        if self._timing.turns is None:
            events.ranking_known = False
        else:
            events.ranking = self._ranking.after(self._timing.turns)
        events.register_as(self._group, self._timing.tail, lambda _: self._done(), None)


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
        return _Timer(self.events, timing, key, group, done)

    def _time(self, plan: CollectivePlan, index: int, direction: int) -> Timing:
        implementation = plan.steps[index].dimension.implementation
        several = len(self.topology.dimensions) > 1
        if implementation.name == "doubleBinaryTree" or (implementation.whole and several):
            raise OrderMattersError
        if plan.endpoint_delay == 0:
            raise OrderMattersError
        dimension = self.topology.dimensions[plan.steps[index].dimension.index]
        exchange = plan.exchange(index, 0, direction)
        stride = self.topology.strides[plan.steps[index].dimension.index]
        if self.options.congestion:
            alone = self.system.active_chunks_per_dimension == self.options.num_queues_per_dim == 1
            if not alone:
                raise OrderMattersError
        timing = exchange_timing(
            exchange, plan.endpoint_delay, dimension, stride, self.options.congestion
        )
        if timing is None:
            raise OrderMattersError
        return timing


def exchange_timing(
    exchange: Exchange, endpoint_delay: int, dimension: Dimension, stride: int, congestion: bool
) -> Timing | None:
    """Duration of a phase in which all ranks of a line of ``dimension`` start together.

    None where there is no closed form. ``congestion``: with queues at the links, chunks one at a
    time. ``stride`` is the distance of neighbours in rank numbers.
    """
    ranks = dimension.size
    delay = _contention_free(exchange, dimension) if congestion else dimension.delay
    if exchange.window == 1:
        return None if delay is None else _chain(exchange, endpoint_delay, delay, stride)
    if delay is None:
        return _shared_downlink(exchange, endpoint_delay, dimension)
    size = exchange.size(0)
    reduction = max(0, exchange.reduction(exchange.window))
    delays = [delay(0, step, size) for step in range(1, ranks)]
    equal = min(delays) == max(delays)
    full = exchange.window == ranks - 1
    if exchange.collective == "ALL_REDUCE":
        if not full:
            return None
        return _share_and_gather(exchange, endpoint_delay, delays, reduction, stride)
    if full:
        last = [step + 1 for step, value in enumerate(delays) if value == max(delays)]
        duration = 2 * endpoint_delay + max(delays) + reduction
        tail = reduction if exchange.collective == "REDUCE_SCATTER" else endpoint_delay
        return Timing(duration, tail, (Direct(stride, ranks, _signed(last, exchange)),))
    if not equal or (ranks - 1) % exchange.window:
        return None
    rounds = (ranks - 1) // exchange.window
    duration = endpoint_delay + rounds * (delays[0] + endpoint_delay)
    tail = endpoint_delay
    if exchange.collective == "REDUCE_SCATTER":
        duration += (rounds + 1) // 2 * reduction
        tail = reduction if rounds % 2 else endpoint_delay
    turns = [
        Direct(stride, ranks, _signed(range(first, first + exchange.window), exchange))
        for first in range(1, ranks, exchange.window)
    ]
    return Timing(duration, tail, tuple(turns))


def _signed(steps: Sequence[int], exchange: Exchange) -> tuple[int, ...]:
    return tuple(exchange.direction * step for step in steps)


def _contention_free(
    exchange: Exchange, dimension: Dimension
) -> Callable[[int, int, int], int] | None:
    """Delay of messages that never wait at a link, store and forward; None if they may wait."""
    kind = dimension.kind
    if kind == "Ring" and exchange.name != "ring":
        return None
    if kind == "Switch" and exchange.window > 1:
        return None
    links = 2 if kind == "Switch" else 1

    def delay(_source: int, _destination: int, size: int) -> int:
        return links * int(dimension.latency + size / dimension.rate)

    return delay


def _chain(
    exchange: Exchange, endpoint_delay: int, delay: Callable[[int, int, int], int], stride: int
) -> Timing:
    """One message at a time: ring, halving-doubling, direct with a window of one.

    Every message waits for the one before it: an endpoint delay, a reduction for some, the way.
    """
    ranks, messages = len(exchange.members), exchange.messages
    duration = (messages + 1) * endpoint_delay
    turn: Turn
    if exchange.name == "ring":
        duration += messages * delay(0, 1, exchange.size(0))
        turn = Rotation(stride, ranks, messages * exchange.direction)
    elif exchange.name == "direct":
        size = exchange.size(0)
        steps = [1 + packet % (ranks - 1) for packet in range(messages)]
        duration += sum(delay(0, step, size) for step in steps)
        turn = Rotation(stride, ranks, sum(steps) * exchange.direction)
    else:
        offsets = [exchange.offset(packet) for packet in range(messages)]
        sizes = exchange.sizes
        duration += sum(delay(0, *way) for way in zip(offsets, sizes, strict=True))
        mask = 0
        for offset in offsets:
            mask ^= offset
        turn = ExclusiveOr(stride, ranks, mask)
    if exchange.name == "ring":
        # The first packet goes out as it is; each of the next P - 1 adds the rank's own share.
        duration += (ranks - 1) * max(0, exchange.reduction(1))
    else:
        duration += sum(max(0, exchange.reduction(packet)) for packet in range(messages + 1))
    tail = exchange.reduction(messages)
    return Timing(duration, tail if tail >= 0 else endpoint_delay, (turn,))


def _shared_downlink(
    exchange: Exchange, endpoint_delay: int, dimension: Dimension
) -> Timing | None:
    """Direct over a switch with queues: everybody's messages follow each other on every link."""
    ranks = dimension.size
    full = exchange.name == "direct" and exchange.window == ranks - 1
    if dimension.kind != "Switch" or not full or exchange.collective == "ALL_REDUCE":
        return None
    occupied = exchange.size(0) / dimension.rate
    reduction = max(0, exchange.reduction(exchange.window))
    duration = 2 * endpoint_delay + (ranks - 2) * int(occupied) + reduction
    duration += 2 * int(dimension.latency + occupied)
    tail = reduction if exchange.collective == "REDUCE_SCATTER" else endpoint_delay
    # Which of two messages enters a downlink first hangs on fractions of a nanosecond.
    return Timing(duration, tail, None)


def _share_and_gather(
    exchange: Exchange, endpoint_delay: int, delays: Sequence[int], reduction: int, stride: int
) -> Timing:
    """Direct all-reduce: shares to all peers, reductions, and results back to all peers.

    Results leave from when all shares are in; peers nearby may have had theirs reduced before.
    """
    ranks = len(exchange.members)
    ready = sorted(2 * endpoint_delay + reduction + delay for delay in delays)
    complete = next(time for time in ready if time >= endpoint_delay + max(delays))
    leave = [max(time, complete) for time in ready]
    arrive = [start + delay for start, delay in zip(leave, delays, strict=True)]
    last = max(arrive)
    first_leaving = min(start for start, end in zip(leave, arrive, strict=True) if end == last)
    shared = [
        step + 1
        for step, delay in enumerate(delays)
        if 2 * endpoint_delay + reduction + delay == first_leaving
    ]
    gathered = [
        step + 1
        for step, (start, end) in enumerate(zip(leave, arrive, strict=True))
        if end == last and start == first_leaving
    ]
    turns = tuple(Direct(stride, ranks, _signed(steps, exchange)) for steps in (shared, gathered))
    return Timing(endpoint_delay + last, endpoint_delay, turns)
