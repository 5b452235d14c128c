"""What a training framework adds to hardware: one file, one set of values per framework.

A framework file has a ``name``, ``aliases`` by which tables of measurements speak of it, and,
under ``hardware``, keys of a hardware file's software and parallelism sections. ``based_on`` names
a file beside it whose values hold too, unless replaced. A framework's values replace those of the
hardware file; what a sweep, a command line or a row of a table sets replaces both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepflow.config.hardware import HardwareConfig, Parallelism, SoftwareParameters
from deepflow.config.loading import read_yaml, with_overrides
from deepflow.config.schema import did_you_mean, object_schema, parse_at, resolve_path
from deepflow.errors import ConfigError
from deepflow.record import record

SECTIONS = {
    "sw_param": SoftwareParameters,
    "scheduling_param": Parallelism,
    "parallelism": Parallelism,
}
_KEYS = ("name", "aliases", "based_on", "hardware")


@record(frozen=True)
class FrameworkConfig:
    """A loaded framework file. ``values``: canonical hardware paths with values in SI units."""

    name: str
    aliases: tuple[str, ...]
    values: tuple[tuple[str, object], ...]
    file: str

    def applied_to(self, config: HardwareConfig) -> HardwareConfig:
        """``config`` with this framework's values; ConfigError if they contradict it."""
        return with_overrides(config, dict(self.values))


def load_framework_config(path: str | Path) -> FrameworkConfig:
    """The framework file at ``path``.

    Raises ConfigError for an unknown key, a section that no framework decides, a wrong value,
    or a key given twice under two names.
    """
    file = str(path)
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise ConfigError("is no framework file", file=file, allowed=", ".join(_KEYS))
    for key in content:
        if key not in _KEYS:
            raise ConfigError(
                "unknown key" + did_you_mean(str(key), _KEYS),
                file=file,
                key=str(key),
                allowed=", ".join(_KEYS),
            )
    name = content.get("name", Path(path).stem)
    if not isinstance(name, str) or not name:
        raise ConfigError("is not a name", file=file, key="name", value=name, allowed="text")
    aliases = content.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(x, str) and x for x in aliases):
        raise ConfigError("is not a list of texts", file=file, key="aliases", value=aliases)
    values: dict[str, object] = {}
    own: dict[str, object] = {}
    if "based_on" in content:
        values.update(_base(content["based_on"], Path(path)).values)
    for place, given in _entries(content.get("hardware", {}), file):
        canonical = resolve_path(HardwareConfig, place, file=file, shown_key=f"hardware.{place}")
        if canonical in own:
            raise ConfigError(f"{canonical} is given twice", file=file, key=f"hardware.{place}")
        own[canonical] = parse_at(
            HardwareConfig, canonical, given, file=file, shown_key=f"hardware.{place}"
        )
    return FrameworkConfig(name, tuple(aliases), tuple((values | own).items()), file)


def _base(name: object, path: Path) -> FrameworkConfig:
    if not isinstance(name, str) or not name:
        raise ConfigError("is not a file", file=str(path), key="based_on", value=name)
    if "based_on" in (read_yaml(path.parent / name) or {}):
        raise ConfigError(f"{name} is based on another file itself", file=str(path), key="based_on")
    return load_framework_config(path.parent / name)


def _entries(content: object, file: str) -> Iterator[tuple[str, object]]:
    """(path in a hardware file, value as written) of every key of every section."""
    if not isinstance(content, Mapping):
        raise ConfigError("expected sections", file=file, key="hardware", allowed=_section_names())
    for section, keys in content.items():
        if section not in SECTIONS:
            raise ConfigError(
                "is no section that a framework decides" + did_you_mean(str(section), SECTIONS),
                file=file,
                key=f"hardware.{section}",
                allowed=_section_names(),
            )
        if not isinstance(keys, Mapping):
            raise ConfigError("expected keys", file=file, key=f"hardware.{section}", value=keys)
        yield from ((f"{section}.{key}", value) for key, value in keys.items())


def _section_names() -> str:
    return ", ".join(SECTIONS)


def framework_schema() -> dict[str, Any]:
    """JSON Schema of a framework file, without the heading."""
    sections = {
        name: {key: value for key, value in object_schema(cls).items() if key != "allOf"}
        for name, cls in SECTIONS.items()
    }
    return {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "description": "name shown in results (default: the file's name)",
            },
            "aliases": {
                "type": "array",
                "items": {"type": "string"},
                "description": "words by which tables of measurements name the framework",
            },
            "based_on": {
                "type": "string",
                "description": "framework file beside this one whose values hold too",
            },
            "hardware": {
                "type": "object",
                "properties": sections,
                "additionalProperties": False,
                "description": "keys of a hardware file that the framework decides",
            },
        },
        "additionalProperties": False,
    }
