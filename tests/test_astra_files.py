"""Sets of input files: read again as they were, and one folder for each content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.astra.files import (
    SimulationInput,
    groups_json,
    memory_json,
    network_yaml,
    read_groups,
    read_memory,
    read_network,
    read_simulation,
    read_system,
    system_json,
    write_simulation,
)
from deepflow.errors import ConfigError
from deepflow.network.graph import Network, Node, RemoteMemory, SystemSettings

REDUCE = Node(1, "COLL", collective="ALL_REDUCE", size_bytes=2**20)
SYSTEM = SystemSettings(
    scheduling_policy="LIFO",
    collective_optimization="localBWAware",
    preferred_dataset_splits=4,
    local_mem_bw=1600.0,
    all_reduce_implementation=("ring",),
)
INPUT = SimulationInput(
    traces=((REDUCE,),) * 4,
    network=Network(("Ring",), (4,), (50.0,), (500.0,)),
    system=SYSTEM,
    groups={},
)
POSITIVE = st.floats(1e-9, 1e12)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("astra") / "file"


@given(
    dimensions=st.lists(
        st.tuples(
            st.sampled_from(["Ring", "Switch", "FullyConnected"]),
            st.integers(2, 4096),
            POSITIVE,
            st.floats(0, 1e9),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_network_is_read_as_it_was_written(file, dimensions):
    network = Network(*(tuple(entries) for entries in zip(*dimensions, strict=True)))
    file.write_text(network_yaml(network))
    assert read_network(file) == network


def test_networks_beyond_the_real_program_are_read_as_they_were_written(file):
    network = Network(("FatTree",), (16,), (50.0,), (1.0,), width=(4,), oversubscription=(2.0,))
    file.write_text(network_yaml(network))
    assert read_network(file) == network


@given(
    st.builds(
        SystemSettings,
        scheduling_policy=st.sampled_from(["LIFO", "FIFO", "EXPLICIT"]),
        collective_optimization=st.sampled_from(["baseline", "localBWAware"]),
        preferred_dataset_splits=st.integers(1, 64),
        local_mem_bw=POSITIVE,
        endpoint_delay=st.none() | st.floats(0, 1e6),
        active_chunks_per_dimension=st.integers(1, 64),
        peak_perf=POSITIVE,
        roofline_enabled=st.booleans(),
        replay_only=st.booleans(),
        all_reduce_implementation=st.just(("ring", "direct")),
    )
)
def test_a_system_is_read_as_it_was_written(file, system):
    file.write_text(system_json(system))
    assert read_system(file) == system


def test_groups_and_memory_are_read_as_they_were_written(file):
    groups = {1: (0, 2), 12: (3, 1)}
    file.write_text(groups_json(groups))
    assert read_groups(file, ranks=4) == groups
    for memory in (None, RemoteMemory(latency=100.0, bandwidth=50.5)):
        file.write_text(memory_json(memory))
        assert read_memory(file) == memory


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"1": [0, 4]}', "rank"),
        ('{"1": [0, 0]}', "twice"),
        ('{"1": [0], "01": [1]}', "twice"),
        ('{"1": 3}', "not a list"),
        ('{"1": [0.5]}', "whole"),
        ('{"1": [true]}', "number"),
        ('{"tensor": [0]}', "number of a group"),
    ],
)
def test_groups_that_cannot_be_are_errors(file, text, problem):
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_groups(file, ranks=4)


def test_a_set_of_files_is_read_as_it_was_written(tmp_path):
    send = Node(1, "SEND", peer=1, size_bytes=7, tag=0)
    receive = Node(1, "RECV", peer=0, size_bytes=7, tag=0, dependencies=(9,))
    compute = Node(9, "COMP", "matmul", duration_us=3)
    given_input = replace(
        INPUT,
        traces=((send,), (receive, compute), (compute,), (compute,)),
        groups={3: (2, 0)},
        memory=RemoteMemory(1.0, 2.0),
    )
    assert read_simulation(write_simulation(given_input, tmp_path)) == given_input


def test_a_folder_is_named_by_what_is_in_it_down_to_the_byte(tmp_path):
    def folder(given_input: SimulationInput) -> Path:
        return write_simulation(given_input, tmp_path).system.parent

    larger = replace(REDUCE, size_bytes=2**20 + 1)
    others = [
        replace(INPUT, traces=((larger,),) * 4),
        replace(INPUT, traces=((larger,), *INPUT.traces[1:])),
        replace(INPUT, traces=(*INPUT.traces[1:], (larger,))),
        replace(INPUT, network=replace(INPUT.network, latency=(500.0001,))),
        replace(INPUT, system=replace(SYSTEM, endpoint_delay=10.0)),
        replace(INPUT, groups={1: (0, 1)}),
        replace(INPUT, memory=RemoteMemory(1.0, 2.0)),
    ]
    folders = {folder(INPUT), *map(folder, others)}
    assert len(folders) == 1 + len(others)
    assert {path.parent for path in folders} == {tmp_path}
    assert folder(INPUT) in folders
    assert set(tmp_path.iterdir()) == folders


def test_ranks_that_share_a_trace_share_its_bytes(tmp_path):
    files = write_simulation(INPUT, tmp_path)
    traces = sorted(files.workload.parent.glob("trace.*.et"))
    assert len(traces) == 4
    assert len({path.resolve() for path in traces}) == 1
