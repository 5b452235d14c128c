"""``deepflow config``: files of the older style and of Hugging Face become current files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepflow.config.hardware import HardwareConfig
from deepflow.config.huggingface import MODEL_TYPES, import_model
from deepflow.config.loading import load_hardware_config, load_model_config, read_yaml
from deepflow.config.model import MODEL_MODES
from deepflow.config.old_style import translate
from deepflow.config.schema import keys_of
from deepflow.errors import ConfigError
from deepflow.files import atomic_output


def add_config_command(commands: Any) -> None:
    """Adds ``config upgrade`` and ``config import`` to the ``deepflow`` command."""
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
    purpose = "write the model file of a Hugging Face config.json"
    parser = steps.add_parser(
        "import",
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}, of one of these families:"
        f" {', '.join(MODEL_TYPES)}."
        " Whatever a model file cannot represent is an error that names the key.",
    )
    parser.add_argument("source", metavar="CONFIG.json", help="configuration of the checkpoint")
    parser.add_argument("--output", metavar="FILE", help="where to write (default: print)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        default=1,
        help="sequences or images per step (default: 1)",
    )
    parser.add_argument(
        "--seq-len", type=int, metavar="N", help="tokens per sequence (default: the longest)"
    )
    parser.set_defaults(run=_import)


def _upgrade(options: argparse.Namespace) -> None:
    for path in write_upgrade(options.old, options.output, force=options.force):
        print(path)


def _import(options: argparse.Namespace) -> None:
    text, notes = model_file(options.source, options.batch, options.seq_len)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.output is None:
        print(text, end="")
        return
    output = Path(options.output)
    if output.exists() and not options.force:
        raise ConfigError("exists already; --force replaces it", file=str(output))
    with atomic_output(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(output)


def model_file(
    source: str | Path, batch: int = 1, seq_len: int | None = None
) -> tuple[str, tuple[str, ...]]:
    """(text of the model file, notes) of a Hugging Face ``config.json``.

    ``batch`` is in sequences or images, ``seq_len`` in tokens. Raises ConfigError like
    ``import_model``.
    """
    imported = import_model(source, global_batch_size=batch, seq_len=seq_len)
    header = [
        f"From {json.dumps(Path(source).name)}, a Hugging Face {imported.model_type} model.",
        "The batch is not part of that file.",
        *(f"Note: {note}." for note in imported.notes),
    ]
    body = _yaml(imported.parameters, MODEL_MODES[imported.parameters["mode"]], indent="  ")
    return "".join(f"# {line}\n" for line in header) + "model_param:\n" + body, imported.notes


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
