"""How messages travel: a delay per message, or queues at links; and how they meet their receives.

Both follow ASTRA-sim's analytical backends (congestion-unaware and congestion-aware). A message
is matched by tag, source, destination and size: the k-th send of such a key meets the k-th
receive. Messages of one key cannot overtake each other, so first come, first served does it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

from deepflow.network.events import EventQueue
from deepflow.network.topology import Station, Topology

TOKEN_BYTES = 8192
ROUTES_KEPT = 2**16  # all pairs of 256 ranks; beyond that, memory stays linear in ranks
TOKEN_TAG_OFFSET = 1_000_000_000

Notify: TypeAlias = "Callable[[Any], None]"
Key: TypeAlias = "tuple[int, int, int, int]"


class Transport:
    """Sends and receives between ranks; a subclass says when a message arrives.

    With ``rendezvous`` a receiver first sends a token of 8192 bytes, and the message leaves when
    the token has arrived and the send was issued.
    """

    def __init__(self, queue: EventQueue, topology: Topology, rendezvous: bool) -> None:
        self.queue = queue
        self.topology = topology
        # Nearly always one receive per key, so a list is made only for several.
        self.waiting: dict[Key, Notify | list[Notify]] = {}
        self.early: dict[Key, int] = {}
        if rendezvous:
            self.send: Callable[..., None] = self._send_after_token
            self.receive: Callable[..., None] = self._receive_with_token
        else:
            self.send = self.transmit
            self.receive = self._post

    def transmit(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        """Put a message of ``size`` bytes on its way; ``sent`` is told when it arrives."""
        raise NotImplementedError

    def deliver(self, message: tuple[Key, Notify | None]) -> None:
        """A message has arrived: the sender hears of it first, then the receiver."""
        key, sent = message
        if sent is not None:
            sent(None)
        receiver = self.waiting.pop(key, None)
        if receiver is None:
            self.early[key] = self.early.get(key, 0) + 1
        elif isinstance(receiver, list):
            first, *others = receiver
            self.waiting[key] = others if len(others) > 1 else others[0]
            first(None)
        else:
            receiver(None)

    def _post(self, source: int, destination: int, size: int, tag: int, received: Notify) -> None:
        key = (tag, source, destination, size)
        early = self.early.get(key) if self.early else 0
        if early:
            if early == 1:
                del self.early[key]
            else:
                self.early[key] = early - 1
            self.queue.schedule(self.queue.now, received, None)
            return
        others = self.waiting.setdefault(key, received)
        if others is not received:
            self.waiting[key] = [*(others if isinstance(others, list) else (others,)), received]

    def _send_after_token(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        def leave(_: object) -> None:
            self.transmit(source, destination, size, tag, sent)

        self._post(destination, source, TOKEN_BYTES, tag + TOKEN_TAG_OFFSET, leave)

    def _receive_with_token(
        self, source: int, destination: int, size: int, tag: int, received: Notify
    ) -> None:
        def post(_: object) -> None:
            self._post(source, destination, size, tag, received)

        self.transmit(destination, source, TOKEN_BYTES, tag + TOKEN_TAG_OFFSET, post)


class DelayTransport(Transport):
    """Congestion-unaware: every message takes its delay, however many there are."""

    def __init__(self, queue: EventQueue, topology: Topology, rendezvous: bool) -> None:
        super().__init__(queue, topology, rendezvous)
        self._delay = topology.delays()

    def transmit(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        queue = self.queue
        arrival = queue.now + self._delay(source, destination, size)
        queue.schedule(arrival, self.deliver, ((tag, source, destination, size), sent))


class Link:
    """A directed link: whole messages, one after the other, first come, first served."""

    __slots__ = ("busy", "latency", "rate", "waiting")

    def __init__(self, rate: float, latency: float) -> None:
        self.rate = rate
        self.latency = latency
        self.busy = False
        self.waiting: deque[Message] = deque()


class Message:
    """A message under way: the links of its route and the next one to enter."""

    __slots__ = ("content", "links", "next_link", "size")

    def __init__(self, links: list[Link], size: int, content: tuple[Key, Notify | None]) -> None:
        self.links = links
        self.size = size
        self.content = content
        self.next_link = 0


class QueueingTransport(Transport):
    """Congestion-aware: store and forward of whole messages over links with unlimited queues."""

    def __init__(self, queue: EventQueue, topology: Topology, rendezvous: bool) -> None:
        super().__init__(queue, topology, rendezvous)
        self._links: dict[tuple[Station, Station], Link] = {}
        self._routes: dict[tuple[int, int], list[Link]] = {}

    def transmit(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        links = self._routes.get((source, destination))
        if links is None:
            route = self.topology.route(source, destination)
            links = [self._link(*hop) for hop in pairwise(route)]
            if len(self._routes) < ROUTES_KEPT:
                self._routes[source, destination] = links
        self._enter(Message(links, size, ((tag, source, destination, size), sent)))

    def _link(self, source: Station, destination: Station) -> Link:
        link = self._links.get((source, destination))
        if link is None:
            link = Link(*self.topology.link(source, destination))
            self._links[source, destination] = link
        return link

    def _enter(self, message: Message) -> None:
        link = message.links[message.next_link]
        if link.busy:
            link.waiting.append(message)
        else:
            self._start(link, message)

    def _start(self, link: Link, message: Message) -> None:
        link.busy = True
        queue = self.queue
        occupied = message.size / link.rate
        queue.schedule(queue.now + int(link.latency + occupied), self._reach, message)
        queue.schedule(queue.now + int(occupied), self._release, link)

    def _release(self, link: Link) -> None:
        link.busy = False
        if link.waiting:
            self._start(link, link.waiting.popleft())

    def _reach(self, message: Message) -> None:
        message.next_link += 1
        if message.next_link == len(message.links):
            self.deliver(message.content)
        else:
            self._enter(message)
