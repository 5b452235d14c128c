"""The inputs of a simulation beside the traces, and whole sets of input files.

Network YAML, system JSON, memory JSON and communicator groups JSON as ASTRA-sim reads them (its
public documentation; arXiv 2303.14006). The readers are stricter where ASTRA-sim would divide by
zero or use memory that nobody set: what it needs must be there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepflow.astra.trace import read_traces, serialize_trace, trace_file
from deepflow.config.loading import DeepFlowWarning, read_yaml
from deepflow.errors import ConfigError
from deepflow.files import read_limited
from deepflow.network.algorithms import parse_implementation
from deepflow.network.checks import check_groups, check_network, check_system
from deepflow.network.graph import (
    LinkState,
    Network,
    NetworkError,
    Node,
    Options,
    RemoteMemory,
    SystemSettings,
)
from deepflow.record import record

NO_REMOTE_MEMORY, OWN_REMOTE_MEMORY = "NO_MEMORY_EXPANSION", "PER_NPU_MEMORY_EXPANSION"

# Keys of system files that change no time: of other front ends and versions of ASTRA-sim, and
# of what it writes beside its result.
_KEYS_WITHOUT_EFFECT = frozenset(
    (
        "boost-mode",
        "intra-dimension-scheduling",
        "inter-dimension-scheduling",
        "local-mem-trace-filename",
        "local-reduction-delay",
        "trace-enabled",
        "L",
        "o",
        "g",
        "G",
    )
)
_KEYS_NOT_SIMULATED = (
    "track-local-mem",
    "model-shared-bus",
    "all-reduce-implementation-custom",
    "all-gather-implementation-custom",
    "reduce-scatter-implementation-custom",
    "all-to-all-implementation-custom",
    "per-node-custom-implementation",
)


@record(frozen=True)
class SimulationInput:
    """Everything that a simulation depends on, apart from command-line options.

    ``traces`` has the nodes of every rank in order; ``groups`` the ranks of each communicator
    group by its number, in the order of their logical ring.
    """

    traces: tuple[tuple[Node, ...], ...]
    network: Network
    system: SystemSettings
    groups: Mapping[int, tuple[int, ...]]
    memory: RemoteMemory | None = None


@record(frozen=True)
class SimulationFiles:
    """Paths as ASTRA-sim's command line takes them; the trace of rank r is ``workload``.r.et."""

    workload: Path
    system: Path
    network: Path
    memory: Path
    groups: Path | None = None


def read_simulation(files: SimulationFiles) -> SimulationInput:
    """Reads a set of files. Raises ConfigError or TraceError, naming the file, for bad input."""
    network = read_network(files.network)
    system = read_system(files.system)
    memory = read_memory(files.memory)
    groups = {} if files.groups is None else read_groups(files.groups, network.ranks)
    return SimulationInput(
        read_traces(files.workload, network.ranks), network, system, groups, memory
    )


def write_simulation(given: SimulationInput, parent: str | Path) -> SimulationFiles:
    """Writes a set of files into a folder of its own below ``parent``.

    The folder's name is a digest of every byte in it, so that it names one simulation whatever
    its sizes are, and an equal set that is there already is used as it is.
    """
    contents: dict[str, bytes] = {
        "network.yml": network_yaml(given.network).encode(),
        "system.json": system_json(given.system).encode(),
        "memory.json": memory_json(given.memory).encode(),
    }
    if given.groups:
        contents["groups.json"] = groups_json(given.groups).encode()
    # Ranks that share their nodes, hundreds in symmetric workloads, share a file as well.
    first_rank: dict[int, int] = {}
    for rank, nodes in enumerate(given.traces):
        if first_rank.setdefault(id(nodes), rank) == rank:
            contents[trace_file("trace", rank).name] = serialize_trace(nodes)
    same = {
        trace_file("trace", rank).name: trace_file("trace", first_rank[id(nodes)]).name
        for rank, nodes in enumerate(given.traces)
        if first_rank[id(nodes)] != rank
    }
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    digest.update(_json(same).encode())
    folder = Path(parent) / digest.hexdigest()[:32]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
            for name, target in same.items():
                (temporary / name).symlink_to(target)
            try:
                temporary.rename(folder)
            except OSError:
                # Another process may have been quicker, with the same bytes.
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return SimulationFiles(
        folder / "trace",
        folder / "system.json",
        folder / "network.yml",
        folder / "memory.json",
        folder / "groups.json" if given.groups else None,
    )


# --- network -------------------------------------------------------------------------------


def read_network(path: str | Path) -> Network:
    """A network YAML: lists with one entry per dimension, the innermost first.

    ``width`` and ``oversubscription`` are keys of ours, for the topologies that need them.
    """
    keys = _Keys(_mapping(read_yaml(path), path), path)
    network = Network(
        topology=tuple(keys.list("topology", _text)),
        npus=tuple(keys.list("npus_count", _whole)),
        bandwidth=tuple(keys.list("bandwidth", _number)),
        latency=tuple(keys.list("latency", _number)),
        width=tuple(keys.list("width", _whole, ())),
        oversubscription=tuple(keys.list("oversubscription", _number, ())),
    )
    keys.warn_of_others()
    with _naming(path):
        check_network(network, Options())
    return network


def read_link_states(path: str | Path) -> tuple[LinkState, ...]:
    """A YAML list of links that are not as their dimension says; ASTRA-sim has no such file.

    Each entry has ``source`` and ``destination`` (ranks, or switches as ``Topology`` names
    them), ``bandwidth_factor`` (1; 0 for a failed link) and ``extra_latency`` (0 ns).
    """
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise ConfigError("not a list of links", file=str(path))
    states = []
    for entry in entries:
        keys = _Keys(_mapping(entry, path), path)
        state = LinkState(
            source=keys.value("source", _station),
            destination=keys.value("destination", _station),
            bandwidth_factor=keys.value("bandwidth_factor", _number, 1.0),
            extra_latency=keys.value("extra_latency", _number, 0.0),
        )
        if state.bandwidth_factor < 0 or state.extra_latency < 0:
            raise ConfigError("less than 0", file=str(path), value=entry)
        keys.warn_of_others()
        states.append(state)
    return tuple(states)


def network_yaml(network: Network) -> str:
    """The text of a network file."""
    lists: dict[str, tuple[Any, ...]] = {
        "topology": network.topology,
        "npus_count": network.npus,
        "bandwidth": network.bandwidth,
        "latency": network.latency,
        "width": network.width,
        "oversubscription": network.oversubscription,
    }
    return "".join(
        f"{key}: [{', '.join(map(str, entries))}]\n" for key, entries in lists.items() if entries
    )


# --- system --------------------------------------------------------------------------------


def read_system(path: str | Path) -> SystemSettings:
    """A system JSON.

    Raises ConfigError for what ASTRA-sim leaves uninitialised when it is absent, and for
    what the embedded simulator does not simulate. Keys that nobody knows are a warning.
    """
    keys = _Keys(_mapping(_read_json(path), path), path)
    for key in _KEYS_NOT_SIMULATED:
        value = keys.take(key, None)
        if value:
            raise ConfigError("not simulated", file=str(path), key=key, value=value)

    def algorithms(collective: str) -> tuple[str, ...]:
        return tuple(keys.list(f"{collective}-implementation", _algorithm, ()))

    settings = SystemSettings(
        scheduling_policy=keys.value("scheduling-policy", _text),
        collective_optimization=keys.value("collective-optimization", _text),
        preferred_dataset_splits=keys.value("preferred-dataset-splits", _whole),
        local_mem_bw=keys.value("local-mem-bw", _number),
        endpoint_delay=keys.value("endpoint-delay", _number, None),
        active_chunks_per_dimension=keys.value("active-chunks-per-dimension", _whole, 1),
        peak_perf=keys.value("peak-perf", _number, None),
        roofline_enabled=keys.value("roofline-enabled", _switch, False),
        replay_only=keys.value("replay-only", _switch, False),
        all_reduce_implementation=algorithms("all-reduce"),
        all_gather_implementation=algorithms("all-gather"),
        reduce_scatter_implementation=algorithms("reduce-scatter"),
        all_to_all_implementation=algorithms("all-to-all"),
    )
    keys.warn_of_others(_KEYS_WITHOUT_EFFECT)
    with _naming(path):
        check_system(settings, Options())
    return settings


def system_json(system: SystemSettings) -> str:
    """The text of a system file."""
    content: dict[str, object] = {
        "scheduling-policy": system.scheduling_policy,
        "collective-optimization": system.collective_optimization,
        "preferred-dataset-splits": system.preferred_dataset_splits,
        "local-mem-bw": system.local_mem_bw,
        "endpoint-delay": system.endpoint_delay,
        "active-chunks-per-dimension": system.active_chunks_per_dimension,
        "peak-perf": system.peak_perf,
        # As numbers, which every version of ASTRA-sim reads.
        "roofline-enabled": int(system.roofline_enabled),
        "replay-only": int(system.replay_only),
        "all-reduce-implementation": list(system.all_reduce_implementation),
        "all-gather-implementation": list(system.all_gather_implementation),
        "reduce-scatter-implementation": list(system.reduce_scatter_implementation),
        "all-to-all-implementation": list(system.all_to_all_implementation),
    }
    # An absent key and its default are the same to ASTRA-sim, an empty list is not.
    return _json({key: value for key, value in content.items() if value not in (None, [])})


# --- memory and groups ---------------------------------------------------------------------


def read_memory(path: str | Path) -> RemoteMemory | None:
    """A memory JSON: no remote memory, or one behind each NPU. Pools are not simulated."""
    keys = _Keys(_mapping(_read_json(path), path), path)
    kind = keys.value("memory-type", _text)
    if kind == NO_REMOTE_MEMORY:
        return None
    if kind != OWN_REMOTE_MEMORY:
        raise ConfigError(
            "not simulated",
            file=str(path),
            key="memory-type",
            value=kind,
            allowed=f"{NO_REMOTE_MEMORY}, {OWN_REMOTE_MEMORY}",
        )
    memory = RemoteMemory(
        latency=keys.value("remote-mem-latency", _number),
        bandwidth=keys.value("remote-mem-bw", _number),
    )
    if memory.latency < 0 or memory.bandwidth <= 0:
        raise ConfigError("remote memory has a latency and a bandwidth", file=str(path))
    return memory


def memory_json(memory: RemoteMemory | None) -> str:
    """The text of a memory file."""
    if memory is None:
        return _json({"memory-type": NO_REMOTE_MEMORY})
    return _json(
        {
            "memory-type": OWN_REMOTE_MEMORY,
            "remote-mem-latency": memory.latency,
            "remote-mem-bw": memory.bandwidth,
        }
    )


def read_groups(path: str | Path, ranks: int) -> dict[int, tuple[int, ...]]:
    """A communicator groups JSON: {"1": [ranks], ...}; 0 stands for all ranks and is no group."""
    groups: dict[int, tuple[int, ...]] = {}
    keys = _Keys(_mapping(_read_json(path), path), path)
    for name in keys.names:
        if not (name.isascii() and name.isdigit()) or int(name) in groups:
            raise ConfigError(
                "no number of a group, or given twice", file=str(path), key=name, allowed="1, 2 ..."
            )
        groups[int(name)] = tuple(keys.list(name, _whole))
    with _naming(path):
        check_groups(groups, ranks)
    return groups


def groups_json(groups: Mapping[int, tuple[int, ...]]) -> str:
    """The text of a communicator groups file."""
    return _json({str(number): list(ranks) for number, ranks in groups.items()})


# --- plain data ----------------------------------------------------------------------------

_REQUIRED: Any = object()


class _Keys:
    """The keys of one file: each is taken once, and whatever remains can be reported."""

    def __init__(self, data: Mapping[str, Any], file: str | Path) -> None:
        self._left = dict(data)
        self._file = str(file)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._left)

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self._left.pop(key, default)
        if value is _REQUIRED:
            raise ConfigError("missing", file=self._file, key=key)
        return value

    def value(self, key: str, convert: Callable[[Any], Any], default: Any = _REQUIRED) -> Any:
        """The converted value, or ``default`` as it is."""
        if key not in self._left and default is not _REQUIRED:
            return default
        return self._converted(key, self.take(key), convert)

    def list(self, key: str, convert: Callable[[Any], Any], default: Any = _REQUIRED) -> Any:
        """The converted entries of a list."""
        entries = self.take(key, default)
        if entries is default:
            return entries
        if not isinstance(entries, list):
            raise ConfigError("not a list", file=self._file, key=key, value=entries)
        return [self._converted(key, entry, convert) for entry in entries]

    def warn_of_others(self, known: Iterable[str] = ()) -> None:
        for key in sorted(self._left.keys() - set(known)):
            warnings.warn(
                f"{self._file}: {key} is no key of such a file and has no effect",
                DeepFlowWarning,
                stacklevel=4,
            )

    def _converted(self, key: str, value: Any, convert: Callable[[Any], Any]) -> Any:
        try:
            return convert(value)
        except ValueError as error:
            raise ConfigError(str(error), file=self._file, key=key, value=value) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value


def _algorithm(value: Any) -> str:
    text = _text(value)
    try:
        parse_implementation(text)
    except NetworkError as error:
        raise ValueError(str(error)) from None
    return text


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _whole(value: Any) -> int:
    if _number(value) != int(value):
        raise ValueError("not a whole number")
    return int(value)


def _station(value: Any) -> int | str:
    return value if isinstance(value, str) else _whole(value)


def _switch(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError("not 0, 1, false or true")
    return bool(value)


def _mapping(data: Any, file: str | Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError("not a mapping of keys to values", file=str(file))
    return {str(key): value for key, value in data.items()}


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(read_limited(path).decode("utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise ConfigError("no such file", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path)) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"not valid JSON: {error.msg}", file=str(path), key=f"line {error.lineno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", file=str(path)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that is given twice would leave one of its values without effect."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{max(names, key=names.count)}' is given twice")
    return data


def _json(data: object) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


@contextmanager
def _naming(file: str | Path) -> Iterator[None]:
    """Says in which file the simulator's checks found a value that it cannot use."""
    try:
        yield
    except NetworkError as error:
        raise ConfigError(str(error), file=str(file)) from None
