"""Blocks, pipelines and whole machines that the simulator runs."""

import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow import load_hardware, load_model, predict
from deepflow.astra import machine, modes
from deepflow.astra.export import Call, Item, TraceBuilder
from deepflow.network.graph import NetworkError
from deepflow.network.program import Program
from deepflow.network.simulate import simulate_events
from deepflow.prediction import TIME_COLUMNS

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
BLOCKS = ("full_astrasim_hierarchical", "hybrid_congestion")
FLATTENED = "full_astrasim_flattened"
SHALLOW = {"num_layers": 2, "global_batch_size": 8}
SMALL = {"num_layers": 4, "global_batch_size": 16}
LAYOUTS = {
    "Llama3.1-8B": (SMALL, {"tensor": 2, "pipeline": 2, "context": 2}),
    "Mixtral-8x7B": (SMALL, {"tensor": 2, "expert": 4}),
    "LSTM": ({}, {"t": "RC", "kp1": 2, "kp2": 2, "data": 4}),
    "GEMM": ({}, {"t": "RC", "kp1": 4, "kp2": 4}),
}


def point(name, mode, model=None, layout=None, nodes=2, **changes):
    """A prediction without a fallback."""
    presets = LAYOUTS[name]
    overrides = {
        "system_hierarchy.num_nodes": nodes,
        "execution_backend.model": "astra" if mode else "analytical",
        "execution_backend.astra.mode": mode or "hybrid",
        "execution_backend.astra.fallback": "error",
        **{f"parallelism.{key}": value for key, value in (layout or presets[1]).items()},
        **changes,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hardware = load_hardware(H100, overrides)
    model = load_model(f"configs/model-config/{name}.yaml", presets[0] | (model or {}))
    return predict(hardware, model)


@pytest.mark.parametrize("mode", BLOCKS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_kind_of_model_runs_and_its_times_add_up(name, mode):
    simulated, hybrid = point(name, mode), point(name, "hybrid")
    assert (simulated.backend_used, simulated.fallback_reason) == ("astra", "")
    parts = [value for key in TIME_COLUMNS if (value := getattr(simulated, key)) is not None]
    assert sum(parts) == pytest.approx(simulated.time_s)
    assert min(parts) >= 0
    assert simulated.time_gemm_s == hybrid.time_gemm_s
    assert simulated.inter_node_bytes == hybrid.inter_node_bytes
    assert simulated.peak_memory_bytes == hybrid.peak_memory_bytes


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["none", "backward", "full"]),
    st.booleans(),
    st.sampled_from(["ring", "switch", "fully_connected"]),
)
def test_congestion_is_never_faster(tensor, overlap, sequence_parallel, topology):
    layout = {
        "tensor": tensor,
        "overlap_tensor_communication": overlap,
        "sequence_parallel": sequence_parallel,
    }
    unaware, aware = (
        point("Llama3.1-8B", mode, SMALL, layout, **{"network_topology.intra_node": topology})
        for mode in ("full_astrasim_hierarchical", "hybrid_congestion")
    )
    assert aware.time_s >= unaware.time_s * (1 - 1e-5)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([2, 4, 8]),
    st.booleans(),
    st.sampled_from(["fused", "eager"]),
    st.sampled_from(["ring", "switch", "fully_connected"]),
)
def test_where_nothing_overlaps_simulated_blocks_are_their_operators(
    tensor, sequence_parallel, fusion, topology
):
    layout = {"tensor": tensor, "pipeline": 1, "sequence_parallel": sequence_parallel}
    changes = {"network_topology.intra_node": topology, "sw_param.kernel_fusion": fusion}
    blocks, alone = (
        point("Llama3.1-8B", mode, SMALL, layout, nodes=1, **changes)
        for mode in ("full_astrasim_hierarchical", "hybrid")
    )
    assert blocks.time_s == pytest.approx(alone.time_s, rel=0.01)


@pytest.mark.parametrize("mode", [*BLOCKS, FLATTENED])
@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 4, "pipeline": 4},
        {"tensor": 8, "pipeline": 2, "schedule": "interleaved"},
        {"tensor": 2, "pipeline": 2, "context": 4},
        {"tensor": 1, "pipeline": 4, "schedule": "zero_bubble"},
        {"pipeline": 4, "schedule": "gpipe", "overlap_gradient_reduction": True},
    ],
)
def test_a_network_without_limits_leaves_the_computations(mode, layout):
    free = {
        f"{key}": value
        for where in ("intra", "inter")
        for key, value in (
            (f"tech_param.network.{where}_node.latency", 2e-9),
            (f"system_hierarchy.{where}_derate", 1e-6),
        )
    }
    simulated, closed = (
        point("Llama3.1-8B", mode, SMALL | {"tie_embeddings": True}, layout, **free)
        for mode in (mode, "")
    )
    assert simulated.time_s == pytest.approx(closed.time_s, rel=0.01)


def test_one_device_has_no_network_to_simulate():
    one = {"system_hierarchy.num_devices_per_node": 1}
    times = [
        point("Llama3.1-8B", mode, SMALL, {"tensor": 1}, nodes=1, **one).time_s
        for mode in ("", "hybrid", *BLOCKS, FLATTENED)
    ]
    assert times == pytest.approx(times[:1] * len(times), rel=1e-6)


ITEMS = st.lists(
    st.one_of(
        st.builds(Item, compute=st.floats(0, 1e-3)),
        st.builds(Item, link=st.floats(0, 1e-3), beside=st.integers(0, 3)),
        st.builds(
            Item,
            call=st.builds(Call, st.just("all_reduce"), st.just("x"), st.integers(1, 10**8)),
            beside=st.integers(0, 3),
        ),
    ),
    max_size=12,
)


@given(ITEMS)
def test_a_trace_runs_every_operator_once_and_nothing_before_what_it_needs(items):
    trace = TraceBuilder()
    ends = trace.chain(items, (), lambda call: [("ALL_REDUCE", int(call.message_bytes), 0, None)])
    computed = sum((node.num_ops or 0) // 1000 for node in trace.nodes if node.kind == "COMP")
    waited = sum(node.duration_us for node in trace.nodes)
    sent = [node.size_bytes for node in trace.nodes if node.collective == "ALL_REDUCE"]
    assert computed == pytest.approx(sum(item.compute for item in items) * 1e9, abs=len(items))
    assert waited == pytest.approx(sum(item.link for item in items) * 1e6, abs=len(items))
    assert sent == [item.call.message_bytes for item in items if item.call is not None]
    # Computations are a chain, and everything is waited for at the end.
    needed = set(ends)
    for node in reversed(trace.nodes):
        assert node.id in needed
        needed.update(node.dependencies)


@given(st.lists(ITEMS, min_size=1, max_size=3), st.integers(1, 3))
def test_a_piece_put_into_a_trace_is_the_same_as_built_there(chains, times):
    def phases(call):
        return [("ALL_REDUCE", int(call.message_bytes), 0, None)]

    built, put = TraceBuilder(), TraceBuilder()
    piece = put.template(chains, phases)
    ends: list[tuple[int, ...]] = []
    for trace in (built, put):
        after = (*trace.receive(8, 1, 1), *trace.receive(8, 1, 2))
        for _ in range(times):
            if trace is put:
                after = trace.put(piece, after)
            else:
                for items in chains:
                    after = trace.chain(items, after, phases)
            trace.send(8, 1, 3, after)
        ends.append(after)
    assert built.nodes == put.nodes
    assert set(ends[0]) == set(ends[1])
    nodes = built.nodes
    assert Program.of(nodes).nodes() == nodes


def test_an_operator_waits_for_what_no_longer_runs_beside_it():
    call = Call("all_reduce", "x", 8.0)
    trace = TraceBuilder()
    trace.chain(
        [Item(1e-6), Item(call=call, beside=1), Item(2e-6), Item(3e-6), Item(4e-6)],
        (),
        lambda call: [("ALL_REDUCE", 8, 0, None)],
    )
    shown = [(node.kind, (node.num_ops or 0) // 1000, node.dependencies) for node in trace.nodes]
    assert shown == [
        ("COMP", 1000, ()),
        ("COLL", 0, (0,)),
        ("COMP", 2000, (0,)),
        ("COMP", 7000, (1, 2)),
    ]


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 8},
        {"tensor": 4, "pipeline": 2},
        {"tensor": 2, "context": 2, "pipeline": 2},
        {"tensor": 8, "pipeline": 2, "zero": 1},
        {"tensor": 4, "pipeline": 2, "micro_batch_size": 4},
        {"tensor": 4, "pipeline": 2, "schedule": "zero_bubble"},
        {"tensor": 2, "pipeline": 2, "schedule": "gpipe"},
        {"tensor": 8, "pipeline": 1, "overlap_tensor_communication": "full"},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_all_ranks_together_take_about_as_long_as_blocks_and_pipeline(layout, tied):
    model = SHALLOW | {"tie_embeddings": tied}
    layout = {"overlap_gradient_reduction": False} | layout
    together, apart = (point("Llama3.1-8B", mode, model, layout) for mode in (FLATTENED, BLOCKS[0]))
    assert together.time_s == pytest.approx(apart.time_s, rel=0.1)
    assert (together.backend_used, together.fallback_reason) == ("astra", "")
    parts = [value for key in TIME_COLUMNS if (value := getattr(together, key)) is not None]
    assert sum(parts) == pytest.approx(together.time_s)
    assert min(parts) >= 0


def test_experts_on_all_ranks_together():
    layout = {"tensor": 2, "expert": 4, "overlap_gradient_reduction": False}
    together, apart = (
        point("Mixtral-8x7B", mode, SHALLOW, layout) for mode in (FLATTENED, BLOCKS[0])
    )
    assert together.time_s == pytest.approx(apart.time_s, rel=0.1)


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        {"pipeline": 1},
        {"pipeline": 1, "recompute": "full"},
        {"pipeline": 1, "recompute": "full", "release_distance": 10_000_000},
        {"pipeline": 1, "schedule": "zero_bubble"},
    ],
)
def test_sharded_weights_and_gradients_travel_as_the_schedule_says(zero, prefetch, layout):
    layout = {"tensor": 1, "zero": zero, "overlap_parameter_gather": prefetch} | layout
    model = SMALL | {"seq_len": 512}
    together, apart = (point("Llama3.1-8B", mode, model, layout) for mode in (FLATTENED, BLOCKS[0]))
    assert together.time_s == pytest.approx(apart.time_s, rel=1e-3)


@pytest.mark.parametrize(
    ("layout", "layers"),
    [
        ({"data": 16}, 5),
        ({"pipeline": 4, "data": 1}, 5),
        ({"pipeline": 2, "data": 1}, 3),
        ({"t": "RC", "kp1": 1, "kp2": 4, "data": 1}, 2),
        ({"t": "CR", "kp1": 4, "data": 1}, 2),
    ],
)
def test_an_lstm_on_all_ranks_together_is_its_schedule_where_nobody_shares_a_link(layout, layers):
    ranks = layout.get("kp1", 1) * layout.get("kp2", 1) * layout.get("pipeline", 1) * layout["data"]
    model = {"num_layers": layers, "seq_len": 7, "vocab_size": 20_000}
    per_node = {"system_hierarchy.num_devices_per_node": min(ranks, 8)}
    together, apart = (
        point("LSTM", mode, model, layout, nodes=-(-ranks // 8), **per_node)
        for mode in (FLATTENED, BLOCKS[0])
    )
    assert together.time_s == pytest.approx(apart.time_s, rel=1e-4)
    assert (together.backend_used, together.fallback_reason) == ("astra", "")


def test_an_lstm_whose_stages_and_replicas_share_links_takes_longer_together():
    layout, model = {"pipeline": 4, "data": 4}, {"num_layers": 6}
    together, apart = (point("LSTM", mode, model, layout) for mode in (FLATTENED, BLOCKS[0]))
    assert apart.time_s < together.time_s < 1.1 * apart.time_s


@pytest.mark.parametrize("data", [1, 4])
def test_a_product_on_all_ranks_together(data):
    layout = {"t": "RC", "kp1": 2, "kp2": 8 // data, "data": data}
    together, apart = (
        point("GEMM", mode, {"backward": True}, layout) for mode in (FLATTENED, BLOCKS[0])
    )
    assert together.time_s == pytest.approx(apart.time_s, rel=0.1)
    parts = [value for key in TIME_COLUMNS if (value := getattr(together, key)) is not None]
    assert sum(parts) == pytest.approx(together.time_s)


@pytest.mark.parametrize(
    ("name", "layout", "model", "changes", "words"),
    [
        ("Llama3.1-8B", {"tensor": 2}, {"global_batch_size": 2**20}, {}, "more than"),
        ("Llama3.1-8B", None, {}, {"system_hierarchy.dp_inter": True}, "places"),
    ],
)
def test_what_cannot_be_simulated_together_says_why(name, layout, model, changes, words):
    with pytest.raises(NetworkError, match=words):
        point(name, FLATTENED, model, layout, **changes)


@pytest.mark.parametrize("short_cut", ["one rank of a stage", "collectives in step"])
@pytest.mark.parametrize(
    ("name", "layout", "model"),
    [
        ("Llama3.1-8B", {"tensor": 4, "pipeline": 2}, {"tie_embeddings": True}),
        ("Llama3.1-8B", {"tensor": 1, "pipeline": 2, "schedule": "zero_bubble"}, {}),
        ("Llama3.1-8B", {"tensor": 2, "pipeline": 2, "zero": 3, "recompute": "full"}, {}),
        ("Mixtral-8x7B", {"tensor": 2, "expert": 4}, {}),
        ("LSTM", {"t": "RC", "kp1": 2, "kp2": 2, "pipeline": 2}, {"seq_len": 3}),
        ("GEMM", {"t": "RC", "kp1": 2, "kp2": 2, "data": 4}, {"backward": True}),
    ],
)
def test_short_cuts_of_the_whole_machine_are_exact(monkeypatch, short_cut, name, layout, model):
    model = model | (SHALLOW if "-" in name else {})

    def time():
        return point(name, FLATTENED, model, layout).time_s

    if short_cut == "collectives in step":
        monkeypatch.setattr(machine, "simulate_parts", lambda *_: None)
    shortest = time()

    runs = []

    def every_message(*arguments, exact_order):
        runs.append(arguments)
        return simulate_events(*arguments)

    monkeypatch.setattr(machine, "simulate_parts", lambda *_: None)
    monkeypatch.setattr(modes, "simulate", every_message)
    modes.chain_time.cache_clear()
    assert shortest == time()
    assert max(len(traces) for traces, *_ in runs) == 16


@pytest.mark.parametrize("tensor", [4, 8])
@pytest.mark.parametrize("topology", ["ring", "mesh", "torus_2d", "mesh_2d", "fat_tree", "switch"])
def test_groups_lie_in_a_machine_as_its_ranks_do(topology, tensor):
    # Of 16 devices in a line tensor groups take up a part, and data groups lie across.
    changes = {
        "system_hierarchy.num_devices_per_node": 16,
        "network_topology.intra_node": topology,
        "tech_param.network.intra_node.latency": 5e-6,
    }
    alone, together = (
        point("Llama3.1-8B", mode, SHALLOW, {"tensor": tensor}, nodes=1, **changes)
        for mode in ("hybrid", FLATTENED)
    )
    assert alone.time_s == pytest.approx(together.time_s, rel=0.05)


@pytest.mark.skipif(not os.environ.get("ASTRA_SIM_BINARY"), reason="no ASTRA-sim here")
@pytest.mark.parametrize("mode", [BLOCKS[0], FLATTENED])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_real_binary_agrees_to_the_nanosecond(name, mode):
    model = {} if name in ("LSTM", "GEMM") else SHALLOW
    embedded, real = (
        point(name, mode, model, **{"execution_backend.astra.simulator": simulator})
        for simulator in ("embedded", "binary")
    )
    assert real.time_s == embedded.time_s


@pytest.mark.skipif(
    not os.environ.get("ASTRA_SIM_BINARY_CONGESTION_AWARE"), reason="no ASTRA-sim here"
)
@pytest.mark.parametrize("topology", ["ring", "switch", "fully_connected"])
def test_a_real_binary_agrees_on_congestion(topology):
    embedded, real = (
        point(
            "Llama3.1-8B",
            "hybrid_congestion",
            SHALLOW,
            {"tensor": 8, "data": 1},
            nodes=1,
            **{
                "execution_backend.astra.simulator": simulator,
                "network_topology.intra_node": topology,
            },
        )
        for simulator in ("embedded", "binary")
    )
    assert real.time_s == embedded.time_s
