"""Dimensions of a network: hops, routes and links.

A network is a product of dimensions, as in ASTRA-sim 2.0 (arXiv 2303.14006, section IV): ranks
that differ only in coordinate d form one line of dimension d, wired as that dimension's topology.
Ring, Switch and FullyConnected are ASTRA-sim's; Mesh (an open line), Mesh2D, Torus2D and FatTree
are ours. Two dimensions of Ring are a torus and two of Mesh a mesh as well, with collectives that
run dimension by dimension; Mesh2D and Torus2D are one dimension of collectives on a grid.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

from deepflow.network.graph import LinkState, Network, NetworkError

EXACT_TOPOLOGIES = ("Ring", "Switch", "FullyConnected")
TOPOLOGIES = (*EXACT_TOPOLOGIES, "Mesh", "Mesh2D", "Torus2D", "FatTree")
BYTES_PER_GB = 2**30

Station: TypeAlias = "int | str"  # a rank, or the name of a switch
Hop: TypeAlias = "tuple[Station, Station]"


def bytes_per_ns(bandwidth: float) -> float:
    """GB/s of 2^30 bytes as bytes per nanosecond, in the binary's order of evaluation."""
    return bandwidth * BYTES_PER_GB / 1e9


class Dimension:
    """One dimension: positions 0..size-1 of a line, its wiring, and the rates of its links."""

    def __init__(
        self,
        kind: str,
        size: int,
        bandwidth: float,
        latency: float,
        width: int = 0,
        oversubscription: float = 1.0,
    ) -> None:
        self.kind = kind
        self.size = size
        self.rate = bytes_per_ns(bandwidth)
        self.latency = latency
        self.width = width or squarest_divisor(size)
        self.uplinks = max(1, math.floor(self.width / oversubscription + 1e-9))
        self._constant_hops = {"FullyConnected": 1, "Switch": 2}.get(kind)
        self._delays: dict[tuple[int, int], int] = {}

    def hops(self, source: int, destination: int) -> int:
        """Links on the shortest way between two positions of a line."""
        if self._constant_hops:
            return self._constant_hops
        if self.kind == "Ring":
            clockwise = (destination - source) % self.size
            return min(clockwise, self.size - clockwise)
        return len(self.route(source, destination)) - 1

    def delay(self, source: int, destination: int, size: int) -> int:
        """ns from one position to another without contention: hops * latency + size / rate.

        Between leaves of an oversubscribed fat tree the rate is the fair share of the uplinks.
        Rounded down to whole ns, as in ASTRA-sim's analytical backends (arXiv 2303.14006).

        Raises:
            NetworkError: both positions are the same.
        """
        if source == destination:
            raise NetworkError(f"rank {source} sends a message to itself")
        hops = self._constant_hops or self.hops(source, destination)
        key = (hops, size)
        delay = self._delays.get(key)
        if delay is None:
            rate = self.rate
            if self.kind == "FatTree" and hops > 2:
                rate = rate * self.uplinks / self.width
            delay = self._delays[key] = int(hops * self.latency + size / rate)
        return delay

    def route(self, source: int, destination: int) -> list[int | str]:
        """Stations of the way: positions, and names of switches local to the line."""
        if self.kind == "FullyConnected":
            return [source, destination]
        if self.kind == "Switch":
            return [source, "switch", destination]
        if self.kind == "FatTree":
            return self._up_and_down(source, destination)
        if self.kind in ("Mesh2D", "Torus2D"):
            return self._column_then_row(source, destination)
        steps = self._steps(source, destination, self.size, wraps=self.kind == "Ring")
        return [source, *steps]

    def links(self) -> Iterator[tuple[int | str, int | str]]:
        """Every directed link of a line."""
        if self.kind == "FullyConnected":
            pairs = ((a, b) for a in range(self.size) for b in range(self.size) if a != b)
            yield from pairs
        elif self.kind == "Switch":
            yield from _both(("switch", a) for a in range(self.size))
        elif self.kind == "FatTree":
            leaves = range(self.size // self.width)
            yield from _both((f"leaf{a // self.width}", a) for a in range(self.size))
            yield from _both(
                (f"spine{up}", f"leaf{leaf}") for leaf in leaves for up in range(self.uplinks)
            )
        elif self.kind in ("Mesh2D", "Torus2D"):
            yield from self._grid_links()
        else:
            ends = self.size if self.kind == "Ring" and self.size > 2 else self.size - 1
            yield from _both((a, (a + 1) % self.size) for a in range(ends))

    def _up_and_down(self, source: int, destination: int) -> list[int | str]:
        # The uplink follows from the destination (d mod k), which spreads shifts evenly.
        up, down = source // self.width, destination // self.width
        if up == down:
            return [source, f"leaf{up}", destination]
        spine = f"spine{destination % self.uplinks}"
        return [source, f"leaf{up}", spine, f"leaf{down}", destination]

    def _column_then_row(self, source: int, destination: int) -> list[int | str]:
        wraps = self.kind == "Torus2D"
        row, column = divmod(source, self.width)
        to_row, to_column = divmod(destination, self.width)
        stations: list[int | str] = [source]
        along = self._steps(column, to_column, self.width, wraps)
        stations += [row * self.width + step for step in along]
        across = self._steps(row, to_row, self.size // self.width, wraps)
        return stations + [step * self.width + to_column for step in across]

    @staticmethod
    def _steps(source: int, destination: int, size: int, wraps: bool) -> list[int]:
        # Clockwise unless the other way is strictly shorter.
        clockwise = (destination - source) % size
        forward = clockwise <= size - clockwise if wraps else destination > source
        count = min(clockwise, size - clockwise) if wraps else abs(destination - source)
        step = 1 if forward else -1
        return [(source + step * index) % size for index in range(1, count + 1)]

    def _grid_links(self) -> Iterator[tuple[int | str, int | str]]:
        rows, columns = self.size // self.width, self.width
        wraps = self.kind == "Torus2D"
        for row in range(rows):
            for column in range(columns):
                here = row * columns + column
                if column + 1 < columns or (wraps and columns > 2):
                    yield from _both([(here, row * columns + (column + 1) % columns)])
                if row + 1 < rows or (wraps and rows > 2):
                    yield from _both([(here, (row + 1) % rows * columns + column)])


class Topology:
    """All dimensions together: ranks to coordinates, delays, and routes over named links.

    A switch of dimension d in the line of rank r (its lowest rank) is called ``"d:r:switch"``,
    ``"d:r:leaf3"`` or ``"d:r:spine0"``; a rank is its number.
    """

    def __init__(self, network: Network, link_states: Sequence[LinkState] = ()) -> None:
        count = len(network.npus)
        width = network.width or (0,) * count
        oversubscription = network.oversubscription or (1.0,) * count
        self.dimensions = [
            Dimension(*values)
            for values in zip(
                network.topology,
                network.npus,
                network.bandwidth,
                network.latency,
                width,
                oversubscription,
                strict=True,
            )
        ]
        self.ranks = network.ranks
        self.strides = [math.prod(network.npus[:index]) for index in range(count)]
        self.states = {(state.source, state.destination): state for state in link_states}
        # The common case, in which positions are ranks and nothing has to be looked up.
        self._only = self.dimensions[0] if count == 1 and not self.states else None
        self._detours: dict[tuple[int, int], list[Station]] = {}
        self._neighbours: dict[Station, list[Station]] = {}
        self._rates: dict[Hop, Dimension] = {}
        if self.states:
            self._wire()

    def delays(self) -> Callable[[int, int, int], int]:
        """``delay``, by the shortest way to call it."""
        return self.delay if self._only is None else self._only.delay

    def coordinate(self, rank: int, dimension: int) -> int:
        """Position of a rank in its line of a dimension."""
        return rank // self.strides[dimension] % self.dimensions[dimension].size

    def line(self, rank: int, dimension: int) -> range:
        """Ranks that differ from ``rank`` at most in one coordinate, in its order."""
        stride, size = self.strides[dimension], self.dimensions[dimension].size
        first = rank - self.coordinate(rank, dimension) * stride
        return range(first, first + stride * size, stride)

    def delay(self, source: int, destination: int, size: int) -> int:
        """ns of ``size`` bytes without contention (ASTRA-sim's congestion-unaware network).

        Only the lowest dimension in which the ranks differ is charged, as in the binary. If a
        link on that way is degraded or failed, the delay is the sum of the latencies on the way
        that remains plus the size over its slowest link.
        """
        for index, dimension in enumerate(self.dimensions):
            a, b = self.coordinate(source, index), self.coordinate(destination, index)
            if a == b:
                continue
            if self.states:
                way = self._named(index, source, destination)
                if any(hop in self.states for hop in _hops(way)):
                    return self._delay_along(self.intact(way), size)
            return dimension.delay(a, b, size)
        raise NetworkError(f"rank {source} sends a message to itself")

    def route(self, source: int, destination: int) -> list[Station]:
        """Stations from rank to rank, dimension after dimension, around failed links.

        Raises NetworkError if no way is left.
        """
        if source == destination:
            raise NetworkError(f"rank {source} sends a message to itself")
        if self._only is not None:
            return self._only.route(source, destination)
        stations: list[Station] = [source]
        here = source
        for index in range(len(self.dimensions)):
            steps = self.coordinate(destination, index) - self.coordinate(here, index)
            if steps:
                there = here + steps * self.strides[index]
                stations += self._named(index, here, there)[1:]
                here = there
        return self.intact(stations) if self.states else stations

    def link(self, source: Station, destination: Station) -> tuple[float, float]:
        """Bytes per ns and latency in ns of a directed link."""
        dimension = self._rates.get((source, destination)) or self._dimension_of(
            source, destination
        )
        state = self.states.get((source, destination))
        if state is None:
            return dimension.rate, dimension.latency
        return dimension.rate * state.bandwidth_factor, dimension.latency + state.extra_latency

    def intact(self, stations: list[Station]) -> list[Station]:
        """The same way if its links work, else a shortest way over links that do."""
        if not any(self._failed(hop) for hop in _hops(stations)):
            return stations
        ends = (stations[0], stations[-1])
        detour = self._detours.get(ends)  # type: ignore[arg-type]
        if detour is None:
            detour = self._search(*ends)
            self._detours[ends] = detour  # type: ignore[index]
        return detour

    def _failed(self, hop: Hop) -> bool:
        state = self.states.get(hop)
        return state is not None and state.bandwidth_factor == 0

    def _search(self, source: Station, destination: Station) -> list[Station]:
        came_from: dict[Station, Station] = {source: source}
        frontier = deque([source])
        while frontier and destination not in came_from:
            here = frontier.popleft()
            for there in self._neighbours[here]:
                if there not in came_from and not self._failed((here, there)):
                    came_from[there] = here
                    frontier.append(there)
        if destination not in came_from:
            raise NetworkError(
                f"rank {destination} cannot be reached from rank {source}: links have failed"
                " and no other way is left"
            )
        way = [destination]
        while way[-1] != source:
            way.append(came_from[way[-1]])
        return way[::-1]

    def _delay_along(self, stations: list[Station], size: int) -> int:
        links = [self.link(*hop) for hop in _hops(stations)]
        return int(sum(latency for _, latency in links) + size / min(rate for rate, _ in links))

    def _named(self, index: int, source: int, destination: int) -> list[Station]:
        line = self.line(source, index)
        way = self.dimensions[index].route(
            self.coordinate(source, index), self.coordinate(destination, index)
        )
        return [self._name(index, line, station) for station in way]

    @staticmethod
    def _name(index: int, line: range, station: int | str) -> Station:
        return line[station] if isinstance(station, int) else f"{index}:{line[0]}:{station}"

    def _wire(self) -> None:
        for index, dimension in enumerate(self.dimensions):
            for first in range(self.ranks):
                if self.coordinate(first, index):
                    continue
                line = self.line(first, index)
                for a, b in dimension.links():
                    hop = self._name(index, line, a), self._name(index, line, b)
                    self._rates[hop] = dimension
                    self._neighbours.setdefault(hop[0], []).append(hop[1])
        for hop, state in self.states.items():
            if hop not in self._rates:
                raise NetworkError(f"there is no link from {hop[0]} to {hop[1]} in this network")
            if not 0 <= state.bandwidth_factor <= 1 or state.extra_latency < 0:
                raise NetworkError(
                    f"link {hop[0]} to {hop[1]}: bandwidth_factor must be 0 to 1 and"
                    " extra_latency at least 0"
                )

    def _dimension_of(self, source: Station, destination: Station) -> Dimension:
        if self._only is not None:
            return self._only
        named = source if isinstance(source, str) else destination
        if isinstance(named, str):
            return self.dimensions[int(named.split(":")[0])]
        for index, dimension in enumerate(self.dimensions):
            if self.coordinate(int(source), index) != self.coordinate(named, index):
                return dimension
        raise NetworkError(f"no link leads from {source} to {destination}")


def _hops(stations: Sequence[Station]) -> Iterator[Hop]:
    return pairwise(stations)


def _both(
    pairs: Iterator[tuple[int | str, int | str]] | Sequence[tuple[int | str, int | str]],
) -> Iterator[tuple[int | str, int | str]]:
    for a, b in pairs:
        yield a, b
        yield b, a


def squarest_divisor(size: int) -> int:
    """The smallest divisor that is at least the square root."""
    return next(width for width in range(math.isqrt(size - 1) + 1, size + 1) if size % width == 0)
