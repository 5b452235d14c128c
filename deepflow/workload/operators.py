"""The operators of the one graph that every prediction reads.

A workload is a set of ``Block``s: chains of operators that run in order on one device
(an embedding, a transformer layer, a language-model head). Identical layers, ranks and
microbatches share one block; how often and where a block runs is the schedule's business.
Mapping (``deepflow/mapping``) turns a block into its shard and inserts collectives,
``backward`` turns a forward block into its gradient block, costs read the result.

Operators say how tensor parallelism may cut them (``Cut``):

- ``COLUMN``: output features of a matrix multiplication (Megatron-LM, arXiv 1909.08053, 3)
- ``ROW``: input features; the output is a partial sum that has to be reduced
- ``FEATURE``: heads or hidden features of what lies between a column and a row cut
- ``SEQUENCE``: tokens, when sequence parallelism is on (arXiv 2205.05198, 4.2)
- ``WHOLE``: every rank does all of it
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

FP32 = 4  # bytes

# Score-sized matrix products of fused attention; backward, the scores are computed again.
FORWARD_PASSES, BACKWARD_PASSES = 2, 5


class Cut(Enum):
    COLUMN = "column"
    ROW = "row"
    FEATURE = "feature"
    SEQUENCE = "sequence"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Gemm:
    """``C[m,n] = A[m,k] B[k,n]``; ``weight`` when B is a parameter matrix that has a gradient."""

    name: str
    m: int
    k: int
    n: int
    cut: Cut = Cut.WHOLE
    weight: bool = True

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n


@dataclass(frozen=True, slots=True)
class Attention:
    """Fused causal self-attention over ``batch`` sequences of ``seq_len`` tokens.

    The fused kernel (FlashAttention, arXiv 2205.14135 and 2307.08691) keeps the score matrix
    on chip, so memory traffic is queries, keys, values and outputs only. ``passes`` is the
    number of score-sized matrix products.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    seq_len: int
    head_dim: int
    passes: int = FORWARD_PASSES

    @property
    def flops(self) -> float:
        """FLOP that the kernel executes; blocks above the diagonal are skipped."""
        return (
            self.passes
            * 2.0
            * self.batch
            * self.heads
            * self.head_dim
            * self.seq_len
            * (self.seq_len + 1)
            / 2
        )

    @property
    def elements_moved(self) -> float:
        """Elements read and written in device memory: Q, K, V, O and, backward, gradients."""
        queries = self.batch * self.seq_len * self.heads * self.head_dim
        keys = self.batch * self.seq_len * self.kv_heads * self.head_dim
        once = 2.0 * queries + 2.0 * keys
        return once if self.passes == FORWARD_PASSES else 2.0 * once + queries


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Kernels limited by memory traffic: norms, activations, residuals, losses, updates.

    ``bytes_moved`` and ``flops`` are totals over ``kernels`` launches; ``gradient_bytes`` and
    ``gradient_kernels`` describe the backward counterpart (zero kernels: there is none).
    ``output_elements`` is what the ranks of a shard have to sum up between them: the partial
    output of a ROW cut, or the row statistics (32-bit) of a FEATURE cut.
    """

    name: str
    bytes_moved: float
    flops: float
    kernels: int = 1
    gradient_bytes: float = 0.0
    gradient_kernels: int = 0
    cut: Cut = Cut.WHOLE
    output_elements: float = 0.0

    def scaled(self, share: float) -> Elementwise:
        """A rank's ``share`` of the work, in as many kernels."""
        return replace(
            self,
            bytes_moved=self.bytes_moved * share,
            flops=self.flops * share,
            gradient_bytes=self.gradient_bytes * share,
        )


@dataclass(frozen=True, slots=True)
class Collective:
    """Communication over one parallel dimension (``group``: tensor, data, pipeline).

    ``message_bytes`` is the full buffer: what all_reduce reduces, what all_gather ends up
    with, what reduce_scatter starts from, what send transfers. ``gradient_kind`` is the
    communication that the backward pass needs in its place. Either may be "none": a replicated
    input costs nothing forward and an all_reduce backward.
    """

    name: str
    kind: str
    group: str
    message_bytes: float
    gradient_kind: str = "none"


Operator = Gemm | Attention | Elementwise | Collective


@dataclass(frozen=True, slots=True)
class Block:
    """A chain of operators with the parameters and saved activations of one instance.

    ``parameters`` are cut over the tensor group, ``replicated_parameters`` are not.
    ``saved_sequence`` and ``saved_feature`` are bytes kept from the forward to the backward
    pass: those that sequence parallelism shards and those that tensor parallelism shards.
    """

    name: str
    operators: tuple[Operator, ...]
    parameters: float = 0.0
    replicated_parameters: float = 0.0
    saved_sequence: float = 0.0
    saved_feature: float = 0.0


def backward(block: Block) -> Block:
    """The gradient block of a forward block, in reverse order.

    A multiplication becomes two: the gradient of its input, ``dA[m,k] = dC[m,n] B^T``, and of
    its weight, ``dB[k,n] = A^T dC``. A gathered input is needed again for the weight's
    gradient; that second gather runs beside the input gradient's multiplication (Megatron-LM)
    and is not repeated here.
    """
    operators: list[Operator] = []
    for operator in reversed(block.operators):
        match operator:
            case Gemm(name=name, m=m, k=k, n=n, cut=cut):
                operators.append(Gemm(f"{name}.input_gradient", m, n, k, cut))
                operators.append(Gemm(f"{name}.weight_gradient", k, m, n, cut))
            case Attention():
                operators.append(
                    Attention(
                        f"{operator.name}.gradient",
                        operator.batch,
                        operator.heads,
                        operator.kv_heads,
                        operator.seq_len,
                        operator.head_dim,
                        passes=BACKWARD_PASSES,
                    )
                )
            case Elementwise():
                if operator.gradient_kernels:
                    operators.append(
                        Elementwise(
                            f"{operator.name}.gradient",
                            operator.gradient_bytes,
                            operator.flops * operator.gradient_bytes / operator.bytes_moved,
                            operator.gradient_kernels,
                            cut=operator.cut,
                        )
                    )
            case Collective():
                if operator.gradient_kind != "none":
                    operators.append(
                        Collective(
                            f"{operator.name}.gradient",
                            operator.gradient_kind,
                            operator.group,
                            operator.message_bytes,
                        )
                    )
    return Block(
        f"{block.name}.backward",
        tuple(operators),
        block.parameters,
        block.replicated_parameters,
    )
