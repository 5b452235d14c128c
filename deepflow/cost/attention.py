"""Time of fused attention kernels.

A kernel cuts its work into blocks, a range of queries of one head each, and a bundle (SM) takes
one block after the other (FlashAttention-2, arXiv 2307.08691, 3.2). What bounds it:

- products and exponentials take turns on a bundle: special-function units are so few that a head
  of 64 spends as long on one as on the other (FlashAttention-3, arXiv 2407.08608, 3.1);
- a block waits for what it reads first and writes its output last, which other blocks on the same
  bundle hide in part;
- causal blocks differ in length, so that bundles end at different times;
- queries, keys, values and outputs come from and go to device memory once; what blocks read again
  comes from the cache.

With a single query per sequence (generation) a block serves all heads that share keys, and keys
are split over bundles that would be idle (Flash-Decoding); reading them is what takes time.

Constants without another source hold for all devices: they were chosen, in round figures, to make
the errors small over all kernels of the tables op_attention_prefill and op_attention_decode on
A100 and H100 together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from deepflow.config.hardware import DTYPE_BYTES
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.workload.operators import FORWARD_PASSES, FP32, Attention

KEY_BLOCK = 64  # keys that a block of queries takes at a time

# Asynchronous matrix instructions are issued by groups of four warps, 64 rows each; kernels that
# use them have two groups on a block (arXiv 2407.08608, 3.1).
ASYNCHRONOUS_ROWS = 128

PROMPT_RESIDENTS = 2  # blocks that share a bundle and hide each other's latency

# Part of the longest block that bundles idle at the end on average. List scheduling leaves at most
# all of it (Graham, "Bounds on multiprocessing timing anomalies", 1969).
IDLE_AT_END = 0.65

# Elementwise work of the backward pass on a score, in exponentials: what FlashAttention-2 and -3
# need for heads of 64 beside heads of 128 on 16,384 tokens (arXiv 2407.08608, figure 6).
BACKWARD_EXPONENTIALS = 1.6

# Generation: latency of a block on a device with little else to do over that on a busy one; keys
# from which on splitting them over bundles and adding up the results doubles it; rate of keys that
# heads read again over that of device memory.
IDLE_LATENCY = 0.7
SPLIT_KEYS = 512
CACHED_SPEEDUP = 2.0


@dataclass(frozen=True, slots=True)
class AttentionLibrary:
    """What a library's kernels do alike on all devices.

    ``query_rows``: queries of a block, with matrix instructions of single warps.
    ``exposed_transfer``: part of the transfers that no arithmetic hides. ``backward_rate``: rate of
    the backward pass's products over the forward pass's; None: no backward pass. ``narrow_rate``:
    rate of products of one-byte numbers over their share of the peak. ``packs_groups``: a block
    takes queries of all heads that share keys where those of one head do not fill it.

    Generation: ``tile_rows``: the heads of a group are padded to multiples of it.
    ``exposed_products``: part of their products that reading keys does not hide.
    ``latency``: latency of blocks over that of prompts, ``narrow_latency``: with keys of one byte;
    ``latency_per_head``: what each head of a group adds to it. ``largest_group``: heads that share
    keys and are served together. More of them, or one alone, take the kernel for single heads, of
    whose blocks ``single_residents`` share a bundle, and which needs ``single_conversion`` of the
    time that it takes to read keys of one byte to convert them.
    """

    query_rows: int
    backward_rate: float | None
    tile_rows: int
    exposed_products: float
    exposed_transfer: float = 0.0
    narrow_rate: float = 1.0
    packs_groups: bool = False
    latency: float = 1.0
    narrow_latency: float = 1.0
    latency_per_head: float = 0.0
    largest_group: int | None = None
    single_residents: float = 1.0
    single_conversion: float = 0.0


LIBRARIES = {
    # Backward rates: figures 5 and 6 of arXiv 2407.08608 at 16,384 tokens. FlashAttention-2 on the
    # A100 agrees (arXiv 2307.08691, abstract: 73 % of the peak forward, 63 % backward).
    "flash_attention_2": AttentionLibrary(
        query_rows=128, backward_rate=0.79, tile_rows=64, exposed_products=1.0
    ),
    "flash_attention_3": AttentionLibrary(
        query_rows=128,
        backward_rate=0.72,
        tile_rows=64,
        exposed_products=0.0,
        narrow_rate=0.75,
        packs_groups=True,
    ),
    # For inference only. Generation: XQA kernels for groups of 2 to 32 heads, else the masked
    # multi-head kernel.
    "tensorrt_llm": AttentionLibrary(
        query_rows=64,
        backward_rate=None,
        tile_rows=16,
        exposed_products=0.3,
        exposed_transfer=0.3,
        narrow_rate=0.85,
        narrow_latency=0.2,
        latency_per_head=0.01,
        largest_group=32,
        single_residents=3.4,
        single_conversion=0.3,
    ),
    # TensorRT-LLM's and FlashInfer's kernels for Blackwell, for inference only.
    "trtllm_gen": AttentionLibrary(
        query_rows=128,
        backward_rate=None,
        tile_rows=16,
        exposed_products=0.0,
        exposed_transfer=0.3,
        narrow_rate=0.85,
        latency=0.2,
        narrow_latency=0.2,
        latency_per_head=0.01,
    ),
}


class AttentionCost(NamedTuple):
    """Time in seconds, what bounds it ("compute" or the memory's name), traffic of the memory."""

    time: float
    bound: str
    dram_bytes: float


class AttentionLimits(NamedTuple):
    """What bounds attention on a device with a library, flat and quick to hash."""

    library: str
    flops: float  # FLOP/s of products
    warp_flops: float  # FLOP/s of products by instructions of single warps, at most
    exponentials: float  # 1/s
    asynchronous: bool  # the device has matrix instructions of several warps
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
    library = technology.kernels_of(library or software.attention_library)
    relative = 1.0
    if dtype is not None:
        rates = technology.precision_rates.supported
        if dtype not in rates:
            raise ConfigError(f"tech_param.core.precision_rates.{dtype} is missing")
        relative = rates[dtype] / (1.0 if software.dtype is None else rates[software.dtype])
    # ``attention_flops`` knows the clock of long runs and the bundles that communicate.
    peak = core.attention_flops / technology.attention_fraction(software.attention_library)
    peak *= relative
    if peak <= 0:
        raise InfeasiblePoint("the core has no throughput")
    memory = hardware.accelerator.memory[-1]
    if memory.bandwidth <= 0:
        raise InfeasiblePoint(f"memory level {memory.name} has no bandwidth")
    dtype = dtype or software.dtype
    narrow = dtype is not None and DTYPE_BYTES[dtype] <= 1
    per_cycle = technology.special_functions_per_cycle
    return AttentionLimits(
        library,
        peak
        * technology.attention_fraction(library)
        * (LIBRARIES[library].narrow_rate if narrow else 1.0),
        peak * technology.warp_matrix_rate,
        inf if per_cycle is None else per_cycle * core.num_bundles * core.operating_frequency,
        technology.warp_matrix_rate < 1,
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
    library = LIBRARIES[limits.library]
    queries = operator.batch * operator.query_len * operator.heads / operator.shards
    keys = float(operator.batch * operator.kv_heads * _keys_seen(operator))
    width = operator.head_dim + operator.value_dim
    # Forward: queries, outputs, keys and values; backward: queries, gradients of outputs, keys and
    # values, and the gradients of these two.
    forward = operator.passes == FORWARD_PASSES
    of_keys = operator.head_dim if operator.latent else width
    moved = width * queries * element_bytes + of_keys * keys * key_bytes * (1 if forward else 2)
    apart = 0.0
    if not forward:
        # Before it, a kernel multiplies outputs by their gradients; behind it, one converts the
        # gradient of queries, which has been summed up in 32 bits.
        apart = queries * (
            2 * operator.value_dim * element_bytes + operator.head_dim * (2 * FP32 + element_bytes)
        )
    transfer = moved / limits.bandwidth + limits.memory_latency
    compute = _prompt(operator, limits) + library.exposed_transfer * transfer
    memory = transfer + limits.block_latency
    if operator.query_len == 1 and forward and not prompt:
        # Where the kernel of prompts is the faster one, it is taken.
        ways = [
            (compute, memory),
            _generation(operator, limits, transfer, keys * of_keys, key_bytes),
        ]
        compute, memory = min(ways, key=max)
    bound = "compute" if compute >= memory else limits.memory
    return AttentionCost(max(compute, memory) + apart / limits.bandwidth, bound, moved + apart)


def _keys_seen(operator: Attention) -> int:
    """Keys of a sequence that any query of it sees."""
    if operator.window is None:
        return operator.kv_len
    return min(operator.kv_len, operator.window + operator.query_len - 1)


def _flops_per_score(operator: Attention) -> float:
    """FLOP of all products for a score of one head."""
    passes = operator.passes
    return 2.0 * (operator.head_dim * -(-passes // 2) + operator.value_dim * (passes // 2))


def _prompt(operator: Attention, limits: AttentionLimits) -> float:
    """Seconds of blocks of queries on all bundles, memory apart."""
    library = LIBRARIES[limits.library]
    rows = ASYNCHRONOUS_ROWS if limits.asynchronous else library.query_rows
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
    blocks, keys, longest = _blocks(operator, rows)
    waiting = blocks * limits.block_latency / (PROMPT_RESIDENTS * limits.bundles)
    alone = limits.block_latency + longest * per_key * limits.bundles
    heads = float(operator.heads)
    if library.packs_groups and operator.query_len < rows:
        heads = operator.kv_heads * -(
            -operator.heads * operator.query_len // (operator.kv_heads * rows)
        )
    heads *= operator.batch / operator.shards
    return max(alone, heads * (waiting + keys * per_key) + IDLE_AT_END * alone)


def _blocks(operator: Attention, rows: int) -> tuple[int, float, float]:
    """Blocks of queries of one head, keys that all of them take, and keys of the longest.

    Blocks are counted from the last query, so that more queries only add to them.
    """
    step = rows // KEY_BLOCK
    blocks = -(-operator.query_len // rows)
    last = -(-operator.kv_len // KEY_BLOCK)
    if operator.causal:
        last = max(last, (blocks - 1) * step + 1)
    most = last
    if operator.window is not None:
        # A window need not begin where a block of keys does.
        most = min(most, -(-(operator.window + rows - 1) // KEY_BLOCK) + 1)
    taken = blocks * most
    if operator.causal:
        # Block j from the end takes what ends at key block last - j step, or as much of it as the
        # window lets it.
        full = min(blocks, (last - most) // step + 1)
        rest = blocks - full
        taken = full * most + rest * last - step * rest * (full + blocks - 1) // 2
    return blocks, float(taken * KEY_BLOCK), float(most * KEY_BLOCK)


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
    keys = _keys_seen(operator)
    sequences = operator.batch / operator.shards
    streams, group = operator.kv_heads, operator.heads / operator.kv_heads
    waiting, residents = library.latency, 1.0
    largest = library.largest_group
    if largest is not None and not operator.latent and (group <= 1 or group > largest):
        # Every head reads the keys for itself.
        streams, residents = operator.heads, library.single_residents
        once = key_elements * key_bytes / limits.bandwidth
        transfer += once * (group - 1) / CACHED_SPEEDUP
        if key_bytes < 2:
            transfer += once * library.single_conversion
    else:
        rows = library.tile_rows * -(-operator.heads // (operator.kv_heads * library.tile_rows))
        per_score = _flops_per_score(operator) / limits.warp_flops + 1 / limits.exponentials
        transfer += library.exposed_products * sequences * streams * rows * keys * per_score
        waiting = library.narrow_latency if key_bytes < 2 else library.latency
        waiting += library.latency_per_head * group
    latency = limits.block_latency * waiting
    waves = sequences * streams * latency / (residents * limits.bundles)
    latency *= IDLE_LATENCY * (1 + min(1.0, keys / SPLIT_KEYS))
    return max(latency, waves), transfer + latency
