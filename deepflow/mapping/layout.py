"""Placement of parallel dimensions on wafers, and what sharing of links costs them.

A node is a wafer: a square mesh of ``wafer_dim`` x ``wafer_dim`` devices. The four parallel
dimensions (kp1, kp2, dp, lp) form a 4-D array of devices, and a layout says in which order its
dimensions are laid down:

- The first one snakes along columns: up the first, down the second, ...
- What is placed so far is a block; every further dimension repeats it along x and, where a row
  of blocks is full, snakes back in the next row of blocks.
- What a wafer cannot hold goes to the next wafers, which are filled like the first.

A dimension takes the largest of its divisors that fits, so blocks are rectangles without holes.

Neighbours along a dimension exchange data: a ring for kp1, kp2 and dp (two members share one
link; of more, the last closes the ring through the mesh), a chain for lp. Transfers move along
x, then along y. Between wafers they leave at the edge x = wafer_dim - 1 of the lower wafer,
where every row has a link, and enter the higher one at x = 0, or the other way round, after
they moved to the row of their destination. A derate is the number of transfers on the busiest
link: each of them then gets 1 / derate of its bandwidth.

The derates of a layout are those of all dimensions communicating at once, as the DeepFlow
research code has them. It applied them to every collective. But collectives of one rank take
turns, so here a collective sees the derates of its own dimension alone; and a transfer between
neighbours that are several links apart takes the latency of each, of which that code counted
one. ``seen_by_dimension`` gives both.

What a transfer is charged to follows the DeepFlow research code, so that derates compare with
published ones: along x the link that it passes, whatever the direction; along y the port of
every device that sends it on, one port for both directions; between wafers the link of the row
where its end on the lower wafer is. Charging the very links of the path would lower the derate
within wafers by one in 15 of 511 recorded layouts and raise the other, at most twofold, in 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, reduce
from itertools import permutations
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deepflow.config import with_overrides
from deepflow.config.hardware import PARALLEL_DIMENSIONS, HardwareConfig
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.record import record

IntArray = npt.NDArray[np.int64]


class Degrees(NamedTuple):
    """Parallel degrees: two kernel (tensor) dimensions, data, and layers (pipeline stages)."""

    kp1: int = 1
    kp2: int = 1
    dp: int = 1
    lp: int = 1

    @property
    def num_devices(self) -> int:
        """Devices in the array of all dimensions."""
        return self.kp1 * self.kp2 * self.dp * self.lp

    def of(self, dimension: str) -> int:
        """The degree of a dimension by its name."""
        return self[PARALLEL_DIMENSIONS.index(dimension)]


@record(frozen=True)
class Placement:
    """Where devices are: wafer, column x and row y (0 .. wafer_dim - 1).

    Arrays have one axis per dimension of ``order``, of the length of its degree.
    """

    order: tuple[str, ...]
    wafer_dim: int
    num_wafers: int
    wafer: IntArray
    x: IntArray
    y: IntArray


@record(frozen=True)
class Loads:
    """Number of transfers on every link.

    ``along_x[wafer, y, x]``: the link between columns x and x + 1. ``along_y[wafer, x, y]``: the
    port of device (x, y) to its column. ``between_wafers[wafer, y]``: the link of row y to higher
    wafers. ``crossing``: dimensions with neighbours on different wafers.
    """

    along_x: IntArray
    along_y: IntArray
    between_wafers: IntArray
    crossing: frozenset[str]


@record(frozen=True)
class Layout:
    """An order of the dimensions and its cost; dimensions of degree 1 stand last.

    Derates are divisors of a device's bandwidth within and between wafers; 0 where no transfer
    uses that network.
    """

    order: tuple[str, ...]
    intra_derate: int
    inter_derate: int
    crossing: frozenset[str]

    @property
    def name(self) -> str:
        """As ``system_hierarchy.layout`` has it."""
        return "-".join(self.order)


def place(degrees: Degrees, order: tuple[str, ...], wafer_dim: int) -> Placement:
    """Coordinates of every device for ``order``, a permutation of all four dimensions.

    Uses as many wafers as it takes; see the module's description for the rules.
    """
    width = height = wafers = 1
    offsets = []
    for position, dimension in enumerate(order):
        degree = degrees.of(dimension)
        if position == 0:
            rows = _largest_divisor(degree, wafer_dim)
            columns = _largest_divisor(degree // rows, wafer_dim)
        else:
            columns = _largest_divisor(degree, wafer_dim // width)
            rows = _largest_divisor(degree // columns, wafer_dim // height)
        wafer, block = np.divmod(np.arange(degree), rows * columns)
        if position == 0:
            column, row = _snake(block, rows)
        else:
            row, column = _snake(block, columns)
        # Blocks are never mirrored, so a device's coordinates add up over the dimensions.
        offsets.append((wafer * wafers, column * width, row * height))
        width, height = width * columns, height * rows
        wafers *= degree // (rows * columns)
    wafer, x, y = (reduce(np.add.outer, parts) for parts in zip(*offsets, strict=True))
    return Placement(order, wafer_dim, wafers, wafer, x, y)


def routed_loads(placement: Placement, dimensions: tuple[str, ...] = PARALLEL_DIMENSIONS) -> Loads:
    """Routes the transfers of all ``dimensions`` at once and counts them on every link."""
    dim = placement.wafer_dim
    # Counted as differences: +1 where a run of links begins, -1 behind its end.
    along_x = np.zeros((placement.num_wafers, dim, dim + 1), dtype=np.int64)
    along_y = np.zeros((placement.num_wafers, dim, dim + 1), dtype=np.int64)
    between_wafers = np.zeros((placement.num_wafers, dim), dtype=np.int64)
    crossing = set()
    for dimension in dimensions:
        (from_wafer, to_wafer), (from_x, to_x), (from_y, to_y) = _transfers(placement, dimension)
        leaves, up = from_wafer != to_wafer, from_wafer < to_wafer
        turn = np.where(leaves, np.where(up, dim - 1, 0), to_x)
        _charge(along_x, from_wafer, from_y, np.minimum(from_x, turn), np.maximum(from_x, turn))
        down = to_y < from_y
        _charge(
            along_y,
            from_wafer,
            turn,
            np.where(down, to_y + 1, from_y),
            np.where(down, from_y + 1, to_y),
        )
        if leaves.any():
            crossing.add(dimension)
            lower_wafer, lower_y = np.where(up, (from_wafer, from_y), (to_wafer, to_y))
            np.add.at(between_wafers, (lower_wafer[leaves], lower_y[leaves]), 1)
            entry = np.where(leaves, np.where(up, 0, dim - 1), to_x)
            _charge(along_x, to_wafer, to_y, np.minimum(entry, to_x), np.maximum(entry, to_x))
    return Loads(
        along_x.cumsum(axis=2)[:, :, :-1],
        along_y.cumsum(axis=2)[:, :, :-1],
        between_wafers,
        frozenset(crossing),
    )


@lru_cache(maxsize=4096)
def make_layout(
    degrees: Degrees, order: tuple[str, ...], wafer_dim: int, num_wafers: int
) -> Layout:
    """Places and routes ``order``, a permutation of all four dimensions.

    Raises:
        InfeasiblePoint: it needs more wafers than ``num_wafers``.
    """
    order = tuple(sorted(order, key=lambda dimension: degrees.of(dimension) == 1))
    placement = place(degrees, order, wafer_dim)
    if placement.num_wafers > num_wafers:
        shape = " x ".join(f"{name} {degrees.of(name)}" for name in order)
        raise InfeasiblePoint(
            f"layout {shape} needs {placement.num_wafers} nodes of {wafer_dim} x {wafer_dim}"
            f" devices, and system_hierarchy.num_nodes is {num_wafers}"
        )
    loads = routed_loads(placement)
    return Layout(
        order,
        intra_derate=int(max(loads.along_x.max(), loads.along_y.max())),
        inter_derate=int(loads.between_wafers.max()),
        crossing=loads.crossing,
    )


def layouts(degrees: Degrees, wafer_dim: int, num_wafers: int) -> Iterator[Layout]:
    """Every order of the dimensions of degree above 1 that fits on the wafers.

    Orders of equal sizes are kept apart: which dimension is the inner one changes what crosses
    wafers, and chain or ring what a link carries.
    """
    split = [name for name in PARALLEL_DIMENSIONS if degrees.of(name) > 1]
    whole = tuple(name for name in PARALLEL_DIMENSIONS if degrees.of(name) == 1)
    for order in permutations(split):
        try:
            yield make_layout(degrees, order + whole, wafer_dim, num_wafers)
        except InfeasiblePoint:
            continue


@lru_cache(maxsize=4096)
def best_layout(degrees: Degrees, wafer_dim: int, num_wafers: int) -> Layout:
    """The layout that keeps within wafers what communicates most, then has the least derates.

    Kernel dimensions communicate in every operator, data once a step, layers only at stage
    boundaries. Among equals the derate between wafers counts first, where links are slower.

    Raises:
        InfeasiblePoint: no order fits on the wafers.
    """
    found = list(layouts(degrees, wafer_dim, num_wafers))
    if not found:
        shape = " x ".join(f"{name} {degrees.of(name)}" for name in PARALLEL_DIMENSIONS)
        raise InfeasiblePoint(
            f"no layout of {shape} fits on {num_wafers} nodes of {wafer_dim} x {wafer_dim} devices"
        )
    return min(
        found,
        key=lambda layout: (
            len(layout.crossing & {"kp1", "kp2"}),
            "dp" in layout.crossing,
            "lp" in layout.crossing,
            layout.inter_derate,
            layout.intra_derate,
        ),
    )


def layout_derates(config: HardwareConfig, degrees: Degrees, name: str) -> dict[str, object]:
    """Derates and crossings of a layout as canonical overrides of ``system_hierarchy``.

    ``name``: "auto" or an order such as "kp1-dp-lp-kp2". A derate of 0 says that the network
    within nodes is not used at all; an unused one between nodes is not divided.

    Raises:
        InfeasiblePoint: nodes are not square, or the layout does not fit on them.
    """
    layout = _chosen_layout(config, degrees, name)
    return {
        "system_hierarchy.intra_derate": float(layout.intra_derate),
        "system_hierarchy.inter_derate": float(max(layout.inter_derate, 1)),
        **{
            f"system_hierarchy.{dimension}_inter": dimension in layout.crossing
            for dimension in PARALLEL_DIMENSIONS
        },
    }


def _chosen_layout(config: HardwareConfig, degrees: Degrees, name: str) -> Layout:
    system = config.system_hierarchy
    wafer_dim = isqrt(system.num_devices_per_node)
    if wafer_dim * wafer_dim != system.num_devices_per_node:
        raise InfeasiblePoint(
            f"system_hierarchy.layout {name} needs nodes that are square meshes, and"
            f" system_hierarchy.num_devices_per_node {system.num_devices_per_node} is no square"
        )
    if name == "auto":
        return best_layout(degrees, wafer_dim, system.num_nodes)
    return make_layout(degrees, tuple(name.split("-")), wafer_dim, system.num_nodes)


@record(frozen=True)
class DimensionLoad:
    """What one dimension finds when it communicates alone.

    Derates as in ``Layout``. ``links``: those within wafers that the longest transfer passes;
    ``links_across`` likewise of transfers to another wafer, None if there are none.
    """

    intra_derate: int
    inter_derate: int
    links: int
    links_across: int | None

    def latency(self, intra: float, inter: float) -> float:
        """Seconds of the slowest transfer, from those of a link within and between wafers."""
        across = 0.0 if self.links_across is None else self.links_across * intra + inter
        return max(self.links * intra, across)


@lru_cache(maxsize=4096)
def dimension_load(
    degrees: Degrees, order: tuple[str, ...], wafer_dim: int, dimension: str
) -> DimensionLoad:
    """Routes the transfers of ``dimension`` alone; ``order`` as for ``place``."""
    placement = place(degrees, order, wafer_dim)
    loads = routed_loads(placement, (dimension,))
    (from_wafer, to_wafer), (from_x, to_x), (from_y, to_y) = _transfers(placement, dimension)
    leaves, edge = from_wafer != to_wafer, wafer_dim - 1
    # Out at the edge towards the other wafer and in at the opposite one.
    out = np.where(from_wafer < to_wafer, edge - from_x, from_x)
    into = np.where(from_wafer < to_wafer, to_x, edge - to_x)
    links = np.where(leaves, out + into, abs(to_x - from_x)) + abs(to_y - from_y)
    return DimensionLoad(
        int(max(loads.along_x.max(), loads.along_y.max())),
        int(loads.between_wafers.max()),
        int(links[~leaves].max(initial=0)),
        int(links[leaves].max()) if leaves.any() else None,
    )


def seen_by_dimension(hardware: Hardware, degrees: Degrees) -> dict[str, Hardware]:
    """``hardware`` as the collectives of each dimension find it with the file's layout.

    Derates and latencies are those of the dimension alone. A kernel dimension of degree 1 has
    those of the other one: layers that are cut otherwise communicate in the same places.
    Without a layout all is as in the file.

    Raises:
        InfeasiblePoint: nodes are not square, or the layout does not fit on them.
    """
    system = hardware.config.system_hierarchy
    if system.layout == "none":
        return dict.fromkeys(PARALLEL_DIMENSIONS, hardware)
    layout = _chosen_layout(hardware.config, degrees, system.layout)
    wafer_dim = isqrt(system.num_devices_per_node)
    accelerator = hardware.accelerator
    intra, inter = accelerator.intra_node, accelerator.inter_node
    seen = {}
    for dimension in PARALLEL_DIMENSIONS:
        places = dimension
        if degrees.of(dimension) == 1:
            places = {"kp1": "kp2", "kp2": "kp1"}.get(dimension, dimension)
        load = dimension_load(degrees, layout.order, wafer_dim, places)
        overrides: dict[str, object] = {
            "system_hierarchy.intra_derate": float(load.intra_derate),
            "system_hierarchy.inter_derate": float(max(load.inter_derate, 1)),
            f"system_hierarchy.{dimension}_inter": places in layout.crossing,
        }
        latency = load.latency(intra.latency, inter.latency)
        seen[dimension] = replace(
            hardware,
            config=with_overrides(hardware.config, overrides),
            accelerator=replace(
                accelerator,
                intra_node=replace(intra, latency=latency),
                inter_node=replace(inter, latency=latency),
            ),
        )
    return seen


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _snake(index: IntArray, length: int) -> tuple[IntArray, IntArray]:
    """(line, place in the line) when every second line runs backwards."""
    line, place_in_line = np.divmod(index, length)
    return line, np.where(line % 2, length - 1 - place_in_line, place_in_line)


def _transfers(placement: Placement, dimension: str) -> list[tuple[IntArray, IntArray]]:
    """(from, to) of every transfer along ``dimension``: wafers, columns, rows."""
    axis = placement.order.index(dimension)
    closed = dimension != "lp" and placement.x.shape[axis] > 2
    places = (placement.wafer, placement.x, placement.y)
    return [_neighbours(coordinate, axis, closed) for coordinate in places]


def _neighbours(coordinate: IntArray, axis: int, closed: bool) -> tuple[IntArray, IntArray]:
    """Flat coordinates of the two ends of every transfer along ``axis``, in its direction."""
    along = np.moveaxis(coordinate, axis, 0)
    if closed:
        return along.ravel(), np.roll(along, -1, axis=0).ravel()
    return along[:-1].ravel(), along[1:].ravel()


def _charge(
    differences: IntArray, wafer: IntArray, line: IntArray, begin: IntArray, end: IntArray
) -> None:
    """Counts one transfer each on the links ``begin`` to ``end`` - 1 of a row or column."""
    np.add.at(differences, (wafer, line, begin), 1)
    np.add.at(differences, (wafer, line, end), -1)
