"""Predictions for measured mixture-of-experts layers (``op`` is moe).

A row is one layer on one device, as the collector of aiconfigurator measures it
(github.com/ai-dynamo/aiconfigurator): routing, a grouped product up, the activation, a grouped
product down and the sum over a token's experts, in a CUDA graph. Of ``moe_ep_size`` ranks it is
the one with the most rows; it holds ``num_experts / moe_ep_size`` experts of width
``inter_size / moe_tp_size``.

``distribution`` says how rows are spread over all experts: balanced, or power_law_a, weights drawn
from the density x^-a between 1 and 0.8 times the tokens (between 0.01 and 2 where there are no
more rows than experts), scaled to the number of rows and rounded; a token chooses an expert at
most once. Every measurement averages a few draws; here a few with a fixed seed stand for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from deepflow.cost.gemm import BLOCKS
from deepflow.cost.grouped_gemm import (
    GroupedKernel,
    Loads,
    counted_loads,
    even_loads,
    ragged_gemm_cost,
)
from deepflow.cost.roofline import roofline_time
from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware
from deepflow.record import record

Integers = npt.NDArray[np.int64]

DRAWS = 4
SEED = 0

# Rows are gathered and scattered by token, which device memory serves at about half of its
# streaming rate.
GATHER_SLOWDOWN = 2
BF16 = 2  # bytes; activations between kernels and results


@record(frozen=True)
class NumberFormat:
    """Bytes of a weight (with its part of the block scales) and of an input of a product.

    ``dtype`` names the rate; ``converted``: weights are brought to that type in the kernel;
    ``quantized``: kernels of their own bring the inputs to it.
    """

    weight_bytes: float
    input_bytes: float
    dtype: str
    converted: bool = False
    quantized: bool = False


# Scales: 16 bits for 128 weights (int4_wo), 8 bits for 32 (mxfp4) or for 16 (nvfp4).
FORMATS = {
    "bfloat16": NumberFormat(2, 2, "bf16"),
    "float16": NumberFormat(2, 2, "fp16"),
    "fp8": NumberFormat(1, 1, "fp8", quantized=True),
    "fp8_block": NumberFormat(1, 1, "fp8", quantized=True),
    "int8_wo": NumberFormat(1, 2, "bf16", converted=True),
    "int4_wo": NumberFormat(0.5 + 2 / 128, 2, "bf16", converted=True),
    "w4a16_mxfp4": NumberFormat(0.5 + 1 / 32, 2, "bf16", converted=True),
    "w4afp8": NumberFormat(0.5 + 2 / 128, 1, "fp8", converted=True, quantized=True),
    "w4a8_mxfp4_mxfp8": NumberFormat(0.5 + 1 / 32, 1 + 1 / 32, "fp8", quantized=True),
    "nvfp4": NumberFormat(0.5 + 1 / 16, 0.5 + 1 / 16, "fp4", quantized=True),
}


@record(frozen=True)
class Library:
    """What is particular about a library's kernels.

    ``kernels``: launches of a layer, routing included. ``passes``: how often routed rows are
    brought from the order of tokens to that of experts or back by kernels of their own.
    ``shared_loads`` as in ``GroupedKernel``. ``rate``: part of the device's matrix rate that full
    blocks reach. ``converted_per_cycle``: weights that one bundle converts per clock cycle.
    """

    kernels: int
    passes: int
    shared_loads: float
    rate: float
    converted_per_cycle: float


# One set per library for all devices. Kernels: routing, sorting (two), two products, activation,
# sum, and permuting, conversions of routing weights or copies. The other values bring the median
# errors of the library's measured layers (op_moe, A100 and H100) near zero.
CUTLASS = Library(kernels=8, passes=2, shared_loads=0.5, rate=1.0, converted_per_cycle=50)
# Products look rows up themselves, which leaves about two thirds of the cache's peak bandwidth.
TRITON = Library(kernels=9, passes=1, shared_loads=1.5, rate=1.0, converted_per_cycle=10)
MARLIN = Library(kernels=9, passes=2, shared_loads=1.0, rate=0.75, converted_per_cycle=50)
QUANTIZING_KERNELS = 2
# Part of the rate of single products that CUTLASS's grouped ones reach where both are made of
# instructions of single warps, and where sums are scaled and added up outside the matrix units.
WARP_LEVEL_GROUPED = 0.75
BLOCK_SCALED = 0.5


def predicted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of the row's layer, in seconds.

    Raises:
        DeepFlowError: the data type or the distribution is not known, the device has no rate for
            the data type, or the experts do not divide over the ranks.
    """
    if row["dtype"] not in FORMATS:
        raise DeepFlowError(f"experts of dtype {row['dtype']!r} are not predicted")
    form = FORMATS[row["dtype"]]
    source = row["kernel_source"]
    tokens, hidden = int(row["num_tokens"]), int(row["hidden_size"])
    ranks, experts, top_k = (int(row[key]) for key in ("moe_ep_size", "num_experts", "topk"))
    if experts % ranks or int(row["inter_size"]) % int(row["moe_tp_size"]):
        raise DeepFlowError("experts or their width do not divide over the ranks")
    local, width = experts // ranks, int(row["inter_size"]) // int(row["moe_tp_size"])
    columns = width if "nongated" in source else 2 * width
    library = _library(source)
    accelerator = hardware.accelerator
    # Rows that were permuted are quantized after that.
    passes = library.passes + (1 if form.quantized and library.passes > 1 else 0)
    times = []
    for loads, tokens_here in rank_loads(row["distribution"], tokens, experts, top_k, ranks):
        rows = sum(load * count for load, count in loads)
        if ranks > 1 and _computes_remote_rows(row):
            # The benchmark hands the rows of other ranks' experts to the first of this one's.
            loads = _with_more_for_one(loads, tokens_here * top_k - rows)
            rows = tokens_here * top_k
        kernel = _kernel(library, form, row["dtype"], hardware, tokens_here, rows, local)
        time = sum(
            ragged_gemm_cost(accelerator.roofline_limits, loads, k, n, kernel).time
            for k, n in ((hidden, columns), (width, hidden))
        )
        if source.startswith("vllm") and library is TRITON:
            # Rows of other ranks' experts are skipped by the products alone.
            rows = tokens * top_k
        routed = BF16 * hidden * (rows + min(rows, tokens_here))
        time += roofline_time(
            accelerator,
            0.0,
            BF16 * rows * (columns + width) + GATHER_SLOWDOWN * passes * routed,
        )
        times.append(time)
    kernels = library.kernels + (QUANTIZING_KERNELS if form.quantized else 0)
    launches = kernels * hardware.config.sw_param.kernel_launch_overhead
    return sum(times) / len(times) + launches


def rank_loads(
    distribution: str, tokens: int, experts: int, top_k: int, ranks: int
) -> tuple[tuple[Loads, int], ...]:
    """For each draw, the loads of the rank with the most rows and how many tokens reach it.

    Raises:
        DeepFlowError: ``distribution`` is neither balanced nor power_law_ and a number.
    """
    local = experts // ranks
    if distribution == "balanced":
        # Dealt out one by one; few rows reach distinct experts, which the ranks share.
        rows = -(-tokens * top_k // ranks)
        return ((even_loads(rows, local), min(tokens, rows)),)
    name, _, exponent = distribution.rpartition("_")
    try:
        law = float(exponent)
    except ValueError:
        law = 1.0
    if name != "power_law" or law == 1:
        raise DeepFlowError(f"distribution {distribution!r} is not known")
    return _power_law_loads(law, tokens, experts, top_k, ranks)


@lru_cache(maxsize=2**12)
def _power_law_loads(
    exponent: float, tokens: int, experts: int, top_k: int, ranks: int
) -> tuple[tuple[Loads, int], ...]:
    random = np.random.default_rng(SEED)
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    power = 1 - exponent
    found = []
    for _ in range(DRAWS):
        # Inverse of the cumulative distribution of x^-exponent between low and high.
        part = random.random(experts)
        weights = (low**power + part * (high**power - low**power)) ** (1 / power)
        shares = np.minimum(np.rint(weights / weights.sum() * tokens * top_k), tokens)
        by_rank = shares.astype(np.int64).reshape(ranks, -1)
        _settle(by_rank, tokens * top_k, tokens)
        most = by_rank[by_rank.sum(axis=1).argmax()]
        # A token misses the rank if it misses all of its experts.
        reached = tokens * (1 - np.prod(1 - most / tokens))
        found.append((counted_loads(most.tolist()), max(1, round(float(reached)))))
    return tuple(found)


def _settle(by_rank: Integers, total: int, most: int) -> None:
    """Changes rows of experts by one, rank by rank in turn, until they add up to ``total``.

    What is missing goes to each rank's experts with the fewest rows, below ``most``; what is too
    much is taken from those with the most.
    """
    while missing := total - int(by_rank.sum()):
        step = 1 if missing > 0 else -1
        order = np.argsort(step * by_rank, axis=1, kind="stable")
        if step < 0:
            order = order[:, : max(1, order.shape[1] // 8)]
        experts = (order + np.arange(len(by_rank))[:, None] * by_rank.shape[1]).T.ravel()
        flat = by_rank.reshape(-1)
        open_to_change = flat[experts] < most if step > 0 else flat[experts] > 0
        flat[experts[open_to_change][: abs(missing)]] += step


def _library(source: str) -> Library:
    if "marlin" in source:
        return MARLIN
    if "triton" in source or source == "vllm_fused_moe":
        return TRITON
    return CUTLASS


def _computes_remote_rows(row: Mapping[str, str]) -> bool:
    source, version = row["kernel_source"], row["source"]
    if source == "sglang_marlin_moe":
        return version == "sglang/0.5.10"
    return source == "sglang_fused_moe_triton" and row["dtype"] in ("bfloat16", "fp8_block")


def _with_more_for_one(loads: Loads, more: int) -> Loads:
    (most, count), *rest = loads
    others = ((most, count - 1),) if count > 1 else ()
    return ((most + more, 1), *others, *rest)


def _kernel(
    library: Library,
    form: NumberFormat,
    dtype: str,
    hardware: Hardware,
    tokens: int,
    rows: int,
    experts: int,
) -> GroupedKernel:
    """The kernel that ``library`` picks for ``rows`` of ``tokens`` over a rank's ``experts``."""
    technology = hardware.config.tech_param.core
    core = hardware.accelerator.core
    if form.dtype not in technology.precision_rates.supported:
        raise DeepFlowError(f"the hardware file has no rate for {form.dtype} products")
    rate = technology.usable_rate(form.dtype, hardware.config.sw_param.dtype)
    conversions = None
    if form.converted:
        conversions = library.converted_per_cycle * core.num_bundles * core.operating_frequency
    rate *= library.rate
    blocks: tuple[tuple[int, int, float], ...]
    if library is MARLIN:
        # The lowest block that the average expert does not fill to nine tenths.
        height = next((size for size in (8, 16, 32, 48) if rows < 0.9 * size * experts), 64)
        blocks = ((height, 256, 1.0), (height, 128, 1.0))
        rate *= technology.warp_matrix_rate
    elif library is TRITON:
        # The defaults for shapes that have not been tuned.
        few = tokens <= experts and dtype != "fp8_block"
        blocks = ((16, 32, 1.0) if few else (64, 128 if dtype == "fp8_block" else 64, 1.0),)
    else:
        blocks = BLOCKS
        if technology.warp_matrix_rate == 1:
            rate *= WARP_LEVEL_GROUPED
        if dtype == "fp8_block":
            rate *= BLOCK_SCALED
    return GroupedKernel(
        blocks,
        form.input_bytes,
        form.weight_bytes,
        BF16,
        rate,
        library.shared_loads,
        conversions,
    )
