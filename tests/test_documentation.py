"""What README and docs/ show is true: examples load, links lead somewhere, columns exist."""

import re
from pathlib import Path

import pytest

from deepflow.cli import main
from deepflow.prediction import COLUMNS
from deepflow.reference import FOLDER, reference_pages
from deepflow.sweep.expand import load_sweep

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("tests/data/**/*.md"),
    )
)
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def sweep_examples(page: Path) -> list[str]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in blocks if re.search(r"^grid:", block, re.M)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page: repeated ones are numbered."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        # Of a link its text counts; of all else letters, digits, _, - and spaces.
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        same = sum(other == anchor for other in found)
        found.append(f"{anchor}-{same}" if same else anchor)
    return set(found)


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
def test_relative_links_lead_to_files_and_headings(page, repository):
    source = repository / page
    text = FENCED.sub("", source.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = source.parent / file if file else source
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_reference_is_current(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    assert main(["reference", "--output", str(tmp_path)]) == 0
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    committed = repository / FOLDER
    assert {path.name for path in committed.glob("*.md")} == set(made)
    for name, text in made.items():
        current = (committed / name).read_text(encoding="utf-8") == text
        assert current, f"{FOLDER}/{name} is not current: run `deepflow reference`"


def test_every_column_is_one_of_some_kind_of_model(repository):
    page = reference_pages(repository)["columns.md"]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", page, re.M))
    assert [name for name in COLUMNS if not rows[name].strip()] == []


def test_the_landing_page_leads_to_every_page(repository):
    """Directly, or through a page of the same name as the folder."""
    linked = (repository / "docs/index.md").read_text(encoding="utf-8")
    for page in (repository / "docs").glob("**/*.md"):
        name = page.relative_to(repository / "docs").as_posix()
        if name == "index.md" or f"]({name}" in linked:
            continue
        parent = repository / "docs" / f"{page.parent.name}.md"
        assert parent.exists(), name
        assert f"({page.parent.name}/{page.name}" in parent.read_text(encoding="utf-8"), name


def test_result_columns_in_the_readme_exist(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| columns | meaning |") :].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", table)) - {"ok", "out_of_memory", "infeasible"}
    # The digest describes how a row was made; the sweep adds it to the prediction's columns.
    assert named - {"digest"} <= set(COLUMNS)
