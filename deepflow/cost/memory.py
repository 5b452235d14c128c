"""Device memory of a training step, by part and pipeline stage.

Mixed-precision Adam (arXiv 1910.02054, 3.1): weights in the working precision, a 32-bit
master copy and two 32-bit moments, gradients accumulated in ``gradient_bytes``. Activations
follow arXiv 2205.05198, 4, and the passes in flight at the worst moment of the schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from deepflow.config.hardware import SoftwareParameters
from deepflow.cost.elementwise import larger, smaller, some, where
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import HEAD, RECOMPUTED, TrainingMapping
from deepflow.mapping.training import (
    OPTIMIZER_STATE_BYTES,
    Parameters,
    TrainingStep,
    saved_bytes,
    sharded,
)
from deepflow.record import record
from deepflow.workload.operators import FP32

# The segments of each part of the model on a stage, by name.
Parts = tuple[tuple[str, ...], ...]


@record(frozen=True)
class MemoryUse:
    """Peak bytes on one device of a stage, by part.

    ``activations`` and ``logits`` are kept for backward passes, ``temporary`` is what a pass needs
    beside them. ``allocator``: held by the framework's allocator but not in use; ``reserved``:
    taken by driver and libraries.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    temporary: float
    buffers: float
    allocator: float
    reserved: float

    @property
    def static(self) -> float:
        """What stays between steps."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        kept = self.activations + self.logits + self.temporary
        return self.static + kept + self.allocator + self.reserved


def memory_use(
    software: SoftwareParameters,
    *,
    weights: float,
    gradients: float,
    optimizer: float,
    activations: float,
    logits: float = 0.0,
    temporary: float = 0.0,
    buffers: float = 0.0,
) -> MemoryUse:
    """The parts in use, with what the framework and the driver take on top."""
    used = weights + gradients + optimizer + activations + logits + temporary + buffers
    return MemoryUse(
        weights,
        gradients,
        optimizer,
        activations,
        logits,
        temporary,
        buffers,
        allocator=software.allocator_overhead * used,
        reserved=software.reserved_memory,
    )


@record(frozen=True)
class SegmentMemory:
    """What one segment holds on one device; bytes, of activations for one microbatch.

    ``parameters`` and ``own`` as in ``Segment``; ``saved_feature``: the part of ``saved`` that
    tensor parallelism cuts (of the head, its logits); ``kept``: what is left of ``saved`` between
    forward and backward pass when parts are computed again. In a batch of points, arrays.
    """

    parameters: Parameters
    own: Parameters
    saved: float
    saved_feature: float
    kept: float


def segment_memory(mapping: TrainingMapping, step: TrainingStep, name: str) -> SegmentMemory:
    """What the segment ``name`` holds."""
    segment = step.segments[name]
    return SegmentMemory(
        segment.parameters,
        segment.own,
        segment.forward.saved_sequence + segment.forward.saved_feature,
        segment.forward.saved_feature,
        kept_bytes(mapping, step, name),
    )


def kept_bytes(mapping: TrainingMapping, step: TrainingStep, name: str) -> float:
    """What one segment keeps of a microbatch from its forward to its backward pass."""
    if name.endswith(RECOMPUTED):
        return step.hop.message_bytes
    return saved_bytes(step.segments[name].forward, mapping)


def stage_parameters(segments: Mapping[str, SegmentMemory], parts: Parts) -> Parameters:
    """Parameters on one device of a stage with these ``parts``; a matrix that is tied counts once.

    It has a second copy when first and last stage differ.
    """
    whole = Parameters()
    for name, count in Counter(chain.from_iterable(parts)).items():
        whole += segments[name].own * count
    return whole


def part_weights(segments: Mapping[str, SegmentMemory], parts: Parts) -> tuple[float, ...]:
    """Bytes that each of ``parts`` keeps of one microbatch."""
    kept = {part: sum(segments[name].kept for name in part) for part in dict.fromkeys(parts)}
    return tuple(kept[part] for part in parts)


def stage_memory(
    hardware: Hardware,
    mapping: TrainingMapping,
    segments: Mapping[str, SegmentMemory],
    parts: Parts,
    parameters: Parameters,
    in_flight: Sequence[int],
    boundary_bytes: float,
    hop_bytes: float,
) -> MemoryUse:
    """Peak memory of a device of a stage with these ``parts`` and ``parameters``.

    ``in_flight``: of each part, microbatches whose activations are kept at the worst moment.
    ``boundary_bytes`` and ``hop_bytes``: activations between layers and between stages, as in
    ``TrainingStep``. In a batch of points, all numbers may be arrays, those of the mapping too.
    """
    software, asked = hardware.config.sw_param, mapping.asked
    names = dict.fromkeys(chain(*parts))
    here = [segments[name] for name in names]
    weights = whole = parameters.count
    own = sharded(mapping, parameters)
    optimizer = where(asked.zero >= 1, own, whole) * OPTIMIZER_STATE_BYTES
    gradients = where(asked.zero >= 2, own, whole)
    if some(asked.zero >= 2):
        # What is sharded is put together for the segment at work, and for the next one beside it.
        largest = _largest(_put_together(mapping, segment.parameters) for segment in here)
        ahead = 2 if asked.overlap_parameter_gather else 1
        weights = where(asked.zero == 3, own + smaller(ahead * largest, whole), whole)
        gradients = gradients + where(asked.zero >= 2, largest, 0.0)
    gradients = gradients * asked.gradient_bytes
    if asked.gradient_bucket:
        bucketed = (asked.zero <= 1) & (mapping.gradient_ranks > 1)
        gradients = gradients + where(bucketed, whole * software.precision, 0.0)
    if some(asked.offload != "none"):
        # One segment's states come in while those of the one before are used.
        coming = 2 * OPTIMIZER_STATE_BYTES * _own_share(mapping, here)
        optimizer = where(asked.offload != "none", smaller(optimizer, coming), optimizer)
    activations = logits = 0.0
    for part, weight, number in zip(parts, part_weights(segments, parts), in_flight, strict=True):
        kept = number * weight
        if HEAD in part:
            logits = number * segments[HEAD].saved_feature
            kept = kept - logits
        activations = activations + kept
    leave = asked.offload == "optimizer_and_activations"
    if some(leave):
        # A segment's activations leave, or come back, while the next one is computed.
        moving = 2 * _largest(segment.kept for segment in here)
        activations = where(leave, smaller(activations, moving), activations)
    # While a layer goes backward, what it did not keep is there again, and gradients of what it
    # keeps; while the head does, the gradient of its logits.
    temporary = 0.0
    for name, segment in zip(names, here, strict=True):
        if name == HEAD:
            working = software.precision
            share = FP32 / (FP32 + working) if software.kernel_fusion == "eager" else 1.0
            temporary = larger(temporary, segment.saved_feature * share)
        else:
            again = segment.saved - segment.kept
            temporary = larger(temporary, segment.saved_feature + again)
    return memory_use(
        software,
        weights=weights * software.precision,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        temporary=temporary,
        # Gathered input and its gradient in a tensor group; received tensors of a pipeline.
        buffers=where(mapping.tensor > 1, 2 * boundary_bytes, 0.0)
        + where(mapping.pipeline > 1, 2 * hop_bytes, 0.0),
    )


def _largest(amounts: Iterable[float]) -> float:
    largest = 0.0
    for amount in amounts:
        largest = larger(largest, amount)
    return largest


def _own_share(mapping: TrainingMapping, segments: Sequence[SegmentMemory]) -> float:
    """Parameters of the largest segment, as far as this device updates them."""
    whole = _largest(segment.parameters.count for segment in segments)
    shared = _largest(sharded(mapping, segment.parameters) for segment in segments)
    share: float = where(mapping.asked.zero == 0, whole, shared)
    return share


def _put_together(mapping: TrainingMapping, parameters: Parameters) -> float:
    """Parameters of a segment for which whole weights, or whole gradients, are there at once."""
    shared = _shared_out(mapping, parameters)
    if mapping.asked.zero_3_unit == "layer":
        return shared
    # A matrix, which is taken for as large as the others, and the buffer that it travels in.
    one: float = where(mapping.asked.zero == 3, 2 / larger(1, parameters.matrices), 1.0)
    return shared * one


def _shared_out(mapping: TrainingMapping, parameters: Parameters) -> float:
    """Parameters of a segment of which other devices may keep parts."""
    groups = mapping.groups
    dense: float = where(groups["data"].size > 1, parameters.dense, 0.0)
    experts: float = where(groups["expert_data"].size > 1, parameters.experts, 0.0)
    return dense + experts
