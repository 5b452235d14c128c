"""Tables of measurements are recognised, predicted row by row, and summed up honestly."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.config import split_overrides
from deepflow.errors import ConfigError
from deepflow.sweep.settings import parse_setting
from deepflow.validate import (
    ADDED_COLUMNS,
    choices,
    read_table,
    read_validated,
    reasons_text,
    summarize,
    validate_table,
    write_table,
)
from deepflow.validate.ablations import ABLATIONS
from deepflow.validate.goals import reached
from deepflow.validate.plots import draw_parity, panels_of

TABLE = "tests/data/measured/op_collectives.csv.gz"
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
        (TRAINING | {"recompute": "some"}, "recompute = some"),
        (GEMM | {"latency_us": "1", "dtype": "int3"}, "int3"),
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


def test_machines_of_one_name_are_told_apart_by_their_network(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "hardware-config"
    folder.mkdir(parents=True)
    preset = Path("configs/hardware-config/nvidia_h100_sxm_80gb.yaml").read_text()
    (folder / "nvidia_h100_sxm_80gb.yaml").write_text(preset)
    slow = preset.replace("name: nvidia_h100_sxm_80gb", "name: slow").replace(
        "aliases: [h100_sxm", "aliases: [x"
    )
    slow = slow.replace("util: 0.8", "util: 0.4").replace("h100_dgx]", "y]")
    slow = slow.replace('"H100 SXM5 80GB"', '"H100 SXM5 80GB EFA"').replace('"H100 SXM 80GB"', "z")
    (folder / "slow.yaml").write_text(slow)
    monkeypatch.chdir(tmp_path)
    plain = one(TRAINING | {"interconnect": "NVLink, InfiniBand"})
    assert plain.predicted == one(TRAINING).predicted
    assert one(TRAINING | {"interconnect": "NVLink, InfiniBand/EFA"}).predicted > plain.predicted


def test_overrides_hold_for_all_rows():
    slower = next(validate_table([TRAINING], None, {"tech_param.core.util": 0.3}))
    assert slower.predicted > one(TRAINING).predicted * 1.3


def test_groups_count_every_row_and_summarise_the_predicted_ones():
    rows = [TRAINING, TRAINING | {"measured_value": "20"}, TRAINING | {"tp": "3"}]
    (group,) = summarize(list(validate_table(rows)))
    assert (group.rows, group.predicted) == (3, 2)
    assert group.mean_absolute >= 0 and group.median_absolute >= 0


def test_tables_are_read_plain_and_compressed(tmp_path):
    compressed = read_table(TABLE)
    assert len(compressed) == 800
    plain = tmp_path / "table.csv"
    plain.write_bytes(gzip.decompress(Path(TABLE).read_bytes()))
    assert read_table(plain) == compressed


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
    assert twice == pytest.approx(2 * one(ATTENTION).predicted, rel=0.05)
    ring = 2 * 7 / 8 * 2**28 / 450e9 * 1e6
    assert 0.8 * ring < one(COLLECTIVE).predicted < 2 * ring
    apart = one(COLLECTIVE | {"node": "h100_dgx", "devices_per_node": "1", "ranks": "2"})
    assert apart.predicted > 2 / 2 * 2**28 / 50e9 * 1e6
    bare = {name: value for name, value in COLLECTIVE.items() if name != "latency_us"}
    assert "not us" in one(bare | {"latency": "1", "unit": "ms"}).not_predicted
    in_seconds = one(bare | {"latency": "1e-3", "unit": "s"})
    assert in_seconds.predicted == pytest.approx(1e-6 * one(COLLECTIVE).predicted)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ATTENTION | {"attn_dtype": "int3"}, "int3"),
        (COLLECTIVE | {"library": "rccl"}, "rccl"),
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


SELENE = {
    "hardware": "A100-SXM-80GB (Selene)",
    "quantity": "training_iteration_time",
    "model": "megatron-22B",
    "hidden": "6144",
    "feedforward": "24576",
    "seq_len": "2048",
    "attn_heads": "64",
    "attn_size": "96",
    "num_layers": "48",
    "num_procs": "8",
    "tensor_par": "8",
    "pipeline_par": "1",
    "data_par": "1",
    "batch_size": "4",
    "microbatch_size": "4",
    "pipeline_interleaving": "1",
    "activation_recompute": "full",
    "tensor_par_comm_type": "ar",
    "optimizer_sharding": "False",
    "value": "1.42",
    "unit": "s",
}
PUBLISHED = {
    "hardware": "A100-SXM-80GB (Selene)",
    "phase": "train",
    "scheme": "PTD-P (full recompute)",
    "model": "174.6B",
    "tp": "8",
    "pp": "12",
    "dp": "4",
    "global_batch": "1536",
    "microbatch": "1",
    "seq_len": "2048",
    "num_gpus": "384",
    "value": "153",
    "unit": "TFLOP/s per GPU",
}


def test_one_run_in_two_layouts_of_columns_is_one_prediction():
    run = TRAINING | {
        "source": "Megatron-LM",
        "hardware": "A100 SXM4 80GB",
        "n_gpus": "8",
        "params": "22000000000",
        "n_layers": "48",
        "hidden": "6144",
        "heads": "64",
        "kv_heads": "64",
        "ffn_dim": "24576",
        "vocab": "51200",
        "seq_len": "2048",
        "global_batch": "4",
        "micro_batch": "4",
        "tp": "8",
        "pp": "1",
        "dp": "1",
        "zero": "0",
        "sp": "False",
        "recompute": "full",
        "metric": "iteration_time",
    }
    assert one(run).predicted == pytest.approx(one(SELENE).predicted)


ZERO_3 = PUBLISHED | {"scheme": "ZeRO-3", "tp": "1", "pp": "1", "dp": "384", "microbatch": "4"}


def test_fully_sharded_runs_of_an_early_library_are_far_slower_than_they_need_be():
    """Against arXiv 2104.04473, table 2; nothing was fitted to it."""
    assert abs(one(ZERO_3 | {"value": "144"}).error_percent) < 10
    fewer = [
        one(ZERO_3 | {"num_gpus": devices, "dp": devices, "microbatch": size}).predicted
        for devices, size in (("768", "2"), ("1536", "1"))
    ]
    # Communication does not shrink with the share of a device: four times the devices, and each
    # reaches about a third.
    assert 0.6 < fewer[0] / one(ZERO_3).predicted < 0.8
    assert 0.25 < fewer[1] / one(ZERO_3).predicted < 0.4


def test_a_publication_that_interleaves_is_read_so():
    run = TRAINING | {"dp": "1", "n_gpus": "8", "tp": "4", "pp": "2"}
    source = "Narayanan et al. 2021, Megatron-LM"
    plain, interleaved = (one(run | {"source": text}) for text in ("Megatron-LM", source))
    assert interleaved.predicted < plain.predicted
    # A single layer on each stage cannot be cut into parts.
    short = run | {"n_layers": "2", "params": "", "source": source}
    assert one(short).predicted == one(short | {"source": "Megatron-LM"}).predicted


def test_gathered_weights_are_in_use_while_they_are_updated():
    run = TRAINING | {"source": "nanotron", "metric": "mem_allocated", "pp": "1", "n_gpus": "8"}
    gibibytes = [one(run | {"zero": zero}).predicted for zero in ("0", "1")]
    # Of 12 bytes of states per parameter a fourth stays; 2-byte weights of all ranks come on top.
    parameters = (gibibytes[0] - gibibytes[1]) / (12 * 3 / 4 - 2) * 2**30
    assert parameters == pytest.approx(6.74e9 / 2, rel=0.01)


def test_published_rates_count_recomputation_as_the_publication_does():
    """153 TFLOP/s and 84 days per 300B tokens are one measurement; so are their predictions."""
    rate = one(PUBLISHED)
    days = one(PUBLISHED | {"value": "84", "unit": "days per 300B tokens"})
    executed = rate.measured * days.measured
    assert rate.predicted * days.predicted == pytest.approx(executed, rel=0.02)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PUBLISHED | {"unit": "GPU-hours (total training)"}, "GPU-hours"),
        (PUBLISHED | {"dp": ""}, "does not state the layout"),
        (PUBLISHED | {"model": "LLaMA-65B"}, "LLaMA-65B"),
        (PUBLISHED | {"phase": "infer"}, "not one of"),
        (TRAINING | {"metric": "other_failure(timeout)", "measured_value": ""}, "another reason"),
    ],
)
def test_what_a_publication_leaves_open_is_said(row, reason):
    assert reason in one(row).not_predicted and one(row).predicted is None


def test_runs_with_a_fault_of_the_framework_are_a_group_of_their_own(tmp_path, capsys):
    """They are predicted and shown, and are no reason to fail a check."""
    faulty = TRAINING | {"after_pp_fix": "False", "measured_value": "1000"}
    sound = TRAINING | {"after_pp_fix": "True"}
    memory = faulty | {"metric": "fits_in_memory", "measured_value": "1"}
    alone = faulty | {"pp": "1", "dp": "8"}
    results = list(validate_table([faulty, sound, memory, alone]))
    assert [item.explicable for item in results] == [False, True, True, True]
    groups = summarize(results)
    assert len({group.group for group in groups}) == 3
    table = tmp_path / "table.csv"
    lines = [",".join(row[name] for name in faulty) for row in (faulty, sound)]
    table.write_text("\n".join([",".join(faulty), *lines]) + "\n")
    assert main(["validate", str(table), "--max-mape", "99"]) == 0
    assert "before the framework's pipeline fix" in capsys.readouterr().out


def test_a_run_that_ended_early_is_of_the_model_of_the_others():
    stated = TRAINING | {"model": "small", "params": "", "tie_embeddings": "True"}
    blank = stated | {"tie_embeddings": "", "ffn_dim": ""}
    both = list(validate_table([stated, blank]))
    assert both[0].predicted == both[1].predicted
    other = list(validate_table([stated | {"model": "other"}, blank]))
    assert other[1].predicted is None and "''" in other[1].not_predicted


def test_the_framework_is_found_by_what_a_row_says_of_its_source():
    plain = one(TRAINING)
    megatron = one(TRAINING | {"source": "a paper of 2022, Megatron-LM on Selene"})
    assert megatron.predicted != plain.predicted
    file = "configs/framework-config/megatron_lm.yaml"
    (given,) = validate_table([TRAINING], framework_file=file)
    assert given.predicted == megatron.predicted


def test_groups_tell_long_kernels_and_large_messages_from_others():
    kernels = [GEMM | {"latency_us": "200"}, GEMM | {"latency_us": "5"}]
    messages = [COLLECTIVE, COLLECTIVE | {"bytes": "1024"}, COLLECTIVE | {"ranks": "2"}]
    groups = [item.group for item in validate_table(kernels + messages)]
    assert len(set(groups)) == 5
    assert groups[0].endswith("over 20 us") and groups[3].endswith("below 1 MiB")


def test_lengths_of_attention_may_be_input_tokens_and_tokens_before_them():
    stated = ATTENTION | {"op": "attention_decode", "q_len": "1", "kv_len": "64"}
    counted = stated | {"isl": "1", "step": "63", "dtype": "bfloat16", "q_len": "", "kv_len": ""}
    assert one(counted).predicted == one(stated).predicted


def test_a_choice_is_judged_by_what_was_measured_of_it():
    """Of two layouts the one predicted faster; its loss is that of the measured rates."""
    rate = TRAINING | {"metric": "tok_per_s_per_gpu", "model": "m"}
    slow = rate | {"tp": "16", "dp": "1", "pp": "1"}
    fast = slow | {"tp": "2", "dp": "8"}
    rows = [slow | {"measured_value": "100"}, fast | {"measured_value": "80"}]
    results = list(validate_table(rows))
    assert results[1].predicted > results[0].predicted
    (choice,) = choices(results)
    assert (choice.runs, choice.devices, choice.good) == (2, 16, False)
    assert choice.loss_percent == pytest.approx(20)
    (single,) = (list(choices(results[:1])),)
    assert single == []


def test_written_rows_are_read_back(tmp_path):
    rows = list(validate_table([TRAINING, TRAINING | {"tp": "3"}]))
    write_table(rows, tmp_path / "rows.csv")
    again = read_validated(tmp_path / "rows.csv")
    assert [item.group for item in again] == [item.group for item in rows]
    assert [item.not_predicted for item in again] == [item.not_predicted for item in rows]
    assert again[0].error_percent == pytest.approx(rows[0].error_percent, rel=1e-3)


@pytest.mark.parametrize("name", ["parity.png", "parity.svg"])
def test_parity_plots_show_what_was_predicted(tmp_path, name):
    rows = [TRAINING, TRAINING | {"metric": "fits_in_memory", "measured_value": "1"}]
    panels = panels_of(list(validate_table(rows)))
    assert list(panels) == ["step_time", "fits_in_memory"]
    draw_parity(panels, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000
    draw_parity({}, tmp_path / name)


def test_goals_are_met_by_perfect_predictions_and_missed_by_bad_ones():
    rows = list(validate_table([PUBLISHED, PUBLISHED | {"unit": "days per 300B tokens"}]))
    perfect = [replace(item, measured=item.predicted) for item in rows]
    bad = [replace(item, measured=2 * item.predicted) for item in rows]
    assert [item.met for item in reached({"train_a100_literature": perfect})] == [True, True]
    assert [item.met for item in reached({"train_a100_literature": bad})] == [False, False]
    assert reached({"some other table": perfect}) == []


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda item: item.name)
def test_every_mechanism_can_be_switched_off(ablation):
    """Its keys exist, and it changes something that it says it concerns."""
    kernels = {
        "gemm": GEMM | {"latency_us": "1"},
        "attention_prefill": ATTENTION | {"q_len": "1024", "kv_len": "1024", "head_dim": "64"},
        "all_reduce": COLLECTIVE,
    }
    of_a_framework = TRAINING | {"source": "nanotron", "tp": "4", "dp": "2"}
    checked = of_a_framework | {"pp": "1", "dp": "4", "interconnect": "EFA between nodes"}
    checked |= {"ag_intra_GBps": "241"}
    buckets = of_a_framework | {"zero": "0", "metric": "mem_reserved"}
    megatron = SELENE | {"activation_recompute": "none"}
    rows = [TRAINING, of_a_framework, checked, buckets, megatron, ZERO_3, *kernels.values()]
    concerned = [row for row in rows if ablation.concerns([row])]
    overrides = split_overrides(
        {item.path: item.value for item in map(parse_setting, ablation.options)}
    )[0]
    before = [item.predicted for item in validate_table(concerned)]
    after = [item.predicted for item in validate_table(concerned, overrides=overrides)]
    assert None not in before and None not in after and before != after


@pytest.mark.parametrize("measured", ["nan", "-3", "0", "", "inf"])
def test_a_measurement_that_is_no_positive_number_is_no_measurement(measured):
    for row in (TRAINING | {"measured_value": measured}, GEMM | {"latency_us": measured}):
        result = one(row)
        assert result.predicted is None and result.error_percent is None
        assert "measured value" in result.not_predicted or "not a number" in result.not_predicted


def test_a_short_row_and_an_unknown_machine_say_why_they_are_not_predicted(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("gpu,op,dtype,m,n,k,latency_us\nh100_sxm,gemm,bfloat16,4096\n")
    rows = list(validate_table(read_table(table)))
    assert "not a number" in rows[0].not_predicted
    text = reasons_text([one(GEMM | {"gpu": "abacus", "latency_us": "3"})])
    assert text.startswith("not predicted: 1 rows: ") and "abacus" in text
