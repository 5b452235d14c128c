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
from itertools import chain, product
from typing import TYPE_CHECKING

from deepflow.config import HardwareConfig, ModelConfig, did_you_mean
from deepflow.config.schema import replace_paths
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.sweep import identity
from deepflow.sweep.plots import Plot
from deepflow.sweep.settings import Changes, Setting
from deepflow.sweep.where import Condition, identifier

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from deepflow.sensitivity.sweeps import SweepPlan

    Numbers = npt.NDArray[np.int64]

MOST_FILES = 1000
"""Up to this many points, each has its own job and file unless the sweep says otherwise."""

_PROGRAM_PATHS = tuple(
    f"execution_backend.{key}"
    for key in (
        "model",
        "astra.mode",
        "astra.simulator",
        "astra.binary",
        "astra.binary_congestion_aware",
    )
)

_HASHED_TOGETHER = 2**16


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

    @property
    def programs(self) -> str:
        """Fingerprints of the ASTRA-sims of the user that the point runs by itself, "" for none.

        In the mode hybrid it reads their results from files, whose names say of which program.
        The digest does not have them: it is the same on all machines.
        """
        if self.may_run_astra_sim:
            return ""
        return _programs(self.base.hardware, [self.hardware_overrides])


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
    sensitivity: SweepPlan | None

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

        if self.condition is None:
            return np.arange(math.prod(self.shape))
        # Each part of the condition is evaluated once per combination of the axes that it reads.
        values = {
            identifier(name): (place, [row[name] for row in axis.columns])
            for place, axis in enumerate(self.axes)
            for name in axis.names
        }
        kept = self.condition.holds_over(values, len(self.shape))
        numbers = np.flatnonzero(np.broadcast_to(kept, self.shape))
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
        as a few hundred predictions, Snakemake's own work grows with the number of jobs, and the
        more points are evaluated together, the less time each of them takes. There are some jobs
        for the cores to share, and none that takes long to make again.
        """
        if self.points_per_job_wanted is not None:
            return self.points_per_job_wanted
        return 1 if self.count <= MOST_FILES else max(500, min(25_000, math.ceil(self.count / 8)))

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
            for positions in self.positions(wanted[start : start + 4096]).tolist():
                yield self.at(positions)

    def at(self, positions: Sequence[int]) -> Point:
        """The point at one position on every axis."""
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

    def positions(self, numbers: Numbers) -> Numbers:
        """The position on every axis of the points with these numbers, shape (points, axes)."""
        import numpy as np

        return np.stack(np.unravel_index(numbers, self.shape), axis=1)

    def digests(self, positions: Numbers) -> list[str]:
        """``Point.digest`` of the points at ``positions`` (points, axes)."""
        import numpy as np

        digests = np.empty(len(positions), object)
        for base, of_base in self.by_base(positions):
            values: dict[str, tuple[list[object], Numbers]] = {}
            for axis, places in enumerate(positions[of_base].T):
                present, which = np.unique(places, return_inverse=True)
                changes = [base.overrides[axis][place] for place in present.tolist()]
                for side, root in enumerate(("hardware", "model")):
                    for key in changes[0][side]:
                        values[f"{root}.{key}"] = ([change[side][key] for change in changes], which)
            digests[of_base] = base.digests.digests(values)
        return list(digests)

    def by_base(self, positions: Numbers) -> Iterator[tuple[Base, Numbers]]:
        """The bases that points at ``positions`` (points, axes) have, each with their indices."""
        import numpy as np

        files = len(self.bases[0])
        pairs = positions[:, 0] * files + positions[:, 1]
        for pair in np.unique(pairs).tolist():
            yield self.bases[pair // files][pair % files], np.flatnonzero(pairs == pair)

    def point(self, point_id: str) -> Point:
        """The point called ``point_id``; raises ConfigError if the sweep has no such point."""
        positions = self._positions_of(point_id)
        if positions is not None and self._keeps(positions):
            return self.at(positions)
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
        labels = [
            np.array([identity.text_hash(label) for label in axis.labels], np.uint64)
            for axis in self.axes
        ]
        meanings = [np.array(self._meanings(axis), np.uint64) for axis in range(len(self.axes))]
        # A shift by all 64 bits is undefined, so a single shard is told apart.
        shift = np.uint64(64 - total.bit_length() + 1)
        # The fewer bytes a number has, the fewer passes sorting takes.
        owners = np.zeros(self.count, np.min_scalar_type(total - 1))
        sums = np.zeros((2, total), np.uint64)
        for start in range(0, self.count, _HASHED_TOGETHER):
            part = slice(start, start + _HASHED_TOGETHER)
            places = np.unravel_index(self.numbers[part], self.shape)
            if total > 1:
                owners[part] = identity.mix(_sum_of(labels, places)) >> shift
            meaning = _sum_of(meanings, places)
            for lane, factor in enumerate((1, 0x9E3779B97F4A7C15)):
                np.add.at(sums[lane], owners[part], identity.mix(meaning * np.uint64(factor)))

        order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=total)
        ends = np.cumsum(counts)
        width = len(str(total))
        shards = {}
        for owner in np.flatnonzero(counts).tolist():
            numbers = self.numbers[order[ends[owner] - counts[owner] : ends[owner]]]
            name = f"{owner + 1:0{width}d}of{total}"
            content = f"{len(numbers)} {int(sums[0, owner]):x} {int(sums[1, owner]):x}"
            digest = hashlib.sha256(content.encode()).hexdigest()[:32]
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

    @cached_property
    def programs(self) -> str:
        """Fingerprints of the ASTRA-sims of the user that points run, "" for none."""
        found = set()
        for base in (base for row in self.bases for base in row):
            positions = (
                {tuple(_choosing_programs(hardware).items()) for hardware, _ in changes}
                for changes in base.overrides
            )
            combinations = (dict(chain.from_iterable(parts)) for parts in product(*positions))
            found.add(_programs(base.hardware, combinations))
        return " ".join(sorted(found)).strip()

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

    def _positions_of(self, point_id: str) -> tuple[int, ...] | None:
        rest = [] if point_id == "base" else point_id.split(identity.JOINT)
        positions = []
        for axis in self.axes:
            label, rest = identity.JOINT.join(rest[: len(axis.names)]), rest[len(axis.names) :]
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


def _sum_of(hashes: Sequence[identity.Hashes], places: Sequence[Numbers]) -> identity.Hashes:
    """Sum over the axes of one hash per position, for each point, modulo 2^64."""
    total = hashes[0][places[0]]
    for values, at in zip(hashes[1:], places[1:], strict=True):
        total += values[at]
    return total


def _choosing_programs(overrides: Mapping[str, object]) -> dict[str, object]:
    return {path: overrides[path] for path in _PROGRAM_PATHS if path in overrides}


def _programs(hardware: HardwareConfig, changes: Iterable[Mapping[str, object]]) -> str:
    """Fingerprints of the programs that ``hardware`` runs after each of ``changes``."""
    found = set()
    for overrides in changes:
        changed = replace_paths(hardware, _choosing_programs(overrides))
        backend = changed.execution_backend
        if backend.model != "astra" or backend.astra.simulator == "embedded":
            continue
        # The other backend need not wait for this to be imported.
        from deepflow.astra.hybrid import chosen_binary

        for congestion in (False, True):
            try:
                binary = chosen_binary(backend.astra, congestion)
            except DeepFlowError as error:
                found.add(str(error))
            else:
                found.add("" if binary is None else binary.digest)
    return " ".join(sorted(found)).strip()
