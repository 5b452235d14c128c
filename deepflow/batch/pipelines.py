"""When pipelines of the same shape end: the schedules of ``deepflow.schedule.pipeline`` for many
points at once.

Stages, parts and order of passes are the same in all points; times and numbers of microbatches
differ. Instead of a graph of tasks there are a few arrays (points, devices):

- ``gpipe``: all passes one way are equal jobs on machines in a row, so the slowest machine up to a
  device sets the pace and the ends follow in closed form.
- ``1f1b``: in closed form where no other device, with both ways to its neighbour, takes longer per
  microbatch than the last one: then the last device never waits and all others follow it.
- otherwise, and for ``interleaved`` and ``zero_bubble``: period by period. A period's ends follow
  from those of the period before by maxima and sums alone, so as soon as all ends have moved by the
  same time since a number of periods that the order of passes repeats in, they will do so again and
  again (max-plus algebra: Baccelli et al., "Synchronization and Linearity", 1992, 3.7). Those
  periods are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Integers = NDArray[np.int64]

# Ends that have moved by the same time but for rounding, relative to the ends themselves.
ROUNDING = 1e-13
NEVER = float(np.finfo(float).min)
# Points played together, so that the ends of some periods stay in the processor's cache.
CHUNK = 1024


@dataclass(frozen=True)
class Pipelines:
    """Pipelines with the same order of passes. Times in seconds; one row per point.

    ``microbatches`` (points) per step. ``forward`` and ``backward`` (points, parts): one
    microbatch's passes; with zero bubble ``backward`` is the gradient of activations and
    ``weight`` that of weights, otherwise zero. ``last`` (points, parts): the last backward pass of
    each part (zero bubble: for weights), run segment by segment. ``hop`` (points): from a device
    to the next.
    """

    schedule: str
    stages: int
    virtual_stages: int
    microbatches: Integers
    forward: Numbers
    backward: Numbers
    weight: Numbers
    last: Numbers
    hop: Numbers

    def rows(self, which: Any) -> Pipelines:
        """Those points alone."""
        return Pipelines(
            self.schedule,
            self.stages,
            self.virtual_stages,
            self.microbatches[which],
            self.forward[which],
            self.backward[which],
            self.weight[which],
            self.last[which],
            self.hop[which],
        )


# (pipelines, microbatches to play through, microbatches after which all is the same again, how
# often these come once more) -> (ends of passes, least and most that they move any end), by point.
Simulate = Callable[
    [Pipelines, int, int, "Integers | None"], tuple["Numbers", "Numbers", "Numbers"]
]
# Plays one slot; with a list, notes there how much later each pass's input came than its device.
Play = Callable[[int, "list[Numbers] | None"], None]


def last_ends(
    several: Sequence[Pipelines], known: dict[bytes, Numbers] | None = None
) -> list[Numbers]:
    """End of the last backward pass of each part (points, parts), for each of ``several``.

    All have the same order of passes. ``known`` remembers them for the next call.
    """
    together = Pipelines(
        several[0].schedule,
        several[0].stages,
        several[0].virtual_stages,
        *(
            np.concatenate([getattr(some, name) for some in several])
            for name in ("microbatches", "forward", "backward", "weight", "last", "hop")
        ),
    )
    known = {} if known is None else known
    order = f"{together.schedule} {together.stages} {together.virtual_stages}".encode()
    # Points that differ in what does not matter here are one pipeline.
    parts = together.forward, together.backward, together.weight, together.last
    rows = np.ascontiguousarray(np.column_stack((together.microbatches, together.hop, *parts)))
    numbers: dict[bytes, int] = {}
    of_point = np.array(
        [
            numbers.setdefault(blake2b(row, digest_size=16, key=order).digest(), len(numbers))
            for row in rows
        ]
    )
    _, first = np.unique(of_point, return_index=True)
    new = first[[digest not in known for digest in numbers]]
    if len(new):
        # Those of one kind differ in the number of microbatches only.
        kinds: dict[bytes, int] = {}
        of_new = [kinds.setdefault(row[1:].tobytes(), len(kinds)) for row in rows[new]]
        found = _last_ends(together.rows(new), np.array(of_new))
        digests = [digest for digest in numbers if digest not in known]
        known |= zip(digests, found, strict=True)
    ends = np.array([known[digest] for digest in numbers])[of_point]
    return np.split(ends, np.cumsum([len(some.hop) for some in several])[:-1])


def _last_ends(pipelines: Pipelines, kinds: Integers) -> Numbers:
    if pipelines.schedule == "gpipe":
        return _gpipe(pipelines)
    ends = np.empty_like(pipelines.forward)
    left = np.arange(len(ends))
    if pipelines.schedule != "zero_bubble" and pipelines.virtual_stages == 1:
        follows = _last_device_sets_the_pace(pipelines)
        ends[follows] = _paced_by_last_device(pipelines.rows(follows))
        left = left[~follows]
    by_period = _alternating if pipelines.virtual_stages == 1 else _interleaved
    ends[left] = by_period(pipelines.rows(left), kinds[left])
    return ends


def _gpipe(pipelines: Pipelines) -> Numbers:
    """All forward passes, then all backward passes from the last microbatch to the first."""
    hop, others = pipelines.hop[:, None], pipelines.microbatches[:, None] - 1
    forward = _first_forward_ends(pipelines)[:, -1:] + others * pipelines.forward.max(
        1, keepdims=True
    )
    backward = pipelines.backward
    slowest = np.maximum.accumulate(backward[:, ::-1], 1)[:, ::-1]
    before = forward + _ways_back(pipelines) + backward + (others - 1) * slowest
    return _drained(np.where(others > 0, before, forward), pipelines.last, hop)


def _first_forward_ends(pipelines: Pipelines) -> Numbers:
    """End of the first microbatch's forward pass on each device."""
    ways = np.arange(pipelines.stages) * pipelines.hop[:, None]
    return np.cumsum(pipelines.forward, 1) + ways


def _ways_back(pipelines: Pipelines) -> Numbers:
    """From the start of a backward pass on the last device to that on each device."""
    backward = pipelines.backward
    after = np.cumsum(backward[:, ::-1], 1)[:, ::-1] - backward
    return after + np.arange(pipelines.stages)[::-1] * pipelines.hop[:, None]


def _drained(before: Numbers, last: Numbers, hop: Numbers) -> Numbers:
    """Ends of the last backward passes: after ``before`` on the same device, and each other."""
    ends = np.empty_like(last)
    arrival = np.full(len(last), -np.inf)
    for device in reversed(range(last.shape[1])):
        ends[:, device] = np.maximum(before[:, device], arrival) + last[:, device]
        arrival = ends[:, device] + hop[:, 0]
    return ends


def _last_device_sets_the_pace(pipelines: Pipelines) -> NDArray[np.bool_]:
    """Points in which the last device never waits once it has begun (1F1B).

    The schedule that ``_paced_by_last_device`` describes, with each forward pass right after the
    backward pass before it, can then be kept: a device has its pass and both ways to its neighbour
    done within a period, and enough of a start.
    """
    forward, backward, hop = pipelines.forward, pipelines.backward, pipelines.hop[:, None]
    each = forward + backward
    follows = (each[:, :-1] + 2 * hop <= each[:, -1:]).all(1)
    # Before its first backward pass a device has its first forward passes done, and the next
    # one can begin a period before the first backward pass has ended.
    ahead = np.arange(pipelines.stages)[::-1]
    slowest = np.maximum.accumulate(forward, 1)
    ready = _first_forward_ends(pipelines) + np.maximum(ahead - 1, 0) * slowest
    begun = _first_forward_ends(pipelines)[:, -1:] + _ways_back(pipelines) + backward
    begun = begun - each[:, -1:]
    arrived = np.zeros_like(ready)
    arrived[:, 1:] = (ready + hop)[:, :-1]
    early = (np.maximum(ready, arrived) <= begun)[:, :-1].all(1)
    found: NDArray[np.bool_] = follows & early
    return found


def _paced_by_last_device(pipelines: Pipelines) -> Numbers:
    period = pipelines.forward[:, -1:] + pipelines.backward[:, -1:]
    others = pipelines.microbatches[:, None] - 1
    first = _first_forward_ends(pipelines)[:, -1:]
    before = first + _ways_back(pipelines) + pipelines.backward + (others - 1) * period
    before[:, -1:] = first + others * period
    before = np.where(others > 0, before, _first_forward_ends(pipelines))
    return _drained(before, pipelines.last, pipelines.hop[:, None])


def _repeating(
    pipelines: Pipelines, kinds: Integers, every: Integers, simulate: Simulate
) -> Numbers:
    """Ends of schedules that are played through, but for microbatches that only repeat others.

    ``every`` (points): microbatches after which the order of passes and what waits for what are the
    same again. If so many have moved all ends by the same time, all that follow do. Points of the
    same one of ``kinds`` are played once for all numbers of microbatches that differ in periods.
    """
    ends = np.empty_like(pipelines.forward)
    rounds = np.maximum((pipelines.microbatches - 2 * (every + pipelines.stages)) // every, 0)
    tried = pipelines.microbatches - rounds * every
    for some, period in {*zip(tried.tolist(), every.tolist(), strict=True)}:
        rows = np.flatnonzero((tried == some) & (every == period))
        skipped = rounds[rows]
        _, first, of_row = np.unique(kinds[rows], return_index=True, return_inverse=True)
        played = [
            simulate(pipelines.rows(rows[first[start : start + CHUNK]]), some, period, None)
            for start in range(0, len(first), CHUNK)
        ]
        found, low, high = (np.concatenate(parts)[of_row] for parts in zip(*played, strict=True))
        ends[rows] = found + (skipped * (low + high) / 2)[:, None]
        slow = (skipped > 0) & (high - low > ROUNDING * found.max(1))
        if slow.any():
            rows = rows[slow]
            ends[rows] = simulate(pipelines.rows(rows), some, period, rounds[rows])[0]
    return ends


def _play(
    play: Play, slots: range, period: range, ends: Sequence[Numbers], rounds: Integers | None
) -> Numbers:
    """Plays all ``slots`` and returns what those of ``period`` among them move each of ``ends``.

    With ``rounds`` those are played so many more times.
    """
    for slot in range(slots.start, min(period.start, slots.stop)):
        play(slot, None)
    before = np.concatenate(ends)
    for slot in range(max(slots.start, period.start), period.stop):
        play(slot, None)
    moved: Numbers = np.concatenate(ends) - before
    if rounds is not None:
        _repeat(play, period, ends, rounds)
    for slot in range(max(slots.start, period.stop), slots.stop):
        play(slot, None)
    return moved


def _repeat(play: Play, period: range, ends: Sequence[Numbers], rounds: Integers) -> None:
    """Plays the slots of ``period`` so many more times (points), which moves ``ends``.

    Until the slowest device holds up all others, each moves at its own pace: all ends by the same
    time in each round, as long as whatever came later than something else still does. Rounds up to
    the first change of that are skipped.
    """
    left = rounds.copy()
    before: tuple[Numbers, Numbers] | None = None
    while left.any():
        start = [array.copy() for array in ends]
        noted: list[Numbers] = []
        for slot in period:
            play(slot, noted)
        goes = left > 0
        left -= goes
        moved = [array - old for array, old in zip(ends, start, strict=True)]
        # Some passes wait for nothing.
        pace, gap = np.concatenate(moved), np.maximum(np.concatenate(noted), NEVER)
        skipped = np.zeros_like(left)
        if before is not None:
            rounding = ROUNDING * np.max([array.max(0) for array in ends], 0)
            even = np.abs(pace - before[0]).max(0) <= rounding
            closing = np.abs(before[1]) - np.abs(gap)
            closes = closing > rounding
            lasts = np.where(closes, np.abs(gap) / np.where(closes, closing, 1.0), np.inf).min(0)
            safe = np.minimum(np.maximum(np.floor(lasts) - 1, 0), left).astype(np.int64)
            skipped = np.where(even & goes, safe, 0)
            left -= skipped
            gap += skipped * (gap - before[1])
        before = pace, gap
        for array, old, by in zip(ends, start, moved, strict=True):
            array += skipped * by
            array[:, ~goes] = old[:, ~goes]


def _alternating(pipelines: Pipelines, kinds: Integers) -> Numbers:
    """1F1B and zero bubble.

    What waits for itself around some neighbouring devices does so once in as many microbatches:
    one device alone, all of them, or those with the longest passes.
    """
    stages = pipelines.stages
    each = pipelines.forward + pipelines.backward + pipelines.weight
    longest = (each >= each.max(1, keepdims=True) * (1 - 1e-9)).sum(1)
    both = np.lcm(longest, stages)
    every = np.where(both <= 4 * stages, both, stages)
    return _repeating(pipelines, kinds, every, _alternating_passes)


def _alternating_passes(
    pipelines: Pipelines, microbatches: int, every: int, rounds: Integers | None
) -> tuple[Numbers, Numbers, Numbers]:
    """Ends as ``last_ends``, and the least and most that ``every`` microbatches move any end.

    With ``rounds`` so many more times ``every`` microbatches come in between.
    In slot t device d runs forward pass number (t + stages - d) / 2 or backward pass number
    (t - stages + 1 + d) / 2, whichever is whole, if it exists. Each waits for its neighbour in the
    slot before. With zero bubble the pass for weights of a number as many lower as there are
    devices before this one comes after the backward pass.
    """
    stages, hop, points = pipelines.stages, pipelines.hop, len(pipelines.hop)
    splits = pipelines.schedule == "zero_bubble"
    # One row per device, and one for what the first and the last device wait for.
    forward, backward, weight, last = (
        np.ascontiguousarray(times.T)
        for times in (pipelines.forward, pipelines.backward, pipelines.weight, pipelines.last)
    )
    done, back = (np.zeros((stages + 1, points)) for _ in range(2))
    done[0] = back[-1] = -np.inf
    free = np.zeros((stages, points))
    # All devices alternate, with zero bubble all three passes, from slot 2 ``stages`` to this one.
    whole = 2 * microbatches - 2 - stages

    def play(slot: int, noted: list[Numbers] | None = None) -> None:
        low, high = max(0, slot + stages - 2 * microbatches + 1), min(stages, slot + stages + 1)
        low += (slot + stages - low) % 2
        if low < high:
            end = done[low:high:2] + hop
            if noted is not None:
                noted.append(end - free[low:high:2])
            np.maximum(end, free[low:high:2], out=end)
            end += forward[low:high:2]
            free[low:high:2] = end
            done[low + 1 : high + 1 : 2] = end
        low = max(0, stages - 1 - slot)
        low += (slot + stages + 1 - low) % 2
        final = 2 * microbatches + stages - 3 - slot
        high = min(stages, final + 1)
        if low < high:
            end = back[low + 1 : high + 1 : 2] + hop
            if noted is not None:
                noted.append(end - free[low:high:2])
            np.maximum(end, free[low:high:2], out=end)
            if final < stages and not splits:
                end[:-1] += backward[low:final:2]
                end[-1] += last[final]
            else:
                end += backward[low:high:2]
            back[low:high:2] = end
            if splits:
                begun = weight[low : max(low, min(high, slot - stages + 2)) : 2]
                end[: len(begun)] += begun
                if final == 0:
                    end[0] += last[0] - weight[0]
            free[low:high:2] = end

    moved = _play(
        play,
        range(-stages, 2 * microbatches + stages - 2),
        range(whole - 2 * every + 1, whole + 1),
        (done[1:], back[:-1], free),
        rounds,
    )
    if splits:
        waiting = np.minimum(np.arange(1, stages), microbatches)[:, None]
        free[1:] += (waiting - 1) * weight[1:] + last[1:]
    return free.T, moved.min(0), moved.max(0)


def _interleaved(pipelines: Pipelines, kinds: Integers) -> Numbers:
    """Interleaved 1F1B with several parts per device: in rounds of one microbatch per device."""
    every = np.full(len(pipelines.hop), pipelines.stages)
    return _repeating(pipelines, kinds, every, _interleaved_passes)


def _interleaved_passes(
    pipelines: Pipelines, microbatches: int, every: int, rounds: Integers | None
) -> tuple[Numbers, Numbers, Numbers]:
    """Ends as ``last_ends``, and the least and most that ``every`` microbatches move any end.

    With ``rounds`` so many more times ``every`` microbatches come in between.
    In slot t device d runs forward pass number t + parts - 1 - d of its order and backward pass
    number t - stages + 1 + d, where they exist. Each then waits for something of the slot before
    only: for its neighbour, or between two parts of the model for the device at the other end.
    """
    stages, turns, hop = pipelines.stages, pipelines.virtual_stages, pipelines.hop
    parts = stages * turns
    passes = turns * microbatches
    # One row per device, and one for what comes from the other end: devices at work in a slot are
    # neighbours.
    forward, backward, last = (
        np.ascontiguousarray(times.T)
        for times in (pipelines.forward, pipelines.backward, pipelines.last)
    )
    ends = np.empty_like(forward)
    done, back = (np.zeros((stages + 1, len(hop))) for _ in range(2))
    free = np.zeros((stages, len(hop)))
    # The part in which each device is (columns) in each slot of a round (rows), both ways.
    device, of_round = np.arange(stages), np.arange(parts)[:, None]
    onward = device + (of_round + parts - 1 - device) // stages % turns * stages
    returning = (of_round + parts - stages + 1 + device) // stages % turns
    returning = device + (turns - 1 - returning) * stages
    # Passes of all devices exist from slot ``stages`` - 1 to this one.
    whole = passes - parts

    def play(slot: int, noted: list[Numbers] | None = None) -> None:
        low, high = max(0, slot + parts - passes), min(stages, slot + parts)
        if low < high:
            part = onward[slot % parts, low:high]
            if low == 0:
                done[0] = done[-1] if part[0] >= stages else -np.inf
            end = done[low:high] + hop
            if noted is not None:
                noted.append(end - free[low:high])
            np.maximum(end, free[low:high], out=end)
            end += forward[part]
            done[low + 1 : high + 1] = free[low:high] = end
        low, high = max(0, stages - 1 - slot), min(stages, passes + stages - 1 - slot)
        if low < high:
            part = returning[slot % parts, low:high]
            takes = backward[part]
            # The last microbatch of a part ends the part's turn in the last round.
            first = slot - stages + 1 + low
            final = (stages - 1 - first) % stages
            is_last = final < high - low and first + final >= whole
            if is_last:
                takes[final] = last[part[final]]
            if high == stages:
                back[-1] = back[0] if part[-1] < parts - stages else -np.inf
            end = back[low + 1 : high + 1] + hop
            if noted is not None:
                noted.append(end - free[low:high])
            np.maximum(end, free[low:high], out=end)
            end += takes
            back[low:high] = free[low:high] = end
            if is_last:
                ends[part[final]] = end[final]

    moved = _play(
        play,
        range(1 - parts, passes + stages - 1),
        range(whole - turns * every + 1, whole + 1),
        (done[1:], back[:-1], free),
        rounds,
    )
    return ends.T, moved.min(0), moved.max(0)
