"""Tensor, sequence and expert parallelism: one rank's shard of a block, with its collectives.

Megatron-LM pairs a column-cut with a row-cut multiplication (arXiv 1909.08053, 3): between
them everything is sharded by feature. With sequence parallelism (arXiv 2205.05198, 4.2.2) the
rest is sharded by token, and each all_reduce becomes an all_gather before the column cut and
a reduce_scatter after the row cut: the same bytes, less memory.

Experts are dealt out over the expert group, and each is cut over the tensor group like a dense
layer. A rank sends its tokens to the experts' devices (GShard, arXiv 2006.16668); there the
tensor group gathers what its ranks received.
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
    GroupedGemm,
    Operator,
)


def shard_block(block: Block, mapping: TrainingMapping, precision: float) -> Block:
    """The shard of ``block`` on one rank of the tensor and expert groups, forward direction.

    ``precision``: bytes of an activation element, for the size of messages.
    """
    ranks, by_sequence = mapping.tensor, mapping.sequence_parallel
    if ranks == 1 and (mapping.expert == 1 or not block.expert_parameters):
        return block
    operators: list[Operator] = []
    for operator in block.operators:
        shard = _shard(operator, mapping)
        if ranks == 1:
            operators.append(shard)
            continue
        if isinstance(operator, Gemm | GroupedGemm) and operator.cut is Cut.COLUMN:
            operators.append(
                Collective(
                    f"{operator.name}.gather",
                    "all_gather" if by_sequence else "none",
                    "tensor",
                    _rows(operator) * operator.k * precision,
                    "reduce_scatter" if by_sequence else "all_reduce",
                    gradient_beside=0
                    if mapping.asked.overlap_tensor_communication == "none"
                    else 1,
                    beside=1 if mapping.asked.overlap_tensor_communication == "full" else 0,
                )
            )
        operators.append(shard)
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
    sequence_share = ranks if by_sequence else 1
    return replace(
        block,
        operators=tuple(operators),
        parameters=block.parameters / ranks,
        expert_parameters=block.expert_parameters / ranks / mapping.expert,
        saved_sequence=block.saved_sequence / sequence_share,
        saved_feature=block.saved_feature / ranks,
        recomputable=tuple(
            replace(
                part,
                saved_sequence=part.saved_sequence / sequence_share,
                saved_feature=part.saved_feature / ranks,
            )
            for part in block.recomputable
        ),
    )


def operator_is_partial(operator: Operator) -> bool:
    """Whether a shard of this operator yields a partial sum that has to be reduced."""
    return isinstance(operator, Gemm | GroupedGemm | Elementwise) and operator.cut is Cut.ROW


def _rows(operator: Gemm | GroupedGemm) -> float:
    return operator.m if isinstance(operator, Gemm) else operator.rows


def _output_elements(operator: Operator) -> float:
    if isinstance(operator, Gemm | GroupedGemm):
        return _rows(operator) * operator.n
    assert isinstance(operator, Elementwise)
    return operator.output_elements


def _shard(operator: Operator, mapping: TrainingMapping) -> Operator:
    ranks, by_sequence = mapping.tensor, mapping.sequence_parallel
    match operator:
        case Gemm(cut=Cut.COLUMN):
            return replace(operator, n=-(-operator.n // ranks))
        case Gemm(cut=Cut.ROW):
            return replace(operator, k=-(-operator.k // ranks))
        case Gemm(cut=Cut.FEATURE):
            return replace(operator, batch=-(-operator.batch // ranks))
        case Gemm(cut=Cut.SEQUENCE) if by_sequence:
            return replace(operator, m=-(-operator.m // ranks))
        case GroupedGemm(cut=Cut.COLUMN, experts=experts):
            return replace(operator, experts=experts // mapping.expert, n=operator.n // ranks)
        case GroupedGemm(cut=Cut.ROW, experts=experts):
            return replace(operator, experts=experts // mapping.expert, k=operator.k // ranks)
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
        case Collective(group="expert") if by_sequence:
            return replace(operator, message_bytes=operator.message_bytes / ranks)
        case Collective(group="context"):
            # Every rank of the tensor group exchanges its own heads.
            return replace(operator, message_bytes=operator.message_bytes / ranks)
        case _:
            return operator
