"""Frozen dataclasses that are quick to import.

``dataclasses`` writes and compiles six methods for every class, some milliseconds each for the
larger ones. A one-point job lives for a tenth of a second, so classes here share one set of
methods instead. Everything else is a dataclass: ``fields``, ``replace``, ``match`` and type
checkers treat it as one. What predictions make by the hundred, operators and their costs, stays
a plain ``dataclass`` with slots, which takes half the time to make.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen: bool):
        """Class decorator in the place of ``dataclass(frozen=True)``.

        Positional and keyword arguments, defaults, equality, hash and repr work as there.
        Default factories, ``__post_init__`` and mutable records are not offered.
        """
        if not frozen:
            raise TypeError("records are frozen")
        return _decorate


def _decorate(cls: Any) -> Any:
    cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    declared = dataclasses.fields(cls)
    cls._names = tuple(item.name for item in declared)
    cls._defaults = {
        item.name: item.default for item in declared if item.default is not dataclasses.MISSING
    }
    for name, method in _METHODS.items():
        if name not in cls.__dict__:
            setattr(cls, name, method)
    return cls


def _init(self: Any, *positional: Any, **given: Any) -> None:
    names = self._names
    first = dict(zip(names, positional, strict=False))
    values = {**self._defaults, **first, **given}
    if len(values) != len(names) or len(positional) > len(first) or first.keys() & given.keys():
        raise TypeError(_wrong_arguments(type(self), values, len(positional)))
    self.__dict__.update(values)


def _wrong_arguments(cls: Any, values: dict[str, Any], positional: int) -> str:
    unknown = ", ".join(name for name in values if name not in cls._names)
    missing = ", ".join(name for name in cls._names if name not in values)
    return (
        f"{cls.__name__}() takes {', '.join(cls._names)};"
        f" unknown: {unknown or 'none'}; missing: {missing or 'none'};"
        f" {positional} positional"
    )


def _key(self: Any) -> tuple[Any, ...]:
    values = self.__dict__
    return tuple([values[name] for name in self._names])


def _equal(self: Any, other: Any) -> Any:
    return _key(self) == _key(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_key(self))


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
    return f"{type(self).__name__}({shown})"


def _refuse_set(self: Any, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS = {
    "__init__": _init,
    "__eq__": _equal,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _refuse_set,
    "__delattr__": _refuse_delete,
}
