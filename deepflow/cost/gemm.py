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
has to hold the L1 tile. What is left are tables of two or three tile sizes, one of each for
every shape that is searched at the same time: ``gemm_costs`` takes many as fast as a few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from deepflow.errors import InfeasiblePoint
from deepflow.hardware.accelerator import Accelerator, RooflineLimits
from deepflow.record import record

Floats = npt.NDArray[np.float64]
Count = TypeVar("Count", float, Floats)
Tile = tuple[int, int, int]
Shape = tuple[int, int, int, int]  # m, k, n, products in one kernel

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

# Shapes searched at the same time, so that their tables stay in the cache of a core.
SEARCHED_TOGETHER = 32


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
    shape = (m, k, n, batch)
    remembered = _remembered.get((*_searched_for(accelerator, precision, rate), shape))
    return remembered or gemm_costs(accelerator, [shape], precision, rate)[0]


def gemm_costs(
    accelerator: Accelerator,
    shapes: Iterable[tuple[int, int, int] | Shape],
    precision: float | ElementBytes,
    rate: float = 1.0,
) -> list[GemmCost]:
    """``gemm_cost`` of every (m, k, n) or (m, k, n, batch) in ``shapes``, in their order.

    New shapes are searched together, which takes a few times less than one by one.
    """
    limits, sizes = _searched_for(accelerator, precision, rate)
    keys = [(limits, sizes, shape if len(shape) == 4 else (*shape, 1)) for shape in shapes]
    found = {key: _remembered[key] for key in keys if key in _remembered}
    new = [key for key in dict.fromkeys(keys) if key not in found]
    for first in range(0, len(new), SEARCHED_TOGETHER):
        searched = new[first : first + SEARCHED_TOGETHER]
        costs = _search(limits, sizes, [shape for _, _, shape in searched])
        found.update(zip(searched, costs, strict=True))
    if new:
        if len(_remembered) + len(new) > REMEMBERED_SHAPES:
            _remembered.clear()
        _remembered.update((key, found[key]) for key in new)
    return [found[key] for key in keys]


_remembered: dict[tuple[RooflineLimits, ElementBytes, Shape], GemmCost] = {}


def _searched_for(
    accelerator: Accelerator, precision: float | ElementBytes, rate: float
) -> tuple[RooflineLimits, ElementBytes]:
    limits = accelerator.roofline_limits
    if rate != 1:
        limits = limits._replace(usable_flops=rate * limits.usable_flops)
    if isinstance(precision, tuple):
        return limits, precision
    return limits, ElementBytes(precision, precision, precision)


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


def l2_bytes(order: str, a: Count, b: Count, c: Count, m1: Count, k1: Count, n1: Count) -> Count:
    """L2 traffic with m1, k1, n1 L1 tiles along the dimensions."""
    match order:
        case "k":
            return a * n1 + b * m1 + 2 * c
        case "m":
            return a * n1 + b + 2 * c * k1
        case _:
            return a + b * m1 + 2 * c * k1


def dram_bytes(
    order: str, a: Count, b: Count, c: Count, m2: Count, k2: Count, n2: Count, *, spills: bool
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


class _Product(NamedTuple):
    """One shape on one device: what does not depend on the tiling.

    Capacities hold one product of a batch at a time, and all take the same tiling. So it is
    found for one product, ``bandwidths`` being its share; times are those of the whole batch.
    ``a``, ``b``, ``c`` are bytes of the matrices of one product.
    """

    m: int
    k: int
    n: int
    batch: int
    a: float
    b: float
    c: float
    bandwidths: tuple[float, float, float, float]
    register_bytes: float
    compute_time: float  # s, with all else infinitely fast
    floor_time: float  # s, of what no tiling changes: registers, and compute without waves
    least_dram_time: float  # s, with every matrix moved once
    kernels: tuple[LibraryKernel, ...]  # none without waves


class _Problems(NamedTuple):
    """Products in an array: the first axis of every field, which has three more of length one.

    These are for the sizes of L1 tiles along m, of L1 tiles along n and of L2 tiles along n, so
    that sizes and tables broadcast. Bandwidths as in ``_Product``. ``spills`` is 1 where the
    matrices do not fit L2 together and 0 elsewhere. ``kernels``, another axis before the first:
    arithmetic and adding up of one kernel, then of the next.
    """

    m: Floats
    k: Floats
    n: Floats
    a: Floats
    b: Floats
    c: Floats
    l1_bandwidth: Floats
    l2_bandwidth: Floats
    dram_bandwidth: Floats
    floor_time: Floats
    least_time: Floats  # s, of any tiling
    spills: Floats
    kernels: Floats


class _Capacity(NamedTuple):
    """Elements per tile of L1 and L2."""

    l1: int
    l2: int


class _Choice(NamedTuple):
    """A tiling, tiles as (m, k, n) elements, and what it is judged by."""

    time: float
    traffic: float  # square of hypot(DRAM bytes, L2 bytes)
    order: str
    l2: Tile
    l1: Tile

    @property
    def key(self) -> tuple[float, float]:
        return self.time, self.traffic


_POWERS = 2.0 ** np.arange(64)
# As table [i, j], infinite where the i-th size (of an L1 tile) is above the j-th (of its L2 tile).
_LARGER = np.where(np.tri(64, k=-1) > 0, math.inf, 0.0)
# The bits of a 64-bit float that hold its exponent: alone they are the power of two below it.
_EXPONENT = np.int64(0x7FF0000000000000)
# m and n, a and b change places.
_TRANSPOSED = [2, 1, 0, 4, 3]


def _search(limits: RooflineLimits, sizes: ElementBytes, shapes: Sequence[Shape]) -> list[GemmCost]:
    capacity = _capacity(limits, sizes)
    products = [_product(limits, sizes, shape) for shape in shapes]
    rows = _rows(limits, products)
    problems = _problems(rows)
    choices = _outputs_stay(limits, capacity, problems)
    # C^T = B^T A^T turns activations that stay into weights that stay.
    mirrored = rows.copy()
    mirrored[: len(_TRANSPOSED)] = rows[_TRANSPOSED]
    rows = np.concatenate((rows, mirrored), axis=1)
    bounds = _weights_stay_bounds(limits, capacity, _problems(rows))
    count = len(products)
    promising = [index for index, key in enumerate(bounds) if key < choices[index % count].key]
    if promising:
        found = _weights_stay(limits, capacity, _problems(rows[:, promising]))
        for index, choice in zip(promising, found, strict=True):
            if index >= count:
                choice = choice._replace(order="n", l2=choice.l2[::-1], l1=choice.l1[::-1])
            # Of equal ones the first.
            choices[index % count] = min(
                choices[index % count], choice, key=lambda choice: choice.key
            )
    return [_cost(limits, *each) for each in zip(products, choices, strict=True)]


def _capacity(limits: RooflineLimits, sizes: ElementBytes) -> _Capacity:
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
    return _Capacity(*elements)


def _product(limits: RooflineLimits, sizes: ElementBytes, shape: Shape) -> _Product:
    m, k, n, batch = shape
    a, b, c = float(sizes.a * m * k), float(sizes.b * k * n), float(sizes.c * m * n)
    l0, l1, l2, l3 = limits.bandwidths
    registers = register_bytes(limits, m, k, n, sizes.a)
    floor_time = batch * registers / l0 + limits.latencies[0]
    kernels: tuple[LibraryKernel, ...] = ()
    if limits.whole_waves:
        kernels = library_kernels(limits, m, k, n, batch * c, batch)
        compute_time = min([item.arithmetic + item.adding_up for item in kernels])
    else:
        written = batch * c / l3 * limits.exposed_epilogue
        compute_time = batch * gemm_flops(m, k, n) / limits.usable_flops + written
        floor_time = max(floor_time, compute_time)
    return _Product(
        m,
        k,
        n,
        batch,
        a,
        b,
        c,
        (l0 / batch, l1 / batch, l2 / batch, l3 / batch),
        registers,
        compute_time,
        floor_time,
        batch * (a + b + c) / l3 + limits.latencies[3],
        kernels,
    )


def _rows(limits: RooflineLimits, products: Sequence[_Product]) -> Floats:
    """The fields of ``_Problems``, one after the other along the first axis."""
    rows = np.array(
        [
            (
                item.m,
                item.k,
                item.n,
                item.a,
                item.b,
                item.c,
                *item.bandwidths[1:],
                item.floor_time,
                item.least_dram_time,
                item.a + item.b + item.c > limits.l2_bytes_per_tile,
            )
            for item in products
        ],
        dtype=np.float64,
    ).T
    least_time = rows[10]
    if limits.whole_waves:
        kernels, least_time[:] = _worth_having([item.kernels for item in products], least_time)
        rows = np.concatenate((rows, kernels))
    rows[10] = np.maximum(rows[9], rows[10])
    return rows[:, :, None, None, None]


def _problems(rows: Floats) -> _Problems:
    return _Problems._make((*rows[:12], rows[12:]))


def _worth_having(
    kernels: Sequence[tuple[LibraryKernel, ...]], dram_seconds: Floats
) -> tuple[Floats, Floats]:
    """Those that can be the fastest when DRAM needs at least ``dram_seconds``; their time then.

    The longer DRAM takes, the less a kernel with shorter arithmetic saves by it. Kernels as in
    ``_Problems``; where a product has fewer than others, one with infinite arithmetic.
    """
    most = max(map(len, kernels))
    none = (LibraryKernel(math.inf, 0.0),) * most
    padded = np.array([(each + none)[:most] for each in kernels])
    busy, adding_up = padded.transpose(2, 1, 0)
    seconds = _one_kernel(LibraryKernel(busy, adding_up), dram_seconds)
    shortest = np.minimum.accumulate(seconds)
    busy[1:][seconds[1:] >= shortest[:-1]] = math.inf
    used = np.isfinite(busy).any(axis=1)
    return np.stack((busy[used], adding_up[used]), axis=1).reshape(-1, len(kernels)), shortest[-1]


def _sizes(size: Floats, axis: int) -> Floats:
    """Sizes of tiles of each product along an axis: powers of two, then ``size`` itself.

    It stands there more than once where other products are larger; the first place counts.
    """
    powers = _POWERS[: int(size.max() - 1).bit_length() + 1]
    sizes: Floats = np.minimum(powers.reshape(-1, *[1] * (3 - axis)), size)
    return sizes


def _tiles(size: Floats, room: Floats) -> Floats:
    """How many tiles of the largest size that ``room`` allows cover ``size``; infinite if none."""
    room = np.maximum(room, 0.5)
    tile = (room.view(np.int64) & _EXPONENT).view(np.float64)
    tile = np.where(room >= size, size, tile)
    return np.where(room < 1, math.inf, np.ceil(size / tile))


def _outputs_stay(
    limits: RooflineLimits, capacity: _Capacity, problems: _Problems
) -> list[_Choice]:
    """The best tilings with k innermost, over all (m2, n2).

    L1 and L2 bytes both grow with ``operands`` = A gn1 + B gm1, which is least for the largest
    n1 beside m1 and k1 = 1; k2 is as large as fits.
    """
    m, k, n, a, b, c = problems[:6]
    rows, columns = _sizes(m, 1), _sizes(n, 3)
    tiles_m, tiles_n = np.ceil(m / rows), np.ceil(n / columns)
    widest = _tiles(n, (capacity.l1 - rows) / (rows + 1))
    # The smaller of two sizes makes the larger of two counts.
    operands = a * np.maximum(widest, tiles_n) + b * tiles_m
    least = np.minimum.accumulate(operands, axis=1)  # over m1 <= m2
    tiles_k = _tiles(k, (capacity.l2 - rows * columns) / (rows + columns))
    dram = dram_bytes("k", a, b, c, tiles_m, tiles_k, tiles_n, spills=False)
    found = _least(limits, problems, least + c * tiles_k, least + 2 * c, dram, None)
    choices = []
    for index, (time, traffic, (i, _, j)) in enumerate(found):
        size_m, size_k, size_n = (int(x[index, 0, 0, 0]) for x in (m, k, n))
        m2, n2 = _size(size_m, i), _size(size_n, j)
        m1 = _size(size_m, int(operands[index, : i + 1, 0, j].argmin()))
        n1 = min(_largest(size_n, (capacity.l1 - m1) / (m1 + 1)), n2)
        k2 = _largest(size_k, (capacity.l2 - m2 * n2) / (m2 + n2))
        k1 = min(_largest(size_k, (capacity.l1 - m1 * n1) / (m1 + n1)), k2)
        choices.append(_Choice(time, traffic, "k", (m2, k2, n2), (m1, k1, n1)))
    return choices


def _weights_stay_bounds(
    limits: RooflineLimits, capacity: _Capacity, problems: _Problems
) -> list[tuple[float, float]]:
    """No tiling with m innermost has a smaller key than this.

    L2 bytes are least with m1 = 1, which leaves the most room; DRAM moves a matrix at least
    once.
    """
    k, n, a, b, c = problems[1:6]
    columns = _sizes(n, 3)
    tiles_k = _tiles(k, (capacity.l1 - columns) / (columns + 1))
    tiles_n = np.ceil(n / columns)
    least = l2_bytes("m", a, b, c, tiles_n, tiles_k, tiles_n).min(axis=3, keepdims=True)
    dram = a + b + c
    time = np.maximum(problems.least_time, least / problems.l2_bandwidth + limits.latencies[2])
    return list(zip(time.flat, (dram * dram + least * least).flat, strict=True))


def _weights_stay(
    limits: RooflineLimits, capacity: _Capacity, problems: _Problems
) -> list[_Choice]:
    """The best tilings with m innermost, over all (m1, n1, n2).

    m2 only has to hold m1, so it is m1 while k2, and then k1, are made as large as fits.
    """
    m, k, n, a, b, c = problems[:6]
    rows, l1_columns, l2_columns = _sizes(m, 1), _sizes(n, 2), _sizes(n, 3)
    tiles_m, l1_tiles_n, l2_tiles_n = (
        np.ceil(m / rows),
        np.ceil(n / l1_columns),
        np.ceil(n / l2_columns),
    )
    tiles_k = _tiles(k, (capacity.l2 - rows * l2_columns) / (rows + l2_columns))
    l1_tiles_k = _tiles(k, (capacity.l1 - rows * l1_columns) / (rows + l1_columns))
    # The smaller of two sizes makes the larger of two counts.
    l2 = l2_bytes("m", a, b, c, tiles_m, np.maximum(l1_tiles_k, tiles_k), l1_tiles_n)
    dram = np.where(
        problems.spills,
        dram_bytes("m", a, b, c, tiles_m, tiles_k, l2_tiles_n, spills=True),
        dram_bytes("m", a, b, c, tiles_m, tiles_k, l2_tiles_n, spills=False),
    )
    l1 = a * l1_tiles_n + b * tiles_m + c * tiles_k
    columns = l2_columns.shape[3]
    found = _least(limits, problems, l1, l2, dram, _LARGER[:columns, :columns])
    choices = []
    for index, (time, traffic, (i, j1, j2)) in enumerate(found):
        size_m, size_k, size_n = (int(x[index, 0, 0, 0]) for x in (m, k, n))
        m1, n1, n2 = _size(size_m, i), _size(size_n, j1), _size(size_n, j2)
        k2 = _largest(size_k, (capacity.l2 - m1 * n2) / (m1 + n2))
        m2 = _largest(size_m, (capacity.l2 - k2 * n2) / (k2 + n2))
        k1 = min(_largest(size_k, (capacity.l1 - m1 * n1) / (m1 + n1)), k2)
        choices.append(_Choice(time, traffic, "m", (m2, k2, n2), (m1, k1, n1)))
    return choices


def _least(
    limits: RooflineLimits,
    problems: _Problems,
    l1: Floats,
    l2: Floats,
    dram: Floats,
    excluded: Floats | None,
) -> list[tuple[float, float, tuple[int, int, int]]]:
    """Of each product (time, traffic, index) of the best entry of tables of bytes moved.

    ``dram`` and ``excluded`` (infinite where there is no such tiling) broadcast to the others.
    """
    latencies = limits.latencies
    dram_time = dram / problems.dram_bandwidth
    dram_time += latencies[3]
    if len(problems.kernels):
        kernels = zip(problems.kernels[::2], problems.kernels[1::2], strict=True)
        dram_time = kernel_seconds([LibraryKernel(*each) for each in kernels], dram_time)
    np.maximum(dram_time, problems.floor_time, out=dram_time)
    time = l1 / problems.l1_bandwidth
    time += latencies[1]
    l2_time = l2 / problems.l2_bandwidth
    l2_time += latencies[2]
    for other in (l2_time, dram_time, excluded):
        if other is not None:
            np.maximum(time, other, out=time)
    best = time.min(axis=(1, 2, 3), keepdims=True)
    ties = np.unravel_index(np.flatnonzero(time == best), time.shape)
    traffic = np.broadcast_to(dram, time.shape)[ties] ** 2 + l2[ties] ** 2
    which, products = ties[0], np.arange(len(time))
    lowest = np.minimum.reduceat(traffic, which.searchsorted(products))
    lows = np.flatnonzero(traffic == lowest[which])
    first = lows[which[lows].searchsorted(products)]
    places = zip(*[axis[first].tolist() for axis in ties[1:]], strict=True)
    return list(zip(best.ravel().tolist(), lowest.tolist(), places, strict=True))


def _size(size: int, index: int) -> int:
    """The tile size of this index, as in ``_sizes``."""
    return min(1 << index, size)


def _largest(size: int, room: float) -> int:
    """The largest tile size that ``room`` allows; there is one."""
    return size if room >= size else 1 << int(room).bit_length() - 1


def _cost(limits: RooflineLimits, product: _Product, choice: _Choice) -> GemmCost:
    m, k, n, batch, a, b, c = product[:7]
    (m1, k1, n1), (m2, k2, n2) = choice.l1, choice.l2
    tiles_k = math.ceil(k / k2)
    moved = (
        product.register_bytes,
        l1_bytes(a, b, c, math.ceil(m / m1), math.ceil(n / n1), tiles_k),
        l2_bytes(choice.order, a, b, c, math.ceil(m / m1), math.ceil(k / k1), math.ceil(n / n1)),
        dram_bytes(
            choice.order,
            a,
            b,
            c,
            math.ceil(m / m2),
            tiles_k,
            math.ceil(n / n2),
            spills=a + b + c > limits.l2_bytes_per_tile,
        ),
    )
    t0, t1, t2, t3 = (
        amount / bandwidth + latency
        for amount, bandwidth, latency in zip(
            moved, product.bandwidths, limits.latencies, strict=True
        )
    )
    longest, bound = product.compute_time, "compute"
    for level_time, name in zip((t0, t1, t2, t3), limits.level_names, strict=True):
        if level_time > longest:
            longest, bound = level_time, name
    return GemmCost(
        choice.time,
        batch * gemm_flops(m, k, n),
        (batch * moved[0], batch * moved[1], batch * moved[2], batch * moved[3]),
        (t0, t1, t2, t3),
        choice.l2,
        choice.l1,
        choice.order,
        bound,
    )
