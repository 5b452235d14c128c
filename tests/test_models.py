"""Models: keys that belong together, images as sequences, and the shipped models' sizes."""

from dataclasses import replace
from pathlib import Path

import pytest

from deepflow import load_hardware, load_model, predict
from deepflow.config import LlmModel, VitModel, load_model_config
from deepflow.config.loading import check_model
from deepflow.errors import ConfigError
from deepflow.explain import explain
from deepflow.workload.transformer import (
    active_parameter_count,
    model_flops_per_token,
    parameter_count,
)

PRESETS = Path(__file__).resolve().parent.parent / "configs/model-config"
STUDIES = {"GEMM", "LSTM", "LLM", "collective"}

PUBLISHED_PARAMETERS = {
    "GPT3-175B": 174.6e9,  # "175 billion": Brown et al. 2020
    "Megatron-22B": 22.07e9,  # Narayanan et al. 2021, formula 2
    "Megatron-530B": 529.6e9,  # Narayanan et al. 2021, table 1, as the next
    "Megatron-1T": 1008.0e9,
    "Llama2-7B": 6.738e9,  # the released checkpoints, here and below
    "Llama2-13B": 13.016e9,
    "Llama2-70B": 68.977e9,
    "Llama3.1-8B": 8.030e9,
    "Llama3.1-70B": 70.554e9,
    "Llama3.1-405B": 405.85e9,
    "Qwen2.5-7B": 7.616e9,
    "Qwen2.5-72B": 72.706e9,
    "Mixtral-8x7B": 46.703e9,
    "Mixtral-8x22B": 140.63e9,
    "Qwen3-235B-A22B": 235.09e9,
    "DeepSeek-V3": 671.03e9,
    "ViT-L16": 304.33e6,
}

MODEL = LlmModel(
    global_batch_size=8, seq_len=512, hidden_dim=256, num_heads=8, vocab_size=1000, num_layers=4
)
MIXTURE = replace(MODEL, num_experts=8)
LATENT = replace(MODEL, kv_latent_dim=64, head_dim=32)
IMAGES = VitModel(
    global_batch_size=64,
    image_size=224,
    patch_size=16,
    num_classes=1000,
    hidden_dim=1024,
    num_heads=16,
    num_layers=24,
)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_model_presets_have_the_published_number_of_parameters(name):
    model = load_model_config(PRESETS / f"{name}.yaml")
    tokens = model.transformer if isinstance(model, VitModel) else model
    assert parameter_count(tokens) == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.002)


def test_every_published_model_is_checked():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == STUDIES | set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        (MODEL, {"num_heads": 3}, "num_heads = 3: must divide hidden_dim"),
        (MODEL, {"num_kv_heads": 3}, "num_kv_heads = 3: must divide num_heads"),
        (MIXTURE, {"experts_per_token": 9}, "experts_per_token = 9.*num_experts = 8"),
        (MIXTURE, {"num_dense_layers": 5}, "num_dense_layers = 5.*num_layers = 4"),
        (
            MIXTURE,
            {"expert_imbalance": 1.5, "expert_capacity_factor": 1.25},
            "expert_imbalance.*expert_capacity_factor",
        ),
        *(
            (MODEL, {key: value}, f"{key} = {value}: needs num_experts")
            for key, value in {
                "experts_per_token": 1,
                "expert_ffn_dim": 64,
                "num_shared_experts": 1,
                "num_dense_layers": 1,
                "expert_layer_period": 2,
                "expert_imbalance": 2.0,
                "expert_capacity_factor": 1.25,
            }.items()
        ),
        (MODEL, {"query_latent_dim": 64}, "query_latent_dim = 64: needs kv_latent_dim"),
        (MODEL, {"rotary_head_dim": 32}, "rotary_head_dim = 32: needs kv_latent_dim"),
        (LATENT, {"num_kv_heads": 2}, "num_kv_heads = 2.*latent"),
        (MODEL, {"tie_embeddings": True, "num_classes": 10}, "tie_embeddings.*num_classes"),
        (MODEL, {"tie_embeddings": True, "patch_dim": 768}, "tie_embeddings.*patch_dim"),
        (IMAGES, {"patch_size": 15}, "patch_size = 15: must divide image_size = 224"),
        (IMAGES, {"num_heads": 15}, "num_heads = 15: must divide hidden_dim"),
    ],
)
def test_keys_that_contradict_each_other_are_named(model, changes, named):
    check_model(model)
    with pytest.raises(ConfigError, match=named) as caught:
        check_model(replace(model, **changes), "model.yaml")
    assert caught.value.file == "model.yaml"


def test_an_image_is_a_sequence_of_patches():
    tokens = IMAGES.transformer
    assert tokens.seq_len == 14 * 14 + 1
    assert tokens.patch_dim == 16 * 16 * 3
    assert not tokens.causal
    assert replace(IMAGES, class_token=False).transformer.seq_len == 14 * 14
    assert replace(IMAGES, channels=1).transformer.patch_dim == 16 * 16
    # Four times the patches are a little over four times the work.
    finer = replace(IMAGES, patch_size=8).transformer
    work = [model.seq_len * model_flops_per_token(model) for model in (tokens, finer)]
    assert 4 < work[1] / work[0] < 5


def test_image_models_are_predicted_and_explained():
    hardware = load_hardware("configs/hardware-config/nvidia_h100_sxm_80gb.yaml")
    model = load_model(PRESETS / "ViT-L16.yaml", {"n_images": 1.28e6 * 90})
    result = predict(hardware, model)
    assert result.status == "ok"
    assert result.time_to_train_s == pytest.approx(1.28e6 * 90 / 4096 * result.time_s)
    larger = predict(hardware, replace(model, image_size=448))
    assert larger.time_s > result.time_s
    assert "patch_embedding" in explain(hardware, model)


def test_experts_and_latents_are_read_from_the_file():
    model = load_model_config(
        PRESETS / "DeepSeek-V3.yaml", {"experts_per_token": 4, "kv_latent_dim": 256}
    )
    whole = load_model_config(PRESETS / "DeepSeek-V3.yaml")
    assert (model.experts_per_token, model.kv_latent_dim) == (4, 256)
    assert active_parameter_count(model) < active_parameter_count(whole) < parameter_count(whole)
