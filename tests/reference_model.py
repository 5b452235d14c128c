"""The GEMM model of the original research code, faults included, for comparison in tests.

It differs from ``deepflow.cost.gemm`` on purpose: tiles are a few random ones, tiles at an
edge count as whole ones, DRAM reloads round down and C costs nothing, L1 traffic is divided by
the bundles at work, and latency is added after the choice between compute and memory.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deepflow.cost.gemm import gemm_flops, l1_bytes, l2_bytes, register_bytes
from deepflow.hardware import Accelerator

Tile = tuple[int, int, int]
Bytes = tuple[float, float, float, float]


@dataclass(frozen=True)
class ReferenceGemm:
    """``time`` is without kernel launch overhead; bytes are registers, L1, L2, DRAM."""

    time: float
    innermost: str
    l2_tile: Tile
    l1_tile: Tile
    bytes_by_level: Bytes


@lru_cache
def random_tiles(size_per_tile: float, precision: int, level: int) -> tuple[Tile, ...]:
    """The twenty tiles of a memory level, drawn from NumPy's legacy generator with seed 1."""
    elements = int(size_per_tile / precision)
    side = 2 ** int(math.log2(math.sqrt(elements / 2)))
    tiles = {(side, side, side), (side // 2, side, 2 * side)}
    generator = np.random.RandomState(1)
    bits = int(math.log2(elements))
    while len(tiles) < 20:
        a, b = (int(2 ** generator.randint(0, bits)) for _ in range(2))
        c = (elements - a * b) // (a + b if level < 2 else b)
        if c > 0:
            tiles.add((a, b, 2 ** int(math.log2(c))))
    return tuple(sorted(tiles))


def reference_gemm(accelerator: Accelerator, shape: Tile, precision: int) -> ReferenceGemm:
    """The fastest tiling among the random tiles; of equal ones that with least traffic."""
    limits = accelerator.roofline_limits
    flops = gemm_flops(*shape)
    best: tuple[tuple[float, float], ReferenceGemm] | None = None
    for l2_tile, l1_tile, innermost in itertools.product(
        random_tiles(limits.l2_bytes_per_tile, precision, 2),
        random_tiles(limits.l1_bytes_per_tile, precision, 1),
        "mkn",
    ):
        l2 = _clipped(l2_tile, shape)
        l1 = _clipped(l1_tile, l2)
        moved = reference_bytes(accelerator, shape, l2, l1, innermost, precision)
        time = max(
            amount / bandwidth + latency
            if flops / amount < limits.usable_flops / bandwidth
            else flops / limits.usable_flops
            for amount, bandwidth, latency in zip(
                moved, limits.bandwidths, limits.latencies, strict=True
            )
        )
        key = (time, math.hypot(moved[3], moved[2]))
        if best is None or key < best[0]:
            best = key, ReferenceGemm(time, innermost, l2, l1, moved)
    assert best is not None
    return best[1]


def reference_bytes(
    accelerator: Accelerator, shape: Tile, l2: Tile, l1: Tile, innermost: str, precision: int
) -> Bytes:
    """Bytes of registers, L1, L2, DRAM for one tiling."""
    m, k, n = shape
    whole = [math.ceil(size / tile) for size, tile in zip(shape, l2, strict=True)]
    parts = [math.ceil(size / tile) for size, tile in zip(l2, l1, strict=True)]
    counts = [count * part for count, part in zip(whole, parts, strict=True)]
    # A tile at an edge counts as a whole one, so the matrices look larger than they are.
    seen_by_l2 = [count * size for count, size in zip(whole, l2, strict=True)]
    seen_by_l1 = [count * size for count, size in zip(counts, l1, strict=True)]
    busy_bundles = min(accelerator.core.num_bundles, math.prod(whole))
    dram = float(precision * (m * k * (n // l2[2] if innermost in "mk" else 1)))
    dram += precision * (k * n * (m // l2[0] if innermost in "kn" else 1))
    if (m * k + k * n + m * n) * precision > accelerator.memory[3].size:
        dram += precision * (m * n * (k // l2[1] if innermost in "mn" else 1))
    return (
        register_bytes(accelerator.roofline_limits, m, k, n, precision),
        l1_bytes(*_matrices(seen_by_l1, precision), counts[0], counts[2], whole[1]) / busy_bundles,
        l2_bytes(innermost, *_matrices(seen_by_l2, precision), counts[0], counts[1], counts[2]),
        dram,
    )


def _clipped(tile: Tile, limit: Tile) -> Tile:
    m, k, n = map(min, tile, limit)
    return m, k, n


def _matrices(shape: list[int], precision: int) -> tuple[float, float, float]:
    m, k, n = shape
    return float(precision * m * k), float(precision * k * n), float(precision * m * n)
