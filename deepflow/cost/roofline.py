"""Time of kernels without tiling: as long as memory or compute takes, whichever is longer.

Williams, Waterman, Patterson, "Roofline", 2009. Operands come from device memory; the
research code this starts from charged them to the register file, which is 50 to 100 times
faster.
"""

from __future__ import annotations

from deepflow.errors import InfeasiblePoint
from deepflow.hardware.accelerator import Accelerator, MemoryLevel


def memory_bound_time(level: MemoryLevel, num_bytes: float) -> float:
    """Seconds to move ``num_bytes`` to or from ``level``; nothing to move takes no time.

    Raises:
        InfeasiblePoint: there is something to move and the level has no bandwidth.
    """
    if num_bytes <= 0:
        return 0.0
    if level.bandwidth <= 0:
        raise InfeasiblePoint(f"memory level {level.name} has no bandwidth")
    return num_bytes / level.bandwidth + level.latency


def roofline_time(
    accelerator: Accelerator, flops: float, num_bytes: float, level: MemoryLevel | None = None
) -> float:
    """Seconds for ``flops`` FLOP on ``num_bytes`` of ``level`` (default: device memory).

    Raises:
        InfeasiblePoint: there is work for a core or level without throughput.
    """
    memory = memory_bound_time(accelerator.memory[-1] if level is None else level, num_bytes)
    if flops <= 0:
        return memory
    if accelerator.core.usable_flops <= 0:
        raise InfeasiblePoint("the core has no throughput")
    return max(memory, flops / accelerator.core.usable_flops)
