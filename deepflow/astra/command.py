"""``deepflow astra-sim``: the embedded simulator behind ASTRA-sim's own command line.

It takes the files and options of ASTRA-sim's analytical backends and prints their lines, so that
scripts made for them work without a build. Exit codes mean the same, 0 done and another one
failed, except that a run in which a rank does not finish has failed here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.errors import DeepFlowError
from deepflow.network.graph import NetworkError, Options, Result

if TYPE_CHECKING:
    from deepflow.astra.files import SimulationFiles

CONGESTION_UNAWARE, CONGESTION_AWARE = BACKENDS = ("congestion_unaware", "congestion_aware")

_DESCRIPTION = "Time the Chakra traces of a workload on a network, as ASTRA-sim does."
_EPILOG = """Options are those of ASTRA-sim's analytical backends; --network-backend chooses between
its two programs. Unknown options have no effect, as there, but are warned of.
"""


def add_astra_sim_command(commands: Any) -> None:
    """Adds ``astra-sim`` to the ``deepflow`` command."""
    parser = commands.add_parser(
        "astra-sim",
        help="simulate Chakra traces with ASTRA-sim's options",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    for name, meaning in (
        ("workload", "PREFIX of the traces PREFIX.0.et, PREFIX.1.et ..."),
        ("system", "system JSON"),
        ("network", "network YAML"),
        ("remote-memory", "memory JSON"),
    ):
        metavar = "PREFIX" if name == "workload" else "FILE"
        parser.add_argument(f"--{name}-configuration", metavar=metavar, required=True, help=meaning)
    parser.add_argument(
        "--comm-group-configuration",
        metavar="FILE",
        default="empty",
        help="communicator groups JSON; a path with 'empty' in it means none (default: none)",
    )
    parser.add_argument(
        "--network-backend",
        choices=BACKENDS,
        default=CONGESTION_UNAWARE,
        help="whether messages wait for each other on links (default: %(default)s)",
    )
    parser.add_argument("--num-queues-per-dim", metavar="N", type=_count, default=1)
    parser.add_argument("--injection-scale", metavar="X", type=float, default=1.0)
    parser.add_argument(
        "--rendezvous-protocol", metavar="BOOL", type=_bool, nargs="?", const=True, default=False
    )
    parser.add_argument(
        "--logging-folder", metavar="DIR", help="also write the lines to log.log there"
    )
    for name in ("logging-configuration", "comm-scale", "compute-scale"):
        parser.add_argument(f"--{name}", metavar="X", help="accepted, has no effect")
    beyond = parser.add_argument_group("beyond ASTRA-sim")
    beyond.add_argument(
        "--collectives-in-flight",
        metavar="N",
        type=_count,
        default=1,
        help="communication nodes that a rank runs at once (default: 1, as in ASTRA-sim)",
    )
    beyond.add_argument(
        "--congestion-in-all-dimensions",
        action="store_true",
        help="congestion_aware on networks of several dimensions",
    )
    beyond.add_argument(
        "--link-states", metavar="FILE", help="YAML list of degraded and failed links"
    )
    parser.set_defaults(run=_run, accepts_unknown_options=True)


def output_lines(result: Result, now: datetime) -> Iterator[str]:
    """The lines that ASTRA-sim prints of a run: ranks in order of completion."""
    stamp = f"[{now:%Y-%m-%d %H:%M:%S}.{now.microsecond // 1000:03d}]"
    for rank in result.order:
        cycles, exposed = result.cycles[rank], result.exposed[rank]
        yield (
            f"{stamp} [workload] [info] sys[{rank}] finished, {cycles} cycles,"
            f" exposed communication {exposed} cycles."
        )
        yield f"{stamp} [statistics] [info] sys[{rank}], Wall time: {cycles}"
    yield f"{stamp} [system] [warning] Exiting"


def _run(options: argparse.Namespace) -> None:
    from deepflow.astra.files import SimulationFiles, read_link_states, read_simulation
    from deepflow.network.simulate import simulate

    groups = options.comm_group_configuration
    files = SimulationFiles(
        workload=Path(options.workload_configuration),
        system=Path(options.system_configuration),
        network=Path(options.network_configuration),
        memory=Path(options.remote_memory_configuration),
        groups=None if "empty" in groups else Path(groups),
    )
    given = read_simulation(files)
    links = () if options.link_states is None else read_link_states(options.link_states)
    try:
        result = simulate(
            given.traces,
            given.network,
            given.system,
            Options(
                congestion=options.network_backend == CONGESTION_AWARE,
                num_queues_per_dim=options.num_queues_per_dim,
                injection_scale=options.injection_scale,
                rendezvous=options.rendezvous_protocol,
                collectives_in_flight=options.collectives_in_flight,
                congestion_in_all_dimensions=options.congestion_in_all_dimensions,
                link_states=links,
            ),
            given.groups,
            given.memory,
        )
    except NetworkError as error:
        file = _file_of(str(error), files, options.link_states)
        raise DeepFlowError(f"{file}: {error}") from None
    text = "\n".join(output_lines(result, datetime.now()))
    if options.logging_folder is not None:
        folder = Path(options.logging_folder)
        try:
            folder.mkdir(exist_ok=True)
            (folder / "log.log").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise DeepFlowError(
                f"--logging-folder {folder}: cannot be written: {error.strerror or error}"
            ) from None
    print(text)


def _file_of(problem: str, files: SimulationFiles, link_states: str | None) -> str | Path:
    """The file that has what the simulator, which knows no files, complains of."""
    from deepflow.astra.trace import trace_file

    if link_states is not None and re.search(r"\blinks? (from|have|\d)", problem):
        return link_states
    if rank := re.search(r"\brank (\d+)\b", problem):
        return trace_file(files.workload, int(rank[1]))
    return files.network if re.search(r"network|topology", problem) else files.system


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")
