"""Rows to ``summary.parquet``: typed columns with units and meaning, metadata in the schema.

Point files and shards are read one after the other, so memory does not grow with the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import flatten
from deepflow.config.schema import keys_of
from deepflow.files import atomic_output, unusable
from deepflow.prediction import COLUMNS, Column
from deepflow.sweep.points import Sweep
from deepflow.sweep.run import VERSIONS, point_rows
from deepflow.sweep.settings import Setting, canonical_settings

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"deepflow"
ROWS_AT_ONCE = 10_000

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
            unit = _unit(sweep, setting)
            axes[columns[name]] = Column(_common_type(values), unit, f"axis {setting.path}")
    return {**_BEFORE, **axes, **COLUMNS, **_AFTER}


def _unit(sweep: Sweep, setting: Setting) -> str:
    """SI unit of the key that ``setting`` sets, "" for a count, a choice or a fraction."""
    base = sweep.bases[0][0]
    changes = canonical_settings([setting], base.hardware, base.model, sweep.file)
    section: type[Any] | None
    for config, values in zip((base.hardware, base.model), changes, strict=True):
        for path in values:
            section = type(config)
            for part in path.split("."):
                assert section is not None
                key = next(key for key in keys_of(section) if key.name == part)
                section = key.section
            return key.option.unit
    raise AssertionError("a setting sets one key")


def _common_type(values: Iterable[object]) -> type:
    types = {type(value) for value in values if value is not None}
    if len(types) == 1:
        return types.pop()
    return float if types == {int, float} else str


def summary_schema(sweep: Sweep) -> pa.Schema:
    """Arrow schema with the unit and meaning of each column and a description of the sweep."""
    import pyarrow as pa

    types = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    fields = [
        pa.field(
            name, types[column.dtype], metadata={"unit": column.unit, "description": column.doc}
        )
        for name, column in summary_columns(sweep).items()
    ]
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
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(about).encode()})


def write_shard(sweep: Sweep, name: str, output: str | Path) -> None:
    """Predict the points of one shard and write them to ``output``.

    Raises DeepFlowError, naming the point, if one fails; then there is no file.
    """
    shard = sweep.shard(name)
    points = sweep.points(shard.numbers)
    rows = point_rows(points, len(shard.numbers), f"{sweep.name} {name}")
    schema = summary_schema(sweep).with_metadata({b"shard_digest": shard.digest.encode()})
    _write(_tables(rows, axis_columns(sweep), schema), schema, output)


def gather(sweep: Sweep, results: str | Path, output: str | Path) -> None:
    """Write one table of all points from the files that their jobs left below ``results``.

    Raises DeepFlowError for a file that is missing, damaged, or made from other settings.
    """
    schema = summary_schema(sweep)
    if sweep.sharded:
        tables = _shard_tables(sweep, Path(results), schema)
    else:
        rows = _point_file_rows(sweep, Path(results))
        tables = _tables(rows, axis_columns(sweep), schema)
    _write(tables, schema, output)


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
    for point in sweep.points():
        file = results / "points" / f"{point.id}.json"
        try:
            record = json.loads(file.read_bytes())
            digest = record["digest"]
            row = {name: record[name] for name in COLUMNS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise unusable(file, error) from None
        if digest != point.digest:
            raise unusable(file)
        yield {
            **row,
            **{name: record.get(name) for name in (*_BEFORE, *_AFTER)},
            "point": point.id,
            "axes": point.axis_values,
        }


def _shard_tables(sweep: Sweep, results: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, shard in sweep.shards.items():
        file = results / "shards" / f"{name}.parquet"
        try:
            table = pq.read_table(file)
            digest = table.schema.metadata[b"shard_digest"].decode()
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise unusable(file, error) from None
        if digest != shard.digest or table.num_rows != len(shard.numbers):
            raise unusable(file)
        yield table.select(schema.names).cast(schema)


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


def _write(tables: Iterator[pa.Table], schema: pa.Schema, output: str | Path) -> None:
    import pyarrow.parquet as pq

    with (
        atomic_output(output) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table)
