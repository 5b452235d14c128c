"""What a device does, as a tree: a pass consists of layers, a layer of operators.

A block lasts as long as the model says, split into the classes of time of the result columns. What
the rules of a chain of operators leave open follows from that: time in which the host has to catch
up comes at its end, and waits are shorter where something else is computed meanwhile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from deepflow.cost.operators import (
    WAITING_CLASSES,
    ChainSpan,
    Cost,
    OperatorCost,
    chain_spans,
)
from deepflow.explain.text import describe
from deepflow.workload.operators import Collective, Elementwise

LAUNCH, DATA, OPTIMIZER = "time_launch_s", "time_data_communication_s", "time_optimizer_s"
_COLUMNS = {
    "gemm": "time_gemm_s",
    "attention": "time_attention_s",
    "elementwise": "time_elementwise_s",
    "communication": "time_tensor_communication_s",
    "context_communication": "time_context_communication_s",
    "expert_communication": "time_expert_communication_s",
    "data_communication": DATA,
    "host_transfer": "time_offload_s",
    "launch": LAUNCH,
}
"""The result column of each class of time of ``Cost``."""

_REST_NAMES = {LAUNCH: "waiting for the host", "time_offload_s": "waiting for the host's memory"}

# Relative to the whole: sums in another order differ in the last digits.
_ROUNDING = 1e-9

Seconds = Mapping[str, float]
Details = Mapping[str, Any]


class Use(NamedTuple):
    """Something that occupies a link, in seconds from the beginning of its block."""

    lane: str
    name: str
    start: float
    end: float
    details: Details


@dataclass(frozen=True, slots=True)
class Block:
    """What a device does without a gap: ``seconds`` by result column add up to its duration.

    ``children`` follow each other and fill it; without any it is a leaf. ``links``: what goes on
    beside. ``waits``: the device only waits, and could wait less.
    """

    name: str
    seconds: Seconds
    details: Details = field(default_factory=dict)
    children: tuple[Block, ...] = ()
    links: tuple[Use, ...] = ()
    waits: bool = False

    @property
    def time(self) -> float:
        """Its duration in seconds."""
        return sum(self.seconds.values())


def seconds_of(cost: Cost, *, updates: bool = False) -> dict[str, float]:
    """The times of ``cost`` by result column; ``updates``: of the optimizer's part of a step."""
    seconds = {column: getattr(cost, name) for name, column in _COLUMNS.items()}
    if updates:
        seconds[OPTIMIZER] = seconds.pop("time_elementwise_s")
    return {column: taken for column, taken in seconds.items() if taken}


def waiting_block(name: str, column: str, seconds: float) -> Block:
    """A wait of a class."""
    return Block(name, {column: seconds}, waits=True)


def chain_block(
    name: str,
    costs: Sequence[OperatorCost],
    whole: Cost | None = None,
    *,
    updates: bool = False,
    details: Details | None = None,
) -> Block:
    """A chain of operators that takes what ``whole`` says (default: what the chain does)."""
    spans = chain_spans(costs)
    leaves = [_leaf(costs[span.position], span, updates) for span in spans.device]
    links = [
        Use(_lane(operator), operator.name, span.start, span.end, operator_details(costs[place]))
        for span in spans.links
        if span.end > span.start
        and isinstance(operator := costs[place := span.position].operator, Collective)
    ]
    leaves = [leaf for leaf in leaves if leaf.time > 0]
    want = summed(leaves) if whole is None else seconds_of(whole, updates=updates)
    return fitted(name, leaves, want, links, details)


def _lane(operator: Collective) -> str:
    return "host link" if operator.group == "host" else f"{operator.group} network"


def _leaf(item: OperatorCost, span: ChainSpan, updates: bool) -> Block:
    cost, working = item.cost, span.end - span.start - span.launch
    if cost.waiting and isinstance(item.operator, Collective):
        column = _COLUMNS[WAITING_CLASSES.get(item.operator.group, "communication")]
    elif cost.gemm:
        column = "time_gemm_s"
    elif cost.attention:
        column = "time_attention_s"
    else:
        column = OPTIMIZER if updates else "time_elementwise_s"
    seconds = {column: working} if working > 0 else {}
    if span.launch:
        seconds[LAUNCH] = span.launch
    name = f"wait: {item.operator.name}" if span.waits else item.operator.name
    return Block(name, seconds, operator_details(item), waits=span.waits)


def operator_details(item: OperatorCost) -> dict[str, Any]:
    """Shape, work, rate and bound of an operator, with units in the names."""
    operator, cost = item.operator, item.cost
    details: dict[str, Any] = {"shape": describe(operator), "bound": item.bound}
    if isinstance(operator, Collective):
        details |= {
            "group": operator.group,
            "ranks": item.ranks,
            "message_bytes": operator.message_bytes,
            "bytes_per_s": operator.message_bytes / cost.time if cost.time else 0.0,
            "intra_node_bytes": cost.intra_node_bytes,
            "inter_node_bytes": cost.inter_node_bytes,
        }
        return details
    details |= {"flop": cost.flops, "dram_bytes": cost.dram_bytes}
    if cost.l2_bytes:
        details["l2_bytes"] = cost.l2_bytes
    amount, name = (
        (operator.bytes_moved, "bytes_per_s")
        if isinstance(operator, Elementwise)
        else (operator.flops, "flop_per_s")
    )
    if cost.time:
        details[name] = amount / cost.time
    return details


def summed(blocks: Iterable[Block]) -> dict[str, float]:
    """Seconds by column of all blocks."""
    seconds: dict[str, float] = {}
    for block in blocks:
        for column, taken in block.seconds.items():
            seconds[column] = seconds.get(column, 0.0) + taken
    return seconds


def fitted(
    name: str,
    children: Sequence[Block],
    want: Seconds,
    links: Sequence[Use] = (),
    details: Details | None = None,
) -> Block:
    """A block of ``children`` whose times by column are those of ``want``.

    Only ``waits`` give way, or last longer. Where they have to make room for another class, that
    has been going on meanwhile; what is then still missing follows at the end.
    """
    have, adjustable = summed(children), summed(child for child in children if child.waits)
    tiny = _ROUNDING * sum(want.values())
    change = {column: want.get(column, 0.0) - have.get(column, 0.0) for column in {**have, **want}}
    over = {
        column: min(-more, adjustable[column])
        for column, more in change.items()
        if more < -tiny and column in adjustable and column != LAUNCH
    }
    under = {column: more for column, more in change.items() if more > tiny}
    longer = {
        column: under.pop(column)
        for column in list(under)
        if adjustable.get(column) and column != LAUNCH
    }
    turned = min(sum(over.values()), sum(under.values()))
    mixed = {column: more / sum(under.values()) for column, more in under.items()}
    share_turned = turned / sum(over.values()) if over else 0.0
    factor = {column: 1 - less / adjustable[column] for column, less in over.items()}
    factor |= {column: 1 + more / adjustable[column] for column, more in longer.items()}
    found: list[Block] = []
    before, after = [0.0], [0.0]
    for child in children:
        changed = child
        if child.waits and factor.keys() & child.seconds.keys():
            seconds = {
                column: taken * factor.get(column, 1.0) for column, taken in child.seconds.items()
            }
            given_up = share_turned * sum(
                taken * (1 - factor[column])
                for column, taken in child.seconds.items()
                if column in over
            )
            for column, part in mixed.items():
                if given_up:
                    seconds[column] = seconds.get(column, 0.0) + given_up * part
            changed = replace(child, seconds=seconds)
        before.append(before[-1] + child.time)
        after.append(after[-1] + changed.time)
        found.append(changed)
    left = 1 - turned / sum(under.values()) if under else 0.0
    found += [
        Block(_REST_NAMES.get(column, "waiting"), {column: more * left}, waits=True)
        for column, more in under.items()
        if more * left > tiny
    ]
    moved = [
        use._replace(start=_moved(use.start, before, after), end=_moved(use.end, before, after))
        for use in links
    ]
    return Block(name, dict(want), details or {}, tuple(found), tuple(moved))


def _moved(time: float, before: Sequence[float], after: Sequence[float]) -> float:
    """Where a time is after the pieces between the times ``before`` got the ends ``after``."""
    place = min(bisect_right(before, time), len(before) - 1)
    if place == 0:
        return after[0]
    start, end = before[place - 1], before[place]
    share = min(1.0, (time - start) / (end - start)) if end > start else 1.0
    return after[place - 1] + share * (after[place] - after[place - 1])
