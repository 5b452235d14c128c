"""The simulator against ASTRA-sim's binaries, and its short cuts against its event model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import network_cases
from deepflow.network.event_model import Inputs
from deepflow.network.graph import (
    Network,
    NetworkError,
    Node,
    Options,
    RemoteMemory,
    SystemSettings,
)
from deepflow.network.lockstep import Part, simulate_lockstep
from deepflow.network.program import Program
from deepflow.network.simulate import CollectiveTimes, simulate, simulate_events, simulate_parts
from deepflow.network.symmetric import simulate_symmetric

CASES = network_cases.read("cases")
BAD_INPUTS = network_cases.read("bad_inputs")
ALGORITHMS = ("ring", "direct", "direct2", "direct3", "halvingDoubling")
MESSAGES_FOR_A_QUICK_TEST = 60_000


def messages(entry: dict[str, Any]) -> int:
    """A rough upper bound on the messages of a case."""
    ranks = 1
    for count in entry["network"]["npus_count"]:
        ranks *= count
    chunks = entry["system"]["preferred-dataset-splits"]
    nodes = max(len(nodes) for nodes in entry["graph"].values())
    return int(ranks * ranks * chunks * nodes * 2)


QUICK = [entry for entry in CASES if messages(entry) < MESSAGES_FOR_A_QUICK_TEST][::6]


def system(algorithm: str = "ring", dimensions: int = 1, **changes: Any) -> SystemSettings:
    algorithms = (algorithm,) * dimensions
    values: dict[str, Any] = {
        "scheduling_policy": "LIFO",
        "collective_optimization": "localBWAware",
        "preferred_dataset_splits": 4,
        "local_mem_bw": 1600,
        "endpoint_delay": 10,
        "all_reduce_implementation": algorithms,
        "all_gather_implementation": algorithms,
        "reduce_scatter_implementation": algorithms,
        "all_to_all_implementation": algorithms,
    }
    return SystemSettings(**{**values, **changes})


def one_dimension(ranks: int, topology: str = "Switch") -> Network:
    return Network((topology,), (ranks,), (50.0,), (500.0,))


def collective(kind: str, size: int = 1_048_576, **values: Any) -> Node:
    return Node(values.pop("id", 1), "COLL", collective=kind, size_bytes=size, **values)


@pytest.mark.parametrize("backend", network_cases.BACKENDS)
@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry["id"])
def test_cycles_of_every_rank_are_those_of_the_binary(entry: dict[str, Any], backend: str) -> None:
    case = network_cases.build(entry, network_cases.BACKENDS[backend])
    arguments = (case.traces, case.network, case.system, case.options, case.groups)
    expected = entry["result"][backend]
    if expected["rc"] != 0 or None in expected["cycles"]:
        with pytest.raises(NetworkError):
            simulate(*arguments)
        return
    for run in (simulate, simulate_events):
        result = run(*arguments)
        assert list(result.cycles) == expected["cycles"]
        assert list(result.exposed) == expected["exposed"]
        assert list(result.order) == expected["order"]


def fault_of_a_file(entry: dict[str, Any]) -> bool:
    """Whether the fault lies in the bytes of a file or the command line, not in its content."""
    nodes = [node for graph in entry["case"]["graph"].values() for node in graph]
    if any(key in node for node in nodes for key in ("drop", "raw")):
        return True
    if entry["name"].startswith(("ETs without", "npus_count 2 with")):
        return True
    if entry["rc"] != 0 and entry["case"] == BAD_INPUTS[0]["case"]:
        return True
    try:
        network_cases.build(entry["case"], congestion=False)
    except (KeyError, ValueError):
        return True
    return False


@pytest.mark.parametrize(
    "entry",
    [entry for entry in BAD_INPUTS if not fault_of_a_file(entry)],
    ids=lambda entry: entry["name"].replace(" ", "-"),
)
def test_a_bad_input_is_an_error_and_a_good_one_gives_the_binarys_cycles(
    entry: dict[str, Any],
) -> None:
    case = network_cases.build(entry["case"], congestion=entry["backend"] == "aware")
    try:
        result = simulate(case.traces, case.network, case.system, case.options, case.groups)
    except NetworkError as error:
        assert "\n" not in str(error)
        assert len(str(error)) > 20
    else:
        assert (entry["rc"], entry["finished"]) == (0, entry["of"])
        assert sorted(set(result.cycles)) == entry["cycles"]


def test_a_deadlock_names_the_ranks_and_what_they_wait_for() -> None:
    nodes = [collective("ALL_REDUCE")]
    traces = [[Node(1, "COMP", duration_us=5)], nodes, nodes, nodes]
    with pytest.raises(NetworkError, match=r"3 of 4 ranks.*rank 1 at node 1 \(ALL_REDUCE.*rank 0"):
        simulate(traces, one_dimension(4), system())


def test_remote_memory_takes_latency_and_size_over_bandwidth() -> None:
    nodes = (
        Node(1, "MEM_LOAD", tensor_bytes=1_048_576),
        Node(2, "COMP", duration_us=5, dependencies=(1,)),
    )
    memory = RemoteMemory(latency=100, bandwidth=50)
    result = simulate([nodes] * 4, one_dimension(4), system(), memory=memory)
    assert set(result.cycles) == {26071}


@st.composite
def symmetric_inputs(draw: st.DrawFn) -> Inputs:
    congestion = draw(st.booleans())
    dimensions = 1 if congestion else draw(st.sampled_from([1, 1, 2]))
    kinds = draw(st.tuples(*[st.sampled_from(["Ring", "Switch", "FullyConnected"])] * dimensions))
    npus = draw(st.tuples(*[st.sampled_from([2, 3, 4, 5, 8])] * dimensions))
    assume(not (congestion and kinds[0] == "Ring" and npus[0] == 2))
    algorithms = draw(st.tuples(*[st.sampled_from(ALGORITHMS)] * dimensions))
    assume(
        all(
            name != "halvingDoubling" or not count & (count - 1)
            for name, count in zip(algorithms, npus, strict=True)
        )
    )
    names = ["ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER"]
    names += [] if "halvingDoubling" in algorithms else ["ALL_TO_ALL"]
    nodes = []
    for number in range(draw(st.integers(1, 5))):
        dependencies = draw(st.sets(st.integers(0, number - 1))) if number else set()
        if draw(st.booleans()):
            size = draw(st.sampled_from([100, 4097, 65536, 1_000_003]))
            node = collective(
                draw(st.sampled_from(names)), size, id=number, dependencies=tuple(dependencies)
            )
        else:
            duration = draw(st.integers(0, 3))
            node = Node(number, "COMP", dependencies=tuple(dependencies), duration_us=duration)
        nodes.append(node)
    settings_of_system = system(
        endpoint_delay=draw(st.sampled_from([1, 10, 500])),
        local_mem_bw=draw(st.sampled_from([0.5, 50, 1e6])),
        preferred_dataset_splits=draw(st.integers(1, 5)),
        active_chunks_per_dimension=draw(st.integers(1, 3)),
        collective_optimization=draw(st.sampled_from(["baseline", "localBWAware"])),
        all_reduce_implementation=algorithms,
        all_gather_implementation=algorithms,
        reduce_scatter_implementation=algorithms,
        all_to_all_implementation=algorithms,
    )
    rates = draw(st.tuples(*[st.sampled_from([1.0, 46.0, 400.0])] * dimensions))
    latency = draw(st.tuples(*[st.sampled_from([0.0, 0.5, 10.0, 936.25])] * dimensions))
    options = Options(congestion=congestion, num_queues_per_dim=draw(st.integers(1, 3)))
    network = Network(kinds, npus, rates, latency)
    traces = [tuple(nodes)] * network.ranks
    return Inputs(traces, network, settings_of_system, options, {}, None)


@settings(max_examples=150, deadline=None)
@given(symmetric_inputs(), st.booleans())
def test_one_rank_for_all_gives_what_the_event_model_gives(
    inputs: Inputs, exact_order: bool
) -> None:
    arguments = (inputs.traces, inputs.network, inputs.system, inputs.options)
    try:
        expected = simulate_events(*arguments)
    except NetworkError:
        with pytest.raises(NetworkError):
            simulate(*arguments)
        return
    result = simulate_symmetric(inputs, exact_order)
    assume(result is not None)
    assert result is not None
    assert result.cycles == expected.cycles
    assert result.exposed == expected.exposed
    if exact_order:
        assert result.order == expected.order


@st.composite
def staged_inputs(draw: st.DrawFn) -> Inputs:
    """Stages of equal ranks with a group each, which hand messages to the next stage."""
    stages, width = draw(st.integers(1, 3)), draw(st.sampled_from([2, 4]))
    assume(stages * width > 2)
    kinds = st.sampled_from(["Ring", "Switch", "FullyConnected"])
    if draw(st.booleans()) and stages > 1:
        network = Network((draw(kinds), draw(kinds)), (width, stages), (50.0, 7.0), (10.0, 936.25))
    else:
        network = Network((draw(kinds),), (stages * width,), (50.0,), (10.0,))
    algorithm = draw(st.sampled_from(["ring", "direct", "halvingDoubling"]))
    groups = {
        stage + 1: tuple(range(stage * width, (stage + 1) * width)) for stage in range(stages)
    }
    names = ["ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER"]
    works = st.one_of(
        st.integers(0, 40), st.tuples(st.sampled_from(names), st.sampled_from([4096, 1_000_003]))
    )
    scripts = [draw(st.lists(works, max_size=3)) for _ in range(2 * stages)]
    last = draw(st.sampled_from(["", "ALL_REDUCE"]))
    traces = []
    for rank in range(stages * width):
        stage = rank // width
        nodes: list[Node] = []

        def add(kind: str, nodes: list[Node] = nodes, **values: Any) -> None:
            dependencies = (len(nodes) - 1,) if nodes else ()
            nodes.append(Node(len(nodes), kind, dependencies=dependencies, **values))

        def run(script: list[Any], group: int, add: Any = add) -> None:
            for work in script:
                if isinstance(work, int):
                    add("COMP", duration_us=work)
                else:
                    add("COLL", collective=work[0], size_bytes=work[1], group=group)

        if stage:
            add("RECV", peer=rank - width, size_bytes=65536, tag=1)
        run([1, *scripts[2 * stage]], stage + 1 if stages > 1 else 0)
        if stage + 1 < stages:
            add("SEND", peer=rank + width, size_bytes=65536, tag=1)
        run(scripts[2 * stage + 1], stage + 1 if stages > 1 else 0)
        if last and stages == 1:
            add("COLL", collective=last, size_bytes=100_000)
        traces.append(tuple(nodes))
    values = system(
        algorithm,
        len(network.npus),
        active_chunks_per_dimension=draw(st.integers(1, 2)),
        endpoint_delay=draw(st.sampled_from([1, 10, 1000])),
    )
    return Inputs(traces, network, values, Options(), groups, None)


@settings(max_examples=100, deadline=None)
@given(staged_inputs())
def test_collectives_in_step_give_what_the_event_model_gives(inputs: Inputs) -> None:
    try:
        result = simulate_lockstep(inputs)
    except NetworkError:
        result = None
    assume(result is not None)
    assert result is not None
    expected = simulate_events(
        inputs.traces, inputs.network, inputs.system, inputs.options, inputs.groups
    )
    assert result.cycles == expected.cycles
    assert result.exposed == expected.exposed


@st.composite
def stages_of_equal_ranks(draw: st.DrawFn) -> tuple[list[list[Node]], Inputs]:
    """What the ranks of each stage run, and the same as one trace per rank.

    In the former peers are stages, group 1 are the ranks of a stage, and group 2 those of one place
    in the first and the last stage. Nodes depend on any nodes before them, so that they compete for
    lanes; times are such that many end in the same nanosecond.
    """
    stages, width = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    assume(stages * width > 1)
    latency, rate = draw(st.sampled_from([0.0, 500.0, 1000.0])), draw(st.sampled_from([1e6, 7.0]))
    kinds = st.sampled_from(["Ring", "Switch", "FullyConnected"])
    network = Network((draw(kinds),), (stages * width,), (rate,), (latency,))
    of_stage: list[dict[str, Any]] = [{"group": 1}]
    if (stages > 1 < width or width == 4) and draw(st.booleans()):
        npus = (width, stages) if stages > 1 else (2, 2)
        network = Network((draw(kinds), draw(kinds)), npus, (rate, 3.0), (latency, 250.0))
        line = {"involved_dimensions": (True, False)} if stages > 1 else {}
        of_stage.append({"group": 0, **line})
    names = st.sampled_from(["ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER"])
    shared = draw(st.lists(names, max_size=2)) if stages > 1 else []
    passed_on = [draw(st.integers(0, 2)) for _ in range(stages - 1)]
    scripts: list[list[Node]] = []
    for stage in range(stages):
        works: list[dict[str, Any]] = [
            {"kind": "COMP", "duration_us": draw(st.integers(0, 4))}
            for _ in range(draw(st.integers(1, 4)))
        ]
        if width > 1:
            works += [
                {"kind": "COLL", "collective": draw(names), "size_bytes": 4096}
                | draw(st.sampled_from(of_stage))
                for _ in range(draw(st.integers(0, 3)))
            ]
        if stage in (0, stages - 1):
            works += [
                {"kind": "COLL", "collective": name, "size_bytes": 3000, "group": 2}
                for name in shared
            ]
        for other, kind in ((stage + 1, "SEND"), (stage - 1, "RECV")):
            count = passed_on[min(stage, other)] if 0 <= other < stages else 0
            works += [
                {"kind": kind, "size_bytes": 65536, "tag": tag, "peer": other}
                for tag in range(count)
            ]
        works = draw(st.permutations(works))
        scripts.append(
            [
                Node(
                    number,
                    dependencies=tuple(draw(st.sets(st.integers(0, number - 1), max_size=2)))
                    if number
                    else (),
                    **work,
                )
                for number, work in enumerate(works)
            ]
        )
    groups = {
        stage + 1: tuple(range(stage * width, (stage + 1) * width)) for stage in range(stages)
    }
    across = {stages + 1 + place: (place, (stages - 1) * width + place) for place in range(width)}
    traces = [
        tuple(
            replace(
                of_rank(node, rank, stages, width),
                peer=None if node.peer is None else node.peer * width + rank % width,
            )
            for node in scripts[rank // width]
        )
        for rank in range(stages * width)
    ]
    values = system(
        draw(st.sampled_from(["ring", "direct", "halvingDoubling"])),
        len(network.npus),
        active_chunks_per_dimension=draw(st.integers(1, 2)),
        endpoint_delay=draw(st.sampled_from([1, 500, 1000])),
        local_mem_bw=draw(st.sampled_from([0.05, 1e6])),
    )
    wanted = groups | (across if stages > 1 else {})
    return scripts, Inputs(traces, network, values, Options(), wanted, None)


def of_rank(node: Node, rank: int, stages: int, width: int) -> Node:
    """A node with the communicator group that its family is for a rank."""
    numbers = {1: rank // width + 1, 2: stages + 1 + rank % width}
    return replace(node, group=numbers.get(node.group, 0))


@settings(max_examples=200, deadline=None)
@given(stages_of_equal_ranks())
def test_one_rank_of_a_stage_stands_for_the_others(given_: tuple[list[list[Node]], Inputs]) -> None:
    scripts, inputs = given_
    stages, width = len(scripts), inputs.network.ranks // len(scripts)
    parts = [
        Part(
            range(stage * width, (stage + 1) * width),
            Program.of(
                [
                    node if node.peer is None else replace(node, peer=node.peer * width)
                    for node in script
                ]
            ),
            lambda node, rank: of_rank(node, rank, stages, width),
        )
        for stage, script in enumerate(scripts)
    ]
    network, values, groups = inputs.network, inputs.system, inputs.groups
    result = simulate_parts(parts, network, values, groups)
    every_rank = simulate_lockstep(inputs)
    assume(result is not None or every_rank is not None)
    expected = simulate_events(inputs.traces, network, values, None, groups)
    for shown in (result, every_rank):
        if shown is not None:
            assert shown.cycles == expected.cycles
            assert shown.exposed == expected.exposed


def test_stages_of_a_pipeline_need_no_messages_within_collectives() -> None:
    def trace(rank: int) -> tuple[Node, ...]:
        stage = rank // 4
        work = collective("ALL_REDUCE", id=2, group=stage + 1, dependencies=(1,))
        if stage == 0:
            compute = Node(1, "COMP", duration_us=30)
            hand_over = Node(3, "SEND", peer=rank + 4, size_bytes=4096, tag=1, dependencies=(2,))
            return compute, work, hand_over
        arrival = Node(1, "RECV", peer=rank - 4, size_bytes=4096, tag=1)
        return arrival, work, Node(3, "COMP", duration_us=20, dependencies=(2,))

    traces = [trace(rank) for rank in range(8)]
    groups = {1: (0, 1, 2, 3), 2: (4, 5, 6, 7)}
    inputs = Inputs(traces, one_dimension(8), system(), Options(), groups, None)
    result = simulate_lockstep(inputs)
    assert result is not None
    assert result.cycles == simulate(traces, one_dimension(8), system(), None, groups).cycles


@pytest.mark.parametrize("congestion", [False, True])
@pytest.mark.parametrize("kind", ["ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER", "ALL_TO_ALL"])
@pytest.mark.parametrize("algorithm", ["ring", "direct", "halvingDoubling"])
def test_one_collective_has_a_closed_form(algorithm: str, kind: str, congestion: bool) -> None:
    if algorithm == "halvingDoubling" and kind == "ALL_TO_ALL":
        pytest.skip("there is no such algorithm")
    if algorithm == "direct" and kind == "ALL_REDUCE" and congestion:
        pytest.skip("messages of the two halves wait for each other at the links")
    traces = [(collective(kind),)] * 8
    inputs = Inputs(
        traces, one_dimension(8), system(algorithm), Options(congestion=congestion), {}, None
    )
    assert simulate_symmetric(inputs, exact_order=False) is not None


@settings(max_examples=60, deadline=None)
@given(symmetric_inputs())
def test_times_of_single_collectives_are_those_of_the_event_model(inputs: Inputs) -> None:
    node = next((node for node in inputs.traces[0] if node.kind == "COLL"), None)
    assume(node is not None)
    assert node is not None
    assert node.collective is not None
    assert node.size_bytes is not None
    traces = [(replace(node, dependencies=()),)] * inputs.network.ranks
    arguments = (inputs.network, inputs.system, inputs.options)
    try:
        expected = simulate_events(traces, *arguments).wall_time
    except NetworkError:
        with pytest.raises(NetworkError):
            CollectiveTimes(*arguments).cycles(node.collective, node.size_bytes)
        return
    times = CollectiveTimes(*arguments)
    assert times.cycles(node.collective, node.size_bytes) == expected
