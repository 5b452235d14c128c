"""Files to results: the JSON of a point, the table of a sweep.

Nothing here trusts a file: whatever is not a result is one line of error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import parse_yaml_value
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.prediction import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

Flat = Mapping[str, Any]
"""Canonical path -> SI value."""

_EXPECTED = (
    "the JSON of deepflow predict --json or of a point, the summary.parquet of a sweep, or its"
    " folder"
)

_LONG_TEXTS = ("digest", "reason", "fallback_reason", "deepflow_version")
"""Columns of tables that nothing here reads; of a million points they take the most memory."""


@dataclass(frozen=True)
class PointResult:
    """A predicted point. ``source`` says where it is from; ``columns`` are those of predictions."""

    source: str
    hardware: str
    model: str
    columns: Mapping[str, Any]
    configuration: Mapping[str, Flat]
    versions: Mapping[str, str]

    @property
    def mode(self) -> str:
        """What is predicted: GEMM, LSTM, ..., of LLM also whether it is trained."""
        model = self.configuration["model"]
        parts = (model.get("mode"), model.get("run_type") if model.get("mode") == "LLM" else None)
        return " ".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True)
class SweepResult:
    """The table of a sweep: a row per point, units and axes by column.

    ``configurations``: those of its files, by hardware or model and name. ``settings``: what the
    sweep file sets for all points, as it is written there.
    """

    source: str
    rows: pd.DataFrame
    units: Mapping[str, str]
    axes: tuple[str, ...]
    configurations: Mapping[str, Mapping[str, Flat]]
    settings: Flat


def read_result(path: str) -> PointResult | SweepResult:
    """The result at ``path``. Raises DeepFlowError if there is none."""
    given = Path(path)
    if given.is_dir():
        summary = given / "summary.parquet"
        if not summary.exists():
            raise DeepFlowError(f"{path}: has no summary.parquet; is it the results of a sweep?")
        return _read_sweep(str(summary))
    if not given.exists():
        raise DeepFlowError(f"{path}: no such file (expected: {_EXPECTED})")
    if given.suffix == ".parquet":
        return _read_sweep(path)
    if given.suffix == ".json":
        return _read_point(path)
    raise DeepFlowError(f"{path}: is no result (expected: {_EXPECTED})")


def _read_point(path: str) -> PointResult:
    try:
        record = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DeepFlowError(f"{path}: is damaged, or no JSON: {error}") from None
    if not isinstance(record, dict) or not {"status", "time_s", "configuration"} <= record.keys():
        raise DeepFlowError(f"{path}: is no result of deepflow predict --json")
    return point_result(path, record)


def point_result(source: str, record: Mapping[str, Any]) -> PointResult:
    """A result from the record of a point. Raises DeepFlowError if it cannot be one."""
    configuration = record["configuration"]
    if not isinstance(configuration, dict) or not all(
        isinstance(configuration.get(side), dict) for side in ("hardware", "model")
    ):
        raise DeepFlowError(f"{source}: has no configuration of hardware and model")
    columns = {name: record.get(name) for name in COLUMNS}
    for name, value in columns.items():
        _check(source, name, value)
    return PointResult(
        source,
        str(record.get("hardware")),
        str(record.get("model")),
        columns,
        configuration,
        {name: str(record.get(name)) for name in ("deepflow_version", "model_version")},
    )


def _check(source: str, name: str, value: object) -> None:
    kind = COLUMNS[name].dtype
    if value is None:
        return
    fits = isinstance(value, int | float if kind in (int, float) else kind)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise DeepFlowError(f"{source}: {name} = {value!r} is no value of a prediction")


def _read_sweep(path: str) -> SweepResult:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepflow.sweep.tables import METADATA_KEY

    try:
        names = [name for name in pq.read_schema(path).names if name not in _LONG_TEXTS]
        table = pq.read_table(path, columns=names, page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DeepFlowError(f"{path}: is damaged, or no Parquet file: {error}") from None
    if not {"point", "status", "time_s"} <= set(table.schema.names):
        raise DeepFlowError(f"{path}: is no table of a sweep (expected: {_EXPECTED})")
    rows: pd.DataFrame = table.to_pandas()
    wrong = rows["time_s"].isna() & rows["status"].ne("infeasible")
    if wrong.any():
        point = rows.loc[wrong, "point"].iloc[0]
        raise DeepFlowError(f"{path}: time_s of point {point} is no number")
    described = {field.name: field.metadata or {} for field in table.schema}
    return SweepResult(
        path,
        rows,
        {name: data.get(b"unit", b"").decode() for name, data in described.items()},
        tuple(
            name
            for name, data in described.items()
            if data.get(b"description", b"").startswith(b"axis ")
        ),
        about.get("configurations", {"hardware": {}, "model": {}}),
        _fixed_settings(about.get("sweep_yaml", "")),
    )


def _fixed_settings(text: str) -> dict[str, Any]:
    """What the text of a sweep file sets for all points; nothing if it is not that of one."""
    try:
        content = parse_yaml_value(text)
    except ConfigError:
        return {}
    if not isinstance(content, dict):
        return {}
    fixed = content.get("set")
    settings = {f"set.{key}": value for key, value in fixed.items()} if fixed else {}
    return settings | {
        key: content[key] for key in ("framework", "backend", "where") if key in content
    }
