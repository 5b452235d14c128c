"""Names and fingerprints of points: what they are called, what they mean, where they go.

- An *id* is for people and file names: ``tensor=4+pipeline=2``. It needs no shell quoting and
  cannot leave its directory. Commas would get lost on the way to a cluster's nodes: Snakemake
  takes them to separate wildcards (its issue 2366).
- A *digest* is the meaning of a point: every value that its prediction can depend on, in SI
  units and with defaults filled in, and the version of the model. Comments, spelling of units,
  order of keys and names do not enter.
- A *shard* is chosen by the id alone, so that a new point moves no other point.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepflow.config import HardwareConfig, ModelConfig, flatten
from deepflow.errors import ConfigError
from deepflow.sweep.settings import Changes
from deepflow.version import MODEL_VERSION

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Numbers = npt.NDArray[np.int64]

LONGEST_ID = 150
JOINT = "+"
"""Between the labels of an id; no label has it."""
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_NAMES_ONLY = {"hardware.name", "hardware.aliases", "hardware.file", "model.name", "model.file"}


def value_text(value: object) -> str:
    """``value`` as it stands in an id: ``4``, ``4e12``, ``true``, ``3.35TBps`` for "3.35 TB/s".

    A value with other characters keeps what is readable and gets a short digest.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    given = str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        given = f"{value:g}"
    if isinstance(value, float):
        given = given.replace("e+", "e")
    readable = given.replace(" ", "").replace("/", "p")
    if readable and not _ODD.search(readable):
        return readable
    return f"{_ODD.sub('', readable)}-{_hexadecimal(given, 8)}"


def folder_name(file: str) -> str:
    """The name of the folder of results of a YAML file: the file's own, without its ending.

    Raises ConfigError if that would not do as one.
    """
    name = Path(file).stem
    if value_text(name) != name or name.startswith("."):
        raise ConfigError(
            "the file's name becomes a directory of results",
            file=file,
            allowed="letters, digits, and . _ - inside",
        )
    return name


def point_id(labels: Sequence[str]) -> str:
    """Join ``name=value`` labels; past ``LONGEST_ID`` characters a digest replaces the rest."""
    joined = JOINT.join(labels)
    if not joined:
        return "base"
    if len(joined) <= LONGEST_ID:
        return joined
    return f"{joined[: LONGEST_ID - 17].rstrip(JOINT)}-{_hexadecimal(joined, 16)}"


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each dotted path, with as many parents as it takes to be unique.

    ``hardware`` and ``model`` alone are the files' names, which every table has.
    """
    depth = {path: 2 if path.endswith((".hardware", ".model")) else 1 for path in paths}
    while True:
        names = {path: ".".join(path.split(".")[-depth[path] :]) for path in paths}
        taken = list(names.values())
        clashing = [
            path
            for path in paths
            if taken.count(names[path]) > 1 and depth[path] < len(path.split("."))
        ]
        if not clashing:
            return [names[path] for path in paths]
        for path in clashing:
            depth[path] += 1


class DigestTemplate:
    """The digest of many points that differ in the same keys.

    ``settings`` maps ``hardware.<canonical path>`` and ``model.<canonical path>`` to SI values,
    complete with defaults; ``varied`` are the keys that each point sets. Text around the varied
    values is rendered once, which leaves one join and one SHA-256 per point.
    """

    def __init__(self, settings: Mapping[str, object], varied: Collection[str]) -> None:
        lines: dict[str, object] = {
            key: value for key, value in settings.items() if key not in _NAMES_ONLY
        }
        lines.update(dict.fromkeys(varied))
        self._varied = sorted(varied, key=_changes_often)
        self.texts = [f"model_version={MODEL_VERSION}\n"]
        for key in sorted(lines, key=_changes_often):
            if key in varied:
                self.texts[-1] += f"{key}="
                self.texts.append("\n")
            else:
                self.texts[-1] += f"{key}={lines[key]!r}\n"

    def fixed_lines(self, *roots: str) -> list[str]:
        """The lines that start with one of ``roots``, without the varied values."""
        return [line for line in "".join(self.texts).splitlines() if line.startswith(roots)]

    def digest(self, values: Mapping[str, object]) -> str:
        """Hexadecimal digest (128 bits) of the point that sets ``values``, one per varied key."""
        parts = [self.texts[0]]
        for key, text in zip(self._varied, self.texts[1:], strict=True):
            parts.append(repr(values[key]))
            parts.append(text)
        return _hexadecimal("".join(parts), 32)

    def digests(self, values: Mapping[str, tuple[Sequence[object], Numbers]]) -> list[str]:
        """``digest`` of many points.

        ``values`` maps each varied key to its values and to the number of the one that each point
        has. What points have in common up to a key is hashed once.
        """
        import numpy as np

        hashed = [hashlib.sha256(self.texts[0].encode())]
        which: Numbers | None = None
        for key, text in zip(self._varied, self.texts[1:], strict=True):
            choices, chosen = values[key]
            lines = [f"{value!r}{text}".encode() for value in choices]
            before = chosen if which is None else which * len(lines) + chosen
            distinct, which = np.unique(before, return_inverse=True)
            more = []
            for start, line in zip(
                *(x.tolist() for x in divmod(distinct, len(lines))), strict=True
            ):
                state = hashed[start].copy()
                state.update(lines[line])
                more.append(state)
            hashed = more
        texts = [state.hexdigest()[:32] for state in hashed]
        return texts if which is None else [texts[index] for index in which.tolist()]


def _changes_often(key: str) -> tuple[bool, str]:
    """Order of a digest's lines: last the keys of layouts, which sweeps change most.

    What points have in common before them is hashed once.
    """
    return key.startswith("hardware.scheduling_param."), key


def configuration_digest(hardware: HardwareConfig, model: ModelConfig, changes: Changes) -> str:
    """Digest of one point: both configurations as loaded, with canonical ``changes``."""
    values = {f"hardware.{path}": value for path, value in changes[0].items()}
    values.update((f"model.{path}", value) for path, value in changes[1].items())
    return DigestTemplate(configuration_lines(hardware, model), values.keys()).digest(values)


def configuration_lines(hardware: HardwareConfig, model: ModelConfig) -> dict[str, object]:
    """Every value of both configurations, flattened under one set of keys."""
    return {f"hardware.{key}": value for key, value in flatten(hardware).items()} | {
        f"model.{key}": value for key, value in flatten(model).items()
    }


def shard_count(points: int, points_per_job: int) -> int:
    """Least power of two that leaves at most ``points_per_job`` points per shard on average."""
    return 1 << max(0, (-(-points // points_per_job) - 1).bit_length())


def text_hash(text: str) -> int:
    """64 bits of ``text``, the same in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix(hashes: Hashes) -> Hashes:
    """Spread sums of hashes over all 64 bits (the finalizer of the SplitMix64 generator)."""
    import numpy as np

    mixed = hashes.copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _hexadecimal(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
