"""``deepflow sensitivity``: which hardware parameters decide a prediction."""

from __future__ import annotations

import argparse
from typing import Any

from deepflow.command_line import (
    SETTINGS,
    add_point_options,
    changed,
    command,
    load_point,
    picture,
)
from deepflow.errors import InfeasiblePoint

_EXAMPLES = """examples:
  deepflow sensitivity --hardware configs/hardware-config/nvidia_h100_sxm_80gb.yaml \\
      --model configs/model-config/Llama2-7B.yaml --plot tornado.svg
  deepflow sensitivity --hardware H.yaml --model M.yaml --objective energy_j --step 0.1
  deepflow sensitivity --hardware H.yaml --model M.yaml --output table.csv \\
      --keys hardware.tech_param.DRAM.bandwidth hardware.tech_param.DRAM.size

"""


def add_sensitivity_command(commands: Any) -> None:
    """Adds ``sensitivity`` to the ``deepflow`` command."""
    parser = command(
        commands,
        "sensitivity",
        _sensitivity,
        "find which hardware parameters matter most at a point",
        _EXAMPLES + SETTINGS,
    )
    add_point_options(parser)
    parser.add_argument(
        "--objective", metavar="COLUMN", default="time_s", help="what changes (default: time_s)"
    )
    parser.add_argument(
        "--keys",
        metavar="PATH",
        nargs="+",
        default=[],
        help="only these hardware keys (default: every number that has a value)",
    )
    parser.add_argument(
        "--step",
        metavar="PERCENT",
        type=float,
        default=1.0,
        help="small change to each side (default: 1)",
    )
    parser.add_argument("--all", action="store_true", help="list what has no effect as well")
    parser.add_argument("--json", action="store_true", help="one JSON object with all parameters")
    parser.add_argument(
        "--output", metavar="FILE", help="write the table there: .csv, .json, .parquet"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw a tornado there: .svg, .png, .pdf"
    )
    parser.add_argument(
        "--allow-infeasible",
        action="store_true",
        help="an impossible combination is a result with a status and a reason, not an error",
    )
    parser.add_argument("--expect-digest", metavar="DIGEST", help="as for predict")


def _sensitivity(options: argparse.Namespace) -> None:
    from deepflow.batch import overridden
    from deepflow.files import to_json
    from deepflow.sensitivity.analysis import Analysis, analyse, make_plan
    from deepflow.sensitivity.report import (
        analysis_record,
        analysis_text,
        check_ending,
        write_json,
        write_table,
    )
    from deepflow.sweep.identity import configuration_digest

    plan = make_plan(options.objective, options.step, tuple(options.keys))
    if options.output is not None:
        check_ending(options.output)
    hardware, model, changes = load_point(options)
    digest = configuration_digest(hardware, model, changes)
    if options.expect_digest not in (None, digest):
        raise changed(f"{options.hardware} or {options.model}")
    about = {
        "hardware": changes[0].get("name", hardware.name),
        "model": changes[1].get("name", model.name),
        "digest": digest,
    }
    found: Analysis | InfeasiblePoint
    try:
        found = analyse(*overridden(hardware, model, *changes), plan)
    except InfeasiblePoint as error:
        if not options.allow_infeasible:
            raise
        found = error
    record = analysis_record(plan, about, found)
    if options.output is not None and options.output.endswith(".json"):
        write_json(record, options.output)
    elif options.output is not None:
        write_table(record["parameters"], options.output)
    title = f"{about['model']} on {about['hardware']}"
    if options.plot is not None and isinstance(found, Analysis):
        from deepflow.sensitivity.plots import draw_tornado

        draw_tornado(record["parameters"], title, plan.objective, found.value, [options.plot])
    if options.json:
        print(to_json(record))
    elif isinstance(found, InfeasiblePoint):
        print(f"{title}: {found.status}: {found}")
    else:
        print(analysis_text(found, title, options.all))
