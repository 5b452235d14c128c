"""A training step put together: blocks, their costs, the schedule's times, memory per stage.

``run_training`` does what a prediction needs once; ``deepflow.prediction`` sums it up in columns
and ``deepflow.explain`` shows it in words.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepflow.config.model import LlmModel
from deepflow.cost.memory import MemoryUse, stage_memory, stage_parameters
from deepflow.cost.operators import Cost, OperatorCost, block_cost, operator_cost, total
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.parallelism import TrainingMapping, map_training
from deepflow.mapping.training import TrainingStep, training_step, update_block
from deepflow.record import record
from deepflow.schedule import pipeline
from deepflow.schedule.pipeline import PipelineGraph, pipeline_graph, stage_kind
from deepflow.workload.operators import Collective

SEGMENTS = ("embedding", "layer", "head")


@record(frozen=True)
class SegmentCosts:
    """Costs of one embedding, layer or head on one rank, per operator and in sum."""

    forward: tuple[OperatorCost, ...]
    backward: tuple[OperatorCost, ...]
    gradient: tuple[OperatorCost, ...]
    forward_total: Cost
    backward_total: Cost
    gradient_total: Cost


@record(frozen=True)
class StageResult:
    """One pipeline stage on one device, over the whole step.

    ``compute``: all forward and backward passes; ``update``: optimizer and parameter gather;
    ``gradient``: reductions over the data group, ``exposed_gradient_time`` the part of their
    time after the last backward pass.
    """

    parameters: float
    compute: Cost
    update: Cost
    gradient: Cost
    sent: Cost
    exposed_gradient_time: float
    memory: MemoryUse


@record(frozen=True)
class TrainingRun:
    """Everything known about one training step. ``time`` in seconds."""

    mapping: TrainingMapping
    step: TrainingStep
    segments: dict[str, SegmentCosts]
    update_operators: tuple[OperatorCost, ...]
    stages: tuple[StageResult, ...]
    graph: PipelineGraph
    durations: tuple[float, ...]
    ends: tuple[float, ...]
    time: float

    @property
    def bottleneck(self) -> int:
        """The stage whose device works longest."""
        return busiest(self.stages)


def busiest(stages: Sequence[StageResult]) -> int:
    """Number of the stage whose device works longest."""
    return max(range(len(stages)), key=lambda stage: stages[stage].compute.time)


def run_training(hardware: Hardware, model: LlmModel) -> TrainingRun:
    """Costs and schedules one training step.

    Raises:
        InfeasiblePoint: degrees, batch sizes or networks do not fit together.
    """
    mapping = map_training(hardware, model)
    step = training_step(hardware, model, mapping)
    groups = {
        "tensor": mapping.tensor_group,
        "data": mapping.data_group,
        "pipeline": mapping.pipeline_hop,
    }
    segments = {name: _segment_costs(name, step, hardware, groups) for name in SEGMENTS}
    hop = operator_cost(step.hop, hardware, groups).cost
    tied = model.tie_embeddings
    graph = pipeline_graph(
        mapping.schedule,
        mapping.stage_layers,
        mapping.num_microbatches,
        mapping.data > 1,
        mapping.overlap_gradient_reduction,
        tied,
    )
    parameters = [
        stage_parameters(
            mapping, stage, step.embedding.forward, step.layer.forward, step.head.forward, tied
        )
        for stage in range(mapping.pipeline)
    ]
    updates = {
        count: block_cost(update_block(hardware, mapping, count), hardware, groups)
        for count in set(parameters)
    }
    durations = [0.0] * stage_kind(mapping.pipeline, 0)
    durations[pipeline.LAYER_BACKWARD] = segments["layer"].backward_total.time
    durations[pipeline.HEAD_BACKWARD] = segments["head"].backward_total.time
    durations[pipeline.EMBEDDING_BACKWARD] = segments["embedding"].backward_total.time
    durations[pipeline.LAYER_GRADIENT] = segments["layer"].gradient_total.time
    durations[pipeline.EMBEDDING_GRADIENT] = segments["embedding"].gradient_total.time
    # One stage with a tied matrix has one gradient for lookup and projection.
    if not (tied and mapping.pipeline == 1):
        durations[pipeline.HEAD_GRADIENT] = segments["head"].gradient_total.time
    if tied and mapping.pipeline > 1:
        durations[pipeline.TIED_GRADIENT] = _tied_reduction(hardware, step, mapping).time
    once: list[tuple[Cost, Cost]] = []
    for stage in range(mapping.pipeline):
        forward, backward = _stage_pass(segments, mapping, stage)
        once.append((forward, backward))
        durations[stage_kind(stage, pipeline.FORWARD)] = forward.time
        durations[stage_kind(stage, pipeline.BACKWARD)] = backward.time
        durations[stage_kind(stage, pipeline.UPDATE)] = total(updates[parameters[stage]]).time
    ends = graph.graph.execute(durations, (0.0, hop.time))
    stages = []
    for stage in range(mapping.pipeline):
        forward, backward = once[stage]
        stages.append(
            StageResult(
                parameters[stage],
                (forward + backward) * mapping.num_microbatches,
                total(updates[parameters[stage]]),
                _stage_gradient(segments, mapping, stage, tied),
                hop * (mapping.num_microbatches * _neighbours(mapping, stage)),
                max(0.0, ends[graph.last_gradient[stage]] - ends[graph.last_backward[stage]]),
                stage_memory(
                    mapping,
                    stage,
                    parameters[stage],
                    step.layer.forward,
                    step.head.forward,
                    step.boundary_bytes,
                    hardware.config.sw_param.precision,
                    hardware.config.sw_param.reserved_memory,
                ),
            )
        )
    return TrainingRun(
        mapping,
        step,
        segments,
        updates[parameters[0]],
        tuple(stages),
        graph,
        tuple(durations),
        tuple(ends),
        max(ends[task] for task in graph.update),
    )


def _segment_costs(
    name: str, step: TrainingStep, hardware: Hardware, groups: dict[str, Group]
) -> SegmentCosts:
    segment = getattr(step, name)
    forward = block_cost(segment.forward, hardware, groups)
    backward = block_cost(segment.backward, hardware, groups)
    gradient = block_cost(segment.gradient, hardware, groups)
    host = hardware.config.sw_param.host_time_per_kernel
    return SegmentCosts(
        forward, backward, gradient, total(forward, host), total(backward, host), total(gradient)
    )


def _stage_pass(
    segments: dict[str, SegmentCosts], mapping: TrainingMapping, stage: int
) -> tuple[Cost, Cost]:
    """Forward and backward cost of one microbatch on ``stage``."""
    layers = mapping.stage_layers[stage]
    forward = segments["layer"].forward_total * layers
    backward = segments["layer"].backward_total * layers
    for name, here in (("embedding", 0), ("head", mapping.pipeline - 1)):
        if stage == here:
            forward += segments[name].forward_total
            backward += segments[name].backward_total
    return forward, backward


def _stage_gradient(
    segments: dict[str, SegmentCosts], mapping: TrainingMapping, stage: int, tied: bool
) -> Cost:
    gradient = segments["layer"].gradient_total * mapping.stage_layers[stage]
    if stage == 0:
        gradient += segments["embedding"].gradient_total
    if stage == mapping.pipeline - 1 and not (tied and mapping.pipeline == 1):
        gradient += segments["head"].gradient_total
    return gradient


def _tied_reduction(hardware: Hardware, step: TrainingStep, mapping: TrainingMapping) -> Cost:
    """First and last stage add up the gradients of the embedding matrix that they share."""
    reduction = Collective(
        "tied_embedding_reduction",
        "all_reduce",
        "pipeline",
        step.embedding.forward.parameters * mapping.gradient_bytes,
    )
    return operator_cost(reduction, hardware, {"pipeline": mapping.pipeline_hop}).cost


def _neighbours(mapping: TrainingMapping, stage: int) -> int:
    """Transfers that a stage sends per microbatch: onward forward, back backward."""
    return (stage < mapping.pipeline - 1) + (stage > 0)
