"""Decoder-only transformers as operator blocks, for one microbatch, before any sharding.

Three blocks make a model: ``embedding``, ``layer`` (repeated) and ``head`` (final norm,
projection onto the vocabulary, loss). Shapes follow Megatron-LM (arXiv 1909.08053) and Llama 2
(arXiv 2307.09288): grouped-query attention by ``kv_heads``, a gate matrix for SwiGLU, rotary
position embedding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from deepflow.config.model import LlmModel
from deepflow.record import record
from deepflow.workload.operators import FP32, Attention, Block, Cut, Elementwise, Gemm, Operator


@record(frozen=True)
class Traffic:
    """Memory traffic of one element-wise step: bytes per element and kernels, both passes."""

    forward_bytes: float
    forward_kernels: int
    backward_bytes: float
    backward_kernels: int


@record(frozen=True)
class TransformerBlocks:
    """The three blocks of a model for one microbatch."""

    embedding: Block
    layer: Block
    head: Block


def _traffic(precision: float, fusion: str) -> dict[str, Traffic]:
    """Reads and writes per element, counted from what each kernel has to touch.

    Fused: one kernel a step. Eager: what a framework does that runs the textbook formula one
    operation at a time, with the loss in 32-bit floats as Megatron-LM and nanotron do: cast,
    row maximum, subtract, exponential, sum, divide; backward, subtract the one-hot target and
    cast back.
    """
    p = precision
    always = {
        "norm": Traffic(2 * p, 1, 3 * p, 1),
        "residual": Traffic(3 * p, 1, 3 * p, 1),
        "gelu": Traffic(2 * p, 1, 3 * p, 1),
        "relu": Traffic(2 * p, 1, 3 * p, 1),
        "embedding": Traffic(2 * p, 1, 3 * p, 1),
    }
    if fusion == "fused":
        return always | {
            "swiglu": Traffic(3 * p, 1, 5 * p, 1),
            "rotary": Traffic(2 * p, 1, 2 * p, 1),
            "loss": Traffic(p, 1, 2 * p, 1),
        }
    return always | {
        "swiglu": Traffic(5 * p, 2, 8 * p, 3),
        "rotary": Traffic(9 * p, 5, 9 * p, 5),
        "loss": Traffic(p + 9 * FP32, 8, p + 3 * FP32, 3),
    }


def transformer_blocks(
    model: LlmModel, micro_batch_size: int, precision: float, fusion: str
) -> TransformerBlocks:
    """The blocks of ``model`` for ``micro_batch_size`` sequences of ``precision``-byte numbers."""
    traffic = _traffic(precision, fusion)
    tokens = micro_batch_size * model.seq_len
    width, ffn = model.hidden_dim, model.feed_forward_dim
    heads, kv_heads, head_dim = model.num_heads, model.kv_heads, model.head_width
    gated = model.activation == "swiglu"
    norm_flops = 5 if model.normalization == "layernorm" else 4
    norm_parameters = (2 if model.normalization == "layernorm" else 1) * width

    def elementwise(
        name: str, kind: str, elements: float, flops_per_element: float, cut: Cut
    ) -> Elementwise:
        step = traffic[kind]
        return Elementwise(
            name,
            step.forward_bytes * elements,
            flops_per_element * elements,
            step.forward_kernels,
            step.backward_bytes * elements,
            step.backward_kernels,
            cut,
        )

    def norm(name: str) -> Elementwise:
        return elementwise(name, "norm", tokens * width, norm_flops, Cut.SEQUENCE)

    def residual(name: str) -> Elementwise:
        return elementwise(name, "residual", tokens * width, 1, Cut.SEQUENCE)

    qkv_width = (heads + 2 * kv_heads) * head_dim
    up_width = 2 * ffn if gated else ffn
    attention: list[Operator] = [
        norm("attention_norm"),
        Gemm("qkv_projection", tokens, width, qkv_width, Cut.COLUMN),
    ]
    if model.position_embedding == "rotary":
        rotated = tokens * (heads + kv_heads) * head_dim
        attention.append(elementwise("rotary_embedding", "rotary", rotated, 3, Cut.FEATURE))
    attention += [
        Attention(
            "attention",
            micro_batch_size,
            heads,
            kv_heads,
            model.seq_len,
            model.seq_len,
            head_dim,
            head_dim,
        ),
        Gemm("attention_output_projection", tokens, heads * head_dim, width, Cut.ROW),
        residual("attention_residual"),
    ]
    feed_forward: list[Operator] = [
        norm("feed_forward_norm"),
        Gemm("feed_forward_up", tokens, width, up_width, Cut.COLUMN),
        elementwise("activation", model.activation, tokens * ffn, 5, Cut.FEATURE),
        Gemm("feed_forward_down", tokens, ffn, width, Cut.ROW),
        residual("feed_forward_residual"),
    ]
    # Kept for the backward pass: both norms' inputs and outputs; queries, keys, values, the
    # attention output with its softmax statistics; the feed-forward layer before and after
    # its activation. Eager SwiGLU also keeps the activated gate.
    kept_ffn = up_width + ffn + (ffn if gated and fusion == "eager" else 0)
    layer = Block(
        "layer",
        tuple(attention + feed_forward),
        parameters=width * (qkv_width + heads * head_dim + up_width + ffn),
        replicated_parameters=2 * norm_parameters,
        saved_sequence=4 * tokens * width * precision,
        saved_feature=tokens
        * ((qkv_width + heads * head_dim + kept_ffn) * precision + heads * FP32),
    )

    positions = model.max_position if model.max_position is not None else model.seq_len
    lookup = traffic["embedding"]
    embedding = Block(
        "embedding",
        (
            Elementwise(
                "embedding_lookup",
                lookup.forward_bytes * tokens * width,
                0.0,
                lookup.forward_kernels,
                lookup.backward_bytes * tokens * width,
                lookup.backward_kernels,
                Cut.ROW,
                output_elements=tokens * width,
            ),
        ),
        parameters=model.vocab_size * width,
        replicated_parameters=positions * width if model.position_embedding == "learned" else 0,
    )
    logits = tokens * model.vocab_size
    head = Block(
        "head",
        (
            norm("final_norm"),
            Gemm("vocabulary_projection", tokens, width, model.vocab_size, Cut.COLUMN),
            # A sharded vocabulary shares each row's maximum, sum and target logit.
            replace(
                elementwise("cross_entropy", "loss", logits, 6, Cut.FEATURE),
                output_elements=3 * tokens,
            ),
        ),
        parameters=model.vocab_size * width,
        replicated_parameters=norm_parameters,
        saved_sequence=2 * tokens * width * precision,
        saved_feature=logits * (precision + (FP32 if fusion == "eager" else 0)),
    )
    return TransformerBlocks(embedding, layer, head)


@lru_cache(maxsize=256)
def _unsharded(model: LlmModel) -> TransformerBlocks:
    """The blocks for what is counted per model, whatever the batch and the number format."""
    return transformer_blocks(model, 1, 2, "fused")


def parameter_count(model: LlmModel) -> float:
    """Parameters of the whole model; a tied output matrix is counted once."""
    blocks = _unsharded(model)
    total = sum(
        times * (block.parameters + block.replicated_parameters)
        for block, times in (
            (blocks.embedding, 1),
            (blocks.layer, model.num_layers),
            (blocks.head, 1),
        )
    )
    return total - (blocks.head.parameters if model.tie_embeddings else 0)


def multiply_accumulates_per_token(model: LlmModel) -> tuple[float, float]:
    """Work of one layer and of the head on one token, forward, attention without causality."""
    blocks = _unsharded(model)
    attention = 2.0 * model.num_heads * model.head_width * model.seq_len
    return blocks.layer.parameters + attention, blocks.head.parameters


def model_flops_per_token(model: LlmModel) -> float:
    """FLOP per token of forward and backward pass, as MFU is defined.

    PaLM (arXiv 2204.02311, appendix B): six per parameter that multiplies activations, and
    ``12 layers heads head_dim seq_len`` for attention without regard to causality.
    """
    layer, head = multiply_accumulates_per_token(model)
    return 6.0 * (model.num_layers * layer + head)
