"""The task graph of a pipelined training step.

The model is cut into parts; part ``p`` runs on device ``p % stages``, so with more than one
part per device (virtual stages) the model winds through the devices several times. One compute
stream and one gradient-network stream per device. A device's passes run in the fixed order of
its schedule:

- ``gpipe`` (arXiv 1811.06965): all forward passes, then all backward passes in reverse.
- ``1f1b`` (PipeDream-Flush, arXiv 2104.04473, 2.2.1): as many forward passes as there are
  devices behind, then one backward after each forward.
- ``interleaved`` (same, 2.2.2): the microbatches in groups of as many as there are devices; a
  group passes all parts of a device before the next one starts.
- ``zero_bubble`` (ZB-H1, arXiv 2401.10241, 2.1): 1F1B whose backward passes on the gradient of
  the activations first; the gradient of the weights follows as many microbatches later as there
  are devices before this one, which fills the time in which 1F1B drains. Each device holds at
  most as many microbatches as the first one does in 1F1B.

The last backward pass of each part (with zero bubble: its last pass for weights) is split into
segments, so that their gradients can be reduced beside it. Gradients of all devices meet in the
norm before any device updates its parameters.

A transfer between devices is a delay on the dependency and keeps no stream busy. That is how
frameworks send beside the passes. For those whose devices wait for each transfer (Megatron-LM's
1F1B) it comes close: what a device waits for is what its next pass needs anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from deepflow.cost.elementwise import smaller
from deepflow.errors import DeepFlowError, InfeasiblePoint
from deepflow.record import record
from deepflow.schedule.streams import CompiledStreams, compile_streams

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")

# Kinds of delay.
NO_DELAY, HOP = 0, 1


@record(frozen=True)
class PipelineShape:
    """What decides the structure of a step's graph.

    ``schedule``: gpipe, 1f1b, interleaved or zero_bubble; ``stages``: devices in the pipeline;
    ``virtual_stages``: parts of the model per device, 1 unless interleaved; ``microbatches``
    per step.

    ``last_backward``, for each part in model order: the kinds of segment, in the order of the
    backward pass, that make up its last backward pass. Kinds are integers from 0 that the
    caller chooses. No segments: the pass is not split and there is nothing to reduce.

    ``reduces_gradients``: there is a data group; ``overlaps``: its traffic runs beside the last
    backward pass; ``tied``: first and last part share the embedding matrix and add up its
    gradients at the end.
    """

    schedule: str
    stages: int
    virtual_stages: int
    microbatches: int
    last_backward: tuple[tuple[int, ...], ...]
    reduces_gradients: bool
    overlaps: bool
    tied: bool

    @property
    def parts(self) -> int:
        """Parts of the model."""
        return self.stages * self.virtual_stages


@record(frozen=True)
class PipelineGraph:
    """The compiled graph, where its durations stand, and the tasks that results ask about.

    ``last_backward``, ``last_gradient`` and ``updates`` are task numbers per device: the end of
    its last backward pass, the end of its last reduction of gradients (of its last backward
    pass if it has none), its update.
    """

    shape: PipelineShape
    graph: CompiledStreams
    last_backward: tuple[int, ...]
    last_gradient: tuple[int, ...]
    gradients_ready: int
    updates: tuple[int, ...]

    def durations(self) -> list[float]:
        """Zero seconds for every kind of task, to be filled in by the index functions below."""
        segments = 1 + max(
            (max(kinds, default=-1) for kinds in self.shape.last_backward), default=-1
        )
        return [0.0] * _segment_backward(self.shape, segments)

    def forward(self, part: int) -> int:
        """Index of the time of one microbatch's forward pass through ``part``."""
        return part

    def backward(self, part: int) -> int:
        """Index of the time of one microbatch's backward pass through ``part``."""
        return self.shape.parts + part

    def backward_input(self, part: int) -> int:
        """Zero bubble, in the place of ``backward``: the gradient of activations only."""
        return self.shape.parts + part

    def backward_weight(self, part: int) -> int:
        """Zero bubble: index of the time of the gradient of the weights of ``part``."""
        return 2 * self.shape.parts + part

    def update(self, device: int) -> int:
        """Index of the time of the optimizer step of ``device``."""
        return _update(self.shape, device)

    @property
    def tied_gradient(self) -> int:
        """Index of the time of the reduction between first and last part."""
        return _tied_gradient(self.shape)

    def segment_backward(self, kind: int) -> int:
        """Index of the time of a segment's backward pass; zero bubble: of its weights only."""
        return _segment_backward(self.shape, kind)

    def segment_gradient(self, kind: int) -> int:
        """Index of the time of reducing a segment's gradients over the data group."""
        return _segment_backward(self.shape, kind) + 1


def _no_time(shape: PipelineShape) -> int:
    return 3 * shape.parts


def _tied_gradient(shape: PipelineShape) -> int:
    return 3 * shape.parts + 1


def _update(shape: PipelineShape, device: int) -> int:
    return 3 * shape.parts + 2 + device


def _segment_backward(shape: PipelineShape, kind: int) -> int:
    return 3 * shape.parts + 2 + shape.stages + 2 * kind


def device_order(
    schedule: str, stages: int, virtual_stages: int, microbatches: int, device: int
) -> list[int]:
    """Passes of one device in order, as numbers.

    The forward pass of a microbatch through a part has the number
    ``part * microbatches + microbatch``; backward passes follow in the same way after all
    forward passes, with zero bubble the passes for weights after those.

    Raises:
        InfeasiblePoint: the schedule has no such number of parts per device or of microbatches.
        DeepFlowError: there is no such schedule.
    """
    _check_order(schedule, stages, virtual_stages, microbatches)
    forward = list(range(device * microbatches, (device + 1) * microbatches))
    backward = [number + stages * microbatches for number in forward]
    match schedule:
        case "gpipe":
            return forward + backward[::-1]
        case "interleaved" if virtual_stages > 1:
            return _interleaved_order(stages, virtual_stages, microbatches, device)
        case "zero_bubble":
            weights = [number + stages * microbatches for number in backward]
            return _zero_bubble_order(forward, backward, weights, stages - device - 1, device)
    return _one_forward_one_backward(forward, backward, stages - device - 1)


def _check_order(schedule: str, stages: int, virtual_stages: int, microbatches: int) -> None:
    if schedule not in SCHEDULES:
        raise DeepFlowError(f"unknown pipeline schedule {schedule!r}")
    if virtual_stages > 1 and schedule != "interleaved":
        raise InfeasiblePoint(
            f"pipeline schedule {schedule} has one part per device, not {virtual_stages}"
        )
    if virtual_stages > 1 and microbatches % stages:
        raise InfeasiblePoint(
            f"the interleaved schedule takes groups of {stages} microbatches, one per stage:"
            f" {microbatches} do not divide"
        )


def _one_forward_one_backward(forward: list[int], backward: list[int], ahead: int) -> list[int]:
    """``ahead`` forward passes, then one of each in turn, then the backward passes left."""
    alternating = [0] * (2 * max(0, len(forward) - ahead))
    alternating[::2] = forward[ahead:]
    alternating[1::2] = backward[: len(alternating) // 2]
    return forward[:ahead] + alternating + backward[len(alternating) // 2 :]


def _zero_bubble_order(
    forward: list[int], backward: list[int], weights: list[int], ahead: int, behind: int
) -> list[int]:
    """As above, with each pass for weights ``behind`` backward passes later."""
    order = forward[:ahead]
    for index, number in enumerate(backward):
        order += forward[index + ahead : index + ahead + 1]
        order.append(number)
        if index >= behind:
            order.append(weights[index - behind])
    return order + weights[max(0, len(weights) - behind) :]


def _interleaved_order(
    stages: int, virtual_stages: int, microbatches: int, device: int
) -> list[int]:
    parts = stages * virtual_stages
    forward, backward = [], []
    for first in range(0, microbatches, stages):
        group = range(first, first + stages)
        for part in range(device, parts, stages):
            forward += [part * microbatches + index for index in group]
        for part in range(device + parts - stages, -1, -stages):
            backward += [(parts + part) * microbatches + index for index in group]
    ahead = interleaved_ahead(stages, virtual_stages, device)
    return _one_forward_one_backward(forward, backward, ahead)


def interleaved_ahead(stages: int, virtual_stages: int, device: int) -> int:
    """Forward passes of a device before it alternates.

    A group's first microbatch has to pass all parts before it can come back, and one more pass
    per device behind has to be under way each way (arXiv 2104.04473, figure 4).
    """
    return 2 * (stages - device - 1) + (virtual_stages - 1) * stages


# A graph of that many takes seconds and a gigabyte.
MOST_PASSES = 4_000_000


@lru_cache(maxsize=32)
def pipeline_graph(shape: PipelineShape) -> PipelineGraph:
    """The graph of one training step on every device of one pipeline.

    Raises:
        InfeasiblePoint, DeepFlowError: as ``device_order``.
        DeepFlowError: more passes than would fit memory.
    """
    stages, parts, microbatches = shape.stages, shape.parts, shape.microbatches
    if parts * microbatches > MOST_PASSES:
        raise DeepFlowError(
            f"{microbatches:,} microbatches through {parts:,} parts of a pipeline are more than the"
            f" {MOST_PASSES:,} passes that are scheduled one by one"
        )
    queues = [
        device_order(shape.schedule, stages, shape.virtual_stages, microbatches, device)
        for device in range(stages)
    ]
    passes, no_time = parts * microbatches, _no_time(shape)
    # Tasks of passes are numbered as in ``device_order``: a pass through the next part has a
    # number that is larger by ``microbatches``.
    end = [-1] * microbatches
    kind = [which for which in range(parts) for _ in range(microbatches)]
    kind += [parts + which for which in kind]
    wait = [*end, *range(passes - microbatches), *range(passes + microbatches, 2 * passes), *end]
    delay = [HOP if other >= 0 and stages > 1 else NO_DELAY for other in wait]
    if shape.schedule == "zero_bubble":
        kind += [which + parts for which in kind[passes:]]
        wait += [-1] * passes
        delay += [NO_DELAY] * passes

    def add(which: int, waits_for: int = -1) -> int:
        kind.append(which)
        wait.append(waits_for)
        delay.append(NO_DELAY)
        return len(kind) - 1

    # The last backward pass of a part, or with zero bubble its last pass for weights.
    last = passes if shape.schedule != "zero_bubble" else 2 * passes
    last += 0 if shape.schedule == "gpipe" else microbatches - 1
    reductions: list[list[int]] = []
    last_backward, last_gradient = [], []
    for device, queue in enumerate(queues):
        segments: list[tuple[int, int]] = []
        for part in reversed(range(device, parts, stages)):
            split, whole = shape.last_backward[part], last + part * microbatches
            if not split:
                continue
            # Others wait for the last segment; the first one waits in the place of the whole.
            pieces = [add(_segment_backward(shape, which)) for which in split[:-1]]
            kind[whole] = _segment_backward(shape, split[-1])
            if pieces:
                wait[pieces[0]], delay[pieces[0]] = wait[whole], delay[whole]
                wait[whole], delay[whole] = -1, NO_DELAY
            at = queue.index(whole)
            queue[at:at] = pieces
            segments += zip([*pieces, whole], split, strict=True)
        last_backward.append(queue[-1])
        reductions.append([])
        if shape.reduces_gradients:
            reductions[device] += [
                add(_segment_backward(shape, which) + 1, task if shape.overlaps else queue[-1])
                for task, which in segments
            ]
        last_gradient.append((reductions[device] or queue)[-1])
    if shape.tied and stages > 1:
        first_is_ready = add(no_time, last_gradient[0])
        both = add(_tied_gradient(shape), last_gradient[-1])
        reductions[0] += [first_is_ready, both]
        last_gradient[0] = last_gradient[-1] = both
    norm = [add(no_time, task) for task in last_gradient]
    updates = [add(_update(shape, device), norm[-1]) for device in range(stages)]
    for queue, update in zip(queues, updates, strict=True):
        queue.append(update)
    return PipelineGraph(
        shape,
        compile_streams([*queues, *reductions, norm], kind, wait, delay),
        tuple(last_backward),
        tuple(last_gradient),
        norm[-1],
        tuple(updates),
    )


def peak_in_flight(
    schedule: str,
    stages: int,
    virtual_stages: int,
    microbatches: int,
    device: int,
    weights: Sequence[float],
) -> tuple[int, ...]:
    """Microbatches whose activations ``device`` holds at its worst moment, per part on it.

    ``weights``: bytes that one microbatch holds in each of the device's parts, first to last.

    Raises:
        InfeasiblePoint, DeepFlowError: as ``device_order``.
    """
    moments = held_before_backward(schedule, stages, virtual_stages, microbatches, device)
    if len(moments) == 1:
        return tuple(moments[0].tolist())
    return tuple(moments[int(np.argmax(moments @ np.array(weights)))].tolist())


def held_before_backward(
    schedule: str, stages: int, virtual_stages: int, microbatches: int, device: int
) -> NDArray[np.int64]:
    """Microbatches that ``device`` holds per part (columns) at the moments that can be its worst.

    A forward pass adds a microbatch to its part, the backward pass (with zero bubble the pass
    for weights, which still needs the inputs of the products) takes it away. So it is worst before
    a backward pass, and with one part per device the number follows from the order of passes.

    Raises:
        InfeasiblePoint, DeepFlowError: as ``device_order``.
    """
    _check_order(schedule, stages, virtual_stages, microbatches)
    if virtual_stages == 1:
        return np.array([[held_at_worst(schedule, stages, microbatches, device)]])
    # Two rounds of all parts and the passes ahead of them are within so many.
    return _held_in_turns(stages, virtual_stages, min(microbatches, 4 * stages), device)


def held_at_worst(schedule: str, stages: int, microbatches: Any, device: int) -> Any:
    """``held_before_backward`` with one part per device; of many points, an array."""
    most = {"gpipe": microbatches, "zero_bubble": stages}.get(schedule, stages - device)
    return smaller(microbatches, most)


@lru_cache(maxsize=1024)
def _held_in_turns(
    stages: int, virtual_stages: int, microbatches: int, device: int
) -> NDArray[np.int64]:
    # Every backward pass comes after ``ahead`` more forward passes and one; after two rounds of all
    # parts the same numbers come back.
    passes, ahead = virtual_stages * microbatches, interleaved_ahead(stages, virtual_stages, device)
    backward = np.arange(min(passes, 2 * stages * virtual_stages))[:, None]
    forward = np.minimum(backward + ahead + 1, passes)
    part = np.arange(virtual_stages)

    def through(done: NDArray[np.int64], turn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Microbatches through the parts that come in their ``turn``, after so many passes."""
        rounds, rest = np.divmod(done, stages * virtual_stages)
        return rounds * stages + np.clip(rest - turn * stages, 0, stages)

    return through(forward, part) - through(backward, part[::-1])
