"""What may go wrong around a sweep: killed processes, full disks, damaged files, wrong clocks.

Real Snakemake in a copy of the project. After each fault there is a clear message where something
failed, and the next run ends with the very rows of a run that nothing has disturbed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from astra_stand_in import StandIn
from test_workflow import Project, Run, new_project
from test_workflow_astra import SWEEP as ASTRA_SWEEP

SWEEP = """\
hardware: [hardware/first.yaml, hardware/second.yaml]
model: configs/model-config/GEMM.yaml
set: {model.backward: false}
grid: {model.M: {start: 1, stop: 50, step: 1}}
"""
POINTS = SWEEP + "points_per_job: 1\n"
SHARDS = SWEEP + "points_per_job: 25\n"
FORMS = pytest.mark.parametrize("form", [POINTS, SHARDS], ids=["points", "shards"])

# The first worker to start meets the fault that a file is named after. More than 2 kB in a file,
# which is more than a log has, fail as on a full disk, or end the process in mid-write.
FAULTS = """\
import os, resource, signal, sys

if "serve" in sys.orig_argv:
    for name in ("disk_full", "killed"):
        try:
            os.rename(name, name + ".met")
        except FileNotFoundError:
            continue
        sys.dont_write_bytecode = True
        if name == "killed":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""


@dataclass(frozen=True)
class FaultyProject:
    """A project with one sweep, and the rows that an undisturbed run makes of it."""

    project: Project
    expected: tuple[str, ...]

    @property
    def results(self) -> Path:
        return self.project.folder / "results" / "faults"

    def run(self, *arguments: str, within: Sequence[str] = ()) -> Run:
        return self.project.run("faults", *arguments, within=within)

    def halted(self) -> subprocess.Popen[str]:
        """A run that is halfway through and waits for SIGCONT."""
        process = self.project.start("--config", "sweeps=sweeps/faults.yaml")
        while len(list(self.results.glob("points/*.json"))) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        assert len(list(self.results.glob("points/*.json"))) < 99
        return process

    def assert_next_run_mends_it(self) -> None:
        done = self.run()
        assert done.code == 0, done.text
        assert rows(self.results) == self.expected


def rows(results: Path) -> tuple[str, ...]:
    """The lines of a summary as CSV, sorted, without the columns of versions."""
    table = pq.read_table(results / "summary.parquet")
    unversioned = [name for name in table.column_names if not name.endswith("_version")]
    text = io.BytesIO()
    csv.write_csv(table.select(unversioned), text)
    return tuple(sorted(text.getvalue().decode().splitlines()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> FaultyProject:
    """A finished project, which nobody may change."""
    project = new_project(tmp_path_factory.mktemp("faults") / "undisturbed", repository)
    (project.folder / "python" / "sitecustomize.py").write_text(FAULTS)
    project.sweep("faults", POINTS)
    done = project.run("faults")
    assert done.code == 0, done.text
    expected = rows(project.folder / "results" / "faults")
    assert len(expected) == 101
    return FaultyProject(project, expected)


def copied(finished: FaultyProject, folder: Path) -> FaultyProject:
    """A copy with its results and what Snakemake knows of them."""
    shutil.copytree(finished.project.folder, folder)
    return replace(finished, project=replace(finished.project, folder=folder))


@pytest.fixture
def finished(undisturbed: FaultyProject, tmp_path: Path) -> FaultyProject:
    return copied(undisturbed, tmp_path / "project")


@pytest.fixture
def fresh(finished: FaultyProject) -> FaultyProject:
    """Without results."""
    shutil.rmtree(finished.results)
    shutil.rmtree(finished.project.folder / ".snakemake")
    return finished


@FORMS
@pytest.mark.parametrize(
    ("fault", "message"),
    [("killed", "the process died (exit code -25)"), ("disk_full", "cannot be written: File too")],
)
def test_a_job_that_dies_or_finds_the_disk_full_in_mid_write(
    fresh: FaultyProject, form: str, fault: str, message: str
) -> None:
    fresh.project.sweep("faults", form)
    (fresh.project.folder / fault).touch()
    failed = fresh.run()
    assert failed.code == 1
    assert message in failed.text
    assert (fresh.project.folder / f"{fault}.met").exists()
    assert not (fresh.results / "summary.parquet").exists()
    # Nothing half written has a name that counts.
    for file in fresh.results.glob("points/[!.]*"):
        json.loads(file.read_text())
    for file in fresh.results.glob("shards/[!.]*"):
        pq.read_table(file)
    fresh.assert_next_run_mends_it()


def test_a_full_disk(fresh: FaultyProject) -> None:
    """On a file system with room for some of the points, and then with room for all."""
    # What is mounted is gone with the shell, so both runs and the copy of the results are in one.
    full = fresh.run(
        within=mounting(
            """
            mount -t tmpfs -o size=200k tmpfs results
            "$@"
            echo "code $?"
            mount -o remount,size=50m results
            "$@"
            cp -r results saved
            """
        )
    )
    assert full.code == 0, full.text
    first, _, second = full.text.partition("code 1\n")
    assert "cannot be written: No space left on device" in first
    assert second
    assert "Traceback" not in first
    assert rows(fresh.project.folder / "saved" / "faults") == fresh.expected


def test_a_folder_of_results_that_cannot_be_written_to(finished: FaultyProject) -> None:
    (finished.results / "summary.parquet").unlink()
    if os.geteuid() == 0:
        failed = finished.run(
            within=mounting(
                'mount --bind results results && mount -o remount,ro,bind results && "$@"'
            )
        )
    else:
        finished.results.chmod(0o555)
        failed = finished.run()
        finished.results.chmod(0o755)
    assert failed.code == 1
    assert "Error: results/faults: no permission to write results there" in failed.text
    assert "Traceback" not in failed.text
    finished.assert_next_run_mends_it()


def mounting(script: str) -> list[str]:
    """A command that runs others, "$@" in ``script``, which may mount what only it sees."""
    possible = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    if possible.returncode:
        pytest.skip(f"no file system can be mounted: {possible.stderr.strip()}")
    return ["unshare", "-rm", "bash", "-c", script, "bash"]


def test_kill_of_snakemake_and_all_its_processes(fresh: FaultyProject) -> None:
    with fresh.halted() as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    locked = fresh.run()
    assert locked.code == 1
    assert "--unlock" in locked.text
    assert fresh.project.snakemake("--unlock").code == 0
    fresh.assert_next_run_mends_it()


def test_kill_of_the_workers_of_a_run(fresh: FaultyProject) -> None:
    with fresh.halted() as process:
        for worker in children(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.send_signal(signal.SIGCONT)
        text, _ = process.communicate()
    # A worker that was between two jobs is replaced, and nobody misses it.
    assert process.returncode == (1 if "the process was killed" in text else 0)
    kept = len(list(fresh.results.glob("points/*.json")))
    assert kept >= 98
    fresh.assert_next_run_mends_it()


def children(parent: int) -> list[int]:
    """The processes that ``parent`` has started with the command ``deepflow serve``."""
    found = subprocess.run(
        ["pgrep", "--parent", str(parent), "--full", "deepflow serve"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line) for line in found.stdout.split()]


def test_two_runs_at_once(fresh: FaultyProject) -> None:
    with fresh.halted() as first:
        second = fresh.run()
        first.send_signal(signal.SIGCONT)
        text, _ = first.communicate()
    assert second.code == 1
    assert "cannot be locked" in second.text
    assert "Traceback" not in second.text
    assert first.returncode == 0, text
    assert rows(fresh.results) == fresh.expected
    assert fresh.run().made == frozenset()


def test_damaged_points_are_found_together_and_made_again(finished: FaultyProject) -> None:
    files = sorted(finished.results.glob("points/*.json"))
    files[0].write_text(files[0].read_text()[:500])
    files[1].write_bytes(os.urandom(5000))
    files[2].write_bytes(b"")
    # As good as any, but another point's.
    shutil.copy(files[4], files[3])
    (finished.results / "summary.parquet").unlink()
    failed = finished.run()
    assert failed.code == 1
    message = f"{files[0].relative_to(finished.project.folder)} is damaged"
    assert message in failed.text
    assert "and 3 other files like it" in failed.text
    finished.assert_next_run_mends_it()


def test_damaged_shards_and_a_damaged_summary(finished: FaultyProject) -> None:
    finished.project.sweep("faults", SHARDS + "csv: true\n")
    finished.assert_next_run_mends_it()
    files = sorted(finished.results.glob("shards/*.parquet"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[1].write_bytes(os.urandom(5000))
    (finished.results / "summary.parquet").unlink()
    failed = finished.run()
    assert failed.code == 1
    assert "is damaged" in failed.text
    assert "and 1 other files like it" in failed.text
    finished.assert_next_run_mends_it()

    (finished.results / "summary.parquet").write_bytes(b"PAR1")
    (finished.results / "summary.csv").unlink()
    failed = finished.run()
    assert failed.code == 1
    assert "results/faults/summary.parquet is damaged" in failed.text
    finished.assert_next_run_mends_it()


def test_results_of_other_settings_whose_records_are_lost(finished: FaultyProject) -> None:
    """Without Snakemake's own records only the fingerprints tell that results are out of date."""
    finished.project.edit("hardware/second.yaml", "3352 GB/s", "4 TB/s")
    changed = finished.run()
    assert changed.code == 0
    assert len(changed.points) == 50
    finished.project.edit("hardware/second.yaml", "4 TB/s", "3352 GB/s")
    shutil.rmtree(finished.project.folder / ".snakemake")
    (finished.results / "summary.parquet").unlink()
    failed = finished.run()
    assert failed.code == 1
    assert "was made from other settings" in failed.text
    finished.assert_next_run_mends_it()


@pytest.mark.parametrize("year", [1980, 2100])
def test_a_clock_that_jumped(finished: FaultyProject, year: int) -> None:
    """Times of files, of results or of what they were made from, mean nothing for results."""
    then = (year - 1970) * 365.25 * 86400
    made = sorted(finished.results.rglob("*.*"))
    configurations = sorted(finished.project.folder.rglob("*.yaml"))
    for file in [*made[::2], *configurations[::2]]:
        os.utime(file, (then, then))
    finished.assert_next_run_mends_it()
    # And what changed is still seen.
    finished.project.edit("hardware/second.yaml", "3352 GB/s", "4 TB/s")
    assert re.search(r"^point +50$", finished.run("--dry-run").text, re.MULTILINE)


def test_damaged_collectives_are_made_again(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    astra = StandIn(tmp_path / "build")
    monkeypatch.setenv("ASTRA_SIM_BINARY", str(astra.path))
    project = new_project(tmp_path / "project", repository)
    project.sweep("faults", ASTRA_SWEEP)
    assert project.run("faults").code == 0
    expected = rows(project.folder / "results" / "faults")
    files = sorted((project.folder / "results" / "collectives").glob("*.json"))
    for file, content in zip(files, (files[0].read_bytes()[:40], b"", b"[]"), strict=False):
        file.write_bytes(content)
    astra.runs()
    done = project.run("faults")
    assert done.code == 0, done.text
    assert astra.runs() == 3
    assert rows(project.folder / "results" / "faults") == expected
