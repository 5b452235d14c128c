"""The keys of a search file, as a JSON Schema that editors understand."""

from __future__ import annotations

from typing import Any

from deepflow.config.technology import TECHNOLOGY_SCHEMA
from deepflow.search.objectives import METRICS, OBJECTIVES

METHODS = ("gradient", "descent", "differential_evolution", "dual_annealing", "nsga2")

_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_NAME = {"type": "string", "minLength": 1}
_KEYS = "dotted paths below hardware, model, parallelism or backend"

BUDGET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "total": {
            "type": ["number", "string"],
            "description": "what there is: a number in the unit of the parts, or the path of a key"
            " that says it",
        },
        "share": {
            "type": ["number"],
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": 1,
            "description": "fraction of the total that the parts have together",
        },
        "parts": {
            "type": "array",
            "items": _NAME,
            "minItems": 1,
            "description": "paths of the keys that share it",
        },
        "may_save": {
            "type": "boolean",
            "default": False,
            "description": "some of it may be left unused; otherwise the parts take all",
        },
    },
    "required": ["total", "parts"],
    "additionalProperties": False,
}
VARIABLE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "low": {"type": ["number", "string"], "description": "least value"},
        "high": {"type": ["number", "string"], "description": "greatest value"},
        "scale": {
            "enum": ["linear", "log"],
            "default": "linear",
            "description": "what steps are equal in: the value or its logarithm",
        },
        "step": {
            "type": ["number"],
            "exclusiveMinimum": 0,
            "description": "only low, low + step, ..., in SI units (default: 1 for whole numbers)",
        },
    },
    "required": ["low", "high"],
    "additionalProperties": False,
}
CONSTRAINT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "at_most": {"type": ["number"], "description": "largest value, in SI units"},
        "at_least": {"type": ["number"], "description": "smallest value, in SI units"},
    },
    "additionalProperties": False,
}
STRATEGIES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kernels": {
            "type": "array",
            "items": {"enum": ["CR", "RC"]},
            "description": "ways to cut matrix multiplications (default: both)",
        },
        "pipeline": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1},
            "description": "numbers of pipeline stages (default: all divisors of the devices)",
        },
        "powers_of_two": {
            "type": "boolean",
            "default": False,
            "description": "only degrees that are powers of two",
        },
        "layouts": {
            "enum": ["all", "auto", "none"],
            "default": "auto",
            "description": "orders of the dimensions on square nodes: each a case, the best one"
            " of each strategy, or derates as the hardware file has them",
        },
    },
    "additionalProperties": False,
}
OPTIMIZER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "method": {"enum": list(METHODS), "default": "gradient", "description": "how to search"},
        "evaluations": {
            "type": "integer",
            "minimum": 1,
            "default": 1600,
            "description": "predictions of each start of each case",
        },
        "starts": {
            "type": "integer",
            "minimum": 1,
            "default": 1,
            "description": "searches of each case, each with a seed of its own",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "default": 0,
            "description": "seed of the first start; the next one has the next number",
        },
        "cases": {
            "enum": ["separate", "together"],
            "default": "separate",
            "description": "a search of each combination of technology, choices, strategy and"
            " layout, or one search that also chooses among them",
        },
    },
    "additionalProperties": False,
}

SEARCH_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "DeepFlow search",
    "description": "A space of machines, and what to look for in it.",
    "type": "object",
    "properties": {
        "description": {"type": "string", "description": "the question that the search answers"},
        "hardware": {**_NAME, "description": "hardware file"},
        "model": {**_NAME, "description": "model file"},
        "framework": {**_NAME, "description": "framework file"},
        "set": {
            "type": "object",
            "additionalProperties": _SCALAR,
            "description": f"values that are fixed: {_KEYS}",
        },
        "technology": TECHNOLOGY_SCHEMA,
        "budgets": {
            "type": "object",
            "additionalProperties": BUDGET_SCHEMA,
            "description": "what parts of the machine share: area, power, perimeter",
        },
        "variables": {
            "type": "object",
            "additionalProperties": VARIABLE_SCHEMA,
            "description": f"keys that are searched between bounds: {_KEYS}",
        },
        "choices": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": _SCALAR, "minItems": 1},
            "description": f"keys of which all values are tried, each a case: {_KEYS}",
        },
        "strategies": {
            **STRATEGIES_SCHEMA,
            "description": "splits of all devices of a GEMM or LSTM, each a case",
        },
        "fits_in_memory": {
            "type": "boolean",
            "default": True,
            "description": "whether a design must hold what it computes",
        },
        "constraints": {
            "type": "object",
            "additionalProperties": CONSTRAINT_SCHEMA,
            "description": "bounds of results: " + ", ".join(METRICS),
        },
        "objectives": {
            "oneOf": [
                {"enum": list(OBJECTIVES)},
                {"type": "array", "items": {"enum": list(OBJECTIVES)}, "minItems": 1},
            ],
            "default": "time_s",
            "description": "what is made best; of several, starts weigh them differently",
        },
        "optimizer": {**OPTIMIZER_SCHEMA, "description": "how to search"},
    },
    "required": ["hardware", "model"],
    "additionalProperties": False,
}
