"""Context, expert and sharded data parallelism, schedules, recomputation and offload."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.prediction import TIME_COLUMNS, predict
from deepflow.schedule.passes import PassSegment, pass_time
from deepflow.schedule.training import run_training
from deepflow.workload.operators import Attention, Collective
from test_training import machine, matrix_flops, model

EXPERTS = {"num_experts": 8, "experts_per_token": 2, "expert_ffn_dim": 2048}
HOST = {"sw_param.host_bandwidth": "50 GB/s"}
LAYOUTS = [
    {"context": 4},
    {"context": 2, "tensor": 2, "context_method": "all_gather"},
    {"zero": 2},
    {"zero": 3, "tensor": 2},
    {"zero": 3, "overlap_parameter_gather": False},
    {
        "zero": 3,
        "zero_3_unit": "matrix",
        "zero_3_reduction": "all_reduce",
        "sw_param.host_time_per_gathered_shard": "7 us",
    },
    {"pipeline": 4, "schedule": "interleaved"},
    {"pipeline": 2, "schedule": "zero_bubble", "tensor": 2},
    {"pipeline": 4, "stage_balance": "cumulative"},
    {"tensor": 4, "overlap_tensor_communication": "full"},
    {"offload": "optimizer_and_activations", "zero": 1, **HOST},
    {"tensor": 2, "context": 2, "pipeline": 2, "zero": 3},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_are_conserved_and_times_add_up(layout):
    alone = matrix_flops(machine(devices_per_node=1), model())
    assert matrix_flops(machine(**layout), model()) == pytest.approx(alone, rel=1e-12)
    prediction = predict(machine(**layout), model()).as_row()
    parts = [prediction[name] for name in TIME_COLUMNS if prediction[name] is not None]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(prediction["time_s"], rel=1e-9)


@pytest.mark.parametrize("layout", [{"expert": 4}, {"expert": 2, "tensor": 2}, {"expert": 8}])
def test_experts_are_conserved(layout):
    workload = model(**EXPERTS)
    alone = matrix_flops(machine(devices_per_node=1), workload)
    assert matrix_flops(machine(**layout), workload) == pytest.approx(alone, rel=1e-12)
    spread, whole = (predict(machine(**changes), workload) for changes in (layout, {}))
    assert spread.time_expert_communication_s > 0 == whole.time_expert_communication_s
    assert spread.weights_bytes < whole.weights_bytes
    assert spread.parameters == whole.parameters


def test_expert_communication_hides_behind_another_microbatch():
    layout = {"expert": 8, "micro_batch_size": 2}
    shown, hidden = (
        predict(machine(**layout, overlap_expert_communication=overlap), model(**EXPERTS))
        for overlap in (False, True)
    )
    assert hidden.time_expert_communication_s < shown.time_expert_communication_s
    saved = shown.time_expert_communication_s - hidden.time_expert_communication_s
    assert hidden.time_s == pytest.approx(shown.time_s - saved)


def test_narrow_products_are_faster_and_leave_activations_as_they_are():
    wide, narrow = (
        predict(machine(**{"sw_param.matrix_dtype": dtype}), model()) for dtype in (None, "fp8")
    )
    assert narrow.time_gemm_s < wide.time_gemm_s
    assert narrow.time_attention_s == wide.time_attention_s
    assert narrow.peak_memory_bytes == wide.peak_memory_bytes


def test_imbalance_of_experts_costs_time():
    even, uneven = (
        predict(machine(expert=4), model(**EXPERTS, expert_imbalance=factor))
        for factor in (1.0, 1.5)
    )
    assert uneven.time_s > even.time_s


def test_a_long_sequence_fits_by_context_parallelism():
    workload = model(seq_len=65536, global_batch_size=8)
    whole, shared = predict(machine(tensor=1), workload), predict(machine(context=8), workload)
    assert shared.activations_bytes == pytest.approx(whole.activations_bytes / 8, rel=0.01)
    run = run_training(machine(context=8), workload)
    attention = next(
        item.operator
        for item in run.segments["dense"].forward
        if isinstance(item.operator, Attention)
    )
    assert attention.scores * 8 == 65536 * 65537 / 2


def test_a_ring_of_contexts_hides_behind_long_attention():
    ring, gathered = (
        predict(
            machine(context=8, context_method=method), model(seq_len=131072, global_batch_size=8)
        )
        for method in ("ring", "all_gather")
    )
    assert ring.time_context_communication_s < gathered.time_context_communication_s
    assert ring.time_s < gathered.time_s


def test_zero_shards_one_more_kind_of_state_each():
    by_stage = [predict(machine(zero=zero), model()) for zero in range(4)]
    weights, gradients, optimizer = (
        [getattr(item, name) for item in by_stage]
        for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes")
    )
    assert optimizer[1] == pytest.approx(optimizer[0] / 8) and optimizer[3] == optimizer[1]
    assert gradients[1] == gradients[0] > gradients[2] > gradients[0] / 8
    assert weights[2] == weights[0] > weights[3] > weights[0] / 8


def test_fully_sharded_traffic_is_three_passes_over_the_weights_for_each_microbatch():
    """Forward and backward gather 2-byte weights, backward reduces 4-byte gradients."""
    for batch, microbatches in ((8, 1), (64, 8)):
        prediction = predict(machine(zero=3), model(global_batch_size=batch))
        sent = 8 * 7 / 8 * prediction.parameters * microbatches
        # The embedding is looked up, not multiplied, and is gathered all the same.
        assert prediction.intra_node_bytes == pytest.approx(sent * (2 + 2 + 4), rel=1e-12)


def test_gathering_ahead_is_never_slower():
    for tensor in (1, 4):
        ahead, late = (
            predict(machine(zero=3, tensor=tensor, overlap_parameter_gather=overlap), model())
            for overlap in (True, False)
        )
        assert ahead.time_s < late.time_s
        assert ahead.weights_bytes > late.weights_bytes


def test_a_sharded_pass_waits_for_its_first_weights_and_its_last_gradients():
    segments = [PassSegment(1.0, 5.0, 2.0)] * 3
    assert pass_time(segments, prefetch=True) == 1 + 3 * 5 + 2
    assert pass_time(segments, prefetch=False) >= 3 * (1 + 5)
    slow_link = [PassSegment(4.0, 1.0, 4.0)] * 3
    assert pass_time(slow_link, prefetch=True) >= 3 * 8
    assert pass_time([], prefetch=True) == 0


def test_weights_released_after_recomputing_arrive_before_the_rest_of_the_pass():
    kept = PassSegment(4.0, 10.0, 2.0, recomputation=3.0)
    released = PassSegment(4.0, 10.0, 2.0, recomputation=3.0, again=0.5)
    for prefetch in (True, False):
        assert pass_time([kept], prefetch=prefetch) == 4 + 10 + 2
    assert pass_time([released], prefetch=False) == 4 + 3 + 2 + 7 + 2
    # Beside the recomputation, which is longer than what is gathered again.
    assert pass_time([released], prefetch=True) == 4 + 10 + 2


SHARDED = {"zero": 3, "recompute": "full", "overlap_parameter_gather": False}


def test_each_way_of_an_early_library_to_share_weights_takes_longer():
    """Matrix by matrix, over all devices, gathered once more, in lists: none comes for free."""
    layout, times = dict(SHARDED), []
    for changes in (
        {},
        {"zero_3_unit": "matrix"},
        {"zero_3_reduction": "all_reduce"},
        {"release_distance": 0},
        {"sw_param.host_time_per_gathered_shard": "7 us"},
    ):
        layout |= changes
        times.append(predict(machine(4, **layout), model()).time_s)
    assert times == sorted(set(times))


def test_released_weights_are_gathered_three_times():
    def gathered(**changes):
        workload = model(global_batch_size=8)
        return predict(machine(**SHARDED, **changes), workload).intra_node_bytes

    never, always = gathered(), gathered(release_distance=0)
    layers = run_training(machine(), model()).step.segments["dense"].own.count * 8
    # Embedding and head are not recomputed; a device receives 7 of 8 parts of 2-byte weights.
    assert always - never == pytest.approx(8 * 7 / 8 * 2 * layers)
    distances = [gathered(release_distance=10**power) for power in range(5, 10)]
    assert always > distances[0] and distances == sorted(distances, reverse=True)
    assert distances[-1] == never


@given(st.integers(1, 5), st.integers(1, 5))
def test_more_devices_never_communicate_less_per_step(nodes, more):
    times = [
        predict(
            machine(number, **SHARDED, zero_3_unit="matrix", release_distance=0),
            model(global_batch_size=8 * number),
        ).time_data_communication_s
        for number in (nodes, nodes + more)
    ]
    assert times[0] <= times[1] * (1 + 1e-9)


# Four experts of which a token goes to two, on two nodes of two devices.
FOUR = {"num_experts": 4, "experts_per_token": 2, "expert_ffn_dim": 2048}


def sent_to_experts(workload, **changes):
    """Bytes (within nodes, between nodes) that a device sends to and from experts in a layer."""
    hardware = machine(2, 2, expert=4, **changes)
    costs = run_training(hardware, workload).segments["experts"]
    exchanged = [
        item.cost
        for item in costs.forward
        if isinstance(item.operator, Collective) and item.operator.group == "expert"
    ]
    within = sum(cost.intra_node_bytes for cost in exchanged)
    return within, sum(cost.inter_node_bytes for cost in exchanged)


def test_a_row_crosses_the_network_once_per_node_and_is_handed_on_once_per_device():
    workload = model(**FOUR)
    within, between = sent_to_experts(workload)
    handed_on, across = sent_to_experts(workload, expert_dispatch="per_node")
    # Of six equally likely pairs of experts, two are on one node; devices have one expert each.
    assert across == pytest.approx(between * (4 * 2 + 2 * 1) / 6 / 2)
    # Without forwarding only a quarter of rows stays in the node; now half of all copies moves.
    assert handed_on == pytest.approx(within * 2)
    limited = model(**FOUR, expert_groups=2, expert_groups_per_token=1)
    assert sent_to_experts(limited) == (within, between)
    handed_on, across = sent_to_experts(limited, expert_dispatch="per_node")
    assert across == pytest.approx(between / 2)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_fewer_groups_and_sent_once_never_take_more_of_the_network(groups):
    workload = model(**EXPERTS | {"experts_per_token": 2})
    before = sent_to_experts(workload)[1]
    for chosen in range(groups, 0, -1):
        if chosen * 8 // groups < 2:
            break
        limited = model(**EXPERTS, expert_groups=groups, expert_groups_per_token=chosen)
        across = sent_to_experts(limited, expert_dispatch="per_node")[1]
        assert 0 < across <= before * (1 + 1e-9)
        before = across


def test_narrow_numbers_on_the_way_to_experts():
    wide, narrow = (
        sum(sent_to_experts(model(**FOUR), **{"sw_param.dispatch_dtype": dtype}))
        for dtype in (None, "fp8")
    )
    assert narrow == pytest.approx(wide * 3 / 4)


def test_bundles_that_communicate_do_not_compute():
    workload = model(**EXPERTS)
    times = [
        predict(machine(expert=8, **{"sw_param.communication_bundles": number}), workload)
        for number in (0, 20, 60)
    ]
    gemm = [prediction.time_gemm_s for prediction in times]
    assert gemm == sorted(set(gemm))
    assert times[1].time_expert_communication_s == times[0].time_expert_communication_s
    with pytest.raises(InfeasiblePoint, match="communication_bundles is 132"):
        predict(machine(**{"sw_param.communication_bundles": 132}), workload)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"expert_groups": 3}, "expert_groups"),
        ({"expert_groups": 2, "expert_groups_per_token": 3}, "expert_groups_per_token"),
        ({"expert_groups": 8, "expert_groups_per_token": 1}, "experts_per_token"),
    ],
)
def test_groups_of_experts_that_contradict_are_named(changes, key):
    with pytest.raises(ConfigError, match=key):
        model(**EXPERTS, **changes)


def test_schedules_trade_bubbles_for_memory():
    layout = {"pipeline": 4, "tensor": 2, "micro_batch_size": 2}
    plain, interleaved, zero_bubble = (
        predict(machine(**layout, schedule=schedule), model())
        for schedule in ("1f1b", "interleaved", "zero_bubble")
    )
    assert interleaved.time_s < plain.time_s and zero_bubble.time_s < plain.time_s
    assert interleaved.activations_bytes > plain.activations_bytes
    assert zero_bubble.executed_flops == interleaved.executed_flops == plain.executed_flops


def test_overlapping_tensor_communication_hides_some_of_it():
    none, backward, full = (
        predict(machine(tensor=8, overlap_tensor_communication=choice), model())
        for choice in ("none", "backward", "full")
    )
    assert full.time_s < backward.time_s < none.time_s
    assert full.intra_node_bytes == none.intra_node_bytes


def test_collectives_beside_products_wait_for_their_link():
    run = run_training(machine(tensor=8, overlap_tensor_communication="backward"), model())
    costs = run.segments["dense"].backward
    beside = [
        item for item in costs if isinstance(item.operator, Collective) and item.operator.beside
    ]
    assert beside
    total = run.segments["dense"].backward_total
    everything = sum(item.cost.time for item in costs)
    hidden = sum(item.cost.time for item in beside)
    assert everything - hidden <= total.time < everything


def test_recomputing_some_layers_lies_between_none_and_all():
    none, some, all_layers = (
        predict(machine(recompute="full", recompute_layers=layers), model())
        for layers in (0, 4, None)
    )
    assert none.time_s < some.time_s < all_layers.time_s
    assert none.activations_bytes > some.activations_bytes > all_layers.activations_bytes
    assert predict(machine(), model()).time_s == none.time_s


def test_selective_recomputation_frees_what_attention_keeps():
    unfused = {"sw_param.attention_kernel": "unfused"}
    kept, again, fused = (
        predict(machine(recompute=recompute, **changes), model())
        for recompute, changes in (("none", unfused), ("selective", unfused), ("none", {}))
    )
    assert again.activations_bytes < kept.activations_bytes
    assert again.time_s > kept.time_s > fused.time_s
    light = predict(machine(recompute="selective", recompute_modules="elementwise"), model())
    assert light.activations_bytes < fused.activations_bytes
    assert light.time_s < predict(machine(recompute="full"), model()).time_s


def test_offload_saves_memory_and_costs_time_on_a_slow_link():
    kept = predict(machine(), model())
    slow, quick = (
        predict(machine(offload="optimizer", **{"sw_param.host_bandwidth": rate}), model())
        for rate in ("25 GB/s", "100 TB/s")
    )
    assert slow.optimizer_bytes < kept.optimizer_bytes / 2
    assert slow.time_offload_s > 0 == quick.time_offload_s
    activations = predict(machine(offload="optimizer_and_activations", **HOST), model())
    assert activations.activations_bytes < kept.activations_bytes
    with pytest.raises(InfeasiblePoint, match="host_bandwidth"):
        predict(machine(offload="optimizer", **{"sw_param.host_bandwidth": None}), model())


def test_cumulative_balance_may_leave_stages_empty():
    parts = run_training(
        machine(num_nodes=2, pipeline=16, stage_balance="cumulative"), model()
    ).mapping.parts
    counts = Counter(name for part in parts for name in part)
    assert counts == {"embedding": 1, "dense": 8, "head": 1}


@pytest.mark.parametrize(
    ("changes", "workload", "words"),
    [
        ({"context": 3, "data": 1, "tensor": 1}, {}, "context 3 x pipeline 1 x data 1 = 3"),
        ({"expert": 2}, {}, "no experts"),
        ({"expert": 3}, EXPERTS, "num_experts 8"),
        ({"expert": 8, "tensor": 8}, EXPERTS, "data 1"),
        ({"schedule": "interleaved"}, {}, "several stages"),
        ({"schedule": "1f1b", "virtual_stages": 2, "pipeline": 2}, {}, "virtual_stages"),
        (
            {
                "schedule": "interleaved",
                "pipeline": 8,
                "num_microbatches": 4,
                "micro_batch_size": 16,
            },
            {},
            "microbatches",
        ),
        ({"pipeline": 8, "schedule": "interleaved"}, {}, "16 pipeline stages"),
    ],
)
def test_impossible_combinations_say_why(changes, workload, words):
    with pytest.raises(InfeasiblePoint, match=words):
        predict(machine(**changes), model(**workload))
