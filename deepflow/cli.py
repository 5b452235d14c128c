"""The ``deepflow`` command.

Exit codes: 0 done, 1 bad input or failed prediction (one line on stderr), 2 wrong command line.
Each command imports what it needs when it runs: a sweep starts ``deepflow predict`` once per
point, and that must not pay for tables and plots.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, NoReturn

from deepflow import completion
from deepflow.command_line import SETTINGS, add_point_options, changed, command, load_point
from deepflow.errors import DeepFlowError
from deepflow.version import MODEL_VERSION, __version__

_EXAMPLES = """examples:
  deepflow predict --hardware configs/hardware-config/nvidia_h100_sxm_80gb.yaml \\
      --model configs/model-config/Llama2-7B.yaml --set parallelism.tensor=2
  deepflow explain --hardware H.yaml --model M.yaml        # where the time goes
  deepflow sensitivity --hardware H.yaml --model M.yaml    # which parameter matters most
  deepflow sweep points sweeps/gemm_shapes.yaml            # what a sweep is made of
  snakemake --cores all --config sweeps=sweeps/gemm_shapes.yaml
  deepflow report sweeps/gemm_shapes.yaml                  # a page about its results
  deepflow search searches/lstm_64_devices.yaml            # the best machine in a space

'deepflow COMMAND --help' says more. 'deepflow doctor' finds out what is missing here.
"""
_PREDICT = """examples:
  deepflow predict --hardware configs/hardware-config/nvidia_h100_sxm_80gb.yaml \\
      --model configs/model-config/Llama2-7B.yaml --set parallelism.tensor=2
  deepflow predict --hardware H.yaml --model M.yaml --json --output point.json
  deepflow predict --hardware H.yaml --model M.yaml --set model.run_type=inference \\
      --set model.output_len=512 --framework configs/framework-config/vllm.yaml
  deepflow predict --hardware H.yaml --model M.yaml --backend astra

"""

COMMANDS = {
    "predict": ("predict one point", "cli:add_predict_command"),
    "explain": (
        "show where the time of a point goes, and why",
        "explain.command:add_explain_command",
    ),
    "sensitivity": (
        "find which hardware parameters matter most at a point",
        "sensitivity.command:add_sensitivity_command",
    ),
    "compare": ("show what differs between two results", "compare.command:add_compare_command"),
    "sweep": ("look into a sweep, or do one step of it", "sweep.command:add_sweep_command"),
    "report": (
        "write a page about a sweep or a search that has been run",
        "report.command:add_report_command",
    ),
    "search": ("look for the best machine in a space", "search.command:add_search_command"),
    "validate": (
        "predict every row of a table of measurements",
        "validate.command:add_validate_command",
    ),
    "calibrate": (
        "fit parameters of a device to measured operators",
        "calibrate:add_calibrate_command",
    ),
    "accuracy": (
        "write a page on the accuracy that validation found",
        "validate.command:add_accuracy_command",
    ),
    "config": ("work on configuration files", "config.commands:add_config_command"),
    "schema": ("print a JSON Schema, for editors", "cli:add_schema_command"),
    "reference": (
        "write the reference pages of keys, columns and commands",
        "reference:add_reference_command",
    ),
    "doctor": (
        "check versions, simulator, cluster and permissions",
        "doctor:add_doctor_command",
    ),
    "completion": (
        "print what teaches your shell to complete",
        "completion:add_completion_command",
    ),
    "astra-sim": (
        "simulate Chakra traces with ASTRA-sim's options",
        "astra.command:add_astra_sim_command",
    ),
    "astra-collective": (
        "time one collective, for workflows",
        "astra.store:add_astra_collective_command",
    ),
    "serve": ("run commands from standard input, for workflows", "cli:add_serve_command"),
}
"""Purpose of each command, and who adds it: a function of a module of ``deepflow``."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A wrong command line raises SystemExit(2)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if completion.ASKED in os.environ:
        completion.complete(parser_for)
    parser = parser_for(first=given[0] if given else "")
    options, unknown = parser.parse_known_args(given)
    if unknown and not getattr(options, "accepts_unknown_options", False):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning
        if unknown:
            warnings.warn(f"without effect: {' '.join(unknown)}", stacklevel=1)
        try:
            options.run(options)
            sys.stdout.flush()
        except DeepFlowError as error:
            print(f"deepflow: error: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            # The reader has seen enough; Python must not complain again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print("deepflow: interrupted", file=sys.stderr)
            return 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"deepflow: error: {where}{error.strerror or error}", file=sys.stderr)
            return 1
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"deepflow: warning: {message}", file=sys.stderr)


def parser_for(first: str) -> _Parser:
    """The command line; of the commands only ``first``, which is called, gets its options."""
    parser = _Parser(
        prog="deepflow",
        description="Predicts how long a neural network takes on hardware, real or imagined.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"deepflow {__version__} (model {MODEL_VERSION})"
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (purpose, home) in COMMANDS.items():
        if name == first:
            module, add = home.split(":")
            getattr(import_module(f"deepflow.{module}"), add)(commands)
        else:
            commands.add_parser(name, help=purpose)
    return parser


def add_predict_command(commands: Any) -> None:
    """Adds ``predict`` to the ``deepflow`` command."""
    predict = command(commands, "predict", _predict, "predict one point", _PREDICT + SETTINGS)
    add_point_options(predict)
    predict.add_argument("--json", action="store_true", help="one JSON object with all columns")
    predict.add_argument("--output", metavar="FILE", help="write there, not to the screen")
    predict.add_argument(
        "--allow-infeasible",
        action="store_true",
        help="an impossible combination is a result with a status and a reason, not an error",
    )
    predict.add_argument(
        "--expect-digest",
        metavar="DIGEST",
        help="fail if files and settings no longer mean what they meant when this was asked for",
    )
    predict.add_argument(
        "--collectives",
        metavar="DIR",
        help="read results of your ASTRA-sim there (astra-collective) instead of running it",
    )


def add_schema_command(commands: Any) -> None:
    """Adds ``schema`` to the ``deepflow`` command."""
    schema = command(commands, "schema", _schema, "print a JSON Schema, for editors")
    schema.add_argument("kind", choices=("hardware", "model", "framework", "sweep", "search"))


def add_serve_command(commands: Any) -> None:
    """Adds ``serve`` to the ``deepflow`` command."""
    serve = command(commands, "serve", _serve, "run commands from standard input, for workflows")
    serve.description = (
        "Runs one command per line, a JSON list of a log file and arguments, and prints exit codes."
    )


def _predict(options: argparse.Namespace) -> None:
    from deepflow.files import atomic_output, to_json
    from deepflow.sweep.identity import configuration_digest
    from deepflow.sweep.run import (
        evaluate,
        evaluate_or_explain,
        point_record,
        prediction_table,
    )

    hardware, model, changes = load_point(options)
    digest = configuration_digest(hardware, model, changes)
    if options.expect_digest not in (None, digest):
        raise changed(f"{options.hardware} or {options.model}")
    predict = evaluate_or_explain if options.allow_infeasible else evaluate
    with _collectives(options.collectives):
        outcome = predict(hardware, model, *changes)
    if options.json:
        text = to_json(point_record(outcome, digest, *changes))
    else:
        text = prediction_table(outcome)
    if options.output is None:
        print(text)
    else:
        with atomic_output(options.output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _collectives(folder: str | None) -> AbstractContextManager[None]:
    if folder is None:
        return nullcontext()
    from deepflow.astra.store import stored_collectives

    return stored_collectives(folder)


def _schema(options: argparse.Namespace) -> None:
    from deepflow.files import to_json

    if options.kind == "sweep":
        from deepflow.sweep.schema import SWEEP_SCHEMA

        print(to_json(SWEEP_SCHEMA))
    elif options.kind == "search":
        from deepflow.search.schema import SEARCH_SCHEMA

        print(to_json(SEARCH_SCHEMA))
    else:
        from deepflow.config import json_schema

        print(to_json(json_schema(options.kind)))


def _serve(options: argparse.Namespace) -> None:
    from deepflow.sweep.worker import serve

    serve(main, sys.stdin, sys.stdout)
