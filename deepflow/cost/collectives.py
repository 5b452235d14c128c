"""Time of collectives and transfers over a group of ranks, in closed form.

Ring algorithms (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009): with n
ranks, S bytes, bandwidth B and latency l, all_gather and reduce_scatter take n-1 steps of S/n
bytes, all_reduce twice as many. A group that spans nodes runs one ring per local rank between
nodes, on S/intra_size bytes each, beside the ring within the node; chunks are pipelined
through both, so the slower one sets the bandwidth term while the latencies add up. Before the
first chunk has gone round the ring, its links are not all busy: that costs the link's
``pipeline_fill``, or half of the bandwidth term for messages too short to fill it.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepflow.mapping.groups import Group

# Passes over the buffer: all_reduce = reduce_scatter + all_gather.
RING_PASSES = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}


@dataclass(frozen=True, slots=True)
class CollectiveCost:
    """``time`` in seconds; bytes that one rank sends over each class of link."""

    time: float
    intra_bytes: float
    inter_bytes: float


FREE = CollectiveCost(0.0, 0.0, 0.0)


def collective_cost(kind: str, message_bytes: float, group: Group) -> CollectiveCost:
    """Cost of ``kind`` ("all_gather", "reduce_scatter", "all_reduce", "send", "none").

    ``message_bytes`` as in ``Collective.message_bytes``. A group of one is free.
    """
    if group.size <= 1 or message_bytes <= 0 or kind == "none":
        return FREE
    if kind == "send":
        if group.inter_size > 1:
            return CollectiveCost(
                message_bytes / group.inter_bandwidth + group.inter_latency, 0.0, message_bytes
            )
        return CollectiveCost(
            message_bytes / group.intra_bandwidth + group.intra_latency, message_bytes, 0.0
        )
    passes = RING_PASSES[kind]
    intra, inter = group.intra_size, group.inter_size
    intra_bytes = passes * (intra - 1) / intra * message_bytes
    inter_bytes = passes * (inter - 1) / inter * message_bytes / intra
    bandwidth_time, fill = max(
        (intra_bytes / group.intra_bandwidth if intra > 1 else 0.0, group.intra_fill),
        (inter_bytes / group.inter_bandwidth if inter > 1 else 0.0, group.inter_fill),
    )
    bandwidth_time += min(fill, bandwidth_time / 2)
    latency = passes * ((intra - 1) * group.intra_latency + (inter - 1) * group.inter_latency)
    return CollectiveCost(bandwidth_time + latency, intra_bytes, inter_bytes)
