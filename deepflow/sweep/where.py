"""The filter language of sweeps and plots: ``tensor * pipeline <= 64 and batch != 1``.

Arithmetic, comparisons and boolean words over names and constants, nothing else. The text is
parsed by Python's own parser, every node is checked against a list of harmless ones, and what
is evaluated are closures built here: no text from a file is ever executed.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepflow.errors import ConfigError

Values = Mapping[str, Any]
Evaluator = Callable[[Values], Any]

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_LANGUAGE = "names, numbers, text in quotes, + - * / // %, comparisons, in, and, or, not"


@dataclass(frozen=True)
class Condition:
    """A checked filter. ``names`` are the names it reads, as they are written in ``text``."""

    text: str
    names: frozenset[str]
    file: str
    key: str
    _evaluate: Evaluator

    def holds(self, values: Values) -> bool:
        """Whether the condition holds for ``values`` (name -> number, text or boolean).

        Raises ConfigError where it has no answer, e.g. a division by zero.
        """
        try:
            return bool(self._evaluate(values))
        except (TypeError, ArithmeticError) as error:
            shown = ", ".join(f"{name}={values[name]!r}" for name in sorted(self.names))
            raise ConfigError(
                f"cannot be evaluated for {shown}: {error} (quantities are numbers in SI units)",
                file=self.file,
                key=self.key,
                value=self.text,
            ) from None


def identifier(name: str) -> str:
    """How a column is written inside a condition: ``DRAM.bandwidth`` as ``DRAM_bandwidth``."""
    return "".join(character if character.isalnum() else "_" for character in name)


def parse_condition(text: object, names: Sequence[str], file: str, key: str) -> Condition:
    """Check ``text`` against the language and against the known ``names``.

    Raises ConfigError for a syntax error, an unknown name (with a suggestion) and for anything
    that is not part of the language.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError("is not a condition", file=file, key=key, value=text, allowed=_LANGUAGE)
    used: set[str] = set()

    def refuse(problem: str) -> ConfigError:
        return ConfigError(problem, file=file, key=key, value=text, allowed=_LANGUAGE)

    def build(node: ast.AST) -> Evaluator:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as constant):
                return lambda values: constant
            case ast.Name(id=name):
                if name not in names:
                    raise _unknown_name(name, names, text, file, key)
                used.add(name)
                return operator.itemgetter(name)
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                return _number_operation(_ARITHMETIC[type(op)], build(node.left), build(node.right))
            case ast.UnaryOp(op=sign) if type(sign) in _SIGNS:
                apply, operand = _SIGNS[type(sign)], build(node.operand)
                return lambda values: apply(operand(values))
            case ast.BoolOp(op=ast.And()):
                parts = [build(value) for value in node.values]
                return lambda values: all(part(values) for part in parts)
            case ast.BoolOp(op=ast.Or()):
                parts = [build(value) for value in node.values]
                return lambda values: any(part(values) for part in parts)
            case ast.Compare(ops=ops) if all(type(op) in _COMPARISONS for op in ops):
                tests = [_COMPARISONS[type(op)] for op in ops]
                sides = [
                    build_group(side) if isinstance(op, (ast.In, ast.NotIn)) else build(side)
                    for op, side in zip(ops, node.comparators, strict=True)
                ]
                return _chain(tests, [build(node.left), *sides])
        raise refuse(f"'{ast.unparse(node)}' is not part of the filter language")

    def build_group(node: ast.AST) -> Evaluator:
        """The right side of ``in``: elsewhere a list would count as true, whatever it holds."""
        if not isinstance(node, (ast.Tuple, ast.List)):
            return build(node)
        members = [build(element) for element in node.elts]
        return lambda values: [member(values) for member in members]

    try:
        tree = ast.parse(text.strip(), mode="eval")
        evaluate = build(tree.body)
    except SyntaxError as error:
        raise refuse(f"syntax error ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError):
        raise refuse("cannot be parsed") from None
    return Condition(text.strip(), frozenset(used), file, key, evaluate)


def _number_operation(
    operation: Callable[[Any, Any], Any], left: Evaluator, right: Evaluator
) -> Evaluator:
    def evaluate(values: Values) -> Any:
        first, second = left(values), right(values)
        # Python would repeat or join text here; a filter that does so is a mistake.
        if isinstance(first, (str, list)) or isinstance(second, (str, list)):
            raise TypeError("arithmetic with text")
        return operation(first, second)

    return evaluate


def _chain(tests: list[Callable[[Any, Any], bool]], sides: list[Evaluator]) -> Evaluator:
    if len(tests) == 1:
        test, (left, right) = tests[0], sides
        return lambda values: test(left(values), right(values))

    def evaluate(values: Values) -> bool:
        results = [side(values) for side in sides]
        return all(
            test(first, second)
            for test, first, second in zip(tests, results[:-1], results[1:], strict=True)
        )

    return evaluate


def _unknown_name(name: str, names: Sequence[str], text: str, file: str, key: str) -> ConfigError:
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(names)
    return ConfigError(
        f"unknown name {name!r}{hint}", file=file, key=key, value=text, allowed=known
    )
