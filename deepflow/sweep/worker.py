"""Warm processes for the jobs of single points.

Starting Python with NumPy and DeepFlow takes many times longer than a prediction. A workflow
with a job per point therefore hands each job's command line to one of a few ``deepflow serve``
processes, which run it just as a shell would, one after the other. They end with their parent.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import IO

from deepflow.errors import DeepFlowError

_DONE = "0"


class WorkerPool:
    """As many processes as there are commands at the same time; safe to use from threads."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[str]] = []
        self._lock = Lock()

    def run(self, arguments: Sequence[str], log: str | Path) -> None:
        """Run ``deepflow`` with ``arguments``; ``log`` gets the command and what it prints.

        Raises DeepFlowError if the command fails or its process dies.
        """
        worker = self._living()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps([str(log), *arguments]) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise DeepFlowError(_death(worker.wait(), log))
        with self._lock:
            self._idle.append(worker)
        if answer.strip() != _DONE:
            raise DeepFlowError(answer.strip())

    def _living(self) -> subprocess.Popen[str]:
        """An idle process, or a new one if all are busy or somebody has killed them."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.poll() is None:
                    return worker
                worker.communicate()
        return _start()

    def close(self) -> None:
        """End the processes and wait for them, so that none outlives the workflow."""
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                worker.communicate()


def _start() -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "deepflow", "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        # Too many processes, too little memory.
        raise DeepFlowError(f"no process can be started: {error.strerror or error}") from None


def _death(code: int, log: str | Path) -> str:
    """What to say of a process that ended in the middle of a command."""
    if code == 0:
        # It ends by itself when it has been interrupted, as the workflow has.
        return "interrupted"
    if code == -signal.SIGKILL:
        return f"the process was killed, as when memory runs out; see {log}"
    return f"the process died (exit code {code}); see {log}"


def serve(command: Callable[[Sequence[str]], int], requests: IO[str], answers: IO[str]) -> None:
    """Run ``command`` once per line, a JSON list ``[log, argument, ...]``.

    Each answer is one line: ``_DONE``, or what went wrong.
    """
    # An interrupt also reaches the parent, which ends this process in its own time.
    with contextlib.suppress(KeyboardInterrupt):
        for line in requests:
            _answer(command, line, answers)


def _answer(command: Callable[[Sequence[str]], int], line: str, answers: IO[str]) -> None:
    log, *arguments = json.loads(line)
    try:
        answer = _logged(command, arguments, Path(log))
    except OSError as error:
        # Whatever the command did or had to say, on a full disk nobody can read it.
        answer = f"{log} cannot be written: {error.strerror or error}"
    print(answer, file=answers, flush=True)


def _logged(command: Callable[[Sequence[str]], int], arguments: Sequence[str], log: Path) -> str:
    """Run ``command`` with all that it prints in ``log``; the answer. Raises OSError of the log."""
    with (
        log.open("w", encoding="utf-8") as file,
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
    if code == 0:
        return _DONE
    return f"{log.read_text(encoding='utf-8').splitlines()[-1]} (see {log})"
