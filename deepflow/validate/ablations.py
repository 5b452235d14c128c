"""Mechanisms of the model that can be switched off, to see what each is good for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deepflow.record import record
from deepflow.validate.rows import kind_of


@record(frozen=True)
class Ablation:
    """``name`` is that of a file, ``without`` what is gone, ``settings`` hardware keys.

    ``kinds`` of rows are those that it can change: see ``rows.kind_of``.
    """

    name: str
    without: str
    settings: Mapping[str, object]
    kinds: frozenset[str]

    @property
    def options(self) -> list[str]:
        """The options of ``deepflow validate`` that make it."""
        return [f"hardware.{path}={_text(value)}" for path, value in self.settings.items()]

    def concerns(self, rows: Iterable[Mapping[str, str]]) -> bool:
        """Whether it can change the prediction of any of ``rows``."""
        return any(kind_of(row) in self.kinds for row in rows)


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


_GEMM = frozenset({"gemm", "moe", "time"})
_ATTENTION = frozenset({"attention_prefill", "attention_decode", "time"})
_COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv", "time"}
)
_TIME = frozenset({"time"})
_TIME_AND_MEMORY = frozenset({"time", "memory"})
_EVERY = _GEMM | _ATTENTION | _COLLECTIVES

_INTRA, _INTER = "tech_param.network.intra_node", "tech_param.network.inter_node"

ABLATIONS = (
    Ablation(
        "blocks",
        "products in blocks of whole waves over the SMs",
        {"tech_param.core.whole_waves": False},
        _GEMM,
    ),
    Ablation(
        "shared_blocks",
        "the wait of SMs that share a block's inner dimension",
        {"tech_param.core.split_latency": 0},
        _GEMM,
    ),
    Ablation(
        "epilogue",
        "the part of writing a product that no arithmetic hides",
        {"tech_param.core.exposed_epilogue": 0},
        _GEMM,
    ),
    Ablation(
        "clock",
        "the lower clock of long runs",
        {"tech_param.core.sustained_frequency": None},
        _TIME,
    ),
    Ablation(
        "launch",
        "the launch overhead of kernels",
        {"sw_param.kernel_launch_overhead": 0},
        _EVERY,
    ),
    Ablation(
        "exponentials",
        "the rate of exponentials in attention",
        {"tech_param.core.special_functions_per_cycle": None},
        _ATTENTION,
    ),
    Ablation(
        "attention_latency",
        "the time in which a block of attention waits for its first reads",
        {"tech_param.core.attention_block_latency": 0},
        _ATTENTION,
    ),
    Ablation(
        "link_latency",
        "the latency of links",
        {f"{_INTRA}.latency": 0, f"{_INTER}.latency": 0},
        _COLLECTIVES,
    ),
    Ablation(
        "handshake",
        "the time to hand over a chunk of a collective",
        {f"{_INTRA}.handshake": 0, f"{_INTER}.handshake": 0},
        _COLLECTIVES,
    ),
    Ablation(
        "switch_reduction",
        "reductions inside switches",
        {f"{_INTRA}.reduction_util": 0, f"{_INTER}.reduction_util": 0},
        _COLLECTIVES,
    ),
    Ablation(
        "phases_in_turns",
        "phases of an all-reduce within and between nodes one after the other",
        {f"{_INTER}.in_turns": False},
        _COLLECTIVES,
    ),
    Ablation(
        "host",
        "the time of the host to issue kernels and collectives",
        {"sw_param.host_time_per_kernel": 0, "sw_param.host_time_per_collective": 0},
        _TIME,
    ),
    Ablation(
        "checks",
        "the host's check of each collective with all ranks",
        {"sw_param.host_time_per_rank": 0, "sw_param.host_time_per_remote_rank": 0},
        _TIME,
    ),
    Ablation(
        "host_update",
        "the time of the host to update tensor by tensor",
        {
            "sw_param.host_time_per_tensor": 0,
            "sw_param.host_time_per_sharded_tensor": 0,
            "sw_param.host_time_per_gathered_shard": 0,
        },
        _TIME,
    ),
    Ablation(
        "stage_cut",
        "stages cut by work so far: equal numbers of layers",
        {"scheduling_param.stage_balance": "layers"},
        _TIME_AND_MEMORY,
    ),
    Ablation(
        "tensor_overlap",
        "collectives of the tensor group beside products",
        {"scheduling_param.overlap_tensor_communication": "none"},
        _TIME,
    ),
    Ablation(
        "buckets",
        "gradients in buckets, each with a collective and kept in memory",
        {"scheduling_param.gradient_bucket": None},
        _TIME_AND_MEMORY,
    ),
    Ablation(
        "late_reduction",
        "with ZeRO 1, all gradients to all devices after the last pass",
        {"scheduling_param.zero_1_reduction": "reduce_scatter"},
        _TIME,
    ),
    Ablation(
        "early_sharding",
        "how early libraries gather weights (ZeRO 3): layer by layer, ahead, once for each pass",
        {
            "scheduling_param.zero_3_unit": "layer",
            "scheduling_param.zero_3_reduction": "reduce_scatter",
            "scheduling_param.release_distance": None,
            "scheduling_param.overlap_parameter_gather": True,
        },
        _TIME,
    ),
    Ablation(
        "allocator",
        "memory of the allocator, driver and libraries",
        {"sw_param.allocator_overhead": 0, "sw_param.reserved_memory": 0},
        frozenset({"memory"}),
    ),
    Ablation(
        "fusion",
        "kernels of single operations: all steps are fused",
        {"sw_param.kernel_fusion": "fused"},
        _TIME_AND_MEMORY,
    ),
    Ablation(
        "unfused_attention",
        "attention that writes its scores to memory: it is fused everywhere",
        {"sw_param.attention_kernel": "fused"},
        _TIME_AND_MEMORY,
    ),
    Ablation(
        "gradient_overlap",
        "gradients reduced beside the last backward pass: they come after it",
        {"scheduling_param.overlap_gradient_reduction": False},
        _TIME,
    ),
)
