"""The runner of a real ASTRA-sim: what it accepts as an answer, and the errors otherwise.

A small program stands in for the real one and plays each of its failures.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deepflow.astra import runner
from deepflow.astra.files import SimulationInput
from deepflow.astra.runner import find_binary, run_binary
from deepflow.config.hardware import AstraBackend
from deepflow.network.graph import LinkState, Network, NetworkError, Node, Options, SystemSettings
from deepflow.network.simulate import simulate

INPUT = SimulationInput(
    traces=(
        (
            Node(1, "COMP", duration_us=2),
            Node(2, "COLL", "reduce", (1,), collective="ALL_REDUCE", size_bytes=2**20, group=1),
        ),
    )
    * 4,
    network=Network(("Switch",), (4,), (50.0,), (500.0,)),
    system=SystemSettings(
        scheduling_policy="LIFO",
        collective_optimization="localBWAware",
        preferred_dataset_splits=4,
        local_mem_bw=1600.0,
        endpoint_delay=25.0,
        all_reduce_implementation=("ring",),
    ),
    groups={1: (0, 2, 1, 3)},
)
FINISHED = "print('sys[{}] finished, 70 cycles, exposed communication -5 cycles.')\n"
ALL_FINISHED = "".join(FINISHED.format(rank) for rank in (2, 0, 3, 1))
# Answers with the embedded simulator, so that files and options are seen to arrive.
ASTRA_SIM = "from deepflow.cli import main\nsys.exit(main(['astra-sim', *sys.argv[1:]]))\n"


@pytest.fixture
def program(tmp_path, monkeypatch, repository):
    """Makes an executable of Python code, and has find_binary find it."""
    monkeypatch.setenv("PYTHONPATH", str(repository))

    def make(code: str) -> runner.Binary:
        path = tmp_path / "stand-in"
        path.write_text(f"#!{sys.executable}\nimport os, signal, subprocess, sys, time\n{code}")
        path.chmod(0o755)
        found = find_binary(AstraBackend(binary=str(path)), congestion=False, environment={})
        assert found is not None
        return found

    return make


def test_the_answer_is_that_of_the_program(program):
    result = run_binary(program(ALL_FINISHED), INPUT, Options(), timeout=60)
    assert result.cycles == (70, 70, 70, 70)
    assert result.exposed == (-5, -5, -5, -5)
    assert result.order == (2, 0, 3, 1)


def test_files_and_options_arrive(program):
    options = Options(num_queues_per_dim=2, injection_scale=1.5, rendezvous=True)
    result = run_binary(program(ASTRA_SIM), INPUT, options, timeout=60)
    expected = simulate(INPUT.traces, INPUT.network, INPUT.system, options, INPUT.groups)
    assert result == expected
    assert result != simulate(INPUT.traces, INPUT.network, INPUT.system, Options(), INPUT.groups)


@pytest.mark.parametrize(
    ("code", "error", "problem"),
    [
        ("os.abort()", runner.BinaryCrashed, "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", runner.BinaryCrashed, "SIGSEGV"),
        ("sys.exit('no such policy')", runner.BinaryFailed, "exit code 1: no such policy"),
        ("print('[critical] no file')\nsys.exit(255)", runner.BinaryFailed, "255: .*no file"),
        (ALL_FINISHED + "sys.exit(3)", runner.BinaryFailed, "exit code 3"),
        (ALL_FINISHED + "print('[x] [critical] nodes left')", runner.OutputNotUnderstood, "left"),
        (FINISHED.format(1) + FINISHED.format(3), runner.RanksUnfinished, r"2 of 4 .*\(0, 2\)"),
        (
            "print('[t] [a] [critical] sys.id=0 has unreleased nodes')",
            runner.RanksUnfinished,
            "4 of 4 ranks .*unreleased nodes",
        ),
        ("print('[t] [system] [warning] Exiting')", runner.RanksUnfinished, "4 of 4"),
        ("", runner.OutputNotUnderstood, "none of ASTRA-sim's lines"),
        ("print('42')", runner.OutputNotUnderstood, "none of ASTRA-sim's lines"),
        ("sys.stdout.buffer.write(bytes(range(256)))", runner.OutputNotUnderstood, "none of"),
        (ALL_FINISHED + FINISHED.format(4), runner.OutputNotUnderstood, "rank 4 .* none of the 4"),
        (ALL_FINISHED + FINISHED.format(2), runner.OutputNotUnderstood, "rank 2 .* twice"),
        (
            ALL_FINISHED.replace("70", str(2**63)),
            runner.OutputNotUnderstood,
            "9223372036854775808 cycles",
        ),
    ],
)
def test_whatever_is_no_answer_is_an_error_of_its_class(program, code, error, problem):
    with pytest.raises(error, match=problem):
        run_binary(program(code), INPUT, Options(), timeout=60)


def test_a_program_that_runs_too_long_is_ended_with_its_children(program, tmp_path):
    children = tmp_path / "children"
    code = (
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"open({str(children)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(300)\n"
    )
    begin = time.monotonic()
    with pytest.raises(runner.BinaryTimedOut, match="longer than 2 s"):
        run_binary(program(code), INPUT, Options(), timeout=2)
    assert time.monotonic() - begin < 100
    status = Path("/proc", children.read_text(), "stat")
    # Ended, though it may not have been collected yet by whoever inherits it.
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_each_run_has_a_folder_of_its_own_that_is_gone_afterwards(program, tmp_path):
    seen = tmp_path / "seen"
    code = (
        f"print(os.getcwd(), *sys.argv[1:], file=open({str(seen)!r}, 'a'))\n"
        f"open('left behind', 'w').close()\n{ALL_FINISHED}"
    )
    for _ in range(2):
        run_binary(program(code), INPUT, Options(), timeout=60)
    folders = []
    for line in seen.read_text().splitlines():
        folder, *arguments = line.split()
        folders.append(folder)
        options = dict(argument[2:].split("=") for argument in arguments)
        assert options["logging-folder"].startswith(folder + "/")
        assert not Path(folder).exists()
    assert len(set(folders)) == 2


@pytest.mark.parametrize(
    "options",
    [
        Options(collectives_in_flight=2),
        Options(link_states=(LinkState(0, 1, 0.5),)),
        Options(congestion=True, congestion_in_all_dimensions=True),
    ],
)
def test_what_the_real_program_does_not_have_is_not_asked_of_it(program, options):
    given = replace(INPUT, network=Network(("Ring", "Ring"), (2, 2), (1.0, 1.0), (1.0, 1.0)))
    with pytest.raises(runner.AstraSimError, match="does not simulate"):
        run_binary(program(ALL_FINISHED), given, options, timeout=60)


def test_input_that_makes_the_real_program_misbehave_is_not_given_to_it(program):
    # With less than a byte for each chunk the real program takes memory for ever.
    node = Node(1, "COLL", collective="ALL_GATHER", size_bytes=3)
    with pytest.raises(NetworkError, match="chunks"):
        run_binary(program(ALL_FINISHED), replace(INPUT, traces=((node,),) * 4), Options(), 60)
    mesh = replace(INPUT, network=replace(INPUT.network, topology=("Mesh",)))
    with pytest.raises(runner.AstraSimError, match="topology Mesh"):
        run_binary(program(ALL_FINISHED), mesh, Options(), timeout=60)


def executable(path: Path, content: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("congestion", "key", "variable", "program_name"),
    [
        (False, "binary", runner.UNAWARE_VARIABLE, runner.UNAWARE_PROGRAM),
        (True, "binary_congestion_aware", runner.AWARE_VARIABLE, runner.AWARE_PROGRAM),
    ],
)
def test_configuration_comes_before_environment_before_path(
    congestion, key, variable, program_name, tmp_path
):
    configured, named = executable(tmp_path / "configured"), executable(tmp_path / "named")
    on_path = executable(tmp_path / "bin" / program_name)
    path = {"PATH": str(on_path.parent)}
    environment = {**path, variable: str(named)}
    backend = AstraBackend(**{key: str(configured)})

    def found(backend: AstraBackend, environment: dict[str, str]) -> tuple[str, str]:
        binary = find_binary(backend, congestion, environment)
        assert binary is not None
        return binary.path, binary.origin

    key = f"execution_backend.astra.{key}"
    assert found(backend, environment) == (str(configured), key)
    assert found(AstraBackend(), environment) == (str(named), variable)
    assert found(AstraBackend(), path) == (str(on_path), "PATH")
    assert find_binary(AstraBackend(), congestion, {"PATH": str(tmp_path)}) is None
    assert find_binary(AstraBackend(), not congestion, environment) is None


def test_what_is_named_must_be_a_program(tmp_path):
    def find(path: Path) -> runner.Binary | None:
        return find_binary(AstraBackend(), False, {runner.UNAWARE_VARIABLE: str(path)})

    with pytest.raises(runner.BinaryNotFound, match=r"ASTRA_SIM_BINARY: .*absent"):
        find(tmp_path / "absent")
    with pytest.raises(runner.BinaryNotFound):
        find(tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    with pytest.raises(runner.BinaryNotExecutable, match="plain"):
        find(plain)
    foreign = find(executable(tmp_path / "foreign", "\x7fELF of another machine"))
    assert foreign is not None
    with pytest.raises(runner.BinaryNotExecutable, match="foreign"):
        run_binary(foreign, INPUT, Options(), timeout=60)


def test_the_digest_tells_builds_apart(tmp_path):
    first = find_binary(AstraBackend(binary=str(executable(tmp_path / "a"))), False)
    second = find_binary(AstraBackend(binary=str(executable(tmp_path / "b", "#!/bin/cat"))), False)
    again = find_binary(AstraBackend(binary=str(executable(tmp_path / "c"))), False)
    assert first is not None and second is not None and again is not None
    assert first.digest == again.digest != second.digest


@pytest.mark.parametrize(
    ("congestion", "variable"),
    [(False, runner.UNAWARE_VARIABLE), (True, runner.AWARE_VARIABLE)],
)
def test_a_real_build_agrees_with_the_embedded_simulator(congestion, variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} names no build of ASTRA-sim")
    binary = find_binary(AstraBackend(), congestion)
    assert binary is not None
    options = Options(congestion=congestion, num_queues_per_dim=2)
    expected = simulate(INPUT.traces, INPUT.network, INPUT.system, options, INPUT.groups)
    assert run_binary(binary, INPUT, options, timeout=60) == expected
