"""Predictions against measurements that nothing was fitted to."""

import statistics

from deepflow.config import load_model_config
from deepflow.hardware import load_hardware
from deepflow.prediction import predict
from deepflow.validate import read_table

# What the framework of the study does, for all rows alike: nanotron gives pipeline stages
# equal FLOPs, the head counted in.
NANOTRON = {"parallelism.stage_balance": "flops"}


def predicted_tokens_per_second_per_device(row):
    model = load_model_config(
        "configs/model-config/Llama2-7B.yaml",
        {
            "global_batch_size": int(row["global_batch"]),
            "seq_len": int(row["seq_len"]),
            "hidden_dim": int(row["hidden"]),
            "num_heads": int(row["heads"]),
            "num_kv_heads": int(row["kv_heads"]),
            "ffn_dim": int(row["ffn_dim"]),
            "vocab_size": int(row["vocab"]),
            "num_layers": int(row["n_layers"]),
            "tie_embeddings": row["tie_embeddings"] == "True",
        },
    )
    hardware = load_hardware(
        "configs/hardware-config/nvidia_h100_sxm_80gb.yaml",
        NANOTRON
        | {
            "system_hierarchy.num_nodes": int(row["n_gpus"]) // 8,
            "parallelism.tensor": int(row["tp"]),
            "parallelism.pipeline": int(row["pp"]),
            "parallelism.data": int(row["dp"]),
            "parallelism.micro_batch_size": int(row["micro_batch"]),
            "parallelism.zero": int(row["zero"]),
        },
    )
    return predict(hardware, model).tokens_per_second_per_device


def test_h100_training_runs_are_predicted_within_30_percent_in_the_median():
    table = read_table("tests/data/measured/train_h100_ultrascale_first_200_rows.csv")
    rows = [row for row in table if row["metric"] == "tok_per_s_per_gpu"]
    assert len(rows) == 34
    errors = [
        abs(predicted_tokens_per_second_per_device(row) / float(row["measured_value"]) - 1)
        for row in rows
    ]
    assert statistics.median(errors) < 0.30
