"""Training points evaluated together, against one point at a time.

The space is one like Calculon's (Isaev et al., SC23): ways to train GPT-3 175B on 4,096 A100 with
a batch of 4,096 sequences. Points are drawn from those whose degrees divide; CPU seconds of one
process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from deepflow.batch import empty_columns, fill_one_by_one
from deepflow.batch.training import predict_training_points
from deepflow.config import load_hardware_config, load_model_config, with_overrides
from deepflow.config.model import LlmModel
from measure import REPOSITORY, Row, print_table

HARDWARE = REPOSITORY / "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"
MODEL = REPOSITORY / "configs/model-config/GPT3-175B.yaml"
DEVICES, SEQUENCES, LAYERS = 4096, 4096, 96

TENSOR = (1, 2, 4, 8, 16, 32)
PIPELINE = (1, 2, 4, 8, 16, 32, 64)
MICRO_BATCH_SIZE = (1, 2, 4, 8, 16)
VIRTUAL_STAGES = (1, 2, 3, 4, 6, 12)
SWITCHES: dict[str, tuple[object, ...]] = {
    "recompute": ("none", "selective", "full"),
    "zero": (0, 1, 2),
    "sequence_parallel": (True, False),
    "overlap_tensor_communication": ("none", "backward", "full"),
    "overlap_gradient_reduction": (True, False),
    "gradient_bytes": (2, 4),
}

SHARD, MANY, ALONE = 28_000, 100_000, 100


def measure() -> list[Row]:
    hardware = with_overrides(
        load_hardware_config(HARDWARE), {"system_hierarchy.num_nodes": DEVICES // 8}
    )
    model = load_model_config(MODEL, {"global_batch_size": SEQUENCES})
    assert isinstance(model, LlmModel)
    axes = _axes()
    random = np.random.default_rng(1)

    def together(points: int) -> float:
        positions = _feasible_points(axes, points, random)
        return points / _cpu_seconds(
            lambda: predict_training_points(hardware, model, axes, positions)
        )

    def alone() -> None:
        positions = _feasible_points(axes, ALONE, random)
        fill_one_by_one(empty_columns(ALONE), range(ALONE), hardware, model, axes, positions)

    single = ALONE / _cpu_seconds(alone)

    def row(name: str, rate: float, target: str = "") -> Row:
        value = f"{rate:,.0f} points/s ({rate / single:,.0f} x one by one)"
        return Row(f"GPT-3 175B on {DEVICES:,} A100: {name}", value, target)

    return [
        row(f"{ALONE} points one by one", single),
        row(f"the first {MANY:,} points together", together(MANY), ">= 20,000"),
        row(f"a further {MANY:,}", together(MANY), ">= 20,000"),
        row(f"a further {SHARD:,}, as in a shard of the whole space", together(SHARD)),
    ]


def _axes() -> list[list[tuple[dict[str, object], dict[str, object]]]]:
    """The overrides of every axis; the first four as in the constants above."""

    def axis(name: str, values: tuple[object, ...]) -> list[Any]:
        return [({f"scheduling_param.{name}": value}, {}) for value in values]

    stages: list[Any] = []
    for number in VIRTUAL_STAGES:
        schedule = {"scheduling_param.schedule": "interleaved" if number > 1 else "1f1b"}
        stages.append(({**schedule, "scheduling_param.virtual_stages": number}, {}))
    return [
        axis("tensor", TENSOR),
        axis("pipeline", PIPELINE),
        axis("micro_batch_size", MICRO_BATCH_SIZE),
        stages,
        *(axis(name, values) for name, values in SWITCHES.items()),
    ]


def _feasible_points(axes: list[Any], points: int, random: np.random.Generator) -> Any:
    """Positions of ``points`` layouts whose degrees and batches divide."""
    # About a third of all layouts divide.
    drawn = np.stack([random.integers(0, len(axis), 8 * points) for axis in axes], 1)
    tensor, pipeline, size, virtual = (
        np.array(values)[drawn[:, axis]]
        for axis, values in enumerate((TENSOR, PIPELINE, MICRO_BATCH_SIZE, VIRTUAL_STAGES))
    )
    data = DEVICES // (tensor * pipeline)
    microbatches = SEQUENCES // (data * size)
    divides = (data * size * microbatches == SEQUENCES) & (pipeline * virtual <= LAYERS)
    divides &= (virtual == 1) | ((pipeline > 1) & (microbatches % pipeline == 0))
    return drawn[divides][:points]


def _cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    print_table(measure())
