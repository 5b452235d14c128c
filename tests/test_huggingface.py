"""Hugging Face configurations become model files, or an error that names what they ask for."""

import json
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.config import flatten, load_model_config
from deepflow.config.commands import model_file
from deepflow.config.huggingface import import_model
from deepflow.errors import ConfigError
from deepflow.workload.transformer import parameter_count

DATA = Path("tests/data/huggingface")
PRESETS = Path("configs/model-config")

# Of the released checkpoints. Ours has no biases, which are below a thousandth.
PUBLISHED_PARAMETERS = {
    "GPT2": 124_439_808,
    "GPT-NeoX-20B": 20_554_567_680,
    "Llama2-7B": 6_738_415_616,
    "Llama2-70B": 68_976_648_192,
    "Llama3.1-8B": 8_030_261_248,
    "Llama3.1-405B": 405_853_388_800,
    "Mistral-7B": 7_241_732_096,
    "OPT-13B": 12_853_473_280,
    "Qwen2.5-7B": 7_615_616_512,
}


def imported(tmp_path, name, **options):
    path = tmp_path / f"{name}.yaml"
    text, _ = model_file(DATA / f"{name}.json", **options)
    path.write_text(text)
    return load_model_config(path)


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
    model = imported(tmp_path, name, seq_len=1024)
    assert parameter_count(model) == pytest.approx(PUBLISHED_PARAMETERS[name], rel=1e-3)


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in PRESETS.glob("*.yaml")} & set(PUBLISHED_PARAMETERS))
)
def test_an_import_is_the_preset_of_the_same_model(name, tmp_path):
    preset = load_model_config(PRESETS / f"{name}.yaml")
    model = imported(tmp_path, name, batch=preset.global_batch_size, seq_len=preset.seq_len)
    # Ways to leave a default unsaid, and the length of training, which no checkpoint states.
    unsaid = {"n_tokens", "num_kv_heads"}
    ours, theirs = flatten(model), flatten(preset)
    assert {key: ours[key] for key in ours.keys() - unsaid} == {
        key: theirs[key] for key in theirs.keys() - unsaid
    }
    assert model.kv_heads == preset.kv_heads


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
    assert imported(tmp_path, "Mistral-7B", seq_len=4096).seq_len == 4096
    with pytest.raises(ConfigError, match=r"sliding_window = 4096.*--seq-len up to 4096"):
        model_file(DATA / "Mistral-7B.json")
    switched_off = changed(tmp_path, "Qwen2.5-7B", sliding_window=1024)
    assert import_model(switched_off).parameters["seq_len"] == 131072
    switched_on = changed(tmp_path, "Qwen2.5-7B", sliding_window=1024, use_sliding_window=True)
    with pytest.raises(ConfigError, match="sliding_window"):
        import_model(switched_on)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("Mistral-7B", {"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts"),
        ("Llama2-7B", {"model_type": "deepseek_v3", "kv_lora_rank": 512}, "kv_lora_rank"),
        ("Llama2-7B", {"quantization_config": {"bits": 4}}, "quantization_config"),
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
