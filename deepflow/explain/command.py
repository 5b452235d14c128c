"""``deepflow explain``: where the time of a point goes, as text, trace and pictures."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from deepflow.command_line import (
    SETTINGS,
    add_point_options,
    command,
    file_ending,
    load_point,
    picture,
)
from deepflow.errors import DeepFlowError

_EXAMPLES = """examples:
  deepflow explain --hardware H.yaml --model M.yaml
  deepflow explain --hardware H.yaml --model M.yaml --trace step.json.gz  # for ui.perfetto.dev
  deepflow explain --hardware H.yaml --model M.yaml --set parallelism.pipeline=4 \\
      --schedule schedule.svg --roofline roofline.png

"""
_FEWEST_EVENTS = 10


def add_explain_command(commands: Any) -> None:
    """Adds ``explain`` to the ``deepflow`` command."""
    explain = command(
        commands,
        "explain",
        _explain,
        "show where the time of a point goes, and why",
        _EXAMPLES + SETTINGS,
    )
    add_point_options(explain)
    explain.add_argument(
        "--trace",
        metavar="FILE",
        type=file_ending(".json", ".json.gz"),
        help="write what runs when for a trace viewer (.json or .json.gz)",
    )
    explain.add_argument(
        "--trace-events",
        metavar="N",
        type=_events,
        help="at most so many events in the trace, less detailed if need be (default 200000)",
    )
    explain.add_argument(
        "--schedule",
        metavar="FILE",
        type=picture,
        help="draw what the stages of a pipeline do when (.svg, .png or .pdf)",
    )
    explain.add_argument(
        "--roofline",
        metavar="FILE",
        type=picture,
        help="draw operators below the device's rates and bandwidths (.svg, .png or .pdf)",
    )
    explain.add_argument(
        "--width",
        choices=("page", "column"),
        default="page",
        help="how wide pictures are printed: over a page, or one column of two (default page)",
    )


def _events(text: str) -> int:
    if not text.isdigit() or int(text) < _FEWEST_EVENTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {_FEWEST_EVENTS} on")
    return int(text)


def _explain(options: argparse.Namespace) -> None:
    from deepflow.config import with_overrides
    from deepflow.explain.text import explain
    from deepflow.hardware import derive_hardware
    from deepflow.prediction import analytical, predict

    if options.trace_events is not None and options.trace is None:
        raise DeepFlowError("--trace-events says how long a trace may be, and needs --trace")
    hardware_config, model, changes = load_point(options)
    config = with_overrides(hardware_config, changes[0])
    hardware, point_model = derive_hardware(config), with_overrides(model, changes[1])
    prediction = predict(hardware, point_model)
    print(explain(hardware, point_model, prediction))
    used = analytical(hardware) if prediction.backend_used == "analytical" else hardware
    if options.trace is not None:
        from deepflow.explain.lanes import DEFAULT_LIMIT
        from deepflow.explain.timeline import timeline
        from deepflow.explain.trace import write_trace
        from deepflow.sweep.identity import configuration_digest

        digest = configuration_digest(hardware_config, model, changes)
        found = timeline(used, point_model, prediction, options.trace_events or DEFAULT_LIMIT)
        write_trace(options.trace, found, prediction, config, point_model, digest)
        for note in found.notes:
            print(f"deepflow: note: {options.trace}: {note}", file=sys.stderr)
    if options.schedule is not None:
        from deepflow.explain.pictures import draw_schedule

        draw_schedule(options.schedule, used, point_model, prediction, options.width)
    if options.roofline is not None:
        from deepflow.explain.pictures import draw_roofline

        draw_roofline(options.roofline, used, point_model, prediction, options.width)
