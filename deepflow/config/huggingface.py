"""Model files from the ``config.json`` of a Hugging Face checkpoint.

Dense decoders of the families in ``_FAMILIES`` are read. Each key of the file is either the
shape that ``LlmModel`` has, or known to change neither time nor memory (``_WITHOUT_COST``), or
switched off, or an error: what cannot be represented is never dropped in silence. What is
represented only nearly comes back as a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepflow.config.loading import check_model
from deepflow.config.model import LlmModel
from deepflow.config.schema import build, did_you_mean
from deepflow.config.units import shown
from deepflow.errors import ConfigError
from deepflow.record import record

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "gelu",
    "relu": "relu",
}
_GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu"}


@record(frozen=True)
class _Family:
    """How a ``model_type`` names its shape, and what all of its models have in common.

    An empty key: the family has no such thing. ``fewer_kv_heads``: "" if there are none,
    "optional" if their default is one per query head, "required" if it is a number.
    ``extra_positions``: rows of the position table beyond the positions.
    """

    hidden_dim: str = "hidden_size"
    num_heads: str = "num_attention_heads"
    num_layers: str = "num_hidden_layers"
    ffn_dim: str = "intermediate_size"
    positions: str = "max_position_embeddings"
    activation: str = "hidden_act"
    gated: bool = True
    fewer_kv_heads: str = ""
    ffn_optional: bool = False
    normalization: str = "rmsnorm"
    position_embedding: str = "rotary"
    extra_positions: int = 0
    tie_embeddings: bool = False
    causal_class: str = ""

    @property
    def keys(self) -> set[str]:
        names = {self.hidden_dim, self.num_heads, self.num_layers, self.ffn_dim, self.positions}
        return names | {self.activation, "vocab_size", "tie_word_embeddings", "model_type"}


_FAMILIES = {
    "llama": _Family(fewer_kv_heads="optional", causal_class="LlamaForCausalLM"),
    "mistral": _Family(fewer_kv_heads="required", causal_class="MistralForCausalLM"),
    "qwen2": _Family(fewer_kv_heads="required", causal_class="Qwen2ForCausalLM"),
    "gpt2": _Family(
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
        causal_class="GPT2LMHeadModel",
    ),
    "gpt_neox": _Family(gated=False, normalization="layernorm", causal_class="GPTNeoXForCausalLM"),
    "opt": _Family(
        ffn_dim="ffn_dim",
        activation="activation_function",
        gated=False,
        normalization="layernorm",
        position_embedding="learned",
        extra_positions=2,
        tie_embeddings=True,
        causal_class="OPTForCausalLM",
    ),
}

# What these keys ask for has no counterpart in a model file, whatever the family.
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

# Numerics, tokens, training and generation settings; biases, which are vectors beside matrices;
# and rotary frequencies. Keys that start with an underscore are the library's own.
_WITHOUT_COST = {
    "architectures",
    "attention_bias",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "bos_token_id",
    "classifier_dropout",
    "dropout",
    "dtype",
    "embd_pdrop",
    "enable_bias",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "init_std",
    "initializer_range",
    "is_decoder",
    "label2id",
    "layer_norm_elementwise_affine",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "layerdrop",
    "max_window_layers",
    "mlp_bias",
    "n_ctx",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_emb_base",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
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

    ``seq_len`` is in tokens; by default the longest that the file names. The batch is no part
    of such a file.

    Raises:
        ConfigError: the file cannot be read, is of another family, lacks a key, or asks for
            something that a model file cannot represent; the key is named.
    """
    source = _Source(str(path), _read_json(path))
    model_type = source.content.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    source.refuse_features()
    if family is None or not isinstance(model_type, str):
        raise source.error(
            "model_type", "no such family is known" if model_type else "is missing", _FAMILIES
        )
    architectures = source.content.get("architectures") or [family.causal_class]
    if architectures != [family.causal_class]:
        raise source.error("architectures", "is no language model", [family.causal_class])

    positions = source.count(family.positions)
    length = positions if seq_len is None else seq_len
    understood = family.keys | source.window_keys(length)
    parameters: dict[str, Any] = {
        "mode": "LLM",
        "global_batch_size": global_batch_size,
        "seq_len": length,
        "hidden_dim": source.count(family.hidden_dim),
        "num_heads": source.count(family.num_heads),
    }
    if family.fewer_kv_heads:
        understood |= {"num_key_value_heads", "head_dim"}
        optional = family.fewer_kv_heads == "optional"
        if source.content.get("num_key_value_heads") is not None or not optional:
            parameters["num_kv_heads"] = source.count("num_key_value_heads")
        if source.content.get("head_dim") is not None:
            parameters["head_dim"] = source.count("head_dim")
    parameters["num_layers"] = source.count(family.num_layers)
    if source.content.get(family.ffn_dim) is not None or not family.ffn_optional:
        parameters["ffn_dim"] = source.count(family.ffn_dim)
    parameters["vocab_size"] = source.count("vocab_size")
    activations = _GATED_ACTIVATIONS if family.gated else _ACTIVATIONS
    parameters["activation"] = source.choice(family.activation, activations)
    parameters["normalization"] = family.normalization
    parameters["position_embedding"] = family.position_embedding
    if family.position_embedding == "learned":
        parameters["max_position"] = positions + family.extra_positions
        if length > positions:
            raise source.error(
                family.positions, f"is less than the sequence length {length}", ["--seq-len"]
            )
    parameters["tie_embeddings"] = source.flag("tie_word_embeddings", family.tie_embeddings)

    notes: list[str] = []
    if model_type == "gpt_neox":
        understood |= {"use_parallel_residual", "rotary_pct"}
        if source.flag("use_parallel_residual", True):
            notes.append("attention and feed-forward layer run in turn, not side by side")
        if source.content.get("rotary_pct", 0.25) != 1:
            notes.append("the rotary embedding is counted for whole heads, not for rotary_pct")
    if model_type == "opt":
        understood |= {"word_embed_proj_dim", "do_layer_norm_before"}
        width = source.content.get("word_embed_proj_dim", parameters["hidden_dim"])
        if width != parameters["hidden_dim"]:
            raise source.error("word_embed_proj_dim", "differs from hidden_size")
        if not source.flag("do_layer_norm_before", True):
            notes.append("norms stand before attention and feed-forward layer, not behind them")
    source.refuse_rest(understood)
    config = build(LlmModel, parameters, file=source.file, path="model_param")
    check_model(config, source.file)
    return ImportedModel(model_type, parameters, tuple(notes))


def _read_json(path: str | Path) -> Mapping[str, Any]:
    file = str(path)
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ConfigError("no such file", file=file) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=file) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", file=file) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"expected the keys of a model and found {shown(content)}", file=file)
    return content


@record(frozen=True)
class _Source:
    """A ``config.json`` and questions about its keys; every answer may be a ConfigError."""

    file: str
    content: Mapping[str, Any]

    def error(self, key: str, problem: str, allowed: Any = ()) -> ConfigError:
        return ConfigError(
            problem,
            file=self.file,
            key=key,
            value=shown(self.content.get(key)),
            allowed=", ".join(allowed),
        )

    def count(self, key: str) -> int:
        value = self.content.get(key)
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, "is not a positive integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "is not true or false")
        return value

    def choice(self, key: str, known: Mapping[str, str]) -> str:
        value = self.content.get(key)
        found = known.get(value) if isinstance(value, str) else None
        if found is None:
            raise self.error(key, "cannot be represented" if value else "is missing", known)
        return found

    def refuse_features(self) -> None:
        for key, feature in _NOT_REPRESENTED.items():
            if self.content.get(key):
                raise self.error(key, f"asks for {feature}, which cannot be represented")

    def window_keys(self, seq_len: int) -> set[str]:
        """Keys of a sliding window; refused where it is shorter than the sequence."""
        kinds = self.content.get("layer_types") or ["full_attention"]
        known = {"full_attention", "sliding_attention"}
        if not isinstance(kinds, list) or not set(map(str, kinds)) <= known:
            raise self.error("layer_types", "cannot be represented", sorted(known))
        window = self.content.get("sliding_window")
        slides = self.flag("use_sliding_window", True) or "sliding_attention" in kinds
        if window is not None and slides and seq_len > self.count("sliding_window"):
            raise self.error(
                "sliding_window",
                f"is shorter than the sequence of {seq_len} tokens, which cannot be represented",
                [f"--seq-len up to {window}"],
            )
        return {"sliding_window", "use_sliding_window", "layer_types"}

    def refuse_rest(self, understood: set[str]) -> None:
        """A key that is on and has no known meaning could be anything."""
        for key, value in self.content.items():
            if value and key not in understood | _WITHOUT_COST and not key.startswith("_"):
                raise self.error(
                    key,
                    "is not known, so what it asks for cannot be represented"
                    + did_you_mean(key, understood)
                    + "; take it out if it changes no shape",
                )
