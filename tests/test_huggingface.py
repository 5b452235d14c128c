"""Hugging Face configurations become model files, or an error that names what they ask for."""

import json
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.config import LlmModel, VitModel, flatten, load_model_config
from deepflow.config.commands import model_file
from deepflow.config.huggingface import import_model
from deepflow.config.schema import build
from deepflow.errors import ConfigError
from deepflow.workload.transformer import active_parameter_count, layer_kinds, parameter_count

DATA = Path("tests/data/huggingface")
PRESETS = Path("configs/model-config")

# Of the released checkpoints, DeepSeek-V3 without the module for multi-token prediction and BERT
# without the layer before its output embedding. Ours lack what is below a thousandth: biases beside
# RMS norms, norms of queries and keys, the class token.
PUBLISHED_PARAMETERS = {
    "BERT-large": 335_174_458 - 1024 * 1025,
    "DBRX": 131_596_523_520,
    "DeepSeek-V2": 235_741_434_880,
    "DeepSeek-V2-Lite": 15_706_484_224,
    "DeepSeek-V3": 671_026_419_200,
    "GPT-NeoX-20B": 20_554_567_680,
    "GPT-OSS-20B": 20_914_757_184,
    "GPT2": 124_439_808,
    "Gemma2-9B": 9_241_705_984,
    "Llama2-70B": 68_976_648_192,
    "Llama2-7B": 6_738_415_616,
    "Llama3.1-405B": 405_853_388_800,
    "Llama3.1-8B": 8_030_261_248,
    "Mistral-7B": 7_241_732_096,
    "Mixtral-8x22B": 140_630_071_296,
    "Mixtral-8x7B": 46_702_792_704,
    "OPT-13B": 12_853_473_280,
    "Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-8B": 8_190_735_360,
    "ViT-H14": 632_045_800,
    "ViT-L16": 304_326_632,
}

# Billions, as the models' papers and cards round them.
PUBLISHED_ACTIVE_PARAMETERS = {
    "DBRX": 36,
    "DeepSeek-V2": 21,
    "DeepSeek-V3": 37,
    "Mixtral-8x22B": 39,
    "Mixtral-8x7B": 13,
    "Qwen3-235B-A22B": 22,
    "Qwen3-30B-A3B": 3,
}


def imported(tmp_path, name, **options):
    path = tmp_path / f"{name}.yaml"
    text, _ = model_file(DATA / f"{name}.json", **options)
    path.write_text(text)
    return load_model_config(path)


def transformer(model):
    """What is predicted of a model of tokens or images."""
    return model.transformer if isinstance(model, VitModel) else model


def changed(tmp_path, name, **changes):
    """The configuration ``name`` with other values; None takes a key out."""
    content = json.loads((DATA / f"{name}.json").read_text()) | changes
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_every_example_is_checked():
    assert {path.stem for path in DATA.glob("*.json")} == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_imported_models_have_the_published_number_of_parameters(name, tmp_path):
    model = transformer(imported(tmp_path, name))
    assert parameter_count(model) == pytest.approx(PUBLISHED_PARAMETERS[name], rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED_ACTIVE_PARAMETERS)
def test_imported_mixtures_have_the_published_number_of_active_parameters(name, tmp_path):
    active = active_parameter_count(imported(tmp_path, name))
    assert active / 1e9 == pytest.approx(PUBLISHED_ACTIVE_PARAMETERS[name], abs=0.6)


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in PRESETS.glob("*.yaml")} & set(PUBLISHED_PARAMETERS))
)
def test_an_import_is_the_preset_of_the_same_model(name, tmp_path):
    preset = load_model_config(PRESETS / f"{name}.yaml")
    length = None if isinstance(preset, VitModel) else preset.seq_len
    model = imported(tmp_path, name, batch=preset.global_batch_size, seq_len=length)
    # Ways to leave a default unsaid; and the length of training and its dropout, which released
    # checkpoints do not state.
    unsaid = {"n_tokens", "n_images", "num_kv_heads", "expert_ffn_dim", "dropout"}
    ours, theirs = flatten(model), flatten(preset)
    assert {key: ours[key] for key in ours.keys() - unsaid} == {
        key: theirs[key] for key in theirs.keys() - unsaid
    }
    assert parameter_count(transformer(model)) == parameter_count(transformer(preset))


def test_the_longest_sequence_and_a_batch_of_one_are_the_defaults(tmp_path):
    model = imported(tmp_path, "Llama3.1-8B")
    assert (model.seq_len, model.global_batch_size) == (131072, 1)


def test_heads_wider_than_the_residual_stream_allows_are_kept(tmp_path):
    path = changed(tmp_path, "Mistral-7B", head_dim=192, sliding_window=None)
    assert import_model(path).parameters["head_dim"] == 192


def test_a_table_of_learned_positions_has_all_its_rows(tmp_path):
    model = imported(tmp_path, "OPT-13B", seq_len=512)
    assert model.max_position == 2048 + 2
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        model_file(DATA / "OPT-13B.json", seq_len=4096)


def test_a_sliding_window_counts_only_where_it_is_shorter_than_the_sequence(tmp_path):
    assert imported(tmp_path, "Mistral-7B", seq_len=4096).attention_window is None
    assert imported(tmp_path, "Mistral-7B", seq_len=4097).attention_window == 4096
    switched_off = changed(tmp_path, "Qwen2.5-7B", sliding_window=1024)
    assert "attention_window" not in import_model(switched_off).parameters
    changes = {"sliding_window": 1024, "use_sliding_window": True}
    for first, window in ((28, None), (0, 1024)):
        path = changed(tmp_path, "Qwen2.5-7B", **changes, max_window_layers=first)
        assert import_model(path).parameters.get("attention_window") == window


@pytest.mark.parametrize(
    ("name", "changes", "windowed"),
    [
        ("Gemma2-9B", {"sliding_window": 100}, 21 / 42),
        ("Gemma2-9B", {"sliding_window": 100, "num_hidden_layers": 3}, 2 / 3),
        ("GPT-OSS-20B", {}, 12 / 24),
        (
            "Qwen2.5-7B",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 21},
            7 / 28,
        ),
        (
            "Mistral-7B",
            {"layer_types": ["full_attention"] * 30 + ["sliding_attention"] * 2},
            2 / 32,
        ),
    ],
)
def test_layers_with_and_without_a_window_look_at_as_many_positions(
    name, changes, windowed, tmp_path
):
    path = changed(tmp_path, name, **changes)
    length = 6000
    found = import_model(path, seq_len=length)

    def seen(window):
        return sum(min(position, window) for position in range(1, length + 1))

    window = json.loads(path.read_text())["sliding_window"]
    wanted = windowed * seen(window) + (1 - windowed) * seen(length)
    assert seen(found.parameters["attention_window"]) == pytest.approx(wanted, rel=1e-3)
    assert any("window" in note for note in found.notes)


def test_layers_of_experts_are_found(tmp_path):
    def layers(name, **changes):
        model = import_model(changed(tmp_path, name, num_hidden_layers=6, **changes)).parameters
        return "".join(
            "e" if kind == "experts" else "d"
            for kind in layer_kinds(build(LlmModel, model, path="model_param"))
        )

    assert layers("Mixtral-8x7B") == "eeeeee"
    assert layers("Qwen3-30B-A3B", decoder_sparse_step=2) == "dedede"
    assert layers("Qwen3-30B-A3B", decoder_sparse_step=4) == "dddedd"
    assert layers("Qwen3-30B-A3B", mlp_only_layers=[0, 1]) == "ddeeee"
    assert layers("DeepSeek-V3") == "dddeee"
    assert layers("DeepSeek-V3", moe_layer_freq=2) == "dddded"


def test_dropout_is_that_of_the_file_or_of_the_library(tmp_path):
    assert import_model(DATA / "GPT2.json").parameters["dropout"] == 0.1
    unsaid = changed(tmp_path, "GPT2", resid_pdrop=None, embd_pdrop=None, attn_pdrop=None)
    assert import_model(unsaid).parameters["dropout"] == 0.1
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    assert "dropout" not in import_model(changed(tmp_path, "GPT2", **rates)).parameters
    partly = import_model(changed(tmp_path, "GPT2", **rates | {"attn_pdrop": 0.2}))
    assert partly.parameters["dropout"] == 0.2
    assert any("resid_pdrop, embd_pdrop is 0" in note for note in partly.notes)


def test_images_are_cut_into_patches(tmp_path):
    model = imported(tmp_path, "ViT-L16", batch=64)
    assert (model.global_batch_size, model.transformer.seq_len) == (64, 14 * 14 + 1)
    named = changed(
        tmp_path, "ViT-L16", num_labels=None, id2label={str(n): f"kind {n}" for n in range(7)}
    )
    assert import_model(named).parameters["num_classes"] == 7
    with pytest.raises(ConfigError, match="image_size"):
        import_model(named, seq_len=512)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("Mistral-7B", {"num_local_experts": 8}, "num_local_experts.*mixture of experts"),
        ("Llama2-7B", {"kv_lora_rank": 512}, "kv_lora_rank.*latent attention"),
        ("Llama2-7B", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("DeepSeek-V3", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("DeepSeek-V3", {"num_key_value_heads": 8}, "num_key_value_heads"),
        ("DeepSeek-V3", {"num_experts_per_tok": 257}, "experts_per_token"),
        ("Mixtral-8x7B", {"num_experts_per_tok": None}, "num_experts_per_tok: is missing"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": [3]}, "mlp_only_layers"),
        ("Qwen3-30B-A3B", {"head_dim": None}, "head_dim: is missing"),
        (
            "Qwen3-30B-A3B",
            {"use_sliding_window": True, "sliding_window": 4096},
            "use_sliding_window.*layer_types",
        ),
        ("Qwen1.5-MoE-A2.7B", {"shared_expert_intermediate_size": 2000}, "shared_expert_interm"),
        ("GPT-OSS-20B", {"experts_per_token": 2}, "experts_per_token"),
        ("GPT-OSS-20B", {"layer_types": ["full_attention"]}, "layer_types"),
        ("DBRX", {"ffn_config": {"ffn_hidden_size": 10752}}, "ffn_config.moe_num_experts: is miss"),
        ("Gemma2-9B", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("BERT-large", {"is_decoder": True}, "is_decoder"),
        ("BERT-large", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("GPT2", {"attn_pdrop": 2}, "attn_pdrop"),
        ("ViT-L16", {"num_labels": None}, "num_labels: is missing"),
        ("ViT-L16", {"patch_size": 15}, "patch_size.*must divide"),
        ("ViT-L16", {"hidden_act": "relu"}, "hidden_act"),
        ("ViT-L16", {"architectures": ["ViTModel"]}, "architectures"),
        ("Llama2-7B", {"model_type": "mamba"}, "model_type = 'mamba'.*llama, mistral"),
        ("Llama2-7B", {"model_type": None}, "model_type: is missing"),
        ("Llama2-7B", {"model_type": ["llama"]}, "model_type"),
        ("Llama2-7B", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ("Llama2-7B", {"hidden_act": "relu"}, "hidden_act = 'relu'.*silu"),
        ("Llama2-7B", {"hidden_size": None}, "hidden_size: is missing"),
        ("Llama2-7B", {"hidden_size": "4096"}, "hidden_size = '4096'"),
        ("Llama2-7B", {"vocab_size": True}, "vocab_size"),
        ("Llama2-7B", {"num_attention_heads": 33}, "num_heads"),
        ("Mistral-7B", {"sliding_window": None, "num_key_value_heads": None}, "num_key_value"),
        ("Llama2-7B", {"layer_types": ["linear_attention"]}, "layer_types"),
        ("Llama2-7B", {"logit_softcapping": 30.0}, "logit_softcapping = 30"),
        ("Llama2-7B", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("GPT2", {"add_cross_attention": True}, "add_cross_attention"),
        ("OPT-13B", {"word_embed_proj_dim": 512}, "word_embed_proj_dim"),
    ],
)
def test_what_cannot_be_represented_is_named(name, changes, named, tmp_path):
    with pytest.raises(ConfigError, match=named) as caught:
        import_model(changed(tmp_path, name, **changes))
    assert caught.value.file.endswith("config.json")


def test_a_key_that_is_switched_off_asks_for_nothing(tmp_path):
    path = changed(tmp_path, "Llama2-7B", logit_softcapping=0, num_experts=0, qk_norm=False)
    assert import_model(path) == import_model(DATA / "Llama2-7B.json")


def test_what_is_represented_only_nearly_is_noted(tmp_path):
    text, notes = model_file(DATA / "GPT-NeoX-20B.json")
    assert [("side by side" in note, "rotary_pct" in note) for note in notes] == [
        (True, False),
        (False, True),
    ]
    assert all(f"# Note: {note}." in text for note in notes)
    exact = changed(tmp_path, "GPT-NeoX-20B", use_parallel_residual=False, rotary_pct=1.0)
    assert import_model(exact).notes == ()
    notes = " ".join(import_model(DATA / "DeepSeek-V3.json").notes)
    assert "multi-token" in notes and "fp8" in notes
    everywhere = changed(
        tmp_path, "DeepSeek-V3", num_nextn_predict_layers=0, quantization_config=None
    )
    assert import_model(everywhere).notes == ()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_configuration_are_named(content, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        import_model(path)


def test_the_command_prints_or_writes_a_file_that_predicts(tmp_path, capsys):
    source = str(DATA / "Llama2-7B.json")
    assert main(["config", "import", source, "--batch", "8", "--seq-len", "2048"]) == 0
    printed = capsys.readouterr().out
    output = tmp_path / "mine" / "my_llama.yaml"
    command = ["config", "import", source, "--output", str(output)]
    assert main([*command, "--batch", "8", "--seq-len", "2048"]) == 0
    assert output.read_text() == printed
    assert load_model_config(output).name == "my_llama"
    hardware = "configs/hardware-config/nvidia_h200_sxm_141gb.yaml"
    assert main(["predict", "--hardware", hardware, "--model", str(output), "--json"]) == 0
    capsys.readouterr()
    assert main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert load_model_config(output).seq_len == 4096
    assert main(["config", "import", source, "--batch", "0"]) == 1
    assert "global_batch_size" in capsys.readouterr().err
    assert main(["config", "import", str(DATA / "GPT-NeoX-20B.json")]) == 0
    assert "note: attention" in capsys.readouterr().err
