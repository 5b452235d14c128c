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

# What replaying a graph takes beside the launches of its kernels (shortest calls of both tables).
GRAPH_REPLAY = 1.5e-6  # s

TENSORRT_LLM = "tensorrt_llm"
FLASHINFER = "flashinfer"
FLASH_ATTENTION = "flash_attention"
LIBRARIES = {
    "torch_flow": TENSORRT_LLM,
    "vllm_flashinfer": FLASHINFER,
    "flashinfer": FLASHINFER,
    "trtllm_mha": FLASHINFER,
    "flash_attention": FLASH_ATTENTION,
    "vllm_flash_attn": FLASH_ATTENTION,
    "fa3": "flash_attention_3",
    "vllm_flash_attn_fa3": "flash_attention_3",
    "vllm_flash_attn_fa4": "flash_attention_3",
}
BYTES = {"bfloat16": 2, "float16": 2, "fp8": 1}
BF16 = 2  # bytes of what goes into a call


def predicted_seconds(row: Mapping[str, str], hardware: Hardware) -> float:
    """Time of the row's call.

    Raises:
        DeepFlowError: the row's kernel or data type is not modelled, or not on this device.
    """
    library = _library(row.get("kernel_source") or FLASH_ATTENTION, hardware)
    dtypes = {"attn_dtype": row["attn_dtype"]}
    dtypes["kv_cache_dtype"] = row.get("kv_cache_dtype") or row["attn_dtype"]
    for name, dtype in dtypes.items():
        if dtype not in BYTES:
            raise DeepFlowError(f"{name} {dtype!r} is not one of {', '.join(BYTES)}")
    element_bytes, key_bytes = (BYTES[dtype] for dtype in dtypes.values())
    # Kernels multiply in the cache's type, to which queries are converted.
    limits = attention_limits(
        hardware, library, "fp8" if min(element_bytes, key_bytes) == 1 else None
    )
    head_dim = int(row["head_dim"])
    operator = Attention(
        "attention",
        int(row["batch"]),
        int(row["num_heads"]),
        int(row["num_kv_heads"]),
        int(row["q_len"]),
        int(row["kv_len"]),
        head_dim,
        head_dim,
        window=int(row.get("window_size") or 0) or None,
    )
    # Only TensorRT-LLM has a prompt of one token go through the kernel of prompts.
    prompt = row["op"] == "attention_prefill"
    fused = LIBRARIES.get(row.get("kernel_source", "")) == TENSORRT_LLM
    kernel = attention_cost(operator, limits, element_bytes, key_bytes, prompt=prompt and fused)

    # A kernel copies new keys and values to the cache. TensorRT-LLM gets queries in one tensor with
    # them, rotates them and writes them to another; prompts need a kernel more to convert queries,
    # and one more with asynchronous instructions. Others add up the parts of split sequences in a
    # kernel of its own.
    kernels = 2
    copied = 2 * operator.kv_heads * (BF16 + key_bytes)
    if fused:
        copied += operator.heads * (BF16 + element_bytes)
        if prompt:
            kernels += limits.asynchronous
            if key_bytes < element_bytes:
                kernels += 1
                copied += operator.heads * (element_bytes + key_bytes)
    elif not prompt:
        kernels += 1
    tokens = operator.batch * operator.query_len
    return (
        GRAPH_REPLAY
        + kernels * hardware.config.sw_param.kernel_launch_overhead
        + roofline_time(hardware.accelerator, 0.0, tokens * head_dim * copied)
        + kernel.time
    )


def _library(source: str, hardware: Hardware) -> str:
    """The library behind the row's ``kernel_source``; some have kernels for each kind of device."""
    if source not in LIBRARIES:
        raise DeepFlowError(f"attention kernels of {source!r} are not modelled")
    library = LIBRARIES[source]
    rates = hardware.config.tech_param.core.attention_rates
    if library == FLASH_ATTENTION:
        return "flash_attention_2" if rates.flash_attention_3 is None else "flash_attention_3"
    if library in (FLASHINFER, TENSORRT_LLM) and rates.trtllm_gen is not None:
        return "trtllm_gen"
    if library == FLASHINFER:
        raise DeepFlowError("FlashInfer's kernels are modelled where they are those of trtllm_gen")
    return library
