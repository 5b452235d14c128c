"""Matrix products over a grid of ranks: against the original where it is right, and laws."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config import load_model_config
from deepflow.config.model import GemmModel
from deepflow.cost.collectives import collective_cost
from deepflow.cost.operators import total
from deepflow.errors import InfeasiblePoint
from deepflow.explain import explain
from deepflow.hardware import load_hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.kernel import KernelSplit, regather, shard_product
from deepflow.prediction import TIME_COLUMNS, predict
from deepflow.schedule.gemm import run_gemm
from deepflow.workload.operators import Block, Collective, Gemm
from tests.reference_kernel import gemm_time, hardware_of, link_term, local_term, price, records

A100 = "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"
TOLERANCE = 1e-9


def machine(devices=1, num_nodes=1, **changes):
    overrides = {
        "system_hierarchy.num_devices_per_node": devices,
        "system_hierarchy.num_nodes": num_nodes,
    }
    for name, value in changes.items():
        overrides[name if "." in name else f"parallelism.{name}"] = value
    return load_hardware(A100, overrides)


def blocks_of(record):
    """(hardware, groups, operators of a rank by what they are) for one ``dist_gemm`` record."""
    hardware = hardware_of(record)
    m, k, n = record["shape"]
    run = run_gemm(hardware, GemmModel(m, k, n, backward=True))
    operators = [item.operator for item in run.compute]
    split = run.mapping.splits["gemm"]
    first = 1 + (split.kind != "none")
    return hardware, run, operators[:first], operators[first:]


def kinds(operators, kind):
    return [operator for operator in operators if isinstance(operator, kind)]


SLICES = ("gemm.input_gather", "gemm.weight_gather")


def whole_gathers(slices, split):
    """Each slice with the bytes of the whole matrix that the original gathered."""
    return [
        (item, item.message_bytes * (split.kp1 if item.name == SLICES[0] else split.kp2))
        for item in slices
    ]


def divides(record):
    m, k, n = record["shape"]
    _, kp1, kp2, _ = record["split"]
    parts = ((m, kp1), (k, kp1), (n, kp1), (k, kp2), (n, kp2), (m * n, kp1))
    return not any(size % degree for size, degree in parts)


def test_links_of_every_dimension_are_those_of_the_original():
    """Flags, derates, and the network within the node that traffic between nodes passes."""
    compared = 0
    for record in records("dist_gemm"):
        groups = run_gemm(hardware_of(record), GemmModel(8, 8, 8)).mapping.groups
        for name, dimension in (("gemm.kp1", "kp1"), ("gemm.kp2", "kp2"), ("data", "dp")):
            group = groups[name]
            if group.size == 1:
                continue
            assert {group.intra_size, group.inter_size} == {1, group.size}
            bandwidth = group.inter_bandwidth if group.inter_size > 1 else group.intra_bandwidth
            assert bandwidth == pytest.approx(record["IB"][dimension], rel=TOLERANCE)
            compared += 1
    assert compared > 300


def test_forward_products_and_their_communication_are_those_of_the_original():
    compared = 0
    for record in records("dist_gemm"):
        if not divides(record):
            continue
        hardware, run, forward, _ = blocks_of(record)
        groups = run.mapping.groups
        expected = record["fwd_gemm"], record["fwd_reduction"]
        found = (
            price(kinds(forward, Gemm), hardware, groups),
            price(kinds(forward, Collective), hardware, groups),
        )
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=1e-18), record
        compared += 1
    assert compared > 250


def test_backward_row_column_products_are_those_of_the_original():
    compared = 0
    for record in records("dist_gemm"):
        if divides(record) and record["split"][0] != "CR":
            hardware, run, _, gradients = blocks_of(record)
            found = price(kinds(gradients, Gemm), hardware, run.mapping.groups)
            assert found == pytest.approx(record["bwd_gemm"], rel=TOLERANCE), record
            compared += 1
    assert compared > 150


def test_backward_column_row_products_are_those_that_a_rank_has_the_operands_of():
    """The original cut the inner dimensions again: other pieces, as many FLOP."""
    for record in records("dist_gemm"):
        if divides(record) and record["split"][0] == "CR":
            hardware, run, _, gradients = blocks_of(record)
            m, k, n = record["shape"]
            kp1 = run.mapping.kernel
            pieces = ((k, m // kp1, n), (m, n // kp1, k))
            theirs = sum(gemm_time(hardware, piece) for piece in pieces)
            assert theirs == pytest.approx(record["bwd_gemm"], rel=TOLERANCE)
            ours = kinds(gradients, Gemm)
            assert {(item.m, item.k, item.n) for item in ours} == {
                (m, n, k // kp1),
                (k // kp1, m, n),
            }
            assert sum(item.flops for item in ours) == sum(2 * x * y * z for x, y, z in pieces)


def test_b2_backward_inputs_and_weights_are_collected_as_far_as_a_rank_needs_them():
    """The original charged half a gather of them: right for two ranks, too long for more."""
    ratios: dict[int, set[float]] = {}
    for record in records("dist_gemm"):
        if not divides(record):
            continue
        hardware, run, _, gradients = blocks_of(record)
        groups, split = run.mapping.groups, run.mapping.splits["gemm"]
        gathers = kinds(gradients, Collective)
        slices = [item for item in gathers if item.name in SLICES]
        others = [item for item in gathers if item.name not in SLICES]
        whole = [replace(item, message_bytes=size) for item, size in whole_gathers(slices, split)]
        found = price(others, hardware, groups) + price(whole, hardware, groups) / 2
        assert found == pytest.approx(record["bwd_reduction"], rel=TOLERANCE, abs=1e-18)
        for ours, theirs in zip(slices, whole, strict=True):
            group = replace(groups[ours.group], intra_latency=0.0, inter_latency=0.0)
            if group.size > 1:
                costs = [
                    collective_cost(item.kind, item.message_bytes, group).time
                    for item in (ours, theirs)
                ]
                ratios.setdefault(group.size, set()).add(round(costs[0] / (costs[1] / 2), 9))
    assert ratios == {2: {1.0}, 4: {0.5}, 8: {0.25}}


def test_gradient_reduction_and_update_are_those_of_the_original():
    compared = 0
    for record in records("dist_gemm"):
        if not divides(record) or record["split"][3] == 1:
            continue
        hardware, run, _, _ = blocks_of(record)
        operators = [item.operator for item in (*run.reduction, *run.update)]
        # Both kernels of the update are launched; the original launched nothing for them.
        launches = 2 * hardware.config.sw_param.kernel_launch_overhead
        found = price(operators, hardware, run.mapping.groups) - launches
        assert found == pytest.approx(record["dp_reduction"], rel=TOLERANCE), record
        compared += 1
    assert compared > 100


def test_b1_collectives_cost_their_links_and_nothing_twice():
    """Link terms agree; the original added local steps in bytes for elements, and launches."""
    added = []
    for name, kind, ranks, size, bandwidth, latency, local, time in records("collectives"):
        hardware = hardware_of({"hardware": name})
        overhead = hardware.config.sw_param.kernel_launch_overhead
        links = link_term(kind, ranks, size, bandwidth, latency)
        expected = links + local_term(
            hardware.accelerator,
            overhead,
            kind,
            ranks,
            size,
            local if kind not in ("all_to_all", "pipeline") else 0.0,
        )
        if kind in ("all_to_all", "pipeline") and ranks > 1 and local:
            level = hardware.accelerator.memory[0]
            expected += local / level.bandwidth
        assert expected == pytest.approx(time, rel=TOLERANCE, abs=1e-18), (kind, ranks, size)
        if kind == "all_to_all":
            continue
        group = Group("kp1", ranks, ranks, 1, bandwidth, latency, 0.0, 0.0)
        message = size * ranks if kind == "all_gather" else size
        ours = collective_cost("send" if kind == "pipeline" else kind, message, group).time
        assert ours == pytest.approx(links, rel=TOLERANCE, abs=1e-18)
        if links and kind == "all_reduce":
            added.append(time / links)
    assert min(added) > 1


@pytest.mark.parametrize("split", [("CR", 4, 1), ("CR", 16, 1), ("RC", 4, 2), ("RC", 2, 4)])
def test_b3_dimensions_that_do_not_divide_are_rounded_up_and_the_waste_shows(split):
    """The original rounded down and lost work: 1001 x 3003 x 5005 over any grid."""
    kind, kp1, kp2 = split
    model = GemmModel(1001, 3003, 5005, backward=True)
    prediction = predict(machine(kp1 * kp2, t=kind, kp1=kp1, kp2=kp2), model)
    assert prediction.model_flops == 3 * 2 * 1001 * 3003 * 5005
    assert 1 < prediction.executed_flops / prediction.model_flops < 1.02
    m, k, n = (1001, 3003 // kp1, 5005) if kind == "CR" else (1001 // kp1, 3003, 5005 // kp2)
    assert m * k * n * kp1 * kp2 < 1001 * 3003 * 5005


def test_b3_records_of_the_original_lost_work():
    """At most the time that we predict for a rank's products, at its own prices."""
    found = [record for record in records("dist_gemm") if not divides(record)]
    assert {tuple(record["shape"]) for record in found} == {(1001, 3003, 5005)}
    for record in found:
        hardware, run, forward, _ = blocks_of(record)
        ours = price(kinds(forward, Gemm), hardware, run.mapping.groups)
        assert record["fwd_gemm"] <= ours * (1 + TOLERANCE)


def test_b4_one_device_multiplies_and_does_nothing_else():
    """The original added an LSTM cell to the forward product of a plain GEMM."""
    prediction = predict(machine(), GemmModel(4096, 4096, 4096))
    assert prediction.time_elementwise_s is None
    assert prediction.time_s == prediction.time_gemm_s + prediction.time_launch_s


@pytest.mark.parametrize("kind", ["CR", "RC"])
@pytest.mark.parametrize("is_backward", [False, True])
def test_degrees_of_one_are_a_single_device(kind, is_backward):
    model = GemmModel(2000, 3000, 500, backward=is_backward)
    alone = predict(machine(8), model)
    for degrees in ({}, {"t": kind}, {"t": kind, "kp1": 1, "kp2": 1, "data": 1, "pipeline": 1}):
        assert predict(machine(8, **degrees), model) == alone
    assert alone.num_devices == 1 and alone.time_tensor_communication_s == 0


SPLITS = [("CR", 4, 1), ("RC", 4, 1), ("RC", 1, 4), ("RC", 2, 8), ("CR", 16, 1)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("data", [1, 4])
def test_flops_are_conserved_by_every_split_that_divides(split, data):
    kind, kp1, kp2 = split
    product = Block("gemm", (Gemm("gemm", 64, 128, 32),))
    blocks = shard_product(product, "gemm", KernelSplit(kind, kp1, kp2), 2)
    operators = blocks.forward.operators + blocks.backward.operators
    executed = sum(item.flops for item in operators if isinstance(item, Gemm))
    assert executed * kp1 * kp2 == 3 * 2 * 64 * 128 * 32
    hardware = machine(kp1 * kp2 * data, t=kind, kp1=kp1, kp2=kp2, data=data)
    prediction = predict(hardware, GemmModel(64, 128, 32))
    assert prediction.executed_flops == prediction.model_flops == data * 2 * 64 * 128 * 32


BANDWIDTHS = {
    "tech_param.DRAM.bandwidth": "2 TB/s",
    "tech_param.SRAM-L2.bandwidth": "5 TB/s",
    "tech_param.SRAM-L1.bandwidth": "20 TB/s",
    "tech_param.SRAM-R.bandwidth": "100 TB/s",
    "tech_param.network.intra_node.bandwidth": 300e9,
    "tech_param.network.inter_node.bandwidth": 25e9,
}


@settings(max_examples=20)
@given(
    st.sampled_from(SPLITS),
    st.sampled_from([1, 3]),
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.sampled_from(sorted(BANDWIDTHS)),
)
def test_half_a_bandwidth_is_never_faster(split, data, shape, key):
    kind, kp1, kp2 = split
    layout = {"t": kind, "kp1": kp1, "kp2": kp2, "data": data}
    model = GemmModel(*shape, backward=True)
    fast = machine(kp1 * kp2, data, **layout, **BANDWIDTHS)
    value = BANDWIDTHS[key]
    slow = machine(
        kp1 * kp2,
        data,
        **layout,
        **BANDWIDTHS
        | {key: value / 2 if isinstance(value, float) else f"{int(value.split()[0]) / 2} TB/s"},
    )
    assert predict(fast, model).time_s <= predict(slow, model).time_s * (1 + 1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_the_parts_of_the_time_add_up_and_are_explained(split):
    kind, kp1, kp2 = split
    hardware = machine(8, 4, t=kind, kp1=kp1, kp2=kp2)
    model = GemmModel(2048, 4096, 1024, backward=True)
    row = predict(hardware, model).as_row()
    parts = [row[name] for name in TIME_COLUMNS if row[name] is not None]
    assert sum(parts) == pytest.approx(row["time_s"], rel=1e-12)
    assert row["num_devices"] == 32 and row["data_parallel"] == 32 // (kp1 * kp2)
    text = explain(hardware, model)
    assert "gemm.kp" in text and "gemm_gradient_reduction" in text


def test_a_row_column_grid_over_two_nodes_uses_both_networks():
    run = run_gemm(machine(4, 2, t="RC", kp1=4, kp2=2), GemmModel(64, 64, 64))
    kp1, kp2 = run.mapping.groups["gemm.kp1"], run.mapping.groups["gemm.kp2"]
    assert (kp1.intra_size, kp1.inter_size) == (4, 1)
    assert (kp2.intra_size, kp2.inter_size) == (1, 2)
    assert total(run.compute).inter_node_bytes > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kp1": 2}, "no type"),
        ({"t": "CR", "kp1": 2, "kp2": 2}, "cuts one dimension"),
        ({"t": "CR", "kp1": 3}, "does not multiply"),
        ({"t": "CR", "kp1": 2, "data": 2}, "kernel parallelism 2 x pipeline 1 x data 2"),
        ({"data": 5}, "8 devices"),
        ({"tensor": 8}, "give parallelism.t"),
    ],
)
def test_impossible_grids_say_what_is_wrong(changes, words):
    with pytest.raises(InfeasiblePoint, match=words):
        predict(machine(8, **changes), GemmModel(64, 64, 64))


def test_a_grid_without_a_network_is_infeasible():
    """The wafer-scale file of the original gives its links no power."""
    hardware = load_hardware("configs/hardware-config/waferscale_20v100_80hbm.yaml")
    model = load_model_config("configs/model-config/GEMM.yaml")
    with pytest.raises(InfeasiblePoint, match="no bandwidth"):
        predict(hardware, model)


def test_what_is_cut_finer_is_a_slice_and_what_is_cut_otherwise_is_gathered():
    by_rows, by_columns = KernelSplit("RC", 4, 2), KernelSplit("CR", 4)
    whole = (1, 1)
    assert regather("x", "a", by_columns, whole, by_rows.gradients, (64, 32), 2) == ()
    assert regather("x", "a", by_columns, (1, 4), (2, 8), (64, 32), 2) == ()
    (gather,) = regather("x", "a", by_columns, (1, 4), (4, 1), (64, 32), 2)
    assert (gather.kind, gather.group, gather.message_bytes) == ("all_gather", "a.kp1", 64 * 32 * 2)
    columns, rows = regather("x", "a", by_rows, (4, 2), whole, (64, 32), 2)
    assert (columns.group, columns.message_bytes) == ("a.kp2", 16 * 32 * 2)
    assert (rows.group, rows.message_bytes) == ("a.kp1", 64 * 32 * 2)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 32), st.integers(1, 32))
def test_shards_cover_the_matrix_with_less_than_a_row_and_column_each_to_spare(m, n, kp1, kp2):
    rows, columns = KernelSplit("RC", kp1, kp2).outputs(m, n)
    assert rows == math.ceil(m / kp1) and columns == math.ceil(n / kp2)
    assert rows * kp1 >= m > (rows - 1) * kp1 and columns * kp2 >= n > (columns - 1) * kp2
