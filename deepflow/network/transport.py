"""How messages travel: a delay per message, or queues at links; and how they meet their receives.

Both follow ASTRA-sim's analytical backends (congestion-unaware and congestion-aware). A message
is matched by tag, source, destination and size: the k-th send of such a key meets the k-th
receive. Messages of one key cannot overtake each other, so first come, first served does it.
Where many messages have one key, as on a ring, both ends hold a ``Channel`` instead of looking
the key up for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

from deepflow.network.events import Call, Event, EventQueue
from deepflow.network.topology import Station, Topology

TOKEN_BYTES = 8192
ROUTES_KEPT = 2**16  # all pairs of 256 ranks; beyond that, memory stays linear in ranks
TOKEN_TAG_OFFSET = 1_000_000_000

Notify: TypeAlias = "Callable[[Any], None]"
Key: TypeAlias = "tuple[int, int, int, int]"


class Channel:
    """All messages of one key. Both ends open it, and close it when they are through.

    At most one receive waits at a time.
    """

    __slots__ = ("_early", "_waiting", "key", "queue", "unclosed")

    def __init__(self, queue: EventQueue, key: Key) -> None:
        self.queue = queue
        self.key = key
        self.unclosed = 2
        self._waiting: Notify | None = None
        self._early = 0

    def send(self) -> None:
        """Put a message on its way."""
        raise NotImplementedError

    def receive(self, received: Notify) -> None:
        """``received`` is told of the next message that nobody has received yet."""
        if self._early:
            self._early -= 1
            self.queue.schedule(self.queue.now, received, None)
        else:
            self._waiting = received

    def deliver(self, _: object) -> None:
        """A message has arrived."""
        received = self._waiting
        if received is None:
            self._early += 1
        else:
            self._waiting = None
            received(None)


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
        self._channels: dict[Key, Channel] = {}
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

    def open_channel(self, source: int, destination: int, size: int, tag: int) -> Channel:
        """One end of the channel of these messages, which know no rendezvous."""
        key = (tag, source, destination, size)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = self.make_channel(key)
        return channel

    def close_channel(self, channel: Channel) -> None:
        """One end is through."""
        channel.unclosed -= 1
        if not channel.unclosed:
            del self._channels[channel.key]

    def make_channel(self, key: Key) -> Channel:
        """A channel that delivers when this network does."""
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


class DelayChannel(Channel):
    """Messages that take the same delay each."""

    __slots__ = ("_delay",)

    def __init__(self, queue: EventQueue, key: Key, delay: int) -> None:
        super().__init__(queue, key)
        self._delay = delay

    def send(self) -> None:
        """Put a message on its way."""
        queue = self.queue
        queue.schedule(queue.now + self._delay, self.deliver, None)


class DelayTransport(Transport):
    """Congestion-unaware: every message takes its delay, however many there are."""

    def __init__(self, queue: EventQueue, topology: Topology, rendezvous: bool) -> None:
        super().__init__(queue, topology, rendezvous)
        self._delay = topology.delays()

    def transmit(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        """As ``Transport.transmit``: it arrives after its delay, whatever else is under way."""
        queue = self.queue
        arrival = queue.now + self._delay(source, destination, size)
        queue.schedule(arrival, self.deliver, ((tag, source, destination, size), sent))

    def make_channel(self, key: Key) -> Channel:
        """A channel of the delay between its ends."""
        _, source, destination, size = key
        return DelayChannel(self.queue, key, self._delay(source, destination, size))


class Link:
    """A directed link: whole messages, one after the other, first come, first served."""

    __slots__ = ("_latency", "_rate", "_times", "busy", "freed", "waiting")

    def __init__(self, rate: float, latency: float, freed: Call) -> None:
        """``freed`` is called with the link when it can take the next message."""
        self._rate = rate
        self._latency = latency
        self._times: dict[int, tuple[int, int]] = {}
        self.freed: Event = (freed, self)
        self.busy = False
        self.waiting: deque[Message] = deque()

    def times(self, size: int) -> tuple[int, int]:
        """ns until a message has crossed the link, and until the link is free for the next."""
        times = self._times.get(size)
        if times is None:
            occupied = size / self._rate
            times = self._times[size] = int(self._latency + occupied), int(occupied)
        return times


class Message:
    """A message under way: the links that are left of its route, and whom to tell at its end."""

    __slots__ = ("arrived", "content", "links", "next_link", "size")

    def __init__(self, links: list[Link], size: int, arrived: Notify, content: object) -> None:
        self.links = links
        self.size = size
        self.arrived = arrived
        self.content = content
        self.next_link = 0


class QueueingChannel(Channel):
    """Messages over the same links."""

    __slots__ = ("_enter", "_links", "_size")

    def __init__(
        self, queue: EventQueue, key: Key, links: list[Link], enter: Callable[[Message], None]
    ) -> None:
        super().__init__(queue, key)
        self._links = links
        self._size = key[3]
        self._enter = enter

    def send(self) -> None:
        """Put a message on its way."""
        self._enter(Message(self._links, self._size, self.deliver, None))


class QueueingTransport(Transport):
    """Congestion-aware: store and forward of whole messages over links with unlimited queues."""

    def __init__(self, queue: EventQueue, topology: Topology, rendezvous: bool) -> None:
        super().__init__(queue, topology, rendezvous)
        self._links: dict[tuple[Station, Station], Link] = {}
        self._routes: dict[tuple[int, int], list[Link]] = {}
        self._when_crossed: Call = self._reach

    def transmit(
        self, source: int, destination: int, size: int, tag: int, sent: Notify | None = None
    ) -> None:
        """As ``Transport.transmit``: it queues at every link of its route."""
        content = ((tag, source, destination, size), sent)
        self._enter(Message(self._route(source, destination), size, self.deliver, content))

    def make_channel(self, key: Key) -> Channel:
        """A channel along the route between its ends."""
        return QueueingChannel(self.queue, key, self._route(key[1], key[2]), self._enter)

    def _route(self, source: int, destination: int) -> list[Link]:
        links = self._routes.get((source, destination))
        if links is None:
            route = self.topology.route(source, destination)
            links = [self._link(*hop) for hop in pairwise(route)]
            if len(self._routes) < ROUTES_KEPT:
                self._routes[source, destination] = links
        return links

    def _link(self, source: Station, destination: Station) -> Link:
        link = self._links.get((source, destination))
        if link is None:
            link = Link(*self.topology.link(source, destination), self._release)
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
        crossed, free = link.times(message.size)
        now = queue.now
        queue.schedule_two(now + crossed, (self._when_crossed, message), now + free, link.freed)

    def _release(self, link: Link) -> None:
        link.busy = False
        if link.waiting:
            self._start(link, link.waiting.popleft())

    def _reach(self, message: Message) -> None:
        message.next_link = following = message.next_link + 1
        if following == len(message.links):
            message.arrived(message.content)
            return
        link = message.links[following]
        if link.busy:
            link.waiting.append(message)
        else:
            self._start(link, message)
