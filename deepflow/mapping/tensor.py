"""Tensor and sequence parallelism: one rank's shard of a block, with its collectives.

Megatron-LM pairs a column-cut with a row-cut multiplication (arXiv 1909.08053, 3): between
them everything is sharded by feature. With sequence parallelism (arXiv 2205.05198, 4.2.2) the
rest is sharded by token, and each all_reduce becomes an all_gather before the column cut and
a reduce_scatter after the row cut: the same bytes, less memory.
"""

from __future__ import annotations

from dataclasses import replace

from deepflow.mapping.parallelism import TrainingMapping
from deepflow.workload.operators import (
    FP32,
    Attention,
    Block,
    Collective,
    Cut,
    Elementwise,
    Gemm,
    Operator,
)


def shard_block(block: Block, mapping: TrainingMapping, precision: float) -> Block:
    """The shard of ``block`` on one rank of the tensor group, forward direction.

    ``precision``: bytes of an activation element, for the size of messages.
    """
    ranks, by_sequence = mapping.tensor, mapping.sequence_parallel
    if ranks == 1:
        return block
    operators: list[Operator] = []
    for operator in block.operators:
        if isinstance(operator, Gemm) and operator.cut is Cut.COLUMN:
            operators.append(
                Collective(
                    f"{operator.name}.gather",
                    "all_gather" if by_sequence else "none",
                    "tensor",
                    operator.m * operator.k * precision,
                    "reduce_scatter" if by_sequence else "all_reduce",
                )
            )
        operators.append(_shard(operator, ranks, by_sequence))
        if operator_is_partial(operator):
            operators.append(
                Collective(
                    f"{operator.name}.reduce",
                    "reduce_scatter" if by_sequence else "all_reduce",
                    "tensor",
                    _output_elements(operator) * precision,
                    "all_gather" if by_sequence else "none",
                )
            )
        elif isinstance(operator, Elementwise) and operator.output_elements:
            operators.append(
                Collective(
                    f"{operator.name}.reduce",
                    "all_reduce",
                    "tensor",
                    operator.output_elements * FP32,
                )
            )
    return replace(
        block,
        operators=tuple(operators),
        parameters=block.parameters / ranks,
        saved_sequence=block.saved_sequence / (ranks if by_sequence else 1),
        saved_feature=block.saved_feature / ranks,
    )


def operator_is_partial(operator: Operator) -> bool:
    """Whether a shard of this operator yields a partial sum that has to be reduced."""
    return isinstance(operator, Gemm | Elementwise) and operator.cut is Cut.ROW


def _output_elements(operator: Operator) -> float:
    if isinstance(operator, Gemm):
        return operator.m * operator.n
    assert isinstance(operator, Elementwise)
    return operator.output_elements


def _shard(operator: Operator, ranks: int, by_sequence: bool) -> Operator:
    match operator:
        case Gemm(cut=Cut.COLUMN):
            return replace(operator, n=-(-operator.n // ranks))
        case Gemm(cut=Cut.ROW):
            return replace(operator, k=-(-operator.k // ranks))
        case Attention():
            return replace(
                operator,
                heads=operator.heads // ranks,
                # With fewer key/value heads than ranks, ranks share copies of a head.
                kv_heads=max(1, operator.kv_heads // ranks),
            )
        case Elementwise(cut=Cut.FEATURE):
            return operator.scaled(1 / ranks)
        case Elementwise(cut=Cut.SEQUENCE) if by_sequence:
            return operator.scaled(1 / ranks)
        case _:
            return operator
