"""Time of collectives and transfers over a group of ranks, in closed form.

A collective over k ranks in each of m nodes (n = k m ranks, S bytes) takes

    latencies of its steps + max over both classes of links (transfer + pipelining)

Transfers are bytes that a rank sends over a class of links by the bandwidth it has there. What
an algorithm sends, and how many steps follow each other, per pass over the buffer (all_gather and
reduce_scatter are one pass, all_reduce is both):

=================  =======================  ===================  ===========================
algorithm          bytes within a node      bytes between nodes  steps within + between
=================  =======================  ===================  ===========================
ring in one node   S (n-1)/n                                     n - 1
ring over several  S (n-1)/n (k-1)/k        S (n-1)/n / k        (n - m) + (m - 1)
doubleBinaryTree   S (k-1)/k                S (m-1)/m / k        (k - 1) + log2 m
halvingDoubling    S (k-1)/k                S (m-1)/m / k        log2 k + log2 m
direct             S (k-1)/n                S (n-k)/n            1
=================  =======================  ===================  ===========================

Direct all_to_all waits twice: peers agree on their buffers first. Levels of halving and doubling
follow each other, so their transfers add up.

Rings pass through all ranks, one ring per adapter of a node (Patarasuk and Yuan, "Bandwidth
optimal all-reduce algorithms", 2009). Trees are chains within nodes and pairs of binary trees
between them, where every rank is a leaf of one and inner node of the other (Sanders, Speck and
Traff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009). Halving and
doubling are Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations
in MPICH", 2005. Switches that reduce (Graham et al., "Scalable hierarchical aggregation protocol",
2016) take in S of every rank and send S back, shared among the ranks: S (1 + 1/n) on each link.

"auto" is the fastest of what NCCL has: rings; for all_reduce also trees between switched nodes
and reductions in switches; direct exchange for all_to_all.

Pipelining: buffers are cut into chunks. A chunk cannot be passed on before it has arrived, and
handing one over takes the link's ``handshake``, so c seconds' worth of data per chunk cost
c + (T / c) handshakes for T seconds of data. The best c is the root of T times handshake, within
what the library's buffers hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from deepflow.errors import ConfigError
from deepflow.mapping.groups import Group, LinkProtocol

# Passes over the buffer: all_reduce = reduce_scatter + all_gather.
RING_PASSES = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}

# Kinds in which a rank's own part goes from one buffer in its memory to another.
COPIES_OWN_PART = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")

# Bytes in flight to the next rank: 24 channels with chunks of 512 KiB, an eighth of the default
# NCCL_BUFFSIZE.
CHUNK_BYTES = 24 * 512 * 2**10

# Largest message of the all_reduce kernels that serving frameworks bring (vLLM, SGLang).
CUSTOM_ALL_REDUCE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class CollectiveCost:
    """``time`` in seconds; bytes that one rank sends over each class of link."""

    time: float
    intra_bytes: float
    inter_bytes: float


FREE = CollectiveCost(0.0, 0.0, 0.0)


def collective_cost(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    """Cost of one collective, without launch and without the copy of a rank's own part.

    ``kind``: "all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send", "none",
    "ring_exchange" (every rank sends ``message_bytes`` to its neighbour, ``group.size`` - 1 times
    in a row) or "custom_all_reduce" (see ``_custom_all_reduce``). ``message_bytes`` as in
    ``Collective.message_bytes``. A group of one is free.

    Raises:
        ConfigError: the file asks for an algorithm that the kind does not have.
    """
    if group.size <= 1 or message_bytes <= 0 or kind == "none":
        return FREE
    match kind:
        case "send":
            if group.inter_size > 1:
                return CollectiveCost(_hop(message_bytes, group, between=True), 0.0, message_bytes)
            return CollectiveCost(_hop(message_bytes, group, between=False), message_bytes, 0.0)
        case "ring_exchange":
            return _ring_exchange(message_bytes, group)
        case "custom_all_reduce":
            return _custom_all_reduce(message_bytes, group)
    costs = [
        _ALGORITHMS[algorithm](kind, message_bytes, group) for algorithm in _algorithms(kind, group)
    ]
    return min(costs, key=_time) if len(costs) > 1 else costs[0]


def _time(cost: CollectiveCost) -> float:
    return cost.time


def _algorithms(kind: str, group: Group) -> tuple[str, ...]:
    for forced_kind, algorithm in group.algorithms:
        if forced_kind == kind:
            return (algorithm,)
    if kind == "all_to_all":
        return ("direct",)
    if kind != "all_reduce":
        return ("ring",)
    found = ["ring"]
    if group.inter_size > 1 and group.inter_protocol.switched:
        found.append("doubleBinaryTree")
    if _reduces(group.intra_size, group.intra_protocol) or _reduces(
        group.inter_size, group.inter_protocol
    ):
        found.append("in_switches")
    return tuple(found)


def _hop(message_bytes: float, group: Group, between: bool) -> float:
    """Seconds to hand ``message_bytes`` to another rank, straight into its buffer."""
    if between:
        link, latency, bandwidth = group.inter_protocol, group.inter_latency, group.inter_bandwidth
    else:
        link, latency, bandwidth = group.intra_protocol, group.intra_latency, group.intra_bandwidth
    return link.handshake + latency + message_bytes / bandwidth


def _ring_exchange(message_bytes: float, group: Group) -> CollectiveCost:
    """Neighbours exchange at once, so the slowest link sets the pace of all exchanges."""
    exchanges = group.size - 1
    intra, inter = group.intra_size, group.inter_size
    step = max(
        _hop(message_bytes, group, between=False) if intra > 1 else 0.0,
        _hop(message_bytes, group, between=True) if inter > 1 else 0.0,
    )
    sent = exchanges * message_bytes
    across = sent / intra if inter > 1 else 0.0
    return CollectiveCost(exchanges * step, sent - across, across)


def _custom_all_reduce(message_bytes: float, group: Group) -> CollectiveCost:
    """Serving frameworks' own kernels within a node, or the library's for large messages.

    One-shot: every rank reads the buffers of all others and adds them up. Two-shot: it reads and
    adds one part, then gathers the others' results. Ranks wait for each other at both ends, and
    between the two shots.
    """
    library = collective_cost("all_reduce", message_bytes, group)
    if group.inter_size > 1 or message_bytes > CUSTOM_ALL_REDUCE_BYTES:
        return library
    others = (group.size - 1) * message_bytes
    waits = 2 * group.intra_latency
    two_shot = 2 * others / group.size
    one = CollectiveCost(waits + others / group.intra_bandwidth, others, 0.0)
    handshake = group.intra_protocol.handshake
    two = CollectiveCost(waits + handshake + two_shot / group.intra_bandwidth, two_shot, 0.0)
    return min(one, two, library, key=_time)


def _ring(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    ranks, intra, inter = group.size, group.intra_size, group.inter_size
    if kind == "all_to_all":
        # Parts travel half of the ring on average.
        passes, sent = 1, message_bytes * (ranks - 1) / 2
    else:
        passes = RING_PASSES[kind]
        sent = passes * (ranks - 1) / ranks * message_bytes
    across = sent / intra if inter > 1 else 0.0
    latency = passes * ((ranks - inter) * group.intra_latency + (inter - 1) * group.inter_latency)
    # Each link between nodes hands over one part after the other, that of every rank but one.
    parts = passes * (ranks - 1)
    return _pipelined(kind, group, latency, sent - across, across, message_bytes / ranks, parts)


def _tree(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    if kind == "all_to_all":
        raise ConfigError(
            "is no algorithm for all_to_all",
            key="execution_backend.astra.collectives.all_to_all",
            value="doubleBinaryTree",
            allowed="auto, ring, direct, halvingDoubling",
        )
    passes, intra, inter = RING_PASSES[kind], group.intra_size, group.inter_size
    within, across = _nested_bytes(passes, message_bytes, group)
    latency = passes * ((intra - 1) * group.intra_latency + _doublings(inter) * group.inter_latency)
    return _pipelined(kind, group, latency, within, across, message_bytes / group.size)


def _halving_doubling(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    """Levels one after the other: a rank exchanges with one partner at a time."""
    steps, steps_across = _doublings(group.intra_size), _doublings(group.inter_size)
    if kind == "all_to_all":
        # Each step passes on the half that is meant for the partner's side (Bruck et al., 1997).
        passes, within, across = 1, steps * message_bytes / 2, steps_across * message_bytes / 2
    else:
        passes = RING_PASSES[kind]
        within, across = _nested_bytes(passes, message_bytes, group)
    time = passes * (
        steps * (group.intra_latency + group.intra_protocol.handshake)
        + steps_across * (group.inter_latency + group.inter_protocol.handshake)
    )
    if within:
        time += within / group.intra_bandwidth
    if across:
        time += across / group.inter_bandwidth
    return CollectiveCost(time, within, across)


def _direct(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    ranks, intra, inter = group.size, group.intra_size, group.inter_size
    passes = RING_PASSES.get(kind, 1)
    latency = passes * max(
        group.intra_latency if intra > 1 else 0.0, group.inter_latency if inter > 1 else 0.0
    )
    if kind == "all_to_all":
        # Peers agree on their buffers first.
        latency *= 2
    within = passes * (intra - 1) / ranks * message_bytes
    across = passes * (ranks - intra) / ranks * message_bytes
    shared = group.shared_rows
    if kind == "all_to_all" and shared is not None:
        # Copies come to one device of a node, the sender's own included, and go on from there.
        within = (intra - 1) / intra * message_bytes * shared.within
        across *= shared.between
        latency += group.intra_latency if inter > 1 and intra > 1 else 0.0
    return _pipelined(kind, group, latency, within, across, message_bytes / ranks)


def _in_switches(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    """all_reduce in the switches that can; as a tree where they cannot."""
    intra, inter = group.intra_size, group.inter_size
    latency = time = 0.0
    within, across = _nested_bytes(2, message_bytes, group)
    own = message_bytes / group.size
    if _reduces(intra, group.intra_protocol):
        within = message_bytes * (1 + 1 / intra)
        time = within / group.intra_protocol.reduction_bandwidth
        latency += group.intra_protocol.reduction_latency
    elif intra > 1:
        time = _transfer(within, own, group.intra_bandwidth, group.intra_protocol)
        latency += 2 * (intra - 1) * group.intra_latency
    between = 0.0
    if _reduces(inter, group.inter_protocol):
        across = message_bytes / intra * (1 + 1 / inter)
        between = across / group.inter_protocol.reduction_bandwidth
        latency += group.inter_protocol.reduction_latency
    elif inter > 1:
        between = _transfer(across, own, group.inter_bandwidth, group.inter_protocol)
        latency += 2 * _doublings(inter) * group.inter_latency
    return CollectiveCost(latency + _both(kind, time, between, group), within, across)


_ALGORITHMS = {
    "ring": _ring,
    "doubleBinaryTree": _tree,
    "halvingDoubling": _halving_doubling,
    "direct": _direct,
    "in_switches": _in_switches,
}


def _reduces(ranks: int, link: LinkProtocol) -> bool:
    return ranks > 1 and link.reduction_bandwidth > 0


def _nested_bytes(passes: int, message_bytes: float, group: Group) -> tuple[float, float]:
    """Bytes within and between nodes where each node's part is shared among its ranks."""
    intra, inter = group.intra_size, group.inter_size
    within = passes * (intra - 1) / intra * message_bytes
    return within, passes * (inter - 1) / inter * message_bytes / intra


def _doublings(ranks: int) -> int:
    """log2, rounded up."""
    return (ranks - 1).bit_length()


def _pipelined(
    kind: str,
    group: Group,
    latency: float,
    within: float,
    across: float,
    own: float,
    parts: int = 1,
) -> CollectiveCost:
    """Chunks, at least ``parts`` between nodes, go through both classes of links.

    They do so at once, so the slower class sets the time, or an all_reduce's in turns.
    """
    time = 0.0
    if within:
        time = _transfer(within, own, group.intra_bandwidth, group.intra_protocol)
    if across:
        link = group.inter_protocol
        time = _both(kind, time, _transfer(across, own, group.inter_bandwidth, link, parts), group)
    return CollectiveCost(latency + time, within, across)


def _both(kind: str, within: float, between: float, group: Group) -> float:
    """Seconds of the transfers within and between nodes, at once or in turns."""
    if group.inter_protocol.in_turns and kind == "all_reduce":
        return within + between
    return max(within, between)


def _transfer(
    sent: float, own: float, bandwidth: float, link: LinkProtocol, parts: int = 1
) -> float:
    """Seconds of sending, with pipelining of all data that passes the rank, its ``own`` included.

    The module's docstring says how. The shortest messages are one chunk, or as many as there are
    ``parts``.
    """
    time = sent / bandwidth
    if not link.handshake:
        return time
    data = (sent + own) / bandwidth
    chunk = min(data / parts, CHUNK_BYTES / bandwidth, sqrt(data * link.handshake))
    return time + chunk + data / chunk * link.handshake
