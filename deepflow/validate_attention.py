"""Predictions for measured attention kernels (``op`` is attention_prefill or attention_decode).

A row is a call of a serving framework's attention as aiconfigurator's benchmarks measure it
(github.com/ai-dynamo/aiconfigurator, collector/): projected queries, keys and values come in, new
keys and values go to the cache, the kernel runs. One call is one CUDA graph that is replayed
between two events.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepflow.cost.attention import attention_cost, attention_limits
from deepflow.cost.roofline import roofline_time
from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware
from deepflow.workload.operators import Attention

# What replaying a graph takes beside the launches of its kernels.
GRAPH_REPLAY = 0.7e-6  # s

TENSORRT_LLM = "tensorrt_llm"
FLASH_ATTENTION = "flash_attention"
LIBRARIES = {
    "torch_flow": TENSORRT_LLM,
    "flash_attention": FLASH_ATTENTION,
    "vllm_flash_attn": FLASH_ATTENTION,
    "fa3": "flash_attention_3",
    "vllm_flash_attn_fa3": "flash_attention_3",
    "vllm_flash_attn_fa4": "flash_attention_3",
}
BYTES = {"bfloat16": 2, "float16": 2, "fp8": 1}


def predicted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of the row's call.

    Raises:
        DeepFlowError: the row's kernel or data type is not modelled, or not on this device.
    """
    library = _library(row.get("kernel_source") or FLASH_ATTENTION, hardware)
    for name in ("attn_dtype", "kv_cache_dtype"):
        if row[name] not in BYTES:
            raise DeepFlowError(f"{name} {row[name]!r} is not one of {', '.join(BYTES)}")
    key_bytes = BYTES[row["kv_cache_dtype"]]
    # Kernels multiply in the cache's type, to which queries are converted.
    dtype = "fp8" if 1 in (BYTES[row["attn_dtype"]], key_bytes) else "bf16"
    head_dim, heads, kv_heads = (
        int(row[name]) for name in ("head_dim", "num_heads", "num_kv_heads")
    )
    operator = Attention(
        "attention",
        int(row["batch"]),
        heads,
        kv_heads,
        int(row["q_len"]),
        int(row["kv_len"]),
        head_dim,
        head_dim,
        window=int(row.get("window_size") or 0) or None,
    )
    limits = attention_limits(hardware, library, dtype)
    dtype_fp8 = "fp8" in hardware.config.tech_param.core.precision_rates.supported
    query_bytes = BYTES[row["attn_dtype"]]
    prompt = row["op"] == "attention_prefill"
    exact = library == TENSORRT_LLM and prompt
    kernel = attention_cost(operator, limits, query_bytes, key_bytes, prompt=exact)

    # New keys and values are copied to the cache. TensorRT-LLM gets queries in one tensor with
    # them, rotates them and writes them to another.
    kernels = 2
    tokens = operator.batch * operator.query_len
    moved = 2.0 * kv_heads * (BYTES["bfloat16"] + key_bytes)
    if library == TENSORRT_LLM:
        moved += heads * (BYTES["bfloat16"] + query_bytes)
        if prompt and dtype_fp8:
            kernels += 1
        if key_bytes < query_bytes and prompt:
            kernels += 1
            moved += heads * (query_bytes + key_bytes)
    elif "vllm" in row["kernel_source"]:
        kernels += 1
    copied = roofline_time(hardware.accelerator, 0.0, tokens * head_dim * moved)
    launches = kernels * hardware.config.sw_param.kernel_launch_overhead
    return GRAPH_REPLAY + launches + copied + kernel.time


def _library(source: str, hardware: Hardware) -> str:
    if source not in LIBRARIES:
        raise DeepFlowError(f"attention kernels of {source!r} are not modelled")
    library = LIBRARIES[source]
    if library != FLASH_ATTENTION:
        return library
    rates = hardware.config.tech_param.core.attention_rates
    return "flash_attention_2" if rates.flash_attention_3 is None else "flash_attention_3"
