"""``deepflow doctor``: is everything here that DeepFlow needs, and what does it find?

Problems are what keeps the main job, a sweep, from running here; they make the exit code 1. What
only some people need, such as a cluster, is said and no more.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from deepflow.command_line import command
from deepflow.errors import DeepFlowError
from deepflow.record import record
from deepflow.version import MODEL_VERSION, __version__

GOOD, NOTE, PROBLEM = "ok", "note", "problem"
LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 2**30
SECONDS_TO_ANSWER = 10

_EPILOG = """examples:
  deepflow doctor           # in the folder where you run snakemake
  deepflow doctor --json
"""


@record(frozen=True)
class Finding:
    """What was looked at, whether it is ``ok``, a ``note`` or a ``problem``, and what it is."""

    what: str
    state: str
    text: str


def add_doctor_command(commands: Any) -> None:
    """Adds ``doctor`` to the ``deepflow`` command."""
    doctor = command(
        commands, "doctor", _doctor, "check versions, simulator, cluster and permissions", _EPILOG
    )
    doctor.add_argument(
        "--results", metavar="DIR", default="results", help="where results go (default: results)"
    )
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")


def _doctor(options: argparse.Namespace) -> None:
    from deepflow.files import to_json

    found = list(findings(Path(options.results)))
    if options.json:
        print(
            to_json([{"what": item.what, "state": item.state, "text": item.text} for item in found])
        )
    else:
        width = max(len(item.what) for item in found)
        for item in found:
            print(f"{item.state:8} {item.what:{width}}  {item.text}")
    problems = [item.what for item in found if item.state == PROBLEM]
    if problems:
        raise DeepFlowError(f"{len(problems)} to mend: {', '.join(problems)}")


def findings(results: Path) -> Iterator[Finding]:
    """All findings for the current directory, with results in ``results``."""
    yield Finding("DeepFlow", GOOD, f"{__version__}, model version {MODEL_VERSION}")
    yield _python()
    yield from _packages()
    yield _workflow()
    yield from _place(results)
    yield from _simulators()
    yield _slurm()


def _python() -> Finding:
    state = GOOD if sys.version_info >= LEAST_PYTHON else PROBLEM
    needed = "" if state == GOOD else f"; needed is {'.'.join(map(str, LEAST_PYTHON))}"
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding("Python", state, f"{platform.python_version()}, {system}{needed}")


def _packages() -> Iterator[Finding]:
    """Whether what DeepFlow's own metadata asks for is installed in such a version."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        asked = metadata.requires("deepflow") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", NOTE, "DeepFlow runs from its folder and is not installed; not compared"
        )
        return
    for line in asked:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, PROBLEM, f"not installed; needed: {requirement}")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, GOOD, version)
        else:
            yield Finding(requirement.name, PROBLEM, f"{version}; needed: {requirement.specifier}")


def _workflow() -> Finding:
    if not Path("Snakefile").is_file() or not Path("rules").is_dir():
        return Finding(
            "workflow",
            NOTE,
            "no Snakefile here: predict, explain and search work, sweeps with snakemake do not",
        )
    locks = Path(".snakemake/locks")
    if locks.is_dir() and any(locks.iterdir()):
        return Finding(
            "workflow",
            NOTE,
            "locked: snakemake runs here, or was killed; in that case: snakemake --unlock",
        )
    return Finding("workflow", GOOD, "Snakefile found, not locked")


def _place(results: Path) -> Iterator[Finding]:
    existing = results
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        yield Finding("results", PROBLEM, f"{existing} cannot be written to: {error.strerror}")
        return
    free = shutil.disk_usage(existing).free
    state = GOOD if free >= LEAST_FREE_BYTES else NOTE
    yield Finding("results", state, f"{results} can be written; {free / 2**30:.1f} GiB free")


def _simulators() -> Iterator[Finding]:
    """The user's ASTRA-sim, as ``simulator: auto`` and ``binary`` find it."""
    from deepflow.astra.runner import AstraSimError, find_binary
    from deepflow.config.hardware import AstraBackend

    for congestion, name in ((False, "ASTRA-sim"), (True, "ASTRA-sim, congestion aware")):
        try:
            binary = find_binary(AstraBackend(), congestion)
        except AstraSimError as error:
            yield Finding(name, PROBLEM, str(error))
            continue
        if binary is None:
            yield Finding(name, NOTE, "no program of yours; the embedded simulator does its work")
        else:
            yield Finding(name, GOOD, f"{binary.path}, named by {binary.origin}")


def _slurm() -> Finding:
    programs = {name: shutil.which(name) for name in ("sbatch", "squeue", "scancel")}
    missing = [name for name, path in programs.items() if path is None]
    if len(missing) == len(programs):
        return Finding("SLURM", NOTE, "not found; sweeps run on this machine")
    if missing:
        return Finding("SLURM", PROBLEM, f"{', '.join(missing)} not found along PATH")
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--user", str(os.getuid())],
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("SLURM", NOTE, f"squeue does not answer in {SECONDS_TO_ANSWER} s")
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding("SLURM", NOTE, f"installed, but the cluster does not answer: {reason}")
    jobs = len(asked.stdout.splitlines())
    return Finding(
        "SLURM", GOOD, f"answers, {jobs} of your jobs; use snakemake --profile profiles/slurm"
    )
