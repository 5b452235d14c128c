"""Hybrid mode: each collective and transfer timed alone by a simulator with ASTRA-sim's semantics.

A group becomes a network of one or two dimensions, its ranks within a node and between nodes, on
which one collective runs. Everything else, what waits for what, stays with the schedule. What the
closed forms of ``cost/collectives.py`` know beyond ASTRA-sim (handing over chunks, reductions in
switches) is not there; what a rank sends over which link is taken from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from math import gcd
from typing import Any

from deepflow.astra.faults import NANOSECONDS, States, faulty_links
from deepflow.astra.files import SimulationInput
from deepflow.astra.runner import Binary, beyond_binary, find_binary, run_binary
from deepflow.config.hardware import AstraBackend
from deepflow.mapping.groups import Group, Wiring
from deepflow.network.graph import Network, NetworkError, Node, Options, SystemSettings
from deepflow.network.simulate import simulate
from deepflow.network.topology import squarest_divisor
from deepflow.record import record

# Topologies of hardware files by ASTRA-sim's names; what passes through one switch is one.
TOPOLOGIES = {
    "ring": "Ring",
    "switch": "Switch",
    "pcie": "Switch",
    "fully_connected": "FullyConnected",
    "fc": "FullyConnected",
    # These are the embedded simulator's own.
    "mesh": "Mesh",
    "mesh_2d": "Mesh2D",
    "torus_2d": "Torus2D",
    "fat_tree": "FatTree",
}
# Through a switch a message crosses two links, each with the latency of its dimension.
_HOPS = {"Switch": 2, "FatTree": 2}
_GRIDS = ("Mesh2D", "Torus2D")

COLLECTIVE_KINDS = {
    "all_reduce": "ALL_REDUCE",
    "all_gather": "ALL_GATHER",
    "reduce_scatter": "REDUCE_SCATTER",
    "all_to_all": "ALL_TO_ALL",
}
TRANSFER = "SEND"
NEIGHBOURS = "SEND to the next"
# With contention every message is followed over every link: so many take a few minutes.
MOST_CROSSINGS = 100_000_000
_BEFORE_MESSAGES = 1  # ns
# The mode in which messages wait for each other on links.
CONGESTION = "hybrid_congestion"
GIB = 2**30


@record(frozen=True)
class Simulation:
    """What is simulated: one collective of all ranks, or a transfer between neighbours.

    ``kind``: ALL_REDUCE and so on, ``TRANSFER`` of one rank or ``NEIGHBOURS``, of all at once.
    ``size`` in bytes, of an ALL_GATHER a rank's part.
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
        exchanges = group.size - 1 if kind == "ring_exchange" else 1
        # No reduction, so any memory will do; transfers in front of any memory are then the same.
        if group.faulty is None:
            link = group_network(group, between_only=between, pair=True)
            return exchanges * _seconds(TRANSFER, round(message_bytes), link, backend, 1e12)
        network = group_network(group, transfers=True)
        what = NEIGHBOURS if kind == "ring_exchange" else TRANSFER
        return exchanges * max(
            _seconds(what, round(message_bytes), network, backend, 1e12, states)
            for states in faulty_links([group], network)
        )
    if kind not in COLLECTIVE_KINDS:
        raise NetworkError(f"the simulator has no {kind}")
    network = group_network(group)
    size = round(message_bytes)
    if kind == "all_gather":
        # ASTRA-sim names a rank's own part.
        size = -(-size // group.size)
    # A remainder would be a whole chunk more, and messages be faster that are a little longer.
    size = -(-size // backend.dataset_splits) * backend.dataset_splits
    return max(
        _seconds(COLLECTIVE_KINDS[kind], size, network, backend, memory_bandwidth, states)
        for states in faulty_links([group], network)
    )


def group_network(
    group: Group, between_only: bool = False, pair: bool = False, transfers: bool = False
) -> Network:
    """A group's dimensions within and between nodes; with ``pair`` two ranks and their link.

    ``transfers``: a rank sends to one other at a time, as always in a pair.

    Raises NetworkError for a topology that the simulator does not have.
    """
    dimensions = []
    for size, topology, bandwidth, latency, wiring in (
        (
            group.intra_size if not between_only else 1,
            group.intra_topology,
            group.intra_bandwidth,
            group.intra_latency,
            group.intra_wiring,
        ),
        (
            group.inter_size if between_only or not pair else 1,
            group.inter_topology,
            group.inter_bandwidth,
            group.inter_latency,
            group.inter_wiring,
        ),
    ):
        if size > 1:
            name = TOPOLOGIES.get(topology)
            if name is None:
                raise NetworkError(
                    f"the simulator has no topology {topology!r}; it has {', '.join(TOPOLOGIES)}"
                )
            ratio = wiring.oversubscription if name == "FatTree" else 1.0
            width = min(wiring.width, size) if name in (*_GRIDS, "FatTree") else 0
            distance = 1
            if wiring.line:
                name, width, distance = _part_of_line(name, size, wiring)
                if name == "FatTree" and width < min(ratio, size):
                    # Less than an uplink for all of a leaf, which others on it share.
                    bandwidth, ratio = bandwidth * width / ratio, float(width)
            # Two neighbours of a grid or a tree have a link or a switch between them.
            if pair:
                name = {"Torus2D": "Mesh", "Mesh2D": "Mesh", "FatTree": "Switch"}.get(name, name)
                width, ratio = 0, 1.0
            hop = latency * NANOSECONDS / _HOPS.get(name, 1) * distance
            # A group's bandwidth is that of a rank, whose links to all others share it.
            links = 1
            if name == "FullyConnected" and not (pair or transfers):
                links = size - 1
            elif topology in ("mesh_2d", "torus_2d"):
                links = 2
            count = 2 if pair else size
            dimensions.append((name, count, bandwidth / links / GIB, hop, width, ratio))
    return _network(zip(*dimensions, strict=True))


def _part_of_line(name: str, size: int, wiring: Wiring) -> tuple[str, int, int]:
    """Topology and width of ``size`` ranks in a longer line, and links from one to the next.

    Only what closes the ring of the line, or of a row or column, is a ring; other parts have open
    ends. Whole rows remain a grid. Messages of other ranks on the same links are not known here.
    """
    line, stride = wiring.line, wiring.stride
    whole = size * stride == line
    row = wiring.width or squarest_divisor(line)
    if name == "FatTree":
        on_leaf = max(1, row // stride)
        return name, size if size <= on_leaf else gcd(on_leaf, size), 1
    if name not in _GRIDS:
        return ("Ring" if name == "Ring" and whole else "Mesh"), 0, stride
    wraps = name == "Torus2D"
    if stride % row == 0:
        return ("Ring" if wraps and whole else "Mesh"), 0, stride // row
    if size * stride <= row:
        return ("Ring" if wraps and size * stride == row else "Mesh"), 0, stride
    if row % stride == 0 and size * stride % row == 0:
        return name, row // stride, stride
    return "Mesh", 0, stride


def joined(networks: Iterable[Network]) -> Network:
    """One network with the dimensions of all; it has at least one."""
    parts = [
        (
            part.topology,
            part.npus,
            part.bandwidth,
            part.latency,
            part.width or (0,) * len(part.npus),
            part.oversubscription or (1.0,) * len(part.npus),
        )
        for part in networks
    ]
    return _network(tuple(chain.from_iterable(column)) for column in zip(*parts, strict=True))


def _network(columns: Iterable[tuple[Any, ...]]) -> Network:
    """What ASTRA-sim has no words for is left out where nothing is said by it."""
    topology, npus, bandwidth, latency, widths, ratios = columns
    network = Network(topology, npus, bandwidth, latency)
    if any(widths) or any(ratio > 1 for ratio in ratios):
        return replace(network, width=widths, oversubscription=ratios)
    return network


def _seconds(
    kind: str,
    size: int,
    network: Network,
    backend: AstraBackend,
    memory_bandwidth: float,
    states: States = (),
) -> float:
    answer = _answer.get()
    if answer is not None and backend.mode != CONGESTION and not states:
        cycles = answer(_simulation(kind, size, network, backend, memory_bandwidth), backend)
        if cycles is not None:
            return cycles / NANOSECONDS
    cycles = _simulated_cycles(kind, size, network, backend, memory_bandwidth, states)
    return cycles / NANOSECONDS


@lru_cache(maxsize=2**14)
def _simulated_cycles(
    kind: str,
    size: int,
    network: Network,
    backend: AstraBackend,
    memory_bandwidth: float,
    states: States,
) -> int:
    simulation = _simulation(kind, size, network, backend, memory_bandwidth)
    congestion = backend.mode == CONGESTION
    binary = binary_for(network, backend, congestion, states)
    return run_simulation(simulation, binary, backend.timeout, congestion, states)


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
            doubles = topology in ("Switch", "FatTree") and not npus & (npus - 1)
            chosen.append("halvingDoubling" if doubles else "ring")
    return tuple(chosen)


def run_simulation(
    simulation: Simulation,
    binary: Binary | None,
    timeout: float,
    congestion: bool = False,
    states: States = (),
) -> int:
    """Cycles until the last rank has finished, by ``binary`` or else the embedded simulator.

    ``timeout`` of the binary in seconds; with ``congestion`` messages wait for each other on links;
    ``states``: of faulty links. Raises NetworkError or AstraSimError without an answer.
    """
    network, system = simulation.network, simulation.system
    # The binary has one dimension for congestion, and no ring of two, which has a link twice.
    beyond = binary is None and congestion
    options = Options(
        congestion=congestion, congestion_in_all_dimensions=beyond, link_states=states
    )
    if beyond:
        _check_crossings(simulation)
    times = []
    for traces in _traces(simulation, states):
        if binary is None:
            result = simulate(traces, network, system, options, exact_order=False)
        else:
            given = SimulationInput(traces, network, system, {})
            result = run_binary(binary, given, options, timeout)
        times.append(result.wall_time)
    return max(times) - (_BEFORE_MESSAGES if simulation.kind in (TRANSFER, NEIGHBOURS) else 0)


def _traces(simulation: Simulation, states: States) -> Iterator[tuple[tuple[Node, ...], ...]]:
    """What to simulate: one thing, or a transfer in all places where links near it are faulty."""
    kind, size, network = simulation.kind, simulation.size, simulation.network
    if kind not in (TRANSFER, NEIGHBOURS):
        node = Node(1, "COLL", kind, collective=kind, size_bytes=size)
        yield ((node,),) * network.ranks
    elif kind == NEIGHBOURS:
        everybody = range(network.ranks)
        yield _messages(size, network, [(rank, (rank + 1) % network.ranks) for rank in everybody])
    else:
        for pair in _pairs_near(states, network):
            yield _messages(size, network, [pair])


def _check_crossings(simulation: Simulation) -> None:
    """Raises NetworkError if messages cross more links than can be followed one by one."""
    network, name = simulation.network, simulation.kind.lower()
    if name not in COLLECTIVE_KINDS or network.topology == ("FullyConnected",):
        # Messages that meet nobody need not be followed.
        return
    crossings = 0.0
    algorithms = getattr(simulation.system, f"{name}_implementation")
    for topology, count, algorithm in zip(network.topology, network.npus, algorithms, strict=True):
        far = {"Ring": count / 4, "Mesh": count / 3, "FullyConnected": 1.0}.get(topology, 2.0)
        if topology in _GRIDS:
            far = count**0.5 / 2
        if algorithm == "ring":
            crossings += count * (count - 1) / 2 if name == "all_to_all" else count
        else:
            crossings += far * (count if algorithm.startswith("direct") else count.bit_length())
    crossings *= network.ranks * simulation.system.preferred_dataset_splits
    if crossings > MOST_CROSSINGS:
        raise NetworkError(
            f"messages would cross links about {crossings:.2g} times, more than the"
            f" {MOST_CROSSINGS:.2g} that can be followed with contention; the mode hybrid takes any"
            " number"
        )


def _messages(
    size: int, network: Network, pairs: Sequence[tuple[int, int]]
) -> tuple[tuple[Node, ...], ...]:
    # Nobody can begin with something that takes no time at all, as a few bytes do on a link.
    traces: list[tuple[Node, ...]] = [(Node(0, "COMP"),)] * network.ranks
    for source, destination in pairs:
        there = Node(1, "SEND", "send", (0,), size_bytes=size, peer=destination, tag=1)
        here = Node(2, "RECV", "receive", size_bytes=size, peer=source, tag=1)
        traces[source] += (there,)
        traces[destination] += (here,)
    return tuple(traces)


def _pairs_near(states: States, network: Network) -> list[tuple[int, int]]:
    """Neighbours in the last dimension: the first two ranks, and those that faulty links join."""
    count = network.npus[-1]
    stride = network.ranks // count
    pairs = {(0, stride): None}
    for state in states:
        source, destination = state.source, state.destination
        if isinstance(source, int) and isinstance(destination, int):
            if (destination - source) % stride == 0:
                pairs[source, destination] = None
        elif str(destination).startswith(f"{len(network.npus) - 1}:") and isinstance(source, int):
            place = source // stride
            other = place ^ 1 if place ^ 1 < count else place - 1
            beside = source + (other - place) * stride
            pairs[source, beside] = pairs[beside, source] = None
    return list(pairs)


def binary_for(
    network: Network, backend: AstraBackend, congestion: bool = False, states: States = ()
) -> Binary | None:
    """The user's ASTRA-sim as ``chosen_binary``; ``auto`` takes it for what it can simulate."""
    if backend.simulator == "auto":
        options = Options(congestion=congestion, link_states=states)
        if beyond_binary(network, options):
            return None
    return chosen_binary(backend, congestion)


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
