"""A training step of an LSTM put together: costs per layer, the event graph, memory per stage.

Layers and time steps form a grid. Forward, a cell waits for the layer below at the same step
and for its own layer at the step before; backward is the mirror image, and starts when the
forward pass has ended. Each pipeline stage is one device; transfers between stages take turns
on one link each, and the reductions of a stage's weight gradients on its link to the replicas.

A device takes a step through all that it holds before it begins the next, and updates weights
when it is through with all steps. That never leaves it idle with a cell to work on, and hands
each step on as soon as can be. It also fixes the order of all tasks, so that nothing can get
slower by getting faster hardware: list scheduling, first ready first served, has such
anomalies (Graham, 1969), in stages of three layers of up to two per cent.

Stages can therefore be scheduled one after another: each serves, step by step, what those
before it in the pass hand on. Times may be arrays, of one number for each of several devices on
which the same work is done (``deepflow/batch/recurrent.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepflow.config.model import LstmModel
from deepflow.cost.elementwise import larger
from deepflow.cost.memory import MemoryUse, memory_use
from deepflow.cost.operators import Cost, OperatorCost, block_costs, operator_cost, total
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.kernel import (
    KernelMapping,
    RankBlocks,
    ceil_div,
    found_layout,
    map_kernels,
    regather,
    shard_cell,
    shard_embedding,
    shard_product,
    shard_softmax,
)
from deepflow.record import record
from deepflow.schedule.simulated import (
    FLATTENED,
    chain_items,
    chain_total,
    link_items,
    simulated_mode,
    whole_machine,
)
from deepflow.schedule.training import StageResult, busiest
from deepflow.workload.lstm import lstm_blocks, softmax_width
from deepflow.workload.operators import Block, Collective, Operator

if TYPE_CHECKING:
    from deepflow.astra.export import Template
    from deepflow.network.program import Program

Times = npt.NDArray[np.float64]

# More than this would take seconds, and is no model of today.
MOST_CELLS = 2_000_000

EMBEDDING, HIDDEN, OUTPUT = 0, 1, 2
# Kinds of tasks: one per part for its pass, reduction and update.
_PASS, _REDUCTION, _UPDATE = 0, 3, 6


@record(frozen=True)
class LayerCosts:
    """Costs of one layer on one rank: per time step both passes, per training step the rest."""

    forward: tuple[OperatorCost, ...]
    backward: tuple[OperatorCost, ...]
    reduction: tuple[OperatorCost, ...]
    update: tuple[OperatorCost, ...]


@record(frozen=True)
class RecurrentRun:
    """Everything known about one training step of an LSTM. Times in seconds.

    ``layers`` by name (embedding, hidden, projection if there is one, softmax);
    ``stage_layers[s]`` recurrent layers run on stage s; ``batch`` sequences on each replica.
    ``passes``: forward and backward, by stage; ``costs`` of what a part does (forward, backward:
    per time step; reduction, update), by part; ``hops``: transfers of both passes.
    ``simulated_time``: that of the step where the whole machine is simulated; the times of both
    passes are then still those of the schedule.
    """

    mapping: KernelMapping
    batch: int
    stage_layers: tuple[int, ...]
    layers: dict[str, LayerCosts]
    stages: tuple[StageResult, ...]
    forward_time: float
    backward_time: float
    passes: tuple[tuple[StagePass, ...], ...]
    costs: dict[str, list[Cost]]
    hops: tuple[Cost, ...]
    simulated_time: float | None = None

    @property
    def time(self) -> float:
        """Seconds of the step."""
        if self.simulated_time is not None:
            return self.simulated_time
        return self.forward_time + self.backward_time

    @property
    def bottleneck(self) -> int:
        """The stage whose device works longest."""
        return busiest(self.stages)


@record(frozen=True)
class StagePass:
    """One stage in one pass, in seconds from the beginning of the pass.

    ``passed_on``: when the device is through with each step, along the last axis. ``exposed``: how
    long it then waits for weight gradients. ``end``: when all is done.
    """

    passed_on: Times
    exposed: float
    end: float


@record(frozen=True)
class RecurrentWork:
    """What a training step consists of, whatever the rates of the device that does it.

    ``batch`` sequences on each replica, ``stage_layers`` as in ``RecurrentRun``, ``blocks`` that a
    rank runs of each layer. ``messages``: bytes that it passes on between stages per time step,
    activations and gradients.
    """

    mapping: KernelMapping
    batch: int
    stage_layers: tuple[int, ...]
    blocks: dict[str, RankBlocks]
    messages: tuple[float, float]

    @property
    def chains(self) -> list[Block]:
        """Forward and backward pass, reduction and update of each layer, one after the other."""
        return [
            block
            for blocks in self.blocks.values()
            for block in (blocks.forward, blocks.backward, blocks.reduction, blocks.update)
        ]

    @property
    def hops(self) -> list[Collective]:
        """Transfers to the next stage, of activations and of gradients."""
        return [
            Collective("stage_transfer", "send", "pipeline", message) for message in self.messages
        ]


def run_recurrent(hardware: Hardware, model: LstmModel) -> RecurrentRun:
    """Costs and schedules one training step.

    Raises:
        InfeasiblePoint: degrees, layers or networks do not fit together.
    """
    work = recurrent_work(hardware, model)
    groups = {**work.mapping.groups, "host": host_group(hardware)}
    chains = block_costs(work.chains, hardware, groups)
    hops = [operator_cost(hop, hardware, groups).cost for hop in work.hops]
    run = put_together(hardware, model, work, chains, hops)
    if simulated_mode(hardware) != FLATTENED or work.mapping.num_devices == 1:
        return run
    return replace(run, simulated_time=_simulated_time(hardware, model, run, work.messages))


def recurrent_work(hardware: Hardware, model: LstmModel) -> RecurrentWork:
    """What the ranks of ``hardware`` do in a training step.

    Raises:
        InfeasiblePoint: degrees, layers or networks do not fit together.
    """
    names = ["embedding", "hidden", *(["projection"] if model.projection else []), "softmax"]
    mapping = map_kernels(hardware, {name: name for name in names}, data_fills_machine=True)
    batch = ceil_div(model.batch_size, mapping.data)
    stage_layers = place_layers(model.num_layers, mapping.pipeline)
    if model.num_layers * model.seq_len > MOST_CELLS:
        raise InfeasiblePoint(
            f"model.num_layers {model.num_layers} x seq_len {model.seq_len} is above {MOST_CELLS}"
            " cells, too many to schedule"
        )
    blocks = rank_blocks(hardware, model, mapping, batch)
    messages = _messages(hardware, model, mapping, batch)
    return RecurrentWork(mapping, batch, stage_layers, blocks, messages)


def host_group(hardware: Hardware) -> Group:
    """The device and its host, if there is a link between them; else the device alone."""
    bandwidth = hardware.config.sw_param.h2d_bandwidth
    size = 2 if bandwidth is not None and bandwidth > 0 else 1
    return Group("host", size, 1, 2, 0.0, 0.0, bandwidth or 0.0, 0.0)


def place_layers(num_layers: int, stages: int) -> tuple[int, ...]:
    """Recurrent layers of each stage, in order, as equal as possible, earlier stages first.

    Embedding and softmax have a stage of their own at both ends if there are more than two.

    Raises:
        InfeasiblePoint: a stage would have no layer.
    """
    if stages <= 2:
        return (num_layers,) if stages == 1 else (ceil_div(num_layers, 2), num_layers // 2)
    inner = stages - 2
    if inner > num_layers:
        raise InfeasiblePoint(
            f"parallelism.pipeline {stages} leaves {inner} stages for"
            f" model.num_layers {num_layers}, beside one each for embedding and softmax"
        )
    each, extra = divmod(num_layers, inner)
    return (0, *(each + (stage < extra) for stage in range(inner)), 0)


def rank_blocks(
    hardware: Hardware, model: LstmModel, mapping: KernelMapping, batch: int
) -> dict[str, RankBlocks]:
    """What one rank runs of each layer per time step, for ``batch`` sequences a replica.

    Where neighbouring layers are cut differently, the layer that is not a recurrent one also
    gathers what passes between them, in both directions.
    """
    precision = hardware.config.sw_param.precision
    blocks = lstm_blocks(model, batch, precision)
    splits, width = mapping.splits, model.layer_size

    def gathers(
        holder: str, other: str, features: int, *, gradient: bool
    ) -> tuple[Collective, ...]:
        have, want = splits[holder], splits[other]
        if gradient:
            held, wanted = have.gradients, want.gradients
        elif holder == "embedding":
            held, wanted = found_layout(have), want.activations
        else:
            held, wanted = have.activations, want.activations
        what = "gradient" if gradient else "output"
        name = f"{holder}_{what}_gather"
        return regather(name, holder, have, held, wanted, (batch, features), precision)

    embedding = shard_embedding(
        blocks.embedding, batch, model.vocab_size, width, splits["embedding"], precision
    )
    result = {
        "embedding": replace(
            embedding,
            forward=_extended(
                embedding.forward, last=gathers("embedding", "hidden", width, gradient=False)
            ),
            backward=_extended(
                embedding.backward, first=gathers("hidden", "embedding", width, gradient=True)
            ),
        ),
        "hidden": shard_cell(blocks.hidden, splits["hidden"], precision),
    }
    outputs = {"softmax": shard_softmax(blocks.softmax, splits["softmax"], precision)}
    if blocks.projection:
        outputs = {
            "projection": shard_product(
                blocks.projection, "projection", splits["projection"], precision
            )
        } | outputs
    producer, features = "hidden", width
    for name, layer in outputs.items():
        result[name] = replace(
            layer,
            forward=_extended(
                layer.forward, first=gathers(producer, name, features, gradient=False)
            ),
            backward=_extended(
                layer.backward, last=gathers(name, producer, features, gradient=True)
            ),
        )
        producer, features = name, softmax_width(model)
    return result


def _extended(
    block: Block, first: tuple[Operator, ...] = (), last: tuple[Operator, ...] = ()
) -> Block:
    return replace(block, operators=(*first, *block.operators, *last))


def _messages(
    hardware: Hardware, model: LstmModel, mapping: KernelMapping, batch: int
) -> tuple[float, float]:
    """Bytes that a rank passes on between stages per time step: activations, gradients."""
    split = mapping.splits["hidden"]
    sizes = []
    for rows, columns in (split.activations, split.gradients):
        elements = ceil_div(batch, rows) * ceil_div(model.layer_size, columns)
        sizes.append(float(hardware.config.sw_param.precision * elements))
    return sizes[0], sizes[1]


def _host_copies(costs: tuple[OperatorCost, ...]) -> tuple[OperatorCost, ...]:
    """Counts copies from the host as element-wise work: no other device takes part."""
    return tuple(
        OperatorCost(item.operator, Cost(elementwise=item.cost.communication), "host link")
        if isinstance(item.operator, Collective) and item.operator.group == "host"
        else item
        for item in costs
    )


# --- The schedule ---------------------------------------------------------------------------


def run_pass(
    stage_layers: tuple[int, ...],
    steps: int,
    durations: Sequence[Any],
    hop: Any,
    *,
    is_backward: bool,
) -> tuple[StagePass, ...]:
    """One pass through all stages, in their order. ``durations`` of the kinds and ``hop`` in s.

    Stages pass their results on in the order of the steps, one at a time on each link. In the last
    step of a backward pass each part's gradient is reduced as soon as its cell has ended, one at a
    time; weights are updated after the last cell, in the same order.
    """
    last = len(stage_layers) - 1
    done: list[StagePass] = []
    arrivals: Times = np.zeros(steps)
    for stage in range(last, -1, -1) if is_backward else range(last + 1):
        parts = parts_of(stage, stage_layers)
        if is_backward:
            parts.reverse()
        passed_on = in_turn(arrivals, sum(durations[_PASS + part] for part in parts))
        exposed: Any = 0.0
        end: Any = passed_on[..., -1] if passed_on.ndim > 1 else float(passed_on[-1])
        if is_backward:
            after, working = after_cells(parts, durations)
            exposed, end = larger(0.0, after - working), end + after
        done.append(StagePass(passed_on, exposed, end))
        arrivals = in_turn(passed_on, hop)
    return tuple(reversed(done) if is_backward else done)


def after_cells(
    parts: Sequence[int],
    durations: Sequence[Any],
    spans: list[tuple[str, int, Any, Any]] | None = None,
) -> tuple[Any, Any]:
    """(seconds from the end of a stage's last cell to that of its last update, in updates).

    ``spans``, if given, is filled with (reduction or update, part, start, end), in seconds from the
    beginning of the stage's last step.
    """
    cell = reduced = updated = working = 0.0
    reductions = []
    for part in parts:
        cell = cell + durations[_PASS + part]
        reduced = larger(cell, reduced) + durations[_REDUCTION + part]
        reductions.append(reduced)
        if spans is not None:
            spans.append(("reduction", part, reduced - durations[_REDUCTION + part], reduced))
    updated = cell
    for part, reduced in zip(parts, reductions, strict=True):
        start = larger(reduced, updated)
        updated = start + durations[_UPDATE + part]
        working = working + (updated - start)
        if spans is not None:
            spans.append(("update", part, start, updated))
    return updated - cell, working


def parts_of(stage: int, stage_layers: Sequence[int]) -> list[int]:
    """What a stage holds, in the order of the forward pass."""
    parts = [EMBEDDING] * (stage == 0)
    return parts + [HIDDEN] * stage_layers[stage] + [OUTPUT] * (stage == len(stage_layers) - 1)


def in_turn(arrivals: Times, duration: Any) -> Times:
    """Ends of tasks of one ``duration`` on one resource that serves them as they arrive, in s.

    Tasks are along the last axis, durations along those before it, if any.
    ``end[k] = max(arrival[k], end[k-1]) + duration``: the latest of all starts so far, each
    followed by the tasks after it without a gap.
    """
    duration = np.asarray(duration)[..., None]
    before = duration * np.arange(arrivals.shape[-1])
    latest: Times = np.maximum.accumulate(arrivals - before, axis=-1)
    ends: Times = latest + before + duration
    return ends


def put_together(
    hardware: Hardware,
    model: LstmModel,
    work: RecurrentWork,
    chains: Sequence[tuple[OperatorCost, ...]],
    hops: Sequence[Cost],
) -> RecurrentRun:
    """The step from the costs of ``work.chains`` and ``work.hops``."""
    mapping, batch, stage_layers = work.mapping, work.batch, work.stage_layers
    costs_of = iter(chains)
    layers = {
        name: LayerCosts(
            _host_copies(next(costs_of)), next(costs_of), next(costs_of), next(costs_of)
        )
        for name in work.blocks
    }

    def cost(part: int, what: str) -> Cost:
        chain = operators_of(layers, part, what)
        if what in ("forward", "backward"):
            return chain_total(chain, hardware, mapping.groups)
        return total(chain)

    names = ("forward", "backward", "reduction", "update")
    costs = {what: [cost(part, what) for part in range(3)] for what in names}
    reduction = [item.time for item in costs["reduction"]]
    update = [item.time for item in costs["update"]]
    passes = [
        run_pass(
            stage_layers,
            model.seq_len,
            (*(item.time for item in costs[what]), *reduction, *update),
            hops[is_backward].time,
            is_backward=is_backward,
        )
        for is_backward, what in ((False, "forward"), (True, "backward"))
    ]
    last = len(stage_layers) - 1
    shares: dict[tuple[int, int, int], tuple[dict[str, Cost], MemoryUse]] = {}
    results = []
    for stage, count in enumerate(stage_layers):
        counts = (int(stage == 0), count, int(stage == last))
        if counts not in shares:
            summed = {
                what: sum(
                    (one * times for one, times in zip(costs[what], counts, strict=True)), Cost()
                )
                for what in names
            }
            shares[counts] = summed, stage_memory(hardware, model, mapping, batch, counts)
        summed, memory = shares[counts]
        # Every stage but the last sends activations, every one but the first gradients.
        sent = hops[0] * (stage < last) + hops[1] * (stage > 0)
        results.append(
            StageResult(
                memory.weights / hardware.config.sw_param.precision,
                (summed["forward"] + summed["backward"]) * model.seq_len,
                summed["update"],
                summed["reduction"],
                sent * model.seq_len,
                passes[1][stage].exposed,
                memory,
            )
        )
    forward_time, backward_time = (
        reduce(larger, [stage.end for stage in one_pass]) for one_pass in passes
    )
    return RecurrentRun(
        mapping,
        batch,
        stage_layers,
        layers,
        tuple(results),
        forward_time,
        backward_time,
        tuple(passes),
        costs,
        tuple(hops),
    )


def operators_of(layers: dict[str, LayerCosts], part: int, what: str) -> tuple[OperatorCost, ...]:
    """All operators of a part: its forward or backward pass, reduction or update."""
    names = {
        EMBEDDING: ["embedding"],
        HIDDEN: ["hidden"],
        OUTPUT: [name for name in layers if name not in ("embedding", "hidden")],
    }
    return tuple(item for name in names[part] for item in getattr(layers[name], what))


# --- The same graph as traces of a simulator ------------------------------------------------


def _simulated_time(
    hardware: Hardware, model: LstmModel, run: RecurrentRun, messages: tuple[float, float]
) -> float:
    """Seconds of a step in which every rank of the machine runs its operators.

    ``messages``: bytes that ranks pass on per time step, forward and backward. Transfers between
    stages, collectives of the cells and reductions of gradients take turns on a rank.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer, or it would take too long.
    """
    from deepflow.astra.export import Operations, TraceBuilder
    from deepflow.astra.machine import machine_time
    from deepflow.astra.modes import check_parts

    mapping, steps = run.mapping, model.seq_len
    stages = len(run.stage_layers)
    distances = {"data": mapping.kernel}
    for layer, split in mapping.splits.items():
        distances |= {f"{layer}.kp1": 1, f"{layer}.kp2": split.kp1}
    groups = {name: (mapping.groups[name], distance) for name, distance in distances.items()}
    machine = whole_machine(hardware, groups, mapping.num_devices, stages)
    operations = Operations()

    def template(parts: Sequence[int], what: str) -> Template:
        costs = [item for part in parts for item in operators_of(run.layers, part, what)]
        items = (link_items if what == "reduction" else chain_items)(costs, hardware)
        return TraceBuilder(operations).template([items], machine.phases)

    forward_bytes, backward_bytes = (max(1, round(size)) for size in messages)
    last = stages - 1
    traces: list[Program] = []
    for stage in range(stages):
        parts = parts_of(stage, run.stage_layers)
        step_forward = template(parts, "forward")
        step_backward = template(parts[::-1], "backward")
        nodes = len(step_forward.program.what) + len(step_backward.program.what)
        check_parts(sum(len(other.what) for other in traces) + steps * nodes)
        trace = TraceBuilder(operations)
        after: tuple[int, ...] = ()
        for step in range(steps):
            if stage > 0:
                after += trace.receive(forward_bytes, stage - 1, step)
            after = trace.put(step_forward, after)
            if stage < last:
                trace.send(forward_bytes, stage + 1, step, after)
        for step in range(steps, 2 * steps):
            if stage < last:
                after += trace.receive(backward_bytes, stage + 1, step)
            cells: list[tuple[int, tuple[int, ...]]] = []
            if step < 2 * steps - 1:
                after = trace.put(step_backward, after)
            else:
                for part in reversed(parts):
                    after = trace.put(template((part,), "backward"), after)
                    cells.append((part, after))
            if stage > 0:
                trace.send(backward_bytes, stage - 1, step, after)
            # Each part's gradient is complete with its last cell, and reduced beside those of
            # others; what other stages wait for goes first.
            for part, cell in cells:
                reduced = trace.put(template((part,), "reduction"), cell)
                trace.put(template((part,), "update"), after + reduced)
        traces.append(trace.program)
    backend = hardware.config.execution_backend.astra
    return machine_time(traces, machine, backend, hardware.accelerator.memory[-1].bandwidth)


# --- Memory ---------------------------------------------------------------------------------


def stage_memory(
    hardware: Hardware,
    model: LstmModel,
    mapping: KernelMapping,
    batch: int,
    counts: tuple[int, int, int],
) -> MemoryUse:
    """Bytes on one device that holds ``counts`` (embedding, recurrent layers, output) parts.

    Formulas of the original, per sequence and step: G D gate outputs and 4.5 times as many
    intermediate values per recurrent layer, D embedded values, V logits and 2 V + 1
    intermediate values; and P projected values. RC cuts batch and outputs, CR leaves them
    whole; weights are cut by both. Weight gradients, which the original left out, take as much
    as the weights.
    """
    software = hardware.config.sw_param
    width, vocabulary = model.layer_size, model.vocab_size
    gates, features = model.num_gates * width, softmax_width(model)

    def kept(layer: str, columns: int) -> tuple[int, int]:
        split = mapping.splits[layer]
        if split.kind != "RC":
            return batch * model.seq_len, columns
        return ceil_div(batch, split.kp1) * model.seq_len, ceil_div(columns, split.kp2)

    def weights(layer: str, rows: int, columns: int) -> int:
        shard_rows, shard_columns = mapping.splits[layer].weights(rows, columns)
        return shard_rows * shard_columns

    rows, columns = kept("hidden", gates)
    hidden = 5.5 * rows * columns
    rows, columns = kept("embedding", width)
    embedded = rows * columns
    rows, columns = kept("softmax", vocabulary)
    logits = 3 * rows * columns + rows
    output_weights = weights("softmax", features + 1, vocabulary)
    projected = 0
    if model.projection:
        rows, columns = kept("projection", features)
        projected = rows * columns
        output_weights += weights("projection", width, features)
    stored = float(
        counts[EMBEDDING] * weights("embedding", vocabulary, width)
        + counts[HIDDEN] * weights("hidden", 2 * width + 1, gates)
        + counts[OUTPUT] * output_weights
    )
    activations = (
        counts[EMBEDDING] * embedded + counts[HIDDEN] * hidden + counts[OUTPUT] * projected
    )
    precision = software.precision
    return memory_use(
        software,
        weights=stored * precision,
        gradients=stored * precision,
        optimizer=0.0,
        activations=activations * precision,
        logits=float(counts[OUTPUT] * logits * precision),
    )
