"""``deepflow search``: a whole search on one machine, or one step of it for workflows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.command_line import command
from deepflow.errors import DeepFlowError

if TYPE_CHECKING:
    from deepflow.search.run import Progress
    from deepflow.search.space import Case, Search

RESULTS = "results/searches"

_EXAMPLES = f"""Without options for steps it does all of them, and what is there already not again.

examples:
  deepflow search searches/lstm_64_devices.yaml
  deepflow search searches/lstm_64_devices.yaml --list
  deepflow search searches/lstm_64_devices.yaml --case base --start 0
  deepflow search searches/lstm_time_energy.yaml --plot pareto --figures front.svg
  snakemake --cores all {RESULTS}/lstm_64_devices/best.txt
"""


def add_search_command(commands: Any) -> None:
    """Adds the command to the parser of ``deepflow``."""
    search = command(commands, "search", _search, "look for the best machine in a space", _EXAMPLES)
    search.add_argument("search", metavar="SEARCH.yaml", help="the space and its objectives")
    search.add_argument(
        "--results", metavar="DIR", help=f"where results are (default: {RESULTS}/NAME)"
    )
    search.add_argument("--case", metavar="CASE", help="only this case; see --list")
    search.add_argument("--start", metavar="N", type=int, help="only this start")
    search.add_argument(
        "--output",
        metavar="FILE",
        help="with --case and --start: table to write; with --best: text",
    )
    search.add_argument("--expect-digest", metavar="DIGEST", help="as for predict")
    step = search.add_mutually_exclusive_group()
    step.add_argument("--list", action="store_true", help="list cases and starts, run nothing")
    step.add_argument("--gather", action="store_true", help="make tables of what has been run")
    step.add_argument("--best", action="store_true", help="show the best design of the tables")
    step.add_argument("--plot", metavar="NAME", help="draw one figure of the tables")
    search.add_argument(
        "--figures", metavar="FILE", nargs="+", default=[], help="with --plot: files to write"
    )


def _search(options: argparse.Namespace) -> None:
    from deepflow.search.space import load_search

    search = load_search(options.search)
    results = Path(options.results or f"{RESULTS}/{search.name}")
    chosen = _chosen(search, options.case, options.start)
    if options.list:
        _list(search, results, chosen)
    elif options.gather:
        from deepflow.search.tables import gather

        gather(search, results, results)
    elif options.best:
        _show_best(search, results, options.output)
    elif options.plot is not None:
        from deepflow.search.plots import draw_plot

        figures = options.figures or [str(results / f"plots/{options.plot}.png")]
        draw_plot(search, options.plot, results, figures)
    else:
        _run(search, results, chosen, options)


def _chosen(search: Search, case: str | None, start: int | None) -> list[tuple[Case, int]]:
    starts = range(search.optimizer.starts)
    if start is not None and start not in starts:
        raise DeepFlowError(f"search {search.name} has no start {start}, only 0 to {starts[-1]}")
    cases = list(search.cases.values()) if case is None else [search.case(case)]
    return [(item, number) for item in cases for number in (starts if start is None else [start])]


def _list(search: Search, results: Path, chosen: Sequence[tuple[Case, int]]) -> None:
    from deepflow.search.tables import run_file

    print(search.summary, file=sys.stderr)
    for case, start in chosen:
        target = results / run_file(search, case, start)
        print(f"{case.id}\t{start}\t{target}\t{search.run_digest(case, start)}")


def _show_best(search: Search, results: Path, output: str | Path | None) -> None:
    """The best design of all, on the screen and in ``output``.

    Raises DeepFlowError, and leaves no ``output``, if no design is feasible.
    """
    from deepflow.files import atomic_output
    from deepflow.search.tables import best_text, read_best, why_nothing

    ranked = read_best(results)
    if ranked.empty:
        if output is not None:
            Path(output).unlink(missing_ok=True)
        raise DeepFlowError(f"{search.file}: no design is feasible: {why_nothing(search, results)}")
    text = best_text(search, ranked)
    print(text)
    if output is not None:
        with atomic_output(output) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _run(
    search: Search,
    results: Path,
    chosen: Sequence[tuple[Case, int]],
    options: argparse.Namespace,
) -> None:
    from deepflow.search.run import Progress
    from deepflow.search.tables import best_rows, best_text, run_file

    single = len(chosen) == 1
    if not single and (options.output is not None or options.expect_digest is not None):
        raise DeepFlowError("--output and --expect-digest are for one --case and --start")
    print(search.summary, file=sys.stderr)
    best = []
    same_costs = len({search.weights(start) for _, start in chosen}) == 1
    evaluations = search.optimizer.evaluations
    progress = Progress(sys.stderr, len(chosen), evaluations, same_costs=same_costs)
    for case, start in chosen:
        if options.expect_digest not in (None, search.run_digest(case, start)):
            raise DeepFlowError(
                f"{search.file} or a file that it names changed since the workflow was started;"
                " start it again"
            )
        output = Path(options.output or results / run_file(search, case, start))
        best.append(best_rows(_one(search, case, start, output, progress).to_pandas()))
    if options.case is None and options.start is None:
        from deepflow.search.plots import draw_plot, plot_names
        from deepflow.search.tables import gather

        gather(search, results, results)
        for name in plot_names(search):
            draw_plot(search, name, results, [str(results / f"plots/{name}.png")])
        _show_best(search, results, results / "best.txt")
        print(f"tables and figures are in {results}", file=sys.stderr)
    else:
        import pandas as pd

        print(best_text(search, pd.concat(best).sort_values("cost", kind="stable")))


def _one(search: Search, case: Case, start: int, output: Path, progress: Progress) -> Any:
    """The table of one start: what is there already, or run, beginning with what is known."""
    from deepflow.search.run import Known, run_search
    from deepflow.search.tables import evaluations_of, read_run, run_table, write_table

    unfinished = output.with_name(f".{output.name}.unfinished")
    known: Known = ()
    for file in (output, unfinished):
        if not file.exists():
            continue
        try:
            table = read_run(file, search, case, start)
        except DeepFlowError as error:
            print(error, file=sys.stderr)
            continue
        if file == output:
            progress.skip()
            return table
        known = evaluations_of(table)
    run = run_search(
        search,
        case,
        start,
        known=known,
        save=lambda done: write_table(run_table(search, case, start, done), unfinished),
        progress=progress,
    )
    table = run_table(search, case, start, run.evaluations)
    write_table(table, output)
    unfinished.unlink(missing_ok=True)
    return table
