"""One rank's blocks of a training step: forward, backward, gradient reduction, update."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from deepflow.config.model import LlmModel
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import EMBEDDING, HEAD, RECOMPUTED, TrainingMapping
from deepflow.mapping.tensor import shard_block
from deepflow.record import record
from deepflow.workload.operators import (
    FP32,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    Block,
    Collective,
    Elementwise,
    Gemm,
    GroupedGemm,
    Operator,
    Recomputable,
    backward,
)
from deepflow.workload.transformer import transformer_blocks

OPTIMIZER_STATE_BYTES = 12  # 32-bit master weight, first and second moment

# Which parts of a layer a choice of ``recompute_modules`` stands for.
_MODULES = {
    "core_attention": ("core_attention",),
    "elementwise": ("elementwise",),
    "core_attention_and_elementwise": ("core_attention", "elementwise"),
}


@record(frozen=True)
class Parameters:
    """Parameters on one device before sharding over the data group.

    ``dense`` outside and ``experts`` inside of experts; ``replicated``: those of ``dense`` of which
    every rank of the tensor group has a copy; ``tensors``: weight matrices, of which there are
    ``matrices``, and norms.
    """

    dense: float = 0.0
    experts: float = 0.0
    replicated: float = 0.0
    tensors: int = 0
    matrices: int = 0

    @property
    def count(self) -> float:
        """All parameters of one device."""
        return self.dense + self.experts

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(
            self.dense + other.dense,
            self.experts + other.experts,
            self.replicated + other.replicated,
            self.tensors + other.tensors,
            self.matrices + other.matrices,
        )

    def __mul__(self, times: int) -> Parameters:
        return Parameters(
            self.dense * times,
            self.experts * times,
            self.replicated * times,
            self.tensors * times,
            self.matrices * times,
        )


def segment_parameters(block: Block) -> Parameters:
    """The parameters of a forward block."""
    matrices = norms = 0
    for operator in block.operators:
        match operator:
            case Gemm(weight=True) | GroupedGemm():
                matrices += 1
            case Elementwise(name=name):
                matrices += name.endswith("_lookup")
                norms += name.endswith("_norm")
    return Parameters(
        block.parameters + block.replicated_parameters,
        block.expert_parameters,
        block.replicated_parameters,
        matrices + norms,
        matrices,
    )


@record(frozen=True)
class Segment:
    """A part of the model (embedding, layer or head) on one rank.

    ``backward`` includes recomputed parts of the forward pass and adding up gradients;
    ``backward_input`` and ``backward_weight`` are the same work in two passes: what earlier
    segments wait for, and gradients of weights. ``gather`` brings in weights that are sharded over
    the data group, before each pass; ``gradient`` reduces gradients over that group.
    ``parameters`` on one device if nothing is sharded over the data group; ``own``: those without
    a matrix that is the embedding's.
    """

    parameters: Parameters
    own: Parameters
    forward: Block
    backward: Block
    backward_input: Block
    backward_weight: Block
    gather: Block
    gradient: Block


@record(frozen=True)
class TrainingStep:
    """All that one rank runs, and what it passes on.

    ``segments`` by the names in ``TrainingMapping.parts``. ``boundary_bytes``: activations of a
    microbatch between layers, over the tensor group. ``hop``: the transfer of one rank's part of
    it to the next stage; ``received``: what the tensor group does there before it goes on.
    """

    segments: dict[str, Segment]
    boundary_bytes: float
    hop: Collective
    received: Block


def training_step(hardware: Hardware, model: LlmModel, mapping: TrainingMapping) -> TrainingStep:
    """Shards the model's blocks and derives what training adds to them."""
    software = hardware.config.sw_param
    # A device that holds all experts has all rows, whatever the routing.
    even = model if mapping.expert > 1 else replace(model, expert_imbalance=1.0)
    blocks = transformer_blocks(
        even,
        mapping.micro_batch_size,
        software.precision,
        software.kernel_fusion,
        unfused_attention=software.attention_kernel == "unfused",
        context=mapping.context,
        context_method=mapping.asked.context_method,
        dispatched=software.dispatched_bytes,
    )
    by_name = {EMBEDDING: blocks.embedding, HEAD: blocks.head, **blocks.layers}
    boundary = (
        mapping.micro_batch_size * model.seq_len * model.hidden_dim * software.precision
    ) / mapping.context
    scattered = mapping.asked.scatter_transfers and mapping.tensor > 1 < mapping.pipeline
    gathers: tuple[Operator, ...] = ()
    if scattered and not mapping.sequence_parallel:
        gathers = (Collective("stage_gather", "all_gather", "tensor", boundary),)
    part = mapping.tensor if scattered or mapping.sequence_parallel else 1
    names = dict.fromkeys(name for part in mapping.parts for name in part)
    return TrainingStep(
        segments={
            name: _segment(
                by_name[name.removesuffix(RECOMPUTED)],
                hardware,
                mapping,
                shared=name == HEAD and model.tie_embeddings and mapping.pipeline == 1,
                recomputed=name.endswith(RECOMPUTED),
            )
            for name in names
        },
        boundary_bytes=boundary,
        hop=Collective("stage_transfer", "send", "pipeline", boundary / part),
        received=Block("received", gathers),
    )


def update_block(hardware: Hardware, mapping: TrainingMapping, parameters: Parameters) -> Block:
    """Clipping and Adam for the parameters of one device, then the gathering of ZeRO 1 and 2.

    With sequence parallelism each rank of the tensor group has the gradients of its own tokens only
    for what all ranks have a copy of; they are added up first. Gradients are read for
    their norm, and scaled where they stand; with fp16 they are freed of the loss scale first, in
    another pass. Adam reads the gradient, master copy and two moments and writes the latter three
    and the weight, which eager frameworks copy from the master in a pass of its own. Then
    gradients are cleared. Eager frameworks run all this tensor by tensor.
    """
    software = hardware.config.sw_param
    zero, gradient_bytes = mapping.asked.zero, mapping.asked.gradient_bytes
    eager, loss_scale = software.kernel_fusion == "eager", software.dtype == "fp16"
    own = sharded(mapping, parameters) if zero >= 1 else parameters.count
    clipping = (5 if loss_scale else 3) * gradient_bytes * own
    clearing = gradient_bytes * (own if zero >= 2 else parameters.count)
    update = (gradient_bytes + 6 * FP32 + software.precision + (FP32 if eager else 0)) * own
    launches = parameters.tensors if eager else 1
    operators: list[Operator] = []
    if reduces_at_end(mapping):
        operators += _over_data(
            "gradient_reduction", "all_reduce", mapping, parameters, gradient_bytes
        )
    if mapping.sequence_parallel and parameters.replicated:
        of_tokens = parameters.replicated * gradient_bytes
        operators.append(
            Collective("replicated_gradient_reduction", "all_reduce", "tensor", of_tokens)
        )
    operators += [
        Elementwise(
            "gradient_clipping",
            clipping + clearing,
            3 * own,
            (4 if loss_scale else 3) * launches,
        ),
        Elementwise("adam_update", update, 12 * own, (2 if eager else 1) * launches),
    ]
    if zero in (1, 2):
        operators += _over_data(
            "parameter_gather", "all_gather", mapping, parameters, software.precision
        )
    return Block("update", tuple(operators))


def reduces_at_end(mapping: TrainingMapping) -> bool:
    """Gradients are reduced in one piece after the last backward pass."""
    return mapping.asked.zero == 1 and mapping.asked.zero_1_reduction == "all_reduce"


def _over_data(
    name: str, kind: str, mapping: TrainingMapping, parameters: Parameters, size: float
) -> list[Collective]:
    """One collective for all parameters of a device, ``size`` bytes each, and one for experts'."""
    return [
        Collective(name, kind, group, count * size)
        for group, count in (("data", parameters.dense), ("expert_data", parameters.experts))
        if count and mapping.groups[group].size > 1
    ]


def gather_calls(mapping: TrainingMapping, own: Parameters) -> int:
    """Collectives that bring in the weights of a segment (ZeRO 3), or reduce their gradients."""
    return max(1, own.matrices) if mapping.asked.zero_3_unit == "matrix" else 1


def gathered_again(mapping: TrainingMapping, own: Parameters) -> float:
    """Part of a recomputed segment's weights that its backward pass gathers once more (ZeRO 3).

    Whatever is used before the last ``release_distance`` / 2 parameters: the rest of the forward
    and the beginning of the backward pass lie in between.
    """
    distance = mapping.asked.release_distance
    if distance is None or not own.count:
        return 0.0
    return max(0.0, 1 - distance / 2 / own.count)


def sharded(mapping: TrainingMapping, parameters: Parameters) -> float:
    """Parameters of one device when both kinds are dealt out over their data groups."""
    groups = mapping.groups
    return parameters.dense / groups["data"].size + parameters.experts / groups["expert_data"].size


def saved_bytes(block: Block, mapping: TrainingMapping) -> float:
    """Bytes that a forward block keeps for its backward pass, with selective recomputation."""
    kept = block.saved_sequence + block.saved_feature
    for part in _selected(block, mapping):
        kept -= part.saved_sequence + part.saved_feature
    return kept


def _selected(block: Block, mapping: TrainingMapping) -> tuple[Recomputable, ...]:
    if mapping.asked.recompute != "selective":
        return ()
    names = _MODULES[mapping.asked.recompute_modules]
    return tuple(part for part in block.recomputable if part.name in names)


def _segment(
    block: Block, hardware: Hardware, mapping: TrainingMapping, shared: bool, recomputed: bool
) -> Segment:
    software = hardware.config.sw_param
    gradient_bytes = mapping.asked.gradient_bytes
    forward = shard_block(block, mapping, software.precision)
    gradients = backward(forward)
    again: tuple[Operator, ...] = forward.operators
    if not recomputed:
        names = {name for part in _selected(forward, mapping) for name in part.operators}
        again = tuple(operator for operator in forward.operators if operator.name in names)
    parameters = segment_parameters(forward)
    own = parameters
    if shared:
        # The matrix and its gradient are those of the embedding, and travel with it.
        own += Parameters(dense=-forward.parameters, tensors=-1, matrices=-1)
    accumulation: tuple[Operator, ...] = ()
    if mapping.num_microbatches > 1 or gradient_bytes > software.precision:
        # Fused: the multiplication adds onto the accumulated gradient itself.
        eager = software.kernel_fusion == "eager"
        per_parameter = 2 * gradient_bytes + (software.precision if eager else 0)
        accumulation = (
            Elementwise(
                f"{block.name}_gradient_accumulation",
                per_parameter * parameters.count,
                parameters.count,
                kernels=parameters.tensors if eager else 0,
            ),
        )
    everywhere = mapping.asked.zero == 3 and mapping.asked.zero_3_reduction == "all_reduce"
    if everywhere:
        # Into a bucket, divided by the number of ranks there, and back, however many ranks.
        accumulation += (
            Elementwise(
                f"{block.name}_gradient_copies",
                6 * gradient_bytes * own.count,
                own.count,
                kernels=3 * own.tensors,
            ),
        )
    of_weights: list[Operator] = []
    of_inputs: list[Operator] = []
    if block.name == EMBEDDING:
        # Nobody asks for the gradient of tokens or images.
        needed = [x for x in gradients.operators if not x.name.endswith(INPUT_GRADIENT)]
        gradients = replace(gradients, operators=tuple(needed))
    for operator in gradients.operators:
        if operator.name.endswith(WEIGHT_GRADIENT):
            # What it would have run beside is alone, now that it runs at another time.
            if of_inputs and isinstance(beside := of_inputs[-1], Collective) and beside.beside:
                of_inputs[-1] = replace(beside, beside=0)
            of_weights.append(operator)
        else:
            of_inputs.append(operator)
    reduce_kind = "all_reduce" if mapping.asked.zero == 0 or everywhere else "reduce_scatter"
    reductions: list[Collective] = []
    gathers: list[Operator] = []
    if not reduces_at_end(mapping):
        name = f"{block.name}_gradient_reduction"
        reductions = _over_data(name, reduce_kind, mapping, own, gradient_bytes)
        bucket = mapping.asked.gradient_bucket
        if bucket and mapping.asked.zero == 0:
            # A tensor is not cut.
            filled = software.precision / gradient_bytes / bucket
            reductions = [
                replace(item, times=min(parameters.matrices, ceil(item.message_bytes * filled)))
                for item in reductions
            ]
    if mapping.asked.zero == 3:
        name, calls = f"{block.name}_weight_gather", gather_calls(mapping, own)
        reductions = [replace(item, times=calls) for item in reductions]
        arriving = _over_data(name, "all_gather", mapping, own, software.precision)
        gathers += [replace(item, times=calls) for item in arriving]
        if gathers and software.host_time_per_gathered_shard:
            # The weights' memory is cleared; shards are copied one by one from where they arrive.
            gathers.append(
                Elementwise(
                    f"{block.name}_weight_copies",
                    3 * own.count * software.precision,
                    flops=0.0,
                    kernels=calls * mapping.gradient_ranks,
                )
            )
    return Segment(
        parameters,
        own,
        forward,
        replace(gradients, operators=again + gradients.operators + accumulation),
        Block(f"{block.name}.backward_input", (*again, *of_inputs)),
        Block(f"{block.name}.backward_weight", (*of_weights, *accumulation)),
        Block(f"{block.name}.gather", tuple(gathers)),
        Block(f"{block.name}.gradient", tuple(reductions)),
    )
