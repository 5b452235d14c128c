"""The points of a sweep, made when they are needed.

A sweep is a product of axes. An axis is whatever moves together: one key of ``grid``, one group
of ``zip``, the draws of ``sample``, the list of hardware or model files, and, with a single
position, the values under ``set``. A point is one position on every axis, so a point's id,
values and shard follow from its number without making the others: a sweep of a million points
is a few arrays, and one point is found by its id at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from deepflow.config import HardwareConfig, ModelConfig, did_you_mean
from deepflow.errors import ConfigError
from deepflow.sweep import identity
from deepflow.sweep.plots import Plot
from deepflow.sweep.settings import Changes, Setting
from deepflow.sweep.where import Condition, identifier

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]

MOST_FILES = 1000
"""Up to this many points, each has its own job and file unless the sweep says otherwise."""


@dataclass(frozen=True)
class Axis:
    """What moves together: position ``i`` makes ``settings[i]`` and is called ``labels[i]``.

    ``columns[i]`` maps the axis's short names to values in SI units. A nameless axis (one
    hardware file, the values under ``set``) has one position and the label "".
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[Mapping[str, object], ...]
    settings: tuple[tuple[Setting, ...], ...]


@dataclass(frozen=True)
class Base:
    """A hardware and a model file as loaded, and what each axis position changes in them.

    The changes of a position are ``overrides[axis][position]``. ``hardware`` has the values of
    the framework file, if there is one.
    """

    hardware_file: str
    model_file: str
    hardware: HardwareConfig
    model: ModelConfig
    overrides: tuple[tuple[Changes, ...], ...]
    digests: identity.DigestTemplate
    framework_file: str | None


@dataclass(frozen=True, slots=True)
class Point:
    """One prediction to make. ``axis_values`` maps short names to values in SI units."""

    id: str
    base: Base
    axis_values: dict[str, object]
    hardware_overrides: dict[str, object]
    model_overrides: dict[str, object]
    settings: tuple[Setting, ...]

    @property
    def digest(self) -> str:
        """Fingerprint of everything that the prediction depends on."""
        values = {f"hardware.{path}": value for path, value in self.hardware_overrides.items()}
        values.update((f"model.{path}", value) for path, value in self.model_overrides.items())
        return self.base.digests.digest(values)

    @property
    def may_run_astra_sim(self) -> bool:
        """Single collectives are timed by the user's ASTRA-sim, if there is one."""
        backend = self.base.hardware.execution_backend
        loaded = {
            "model": backend.model,
            "astra.mode": backend.astra.mode,
            "astra.simulator": backend.astra.simulator,
        }
        used = {
            key: self.hardware_overrides.get(f"execution_backend.{key}", value)
            for key, value in loaded.items()
        }
        return (
            used["model"] == "astra"
            and used["astra.mode"] == "hybrid"
            and used["astra.simulator"] != "embedded"
        )


@dataclass(frozen=True)
class Shard:
    """Points that one job predicts: their numbers, and a fingerprint of what they mean."""

    name: str
    numbers: Numbers
    digest: str


@dataclass(frozen=True)
class Sweep:
    """A loaded and checked sweep file; see the module's description."""

    name: str
    file: str
    text: str
    description: str
    axes: tuple[Axis, ...]
    bases: tuple[tuple[Base, ...], ...]
    condition: Condition | None
    points_per_job_wanted: int | None
    plots: tuple[Plot, ...]
    csv: bool

    @property
    def axis_names(self) -> list[str]:
        """Short names of all axes, in the order of the sweep file."""
        return [name for axis in self.axes for name in axis.names]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    @cached_property
    def numbers(self) -> Numbers:
        """The combinations that ``where`` keeps, numbered with the last axis fastest."""
        import numpy as np

        kept = np.ones(self.shape, bool)
        if self.condition is not None:
            # The condition is evaluated once per combination of the axes that it reads.
            read = [
                any(identifier(name) in self.condition.names for name in axis.names)
                for axis in self.axes
            ]
            part = tuple(size if reads else 1 for size, reads in zip(self.shape, read, strict=True))
            answers = np.fromiter(
                (
                    self.condition.holds(self._condition_values(positions))
                    for positions in np.ndindex(part)
                ),
                bool,
                math.prod(part),
            )
            kept &= answers.reshape(part)
        numbers = np.flatnonzero(kept)
        if not numbers.size:
            raise ConfigError(
                "leaves no point", file=self.file, key="where", value=self.condition_text
            )
        return numbers

    @property
    def condition_text(self) -> str | None:
        return None if self.condition is None else self.condition.text

    @property
    def count(self) -> int:
        """Number of points."""
        return int(self.numbers.size)

    @cached_property
    def points_per_job(self) -> int:
        """1: every point has its own job and file. More: the most points of a mean shard.

        Chosen by the number of points unless the sweep file says: starting a job costs as much
        as a few hundred predictions, and Snakemake's own work grows with the number of jobs.
        """
        if self.points_per_job_wanted is not None:
            return self.points_per_job_wanted
        return 1 if self.count <= MOST_FILES else max(500, math.ceil(self.count / 256))

    @property
    def sharded(self) -> bool:
        return self.points_per_job > 1

    @property
    def summary(self) -> str:
        """One line: how many points, and in how many jobs."""
        if self.sharded:
            jobs = f"{len(self.shards)} shards of about {self.count // len(self.shards)}"
        else:
            jobs = "one job each"
        left_out = math.prod(self.shape) - self.count
        filtered = f" ({left_out} left out by where)" if left_out else ""
        return f"sweep {self.name}: {self.count} points{filtered}, {jobs}"

    def points(self, numbers: Iterable[int] | None = None) -> Iterator[Point]:
        """The points with these numbers (default: all), made one after the other."""
        import numpy as np

        wanted = self.numbers if numbers is None else np.asarray(numbers)
        for start in range(0, len(wanted), 4096):
            columns = np.unravel_index(wanted[start : start + 4096], self.shape)
            for positions in zip(*(column.tolist() for column in columns), strict=True):
                yield self._point(positions)

    def point(self, point_id: str) -> Point:
        """The point called ``point_id``; raises ConfigError if the sweep has no such point."""
        positions = self._positions_of(point_id)
        if positions is not None and self._keeps(positions):
            return self._point(positions)
        if len(point_id) > identity.LONGEST_ID - 20:
            # Past the greatest length an id ends in a digest, which only a search resolves.
            for point in self.points():
                if point.id == point_id:
                    return point
        if positions is not None:
            raise ConfigError(
                f"point {point_id!r} is left out by where: {self.condition_text}", file=self.file
            )
        example = next(self.points()).id
        raise ConfigError(
            f"the sweep has no point {point_id!r}; its first point is {example!r}", file=self.file
        )

    @cached_property
    def shards(self) -> dict[str, Shard]:
        """Name -> shard, for all shards that hold a point."""
        import numpy as np

        total = identity.shard_count(self.count, self.points_per_job)
        hashes = identity.mix(
            self._sums([[identity.text_hash(label) for label in axis.labels] for axis in self.axes])
        )
        # A shift by all 64 bits is undefined, so a single shard is told apart.
        shift = np.uint64(64 - total.bit_length() + 1)
        owners = hashes >> shift if total > 1 else np.zeros_like(hashes)
        meanings = self._sums([self._meanings(axis) for axis in range(len(self.axes))])
        lanes = [identity.mix(meanings), identity.mix(meanings * np.uint64(0x9E3779B97F4A7C15))]

        order = np.argsort(owners, kind="stable")
        present, starts = np.unique(owners[order], return_index=True)
        sums = [np.add.reduceat(lane[order], starts).tolist() for lane in lanes]
        width = len(str(total))
        shards = {}
        for index, owner in enumerate(present.tolist()):
            end = int(starts[index + 1]) if index + 1 < len(starts) else len(order)
            numbers = self.numbers[order[starts[index] : end]]
            name = f"{owner + 1:0{width}d}of{total}"
            meaning = f"{len(numbers)} {sums[0][index]:x} {sums[1][index]:x}"
            digest = hashlib.sha256(meaning.encode()).hexdigest()[:32]
            shards[name] = Shard(name, numbers, digest)
        return shards

    @cached_property
    def digest(self) -> str:
        """Fingerprint of all points: their ids and what they mean."""
        parts: Iterable[tuple[str, str]]
        if self.sharded:
            parts = ((shard.name, shard.digest) for shard in self.shards.values())
        else:
            parts = ((point.id, point.digest) for point in self.points())
        text = "\n".join(f"{name} {digest}" for name, digest in parts)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def plot(self, name: str) -> Plot:
        """The figure of this name; raises ConfigError if the sweep has none."""
        for plot in self.plots:
            if plot.name == name:
                return plot
        known = [plot.name for plot in self.plots]
        raise ConfigError(
            f"the sweep has no plot {name!r}{did_you_mean(name, known)}",
            file=self.file,
            allowed=", ".join(known),
        )

    def shard(self, name: str) -> Shard:
        """The shard of this name; raises ConfigError if there is none."""
        if name not in self.shards:
            raise ConfigError(f"the sweep has no shard {name!r}", file=self.file)
        return self.shards[name]

    def _sums(self, hashes: Sequence[Sequence[int]]) -> identity.Hashes:
        """Sum over the axes of one hash per position, for each point, modulo 2^64."""
        import numpy as np

        total = np.zeros(self.shape, np.uint64)
        for axis, values in enumerate(hashes):
            along = [1] * len(self.shape)
            along[axis] = len(values)
            total += np.array(values, np.uint64).reshape(along)
        return np.asarray(total.ravel()[self.numbers])

    def _meanings(self, axis: int) -> list[int]:
        """One hash per position of what it means for a prediction, and of its label."""
        base = self.bases[0][0]
        meanings = []
        for position, label in enumerate(self.axes[axis].labels):
            hardware, model = base.overrides[axis][position]
            lines = [f"axis {axis}", label]
            lines += [f"hardware.{path}={value!r}" for path, value in sorted(hardware.items())]
            lines += [f"model.{path}={value!r}" for path, value in sorted(model.items())]
            if axis == 0:
                lines += self.bases[position][0].digests.fixed_lines("hardware.", "model_version=")
            elif axis == 1:
                lines += self.bases[0][position].digests.fixed_lines("model.")
            meanings.append(identity.text_hash("\n".join(lines)))
        return meanings

    def _point(self, positions: Sequence[int]) -> Point:
        base = self.bases[positions[0]][positions[1]]
        labels: list[str] = []
        axis_values: dict[str, object] = {}
        hardware: dict[str, object] = {}
        model: dict[str, object] = {}
        settings: tuple[Setting, ...] = ()
        for axis, overrides, position in zip(self.axes, base.overrides, positions, strict=True):
            if axis.names:
                labels.append(axis.labels[position])
                axis_values.update(axis.columns[position])
            hardware.update(overrides[position][0])
            model.update(overrides[position][1])
            settings += axis.settings[position]
        return Point(identity.point_id(labels), base, axis_values, hardware, model, settings)

    def _positions_of(self, point_id: str) -> tuple[int, ...] | None:
        rest = [] if point_id == "base" else point_id.split(",")
        positions = []
        for axis in self.axes:
            label, rest = ",".join(rest[: len(axis.names)]), rest[len(axis.names) :]
            if label not in axis.labels:
                return None
            positions.append(axis.labels.index(label))
        return None if rest else tuple(positions)

    def _keeps(self, positions: Sequence[int]) -> bool:
        return self.condition is None or self.condition.holds(self._condition_values(positions))

    def _condition_values(self, positions: Sequence[int]) -> dict[str, object]:
        return {
            identifier(name): value
            for axis, position in zip(self.axes, positions, strict=True)
            for name, value in axis.columns[position].items()
        }
