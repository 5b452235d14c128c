"""Runs an ASTRA-sim that the user has built, and trusts its answer only when it is one.

ASTRA-sim ends with exit code 0 when ranks wait for each other for ever, and may crash on input
that it does not check. A run counts when the exit code is 0, every rank has printed one finished
line, and no line is critical. Everything else is one of the errors below, so that whoever asked
can tell a missing program from a simulation that went wrong.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from deepflow.astra.files import SimulationFiles, SimulationInput, write_simulation
from deepflow.config.hardware import AstraBackend
from deepflow.errors import DeepFlowError
from deepflow.network.checks import exact_topologies
from deepflow.network.event_model import Inputs, check
from deepflow.network.graph import Network, Options, Result
from deepflow.record import record

# Environment variable and program of a build, for each backend.
UNAWARE_VARIABLE, AWARE_VARIABLE = "ASTRA_SIM_BINARY", "ASTRA_SIM_BINARY_CONGESTION_AWARE"
UNAWARE_PROGRAM = "AstraSim_Analytical_Congestion_Unaware"
AWARE_PROGRAM = "AstraSim_Analytical_Congestion_Aware"

_FINISHED = re.compile(r"sys\[(\d+)\] finished, (\d+) cycles, exposed communication (-?\d+) cycles")
# What does not fit a signed 64-bit integer is the result of an overflow.
_MOST_CYCLES = 2**63


class AstraSimError(DeepFlowError):
    """The real ASTRA-sim gave no answer."""


class BinaryNotFound(AstraSimError):
    """There is no such program."""


class BinaryNotExecutable(AstraSimError):
    """The program is there, but the system cannot run it."""


class BinaryCrashed(AstraSimError):
    """A signal ended the program, such as SIGABRT of a failed assertion."""


class BinaryFailed(AstraSimError):
    """The program ended with an exit code other than 0."""


class BinaryTimedOut(AstraSimError):
    """The program ran longer than it may."""


class RanksUnfinished(AstraSimError):
    """The program ended normally, but ranks did not finish."""


class OutputNotUnderstood(AstraSimError):
    """The program printed what is no result of this simulation."""


@record(frozen=True)
class Binary:
    """A program to run. ``origin`` says what named it; ``digest`` is that of its content."""

    path: str
    origin: str
    digest: str


def find_binary(
    backend: AstraBackend, congestion: bool, environment: Mapping[str, str] | None = None
) -> Binary | None:
    """The program for a backend: by configuration, then environment, then PATH.

    None if nothing names one. What the configuration or the environment names must be there:
    raises BinaryNotFound or BinaryNotExecutable, and does not look elsewhere.
    """
    environment = os.environ if environment is None else environment
    variable, program, key, configured = (
        (AWARE_VARIABLE, AWARE_PROGRAM, "binary_congestion_aware", backend.binary_congestion_aware)
        if congestion
        else (UNAWARE_VARIABLE, UNAWARE_PROGRAM, "binary", backend.binary)
    )
    named = (
        (configured, f"execution_backend.astra.{key}"),
        (environment.get(variable), variable),
    )
    for path, origin in named:
        if path:
            return usable_binary(path, origin)
    found = shutil.which(program, path=environment.get("PATH", os.defpath))
    return usable_binary(found, "PATH") if found else None


def usable_binary(path: str, origin: str) -> Binary:
    """The program at ``path``, which ``origin`` names.

    Raises BinaryNotFound or BinaryNotExecutable.
    """
    # A program without a folder in its name would be looked for along PATH.
    program = Path(path).expanduser().absolute()
    if not program.is_file():
        raise BinaryNotFound(f"{origin}: no such program: {path}")
    if not os.access(program, os.X_OK):
        raise BinaryNotExecutable(f"{origin}: not executable: {path}")
    state = program.stat()
    return Binary(str(program), origin, _digest(str(program), state.st_mtime_ns, state.st_size))


def run_binary(binary: Binary, given: SimulationInput, options: Options, timeout: float) -> Result:
    """Simulates with ``binary``; ``timeout`` in seconds.

    The program gets a folder of its own for its inputs, its working directory and its log, which
    is gone afterwards: programs that run at the same time do not meet. Raises AstraSimError, of
    the class that says what went wrong, and NetworkError for input with which the program would
    crash, fill the memory or print numbers without meaning.
    """
    if beyond := beyond_binary(given.network, options):
        raise AstraSimError(f"ASTRA-sim does not simulate {beyond}")
    check(Inputs(given.traces, given.network, given.system, options, given.groups, given.memory))
    with tempfile.TemporaryDirectory(prefix="astra-sim-") as folder:
        files = write_simulation(given, folder)
        command = [binary.path, *_arguments(files, options, Path(folder))]
        code, out, errors = _execute(binary, command, folder, timeout)
    name = Path(binary.path).name
    if code < 0:
        raise BinaryCrashed(f"{name} was ended by {_signal_name(-code)}{_last_line(errors, out)}")
    if code > 0:
        raise BinaryFailed(f"{name} ended with exit code {code}{_last_line(errors, out)}")
    return _result(name, out, given.network.ranks)


@cache
def _digest(path: str, modified: int, size: int) -> str:
    """Stands for the version, which ASTRA-sim does not tell; a changed file is read again."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def beyond_binary(network: Network, options: Options) -> str:
    """What the binary would ignore or crash on, as only the embedded simulator has it."""
    dimensions = tuple(zip(network.topology, network.npus, strict=True))
    asked = (
        ("several collectives at once", options.collectives_in_flight != 1),
        ("degraded links", bool(options.link_states)),
        (f"topology {' x '.join(network.topology)}", not exact_topologies(network)),
        ("congestion in several dimensions", options.congestion and len(dimensions) > 1),
        ("congestion on a ring of two", options.congestion and dimensions == (("Ring", 2),)),
    )
    return " and ".join(name for name, beyond in asked if beyond)


def _arguments(files: SimulationFiles, options: Options, folder: Path) -> list[str]:
    arguments: dict[str, object] = {
        "workload-configuration": files.workload,
        "system-configuration": files.system,
        "network-configuration": files.network,
        "remote-memory-configuration": files.memory,
        "num-queues-per-dim": options.num_queues_per_dim,
        "injection-scale": options.injection_scale,
        "rendezvous-protocol": str(options.rendezvous).lower(),
        "logging-folder": folder / "log",
    }
    if files.groups is not None:
        # Relative, because ASTRA-sim reads no file whose path has "empty" anywhere in it.
        arguments["comm-group-configuration"] = files.groups.relative_to(folder)
    return [f"--{name}={value}" for name, value in arguments.items()]


def _execute(
    binary: Binary, command: list[str], folder: str, timeout: float
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); a program that runs too long is ended with its children."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        # Also what a script whose interpreter is missing, or a foreign dynamic loader, looks like.
        raise BinaryNotFound(f"{binary.origin}: no such program: {binary.path}") from None
    except OSError as error:
        raise BinaryNotExecutable(
            f"{binary.origin}: {binary.path} cannot be run: {error.strerror or error}"
        ) from None
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise BinaryTimedOut(
            f"{Path(binary.path).name} ran longer than {timeout:g} s and was ended"
        ) from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, _decoded(out), _decoded(errors)


def _result(name: str, out: str, ranks: int) -> Result:
    cycles: dict[int, int] = {}
    exposed: dict[int, int] = {}
    for found in _FINISHED.finditer(out):
        rank, taken, communication = map(int, found.groups())
        if rank >= ranks or rank in cycles:
            why = "finishes twice" if rank in cycles else f"is none of the {ranks}"
            raise OutputNotUnderstood(f"{name} printed that rank {rank} finished, which {why}")
        if taken >= _MOST_CYCLES:
            raise OutputNotUnderstood(
                f"{name} printed {taken} cycles for rank {rank}, an overflow and no time"
            )
        cycles[rank], exposed[rank] = taken, communication
    critical = next((line for line in out.splitlines() if "[critical]" in line), "")
    because = f": {critical.partition('[critical]')[2].strip()}" if critical else ""
    missing = [rank for rank in range(ranks) if rank not in cycles]
    if missing:
        if not cycles and not critical and "] [" not in out:
            raise OutputNotUnderstood(f"{name} printed none of ASTRA-sim's lines")
        shown = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise RanksUnfinished(f"{len(missing)} of {ranks} ranks did not finish ({shown}){because}")
    if critical:
        raise OutputNotUnderstood(f"{name} reported a critical problem{because}")
    return Result(
        cycles=tuple(cycles[rank] for rank in range(ranks)),
        exposed=tuple(exposed[rank] for rank in range(ranks)),
        order=tuple(cycles),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(*texts: str) -> str:
    """The last thing that the program said, which is mostly why it stopped."""
    for text in texts:
        lines = text.split("\n") if (text := text.strip()) else []
        if lines:
            return f": {lines[-1][-300:]}"
    return ""


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")
