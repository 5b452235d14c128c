"""From mappings to the dataclasses of ``hardware.py`` and ``model.py``, and back.

Everything here works from the dataclasses' annotations and ``Option`` descriptions, so a key
is declared once and is at once loaded, checked, overridden, flattened and exported.

A *canonical path* names a key by attribute names joined with dots, for example
``tech_param.SRAM_L2.size``; paths given by users may also use the YAML spelling
(``SRAM-L2``) and aliases (``parallelism.tensor`` for ``scheduling_param.tensor``).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from deepflow.config.option import Option
from deepflow.config.units import UNIT_EXAMPLES, parse_quantity, quantity_pattern, shown
from deepflow.errors import ConfigError
from deepflow.record import record

Config = TypeVar("Config")


@record(frozen=True)
class Key:
    """One declared key. ``section`` is the dataclass below it, or None for a value."""

    name: str
    written: str
    option: Option
    section: type[Any] | None
    kinds: frozenset[type[Any]]
    is_list: bool
    default: Any

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def nullable(self) -> bool:
        return type(None) in self.kinds

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way to write the key, the documented one first."""
        return tuple(dict.fromkeys((self.written, self.name, *self.option.aliases)))


_KEYS: dict[type[Any], tuple[Key, ...]] = {}
_PATHS: dict[type[Any], dict[str, tuple[str, Key]]] = {}


def keys_of(cls: type[Any]) -> tuple[Key, ...]:
    """The keys of a section, in order; fields without an ``Option`` are not keys."""
    if cls not in _KEYS:
        _KEYS[cls] = tuple(_read_keys(cls))
    return _KEYS[cls]


def _read_keys(cls: type[Any]) -> Iterator[Key]:
    hints = get_type_hints(cls)
    for declared in dataclasses.fields(cls):
        described = declared.metadata.get("option")
        if described is None:
            continue
        hint = hints[declared.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        yield Key(
            name=declared.name,
            written=described.key or declared.name,
            option=described,
            section=hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None,
            kinds=frozenset(kinds),
            is_list=get_origin(hint) is tuple,
            default=declared.default,
        )


def build(
    cls: type[Config],
    mapping: object,
    *,
    file: str = "",
    path: str = "",
) -> Config:
    """An instance of ``cls`` from a mapping as read from YAML.

    ``path`` is the dotted place of the mapping in the file, for messages. Raises ConfigError
    for an unknown, repeated or missing key and for a value of the wrong type, unit or range.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            "is empty; expected keys" if mapping is None else "expected a mapping of keys",
            file=file,
            key=path,
            value=shown(mapping),
            allowed=_names(cls),
        )
    known = {spelling: key for key in keys_of(cls) for spelling in key.spellings}
    given: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    for written, value in mapping.items():
        place = f"{path}.{written}" if path else str(written)
        key = known.get(written) if isinstance(written, str) else None
        if key is None:
            suggestion = did_you_mean(str(written), known)
            raise ConfigError(
                "unknown key" + suggestion,
                file=file,
                key=place,
                allowed="" if suggestion else _names(cls),
            )
        if key.name in given:
            raise ConfigError(
                f"given twice, as '{given[key.name]}' and as '{written}'", file=file, key=place
            )
        given[key.name] = written
        if key.section is not None:
            arguments[key.name] = build(key.section, value, file=file, path=place)
        else:
            arguments[key.name] = parse_value(key, value, file=file, place=place)
    for key in keys_of(cls):
        if key.required and key.name not in given:
            raise ConfigError(
                f"missing key: {key.option.doc}",
                file=file,
                key=f"{path}.{key.written}" if path else key.written,
                allowed=describe(key) if key.section is None else _names(key.section),
            )
    return cls(**arguments)


def _names(cls: type[Any]) -> str:
    return ", ".join(key.written for key in keys_of(cls))


def parse_value(key: Key, value: object, *, file: str = "", place: str = "") -> Any:
    """The value of a key in SI units and in the declared type; raises ConfigError."""

    def fail(problem: str) -> ConfigError:
        return ConfigError(problem, file=file, key=place, value=shown(value), allowed=describe(key))

    if key.is_list:
        if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
            raise fail("is not a list of texts")
        return tuple(value)
    if value is None:
        if not key.nullable:
            raise fail("has no value")
        return None
    checked: Any
    if isinstance(value, bool):
        if bool not in key.kinds:
            raise fail("is true or false, which this key cannot be")
        checked = value
    elif isinstance(value, str) and str in key.kinds:
        checked = value
    elif float in key.kinds or int in key.kinds:
        try:
            checked = parse_quantity(value, key.option.unit)
        except ConfigError as error:
            raise fail(error.problem) from None
        if int in key.kinds and checked.is_integer():
            # An int goes through unchanged: large ones would lose digits as a float.
            checked = value if isinstance(value, int) else int(checked)
        elif float not in key.kinds:
            raise fail("is not an integer")
    else:
        raise fail("is of the wrong type")
    problem = _range_problem(key, checked)
    if problem:
        raise fail(problem)
    return checked


def _range_problem(key: Key, value: Any) -> str:
    """What is wrong with a value of the right type, or ""."""
    described = key.option
    if isinstance(value, bool | str) or not _has_text_choices_beside_numbers(key):
        if described.choices is not None and value not in described.choices:
            return "is not one of the choices"
        if isinstance(value, bool | str):
            return ""
    if described.minimum is not None and value < described.minimum:
        return "is too small"
    if described.above is not None and value <= described.above:
        return "is too small"
    if described.maximum is not None and value > described.maximum:
        return "is too large"
    # Zero and the negative values that pass the minimum switch something off.
    if described.plausible is not None and value > 0:
        low, high = described.plausible
        if not low <= value <= high:
            return "implausible magnitude; is a unit missing or wrong?"
    return ""


def _has_text_choices_beside_numbers(key: Key) -> bool:
    """True for keys such as ``data``, an integer or the word ``auto``."""
    return str in key.kinds and (int in key.kinds or float in key.kinds)


def describe(key: Key) -> str:
    """What may be written for a key, in words: type, unit, range, choices."""
    described = key.option
    parts = []
    if key.is_list:
        parts.append("a list of texts")
    if described.choices is not None:
        parts.append(", ".join(_yaml_text(choice) for choice in described.choices))
    elif bool in key.kinds:
        parts.append("true, false")
    elif str in key.kinds:
        parts.append("text")
    numeric = int in key.kinds or float in key.kinds
    if numeric and (described.choices is None or _has_text_choices_beside_numbers(key)):
        text = "a number" if float in key.kinds else "an integer"
        if described.unit:
            text += f" in {described.unit}"
        bounds = ((">=", described.minimum), (">", described.above), ("<=", described.maximum))
        limits = [f"{sign} {_brief(bound)}" for sign, bound in bounds if bound is not None]
        if limits:
            text += " " + " and ".join(limits)
        if described.plausible is not None:
            low, high = described.plausible
            text += f", plausibly {_brief(low)} to {_brief(high)}"
        parts.append(text)
        if described.unit:
            parts.append(f"text such as {UNIT_EXAMPLES[described.unit]}")
    if key.nullable:
        parts.append("null")
    return ", or ".join(parts)


def _brief(bound: float) -> str:
    return str(bound) if isinstance(bound, int) and abs(bound) < 10**10 else f"{bound:.3g}"


def _yaml_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest candidates, or "" if none is close."""
    by_lower: dict[str, str] = {}
    for candidate in candidates:
        by_lower.setdefault(candidate.lower(), candidate)
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def resolve_path(cls: type[Any], path: str, *, file: str = "", shown_key: str = "") -> str:
    """Canonical form of a path to a value of ``cls``; raises ConfigError if there is none."""
    canonical, key = _resolve(cls, path, file, shown_key or path)
    if key.section is not None:
        raise ConfigError(
            "is a section, not a value; name one of its keys",
            file=file,
            key=shown_key or path,
            allowed=_names(key.section),
        )
    return canonical


def key_at(cls: type[Any], path: str, *, file: str = "", shown_key: str = "") -> Key:
    """What is declared of the key at a path of ``cls``; raises ConfigError if there is none."""
    return _resolve(cls, path, file, shown_key or path)[1]


def parse_at(
    cls: type[Any], canonical: str, value: object, *, file: str = "", shown_key: str = ""
) -> Any:
    """``parse_value`` for the key at a canonical path."""
    key = key_at(cls, canonical, file=file, shown_key=shown_key)
    return parse_value(key, value, file=file, place=shown_key or canonical)


def _resolve(cls: type[Any], path: str, file: str, shown_key: str) -> tuple[str, Key]:
    found = _paths_of(cls).get(path)
    if found is None:
        raise ConfigError("no such key" + _did_you_mean_path(cls, path), file=file, key=shown_key)
    return found


def _paths_of(cls: type[Any]) -> dict[str, tuple[str, Key]]:
    """Every path of ``cls``, in every spelling, to its canonical form and key."""
    if cls not in _PATHS:
        _PATHS[cls] = dict(_spell_paths(cls))
    return _PATHS[cls]


def _spell_paths(cls: type[Any]) -> Iterator[tuple[str, tuple[str, Key]]]:
    for key in keys_of(cls):
        for spelling in key.spellings:
            yield spelling, (key.name, key)
            if key.section is not None:
                for path, (canonical, below) in _spell_paths(key.section):
                    yield f"{spelling}.{path}", (f"{key.name}.{canonical}", below)


def _did_you_mean_path(cls: type[Any], path: str) -> str:
    values = {p: name for p, (name, key) in _paths_of(cls).items() if key.section is None}
    leaf = path.rsplit(".", 1)[-1].lower()
    # A path whose last word exists elsewhere is more likely misplaced than misspelt.
    misplaced = {
        canonical: known
        for known, canonical in values.items()
        if known.rsplit(".", 1)[-1].lower() == leaf
    }
    if misplaced:
        close = difflib.get_close_matches(path, misplaced.values(), n=3, cutoff=0.0)
    else:
        close = difflib.get_close_matches(path, values, n=1)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def flatten(config: Any) -> dict[str, object]:
    """Canonical path -> value in SI units, for every key, defaults filled in.

    ``file`` is left out: where a configuration came from is no part of its meaning. The
    names under ``aliases`` are joined to one text.
    """
    flat: dict[str, object] = {}
    _flatten(config, "", flat)
    return flat


def _flatten(config: Any, before: str, flat: dict[str, object]) -> None:
    for key in keys_of(type(config)):
        value = getattr(config, key.name)
        if key.section is not None:
            _flatten(value, f"{before}{key.name}.", flat)
        else:
            flat[before + key.name] = ", ".join(value) if key.is_list else value


def replace_paths(config: Config, values: Mapping[str, object]) -> Config:
    """A copy with the values at canonical paths replaced; values are not checked."""
    changes: dict[str, Any] = {}
    below: dict[str, dict[str, object]] = {}
    for path, value in values.items():
        head, dot, rest = path.partition(".")
        if dot:
            below.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    for head, inner in below.items():
        changes[head] = replace_paths(getattr(config, head), inner)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def object_schema(cls: type[Any]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a section."""
    properties: dict[str, Any] = {}
    conditions: list[dict[str, Any]] = []
    for key in keys_of(cls):
        schema = _key_schema(key)
        for spelling in key.spellings:
            properties[spelling] = (
                schema
                if spelling == key.written
                else schema | {"description": f"Another spelling of {key.written}."}
            )
        one_of_them = [{"required": [spelling]} for spelling in key.spellings]
        if key.required:
            conditions.append({"anyOf": one_of_them} if len(one_of_them) > 1 else one_of_them[0])
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if conditions:
        schema["allOf"] = conditions
    return schema


def _key_schema(key: Key) -> dict[str, Any]:
    described = key.option
    text = described.doc + (f" [{described.unit}]" if described.unit else "")
    if key.section is not None:
        return object_schema(key.section) | {"description": text}
    kinds: list[dict[str, Any]] = []
    if key.is_list:
        kinds.append({"type": "array", "items": {"type": "string"}})
    mixed = _has_text_choices_beside_numbers(key)
    if described.choices is not None:
        kinds.append({"enum": list(described.choices)})
    elif bool in key.kinds:
        kinds.append({"type": "boolean"})
    elif str in key.kinds:
        kinds.append({"type": "string"})
    if (int in key.kinds or float in key.kinds) and (described.choices is None or mixed):
        number: dict[str, Any] = {"type": "number" if float in key.kinds else "integer"}
        for word, bound in (
            ("minimum", described.minimum),
            ("exclusiveMinimum", described.above),
            ("maximum", described.maximum),
        ):
            if bound is not None:
                number[word] = bound
        kinds.append(number)
    if described.unit and described.choices is None:
        kinds.append({"type": "string", "pattern": quantity_pattern(described.unit)})
    if key.nullable:
        kinds.append({"type": "null"})
    schema: dict[str, Any] = {"description": text}
    if not key.required:
        schema["default"] = list(key.default) if key.is_list else key.default
    return schema | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
