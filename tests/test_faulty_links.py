"""Degraded and failed links: never faster, dear where there is one way, cheap where many are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow import load_hardware, load_model, predict
from deepflow.config import load_hardware_config
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint

ONE_NETWORK = "configs/hardware-config/one_network.yaml"
H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
COLLECTIVE = "configs/model-config/collective.yaml"
FAULTS = "network_topology.faults"
LINKS = {
    "ring": "2-3",
    "mesh": "2-3",
    "mesh_2d": "1-5",
    "torus_2d": "0-3",
    "fully_connected": "4-9",
    "switch": "7-switch",
    "fat_tree": "leaf0-spine1",
}


def machine(topology, links="", factor=0.0, latency=0.0, devices=16, **changes):
    return load_hardware(
        ONE_NETWORK,
        {
            "network_topology.intra_node": topology,
            "system_hierarchy.num_devices_per_node": devices,
            f"{FAULTS}.intra_node_links": links,
            f"{FAULTS}.bandwidth_factor": factor,
            f"{FAULTS}.extra_latency": latency,
            **changes,
        },
    )


def time(hardware, kind="all_reduce", size="16 MiB"):
    return predict(hardware, load_model(COLLECTIVE, {"kind": kind, "message_size": size})).time_s


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(LINKS)),
    st.sampled_from(["all_reduce", "all_gather", "all_to_all", "send"]),
    st.sampled_from(["hybrid", "hybrid_congestion"]),
    st.sampled_from(["1 KiB", "1 MiB"]),
    st.lists(st.floats(0.05, 1), min_size=2, max_size=2).map(sorted),
    st.floats(0, 1e-5),
)
def test_the_worse_a_link_the_slower_the_collective(topology, kind, mode, size, factors, latency):
    mode = {"backend.astra.mode": mode}
    healthy = time(machine(topology, **mode), kind, size)
    bad, less_bad = (
        time(machine(topology, LINKS[topology], factor, latency, **mode), kind, size)
        for factor in factors
    )
    # Messages that become ready in the same nanosecond may queue in another order.
    assert healthy <= less_bad * 1.001
    assert less_bad <= bad * 1.001


@pytest.mark.parametrize("topology", LINKS)
def test_a_link_with_nothing_wrong_is_a_link(topology):
    named = time(machine(topology, LINKS[topology], 1.0))
    assert named == pytest.approx(time(machine(topology)), rel=1e-3)


@pytest.mark.parametrize("topology", [name for name in LINKS if name not in ("switch", "mesh")])
def test_a_failed_link_is_never_faster(topology):
    for kind in ("all_reduce", "all_to_all", "send"):
        failed = time(machine(topology, LINKS[topology]), kind)
        assert failed >= time(machine(topology), kind) * 0.999


def test_a_broken_ring_carries_everything_on_one_side():
    # What the failed link carried goes the other way round, over links that are as busy already.
    for kind in ("all_gather", "reduce_scatter"):
        healthy, broken = (time(machine("ring", links), kind, "1 GiB") for links in ("", "0-1"))
        assert 1.5 < broken / healthy < 2.2
    mesh, broken = (
        time(machine(name, links), "all_gather", "1 GiB")
        for name, links in (("mesh", ""), ("ring", "15-0"))
    )
    assert broken == pytest.approx(mesh)


def test_a_network_of_full_bisection_suffers_less_than_a_ring():
    loss = {
        name: time(machine(name, LINKS[name]), size="1 GiB") / time(machine(name), size="1 GiB")
        for name in ("ring", "torus_2d", "fat_tree")
    }
    assert loss["fat_tree"] < 1.1 < loss["torus_2d"] < loss["ring"]


@pytest.mark.parametrize(("topology", "link"), [("switch", "7-switch"), ("mesh", "7-8")])
def test_what_no_message_can_reach_is_impossible(topology, link):
    unreachable = machine(topology, link, **{"backend.astra.fallback": "analytical"})
    with pytest.raises(InfeasiblePoint, match="cannot be reached"):
        time(unreachable)
    with pytest.raises(DeepFlowError, match="cannot be reached"):
        time(machine(topology, link))


@pytest.mark.parametrize(
    ("topology", "link"),
    [
        ("ring", "0-2"),
        ("ring", "15-16"),
        ("ring", "0-switch"),
        ("torus_2d", "0-5"),
        ("switch", "0-1"),
        ("switch", "leaf0-spine0"),
        ("fat_tree", "leaf4-spine0"),
        ("fully_connected", "3-3"),
    ],
)
def test_links_that_are_not_there_are_named(topology, link):
    with pytest.raises(InfeasiblePoint, match=f"link {link}, which a {topology} of 16"):
        time(machine(topology, link))


def test_links_between_nodes_join_devices_of_the_same_place():
    changes = {
        "system_hierarchy.num_nodes": 4,
        "network_topology.inter_node": "ring",
        f"{FAULTS}.intra_node_links": "",
    }
    healthy = time(machine("switch", devices=4, **changes))
    fault = {f"{FAULTS}.inter_node_links": "1-5", f"{FAULTS}.bandwidth_factor": 0.25}
    assert time(machine("switch", devices=4, **(changes | fault))) > healthy
    fault[f"{FAULTS}.inter_node_links"] = "1-6"
    with pytest.raises(InfeasiblePoint, match="link 1-6, which a ring of 4 between nodes"):
        time(machine("switch", devices=4, **(changes | fault)))


@pytest.mark.parametrize("text", ["0", "0-1-2", "a-b", "switch-0", "0 1", "spine0-leaf0"])
def test_what_is_no_link_is_refused_when_the_file_is_read(text):
    with pytest.raises(ConfigError, match=r"network_topology\.faults.*is no link"):
        load_hardware_config(ONE_NETWORK, {f"{FAULTS}.intra_node_links": text})


def training(mode="hybrid_congestion", tensor=8, **changes):
    hardware = {
        "system_hierarchy.num_nodes": 2,
        "parallelism.tensor": tensor,
        "backend.model": "astra",
        "backend.astra.mode": mode,
        **changes,
    }
    model = {"num_layers": 2, "global_batch_size": 16, "seq_len": 1024}
    return predict(
        load_hardware(H100, hardware), load_model("configs/model-config/Llama3.1-8B.yaml", model)
    )


@pytest.mark.parametrize("mode", ["hybrid", "hybrid_congestion", "full_astrasim_flattened"])
@pytest.mark.parametrize("where", ["intra_node_links", "inter_node_links"])
def test_a_training_step_waits_for_its_slowest_link(mode, where):
    one = {f"{FAULTS}.{where}": "3-switch", f"{FAULTS}.bandwidth_factor": 0.2}
    two = one | {f"{FAULTS}.{where}": "3-switch, 12-switch"}
    healthy, slower, both = training(mode), training(mode, **one), training(mode, **two)
    assert healthy.time_s < slower.time_s <= both.time_s * (1 + 1e-9)
    assert slower.backend_used == "astra"
    assert slower.time_gemm_s == healthy.time_gemm_s


def test_faults_that_cannot_be_told_apart_are_no_numbers():
    fault = {f"{FAULTS}.intra_node_links": "0-1", "network_topology.intra_node": "ring"}
    with pytest.raises(InfeasiblePoint, match="takes up a part of a ring"):
        training(tensor=4, **fault)
    with pytest.raises(InfeasiblePoint, match="no faulty links"):
        training("full_astrasim_hierarchical", **fault, **{"parallelism.pipeline": 2})
    with pytest.raises(InfeasiblePoint, match="closed forms know no faulty links"):
        training(**fault, **{"backend.model": "analytical"})
