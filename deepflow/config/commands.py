"""``deepflow config upgrade``: a file of the older style becomes a pair of current files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepflow.config.hardware import HardwareConfig
from deepflow.config.loading import load_hardware_config, load_model_config, read_yaml
from deepflow.config.model import MODEL_MODES
from deepflow.config.old_style import translate
from deepflow.config.schema import keys_of
from deepflow.errors import ConfigError
from deepflow.files import atomic_output


def add_config_command(commands: Any) -> None:
    """Adds ``config upgrade`` to the subparsers of the ``deepflow`` command."""
    config = commands.add_parser("config", help="work on configuration files")
    steps = config.add_subparsers(metavar="step", required=True)
    purpose = "rewrite a file of the older style as a hardware file and a model file"
    parser = steps.add_parser(
        "upgrade",
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}:"
        " NAME.yaml becomes NAME.hardware.yaml and NAME.model.yaml.",
    )
    parser.add_argument("old", metavar="OLD.yaml", help="file of the older style; it is kept")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: beside OLD.yaml)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.set_defaults(run=_upgrade)


def _upgrade(options: argparse.Namespace) -> None:
    for path in write_upgrade(options.old, options.output, force=options.force):
        print(path)


def upgrade(old_path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(content of the hardware file, content of the model file) that mean the same.

    Both carry the name of the old file, so that results keep it. The model is empty if the old
    file has only hardware. Raises ConfigError if the file is not of the older style, or has
    any error that loading it would find.
    """
    file = str(old_path)
    data = read_yaml(old_path)
    older = translate(data, file) if isinstance(data, Mapping) else None
    if older is None:
        raise ConfigError(
            "is not of the older style, one file with budgets as fractions; nothing to upgrade",
            file=file,
        )
    hardware = load_hardware_config(old_path)
    upgraded = {"name": hardware.name, **older.hardware}
    if not older.model:
        return upgraded, {}
    model = load_model_config(old_path)
    return upgraded, {"model_param": {**older.model["model_param"], "name": model.name}}


def write_upgrade(
    old_path: str | Path, directory: str | Path | None = None, *, force: bool = False
) -> list[Path]:
    """Writes NAME.hardware.yaml and NAME.model.yaml to ``directory``; returns their paths.

    ``directory`` is that of the old file by default, and made if need be. Raises ConfigError
    like ``upgrade``, and if one of the files exists, unless ``force`` is given; then nothing
    is written.
    """
    old = Path(old_path)
    folder = old.parent if directory is None else Path(directory)
    hardware, model = upgrade(old)
    texts = {"hardware": _yaml(hardware, HardwareConfig)}
    if model:
        (parameters,) = model.values()
        body = _yaml(parameters, MODEL_MODES[parameters["mode"]], indent="  ")
        texts["model"] = "model_param:\n" + body
    paths = {kind: folder / f"{old.stem}.{kind}.yaml" for kind in texts}
    for path in paths.values():
        if path.exists() and not force:
            raise ConfigError("exists already; --force replaces it", file=str(path))
    for kind, text in texts.items():
        source = json.dumps(old.name)
        header = f"# The {kind} of {source}, an older file, in the current style.\n"
        with atomic_output(paths[kind]) as temporary:
            temporary.write_text(header + text, encoding="utf-8")
    return list(paths.values())


def _yaml(section: Mapping[str, Any], cls: type[Any], indent: str = "") -> str:
    return "".join(f"{line}\n" for line in _yaml_lines(section, cls, indent))


def _yaml_lines(section: Mapping[str, Any], cls: type[Any], indent: str) -> Iterator[str]:
    """Lines of YAML with the unit of each number beside it."""
    known = {spelling: key for key in keys_of(cls) for spelling in key.spellings}
    for name, value in section.items():
        key = known[name]
        if key.section is not None and value:
            if not indent:
                yield ""
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, key.section, indent + "  ")
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            unit = f"  # {key.option.unit}" if is_number and key.option.unit else ""
            yield f"{indent}{name}: {_scalar(value)}{unit}"


def _scalar(value: object) -> str:
    """A value of JSON is one of YAML 1.2."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return json.dumps(value, ensure_ascii=False)
