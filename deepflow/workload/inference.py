"""Passes of a model that answers prompts, made from the blocks that training uses.

A pass takes ``queries`` new positions of every sequence and ``keys`` positions in all, the new ones
included: a prompt, a part of one, or a single position when tokens are generated. What differs from
a forward pass of training: attention reads cached keys and values in their own precision and the
new ones are added to the cache; weights may be stored in fewer bits; the head looks at the last
position only and chooses a token instead of computing a loss; nothing is kept for a backward pass.

Latent attention does not expand its cache when it generates: the matrices that would do so are
applied to queries and outputs of every head, and all heads attend to one latent (DeepSeek-V2, arXiv
2405.04434, 2.1.2). Positions that a draft proposes (arXiv 2211.17192) are verified together, as
further heads that read the same keys.
"""

from __future__ import annotations

from dataclasses import replace

from deepflow.config.model import LlmModel
from deepflow.record import record
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
    stays_wide,
)
from deepflow.workload.transformer import TransformerBlocks, transformer_blocks

# Kernels that choose a token: a copy in 32 bits, probabilities, the choice among the most probable.
SAMPLING_KERNELS = 3
# Queries, of all heads that share keys, for which kernels of generation read them once: the largest
# group that TensorRT-LLM's take.
QUERIES_PER_READ = 32


@record(frozen=True)
class Numbers:
    """Bytes of an element of activations, cached keys and values, and stored weights.

    ``weight``: None where weights are multiplied as they are stored. ``dispatched``: of activations
    on their way to experts. ``fusion`` as ``sw_param.kernel_fusion``.
    """

    activation: float
    cached: float
    weight: float | None
    dispatched: float
    fusion: str


def cached_elements(model: LlmModel) -> float:
    """Elements of keys and values of one position in one layer; of latent attention its latent."""
    if model.kv_latent_dim is not None:
        return model.kv_latent_dim + model.rotary_head_dim
    return model.kv_heads * (model.head_width + model.value_width)


def pass_blocks(
    model: LlmModel,
    numbers: Numbers,
    *,
    sequences: int,
    queries: int,
    keys: int,
    generates: bool,
    context: int = 1,
    context_method: str = "ring",
) -> TransformerBlocks:
    """Blocks of a pass over ``sequences``, before any sharding but that of ``context``.

    ``generates``: a step of generation, in which every device of a context group has the new
    positions and a part of the keys. Otherwise the positions of prompts are dealt out among the
    devices.
    """
    positions = model.max_position if model.max_position is not None else model.seq_len
    passed = replace(model, seq_len=queries, max_position=positions, dropout=0.0)
    blocks = transformer_blocks(
        passed,
        sequences,
        numbers.activation,
        numbers.fusion,
        context=1 if generates else context,
        context_method=context_method,
        dispatched=numbers.dispatched,
    )
    layers = {
        kind: _layer(block, model, numbers, sequences, queries, keys, generates, context)
        for kind, block in blocks.layers.items()
    }
    return TransformerBlocks(blocks.embedding, layers, _head(blocks.head, model, numbers))


def head_for(head: Block, rows: int) -> Block:
    """``head``, of any pass, for ``rows`` positions."""
    (projection,) = (item for item in head.operators if isinstance(item, Gemm))
    share = rows / projection.m
    operators = tuple(
        replace(item, m=rows) if isinstance(item, Gemm) else item.scaled(share)
        for item in head.operators
        if isinstance(item, Gemm | Elementwise)
    )
    return replace(head, operators=operators)


def attends_to(operator: Attention, keys: int, context: int) -> Attention:
    """A generating ``operator`` with ``keys`` positions, dealt out over ``context`` devices."""
    if context == 1:
        return replace(operator, kv_len=keys)
    seen = keys if operator.window is None else min(keys, operator.window)
    return replace(operator, kv_len=-(-seen // context), window=None)


def _layer(
    block: Block,
    model: LlmModel,
    numbers: Numbers,
    sequences: int,
    queries: int,
    keys: int,
    generates: bool,
    context: int,
) -> Block:
    latent = model.kv_latent_dim if generates else None
    tokens = sequences * queries if generates else -(-sequences * queries // context)
    operators: list[Operator] = []
    for operator in block.operators:
        match operator:
            case Attention():
                operators.append(_append(model, numbers, tokens))
                attention = replace(operator, kv_len=keys, key_bytes=numbers.cached)
                if not generates:
                    operators.append(attention)
                    continue
                together = max(
                    1, min(queries, QUERIES_PER_READ * operator.kv_heads // operator.heads)
                )
                attention = replace(
                    attention,
                    batch=sequences * -(-queries // together),
                    query_len=1,
                    heads=operator.heads * together,
                    shards=1,
                )
                if latent is not None:
                    attention = replace(
                        attention,
                        kv_heads=1,
                        head_dim=latent + model.rotary_head_dim,
                        value_dim=latent,
                        latent=True,
                    )
                operators.append(attends_to(attention, keys, context))
                if context > 1:
                    # Outputs over a part of the keys each, with the sums that weight them.
                    part = tokens * operator.heads * (attention.value_dim + 1) * numbers.activation
                    operators.append(
                        Collective("attention_combination", "all_gather", "context", context * part)
                    )
                if latent is not None:
                    operators.append(
                        _of_heads("value_up_projection", model, tokens, latent, model.value_width)
                    )
            case Gemm(name="key_value_up_projection") if latent is not None:
                operators.append(
                    _of_heads("query_absorption", model, tokens, model.head_width, latent)
                )
            case Gemm(name="key_value_up_projection"):
                # Cached latents are expanded for the new queries, too.
                every = -(-sequences * keys // context)
                operators.append(_stored(replace(operator, m=every), numbers))
            case Elementwise(name="key_assembly") if latent is not None:
                pass
            case Gemm() | GroupedGemm():
                operators.append(_stored(operator, numbers))
            case _:
                operators.append(operator)
    return replace(block, operators=tuple(operators))


def _of_heads(name: str, model: LlmModel, tokens: int, inner: int, outer: int) -> Gemm:
    return Gemm(name, tokens, inner, outer, Cut.FEATURE, batch=model.num_heads)


def _stored(operator: Gemm | GroupedGemm, numbers: Numbers) -> Gemm | GroupedGemm:
    if numbers.weight is None or stays_wide(operator):
        return operator
    if isinstance(operator, Gemm) and not operator.weight:
        return operator
    return replace(operator, stored_bytes=numbers.weight)


def _append(model: LlmModel, numbers: Numbers, tokens: int) -> Elementwise:
    """New keys and values go into the cache; fused kernels rotate keys on the way."""
    elements = tokens * cached_elements(model)
    fused = numbers.fusion == "fused" and model.position_embedding == "rotary"
    cut = Cut.FEATURE if model.kv_latent_dim is None else Cut.WHOLE
    moved = elements * (numbers.activation + numbers.cached)
    return Elementwise("key_value_append", moved, 0.0, 0 if fused else 1, cut=cut)


def _head(head: Block, model: LlmModel, numbers: Numbers) -> Block:
    """The head with a choice of tokens in the place of the loss."""
    operators: list[Operator] = []
    for operator in head.operators:
        if operator.name != "cross_entropy":
            operators.append(_stored(operator, numbers) if isinstance(operator, Gemm) else operator)
            continue
        projection = operators[-1]
        assert isinstance(projection, Gemm)
        logits = projection.m * model.vocab_size
        operators.append(
            Elementwise(
                "sampling",
                logits * (numbers.activation + 4 * FP32),
                6.0 * logits,
                SAMPLING_KERNELS,
            )
        )
    return replace(head, operators=tuple(operators))
