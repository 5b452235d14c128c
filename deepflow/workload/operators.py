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

# What keeps 16 bits where other weights are stored or multiplied in fewer: checkpoints of TensorRT
# Model Optimizer and LLM Compressor leave it out, and so does the training of DeepSeek-V3 (arXiv
# 2412.19437, 3.3.1).
_WIDE = ("vocabulary_projection", "expert_router")

# How the backward pass's products are named; nothing waits for the gradients of weights.
INPUT_GRADIENT, WEIGHT_GRADIENT = "input_gradient", "weight_gradient"


class Cut(Enum):
    """How tensor parallelism may cut an operator; the module's docstring says what each means."""

    COLUMN = "column"
    ROW = "row"
    FEATURE = "feature"
    SEQUENCE = "sequence"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Gemm:
    """``C[m,n] = A[m,k] B[k,n]``, ``batch`` times; ``weight`` when B is a parameter matrix.

    ``stored_bytes``: of an element of B in memory, where kernels widen it (None: as multiplied).
    """

    name: str
    m: int
    k: int
    n: int
    cut: Cut = Cut.WHOLE
    weight: bool = True
    batch: int = 1
    stored_bytes: float | None = None

    @property
    def flops(self) -> float:
        """FLOP of all products: a multiplication and an addition per term of a sum."""
        return 2.0 * self.batch * self.m * self.k * self.n


@dataclass(frozen=True, slots=True)
class GroupedGemm:
    """Products of ``experts`` weight matrices [k,n], all on this device, in one kernel.

    ``rows`` rows of activations are dealt out among the experts. Forward and for the gradient of
    the input, each expert multiplies its rows by its matrix. With ``sums_rows`` it is the gradient
    of the weights: every expert yields a [k,n] matrix, summed over its rows. ``stored_bytes`` as
    in ``Gemm``.
    """

    name: str
    rows: float
    experts: int
    k: int
    n: int
    cut: Cut = Cut.WHOLE
    sums_rows: bool = False
    stored_bytes: float | None = None

    @property
    def flops(self) -> float:
        """FLOP for the rows of all experts, without padding."""
        return 2.0 * self.rows * self.k * self.n


@dataclass(frozen=True, slots=True)
class Attention:
    """Fused self-attention over ``batch`` sequences: ``query_len`` last positions of ``kv_len``.

    The fused kernel (FlashAttention, arXiv 2205.14135 and 2307.08691) keeps the score matrix
    on chip, so memory traffic is queries, keys, values and outputs only. ``passes`` is the
    number of score-sized matrix products: over ``head_dim`` features of queries and keys, or
    ``value_dim`` features of values and outputs. ``window``: how many positions a query sees, its
    own included (None: all). ``shards``: devices among which the queries of a sequence are dealt
    out so that all have the same work; this is one device's part. ``key_bytes``: of an element of
    keys and values (None: as of queries). ``latent``: the values are part of the keys, and one
    read of them serves all heads.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    query_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    causal: bool = True
    window: int | None = None
    shards: int = 1
    passes: int = FORWARD_PASSES
    key_bytes: float | None = None
    latent: bool = False

    @property
    def scores(self) -> float:
        """Scores per sequence and head on this device; those that the mask hides are skipped."""
        queries, keys = self.query_len, self.kv_len
        if not self.causal:
            per_query = keys if self.window is None else min(keys, self.window)
            return float(queries * per_query) / self.shards
        # Query i (from 0) is at position keys - queries + i and sees the positions up to its own.
        first = keys - queries + 1
        total = queries * (first + keys) / 2
        if self.window is not None and keys > self.window:
            short = max(0, min(queries, self.window - first + 1))
            total = short * (2 * first + short - 1) / 2 + (queries - short) * self.window
        return total / self.shards

    @property
    def flops(self) -> float:
        """FLOP that the kernel executes."""
        # Forward: scores (head_dim), outputs (value_dim). Backward: the scores again and the
        # gradients of queries and keys (head_dim), those of probabilities and values (value_dim).
        features = self.head_dim * -(-self.passes // 2) + self.value_dim * (self.passes // 2)
        return 2.0 * self.batch * self.heads * self.scores * features


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
    """Communication over one group: tensor, context, expert, data, expert_data or pipeline.

    ``message_bytes`` is the full buffer: what all_reduce reduces, what all_gather ends up with,
    what reduce_scatter starts from; of send and ring_exchange what one transfer moves; of
    all_to_all what one rank sends out, its own part included. ``gradient_kind`` is the
    communication that the backward pass needs in its place. Either may be "none": a replicated
    input costs nothing forward and an all_reduce backward.

    ``beside``: how many of the operators that follow do not wait for it. It begins when the
    operator before it has ended, and runs on the group's link beside them. ``gradient_beside``:
    the same in the backward pass; where there is any, a gradient of weights is put behind it.
    ``times``: so many calls follow each other, each with an equal part of ``message_bytes``.
    """

    name: str
    kind: str
    group: str
    message_bytes: float
    gradient_kind: str = "none"
    beside: int = 0
    gradient_beside: int = 0
    times: int = 1


Operator = Gemm | GroupedGemm | Attention | Elementwise | Collective


@dataclass(frozen=True, slots=True)
class Recomputable:
    """A part of a block that need not be kept: recomputing ``operators`` gives it back.

    ``saved_sequence`` and ``saved_feature``: bytes of it, as in ``Block`` and included there.
    """

    name: str
    operators: tuple[str, ...]
    saved_sequence: float = 0.0
    saved_feature: float = 0.0


@dataclass(frozen=True, slots=True)
class Block:
    """A chain of operators with the parameters and saved activations of one instance.

    ``parameters`` are cut over the tensor group, ``replicated_parameters`` are not;
    ``expert_parameters`` are those of all experts, cut over the expert and the tensor group.
    ``saved_sequence`` and ``saved_feature`` are bytes kept from the forward to the backward
    pass: those that sequence parallelism shards and those that tensor parallelism shards.
    ``recomputable`` parts may be left out and computed again.
    """

    name: str
    operators: tuple[Operator, ...]
    parameters: float = 0.0
    replicated_parameters: float = 0.0
    expert_parameters: float = 0.0
    saved_sequence: float = 0.0
    saved_feature: float = 0.0
    recomputable: tuple[Recomputable, ...] = ()


def stays_wide(operator: Gemm | GroupedGemm) -> bool:
    """Whether a product, or a gradient of it, is of the type of activations in any case."""
    return operator.name.partition(".")[0] in _WIDE


def backward(block: Block) -> Block:
    """The gradient block of a forward block, in reverse order.

    A multiplication becomes two: the gradient of its input, ``dA[m,k] = dC[m,n] B^T``, and of
    its weight, ``dB[k,n] = A^T dC``. A gathered input is needed again for the weight's
    gradient; that second gather runs beside the input gradient's multiplication (Megatron-LM,
    arXiv 2205.05198, 4.2.2).
    """
    operators: list[Operator] = []
    for operator in reversed(block.operators):
        match operator:
            case Gemm(name=name, m=m, k=k, n=n, cut=cut, weight=weight, batch=batch):
                other = WEIGHT_GRADIENT if weight else "other_gradient"
                operators.append(Gemm(f"{name}.{INPUT_GRADIENT}", m, n, k, cut, weight, batch))
                operators.append(Gemm(f"{name}.{other}", k, m, n, cut, weight, batch))
            case GroupedGemm(name=name, rows=rows, experts=experts, k=k, n=n, cut=cut):
                operators.append(GroupedGemm(f"{name}.{INPUT_GRADIENT}", rows, experts, n, k, cut))
                operators.append(
                    GroupedGemm(f"{name}.{WEIGHT_GRADIENT}", rows, experts, k, n, cut, True)
                )
            case Attention(name=name):
                operators.append(replace(operator, name=f"{name}.gradient", passes=BACKWARD_PASSES))
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
            case Collective(gradient_kind=gradient) if gradient != "none":
                collective = replace(
                    operator,
                    name=f"{operator.name}.gradient",
                    kind=gradient,
                    gradient_kind=operator.kind,
                    beside=operator.gradient_beside,
                    gradient_beside=operator.beside,
                )
                # Only a tensor group brings in what the product behind it multiplies.
                feeds_product = (
                    operator.group == "tensor"
                    and bool(operators)
                    and operators[-1].name.endswith(WEIGHT_GRADIENT)
                )
                if feeds_product and operator.kind == "all_gather":
                    again = replace(operator, name=f"{operator.name}.again", beside=1)
                    operators.insert(-2, again)
                if feeds_product and collective.beside:
                    operators.insert(-1, collective)
                else:
                    operators.append(collective)
    return Block(
        f"{block.name}.backward",
        tuple(operators),
        block.parameters,
        block.replicated_parameters,
        block.expert_parameters,
    )
