"""One point: (hardware, model) -> ``Prediction``, a row of documented columns."""

from __future__ import annotations

import math
import warnings
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any

from deepflow.config.loading import DeepFlowWarning
from deepflow.config.model import (
    CollectiveModel,
    GemmModel,
    LlmModel,
    LstmModel,
    ModelConfig,
    VitModel,
)
from deepflow.cost.elementwise import larger, where
from deepflow.cost.memory import MemoryUse
from deepflow.cost.operators import Cost, OperatorCost, total
from deepflow.errors import DeepFlowError, InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import beyond_closed_forms
from deepflow.record import record
from deepflow.schedule.training import StageResult, run_training
from deepflow.workload.transformer import (
    active_parameter_count,
    model_flops_of_request,
    model_flops_per_token,
    parameter_count,
)

if TYPE_CHECKING:
    from deepflow.schedule.gemm import GemmRun


@record(frozen=True)
class Column:
    """What a result column holds: type, SI unit ("" for none) and meaning."""

    dtype: type
    unit: str
    doc: str


def _column(dtype: type, unit: str, doc: str, default: Any = None) -> Any:
    return field(default=default, metadata={"column": Column(dtype, unit, doc)})


@record(frozen=True)
class Prediction:
    """The result of one point. Quantities that a workload does not have are None.

    The columns named ``time_*_s`` are disjoint parts of ``time_s``, seen from a device of the
    pipeline stage that works longest.
    """

    status: str = _column(str, "", "ok, out_of_memory, or infeasible", "ok")
    reason: str = _column(str, "", "why the status is not ok", "")
    time_s: float | None = _column(
        float, "s", "time of one step (or of the GEMM; of inference from request to last token)"
    )
    tokens_per_second: float | None = _column(
        float, "1/s", "tokens of all devices together; of inference those that are generated"
    )
    tokens_per_second_per_device: float | None = _column(float, "1/s", "tokens per device")
    model_flops_utilization: float | None = _column(
        float, "", "FLOP that the model needs (PaLM, appendix B) over what the peak allows"
    )
    flops_per_second_per_device: float | None = _column(
        float, "FLOP/s", "FLOP that the model needs, per device"
    )
    time_to_train_s: float | None = _column(float, "s", "time for model.n_tokens tokens")
    time_to_first_token_s: float | None = _column(
        float, "s", "of inference: from a request to its first token, on average over requests"
    )
    time_per_output_token_s: float | None = _column(
        float, "s", "of inference: average time of further tokens, prompts of others included"
    )
    inter_token_latency_s: float | None = _column(
        float, "s", "of inference: time between tokens while no prompt is processed"
    )
    tokens_per_second_per_sequence: float | None = _column(
        float, "1/s", "of inference: what one user gets, one over time_per_output_token_s"
    )
    requests_per_second: float | None = _column(float, "1/s", "of inference: answers")
    concurrent_requests: int | None = _column(
        int, "", "of inference: worked on at the same time, over all devices"
    )
    time_gemm_s: float | None = _column(float, "s", "matrix multiplications")
    time_attention_s: float | None = _column(float, "s", "fused attention kernels")
    time_elementwise_s: float | None = _column(
        float, "s", "norms, activations, residuals, loss, gradient accumulation"
    )
    time_tensor_communication_s: float | None = _column(
        float, "s", "waiting for the tensor (kernel) parallel group"
    )
    time_context_communication_s: float | None = _column(
        float, "s", "waiting for the context parallel group"
    )
    time_expert_communication_s: float | None = _column(
        float, "s", "waiting for the expert parallel group"
    )
    time_data_communication_s: float | None = _column(
        float, "s", "gradient reduction and weight gathering that no computation hides"
    )
    time_offload_s: float | None = _column(float, "s", "waiting for what the host's memory holds")
    time_pipeline_bubble_s: float | None = _column(
        float, "s", "waiting for other pipeline stages and for transfers from them"
    )
    time_optimizer_s: float | None = _column(float, "s", "gradient norm and parameter update")
    time_collective_s: float | None = _column(
        float, "s", "a collective that is all there is (mode collective), local copies included"
    )
    time_launch_s: float | None = _column(
        float, "s", "kernel launch overhead and waiting for the host"
    )
    algorithm_bandwidth: float | None = _column(
        float, "bytes/s", "of a collective: its full buffer over its time"
    )
    bus_bandwidth: float | None = _column(
        float,
        "bytes/s",
        "the same times the bytes that each device has to send per byte of the buffer",
    )
    model_flops: float | None = _column(float, "FLOP", "needed by the model, all devices")
    executed_flops: float | None = _column(float, "FLOP", "executed on all devices")
    dram_bytes: float | None = _column(float, "bytes", "moved to and from DRAM, all devices")
    l2_bytes: float | None = _column(
        float, "bytes", "moved to and from the last-level cache by GEMMs, all devices"
    )
    intra_node_bytes: float | None = _column(
        float, "bytes", "sent over links within nodes, all devices"
    )
    inter_node_bytes: float | None = _column(
        float, "bytes", "sent over links between nodes, all devices"
    )
    weights_bytes: float | None = _column(float, "bytes", "weights on the fullest device")
    kv_cache_bytes: float | None = _column(
        float, "bytes", "cached keys and values on it, sequences at their full length"
    )
    max_batch_size: int | None = _column(
        int, "", "of inference: sequences of these lengths that all devices together can hold"
    )
    gradients_bytes: float | None = _column(float, "bytes", "gradients on it")
    optimizer_bytes: float | None = _column(float, "bytes", "optimizer states on it")
    activations_bytes: float | None = _column(float, "bytes", "saved activations on it")
    logits_bytes: float | None = _column(float, "bytes", "saved logits on it")
    temporary_bytes: float | None = _column(
        float, "bytes", "gradients and recomputed activations of one layer, or the logits', on it"
    )
    buffers_bytes: float | None = _column(float, "bytes", "communication buffers on it")
    allocator_bytes: float | None = _column(float, "bytes", "held unused by the allocator on it")
    reserved_bytes: float | None = _column(float, "bytes", "driver and libraries on it")
    static_memory_bytes: float | None = _column(
        float, "bytes", "weights, gradients, optimizer states and buffers: what stays between steps"
    )
    peak_memory_bytes: float | None = _column(float, "bytes", "all parts together")
    memory_capacity_bytes: float | None = _column(float, "bytes", "memory of a device")
    fits_in_memory: bool | None = _column(bool, "", "peak_memory_bytes is within the capacity")
    energy_j: float | None = _column(
        float, "J", "dynamic and leakage energy of all devices; empty without energy data"
    )
    energy_per_token_j: float | None = _column(
        float, "J", "of inference: energy_j over the tokens that are generated"
    )
    average_power_w: float | None = _column(float, "W", "energy_j over time_s")
    num_devices: int | None = _column(int, "", "devices")
    tensor_parallel: int | None = _column(int, "", "degree used")
    context_parallel: int | None = _column(int, "", "degree used")
    expert_parallel: int | None = _column(int, "", "degree used")
    pipeline_parallel: int | None = _column(int, "", "degree used")
    data_parallel: int | None = _column(int, "", "degree used")
    num_microbatches: int | None = _column(int, "", "per pipeline and step")
    micro_batch_size: int | None = _column(int, "", "sequences per microbatch")
    parameters: float | None = _column(float, "", "parameters of the model")
    active_parameters: float | None = _column(
        float, "", "parameters that a token passes: of experts, those that it is sent to"
    )
    bound: str | None = _column(
        str, "", "what limits it most: a class of time, or the GEMM's level"
    )
    backend_requested: str = _column(str, "", "backend asked for", "analytical")
    backend_used: str = _column(str, "", "backend that made the numbers", "analytical")
    fallback_reason: str = _column(str, "", "why they differ", "")

    def as_row(self) -> dict[str, Any]:
        """Columns by name, in the order of the class."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS: dict[str, Column] = {item.name: item.metadata["column"] for item in fields(Prediction)}

TIME_COLUMNS = tuple(
    name
    for name in COLUMNS
    if name.startswith("time_")
    and name
    not in ("time_s", "time_to_train_s", "time_to_first_token_s", "time_per_output_token_s")
)
"""Disjoint parts of ``time_s``."""

MEMORY_COLUMNS = (
    "weights_bytes",
    "gradients_bytes",
    "optimizer_bytes",
    "kv_cache_bytes",
    "activations_bytes",
    "logits_bytes",
    "temporary_bytes",
    "buffers_bytes",
    "allocator_bytes",
    "reserved_bytes",
)
"""Disjoint parts of ``peak_memory_bytes``."""


def predict(hardware: Hardware, model: ModelConfig) -> Prediction:
    """Predicts one point.

    With the astra backend, collectives and transfers take the time that a network simulator says,
    each alone, in blocks and pipelines, or all ranks together (``execution_backend.astra.mode``).
    If it has no answer, the analytical model gives one, and the prediction and a DeepFlowWarning
    say why, unless ``execution_backend.astra.fallback`` is "error".

    Raises:
        InfeasiblePoint: the point is well formed but cannot exist.
        DeepFlowError: the hardware cannot run it at all (no bandwidth, no compute), or the
            simulator has no answer and there is no fallback.
    """
    backend = hardware.config.execution_backend
    if backend.model == "analytical":
        return _predict(hardware, model)
    from deepflow.astra.faults import check_links
    from deepflow.astra.runner import AstraSimError
    from deepflow.network.graph import NetworkError

    check_links(hardware.config)
    try:
        result = _predict(hardware, model)
        return replace(result, backend_requested=backend.model, backend_used=backend.model)
    except (NetworkError, AstraSimError) as error:
        if backend.astra.fallback == "error":
            raise
        beyond = beyond_closed_forms(hardware.config.network_topology)
        if beyond:
            raise InfeasiblePoint(f"{error}; closed forms know no {beyond}") from None
        warnings.warn(f"closed forms instead of astra: {error}", DeepFlowWarning, stacklevel=2)
        result = _predict(analytical(hardware), model)
        return replace(result, backend_requested=backend.model, fallback_reason=str(error))


def analytical(hardware: Hardware) -> Hardware:
    """``hardware`` with closed forms for its network, whatever it asks for."""
    changed = replace(hardware.config.execution_backend, model="analytical")
    return replace(hardware, config=replace(hardware.config, execution_backend=changed))


def _predict(hardware: Hardware, model: ModelConfig) -> Prediction:
    match model:
        case LlmModel(run_type="inference"):
            result = _predict_inference(hardware, model)
        case LlmModel():
            result = _predict_training(hardware, model)
        case VitModel():
            result = _predict_training(hardware, model.transformer)
        case LstmModel():
            result = _predict_lstm(hardware, model)
        case GemmModel():
            result = _predict_gemm(hardware, model)
        case CollectiveModel():
            result = _predict_collective(hardware, model)
    for name in ("time_s", *TIME_COLUMNS):
        value = getattr(result, name)
        if value is not None and not math.isfinite(value):
            raise DeepFlowError(f"the prediction is not finite: {name} = {value}")
    return result


def _predict_gemm(hardware: Hardware, model: GemmModel) -> Prediction:
    """One matrix multiplication, and its two gradients if asked for, on one rank or several."""
    from deepflow.schedule.gemm import run_gemm
    from deepflow.schedule.simulated import chain_total, with_time

    run = run_gemm(hardware, model)
    compute = chain_total(run.compute, hardware, run.mapping.groups)
    reduction, update = total(run.reduction), total(run.update)
    if run.simulated_time is not None:
        compute, reduction, update = with_time((compute, reduction, update), run.simulated_time)
    columns = gemm_columns(hardware, model, run, (compute, reduction, update))
    fits, energy = columns["fits_in_memory"], columns["energy_j"]
    if math.isnan(energy):
        columns |= {"energy_j": None, "average_power_w": None}
    capacity = columns["memory_capacity_bytes"]
    operators = (*run.compute, *run.reduction, *run.update)
    launch, time = columns["time_launch_s"], columns["time_s"]
    return Prediction(
        status="ok" if fits else "out_of_memory",
        reason="" if fits else memory_reason(run.footprint, capacity),
        bound="launch" if launch > time / 2 else max(operators, key=_time_of).bound,
        **columns,
    )


def gemm_columns(
    hardware: Hardware, model: GemmModel, run: GemmRun, parts: tuple[Cost, Cost, Cost]
) -> dict[str, Any]:
    """The numbers of a product; ``parts``: passes, reduction and update on one rank.

    Everything may be an array, of many products. Energy that is not known is NaN.
    """
    compute, reduction, update = parts
    cost = compute + reduction + update
    devices = run.mapping.num_devices
    flops = 2.0 * model.M * model.K * model.N * (3 if model.backward else 1) * run.mapping.data
    capacity = hardware.accelerator.memory[-1].size
    energy = _energy(hardware, cost, cost.time) * devices
    return {
        "time_s": cost.time,
        "model_flops_utilization": flops
        / cost.time
        / devices
        / hardware.accelerator.core.peak_flops,
        "flops_per_second_per_device": flops / cost.time / devices,
        "time_gemm_s": cost.gemm,
        "time_tensor_communication_s": compute.communication,
        "time_data_communication_s": compute.data_communication + reduction.waiting,
        "time_optimizer_s": update.elementwise,
        "time_launch_s": cost.launch,
        "model_flops": flops,
        "executed_flops": cost.flops * devices,
        "dram_bytes": cost.dram_bytes * devices,
        "l2_bytes": cost.l2_bytes * devices,
        "intra_node_bytes": cost.intra_node_bytes * devices,
        "inter_node_bytes": cost.inter_node_bytes * devices,
        "peak_memory_bytes": run.footprint,
        "memory_capacity_bytes": capacity,
        "fits_in_memory": run.footprint <= capacity,
        "energy_j": energy,
        "average_power_w": energy / cost.time,
        "num_devices": devices,
        "tensor_parallel": run.mapping.kernel,
        "data_parallel": run.mapping.data,
    }


def _predict_collective(hardware: Hardware, model: CollectiveModel) -> Prediction:
    """One collective over all devices, or several of them one after the other."""
    from deepflow.schedule.collective import run_collective

    run = run_collective(hardware, model)
    cost, devices = run.cost, run.group.size
    senders = 1 if model.kind == "send" else devices
    capacity = hardware.accelerator.memory[-1].size
    fits = run.footprint <= capacity
    # A machine of which some devices do nothing has no energy of its own.
    energy = device_energy(hardware, cost, cost.time) if senders == devices else None
    bandwidth = model.message_size * model.repeats / cost.time
    return Prediction(
        status="ok" if fits else "out_of_memory",
        reason="" if fits else memory_reason(run.footprint, capacity),
        time_s=cost.time,
        time_collective_s=cost.communication,
        time_launch_s=cost.launch,
        algorithm_bandwidth=bandwidth,
        bus_bandwidth=bandwidth * run.bus_factor,
        dram_bytes=cost.dram_bytes * senders,
        intra_node_bytes=cost.intra_node_bytes * senders,
        inter_node_bytes=cost.inter_node_bytes * senders,
        peak_memory_bytes=run.footprint,
        memory_capacity_bytes=capacity,
        fits_in_memory=fits,
        energy_j=None if energy is None else energy * devices,
        average_power_w=None if energy is None else energy * devices / cost.time,
        num_devices=devices,
        bound="launch" if cost.launch > cost.time / 2 else "network",
    )


def _time_of(item: OperatorCost) -> float:
    return item.cost.time


def _predict_training(hardware: Hardware, model: LlmModel) -> Prediction:
    run = run_training(hardware, model)
    mapping = run.mapping
    tokens = model.global_batch_size * model.seq_len
    return Prediction(
        time_to_train_s=None if model.n_tokens is None else model.n_tokens / tokens * run.time,
        num_devices=mapping.num_devices,
        tensor_parallel=mapping.tensor,
        context_parallel=mapping.context,
        expert_parallel=mapping.expert,
        pipeline_parallel=mapping.pipeline,
        data_parallel=mapping.data,
        num_microbatches=mapping.num_microbatches,
        micro_batch_size=mapping.micro_batch_size,
        parameters=parameter_count(model),
        active_parameters=active_parameter_count(model),
        **_step_columns(
            hardware,
            run.time,
            run.stages,
            run.bottleneck,
            mapping.num_devices // mapping.pipeline,
            model_flops_per_token(model) * tokens,
            tokens,
        ),
    )


def _predict_inference(hardware: Hardware, model: LlmModel) -> Prediction:
    """Answers to one prompt of every client; see ``deepflow.schedule.inference``."""
    from deepflow.schedule.inference import run_requests, time_per_output_token

    model, run = run_requests(hardware, model)
    layout, memory, time = run.mapping.layout, run.memory, run.end_to_end
    everything = run.everything
    each = everything * (1 / run.devices)
    times: dict[str, Any] = {
        "time_gemm_s": each.gemm,
        "time_attention_s": each.attention,
        "time_elementwise_s": each.elementwise,
        "time_tensor_communication_s": each.communication,
        "time_context_communication_s": each.context_communication,
        "time_expert_communication_s": each.expert_communication,
        "time_data_communication_s": each.data_communication,
        "time_launch_s": each.launch + run.waited,
    }
    bubble = time - sum(times.values())
    times["time_pipeline_bubble_s"] = bubble if bubble > 1e-12 * time else 0.0
    batch, generated = model.global_batch_size, model.global_batch_size * model.output_len
    # No more requests are answered than arrive.
    period = time if model.request_rate is None else max(time, batch / model.request_rate)
    further = time_per_output_token(run, model)
    capacity = hardware.accelerator.memory[-1].size
    fits = memory.total <= capacity
    energy = device_energy(hardware, each, period)
    joules = None if energy is None else energy * run.devices
    useful = batch * model_flops_of_request(model, run.new_tokens)
    # Parameters do not depend on requests, and are remembered by model.
    counted = replace(model, global_batch_size=1, prompt_len=None, output_len=1)
    return Prediction(
        status="ok" if fits else "out_of_memory",
        reason="" if fits else memory_reason(memory.total, capacity),
        time_s=time,
        time_to_first_token_s=run.first_token,
        time_per_output_token_s=further,
        inter_token_latency_s=None if further is None else run.step_time,
        tokens_per_second=generated / period,
        tokens_per_second_per_device=generated / period / run.devices,
        tokens_per_second_per_sequence=None if further is None else 1 / further,
        requests_per_second=batch / period,
        concurrent_requests=round(batch / run.turns),
        model_flops_utilization=useful
        / (period * run.devices * hardware.accelerator.core.peak_flops),
        flops_per_second_per_device=useful / period / run.devices,
        model_flops=useful,
        executed_flops=everything.flops,
        dram_bytes=everything.dram_bytes,
        l2_bytes=everything.l2_bytes,
        intra_node_bytes=everything.intra_node_bytes,
        inter_node_bytes=everything.inter_node_bytes,
        weights_bytes=memory.weights,
        kv_cache_bytes=memory.cache,
        max_batch_size=memory.largest_batch,
        activations_bytes=memory.activations,
        logits_bytes=memory.logits,
        buffers_bytes=memory.buffers,
        allocator_bytes=memory.allocator,
        reserved_bytes=memory.reserved,
        static_memory_bytes=memory.weights + memory.cache + memory.buffers,
        peak_memory_bytes=memory.total,
        memory_capacity_bytes=capacity,
        fits_in_memory=fits,
        energy_j=joules,
        energy_per_token_j=None if joules is None else joules / generated,
        average_power_w=None if joules is None else joules / period,
        num_devices=run.devices,
        tensor_parallel=layout.tensor,
        context_parallel=layout.context,
        expert_parallel=layout.expert,
        pipeline_parallel=layout.pipeline,
        data_parallel=layout.data,
        num_microbatches=run.mapping.groups,
        micro_batch_size=run.mapping.group_sequences,
        parameters=parameter_count(counted),
        active_parameters=active_parameter_count(counted),
        bound=max(times, key=lambda name: times[name]).removeprefix("time_").removesuffix("_s"),
        **times,
    )


def _predict_lstm(hardware: Hardware, model: LstmModel) -> Prediction:
    from deepflow.schedule.recurrent import run_recurrent
    from deepflow.workload import lstm

    run = run_recurrent(hardware, model)
    mapping = run.mapping
    return Prediction(
        num_devices=mapping.num_devices,
        tensor_parallel=mapping.kernel,
        pipeline_parallel=mapping.pipeline,
        data_parallel=mapping.data,
        parameters=lstm.parameter_count(model),
        **_step_columns(
            hardware,
            run.time,
            run.stages,
            run.bottleneck,
            mapping.kernel * mapping.data,
            lstm.model_flops(model),
            model.batch_size * model.seq_len,
        ),
    )


def _step_columns(
    hardware: Hardware,
    time: float,
    stages: tuple[StageResult, ...],
    bottleneck: int,
    ranks: int,
    model_flops: float,
    tokens: int,
) -> dict[str, Any]:
    """The columns of a training step that do not depend on the kind of model.

    ``ranks``: devices that work on each stage. ``model_flops`` and ``tokens`` per step.
    """
    everything = Cost()
    for part in stages:
        everything += part.compute + part.update + part.gradient + part.sent
    fullest = max((part.memory for part in stages), key=lambda memory: memory.total)
    columns = step_amounts(
        hardware,
        time,
        everything,
        stages[bottleneck],
        fullest,
        len(stages),
        ranks,
        model_flops,
        tokens,
    )
    if math.isnan(columns["energy_j"]):
        columns["energy_j"] = columns["average_power_w"] = None
    fits = columns["fits_in_memory"]
    bound = max(STEP_TIMES, key=columns.__getitem__)
    return {
        "status": "ok" if fits else "out_of_memory",
        "reason": "" if fits else memory_reason(fullest.total, columns["memory_capacity_bytes"]),
        "bound": bound_of(bound),
        **columns,
    }


def bound_of(time_column: str) -> str:
    """What ``Prediction.bound`` calls the class of time of a column."""
    return time_column.removeprefix("time_").removesuffix("_s")


def step_amounts(
    hardware: Hardware,
    time: float,
    everything: Cost,
    bottleneck: StageResult,
    fullest: MemoryUse,
    stages: int,
    ranks: int,
    model_flops: float,
    tokens: int,
) -> dict[str, Any]:
    """The numbers of a training step, in columns; of a batch of points, arrays.

    ``everything``: sum over one device of each of ``stages`` stages; ``ranks``: devices that work
    on each. ``bottleneck``: the stage that works longest, ``fullest``: the one that needs most
    memory. Energy is NaN where the hardware file lacks a figure.
    """
    devices = stages * ranks
    capacity = hardware.accelerator.memory[-1].size
    energy = _energy(hardware, everything, time * stages) * ranks
    everything = everything * ranks
    return {
        "time_s": time,
        "tokens_per_second": tokens / time,
        "tokens_per_second_per_device": tokens / time / devices,
        "model_flops_utilization": model_flops
        / (time * devices * hardware.accelerator.core.peak_flops),
        "flops_per_second_per_device": model_flops / time / devices,
        "model_flops": model_flops,
        "executed_flops": everything.flops,
        "dram_bytes": everything.dram_bytes,
        "l2_bytes": everything.l2_bytes,
        "intra_node_bytes": everything.intra_node_bytes,
        "inter_node_bytes": everything.inter_node_bytes,
        "weights_bytes": fullest.weights,
        "gradients_bytes": fullest.gradients,
        "optimizer_bytes": fullest.optimizer,
        "activations_bytes": fullest.activations,
        "logits_bytes": fullest.logits,
        "buffers_bytes": fullest.buffers,
        "temporary_bytes": fullest.temporary,
        "allocator_bytes": fullest.allocator,
        "reserved_bytes": fullest.reserved,
        "static_memory_bytes": fullest.static,
        "peak_memory_bytes": fullest.total,
        "memory_capacity_bytes": capacity,
        "fits_in_memory": fullest.total <= capacity,
        "energy_j": energy,
        "average_power_w": energy / time,
        **time_by_class(time, bottleneck),
    }


def time_by_class(time: float, stage: StageResult) -> dict[str, float]:
    """Splits a step's ``time``, seen from one stage, into disjoint classes that add up to it.

    The classes are those of ``STEP_TIMES``, in its order. Times may be arrays.
    """
    compute, update = stage.compute, stage.update
    times = {
        "time_gemm_s": compute.gemm,
        "time_attention_s": compute.attention,
        "time_elementwise_s": compute.elementwise,
        "time_tensor_communication_s": compute.communication + update.communication,
        "time_context_communication_s": compute.context_communication,
        "time_expert_communication_s": compute.expert_communication,
        "time_data_communication_s": stage.exposed_gradient_time
        + compute.data_communication
        + update.data_communication,
        "time_offload_s": compute.host_transfer + update.host_transfer,
        "time_optimizer_s": update.elementwise,
        "time_launch_s": compute.launch + update.launch,
    }
    rest = time - sum(times.values())
    waits = [name for name in times if name.endswith("_communication_s")]
    waiting = sum(times[name] for name in waits)
    # A simulation of all ranks waits less than its parts on their own.
    less = (rest < -1e-9 * time) & (waiting > 0)
    share = where(less, larger(0.0, waiting + rest) / where(less, waiting, 1.0), 1.0)
    for name in waits:
        times[name] = times[name] * share
    # Sums in another order differ in the last digit; that is no bubble.
    times["time_pipeline_bubble_s"] = where(rest > 1e-12 * time, rest, 0.0)
    return times


# The classes of time of a training step; of several of the same length the first one bounds it.
STEP_TIMES = (
    "time_gemm_s",
    "time_attention_s",
    "time_elementwise_s",
    "time_tensor_communication_s",
    "time_context_communication_s",
    "time_expert_communication_s",
    "time_data_communication_s",
    "time_offload_s",
    "time_optimizer_s",
    "time_launch_s",
    "time_pipeline_bubble_s",
)


def device_energy(hardware: Hardware, cost: Cost, time: float) -> float | None:
    """Energy of one device in joules: FLOPs, bytes of every link and level, leakage.

    None when the hardware file has no energy for something that is used. Cache and register
    traffic counts for matrix multiplications only.
    """
    energy = _energy(hardware, cost, time)
    return None if math.isnan(energy) else energy


def _energy(hardware: Hardware, cost: Cost, time: float) -> float:
    """``device_energy``, NaN for None; of a batch of points, an array."""
    accelerator = hardware.accelerator
    dram, l2 = accelerator.memory[3], accelerator.memory[2]
    energy = 0.0
    for amount, per_unit in (
        (cost.flops, accelerator.core.energy_per_flop),
        (8 * cost.dram_bytes, dram.dynamic_energy_per_bit),
        (8 * cost.l2_bytes, l2.dynamic_energy_per_bit),
        (8 * cost.intra_node_bytes, accelerator.intra_node.energy_per_bit),
        (8 * cost.inter_node_bytes, accelerator.inter_node.energy_per_bit),
    ):
        if per_unit is None:
            energy = energy + where(amount > 0, math.nan, 0.0)
        else:
            energy = energy + amount * per_unit
    return energy + time * sum(level.static_power for level in accelerator.memory)


def memory_reason(needed: float, capacity: float) -> str:
    return f"needs {needed / 2**30:.1f} GiB of device memory, {capacity / 2**30:.1f} GiB are there"
