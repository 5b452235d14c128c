"""The time line of a predicted point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from deepflow.config.model import (
    CollectiveModel,
    GemmModel,
    LlmModel,
    LstmModel,
    ModelConfig,
    VitModel,
)
from deepflow.cost.operators import total
from deepflow.errors import DeepFlowError
from deepflow.explain.blocks import LAUNCH, Block, Use, chain_block, summed
from deepflow.explain.lanes import (
    DEFAULT_LIMIT,
    DETAILS,
    DEVICE,
    Detail,
    Timeline,
    TooManyEvents,
    alike,
    at_ends,
    in_turn,
)
from deepflow.explain.runs import gemm_run
from deepflow.explain.training import UPDATE, training_filler
from deepflow.hardware import Hardware
from deepflow.prediction import TIME_COLUMNS, Prediction


def timeline(
    hardware: Hardware,
    model: ModelConfig,
    prediction: Prediction,
    limit: int = DEFAULT_LIMIT,
    details: Sequence[Detail] = DETAILS,
) -> Timeline:
    """The time line of a point with at most ``limit`` events, as detailed as that allows.

    ``details`` to try, from fine to coarse.

    ``hardware`` is the one that ``prediction`` was made with in the end: with closed forms for its
    network if it fell back on them.

    Raises:
        InfeasiblePoint, DeepFlowError: as ``predict``; ``limit`` is too low for anything.
    """
    assert prediction.time_s is not None
    fill = _filler(hardware, model, prediction)
    for detail in details:
        found = Timeline(detail, limit, prediction.time_s)
        try:
            found.processes[0] = f"{model.name} on {hardware.config.name}"
            columns = prediction.as_row()
            times = {name: columns[name] for name in TIME_COLUMNS if columns[name]}
            found.add(0, "whole", "predicted time", 0.0, prediction.time_s, {"seconds": times})
            fill(found)
        except TooManyEvents:
            continue
        if detail is not details[0]:
            found.notes.append(
                f"of more than {limit:,} events only some are shown: {detail.text}"
                " (--trace-events allows more)"
            )
        return found
    raise DeepFlowError(
        f"--trace-events {limit} is too few for this point, even for {details[-1].text}"
    )


def _filler(
    hardware: Hardware, model: ModelConfig, prediction: Prediction
) -> Callable[[Timeline], None]:
    """What puts a model's point into a time line; all that is costly is done here, once."""
    match model:
        case LlmModel(run_type="inference"):
            from deepflow.explain.inference import inference_filler

            return inference_filler(hardware, model)
        case LlmModel():
            return training_filler(hardware, model)
        case VitModel():
            return training_filler(hardware, model.transformer)
        case LstmModel():
            from deepflow.explain.recurrent import recurrent_filler

            return recurrent_filler(hardware, model)
        case GemmModel():
            return _gemm_filler(hardware, model)
        case CollectiveModel():
            return _collective_filler(hardware, model, prediction)


def _gemm_filler(hardware: Hardware, model: GemmModel) -> Callable[[Timeline], None]:
    from deepflow.schedule.simulated import chain_total, with_time

    run = gemm_run(hardware, model)
    costs = [chain_total(run.compute, hardware, run.mapping.groups)]
    costs += [total(run.reduction), total(run.update)]
    if run.simulated_time is not None:
        costs = with_time(costs, run.simulated_time)
    blocks = [
        chain_block(name, chain, cost, updates=name == UPDATE)
        for name, chain, cost in zip(
            ("product", "reduction of gradients", UPDATE),
            (run.compute, run.reduction, run.update),
            costs,
            strict=True,
        )
        if chain
    ]

    def fill(found: Timeline) -> None:
        found.processes[1] = f"device; {alike(run.mapping.num_devices)}"
        at = 0.0
        for block in blocks:
            found.put(1, block, at, min(1, found.detail.ends), at + block.time)
            at += block.time

    return fill


def _collective_filler(
    hardware: Hardware, model: CollectiveModel, prediction: Prediction
) -> Callable[[Timeline], None]:
    from deepflow.schedule.collective import collective_parts, run_collective

    run, parts = run_collective(hardware, model), collective_parts(hardware, model)
    assert prediction.time_s is not None
    column = "time_collective_s"
    children = [
        Block("kernel launch", {LAUNCH: (prediction.time_launch_s or 0.0) / model.repeats}),
        Block("latencies of the steps", {column: parts.latency}),
        Block("transfers", {column: parts.bandwidth}),
        Block(parts.rest_is, {column: parts.rest}),
        Block("copy of a device's own part", {column: parts.copy}),
    ]
    children = [child for child in children if child.time > 0]
    each = prediction.time_s / model.repeats
    details = {
        "message_bytes": model.message_size,
        "ranks": run.group.size,
        "algorithm": parts.algorithm,
        **({"steps": parts.steps} if parts.steps else {}),
        "bytes_per_s": model.message_size / each,
    }
    used = sum(child.time for child in children if child.name != "copy of a device's own part")
    link = Use(
        "network",
        model.kind,
        children[0].time if LAUNCH in children[0].seconds else 0.0,
        used,
        details,
    )
    call = Block(model.kind, summed(children), details, tuple(children), (link,))

    def fill(found: Timeline) -> None:
        found.processes[1] = f"device; {alike(run.group.size)}"
        single = model.repeats if found.detail.single is None else found.detail.single
        for first, count in in_turn(model.repeats, single):
            at = first * each
            if count == 1:
                depth = (
                    found.detail.ends if at_ends(first, model.repeats, 1) else (found.detail.middle)
                )
                found.put(1, replace(call, name=f"{model.kind} {first}"), at, depth, at + each)
            else:
                seconds = {name: taken * count for name, taken in call.seconds.items()}
                found.add(
                    1,
                    DEVICE,
                    f"{count} times {model.kind}",
                    at,
                    at + count * each,
                    details,
                    seconds,
                )

    return fill
