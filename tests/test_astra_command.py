"""``deepflow astra-sim``: ASTRA-sim's files and options in, its lines and exit codes out.

The reference cases say what the real programs answered; ``data/reference/astra/README.md`` names
their source.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from chakra_wire import message, trace, write_case
from deepflow.cli import main

DATA = Path(__file__).parent / "data" / "reference" / "astra"
FINISHED = re.compile(r"sys\[(\d+)\] finished, (\d+) cycles, exposed communication (-?\d+) cycles")

# Inputs for which the real programs print a complete but meaningless answer.
MEANINGLESS = {
    "comm_size 0 at start",
    "comm_size 0 after a comp",
    "dependency cycle behind a free node",
    "duplicate node ids",
    "local-mem-bw absent, all-reduce",
    "local-mem-bw absent, all-gather",
    "scheduling-policy absent",
    "collective-optimization absent",
    "2-D network, one implementation (second dimension silently left out)",
    "involved_dim shorter than the network",
    "5-D network without involved_dim (default covers 4)",
    "all-to-all with doubleBinaryTree (runs an all-reduce)",
    "halvingDoubling AG on 6 ranks",
    "halvingDoubling AG on 12 ranks",
    "INVALID node with a child, another node running",
    "roofline num_ops 0",
    "model-shared-bus with L,o,g,G",
}


def reference(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.json.gz", "rt") as file:
        content: list[dict[str, Any]] = json.load(file)
    return content


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``deepflow astra-sim``, in this process."""
    try:
        code = main(["astra-sim", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def finished(out: str) -> dict[int, tuple[int, int]]:
    """(cycles, exposed cycles) of each rank, in order of completion."""
    return {int(rank): (int(end), int(rest)) for rank, end, rest in FINISHED.findall(out)}


BAD_INPUTS = {case["name"]: case for case in reference("bad_inputs")}
GOOD = BAD_INPUTS["baseline (good)"]["case"]


@pytest.mark.parametrize("case", reference("cases")[::20], ids=lambda case: case["id"])
@pytest.mark.parametrize("backend", ["unaware", "aware"])
def test_every_rank_takes_the_cycles_of_the_real_program(case, backend, tmp_path, capsys):
    expected = case["result"][backend]
    arguments = write_case(case, tmp_path)
    code, out, err = run(capsys, *arguments, f"--network-backend=congestion_{backend}")
    if expected["rc"] == 0 and None not in expected["cycles"]:
        assert (code, err) == (0, "")
        ranks = finished(out)
        ends = list(zip(expected["cycles"], expected["exposed"], strict=True))
        assert [ranks[rank] for rank in range(len(ends))] == ends
        assert list(ranks) == expected["order"]
    else:
        assert (code, out) == (1, "")
        assert err.startswith("deepflow: error: ")


# Faults of files rather than of what they say; those are the tests below.
FAULTS_OF_FILES = r"ET |ETs|all ETs|system JSON|network YAML|remote-memory|comm-group file"
FAULTS_OF_OPTIONS = r"no arguments|npus_count|bandwidth 0|logging folder|unknown option"


@pytest.mark.parametrize(
    "bad",
    [
        case
        for name, case in BAD_INPUTS.items()
        if not re.match(f"{FAULTS_OF_FILES}|{FAULTS_OF_OPTIONS}", name)
    ],
    ids=lambda case: case["name"],
)
def test_bad_input_is_an_error_and_odd_input_has_the_real_answer(bad, tmp_path, capsys):
    arguments = write_case(bad["case"], tmp_path)
    code, out, err = run(capsys, *arguments, f"--network-backend=congestion_{bad['backend']}")
    answered = bad["rc"] == 0 and bad["finished"] == bad["of"]
    if answered and bad["name"] not in MEANINGLESS:
        assert code == 0, err
        assert sorted({cycles for cycles, _ in finished(out).values()}) == bad["cycles"]
    else:
        assert (code, out) == (1, "")
        assert re.fullmatch("deepflow: error: .+\n", err)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("t.3.et", None, r"t\.3\.et: no such file"),
        ("system.json", None, r"system\.json: no such file"),
        ("network.yml", None, r"network\.yml: no such file"),
        ("memory.json", None, r"memory\.json: no such file"),
        ("system.json", b'{"endpoint-delay": 10,', r"system\.json: line 1: not valid JSON"),
        ("system.json", b'{"L": 1, "L": 2}', r"system\.json: .*'L' is given twice"),
        ("system.json", b'["L"]', r"system\.json: not a mapping"),
        ("system.json", b"\xff", r"system\.json: not valid JSON"),
        ("network.yml", b"\x00\x01{{{", r"network\.yml: "),
        ("network.yml", b"topology: [Ring]\nnpus_count: [4]\nbandwidth: [1]\n", "latency: missing"),
        ("memory.json", b'{"memory-type": "MEMORY_POOL"}', "memory-type = 'MEMORY_POOL': not sim"),
        ("memory.json", b"{}", "memory-type: missing"),
        ("t.1.et", b"", r"t\.1\.et: the file is empty"),
        ("t.1.et", b"\xfe\xed\xfa\xce" * 9, r"t\.1\.et: byte 0"),
        ("t.1.et", b"some text\n" * 20, r"t\.1\.et: byte 0"),
        ("t.1.et", trace(GOOD["graph"]["*"])[:-5], r"t\.1\.et: byte 8: .* cut off"),
        ("t.1.et", trace([]), r"t\.1\.et: the trace has no nodes"),
        ("t.1.et", trace(GOOD["graph"]["*"])[8:], r"t\.1\.et: byte 0: a node where"),
        ("t.4.et", trace(GOOD["graph"]["*"]), r"t\.4\.et: the network has only 4 ranks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_named(file, content, problem, tmp_path, capsys):
    arguments = write_case(GOOD, tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_bytes(content)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert re.search(problem, err)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("topology", ["Star"]),
        ("topology", "Ring"),
        ("npus_count", [4, 4]),
        ("npus_count", [1]),
        ("npus_count", [2.5]),
        ("npus_count", [8]),
        ("npus_count", [2]),
        ("bandwidth", [0]),
        ("bandwidth", ["fast"]),
        ("latency", [-1]),
        ("latency", None),
    ],
)
def test_a_network_that_cannot_be_is_an_error(key, value, tmp_path, capsys):
    # Traces of 4 ranks stay, so that other numbers of NPUs contradict them.
    arguments = write_case(GOOD, tmp_path)
    network = {**GOOD["network"], key: value}
    (tmp_path / "network.yml").write_text(json.dumps(network))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_the_lines_are_those_of_the_real_program(tmp_path, capsys):
    code, out, _ = run(capsys, *write_case(GOOD, tmp_path))
    stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\] "
    of_a_rank = (
        rf"{stamp}\[workload\] \[info\] sys\[\d\] finished, 55000 cycles,"
        r" exposed communication 55000 cycles\.\n"
        rf"{stamp}\[statistics\] \[info\] sys\[\d\], Wall time: 55000\n"
    )
    assert code == 0
    assert re.fullmatch(rf"({of_a_rank}){{4}}{stamp}\[system\] \[warning\] Exiting\n", out)


def test_options_without_effect_are_accepted_and_unknown_ones_warned_of(tmp_path, capsys):
    arguments = write_case(GOOD, tmp_path)
    known = ("--comm-scale=2", "--compute-scale", "3", "--logging-configuration=empty")
    code, out, err = run(capsys, *arguments, *known)
    assert (code, err, len(finished(out))) == (0, "", 4)
    code, out, err = run(capsys, *arguments, "--num-queue-per-dim=4")
    assert (code, len(finished(out))) == (0, 4)
    assert err == "deepflow: warning: without effect: --num-queue-per-dim=4\n"


def test_unknown_keys_of_a_system_file_are_warned_of(tmp_path, capsys):
    system = {**GOOD["system"], "boost-mode": 1, "endpoint-dealy": 500}
    code, out, err = run(capsys, *write_case({**GOOD, "system": system}, tmp_path))
    assert (code, len(finished(out))) == (0, 4)
    assert err.count("warning") == 1
    assert "endpoint-dealy" in err


@pytest.mark.parametrize(
    "option",
    ["--network-backend=garnet", "--num-queues-per-dim=0", "--rendezvous-protocol=maybe"],
)
def test_a_wrong_or_missing_option_is_a_wrong_command_line(option, tmp_path, capsys):
    arguments = write_case(GOOD, tmp_path)
    assert run(capsys, *arguments, option)[0] == 2
    assert run(capsys, *arguments[1:])[0] == 2


def test_unknown_options_of_other_commands_are_still_errors(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["schema", "model", "--colour"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("deepflow: unrecognized arguments: --colour")


def test_groups_are_only_read_if_their_path_allows(tmp_path, capsys):
    node = {**GOOD["graph"]["*"][0], "pg": "1"}
    case = {**GOOD, "groups": {"1": [0, 1, 2, 3]}, "graph": {"*": [node]}}
    *arguments, groups = write_case(case, tmp_path)
    assert run(capsys, *arguments, groups)[0] == 0
    code, _, err = run(capsys, *arguments, "--comm-group-configuration=empty")
    assert code == 1
    assert "group 1" in err
    code, _, err = run(capsys, *arguments, "--comm-group-configuration=none.json")
    assert code == 1
    assert "none.json: no such file" in err


def test_the_lines_are_also_written_to_a_logging_folder(tmp_path, capsys):
    arguments = write_case(GOOD, tmp_path)
    code, out, _ = run(capsys, *arguments, f"--logging-folder={tmp_path / 'log'}")
    assert code == 0
    assert (tmp_path / "log" / "log.log").read_text() == out
    code, out, err = run(capsys, *arguments, f"--logging-folder={tmp_path / 'no' / 'log'}")
    assert (code, out) == (1, "")
    assert "--logging-folder" in err


def test_a_trace_of_another_version_is_read(tmp_path, capsys):
    arguments = write_case(GOOD, tmp_path)
    (tmp_path / "t.2.et").write_bytes(message(b"") + trace(GOOD["graph"]["*"])[8:])
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert finished(out)[2] == (55000, 55000)


def test_a_failed_link_makes_the_way_longer_and_an_unknown_one_is_an_error(tmp_path, capsys):
    network = {**GOOD["network"], "topology": ["Ring"]}
    arguments = write_case({**GOOD, "network": network}, tmp_path)
    links = tmp_path / "links.yml"

    def wall_time(text: str) -> int:
        links.write_text(text)
        code, out, err = run(capsys, *arguments, f"--link-states={links}")
        assert (code, err) == (0, "")
        return max(cycles for cycles, _ in finished(out).values())

    intact = wall_time("[]")
    degraded = wall_time("- {source: 0, destination: 1, bandwidth_factor: 0.5}\n")
    failed = wall_time("- {source: 0, destination: 1, bandwidth_factor: 0}\n")
    assert intact < degraded
    assert intact < failed
    for text in ("3", "- 3", "- {source: 0}", "- {source: 0, destination: 2, extra_latency: 1}"):
        links.write_text(text)
        code, out, err = run(capsys, *arguments, f"--link-states={links}")
        assert (code, out) == (1, ""), err


def test_congestion_in_several_dimensions_has_to_be_asked_for(tmp_path, capsys):
    network = {key: values * 2 for key, values in GOOD["network"].items()}
    system = {**GOOD["system"], "all-reduce-implementation": ["ring", "ring"]}
    arguments = write_case({**GOOD, "network": network, "system": system}, tmp_path)
    arguments.append("--network-backend=congestion_aware")
    assert run(capsys, *arguments)[0] == 1
    code, out, _ = run(capsys, *arguments, "--congestion-in-all-dimensions")
    assert (code, len(finished(out))) == (0, 16)
