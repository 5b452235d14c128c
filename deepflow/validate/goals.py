"""What accuracy the project aims at, and what it reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from deepflow.record import record
from deepflow.validate.rows import LARGE_MESSAGE_BYTES, LONG_KERNEL_US
from deepflow.validate.tables import ValidatedRow, group_error
from deepflow.validate.training import metric_name


@record(frozen=True)
class Goal:
    """A bound on a statistic of the rows of ``table`` that ``counts`` selects, in per cent.

    ``at_least`` is for shares of right answers, where more is better.
    """

    table: str
    rows: str
    statistic: str
    limit: float
    counts: Callable[[ValidatedRow], bool]
    at_least: bool = False


@record(frozen=True)
class Reached:
    """A goal beside what was reached over ``rows`` predicted rows."""

    goal: Goal
    rows: int
    value: float

    @property
    def met(self) -> bool:
        if self.goal.at_least:
            return self.value >= self.goal.limit
        return self.value <= self.goal.limit


# GPUs with measurements of their own. Of others only the data sheet is known, but for what narrower
# types than bf16 achieve on those that meet their power limit with them (op_power).
_GPUS = (("a100_sxm", "A100"), ("h100_sxm", "H100"))


def _long_kernel(gpu: str, dtype: str | None = None) -> Callable[[ValidatedRow], bool]:
    def counts(item: ValidatedRow) -> bool:
        return (
            item.row.get("gpu") == gpu
            and dtype in (None, item.row.get("dtype"))
            and item.measured is not None
            and item.measured > LONG_KERNEL_US
        )

    return counts


def _data_sheet_product(item: ValidatedRow) -> bool:
    return (
        item.row.get("op") == "gemm"
        and item.row.get("gpu") not in dict(_GPUS)
        and item.row.get("dtype") == "bfloat16"
        and item.measured is not None
        and item.measured > LONG_KERNEL_US
    )


def _large_message(item: ValidatedRow) -> bool:
    return (
        item.row.get("library", "nccl") == "nccl"
        and int(item.row["ranks"]) <= 8
        and float(item.row["bytes"]) >= LARGE_MESSAGE_BYTES
    )


def _tokens_per_second(item: ValidatedRow) -> bool:
    return metric_name(item.row) == "tok_per_s_per_gpu" and item.explicable


def _every(item: ValidatedRow) -> bool:
    return True


def _explicable(item: ValidatedRow) -> bool:
    return item.explicable


def _on(gpu: str, metric: str = "") -> Callable[[ValidatedRow], bool]:
    def counts(item: ValidatedRow) -> bool:
        named = item.row.get("hardware", "").startswith(gpu)
        return named and metric_name(item.row).startswith(metric)

    return counts


def _yes_or_no(item: ValidatedRow) -> bool:
    return item.yes_or_no


def _out_of_memory(item: ValidatedRow) -> bool:
    return item.yes_or_no and item.measured == 0


GOALS = (
    *(
        Goal(
            "op_gemm", f"{name}, bf16, over 20 us", statistic, limit, _long_kernel(gpu, "bfloat16")
        )
        for gpu, name in _GPUS
        for statistic, limit in (("median", 8.0), ("mean", 12.0))
    ),
    *(
        Goal(
            table,
            "bf16 products on GPUs known by data sheet, over 20 us",
            "median",
            20.0,
            _data_sheet_product,
        )
        for table in ("op_gemm", "op_power")
    ),
    *(
        Goal(table, f"{name}, over 20 us", "median", 12.0, _long_kernel(gpu))
        for table in ("op_attention_prefill", "op_attention_decode")
        for gpu, name in _GPUS
    ),
    Goal("op_collectives", "NCCL, up to 8 ranks, from 1 MiB", "median", 12.0, _large_message),
    Goal("op_collectives_dgx", "up to 8 ranks, from 1 MiB", "median", 12.0, _large_message),
    Goal("op_moe", "all", "median", 20.0, _every),
    Goal("train_h100_ultrascale", "tokens/s", "median", 10.0, _tokens_per_second),
    Goal("train_h100_ultrascale", "tokens/s", "90th percentile", 30.0, _tokens_per_second),
    *(
        Goal("fits_memory_h100_ultrascale", rows, "right answers", 95.0, counts, at_least=True)
        for rows, counts in (("all", _yes_or_no), ("out of memory", _out_of_memory))
    ),
    *(
        Goal(table, "all", statistic, limit, _every)
        for table in (
            "train_a100_megatron",
            "memory_and_time_a100_selene",
            "train_a100_literature",
        )
        for statistic, limit in (("mean", 4.0), ("largest", 10.0))
    ),
    Goal("train_4xa100_llama2_7b", "all", "median", 12.0, _every),
    *(
        Goal("inference_llama2_nvidia", name, "mean", limit, _on(name))
        for name, limit in (("A100", 6.0), ("H100", 10.0))
    ),
    *(
        Goal("inference_llama33_70b_nim", f"{name}, {rows}", statistic, limit, counts)
        for name in ("A100", "H100")
        for rows, statistic, limit, counts in (
            ("end to end", "mean", 8.0, _on(name, "e2e_latency")),
            ("between tokens", "mean", 8.0, _on(name, "itl")),
            ("first token", "median", 25.0, _on(name, "ttft")),
        )
    ),
    Goal("inference_llama31_8b_koyeb", "all", "mean", 8.0, _every),
    Goal("inference_opt_uci", "all but its times to the first token", "mean", 12.0, _explicable),
)


def reached(tables: Mapping[str, Sequence[ValidatedRow]]) -> list[Reached]:
    """Every goal whose table is there and has predicted rows; ``tables`` by name."""
    found = []
    for goal in GOALS:
        rows = [item for item in tables.get(goal.table, ()) if goal.counts(item)]
        error = group_error("", rows)
        if error.mean_absolute is not None:
            values = {
                "median": error.median_absolute,
                "mean": error.mean_absolute,
                "90th percentile": error.percentile_90,
                "largest": error.largest,
                "right answers": 100 - error.mean_absolute,
            }
            value = values[goal.statistic]
            assert value is not None  # All statistics are there if one is.
            found.append(Reached(goal, error.predicted, value))
    return found
