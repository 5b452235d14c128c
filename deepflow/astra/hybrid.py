"""Hybrid mode: each collective and transfer timed alone by a simulator with ASTRA-sim's semantics.

A group becomes a network of one or two dimensions, its ranks within a node and between nodes, on
which one collective runs. Everything else, what waits for what, stays with the schedule. What the
closed forms of ``cost/collectives.py`` know beyond ASTRA-sim (handing over chunks, reductions in
switches) is not there; what a rank sends over which link is taken from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from deepflow.astra.files import SimulationInput
from deepflow.astra.runner import Binary, find_binary, run_binary
from deepflow.config.hardware import AstraBackend
from deepflow.mapping.groups import Group
from deepflow.network.graph import Network, NetworkError, Node, Options, SystemSettings
from deepflow.network.simulate import simulate
from deepflow.record import record

# Topologies of hardware files by ASTRA-sim's names; what passes through one switch is one.
TOPOLOGIES = {
    "ring": "Ring",
    "switch": "Switch",
    "pcie": "Switch",
    "fully_connected": "FullyConnected",
}
# A message of ASTRA-sim's switch crosses two links, each with the latency of its dimension.
_HOPS = {"Switch": 2}

COLLECTIVE_KINDS = {
    "all_reduce": "ALL_REDUCE",
    "all_gather": "ALL_GATHER",
    "reduce_scatter": "REDUCE_SCATTER",
    "all_to_all": "ALL_TO_ALL",
}
TRANSFER = "SEND"
NANOSECONDS = 1e9
GIB = 2**30


@record(frozen=True)
class Simulation:
    """What is simulated: one collective of all ranks, or a transfer from rank 0 to rank 1.

    ``kind``: ALL_REDUCE and so on, or ``TRANSFER``. ``size`` in bytes, of an ALL_GATHER a rank's
    part.
    """

    kind: str
    size: int
    network: Network
    system: SystemSettings


Answer = Callable[[Simulation, AstraBackend], int | None]
"""Cycles of a simulation that need not run, or None if it has to."""

_answer: ContextVar[Answer | None] = ContextVar("answer", default=None)


@contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Within the block ``answer`` is asked before anything is simulated."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


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
        link = group_network(group, between_only=between, pair=True)
        exchanges = group.size - 1 if kind == "ring_exchange" else 1
        # No reduction, so any memory will do; transfers in front of any memory are then the same.
        return exchanges * _seconds(TRANSFER, round(message_bytes), link, backend, 1e12)
    if kind not in COLLECTIVE_KINDS:
        raise NetworkError(f"the simulator has no {kind}")
    network = group_network(group)
    size = round(message_bytes)
    if kind == "all_gather":
        # ASTRA-sim names a rank's own part.
        size = -(-size // group.size)
    return _seconds(COLLECTIVE_KINDS[kind], size, network, backend, memory_bandwidth)


def group_network(group: Group, between_only: bool = False, pair: bool = False) -> Network:
    """A group's dimensions within and between nodes; with ``pair`` two ranks and their link.

    Raises NetworkError for a topology that the simulator does not have.
    """
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


def _seconds(
    kind: str, size: int, network: Network, backend: AstraBackend, memory_bandwidth: float
) -> float:
    answer = _answer.get()
    if answer is not None:
        cycles = answer(_simulation(kind, size, network, backend, memory_bandwidth), backend)
        if cycles is not None:
            return cycles / NANOSECONDS
    return _simulated_cycles(kind, size, network, backend, memory_bandwidth) / NANOSECONDS


@lru_cache(maxsize=2**14)
def _simulated_cycles(
    kind: str, size: int, network: Network, backend: AstraBackend, memory_bandwidth: float
) -> int:
    simulation = _simulation(kind, size, network, backend, memory_bandwidth)
    return run_simulation(simulation, chosen_binary(backend, congestion=False), backend.timeout)


@lru_cache(maxsize=2**14)
def _simulation(
    kind: str, size: int, network: Network, backend: AstraBackend, memory_bandwidth: float
) -> Simulation:
    return Simulation(kind, size, network, system_settings(network, backend, memory_bandwidth))


def system_settings(
    network: Network, backend: AstraBackend, memory_bandwidth: float
) -> SystemSettings:
    """The system file of a network; ``memory_bandwidth`` in bytes/s."""
    chosen = {name: _implementations(name, network, backend) for name in COLLECTIVE_KINDS}
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


def run_simulation(simulation: Simulation, binary: Binary | None, timeout: float) -> int:
    """Cycles until the last rank has finished, by ``binary`` or else the embedded simulator.

    ``timeout`` of the binary in seconds. Raises NetworkError or AstraSimError without an answer.
    """
    traces: tuple[tuple[Node, ...], ...]
    network, system, size = simulation.network, simulation.system, simulation.size
    if simulation.kind == TRANSFER:
        there = Node(1, "SEND", "send", size_bytes=size, peer=1, tag=1)
        here = Node(1, "RECV", "receive", size_bytes=size, peer=0, tag=1)
        traces = ((there,), (here,))
    else:
        kind = simulation.kind
        node = Node(1, "COLL", kind, collective=kind, size_bytes=size)
        traces = ((node,),) * network.ranks
    if binary is None:
        return simulate(traces, network, system, exact_order=False).wall_time
    given = SimulationInput(traces, network, system, {})
    return run_binary(binary, given, Options(), timeout).wall_time


def chosen_binary(backend: AstraBackend, congestion: bool) -> Binary | None:
    """The user's ASTRA-sim, if it is asked for; ``auto`` takes it if there is one."""
    if backend.simulator == "embedded":
        return None
    found = find_binary(backend, congestion)
    if found is None and backend.simulator == "binary":
        raise NetworkError(
            "no ASTRA-sim found: execution_backend.astra.binary, $ASTRA_SIM_BINARY and PATH name"
            " none"
        )
    return found
