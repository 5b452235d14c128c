"""Device memory of a training step, by part and pipeline stage.

Mixed-precision Adam (arXiv 1910.02054, 3.1): weights in the working precision, a 32-bit
master copy and two 32-bit moments, gradients accumulated in ``gradient_bytes``. Activations
follow arXiv 2205.05198, 4, and the passes in flight at the worst moment of the schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from deepflow.config.hardware import SoftwareParameters
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import HEAD, RECOMPUTED, TrainingMapping
from deepflow.mapping.training import (
    OPTIMIZER_STATE_BYTES,
    Parameters,
    Segment,
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


def stage_parameters(step: TrainingStep, parts: Parts) -> Parameters:
    """Parameters on one device of a stage with these ``parts``; a matrix that is tied counts once.

    It has a second copy when first and last stage differ.
    """
    whole = Parameters()
    for part in parts:
        for name, count in Counter(part).items():
            whole += step.segments[name].own * count
    return whole


def kept_bytes(mapping: TrainingMapping, step: TrainingStep, name: str) -> float:
    """What one segment keeps of a microbatch from its forward to its backward pass."""
    if name.endswith(RECOMPUTED):
        return step.hop.message_bytes
    return saved_bytes(step.segments[name].forward, mapping)


def part_weights(mapping: TrainingMapping, step: TrainingStep, parts: Parts) -> tuple[float, ...]:
    """Bytes that each of ``parts`` keeps of one microbatch."""
    kept = {name: kept_bytes(mapping, step, name) for name in dict.fromkeys(chain(*parts))}
    return tuple(sum(kept[name] for name in part) for part in parts)


def stage_memory(
    hardware: Hardware,
    mapping: TrainingMapping,
    step: TrainingStep,
    parts: Parts,
    parameters: Parameters,
    in_flight: Sequence[int],
) -> MemoryUse:
    """Peak memory of a device of a stage with these ``parts`` and ``parameters``.

    ``in_flight``: of each part, microbatches whose activations are kept at the worst moment.
    """
    software, asked = hardware.config.sw_param, mapping.asked
    names = dict.fromkeys(chain(*parts))
    segments = [step.segments[name] for name in names]
    own = sharded(mapping, parameters)
    held = {zero: own if asked.zero >= zero else parameters.count for zero in (1, 2, 3)}
    # What is sharded is put together for the segment at work, and for the next one beside it.
    largest = max((_shared_out(mapping, segment.parameters) for segment in segments), default=0.0)
    ahead = 2 if asked.overlap_parameter_gather else 1
    whole_weights = min(ahead * largest, parameters.count) if asked.zero == 3 else 0.0
    whole_gradients = largest if asked.zero >= 2 else 0.0
    optimizer = held[1] * OPTIMIZER_STATE_BYTES
    if asked.offload != "none":
        # One segment's states come in while those of the one before are used.
        optimizer = min(optimizer, 2 * OPTIMIZER_STATE_BYTES * _own_share(mapping, segments))
    kept = {name: kept_bytes(mapping, step, name) for name in names}
    logits_kept = step.segments[HEAD].forward.saved_feature if HEAD in names else 0.0
    activations = logits = 0.0
    for part, number in zip(parts, in_flight, strict=True):
        here = number * sum(kept[name] for name in part)
        if HEAD in part:
            logits = number * logits_kept
            here -= logits
        activations += here
    if asked.offload == "optimizer_and_activations":
        # A segment's activations leave, or come back, while the next one is computed.
        activations = min(activations, 2 * max(kept.values(), default=0.0))
    # While a layer goes backward, what it did not keep is there again, and gradients of what it
    # keeps; while the head does, the gradient of its logits.
    temporary = 0.0
    for name in names:
        block = step.segments[name].forward
        if name == HEAD:
            working = software.precision
            share = FP32 / (FP32 + working) if software.kernel_fusion == "eager" else 1.0
            temporary = max(temporary, block.saved_feature * share)
        else:
            again = block.saved_sequence + block.saved_feature - kept[name]
            temporary = max(temporary, block.saved_feature + again)
    gradients = (held[2] + whole_gradients) * asked.gradient_bytes
    if asked.gradient_bucket and asked.zero == 0 and mapping.gradient_ranks > 1:
        gradients += parameters.count * software.precision
    return memory_use(
        software,
        weights=(held[3] + whole_weights) * software.precision,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        temporary=temporary,
        # Gathered input and its gradient in a tensor group; received tensors of a pipeline.
        buffers=(2 * step.boundary_bytes if mapping.tensor > 1 else 0.0)
        + (2 * step.hop.message_bytes if mapping.pipeline > 1 else 0.0),
    )


def _own_share(mapping: TrainingMapping, segments: Sequence[Segment]) -> float:
    """Parameters of the largest segment, as far as this device updates them."""
    counts = (segment.parameters for segment in segments)
    if mapping.asked.zero == 0:
        return max((parameters.count for parameters in counts), default=0.0)
    return max((sharded(mapping, parameters) for parameters in counts), default=0.0)


def _shared_out(mapping: TrainingMapping, parameters: Parameters) -> float:
    """Parameters of a segment of which other devices may keep parts."""
    groups = mapping.groups
    dense = parameters.dense if groups["data"].size > 1 else 0.0
    return dense + (parameters.experts if groups["expert_data"].size > 1 else 0.0)
