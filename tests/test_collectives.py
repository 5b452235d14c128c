"""Collectives: closed forms, laws that hold for all of them, and measured times."""

import csv
import gzip
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cost.collectives import CUSTOM_ALL_REDUCE_BYTES, collective_cost
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.hardware import load_hardware
from deepflow.mapping.groups import Group, LinkProtocol, place_group
from deepflow.validate.collectives import predicted_seconds

ROOT = Path(__file__).resolve().parent.parent
H100 = ROOT / "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
ONE_PASS = ("all_gather", "reduce_scatter")
KINDS = (*ONE_PASS, "all_reduce", "all_to_all", "send", "ring_exchange", "custom_all_reduce")
ALGORITHMS = ("auto", "ring", "direct", "halvingDoubling", "doubleBinaryTree")


def group(intra=8, inter=1, algorithm=None, kind="all_reduce", **changes):
    """Ranks with 300 GB/s and 1 us within nodes, 25 GB/s and 5 us between, less ``changes``."""
    algorithms = () if algorithm in (None, "auto") else ((kind, algorithm),)
    plain = Group("g", intra * inter, intra, inter, 300e9, 1e-6, 25e9, 5e-6, algorithms=algorithms)
    return replace(plain, **changes)


PROTOCOLS = (
    LinkProtocol(),
    LinkProtocol(handshake=3e-6),
    LinkProtocol(3e-6, 200e9, 50e-6, switched=True),
)


@st.composite
def cases(draw):
    """(kind, group) with an algorithm that the kind has."""
    kind = draw(st.sampled_from(KINDS))
    intra, inter = draw(st.integers(1, 8)), draw(st.integers(1, 64))
    algorithm = draw(st.sampled_from(ALGORITHMS))
    if kind == "all_to_all" and algorithm == "doubleBinaryTree":
        algorithm = "auto"
    return kind, group(
        intra,
        inter,
        algorithm,
        kind,
        intra_protocol=draw(st.sampled_from(PROTOCOLS)),
        inter_protocol=draw(st.sampled_from(PROTOCOLS)),
    )


@given(cases(), st.floats(1, 1e10), st.floats(1, 1000))
def test_longer_messages_are_never_faster(case, message, factor):
    kind, ranks = case
    shorter = collective_cost(kind, message, ranks).time
    assert collective_cost(kind, message * factor, ranks).time >= shorter * (1 - 1e-12)


@given(
    cases(),
    st.floats(1, 1e10),
    st.floats(1, 100),
    st.sampled_from(("intra_bandwidth", "inter_bandwidth", "intra_latency", "inter_latency")),
)
def test_better_links_are_never_slower(case, message, factor, name):
    kind, ranks = case
    scale = factor if "bandwidth" in name else 1 / factor
    better = replace(ranks, **{name: getattr(ranks, name) * scale})
    slower = collective_cost(kind, message, ranks).time
    assert collective_cost(kind, message, better).time <= slower * (1 + 1e-12)


@given(
    cases(),
    st.floats(1, 1e10),
    st.floats(1, 100),
    st.sampled_from(("handshake", "reduction_bandwidth", "reduction_latency")),
)
def test_better_protocols_are_never_slower(case, message, factor, name):
    kind, ranks = case
    scale = factor if "bandwidth" in name else 1 / factor
    link = replace(ranks.intra_protocol, **{name: getattr(ranks.intra_protocol, name) * scale})
    better = replace(ranks, intra_protocol=link)
    slower = collective_cost(kind, message, ranks).time
    assert collective_cost(kind, message, better).time <= slower * (1 + 1e-12)


@given(
    st.sampled_from([*ONE_PASS, "all_reduce"]),
    st.sampled_from(ALGORITHMS),
    st.integers(1, 8),
    st.integers(1, 64),
    st.floats(1, 1e10),
)
def test_a_rank_sends_its_share_of_the_buffer_in_every_pass(kind, algorithm, intra, inter, message):
    """(n - 1) / n of the buffer per pass, whatever the algorithm, and no link beats its rate."""
    cost = collective_cost(kind, message, group(intra, inter, algorithm, kind))
    passes = 2 if kind == "all_reduce" else 1
    ranks = intra * inter
    share = passes * (ranks - 1) / ranks * message
    assert cost.intra_bytes + cost.inter_bytes == pytest.approx(share)
    assert cost.time >= max(cost.intra_bytes / 300e9, cost.inter_bytes / 25e9)


def test_rings_take_all_steps_and_trees_and_doubling_few():
    """Of the shortest messages the latencies of the steps are all that is left."""

    def steps(algorithm, kind="all_gather"):
        return collective_cost(kind, 1e-6, group(8, 16, algorithm, kind)).time

    assert steps("ring") == pytest.approx((8 - 1) * 16 * 1e-6 + (16 - 1) * 5e-6)
    assert steps("doubleBinaryTree") == pytest.approx(7 * 1e-6 + 4 * 5e-6)
    assert steps("halvingDoubling") == pytest.approx(3 * 1e-6 + 4 * 5e-6)
    assert steps("direct") == pytest.approx(5e-6)
    for algorithm in ALGORITHMS[1:]:
        twice = steps(algorithm, "all_reduce")
        assert twice == pytest.approx(2 * steps(algorithm), rel=1e-6)


def test_a_single_node_all_reduce_is_the_ring_formula():
    cost = collective_cost("all_reduce", 1e9, group(8))
    assert cost.time == pytest.approx(2 * 7 * (1e9 / 8 / 300e9 + 1e-6), rel=1e-12)


def test_handing_over_chunks_costs_short_messages_twice_and_long_ones_little():
    plain, chunked = group(8), group(8, intra_protocol=LinkProtocol(handshake=2e-6))

    def added(message):
        transfer = collective_cost("all_gather", message, plain).time - 7e-6
        return (collective_cost("all_gather", message, chunked).time - 7e-6) / transfer

    # One chunk of the whole buffer after the seven eighths that are sent, and a handshake.
    tiny = 7 / 8 * 1e3 / 300e9
    assert added(1e3) == pytest.approx((tiny + 1e3 / 300e9 + 2e-6) / tiny)
    # Between, twice the root of handshake and time of the data.
    middle = 1e7 / 300e9
    assert added(1e7) == pytest.approx(1 + 2 * (2e-6 * middle) ** 0.5 / (7 / 8 * middle))
    assert 1 < added(1e10) < 1.1


def test_switches_that_reduce_halve_the_bytes_of_large_messages():
    reducing = group(8, intra_protocol=LinkProtocol(0.0, 200e9, 50e-6))
    assert collective_cost("all_reduce", 1e5, reducing) == collective_cost(
        "all_reduce", 1e5, group(8)
    )
    cost = collective_cost("all_reduce", 1e9, reducing)
    assert cost.intra_bytes == pytest.approx(9 / 8 * 1e9)
    assert cost.time == pytest.approx(9 / 8 * 1e9 / 200e9 + 50e-6)
    for kind in ONE_PASS:
        assert collective_cost(kind, 1e9, reducing) == collective_cost(kind, 1e9, group(8))


def test_all_to_all_sends_every_part_but_the_own_once():
    cost = collective_cost("all_to_all", 1.6e9, group(8, 2))
    assert (cost.intra_bytes, cost.inter_bytes) == pytest.approx((0.7e9, 0.8e9))
    assert cost.time == pytest.approx(0.8e9 / 25e9 + 2 * 5e-6)
    ring = collective_cost("all_to_all", 1.6e9, group(8, 2, "ring", "all_to_all"))
    assert ring.time > cost.time
    with pytest.raises(ConfigError, match="all_to_all"):
        collective_cost("all_to_all", 1e6, group(8, 1, "doubleBinaryTree", "all_to_all"))


def test_a_ring_exchange_is_as_many_sends_as_there_are_others():
    """The slowest link sets the pace."""
    for ranks in (group(4, 1), group(4, 2), group(1, 4)):
        send = collective_cost("send", 1e6, ranks).time
        exchange = collective_cost("ring_exchange", 1e6, ranks)
        assert exchange.time == pytest.approx((ranks.size - 1) * send)
        sent = exchange.intra_bytes + exchange.inter_bytes
        assert sent == pytest.approx((ranks.size - 1) * 1e6)


def test_kernels_of_serving_frameworks_are_quicker_for_short_messages_only():
    ranks = group(8, intra_protocol=LinkProtocol(handshake=3e-6))
    for message in (1e3, 1e5, CUSTOM_ALL_REDUCE_BYTES):
        library = collective_cost("all_reduce", message, ranks).time
        assert collective_cost("custom_all_reduce", message, ranks).time < library
    longer = 2 * CUSTOM_ALL_REDUCE_BYTES
    assert collective_cost("custom_all_reduce", longer, ranks) == collective_cost(
        "all_reduce", longer, ranks
    )


def test_groups_take_algorithms_and_link_properties_from_the_file():
    forced = {"execution_backend.astra.collectives.all_reduce": "ring"}
    costs = [
        collective_cost("all_reduce", 1e9, place_group(hardware, "data", 8, 1, ()))
        for hardware in (load_hardware(H100), load_hardware(H100, forced))
    ]
    # The switch reduces, unless a ring is asked for.
    assert costs[0].intra_bytes < costs[1].intra_bytes == pytest.approx(2 * 7 / 8 * 1e9)
    assert costs[0].time < costs[1].time
    halved = load_hardware(H100, {"system_hierarchy.intra_derate": 2})
    link = halved.accelerator.intra_node
    placed = place_group(halved, "data", 8, 1, ())
    assert placed.intra_bandwidth == link.bandwidth / 2
    assert placed.intra_protocol.reduction_bandwidth == link.reduction_bandwidth / 2


@pytest.mark.parametrize("gpu", ["a100_sxm", "h100_sxm"])
def test_measured_nccl_collectives_are_met(gpu):
    """Messages of 1 MiB and more; the table's source is in tests/data/measured/README.md."""
    with gzip.open(ROOT / "tests/data/measured/op_collectives.csv.gz", "rt") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["gpu"] == gpu and row["library"] == "nccl" and int(row["bytes"]) >= 2**20
        ]
    hardware = load_hardware(ROOT / f"configs/hardware-config/nvidia_{gpu}_80gb.yaml")
    errors = [
        abs(predicted_seconds(row, hardware) * 1e6 / float(row["latency_us"]) - 1) for row in rows
    ]
    assert len(errors) > 20
    assert statistics.median(errors) < 0.10


def test_rows_that_cannot_be_predicted_say_why():
    hardware = load_hardware(H100)
    row = {"op": "all_reduce", "ranks": "8", "bytes": "1024"}
    assert predicted_seconds(row, hardware) > 0
    eager = {"library": "custom_allreduce", "kernel_source": "vLLM_custom_eager"}
    for change, words in (
        ({"op": "scan"}, "scan"),
        ({"library": "other"}, "other"),
        ({"ranks": "16"}, "devices_per_node"),
        (eager, "CUDA graph"),
    ):
        with pytest.raises(DeepFlowError, match=words):
            predicted_seconds(row | change, hardware)
