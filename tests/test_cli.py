"""The command line: what it prints, its exit codes, what it leaves on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.prediction import COLUMNS
from deepflow.version import MODEL_VERSION, __version__

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
LLAMA = "configs/model-config/Llama2-7B.yaml"
GEMM = "configs/model-config/GEMM.yaml"
POINT = ["--hardware", H100, "--model", LLAMA]


@pytest.fixture(autouse=True)
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, in this process."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_predict_prints_one_line_per_column(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "predict", *POINT, "--set", "parallelism.tensor=8")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert out.splitlines()[0] == "Llama2-7B on nvidia_h100_sxm_80gb"
    assert set(names) <= COLUMNS.keys()
    assert {"status", "time_s", "tokens_per_second", "peak_memory_bytes"} <= set(names)


def test_predict_json_has_all_columns_the_configuration_and_versions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "predict", *POINT, "--json", "--set", "parallelism.tensor=4")
    record = json.loads(out)
    assert code == 0
    assert COLUMNS.keys() <= record.keys()
    assert record["tensor_parallel"] == 4
    assert record["deepflow_version"] == __version__
    assert record["model_version"] == MODEL_VERSION
    assert record["configuration"]["hardware"]["scheduling_param.tensor"] == 4
    assert record["configuration"]["model"]["hidden_dim"] == 4096


def test_predict_writes_its_output_whole_or_not_at_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "new" / "point.json"
    code, out, _ = run(capsys, "predict", *POINT, "--json", "--output", str(target))
    assert (code, out) == (0, "")
    assert json.loads(target.read_text())["status"] in COLUMNS["status"].doc
    assert [path.name for path in target.parent.iterdir()] == ["point.json"]

    target.unlink()
    code, _, err = run(
        capsys, "predict", *POINT, "--set", "parallelism.tensor=3", "--output", str(target)
    )
    assert code == 1
    assert err.count("\n") == 1
    assert list(target.parent.iterdir()) == []


def test_an_impossible_point_is_an_error_or_on_request_a_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    impossible = [*POINT, "--set", "parallelism.tensor=5", "--json"]
    code, out, err = run(capsys, "predict", *impossible)
    assert (code, out) == (1, "")
    assert "tensor" in err
    code, out, _ = run(capsys, "predict", *impossible, "--allow-infeasible")
    record = json.loads(out)
    assert code == 0
    assert record["status"] == "infeasible"
    assert record["reason"] in err
    assert record["time_s"] is None
    assert record["configuration"]["hardware"]["scheduling_param.tensor"] == 5


def test_contradicting_settings_are_an_impossible_point(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["--set", "model.num_heads=48", "--set", "model.num_kv_heads=36"]
    code, out, _ = run(capsys, "predict", *POINT, *settings, "--json", "--allow-infeasible")
    assert code == 0
    assert json.loads(out)["status"] == "infeasible"


def test_a_point_whose_files_changed_in_the_meantime_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run(capsys, "predict", *POINT, "--json")
    digest = json.loads(out)["digest"]
    assert run(capsys, "predict", *POINT, "--expect-digest", digest)[0] == 0
    code, _, err = run(
        capsys, "predict", *POINT, "--expect-digest", digest, "--set", "model.seq_len=1"
    )
    assert code == 1
    assert "changed since the workflow was started" in err


def test_backend_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    _, by_option, _ = run(capsys, "predict", *POINT, "--json", "--backend", "astra")
    _, by_setting, _ = run(capsys, "predict", *POINT, "--json", "--set", "backend.model=astra")
    assert json.loads(by_option) == json.loads(by_setting)
    assert json.loads(by_option)["backend_requested"] == "astra"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["predikt"], "predikt"),
        (["predict", "--hardware", H100], "--model"),
        (["predict", *POINT, "--set", "parallelism.tensor"], "PATH=VALUE"),
        (["predict", *POINT, "--set", "=4"], "PATH=VALUE"),
        (["predict", *POINT, "--backend", "ns3"], "ns3"),
        (["sweep"], "step"),
        (["sweep", "points"], "SWEEP.yaml"),
        (["schema", "sweeps"], "sweeps"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1


def test_explain_takes_the_options_of_predict(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", *POINT, "--set", "parallelism.tensor=8")
    assert code == 0
    assert "attention" in out


@pytest.mark.parametrize("kind", ["hardware", "model", "sweep"])
def test_schemas_are_json_schemas(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    code, out, _ = run(capsys, "schema", kind)
    assert code == 0
    assert json.loads(out)["$schema"].startswith("https://json-schema.org/")


def test_sweep_points_lists_ids_targets_and_digests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = "sweeps/gemm_shapes.yaml"
    code, out, err = run(capsys, "sweep", "points", sweep)
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert f"{len(lines)} points" in err
    assert all(
        target == f"results/gemm_shapes/points/{name}.json" and len(digest) == 32
        for name, target, digest in lines
    )
    _, out, _ = run(capsys, "sweep", "points", sweep, "--json")
    assert [list(record.values()) for record in json.loads(out)] == lines


SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_example_sweeps_have_plots_of_columns_that_exist(path: Path) -> None:
    from deepflow.sweep.expand import load_sweep
    from deepflow.sweep.plots import check_plots
    from deepflow.sweep.tables import summary_columns

    sweep = load_sweep(path)
    check_plots(sweep.plots, list(summary_columns(sweep)), sweep.file)
    assert sweep.plots
    assert sweep.description


def test_warnings_are_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(
        capsys,
        *("predict", "--hardware", "configs/hardware-config/a100_80GB.yaml", "--model", GEMM),
    )
    assert code == 0
    assert err
    assert all(line.startswith("deepflow: warning: ") for line in err.splitlines())


def test_the_module_runs_and_stops_quietly_when_its_reader_does() -> None:
    command = [sys.executable, "-m", "deepflow", "sweep", "points", "sweeps/gemm_shapes.yaml"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_predict_does_not_load_what_only_tables_and_plots_need() -> None:
    program = (
        "import sys; from deepflow.cli import main;"
        f"main(['predict', '--hardware', '{H100}', '--model', '{GEMM}', '--json']);"
        "print([name for name in ('pandas', 'pyarrow', 'seaborn', 'matplotlib', 'snakemake')"
        " if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"
