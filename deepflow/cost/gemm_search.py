"""The tile search of ``gemm.py`` for many products at once, each on a device of its own.

The same tilings are compared by the same formulas, in arrays throughout. Most are never looked at:
the time and the traffic of one good tiling say how many bytes of DRAM another may move at most if
it is to be better, and only those that move no more are judged. For a few products that takes
longer than to judge them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deepflow.cost.gemm import (
    ORDERS,
    ElementBytes,
    Floats,
    GemmCost,
    Indices,
    LibraryKernels,
    Shape,
    capacity_in_elements,
    dram_bytes,
    gemm_flops,
    kernel_seconds,
    l1_bytes,
    l2_bytes,
    library_kernels,
    register_bytes,
)
from deepflow.hardware.accelerator import RooflineLimits

# Products whose tables stay in the cache of a core.
SEARCHED_TOGETHER = 512


class GemmCosts(NamedTuple):
    """``GemmCost`` of many products, in arrays along the last axis.

    Tiles are ``(3, products)``; ``order`` indexes ``ORDERS``; ``bound`` is 0 for compute, else 1 +
    the number of the memory level.
    """

    time: Floats
    flops: Floats
    bytes_by_level: Floats
    level_times: Floats
    l2_tile: Floats
    l1_tile: Floats
    order: Indices
    bound: Indices


class _Limits(NamedTuple):
    """``RooflineLimits`` of each product, in arrays; capacities are in elements of A."""

    usable_flops: Floats
    bandwidths: Floats  # (4, products)
    latencies: Floats  # (4, products)
    l1_elements: Floats
    l2_elements: Floats
    l2_bytes_per_tile: Floats
    num_bundles: Floats
    whole_waves: Floats
    exposed_epilogue: Floats
    split_latency: Floats


class _Problems(NamedTuple):
    """Products, each on its device, in arrays: what does not depend on the tiling.

    Capacities hold one product of a batch at a time, and all take the same tiling. So it is
    found for one product, bandwidths being its share; times are those of the whole batch.
    ``a``, ``b``, ``c`` are bytes of the matrices of one product. ``kernels``: seconds of arithmetic
    of each library kernel, then of adding up, ``(2 * kernels, products)``; none where no product
    runs as such.
    """

    m: Floats
    k: Floats
    n: Floats
    a: Floats
    b: Floats
    c: Floats
    l1_elements: Floats
    l2_elements: Floats
    l1_bandwidth: Floats
    l2_bandwidth: Floats
    dram_bandwidth: Floats
    l1_latency: Floats
    l2_latency: Floats
    dram_latency: Floats
    spills: Floats  # 1 where the matrices do not fit L2 together
    waves: Floats  # 1 where the product runs as one of the kernels
    floor_time: Floats  # s, of what no tiling changes: registers, and compute without waves
    least_time: Floats  # s, of any tiling: with every matrix moved to or from DRAM once
    kernels: Floats


class _Choices(NamedTuple):
    """A tiling for each product, and what it is judged by; tiles are sizes along m, k, n."""

    time: Floats
    l2_bytes: Floats
    dram_bytes: Floats
    l2: Floats
    l1: Floats

    @property
    def traffic(self) -> Floats:
        """Square of hypot(DRAM bytes, L2 bytes)."""
        traffic: Floats = self.dram_bytes**2 + self.l2_bytes**2
        return traffic


_POWERS = 2.0 ** np.arange(64, dtype=np.float64)
_NUMBERS = np.arange(64)
# The bits of a 64-bit float that hold its exponent: alone they are the power of two below it.
_EXPONENT = np.int64(0x7FF0000000000000)
# Sums and roots in another order differ by less; what may be as good is looked at.
_SAFELY = 1 + 1e-12
# A first tiling whose L2 tile has so much of k is good enough to leave few others.
_FIRST_DEPTH = 128
# m and n, a and b change places.
_TRANSPOSED = [2, 1, 0, 4, 3]
_FIELDS = len(_Problems._fields) - 1


def search_on_one_device(
    limits: RooflineLimits, sizes: ElementBytes, shapes: Sequence[Shape]
) -> list[GemmCost]:
    """``gemm_cost`` of (m, k, n, batch) on one device; raises InfeasiblePoint as that does."""
    table = np.array(shapes, np.float64)
    return _separate(
        search_gemms([(limits, sizes)], np.zeros(len(table), np.intp), *table.T), limits
    )


def search_gemms(
    devices: Sequence[tuple[RooflineLimits, ElementBytes]],
    which: Indices,
    m: Floats,
    k: Floats,
    n: Floats,
    batch: Floats,
) -> GemmCosts:
    """``gemm_cost`` of many products; the i-th runs on ``devices[which[i]]``.

    Raises:
        InfeasiblePoint: a device has an L1 or L2 memory that cannot hold one element of each
            matrix.
    """
    table = np.array(
        [
            (
                limits.usable_flops,
                *limits.bandwidths,
                *limits.latencies,
                *capacity_in_elements(limits, sizes),
                limits.l2_bytes_per_tile,
                limits.num_bundles,
                limits.whole_waves,
                limits.exposed_epilogue,
                limits.split_latency,
                *sizes,
            )
            for limits, sizes in devices
        ]
    )
    if len(m) <= SEARCHED_TOGETHER:
        return _search(devices, which, table, np.array((m, k, n, batch)))
    # Shapes of similar size have tables of similar size.
    similar = np.lexsort((k, np.frexp(n)[1], np.frexp(m)[1]))
    shapes, which = np.array((m, k, n, batch))[:, similar], which[similar]
    parts = [
        _search(devices, which[part], table, shapes[:, part])
        for part in (
            slice(first, first + SEARCHED_TOGETHER) for first in range(0, len(m), SEARCHED_TOGETHER)
        )
    ]
    back = np.empty_like(similar)
    back[similar] = np.arange(len(similar))
    return GemmCosts(
        *[np.concatenate(arrays, axis=-1)[..., back] for arrays in zip(*parts, strict=True)]
    )


def _search(
    devices: Sequence[tuple[RooflineLimits, ElementBytes]],
    which: Indices,
    table: Floats,
    shapes: Floats,
) -> GemmCosts:
    """``table``: numbers of each device; ``shapes``: m, k, n, batch, each a row."""
    m, k, n, batch = shapes
    numbers = table[which].T
    bandwidths, latencies = numbers[1:5], numbers[5:9]
    limits = _Limits(numbers[0], bandwidths, latencies, *numbers[9:16])
    of_a, of_b, of_c = numbers[16:]
    a, b, c = of_a * m * k, of_b * k * n, of_c * m * n
    registers = _all_register_bytes(devices, which, m, k, n, of_a)
    flops = gemm_flops(m, k, n)
    compute = batch * flops / limits.usable_flops
    compute += batch * c / bandwidths[3] * limits.exposed_epilogue
    floor_time = batch * registers / bandwidths[0] + latencies[0]
    fields = np.empty((_FIELDS, len(m)))
    fields[:6] = m, k, n, a, b, c
    fields[6:8] = numbers[9:11]
    fields[8:11] = bandwidths[1:] / batch
    fields[11:14] = latencies[1:]
    fields[14] = a + b + c > limits.l2_bytes_per_tile
    fields[15] = waves = limits.whole_waves
    fields[16] = floor_time
    kernels = np.empty((0, len(m)))
    if waves.any():
        offered = library_kernels(limits, m, k, n, batch * c, batch)
        kernels = np.concatenate(offered)
        compute = np.where(waves, (offered.arithmetic + offered.adding_up).min(axis=0), compute)
    fields[16] = np.where(waves, floor_time, np.maximum(floor_time, compute))
    fields = np.concatenate((fields, kernels))
    fields[17] = _beside_dram(_problems(fields), a + b + c)

    choices = _outputs_stay(_problems(fields), fields)
    order = np.zeros(len(m), np.intp)
    # C^T = B^T A^T turns activations that stay into weights that stay.
    mirrored = fields.copy()
    mirrored[: len(_TRANSPOSED)] = fields[_TRANSPOSED]
    fields = np.concatenate((fields, mirrored), axis=1)
    product = np.arange(2 * len(m)) % len(m)
    bound, traffic, least_l2 = _weights_stay_bounds(_problems(fields))
    time, moved = choices.time[product], choices.traffic[product]
    promising = np.flatnonzero((bound < time) | ((bound == time) & (traffic < moved)))
    if promising.size:
        found, better = _weights_stay(
            fields[:, promising], least_l2[promising], time[promising], moved[promising]
        )
        found = promising[found]
        for number in (1, 2):
            mine = np.flatnonzero(found // len(m) == number - 1)
            to = found[mine] % len(m)
            time, moved = better.time[mine], better.traffic[mine]
            now = choices.time[to]
            wins = (time < now) | ((time == now) & (moved < choices.traffic[to]))
            mine, to = mine[wins], to[wins]
            order[to] = number
            along = slice(None, None, 1 if number == 1 else -1)
            for old, new in zip(choices, better, strict=True):
                old[..., to] = new[along, mine] if new.ndim == 2 else new[mine]
    return _costs(fields[:, : len(m)], choices, order, registers, batch, compute, flops, limits)


def _all_register_bytes(
    devices: Sequence[tuple[RooflineLimits, ElementBytes]],
    which: Indices,
    m: Floats,
    k: Floats,
    n: Floats,
    sizes: Floats,
) -> Floats:
    units: dict[tuple[int, int, str], list[int]] = {}
    for index, (limits, _) in enumerate(devices):
        unit = (limits.matrix_rows, limits.matrix_depth, limits.dataflow)
        units.setdefault(unit, []).append(index)
    if len(units) == 1:
        return register_bytes(devices[0][0], m, k, n, sizes)
    moved = np.empty(len(m))
    for indices in units.values():
        rows = np.isin(which, indices)
        limits, _ = devices[indices[0]]
        moved[rows] = register_bytes(limits, m[rows], k[rows], n[rows], sizes[rows])
    return moved


def _problems(fields: Floats) -> _Problems:
    """The rows of a table as fields."""
    return _Problems._make((*fields[:_FIELDS], fields[_FIELDS:]))


def _costs(
    fields: Floats,
    choices: _Choices,
    order: Indices,
    registers: Floats,
    batch: Floats,
    compute: Floats,
    flops: Floats,
    limits: _Limits,
) -> GemmCosts:
    m1, _, n1 = np.ceil(fields[:3] / choices.l1)
    problems = _problems(fields)
    a, b, c, k2 = problems.a, problems.b, problems.c, np.ceil(problems.k / choices.l2[1])
    l1 = l1_bytes(a, b, c, m1, n1, k2)
    moved = np.array((registers, l1, choices.l2_bytes, choices.dram_bytes))
    level_times = moved / (limits.bandwidths / batch) + limits.latencies
    # Of equal ones compute, and then the nearest level.
    bound = np.concatenate((compute[None], level_times)).argmax(axis=0)
    return GemmCosts(
        choices.time,
        batch * flops,
        batch * moved,
        level_times,
        choices.l2,
        choices.l1,
        order,
        bound,
    )


def _separate(costs: GemmCosts, limits: RooflineLimits) -> list[GemmCost]:
    """One by one, of products on one device."""
    names = ("compute", *limits.level_names)
    separate = []
    for time, flops, moved, seconds, l2, l1, order, bound in zip(
        costs.time.tolist(),
        costs.flops.tolist(),
        costs.bytes_by_level.T.tolist(),
        costs.level_times.T.tolist(),
        costs.l2_tile.T.astype(int).tolist(),
        costs.l1_tile.T.astype(int).tolist(),
        costs.order.tolist(),
        costs.bound.tolist(),
        strict=True,
    ):
        tiles = (tuple(l2), tuple(l1), ORDERS[order])
        separate.append(GemmCost(time, flops, tuple(moved), tuple(seconds), *tiles, names[bound]))
    return separate


def _powers(sides: Floats) -> tuple[Floats, Floats]:
    """(sizes of tiles, how many cover the side), one row for each of ``sides``.

    Sizes are the powers of two below a side and the side itself; where others are longer, no
    number of tiles covers it any more (infinitely many).
    """
    most = (int(sides.max()) - 1).bit_length() + 1
    powers, sides = _POWERS[:most], sides[:, None]
    sizes = np.minimum(powers, sides)
    tiles = np.ceil(sides / sizes)
    tiles[powers >= 2 * sides] = np.inf
    return sizes, tiles


def _tiles(size: Floats, room: Floats) -> Floats:
    """How many tiles of the largest size that ``room`` allows cover ``size``; infinite if none."""
    return np.where(room < 1, np.inf, np.ceil(size / _largest(size, room)))


def _largest(size: Floats, room: Floats) -> Floats:
    """The largest tile size that ``room`` allows, if there is one."""
    power = (np.maximum(room, 0.5).view(np.int64) & _EXPONENT).view(np.float64)
    return np.where(room >= size, size, power)


def _outputs_stay(problems: _Problems, fields: Floats) -> _Choices:
    """The best tilings with k innermost, over all (m2, n2).

    L1 and L2 bytes both grow with ``operands`` = A gn1 + B gm1, which is least for the largest
    n1 beside m1 and k1 = 1; k2 is as large as fits.
    """
    m, k, n, a, b, c, l1_elements, l2_elements = problems[:8]
    (rows, tiles_m), (columns, tiles_n) = _powers(m), _powers(n)
    count, high, wide = len(m), rows.shape[1], columns.shape[1]
    widest = _tiles(n[:, None], (l1_elements[:, None] - rows) / (rows + 1))
    of_b, of_a = b[:, None] * tiles_m, a[:, None]
    dram = (of_b + c[:, None])[:, :, None] + (of_a * tiles_n)[:, None]

    def fits(depth: Floats) -> npt.NDArray[np.bool_]:
        """Where a tile with so much of k fits: (x + y) (x + z) = x (x + y + z) + y z."""
        room, depth = (l2_elements + depth * depth)[:, None, None], depth[:, None]
        fitting: npt.NDArray[np.bool_] = (rows + depth)[:, :, None] * (columns + depth)[
            :, None
        ] <= room
        return fitting

    def judged(
        here: _Problems, which: Indices, i: Indices, j: Indices
    ) -> tuple[Floats, Floats, Floats, Indices]:
        """(time, L2 bytes, DRAM bytes, i1) of tilings with the i-th m2 and the j-th n2."""
        m2, n2, in_n = rows[which, i], columns[which, j], tiles_n[which, j]
        # The smaller of two sizes makes the larger of two counts.
        operands = of_a[which] * np.maximum(widest[which], in_n[:, None]) + of_b[which]
        operands[i[:, None] < _NUMBERS[:high]] = np.inf
        i1 = operands.argmin(axis=1)
        least = operands[np.arange(len(which)), i1]
        in_k = _tiles(here.k, (here.l2_elements - m2 * n2) / (m2 + n2))
        l2 = least + 2 * here.c
        moved = dram_bytes("k", here.a, here.b, here.c, tiles_m[which, i], in_k, in_n, spills=False)
        time = (least + here.c * in_k) / here.l1_bandwidth + here.l1_latency
        time = np.maximum(time, l2 / here.l2_bandwidth + here.l2_latency)
        return np.maximum(time, _beside_dram(here, moved)), l2, moved, i1

    numbers = np.arange(count)
    depth = np.minimum(np.minimum(k, _FIRST_DEPTH), np.floor((l2_elements - 1) / 2))
    first = np.where(fits(depth), dram, np.inf).reshape(count, -1).argmin(axis=1)
    time, l2, moved, _ = judged(problems, numbers, *np.divmod(first, wide))
    least_l2 = (of_a * widest + of_b).min(axis=1) + 2 * c
    most = _most_dram(problems, time, moved * moved + l2 * l2, least_l2)
    left = np.flatnonzero((dram <= most[:, None, None]) & fits(np.ones(count)))
    which, place = np.divmod(left, high * wide)
    i, j = np.divmod(place, wide)
    time, l2, moved, i1 = judged(_problems(fields[:, which]), which, i, j)
    best = _best(which, (time, moved * moved + l2 * l2))
    i1, i, j = i1[best], i[best], j[best]
    m1, m2, n2 = rows[numbers, i1], rows[numbers, i], columns[numbers, j]
    n1 = np.minimum(_largest(n, (l1_elements - m1) / (m1 + 1)), n2)
    k2 = _largest(k, (l2_elements - m2 * n2) / (m2 + n2))
    k1 = np.minimum(_largest(k, (l1_elements - m1 * n1) / (m1 + n1)), k2)
    tiles = (np.array((m2, k2, n2)), np.array((m1, k1, n1)))
    return _Choices(time[best], l2[best], moved[best], *tiles)


def _weights_stay_bounds(problems: _Problems) -> tuple[Floats, Floats, Floats]:
    """No tiling with m innermost has less than this (time, traffic), or than these L2 bytes.

    L2 bytes are least with m1 = 1, which leaves the most room; DRAM moves a matrix at least
    once.
    """
    k, a, b, c, room = (problems[place][:, None] for place in (1, 3, 4, 5, 6))
    columns, tiles_n = _powers(problems.n)
    tiles_k = _tiles(k, (room - columns) / (columns + 1))
    least = l2_bytes("m", a, b, c, tiles_n, tiles_k, tiles_n).min(axis=1)
    dram = problems.a + problems.b + problems.c
    time = least / problems.l2_bandwidth + problems.l2_latency
    return np.maximum(problems.least_time, time), dram * dram + least * least, least


def _weights_stay(
    fields: Floats, least_l2: Floats, time: Floats, traffic: Floats
) -> tuple[Indices, _Choices]:
    """The best tilings with m innermost, over all (m1, n1, n2), that may beat what is given.

    Returns them with the numbers of their products; others have none. m2 only has to hold m1, so
    it is m1 while k2, and then k1, are made as large as fits.
    """
    problems = _problems(fields)
    (of_m, tiles_m), (of_n, tiles_n) = _powers(problems.m), _powers(problems.n)
    wide = of_n.shape[1]
    most = _most_dram(problems, time, traffic, least_l2)
    least = problems.a[:, None] * tiles_n + (problems.b + problems.c)[:, None]
    which, j2 = np.nonzero(least <= most[:, None])
    # One row for each (product, n2), one column for each m1.
    here = _problems(fields[:, which])
    m1, n2, in_m = of_m[which], of_n[which, j2][:, None], tiles_m[which]
    in_k = _tiles(here.k[:, None], (here.l2_elements[:, None] - m1 * n2) / (m1 + n2))
    a, b, c = here.a[:, None], here.b[:, None], here.c[:, None]
    in_n = tiles_n[which, j2][:, None]
    dram = np.where(
        here.spills[:, None],
        dram_bytes("m", a, b, c, in_m, in_k, in_n, spills=True),
        dram_bytes("m", a, b, c, in_m, in_k, in_n, spills=False),
    )
    pair, i1 = np.nonzero((dram <= most[which][:, None]) & np.isfinite(in_m * in_k))
    # One place for each (product, m1, n2). No n1 has fewer tiles along n than n2.
    which, j2, in_k, dram = which[pair], j2[pair], in_k[pair, i1], dram[pair, i1]
    here = _problems(fields[:, which])
    a, b, c = here.a, here.b, here.c
    in_n, busy = tiles_n[which, j2], _beside_dram(here, dram)
    l2 = l2_bytes("m", a, b, c, in_n, in_k, in_n)
    seconds = l1_bytes(a, b, c, tiles_m[which, i1], in_n, in_k) / here.l1_bandwidth
    seconds = np.maximum(seconds + here.l1_latency, l2 / here.l2_bandwidth + here.l2_latency)
    seconds = np.maximum(seconds, busy)
    before, moved = time[which], dram * dram + l2 * l2
    left = (seconds < before) | ((seconds == before) & (moved < traffic[which]))
    # One row for each of those that are left, one column for each n1.
    which, j2, i1, in_k, dram, busy = (x[left] for x in (which, j2, i1, in_k, dram, busy))
    if not which.size:
        empty = np.empty(0)
        return which, _Choices(empty, empty, empty, np.empty((3, 0)), np.empty((3, 0)))
    here = _problems(fields[:, which])
    a, b, c, k = here.a[:, None], here.b[:, None], here.c[:, None], here.k[:, None]
    of_k = in_k[:, None]
    m1, n1 = of_m[which, i1][:, None], of_n[which]
    in_m, in_n = tiles_m[which, i1][:, None], tiles_n[which]
    l1_tiles_k = _tiles(k, (here.l1_elements[:, None] - m1 * n1) / (m1 + n1))
    # The smaller of two sizes makes the larger of two counts.
    l2 = l2_bytes("m", a, b, c, in_m, np.maximum(l1_tiles_k, of_k), in_n)
    seconds = l1_bytes(a, b, c, in_m, in_n, of_k) / here.l1_bandwidth[:, None]
    seconds = seconds + here.l1_latency[:, None]
    of_l2 = l2 / here.l2_bandwidth[:, None] + here.l2_latency[:, None]
    seconds = np.maximum(np.maximum(seconds, of_l2), busy[:, None])
    seconds[_NUMBERS[:wide] > j2[:, None]] = np.inf
    moved = (dram * dram)[:, None] + l2 * l2
    # Of equal ones the first of all (m1, n1, n2).
    places = (i1[:, None] * wide + _NUMBERS[:wide]) * wide + j2[:, None]
    every = np.repeat(which, wide)
    best = _best(every, (seconds.ravel(), moved.ravel(), places.ravel()))
    pair, j1 = np.divmod(best, wide)
    which, i1, j2 = which[pair], i1[pair], j2[pair]
    here = _problems(fields[:, which])
    m1, n1, n2 = of_m[which, i1], of_n[which, j1], of_n[which, j2]
    k2 = _largest(here.k, (here.l2_elements - m1 * n2) / (m1 + n2))
    m2 = _largest(here.m, (here.l2_elements - k2 * n2) / (k2 + n2))
    k1 = np.minimum(_largest(here.k, (here.l1_elements - m1 * n1) / (m1 + n1)), k2)
    tiles = (np.array((m2, k2, n2)), np.array((m1, k1, n1)))
    return which, _Choices(seconds.ravel()[best], l2.ravel()[best], dram[pair], *tiles)


def _kernels(problems: _Problems) -> LibraryKernels:
    half = len(problems.kernels) // 2
    return LibraryKernels(problems.kernels[:half], problems.kernels[half:])


def _beside_dram(problems: _Problems, dram: Floats) -> Floats:
    """Seconds of DRAM traffic of ``dram`` bytes for each product, and all work beside it."""
    seconds = dram / problems.dram_bandwidth + problems.dram_latency
    if problems.kernels.size:
        kernels = _kernels(problems)
        seconds = np.where(problems.waves, kernel_seconds(kernels, seconds), seconds)
    longer: Floats = np.maximum(seconds, problems.floor_time)
    return longer


def _most_dram(problems: _Problems, time: Floats, traffic: Floats, least_l2: Floats) -> Floats:
    """DRAM bytes beyond which no tiling is as good as one of this time and traffic.

    ``_beside_dram`` the other way round, and a little more. Where time cannot be less, traffic
    must be, of which L2 has at least ``least_l2`` bytes.
    """
    seconds = time
    if problems.kernels.size:
        busy, adding_up = _kernels(problems)
        left = np.maximum(time - adding_up, 0.0)
        beside = (left * left * left * _SAFELY - busy * busy * busy).max(axis=0)
        seconds = np.where(problems.waves, np.cbrt(np.maximum(beside, 0.0)), time)
    most = (seconds * _SAFELY - problems.dram_latency) * problems.dram_bandwidth * _SAFELY
    of_l2 = least_l2 / problems.l2_bandwidth + problems.l2_latency
    rest = np.sqrt(np.maximum(traffic * _SAFELY - least_l2 * least_l2, 0.0)) * _SAFELY
    least = np.maximum(problems.least_time, of_l2)
    return np.where(time <= least, np.minimum(most, rest), most)


def _best(which: Indices, criteria: Sequence[npt.NDArray[Any]]) -> Indices:
    """The best entry of each product: the least first criterion, of these the least second, ...

    ``which``: the product of each entry, ascending. Of equal ones the first.
    """
    starts = np.flatnonzero(np.concatenate(([True], which[1:] != which[:-1])))
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(which)))
    left = np.arange(len(which))
    for values in criteria:
        kept = values[left]
        kept = kept == np.minimum.reduceat(kept, starts)[group]
        left, group = left[kept], group[kept]
        starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
    return left[starts]
