"""Parallel degrees, batches and groups of one training run, checked and complete.

Rank order: tensor innermost, then data, then pipeline (Megatron-LM, arXiv 2104.04473, 3), so
that the chattiest dimension stays inside a node.
"""

from __future__ import annotations

from deepflow.config.hardware import PARALLEL_DIMENSIONS, Parallelism, SystemHierarchy
from deepflow.config.model import LlmModel
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group, place_group
from deepflow.record import record
from deepflow.workload.transformer import multiply_accumulates_per_token


@record(frozen=True)
class TrainingMapping:
    """A transformer's training step laid out on a machine.

    ``stage_layers[s]`` layers run on stage ``s``; the first stage also holds the embedding,
    the last one the head. ``pipeline_hop`` is a pair of ranks of neighbouring stages.
    """

    tensor: int
    pipeline: int
    data: int
    num_microbatches: int
    micro_batch_size: int
    schedule: str
    sequence_parallel: bool
    zero: int
    recompute: str
    overlap_gradient_reduction: bool
    gradient_bytes: int
    stage_layers: tuple[int, ...]
    tensor_group: Group
    data_group: Group
    pipeline_hop: Group

    @property
    def num_devices(self) -> int:
        return self.tensor * self.pipeline * self.data


def map_training(hardware: Hardware, model: LlmModel) -> TrainingMapping:
    """Completes and checks degrees and batch sizes.

    Raises:
        InfeasiblePoint: the degrees do not multiply to the devices, something does not divide,
            or a group has no network.
    """
    system = hardware.config.system_hierarchy
    asked = hardware.config.scheduling_param
    tensor = tensor_degree(asked)
    pipeline = asked.pipeline
    devices = system.num_devices_per_node * system.num_nodes
    data = _data_degree(asked, tensor, pipeline, devices, system)
    seen = dict.fromkeys(PARALLEL_DIMENSIONS, hardware)
    if system.layout != "none":
        from deepflow.mapping.layout import Degrees, seen_by_dimension

        seen = seen_by_dimension(hardware, Degrees(tensor, 1, data, pipeline))
    _check_divides("model.num_heads", model.num_heads, "parallelism.tensor", tensor)
    _check_divides("the feed-forward width", model.feed_forward_dim, "parallelism.tensor", tensor)
    if model.kv_heads % tensor and tensor % model.kv_heads:
        raise InfeasiblePoint(
            f"parallelism.tensor {tensor} neither divides nor is a multiple of the"
            f" {model.kv_heads} key/value heads"
        )
    if pipeline > model.num_layers:
        raise InfeasiblePoint(
            f"parallelism.pipeline {pipeline} is more than model.num_layers {model.num_layers}"
        )
    micro_batch_size, num_microbatches = _microbatches(asked, model.global_batch_size, data)
    return TrainingMapping(
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        num_microbatches=num_microbatches,
        micro_batch_size=micro_batch_size,
        schedule=asked.schedule,
        sequence_parallel=asked.sequence_parallel and tensor > 1,
        zero=asked.zero,
        recompute=asked.recompute,
        overlap_gradient_reduction=asked.overlap_gradient_reduction,
        gradient_bytes=asked.gradient_bytes,
        stage_layers=_stage_layers(model, pipeline, asked.stage_balance),
        tensor_group=place_group(seen["kp1"], "tensor", tensor, 1, ("kp1", "kp2")),
        data_group=place_group(seen["dp"], "data", data, tensor, ("dp",)),
        pipeline_hop=place_group(seen["lp"], "pipeline", min(pipeline, 2), tensor * data, ("lp",)),
    )


def tensor_degree(asked: Parallelism) -> int:
    """The tensor parallel degree; files of the original say it as kp1 and kp2."""
    if asked.tensor is not None:
        return asked.tensor
    return (asked.kp1 or 1) * (asked.kp2 or 1)


def _data_degree(
    asked: Parallelism, tensor: int, pipeline: int, devices: int, system: SystemHierarchy
) -> int:
    machine = (
        f"{devices} devices ({system.num_nodes} nodes of {system.num_devices_per_node};"
        " system_hierarchy.num_nodes, num_devices_per_node)"
    )
    if asked.data == "auto":
        if devices % (tensor * pipeline):
            raise InfeasiblePoint(
                f"parallelism.tensor {tensor} x pipeline {pipeline} does not divide the {machine}"
            )
        return devices // (tensor * pipeline)
    data = int(asked.data)
    if tensor * pipeline * data != devices:
        raise InfeasiblePoint(
            f"parallelism.tensor {tensor} x pipeline {pipeline} x data {data} ="
            f" {tensor * pipeline * data}, but the machine has {machine};"
            " data: auto takes what is left"
        )
    return data


def _check_divides(what: str, value: int, by: str, degree: int) -> None:
    if value % degree:
        raise InfeasiblePoint(f"{what} {value} is not divisible by {by} {degree}")


def _microbatches(asked: Parallelism, global_batch_size: int, data: int) -> tuple[int, int]:
    """(micro_batch_size, num_microbatches) with data * both = global_batch_size."""
    size, number = asked.micro_batch_size, asked.num_microbatches
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


def _stage_layers(model: LlmModel, stages: int, balance: str) -> tuple[int, ...]:
    """Layers of each stage, first to last; never none but on the head's stage.

    "flops": the smallest limit on a stage's work, in multiply-accumulates per token, under
    which all layers find a place. The embedding is a lookup and weighs nothing.
    """
    layers = model.num_layers
    last = layers // stages
    if balance == "flops" and stages > 1:
        layer, head = multiply_accumulates_per_token(model)
        limits = sorted(count * layer + rest for count in range(layers + 1) for rest in (0.0, head))
        limit = next(
            limit
            for limit in limits
            if limit >= head
            and (stages - 1) * int(limit // layer) + int((limit - head) // layer) >= layers
        )
        last = min(int((limit - head) // layer), layers - stages + 1)
    if stages == 1:
        return (layers,)
    # The last stage holds the head, so remainders go to the front.
    each, extra = divmod(layers - last, stages - 1)
    return (*(each + (stage < extra) for stage in range(stages - 1)), last)
