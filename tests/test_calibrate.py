"""``deepflow calibrate`` finds what made a table, and changes nothing else in a file."""

import csv
import json
from datetime import date
from pathlib import Path

import pytest

from deepflow.calibrate import PARAMETERS, calibrate, parameter_paths, write_calibrated
from deepflow.cli import main
from deepflow.config import flatten, load_hardware_config
from deepflow.errors import ConfigError
from deepflow.hardware import load_hardware
from deepflow.validate.rows import predicted_kernel_seconds

PRESET = "configs/hardware-config/nvidia_a100_sxm_80gb.yaml"
MEASURED = "tests/data/measured"
LINK = "tech_param.network.intra_node."
BETWEEN = "tech_param.network.inter_node."
# What the synthetic tables are made of.
TRUE = {
    "sw_param.kernel_launch_overhead": 4e-6,
    "tech_param.DRAM.util": 0.7,
    "tech_param.core.util": 0.66,
    "tech_param.core.attention_util": 0.6,
    "tech_param.core.attention_block_latency": 9e-6,
    LINK + "util": 0.7,
    LINK + "latency": 2e-6,
    LINK + "handshake": 5e-6,
}
TODAY = date(2020, 2, 29)


def products():
    for m, n, k in [
        *((m, n, 64 * i) for m in (1, 4, 16) for n in (32, 64, 256) for i in (1, 2, 3)),
        *((m, 1024 * i, 8192) for m in (1, 4) for i in range(4, 12)),
        *((512 * m, 512 * n, 4096) for m in (4, 6, 9) for n in (4, 6, 11, 16)),
    ]:
        yield {"op": "gemm", "dtype": "bfloat16", "m": m, "n": n, "k": k}


def attention():
    for length in (1024, 1536, 2048, 3072, 4096, 8192):
        for batch, heads in ((1, 8), (1, 16), (2, 32), (4, 32)):
            yield {
                "op": "attention_prefill",
                "attn_dtype": "bfloat16",
                "batch": batch,
                "num_heads": heads,
                "num_kv_heads": heads,
                "head_dim": 128,
                "q_len": length,
                "kv_len": length,
                "kernel_source": "flash_attention",
            }


def collectives():
    for op in ("all_reduce", "all_gather"):
        for ranks in (2, 4, 8):
            for exponent in range(10, 29, 2):
                yield {"op": op, "library": "nccl", "ranks": ranks, "bytes": 2**exponent}


def write_table(path, rows, hardware=None, gpu="a100_sxm"):
    """Rows with the time that ``hardware`` takes for them."""
    hardware = hardware or load_hardware(PRESET, TRUE)
    records = []
    for row in rows:
        text = {"gpu": gpu, **{key: str(value) for key, value in row.items()}}
        text["latency_us"] = f"{predicted_kernel_seconds(text, hardware) * 1e6:.6g}"
        records.append(text)
    columns = dict.fromkeys(key for record in records for key in record)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return [
        write_table(folder / f"{make.__name__}.csv", make())
        for make in (products, attention, collectives)
    ]


@pytest.fixture(scope="module")
def found(tables):
    return calibrate(tables, PRESET)


def test_parameters_that_made_a_table_are_found(found):
    for path, value in TRUE.items():
        assert found.after[path] == pytest.approx(value, rel=0.03), path
    for group in found.groups:
        for errors in (group.fitted, group.held_out):
            assert errors[1].rows == 0 or errors[1].mean < 1, group.name
    assert sum(group.held_out[1].rows for group in found.groups) > 0


def test_what_no_row_shows_is_left_alone_with_a_reason(found):
    for path in PARAMETERS:
        assert (path in found.after) != (path in found.unchanged), path
    assert {path for path in PARAMETERS if path.startswith(BETWEEN)} <= found.unchanged.keys()


def test_file_with_the_result_loads_and_calibrating_it_again_changes_nothing(
    found, tables, tmp_path
):
    once, twice = tmp_path / "once.yaml", tmp_path / "twice.yaml"
    write_calibrated(found, PRESET, once, TODAY)
    loaded = flatten(load_hardware_config(once))
    original = flatten(load_hardware_config(PRESET))
    assert {path: loaded[path] for path in found.after} == found.after
    assert {path for path in loaded if loaded[path] != original[path]} <= found.after.keys()
    again = calibrate(tables, once)
    assert again.after == found.after
    write_calibrated(again, once, twice, TODAY)
    assert twice.read_text() == once.read_text()


def test_comments_stay_and_new_values_say_where_they_are_from(found, tmp_path):
    output = tmp_path / "output.yaml"
    write_calibrated(found, PRESET, output, TODAY)
    text, original = output.read_text(), Path(PRESET).read_text()
    for line in original.splitlines():
        comment = line.partition("#")[2].strip()
        assert comment.startswith("calibrated") or comment in text
    (line,) = [line for line in text.splitlines() if "kernel_launch_overhead" in line]
    assert line.startswith("  kernel_launch_overhead: 4 us  # calibrated 2020-02-29 on products (")
    assert "held out" in line


def test_remark_on_an_old_value_is_kept_with_the_value(found, tmp_path):
    file, output = tmp_path / "device.yaml", tmp_path / "output.yaml"
    lines = Path(PRESET).read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if "kernel_launch_overhead:" in line)
    lines[place] = "  kernel_launch_overhead: 7 us  # a guess"
    file.write_text("\n".join(lines))
    write_calibrated(found, file, output, TODAY)
    assert "\n  # was 7 us: a guess\n  kernel_launch_overhead: 4 us  # calibrated" in (
        output.read_text()
    )


def test_values_of_a_base_become_overrides(tables, tmp_path):
    derived, output = tmp_path / "derived.yaml", tmp_path / "elsewhere/output.yaml"
    base = Path(PRESET).resolve()
    derived.write_text(
        f"base: {base}\nname: derived\naliases: [a100_sxm]\n\n"
        "tech_param:\n  DRAM:\n    size: 40 GiB  # half of it\n"
    )
    result = calibrate(tables[:1], derived, parameter_paths("DRAM.util,kernel_launch_overhead"))
    assert result.before["tech_param.DRAM.util"] == load_hardware_config(base).tech_param.DRAM.util
    write_calibrated(result, derived, output, TODAY)
    loaded = load_hardware_config(output)
    assert {path: flatten(loaded)[path] for path in result.after} == result.after
    assert loaded.tech_param.DRAM.size == 40 * 2**30
    text = output.read_text()
    assert "    size: 40 GiB  # half of it\n    util: 0." in text
    assert "\nsw_param:\n  kernel_launch_overhead: " in text
    assert Path(PRESET).read_text() == base.read_text()


def test_rate_of_attention_that_a_data_sheet_lacks_is_added(tables, tmp_path):
    file, output = tmp_path / "device.yaml", tmp_path / "output.yaml"
    lines = Path(PRESET).read_text().splitlines()
    left_out = ("    attention_util:", "    attention_rates:", "      tensorrt_llm:")
    file.write_text("\n".join(line for line in lines if not line.startswith(left_out)))
    names = "attention_util,attention_block_latency"
    result = calibrate(tables[1:2], file, parameter_paths(names))
    assert result.before["tech_param.core.attention_util"] is None
    assert result.after["tech_param.core.attention_util"] == pytest.approx(0.6, rel=0.03)
    write_calibrated(result, file, output, TODAY)
    assert load_hardware_config(output).tech_param.core.attention_util == pytest.approx(
        result.after["tech_param.core.attention_util"]
    )


def test_only_named_parameters_change(tables):
    result = calibrate(tables[:1], PRESET, parameter_paths("core.util"))
    assert list(result.after) == ["tech_param.core.util"]


@pytest.mark.parametrize("names", ["DRAM.bandwidth", "core.utli", "util"])
def test_other_parameters_are_refused_by_name(names):
    with pytest.raises(ConfigError, match=names.replace(".", r"\.")):
        parameter_paths(names)


def test_tables_of_whole_runs_are_refused(tables):
    for table in ("train_a100_megatron", "train_h100_ultrascale"):
        with pytest.raises(ConfigError, match="whole runs"):
            calibrate([*tables, f"{MEASURED}/{table}.csv.gz"], PRESET)


def test_rows_of_another_machine_are_not_taken_unless_that_is_wanted(tmp_path):
    table = write_table(tmp_path / "other.csv", products(), gpu="another")
    with pytest.raises(ConfigError, match=r"another.*--all-rows"):
        calibrate([table], PRESET)
    assert calibrate([table], PRESET, every_row=True).after["tech_param.core.util"] < 0.7


def test_file_that_lines_cannot_change_is_left_as_it_is(found, tmp_path):
    file = tmp_path / "device.yaml"
    lines = Path(PRESET).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    intra_node:"))
    end = next(i for i in range(start, len(lines)) if lines[i].startswith("    inter_node:"))
    lines[start:end] = ["    intra_node: {bandwidth: 300 GB/s, latency: 1 us}"]
    text = "\n".join(lines)
    file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be edited in place"):
        write_calibrated(found, file, file, TODAY)
    assert file.read_text() == text


def test_command_reports_and_writes_only_where_it_is_told(tables, tmp_path, capsys):
    file, output = tmp_path / "device.yaml", tmp_path / "output.yaml"
    original = Path(PRESET).read_text()
    file.write_text(original)
    command = ["calibrate", str(tables[0]), "--hardware", str(file)]
    command += ["--parameters", "kernel_launch_overhead"]
    assert main(command) == 0
    assert "kernel launch, held out" in capsys.readouterr().out
    assert main([*command, "--output", str(output), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"]["sw_param.kernel_launch_overhead"]["after"] == pytest.approx(
        4e-6, rel=0.1
    )
    assert file.read_text() == original
    assert main([*command, "--in-place"]) == 0
    assert file.read_text() == output.read_text() != original
    assert main(["calibrate", f"{MEASURED}/train_a100_megatron.csv.gz", "--hardware", PRESET]) == 1
