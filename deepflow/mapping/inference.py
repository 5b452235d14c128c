"""One rank's blocks of the passes of inference, and what it holds in memory.

Degrees, groups and the order of ranks are those of training. Replicas (data parallel) have a
share of the sequences each, or some of them process prompts only and the others generate. A
pipeline works on as many groups of sequences as it has stages, one on each. Sums over a tensor
group are all-reduces, sequence parallelism is for training; a framework may bring kernels of its
own for them. Every rank gets all logits before it chooses tokens.
"""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.model import LlmModel
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import TrainingMapping, map_training
from deepflow.mapping.tensor import shard_block
from deepflow.record import record
from deepflow.workload.inference import Numbers
from deepflow.workload.operators import Block, Collective, Gemm, Operator


@record(frozen=True)
class InferenceMapping:
    """Inference laid out on a machine.

    ``layout``: degrees, parts of the model and groups. ``sequences``: those of a replica, worked on
    at the same time in ``groups`` groups of ``group_sequences``, one on each stage of a pipeline.
    ``prompts``: those of a replica that processes prompts. ``prompting`` and ``generating``: how
    many replicas do either, the same ones unless ``disaggregated``.
    """

    layout: TrainingMapping
    sequences: int
    groups: int
    group_sequences: int
    prompts: int
    prompting: int
    generating: int
    disaggregated: bool


def map_inference(hardware: Hardware, model: LlmModel) -> InferenceMapping:
    """Completes and checks degrees; sequences that do not divide evenly make some replicas fuller.

    Raises:
        InfeasiblePoint: the degrees do not fit the machine or the model, or the model does not
            generate.
    """
    if model.num_classes is not None or model.patch_dim is not None or not model.causal:
        raise InfeasiblePoint(
            "model.run_type inference is for models that generate tokens: causal, without"
            " num_classes and patch_dim"
        )
    layout = _layout(hardware, model)
    apart = layout.asked.prompt_replicas
    if apart >= layout.data:
        raise InfeasiblePoint(
            f"parallelism.prompt_replicas {apart} leaves none of {layout.data} replicas"
            " (parallelism.data) to generate"
        )
    generating, prompting = layout.data - apart, apart or layout.data
    sequences = -(-model.global_batch_size // generating)
    groups = min(layout.pipeline, sequences)
    return InferenceMapping(
        layout,
        sequences,
        groups,
        -(-sequences // groups),
        -(-model.global_batch_size // prompting),
        prompting,
        generating,
        apart > 0,
    )


def _layout(hardware: Hardware, model: LlmModel) -> TrainingMapping:
    """Degrees, parts and groups, which do not depend on how many requests of what length there are.

    A machine remembers them: they are a tenth of the work of a prediction.
    """
    system, asked = hardware.config.system_hierarchy, hardware.config.scheduling_param
    # The batch of training has to divide; here it need not.
    even = replace(
        model,
        global_batch_size=system.num_devices_per_node * system.num_nodes,
        seq_len=asked.context,
        prompt_len=None,
        output_len=1,
    )
    layout = hardware.layouts.get(even)
    if layout is None:
        asked = replace(
            asked,
            sequence_parallel=False,
            zero=0,
            recompute="none",
            offload="none",
            schedule="1f1b",
            virtual_stages=None,
            micro_batch_size=1,
            num_microbatches=None,
            overlap_tensor_communication="none",
        )
        config = replace(hardware.config, scheduling_param=asked)
        layout = map_training(replace(hardware, config=config), even)
        hardware.layouts[even] = layout
    return layout


def numbers_of(hardware: Hardware) -> Numbers:
    """Sizes of elements that the software asks for."""
    software = hardware.config.sw_param
    return Numbers(
        software.precision,
        software.cached_bytes,
        software.weight_bytes if software.widens_weights else None,
        software.dispatched_bytes,
        software.kernel_fusion,
    )


def sharded_pass(block: Block, hardware: Hardware, mapping: InferenceMapping) -> Block:
    """One rank's shard of a block of a pass."""
    software, layout = hardware.config.sw_param, mapping.layout
    custom = (
        software.all_reduce_kernel == "custom"
        and hardware.config.execution_backend.model == "analytical"
    )
    shard = shard_block(block, layout, software.precision)
    operators: list[Operator] = []
    for operator in shard.operators:
        if isinstance(operator, Collective):
            if operator.kind == "none":
                continue
            if custom and operator.kind == "all_reduce" and operator.group == "tensor":
                operator = replace(operator, kind="custom_all_reduce")
        operators.append(operator)
        if isinstance(operator, Gemm) and operator.name == "vocabulary_projection":
            logits = operator.m * operator.n * layout.tensor * software.precision
            if layout.tensor > 1:
                operators.append(Collective("logits_gather", "all_gather", "tensor", logits))
    return replace(shard, operators=tuple(operators))
