"""Traces in a compact form: what a node does is kept once, however many nodes do it.

A training step repeats the same passes hundreds of times, and has millions of nodes that differ
in nothing but their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepflow.network.graph import Node


@dataclass(frozen=True, slots=True)
class Program:
    """The nodes of one trace, in ascending id.

    Node i does what ``operations[what[i]]`` says, whose id and dependencies mean nothing, as soon
    as ``missing[i]`` nodes have ended; ``children[i]`` are the distances from i to the nodes that
    wait for it.
    """

    operations: Sequence[Node]
    what: Sequence[int]
    children: Sequence[tuple[int, ...]]
    missing: Sequence[int]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Program:
        """The same trace as ``nodes``, which name each other by ids."""
        ordered = sorted(nodes, key=lambda node: node.id)
        places = {node.id: place for place, node in enumerate(ordered)}
        children: list[list[int]] = [[] for _ in ordered]
        missing = []
        for place, node in enumerate(ordered):
            before = {places[dependency] for dependency in node.dependencies}
            missing.append(len(before))
            for parent in before:
                children[parent].append(place - parent)
        return cls(ordered, range(len(ordered)), [tuple(after) for after in children], missing)

    def nodes(self) -> list[Node]:
        """The nodes, numbered from 0."""
        parents: list[list[int]] = [[] for _ in self.what]
        for place, distances in enumerate(self.children):
            for distance in distances:
                parents[place + distance].append(place)
        return [
            replace(self.operations[what], id=place, dependencies=tuple(before))
            for place, (what, before) in enumerate(zip(self.what, parents, strict=True))
        ]
