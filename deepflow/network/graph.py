"""What the simulator takes and gives: traces, network, system, options, result.

The records mirror the files of ASTRA-sim (Chakra execution traces, network YAML, system JSON,
communicator groups; see its public documentation and arXiv 2303.14006), so that a set of files
and a simulation correspond one to one. Nothing here reads or writes a file. One cycle is one
nanosecond. ``None`` stands for an attribute that the file does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepflow.errors import DeepFlowError
from deepflow.record import record

NODE_KINDS = ("COMP", "COLL", "SEND", "RECV", "MEM_LOAD", "MEM_STORE", "METADATA", "INVALID")
COLLECTIVES = ("ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER", "ALL_TO_ALL", "BROADCAST")
SCHEDULING_POLICIES = ("LIFO", "FIFO", "EXPLICIT")
COLLECTIVE_OPTIMIZATIONS = ("baseline", "localBWAware")
DEFAULT_ENDPOINT_DELAY = 10


class NetworkError(DeepFlowError):
    """Input that cannot be simulated, or a simulation in which ranks do not finish."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a rank's execution trace.

    ``dependencies`` are the ids that control and data dependencies name, together.
    ``size_bytes`` is comm_size: the per-rank input buffer, for ALL_GATHER the rank's shard.
    ``peer`` is the destination of a SEND and the source of a RECV.
    ``group`` is pg_name as a number, 0 for all ranks.
    """

    id: int
    kind: str
    name: str = ""
    dependencies: tuple[int, ...] = ()
    duration_us: int = 0
    is_cpu: bool = False
    collective: str | None = None
    size_bytes: int | None = None
    peer: int | None = None
    tag: int | None = None
    group: int = 0
    involved_dimensions: tuple[bool, ...] | None = None
    num_ops: int | None = None
    tensor_bytes: int | None = None
    priority: int = 0


@record(frozen=True)
class Network:
    """One entry per dimension; dimension 0 changes fastest with the rank.

    ``bandwidth`` is per directed link in GB/s of 2^30 bytes, ``latency`` per link in ns, both as
    written in the file. ``width`` and ``oversubscription`` are ours: columns of a Mesh2D or
    Torus2D, ranks per leaf switch of a FatTree (0: nearest to square), and the ratio of a leaf's
    downlinks to its uplinks.
    """

    topology: tuple[str, ...]
    npus: tuple[int, ...]
    bandwidth: tuple[float, ...]
    latency: tuple[float, ...]
    width: tuple[int, ...] = ()
    oversubscription: tuple[float, ...] = ()

    @property
    def ranks(self) -> int:
        """Number of NPUs in all dimensions together."""
        total = 1
        for count in self.npus:
            total *= count
        return total


@record(frozen=True)
class SystemSettings:
    """The keys of the system file that matter, with the defaults of the real binary.

    ``endpoint_delay`` in ns, ``local_mem_bw`` in GB/s of 1e9, ``peak_perf`` in TFLOP/s. Keys that
    the binary needs but leaves uninitialised when they are absent have no default here.
    The implementations have one entry per network dimension, or one ``one...`` entry.
    """

    scheduling_policy: str
    collective_optimization: str
    preferred_dataset_splits: int
    local_mem_bw: float
    endpoint_delay: float | None = None
    active_chunks_per_dimension: int = 1
    peak_perf: float | None = None
    roofline_enabled: bool = False
    replay_only: bool = False
    track_local_mem: bool = False
    model_shared_bus: bool = False
    custom_collectives: bool = False
    all_reduce_implementation: tuple[str, ...] = ()
    all_gather_implementation: tuple[str, ...] = ()
    reduce_scatter_implementation: tuple[str, ...] = ()
    all_to_all_implementation: tuple[str, ...] = ()


@record(frozen=True)
class RemoteMemory:
    """Memory behind the rank (PER_NPU_MEMORY_EXPANSION): ``latency`` in ns, ``bandwidth`` in GB/s.

    GB are 1e9 bytes here, so that the bandwidth is bytes per ns.
    """

    latency: float
    bandwidth: float


@record(frozen=True)
class LinkState:
    """A directed link that differs from its dimension's: slower, with more latency, or failed.

    ``source`` and ``destination`` are ranks, or names of switches as ``Topology`` gives them.
    ``bandwidth_factor`` multiplies the bandwidth (0: the link is gone), ``extra_latency`` in ns.
    """

    source: int | str
    destination: int | str
    bandwidth_factor: float = 1.0
    extra_latency: float = 0.0


@record(frozen=True)
class Options:
    """Command-line options of the binary, and below them options beyond it.

    The defaults reproduce the binary. ``collectives_in_flight`` is how many nodes of the
    communication lane a rank runs at once (0: any number, so that nothing blocks).
    """

    congestion: bool = False
    num_queues_per_dim: int = 1
    injection_scale: float = 1.0
    rendezvous: bool = False
    collectives_in_flight: int = 1
    link_states: tuple[LinkState, ...] = ()
    congestion_in_all_dimensions: bool = False


@record(frozen=True)
class Result:
    """What every rank took, in cycles (ns), and the order in which ranks finished.

    ``exposed`` is the finish minus all compute issued on the rank, idle time included.
    """

    cycles: tuple[int, ...]
    exposed: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def wall_time(self) -> int:
        """Cycles until the last rank has finished."""
        return max(self.cycles)
