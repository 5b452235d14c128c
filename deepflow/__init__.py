"""DeepFlow: how long a neural-network workload takes on hardware that may not exist yet.

    >>> import deepflow
    >>> hardware = deepflow.load_hardware("configs/hardware-config/nvidia_h100_sxm_80gb.yaml")
    >>> model = deepflow.load_model("configs/model-config/Llama2-7B.yaml", {"seq_len": 2048})
    >>> deepflow.predict(hardware, model).time_s

Names are imported when they are used: the command line starts without loading all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepflow.version import __version__ as __version__

if TYPE_CHECKING:
    from deepflow.config import load_model_config as load_model
    from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
    from deepflow.hardware import Hardware, load_hardware
    from deepflow.prediction import Prediction, predict

__all__ = [
    "ConfigError",
    "DeepFlowError",
    "Hardware",
    "InfeasiblePoint",
    "Prediction",
    "load_hardware",
    "load_model",
    "predict",
]

_HOMES = {
    "ConfigError": ("deepflow.errors", "ConfigError"),
    "DeepFlowError": ("deepflow.errors", "DeepFlowError"),
    "Hardware": ("deepflow.hardware", "Hardware"),
    "InfeasiblePoint": ("deepflow.errors", "InfeasiblePoint"),
    "Prediction": ("deepflow.prediction", "Prediction"),
    "load_hardware": ("deepflow.hardware", "load_hardware"),
    "load_model": ("deepflow.config", "load_model_config"),
    "predict": ("deepflow.prediction", "predict"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deepflow' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value
