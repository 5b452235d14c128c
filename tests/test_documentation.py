"""What README and docs/ show is true: examples load, links lead somewhere, columns exist."""

import re
from pathlib import Path

import pytest

from deepflow.prediction import COLUMNS
from deepflow.sweep.expand import load_sweep

PAGES = (
    "README.md",
    "docs/accuracy.md",
    "docs/architecture.md",
    "docs/calibration.md",
    "docs/configuration.md",
    "docs/model.md",
    "docs/search.md",
    "docs/slurm.md",
    "benchmarks/README.md",
)


def sweep_examples(page: Path) -> list[str]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in blocks if re.search(r"^grid:", block, re.M)]


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md"])
def test_sweep_examples_load_and_have_points(page, repository, tmp_path, monkeypatch):
    examples = sweep_examples(repository / page)
    assert examples
    monkeypatch.chdir(repository)
    for number, example in enumerate(examples):
        path = tmp_path / f"example_{number}.yaml"
        path.write_text(example, encoding="utf-8")
        assert list(load_sweep(path).points())


def test_point_target_in_the_readme_is_a_point_of_its_example(repository, tmp_path, monkeypatch):
    readme = repository / "README.md"
    (target,) = re.findall(r"results/my_sweep/points/(\S+)\.json", readme.read_text())
    path = tmp_path / "my_sweep.yaml"
    path.write_text(sweep_examples(readme)[0])
    monkeypatch.chdir(repository)
    assert target in {point.id for point in load_sweep(path).points()}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page, repository):
    text = (repository / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert ((repository / page).parent / link).exists(), link


def test_result_columns_in_the_readme_exist(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| columns | meaning |") :].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", table)) - {"ok", "out_of_memory", "infeasible"}
    # The digest describes how a row was made; the sweep adds it to the prediction's columns.
    assert named - {"digest"} <= set(COLUMNS)
