"""What one prediction and one matrix multiplication cost inside a process.

Times come with their ratio to a fixed piece of work, sorting 100,000 random numbers with NumPy,
measured in the same run: the ratio is what can be compared between machines.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deepflow.config import load_model_config
from deepflow.config.model import LlmModel, LstmModel
from deepflow.cost.gemm import gemm_cost
from deepflow.hardware import load_hardware
from deepflow.prediction import predict
from measure import REPOSITORY, Row, median_seconds, print_table

# Llama 2 70B on 512 devices: tensor 8, pipeline 8, data 8, 32 microbatches of one sequence.
HARDWARE = REPOSITORY / "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
HARDWARE_OVERRIDES = {
    "system_hierarchy.num_nodes": 64,
    "parallelism.tensor": 8,
    "parallelism.pipeline": 8,
    "parallelism.data": 8,
    "parallelism.num_microbatches": 32,
}
MODEL = REPOSITORY / "configs/model-config/Llama2-70B.yaml"
MODEL_OVERRIDES = {"global_batch_size": 256}
BYTES_PER_ELEMENT = 2

# A deep and long LSTM, on one device and with a stage for each of its 18 parts.
LARGE_LSTM = LstmModel(256, 40_000, num_layers=16, layer_size=1024, projection=0, seq_len=200)
LSTM_OVERRIDES = {"system_hierarchy.num_nodes": 9, "parallelism.pipeline": 18}


def measure() -> list[Row]:
    hardware = load_hardware(str(HARDWARE), HARDWARE_OVERRIDES)
    model = load_model_config(str(MODEL), MODEL_OVERRIDES)
    assert isinstance(model, LlmModel)
    random = np.random.default_rng(1)
    numbers = random.random(100_000)
    shapes = [tuple(map(int, shape)) for shape in random.integers(64, 16_384, size=(501, 3))]

    baseline = median_seconds(lambda _: np.sort(numbers), 201)
    repeated_prediction = median_seconds(lambda _: predict(hardware, model), 51)
    # Another sequence length makes every matrix multiplication of the model a new one.
    new_prediction = median_seconds(
        lambda index: predict(hardware, replace(model, seq_len=2048 + 8 * index)), 51
    )
    on_one_device = load_hardware(str(HARDWARE), {"parallelism.data": 1})
    staged = load_hardware(str(HARDWARE), LSTM_OVERRIDES)
    lstm, staged_lstm = (
        # Another width makes every matrix multiplication a new one.
        median_seconds(
            lambda index, machine=machine: predict(
                machine, replace(LARGE_LSTM, layer_size=1024 + 8 * index)
            ),
            51,
        )
        for machine in (on_one_device, staged)
    )
    accelerator = hardware.accelerator
    new_gemm = median_seconds(
        lambda index: gemm_cost(accelerator, *shapes[index], BYTES_PER_ELEMENT), 500
    )
    repeated_gemm = median_seconds(
        lambda _: gemm_cost(accelerator, 4096, 8192, 8192, BYTES_PER_ELEMENT), 5001
    )

    def row(name: str, seconds: float, target: str = "") -> Row:
        shown = f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} us"
        return Row(name, f"{shown} ({seconds / baseline:.3g} x sort)", target)

    return [
        row("sorting 100,000 numbers with NumPy", baseline),
        row(
            "Llama 2 70B, TP 8, PP 8, DP 8, 32 microbatches: repeated",
            repeated_prediction,
            "<= 5 ms",
        ),
        row("the same with matrix shapes never seen before", new_prediction),
        row("LSTM, 16 layers, 200 steps, one device, new shapes", lstm, "<= 5 ms"),
        row("the same over 18 pipeline stages", staged_lstm, "<= 5 ms"),
        row("GEMM, new shape", new_gemm, "<= 0.3 ms"),
        row("GEMM, repeated shape", repeated_gemm, "<= 5 us"),
    ]


if __name__ == "__main__":
    print_table(measure())
