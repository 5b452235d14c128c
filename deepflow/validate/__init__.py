"""Predictions beside measurements: every row of a table, with its error.

Rows are recognised by their columns. A training run states its model (``n_layers``, ``hidden``,
``heads``, ...), layout (``tp``, ``pp``, ``dp``, ``micro_batch``, ...) and ``metric``; tables of
two other layouts are read too (see ``training``). A kernel states ``op``: a multiplication (gemm:
``m``, ``n``, ``k``, ``dtype``), attention (``batch``, ``num_heads``, ``q_len``, ...), a layer of
experts or a collective (``ranks``, ``bytes``). The machine is found by the ``hardware``, ``gpu``
or ``node`` value among the names and aliases of the hardware files, the framework by the aliases
of the framework files.
"""

from deepflow.validate.ranking import Choice, choices, ranking_text
from deepflow.validate.rows import (
    OTHER_ROWS,
    RECOGNISED,
    is_recognised,
    read_validated,
    validate_table,
)
from deepflow.validate.tables import (
    ADDED_COLUMNS,
    GroupError,
    ValidatedRow,
    group_error,
    read_table,
    reasons_text,
    summarize,
    summary_text,
    write_table,
)

__all__ = [
    "ADDED_COLUMNS",
    "OTHER_ROWS",
    "RECOGNISED",
    "Choice",
    "GroupError",
    "ValidatedRow",
    "choices",
    "group_error",
    "is_recognised",
    "ranking_text",
    "read_table",
    "read_validated",
    "reasons_text",
    "summarize",
    "summary_text",
    "validate_table",
    "write_table",
]
