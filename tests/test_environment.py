"""pyproject.toml, environment.yml and the imports of the code name the same packages."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import yaml

# Distributions whose import name is another one.
DISTRIBUTION_OF_MODULE = {"google": "protobuf", "yaml": "pyyaml"}


def requirements(lines: Iterable[str]) -> dict[str, frozenset[str]]:
    """``name>=1,<2`` lines -> {name: {">=1", "<2"}}, names as package indexes compare them."""
    parsed = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+?)\s*((?:[<>=!~]=?.*)?)", line.strip())
        assert match, line
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        parsed[name] = frozenset(part.strip() for part in match[2].split(",") if part.strip())
    return parsed


def pyproject(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def imported_packages(folder: Path) -> set[str]:
    """Distributions that the Python files in ``folder`` import, at any depth of the code."""
    names = set()
    # The repository's own: benchmarks may read the tests' reference data through their helpers.
    local = {path.stem for path in folder.rglob("*.py")} | {folder.name, "deepflow", "tests"}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    names -= sys.stdlib_module_names | local
    return {DISTRIBUTION_OF_MODULE.get(name, name) for name in names}


def test_conda_environment_has_the_packages_and_ranges_of_pyproject(repository):
    project = pyproject(repository)
    expected = requirements(
        [
            f"python{project['requires-python']}",
            *project["dependencies"],
            *project["optional-dependencies"]["dev"],
        ]
    )
    conda = yaml.safe_load((repository / "environment.yml").read_text())["dependencies"]
    actual = requirements(entry for entry in conda if isinstance(entry, str) and entry != "pip")
    assert actual == expected


def test_conda_environment_installs_nothing_from_pip_but_this_checkout(repository):
    conda = yaml.safe_load((repository / "environment.yml").read_text())["dependencies"]
    from_pip = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert from_pip == [["--no-deps --editable ."]]


def test_every_imported_package_is_a_declared_dependency(repository):
    project = pyproject(repository)
    runtime = set(requirements(project["dependencies"]))
    development = runtime | set(requirements(project["optional-dependencies"]["dev"]))
    assert imported_packages(repository / "deepflow") - runtime == set()
    assert imported_packages(repository / "benchmarks") - runtime == set()
    assert imported_packages(repository / "tests") - development == set()


def test_package_version_is_the_one_in_the_code(repository):
    from deepflow.version import __version__

    assert pyproject(repository)["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
