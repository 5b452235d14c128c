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
every shape that is searched at the same time: ``gemm_costs`` takes several as fast as one, and
leaves larger numbers to ``gemm_search.py``, which does not look at most entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from deepflow.errors import InfeasiblePoint
from deepflow.hardware.accelerator import Accelerator, RooflineLimits

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Count = TypeVar("Count", float, Floats)
Tile = tuple[int, int, int]
Sides = tuple[int, int, int]  # m, k, n
Kernel = tuple[float, float]  # seconds of arithmetic and of adding up, as in LibraryKernels
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

# Up to so many shapes, judging every tiling takes less time than finding out which to leave out.
SEARCHED_TOGETHER = 16

# The innermost loops over L2 tiles, in the order in which equal ones are preferred.
ORDERS = ("k", "m", "n")


class ElementBytes(NamedTuple):
    """Bytes of an element of A, B and C, where they differ.

    Caches and registers hold elements as the matrix units take them, with the size of A's:
    weights of fewer bits are widened on their way.
    """

    a: float
    b: float
    c: float


@dataclass(frozen=True, slots=True)
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


_remembered: dict[tuple[RooflineLimits, ElementBytes, Shape], GemmCost] = {}


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
    shapes: Iterable[Sides | Shape],
    precision: float | ElementBytes,
    rate: float = 1.0,
) -> list[GemmCost]:
    """``gemm_cost`` of every (m, k, n) or (m, k, n, batch) in ``shapes``, in their order.

    New shapes are searched together, which takes a few times less than one by one.
    """
    limits, sizes = _searched_for(accelerator, precision, rate)
    keys = [(limits, sizes, shape if len(shape) == 4 else (*shape, 1)) for shape in shapes]
    found = {key: cost for key in keys if (cost := _remembered.get(key)) is not None}
    new = [key for key in dict.fromkeys(keys) if key not in found]
    if len(new) > SEARCHED_TOGETHER:
        from deepflow.cost.gemm_search import search_on_one_device

        costs = search_on_one_device(limits, sizes, [shape for _, _, shape in new])
        found.update(zip(new, costs, strict=True))
    elif new:
        costs = _search(limits, sizes, [shape for _, _, shape in new])
        found.update(zip(new, costs, strict=True))
    if new:
        # To forget all at once is simple, and a full memory rare.
        if len(_remembered) + len(new) > REMEMBERED_SHAPES:
            _remembered.clear()
        _remembered.update((key, found[key]) for key in new)
    return [found[key] for key in keys]


def _searched_for(
    accelerator: Accelerator, precision: float | ElementBytes, rate: float
) -> tuple[RooflineLimits, ElementBytes]:
    limits = accelerator.roofline_limits
    if rate != 1:
        limits = limits._replace(usable_flops=rate * limits.usable_flops)
    if isinstance(precision, tuple):
        return limits, precision
    return limits, ElementBytes(precision, precision, precision)


def gemm_flops(m: Count, k: Count, n: Count) -> Count:
    """FLOP of C[m, n] = A[m, k] B[k, n]: k multiplications and k-1 additions per element."""
    return 1.0 * (m * n * (2 * k - 1))


def register_bytes(
    limits: RooflineLimits, m: Count, k: Count, n: Count, precision: float | Floats
) -> Count:
    """Bytes between registers and matrix units of shape d1 x d2 by d2 x d1.

    A step loads 2 d1 d2 operands and moves d1^2 results for d1^2 (2 d2 - 1) FLOP. What the
    dataflow keeps in the unit spares the results of all but one of ceil(m / d1) steps
    (weights stay), ceil(n / d1) (activations), or ceil(k / d2) (outputs); "best" takes the
    longest of the three.
    """
    d1, d2 = limits.matrix_rows, limits.matrix_depth
    steps: dict[str, Any] = {"none": 1, "wst": -(-m // d1), "ast": -(-n // d1), "ost": -(-k // d2)}
    reuse: Any = steps.get(limits.dataflow)
    if reuse is None:
        reuse = max(steps.values()) if isinstance(m, int) else reduce(np.maximum, steps.values())
    per_flop = 2 * d2 / (d1 * (2 * d2 - 1)) + 1 / (reuse * (2 * d2 - 1))
    moved: Count = precision * gemm_flops(m, k, n) * per_flop
    return moved


def l1_bytes(a: Any, b: Any, c: Any, m1: Count, n1: Count, k2: Count) -> Count:
    """L1 traffic with m1, n1 L1 tiles along m and n, and k2 L2 tiles along k."""
    moved: Count = a * n1 + b * m1 + c * k2
    return moved


class LibraryKernels(NamedTuple):
    """Kernels that a GPU library has for products, as far as their speed goes; seconds.

    One for each of ``INNER_PARTS`` along the first axis.
    """

    arithmetic: Floats  # with the part of writing C that it does not hide
    adding_up: Floats  # of partial sums, after all else


class _WaveLimits(Protocol):
    """What ``library_kernels`` reads of ``RooflineLimits``, or of an array of them."""

    @property
    def usable_flops(self) -> Any: ...
    @property
    def num_bundles(self) -> Any: ...
    @property
    def exposed_epilogue(self) -> Any: ...
    @property
    def split_latency(self) -> Any: ...
    @property
    def bandwidths(self) -> Any: ...


def library_kernels(
    limits: _WaveLimits,
    m: float | Floats,
    k: float | Floats,
    n: float | Floats,
    written_bytes: float | Floats,
    batch: float | Floats = 1,
) -> LibraryKernels:
    """The kernels from which a GPU library picks the fastest, for ``kernel_seconds``.

    C is cut into blocks, one to a bundle at a time, and the last wave takes as long as a full
    one (wave quantisation: NVIDIA, "Matrix Multiplication Background User's Guide"). The part
    ``exposed_epilogue`` of writing C, ``written_bytes`` in all, follows. Several bundles may share
    a block's inner dimension: then they wait for each other (``split_latency``) and add up
    partial sums (32-bit) through the last-level cache. Blocks of all products of a batch fill
    waves together. Shapes may be arrays, with numbers or arrays for ``limits``.
    """
    ones = (1,) * np.ndim(m)
    parts, rows, columns, work = (
        sizes.reshape(-1, *ones) for sizes in (_PARTS, _BLOCK_ROWS, _BLOCK_COLUMNS, _BLOCK_WORK)
    )
    _, _, l2, l3 = limits.bandwidths
    blocks = batch * np.ceil(m / rows) * np.ceil(n / columns)
    waves = np.ceil(blocks[:, None] * parts / limits.num_bundles)
    elements = (waves * work[:, None]).min(axis=0)
    depth = np.ceil(k / (parts * BLOCK_DEPTH))
    step_rate = limits.usable_flops / limits.num_bundles / (2 * BLOCK_DEPTH)
    arithmetic = depth * elements / step_rate + written_bytes / l3 * limits.exposed_epilogue
    partial_sums = 2 * PARTIAL_SUM_BYTES * batch * m * n / l2
    adding_up = np.where(parts > 1, limits.split_latency + partial_sums * parts, 0.0)
    return LibraryKernels(arithmetic, adding_up)


_BLOCK_ROWS, _BLOCK_COLUMNS, _achieved = np.array(BLOCKS).T
_BLOCK_WORK = _BLOCK_ROWS * _BLOCK_COLUMNS / _achieved
_PARTS = np.array(INNER_PARTS, np.float64)


def kernel_seconds(kernels: LibraryKernels, dram_seconds: float | Floats) -> Any:
    """Time of the fastest of ``kernels`` when DRAM needs ``dram_seconds`` (numbers or tables).

    Arithmetic and DRAM overlap, but not to the end: their time is the 3-norm of both, which is
    the longer of them where they are far apart, and 26 % more where they are equal. The exponent
    is that of the least error over measured 16-bit products on two GPUs.
    """
    return _seconds_of_each(kernels, dram_seconds).min(axis=0)


def _seconds_of_each(kernels: LibraryKernels, dram: float | Floats) -> Floats:
    busy, adding_up = kernels
    seconds: Floats = np.cbrt(busy * busy * busy + dram * dram * dram) + adding_up
    return seconds


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
    least_time: float  # s, with every matrix moved to or from DRAM once
    kernels: tuple[Kernel, ...]  # those worth having; none without waves


class _Problems(NamedTuple):
    """Products in arrays, along the first axis of every field.

    Two more axes of length one are for sizes of tiles along m and n, so that all broadcasts.
    Bandwidths as in ``_Product``. ``spills`` is 1 where the matrices do not fit L2 together and 0
    elsewhere. ``kernels``, on another axis before the first: arithmetic and adding up of one
    kernel, then of the next; where a product has fewer, those of one that never ends.
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


class Capacity(NamedTuple):
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


_POWERS = 2.0 ** np.arange(64, dtype=np.float64)
# As table [i, j], infinite where the i-th size (of an L2 tile) is below the j-th (of an L1 tile).
_SMALLER = np.where(np.tri(64) > 0, 0.0, math.inf)
# The bits of a 64-bit float that hold its exponent: alone they are the power of two below it.
_EXPONENT = np.int64(0x7FF0000000000000)
# m and n, a and b change places.
_TRANSPOSED = [2, 1, 0, 4, 3]


def _search(limits: RooflineLimits, sizes: ElementBytes, shapes: Sequence[Shape]) -> list[GemmCost]:
    capacity = capacity_in_elements(limits, sizes)
    offered: Sequence[tuple[float, tuple[Kernel, ...], float]] = [(0.0, (), 0.0)] * len(shapes)
    if limits.whole_waves:
        offered = _worth_having(limits, sizes, shapes)
    products = [_product(limits, sizes, *each) for each in zip(shapes, offered, strict=True)]
    rows = _rows(limits, products)
    sides = [shape[:3] for shape in shapes]
    choices = _outputs_stay(limits, capacity, _problems(rows), sides)
    # C^T = B^T A^T turns activations that stay into weights that stay.
    mirrored = rows.copy()
    mirrored[: len(_TRANSPOSED)] = rows[_TRANSPOSED]
    rows = np.concatenate((rows, mirrored), axis=1)
    sides += [(n, k, m) for m, k, n in sides]
    bounds = _weights_stay_bounds(limits, capacity, _problems(rows), sides)
    count = len(products)
    promising = [index for index, key in enumerate(bounds) if key < choices[index % count].key]
    if promising:
        times = np.array([choices[index % count].time for index in promising])
        problems = _problems(rows[:, promising])
        sides = [sides[index] for index in promising]
        for place, found in _weights_stay(limits, capacity, problems, sides, times):
            index = promising[place]
            if index >= count:
                found = found._replace(order="n", l2=found.l2[::-1], l1=found.l1[::-1])
            # Of equal ones the first.
            if found.key < choices[index % count].key:
                choices[index % count] = found
    return [_cost(limits, *each) for each in zip(products, choices, strict=True)]


def capacity_in_elements(limits: RooflineLimits, sizes: ElementBytes) -> Capacity:
    """Elements per tile of L1 and L2.

    Raises:
        InfeasiblePoint: one of them cannot hold one element of each matrix.
    """
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
    return Capacity(*elements)


def _product(
    limits: RooflineLimits,
    sizes: ElementBytes,
    shape: Shape,
    offered: tuple[float, tuple[Kernel, ...], float],
) -> _Product:
    m, k, n, batch = shape
    a, b, c = float(sizes.a * m * k), float(sizes.b * k * n), float(sizes.c * m * n)
    l0, l1, l2, l3 = limits.bandwidths
    registers = float(register_bytes(limits, m, k, n, sizes.a))
    floor_time = batch * registers / l0 + limits.latencies[0]
    compute_time, kernels, least_time = offered
    if not kernels:
        written = batch * c / l3 * limits.exposed_epilogue
        compute_time = batch * gemm_flops(m, k, n) / limits.usable_flops + written
        floor_time = max(floor_time, compute_time)
        least_time = (a + b + c) / (l3 / batch) + limits.latencies[3]
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
        max(floor_time, least_time),
        kernels,
    )


def _rows(limits: RooflineLimits, products: Sequence[_Product]) -> Floats:
    """The fields of ``_Problems``, one after the other along the first axis."""
    most = max([len(item.kernels) for item in products])
    none = ((math.inf, 0.0),) * most
    # NumPy takes one list of numbers much faster than nested ones.
    numbers: list[float] = []
    for item in products:
        numbers += (item.m, item.k, item.n, item.a, item.b, item.c)
        numbers += (*item.bandwidths[1:], item.floor_time, item.least_time)
        numbers.append(item.a + item.b + item.c > limits.l2_bytes_per_tile)
        for kernel in (item.kernels + none)[:most]:
            numbers += kernel
    return np.array(numbers).reshape(len(products), -1).T[:, :, None, None]


def _problems(rows: Floats) -> _Problems:
    return _Problems._make((*rows[:12], rows[12:]))


def _worth_having(
    limits: RooflineLimits, sizes: ElementBytes, shapes: Sequence[Shape]
) -> list[tuple[float, tuple[Kernel, ...], float]]:
    """(time of arithmetic alone, kernels, least time) of each product.

    Kernels that can be the fastest, and the time of the fastest, when DRAM moves each matrix once.
    The longer DRAM takes, the less a kernel with shorter arithmetic saves by it.
    """
    m, k, n, batch = np.array(shapes, np.float64).T
    once = sizes.a * m * k + sizes.b * k * n + sizes.c * m * n
    dram_seconds = once / (limits.bandwidths[3] / batch) + limits.latencies[3]
    kernels = library_kernels(limits, m, k, n, batch * (sizes.c * m * n), batch)
    seconds = _seconds_of_each(kernels, dram_seconds)
    compute = (kernels.arithmetic + kernels.adding_up).min(axis=0)
    worth = []
    for alone, *each in zip(
        compute.tolist(), *(x.T.tolist() for x in (*kernels, seconds)), strict=True
    ):
        kept, shortest = [], math.inf
        for arithmetic, adding_up, time in zip(*each, strict=True):
            if time < shortest:
                shortest = time
                kept.append((arithmetic, adding_up))
        worth.append((alone, tuple(kept), shortest))
    return worth


def _powers(sides: Sequence[Sides], axis: int) -> Floats:
    """The powers of two that are below the longest of ``sides`` along an axis, and the next one.

    Clipped to a side they are sizes of tiles, with the side itself at the end: more than once
    where others are longer, and then the first place counts.
    """
    return _POWERS[: (max([side[axis] for side in sides]) - 1).bit_length() + 1]


def _tiles(size: Floats, room: Floats) -> Floats:
    """How many tiles of the largest size that ``room`` allows cover ``size``; infinite if none."""
    room = np.maximum(room, 0.5)
    tile = (room.view(np.int64) & _EXPONENT).view(np.float64)
    tile = np.where(room >= size, size, tile)
    return np.where(room < 1, math.inf, np.ceil(size / tile))


def _outputs_stay(
    limits: RooflineLimits,
    capacity: Capacity,
    problems: _Problems,
    sides: Sequence[Sides],
) -> list[_Choice]:
    """The best tilings with k innermost, over all (m2, n2); ``sides``: (m, k, n) of each product.

    L1 and L2 bytes both grow with ``operands`` = A gn1 + B gm1, which is least for the largest
    n1 beside m1 and k1 = 1; k2 is as large as fits.
    """
    m, k, n, a, b, c = problems[:6]
    rows, columns = np.minimum(_powers(sides, 0)[:, None], m), np.minimum(_powers(sides, 2), n)
    tiles_m, tiles_n = np.ceil(m / rows), np.ceil(n / columns)
    widest = _tiles(n, (capacity.l1 - rows) / (rows + 1))
    # The smaller of two sizes makes the larger of two counts.
    operands = a * np.maximum(widest, tiles_n) + b * tiles_m
    least = np.minimum.accumulate(operands, axis=1)  # over m1 <= m2
    tiles_k = _tiles(k, (capacity.l2 - rows * columns) / (rows + columns))
    l2 = least + 2 * c
    dram = dram_bytes("k", a, b, c, tiles_m, tiles_k, tiles_n, spills=False)
    time = (least + c * tiles_k) / problems.l1_bandwidth + limits.latencies[1]
    np.maximum(time, l2 / problems.l2_bandwidth + limits.latencies[2], out=time)
    np.maximum(time, _beside_dram(limits, problems, dram), out=time)
    count, wide = len(time), time.shape[2]
    time, l2, dram = (table.reshape(count, -1) for table in (time, l2, dram))
    numbers, places = np.arange(count), np.zeros(count, dtype=np.intp)
    seconds, traffic, place = _least(numbers, time, l2, dram, places, 1)
    i, j = np.divmod(place, wide)
    # The first m1 with the least operands.
    i1 = (operands[numbers, :, j] == least[numbers, i, j][:, None]).argmax(axis=1)
    choices = []
    for (size_m, size_k, size_n), time_of_all, moved, *indices in zip(
        sides, *(x.tolist() for x in (seconds, traffic, i1, i, j)), strict=True
    ):
        m1, m2, n2 = map(_size, (size_m, size_m, size_n), indices)
        n1 = min(_largest(size_n, (capacity.l1 - m1) / (m1 + 1)), n2)
        k2 = _largest(size_k, (capacity.l2 - m2 * n2) / (m2 + n2))
        k1 = min(_largest(size_k, (capacity.l1 - m1 * n1) / (m1 + n1)), k2)
        choices.append(_Choice(time_of_all, moved, "k", (m2, k2, n2), (m1, k1, n1)))
    return choices


def _weights_stay_bounds(
    limits: RooflineLimits,
    capacity: Capacity,
    problems: _Problems,
    sides: Sequence[Sides],
) -> list[tuple[float, float]]:
    """No tiling with m innermost has a smaller key than this.

    L2 bytes are least with m1 = 1, which leaves the most room; DRAM moves a matrix at least
    once.
    """
    k, n, a, b, c = problems[1:6]
    columns = np.minimum(_powers(sides, 2), n)
    tiles_n = np.ceil(n / columns)
    tiles_k = _tiles(k, (capacity.l1 - columns) / (columns + 1))
    least = l2_bytes("m", a, b, c, tiles_n, tiles_k, tiles_n).min(axis=2, keepdims=True)
    dram = a + b + c
    time = np.maximum(problems.least_time, least / problems.l2_bandwidth + limits.latencies[2])
    return list(zip(time.flat, (dram * dram + least * least).flat, strict=True))


def _weights_stay(
    limits: RooflineLimits,
    capacity: Capacity,
    problems: _Problems,
    sides: Sequence[Sides],
    in_seconds: Floats,
) -> list[tuple[int, _Choice]]:
    """The best tilings with m innermost, over all (m1, n1, n2), with the product's index.

    m2 only has to hold m1, so it is m1 while k2, and then k1, are made as large as fits. Pairs of
    m1 and n2 whose DRAM traffic alone takes more than ``in_seconds`` are left out, and products
    that have no others.
    """
    m, k, n, a, b, c, l1_bandwidth, l2_bandwidth = problems[:8]
    rows, columns = np.minimum(_powers(sides, 0)[:, None], m), np.minimum(_powers(sides, 2), n)
    tiles_m, tiles_n = np.ceil(m / rows), np.ceil(n / columns)
    elements, edges = rows * columns, rows + columns
    tiles_k = _tiles(k, (capacity.l2 - elements) / edges)
    dram = np.where(
        problems.spills,
        dram_bytes("m", a, b, c, tiles_m, tiles_k, tiles_n, spills=True),
        dram_bytes("m", a, b, c, tiles_m, tiles_k, tiles_n, spills=False),
    )
    dram_time = _beside_dram(limits, problems, dram)
    pairs = np.nonzero(dram_time <= in_seconds[:, None, None])
    index, m1, n2 = pairs
    if not len(index):
        return []
    # From here on tables have a row for each pair and a column for each n1.
    l1_tiles_k = _tiles(k, (capacity.l1 - elements) / edges)[index, m1]
    tiles_n, tiles_m, tiles_k = tiles_n[index, 0], tiles_m[index, m1], tiles_k[pairs][:, None]
    a, b, c, l1_bandwidth, l2_bandwidth = (
        x[index, 0] for x in (a, b, c, l1_bandwidth, l2_bandwidth)
    )
    # The smaller of two sizes makes the larger of two counts.
    l2 = l2_bytes("m", a, b, c, tiles_m, np.maximum(l1_tiles_k, tiles_k), tiles_n)
    time = (a * tiles_n + b * tiles_m + c * tiles_k) / l1_bandwidth + limits.latencies[1]
    np.maximum(time, l2 / l2_bandwidth + limits.latencies[2], out=time)
    np.maximum(time, dram_time[pairs][:, None], out=time)
    wide = time.shape[1]
    np.maximum(time, _SMALLER[n2, :wide], out=time)
    # Of equal ones the first of all (m1, n1, n2).
    places = m1 * wide * wide + n2
    dram = np.broadcast_to(dram[pairs][:, None], time.shape)
    products, which = np.unique(index, return_inverse=True)
    seconds, traffic, place = _least(which, time, l2, dram, places, wide)
    rest, j2 = np.divmod(place, wide)
    i, j1 = np.divmod(rest, wide)
    choices = []
    for product, time_of_all, moved, *indices in zip(
        *(x.tolist() for x in (products, seconds, traffic, i, j1, j2)), strict=True
    ):
        size_m, size_k, size_n = sides[product]
        of_m1, of_n1, of_n2 = map(_size, (size_m, size_n, size_n), indices)
        k2 = _largest(size_k, (capacity.l2 - of_m1 * of_n2) / (of_m1 + of_n2))
        m2 = _largest(size_m, (capacity.l2 - k2 * of_n2) / (k2 + of_n2))
        k1 = min(_largest(size_k, (capacity.l1 - of_m1 * of_n1) / (of_m1 + of_n1)), k2)
        l2_tile, l1_tile = (m2, k2, of_n2), (of_m1, k1, of_n1)
        choices.append((product, _Choice(time_of_all, moved, "m", l2_tile, l1_tile)))
    return choices


def _beside_dram(limits: RooflineLimits, problems: _Problems, dram: Floats) -> Floats:
    """Seconds of DRAM traffic of ``dram`` bytes for each product, and all work beside it."""
    seconds = dram / problems.dram_bandwidth + limits.latencies[3]
    if len(problems.kernels):
        kernels = LibraryKernels(problems.kernels[::2], problems.kernels[1::2])
        seconds = kernel_seconds(kernels, seconds)
    longer: Floats = np.maximum(seconds, problems.floor_time)
    return longer


def _least(
    which: Indices, time: Floats, l2: Floats, dram: Floats, places: Indices, step: int
) -> tuple[Floats, Floats, Indices]:
    """(time, traffic, place) of the best entry of each product.

    ``which``: number of the product that a row of the tables belongs to, ascending from 0 without
    gaps. ``places``: of the first entry of each row; the next is ``step`` further. The best has the
    least time, of these the least traffic, of these the first place.
    """
    numbers = np.arange(int(which[-1]) + 1)
    best = np.minimum.reduceat(time.min(axis=1), which.searchsorted(numbers))
    rows, columns = np.nonzero(time == best[which][:, None])
    which = which[rows]
    traffic = dram[rows, columns] ** 2 + l2[rows, columns] ** 2
    lowest = np.minimum.reduceat(traffic, which.searchsorted(numbers))
    lows = np.flatnonzero(traffic == lowest[which])
    place = places[rows[lows]] + step * columns[lows]
    return best, lowest, np.minimum.reduceat(place, which[lows].searchsorted(numbers))


def _size(size: int, index: int) -> int:
    """The tile size of this index, of those in ``_powers``."""
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
