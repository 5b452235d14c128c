"""Reads the reference cases in tests/data/reference/astra into the simulator's records."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepflow.network.graph import Network, Node, Options, SystemSettings

FOLDER = Path(__file__).parent / "data/reference/astra"
COLLECTIVES = {
    "AR": "ALL_REDUCE",
    "AG": "ALL_GATHER",
    "RS": "REDUCE_SCATTER",
    "A2A": "ALL_TO_ALL",
    "BCAST": "BROADCAST",
}
IMPLEMENTATION_KEYS = tuple(
    f"{name}-implementation"
    for name in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
)
BACKENDS = {"unaware": False, "aware": True}


@dataclass(frozen=True)
class Case:
    """Arguments of ``simulate``."""

    traces: tuple[tuple[Node, ...], ...]
    network: Network
    system: SystemSettings
    options: Options
    groups: dict[int, tuple[int, ...]]


def read(name: str) -> list[dict[str, Any]]:
    """The entries of ``cases`` or ``bad_inputs``."""
    text = gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes())
    entries: list[dict[str, Any]] = json.loads(text)
    return entries


def build(entry: dict[str, Any], congestion: bool) -> Case:
    """A case as records. Raises KeyError or ValueError if the files would be unreadable."""
    values = entry["network"]
    network = Network(
        *(tuple(values[key]) for key in ("topology", "npus_count", "bandwidth", "latency"))
    )
    traces = {rank: tuple(map(_node, nodes)) for rank, nodes in entry["graph"].items()}
    options = entry.get("cli", {})
    return Case(
        tuple(traces[str(rank) if str(rank) in traces else "*"] for rank in range(network.ranks)),
        network,
        _system(entry["system"]),
        Options(
            congestion=congestion,
            num_queues_per_dim=options.get("num-queues-per-dim", 1),
            injection_scale=options.get("injection-scale", 1.0),
            rendezvous=options.get("rendezvous-protocol", False),
        ),
        {int(key): tuple(ranks) for key, ranks in entry.get("groups", {}).items()},
    )


def _system(values: dict[str, Any]) -> SystemSettings:
    return SystemSettings(
        scheduling_policy=values["scheduling-policy"],
        collective_optimization=values["collective-optimization"],
        preferred_dataset_splits=values["preferred-dataset-splits"],
        local_mem_bw=values["local-mem-bw"],
        endpoint_delay=values.get("endpoint-delay"),
        active_chunks_per_dimension=values.get("active-chunks-per-dimension", 1),
        peak_perf=values.get("peak-perf"),
        roofline_enabled=bool(values.get("roofline-enabled")),
        replay_only=bool(values.get("replay-only")),
        model_shared_bus=bool(values.get("model-shared-bus")),
        **{key.replace("-", "_"): tuple(values.get(key, ())) for key in IMPLEMENTATION_KEYS},
    )


def _node(values: dict[str, Any]) -> Node:
    dims = values.get("dims")
    return Node(
        id=values["id"],
        kind=values["type"],
        dependencies=(*values.get("deps", ()), *values.get("ctrl", ())),
        duration_us=values.get("dur", 0),
        is_cpu=values.get("cpu", False),
        collective=COLLECTIVES.get(values.get("coll", ""), values.get("coll")),
        size_bytes=values.get("size"),
        peer=values.get("dst", values.get("src")),
        tag=values.get("tag"),
        group=int(values.get("pg", 0)),
        involved_dimensions=None if dims is None else tuple(dims),
        num_ops=values.get("ops"),
        tensor_bytes=values.get("bytes"),
    )
