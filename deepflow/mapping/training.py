"""One rank's blocks of a training step: forward, backward, gradient reduction, update."""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.model import LlmModel
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import TrainingMapping
from deepflow.mapping.tensor import shard_block
from deepflow.record import record
from deepflow.workload.operators import FP32, Block, Collective, Elementwise, backward
from deepflow.workload.transformer import transformer_blocks


@record(frozen=True)
class Segment:
    """A part of the model (embedding, layer or head) on one rank.

    ``gradient`` runs once per instance and step over the data group; ``backward`` includes
    the recomputed forward pass if there is one, and adding up gradients.
    """

    forward: Block
    backward: Block
    gradient: Block


@record(frozen=True)
class TrainingStep:
    """All that one rank runs, and what it passes on.

    ``boundary_bytes``: activations of a microbatch between layers, over the tensor group.
    ``hop``: the transfer of one rank's part of it to the next stage.
    """

    embedding: Segment
    layer: Segment
    head: Segment
    boundary_bytes: float
    hop: Collective


def training_step(hardware: Hardware, model: LlmModel, mapping: TrainingMapping) -> TrainingStep:
    """Shards the model's blocks and derives what training adds to them."""
    software = hardware.config.sw_param
    blocks = transformer_blocks(
        model, mapping.micro_batch_size, software.precision, software.kernel_fusion
    )
    boundary = float(
        mapping.micro_batch_size * model.seq_len * model.hidden_dim * software.precision
    )
    part = mapping.tensor if mapping.sequence_parallel else 1
    return TrainingStep(
        embedding=_segment(blocks.embedding, hardware, mapping, recompute=False),
        layer=_segment(blocks.layer, hardware, mapping, recompute=mapping.recompute == "full"),
        head=_segment(blocks.head, hardware, mapping, recompute=False),
        boundary_bytes=boundary,
        hop=Collective("stage_transfer", "send", "pipeline", boundary / part),
    )


def update_block(hardware: Hardware, mapping: TrainingMapping, parameters: float) -> Block:
    """Clipping and Adam for ``parameters`` of one device, then the gathering of ZeRO 1.

    Per parameter: gradient, master copy and two moments read, the latter three and the weight
    written; the gradient read once more for its norm and cleared. Eager clipping scales it
    in a pass of its own.
    """
    software = hardware.config.sw_param
    eager = software.kernel_fusion == "eager"
    shared = mapping.data if mapping.zero >= 1 else 1
    update = (mapping.gradient_bytes + 6 * FP32 + software.precision) * parameters / shared
    norm_and_scale = mapping.gradient_bytes * (3 if eager else 1) * parameters / shared
    clear = mapping.gradient_bytes * parameters
    operators: list[Elementwise | Collective] = [
        Elementwise("gradient_norm", norm_and_scale + clear, 2 * parameters / shared, 3),
        Elementwise("adam_update", update, 12 * parameters / shared, 1),
    ]
    if shared > 1:
        operators.append(
            Collective("parameter_gather", "all_gather", "data", parameters * software.precision)
        )
    return Block("update", tuple(operators))


def _segment(
    block: Block, hardware: Hardware, mapping: TrainingMapping, recompute: bool
) -> Segment:
    software = hardware.config.sw_param
    forward = shard_block(block, mapping, software.precision)
    gradients = backward(forward)
    parameters = forward.parameters + forward.replicated_parameters
    operators = (forward.operators if recompute else ()) + gradients.operators
    if mapping.num_microbatches > 1 or mapping.gradient_bytes > software.precision:
        # Fused: the multiplication adds onto the accumulated gradient itself.
        eager = software.kernel_fusion == "eager"
        per_parameter = 2 * mapping.gradient_bytes + (software.precision if eager else 0)
        operators += (
            Elementwise(
                f"{block.name}_gradient_accumulation",
                per_parameter * parameters,
                parameters,
                kernels=1 if eager else 0,
            ),
        )
    reduction = Collective(
        f"{block.name}_gradient_reduction",
        "reduce_scatter" if mapping.zero >= 1 else "all_reduce",
        "data",
        parameters * mapping.gradient_bytes,
    )
    return Segment(
        forward,
        replace(gradients, operators=operators),
        Block(f"{block.name}.gradient", (reduction,) if mapping.data > 1 else ()),
    )
