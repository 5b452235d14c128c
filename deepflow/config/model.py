"""What is computed: the keys of a model file (``model_param``)."""

from __future__ import annotations

from deepflow.config.option import option
from deepflow.record import record


@record(frozen=True)
class GemmModel:
    """One matrix multiplication ``C[M,N] = A[M,K] B[K,N]``."""

    M: int = option("rows of A and C", minimum=1, maximum=2**40)
    K: int = option("columns of A, rows of B", minimum=1, maximum=2**40)
    N: int = option("columns of B and C", minimum=1, maximum=2**40)
    backward: bool = option("also the two gradient multiplications", False)
    mode: str = option("kind of model", "GEMM", choices=("GEMM",))
    name: str = option("name shown in results (default: the file's name)", "")


@record(frozen=True)
class LstmModel:
    """A stack of recurrent layers between an embedding and a softmax."""

    batch_size: int = option(
        "sequences per training step", minimum=1, maximum=2**40, aliases=("global_batch_size",)
    )
    vocab_size: int = option("vocabulary", minimum=1, maximum=2**31)
    num_layers: int = option("hidden layers", minimum=1, maximum=100_000)
    layer_size: int = option("units per hidden layer", minimum=1, maximum=2**31)
    projection: int = option("units of the projection layer", minimum=0, maximum=2**31)
    seq_len: int = option("time steps", minimum=1, maximum=2**31)
    num_gates: int = option("gates per cell", 4, minimum=1, maximum=64)
    num_non_linear: int = option("non-linear functions per cell", 5, minimum=0, maximum=64)
    num_add: int = option("element-wise additions per cell", 8, minimum=0, maximum=64)
    data_scale: float = option("factor on the data set", 100, minimum=0)
    mode: str = option("kind of model", "LSTM", choices=("LSTM",))
    name: str = option("name shown in results (default: the file's name)", "")


@record(frozen=True)
class LlmModel:
    """A transformer and the batch it is trained on: by default a decoder of language."""

    global_batch_size: int = option(
        "sequences per optimizer step, over all devices",
        minimum=1,
        maximum=2**31,
        aliases=("batch_size",),
    )
    seq_len: int = option("tokens per sequence", minimum=1, maximum=2**31)
    hidden_dim: int = option("width of the residual stream", minimum=1, maximum=2**24)
    num_heads: int = option("query heads", minimum=1, maximum=2**16)
    vocab_size: int = option("vocabulary", minimum=1, maximum=2**31)
    num_layers: int = option("transformer layers", minimum=1, maximum=100_000)
    ffn_dim: int | None = option("width of the feed-forward layer", None, minimum=1, maximum=2**26)
    ffn_mult: float | None = option(
        "feed-forward width as a multiple of hidden_dim; wins over ffn_dim",
        None,
        above=0,
        maximum=1000,
    )
    num_kv_heads: int | None = option(
        "key/value heads (default: num_heads)", None, minimum=1, maximum=2**16
    )
    head_dim: int | None = option(
        "width of a head (default: hidden_dim / num_heads)", None, minimum=1, maximum=2**16
    )
    activation: str = option(
        "feed-forward activation; swiglu has a gate matrix besides up and down",
        "gelu",
        choices=("gelu", "relu", "swiglu"),
    )
    normalization: str = option(
        "normalisation layer", "layernorm", choices=("layernorm", "rmsnorm")
    )
    position_embedding: str = option(
        "learned adds seq_len * hidden_dim parameters, rotary rotates queries and keys",
        "none",
        choices=("none", "learned", "rotary"),
    )
    tie_embeddings: bool = option("input and output embedding share one matrix", False)
    max_position: int | None = option(
        "rows of a learned position embedding (default: seq_len)", None, minimum=1, maximum=2**31
    )
    causal: bool = option("a position sees only those before it; false for encoders", True)
    attention_window: int | None = option(
        "positions that a position sees, its own included (default: all)",
        None,
        minimum=1,
        maximum=2**31,
    )
    dropout: float = option(
        "probability of dropping activations and attention scores; only whether it is zero"
        " matters to time and memory",
        0.0,
        minimum=0,
        maximum=1,
    )
    num_experts: int | None = option(
        "routed experts of a mixture-of-experts layer (default: dense layers only)",
        None,
        minimum=2,
        maximum=2**16,
    )
    experts_per_token: int = option(
        "routed experts that a token is sent to", 2, minimum=1, maximum=2**16
    )
    expert_ffn_dim: int | None = option(
        "width of an expert's feed-forward layer (default: that of dense layers)",
        None,
        minimum=1,
        maximum=2**26,
    )
    num_shared_experts: int = option(
        "experts of expert_ffn_dim that every token passes", 0, minimum=0, maximum=2**16
    )
    num_dense_layers: int = option(
        "layers before the first mixture-of-experts layer", 0, minimum=0, maximum=100_000
    )
    expert_layer_period: int = option(
        "from then on, every how many layers one has experts", 1, minimum=1, maximum=100_000
    )
    expert_groups: int = option(
        "groups of neighbouring experts of which the router chooses some first",
        1,
        minimum=1,
        maximum=2**16,
    )
    expert_groups_per_token: int | None = option(
        "groups whose experts a token may be sent to (default: all)",
        None,
        minimum=1,
        maximum=2**16,
    )
    expert_imbalance: float = option(
        "rows on the device with the most rows, relative to an even spread of tokens",
        1.0,
        minimum=1,
        maximum=2**16,
    )
    expert_capacity_factor: float | None = option(
        "rows that an expert takes at most, relative to an even spread; further tokens are"
        " dropped and free places are padded (default: none dropped, none padded)",
        None,
        above=0,
        maximum=2**16,
    )
    kv_latent_dim: int | None = option(
        "width of the shared latent of keys and values: multi-head latent attention"
        " (default: plain keys and values)",
        None,
        minimum=1,
        maximum=2**20,
    )
    query_latent_dim: int | None = option(
        "width of the latent of queries in latent attention (default: projected directly)",
        None,
        minimum=1,
        maximum=2**20,
    )
    rotary_head_dim: int = option(
        "part of a query and key head that latent attention rotates, besides head_dim",
        64,
        minimum=0,
        maximum=2**16,
    )
    value_head_dim: int | None = option(
        "width of a value head (default: that of a head)", None, minimum=1, maximum=2**16
    )
    patch_dim: int | None = option(
        "values of an input patch, which a matrix projects; for models of images"
        " (default: tokens are looked up in a table)",
        None,
        minimum=1,
        maximum=2**24,
    )
    num_classes: int | None = option(
        "classes that the head tells apart, from one position of a sequence (default: it predicts"
        " a token of the vocabulary at every position)",
        None,
        minimum=1,
        maximum=2**24,
    )
    run_type: str = option(
        "training: steps of an optimizer; inference: answers to prompts, of which"
        " global_batch_size are worked on at the same time",
        "training",
        choices=("training", "inference"),
    )
    prompt_len: int | None = option(
        "inference: tokens of a prompt (default: seq_len)", None, minimum=1, maximum=2**31
    )
    output_len: int = option(
        "inference: tokens that answer a prompt", 128, minimum=1, maximum=2**31
    )
    cached_prompt: float = option(
        "inference: part of a prompt whose keys and values are there already, of earlier prompts"
        " that began alike (prefix caching)",
        0.0,
        minimum=0,
        maximum=1,
    )
    requests_per_client: int | None = option(
        "inference: global_batch_size clients begin at the same time, and each sends so many"
        " requests, the next when the last is answered (null: without end)",
        1,
        minimum=1,
        maximum=2**31,
    )
    request_rate: float | None = option(
        "inference: requests that arrive per second, at random and over all replicas;"
        " global_batch_size is then the most at once, and there are as many as it takes (default:"
        " clients send the next request when the last is answered)",
        None,
        above=0,
        maximum=1e9,
    )
    wait_when_full: bool = option(
        "inference: requests for which the memory has no room wait until others are done (false:"
        " the point does not fit)",
        False,
    )
    first_token_target: float | None = option(
        "inference: time to the first token that is to be met; with a target, global_batch_size is"
        " the most requests at once, and there are as many of them as meet the targets and fit",
        None,
        unit="s",
        above=0,
        maximum=1e6,
    )
    output_token_target: float | None = option(
        "the same for the time per output token", None, unit="s", above=0, maximum=1e6
    )
    draft_len: int = option(
        "inference: tokens that a draft proposes for each pass of the model, which takes over"
        " those that it agrees with (speculative decoding; 0: no draft)",
        0,
        minimum=0,
        maximum=64,
    )
    draft_acceptance: float = option(
        "probability that the model agrees with a proposed token",
        0.7,
        minimum=0,
        maximum=1,
    )
    draft_layers: int = option(
        "layers of the draft, of the same shape as the model's, with a head of its own",
        1,
        minimum=1,
        maximum=100_000,
    )
    n_tokens: float | None = option(
        "tokens of the whole training run, for the time to train", None, minimum=0
    )
    communication_time: float = option(
        "accepted from old files and unused: communication is modelled",
        0.0,
        unit="s",
        minimum=0,
    )
    N_PP: int = option("accepted from old files and unused: see parallelism.pipeline", 1, minimum=1)
    mode: str = option("kind of model", "LLM", choices=("LLM",))
    name: str = option("name shown in results (default: the file's name)", "")

    @property
    def feed_forward_dim(self) -> int:
        """Width of the feed-forward layer after ``ffn_mult`` and the 4x default."""
        if self.ffn_mult is not None:
            return round(self.ffn_mult * self.hidden_dim)
        return self.ffn_dim if self.ffn_dim is not None else 4 * self.hidden_dim

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads if self.num_kv_heads is not None else self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_dim if self.head_dim is not None else self.hidden_dim // self.num_heads

    @property
    def value_width(self) -> int:
        return self.value_head_dim if self.value_head_dim is not None else self.head_width

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt, in inference."""
        return self.seq_len if self.prompt_len is None else self.prompt_len

    @property
    def groups_per_token(self) -> int:
        """Groups of experts that a token may be sent to."""
        return self.expert_groups_per_token or self.expert_groups

    @property
    def expert_width(self) -> int:
        """Width of one expert's feed-forward layer."""
        return self.feed_forward_dim if self.expert_ffn_dim is None else self.expert_ffn_dim

    @property
    def shared_expert_width(self) -> int:
        """Width of all shared experts together."""
        return self.num_shared_experts * self.expert_width


@record(frozen=True)
class VitModel:
    """A vision transformer that classifies images (ViT; Dosovitskiy et al., arXiv 2010.11929)."""

    global_batch_size: int = option(
        "images per optimizer step, over all devices",
        minimum=1,
        maximum=2**31,
        aliases=("batch_size",),
    )
    image_size: int = option("pixels along each side of an image", minimum=1, maximum=2**16)
    patch_size: int = option("pixels along each side of a patch", minimum=1, maximum=2**16)
    num_classes: int = option("classes that the head tells apart", minimum=1, maximum=2**24)
    hidden_dim: int = option("width of the residual stream", minimum=1, maximum=2**24)
    num_heads: int = option("heads of attention", minimum=1, maximum=2**16)
    num_layers: int = option("transformer layers", minimum=1, maximum=100_000)
    ffn_dim: int | None = option(
        "width of the feed-forward layer (default: 4 * hidden_dim)", None, minimum=1, maximum=2**26
    )
    ffn_mult: float | None = option(
        "feed-forward width as a multiple of hidden_dim; wins over ffn_dim",
        None,
        above=0,
        maximum=1000,
    )
    channels: int = option("colours, values of a pixel", 3, minimum=1, maximum=2**16)
    class_token: bool = option(
        "a learned token beside the patches, from which the classifier reads", True
    )
    dropout: float = option(
        "probability of dropping activations and attention scores; only whether it is zero"
        " matters to time and memory",
        0.0,
        minimum=0,
        maximum=1,
    )
    n_images: float | None = option(
        "images of the whole training run, for the time to train", None, minimum=0
    )
    mode: str = option("kind of model", "VIT", choices=("VIT",))
    name: str = option("name shown in results (default: the file's name)", "")

    @property
    def transformer(self) -> LlmModel:
        """The same model with patches in the place of tokens: what is predicted.

        An encoder with GELU, layer norms and learned positions, as in the paper.
        """
        seq_len = (self.image_size // self.patch_size) ** 2 + self.class_token
        return LlmModel(
            global_batch_size=self.global_batch_size,
            seq_len=seq_len,
            hidden_dim=self.hidden_dim,
            num_heads=self.num_heads,
            vocab_size=self.num_classes,
            num_layers=self.num_layers,
            ffn_dim=self.ffn_dim,
            ffn_mult=self.ffn_mult,
            position_embedding="learned",
            causal=False,
            dropout=self.dropout,
            patch_dim=self.patch_size**2 * self.channels,
            num_classes=self.num_classes,
            n_tokens=None if self.n_images is None else self.n_images * seq_len,
            name=self.name,
        )


@record(frozen=True)
class CollectiveModel:
    """One collective, or one transfer, over all devices of the machine and nothing else."""

    kind: str = option(
        "what is done; send is one message to another device, of another node if there are several",
        choices=("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"),
    )
    message_size: float = option(
        "the full buffer of a device: what all_reduce reduces, what all_gather ends up with, what"
        " reduce_scatter starts from, what one device hands out in all_to_all; of send the message",
        unit="bytes",
        minimum=1,
        maximum=2**50,
    )
    repeats: int = option(
        "so many of them, one after the other", 1, minimum=1, maximum=1_000_000_000
    )
    mode: str = option("kind of model", "collective", choices=("collective",))
    name: str = option("name shown in results (default: the file's name)", "")


ModelConfig = GemmModel | LstmModel | LlmModel | VitModel | CollectiveModel

MODEL_MODES: dict[
    str,
    type[GemmModel] | type[LstmModel] | type[LlmModel] | type[VitModel] | type[CollectiveModel],
] = {
    "GEMM": GemmModel,
    "LSTM": LstmModel,
    "LLM": LlmModel,
    "VIT": VitModel,
    "collective": CollectiveModel,
}
