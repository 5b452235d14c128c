"""Training points evaluated together give what each gives by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.batch import PointError, empty_columns, fill_one_by_one, predict_points
from deepflow.batch.pipelines import Pipelines, last_ends
from deepflow.batch.training import predict_training_points
from deepflow.config import load_hardware_config, load_model_config
from deepflow.config.framework import load_framework_config
from deepflow.errors import DeepFlowError
from deepflow.prediction import COLUMNS
from deepflow.schedule.pipeline import PipelineShape, pipeline_graph

A100 = "nvidia_a100_sxm_80gb.yaml"
H100 = "nvidia_h100_sxm_80gb.yaml"


def parallelism(**axes: list[Any]) -> dict[str, list[Any]]:
    return {f"scheduling_param.{name}": values for name, values in axes.items()}


def machine(nodes: int, sequences: int) -> dict[str, list[Any]]:
    return {"system_hierarchy.num_nodes": [nodes], "model.global_batch_size": [sequences]}


DEGREES = parallelism(
    tensor=[1, 2, 4, 8, 3],
    pipeline=[1, 2, 3, 4, 8],
    context=[1, 2],
    micro_batch_size=[1, 2, 3],
    zero=[0, 1, 2, 3],
    recompute=["none", "full", "selective"],
)
SCHEDULES = parallelism(
    schedule=["1f1b", "gpipe", "zero_bubble", "interleaved"],
    overlap_gradient_reduction=[True, False],
    overlap_parameter_gather=[True, False],
    overlap_tensor_communication=["none", "backward", "full"],
    sequence_parallel=[True, False],
    gradient_bytes=[2, 4],
)
OTHERS = parallelism(
    virtual_stages=[None, 2, 3],
    stage_balance=["layers", "flops", "cumulative"],
    recompute_layers=[None, 1],
    recompute_modules=["core_attention", "core_attention_and_elementwise"],
    zero_1_reduction=["reduce_scatter", "all_reduce"],
    zero_3_reduction=["reduce_scatter", "all_reduce"],
    zero_3_unit=["layer", "matrix"],
    release_distance=[None, 2_000_000_000],
    gradient_bucket=[None, 1e8],
    offload=["none", "optimizer", "optimizer_and_activations"],
    context_method=["ring", "all_gather"],
)
EXPERTS = parallelism(
    expert=[1, 2, 4, 8],
    expert_dispatch=["per_expert", "per_node"],
    overlap_expert_communication=[True, False],
)

# Hardware, framework, model, axes.
CASES = {
    "tied": (
        A100,
        "",
        "GPT3-175B.yaml",
        machine(16, 256) | SCHEDULES | DEGREES | parallelism(pipeline=[1, 2, 4, 8, 16]),
    ),
    "untied": (H100, "", "Llama2-7B.yaml", machine(4, 96) | DEGREES | SCHEDULES | OTHERS),
    "interleaved": (
        A100,
        "megatron_lm.yaml",
        "GPT3-175B.yaml",
        machine(8, 384)
        | parallelism(
            tensor=[4, 8],
            pipeline=[2, 4, 8],
            virtual_stages=[1, 2, 3, 6],
            schedule=["interleaved"],
            micro_batch_size=[1, 2, 3],
            recompute=["none", "full"],
            zero=[0, 1],
        ),
    ),
    "experts": (H100, "", "Mixtral-8x7B.yaml", machine(4, 96) | DEGREES | EXPERTS),
    "latent attention": (
        H100,
        "",
        "DeepSeek-V3.yaml",
        machine(16, 384)
        | DEGREES
        | parallelism(expert=[8, 16, 32], schedule=["1f1b", "zero_bubble"]),
    ),
    "images": (H100, "", "ViT-L16.yaml", machine(1, 96) | DEGREES),
    "batches": (
        A100,
        "",
        "Llama2-7B.yaml",
        machine(2, 96)
        | {"model.global_batch_size": [1, 16, 48, 96, 512, 1920, 4096]}
        | parallelism(
            tensor=[1, 2, 8],
            pipeline=[1, 2, 4],
            micro_batch_size=[None, 1, 3],
            num_microbatches=[None, 8, 960],
            schedule=["1f1b", "gpipe", "interleaved", "zero_bubble"],
            virtual_stages=[None, 1, 2, 4],
        ),
    ),
    "sharded by a framework": (
        A100,
        "deepspeed.yaml",
        "Llama2-13B.yaml",
        machine(4, 96) | DEGREES | parallelism(zero_1_reduction=["reduce_scatter", "all_reduce"]),
    ),
    "checking host": (
        A100,
        "nanotron_checked.yaml",
        "Llama2-13B.yaml",
        machine(4, 96) | DEGREES | parallelism(gradient_bytes=[2, 4]),
    ),
    "hardware keys": (
        A100,
        "pytorch_fsdp.yaml",
        "Llama2-13B.yaml",
        machine(4, 96)
        | DEGREES
        | parallelism(offload=["none", "optimizer", "optimizer_and_activations"])
        | {
            "sw_param.host_bandwidth": [None, 5e10],
            "tech_param.network.inter_node.bandwidth": [1e9, 25e9],
        },
    ),
}


def load(root: Path, hardware: str, framework: str, model: str) -> tuple[Any, Any]:
    config = load_hardware_config(root / "configs/hardware-config" / hardware)
    if framework:
        file = root / "configs/framework-config" / framework
        config = load_framework_config(file).applied_to(config)
    return config, load_model_config(root / "configs/model-config" / model)


def overrides(axes: dict[str, list[Any]]) -> list[list[tuple[dict[str, Any], dict[str, Any]]]]:
    return [
        [({}, {key.removeprefix("model."): value}) for value in values]
        if key.startswith("model.")
        else [({key: value}, {}) for value in values]
        for key, values in axes.items()
    ]


def drawn(axes: list[Any], points: int, seed: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(0, len(axis), points) for axis in axes], 1)


def one_by_one(hardware: Any, model: Any, axes: Any, positions: Any) -> dict[str, Any]:
    columns = empty_columns(len(positions))
    fill_one_by_one(columns, range(len(positions)), hardware, model, axes, positions)
    return columns


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() == COLUMNS.keys()
    for name, values in expected.items():
        if COLUMNS[name].dtype is str:
            assert found[name].tolist() == values.tolist(), name
            continue
        # A bubble is what is left of the whole step: as precise as that, whatever its size.
        whole = expected["time_s"] if name == "time_pipeline_bubble_s" else 0.0
        bound = 1e-9 * np.maximum(np.abs(values), whole)
        assert np.array_equal(np.isnan(found[name]), np.isnan(values)), name
        assert np.all((np.abs(found[name] - values) <= bound) | np.isnan(values)), name


@pytest.mark.parametrize("case", CASES)
def test_points_together_are_what_each_is_alone(repository, case):
    hardware_file, framework, model_file, keys = CASES[case]
    hardware, model = load(repository, hardware_file, framework, model_file)
    axes = overrides(keys)
    positions = drawn(axes, 300, seed=1)
    expected = one_by_one(hardware, model, axes, positions)
    found = predict_training_points(hardware, model, axes, positions)
    assert_equal(found, expected)
    assert np.isfinite(expected["time_s"]).sum() > 20
    # What is remembered of one batch does not change the next one.
    some = np.random.default_rng(2).permutation(len(positions))[:150]
    again = predict_training_points(hardware, model, axes, positions[some])
    assert_equal(again, {name: values[some] for name, values in expected.items()})


def test_points_out_of_memory_say_what_they_need(repository):
    hardware, model = load(repository, A100, "", "GPT3-175B.yaml")
    axes = overrides(machine(16, 256) | DEGREES)
    positions = drawn(axes, 300, seed=3)
    found = predict_training_points(hardware, model, axes, positions)
    outside = found["status"] == "out_of_memory"
    assert outside.any()
    assert all("GiB are there" in reason for reason in found["reason"][outside])
    assert not found["fits_in_memory"][outside].any()


def test_keys_that_move_together_and_old_spellings(repository):
    """Axes of several keys, some of which change the device; degrees of old files too."""
    hardware, model = load(repository, A100, "", "Llama2-7B.yaml")
    degrees = "scheduling_param.tensor", "scheduling_param.pipeline"
    axes = [
        *overrides(machine(2, 64) | parallelism(micro_batch_size=[1, 2], zero=[0, 1, 3])),
        [(dict(zip(degrees, pair, strict=True)), {}) for pair in ((1, 1), (2, 4), (8, 2), (4, 1))],
        [
            ({"scheduling_param.recompute": "full", "tech_param.DRAM.bandwidth": 1e12}, {}),
            ({"scheduling_param.recompute": "none"}, {"seq_len": 2048}),
        ],
        [({}, {}), ({"scheduling_param.kp1": 2}, {}), ({"scheduling_param.kp1": 4}, {})],
    ]
    positions = drawn(axes, 500, seed=4)
    expected = one_by_one(hardware, model, axes, positions)
    assert_equal(predict_training_points(hardware, model, axes, positions), expected)


def test_simulated_networks_are_predicted_one_by_one(repository, monkeypatch):
    monkeypatch.setattr("deepflow.batch.training.FEW", 2)
    hardware, model = load(repository, H100, "", "Llama2-7B.yaml")
    axes = overrides(
        machine(1, 16)
        | parallelism(tensor=[2, 4], micro_batch_size=[1, 2])
        | {"execution_backend.model": ["analytical", "astra"]}
    )
    positions = np.array([[0, 0, *map(int, f"{number:03b}")] for number in range(8)])
    expected = one_by_one(hardware, model, axes, positions)
    assert {*expected["backend_used"]} == {"analytical", "astra"}
    assert_equal(predict_training_points(hardware, model, axes, positions), expected)


def test_a_mistake_is_an_error_and_names_its_point(repository):
    hardware, model = load(repository, H100, "", "Mixtral-8x7B.yaml")
    axes = overrides(
        machine(4, 96)
        | DEGREES
        | EXPERTS
        | {"execution_backend.astra.collectives.all_to_all": ["auto", "doubleBinaryTree"]}
    )
    positions = drawn(axes, 300, seed=5)
    with pytest.raises(DeepFlowError, match="no algorithm for all_to_all"):
        predict_training_points(hardware, model, axes, positions)
    with pytest.raises(PointError) as caught:
        predict_points(hardware, model, axes, positions)
    good = positions[: caught.value.index]
    assert_equal(
        predict_points(hardware, model, axes, good), one_by_one(hardware, model, axes, good)
    )


SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.25, 2.0, 3.0])


@st.composite
def pipelines(draw):
    """Pipelines of the same order, with equal, uneven or any passes, and short or long ways."""
    schedule = draw(st.sampled_from(["gpipe", "1f1b", "zero_bubble", "interleaved"]))
    interleaved = schedule == "interleaved"
    stages = draw(st.integers(2 if interleaved else 1, 5))
    turns = draw(st.integers(2, 3)) if interleaved else 1
    points, parts = draw(st.integers(1, 4)), stages * turns
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    microbatches = random.integers(1, 140 // turns, points)
    if interleaved:
        microbatches = stages * random.integers(1, 20, points)
    forward, backward, weight = (random.uniform(1, 2, (points, parts)) for _ in range(3))
    kind = draw(st.sampled_from(["any", "equal", "head", "half", "almost"]))
    for times in (forward, backward, weight):
        if kind != "any":
            times[:] = times[:, :1]
        if kind == "head":
            times[:, -1] += draw(SECONDS)
        if kind == "half":
            times[:, : parts // 2] *= 2
        if kind == "almost":
            # Some devices keep their own pace for long before the slowest one holds them up.
            times *= random.uniform(1, 1.02, times.shape)
    if schedule != "zero_bubble":
        weight[:] = 0.0
    last = (weight if schedule == "zero_bubble" else backward) * draw(
        st.sampled_from([0.9, 1.0, 1.1])
    )
    hop = np.array([draw(SECONDS) for _ in range(points)])
    return Pipelines(schedule, stages, turns, microbatches, forward, backward, weight, last, hop)


@settings(max_examples=150, deadline=None)
@given(pipelines())
def test_pipelines_end_as_the_events_say(together):
    parts = together.stages * together.virtual_stages
    splits = together.schedule == "zero_bubble"
    (ends,) = last_ends([together])
    for point, microbatches in enumerate(together.microbatches.tolist()):
        shape = PipelineShape(
            together.schedule,
            together.stages,
            together.virtual_stages,
            microbatches,
            tuple((part,) for part in range(parts)),
            reduces_gradients=False,
            overlaps=False,
            tied=False,
        )
        graph = pipeline_graph(shape)
        durations = graph.durations()
        for part in range(parts):
            durations[graph.forward(part)] = together.forward[point, part]
            durations[graph.backward(part)] = together.backward[point, part]
            if splits:
                durations[graph.backward_weight(part)] = together.weight[point, part]
            durations[graph.segment_backward(part)] = together.last[point, part]
        events = graph.graph.execute(durations, (0.0, together.hop[point]))
        first = parts * microbatches * (2 if splits else 1)
        last = 0 if together.schedule == "gpipe" else microbatches - 1
        expected = [events[first + part * microbatches + last] for part in range(parts)]
        assert ends[point] == pytest.approx(expected, rel=1e-11)
