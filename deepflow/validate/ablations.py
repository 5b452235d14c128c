"""Mechanisms of the model that can be switched off, to see what each is good for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deepflow.record import record


@record(frozen=True)
class Ablation:
    """``name`` is that of a folder, ``without`` what is gone, ``settings`` hardware keys.

    ``operations`` are the kinds of rows that it can change: values of ``op``, or "train".
    """

    name: str
    without: str
    settings: Mapping[str, object]
    operations: frozenset[str]

    @property
    def options(self) -> list[str]:
        """The options of ``deepflow validate`` that make it."""
        return [f"hardware.{path}={_text(value)}" for path, value in self.settings.items()]

    def concerns(self, rows: Iterable[Mapping[str, str]]) -> bool:
        """Whether it can change the prediction of any of ``rows``."""
        return any(row.get("op", "train") in self.operations for row in rows)


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


_GEMM = frozenset({"gemm", "moe", "train"})
_ATTENTION = frozenset({"attention_prefill", "attention_decode", "train"})
_COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv", "train"}
)
_TRAINING = frozenset({"train"})
_EVERY = _GEMM | _ATTENTION | _COLLECTIVES

ABLATIONS = (
    Ablation(
        "blocks",
        "blocks of products in whole waves over the SMs",
        {"tech_param.core.whole_waves": False},
        _GEMM,
    ),
    Ablation(
        "launch",
        "launch overhead of kernels",
        {"sw_param.kernel_launch_overhead": 0},
        _EVERY,
    ),
    Ablation(
        "exponentials",
        "rate of exponentials in attention",
        {"tech_param.core.special_functions_per_cycle": None},
        _ATTENTION,
    ),
    Ablation(
        "link_latency",
        "latency of links",
        {
            "tech_param.network.intra_node.latency": 0,
            "tech_param.network.inter_node.latency": 0,
        },
        _COLLECTIVES,
    ),
    Ablation(
        "host",
        "time of the host to issue kernels",
        {"sw_param.host_time_per_kernel": 0},
        _TRAINING,
    ),
    Ablation(
        "gradient_overlap",
        "gradients reduced beside the last backward pass: they come after it",
        {"scheduling_param.overlap_gradient_reduction": False},
        _TRAINING,
    ),
    Ablation(
        "fusion",
        "a kernel per operation: all steps fused",
        {"sw_param.kernel_fusion": "fused"},
        _TRAINING,
    ),
    Ablation(
        "unfused_attention",
        "attention that writes its scores to memory: fused everywhere",
        {"sw_param.attention_kernel": "fused"},
        _TRAINING,
    ),
)
