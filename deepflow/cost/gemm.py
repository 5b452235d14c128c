"""Time of one matrix multiplication: hierarchical roofline over the best tiling.

C[m, n] = A[m, k] B[k, n] is cut into L2 tiles (m2, k2, n2), those into L1 tiles (m1, k1, n1).
Tile sizes are the powers of two, clipped to the problem and (L1) to the L2 tile, and a tile
fits its level when its three faces do, m k + k n + m n elements. The innermost loop over L2
tiles runs along one dimension and keeps one operand: along m the tile of B, along k that of C,
along n that of A. With gx = ceil(X / x) tiles of size x along a dimension of size X, and with
A, B, C for the matrices' bytes, the traffic is

    innermost   L2                        DRAM
    k           A gn1 + B gm1 + 2 C       A gn2 + B gm2 + C
    m           A gn1 + B + 2 C gk1       A gn2 + B + C w
    n           A + B gm1 + 2 C gk1       A + B gm2 + C w
    any         L1: A gn1 + B gm1 + C gk2

w is 1 when all three matrices fit L2 together; otherwise partial sums of C leave and return
for every further L2 tile along k, w = 2 gk2 - 1. Register traffic follows from the shape of
the matrix unit (``register_bytes``). Work at all levels overlaps: the time is the longest of
compute and each level's bytes / bandwidth + latency (roofline, Williams et al. 2009). On devices
whose products run in ``whole_waves``, compute is that of a GPU library's blocks, and it overlaps
with DRAM as it does in real kernels, not quite (``library_kernels``, ``kernel_seconds``).

Against the research code this starts from: C is written to DRAM at least once and reloads are
rounded up; every tile that fits is a candidate instead of twenty random ones; all L1 traffic
meets the bandwidth of all L1 memories; tiles at an edge move only what exists, as they did at
DRAM; and latency is added before levels are compared with compute, so that a faster core is
never slower. Time never rises with a rate or a capacity, nor falls when a dimension grows,
except for the step-wise reuse in register traffic.

The search is exhaustive, but most of it is done on paper. No traffic grows with a tile size,
so only tiles that cannot grow within their level matter. With k innermost, k1 changes nothing,
and L1 and L2 bytes are both least where A gn1 + B gm1 is. With m (n) innermost, m2 (n2) only
has to hold the L1 tile. What is left are tables of two or three tile sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from deepflow.errors import InfeasiblePoint
from deepflow.hardware.accelerator import Accelerator, RooflineLimits
from deepflow.record import record

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Count = TypeVar("Count", float, Floats)
Tile = tuple[int, int, int]

# Blocks of C that GPU libraries offer (rows, columns) and the part of the largest block's rate
# that each reaches: a smaller block loads more operands per FLOP, and in the end it is bound by
# the latency of its loads. The steps of the inner dimension, and into how many parts it may be
# cut.
BLOCKS = (
    (256, 128, 1.0),
    (128, 256, 1.0),
    (128, 128, 0.97),
    (128, 64, 0.85),
    (64, 128, 0.85),
    (64, 64, 0.7),
    (128, 32, 0.5),
    (32, 128, 0.5),
    (128, 16, 0.3),
    (16, 128, 0.3),
)
BLOCK_DEPTH = 64
INNER_PARTS = (1, 2, 4, 8, 16, 32, 64)
PARTIAL_SUM_BYTES = 4

# Shapes remembered over all devices of a process: about 50 MB when full.
REMEMBERED_SHAPES = 2**15


class ElementBytes(NamedTuple):
    """Bytes of an element of A, B and C, where they differ.

    Caches and registers hold elements as the matrix units take them, with the size of A's:
    weights of fewer bits are widened on their way.
    """

    a: float
    b: float
    c: float


@record(frozen=True)
class GemmCost:
    """Cost of a GEMM without kernel launch overhead.

    ``bytes_by_level`` and ``level_times`` are for registers, L1, L2 and DRAM: bytes moved and
    the seconds that takes. ``bound`` is "compute" or the name of the level that takes longest.
    Tiles are (m, k, n) elements; ``order`` is the innermost loop over L2 tiles.
    """

    time: float
    flops: float
    bytes_by_level: tuple[float, float, float, float]
    level_times: tuple[float, float, float, float]
    l2_tile: Tile
    l1_tile: Tile
    order: str
    bound: str


def gemm_cost(
    accelerator: Accelerator,
    m: int,
    k: int,
    n: int,
    precision: float | ElementBytes,
    batch: int = 1,
    rate: float = 1.0,
) -> GemmCost:
    """Cost of ``batch`` products C[m, n] = A[m, k] B[k, n], elements of ``precision`` bytes.

    The products are independent and run in one kernel: blocks of all of them fill waves
    together, a tile holds parts of one product, and bytes and FLOP are those of all. ``rate`` is
    the FLOP rate of the product's data type, relative to that of the type that the device runs.

    Among tilings of equal time it takes the one with the least hypot(DRAM bytes, L2 bytes),
    then the first innermost loop of k, m, n. Remembered per device and shape.

    Raises:
        InfeasiblePoint: the device has no throughput somewhere, or an L1 or L2 memory that
            cannot hold one element of each matrix.
    """
    sizes = precision if isinstance(precision, tuple) else ElementBytes(*3 * (precision,))
    limits = accelerator.roofline_limits
    if rate != 1:
        limits = limits._replace(usable_flops=rate * limits.usable_flops)
    return _search(limits, m, k, n, sizes, batch)


def gemm_costs(
    accelerator: Accelerator,
    shapes: Iterable[tuple[int, int, int]],
    precision: float | ElementBytes,
) -> list[GemmCost]:
    """``gemm_cost`` of every (m, k, n) in ``shapes``, in their order."""
    return [gemm_cost(accelerator, m, k, n, precision) for m, k, n in shapes]


def gemm_flops(m: int, k: int, n: int) -> float:
    """FLOP of C[m, n] = A[m, k] B[k, n]: k multiplications and k-1 additions per element."""
    return float(m * n * (2 * k - 1))


def register_bytes(limits: RooflineLimits, m: int, k: int, n: int, precision: float) -> float:
    """Bytes between registers and matrix units of shape d1 x d2 by d2 x d1.

    A step loads 2 d1 d2 operands and moves d1^2 results for d1^2 (2 d2 - 1) FLOP. What the
    dataflow keeps in the unit spares the results of all but one of ceil(m / d1) steps
    (weights stay), ceil(n / d1) (activations), or ceil(k / d2) (outputs); "best" takes the
    longest of the three.
    """
    d1, d2 = limits.matrix_rows, limits.matrix_depth
    steps = {"none": 1, "wst": -(-m // d1), "ast": -(-n // d1), "ost": -(-k // d2)}
    reuse = max(steps.values()) if limits.dataflow == "best" else steps[limits.dataflow]
    per_flop = 2 * d2 / (d1 * (2 * d2 - 1)) + 1 / (reuse * (2 * d2 - 1))
    return precision * gemm_flops(m, k, n) * per_flop


def l1_bytes(a: float, b: float, c: float, m1: Count, n1: Count, k2: Count) -> Count:
    """L1 traffic with m1, n1 L1 tiles along m and n, and k2 L2 tiles along k."""
    return a * n1 + b * m1 + c * k2


class LibraryKernel(NamedTuple):
    """A kernel that a GPU library has for a product, as far as its speed goes; seconds."""

    arithmetic: float  # with the part of writing C that it does not hide
    adding_up: float  # of partial sums, after all else


def library_kernels(
    limits: RooflineLimits, m: int, k: int, n: int, written_bytes: float, batch: int = 1
) -> tuple[LibraryKernel, ...]:
    """The kernels from which a GPU library picks the fastest, for ``kernel_seconds``.

    C is cut into blocks, one to a bundle at a time, and the last wave takes as long as a full
    one (wave quantisation: NVIDIA, "Matrix Multiplication Background User's Guide"). The part
    ``exposed_epilogue`` of writing C, ``written_bytes`` in all, follows. Several bundles may share
    a block's inner dimension: then they wait for each other (``split_latency``) and add up
    partial sums (32-bit) through the last-level cache. Blocks of all products of a batch fill
    waves together.
    """
    written = written_bytes / limits.bandwidths[3] * limits.exposed_epilogue
    bundles = limits.num_bundles
    step_rate = limits.usable_flops / bundles / (2 * BLOCK_DEPTH)
    partial_sums = 2 * PARTIAL_SUM_BYTES * batch * m * n / limits.bandwidths[2]
    ideal = 2.0 * batch * m * k * n / limits.usable_flops
    cuts = [
        (batch * -(-m // rows) * -(-n // columns), rows * columns / achieved)
        for rows, columns, achieved in BLOCKS
    ]
    kernels: list[LibraryKernel] = []
    shortest, added = math.inf, 0.0
    for parts in INNER_PARTS:
        adding_up = limits.split_latency + partial_sums * parts if parts > 1 else 0.0
        if adding_up - added >= shortest - ideal:
            break  # More parts cannot save what they take.
        depth = -(-k // (parts * BLOCK_DEPTH))
        elements = min([-(-blocks * parts // bundles) * size for blocks, size in cuts])
        arithmetic = depth * elements / step_rate
        if arithmetic < shortest:
            shortest, added = arithmetic, adding_up
            kernels.append(LibraryKernel(arithmetic + written, adding_up))
    return tuple(kernels)


def kernel_seconds(kernels: Iterable[LibraryKernel], dram_seconds: Count) -> Count:
    """Time of the fastest of ``kernels`` when DRAM needs ``dram_seconds`` (a number or a table).

    Arithmetic and DRAM overlap, but not to the end: their time is the 3-norm of both, which is
    the longer of them where they are far apart, and 26 % more where they are equal. The exponent
    is that of the least error over measured 16-bit products on two GPUs.
    """
    fastest: Count = reduce(np.minimum, [_one_kernel(item, dram_seconds) for item in kernels])
    return fastest


def _one_kernel(kernel: LibraryKernel, dram_seconds: Count) -> Count:
    busy, adding_up = kernel
    seconds: Count = np.cbrt(busy * busy * busy + dram_seconds * dram_seconds * dram_seconds)
    return seconds + adding_up


def l2_bytes(order: str, a: float, b: float, c: float, m1: Count, k1: Count, n1: Count) -> Count:
    """L2 traffic with m1, k1, n1 L1 tiles along the dimensions."""
    match order:
        case "k":
            return a * n1 + b * m1 + 2 * c
        case "m":
            return a * n1 + b + 2 * c * k1
        case _:
            return a + b * m1 + 2 * c * k1


def dram_bytes(
    order: str, a: float, b: float, c: float, m2: Count, k2: Count, n2: Count, *, spills: bool
) -> Count:
    """DRAM traffic with m2, k2, n2 L2 tiles along the dimensions.

    ``spills``: partial sums that are not kept in place go to DRAM, because L2 is full.
    """
    writes = 2 * k2 - 1 if spills else 1
    match order:
        case "k":
            return a * n2 + b * m2 + c
        case "m":
            return a * n2 + b + c * writes
        case _:
            return a + b * m2 + c * writes


class _Dimension(NamedTuple):
    """Tile sizes along one dimension, ascending, and how many tiles of each size cover it.

    ``counts`` ends with infinity, which is what index -1 ("none fits") finds.
    """

    sizes: Floats
    counts: Floats


class _Problem(NamedTuple):
    """One shape on one device, as the search for the best tiling needs it.

    Capacities hold one product of a batch at a time, and all take the same tiling. So it is
    found for one product, ``limits`` being its share of the bandwidth; times are those of the
    whole batch. ``a``, ``b``, ``c`` are bytes of the matrices of one product. ``l1_k[i, j]`` is
    the index of the largest size along k that fits L1 beside the i-th size along m and the j-th
    along n, ``l2_k`` the same for L2; -1 where none does.
    """

    limits: RooflineLimits
    register_bytes: float
    compute_time: float  # s, with all else infinitely fast
    floor_time: float  # s, of what no tiling changes: registers, and compute without waves
    least_time: float  # s, with every matrix moved to or from DRAM once
    kernels: tuple[LibraryKernel, ...]  # none without waves
    a: float
    b: float
    c: float
    spills: bool
    l1_elements: int
    l2_elements: int
    m: _Dimension
    k: _Dimension
    n: _Dimension
    l1_k: Indices
    l2_k: Indices

    def beside_dram(self, dram: Count) -> Count:
        """Seconds of DRAM traffic of ``dram`` bytes for each product, and all work beside it."""
        limits = self.limits
        seconds = dram / limits.bandwidths[3] + limits.latencies[3]
        if self.kernels:
            seconds = kernel_seconds(self.kernels, seconds)
        longer: Count = np.maximum(seconds, self.floor_time)
        return longer


class _Choice(NamedTuple):
    """A tiling as indices (m, k, n) of tile sizes, and what it is judged by."""

    time: float
    traffic: float  # square of hypot(DRAM bytes, L2 bytes)
    order: str
    l2: Tile
    l1: Tile

    @property
    def key(self) -> tuple[float, float]:
        return self.time, self.traffic


# As table [i, j], infinite where the i-th size (of an L1 tile) is above the j-th (of its L2 tile).
_LARGER = np.where(np.tri(64, k=-1) > 0, math.inf, 0.0)
_FREE = np.zeros((1, 1))


@lru_cache(maxsize=REMEMBERED_SHAPES)
def _search(
    limits: RooflineLimits, m: int, k: int, n: int, sizes: ElementBytes, batch: int
) -> GemmCost:
    problem = _problem(limits, m, k, n, sizes, batch)
    best = _outputs_stay(problem)
    if _weights_stay_bound(problem) < best.key:
        best = min(best, _weights_stay(problem), key=lambda choice: choice.key)
    # C^T = B^T A^T turns activations that stay into weights that stay.
    mirror = _transposed(problem)
    if _weights_stay_bound(mirror) < best.key:
        found = _weights_stay(mirror)
        found = found._replace(order="n", l2=found.l2[::-1], l1=found.l1[::-1])
        best = min(best, found, key=lambda choice: choice.key)
    return _cost(problem, best, gemm_flops(m, k, n), batch)


def _problem(
    limits: RooflineLimits, m: int, k: int, n: int, sizes: ElementBytes, batch: int
) -> _Problem:
    elements = []
    for size, name in (
        (limits.l1_bytes_per_tile, limits.level_names[1]),
        (limits.l2_bytes_per_tile, limits.level_names[2]),
    ):
        elements.append(int(size // sizes.a))
        if elements[-1] < 3:
            raise InfeasiblePoint(
                f"memory level {name} has {size:g} bytes per tile, too few for one element"
                f" ({sizes.a} bytes) of each matrix"
            )
    l1_elements, l2_elements = elements
    a, b, c = float(sizes.a * m * k), float(sizes.b * k * n), float(sizes.c * m * n)
    l0, l1, l2, l3 = limits.bandwidths
    registers = register_bytes(limits, m, k, n, sizes.a)
    floor_time = batch * registers / l0 + limits.latencies[0]
    least_time = batch * (a + b + c) / l3 + limits.latencies[3]
    kernels: tuple[LibraryKernel, ...] = ()
    if limits.whole_waves:
        kernels = library_kernels(limits, m, k, n, batch * c, batch)
        compute_time = min([item.arithmetic + item.adding_up for item in kernels])
        kernels, least_time = _worth_having(kernels, least_time)
    else:
        written = batch * c / l3 * limits.exposed_epilogue
        compute_time = batch * gemm_flops(m, k, n) / limits.usable_flops + written
        floor_time = max(floor_time, compute_time)
    limits = limits._replace(bandwidths=(l0 / batch, l1 / batch, l2 / batch, l3 / batch))
    along_m, along_k, along_n = _dimension(m), _dimension(k), _dimension(n)
    rows = along_m.sizes[:, None]
    faces, edges = rows * along_n.sizes, rows + along_n.sizes
    return _Problem(
        limits,
        registers,
        compute_time,
        floor_time,
        max(floor_time, least_time),
        kernels,
        a,
        b,
        c,
        a + b + c > limits.l2_bytes_per_tile,
        l1_elements,
        l2_elements,
        along_m,
        along_k,
        along_n,
        along_k.sizes.searchsorted((l1_elements - faces) / edges, "right") - 1,
        along_k.sizes.searchsorted((l2_elements - faces) / edges, "right") - 1,
    )


def _worth_having(
    kernels: tuple[LibraryKernel, ...], dram_seconds: float
) -> tuple[tuple[LibraryKernel, ...], float]:
    """Those that can be the fastest when DRAM needs at least ``dram_seconds``; their time then.

    The longer DRAM takes, the less a kernel with shorter arithmetic saves by it.
    """
    kept, shortest = [], math.inf
    for item in kernels:
        seconds = float(_one_kernel(item, dram_seconds))
        if seconds < shortest:
            shortest = seconds
            kept.append(item)
    return tuple(kept), shortest


def _transposed(problem: _Problem) -> _Problem:
    return problem._replace(
        a=problem.b,
        b=problem.a,
        m=problem.n,
        n=problem.m,
        l1_k=problem.l1_k.T,
        l2_k=problem.l2_k.T,
    )


@lru_cache(maxsize=4096)
def _dimension(size: int) -> _Dimension:
    """The powers of two below ``size``, and ``size`` itself."""
    sizes = np.array([*(2.0**power for power in range((size - 1).bit_length())), float(size)])
    return _Dimension(sizes, np.append(np.ceil(size / sizes), math.inf))


def _outputs_stay(problem: _Problem) -> _Choice:
    """The best tiling with k innermost, over all (m2, n2).

    L1 and L2 bytes both grow with ``operands`` = A gn1 + B gm1, which is least for the largest
    n1 beside m1 and k1 = 1; k2 is as large as fits.
    """
    a, b, c, m, n = problem.a, problem.b, problem.c, problem.m, problem.n
    widest = n.sizes.searchsorted((problem.l1_elements - m.sizes) / (m.sizes + 1), "right") - 1
    # The smaller of two sizes makes the larger of two counts.
    tiles_n = np.maximum(n.counts.take(widest)[:, None], n.counts[:-1])
    operands = a * tiles_n + b * m.counts[:-1, None]
    least = np.minimum.accumulate(operands)  # over m1 <= m2
    tiles_k = problem.k.counts.take(problem.l2_k)
    dram = dram_bytes(
        "k", a, b, c, m.counts[:-1, None], tiles_k, n.counts[:-1], spills=problem.spills
    )
    time, traffic, (i, j) = _least(problem, least + c * tiles_k, least + 2 * c, dram, _FREE)
    m1 = int(operands[: i + 1, j].argmin())
    n1 = min(int(widest[m1]), j)
    k2 = int(problem.l2_k[i, j])
    k1 = min(int(problem.l1_k[m1, n1]), k2)
    return _Choice(time, traffic, "k", (i, k2, j), (m1, k1, n1))


def _weights_stay_bound(problem: _Problem) -> tuple[float, float]:
    """No tiling with m innermost has a smaller key than this.

    L2 bytes are least with m1 = 1, which leaves the most room; DRAM moves a matrix at least
    once.
    """
    sizes = problem.n.sizes
    l1_k = problem.k.sizes.searchsorted((problem.l1_elements - sizes) / (sizes + 1), "right") - 1
    tiles_n, tiles_k = problem.n.counts[:-1], problem.k.counts.take(l1_k)
    l2 = float(l2_bytes("m", problem.a, problem.b, problem.c, tiles_n, tiles_k, tiles_n).min())
    dram = problem.a + problem.b + problem.c
    limits = problem.limits
    time = max(problem.least_time, l2 / limits.bandwidths[2] + limits.latencies[2])
    return time, dram * dram + l2 * l2


def _weights_stay(problem: _Problem) -> _Choice:
    """The best tiling with m innermost, over all (m1, n1, n2).

    m2 only has to hold m1, so it is m1 while k2, and then k1, are made as large as fits.
    """
    a, b, c, m, k, n = problem.a, problem.b, problem.c, problem.m, problem.k, problem.n
    columns = n.sizes.size
    tiles_m, tiles_n = m.counts[:-1, None], n.counts[:-1]
    tiles_k = k.counts.take(problem.l2_k)
    # The smaller of two sizes makes the larger of two counts.
    l1_tiles_k = np.maximum(k.counts.take(problem.l1_k)[:, :, None], tiles_k[:, None, :])
    l2 = l2_bytes("m", a, b, c, tiles_m, l1_tiles_k, tiles_n[:, None])
    dram = dram_bytes("m", a, b, c, tiles_m, tiles_k, tiles_n, spills=problem.spills)
    l1 = (a * tiles_n + b * tiles_m)[:, :, None] + (c * tiles_k)[:, None, :]
    dram = np.broadcast_to(dram, tiles_k.shape)[:, None, :]
    time, traffic, (m1, n1, n2) = _least(problem, l1, l2, dram, _LARGER[:columns, :columns])
    k2 = int(problem.l2_k[m1, n2])
    x, y = float(k.sizes[k2]), float(n.sizes[n2])
    m2 = int(m.sizes.searchsorted((problem.l2_elements - x * y) / (x + y), "right")) - 1
    k1 = min(int(problem.l1_k[m1, n1]), k2)
    return _Choice(time, traffic, "m", (m2, k2, n2), (m1, k1, n1))


def _least(
    problem: _Problem, l1: Floats, l2: Floats, dram: Floats, excluded: Floats
) -> tuple[float, float, tuple[int, ...]]:
    """(time, traffic, index) of the best entry of tables of bytes moved.

    ``dram`` and ``excluded`` (infinite where there is no such tiling) broadcast to the others.
    """
    bandwidths, latencies = problem.limits.bandwidths, problem.limits.latencies
    dram_time = problem.beside_dram(dram)
    time = l1 / bandwidths[1]
    time += latencies[1]
    l2_time = l2 / bandwidths[2]
    l2_time += latencies[2]
    for other in (l2_time, dram_time, excluded):
        np.maximum(time, other, out=time)
    best = time.min()
    ties = np.unravel_index(np.flatnonzero(time == best), time.shape)
    traffic = np.broadcast_to(dram, time.shape)[ties] ** 2 + l2[ties] ** 2
    first = traffic.argmin()
    return float(best), float(traffic[first]), tuple(int(axis[first]) for axis in ties)


def _cost(problem: _Problem, choice: _Choice, flops: float, batch: int) -> GemmCost:
    a, b, c, limits = problem.a, problem.b, problem.c, problem.limits
    along = (problem.m, problem.k, problem.n)
    m1, k1, n1 = (float(along[i].counts[choice.l1[i]]) for i in range(3))
    m2, k2, n2 = (float(along[i].counts[choice.l2[i]]) for i in range(3))
    moved = (
        problem.register_bytes,
        l1_bytes(a, b, c, m1, n1, k2),
        l2_bytes(choice.order, a, b, c, m1, k1, n1),
        dram_bytes(choice.order, a, b, c, m2, k2, n2, spills=problem.spills),
    )
    t0, t1, t2, t3 = (
        amount / bandwidth + latency
        for amount, bandwidth, latency in zip(
            moved, limits.bandwidths, limits.latencies, strict=True
        )
    )
    longest, bound = problem.compute_time, "compute"
    for level_time, name in zip((t0, t1, t2, t3), limits.level_names, strict=True):
        if level_time > longest:
            longest, bound = level_time, name
    return GemmCost(
        choice.time,
        batch * flops,
        (batch * moved[0], batch * moved[1], batch * moved[2], batch * moved[3]),
        (t0, t1, t2, t3),
        _sizes(along, choice.l2),
        _sizes(along, choice.l1),
        choice.order,
        bound,
    )


def _sizes(along: tuple[_Dimension, _Dimension, _Dimension], tile: Tile) -> Tile:
    m, k, n = (int(along[i].sizes[tile[i]]) for i in range(3))
    return m, k, n
