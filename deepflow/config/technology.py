"""The library of technologies: entries of ``configs/technology``, and the keys that they set.

``logic.yaml`` scales what the hardware file has from one node to another of its family. Memories,
networks and prices are values. The files say where each comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from deepflow.config.hardware import HardwareConfig
from deepflow.config.loading import read_yaml
from deepflow.config.schema import did_you_mean
from deepflow.errors import ConfigError

KINDS = ("logic", "memory", "intra_node", "inter_node")
_FILES = {
    "logic": "logic.yaml",
    "memory": "memory.yaml",
    "intra_node": "network.yaml",
    "inter_node": "network.yaml",
}
FOLDER = Path("configs/technology")
_NETWORK = "hardware.tech_param.network"

_NAME = {"type": "string", "minLength": 1}
_NAMES = {"oneOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]}
TECHNOLOGY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "logic": {**_NAMES, "description": "logic node; several are all tried"},
        "logic_of_file": {
            **_NAME,
            "description": "node of the hardware file, from which logic is scaled",
        },
        "memory": {**_NAMES, "description": "memory generation, likewise"},
        "intra_node": {**_NAMES, "description": "network within a node, likewise"},
        "inter_node": {**_NAMES, "description": "network between nodes, likewise"},
    },
    "additionalProperties": False,
    "description": "entries of configs/technology, which set keys of the hardware",
}
"""``technology`` in a search or sweep."""


def technology_settings(
    kind: str, name: str, hardware: HardwareConfig, logic_of_file: str | None, file: str = ""
) -> dict[str, object]:
    """The keys that an entry sets: full path -> value as in YAML.

    ``logic_of_file``: node of ``hardware``; logic is scaled by the ratio of the two nodes' factors.

    Raises:
        ConfigError: there is no such entry, or the hardware file lacks what is to be scaled.
    """
    library = read_library(_FILES[kind])
    entry = _entry(library, name, f"technology.{kind}", file)
    if logic_of_file is not None:
        # It is checked even where nothing is scaled, as a wrong name is a mistake there too.
        _entry(read_library(_FILES["logic"]), logic_of_file, "technology.logic_of_file", file)
    if kind != "logic":
        values: dict[str, object] = dict(entry["set"])
        if kind == "memory":
            return values
        return {f"{_NETWORK}.{kind}.{key}": value for key, value in values.items()}
    if logic_of_file is None:
        raise ConfigError(
            "logic is scaled from the node of the hardware file, which is not given",
            file=file,
            key="technology.logic_of_file",
            allowed=", ".join(library["entries"]),
        )
    base = _entry(library, logic_of_file, "technology.logic_of_file", file)
    if entry["family"] != base["family"]:
        family = [
            each for each, its in library["entries"].items() if its["family"] == base["family"]
        ]
        raise ConfigError(
            f"factors of these nodes have another origin than those of {logic_of_file}, the node of"
            " the hardware file",
            file=file,
            key="technology.logic",
            value=name,
            allowed=", ".join(family),
        )
    settings: dict[str, object] = dict(entry["set"])
    for quantity, paths in library["scaled"].items():
        factor = entry["factors"][quantity] / base["factors"][quantity]
        for path in paths:
            value: Any = hardware
            for part in path.removeprefix("hardware.").replace("SRAM-", "SRAM_").split("."):
                value = getattr(value, part)
            # What a file does not say needs no scaling.
            if value is not None:
                settings[path] = value * factor
    return settings


def named(keys: Mapping[str, Any], kind: str, file: str = "") -> list[str]:
    """The entries of a kind that ``technology`` names.

    Raises:
        ConfigError: it names none, which would leave no case or point.
    """
    names = keys[kind]
    if names is None or names == []:
        raise ConfigError(
            "names no technology",
            file=file,
            key=f"technology.{kind}",
            value=names,
            allowed=", ".join(read_library(_FILES[kind])["entries"]),
        )
    return [str(name) for name in (names if isinstance(names, list) else [names])]


@lru_cache(maxsize=8)
def read_library(name: str) -> Mapping[str, Any]:
    """A file of the library. Raises ConfigError if there is none in the working directory."""
    content: Mapping[str, Any] = read_yaml(FOLDER / name)
    return content


def _entry(library: Mapping[str, Any], name: str, key: str, file: str) -> Mapping[str, Any]:
    entries = library["entries"]
    if name not in entries:
        raise ConfigError(
            "no such technology" + did_you_mean(name, entries),
            file=file,
            key=key,
            value=name,
            allowed=", ".join(entries),
        )
    found: Mapping[str, Any] = entries[name]
    return found
