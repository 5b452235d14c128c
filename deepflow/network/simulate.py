"""The entrance: traces, network and settings in, the cycles of every rank out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepflow.network.checks import check_groups, check_network, check_nodes, check_system
from deepflow.network.event_model import Inputs, Simulation, check
from deepflow.network.graph import (
    Network,
    NetworkError,
    Node,
    Options,
    RemoteMemory,
    Result,
    SystemSettings,
)
from deepflow.network.lockstep import Part, run_parts, simulate_lockstep
from deepflow.network.symmetric import SymmetricSimulation, is_symmetric, simulate_symmetric


def simulate(
    traces: Sequence[Sequence[Node]],
    network: Network,
    system: SystemSettings,
    options: Options | None = None,
    groups: Mapping[int, Sequence[int]] | None = None,
    memory: RemoteMemory | None = None,
    *,
    exact_order: bool = True,
) -> Result:
    """Cycles of every rank for one trace per rank.

    With default options these are the cycles of ASTRA-sim's analytical backends. Ranks that run
    the same trace should be given the same object: it is checked once then. If all ranks do the
    same and closed forms say what it takes, one rank stands for all, with the same result. More
    inputs qualify without ``exact_order``, when ranks that finish together need no order.
    Raises NetworkError for input that cannot be simulated, and when ranks wait for each other
    or for messages that nobody sends: it names the ranks and the nodes.
    """
    inputs = Inputs(traces, network, system, options or Options(), groups or {}, memory)
    check(inputs)
    result = simulate_symmetric(inputs, exact_order)
    if result is None and not exact_order:
        result = simulate_lockstep(inputs)
    return result or Simulation(inputs).run()


def simulate_parts(
    parts: Sequence[Part],
    network: Network,
    system: SystemSettings,
    groups: Mapping[int, Sequence[int]],
) -> Result | None:
    """``simulate`` without ``exact_order`` for ranks in parts that do the same, one rank each.

    ``parts`` cover all ranks, in their order. None if one rank does not stand for its part, or if
    only the event model knows. Raises NetworkError for input that cannot be simulated.
    """
    options = Options()
    check_network(network, options)
    check_system(system, options)
    check_groups(groups, network.ranks)
    for operations in {id(part.program.operations): part for part in parts}.values():
        first = operations.ranks[0]
        nodes = [operations.node_of(node, first) for node in operations.program.operations]
        check_nodes(nodes, first, network, system, options, has_memory=False)
    return run_parts(parts, Inputs((), network, system, options, groups, None))


def simulate_events(
    traces: Sequence[Sequence[Node]],
    network: Network,
    system: SystemSettings,
    options: Options | None = None,
    groups: Mapping[int, Sequence[int]] | None = None,
    memory: RemoteMemory | None = None,
) -> Result:
    """``simulate`` without any short cut: every message of every rank is an event."""
    inputs = Inputs(traces, network, system, options or Options(), groups or {}, memory)
    check(inputs)
    return Simulation(inputs).run()


class CollectiveTimes:
    """Cycles of single collectives on an idle network, each computed once.

    Raises NetworkError for a network or settings that cannot be simulated.
    """

    def __init__(
        self, network: Network, system: SystemSettings, options: Options | None = None
    ) -> None:
        # A node that does nothing: what is checked and kept here is everything else.
        nothing = (Node(0, "COMP", is_cpu=True),)
        traces = (nothing,) * network.ranks
        self._inputs = Inputs(traces, network, system, options or Options(), {}, None)
        check(self._inputs)
        self._one_rank = SymmetricSimulation(self._inputs) if is_symmetric(self._inputs) else None
        self._cycles: dict[tuple[str, int, tuple[bool, ...] | None], int] = {}

    def cycles(
        self, collective: str, size_bytes: int, involved_dimensions: tuple[bool, ...] | None = None
    ) -> int:
        """Cycles until the last rank has finished; the size as in ``Node.size_bytes``.

        Raises NetworkError if the collective cannot be simulated.
        """
        key = (collective, size_bytes, involved_dimensions)
        cycles = self._cycles.get(key)
        if cycles is None:
            cycles = self._cycles[key] = self._compute(*key)
        return cycles

    def _compute(
        self, collective: str, size_bytes: int, involved_dimensions: tuple[bool, ...] | None
    ) -> int:
        if collective == "BROADCAST":
            raise NetworkError("a broadcast takes the duration of its node and no messages")
        node = Node(
            0,
            "COLL",
            collective=collective,
            size_bytes=size_bytes,
            involved_dimensions=involved_dimensions,
        )
        network, system, options = (
            self._inputs.network,
            self._inputs.system,
            self._inputs.options,
        )
        if self._one_rank is not None and not system.replay_only:
            check_nodes((node,), 0, network, system, options, has_memory=False)
            cycles = self._one_rank.collective_cycles(node)
            if cycles is not None:
                return cycles
        traces = ((node,),) * network.ranks
        result = simulate(traces, network, system, options, exact_order=False)
        return result.wall_time
