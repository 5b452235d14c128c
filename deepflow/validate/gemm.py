"""Predictions for measured matrix products, as ``deepflow validate`` needs them.

A row is a linear layer y[m, n] = x[m, k] W[n, k]^T on one device. Where ``dtype`` has x in fewer
bits than it arrives with, kernels that quantise it belong to the row; where W alone has fewer
bits, they are widened inside the product. ``kernel_source`` and ``source`` tell what else was
timed. A row of hardware counters (``run_type`` is gemm) states the clock that it was taken at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from deepflow.cost.gemm import ElementBytes, gemm_cost
from deepflow.cost.roofline import roofline_time
from deepflow.errors import DeepFlowError
from deepflow.hardware import Accelerator, Hardware
from deepflow.record import record

FULL_BYTES = 2  # of an element of x before it is quantised, and of y


@record(frozen=True)
class Format:
    """What products of a data type are made of.

    ``dtype`` names the rate, of which kernels reach the part ``rate``; bytes of an element of x
    and W include those of their scales. ``quantising_kernels`` read x ``passes`` times and write
    it once. ``splits``: bundles may share a block's inner dimension.
    """

    dtype: str
    x_bytes: float
    w_bytes: float
    quantising_kernels: int = 0
    passes: int = 1
    rate: float = 1.0
    splits: bool = True


# fp8: a scale for each row of x.
# fp8_block: 4 bytes of scale for 128 elements of x and for 128 x 128 of W. Sums over 128 elements
# are scaled and added up outside the matrix units, which costs a third of their rate (no median
# error over the H100 rows with m, k, n >= 1024), and in one place, so that nothing is split.
# int4_wo: 2 bytes of scale for 128 weights.
# nvfp4: 1 byte for 16 elements and one scale for all of x, which its largest element gives.
FORMATS = {
    "bfloat16": Format("bf16", 2, 2),
    "bf16": Format("bf16", 2, 2),
    "float16": Format("fp16", 2, 2),
    "fp8": Format("fp8", 1, 1, quantising_kernels=1),
    "fp8_block": Format("fp8", 1 + 4 / 128, 1, quantising_kernels=1, rate=0.67, splits=False),
    "sq": Format("int8", 1, 1, quantising_kernels=1),
    "int8_wo": Format("bf16", 2, 1),
    "int4_wo": Format("bf16", 2, 0.5 + 2 / 128),
    "nvfp4": Format("fp4", 0.5 + 1 / 16, 0.5 + 1 / 16, quantising_kernels=2, passes=2),
}
# TensorRT-LLM has one scale for all of x: reset, search of the largest element, scale, conversion.
FORMATS_OF_SOURCE = {
    ("fp8", "torch_flow"): Format("fp8", 1, 1, quantising_kernels=4, passes=2),
}

# Seconds in which the host issues the kernels of a layer, by ``dtype`` and ``kernel_source``, where
# no CUDA graph does it (vLLM's layers with block scales): median of the rows that take the device
# less than 20 us, of the H100 (op_gemm) and, where the library is not named, the H200 (op_power).
HOST_SECONDS = {
    ("fp8_block", "CutlassFp8BlockScaledMMKernel"): 182e-6,
    ("fp8_block", "DeepGemmFp8BlockScaledMMKernel"): 87e-6,
    ("fp8_block", "FlashInferFp8BlockScaledMMKernel"): 59e-6,
    ("fp8_block", "vllm_default"): 74e-6,
}
# TensorRT engines are timed around their execution, which takes this longer than its kernels:
# median of the A100 rows below 20 us.
ENGINE_PREFIX = "trt_flow"
ENGINE_SECONDS = 5e-6
# Single calls, each of which the host issues and waits for: by the source's own account.
SYNCHRONISED_SOURCE = "LLMCompass"
SYNCHRONISATION_SECONDS = 21e-6
# From this share of the board's limit on, power decides the clock.
AT_POWER_LIMIT = 0.95


def predicted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of the row's kernels, in seconds.

    Where the row says that the board met its power limit, they run at the clock of long runs.

    Raises:
        DeepFlowError: the data type is not known, or the device has no rate for it, or the row
            is no time.
        KeyError, ValueError: a column is missing, or not a number.
    """
    if row.get("run_type") == "gemm":
        return _counted_seconds(row, hardware)
    m, k, n = (int(row.get(size) or row[size.upper()]) for size in ("m", "k", "n"))
    name = row["dtype"].partition(" ")[0]  # A remark may follow.
    if name not in FORMATS:
        raise DeepFlowError(f"products of dtype {name!r} are not predicted")
    source = row.get("kernel_source", "")
    form = FORMATS_OF_SOURCE.get((name, source), FORMATS[name])
    limit = float(row.get("power_limit_W") or math.inf)
    if float(row.get("power_W") or 0) >= AT_POWER_LIMIT * limit:
        hardware = hardware.under_load
    accelerator = hardware.accelerator
    product = gemm_cost(
        accelerator if form.splits else _without_splits(accelerator),
        m,
        k,
        n,
        ElementBytes(form.x_bytes, form.w_bytes, FULL_BYTES),
        rate=form.rate * _relative_rate(form.dtype, hardware),
    ).time
    quantising = 0.0
    if form.quantising_kernels:
        moved = (form.passes * FULL_BYTES + form.x_bytes) * m * k
        quantising = roofline_time(accelerator, 0.0, moved)
    launches = (1 + form.quantising_kernels) * hardware.config.sw_param.kernel_launch_overhead
    if source.startswith(ENGINE_PREFIX):
        launches += ENGINE_SECONDS
    if row.get("source", "").startswith(SYNCHRONISED_SOURCE):
        launches += SYNCHRONISATION_SECONDS
    return max(product + quantising + launches, HOST_SECONDS.get((name, source), 0.0))


def _counted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of a kernel with the chip at the row's clock.

    ``util`` is for products one after the other, when the power limit lowers the clock. A clock
    that is locked below that lets them run at the peak rate that goes with it.
    """
    if row["metric"] != "kernel_time":
        raise DeepFlowError(f"metric {row['metric']!r} is no time")
    accelerator = hardware.accelerator
    core, (registers, l1, l2, dram) = accelerator.core, accelerator.memory
    slower = float(row["clock_ghz"]) * 1e9 / core.operating_frequency
    on_chip = [replace(level, bandwidth=slower * level.bandwidth) for level in (registers, l1, l2)]
    clocked = replace(
        accelerator,
        core=replace(core, usable_flops=min(core.usable_flops, slower * core.peak_flops)),
        memory=(on_chip[0], on_chip[1], on_chip[2], dram),
    )
    m, k, n = (int(row[size]) for size in ("m", "k", "n"))
    launch = hardware.config.sw_param.kernel_launch_overhead
    return gemm_cost(clocked, m, k, n, FULL_BYTES).time + launch


def _without_splits(accelerator: Accelerator) -> Accelerator:
    """A device on whose bundles nothing is worth sharing."""
    return replace(accelerator, core=replace(accelerator.core, split_latency=math.inf))


def _relative_rate(dtype: str, hardware: Hardware) -> float:
    """Relative to the type that the device runs."""
    technology = hardware.config.tech_param.core
    if dtype not in technology.precision_rates.supported:
        raise DeepFlowError(f"the hardware file has no rate for {dtype} products")
    return technology.usable_rate(dtype, hardware.config.sw_param.dtype)
