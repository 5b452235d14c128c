"""Chakra execution traces: what each rank does, one file per rank.

``chakra.proto`` is the schema and says how a file is laid out. It is turned into message classes
when the first trace is read or written, so that no generated code has to match the installed
protobuf, and a program without traces does not load protobuf at all.

Attributes of a node are typed by their writer. As in ASTRA-sim any integer type will do for an
integer, the first attribute of a name counts, and unknown attributes and fields are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from deepflow.errors import DeepFlowError
from deepflow.network.graph import Node
from deepflow.record import record

SCHEMA = Path(__file__).with_name("chakra.proto")
TRACE_VERSION = "0.0.4"


class TraceError(DeepFlowError):
    """A trace file that is missing, damaged, or says what no simulator can carry out."""


@record(frozen=True)
class Trace:
    """The nodes of one rank, in file order.

    ``own_ranks`` maps every rank on which nodes of the trace claim to be (comm_src of a SEND,
    comm_dst of a RECV) to the id of the first such node.
    """

    nodes: tuple[Node, ...]
    own_ranks: Mapping[int, int]


def trace_file(prefix: str | Path, rank: int) -> Path:
    """Where the trace of ``rank`` is: PREFIX.RANK.et."""
    return Path(f"{prefix}.{rank}.et")


def read_traces(prefix: str | Path, ranks: int) -> tuple[tuple[Node, ...], ...]:
    """The nodes of ranks 0 to ``ranks`` - 1; files that are equal are parsed once and shared.

    Raises TraceError for a missing or damaged file, and for a trace of a rank that the network
    does not have: a simulation without it would answer another question.
    """
    parsed: dict[bytes, Trace] = {}
    traces = []
    for rank in range(ranks):
        path = trace_file(prefix, rank)
        try:
            if path.exists() and not path.is_file():
                raise TraceError(f"{path}: is no file with an end")
            content = path.read_bytes()
        except FileNotFoundError:
            raise TraceError(f"{path}: no such file; every one of {ranks} ranks has one") from None
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
        trace = parsed.get(content)
        if trace is None:
            trace = parsed[content] = parse_trace(content, str(path))
        for other, node in trace.own_ranks.items():
            if other != rank:
                raise TraceError(f"{path}: node {node} says that it is on rank {other}, not {rank}")
        traces.append(trace.nodes)
    beyond = trace_file(prefix, ranks)
    if beyond.exists():
        raise TraceError(f"{beyond}: the network has only {ranks} ranks, 0 to {ranks - 1}")
    return tuple(traces)


def serialize_trace(nodes: Iterable[Node]) -> bytes:
    """The content of a trace file."""
    messages = _messages()
    content = bytearray()
    _append(content, messages.GlobalMetadata(version=TRACE_VERSION))
    for node in nodes:
        message = messages.Node(
            id=node.id,
            name=node.name,
            type=messages.kinds[node.kind],
            data_dependencies=node.dependencies,
            duration_micros=node.duration_us,
        )
        for name, value in _attributes_of(node, messages.collectives):
            attribute = message.attributes.add(name=name)
            if isinstance(value, bool):
                attribute.bool_value = value
            elif isinstance(value, int):
                attribute.int64_value = value
            elif isinstance(value, str):
                attribute.string_value = value
            else:
                attribute.bool_list.values.extend(value)
        _append(content, message)
    return bytes(content)


def parse_trace(content: bytes, file: str) -> Trace:
    """The trace in ``content``; errors name ``file`` and the byte at which a message begins.

    Raises TraceError for what is no trace, is cut off, has no nodes, two nodes of one id, or a
    node without a required attribute or with one of the wrong type.
    """
    messages = _messages()
    if not content:
        raise TraceError(f"{file}: the file is empty")
    offset = _check_metadata(messages, content, file)
    nodes: dict[int, Node] = {}
    own_ranks: dict[int, int] = {}
    while offset < len(content):
        begin = offset
        body, offset = _next_message(content, offset, file)
        message = _parse(messages.Node, body, begin, file)
        reader = _NodeReader(message, f"{file}: byte {begin}: node {message.id}")
        node = reader.node(messages)
        if node.id in nodes:
            raise TraceError(f"{reader.where} is the second node with this id")
        nodes[node.id] = node
        if reader.own_rank is not None:
            own_ranks.setdefault(reader.own_rank, node.id)
    if not nodes:
        raise TraceError(f"{file}: the trace has no nodes")
    return Trace(tuple(nodes.values()), own_ranks)


def _check_metadata(messages: Any, content: bytes, file: str) -> int:
    """The offset behind the first message, which must not be a node.

    A node parses as metadata with unknown fields; ASTRA-sim then loses it without a word.
    """
    body, offset = _next_message(content, 0, file)
    _parse(messages.GlobalMetadata, body, 0, file)
    try:
        node = messages.Node.FromString(body)
    except messages.DecodeError:
        return offset
    if node.id or node.type:
        raise TraceError(f"{file}: byte 0: a node where the global metadata must be")
    return offset


def _parse(kind: Any, body: bytes, begin: int, file: str) -> Any:
    try:
        return kind.FromString(body)
    except _messages().DecodeError:
        raise TraceError(
            f"{file}: byte {begin}: {len(body)} bytes that are no {kind.DESCRIPTOR.name}"
            " message; is this a Chakra trace?"
        ) from None


def _next_message(content: bytes, offset: int, file: str) -> tuple[bytes, int]:
    """(one message, where the next begins): a varint length and that many bytes."""
    begin, length, shift = offset, 0, 0
    while True:
        if offset == len(content):
            raise TraceError(f"{file}: byte {begin}: the file ends within a message's length")
        byte = content[offset]
        offset += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
        if shift > 28:
            raise TraceError(f"{file}: byte {begin}: no length of a message; is this a trace?")
    end = offset + length
    if end > len(content):
        raise TraceError(
            f"{file}: byte {begin}: a message of {length} bytes, but only"
            f" {len(content) - offset} are left; the file is cut off or no trace"
        )
    return content[offset:end], end


def _append(content: bytearray, message: Any) -> None:
    body = message.SerializeToString(deterministic=True)
    length = len(body)
    while length > 0x7F:
        content.append(length & 0x7F | 0x80)
        length >>= 7
    content.append(length)
    content += body


def _attributes_of(
    node: Node, collectives: Mapping[str, int]
) -> list[tuple[str, bool | int | str | tuple[bool, ...]]]:
    """Name and value of what ASTRA-sim looks for in a node of this kind."""
    found: list[tuple[str, Any]] = [("is_cpu_op", node.is_cpu)]
    if node.kind == "COLL" and node.collective is not None:
        found.append(("comm_type", collectives[node.collective]))
        if node.priority:
            found.append(("comm_priority", node.priority))
        if node.group:
            found.append(("pg_name", str(node.group)))
        if node.involved_dimensions is not None:
            found.append(("involved_dim", node.involved_dimensions))
    peer = {"SEND": "comm_dst", "RECV": "comm_src"}.get(node.kind, "")
    optional = (
        ("comm_size", node.size_bytes),
        (peer, node.peer),
        ("comm_tag", node.tag),
        ("num_ops", node.num_ops),
        ("tensor_size", node.tensor_bytes),
    )
    return found + [(name, value) for name, value in optional if name and value is not None]


class _NodeReader:
    """Reads the attributes of one Node message; errors begin with ``where``."""

    def __init__(self, message: Any, where: str) -> None:
        self.where = where
        self.own_rank: int | None = None
        self._message = message
        self._attributes: dict[str, Any] = {}
        for attribute in message.attributes:
            self._attributes.setdefault(attribute.name, attribute)

    def node(self, messages: Any) -> Node:
        message = self._message
        kind = messages.kind_names.get(message.type)
        if kind is None:
            self._fail(f"has the unknown type {message.type}")
        values: dict[str, Any] = {}
        match kind:
            case "COLL":
                number = self._required("comm_type")
                values["collective"] = messages.collective_names.get(number)
                if values["collective"] is None:
                    known = ", ".join(
                        f"{i} {name}" for i, name in messages.collective_names.items()
                    )
                    self._fail(f"has comm_type {number} (known: {known})")
                values["size_bytes"] = self._required("comm_size")
                values["group"] = self._group()
                values["involved_dimensions"] = self._dimensions()
                values["priority"] = self._integer("comm_priority") or 0
            case "SEND" | "RECV":
                own, peer = ("comm_src", "comm_dst") if kind == "SEND" else ("comm_dst", "comm_src")
                values["peer"] = self._required(peer)
                values["size_bytes"] = self._required("comm_size")
                values["tag"] = self._required("comm_tag")
                self.own_rank = self._integer(own)
            case "COMP" | "MEM_LOAD" | "MEM_STORE":
                values["num_ops"] = self._integer("num_ops")
                values["tensor_bytes"] = self._integer("tensor_size")
        dependencies = dict.fromkeys(message.data_dependencies)
        dependencies.update(dict.fromkeys(message.control_dependencies))
        return Node(
            id=message.id,
            kind=kind,
            name=message.name,
            dependencies=tuple(dependencies),
            duration_us=message.duration_micros,
            is_cpu=self._is_cpu(),
            **values,
        )

    def _fail(self, problem: str) -> NoReturn:
        name = f" ({self._message.name})" if self._message.name else ""
        raise TraceError(f"{self.where}{name} {problem}")

    def _value(self, name: str) -> tuple[str, Any]:
        """(type, value) of an attribute; ("", None) if the node does not have it."""
        attribute = self._attributes.get(name)
        if attribute is None:
            return "", None
        kind = attribute.WhichOneof("value")
        if kind is None:
            self._fail(f"has an attribute {name} without a value of a known type")
        return kind, getattr(attribute, kind)

    def _integer(self, name: str) -> int | None:
        kind, value = self._value(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self._fail(f"has {name} of type {kind.removesuffix('_value')}, which is no integer")
        return value

    def _required(self, name: str) -> int:
        value = self._integer(name)
        if value is None:
            self._fail(f"lacks the attribute {name}")
        return value

    def _is_cpu(self) -> bool:
        kind, value = self._value("is_cpu_op")
        if kind not in ("", "bool_value"):
            self._fail("has an is_cpu_op that is no bool")
        return bool(value)

    def _group(self) -> int:
        kind, value = self._value("pg_name")
        if kind not in ("", "string_value"):
            self._fail("has a pg_name that is no string")
        if not re.fullmatch(r"[0-9]{0,9}", value or "", re.ASCII):
            self._fail(f"has the pg_name '{value}', which is no number of a group")
        return int(value or 0)

    def _dimensions(self) -> tuple[bool, ...] | None:
        kind, value = self._value("involved_dim")
        if kind not in ("", "bool_list"):
            self._fail("has an involved_dim that is no list of bool")
        return tuple(value.values) if kind else None


# --- the schema ---------------------------------------------------------------------------

_DECLARATION = re.compile(
    r"(?P<open>message|enum|oneof)\s+(?P<block>\w+)\s*\{"
    r"|(?P<close>\})"
    r"|(?:(?P<repeated>repeated)\s+)?(?:(?P<type>\w+)\s+)?(?P<name>\w+)\s*=\s*(?P<number>\d+)\s*;"
)


@cache
def _messages() -> Any:
    """The message classes of ``chakra.proto``, the tables of its enums, and DecodeError.

    A descriptor pool of its own keeps them apart from those of an installed Chakra.
    """
    from google.protobuf import descriptor_pool, message_factory
    from google.protobuf.message import DecodeError

    pool = descriptor_pool.DescriptorPool()
    described = _described(SCHEMA.read_text(encoding="utf-8"))
    pool.Add(described)
    enums = {
        enum.name: {item.name: item.number for item in enum.value} for enum in described.enum_type
    }
    kinds, collectives = enums["NodeType"], enums["Collective"]
    return SimpleNamespace(
        **{
            message.name: message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"{described.package}.{message.name}")
            )
            for message in described.message_type
        },
        kinds=kinds,
        kind_names={number: name for name, number in kinds.items()},
        collectives=collectives,
        collective_names={number: name for name, number in collectives.items()},
        DecodeError=DecodeError,
    )


def _described(schema: str) -> Any:
    """The FileDescriptorProto of proto3 text of the few constructs that ``chakra.proto`` uses."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

    text = re.sub(r"//[^\n]*", "", schema)
    package = re.search(r"package\s+([\w.]+)\s*;", text)
    if package is None:
        raise ValueError("the schema names no package")
    result = FileDescriptorProto(name=SCHEMA.name, package=package[1], syntax="proto3")
    enums = set(re.findall(r"enum\s+(\w+)", text))
    blocks: list[str] = []
    for found in _DECLARATION.finditer(text[package.end() :]):
        if found["open"]:
            blocks.append(found["open"])
            match found["open"]:
                case "message":
                    message = result.message_type.add(name=found["block"])
                case "enum":
                    enum = result.enum_type.add(name=found["block"])
                case "oneof":
                    message.oneof_decl.add(name=found["block"])
        elif found["close"]:
            blocks.pop()
        elif blocks[-1] == "enum":
            enum.value.add(name=found["name"], number=int(found["number"]))
        else:
            label = "LABEL_REPEATED" if found["repeated"] else "LABEL_OPTIONAL"
            field = message.field.add(
                name=found["name"],
                number=int(found["number"]),
                label=getattr(FieldDescriptorProto, label),
            )
            if hasattr(FieldDescriptorProto, f"TYPE_{found['type'].upper()}"):
                field.type = getattr(FieldDescriptorProto, f"TYPE_{found['type'].upper()}")
            else:
                field.type_name = f".{package[1]}.{found['type']}"
                field.type = (
                    FieldDescriptorProto.TYPE_ENUM
                    if found["type"] in enums
                    else FieldDescriptorProto.TYPE_MESSAGE
                )
            if blocks[-1] == "oneof":
                field.oneof_index = len(message.oneof_decl) - 1
    return result
