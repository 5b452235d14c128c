"""What is wrong with an input, said before anything is simulated.

The binaries crash, hang, or print a plausible number for much of this. Here it is an error that
names the rank, the node and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepflow.network.algorithms import Implementation, parse_implementation
from deepflow.network.collective import CollectivePlan
from deepflow.network.graph import (
    COLLECTIVE_OPTIMIZATIONS,
    COLLECTIVES,
    NODE_KINDS,
    SCHEDULING_POLICIES,
    Network,
    NetworkError,
    Node,
    Options,
    SystemSettings,
)
from deepflow.network.topology import EXACT_TOPOLOGIES, TOPOLOGIES

RENDEZVOUS_LIMIT = 2**31  # bytes; the binary keeps the size in a signed 32-bit number there
_IMPLEMENTATION_FIELDS = {
    "ALL_REDUCE": "all_reduce_implementation",
    "ALL_GATHER": "all_gather_implementation",
    "REDUCE_SCATTER": "reduce_scatter_implementation",
    "ALL_TO_ALL": "all_to_all_implementation",
}


def check_network(network: Network, options: Options) -> None:
    """Raise NetworkError if the network cannot exist or cannot be simulated as asked."""
    counts = {len(network.topology), len(network.npus)}
    counts |= {len(network.bandwidth), len(network.latency)}
    counts |= {len(values) for values in (network.width, network.oversubscription) if values}
    if len(counts) != 1 or not network.npus:
        raise NetworkError(
            "topology, npus_count, bandwidth and latency of the network must be lists of one"
            " length, with one entry per dimension"
        )
    for index, (kind, npus) in enumerate(zip(network.topology, network.npus, strict=True)):
        where = f"network dimension {index}"
        if kind not in TOPOLOGIES:
            raise NetworkError(f"{where}: unknown topology {kind!r} ({', '.join(TOPOLOGIES)})")
        _require(npus >= 2, f"{where}: npus_count {npus} must be at least 2")
        bandwidth, latency = network.bandwidth[index], network.latency[index]
        _require(0 < bandwidth < float("inf"), f"{where}: bandwidth {bandwidth} must be above 0")
        _require(0 <= latency < float("inf"), f"{where}: latency {latency} must be 0 or more")
        width = network.width[index] if network.width else 0
        _require(
            width >= 0 and (not width or npus % width == 0),
            f"{where}: width {width} must divide npus_count {npus}",
        )
        ratio = network.oversubscription[index] if network.oversubscription else 1.0
        _require(
            ratio == 1 or (kind == "FatTree" and ratio > 1),
            f"{where}: oversubscription {ratio} must be at least 1 and belongs to a FatTree",
        )
        if kind == "Ring" and npus == 2 and options.congestion:
            _require(
                options.congestion_in_all_dimensions,
                f"{where}: a Ring of 2 has its only link twice, which the congestion-aware"
                " backend does not accept (use FullyConnected or Mesh)",
            )
    if options.congestion and len(network.npus) > 1 and not options.congestion_in_all_dimensions:
        raise NetworkError(
            "the congestion-aware backend takes networks of one dimension;"
            " congestion_in_all_dimensions simulates several"
        )


def check_system(system: SystemSettings, options: Options) -> None:
    """Raise NetworkError if a setting has no meaning or is not simulated."""
    _require(
        system.scheduling_policy in SCHEDULING_POLICIES,
        f"unknown scheduling-policy {system.scheduling_policy!r}"
        f" ({', '.join(SCHEDULING_POLICIES)})",
    )
    _require(
        system.collective_optimization in COLLECTIVE_OPTIMIZATIONS,
        f"unknown collective-optimization {system.collective_optimization!r}"
        f" ({', '.join(COLLECTIVE_OPTIMIZATIONS)})",
    )
    for name in ("preferred_dataset_splits", "active_chunks_per_dimension"):
        value = getattr(system, name)
        _require(value >= 1, f"{name.replace('_', '-')} {value} must be at least 1")
    _require(system.local_mem_bw > 0, f"local-mem-bw {system.local_mem_bw} must be above 0")
    delay = system.endpoint_delay
    _require(delay is None or delay >= 0, f"endpoint-delay {delay} must be 0 or more")
    if system.roofline_enabled:
        _require(
            system.peak_perf is not None and system.peak_perf > 0,
            "roofline-enabled needs a peak-perf above 0",
        )
    for name in ("track_local_mem", "model_shared_bus", "custom_collectives"):
        _require(not getattr(system, name), f"{name.replace('_', '-')} is not simulated")
    _require(options.num_queues_per_dim >= 1, "num-queues-per-dim must be at least 1")
    _require(options.injection_scale >= 0, "injection-scale must be 0 or more")
    _require(options.collectives_in_flight >= 0, "collectives_in_flight must be 0 or more")


def check_groups(groups: Mapping[int, Sequence[int]], ranks: int) -> None:
    """Raise NetworkError if a communicator group has a bad number or bad members."""
    for number, members in groups.items():
        where = f"communicator group {number}"
        _require(number >= 1, f"{where}: numbers start at 1 (0 means all ranks)")
        _require(len(set(members)) == len(members), f"{where}: a rank is named twice")
        outside = [rank for rank in members if not 0 <= rank < ranks]
        _require(not outside, f"{where}: rank {outside[:1]} is not one of the {ranks} ranks")


def check_nodes(
    nodes: Sequence[Node],
    rank: int,
    network: Network,
    system: SystemSettings,
    options: Options,
    has_memory: bool,
) -> None:
    """Raise NetworkError for the first node of a trace that cannot be executed.

    ``rank`` is the first that runs this trace and only named in messages.
    """
    _require(bool(nodes), f"rank {rank}: the trace has no nodes")
    known: set[int] = set()
    for node in nodes:
        _require(node.id not in known, f"rank {rank}: node id {node.id} occurs twice")
        known.add(node.id)
    for node in nodes:
        where = f"rank {rank}, node {node.id}{f' {node.name!r}' if node.name else ''}"
        for dependency in node.dependencies:
            _require(dependency in known, f"{where}: depends on node {dependency}: no such node")
        _require(node.duration_us >= 0, f"{where}: negative duration")
        if node.kind == "COLL" and not system.replay_only:
            _check_collective(node, where, network, system, options)
        elif node.kind in ("SEND", "RECV") and not system.replay_only:
            _check_message(node, where, network.ranks, options)
        elif node.kind in ("MEM_LOAD", "MEM_STORE"):
            _require(has_memory, f"{where}: {node.kind} without a remote memory")
            _require((node.tensor_bytes or 0) > 0, f"{where}: tensor_size must be above 0")
        elif node.kind == "COMP":
            if system.roofline_enabled and not node.is_cpu and not system.replay_only:
                _require((node.num_ops or 0) > 0, f"{where}: num_ops must be given and above 0")
                _require(
                    (node.tensor_bytes or 0) > 0, f"{where}: tensor_size must be given and above 0"
                )
        elif node.kind not in NODE_KINDS or node.kind in ("METADATA", "INVALID"):
            raise NetworkError(f"{where}: a node of type {node.kind} cannot be executed")
    _check_acyclic(nodes, rank)


def _check_acyclic(nodes: Sequence[Node], rank: int) -> None:
    missing = {node.id: len(set(node.dependencies)) for node in nodes}
    children: dict[int, list[int]] = {}
    for node in nodes:
        for dependency in set(node.dependencies):
            children.setdefault(dependency, []).append(node.id)
    free = [number for number, count in missing.items() if not count]
    for number in free:
        for child in children.get(number, ()):
            missing[child] -= 1
            if not missing[child]:
                free.append(child)
    if len(free) < len(nodes):
        stuck = [str(number) for number, count in missing.items() if count]
        raise NetworkError(
            f"rank {rank}: nodes {', '.join(stuck[:5])} depend on one another in a cycle"
        )


def _check_collective(
    node: Node, where: str, network: Network, system: SystemSettings, options: Options
) -> None:
    _require(not node.is_cpu, f"{where}: a collective cannot be a CPU operation")
    if node.collective is None:
        raise NetworkError(f"{where}: comm_type is missing")
    if node.collective not in COLLECTIVES:
        raise NetworkError(
            f"{where}: collective {node.collective} is not simulated ({', '.join(COLLECTIVES)})"
        )
    if node.collective == "BROADCAST":
        return
    size = node.size_bytes
    if size is None:
        raise NetworkError(f"{where}: comm_size is missing")
    _require(size > 0, f"{where}: comm_size {size} must be above 0")
    if node.collective == "ALL_GATHER" and size < system.preferred_dataset_splits:
        raise NetworkError(
            f"{where}: an all-gather of {size} bytes cannot be cut into"
            f" {system.preferred_dataset_splits} chunks (preferred-dataset-splits)"
        )
    _require(
        not options.rendezvous or size < RENDEZVOUS_LIMIT,
        f"{where}: comm_size {size} must be below 2 GiB with the rendezvous protocol",
    )
    involved = node.involved_dimensions
    if involved is not None and not node.group:
        _require(
            len(involved) >= len(network.npus),
            f"{where}: involved_dim has {len(involved)} entries for {len(network.npus)} dimensions",
        )
        _require(any(involved[: len(network.npus)]), f"{where}: involved_dim leaves no dimension")
    elif involved is None and len(network.npus) > 4 and not node.group:
        raise NetworkError(
            f"{where}: without involved_dim only 4 of {len(network.npus)} dimensions take part;"
            " name the dimensions"
        )


def _check_message(node: Node, where: str, ranks: int, options: Options) -> None:
    _require(not node.is_cpu, f"{where}: communication cannot be a CPU operation")
    peer = "comm_dst" if node.kind == "SEND" else "comm_src"
    for name, value in ((peer, node.peer), ("comm_tag", node.tag), ("comm_size", node.size_bytes)):
        _require(value is not None, f"{where}: {name} is missing")
    _require(0 <= (node.peer or 0) < ranks, f"{where}: {peer} {node.peer} is not below {ranks}")
    _require((node.size_bytes or 0) > 0, f"{where}: comm_size {node.size_bytes} must be above 0")
    _require((node.tag or 0) >= 0, f"{where}: comm_tag {node.tag} must be 0 or more")
    _require(
        not options.rendezvous or (node.size_bytes or 0) < RENDEZVOUS_LIMIT,
        f"{where}: comm_size {node.size_bytes} must be below 2 GiB with the rendezvous protocol",
    )


def implementations(
    collective: str, system: SystemSettings, dimensions: int
) -> tuple[Implementation, ...]:
    """The configured algorithms of a collective, one per dimension or a single ``one...`` entry.

    Raises NetworkError if their number does not fit the network.
    """
    field = _IMPLEMENTATION_FIELDS[collective]
    key = field.replace("_", "-")
    texts: tuple[str, ...] = getattr(system, field)
    _require(bool(texts), f"{key} is missing, and the trace has such a collective")
    parsed = tuple(parse_implementation(text) for text in texts)
    if len(parsed) == 1 and parsed[0].whole:
        return parsed
    _require(
        len(parsed) == dimensions,
        f"{key} has {len(parsed)} entries for {dimensions} dimensions",
    )
    _require(
        dimensions == 1 or not any(entry.whole for entry in parsed),
        f"{key}: a one... implementation takes all dimensions and has to stand alone",
    )
    return parsed


def check_algorithm(
    implementation: Implementation, collective: str, ranks: int, subgroup: bool
) -> None:
    """Raise NetworkError if an algorithm cannot run this collective on this many ranks."""
    name = implementation.name
    key = _IMPLEMENTATION_FIELDS[collective].replace("_", "-")
    where = f"{key}: {collective} with {name} on {ranks} ranks"
    _require(ranks >= 2, f"{where}: a collective needs at least 2 ranks")
    if name in ("halvingDoubling", "doubleBinaryTree"):
        _require(ranks & (ranks - 1) == 0, f"{where}: the number of ranks must be a power of two")
        _require(
            collective != "ALL_TO_ALL",
            f"{where}: the algorithm has no all-to-all (ring and direct have)",
        )
    if name == "doubleBinaryTree":
        _require(not subgroup, f"{where}: trees do not work in communicator sub-groups")


def check_messages(plan: CollectivePlan, index: int) -> None:
    """Raise NetworkError if a step of a collective would send messages without bytes."""
    step = plan.steps[index]
    if step.dimension.implementation.name == "doubleBinaryTree":
        smallest = step.data
    else:
        exchange = plan.exchange(index, next(iter(plan.members(index, 0))), 1)
        smallest = min(exchange.sizes)
    _require(
        smallest > 0,
        f"{step.collective}: chunks of {step.data} bytes are too small for"
        f" {step.dimension.implementation.name} on {step.dimension.ranks} ranks",
    )


def exact_topologies(network: Network) -> bool:
    """Whether ASTRA-sim knows all topologies of the network."""
    return all(kind in EXACT_TOPOLOGIES for kind in network.topology)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise NetworkError(problem)
