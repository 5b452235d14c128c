"""The modes beyond ``hybrid``: chains of operators and pipelines simulated, and what all share.

The traces of ``export.py`` run on networks made of groups. In a block every parallel group has
dimensions of its own, within and between nodes, so that all ranks do the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from deepflow.astra.export import Call, Item, Phase, TraceBuilder
from deepflow.astra.faults import NANOSECONDS, States, faulty_links
from deepflow.astra.files import SimulationInput
from deepflow.astra.hybrid import (
    COLLECTIVE_KINDS,
    CONGESTION,
    binary_for,
    group_network,
    joined,
    system_settings,
)
from deepflow.astra.runner import run_binary
from deepflow.config.hardware import AstraBackend
from deepflow.mapping.groups import Group
from deepflow.network.graph import Network, NetworkError, Node, Options, Result, SystemSettings
from deepflow.network.simulate import simulate

# Nodes on all ranks that are simulated event by event; more would take minutes and gigabytes.
MOST_NODES = 2_000_000

# The same of one rank per stage, where the others do what it does: half a minute.
MOST_NODES_OF_STAGES = 8_000_000

# The simulator has no network of one rank, so two do the same; nothing is sent over it.
_NO_NETWORK = Network(("Switch",), (2,), (1.0,), (0.0,))


@lru_cache(maxsize=2**12)
def chain_time(
    items: tuple[Item, ...],
    groups: tuple[Group, ...],
    backend: AstraBackend,
    memory_bandwidth: float,
) -> float:
    """Seconds of a chain of operators that all ranks of ``groups`` run at once.

    ``groups``: those of its calls. ``memory_bandwidth`` in bytes/s, for reductions. Messages wait
    for each other on links in the mode ``hybrid_congestion``.

    Raises:
        NetworkError, AstraSimError: the simulator has no such topology, collective or answer.
    """
    parts = {group.name: group_network(group) for group in groups}
    network = _NO_NETWORK
    if parts:
        network = joined(parts.values())
    involved = {
        name: tuple(other == name for other, part in parts.items() for _ in part.npus)
        for name in parts
    }
    sizes = {group.name: group.size for group in groups}

    def phases(call: Call) -> tuple[Phase, ...]:
        size = collective_bytes(call.kind, call.message_bytes, sizes[call.group])
        everybody = len(parts) == 1
        return (
            (COLLECTIVE_KINDS[call.kind], size, 0, None if everybody else involved[call.group]),
        )

    trace = TraceBuilder()
    trace.chain(items, (), phases)
    nodes = tuple(trace.nodes)
    if not nodes:
        return 0.0
    congestion = backend.mode == CONGESTION
    if congestion and len(network.npus) > 1:
        check_size(len(nodes) * network.ranks * max(network.npus))
    traces = (nodes,) * network.ranks
    settings = settings_for(network, backend, memory_bandwidth)
    return max(
        run(traces, network, settings, backend, {}, congestion, states).wall_time / NANOSECONDS
        for states in faulty_links(groups, network)
    )


def collective_bytes(kind: str, message_bytes: float, ranks: int) -> int:
    """What ASTRA-sim calls the size of a collective: of an all_gather a rank's own part."""
    size = round(message_bytes)
    return -(-size // ranks) if kind == "all_gather" else size


def settings_for(
    network: Network, backend: AstraBackend, memory_bandwidth: float
) -> SystemSettings:
    """The system file. An operation takes a picosecond, so that their number states a time."""
    return replace(
        system_settings(network, backend, memory_bandwidth),
        peak_perf=1.0,
        roofline_enabled=True,
    )


def pipeline_network(group: Group, stages: int) -> Network:
    """Stages in a row, linked as those of ``group``; of one stage there are two replicas."""
    if stages == 1:
        return _NO_NETWORK
    if group.faulty is not None:
        raise NetworkError(
            "a pipeline that is simulated alone has no faulty links; the modes hybrid,"
            " hybrid_congestion and full_astrasim_flattened have"
        )
    pair = group_network(group, between_only=group.inter_size > 1, pair=True)
    return replace(pair, npus=(stages,))


def run(
    traces: Sequence[Sequence[Node]],
    network: Network,
    settings: SystemSettings,
    backend: AstraBackend,
    groups: Mapping[int, tuple[int, ...]],
    congestion: bool = False,
    states: States = (),
) -> Result:
    """Simulates with what the backend asks for; ``states``: of faulty links.

    Raises NetworkError or AstraSimError without an answer.
    """
    binary = binary_for(network, backend, congestion, states)
    # The binary has one dimension for congestion, and no ring of two, which has a link twice.
    beyond = binary is None and congestion
    options = Options(
        congestion=congestion, congestion_in_all_dimensions=beyond, link_states=states
    )
    if binary is None:
        return simulate(traces, network, settings, options, groups, exact_order=False)
    given = SimulationInput(tuple(map(tuple, traces)), network, settings, groups)
    return run_binary(binary, given, options, backend.timeout)


def check_size(nodes: int) -> None:
    """Raises NetworkError for more nodes or messages on all ranks than are simulated."""
    if nodes > MOST_NODES:
        raise NetworkError(
            f"{nodes:,} nodes or messages on all ranks are more than the {MOST_NODES:,} that are"
            " simulated; the mode hybrid takes any number"
        )


def check_parts(nodes: int) -> None:
    """Raises NetworkError for more nodes on one rank of each stage than are simulated."""
    if nodes > MOST_NODES_OF_STAGES:
        raise NetworkError(
            f"{nodes:,} nodes on a rank of every stage are more than the"
            f" {MOST_NODES_OF_STAGES:,} that are simulated; the mode hybrid takes any number"
        )
