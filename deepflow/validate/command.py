"""``deepflow validate`` and ``deepflow accuracy``: predictions beside measurements."""

from __future__ import annotations

import argparse
from typing import Any

from deepflow.command_line import SETTINGS, add_framework, add_settings, command
from deepflow.errors import ConfigError, DeepFlowError


def add_validate_command(commands: Any) -> None:
    """Adds ``validate`` to the ``deepflow`` command."""
    validate = command(
        commands, "validate", _validate, "predict every row of a table of measurements", SETTINGS
    )
    validate.add_argument("table", metavar="TABLE.csv", help="CSV, or CSV compressed as .csv.gz")
    validate.add_argument(
        "--hardware", metavar="FILE", help="hardware YAML for all rows (default: by their names)"
    )
    add_framework(validate, "framework YAML for all rows (default: by their text)")
    add_settings(validate)
    validate.add_argument("--output", metavar="OUT.csv", help="write rows with predictions there")
    validate.add_argument(
        "--plot", metavar="FILE", help="draw predicted over measured there: .png, .svg"
    )
    validate.add_argument("--json", action="store_true", help="the summary by group as JSON")
    validate.add_argument(
        "--max-mape",
        metavar="PERCENT",
        type=float,
        help="fail if a group's mean absolute error is larger, or nothing could be predicted",
    )


def add_accuracy_command(commands: Any) -> None:
    """Adds ``accuracy`` to the ``deepflow`` command."""
    accuracy = command(
        commands, "accuracy", _accuracy, "write a page on the accuracy that validation found"
    )
    accuracy.add_argument("folder", metavar="DIR", help="with <table>/rows.csv, by validate")
    accuracy.add_argument(
        "--tables", metavar="TABLE", nargs="+", default=[], help="only these (default: all there)"
    )
    accuracy.add_argument("--output", metavar="FILE.md", required=True, help="page to write")
    accuracy.add_argument("--plot", metavar="FILE.png", required=True, help="its figure")
    accuracy.add_argument(
        "--data", metavar="TEXT", default="the given tables", help="what the page says of the data"
    )


def _validate(options: argparse.Namespace) -> None:
    from deepflow.config import split_overrides
    from deepflow.files import atomic_output, to_json
    from deepflow.sweep.settings import parse_setting
    from deepflow.validate import (
        OTHER_ROWS,
        RECOGNISED,
        choices,
        ranking_text,
        read_table,
        reasons_text,
        summarize,
        summary_text,
        validate_table,
        write_table,
    )

    settings = {item.path: item.value for item in map(parse_setting, options.settings)}
    overrides, of_model = split_overrides(settings, "--set")
    if of_model:
        raise ConfigError(
            "the table states the model", file="--set", key=f"model.{next(iter(of_model))}"
        )
    table = read_table(options.table)
    rows = list(validate_table(table, options.hardware, overrides, options.framework))
    groups = summarize(rows)
    if [group.group for group in groups] == [OTHER_ROWS]:
        raise ConfigError("no row is recognised", file=options.table, allowed=RECOGNISED)
    if options.output is not None:
        with atomic_output(options.output) as temporary:
            write_table(rows, temporary)
    if options.plot is not None:
        from deepflow.validate.plots import draw_parity, panels_of

        draw_parity(panels_of(rows), options.plot)
    if options.json:
        print(to_json([group.as_row() for group in groups]))
    else:
        texts = (summary_text(groups), reasons_text(rows), ranking_text(choices(rows)))
        print("\n".join(filter(None, texts)))
    if options.max_mape is not None:
        # A fault of the framework that made a group's numbers is none of the model.
        counted = [group.mean_absolute or 0.0 for group in groups if group.explicable]
        worst = max(counted, default=0.0)
        if worst > options.max_mape:
            raise DeepFlowError(
                f"a mean absolute error of {worst:.1f} % exceeds --max-mape {options.max_mape:g}"
            )
        if not any(group.predicted for group in groups):
            raise DeepFlowError(f"{options.table}: no row could be predicted")


def _accuracy(options: argparse.Namespace) -> None:
    from deepflow.files import atomic_output
    from deepflow.validate.accuracy import accuracy_page, overview, read_results
    from deepflow.validate.plots import draw_parity

    tables = read_results(options.folder, options.tables)
    page = accuracy_page(options.folder, tables, options.data)
    draw_parity(overview(tables), options.plot)
    with atomic_output(options.output) as temporary:
        temporary.write_text(page, encoding="utf-8")
