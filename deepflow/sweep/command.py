"""``deepflow sweep``: look into a sweep, or do one step of it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from deepflow.command_line import changed, command


def add_sweep_command(commands: Any) -> None:
    """Adds ``sweep`` and its steps to the ``deepflow`` command."""
    sweep = commands.add_parser("sweep", help="look into a sweep, or do one step of it")
    steps = sweep.add_subparsers(metavar="step", required=True)
    points = _step(steps, "points", _points, "list points without predicting them")
    points.add_argument("--json", action="store_true", help="a JSON array")
    points.add_argument(
        "--results", metavar="DIR", default="results", help="where targets are (default: results)"
    )
    shard = _step(steps, "shard", _shard, "predict the points of one shard")
    shard.add_argument("shard", metavar="SHARD", help="name, such as 03of32")
    shard.add_argument("--output", metavar="FILE", required=True, help="Parquet file to write")
    shard.add_argument("--expect-digest", metavar="DIGEST", help="as for predict")
    gather = _step(steps, "gather", _gather, "make one table of all points")
    gather.add_argument("--results", metavar="DIR", required=True, help="results of this sweep")
    gather.add_argument("--output", metavar="FILE", required=True, help="Parquet file to write")
    csv = _step(steps, "csv", _csv, "write the table as CSV too")
    csv.add_argument("--summary", metavar="FILE", required=True, help="table to convert")
    csv.add_argument("--output", metavar="FILE", required=True, help="CSV file to write")
    plot = _step(steps, "plot", _plot, "draw one figure")
    plot.add_argument("plot", metavar="NAME", help="name, such as 1-line")
    plot.add_argument("--summary", metavar="FILE", required=True, help="table to draw")
    plot.add_argument(
        "--output", metavar="FILE", nargs="+", required=True, help="files to write: .png, .svg"
    )
    _add_sensitivity_steps(steps)


def _add_sensitivity_steps(steps: Any) -> None:
    """The steps of sweeps that ask for sensitivities."""
    shard = _step(steps, "sensitivity-shard", _sensitivity_shard, "analyse the points of a shard")
    shard.add_argument("shard", metavar="SHARD", help="name, such as 03of32")
    shard.add_argument("--output", metavar="FILE", required=True, help="Parquet file to write")
    shard.add_argument("--expect-digest", metavar="DIGEST", help="as for predict")
    gather = _step(
        steps, "sensitivity-gather", _sensitivity_gather, "make one table of all sensitivities"
    )
    gather.add_argument("--results", metavar="DIR", required=True, help="results of this sweep")
    gather.add_argument("--output", metavar="FILE", required=True, help="Parquet file to write")
    plot = _step(steps, "sensitivity-plot", _sensitivity_plot, "draw one figure of sensitivities")
    plot.add_argument("plot", metavar="NAME", help="name, such as 1-tornado")
    plot.add_argument("--table", metavar="FILE", required=True, help="table to draw")
    plot.add_argument(
        "--output", metavar="FILE", nargs="+", required=True, help="files to write: .png, .svg"
    )


def _step(steps: Any, name: str, run: Any, purpose: str) -> argparse.ArgumentParser:
    parser = command(steps, name, run, purpose)
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="what is swept")
    return parser


def _points(options: argparse.Namespace) -> None:
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


def _shard(options: argparse.Namespace) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.tables import write_shard

    sweep = load_sweep(options.sweep)
    if options.expect_digest not in (None, sweep.shard(options.shard).digest):
        raise changed(f"{options.sweep} or a file that it names")
    write_shard(sweep, options.shard, options.output)


def _gather(options: argparse.Namespace) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.tables import gather

    gather(load_sweep(options.sweep), options.results, options.output)


def _csv(options: argparse.Namespace) -> None:
    from deepflow.sweep.tables import write_csv

    write_csv(options.summary, options.output)


def _plot(options: argparse.Namespace) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.plots import draw_plot

    sweep = load_sweep(options.sweep)
    draw_plot(sweep.plot(options.plot), options.summary, options.output, sweep.file)


def _sensitivity_shard(options: argparse.Namespace) -> None:
    from deepflow.sensitivity.sweeps import finer, write_shard
    from deepflow.sweep.expand import load_sweep

    sweep = load_sweep(options.sweep)
    if options.expect_digest not in (None, finer(sweep).shard(options.shard).digest):
        raise changed(f"{options.sweep} or a file that it names")
    write_shard(sweep, options.shard, options.output)


def _sensitivity_gather(options: argparse.Namespace) -> None:
    from deepflow.sensitivity.sweeps import gather
    from deepflow.sweep.expand import load_sweep

    gather(load_sweep(options.sweep), options.results, options.output)


def _sensitivity_plot(options: argparse.Namespace) -> None:
    from deepflow.sensitivity.sweeps import draw_figure
    from deepflow.sweep.expand import load_sweep

    draw_figure(load_sweep(options.sweep), options.plot, options.table, options.output)
