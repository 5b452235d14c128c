"""A whole machine as one simulation: every rank's trace, its groups and its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deepflow.astra.export import Call, Phase
from deepflow.astra.faults import NANOSECONDS, faulty_links
from deepflow.astra.hybrid import COLLECTIVE_KINDS, binary_for, group_network
from deepflow.astra.modes import check_size, collective_bytes, run, settings_for
from deepflow.config.hardware import AstraBackend
from deepflow.mapping.groups import Group
from deepflow.network.graph import Network, NetworkError, Node, Result, SystemSettings
from deepflow.network.lockstep import Part
from deepflow.network.program import Program
from deepflow.network.simulate import simulate_parts

# What ranks take part in: all of a group, its part in a node, or one of every node's part.
WHOLE, WITHIN, ACROSS = "whole", "within", "across"

Place = tuple[int, tuple[bool, ...] | None]
"""How a collective names its ranks: communicator group, and dimensions of the network."""


@dataclass
class Machine:
    """All ranks of a machine in rank order, and the groups in which they talk.

    ``whole``: the group of all ranks; ``groups`` by name, each with the distance of neighbours;
    ``stages``: pipeline stages, equal parts of the ranks; ``splits``: chunks of a collective.

    Where a group spans nodes, its collectives go level by level, as those of all ranks do. A group
    that is a whole dimension of the network is that to ASTRA-sim too, which then takes the
    algorithm of the dimension; other groups are rings in a network of two dimensions.
    """

    whole: Group
    groups: Mapping[str, tuple[Group, int]]
    stages: int
    splits: int
    _levels: list[tuple[str, str]] = field(default_factory=list)
    _numbers: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def communicators(self) -> dict[int, tuple[int, ...]]:
        """Ranks by number of the communicator group, of all that ``place`` has named."""
        return {number: ranks for ranks, number in self._numbers.items()}

    def phases(self, call: Call) -> tuple[Phase, ...]:
        """What a rank runs for a call. Its group is a number whose meaning ``places`` tells.

        Raises NetworkError where the group's network is not that of its ranks' places.
        """
        group, _ = self.groups[call.group]
        self._check_place(group)
        kind, size = call.kind, call.message_bytes
        if group.size == self.whole.size or group.intra_size == 1 or group.inter_size == 1:
            return (self._phase(kind, size, group, WHOLE),)
        part = size / group.intra_size
        match kind:
            case "all_reduce":
                plan = [("reduce_scatter", size, WITHIN), (kind, part, ACROSS)]
                plan.append(("all_gather", size, WITHIN))
            case "all_gather":
                plan = [(kind, part, ACROSS), (kind, size, WITHIN)]
            case "reduce_scatter":
                plan = [(kind, size, WITHIN), (kind, part, ACROSS)]
            case _:
                plan = [(kind, size, WITHIN), (kind, size, ACROSS)]
        return tuple(self._phase(what, amount, group, level) for what, amount, level in plan)

    def places(self, rank: int) -> tuple[Place, ...]:
        """What the group numbers of ``phases``, from 1, mean to a rank."""
        return tuple(self._place(self._members(rank, *level), rank) for level in self._levels)

    def _phase(self, kind: str, size: float, group: Group, level: str) -> Phase:
        ranks = {WHOLE: group.size, WITHIN: group.intra_size, ACROSS: group.inter_size}
        if (group.name, level) not in self._levels:
            self._levels.append((group.name, level))
        number = self._levels.index((group.name, level)) + 1
        # An all_gather of fewer bytes than chunks would have no end in ASTRA-sim.
        least = max(self.splits, collective_bytes(kind, size, ranks[level]))
        return COLLECTIVE_KINDS[kind], least, number, None

    def _members(self, rank: int, name: str, level: str) -> tuple[int, ...]:
        group, stride = self.groups[name]
        index, inner = rank // stride % group.size, group.intra_size
        first = rank - index * stride
        ranks = tuple(range(first, first + group.size * stride, stride))
        if level == WITHIN:
            return ranks[index - index % inner :][:inner]
        return ranks[index % inner :: inner] if level == ACROSS else ranks

    def _place(self, ranks: tuple[int, ...], rank: int) -> Place:
        # Collectives of no group are numbered on each rank, so all that take part must have had the
        # same ones before. Ranks of a stage have, ranks of several stages have not.
        total, node = self.whole.size, self.whole.intra_size
        width = total // self.stages
        in_a_stage = ranks[0] // width == ranks[-1] // width
        # Stages between the first and the last do not share an embedding with anybody.
        outside = ranks[-1] >= total
        if outside or (len(ranks) == total and in_a_stage):
            return 0, None
        if 1 < node < total and in_a_stage:
            start = rank - rank % node
            if ranks == tuple(range(start, start + node)):
                return 0, (True, False)
            if ranks == tuple(range(rank % node, total, node)):
                return 0, (False, True)
        return self._numbers.setdefault(ranks, len(self._numbers) + 1), None

    def _check_place(self, group: Group) -> None:
        whole = self.whole
        nodes = [rank // whole.intra_size for rank in self._members(0, group.name, WHOLE)]
        runs = [nodes[at : at + group.intra_size] for at in range(0, group.size, group.intra_size)]
        together = all(len(set(run)) == 1 for run in runs)
        apart = len({run[0] for run in runs}) == group.inter_size
        same_links = (group.intra_size == 1 or group.intra_bandwidth == whole.intra_bandwidth) and (
            group.inter_size == 1 or group.inter_bandwidth == whole.inter_bandwidth
        )
        if not (together and apart and same_links):
            raise NetworkError(
                f"the {group.name} parallel group does not use the network that follows from the"
                " places of its ranks; the mode full_astrasim_flattened knows no other"
            )


def machine_time(
    stages: Sequence[Program],
    machine: Machine,
    backend: AstraBackend,
    memory_bandwidth: float,
) -> float:
    """Seconds until the last rank is done; ``stages``: what each one's ranks run.

    Peers of messages are stages, and mean the rank there that has the same place in its stage.
    The embedded simulator takes the ranks of a stage as one where they stay in step.

    Raises:
        NetworkError, AstraSimError: the simulator has no answer, or it would take too long.
    """
    ranks = machine.whole.size
    width = ranks // len(stages)
    places = [machine.places(rank) for rank in range(ranks)]
    network = group_network(machine.whole)
    settings = settings_for(network, backend, memory_bandwidth)
    groups = machine.communicators
    if any(len(members) & (len(members) - 1) for members in groups.values()):
        settings = _without_doubling(settings, backend)
    faults = faulty_links([machine.whole], network)
    if not any(faults) and binary_for(network, backend) is None:
        result = _stages_in_step(stages, places, network, settings, groups)
        if result is not None:
            return result.wall_time / NANOSECONDS
    check_size(width * sum(len(program.what) for program in stages))
    named: dict[tuple[int, Place], Node] = {}
    shared: dict[object, tuple[Node, ...]] = {}
    expanded = [program.nodes() for program in stages]
    traces = []
    for rank in range(ranks):
        # With messages to other stages every rank has its own peers.
        key: object = places[rank] if len(stages) == 1 else rank
        if key not in shared:
            shared[key] = _trace(expanded[rank // width], places[rank], rank % width, width, named)
        traces.append(shared[key])
    return max(
        run(traces, network, settings, backend, groups, states=states).wall_time / NANOSECONDS
        for states in faults
    )


def _stages_in_step(
    stages: Sequence[Program],
    places: Sequence[Sequence[Place]],
    network: Network,
    settings: SystemSettings,
    groups: Mapping[int, tuple[int, ...]],
) -> Result | None:
    """One simulated rank per stage, if that is the same."""
    ranks = len(places)
    width = ranks // len(stages)
    # All stages share their operations.
    operations = [
        node if node.peer is None else replace(node, peer=node.peer * width)
        for node in stages[0].operations
    ]
    named: dict[tuple[int, Place], Node] = {}

    def node_of(node: Node, rank: int) -> Node:
        return _named(node, places[rank], named) if node.group else node

    parts = [
        Part(
            range(stage * width, (stage + 1) * width),
            replace(program, operations=operations),
            node_of,
        )
        for stage, program in enumerate(stages)
    ]
    return simulate_parts(parts, network, settings, groups)


def _trace(
    nodes: Sequence[Node],
    places: Sequence[Place],
    offset: int,
    width: int,
    named: dict[tuple[int, Place], Node],
) -> tuple[Node, ...]:
    """A stage's nodes for one of its ranks; ``named`` keeps collectives that ranks share."""
    result = []
    for node in nodes:
        if node.peer is not None:
            node = replace(node, peer=node.peer * width + offset)
        elif node.group:
            node = _named(node, places, named)
        result.append(node)
    return tuple(result)


def _named(node: Node, places: Sequence[Place], named: dict[tuple[int, Place], Node]) -> Node:
    """A collective as a rank with these ``places`` names it."""
    place = places[node.group - 1]
    key = (id(node), place)
    if key not in named:
        named[key] = replace(node, group=place[0], involved_dimensions=place[1])
    return named[key]


def _without_doubling(settings: SystemSettings, backend: AstraBackend) -> SystemSettings:
    """Rings where the choice is free: groups that are no power of two cannot double."""
    rings: dict[str, Any] = {
        f"{name}_implementation": tuple(
            "ring" if choice == "halvingDoubling" else choice
            for choice in getattr(settings, f"{name}_implementation")
        )
        for name in COLLECTIVE_KINDS
        if getattr(backend.collectives, name) == "auto"
    }
    return replace(settings, **rings)
