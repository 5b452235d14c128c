"""The keys of a sweep file, as a JSON Schema that editors understand.

``expand`` and ``plots`` check keys against the same table, so that it cannot go stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepflow.config.schema import did_you_mean
from deepflow.config.technology import TECHNOLOGY_SCHEMA
from deepflow.errors import ConfigError

_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_NAME = {"type": "string", "minLength": 1}
_FILES = {"oneOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]}
_VALUES = {
    "oneOf": [
        {"type": "array", "items": _SCALAR, "minItems": 1},
        {
            "type": "object",
            "properties": {
                "start": {"type": "number", "description": "first value"},
                "stop": {
                    "type": "number",
                    "description": "last value, if a step ends there",
                },
                "step": {"type": "number", "description": "difference of neighbours, not zero"},
            },
            "required": ["start", "stop", "step"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "log2": {
                    "type": "array",
                    "items": {"type": "number", "exclusiveMinimum": 0},
                    "minItems": 2,
                    "maxItems": 2,
                    "description": "first value and limit; each value doubles the one before",
                }
            },
            "required": ["log2"],
            "additionalProperties": False,
        },
    ]
}
_DRAWN = {
    "oneOf": [
        {
            "type": "object",
            "properties": {
                "low": {"type": ["number", "string"], "description": "least value"},
                "high": {"type": ["number", "string"], "description": "greatest value"},
                "scale": {
                    "enum": ["linear", "log"],
                    "description": "what is drawn evenly: the value or its logarithm",
                    "default": "linear",
                },
                "integer": {
                    "type": "boolean",
                    "description": "round to whole numbers",
                    "default": False,
                },
            },
            "required": ["low", "high"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "choices": {
                    "type": "array",
                    "items": _SCALAR,
                    "minItems": 1,
                    "description": "values, drawn with equal chances",
                }
            },
            "required": ["choices"],
            "additionalProperties": False,
        },
    ]
}
_COLUMN = {"type": "string", "description": "a result column or the short name of an axis"}
PLOT_KINDS = ("line", "scatter", "heatmap", "pareto", "breakdown", "memory")
_PLOT = {
    "type": "object",
    "properties": {
        "kind": {"enum": list(PLOT_KINDS), "description": "the kind of figure"},
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9._+-]+$",
            "description": "file name without ending (default: number and kind)",
        },
        "title": {"type": "string", "description": "heading (default: the description)"},
        "x": _COLUMN,
        "y": _COLUMN,
        "value": {**_COLUMN, "description": "heatmap: the column that colours a cell"},
        "hue": {**_COLUMN, "description": "column that picks a colour"},
        "style": {**_COLUMN, "description": "column that picks a marker and a dash pattern"},
        "where": {"type": "string", "description": "condition on rows, over all columns"},
        "row": {**_COLUMN, "description": "column whose values have a row of panels each"},
        "column": {**_COLUMN, "description": "column whose values have a column of panels each"},
        "log_x": {
            "type": "boolean",
            "description": "logarithmic x axis (default: where values differ more than 30 times)",
        },
        "log_y": {
            "type": "boolean",
            "description": "logarithmic y axis (default: where values differ more than 30 times)",
        },
        "width": {
            "enum": ["column", "page"],
            "description": "85 or 178 mm: one or both columns of a printed page",
            "default": "page",
        },
        "measured": {
            "type": "string",
            "description": "line, scatter: CSV file of measured points, with the columns that the"
            " figure shows in SI units, and <y>_low and <y>_high where there is a range",
        },
        "best": {
            "type": "integer",
            "minimum": 1,
            "description": "breakdown, memory: how many of the fastest points, or values of x",
            "default": 12,
        },
        "goal": {
            "enum": ["minimum", "maximum"],
            "description": "pareto: which y is better (default: minimum)."
            " line, heatmap: which of several points at one place is shown",
        },
        "goal_x": {
            "enum": ["minimum", "maximum"],
            "description": "pareto: which x is better (default: minimum)",
        },
        "fronts": {**_COLUMN, "description": "pareto: column whose values have a front each"},
        "out_of_memory": {
            "type": "boolean",
            "description": "draw points too that do not fit in memory",
            "default": False,
        },
        "label": {
            "type": "array",
            "items": _COLUMN,
            "minItems": 1,
            "description": "pareto: columns that tell the points of the front apart",
        },
    },
    "required": ["kind"],
    "additionalProperties": False,
}
_PATHS = "dotted paths below hardware, model, parallelism or backend"

SENSITIVITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "objective": {
            "type": "string",
            "description": "result column of which elasticities are found (default: time_s)",
        },
        "step": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "small change to each side, in per cent (default: 1)",
        },
        "keys": {
            "type": "array",
            "items": _NAME,
            "description": "dotted paths below hardware (default: every number with a value)",
        },
        "plots": {
            "type": "array",
            "description": "figures of sensitivities",
            "items": {
                "type": "object",
                "properties": {
                    "kind": {
                        "enum": ["tornado", "dominant"],
                        "description": "what doubling and halving does at a point; which parameter"
                        " has the greatest elasticity over two axes",
                    },
                    "name": {
                        "type": "string",
                        "pattern": "^[A-Za-z0-9._+-]+$",
                        "description": "file name without ending (default: number and kind)",
                    },
                    "title": {"type": "string", "description": "heading"},
                    "point": {
                        "type": "string",
                        "description": "tornado: id of the point (default: the best that fits)",
                    },
                    "x": _COLUMN,
                    "y": _COLUMN,
                    "where": {
                        "type": "string",
                        "description": "dominant: condition on axes; one point per cell is left",
                    },
                },
                "required": ["kind"],
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}

SWEEP_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "DeepFlow sweep",
    "description": "A design space: which points to predict and which figures to draw.",
    "type": "object",
    "properties": {
        "description": {"type": "string", "description": "the question that the sweep answers"},
        "hardware": {**_FILES, "description": "hardware file; several are one more axis"},
        "model": {**_FILES, "description": "model file; several are one more axis"},
        "framework": {
            **_NAME,
            "description": "framework file for all points; its values replace those of the"
            " hardware file, and values of the sweep replace its own",
        },
        "backend": {
            "enum": ["analytical", "astra"],
            "description": "what times the network, for all points",
        },
        "set": {
            "type": "object",
            "additionalProperties": _SCALAR,
            "description": f"values for all points: {_PATHS}",
        },
        "grid": {
            "type": "object",
            "additionalProperties": _VALUES,
            "description": f"axes whose combinations are all predicted: {_PATHS}",
        },
        "zip": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": _VALUES, "minProperties": 1},
            "description": "groups of axes of one length that move together",
        },
        "sample": {
            "type": "object",
            "properties": {
                "method": {
                    "enum": ["random", "latin_hypercube"],
                    "description": "independent draws, or draws that cover every axis evenly",
                },
                "count": {"type": "integer", "minimum": 1, "description": "number of draws"},
                "seed": {"type": "integer", "description": "start of the generator", "default": 0},
                "axes": {
                    "type": "object",
                    "additionalProperties": _DRAWN,
                    "minProperties": 1,
                    "description": f"what is drawn: {_PATHS}",
                },
            },
            "required": ["method", "count", "axes"],
            "additionalProperties": False,
            "description": "draws from a large space, combined with the grid",
        },
        "where": {
            "type": "string",
            "description": "condition over the axes' short names; other points are left out",
        },
        "points_per_job": {
            "type": "integer",
            "minimum": 1,
            "description": "1: a file per point; more: shards of about so many points"
            " (default: 1 up to 1,000 points)",
        },
        "plots": {"type": "array", "items": _PLOT, "description": "figures of the results"},
        "technology": TECHNOLOGY_SCHEMA,
        "sensitivity": {
            "oneOf": [{"type": "boolean"}, SENSITIVITY_SCHEMA],
            "description": "also find which hardware parameters matter at each point"
            " (sensitivity.parquet); true: elasticities of time in all of them",
        },
        "csv": {
            "type": "boolean",
            "description": "also write summary.csv",
            "default": False,
        },
    },
    "required": ["hardware", "model"],
    "additionalProperties": False,
}
PLOT_SCHEMA: dict[str, Any] = _PLOT
_TYPES: dict[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "number": ((int, float), "a number"),
    "string": (str, "text"),
    "boolean": (bool, "true, false"),
    "integer": (int, "a whole number"),
    "object": (dict, "a mapping"),
    "array": (list, "a list"),
}


def check_object(
    value: object, schema: Mapping[str, Any], file: str, place: str = ""
) -> dict[str, Any]:
    """``value`` if it is a mapping with known keys, the required ones present.

    Raises ConfigError for anything else, with a suggestion for an unknown key. Only keys and
    plain types, choices and minima are checked here; who uses a value checks the rest.
    """
    properties = schema["properties"]
    if not isinstance(value, dict):
        raise ConfigError(
            "must be a mapping", file=file, key=place, value=value, allowed=", ".join(properties)
        )
    prefix = f"{place}." if place else ""
    for key, item in value.items():
        if key not in properties:
            raise ConfigError(
                "unknown key" + did_you_mean(str(key), properties),
                file=file,
                key=f"{prefix}{key}",
                allowed=", ".join(properties),
            )
        _check_plain(item, properties[key], file, f"{prefix}{key}")
    for key in schema.get("required", ()):
        if key not in value:
            raise ConfigError("is missing", file=file, key=f"{prefix}{key}")
    return value


def _check_plain(item: object, schema: Mapping[str, Any], file: str, place: str) -> None:
    choices = schema.get("enum")
    if choices is not None and item not in choices:
        raise ConfigError(
            "is not one of the choices" + did_you_mean(str(item), choices),
            file=file,
            key=place,
            value=item,
            allowed=", ".join(choices),
        )
    expected = schema.get("type")
    if isinstance(expected, str):
        kind, words = _TYPES[expected]
        if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool):
            problem = "is empty" if item is None else "has the wrong type"
            raise ConfigError(problem, file=file, key=place, value=item, allowed=words)
    if "minimum" in schema and isinstance(item, int) and item < schema["minimum"]:
        raise ConfigError(
            "is too small", file=file, key=place, value=item, allowed=f">= {schema['minimum']}"
        )
