"""Groups of ranks that communicate, and the links between them."""

from __future__ import annotations

from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware, parallel_links
from deepflow.record import record


@record(frozen=True)
class Group:
    """Ranks that communicate with each other, and the links between them.

    ``size`` ranks: ``intra_size`` of them within each of ``inter_size`` nodes. Bandwidths are
    bytes/s of one rank in each direction, latencies seconds per message, fills seconds per
    collective.
    """

    name: str
    size: int
    intra_size: int
    inter_size: int
    intra_bandwidth: float
    intra_latency: float
    inter_bandwidth: float
    inter_latency: float
    intra_fill: float = 0.0
    inter_fill: float = 0.0


def place_group(
    hardware: Hardware, name: str, size: int, stride: int, dimensions: tuple[str, ...]
) -> Group:
    """The group of ``size`` ranks that are ``stride`` apart, placed in rank order.

    ``dimensions`` are the group's names in ``system_hierarchy`` (kp1, kp2, dp, lp): where a file
    says for one of them which network it uses, all its traffic goes there.

    Raises:
        InfeasiblePoint: the group needs a network that has no bandwidth.
    """
    system = hardware.config.system_hierarchy
    flags = {dimension: getattr(system, f"{dimension}_inter") for dimension in dimensions}
    between_nodes = [dimension for dimension, flag in flags.items() if flag]
    if between_nodes:
        intra_size = 1
    elif all(flag is None for flag in flags.values()):
        intra_size = max(1, min(size, system.num_devices_per_node // stride))
        while size % intra_size:
            intra_size -= 1
    else:
        intra_size = size
    inter_size = size // intra_size
    intra, inter = hardware.accelerator.intra_node, hardware.accelerator.inter_node
    intra_bandwidth = intra.bandwidth / system.intra_derate if system.intra_derate else 0.0
    inter_bandwidth = inter.bandwidth / system.inter_derate if system.inter_derate else 0.0
    if between_nodes:
        # A message also passes the network within its node, if there is one.
        inter_bandwidth = parallel_links(hardware)[between_nodes[0]][0]
    for ranks, bandwidth, where in (
        (intra_size, intra_bandwidth, "within a node (network.intra_node)"),
        (inter_size, inter_bandwidth, "between nodes (network.inter_node)"),
    ):
        if ranks > 1 and bandwidth <= 0:
            raise InfeasiblePoint(
                f"the {name} parallel group of {size} spans {ranks} devices {where},"
                " but that network has no bandwidth"
            )
    return Group(
        name,
        size,
        intra_size,
        inter_size,
        intra_bandwidth,
        intra.latency,
        inter_bandwidth,
        inter.latency,
        intra.pipeline_fill,
        inter.pipeline_fill,
    )
