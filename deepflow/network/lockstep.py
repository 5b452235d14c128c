"""Collectives as timers: exact wherever it is known when their members begin.

Ranks of a model run different traces (pipeline stages, groups), yet those that share a collective
usually reach it in the same nanosecond. Then its phases have closed forms, and where members come
one after another the times of their messages follow from each other without a clock. Only nodes
are events. Ranks that do the same at the same time, such as those of a pipeline stage, are one
``Part`` and simulated once.

What the event model would decide by the order of events within a nanosecond is not always known
here: which of two nodes gets a lane that both could have. Then ``simulate_lockstep`` and
``run_parts`` give up and return None. Only for networks without contention: there, nothing
else couples ranks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from deepflow.network.closed_forms import Timing, exchange_timing, staggered_ends
from deepflow.network.collective import CollectivePlan, Phase
from deepflow.network.event_model import Inputs, Simulation
from deepflow.network.events import EventQueue
from deepflow.network.graph import NetworkError, Node, Result
from deepflow.network.program import Program
from deepflow.network.rank import COMMUNICATION, COMPUTE, CPU, RECEIVE, Rank, Trace, lane_of
from deepflow.network.timers import OrderMattersError, PhaseEvents, Timer

LANES = (CPU, COMPUTE, COMMUNICATION)  # one node at a time each

Delays = tuple[tuple[tuple[int, int], int], ...]
"""((step, bytes), ns) of the messages that a phase's timing was made of."""


@dataclass(frozen=True, slots=True)
class Part:
    """Ranks that do the same: ``program`` with peers of the first rank.

    ``node_of`` tells the collective that a rank of the part runs for one of the program, which may
    name another communicator group; for the first rank as well. The ranks of two parts that send
    each other messages pair up in their order.
    """

    ranks: range
    program: Program
    node_of: Callable[[Node, int], Node]


def simulate_lockstep(inputs: Inputs) -> Result | None:
    """The result of the event model up to the order of ranks that finish together, or None.

    ``inputs`` have passed ``check``.
    """
    programs: dict[int, Program] = {}
    for nodes in inputs.traces:
        if id(nodes) not in programs:
            programs[id(nodes)] = Program.of(nodes)
    parts = [
        Part(range(rank, rank + 1), programs[id(nodes)], _same_node)
        for rank, nodes in enumerate(inputs.traces)
    ]
    return run_parts(parts, inputs)


def run_parts(parts: Sequence[Part], inputs: Inputs) -> Result | None:
    """The same for parts that cover all ranks, in their order; ``inputs.traces`` are not used."""
    options = inputs.options
    if options.congestion or options.rendezvous or options.link_states:
        return None
    if options.collectives_in_flight != 1 or options.num_queues_per_dim != 1:
        return None
    try:
        return LockstepSimulation(parts, inputs).run()
    except (OrderMattersError, NetworkError):
        # The event model knows better what the ranks wait for.
        return None


def _same_node(node: Node, _: int) -> Node:
    return node


def _is_one_choice(waiting: list[int], ready: dict[int, int | None], before: int | None) -> bool:
    """Whether the same node gets a lane in whatever order other nodes end.

    ``waiting`` for the lane are nodes that were free already, ``ready`` are new ones with the node
    whose end made them so (None: not known which of several). ``before`` is the node that had the
    lane until now, None if it was empty.
    """
    # What can start at the moment at which the lane is handed on, whatever comes first.
    sure = list(waiting)
    if before is not None:
        sure += [node for node, cause in ready.items() if cause == before]
    if sure:
        return min(sure) <= min(ready, default=min(sure))
    return len(ready) <= 1 or (len(set(ready.values())) == 1 and None not in ready.values())


@dataclass(frozen=True, slots=True)
class _Collective:
    """A collective as the first rank of a part runs it, on an idle network.

    ``duration`` in ns if all members begin together; ``tail``: the local delay at its end.
    ``parts``: numbers of those that it couples; ``first``: its lowest rank, which names this
    instance of it.
    """

    node: Node
    plan: CollectivePlan
    duration: int
    tail: int
    delays: tuple[Delays, ...]
    parts: tuple[int, ...]
    first: int


@dataclass(slots=True)
class _State:
    """How far the ranks of a part are."""

    number: int
    part: Part
    lanes: list[int]
    missing: list[int]
    unfinished: int
    busy: list[bool] = field(default_factory=lambda: [False] * 4)
    free: list[list[int]] = field(default_factory=lambda: [[], [], [], []])
    # ns of an operation that runs on a timer; the others have no entry yet.
    timers: dict[int, int] = field(default_factory=dict)
    collectives: dict[int, _Collective] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)
    # The end of the latest collective; of one whose members are not all there, no time at all.
    collective_until: float = -1
    finished_at: int = 0


class LockstepSimulation(Simulation):
    """One run. Raises OrderMattersError where only the event model has an answer."""

    def __init__(self, parts: Sequence[Part], inputs: Inputs) -> None:
        super().__init__(inputs)
        self._part_of = {rank: number for number, part in enumerate(parts) for rank in part.ranks}
        lanes = {id(part.program.operations): part.program.operations for part in parts}
        of_operations = {key: [lane_of(node) for node in nodes] for key, nodes in lanes.items()}
        self._states = [
            _State(
                number,
                part,
                of_operations[id(part.program.operations)],
                list(part.program.missing),
                len(part.program.what),
            )
            for number, part in enumerate(parts)
        ]
        self._timings: dict[tuple[int, int, int], tuple[Timing, Delays]] = {}
        self._known: dict[tuple[int, int], _Collective] = {}
        # Due completions: (time, part, node, time at which the event was put in its queue).
        self._due: list[tuple[int, int, int, int]] = []
        # Collectives under way whose members are not all there: when each part came, with its node.
        self._joined: dict[tuple[int, int, int], dict[int, tuple[int, int]]] = {}
        # Messages by (source, destination, tag, size): arrivals without a receive, and receives.
        self._arrivals: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}
        self._receives: dict[tuple[int, int, int, int], list[int]] = {}
        self._message_delays: dict[tuple[int, int, int], int] = {}
        self._members: dict[tuple[int, int], tuple[int, ...]] = {}
        self._durations: dict[object, int] = {}
        self._phases: tuple[PhaseEvents, tuple[Timing, ...]] = (PhaseEvents(self.queue), ())

    def make_ranks(self, traces: Sequence[Sequence[Node]]) -> list[Rank]:
        """None: parts are executed here."""
        return []

    def run(self) -> Result:
        """Issue what is free, then complete one node after the other.

        Raises OrderMattersError also if something is left over.
        """
        due, states = self._due, self._states
        for state in states:
            what = state.part.program.what
            for node, count in enumerate(state.missing):
                if not count:
                    state.free[state.lanes[what[node]]].append(node)
            self._issue(state, 0)
        heappop, heappush = heapq.heappop, heapq.heappush
        while due:
            now, number, node, since = heappop(due)
            state = states[number]
            if due and due[0][0] == now and due[0][1] == number:
                ended = [(node, since)]
                while due and due[0][0] == now and due[0][1] == number:
                    ended.append(heappop(due)[2:])
                self._complete_together(state, ended, now)
            else:
                missing, lanes, free = state.missing, state.lanes, state.free
                program = state.part.program
                what = program.what
                state.busy[lanes[what[node]]] = False
                for distance in program.children[node]:
                    child = node + distance
                    missing[child] = left = missing[child] - 1
                    if not left:
                        heappush(free[lanes[what[child]]], child)
                state.unfinished -= 1
                self._issue(state, now)
            if not state.unfinished:
                state.finished_at = now
        if self._joined or any(state.unfinished for state in states):
            raise OrderMattersError
        return self._result()

    def _result(self) -> Result:
        cycles: list[int] = []
        exposed: list[int] = []
        computed: dict[int, int] = {}
        for state in self._states:
            program, ranks = state.part.program, len(state.part.ranks)
            if id(program) not in computed:
                times = [self._computes(node) for node in program.operations]
                computed[id(program)] = sum(map(times.__getitem__, program.what))
            cycles += [state.finished_at] * ranks
            exposed += [state.finished_at - computed[id(program)]] * ranks
        order = sorted(range(len(cycles)), key=cycles.__getitem__)
        return Result(tuple(cycles), tuple(exposed), tuple(order))

    def _computes(self, node: Node) -> int:
        if node.is_cpu or not (node.kind == "COMP" or self.system.replay_only):
            return 0
        return self.duration(node)

    def _complete_together(self, state: _State, ended: list[tuple[int, int]], now: int) -> None:
        """Nodes of a part that end in the same nanosecond, each with the time of its last event."""
        program, missing, lanes, what = (
            state.part.program,
            state.missing,
            state.lanes,
            state.part.program.what,
        )
        causes: dict[int, list[int]] = {}
        for parent, _ in ended:
            for distance in program.children[parent]:
                causes.setdefault(parent + distance, []).append(parent)
        ready: list[dict[int, int | None]] = [{}, {}, {}, {}]
        for child, parents in causes.items():
            if missing[child] == len(parents):
                # Of several parents, any may be the last.
                ready[lanes[what[child]]][child] = parents[0] if len(parents) == 1 else None
        freed = {lanes[what[parent]]: parent for parent, _ in ended}
        in_any_order = all(
            _is_one_choice(state.free[lane], ready[lane], freed.get(lane))
            for lane in LANES
            if lane in freed or not state.busy[lane]
        )
        batches = (
            [[node for node, _ in ended]] if in_any_order else self._in_order(state, ended, now)
        )
        for nodes in batches:
            for node in nodes:
                state.busy[lanes[what[node]]] = False
                for distance in program.children[node]:
                    child = node + distance
                    missing[child] -= 1
                    if not missing[child]:
                        heapq.heappush(state.free[lanes[what[child]]], child)
            state.unfinished -= len(nodes)
            self._issue(state, now)

    def _in_order(self, state: _State, ended: list[tuple[int, int]], now: int) -> list[list[int]]:
        """The nodes one by one, as events follow each other in ASTRA-sim's queue.

        That is in the order in which they were put there: messages when they left, and a rank's own
        events all together in the place of the first of them: a timer when it began, a collective
        with the local delay at its end. Raises OrderMattersError if that is not known: for those
        that were put there in the same nanosecond, and while a collective goes on, of which nobody
        follows the events.
        """
        if state.collective_until > now:
            raise OrderMattersError
        operations, what = state.part.program.operations, state.part.program.what
        own: list[tuple[int, int]] = []
        places: list[tuple[int, list[tuple[int, int]]]] = []
        for node, since in ended:
            if operations[what[node]].kind in ("SEND", "RECV"):
                places.append((since, [(since, node)]))
            else:
                own.append((since, node))
        if own:
            places.append((min(own)[0], sorted(own)))
        times = [since for since, _ in places]
        if len({since for since, _ in own}) < len(own) or len(set(times)) < len(times):
            raise OrderMattersError
        return [[node] for _, nodes in sorted(places) for _, node in nodes]

    def _issue(self, state: _State, now: int) -> None:
        """Start what is free and finds its lane free."""
        busy, free, what = state.busy, state.free, state.part.program.what
        for lane in LANES:
            if free[lane] and not busy[lane]:
                node = heapq.heappop(free[lane])
                busy[lane] = True
                time = state.timers.get(what[node])
                if time is None:
                    self._start(state, node, now)
                else:
                    heapq.heappush(self._due, (now + time, state.number, node, now))
        receives = free[RECEIVE]
        while receives:
            self._start(state, heapq.heappop(receives), now)

    def _start(self, state: _State, node: int, now: int) -> None:
        what = state.part.program.what[node]
        operation = state.part.program.operations[what]
        if operation.kind == "COLL" or self.system.replay_only:
            if operation.collective == "BROADCAST" or self.system.replay_only:
                self._start_timer(state, what, node, now)
            else:
                self._start_collective(state, what, node, now)
        elif operation.kind == "SEND":
            self._send(state, operation, node, now)
        elif operation.kind == "RECV":
            self._receive(state, operation, node, now)
        else:
            self._start_timer(state, what, node, now)

    def _start_timer(self, state: _State, what: int, node: int, now: int) -> None:
        duration = self.duration(state.part.program.operations[what])
        if duration <= 0:
            raise OrderMattersError
        state.timers[what] = duration
        heapq.heappush(self._due, (now + duration, state.number, node, now))

    # --- Messages ---------------------------------------------------------------------------

    def _send(self, state: _State, operation: Node, node: int, now: int) -> None:
        assert operation.peer is not None and operation.size_bytes and operation.tag is not None
        source, destination = state.part.ranks[0], operation.peer
        receiver = self._part_of[destination]
        route = (state.number, destination, operation.size_bytes)
        delay = self._message_delays.get(route)
        if delay is None:
            delay = self._message_delays[route] = self._message_delay(*route)
        heapq.heappush(self._due, (now + delay, state.number, node, now))
        key = (source, destination, operation.tag, operation.size_bytes)
        receives = self._receives.get(key)
        if receives:
            heapq.heappush(self._due, (now + delay, receiver, receives.pop(0), now))
        else:
            self._arrivals.setdefault(key, []).append((now + delay, now))

    def _message_delay(self, sender: int, destination: int, size: int) -> int:
        """ns between the ranks of two parts, place by place."""
        sources = self._states[sender].part.ranks
        destinations = self._states[self._part_of[destination]].part.ranks
        if destinations[0] != destination or len(sources) != len(destinations):
            raise OrderMattersError
        delays = {
            self.topology.delay(*pair, size) for pair in zip(sources, destinations, strict=True)
        }
        if len(delays) > 1 or 0 in delays:
            raise OrderMattersError
        return delays.pop()

    def _receive(self, state: _State, operation: Node, node: int, now: int) -> None:
        assert operation.peer is not None and operation.size_bytes and operation.tag is not None
        key = (operation.peer, state.part.ranks[0], operation.tag, operation.size_bytes)
        arrivals = self._arrivals.get(key)
        if arrivals:
            arrival, left = arrivals.pop(0)
            if arrival == now:
                # It may end before other nodes of this nanosecond, or after them.
                raise OrderMattersError
            since = now if arrival < now else left
            heapq.heappush(self._due, (max(now, arrival), state.number, node, since))
        else:
            self._receives.setdefault(key, []).append(node)

    # --- Collectives ------------------------------------------------------------------------

    def _start_collective(self, state: _State, what: int, node: int, now: int) -> None:
        collective = state.collectives.get(what)
        if collective is None:
            operation = state.part.program.operations[what]
            collective = state.collectives[what] = self._collective(state, operation)
        group = collective.node.group
        stream = state.streams.get(group, 0)
        state.streams[group] = stream + collective.plan.chunks
        if len(collective.parts) == 1:
            self._end_collective(collective, state.number, node, now + collective.duration)
            return
        state.collective_until = math.inf
        key = (id(collective.plan), collective.first, stream)
        joined = self._joined.setdefault(key, {})
        joined[state.number] = (now, node)
        if len(joined) < len(collective.parts):
            return
        del self._joined[key]
        ends = self._ends(collective, {part: begin for part, (begin, _) in joined.items()})
        for part, (_, waiting) in joined.items():
            if ends[part] <= now:
                raise OrderMattersError
            self._end_collective(collective, part, waiting, ends[part])

    def _end_collective(self, collective: _Collective, part: int, node: int, end: int) -> None:
        self._states[part].collective_until = end
        heapq.heappush(self._due, (end, part, node, end - collective.tail))

    def _ends(self, collective: _Collective, begins: dict[int, int]) -> dict[int, int]:
        """When the parts are through that begin at their own times."""
        first, *others = set(begins.values())
        if not others:
            return dict.fromkeys(begins, first + collective.duration)
        plan = collective.plan
        if len(plan.steps) > 1:
            raise OrderMattersError
        exchange = plan.exchange(0, collective.first, 1)
        places = [self._part_of[rank] for rank in exchange.members]
        times = [begins[part] for part in places]
        for _ in range(self._rounds(plan)):
            times = staggered_ends(exchange, plan.endpoint_delay, self.topology.delay, times)
            if not times:
                raise OrderMattersError
        ends = dict(zip(places, times, strict=True))
        # Members in the same part stay together only if nobody of them is nearer to those who wait.
        if any(ends[part] != time for part, time in zip(places, times, strict=True)):
            raise OrderMattersError
        return ends

    def _rounds(self, plan: CollectivePlan) -> int:
        return -(-plan.chunks // self.queue_capacity)

    def _collective(self, state: _State, operation: Node) -> _Collective:
        """What an operation is to the first rank of a part, once it is sure to be so for all."""
        ranks, node_of = state.part.ranks, state.part.node_of
        of_ranks = {rank: self._on_rank(node_of(operation, rank), rank) for rank in ranks}
        first = of_ranks[ranks[0]]
        agreed: set[tuple[int, int]] = set()
        for place, (rank, other) in enumerate(of_ranks.items()):
            same = (other.duration, other.parts, other.delays)
            if same != (first.duration, first.parts, first.delays):
                raise OrderMattersError
            members = self._coupled(other.plan, rank)
            # Every instance has to couple the ranks of one place in their parts.
            if len(other.parts) > 1 and any(
                self._at(part, place) not in members for part in other.parts
            ):
                raise OrderMattersError
            if (id(other.plan), members[0]) not in agreed:
                agreed.add((id(other.plan), members[0]))
                plans = {id(of_ranks[member].plan) for member in members if member in of_ranks}
                if len(plans) > 1:
                    raise OrderMattersError
        return first

    def _at(self, part: int, place: int) -> int | None:
        ranks = self._states[part].part.ranks
        return ranks[place] if place < len(ranks) else None

    def _on_rank(self, node: Node, rank: int) -> _Collective:
        plan = self.plan(node, rank)
        known = self._known.get((id(plan), rank))
        if known is None:
            members = self._coupled(plan, rank)
            parts = tuple(sorted({self._part_of[member] for member in members}))
            timed = [
                self._timing(plan, index, rank, -1 if step.queues == "last" else 1)
                for index, step in enumerate(plan.steps)
            ]
            timings = tuple(timing for timing, _ in timed)
            delays = tuple(delay for _, delay in timed)
            duration = self._alone(node, plan, rank, timings)
            tail = timings[-1].tail
            known = _Collective(node, plan, duration, tail, delays, parts, members[0])
            self._known[id(plan), rank] = known
        return known

    def _coupled(self, plan: CollectivePlan, rank: int) -> tuple[int, ...]:
        """All ranks that a collective couples with ``rank``, in ascending order."""
        coupled = self._members.get((id(plan), rank))
        if coupled is None:
            reached = {rank}
            for index in {step.dimension.index: at for at, step in enumerate(plan.steps)}.values():
                reached = {one for other in reached for one in plan.members(index, other)}
            coupled = tuple(sorted(reached))
            self._members.update(dict.fromkeys([(id(plan), one) for one in coupled], coupled))
        return coupled

    def _alone(
        self, node: Node, plan: CollectivePlan, rank: int, timings: tuple[Timing, ...]
    ) -> int:
        """ns of a collective whose members begin together.

        Chunks of a single phase pass through their queue in rounds; those of several phases are
        followed through the queues of one rank.
        """
        if len(timings) == 1:
            return self._rounds(plan) * timings[0].duration
        key = (plan.chunks, timings, tuple(step.dimension.index for step in plan.steps))
        duration = self._durations.get(key)
        if duration is None:
            self.queue = EventQueue()
            self._phases = PhaseEvents(self.queue), timings
            one = replace(node, dependencies=())
            executed = Rank(rank, Trace((one,), self.duration), self._phases[0], self)
            executed.issue_free_nodes()
            self.queue.run()
            duration = self._durations[key] = executed.finished_at or 0
        return duration

    def make_phase(
        self,
        rank: Rank,
        plan: CollectivePlan,
        index: int,
        choice: int,
        tag: int,
        done: Callable[[], None],
    ) -> Phase:
        """A timer for one chunk's phase, of the collective that is followed alone."""
        events, timings = self._phases
        return Timer(events, timings[index], index, done)

    def _timing(
        self, plan: CollectivePlan, index: int, rank: int, direction: int
    ) -> tuple[Timing, Delays]:
        """What a phase takes in the line of ``rank``, and the delays that it follows from."""
        members = plan.members(index, rank)
        key = (id(plan), index, members[0])
        timing = self._timings.get(key)
        if timing is None:
            timing = self._timings[key] = self._time(plan, index, members, direction)
        return timing

    def _time(
        self, plan: CollectivePlan, index: int, members: Sequence[int], direction: int
    ) -> tuple[Timing, Delays]:
        tree = plan.steps[index].dimension.implementation.name == "doubleBinaryTree"
        if tree or plan.endpoint_delay == 0:
            raise OrderMattersError
        count = len(members)
        exchange = plan.exchange(index, members[0], direction)
        partners_by_mask = exchange.name == "halvingDoubling"
        known: dict[tuple[int, int], int] = {}

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
            known[step, size] = delays.pop()
            return known[step, size]

        timing = exchange_timing(exchange, plan.endpoint_delay, delay, stride=1)
        if timing is None:
            raise OrderMattersError
        return timing, tuple(known.items())
