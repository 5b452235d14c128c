"""Stacked LSTM language models as operator blocks, for one time step, before any sharding.

An embedding, ``num_layers`` recurrent layers of D units with G gates, an optional projection
onto P features, and a softmax over the vocabulary V (Hochreiter and Schmidhuber, 1997; the
projection before the softmax as in Sak, Senior and Beaufays, 2014). A cell multiplies the
concatenated input and state, [B, 2 D], by one matrix for all gates, [2 D, G D]. With
``projection`` P > 0, a [D, P] product follows the last recurrent layer and the softmax works on
its P features; with 0 there is none and the softmax works on D.

Bytes and kernels of the element-wise steps are those of the DeepFlow research code: per gate
output 13 accesses in 5 kernels both ways, per logit 7 forward and 11 backward in 4 kernels. The
backward cell works on as many gate outputs as the forward cell; the original counted a quarter
of them without kernel parallelism and all with it.
"""

from __future__ import annotations

from deepflow.config.model import LstmModel
from deepflow.record import record
from deepflow.workload.operators import Block, Elementwise, Gemm

# Four slices of the gates pass between ranks that hold different gates: two products, their
# sum and the cell's output.
GATE_TRANSFERS = 4


@record(frozen=True)
class LstmBlocks:
    """One time step: ``hidden`` runs once per layer, the others once."""

    embedding: Block
    hidden: Block
    projection: Block | None
    softmax: Block


def softmax_width(model: LstmModel) -> int:
    """Features that the softmax works on."""
    return model.projection or model.layer_size


def lstm_blocks(model: LstmModel, batch: int, precision: float) -> LstmBlocks:
    """The blocks of ``model`` for ``batch`` sequences of ``precision``-byte numbers."""
    width, vocabulary = model.layer_size, model.vocab_size
    gates, features = model.num_gates * width, softmax_width(model)
    outputs, logits = batch * gates, batch * vocabulary
    embedding = Block(
        "embedding",
        (
            Elementwise(
                "embedding_lookup",
                2.0 * precision * batch * width,
                0.0,
                kernels=1,
                gradient_bytes=2.0 * precision * batch * width,
                gradient_kernels=1,
            ),
        ),
        parameters=float(vocabulary * width),
    )
    hidden = Block(
        "hidden",
        (
            Gemm("gates", batch, 2 * width, gates),
            Elementwise(
                "cell_functions",
                13.0 * precision * outputs,
                5.0 * outputs,
                kernels=5,
                gradient_bytes=13.0 * precision * outputs,
                gradient_kernels=5,
            ),
        ),
        parameters=float((2 * width + 1) * gates),
    )
    projection = Block(
        "projection",
        (Gemm("projection", batch, width, features),),
        parameters=float(width * features),
    )
    softmax = Block(
        "softmax",
        (
            Gemm("logits", batch, features, vocabulary),
            Elementwise(
                "softmax",
                7.0 * precision * logits,
                3.0 * logits,
                kernels=4,
                gradient_bytes=11.0 * precision * logits,
                gradient_kernels=4,
            ),
        ),
        parameters=float((features + 1) * vocabulary),
    )
    return LstmBlocks(embedding, hidden, projection if model.projection else None, softmax)


def parameter_count(model: LstmModel) -> float:
    """V D + (2 D + 1) G D L + D P + (P + 1) V, or (D + 1) V for the last term without projection.

    The original counted (D + 1) V with a projection too, which it did not compute.
    """
    blocks = lstm_blocks(model, 1, 1)
    return (
        blocks.embedding.parameters
        + model.num_layers * blocks.hidden.parameters
        + (blocks.projection.parameters if blocks.projection else 0.0)
        + blocks.softmax.parameters
    )


def model_flops(model: LstmModel) -> float:
    """FLOP of all matrix products of a training step, forward and, twice that, backward."""
    blocks = lstm_blocks(model, model.batch_size, 1)
    once = _product_flops(blocks.softmax) + model.num_layers * _product_flops(blocks.hidden)
    if blocks.projection:
        once += _product_flops(blocks.projection)
    return 3.0 * model.seq_len * once


def _product_flops(block: Block) -> float:
    return sum(operator.flops for operator in block.operators if isinstance(operator, Gemm))
