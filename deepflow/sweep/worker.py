"""Warm processes for the jobs of single points.

Starting Python with NumPy and DeepFlow takes many times longer than a prediction. A workflow
with a job per point therefore hands each job's command line to one of a few ``deepflow serve``
processes, which run it just as a shell would, one after the other. They end with their parent.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import IO

from deepflow.errors import DeepFlowError


class WorkerPool:
    """As many processes as there are commands at the same time; safe to use from threads."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[str]] = []
        self._lock = Lock()

    def run(self, arguments: Sequence[str], log: str | Path) -> None:
        """Run ``deepflow`` with ``arguments``; ``log`` gets the command and what it prints.

        Raises DeepFlowError if the command fails or its process dies.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else _start()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps([str(log), *arguments]) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = worker.wait()
            # A process that ends by itself has been interrupted, as the workflow has.
            raise DeepFlowError(
                f"the process died (exit code {code}); see {log}" if code else "interrupted"
            )
        with self._lock:
            self._idle.append(worker)
        if answer.strip() != "0":
            lines = Path(log).read_text(encoding="utf-8").splitlines()
            raise DeepFlowError(f"{lines[-1]} (see {log})")

    def close(self) -> None:
        """End the processes and wait for them, so that none outlives the workflow."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                worker.communicate()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepflow", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve(command: Callable[[Sequence[str]], int], requests: IO[str], answers: IO[str]) -> None:
    """Run ``command`` once per line, a JSON list ``[log, argument, ...]``; answer exit codes."""
    # An interrupt also reaches the parent, which ends this process in its own time.
    with contextlib.suppress(KeyboardInterrupt):
        for line in requests:
            _answer(command, line, answers)


def _answer(command: Callable[[Sequence[str]], int], line: str, answers: IO[str]) -> None:
    log, *arguments = json.loads(line)
    with (
        Path(log).open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        print(shlex.join([sys.executable, "-m", "deepflow", *arguments]), flush=True)
        try:
            code = command(arguments)
        except (Exception, SystemExit):
            # A bug, or a command line that the workflow got wrong: the log must show it,
            # and the next command must find this process alive.
            traceback.print_exc()
            code = 1
    print(code, file=answers, flush=True)
