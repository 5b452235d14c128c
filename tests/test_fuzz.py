"""Hostile input to all loaders: one clear line or finite numbers, and never anything else.

Files that the project ships are changed at random, their values as well as their text, and go
through the command line. DEEPFLOW_FUZZ_EXAMPLES sets how many files each test makes; another number
than the usual one also makes other files each time.
"""

from __future__ import annotations

import ast
import copy
import gzip
import io
import itertools
import json
import math
import os
import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chakra_wire import write_case
from deepflow.cli import main
from deepflow.config.loading import read_yaml
from deepflow.sweep.identity import point_id, value_text

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGURATIONS = REPOSITORY / "configs"
HARDWARE = CONFIGURATIONS / "hardware-config" / "nvidia_h100_sxm_80gb.yaml"
MODEL = CONFIGURATIONS / "model-config" / "Llama2-7B.yaml"
NETWORK = REPOSITORY / "tests" / "data" / "network.yml"
EXAMPLES = int(os.environ.get("DEEPFLOW_FUZZ_EXAMPLES", "0"))
SECONDS_PER_FILE = 20  # of CPU, for what takes milliseconds unless it never ends

NUMBERS = [0, -1, 1, 2, 3, 7, 64, 65537, 10**6, 2**31, 2**63, 10**30, -(10**30), 10**400, 0.1, 1.5]
NUMBERS += [-0.0, 1e-300, -1e-300, 1e300, 1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "x", "auto", "null", "1", "1 GB", "-5 us", "1e400 GB/s", "5 parsecs", "1e-999 s"]
TEXTS += ["\u0661 GB", "\x00", "\ud800", "a\nb", "../../etc/passwd", "/", "x" * 5000, "ring", "LLM"]
TEXTS += ["hardware", "${HOME}", "{}", "1/0", "__import__('os')", "0x10", "1_000", "12:30", "NaN"]
HOSTILE: list[Any] = [*NUMBERS, *TEXTS, None, True, False, [], {}, [None], [1, 2], {"a": 1}, [[]]]
TOKENS = [b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!int ", b"\t", b"\x00", b"\xff"]
TOKENS += [
    b"- ",
    b": ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\n",
    b"'",
    b'"',
    b"#",
    b"|",
    b"%",
    b"\xef\xbb\xbf",
]
TOKENS += [b"---\n", b"...\n", b"? ", b"9" * 400, b".nan", b"\\", b"\xc2\x85", b"[" * 3000]


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Settings of a test that usually makes ``examples`` files."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# --- changed files -------------------------------------------------------------------------


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values below ``data``, but for its own."""
    entries = enumerate(data) if isinstance(data, list) else data.items()
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


CHANGES = ["scale"] * 6 + ["value"] * 3 + ["remove", "rename", "move"]
FACTORS = [-1, 0, 0.25, 0.5, 2, 3, 8, 100, 10**4, 10**9, 1e-3, 1e-9]
_LEADING_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?")


@st.composite
def changed_data(draw: st.DrawFn, originals: Sequence[Any]) -> Any:
    """One of the originals with some values scaled, replaced, removed, or at another place."""
    data = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        paths = list(places(data))
        if not paths:
            break
        *above, key = draw(st.sampled_from(paths))
        parent = data
        for step in above:
            parent = parent[step]
        match draw(st.sampled_from(CHANGES)):
            case "scale":
                parent[key] = scaled(parent[key], draw(st.sampled_from(FACTORS)))
            case "value":
                anything = st.sampled_from(HOSTILE) | st.integers(0, 64) | st.floats()
                parent[key] = copy.deepcopy(draw(anything))
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                names = [f"{key}x", str(key).upper(), "base", "model_param"]
                parent[draw(st.sampled_from(names))] = parent.pop(key)
            case "move":
                parent[key] = copy.deepcopy(data)
    return data


def scaled(value: Any, factor: float) -> Any:
    """A number, or one with a unit, times ``factor``; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    if not isinstance(value, str):
        return int(value * factor) if isinstance(value, int) else value * factor
    number = _LEADING_NUMBER.match(value)
    return f"{float(number[0]) * factor:g}{value[number.end() :]}" if number else value


@st.composite
def changed_bytes(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the originals with some places cut out, doubled, or replaced by what is special."""
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from([0, 0, 1, 2, 8, 64, 1000])))
        inserted = draw(st.sampled_from([b"", content[begin:end] * 2, *TOKENS]) | st.binary())
        content = content[:begin] + inserted + content[end:]
    return content


def as_yaml(data: Any) -> bytes:
    text: str = yaml.dump(data, Dumper=_Dumper, allow_unicode=False)
    return text.encode("utf-8", "surrogatepass")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_files(*originals: Path) -> st.SearchStrategy[bytes]:
    changed = changed_data([read_yaml(file) for file in originals]).map(as_yaml)
    return changed | changed | changed | changed_bytes([file.read_bytes() for file in originals])


def json_files(*originals: Any) -> st.SearchStrategy[bytes]:
    def encoded(data: Any) -> bytes:
        return json.dumps(data).encode()

    changed = changed_data(originals).map(encoded)
    return changed | changed | changed | changed_bytes(list(map(encoded, originals)))


# --- what has to come out ------------------------------------------------------------------


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes too long; what it waits for is CPU time, so a busy machine is none."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS_PER_FILE} s")

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_FILE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of ``deepflow``, which must have said what is wrong in one line."""
    out, errors = io.StringIO(), io.StringIO()
    with limited(), redirect_stdout(out), redirect_stderr(errors):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            # Such a command line, "--set =0", is wrong before anybody looks at the value.
            assert "is not PATH=VALUE" in errors.getvalue()
            return int(stop.code or 0), ""
    lines = errors.getvalue().splitlines()
    if code:
        assert code == 1
        assert out.getvalue() == ""
        assert [line[:17] for line in lines[-1:]] == ["deepflow: error: "]
    return code, out.getvalue()


def assert_finite(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if isinstance(value, float):
            assert math.isfinite(value), name
            assert value >= 0 or name == "unused", (name, value)


def predicted(*arguments: object) -> None:
    code, out = run("predict", "--json", "--allow-infeasible", *arguments)
    if code == 0:
        record = json.loads(out, parse_constant=pytest.fail)
        assert_finite({key: value for key, value in record.items() if key != "configuration"})
        if record["status"] == "ok":
            assert record["time_s"] > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


HARDWARE_FILES = [
    CONFIGURATIONS / "hardware-config" / f"{name}.yaml"
    for name in ("nvidia_h100_sxm_80gb", "a100_80GB", "waferscale_20v100_80hbm", "google_tpu_v5p")
] + [CONFIGURATIONS / "old-configs" / "exp_config.yaml"]
MODEL_FILES = [
    CONFIGURATIONS / "model-config" / f"{name}.yaml"
    for name in ("Llama2-7B", "Mixtral-8x7B", "DeepSeek-V3", "ViT-L16", "LSTM", "GEMM")
]


@fuzzed(60)
@given(
    content=yaml_files(*HARDWARE_FILES),
    model=st.sampled_from([MODEL_FILES[0], *MODEL_FILES[3:]]),
    backend=st.sampled_from(["analytical", "astra"]),
)
def test_hardware_files(folder: Path, content: bytes, model: Path, backend: str) -> None:
    file = folder / "hardware.yaml"
    file.write_bytes(content)
    predicted("--hardware", file, "--model", model, "--backend", backend)


@fuzzed(80)
@given(content=yaml_files(*MODEL_FILES))
def test_model_files(folder: Path, content: bytes) -> None:
    file = folder / "model.yaml"
    file.write_bytes(content)
    predicted("--hardware", HARDWARE, "--model", file)


CHECKPOINTS = [
    json.loads((REPOSITORY / "tests" / "data" / "huggingface" / f"{name}.json").read_text())
    for name in ("Llama3.1-8B", "DeepSeek-V2-Lite", "Mixtral-8x7B", "GPT2", "ViT-L16", "Gemma2-9B")
]


@fuzzed(80)
@given(content=json_files(*CHECKPOINTS))
def test_checkpoints_of_hugging_face(folder: Path, content: bytes) -> None:
    source, file = folder / "config.json", folder / "imported.yaml"
    source.write_bytes(content)
    file.unlink(missing_ok=True)
    code, _ = run("config", "import", source, "--output", file)
    if code == 0:
        predicted("--hardware", HARDWARE, "--model", file)


SWEEPS = [REPOSITORY / "sweeps" / f"{name}.yaml" for name in ("gemm_shapes", "lstm_parallelism")]
SWEEPS += [REPOSITORY / "sweeps" / "llama2_70b_parallelism_h100.yaml"]


@fuzzed(50)
@given(content=yaml_files(*SWEEPS))
def test_sweep_files(folder: Path, content: bytes) -> None:
    file = folder / "sweep.yaml"
    file.write_bytes(content)
    code, out = run("sweep", "points", file)
    for line in out.splitlines()[:2000] if code == 0 else ():
        name, target, _ = line.split("\t")
        assert re.fullmatch(r"[A-Za-z0-9._+=,-]{1,200}", name)
        assert name.strip(".")
        assert target == f"results/sweep/points/{name}.json"


OVERRIDES = [
    "model.global_batch_size",
    "model.seq_len",
    "parallelism.tensor",
    "parallelism.num_microbatches",
    "hardware.tech_param.DRAM.bandwidth",
    "hardware.tech_param.core.operating_frequency",
    "hardware.system_hierarchy.num_nodes",
    "backend.model",
]


@fuzzed(40)
@given(
    path=st.sampled_from(OVERRIDES) | st.text(max_size=20),
    value=st.sampled_from(HOSTILE).map(repr) | st.text(max_size=20) | st.integers().map(str),
)
def test_settings_of_the_command_line(path: str, value: str) -> None:
    predicted("--hardware", HARDWARE, "--model", MODEL, f"--set={path}={value}")


DATA = REPOSITORY / "tests" / "data" / "reference" / "astra"
with gzip.open(DATA / "cases.json.gz", "rt") as _file:
    CASES = [case for case in json.load(_file) if math.prod(case["network"]["npus_count"]) <= 8]


@fuzzed(60)
@given(data=st.data(), case=st.sampled_from(CASES), aware=st.booleans())
def test_inputs_of_astra_sim(folder: Path, data: st.DataObject, case: Any, aware: bool) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        arguments = write_case(case, Path(name))
        files = sorted(Path(name).iterdir())
        file = data.draw(st.sampled_from(files))
        content = file.read_bytes()
        if file.suffix == ".et":
            changed = changed_bytes([content])
        elif file.suffix == ".yml":
            changed = yaml_files(file)
        else:
            changed = json_files(json.loads(content))
        file.write_bytes(data.draw(changed))
        backend = "aware" if aware else "unaware"
        code, out = run("astra-sim", *arguments, f"--network-backend=congestion_{backend}")
    if code == 0:
        assert len(re.findall(r"finished, \d+ cycles", out)) >= 2


# --- files that are made to do harm --------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 30)
)
HARMFUL = {
    "billion laughs as keys": BOMB,
    "billion laughs as a value": BOMB + "tech_param: *a29\nmodel_param: *a29\ngrid: *a29\n",
    "billion laughs as an axis": BOMB.replace("a0:", "grid:\n a0:", 1).replace("\na", "\n a")
    + "hardware: hardware.yaml\nmodel: model.yaml\n",
    "a mapping in itself": "tech_param: &a {core: *a}\nmodel_param: &b {mode: *b}\n",
    "a list in itself": "model_param: &a [*a]\nhardware: *a\ngrid: {model.M: *a}\n",
    "deep nesting": "[" * 100_000,
    "deep nesting of compact lists": "- " * 100_000,
    "deep nesting of keys": "".join(" " * level + "a:\n" for level in range(3000)),
    "a number of 5,000 digits": "model_param: {mode: GEMM, M: " + "9" * 5000 + "}\n",
    "a hexadecimal number": "model_param: {mode: GEMM, M: 0x" + "f" * 5000 + "}\n",
    "an object": "model_param: !!python/object/apply:os.mkdir [broken]\n",
    "a name": "model_param: !!python/name:os.system\n",
    "a tag of its own": "model_param: !env {HOME: x}\n",
    "binary": "model_param: !!binary aGVsbG8=\n",
    "a merge key": "a: &a {mode: LLM}\nmodel_param: {<<: *a}\n",
    "no UTF-8": b"model_param: \xff\xfe\xfa\n",
    "a NUL byte": b"model_param: {mode: GE\x00MM}\n",
    "NUL bytes": bytes(1000),
    "20 MB": b"# " + b"x" * 20_000_000,
    "a key of a million letters": "x" * 1_000_000 + ": 1\n",
}


@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL.keys())
@pytest.mark.parametrize("kind", ["hardware", "model", "framework", "sweep", "network", "system"])
def test_a_harmful_file(
    kind: str, content: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "harmful.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    code, _ = run(*using(kind, file))
    assert code == 1
    assert list(tmp_path.iterdir()) == [file]


def using(kind: str, file: Path) -> list[object]:
    """The command line that reads ``file`` as a configuration of some kind."""
    rest = {"hardware": HARDWARE, "model": MODEL}
    if kind in ("hardware", "model", "framework"):
        return ["predict", *(x for k, v in {**rest, kind: file}.items() for x in (f"--{k}", v))]
    if kind == "sweep":
        return ["sweep", "points", file]
    if kind == "checkpoint":
        return ["config", "import", file]
    names: dict[str, object] = dict.fromkeys(("workload", "system", "remote-memory"), "nowhere")
    names["network"] = NETWORK if kind != "network" else file
    names[kind] = file
    return ["astra-sim", *(f"--{name}-configuration={value}" for name, value in names.items())]


@pytest.mark.parametrize(
    "kind", ["hardware", "model", "framework", "sweep", "checkpoint", "network", "system"]
)
def test_files_that_are_none(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("/dev/zero", "/dev/null", "loop", "nowhere", str(tmp_path)):
        link = tmp_path / "loop"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert run(*using(kind, link))[0] == 1


def test_points_stay_in_the_folder_of_results(tmp_path: Path) -> None:
    values = ["../../x", "/etc/passwd", "..", ".", "", "a\nb", "a b", "~", "-rf", "x" * 500, "é"]
    names = ["M", "N", "hardware"]
    for value, name in itertools.product(values, names):
        made = point_id([f"{name}={value_text(value)}"])
        file = tmp_path / "points" / f"{made}.json"
        assert Path(os.path.normpath(file)).parent == tmp_path / "points"
        assert len(file.name) <= 255
    # And a sweep cannot have a name that leads elsewhere.
    for name in ("...yaml", "a b.yaml", "$HOME.yaml", ".hidden.yaml", "-.yaml;ls"):
        file = tmp_path / name
        file.write_text(f"hardware: {HARDWARE}\nmodel: {MODEL}\n")
        code, out = run("sweep", "points", file)
        assert code == 1 or out.startswith(f"base\tresults/{file.stem}/points/base.json\t")
        assert code == 1 or re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", file.stem)


UNSAFE_NAMES = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_ATTRIBUTES = {
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "load"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("yaml", "UnsafeLoader"),
    ("yaml", "FullLoader"),
    ("pd", "read_pickle"),
    ("pd", "eval"),
}


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "deepflow").rglob("*.py")), ids=lambda file: file.stem
)
def test_no_text_becomes_code(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Call(func=ast.Name(id=name)):
                assert name not in UNSAFE_NAMES, where
            case ast.Import(names=names):
                assert not {name.name.split(".")[0] for name in names} & UNSAFE_MODULES, where
            case ast.ImportFrom(module=module):
                assert (module or "").split(".")[0] not in UNSAFE_MODULES, where
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                assert (name, attribute) not in UNSAFE_ATTRIBUTES, where
            case ast.keyword(arg="shell", value=value):
                assert isinstance(value, ast.Constant) and value.value is False, where
            case ast.keyword(arg="allow_pickle", value=value):
                assert isinstance(value, ast.Constant) and value.value is False, where
