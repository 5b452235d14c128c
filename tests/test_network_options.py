"""What goes beyond ASTRA-sim: more topologies, faults, contention and overlap. Mostly laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.network.graph import (
    LinkState,
    Network,
    NetworkError,
    Node,
    Options,
    SystemSettings,
)
from deepflow.network.simulate import CollectiveTimes, simulate
from deepflow.network.topology import Topology

QUEUES = Options(congestion=True, congestion_in_all_dimensions=True)
KINDS = ["ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER", "ALL_TO_ALL"]
MIB = 2**20


def system(algorithm: str = "ring", dimensions: int = 1, **changes: Any) -> SystemSettings:
    algorithms = (algorithm,) * dimensions
    values: dict[str, Any] = {
        "scheduling_policy": "LIFO",
        "collective_optimization": "localBWAware",
        "preferred_dataset_splits": 2,
        "local_mem_bw": 1600,
        "all_reduce_implementation": algorithms,
        "all_gather_implementation": algorithms,
        "reduce_scatter_implementation": algorithms,
        "all_to_all_implementation": algorithms,
    }
    return SystemSettings(**{**values, **changes})


def line(topology: str, ranks: int, width: int = 0, oversubscription: float = 1.0) -> Network:
    more = {"width": (width,), "oversubscription": (oversubscription,)}
    return Network((topology,), (ranks,), (50.0,), (500.0,), **more)


def cycles(
    network: Network,
    algorithm: str = "ring",
    kind: str = "ALL_REDUCE",
    options: Options = QUEUES,
    size: int = MIB,
) -> int:
    settings_of_system = system(algorithm, len(network.npus))
    return CollectiveTimes(network, settings_of_system, options).cycles(kind, size)


def both_ways(a: int | str, b: int | str, **values: float) -> tuple[LinkState, ...]:
    return LinkState(a, b, **values), LinkState(b, a, **values)


def with_links(*states: LinkState) -> Options:
    return Options(congestion=True, congestion_in_all_dimensions=True, link_states=states)


@pytest.mark.parametrize("kind", KINDS)
def test_rings_of_two_dimensions_do_not_disturb_each_other(kind: str) -> None:
    network = Network(("Ring", "Ring"), (4, 4), (50.0, 100.0), (500.0, 200.0))
    assert cycles(network, kind=kind) == cycles(network, kind=kind, options=Options())


def test_a_message_pays_for_every_dimension_it_crosses() -> None:
    network = Network(("Ring", "Ring"), (4, 4), (50.0, 50.0), (500.0, 700.0))
    corner = 5
    send = Node(1, "SEND", size_bytes=MIB, peer=corner, tag=1)
    receive = Node(1, "RECV", size_bytes=MIB, peer=0, tag=1)
    traces: list[Sequence[Node]] = [(Node(1, "COMP"),)] * 16
    traces[0], traces[corner] = (send,), (receive,)
    transfer = int(MIB / (50 * 2**30 / 1e9) + 500)
    result = simulate(traces, network, system(dimensions=2), QUEUES)
    assert result.cycles[corner] == 2 * transfer + 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["ring", "direct"])
def test_wrapped_grids_are_never_slower_than_open_ones(algorithm: str, kind: str) -> None:
    torus = cycles(line("Torus2D", 12, width=4), algorithm, kind)
    mesh = cycles(line("Mesh2D", 12, width=4), algorithm, kind)
    assert torus <= mesh


def test_a_grid_of_one_row_is_a_line() -> None:
    for grid, chain in (("Torus2D", "Ring"), ("Mesh2D", "Mesh")):
        assert cycles(line(grid, 6, width=6)) == cycles(line(chain, 6))


@pytest.mark.parametrize("options", [QUEUES, Options()])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fat_tree_of_one_leaf_is_a_switch(kind: str, options: Options) -> None:
    tree = cycles(line("FatTree", 8, width=8), "direct", kind, options)
    assert tree == cycles(line("Switch", 8), "direct", kind, options)


@pytest.mark.parametrize("options", [QUEUES, Options()])
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_uplinks_never_help(kind: str, options: Options) -> None:
    times = [
        cycles(line("FatTree", 16, 4, ratio), "direct", kind, options, 16 * MIB)
        for ratio in (1.0, 2.0, 4.0)
    ]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_full_fat_tree_carries_any_shift_without_waiting() -> None:
    # Every rank sends one message to the rank a leaf further: no two share a link.
    network = line("FatTree", 16, width=4)
    traces = [
        (
            Node(1, "SEND", size_bytes=MIB, peer=(rank + 4) % 16, tag=1),
            Node(2, "RECV", size_bytes=MIB, peer=(rank - 4) % 16, tag=1),
        )
        for rank in range(16)
    ]
    alone = int(500 + MIB / (50 * 2**30 / 1e9))
    result = simulate(traces, network, system(), QUEUES)
    assert set(result.cycles) == {4 * alone}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["Ring", "Mesh", "Torus2D", "Mesh2D", "FullyConnected"]),
    st.sampled_from(KINDS),
    st.integers(0, 7),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 1000.0]),
    st.booleans(),
)
def test_a_degraded_link_never_speeds_up_a_ring(
    topology: str, kind: str, source: int, factor: float, latency: float, congestion: bool
) -> None:
    network = line(topology, 8)
    # Of the route to the next rank, the first link exists in every one of these topologies.
    way = Topology(network).route(source, (source + 1) % 8)
    state = LinkState(way[0], way[1], factor, latency)
    healthy = Options(congestion=congestion)
    degraded = Options(congestion=congestion, link_states=(state,))
    before = cycles(network, kind=kind, options=healthy)
    assert cycles(network, kind=kind, options=degraded) >= before


def test_a_failed_link_of_a_ring_is_gone_around() -> None:
    network = line("Ring", 8)
    failed = both_ways(2, 3, bandwidth_factor=0.0)
    assert Topology(network, failed).route(2, 3) == [2, 1, 0, 7, 6, 5, 4, 3]
    assert cycles(network, options=with_links(*failed)) > cycles(network)


def test_a_failed_link_of_a_torus_costs_two_hops_more() -> None:
    network = line("Torus2D", 16, width=4)
    way = Topology(network, both_ways(0, 1, bandwidth_factor=0.0)).route(0, 1)
    assert len(way) - 1 == 3
    two_dimensions = Network(("Ring", "Ring"), (4, 4), (50.0, 50.0), (500.0, 500.0))
    way = Topology(two_dimensions, both_ways(0, 1, bandwidth_factor=0.0)).route(0, 1)
    assert len(way) - 1 == 3


def test_another_spine_takes_over_in_a_fat_tree() -> None:
    network = line("FatTree", 8, width=4)
    failed = both_ways("0:0:spine1", "0:0:leaf0", bandwidth_factor=0.0)
    way = Topology(network, failed).route(0, 5)
    assert len(way) - 1 == 4
    assert "0:0:spine1" not in way


def test_a_rank_that_is_cut_off_is_named() -> None:
    failed = both_ways(3, "0:0:switch", bandwidth_factor=0.0)
    with pytest.raises(NetworkError, match=r"rank 3 cannot be reached|from rank 3"):
        cycles(line("Switch", 8), options=with_links(*failed))


def test_a_link_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(NetworkError, match="no link from 0 to 4"):
        cycles(line("Ring", 8), options=with_links(LinkState(0, 4, 0.5)))


def two_collectives(second_after: int) -> tuple[Node, ...]:
    return (
        Node(1, "COLL", collective="ALL_REDUCE", size_bytes=MIB),
        Node(2, "COMP", duration_us=10),
        Node(3, "COLL", collective="ALL_GATHER", size_bytes=MIB, dependencies=(second_after,)),
    )


def test_collectives_in_flight_share_the_time_that_one_leaves_idle() -> None:
    network = Network(("Ring", "Ring"), (4, 4), (50.0, 50.0), (500.0, 500.0))
    traces = [two_collectives(second_after=2)] * 16
    arguments = (traces, network, system(dimensions=2))
    one = simulate(*arguments, Options())
    several = simulate(*arguments, Options(collectives_in_flight=2))
    unlimited = simulate(*arguments, Options(collectives_in_flight=0))
    assert unlimited.wall_time == several.wall_time < one.wall_time


@pytest.mark.parametrize("in_flight", [1, 2, 0])
def test_a_dependent_collective_waits_however_many_may_fly(in_flight: int) -> None:
    traces = [two_collectives(second_after=1)] * 8
    options = Options(collectives_in_flight=in_flight)
    assert (
        simulate(traces, line("Ring", 8), system(), options).cycles
        == simulate(traces, line("Ring", 8), system()).cycles
    )


def test_a_send_does_not_hold_up_a_collective_if_several_may_fly() -> None:
    def trace(rank: int) -> tuple[Node, ...]:
        collective = Node(2, "COLL", collective="ALL_REDUCE", size_bytes=MIB)
        if rank == 0:
            return Node(1, "SEND", size_bytes=64 * MIB, peer=1, tag=1), collective
        if rank == 1:
            return Node(1, "RECV", size_bytes=64 * MIB, peer=0, tag=1), collective
        return (collective,)

    traces = [trace(rank) for rank in range(4)]
    blocking = simulate(traces, line("FullyConnected", 4), system())
    flying = simulate(traces, line("FullyConnected", 4), system(), Options(collectives_in_flight=0))
    assert flying.cycles[3] < blocking.cycles[3]
    assert flying.wall_time <= blocking.wall_time


def test_congestion_in_several_dimensions_has_to_be_asked_for() -> None:
    network = Network(("Ring", "Ring"), (4, 4), (50.0, 50.0), (500.0, 500.0))
    with pytest.raises(NetworkError, match="congestion_in_all_dimensions"):
        cycles(network, options=Options(congestion=True))
