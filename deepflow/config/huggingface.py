"""Model files from the ``config.json`` of a Hugging Face checkpoint.

Language models of the families in ``_FAMILIES`` and vision transformers are read. Each key of
the file is either the shape that ``LlmModel`` or ``VitModel`` has, or known to change neither
time nor memory (``_WITHOUT_COST``), or switched off, or an error: what cannot be represented is
never dropped in silence. What is represented only nearly comes back as a note.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepflow.config.loading import check_model
from deepflow.config.model import MODEL_MODES
from deepflow.config.schema import build, did_you_mean
from deepflow.config.units import shown
from deepflow.errors import ConfigError
from deepflow.files import read_limited
from deepflow.record import record

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "gelu",
    "relu": "relu",
}
_GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "swiglu"}


@record(frozen=True)
class _Family:
    """How a ``model_type`` names its shape, and what all of its models have in common.

    An empty key: the family has no such thing. ``kv_heads_optional``, ``head_dim_required``:
    whether the library's default is that of ``LlmModel``. ``dropout``: the keys of dropout rates
    with the library's defaults. ``extra_positions``: rows of the position table beyond the
    positions.

    ``windows``: which layers the library gives a sliding window where the file has no
    ``layer_types``. "all" of them; "alternate", every second one, the first included; "upper",
    those from ``max_window_layers`` on, if ``use_sliding_window``; "stated", the file has to say;
    "", none.
    """

    architecture: str
    hidden_dim: str = "hidden_size"
    num_heads: str = "num_attention_heads"
    num_layers: str = "num_hidden_layers"
    ffn_dim: str = "intermediate_size"
    ffn_optional: bool = False
    positions: str = "max_position_embeddings"
    activation: str = "hidden_act"
    default_activation: str | None = None
    gated: bool = True
    num_kv_heads: str = ""
    kv_heads_optional: bool = False
    head_dim: str = ""
    head_dim_required: bool = False
    normalization: str = "rmsnorm"
    position_embedding: str = "rotary"
    extra_positions: int = 0
    tie_embeddings: bool = False
    causal: bool = True
    dropout: tuple[tuple[str, float], ...] = (("attention_dropout", 0.0),)
    windows: str = ""
    num_experts: str = ""
    experts_per_token: str = "num_experts_per_tok"
    expert_ffn_dim: str = ""


def _llama_like(architecture: str, **differences: Any) -> _Family:
    """Fewer heads of keys and values, rotary positions, RMS norms and SwiGLU."""
    usual = {"num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    return _Family(architecture, **{**usual, **differences})


_FAMILIES = {
    "llama": _llama_like("LlamaForCausalLM", kv_heads_optional=True),
    "mistral": _llama_like("MistralForCausalLM", windows="all"),
    "mixtral": _llama_like("MixtralForCausalLM", windows="all", num_experts="num_local_experts"),
    "qwen2": _llama_like("Qwen2ForCausalLM", windows="upper"),
    "qwen2_moe": _llama_like(
        "Qwen2MoeForCausalLM",
        windows="stated",
        num_experts="num_experts",
        expert_ffn_dim="moe_intermediate_size",
    ),
    "qwen3": _llama_like("Qwen3ForCausalLM", windows="upper", head_dim_required=True),
    "qwen3_moe": _llama_like(
        "Qwen3MoeForCausalLM",
        windows="stated",
        head_dim_required=True,
        num_experts="num_experts",
        expert_ffn_dim="moe_intermediate_size",
    ),
    "gemma2": _llama_like(
        "Gemma2ForCausalLM",
        activation="hidden_activation",
        head_dim_required=True,
        tie_embeddings=True,
        windows="alternate",
    ),
    "gpt_oss": _llama_like(
        "GptOssForCausalLM",
        head_dim_required=True,
        windows="alternate",
        num_experts="num_local_experts",
    ),
    "deepseek_v2": _Family(
        "DeepseekV2ForCausalLM",
        num_experts="n_routed_experts",
        expert_ffn_dim="moe_intermediate_size",
    ),
    "deepseek_v3": _Family(
        "DeepseekV3ForCausalLM",
        num_experts="n_routed_experts",
        expert_ffn_dim="moe_intermediate_size",
    ),
    "dbrx": _Family(
        "DbrxForCausalLM",
        hidden_dim="d_model",
        num_heads="n_heads",
        num_layers="n_layers",
        ffn_dim="ffn_config.ffn_hidden_size",
        positions="max_seq_len",
        activation="ffn_config.ffn_act_fn",
        default_activation="silu",
        num_kv_heads="attn_config.kv_n_heads",
        normalization="layernorm",
        dropout=(("resid_pdrop", 0.0), ("emb_pdrop", 0.0), ("attn_config.attn_pdrop", 0.0)),
        num_experts="ffn_config.moe_num_experts",
        experts_per_token="ffn_config.moe_top_k",
    ),
    "gpt2": _Family(
        "GPT2LMHeadModel",
        hidden_dim="n_embd",
        num_heads="n_head",
        num_layers="n_layer",
        ffn_dim="n_inner",
        ffn_optional=True,
        positions="n_positions",
        activation="activation_function",
        gated=False,
        normalization="layernorm",
        position_embedding="learned",
        tie_embeddings=True,
        dropout=(("resid_pdrop", 0.1), ("embd_pdrop", 0.1), ("attn_pdrop", 0.1)),
    ),
    "gpt_neox": _Family(
        "GPTNeoXForCausalLM",
        gated=False,
        normalization="layernorm",
        dropout=(("hidden_dropout", 0.0), ("attention_dropout", 0.0)),
    ),
    "opt": _Family(
        "OPTForCausalLM",
        ffn_dim="ffn_dim",
        activation="activation_function",
        gated=False,
        normalization="layernorm",
        position_embedding="learned",
        extra_positions=2,
        tie_embeddings=True,
        dropout=(("dropout", 0.1), ("attention_dropout", 0.0)),
    ),
    "bert": _Family(
        "BertForMaskedLM",
        gated=False,
        normalization="layernorm",
        position_embedding="learned",
        tie_embeddings=True,
        causal=False,
        dropout=(("hidden_dropout_prob", 0.1), ("attention_probs_dropout_prob", 0.1)),
    ),
}
_VISION_ARCHITECTURES = {"vit": "ViTForImageClassification"}
MODEL_TYPES = (*_FAMILIES, *_VISION_ARCHITECTURES)

# What these keys ask for has no counterpart in a model file, unless the family has the key.
_NOT_REPRESENTED = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "moe_intermediate_size": "a mixture of experts",
    "kv_lora_rank": "latent attention",
    "q_lora_rank": "latent attention",
    "quantization_config": "quantised weights",
    "add_cross_attention": "cross-attention",
    "is_encoder_decoder": "an encoder",
    "text_config": "a model of several parts",
    "vision_config": "a model of several parts",
}
# Formats that devices compute with, which hardware files choose.
_NUMBER_FORMATS = {"fp8", "mxfp4"}

# Numerics, tokens, training and generation settings; biases, which are vectors beside matrices;
# rotary frequencies; and how routers score. Keys that start with an underscore are the library's
# own.
_WITHOUT_COST = {
    "architectures",
    "attention_bias",
    "auto_map",
    "aux_loss_alpha",
    "bos_token_id",
    "cache_implementation",
    "classifier_dropout",
    "clip_qkv",
    "dtype",
    "enable_bias",
    "encoder_stride",
    "eos_token_id",
    "ep_size",
    "head_type",
    "id2label",
    "init_std",
    "initial_context_length",
    "initializer_range",
    "label2id",
    "layer_norm_elementwise_affine",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "layerdrop",
    "max_window_layers",
    "mlp_bias",
    "moe_jitter_eps",
    "moe_loss_weight",
    "moe_normalize_expert_weights",
    "n_ctx",
    "norm_topk_prob",
    "output_router_logits",
    "pad_token_id",
    "pooler_act",
    "pooler_output_size",
    "prefix",
    "pretraining_tp",
    "qkv_bias",
    "query_pre_attn_scalar",
    "reorder_and_upcast_attn",
    "rms_norm_eps",
    "rope_interleave",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_emb_base",
    "routed_scaling_factor",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "scoring_func",
    "seq_aux",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "swiglu_alpha",
    "swiglu_limit",
    "task_specific_params",
    "topk_method",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@record(frozen=True)
class ImportedModel:
    """Keys of ``model_param``, and notes on what they represent only nearly."""

    model_type: str
    parameters: dict[str, Any]
    notes: tuple[str, ...]


def import_model(
    path: str | Path, *, global_batch_size: int = 1, seq_len: int | None = None
) -> ImportedModel:
    """The model that a Hugging Face ``config.json`` describes.

    ``seq_len`` is in tokens; by default the longest that the file names. Images have theirs from
    their patches. The batch, sequences or images, is no part of such a file.

    Raises:
        ConfigError: the file cannot be read, is of another family, lacks a key, or asks for
            something that a model file cannot represent; the key is named.
    """
    source = _Source(str(path), _read_json(path))
    model_type = source.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise source.error(
            "model_type", "no such family is known" if model_type else "is missing", MODEL_TYPES
        )
    family = _FAMILIES.get(model_type)
    wanted = family.architecture if family else _VISION_ARCHITECTURES[model_type]
    if (source.get("architectures") or [wanted]) != [wanted]:
        raise source.error("architectures", "is not the whole model of this family", [wanted])
    if family is None:
        parameters = _vision_parameters(source, global_batch_size, seq_len)
    else:
        parameters = _language_parameters(source, family, global_batch_size, seq_len)
        parameters |= _PECULIARITIES.get(model_type, _nothing_peculiar)(source, parameters)
    _check_number_format(source)
    source.refuse_rest()
    config = build(
        MODEL_MODES[parameters["mode"]], parameters, file=source.file, path="model_param"
    )
    check_model(config, source.file)
    return ImportedModel(model_type, parameters, tuple(source.notes))


def _language_parameters(
    source: _Source, family: _Family, batch: int, seq_len: int | None
) -> dict[str, Any]:
    positions = source.count(family.positions)
    length = positions if seq_len is None else seq_len
    parameters: dict[str, Any] = {
        "mode": "LLM",
        "global_batch_size": batch,
        "seq_len": length,
        "hidden_dim": source.count(family.hidden_dim),
        "num_heads": source.count(family.num_heads),
    }
    if family.num_kv_heads:
        optional = family.kv_heads_optional and source.get(family.num_kv_heads) is None
        if not optional:
            parameters["num_kv_heads"] = source.count(family.num_kv_heads)
    if family.head_dim and (family.head_dim_required or source.get(family.head_dim) is not None):
        parameters["head_dim"] = source.count(family.head_dim)
    parameters["num_layers"] = source.count(family.num_layers)
    if source.get(family.ffn_dim) is not None or not family.ffn_optional:
        parameters["ffn_dim"] = source.count(family.ffn_dim)
    parameters["vocab_size"] = source.count("vocab_size")
    activations = _GATED_ACTIVATIONS if family.gated else _ACTIVATIONS
    parameters["activation"] = source.choice(
        family.activation, activations, family.default_activation
    )
    parameters["normalization"] = family.normalization
    parameters["position_embedding"] = family.position_embedding
    if family.position_embedding == "learned":
        parameters["max_position"] = positions + family.extra_positions
        if length > positions:
            raise source.error(
                family.positions, f"is less than the sequence length {length}", ["--seq-len"]
            )
    parameters["tie_embeddings"] = source.flag("tie_word_embeddings", family.tie_embeddings)
    if not family.causal:
        parameters["causal"] = False
    parameters |= _window(source, family, parameters["num_layers"], length)
    parameters |= _dropout(source, family.dropout)
    if family.num_experts:
        parameters["num_experts"] = source.count(family.num_experts)
        parameters["experts_per_token"] = source.count(family.experts_per_token)
        if family.expert_ffn_dim:
            parameters["expert_ffn_dim"] = source.count(family.expert_ffn_dim)
    return parameters


def _vision_parameters(source: _Source, batch: int, seq_len: int | None) -> dict[str, Any]:
    if seq_len is not None:
        raise source.error("image_size", "sets the length of sequences together with patch_size")
    source.choice(
        "hidden_act", {name: kind for name, kind in _ACTIVATIONS.items() if kind == "gelu"}
    )
    labels = source.get("id2label")
    if isinstance(labels, Mapping) and labels:
        num_classes = len(labels)
    else:
        num_classes = source.count("num_labels")
    return {
        "mode": "VIT",
        "global_batch_size": batch,
        "image_size": source.count("image_size"),
        "patch_size": source.count("patch_size"),
        "num_classes": num_classes,
        "hidden_dim": source.count("hidden_size"),
        "num_heads": source.count("num_attention_heads"),
        "num_layers": source.count("num_hidden_layers"),
        "ffn_dim": source.count("intermediate_size"),
        "channels": source.count("num_channels"),
    } | _dropout(source, (("hidden_dropout_prob", 0.0), ("attention_probs_dropout_prob", 0.0)))


def _dropout(source: _Source, keys: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """The largest rate: a model file has one for activations and attention scores."""
    rates = {key: source.rate(key, default) for key, default in keys}
    largest = max(rates.values())
    if largest == 0:
        return {}
    without = [key for key, rate in rates.items() if rate == 0]
    if without:
        source.notes.append(
            "dropout applies to activations and attention scores alike, though "
            + ", ".join(without)
            + " is 0"
        )
    return {"dropout": largest}


def _window(source: _Source, family: _Family, num_layers: int, seq_len: int) -> dict[str, Any]:
    """The sliding window, where it is shorter than the sequence.

    A model file has one window for all layers. Where only some slide, it is the one with which
    all layers together look at as many positions.
    """
    kinds, known = source.get("layer_types"), {"full_attention", "sliding_attention"}
    sliding = 0
    if kinds:
        if not isinstance(kinds, list) or not set(map(str, kinds)) <= known:
            raise source.error("layer_types", "cannot be represented", sorted(known))
        if len(kinds) != num_layers:
            raise source.error("layer_types", f"has no entry for each of {num_layers} layers")
        sliding = kinds.count("sliding_attention")
    if not family.windows and not sliding:
        return {}
    window = source.get("sliding_window")
    asked = source.flag("use_sliding_window", family.windows in ("all", "alternate"))
    if not kinds and window is not None and asked:
        match family.windows:
            case "all":
                sliding = num_layers
            case "alternate":
                sliding = -(-num_layers // 2)
            case "upper":
                sliding = max(0, num_layers - source.count("max_window_layers", minimum=0))
            case _:
                raise source.error(
                    "use_sliding_window",
                    "says for none of the layers that it slides",
                    ["layer_types"],
                )
    if not sliding or window is None:
        return {}
    width = source.count("sliding_window")
    if width >= seq_len:
        return {}
    if sliding == num_layers:
        return {"attention_window": width}
    source.notes.append(
        f"{sliding} of {num_layers} layers have a sliding window of {width}; all layers have the"
        " window with which they look at as many positions together"
    )
    return {"attention_window": _equal_work_window(width, sliding / num_layers, seq_len)}


def _equal_work_window(window: int, share: float, seq_len: int) -> int:
    """Window of all layers that lets causal attention see what a ``share`` of windows lets it.

    With a window of w, the positions of a sequence of s see w (2 s - w + 1) / 2 in sum.
    """

    def seen(width: float) -> float:
        return width * (2 * seq_len - width + 1) / 2

    mean = share * seen(window) + (1 - share) * seen(seq_len)
    half = seq_len + 0.5
    return round(half - math.sqrt(half**2 - 2 * mean))


# --- What single families have ----------------------------------------------------------------


def _nothing_peculiar(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _gpt_neox(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if source.flag("use_parallel_residual", True):
        source.notes.append("attention and feed-forward layer run in turn, not side by side")
    if source.get("rotary_pct", 0.25) != 1:
        source.notes.append("the rotary embedding is counted for whole heads, not for rotary_pct")
    return {}


def _opt(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if source.get("word_embed_proj_dim", parameters["hidden_dim"]) != parameters["hidden_dim"]:
        raise source.error("word_embed_proj_dim", "differs from hidden_size")
    if not source.flag("do_layer_norm_before", True):
        source.notes.append("norms stand before attention and feed-forward layer, not behind them")
    return {}


def _bert(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if source.flag("is_decoder", False):
        raise source.error("is_decoder", "cannot be represented", ["false"])
    if source.get("position_embedding_type", "absolute") != "absolute":
        raise source.error("position_embedding_type", "cannot be represented", ["absolute"])
    source.count("type_vocab_size")
    source.notes.append("norms stand before attention and feed-forward layer, not behind them")
    source.notes.append("the layer between the last norm and the output embedding is not counted")
    return {}


def _gemma2(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if source.flag("use_bidirectional_attention", False):
        raise source.error("use_bidirectional_attention", "cannot be represented", ["false"])
    source.get("hidden_act")  # What is in use is hidden_activation.
    source.notes.append("the gated GELU is counted as SwiGLU")
    source.notes.append("norms behind attention and feed-forward layer are not counted")
    if any([source.get("attn_logit_softcapping"), source.get("final_logit_softcapping")]):
        source.notes.append("soft caps of attention scores and logits are not counted")
    return {}


def _qwen3(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    source.notes.append("norms of queries and keys are not counted")
    return {}


def _qwen_experts(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Every ``decoder_sparse_step``-th layer has experts, unless ``mlp_only_layers`` names it."""
    period = source.count("decoder_sparse_step", 1)
    dense = source.get("mlp_only_layers") or []
    if dense and (period > 1 or dense != list(range(len(dense)))):
        raise source.error(
            "mlp_only_layers", "cannot be represented unless it is the first layers", ["0, 1 ..."]
        )
    found = {"num_dense_layers": len(dense) or period - 1, "expert_layer_period": period}
    return {key: value for key, value in found.items() if value != _UNLESS_SAID[key]}


def _qwen2_experts(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    width = source.count("shared_expert_intermediate_size")
    if width % parameters["expert_ffn_dim"]:
        raise source.error(
            "shared_expert_intermediate_size", "is no multiple of moe_intermediate_size"
        )
    source.notes.append("the gate of the shared expert is not counted")
    shared = {"num_shared_experts": width // parameters["expert_ffn_dim"]}
    return shared | _qwen_experts(source, parameters)


def _qwen3_experts(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return _qwen3(source, parameters) | _qwen_experts(source, parameters)


def _deepseek(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Latent attention; experts in every ``moe_layer_freq``-th layer after the first dense ones."""
    heads = parameters["num_heads"]
    if source.get("num_key_value_heads", heads) != heads:
        raise source.error("num_key_value_heads", f"differs from num_attention_heads = {heads}")
    # The library's names for the rotated part of a head and for both parts.
    source.get("head_dim")
    source.get("qk_head_dim")
    period = source.count("moe_layer_freq", 1)
    dense = source.count("first_k_dense_replace", 0, minimum=0)
    found = {
        "num_shared_experts": source.count("n_shared_experts", 0, minimum=0),
        "num_dense_layers": -(-dense // period) * period,
        "expert_layer_period": period,
        "head_dim": source.count("qk_nope_head_dim"),
        "kv_latent_dim": source.count("kv_lora_rank"),
        "rotary_head_dim": source.count("qk_rope_head_dim"),
        "value_head_dim": source.count("v_head_dim"),
    }
    if source.get("q_lora_rank") is not None:
        found["query_latent_dim"] = source.count("q_lora_rank")
    groups = source.count("n_group", 1)
    chosen = source.count("topk_group", groups)
    if chosen < groups:
        found |= {"expert_groups": groups, "expert_groups_per_token": chosen}
    if source.count("num_nextn_predict_layers", 0, minimum=0):
        source.notes.append("the modules for multi-token prediction are not counted")
    return {key: value for key, value in found.items() if value != _UNLESS_SAID.get(key)}


def _gpt_oss(source: _Source, parameters: Mapping[str, Any]) -> dict[str, Any]:
    again = source.get("experts_per_token", parameters["experts_per_token"])
    if again != parameters["experts_per_token"]:
        raise source.error("experts_per_token", "differs from num_experts_per_tok")
    return {}


_UNLESS_SAID = {"num_shared_experts": 0, "num_dense_layers": 0, "expert_layer_period": 1}

_PECULIARITIES: dict[str, Callable[[_Source, Mapping[str, Any]], dict[str, Any]]] = {
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bert": _bert,
    "gemma2": _gemma2,
    "gpt_oss": _gpt_oss,
    "qwen3": _qwen3,
    "qwen2_moe": _qwen2_experts,
    "qwen3_moe": _qwen3_experts,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


def _check_number_format(source: _Source) -> None:
    quantization = source.content.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method in _NUMBER_FORMATS:
        source.get("quantization_config")
        source.notes.append(
            f"weights are stored as {method}; numbers have the format of hardware.sw_param.dtype"
        )


# --- Reading ----------------------------------------------------------------------------------


def _read_json(path: str | Path) -> Mapping[str, Any]:
    file = str(path)
    try:
        content = json.loads(read_limited(path))
    except FileNotFoundError:
        raise ConfigError("no such file", file=file) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=file) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", file=file) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"expected the keys of a model and found {shown(content)}", file=file)
    return dict(_with_dotted_keys(content))


def _with_dotted_keys(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """DBRX states attention, feed-forward layer and its activation in sections of their own."""
    for name, value in content.items():
        if name in ("attn_config", "ffn_config") and isinstance(value, Mapping):
            for inner, inner_value in value.items():
                if inner == "ffn_act_fn" and isinstance(inner_value, Mapping):
                    inner_value = inner_value.get("name")
                yield f"{name}.{inner}", inner_value
        else:
            yield name, value


class _Source:
    """A ``config.json`` and questions about its keys; every answer may be a ConfigError.

    Remembers the keys that were asked for, so that the rest can be refused, and ``notes``.
    """

    def __init__(self, file: str, content: Mapping[str, Any]) -> None:
        self.file = file
        self.content = content
        self.notes: list[str] = []
        self._asked: set[str] = set()

    def error(self, key: str, problem: str, allowed: Iterable[str] = ()) -> ConfigError:
        return ConfigError(
            problem,
            file=self.file,
            key=key,
            value=shown(self.content.get(key)),
            allowed=", ".join(allowed),
        )

    def get(self, key: str, default: Any = None) -> Any:
        self._asked.add(key)
        value = self.content.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self.get(key, default)
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            kind = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
            raise self.error(key, f"is not {kind}")
        return value

    def rate(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise self.error(key, "is not a number from 0 to 1")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "is not true or false")
        return value

    def choice(self, key: str, known: Mapping[str, str], default: str | None = None) -> str:
        value = self.get(key, default)
        found = known.get(value) if isinstance(value, str) else None
        if found is None:
            raise self.error(key, "cannot be represented" if value else "is missing", known)
        return found

    def refuse_rest(self) -> None:
        """A key that is on and has no known meaning could be anything."""
        for key, value in self.content.items():
            known = key in self._asked or key.rsplit(".")[-1] in _WITHOUT_COST
            if not value or known or key.startswith("_"):
                continue
            if key in _NOT_REPRESENTED:
                raise self.error(
                    key, f"asks for {_NOT_REPRESENTED[key]}, which cannot be represented"
                )
            raise self.error(
                key,
                "is not known, so what it asks for cannot be represented"
                + did_you_mean(key, self._asked)
                + "; take it out if it changes no shape",
            )
