"""The task graph of a pipelined training step.

One compute stream and one gradient-network stream per stage. A stage's microbatches run in
the order of the schedule: GPipe (arXiv 1811.06965) all forward passes, then all backward
passes in reverse; 1F1B (PipeDream-Flush, arXiv 2104.04473, 2.2.1) as many forward passes as
there are stages behind, then one backward after each forward. The last backward pass is split
into layers, so that their gradients can be reduced beside it. Gradients of all stages meet in
the norm before any stage updates its parameters.
"""

from __future__ import annotations

from functools import lru_cache

from deepflow.record import record
from deepflow.schedule.streams import CompiledGraph, StreamGraph

# Kinds of tasks shared by all stages; the others are numbered by ``stage_kind``.
NO_TIME = 0
LAYER_BACKWARD, HEAD_BACKWARD, EMBEDDING_BACKWARD = 1, 2, 3
LAYER_GRADIENT, HEAD_GRADIENT, EMBEDDING_GRADIENT, TIED_GRADIENT = 4, 5, 6, 7
_SHARED_KINDS = 8
FORWARD, BACKWARD, UPDATE = 0, 1, 2
_STAGE_KINDS = 3

NO_DELAY, HOP = 0, 1


def stage_kind(stage: int, what: int) -> int:
    """Index into the durations for FORWARD, BACKWARD or UPDATE of ``stage``."""
    return _SHARED_KINDS + _STAGE_KINDS * stage + what


@record(frozen=True)
class PipelineGraph:
    """The compiled graph and the tasks that results ask about, per stage."""

    graph: CompiledGraph
    last_backward: tuple[int, ...]
    last_gradient: tuple[int, ...]
    gradients_ready: int
    update: tuple[int, ...]


def microbatch_order(
    schedule: str, stages: int, stage: int, microbatches: int
) -> list[tuple[bool, int]]:
    """Passes of one stage in order, as (is_forward, microbatch)."""
    if schedule == "gpipe":
        forward = [(True, index) for index in range(microbatches)]
        return forward + [(False, index) for index in reversed(range(microbatches))]
    warm_up = min(microbatches, stages - stage - 1)
    order = [(True, index) for index in range(warm_up)]
    for index in range(microbatches - warm_up):
        order += [(True, warm_up + index), (False, index)]
    return order + [(False, index) for index in range(microbatches - warm_up, microbatches)]


@lru_cache(maxsize=256)
def pipeline_graph(
    schedule: str,
    stage_layers: tuple[int, ...],
    microbatches: int,
    reduces_gradients: bool,
    overlaps: bool,
    tied: bool,
) -> PipelineGraph:
    """The graph of one training step of every stage of one pipeline.

    ``reduces_gradients``: there is a data group; ``overlaps``: its traffic runs beside the
    last backward pass; ``tied``: first and last stage share the embedding matrix and add up
    its gradients.
    """
    graph = StreamGraph()
    stages = len(stage_layers)
    forward = [[-1] * microbatches for _ in range(stages)]
    backward = [[-1] * microbatches for _ in range(stages)]
    # A task's number is the length of the list when it is added: number them stage by stage,
    # so that a dependency on a later stage is known before that stage is built.
    numbers = 0
    for stage in range(stages):
        order = microbatch_order(schedule, stages, stage, microbatches)
        for position, (is_forward, index) in enumerate(order):
            if is_forward:
                forward[stage][index] = numbers
            elif position < len(order) - 1:
                backward[stage][index] = numbers
            else:
                numbers += len(_split(stage, stages, stage_layers[stage])) - 1
                backward[stage][index] = numbers
            numbers += 1
    split_tasks: list[list[tuple[int, int]]] = []
    for stage in range(stages):
        order = microbatch_order(schedule, stages, stage, microbatches)
        for is_forward, index in order[:-1]:
            if is_forward:
                waits = [(forward[stage - 1][index], HOP)] if stage else []
                graph.add(("forward", stage, index), stage, stage_kind(stage, FORWARD), waits)
            else:
                waits = [(backward[stage + 1][index], HOP)] if stage < stages - 1 else []
                graph.add(("backward", stage, index), stage, stage_kind(stage, BACKWARD), waits)
        index = order[-1][1]
        waits = [(backward[stage + 1][index], HOP)] if stage < stages - 1 else []
        parts = []
        for kind in _split(stage, stages, stage_layers[stage]):
            parts.append((graph.add(("backward", stage, index), stage, kind, waits), kind))
            waits = []
        split_tasks.append(parts)
    last_backward = tuple(parts[-1][0] for parts in split_tasks)
    last_gradient = list(last_backward)
    gradient_of = {
        LAYER_BACKWARD: LAYER_GRADIENT,
        HEAD_BACKWARD: HEAD_GRADIENT,
        EMBEDDING_BACKWARD: EMBEDDING_GRADIENT,
    }
    if reduces_gradients:
        for stage, parts in enumerate(split_tasks):
            for task, kind in parts:
                after = task if overlaps else last_backward[stage]
                last_gradient[stage] = graph.add(
                    ("gradient_reduction", stage, -1),
                    stages + stage,
                    gradient_of[kind],
                    [(after, NO_DELAY)],
                )
    everything = [(task, NO_DELAY) for task in last_gradient]
    if tied and stages > 1:
        shared = graph.add(("tied_gradient_reduction", 0, -1), stages, TIED_GRADIENT, everything)
        last_gradient[0] = shared
        everything = [(shared, NO_DELAY)]
    ready = graph.add(("gradient_norm", -1, -1), 2 * stages, NO_TIME, everything)
    update = tuple(
        graph.add(("update", stage, -1), stage, stage_kind(stage, UPDATE), [(ready, NO_DELAY)])
        for stage in range(stages)
    )
    return PipelineGraph(graph.compile(), last_backward, tuple(last_gradient), ready, update)


def _split(stage: int, stages: int, layers: int) -> list[int]:
    """Kinds of the tasks that make up a stage's last backward pass, in order."""
    return (
        ([HEAD_BACKWARD] if stage == stages - 1 else [])
        + [LAYER_BACKWARD] * layers
        + ([EMBEDDING_BACKWARD] if stage == 0 else [])
    )
