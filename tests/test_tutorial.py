"""Every command of README.md and docs/ runs in a fresh clone, and prints what the page says.

A page is read as a reader would work through it: what it says to save is saved, every block of
``sh`` is run by a shell, and a block of ``text`` right behind one is what that has to print. The
first two parts of the tutorial are a newcomer's whole path, from a clone to a sweep over hardware
of his own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path

import pytest

from deepflow.search.space import load_search
from deepflow.sweep.expand import load_sweep
from warm_programs import install

ROOT = Path(__file__).resolve().parent.parent

# Commands that cannot run here, and why. Each is a whole line of a page without its comment.
NOT_RUN = {
    "git clone <where you found DeepFlow> deepflow": "the clone of the test stands for it",
    "cd deepflow": "the clone is the working directory",
    "make run": "installs packages; the environment of the tests stands for .venv",
    "make test": "runs this test",
    ". .venv/bin/activate": "the environment of the tests stands for .venv",
    "make benchmark": "takes a quarter of an hour",
    "snakemake --profile profiles/slurm --config sweeps=sweeps/my_sweep.yaml": "needs a cluster",
    "snakemake --profile profiles/slurm --config sweeps=sweeps/first.yaml": "needs a cluster",
    "snakemake --profile profiles/my_cluster": "needs a cluster",
    "snakemake --profile profiles/slurm results/my_sweep/shards/03of20.parquet": "needs a cluster",
    "nohup snakemake --profile profiles/slurm > sweep.log 2>&1 &": "needs a cluster",
    'squeue --me -o "%.10i %.9T %.10M %k"': "needs a cluster",
    "tmux new -s sweep": "needs a terminal",
    "snakemake --report whole.html all report": "about all examples, which take minutes",
}

# Sweeps and searches of the repository take minutes, and tests of their own run them small. Here a
# test reads their files, and the others of a page's commands are run. `figures` and
# `report` are about all of them.
LONG = re.compile(
    r"snakemake --cores all (?:--config sweeps=(?P<sweep>sweeps/\w+\.yaml)"
    r"|results/(?P<search>searches/\w+)/(?:best\.txt|report\.html)|figures|report)$"
)

# Words of a page that stand for something of the reader's, or for more work than a test needs.
INSTEAD = {
    "deepflow search FILE --list": "deepflow search searches/lstm_64_devices.yaml --list",
    "snakemake --cores 1 results/searches/NAME/runs/CASE/START.parquet": (
        "snakemake -n results/searches/lstm_64_devices/runs/base/0.parquet"
    ),
    "python benchmarks/run.py --points 200 --shard-points 2000": "python benchmarks/run.py --help",
    "--gemm-points 50000 --llm-points 3000": "",
    "--points ID OTHER_ID": "",
}

# Files of the reader's that pages name, and what stands for them.
GIVEN = {
    "H.yaml": "configs/hardware-config/v100.yaml",
    "M.yaml": "configs/model-config/Llama2-7B.yaml",
    "config.json": "tests/data/huggingface/Llama3.1-8B.json",
}


# Parts of the tutorial that look at the results of another one.
BUILDS_ON = {
    "docs/tutorial/4-slurm.md": "docs/tutorial/1-first-sweep.md",
    "docs/tutorial/8-looking-into-a-result.md": "docs/tutorial/1-first-sweep.md",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its content, the file that it is to be saved as."""

    language: str
    text: str
    file: str
    follows_commands: bool


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    end, language = 0, ""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        before, follows = text[end : found.start()], language == "sh"
        language, content = found.groups()
        end = found.end()
        # The paragraph before a block, or its first line, says which file it is.
        named = re.search(r"[Ss]ave (?:this|it) as\s+`([^`]+)`", before.strip().split("\n\n")[-1])
        named = named or re.match(r"# (\w+/[\w.]+);", content)
        yield Block(language, content, named[1] if named else "", follows and not before.strip())


def pages() -> list[str]:
    """Pages with commands, the tutorial first and in order."""
    found = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "benchmarks/README.md"]
    runnable = [page for page in found if any(block.language == "sh" for block in blocks(page))]
    return sorted(
        (str(page.relative_to(ROOT)) for page in runnable), key=lambda p: "tutorial" not in p
    )


@dataclass(frozen=True)
class Clone:
    """A fresh clone, with what is not committed yet, and programs that run its code."""

    folder: Path
    environment: dict[str, str]
    done: set[str] = field(default_factory=set)

    def run(self, commands: str) -> str:
        """What a shell prints that runs ``commands`` and stops at the first that fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def save(self, file: str, text: str) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if "optimizer:" in text:
            text = re.sub(r"(evaluations|starts): \d+", r"\1: 2", text)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    scratch = tmp_path_factory.mktemp("newcomer")
    folder, programs = scratch / "deepflow", scratch / "bin"
    git = ["git", "-c", "safe.directory=*"]
    subprocess.run([*git, "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for options in (["--modified", "--others", "--exclude-standard"], ["--deleted"]):
        listed = subprocess.check_output([*git, "ls-files", *options], cwd=ROOT, text=True)
        for name in listed.splitlines():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "SNAKEMAKE_PROFILE")
    }
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(folder)
    made = Clone(folder, environment)
    for name, stands_for in GIVEN.items():
        shutil.copy(folder / stands_for, folder / name)
    # Searches make thousands of predictions; a few show that the commands work.
    for search in sorted((folder / "searches").glob("*.yaml")):
        made.save(f"searches/{search.name}", search.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as short:
        warm = install(programs, Path(short) / "socket", environment)
        yield made
        warm.kill()
        warm.wait()


def is_long(command: str) -> bool:
    """Whether this is ``LONG``, and not about a file that a page has let the reader save."""
    found = LONG.match(command)
    if not found:
        return False
    file = found["sweep"] or (found["search"] and f"{found['search']}.yaml")
    return file is None or (ROOT / file).exists()


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line)


def runnable(commands: str) -> str:
    """``commands`` without those that cannot run here, and with what stands for placeholders."""
    lines = [
        line
        for line in commands.splitlines()
        if without_comment(line) not in NOT_RUN and not is_long(without_comment(line))
    ]
    text = "\n".join(lines)
    for old, new in INSTEAD.items():
        text = text.replace(old, new)
    return text


def same(expected: str, actual: str) -> bool:
    """Whether two lines are equal but for space and for numbers, which nearly have to agree.

    Numbers differ by 5 % at most: what two digits can tell. A line that begins with ``...`` is
    the end of the actual one.
    """
    words, printed = expected.split(), actual.split()
    if words[:1] == ["..."]:
        words = words[1:]
        printed = printed[-len(words) :]
    return len(words) == len(printed) and all(map(same_word, words, printed))


def same_word(expected: str, actual: str) -> bool:
    try:
        return isclose(float(expected), float(actual), rel_tol=0.05, abs_tol=1e-12)
    except ValueError:
        return expected == actual


def work_through(page: str, clone: Clone) -> None:
    """Does what a page says, and what the one says on which it builds, once in a clone."""
    if page in clone.done:
        return
    if page in BUILDS_ON:
        work_through(BUILDS_ON[page], clone)
    clone.done.add(page)
    printed = ""
    for block in blocks(ROOT / page):
        if block.file:
            clone.save(block.file, block.text)
        elif block.language == "sh":
            printed = clone.run(runnable(block.text))
        elif block.language == "text" and block.follows_commands:
            lines = iter(printed.splitlines())
            for expected in block.text.splitlines():
                if expected.strip() != "...":
                    # Consumes what is printed up to this line, so that the order counts.
                    assert any(same(expected, line) for line in lines), (expected, printed)


@pytest.mark.parametrize("page", pages())
def test_commands_of_a_page_run_and_print_what_it_says(page, clone):
    work_through(page, clone)


def test_exceptions_are_about_commands_that_pages_have():
    texts = [block.text for page in pages() for block in blocks(ROOT / page)]
    lines = {without_comment(line) for text in texts for line in text.splitlines()}
    assert set(NOT_RUN) <= lines
    assert all(any(old in text for text in texts) for old in INSTEAD)


def test_sweeps_and_searches_that_pages_name_can_be_read(monkeypatch):
    texts = [block.text for page in pages() for block in blocks(ROOT / page)]
    monkeypatch.chdir(ROOT)
    read = 0
    for command in {without_comment(line) for text in texts for line in text.splitlines()}:
        found = LONG.match(command)
        if found and is_long(command) and found["sweep"]:
            load_sweep(found["sweep"])
            read += 1
        elif found and is_long(command) and found["search"]:
            load_search(f"{found['search']}.yaml")
            read += 1
    assert read
