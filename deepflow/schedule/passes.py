"""One microbatch's way through a part of the model whose weights or gradients are sharded.

Segments run one after another. Beside them, over the data group's link, their weights come in
and their gradients go out (ZeRO 2 and 3, arXiv 1910.02054; fully sharded data parallel, arXiv
2304.11277).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deepflow.cost.elementwise import larger, where
from deepflow.record import record


@record(frozen=True)
class PassSegment:
    """Times of one segment in one direction, in seconds; in a batch of points, arrays.

    ``gather`` its weights before, ``compute``, ``reduction`` of its gradients after. Where weights
    are released between recomputing a segment and its backward pass, ``compute`` begins with
    ``recomputation``, and the part ``again`` of the gather follows that.
    """

    gather: float
    compute: float
    reduction: float
    recomputation: float = 0.0
    again: float = 0.0

    def parts(self) -> tuple[PassSegment, ...]:
        """The segment as one, or as two that release nothing while they run."""
        again: Any = self.again
        if not (again.any() if isinstance(again, np.ndarray) else again):
            return (self,)
        backward = larger(0.0, self.compute - self.recomputation)
        return (
            PassSegment(self.gather, self.recomputation, 0.0),
            PassSegment(self.gather * self.again, backward, self.reduction),
        )


class PassSpan(NamedTuple):
    """What a part of a segment does in a pass, in seconds from the pass's beginning.

    ``what``: gather, compute or reduction; ``segment``: its number in the pass.
    """

    what: str
    segment: int
    start: float
    end: float


def pass_time(
    segments: Sequence[PassSegment], *, prefetch: bool, spans: list[PassSpan] | None = None
) -> float:
    """Time of a pass through ``segments``, in the order in which they run.

    With ``prefetch`` the weights of the next segment are gathered while one is computed, without
    it each segment waits for its own. Reductions follow their segment on the same link. The pass
    ends when both the device and the link are done. ``spans``, if given, is filled with what runs
    when; that is for single points only.
    """
    if not segments:
        return 0.0
    parts = [part for segment in segments for part in segment.parts()]
    note = None if spans is None else _Notes(segments, spans)
    now = 0.0
    link = ready = parts[0].gather
    if note:
        note.add("gather", 0, link, link)
    for place, (segment, after) in enumerate(zip(parts, (*parts[1:], None), strict=True)):
        now = larger(now, ready)
        gather = 0.0 if after is None else after.gather
        if prefetch:
            link, ready = _gathered(gather, now, link, ready)
        now = now + segment.compute
        if note:
            if prefetch:
                note.add("gather", place + 1, ready, gather)
            note.add("compute", place, now, segment.compute)
        link = where(segment.reduction > 0, larger(link, now) + segment.reduction, link)
        if note:
            note.add("reduction", place, link, segment.reduction)
        if not prefetch:
            link, ready = _gathered(gather, now, link, ready)
            if note:
                note.add("gather", place + 1, ready, gather)
    end: float = larger(now, link)
    return end


def _gathered(gather: float, now: float, link: float, ready: float) -> tuple[float, float]:
    """When the link is free and the weights are there, after a gather that can begin ``now``."""
    done = larger(link, now) + gather
    return where(gather > 0, done, link), where(gather > 0, done, ready)


class _Notes:
    """Keeps what runs when, by the segment that each part belongs to."""

    def __init__(self, segments: Sequence[PassSegment], spans: list[PassSpan]) -> None:
        self._numbers = [number for number, item in enumerate(segments) for _ in item.parts()]
        self._spans = spans

    def add(self, what: str, place: int, end: float, duration: float) -> None:
        if duration > 0:
            self._spans.append(PassSpan(what, self._numbers[place], end - duration, end))
