"""Evaluations as Parquet: of one start, of a whole search, the best designs and Pareto fronts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config.schema import key_at
from deepflow.errors import DeepFlowError
from deepflow.files import all_unusable, atomic_output, unusable
from deepflow.prediction import COLUMNS, Column, Prediction
from deepflow.search.evaluate import Evaluation
from deepflow.search.objectives import DERIVED, DEVICE_COLUMNS, OBJECTIVES
from deepflow.search.space import Case, Search
from deepflow.sweep import identity
from deepflow.sweep.run import VERSIONS
from deepflow.sweep.settings import Setting, canonical_settings
from deepflow.sweep.tables import METADATA_KEY, arrow_fields

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DIGEST_KEY = b"run_digest"

_BEFORE = {
    "search": Column(str, "", "name of the search"),
    "case": Column(str, "", "readable id: technology, choices, strategy and layout"),
    "start": Column(int, "", "number of the start of the case"),
    "evaluation": Column(int, "", "number of the evaluation in its start, from 1"),
    "feasible": Column(bool, "", "possible, within budgets, and within all limits"),
    "cost": Column(float, "", "what is minimised: the objective, or its inverse"),
    "best_cost": Column(float, "", "the least cost of a feasible design so far"),
    "excess": Column(float, "", "sum of the logarithms of how far limits are exceeded"),
    "overflow": Column(float, "", "needed over available memory"),
    "within_budgets": Column(bool, "", "no budget is overdrawn"),
}


def searched_paths(search: Search) -> list[str]:
    """Full canonical paths of what a design sets: parts of budgets, then variables."""
    parts = [f"hardware.{path}" for budget in search.space.budgets for path in budget.parts]
    return parts + [variable.path for variable in search.space.variables]


def columns_of(search: Search) -> dict[str, Column]:
    """All columns of a search's table, in order; the design vector comes behind them."""
    cases: dict[str, Column] = {}
    alternatives = [[case.columns for case in search.cases.values()]]
    alternatives += [list(axis.columns) for axis in search.space.axes]
    for rows in alternatives:
        for name in rows[0]:
            kinds = {type(row[name]) for row in rows}
            kind = kinds.pop() if len(kinds) == 1 else str
            kind = kind if kind in (int, float, bool) else str
            cases[_free(name)] = Column(kind, "", "of the case")
    paths = searched_paths(search)
    names = identity.short_names(paths)
    designs = {
        _free(name): Column(float, _unit(search, path), path)
        for name, path in zip(names, paths, strict=True)
    }
    derived = {name: metric.column for name, metric in DERIVED.items()}
    return {**_BEFORE, **cases, **designs, **derived, **COLUMNS}


def _free(name: str) -> str:
    """A column's name, if results do not have it, else ``searched_<name>``."""
    taken = COLUMNS.keys() | DERIVED.keys() | _BEFORE.keys()
    return f"searched_{name}" if name in taken else name


def _unit(search: Search, path: str) -> str:
    case = next(iter(search.cases.values()))
    root, _, below = path.partition(".")
    return key_at(type(case.model if root == "model" else case.hardware), below).option.unit


def schema_of(search: Search) -> pa.Schema:
    """Arrow schema with units and meanings."""
    import pyarrow as pa

    design = pa.field("design", pa.list_(pa.float64()), metadata={"description": "design vector"})
    fields = [*arrow_fields(columns_of(search)), design]
    about = {"search": search.name, "search_yaml": search.text, **VERSIONS}
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(about).encode()})


def run_table(
    search: Search, case: Case, start: int, evaluations: Sequence[Evaluation]
) -> pa.Table:
    """The rows of one start, its digest among the metadata."""
    import pyarrow as pa

    schema = schema_of(search)
    rows = _rows(search, case, start, evaluations)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    text = {field.name for field in schema if pa.types.is_string(field.type)}
    for row in rows:
        for name, values in columns.items():
            value = row[name]
            values.append(str(value) if name in text and value is not None else value)
    digest = search.run_digest(case, start).encode()
    metadata = {**(schema.metadata or {}), DIGEST_KEY: digest}
    return pa.Table.from_pydict(columns, schema=schema.with_metadata(metadata))


def _rows(
    search: Search, case: Case, start: int, evaluations: Sequence[Evaluation]
) -> Iterator[dict[str, Any]]:
    names = identity.short_names(searched_paths(search))
    shown = [_free(name) for name in names]
    of_case = {_free(name): value for name, value in case.columns.items()}
    best = math.inf
    for number, item in enumerate(evaluations, 1):
        if item.feasible:
            best = min(best, item.cost)
        changes = search.space.changes(item.design, case.hardware)
        values = {f"hardware.{path}": value for path, value in changes[0].items()}
        values |= {f"model.{path}": value for path, value in changes[1].items()}
        yield {
            "search": search.name,
            "case": case.id,
            "start": start,
            "evaluation": number,
            "feasible": item.feasible,
            "cost": _finite(item.cost),
            "best_cost": _finite(best),
            "excess": item.excess,
            "overflow": item.overflow,
            "within_budgets": item.within_budgets,
            **of_case,
            **{_free(name): value for name, value in search.space.chosen(item.design).items()},
            **{
                name: float(values[path])  # type: ignore[arg-type]
                for name, path in zip(shown, searched_paths(search), strict=True)
            },
            **{name: metric.of(item.prediction, item.device) for name, metric in DERIVED.items()},
            **item.prediction.as_row(),
            "design": list(item.design),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluations_of(table: pa.Table) -> list[Evaluation]:
    """The evaluations of ``run_table``."""
    return [
        Evaluation(
            tuple(row["design"]),
            Prediction(**{name: row[name] for name in COLUMNS}),
            math.inf if row["cost"] is None else row["cost"],
            row["excess"],
            row["overflow"],
            row["within_budgets"],
            _device_of(row),
        )
        for row in table.to_pylist()
    ]


def _device_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a device, none where no device came out of a design."""
    if row["chip_area_mm2"] is None:
        return {}
    return {name: row[name] for name in DEVICE_COLUMNS}


def write_table(table: pa.Table, output: str | Path) -> None:
    """Parquet that is complete or not there."""
    import pyarrow.parquet as pq

    with atomic_output(output) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_run(path: str | Path, search: Search, case: Case, start: int) -> pa.Table:
    """The table of one start.

    Raises DeepFlowError if it is missing, damaged, or made from other settings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        digest = table.schema.metadata[DIGEST_KEY].decode()
        table = table.select(schema_of(search).names)
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise unusable(path, error) from None
    if digest != search.run_digest(case, start):
        raise unusable(path)
    return table


def run_file(search: Search, case: Case, start: int) -> str:
    """Where the table of one start is, below the results of the search."""
    return f"runs/{case.id}/{start}.parquet"


def gather(search: Search, results: str | Path, folder: str | Path) -> None:
    """Writes the tables of all starts into ``folder``: ``evaluations.parquet``, ``best.parquet``
    with the best design of each start, best first, and ``pareto.parquet``.

    Raises DeepFlowError for a start that is missing, damaged, or made from other settings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(search)
    problems = []
    best, front = [], []
    with (
        atomic_output(Path(folder) / "evaluations.parquet") as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for case in search.cases.values():
            for start in range(search.optimizer.starts):
                file = Path(results) / run_file(search, case, start)
                try:
                    table = read_run(file, search, case, start)
                except DeepFlowError as error:
                    problems.append(error)
                    continue
                table = table.replace_schema_metadata(schema.metadata)
                writer.write_table(table)
                frame = table.to_pandas()
                best.append(best_rows(frame))
                front.append(pareto_rows(frame, search.objectives))
        # All of them at once, so that a single further run mends the search.
        if problems:
            raise all_unusable(problems)
    import pandas as pd

    # Weights differ between starts, and so do the costs of several objectives; the first does not.
    first = search.objectives[0]
    ranked = pd.concat(best).sort_values(first, ascending=not OBJECTIVES[first], kind="stable")
    fronts = pareto_rows(pd.concat(front), search.objectives)
    for name, frame in (("best", ranked), ("pareto", fronts)):
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        write_table(table, Path(folder) / f"{name}.parquet")


def read_best(folder: str | Path) -> pd.DataFrame:
    """``best.parquet``. Raises DeepFlowError if it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = Path(folder) / "best.parquet"
    try:
        frame: pd.DataFrame = pq.read_table(file).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise unusable(file, error) from None
    return frame


def best_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The row of the cheapest feasible design, none if there is none."""
    feasible = frame[frame["feasible"]]
    return feasible.sort_values("cost", kind="stable").head(1)


def pareto_rows(frame: pd.DataFrame, objectives: Sequence[str]) -> pd.DataFrame:
    """Feasible designs that no other one beats in one objective without losing in another."""
    import numpy as np

    feasible = frame[frame["feasible"]].drop_duplicates(list(objectives))
    signs = [-1.0 if OBJECTIVES[name] else 1.0 for name in objectives]
    values = feasible[list(objectives)].to_numpy(float) * signs
    # In this order nothing is beaten by what comes after it.
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    for index in order.tolist():
        if not any((values[other] <= values[index]).all() for other in kept):
            kept.append(index)
    return feasible.iloc[kept]


def best_text(search: Search, ranked: pd.DataFrame) -> str:
    """For people: the best design of all, and the command that predicts it."""
    if ranked.empty:
        return f"{search.name}: no design is feasible"
    row = ranked.iloc[0]
    case = search.case(str(row["case"]))
    numbers = ", ".join(
        f"{name} = {value:.6g}" for name in search.objectives if (value := row[name]) is not None
    )
    return f"{search.name}: {numbers}\ncase {case.id}\n" + predict_command(
        search, case, [float(x) for x in row["design"]]
    )


def why_nothing(search: Search, folder: str | Path) -> str:
    """What most of the evaluations in ``folder`` fail by, for a search without a feasible design.

    Raises DeepFlowError if ``evaluations.parquet`` is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = Path(folder) / "evaluations.parquet"
    metrics = dict.fromkeys(limit.metric for limit in search.limits)
    columns = ["status", "reason", "overflow", *(name for name in metrics if name != "overflow")]
    try:
        frame = pq.read_table(file, columns=columns).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise unusable(file, error) from None
    failed: dict[str, int] = {}
    impossible = frame["status"] == "infeasible"
    if impossible.any():
        failed[f"cannot exist ({frame['reason'][impossible].iloc[0]})"] = int(impossible.sum())
    if search.must_fit:
        failed["do not fit in memory"] = int((frame["overflow"] > 1).sum())
    for limit in search.limits:
        found = frame[limit.metric].astype(float)
        beyond = found > limit.value if limit.is_upper else found < limit.value
        bound = "at_most" if limit.is_upper else "at_least"
        failed[f"miss constraints.{limit.metric}.{bound} = {limit.value:g}"] = int(beyond.sum())
    counts = sorted(((count, what) for what, count in failed.items() if count), reverse=True)
    return f"of {len(frame)}, " + ", ".join(f"{count} {what}" for count, what in counts)


def predict_command(search: Search, case: Case, design: Sequence[float]) -> str:
    """The command line that predicts a design, to the last digit."""
    command = ["deepflow", "predict", "--hardware", search.hardware_file]
    command += ["--model", search.model_file]
    if search.framework_file is not None:
        command += ["--framework", search.framework_file]
    for setting in design_settings(search, case, design):
        command += ["--set", setting.text]
    return shlex.join(command)


def design_settings(search: Search, case: Case, design: Sequence[float]) -> list[Setting]:
    """What to set on the files of a search: the last value of each key."""
    of_hardware, of_model = search.space.changes(design, case.hardware)
    settings: dict[str, Setting] = {}
    for setting in case.settings:
        settings[canonical_path(search, case, setting)] = setting
    for root, changes in (("hardware", of_hardware), ("model", of_model)):
        for path, value in changes.items():
            settings[f"{root}.{path}"] = Setting(f"{root}.{path}", value, "search")
    return list(settings.values())


def canonical_path(search: Search, case: Case, setting: Setting) -> str:
    """The full canonical path of what a setting sets."""
    of_hardware, of_model = canonical_settings([setting], case.hardware, case.model, search.file)
    return next(iter([*(f"hardware.{x}" for x in of_hardware), *(f"model.{x}" for x in of_model)]))
