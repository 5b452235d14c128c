"""Transformers as operator blocks, for one microbatch, before any sharding.

A model is an ``embedding``, layers of one or two kinds and a ``head``. Shapes follow Megatron-LM
(arXiv 1909.08053) and Llama 2 (arXiv 2307.09288): grouped-query attention by ``kv_heads``, a gate
matrix for SwiGLU, rotary position embedding. Further: latent attention (DeepSeek-V2, arXiv
2405.04434, 2.1), mixture-of-experts layers with routed and shared experts (GShard, arXiv
2006.16668; DeepSeekMoE, arXiv 2401.06066), encoders without causal mask, and images cut into
patches (arXiv 2010.11929).

A layer is put together from small blocks, each of which knows its operators, its parameters and
what it keeps for the backward pass. Kept activations follow arXiv 2205.05198, 4.1: with dropout,
16-bit numbers and unfused attention a GPT layer keeps ``s b h (34 + 5 a s / h)`` bytes.

Not counted: gradients and additions of biases (they ride on products and fused kernels), dropout
inside of fused attention (its mask is drawn again from the seed), auxiliary losses of routers,
the class token, sorting received rows by expert where a device has several.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from deepflow.config.model import LlmModel
from deepflow.errors import InfeasiblePoint
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
    Recomputable,
)

DENSE, EXPERTS = "dense", "experts"  # kinds of layer
CORE_ATTENTION, ELEMENTWISE = "core_attention", "elementwise"  # names of recomputable parts

MASK = 1  # bytes of an element of a dropout mask


@record(frozen=True)
class Traffic:
    """Memory traffic of one element-wise step: bytes per element and kernels, both passes."""

    forward_bytes: float
    forward_kernels: int
    backward_bytes: float
    backward_kernels: int


@record(frozen=True)
class TransformerBlocks:
    """The blocks of a model for one microbatch; ``layers`` by kind, those that occur."""

    embedding: Block
    layers: dict[str, Block]
    head: Block


@record(frozen=True)
class _Work:
    """What every part of a model is made from; ``tokens`` of the microbatch on one device."""

    model: LlmModel
    sequences: int
    tokens: int
    precision: float
    fusion: str
    unfused_attention: bool
    context: int
    context_method: str
    dispatched: float


def layer_kinds(model: LlmModel) -> tuple[str, ...]:
    """Kind of each layer, first to last."""
    if model.num_experts is None:
        return (DENSE,) * model.num_layers
    first, period = model.num_dense_layers, model.expert_layer_period
    return tuple(
        EXPERTS if layer >= first and (layer - first) % period == 0 else DENSE
        for layer in range(model.num_layers)
    )


def transformer_blocks(
    model: LlmModel,
    micro_batch_size: int,
    precision: float,
    fusion: str,
    *,
    unfused_attention: bool = False,
    context: int = 1,
    context_method: str = "ring",
    dispatched: float | None = None,
) -> TransformerBlocks:
    """The blocks of ``model`` for ``micro_batch_size`` sequences of ``precision``-byte numbers.

    ``context``: devices among which the tokens of every sequence are dealt out; the blocks are
    one device's. ``unfused_attention``: scores are written to memory. ``dispatched``: bytes of a
    number on its way to experts, if it is not ``precision``.

    Raises:
        InfeasiblePoint: a ring passes keys and values beside an attention kernel that can take
            them piece by piece; unfused attention cannot.
    """
    if unfused_attention and context > 1 and context_method == "ring":
        raise InfeasiblePoint(
            "parallelism.context_method ring needs sw_param.attention_kernel fused; unfused"
            " attention can only gather keys and values (all_gather)"
        )
    work = _Work(
        model,
        micro_batch_size,
        -(-micro_batch_size * model.seq_len // context),
        precision,
        fusion,
        unfused_attention,
        context,
        context_method,
        precision if dispatched is None else dispatched,
    )
    kinds = set(layer_kinds(model))
    attention = _attention(work)
    layers = {}
    if DENSE in kinds:
        layers[DENSE] = _joined("layer", attention, _dense_feed_forward(work))
    if EXPERTS in kinds:
        layers[EXPERTS] = _joined("expert_layer", attention, _expert_feed_forward(work))
    return TransformerBlocks(_embedding(work), layers, _head(work))


@lru_cache(maxsize=16)
def _traffic(precision: float, fusion: str) -> dict[str, Traffic]:
    """Reads and writes per element, counted from what each kernel has to touch.

    Fused: one kernel a step, as Megatron-LM has them for normalisation (forward, input read and
    output written; backward, output gradient and input read, input gradient written), bias with
    activation, bias with dropout with residual (output and mask written beside the reads),
    scale with mask with softmax, rotary embedding, permutation of tokens. Where the skip connection
    and a branch meet in the backward pass, two gradients are read and their sum written. The loss
    is one kernel over the logits; Megatron-LM's own, with 32-bit copies, is nearer to eager.

    Eager: what a framework does that runs the textbook formula one operation at a time, with the
    loss in 32-bit floats as Megatron-LM and nanotron do: cast, row maximum, subtract,
    exponential, sum, divide; backward, subtract the one-hot target and cast back. Softmax over
    scores: mask, softmax into 32 bits, cast. Routing works on 32-bit scores: cast, softmax, choice,
    table of chosen experts, their counts and order. Rows that come back from experts are weighted
    and then added up; fused, the activation inside the experts applies the weights.
    """
    p = precision
    always = {
        "norm": Traffic(2 * p, 1, 3 * p, 1),
        "residual": Traffic(3 * p, 1, 3 * p, 1),
        "gelu": Traffic(2 * p, 1, 3 * p, 1),
        "relu": Traffic(2 * p, 1, 3 * p, 1),
        "embedding": Traffic(2 * p, 1, 3 * p, 1),
        "dropout": Traffic(2 * p + MASK, 1, 2 * p + MASK, 1),
    }
    if fusion == "fused":
        return always | {
            "swiglu": Traffic(3 * p, 1, 5 * p, 1),
            "rotary": Traffic(2 * p, 1, 2 * p, 1),
            "loss": Traffic(p, 1, 2 * p, 1),
            "dropout_residual": Traffic(3 * p + MASK, 1, 5 * p + MASK, 2),
            "softmax": Traffic(2 * p, 1, 3 * p, 1),
            "key_assembly": Traffic(2 * p, 1, 2 * p, 1),
            "routing": Traffic(p + FP32, 1, p + 2 * FP32, 1),
            "permutation": Traffic(2 * p, 1, 2 * p, 1),
            "unpermutation": Traffic(2 * p, 1, 2 * p, 1),
        }
    return always | {
        "swiglu": Traffic(5 * p, 2, 8 * p, 3),
        "rotary": Traffic(9 * p, 5, 9 * p, 5),
        "loss": Traffic(p + 9 * FP32, 8, p + 3 * FP32, 3),
        "dropout_residual": Traffic(5 * p + MASK, 2, 5 * p + MASK, 2),
        "softmax": Traffic(4 * p + 2 * FP32, 3, 4 * p + 5 * FP32, 4),
        # Queries are put together from their two parts too.
        "key_assembly": Traffic(4 * p, 2, 4 * p, 2),
        "routing": Traffic(p + 6 * FP32, 8, p + 5 * FP32, 4),
        "permutation": Traffic(2 * p, 1, 3 * p, 2),
        "unpermutation": Traffic(5 * p, 3, 5 * p, 3),
    }


def _joined(name: str, *parts: Block) -> Block:
    """One block that runs ``parts`` one after another; equally named recomputable parts merge."""
    recomputable: dict[str, Recomputable] = {}
    for part in parts:
        for item in part.recomputable:
            before = recomputable.get(item.name, Recomputable(item.name, ()))
            recomputable[item.name] = Recomputable(
                item.name,
                before.operators + item.operators,
                before.saved_sequence + item.saved_sequence,
                before.saved_feature + item.saved_feature,
            )
    return Block(
        name,
        tuple(operator for part in parts for operator in part.operators),
        sum(part.parameters for part in parts),
        sum(part.replicated_parameters for part in parts),
        sum(part.expert_parameters for part in parts),
        sum(part.saved_sequence for part in parts),
        sum(part.saved_feature for part in parts),
        tuple(recomputable.values()),
    )


def _step(
    work: _Work, name: str, kind: str, elements: float, flops_per_element: float, cut: Cut
) -> Elementwise:
    """An element-wise step that moves what the table says for its ``kind``."""
    step = _traffic(work.precision, work.fusion)[kind]
    return Elementwise(
        name,
        step.forward_bytes * elements,
        flops_per_element * elements,
        step.forward_kernels,
        step.backward_bytes * elements,
        step.backward_kernels,
        cut,
    )


def _norm(work: _Work, name: str, features: int) -> Block:
    """Keeps its input and its output; the output is quickly computed again."""
    layernorm = work.model.normalization == "layernorm"
    size = work.tokens * features * work.precision
    return Block(
        name,
        (_step(work, name, "norm", work.tokens * features, 5 if layernorm else 4, Cut.SEQUENCE),),
        replicated_parameters=(2 if layernorm else 1) * features,
        saved_sequence=2 * size,
        recomputable=(Recomputable(ELEMENTWISE, (name,), saved_sequence=size),),
    )


def _residual(work: _Work, name: str) -> Block:
    """Addition onto the residual stream, after dropout if there is any (its mask is kept)."""
    elements = work.tokens * work.model.hidden_dim
    if not work.model.dropout:
        return Block(name, (_step(work, name, "residual", elements, 1, Cut.SEQUENCE),))
    return Block(
        name,
        (_step(work, name, "dropout_residual", elements, 2, Cut.SEQUENCE),),
        saved_sequence=MASK * elements,
    )


def _projection(work: _Work, name: str, inputs: int, outputs: int, cut: Cut) -> Block:
    """A weight matrix for all tokens; GPT-style models, known by their norm, add a bias.

    Cut by sequence, the weights are replicated. The bias of a row cut is added after the
    reduction and replicated too.
    """
    weights = inputs * outputs
    bias = outputs if work.model.normalization == "layernorm" else 0
    operators = (Gemm(name, work.tokens, inputs, outputs, cut),)
    match cut:
        case Cut.SEQUENCE:
            return Block(name, operators, replicated_parameters=weights + bias)
        case Cut.ROW:
            return Block(name, operators, weights, bias)
        case _:
            return Block(name, operators, weights + bias)


def _attention(work: _Work) -> Block:
    """Norm, projections, attention, output projection and residual."""
    model = work.model
    heads, value_dim = model.num_heads, model.value_width
    if model.kv_latent_dim is None:
        projections = _plain_projections(work)
        kv_heads, head_dim = model.kv_heads, model.head_width
    else:
        projections = _latent_projections(work, model.kv_latent_dim)
        kv_heads, head_dim = heads, model.head_width + model.rotary_head_dim
    own_bytes = work.tokens * kv_heads * (head_dim + value_dim) * work.precision
    before, after = _key_value_exchange(work, own_bytes)
    core = _unfused_attention if work.unfused_attention else _fused_attention
    return _joined(
        "attention",
        _norm(work, "attention_norm", model.hidden_dim),
        projections,
        Block("key_value_exchange", before),
        core(work, kv_heads, head_dim),
        Block("key_value_exchange_backward", after),
        Block(
            "queries_keys_values_outputs",
            (),
            saved_feature=work.tokens * heads * (head_dim + value_dim) * work.precision + own_bytes,
        ),
        _projection(
            work, "attention_output_projection", heads * value_dim, model.hidden_dim, Cut.ROW
        ),
        _residual(work, "attention_residual"),
    )


def _plain_projections(work: _Work) -> Block:
    """Queries, keys and values by one matrix, the first two rotated if the model says so."""
    model = work.model
    keys = model.kv_heads * model.head_width
    queries = model.num_heads * model.head_width
    outputs = queries + keys + model.kv_heads * model.value_width
    parts = [_projection(work, "qkv_projection", model.hidden_dim, outputs, Cut.COLUMN)]
    if model.position_embedding == "rotary":
        rotated = work.tokens * (queries + keys)
        rotary = _step(work, "rotary_embedding", "rotary", rotated, 3, Cut.FEATURE)
        parts.append(Block("rotary_embedding", (rotary,)))
    return _joined("projections", *parts)


def _latent_projections(work: _Work, latent: int) -> Block:
    """Down to latents, which every rank has whole, and up to heads (arXiv 2405.04434, 2.1).

    The part of a key that is rotated comes out of the projection down and is the same for all
    heads; keys are put together from both parts. Training expands keys and values to all heads.
    """
    model = work.model
    width, heads, rotary = model.hidden_dim, model.num_heads, model.rotary_head_dim
    query_width = heads * (model.head_width + rotary)
    if model.query_latent_dim is None:
        queries = [_projection(work, "query_projection", width, query_width, Cut.COLUMN)]
    else:
        queries = [
            _projection(work, "query_down_projection", width, model.query_latent_dim, Cut.SEQUENCE),
            _norm(work, "query_latent_norm", model.query_latent_dim),
            _projection(
                work, "query_up_projection", model.query_latent_dim, query_width, Cut.COLUMN
            ),
        ]
    parts = [
        *queries,
        _projection(work, "key_value_down_projection", width, latent + rotary, Cut.SEQUENCE),
        _norm(work, "key_value_latent_norm", latent),
        _projection(
            work,
            "key_value_up_projection",
            latent,
            heads * (model.head_width + model.value_width),
            Cut.COLUMN,
        ),
    ]
    if rotary:
        rotated, keys = work.tokens * (heads + 1) * rotary, work.tokens * query_width
        steps = (
            _step(work, "rotary_embedding", "rotary", rotated, 3, Cut.FEATURE),
            _step(work, "key_assembly", "key_assembly", keys, 0, Cut.FEATURE),
        )
        parts.append(Block("rotary_embedding", steps))
    return _joined("projections", *parts)


def _fused_attention(work: _Work, kv_heads: int, head_dim: int) -> Block:
    """One kernel; besides its inputs and output it keeps the 32-bit statistics of each row."""
    model = work.model
    attention = Attention(
        "attention",
        work.sequences,
        model.num_heads,
        kv_heads,
        model.seq_len,
        model.seq_len,
        head_dim,
        model.value_width,
        model.causal,
        model.attention_window,
        work.context,
    )
    statistics = work.tokens * model.num_heads * FP32
    return Block("attention", (attention,), saved_feature=statistics)


def _unfused_attention(work: _Work, kv_heads: int, head_dim: int) -> Block:
    """Scores, softmax, dropout and outputs as kernels of their own; a mask saves nothing.

    ``kv_heads`` does not matter: keys and values are expanded to all query heads. Kept per score
    (arXiv 2205.05198, 4.1): the probabilities (in 32 bits too if eager) and, with dropout, its
    mask and its output. All of it may be recomputed (the same, 5).
    """
    model = work.model
    heads, keys = model.num_heads, model.seq_len
    queries, batch = -(-keys // work.context), work.sequences * heads
    scores = batch * queries * keys

    def product(name: str, inner: int, outer: int) -> Gemm:
        return Gemm(name, queries, inner, outer, Cut.FEATURE, weight=False, batch=batch)

    operators: list[Operator] = [
        product("attention_scores", head_dim, keys),
        _step(work, "attention_softmax", "softmax", scores, 5, Cut.FEATURE),
    ]
    per_score = work.precision if work.fusion == "fused" else FP32
    if model.dropout:
        operators.append(_step(work, "attention_dropout", "dropout", scores, 1, Cut.FEATURE))
        per_score += MASK + work.precision
    elif work.fusion == "eager":
        per_score += work.precision
    operators.append(product("attention_context", keys, model.value_width))
    kept = scores * per_score
    names = tuple(operator.name for operator in operators)
    return Block(
        "attention",
        tuple(operators),
        saved_feature=kept,
        recomputable=(Recomputable(CORE_ATTENTION, names, saved_feature=kept),),
    )


def _key_value_exchange(
    work: _Work, own_bytes: float
) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
    """Collectives before and after attention over sequences that are dealt out among devices.

    ``own_bytes``: keys and values of this device's tokens, all heads (for latent attention, of the
    expanded heads). What stands after the attention has no forward part: the backward pass runs
    the forward pass in reverse order.

    Ring (arXiv 2310.01889): keys and values go round beside the attention; backward their
    gradients go with them. All-gather (Llama 3, arXiv 2407.21783, 3.3.2): keys and values of the
    whole sequences are gathered before the attention and again before its backward pass, and the
    gradients of all of them are summed up and scattered after it.
    """
    if work.context == 1:
        return (), ()
    if work.context_method == "ring":
        name = "attention_exchange"
        return (
            (Collective(name, "ring_exchange", "context", own_bytes, beside=1),),
            (
                Collective(
                    f"{name}_backward",
                    "none",
                    "context",
                    2 * own_bytes,
                    "ring_exchange",
                    gradient_beside=1,
                ),
            ),
        )
    name, all_bytes = "key_value_gather", work.context * own_bytes
    return (
        (Collective(name, "all_gather", "context", all_bytes, "reduce_scatter"),),
        (Collective(f"{name}_backward", "none", "context", all_bytes, "all_gather"),),
    )


def _up_width(model: LlmModel, ffn: int) -> int:
    """Outputs of the projection before the activation; SwiGLU has a gate beside each."""
    return 2 * ffn if model.activation == "swiglu" else ffn


def _activation(work: _Work, name: str, rows: float, ffn: int) -> Block:
    """Keeps its input, its output and, if eager, the activated gate; all but the input can go."""
    gated = work.model.activation == "swiglu"
    again = rows * ffn * (2 if gated and work.fusion == "eager" else 1) * work.precision
    return Block(
        name,
        (_step(work, name, work.model.activation, rows * ffn, 5, Cut.FEATURE),),
        saved_feature=rows * _up_width(work.model, ffn) * work.precision + again,
        recomputable=(Recomputable(ELEMENTWISE, (name,), saved_feature=again),),
    )


def _feed_forward(work: _Work, prefix: str, ffn: int) -> Block:
    """Up, activation, down, for all tokens."""
    model = work.model
    name = "activation" if prefix == "feed_forward" else f"{prefix}_activation"
    up_width = _up_width(model, ffn)
    return _joined(
        prefix,
        _projection(work, f"{prefix}_up", model.hidden_dim, up_width, Cut.COLUMN),
        _activation(work, name, work.tokens, ffn),
        _projection(work, f"{prefix}_down", ffn, model.hidden_dim, Cut.ROW),
    )


def _dense_feed_forward(work: _Work) -> Block:
    return _joined(
        "feed_forward",
        _norm(work, "feed_forward_norm", work.model.hidden_dim),
        _feed_forward(work, "feed_forward", work.model.feed_forward_dim),
        _residual(work, "feed_forward_residual"),
    )


def _expert_feed_forward(work: _Work) -> Block:
    """Norm, router, routed experts, shared experts and residual.

    A device sends ``rows`` of activations, one per token and chosen expert, and gets as many back.
    With a capacity factor there are so many rows, dropped or padded, whatever the routing;
    without, the device that is looked at receives ``expert_imbalance`` times as many, and the
    exchange lasts until it has them.
    """
    model = work.model
    assert model.num_experts is not None
    width, ffn, experts = model.hidden_dim, model.expert_width, model.num_experts
    capacity = model.expert_capacity_factor
    rows = work.tokens * model.experts_per_token * (capacity or 1.0)
    received = rows if capacity else rows * model.expert_imbalance
    arriving, returning = (received * width * size for size in (work.dispatched, work.precision))
    up_width = _up_width(model, ffn)
    scores = work.tokens * experts

    # Gradients go the other way round: to experts where rows return from them, in the narrow type.
    # As both passes have both exchanges, the sum is the same.
    def exchange(name: str, message: float) -> Block:
        return Block(name, (Collective(name, "all_to_all", "expert", message, "all_to_all"),))

    def grouped(name: str, inner: int, outer: int, cut: Cut) -> Block:
        product = GroupedGemm(name, received, experts, inner, outer, cut)
        return Block(name, (product,), expert_parameters=experts * inner * outer)

    routing = _step(work, "expert_routing", "routing", scores, 6, Cut.SEQUENCE)
    permutation = _step(work, "expert_permutation", "permutation", rows * width, 0, Cut.SEQUENCE)
    back = _step(work, "expert_unpermutation", "unpermutation", rows * width, 2, Cut.SEQUENCE)
    parts = [
        _norm(work, "feed_forward_norm", width),
        Block(
            "expert_router",
            (Gemm("expert_router", work.tokens, width, experts, Cut.SEQUENCE), routing),
            replicated_parameters=width * experts,
            saved_sequence=scores * FP32,
        ),
        # The experts' input is kept where it arrives.
        Block("expert_permutation", (permutation,), saved_sequence=arriving),
        exchange("expert_dispatch", arriving),
        grouped("expert_up", width, up_width, Cut.COLUMN),
        _activation(work, "expert_activation", received, ffn),
        grouped("expert_down", ffn, width, Cut.ROW),
        exchange("expert_combine", returning),
        # Weights applied here need the unweighted rows for their gradients.
        Block(
            "expert_unpermutation",
            (back,),
            saved_sequence=rows * width * work.precision if work.fusion == "eager" else 0,
        ),
    ]
    if model.num_shared_experts:
        added = _step(
            work, "shared_experts_addition", "residual", work.tokens * width, 1, Cut.SEQUENCE
        )
        parts += [
            _feed_forward(work, "shared_experts", model.shared_expert_width),
            Block("shared_experts_addition", (added,)),
        ]
    return _joined("expert_feed_forward", *parts, _residual(work, "feed_forward_residual"))


def _embedding(work: _Work) -> Block:
    """Rows of a table for tokens, a product for patches of images; dropout if there is any."""
    model = work.model
    elements = work.tokens * model.hidden_dim
    if model.patch_dim is None:
        step = _step(work, "embedding_lookup", "embedding", elements, 0, Cut.ROW)
        parts = [
            Block(
                "embedding_lookup",
                (replace(step, output_elements=elements),),
                parameters=model.vocab_size * model.hidden_dim,
            )
        ]
    else:
        parts = [
            _projection(work, "patch_embedding", model.patch_dim, model.hidden_dim, Cut.SEQUENCE)
        ]
    if model.position_embedding == "learned":
        positions = model.max_position if model.max_position is not None else model.seq_len
        parts.append(
            Block("position_embedding", (), replicated_parameters=positions * model.hidden_dim)
        )
    if model.dropout:
        dropout = _step(work, "embedding_dropout", "dropout", elements, 1, Cut.SEQUENCE)
        parts.append(Block("embedding_dropout", (dropout,), saved_sequence=MASK * elements))
    return _joined("embedding", *parts)


def _head(work: _Work) -> Block:
    """Norm, then a token of the vocabulary for every position or a class for every sequence.

    The norm's output and the logits are needed until the loss is known, right after.
    """
    model = work.model
    norm = replace(_norm(work, "final_norm", model.hidden_dim), recomputable=())
    extra = FP32 if work.fusion == "eager" else 0
    if model.num_classes is not None:
        logits = work.sequences * model.num_classes
        operators = (
            Gemm("classifier", work.sequences, model.hidden_dim, model.num_classes),
            _step(work, "cross_entropy", "loss", logits, 6, Cut.WHOLE),
        )
        classifier = Block(
            "classifier",
            operators,
            replicated_parameters=(model.hidden_dim + 1) * model.num_classes,
            saved_feature=logits * (work.precision + extra),
        )
        return _joined("head", norm, classifier)
    logits = work.tokens * model.vocab_size
    loss = _step(work, "cross_entropy", "loss", logits, 6, Cut.FEATURE)
    vocabulary = Block(
        "vocabulary",
        (
            Gemm(
                "vocabulary_projection", work.tokens, model.hidden_dim, model.vocab_size, Cut.COLUMN
            ),
            # A sharded vocabulary shares each row's maximum, sum and target logit.
            replace(loss, output_elements=3 * work.tokens),
        ),
        parameters=model.vocab_size * model.hidden_dim,
        saved_feature=logits * (work.precision + extra),
    )
    return _joined("head", norm, vocabulary)


@lru_cache(maxsize=256)
def _unsharded(model: LlmModel) -> TransformerBlocks:
    """The blocks for what is counted per model, whatever the batch and the number format."""
    return transformer_blocks(model, 1, 2, "fused")


def _segments(model: LlmModel) -> dict[str, tuple[int, Block]]:
    """How often each block occurs, by segment: "embedding", kinds of layer, "head"."""
    blocks, kinds = _unsharded(model), layer_kinds(model)
    return {
        "embedding": (1, blocks.embedding),
        **{kind: (kinds.count(kind), block) for kind, block in blocks.layers.items()},
        "head": (1, blocks.head),
    }


def parameter_count(model: LlmModel) -> int:
    """Parameters of the whole model; a tied output matrix is counted once."""
    total = sum(
        times * (block.parameters + block.replicated_parameters + block.expert_parameters)
        for times, block in _segments(model).values()
    )
    return round(total - (_unsharded(model).head.parameters if model.tie_embeddings else 0))


def active_parameter_count(model: LlmModel) -> int:
    """Parameters that one token passes: of routed experts only those that it is sent to."""
    total = parameter_count(model)
    if model.num_experts is None:
        return total
    routed = sum(times * block.expert_parameters for times, block in _segments(model).values())
    return round(total - routed * (1 - model.experts_per_token / model.num_experts))


def segment_work(model: LlmModel, *, attention: bool = True) -> dict[str, float]:
    """Multiply-accumulates per token, forward, of the embedding, one layer by kind, the head.

    ``attention``, if it is to count at all, counts without regard to causality. Each token passes
    as many routed experts as the model says: rows that are padded, or more on one device than on
    another, are no useful work.
    """
    work = {}
    for name, (_, block) in _segments(model).items():
        work[name] = 0.0
        for operator in block.operators:
            match operator:
                case Gemm():
                    work[name] += operator.flops / 2 / model.seq_len
                case GroupedGemm(k=k, n=n):
                    work[name] += k * n * model.experts_per_token
                case Attention(heads=heads, head_dim=head_dim, value_dim=value_dim) if attention:
                    seen = min(model.seq_len, model.attention_window or model.seq_len)
                    work[name] += float(heads * (head_dim + value_dim) * seen)
    return work


def model_flops_of_request(model: LlmModel, new_tokens: int) -> float:
    """FLOP of an answer: ``new_tokens`` of a prompt that are not cached, then ``output_len``.

    Two per multiply-accumulate, as in ``model_flops_per_token``. Each token attends to those before
    it and itself, as far as its window; the head is for tokens that are chosen from.
    """
    each, of_pair, head = _token_work(
        replace(model, global_batch_size=1, prompt_len=None, output_len=1)
    )
    end = model.prompt_tokens + model.output_len - 1
    pairs = _pairs(end, model.attention_window) - _pairs(
        model.prompt_tokens - new_tokens, model.attention_window
    )
    tokens = new_tokens + model.output_len - 1
    return 2.0 * (tokens * each + model.output_len * head + pairs * of_pair)


@lru_cache(maxsize=64)
def _token_work(model: LlmModel) -> tuple[float, float, float]:
    """Multiply-accumulates of all layers on a token, and on a pair of them; of the head."""
    whole, rest = segment_work(model), segment_work(model, attention=False)
    seen = min(model.seq_len, model.attention_window or model.seq_len)
    kinds = layer_kinds(model)
    return (
        sum(rest[kind] for kind in kinds),
        sum(whole[kind] - rest[kind] for kind in kinds) / seen,
        rest["head"],
    )


def _pairs(tokens: int, window: int | None) -> float:
    """Pairs of a token and one that it sees among the first ``tokens``."""
    growing = tokens if window is None else min(tokens, window)
    return growing * (growing + 1) / 2 + (tokens - growing) * growing


def multiply_accumulates_per_token(model: LlmModel) -> tuple[float, float]:
    """Work of an average layer and of the head on one token, as ``segment_work`` counts it."""
    work, kinds = segment_work(model), layer_kinds(model)
    return sum(work[kind] for kind in kinds) / len(kinds), work["head"]


def model_flops_per_token(model: LlmModel) -> float:
    """FLOP per token of forward and backward pass, as MFU is defined.

    PaLM (arXiv 2204.02311, appendix B): six per parameter that multiplies activations, and
    ``12 layers heads head_dim seq_len`` for attention without regard to causality. Of routed
    experts, those count that a token is sent to.
    """
    work = segment_work(model)
    return 6.0 * sum(times * work[name] for name, (times, _) in _segments(model).items())
