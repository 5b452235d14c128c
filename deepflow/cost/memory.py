"""Device memory of a training step, by part and pipeline stage.

Mixed-precision Adam (arXiv 1910.02054, 3.1): weights in the working precision, a 32-bit
master copy and two 32-bit moments, gradients accumulated in ``gradient_bytes``. Activations
follow arXiv 2205.05198, 4, and the passes in flight at the worst moment of the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import HEAD, RECOMPUTED, TrainingMapping
from deepflow.mapping.training import (
    OPTIMIZER_STATE_BYTES,
    Segment,
    TrainingStep,
    saved_bytes,
    sharded,
)
from deepflow.record import record


@record(frozen=True)
class MemoryUse:
    """Peak bytes on one device of a stage, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    reserved: float

    @property
    def total(self) -> float:
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.buffers
            + self.reserved
        )


@record(frozen=True)
class StageParameters:
    """Parameters on one device of a stage before sharding over the data group.

    ``replicated``: those of ``dense`` of which every rank of the tensor group has a copy.
    """

    dense: float
    experts: float
    replicated: float

    @property
    def count(self) -> float:
        return self.dense + self.experts


def stage_parameters(
    mapping: TrainingMapping, step: TrainingStep, stage: int, tied: bool
) -> StageParameters:
    """Parameters on one device of ``stage``.

    A tied output matrix has a second copy only when first and last stage differ.
    """
    dense = experts = replicated = 0.0
    for part in mapping.parts_of(stage):
        for name in part:
            segment = step.segments[name]
            dense += segment.dense_parameters
            experts += segment.forward.expert_parameters
            replicated += segment.forward.replicated_parameters
    if tied and mapping.pipeline == 1:
        dense -= step.segments[HEAD].forward.parameters
    return StageParameters(dense, experts, replicated)


def kept_bytes(mapping: TrainingMapping, step: TrainingStep, name: str) -> float:
    """What one segment keeps of a microbatch from its forward to its backward pass."""
    if name.endswith(RECOMPUTED):
        return _layer_input(mapping, step)
    return saved_bytes(step.segments[name].forward, mapping)


def part_weights(mapping: TrainingMapping, step: TrainingStep, stage: int) -> tuple[float, ...]:
    """Bytes that each part of ``stage`` keeps of one microbatch."""
    return tuple(
        sum(kept_bytes(mapping, step, name) for name in part) for part in mapping.parts_of(stage)
    )


def stage_memory(
    hardware: Hardware,
    mapping: TrainingMapping,
    step: TrainingStep,
    stage: int,
    parameters: StageParameters,
    in_flight: Sequence[int],
) -> MemoryUse:
    """Peak memory of a device of ``stage``.

    ``in_flight``: of each of its parts, microbatches whose activations are kept at the worst
    moment.
    """
    software, asked = hardware.config.sw_param, mapping.asked
    parts = mapping.parts_of(stage)
    names = dict.fromkeys(name for part in parts for name in part)
    segments = [step.segments[name] for name in names]
    own = sharded(mapping, parameters.dense, parameters.experts)
    held = {zero: own if asked.zero >= zero else parameters.count for zero in (1, 2, 3)}
    # What is sharded is put together for the segment at work, and for the next one beside it.
    largest = max((segment.parameters for segment in segments), default=0.0)
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
    # What is left out is there while its layer goes backward.
    blocks = {name: step.segments[name].forward for name in names if name != HEAD}
    activations += max(
        (block.saved_sequence + block.saved_feature - kept[name] for name, block in blocks.items()),
        default=0.0,
    )
    boundary = step.boundary_bytes
    return MemoryUse(
        weights=(held[3] + whole_weights) * software.precision,
        gradients=(held[2] + whole_gradients) * asked.gradient_bytes,
        optimizer=optimizer,
        activations=activations,
        # The gradient of the logits lives beside them until the projection has used it.
        logits=logits + logits_kept,
        # Gathered input and its gradient in a tensor group; received tensors of a pipeline.
        buffers=(2 * boundary if mapping.tensor > 1 else 0.0)
        + (2 * _layer_input(mapping, step) if mapping.pipeline > 1 else 0.0),
        reserved=software.reserved_memory,
    )


def _layer_input(mapping: TrainingMapping, step: TrainingStep) -> float:
    return step.boundary_bytes / (mapping.tensor if mapping.sequence_parallel else 1)


def _own_share(mapping: TrainingMapping, segments: Sequence[Segment]) -> float:
    """Parameters of the largest segment, as far as this device updates them."""
    if mapping.asked.zero == 0:
        return max((segment.parameters for segment in segments), default=0.0)
    return max(
        (
            sharded(mapping, segment.dense_parameters, segment.forward.expert_parameters)
            for segment in segments
        ),
        default=0.0,
    )
