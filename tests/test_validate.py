"""Tables of measurements are recognised, predicted row by row, and summed up honestly."""

import gzip
import json
import re
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.errors import ConfigError
from deepflow.validate import ADDED_COLUMNS, read_table, summarize, validate_table

TABLE = "tests/data/measured/train_h100_ultrascale_first_200_rows.csv"
TRAINING = {
    "hardware": "H100 SXM5 80GB",
    "run_type": "train",
    "n_gpus": "16",
    "params": "6740000000",
    "n_layers": "32",
    "hidden": "4096",
    "heads": "32",
    "kv_heads": "32",
    "ffn_dim": "11008",
    "vocab": "32000",
    "seq_len": "4096",
    "global_batch": "64",
    "micro_batch": "1",
    "tp": "2",
    "pp": "2",
    "dp": "4",
    "zero": "1",
    "sp": "True",
    "metric": "step_time",
    "measured_value": "10",
}
GEMM = {"gpu": "h100_sxm", "op": "gemm", "dtype": "bfloat16", "m": "4096", "n": "4096", "k": "4096"}


def one(row):
    return next(validate_table([row]))


def test_units_of_a_row_are_respected():
    """Step time, tokens/s and TFLOP/s of one run are the same prediction."""
    time = one(TRAINING).predicted
    rate = one(TRAINING | {"metric": "tok_per_s_per_gpu"}).predicted
    assert rate * time * 16 == pytest.approx(64 * 4096)
    teraflops = one(TRAINING | {"metric": "model_tflops_per_gpu"}).predicted
    utilization = one(TRAINING | {"metric": "mfu"}).predicted
    assert utilization == pytest.approx(100 * teraflops * 1e12 / 989.4e12, rel=1e-3)
    assert 10 < one(GEMM | {"latency_us": "200"}).predicted < 1000


def test_errors_are_signed_and_relative_to_the_measurement():
    row = one(TRAINING)
    doubled = one(TRAINING | {"measured_value": str(row.predicted / 2)})
    assert doubled.error_percent == pytest.approx(100)
    halved = one(TRAINING | {"measured_value": str(row.predicted * 2)})
    assert halved.error_percent == pytest.approx(-50)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (TRAINING | {"hardware": "H900"}, "H900"),
        (TRAINING | {"metric": "wind_speed"}, "wind_speed"),
        (TRAINING | {"tp": "3"}, "tensor 3"),
        (TRAINING | {"hidden": "wide"}, "wide"),
        (TRAINING | {"cp": "2"}, "cp = 2"),
        (GEMM | {"latency_us": "1", "dtype": "fp8"}, "fp8"),
        ({"colour": "blue"}, "not one of"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(row, reason):
    result = one(row)
    assert result.predicted is None and result.error_percent is None
    assert re.search(reason, result.not_predicted)


def test_an_alias_wins_over_a_name_that_happens_to_be_alike(tmp_path, monkeypatch):
    """The study a100_80GB is not what tables call "A100 80GB", whatever the order of files."""
    folder = tmp_path / "configs" / "hardware-config"
    folder.mkdir(parents=True)
    fast = Path("configs/hardware-config/nvidia_h100_sxm_80gb.yaml").read_text()
    slow = fast.replace("util: 0.8", "util: 0.4")
    row = GEMM | {"latency_us": "100"}
    monkeypatch.chdir(tmp_path)
    (folder / "m.yaml").write_text(fast.replace("name: nvidia_h100_sxm_80gb", "name: m"))
    expected = one(row).predicted
    for file in ("H100 SXM.yaml", "z.yaml"):
        (folder / file).write_text(
            slow.replace("name: nvidia_h100_sxm_80gb", "name: H100-SXM").split("aliases:")[0]
            + "sw_param:"
            + slow.split("sw_param:")[1]
        )
        assert one(row).predicted == expected
        (folder / file).unlink()


def test_a_name_that_two_files_claim_is_no_machine(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "hardware-config"
    folder.mkdir(parents=True)
    preset = Path("configs/hardware-config/nvidia_h100_sxm_80gb.yaml").read_text()
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(preset.replace("name: nvidia", f"name: {name}"))
    monkeypatch.chdir(tmp_path)
    assert re.search(r"one\.yaml.*two\.yaml", one(GEMM | {"latency_us": "1"}).not_predicted)


def test_machines_of_pairs_are_found_by_their_name_in_tables():
    row = TRAINING | {"hardware": "A100 80GB", "n_gpus": "4", "dp": "2", "tp": "2", "pp": "1"}
    pairs = one(row)
    assert pairs.predicted > one(row | {"hardware": "A100 SXM 80GB"}).predicted


def test_overrides_hold_for_all_rows():
    slower = next(validate_table([TRAINING], None, {"tech_param.core.util": 0.3}))
    assert slower.predicted > one(TRAINING).predicted * 1.3


def test_groups_count_every_row_and_summarise_the_predicted_ones():
    rows = [TRAINING, TRAINING | {"measured_value": "20"}, TRAINING | {"tp": "3"}]
    (group,) = summarize(list(validate_table(rows)))
    assert (group.rows, group.predicted) == (3, 2)
    assert group.mean_absolute >= 0 and group.median_absolute >= 0


def test_tables_are_read_plain_and_compressed(tmp_path):
    plain = read_table(TABLE)
    assert len(plain) == 200
    compressed = tmp_path / "table.csv.gz"
    compressed.write_bytes(gzip.compress(Path(TABLE).read_bytes()))
    assert read_table(compressed) == plain


@pytest.mark.parametrize("content", [None, b"", b"a,b\n", b"\xff\xfe\x00\x01", b"\x1f\x8b broken"])
def test_unreadable_tables_are_named(tmp_path, content):
    path = tmp_path / "table.csv.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"table\.csv\.gz"):
        read_table(path)


def test_added_columns_stand_beside_the_row():
    row = one(TRAINING).as_row()
    assert list(row)[-3:] == list(ADDED_COLUMNS)
    assert list(row)[:-3] == list(TRAINING)
    assert row["not_predicted"] == ""


def test_the_command_writes_every_row_and_sums_up(tmp_path, capsys):
    table = tmp_path / "table.csv"
    rows = [TRAINING, TRAINING | {"hardware": "H900"}]
    table.write_text(
        "\n".join([",".join(TRAINING), *(",".join(row.values()) for row in rows)]) + "\n"
    )
    output = tmp_path / "out.csv"
    assert main(["validate", str(table), "--json", "--output", str(output)]) == 0
    (group, unknown) = json.loads(capsys.readouterr().out)
    assert (group["rows"], group["predicted"], unknown["predicted"]) == (1, 1, 0)
    written = read_table(output)
    assert [row["hardware"] for row in written] == ["H100 SXM5 80GB", "H900"]
    assert float(written[0]["predicted"]) > 0 and "H900" in written[1]["not_predicted"]


def test_the_command_can_be_a_check(tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(f"{','.join(TRAINING)}\n{','.join(TRAINING.values())}\n")
    assert main(["validate", str(table), "--max-mape", "1000"]) == 0
    assert main(["validate", str(table), "--max-mape", "0.001"]) == 1
    assert "exceeds --max-mape" in capsys.readouterr().err
    assert main(["validate", str(table), "--set", "model.seq_len=8"]) == 1
    assert "the table states the model" in capsys.readouterr().err


def test_a_file_that_is_no_such_table_is_refused(capsys):
    assert main(["validate", "configs/model-config/GEMM.yaml"]) == 1
    assert "no row is recognised" in capsys.readouterr().err


ATTENTION = {
    "gpu": "h100_sxm",
    "op": "attention_prefill",
    "attn_dtype": "bfloat16",
    "batch": "4",
    "num_heads": "32",
    "num_kv_heads": "8",
    "head_dim": "128",
    "window_size": "0",
    "q_len": "8192",
    "kv_len": "8192",
    "latency_us": "2000",
}
COLLECTIVE = {
    "gpu": "h100_sxm",
    "op": "all_reduce",
    "library": "nccl",
    "ranks": "8",
    "bytes": str(2**28),
    "latency_us": "1000",
}


def test_attention_and_collectives_are_kernels_too():
    twice = one(ATTENTION | {"batch": "8"}).predicted
    assert twice == pytest.approx(2 * one(ATTENTION).predicted, rel=0.01)
    ring = 2 * 7 / 8 * 2**28 / (450e9 * 0.729)
    assert one(COLLECTIVE).predicted == pytest.approx(ring * 1e6, rel=0.05)
    apart = one(COLLECTIVE | {"node": "h100_dgx", "devices_per_node": "1", "ranks": "2"})
    assert apart.predicted > 2 / 2 * 2**28 / 50e9 * 1e6
    milli = {name: value for name, value in COLLECTIVE.items() if name != "latency_us"}
    assert "not us" in one(milli | {"latency": "1", "unit": "ms"}).not_predicted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ATTENTION | {"window_size": "128"}, "whole sequence"),
        (ATTENTION | {"attn_dtype": "fp8"}, "fp8"),
        (COLLECTIVE | {"library": "custom_allreduce"}, "custom_allreduce"),
        (COLLECTIVE | {"ranks": "64"}, "devices_per_node"),
    ],
)
def test_kernels_that_are_not_modelled_say_so(row, reason):
    assert reason in one(row).not_predicted and one(row).predicted is None


@pytest.mark.parametrize(("micro_batch", "answer"), [("1", "1"), ("64", "0")])
def test_whether_it_fits_is_right_or_wrong(micro_batch, answer):
    run = TRAINING | {
        "metric": "fits_in_memory(1=ran,0=OOM)",
        "micro_batch": micro_batch,
        "global_batch": "256",
        "params": "",
    }
    right, wrong = (
        one(run | {"measured_value": answer}),
        one(run | {"measured_value": str(1 - int(answer))}),
    )
    assert right.error_percent == 0 and abs(wrong.error_percent) == 100
