"""Why a point takes as long as it does, in words and numbers for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deepflow.config.model import (
    CollectiveModel,
    GemmModel,
    LlmModel,
    LstmModel,
    ModelConfig,
    VitModel,
)
from deepflow.cost.gemm import gemm_cost
from deepflow.cost.operators import OperatorCost
from deepflow.explain.runs import gemm_run, recurrent_run, requests_run, training_run
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.parallelism import EMBEDDING, HEAD
from deepflow.prediction import Prediction, analytical, predict, time_by_class
from deepflow.schedule.training import StageResult, TrainingRun
from deepflow.workload.operators import (
    Attention,
    Collective,
    Elementwise,
    Gemm,
    GroupedGemm,
    Operator,
)

if TYPE_CHECKING:
    from deepflow.mapping.kernel import KernelMapping

_CLASS_NAMES = {
    "time_gemm_s": "matrix multiplication",
    "time_attention_s": "attention",
    "time_elementwise_s": "element-wise kernels",
    "time_tensor_communication_s": "tensor (kernel) parallel communication",
    "time_context_communication_s": "context parallel communication",
    "time_expert_communication_s": "expert parallel communication",
    "time_data_communication_s": "data parallel communication (exposed)",
    "time_offload_s": "waiting for the host's memory",
    "time_pipeline_bubble_s": "pipeline bubble",
    "time_optimizer_s": "optimizer",
    "time_launch_s": "kernel launches",
}

_MEMORY_PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "temporary",
    "buffers",
    "allocator",
    "reserved",
)
_HEADER = f"  {'operator':44} {'shape':28} {'each':>10} {'of step':>8} {'rate':>13}  bound by"


def explain(hardware: Hardware, model: ModelConfig, prediction: Prediction | None = None) -> str:
    """Text for one point: where the time goes and what bounds each operator.

    ``prediction``: that of the point, if it has been made already.

    Raises:
        InfeasiblePoint, ConfigError, DeepFlowError: as ``predict``.
    """
    if prediction is None:
        prediction = predict(hardware, model)
    if prediction.backend_used == "analytical":
        hardware = analytical(hardware)
    lines = [f"{model.name} on {hardware.config.name}", ""]
    lines += _machine(hardware)
    if prediction.fallback_reason:
        lines += [f"analytical instead of astra: {prediction.fallback_reason}", ""]
    match model:
        case GemmModel():
            lines += _gemm(hardware, model, prediction)
        case LstmModel():
            lines += _lstm(hardware, model, prediction)
        case LlmModel(run_type="inference"):
            lines += _inference(hardware, model, prediction)
        case LlmModel():
            lines += _training(hardware, model, prediction)
        case VitModel():
            lines += _training(hardware, model.transformer, prediction)
        case CollectiveModel():
            lines += _collective(hardware, model, prediction)
    return "\n".join(lines) + "\n"


def _machine(hardware: Hardware) -> list[str]:
    core = hardware.accelerator.core
    lines = [
        f"device: peak {_si(core.peak_flops)}FLOP/s, usable {_si(core.usable_flops)}FLOP/s",
    ]
    for level in hardware.accelerator.memory:
        ridge = core.usable_flops / level.bandwidth if level.bandwidth else float("inf")
        lines.append(
            f"  {level.name:8} {_binary(level.size):>10}  {_si(level.bandwidth):>8}B/s"
            f"   compute-bound above {ridge:.1f} FLOP/byte"
        )
    faults = hardware.config.network_topology.faults
    links = [f"{first}-{second}" for _, first, second in faults.links()]
    if links:
        left = _percent(faults.bandwidth_factor)
        more = f", {_seconds(faults.extra_latency)} slower" if faults.extra_latency else ""
        lines.append(f"faulty links: {', '.join(links)}, {left} of their bandwidth left{more}")
    return [*lines, ""]


def _gemm(hardware: Hardware, model: GemmModel, prediction: Prediction) -> list[str]:
    run = gemm_run(hardware, model)
    shard = next(item.operator for item in run.compute if isinstance(item.operator, Gemm))
    precision = hardware.config.sw_param.precision
    found = gemm_cost(hardware.accelerator, shard.m, shard.k, shard.n, precision)
    assert prediction.time_s is not None
    lines = [
        f"time {_seconds(prediction.time_s)}"
        f" ({_percent(prediction.model_flops_utilization)} of peak),"
        f" of which launches {_seconds(prediction.time_launch_s or 0.0)}",
    ]
    if run.mapping.num_devices > 1:
        groups = run.mapping.groups
        talking = [group for name, group in groups.items() if name != "pipeline"]
        lines += [_kernel_line(run.mapping), *_groups(talking), ""]
    lines += [
        f"forward multiplication M={shard.m} K={shard.k} N={shard.n}: bound by {found.bound}",
        f"  tile in L2 {_shape(found.l2_tile)}, tile in L1 {_shape(found.l1_tile)},"
        f" loop order {found.order}",
        "",
        "level      bytes       FLOP/byte   time",
    ]
    for level, moved, taken in zip(
        hardware.accelerator.memory, found.bytes_by_level, found.level_times, strict=True
    ):
        lines.append(
            f"{level.name:8} {_si(moved):>9}B {found.flops / moved:>11.1f}   {_seconds(taken)}"
        )
    operators = (*run.compute, *run.reduction, *run.update)
    if len(operators) > 1:
        lines += ["", _HEADER, *_operators(operators, 1 / prediction.time_s)]
    return lines


def _lstm(hardware: Hardware, model: LstmModel, prediction: Prediction) -> list[str]:
    run = recurrent_run(hardware, model)
    stages = len(run.stages)
    lines = [
        *_summary(run.time, prediction),
        f"forward {_seconds(run.forward_time)}, backward with reduction and update"
        f" {_seconds(run.backward_time)}; {_count(run.batch, 'sequence')} on each replica",
        _kernel_line(run.mapping),
        f"recurrent layers on each stage: {', '.join(map(str, run.stage_layers))}",
        "",
        *_shares(run.time, run.stages[run.bottleneck], run.bottleneck, stages),
        *_groups(run.mapping.groups.values()),
    ]
    counts = {
        "embedding": int(run.bottleneck == 0),
        "hidden": run.stage_layers[run.bottleneck],
        "projection": int(run.bottleneck == stages - 1),
        "softmax": int(run.bottleneck == stages - 1),
    }
    for name, costs in run.layers.items():
        count = counts[name]
        if not count:
            continue
        split = run.mapping.splits[name]
        cut = "whole" if split.kind == "none" else f"{split.kind} {split.kp1} x {split.kp2}"
        lines += [
            "",
            f"{name}, {cut}: {count} on this stage, {_count(model.seq_len, 'time step')}",
            _HEADER,
        ]
        runs = count * model.seq_len / run.time
        lines += _operators((*costs.forward, *costs.backward), runs)
        lines += _operators((*costs.reduction, *costs.update), count / run.time)
    return lines + _memory(hardware, run.stages)


def _training(hardware: Hardware, model: LlmModel, prediction: Prediction) -> list[str]:
    run = training_run(hardware, model)
    mapping, stage = run.mapping, run.stages[run.bottleneck]
    asked = mapping.asked
    return [
        *_summary(run.time, prediction),
        f"{_count(mapping.num_devices, 'device')}: tensor {mapping.tensor},"
        f" context {mapping.context}, data {mapping.data}, pipeline {mapping.pipeline},"
        f" expert {mapping.expert}; {mapping.num_microbatches} microbatches of"
        f" {mapping.micro_batch_size} sequences, {asked.schedule}, ZeRO {asked.zero},"
        f" recompute {asked.recompute}",
        "",
        *_shares(run.time, stage, run.bottleneck, mapping.pipeline),
        *_groups(mapping.groups.values()),
        *_segments(run, stage_index=run.bottleneck),
        *_memory(hardware, run.stages),
    ]


def _inference(hardware: Hardware, model: LlmModel, prediction: Prediction) -> list[str]:
    model, run = requests_run(hardware, model)
    layout, memory = run.mapping.layout, run.memory
    status = prediction.status + (f": {prediction.reason}" if prediction.reason else "")
    further = prediction.time_per_output_token_s
    lines = [
        f"{_count(model.global_batch_size, 'request')} at once,"
        f" {model.prompt_tokens} tokens in, {model.output_len} out: {_seconds(run.end_to_end)},"
        f" first token {_seconds(run.first_token)}"
        + ("" if further is None else f", further tokens {_seconds(further)}")
        + f", {_si(prediction.tokens_per_second or 0.0)}tokens/s, status {status}",
        f"{_count(run.devices, 'device')}: tensor {layout.tensor}, context {layout.context},"
        f" data {layout.data}, pipeline {layout.pipeline}, expert {layout.expert}; a replica has"
        f" {_count(run.mapping.sequences, 'sequence')} in {_count(run.mapping.groups, 'group')}",
        "",
        "Where the time of a request goes",
    ]
    times = {name: getattr(prediction, name) or 0.0 for name in _CLASS_NAMES}
    for name, taken in sorted(times.items(), key=lambda item: -item[1]):
        if taken:
            share = _percent(taken / run.end_to_end)
            lines.append(f"  {_CLASS_NAMES[name]:40} {_seconds(taken):>10}  {share:>6}")
    lines += _groups(layout.groups.values())
    counts = Counter(name for part in layout.parts for name in part)
    prompts = run.batches * run.pieces
    pieces = f" in {_count(run.pieces, 'piece')}" if run.pieces > 1 else ""
    for title, passed, times_run in (
        (
            f"prompts, up to {run.batch_prompts} at a time: {run.new_tokens} tokens"
            f" each{pieces}; a pass {_seconds(run.prompt.latency)}",
            run.prompt,
            prompts,
        ),
        (
            f"generation: {run.steps:.4g} steps; a pass {_seconds(run.step.latency)}, the host"
            f" {_seconds(run.host)}",
            run.step,
            run.steps * run.mapping.groups,
        ),
    ):
        lines += ["", title]
        for name, costs in passed.segments.items():
            lines += ["", f"{name}: {counts[name]} times per pass", _HEADER]
            lines += _operators(costs, counts[name] * times_run * run.turns / run.end_to_end)
    lines += ["", "Memory of the fullest device"]
    for title, amount in (
        ("weights", memory.weights),
        ("keys and values", memory.cache),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("buffers", memory.buffers),
        ("allocator", memory.allocator),
        ("reserved", memory.reserved),
    ):
        lines.append(f"  {title:16} {_binary(amount):>10}")
    capacity = hardware.accelerator.memory[-1].size
    lines.append(f"  {'sum':16} {_binary(memory.total):>10} of {_binary(capacity)}")
    return [*lines, f"at most {_count(memory.largest_batch, 'such request')} at once"]


def _collective(hardware: Hardware, model: CollectiveModel, prediction: Prediction) -> list[str]:
    from deepflow.schedule.collective import collective_parts, run_collective

    run = run_collective(hardware, model)
    parts = collective_parts(hardware, model)
    assert prediction.time_s is not None
    calls = f", {model.repeats} times" if model.repeats > 1 else ""
    lines = [
        f"{model.kind} of {_binary(model.message_size)}{calls}: {_seconds(prediction.time_s)},"
        f" algorithm bandwidth {_si(prediction.algorithm_bandwidth or 0.0)}B/s,"
        f" bus bandwidth {_si(prediction.bus_bandwidth or 0.0)}B/s",
        *_groups([run.group]),
        "",
        f"algorithm: {parts.algorithm}"
        + (f", {_count(parts.steps, 'step')}" if parts.steps else ""),
        "Where the time of one goes",
    ]
    whole = prediction.time_s / model.repeats
    for name, taken in (
        ("transfers", parts.bandwidth),
        ("latencies of the steps", parts.latency),
        (parts.rest_is, parts.rest),
        ("copy of a device's own part", parts.copy),
        ("kernel launch", (prediction.time_launch_s or 0.0) / model.repeats),
    ):
        lines.append(f"  {name:40} {_seconds(taken):>10}  {_percent(taken / whole):>6}")
    return lines


def _summary(time: float, prediction: Prediction) -> list[str]:
    return [
        f"step {_seconds(time)}, {_si(prediction.tokens_per_second or 0.0)}tokens/s,"
        f" MFU {_percent(prediction.model_flops_utilization)}, status {prediction.status}"
        + (f": {prediction.reason}" if prediction.reason else "")
    ]


def _shares(time: float, stage: StageResult, number: int, stages: int) -> list[str]:
    lines = [f"Where the step goes (stage {number} of {stages}, the busiest)"]
    for name, taken in sorted(time_by_class(time, stage).items(), key=lambda item: -item[1]):
        share = _percent(taken / time)
        lines.append(f"  {_CLASS_NAMES[name]:40} {_seconds(taken):>10}  {share:>6}")
    return lines


def _groups(groups: Iterable[Group]) -> list[str]:
    lines = [_group_line(group) for group in groups if group.size > 1]
    if not lines:
        return []
    return ["", "Groups (rank order: tensor innermost, then context, data, pipeline)", *lines]


def _memory(hardware: Hardware, stages: Iterable[StageResult]) -> list[str]:
    memory = max((part.memory for part in stages), key=lambda use: use.total)
    lines = ["", "Memory of the fullest device"]
    for part in _MEMORY_PARTS:
        lines.append(f"  {part:12} {_binary(getattr(memory, part)):>10}")
    capacity = hardware.accelerator.memory[-1].size
    lines.append(f"  {'sum':12} {_binary(memory.total):>10} of {_binary(capacity)}")
    return lines


def _kernel_line(mapping: KernelMapping) -> str:
    return (
        f"{_count(mapping.num_devices, 'device')}: kernel {mapping.kernel},"
        f" pipeline {mapping.pipeline},"
        f" data {mapping.data}"
    )


def _segments(run: TrainingRun, stage_index: int) -> list[str]:
    mapping = run.mapping
    counts = Counter(name for part in mapping.parts_of(stage_index) for name in part)
    lines: list[str] = []
    for name, count in counts.items():
        costs = run.segments[name]
        times = f"{count} times " if name not in (EMBEDDING, HEAD) else ""
        lines += [
            "",
            f"{name}: {times}per microbatch, {mapping.num_microbatches} microbatches",
            _HEADER,
        ]
        runs = count * mapping.num_microbatches
        lines += _operators((*costs.forward, *costs.backward), runs / run.time)
        each_pass = mapping.asked.zero >= 2
        lines += _operators(costs.gather, 2 * runs / run.time)
        lines += _operators(costs.gradient, (runs if each_pass else count) / run.time)
    lines += ["", "update: once per step", _HEADER]
    return lines + _operators(run.update_operators, 1 / run.time)


def _operators(costs: Iterable[OperatorCost], runs_per_second: float) -> list[str]:
    lines = []
    for item in costs:
        cost, operator = item.cost, item.operator
        if cost.time <= 0:
            continue
        if isinstance(operator, Collective):
            rate = f"{_si(operator.message_bytes / cost.time)}B/s"
        elif isinstance(operator, Elementwise):
            rate = f"{_si(operator.bytes_moved / cost.time)}B/s"
        else:
            rate = f"{_si(operator.flops / cost.time)}FLOP/s"
        lines.append(
            f"  {operator.name:44} {describe(operator):28} {_seconds(cost.time):>10}"
            f" {_percent(cost.time * runs_per_second):>8} {rate:>13}  {item.bound}"
        )
    return lines


def describe(operator: Operator) -> str:
    match operator:
        case Gemm():
            times = f"{operator.batch} times " if operator.batch > 1 else ""
            return times + _shape((operator.m, operator.k, operator.n))
        case GroupedGemm():
            shape = _shape((round(operator.rows), operator.k, operator.n))
            return f"{shape} over {_count(operator.experts, 'expert')}"
        case Attention():
            heads = f"{operator.heads}/{operator.kv_heads} heads"
            return f"{operator.batch} x {operator.query_len}, {heads} of {operator.head_dim}"
        case Elementwise():
            return f"{_si(operator.bytes_moved)}B{_kernels(operator.kernels)}"
        case Collective():
            return f"{operator.kind} {_si(operator.message_bytes)}B"


def _kernels(number: int) -> str:
    """Without any of its own, a step belongs to another kernel."""
    return f" in {_count(number, 'kernel')}" if number else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _group_line(group: Group) -> str:
    parts = []
    if group.intra_size > 1:
        parts.append(f"{group.intra_size} within a node at {_si(group.intra_bandwidth)}B/s")
    if group.inter_size > 1:
        parts.append(f"{group.inter_size} nodes at {_si(group.inter_bandwidth)}B/s")
    return f"  {group.name:14} {group.size:5} ranks: {', '.join(parts)}"


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in sizes)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _seconds(value: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value * 1e9:.4g} ns"


def _si(value: float) -> str:
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.4g} {prefix}"
    return f"{value:.4g} "


def _binary(value: float) -> str:
    for scale, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.4g} B"
