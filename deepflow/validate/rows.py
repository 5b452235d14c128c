"""Every row of a table: what it is, what is predicted for it, and which group it counts in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path

from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware, derive_hardware
from deepflow.record import record
from deepflow.validate import attention, collectives, gemm, moe, training
from deepflow.validate.machines import Machines, machine_name
from deepflow.validate.tables import ADDED_COLUMNS, ValidatedRow, read_table

OTHER_ROWS = "other rows"

# Who predicts the rows of each kind of kernel, in seconds.
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv")
KERNELS: dict[str, Callable[[Mapping[str, str], Hardware], float]] = {
    "gemm": gemm.predicted_seconds,
    "attention_prefill": attention.predicted_seconds,
    "attention_decode": attention.predicted_seconds,
    "moe": moe.predicted_seconds,
    **dict.fromkeys(COLLECTIVES, collectives.predicted_seconds),
}
RECOGNISED = (
    f"runs, with run_type = train or inference, and kernels, with op = {', '.join(KERNELS)}"
)

# Below these, fixed costs decide and not the shape.
LONG_KERNEL_US = 20.0
LARGE_MESSAGE_BYTES = 2**20

# What runs of one model have in common, whatever became of them.
_OF_A_MODEL = ("ffn_dim", "tie_embeddings")


@record(frozen=True)
class Description:
    """What a row is, whether or not it can be predicted. ``problem``: why it cannot, or ""."""

    group: str
    measured: float | None
    yes_or_no: bool
    explicable: bool
    problem: str


def validate_table(
    rows: Iterable[Mapping[str, str]],
    hardware_file: str | None = None,
    overrides: Mapping[str, object] | None = None,
    framework_file: str | None = None,
) -> Iterator[ValidatedRow]:
    """Predicts every row; one that cannot be predicted says why.

    ``hardware_file`` and ``framework_file`` are used for all rows instead of the row's own.
    ``overrides`` are hardware paths and values for all rows.
    """
    table = list(rows)
    machines = Machines(hardware_file, framework_file, overrides)
    kernel_seconds = _KernelPredictor(machines)
    predictor = training.Predictor(machines)
    complete = _completion(table)
    for row in table:
        described = describe(row)
        predicted, reason = None, described.problem
        try:
            if reason:
                pass
            elif kernel_of(row) is not None:
                predicted = kernel_seconds(row) * _per_second(row)
            else:
                predicted = _training_value(complete(row), predictor)
        except DeepFlowError as error:
            reason = str(error)
        except (KeyError, ValueError) as error:
            reason = f"a column is missing or not a number: {error}"
        yield _validated(row, described, predicted, reason)


def read_validated(path: str | Path) -> list[ValidatedRow]:
    """The rows that ``write_table`` wrote; ConfigError if that is no such file."""
    rows = []
    for row in read_table(path):
        predicted, _, reason = (row.pop(name, "") for name in ADDED_COLUMNS)
        rows.append(_validated(row, describe(row), float(predicted) if predicted else None, reason))
    return rows


def is_recognised(rows: Iterable[Mapping[str, str]]) -> bool:
    """Whether any of ``rows`` is of a kind that is predicted."""
    return any(kernel_of(row) or training.recognise(row) for row in rows)


def kind_of(row: Mapping[str, str]) -> str:
    """What decides the prediction of a row: a kind of kernel, "time" or "memory" of a run."""
    metric = training.METRICS.get(training.metric_name(row))
    of_a_run = "time" if metric is None or metric.is_time else "memory"
    return kernel_of(row) or of_a_run


def describe(row: Mapping[str, str]) -> Description:
    """The group and measurement of a row, from its columns alone."""
    try:
        if (kernel := kernel_of(row)) is not None:
            measured = _positive(_measured_kernel(row))
            return Description(_kernel_group(kernel, row, measured), measured, False, True, "")
        if training.recognise(row) is None:
            return Description(OTHER_ROWS, None, False, True, f"not one of {RECOGNISED}")
        explicable = training.is_explicable(row)
        metric = training.metric_name(row)
        remark = "" if explicable else training.why_inexplicable(row)
        group = _joined(machine_name(row), metric, row.get("variant"), row.get("scheme"), remark)
        if metric == "other_failure":
            return Description(group, None, False, explicable, "the run failed for another reason")
        measured = training.measured_value(row)
        yes_or_no = metric == "fits_in_memory"
        if not yes_or_no:
            _positive(measured)
        return Description(group, measured, yes_or_no, explicable, "")
    except DeepFlowError as error:
        return Description(OTHER_ROWS, None, False, True, str(error))
    except (KeyError, ValueError) as error:
        problem = f"a column is missing or not a number: {error}"
        return Description(OTHER_ROWS, None, False, True, problem)


def _positive(measured: float) -> float:
    if not (measured > 0 and isfinite(measured)):
        raise DeepFlowError(f"the measured value {measured:g} is no positive number")
    return measured


def _validated(
    row: Mapping[str, str], described: Description, predicted: float | None, reason: str
) -> ValidatedRow:
    return ValidatedRow(
        dict(row),
        described.group,
        described.measured,
        predicted,
        reason,
        described.yes_or_no,
        described.explicable,
    )


class _KernelPredictor:
    """Seconds of kernel rows; a machine is derived once."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._hardware: dict[str, Hardware] = {}

    def __call__(self, row: Mapping[str, str]) -> float:
        name = machine_name(row)
        if name not in self._hardware:
            self._hardware[name] = derive_hardware(self._machines.find(name, {}))
        return predicted_kernel_seconds(row, self._hardware[name])


def kernel_of(row: Mapping[str, str]) -> str | None:
    """The kind of kernel of a row, or None: its ``op``; profiled products have a ``run_type``."""
    kind = "gemm" if row.get("run_type") == "gemm" else row.get("op")
    return kind if kind in KERNELS else None


def predicted_kernel_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of a kernel's row, in seconds.

    Raises:
        DeepFlowError: why the row cannot be predicted.
        KeyError, ValueError: a column is missing, or not a number.
    """
    kernel = kernel_of(row)
    if kernel is None:
        raise DeepFlowError(f"op {row.get('op')!r} is no kernel that is modelled")
    return KERNELS[kernel](_with_lengths(row), hardware)


def measured_kernel_seconds(row: Mapping[str, str]) -> float:
    """What was measured for a kernel's row, in seconds; raises as the prediction does."""
    return _measured_kernel(row) / _per_second(row)


def _with_lengths(row: Mapping[str, str]) -> Mapping[str, str]:
    """``row`` with its lengths, where it has input tokens (isl) and tokens before them (step)."""
    if not row.get("isl"):
        return row
    return {
        **row,
        "attn_dtype": row["dtype"],
        "q_len": row["isl"],
        "kv_len": str(int(row["isl"]) + int(row["step"])),
    }


def _training_value(row: Mapping[str, str], predictor: training.Predictor) -> float:
    read = training.recognise(row)
    assert read is not None  # Rows of other kinds have a problem already.
    run, metric = read(row)
    value = metric.value(predictor.predict(run), run)
    if value is None:
        raise DeepFlowError(f"a prediction has no {metric.name}")
    return float(value)


def _completion(
    table: Sequence[Mapping[str, str]],
) -> Callable[[Mapping[str, str]], Mapping[str, str]]:
    """Fills what a row does not state of its model with what all other rows of it agree on.

    A run that ended early logged less about itself than the others.
    """
    stated: dict[tuple[str, str], set[str]] = {}
    for row in table:
        for column in _OF_A_MODEL:
            if row.get("model") and row.get(column):
                stated.setdefault((row["model"], column), set()).add(row[column])

    def complete(row: Mapping[str, str]) -> Mapping[str, str]:
        filled = {}
        for column in _OF_A_MODEL:
            values = stated.get((row.get("model", ""), column), set())
            if row.get(column) == "" and len(values) == 1:
                filled[column] = next(iter(values))
        return {**row, **filled} if filled else row

    return complete


def _kernel_group(kernel: str, row: Mapping[str, str], measured: float) -> str:
    """Machine, operation, data types, kernel family, ranks, and whether it is long or large."""
    family = row.get("kernel_source", "").rpartition("/")[2]
    if kernel in COLLECTIVES:
        ranks = f"{row['ranks']} ranks"
        if row.get("nodes", "1") != "1":
            ranks += f" on {row['nodes']} nodes"
        size = "from 1 MiB" if float(row["bytes"]) >= LARGE_MESSAGE_BYTES else "below 1 MiB"
        family = "" if family.lower() == row.get("library") else family
        return _joined(machine_name(row), kernel, row.get("library"), family, ranks, size)
    dtypes = [row.get("dtype") or row.get("attn_dtype", "")]
    if row.get("kv_cache_dtype") not in (None, "", *dtypes):
        dtypes.append(f"KV {row['kv_cache_dtype']}")
    size = ""
    if row.get("metric", "kernel_time") == "kernel_time":
        is_long = measured / _per_second(row) > LONG_KERNEL_US * 1e-6
        size = "over 20 us" if is_long else "up to 20 us"
    return _joined(machine_name(row), kernel, *dtypes, family, row.get("metric"), size)


def _joined(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _measured_kernel(row: Mapping[str, str]) -> float:
    names = ("latency_us", "latency", "measured_value")
    return float(next((row[name] for name in names if name in row), "none"))


def _per_second(row: Mapping[str, str]) -> float:
    """How many of the row's units a second is."""
    unit = "us" if "latency_us" in row else row["unit"]
    if unit not in ("us", "s"):
        raise DeepFlowError(f"the unit of latency is {unit!r}, not us or s")
    return 1e6 if unit == "us" else 1.0
