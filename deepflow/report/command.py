"""``deepflow report``: one HTML file about a sweep or a search."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from deepflow.command_line import command

_EXAMPLES = """examples:
  deepflow report sweeps/gemm_shapes.yaml
  deepflow report sweeps/gemm_shapes.yaml --output gemm.html --points ID OTHER_ID
  deepflow report searches/lstm_64_devices.yaml
  snakemake --cores all report                      # of all chosen sweeps, predicted if need be
  snakemake --cores all results/gemm_shapes/report.html
"""


def add_report_command(commands: Any) -> None:
    """Adds ``report`` to the ``deepflow`` command."""
    report = command(
        commands,
        "report",
        _report,
        "write a page about a sweep or a search that has been run",
        _EXAMPLES,
    )
    report.add_argument("file", metavar="FILE.yaml", help="sweep or search")
    report.add_argument(
        "--summary",
        metavar="FILE",
        help="table of results (default: results/NAME/summary.parquet,"
        " results/searches/NAME/evaluations.parquet)",
    )
    report.add_argument(
        "--output", metavar="FILE", help="page to write (default: report.html beside the table)"
    )
    report.add_argument(
        "--points", metavar="ID", nargs="+", default=[], help="points to compare on the page"
    )


def _report(options: argparse.Namespace) -> None:
    from deepflow.config import read_yaml
    from deepflow.report.content import gather_content, search_subject, sweep_subject
    from deepflow.report.page import write_page

    asked = read_yaml(options.file)
    if isinstance(asked, dict) and ({"objectives", "variables", "budgets"} & asked.keys()):
        from deepflow.search.command import RESULTS
        from deepflow.search.space import load_search

        search = load_search(options.file)
        subject, table = search_subject(search), f"{RESULTS}/{search.name}/evaluations.parquet"
    else:
        from deepflow.sweep.expand import load_sweep

        sweep = load_sweep(options.file)
        subject, table = sweep_subject(sweep), f"results/{sweep.name}/summary.parquet"
    summary = options.summary or table
    output = options.output or Path(summary).with_name("report.html")
    content = gather_content(subject, summary, options.points)
    write_page(content, output)
    some = f", {content['shown']:,} of them in it" if content["shown"] < content["points"] else ""
    print(f"{output}: {content['points']:,} points{some}", file=sys.stderr)
