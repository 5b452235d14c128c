# What all rules share: which sweeps and tables there are, and their points.

import atexit
import os
import shutil
import signal
import sys
import time
import warnings
from functools import lru_cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from deepflow.config import did_you_mean
from deepflow.errors import DeepFlowError
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.worker import WorkerPool

# One line per warning, without the line of code that issued it.
warnings.showwarning = lambda message, *_, **__: print(
    f"Warning: {message}", file=sys.stderr
)

# With this variable each of a thousand jobs would compile all of DeepFlow again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


SECONDS_TO_STOP = 10


def interrupt(number, frame):
    """Stops as after Ctrl-C, and again if that has not ended the workflow after a while.

    An interrupt is lost when it falls into the clean-up of an object, whose exceptions Python
    only prints.
    """
    signal.alarm(SECONDS_TO_STOP)
    raise KeyboardInterrupt


onstart:
    # Snakemake's own answer to this signal waits for a lock that it may hold itself, and then
    # hangs for ever.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    require_writable(workflow.dag.needrun_jobs())


WORKERS = WorkerPool()
atexit.register(WORKERS.close)
VALIDATION = "results/validation"
COLLECTIVES = "results/collectives"
# Collectives that points need, by the names of their files; and these files by sweep and point.
NEEDED, FOUND = {}, {}
# Of a search in the gallery: more take longer than some minutes.
MOST_EVALUATIONS = 20_000
DEFAULT_SWEEPS = ["sweeps/gemm_shapes.yaml", "sweeps/llama2_70b_parallelism_h100.yaml"]


wildcard_constraints:
    sweep=r"[A-Za-z0-9_-][A-Za-z0-9._-]*",
    point=r"[A-Za-z0-9._+=-]+",
    shard=r"\d+of\d+",
    plot=r"[A-Za-z0-9._+-]+",
    table=r"[A-Za-z0-9._+-]+",
    ablation=r"[a-z_]+",
    collective=r"[0-9a-f]{64}",


def stop(problem):
    """End the run with one line and exit code 1.

    Snakemake shows an exception with the lines of code that it went through, which say nothing
    to somebody who mistyped a key.
    """
    print(f"Error: {problem}", file=sys.stderr)
    sys.exit(1)


def require_writable(jobs):
    """Stop before any job runs if there is a folder of results that nothing can be written to.

    Snakemake would show where in its own code it failed to remove an older file.
    """
    folders = {Path(file).parent for job in jobs for file in [*job.output, *job.log]}
    for folder in sorted(folders):
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            stop(f"{folder}: no permission to write results there, or it is read-only")


def chosen_sweeps():
    """Name -> file of the sweeps that a run without targets makes."""
    for key in config:
        if key not in ("sweeps", "tables"):
            stop(
                f"config: unknown key {key!r}{did_you_mean(key, ['sweeps', 'tables'])}"
            )
    given = config.get("sweeps", DEFAULT_SWEEPS)
    files = given.split(",") if isinstance(given, str) else given
    if not isinstance(files, list) or not all(
        isinstance(file, str) and file.strip() for file in files
    ):
        stop(f"config: sweeps = {given!r} is neither a file nor a list of files")
    chosen = {}
    for file in map(str.strip, files):
        other = chosen.setdefault(Path(file).stem, file)
        if other != file:
            stop(f"sweeps {other} and {file} would share a directory of results")
    return chosen


CHOSEN = chosen_sweeps()
SWEEP_FILES = {
    path.stem: str(path) for path in sorted(Path("sweeps").glob("*.yaml"))
} | CHOSEN


@lru_cache(maxsize=None)
def get_sweep(name):
    """The loaded sweep of this name; a sweep that no target needs is never read."""
    if name not in SWEEP_FILES:
        hint = did_you_mean(name, SWEEP_FILES)
        stop(f"no sweep is called {name!r}{hint} (known: {', '.join(SWEEP_FILES)})")
    try:
        return load_sweep(SWEEP_FILES[name])
    except DeepFlowError as error:
        stop(str(error))


@lru_cache(maxsize=None)
def get_whole_sweep(name):
    """``get_sweep`` where all points are needed: says how many, and checks the plots first."""
    # A single point needs neither, and should not wait for them to be imported.
    from deepflow.sweep.plots import check_plots
    from deepflow.sweep.tables import summary_columns

    sweep = get_sweep(name)
    try:
        check_plots(sweep.plots, list(summary_columns(sweep)), sweep.file)
        if sweep.sensitivity is not None:
            from deepflow.sensitivity.sweeps import check_figures

            check_figures(sweep)
        print(sweep.summary, file=sys.stderr)
    except DeepFlowError as error:
        stop(str(error))
    return sweep


def sweep_targets(name):
    """Every file that a sweep makes, but for its points."""
    sweep = get_whole_sweep(name)
    targets = [f"results/{name}/summary.parquet"]
    targets += [f"results/{name}/summary.csv"] if sweep.csv else []
    targets += [f"results/{name}/plots/{plot.name}.png" for plot in sweep.plots]
    if sweep.sensitivity is not None:
        figures = sweep.sensitivity.figures
        targets.append(f"results/{name}/sensitivity.parquet")
        targets += [
            f"results/{name}/sensitivity/plots/{figure.name}.png" for figure in figures
        ]
    return targets


def example_figures(wildcards):
    """A figure for each sweep that DeepFlow comes with, and for searches of some minutes.

    Of a sweep the first; of a search the second, if it has more than convergence.
    """
    from deepflow.search.plots import plot_names

    figures = [
        f"results/{name}/plots/{get_sweep(name).plots[0].name}.svg"
        for name in sorted(path.stem for path in Path("sweeps").glob("*.yaml"))
    ]
    for name in sorted(path.stem for path in Path("searches").glob("*.yaml")):
        search = get_search(name)
        starts = len(search.cases) * search.optimizer.starts
        if starts * search.optimizer.evaluations <= MOST_EVALUATIONS:
            figure = plot_names(search)[:2][-1]
            figures.append(f"{SEARCHES}/{name}/plots/{figure}.svg")
    return figures


def gathered_files(wildcards):
    """What the table of a sweep is made from: a file per shard, or per point."""
    sweep = get_whole_sweep(wildcards.sweep)
    if sweep.sharded:
        return [f"results/{sweep.name}/shards/{name}.parquet" for name in sweep.shards]
    return [f"results/{sweep.name}/points/{point.id}.json" for point in sweep.points()]


def get_part(kind, wildcards):
    """The "point", "shard" or "plot" that a target names."""
    sweep = get_sweep(wildcards.sweep)
    try:
        return getattr(sweep, kind)(wildcards[kind])
    except DeepFlowError as error:
        stop(error)


def point_options(wildcards):
    """The options of ``deepflow predict`` that describe a point."""
    point = get_part("point", wildcards)
    base = point.base
    options = ["--hardware", base.hardware_file, "--model", base.model_file]
    if base.framework_file is not None:
        options += ["--framework", base.framework_file]
    for setting in point.settings:
        options += ["--set", setting.text]
    return options


def find_collectives(name, point):
    """The files of the collectives that a point of a sweep needs, noted in ``NEEDED``."""
    if not point.may_run_astra_sim:
        return []
    if (name, point.id) not in FOUND:
        # Most sweeps need no prediction here, and should not wait for it to be imported.
        from deepflow.sweep.run import collectives_of

        needed = collectives_of(point)
        NEEDED.update(needed)
        FOUND[name, point.id] = [f"{COLLECTIVES}/{digest}.json" for digest in needed]
    return FOUND[name, point.id]


def needed_collectives(wildcards):
    """The files of the collectives that a point is made from."""
    return find_collectives(wildcards.sweep, get_part("point", wildcards))


def collective_targets(name):
    """The files of the collectives that a sweep needs.

    As targets of their own they are made again, and so are their points, if they are missing.
    """
    sweep = get_sweep(name)
    points = () if sweep.sharded else sweep.points()
    return list(
        {file: None for point in points for file in find_collectives(name, point)}
    )


def get_collective(wildcards):
    """The simulation that a target names."""
    if wildcards.collective not in NEEDED:
        # No point has been looked at if the file itself is what somebody asked for.
        for name in CHOSEN:
            collective_targets(name)
    if wildcards.collective not in NEEDED:
        stop(f"no point of {', '.join(CHOSEN)} needs {wildcards.collective}")
    return NEEDED[wildcards.collective]


@lru_cache(maxsize=None)
def get_last_failure(collective):
    """When ASTRA-sim failed on a collective, "" if it never did.

    Read once: Snakemake asks again when the job runs, and has deleted the file by then.
    """
    from deepflow.astra.store import last_failure

    return last_failure(f"{COLLECTIVES}/{collective}.json")


@lru_cache(maxsize=None)
def get_tables():
    """Name -> file of the tables that hold rows of a kind that is predicted."""
    # Sweeps need none of this, and should not wait for it to be imported.
    from deepflow.validate.workflow import SAMPLES, tables_in

    try:
        return tables_in(config.get("tables", SAMPLES))
    except DeepFlowError as error:
        stop(str(error))


def get_table(wildcards):
    """The file of the table that a target names."""
    tables = get_tables()
    if wildcards.table not in tables:
        stop(f"no table is called {wildcards.table!r} (known: {', '.join(tables)})")
    return tables[wildcards.table]


def validated(wildcards):
    """The tables with their predictions."""
    return expand(f"{VALIDATION}/{{table}}/rows.csv", table=get_tables())


def ablated(wildcards):
    """The tables with the predictions of models that lack one mechanism."""
    return [
        f"{VALIDATION}/{table}/without/{ablation}.csv"
        for table, file in get_tables().items()
        for ablation in get_ablations(file)
    ]


@lru_cache(maxsize=None)
def get_ablations(file):
    """Name -> settings of the ablations that concern the table in ``file``."""
    from deepflow.validate.workflow import ablations_of

    return ablations_of(file)


def get_model_digest(wildcards):
    """Fingerprint of all that predictions of tables depend on but for the tables."""
    from deepflow.validate.workflow import hardware_digest

    return hardware_digest()


def described_data(wildcards):
    """What the page on accuracy says of its data."""
    from deepflow.validate.workflow import SAMPLES

    if "tables" in config:
        return f"the tables given to the workflow; `{SAMPLES}` has samples of them"
    return f"the samples in `{SAMPLES}`"


def settle_times(files):
    """Put times of results that lie in the future, after a clock was wrong, at the present.

    Snakemake takes what is made from such a file for out of date, and fails.
    """
    now = time.time()
    for file in files:
        if os.stat(file).st_mtime > now:
            os.utime(file, (now, now))


def copy_figures(files, folder, log):
    """Copy figures to where the documentation shows them, under the names of their examples."""
    copies = {file: Path(folder, f"{Path(file).parents[1].name}.svg") for file in files}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file, target in copies.items():
        shutil.copyfile(file, target)
    lines = [f"{target} is a copy of {file}\n" for file, target in copies.items()]
    Path(log).write_text("".join(lines))


def deepflow(arguments, log):
    """Run a command in a warm process; the first line of its log repeats it by hand."""
    try:
        WORKERS.run(arguments, log)
    except DeepFlowError as error:
        raise WorkflowError(str(error)) from None
