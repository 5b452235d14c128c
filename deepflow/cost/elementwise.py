"""Choices between numbers that may be arrays of one number per point.

Formulas that use these, and arithmetic, hold for one point as well as for many that are evaluated
together (``deepflow/batch``).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def larger(one: Any, other: Any) -> Any:
    """The larger of two, element by element."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.maximum(one, other)
    return max(one, other)


def smaller(one: Any, other: Any) -> Any:
    """The smaller of two, element by element."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.minimum(one, other)
    return min(one, other)


def some(condition: Any) -> bool:
    """Whether the condition holds for any point."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)


def where(condition: Any, one: Any, other: Any) -> Any:
    """``one`` where the condition holds, ``other`` where it does not."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, one, other)
    return one if condition else other
