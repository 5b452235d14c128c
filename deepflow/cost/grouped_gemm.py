"""Time of grouped matrix multiplications: the experts of a mixture-of-experts layer.

One kernel multiplies the rows of every expert by that expert's matrix. Rows are ragged: an expert
with r rows takes ceil(r / b) blocks of b rows, padded at its end, and an expert without rows takes
none, nor are its weights read. Blocks of all experts fill waves over the bundles together
(MegaBlocks, arXiv 2211.15841, 5; CUTLASS documentation of grouped kernels). The time is that of the
longest of these, and up to 26 % more where device memory takes about as long as the others:

- arithmetic in whole waves of the best block; weights that are stored in fewer bits are first
  converted by the general-purpose units, in turns with the matrix units;
- operands on their way from the last-level cache into the bundles, once per block;
- device memory: weights of the experts with rows, activations in and out. Of an expert whose
  operands do not fit the cache together, the cheaper one is read again for every cache-full of
  the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from deepflow.cost.gemm import BLOCK_DEPTH, BLOCKS, ElementBytes
from deepflow.errors import InfeasiblePoint
from deepflow.hardware.accelerator import Accelerator, RooflineLimits
from deepflow.record import record

# How many experts have how many rows each, most rows first.
Loads = tuple[tuple[int, int], ...]


@record(frozen=True)
class GroupedKernel:
    """A library's kernel: ``blocks`` of (rows, columns, achieved part of a full wave's rate).

    ``rate``: part of the device's matrix rate that it can use at all. Sizes are bytes of one
    element. ``shared_loads``: traffic from the last-level cache over the operands of all blocks;
    less than one where neighbouring bundles pass on what they load, more where loads do not reach
    the cache's bandwidth. ``conversions``: weights that the device can convert to the data type
    of the product, per second (None: nothing to convert).
    """

    blocks: tuple[tuple[int, int, float], ...]
    input_bytes: float
    weight_bytes: float
    output_bytes: float
    rate: float = 1.0
    shared_loads: float = 1.0
    conversions: float | None = None


@record(frozen=True)
class GroupedGemmCost:
    """Seconds without launch overhead; bytes between memories; what takes longest."""

    time: float
    dram_bytes: float
    l2_bytes: float
    bound: str


def library_kernel(precision: float) -> GroupedKernel:
    """The kernel of a vendor's library, with the blocks of its single products.

    Pairs of bundles share what they load (CUTLASS, clusters of two). All elements have
    ``precision`` bytes.
    """
    return GroupedKernel(BLOCKS, precision, precision, precision, shared_loads=0.5)


def even_loads(rows: float, experts: int) -> Loads:
    """``rows`` dealt out evenly, rounded up to whole rows; few rows reach as many experts."""
    least, more = divmod(math.ceil(rows), experts)
    return tuple(
        (load, count)
        for load, count in ((least + 1, more), (least, experts - more))
        if load and count
    )


def counted_loads(rows_by_expert: Iterable[int]) -> Loads:
    """Loads of experts that have these numbers of rows."""
    counts: dict[int, int] = {}
    for rows in rows_by_expert:
        if rows > 0:
            counts[rows] = counts.get(rows, 0) + 1
    return tuple(sorted(counts.items(), reverse=True))


def grouped_gemm_cost(
    accelerator: Accelerator,
    rows: float,
    experts: int,
    k: int,
    n: int,
    precision: float | ElementBytes,
    rate: float = 1.0,
    *,
    sums_rows: bool = False,
) -> GroupedGemmCost:
    """Cost of ``rows`` rows of activations, spread evenly, times the [k, n] matrices of experts.

    With ``sums_rows`` every expert yields the [k, n] gradient of its weights instead, summed over
    its rows: the blocks are those of k rows for each expert. ``precision`` and ``rate`` as in
    ``gemm_cost``.

    Raises:
        InfeasiblePoint: the device has no throughput somewhere.
    """
    sizes = precision if isinstance(precision, ElementBytes) else ElementBytes(*3 * (precision,))
    kernel = replace(library_kernel(sizes.a), weight_bytes=sizes.b, output_bytes=sizes.c, rate=rate)
    loads = even_loads(rows, experts)
    if sums_rows:
        loads, k = ((k, experts),), max(1, math.ceil(rows / experts))
    return ragged_gemm_cost(accelerator.roofline_limits, loads, k, n, kernel)


@lru_cache(maxsize=2**14)
def ragged_gemm_cost(
    limits: RooflineLimits, loads: Loads, k: int, n: int, kernel: GroupedKernel
) -> GroupedGemmCost:
    """Cost of one kernel over experts with these ``loads``; never less for more or larger ones.

    Raises:
        InfeasiblePoint: the last-level cache holds nothing.
    """
    if limits.l2_bytes_per_tile <= 0:
        raise InfeasiblePoint(f"memory level {limits.level_names[2]} has no capacity")
    if not loads:
        return GroupedGemmCost(0.0, 0.0, 0.0, "compute")
    rows = sum(load * count for load, count in loads)
    written = kernel.output_bytes * rows * n
    dram_bytes = written + sum(
        count * _read(load * k * kernel.input_bytes, k * n * kernel.weight_bytes, limits)
        for load, count in loads
    )
    dram_seconds = dram_bytes / limits.bandwidths[3] + limits.latencies[3]
    exposed = written / limits.bandwidths[3] * limits.exposed_epilogue
    best = math.inf
    l2_bytes, bound = 0.0, ""
    for block_rows, columns, achieved in kernel.blocks:
        blocks = sum(count * -(-load // block_rows) for load, count in loads) * -(-n // columns)
        if limits.whole_waves:
            places = -(-blocks // limits.num_bundles) * limits.num_bundles
            depth = -(-k // BLOCK_DEPTH) * BLOCK_DEPTH
            flops = 2.0 * places * block_rows * columns * depth / achieved
        else:
            places, flops = blocks, 2.0 * rows * k * n
        computing = flops / (limits.usable_flops * kernel.rate) + exposed
        if kernel.conversions is not None:
            computing += places * columns * k / kernel.conversions
        per_block = (block_rows * kernel.input_bytes + columns * kernel.weight_bytes) * k
        moved = kernel.shared_loads * blocks * per_block + written
        loading = moved / limits.bandwidths[2] + limits.latencies[2]
        busy = max(computing, loading)
        time = max(busy, dram_seconds)
        if limits.whole_waves:
            # Neither hides the other to the end, as in single products.
            time = math.cbrt(busy**3 + dram_seconds**3)
        if time < best:
            best, l2_bytes = time, moved
            bound = "compute" if computing >= loading else limits.level_names[2]
            if dram_seconds > busy:
                bound = limits.level_names[3]
    return GroupedGemmCost(best, dram_bytes, l2_bytes, bound)


def _read(inputs: float, weights: float, limits: RooflineLimits) -> float:
    """Bytes of both operands of one expert that come from device memory."""
    half = limits.l2_bytes_per_tile / 2
    return min(
        inputs * math.ceil(weights / half) + weights, inputs + weights * math.ceil(inputs / half)
    )
