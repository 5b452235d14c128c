"""New values in a hardware file's text: lines that mean something else stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from deepflow.config.hardware import HardwareConfig
from deepflow.config.schema import Key, keys_of
from deepflow.errors import ConfigError
from deepflow.record import record

INDENT = 2


@record(frozen=True)
class Edit:
    """``value`` as YAML has it, ``remark`` behind it.

    A remark that the line has already was about the old value. If it begins with ``supersedes`` it
    is dropped, else it is kept on a line of its own, with the old value if that changes.
    """

    value: str
    remark: str
    supersedes: str


def keys_along(path: str) -> tuple[Key, ...]:
    """The sections and, last, the value that a canonical path leads through."""
    section: type[Any] = HardwareConfig
    keys: list[Key] = []
    for name in path.split("."):
        keys.append(next(key for key in keys_of(section) if key.name == name))
        section = keys[-1].section or section
    return tuple(keys)


def edit_hardware_text(text: str, edits: Mapping[str, Edit], file: str = "") -> str:
    """A hardware file's text with values at canonical paths replaced, or added where missing.

    Sections that are missing are added too. Raises ConfigError for a place that cannot be edited
    by lines.
    """
    lines = text.splitlines()
    for path, edit in edits.items():
        _set(lines, path, edit, file)
    return "\n".join(lines) + "\n"


def move_base(text: str, base: str) -> str:
    """A hardware file's text on a ``base`` at another path."""
    lines = text.splitlines()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    (value,) = [value for written, value in node.value if written.value == "base"]
    line = lines[value.start_mark.line]
    before, after = line[: value.start_mark.column], line[value.end_mark.column :]
    lines[value.start_mark.line] = f"{before}{json.dumps(base)}{after}"
    return "\n".join(lines) + "\n"


def _set(lines: list[str], path: str, edit: Edit, file: str) -> None:
    node = yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)
    keys = keys_along(path)
    for depth, key in enumerate(keys):
        if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
            raise _not_in_lines(file, ".".join(path.split(".")[:depth]))
        found = [value for written, value in node.value if written.value in key.spellings]
        if not found:
            _insert(lines, node, [missing.written for missing in keys[depth:]], edit)
            return
        node = found[0]
    if not isinstance(node, yaml.ScalarNode) or node.start_mark.line != node.end_mark.line:
        raise _not_in_lines(file, path)
    number, start, end = node.start_mark.line, node.start_mark.column, node.end_mark.column
    line = lines[number]
    before, remark = line[:start].rstrip(), line[end:].strip()
    if remark and not remark.startswith("#"):
        raise _not_in_lines(file, path)
    lines[number] = f"{before} {edit.value}  # {edit.remark}"
    said = remark.removeprefix("#").strip()
    if said and not said.startswith(edit.supersedes):
        indent = line[: len(line) - len(line.lstrip())]
        about = "" if line[start:end] == edit.value else f"was {line[start:end]}: "
        lines.insert(number, f"{indent}# {about}{said}")


def _insert(lines: list[str], section: yaml.MappingNode, names: list[str], edit: Edit) -> None:
    """The value below ``names``, as the last one of ``section``."""
    column = section.value[0][0].start_mark.column
    added = [f"{' ' * (column + INDENT * depth)}{name}:" for depth, name in enumerate(names)]
    added[-1] += f" {edit.value}  # {edit.remark}"
    after = _last_line(section) + 1
    if column == 0:
        added.insert(0, "")
    lines[after:after] = added


def _last_line(node: yaml.Node) -> int:
    """Number of the last line with something of ``node``; a block's own end is behind blanks."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return max(_last_line(value) for _, value in node.value)
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return max(_last_line(item) for item in node.value)
    return int(node.end_mark.line)


def _not_in_lines(file: str, path: str) -> ConfigError:
    return ConfigError(
        "cannot be edited in place; write it as a block, one key to a line",
        file=file,
        key=path,
    )
