"""Time of fused attention kernels."""

from __future__ import annotations

from deepflow.hardware import Hardware
from deepflow.workload.operators import FORWARD_PASSES, Attention


def attention_compute_time(operator: Attention, hardware: Hardware) -> float:
    """Time that fused attention needs for arithmetic, in seconds.

    Matrix products and the exponential of every score take turns on a bundle, and
    special-function units are few: with 16 exponentials per cycle beside 4,096 matrix FLOP,
    a head of 64 spends as long on one as on the other (FlashAttention-3, arXiv 2407.08608,
    3.1). The backward pass reaches 63/73 of the forward rate (FlashAttention-2, arXiv
    2307.08691, abstract).
    """
    core = hardware.accelerator.core
    per_cycle = hardware.config.tech_param.core.special_functions_per_cycle
    time = operator.flops / core.attention_flops
    if per_cycle is not None:
        # The forward pass needs one exponential for the products of a score.
        exponentials = operator.flops / (2 * (operator.head_dim + operator.value_dim))
        time += exponentials / (per_cycle * core.num_bundles * core.operating_frequency)
    return time if operator.passes == FORWARD_PASSES else time * 73 / 63
