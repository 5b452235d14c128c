"""Parallel degrees, batches and groups of one training run, checked and complete.

Rank order: tensor innermost, then context, then data, then pipeline (Megatron-LM, arXiv
2104.04473, 3), so that the chattiest dimension stays inside a node. Experts are spread over
neighbouring ranks of the context and data dimensions taken together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

from deepflow.config.hardware import PARALLEL_DIMENSIONS, Parallelism, SystemHierarchy
from deepflow.config.model import LlmModel
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group, SharedRows, place_group
from deepflow.record import record
from deepflow.workload.transformer import (
    layer_kinds,
    multiply_accumulates_per_token,
    segment_work,
)

EMBEDDING, HEAD = "embedding", "head"
# Added to the kind of a layer whose activations are computed again.
RECOMPUTED = ", recomputed"


@record(frozen=True)
class TrainingMapping:
    """A transformer's training step laid out on a machine.

    ``parts[p]`` are the segments of the p-th part of the model in order, by name: the embedding,
    layers by kind, the head. Part p runs on pipeline stage ``p % pipeline``; a stage has
    ``virtual_stages`` parts. ``groups`` by name: tensor; context; data, over which gradients of
    all but experts are added up (it spans the context dimension too); expert; expert_data, over
    which those of experts are; pipeline, a pair of neighbouring stages; embedding, the first and
    the last one.
    """

    tensor: int
    context: int
    expert: int
    data: int
    pipeline: int
    virtual_stages: int
    num_microbatches: int
    micro_batch_size: int
    parts: tuple[tuple[str, ...], ...]
    groups: dict[str, Group]
    asked: Parallelism

    @property
    def num_devices(self) -> int:
        """Devices of all dimensions; those of experts are among them."""
        return self.tensor * self.context * self.pipeline * self.data

    @property
    def sequence_parallel(self) -> bool:
        """Whether norms and residuals are cut by token; one rank has nothing to cut."""
        return self.asked.sequence_parallel and self.tensor > 1

    @property
    def gradient_ranks(self) -> int:
        """Devices over which gradients (all but those of experts) are added up."""
        return self.groups["data"].size

    def parts_of(self, stage: int) -> tuple[tuple[str, ...], ...]:
        """The parts that ``stage`` holds, first to last."""
        return self.parts[stage :: self.pipeline]


def map_training(hardware: Hardware, model: LlmModel) -> TrainingMapping:
    """Completes and checks degrees and batch sizes.

    Raises:
        InfeasiblePoint: the degrees do not multiply to the devices, something does not divide,
            or a group has no network.
    """
    asked = hardware.config.scheduling_param
    data = data_degree(hardware, model)
    micro_batch_size, num_microbatches = batch_split(
        asked.micro_batch_size, asked.num_microbatches, model.global_batch_size, data
    )
    virtual_stages = parts_per_stage(
        asked.schedule, asked.virtual_stages, asked.pipeline, num_microbatches
    )
    return TrainingMapping(
        tensor=tensor_degree(asked),
        context=asked.context,
        expert=asked.expert,
        data=data,
        pipeline=asked.pipeline,
        virtual_stages=virtual_stages,
        num_microbatches=num_microbatches,
        micro_batch_size=micro_batch_size,
        parts=model_parts(model, asked.pipeline * virtual_stages, asked),
        groups=training_groups(hardware, model, data),
        asked=asked,
    )


def data_degree(hardware: Hardware, model: LlmModel) -> int:
    """The data parallel degree, whatever the batch.

    Raises:
        InfeasiblePoint: the degrees do not multiply to the devices, or do not divide the model.
    """
    system, asked = hardware.config.system_hierarchy, hardware.config.scheduling_param
    tensor, context, expert = tensor_degree(asked), asked.context, asked.expert
    data = _data_degree(asked, tensor, system)
    if system.layout != "none" and (context > 1 or expert > 1):
        raise InfeasiblePoint(
            "system_hierarchy.layout places tensor, data and pipeline dimensions only;"
            f" parallelism.context is {context}, parallelism.expert {expert}"
        )
    _check_shapes(model, tensor, context, expert, data)
    return data


def training_groups(hardware: Hardware, model: LlmModel, data: int) -> dict[str, Group]:
    """Groups by name, as in ``TrainingMapping``, with so many replicas.

    Raises:
        InfeasiblePoint: a group has no network, or no place in the layout.
    """
    system, asked = hardware.config.system_hierarchy, hardware.config.scheduling_param
    tensor, context, expert = tensor_degree(asked), asked.context, asked.expert
    pipeline = asked.pipeline
    seen = dict.fromkeys(PARALLEL_DIMENSIONS, hardware)
    if system.layout != "none":
        from deepflow.mapping.layout import Degrees, seen_by_dimension

        seen = seen_by_dimension(hardware, Degrees(tensor, 1, data, pipeline))
    replicas, per_node = context * data, system.num_devices_per_node
    stage = tensor * replicas
    # The slowest hop sets the pace: one between nodes, if the stages are on several.
    between_stages = stage if stage * pipeline <= per_node else max(stage, per_node)
    between_ends = stage if system.num_nodes == 1 else per_node
    return {
        "tensor": place_group(seen["kp1"], "tensor", tensor, 1, ("kp1", "kp2")),
        "context": place_group(hardware, "context", context, tensor, ()),
        "data": place_group(seen["dp"], "data", replicas, tensor, ("dp",)),
        "expert": _expert_group(hardware, model, expert, tensor),
        "expert_data": place_group(
            seen["dp"], "expert_data", replicas // expert, tensor * expert, ("dp",)
        ),
        "pipeline": place_group(seen["lp"], "pipeline", min(pipeline, 2), between_stages, ("lp",)),
        "embedding": place_group(seen["lp"], "embedding", min(pipeline, 2), between_ends, ("lp",)),
    }


def _expert_group(hardware: Hardware, model: LlmModel, expert: int, tensor: int) -> Group:
    """The devices that share a layer's experts, and how often a token's row is sent among them."""
    group = place_group(hardware, "expert", expert, tensor, ())
    if expert == 1 or hardware.config.scheduling_param.expert_dispatch == "per_expert":
        return group
    chosen = model.experts_per_token
    shared = SharedRows(
        _places_per_token(model, group.inter_size) / chosen,
        _places_per_token(model, expert) / chosen,
    )
    return replace(group, shared_rows=shared)


def _places_per_token(model: LlmModel, places: int) -> float:
    """Mean number of ``places`` with at least one of a token's experts.

    Experts stand in order, equally many in each place. All choices are equally likely: first of
    groups, then of the experts in them. Groups that would begin or end inside a place count as
    none, which is an upper bound.
    """
    assert model.num_experts is not None
    groups, chosen = model.expert_groups, model.groups_per_token
    if groups % places and places % groups:
        groups = chosen = 1
    of_group = model.num_experts / groups
    here = max(1, groups // places)  # Groups with experts in one place.
    per_group = min(of_group, model.num_experts / places)
    missed, reachable = 0.0, chosen * of_group
    for hit in range(min(here, chosen) + 1):
        likely = comb(here, hit) * comb(groups - here, chosen - hit) / comb(groups, chosen)
        elsewhere = reachable - hit * per_group
        for drawn in range(model.experts_per_token):
            likely *= max(0.0, elsewhere - drawn) / (reachable - drawn)
        missed += likely
    return places * (1 - missed)


def _check_shapes(model: LlmModel, tensor: int, context: int, expert: int, data: int) -> None:
    for what, value in (
        ("model.num_heads", model.num_heads),
        ("the feed-forward width", model.feed_forward_dim),
        ("the width of an expert", model.expert_width if model.num_experts else 0),
        ("the width of shared experts", model.shared_expert_width),
    ):
        _check_divides(what, value, "parallelism.tensor", tensor)
    if model.kv_heads % tensor and tensor % model.kv_heads:
        raise InfeasiblePoint(
            f"parallelism.tensor {tensor} neither divides nor is a multiple of the"
            f" {model.kv_heads} key/value heads"
        )
    _check_divides("model.seq_len", model.seq_len, "parallelism.context", context)
    if expert > 1:
        if model.num_experts is None:
            raise InfeasiblePoint(
                f"parallelism.expert is {expert}, but the model has no experts (model.num_experts)"
            )
        _check_divides("model.num_experts", model.num_experts, "parallelism.expert", expert)
        _check_divides(
            f"parallelism.data {data} x context {context} =",
            data * context,
            "parallelism.expert",
            expert,
        )


def parts_per_stage(
    schedule: str, virtual_stages: int | None, pipeline: int, num_microbatches: int
) -> int:
    """Parts of the model on a stage; InfeasiblePoint if the schedule has no such number."""
    if schedule != "interleaved":
        if virtual_stages not in (None, 1):
            raise InfeasiblePoint(
                f"parallelism.virtual_stages is {virtual_stages}, but only the schedule"
                f" interleaved has any; parallelism.schedule is {schedule}"
            )
        return 1
    if pipeline == 1:
        raise InfeasiblePoint(
            "the schedule interleaved needs several stages; parallelism.pipeline is 1"
        )
    _check_divides(
        "for the schedule interleaved, the number of microbatches",
        num_microbatches,
        "parallelism.pipeline",
        pipeline,
    )
    return virtual_stages or 2


def tensor_degree(asked: Parallelism) -> int:
    """The tensor parallel degree; files of the original say it as kp1 and kp2."""
    if asked.tensor is not None:
        return asked.tensor
    return (asked.kp1 or 1) * (asked.kp2 or 1)


def _data_degree(asked: Parallelism, tensor: int, system: SystemHierarchy) -> int:
    devices = system.num_devices_per_node * system.num_nodes
    machine = (
        f"{devices} devices ({system.num_nodes} nodes of {system.num_devices_per_node};"
        " system_hierarchy.num_nodes, num_devices_per_node)"
    )
    taken = tensor * asked.context * asked.pipeline
    context = f" x context {asked.context}" if asked.context > 1 else ""
    degrees = f"parallelism.tensor {tensor}{context} x pipeline {asked.pipeline}"
    if asked.data == "auto":
        if devices % taken:
            raise InfeasiblePoint(f"{degrees} does not divide the {machine}")
        return devices // taken
    data = int(asked.data)
    if taken * data != devices:
        raise InfeasiblePoint(
            f"{degrees} x data {data} = {taken * data}, but the machine has {machine};"
            " data: auto takes what is left"
        )
    return data


def _check_divides(what: str, value: int, by: str, degree: int) -> None:
    if value % degree:
        raise InfeasiblePoint(f"{what} {value} is not divisible by {by} {degree}")


def batch_split(
    size: int | None, number: int | None, global_batch_size: int, data: int
) -> tuple[int, int]:
    """(micro_batch_size, num_microbatches) with data * both = global_batch_size.

    ``size`` and ``number``: what is asked for. Raises InfeasiblePoint if there are none.
    """
    if size is None:
        size, left = divmod(global_batch_size, data * number) if number is not None else (1, 0)
        if left or not size:
            raise InfeasiblePoint(
                f"model.global_batch_size {global_batch_size} is not divisible by data parallel"
                f" degree {data} x parallelism.num_microbatches {number}"
            )
    needed, left = divmod(global_batch_size, data * size)
    if left or not needed:
        raise InfeasiblePoint(
            f"model.global_batch_size {global_batch_size} is not divisible by data parallel"
            f" degree {data} x parallelism.micro_batch_size {size}"
        )
    if number is not None and number != needed:
        raise InfeasiblePoint(
            f"parallelism.num_microbatches {number} x micro_batch_size {size} x data parallel"
            f" degree {data} is not model.global_batch_size {global_batch_size}"
        )
    return size, needed


def model_parts(model: LlmModel, number: int, asked: Parallelism) -> tuple[tuple[str, ...], ...]:
    """The segments of every part of the model, first to last."""
    kinds = layer_kinds(model)
    limit = model.num_layers if asked.recompute_layers is None else asked.recompute_layers
    if asked.stage_balance == "cumulative":
        counts, head_part = _cut_by_weights(model, number)
    else:
        counts, head_part = _layers_per_part(model, number, asked.stage_balance), number - 1
    parts, first = [], 0
    for part, count in enumerate(counts):
        layers = [
            kind + (RECOMPUTED if asked.recompute == "full" and index < limit else "")
            for index, kind in enumerate(kinds[first : first + count])
        ]
        first += count
        parts.append(
            (
                *((EMBEDDING,) if part == 0 else ()),
                *layers,
                *((HEAD,) if part == head_part else ()),
            )
        )
    return tuple(parts)


def _cut_by_weights(model: LlmModel, parts: int) -> tuple[Sequence[int], int]:
    """Layers of each part, and the part of the head: cut where a part's share is reached.

    A part ends with the layer with which products with weights so far reach its equal share of all;
    none ends before it has a layer, so with more parts than layers the last ones stay empty.
    """
    work = segment_work(model, attention=False)
    layers = [work[kind] for kind in layer_kinds(model)]
    total = sum(layers) + work[HEAD]
    counts, part, so_far = [0] * parts, 0, 0.0
    for layer in layers:
        counts[part] += 1
        so_far += layer
        if so_far >= total * (part + 1) / parts * (1 - 1e-12):
            part = min(part + 1, parts - 1)
    return counts, part


def _layers_per_part(model: LlmModel, parts: int, balance: str) -> Sequence[int]:
    """Layers of each part, first to last; the last one also holds the head.

    "layers": as equal as can be. "flops": the smallest limit on a part's work, in
    multiply-accumulates per token, under which all layers find a place; the embedding is a lookup
    and weighs nothing.
    """
    layers = model.num_layers
    if parts > layers:
        raise InfeasiblePoint(
            f"{parts} pipeline stages, virtual ones included, are more than"
            f" model.num_layers {layers}"
        )
    if parts == 1:
        return (layers,)
    last = layers // parts
    if balance == "flops":
        layer, head = multiply_accumulates_per_token(model)
        limits = sorted(count * layer + rest for count in range(layers + 1) for rest in (0.0, head))
        limit = next(
            limit
            for limit in limits
            if limit >= head
            and (parts - 1) * int(limit // layer) + int((limit - head) // layer) >= layers
        )
        last = min(int((limit - head) // layer), layers - parts + 1)
    # The last part holds the head, so remainders go to the front.
    each, extra = divmod(layers - last, parts - 1)
    return (*(each + (part < extra) for part in range(parts - 1)), last)
