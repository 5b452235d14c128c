"""The page on accuracy: goals, errors by group, choices, and what each mechanism is good for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from deepflow.errors import DeepFlowError
from deepflow.validate.ablations import ABLATIONS
from deepflow.validate.goals import Goal, reached
from deepflow.validate.ranking import choices, ranking_text
from deepflow.validate.rows import read_validated
from deepflow.validate.tables import GroupError, ValidatedRow, group_error, summarize
from deepflow.version import MODEL_VERSION

RANKING_GOAL_PERCENT = 80.0

Tables = Mapping[str, Sequence[ValidatedRow]]

_HEADING = """# Accuracy

Predictions beside measurements on real hardware, with model version {version}. The data are
{data}.
Do not edit this page, which is written from a folder of tables by
`snakemake --cores all --force docs/accuracy.md --config tables=DIR`.
`deepflow validate TABLE.csv` compares a table of your own; [model.md](model.md) says how
predictions are made.

Errors are absolute, in per cent of the measured value, unless called a bias (predicted over
measured, in the median). Of yes-or-no answers the error is the share of wrong ones. Parameters
are one set per GPU and one per framework; nothing is fitted to single rows, models or sizes.

What is known of a run counts as known: the links that its own nodes measured within themselves,
where they were far from normal, and whether its communication library checked every call
([configuration.md](configuration.md) has the columns). nanotron's overheads and the latency of the
cloud network were chosen on the runs of `train_h100_ultrascale` that are given here; the files say
so beside each value. The clock that a device keeps in training is that of matrix products at its
power limit (`op_power`).

Two tables give different times for the same run of arXiv 2205.05198: GPT 175B on 64 A100 took 18.13
and 13.75 s by `memory_and_time_a100_selene`, as its Table 5 has them, and 16.9 and 12.9 s by
`train_a100_megatron`: 7 % apart, and predictions lie above either.

The overheads of NeMo, TensorRT-LLM and vLLM, and how many requests each client of NIM's benchmark
sends, were chosen on the given rows of the one table of inference that was measured with each. What
`inference_opt_uci` calls time to first token is none: it equals the time per token whatever the
prompt. These rows are shown, and no goal counts them. Koyeb's server is taken to remember the
prompt that it gets again and again: there is no time in its runs to compute it.
"""


def read_results(folder: str | Path, names: Iterable[str] = ()) -> Tables:
    """Rows of ``<table>/rows.csv`` below ``folder`` by table, of all or of those in ``names``.

    Raises:
        DeepFlowError: there is none.
        ConfigError: one of ``names`` is missing.
    """
    known = names or sorted(path.parent.name for path in Path(folder).glob("*/rows.csv"))
    found = {name: read_validated(Path(folder) / name / "rows.csv") for name in known}
    if not found:
        raise DeepFlowError(f"{folder} has no <table>/rows.csv; run: snakemake validate")
    return found


def accuracy_page(folder: str | Path, tables: Tables, data: str) -> str:
    """Markdown text on ``tables``, and on their ablations, which are below ``folder``.

    ``data`` says what was measured.
    """
    parts = [
        _HEADING.format(version=MODEL_VERSION, data=data),
        "![predicted over measured, a panel per table](images/accuracy.png)\n",
        _goals(tables),
        _ranking(tables),
        _mechanisms(folder, tables),
        "## By group\n",
        *(_table_section(name, rows) for name, rows in tables.items()),
    ]
    return "\n".join(part for part in parts if part)


def overview(tables: Tables) -> Tables:
    """Rows to draw of each table, all of one quantity each: the first that can be explained."""
    panels = {}
    for name, rows in tables.items():
        counted = [row for row in rows if row.error_percent is not None]
        if counted:
            first = next((row for row in counted if row.explicable), counted[0])
            metric = first.row.get("metric", "")
            panels[name] = [row for row in counted if row.row.get("metric", "") == metric]
    return panels


def _goals(tables: Tables) -> str:
    lines = [
        [
            item.goal.table,
            item.goal.rows,
            item.goal.statistic,
            f"{item.rows:,}",
            _per_cent(item.value),
            _limit(item.goal),
            "yes" if item.met else "no",
        ]
        for item in reached(tables)
    ]
    heads = ["table", "rows", "measure", "number", "reached", "goal", "met"]
    return f"## Goals\n\n{_markdown(heads, lines)}" if lines else ""


def _limit(goal: Goal) -> str:
    return f"{'at least' if goal.at_least else 'at most'} {goal.limit:g} %"


def _ranking(tables: Tables) -> str:
    lines = []
    for name, rows in tables.items():
        found = choices(rows)
        if not found:
            continue
        share = 100 * sum(choice.good for choice in found) / len(found)
        losses = sorted(choice.loss_percent for choice in found)
        lines.append(
            [
                name,
                str(len(found)),
                str(sum(choice.runs for choice in found)),
                _per_cent(share),
                f"at least {RANKING_GOAL_PERCENT:g} %",
                _per_cent(losses[len(losses) // 2]),
                _per_cent(losses[-1]),
            ]
        )
    if not lines:
        return ""
    heads = ["table", "groups", "runs", "good choices", "goal", "median loss", "largest loss"]
    return (
        "## Choosing a configuration\n\n"
        "In each group of runs of one model on as many GPUs, how much slower than the fastest"
        " measured run is the one that is predicted fastest? A loss of up to 5 % is a good"
        f" choice.\n\n{_markdown(heads, lines)}"
    )


def _mechanisms(folder: str | Path, tables: Tables) -> str:
    """Error of each table with one mechanism off, beside that of the whole model."""
    errors: dict[str, dict[str, str]] = {}
    for name in tables:
        for ablation in ABLATIONS:
            path = Path(folder) / name / "without" / f"{ablation.name}.csv"
            if path.exists():
                errors.setdefault(name, {})[ablation.name] = _headline(read_validated(path))
    used = [item for item in ABLATIONS if any(item.name in cells for cells in errors.values())]
    if not used:
        return ""
    lines = [
        [name, _headline(tables[name]), *(cells.get(item.name, "") for item in used)]
        for name, cells in errors.items()
    ]
    legend = "".join(f"- `{item.name}`: {item.without}\n" for item in used)
    return (
        "## What each mechanism is good for\n\n"
        "Median error of each table (of throughput or time, where it has other quantities too;"
        " share of wrong answers, where there are only two) with one mechanism off. An empty cell:"
        " the mechanism does not concern the table.\n\n"
        f"{_markdown(['table', 'all on', *(item.name for item in used)], lines)}\n{legend}"
    )


def _headline(rows: Iterable[ValidatedRow]) -> str:
    counted = [row for row in _counted(rows) if row.error_percent is not None]
    error = group_error("", counted)
    answers = all(row.yes_or_no for row in counted)
    return _per_cent(error.mean_absolute if answers else error.median_absolute)


def _counted(rows: Iterable[ValidatedRow]) -> Iterator[ValidatedRow]:
    """Rows that a model can explain; of runs with many quantities, one of them."""
    derived = ("step_time_derived", "model_tflops_per_gpu", "mfu", "mem_allocated", "mem_reserved")
    for row in rows:
        if row.explicable and row.row.get("metric", "") not in derived:
            yield row


def _table_section(name: str, rows: Sequence[ValidatedRow]) -> str:
    lines = [_group_line(error) for error in summarize(rows)]
    heads = ["group", "rows", "predicted", "median", "mean", "90th percentile", "bias"]
    text = f"### {name}\n\n{_markdown(heads, lines)}"
    if line := ranking_text(choices(rows)):
        text += f"\n{line[0].upper()}{line[1:]}.\n"
    reasons = Counter(row.not_predicted for row in rows if row.not_predicted)
    if reasons:
        text += "\nNot predicted:\n\n"
        text += "".join(f"- {count:,} rows: {reason}\n" for reason, count in reasons.most_common(8))
    return text


def _group_line(error: GroupError) -> list[str]:
    return [
        error.group if error.explicable else f"*{error.group}*",
        f"{error.rows:,}",
        f"{error.predicted:,}",
        _per_cent(error.median_absolute),
        _per_cent(error.mean_absolute),
        _per_cent(error.percentile_90),
        _per_cent(error.median_signed),
    ]


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
