"""Ids are safe file names, digests follow meaning, shards are stable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cli import main
from deepflow.sweep import identity
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.points import Sweep
from deepflow.sweep.settings import Setting, parse_setting

SWEEP = """\
hardware: h100.yaml
model: llama.yaml
set: {model.num_layers: 4}
grid:
  parallelism.tensor: [1, 2]
  hardware.tech_param.DRAM.bandwidth: [2 TB/s, 3 TB/s]
"""


@pytest.fixture
def folder(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a hardware and a model file that a test may edit."""
    configs = repository / "configs"
    shutil.copy(configs / "hardware-config/nvidia_h100_sxm_80gb.yaml", tmp_path / "h100.yaml")
    shutil.copy(configs / "model-config/Llama2-7B.yaml", tmp_path / "llama.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str = SWEEP) -> Sweep:
    Path("test.yaml").write_text(text)
    return load_sweep("test.yaml")


def digests(sweep: Sweep) -> dict[str, str]:
    return {point.id: point.digest for point in sweep.points()}


def edit(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


@given(st.text(max_size=60))
def test_any_text_makes_a_safe_part_of_a_file_name(text: str) -> None:
    shown = identity.value_text(text)
    assert set(shown) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")
    assert shown
    assert "/" not in identity.point_id([f"name={shown}"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4, "4"),
        (0.5, "0.5"),
        (3.0, "3"),
        (2.02e12, "2.02e12"),
        (1 / 3, "0.3333333333333333"),
        (True, "true"),
        (None, "null"),
        ("3.35 TB/s", "3.35TBps"),
        ("80 GB", "80GB"),
    ],
)
def test_values_stand_in_ids_as_in_the_sweep_file(value: object, text: str) -> None:
    assert identity.value_text(value) == text


def test_texts_that_are_cut_to_the_same_characters_stay_apart() -> None:
    assert identity.value_text("a*b") != identity.value_text("ab")
    assert identity.value_text("a*b") != identity.value_text("a?b")


def test_points_have_different_digests(folder: Path) -> None:
    assert len(set(digests(load()).values())) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda: edit("h100.yaml", "sw_param:", "# a comment\nsw_param:"),
        lambda: edit("h100.yaml", "3352 GB/s", "3.352 TB/s"),
        lambda: edit("h100.yaml", "name: nvidia", "name: my_nvidia"),
        lambda: Path("h100.yaml").touch(),
        lambda: edit("llama.yaml", "hidden_dim: 4096", "hidden_dim: 0x1000"),
        lambda: edit("llama.yaml", "  tie_embeddings: false\n", ""),
    ],
    ids=["comment", "unit", "name", "touch", "spelling", "default"],
)
def test_digests_ignore_what_means_nothing(folder: Path, change: object) -> None:
    before, before_shards = digests(load()), load(SWEEP + "points_per_job: 2").shards
    change()
    assert digests(load()) == before
    after_shards = load(SWEEP + "points_per_job: 2").shards
    assert [shard.digest for shard in after_shards.values()] == [
        shard.digest for shard in before_shards.values()
    ]


def test_digests_ignore_how_a_sweep_says_it(folder: Path) -> None:
    before = digests(load())
    same = SWEEP.replace("set: {model.num_layers: 4}\n", "").replace(
        "parallelism.tensor", "hardware.scheduling_param.tensor"
    )
    edit("llama.yaml", "num_layers: 32", "num_layers: 4")
    assert digests(load("description: the same\n" + same)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda: edit("h100.yaml", "operating_frequency: 1.83", "operating_frequency: 1.84"),
        lambda: edit("llama.yaml", "seq_len: 4096", "seq_len: 2048"),
    ],
    ids=["hardware", "model"],
)
def test_digests_follow_every_value(folder: Path, change: object) -> None:
    before, shards = digests(load()), load(SWEEP + "points_per_job: 2").shards
    change()
    after = digests(load())
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    for name, shard in load(SWEEP + "points_per_job: 2").shards.items():
        assert shard.digest != shards[name].digest


def test_a_value_that_every_point_overrides_does_not_matter(folder: Path) -> None:
    before = digests(load())
    edit("h100.yaml", "bandwidth: 3352 GB/s", "bandwidth: 1000 GB/s")
    edit("llama.yaml", "num_layers: 32", "num_layers: 31")
    assert digests(load()) == before


def test_the_backend_and_the_model_version_are_part_of_the_digest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(load())
    assert not set(digests(load(SWEEP + "backend: astra")).values()) & set(before.values())
    monkeypatch.setattr(identity, "MODEL_VERSION", "another")
    assert not set(digests(load()).values()) & set(before.values())


def test_predict_with_the_same_settings_has_the_same_digest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for point in load().points():
        settings = [part for setting in point.settings for part in ("--set", setting.text)]
        command = ["predict", "--hardware", "h100.yaml", "--model", "llama.yaml", "--json"]
        assert main([*command, *settings]) == 0
        assert json.loads(capsys.readouterr().out)["digest"] == point.digest


@pytest.mark.parametrize("value", [4, 0.5, True, None, "3.35 TB/s", "4", "true", "a: b", "#", ""])
def test_settings_survive_the_command_line(value: object) -> None:
    setting = Setting("model.name", value, "set.model.name")
    again = parse_setting(setting.text)
    assert (again.path, again.value) == ("model.name", value)
    assert type(again.value) is type(value)


def test_shards_hold_every_point_once_and_are_even(folder: Path) -> None:
    sweep = load(
        "hardware: h100.yaml\nmodel: llama.yaml\npoints_per_job: 100\n"
        "grid: {model.seq_len: {start: 1, stop: 1000, step: 1}, parallelism.tensor: [1, 2, 4, 8]}\n"
        "where: seq_len % 5 != 0"
    )
    assert sweep.count == 3200
    assert set(sweep.shards) == {f"{number:02d}of32" for number in range(1, 33)}
    numbers = sorted(number for shard in sweep.shards.values() for number in shard.numbers.tolist())
    assert numbers == sweep.numbers.tolist()
    # A mean of 100 with a standard deviation of 10: five of those are as good as never.
    assert all(50 <= len(shard.numbers) <= 150 for shard in sweep.shards.values())


def test_a_new_point_changes_one_shard_only(folder: Path) -> None:
    text = (
        "hardware: h100.yaml\nmodel: llama.yaml\npoints_per_job: 100\n"
        "grid: {model.seq_len: {start: 1, stop: 700, step: 1}}\n"
    )
    before = load(text).shards
    after = load(text.replace("700", "701")).shards
    assert after.keys() == before.keys()
    changed = [name for name in before if before[name].digest != after[name].digest]
    (name,) = changed
    assert len(after[name].numbers) == len(before[name].numbers) + 1


def test_the_order_of_values_moves_no_point(folder: Path) -> None:
    text = (
        "hardware: h100.yaml\nmodel: llama.yaml\npoints_per_job: 2\n"
        "grid: {model.seq_len: [1, 2, 3, 4, 5, 6, 7]}\n"
    )

    def members(sweep: Sweep) -> dict[str, tuple[str, set[str]]]:
        return {
            name: (shard.digest, {point.id for point in sweep.points(shard.numbers)})
            for name, shard in sweep.shards.items()
        }

    assert members(load(text)) == members(load(text.replace("1, 2, 3", "3, 1, 2")))


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_shards_are_a_power_of_two_and_just_enough(points: int, per_job: int) -> None:
    shards = identity.shard_count(points, per_job)
    assert shards & (shards - 1) == 0
    assert points <= shards * per_job
    assert shards == 1 or points > shards // 2 * per_job


def test_an_axis_never_takes_the_name_of_the_files() -> None:
    assert identity.short_names(["backend.model", "parallelism.tensor"]) == [
        "backend.model",
        "tensor",
    ]
    assert identity.short_names(["model", "backend.model"]) == ["model", "backend.model"]
