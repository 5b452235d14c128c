"""All bad and odd inputs of which it is known what the real ASTRA-sim does with them.

It crashes, hangs, or prints a number that means nothing. Here each is one line that names the file
or the option and what is wrong in it, and a failure. ``data/reference/astra/README.md`` names the
source of the inputs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chakra_wire import trace, write_case
from deepflow.cli import main
from test_astra_command import MEANINGLESS, finished, reference

INPUTS = {case["name"]: case for case in reference("bad_inputs")}
NAMED = re.compile(r"\.et: |(system|memory|groups)\.json: |network\.yml: |--[a-z-]+")
_TRACE = trace(INPUTS["baseline (good)"]["case"]["graph"]["*"])


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _with(name: str, content: bytes | str) -> Callable[[Path], None]:
    given = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(given) and None


def _network(**changes: str | None) -> Callable[[Path], None]:
    values: dict[str, str | None] = {
        "topology": "[Switch]",
        "npus_count": "[4]",
        "bandwidth": "[50.0]",
        "latency": "[500.0]",
    } | changes
    return _with("network.yml", "".join(f"{k}: {v}\n" for k, v in values.items() if v is not None))


# What is wrong with a file rather than with what a case says is done to the files of the case.
FILES: dict[str, Callable[[Path], None]] = {
    "ET of rank 3 missing": _without("t.3.et"),
    "all ETs missing": _without(*(f"t.{rank}.et" for rank in range(4))),
    "system JSON missing": _without("system.json"),
    "network YAML missing": _without("network.yml"),
    "remote-memory JSON missing": _without("memory.json"),
    "system JSON syntax error": _with("system.json", '{"endpoint-delay": 10,'),
    "network YAML garbage": _with("network.yml", b"\x00\x01{{{"),
    "network YAML lacks latency": _network(latency=None),
    "network YAML unknown topology": _network(topology="[Star]"),
    "network YAML scalar instead of list": _network(topology="Switch"),
    "network YAML list lengths differ": _network(npus_count="[4, 4]"),
    "npus_count 1": _network(npus_count="[1]"),
    "bandwidth 0": _network(bandwidth="[0]"),
    "npus_count 8 with 4 ETs": _network(npus_count="[8]"),
    "npus_count 2 with 4 ETs (the extra ETs are never read)": _network(npus_count="[2]"),
    "ET rank 1 empty file": _with("t.1.et", b""),
    "ET rank 1 garbage bytes": _with("t.1.et", b"\xfe\xed\xfa\xce" * 9),
    "ET rank 1 text": _with("t.1.et", "some text\n" * 20),
    "ET rank 1 truncated by 5 bytes": _with("t.1.et", _TRACE[:-5]),
    "ETs without the leading GlobalMetadata message (first node swallowed)": _with(
        "t.0.et", _TRACE[8:]
    ),
}
# What is wrong with the command line: options to add or, without a value, to leave out.
OPTIONS = {
    "comm-group file missing": "--comm-group-configuration=no-such/groups.json",
    "no arguments for a required option (workload)": "--workload-configuration",
    "unknown option": "--colour=red",
    "logging folder with a missing parent": "--logging-folder=no/where",
}
# The real program answers these as if nothing were wrong.
UNSEEN = {
    "ET rank 1 truncated by 5 bytes",
    "npus_count 2 with 4 ETs (the extra ETs are never read)",
}


def is_bad(given: dict[str, Any]) -> bool:
    """Whether there is no answer with a meaning."""
    answered = given["rc"] == 0 and given["finished"] == given["of"]
    return not answered or given["name"] in MEANINGLESS | UNSEEN


def prepared(given: dict[str, Any], folder: Path) -> list[str]:
    """The command line for an input, whose files are in ``folder`` afterwards."""
    arguments = write_case(given["case"], folder)
    FILES.get(given["name"], lambda _: None)(folder)
    option = OPTIONS.get(given["name"])
    if option is not None and "=" in option:
        arguments.append(option)
    elif option is not None:
        arguments = [item for item in arguments if not item.startswith(option)]
    return ["astra-sim", *arguments, f"--network-backend=congestion_{given['backend']}"]


def test_every_input_is_there() -> None:
    assert len(INPUTS) == 173
    assert INPUTS.keys() >= FILES.keys() | OPTIONS.keys() | MEANINGLESS | UNSEEN
    assert sum(map(is_bad, INPUTS.values())) == 123


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS.keys())
def test_a_bad_input_is_an_error_and_an_odd_one_has_the_real_answer(
    given: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = prepared(given, tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    if is_bad(given):
        # 2 for the one that is no command line at all.
        assert code == (2 if "required option" in given["name"] else 1)
        assert printed.out == ""
        assert re.fullmatch("deepflow[ :].+\n", printed.err)
        assert NAMED.search(printed.err), printed.err
    else:
        assert code == 0, printed.err
        times = {cycles for cycles, _ in finished(printed.out).values()}
        assert sorted(times) == given["cycles"]


@pytest.mark.parametrize(
    "name",
    [
        "preferred-dataset-splits absent",
        "all-gather smaller than preferred-dataset-splits",
        "dependency cycle behind a free node",
        "ET rank 1 garbage bytes",
    ],
)
def test_a_process_of_its_own_says_the_same(name: str, tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepflow", *prepared(INPUTS[name], tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch("deepflow: error: .+\n", done.stderr)
    assert NAMED.search(done.stderr)
