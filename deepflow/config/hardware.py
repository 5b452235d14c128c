"""What it runs on: the keys of a hardware file.

Attribute names are the YAML keys with ``-`` written as ``_``. Keys that stand in several
levels of the original format keep their place. A key whose default is ``None`` is either
derived from technology and budgets (see ``deepflow/hardware``) or switched off.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

from deepflow.config.option import option
from deepflow.record import record

GIB = 2**30

# Dimensions of the parallel array of devices: kernel (tensor) twice, data, layers (pipeline).
PARALLEL_DIMENSIONS = ("kp1", "kp2", "dp", "lp")
LAYOUTS = ("none", "auto", *("-".join(order) for order in permutations(PARALLEL_DIMENSIONS)))

# Bytes of an element of each data type that matrix units multiply. TF32 is kept as FP32.
DTYPE_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": 0.5, "int8": 1}

# Bytes of a weight in narrow types that are only stored, with their scales: 2 bytes for 128 weights
# of int4 (AWQ, arXiv 2306.00978), 1 byte for 16 of fp4 (NVFP4).
STORED_BYTES = {"fp8": 1, "int8": 1, "int4": 0.5 + 2 / 128, "fp4": 0.5 + 1 / 16}

ATTENTION_LIBRARIES = ("flash_attention_2", "flash_attention_3", "tensorrt_llm", "trtllm_gen")


@record(frozen=True)
class SoftwareParameters:
    kernel_launch_overhead: float = option(
        "fixed cost of one kernel that is not hidden by the work before it",
        unit="s",
        minimum=0,
        plausible=(0, 1e-2),
    )
    precision: int | float = option(
        "size of one element of activations and weights",
        2,
        unit="bytes",
        choices=(0.5, 1, 2, 4, 8),
    )
    dtype: str | None = option(
        "data type of matrix products; its size is precision, its rate is in"
        " tech_param.core.precision_rates (default: nominal_flop_rate_per_mcu)",
        None,
        choices=tuple(DTYPE_BYTES),
    )
    matrix_dtype: str | None = option(
        "data type of products with weights where it is narrower than activations, as in training"
        " with fp8; whatever makes an operand also converts it (default: dtype)",
        None,
        choices=tuple(DTYPE_BYTES),
    )
    dispatch_dtype: str | None = option(
        "data type of activations on their way to experts, and of gradients on theirs (default:"
        " that of other activations)",
        None,
        choices=tuple(DTYPE_BYTES),
    )
    communication_bundles: int = option(
        "bundles of a device (SMs) that run training's communication and compute nothing",
        0,
        minimum=0,
        maximum=2**16,
    )
    kernel_fusion: str = option(
        "element-wise steps: one kernel per operation (eager) or per step (fused)",
        "eager",
        choices=("fused", "eager"),
    )
    host_time_per_kernel: float = option(
        "time the host needs to issue one kernel, framework included; a pass takes at least as"
        " long as issuing its kernels",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-2),
    )
    host_time_per_collective: float = option(
        "time the host needs to issue a collective, beyond that of a kernel",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-2),
    )
    host_time_per_rank: float = option(
        "time the host spends on a collective for each rank of its group, when the communication"
        " library checks every call with the other ranks",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-2),
    )
    host_time_per_remote_rank: float | None = option(
        "the same for ranks on other nodes (default: host_time_per_rank)",
        None,
        unit="s",
        minimum=0,
        plausible=(0, 1e-2),
    )
    host_time_per_tensor: float = option(
        "time the host needs in a step to update one tensor of weights; the update takes at least"
        " as long as that for all tensors of a device",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-1),
    )
    host_time_per_sharded_tensor: float = option(
        "the same, in addition, with optimizer states sharded over the data group (zero)",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-1),
    )
    host_time_per_gathered_shard: float = option(
        "time of the host to gather a tensor of weights, for each rank of the data group, where"
        " lists of shards are gathered and not one buffer: updated weights with zero 1 and 2; with"
        " zero 3 weights before each pass, which are copied out of a buffer besides",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-2),
    )
    host_time_per_step: float = option(
        "time of a step in which the device waits for the host, whatever the model",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 10),
    )
    weight_dtype: str | None = option(
        "inference: data type in which weights are stored; kernels widen them to that of products,"
        " matrix_dtype, if that has more bits (default: that of products)",
        None,
        choices=tuple(STORED_BYTES),
    )
    kv_cache_dtype: str | None = option(
        "inference: data type of cached keys and values (default: that of activations)",
        None,
        choices=("fp32", "bf16", "fp16", "fp8", "int8"),
    )
    kv_block_tokens: int = option(
        "inference: tokens of a block of the cache of keys and values", 16, minimum=1, maximum=2**20
    )
    cache_memory_share: float = option(
        "inference: part of the memory left by weights and activations that the cache may take",
        1.0,
        above=0,
        maximum=1,
    )
    all_reduce_kernel: str = option(
        "inference: who adds up partial sums within a node: the communication library, or kernels"
        " of the framework for short messages (a network simulator knows the library's only)",
        "library",
        choices=("library", "custom"),
    )
    decode_graph: bool = option(
        "inference: steps of generation are replayed as one graph, which the host starts with one"
        " call; without, and in prompts, it issues kernel by kernel",
        True,
    )
    kernel_gap: float = option(
        "inference: time between two kernels that the host issues one by one, beyond"
        " kernel_launch_overhead, which is that within a graph",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-3),
    )
    host_time_per_decode_step: float = option(
        "inference: time between two passes in which devices wait for the host: choosing tokens,"
        " what to run next, its inputs",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1),
    )
    host_time_per_sequence: float = option(
        "the same, for each sequence that is worked on",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-1),
    )
    host_time_per_request: float = option(
        "inference: time before a request's first pass and after it: network, tokens of the text,"
        " waiting for its turn",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 10),
    )
    max_batched_tokens: int = option(
        "inference: tokens of prompts that a pass takes at most; longer prompts go in pieces",
        8192,
        minimum=1,
        maximum=2**31,
    )
    chunked_prefill: bool = option(
        "inference: tokens that are generated go along with passes over prompts, which others then"
        " do not hold up",
        False,
    )
    attention_kernel: str = option(
        "fused keeps scores on the chip; unfused writes them to memory",
        "fused",
        choices=("fused", "unfused"),
    )
    attention_library: str = option(
        "whose fused attention kernels run; their rate is in tech_param.core.attention_rates."
        " flash_attention is the newest version that has a rate there, and tensorrt_llm is"
        " trtllm_gen where only that has one",
        "flash_attention_2",
        choices=(*ATTENTION_LIBRARIES, "flash_attention"),
    )
    reserved_memory: float = option(
        "device memory taken by driver context, communication library and allocator",
        0.0,
        unit="bytes",
        minimum=0,
        plausible=(0, 2**40),
    )
    allocator_overhead: float = option(
        "memory that the framework's allocator holds beyond what is in use, relative to that",
        0.0,
        minimum=0,
        maximum=10,
    )
    host_bandwidth: float | None = option(
        "bandwidth of a device to the host's memory, each direction, for what is offloaded",
        None,
        unit="bytes/s",
        above=0,
        plausible=(1e6, 1e14),
    )
    h2d_bandwidth: float | None = option(
        "host to device copies of embeddings; zero, negative or null switches them off",
        12.4 * GIB,
        unit="bytes/s",
        minimum=-1,
        plausible=(1e6, 1e14),
    )

    @property
    def operand_bytes(self) -> float:
        """Size of an element that matrix units multiply."""
        return self.precision if self.matrix_dtype is None else DTYPE_BYTES[self.matrix_dtype]

    @property
    def dispatched_bytes(self) -> float:
        """Size of an element of an activation that travels to experts."""
        return self.precision if self.dispatch_dtype is None else DTYPE_BYTES[self.dispatch_dtype]

    @property
    def weight_bytes(self) -> float:
        """Size of a weight in memory, in inference."""
        if self.weight_dtype is not None:
            return STORED_BYTES[self.weight_dtype]
        return self.operand_bytes

    @property
    def widens_weights(self) -> bool:
        """Whether kernels of inference convert weights before they multiply them."""
        return self.weight_dtype not in (None, self.matrix_dtype or self.dtype)

    @property
    def cached_bytes(self) -> float:
        """Size of an element of cached keys and values."""
        dtype = self.kv_cache_dtype
        return self.precision if dtype is None else DTYPE_BYTES[dtype]

    def check_time(self, ranks: int, ranks_in_node: int) -> float:
        """Time of the host to check a call with all ``ranks`` of a group."""
        remote = self.host_time_per_remote_rank
        far = self.host_time_per_rank if remote is None else remote
        return self.host_time_per_rank * ranks_in_node + far * (ranks - ranks_in_node)


def _rate(dtype: str) -> Any:
    return option(f"rate of {dtype} products (null: not supported)", None, above=0, maximum=64)


@record(frozen=True)
class PrecisionRates:
    """Matrix FLOP rates by data type, relative to ``nominal_flop_rate_per_mcu``."""

    fp32: float | None = _rate("fp32")
    tf32: float | None = _rate("tf32")
    bf16: float | None = _rate("bf16")
    fp16: float | None = _rate("fp16")
    fp8: float | None = _rate("fp8")
    fp4: float | None = _rate("fp4")
    int8: float | None = _rate("int8")

    @property
    def supported(self) -> dict[str, float]:
        """Data type -> relative rate, of those that the device supports."""
        rates = {dtype: getattr(self, dtype) for dtype in DTYPE_BYTES}
        return {dtype: rate for dtype, rate in rates.items() if rate is not None}


def _achieved(dtype: str) -> Any:
    return option(f"that of {dtype} products (default: util)", None, above=0, maximum=1)


@record(frozen=True)
class PrecisionUtils:
    """Achieved fractions of the peak by data type, where the device's power tells them apart."""

    fp32: float | None = _achieved("fp32")
    tf32: float | None = _achieved("tf32")
    bf16: float | None = _achieved("bf16")
    fp16: float | None = _achieved("fp16")
    fp8: float | None = _achieved("fp8")
    fp4: float | None = _achieved("fp4")
    int8: float | None = _achieved("int8")


def _attention_rate(library: str) -> Any:
    return option(f"that of {library} (default: attention_util)", None, above=0, maximum=1)


@record(frozen=True)
class AttentionRates:
    """Achieved fractions of the peak in the products of attention, beside its exponentials."""

    flash_attention_2: float | None = _attention_rate("FlashAttention-2")
    flash_attention_3: float | None = _attention_rate("FlashAttention-3")
    tensorrt_llm: float | None = _attention_rate("TensorRT-LLM")
    trtllm_gen: float | None = _attention_rate("TensorRT-LLM and FlashInfer on Blackwell")


@record(frozen=True)
class CoreTechnology:
    """A device's compute: bundles (SMs) of multiply-accumulate units (tensor cores, "MCU")."""

    nominal_flop_rate_per_mcu: float = option(
        "FLOP per cycle of one unit", unit="FLOP/cycle", above=0, plausible=(1, 1e7)
    )
    num_mcu_per_bundle: int = option("units per bundle", minimum=1, maximum=2**20)
    precision_rates: PrecisionRates = option(
        "rates of data types relative to nominal_flop_rate_per_mcu, at the same power",
        PrecisionRates(),
    )
    precision_utils: PrecisionUtils = option(
        "achieved fractions of the peak by data type, in the place of util, of types that meet the"
        " power limit: sustained_frequency lowers them no further",
        PrecisionUtils(),
    )
    operating_area_per_mcu: float | None = option(
        "area of one unit as built", None, unit="mm2", above=0, plausible=(1e-6, 1e5)
    )
    nominal_area_per_mcu: float | None = option(
        "area of one unit at the nominal rate (default: as built)", None, unit="mm2", above=0
    )
    nominal_power_per_mcu: float | None = option(
        "power of one unit at nominal voltage and frequency", None, unit="W", minimum=0
    )
    nominal_frequency: float | None = option(
        "clock at nominal voltage", None, unit="Hz", above=0, plausible=(1e6, 1e11)
    )
    operating_frequency: float | None = option(
        "clock, whatever the power budget allows", None, unit="Hz", above=0, plausible=(1e6, 1e11)
    )
    sustained_frequency: float | None = option(
        "clock that power and heat allow in hours of training; kernels alone run at"
        " operating_frequency (default: the same)",
        None,
        unit="Hz",
        above=0,
        plausible=(1e6, 1e11),
    )
    nominal_voltage: float | None = option("nominal supply", None, unit="V", above=0, maximum=20)
    threshold_voltage: float | None = option("threshold", None, unit="V", minimum=0, maximum=20)
    margin_voltage: float | None = option(
        "least supply above the threshold", None, unit="V", minimum=0, maximum=20
    )
    max_voltage: float | None = option(
        "highest supply (default: what the power budget drives it to)",
        None,
        unit="V",
        above=0,
        maximum=20,
    )
    pauses: bool = option(
        "a budget too small for the least supply makes it pause, so that it draws no more (default:"
        " the original's rule, by which it draws more than a very small budget)",
        False,
    )
    num_bundles: int | None = option(
        "bundles (default: what fits into the core area)", None, minimum=1, maximum=2**24
    )
    FMA_d1: int = option(
        "rows and columns of one matrix step of a unit", 4, minimum=1, maximum=2**20
    )
    FMA_d2: int = option("inner length of one matrix step of a unit", 4, minimum=1, maximum=2**20)
    FMA_width: int | None = option(
        "older name: sets FMA_d1 and FMA_d2 at once", None, minimum=1, maximum=2**20
    )
    dataflow: str = option(
        "which operand stays in the unit: weights, activations, outputs, the best, none",
        "best",
        choices=("best", "wst", "ast", "ost", "none"),
    )
    util: float = option("achieved fraction of the peak FLOP rate", 1.0, above=0, maximum=1)
    whole_waves: bool = option(
        "products run as blocks of a library's sizes, in whole waves over the bundles, and util"
        " is what a full wave achieves",
        False,
    )
    exposed_epilogue: float = option(
        "part of the time to write a product that no arithmetic hides", 0.0, minimum=0, maximum=1
    )
    split_latency: float = option(
        "with whole_waves: time that bundles which share a block's inner dimension wait for each"
        " other",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-3),
    )
    warp_matrix_rate: float = option(
        "part of the matrix rate that instructions of single warps reach, where the full rate takes"
        " asynchronous ones of several warps",
        1.0,
        above=0,
        maximum=1,
    )
    special_functions_per_cycle: float | None = option(
        "exponentials per cycle and bundle; they bound attention (default: no bound)",
        None,
        above=0,
        maximum=2**20,
    )
    attention_util: float | None = option(
        "achieved fraction of the peak in the matrix products of attention (default: util)",
        None,
        above=0,
        maximum=1,
    )
    attention_rates: AttentionRates = option(
        "attention_util by the library of sw_param.attention_library", AttentionRates()
    )
    attention_block_latency: float = option(
        "time of a block of attention that is neither arithmetic nor transfer: the wait for what it"
        " reads first and for its output",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-3),
    )

    def util_of(self, dtype: str | None) -> float:
        """Achieved fraction of the peak of ``dtype``; None: of the type the device is rated in."""
        own = None if dtype is None else getattr(self.precision_utils, dtype)
        return self.util if own is None else own

    def usable_rate(self, dtype: str, in_use: str | None) -> float:
        """Achieved rate of products of ``dtype`` over that of ``in_use``.

        KeyError: the device has no rate for one of them.
        """
        rates = self.precision_rates.supported
        own = 1.0 if in_use is None else rates[in_use]
        return rates[dtype] * self.util_of(dtype) / (own * self.util_of(in_use))

    def kernels_of(self, library: str) -> str:
        """The library's attention kernels for this device, where it has several sorts."""
        rates = self.attention_rates
        if library == "flash_attention":
            return "flash_attention_2" if rates.flash_attention_3 is None else "flash_attention_3"
        if library == "tensorrt_llm" and rates.tensorrt_llm is None and rates.trtllm_gen:
            return "trtllm_gen"
        return library

    def attention_fraction(self, library: str) -> float:
        """Achieved fraction of the peak in the products of a library's attention kernels."""
        own = getattr(self.attention_rates, self.kernels_of(library))
        for fraction in (own, self.attention_util):
            if fraction is not None:
                return float(fraction)
        return self.util


@record(frozen=True)
class DramTechnology:
    """Off-chip memory in stacks."""

    dynamic_energy_per_bit: float | None = option(
        "energy per bit moved", None, unit="J/bit", minimum=0, plausible=(0, 1e-6)
    )
    static_power_per_bit: float = option("leakage per bit stored", 0.0, unit="W/bit", minimum=0)
    area_per_bit: float | None = option("cell area (not used)", None, unit="mm2/bit", minimum=0)
    stack_capacity: float | None = option(
        "capacity of a stack", None, unit="bytes", above=0, plausible=(2**20, 2**50)
    )
    area_per_stack: float | None = option("footprint of a stack", None, unit="mm2", above=0)
    latency: float = option("access latency", 100e-9, unit="s", minimum=0, plausible=(0, 1e-3))
    mem_ctrl_area: float | None = option(
        "controller area on the chip per stack", None, unit="mm2", above=0
    )
    nominal_frequency: float | None = option(
        "rate of a data link at nominal voltage", None, unit="bit/s", above=0, plausible=(1e6, 1e12)
    )
    operating_frequency: float | None = option(
        "rate of a data link, whatever the power budget allows",
        None,
        unit="bit/s",
        above=0,
        plausible=(1e6, 1e12),
    )
    nominal_voltage: float | None = option("nominal supply", None, unit="V", above=0, maximum=20)
    threshold_voltage: float | None = option("threshold", None, unit="V", minimum=0, maximum=20)
    margin_voltage: float | None = option(
        "least supply above the threshold", None, unit="V", minimum=0, maximum=20
    )
    max_voltage: float | None = option("highest supply", None, unit="V", above=0, maximum=20)
    pauses: bool = option(
        "a budget too small for the least supply makes it pause, so that it draws no more (default:"
        " the original's rule, by which it draws more than a very small budget)",
        False,
    )
    num_links_per_mm: float | None = option("data links per mm of chip edge", None, above=0)
    num_links_per_stack: int | None = option("data links of a stack", None, minimum=1)
    util: float = option("achieved fraction of the bandwidth", 1.0, above=0, maximum=1)
    size: float | None = option(
        "capacity of the device (default: all stacks)",
        None,
        unit="bytes",
        above=0,
        plausible=(2**20, 2**60),
    )
    bandwidth: float | None = option(
        "bandwidth of the device (default: links times rate)",
        None,
        unit="bytes/s",
        above=0,
        plausible=(1e8, 1e17),
    )
    num_stacks: int | None = option("stacks (default: what fits)", None, minimum=1, maximum=2**16)


@record(frozen=True)
class SramTechnology:
    """One on-chip memory level: registers, shared memory or last-level cache."""

    dynamic_energy_per_bit: float | None = option(
        "energy per bit moved", None, unit="J/bit", minimum=0, plausible=(0, 1e-6)
    )
    static_power_per_bit: float = option("leakage per bit stored", 0.0, unit="W/bit", minimum=0)
    area_per_bit: float | None = option("cell area", None, unit="mm2/bit", above=0)
    bank_capacity: float | None = option(
        "capacity of a bank", None, unit="bytes", above=0, plausible=(64, 2**40)
    )
    controller_area_per_link: float = option(
        "controller area per bank and bundle", 0.0, unit="mm2", minimum=0
    )
    controller_power_per_link: float = option(
        "accepted from old files and unused", 0.0, unit="W", minimum=0
    )
    latency: float = option("access latency", 0.0, unit="s", minimum=0, plausible=(0, 1e-3))
    overhead: float = option("fraction of the area that is circuitry", 0.0, minimum=0, maximum=1)
    util: float = option("achieved fraction of the bandwidth", 1.0, above=0, maximum=1)
    size: float | None = option(
        "capacity over the whole device (default: banks that fit)",
        None,
        unit="bytes",
        above=0,
        plausible=(2**10, 2**50),
    )
    bandwidth: float | None = option(
        "bandwidth over the whole device (default: what the power budget feeds)",
        None,
        unit="bytes/s",
        above=0,
        plausible=(1e8, 1e19),
    )


@record(frozen=True)
class LinkTechnology:
    """A device's links to others, within a node or between nodes."""

    latency: float = option("latency of a message", unit="s", minimum=0, plausible=(0, 1e-1))
    handshake: float = option(
        "time to hand over a chunk of a collective, which is cut into as many chunks as is best",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-1),
    )
    in_turns: bool = option(
        "between nodes: parts of an all_reduce cross this network in turns with the one within a"
        " node, not at the same time",
        False,
    )
    reduction_util: float = option(
        "fraction of the bandwidth that reductions inside the switch achieve (0: it has none)",
        0.0,
        minimum=0,
        maximum=1,
    )
    reduction_latency: float = option(
        "time of a reduction inside the switch beyond its transfers",
        0.0,
        unit="s",
        minimum=0,
        plausible=(0, 1e-1),
    )
    bandwidth: float | None = option(
        "bandwidth of a device into this network, each direction"
        " (default: links that area, edge and power allow)",
        None,
        unit="bytes/s",
        minimum=0,
        plausible=(1e6, 1e16),
    )
    nominal_frequency: float | None = option(
        "rate of a link at nominal voltage", None, unit="bit/s", above=0, plausible=(1e6, 1e13)
    )
    nominal_voltage: float | None = option("nominal supply", None, unit="V", above=0, maximum=20)
    nominal_energy_per_link: float | None = option(
        "energy per bit", None, unit="J/bit", minimum=0, plausible=(0, 1e-6)
    )
    nominal_area_per_link: float | None = option(
        "area of a link's circuit", None, unit="mm2", above=0
    )
    threshold_voltage: float | None = option("threshold", None, unit="V", minimum=0, maximum=20)
    margin_voltage: float | None = option(
        "least supply above the threshold", None, unit="V", minimum=0, maximum=20
    )
    max_voltage: float | None = option(
        "highest supply (default: what the power budget drives it to)",
        None,
        unit="V",
        above=0,
        maximum=20,
    )
    num_links_per_mm: float | None = option("links per mm of chip edge", None, above=0)
    directions: int | None = option(
        "directions in which links leave a device, of which a message takes one, where area, edge"
        " and power decide the bandwidth: 1 to a switch (default: within a node the 4 of a mesh,"
        " between nodes 1)",
        None,
        minimum=1,
        maximum=2**10,
    )
    util: float = option("achieved fraction of the bandwidth", 1.0, above=0, maximum=1)


@record(frozen=True)
class NetworkTechnology:
    intra_node: LinkTechnology = option("links within a node")
    inter_node: LinkTechnology = option("links between nodes")


@record(frozen=True)
class TechnologyParameters:
    core: CoreTechnology = option("compute")
    DRAM: DramTechnology = option("off-chip memory")
    SRAM_L2: SramTechnology = option("last-level cache", key="SRAM-L2")
    SRAM_L1: SramTechnology = option("shared memory", key="SRAM-L1")
    SRAM_R: SramTechnology = option("registers", key="SRAM-R")
    network: NetworkTechnology = option("links to other devices")


# Watts or square millimetres of a device, far beyond any: more is a slip of the keyboard.
MOST = 1e9


@record(frozen=True)
class NetworkArea:
    """Areas of link circuits on the chip, in mm2."""

    intra_node: float = option("links within a node", 0.0, unit="mm2", minimum=0, maximum=MOST)
    inter_node: float = option("links between nodes", 0.0, unit="mm2", minimum=0, maximum=MOST)


@record(frozen=True)
class NetworkPower:
    """Power of links, in W."""

    intra_node: float = option("links within a node", 0.0, unit="W", minimum=0, maximum=MOST)
    inter_node: float = option("links between nodes", 0.0, unit="W", minimum=0, maximum=MOST)


@record(frozen=True)
class AreaBudget:
    """Areas on the chip and on the package, in mm2."""

    proc_chip_area_budget: float = option("the chip", unit="mm2", above=0, plausible=(1e-2, 1e6))
    device_area_budget: float = option(
        "chip and memory stacks together", unit="mm2", above=0, plausible=(1e-2, 1e7)
    )
    core: float = option("compute", 0.0, unit="mm2", minimum=0, maximum=MOST)
    DRAM: float = option("memory controllers", 0.0, unit="mm2", minimum=0, maximum=MOST)
    L2: float = option("last-level cache", 0.0, unit="mm2", minimum=0, maximum=MOST)
    L1: float = option("shared memory", 0.0, unit="mm2", minimum=0, maximum=MOST)
    reg_mem: float = option("registers", 0.0, unit="mm2", minimum=0, maximum=MOST)
    network: NetworkArea = option("link circuits", NetworkArea())


@record(frozen=True)
class PowerBudget:
    """Power of each part, in W."""

    TDP: float | None = option(
        "the whole device; checked against the sum of the parts",
        None,
        unit="W",
        above=0,
        maximum=MOST,
    )
    core: float = option("compute", 0.0, unit="W", minimum=0, maximum=MOST)
    DRAM: float = option("off-chip memory", 0.0, unit="W", minimum=0, maximum=MOST)
    L2: float = option("last-level cache", 0.0, unit="W", minimum=0, maximum=MOST)
    L1: float = option("shared memory", 0.0, unit="W", minimum=0, maximum=MOST)
    reg_mem: float = option("registers", 0.0, unit="W", minimum=0, maximum=MOST)
    network: NetworkPower = option("links", NetworkPower())


@record(frozen=True)
class PerimeterBudget:
    """Fractions of the chip's edge."""

    DRAM: float = option("memory links", 0.0, minimum=0, maximum=1)
    intra_node: float = option("links within a node", 0.0, minimum=0, maximum=1)
    inter_node: float = option("links between nodes", 0.0, minimum=0, maximum=1)


@record(frozen=True)
class Manufacturing:
    """What making a device costs; see ``deepflow/hardware/manufacturing.py``."""

    wafer_cost: float | None = option(
        "price of a processed wafer, US dollars (default: costs are not known)", None, minimum=0
    )
    wafer_diameter: float = option("diameter of a wafer, mm", 300.0, above=0, maximum=1000)
    defect_density: float = option(
        "defects per cm2 of a chip that break it", 0.1, minimum=0, maximum=100
    )
    defect_clustering: float = option(
        "how evenly defects are spread (Stapper's alpha): small if they come in clusters",
        2.0,
        above=0,
        maximum=1000,
    )
    repairable_area: float = option(
        "part of the chip where spare units make up for defects", 0.0, minimum=0, maximum=1
    )
    memory_cost: float | None = option(
        "price of a GiB of the device's memory, US dollars (default: not known)", None, minimum=0
    )
    package_cost: float = option(
        "interposer, substrate and their assembly, US dollars per mm2 of chip and memory stacks",
        0.0,
        minimum=0,
    )
    assembly_yield: float = option("packages that work", 1.0, above=0, maximum=1)
    assembly_cost: float = option(
        "test, board and all else that does not grow with the device, US dollars", 0.0, minimum=0
    )


@record(frozen=True)
class SystemHierarchy:
    num_devices_per_node: int = option("devices in a node", 1, minimum=1, maximum=2**24)
    num_nodes: int = option("nodes", 1, minimum=1, maximum=2**24)
    inter_derate: float = option("divisor of the bandwidth between nodes", 1.0, minimum=0)
    intra_derate: float = option(
        "divisor of the bandwidth within a node; zero means there is no such network",
        1.0,
        minimum=0,
    )
    kp1_inter: bool | None = option(
        "first kernel (tensor) dimension uses the network between nodes"
        " (default: follows from the rank order)",
        None,
    )
    kp2_inter: bool | None = option("second kernel dimension, likewise", None)
    dp_inter: bool | None = option("data dimension, likewise", None)
    lp_inter: bool | None = option("pipeline dimension, likewise", None)
    layout: str = option(
        "order in which parallel dimensions are laid out on nodes that are square meshes, e.g."
        " kp1-dp-lp-kp2 (kp1 is tensor where that is given); auto: the best one; either sets the"
        " derates and *_inter; none: they are as given",
        "none",
        choices=LAYOUTS,
    )


@record(frozen=True)
class LinkFaults:
    """Links that are slower than others or gone, in both directions."""

    intra_node_links: str = option(
        "faulty links within nodes, with commas in between: 0-1 joins two devices, 9-switch a"
        " device and its switch or leaf, leaf0-spine1 switches of a fat_tree in the first node;"
        " devices are counted over all nodes",
        "",
    )
    inter_node_links: str = option(
        "faulty links between nodes, likewise; switches are those of the nodes' first devices", ""
    )
    bandwidth_factor: float = option(
        "what is left of their bandwidth; 0: they have failed and messages take another way",
        0.0,
        minimum=0,
        maximum=1,
    )
    extra_latency: float = option(
        "latency that they have on top", 0.0, unit="s", minimum=0, plausible=(0, 1e-1)
    )

    def links(self) -> tuple[tuple[bool, str, str], ...]:
        """(whether it is between nodes, one end, the other end) of each link.

        Raises ValueError with the text that is no link.
        """
        found = []
        for between, text in ((False, self.intra_node_links), (True, self.inter_node_links)):
            for link in filter(None, (part.strip() for part in text.split(","))):
                match = re.fullmatch(r"(\d+)-(\d+|switch)|(leaf\d+)-(spine\d+)", link)
                if match is None:
                    raise ValueError(link)
                first, second = filter(None, match.groups())
                found.append((between, first, second))
        return tuple(found)


# What files call topologies. Old ones may have other words, which closed forms take for rings.
TOPOLOGY_NAMES = (
    *("ring", "mesh", "torus", "mesh_2d", "torus_2d", "fat_tree"),
    *("switch", "pcie", "fully_connected", "fc", "hic", "none"),
)


@record(frozen=True)
class NetworkTopology:
    inter_node: str = option(
        "topology between nodes (switch, fully_connected or fat_tree: collectives may use trees)",
        "ring",
    )
    intra_node: str = option("topology within a node, likewise", "ring")
    inter_node_width: int = option(
        "nodes in a row of a mesh_2d or torus_2d, or on a leaf switch of a fat_tree"
        " (0: nearest to square)",
        0,
        minimum=0,
        maximum=2**24,
    )
    intra_node_width: int = option("devices, likewise, within a node", 0, minimum=0, maximum=2**24)
    inter_node_oversubscription: float = option(
        "links into a leaf switch of a fat_tree between nodes, relative to those out of it",
        1.0,
        minimum=1,
        maximum=2**16,
    )
    intra_node_oversubscription: float = option(
        "likewise, within a node", 1.0, minimum=1, maximum=2**16
    )
    faults: LinkFaults = option("links that are degraded or have failed", LinkFaults())


@record(frozen=True)
class MemoryLevelPlace:
    type: str = option("memory at this place", choices=("SRAM-R", "SRAM-L1", "SRAM-L2", "DRAM"))
    scope: str = option(
        "who shares it: one unit, one bundle, the device", choices=("mcu", "mcu-bundle", "global")
    )


@record(frozen=True)
class MemoryHierarchy:
    l0: MemoryLevelPlace = option("nearest level", MemoryLevelPlace("SRAM-R", "mcu"))
    l1: MemoryLevelPlace = option("second level", MemoryLevelPlace("SRAM-L1", "mcu-bundle"))
    l2: MemoryLevelPlace = option("third level", MemoryLevelPlace("SRAM-L2", "global"))
    l3: MemoryLevelPlace = option("farthest level", MemoryLevelPlace("DRAM", "global"))


@record(frozen=True)
class Parallelism:
    """How the work is spread over devices (``scheduling_param``, or ``parallelism``)."""

    tensor: int | None = option(
        "tensor parallel degree (default: kp1 * kp2)", None, minimum=1, maximum=2**24
    )
    pipeline: int = option("pipeline stages", 1, minimum=1, maximum=2**24, aliases=("lp",))
    prompt_replicas: int = option(
        "inference: so many of the data parallel replicas process prompts only and hand keys and"
        " values over to the others, which only generate (0: every replica does both)",
        0,
        minimum=0,
        maximum=2**24,
    )
    data: int | str = option(
        "data parallel degree; auto takes the devices that are left",
        "auto",
        minimum=1,
        maximum=2**24,
        choices=("auto",),
        aliases=("dp",),
    )
    num_microbatches: int | None = option(
        "microbatches per step and pipeline (default: from micro_batch_size)",
        None,
        minimum=1,
        maximum=2**24,
        aliases=("mb",),
    )
    micro_batch_size: int | None = option(
        "sequences per microbatch (default: from num_microbatches, or 1)",
        None,
        minimum=1,
        maximum=2**24,
    )
    schedule: str = option(
        "order of microbatches in a pipeline; interleaved takes virtual_stages, zero_bubble runs"
        " the gradients of weights where a stage would wait",
        "1f1b",
        choices=("1f1b", "gpipe", "interleaved", "zero_bubble"),
    )
    virtual_stages: int | None = option(
        "parts of the model on a device in the interleaved schedule (default: 2)",
        None,
        minimum=1,
        maximum=2**16,
    )
    context: int = option(
        "context parallel degree: devices that share the tokens of a sequence",
        1,
        minimum=1,
        maximum=2**24,
        aliases=("cp",),
    )
    context_method: str = option(
        "keys and values of other devices: passed around a ring beside the attention, or gathered"
        " before it",
        "ring",
        choices=("ring", "all_gather"),
    )
    expert: int = option(
        "expert parallel degree: devices, among those of the data and context dimensions, that"
        " share the experts of a layer",
        1,
        minimum=1,
        maximum=2**24,
        aliases=("ep",),
    )
    stage_balance: str = option(
        "layers to stages: equal numbers; equal FLOPs with the head counted in; or cumulative, cut"
        " behind the layer with which products so far reach a stage's share (the last stages may"
        " stay empty)",
        "layers",
        choices=("layers", "flops", "cumulative"),
    )
    sequence_parallel: bool = option(
        "shard norms and residuals over the tensor group along the sequence", True
    )
    zero: int = option(
        "sharding over the data group: 0 none, 1 optimizer states, 2 gradients too,"
        " 3 weights too (fully sharded data parallel)",
        0,
        choices=(0, 1, 2, 3),
    )
    scatter_transfers: bool = option(
        "without sequence parallelism, each device of a tensor group sends its share of what all of"
        " them have to the next stage, where they gather it (Megatron-LM, arXiv 2104.04473, 4.1)",
        False,
    )
    overlap_parameter_gather: bool = option(
        "with zero 3, gather the weights of the next layer while one is computed", True
    )
    expert_dispatch: str = option(
        "what travels to and from experts: a row per expert that a token is sent to (per_expert),"
        " or one per node, which is handed on over links within it, once per device (per_node); the"
        " latter with the analytical backend and direct exchange",
        "per_expert",
        choices=("per_expert", "per_node"),
    )
    zero_3_unit: str = option(
        "with zero 3, what is gathered and reduced in one call: a layer, or each of its matrices",
        "layer",
        choices=("layer", "matrix"),
    )
    zero_3_reduction: str = option(
        "with zero 3, gradients are reduced to their owners (reduce_scatter), or all of them to all"
        " devices, which keep their shard (all_reduce)",
        "reduce_scatter",
        choices=("reduce_scatter", "all_reduce"),
    )
    release_distance: int | None = option(
        "with zero 3 and layers that are recomputed: weights are released, and gathered again for"
        " the backward pass, if so many parameters are used in between (default: never)",
        None,
        minimum=0,
        maximum=10**15,
    )
    overlap_expert_communication: bool = option(
        "tokens travel to and from experts while another microbatch is computed", False
    )
    overlap_tensor_communication: str = option(
        "collectives of the tensor group beside products: none; backward, gradients of inputs"
        " beside products for gradients of weights; full, gathers beside the products that they"
        " feed as well",
        "none",
        choices=("none", "backward", "full"),
    )
    recompute: str = option(
        "activations computed again in the backward pass: none, those of whole layers, or those"
        " of recompute_modules",
        "none",
        choices=("none", "full", "selective"),
    )
    recompute_layers: int | None = option(
        "layers of each stage (or part of one) that full recomputation is for (default: all)",
        None,
        minimum=0,
        maximum=100_000,
    )
    recompute_modules: str = option(
        "what selective recomputation is for: scores and probabilities of unfused attention, the"
        " outputs of norms and activations, or both",
        "core_attention",
        choices=("core_attention", "elementwise", "core_attention_and_elementwise"),
    )
    offload: str = option(
        "what stays in the host's memory between uses: optimizer states, or saved activations too",
        "none",
        choices=("none", "optimizer", "optimizer_and_activations"),
    )
    zero_1_reduction: str = option(
        "with zero 1, gradients are reduced to their owners (reduce_scatter), or all of them to"
        " all devices after the last backward pass (all_reduce)",
        "reduce_scatter",
        choices=("reduce_scatter", "all_reduce"),
    )
    overlap_gradient_reduction: bool = option(
        "reduce gradients while the last backward pass still runs", True
    )
    gradient_bucket: float | None = option(
        "with zero 0 and 1, size of the buckets in which gradients of the working precision are"
        " kept (and with 0 reduced), beside those that are accumulated in gradient_bytes (default:"
        " none kept, a layer's are reduced at once)",
        None,
        unit="bytes",
        above=0,
        plausible=(1e3, 1e12),
    )
    gradient_bytes: int = option(
        "bytes of an accumulated gradient element", 4, unit="bytes", choices=(2, 4)
    )
    auto: bool | str = option("accepted from old files; only false", False, choices=(False,))
    t: str | None = option(
        "kernel parallelism of old files: column-row or row-column", None, choices=("CR", "RC")
    )
    kp1: int | None = option("first kernel parallel degree", None, minimum=1, maximum=2**24)
    kp2: int | None = option("second kernel parallel degree", None, minimum=1, maximum=2**24)
    kp_hidden_dim1: int = option("kp1 of hidden layers", 1, minimum=1)
    kp_hidden_dim2: int = option("kp2 of hidden layers", 1, minimum=1)
    kp_softmax_dim1: int = option("kp1 of the softmax layer", 1, minimum=1)
    kp_softmax_dim2: int = option("kp2 of the softmax layer", 1, minimum=1)
    kp_embedding_dim1: int = option("kp1 of the embedding layer", 1, minimum=1)
    kp_embedding_dim2: int = option("kp2 of the embedding layer", 1, minimum=1)
    kp_projection_dim1: int = option("kp1 of the projection layer", 1, minimum=1)
    kp_projection_dim2: int = option("kp2 of the projection layer", 1, minimum=1)
    kp_hidden_type: int = option("-1 none, 1 CR, 2 RC", -1, choices=(-1, 1, 2))
    kp_softmax_type: int = option("-1 none, 1 CR, 2 RC", -1, choices=(-1, 1, 2))
    kp_embedding_type: int = option("-1 none, 1 CR, 2 RC", -1, choices=(-1, 1, 2))
    kp_projection_type: int = option("-1 none, 1 CR, 2 RC", -1, choices=(-1, 1, 2))


@record(frozen=True)
class CollectiveAlgorithms:
    all_gather: str = option(
        "algorithm of all_gather in each dimension; auto takes what suits the topology",
        "auto",
        choices=("auto", "ring", "direct", "halvingDoubling", "doubleBinaryTree"),
    )
    all_reduce: str = option(
        "algorithm of all_reduce in each dimension; auto takes what suits the topology",
        "auto",
        choices=("auto", "ring", "direct", "halvingDoubling", "doubleBinaryTree"),
    )
    reduce_scatter: str = option(
        "algorithm of reduce_scatter in each dimension; auto takes what suits the topology",
        "auto",
        choices=("auto", "ring", "direct", "halvingDoubling", "doubleBinaryTree"),
    )
    all_to_all: str = option(
        "algorithm of all_to_all in each dimension; auto takes what suits the topology",
        "auto",
        choices=("auto", "ring", "direct", "halvingDoubling", "doubleBinaryTree"),
    )


@record(frozen=True)
class AstraBackend:
    backend: str = option("accepted from old files and unused", "astra")
    mode: str = option(
        "how much is simulated",
        "hybrid",
        choices=(
            "hybrid",
            "hybrid_congestion",
            "full_astrasim",
            "full_astrasim_hierarchical",
            "full_astrasim_flattened",
        ),
    )
    collectives: CollectiveAlgorithms = option(
        "algorithms of simulated collectives", CollectiveAlgorithms()
    )
    simulator: str = option(
        "what simulates: the embedded simulator, the user's ASTRA-sim, or the latter if there is"
        " one, for what it can simulate",
        "embedded",
        choices=("embedded", "binary", "auto"),
    )
    binary: str | None = option(
        "the congestion-unaware ASTRA-sim (default: $ASTRA_SIM_BINARY, then"
        " AstraSim_Analytical_Congestion_Unaware along PATH)",
        None,
    )
    binary_congestion_aware: str | None = option(
        "the congestion-aware ASTRA-sim (default: $ASTRA_SIM_BINARY_CONGESTION_AWARE, then"
        " AstraSim_Analytical_Congestion_Aware along PATH)",
        None,
    )
    dataset_splits: int = option(
        "chunks that a collective is cut into", 4, minimum=1, maximum=2**16
    )
    active_chunks: int = option(
        "chunks under way at once in a dimension of the network", 1, minimum=1, maximum=2**16
    )
    timeout: float = option("longest run of the user's ASTRA-sim", 600.0, unit="s", above=0)
    fallback: str = option(
        "if the simulator gives no answer: predict with the analytical model, and say so, or fail",
        "analytical",
        choices=("analytical", "error"),
    )


@record(frozen=True)
class ExecutionBackend:
    model: str = option("what times the network", "analytical", choices=("analytical", "astra"))
    astra: AstraBackend = option("the network simulator of model: astra", AstraBackend())


@record(frozen=True)
class HardwareConfig:
    """A hardware file after loading. ``file`` is where it came from ("" if built in code)."""

    sw_param: SoftwareParameters = option(
        "software: data types, kernels, launches, what the host takes, memory it keeps"
    )
    tech_param: TechnologyParameters = option(
        "what the device and its links are made of, or what their data sheet says"
    )
    area_breakdown: AreaBudget = option("area budget")
    power_breakdown: PowerBudget = option("power budget")
    perimeter_breakdown: PerimeterBudget = option("edge budget", PerimeterBudget())
    manufacturing: Manufacturing = option("what making a device costs", Manufacturing())
    system_hierarchy: SystemHierarchy = option("how many devices and nodes", SystemHierarchy())
    network_topology: NetworkTopology = option("wiring of the networks", NetworkTopology())
    memory_hierarchy: MemoryHierarchy = option("memory levels, nearest first", MemoryHierarchy())
    scheduling_param: Parallelism = option("parallelism", Parallelism(), aliases=("parallelism",))
    execution_backend: ExecutionBackend = option(
        "what times the network", ExecutionBackend(), aliases=("backend",)
    )
    name: str = option("name shown in results (default: the file's name)", "")
    aliases: tuple[str, ...] = option("other names that measured tables use", ())
    file: str = ""
