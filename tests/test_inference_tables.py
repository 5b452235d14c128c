"""Rows of measured tables that are runs of inference."""

import pytest

from deepflow.validate.rows import validate_table

ROW = {
    "source": "a page of NVIDIA NIM",
    "hardware": "H100 SXM 80GB",
    "n_gpus": "4",
    "interconnect": "NVLink",
    "model": "Llama 3.1-8B",
    "params": "8030000000.0",
    "n_layers": "32",
    "hidden": "4096",
    "heads": "32",
    "kv_heads": "8",
    "ffn_dim": "14336",
    "vocab": "128256",
    "seq_len": "400",
    "global_batch": "8",
    "tp": "4",
    "pp": "1",
    "dp": "1",
    "run_type": "inference",
    "input_len": "300",
    "output_len": "100",
    "metric": "ttft",
    "measured_value": "0.1",
    "unit": "s",
}


def predicted(**changes):
    (row,) = validate_table([{**ROW, **changes}])
    assert row.not_predicted == ""
    return row.predicted


def test_quantities_of_one_run_fit_together():
    first, further, whole, rate = (
        predicted(metric=metric)
        for metric in ("ttft", "itl", "e2e_latency_derived=ttft+itl*(out-1)", "throughput")
    )
    assert whole == pytest.approx(first + 99 * further)
    assert rate == pytest.approx(8 * 100 / whole)
    assert predicted(metric="requests_per_s") == pytest.approx(8 / whole)
    assert predicted(metric="total_tokens_per_s") == pytest.approx(8 * 400 / whole)


def test_each_framework_has_its_own_overheads_only():
    nim, nemo, vllm = (
        predicted(metric="itl", source=source) for source in ("NVIDIA NIM", "NVIDIA NeMo", "vLLM")
    )
    assert len({nim, nemo, vllm}) == 3
    assert max(nim, nemo, vllm) < 2 * min(nim, nemo, vllm)


def test_a_source_that_repeats_its_prompts_pays_for_them_once():
    asked = {"input_len": "8000", "metric": "total_time"}
    assert predicted(source="Koyeb", **asked) < predicted(source="vLLM", **asked)


def test_times_to_no_first_token_do_not_count():
    source = "uci_inf.csv"
    (row,) = validate_table([{**ROW, "source": source}])
    assert not row.explicable
    assert "not a time to the first token" in row.group
    whole = predicted(source=source, metric="e2e_latency")
    assert predicted(source=source, metric="tpot") == pytest.approx(whole / 100)


def test_a_quantity_that_inference_does_not_have_is_named():
    (row,) = validate_table([{**ROW, "metric": "mfu"}])
    assert "'mfu' of inference is not predicted" in row.not_predicted


def test_narrower_numbers_are_faster():
    full, products, weights = (
        predicted(metric="itl", tp="1", n_gpus="1", precision=precision)
        for precision in ("fp16/bf16", "fp8", "int4 (AWQ)")
    )
    assert full > products > weights
