"""``deepflow compare``: two points, or two sweeps."""

from __future__ import annotations

import argparse
from copy import copy
from typing import TYPE_CHECKING, Any

from deepflow.command_line import (
    SETTINGS,
    add_framework,
    add_settings,
    command,
    load_point,
    path_and_value,
    picture,
)
from deepflow.errors import DeepFlowError

if TYPE_CHECKING:
    from deepflow.compare.results import PointResult, SweepResult

_EXAMPLES = """A and B are results: JSON of a point, summary.parquet of a sweep, or its folder.
Without B, it is predicted now. Without both, A is, and B is A with what --to ... change.

examples:
  deepflow compare results/S/points/tensor=4.json results/S/points/tensor=8.json
  deepflow compare before/ results/S --max-change 1
  deepflow compare before.json --hardware H.yaml --model M.yaml --set parallelism.tensor=8
  deepflow compare --hardware H.yaml --model M.yaml --to parallelism.tensor=8 --plot waterfall.svg
  deepflow compare --hardware H.yaml --model M.yaml --to-hardware H2.yaml --json

"""


def add_compare_command(commands: Any) -> None:
    """Adds ``compare`` to the ``deepflow`` command."""
    parser = command(
        commands, "compare", _compare, "show what differs between two results", _EXAMPLES + SETTINGS
    )
    parser.add_argument("a", metavar="A", nargs="?", help="result: .json, .parquet, or folder")
    parser.add_argument("b", metavar="B", nargs="?", help="the other one")
    parser.add_argument("--hardware", metavar="FILE", help="hardware YAML of what is predicted")
    parser.add_argument("--model", metavar="FILE", help="model YAML of what is predicted")
    add_framework(parser, "framework YAML of what is predicted")
    add_settings(parser)
    parser.add_argument("--backend", choices=("analytical", "astra"), help="what times the network")
    for kind in ("hardware", "model", "framework"):
        parser.add_argument(f"--to-{kind}", metavar="FILE", help=f"another {kind} file for B")
    parser.add_argument(
        "--to",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        type=path_and_value,
        help="change one key for B; may be given again",
    )
    parser.add_argument(
        "--join",
        choices=("auto", "id", "axes"),
        default="auto",
        help="sweeps: equal points have equal ids, or equal values on the axes that both sweeps"
        " have (default: ids if there are equal ones)",
    )
    parser.add_argument(
        "--column",
        metavar="COLUMN",
        default="time_s",
        help="whose largest changes are shown, and --max-change limits (default: time_s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with everything")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=picture,
        help="draw a waterfall, of sweeps the changes: .svg, .png, .pdf",
    )
    parser.add_argument(
        "--max-change",
        metavar="PERCENT",
        type=_percentage,
        help="fail if a point's column changes by more, its status changes, or a point is in one"
        " of the sweeps only",
    )


def _percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value >= 0:  # Neither does "not a number", which no change would exceed.
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _compare(options: argparse.Namespace) -> None:
    from deepflow.compare.points import compare_points
    from deepflow.compare.report import point_record, point_text, sweep_record, sweep_text
    from deepflow.compare.results import PointResult
    from deepflow.compare.sweeps import compare_sweeps
    from deepflow.config import did_you_mean
    from deepflow.files import to_json
    from deepflow.prediction import COLUMNS

    a, b = _both(options)
    if isinstance(a, PointResult) and isinstance(b, PointResult):
        # A check of a column that neither point has would never fail.
        if options.column not in COLUMNS:
            raise DeepFlowError(
                f"{options.column} is no column of a prediction"
                + did_you_mean(options.column, COLUMNS)
            )
        points = compare_points(a, b)
        print(to_json(point_record(points)) if options.json else point_text(points))
        if options.plot is not None:
            from deepflow.compare.plots import draw_waterfall

            draw_waterfall(points, [options.plot])
        problem = _point_problem(a, b, options.column, options.max_change)
    elif isinstance(a, PointResult) or isinstance(b, PointResult):
        raise DeepFlowError(f"{a.source} and {b.source}: one is a point, the other a sweep")
    else:
        sweeps = compare_sweeps(a, b, options.column, options.join)
        print(to_json(sweep_record(sweeps)) if options.json else sweep_text(sweeps))
        if options.plot is not None:
            from deepflow.compare.plots import draw_changes

            draw_changes(sweeps, [options.plot])
        problem = _sweep_problem(sweeps, options.max_change)
    if problem:
        raise DeepFlowError(f"{problem} (--max-change {options.max_change:g})")


def _both(options: argparse.Namespace) -> tuple[PointResult | SweepResult, ...]:
    """A and B, read or predicted."""
    from deepflow.compare.results import read_result

    changes = [
        name
        for name in ("to", "to_hardware", "to_model", "to_framework")
        if getattr(options, name) not in (None, [])
    ]
    given = [path for path in (options.a, options.b) if path is not None]
    if given and changes:
        raise DeepFlowError(
            f"--{changes[0].replace('_', '-')} changes what is predicted, not {given[0]}"
        )
    predicting = options.hardware is not None or options.model is not None
    if len(given) == 2 and (predicting or options.settings or options.framework or options.backend):
        raise DeepFlowError(
            "A and B are given, so nothing is predicted: drop --hardware, --set ..."
        )
    if len(given) < 2 and (options.hardware is None or options.model is None):
        raise DeepFlowError("needs A and B, or --hardware and --model of what is to be predicted")
    results = [read_result(path) for path in given]
    if len(results) < 2:
        results.append(_predicted(options))
    if len(results) < 2:
        if not changes:
            raise DeepFlowError("B would be A: say by --to, --to-hardware ... what differs")
        other = copy(options)
        for kind in ("hardware", "model", "framework"):
            if getattr(options, f"to_{kind}") is not None:
                setattr(other, kind, getattr(options, f"to_{kind}"))
        # What B changes counts: a key may be set to something else for both.
        paths = [text.partition("=")[0].strip() for text in options.to]
        kept = [text for text in options.settings if text.partition("=")[0].strip() not in paths]
        other.settings = [*kept, *options.to]
        results.append(_predicted(other, "--set, --to"))
    return tuple(results)


def _predicted(options: argparse.Namespace, option: str = "--set") -> PointResult:
    from deepflow.compare.results import point_result
    from deepflow.sweep.identity import configuration_digest
    from deepflow.sweep.run import evaluate_or_explain, point_record

    hardware, model, changes = load_point(options, option)
    digest = configuration_digest(hardware, model, changes)
    outcome = evaluate_or_explain(hardware, model, *changes)
    return point_result("predicted now", point_record(outcome, digest, *changes))


def _point_problem(a: PointResult, b: PointResult, column: str, most: float | None) -> str:
    if most is None:
        return ""
    one, other = a.columns.get(column), b.columns.get(column)
    if a.columns["status"] != b.columns["status"]:
        return f"status changes from {a.columns['status']} to {b.columns['status']}"
    if not isinstance(one, int | float) or not isinstance(other, int | float) or not one:
        return "" if one == other else f"{column} changes from {one} to {other}"
    change = 100 * (other - one) / abs(one)
    return f"{column} changes by {change:+.3g} %" if abs(change) > most else ""


def _sweep_problem(found: Any, most: float | None) -> str:
    if most is None:
        return ""
    if found.only_a or found.only_b:
        return f"{len(found.only_a) + len(found.only_b)} points are in one of the sweeps only"
    if found.status_changes:
        return f"{found.status_changes} points have another status"
    if found.largest and 100 * abs(found.largest[0].relative) > most:
        worst = found.largest[0]
        return f"{found.column} of {worst.point} changes by {100 * worst.relative:+.3g} %"
    return ""
