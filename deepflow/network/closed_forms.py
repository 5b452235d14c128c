"""What a phase of a collective takes if all ranks of its line start together: closed forms.

They follow from the state machine of ``algorithms``: P ranks, E the endpoint delay, d the delay
of a message, r the reduction of one. Ring: 2(P-1) messages of an all-reduce, each after the one
before it, so (2P-1) E + 2(P-1) d + (P-1) r; and so on. The cost models are the usual ones of
Thakur, Rabenseifner, Gropp (2005), with ASTRA-sim's local delays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from deepflow.network.algorithms import Exchange
from deepflow.network.ranking import Direct, ExclusiveOr, Rotation, Turn
from deepflow.network.topology import Dimension
from deepflow.record import record

# ns of a message of some bytes to the position some steps further (XOR: for halving-doubling).
StepDelay: TypeAlias = "Callable[[int, int], int]"


@record(frozen=True)
class Timing:
    """What a phase takes if all ranks of its line start together.

    ``duration`` in ns; ``tail`` is the local delay at its end, part of it. ``turns`` say how the
    order of ranks changes from the start to the end; None if that is not known.
    """

    duration: int
    tail: int
    turns: tuple[Turn, ...] | None


def exchange_timing(
    exchange: Exchange, endpoint_delay: int, delay: StepDelay, stride: int
) -> Timing | None:
    """Timing of a phase whose messages never wait for each other; None without a closed form.

    ``delay`` is the same from every position of the line. ``stride`` is the distance of
    neighbours in rank numbers.
    """
    ranks = len(exchange.members)
    if exchange.window == 1:
        return _chain(exchange, endpoint_delay, delay, stride)
    size = exchange.sizes[0]
    reduction = max(0, exchange.reduction(exchange.window))
    delays = [delay(step, size) for step in range(1, ranks)]
    full = exchange.window == ranks - 1
    if exchange.collective == "ALL_REDUCE":
        if not full:
            return None
        return _share_and_gather(exchange, endpoint_delay, delays, reduction, stride)
    slowest = max(delays)
    if full:
        last = [step + 1 for step, value in enumerate(delays) if value == slowest]
        duration = 2 * endpoint_delay + slowest + reduction
        tail = reduction if exchange.collective == "REDUCE_SCATTER" else endpoint_delay
        return Timing(duration, tail, (Direct(stride, ranks, _signed(last, exchange)),))
    in_turns = exchange.reduced_run == exchange.window and (ranks - 1) % exchange.window == 0
    if min(delays) < slowest or not in_turns:
        return None
    rounds = (ranks - 1) // exchange.window
    duration = endpoint_delay + rounds * (slowest + endpoint_delay)
    tail = endpoint_delay
    if exchange.collective == "REDUCE_SCATTER":
        duration += (rounds + 1) // 2 * reduction
        tail = reduction if rounds % 2 else endpoint_delay
    turns = [
        Direct(stride, ranks, _signed(range(first, first + exchange.window), exchange))
        for first in range(1, ranks, exchange.window)
    ]
    return Timing(duration, tail, tuple(turns))


def queued_exchange_timing(
    exchange: Exchange, endpoint_delay: int, dimension: Dimension, stride: int
) -> Timing | None:
    """Timing of a phase over links with queues, with one chunk at a time on the network.

    None where messages of a rank wait for those of others in a way without a closed form.
    """
    kind = dimension.kind
    if kind == "Switch" and exchange.window > 1:
        return _shared_downlink(exchange, endpoint_delay, dimension)
    if kind == "Ring" and exchange.name != "ring":
        return None
    links = 2 if kind == "Switch" else 1

    def delay(_step: int, size: int) -> int:
        return links * int(dimension.latency + size / dimension.rate)

    return exchange_timing(exchange, endpoint_delay, delay, stride)


def staggered_ends(
    exchange: Exchange,
    endpoint_delay: int,
    delay: Callable[[int, int, int], int],
    begins: Sequence[int],
) -> list[int]:
    """When the members of a phase are through that begin at ``begins``; empty if that is not known.

    ``delay(source, destination, bytes)`` of a message that meets no others. A member receives a
    message when it has sent its own of that number, and prepares the next one then.
    """
    members = exchange.members
    ranks = len(members)
    ready = [begin + endpoint_delay for begin in begins]
    if exchange.window == 1:
        places = {member: place for place, member in enumerate(members)}
        for packet in range(exchange.messages):
            size = exchange.sizes[min(packet, len(exchange.sizes) - 1)]
            preparing = endpoint_delay + max(0, exchange.reduction(packet + 1))
            sources = [exchange.peers(place, packet)[1] for place in range(ranks)]
            ready = [
                preparing + max(own, ready[places[source]] + delay(source, member, size))
                for own, source, member in zip(ready, sources, members, strict=True)
            ]
        return ready
    if exchange.collective == "ALL_REDUCE" or exchange.window < ranks - 1:
        return []
    size = exchange.sizes[0]
    preparing = endpoint_delay + max(0, exchange.reduction(exchange.window))
    return [
        preparing
        + max(
            max(own, sent + delay(source, member, size))
            for source, sent in zip(members, ready, strict=True)
            if source != member
        )
        for own, member in zip(ready, members, strict=True)
    ]


def _signed(steps: Sequence[int], exchange: Exchange) -> tuple[int, ...]:
    return tuple(exchange.direction * step for step in steps)


def _chain(exchange: Exchange, endpoint_delay: int, delay: StepDelay, stride: int) -> Timing:
    """One message at a time: ring, halving-doubling, direct with a window of one.

    Every message waits for the one before it: an endpoint delay, a reduction for some, the way.
    """
    ranks, messages = len(exchange.members), exchange.messages
    duration = (messages + 1) * endpoint_delay
    turn: Turn
    if exchange.name == "ring":
        duration += messages * delay(1, exchange.sizes[0])
        turn = Rotation(stride, ranks, messages * exchange.direction)
    elif exchange.name == "direct":
        size = exchange.sizes[0]
        steps = [1 + packet % (ranks - 1) for packet in range(messages)]
        duration += sum(delay(step, size) for step in steps)
        turn = Rotation(stride, ranks, sum(steps) * exchange.direction)
    else:
        offsets = [exchange.offset(packet) for packet in range(messages)]
        sizes = exchange.sizes
        duration += sum(delay(*way) for way in zip(offsets, sizes, strict=True))
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
    if exchange.window < ranks - 1 or exchange.collective == "ALL_REDUCE":
        return None
    occupied = exchange.sizes[0] / dimension.rate
    reduction = max(0, exchange.reduction(exchange.window))
    duration = 2 * endpoint_delay + (ranks - 2) * int(occupied) + reduction
    duration += 2 * int(dimension.latency + occupied)
    tail = reduction if exchange.collective == "REDUCE_SCATTER" else endpoint_delay
    # Which of two messages enters a downlink first hangs on fractions of a nanosecond.
    return Timing(duration, tail, None)


def _share_and_gather(
    exchange: Exchange, endpoint_delay: int, delays: Sequence[int], reduction: int, stride: int
) -> Timing | None:
    """Direct all-reduce: shares to all peers, reductions, and results back to all peers.

    Results leave from when all shares are in; peers nearby may have had theirs reduced before.
    None if a reduction ends in the nanosecond of the last share: other events decide then.
    """
    ranks = len(exchange.members)
    ready = sorted(2 * endpoint_delay + reduction + delay for delay in delays)
    all_shares = endpoint_delay + max(delays)
    if all_shares in ready:
        return None
    complete = next(time for time in ready if time > all_shares)
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
    # In communicator sub-groups the binary reduces what it gathers, too.
    at_end = exchange.reduction(2 * exchange.window)
    tail = endpoint_delay if at_end < 0 else at_end
    return Timing(endpoint_delay + last + max(0, at_end), tail, turns)
