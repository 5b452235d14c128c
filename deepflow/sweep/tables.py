"""Rows to ``summary.parquet``: typed columns with units and meaning, metadata in the schema.

Point files and shards are read one after the other, so memory does not grow with the sweep.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.batch import PointError, empty_columns, predict_points
from deepflow.config import flatten
from deepflow.config.schema import key_at
from deepflow.errors import DeepFlowError
from deepflow.files import all_unusable, atomic_output, unusable
from deepflow.prediction import COLUMNS, Column
from deepflow.sweep import identity
from deepflow.sweep.points import Base, Shard, Sweep
from deepflow.sweep.run import VERSIONS
from deepflow.sweep.settings import Setting, canonical_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from deepflow.sweep.points import Numbers

METADATA_KEY = b"deepflow"
ROWS_AT_ONCE = 10_000
PREDICTED_TOGETHER = 32_768
SECONDS_BETWEEN_REPORTS = 5

_BEFORE = {
    "point": Column(str, "", "readable id: the axes and their values"),
    "hardware": Column(str, "", "name of the hardware configuration"),
    "model": Column(str, "", "name of the model configuration"),
}
_AFTER = {
    "digest": Column(str, "", "fingerprint of everything that the prediction depends on"),
    "deepflow_version": Column(str, "", "version of DeepFlow that made the row"),
    "model_version": Column(str, "", "version of the performance model"),
}


def axis_columns(sweep: Sweep) -> dict[str, str]:
    """Short name of an axis -> its column: itself, or ``axis_<name>`` if a result has the name.

    The axes ``hardware`` and ``model`` are the columns of these names that every table has.
    """
    taken = COLUMNS.keys() | _AFTER.keys() | {"point"}
    return {
        name: f"axis_{name}" if name in taken else name
        for name in sweep.axis_names
        if name not in ("hardware", "model")
    }


def summary_columns(sweep: Sweep) -> dict[str, Column]:
    """All columns of a sweep's table, in order."""
    axes: dict[str, Column] = {}
    columns = axis_columns(sweep)
    for axis in sweep.axes:
        for name, setting in zip(axis.names, axis.settings[0], strict=False):
            values = [row[name] for row in axis.columns]
            # An entry of a technology sets many keys, and its name has no unit.
            chosen = setting.place.startswith("technology.")
            unit, path = ("", setting.place) if chosen else (_unit(sweep, setting), setting.path)
            axes[columns[name]] = Column(_common_type(values), unit, f"axis {path}")
    return {**_BEFORE, **axes, **COLUMNS, **_AFTER}


def _unit(sweep: Sweep, setting: Setting) -> str:
    """SI unit of the key that ``setting`` sets, "" for a count, a choice or a fraction."""
    base = sweep.bases[0][0]
    changes = canonical_settings([setting], base.hardware, base.model, sweep.file)
    for config, values in zip((base.hardware, base.model), changes, strict=True):
        for path in values:
            return key_at(type(config), path).option.unit
    raise AssertionError("a setting sets one key")


def _common_type(values: Iterable[object]) -> type:
    types = {type(value) for value in values if value is not None}
    if len(types) == 1:
        return types.pop()
    return float if types == {int, float} else str


def arrow_fields(columns: Mapping[str, Column]) -> list[pa.Field]:
    """Arrow fields of ``columns``, by name, with their units and meanings."""
    import pyarrow as pa

    types = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    return [
        pa.field(
            name, types[column.dtype], metadata={"unit": column.unit, "description": column.doc}
        )
        for name, column in columns.items()
    ]


def summary_schema(sweep: Sweep) -> pa.Schema:
    """Arrow schema with the unit and meaning of each column and a description of the sweep."""
    import pyarrow as pa

    bases = [base for row in sweep.bases for base in row]
    about = {
        "sweep": sweep.name,
        "description": sweep.description,
        "points": sweep.count,
        "sweep_yaml": sweep.text,
        "configurations": {
            "hardware": {base.hardware.name: flatten(base.hardware) for base in bases},
            "model": {base.model.name: flatten(base.model) for base in bases},
        },
        **VERSIONS,
    }
    return pa.schema(
        arrow_fields(summary_columns(sweep)), metadata={METADATA_KEY: json.dumps(about).encode()}
    )


def write_shard(sweep: Sweep, name: str, output: str | Path) -> None:
    """Predict the points of one shard and write them to ``output``.

    Raises DeepFlowError, naming the point, if one fails; then there is no file.
    """
    shard = sweep.shard(name)
    schema = summary_schema(sweep).with_metadata({b"shard_digest": shard.digest.encode()})
    write_tables(_predicted_tables(sweep, shard, schema), schema, output)


def _predicted_tables(sweep: Sweep, shard: Shard, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a shard, with progress on stderr every few seconds."""
    total, what = len(shard.numbers), f"{sweep.name} {shard.name}"
    started = reported = time.monotonic()
    for first in range(0, total, PREDICTED_TOGETHER):
        now = time.monotonic()
        if now - reported >= SECONDS_BETWEEN_REPORTS:
            reported = now
            rate = first / (now - started)
            print(
                f"{what}: {first} of {total} points, {rate:.0f} points/s,"
                f" {(total - first) / rate:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        positions = sweep.positions(shard.numbers[first : first + PREDICTED_TOGETHER])
        yield _predicted_table(sweep, positions, schema)
    seconds = time.monotonic() - started
    print(f"{what}: {total} points in {seconds:.1f} s", file=sys.stderr)


def _predicted_table(sweep: Sweep, positions: Numbers, schema: pa.Schema) -> pa.Table:
    """The points at ``positions`` (points, axes), predicted, in columns throughout."""
    import numpy as np
    import pyarrow as pa

    points = len(positions)
    columns: dict[str, Any] = {
        **{name: np.empty(points, object) for name in ("hardware", "model")},
        **empty_columns(points),
        **{name: np.full(points, version, object) for name, version in VERSIONS.items()},
    }
    for base, which in sweep.by_base(positions):
        try:
            predicted = predict_points(base.hardware, base.model, base.overrides, positions[which])
        except PointError as error:
            point = sweep.at(positions[which[error.index]].tolist())
            raise DeepFlowError(f"point {point.id}: {error}") from error
        for name, values in predicted.items():
            columns[name][which] = values
        for side, config in enumerate((base.hardware, base.model)):
            columns[("hardware", "model")[side]][which] = _names(
                config.name, side, base, positions[which]
            )
    labels = []
    shown = axis_columns(sweep)
    for axis, places in zip(sweep.axes, positions.T, strict=True):
        present, which = np.unique(places, return_inverse=True)
        if axis.names:
            labels.append(pa.array([axis.labels[place] for place in present.tolist()]).take(which))
        for name in axis.names:
            if name in shown:
                kind = schema.field(shown[name]).type
                given = [axis.columns[place][name] for place in present.tolist()]
                if pa.types.is_string(kind):
                    given = [None if value is None else str(value) for value in given]
                columns[shown[name]] = pa.array(given, kind).take(which)
    columns["point"] = _ids(labels, points)
    columns["digest"] = sweep.digests(positions)
    return pa.table([_arrow(columns[field.name], field.type) for field in schema], schema=schema)


def _names(name: str, side: int, base: Base, positions: Numbers) -> Any:
    """The name of a configuration of each point: an axis may set it, whatever it is for."""
    import numpy as np

    for axis, places in zip(base.overrides, positions.T, strict=True):
        if "name" in axis[0][side]:
            return np.array([axis[place][side]["name"] for place in places.tolist()], object)
    return name


def _ids(labels: Sequence[pa.Array], points: int) -> pa.Array:
    """``point_id`` of every point; ``labels``: those of each axis that has a name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not labels:
        return pa.array([identity.point_id(())] * points)
    ids = pc.binary_join_element_wise(*labels, identity.JOINT)
    long = pc.greater(pc.binary_length(ids), identity.LONGEST_ID)
    if pc.any(long).as_py():
        shortened = [identity.point_id([text]) for text in ids.filter(long).to_pylist()]
        ids = pc.replace_with_mask(ids, long, pa.array(shortened))
    return ids


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    """An Arrow column; numbers that are None are NaN in ``values``."""
    import numpy as np
    import pyarrow as pa

    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ndarray) and values.dtype == float:
        # Arrow makes nulls of NaN, and booleans of no floats.
        column = pa.array(values, from_pandas=True)
        return column.cast(pa.int8()).cast(kind) if pa.types.is_boolean(kind) else column.cast(kind)
    return pa.array(values, kind)


def gather(sweep: Sweep, results: str | Path, output: str | Path) -> None:
    """Write one table of all points from the files that their jobs left below ``results``.

    Says on stderr how many points fell back to another backend, and why. Raises DeepFlowError for
    a file that is missing, damaged, or made from other settings.
    """
    schema = summary_schema(sweep)
    if sweep.sharded:
        tables = _shard_tables(sweep, Path(results), schema)
    else:
        rows = _point_file_rows(sweep, Path(results))
        tables = _tables(rows, axis_columns(sweep), schema)
    write_tables(tables, schema, output)
    _report_fallbacks(output)


def _report_fallbacks(summary: str | Path) -> None:
    import pyarrow.parquet as pq

    reasons = pq.read_table(summary, columns=["fallback_reason"])["fallback_reason"]
    for found in reasons.value_counts().to_pylist():
        if found["values"]:
            how_many = f"{found['counts']} of {len(reasons)} points"
            print(f"{how_many} fell back to closed forms: {found['values']}", file=sys.stderr)


def write_csv(summary: str | Path, output: str | Path) -> None:
    """The table of ``summary`` (Parquet) as CSV."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(summary)
    except (OSError, pa.ArrowException) as error:
        raise unusable(summary, error) from None
    with (
        atomic_output(output) as temporary,
        pa.csv.CSVWriter(temporary, table.schema_arrow) as writer,
    ):
        for batch in table.iter_batches(ROWS_AT_ONCE):
            writer.write_batch(batch)


def _point_file_rows(sweep: Sweep, results: Path) -> Iterator[dict[str, Any]]:
    problems = []
    for point in sweep.points():
        file = results / "points" / f"{point.id}.json"
        try:
            record = json.loads(file.read_bytes())
            digest = record["digest"]
            row = {name: record[name] for name in COLUMNS}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(unusable(file, error))
            continue
        if digest != point.digest:
            problems.append(unusable(file))
            continue
        yield {
            **row,
            **{name: record.get(name) for name in (*_BEFORE, *_AFTER)},
            "point": point.id,
            "axes": point.axis_values,
        }
    # All of them at once, so that a single further run mends the sweep.
    if problems:
        raise all_unusable(problems)


def _shard_tables(sweep: Sweep, results: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    shards = {
        results / "shards" / f"{name}.parquet": (shard.digest, len(shard.numbers))
        for name, shard in sweep.shards.items()
    }
    yield from read_shards(shards, schema)


def read_shards(
    shards: Mapping[Path, tuple[str, int | None]], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The tables in ``shards``, files with their digests and numbers of rows, one at a time.

    Raises DeepFlowError if any is damaged or made from something else; these are set aside, so
    that the next run makes them again.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems = []
    for file, (expected, rows) in shards.items():
        try:
            table = pq.read_table(file, page_checksum_verification=True)
            digest = table.schema.metadata[b"shard_digest"].decode()
            table = table.select(schema.names).cast(schema)
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            problems.append(unusable(file, error))
            continue
        if digest != expected or rows not in (None, table.num_rows):
            problems.append(unusable(file))
            continue
        yield table
    if problems:
        raise all_unusable(problems)


def _tables(
    rows: Iterator[dict[str, Any]], axes: Mapping[str, str], schema: pa.Schema
) -> Iterator[pa.Table]:
    import pyarrow as pa

    text = {field.name for field in schema if pa.types.is_string(field.type)}
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        for row in chunk:
            for name, value in row.pop("axes").items():
                if name in axes:
                    row[axes[name]] = (
                        str(value) if axes[name] in text and value is not None else value
                    )
            for name, values in columns.items():
                values.append(row[name])
        yield pa.Table.from_pydict(columns, schema=schema)


def write_tables(tables: Iterator[pa.Table], schema: pa.Schema, output: str | Path) -> None:
    """Write ``tables`` one after the other into the Parquet file ``output``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Every point has another id and digest, and numbers seldom repeat.
    repeated = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) and field.name not in ("point", "digest")
    ]
    with (
        atomic_output(output) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=repeated,
            write_page_checksum=True,
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table)
