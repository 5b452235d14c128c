"""What the benchmarks share: a scratch copy of the workflow, CPU time, memory, tables.

Only for Linux: memory is read from /proc.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
WORKFLOW_PARTS = ("Snakefile", "rules", "profiles", "configs", "environment.yml")
MEMORY_POLL_SECONDS = 0.1

# 40 ways to split a model over 64 devices, times five networks, times a number of memories.
POINTS_PER_MEMORY = 200
SWEEP = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-70B.yaml
set:
  hardware.system_hierarchy.num_nodes: 8
  model.global_batch_size: 1024
grid:
  parallelism.tensor: [1, 2, 4, 8]
  parallelism.pipeline: [4, 8]
  parallelism.num_microbatches: [4, 8, 16, 32, 64]
  hardware.tech_param.network.inter_node.bandwidth: [12.5e9, 25.0e9, 50.0e9, 100.0e9, 200.0e9]
  hardware.tech_param.DRAM.bandwidth: [{bandwidths}]
{more}"""


@dataclass(frozen=True)
class Row:
    """One line of the result table; ``target`` is what the project promises, or ''."""

    name: str
    value: str
    target: str = ""


@dataclass(frozen=True)
class Usage:
    """What a command and all processes below it took."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def sweep_text(points: int, more: str = "") -> str:
    """A sweep of ``points`` LLM training predictions, as YAML.

    Raises ValueError unless ``points`` is a multiple of ``POINTS_PER_MEMORY``.
    """
    if points <= 0 or points % POINTS_PER_MEMORY:
        raise ValueError(f"the number of points must be a multiple of {POINTS_PER_MEMORY}")
    bandwidths = (2.0e12 + 2.0e10 * index for index in range(points // POINTS_PER_MEMORY))
    return SWEEP.format(bandwidths=", ".join(map(repr, bandwidths)), more=more)


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary directory with a copy of the workflow and its configuration files."""
    with TemporaryDirectory(prefix="deepflow-benchmark-") as name:
        folder = Path(name)
        for part in WORKFLOW_PARTS:
            source = REPOSITORY / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
        (folder / "sweeps").mkdir()
        yield folder


def run_snakemake(folder: Path, *arguments: str) -> Usage:
    """Runs Snakemake in ``folder`` on two cores; RuntimeError with its output if it fails."""
    # Jobs call `python`: it has to be this one, with this checkout.
    environment = dict(
        os.environ,
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(REPOSITORY),
    )
    # Installed packages are compiled, so compile the checkout too and not once per job.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    _adopt_orphans()
    cpu_before, start = _children_cpu_seconds(), time.perf_counter()
    with (folder / "benchmark.log").open("w+", encoding="utf-8") as log:
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as process:
            memory = _PeakMemory(process.pid)
            process.wait()
            _wait_for_orphans()
        wall = time.perf_counter() - start
        peak = memory.stop()
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{log.read()[-4000:]}")
    return Usage(wall, _children_cpu_seconds() - cpu_before, peak)


def median_seconds(function: Callable[[int], object], repetitions: int) -> float:
    """Median CPU time of ``function(0)``, ``function(1)``, ... after a call that is not counted.

    Nothing that is measured with it sleeps or waits: on a machine of one's own it is the wall time.
    """
    function(repetitions)
    seconds = []
    for index in range(repetitions):
        start = time.process_time()
        function(index)
        seconds.append(time.process_time() - start)
    return median(seconds)


def describe_machine() -> str:
    """Processor, cores, memory and versions: what every table has to come with."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = ("snakemake", "numpy", "pandas", "pyarrow")
    return "\n".join(
        (
            f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB",
            f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in packages),
        )
    )


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows as a Markdown table."""
    cells = [("measured", "value", "target"), *((row.name, row.value, row.target) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    cells.insert(1, tuple("-" * width for width in widths))
    for line in cells:
        print(
            "| "
            + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
            + " |"
        )


class _PeakMemory:
    """Polls the resident memory of a process and its descendants until stopped.

    The sum counts memory that processes share once per process: an upper bound.
    """

    def __init__(self, root: int) -> None:
        self._root, self._peak, self._done = root, 0, threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak

    def _poll(self) -> None:
        while not self._done.wait(MEMORY_POLL_SECONDS):
            self._peak = max(self._peak, _tree_resident_bytes(self._root))


def _tree_resident_bytes(root: int) -> int:
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command, in parentheses, may hold blanks: count the fields after it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        resident[int(entry.name)] = int(fields[21]) * page
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += resident.get(process, 0)
        waiting += children.get(process, [])
    return total


def _adopt_orphans() -> None:
    """Makes processes that outlive their parent children of this one, so that they count."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl
    if ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _wait_for_orphans() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
