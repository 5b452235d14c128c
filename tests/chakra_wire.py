"""Chakra traces and ASTRA-sim's input files, put together byte by byte.

From the published field numbers and the cases in ``data/reference/astra``, without the writers of
``deepflow.astra``, so that its readers and its schema are not checked against themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

INT32, INT64, UINT64, FIXED32, DOUBLE, BOOL, BOOL_LIST, STRING = 7, 9, 13, 19, 3, 27, 28, 29
COMP, SEND, RECV, COLL = 4, 5, 6, 7

_KINDS = {"INVALID": 0, "METADATA": 1, "MEM_LOAD": 2, "COMP": 4, "SEND": 5, "RECV": 6, "COLL": 7}
_COLLECTIVES = {"AR": 0, "REDUCE": 1, "AG": 2, "BCAST": 5, "A2A": 6, "RS": 7, "BARRIER": 9}
_VALUES = {
    "int32_val": INT32,
    "int64_val": INT64,
    "uint64_val": UINT64,
    "double_val": DOUBLE,
    "string_val": STRING,
}


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def attribute(name: str, number: int, value: Any) -> bytes:
    """Field 10 of a node: an attribute with its value in field ``number``."""
    if number == FIXED32:
        encoded = varint(number << 3 | 5) + int(value).to_bytes(4, "little")
    elif number == DOUBLE:
        encoded = varint(number << 3 | 1) + bytes(8)
    elif number == BOOL_LIST:
        encoded = field(number, field(1, bytes(map(int, value))))
    else:
        encoded = field(number, value)
    return field(10, field(1, name) + encoded)


def message(content: bytes) -> bytes:
    return varint(len(content)) + content


def node(identity: int, kind: int, *attributes: bytes, more: bytes = b"") -> bytes:
    return message(field(1, identity) + field(3, kind) + b"".join(attributes) + more)


METADATA = message(field(1, "0.0.4"))


def trace(nodes: Iterable[Mapping[str, Any]], version: str = "0.0.4") -> bytes:
    """The trace of the nodes of a reference case."""
    return message(field(1, version)) + b"".join(map(_case_node, nodes))


def _case_node(given: Mapping[str, Any]) -> bytes:
    values: list[tuple[str, int, Any]] = []
    if not given.get("no_cpu_attr"):
        values.append(("is_cpu_op", BOOL, int(given.get("cpu", False))))
    if "coll" in given:
        values.append(("comm_type", INT64, _COLLECTIVES[given["coll"]]))
    for key, name, number in (
        ("size", "comm_size", INT64),
        ("pg", "pg_name", STRING),
        ("dims", "involved_dim", BOOL_LIST),
        ("src", "comm_src", INT32),
        ("dst", "comm_dst", INT32),
        ("tag", "comm_tag", INT32),
        ("ops", "num_ops", INT64),
        ("bytes", "tensor_size", UINT64),
    ):
        if key in given:
            values.append((name, number, given[key]))
    attributes = [
        attribute(name, number, value)
        for name, number, value in values
        if name not in given.get("drop", ())
    ]
    for name, value in given.get("raw", ()):
        ((kind, content),) = value.items()
        attributes.append(attribute(name, _VALUES[kind], content))
    more = b"".join(field(5, dependency) for dependency in given.get("deps", ()))
    more += b"".join(field(4, dependency) for dependency in given.get("ctrl", ()))
    if "dur" in given:
        more += field(7, given["dur"])
    return node(given["id"], _KINDS[given["type"]], *attributes, more=more)


def write_case(case: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes the input files of a reference case; returns the options that name them."""
    network = {key: value for key, value in case["network"].items() if value is not None}
    for rank in range(prod(network["npus_count"])):
        nodes = case["graph"].get(str(rank), case["graph"].get("*"))
        content = trace(nodes, case.get("et_version", "0.0.4"))
        (folder / f"t.{rank}.et").write_bytes(content)
    # JSON is YAML too, but bare words are what such files have.
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in network.items())
    (folder / "network.yml").write_text(text.replace('"', ""))
    (folder / "system.json").write_text(json.dumps(case["system"]))
    memory = case.get("remote", {"memory-type": "NO_MEMORY_EXPANSION"})
    (folder / "memory.json").write_text(json.dumps(memory))
    options = {
        "workload-configuration": folder / "t",
        "system-configuration": folder / "system.json",
        "network-configuration": folder / "network.yml",
        "remote-memory-configuration": folder / "memory.json",
    }
    if case.get("groups"):
        (folder / "groups.json").write_text(json.dumps(case["groups"]))
        options["comm-group-configuration"] = folder / "groups.json"
    for key, value in case.get("cli", {}).items():
        options[key] = str(value).lower() if isinstance(value, bool) else value
    return [f"--{key}={value}" for key, value in options.items()]
