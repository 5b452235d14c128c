"""Chakra traces: what is written is read again, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chakra_wire import (
    BOOL,
    BOOL_LIST,
    COLL,
    COMP,
    DOUBLE,
    FIXED32,
    INT32,
    INT64,
    METADATA,
    RECV,
    SEND,
    STRING,
    UINT64,
    attribute,
    field,
    message,
    node,
)
from deepflow.astra.trace import (
    TraceError,
    parse_trace,
    read_traces,
    serialize_trace,
    trace_file,
)
from deepflow.network.graph import COLLECTIVES, Node


def all_reduce(identity: int, *attributes: bytes) -> bytes:
    common = attribute("comm_type", INT64, 0), attribute("comm_size", INT64, 4096)
    return node(identity, COLL, *attributes, *common)


def parsed(*messages: bytes) -> tuple[Node, ...]:
    return parse_trace(METADATA + b"".join(messages), "x.et").nodes


SIZES = st.integers(0, 2**63 - 1)
RANKS = st.integers(0, 2**31 - 1)
COMMON = {
    "name": st.text(st.characters(codec="utf-8"), max_size=8),
    "dependencies": st.lists(SIZES, unique=True, max_size=3).map(tuple),
    "duration_us": SIZES,
}
MESSAGE = {"size_bytes": SIZES, "peer": RANKS, "tag": RANKS, "is_cpu": st.just(False)}


def nodes_of(kind: str, **more: st.SearchStrategy) -> st.SearchStrategy[Node]:
    return st.builds(Node, id=SIZES, kind=st.just(kind), **{**COMMON, **more})


NODES = st.one_of(
    nodes_of(
        "COLL",
        collective=st.sampled_from(COLLECTIVES),
        size_bytes=SIZES,
        group=st.integers(0, 999_999_999),
        involved_dimensions=st.none() | st.lists(st.booleans(), max_size=5).map(tuple),
        priority=st.integers(-5, 5),
    ),
    nodes_of("COMP", num_ops=st.none() | SIZES, tensor_bytes=st.none() | SIZES),
    nodes_of("MEM_LOAD", tensor_bytes=SIZES, is_cpu=st.booleans()),
    nodes_of("SEND", **MESSAGE),
    nodes_of("RECV", **MESSAGE),
    nodes_of("METADATA"),
    nodes_of("INVALID"),
)


@given(st.lists(NODES, min_size=1, max_size=6, unique_by=lambda item: item.id))
def test_what_is_written_is_read_again(nodes):
    assert parse_trace(serialize_trace(nodes), "x.et").nodes == tuple(nodes)


def test_bytes_of_the_published_format_are_read():
    packed = field(4, bytes([1, 2])) + field(5, bytes([3])) + field(5, 9) + field(7, 250)
    first = field(2, "reduce") + packed
    collective = all_reduce(5, attribute("pg_name", STRING, "2"))
    dims = attribute("involved_dim", BOOL_LIST, [True, False])
    compute = node(4, COMP, attribute("is_cpu_op", BOOL, 1), more=first)
    assert parsed(compute, collective, all_reduce(6, dims)) == (
        Node(4, "COMP", "reduce", (3, 9, 1, 2), 250, is_cpu=True),
        Node(5, "COLL", collective="ALL_REDUCE", size_bytes=4096, group=2),
        Node(
            6,
            "COLL",
            collective="ALL_REDUCE",
            size_bytes=4096,
            involved_dimensions=(True, False),
        ),
    )


def test_written_bytes_are_of_the_published_format():
    written = serialize_trace([Node(3, "SEND", "s", (1, 2), peer=1, size_bytes=8, tag=7)])
    body = field(1, 3) + field(2, "s") + field(3, SEND) + field(5, bytes([1, 2]))
    attributes = (
        attribute("is_cpu_op", BOOL, 0),
        attribute("comm_size", INT64, 8),
        attribute("comm_dst", INT64, 1),
        attribute("comm_tag", INT64, 7),
    )
    assert written == METADATA + message(body + b"".join(attributes))


@pytest.mark.parametrize("kind", [INT32, INT64, UINT64, FIXED32])
def test_any_integer_type_will_do(kind):
    (read,) = parsed(
        node(1, COLL, attribute("comm_type", INT32, 7), attribute("comm_size", kind, 77))
    )
    assert (read.collective, read.size_bytes) == ("REDUCE_SCATTER", 77)


def test_unknown_fields_and_attributes_are_skipped_and_the_first_of_a_name_counts():
    odd = attribute("involve_dims", BOOL_LIST, b""), attribute("comm_size", INT64, 1)
    unknown = field(99, 5) + field(8, field(1, "values")) + field(1000, b"text")
    known = attribute("comm_type", INT64, 2), attribute("comm_size", INT64, 2)
    (read,) = parsed(node(1, COLL, *odd, *known, more=unknown))
    assert read == Node(1, "COLL", collective="ALL_GATHER", size_bytes=1)


def test_a_file_that_is_cut_off_anywhere_is_refused():
    whole = METADATA + all_reduce(1) + all_reduce(300)
    ends = {len(METADATA) + len(all_reduce(1)), len(whole)}
    for length in set(range(len(whole))) - ends:
        with pytest.raises(TraceError, match=r"x\.et"):
            parse_trace(whole[:length], "x.et")


@given(st.binary(max_size=60))
def test_garbage_is_a_trace_or_an_error_but_no_crash(garbage):
    try:
        assert parse_trace(METADATA + garbage, "x.et").nodes
    except TraceError as error:
        assert str(error).startswith("x.et: ")


def test_text_is_no_trace():
    with pytest.raises(TraceError, match="byte 0"):
        parse_trace(b"this is a text that somebody has mistaken for a trace\n" * 9, "x.et")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (METADATA, "no nodes"),
        (all_reduce(1) + all_reduce(2), "byte 0: a node where the global metadata must be"),
        (METADATA + all_reduce(4) + all_reduce(4), "byte 44: node 4 is the second"),
        (METADATA + b"\xff\xff\xff\xff\xff\xff", "byte 8: no length"),
        (METADATA + message(b"\x0b\x0b"), "byte 8: 2 bytes that are no Node"),
        (METADATA + node(1, 12), "unknown type 12"),
        (METADATA + node(1, COLL, attribute("comm_type", INT64, 0)), "lacks the attribute comm_s"),
        (METADATA + node(1, COLL, attribute("comm_size", INT64, 0)), "lacks the attribute comm_t"),
        (METADATA + all_reduce(1, attribute("comm_type", INT64, 1)), "comm_type 1 "),
        (METADATA + all_reduce(1, attribute("comm_type", STRING, "0")), "comm_type of type string"),
        (METADATA + all_reduce(1, attribute("comm_size", DOUBLE, 0)), "comm_size of type double"),
        (METADATA + all_reduce(1, attribute("comm_size", BOOL, 1)), "comm_size of type bool"),
        (METADATA + all_reduce(1, field(10, field(1, "comm_size"))), "without a value"),
        (METADATA + all_reduce(1, attribute("pg_name", STRING, "tp")), "pg_name 'tp'"),
        (METADATA + all_reduce(1, attribute("pg_name", INT32, 1)), "pg_name that is no string"),
        (METADATA + all_reduce(1, attribute("involved_dim", INT32, 1)), "involved_dim"),
        (METADATA + all_reduce(1, attribute("is_cpu_op", INT32, 1)), "is_cpu_op"),
        (METADATA + node(1, SEND, attribute("comm_size", INT64, 1)), "lacks the attribute comm_d"),
        (METADATA + node(1, RECV, attribute("comm_size", INT64, 1)), "lacks the attribute comm_s"),
        (
            METADATA
            + node(1, SEND, attribute("comm_dst", INT64, 1), attribute("comm_size", INT64, 1)),
            "lacks the attribute comm_tag",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_simulator_can_carry_out_is_refused(content, problem):
    with pytest.raises(TraceError, match=problem) as caught:
        parse_trace(content, "x.et")
    assert str(caught.value).startswith("x.et: ")


def write(prefix: Path, rank: int, *messages: bytes) -> None:
    trace_file(prefix, rank).write_bytes(METADATA + b"".join(messages))


def message_to(peer: int, own_rank: int) -> bytes:
    numbers = {"comm_dst": peer, "comm_src": own_rank, "comm_size": 8, "comm_tag": 0}
    return node(1, SEND, *(attribute(name, INT32, value) for name, value in numbers.items()))


def test_every_rank_has_a_file_and_no_file_is_left_over(tmp_path):
    prefix = tmp_path / "trace"
    write(prefix, 0, all_reduce(1))
    with pytest.raises(TraceError, match=r"trace\.1\.et: no such file"):
        read_traces(prefix, 2)
    write(prefix, 1, all_reduce(1))
    first, second = read_traces(prefix, 2)
    assert first is second
    with pytest.raises(TraceError, match=r"trace\.1\.et: the network has only 1 ranks"):
        read_traces(prefix, 1)


def test_a_message_says_that_it_is_of_the_rank_whose_file_it_is_in(tmp_path):
    prefix = tmp_path / "trace"
    write(prefix, 0, message_to(1, own_rank=0))
    write(prefix, 1, all_reduce(1))
    assert read_traces(prefix, 2)[0][0].peer == 1
    write(prefix, 0, message_to(1, own_rank=3))
    with pytest.raises(TraceError, match="on rank 3, not 0"):
        read_traces(prefix, 2)
