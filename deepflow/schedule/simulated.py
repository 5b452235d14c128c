"""Blocks and pipelines of the schedule timed by a network simulator, in the modes beyond hybrid.

A block keeps what its operators compute and send; only how long the device waits for the network
comes from the simulation: what it adds to the computations. That is dealt out over the groups in
proportion to what their collectives take alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deepflow.cost.operators import Cost, OperatorCost, total
from deepflow.cost.roofline import roofline_time
from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group, place_group
from deepflow.schedule.pipeline import HOP, PipelineGraph
from deepflow.workload.operators import Collective

if TYPE_CHECKING:
    from deepflow.astra.export import Call, Item, Phase, Phases, TraceBuilder
    from deepflow.astra.machine import Machine
    from deepflow.network.program import Program

_WAITING = (
    "communication",
    "context_communication",
    "expert_communication",
    "data_communication",
)
FLATTENED = "full_astrasim_flattened"
# Modes in which the pipeline is simulated as a graph of its own.
PIPELINES = ("full_astrasim", "full_astrasim_hierarchical")
NORM_BYTES = 4
NEVER = 2**62  # operators that do not wait for one


def simulated_mode(hardware: Hardware) -> str:
    """The mode of the simulator beyond ``hybrid``, "" if there is none."""
    backend = hardware.config.execution_backend
    if backend.model != "astra" or backend.astra.mode == "hybrid":
        return ""
    return backend.astra.mode


def chain_total(
    costs: Sequence[OperatorCost],
    hardware: Hardware,
    groups: Mapping[str, Group],
    *,
    issued: bool = False,
) -> Cost:
    """``total`` of a chain of operators, with a simulated network if the mode has one for blocks.

    ``issued``: the sum knows how long the host takes to issue the chain. The schedule's rules for
    what runs beside what become dependencies. A device's collectives take turns, and the launch of
    one is part of its turn.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer.
    """
    cost = total(costs, hardware.config.sw_param if issued else None)
    if not simulated_mode(hardware) or not any(item.cost.waiting for item in costs):
        return cost
    from deepflow.astra.modes import chain_time

    items = chain_items(costs, hardware)
    called = dict.fromkeys(item.call.group for item in items if item.call is not None)
    time = chain_time(
        items,
        tuple(groups[name] for name in called),
        hardware.config.execution_backend.astra,
        hardware.accelerator.memory[-1].bandwidth,
    )
    launch = sum(
        item.cost.launch
        for item in costs
        if not (isinstance(item.operator, Collective) and item.operator.beside)
    )
    waiting = max(0.0, time - launch - cost.gemm - cost.attention - cost.elementwise)
    alone = {name: sum(getattr(item.cost, name) for item in costs) for name in _WAITING}
    share = waiting / sum(alone.values())
    return replace(
        cost, launch=launch, **{name: seconds * share for name, seconds in alone.items()}
    )


def with_time(parts: Sequence[Cost], time: float) -> list[Cost]:
    """``parts`` of something that takes ``time``: all wait more or less, to the same degree."""
    waiting = sum(part.waiting for part in parts)
    working = sum(part.time for part in parts) - waiting
    scale = max(0.0, time - working) / waiting if waiting else 1.0
    return [
        replace(part, **{name: getattr(part, name) * scale for name in _WAITING}) for part in parts
    ]


def chain_items(costs: Sequence[OperatorCost], hardware: Hardware) -> tuple[Item, ...]:
    """A chain for a trace. Exchanges between neighbours meet nobody and are timed alone."""
    from deepflow.astra.export import Call, Item
    from deepflow.astra.hybrid import COLLECTIVE_KINDS

    items = []
    for item in costs:
        operator, cost = item.operator, item.cost
        if not (isinstance(operator, Collective) and cost.waiting):
            items.append(Item(compute=cost.time))
        elif operator.kind not in COLLECTIVE_KINDS:
            items.append(Item(link=cost.time, beside=operator.beside))
        else:
            times = operator.times
            copied = roofline_time(hardware.accelerator, 0.0, cost.dram_bytes / times)
            call = Call(
                operator.kind,
                operator.group,
                operator.message_bytes / times,
                times,
                cost.launch / times + copied,
            )
            items.append(Item(call=call, beside=operator.beside))
    return tuple(items)


def link_items(
    costs: Sequence[OperatorCost], hardware: Hardware, share: float = 1.0
) -> tuple[Item, ...]:
    """A chain that goes on beside the device's work, for ``share`` of its bytes and time.

    All of it is in the way of other communication: the launch of a collective, the copies of its
    own part, and what follows on the device. Only the end of the chain waits for it.
    """
    from deepflow.astra.export import Item

    items = []
    for item in chain_items(costs, hardware):
        call, link = item.call, item.compute + item.link
        if call is not None:
            link += call.before * call.times
            call = replace(call, message_bytes=call.message_bytes * share, before=0.0)
        items.append(Item(link=link * share, beside=NEVER))
        items.append(Item(call=call, beside=NEVER))
    return tuple(items)


def sharded_pass(
    segments: Sequence[tuple[Sequence[Item], Sequence[Item], Sequence[Item]]], *, prefetch: bool
) -> tuple[Item, ...]:
    """The chain of a pass through segments whose weights or gradients are sharded.

    ``segments``: what gathers the weights of each, what it computes, what reduces its gradients.
    Their order on device and link is that of ``passes.pass_time``.
    """
    chain: list[Item] = []
    gathers = [gather for gather, _, _ in segments]
    chain += [replace(item, beside=0) for item in gathers[0]]
    for index, (_, compute, reduction) in enumerate(segments):
        following = gathers[index + 1] if index + 1 < len(segments) else ()
        if prefetch:
            waiting = range(len(following) - 1, -1, -1)
            chain += [
                replace(item, beside=others + len(compute))
                for item, others in zip(following, waiting, strict=True)
            ]
        # What a segment sends beside its own operators ends with it.
        left = range(len(compute) - 1, -1, -1)
        chain += [
            replace(item, beside=min(item.beside, others))
            for item, others in zip(compute, left, strict=True)
        ]
        chain += reduction
        if not prefetch:
            chain += [replace(item, beside=0) for item in following]
    return tuple(chain)


def pipeline_time(
    graph: PipelineGraph,
    durations: Sequence[float],
    hop_bytes: float,
    hardware: Hardware,
    group: Group,
) -> float:
    """Seconds of a step whose stages are the ranks of a simulation.

    Passes take ``durations`` in the order of the schedule. Stages send each other ``hop_bytes``
    over the link of ``group``; a transfer is in the way of a device's further transfers and
    reductions until it has arrived. Before the updates all stages add up the norm of gradients.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer.
    """
    from deepflow.astra.export import Item
    from deepflow.astra.modes import NANOSECONDS, check_size, pipeline_network, run, settings_for

    backend = hardware.config.execution_backend.astra
    stages, order = graph.shape.stages, graph.graph
    network = pipeline_network(group, stages)
    check_size(len(order.task))
    chains = {
        kind: ((Item(compute=durations[kind]) if stream < stages else Item(link=durations[kind]),),)
        for kind, stream in zip(order.kind, order.stream, strict=True)
    }
    traces = _step_traces(graph, chains, hop_bytes)
    if stages == 1:
        traces *= 2
    settings = settings_for(network, backend, hardware.accelerator.memory[-1].bandwidth)
    nodes = [tuple(program.nodes()) for program in traces]
    return run(nodes, network, settings, backend, {}).wall_time / NANOSECONDS


def machine_step_time(
    graph: PipelineGraph,
    chains: Mapping[int, Sequence[Sequence[Item]]],
    hop_bytes: float,
    hardware: Hardware,
    groups: Mapping[str, tuple[Group, int]],
    devices: int,
) -> float:
    """Seconds of a step in which every rank of the machine runs its operators.

    ``chains``: the operators of each kind of task; ``groups`` by name with the distance in ranks
    of neighbours; ``hop_bytes``: what a rank sends to the next stage.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer, or it would take too long.
    """
    from deepflow.astra.export import Call
    from deepflow.astra.machine import machine_time
    from deepflow.astra.modes import check_parts

    lengths = {kind: sum(map(len, chain)) for kind, chain in chains.items()}
    check_parts(sum(map(lengths.__getitem__, graph.graph.kind)))
    machine = whole_machine(hardware, groups, devices, graph.shape.stages)
    tied: Sequence[Phase] = ()
    if graph.shape.tied:
        (item,) = chains[graph.tied_gradient][0]
        assert isinstance(item.call, Call)
        tied = machine.phases(item.call)
    stages = _step_traces(graph, chains, hop_bytes, machine.phases, tied)
    backend = hardware.config.execution_backend.astra
    return machine_time(stages, machine, backend, hardware.accelerator.memory[-1].bandwidth)


def machine_chain_time(
    costs: Sequence[OperatorCost],
    hardware: Hardware,
    groups: Mapping[str, tuple[Group, int]],
    devices: int,
) -> float:
    """Seconds of one chain of operators that all ranks of a machine run; as above."""
    from deepflow.astra.export import TraceBuilder
    from deepflow.astra.machine import machine_time

    backend = hardware.config.execution_backend.astra
    machine = whole_machine(hardware, groups, devices, 1)
    trace = TraceBuilder()
    trace.chain(chain_items(costs, hardware), (), machine.phases)
    return machine_time(
        [trace.program], machine, backend, hardware.accelerator.memory[-1].bandwidth
    )


def pass_time(
    durations: Sequence[float], hop_bytes: float, hardware: Hardware, group: Group
) -> float:
    """Seconds of one pass from stage to stage, which are the ranks of a simulation.

    ``durations`` of the stages in seconds; the rest as in ``pipeline_time``.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer.
    """
    from deepflow.astra.export import Item
    from deepflow.astra.modes import NANOSECONDS, pipeline_network, run, settings_for

    stages = len(durations)
    if stages == 1:
        return durations[0]
    backend = hardware.config.execution_backend.astra
    network = pipeline_network(group, stages)
    chains = [[(Item(compute=duration),)] for duration in durations]
    nodes = [tuple(program.nodes()) for program in _pass_traces(chains, hop_bytes, _no_phases)]
    settings = settings_for(network, backend, hardware.accelerator.memory[-1].bandwidth)
    return run(nodes, network, settings, backend, {}).wall_time / NANOSECONDS


def machine_pass_time(
    chains: Sequence[Sequence[Sequence[Item]]],
    hop_bytes: float,
    hardware: Hardware,
    groups: Mapping[str, tuple[Group, int]],
    devices: int,
) -> float:
    """Seconds of one pass from stage to stage in which every rank of a stage runs its ``chains``.

    The rest as in ``machine_step_time``.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer, or it would take too long.
    """
    from deepflow.astra.machine import machine_time
    from deepflow.astra.modes import check_parts

    check_parts(sum(len(chain) for of_stage in chains for chain in of_stage))
    machine = whole_machine(hardware, groups, devices, len(chains))
    traces = _pass_traces(chains, hop_bytes, machine.phases)
    backend = hardware.config.execution_backend.astra
    return machine_time(traces, machine, backend, hardware.accelerator.memory[-1].bandwidth)


def _pass_traces(
    chains: Sequence[Sequence[Sequence[Item]]], hop_bytes: float, phases: Phases
) -> list[Program]:
    """What each stage runs of a pass that goes through all of them."""
    from deepflow.astra.export import Operations, TraceBuilder

    operations, size = Operations(), max(1, round(hop_bytes))
    # Layers that are alike are built once.
    templates = {
        id(chain): TraceBuilder(operations).template([chain], phases)
        for of_stage in chains
        for chain in of_stage
    }
    traces = []
    for stage, of_stage in enumerate(chains):
        trace = TraceBuilder(operations)
        after = trace.receive(size, stage - 1, stage) if stage else ()
        for chain in of_stage:
            after = trace.put(templates[id(chain)], after)
        if stage + 1 < len(chains):
            trace.send(size, stage + 1, stage + 1, after)
        traces.append(trace.program)
    return traces


def whole_machine(
    hardware: Hardware, groups: Mapping[str, tuple[Group, int]], devices: int, stages: int
) -> Machine:
    """All devices as one network; ``groups`` as in ``machine_step_time``."""
    from deepflow.astra.machine import Machine

    splits = hardware.config.execution_backend.astra.dataset_splits
    whole = place_group(hardware, "machine", devices, 1, ())
    return Machine(whole, groups, stages, splits)


def _no_phases(call: Call) -> Sequence[Phase]:
    raise DeepFlowError(f"a pipeline of timed passes has no {call.kind}")


def _step_traces(
    graph: PipelineGraph,
    chains: Mapping[int, Sequence[Sequence[Item]]],
    hop_bytes: float,
    phases: Phases = _no_phases,
    tied: Sequence[Phase] = (),
) -> list[Program]:
    """What each stage runs: passes, messages, gradient reductions and the update.

    ``tied``: how first and last stage add up the gradient that they share, if both take part in it.
    """
    from deepflow.astra.export import Operations, TraceBuilder

    stages, order = graph.shape.stages, graph.graph
    operations = Operations()
    passes = {
        kind: TraceBuilder(operations).template(chain, phases) for kind, chain in chains.items()
    }
    norm_stream = 2 * stages
    hop_size = max(1, round(hop_bytes))
    traces = [TraceBuilder(operations) for _ in range(stages)]
    # What the next task of a stream waits for, and those that wait for a task.
    last: list[tuple[int, ...]] = [()] * norm_stream
    ends: dict[int, tuple[int, ...]] = {}
    rank_of: dict[int, int] = {}
    updates = set(graph.updates)
    ready: list[tuple[int, ...]] = []
    for task, stream, kind, wait, delay in zip(
        order.task, order.stream, order.kind, order.wait, order.delay, strict=True
    ):
        if stream == norm_stream:
            continue
        rank = stream % stages
        trace, after = traces[rank], last[stream]
        if task in updates:
            if not ready:
                done = [last[stage] + last[stages + stage] for stage in range(stages)]
                ready = _norm(traces, done, len(order.task))
            after = ready[rank]
        elif kind == graph.tied_gradient and tied:
            other = stages + rank_of[wait]
            last[other] = _collectives(traces[rank_of[wait]], tied, last[other] + ends[wait])
            last[stream] = ends[task] = _collectives(trace, tied, after)
            rank_of[task] = rank
            continue
        elif wait >= 0 and rank_of[wait] == rank:
            after += ends[wait]
        elif wait >= 0:
            # What has no delay in the schedule still has to be heard of.
            size = hop_size if delay == HOP else 1
            traces[rank_of[wait]].send(size, rank, task, ends[wait])
            after += trace.receive(size, rank_of[wait], task)
        after = trace.put(passes[kind], after)
        last[stream] = ends[task] = after
        rank_of[task] = rank
    return [trace.program for trace in traces]


def _norm(
    traces: Sequence[TraceBuilder], done: Sequence[tuple[int, ...]], tag: int
) -> list[tuple[int, ...]]:
    """What the update of each stage waits for, once its gradients are ``done``.

    The norm of gradients is summed from stage to stage, from the last, which is done first, to the
    first, and then told from stage to stage.
    """
    ready = list(done)
    last = len(traces) - 1
    for stage in range(last, 0, -1):
        traces[stage].send(NORM_BYTES, stage - 1, tag, ready[stage])
        ready[stage - 1] += traces[stage - 1].receive(NORM_BYTES, stage, tag)
    for stage in range(last):
        traces[stage].send(NORM_BYTES, stage + 1, tag, ready[stage])
        ready[stage + 1] = traces[stage + 1].receive(NORM_BYTES, stage, tag)
    return ready


def _collectives(
    trace: TraceBuilder, phases: Sequence[Phase], after: tuple[int, ...]
) -> tuple[int, ...]:
    for phase in phases:
        after = trace.collective(phase, after)
    return after
