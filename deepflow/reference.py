"""The reference pages of ``docs/reference``: keys of files, result columns, commands.

Each page is made from what the code itself reads: the declared keys, the JSON Schemas of sweep and
search files, the columns of a prediction, the parsers of the commands. So a page cannot say
anything that the code does not do, and a test fails when a committed page is not current.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepflow.command_line import command
from deepflow.config import load_hardware_config, load_model_config
from deepflow.config.framework import SECTIONS, framework_schema
from deepflow.config.hardware import HardwareConfig
from deepflow.config.model import MODEL_MODES
from deepflow.config.schema import Key, describe, keys_of
from deepflow.config.units import UNIT_EXAMPLES
from deepflow.files import atomic_output
from deepflow.prediction import COLUMNS, TIME_COLUMNS
from deepflow.search.schema import SEARCH_SCHEMA
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.run import evaluate
from deepflow.sweep.schema import SWEEP_SCHEMA
from deepflow.sweep.settings import canonical_settings, parse_setting
from deepflow.sweep.tables import summary_columns

FOLDER = "docs/reference"
_MADE = "<!-- Made by `deepflow reference`; changes to this page are lost. -->"
_HARDWARE = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
_SWEEP = "sweeps/gemm_shapes.yaml"

# A prediction of each kind, with all that is optional in it, shows which columns that kind has.
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LLM training": ("LLM", ("model.n_tokens=1e12",)),
    "LLM inference": ("Llama2-7B", ("model.run_type=inference",)),
    "VIT": ("ViT-L16", ("model.n_images=1e9",)),
    "LSTM": ("LSTM", ()),
    "GEMM": ("GEMM", ()),
    "collective": ("collective", ()),
}


def reference_pages(root: Path) -> dict[str, str]:
    """File name -> Markdown of every reference page.

    ``root`` is a checkout of the repository: its example files tell which columns each kind of
    model has. Raises ConfigError if they are not there.
    """
    return {
        "hardware.md": _hardware_page(),
        "model.md": _model_page(),
        "framework.md": _framework_page(),
        "sweep.md": _schema_page(SWEEP_SCHEMA, "Sweep files", _SWEEP_INTRODUCTION),
        "search.md": _schema_page(SEARCH_SCHEMA, "Search files", _SEARCH_INTRODUCTION),
        "columns.md": _columns_page(root),
        "commands.md": _commands_page(),
    }


_READING = """\
A key without a default is required in its section; *none* means that the key is off, or that its
value follows from others as its meaning says. Numbers are in the unit that is named, or text with
a unit ([units](../configuration.md#what-all-files-have-in-common))."""

_SWEEP_INTRODUCTION = """\
What runs, which values vary, what is drawn. [Sweep files](../configuration.md#sweep-files) shows
one and explains axes and conditions. `deepflow schema sweep` prints the same as JSON Schema."""

_SEARCH_INTRODUCTION = """\
A space of machines and what to look for in it.
[Architecture search](../architecture-search.md) shows one and explains it.
`deepflow schema search` prints the same as JSON Schema."""


def _hardware_page() -> str:
    lines = [
        *_heading("Hardware files"),
        "One device, how many of them, and what connects them. How the keys work together is in",
        "[hardware files](../configuration.md#hardware-files); `deepflow schema hardware` prints",
        "the same as JSON Schema.",
        "",
        _READING,
        "",
        "`--set` and sweep files name a key by its path below `hardware.`, such as",
        "`hardware.tech_param.DRAM.bandwidth`; `parallelism.` is short for",
        "`hardware.scheduling_param.` and `backend.` for `hardware.execution_backend.`.",
        "",
        "Besides these keys a file may have `base`: another hardware file, seen from this one's",
        "folder, all of whose values hold unless this file gives them.",
        "",
        "## Keys outside of sections",
        "",
        *_key_table(key for key in keys_of(HardwareConfig) if key.section is None),
        "",
        *_sections(HardwareConfig, "", 2, {}),
        "## Units",
        "",
        "A number is in the unit that a key names. Text has a number and a unit:",
        "",
        "| unit of the key | for example |",
        "|---|---|",
        *(_row(f"`{unit}`", _plain(text)) for unit, text in UNIT_EXAMPLES.items()),
    ]
    return _text(lines)


def _model_page() -> str:
    lines = [
        *_heading("Model files"),
        "All keys stand below `model_param`; its `mode` says which there are. How they work",
        "together is in [model files](../configuration.md#model-files); `deepflow schema model`",
        "prints the same as JSON Schema. `--set` and sweep files name a key by its path below",
        "`model.`, such as `model.global_batch_size`.",
        "",
        _READING,
        "",
    ]
    for mode, cls in MODEL_MODES.items():
        lines += [f"## {mode}", "", _paragraph(cls), "", *_key_table(keys_of(cls)), ""]
    return _text(lines)


def _framework_page() -> str:
    schema = framework_schema()
    sections = ", ".join(f"`{name}`" for name in SECTIONS)
    lines = [
        *_heading("Framework files"),
        "What a training or serving framework makes of hardware: one set of values per framework.",
        "See [frameworks](../configuration.md#frameworks).",
        "",
        *_schema_table(schema["properties"], ()),
        "",
        f"Sections of `hardware` are {sections}, with the keys of",
        "[sw_param](hardware.md#sw_param) and [scheduling_param](hardware.md#scheduling_param).",
    ]
    return _text(lines)


def _heading(title: str) -> list[str]:
    return [_MADE, "", f"# {title}", ""]


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


def _paragraph(cls: type[Any]) -> str:
    """The first paragraph of a docstring that somebody wrote, on one line, or ""."""
    if cls.__doc__ is None or cls.__doc__.startswith(f"{cls.__name__}("):
        return ""
    first = inspect.cleandoc(cls.__doc__).split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`")


def _sections(cls: type[Any], path: str, level: int, seen: dict[type[Any], str]) -> Iterator[str]:
    """The keys of a section and of those below it, each under a heading with its path.

    ``seen`` has the path of each class that was shown: a class that stands at several places is
    shown once.
    """
    for key in keys_of(cls):
        if key.section is None:
            continue
        place = f"{path}.{key.written}" if path else key.written
        yield from (f"{'#' * level} {place}", "", _about_section(key), "")
        if key.section in seen:
            first = seen[key.section]
            yield from (f"Keys as in [{first}](#{_anchor(first)}).", "")
            continue
        seen[key.section] = place
        values = [inner for inner in keys_of(key.section) if inner.section is None]
        if values:
            yield from (*_key_table(values), "")
        yield from _sections(key.section, place, min(level + 1, 4), seen)


def _about_section(key: Key) -> str:
    """What a section is for, how else it may be called, and what it is if it is not given."""
    assert key.section is not None
    names = ", ".join(f"`{name}`" for name in key.spellings[1:])
    about = [_sentence(key.option.doc), _paragraph(key.section)]
    if about[1].lower().startswith(key.option.doc.lower()):
        del about[0]
    about.append(f"Also written {names}." if names else "")
    if key.required:
        about.append("Required.")
    else:
        own = {inner.name: inner.default for inner in keys_of(key.section)}
        given = {name: getattr(key.default, name) for name in own}
        changed = [f"`{name}: {given[name]}`" for name in own if given[name] != own[name]]
        about.append(f"Default: {', '.join(changed)}." if changed else "")
    return " ".join(part for part in about if part)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _anchor(heading: str) -> str:
    """The anchor that GitHub and the site give to a heading."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "_- ")
    return kept.replace(" ", "-")


def _key_table(keys: Iterable[Key]) -> Iterator[str]:
    yield from ("| key | meaning | value | default |", "|---|---|---|---|")
    for key in keys:
        also = [f"`{name}`" for name in key.spellings[1:]]
        name = f"`{key.written}`" + (f" (also {', '.join(also)})" if also else "")
        yield _row(name, _plain(key.option.doc), _plain(_allowed(key)), _default(key))


def _allowed(key: Key) -> str:
    """``describe`` without what holds for all keys of a unit, or is said by the default."""
    parts = describe(key).split(", or ")
    return ", or ".join(
        part for part in parts if part != "null" and not part.startswith("text such as")
    )


def _default(key: Key) -> str:
    if key.required:
        return "required"
    if key.default is None or key.default in ("", ()):
        return "*none*"
    return _shown(key.default, key.option.unit)


def _shown(value: object, unit: str = "") -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        number = f"{value:.6g}"
        return f"{number} {unit}".rstrip()
    return f"{value} {unit}".rstrip()


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Markdown that shows ``text`` as it is."""
    return re.sub(r"\*|<(?=[A-Za-z/!?])", r"\\\g<0>", text)


def _schema_page(schema: Mapping[str, Any], title: str, introduction: str) -> str:
    lines = [*_heading(title), introduction, "", *_schema_sections(schema)]
    return _text(lines)


def _schema_sections(schema: Mapping[str, Any]) -> Iterator[str]:
    """A table of the keys of a JSON Schema, and one of each mapping within it.

    A mapping that stands at several places is shown at the first.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", schema)]
    while waiting:
        place, part = waiting.pop(0)
        yield from (f"## {place or 'Keys'}", "")
        found: list[tuple[str, Mapping[str, Any]]] = []
        for name, value in part["properties"].items():
            for inner_place, inner in _mappings(f"{place}.{name}" if place else name, value):
                if id(inner["properties"]) not in seen:
                    seen.add(id(inner["properties"]))
                    found.append((inner_place, inner))
        yield from _schema_table(part["properties"], part.get("required", ()))
        yield ""
        waiting = found + waiting


def _mappings(place: str, schema: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, schema) of every mapping with named keys that a value may hold."""
    if not isinstance(schema, Mapping):
        return
    variants = [*schema.get("oneOf", ()), *schema.get("anyOf", ())]
    if "properties" in schema:
        yield place, schema
    for variant in variants:
        if "properties" in variant:
            keys = ", ".join(variant["properties"])
            yield f"{place} as {{{keys}}}", variant
        else:
            yield from _mappings(place, variant)
    yield from _mappings(f"{place}[]", schema.get("items"))
    yield from _mappings(f"{place}.KEY", schema.get("additionalProperties"))


def _schema_table(properties: Mapping[str, Any], required: Iterable[str]) -> Iterator[str]:
    yield from ("| key | meaning | value | default |", "|---|---|---|---|")
    for name, schema in properties.items():
        if name in required:
            default = "required"
        else:
            default = _shown(schema["default"]) if "default" in schema else "*none*"
        meaning = _plain(schema.get("description", ""))
        yield _row(f"`{name}`", meaning, _plain(_words(schema)), default)


_TYPE_WORDS = {
    "string": "text",
    "number": "a number",
    "integer": "an integer",
    "boolean": "true, false",
    "null": "null",
}


def _words(schema: Mapping[str, Any]) -> str:
    """What may be written for a key of a JSON Schema, in words."""
    variants = [*schema.get("oneOf", ()), *schema.get("anyOf", ())]
    if variants:
        lists = [{"type": "array", "items": variant, "minItems": 1} for variant in variants]
        return ", or ".join(
            "a list of these" if variant in lists else _words(variant) for variant in variants
        )
    if "enum" in schema:
        return ", ".join(_shown(choice) for choice in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if set(kinds) == {"string", "number", "boolean", "null"}:
        return "a value"
    if kinds == ["array"]:
        return f"a list ({_words(schema['items'])})"
    if kinds == ["object"]:
        if "properties" in schema:
            return f"{{{', '.join(schema['properties'])}}}"
        values = schema.get("additionalProperties", {})
        return f"a mapping of keys to {_words(values)}"
    text = " or ".join(_TYPE_WORDS[kind] for kind in kinds)
    bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))
    limits = [f"{sign} {schema[word]:g}" for word, sign in bounds if word in schema]
    return f"{text} {' and '.join(limits)}".rstrip()


def _columns_page(root: Path) -> str:
    sweep = load_sweep(root / _SWEEP)
    around = {
        name: column
        for name, column in summary_columns(sweep).items()
        if name not in COLUMNS and not column.doc.startswith("axis ")
    }
    kinds = _columns_of_kinds(root)
    lines = [
        *_heading("Result columns"),
        "What `deepflow predict --json` prints and `summary.parquet` holds, in this order. The",
        "table's metadata has units and meanings too. A column that a kind of model does not have",
        "is empty.",
        "",
        "Disjoint parts of `time_s`, seen from a device of the pipeline stage that works longest:",
        f"{', '.join(f'`{name}`' for name in TIME_COLUMNS)}.",
        "",
        "## Of every sweep",
        "",
        "A column for each axis, in SI units, and:",
        "",
        "| column | type | meaning |",
        "|---|---|---|",
        *(_row(f"`{name}`", _type(c.dtype), _plain(c.doc)) for name, c in around.items()),
        "",
        "## Of every prediction",
        "",
        "| column | type | unit | meaning | of |",
        "|---|---|---|---|---|",
    ]
    for name, column in COLUMNS.items():
        of = [kind for kind, columns in kinds.items() if name in columns]
        others = [kind for kind in kinds if kind not in of]
        where = f"all but {', '.join(others)}" if 0 < len(others) <= 2 else ", ".join(of)
        of_what = where if others else "all"
        meaning = _plain(column.doc)
        lines.append(_row(f"`{name}`", _type(column.dtype), column.unit, meaning, of_what))
    return _text(lines)


def _type(dtype: type) -> str:
    return {str: "text", float: "number", int: "integer", bool: "true, false"}[dtype]


def _columns_of_kinds(root: Path) -> dict[str, set[str]]:
    """Kind of model -> columns that a prediction of it has."""
    hardware = load_hardware_config(root / _HARDWARE)
    found = {}
    for kind, (file, texts) in _KINDS.items():
        model = load_model_config(root / "configs/model-config" / f"{file}.yaml")
        changes = canonical_settings([parse_setting(text) for text in texts], hardware, model, "")
        row = evaluate(hardware, model, *changes).prediction.as_row()
        found[kind] = {name for name, value in row.items() if value is not None}
    return found


def _commands_page() -> str:
    lines = [
        *_heading("Commands"),
        "`deepflow COMMAND --help` prints the same. Exit codes: 0 done, 1 bad input or failed",
        "prediction (one line on stderr), 2 wrong command line.",
        "",
    ]
    # The table of commands names this module, which is one of them.
    from deepflow.cli import COMMANDS, parser_for

    lines += ["| command | purpose |", "|---|---|"]
    for name, (purpose, _) in COMMANDS.items():
        lines.append(_row(f"[{name}](#deepflow-{name})", purpose))
    lines.append("")
    for name, (purpose, _) in COMMANDS.items():
        lines += _command(_below(parser_for(first=name))[name], purpose, 2)
    return _text(lines)


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name -> parser of the commands, or steps of a command, below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _command(parser: argparse.ArgumentParser, purpose: str, level: int) -> Iterator[str]:
    """Arguments and examples of a command, then its steps."""
    about = _sentence(" ".join((parser.description or purpose).split()))
    yield from (f"{'#' * level} {parser.prog}", "", _plain(about), "")
    arguments = [action for action in parser._actions if _is_shown(action)]
    if arguments:
        yield from ("| argument | meaning | value |", "|---|---|---|")
        yield from (_row(*_argument(action)) for action in arguments)
        yield ""
    if parser.epilog:
        yield from ("```text", parser.epilog.rstrip("\n"), "```", "")
    for step in _below(parser).values():
        yield from _command(step, step.description or "", level + 1)


def _is_shown(action: argparse.Action) -> bool:
    ours = not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return ours and action.help != argparse.SUPPRESS


def _argument(action: argparse.Action) -> tuple[str, str, str]:
    """(how it is written, meaning, what it takes) of an argument of a command."""
    takes = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{takes}`"
    value = f"`{takes}`" if action.option_strings and takes else ""
    if action.choices is not None:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    # argparse fills in such places when it prints a help text.
    meaning = (action.help or "") % {"default": action.default, "prog": "deepflow"}
    needed = action.required and bool(action.option_strings)
    optional = action.nargs in ("*", "?") and not action.option_strings
    note = " (required)" if needed else " (optional)" if optional else ""
    many = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")
    return name + note, _plain(meaning), value + (" ..." if many else "")


def add_reference_command(commands: Any) -> None:
    """Adds ``reference`` to the ``deepflow`` command."""
    parser = command(
        commands,
        "reference",
        _reference,
        "write the reference pages of keys, columns and commands",
        f"examples:\n  deepflow reference      writes {FOLDER}/*.md, in a checkout\n",
    )
    parser.add_argument(
        "--output", metavar="DIR", default=FOLDER, help=f"where to write (default: {FOLDER})"
    )


def _reference(options: argparse.Namespace) -> None:
    for name, text in reference_pages(Path()).items():
        with atomic_output(Path(options.output) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
