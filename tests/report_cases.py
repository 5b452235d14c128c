"""Sweeps that are predicted in this process, for the tests of reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from deepflow.report.content import gather_content, sweep_subject
from deepflow.report.page import write_page
from deepflow.sweep.expand import load_sweep
from deepflow.sweep.points import Sweep
from deepflow.sweep.tables import gather, write_shard

HARMFUL = "</script><script>window.harmed = true</script><img src=x onerror='window.harmed = 1'>"

TRAINING = """\
description: Which split is best?
hardware: configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/Llama2-13B.yaml
points_per_job: 1000
set: {model.global_batch_size: 64}
grid:
  parallelism.tensor: [1, 2, 4, 8]
  parallelism.pipeline: [1, 2, 4, 16]
  parallelism.recompute: [none, full]
plots:
  - {kind: line, x: pipeline, y: tokens_per_second, hue: tensor, goal: maximum, log_x: true}
  - {kind: heatmap, x: pipeline, y: tensor, value: tokens_per_second, goal: maximum}
  - kind: pareto
    title: Throughput against memory
    x: peak_memory_bytes
    y: tokens_per_second
    goal: maximum
    hue: tensor
    style: recompute
    out_of_memory: true
  - {kind: scatter, x: peak_memory_bytes, y: time_s, hue: energy_j, log_x: true}
  - {kind: breakdown, best: 5}
"""
TWO_MACHINES = """\
hardware:
  - configs/hardware-config/nvidia_a100_sxm_80gb.yaml
  - configs/hardware-config/nvidia_h100_sxm_80gb.yaml
model: configs/model-config/GEMM.yaml
points_per_job: 1000
set: {model.backward: false}
grid: {model.M: {log2: [128, 8192]}}
plots: [{kind: line, x: M, y: flops_per_second_per_device, hue: hardware, log_x: true}]
"""


def predicted(folder: Path, text: str, name: str = "sweep") -> tuple[Sweep, Path]:
    """The sweep with this text, and its table of results."""
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    sweep = load_sweep(file)
    results = folder / "results" / name
    for shard in sweep.shards:
        write_shard(sweep, shard, results / "shards" / f"{shard}.parquet")
    gather(sweep, results, results / "summary.parquet")
    return sweep, results / "summary.parquet"


def reported(folder: Path, text: str, name: str = "sweep") -> tuple[dict[str, Any], Path]:
    """The content of the report of a sweep with this text, and its page."""
    sweep, summary = predicted(folder, text, name)
    content = gather_content(sweep_subject(sweep), summary)
    page = summary.with_name("report.html")
    write_page(content, page)
    return content, page


def content_of(page: Path) -> dict[str, Any]:
    """What a browser reads from the page."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found.group(1))
    return content


def column(content: dict[str, Any], name: str) -> list[Any]:
    """The values of a column, as ``values.js`` decodes it."""
    (found,) = [item for item in content["columns"] if item["name"] == name]
    if "constant" in found:
        values = [found["constant"]] * content["shown"]
    elif "codes" in found:
        values = [found["words"][code] for code in found["codes"]]
    else:
        values = found["values"]
    if found["type"] == "number":
        return [None if value is None else float(value) for value in values]
    return values
