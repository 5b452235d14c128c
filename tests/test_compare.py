"""What differs between two points or two sweeps: sums, joins, errors, exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepflow.cli import main
from deepflow.compare.points import ABSENT, compare_points
from deepflow.compare.results import PointResult, SweepResult, read_result
from deepflow.compare.sweeps import compare_sweeps
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.tables import gather, write_shard

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
A100 = "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"
STUDY = "configs/hardware-config/exp_config_new.yaml"
LLAMA = "configs/model-config/Llama2-7B.yaml"
LSTM = "configs/model-config/LSTM.yaml"
GEMM = "configs/model-config/GEMM.yaml"
COLLECTIVE = "configs/model-config/collective.yaml"
INFERENCE = ["model.run_type=inference", "model.prompt_len=512"]
ASTRA = ["backend.model=astra"]


@pytest.fixture(autouse=True)
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def predicted(file: Path, hardware: str, model: str, *settings: str) -> PointResult:
    changes = [part for text in settings for part in ("--set", text)]
    command = ["predict", "--hardware", hardware, "--model", model, *changes]
    assert main([*command, "--json", "--allow-infeasible", "--output", str(file)]) == 0
    result = read_result(str(file))
    assert isinstance(result, PointResult)
    return result


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    predicted(a, H100, LLAMA, "parallelism.tensor=2")
    predicted(b, H100, LLAMA, "parallelism.tensor=8", "model.dropout=0.1")
    return a, b


PAIRS = [
    ((A100, LLAMA), (H100, LLAMA, "parallelism.tensor=4", "parallelism.zero=1")),
    ((H100, LLAMA, "parallelism.pipeline=4"), (H100, LLAMA, "parallelism.pipeline=8")),
    ((H100, LLAMA, *INFERENCE), (A100, LLAMA, *INFERENCE, "parallelism.tensor=8")),
    ((STUDY, LSTM), (STUDY, LSTM, "model.batch_size=64")),
    ((A100, GEMM), (H100, GEMM, "model.M=1024")),
    ((A100, COLLECTIVE), (A100, COLLECTIVE, *ASTRA)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_parts_add_up_to_the_difference_of_their_total(one, other, tmp_path: Path) -> None:
    found = compare_points(
        predicted(tmp_path / "a.json", *one), predicted(tmp_path / "b.json", *other)
    )
    assert "time_s" in found.totals
    for name, total in found.totals.items():
        difference = math.fsum(part.difference for part in found.parts[name])
        larger = max(abs(total.a or 0), abs(total.b or 0))
        assert difference == pytest.approx(total.difference, abs=2e-9 * larger), name
        for side in ("a", "b"):
            whole = math.fsum(getattr(part, side) or 0.0 for part in found.parts[name])
            assert whole == pytest.approx(getattr(total, side), rel=2e-9), name
    assert found.totals["time_s"].difference != 0


@pytest.mark.parametrize(("one", "other"), PAIRS[:3])
def test_the_other_way_round_all_differences_change_sign(one, other, tmp_path: Path) -> None:
    a, b = predicted(tmp_path / "a.json", *one), predicted(tmp_path / "b.json", *other)
    there, back = compare_points(a, b), compare_points(b, a)
    for name, parts in there.parts.items():
        forth = {part.name: part.difference for part in parts}
        assert {part.name: -part.difference for part in back.parts[name]} == forth
    assert {(item.key, repr(item.a), repr(item.b)) for item in there.settings} == {
        (item.key, repr(item.b), repr(item.a)) for item in back.settings
    }


def test_a_point_does_not_differ_from_itself(pair, capsys) -> None:
    a = str(pair[0])
    code, out, _ = run(capsys, "compare", a, a, "--json", "--max-change", "0")
    record = json.loads(out)
    assert code == 0
    assert record["configuration"] == [] and record["others"] == []
    assert all(term["difference"] == 0 for parts in record["parts"].values() for term in parts)


def test_configurations_name_keys_units_and_what_only_one_has(pair, tmp_path, capsys) -> None:
    record = json.loads(pair[1].read_text())
    del record["configuration"]["model"]["n_tokens"]
    record["configuration"]["hardware"]["tech_param.DRAM.bandwidth"] = 4.8e12
    older = tmp_path / "older.json"
    older.write_text(json.dumps(record))
    _, text, _ = run(capsys, "compare", str(pair[0]), str(older))
    assert "3.352 TB/s -> 4.8 TB/s" in text
    assert "scheduling_param.tensor" in text and "2 -> 8" in text
    a, b = read_result(str(pair[0])), read_result(str(older))
    assert isinstance(a, PointResult) and isinstance(b, PointResult)
    found = {item.key: item for item in compare_points(a, b).settings}
    assert found["model.n_tokens"].b == ABSENT
    assert found["hardware.tech_param.DRAM.bandwidth"].unit == "bytes/s"
    assert not any(key.endswith(".name") for key in found)
    _, out, _ = run(capsys, "compare", str(pair[0]), str(older), "--json")
    (setting,) = [x for x in json.loads(out)["configuration"] if x["key"] == "model.n_tokens"]
    assert "a" in setting and "b" not in setting


def test_versions_and_infeasible_points_are_said(pair, tmp_path: Path, capsys) -> None:
    record = json.loads(pair[1].read_text())
    older = tmp_path / "older.json"
    older.write_text(json.dumps({**record, "model_version": "3"}))
    _, text, _ = run(capsys, "compare", str(pair[0]), str(older))
    assert "different versions" in text
    predicted(older, H100, LLAMA, "parallelism.tensor=64")
    code, text, _ = run(capsys, "compare", str(pair[0]), str(older))
    assert code == 0
    assert "status: ok -> infeasible" in text and "64" in text
    code, _, err = run(capsys, "compare", str(pair[0]), str(older), "--max-change", "50")
    assert code == 1 and "status" in err
    picture = ["--plot", str(tmp_path / "x.svg")]
    assert run(capsys, "compare", str(pair[0]), str(older), *picture)[0] == 1


def test_points_predicted_now_are_those_of_predict(pair, tmp_path: Path, capsys) -> None:
    point = ["--hardware", H100, "--model", LLAMA]
    code, out, _ = run(
        capsys, "compare", str(pair[0]), *point, "--set", "parallelism.tensor=2", "--json"
    )
    assert code == 0
    assert json.loads(out)["totals"]["time_s"]["difference"] == 0
    both = ["--set", "parallelism.tensor=2", "--set", "parallelism.zero=1"]
    code, out, _ = run(
        capsys,
        "compare",
        *point,
        *both,
        "--to",
        "parallelism.tensor=8",
        "--to-hardware",
        A100,
        "--json",
    )
    assert code == 0
    expected = [
        predicted(tmp_path / "x.json", *files, "parallelism.zero=1").columns["time_s"]
        for files in ((H100, LLAMA, "parallelism.tensor=2"), (A100, LLAMA, "parallelism.tensor=8"))
    ]
    total = json.loads(out)["totals"]["time_s"]
    assert [total["a"], total["b"]] == expected


def test_waterfall_names_the_parts(pair, tmp_path: Path, capsys) -> None:
    for ending in ("svg", "png"):
        picture = tmp_path / f"waterfall.{ending}"
        assert run(capsys, "compare", *map(str, pair), "--plot", str(picture))[0] == 0
    assert "tensor communication" in (tmp_path / "waterfall.svg").read_text()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "damaged"),
        ("[1, 2]", "no result"),
        ('{"time_s": 1}', "no result"),
        ('{"status": "ok", "time_s": 1, "configuration": 3}', "configuration"),
        ('{"status": "ok", "time_s": NaN, "configuration": {"hardware": {}, "model": {}}}', "nan"),
        ('{"status": "ok", "time_s": "1", "configuration": {"hardware": {}, "model": {}}}', "'1'"),
    ],
)
def test_files_that_are_no_points_are_refused(content, named, pair, tmp_path, capsys) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(content)
    code, out, err = run(capsys, "compare", str(file), str(pair[0]))
    assert (code, out) == (1, "")
    assert named in err and "wrong.json" in err and err.count("\n") == 1


def test_command_lines_that_mean_nothing_are_refused(pair, tmp_path: Path, capsys) -> None:
    a, b = map(str, pair)
    point = ["--hardware", H100, "--model", LLAMA]
    gemm = tmp_path / "gemm.json"
    predicted(gemm, H100, GEMM)
    for arguments, named in (
        ([a], "--hardware"),
        ([a, b, *point], "nothing is predicted"),
        ([a, *point, "--to", "parallelism.tensor=8"], "--to"),
        (point, "--to"),
        ([a, str(tmp_path / "none.json")], "no such file"),
        ([a, str(tmp_path)], "summary.parquet"),
        ([a, H100], "no result"),
        ([a, str(gemm)], "mode"),
    ):
        code, out, err = run(capsys, "compare", *arguments)
        assert (code, out) == (1, ""), arguments
        assert named in err and err.count("\n") == 1


SWEEP = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-7B.yaml
set: {model.global_batch_size: 64, parallelism.zero: 1}
grid:
  parallelism.tensor: [1, 2, 3, 4]
  parallelism.micro_batch_size: [1, 4]
points_per_job: 100
"""


def table_of(folder: Path, text: str, name: str) -> Path:
    """The results folder of a sweep."""
    file = folder / f"{name}.yaml"
    file.write_text(text)
    sweep = load_sweep(file)
    results = folder / name
    for shard in sweep.shards:
        write_shard(sweep, shard, results / f"shards/{shard}.parquet")
    gather(sweep, results, results / "summary.parquet")
    return results


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        return {
            "before": table_of(folder, SWEEP, "before"),
            "faster": table_of(
                folder,
                SWEEP.replace(
                    "set: {",
                    "set: {hardware.tech_param.DRAM.size: 34 GiB,"
                    " hardware.tech_param.DRAM.bandwidth: 2 TB/s, ",
                ).replace("[1, 2, 3, 4]", "[1, 2, 8]"),
                "slower",
            ),
            "turned": table_of(
                folder,
                SWEEP.replace("  parallelism.tensor: [1, 2, 3, 4]\n", "")
                + "zip:\n  - parallelism.tensor: [4, 2]\n",
                "turned",
            ),
        }


def read(path: Path) -> SweepResult:
    result = read_result(str(path))
    assert isinstance(result, SweepResult)
    return result


def test_sweeps_say_what_changed_and_what_only_one_has(tables) -> None:
    before, after = read(tables["before"]), read(tables["faster"] / "summary.parquet")
    found = compare_sweeps(before, after, "time_s", "auto")
    assert found.keys == ("point",)
    assert len(found.joined) == 4
    assert len(found.only_a) == 4 and len(found.only_b) == 2
    assert all("tensor=8" in point for point in found.only_b)
    assert sum(found.statuses.values()) == 4
    changed = {item.column: item for item in found.distributions}
    slower = changed["time_s"]
    assert slower.changed == slower.points == 4
    assert 0 < slower.least <= slower.median <= slower.magnitude_90 <= slower.most
    assert changed["tokens_per_second"].most < 0
    sizes = [abs(change.relative) for change in found.largest]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 4
    rows = before.rows.set_index("point")["time_s"]
    assert found.largest[0].a == rows[found.largest[0].point]
    assert found.largest[0].relative == pytest.approx(slower.most)
    assert {setting.key for setting in found.settings} == {
        "set.hardware.tech_param.DRAM.size",
        "set.hardware.tech_param.DRAM.bandwidth",
    }


def test_sweeps_of_other_axes_are_joined_by_those_that_both_have(tables, capsys) -> None:
    before, turned = read(tables["before"]), read(tables["turned"])
    found = compare_sweeps(before, turned, "time_s", "auto")
    assert set(found.keys) == {"tensor", "axis_micro_batch_size"}
    by_axes = compare_sweeps(before, turned, "time_s", "axes")
    assert len(by_axes.joined) == 4
    assert not by_axes.largest
    assert len(by_axes.only_a) == 4 and not by_axes.only_b
    code, _, err = run(
        capsys, "compare", str(tables["before"]), str(tables["turned"]), "--join", "id"
    )
    assert code == 1 and "no point in common" in err


def test_status_changes_are_counted(tables, tmp_path: Path) -> None:
    before = read(tables["before"])
    changed = before.rows.copy()
    ok = changed.index[changed["status"] == "ok"][0]
    changed.loc[ok, "status"] = "out_of_memory"
    after = SweepResult(
        "after", changed, before.units, before.axes, before.configurations, before.settings
    )
    found = compare_sweeps(before, after, "time_s", "auto")
    assert found.statuses[("ok", "out_of_memory")] == 1
    assert found.status_changes == 1


def test_max_change_is_a_check(tables, capsys) -> None:
    before, after = str(tables["before"]), str(tables["faster"])
    assert run(capsys, "compare", before, before, "--max-change", "0")[0] == 0
    assert run(capsys, "compare", before, after)[0] == 0
    for never in ("nan", "-1", "much"):
        code, _, err = run(capsys, "compare", before, before, "--max-change", never)
        assert code == 2 and "is not a number from 0 on" in err
    code, out, err = run(capsys, "compare", before, after, "--max-change", "100", "--json")
    assert code == 1 and "one of the sweeps only" in err
    assert json.loads(out)["in_both"] == 4


def test_changes_of_sweeps_are_drawn(tables, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "changes.svg"
    arguments = [str(tables["before"]), str(tables["faster"]), "--plot", str(picture)]
    assert run(capsys, "compare", *arguments)[0] == 0
    assert "change of time_s" in picture.read_text()


def test_tables_that_cannot_be_used_are_refused_and_left_alone(tables, tmp_path, capsys) -> None:
    good = str(tables["before"])
    content = (tables["before"] / "summary.parquet").read_bytes()
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(content[: len(content) // 2])
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    holes = tmp_path / "holes.parquet"
    rows = pd.read_parquet(tables["before"] / "summary.parquet")
    rows.loc[rows["status"] == "ok", "time_s"] = math.nan
    rows.to_parquet(holes)
    for file, named in ((damaged, "damaged"), (other, "no table"), (holes, "no number")):
        kept = file.read_bytes()
        code, out, err = run(capsys, "compare", good, str(file))
        assert (code, out) == (1, "")
        assert named in err and err.count("\n") == 1
        assert file.read_bytes() == kept


def test_a_point_and_a_sweep_or_an_unknown_column_are_refused(tables, pair, capsys) -> None:
    before = str(tables["before"])
    for arguments, named in (
        ([before, str(pair[0])], "one is a point"),
        ([before, before, "--column", "time"], "time_s"),
        ([str(pair[0]), str(pair[1]), "--column", "time", "--max-change", "1"], "time_s"),
    ):
        code, _, err = run(capsys, "compare", *arguments)
        assert code == 1 and named in err
