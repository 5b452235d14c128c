"""The validate rules: real Snakemake over two small tables, in a copy of the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GEMM = "gpu,op,dtype,m,n,k,latency_us\nh100_sxm,gemm,bfloat16,{m},4096,4096,200\n"
TRAIN = "tests/data/measured/train_a100_megatron.csv.gz"


@pytest.fixture
def project(tmp_path, repository):
    for part in ("rules", "configs", "profiles"):
        shutil.copytree(repository / part, tmp_path / part)
    shutil.copy(repository / "Snakefile", tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "tables" / "products.csv").write_text(GEMM.format(m=4096))
    (tmp_path / "tables" / "colours.csv").write_text("colour\nblue\n")
    shutil.copy(repository / TRAIN, tmp_path / "tables")
    return tmp_path


def snakemake(project: Path, repository: Path, *targets: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *targets]
    done = subprocess.run(
        [*command, "--config", "tables=tables"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_tables_are_validated_and_the_page_is_made_from_them(project, repository):
    snakemake(project, repository, "validate")
    results = project / "results" / "validation"
    assert {path.name for path in results.iterdir()} == {"products", "train_a100_megatron"}
    assert (results / "products" / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert len((results / "train_a100_megatron" / "rows.csv").read_text().splitlines()) == 6

    snakemake(project, repository, "docs/accuracy.md")
    page = (project / "docs" / "accuracy.md").read_text()
    assert "### products" in page and "| train_a100_megatron | all | mean | 5 |" in page
    assert "colours" not in page and str(project) not in page
    assert (project / "docs" / "images" / "accuracy.png").exists()

    # Nothing changed its meaning, so nothing runs again; then a parameter of one GPU does.
    preset = project / "configs" / "hardware-config" / "nvidia_h100_sxm_80gb.yaml"
    preset.write_text(preset.read_text() + "# a remark\n")
    assert "Nothing to be done" in snakemake(project, repository, "validate")
    before = (results / "products" / "rows.csv").read_text()
    text = preset.read_text()
    assert text.count("kernel_launch_overhead: ") == 1
    preset.write_text(text.replace("kernel_launch_overhead: ", "kernel_launch_overhead: 10"))
    snakemake(project, repository, "validate")
    assert (results / "products" / "rows.csv").read_text() != before


def test_a_folder_without_tables_is_named(project, repository):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "validate", "--config", "tables=empty"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "empty has no table of measurements" in done.stdout + done.stderr
