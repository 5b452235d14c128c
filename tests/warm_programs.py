"""``deepflow`` and ``snakemake`` in forks of a process that has imported what they need.

Most of the time of a short command goes into starting Python. Run as a program, this module waits
at a socket; the programs that ``install`` writes hand their command line, folder, environment and
standard streams to it and end with the exit code of the fork that did what they were asked for.
"""

from __future__ import annotations

import ast
import atexit
import gc
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_CLIENT = """\
import os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"-"], [0, 1, 2])
    request = ({program!r}, sys.argv[1:], os.getcwd(), dict(os.environ))
    server.sendall(repr(request).encode())
    server.shutdown(socket.SHUT_WR)
    # The fork's end closes the connection, and so does a fork that dies without an answer.
    sys.exit(int(b"".join(iter(lambda: server.recv(16), b"")) or b"1"))
"""


def install(folder: Path, address: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Writes ``deepflow``, ``snakemake`` and ``python`` to ``folder``; they need what it returns.

    ``address`` is where the socket will be, a short path as sockets want it. ``environment`` is
    what the process that imports is started with.
    """
    folder.mkdir()
    for program in ("deepflow", "snakemake"):
        client = folder / f"{program}.py"
        client.write_text(_CLIENT.format(address=str(address), program=program))
        (folder / program).write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "$@"\n')
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in ("deepflow", "snakemake", "python"):
        (folder / program).chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, __file__, str(address)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


# What commands import when they run; a fork has it already.
_IMPORTED = ("matplotlib.pyplot", "pandas", "pyarrow.parquet", "seaborn")


def _serve(address: str) -> None:
    import snakemake.cli

    import deepflow.cli

    for module in _IMPORTED:
        importlib.import_module(module)
    programs = {"deepflow": deepflow.cli.main, "snakemake": snakemake.cli.main}
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    forks = 0
    while True:
        connection, _ = listener.accept()
        while forks and os.waitpid(-1, os.WNOHANG)[0]:
            forks -= 1
        if os.fork() == 0:
            listener.close()
            code = _run(connection, programs)
            connection.sendall(str(code).encode())
            # What is registered for the end runs; to take all modules apart would take longer
            # than most commands.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        forks += 1
        connection.close()


def _run(connection: socket.socket, programs: Mapping[str, Callable[..., int | None]]) -> int:
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    asked = b"".join(iter(lambda: connection.recv(2**16), b""))
    program, arguments, folder, environment = ast.literal_eval(asked.decode())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    try:
        return int(programs[program](arguments) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


if __name__ == "__main__":
    _serve(sys.argv[1])
