"""A million matrix multiplications and a hundred thousand training steps, as two sweeps.

Each goes through the real Snakemake on two cores: a dry run, which expands the sweep and makes the
DAG; the run, which predicts all points in shards and gathers them; and a second run that has
nothing to do. Baselines are the same points predicted one by one in a process (a sample), and a
Snakemake run without any job.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

from deepflow.batch import evaluate_or_explain
from deepflow.sweep.expand import load_sweep
from measure import Row, Usage, describe_machine, print_table, run_snakemake, workspace

GEMM_POINTS, LLM_POINTS = 1_000_000, 100_000
SAMPLED_POINTS = 200

# 5,000 combinations per number of rows.
GEMM = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
set: {{model.backward: false}}
grid:
  model.M: {{start: 64, stop: {last}, step: 64}}
  model.K: {{start: 512, stop: 12800, step: 512}}
  model.N: {{start: 512, stop: 10240, step: 512}}
  hardware.tech_param.DRAM.bandwidth: [2.0e12, 2.4e12, 2.8e12, 3.352e12, 4.0e12]
  hardware.sw_param.dtype: [bf16, fp8]
"""
GEMMS_PER_ROW_COUNT = 5_000

# Ways to run a model on 512 devices; further axes are added until there are enough.
LLM = """\
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-70B.yaml
set:
  hardware.system_hierarchy.num_nodes: 64
  model.global_batch_size: 1024
grid:
  parallelism.tensor: [1, 2, 4, 8]
  parallelism.pipeline: [1, 2, 4, 8]
  parallelism.micro_batch_size: [1, 2, 4, 8]
  parallelism.recompute: [none, selective, full]
  parallelism.zero: [0, 1, 2, 3]
"""
LLMS_PER_SWITCH = 768
SWITCHES = {
    "parallelism.sequence_parallel": "[false, true]",
    "parallelism.overlap_gradient_reduction": "[false, true]",
    "parallelism.overlap_tensor_communication": "[none, backward, full]",
    "parallelism.gradient_bytes": "[2, 4]",
    "parallelism.context": "[1, 2]",
    "hardware.tech_param.network.inter_node.bandwidth": "[25e9, 50e9, 100e9]",
}

NOTHING_TO_DO = "rule all:\n    input:\n        [],\n"


def measure(gemm_points: int = GEMM_POINTS, llm_points: int = LLM_POINTS) -> list[Row]:
    """Both sweeps, of at least so many points; there are axes for 110,592 training steps."""
    texts = {
        "gemm": GEMM.format(last=64 * -(-gemm_points // GEMMS_PER_ROW_COUNT)),
        "llm": llm_text(llm_points),
    }
    with workspace() as folder:
        (folder / "nothing.smk").write_text(NOTHING_TO_DO)
        floor = run_snakemake(folder, "--snakefile", "nothing.smk")
        rows = [Row("Snakemake without a job", _shown(floor))]
        for name, text in texts.items():
            (folder / "sweeps" / f"{name}.yaml").write_text(text)
            rows += _sweep_rows(folder, name, floor)
    return rows


def llm_text(points: int) -> str:
    """A sweep of at least so many training steps, as far as there are axes."""
    text, count = LLM, LLMS_PER_SWITCH
    for path, values in SWITCHES.items():
        if count >= points:
            break
        text += f"  {path}: {values}\n"
        count *= values.count(",") + 1
    return text


def _sweep_rows(folder: Path, name: str, floor: Usage) -> list[Row]:
    sweep = ("--config", f"sweeps=sweeps/{name}.yaml")
    points, alone = _one_by_one(folder / "sweeps" / f"{name}.yaml")
    expansion = run_snakemake(folder, "--dry-run", "--quiet", *sweep)
    first = run_snakemake(folder, *sweep)
    if not (folder / f"results/{name}/summary.parquet").exists():
        raise RuntimeError("the sweep ended without a summary")
    again = run_snakemake(folder, *sweep)
    each = first.cpu_seconds / points
    what = f"{points:,} {name.upper()} points"
    return [
        Row(f"{what}: one by one in a process, CPU each", f"{alone * 1e6:.0f} us"),
        Row(f"{what}: expansion and DAG", _compared(expansion, floor)),
        Row(f"{what}: predicted and gathered", _shown(first)),
        Row(
            f"{what}: CPU each, Snakemake and files included",
            f"{each * 1e6:.1f} us, {1 / each:,.0f} points/s, {alone / each:.1f} x one by one",
        ),
        Row(f"{what}: again, nothing to do", _compared(again, floor), "seconds"),
    ]


def _one_by_one(file: Path) -> tuple[int, float]:
    """(points of the sweep, CPU seconds of one), of a sample that is drawn like a shard."""
    sweep = load_sweep(file)
    numbers = random.Random(1).sample(range(sweep.count), min(SAMPLED_POINTS, sweep.count))
    points = list(sweep.points(sweep.numbers[numbers]))
    started = time.process_time()
    for point in points:
        evaluate_or_explain(
            point.base.hardware, point.base.model, point.hardware_overrides, point.model_overrides
        )
    return sweep.count, (time.process_time() - started) / len(points)


def _shown(usage: Usage) -> str:
    return (
        f"{usage.wall_seconds:.1f} s, CPU {usage.cpu_seconds:.1f} s,"
        f" {usage.peak_bytes / 2**20:.0f} MiB"
    )


def _compared(usage: Usage, floor: Usage) -> str:
    return f"{_shown(usage)}; {usage.cpu_seconds / floor.cpu_seconds:.1f} x no job"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gemm-points", type=int, default=GEMM_POINTS)
    parser.add_argument("--llm-points", type=int, default=LLM_POINTS)
    chosen = parser.parse_args(arguments)
    print(describe_machine(), end="\n\n")
    print_table(measure(chosen.gemm_points, chosen.llm_points))


if __name__ == "__main__":
    main()
