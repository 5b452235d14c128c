"""Predictions may only change together with ``MODEL_VERSION``, which makes sweeps run again."""

import hashlib
import json
from pathlib import Path

from deepflow.config import load_model_config
from deepflow.hardware import load_hardware
from deepflow.prediction import predict
from deepflow.version import MODEL_VERSION

RECORD = Path("tests/data/model_version.json")
POINTS = [
    (
        "nvidia_h100_sxm_80gb",
        "Llama2-70B",
        {"parallelism.tensor": 8, "system_hierarchy.num_nodes": 8},
    ),
    (
        "nvidia_a100_sxm_80gb",
        "GPT3-175B",
        {
            "parallelism.tensor": 8,
            "parallelism.pipeline": 8,
            "parallelism.zero": 1,
            "parallelism.recompute": "full",
            "system_hierarchy.num_nodes": 32,
        },
    ),
    (
        "nvidia_h100_sxm_80gb",
        "Llama3.1-8B",
        {
            "parallelism.tensor": 2,
            "parallelism.pipeline": 4,
            "parallelism.schedule": "gpipe",
            "sw_param.kernel_fusion": "eager",
        },
    ),
    ("a100_80GB_tp", "LLM", {}),
    ("v100", "GEMM", {}),
    ("exp_config_new", "GEMM", {"power_breakdown.core": 40}),
    ("a100_80GB_tp", "GEMM", {}),
    ("a100_80GB", "LSTM", {}),
    ("a100_80GB_tp", "LSTM", {"parallelism.t": "RC", "parallelism.kp1": 2, "parallelism.kp2": 2}),
]


def fingerprint():
    """Digest over all numbers of the points, to nine digits."""
    rows = []
    for hardware, model, overrides in POINTS:
        row = predict(
            load_hardware(f"configs/hardware-config/{hardware}.yaml", overrides),
            load_model_config(f"configs/model-config/{model}.yaml"),
        ).as_row()
        rows.append(
            {
                name: f"{value:.8e}" if isinstance(value, float) else value
                for name, value in row.items()
                if value is not None and not isinstance(value, str)
            }
        )
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def test_predictions_change_only_with_the_model_version():
    recorded = json.loads(RECORD.read_text())
    now = {"model_version": MODEL_VERSION, "fingerprint": fingerprint()}
    if now["fingerprint"] != recorded["fingerprint"]:
        assert now["model_version"] != recorded["model_version"], (
            "predictions changed: raise MODEL_VERSION in deepflow/version.py"
        )
    assert now == recorded, f"new version: write {json.dumps(now)} to {RECORD}"
