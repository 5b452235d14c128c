"""Laws that every training prediction keeps, on random combinations of all that can be combined."""

import math
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config import load_hardware_config, load_model_config
from deepflow.config.framework import load_framework_config
from deepflow.config.loading import with_overrides
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.hardware import derive_hardware
from deepflow.prediction import TIME_COLUMNS, predict
from deepflow.schedule.training import run_training
from deepflow.workload.operators import Attention, Collective, Gemm, GroupedGemm

H100 = "nvidia_h100_sxm_80gb"
MACHINES = (
    H100,
    "nvidia_a100_sxm_80gb",
    "nvidia_a100_pcie_80gb_nvlink_pairs",
    "nvidia_l40s",
    "google_tpu_v4",
    "waferscale_20v100_80hbm",
)
# Dense with tied and untied embeddings, experts, latent attention, images.
MODELS = ("Llama3.1-8B", "GPT3-175B", "Mixtral-8x7B", "DeepSeek-V3", "ViT-L16")
FRAMEWORKS = (None, "nanotron_checked", "megatron_lm", "pytorch_fsdp", "deepspeed", "deepseek")
MEMORY_PARTS = (
    "weights_bytes",
    "gradients_bytes",
    "optimizer_bytes",
    "activations_bytes",
    "logits_bytes",
    "temporary_bytes",
    "buffers_bytes",
    "allocator_bytes",
    "reserved_bytes",
)
# Sums in another order differ in the last digits.
ROUNDING = 1 + 1e-9


@cache
def machine(name):
    return load_hardware_config(f"configs/hardware-config/{name}.yaml", {})


@cache
def framework(name):
    return load_framework_config(f"configs/framework-config/{name}.yaml")


def hardware(name, overrides, of=None):
    """``overrides``: keys of the parallelism section, or paths of any section."""
    config = machine(name) if of is None else framework(of).applied_to(machine(name))
    paths = {key if "." in key else f"scheduling_param.{key}": overrides[key] for key in overrides}
    return derive_hardware(with_overrides(config, paths))


def model(name, **changes):
    return load_model_config(f"configs/model-config/{name}.yaml", changes)


def devices(number, per_node=None):
    per_node = per_node or min(number, 8)
    return {
        "system_hierarchy.num_devices_per_node": per_node,
        "system_hierarchy.num_nodes": number // per_node,
    }


@st.composite
def points(draw, machines=MACHINES, models=MODELS, wild=True):
    """(machine, overrides, framework, model, its changes); ``wild``: impossible ones too."""

    def one_of(*values):
        return draw(st.sampled_from(values))

    name = one_of(*models)
    tensor, context, pipeline = one_of(1, 2, 4, 8), one_of(1, 1, 2), one_of(1, 2, 4)
    data = one_of(1, 2, 8)
    schedules = ("1f1b", "gpipe", "zero_bubble")
    size, number = one_of(1, 2), one_of(1, 2, 4)
    layout = {
        "tensor": tensor,
        "context": context,
        "pipeline": pipeline,
        "micro_batch_size": size,
        "schedule": one_of(*schedules, "interleaved") if wild else one_of(*schedules),
        "zero": one_of(0, 1, 2, 3),
        "sequence_parallel": one_of(True, False),
        "recompute": one_of("none", "selective", "full"),
        "recompute_modules": one_of("core_attention", "core_attention_and_elementwise"),
        "context_method": one_of("ring", "all_gather"),
        "overlap_tensor_communication": one_of("none", "backward", "full"),
        "overlap_gradient_reduction": one_of(True, False),
        "gradient_bytes": one_of(2, 4),
        "zero_3_unit": one_of("layer", "matrix"),
        "release_distance": one_of(None, 10**8),
        "expert_dispatch": one_of("per_expert", "per_node"),
        "sw_param.kernel_fusion": one_of("fused", "eager"),
        **devices(tensor * context * pipeline * data, tensor * context),
    }
    if name in ("Mixtral-8x7B", "DeepSeek-V3") and context * data >= 2:
        layout["expert"] = one_of(1, 2)
    if wild:
        layout |= {
            "stage_balance": one_of("layers", "flops", "cumulative"),
            "offload": one_of("none", "optimizer", "optimizer_and_activations"),
            "sw_param.attention_kernel": one_of("fused", "unfused"),
            "sw_param.host_time_per_kernel": one_of(0.0, 20e-6),
        }
    changes = {
        "num_layers": pipeline * one_of(1, 2, 3),
        "global_batch_size": data * size * number,
    }
    if name != "ViT-L16":
        changes["seq_len"] = one_of(512, 2048)
    if name == "DeepSeek-V3":
        changes["num_dense_layers"] = one_of(0, 1)
    return one_of(*machines), layout, one_of(*FRAMEWORKS), name, changes


def predicted(point, overrides=None, changes=None):
    """The prediction of a point with some values replaced; None if it cannot exist."""
    name, layout, of, model_name, shape = point
    try:
        return predict(
            hardware(name, layout | (overrides or {}), of),
            model(model_name, **(shape | (changes or {}))),
        )
    except (ConfigError, InfeasiblePoint):
        return None


@pytest.mark.filterwarnings("ignore:.*the parts take")
@settings(max_examples=300)
@given(points())
def test_every_point_is_a_prediction_that_adds_up_or_says_why_not(point):
    name, layout, of, model_name, changes = point
    try:
        found = predict(hardware(name, layout, of), model(model_name, **changes))
    except (ConfigError, InfeasiblePoint) as error:
        assert str(error) and "\n" not in str(error)
        return
    row = found.as_row()
    for column, value in row.items():
        if isinstance(value, float):
            assert math.isfinite(value) and value >= 0, column
    assert sum(row[column] or 0.0 for column in TIME_COLUMNS) == pytest.approx(found.time_s)
    assert sum(row[column] for column in MEMORY_PARTS) == pytest.approx(found.peak_memory_bytes)


GPUS = (H100, "nvidia_a100_sxm_80gb")
LINKS = "tech_param.network"
# Paths whose values may grow, and whose may shrink, without any step taking longer.
MORE = (
    "tech_param.DRAM.bandwidth",
    "tech_param.SRAM_L2.bandwidth",
    "tech_param.SRAM_L2.size",
    "tech_param.core.operating_frequency",
    f"{LINKS}.intra_node.bandwidth",
    f"{LINKS}.inter_node.bandwidth",
)
LESS = (
    "sw_param.kernel_launch_overhead",
    "sw_param.host_time_per_kernel",
    "sw_param.host_time_per_rank",
    f"{LINKS}.intra_node.latency",
    f"{LINKS}.intra_node.handshake",
    f"{LINKS}.inter_node.latency",
    f"{LINKS}.inter_node.handshake",
)


def value_at(config, path):
    for key in path.split("."):
        config = getattr(config, key)
    return config


@settings(max_examples=200)
@given(points(GPUS, wild=False), st.sampled_from(MORE + LESS), st.sampled_from((1.05, 1.5, 4)))
def test_a_better_machine_is_never_slower(point, path, factor):
    before = predicted(point)
    if before is None:
        return
    config = hardware(point[0], point[1], point[2]).config
    better = {path: value_at(config, path) * (factor if path in MORE else 1 / factor)}
    if path.endswith("operating_frequency") and config.tech_param.core.sustained_frequency:
        sustained = config.tech_param.core.sustained_frequency * factor
        better["tech_param.core.sustained_frequency"] = sustained
    assert predicted(point, better).time_s <= before.time_s * ROUNDING


@settings(max_examples=80)
@given(points(GPUS, wild=False), st.data())
def test_more_work_is_never_faster(point, data):
    *_, model_name, shape = point
    growing = ["num_layers", "global_batch_size"]
    growing += [] if model_name == "ViT-L16" else ["seq_len"]
    key = data.draw(st.sampled_from(growing))
    before, after = predicted(point), predicted(point, changes={key: 2 * shape[key]})
    if before is not None and after is not None:
        assert after.time_s * ROUNDING >= before.time_s
        assert after.executed_flops > before.executed_flops


OVERLAPS = {
    "overlap_tensor_communication": ("none", "backward", "full"),
    "overlap_parameter_gather": (False, True),
    "overlap_expert_communication": (False, True),
    "overlap_gradient_reduction": (False, True),
}


@settings(max_examples=30)
@given(points(GPUS, wild=False), st.sampled_from(tuple(OVERLAPS)))
def test_communication_beside_computation_is_never_slower(point, key):
    found = [predicted(point, {key: value}) for value in OVERLAPS[key]]
    times = [item.time_s for item in found if item is not None]
    assert all(after <= before * ROUNDING for before, after in pairwise(times))


@settings(max_examples=30)
@given(points(GPUS, ("Llama3.1-8B", "Mixtral-8x7B"), wild=False))
def test_twice_the_nodes_share_the_work_of_a_batch(point):
    """With as much work per microbatch each device computes no more and keeps no more."""
    layout = point[1]
    nodes = layout["system_hierarchy.num_nodes"]
    one = predicted(point, {"gradient_bucket": None})
    two = predicted(point, {"gradient_bucket": None, "system_hierarchy.num_nodes": 2 * nodes})
    if one is None or two is None:
        return
    for column in ("time_gemm_s", "time_attention_s", "time_elementwise_s", "peak_memory_bytes"):
        assert getattr(two, column) <= getattr(one, column) * ROUNDING, column


def product_flops(run, passes=("forward", "backward")):
    """FLOP of products and attention in all passes, over all devices."""
    mapping = run.mapping
    counts = Counter(name for part in mapping.parts for name in part)
    once = sum(
        count * item.operator.flops
        for name, count in counts.items()
        for direction in passes
        for item in getattr(run.segments[name], direction)
        if isinstance(item.operator, Gemm | GroupedGemm | Attention)
    )
    return once * mapping.num_microbatches * mapping.num_devices / mapping.pipeline


@settings(max_examples=30)
@given(points((H100,), ("Llama3.1-8B", "Mixtral-8x7B", "DeepSeek-V3"), wild=False))
def test_products_are_conserved_and_recomputed_once(point):
    _, layout, _, model_name, shape = point
    # Without sequence parallelism every rank of a tensor group routes all tokens.
    layout = layout | {"sequence_parallel": True, "recompute_modules": "core_attention"}
    workload = model(model_name, **shape)
    alone = {"recompute": "none", "micro_batch_size": 1, **devices(1)}
    once = run_training(hardware(H100, alone), workload)
    runs = {}
    for recompute in ("none", "selective", "full"):
        spread = layout | {"recompute": recompute, "sw_param.attention_kernel": "unfused"}
        spread |= {"context_method": "all_gather"}
        runs[recompute] = product_flops(run_training(hardware(H100, spread), workload))
        fused = layout | {"recompute": recompute}
        runs[recompute, "fused"] = product_flops(run_training(hardware(H100, fused), workload))
    assert runs["none", "fused"] == pytest.approx(product_flops(once), rel=1e-9)
    layers = product_flops(once, ("forward",)) - sum(
        item.operator.flops
        for item in once.segments["head"].forward
        if isinstance(item.operator, Gemm)
    ) * (once.mapping.num_microbatches)
    assert runs["full", "fused"] - runs["none", "fused"] == pytest.approx(layers, rel=1e-9)
    # Fused attention computes its scores again anyway.
    assert runs["selective", "fused"] == runs["none", "fused"]
    assert runs["none"] < runs["selective"] < runs["full"]


@pytest.mark.parametrize("expert", [2, 4, 8])
@pytest.mark.parametrize("capacity", [None, 1.25])
def test_tokens_travel_to_and_from_their_experts_in_both_passes(expert, capacity):
    """Each device sends the part of its rows whose experts are elsewhere, four times a layer."""
    workload = model(
        "Mixtral-8x7B",
        num_layers=2,
        global_batch_size=16,
        seq_len=1024,
        expert_capacity_factor=capacity,
    )
    layout = {"expert": expert, "micro_batch_size": 2, **devices(8)}
    run = run_training(hardware(H100, layout), workload)
    costs = run.segments["experts"]
    sent = sum(
        item.cost.intra_node_bytes
        for item in (*costs.forward, *costs.backward)
        if isinstance(item.operator, Collective) and item.operator.group == "expert"
    )
    rows = 2 * 1024 * 2 * (capacity or 1)
    assert sent == pytest.approx(4 * rows * 4096 * 2 * (expert - 1) / expert)


@pytest.mark.parametrize("name", ["Llama3.1-8B", "Mixtral-8x7B"])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_each_stage_of_sharding_keeps_less(name, pipeline):
    workload = model(name, num_layers=16, global_batch_size=16)
    layout = {"tensor": 2, "pipeline": pipeline, "micro_batch_size": 1, **devices(32)}
    kept = [predict(hardware(H100, layout | {"zero": zero}), workload) for zero in range(4)]
    for before, after in pairwise(kept):
        assert after.peak_memory_bytes < before.peak_memory_bytes
        assert after.static_memory_bytes < before.static_memory_bytes


@settings(max_examples=30)
@given(points((H100,), wild=False))
def test_a_schedule_that_goes_back_earlier_keeps_less(point):
    first, last = (predicted(point, {"schedule": name}) for name in ("1f1b", "gpipe"))
    if first is not None and last is not None:
        assert first.peak_memory_bytes <= last.peak_memory_bytes * ROUNDING
        assert first.executed_flops == pytest.approx(last.executed_flops)


@pytest.mark.parametrize("name", [H100, "nvidia_h100_pcie_80gb", "nvidia_l40s"])
@pytest.mark.parametrize("link", [None, 25e9, 50e9])
def test_faster_cores_are_never_slower_where_gradients_share_links(name, link):
    """Data and tensor group within a node: neither slows down more as products get faster."""
    layout = {"micro_batch_size": 2, "zero": 0}
    if link is not None:
        layout[f"{LINKS}.intra_node.bandwidth"] = link
    core = machine(name).tech_param.core
    for tensor in (2, 4):
        workload = model("Llama2-7B", num_layers=16, seq_len=2048, global_batch_size=16 // tensor)
        times = []
        for factor in (1.0, 1.1, 1.5, 2.0, 4.0):
            faster = {"tech_param.core.operating_frequency": core.operating_frequency * factor}
            if core.sustained_frequency is not None:
                faster["tech_param.core.sustained_frequency"] = core.sustained_frequency * factor
            degrees = {"tensor": tensor, **devices(8)}
            times.append(predict(hardware(name, layout | degrees | faster), workload).time_s)
        assert times == sorted(times, reverse=True)


def test_a_host_that_is_slow_hides_what_is_offloaded():
    workload = model("Llama2-7B", num_layers=4, global_batch_size=1)
    layout = {"offload": "optimizer", "sw_param.host_time_per_tensor": 10e-3, **devices(1)}
    times = [
        predict(hardware(H100, layout | {"tech_param.DRAM.bandwidth": bandwidth}), workload).time_s
        for bandwidth in (3.3e12, 8e12, 3e13)
    ]
    assert times == sorted(times, reverse=True)


def test_sharding_over_one_device_changes_nothing():
    workload = model("Llama2-7B", num_layers=2, global_batch_size=2)
    kept = {
        predict(hardware(H100, {"zero": zero, **devices(1)}), workload).peak_memory_bytes
        for zero in range(4)
    }
    assert len(kept) == 1


@pytest.mark.parametrize(("zero", "bytes_per_parameter"), [(0, 8), (1, 6), (2, 6), (3, 8)])
def test_a_matrix_with_two_uses_travels_once(zero, bytes_per_parameter):
    """Gradients of 4 bytes reduced (both ways, or to their owners), weights of 2 gathered."""
    layout = {"zero": zero, "micro_batch_size": 1, **devices(8)}
    layout["execution_backend.astra.collectives.all_reduce"] = "ring"
    workload = model("Llama3.1-8B", num_layers=1, global_batch_size=8, tie_embeddings=True)
    found = predict(hardware(H100, layout), workload)
    expected = 7 / 8 * 8 * bytes_per_parameter * found.parameters
    assert found.intra_node_bytes == pytest.approx(expected, rel=1e-9)


def test_a_device_with_all_experts_is_as_busy_as_any_other():
    layout = {"expert": 1, "micro_batch_size": 1, **devices(8)}
    even, uneven = (
        predict(
            hardware(H100, layout),
            model("Mixtral-8x7B", num_layers=2, global_batch_size=8, expert_imbalance=imbalance),
        )
        for imbalance in (1.0, 2.0)
    )
    assert uneven.executed_flops == even.executed_flops
    assert uneven.time_s == even.time_s


def test_one_microbatch_has_nothing_to_hide_expert_communication_behind():
    layout = {"expert": 8, "micro_batch_size": 1, **devices(8)}
    waits = {}
    for number in (1, 2, 4):
        workload = model("Mixtral-8x7B", num_layers=2, global_batch_size=8 * number)
        for overlap in (False, True):
            asked = layout | {"overlap_expert_communication": overlap}
            waits[number, overlap] = predict(
                hardware(H100, asked), workload
            ).time_expert_communication_s
    assert waits[1, True] == waits[1, False] > 0
    assert waits[2, True] < waits[2, False]
    assert waits[4, True] >= waits[2, True] >= waits[1, True] * (1 - 1e-9)


def test_passes_for_weights_gather_no_weights():
    """Gradients of weights need inputs and output gradients only (ZeRO 3 with zero bubble)."""
    layout = {"zero": 3, "pipeline": 2, "micro_batch_size": 1, **devices(16)}
    workload = model("Llama2-7B", num_layers=8, global_batch_size=32)
    one, split = (
        predict(hardware(H100, layout | {"schedule": name}), workload)
        for name in ("1f1b", "zero_bubble")
    )
    assert split.intra_node_bytes + split.inter_node_bytes == pytest.approx(
        one.intra_node_bytes + one.inter_node_bytes
    )


def test_first_and_last_stage_add_up_a_tied_matrix_over_the_network_between_them():
    """Eight stages on two nodes: neighbours share a node, the two ends do not."""
    layout = {"pipeline": 8, "micro_batch_size": 1}
    workload = model("Llama3.1-8B", num_layers=8, global_batch_size=16, tie_embeddings=True)
    times = []
    for per_node in (16, 8, 2):
        run = run_training(hardware(H100, layout | devices(16, per_node)), workload)
        times.append(run.durations[run.graph.tied_gradient])
    assert times[0] < times[1] == times[2]
