"""Fused attention: laws, published rates and measured kernels."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cost.attention import attention_cost, attention_limits
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.hardware import Hardware, load_hardware
from deepflow.validate import read_table
from deepflow.validate.attention import predicted_seconds
from deepflow.workload.operators import BACKWARD_PASSES, FORWARD_PASSES, Attention

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "tests/data/measured"
A100, H100 = "nvidia_a100_sxm_80gb", "nvidia_h100_sxm_80gb"
PRESETS = {"a100_sxm": A100, "h100_sxm": H100}


@cache
def hardware(name: str = H100, **overrides: Any) -> Hardware:
    path = ROOT / f"configs/hardware-config/{name}.yaml"
    return load_hardware(path, {key.replace("__", "."): value for key, value in overrides.items()})


def prompt(tokens: int = 4096, *, batch: int = 4, heads: int = 32, dim: int = 128) -> Attention:
    return Attention("attention", batch, heads, heads, tokens, tokens, dim, dim)


def generation(keys: int, *, batch: int = 64, heads: int = 32, kv_heads: int = 8) -> Attention:
    return Attention("attention", batch, heads, kv_heads, 1, keys, 128, 128)


def seconds(
    operator: Attention, device: Hardware | None = None, library: str = "flash_attention_2"
) -> float:
    limits = attention_limits(device or hardware(), library)
    return attention_cost(operator, limits, 2, 2).time


def rate(operator: Attention, **given: Any) -> float:
    """FLOP/s of the products."""
    return operator.flops / seconds(operator, **given)


# --- Laws ---------------------------------------------------------------------------------------

operators = st.builds(
    lambda batch, kv_heads, group, queries, before, dims, causal, window, shards, passes: Attention(
        "attention",
        batch,
        kv_heads * group,
        kv_heads,
        queries,
        queries + before,
        *dims,
        causal,
        window,
        shards,
        passes,
    ),
    batch=st.integers(1, 100),
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 16),
    queries=st.one_of(st.just(1), st.integers(1, 5000)),
    before=st.integers(0, 20000),
    dims=st.sampled_from([(64, 64), (128, 128), (192, 128), (256, 256)]),
    causal=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 5000)),
    shards=st.sampled_from([1, 2, 8]),
    passes=st.sampled_from([FORWARD_PASSES, BACKWARD_PASSES]),
)
libraries = st.sampled_from(["flash_attention_2", "flash_attention_3"])


@given(operators, libraries, st.data())
def test_a_bigger_shape_is_never_faster(
    operator: Attention, library: str, data: st.DataObject
) -> None:
    changes: list[dict[str, Any]] = [
        {"batch": operator.batch + data.draw(st.integers(1, 50))},
        {"kv_len": operator.kv_len + data.draw(st.integers(1, 3000))},
        {"head_dim": operator.head_dim + 64},
        {"value_dim": operator.value_dim + 64},
        {"heads": operator.heads + operator.kv_heads},
        {"window": None},
        {"causal": False},
        {"shards": 1},
    ]
    if operator.query_len < operator.kv_len:
        changes.append({"query_len": operator.query_len + 1})
    least = seconds(operator, library=library) * (1 - 1e-12)
    for change in changes:
        assert seconds(replace(operator, **change), library=library) >= least, change


@given(operators, libraries)
def test_faster_hardware_is_never_slower(operator: Attention, library: str) -> None:
    base = seconds(operator, library=library) * (1 + 1e-12)
    for key, value in {
        "tech_param__DRAM__bandwidth": 5e12,
        "tech_param__core__operating_frequency": 2e9,
        "tech_param__core__num_bundles": 160,
        "tech_param__core__special_functions_per_cycle": 32,
        "tech_param__core__attention_block_latency": 1e-6,
        "tech_param__core__attention_util": 0.9,
    }.items():
        assert seconds(operator, hardware(**{key: value}), library) <= base, key


def test_a_window_wider_than_the_sequence_changes_nothing() -> None:
    operator = prompt()
    assert seconds(replace(operator, window=8192)) == seconds(operator)
    narrow = seconds(replace(operator, window=512))
    assert narrow < 0.5 * seconds(operator)


def test_causal_attention_of_long_sequences_takes_half_the_time() -> None:
    operator = prompt(16384)
    ratio = seconds(operator) / seconds(replace(operator, causal=False))
    assert 0.5 < ratio < 0.56


def test_small_heads_are_held_up_by_exponentials() -> None:
    assert rate(prompt(8192, dim=64)) < 0.95 * rate(prompt(8192, heads=16, dim=128))
    without = hardware(tech_param__core__special_functions_per_cycle=None)
    ratio = rate(prompt(8192, dim=64), device=without) / rate(prompt(8192, dim=64))
    assert ratio > 1.3


def test_values_narrower_than_keys_cost_less() -> None:
    wide = Attention("latent", 2, 64, 64, 4096, 4096, 192, 192)
    narrow = replace(wide, value_dim=128)
    assert narrow.flops / wide.flops < seconds(narrow) / seconds(wide) < 1


def test_sharing_the_queries_of_a_sequence_shares_the_time() -> None:
    operator = prompt(65536, batch=1)
    assert seconds(replace(operator, shards=4)) == pytest.approx(seconds(operator) / 4, rel=0.05)


def test_generation_reads_keys_at_memory_speed() -> None:
    operator = generation(32768)
    limits = attention_limits(hardware(), "flash_attention_3")
    cost = attention_cost(operator, limits, 2, 2)
    assert cost.bound == "DRAM"
    least = 64 * 8 * 32768 * 256 * 2 / limits.bandwidth
    assert least < cost.time < 1.05 * least
    assert attention_cost(operator, limits, 2, 1).time == pytest.approx(cost.time / 2, rel=0.05)


def test_heads_that_share_keys_do_not_read_them_again() -> None:
    shared, own = generation(16384), generation(16384, kv_heads=32)
    assert seconds(shared, library="flash_attention_3") < 0.3 * seconds(
        own, library="flash_attention_3"
    )


def test_long_sequences_are_split_over_idle_bundles() -> None:
    one = generation(1 << 20, batch=1, kv_heads=1)
    assert seconds(one, library="flash_attention_3") == pytest.approx(
        seconds(replace(one, batch=8), library="flash_attention_3") / 8, rel=0.05
    )


def test_an_inference_library_has_no_backward_pass() -> None:
    operator = replace(prompt(), passes=BACKWARD_PASSES)
    with pytest.raises(ConfigError, match="attention_library tensorrt_llm has no backward pass"):
        seconds(operator, library="tensorrt_llm")


# --- Published rates ----------------------------------------------------------------------------

# TFLOP/s on an H100 SXM5, 16,384 tokens in all, hidden size 2048 (arXiv 2407.08608, figures 5, 6):
# library, head size, causal, passes; sequences of 512, 1024, ... 16,384.
PUBLISHED = {
    ("flash_attention_2", 64, False, 2): (282, 306, 318, 321, 322, 324),
    ("flash_attention_2", 128, False, 2): (309, 350, 362, 368, 370, 370),
    ("flash_attention_2", 128, True, 2): (191, 260, 298, 319, 333, 335),
    ("flash_attention_2", 64, False, 5): (198, 238, 264, 279, 287, 291),
    ("flash_attention_2", 128, False, 5): (214, 260, 291, 310, 318, 322),
    ("flash_attention_3", 64, False, 2): (333, 392, 460, 476, 496, 497),
    ("flash_attention_3", 128, False, 2): (467, 565, 625, 638, 646, 648),
    ("flash_attention_3", 128, True, 2): (292, 423, 521, 579, 602, 616),
    ("flash_attention_3", 64, False, 5): (272, 363, 422, 453, 472, 474),
    ("flash_attention_3", 128, False, 5): (316, 424, 501, 542, 559, 561),
}


@pytest.mark.parametrize(("case", "rates"), PUBLISHED.items())
def test_published_rates_on_the_h100(
    case: tuple[str, int, bool, int], rates: tuple[int, ...]
) -> None:
    library, dim, causal, passes = case
    for step, measured in enumerate(rates):
        tokens = 512 << step
        operator = prompt(tokens, batch=16384 // tokens, heads=2048 // dim, dim=dim)
        operator = replace(operator, causal=causal, passes=passes)
        counted = passes * 2 * tokens * 16384 * 2048 * (0.5 if causal else 1)
        assert counted / seconds(operator, library=library) / 1e12 == pytest.approx(
            measured, rel=0.2
        )


# --- Measured kernels ---------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", PRESETS)
@pytest.mark.parametrize("table", ["op_attention_prefill", "op_attention_decode"])
def test_measured_kernels(gpu: str, table: str) -> None:
    errors = []
    for row in read_table(MEASURED / f"{table}.csv.gz"):
        measured = float(row["latency_us"]) * 1e-6
        if row["gpu"] != gpu or measured < 20e-6 or row["kernel_source"] == "triton":
            continue
        errors.append(abs(predicted_seconds(row, hardware(PRESETS[gpu])) / measured - 1))
    assert len(errors) > 50
    assert statistics.median(errors) < 0.12


def test_rows_that_cannot_be_predicted_say_why() -> None:
    row = next(
        row
        for row in read_table(MEASURED / "op_attention_prefill.csv.gz")
        if row["gpu"] == "a100_sxm"
    )
    with pytest.raises(DeepFlowError, match="'some_kernel' are not modelled"):
        predicted_seconds(row | {"kernel_source": "some_kernel"}, hardware(A100))
    with pytest.raises(DeepFlowError, match="attn_dtype 'int4'"):
        predicted_seconds(row | {"attn_dtype": "int4"}, hardware(A100))
    with pytest.raises(DeepFlowError, match="fp8 is missing"):
        predicted_seconds(row | {"kv_cache_dtype": "fp8"}, hardware(A100))


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("nvidia_a100_sxm_40gb", A100),
        ("nvidia_a100_pcie_40gb", A100),
        ("nvidia_a100_pcie_80gb", A100),
        ("nvidia_a100_pcie_80gb_nvlink_pairs", A100),
        ("nvidia_l40s", A100),
        ("nvidia_h100_pcie_80gb", H100),
        ("nvidia_h200_sxm_141gb", H100),
    ],
)
def test_presets_without_measured_kernels_take_over_those_of_another(name: str, like: str) -> None:
    ours, theirs = (hardware(item).config.tech_param.core for item in (name, like))
    assert ours.attention_rates == theirs.attention_rates
    assert ours.attention_block_latency == theirs.attention_block_latency
