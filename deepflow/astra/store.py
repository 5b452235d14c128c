"""Results of single collectives as files, which points and sweeps share.

A run of the user's ASTRA-sim takes longer than the rest of a prediction, and many points need the
same ones. So a workflow makes a file per simulation, named by the digest of all that the result
depends on, and points read these files. The embedded simulator is quicker than reading a file and
has none.

A failure is a result too: the points that need it fall back as they would without files. Failures
of the program, unlike input that cannot be simulated, may not happen again. Such a file has the
time of the failure, by which a workflow sees that it has to try again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from deepflow.astra.hybrid import Simulation, answered_by, binary_for, run_simulation
from deepflow.astra.runner import AstraSimError, Binary, usable_binary
from deepflow.config.hardware import AstraBackend
from deepflow.errors import DeepFlowError
from deepflow.files import atomic_output, to_json, unusable
from deepflow.network.graph import Network, NetworkError, SystemSettings
from deepflow.record import record
from deepflow.version import MODEL_VERSION

_DESCRIPTION = """Time one collective or transfer with an ASTRA-sim and write the result, or why
there is none, to a file. Workflows use it to share such results between points."""


@record(frozen=True)
class StoredCollective:
    """A simulation whose result is a file; ``timeout`` of the program in seconds."""

    simulation: Simulation
    binary: Binary
    timeout: float

    @property
    def meaning(self) -> str:
        """All that the result depends on, as JSON. Where the program lies is no part of it."""
        return _meaning(self.simulation, self.binary.digest)

    @property
    def name(self) -> str:
        """Name of the file, without ``.json``."""
        return _name(self.simulation, self.binary.digest)


@contextmanager
def recorded_collectives() -> Iterator[dict[str, StoredCollective]]:
    """Gathers by name what predictions within the block ask the user's ASTRA-sim for.

    Nothing runs: each simulation takes a time of no meaning, so what is predicted has none either.
    """
    needed: dict[str, StoredCollective] = {}
    binary_of = cache(binary_for)

    def answer(simulation: Simulation, backend: AstraBackend) -> int | None:
        binary = binary_of(simulation.network, backend)
        if binary is None:
            return None
        stored = StoredCollective(simulation, binary, backend.timeout)
        needed[stored.name] = stored
        return simulation.size + 1

    with answered_by(answer):
        yield needed


@contextmanager
def stored_collectives(folder: str | Path) -> Iterator[None]:
    """Within the block results of the user's ASTRA-sim are read from ``folder`` if they are there.

    Predictions raise AstraSimError where a file tells of a failure, and DeepFlowError for a
    damaged file.
    """
    binary_of = cache(binary_for)

    def answer(simulation: Simulation, backend: AstraBackend) -> int | None:
        binary = binary_of(simulation.network, backend)
        if binary is None:
            return None
        file = Path(folder, f"{_name(simulation, binary.digest)}.json")
        try:
            content = _read(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise unusable(file, error) from None
        if content["problem"]:
            raise AstraSimError(content["problem"])
        return int(content["cycles"])

    with answered_by(answer):
        yield


def last_failure(file: str | Path) -> str:
    """When the program last failed on a stored collective, "" if it never did.

    A success does not change it. So it differs from what it was when a workflow made the file if,
    and only if, the program failed then. A damaged file counts as a failure.
    """
    try:
        return str(_read(Path(file))["last_failure"])
    except FileNotFoundError:
        return ""
    except ValueError:
        return "damaged"


def write_collective(
    meaning: str, binary: Binary, timeout: float, failed_before: str, output: str | Path
) -> str:
    """Simulates what ``meaning`` says with ``binary`` and writes the result or the problem.

    ``timeout`` in seconds; ``failed_before`` as ``last_failure`` gives it. Returns the problem, ""
    if there is none. Raises DeepFlowError for another program, version or text than was meant.
    """
    simulation = _simulation_of(meaning, binary)
    cycles: int | None = None
    problem = ""
    try:
        cycles = run_simulation(simulation, binary, timeout)
    except NetworkError as error:
        problem = str(error)
    except AstraSimError as error:
        problem, failed_before = str(error), datetime.now(UTC).isoformat()
    content = {
        "cycles": cycles,
        "problem": problem,
        "last_failure": failed_before,
        "astra_sim": binary.path,
        "simulation": json.loads(meaning),
    }
    with atomic_output(output) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")
    return problem


def add_astra_collective_command(commands: Any) -> None:
    """Adds ``astra-collective`` to the ``deepflow`` command."""
    parser = commands.add_parser(
        "astra-collective", help="time one collective, for workflows", description=_DESCRIPTION
    )
    parser.add_argument("meaning", metavar="JSON", help="what to simulate, as in such a file")
    parser.add_argument("--binary", metavar="FILE", required=True, help="the ASTRA-sim to run")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=AstraBackend().timeout)
    parser.add_argument(
        "--last-failure", metavar="TIME", default="", help="when an earlier attempt failed"
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="JSON file to write")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    binary = usable_binary(options.binary, "--binary")
    failed_before = options.last_failure
    problem = write_collective(
        options.meaning, binary, options.timeout, failed_before, options.output
    )
    if problem:
        print(f"deepflow: warning: no result: {problem}", file=sys.stderr)


@lru_cache(maxsize=2**14)
def _meaning(simulation: Simulation, digest: str) -> str:
    content = {**asdict(simulation), "astra_sim_digest": digest, "model_version": MODEL_VERSION}
    return json.dumps(content, sort_keys=True)


@lru_cache(maxsize=2**14)
def _name(simulation: Simulation, digest: str) -> str:
    return hashlib.sha256(_meaning(simulation, digest).encode()).hexdigest()


def _simulation_of(meaning: str, binary: Binary) -> Simulation:
    """The inverse of ``_meaning``, which must make the same text of the result again."""
    try:
        given = json.loads(meaning)
        network = Network(**_with_tuples(given["network"]))
        system = SystemSettings(**_with_tuples(given["system"]))
        simulation = Simulation(given["kind"], given["size"], network, system)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DeepFlowError(f"{meaning[:200]!r} does not describe a collective") from None
    if _meaning(simulation, binary.digest) != meaning:
        raise DeepFlowError(
            f"{binary.path} or DeepFlow changed since the workflow was started; start it again"
        )
    return simulation


def _with_tuples(part: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in part.items()}


def _read(file: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, and ValueError for what is not such a file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        problem, cycles = content["problem"], content["cycles"]
        failed = content["last_failure"]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"not the result of a simulation: {error}") from None
    known = isinstance(problem, str) and isinstance(failed, str)
    if not known or bool(problem) == isinstance(cycles, int):
        raise ValueError("not the result of a simulation")
    return dict(content)
