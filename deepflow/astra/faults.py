"""Faulty links of a machine as links of the networks that stand for its groups.

All groups of a kind do the same at once, and the slowest is waited for: the one in which the faulty
links are. Several of them may have some, so there may be several sets of links to simulate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from deepflow.config.hardware import HardwareConfig
from deepflow.errors import InfeasiblePoint
from deepflow.mapping.groups import Group, Places
from deepflow.network.graph import LinkState, Network, NetworkError
from deepflow.network.topology import Dimension

States = tuple[LinkState, ...]
NANOSECONDS = 1e9

_STAR = {"Switch": "switch", "FatTree": "leaf"}


def faulty_links(groups: Sequence[Group], network: Network) -> tuple[States, ...]:
    """What is wrong in each place where ``groups``, the dimensions of ``network``, meet faults.

    One empty set if they meet none. The network has dimensions within and between nodes for each
    group in turn, as far as it has several ranks there.

    Raises:
        NetworkError: a group takes up a part of a ring, mesh or tree, so that its own links are
            not those of the machine.
    """
    places = next((group.faulty for group in groups if group.faulty is not None), None)
    if places is None:
        return ((),)
    found: dict[int, dict[LinkState, None]] = {}
    for between, first, second in places.faults.links():
        for index, group in _dimensions(groups, between):
            ends = [int(end) for end in (first, second) if end.isdigit()]
            ranks = [_rank(groups, end) for end in ends]
            # Where the ranks of a machine lie that all have the same place in these groups.
            where = {end - _offset(groups, end) for end in ends} or {0}
            if not second.isdigit() or not first.isdigit():
                pair = _to_switch(network, index, ranks, first, second)
            else:
                pair = (ranks[0], ranks[1])
            alike = second == "switch" or network.topology[index] in ("Switch", "FullyConnected")
            if not (alike or _fills_line(group, places, between)):
                wiring = group.inter_topology if between else group.intra_topology
                raise NetworkError(
                    f"link {first}-{second} is faulty, and the {group.name} parallel group takes up"
                    f" a part of a {wiring}: only groups that fill it have links"
                    " of their own"
                )
            if len(where) > 1 or pair[0] == pair[1]:
                continue
            known = found.setdefault(where.pop(), {})
            for source, destination in (pair, pair[::-1]):
                state = LinkState(
                    source,
                    destination,
                    places.faults.bandwidth_factor,
                    places.faults.extra_latency * NANOSECONDS,
                )
                known[state] = None
    return tuple(dict.fromkeys(tuple(states) for states in found.values())) or ((),)


def check_links(config: HardwareConfig) -> None:
    """Raises InfeasiblePoint for a faulty link that the machine's networks do not have."""
    topology, system = config.network_topology, config.system_hierarchy
    per_node, nodes = system.num_devices_per_node, system.num_nodes
    for between, first, second in topology.faults.links():
        name = topology.inter_node if between else topology.intra_node
        width = topology.inter_node_width if between else topology.intra_node_width
        ratio = (
            topology.inter_node_oversubscription
            if between
            else topology.intra_node_oversubscription
        )
        ends = [int(end) for end in (first, second) if end.isdigit()]
        # A device's line, and its position there.
        placed = [(end % per_node, end // per_node)[:: -1 if not between else 1] for end in ends]
        size = nodes if between else per_node
        exists = (
            size > 1
            and all(end < per_node * nodes for end in ends)
            and len({line for line, _ in placed}) <= 1
            and _has_link(
                name,
                size,
                width,
                ratio,
                *(position for _, position in placed),
                *(end for end in (first, second) if not end.isdigit()),
            )
        )
        if not exists:
            where = "between nodes" if between else "within a node"
            raise InfeasiblePoint(
                f"network_topology.faults names link {first}-{second}, which a {name} of {size}"
                f" {where} does not have"
            )


def _has_link(
    topology: str, size: int, width: int, ratio: float, first: int | str, second: int | str
) -> bool:
    from deepflow.astra.hybrid import TOPOLOGIES

    kind = TOPOLOGIES.get(topology, "")
    if second == "switch":
        return kind in _STAR
    if kind == "FullyConnected":
        return first != second
    return bool(kind) and (first, second) in _links(kind, size, width, ratio)


@lru_cache(maxsize=64)
def _links(
    kind: str, size: int, width: int, ratio: float
) -> frozenset[tuple[int | str, int | str]]:
    if width and size % width:
        return frozenset()
    return frozenset(Dimension(kind, size, 1.0, 0.0, width, ratio).links())


def _dimensions(groups: Sequence[Group], between: bool) -> list[tuple[int, Group]]:
    """Dimensions of the network that are within or between nodes, each with its group."""
    found, index = [], 0
    for group in groups:
        for is_between, size in ((False, group.intra_size), (True, group.inter_size)):
            if size > 1:
                if is_between == between:
                    found.append((index, group))
                index += 1
    return found


def _rank(groups: Sequence[Group], device: int) -> int:
    """Where the network of ``groups`` has a device of the machine."""
    rank, stride = 0, 1
    for group in groups:
        rank += _position(group, device) * stride
        stride *= group.size
    return rank


def _offset(groups: Sequence[Group], device: int) -> int:
    return sum(_position(group, device) * _places(group).stride for group in groups)


def _position(group: Group, device: int) -> int:
    return device // _places(group).stride % group.size


def _places(group: Group) -> Places:
    assert group.faulty is not None
    return group.faulty


def _fills_line(group: Group, places: Places, between: bool) -> bool:
    if between:
        return group.inter_size == places.nodes
    return group.intra_size == places.per_node


def _to_switch(
    network: Network, index: int, ranks: Sequence[int], first: str, second: str
) -> tuple[int | str, int | str]:
    """A link of a switch, by the names that topologies have for it."""
    stride = 1
    for count in network.npus[:index]:
        stride *= count
    rank = ranks[0] if ranks else 0
    coordinate = rank // stride % network.npus[index]
    line = f"{index}:{rank - coordinate * stride}"
    if not ranks:
        return f"{line}:{first}", f"{line}:{second}"
    if network.topology[index] != "FatTree":
        return rank, f"{line}:switch"
    asked = network.width[index] if network.width else 0
    width = Dimension("FatTree", network.npus[index], 1.0, 0.0, asked).width
    return rank, f"{line}:leaf{coordinate // width}"
