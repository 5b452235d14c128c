"""Collective algorithms: what each rank of a logical line sends, in which order, and when.

Ring, direct and halving-doubling are one state machine: a rank prepares packets (an endpoint
delay, for some packets a reduction in local memory after it), and every prepared packet is a
credit to send the next one. An ``Exchange`` describes the packets; ``ExchangePhase`` runs them,
and ``RingPhase`` those of rings, which need less.
The double binary tree (Sanders, Speck, Traeff 2009) is a machine of its own. The algorithms are
those of ASTRA-sim (arXiv 2303.14006, section IV, and its public documentation).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from deepflow.network.events import LocalEvents
from deepflow.network.graph import NetworkError
from deepflow.network.transport import Transport
from deepflow.record import record

_DIRECT = re.compile(r"(direct|oneDirect)(\d{0,5})")
_NAMES = {
    "ring": "ring",
    "oneRing": "ring",
    "halvingDoubling": "halvingDoubling",
    "oneHalvingDoubling": "halvingDoubling",
    "doubleBinaryTree": "doubleBinaryTree",
}
ACCESSES_PER_REDUCTION = 3  # two reads and one write of local memory


@record(frozen=True)
class Implementation:
    """An algorithm by name; ``window`` is the messages in flight of direct, 0 for all peers.

    ``whole`` (the ``one...`` spellings) makes one logical line of all ranks in every dimension.
    """

    name: str
    window: int
    whole: bool


@lru_cache(maxsize=256)
def parse_implementation(text: str) -> Implementation:
    """One entry of an ``...-implementation`` list. Raises NetworkError if there is none such."""
    name, window = _NAMES.get(text), 0
    if name is None and (match := _DIRECT.fullmatch(text)):
        name, window = "direct", int(match[2] or 0)
        if match[2] and not window:
            raise NetworkError(f"implementation {text!r}: a window of 0 messages sends nothing")
    if name is None:
        allowed = "ring, direct, directW, halvingDoubling, doubleBinaryTree, one..."
        raise NetworkError(f"unknown implementation {text!r} (allowed: {allowed})")
    return Implementation(name, window, text.startswith("one"))


@lru_cache(maxsize=65536)
def reduction_delay(size: int, local_mem_bw: float) -> int:
    """ns to reduce ``size`` bytes: one write and two reads at ``local_mem_bw`` GB/s (1e9)."""
    return ACCESSES_PER_REDUCTION * int(size / (local_mem_bw * 1e9) * 1e9)


class Exchange:
    """The packets of one phase of ring, direct or halving-doubling, for any rank of its line.

    ``data`` are the bytes of the phase and ``window`` (W) the packets prepared at the start.
    Packet i is reduced after the endpoint delay where ``reductions`` says so: W packets without
    and ``plain_after`` (X) packets with a reduction take turns, in an all-reduce for the first
    such turn only of every two.
    """

    __slots__ = (
        "_all_reductions",
        "_reductions",
        "collective",
        "direction",
        "members",
        "messages",
        "name",
        "reduced_run",
        "shares_first",
        "sizes",
        "window",
    )

    def __init__(
        self,
        implementation: Implementation,
        collective: str,
        data: int,
        members: Sequence[int],
        direction: int,
        subgroup: bool,
        local_mem_bw: float,
    ) -> None:
        ranks = len(members)
        self.name = implementation.name
        self.collective = collective
        self.members = members
        self.direction = direction
        reduces = collective == "ALL_REDUCE"
        if self.name == "ring":
            self.window, self.reduced_run = 1, ranks - 1
            all_to_all = ranks * (ranks - 1) // 2
            self.messages = (
                2 * (ranks - 1)
                if reduces
                else (all_to_all if collective == "ALL_TO_ALL" else ranks - 1)
            )
            self.sizes: tuple[int, ...] = (self._share(data, ranks),)
        elif self.name == "direct":
            peers = ranks - 1
            self.window = min(implementation.window, peers) if implementation.window else peers
            self.reduced_run = peers * self.window if subgroup else self.window
            self.messages = 2 * peers if reduces else peers
            self.sizes = (self._share(data, ranks),)
        else:
            steps = ranks.bit_length() - 1
            self.window, self.reduced_run = 1, steps - 1
            self.messages = 2 * steps if reduces else steps
            self.sizes = self._halving_sizes(data, steps)
        self._all_reductions: list[int] | None = None
        self.shares_first = reduces and self.name == "direct"
        self._reductions = (
            [reduction_delay(size, local_mem_bw) for size in self.sizes]
            if collective in ("ALL_REDUCE", "REDUCE_SCATTER")
            else []
        )

    def _share(self, data: int, ranks: int) -> int:
        return data if self.collective == "ALL_GATHER" else data // ranks

    def _halving_sizes(self, data: int, steps: int) -> tuple[int, ...]:
        if self.collective == "ALL_GATHER":
            return tuple(data << step for step in range(steps))
        down = [data >> step for step in range(1, steps + 1)]
        if self.collective == "REDUCE_SCATTER":
            return tuple(down)
        # The way back starts from the size after the last halving, doubled once.
        smallest = 2 * (down[-1] // 2)
        return tuple(down + [smallest << step for step in range(steps)])

    def reduction(self, packet: int) -> int:
        """ns of the reduction that preparing this packet includes; -1 if there is none."""
        delays = self._reductions
        if not delays:
            return -1
        turn, place = divmod(packet, self.window + self.reduced_run)
        if place < self.window or (turn % 2 and self.collective == "ALL_REDUCE"):
            return -1
        return delays[packet] if packet < len(delays) else delays[-1]

    def all_reductions(self) -> list[int]:
        """``reduction`` of every packet of a rank; empty if there are none."""
        if self._all_reductions is None:
            packets = self.messages + self.window if self._reductions else 0
            self._all_reductions = [self.reduction(packet) for packet in range(packets)]
        return self._all_reductions

    def peers(self, position: int, packet: int) -> tuple[int, int]:
        """Ranks that a packet goes to, and that the matching message comes from."""
        members, direction = self.members, self.direction
        ranks = len(members)
        if self.name == "ring":
            return (
                members[(position + direction) % ranks],
                members[(position - direction) % ranks],
            )
        if self.name == "direct":
            step = direction * (1 + packet % (ranks - 1))
            return members[(position + step) % ranks], members[(position - step) % ranks]
        peer = members[position ^ self.offset(packet)]
        return peer, peer

    def offset(self, packet: int) -> int:
        """Distance of the partners of a halving-doubling message, as a mask of positions."""
        steps = len(self.members).bit_length() - 1
        if self.collective == "ALL_GATHER":
            return 1 << (steps - 1 - packet)
        return 1 << packet if packet < steps else 1 << (2 * steps - 1 - packet)


class PhaseHost(Protocol):
    """What a phase needs of the rank that runs it."""

    rank: int
    events: LocalEvents
    transport: Transport
    local_mem_bw: float


class ExchangePhase:
    """One rank's part of one chunk's exchange: packets prepared, credits held, messages sent."""

    __slots__ = (
        "_credits",
        "_done",
        "_endpoint_delay",
        "_equal_size",
        "_exchange",
        "_left",
        "_position",
        "_prepared",
        "_rank",
        "_received",
        "_reductions",
        "_register",
        "_tag",
        "_transport",
    )

    def __init__(
        self,
        host: PhaseHost,
        exchange: Exchange,
        endpoint_delay: int,
        tag: int,
        done: Callable[[], None],
    ) -> None:
        self._rank = host.rank
        self._register = host.events.register
        self._transport = host.transport
        self._exchange = exchange
        self._position = exchange.members.index(host.rank)
        self._endpoint_delay = endpoint_delay
        self._tag = tag
        self._done = done
        self._left = exchange.messages
        self._prepared = self._received = self._credits = 0
        self._reductions = exchange.all_reductions()
        self._equal_size = exchange.sizes[0] if len(exchange.sizes) == 1 else 0

    def start(self) -> None:
        """Prepare the window."""
        for packet in range(self._exchange.window):
            self._register(self._endpoint_delay, self._endpoint_passed, packet)
        self._prepared = self._exchange.window

    def waits_for(self) -> str:
        """What would let this phase go on, for messages about deadlocks."""
        exchange = self._exchange
        missing = exchange.messages - self._received
        peer = exchange.peers(self._position, min(self._received, exchange.messages - 1))[1]
        return f"{missing} of {exchange.messages} messages, the next from rank {peer}"

    def _on_message(self, _: object) -> None:
        self._received += 1
        packet = self._prepared
        self._prepared = packet + 1
        self._register(self._endpoint_delay, self._endpoint_passed, packet)

    def _endpoint_passed(self, packet: int) -> None:
        delay = self._reductions[packet] if self._reductions else -1
        if delay < 0:
            self._credit(packet)
        else:
            self._register(delay, self._credit, packet)

    def _credit(self, _: int) -> None:
        exchange = self._exchange
        self._credits += 1
        attempts = 1
        if exchange.shares_first and self._left < len(exchange.members):
            # The gathering half may start only when everybody's share has arrived.
            if self._received < len(exchange.members) - 1:
                return
            attempts = exchange.window
        while attempts and self._left and self._credits:
            packet = exchange.messages - self._left
            if packet == self._prepared:
                break
            self._send(packet)
            attempts -= 1
        if self._left == 0 and self._credits == exchange.window:
            self._done()

    def _send(self, packet: int) -> None:
        self._left -= 1
        self._credits -= 1
        exchange, rank, transport = self._exchange, self._rank, self._transport
        destination, source = exchange.peers(self._position, packet)
        size, tag = self._equal_size or exchange.sizes[packet], self._tag
        transport.send(rank, destination, size, tag)
        transport.receive(source, rank, size, tag, self._on_message)


class RingPhase:
    """``ExchangePhase`` of a ring without rendezvous, in which a credit is a message.

    A rank prepares its next packet when it has received one, and receives when it has sent, so
    it never holds more than one credit, and all messages go the same way.
    """

    __slots__ = (
        "_done",
        "_endpoint_delay",
        "_exchange",
        "_incoming",
        "_outgoing",
        "_packet",
        "_position",
        "_receive",
        "_reductions",
        "_register",
        "_send",
        "_transport",
    )

    def __init__(
        self,
        host: PhaseHost,
        exchange: Exchange,
        endpoint_delay: int,
        tag: int,
        done: Callable[[], None],
    ) -> None:
        self._register = host.events.register
        self._transport = host.transport
        self._exchange = exchange
        self._position = exchange.members.index(host.rank)
        self._endpoint_delay = endpoint_delay
        self._done = done
        self._packet = 0
        self._reductions = exchange.all_reductions()
        size = exchange.sizes[0]
        destination, source = exchange.peers(self._position, 0)
        self._outgoing = host.transport.open_channel(host.rank, destination, size, tag)
        self._incoming = host.transport.open_channel(source, host.rank, size, tag)
        self._send, self._receive = self._outgoing.send, self._incoming.receive

    def start(self) -> None:
        """Prepare the first packet."""
        self._register(self._endpoint_delay, self._endpoint_passed, 0)

    def waits_for(self) -> str:
        """What would let this phase go on, for messages about deadlocks."""
        messages = self._exchange.messages
        peer = self._exchange.peers(self._position, 0)[1]
        return f"{messages - self._packet} of {messages} messages, the next from rank {peer}"

    def _on_message(self, _: object) -> None:
        self._packet = packet = self._packet + 1
        self._register(self._endpoint_delay, self._endpoint_passed, packet)

    def _endpoint_passed(self, packet: int) -> None:
        delay = self._reductions[packet] if self._reductions else -1
        if delay < 0:
            self._credit(packet)
        else:
            self._register(delay, self._credit, packet)

    def _credit(self, packet: int) -> None:
        if packet < self._exchange.messages:
            self._send()
            self._receive(self._on_message)
        else:
            self._transport.close_channel(self._outgoing)
            self._transport.close_channel(self._incoming)
            self._done()


@record(frozen=True)
class TreeNode:
    """A place in a tree: positions of parent and children in the line, None where there is none."""

    parent: int | None
    children: tuple[int, ...]


@lru_cache(maxsize=64)
def double_binary_tree(ranks: int, largest_is_root: bool) -> tuple[TreeNode, ...]:
    """One of the two trees over a power of two of ranks, by position.

    The root has one child, the top of a complete binary tree of the others, numbered in order
    (left, self, right). The root is the last position, or the first one in the other tree.
    """
    first = 0 if largest_is_root else 1
    root = ranks - 1 if largest_is_root else 0
    nodes: dict[int, TreeNode] = {}
    for number in range(1, ranks):
        lowest = number & -number  # 1 for a leaf, 2 one level up, ...
        half = lowest // 2
        above = (number - lowest) | (2 * lowest)
        parent = root if number == ranks // 2 else above - 1 + first
        below = (number - half, number + half) if half else ()
        children = tuple(child - 1 + first for child in below)
        nodes[number - 1 + first] = TreeNode(parent, children)
    nodes[root] = TreeNode(None, (ranks // 2 - 1 + first,))
    return tuple(nodes[position] for position in range(ranks))


class TreePhase:
    """One rank's part of an all-reduce over one tree: up with reductions, and down again."""

    __slots__ = (
        "_children_in",
        "_children_reduced",
        "_done",
        "_endpoint_delay",
        "_host",
        "_members",
        "_node",
        "_size",
        "_step",
        "_tag",
    )

    def __init__(
        self,
        host: PhaseHost,
        members: Sequence[int],
        size: int,
        largest_is_root: bool,
        endpoint_delay: int,
        tag: int,
        done: Callable[[], None],
    ) -> None:
        self._host = host
        self._members = members
        self._node = double_binary_tree(len(members), largest_is_root)[members.index(host.rank)]
        self._size = size
        self._endpoint_delay = endpoint_delay
        self._tag = tag
        self._done = done
        self._children_reduced = 0
        self._step = "up"

    def start(self) -> None:
        """Leaves prepare what they send; the others wait for their children."""
        if not self._node.children:
            self._prepare(False, self._send_up)
        for child in self._node.children:
            self._receive(child, self._from_child)

    def waits_for(self) -> str:
        """What would let this phase go on, for messages about deadlocks."""
        places = self._node.children if self._step == "up" else (self._node.parent,)
        ranks = ", ".join(str(self._members[place]) for place in places if place is not None)
        return f"messages of the tree from rank {ranks}" if ranks else "its own preparation"

    def _prepare(self, reduced: bool, then: Callable[[Any], None]) -> None:
        host = self._host

        def endpoint_passed(_: object) -> None:
            if reduced:
                delay = reduction_delay(self._size, host.local_mem_bw)
                host.events.register(delay, then, None)
            else:
                then(None)

        host.events.register(self._endpoint_delay, endpoint_passed, None)

    def _send(self, place: int) -> None:
        host = self._host
        host.transport.send(host.rank, self._members[place], self._size, self._tag)

    def _receive(self, place: int, received: Callable[[Any], None]) -> None:
        host = self._host
        host.transport.receive(self._members[place], host.rank, self._size, self._tag, received)

    def _from_child(self, _: object) -> None:
        self._prepare(True, self._child_reduced)

    def _child_reduced(self, _: object) -> None:
        self._children_reduced += 1
        if self._children_reduced < len(self._node.children):
            return
        if self._node.parent is None:
            self._finish()
        else:
            self._send_up(None)

    def _send_up(self, _: object) -> None:
        parent = self._node.parent
        assert parent is not None
        self._step = "down"
        self._send(parent)
        self._receive(parent, self._from_parent)

    def _from_parent(self, _: object) -> None:
        self._prepare(bool(self._node.children), lambda _: self._finish())

    def _finish(self) -> None:
        for child in self._node.children:
            self._send(child)
        self._done()
