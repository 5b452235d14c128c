"""One collective over all devices of a machine, and nothing beside it.

Bandwidths are those of NCCL's tests (doc/PERFORMANCE.md of nccl-tests): the algorithm's is the
full buffer over the time; the bus's multiplies it by the bytes that every device has to send per
byte of the buffer, so that it can be held against the bandwidth of a link whatever the number of
devices.
"""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.model import CollectiveModel
from deepflow.cost.collectives import collective_cost
from deepflow.cost.operators import Cost, operator_cost
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group, place_group
from deepflow.record import record
from deepflow.workload.operators import Collective

# Sizes of the buffers that a device holds, relative to the full one: what comes in and goes out.
# All_reduce works in place.
_BUFFERS = {"all_gather": 1.0, "reduce_scatter": 1.0, "all_reduce": 1.0, "all_to_all": 2.0}

# What closed forms choose from, but for all_to_all.
_ALGORITHMS = ("ring", "doubleBinaryTree", "in_switches")

# Memory bandwidth in bytes/s that never bounds a reduction.
_ENDLESS = 1e24


@record(frozen=True)
class CollectiveRun:
    """``cost``: what all calls take on one device; ``footprint``: bytes of its buffers.

    ``bus_factor``: bus bandwidth over algorithm bandwidth.
    """

    group: Group
    cost: Cost
    footprint: float
    bus_factor: float


def run_collective(hardware: Hardware, model: CollectiveModel) -> CollectiveRun:
    """Costs ``model.repeats`` calls over all devices, which fill one node before the next.

    Raises:
        InfeasiblePoint: there is one device only, or no network.
        NetworkError, AstraSimError: the simulator has no answer.
    """
    system = hardware.config.system_hierarchy
    devices = system.num_devices_per_node * system.num_nodes
    if devices == 1:
        raise InfeasiblePoint(
            f"{model.kind} needs at least two devices; system_hierarchy.num_devices_per_node"
            " and num_nodes are 1"
        )
    group = place_group(hardware, "machine", devices, 1, ())
    times = model.repeats
    operator = Collective(
        model.kind, model.kind, group.name, model.message_size * times, times=times
    )
    cost = operator_cost(operator, hardware, {group.name: group}).cost
    if model.kind == "send":
        # Within a step it belongs to a kernel that is launched anyway; alone it is one.
        launch = hardware.config.sw_param.kernel_launch_overhead
        cost = replace(cost, launch=launch * times)
    own = model.message_size / devices if model.kind in ("all_gather", "reduce_scatter") else 0.0
    return CollectiveRun(
        group,
        cost,
        model.message_size * _BUFFERS.get(model.kind, 1.0) + own,
        bus_factor(model.kind, devices),
    )


def bus_factor(kind: str, ranks: int) -> float:
    """Bytes that each of ``ranks`` devices has to send per byte of the full buffer."""
    if kind == "send":
        return 1.0
    return (2 if kind == "all_reduce" else 1) * (ranks - 1) / ranks


@record(frozen=True)
class CollectiveParts:
    """Why one collective takes as long as it does. Times in seconds, which add up.

    ``bandwidth``: over links without latency; ``latency``: what their latency adds to that;
    ``rest``: what is left, which ``rest_is`` names; ``copy``: of a device's own part in its memory.
    ``steps``: messages that follow each other, None where that is not one number.
    """

    algorithm: str
    steps: int | None
    bandwidth: float
    latency: float
    rest: float
    rest_is: str
    copy: float


def collective_parts(hardware: Hardware, model: CollectiveModel) -> CollectiveParts:
    """The parts of one call of ``model`` over all devices.

    Raises:
        InfeasiblePoint, NetworkError, AstraSimError: as ``run_collective``.
    """
    run = run_collective(hardware, replace(model, repeats=1))
    kind, size, group = model.kind, model.message_size, run.group
    whole = run.cost.communication
    if hardware.config.execution_backend.model == "astra":
        from deepflow.astra.hybrid import group_network, simulated_time, system_settings

        backend = hardware.config.execution_backend.astra
        memory = hardware.accelerator.memory[-1].bandwidth
        time = simulated_time(kind, size, group, backend, memory)
        with_latency = simulated_time(kind, size, group, backend, _ENDLESS)
        plain = replace(group, intra_latency=0.0, inter_latency=0.0)
        bandwidth = simulated_time(kind, size, plain, backend, _ENDLESS)
        algorithm, steps = "one message", None
        if kind != "send":
            network = group_network(group)
            chosen = getattr(system_settings(network, backend, memory), f"{kind}_implementation")
            places = zip(chosen, network.topology, network.npus, strict=True)
            algorithm = ", then ".join(f"{name} on {wires} of {n}" for name, wires, n in places)
        rest_is = "reading and writing what is reduced"
    else:
        algorithm = _closed_form(kind, size, group)
        time = collective_cost(kind, size, group).time
        no_handshake = replace(
            group,
            intra_protocol=replace(group.intra_protocol, handshake=0.0),
            inter_protocol=replace(group.inter_protocol, handshake=0.0),
            algorithms=((kind, algorithm),),
        )
        with_latency = collective_cost(kind, size, no_handshake).time
        plain = replace(
            no_handshake,
            intra_latency=0.0,
            inter_latency=0.0,
            intra_protocol=replace(no_handshake.intra_protocol, reduction_latency=0.0),
            inter_protocol=replace(no_handshake.inter_protocol, reduction_latency=0.0),
        )
        bandwidth = collective_cost(kind, size, plain).time
        steps = _steps(algorithm, kind, group)
        rest_is = "handing over chunks"
    return CollectiveParts(
        algorithm,
        steps,
        bandwidth,
        with_latency - bandwidth,
        time - with_latency,
        rest_is,
        whole - time,
    )


def _closed_form(kind: str, size: float, group: Group) -> str:
    """The algorithm that the closed forms take: the one asked for, or the fastest they know."""
    if kind == "send":
        return "one message"
    for asked, choice in group.algorithms:
        if asked == kind:
            return choice
    if kind == "all_to_all":
        return "direct"
    time = collective_cost(kind, size, group).time
    return next(
        name
        for name in _ALGORITHMS
        if collective_cost(kind, size, replace(group, algorithms=((kind, name),))).time == time
    )


def _steps(algorithm: str, kind: str, group: Group) -> int | None:
    """Messages that follow each other, as in the table of ``cost/collectives.py``."""
    passes = 2 if kind == "all_reduce" else 1
    intra, inter = group.intra_size, group.inter_size
    match algorithm:
        case "ring":
            return passes * (group.size - 1)
        case "doubleBinaryTree":
            return passes * (intra - 1 + (inter - 1).bit_length())
        case "halvingDoubling":
            return passes * ((intra - 1).bit_length() + (inter - 1).bit_length())
        case "direct":
            return passes
        case "one message":
            return 1
        case _:
            return None
