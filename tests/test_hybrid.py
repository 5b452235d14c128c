"""Collectives timed by the simulator in the place of closed forms."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_stand_in import StandIn
from deepflow import load_hardware, load_model, predict
from deepflow.astra.hybrid import simulated_time
from deepflow.config.hardware import AstraBackend, CollectiveAlgorithms
from deepflow.cost.collectives import collective_cost
from deepflow.errors import DeepFlowError
from deepflow.explain import explain
from deepflow.mapping.groups import Group
from deepflow.prediction import TIME_COLUMNS

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
MODELS = {
    "Llama3.1-8B": ({"global_batch_size": 32}, {"tensor": 2, "pipeline": 2, "context": 2}),
    "Mixtral-8x7B": ({"global_batch_size": 16}, {"tensor": 2, "expert": 4}),
    "LSTM": ({}, {"t": "RC", "kp1": 2, "kp2": 2, "data": 4}),
    "GEMM": ({}, {"t": "RC", "kp1": 4, "kp2": 4}),
}
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "ring_exchange")


def point(name, backend="astra", **changes):
    model, layout = MODELS[name]
    overrides = {
        "system_hierarchy.num_nodes": 2,
        "execution_backend.model": backend,
        **{f"parallelism.{key}": value for key, value in layout.items()},
        **changes,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hardware = load_hardware(H100, overrides)
    return hardware, load_model(f"configs/model-config/{name}.yaml", model)


def group(size=8, intra=8, topology="ring", bandwidth=300e9):
    return Group(
        "x", size, intra, size // intra, bandwidth, 1e-6, 25e9, 5e-6,
        intra_topology=topology, inter_topology="switch",
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_runs_with_a_simulated_network(name):
    simulated, closed = predict(*point(name)), predict(*point(name, "analytical"))
    assert simulated.backend_used == simulated.backend_requested == "astra"
    assert simulated.fallback_reason == ""
    assert closed.backend_used == "analytical"
    assert simulated.time_s != closed.time_s
    assert simulated.time_s == pytest.approx(closed.time_s, rel=0.3)
    assert simulated.time_gemm_s == closed.time_gemm_s
    assert simulated.intra_node_bytes == closed.intra_node_bytes
    parts = [value for key in TIME_COLUMNS if (value := getattr(simulated, key)) is not None]
    assert sum(parts) == pytest.approx(simulated.time_s)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"execution_backend.astra.mode": "full_astrasim_flattened",
          "system_hierarchy.dp_inter": True}, "full_astrasim_flattened"),
        ({"network_topology.intra_node": "torus"}, "torus"),
        ({"execution_backend.astra.collectives.all_gather": "halvingDoubling",
          "parallelism.tensor": 6, "parallelism.context": 1, "parallelism.pipeline": 1,
          "system_hierarchy.num_devices_per_node": 6}, ""),
        ({"execution_backend.astra.simulator": "binary"}, "ASTRA-sim"),
        ({"execution_backend.astra.simulator": "binary",
          "execution_backend.astra.binary": "/nowhere/astra"}, "/nowhere/astra"),
    ],
)  # fmt: skip
def test_without_an_answer_the_closed_forms_stand_in_and_say_why(monkeypatch, changes, words):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("ASTRA_SIM_BINARY", raising=False)
    if "parallelism.tensor" in changes:
        changes = changes | {"system_hierarchy.num_nodes": 1}
    hardware, model = point("Llama3.1-8B", **changes)
    if "parallelism.tensor" in changes:
        model = load_model(
            "configs/model-config/Llama3.1-8B.yaml",
            {"num_heads": 24, "num_kv_heads": 24, "hidden_dim": 3072, "ffn_dim": 9216},
        )
    result = predict(hardware, model)
    assert (result.backend_requested, result.backend_used) == ("astra", "analytical")
    assert result.fallback_reason and words in result.fallback_reason
    assert "analytical instead of astra" in explain(hardware, model)
    strict, _ = point("Llama3.1-8B", **changes, **{"execution_backend.astra.fallback": "error"})
    with pytest.raises(DeepFlowError):
        predict(strict, model)


def test_old_files_write_fc_for_fully_connected():
    names = ("fc", "fully_connected")
    old, new = (
        point("Llama3.1-8B", **{"network_topology.intra_node": name, "parallelism.tensor": 4})
        for name in names
    )
    assert predict(*old).as_row() == predict(*new).as_row()


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"network_topology.intra_node": "switch"}, True),
        ({"network_topology.intra_node": "torus_2d"}, False),
        ({"network_topology.intra_node": "fat_tree"}, False),
        ({"network_topology.intra_node": "switch",
          "network_topology.faults.intra_node_links": "0-switch",
          "network_topology.faults.bandwidth_factor": 0.5}, False),
        ({"execution_backend.astra.mode": "hybrid_congestion", "system_hierarchy.num_nodes": 2,
          "network_topology.intra_node": "switch"}, False),
    ],
)  # fmt: skip
def test_auto_asks_a_binary_for_what_it_has_and_the_embedded_simulator_for_the_rest(
    tmp_path, monkeypatch, changes, asked
):
    program = StandIn(tmp_path / "build")
    for variable in ("ASTRA_SIM_BINARY", "ASTRA_SIM_BINARY_CONGESTION_AWARE"):
        monkeypatch.setenv(variable, str(program.path))
    model = load_model("configs/model-config/collective.yaml", {"message_size": "1 MiB"})

    def collective(simulator):
        own = {"execution_backend.astra.simulator": simulator, "execution_backend.model": "astra"}
        return predict(load_hardware(H100, own | changes), model)

    result = collective("auto")
    assert (result.backend_used, result.fallback_reason) == ("astra", "")
    assert bool(program.runs()) == asked
    assert (result.time_s == collective("embedded").time_s) != asked


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([(2, 2), (4, 4), (8, 8), (8, 2), (6, 3), (16, 8)]),
    st.integers(10**4, 10**9),
    st.sampled_from(["ring", "switch", "fully_connected"]),
)
def test_no_collective_beats_the_bandwidth_of_its_links(kind, sizes, message, topology):
    where = group(*sizes, topology)
    time = simulated_time(kind, message, where, AstraBackend(), 1e12)
    ranks, intra = sizes
    passes = 2 if kind == "all_reduce" else 1
    if kind in ("send", "ring_exchange"):
        bound = message / (300e9 if ranks == intra else 25e9)
    elif ranks == intra:
        # Rings of the simulator carry traffic both ways for some algorithms.
        bound = passes * (ranks - 1) / ranks * message / 300e9 / 2
    else:
        bound = (ranks // intra - 1) / ranks * message / 25e9
    assert time >= bound * (1 - 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_more_bandwidth_is_never_slower_and_one_rank_is_free(kind):
    slow, fast = (
        simulated_time(kind, 1e8, group(bandwidth=rate), AstraBackend(), 1e12)
        for rate in (100e9, 400e9)
    )
    assert 0 < fast < slow
    assert simulated_time(kind, 1e8, group(1, 1), AstraBackend(), 1e12) == 0


def test_long_rings_agree_with_the_closed_form():
    backend = AstraBackend(dataset_splits=1, collectives=CollectiveAlgorithms(all_reduce="ring"))
    ring = group()
    closed = collective_cost("all_reduce", 1e9, ring).time
    # Reductions read and write memory, which is no part of the closed form.
    simulated = simulated_time("all_reduce", 1e9, ring, backend, 1e18)
    assert simulated == pytest.approx(closed, rel=0.01)
