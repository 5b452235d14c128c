"""The entrance: traces, network and settings in, the cycles of every rank out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepflow.network.event_model import Inputs, Simulation, check
from deepflow.network.graph import Network, Node, Options, RemoteMemory, Result, SystemSettings
from deepflow.network.symmetric import simulate_symmetric


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
    return simulate_symmetric(inputs, exact_order) or Simulation(inputs).run()


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
