"""What predictions and matrix multiplications cost inside a process.

Times come with their ratio to a fixed piece of work, sorting 100,000 random numbers with NumPy,
measured in the same run: the ratio is what can be compared between machines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deepflow.config import load_model_config
from deepflow.config.model import LlmModel, LstmModel
from deepflow.cost.gemm import gemm_cost, gemm_costs
from deepflow.hardware import Hardware, load_hardware
from deepflow.prediction import predict
from deepflow.schedule.pipeline import pipeline_graph
from measure import REPOSITORY, Row, median_seconds, print_table

HARDWARE = REPOSITORY / "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
MODELS = REPOSITORY / "configs/model-config"
MICROBATCHES = 32  # of one sequence
BYTES_PER_ELEMENT = 2
SHAPES_TOGETHER = 16


@dataclass(frozen=True)
class TrainingPoint:
    """A training step of ``model`` on nodes of eight devices; ``more``: further overrides."""

    name: str
    target: str
    model: str
    tensor: int
    pipeline: int
    data: int
    more: dict[str, object]

    def load(self) -> tuple[Hardware, LlmModel]:
        devices = self.tensor * self.pipeline * self.data
        hardware = load_hardware(
            str(HARDWARE),
            {
                "system_hierarchy.num_nodes": devices // 8,
                "parallelism.tensor": self.tensor,
                "parallelism.pipeline": self.pipeline,
                "parallelism.data": self.data,
                "parallelism.num_microbatches": MICROBATCHES,
                **self.more,
            },
        )
        model = load_model_config(
            str(MODELS / self.model), {"global_batch_size": self.data * MICROBATCHES}
        )
        assert isinstance(model, LlmModel)
        return hardware, model


LLAMA_70B = TrainingPoint(
    "Llama 2 70B, TP 8, PP 8, DP 8, 32 microbatches", "<= 5 ms", "Llama2-70B.yaml", 8, 8, 8, {}
)
TRAINING = (
    LLAMA_70B,
    TrainingPoint(
        "Llama 3.1 405B, TP 8, PP 16, DP 8, 1F1B", "<= 10 ms", "Llama3.1-405B.yaml", 8, 16, 8, {}
    ),
    TrainingPoint(
        "the same, interleaved, 4 parts per device",
        "<= 10 ms",
        "Llama3.1-405B.yaml",
        8,
        16,
        8,
        {"parallelism.schedule": "interleaved", "parallelism.virtual_stages": 4},
    ),
    TrainingPoint(
        "DeepSeek-V3, PP 16, EP 64, DP 128",
        "<= 10 ms",
        "DeepSeek-V3.yaml",
        1,
        16,
        128,
        {"parallelism.expert": 64},
    ),
)

SERVING = {"run_type": "inference", "output_len": 512}
SERVING_OVERRIDES = {"parallelism.tensor": 8, "parallelism.data": 1}

# A deep and long LSTM, on one device and with a stage for each of its 18 parts.
LARGE_LSTM = LstmModel(256, 40_000, num_layers=16, layer_size=1024, projection=0, seq_len=200)
LSTM_OVERRIDES = {"system_hierarchy.num_nodes": 9, "parallelism.pipeline": 18}


def measure() -> list[Row]:
    random = np.random.default_rng(1)
    numbers = random.random(100_000)
    shapes = [
        tuple(map(int, shape))
        for shape in random.integers(64, 16_384, size=(501 + 51 * SHAPES_TOGETHER, 3))
    ]
    singles, together = shapes[:501], shapes[501:]

    baseline = median_seconds(lambda _: np.sort(numbers), 201)

    def row(name: str, seconds: float, target: str = "") -> Row:
        shown = f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} us"
        return Row(name, f"{shown} ({seconds / baseline:.3g} x sort)", target)

    rows = [row("sorting 100,000 numbers with NumPy", baseline)]
    for kind, point in enumerate(TRAINING):
        repeated, new = _training_seconds(point, kind)
        rows += [
            row(f"{point.name}: repeated", repeated, point.target),
            row(f"{point.name}: new shapes and schedule", new, point.target),
        ]
    hardware, _ = LLAMA_70B.load()
    node = load_hardware(str(HARDWARE), SERVING_OVERRIDES)
    serving = load_model_config(str(MODELS / "Llama3.1-70B.yaml"), SERVING)
    assert isinstance(serving, LlmModel)
    answers = median_seconds(
        # Other numbers of requests and prompts make every matrix multiplication a new one.
        lambda index: predict(
            node, replace(serving, global_batch_size=1 + index, prompt_len=1000 + 37 * index)
        ),
        51,
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
        lambda index: gemm_cost(accelerator, *singles[index], BYTES_PER_ELEMENT), 500
    )
    new_gemms = median_seconds(
        lambda index: gemm_costs(
            accelerator, together[SHAPES_TOGETHER * index :][:SHAPES_TOGETHER], BYTES_PER_ELEMENT
        ),
        50,
    )
    repeated_gemm = median_seconds(
        lambda _: gemm_cost(accelerator, 4096, 8192, 8192, BYTES_PER_ELEMENT), 5001
    )

    return [
        *rows,
        row("Llama 3.1 70B, TP 8, prompts and 512 tokens: new shapes", answers, "<= 3 ms"),
        row("LSTM, 16 layers, 200 steps, one device, new shapes", lstm, "<= 5 ms"),
        row("the same over 18 pipeline stages", staged_lstm, "<= 5 ms"),
        row("GEMM, new shape", new_gemm, "<= 0.3 ms"),
        row(f"GEMM, {SHAPES_TOGETHER} new shapes together, each", new_gemms / SHAPES_TOGETHER),
        row("GEMM, repeated shape", repeated_gemm, "<= 5 us"),
    ]


def _training_seconds(point: TrainingPoint, kind: int) -> tuple[float, float]:
    """Times of a prediction made before, and of one with new matrix shapes and a new schedule."""
    hardware, model = point.load()

    def predict_new(index: int) -> None:
        pipeline_graph.cache_clear()
        # Sequence lengths that no other point has had make all matrix multiplications new.
        predict(hardware, replace(model, seq_len=2048 + 8 * (len(TRAINING) * index + kind)))

    return median_seconds(lambda _: predict(hardware, model), 51), median_seconds(predict_new, 51)


if __name__ == "__main__":
    print_table(measure())
