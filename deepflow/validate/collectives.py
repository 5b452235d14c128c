"""Collectives of measured tables, as ``deepflow validate`` predicts them.

A row states ``op``, ``ranks``, ``bytes`` and, if it is not on one node, ``devices_per_node``.
Libraries are NCCL and the kernels of serving frameworks ("custom_allreduce", in a CUDA graph).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deepflow.config import with_overrides
from deepflow.cost.operators import operator_cost
from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware
from deepflow.mapping.groups import Group, place_group
from deepflow.workload.operators import Collective

# Names of operations in tables: the kind of collective.
KINDS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "send_recv": "send",
}

# Elements that reductions inside switches add up.
REDUCED_IN_SWITCHES = ("half", "fp16", "float16", "bf16", "bfloat16", "float", "fp32", "float32")

# network_topology.inter_node of files whose nodes are groups of devices in one host.
WITHIN_HOST = "pcie"


def predicted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of the row's collective on neighbouring ranks that fill one node before the next.

    The launch of its kernel is part of it.

    Raises:
        DeepFlowError: why the row cannot be predicted.
        KeyError, ValueError: a column is missing, or not a number.
    """
    kind = KINDS.get(row["op"])
    if kind is None:
        raise DeepFlowError(f"op {row['op']!r} is not modelled")
    if row.get("library", "nccl") == "custom_allreduce":
        if row.get("kernel_source", "").endswith("_eager"):
            raise DeepFlowError("outside a CUDA graph the host's time counts, which is not stated")
        kind = "custom_all_reduce"
    elif row.get("library", "nccl") != "nccl":
        raise DeepFlowError(f"library {row['library']!r} is not modelled")
    group = _group(row, hardware)
    collective = Collective(row["op"], kind, "ranks", float(row["bytes"]))
    seconds = operator_cost(collective, hardware, {"ranks": group}).cost.time
    if kind == "send":
        # Within a step it belongs to a kernel that is launched anyway; alone it is one.
        seconds += hardware.config.sw_param.kernel_launch_overhead
    return seconds


def _group(row: Mapping[str, str], hardware: Hardware) -> Group:
    ranks = int(row["ranks"])
    per_node = hardware.config.system_hierarchy.num_devices_per_node
    hosts = int(row.get("nodes") or 1)
    if hosts == 1 and not row.get("devices_per_node") and ranks > per_node:
        raise DeepFlowError(f"{ranks} ranks are more than a node has; devices_per_node is missing")
    if hardware.config.network_topology.inter_node == WITHIN_HOST:
        if hosts > 1:
            raise DeepFlowError("the hardware file does not state a network between hosts")
    elif row.get("devices_per_node"):
        placed = {"system_hierarchy.num_devices_per_node": int(row["devices_per_node"])}
        hardware = replace(hardware, config=with_overrides(hardware.config, placed))
    group = place_group(hardware, "ranks", ranks, 1, ())
    if row.get("dtype", "half") in REDUCED_IN_SWITCHES:
        return group
    return replace(
        group,
        intra_protocol=replace(group.intra_protocol, reduction_bandwidth=0.0),
        inter_protocol=replace(group.inter_protocol, reduction_bandwidth=0.0),
    )
