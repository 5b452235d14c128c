"""Which machine, and which framework, a row of a table was measured with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from deepflow.config import (
    FrameworkConfig,
    HardwareConfig,
    canonical_override,
    load_framework_config,
    load_hardware_config,
    read_yaml,
    with_overrides,
)
from deepflow.errors import DeepFlowError

HARDWARE_FILES = "configs/hardware-config/*.yaml"
FRAMEWORK_FILES = "configs/framework-config/*.yaml"


class Machines:
    """Hardware files by the names that tables use, loaded when a row asks for one.

    Spelling counts without case, spaces and punctuation. An alias wins over a name, which may
    be no more than that of a file. ``file`` and ``framework_file`` are for all rows, whatever
    they say; ``overrides`` are hardware paths and values for all rows.
    """

    def __init__(
        self,
        file: str | None = None,
        framework_file: str | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> None:
        self._fixed = None if file is None else load_hardware_config(file)
        self._overrides = overrides or {}
        self._named: dict[str, set[Path]] = {}
        self._aliased: dict[str, set[Path]] = {}
        self._loaded: dict[tuple[Path, str], HardwareConfig] = {}
        for path in sorted(Path().glob(HARDWARE_FILES)):
            content = read_yaml(path)
            self._named.setdefault(plain_name(content.get("name") or path.stem), set()).add(path)
            for alias in content.get("aliases", ()):
                self._aliased.setdefault(plain_name(alias), set()).add(path)
        self._framework = None if framework_file is None else load_framework_config(framework_file)
        self._found: dict[str, FrameworkConfig | None] = {}

    def framework(self, texts: Iterable[str]) -> FrameworkConfig | None:
        """The framework one of whose aliases stands in ``texts``; the longest alias decides."""
        if self._framework is not None:
            return self._framework
        text = "\n".join(texts).casefold()
        if text not in self._found:
            hits = [
                (len(alias), framework)
                for framework in _frameworks()
                for alias in framework.aliases
                if alias.casefold() in text
            ]
            longest = max((length for length, _ in hits), default=0)
            best = {item.name: item for length, item in hits if length == longest}
            if len(best) > 1:
                raise DeepFlowError(f"it could be of several frameworks: {', '.join(best)}")
            self._found[text] = next(iter(best.values()), None)
        return self._found[text]

    def find(
        self,
        name: str,
        changes: Mapping[str, object],
        framework: FrameworkConfig | None = None,
        network: str = "",
    ) -> HardwareConfig:
        """The machine called ``name`` with what the framework, the row and all rows set.

        ``network`` is a text on its links: an alias of the name followed by one of the text's
        words ("H100 SXM5 80GB EFA") is a better match than the name alone, that with the first such
        word the best. ``changes`` are
        hardware paths and values of the row. What is set for all rows wins over the row, and the
        row over the framework.

        Raises:
            DeepFlowError: no hardware file, or more than one, has this name.
            ConfigError: a value is wrong, or contradicts another.
        """
        config = self._base(name, framework, network)
        every = {**changes, **self._overrides}
        return with_overrides(
            config, dict(canonical_override(config, key, value) for key, value in every.items())
        )

    def _base(self, name: str, framework: FrameworkConfig | None, network: str) -> HardwareConfig:
        path = Path() if self._fixed is not None else self._path(name, network)
        key = (path, "" if framework is None else framework.name)
        if key not in self._loaded:
            config = self._fixed or load_hardware_config(path)
            self._loaded[key] = config if framework is None else framework.applied_to(config)
        return self._loaded[key]

    def _path(self, name: str, network: str) -> Path:
        plain = plain_name(name)
        words = re.findall(r"[a-z0-9]+", network.casefold())
        nearer = next((found for word in words if (found := self._aliased.get(plain + word))), None)
        paths = nearer or self._aliased.get(plain) or self._named.get(plain, set())
        if not paths:
            raise DeepFlowError(f"no hardware file has the name or alias {name!r}")
        if len(paths) > 1:
            files = ", ".join(sorted(map(str, paths)))
            raise DeepFlowError(f"several hardware files have the name or alias {name!r}: {files}")
        (path,) = paths
        return path


def _frameworks() -> list[FrameworkConfig]:
    return [load_framework_config(path) for path in sorted(Path().glob(FRAMEWORK_FILES))]


def machine_name(row: Mapping[str, str]) -> str:
    """What a row calls its machine."""
    return row.get("gpu") or row.get("hardware") or row.get("node") or ""


def plain_name(name: str) -> str:
    """How names of machines are compared: without case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
