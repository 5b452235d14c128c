"""Sweeps on a real SLURM with the profile that the project ships.

After each fault the next run, or the next attempt, ends with the summary of a run that nothing
has disturbed and that needed no SLURM.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepflow.cli import main
from test_workflow import BREAK_ON_PURPOSE, Project, Run, new_project
from tests.local_slurm import LocalSlurm, missing, running

SWEEP = """\
hardware: hardware/first.yaml
model: configs/model-config/GEMM.yaml
set: {model.backward: false}
grid: {model.M: [64, 256], model.N: [512, 1024]}
"""
SEARCH = """\
hardware: configs/hardware-config/budgeted_accelerator.yaml
model: configs/model-config/GEMM.yaml
technology: {memory: [HBM2E, HBM3]}
variables: {hardware.area_breakdown.core: {low: 300, high: 500}}
optimizer: {evaluations: 12}
"""
POINTS = SWEEP + "points_per_job: 1\n"
SHARDS = SWEEP + "points_per_job: 2\n"

# The first worker to start meets the fault that a file is named after, and says in which job.
FAULTS = """\
import os, sys, time

if "serve" in sys.orig_argv:
    for name in ("greedy", "slow"):
        try:
            os.rename(name, name + ".met")
        except FileNotFoundError:
            continue
        with open(name + ".job", "w") as file:
            file.write(os.environ["SLURM_JOB_ID"])
        ballast = b"1" * 2**30 if name == "greedy" else b""
        time.sleep(600)
"""
# Three points of four: whichever two share a job, one of them fails.
BREAK = BREAK_ON_PURPOSE.replace("model.M == 256", "model.M * model.N > 64 * 512")
# The waits of the profile are for real clusters, where jobs take minutes.
QUICK = (
    *("--slurm-init-seconds-before-status-checks", "12", "--max-status-checks-per-second", "1"),
    *("--latency-wait", "10", "--group-components", "points=2", "--cores", "1"),
)
# Two processes of Snakemake and a worker fit into it, and a gigabyte more does not.
MEMORY = ("--set-resources", "shard:mem_mb=900 * attempt")
SECONDS = 180


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    if reason := missing():
        pytest.skip(f"no SLURM: {reason}")
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(running(tmp_path_factory.mktemp("slurm")))
        except RuntimeError as error:
            pytest.skip(f"SLURM is installed and does not start: {error}")
        yield cluster


@pytest.fixture
def project(tmp_path: Path, repository: Path) -> Project:
    project = new_project(tmp_path / "a project", repository)
    (project.folder / "python" / "sitecustomize.py").write_text(FAULTS + BREAK)
    return project


def run(project: Project, sweep: str, *arguments: str) -> Run:
    return project.run(sweep, "--profile", "profiles/slurm", *QUICK, *arguments)


@contextlib.contextmanager
def start(project: Project, sweep: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    config = ("--config", f"sweeps=sweeps/{sweep}.yaml")
    with project.start("--profile", "profiles/slurm", *QUICK, *arguments, *config) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def undisturbed(project: Project, sweep: str) -> bytes:
    """The summary that a run without SLURM makes of a sweep; it takes the place of the other."""
    shutil.rmtree(project.folder / "results" / sweep)
    done = project.run(sweep)
    assert done.code == 0, done.text
    return summary(project, sweep)


def summary(project: Project, sweep: str) -> bytes:
    return (project.folder / "results" / sweep / "summary.parquet").read_bytes()


def test_a_dry_run_needs_no_slurm(project: Project) -> None:
    project.sweep("planned", POINTS)
    planned = project.run("planned", "--profile", "profiles/slurm", "--dry-run")
    assert planned.code == 0, planned.text
    assert "Group job points" in planned.text
    assert "mem_mb=1000" in planned.text
    assert not planned.made


def test_shards_survive_a_restarted_controller_and_a_job_that_wants_too_much_memory(
    slurm: LocalSlurm, project: Project
) -> None:
    project.sweep("large", SHARDS)
    greedy = project.folder / "greedy"
    greedy.touch()
    with start(project, "large", *MEMORY) as process:
        wait_for(greedy.with_name("greedy.job").exists, process)
        slurm.stop_controller()
        time.sleep(1)
        slurm.start_controller()
        text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, text
    # The job ran again, with more memory; what it said before is kept.
    assert text.count("Trying to restart job") == 1
    job = greedy.with_name("greedy.job").read_text()
    (log,) = (project.folder / ".snakemake" / "slurm_logs").rglob(f"{job}.log")
    assert "memory" in log.read_text()
    requests = slurm.ask("squeue", "--states=all", "--sort=i", "--format=%i %T %m")
    assert requests[-1].split()[1:] == ["COMPLETED", "1800M"], requests
    assert summary(project, "large") == undisturbed(project, "large")


def test_points_share_jobs_and_a_cancelled_or_failing_one_is_made_by_the_next_run(
    slurm: LocalSlurm, project: Project
) -> None:
    project.sweep("small", POINTS)
    slow, broken = project.folder / "slow", project.folder / "broken"
    slow.touch()
    broken.touch()
    with start(project, "small", "--retries", "0") as process:
        wait_for(slow.with_name("slow.job").exists, process)
        jobs = slurm.ask("squeue", "--states=all", "--format=%k")
        subprocess.run(["scancel", slow.with_name("slow.job").read_text()], check=True)
        text, _ = process.communicate(timeout=SECONDS)
    assert jobs.count("rule_points_point") == 2
    assert process.returncode == 1, text
    assert "broken on purpose" in text
    broken.unlink()
    resumed = run(project, "small")
    assert resumed.code == 0, resumed.text
    assert summary(project, "small") == undisturbed(project, "small")
    assert run(project, "small").made == frozenset()


def test_ctrl_c_takes_the_jobs_along(slurm: LocalSlurm, project: Project) -> None:
    project.sweep("stopped", SHARDS)
    (project.folder / "slow").touch()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What runs in the background of a script ignores it, and so would Snakemake below it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with start(project, "stopped") as process:
        wait_for((project.folder / "slow.job").exists, process)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, text
    assert not slurm.ask("squeue", "--states=running,pending")


def test_starts_of_a_search_are_jobs(
    slurm: LocalSlurm, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.folder / "searches").mkdir()
    (project.folder / "searches" / "small.yaml").write_text(SEARCH)
    target = "results/searches/small/best.txt"
    # Its jobs take seconds and do not wait for each other.
    soon = ("--slurm-init-seconds-before-status-checks", "5")
    submitted = project.snakemake("--profile", "profiles/slurm", *QUICK, *soon, target)
    assert submitted.code == 0, submitted.text
    jobs = slurm.ask("squeue", "--states=all", "--format=%k %T")
    assert sorted(job for job in jobs if "search_start" in job) == [
        f"rule_search_start_wildcards_small_memory={name}_0 COMPLETED" for name in ("HBM2E", "HBM3")
    ]
    monkeypatch.chdir(project.folder)
    assert main(["search", "searches/small.yaml", "--results", "here"]) == 0
    assert Path(target).read_text() == Path("here/best.txt").read_text()
