"""The TAB key: what a shell is offered, asked as the shell asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepflow.completion import SHELLS, complete_setting
from deepflow.config import load_hardware_config, load_model_config
from deepflow.errors import ConfigError
from deepflow.sweep.settings import canonical_settings, parse_setting

H100 = "configs/hardware-config/nvidia_h100_sxm_80gb.yaml"
LLAMA = "configs/model-config/Llama2-7B.yaml"


def offered(line: str, repository: Path, tmp_path: Path) -> set[str]:
    """What the shell is told for ``line`` with the cursor at its end."""
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "COMP_TYPE": "9",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run(
        [sys.executable, "-m", "deepflow"],
        cwd=repository,
        env=environment,
        check=True,
        capture_output=True,
    )
    return {word.strip() for word in answer.read_text().splitlines()}


def test_commands_options_and_files_are_offered(repository: Path, tmp_path: Path) -> None:
    assert {"predict", "explain", "doctor"} <= offered("deepflow ", repository, tmp_path)
    assert "--hardware" in offered("deepflow predict --h", repository, tmp_path)
    assert offered("deepflow sweep poi", repository, tmp_path) == {"points"}
    files = offered("deepflow predict --model configs/model-config/Llama2-7B", repository, tmp_path)
    assert files == {LLAMA}
    sweeps = offered("deepflow sweep points sweeps/gemm_", repository, tmp_path)
    assert sweeps == {"sweeps/gemm_shapes.yaml"}


def test_keys_and_choices_are_offered_after_set(repository: Path, tmp_path: Path) -> None:
    line = "deepflow predict --set parallelism.pip"
    assert offered(line, repository, tmp_path) == {"parallelism.pipeline="}
    # What stands before a word break of the shell is not part of the word that it completes.
    line = "deepflow explain --set parallelism.schedule=1"
    assert any("1f1b" in word for word in offered(line, repository, tmp_path))


def test_every_path_that_is_offered_can_be_set(repository: Path) -> None:
    hardware = load_hardware_config(str(repository / H100))
    model = load_model_config(str(repository / LLAMA))
    paths = complete_setting("parallelism.") + complete_setting("hardware.tech_param.")
    assert len(paths) > 60
    for path in paths:
        # An empty value may be refused, an unknown key must not be.
        try:
            canonical_settings([parse_setting(path + "1")], hardware, model, "--set")
        except ConfigError as error:
            assert "unknown" not in str(error) and "no such" not in str(error), path


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_own_text(shell: str, repository: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "deepflow", "completion", shell],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert "deepflow" in made.stdout
    if shell in ("bash", "fish") and shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=made.stdout, text=True, check=False)
        assert checked.returncode == 0
