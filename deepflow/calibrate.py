"""``deepflow calibrate``: parameters of a device that no data sheet has, from measured operators.

Parameters are fitted in groups, each to the rows that show them (``GROUPS``), one group
after the other and all of them again until nothing changes, because each is seen through what the
others say. The values of a group are those of the least

    sum over rows of soft_l1(log(predicted / measured))

with soft_l1(r) = 2 s^2 (sqrt(1 + (r / s)^2) - 1), nearly a square where r is small and an absolute
value where it is large, so that kernels which are slow for reasons that no model knows count little
(Huber, "Robust Statistics", 1981). s is the noise between measurements. The search is a
trust-region one within the bounds of the keys (Branch, Coleman and Li, 1999;
``scipy.optimize.least_squares``): predictions are continuous in all parameters, and smooth but for
kinks where another part of the device becomes the slowest.

A fifth of the rows is held out and only reported. Whole runs are refused: they are there to check
what comes out.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepflow.command_line import command
from deepflow.config import (
    HardwareConfig,
    canonical_override,
    did_you_mean,
    flatten,
    load_hardware_config,
    parse_yaml_value,
    read_yaml,
    with_overrides,
)
from deepflow.config.editing import Edit, edit_hardware_text, keys_along, move_base
from deepflow.config.old_style import translate
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.files import atomic_output, to_json
from deepflow.hardware import derive_hardware
from deepflow.record import record
from deepflow.validate import read_table, training
from deepflow.validate.machines import machine_name, plain_name
from deepflow.validate.rows import (
    COLLECTIVES,
    kernel_of,
    measured_kernel_seconds,
    predicted_kernel_seconds,
)

Floats = npt.NDArray[np.float64]

# One row in so many is held out.
HELD_OUT = 5
# Of one kind of operation; of more rows, those of large classes are thinned out.
MOST_ROWS = 4000
SIZE_CLASS = 4.0  # factor in time
# s above: what one kernel's time varies by from run to run.
NOISE = 0.03
ROUNDS = 10
DIGITS = 3
# Relative fall of the objective for which a value is replaced.
WORTH = 1e-3

# A parameter is fitted if a step changes LEAST_ROWS predictions by LEAST_EFFECT, and LEAST_APART of
# what it does is not what steps of the others do as well. Relative, but at least, by unit:
STEP = 0.05
STEPS = {"": 0.05, "s": 1e-6}
LEAST_ROWS = 10
LEAST_EFFECT = 2e-3
LEAST_APART = 0.1
SMALLEST_FRACTION = 0.01

# By unit: where shares of times are looked at, and by what change of it.
TYPICAL = {"": 0.8, "s": 3e-6}
LESS = 0.98

PLAIN_DTYPES = ("bfloat16", "bf16", "float16", "fp16")
PRODUCT, PROMPT, GENERATION = "gemm", "attention_prefill", "attention_decode"
MARK = "calibrated"

_LAUNCH = "sw_param.kernel_launch_overhead"
_CORE = "tech_param.core."
_MEMORY = "tech_param.DRAM.util"
_RATES = _CORE + "attention_rates."
_ATTENTION = (
    _CORE + "attention_util",
    _RATES + "flash_attention_2",
    _RATES + "flash_attention_3",
    _RATES + "tensorrt_llm",
    _RATES + "trtllm_gen",
)
_WITHIN, _BETWEEN = "tech_param.network.intra_node.", "tech_param.network.inter_node."
_LINK_KEYS = ("util", "latency", "handshake", "reduction_util", "reduction_latency")


@record(frozen=True)
class Group:
    """Parameters that are fitted together, and the kinds of rows that they are fitted to.

    ``least_share``: of rows that depend on other parameters as well, those count of whose
    predicted time ``shown_by`` has at least this share. ``between_nodes``: collectives that cross
    the network between nodes, or those that do not.
    """

    name: str
    parameters: tuple[str, ...]
    kinds: tuple[str, ...]
    shown_by: tuple[str, ...] = ()
    least_share: float = 0.0
    between_nodes: bool | None = None


# In this order: rows that show a group hardly depend on those behind it.
GROUPS = (
    Group("kernel launch", (_LAUNCH,), (PRODUCT,), (_LAUNCH,), 0.7),
    Group("device memory", (_MEMORY,), (PRODUCT, GENERATION), (_MEMORY,), 0.8),
    Group(
        "products",
        (_CORE + "util", _CORE + "split_latency", _CORE + "exposed_epilogue"),
        (PRODUCT,),
        (_CORE + "util",),
        0.2,
    ),
    Group("products of attention", _ATTENTION, (PROMPT, GENERATION), _ATTENTION, 0.5),
    Group("latency of attention", (_CORE + "attention_block_latency",), (PROMPT, GENERATION)),
    Group(
        "links within a node",
        tuple(_WITHIN + key for key in _LINK_KEYS),
        COLLECTIVES,
        between_nodes=False,
    ),
    Group(
        "links between nodes",
        tuple(_BETWEEN + key for key in _LINK_KEYS),
        COLLECTIVES,
        between_nodes=True,
    ),
)
PARAMETERS = tuple(path for group in GROUPS for path in group.parameters)
KINDS = frozenset(kind for group in GROUPS for kind in group.kinds)


@record(frozen=True)
class Measurement:
    """A row of a table; ``seconds`` measured. ``size_class``: rows alike in operation and size."""

    row: Mapping[str, str]
    table: str
    kind: str
    seconds: float
    size_class: tuple[str, ...]
    hashed: int

    @property
    def held_out(self) -> bool:
        return self.hashed % HELD_OUT == 0


@record(frozen=True)
class Errors:
    """Median and mean of |predicted / measured - 1| in per cent; None where there are no rows."""

    rows: int
    median: float | None
    mean: float | None


@record(frozen=True)
class GroupResult:
    """What became of a group: errors before and after on its fitted and on its held-out rows."""

    name: str
    parameters: tuple[str, ...]
    tables: tuple[str, ...]
    fitted: tuple[Errors, Errors]
    held_out: tuple[Errors, Errors]


@record(frozen=True)
class Calibration:
    """Fitted parameters by path, SI units, before (None: not stated) and after.

    ``unchanged``: why other parameters keep their values. ``notes``: what else is worth knowing.
    """

    hardware: str
    before: dict[str, float | None]
    after: dict[str, float]
    groups: tuple[GroupResult, ...]
    unchanged: dict[str, str]
    notes: tuple[str, ...]


def parameter_paths(names: str) -> tuple[str, ...]:
    """``PARAMETERS`` by name, separated by commas: a path, or as much of its end as is unique.

    Raises:
        ConfigError: a name is unknown or could be one of several.
    """
    paths = []
    for name in filter(None, (word.strip() for word in names.split(","))):
        found = [path for path in PARAMETERS if f".{path}".endswith(f".{name}")]
        if len(found) != 1:
            problem = "could be several" if found else "cannot be calibrated"
            ends = [path.split(".", 1)[1] for path in found or PARAMETERS]
            hint = "" if found else did_you_mean(name, ends)
            raise ConfigError(problem + hint, file="--parameters", key=name, allowed=_listed(ends))
        paths.append(found[0])
    return tuple(paths)


def calibrate(
    tables: Sequence[str | Path],
    hardware_file: str | Path,
    parameters: Collection[str] | None = None,
    *,
    every_row: bool = False,
) -> Calibration:
    """Fits parameters of a hardware file to tables of operators and collectives.

    ``parameters``: paths (default: all that the rows determine). Rows count if they name the
    file's machine, with ``every_row`` whatever they name.

    Raises:
        ConfigError: a file cannot be read, a table holds whole runs, no row is of the machine, or a
            path is none of ``PARAMETERS``.
    """
    for path in parameters or ():
        if path not in PARAMETERS:
            raise ConfigError("cannot be calibrated", key=path, allowed=_listed(PARAMETERS))
    original = load_hardware_config(hardware_file)
    measurements, notes = _measurements(tables, original, every_row)
    plans = [_plan(group, original, measurements, parameters) for group in GROUPS]
    config = _settled(original, plans, notes)
    fitted = [plan for plan in plans if plan.parameters]
    unchanged = {path: reason for plan in plans for path, reason in plan.reasons.items()}
    stated = flatten(original)
    paths = [path for plan in fitted for path in plan.parameters]
    return Calibration(
        original.name,
        {path: None if stated[path] is None else _start(original, path) for path in paths},
        {path: _start(config, path) for path in paths},
        tuple(_result(plan, original, config) for plan in fitted),
        unchanged,
        tuple(notes),
    )


@record(frozen=True)
class _Plan:
    """``rows`` of a group, held-out ones included, what they determine, and why not the rest."""

    group: Group
    rows: tuple[Measurement, ...]
    parameters: tuple[str, ...]
    reasons: dict[str, str]

    @property
    def fitted_rows(self) -> list[Measurement]:
        return [row for row in self.rows if not row.held_out]

    @property
    def held_out_rows(self) -> list[Measurement]:
        return [row for row in self.rows if row.held_out]


def _plan(
    group: Group,
    config: HardwareConfig,
    measurements: Sequence[Measurement],
    parameters: Collection[str] | None,
) -> _Plan:
    wanted, reasons = _wanted(group, config, parameters)
    plan = _Plan(group, tuple(_rows_of(group, config, measurements)), (), reasons)
    kept, undetermined = _determined(config, wanted, plan.fitted_rows)
    return _Plan(group, plan.rows, kept, reasons | undetermined)


def _settled(config: HardwareConfig, plans: Sequence[_Plan], notes: list[str]) -> HardwareConfig:
    """Fits group by group until no value changes."""
    for _ in range(ROUNDS):
        before = config
        for plan in plans:
            if plan.parameters:
                config = _fitted(config, plan.parameters, plan.fitted_rows)
        if config == before:
            return config
    notes.append(f"values still changed after {ROUNDS} rounds")
    return config


def _result(plan: _Plan, before: HardwareConfig, after: HardwareConfig) -> GroupResult:
    return GroupResult(
        plan.group.name,
        plan.parameters,
        tuple(sorted({row.table for row in plan.rows})),
        (_errors(before, plan.fitted_rows), _errors(after, plan.fitted_rows)),
        (_errors(before, plan.held_out_rows), _errors(after, plan.held_out_rows)),
    )


# --- Rows -----------------------------------------------------------------------------------


def _measurements(
    tables: Sequence[str | Path], config: HardwareConfig, every_row: bool
) -> tuple[list[Measurement], list[str]]:
    """Rows of the machine that can be predicted, and what happened to the others."""
    names = {plain_name(name) for name in (config.name, *config.aliases)}
    hardware = derive_hardware(config)
    found: list[Measurement] = []
    others: set[str] = set()
    problems: Counter[str] = Counter()
    for table in tables:
        rows = read_table(table)
        name = Path(table).name.removesuffix(".gz").removesuffix(".csv")
        if any(kernel_of(row) is None and training.recognise(row) for row in rows):
            raise ConfigError(
                "holds whole runs, which check parameters and do not set them: what a run adds to"
                " its operators would end up in them",
                file=str(table),
                allowed="tables of operators and collectives",
            )
        if not any(kernel_of(row) for row in rows):
            raise ConfigError(
                "has no operators or collectives", file=str(table), allowed=", ".join(sorted(KINDS))
            )
        for row in rows:
            if not every_row and plain_name(machine_name(row)) not in names:
                others.add(machine_name(row) or "no machine")
                continue
            try:
                reason = _not_of_use(row)
                if not reason:
                    predicted_kernel_seconds(row, hardware)
                    found.append(_measurement(row, name))
            except DeepFlowError as error:
                reason = str(error)
            except (KeyError, ValueError) as error:
                reason = f"a column is missing or not a number: {error}"
            if reason:
                problems[f"{name}: {reason}"] += 1
    notes = [f"{count} rows are left out: {problem}" for problem, count in problems.items()]
    if not found and notes:
        raise ConfigError(_listed(notes), file=config.file)
    if not found:
        raise ConfigError(
            f"the tables have no row of this machine, only of {_listed(sorted(others))};"
            " --all-rows takes them as its own",
            file=config.file,
            allowed=_listed([config.name, *config.aliases]),
        )
    return _thinned(found, notes), notes


def _not_of_use(row: Mapping[str, str]) -> str:
    """Why a row says nothing about the parameters that are fitted, or ""."""
    kind = kernel_of(row)
    if kind not in KINDS:
        return f"op {row.get('op')!r} says nothing about the parameters"
    if kind == PRODUCT and row["dtype"].partition(" ")[0] not in PLAIN_DTYPES:
        return "products that convert their operands do more than multiply"
    if kind in COLLECTIVES and row.get("library", "nccl") != "nccl":
        return "links are fitted to NCCL"
    return ""


def _measurement(row: Mapping[str, str], table: str) -> Measurement:
    kind = kernel_of(row)
    assert kind is not None
    seconds = measured_kernel_seconds(row)
    if seconds <= 0:
        raise DeepFlowError("the measured time is not positive")
    size = math.floor(math.log(seconds, SIZE_CLASS))
    return Measurement(
        row,
        table,
        kind,
        seconds,
        (table, kind, row.get("kernel_source", ""), row.get("ranks", ""), str(size)),
        zlib.crc32(repr(sorted(row.items())).encode()),
    )


def _thinned(measurements: list[Measurement], notes: list[str]) -> list[Measurement]:
    """At most MOST_ROWS of each kind, the same ones every time; small classes stay whole."""
    kept = []
    for kind in sorted(KINDS):
        of_kind = sorted(
            (item for item in measurements if item.kind == kind), key=lambda item: item.hashed
        )
        if len(of_kind) > MOST_ROWS:
            seen: Counter[tuple[str, ...]] = Counter()
            place = {}
            for item in of_kind:
                seen[item.size_class] += 1
                place[id(item)] = seen[item.size_class]
            notes.append(f"{MOST_ROWS} of {len(of_kind)} rows of {kind} are used")
            of_kind = sorted(of_kind, key=lambda item: place[id(item)])[:MOST_ROWS]
        kept += of_kind
    return kept


def _rows_of(
    group: Group, config: HardwareConfig, measurements: Sequence[Measurement]
) -> list[Measurement]:
    """The rows that a group is fitted to.

    What shares of the time are is judged at typical values of the parameters and not at those that
    change from round to round, so that the same rows are found whatever the values are.
    """
    rows = [item for item in measurements if item.kind in group.kinds]
    if not rows:
        return rows
    if group.between_nodes is not None:
        # Whatever the algorithm, it waits for the latency of a network that it crosses.
        path = _BETWEEN + "latency"
        later = _start(config, path) + 1.0
        crossing = _predicted(config, {path: later}, rows) > _predicted(config, {}, rows) + 0.5
        return [
            row
            for row, crosses in zip(rows, crossing, strict=True)
            if crosses == group.between_nodes
        ]
    if not group.shown_by:
        return rows
    stated = flatten(config)
    typical: dict[str, object] = {
        path: TYPICAL[_unit(path)]
        for path in PARAMETERS
        if not path.startswith((_WITHIN, _BETWEEN))
        and not (path.startswith(_RATES) and stated[path] is None)
    }
    less = {path: LESS * TYPICAL[_unit(path)] for path in group.shown_by if path in typical}
    change = _predicted(config, typical | less, rows) / _predicted(config, typical, rows)
    share = np.abs(np.log(change)) / -math.log(LESS)
    return [row for row, part in zip(rows, share, strict=True) if part >= group.least_share]


# --- Fitting --------------------------------------------------------------------------------


def _unit(path: str) -> str:
    return keys_along(path)[-1].option.unit


def _bounds(path: str) -> tuple[float, float]:
    """Least and largest value, SI units."""
    described = keys_along(path)[-1].option
    low = SMALLEST_FRACTION if described.minimum is None else described.minimum
    if described.maximum is not None:
        return low, described.maximum
    assert described.plausible is not None  # The times among PARAMETERS have one.
    return low, described.plausible[1]


def _start(config: HardwareConfig, path: str) -> float:
    """The value in force: of parts of attention's rate, what stands in for one that is missing."""
    value = flatten(config)[path]
    core = config.tech_param.core
    if value is None and path.startswith(_RATES):
        return core.attention_fraction(path.removeprefix(_RATES))
    if value is None:
        value = core.util  # of attention_util, the only other one that may be missing
    assert isinstance(value, int | float)
    return float(value)


def _wanted(
    group: Group, config: HardwareConfig, parameters: Collection[str] | None
) -> tuple[list[str], dict[str, str]]:
    """The group's parameters that were asked for, and why others are not fitted."""
    if parameters is not None:
        return [path for path in group.parameters if path in parameters], {}
    stated = flatten(config)
    reasons = {}
    for path in group.parameters:
        if path.startswith(_RATES) and stated[path] is None:
            reasons[path] = "the file does not state it; attention_util stands for it"
        if path.endswith("reduction_util") and stated[path] == 0:
            reasons[path] = "the file says that the switch does not reduce"
    return [path for path in group.parameters if path not in reasons], reasons


def _predicted(
    config: HardwareConfig, values: Mapping[str, object], rows: Sequence[Measurement]
) -> Floats:
    """Seconds of each row."""
    hardware = derive_hardware(with_overrides(config, values) if values else config)
    return np.array([predicted_kernel_seconds(item.row, hardware) for item in rows])


def _determined(
    config: HardwareConfig, paths: Sequence[str], rows: Sequence[Measurement]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The parameters that the rows determine, and why they do not determine the others."""
    reasons: dict[str, str] = {}
    kept: list[str] = []
    directions: list[Floats] = []
    if rows:
        now = np.log(_predicted(config, {}, rows))
    for path in paths:
        if not rows:
            reasons[path] = "there are no rows for it"
            continue
        value = _start(config, path)
        step = max(STEPS[_unit(path)], STEP * value)
        changed = value + step if value + step <= _bounds(path)[1] else value - step
        effect = np.log(_predicted(config, {path: changed}, rows)) - now
        touched = int(np.count_nonzero(np.abs(effect) >= LEAST_EFFECT))
        apart = effect
        for direction in directions:
            apart = apart - direction * float(direction @ apart)
        if touched < LEAST_ROWS:
            rows_seen = f"only {touched} rows depend" if touched else "no row depends"
            reasons[path] = f"{rows_seen} on it"
        elif float(np.linalg.norm(apart)) < LEAST_APART * float(np.linalg.norm(effect)):
            others = _listed([_short(item) for item in kept])
            reasons[path] = f"the rows cannot tell it from {others}"
        else:
            kept.append(path)
            directions.append(apart / float(np.linalg.norm(apart)))
    return tuple(kept), reasons


def _fitted(
    config: HardwareConfig, paths: Sequence[str], rows: Sequence[Measurement]
) -> HardwareConfig:
    """The configuration with the best values at ``paths``, if they are worth replacing it."""
    # SciPy takes longer to import than most commands to run.
    from scipy.optimize import least_squares

    measured = np.log([item.seconds for item in rows])
    steps = np.array([STEPS[_unit(path)] for path in paths])
    # From one on, as SciPy's steps to find slopes are relative.
    low, high = 1 + np.array([_bounds(path) for path in paths]).T / steps
    start = 1 + np.array([_start(config, path) for path in paths]) / steps

    def values_at(scaled: Floats) -> dict[str, float]:
        return dict(zip(paths, ((scaled - 1) * steps).tolist(), strict=True))

    def residuals(values: Mapping[str, object]) -> Floats:
        return np.log(_predicted(config, values, rows)) - measured

    def objective(values: Mapping[str, object]) -> float:
        return float(np.sum(np.sqrt(1 + (residuals(values) / NOISE) ** 2) - 1))

    found = least_squares(
        lambda scaled: residuals(values_at(scaled)),
        np.clip(start, low, high),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=NOISE,
        diff_step=1e-3,
        x_scale=start,
        xtol=1e-4,
        ftol=1e-5,
        max_nfev=50,
    )
    values = {
        path: canonical_override(config, path, parse_yaml_value(_text(path, value)))[1]
        for path, value in values_at(found.x).items()
    }
    if objective(values) >= (1 - WORTH) * objective({}):
        return config
    return with_overrides(config, values)


def _errors(config: HardwareConfig, rows: Sequence[Measurement]) -> Errors:
    if not rows:
        return Errors(0, None, None)
    ratios = _predicted(config, {}, rows) / np.array([item.seconds for item in rows])
    absolute = 100 * np.abs(ratios - 1)
    return Errors(len(rows), float(np.median(absolute)), float(np.mean(absolute)))


# --- Output ---------------------------------------------------------------------------------


def write_calibrated(
    calibration: Calibration,
    hardware_file: str | Path,
    output: str | Path,
    today: date | None = None,
) -> None:
    """Writes the hardware file with the fitted values, each with its date, data and error.

    Everything else stays as it is. ``output`` may be the file itself.

    Raises:
        ConfigError: the file is of the older style, or cannot be edited by lines.
    """
    file, output = Path(hardware_file), Path(output)
    content = read_yaml(file)
    if translate(content, str(file)) is not None:
        raise ConfigError(
            "is of the older style; rewrite it with 'deepflow config upgrade'", file=str(file)
        )
    text = edit_hardware_text(
        file.read_text(encoding="utf-8"), _edits(calibration, today or date.today()), str(file)
    )
    if "base" in content and output.parent.resolve() != file.parent.resolve():
        base = (file.parent / content["base"]).resolve()
        text = move_base(text, Path(relpath(base, output.parent.resolve())).as_posix())
    expected = with_overrides(load_hardware_config(file), calibration.after)
    with atomic_output(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
        # An anchor, say, may stand in several places at once.
        if _meaning(load_hardware_config(temporary)) != _meaning(expected):
            raise ConfigError("edited by lines it would mean something else", file=str(file))


def _edits(calibration: Calibration, today: date) -> dict[str, Edit]:
    edits = {}
    for group in calibration.groups:
        fitted, held_out = group.fitted[1], group.held_out[1]
        remark = (
            f"{MARK} {today.isoformat()} on {_listed(group.tables)} ({fitted.rows} rows),"
            f" median error {_percent(fitted.median)} (held out {_percent(held_out.median)})"
        )
        for path in group.parameters:
            edits[path] = Edit(_text(path, calibration.after[path]), remark, supersedes=MARK)
    return edits


def _meaning(config: HardwareConfig) -> dict[str, object]:
    """All values but the name, which may be the file's."""
    return {path: value for path, value in flatten(config).items() if path != "name"}


def report(calibration: Calibration) -> str:
    """The result as text for a terminal."""
    lines = [f"{'parameter':38} {'before':>12} {'after':>12}"]
    for path, after in calibration.after.items():
        before = calibration.before[path]
        shown = "-" if before is None else _text(path, before)
        lines.append(f"{_short(path):38} {shown:>12} {_text(path, after):>12}")
    heads = " ".join(f"{head:>17}" for head in ("median before", "after", "mean before", "after"))
    lines += ["", f"{'rows':38} {'number':>7} {heads}"]
    for group in calibration.groups:
        for name, (first, last) in (("fitted", group.fitted), ("held out", group.held_out)):
            figures = (first.median, last.median, first.mean, last.mean)
            shown = " ".join(f"{_percent(figure):>17}" for figure in figures)
            lines.append(f"{f'{group.name}, {name}':38} {last.rows:>7} {shown}")
    reasons: dict[str, list[str]] = {}
    for path, reason in calibration.unchanged.items():
        reasons.setdefault(reason, []).append(_short(path))
    if reasons:
        lines += ["", "not fitted"]
    lines += [f"- {reason}: {_listed(paths)}" for reason, paths in reasons.items()]
    if calibration.notes:
        lines += ["", *calibration.notes]
    return "\n".join(lines)


def as_json(calibration: Calibration) -> dict[str, Any]:
    """The result as plain data."""
    return {
        "hardware": calibration.hardware,
        "parameters": {
            path: {"before": calibration.before[path], "after": after, "unit": _unit(path)}
            for path, after in calibration.after.items()
        },
        "groups": [
            {
                "name": group.name,
                "parameters": list(group.parameters),
                "tables": list(group.tables),
                **{
                    rows: {
                        "rows": last.rows,
                        "median_before": first.median,
                        "median_after": last.median,
                        "mean_before": first.mean,
                        "mean_after": last.mean,
                    }
                    for rows, (first, last) in (
                        ("fitted", group.fitted),
                        ("held_out", group.held_out),
                    )
                },
            }
            for group in calibration.groups
        ],
        "not_fitted": dict(calibration.unchanged),
        "notes": list(calibration.notes),
    }


def _text(path: str, value: float) -> str:
    """As a file has it: three digits, times in microseconds."""
    is_time = _unit(path) == "s"
    rounded = float(f"{value * 1e6 if is_time else value:.{DIGITS}g}")
    return f"{rounded:g} us" if is_time else f"{rounded:g}"


def _short(path: str) -> str:
    return path.split(".", 1)[1]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def add_calibrate_command(commands: Any) -> None:
    """Adds ``calibrate`` to the ``deepflow`` command."""
    calibrate = command(
        commands, "calibrate", _calibrate, "fit parameters of a device to measured operators"
    )
    calibrate.add_argument(
        "tables", metavar="TABLE.csv", nargs="+", help="operators or collectives, as for validate"
    )
    calibrate.add_argument("--hardware", metavar="FILE", required=True, help="hardware YAML")
    target = calibrate.add_mutually_exclusive_group()
    target.add_argument("--output", metavar="FILE", help="write the file with new values there")
    target.add_argument("--in-place", action="store_true", help="write it over the file itself")
    calibrate.add_argument(
        "--parameters", metavar="NAMES", help="only these, such as core.util,DRAM.util"
    )
    calibrate.add_argument(
        "--all-rows", action="store_true", help="take rows whatever machine they name"
    )
    calibrate.add_argument("--json", action="store_true", help="the result as JSON")


def _calibrate(options: argparse.Namespace) -> None:
    parameters = None if options.parameters is None else parameter_paths(options.parameters)
    found = calibrate(options.tables, options.hardware, parameters, every_row=options.all_rows)
    output = options.hardware if options.in_place else options.output
    if output is not None:
        write_calibrated(found, options.hardware, output)
    print(to_json(as_json(found)) if options.json else report(found))
