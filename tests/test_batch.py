"""Many points at once give what each gives by itself."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepflow.batch import (
    PointError,
    changes_at,
    evaluate_or_explain,
    predict_points,
)
from deepflow.config import load_hardware_config
from deepflow.config.hardware import HardwareConfig
from deepflow.cost import gemm, gemm_search
from deepflow.cost.gemm import ElementBytes, gemm_costs
from deepflow.hardware import derive_hardware
from deepflow.prediction import COLUMNS
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.points import Base, Sweep

HARDWARE = "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"


@pytest.fixture(autouse=True)
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def load(folder: Path, text: str) -> Sweep:
    path = folder / "batch.yaml"
    path.write_text(text)
    return load_sweep(path)


def agree(base: Base, positions: np.ndarray[Any, Any], columns: dict[str, Any]) -> None:
    """Every column against the single point's."""
    assert columns.keys() == COLUMNS.keys()
    for index, row in enumerate(positions.tolist()):
        changes = changes_at(base.overrides, row)
        expected = evaluate_or_explain(base.hardware, base.model, *changes).prediction.as_row()
        for name, value in expected.items():
            found = columns[name][index]
            if value is None or isinstance(value, str):
                same = found == value or (value is None and (found is None or math.isnan(found)))
            else:
                same = found == pytest.approx(float(value), rel=1e-9, abs=0)
            assert same, f"{name} of {changes}: {found!r} and not {value!r}"


SINGLE = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
grid:
  model.M: [1, 100, 4096, 1000000]
  model.K: [64, 5000]
  model.N: [3, 8192, 300000]
  model.backward: [false, true]
  hardware.sw_param.dtype: [bf16, fp8]
  hardware.tech_param.DRAM.bandwidth: [1 TB/s, 3.352e12]
  hardware.tech_param.DRAM.size: [80 GB, 1 GB]
"""
DISTRIBUTED = """\
hardware: configs/hardware-config/nvidia_a100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
set:
  hardware.system_hierarchy.num_nodes: 2
grid:
  parallelism.t: [CR, RC]
  parallelism.kp1: [1, 4]
  parallelism.kp2: [1, 2]
  parallelism.data: [1, 2, 4, auto]
  model.M: [1, 1000, 16384]
  model.backward: [false, true]
  hardware.tech_param.network.inter_node.bandwidth: [25e9, 50e9]
zip:
  - model.K: [512, 30000]
    model.N: [4096, 777]
"""


@pytest.mark.parametrize("text", [SINGLE, DISTRIBUTED], ids=["one_device", "several"])
def test_products_together_are_those_of_single_points(tmp_path: Path, text: str) -> None:
    sweep = load(tmp_path, text)
    ((base,),) = sweep.bases
    positions = sweep.positions(sweep.numbers)
    columns = predict_points(base.hardware, base.model, base.overrides, positions)
    agree(base, positions, columns)
    assert {"ok"} < set(columns["status"])


def test_points_that_do_not_go_together_are_predicted_too(tmp_path: Path) -> None:
    """Impossible grids and a simulated network beside others."""
    sweep = load(
        tmp_path,
        DISTRIBUTED.split("grid:")[0]
        + "grid:\n  backend.model: [analytical, astra]\n  parallelism.kp1: [1, 3, 4]\n"
        "  parallelism.t: [CR]\n  model.M: [64, 4096]\n"
        "  hardware.tech_param.network.inter_node.bandwidth: [25e9, 50e9]\n",
    )
    ((base,),) = sweep.bases
    positions = sweep.positions(sweep.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        columns = predict_points(base.hardware, base.model, base.overrides, positions)
        agree(base, positions, columns)
    assert {"ok", "infeasible"} <= set(columns["status"])
    assert {"analytical", "astra"} == set(columns["backend_used"])


@pytest.mark.parametrize("model", ["LSTM", "Llama2-7B"])
def test_other_models_go_through_the_same_door(tmp_path: Path, model: str) -> None:
    sweep = load(
        tmp_path,
        f"hardware: {HARDWARE}\nmodel: configs/model-config/{model}.yaml\n"
        "grid:\n  parallelism.data: [1, 3]\n  hardware.tech_param.DRAM.bandwidth: [1e12, 2e12]\n",
    )
    ((base,),) = sweep.bases
    positions = sweep.positions(sweep.numbers)
    agree(base, positions, predict_points(base.hardware, base.model, base.overrides, positions))


def test_a_mistake_names_its_point(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        f"hardware: {HARDWARE}\nmodel: configs/model-config/GEMM.yaml\n"
        "set: {hardware.system_hierarchy.num_nodes: 2}\n"
        "grid:\n  model.M: [1, 2]\n  hardware.system_hierarchy.inter_derate: [1, 0]\n",
    )
    ((base,),) = sweep.bases
    positions = sweep.positions(sweep.numbers)
    with pytest.raises(PointError, match="inter_derate") as error:
        predict_points(base.hardware, base.model, base.overrides, positions)
    assert error.value.index == 1


def test_the_search_for_many_products_finds_what_that_for_few_does() -> None:
    random = np.random.default_rng(1)
    sizes = 2.0 ** random.uniform(0, 15, size=(300, 3))
    sizes[::3] = 2.0 ** random.integers(0, 16, size=(100, 3))
    shapes = [
        (*map(int, side), int(batch)) for side, batch in zip(sizes, [1, 1, 8] * 100, strict=True)
    ]
    for file, element in (
        ("nvidia_h100_sxm_80gb", ElementBytes(1, 0.5, 2)),
        ("nvidia_v100_sxm2_32gb", ElementBytes(2, 2, 2)),
        ("waferscale_20v100_80hbm", ElementBytes(4, 4, 4)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config: HardwareConfig = load_hardware_config(f"configs/hardware-config/{file}.yaml")
            accelerator = derive_hardware(config).accelerator
        gemm._remembered.clear()
        together = gemm_costs(accelerator, shapes, element)
        gemm._remembered.clear()
        few = [cost for shape in shapes for cost in gemm_costs(accelerator, [shape], element)]
        for shape, one, other in zip(shapes, together, few, strict=True):
            assert one.time == pytest.approx(other.time, rel=1e-12), shape
            assert one.bytes_by_level == pytest.approx(other.bytes_by_level, rel=1e-12), shape
            assert (one.order, one.l1_tile, one.l2_tile, one.bound) == (
                other.order,
                other.l1_tile,
                other.l2_tile,
                other.bound,
            ), shape
    assert len(shapes) > gemm.SEARCHED_TOGETHER
    assert gemm_search.SEARCHED_TOGETHER > gemm.SEARCHED_TOGETHER


def test_ids_and_digests_in_columns_are_those_of_points(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        f"hardware: [{HARDWARE}, configs/hardware-config/nvidia_h100_sxm_80gb.yaml]\n"
        "model: configs/model-config/GEMM.yaml\n"
        "grid:\n  model.M: [1, 2]\n  hardware.tech_param.DRAM.bandwidth: [1 TB/s, 2.5e12]\n"
        "zip:\n  - model.K: [1, 2]\n    model.N: [2, 1]\n",
    )
    positions = sweep.positions(sweep.numbers)
    assert sweep.digests(positions) == [point.digest for point in sweep.points()]
    assert [sweep.at(row).id for row in positions.tolist()] == [p.id for p in sweep.points()]


def test_the_space_of_executions_of_gpt3_is_usable() -> None:
    sweep = load_sweep("sweeps/gpt3_175b_execution_space.yaml")
    assert 400_000 < sweep.count < 1_000_000
    ((base,),) = sweep.bases
    positions = sweep.positions(sweep.numbers[:: sweep.count // 40])
    columns = predict_points(base.hardware, base.model, base.overrides, positions)
    # What cannot run is left out; what does not fit in memory is known when it is predicted.
    assert set(columns["status"]) == {"ok", "out_of_memory"}
    fastest = int(np.nanargmin(np.where(columns["status"] == "ok", columns["time_s"], np.nan)))
    assert columns["model_flops_utilization"][fastest] < 1
