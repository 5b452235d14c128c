"""One key with one value, as a sweep file or a command line gives them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepflow.config import (
    HardwareConfig,
    ModelConfig,
    canonical_override,
    parse_yaml_value,
    split_overrides,
)
from deepflow.errors import ConfigError

Changes = tuple[dict[str, object], dict[str, object]]
"""Canonical paths and SI values to set in (hardware, model)."""


@dataclass(frozen=True)
class Setting:
    """``path`` below hardware, model, parallelism or backend; ``place`` is what errors name."""

    path: str
    value: object
    place: str

    @property
    def text(self) -> str:
        """``path=value``, which ``parse_setting`` reads back."""
        value = self.value
        if isinstance(value, str) and parse_yaml_value(value) == value:
            return f"{self.path}={value}"
        return f"{self.path}={json.dumps(value)}"


def find_file(name: object, key: str, file: str) -> str:
    """The file ``name`` that ``key`` of ``file`` gives: as it stands, else beside ``file``.

    Raises ConfigError if there is none, or ``name`` is none.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError("must be a file", file=file, key=key, value=name)
    if Path(name).exists():
        return name
    beside = Path(file).parent / name
    if not beside.exists():
        raise ConfigError("no such file", file=file, key=key, value=name)
    return str(beside)


def parse_setting(text: str) -> Setting:
    """``path=value`` with the value as in YAML; raises ConfigError if that cannot be read."""
    path, _, value = text.partition("=")
    path = path.strip()
    return Setting(path, parse_yaml_value(value, key=path), path)


def canonical_settings(
    settings: Iterable[Setting], hardware: HardwareConfig, model: ModelConfig, file: str = ""
) -> Changes:
    """Canonical paths and SI values that ``settings`` set in (hardware, model).

    Raises ConfigError for an unknown key, a bad value, or one key set twice under two names.
    """
    changes: Changes = ({}, {})
    for setting in settings:
        split = split_overrides({setting.path: setting.value}, file)
        for side, config, overrides in zip(changes, (hardware, model), split, strict=True):
            for path, value in overrides.items():
                key, parsed = canonical_override(config, path, value, file, setting.place)
                if key in side:
                    raise set_twice(key, file, setting.place)
                side[key] = parsed
    return changes


def set_twice(key: str, file: str, place: str = "") -> ConfigError:
    """The error for a key that is set under two names, or in two places."""
    return ConfigError(f"{key} is set twice, by this or another name", file=file, key=place)
