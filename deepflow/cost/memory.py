"""Device memory of a training step, by part and pipeline stage.

Mixed-precision Adam (arXiv 1910.02054, 3.1): weights in the working precision, a 32-bit
master copy and two 32-bit moments, gradients accumulated in ``gradient_bytes``. Activations
follow arXiv 2205.05198, 4, with fused attention (no score matrix).
"""

from __future__ import annotations

from deepflow.mapping.parallelism import TrainingMapping
from deepflow.record import record
from deepflow.workload.operators import Block

OPTIMIZER_STATE_BYTES = 12  # 32-bit master weight, first and second moment


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


def microbatches_in_flight(mapping: TrainingMapping, stage: int) -> int:
    """Forward passes whose activations a stage holds at the worst moment.

    1F1B: as many as there are stages from here to the end (arXiv 2104.04473, 2.2.1);
    GPipe: all of them.
    """
    if mapping.schedule == "gpipe":
        return mapping.num_microbatches
    return min(mapping.num_microbatches, mapping.pipeline - stage)


def stage_parameters(
    mapping: TrainingMapping, stage: int, embedding: Block, layer: Block, head: Block, tied: bool
) -> float:
    """Parameters on one device of ``stage`` (blocks are shards).

    A tied output matrix has a second copy only when first and last stage differ.
    """
    count = mapping.stage_layers[stage] * (layer.parameters + layer.replicated_parameters)
    if stage == 0:
        count += embedding.parameters + embedding.replicated_parameters
    if stage == mapping.pipeline - 1:
        shared = head.parameters if tied and mapping.pipeline == 1 else 0.0
        count += head.parameters + head.replicated_parameters - shared
    return count


def stage_memory(
    mapping: TrainingMapping,
    stage: int,
    parameters: float,
    layer: Block,
    head: Block,
    boundary_bytes: float,
    precision: float,
    reserved: float,
) -> MemoryUse:
    """Peak memory of a device of ``stage``.

    ``boundary_bytes``: one microbatch's activations between two layers, on one device, when
    gathered over the tensor group. ``parameters``: of the device.
    """
    in_flight = microbatches_in_flight(mapping, stage)
    layers = mapping.stage_layers[stage]
    saved_layer = layer.saved_sequence + layer.saved_feature
    kept_input = boundary_bytes / (mapping.tensor if mapping.sequence_parallel else 1)
    if mapping.recompute == "full":
        # Every layer keeps its input; the layer at work has its activations as well.
        activations = in_flight * layers * kept_input + saved_layer
    else:
        activations = in_flight * layers * saved_layer
    is_last = stage == mapping.pipeline - 1
    sharded = mapping.data if mapping.zero >= 1 else 1
    return MemoryUse(
        weights=parameters * precision,
        gradients=parameters * mapping.gradient_bytes,
        optimizer=parameters * OPTIMIZER_STATE_BYTES / sharded,
        activations=activations + (head.saved_sequence if is_last else 0.0),
        # The gradient of the logits lives beside them until the projection has used it.
        logits=2 * head.saved_feature if is_last else 0.0,
        # Gathered input and its gradient in a tensor group; received tensors of a pipeline.
        buffers=(2 * boundary_bytes if mapping.tensor > 1 else 0.0)
        + (2 * kept_input if mapping.pipeline > 1 else 0.0),
        reserved=reserved,
    )
