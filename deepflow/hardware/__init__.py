"""Hardware: from technology parameters and budgets to rates, sizes and bandwidths."""

from deepflow.hardware.accelerator import Accelerator, Core, Hardware, Link, MemoryLevel
from deepflow.hardware.derive import derive_hardware, load_hardware, parallel_links

__all__ = [
    "Accelerator",
    "Core",
    "Hardware",
    "Link",
    "MemoryLevel",
    "derive_hardware",
    "load_hardware",
    "parallel_links",
]
