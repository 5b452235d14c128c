"""Sweep YAML to axes: reading, checking, and writing out ranges and samples."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import (
    HardwareConfig,
    ModelConfig,
    flatten,
    load_framework_config,
    load_hardware_config,
    load_model_config,
    read_yaml,
)
from deepflow.config.technology import KINDS, TECHNOLOGY_SCHEMA, named, technology_settings
from deepflow.errors import ConfigError
from deepflow.sweep import identity
from deepflow.sweep.plots import parse_plots
from deepflow.sweep.points import Axis, Base, Sweep
from deepflow.sweep.schema import SWEEP_SCHEMA, check_object
from deepflow.sweep.settings import Changes, Setting, canonical_settings, find_file, set_twice
from deepflow.sweep.where import identifier, parse_condition

if TYPE_CHECKING:
    from deepflow.sensitivity.sweeps import SweepPlan

MOST_POINTS = 10_000_000
"""Most combinations before ``where``; an array of this many numbers still fits anywhere."""


_last: Sweep | None = None


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file and the configurations that it names.

    As long as all of them say the same as when they were last read, it is the same object: jobs of
    one sweep follow each other in a process, and each would expand it again.

    Raises ConfigError for every mistake that can be seen without predicting a point.
    """
    global _last
    sweep = _read_sweep(str(path))
    if _last is None or not _mean_the_same(sweep, _last):
        _last = sweep
    return _last


def _mean_the_same(one: Sweep, other: Sweep) -> bool:
    """Axes follow from the text and the configurations, which digests tell apart to the letter."""
    return (one.file, one.text) == (other.file, other.text) and all(
        (a.hardware, a.model, a.digests.texts) == (b.hardware, b.model, b.digests.texts)
        for row, again in zip(one.bases, other.bases, strict=True)
        for a, b in zip(row, again, strict=True)
    )


def _read_sweep(file: str) -> Sweep:
    content = check_object(read_yaml(file), SWEEP_SCHEMA, file)
    hardware_files = _files(content["hardware"], "hardware", file)
    model_files = _files(content["model"], "model", file)
    hardware = [load_hardware_config(name) for name in hardware_files]
    framework_file = None
    if "framework" in content:
        (framework_file,) = _files(content["framework"], "framework", file)
        framework = load_framework_config(framework_file)
        hardware = [framework.applied_to(config) for config in hardware]
    models = [load_model_config(name) for name in model_files]
    _refuse_equal_names(hardware, hardware_files, "hardware", file)
    _refuse_equal_names(models, model_files, "model", file)

    groups = _grid(content.get("grid", {}), file) + _zip(content.get("zip", []), file)
    if "sample" in content:
        groups.append(_sample(content["sample"], hardware[0], models[0], file))
    paths = [setting.path for group in groups for setting in group[0]]
    files_vary = [
        kind
        for kind in ("hardware", "model")
        if isinstance(content[kind], list) and len(content[kind]) > 1
    ]
    fixed = [
        Setting(path, _scalar(value, f"set.{path}", file), f"set.{path}")
        for path, value in content.get("set", {}).items()
    ]
    if "backend" in content:
        fixed.append(Setting("backend.model", content["backend"], "backend"))
    technology = _technology(content.get("technology", {}), hardware, models[0], fixed, file)
    kinds = [*files_vary, *technology]
    names = dict(zip([*kinds, *paths], identity.short_names([*kinds, *paths]), strict=True))

    first = _changes(
        [[tuple(fixed)], *(list(chosen.values()) for chosen in technology.values()), *groups],
        hardware[0],
        models[0],
        file,
    )
    axes = [
        _file_axis("hardware", hardware_files, names, file),
        _file_axis("model", model_files, names, file),
        Axis((), ("",), ({},), (tuple(fixed),)),
        *(_technology_axis(names[kind], chosen) for kind, chosen in technology.items()),
        *(
            _axis(group, changes, names, file)
            for group, changes in zip(groups, first[1 + len(technology) :], strict=True)
        ),
    ]
    combinations = math.prod(len(axis.labels) for axis in axes)
    if combinations > MOST_POINTS:
        raise ConfigError(
            f"the axes have {combinations:,} combinations",
            file=file,
            allowed=f"at most {MOST_POINTS:,}",
        )
    bases = tuple(
        tuple(
            _base(
                hardware_file,
                machine,
                model_file,
                workload,
                # The first pair, often the only one, has been resolved above.
                first
                if machine is hardware[0] and workload is models[0]
                else _changes([axis.settings for axis in axes[2:]], machine, workload, file),
                (len(hardware), len(models)),
                framework_file,
            )
            for model_file, workload in zip(model_files, models, strict=True)
        )
        for hardware_file, machine in zip(hardware_files, hardware, strict=True)
    )
    columns = [identifier(name) for axis in axes for name in axis.names]
    description = " ".join(content.get("description", "").split())
    name = identity.folder_name(file)
    return Sweep(
        name=name,
        file=file,
        text=Path(file).read_text(encoding="utf-8"),
        description=description,
        axes=tuple(axes),
        bases=bases,
        condition=(
            parse_condition(content["where"], columns, file, "where")
            if "where" in content
            else None
        ),
        points_per_job_wanted=content.get("points_per_job"),
        plots=parse_plots(content.get("plots", []), file, description or name),
        csv=content.get("csv", False),
        sensitivity=_sensitivity(content.get("sensitivity", False), file, description or name),
    )


def _sensitivity(content: object, file: str, title: str) -> SweepPlan | None:
    if content is False:
        return None
    # Few sweeps ask for it, and the others need not wait for it to be imported.
    from deepflow.sensitivity.sweeps import parse_sensitivity

    return parse_sensitivity(content, file, title)


def _changes(
    groups: Iterable[Sequence[tuple[Setting, ...]]],
    hardware: HardwareConfig,
    model: ModelConfig,
    file: str,
) -> list[tuple[Changes, ...]]:
    """What each position of each group changes; no two groups may change the same key."""
    changes = [
        tuple(canonical_settings(settings, hardware, model, file) for settings in group)
        for group in groups
    ]
    seen: set[str] = set()
    for positions in changes:
        for key in _varied(positions):
            if key in seen:
                raise set_twice(key, file)
            seen.add(key)
    return changes


def _varied(positions: Sequence[Changes]) -> list[str]:
    """The keys that an axis sets, the same ones at each of its positions."""
    hardware, model = positions[0]
    return [f"hardware.{key}" for key in hardware] + [f"model.{key}" for key in model]


def _base(
    hardware_file: str,
    hardware: HardwareConfig,
    model_file: str,
    model: ModelConfig,
    changes: Sequence[tuple[Changes, ...]],
    files: tuple[int, int],
    framework_file: str | None,
) -> Base:
    lines = identity.configuration_lines(hardware, model)
    varied = [key for positions in changes for key in _varied(positions)]
    unchanged: Changes = ({}, {})
    return Base(
        hardware_file,
        model_file,
        hardware,
        model,
        ((unchanged,) * files[0], (unchanged,) * files[1], *changes),
        identity.DigestTemplate(lines, varied),
        framework_file,
    )


def _file_axis(kind: str, files: Sequence[str], names: Mapping[str, str], file: str) -> Axis:
    stems = [Path(name).stem for name in files]
    if kind not in names:
        return Axis((), ("",), ({},), ((),))
    labels = [f"{kind}={identity.value_text(stem)}" for stem in stems]
    _refuse_duplicates(labels, files, kind, file)
    return Axis((kind,), tuple(labels), tuple({kind: stem} for stem in stems), ((),) * len(files))


def _technology(
    given: object,
    hardware: Sequence[HardwareConfig],
    model: ModelConfig,
    fixed: Sequence[Setting],
    file: str,
) -> dict[str, dict[str, tuple[Setting, ...]]]:
    """Kind -> entry -> what it sets, but for keys under ``set``, which win.

    Entries of a kind set the same keys, as the positions of an axis do: what one of them leaves
    alone is set to the value that the hardware file has.
    """
    keys = check_object(given, TECHNOLOGY_SCHEMA, file, "technology")
    kinds = [kind for kind in KINDS if kind in keys]
    if kinds and len(hardware) > 1:
        raise ConfigError(
            "changes what a hardware file has, and there are several", file=file, key="technology"
        )
    taken = canonical_settings(fixed, hardware[0], model, file)[0]
    found: dict[str, dict[str, tuple[Setting, ...]]] = {}
    for kind in kinds:
        place = f"technology.{kind}"
        entries: dict[str, dict[str, object]] = {}
        for name in named(keys, kind, file):
            settings = technology_settings(kind, name, hardware[0], keys.get("logic_of_file"), file)
            each = [Setting(path, value, place) for path, value in settings.items()]
            entries[name] = canonical_settings(each, hardware[0], model, file)[0]
        every = dict.fromkeys(path for values in entries.values() for path in values)
        if taken.keys() >= every.keys():
            raise ConfigError("changes nothing that set leaves open", file=file, key=place)
        own = flatten(hardware[0])
        found[kind] = {
            name: tuple(
                Setting(f"hardware.{path}", values.get(path, own[path]), place)
                for path in every
                if path not in taken
            )
            for name, values in entries.items()
        }
    return found


def _technology_axis(short: str, chosen: Mapping[str, tuple[Setting, ...]]) -> Axis:
    labels = [f"{short}={identity.value_text(name)}" for name in chosen]
    return Axis(
        (short,), tuple(labels), tuple({short: name} for name in chosen), tuple(chosen.values())
    )


def _axis(
    group: Sequence[tuple[Setting, ...]],
    changes: Sequence[Changes],
    names: Mapping[str, str],
    file: str,
) -> Axis:
    short = tuple(names[setting.path] for setting in group[0])
    labels, columns = [], []
    for settings, (hardware, model) in zip(group, changes, strict=True):
        texts = [identity.value_text(setting.value) for setting in settings]
        labels.append(
            identity.JOINT.join(f"{name}={text}" for name, text in zip(short, texts, strict=True))
        )
        # Each setting adds one key to one side, in order.
        of_hardware, of_model = iter(hardware.values()), iter(model.values())
        columns.append(
            {
                name: next(of_model if setting.path.startswith("model.") else of_hardware)
                for name, setting in zip(short, settings, strict=True)
            }
        )
    place = " and ".join(setting.place for setting in group[0])
    given = [", ".join(str(setting.value) for setting in settings) for settings in group]
    _refuse_duplicates(labels, given, place, file)
    _refuse_duplicates([repr(values) for values in columns], given, place, file)
    return Axis(short, tuple(labels), tuple(columns), tuple(group))


def _refuse_duplicates(texts: Sequence[str], given: Sequence[str], place: str, file: str) -> None:
    """Two positions with one text would be two points with one id, or one point twice."""
    seen: dict[str, int] = {}
    for position, text in enumerate(texts):
        if text in seen:
            raise ConfigError(
                f"values {seen[text] + 1} ({given[seen[text]]}) and {position + 1}"
                f" ({given[position]}) make the same point",
                file=file,
                key=place,
            )
        seen[text] = position


def _refuse_equal_names(
    configs: Sequence[HardwareConfig | ModelConfig], files: Sequence[str], kind: str, file: str
) -> None:
    """A copied file often keeps its ``name:``, by which tables and plots tell rows apart."""
    seen: dict[str, str] = {}
    for config, path in zip(configs, files, strict=True):
        # A file that is listed twice is another mistake, which the axis refuses.
        if seen.setdefault(config.name, path) != path:
            raise ConfigError(
                f"{seen[config.name]} and {path} have the same name '{config.name}',"
                " so that results could not be told apart; change one",
                file=file,
                key=kind,
            )


def _files(given: object, key: str, file: str) -> list[str]:
    """Paths as given if they exist in the working directory, else beside the sweep file."""
    names = given if isinstance(given, list) else [given]
    if not names:
        raise ConfigError("names no file", file=file, key=key)
    return [find_file(name, key, file) for name in names]


def _grid(grid: Mapping[Any, object], file: str) -> list[list[tuple[Setting, ...]]]:
    return [
        [(Setting(str(path), value, f"grid.{path}"),) for value in _values(given, place, file)]
        for path, given in grid.items()
        for place in [f"grid.{path}"]
    ]


def _zip(groups: Sequence[object], file: str) -> list[list[tuple[Setting, ...]]]:
    axes = []
    for number, group in enumerate(groups, 1):
        if not isinstance(group, dict) or not group:
            raise ConfigError(
                "must be a mapping of axes", file=file, key=f"zip[{number}]", value=group
            )
        columns = {
            str(path): _values(values, f"zip[{number}].{path}", file)
            for path, values in group.items()
        }
        lengths = {path: len(values) for path, values in columns.items()}
        if len(set(lengths.values())) > 1:
            counted = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            raise ConfigError(
                f"axes that move together differ in length: {counted}",
                file=file,
                key=f"zip[{number}]",
            )
        axes.append(
            [
                tuple(
                    Setting(path, value, f"zip[{number}].{path}")
                    for path, value in zip(columns, row, strict=True)
                )
                for row in zip(*columns.values(), strict=True)
            ]
        )
    return axes


def _values(given: object, place: str, file: str) -> list[object]:
    """The values of an axis: a list as it stands, or a range written out."""
    if isinstance(given, list):
        if not given:
            raise ConfigError("is an axis without values", file=file, key=place)
        return [_scalar(value, place, file) for value in given]
    if not isinstance(given, dict):
        raise ConfigError(
            "is not an axis; a value for all points belongs under set",
            file=file,
            key=place,
            value=given,
            allowed="a list, {start, stop, step} or {log2: [first, limit]}",
        )
    if set(given) == {"log2"}:
        bounds = given["log2"]
        if not (isinstance(bounds, list) and len(bounds) == 2):
            raise ConfigError("must be [first, limit]", file=file, key=f"{place}.log2")
        first, limit = (_number(bound, f"{place}.log2", file) for bound in bounds)
        if not 0 < first <= limit:
            raise ConfigError("needs 0 < first <= limit", file=file, key=place, value=bounds)
        # The quotient of the bounds may be too large for a number; that of logarithms is not.
        doublings = int(math.log2(limit) - math.log2(first) + 1e-9)
        values = [first]
        for _ in range(doublings):
            values.append(2 * values[-1])
        return values
    if set(given) != {"start", "stop", "step"}:
        raise ConfigError(
            "is not a range",
            file=file,
            key=place,
            value=given,
            allowed="{start, stop, step} or {log2: [first, limit]}",
        )
    start, stop, step = (
        _number(given[key], f"{place}.{key}", file) for key in ("start", "stop", "step")
    )
    if step == 0 or (stop - start) / step < 0:
        raise ConfigError("never reaches stop", file=file, key=place, value=given)
    steps = (stop - start) / step
    if steps >= MOST_POINTS:
        raise ConfigError(
            "has too many values",
            file=file,
            key=place,
            value=given,
            allowed=f"at most {MOST_POINTS:,}",
        )
    count = int(steps + 1e-9) + 1
    if all(isinstance(number, int) for number in (start, stop, step)):
        return [start + index * step for index in range(count)]
    # Twelve digits: 0.1 + 2 * 0.1 is meant to be 0.3.
    return [float(f"{start + index * step:.12g}") for index in range(count)]


def _sample(
    sample: Mapping[str, Any], hardware: HardwareConfig, model: ModelConfig, file: str
) -> list[tuple[Setting, ...]]:
    """Draws as one axis. Draws that coincide, as whole numbers do, are made once.

    ``random`` draws point after point, so a larger count keeps the points of a smaller one.
    ``latin_hypercube`` cuts every axis into ``count`` equal parts and draws once from each.
    """
    content = check_object(sample, SWEEP_SCHEMA["properties"]["sample"], file, "sample")
    if content["count"] > MOST_POINTS:
        raise ConfigError(
            "is too large",
            file=file,
            key="sample.count",
            value=content["count"],
            allowed=f"at most {MOST_POINTS:,}",
        )
    if not content["axes"]:
        raise ConfigError("names no axis", file=file, key="sample.axes")
    generator = random.Random(content.get("seed", 0))
    count = content["count"]
    places = {path: f"sample.axes.{path}" for path in content["axes"]}
    draw = {
        path: _distribution(path, spec, places[path], hardware, model, file)
        for path, spec in content["axes"].items()
    }
    if content["method"] == "random":
        quantiles = [[generator.random() for _ in draw] for _ in range(count)]
    else:
        strata = [generator.sample(range(count), count) for _ in draw]
        quantiles = [
            [(part + generator.random()) / count for part in parts]
            for parts in zip(*strata, strict=True)
        ]
    rows = [
        tuple(
            Setting(path, quantile_to_value(quantile), places[path])
            for (path, quantile_to_value), quantile in zip(draw.items(), row, strict=True)
        )
        for row in quantiles
    ]
    return list(dict.fromkeys(rows))


def _distribution(
    path: str,
    spec: object,
    place: str,
    hardware: HardwareConfig,
    model: ModelConfig,
    file: str,
) -> Callable[[float], object]:
    """The function from a quantile in [0, 1) to a value of this axis."""
    drawn = SWEEP_SCHEMA["properties"]["sample"]["properties"]["axes"]["additionalProperties"]
    interval, choice = drawn["oneOf"]
    if isinstance(spec, dict) and "choices" in spec:
        choices = check_object(spec, choice, file, place)["choices"]
        values = _values(choices, f"{place}.choices", file)
        return lambda quantile: values[int(quantile * len(values))]
    content = check_object(spec, interval, file, place)
    bounds = []
    for key in ("low", "high"):
        setting = Setting(path, content[key], f"{place}.{key}")
        changes = canonical_settings([setting], hardware, model, file)
        bounds.append(next(iter((changes[0] | changes[1]).values())))
    low, high = (_number(bound, place, file) for bound in bounds)
    logarithmic, whole = content.get("scale") == "log", content.get("integer", False)
    if low > high or (logarithmic and low <= 0):
        raise ConfigError(
            "needs low <= high, and low > 0 on a log scale", file=file, key=place, value=spec
        )

    def value(quantile: float) -> object:
        if logarithmic:
            drawn = low * (high / low) ** quantile
        elif whole:
            return min(int(low + quantile * (high - low + 1)), int(high))
        else:
            drawn = low + quantile * (high - low)
        # Six digits keep ids readable and are finer than any design decision.
        return round(drawn) if whole else float(f"{drawn:.6g}")

    return value


def _scalar(value: object, place: str, file: str) -> object:
    if isinstance(value, (dict, list)):
        raise ConfigError("must be a single value", file=file, key=place, value=value)
    return value


def _number(value: object, place: str, file: str) -> Any:
    # Whole numbers have no greatest one, but those that no float holds are mistakes.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e300:
        raise ConfigError("must be a finite number", file=file, key=place, value=value)
    return value
