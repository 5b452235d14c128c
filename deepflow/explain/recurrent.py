"""The time line of a training step of an LSTM: time steps through all stages and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deepflow.config.model import LstmModel
from deepflow.explain.blocks import (
    DATA,
    Block,
    chain_block,
    fitted,
    operator_details,
    summed,
    waiting_block,
)
from deepflow.explain.lanes import DEVICE, Timeline, alike, at_ends, in_turn, put_simulated
from deepflow.explain.runs import recurrent_run
from deepflow.hardware import Hardware
from deepflow.schedule.recurrent import (
    EMBEDDING,
    HIDDEN,
    OUTPUT,
    RecurrentRun,
    after_cells,
    operators_of,
    parts_of,
)
from deepflow.schedule.recurrent import in_turn as served_in_turn

_NAMES = {EMBEDDING: "embedding", HIDDEN: "recurrent layer", OUTPUT: "output"}
_DIRECTIONS = ("forward", "backward")


def recurrent_filler(hardware: Hardware, model: LstmModel) -> Callable[[Timeline], None]:
    """What puts a training step into a time line.

    Raises:
        InfeasiblePoint: as ``run_recurrent``.
    """
    run = recurrent_run(hardware, model)
    blocks = {
        (what, part): chain_block(
            _NAMES[part], operators_of(run.layers, part, what), cost, updates=what == "update"
        )
        for what, of_parts in run.costs.items()
        for part, cost in enumerate(of_parts)
    }
    return lambda found: _fill(found, run, blocks)


def _fill(found: Timeline, run: RecurrentRun, blocks: dict[tuple[str, int], Block]) -> None:
    stages = len(run.stage_layers)
    mapping = run.mapping
    put_simulated(found, run.forward_time + run.backward_time, stages)
    first_layer = 0
    for stage in range(stages):
        parts = parts_of(stage, run.stage_layers)
        layers = run.stage_layers[stage]
        names = [_NAMES[part] for part in parts if part != HIDDEN]
        if layers:
            names.insert(EMBEDDING in parts, f"layers {first_layer} to {first_layer + layers - 1}")
        first_layer += layers
        alone = mapping.num_devices // stages
        found.processes[stage + 1] = f"stage {stage}: {', '.join(names)}; {alike(alone)}"
        for number, direction in enumerate(_DIRECTIONS):
            _put_steps(found, run, blocks, stage, number, direction)
        _put_updates(found, run, blocks, stage)


def _put_steps(
    found: Timeline,
    run: RecurrentRun,
    blocks: dict[tuple[str, int], Block],
    stage: int,
    number: int,
    direction: str,
) -> None:
    parts = parts_of(stage, run.stage_layers)
    labels = _labels(parts)
    if number:
        parts, labels = parts[::-1], labels[::-1]
    children = [
        replace(blocks[direction, part], name=label)
        for part, label in zip(parts, labels, strict=True)
    ]
    block = fitted(direction, children, summed(children))
    began = number * run.forward_time
    ends = run.passes[number][stage].passed_on
    steps = len(ends)
    detail = found.detail
    single = steps if detail.single is None else detail.single
    hop = run.hops[number].time
    other = stage + (-1 if number else 1)
    sends = 0 <= other < len(run.stage_layers) and hop > 0
    arrivals = served_in_turn(ends, hop) if sends else ends
    lane = "to previous stage" if number else "to next stage"
    for first, count in in_turn(steps, single):
        step = steps - 1 - first if number else first
        end = began + float(ends[first + count - 1])
        start = began + float(ends[first]) - block.time
        if count > 1:
            seconds = {name: taken * count for name, taken in block.seconds.items()}
            found.add(
                stage + 1,
                DEVICE,
                f"{count} steps {direction}",
                start,
                end,
                {"aggregated": True, "steps": count},
                seconds,
            )
            continue
        name, details = f"{direction} step {step}", {"step": step, "phase": direction}
        depth = detail.ends if at_ends(first, steps, 1) else detail.middle
        found.put(stage + 1, block, start, depth, end, name, details)
        if sends and detail.beside:
            arrival = began + float(arrivals[first])
            found.add(stage + 1, lane, f"step {step}", arrival - hop, arrival, details)
            of_other = run.passes[number][other].passed_on
            taken = sum(
                run.costs[direction][part].time for part in parts_of(other, run.stage_layers)
            )
            used = began + float(of_other[first]) - taken
            sender, receiver = (stage + 1, lane, arrival - hop), (other + 1, DEVICE, used)
            found.arrow(f"step {step}", sender, receiver)


def _labels(parts: list[int]) -> list[str]:
    """What parts of a stage are called, in the order of the forward pass."""
    labels = []
    layer = 0
    for part in parts:
        labels.append(f"{_NAMES[part]} {layer}" if part == HIDDEN else _NAMES[part])
        layer += part == HIDDEN
    return labels


def _put_updates(
    found: Timeline, run: RecurrentRun, blocks: dict[tuple[str, int], Block], stage: int
) -> None:
    """Reductions and updates after the cells of the last step of a stage."""
    parts = parts_of(stage, run.stage_layers)
    labels = dict(enumerate(_labels(parts)[::-1]))
    parts = parts[::-1]
    durations = [
        run.costs[what][part].time
        for what in ("backward", "reduction", "update")
        for part in range(3)
    ]
    spans: list[tuple[str, int, float, float]] = []
    after_cells(parts, durations, spans)
    last = run.forward_time + float(run.passes[1][stage].passed_on[-1])
    began = last - sum(durations[part] for part in parts)
    now = last
    counts = {"reduction": 0, "update": 0}
    for what, part, start, end in spans:
        label = labels[counts[what]]
        counts[what] += 1
        if end <= start:
            continue
        if what == "reduction":
            chain = operators_of(run.layers, part, what)
            details = operator_details(chain[0]) if len(chain) == 1 else {}
            found.add(
                stage + 1,
                "gradient reduction",
                f"gradient of {label}",
                began + start,
                began + end,
                details,
            )
            continue
        if began + start > now:
            wait = waiting_block("waiting for gradients", DATA, began + start - now)
            found.put(stage + 1, wait, now, 0, began + start)
        block = replace(blocks["update", part], name=f"update of {label}")
        depth = min(1, found.detail.ends)
        found.put(stage + 1, block, began + start, depth, began + end)
        now = began + end
