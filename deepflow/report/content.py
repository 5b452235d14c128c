"""What a report says: read from the table of results and from the file that asked for it.

The table is read a few columns, or a batch of rows, at a time: a sweep of a million points takes
hardly more memory than the columns that its figures draw.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import HardwareConfig, ModelConfig, did_you_mean, flatten
from deepflow.config.schema import key_at
from deepflow.errors import DeepFlowError
from deepflow.files import unusable
from deepflow.prediction import MEMORY_COLUMNS, TIME_COLUMNS
from deepflow.report import selection
from deepflow.report.selection import Figure, Front, Goal
from deepflow.sweep.plots import Plot
from deepflow.sweep.tables import METADATA_KEY
from deepflow.version import MODEL_VERSION, __version__

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepflow.report.selection import Rows
    from deepflow.search.space import Search
    from deepflow.sweep.points import Sweep

ROWS_AT_ONCE = 20_000
MOST_REASONS = 40
_ABOUT_RUNS = ("backend_requested", "backend_used", "fallback_reason")
_VERSIONS = ("deepflow_version", "model_version")
_PACKAGES = ("numpy", "pandas", "pyarrow", "snakemake", "plotly")
_OF_AXES = ("axis ", "hardware.", "model.", "of the case")
"""How descriptions of what differs between points begin: axes of sweeps, designs of searches."""
_NUMBER = r"\d+(?:[.,]\d+)*"


@dataclass(frozen=True)
class Files:
    """A configuration file as loaded: the name that the table gives it, and its values."""

    name: str
    file: str
    config: HardwareConfig | ModelConfig


@dataclass(frozen=True)
class Subject:
    """What a report is about. ``digests``: fingerprints of points by the numbers of their rows.

    ``commands`` maps numbers of rows to the words of the commands that predict these points.
    ``targets`` are the two texts around a point's id in the command that makes it alone, or none.
    """

    kind: str
    name: str
    question: str
    file: str
    text: str
    plots: tuple[Plot, ...]
    hardware: tuple[Files, ...]
    models: tuple[Files, ...]
    framework: str | None
    points: int | None
    digests: Callable[[Rows], list[str]] | None
    commands: Callable[[Rows, pa.Table], list[list[str]]]
    targets: tuple[str, str] | None
    goal: Goal | None
    fingerprint: str


class Results:
    """A table of results (Parquet), read in parts."""

    def __init__(self, path: str | Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = str(path)
        # A damaged table is given another name; a file that never was one has to keep its own.
        if Path(path).suffix != ".parquet":
            raise DeepFlowError(f"{path} is no table of results (allowed: .parquet)")
        try:
            self._file: pq.ParquetFile = pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise unusable(path, error) from None
        self.schema: pa.Schema = self._file.schema_arrow
        self.rows: int = self._file.metadata.num_rows

    @cached_property
    def columns(self) -> list[str]:
        """Names of all columns that hold one value per row."""
        import pyarrow as pa

        return [field.name for field in self.schema if not pa.types.is_list(field.type)]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the table says of itself."""
        content: dict[str, Any] = json.loads((self.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        return content

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """These columns of all rows; texts as categories, which take little memory."""
        wanted = list(dict.fromkeys(columns))
        frame: pd.DataFrame = self._file.read(wanted).to_pandas(strings_to_categorical=True)
        return frame

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns, some thousand rows at a time."""
        return iter(self._file.iter_batches(ROWS_AT_ONCE, columns=list(columns)))

    def take(self, rows: Rows) -> pa.Table:
        """All columns of the rows with these ascending numbers."""
        import numpy as np
        import pyarrow as pa

        parts, first = [], 0
        for batch in self._file.iter_batches(ROWS_AT_ONCE):
            low, high = np.searchsorted(rows, [first, first + len(batch)])
            if high > low:
                parts.append(batch.take(pa.array(rows[low:high] - first)))
            first += len(batch)
        return pa.Table.from_batches(parts, self.schema)


def sweep_subject(sweep: Sweep) -> Subject:
    """A sweep, as a report needs it."""
    import numpy as np

    # ``gather`` writes points in this order.
    if sweep.sharded:
        order = np.concatenate([shard.numbers for shard in sweep.shards.values()])
    else:
        order = sweep.numbers
    words = [
        [["--set", setting.text] for setting in settings]
        for axis in sweep.axes
        for settings in axis.settings
    ]
    firsts = np.cumsum([0, *(len(axis.settings) for axis in sweep.axes)])

    def commands(rows: Rows, _: pa.Table) -> list[list[str]]:
        found = []
        for positions in sweep.positions(order[rows]).tolist():
            base = sweep.bases[positions[0]][positions[1]]
            command = ["deepflow", "predict", "--hardware", base.hardware_file]
            command += ["--model", base.model_file]
            if base.framework_file is not None:
                command += ["--framework", base.framework_file]
            for first, position in zip(firsts.tolist(), positions, strict=False):
                for setting in words[first + position]:
                    command += setting
            found.append(command)
        return found

    hardware = [row[0] for row in sweep.bases]
    return Subject(
        kind="sweep",
        name=sweep.name,
        question=sweep.description,
        file=sweep.file,
        text=sweep.text,
        plots=sweep.plots,
        hardware=tuple(Files(x.hardware.name, x.hardware_file, x.hardware) for x in hardware),
        models=tuple(Files(x.model.name, x.model_file, x.model) for x in sweep.bases[0]),
        framework=sweep.bases[0][0].framework_file,
        points=sweep.count,
        digests=lambda rows: sweep.digests(sweep.positions(order[rows])),
        commands=commands,
        targets=(
            f"snakemake --cores 1 results/{sweep.name}/points/",
            f".json --config {shlex.quote(f'sweeps={sweep.file}')}",
        ),
        goal=None,
        fingerprint=sweep.digest,
    )


def search_subject(search: Search) -> Subject:
    """A search: its evaluations are the points."""
    from deepflow.search.objectives import OBJECTIVES
    from deepflow.search.tables import predict_command

    def commands(_: Rows, table: pa.Table) -> list[list[str]]:
        cases, designs = table["case"].to_pylist(), table["design"].to_pylist()
        return [
            shlex.split(predict_command(search, search.case(case), design))
            for case, design in zip(cases, designs, strict=True)
        ]

    first, *more = search.objectives
    plots = [
        Plot("convergence", "line", "Best design so far of each case", x="evaluation",
             y="best_cost", hue="case", goal="minimum", log_x=True, log_y=True),
    ]  # fmt: skip
    if more:
        plots.append(
            Plot("objectives", "pareto", "Objectives of all feasible designs", x=more[0], y=first,
                 hue="case", where="feasible", goal_x=_word(OBJECTIVES[more[0]]),
                 goal=_word(OBJECTIVES[first])),
        )  # fmt: skip
    case = next(iter(search.cases.values()))
    return Subject(
        kind="search",
        name=search.name,
        question="",
        file=search.file,
        text=search.text,
        plots=tuple(plots),
        hardware=(Files(case.hardware.name, search.hardware_file, case.hardware),),
        models=(Files(case.model.name, search.model_file, case.model),),
        framework=search.framework_file,
        points=None,
        digests=None,
        commands=commands,
        targets=None,
        goal=Goal(first, OBJECTIVES[first], "the first objective of the search"),
        fingerprint="",
    )


def _word(maximum: bool) -> str:
    return "maximum" if maximum else "minimum"


def gather_content(
    subject: Subject, summary: str | Path, chosen: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that a page shows, as ``page.js`` reads it.

    ``chosen``: ids of points to be compared. Raises DeepFlowError if the table is missing, damaged
    or made from other settings, or has no such point.
    """
    import pyarrow as pa

    results = Results(summary)
    try:
        return _content(subject, results, chosen)
    except (OSError, pa.ArrowException) as error:
        raise unusable(summary, error) from None


def _content(subject: Subject, results: Results, chosen: Sequence[str]) -> dict[str, Any]:
    if subject.points not in (None, results.rows):
        raise _other_settings(results)
    # A table of a search has no digests of its rows, but the search itself.
    text = results.about.get(f"{subject.kind}_yaml")
    if subject.digests is None and text != subject.text:
        raise _other_settings(results)
    goal = _goal(subject, results)
    best, usual = _best_and_front(results, goal)
    figures = [_figure(plot, subject, results) for plot in subject.plots]
    fronts = [front for figure in figures for front in figure.fronts]
    if not fronts and usual is not None:
        fronts = [usual]
    asked = _rows_called(chosen, subject, results)
    always = [best, *(front.rows for front in fronts), asked]
    # A figure of very many rows is a figure of a sample of them.
    always += [figure.kept for figure in figures if len(figure.kept) < selection.SHOWN // 2]
    shown = selection.sample(results.rows, always, selection.SHOWN)
    table = results.take(shown)
    if subject.digests is not None and (subject.digests(shown) != table["digest"].to_pylist()):
        raise _other_settings(results)
    place = {row: index for index, row in enumerate(shown.tolist())}
    statuses = results.frame(["status"])["status"].value_counts()
    return {
        "kind": subject.kind,
        "name": subject.name,
        "question": subject.question,
        "points": results.rows,
        "shown": len(shown),
        "statuses": {str(name): int(count) for name, count in statuses.items() if count},
        "columns": _described(table, subject),
        "goal": None if goal is None else asdict(goal),
        "best": [place[row] for row in best.tolist()],
        "fronts": [_front(front, place) for front in fronts],
        "figures": [_shown_figure(figure, place) for figure in figures],
        "reasons": _reasons(results),
        "time_parts": [name for name in TIME_COLUMNS if name in table.column_names],
        "memory_parts": [name for name in MEMORY_COLUMNS if name in table.column_names],
        "commands": _coded(subject.commands(shown, table)),
        "targets": subject.targets,
        "configurations": [
            _differences("hardware", subject.hardware, HardwareConfig),
            _differences("model", subject.models, None),
        ],
        "provenance": _provenance(subject, results),
        "yaml": subject.text,
        "chosen": [place[row] for row in asked.tolist()],
    }


def _other_settings(results: Results) -> DeepFlowError:
    return DeepFlowError(
        f"{results.path} was made from other settings or by another version of the model;"
        " make it again"
    )


def _goal(subject: Subject, results: Results) -> Goal | None:
    candidates = selection.goal_candidates(subject.plots, results.columns)
    if subject.goal is not None:
        candidates = [subject.goal]
    known = ["status", *({"feasible"} & set(results.columns))]
    return selection.goal_of(
        candidates, results.frame([*known, *(goal.column for goal in candidates)])
    )


def _best_and_front(results: Results, goal: Goal | None) -> tuple[Rows, Front | None]:
    import numpy as np

    if goal is None:
        return np.empty(0, np.int64), None
    known = ["status", *({"feasible"} & set(results.columns))]
    costs = selection.costs_in(results.columns)
    frame = results.frame([*known, goal.column, *costs])
    return selection.best_rows(frame, goal, selection.BEST), selection.usual_front(frame, goal)


def _figure(plot: Plot, subject: Subject, results: Results) -> Figure:
    shown, filtered = selection.figure_columns(plot, results.columns, subject.file)
    frame = results.frame([*shown, *filtered, "status"])
    return selection.figure_of(plot, frame, filtered, subject.file)


def _rows_called(ids: Sequence[str], subject: Subject, results: Results) -> Rows:
    """The rows of the points with these ids."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if ids and "point" not in results.columns:
        raise DeepFlowError(f"{results.path} has no ids of points; tick them on the page")
    found: dict[str, int] = {}
    first = 0
    if ids:
        for batch in results.batches(["point"]):
            where = pc.is_in(batch["point"], pa.array(list(ids)))
            for row in np.flatnonzero(where.to_numpy(zero_copy_only=False)).tolist():
                found[batch["point"][row].as_py()] = first + row
            first += len(batch)
    for name in ids:
        if name not in found:
            example = next(results.batches(["point"]))["point"][0].as_py()
            hint = did_you_mean(name, [example])
            raise DeepFlowError(
                f"{results.path} has no point {name!r}{hint}; its first point is {example!r}"
            )
    return np.array([found[name] for name in dict.fromkeys(ids)], np.int64)


def _described(table: pa.Table, subject: Subject) -> list[dict[str, Any]]:
    """Columns with a value, with unit and meaning, each encoded by ``_encoded``."""
    import pyarrow as pa

    columns = []
    for field in table.schema:
        if pa.types.is_list(field.type) or table[field.name].null_count == len(table):
            continue
        about = field.metadata or {}
        doc = about.get(b"description", b"").decode()
        number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        columns.append(
            {
                "name": field.name,
                "unit": about.get(b"unit", b"").decode(),
                "doc": doc,
                "axis": doc.startswith(_OF_AXES) or _tells_apart(field.name, subject),
                "type": "number" if number else "text",
                **_encoded(table[field.name].to_pylist()),
            }
        )
    if "point" not in table.column_names:
        named = (table[name].to_pylist() for name in ("case", "start", "evaluation"))
        ids = zip(*named, strict=True)
        texts = ["/".join(map(str, parts)) for parts in ids]
        doc = "case, start and number of the evaluation"
        column = {"name": "point", "unit": "", "doc": doc, "axis": False, "type": "text"}
        columns.insert(0, {**column, **_encoded(texts)})
    return columns


def _tells_apart(column: str, subject: Subject) -> bool:
    """Whether a column that every table has is an axis of this one."""
    if column in ("hardware", "model"):
        return len(subject.hardware if column == "hardware" else subject.models) > 1
    return column == "case"


def _encoded(values: Sequence[Any]) -> dict[str, Any]:
    """Values of a column, briefly: one for all, numbers of words, or a list.

    JSON has no numbers that are not finite; they are texts, in the spelling of JavaScript.
    """
    spelled = [_spelled(value) for value in values]
    words = list(dict.fromkeys(spelled))
    if len(words) == 1:
        return {"constant": words[0]}
    if isinstance(words[0], str) and len(words) < len(spelled) / 2:
        codes = {word: code for code, word in enumerate(words)}
        return {"words": words, "codes": [codes[value] for value in spelled]}
    return {"values": spelled}


def _spelled(value: Any) -> Any:
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return str(value).lower() if isinstance(value, bool) else value


def _coded(commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Command lines as numbers of words, which are quoted for a shell."""
    codes: dict[str, int] = {}
    lines = [[codes.setdefault(word, len(codes)) for word in line] for line in commands]
    return {"words": [shlex.quote(word) for word in codes], "lines": lines}


def _front(front: Front, place: Mapping[int, int]) -> dict[str, Any]:
    return {**asdict(replace(front, rows=None)), "rows": _places(front.rows, place)}  # type: ignore[arg-type]


def _shown_figure(figure: Figure, place: Mapping[int, int]) -> dict[str, Any]:
    plot = {name: value for name, value in asdict(figure.plot).items() if value is not None}
    rows = _places(figure.rows, place)
    return {
        **plot,
        "rows": rows,
        "missing": len(figure.rows) - len(rows),
        "fronts": [_front(front, place) for front in figure.fronts],
        "fronts_of": figure.plot.fronts or "",
        "caption": figure.caption,
    }


def _places(rows: Rows, place: Mapping[int, int]) -> list[int]:
    return [place[row] for row in rows.tolist() if row in place]


def _reasons(results: Results) -> list[dict[str, Any]]:
    """Why points cannot be run, most frequent first; sentences that differ in numbers are one."""
    import pyarrow.compute as pc

    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], tuple[str, str]] = {}
    named = "point" in results.columns
    for batch in results.batches(["status", "reason", *(["point"] if named else [])]):
        failed = batch.filter(pc.not_equal(batch["status"], "ok"))
        patterns = pc.replace_substring_regex(failed["reason"], _NUMBER, "…")
        keys = list(zip(failed["status"].to_pylist(), patterns.to_pylist(), strict=True))
        counts.update(keys)
        for index, key in enumerate(keys):
            if key not in examples:
                point = failed["point"][index].as_py() if named else ""
                examples[key] = (failed["reason"][index].as_py(), point)
    return [
        {
            "status": key[0],
            "reason": key[1],
            "count": count,
            "example": examples[key][0],
            "point": examples[key][1],
        }
        for key, count in counts.most_common(MOST_REASONS)
    ]


def _differences(
    side: str, files: Sequence[Files], cls: type[HardwareConfig] | None
) -> dict[str, Any]:
    """Keys in which configuration files of one kind differ; nothing for a single file."""
    flat = [flatten(item.config) for item in files]
    keys = dict.fromkeys(key for values in flat for key in values) if len(files) > 1 else {}
    rows = []
    for key in keys:
        values = [values.get(key) for values in flat]
        if key in ("name", "file", "aliases") or all(value == values[0] for value in values):
            continue
        owner = next(x.config for x, known in zip(files, flat, strict=True) if key in known)
        described = key_at(cls or type(owner), key).option
        rows.append(
            {
                "key": key,
                "unit": described.unit,
                "doc": described.doc,
                "values": [_plain(value) for value in values],
            }
        )
    return {
        "side": side,
        "names": [item.name for item in files],
        "files": [item.file for item in files],
        "rows": rows,
    }


def _plain(value: object) -> Any:
    """A value of a configuration as JSON has it; lists and the like as text."""
    if value is None or isinstance(value, (str, bool, int)):
        return str(value).lower() if isinstance(value, bool) else value
    return _spelled(value) if isinstance(value, float) else str(value)


def _provenance(subject: Subject, results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (what, value): where the numbers come from."""
    changed = datetime.fromtimestamp(Path(results.path).stat().st_mtime, UTC)
    made = [
        (f"{subject.kind} file", subject.file),
        *([("fingerprint of all points", subject.fingerprint)] if subject.fingerprint else []),
        ("table of results", f"{results.path}, {results.rows:,} rows"),
        ("table written", _moment(changed)),
        ("page made", _moment(datetime.now(UTC))),
    ]
    files = [("hardware", item.file) for item in subject.hardware]
    files += [("model", item.file) for item in subject.models]
    files += [("framework", subject.framework)] if subject.framework is not None else []
    software = [(f"DeepFlow {__version__}", f"model of performance {MODEL_VERSION}")]
    software += [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            software.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return [
        ("Made from", made),
        ("Configuration files", files),
        ("How points were predicted", _how_predicted(results)),
        ("Software that made this page", software),
    ]


def _moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _how_predicted(results: Results) -> list[tuple[str, str]]:
    """Backends, fallbacks and versions of all rows, with how many have each."""
    names = [name for name in (*_ABOUT_RUNS, *_VERSIONS) if name in results.columns]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for batch in results.batches(names):
        for name in names:
            for found in batch[name].value_counts().to_pylist():
                counts[name][str(found["values"] or "")] += found["counts"]
    said = []
    for name in names:
        for value, count in counts[name].most_common(MOST_REASONS):
            if value:
                said.append((name.replace("_", " "), f"{value} ({count:,} points)"))
    if not any(counts.get("fallback_reason", {})):
        said.append(("fallbacks", "none"))
    for name in _VERSIONS:
        if name not in names and name in results.about:
            said.append((name.replace("_", " "), str(results.about[name])))
    return said
