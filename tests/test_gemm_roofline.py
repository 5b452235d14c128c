"""Roofline times of kernels without tiling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deepflow.cost.roofline import memory_bound_time, roofline_time
from deepflow.errors import DeepFlowError
from deepflow.hardware import Accelerator, load_hardware


@pytest.fixture
def h100() -> Accelerator:
    path = Path(__file__).parent / "data" / "reference" / "hardware" / "H100_SXM5_80GB.yaml"
    return load_hardware(path).accelerator


def test_a1_operands_come_from_dram_and_not_from_registers(h100: Accelerator) -> None:
    """The original charged the register file, which is 73 times faster on this device."""
    moved = 1e9
    time = roofline_time(h100, 0.0, moved)
    assert time == moved / h100.memory[3].bandwidth + h100.memory[3].latency
    faulty = moved / h100.memory[0].bandwidth
    assert time / faulty == pytest.approx(72.7, abs=0.1)


def test_an_explicit_level_is_used(h100: Accelerator) -> None:
    l2 = h100.memory[2]
    assert roofline_time(h100, 0.0, 1e9, l2) == memory_bound_time(l2, 1e9) == 1e9 / l2.bandwidth


def test_compute_decides_when_it_takes_longer(h100: Accelerator) -> None:
    assert roofline_time(h100, 1e15, 1e9) == 1e15 / h100.core.usable_flops
    assert roofline_time(h100, 1e6, 1e9) == memory_bound_time(h100.memory[3], 1e9)


def test_no_work_takes_no_time(h100: Accelerator) -> None:
    assert roofline_time(h100, 0.0, 0.0) == 0.0


def test_no_throughput_is_an_error_that_names_what_lacks_it(h100: Accelerator) -> None:
    dead_dram = replace(h100.memory[3], bandwidth=0.0)
    with pytest.raises(DeepFlowError, match="DRAM has no bandwidth"):
        memory_bound_time(dead_dram, 1.0)
    dead_core = replace(h100, core=replace(h100.core, usable_flops=0.0))
    with pytest.raises(DeepFlowError, match="core has no throughput"):
        roofline_time(dead_core, 1.0, 1.0)
    assert memory_bound_time(dead_dram, 0.0) == 0.0
