"""Grouped products and layers of experts: rows without weights, padding, shared waves, spread."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cost.gemm import gemm_cost
from deepflow.cost.grouped_gemm import (
    counted_loads,
    even_loads,
    grouped_gemm_cost,
    library_kernel,
    ragged_gemm_cost,
)
from deepflow.errors import DeepFlowError, InfeasiblePoint
from deepflow.hardware import load_hardware
from deepflow.validate.moe import predicted_seconds, rank_loads

ROOT = Path(__file__).resolve().parent.parent
DEVICE = load_hardware(ROOT / "configs/hardware-config/nvidia_a100_sxm_80gb.yaml")
A100 = DEVICE.accelerator
LIMITS = A100.roofline_limits
KERNEL = library_kernel(2)

sizes = st.integers(1, 4000)
rows_of_experts = st.lists(st.integers(0, 600), min_size=1, max_size=12)


def ragged(rows_by_expert, k=1024, n=1024, limits=LIMITS, kernel=KERNEL):
    return ragged_gemm_cost(limits, counted_loads(rows_by_expert), k, n, kernel)


@given(rows=st.floats(1, 5000), experts=st.integers(1, 200))
def test_even_loads_deal_out_every_row(rows, experts):
    loads = even_loads(rows, experts)
    assert rows <= sum(load * count for load, count in loads) < rows + 1
    assert sum(count for _, count in loads) == min(experts, -(-rows // 1))
    assert max(load for load, _ in loads) - min(load for load, _ in loads) <= 1


def test_experts_without_rows_are_not_read():
    some, none = ragged([8, 8]), ragged([8, 8, 0, 0, 0])
    assert some == none
    assert ragged([4, 4, 4, 4]).dram_bytes > 1.9 * some.dram_bytes


def test_few_rows_take_as_long_as_the_weights_that_they_need():
    cost = grouped_gemm_cost(A100, 16, 64, 4096, 4096, 2)
    assert cost.bound == "DRAM"
    assert cost.time == pytest.approx(16 * 4096 * 4096 * 2 / LIMITS.bandwidths[3], rel=0.05)


def test_the_same_rows_cost_more_where_they_do_not_fill_blocks():
    kernel = replace(KERNEL, blocks=((128, 128, 1.0),))
    full, ragged_rows = ([128] * 8, [129, 127] * 4)
    times = [ragged(rows, n=4096, kernel=kernel).time for rows in (full, ragged_rows)]
    assert times[1] > 1.1 * times[0]


@pytest.mark.parametrize("shape", [(8192, 8, 4096, 28672), (65536, 8, 14336, 4096)])
@pytest.mark.parametrize("sums_rows", [False, True])
def test_full_experts_are_as_fast_as_as_many_single_products(shape, sums_rows):
    rows, experts, k, n = shape
    m = rows // experts
    one = gemm_cost(A100, k, m, n, 2) if sums_rows else gemm_cost(A100, m, k, n, 2)
    all_of_them = grouped_gemm_cost(A100, rows, experts, k, n, 2, sums_rows=sums_rows)
    assert all_of_them.time == pytest.approx(experts * one.time, rel=0.08)


@given(rows=rows_of_experts, k=sizes, n=sizes, data=st.data())
def test_more_work_never_takes_less_time(rows, k, n, data):
    expert = data.draw(st.integers(0, len(rows) - 1))
    more = [*rows[:expert], rows[expert] + data.draw(st.integers(1, 300)), *rows[expert + 1 :]]
    time = ragged(rows, k, n).time
    assert ragged(more, k, n).time >= time
    assert ragged([*rows, 1], k, n).time >= time
    assert ragged(rows, k + data.draw(sizes), n).time >= time
    assert ragged(rows, k, n + data.draw(sizes)).time >= time


@given(
    rows=rows_of_experts,
    k=sizes,
    n=sizes,
    faster=st.floats(1, 10),
    field=st.sampled_from(["usable_flops", "l2_bytes_per_tile", "dram", "l2", "latency"]),
)
def test_better_hardware_never_takes_more_time(rows, k, n, faster, field):
    l0, l1, l2, l3 = LIMITS.bandwidths
    better = {
        "dram": {"bandwidths": (l0, l1, l2, l3 * faster)},
        "l2": {"bandwidths": (l0, l1, l2 * faster, l3)},
        "latency": {"latencies": tuple(latency / faster for latency in LIMITS.latencies)},
    }.get(field) or {field: getattr(LIMITS, field) * faster}
    time = ragged(rows, k, n, LIMITS._replace(**better)).time
    # Rates that differ in the last bit only may round the other way.
    assert time <= ragged(rows, k, n).time * (1 + 1e-12)


def test_smaller_weights_help_until_converting_them_takes_over():
    small = replace(KERNEL, weight_bytes=0.5)
    converted = replace(small, conversions=1e12)
    times = [ragged([1] * 64, 4096, 4096, kernel=kernel).time for kernel in (KERNEL, small)]
    assert times[1] < times[0] / 2
    assert ragged([1] * 64, 4096, 4096, kernel=converted).time > 64 * 4096 * 4096 / 1e12


def test_experts_beyond_the_cache_are_read_again():
    """4,096 rows of 16 MB with weights of 64 MB, in a cache that holds neither."""
    small = LIMITS._replace(l2_bytes_per_tile=2**20)
    once = ragged([4096], 2048, 16384).dram_bytes
    assert ragged([4096], 2048, 16384, small).dram_bytes > 10 * once


def test_no_cache_is_said_so():
    with pytest.raises(InfeasiblePoint, match="has no capacity"):
        ragged([1], limits=LIMITS._replace(l2_bytes_per_tile=0.0))


# --- Measured layers ------------------------------------------------------------------------

# One of the rows of op_moe on A100 (aiconfigurator, sglang 0.5.10).
ROW = {
    "dtype": "int4_wo",
    "num_tokens": "80",
    "hidden_size": "6144",
    "inter_size": "2048",
    "topk": "8",
    "num_experts": "256",
    "moe_tp_size": "1",
    "moe_ep_size": "4",
    "distribution": "balanced",
    "source": "sglang/0.5.10",
    "kernel_source": "sglang_marlin_moe",
}


def test_a_measured_layer_is_met():
    assert predicted_seconds(ROW, DEVICE) == pytest.approx(1205.78e-6, rel=0.15)


@given(
    tokens=st.integers(1, 3000),
    experts=st.sampled_from([8, 64, 256]),
    top_k=st.integers(1, 8),
    ranks=st.sampled_from([1, 2, 8]),
    law=st.sampled_from([1.01, 1.2]),
)
def test_power_laws_deal_out_every_row(tokens, experts, top_k, ranks, law):
    for loads, reached in rank_loads(f"power_law_{law}", tokens, experts, top_k, ranks):
        rows = sum(load * count for load, count in loads)
        assert rows == tokens * top_k if ranks == 1 else rows >= tokens * top_k / ranks
        assert sum(count for _, count in loads) <= experts // ranks
        assert max(load for load, _ in loads) <= tokens
        assert 1 <= reached <= min(tokens, rows)


def test_a_power_law_leaves_most_rows_to_few_experts():
    ((even, _),) = rank_loads("balanced", 4096, 128, 8, 1)
    assert even == ((256, 128),)
    for loads, _ in rank_loads("power_law_1.2", 4096, 128, 8, 1):
        assert loads[0][0] > 6 * 256


def test_the_rank_with_the_most_rows_takes_longer_than_an_even_one():
    row = ROW | {"dtype": "bfloat16", "num_tokens": "8192", "kernel_source": "moe_torch_flow"}
    times = [
        predicted_seconds(row | {"distribution": name}, DEVICE)
        for name in ("balanced", "power_law_1.2")
    ]
    assert times[1] > 1.1 * times[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "fp5"}, "dtype 'fp5' are not predicted"),
        ({"dtype": "nvfp4"}, "no rate for fp4"),
        ({"distribution": "zipf"}, "distribution 'zipf' is not known"),
        ({"moe_ep_size": "3"}, "do not divide over the ranks"),
    ],
)
def test_what_cannot_be_predicted_says_why(change, said):
    with pytest.raises(DeepFlowError, match=said):
        predicted_seconds(ROW | change, DEVICE)
