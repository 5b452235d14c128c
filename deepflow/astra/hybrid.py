"""Hybrid mode: each collective and transfer timed alone by a simulator with ASTRA-sim's semantics.

A group becomes a network of one or two dimensions, its ranks within a node and between nodes, on
which one collective runs. Everything else, what waits for what, stays with the schedule. What the
closed forms of ``cost/collectives.py`` know beyond ASTRA-sim (handing over chunks, reductions in
switches) is not there; what a rank sends over which link is taken from them.
"""

from __future__ import annotations

from functools import lru_cache

from deepflow.astra.files import SimulationInput
from deepflow.astra.runner import Binary, find_binary, run_binary
from deepflow.config.hardware import AstraBackend
from deepflow.mapping.groups import Group
from deepflow.network.graph import Network, NetworkError, Node, Options, SystemSettings
from deepflow.network.simulate import simulate

# Topologies of hardware files by ASTRA-sim's names; what passes through one switch is one.
TOPOLOGIES = {
    "ring": "Ring",
    "switch": "Switch",
    "pcie": "Switch",
    "fully_connected": "FullyConnected",
}
# A message of ASTRA-sim's switch crosses two links, each with the latency of its dimension.
_HOPS = {"Switch": 2}

_KINDS = {
    "all_reduce": "ALL_REDUCE",
    "all_gather": "ALL_GATHER",
    "reduce_scatter": "REDUCE_SCATTER",
    "all_to_all": "ALL_TO_ALL",
}
NANOSECONDS = 1e9
GIB = 2**30


def simulated_time(
    kind: str, message_bytes: float, group: Group, backend: AstraBackend, memory_bandwidth: float
) -> float:
    """Seconds of one collective or transfer over ``group``.

    ``kind`` and ``message_bytes`` as in ``collective_cost``; ``memory_bandwidth`` in bytes/s is
    what reductions read and write their operands with.

    Raises:
        NetworkError, AstraSimError: the simulator has no such topology, collective or answer.
    """
    if group.size <= 1 or message_bytes <= 0 or kind == "none":
        return 0.0
    if kind in ("send", "ring_exchange"):
        between = group.inter_size > 1
        link = _network(group, between_only=between, pair=True)
        exchanges = group.size - 1 if kind == "ring_exchange" else 1
        return exchanges * _transfer_time(link, round(message_bytes), backend)
    if kind not in _KINDS:
        raise NetworkError(f"the simulator has no {kind}")
    network = _network(group)
    size = round(message_bytes)
    if kind == "all_gather":
        # ASTRA-sim names a rank's own part.
        size = -(-size // group.size)
    return _collective_time(_KINDS[kind], size, network, backend, memory_bandwidth)


def _network(group: Group, between_only: bool = False, pair: bool = False) -> Network:
    dimensions = []
    for size, topology, bandwidth, latency in (
        (
            group.intra_size if not between_only else 1,
            group.intra_topology,
            group.intra_bandwidth,
            group.intra_latency,
        ),
        (
            group.inter_size if between_only or not pair else 1,
            group.inter_topology,
            group.inter_bandwidth,
            group.inter_latency,
        ),
    ):
        if size > 1:
            name = TOPOLOGIES.get(topology)
            if name is None:
                raise NetworkError(
                    f"the simulator has no topology {topology!r}; it has {', '.join(TOPOLOGIES)}"
                )
            hop = latency * NANOSECONDS / _HOPS.get(name, 1)
            # A group's bandwidth is that of a rank, whose links to all others share it.
            links = size - 1 if name == "FullyConnected" and not pair else 1
            dimensions.append((name, 2 if pair else size, bandwidth / links / GIB, hop))
    names, sizes, bandwidths, latencies = zip(*dimensions, strict=True)
    return Network(names, sizes, bandwidths, latencies)


@lru_cache(maxsize=2**14)
def _collective_time(
    kind: str, size: int, network: Network, backend: AstraBackend, memory_bandwidth: float
) -> float:
    node = Node(1, "COLL", kind, collective=kind, size_bytes=size)
    settings = _settings(kind, network, backend, memory_bandwidth)
    return _cycles(((node,),) * network.ranks, network, settings, backend) / NANOSECONDS


@lru_cache(maxsize=2**14)
def _transfer_time(network: Network, size: int, backend: AstraBackend) -> float:
    there = Node(1, "SEND", "send", size_bytes=size, peer=1, tag=1)
    here = Node(1, "RECV", "receive", size_bytes=size, peer=0, tag=1)
    settings = _settings("ALL_REDUCE", network, backend, 1e12)
    return _cycles(((there,), (here,)), network, settings, backend) / NANOSECONDS


def _settings(
    kind: str, network: Network, backend: AstraBackend, memory_bandwidth: float
) -> SystemSettings:
    chosen = {name: _implementations(name, network, backend) for name in _KINDS}
    return SystemSettings(
        scheduling_policy="LIFO",
        collective_optimization="localBWAware",
        preferred_dataset_splits=backend.dataset_splits,
        local_mem_bw=memory_bandwidth / 1e9,
        active_chunks_per_dimension=backend.active_chunks,
        all_reduce_implementation=chosen["all_reduce"],
        all_gather_implementation=chosen["all_gather"],
        reduce_scatter_implementation=chosen["reduce_scatter"],
        all_to_all_implementation=chosen["all_to_all"],
    )


def _implementations(name: str, network: Network, backend: AstraBackend) -> tuple[str, ...]:
    """The algorithm in each dimension: the one asked for, or what suits the topology.

    The congestion-unaware simulator gives every message the whole bandwidth of a link, so on rings
    and switches only algorithms that send to one peer at a time do not get it several times over.
    """
    asked = getattr(backend.collectives, name)
    if asked != "auto":
        return (asked,) * len(network.npus)
    chosen = []
    for topology, npus in zip(network.topology, network.npus, strict=True):
        if topology == "FullyConnected":
            chosen.append("direct")
        elif name == "all_to_all":
            chosen.append("direct1")
        else:
            doubles = topology == "Switch" and not npus & (npus - 1)
            chosen.append("halvingDoubling" if doubles else "ring")
    return tuple(chosen)


def _cycles(
    traces: tuple[tuple[Node, ...], ...],
    network: Network,
    settings: SystemSettings,
    backend: AstraBackend,
) -> int:
    binary = _binary(backend)
    if binary is None:
        return simulate(traces, network, settings).wall_time
    given = SimulationInput(traces, network, settings, {})
    return run_binary(binary, given, Options(), backend.timeout).wall_time


def _binary(backend: AstraBackend) -> Binary | None:
    """The user's ASTRA-sim, if it is asked for; ``auto`` takes it if there is one."""
    if backend.simulator == "embedded":
        return None
    found = find_binary(backend, congestion=False)
    if found is None and backend.simulator == "binary":
        raise NetworkError(
            "no ASTRA-sim found: execution_backend.astra.binary, $ASTRA_SIM_BINARY and PATH name"
            " none"
        )
    return found
