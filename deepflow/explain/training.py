"""The time line of a training step.

Nothing is scheduled here: starts and ends are those of the schedule, and within a pass those of the
sums that made its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from deepflow.config.model import LlmModel
from deepflow.cost.operators import OperatorCost, operator_cost
from deepflow.explain.blocks import (
    DATA,
    Block,
    Details,
    Use,
    chain_block,
    fitted,
    operator_details,
    seconds_of,
    summed,
    waiting_block,
)
from deepflow.explain.lanes import (
    DEVICE,
    Timeline,
    TooManyEvents,
    alike,
    at_ends,
    put_simulated,
    size_of,
)
from deepflow.explain.runs import training_run
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import EMBEDDING, HEAD
from deepflow.schedule.passes import PassSpan, pass_time
from deepflow.schedule.pipeline import HOP
from deepflow.schedule.training import TrainingRun, pass_segments, tied_collective

FORWARD, BACKWARD, WEIGHTS, UPDATE = "forward", "backward", "weight gradient", "update"


class Pass(NamedTuple):
    """One pass of a microbatch through a part on a stage, or an update (part and microbatch -1).

    ``split``: it is run by segments, so that their gradients can be reduced beside it.
    """

    stage: int
    direction: str
    part: int
    microbatch: int
    start: float
    end: float
    split: bool = False


class Reduction(NamedTuple):
    """Gradients of a segment, or (``kind`` "tied") of the embedding that two stages share."""

    stage: int
    kind: str
    start: float
    end: float


class Transfer(NamedTuple):
    """What a stage sends to another, and the pass there that it is for."""

    sender: int
    receiver: int
    direction: str
    microbatch: int
    start: float
    end: float
    used: float


@dataclass
class StepTasks:
    """What the schedule of a training step runs, in the order of each stage."""

    passes: list[Pass] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)


def step_tasks(run: TrainingRun) -> StepTasks:
    """The tasks of a step's graph by what they are. Times in seconds, of the schedule."""
    graph = run.graph
    shape, order = graph.shape, graph.graph
    stages, microbatches, hop = shape.stages, shape.microbatches, run.hop.cost.time
    splits = shape.schedule == "zero_bubble"
    roles: dict[int, tuple[str, int]] = {}
    for part in range(shape.parts):
        roles[graph.forward(part)] = FORWARD, part
        roles[graph.backward(part)] = BACKWARD, part
        if splits:
            roles[graph.backward_weight(part)] = WEIGHTS, part
    last_direction = WEIGHTS if splits else BACKWARD
    reduced = {
        graph.segment_gradient(kind): name
        for kind, name in enumerate(run.segments)
        if any(shape.last_backward)
    }
    reduced[graph.tied_gradient] = "tied"
    pieces = {kind - 1 for kind in reduced if kind != graph.tied_gradient}
    # Tasks with higher numbers are pieces of the last backward passes.
    passes = shape.parts * microbatches
    numbered = (3 if splits else 2) * passes
    updates = set(graph.updates)
    tasks = StepTasks()
    # When the pieces of a stage's last backward pass of a part began.
    begun: dict[int, float] = {}
    owner = dict(zip(order.task, order.stream, strict=True)) if hop else {}
    for task, stream, kind, wait, delay in zip(
        order.task, order.stream, order.kind, order.wait, order.delay, strict=True
    ):
        end = run.ends[task]
        start = end - run.durations[kind]
        if stream >= stages:
            if kind in reduced and end > start:
                tasks.reductions.append(Reduction(stream - stages, reduced[kind], start, end))
                if kind == graph.tied_gradient:
                    tasks.reductions.append(Reduction(stages - 1, "tied", start, end))
            continue
        if task in updates:
            tasks.passes.append(Pass(stream, UPDATE, -1, -1, start, end))
            continue
        if delay == HOP and hop:
            # Of a pass that is run by segments the first one waits.
            direction = roles[kind][0] if kind in roles else BACKWARD
            tasks.transfers.append(
                Transfer(
                    owner[wait],
                    stream,
                    direction,
                    wait % microbatches,
                    run.ends[wait],
                    run.ends[wait] + hop,
                    start,
                )
            )
        if kind in pieces:
            begun.setdefault(stream, start)
            if task >= numbered:
                continue
            direction, part = last_direction, (task % passes) // microbatches
            first = begun.pop(stream)
            tasks.passes.append(
                Pass(stream, direction, part, task % microbatches, first, end, split=True)
            )
            continue
        direction, part = roles[kind]
        tasks.passes.append(Pass(stream, direction, part, task % microbatches, start, end))
    return tasks


def training_filler(hardware: Hardware, model: LlmModel) -> Callable[[Timeline], None]:
    """What puts a training step into a time line.

    Raises:
        InfeasiblePoint: as ``run_training``.
    """
    run, hardware = training_run(hardware, model), hardware.under_load
    tasks, blocks = step_tasks(run), _PassBlocks(run)
    updates = [
        chain_block(UPDATE, operators, stage.update, updates=True)
        for operators, stage in zip(run.updates, run.stages, strict=True)
    ]
    hop = operator_details(run.hop)
    embedding = tied_collective(run.step.segments[EMBEDDING].parameters, run.mapping)
    tied = operator_details(operator_cost(embedding, hardware, run.mapping.groups))
    end = max(run.ends[task] for task in run.graph.updates)
    last = run.mapping.num_microbatches - 1
    kinds = Counter(
        (item.direction, item.part, item.split, item.microbatch in (0, last))
        for item in tasks.passes
        if item.direction != UPDATE
    )

    def fill(found: Timeline) -> None:
        if found.detail.single is None:
            # Quicker than to find out one by one that there are too many.
            least = sum(
                count
                * size_of(
                    blocks.of(direction, part, split=split),
                    found.detail.ends if ends else found.detail.middle,
                )
                for (direction, part, split, ends), count in kinds.items()
            )
            if found.detail.beside:
                least += 3 * len(tasks.transfers)
            if least > found.limit:
                raise TooManyEvents
        _fill_training(found, run, tasks, blocks, updates, hop, tied, end)

    return fill


def _fill_training(
    found: Timeline,
    run: TrainingRun,
    tasks: StepTasks,
    blocks: _PassBlocks,
    updates: Sequence[Block],
    hop: Details,
    tied: Details,
    end: float,
) -> None:
    mapping, detail = run.mapping, found.detail
    microbatches, virtual = mapping.num_microbatches, mapping.virtual_stages > 1
    ranks = mapping.num_devices // mapping.pipeline
    put_simulated(found, end, mapping.pipeline)
    for stage in range(mapping.pipeline):
        found.processes[stage + 1] = f"stage {stage}: {_content(run, stage)}; {alike(ranks)}"
    merged: dict[int, list[tuple[Pass, Block]]] = {}
    contents = [blocks.content(part) for part in range(len(mapping.parts))]

    def merge(stage: int) -> None:
        group = merged.pop(stage, [])
        if not group:
            return
        numbers = [item.microbatch for item, _ in group]
        found.add(
            stage + 1,
            DEVICE,
            f"{len(group)} passes of microbatches {min(numbers)} to {max(numbers)}",
            group[0][0].start,
            group[-1][0].end,
            {"passes": dict(Counter(item.direction for item, _ in group))},
            summed(block for _, block in group),
        )

    for item in tasks.passes:
        stage = item.stage
        if item.direction == UPDATE:
            merge(stage)
            depth = min(1, detail.ends)
            found.put(stage + 1, updates[stage], item.start, depth, item.end)
            continue
        block = blocks.of(item.direction, item.part, split=item.split)
        ends = at_ends(item.microbatch, microbatches, 1)
        if detail.single is not None and not at_ends(item.microbatch, microbatches, detail.single):
            merged.setdefault(stage, []).append((item, block))
            continue
        merge(stage)
        name = f"{item.direction} {item.microbatch}"
        if virtual:
            name += f", part {item.part}"
        details = {
            "microbatch": item.microbatch,
            "phase": item.direction,
            "part_of_stage": item.part // mapping.pipeline,
            "segments": contents[item.part],
        }
        depth = detail.ends if ends else detail.middle
        found.put(stage + 1, block, item.start, depth, item.end, name, details)
    _put_reductions(found, run, tasks.reductions, tied)
    for stage, result in enumerate(run.stages):
        if result.exposed_gradient_time > 0:
            end = run.ends[run.graph.last_gradient[stage]]
            wait = result.exposed_gradient_time
            block = waiting_block("waiting for gradients", DATA, wait)
            found.put(stage + 1, block, end - wait, 0, end)
    if detail.beside:
        _put_transfers(found, tasks.transfers, hop)
        _put_memory(found, run, tasks.passes)


def _content(run: TrainingRun, stage: int) -> str:
    """Which parts of the model a stage holds, in words."""
    names = []
    first = 0
    for part, content in enumerate(run.mapping.parts):
        layers = sum(name not in (EMBEDDING, HEAD) for name in content)
        if part % run.mapping.pipeline == stage:
            names += [EMBEDDING] * (EMBEDDING in content)
            if layers:
                names.append(
                    f"layers {first} to {first + layers - 1}" if layers > 1 else f"layer {first}"
                )
            names += [HEAD] * (HEAD in content)
        first += layers
    return ", ".join(names)


class _PassBlocks:
    """Blocks of passes through parts of the model; equal ones are made once."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._segments: dict[tuple[str, str, bool], Block] = {}
        self._passes: dict[tuple[str, int, bool], Block] = {}
        layers = [
            sum(name not in (EMBEDDING, HEAD) for name in content) for content in run.mapping.parts
        ]
        self._first_layer = [sum(layers[:part]) for part in range(len(layers))]

    def of(self, direction: str, part: int, *, split: bool) -> Block:
        """A pass in this direction; ``split`` as in ``Pass``."""
        key = direction, part, split
        if key not in self._passes:
            self._passes[key] = self._made(direction, part, split)
        return self._passes[key]

    def content(self, part: int) -> str:
        """The segments of a part and how many of each there are."""
        counts = Counter(self._run.mapping.parts[part])
        return ", ".join(
            f"{count} x {name}" if count > 1 else name for name, count in counts.items()
        )

    def _made(self, direction: str, part: int, split: bool) -> Block:
        run = self._run
        content = run.mapping.parts[part]
        zero_bubble = run.mapping.asked.schedule == "zero_bubble"
        costs = run.parts[content]
        names = self._labels(part)
        if direction == FORWARD:
            whole = costs.forward
        else:
            names.reverse()
            whole = costs.backward
            if zero_bubble:
                whole = costs.backward_input if direction == BACKWARD else costs.backward_weight
        blocks = [
            replace(self._segment(name, direction, split), name=label) for name, label in names
        ]
        if split:
            return fitted(direction, blocks, summed(blocks))
        links: list[Use] = []
        if run.mapping.asked.zero >= 2:
            blocks, links = self._sharded([name for name, _ in names], blocks, direction)
        received = {FORWARD: EMBEDDING, BACKWARD: HEAD}.get(direction)
        if received and received not in content:
            before = chain_block("received from another stage", run.received)
            if before.time:
                blocks = [before, *blocks]
                links = [
                    use._replace(start=use.start + before.time, end=use.end + before.time)
                    for use in links
                ]
        return fitted(direction, blocks, seconds_of(whole), links)

    def _labels(self, part: int) -> list[tuple[str, str]]:
        """Segments of a part with what to call them."""
        number, labels = self._first_layer[part], []
        for name in self._run.mapping.parts[part]:
            if name in (EMBEDDING, HEAD):
                labels.append((name, name))
            else:
                labels.append((name, f"layer {number}"))
                number += 1
        return labels

    def _segment(self, name: str, direction: str, split: bool) -> Block:
        key = name, direction, split
        if key in self._segments:
            return self._segments[key]
        costs = self._run.segments[name]
        if direction == FORWARD:
            chain, whole = costs.forward, costs.forward_total
        elif direction == WEIGHTS:
            chain, whole = costs.backward_passes[-1], costs.backward_weight_total
        else:
            chain = costs.backward_passes[0]
            zero_bubble = self._run.mapping.asked.schedule == "zero_bubble"
            whole = costs.backward_input_total if zero_bubble else costs.backward_total
        whole = whole.paced() if split else whole
        self._segments[key] = chain_block(name, chain, whole, details={"segment": name})
        return self._segments[key]

    def _sharded(
        self, names: Sequence[str], blocks: Sequence[Block], direction: str
    ) -> tuple[list[Block], list[Use]]:
        """Segments with the waits between them, and what goes over the data group's link."""
        run = self._run
        zero_bubble = run.mapping.asked.schedule == "zero_bubble"
        total_name = {
            FORWARD: "forward_total",
            BACKWARD: "backward_input_total" if zero_bubble else "backward_total",
            WEIGHTS: "backward_weight_total",
        }[direction]
        costs = [run.segments[name] for name in names]
        spans: list[PassSpan] = []
        end = pass_time(
            pass_segments(
                costs,
                total_name,
                gathers=direction != WEIGHTS,
                reduces=direction == (WEIGHTS if zero_bubble else BACKWARD),
            ),
            prefetch=run.mapping.asked.overlap_parameter_gather,
            spans=spans,
        )
        found: list[Block] = []
        links: list[Use] = []
        now = 0.0
        left = {place: _Rest(block) for place, block in enumerate(blocks)}
        for span in spans:
            block, segment = blocks[span.segment], costs[span.segment]
            if span.what != "compute":
                what, chain = (
                    ("gather weights", segment.gather)
                    if span.what == "gather"
                    else ("reduce gradients", segment.gradient)
                )
                details = _data_details(chain)
                name = f"{what} of {block.name}"
                links.append(Use("data network", name, span.start, span.end, details))
                continue
            if span.start > now:
                found.append(waiting_block("waiting for weights", DATA, span.start - now))
            found.append(left[span.segment].taken(span.end - span.start))
            now = span.end
        if end > now:
            found.append(waiting_block("waiting for the data group", DATA, end - now))
        return found, links


class _Rest:
    """A block that is run in one piece or two."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._done = 0.0

    def taken(self, time: float) -> Block:
        """The next ``time`` seconds of it; it is cut between two of its children."""
        block, begin, end = self._block, self._done, self._done + time
        self._done = end
        tiny = 1e-9 * block.time
        if begin <= tiny and end >= block.time - tiny:
            return block
        children, at, starts = [], 0.0, []
        for child in block.children:
            if begin - tiny <= at + child.time / 2 < end + tiny:
                children.append(child)
                starts.append(at)
            at += child.time
        seconds = summed(children)
        first = starts[0] if starts else 0.0
        last = first + sum(seconds.values())
        links = [
            use._replace(start=use.start - first, end=use.end - first)
            for use in block.links
            if first - tiny <= use.start < last
        ]
        return replace(block, seconds=seconds, children=tuple(children), links=tuple(links))


def _data_details(chain: Sequence[OperatorCost]) -> Details:
    """Bytes of collectives over the data group that are shown as one."""
    details = [operator_details(item) for item in chain]
    if len(details) == 1:
        return details[0]
    sums = ("message_bytes", "intra_node_bytes", "inter_node_bytes")
    return {
        "shape": ", ".join(item["shape"] for item in details),
        **{name: sum(item.get(name, 0.0) for item in details) for name in sums},
    }


def _put_reductions(
    found: Timeline, run: TrainingRun, reductions: Sequence[Reduction], tied: Details
) -> None:
    details = {name: _data_details(costs.gradient) for name, costs in run.segments.items()}
    if found.detail.single == 0:
        by_stage: dict[int, list[Reduction]] = {}
        for item in reductions:
            by_stage.setdefault(item.stage, []).append(item)
        for stage, group in by_stage.items():
            start = min(item.start for item in group)
            end = max(item.end for item in group)
            name = f"{len(group)} reductions of gradients"
            found.add(stage + 1, "gradient reduction", name, start, end)
        return
    for item in reductions:
        is_tied = item.kind == "tied"
        found.add(
            item.stage + 1,
            "gradient reduction",
            "gradient of the shared embedding" if is_tied else f"gradients of {item.kind}",
            item.start,
            item.end,
            tied if is_tied else details[item.kind],
        )


def _put_transfers(found: Timeline, transfers: Sequence[Transfer], hop: Details) -> None:
    """Transfers do not wait for each other: those that overlap get lanes of their own."""
    free: dict[tuple[int, str], list[float]] = {}
    for item in sorted(transfers, key=lambda item: item.start):
        where = "next" if item.direction == FORWARD else "previous"
        lanes = free.setdefault((item.sender, where), [])
        number = next((n for n, end in enumerate(lanes) if end <= item.start), len(lanes))
        lanes[number : number + 1] = [item.end]
        lane = f"to {where} part" + (f" ({number + 1})" if number else "")
        what = "activations" if item.direction == FORWARD else "gradients"
        name = f"{what} {item.microbatch}"
        sender, receiver = item.sender + 1, item.receiver + 1
        found.add(sender, lane, name, item.start, item.end, {**hop, "microbatch": item.microbatch})
        found.arrow(name, (sender, lane, item.start), (receiver, DEVICE, item.used))


def _put_memory(found: Timeline, run: TrainingRun, passes: Sequence[Pass]) -> None:
    """Memory of a device of each stage: a pass forward adds what is kept until the one back."""
    if run.mapping.asked.offload == "optimizer_and_activations":
        found.notes.append("no memory over time: activations leave for the host")
        return
    ends_with = WEIGHTS if run.mapping.asked.schedule == "zero_bubble" else BACKWARD
    stages = run.mapping.pipeline
    held = [0.0] * stages

    def show(stage: int, time: float) -> None:
        memory = run.stages[stage].memory
        found.level(
            stage + 1,
            time,
            {
                "weights, gradients, optimizer, buffers": memory.static,
                "temporary, allocator, reserved": memory.temporary
                + memory.allocator
                + memory.reserved,
                "kept activations": max(0.0, held[stage]),
            },
        )

    for stage in range(stages):
        show(stage, 0.0)
    for item in passes:
        kept = run.kept[item.stage][item.part // stages] if item.part >= 0 else 0.0
        if item.direction == FORWARD:
            held[item.stage] += kept
            show(item.stage, item.start)
        elif item.direction == ends_with:
            held[item.stage] -= kept
            show(item.stage, item.end)
