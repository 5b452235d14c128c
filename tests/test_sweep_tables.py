"""From predicted points to tables, without Snakemake."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from deepflow.cli import main
from deepflow.errors import DeepFlowError
from deepflow.prediction import COLUMNS
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.plots import draw_plot
from deepflow.sweep.points import Sweep
from deepflow.sweep.tables import METADATA_KEY, gather, summary_columns, write_csv, write_shard

SWEEP = """\
description: Which split is best?
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-7B.yaml
set: {model.global_batch_size: 64, parallelism.zero: 1}
grid:
  parallelism.tensor: [1, 2, 3, 4, 8]
  parallelism.micro_batch_size: [1, 2]
  hardware.tech_param.DRAM.bandwidth: [2 TB/s, 3.352e12]
  parallelism.recompute: [none, full]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(autouse=True)
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def load(folder: Path, text: str, name: str = "test") -> Sweep:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return load_sweep(path)


def predict_points(sweep: Sweep, results: Path) -> None:
    """The point files of a sweep, as jobs write them."""
    for point in sweep.points():
        settings = [part for setting in point.settings for part in ("--set", setting.text)]
        output = str(results / "points" / f"{point.id}.json")
        command = ["predict", "--hardware", point.base.hardware_file]
        command += ["--model", point.base.model_file, *settings, "--allow-infeasible", "--json"]
        assert main([*command, "--output", output]) == 0


@pytest.fixture(scope="module")
def summary(folder: Path, repository: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        sweep = load(folder, SWEEP)
        predict_points(sweep, folder / "results")
        gather(sweep, folder / "results", folder / "summary.parquet")
    return folder / "summary.parquet"


def test_the_table_has_a_typed_row_per_point_in_the_order_of_the_sweep(
    folder: Path, summary: Path
) -> None:
    sweep = load(folder, SWEEP)
    table = pd.read_parquet(summary)
    assert table["point"].tolist() == [point.id for point in sweep.points()]
    assert table["digest"].tolist() == [point.digest for point in sweep.points()]
    assert table.columns.tolist() == list(summary_columns(sweep))
    assert table["tensor"].dtype == "int64"
    assert table["bandwidth"].dtype == "float64"
    assert table["bandwidth"].unique().tolist() == [2e12, 3.352e12]
    assert table["recompute"].unique().tolist() == ["none", "full"]
    # An axis that has the name of a result keeps its values apart.
    assert table["axis_micro_batch_size"].tolist() == [
        point.axis_values["micro_batch_size"] for point in sweep.points()
    ]


def test_impossible_points_are_rows_with_a_reason_and_no_numbers(summary: Path) -> None:
    table = pd.read_parquet(summary)
    impossible = table[table["tensor"] == 3]
    assert (impossible["status"] == "infeasible").all()
    assert impossible["reason"].str.contains("tensor").all()
    assert impossible[["time_s", "peak_memory_bytes"]].isna().all(axis=None)
    assert (table.loc[table["status"] == "ok", "time_s"] > 0).all()


def test_the_schema_says_what_columns_mean_and_where_they_come_from(
    folder: Path, summary: Path
) -> None:
    schema = pq.read_schema(summary)
    assert schema.field("time_s").metadata[b"unit"] == b"s"
    assert schema.field("bandwidth").metadata[b"unit"] == b"bytes/s"
    assert schema.field("time_s").metadata[b"description"].decode() == COLUMNS["time_s"].doc
    about = json.loads(schema.metadata[METADATA_KEY])
    assert about["sweep_yaml"] == SWEEP
    assert about["description"] == "Which split is best?"
    hardware = about["configurations"]["hardware"]["nvidia_h100_sxm_80gb"]
    assert hardware["tech_param.core.num_bundles"] == 132


def test_csv_has_the_same_rows(folder: Path, summary: Path) -> None:
    write_csv(summary, folder / "summary.csv")
    table, again = pd.read_parquet(summary), pd.read_csv(folder / "summary.csv")
    assert again.columns.tolist() == table.columns.tolist()
    pd.testing.assert_series_equal(again["time_s"], table["time_s"])
    assert again["point"].tolist() == table["point"].tolist()


def test_shards_give_the_same_rows_as_points(folder: Path, summary: Path) -> None:
    sweep = load(folder, SWEEP + "points_per_job: 10\n")
    results = folder / "sharded"
    assert len(sweep.shards) == 4
    for name in sweep.shards:
        write_shard(sweep, name, results / "shards" / f"{name}.parquet")
    gather(sweep, results, results / "summary.parquet")
    by_shard = pd.read_parquet(results / "summary.parquet").set_index("point").sort_index()
    by_point = pd.read_parquet(summary).set_index("point").sort_index()
    pd.testing.assert_frame_equal(by_shard, by_point)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_text(file.read_text()[:200]), "is damaged"),
        (lambda file: file.write_text("[]"), "is damaged"),
        (lambda file: file.write_text("[" * 200_000), "is damaged"),
        (
            lambda file: file.write_text(file.read_text().replace('"digest": "', '"digest": "0')),
            "was made from other settings",
        ),
    ],
    ids=["missing", "cut", "other", "deep", "stale"],
)
def test_gather_refuses_a_bad_point_file_and_says_what_to_do(
    folder: Path, tmp_path: Path, damage: object, problem: str
) -> None:
    text = SWEEP.replace("[1, 2, 3, 4, 8]", "[1, 2]").replace("[none, full]", "[full]")
    sweep = load(folder, text, "damaged")
    predict_points(sweep, tmp_path)
    files = sorted((tmp_path / "points").iterdir())
    bad = files[1]
    damage(bad)
    aside = bad.with_name(f"{bad.name}.unusable")
    what = f"{problem} (it is now {aside})" if bad.exists() else problem
    with pytest.raises(DeepFlowError) as error:
        gather(sweep, tmp_path, tmp_path / "summary.parquet")
    assert str(error.value) == f"{bad} {what}; run the sweep again"
    assert not (tmp_path / "summary.parquet").exists()
    assert not bad.exists()


def test_gather_finds_all_bad_files_at_once(folder: Path, tmp_path: Path) -> None:
    sweep = load(folder, SWEEP.replace("[none, full]", "[full]"), "damaged")
    predict_points(sweep, tmp_path)
    files = sorted((tmp_path / "points").iterdir())
    for file in files[1:4]:
        file.write_text("{")
    with pytest.raises(DeepFlowError, match="and 2 other files like it"):
        gather(sweep, tmp_path, tmp_path / "summary.parquet")
    assert [file.exists() for file in files[:5]] == [True, False, False, False, True]


def test_gather_refuses_a_bad_shard(folder: Path, tmp_path: Path) -> None:
    sweep = load(folder, SWEEP + "points_per_job: 40\n", "one_shard")
    (name,) = sweep.shards
    file = tmp_path / "shards" / f"{name}.parquet"
    write_shard(sweep, name, file)
    whole = file.read_bytes()
    middle = len(whole) // 3
    for content in (whole[:1000], whole[:middle] + bytes(8) + whole[middle + 8 :], b"", b"x" * 99):
        file.write_bytes(content)
        with pytest.raises(DeepFlowError, match="is damaged"):
            gather(sweep, tmp_path, tmp_path / "summary.parquet")
        assert not file.exists()
    changed = load(folder, SWEEP.replace("64", "32") + "points_per_job: 40\n", "one_shard")
    write_shard(sweep, name, file)
    with pytest.raises(DeepFlowError, match="was made from other settings"):
        gather(changed, tmp_path, tmp_path / "summary.parquet")


def test_a_damaged_table_is_named(folder: Path, summary: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "summary.parquet"
    sweep = load(folder, SWEEP + "plots: [{kind: breakdown}]\n", "damaged")
    for use in (
        lambda: write_csv(damaged, tmp_path / "summary.csv"),
        lambda: draw_plot(sweep.plots[0], damaged, [tmp_path / "plot.png"], sweep.file),
    ):
        damaged.write_bytes(summary.read_bytes()[:1000])
        with pytest.raises(DeepFlowError, match="is damaged"):
            use()
    assert [path.name for path in tmp_path.iterdir()] == ["summary.parquet.unusable"]
