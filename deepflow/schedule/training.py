"""A training step put together: blocks, their costs, the schedule's times, memory per stage.

``run_training`` does what a prediction needs once; ``deepflow.prediction`` sums it up in columns
and ``deepflow.explain`` shows it in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from deepflow.config.model import LlmModel
from deepflow.cost.elementwise import larger, smaller, some, where
from deepflow.cost.memory import (
    MemoryUse,
    Parts,
    SegmentMemory,
    kept_bytes,
    part_weights,
    segment_memory,
    stage_memory,
    stage_parameters,
)
from deepflow.cost.operators import (
    Cost,
    OperatorCost,
    block_cost,
    block_costs,
    operator_cost,
    total,
)
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.parallelism import (
    EMBEDDING,
    HEAD,
    RECOMPUTED,
    TrainingMapping,
    map_training,
)
from deepflow.mapping.training import (
    OPTIMIZER_STATE_BYTES,
    Parameters,
    TrainingStep,
    gather_calls,
    gathered_again,
    sharded,
    training_step,
    update_block,
)
from deepflow.record import record
from deepflow.schedule.passes import PassSegment, pass_time
from deepflow.schedule.pipeline import (
    PipelineGraph,
    PipelineShape,
    peak_in_flight,
    pipeline_graph,
)
from deepflow.schedule.simulated import (
    FLATTENED,
    PIPELINES,
    chain_items,
    chain_total,
    link_items,
    machine_step_time,
    pipeline_time,
    sharded_pass,
    simulated_mode,
)
from deepflow.workload.operators import Block, Collective, Operator

if TYPE_CHECKING:
    from deepflow.astra.export import Item


@record(frozen=True)
class SegmentCosts:
    """Costs of one embedding, layer or head on one rank, per operator and in sum.

    ``gradient_total`` is zero when gradients are reduced with each pass (ZeRO 2 and 3); then
    ``reduction_total`` holds what a pass reduces. ``backward_passes``: the backward pass as it is
    run, in one or two (zero bubble). ``again``: part of its weights that a backward pass gathers a
    second time, once the segment is recomputed.
    """

    forward: tuple[OperatorCost, ...]
    backward: tuple[OperatorCost, ...]
    gather: tuple[OperatorCost, ...]
    gradient: tuple[OperatorCost, ...]
    forward_total: Cost
    backward_total: Cost
    backward_input_total: Cost
    backward_weight_total: Cost
    gather_total: Cost
    reduction_total: Cost
    gradient_total: Cost
    backward_passes: tuple[tuple[OperatorCost, ...], ...]
    again: float = 0.0

    def last_backward_time(self, *, splits: bool) -> float:
        """Seconds of the last backward pass, or of the one for weights (zero bubble)."""
        last = self.backward_weight_total if splits else self.backward_total
        return last.paced().time


@record(frozen=True)
class DataCosts:
    """What one segment sends over its data group: see ``SegmentCosts``, which has it too."""

    gather: Cost
    reduction: Cost
    gradient: Cost
    again: float


@record(frozen=True)
class StageResult:
    """One pipeline stage on one device, over the whole step.

    ``compute``: all forward and backward passes; ``update``: optimizer and parameter gather;
    ``gradient``: reductions over the data group at the end of the step,
    ``exposed_gradient_time`` the part of their time after the last backward pass.
    """

    parameters: float
    compute: Cost
    update: Cost
    gradient: Cost
    sent: Cost
    exposed_gradient_time: float
    memory: MemoryUse


@record(frozen=True)
class TrainingRun:
    """Everything known about one training step. Times in seconds.

    ``ends`` of tasks are those of the schedule; where the pipeline is simulated, ``time`` is what
    the simulation says and has the waiting for busy links as well. ``parts``: passes by the content
    of a part; ``received``: what a part does with what it got from another; ``hop``: a transfer;
    ``kept``: bytes that each part of each stage keeps of one microbatch; ``updates``: the update of
    each stage.
    """

    mapping: TrainingMapping
    step: TrainingStep
    segments: dict[str, SegmentCosts]
    update_operators: tuple[OperatorCost, ...]
    stages: tuple[StageResult, ...]
    graph: PipelineGraph
    durations: tuple[float, ...]
    ends: tuple[float, ...]
    time: float
    parts: Mapping[tuple[str, ...], PartCosts]
    received: tuple[OperatorCost, ...]
    hop: OperatorCost
    kept: tuple[tuple[float, ...], ...]
    updates: tuple[tuple[OperatorCost, ...], ...]

    @property
    def bottleneck(self) -> int:
        """The stage whose device works longest."""
        return busiest(self.stages)


NOTHING = Cost()


@record(frozen=True)
class PartCosts:
    """One microbatch's passes through one part of the model."""

    forward: Cost
    backward: Cost
    backward_input: Cost
    backward_weight: Cost

    def times(self, *, splits: bool) -> tuple[float, float, float]:
        """Seconds forward, backward and, where the schedule ``splits`` it, for weights."""
        if splits:
            return self.forward.time, self.backward_input.time, self.backward_weight.time
        return self.forward.time, self.backward.time, 0.0


@record(frozen=True)
class _StageCosts:
    """What stages with the same parts have in common; costs over the whole step.

    ``weights``: bytes that each part keeps of one microbatch.
    """

    parameters: Parameters
    weights: tuple[float, ...]
    compute: Cost
    gradient: Cost
    update_operators: tuple[OperatorCost, ...]
    update: Cost


def busiest(stages: Sequence[StageResult]) -> int:
    """Number of the stage whose device works longest."""
    return max(range(len(stages)), key=lambda stage: stages[stage].compute.time)


def run_training(hardware: Hardware, model: LlmModel) -> TrainingRun:
    """Costs and schedules one training step.

    Raises:
        InfeasiblePoint: degrees, batch sizes or networks do not fit together.
    """
    hardware = hardware.under_load
    mapping = map_training(hardware, model)
    step = training_step(hardware, model, mapping)
    segments = segment_costs(hardware, mapping, step)
    held = {name: segment_memory(mapping, step, name) for name in step.segments}
    transfer = operator_cost(step.hop, hardware, mapping.groups)
    hop = transfer.cost
    received = block_cost(step.received, hardware, mapping.groups)
    of_content = {
        content: part_costs(
            content, segments, total(received), mapping, each_pass=mapping.asked.zero >= 2
        )
        for content in dict.fromkeys(mapping.parts)
    }
    shape = _shape(mapping, tuple(segments), model.tie_embeddings)
    graph = pipeline_graph(shape)
    stage_parts = [mapping.parts_of(stage) for stage in range(mapping.pipeline)]
    with_parts = {
        parts: _stage_costs(hardware, mapping, segments, held, of_content, parts)
        for parts in dict.fromkeys(stage_parts)
    }
    durations = _durations(graph, mapping, segments, of_content)
    for stage, parts in enumerate(stage_parts):
        durations[graph.update(stage)] = with_parts[parts].update.time
    tied_time = 0.0
    if shape.tied:
        tied = tied_collective(step.segments[EMBEDDING].parameters, mapping)
        tied_time = operator_cost(tied, hardware, mapping.groups).cost.time
        durations[graph.tied_gradient] = tied_time
    ends = graph.graph.execute(durations, (0.0, hop.time))
    time = max(ends[task] for task in graph.updates)
    mode = simulated_mode(hardware)
    if mode == FLATTENED and mapping.num_devices > 1:
        of_stages = [with_parts[parts] for parts in stage_parts]
        chains = _chains(hardware, graph, mapping, step, segments, received, of_content, of_stages)
        time = machine_step_time(
            graph,
            chains,
            step.hop.message_bytes,
            hardware,
            _placed(mapping),
            mapping.num_devices,
        )
    elif mode in PIPELINES:
        group = mapping.groups["pipeline"]
        simulated = pipeline_time(graph, durations, step.hop.message_bytes, hardware, group)
        # Devices that also wait for their links are never earlier, but for rounding.
        time = max(time, simulated)
    transfers = [stage_transfers(mapping, stage) for stage in range(mapping.pipeline)]
    sent = {number: hop * (mapping.num_microbatches * number) for number in set(transfers)}
    stages = []
    for stage, parts in enumerate(stage_parts):
        costs = with_parts[parts]
        after = ends[graph.last_gradient[stage]] - ends[graph.last_backward[stage]]
        stages.append(
            StageResult(
                costs.parameters.count,
                costs.compute,
                costs.update,
                costs.gradient,
                sent[transfers[stage]],
                exposed_gradient_time(after, costs.gradient.time, tied_time),
                stage_memory(
                    hardware,
                    mapping,
                    held,
                    parts,
                    costs.parameters,
                    peak_in_flight(
                        mapping.asked.schedule,
                        mapping.pipeline,
                        mapping.virtual_stages,
                        mapping.num_microbatches,
                        stage,
                        costs.weights,
                    ),
                    step.boundary_bytes,
                    step.hop.message_bytes,
                ),
            )
        )
    return TrainingRun(
        mapping,
        step,
        segments,
        with_parts[stage_parts[0]].update_operators,
        tuple(stages),
        graph,
        tuple(durations),
        tuple(ends),
        time,
        of_content,
        received,
        transfer,
        tuple(with_parts[parts].weights for parts in stage_parts),
        tuple(with_parts[parts].update_operators for parts in stage_parts),
    )


def _shape(mapping: TrainingMapping, names: Sequence[str], tied: bool) -> PipelineShape:
    """The structure of the step's graph; kinds of segment are numbered as in ``names``."""
    kinds = {name: index for index, name in enumerate(names)}
    each_pass = mapping.asked.zero >= 2
    return PipelineShape(
        schedule=mapping.asked.schedule,
        stages=mapping.pipeline,
        virtual_stages=mapping.virtual_stages,
        microbatches=mapping.num_microbatches,
        last_backward=tuple(
            () if each_pass else tuple(kinds[name] for name in reversed(part))
            for part in mapping.parts
        ),
        reduces_gradients=mapping.gradient_ranks > 1 and not each_pass,
        overlaps=mapping.asked.overlap_gradient_reduction,
        tied=tied and mapping.pipeline > 1,
    )


def _durations(
    graph: PipelineGraph,
    mapping: TrainingMapping,
    segments: dict[str, SegmentCosts],
    of_content: Mapping[tuple[str, ...], PartCosts],
) -> list[float]:
    """Seconds by kind of task, but for updates and the tied gradient."""
    durations = graph.durations()
    splits = mapping.asked.schedule == "zero_bubble"
    times = {content: costs.times(splits=splits) for content, costs in of_content.items()}
    for part, content in enumerate(mapping.parts):
        forward, backward, backward_weight = times[content]
        durations[graph.forward(part)] = forward
        durations[graph.backward(part)] = backward
        if splits:
            durations[graph.backward_weight(part)] = backward_weight
    if mapping.asked.zero < 2:
        for kind, costs in enumerate(segments.values()):
            durations[graph.segment_backward(kind)] = costs.last_backward_time(splits=splits)
            durations[graph.segment_gradient(kind)] = gradient_time(costs, mapping)
    return durations


def _chains(
    hardware: Hardware,
    graph: PipelineGraph,
    mapping: TrainingMapping,
    step: TrainingStep,
    segments: dict[str, SegmentCosts],
    received: tuple[OperatorCost, ...],
    of_content: Mapping[tuple[str, ...], PartCosts],
    stages: Sequence[_StageCosts],
) -> dict[int, list[tuple[Item, ...]]]:
    """The operators of every kind of task, for one rank of the stage.

    What a pass takes beyond its operators, such as waiting for the host, follows them. Weights that
    are gathered for a pass and gradients that are reduced with it (ZeRO 2 and 3) are collectives.

    Raises:
        NetworkError: the layout runs passes of several microbatches beside each other.
    """
    from deepflow.astra.export import Item
    from deepflow.network.graph import NetworkError

    if mapping.asked.overlap_expert_communication:
        raise NetworkError(
            "parallelism.overlap_expert_communication runs two microbatches at once, which the"
            " mode full_astrasim_flattened does not"
        )
    splits = mapping.asked.schedule == "zero_bubble"
    each_pass = mapping.asked.zero >= 2
    prefetch = mapping.asked.overlap_parameter_gather

    operators = {
        name: (
            chain_items(costs.forward, hardware),
            *(chain_items(chain, hardware) for chain in costs.backward_passes),
        )
        for name, costs in segments.items()
    }
    kept = {
        name: (
            costs.forward_total,
            costs.backward_input_total if splits else costs.backward_total,
            costs.backward_weight_total,
        )
        for name, costs in segments.items()
    }
    chains: dict[int, list[tuple[Item, ...]]] = {kind: [] for kind in graph.graph.kind}

    def gathered(costs: SegmentCosts, share: float = 1.0) -> tuple[Item, ...]:
        items = link_items(costs.gather, hardware, share)
        done = sum(item.cost.time for item in costs.gather)
        return (*items, Item(link=max(0.0, costs.gather_total.time - done) * share))

    def of_pass(names: Iterable[str], which: int) -> tuple[Item, ...]:
        parts: list[tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...]]] = []
        for name in names:
            costs, items = segments[name], operators[name][which]
            gather = gathered(costs) if costs.gather and which < 2 else ()
            last = which == (2 if splits else 1)
            reduction = link_items(costs.gradient, hardware) if last else ()
            if which == 1 and costs.again:
                recomputed = len(costs.forward)
                parts.append((gather, items[:recomputed], ()))
                parts.append((gathered(costs, costs.again), items[recomputed:], reduction))
            else:
                parts.append((gather, items, reduction))
        return sharded_pass(parts, prefetch=prefetch)

    def add(kind: int, which: int, content: Sequence[str], whole: Cost) -> None:
        if kind not in chains:
            # With one microbatch a part's backward pass is run by segments only.
            return
        launched = sum(kept[name][which].launch for name in content)
        if which < 2 and (EMBEDDING, HEAD)[which] not in content:
            chains[kind].append(chain_items(received, hardware))
            launched += total(received).launch
        if each_pass:
            chains[kind].append(of_pass(content, which))
        else:
            chains[kind] += [operators[name][which] for name in content]
        waiting = max(0.0, whole.launch - launched)
        chains[kind].append((Item(compute=waiting + whole.host_transfer),))

    for part, content in enumerate(mapping.parts):
        costs, back = of_content[content], content[::-1]
        add(graph.forward(part), 0, content, costs.forward)
        add(graph.backward(part), 1, back, costs.backward_input if splits else costs.backward)
        if splits:
            add(graph.backward_weight(part), 2, back, costs.backward_weight)
    if not each_pass:
        for kind, (name, item) in enumerate(segments.items()):
            last = 2 if splits else 1
            add(graph.segment_backward(kind), last, (name,), kept[name][last].paced())
            chains[graph.segment_gradient(kind)] = [chain_items(item.gradient, hardware)]
    for stage, of_stage in enumerate(stages):
        done = NOTHING
        for operator in of_stage.update_operators:
            done += operator.cost
        after = Item(compute=max(0.0, of_stage.update.time - done.time))
        chains[graph.update(stage)] = [chain_items(of_stage.update_operators, hardware), (after,)]
    if graph.shape.tied:
        sent = tied_collective(step.segments[EMBEDDING].parameters, mapping)
        tied = operator_cost(sent, hardware, mapping.groups)
        chains[graph.tied_gradient] = [chain_items((tied,), hardware)]
    return chains


def _placed(mapping: TrainingMapping) -> dict[str, tuple[Group, int]]:
    """Groups with the distance in ranks of neighbours: the order of ranks of ``map_training``."""
    tensor, stage = mapping.tensor, mapping.num_devices // mapping.pipeline
    distances = {
        "tensor": 1,
        "context": tensor,
        "data": tensor,
        "expert": tensor,
        "expert_data": tensor * mapping.expert,
        "embedding": stage * (mapping.pipeline - 1),
    }
    return {name: (mapping.groups[name], distance) for name, distance in distances.items()}


def segment_costs(
    hardware: Hardware,
    mapping: TrainingMapping,
    step: TrainingStep,
    known: dict[Operator, OperatorCost] | None = None,
) -> dict[str, SegmentCosts]:
    """Costs of all segments by name; ``known`` as in ``block_costs``."""
    splits = mapping.asked.schedule == "zero_bubble"
    blocks: list[Block] = []
    for segment in step.segments.values():
        blocks += (segment.forward, segment.backward, segment.gather, segment.gradient)
        if splits:
            blocks += (segment.backward_input, segment.backward_weight)
    costs = iter(block_costs(blocks, hardware, mapping.groups, known))
    of_segments = zip(*[costs] * (6 if splits else 4), strict=True)
    return {
        name: _in_sum(name, chains, hardware, mapping, step)
        for name, chains in zip(step.segments, of_segments, strict=True)
    }


def _in_sum(
    name: str,
    chains: Sequence[tuple[OperatorCost, ...]],
    hardware: Hardware,
    mapping: TrainingMapping,
    step: TrainingStep,
) -> SegmentCosts:
    """Sums for one segment; ``chains``: costs of its blocks as ``segment_costs`` lists them."""
    forward, backward, gather, gradient, *split = chains
    over_data = data_costs(name, gather, gradient, hardware, mapping, step)
    kept = kept_bytes(mapping, step, name)

    def whole(chain: tuple[OperatorCost, ...]) -> Cost:
        cost = chain_total(chain, hardware, mapping.groups, issued=True)
        return beside_others(cost, kept, hardware, mapping)

    backward_input = backward_weight = NOTHING
    if split:
        backward_input = whole(split[0])
        backward_weight = chain_total(split[1], hardware, mapping.groups, issued=True)
    return SegmentCosts(
        forward,
        backward,
        gather,
        gradient,
        whole(forward),
        whole(backward),
        backward_input,
        backward_weight,
        over_data.gather,
        over_data.reduction,
        over_data.gradient,
        tuple(split) if split else (backward,),
        over_data.again,
    )


def data_costs(
    name: str,
    gather: tuple[OperatorCost, ...],
    gradient: tuple[OperatorCost, ...],
    hardware: Hardware,
    mapping: TrainingMapping,
    step: TrainingStep,
) -> DataCosts:
    """Sums of what a segment sends over its data group, from the costs of those two blocks."""
    each_pass = mapping.asked.zero >= 2
    reduction = total(gradient, hardware.config.sw_param)
    return DataCosts(
        _gathering(gather, name, hardware, mapping, step),
        reduction if each_pass else NOTHING,
        NOTHING if each_pass else reduction,
        gathered_again(mapping, step.segments[name].own) if name.endswith(RECOMPUTED) else 0.0,
    )


def _gathering(
    gather: tuple[OperatorCost, ...],
    name: str,
    hardware: Hardware,
    mapping: TrainingMapping,
    step: TrainingStep,
) -> Cost:
    """What it takes until a segment's weights are there (ZeRO 3), the host's time included."""
    software = hardware.config.sw_param
    cost = total(gather, software)
    if not gather or not software.host_time_per_gathered_shard:
        return cost
    shards = gather_calls(mapping, step.segments[name].own) * mapping.gradient_ranks
    return cost + Cost(launch=shards * software.host_time_per_gathered_shard)


def beside_others(
    cost: Cost, kept_bytes: float, hardware: Hardware, mapping: TrainingMapping
) -> Cost:
    """A segment's pass beside what the layout lets go on meanwhile.

    Tokens travel to and from experts while another microbatch is computed (DualPipe of DeepSeek-V3,
    arXiv 2412.19437, 3.2.1); activations, ``kept_bytes`` of them, leave to the host or come back.
    """
    overlaps = mapping.asked.overlap_expert_communication
    if some(overlaps):
        hidden = smaller(cost.expert_communication, cost.time - cost.expert_communication)
        # Nothing is computed beside what one of the microbatches sends.
        less = hidden / mapping.num_microbatches - hidden
        cost += Cost(expert_communication=where(overlaps, less, 0.0))
    leave = mapping.asked.offload == "optimizer_and_activations"
    if some(leave):
        moving = kept_bytes / host_bandwidth(hardware)
        cost += Cost(host_transfer=where(leave, larger(0.0, moving - cost.time), 0.0))
    return cost


def part_costs(
    content: tuple[str, ...],
    segments: Mapping[str, SegmentCosts],
    received: Cost,
    mapping: TrainingMapping,
    *,
    each_pass: bool,
) -> PartCosts:
    """Costs of one microbatch's passes through a part with these segments.

    ``received``: what a part does with what it got from another before it begins.
    ``each_pass``: gradients are reduced with each pass (ZeRO 2 and 3).
    """
    counts = Counter(content)

    def summed(name: str) -> Cost:
        whole = Cost()
        for segment, count in counts.items():
            whole += getattr(segments[segment], name) * count
        return whole

    def complete(
        name: str, names: Iterable[str], reduces: bool, before: Cost = NOTHING, gathers: bool = True
    ) -> Cost:
        cost = summed(name)
        # What the host has saved up in the pass before, the device need not wait for.
        ahead = larger(0.0, before.time - before.issue)
        cost += Cost(launch=larger(0.0, cost.issue - cost.time - ahead))
        compute, time = cost.time, 0.0
        if each_pass:
            after_recomputing = gathers and name != "forward_total"
            time = pass_time(
                pass_segments(
                    [segments[segment] for segment in names], name, gathers=gathers, reduces=reduces
                ),
                prefetch=mapping.asked.overlap_parameter_gather,
            )
            if gathers:
                cost += _untimed(summed("gather_total"))
            if after_recomputing:
                for segment, count in counts.items():
                    item = segments[segment]
                    cost += _untimed(item.gather_total) * (item.again * count)
            if reduces:
                cost += _untimed(summed("reduction_total"))
        return cost + Cost(data_communication=larger(0.0, time - compute))

    # Activations come from an earlier part, gradients of them from a later one.
    activations, gradients = (NOTHING if end in content else received for end in (EMBEDDING, HEAD))
    forward = complete("forward_total", content, reduces=False) + activations
    if mapping.asked.schedule == "zero_bubble":
        return PartCosts(
            forward,
            NOTHING,
            complete("backward_input_total", reversed(content), reduces=False) + gradients,
            complete("backward_weight_total", reversed(content), reduces=True, gathers=False),
        )
    # With a single stage nothing comes between a microbatch's passes.
    before = summed("forward_total") if len(mapping.parts) == 1 else NOTHING
    backward = complete("backward_total", reversed(content), reduces=True, before=before)
    return PartCosts(forward, backward + gradients, NOTHING, NOTHING)


def pass_segments(
    costs: Iterable[SegmentCosts], name: str, *, gathers: bool, reduces: bool
) -> list[PassSegment]:
    """What segments do in a pass, of which the sum ``name`` of ``SegmentCosts`` holds the work.

    ``gathers``: weights come in before it; ``reduces``: gradients go out after it.
    """
    after_recomputing = gathers and name != "forward_total"
    return [
        PassSegment(
            item.gather_total.time if gathers else 0.0,
            getattr(item, name).time,
            item.reduction_total.time if reduces else 0.0,
            item.forward_total.time,
            item.again if after_recomputing else 0.0,
        )
        for item in costs
    ]


def _stage_costs(
    hardware: Hardware,
    mapping: TrainingMapping,
    segments: Mapping[str, SegmentCosts],
    held: Mapping[str, SegmentMemory],
    of_content: Mapping[tuple[str, ...], PartCosts],
    parts: Parts,
) -> _StageCosts:
    """``segments`` and ``held`` by name, ``of_content`` by the segments of a part."""
    parameters = stage_parameters(held, parts)
    update_operators, update = update_costs(hardware, mapping, parameters)
    return _StageCosts(
        parameters,
        part_weights(held, parts),
        stage_passes(of_content, parts) * mapping.num_microbatches,
        stage_gradient(segments, parts),
        update_operators,
        update,
    )


def stage_passes(of_content: Mapping[tuple[str, ...], PartCosts], parts: Parts) -> Cost:
    """One microbatch's passes through all parts of a stage."""
    passes = NOTHING
    for part, count in Counter(parts).items():
        costs = of_content[part]
        forward, backward = costs.forward, costs.backward
        passes += (forward + backward + costs.backward_input + costs.backward_weight) * count
    return passes


def _untimed(cost: Cost) -> Cost:
    """Bytes and FLOPs of something whose time is counted elsewhere."""
    return Cost(
        flops=cost.flops,
        dram_bytes=cost.dram_bytes,
        l2_bytes=cost.l2_bytes,
        intra_node_bytes=cost.intra_node_bytes,
        inter_node_bytes=cost.inter_node_bytes,
    )


def host_bandwidth(hardware: Hardware) -> float:
    """Bytes/s between a device and the host's memory; InfeasiblePoint if there is none."""
    bandwidth = hardware.config.sw_param.host_bandwidth
    if bandwidth is None:
        raise InfeasiblePoint(
            "parallelism.offload needs the bandwidth to the host's memory, sw_param.host_bandwidth"
        )
    return bandwidth


def gradient_time(costs: SegmentCosts, mapping: TrainingMapping) -> float:
    """Time to reduce a segment's gradients beside the passes of others.

    Within a node, data and tensor group share their links; what the tensor group takes of them
    during a backward pass is not there for the gradients.
    """
    time = costs.gradient_total.paced().time
    beside = costs.backward_total
    same_links = (mapping.groups["data"].inter_size == 1) & (mapping.groups["tensor"].size > 1)
    shared = same_links & mapping.asked.overlap_gradient_reduction & (time > 0)
    slowed: float = where(shared, beside.communication, 0.0)
    return time + slowed


def exposed_gradient_time(after: float, gradient_time: float, tied_time: float) -> float:
    """What of the time ``after`` the last backward pass goes into reducing gradients.

    The rest is waiting for the stage that shares the embedding.
    """
    exposed: float = smaller(larger(0.0, after), gradient_time + tied_time)
    return exposed


def update_costs(
    hardware: Hardware, mapping: TrainingMapping, parameters: Parameters
) -> tuple[tuple[OperatorCost, ...], Cost]:
    """Operators of the update of a device with these parameters, and all that it takes."""
    block = update_block(hardware, mapping, parameters)
    costs = block_cost(block, hardware, mapping.groups)
    software = hardware.config.sw_param
    # The host waits for the gradients before it goes through the tensors.
    first = [isinstance(item.operator, Collective) for item in costs].index(False)
    reduced, cost = total(costs[:first], software), total(costs[first:], software)
    each_tensor = software.host_time_per_tensor
    if mapping.asked.zero and mapping.gradient_ranks > 1:
        each_tensor += software.host_time_per_sharded_tensor
    if mapping.asked.zero in (1, 2):
        each_tensor += software.host_time_per_gathered_shard * mapping.gradient_ranks
    cost += Cost(issue=each_tensor * parameters.tensors)
    # Once per step all devices meet, those of a replica for the norm, replicas for the loss.
    per_node = hardware.config.system_hierarchy.num_devices_per_node
    once = software.host_time_per_step
    for ranks in (mapping.num_devices, mapping.tensor * mapping.pipeline, mapping.data):
        once += software.check_time(ranks, min(ranks, per_node))
    cost = reduced.paced() + cost.paced() + Cost(launch=once)
    if mapping.asked.offload != "none":
        own = parameters.count
        if mapping.asked.zero >= 1:
            own = sharded(mapping, parameters)
        # States come in and go out, each direction beside the other and beside the update.
        moved = own * OPTIMIZER_STATE_BYTES / host_bandwidth(hardware)
        cost += Cost(host_transfer=max(0.0, moved - (cost.time - cost.waiting)))
    return costs, cost


def stage_gradient(segments: Mapping[str, SegmentCosts], parts: Parts) -> Cost:
    """Reductions of gradients at the end of the step, of all segments of a stage."""
    gradient = NOTHING
    for name, count in Counter(chain.from_iterable(parts)).items():
        gradient += segments[name].gradient_total * count
    return gradient


def tied_collective(embedding: Parameters, mapping: TrainingMapping) -> Collective:
    """First and last stage add up the gradients of the embedding matrix that they share."""
    matrix = embedding.dense - embedding.replicated
    return Collective(
        "tied_embedding_reduction",
        "all_reduce",
        "embedding",
        matrix * mapping.asked.gradient_bytes,
    )


def stage_transfers(mapping: TrainingMapping, stage: int) -> int:
    """Transfers that a stage sends per microbatch: onward forward, back backward."""
    last = len(mapping.parts) - 1
    return sum((part < last) + (part > 0) for part in range(stage, last + 1, mapping.pipeline))
