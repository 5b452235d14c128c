"""Time of fused attention kernels.

A kernel cuts its work into blocks, a range of queries of one head each, and a bundle (SM) takes
one block after the other (FlashAttention-2, arXiv 2307.08691, 3.2). What bounds it:

- products and exponentials take turns on a bundle: special-function units are so few that a head
  of 64 spends as long on one as on the other (FlashAttention-3, arXiv 2407.08608, 3.1);
- a block has to wait for what it reads first and to write its output, which other blocks on the
  same bundle hide in part;
- causal blocks differ in length, so that bundles end at different times;
- queries, keys, values and outputs come from and go to device memory once; what blocks read again
  comes from the L2 cache.

With a single query per sequence (generation) a block serves all heads that share keys, and keys
are split over bundles that would be idle (Flash-Decoding); reading them is what takes time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import NamedTuple

from deepflow.config.hardware import DTYPE_BYTES
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.workload.operators import FORWARD_PASSES, Attention

KEY_BLOCK = 64  # keys that a block of queries takes at a time

# Bundles end at different times: list scheduling leaves a bundle idle for at most the longest
# block (Graham, "Bounds on multiprocessing timing anomalies", 1969), measured kernels leave three
# quarters of it.
IDLE_AT_END = 0.75

# Elementwise work of the backward pass on a score, in exponentials: what FlashAttention-2 and -3
# need for heads of 64 beside heads of 128 on 16,384 tokens (arXiv 2407.08608, figure 6).
BACKWARD_EXPONENTIALS = 1.6

# Keys from which on splitting a sequence over bundles and adding up their results takes a second
# latency.
SPLIT_KEYS = 512


@dataclass(frozen=True, slots=True)
class AttentionLibrary:
    """What a library's kernels do alike on all GPUs.

    ``query_rows``: queries of a block. ``exposed_transfer``: part of the transfers that no
    arithmetic hides. ``backward_rate``: rate of the backward pass's products over the forward
    pass's; None without a backward pass. ``narrow_rate``: rate of products of one-byte numbers over
    their share of the peak.

    In generation: ``tile_rows``, heads of a group are padded to multiples of it, and
    ``exposed_products``, part of their products that reading keys does not hide.
    ``largest_group``: heads that share keys and are served together; more of them, or one alone,
    take the kernel for single heads. ``single_latency``, ``narrow_latency``: latency of its
    blocks, and of blocks with keys of one byte, over that of others.
    """

    query_rows: int
    exposed_transfer: float
    backward_rate: float | None
    tile_rows: int
    exposed_products: float
    narrow_rate: float = 1.0
    largest_group: int | None = None
    single_latency: float = 1.0
    narrow_latency: float = 1.0


LIBRARIES = {
    # Backward rates: figures 5 and 6 of arXiv 2407.08608 at 16,384 tokens; FlashAttention-2 on the
    # A100 agrees (arXiv 2307.08691, abstract: 73 % of the peak forward, 63 % backward).
    "flash_attention_2": AttentionLibrary(
        query_rows=128,
        exposed_transfer=0.0,
        backward_rate=0.79,
        tile_rows=64,
        exposed_products=0.75,
    ),
    "flash_attention_3": AttentionLibrary(
        query_rows=128,
        exposed_transfer=0.0,
        backward_rate=0.72,
        tile_rows=64,
        exposed_products=0.0,
    ),
    # Generation: XQA kernels for groups of 2 to 32 heads, else the masked multi-head kernel.
    "tensorrt_llm": AttentionLibrary(
        query_rows=64,
        exposed_transfer=0.5,
        backward_rate=None,
        tile_rows=16,
        exposed_products=1.0,
        narrow_rate=0.85,
        largest_group=32,
        single_latency=0.3,
        narrow_latency=0.12,
    ),
}

PROMPT_RESIDENTS = 3  # blocks that share a bundle and hide each other's latency

# Latency that a further head of a group adds to a block in generation, over that of the block.
LATENCY_PER_HEAD = 0.02


class AttentionCost(NamedTuple):
    """Time in seconds, what bounds it ("compute" or the memory's name), traffic of the memory."""

    time: float
    bound: str
    dram_bytes: float


class AttentionLimits(NamedTuple):
    """What bounds attention on a device with a library, flat and quick to hash."""

    library: str
    flops: float  # FLOP/s of products
    warp_flops: float  # FLOP/s of products by instructions of single warps
    exponentials: float  # 1/s
    bundles: int
    block_latency: float  # s
    bandwidth: float  # bytes/s of device memory
    memory_latency: float  # s
    memory: str


def attention_limits(
    hardware: Hardware, library: str | None = None, dtype: str | None = None
) -> AttentionLimits:
    """Limits with ``library`` and products in ``dtype`` (default: those of ``sw_param``).

    Raises:
        ConfigError: the device has no rate for ``dtype``.
        InfeasiblePoint: the core or the memory has no throughput.
    """
    config, core = hardware.config, hardware.accelerator.core
    technology, software = config.tech_param.core, config.sw_param
    library = library or software.attention_library
    flops = core.peak_flops * technology.attention_fraction(library)
    if dtype is not None:
        rates = technology.precision_rates.supported
        if dtype not in rates:
            raise ConfigError(f"tech_param.core.precision_rates.{dtype} is missing")
        flops *= rates[dtype] / (1.0 if software.dtype is None else rates[software.dtype])
    if DTYPE_BYTES[dtype or software.dtype or "bf16"] == 1:
        flops *= LIBRARIES[library].narrow_rate
    if flops <= 0:
        raise InfeasiblePoint("the core has no throughput")
    memory = hardware.accelerator.memory[-1]
    if memory.bandwidth <= 0:
        raise InfeasiblePoint(f"memory level {memory.name} has no bandwidth")
    per_cycle = technology.special_functions_per_cycle
    return AttentionLimits(
        library,
        flops,
        core.peak_flops * technology.warp_matrix_rate,
        inf if per_cycle is None else per_cycle * core.num_bundles * core.operating_frequency,
        core.num_bundles,
        technology.attention_block_latency,
        memory.bandwidth,
        memory.latency,
        memory.name,
    )


def attention_cost(
    operator: Attention,
    limits: AttentionLimits,
    element_bytes: float,
    key_bytes: float,
    *,
    prompt: bool = False,
) -> AttentionCost:
    """Cost of an attention kernel, without its launch.

    ``element_bytes``: bytes of an element of queries and outputs, ``key_bytes`` of keys and values.
    ``prompt``: a single query, too, goes through the kernel that is made for many.

    Raises:
        ConfigError: the library has no backward pass.
    """
    generates = operator.query_len == 1 and operator.passes == FORWARD_PASSES and not prompt
    return _cost(replace(operator, name=""), limits, element_bytes, key_bytes, generates)


@lru_cache(maxsize=1 << 14)
def _cost(
    operator: Attention,
    limits: AttentionLimits,
    element_bytes: float,
    key_bytes: float,
    generates: bool,
) -> AttentionCost:
    queries, keys = _elements(operator)
    moved = queries * element_bytes + keys * key_bytes
    transfer = moved / limits.bandwidth + limits.memory_latency
    if generates:
        compute, transfer = _generation(operator, limits, transfer, keys, key_bytes)
    else:
        compute = _prompt(operator, limits) + LIBRARIES[limits.library].exposed_transfer * transfer
        transfer += limits.block_latency
    bound = "compute" if compute >= transfer else limits.memory
    return AttentionCost(max(compute, transfer), bound, moved)


def _elements(operator: Attention) -> tuple[float, float]:
    """Elements moved of queries and outputs, and of keys and values; backward, with gradients."""
    seen = operator.kv_len
    if operator.window is not None:
        seen = min(seen, operator.window + operator.query_len - 1)
    width = operator.head_dim + operator.value_dim
    queries = operator.batch * operator.query_len * operator.heads / operator.shards
    keys = float(operator.batch * seen * operator.kv_heads * width)
    if operator.passes == FORWARD_PASSES:
        return queries * width, keys
    return queries * (2 * width + operator.value_dim), 2 * keys


def _flops_per_score(operator: Attention) -> float:
    """FLOP of all products for a score of one head."""
    passes = operator.passes
    return 2.0 * (operator.head_dim * -(-passes // 2) + operator.value_dim * (passes // 2))


def _prompt(operator: Attention, limits: AttentionLimits) -> float:
    """Seconds of blocks of queries on all bundles, memory apart."""
    library = LIBRARIES[limits.library]
    rows = library.query_rows
    blocks, visited, longest = _blocks(operator, rows)
    products, exponentials = 1.0, 1.0
    if operator.passes != FORWARD_PASSES:
        if library.backward_rate is None:
            raise ConfigError(
                f"sw_param.attention_library {limits.library} has no backward pass; choose"
                " flash_attention_2 or flash_attention_3"
            )
        products, exponentials = 1 / library.backward_rate, BACKWARD_EXPONENTIALS
    # Seconds of all bundles together for one key and all queries of a block.
    per_key = rows * (
        products * _flops_per_score(operator) / limits.flops + exponentials / limits.exponentials
    )
    heads = operator.batch * operator.heads / operator.shards
    waiting = blocks * limits.block_latency / (PROMPT_RESIDENTS * limits.bundles)
    alone = limits.block_latency + longest * per_key * limits.bundles
    return max(alone, heads * (waiting + visited * per_key) + IDLE_AT_END * alone)


def _blocks(operator: Attention, rows: int) -> tuple[int, float, float]:
    """Blocks of queries of one head, keys that all of them take, and keys of the longest.

    Blocks are counted from the last query, so that more queries only add to them.
    """
    step = rows // KEY_BLOCK
    blocks = -(-operator.query_len // rows)
    most = -(-operator.kv_len // KEY_BLOCK)
    if operator.window is not None:
        most = min(most, -(-(operator.window + rows - 1) // KEY_BLOCK))
    if not operator.causal:
        return blocks, float(blocks * most * KEY_BLOCK), float(most * KEY_BLOCK)
    # Block j ends at key kv_len - j rows: the first ones take as many as the window lets them.
    last = max(-(-operator.kv_len // KEY_BLOCK), (blocks - 1) * step + 1)
    full = min(blocks, (last - most) // step + 1)
    rest = blocks - full
    taken = full * most + rest * last - step * rest * (full + blocks - 1) / 2
    return blocks, taken * KEY_BLOCK, float(most * KEY_BLOCK)


def _generation(
    operator: Attention,
    limits: AttentionLimits,
    transfer: float,
    key_elements: float,
    key_bytes: float,
) -> tuple[float, float]:
    """Seconds that blocks and that memory need for one query per sequence.

    ``transfer``: seconds of reading and writing everything once; ``key_elements``: of all keys and
    values, each of ``key_bytes``.
    """
    library = LIBRARIES[limits.library]
    keys = operator.kv_len if operator.window is None else min(operator.kv_len, operator.window)
    sequences = operator.batch / operator.shards
    streams, group = operator.kv_heads, operator.heads / operator.kv_heads
    largest = library.largest_group
    if largest is not None and (group <= 1 or group > largest):
        # Every head reads the keys for itself.
        streams = operator.heads
        transfer += key_elements * key_bytes * (group - 1) / limits.bandwidth
        relative_latency = library.single_latency
    else:
        rows = library.tile_rows * -(-operator.heads // (operator.kv_heads * library.tile_rows))
        per_score = _flops_per_score(operator) / limits.warp_flops + 1 / limits.exponentials
        transfer += library.exposed_products * sequences * streams * rows * keys * per_score
        relative_latency = library.narrow_latency if key_bytes < 2 else 1.0
        relative_latency += LATENCY_PER_HEAD * group
    latency = limits.block_latency * relative_latency
    waves = sequences * streams * latency / limits.bundles
    latency *= 1 + min(1.0, keys / SPLIT_KEYS)
    return max(latency, waves), transfer + latency
