"""Kernels of measured tables: multiplications."""

from __future__ import annotations

from collections.abc import Mapping

from deepflow.cost.operators import operator_cost
from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware
from deepflow.workload.operators import Gemm

PEAK_PRECISIONS = ("bfloat16", "float16", "bf16", "fp16")


def predicted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Seconds of a product of two matrices; DeepFlowError for other precisions."""
    if row["dtype"] not in PEAK_PRECISIONS:
        raise DeepFlowError(f"kernels of dtype {row['dtype']!r} are not predicted")
    operator = Gemm("gemm", int(row["m"]), int(row["k"]), int(row["n"]))
    return operator_cost(operator, hardware, {}).cost.time
