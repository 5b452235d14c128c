"""The filter language of sweeps and plots: ``tensor * pipeline <= 64 and batch != 1``.

Arithmetic, comparisons and boolean words over names and constants, nothing else. The text is
parsed by Python's own parser, every node is checked against a list of harmless ones, and what
is evaluated are closures built here: no text from a file is ever executed.

A condition holds for one point, or for all combinations of some axes at once. For the latter the
same tree is built again, of closures over NumPy arrays that are broadcast against each other, so
that each part of it is evaluated once per combination of what it reads. Wherever arrays would not
do just what Python does for one point, an answer is looked for one by one.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepflow.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Values = Mapping[str, Any]
Evaluator = Callable[[Values], Any]

# Whole numbers up to it are the same as 64-bit floats, so comparing the two is exact.
_LARGEST = 2**53

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
    _evaluate_arrays: Evaluator

    def holds_over(
        self, axes: Mapping[str, tuple[int, Sequence[object]]], dimensions: int
    ) -> NDArray[np.bool_]:
        """``holds`` for every combination: an array that broadcasts to all ``dimensions`` axes.

        ``axes`` maps names to the axis that they move along and their values there.
        """
        import numpy as np

        read = {name: axes[name] for name in self.names}
        try:
            with np.errstate(divide="raise", invalid="raise", over="raise"):
                arrays = {
                    name: _array(values).reshape(
                        [-1 if axis == place else 1 for axis in range(dimensions)]
                    )
                    for name, (place, values) in read.items()
                }
                answers = _true(self._evaluate_arrays(arrays))
                return answers.reshape((1,) * (dimensions - answers.ndim) + answers.shape)
        except (_OneByOne, FloatingPointError):
            pass
        sizes = {place: len(values) for place, values in read.values()}
        shape = tuple(sizes.get(axis, 1) for axis in range(dimensions))
        return np.fromiter(
            (
                self.holds({name: values[at[place]] for name, (place, values) in read.items()})
                for at in np.ndindex(shape)
            ),
            bool,
        ).reshape(shape)

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

    def build(node: ast.AST, meaning: _Meaning) -> Evaluator:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as constant):
                return lambda values: meaning.constant(constant)
            case ast.Name(id=name):
                if name not in names:
                    raise _unknown_name(name, names, text, file, key)
                used.add(name)
                return operator.itemgetter(name)
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                operation = meaning.arithmetic(_ARITHMETIC[type(op)])
                left, right = build(node.left, meaning), build(node.right, meaning)
                return lambda values: operation(left(values), right(values))
            case ast.UnaryOp(op=sign) if type(sign) in _SIGNS:
                apply, operand = meaning.sign(_SIGNS[type(sign)]), build(node.operand, meaning)
                return lambda values: apply(operand(values))
            case ast.BoolOp(op=ast.And()):
                return meaning.all_of([build(value, meaning) for value in node.values])
            case ast.BoolOp(op=ast.Or()):
                return meaning.any_of([build(value, meaning) for value in node.values])
            case ast.Compare(ops=ops) if all(type(op) in _COMPARISONS for op in ops):
                tests = [meaning.comparison(_COMPARISONS[type(op)]) for op in ops]
                sides = [
                    (build_group if isinstance(op, (ast.In, ast.NotIn)) else build)(side, meaning)
                    for op, side in zip(ops, node.comparators, strict=True)
                ]
                return _chain(tests, [build(node.left, meaning), *sides], meaning)
        raise refuse(f"'{ast.unparse(node)}' is not part of the filter language")

    def build_group(node: ast.AST, meaning: _Meaning) -> Evaluator:
        """The right side of ``in``: elsewhere a list would count as true, whatever it holds."""
        if not isinstance(node, (ast.Tuple, ast.List)):
            return build(node, meaning)
        members = [build(element, meaning) for element in node.elts]
        return lambda values: [member(values) for member in members]

    try:
        tree = ast.parse(text.strip(), mode="eval")
        evaluate, evaluate_arrays = build(tree.body, _OF_ONE), build(tree.body, _OF_ARRAYS)
    except SyntaxError as error:
        raise refuse(f"syntax error ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError):
        raise refuse("cannot be parsed") from None
    return Condition(text.strip(), frozenset(used), file, key, evaluate, evaluate_arrays)


@dataclass(frozen=True)
class _Meaning:
    """What the parts of a condition do with values: those of one point, or arrays."""

    constant: Callable[[Any], Any]
    arithmetic: Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]
    sign: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]
    comparison: Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]
    all_of: Callable[[list[Evaluator]], Evaluator]
    any_of: Callable[[list[Evaluator]], Evaluator]
    results_all: Callable[[list[Any]], Any]


def _chain(
    tests: list[Callable[[Any, Any], Any]], sides: list[Evaluator], meaning: _Meaning
) -> Evaluator:
    if len(tests) == 1:
        test, (left, right) = tests[0], sides
        return lambda values: test(left(values), right(values))

    def evaluate(values: Values) -> Any:
        results = [side(values) for side in sides]
        return meaning.results_all(
            [
                test(first, second)
                for test, first, second in zip(tests, results[:-1], results[1:], strict=True)
            ]
        )

    return evaluate


def _number_operation(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def evaluate(first: Any, second: Any) -> Any:
        # Python would repeat or join text here; a filter that does so is a mistake.
        if isinstance(first, (str, list)) or isinstance(second, (str, list)):
            raise TypeError("arithmetic with text")
        return operation(first, second)

    return evaluate


_OF_ONE = _Meaning(
    constant=lambda value: value,
    arithmetic=_number_operation,
    sign=lambda operation: operation,
    comparison=lambda operation: operation,
    all_of=lambda parts: lambda values: all(part(values) for part in parts),
    any_of=lambda parts: lambda values: any(part(values) for part in parts),
    results_all=all,
)


# --- Arrays ---------------------------------------------------------------------------------


class _OneByOne(Exception):
    """Arrays would not do, or not surely, what Python does for one point."""


def _array(values: Sequence[object]) -> NDArray[Any]:
    """``values`` as booleans, whole numbers, floats or text."""
    import numpy as np

    kinds = {type(value) for value in values}
    if any(type(value) is int and abs(value) > _LARGEST for value in values):
        raise _OneByOne
    if kinds == {int, float}:
        kinds = {float}
    if len(kinds) > 1 or not kinds <= {bool, int, float, str}:
        raise _OneByOne
    kind = kinds.pop()
    return np.array(values, None if kind is str else kind)


def _true(array: NDArray[Any]) -> NDArray[np.bool_]:
    return array != "" if array.dtype.kind == "U" else array.astype(bool)


def _array_operation(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def evaluate(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        first, second = _numbers(first), _numbers(second)
        result: NDArray[Any] = operation(first, second)
        if result.dtype.kind == "i":
            # Whole numbers of Python have no greatest one. As floats they do not wrap around.
            size = abs(operation(first.astype(float), second.astype(float)))
            if not (size <= _LARGEST).all():
                raise _OneByOne
        return result

    return evaluate


def _array_sign(operation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if operation is operator.not_:
        return lambda operand: ~_true(operand)
    return lambda operand: operation(_numbers(operand))


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Booleans count as 0 and 1."""
    if array.dtype.kind == "U":
        raise _OneByOne
    return array.astype(int) if array.dtype.kind == "b" else array


def _array_comparison(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if operation is _COMPARISONS[ast.In]:
        return _any_equal
    if operation is _COMPARISONS[ast.NotIn]:
        return lambda item, group: ~_any_equal(item, group)

    def evaluate(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
        text = [side.dtype.kind == "U" for side in (first, second)]
        if text[0] != text[1] or (any(text) and operation not in (operator.eq, operator.ne)):
            raise _OneByOne
        result: NDArray[Any] = operation(first, second)
        return result

    return evaluate


def _any_equal(item: NDArray[Any], group: list[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    if not isinstance(group, list):
        raise _OneByOne
    equal = _array_comparison(operator.eq)
    result = np.zeros(1, bool)
    for member in group:
        result = result | equal(item, member)
    return result


def _array_all(parts: list[Evaluator]) -> Evaluator:
    return lambda values: _all_true([part(values) for part in parts])


def _array_any(parts: list[Evaluator]) -> Evaluator:
    return lambda values: ~_all_true([~_true(part(values)) for part in parts])


def _all_true(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    result = _true(arrays[0])
    for array in arrays[1:]:
        result = result & _true(array)
    return result


_OF_ARRAYS = _Meaning(
    constant=lambda value: _array([value]),
    arithmetic=_array_operation,
    sign=_array_sign,
    comparison=_array_comparison,
    all_of=_array_all,
    any_of=_array_any,
    results_all=_all_true,
)


def _unknown_name(name: str, names: Sequence[str], text: str, file: str, key: str) -> ConfigError:
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(names)
    return ConfigError(
        f"unknown name {name!r}{hint}", file=file, key=key, value=text, allowed=known
    )
