"""Single collectives as models: what columns say, and what no network can break."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow import load_hardware, load_model, predict
from deepflow.config import load_model_config, split_overrides
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.explain import explain
from deepflow.prediction import TIME_COLUMNS
from deepflow.schedule.collective import collective_parts
from deepflow.sweep.expand import load_sweep
from deepflow.validate.collectives import predicted_seconds
from test_workflow import Project, project  # noqa: F401 (a fixture)

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
ONE_NETWORK = "configs/hardware-config/one_network.yaml"
MODEL = "configs/model-config/collective.yaml"
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
TOPOLOGIES = ("ring", "mesh", "mesh_2d", "torus_2d", "switch", "fat_tree", "fully_connected")


def on_nodes(kind="all_reduce", size="64 MiB", backend="analytical", nodes=4, repeats=1, **changes):
    hardware = {"system_hierarchy.num_nodes": nodes, "backend.model": backend, **changes}
    model = {"kind": kind, "message_size": size, "repeats": repeats}
    return load_hardware(H100, hardware), load_model(MODEL, model)


def on_one_network(topology, devices=16, kind="all_reduce", size="16 MiB", **changes):
    hardware = {
        "network_topology.intra_node": topology,
        "system_hierarchy.num_devices_per_node": devices,
        **changes,
    }
    return predict(
        load_hardware(ONE_NETWORK, hardware),
        load_model(MODEL, {"kind": kind, "message_size": size}),
    )


@pytest.mark.parametrize("backend", ["analytical", "astra"])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_agree_with_one_another(kind, backend):
    row = predict(*on_nodes(kind, "1 MiB", backend, repeats=3))
    assert (row.status, row.backend_used, row.num_devices) == ("ok", backend, 32)
    parts = [value for name in TIME_COLUMNS if (value := getattr(row, name)) is not None]
    assert sum(parts) == pytest.approx(row.time_s)
    assert row.algorithm_bandwidth * row.time_s == pytest.approx(3 * 2**20)
    factor = {"all_reduce": 2 * 31 / 32, "send": 1}.get(kind, 31 / 32)
    assert row.bus_bandwidth == pytest.approx(row.algorithm_bandwidth * factor)
    single = predict(*on_nodes(kind, "1 MiB", backend))
    assert row.time_s == pytest.approx(3 * single.time_s)
    assert row.inter_node_bytes == pytest.approx(3 * single.inter_node_bytes)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_a_row_of_measurements_is_predicted_as(kind):
    hardware, model = on_nodes(kind, "8 MiB", nodes=2)
    op = {"send": "send_recv"}.get(kind, kind)
    row = {"op": op, "ranks": "16", "bytes": str(8 * 2**20), "nodes": "2"}
    assert predict(hardware, model).time_s == pytest.approx(predicted_seconds(row, hardware))


def test_a_ring_sends_each_byte_as_often_as_it_has_to():
    changes = {"backend.astra.collectives.all_reduce": "ring"}
    row = predict(*on_nodes(**changes))
    assert row.intra_node_bytes + row.inter_node_bytes == pytest.approx(32 * 2 * 31 / 32 * 2**26)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["analytical", "astra"]),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(2**10, 2**30),
    st.floats(1, 8),
)
def test_more_to_send_is_never_faster_and_faster_links_never_slower(
    kind, backend, nodes, size, times
):
    base = predict(*on_nodes(kind, size, backend, nodes)).time_s
    assert predict(*on_nodes(kind, size * times, backend, nodes)).time_s >= base * (1 - 1e-9)
    for where in ("intra", "inter"):
        slower = {f"system_hierarchy.{where}_derate": times}
        assert predict(*on_nodes(kind, size, backend, nodes, **slower)).time_s >= base * (1 - 1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"message_size": 0}, "model.*message_size = 0.*too small"),
        ({"message_size": "1 MB/s"}, "message_size"),
        ({"kind": "broadcast"}, "kind = 'broadcast'.*all_reduce"),
        ({"repeats": 0}, "repeats"),
        ({"message_bytes": 1}, "message_size"),
    ],
)
def test_messages_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_model_config(MODEL, changes)


def test_a_single_device_has_nobody_to_talk_to():
    alone = {"system_hierarchy.num_devices_per_node": 1}
    with pytest.raises(InfeasiblePoint, match="at least two devices"):
        predict(*on_nodes(nodes=1, **alone))


def test_a_path_without_its_root_is_recognised():
    with pytest.raises(ConfigError, match=re.escape("did you mean 'model.message_size'?")):
        split_overrides({"message_size": 1})


@pytest.mark.parametrize("mode", ["hybrid", "hybrid_congestion"])
@pytest.mark.parametrize("backend", ["analytical", "astra"])
@pytest.mark.parametrize("kind", KINDS)
def test_explanations_add_up_and_name_the_algorithm(kind, backend, mode):
    hardware, model = on_nodes(kind, "4 MiB", backend, **{"backend.astra.mode": mode})
    row, parts = predict(hardware, model), collective_parts(hardware, model)
    times = (parts.bandwidth, parts.latency, parts.rest, parts.copy)
    assert sum(times) == pytest.approx(row.time_collective_s)
    assert min(times) >= -1e-9 * row.time_s
    assert f"algorithm: {parts.algorithm}" in explain(hardware, model)


def test_an_algorithm_that_is_asked_for_is_the_one_that_is_explained():
    changes = {"backend.astra.collectives.all_reduce": "halvingDoubling"}
    assert collective_parts(*on_nodes(**changes)).algorithm == "halvingDoubling"
    assert collective_parts(*on_nodes(**changes)).steps == 2 * (3 + 2)


@pytest.mark.parametrize("kind", KINDS)
def test_contention_makes_nothing_faster(kind):
    for topology in ("ring", "switch", "fully_connected"):
        alone, contended = (
            on_one_network(topology, kind=kind, **{"backend.astra.mode": mode}).time_s
            for mode in ("hybrid", "hybrid_congestion")
        )
        assert contended >= alone * (1 - 1e-9)


def test_gradients_are_reduced_with_contention_too():
    changes = {"parallelism.overlap_gradient_reduction": False, "parallelism.tensor": 1}
    model = load_model(
        "configs/model-config/Llama3.1-8B.yaml", {"num_layers": 2, "global_batch_size": 32}
    )
    alone, contended = (
        predict(on_nodes(backend="astra", **changes, **{"backend.astra.mode": mode})[0], model)
        for mode in ("hybrid", "hybrid_congestion")
    )
    assert contended.backend_used == "astra"
    assert contended.time_data_communication_s > 1.1 * alone.time_data_communication_s
    assert contended.time_gemm_s == alone.time_gemm_s


def test_what_would_take_hours_says_so():
    direct = {"backend.astra.collectives.all_reduce": "direct"}
    with pytest.raises(DeepFlowError, match="cross links about"):
        on_one_network("ring", 1024, **direct)
    assert on_one_network("fully_connected", 1024, **direct).status == "ok"


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(TOPOLOGIES),
    st.sampled_from(["ring", "direct", "halvingDoubling"]),
    st.sampled_from([4, 8, 16]),
)
def test_no_topology_beats_the_bandwidth_of_a_device(topology, algorithm, devices):
    chosen = {"backend.astra.collectives.all_reduce": algorithm}
    row = on_one_network(topology, devices, **chosen)
    # A ring and a mesh have two links of that bandwidth on a device, one to either side.
    both_ways = 2 if topology in ("ring", "mesh", "mesh_2d", "torus_2d") else 1
    assert row.bus_bandwidth <= both_ways * 400e9
    slower = on_one_network(
        topology, devices, **chosen, **{"tech_param.network.intra_node.bandwidth": "200 GB/s"}
    )
    assert slower.time_s > row.time_s


def test_more_ways_across_the_machine_serve_an_exchange_of_all_with_all():
    times = [
        on_one_network(topology, 64, "all_to_all").time_s
        for topology in ("fully_connected", "torus_2d", "mesh_2d", "mesh")
    ]
    assert times == sorted(times)
    assert times[-1] > 10 * times[0]


def test_oversubscribed_trees_are_slower_and_closed_forms_say_that_they_cannot_tell():
    ratios = [{"network_topology.intra_node_oversubscription": ratio} for ratio in (1, 2, 4)]
    times = [on_one_network("fat_tree", 16, "all_to_all", **ratio).time_s for ratio in ratios]
    assert times == sorted(times)
    assert times[0] < times[2]
    with pytest.raises(InfeasiblePoint, match="oversubscription"):
        on_one_network("fat_tree", **ratios[1], **{"backend.model": "analytical"})


@pytest.mark.parametrize(
    "name", ["collective_algorithms", "collective_sizes", "faulty_link", "faulty_link_llama2_70b"]
)
def test_the_shipped_sweeps_have_points_that_can_be_predicted(name, repository, monkeypatch):
    monkeypatch.chdir(repository)
    sweep = load_sweep(f"sweeps/{name}.yaml")
    point = next(iter(sweep.points()))
    base = point.base
    hardware = load_hardware(base.hardware_file, point.hardware_overrides)
    model = load_model(base.model_file, point.model_overrides)
    row = predict(hardware, model)
    assert row.time_s > 0
    assert row.backend_used == row.backend_requested


def test_points_without_a_simulation_are_seen_everywhere(project: Project):  # noqa: F811
    project.sweep(
        "falls_back",
        """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/collective.yaml
set: {backend.model: astra}
grid:
  hardware.network_topology.intra_node: [switch, hypercube]
  model.message_size: ["1 KiB", "1 MiB"]
plots:
  - {kind: line, name: line, x: message_size, y: time_s, hue: intra_node, log_x: true}
  - {kind: heatmap, name: heatmap, x: message_size, y: intra_node, value: time_s}
""",
    )
    done = project.run("falls_back")
    assert done.code == 0, done.text
    results = project.folder / "results" / "falls_back"
    table = project.table("falls_back").set_index(["intra_node", "message_size"])
    fell_back = table.loc["hypercube"]
    assert fell_back["backend_used"].tolist() == ["analytical"] * 2
    assert fell_back["fallback_reason"].str.contains("hypercube").all()
    assert table.loc["switch"]["backend_used"].tolist() == ["astra"] * 2
    for log in (results / "logs/points").glob("*.log"):
        warnings = [line for line in log.read_text().splitlines() if "warning" in line]
        assert len(warnings) == ("hypercube" in log.name)
        assert all("no topology 'hypercube'" in line for line in warnings)
    gathered = (results / "logs/gather.log").read_text()
    assert gathered.count("2 of 4 points fell back to closed forms: the simulator has no") == 1
    for plot in ("line", "heatmap"):
        figure = (results / f"plots/{plot}.svg").read_text()
        assert "2 fell back to closed forms" in figure
        assert "closed forms, not simulated" in figure
