"""Training predictions obey arithmetic and physics."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config import load_model_config
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import load_hardware
from deepflow.prediction import TIME_COLUMNS, predict
from deepflow.schedule.training import run_training
from deepflow.workload.operators import Attention, Gemm, GroupedGemm

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
# Without reductions in the switches.
RINGS = {"execution_backend.astra.collectives.all_reduce": "ring"}
SMALL = {
    "global_batch_size": 64,
    "seq_len": 1024,
    "hidden_dim": 2048,
    "num_heads": 16,
    "num_kv_heads": 8,
    "ffn_dim": 8192,
    "vocab_size": 32000,
    "num_layers": 8,
}


def model(**changes):
    return load_model_config("configs/model-config/Llama2-7B.yaml", SMALL | changes)


def machine(num_nodes=1, devices_per_node=8, **changes):
    overrides = {
        "system_hierarchy.num_nodes": num_nodes,
        "system_hierarchy.num_devices_per_node": devices_per_node,
    }
    for name, value in changes.items():
        root = "" if "." in name else "parallelism."
        overrides[root + name] = value
    return load_hardware(H100, overrides)


def matrix_flops(hardware, workload):
    """FLOP of all matrix multiplications and attention of a step, over all devices."""
    run = run_training(hardware, workload)
    mapping = run.mapping
    counts = Counter(name for part in mapping.parts for name in part)
    once = sum(
        counts[name] * item.operator.flops
        for name, costs in run.segments.items()
        for item in (*costs.forward, *costs.backward)
        if isinstance(item.operator, Gemm | GroupedGemm | Attention)
    )
    return once * mapping.num_microbatches * mapping.num_devices / mapping.pipeline


LAYOUTS = [
    {"tensor": 1, "pipeline": 1},
    {"tensor": 8, "pipeline": 1},
    {"tensor": 2, "pipeline": 2},
    {"tensor": 1, "pipeline": 8},
    {"tensor": 4, "pipeline": 2, "sequence_parallel": False},
    {"tensor": 2, "pipeline": 4, "micro_batch_size": 4, "schedule": "gpipe"},
]


def test_flops_are_conserved_by_every_sharding():
    alone = matrix_flops(machine(devices_per_node=1), model())
    for layout in LAYOUTS:
        assert matrix_flops(machine(**layout), model()) == pytest.approx(alone, rel=1e-12), layout


def test_flops_of_a_dense_model_are_six_per_weight_and_token():
    """Without attention's share: 6 x (layer weights + head) x tokens."""
    workload = model()
    prediction = predict(machine(), workload)
    width, ffn = 2048, 8192
    layer = width * (width + 2 * 1024) + width * width + 3 * width * ffn
    tokens = 64 * 1024
    expected = 6 * tokens * (8 * layer + 32000 * width) + 12 * tokens * 8 * 1024 * width
    assert prediction.model_flops == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_classes_of_time_add_up(layout):
    prediction = predict(machine(**layout), model()).as_row()
    parts = [prediction[name] for name in TIME_COLUMNS if prediction[name] is not None]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(prediction["time_s"], rel=1e-9)


def test_one_device_sends_nothing_and_waits_for_nobody():
    prediction = predict(machine(devices_per_node=1), model())
    assert prediction.intra_node_bytes == prediction.inter_node_bytes == 0
    assert prediction.time_data_communication_s == 0
    assert prediction.time_tensor_communication_s == 0
    assert prediction.time_pipeline_bubble_s == pytest.approx(0, abs=1e-12)


def test_gradient_traffic_is_that_of_a_ring():
    """Each of n devices sends 2 (n - 1) / n of its gradients per step, whatever the batch."""
    for batch in (64, 512):
        prediction = predict(machine(**RINGS), model(global_batch_size=batch))
        gradients = prediction.parameters * 4
        assert prediction.intra_node_bytes == pytest.approx(8 * 2 * 7 / 8 * gradients, rel=1e-12)
    sharded = predict(machine(zero=1), model())
    expected = 8 * 7 / 8 * (prediction.parameters * 4 + prediction.parameters * 2)
    assert sharded.intra_node_bytes == pytest.approx(expected, rel=1e-12)


def test_scattered_transfers_send_every_activation_between_nodes_once():
    """Shares cross between nodes and are gathered within them (arXiv 2104.04473, 4.1)."""
    layout = {"tensor": 4, "pipeline": 2, "num_microbatches": 4, "sequence_parallel": False}
    runs = [
        predict(machine(2, 4, **layout, scatter_transfers=scattered), model())
        for scattered in (False, True)
    ]
    whole, shares = runs
    assert shares.inter_node_bytes == pytest.approx(whole.inter_node_bytes / 4)
    gathered = shares.intra_node_bytes - whole.intra_node_bytes
    assert gathered == pytest.approx(whole.inter_node_bytes * 3 / 4)
    together = predict(machine(2, 4, **layout | {"sequence_parallel": True}), model())
    same = predict(
        machine(2, 4, **layout | {"sequence_parallel": True}, scatter_transfers=True), model()
    )
    assert same == together


def test_sequence_parallelism_gathers_inputs_a_second_time_and_saves_memory():
    """Two all_reduces become pairs of reduce_scatter and all_gather, of the same bytes; products
    whose input is sharded gather it once more: five transfers in the place of four."""
    plain = predict(machine(tensor=8, sequence_parallel=False, **RINGS), model())
    sharded = predict(machine(tensor=8), model())
    assert sharded.intra_node_bytes == pytest.approx(plain.intra_node_bytes * 5 / 4, rel=0.01)
    assert sharded.activations_bytes < plain.activations_bytes
    workload = model(hidden_dim=8192, num_heads=64, ffn_dim=28672)
    layout = {"tensor": 8, "micro_batch_size": 4}
    plain = predict(machine(sequence_parallel=False, **layout, **RINGS), workload)
    sharded = predict(machine(**layout), workload)
    # Wide products hide the second gather.
    assert sharded.time_s <= plain.time_s


IMPROVEMENTS = [
    "tech_param.DRAM.bandwidth",
    "tech_param.network.intra_node.bandwidth",
    "tech_param.network.inter_node.bandwidth",
    "tech_param.core.operating_frequency",
    "tech_param.SRAM-L2.bandwidth",
]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(IMPROVEMENTS), st.floats(1.0, 8.0), st.sampled_from(LAYOUTS))
def test_better_hardware_is_never_slower(key, factor, layout):
    base = machine(num_nodes=2, **layout)
    value = {
        "tech_param.DRAM.bandwidth": base.config.tech_param.DRAM.bandwidth,
        "tech_param.network.intra_node.bandwidth": 450e9,
        "tech_param.network.inter_node.bandwidth": 50e9,
        "tech_param.core.operating_frequency": 1.83e9,
        "tech_param.SRAM-L2.bandwidth": base.config.tech_param.SRAM_L2.bandwidth,
    }[key]
    better = machine(num_nodes=2, **layout, **{key: value * factor})
    assert predict(better, model()).time_s <= predict(base, model()).time_s * (1 + 1e-12)


def test_memory_by_part():
    workload = model(global_batch_size=256)
    one = predict(machine(devices_per_node=1), workload)
    parameters = one.parameters
    assert one.weights_bytes == pytest.approx(2 * parameters)
    assert one.gradients_bytes == pytest.approx(4 * parameters)
    assert one.optimizer_bytes == pytest.approx(12 * parameters)
    zero = predict(machine(zero=1), workload)
    assert zero.optimizer_bytes == pytest.approx(12 * parameters / 8)
    tensor = predict(machine(tensor=8), workload)
    assert tensor.weights_bytes == pytest.approx(2 * parameters / 8, rel=0.01)
    assert one.peak_memory_bytes == pytest.approx(
        one.weights_bytes
        + one.gradients_bytes
        + one.optimizer_bytes
        + one.activations_bytes
        + one.logits_bytes
        + one.temporary_bytes
        + one.buffers_bytes
        + one.allocator_bytes
        + one.reserved_bytes
    )
    held = predict(
        machine(**{"sw_param.allocator_overhead": 0.2, "sw_param.reserved_memory": "5 GiB"}),
        workload,
    )
    plain = predict(machine(), workload)
    assert held.peak_memory_bytes == pytest.approx(1.2 * plain.peak_memory_bytes + 5 * 2**30)
    buckets = predict(machine(gradient_bucket="25 MB"), workload)
    assert buckets.gradients_bytes == pytest.approx(plain.gradients_bytes * 6 / 4)


def test_recomputation_trades_time_for_memory():
    kept = predict(machine(), model(global_batch_size=256))
    again = predict(machine(recompute="full"), model(global_batch_size=256))
    assert again.activations_bytes < kept.activations_bytes / 3
    assert 1.2 < again.time_s / kept.time_s < 1.4
    assert again.model_flops == kept.model_flops
    assert again.executed_flops > kept.executed_flops


def test_gpipe_takes_the_time_of_1f1b_and_more_memory():
    layout = {"pipeline": 4, "tensor": 2, "micro_batch_size": 1}
    one, other = (
        predict(machine(**layout, schedule=schedule), model()) for schedule in ("1f1b", "gpipe")
    )
    assert other.activations_bytes == pytest.approx(one.activations_bytes * 64 / 4, rel=0.05)
    assert other.time_s == pytest.approx(one.time_s, rel=0.02)


def test_a_point_that_does_not_fit_says_so_and_still_has_a_time():
    prediction = predict(machine(devices_per_node=1), model(num_layers=200))
    assert prediction.status == "out_of_memory" and prediction.fits_in_memory is False
    assert "GiB" in prediction.reason and prediction.time_s > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensor": 3}, "does not divide"),
        ({"tensor": 2, "pipeline": 2, "data": 3}, "pipeline 2 x data 3 = 12"),
        ({"micro_batch_size": 5}, "micro_batch_size 5"),
        ({"num_microbatches": 7}, "num_microbatches 7"),
        ({"pipeline": 8, "tensor": 1, "num_microbatches": 3, "micro_batch_size": 4}, "is not"),
    ],
)
def test_impossible_layouts_are_told_apart(changes, words):
    with pytest.raises(InfeasiblePoint, match=words):
        predict(machine(**changes), model())


def test_a_group_without_a_network_is_infeasible():
    hardware = load_hardware(
        "configs/hardware-config/exp_config_new.yaml",
        {"system_hierarchy.num_devices_per_node": 2, "parallelism.data": 2},
    )
    with pytest.raises(InfeasiblePoint, match="no bandwidth"):
        predict(hardware, model())


def test_pipelines_longer_than_the_model_are_infeasible():
    with pytest.raises(InfeasiblePoint, match="num_layers 8"):
        predict(machine(num_nodes=2, pipeline=16), model())


def test_groups_are_placed_in_rank_order():
    run = run_training(machine(num_nodes=4, tensor=4, pipeline=2), model())
    mapping = run.mapping
    groups = mapping.groups
    assert (groups["tensor"].intra_size, groups["tensor"].inter_size) == (4, 1)
    assert (groups["data"].intra_size, groups["data"].inter_size) == (2, 2)
    assert groups["pipeline"].inter_size == 2


def test_balance_by_flops_gives_the_head_stage_fewer_layers():
    workload = model(vocab_size=131072, num_layers=16)

    def layers(balance):
        hardware = machine(pipeline=4, tensor=1, stage_balance=balance)
        return tuple(part.count("dense") for part in run_training(hardware, workload).mapping.parts)

    even, balanced = layers("layers"), layers("flops")
    assert even == (4, 4, 4, 4)
    assert sum(balanced) == 16 and balanced[-1] < 4
    assert (
        predict(machine(pipeline=4, tensor=1, stage_balance="flops"), workload).time_s
        < predict(machine(pipeline=4, tensor=1), workload).time_s
    )


def test_a_slow_host_sets_the_pace_of_small_kernels_only():
    """A pass over a layer takes its kernels' time or the time to issue them, whichever is more."""
    small = {"tensor": 8, "micro_batch_size": 1, "sw_param.kernel_fusion": "fused"}
    large = {"tensor": 1, "micro_batch_size": 8, "sw_param.kernel_fusion": "fused"}
    host = {"sw_param.host_time_per_kernel": 100e-6}
    for layout, is_bound in ((small, True), (large, False)):
        quick, slow = (predict(machine(**layout, **changes), model()) for changes in ({}, host))
        run = run_training(machine(**layout, **host), model())
        layer = run.segments["dense"]
        issued = 100e-6 * sum(item.kernels for item in layer.forward)
        assert layer.forward_total.paced().time >= issued
        if is_bound:
            assert layer.forward_total.paced().time == pytest.approx(issued)
            assert slow.time_s > 1.5 * quick.time_s
            assert slow.time_launch_s > quick.time_launch_s
        else:
            assert slow.time_s == pytest.approx(quick.time_s, rel=0.02)
        assert slow.time_gemm_s == quick.time_gemm_s


def test_a_layout_places_transformers_on_a_mesh():
    """Each dimension takes the derate and the hops of its own routes (B14)."""
    layout = {"tensor": 4, "pipeline": 1, "micro_batch_size": 1}
    flat = run_training(machine(devices_per_node=16, **layout), model()).mapping
    placed = run_training(
        machine(devices_per_node=16, **layout, **{"system_hierarchy.layout": "kp1-dp-lp-kp2"}),
        model(),
    ).mapping
    placed, flat = placed.groups["tensor"], flat.groups["tensor"]
    assert placed.size == flat.size == 4
    # The ring over a row of four closes through the row: each link carries it twice.
    assert placed.intra_bandwidth == flat.intra_bandwidth / 2
    assert placed.intra_latency > flat.intra_latency
    with pytest.raises(InfeasiblePoint):
        predict(machine(devices_per_node=8, **{"system_hierarchy.layout": "auto"}), model())
