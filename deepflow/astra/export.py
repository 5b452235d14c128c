"""Execution traces of what ranks run: chains of operators, and passes with their messages.

Computations take a rank's compute lane for so many nanoseconds. A collective stands in the
communication lane until it has ended, and computations run beside it if they do not depend on it.
What keeps that lane busy for a known time, such as transfers that are timed alone, is a broadcast:
to ASTRA-sim that is a timer, of whole microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepflow.network.graph import Node
from deepflow.network.program import Program


@dataclass(frozen=True, slots=True)
class Call:
    """Calls of a collective: ``kind``, ``group`` and ``times`` as in ``Collective``.

    ``message_bytes`` of one call; ``before``: seconds that the device works for it first.
    """

    kind: str
    group: str
    message_bytes: float
    times: int = 1
    before: float = 0.0


@dataclass(frozen=True, slots=True)
class Item:
    """One operator of a chain: ``compute`` or ``link`` seconds in that lane, or ``call``.

    ``beside``: as many operators that follow do not wait for what is in the communication lane;
    then the device's work for a call is in that lane as well.
    """

    compute: float = 0.0
    link: float = 0.0
    call: Call | None = None
    beside: int = 0


# Nodes that a rank needs for one call: (ASTRA-sim's kind, its size in bytes, group number,
# dimensions that take part).
Phase = tuple[str, int, int, tuple[bool, ...] | None]
Phases = Callable[[Call], Sequence[Phase]]


# What comes before a chain that is built once and used after many things.
BEFORE = -1


class Operations:
    """What the nodes of one machine do, each kind of operation once; its id is its number."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._numbers: dict[tuple[object, ...], int] = {}

    def number(self, kind: str, name: str, values: dict[str, object]) -> int:
        """The number of an operation, by the fields of its nodes."""
        key = (kind, name, *values.items())
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.nodes)
            self.nodes.append(Node(number, kind, name, **values))  # type: ignore[arg-type]
        return number


@dataclass(frozen=True, slots=True)
class Template:
    """A piece of a trace. ``heads`` are its nodes that wait for what comes before, and ``ends``
    what comes after waits for; the latter may name ``BEFORE``."""

    program: Program
    heads: tuple[int, ...]
    ends: tuple[int, ...]


class TraceBuilder:
    """The nodes of one rank in the making; every method returns what comes after has to wait for.

    Nodes are numbered in the order of the calls, which is the order in which a lane takes those
    that could start. What rounds to no time at all is left out. ``operations`` are shared by the
    ranks of a machine.
    """

    def __init__(self, operations: Operations | None = None) -> None:
        self.operations = operations or Operations()
        self._what: list[int] = []
        self._children: list[tuple[int, ...]] = []
        self._missing: list[int] = []
        self._heads: list[int] = []

    @property
    def program(self) -> Program:
        """What has been built so far."""
        return Program(self.operations.nodes, self._what, self._children, self._missing)

    @property
    def nodes(self) -> list[Node]:
        """The same as nodes."""
        return self.program.nodes()

    def template(self, chains: Sequence[Sequence[Item]], phases: Phases) -> Template:
        """``chains`` one after the other, to be put into traces of the same machine."""
        piece = TraceBuilder(self.operations)
        ends: tuple[int, ...] = (BEFORE,)
        for items in chains:
            ends = piece.chain(items, ends, phases)
        return Template(piece.program, tuple(piece._heads), ends)

    def put(self, template: Template, after: tuple[int, ...]) -> tuple[int, ...]:
        """The nodes of a template after the nodes ``after``."""
        base, before = len(self._what), set(after)
        self._what += template.program.what
        self._children += template.program.children
        self._missing += template.program.missing
        for head in template.heads:
            self._missing[base + head] += len(before)
        for node in before:
            distances = tuple(base + head - node for head in template.heads)
            self._children[node] += distances
        ends: tuple[int, ...] = ()
        for end in template.ends:
            ends += after if end == BEFORE else (base + end,)
        return ends

    def compute(self, seconds: float, after: tuple[int, ...], name: str = "") -> tuple[int, ...]:
        """A computation after the nodes ``after``."""
        time = round(seconds * 1e9)
        if not time:
            return after
        # Half a picosecond-operation more, so that rounding down gives the nanoseconds.
        return self._add("COMP", name, after, num_ops=1000 * time + 500, tensor_bytes=1)

    # ASTRA-sim reads the size of a broadcast, and does nothing with it.
    def occupy_link(
        self, seconds: float, after: tuple[int, ...], name: str = ""
    ) -> tuple[int, ...]:
        """So much time in the communication lane, to the microsecond."""
        time = round(seconds * 1e6)
        if not time:
            return after
        return self._add(
            "COLL", name, after, collective="BROADCAST", size_bytes=1, duration_us=time
        )

    def collective(self, phase: Phase, after: tuple[int, ...]) -> tuple[int, ...]:
        """One collective."""
        kind, size, group, involved = phase
        return self._add(
            "COLL",
            kind,
            after,
            collective=kind,
            size_bytes=size,
            group=group,
            involved_dimensions=involved,
        )

    def send(self, size: int, peer: int, tag: int, after: tuple[int, ...]) -> tuple[int, ...]:
        """A message to rank ``peer``."""
        return self._add("SEND", "send", after, size_bytes=size, peer=peer, tag=tag)

    def receive(self, size: int, peer: int, tag: int) -> tuple[int, ...]:
        """The message of rank ``peer``."""
        return self._add("RECV", "receive", (), size_bytes=size, peer=peer, tag=tag)

    def chain(
        self, items: Sequence[Item], after: tuple[int, ...], phases: Phases
    ) -> tuple[int, ...]:
        """Operators in order; computations without a collective between them are one node."""
        last = after
        pending = 0.0
        beside: list[tuple[int, tuple[int, ...]]] = []
        for position, item in enumerate(items):
            due = [ends for waits, ends in beside if waits == position]
            if item.compute and not due:
                pending += item.compute
                continue
            if not due and not item.link and item.call is None:
                continue
            last = self.compute(pending, last)
            pending = item.compute
            for ends in due:
                last += ends
            beside = [(waits, ends) for waits, ends in beside if waits > position]
            ends = self._communicate(item, last, phases)
            if not item.beside:
                last = ends
            elif ends != last:
                beside.append((position + item.beside + 1, ends))
        last = self.compute(pending, last)
        for _, ends in beside:
            last += ends
        return last

    def _communicate(self, item: Item, after: tuple[int, ...], phases: Phases) -> tuple[int, ...]:
        ends = self.occupy_link(item.link, after)
        if item.call is not None:
            for _ in range(item.call.times):
                work = self.occupy_link if item.beside else self.compute
                ends = work(item.call.before, ends)
                for phase in phases(item.call):
                    ends = self.collective(phase, ends)
        return ends

    def _add(self, kind: str, name: str, after: tuple[int, ...], **values: object) -> tuple[int]:
        number, before = len(self._what), set(after)
        self._what.append(self.operations.number(kind, name, values))
        self._children.append(())
        if BEFORE in before:
            before.remove(BEFORE)
            self._heads.append(number)
        self._missing.append(len(before))
        for node in before:
            self._children[node] += (number - node,)
        return (number,)
