"""LSTM training: against the original where it is right, its faults by name, and laws."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config.model import LstmModel
from deepflow.cost.collectives import COPIES_OWN_PART, collective_cost
from deepflow.cost.operators import operator_cost
from deepflow.cost.roofline import roofline_time
from deepflow.errors import InfeasiblePoint
from deepflow.explain import explain
from deepflow.hardware import load_hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.kernel import KernelMapping, KernelSplit, ceil_div, map_kernels
from deepflow.prediction import TIME_COLUMNS, predict
from deepflow.schedule.recurrent import place_layers, rank_blocks, run_recurrent, stage_memory
from deepflow.workload.lstm import model_flops, parameter_count
from deepflow.workload.operators import Collective, Elementwise, Gemm
from tests.reference_kernel import (
    gemm_time,
    hardware_of,
    link_term,
    local_term,
    price,
    records,
    register_roofline,
)

A100 = "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"
TOLERANCE = 1e-9
SMALL = {
    "batch_size": 256,
    "vocab_size": 4000,
    "num_layers": 2,
    "layer_size": 512,
    "projection": 0,
    "seq_len": 5,
}


def model(**changes):
    return LstmModel(**SMALL | changes)


def machine(devices=1, num_nodes=1, **changes):
    overrides = {
        "system_hierarchy.num_devices_per_node": devices,
        "system_hierarchy.num_nodes": num_nodes,
    }
    for name, value in changes.items():
        overrides[name if "." in name else f"parallelism.{name}"] = value
    return load_hardware(A100, overrides)


def layouts():
    return [
        {},
        {"data": 2},
        {"t": "CR", "kp1": 4},
        {"t": "RC", "kp1": 2, "kp2": 4},
        {"pipeline": 2},
        {"pipeline": 4, "data": 2},
        {"t": "RC", "kp1": 2, "kp2": 2, "data": 2, "pipeline": 4},
        {"t": "CR", "kp1": 2, "data": 2, "pipeline": 2},
    ]


def fitting(layout):
    """The machine that has as many devices as the degrees of ``layout`` multiply to."""
    degrees = (layout.get(name, 1) for name in ("kp1", "kp2", "data", "pipeline"))
    return machine(math.prod(degrees), **{"data": 1} | layout)


# --- The original's parts -------------------------------------------------------------------

WORKING = [record for record in records("lstm") if "error" not in record]
NAMES = ("embedding", "hidden", "softmax")


def prepared(record):
    """(hardware, mapping, blocks of a rank, batch) without projection, which it only counted."""
    hardware = hardware_of(record)
    workload = LstmModel(**record["model"] | {"projection": 0})
    mapping = map_kernels(hardware, {name: name for name in NAMES}, data_fills_machine=True)
    host = hardware.config.sw_param.h2d_bandwidth
    copied_from = 2 if host > 0 else 1
    mapping.groups["host"] = Group("host", copied_from, 1, 2, 0.0, 0.0, host, 0.0)
    batch = ceil_div(workload.batch_size, mapping.data)
    return hardware, workload, mapping, rank_blocks(hardware, workload, mapping, batch), batch


def named(operators, *names):
    return [operator for operator in operators if operator.name in names]


def without(operators, *names):
    return [operator for operator in operators if operator.name not in names]


def link(group):
    """(bandwidth, latency) of a group that is within a node or has a node for each rank."""
    if group.inter_size > 1:
        return group.inter_bandwidth, group.inter_latency
    return group.intra_bandwidth, group.intra_latency


def priced(record):
    """Prices of the original for our operators, less what differs by a reason that is named."""
    hardware, workload, mapping, blocks, batch = prepared(record)
    groups, split = mapping.groups, mapping.splits["hidden"]
    accelerator = hardware.accelerator
    overhead = hardware.config.sw_param.kernel_launch_overhead
    p, width, vocabulary = (
        hardware.config.sw_param.precision,
        workload.layer_size,
        workload.vocab_size,
    )
    gates = workload.num_gates * width

    def cost(operators):
        return price(operators, hardware, groups)

    def memory(num_bytes):
        return register_roofline(accelerator, 0.0, num_bytes)

    def backward_products(layer, m, k, n):
        """Of CR: the other pieces of equal FLOPs that the original multiplied."""
        operators = blocks[layer].backward.operators
        if split.kind != "CR":
            return cost([item for item in operators if isinstance(item, Gemm)])
        pieces = ((k, m // split.kp1, n), (m, n // split.kp1, k))
        return sum(gemm_time(hardware, piece) for piece in pieces)

    def rest(operators):
        """All but the products, with half of the whole gathers of inputs and weights (B2)."""
        slices = [
            item for item in operators if item.name.endswith(("input_gather", "weight_gather"))
        ]
        parts = {"kp1": split.kp1, "kp2": split.kp2}
        whole = [
            replace(item, message_bytes=item.message_bytes * parts[item.group.split(".")[1]])
            for item in slices
        ]
        kept = [item for item in operators if not isinstance(item, Gemm) and item not in slices]
        return cost(kept) + cost(whole) / 2

    found = {}
    # A split embedding was free of the copy from the host, and RC never completed its rows.
    forward = blocks["embedding"].forward.operators
    if split.kind != "none":
        forward = without(forward, "host_copy")
    found["Ef"] = cost(without(forward, "embedding_output_gather"))
    found["Eb"] = cost(blocks["embedding"].backward.operators)

    # The exchange of gates had no latency.
    exchange = named(blocks["hidden"].forward.operators, "gate_exchange")
    latency = sum(link(groups[item.group])[1] for item in exchange)
    found["Cf"] = cost(blocks["hidden"].forward.operators) - latency

    backward = blocks["hidden"].backward.operators
    found["Cb"] = backward_products("hidden", batch, 2 * width, gates) + rest(backward) - latency
    if split.kind == "none":  # a quarter of the gate outputs, backward only
        found["Cb"] -= memory(13.0 * p * batch * (gates - width))
    if split.kind == "RC":
        # The gradient of all rows of the weights was accumulated on every rank of kp1.
        rows, columns = 2 * width, gates // split.kp2
        found["Cb"] += memory(3.0 * p * rows * columns * (1 - 1 / split.kp1))
        if split.kp2 > 1:  # B5: the exchange of all rows, on every rank of kp1
            sent = 4.0 * p * batch * gates / split.kp2 * (1 - 1 / split.kp1)
            found["Cb"] += memory(2 * sent) + sent / link(groups["hidden.kp2"])[0]

    # Fewer launches with kernel parallelism than without, and exchanges of rows without latency.
    launches = 0 if split.kind == "none" else 3 * overhead
    rows_gather = named(blocks["softmax"].forward.operators, "softmax_rows")
    found["Sf"] = cost(blocks["softmax"].forward.operators) - launches
    if split.kind == "RC" and split.kp2 > 1:
        message = p * batch // split.kp1 * split.kp2
        bandwidth, _ = link(groups["softmax.kp2"])
        found["Sf"] += -cost(rows_gather) + link_term(
            "all_to_all", split.kp2, message, bandwidth, 0.0
        )
        found["Sf"] += memory(2 * message)
    backward = blocks["softmax"].backward.operators
    found["Sb"] = backward_products("softmax", batch, width, vocabulary) + rest(backward) - launches
    for name, layer in (("Re", "embedding"), ("Rc", "hidden"), ("Rs", "softmax")):
        both = blocks[layer].reduction.operators + blocks[layer].update.operators
        found[name] = cost(both) - 2 * overhead
    return found


def even(record):
    _, kp1, kp2, _, _ = record["split"]
    sizes = [record["model"][name] for name in ("batch_size", "layer_size", "vocab_size")]
    sizes[0] = ceil_div(sizes[0], record["split"][3])
    return not any(size % kp1 or size % kp2 for size in sizes)


# A1: registers of this device are so fast that the original waits for the FLOP of element-wise
# steps, which it counts a little differently: part -> largest relative difference, by record.
FLOP_BOUND = {
    160: {"Cb": 1e-4, "Sf": 3e-9, "Sb": 3e-5},
    161: {"Sb": 2e-5},
    162: {"Cb": 5e-4, "Sb": 1e-5},
    163: {"Cb": 1e-4, "Sf": 3e-9, "Sb": 3e-5},
}


def test_parts_are_those_of_the_original_but_for_what_is_named():
    compared = 0
    for number, record in enumerate(WORKING):
        assert even(record)
        flop_bound = FLOP_BOUND.get(number, {})
        assert not flop_bound or record["hardware"] == "exp_config_new_MCM.yaml"
        for name, found in priced(record).items():
            expected = record["parts"][name]
            tolerance = flop_bound.get(name, TOLERANCE)
            assert found == pytest.approx(expected, rel=tolerance), (number, name)
            compared += name not in flop_bound
    assert compared == 175 * 9 - 9


def test_parameters_are_those_of_the_original_where_the_softmax_has_the_width_it_counted():
    narrow = 0
    for record in WORKING:
        workload = LstmModel(**record["model"])
        width, projection = workload.layer_size, workload.projection
        unused = (width - projection) * workload.vocab_size
        assert parameter_count(workload) == record["tot_param"] - unused
        narrow += unused != 0
        alone = parameter_count(replace(workload, projection=0))
        assert alone == record["tot_param"] - width * projection
    assert narrow > 50


# --- Memory ---------------------------------------------------------------------------------


def footprint(record, workload, kind, dp, kp1, kp2, layers):
    """(embedding, ``layers`` hidden, softmax) bytes of one rank, without gradients."""
    split = KernelSplit() if kp1 * kp2 == 1 else KernelSplit(kind, kp1, kp2)
    mapping = KernelMapping(dict.fromkeys(NAMES, split), {}, kp1 * kp2, 1, dp)
    hardware = hardware_of(record)
    batch = ceil_div(workload.batch_size, dp)
    found = []
    for counts in ((1, 0, 0), (0, layers, 0), (0, 0, 1)):
        use = stage_memory(hardware, workload, mapping, batch, counts)
        assert use.gradients == use.weights
        found.append(use.total - use.gradients)
    return found


def test_footprints_are_those_of_the_original_by_part():
    compared = 0
    cases = [
        (
            {"hardware": "a100_80GB.yaml"},
            LstmModel(
                record["batch_size"],
                record["vocab_size"],
                record["num_layer"],
                record["hidden_dim"],
                0,
                record["seq_len"],
                record["num_gates"],
            ),
            {-1: "none", 1: "CR", 2: "RC"}[record["kp_type"]],
            [record[name] for name in ("kp1", "kp2", "dp", "lp")],
            record["per_core"],
        )
        for record in records("memory")
    ] + [
        (
            record,
            LstmModel(**record["model"] | {"projection": 0}),
            record["split"][0],
            record["split"][1:],
            record["memory"],
        )
        for record in WORKING
    ]
    for record, workload, kind, (kp1, kp2, dp, lp), expected in cases:
        layers = workload.num_layers / (lp - 2 if lp > 2 else lp)
        found = footprint(record, workload, kind, dp, kp1, kp2, layers)
        assert found == pytest.approx(expected[1:4], rel=TOLERANCE), record
        if lp == 1:
            assert sum(found) == pytest.approx(expected[0], rel=TOLERANCE)
        else:  # it left out the softmax, or everything on two or three devices
            assert expected[0] <= max(found) * (1 + TOLERANCE)
        compared += 1
    assert compared > 180


def test_the_fullest_stage_is_reported_and_the_softmax_is_not_forgotten():
    workload = model(vocab_size=200_000, num_layers=2)
    prediction = predict(fitting({"pipeline": 4}), workload)
    assert prediction.logits_bytes > 0
    assert prediction.weights_bytes == 2 * 513 * 200_000
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserved")
    assert prediction.peak_memory_bytes == sum(
        getattr(prediction, f"{part}_bytes") for part in parts
    )
    small = predict(fitting({}), model())
    assert small.fits_in_memory and small.status == "ok"
    large = predict(fitting({}), model(batch_size=60_000, vocab_size=800_000))
    assert not large.fits_in_memory and large.status == "out_of_memory"


# --- Faults of the original, by name --------------------------------------------------------


def test_a1_element_wise_work_moves_device_memory_not_registers():
    """Single-device totals grow by 8 to 124 %.

    That is more than between the original with one level or the other (4 to 58 %), because the
    backward cell now works on all gate outputs.
    """
    growth = []
    for record in WORKING:
        if record["split"][1:] != [1, 1, 1, 1]:
            continue
        hardware = hardware_of(record)
        workload = LstmModel(**record["model"])
        run = run_recurrent(hardware, workload)
        counts = {"hidden": workload.num_layers}
        faster = 0.0
        for name, layer in run.layers.items():
            once = (*layer.reduction, *layer.update)
            for times, costs in ((workload.seq_len, (*layer.forward, *layer.backward)), (1, once)):
                for item in costs:
                    if isinstance(item.operator, Elementwise):
                        moved = item.operator.bytes_moved
                        registers = register_roofline(hardware.accelerator, 0.0, moved)
                        difference = item.cost.elementwise - registers
                        faster += times * counts.get(name, 1) * difference
        growth.append(run.time / (run.time - faster) - 1)
    growth.sort()
    assert len(growth) == 40
    assert growth[0] == pytest.approx(0.08, abs=0.02)
    assert growth[-1] == pytest.approx(1.24, abs=0.1)
    assert 0.1 < growth[len(growth) // 2] < 0.4


def test_a3_transfers_between_stages_take_time_and_two_stages_work():
    """The original sent them for nothing, and failed on two stages."""
    crashed = [record for record in records("lstm") if record["split"][4] == 2]
    assert all("IndexError" in record["error"] for record in crashed)
    assert all(record["parts"]["Tf"] == 0 for record in WORKING)
    fast, slow = (
        machine(4, pipeline=4, data=1, **{"tech_param.network.intra_node.bandwidth": bandwidth})
        for bandwidth in (300e9, 3e9)
    )
    workload = model(layer_size=2048)
    hop = 2 * 256 * 2048  # bytes: batch, features, precision
    gained = predict(slow, workload).time_s - predict(fast, workload).time_s
    # Three hops each way are not hidden by anything at the start of a pass.
    assert gained > 2 * 3 * hop * (1 / 3e9 - 1 / 300e9) * 0.99
    two = predict(fitting({"pipeline": 2}), workload)
    assert two.status == "ok" and two.intra_node_bytes == 2 * hop * workload.seq_len
    assert two.time_pipeline_bubble_s > 0


def test_a4_reductions_of_one_device_take_turns():
    """Three layers of gradients over one link to the replicas, exposed at the end."""
    workload = model(seq_len=1, num_layers=4, layer_size=2048)
    hardware = machine(2, data=2, **{"tech_param.network.intra_node.bandwidth": 1e9})
    run = run_recurrent(hardware, workload)
    reductions = sum(
        item.cost.time * (workload.num_layers if name == "hidden" else 1)
        for name, layer in run.layers.items()
        for item in layer.reduction
    )
    assert run.backward_time > reductions
    assert run.stages[0].exposed_gradient_time > 0.8 * reductions


def test_b5_the_backward_exchange_of_gates_is_that_of_a_rank_and_follows_the_hidden_layer():
    """The original sent the gates of all kp1 ranks from each, if the softmax was split."""
    hardware = fitting({"t": "RC", "kp1": 4, "kp2": 2})
    run = run_recurrent(hardware, model())
    exchange = [
        item.operator.message_bytes
        for item in run.layers["hidden"].backward
        if item.operator.name == "gate_exchange"
    ]
    rank, original = 4 * 2 * (256 // 4) * (4 * 512 // 2), 4 * 2 * 256 * (4 * 512 // 2)
    assert exchange == [rank] and original == 4 * rank
    only_hidden = machine(8, kp_hidden_type=2, kp_hidden_dim1=4, kp_hidden_dim2=2, data=1)
    again = run_recurrent(only_hidden, model()).layers["hidden"]
    assert [item.operator for item in again.backward] == [
        item.operator for item in run.layers["hidden"].backward
    ]


def test_b6_every_layer_reduces_the_gradient_of_its_own_shard():
    """The original cut them all like the hidden layers."""
    hardware = machine(
        8,
        kp_hidden_type=1,
        kp_hidden_dim1=4,
        kp_softmax_type=2,
        kp_softmax_dim1=1,
        kp_softmax_dim2=4,
        kp_embedding_type=1,
        kp_embedding_dim1=2,
        data=2,
    )
    workload = model()
    layers = run_recurrent(hardware, workload).layers
    sent = {name: layer.reduction[0].operator.message_bytes for name, layer in layers.items()}
    assert sent == {
        "embedding": 2 * 4000 * 512 / 2,
        "hidden": 2 * 2 * 512 * 4 * 512 / 4,
        "softmax": 2 * 512 * 4000 / 4,
    }


def test_b16_gradients_between_stages_have_their_own_size():
    """With rows and columns cut, a rank passes back 1 / kp2 of what it passed on."""
    hardware = fitting({"t": "RC", "kp1": 2, "kp2": 4, "pipeline": 4})
    first, *_, last = run_recurrent(hardware, model()).stages
    assert first.sent.intra_node_bytes == 5 * 2 * 256 // 2 * 512
    assert last.sent.intra_node_bytes == first.sent.intra_node_bytes / 4


# --- Projection and layers that are cut differently ------------------------------------------


def test_the_projection_is_computed_and_narrows_the_softmax():
    with_projection, without_projection = (
        run_recurrent(fitting({}), model(projection=projection)) for projection in (128, 0)
    )
    shapes = {
        name: [
            (item.operator.m, item.operator.k, item.operator.n)
            for item in (*layer.forward, *layer.backward)
            if isinstance(item.operator, Gemm)
        ]
        for name, layer in with_projection.layers.items()
    }
    assert shapes["projection"] == [(256, 512, 128), (256, 128, 512), (512, 256, 128)]
    assert shapes["softmax"] == [(256, 128, 4000), (256, 4000, 128), (128, 256, 4000)]
    assert "projection" not in without_projection.layers
    workload = model(projection=128)
    added = 512 * 128 - (512 - 128) * 4000
    assert parameter_count(workload) == parameter_count(model()) + added
    assert model_flops(workload) == model_flops(model()) + 6 * 256 * 5 * added


def test_layers_that_are_cut_differently_gather_what_they_pass_on():
    hardware = machine(
        4,
        kp_hidden_type=2,
        kp_hidden_dim1=2,
        kp_hidden_dim2=2,
        kp_softmax_type=1,
        kp_softmax_dim1=4,
        data=1,
    )
    layers = run_recurrent(hardware, model()).layers
    gathers = {
        item.operator.name: (item.operator.group, item.operator.message_bytes)
        for layer in layers.values()
        for item in (*layer.forward, *layer.backward)
        if item.operator.name.startswith(("hidden_", "softmax_gradient_gather", "softmax_output"))
        and isinstance(item.operator, Collective)
        and "reduction" not in item.operator.name
    }
    # Rows over two ranks into columns over four, and the gradient of four columns back.
    assert gathers["hidden_output_gather"] == ("hidden.kp1", 2 * 256 * 512)
    assert gathers["softmax_gradient_gather"] == ("softmax.kp1", 2 * 256 * 512)
    # A whole table hands out slices, but needs the whole gradient back.
    assert gathers["hidden_gradient_gather"][1] in (2 * 256 * 512, 2 * 128 * 512)


def test_the_embedding_is_copied_from_the_host_at_its_bandwidth_if_it_has_one():
    with_copy, without_copy = (
        predict(machine(**{"sw_param.h2d_bandwidth": bandwidth}), model())
        for bandwidth in (1e9, -1)
    )
    seconds = 5 * 2 * 2 * 256 * 512 / 1e9
    assert with_copy.time_s - without_copy.time_s == pytest.approx(seconds, rel=1e-9)
    assert with_copy.time_elementwise_s - without_copy.time_elementwise_s == pytest.approx(seconds)
    assert with_copy.intra_node_bytes == with_copy.inter_node_bytes == 0


# --- Laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", layouts())
def test_the_parts_of_the_time_add_up_and_are_explained(layout):
    hardware, workload = fitting(layout), model(projection=128)
    row = predict(hardware, workload).as_row()
    parts = [row[name] for name in TIME_COLUMNS if row[name] is not None]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(row["time_s"], rel=1e-9)
    assert row["tokens_per_second"] == pytest.approx(256 * 5 / row["time_s"])
    text = explain(hardware, workload)
    assert "Memory of the fullest device" in text
    assert ("projection.kp1" in text) == (layout.get("kp1", 1) > 1)


@pytest.mark.parametrize("kind", ["CR", "RC"])
def test_degrees_of_one_are_a_single_device(kind):
    alone = predict(machine(), model())
    ones = {"t": kind, "kp1": 1, "kp2": 1, "data": 1, "pipeline": 1}
    assert predict(machine(**ones), model()) == alone
    assert predict(machine(8, **ones), model()) == alone
    assert alone.time_tensor_communication_s == alone.time_data_communication_s == 0
    assert alone.time_pipeline_bubble_s == pytest.approx(0, abs=1e-12)


def test_data_auto_takes_the_devices_that_are_left():
    prediction = predict(machine(8, 2, t="CR", kp1=4, data="auto"), model())
    assert prediction.data_parallel == 4 and prediction.num_devices == 16


def executed_product_flops(hardware, workload):
    run = run_recurrent(hardware, workload)
    counts = {"hidden": workload.num_layers}
    once = sum(
        counts.get(name, 1) * item.operator.flops
        for name, layer in run.layers.items()
        for item in (*layer.forward, *layer.backward)
        if isinstance(item.operator, Gemm)
    )
    return once * workload.seq_len * run.mapping.kernel * run.mapping.data


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("projection", [0, 128])
def test_flops_are_conserved_by_every_layout_that_divides(layout, projection):
    workload = model(projection=projection)
    assert executed_product_flops(fitting(layout), workload) == model_flops(workload)


def test_what_does_not_divide_is_rounded_up():
    workload = model(batch_size=250, layer_size=509, vocab_size=4001)
    for layout in ({"data": 8}, {"t": "CR", "kp1": 8}, {"t": "RC", "kp1": 4, "kp2": 2}):
        ratio = executed_product_flops(fitting(layout), workload) / model_flops(workload)
        assert 1 < ratio < 1.05, layout


BANDWIDTHS = {
    "tech_param.DRAM.bandwidth": 2e12,
    "tech_param.SRAM-L2.bandwidth": 5e12,
    "tech_param.SRAM-L1.bandwidth": 20e12,
    "tech_param.SRAM-R.bandwidth": 100e12,
    "tech_param.network.intra_node.bandwidth": 300e9,
    "sw_param.h2d_bandwidth": 12e9,
}


@settings(max_examples=25)
@given(
    st.sampled_from(layouts()),
    st.integers(1, 300),
    st.integers(1, 6),
    st.integers(2, 4),
    st.integers(0, 200),
)
def test_half_of_every_bandwidth_is_never_faster(layout, batch, steps, layers, projection):
    degrees = (layout.get(name, 1) for name in ("kp1", "kp2", "data", "pipeline"))
    devices = math.prod(degrees)
    workload = model(batch_size=batch, seq_len=steps, num_layers=layers, projection=projection)
    fast, slow = (
        machine(
            devices,
            **{"data": 1} | layout,
            **{key: value * factor for key, value in BANDWIDTHS.items()},
        )
        for factor in (1.0, 0.5)
    )
    assert predict(fast, workload).time_s <= predict(slow, workload).time_s * (1 + 1e-12)


@given(st.integers(1, 60), st.integers(1, 30))
def test_layers_are_spread_evenly_and_every_stage_has_some(layers, stages):
    if stages > 2 and stages - 2 > layers:
        with pytest.raises(InfeasiblePoint, match="leaves"):
            place_layers(layers, stages)
        return
    placed = place_layers(layers, stages)
    assert len(placed) == stages and sum(placed) == layers
    inner = placed if stages <= 2 else placed[1:-1]
    assert max(inner) - min(inner) <= 1
    assert stages <= 2 or placed[0] == placed[-1] == 0


def test_more_stages_than_parts_and_ranks_that_do_not_nest_are_infeasible():
    with pytest.raises(InfeasiblePoint, match="leaves 4 stages"):
        predict(fitting({"pipeline": 6}), model())
    uneven = machine(
        12,
        kp_hidden_type=1,
        kp_hidden_dim1=4,
        kp_softmax_type=1,
        kp_softmax_dim1=3,
        data=3,
    )
    with pytest.raises(InfeasiblePoint, match="do not divide"):
        predict(uneven, model())


def test_three_ranks_work_where_the_original_gave_up():
    assert any(record.get("error") == "AssertionError()" for record in records("lstm"))
    prediction = predict(fitting({"t": "CR", "kp1": 3}), model())
    assert prediction.status == "ok" and prediction.executed_flops > prediction.model_flops


def test_stages_work_at_the_same_time():
    workload = model(seq_len=40, num_layers=8, layer_size=1024, vocab_size=1000)
    alone = predict(fitting({}), workload)
    staged = predict(fitting({"pipeline": 4}), workload)
    assert staged.time_s < 0.7 * alone.time_s


def test_a_send_between_ranks_costs_what_every_send_costs():
    """The hop of a stage and the exchange of gates use the one collective model."""
    hardware = fitting({"t": "CR", "kp1": 4})
    run = run_recurrent(hardware, model())
    for item in run.layers["hidden"].forward:
        if isinstance(item.operator, Collective):
            group = run.mapping.groups[item.operator.group]
            same = collective_cost(item.operator.kind, item.operator.message_bytes, group)
            own_part = 2 * item.operator.message_bytes / group.size
            copied = own_part if item.operator.kind in COPIES_OWN_PART else 0.0
            copy = roofline_time(hardware.accelerator, 0.0, copied)
            assert item.cost.communication == same.time + copy
            assert operator_cost(item.operator, hardware, run.mapping.groups) == item


def test_the_original_charged_local_steps_that_we_do_not():
    """B1 in an LSTM: launches and sums inside collectives, on top of the links."""
    record = next(item for item in WORKING if item["split"][:3] == ["CR", 4, 1])
    hardware, _, mapping, blocks, _ = prepared(record)
    group = mapping.groups["hidden.kp1"]
    reduce = next(
        item for item in blocks["hidden"].forward.operators if item.name == "gates.reduce"
    )
    ours = collective_cost(reduce.kind, reduce.message_bytes, group).time
    theirs = price([reduce], hardware, mapping.groups)
    overhead = hardware.config.sw_param.kernel_launch_overhead
    local = local_term(
        hardware.accelerator, overhead, "reduce_scatter", group.size, reduce.message_bytes, 0.0
    )
    assert theirs - ours == pytest.approx(local, rel=1e-6)
    assert local >= group.size * overhead
