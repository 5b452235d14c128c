"""The sensitivities of a sweep's points: a file per point or per shard, one table, its figures.

Only sweeps that ask for them (``sensitivity:``) have any. A point costs about a hundred predictions
where no keys are named, so that a shard holds fewer points than one of the sweep itself.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.batch import overridden
from deepflow.config import did_you_mean
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.files import all_unusable, unusable
from deepflow.prediction import Column
from deepflow.sensitivity.analysis import Analysis, Plan, analyse, make_plan
from deepflow.sensitivity.report import PARAMETER_COLUMNS, analysis_record
from deepflow.sweep.schema import SENSITIVITY_SCHEMA, check_object
from deepflow.sweep.tables import (
    ROWS_AT_ONCE,
    arrow_fields,
    axis_columns,
    read_shards,
    summary_columns,
)
from deepflow.sweep.tables import write_tables as write_parquet
from deepflow.sweep.where import Condition, identifier, parse_condition

if TYPE_CHECKING:
    import pyarrow as pa

    from deepflow.sweep.points import Point, Sweep

MOST_POINTS = 100
"""Points of a shard: a minute or two."""

_BEFORE = ("point", "hardware", "model")
_OF_POINT = {
    "status": Column(str, "", "of the point: ok, out_of_memory, or infeasible"),
    "reason": Column(str, "", "why the status is not ok"),
    "objective": Column(str, "", "the column of predictions that changes"),
    "objective_value": Column(float, "", "its value at the point, in its unit"),
}
_AFTER = ("digest", "deepflow_version", "model_version")


@dataclass(frozen=True)
class Figure:
    """A figure that a sweep asks for: the tornado of a point, or what dominates over x and y.

    ``point`` is an id, None for the point with the least time that fits.
    """

    name: str
    kind: str
    title: str
    point: str | None = None
    x: str | None = None
    y: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep asks for."""

    plan: Plan
    figures: tuple[Figure, ...]


_NEEDED = {"tornado": (set(), {"point"}), "dominant": ({"x", "y"}, {"where"})}


def parse_sensitivity(content: object, file: str, title: str) -> SweepPlan | None:
    """The key ``sensitivity`` of a sweep file: true, false or a mapping. Raises ConfigError."""
    if content is False:
        return None
    if content is True:
        return SweepPlan(Plan(), ())
    keys = check_object(content, SENSITIVITY_SCHEMA, file, "sensitivity")
    paths = keys.get("keys", [])
    if not all(isinstance(path, str) for path in paths):
        raise ConfigError("must be a list of keys", file=file, key="sensitivity.keys")
    plan = make_plan(
        keys.get("objective", "time_s"), keys.get("step", 1.0), tuple(paths), file, "sensitivity."
    )
    return SweepPlan(plan, tuple(_figures(keys.get("plots", []), file, title)))


def _figures(content: Sequence[object], file: str, title: str) -> Iterator[Figure]:
    names = set()
    schema = SENSITIVITY_SCHEMA["properties"]["plots"]["items"]
    for number, item in enumerate(content, 1):
        place = f"sensitivity.plots[{number}]"
        keys = check_object(item, schema, file, place)
        needed, possible = _NEEDED[keys["kind"]]
        for key in needed - keys.keys():
            raise ConfigError(f"a {keys['kind']} plot needs it", file=file, key=f"{place}.{key}")
        for key in keys.keys() - needed - possible - {"kind", "name", "title"}:
            raise ConfigError(
                f"means nothing to a {keys['kind']} plot", file=file, key=f"{place}.{key}"
            )
        figure = Figure(**{"name": f"{number}-{keys['kind']}", "title": title, **keys})
        if figure.name in names:
            raise ConfigError("two plots have this name", file=file, key=place, value=figure.name)
        names.add(figure.name)
        yield figure


def check_figures(sweep: Sweep) -> None:
    """Raises ConfigError if a figure names a point or an axis that the sweep does not have."""
    columns = _place_columns(sweep)
    for figure in wanted(sweep).figures:
        place = f"sensitivity.plots: {figure.name}"
        if figure.point is not None:
            sweep.point(figure.point)
        for name in (figure.x, figure.y):
            if name is not None and name not in columns:
                raise ConfigError(
                    f"no axis is called {name!r}{did_you_mean(name, columns)}",
                    file=sweep.file,
                    key=place,
                    allowed=", ".join(columns),
                )
        condition_of(figure, columns, sweep.file)


def _place_columns(sweep: Sweep) -> list[str]:
    """The columns that tell points apart."""
    return ["hardware", "model", *axis_columns(sweep).values()]


def condition_of(figure: Figure, columns: Sequence[str], file: str) -> Condition | None:
    """The condition on points of a figure."""
    if figure.where is None:
        return None
    names = [identifier(name) for name in columns]
    return parse_condition(figure.where, names, file, f"sensitivity.plots: {figure.name}")


def wanted(sweep: Sweep) -> SweepPlan:
    """What ``sweep`` asks for; raises ConfigError if that is nothing."""
    if sweep.sensitivity is None:
        raise ConfigError("the sweep asks for none", file=sweep.file, key="sensitivity")
    return sweep.sensitivity


def figure_of(sweep: Sweep, name: str) -> Figure:
    """The figure of this name; raises ConfigError if the sweep has none."""
    figures = {figure.name: figure for figure in wanted(sweep).figures}
    if name not in figures:
        raise ConfigError(
            f"the sweep has no plot {name!r} of sensitivities{did_you_mean(name, figures)}",
            file=sweep.file,
            allowed=", ".join(figures),
        )
    return figures[name]


def finer(sweep: Sweep) -> Sweep:
    """The same points in shards of at most about ``MOST_POINTS``; unsharded sweeps stay so."""
    if not sweep.sharded:
        return sweep
    return replace(sweep, points_per_job_wanted=min(sweep.points_per_job, MOST_POINTS))


def meaning(digest: str, plan: Plan) -> str:
    """Fingerprint of the analysis of what has the fingerprint ``digest``."""
    return hashlib.sha256(f"{digest} {plan!r}".encode()).hexdigest()[:32]


def sensitivity_columns(sweep: Sweep) -> dict[str, Column]:
    """The columns of the table: a row for each point and parameter."""
    columns = summary_columns(sweep)
    places = [*_BEFORE, *axis_columns(sweep).values()]
    return {
        **{name: columns[name] for name in places},
        **_OF_POINT,
        **PARAMETER_COLUMNS,
        **{name: columns[name] for name in _AFTER},
    }


def _schema(sweep: Sweep) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(arrow_fields(sensitivity_columns(sweep)))


def write_shard(sweep: Sweep, name: str, output: str | Path) -> None:
    """Analyse the points of one shard of ``finer(sweep)`` and write them to ``output``.

    Raises DeepFlowError, naming the point, if one fails; then there is no file.
    """
    plan = wanted(sweep).plan
    shard = finer(sweep).shard(name)
    about = {b"shard_digest": meaning(shard.digest, plan).encode()}
    schema = _schema(sweep).with_metadata(about)
    records = (_analysed(point, plan) for point in sweep.points(shard.numbers))
    rows = (row for record in records for row in _rows(sweep, *record))
    write_parquet(_tables(rows, schema), schema, output)


def _analysed(point: Point, plan: Plan) -> tuple[Point, dict[str, Any]]:
    hardware, model = point.base.hardware, point.base.model
    found: Analysis | InfeasiblePoint
    try:
        found = analyse(
            *overridden(hardware, model, point.hardware_overrides, point.model_overrides), plan
        )
    except InfeasiblePoint as error:
        found = error
    except DeepFlowError as error:
        raise DeepFlowError(f"point {point.id}: {error}") from error
    about = {
        "hardware": point.hardware_overrides.get("name", hardware.name),
        "model": point.model_overrides.get("name", model.name),
        "digest": point.digest,
    }
    return point, analysis_record(plan, about, found)


def _rows(sweep: Sweep, point: Point, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a point; one without parameter if it cannot exist."""
    shown = axis_columns(sweep)
    common = {
        "point": point.id,
        "hardware": record["hardware"],
        "model": record["model"],
        **{column: point.axis_values[name] for name, column in shown.items()},
        **{name: record[name] for name in (*_OF_POINT, *_AFTER)},
    }
    nothing = dict.fromkeys(PARAMETER_COLUMNS)
    for parameter in record["parameters"] or [nothing]:
        yield {**common, **parameter}


def _tables(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    text = [field.name for field in schema if pa.types.is_string(field.type)]
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        for row in chunk:
            for name in text:
                if row[name] is not None:
                    row[name] = str(row[name])
        yield pa.Table.from_pylist(chunk, schema=schema)


def gather(sweep: Sweep, results: str | Path, output: str | Path) -> None:
    """Write one table from the files that jobs left below ``results``/sensitivity.

    Raises DeepFlowError for a file that is missing, damaged, or made from other settings.
    """
    schema = _schema(sweep)
    folder = Path(results) / "sensitivity"
    if sweep.sharded:
        tables = _shard_tables(sweep, folder / "shards", schema)
    else:
        tables = _tables(_point_file_rows(sweep, folder / "points"), schema)
    write_parquet(tables, schema, output)


def _point_file_rows(sweep: Sweep, folder: Path) -> Iterator[dict[str, Any]]:
    plan = wanted(sweep).plan
    asked = (plan.objective, 100 * plan.step, list(plan.keys))
    problems = []
    for point in sweep.points():
        file = folder / f"{point.id}.json"
        try:
            record = json.loads(file.read_bytes())
            made = (record["objective"], record["step_percent"], record["keys"])
            rows = list(_rows(sweep, point, record))
            digest = record["digest"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(unusable(file, error))
            continue
        if digest != point.digest or made != asked:
            problems.append(unusable(file))
            continue
        yield from rows
    if problems:
        raise all_unusable(problems)


def _shard_tables(sweep: Sweep, folder: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    plan = wanted(sweep).plan
    # How many parameters a point has only its prediction tells.
    shards = {
        folder / f"{name}.parquet": (meaning(shard.digest, plan), None)
        for name, shard in finer(sweep).shards.items()
    }
    yield from read_shards(shards, schema)


def draw_figure(sweep: Sweep, name: str, table: str | Path, outputs: Sequence[str | Path]) -> None:
    """Draw a figure from the gathered ``table``. Raises ConfigError if it does not suit it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepflow.sensitivity.plots import draw_dominant, draw_tornado, strongest

    figure, plan = figure_of(sweep, name), wanted(sweep).plan
    try:
        rows = pq.read_table(table).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise unusable(table, error) from None
    if figure.kind == "tornado":
        point = figure.point or _best_point(rows, plan)
        of_point = [row for row in rows if row["point"] == point and row["parameter"] is not None]
        if not of_point:
            raise ConfigError(
                "the point cannot exist, or does not fit in memory",
                file=sweep.file,
                key=f"sensitivity.plots: {figure.name}",
                value=point,
            )
        draw_tornado(
            of_point,
            f"{figure.title}\n{point}",
            plan.objective,
            of_point[0]["objective_value"],
            outputs,
        )
        return
    condition = condition_of(figure, _place_columns(sweep), sweep.file)
    columns = {identifier(column): column for column in _place_columns(sweep)}
    kept = [
        row
        for row in rows
        if condition is None or condition.holds({key: row[columns[key]] for key in condition.names})
    ]
    units = {column: item.unit for column, item in sensitivity_columns(sweep).items()}
    # The same colours in all figures of a sweep.
    strong = [row["parameter"] for row in strongest(rows).values() if row is not None]
    names = [name for name, _ in Counter(strong).most_common()]
    draw_dominant(
        kept,
        names,
        figure.title,
        (str(figure.x), str(figure.y)),
        units,
        plan.objective,
        outputs,
        f"{sweep.file}: sensitivity.plots: {figure.name}",
    )


def _best_point(rows: Sequence[Mapping[str, Any]], plan: Plan) -> str | None:
    """The point with the best objective of those that fit."""
    from deepflow.search.objectives import OBJECTIVES

    fitting = [row for row in rows if row["status"] == "ok"]
    if not fitting:
        return None
    best = (max if OBJECTIVES.get(plan.objective) else min)(
        fitting, key=lambda row: row["objective_value"]
    )
    return str(best["point"])
