"""Predictions beside measurements: every row of a table, with its error.

Rows are recognised by their columns. A training run states its model (``n_layers``, ``hidden``,
``heads``, ...), layout (``tp``, ``pp``, ``dp``, ``micro_batch``, ...) and ``metric``. A kernel
states ``op``: a multiplication (gemm: ``m``, ``n``, ``k``, ``dtype``), causal self-attention
(attention_prefill: ``batch``, ``num_heads``, ``q_len``, ...) or a collective (``ranks``,
``bytes``). The machine is found by the ``hardware``, ``gpu`` or ``node`` value among the names and
aliases of the hardware files.
"""

from __future__ import annotations

import csv
import gzip
import io
import statistics
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from deepflow.config import (
    HardwareConfig,
    canonical_override,
    load_hardware_config,
    read_yaml,
    with_overrides,
)
from deepflow.config.model import LlmModel
from deepflow.cost.operators import operator_cost
from deepflow.errors import ConfigError, DeepFlowError
from deepflow.hardware import Hardware, derive_hardware
from deepflow.mapping.groups import Group, place_group
from deepflow.prediction import Prediction, predict
from deepflow.record import record
from deepflow.workload.operators import Attention, Collective, Gemm, Operator
from deepflow.workload.transformer import parameter_count

HARDWARE_FILES = "configs/hardware-config/*.yaml"
OTHER_ROWS = "other rows"
KERNELS = (
    "gemm",
    "attention_prefill",
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "send_recv",
)
RECOGNISED = f"training runs, with run_type = train, and kernels, with op = {', '.join(KERNELS)}"
ADDED_COLUMNS = ("predicted", "error_percent", "not_predicted")
PEAK_PRECISIONS = ("bfloat16", "float16", "bf16", "fp16")


@record(frozen=True)
class Metric:
    """A measured quantity: the prediction's column and how many of the row's units it holds."""

    column: str
    scale: float = 1.0


TRAINING_METRICS = {
    "tok_per_s_per_gpu": Metric("tokens_per_second_per_device"),
    "throughput": Metric("tokens_per_second"),
    "step_time": Metric("time_s"),
    "step_time_derived": Metric("time_s"),
    "iteration_time": Metric("time_s"),
    "model_tflops_per_gpu": Metric("flops_per_second_per_device", 1e-12),
    "mfu": Metric("model_flops_utilization", 100.0),
    "fits_in_memory": Metric("fits_in_memory"),
}


@record(frozen=True)
class ValidatedRow:
    """A row of the table with what was predicted for it, in the row's unit."""

    row: dict[str, str]
    group: str
    measured: float | None
    predicted: float | None
    not_predicted: str

    @property
    def error_percent(self) -> float | None:
        """Signed, of the measured value; of a yes (1) or no (0), the whole for a wrong answer."""
        if self.predicted is None or self.measured is None:
            return None
        if metric_name(self.row) == "fits_in_memory":
            return 100 * (self.predicted - self.measured)
        if not self.measured:
            return None
        return 100 * (self.predicted / self.measured - 1)

    def as_row(self) -> dict[str, Any]:
        error = self.error_percent
        added = (
            "" if self.predicted is None else f"{self.predicted:.6g}",
            "" if error is None else f"{error:.3f}",
            self.not_predicted,
        )
        return self.row | dict(zip(ADDED_COLUMNS, added, strict=True))


@record(frozen=True)
class GroupError:
    """Errors of the predicted rows of one group, in per cent of the measured values."""

    group: str
    rows: int
    predicted: int
    median_absolute: float | None
    mean_absolute: float | None
    percentile_90: float | None
    median_signed: float | None

    def as_row(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzip-compressed if its name ends in .gz.

    Raises:
        ConfigError: the file is missing, empty, or no CSV table.
    """
    file = str(path)
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if file.endswith(".gz") else content).decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        raise ConfigError("no such file", file=file) from None
    except (OSError, UnicodeDecodeError, csv.Error, EOFError, zlib.error) as error:
        raise ConfigError(f"cannot be read as a CSV table: {error}", file=file) from None
    if not rows:
        raise ConfigError("has no rows", file=file)
    return rows


def validate_table(
    rows: Iterable[Mapping[str, str]],
    hardware_file: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Iterator[ValidatedRow]:
    """Predicts every row; one that cannot be predicted says why.

    ``hardware_file`` is used for all rows instead of the row's own machine. ``overrides`` are
    hardware paths and values for all rows, such as what is known of the framework.
    """
    machines = _Machines(hardware_file, overrides or {})
    for row in rows:
        yield _validate(dict(row), machines)


def write_table(rows: Iterable[ValidatedRow], path: str | Path) -> None:
    """The table as it was, with the added columns."""
    records = [row.as_row() for row in rows]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def summarize(rows: Iterable[ValidatedRow]) -> list[GroupError]:
    """Errors by group, in the order of appearance."""
    groups: dict[str, list[ValidatedRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [_group_error(group, members) for group, members in groups.items()]


def summary_text(groups: Iterable[GroupError]) -> str:
    """``summarize`` as a table for a terminal."""
    heads = " ".join(f"{head:>9}" for head in ("predicted", "median", "mean", "90 %", "bias"))
    lines = [f"{'group':44} {'rows':>6} {heads}"]
    for item in groups:
        figures = (
            item.median_absolute,
            item.mean_absolute,
            item.percentile_90,
            item.median_signed,
        )
        shown = " ".join(f"{'-' if value is None else f'{value:.1f} %':>9}" for value in figures)
        lines.append(f"{item.group:44} {item.rows:>6} {item.predicted:>9} {shown}")
    return "\n".join(lines)


class _Machines:
    """Hardware files by the names that tables use, loaded when a row asks for one.

    Spelling counts without case, spaces and punctuation. An alias wins over a name, which may
    be no more than that of a file.
    """

    def __init__(self, file: str | None, overrides: Mapping[str, object]) -> None:
        self._fixed = None if file is None else load_hardware_config(file)
        self._overrides = overrides
        self._named: dict[str, set[Path]] = {}
        self._aliased: dict[str, set[Path]] = {}
        self._loaded: dict[Path, HardwareConfig] = {}
        for path in sorted(Path().glob(HARDWARE_FILES)):
            content = read_yaml(path)
            self._named.setdefault(_plain(content.get("name") or path.stem), set()).add(path)
            for alias in content.get("aliases", ()):
                self._aliased.setdefault(_plain(alias), set()).add(path)

    def find(self, name: str, changes: Mapping[str, object]) -> HardwareConfig:
        """The machine of a row, with the row's own changes and those for all rows."""
        config = self._fixed or self._load(name)
        every = {f"scheduling_param.{key}": value for key, value in changes.items()}
        every |= self._overrides
        return with_overrides(
            config, dict(canonical_override(config, key, value) for key, value in every.items())
        )

    def _load(self, name: str) -> HardwareConfig:
        paths = self._aliased.get(_plain(name)) or self._named.get(_plain(name), set())
        if not paths:
            raise DeepFlowError(f"no hardware file has the name or alias {name!r}")
        if len(paths) > 1:
            files = ", ".join(sorted(map(str, paths)))
            raise DeepFlowError(f"several hardware files have the name or alias {name!r}: {files}")
        (path,) = paths
        if path not in self._loaded:
            self._loaded[path] = load_hardware_config(path)
        return self._loaded[path]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _validate(row: dict[str, str], machines: _Machines) -> ValidatedRow:
    group, measured, predicted, reason = OTHER_ROWS, None, None, ""
    try:
        if row.get("op") in KERNELS:
            kind = row.get("dtype") or row.get("attn_dtype", "")
            group = " ".join(
                (_machine_name(row), row["op"], row.get("library", ""), kind, row.get("ranks", ""))
            )
            measured = _microseconds(row)
            predicted = _kernel_microseconds(row, machines)
        elif row.get("run_type") == "train":
            group = f"{row.get('hardware', '')} {row.get('metric', '')}"
            measured = float(row["measured_value"])
            metric = TRAINING_METRICS.get(metric_name(row))
            if metric is None:
                raise DeepFlowError(f"metric {row['metric']!r} is not predicted")
            value = getattr(_training(row, machines), metric.column)
            predicted = value * metric.scale
        else:
            raise DeepFlowError(f"not one of {RECOGNISED}")
    except DeepFlowError as error:
        reason = str(error)
    except (KeyError, ValueError) as error:
        reason = f"a column is missing or not a number: {error}"
    return ValidatedRow(row, group, measured, predicted, reason)


def metric_name(row: Mapping[str, str]) -> str:
    """The metric without a remark in brackets, such as the meaning of 1 and 0."""
    return row.get("metric", "").partition("(")[0]


def _machine_name(row: Mapping[str, str]) -> str:
    return row.get("gpu") or row.get("hardware") or row.get("node") or ""


def _microseconds(row: Mapping[str, str]) -> float:
    if "latency_us" in row:
        return float(row["latency_us"])
    if row["unit"] != "us":
        raise DeepFlowError(f"the unit of latency is {row['unit']!r}, not us")
    return float(row["latency"])


def _kernel_microseconds(row: Mapping[str, str], machines: _Machines) -> float:
    hardware = derive_hardware(machines.find(_machine_name(row), {}))
    groups: dict[str, Group] = {}
    operator: Operator
    if row["op"] == "gemm":
        _check_precision(row["dtype"])
        operator = Gemm("gemm", int(row["m"]), int(row["k"]), int(row["n"]))
    elif row["op"] == "attention_prefill":
        _check_precision(row["attn_dtype"])
        _check_precision(row.get("kv_cache_dtype") or row["attn_dtype"])
        if int(row.get("window_size") or 0) or row["q_len"] != row["kv_len"]:
            raise DeepFlowError("only attention over the whole sequence is modelled")
        sizes = ("batch", "num_heads", "num_kv_heads", "q_len", "kv_len", "head_dim", "head_dim")
        b, heads, kv_heads, q_len, kv_len, width, _ = (int(row[name]) for name in sizes)
        operator = Attention("attention", b, heads, kv_heads, q_len, kv_len, width, width)
    else:
        operator, groups = _collective(row, hardware)
    return operator_cost(operator, hardware, groups).cost.time * 1e6


def _collective(row: Mapping[str, str], hardware: Hardware) -> tuple[Collective, dict[str, Group]]:
    """The row's collective, over neighbouring ranks that fill one node before the next."""
    if row.get("library", "nccl") != "nccl":
        raise DeepFlowError(f"library {row['library']!r} is not modelled")
    ranks = int(row["ranks"])
    if row.get("devices_per_node"):
        hardware = replace(
            hardware,
            config=with_overrides(
                hardware.config,
                {"system_hierarchy.num_devices_per_node": int(row["devices_per_node"])},
            ),
        )
    elif ranks > hardware.config.system_hierarchy.num_devices_per_node:
        raise DeepFlowError(f"{ranks} ranks are more than a node has; devices_per_node is missing")
    kind = "send" if row["op"] == "send_recv" else row["op"]
    group = place_group(hardware, "ranks", ranks, 1, ())
    return Collective(row["op"], kind, "ranks", float(row["bytes"])), {"ranks": group}


def _check_precision(dtype: str) -> None:
    if dtype not in PEAK_PRECISIONS:
        raise DeepFlowError(f"kernels of dtype {dtype!r} are not predicted")


def _training(row: Mapping[str, str], machines: _Machines) -> Prediction:
    devices = int(row["n_gpus"])
    layout: dict[str, object] = {
        "tensor": int(row["tp"]),
        "pipeline": int(row["pp"]),
        "data": int(row["dp"]),
        "zero": int(row.get("zero") or 0),
        "sequence_parallel": row.get("sp", "").startswith("True"),
        "recompute": "full" if row.get("recompute") == "full" else "none",
    }
    if row.get("micro_batch"):
        layout["micro_batch_size"] = int(row["micro_batch"])
    for name in ("cp", "ep"):
        if row.get(name, "1") not in ("", "1"):
            raise DeepFlowError(f"{name} = {row[name]} is not modelled")
    config = machines.find(row["hardware"], layout)
    per_node = min(devices, config.system_hierarchy.num_devices_per_node)
    config = with_overrides(
        config,
        {
            "system_hierarchy.num_devices_per_node": per_node,
            "system_hierarchy.num_nodes": -(-devices // per_node),
        },
    )
    return predict(derive_hardware(config), _model(row))


def _model(row: Mapping[str, str]) -> LlmModel:
    """The row's model; the parameter count, if there is one, tells whether there is a gate."""

    def build(activation: str) -> LlmModel:
        return LlmModel(
            global_batch_size=int(row["global_batch"]),
            seq_len=int(row["seq_len"]),
            hidden_dim=int(row["hidden"]),
            num_heads=int(row["heads"]),
            num_kv_heads=int(row.get("kv_heads") or row["heads"]),
            ffn_dim=int(row["ffn_dim"]),
            vocab_size=int(row["vocab"]),
            num_layers=int(row["n_layers"]),
            tie_embeddings=row.get("tie_embeddings") == "True",
            activation=activation,
            normalization="rmsnorm" if activation == "swiglu" else "layernorm",
            position_embedding="rotary" if activation == "swiglu" else "learned",
            name=row.get("model", ""),
        )

    if not row.get("params"):
        return build("swiglu")
    stated = float(row["params"])
    return min(
        (build("swiglu"), build("gelu")), key=lambda model: abs(parameter_count(model) - stated)
    )


def _group_error(group: str, rows: list[ValidatedRow]) -> GroupError:
    signed = sorted(row.error_percent for row in rows if row.error_percent is not None)
    absolute = sorted(abs(error) for error in signed)
    if not absolute:
        return GroupError(group, len(rows), 0, None, None, None, None)
    return GroupError(
        group,
        len(rows),
        len(absolute),
        statistics.median(absolute),
        statistics.fmean(absolute),
        absolute[min(len(absolute) - 1, int(0.9 * len(absolute)))],
        statistics.median(signed),
    )
