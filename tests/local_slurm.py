"""A real SLURM on this machine alone: one controller and one node on the loopback interface.

Uses the packages ``slurm-wlm`` and ``munge`` of Debian or Ubuntu, without systemd, cgroups,
accounting or a data base. The daemons are children in the foreground, so that each can be stopped
by its own process id. Every file is in one folder, but for a link at the place where SLURM's
programs look for their configuration: the variable that could name another place, SLURM_CONF,
does not reach what a job starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CONFIGURATION = Path("/etc/slurm/slurm.conf")
SIGNATURE = "# Written by tests/local_slurm.py"
DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol", "setpriv")
SECONDS_TO_START = 30
SECONDS_TO_STOP = 10


def missing() -> str | None:
    """What keeps SLURM from being started here, or None if nothing does."""
    absent = [program for program in (*DAEMONS, *CLIENTS) if _find(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (packages slurm-wlm and munge)"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    if not CONFIGURATION.parent.is_dir():
        return f"this SLURM is not configured in {CONFIGURATION.parent}"
    # What a killed test leaves does not count.
    if CONFIGURATION.exists() and not CONFIGURATION.read_text().startswith(SIGNATURE):
        return f"{CONFIGURATION} exists: this machine belongs to a cluster"
    return None


@dataclass
class LocalSlurm:
    """The daemons of one cluster with its files in ``folder``; see ``running``."""

    folder: Path
    memory_mb: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the controller did."""
        return self.folder / "slurmctld.log"

    def start(self) -> None:
        """Start the daemons; returns when the node takes jobs. Raises RuntimeError if it cannot."""
        self._write()
        CONFIGURATION.unlink(missing_ok=True)
        CONFIGURATION.symlink_to(self.folder / "slurm.conf")
        munge = self.folder / "munge"
        # --force: munged dislikes a socket below a directory that everybody may write to.
        self._run(
            "munged",
            *("--foreground", "--force", f"--key-file={munge / 'key'}"),
            *(f"--socket={munge / 'socket'}", f"--pid-file={munge / 'pid'}"),
            *(f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"),
        )
        self._wait_for("munge's socket", (munge / "socket").exists)
        self.start_controller()
        self._run("slurmd", "-D", "-N", _host())
        self._wait_for("the node", lambda: self.ask("sinfo", "--format=%T") == ["idle"])

    def start_controller(self) -> None:
        """Start the controller, with the jobs that it knew when it was stopped."""
        self._run("slurmctld", "-D")
        self._wait_for("the controller", lambda: _succeeds("scontrol", "ping"))

    def stop_controller(self) -> None:
        """Stop the controller; jobs go on, and nobody can ask for them."""
        self._stop("slurmctld")

    def stop(self) -> None:
        """End all jobs and daemons, and remove the link to the configuration."""
        if "slurmctld" in self.processes:
            subprocess.run(["scancel", "--user=root"], check=False, timeout=SECONDS_TO_STOP)
            with contextlib.suppress(RuntimeError):
                self._wait_for("the jobs", lambda: not self.ask("squeue"), SECONDS_TO_STOP)
        for name in ("slurmd", "slurmctld", "munged"):
            self._stop(name)
        if CONFIGURATION.is_symlink() and CONFIGURATION.readlink().parent == self.folder:
            CONFIGURATION.unlink()

    def ask(self, program: str, *arguments: str) -> list[str]:
        """The lines that one of SLURM's programs answers, without a header."""
        done = subprocess.run(
            [program, "--noheader", *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.split("\n")[:-1]

    def _run(self, program: str, *arguments: str) -> None:
        # A daemon must not outlive tests that are killed.
        daemon = _find(program)
        assert daemon is not None
        command = ["setpriv", "--pdeathsig", "TERM", "--", daemon, *arguments]
        with (self.folder / f"{program}.out").open("ab") as output:
            self.processes[program] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _stop(self, program: str) -> None:
        process = self.processes.pop(program, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_for(
        self, what: str, condition: Callable[[], bool], seconds: float = SECONDS_TO_START
    ) -> None:
        end = time.monotonic() + seconds
        while not condition():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead or time.monotonic() > end:
                raise RuntimeError(f"SLURM: {what} did not come up\n{self._last_words()}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"{file.name}: ...{file.read_text()[-1000:]}" for file in files)

    def _write(self) -> None:
        munge, state, spool = (self.folder / name for name in ("munge", "state", "spool"))
        for path in (munge, state, spool):
            path.mkdir(parents=True)
        key = munge / "key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(1024))
        settings = {
            "ClusterName": "local",
            "SlurmctldHost": f"{_host()}(127.0.0.1)",
            # Two ports that nobody else has, most probably; SLURM's own may be a real cluster's.
            "SlurmctldPort": _free_port(),
            "SlurmdPort": _free_port(),
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={munge / 'socket'}",
            "CredType": "cred/munge",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "StateSaveLocation": state,
            "SlurmdSpoolDir": spool,
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            "SlurmctldLogFile": self.log,
            "SlurmdLogFile": self.folder / "slurmd.log",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            # Without cgroups: processes are followed by their parents, and their memory is
            # looked at every second.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            "JobAcctGatherParams": "OverMemoryKill",
            "AccountingStorageType": "accounting_storage/none",
            "ReturnToService": 2,
            "InactiveLimit": 0,
            "KillWait": 2,
            "MinJobAge": 300,
            "WaitTime": 0,
            "SlurmctldTimeout": 30,
            "SlurmdTimeout": 60,
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        }
        lines = [SIGNATURE, *(f"{key}={value}" for key, value in settings.items())]
        lines += [
            f"NodeName={_host()} NodeAddr=127.0.0.1 CPUs={os.cpu_count()}"
            f" RealMemory={self.memory_mb} State=UNKNOWN",
            f"PartitionName=main Nodes={_host()} Default=YES MaxTime=INFINITE State=UP",
        ]
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[LocalSlurm]:
    """A cluster of this machine for as long as the context lasts."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cluster = LocalSlurm(folder, memory_mb=int(0.9 * pages * page_bytes / 2**20))
    descriptor = os.open(CONFIGURATION.parent, os.O_RDONLY)
    try:
        # Whoever else runs these tests on this machine needs the same link.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        os.close(descriptor)


def _find(program: str) -> str | None:
    # Daemons are where only root's shells look.
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
