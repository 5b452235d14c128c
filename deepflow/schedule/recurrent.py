"""A training step of an LSTM put together: costs per layer, the event graph, memory per stage.

Layers and time steps form a grid. Forward, a cell waits for the layer below at the same step
and for its own layer at the step before; backward is the mirror image, and starts when the
forward pass has ended. Each pipeline stage is one device; transfers between stages take turns
on one link each, and the reductions of a stage's weight gradients on its link to the replicas,
followed by the weight update on its device. ``events.py`` executes the grid.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from deepflow.config.model import LstmModel
from deepflow.cost.memory import MemoryUse
from deepflow.cost.operators import Cost, OperatorCost, block_cost, operator_cost, total
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
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
from deepflow.mapping.parallelism import Group
from deepflow.record import record
from deepflow.schedule.events import EventGraph, Timeline
from deepflow.schedule.training import StageResult
from deepflow.workload.lstm import lstm_blocks, softmax_width
from deepflow.workload.operators import Block, Collective, Operator

# A larger event graph would take minutes and gigabytes.
MOST_CELLS = 2_000_000

EMBEDDING, HIDDEN, OUTPUT = 0, 1, 2
# Kinds of tasks: one per part for its pass, reduction and update, and the hop between stages.
_PASS, _REDUCTION, _UPDATE, _HOP = 0, 3, 6, 9


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
    """

    mapping: KernelMapping
    batch: int
    stage_layers: tuple[int, ...]
    layers: dict[str, LayerCosts]
    stages: tuple[StageResult, ...]
    forward_time: float
    backward_time: float

    @property
    def time(self) -> float:
        return self.forward_time + self.backward_time

    @property
    def bottleneck(self) -> int:
        """The stage whose device works longest."""
        return max(range(len(self.stages)), key=lambda stage: self.stages[stage].compute.time)


@record(frozen=True)
class PassGraph:
    """The tasks of one pass. ``cells[p]`` are those of position p in the order of the steps;
    position 0 comes first in this pass. ``updates[p]`` follows in the backward pass."""

    graph: EventGraph
    cells: tuple[tuple[int, ...], ...]
    updates: tuple[int, ...]


def run_recurrent(hardware: Hardware, model: LstmModel) -> RecurrentRun:
    """Costs and schedules one training step.

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
    groups = dict(mapping.groups)
    host_bandwidth = hardware.config.sw_param.h2d_bandwidth
    from_host = host_bandwidth is not None and host_bandwidth > 0
    groups["host"] = Group(
        "host", 2 if from_host else 1, 1, 2, 0.0, 0.0, host_bandwidth or 0.0, 0.0
    )
    layers = {
        name: LayerCosts(
            _host_copies(block_cost(blocks.forward, hardware, groups)),
            block_cost(blocks.backward, hardware, groups),
            block_cost(blocks.reduction, hardware, groups),
            block_cost(blocks.update, hardware, groups),
        )
        for name, blocks in rank_blocks(hardware, model, mapping, batch).items()
    }
    hops = [
        operator_cost(
            Collective("stage_transfer", "send", "pipeline", message), hardware, groups
        ).cost
        for message in _messages(hardware, model, mapping, batch)
    ]
    return _schedule(hardware, model, mapping, batch, stage_layers, layers, hops)


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


# --- The event graph ------------------------------------------------------------------------


@lru_cache(maxsize=64)
def pass_graph(stage_layers: tuple[int, ...], steps: int, *, is_backward: bool) -> PassGraph:
    """The grid of layers and time steps of one pass.

    Positions are embedding, recurrent layers, output (projection and softmax), backward in
    reverse. A device that holds several layers takes a step through all of them before it
    begins the next. Resources: a device per stage, a link between neighbours, a link to the
    replicas per stage.
    """
    stages = len(stage_layers)
    stage_of = [0]
    stage_of += [stage for stage, count in enumerate(stage_layers) for _ in range(count)]
    stage_of.append(stages - 1)
    part = [EMBEDDING, *[HIDDEN] * sum(stage_layers), OUTPUT]
    if is_backward:
        stage_of.reverse()
        part.reverse()
    graph = EventGraph()
    positions = range(len(part))
    cells = [[graph.node(_PASS + part[p], stage_of[p]) for _ in range(steps)] for p in positions]
    updates = []
    for p in positions:
        is_hidden = part[p] == HIDDEN
        stage, onward = stage_of[p], stage_of[min(p + 1, len(part) - 1)]
        within = is_hidden and part[p - 1] == HIDDEN and stage_of[p - 1] == stage
        for step, cell in enumerate(cells[p]):
            if step + 1 < steps:
                graph.edge(cell, cells[p][step + 1])
            if p + 1 < len(part):
                if stage == onward:
                    graph.edge(cell, cells[p + 1][step])
                else:
                    link = stages + min(stage, onward)
                    graph.edge(cell, cells[p + 1][step], _HOP, link)
            if within and step + 1 < steps:
                graph.edge(cell, cells[p - 1][step + 1])
        if is_backward:
            update = graph.node(_UPDATE + part[p], stage)
            graph.edge(cells[p][-1], update, _REDUCTION + part[p], 2 * stages - 1 + stage)
            updates.append(update)
    return PassGraph(graph, tuple(map(tuple, cells)), tuple(updates))


def _schedule(
    hardware: Hardware,
    model: LstmModel,
    mapping: KernelMapping,
    batch: int,
    stage_layers: tuple[int, ...],
    layers: dict[str, LayerCosts],
    hops: list[Cost],
) -> RecurrentRun:
    parts = [
        ["embedding"],
        ["hidden"],
        [name for name in layers if name not in ("embedding", "hidden")],
    ]

    def cost(part: int, what: str) -> Cost:
        return total(tuple(item for name in parts[part] for item in getattr(layers[name], what)))

    names = ("forward", "backward", "reduction", "update")
    costs = {what: [cost(part, what) for part in range(3)] for what in names}
    reduction = [item.time for item in costs["reduction"]]
    update = [item.time for item in costs["update"]]
    timelines, graphs = [], []
    for is_backward, what in ((False, "forward"), (True, "backward")):
        passes = [item.time for item in costs[what]]
        graph = pass_graph(stage_layers, model.seq_len, is_backward=is_backward)
        graphs.append(graph)
        durations = (*passes, *reduction, *update, hops[is_backward].time)
        timelines.append(graph.graph.run(durations))
    stages = len(stage_layers)
    results = []
    for stage, count in enumerate(stage_layers):
        counts = (int(stage == 0), count, int(stage == stages - 1))
        exposed = _exposed_reduction(timelines[1], graphs[1], stage)
        summed = {
            what: sum((one * times for one, times in zip(costs[what], counts, strict=True)), Cost())
            for what in names
        }
        # Every stage but the last sends activations, every one but the first gradients.
        sent = hops[0] * (stage < stages - 1) + hops[1] * (stage > 0)
        memory = stage_memory(hardware, model, mapping, batch, counts)
        results.append(
            StageResult(
                memory.weights / hardware.config.sw_param.precision,
                (summed["forward"] + summed["backward"]) * model.seq_len,
                summed["update"],
                summed["reduction"],
                sent * model.seq_len,
                exposed,
                memory,
            )
        )
    return RecurrentRun(
        mapping,
        batch,
        stage_layers,
        layers,
        tuple(results),
        timelines[0].time,
        timelines[1].time,
    )


def _exposed_reduction(timeline: Timeline, graph: PassGraph, stage: int) -> float:
    """Time after its last cell that a stage's device waits for weight gradients, in seconds."""
    starts, ends, resources = timeline.starts, timeline.ends, graph.graph.resources
    last_cell = max(ends[row[-1]] for row in graph.cells if resources[row[-1]] == stage)
    after = [
        task for task in graph.updates if resources[task] == stage and starts[task] >= last_cell
    ]
    if not after:
        return 0.0
    working = sum(ends[task] - starts[task] for task in after)
    return max(0.0, max(ends[task] for task in after) - last_cell - working)


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
    return MemoryUse(
        weights=stored * precision,
        gradients=stored * precision,
        optimizer=0.0,
        activations=activations * precision,
        logits=float(counts[OUTPUT] * logits * precision),
        buffers=0.0,
        reserved=software.reserved_memory,
    )
