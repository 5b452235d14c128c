"""Training steps of many points at once: the same numbers as one point at a time, sooner.

Points of a sweep have much in common. What depends on some of their keys only is found once for
each combination of those: the layout of degrees on the machine, the passes through a layer, its
collectives over the data group, the update of a device. These parts come from the functions that
a single point uses. Then points with the same pipeline and the same parts of the model on its
stages are put together, by the same formulas again (``deepflow.schedule.training``,
``deepflow.cost.memory``, ``deepflow.prediction.step_amounts``), on arrays with a number per point.
Pipelines end when ``deepflow.batch.pipelines`` says.

A key that is not named below counts as one on which everything depends: the price of not knowing
it is time, not a wrong result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from deepflow.batch import changes_at, empty_columns, fill, fill_one_by_one, overridden
from deepflow.batch.pipelines import Pipelines, last_ends
from deepflow.config import HardwareConfig
from deepflow.config.hardware import Parallelism
from deepflow.config.model import LlmModel, VitModel
from deepflow.cost.elementwise import larger, where
from deepflow.cost.memory import (
    MemoryUse,
    SegmentMemory,
    part_weights,
    segment_memory,
    stage_memory,
    stage_parameters,
)
from deepflow.cost.operators import (
    COST_FIELDS,
    Cost,
    OperatorCost,
    block_cost,
    block_costs,
    operator_cost,
    total,
)
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware, derive_hardware
from deepflow.mapping.groups import Group
from deepflow.mapping.parallelism import (
    EMBEDDING,
    RECOMPUTED,
    TrainingMapping,
    batch_split,
    data_degree,
    model_parts,
    parts_per_stage,
    tensor_degree,
    training_groups,
)
from deepflow.mapping.training import Parameters, training_step
from deepflow.prediction import (
    COLUMNS,
    STEP_TIMES,
    Prediction,
    bound_of,
    memory_reason,
    step_amounts,
)
from deepflow.schedule.pipeline import held_at_worst, held_before_backward
from deepflow.schedule.training import (
    NOTHING,
    DataCosts,
    PartCosts,
    SegmentCosts,
    StageResult,
    beside_others,
    data_costs,
    exposed_gradient_time,
    gradient_time,
    host_bandwidth,
    part_costs,
    segment_costs,
    stage_gradient,
    stage_passes,
    stage_transfers,
    tied_collective,
    update_costs,
)
from deepflow.workload.operators import Block, Collective, Operator
from deepflow.workload.transformer import (
    active_parameter_count,
    model_flops_per_token,
    parameter_count,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepflow.batch import Columns, Overrides

    Integers = NDArray[np.int64]
    Numbers = NDArray[np.float64]
    Texts = NDArray[np.object_]

# Fewer points than this on a device are done sooner one by one.
FEW = 64
# Results that are kept for further points on a device: some hundred megabytes.
MOST_KNOWN = 50_000

_PARALLELISM = tuple(item.name for item in fields(Parallelism))
_MACHINE = ("num_nodes", "num_devices_per_node")
_BATCH = "global_batch_size"
_LAYOUT_PATHS = {
    **{
        f"scheduling_param.{name}": name for name in _PARALLELISM if name not in ("t", "kp1", "kp2")
    },
    **{f"system_hierarchy.{name}": name for name in _MACHINE},
    _BATCH: _BATCH,
}

_BATCHES = {_BATCH, "num_microbatches", "micro_batch_size"}
_ORDER = {"schedule", "virtual_stages"}
# Keys that say how degrees and batches are laid out. What else depends on them depends on the
# degrees, sizes and groups that follow from them.
_DEGREES = {
    *_MACHINE,
    *_BATCHES,
    *_ORDER,
    "tensor",
    "pipeline",
    "data",
    "context",
    "expert",
    "stage_balance",
}
_OVER_DATA = {
    "zero",
    "zero_1_reduction",
    "zero_3_unit",
    "zero_3_reduction",
    "release_distance",
    "gradient_bucket",
}
_OVERLAPS = {
    "overlap_parameter_gather",
    "overlap_gradient_reduction",
    "overlap_tensor_communication",
    "overlap_expert_communication",
}
_RECOMPUTATION = {"recompute", "recompute_layers", "recompute_modules"}
_WITHIN_PASSES = {"sequence_parallel", "context_method", "overlap_tensor_communication"}

# Keys that have no say in degrees and groups; in passes through a segment; in its collectives over
# the data group; in the update; in how the parts of a step are put together.
_NOT_IN_LAYOUT = {
    *_BATCHES,
    *_ORDER,
    "stage_balance",
    *_OVER_DATA,
    *_OVERLAPS,
    *_RECOMPUTATION,
    "sequence_parallel",
    "context_method",
    "offload",
    "gradient_bytes",
}
# With sharded weights, gradients may be copied into buffers after a pass.
_NOT_IN_PASSES = {
    *_DEGREES,
    "zero",
    "zero_1_reduction",
    "gradient_bucket",
    "overlap_parameter_gather",
    "overlap_gradient_reduction",
    "overlap_expert_communication",
    "offload",
    "recompute_layers",
}
_NOT_OVER_DATA = {*_DEGREES, *_OVERLAPS, *_RECOMPUTATION, *_WITHIN_PASSES, "offload"}
_NOT_IN_UPDATE = {
    *_DEGREES,
    *_OVERLAPS,
    *_RECOMPUTATION,
    "context_method",
    "zero_3_unit",
    "zero_3_reduction",
    "release_distance",
}
_NOT_IN_STRUCTURE = {
    *_DEGREES,
    *_OVERLAPS,
    *_RECOMPUTATION,
    *_WITHIN_PASSES,
    *_OVER_DATA - {"gradient_bucket", "zero_3_unit"},
    "offload",
    "gradient_bytes",
}

# Of those, keys that are the same all the same: the structure has them in another form.
_SAME_IN_STRUCTURE = {"pipeline", "schedule", "virtual_stages", "overlap_parameter_gather"}

# And those that formulas take as arrays.
_ARRAYS = (
    "zero",
    "offload",
    "gradient_bytes",
    "overlap_gradient_reduction",
    "overlap_expert_communication",
)

_AMOUNTS = attrgetter(*COST_FIELDS)
_PARAMETERS = tuple(item.name for item in fields(Parameters))
# What follows from the machine and the degrees asked for.
_DEGREES_FOUND = ("tensor", "context", "expert", "pipeline", "data")
_GROUPS_IN_PASSES = ("tensor", "context", "expert")
# Texts of points that cannot be, but for those that say why.
_REFUSED = {
    name: value
    for name, value in Prediction().as_row().items()
    if value is not None and name not in ("status", "reason")
}
_PASSES = ("forward_total", "backward_total", "backward_input_total", "backward_weight_total")


def predict_training_points(
    hardware: HardwareConfig,
    model: LlmModel | VitModel,
    overrides: Overrides,
    positions: Integers,
) -> Columns:
    """All result columns of the points at ``positions`` (points, axes).

    ``overrides[axis][position]``: hardware and model changes, canonical path -> value in SI units,
    as in ``deepflow.sweep.points.Base.overrides``. Returns the names of ``COLUMNS``: texts as
    objects, everything else as float64 with NaN for None.

    Raises:
        DeepFlowError: one of the points is no result but a mistake.
    """
    columns = empty_columns(len(positions))
    alone = [np.zeros(0, np.int64)]
    layout_axes = _layout_axes(overrides)
    of_device = [axis for axis in range(len(overrides)) if axis not in layout_axes]
    _, of_point = _distinct([positions[:, axis] for axis in of_device], len(positions))
    order = np.argsort(of_point, kind="stable")
    for which in np.split(order, np.cumsum(np.bincount(of_point))[:-1]):
        if len(which) < FEW:
            alone.append(which)
            continue
        row = positions[which[0]].tolist()
        changes = changes_at(
            [overrides[axis] for axis in of_device], [row[axis] for axis in of_device]
        )
        try:
            device = _device(hardware, model, *changes)
        except InfeasiblePoint as error:
            fill(columns, which, Prediction(status=error.status, reason=str(error)))
            continue
        if device is None:
            alone.append(which)
            continue
        keys = _keys_of_points(device, overrides, layout_axes, positions[which])
        alone.append(which[_Batch(device, keys, len(which)).fill(columns, which)])
    rest = np.sort(np.concatenate(alone))
    fill_one_by_one(columns, rest.tolist(), hardware, model, overrides, positions)
    return columns


@dataclass(frozen=True)
class _Device:
    """What points have in common that differ in their layout only."""

    hardware: Hardware
    loaded: Hardware
    model: LlmModel


def _layout_axes(overrides: Overrides) -> dict[int, set[str]]:
    """Axes that change nothing but the layout, with their paths, each path on one axis only."""
    of_axis = [
        {path for changes in positions for part in changes for path in part}
        for positions in overrides
    ]
    often = Counter(chain.from_iterable(of_axis))
    return {
        axis: paths
        for axis, paths in enumerate(of_axis)
        if paths and paths <= _LAYOUT_PATHS.keys() and all(often[path] == 1 for path in paths)
    }


def _device(
    hardware: HardwareConfig,
    model: LlmModel | VitModel,
    hardware_changes: Mapping[str, object],
    model_changes: Mapping[str, object],
) -> _Device | None:
    """The device and model that many layouts share; None: its points have to be done one by one.

    Raises:
        InfeasiblePoint: as ``deepflow.batch.evaluate``, for each of its points.
    """
    hardware, model = overridden(hardware, model, hardware_changes, model_changes)
    transformer = model.transformer if isinstance(model, VitModel) else model
    asked = hardware.scheduling_param
    # A tensor degree may contradict those of old files.
    old_degrees = (asked.kp1 or 1) * (asked.kp2 or 1) > 1
    simulated = hardware.execution_backend.model != "analytical"
    if old_degrees or simulated or transformer.run_type != "training":
        return None
    derived = derive_hardware(hardware)
    return _Device(derived, derived.under_load, transformer)


class _Known:
    """What has been found for a device: results by what they depend on.

    The shards of a sweep have most of it in common, and one process predicts many of them.
    """

    def __init__(self) -> None:
        # By what is found and the keys it depends on, for each combination of these.
        self.results: dict[tuple[Any, ...], dict[tuple[Any, ...], Any]] = {}
        self.ends: dict[bytes, Numbers] = {}
        # Of passes, by the numbers of their groups.
        self.operators: dict[tuple[int, ...], dict[Operator, OperatorCost]] = {}
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """The same number for equal values."""
        return self._numbers.setdefault(value, len(self._numbers))

    def keep_few(self) -> None:
        """Forgets the results if there are too many."""
        every: list[dict[Any, Any]] = [*self.results.values(), *self.operators.values(), self.ends]
        for results in every:
            if len(results) > MOST_KNOWN:
                results.clear()


@lru_cache(maxsize=4)
def _known(hardware: HardwareConfig, model: LlmModel) -> _Known:
    return _Known()


@dataclass(frozen=True)
class _Key:
    """One key of the layout: the values that it takes, and which of them each point has."""

    values: list[Any]
    codes: Integers

    def array(self) -> NDArray[Any]:
        """The value of every point."""
        return np.array(self.values)[self.codes]


def _keys_of_points(
    device: _Device, overrides: Overrides, axes: Mapping[int, set[str]], positions: Integers
) -> dict[str, _Key]:
    """Keys of the layout that differ between points, by name."""
    keys = {}
    for axis, paths in axes.items():
        for path in paths:
            *section, name = path.split(".")
            # Without a section it is a key of the model.
            owner = getattr(device.hardware.config, section[0]) if section else device.model
            default = getattr(owner, name)
            taken = [changes[not section].get(path, default) for changes in overrides[axis]]
            number: dict[Any, int] = {}
            of_position = [number.setdefault(_hashable(value), len(number)) for value in taken]
            values = [taken[of_position.index(code)] for code in range(len(number))]
            keys[name] = _Key(values, np.array(of_position)[positions[:, axis]])
    return keys


def _hashable(value: object) -> tuple[type, object]:
    """One and true are equal, but not the same."""
    return type(value), value


def _distinct(columns: Sequence[NDArray[Any]], points: int) -> tuple[Integers, Integers]:
    """(a point for each distinct combination, the number of its combination for each point)."""
    code, most = np.zeros(points, np.int64), 1
    for column in columns:
        if column.dtype.kind == "f":
            column = np.unique(column, return_inverse=True)[1]
        low, high = int(column.min(initial=0)), int(column.max(initial=0))
        span = high - low + 1
        if most * span >= 2**62:
            code = np.unique(code, return_inverse=True)[1]
            most = int(code.max(initial=0)) + 1
        code = code * span + (column.astype(np.int64) - low)
        most *= span
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    return first, number


class _Batch:
    """Points on one device, step by step; see the module's description."""

    def __init__(self, device: _Device, keys: Mapping[str, _Key], points: int) -> None:
        self._device, self._keys, self._points = device, keys, points
        self._refused: NDArray[np.bool_] = np.zeros(points, bool)
        # Points that cannot be, with status and reason of each.
        self._errors: list[tuple[Integers, Texts]] = []
        self._known = _known(device.hardware.config, device.model)
        self._known.keep_few()

    def fill(self, columns: Columns, which: Integers) -> Integers:
        """Writes the results into the rows ``which``; returns points that have to go alone."""
        for find in (self._lay_out, self._cost_passes, self._cost_reductions):
            if not self._refused.all():
                find()
        alone = [np.zeros(0, np.int64)]
        families = [] if self._refused.all() else self._of_same_structure()
        for family in families:
            steps = [self._step(points) for points in family]
            all_ends = last_ends([step.pipelines for step in steps], self._known.ends)
            for points, step, ends in zip(family, steps, all_ends, strict=True):
                result = self._put_together(points, step, ends)
                refused = self._refused[points]
                finite = np.isfinite(sum(result[name] for name in ("time_s", *STEP_TIMES)))
                good = ~refused & finite
                rows = which[points[good]]
                for name, values in result.items():
                    columns[name][rows] = values[good] if isinstance(values, np.ndarray) else values
                alone.append(points[~refused & ~finite])
        for points, texts in self._errors:
            rows = which[points]
            for name, value in _REFUSED.items():
                columns[name][rows] = value
            columns["status"][rows], columns["reason"][rows] = texts
        return np.concatenate(alone)

    # --- What is found once for each combination of some keys -----------------------------------

    def _value(self, name: str, point: int) -> Any:
        key = self._keys.get(name)
        if key is not None:
            return key.values[key.codes[point]]
        device = self._device
        owner = device.model if name == _BATCH else device.loaded.config.scheduling_param
        return getattr(owner, name)

    def _codes(self, without: Iterable[str]) -> list[Integers]:
        return [key.codes for name, key in self._keys.items() if name not in without]

    def _asked(self, point: int) -> Parallelism:
        values = {name: self._value(name, point) for name in self._keys if name in _PARALLELISM}
        return replace(self._device.loaded.config.scheduling_param, **values)

    def _hardware(self, point: int, asked: Parallelism) -> Hardware:
        config = self._device.loaded.config
        system = {name: self._value(name, point) for name in _MACHINE if name in self._keys}
        hierarchy = replace(config.system_hierarchy, **system) if system else None
        config = replace(
            config,
            scheduling_param=asked,
            system_hierarchy=hierarchy or config.system_hierarchy,
        )
        return replace(self._device.loaded, config=config)

    def _numbered(self, name: str) -> Integers:
        """The value of every point as a number."""
        key = self._keys.get(name)
        if key is None:
            return np.full(self._points, self._known.number((name, self._value(name, 0))))
        return np.array([self._known.number((name, value)) for value in key.values])[key.codes]

    def _each(
        self,
        what: str,
        without: Iterable[str],
        columns: Sequence[NDArray[Any]],
        evaluate: Callable[[int], Any],
        nothing: Any,
    ) -> tuple[list[Any], Integers]:
        """``evaluate`` of a point for each combination that is left; infeasible ones are noted.

        Combinations are those of all keys but ``without`` and of the numbers in ``columns``.
        """
        left = np.flatnonzero(~self._refused)
        names = tuple(sorted(self._keys.keys() - without))
        keys = [self._keys[name] for name in names]
        first, of_left = _distinct(
            [column[left] for column in (*(key.codes for key in keys), *columns)], len(left)
        )
        points = left[first]
        rows = [
            *([key.values[code] for code in key.codes[points].tolist()] for key in keys),
            *(column[points].tolist() for column in columns),
            points.tolist(),
        ]
        found, known = [], self._known.results.setdefault((what, names), {})
        errors: dict[int, InfeasiblePoint] = {}
        for code, (*row, point) in enumerate(zip(*rows, strict=True)):
            combination = tuple(row)
            if combination not in known:
                try:
                    known[combination] = evaluate(point)
                except InfeasiblePoint as error:
                    known[combination] = error
            result = known[combination]
            if isinstance(result, InfeasiblePoint):
                errors[code], result = result, nothing
            found.append(result)
        if errors:
            self._note(left, of_left, errors)
        number = np.zeros(self._points, np.int64)
        number[left] = of_left
        # Points that were refused before are nothing in particular.
        return found or [nothing], number

    def _note(
        self, points: Integers, codes: Integers, errors: Mapping[int, InfeasiblePoint]
    ) -> None:
        """Refuses those of ``points`` whose code has one of ``errors``."""
        bad = np.isin(codes, list(errors)) & ~self._refused[points]
        causes, which = np.unique(codes[bad], return_inverse=True)
        texts = np.empty((2, len(causes)), object)
        for number, code in enumerate(causes.tolist()):
            texts[:, number] = errors[code].status, str(errors[code])
        self._refused[points[bad]] = True
        self._errors.append((points[bad], texts[:, which]))

    def _lay_out(self) -> None:
        """Degrees, batches and groups of every point, and the parts of its model."""
        nothing = (1,) * len(_DEGREES_FOUND)
        found, which = self._each("degrees", _NOT_IN_LAYOUT, [], self._find_degrees, nothing)
        of_point = np.array(found).T[:, which]
        self._degrees: dict[str, Integers] = dict(zip(_DEGREES_FOUND, of_point, strict=True))
        self._split_batches()
        self._split_model()
        model, number = self._device.model, self._known.number

        def place(point: int) -> tuple[dict[str, Group], dict[str, int]]:
            hardware = self._hardware(point, self._asked(point))
            groups = training_groups(hardware, model, int(self._degrees["data"][point]))
            # Groups by number: equal ones are the same to whoever sends over them.
            return groups, {name: number(_group_key(group)) for name, group in groups.items()}

        placed, self._layout = self._each("groups", _NOT_IN_LAYOUT, [], place, ({}, {}))
        self._placed = [groups for groups, _ in placed]
        self._groups = {
            name: np.array([groups.get(name, 0) for _, groups in placed])[self._layout]
            for name in dict.fromkeys(chain.from_iterable(groups for _, groups in placed))
        }

    def _find_degrees(self, point: int) -> tuple[int, ...]:
        asked = self._asked(point)
        data = data_degree(self._hardware(point, asked), self._device.model)
        return tensor_degree(asked), asked.context, asked.expert, asked.pipeline, data

    def _split_batches(self) -> None:
        """Microbatches of every point, and the order of their passes."""
        data, pipeline = self._degrees["data"], self._degrees["pipeline"]

        def split(point: int) -> tuple[int, int]:
            size = self._value("micro_batch_size", point)
            number = self._value("num_microbatches", point)
            return batch_split(size, number, self._value(_BATCH, point), int(data[point]))

        others = self._keys.keys() - _BATCHES
        found, which = self._each("batch", others, [data], split, (1, 1))
        self._degrees["micro_batch_size"], microbatches = np.array(found).T[:, which]
        self._degrees["num_microbatches"] = microbatches
        self._schedule = self._numbered("schedule")
        interleaved, self._splits = (
            self._schedule == self._known.number(("schedule", name))
            for name in ("interleaved", "zero_bubble")
        )

        def turns(point: int) -> int:
            schedule, wanted = self._value("schedule", point), self._value("virtual_stages", point)
            return parts_per_stage(schedule, wanted, int(pipeline[point]), int(microbatches[point]))

        # All numbers of microbatches that divide are the same here.
        odd = np.where(interleaved & (microbatches % pipeline > 0), microbatches, 0)
        others = self._keys.keys() - _ORDER
        found, which = self._each("turns", others, [pipeline, odd], turns, 1)
        self._degrees["virtual_stages"] = np.array(found)[which]

    def _split_model(self) -> None:
        """The parts of the model on the stages of every point."""
        model, number = self._device.model, self._known.number
        number_of_parts = self._degrees["pipeline"] * self._degrees["virtual_stages"]

        def parts(point: int) -> tuple[tuple[str, ...], ...]:
            return model_parts(model, int(number_of_parts[point]), self._asked(point))

        others = self._keys.keys() - {"recompute", "recompute_layers", "stage_balance"}
        all_parts, of_parts = self._each("parts", others, [number_of_parts], parts, ())
        # Equal parts may have come about in several ways.
        numbers = np.array([number(found) for found in all_parts])
        self._of_parts = numbers[of_parts]
        parts_numbered = dict(zip(numbers.tolist(), all_parts, strict=True))
        names = {
            code: tuple(dict.fromkeys(chain(*found))) for code, found in parts_numbered.items()
        }
        self._names_of_parts = names
        codes = {code: number(tuple(sorted(found))) for code, found in names.items()}
        self._names = np.array([codes[code] for code in numbers.tolist()])[of_parts]
        alike = {
            code: tuple(tuple(_alike(names[code])[name] for name in part) for part in found)
            for code, found in parts_numbered.items()
        }
        self._parts_alike = {number(found): found for found in alike.values()}
        numbers_alike = np.array([number(alike[code]) for code in numbers.tolist()])
        self._of_parts_alike = numbers_alike[of_parts]

    def _mapping(self, point: int, asked: Parallelism) -> TrainingMapping:
        """The point's mapping with each of its segments once."""
        return TrainingMapping(
            **{name: int(degree[point]) for name, degree in self._degrees.items()},
            parts=(self._names_of_parts[self._of_parts[point]],),
            groups=self._placed[self._layout[point]],
            asked=asked,
        )

    def _cost_passes(self) -> None:
        """Passes through every segment and what it holds, its operators once per shape."""
        model, degrees = self._device.model, self._degrees

        # With both ways to run a backward pass if any point needs the one in two.
        splits = bool((self._splits & ~self._refused).any())
        alone: dict[str, Any] = {"offload": "none", "overlap_expert_communication": False}
        if splits:
            alone["schedule"] = "zero_bubble"

        def evaluate(point: int) -> tuple[dict[str, Numbers], Collective, Block, float]:
            asked = replace(self._asked(point), **alone)
            hardware, mapping = self._hardware(point, asked), self._mapping(point, asked)
            step = training_step(hardware, model, mapping)
            alike = _alike(mapping.parts[0])
            rows = {}
            # Passes wait for no other groups than these.
            own = tuple(int(self._groups[name][point]) for name in _GROUPS_IN_PASSES)
            known = self._known.operators.setdefault(own, {})
            for name, item in segment_costs(hardware, mapping, step, known).items():
                held = segment_memory(mapping, step, name)
                sums = (getattr(item, part) for part in _PASSES)
                rows[alike[name]] = np.array(
                    [
                        *chain.from_iterable(map(_AMOUNTS, sums)),
                        *(getattr(held.parameters, key) for key in _PARAMETERS),
                        *(held.saved, held.saved_feature, held.kept),
                    ]
                )
            return rows, step.hop, step.received, step.boundary_bytes

        # Gradients of shards may be copied after a pass, those of a tied matrix on one stage.
        sharded = self._array("zero") == 3
        more_replicas = degrees["data"] * degrees["context"] > 1
        # What devices of a tensor group do together is nothing on a single one.
        grouped = degrees["tensor"] > 1
        together = ("sequence_parallel", "overlap_tensor_communication")
        found, self._passes = self._each(
            "passes",
            {*_NOT_IN_PASSES, *together},
            [
                *(np.where(grouped, self._numbered(name), 0) for name in together),
                degrees["tensor"],
                degrees["context"],
                degrees["expert"],
                degrees["micro_batch_size"],
                degrees["num_microbatches"] > 1,
                np.full(self._points, splits),
                self._names,
                sharded,
                sharded & more_replicas,
                sharded & (degrees["pipeline"] > 1),
                *(self._groups[name] for name in _GROUPS_IN_PASSES if self._groups),
            ],
            evaluate,
            None,
        )
        self._pass_rows = _table([item and item[0] for item in found])
        # Who has no way to the host finds out when its device is asked for it.
        others = self._keys.keys() - {"offload"}
        self._each("offload", others, [], self._reach_host, None)
        hops = [item[1].message_bytes if item else 0.0 for item in found]
        self._hop_bytes = np.array(hops)[self._passes]
        boundaries = [item[3] if item else 0.0 for item in found]
        self._boundary_bytes = np.array(boundaries)[self._passes]

        def hop(point: int) -> list[float]:
            sent, received = found[self._passes[point]][1:3]
            asked = self._asked(point)
            hardware, groups = self._hardware(point, asked), self._mapping(point, asked).groups
            arrived = total(block_cost(received, hardware, groups))
            return [*_AMOUNTS(operator_cost(sent, hardware, groups).cost), *_AMOUNTS(arrived)]

        nothing = [0.0] * 2 * len(COST_FIELDS)
        own = [self._groups[name] for name in ("pipeline", "tensor") if self._groups]
        others = self._keys.keys() - set(_MACHINE)
        sizes = [self._hop_bytes, self._boundary_bytes]
        costs, number = self._each("hop", others, [*sizes, *own], hop, nothing)
        self._hops, self._received = np.split(np.array(costs).T[:, number], 2)

    def _reach_host(self, point: int) -> None:
        if self._asked(point).offload != "none":
            host_bandwidth(self._device.loaded)

    def _cost_reductions(self) -> None:
        """What every segment sends over its data group."""
        model, degrees = self._device.model, self._degrees

        def evaluate(point: int) -> dict[str, Numbers]:
            asked = self._asked(point)
            hardware, mapping = self._hardware(point, asked), self._mapping(point, asked)
            step = training_step(hardware, model, mapping)
            blocks = [
                block
                for segment in step.segments.values()
                for block in (segment.gather, segment.gradient)
            ]
            costs = iter(block_costs(blocks, hardware, mapping.groups))
            rows, alike = {}, _alike(mapping.parts[0])
            for name, gather, gradient in zip(step.segments, costs, costs, strict=True):
                item = data_costs(name, gather, gradient, hardware, mapping, step)
                sums, own = (item.gather, item.reduction, item.gradient), step.segments[name].own
                rows[alike[name]] = np.array(
                    [
                        *chain.from_iterable(map(_AMOUNTS, sums)),
                        item.again,
                        *(getattr(own, key) for key in _PARAMETERS),
                    ]
                )
            return rows

        found, self._reductions = self._each(
            "data",
            _NOT_OVER_DATA,
            [
                degrees["tensor"],
                degrees["expert"],
                degrees["pipeline"] > 1,
                self._names,
                *(self._groups[name] for name in ("data", "expert_data") if self._groups),
            ],
            evaluate,
            None,
        )
        self._reduction_rows = _table(found)
        self._tied_times = self._cost_tied()
        # By combination, costs of updates by parameters of the device.
        self._update_costs, self._updates = self._each(
            "update",
            _NOT_IN_UPDATE,
            [
                *(degrees[name] for name in ("tensor", "context", "expert", "data", "pipeline")),
                *self._groups.values(),
            ],
            lambda _: {},
            {},
        )

    def _cost_tied(self) -> Numbers:
        """Seconds of the reduction between first and last stage."""
        if not self._device.model.tie_embeddings:
            return np.zeros(self._points)
        held = self._held(np.arange(self._points), [EMBEDDING])[EMBEDDING].parameters
        counts = [np.broadcast_to(getattr(held, name), self._points) for name in _PARAMETERS]

        def evaluate(point: int) -> float:
            asked = self._asked(point)
            mapping = self._mapping(point, asked)
            embedding = Parameters(*(count[point].item() for count in counts))
            sent = tied_collective(embedding, mapping)
            return operator_cost(sent, self._hardware(point, asked), mapping.groups).cost.time

        others = self._keys.keys() - {*_MACHINE, "gradient_bytes"}
        group = [self._groups["embedding"]] if self._groups else []
        found, number = self._each("tied", others, [*counts, *group], evaluate, 0.0)
        return np.array(found)[number]

    # --- Points of the same structure together ---------------------------------------------------

    def _of_same_structure(self) -> list[list[Integers]]:
        """Points whose steps are put together alike, feasible ones only.

        In lists of those whose pipelines have the same order of passes.
        """
        each_pass = self._array("zero") >= 2
        prefetch = self._array("overlap_parameter_gather") | ~each_pass
        _, number = _distinct(
            [
                *self._codes(_NOT_IN_STRUCTURE),
                self._of_parts_alike,
                self._degrees["pipeline"],
                self._schedule,
                each_pass,
                prefetch,
            ],
            self._points,
        )
        order = np.argsort(number, kind="stable")
        families: dict[tuple[str, int, int], list[Integers]] = {}
        for of_group in np.split(order, np.cumsum(np.bincount(number))[:-1]):
            points = of_group[~self._refused[of_group]]
            if len(points):
                degrees = (self._degrees[name] for name in ("pipeline", "virtual_stages"))
                pipeline, virtual_stages = (int(degree[points[0]]) for degree in degrees)
                family = self._value("schedule", points[0]), pipeline, virtual_stages
                families.setdefault(family, []).append(points)
        return list(families.values())

    def _array(self, name: str) -> NDArray[Any]:
        if name in self._keys:
            return self._keys[name].array()
        value = getattr(self._device.loaded.config.scheduling_param, name)
        return np.full(self._points, value)

    def _shared_mapping(self, points: Integers) -> TrainingMapping:
        """The mapping of points of the same structure, with arrays where they differ."""
        point = int(points[0])
        layouts, number = np.unique(self._layout[points], return_inverse=True)
        of_layout = [self._placed[layout] for layout in layouts]
        groups = {
            name: replace(
                group,
                size=np.array([item[name].size for item in of_layout])[number],
                intra_size=np.array([item[name].intra_size for item in of_layout])[number],
                inter_size=np.array([item[name].inter_size for item in of_layout])[number],
            )
            for name, group in of_layout[0].items()
        }
        differing = self._keys.keys() & _NOT_IN_STRUCTURE - _SAME_IN_STRUCTURE & {*_PARALLELISM}
        asked: dict[str, Any] = dict.fromkeys(differing, _VARYING)
        for name in _ARRAYS:
            asked[name] = self._array(name)[points]
        degrees: Any = {
            name: self._degrees[name][points]
            for name in (
                "tensor",
                "context",
                "expert",
                "data",
                "num_microbatches",
                "micro_batch_size",
            )
        }
        shared: TrainingMapping = replace(
            self._mapping(point, self._asked(point)),
            **degrees,
            parts=self._parts_alike[int(self._of_parts_alike[point])],
            groups=groups,
            asked=replace(self._asked(point), **asked),
        )
        return shared

    def _segments(
        self, points: Integers, mapping: TrainingMapping, names: Iterable[str]
    ) -> dict[str, SegmentCosts]:
        width = len(COST_FIELDS)
        segments = {}
        for name in names:
            passes = _columns(self._pass_rows[name], self._passes[points])
            reductions = _columns(self._reduction_rows[name], self._reductions[points])
            sums = [
                Cost(*rows[start : start + width])
                for rows, count in (
                    (passes, len(_PASSES)),
                    (reductions, len(fields(DataCosts)) - 1),
                )
                for start in range(0, count * width, width)
            ]
            # All passes but those for weights, which wait for nothing that others send.
            sums[:3] = [
                beside_others(cost, passes[-1], self._device.loaded, mapping) for cost in sums[:3]
            ]
            again = reductions[-1 - len(_PARAMETERS)]
            values: list[Any] = [(), (), (), (), *sums, (), again]
            segments[name] = SegmentCosts(*values)
        return segments

    def _held(self, points: Integers, names: Iterable[str]) -> dict[str, SegmentMemory]:
        start, width = len(_PASSES) * len(COST_FIELDS), len(_PARAMETERS)
        held = {}
        for name in names:
            rows = _columns(self._pass_rows[name][start:], self._passes[points])
            own = _columns(self._reduction_rows[name][-width:], self._reductions[points])
            held[name] = SegmentMemory(Parameters(*rows[:width]), Parameters(*own), *rows[width:])
        return held

    def _step(self, points: Integers) -> _Step:
        """Everything about a step of points of the same structure but when it ends."""
        mapping = self._shared_mapping(points)
        count, stages = len(points), mapping.pipeline
        splits = mapping.asked.schedule == "zero_bubble"
        each_pass = bool(self._array("zero")[points[0]] >= 2)
        names = tuple(dict.fromkeys(chain(*mapping.parts)))
        segments, held = self._segments(points, mapping, names), self._held(points, names)
        contents = tuple(dict.fromkeys(mapping.parts))
        received = Cost(*self._received[:, points])
        of_content = {
            content: part_costs(content, segments, received, mapping, each_pass=each_pass)
            for content in contents
        }
        times = {content: costs.times(splits=splits) for content, costs in of_content.items()}
        last_time: dict[str, Any] = {}
        if not each_pass:
            last_time = {
                name: costs.last_backward_time(splits=splits) for name, costs in segments.items()
            }
        # The last backward pass of a part is run segment by segment where gradients follow.
        last = {
            content: sum(last_time[name] * often for name, often in Counter(content).items())
            if content and not each_pass
            else times[content][2 if splits else 1]
            for content in contents
        }

        def by_part(values: Mapping[tuple[str, ...], Any]) -> Numbers:
            of_content = {content: np.broadcast_to(values[content], count) for content in contents}
            return np.array([of_content[content] for content in mapping.parts]).T

        forward, backward, weight = (
            by_part({content: item[which] for content, item in times.items()}) for which in range(3)
        )
        hop = Cost(*self._hops[:, points])
        pipelines = Pipelines(
            mapping.asked.schedule,
            stages,
            mapping.virtual_stages,
            self._degrees["num_microbatches"][points],
            forward,
            backward,
            weight,
            by_part(last),
            np.array(np.broadcast_to(hop.time if stages > 1 else 0.0, count)),
        )
        return _Step(
            mapping, segments, held, of_content, last_time, last, hop, pipelines, each_pass
        )

    def _put_together(self, points: Integers, step: _Step, ends: Numbers) -> dict[str, Any]:
        """The columns of points of the same structure; ``ends`` of their pipelines."""
        device, mapping, stages = self._device, step.mapping, step.mapping.pipeline
        stage_parts = [mapping.parts_of(stage) for stage in range(stages)]
        first_with = {parts: stage_parts.index(parts) for parts in dict.fromkeys(stage_parts)}
        parameters = {parts: stage_parameters(step.held, parts) for parts in first_with}
        update = {parts: self._update(points, parameters[parts]) for parts in first_with}
        tied_time: Any = 0.0
        last_gradient = _last_gradients(step, ends)
        if device.model.tie_embeddings and stages > 1:
            tied_time = self._tied_times[points]
            both = larger(last_gradient[0], last_gradient[-1]) + tied_time
            last_gradient[0] = last_gradient[-1] = both
        ready = np.max(last_gradient, axis=0)
        time = np.max(
            [
                np.maximum(ready, ends[:, stage]) + update[parts].time
                for stage, parts in enumerate(stage_parts)
            ],
            axis=0,
        )
        counts = Counter(stage_parts)
        boundary_bytes: Any = self._boundary_bytes[points]
        hop_bytes: Any = self._hop_bytes[points]
        everything = NOTHING
        slowest: StageResult | None = None
        fullest: MemoryUse | None = None
        for parts, stage in first_with.items():
            compute = stage_passes(step.of_content, parts) * mapping.num_microbatches
            gradient = stage_gradient(step.segments, parts)
            everything += (compute + update[parts] + gradient) * counts[parts]
            # Of equal stages the first one holds most.
            memory = stage_memory(
                device.loaded,
                mapping,
                step.held,
                parts,
                parameters[parts],
                self._in_flight(points, mapping, stage, part_weights(step.held, parts)),
                boundary_bytes,
                hop_bytes,
            )
            after: Any = last_gradient[stage] - ends[:, stage]
            waits = exposed_gradient_time(after, gradient.time, tied_time)
            result = StageResult(
                parameters[parts].count, compute, update[parts], gradient, NOTHING, waits, memory
            )
            slowest = result if slowest is None else _slower(slowest, result)
            fullest = memory if fullest is None else _fuller(fullest, memory)
        assert slowest is not None and fullest is not None
        transfers = sum(stage_transfers(mapping, stage) for stage in range(stages))
        everything += step.hop * (mapping.num_microbatches * transfers)
        return self._columns(points, mapping, time, everything, slowest, fullest)

    def _columns(
        self,
        points: Integers,
        mapping: TrainingMapping,
        time: Any,
        everything: Cost,
        slowest: StageResult,
        fullest: MemoryUse,
    ) -> dict[str, Any]:
        device, model = self._device, self._device.model
        sequences = self._keys[_BATCH].array()[points] if _BATCH in self._keys else None
        tokens: Any = model.seq_len * (model.global_batch_size if sequences is None else sequences)
        ranks = mapping.num_devices // mapping.pipeline
        columns = step_amounts(
            device.hardware,
            time,
            everything,
            slowest,
            fullest,
            mapping.pipeline,
            ranks,
            model_flops_per_token(model) * tokens,
            tokens,
        )
        times = np.array([np.broadcast_to(columns[name], len(points)) for name in STEP_TIMES])
        bounds = np.array([bound_of(name) for name in STEP_TIMES], object)
        fits = columns["fits_in_memory"]
        columns["status"] = np.where(fits, "ok", "out_of_memory").astype(object)
        reason = np.full(len(points), "", object)
        capacity, needed = columns["memory_capacity_bytes"], columns["peak_memory_bytes"]
        for point in np.flatnonzero(~fits).tolist():
            reason[point] = memory_reason(needed[point], capacity)
        columns["reason"] = reason
        columns["bound"] = bounds[np.argmax(times, 0)]
        if model.n_tokens is not None:
            columns["time_to_train_s"] = model.n_tokens / tokens * time
        for name in ("tensor", "context", "expert", "pipeline", "data"):
            columns[f"{name}_parallel"] = getattr(mapping, name)
        columns["num_devices"] = mapping.num_devices
        columns["num_microbatches"] = mapping.num_microbatches
        columns["micro_batch_size"] = mapping.micro_batch_size
        columns["parameters"] = parameter_count(model)
        columns["active_parameters"] = active_parameter_count(model)
        # What a prediction has without being told.
        return {
            name: columns.get(name, "analytical" if name.startswith("backend_") else "")
            for name, column in COLUMNS.items()
            if name in columns or (column.dtype is str and name in _TEXTS)
        }

    def _update(self, points: Integers, parameters: Parameters) -> Cost:
        """Cost of the update of a stage, once for each combination of what it depends on."""
        # Degrees, which are part of the combination, decide on the parameters of a given stage.
        counts = [np.broadcast_to(getattr(parameters, name), len(points)) for name in _PARAMETERS]
        first, number = _distinct([self._updates[points]], len(points))
        keys = zip(*(count[first].tolist() for count in counts), strict=True)
        at = points[first]
        found, errors = [], {}
        for code, (key, point, update) in enumerate(
            zip(keys, at.tolist(), self._updates[at].tolist(), strict=True)
        ):
            known = self._update_costs[update]
            if key not in known:
                known[key] = self._update_cost(point, Parameters(*key))
            amounts = known[key]
            if isinstance(amounts, InfeasiblePoint):
                errors[code], amounts = amounts, _AMOUNTS(NOTHING)
            found.append(amounts)
        if errors:
            self._note(points, number, errors)
        return Cost(*_columns(np.array(found).T, number))

    def _update_cost(
        self, point: int, parameters: Parameters
    ) -> tuple[float, ...] | InfeasiblePoint:
        asked = self._asked(point)
        hardware, mapping = self._hardware(point, asked), self._mapping(point, asked)
        try:
            amounts: tuple[float, ...] = _AMOUNTS(update_costs(hardware, mapping, parameters)[1])
        except InfeasiblePoint as error:
            return error
        return amounts

    def _in_flight(
        self, points: Integers, mapping: TrainingMapping, stage: int, weights: Sequence[Any]
    ) -> list[Any]:
        """By part of the stage, microbatches that it holds at its worst moment."""
        microbatches = self._degrees["num_microbatches"][points]
        if mapping.virtual_stages == 1:
            return [held_at_worst(mapping.asked.schedule, mapping.pipeline, microbatches, stage)]
        # More make no difference.
        microbatches = np.minimum(microbatches, 4 * mapping.pipeline)
        held = np.empty((mapping.virtual_stages, len(microbatches)))
        for number in np.unique(microbatches).tolist():
            with_number = np.flatnonzero(microbatches == number)
            moments = held_before_backward(
                mapping.asked.schedule, mapping.pipeline, mapping.virtual_stages, number, stage
            )
            of_parts = np.array([np.broadcast_to(item, len(microbatches)) for item in weights])
            worst = np.argmax(moments.astype(float) @ of_parts[:, with_number], 0)
            held[:, with_number] = moments[worst].T
        return list(held)


@dataclass(frozen=True)
class _Step:
    """Steps of the same structure, with arrays of one number per point.

    ``last_time``: seconds of each segment in the last backward pass, ``last`` of each part's; see
    ``deepflow.schedule.training`` for the others.
    """

    mapping: TrainingMapping
    segments: dict[str, SegmentCosts]
    held: dict[str, SegmentMemory]
    of_content: dict[tuple[str, ...], PartCosts]
    last_time: dict[str, Any]
    last: dict[tuple[str, ...], Any]
    hop: Cost
    pipelines: Pipelines
    each_pass: bool


def _last_gradients(step: _Step, ends: Numbers) -> list[Numbers]:
    """By stage, when its last gradients are reduced: the end of its passes if there are none."""
    mapping, parts, stages = step.mapping, step.mapping.parts, step.mapping.pipeline
    overlaps, reduces = mapping.asked.overlap_gradient_reduction, mapping.gradient_ranks > 1
    if step.each_pass or not np.any(reduces):
        return [ends[:, stage] for stage in range(stages)]
    sent = {name: gradient_time(costs, mapping) for name, costs in step.segments.items()}
    last_gradients = []
    for stage in range(stages):
        beside, after = np.full(len(ends), -np.inf), ends[:, stage]
        for part in reversed(range(stage, len(parts), stages)):
            now = ends[:, part] - step.last[parts[part]]
            for name, count in _runs(parts[part][::-1]):
                each = step.last_time[name]
                beside = _beside(beside, now, each, sent[name], count)
                now = now + each * count
                after = after + sent[name] * count
        reduced = np.where(overlaps & np.isfinite(beside), beside, after)
        last_gradients.append(np.where(reduces, reduced, ends[:, stage]))
    return last_gradients


class _Varying:
    """Stands for a key that formulas for points of the same structure must not ask for."""

    def _refuse(self, *_: object) -> bool:
        raise TypeError("a formula for many points asks for a key that differs between them")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse


_VARYING = _Varying()
_TEXTS = ("status", "reason", "bound", "backend_requested", "backend_used", "fallback_reason")


def _group_key(group: Group) -> tuple[Any, ...]:
    return tuple(getattr(group, item.name) for item in fields(group))


def _alike(names: Iterable[str]) -> dict[str, str]:
    """What tables call segments: recomputed ones as others where there are no others."""
    names = tuple(names)
    plain = {name: name.removesuffix(RECOMPUTED) for name in names}
    return {name: name if plain[name] in names else plain[name] for name in names}


def _table(found: Sequence[dict[str, Numbers] | None]) -> dict[str, Numbers]:
    """Rows by the name of a segment: one column for each of ``found``, zero where it has none."""
    tables: dict[str, Numbers] = {}
    for column, rows in enumerate(found):
        for name, row in (rows or {}).items():
            if name not in tables:
                tables[name] = np.zeros((len(row), len(found)))
            tables[name][:, column] = row
    return tables


def _columns(table: Numbers, number: Integers) -> list[Any]:
    """One amount per row of ``table``: an array over points, or 0.0 where it is zero for all."""
    used = np.any(table, axis=1).tolist()
    return [row[number] if some else 0.0 for row, some in zip(table, used, strict=True)]


def _runs(names: Sequence[str]) -> list[tuple[str, int]]:
    """Equal neighbours counted."""
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return runs


def _beside(free: Any, start: Any, each: Any, sent: Any, count: int) -> Any:
    """When a link is free again that carries ``sent`` seconds after each of ``count`` segments.

    Segments begin at ``start`` and take ``each``; the link, ``free`` until then, carries one
    message at a time. Either it never waits, or from the first or the last segment on.
    """
    busy = larger(free, start + each) + count * sent
    return larger(busy, start + count * each + sent)


def _slower(one: StageResult, other: StageResult) -> StageResult:
    later = other.compute.time > one.compute.time

    def chosen(of_other: Cost, of_one: Cost) -> Cost:
        return Cost(*map(lambda x, y: where(later, x, y), _AMOUNTS(of_other), _AMOUNTS(of_one)))

    return replace(
        one,
        compute=chosen(other.compute, one.compute),
        update=chosen(other.update, one.update),
        exposed_gradient_time=where(later, other.exposed_gradient_time, one.exposed_gradient_time),
    )


def _fuller(one: MemoryUse, other: MemoryUse) -> MemoryUse:
    more = other.total > one.total
    names = [item.name for item in fields(one)]
    return MemoryUse(*(where(more, getattr(other, name), getattr(one, name)) for name in names))
