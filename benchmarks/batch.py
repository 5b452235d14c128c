"""Training points evaluated together, against one point at a time.

The space is one like Calculon's (Isaev et al., SC23): ways to train GPT-3 175B on 4,096 A100 with
a batch of 4,096 sequences. Points are drawn from those whose degrees divide. Then layouts on 128
A100 with many sizes of the batch, feasible or not, and whole shards of the sweep over the space:
expansion of their points, prediction, ids, digests, file. CPU seconds of one process.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepflow.batch import empty_columns, fill_one_by_one
from deepflow.batch.training import predict_training_points
from deepflow.config import (
    HardwareConfig,
    load_hardware_config,
    load_model_config,
    with_overrides,
)
from deepflow.config.model import LlmModel
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.tables import write_shard
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

SWEEP = "sweeps/gpt3_175b_execution_space.yaml"
WARM_AFTER, WARM_SHARDS = 8, 4
BATCH_SIZES = tuple(512 * number for number in range(1, 88))


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
        return Row(f"GPT-3 175B: {name}", value, target)

    cold, warm = _shards()
    return [
        row(f"{ALONE} points on {DEVICES:,} A100 one by one", single),
        row(f"the first {MANY:,} points together", together(MANY), ">= 20,000"),
        row(f"a further {MANY:,}", together(MANY), ">= 20,000"),
        row(f"a further {SHARD:,}, as in a shard of the whole space", together(SHARD)),
        row(f"{len(BATCH_SIZES)} batch sizes on 128 A100", _batch_sizes(hardware, model, axes)),
        row("the first shard of its sweep", cold),
        row(f"its shards after the first {WARM_AFTER}", warm, ">= 20,000"),
    ]


def _batch_sizes(hardware: HardwareConfig, model: LlmModel, axes: list[Any]) -> float:
    """Points/s of random layouts, feasible or not."""
    random = np.random.default_rng(2)
    axes = [[({}, {"global_batch_size": size}) for size in BATCH_SIZES], *axes]
    positions = np.stack([random.integers(0, len(axis), SHARD) for axis in axes], 1)
    small = with_overrides(hardware, {"system_hierarchy.num_nodes": 16})
    return SHARD / _cpu_seconds(lambda: predict_training_points(small, model, axes, positions))


def _shards() -> tuple[float, float]:
    """Points/s of the first shard of the sweep, and of some when a process has done others."""
    with (
        contextlib.chdir(REPOSITORY),
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        sweep = load_sweep(SWEEP)
        names = list(sweep.shards)[: WARM_AFTER + WARM_SHARDS]
        seconds = [
            _cpu_seconds(lambda name=name: write_shard(sweep, name, Path(folder) / name))
            for name in names
        ]
        points = [len(sweep.shards[name].numbers) for name in names]
    return points[0] / seconds[0], sum(points[WARM_AFTER:]) / sum(seconds[WARM_AFTER:])


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
