"""Time of grouped matrix multiplications: the experts of a mixture-of-experts layer."""

from __future__ import annotations

from deepflow.cost.gemm import GemmCost, gemm_cost
from deepflow.hardware.accelerator import Accelerator


def grouped_gemm_cost(
    accelerator: Accelerator,
    rows: float,
    experts: int,
    k: int,
    n: int,
    precision: float,
    *,
    sums_rows: bool = False,
) -> GemmCost:
    """Cost of ``rows`` rows of activations times the [k, n] matrices of ``experts`` experts.

    With ``sums_rows`` every expert yields the [k, n] gradient of its weights instead.
    """
    per_expert = max(1, -(-int(rows) // experts))
    m, inner = (k, per_expert) if sums_rows else (per_expert, k)
    return gemm_cost(accelerator, m, inner, n, precision, experts)
