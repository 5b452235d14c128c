"""Groups of ranks that communicate, and the links between them."""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.hardware import CollectiveAlgorithms, LinkFaults, NetworkTopology
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware, parallel_links
from deepflow.hardware.accelerator import Link
from deepflow.record import record

# Topologies in which any rank reaches any other without passing through third ones.
SWITCHED = ("switch", "fully_connected", "fat_tree")

# Topologies that look the same to a part of their ranks, wherever these are.
ANYWHERE = ("switch", "fully_connected", "fc", "pcie")


@record(frozen=True)
class LinkProtocol:
    """How collectives use a class of links, beyond its bandwidth and latency.

    ``handshake``: seconds to hand over one chunk. Reductions inside the switch run at
    ``reduction_bandwidth`` bytes/s of each rank (zero: it cannot reduce) and take
    ``reduction_latency`` seconds more. ``switched``: any rank reaches any other at once.
    ``in_turns``: an all_reduce's parts do not cross it while they cross the network within a node.
    """

    handshake: float = 0.0
    reduction_bandwidth: float = 0.0
    reduction_latency: float = 0.0
    switched: bool = False
    in_turns: bool = False


PLAIN = LinkProtocol()


@record(frozen=True)
class Wiring:
    """What the name of a topology leaves open.

    ``width``: ranks in a row of a grid, or on a leaf switch of a fat tree (0: nearest to square);
    ``oversubscription``: links into a leaf switch relative to those out of it. Of a group that is
    a part of ``line`` devices or nodes, with ``stride`` from one to the next, these are the line's.
    """

    width: int = 0
    oversubscription: float = 1.0
    line: int = 0
    stride: int = 1


@record(frozen=True)
class Places:
    """Where in a machine the ranks of a group are, for those who have to find single links.

    ``stride``: distance of neighbours in rank order; ``per_node`` devices in each of ``nodes``
    nodes.
    """

    stride: int
    per_node: int
    nodes: int
    faults: LinkFaults


@record(frozen=True)
class SharedRows:
    """An all_to_all that sends what several receivers of a node or device want only once.

    Relative to one copy for each of them: ``between`` nodes, and ``within`` nodes, where all
    copies are handed on that are not yet where they belong.
    """

    between: float
    within: float


@record(frozen=True)
class Group:
    """Ranks that communicate with each other, and the links between them.

    ``size`` ranks: ``intra_size`` of them within each of ``inter_size`` nodes. Bandwidths are
    bytes/s of one rank in each direction, latencies seconds per step. ``algorithms``: (kind of
    collective, algorithm) where the file forces one. ``faulty``: places of the ranks on a machine
    that has faulty links. ``shared_rows`` where all_to_all does not send copies one by one.
    """

    name: str
    size: int
    intra_size: int
    inter_size: int
    intra_bandwidth: float
    intra_latency: float
    inter_bandwidth: float
    inter_latency: float
    intra_protocol: LinkProtocol = PLAIN
    inter_protocol: LinkProtocol = PLAIN
    algorithms: tuple[tuple[str, str], ...] = ()
    intra_topology: str = "switch"
    inter_topology: str = "switch"
    intra_wiring: Wiring = Wiring()
    inter_wiring: Wiring = Wiring()
    faulty: Places | None = None
    shared_rows: SharedRows | None = None


def place_group(
    hardware: Hardware, name: str, size: int, stride: int, dimensions: tuple[str, ...]
) -> Group:
    """The group of ``size`` ranks that are ``stride`` apart, placed in rank order.

    ``dimensions`` are the group's names in ``system_hierarchy`` (kp1, kp2, dp, lp): where a file
    says for one of them which network it uses, all its traffic goes there.

    Raises:
        InfeasiblePoint: the group needs a network that has no bandwidth, or is to be timed by
            closed forms that do not know the network.
    """
    system = hardware.config.system_hierarchy
    flags = {dimension: getattr(system, f"{dimension}_inter") for dimension in dimensions}
    between_nodes = [dimension for dimension, flag in flags.items() if flag]
    any_flags = any(flag is not None for flag in flags.values())
    if between_nodes:
        intra_size = 1
    elif not any_flags:
        intra_size = max(1, min(size, system.num_devices_per_node // stride))
        while size % intra_size:
            intra_size -= 1
    else:
        intra_size = size
    inter_size = size // intra_size
    intra, inter = hardware.accelerator.intra_node, hardware.accelerator.inter_node
    topology = hardware.config.network_topology
    if hardware.config.execution_backend.model == "analytical" and size > 1:
        beyond = beyond_closed_forms(topology)
        if beyond:
            raise InfeasiblePoint(f"closed forms know no {beyond}; backend.model astra does")
    intra_bandwidth = intra.bandwidth / system.intra_derate if system.intra_derate else 0.0
    inter_bandwidth = inter.bandwidth / system.inter_derate if system.inter_derate else 0.0
    if between_nodes:
        # A message also passes the network within its node, if there is one.
        inter_bandwidth = parallel_links(hardware)[between_nodes[0]][0]
    for ranks, bandwidth, where in (
        (intra_size, intra_bandwidth, "within a node (network.intra_node)"),
        (inter_size, inter_bandwidth, "between nodes (network.inter_node)"),
    ):
        if ranks > 1 and bandwidth <= 0:
            raise InfeasiblePoint(
                f"the {name} parallel group of {size} spans {ranks} devices {where},"
                " but that network has no bandwidth"
            )
    return Group(
        name,
        size,
        intra_size,
        inter_size,
        intra_bandwidth,
        intra.latency,
        inter_bandwidth,
        inter.latency,
        _protocol(intra, topology.intra_node, intra_bandwidth),
        _protocol(inter, topology.inter_node, inter_bandwidth),
        _forced(hardware.config.execution_backend.astra.collectives),
        topology.intra_node,
        topology.inter_node,
        *_wiring(hardware, intra_size, inter_size, stride, by_place=not any_flags),
        Places(stride, system.num_devices_per_node, system.num_nodes, topology.faults)
        if topology.faults.links()
        else None,
    )


def _wiring(
    hardware: Hardware, intra_size: int, inter_size: int, stride: int, *, by_place: bool
) -> tuple[Wiring, Wiring]:
    """Within and between nodes. Simulators want to know which part of a line a group is.

    ``by_place``: the group uses the networks that follow from the places of its ranks.
    """
    config = hardware.config
    topology, system = config.network_topology, config.system_hierarchy
    intra = Wiring(topology.intra_node_width, topology.intra_node_oversubscription)
    inter = Wiring(topology.inter_node_width, topology.inter_node_oversubscription)
    if not by_place or config.execution_backend.model == "analytical":
        return intra, inter
    per_node, nodes = system.num_devices_per_node, system.num_nodes
    if topology.intra_node not in ANYWHERE and 1 < intra_size < per_node:
        intra = replace(intra, line=per_node, stride=stride)
    if topology.inter_node not in ANYWHERE and 1 < inter_size < nodes:
        inter = replace(inter, line=nodes, stride=max(1, stride * intra_size // per_node))
    return intra, inter


def beyond_closed_forms(topology: NetworkTopology) -> str:
    """What only a simulator knows of networks, "" if there is nothing of it."""
    if topology.faults.links():
        return "faulty links"
    for kind, ratio in (
        (topology.intra_node, topology.intra_node_oversubscription),
        (topology.inter_node, topology.inter_node_oversubscription),
    ):
        if kind == "fat_tree" and ratio > 1:
            return "oversubscription"
    return ""


def _protocol(link: Link, topology: str, bandwidth: float) -> LinkProtocol:
    """``bandwidth``: what the group has of the link, bytes/s; reductions are derated alike."""
    shared = bandwidth / link.bandwidth if link.bandwidth else 0.0
    return LinkProtocol(
        link.handshake,
        link.reduction_bandwidth * shared,
        link.reduction_latency,
        topology in SWITCHED,
        link.in_turns,
    )


def _forced(asked: CollectiveAlgorithms) -> tuple[tuple[str, str], ...]:
    kinds = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all")
    return tuple((kind, choice) for kind in kinds if (choice := getattr(asked, kind)) != "auto")
