"""One microbatch's way through a part of the model whose weights or gradients are sharded.

Segments run one after another. Beside them, over the data group's link, their weights come in
and their gradients go out (ZeRO 2 and 3, arXiv 1910.02054; fully sharded data parallel, arXiv
2304.11277).
"""

from __future__ import annotations

from collections.abc import Sequence

from deepflow.record import record


@record(frozen=True)
class PassSegment:
    """Times of one segment in one direction, in seconds.

    ``gather`` its weights before, ``compute``, ``reduction`` of its gradients after.
    """

    gather: float
    compute: float
    reduction: float


def pass_time(segments: Sequence[PassSegment], *, prefetch: bool) -> float:
    """Time of a pass through ``segments``, in the order in which they run.

    With ``prefetch`` the weights of the next segment are gathered while one is computed, without
    it each segment waits for its own. Reductions follow their segment on the same link. The pass
    ends when both the device and the link are done.
    """
    if not segments:
        return 0.0
    now = 0.0
    link = ready = segments[0].gather
    for segment, after in zip(segments, (*segments[1:], None), strict=True):
        now = max(now, ready)
        gather = 0.0 if after is None else after.gather
        if prefetch and gather:
            link = ready = max(link, now) + gather
        now += segment.compute
        if segment.reduction:
            link = max(link, now) + segment.reduction
        if gather and not prefetch:
            link = ready = max(link, now) + gather
    return max(now, link)
