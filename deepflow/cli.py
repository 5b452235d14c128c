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
from typing import Any, NoReturn

from deepflow.errors import ConfigError, DeepFlowError
from deepflow.version import MODEL_VERSION, __version__

_EXAMPLES = """examples:
  deepflow predict --hardware configs/hardware-config/nvidia_h100_sxm_80gb.yaml \\
      --model configs/model-config/Llama2-7B.yaml --set parallelism.tensor=2
  deepflow explain --hardware H.yaml --model M.yaml
  deepflow sweep points sweeps/gemm_shapes.yaml
  snakemake --cores all --config sweeps=sweeps/gemm_shapes.yaml
"""
_SETTINGS = """PATH is a key below hardware, model, parallelism or backend, as in a sweep file;
VALUE is written as in YAML, with a unit where the key has one:
  --set parallelism.tensor=8 --set model.global_batch_size=1024
  --set "hardware.tech_param.DRAM.bandwidth=4.8 TB/s"
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A wrong command line raises SystemExit(2)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(first=given[0] if given else "")
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


def _parser(first: str) -> _Parser:
    """The command line; commands that have steps get them only when ``first`` calls them."""
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

    predict = _command(commands, "predict", _predict, "predict one point", _SETTINGS)
    _add_point_options(predict)
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

    explain = _command(
        commands, "explain", _explain, "show where the time of a point goes, and why", _SETTINGS
    )
    _add_point_options(explain)

    validate = _command(
        commands, "validate", _validate, "predict every row of a table of measurements", _SETTINGS
    )
    validate.add_argument("table", metavar="TABLE.csv", help="CSV, or CSV compressed as .csv.gz")
    validate.add_argument(
        "--hardware", metavar="FILE", help="hardware YAML for all rows (default: by their names)"
    )
    _add_framework(validate, "framework YAML for all rows (default: by their text)")
    _add_settings(validate)
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

    calibrate = _command(
        commands, "calibrate", _calibrate, "fit parameters of a device to measured operators"
    )
    calibrate.add_argument(
        "tables", metavar="TABLE.csv", nargs="+", help="operators or collectives, as for validate"
    )
    calibrate.add_argument("--hardware", metavar="FILE", required=True, help="hardware YAML")
    target = calibrate.add_mutually_exclusive_group()
    target.add_argument("--output", metavar="FILE", help="write the file with new values there")
    target.add_argument("--in-place", action="store_true", help="write it over the file itself")
    calibrate.add_argument(
        "--parameters", metavar="NAMES", help="only these, such as core.util,DRAM.util"
    )
    calibrate.add_argument(
        "--all-rows", action="store_true", help="take rows whatever machine they name"
    )
    calibrate.add_argument("--json", action="store_true", help="the result as JSON")

    accuracy = _command(
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

    schema = _command(commands, "schema", _schema, "print a JSON Schema, for editors")
    schema.add_argument("kind", choices=("hardware", "model", "framework", "sweep", "search"))

    serve = _command(commands, "serve", _serve, "run commands from standard input, for workflows")
    serve.description = (
        "Runs one command per line, a JSON list of a log file and arguments, and prints exit codes."
    )

    sweep = commands.add_parser("sweep", help="look into a sweep, or do one step of it")
    if first == "sweep":
        _add_sweep_steps(sweep)
    if first == "config":
        from deepflow.config.commands import add_config_command

        add_config_command(commands)
    else:
        commands.add_parser("config", help="work on configuration files")
    if first == "astra-collective":
        from deepflow.astra.store import add_astra_collective_command

        add_astra_collective_command(commands)
    else:
        commands.add_parser("astra-collective", help="time one collective, for workflows")
    if first == "search":
        from deepflow.search.command import add_search_command

        add_search_command(commands)
    else:
        commands.add_parser("search", help="look for the best machine in a space")
    if first == "astra-sim":
        from deepflow.astra.command import add_astra_sim_command

        add_astra_sim_command(commands)
    else:
        commands.add_parser("astra-sim", help="simulate Chakra traces with ASTRA-sim's options")
    return parser


def _add_sweep_steps(sweep: argparse.ArgumentParser) -> None:
    steps = sweep.add_subparsers(metavar="step", required=True)
    points = _sweep_step(steps, "points", _sweep_points, "list points without predicting them")
    points.add_argument("--json", action="store_true", help="a JSON array")
    points.add_argument(
        "--results", metavar="DIR", default="results", help="where targets are (default: results)"
    )
    shard = _sweep_step(steps, "shard", _sweep_shard, "predict the points of one shard")
    shard.add_argument("shard", metavar="SHARD", help="name, such as 03of32")
    shard.add_argument("--output", metavar="FILE", required=True, help="Parquet file to write")
    shard.add_argument("--expect-digest", metavar="DIGEST", help="as for predict")
    gather = _sweep_step(steps, "gather", _sweep_gather, "make one table of all points")
    gather.add_argument("--results", metavar="DIR", required=True, help="results of this sweep")
    gather.add_argument("--output", metavar="FILE", required=True, help="Parquet file to write")
    csv = _sweep_step(steps, "csv", _sweep_csv, "write the table as CSV too")
    csv.add_argument("--summary", metavar="FILE", required=True, help="table to convert")
    csv.add_argument("--output", metavar="FILE", required=True, help="CSV file to write")
    plot = _sweep_step(steps, "plot", _sweep_plot, "draw one figure")
    plot.add_argument("plot", metavar="NAME", help="name, such as 1-line")
    plot.add_argument("--summary", metavar="FILE", required=True, help="table to draw")
    plot.add_argument(
        "--output", metavar="FILE", nargs="+", required=True, help="files to write: .png, .svg"
    )


def _command(
    commands: Any, name: str, run: Any, purpose: str, epilog: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _sweep_step(steps: Any, name: str, run: Any, purpose: str) -> argparse.ArgumentParser:
    parser = _command(steps, name, run, purpose)
    parser.add_argument("sweep", metavar="SWEEP.yaml")
    return parser


def _add_point_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hardware", metavar="FILE", required=True, help="hardware YAML")
    parser.add_argument("--model", metavar="FILE", required=True, help="model YAML")
    _add_framework(parser, "framework YAML, which changes what the hardware file says of software")
    _add_settings(parser)
    parser.add_argument("--backend", choices=("analytical", "astra"), help="what times the network")


def _add_framework(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument("--framework", metavar="FILE", help=purpose)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        dest="settings",
        action="append",
        default=[],
        type=_path_and_value,
        help="change one key; may be given again",
    )


def _path_and_value(text: str) -> str:
    if not text.partition("=")[0].strip() or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH=VALUE")
    return text


def _predict(options: argparse.Namespace) -> None:
    from deepflow.files import atomic_output, to_json
    from deepflow.sweep.identity import configuration_digest
    from deepflow.sweep.run import (
        evaluate,
        evaluate_or_explain,
        point_record,
        prediction_table,
    )

    hardware, model, changes = _load_point(options)
    digest = configuration_digest(hardware, model, changes)
    if options.expect_digest not in (None, digest):
        raise _changed(f"{options.hardware} or {options.model}")
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


def _explain(options: argparse.Namespace) -> None:
    from deepflow.config import with_overrides
    from deepflow.explain import explain
    from deepflow.hardware import derive_hardware

    hardware, model, changes = _load_point(options)
    print(
        explain(
            derive_hardware(with_overrides(hardware, changes[0])), with_overrides(model, changes[1])
        )
    )


def _load_point(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(hardware, model, canonical changes): the files as they are, and what options change."""
    from deepflow.config import load_framework_config, load_hardware_config, load_model_config
    from deepflow.sweep.settings import Setting, canonical_settings, parse_setting

    hardware = load_hardware_config(options.hardware)
    if options.framework is not None:
        hardware = load_framework_config(options.framework).applied_to(hardware)
    model = load_model_config(options.model)
    settings = [parse_setting(text) for text in options.settings]
    if options.backend is not None:
        settings.append(Setting("backend.model", options.backend, "--backend"))
    return hardware, model, canonical_settings(settings, hardware, model, "--set")


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


def _calibrate(options: argparse.Namespace) -> None:
    from deepflow.calibrate import (
        as_json,
        calibrate,
        parameter_paths,
        report,
        write_calibrated,
    )
    from deepflow.files import to_json

    parameters = None if options.parameters is None else parameter_paths(options.parameters)
    found = calibrate(options.tables, options.hardware, parameters, every_row=options.all_rows)
    output = options.hardware if options.in_place else options.output
    if output is not None:
        write_calibrated(found, options.hardware, output)
    print(to_json(as_json(found)) if options.json else report(found))


def _accuracy(options: argparse.Namespace) -> None:
    from deepflow.files import atomic_output
    from deepflow.validate.accuracy import accuracy_page, overview, read_results
    from deepflow.validate.plots import draw_parity

    tables = read_results(options.folder, options.tables)
    page = accuracy_page(options.folder, tables, options.data)
    draw_parity(overview(tables), options.plot)
    with atomic_output(options.output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _changed(what: str) -> DeepFlowError:
    return DeepFlowError(f"{what} changed since the workflow was started; start it again")


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


def _sweep_points(options: argparse.Namespace) -> None:
    import json

    from deepflow.sweep.expand import load_sweep

    sweep = load_sweep(options.sweep)
    print(sweep.summary, file=sys.stderr)
    separator = "[\n"
    for point in sweep.points():
        target = f"{options.results}/{sweep.name}/points/{point.id}.json"
        if options.json:
            record = {"id": point.id, "target": target, "digest": point.digest}
            sys.stdout.write(separator + json.dumps(record))
            separator = ",\n"
        else:
            sys.stdout.write(f"{point.id}\t{target}\t{point.digest}\n")
    if options.json:
        print("\n]")


def _sweep_shard(options: argparse.Namespace) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.tables import write_shard

    sweep = load_sweep(options.sweep)
    if options.expect_digest not in (None, sweep.shard(options.shard).digest):
        raise _changed(f"{options.sweep} or a file that it names")
    write_shard(sweep, options.shard, options.output)


def _sweep_gather(options: argparse.Namespace) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.tables import gather

    gather(load_sweep(options.sweep), options.results, options.output)


def _sweep_csv(options: argparse.Namespace) -> None:
    from deepflow.sweep.tables import write_csv

    write_csv(options.summary, options.output)


def _sweep_plot(options: argparse.Namespace) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.plots import draw_plot

    sweep = load_sweep(options.sweep)
    draw_plot(sweep.plot(options.plot), options.summary, options.output, sweep.file)
