"""Configuration: what the files may say, and the checked dataclasses made from them."""

from deepflow.config.framework import FrameworkConfig, load_framework_config
from deepflow.config.hardware import HardwareConfig
from deepflow.config.loading import (
    DeepFlowWarning,
    budget_problems,
    canonical_override,
    json_schema,
    load_hardware_config,
    load_model_config,
    parse_yaml_value,
    read_yaml,
    split_overrides,
    with_overrides,
)
from deepflow.config.model import (
    CollectiveModel,
    GemmModel,
    LlmModel,
    LstmModel,
    ModelConfig,
    VitModel,
)
from deepflow.config.schema import did_you_mean, flatten
from deepflow.config.units import parse_quantity

__all__ = [
    "CollectiveModel",
    "DeepFlowWarning",
    "FrameworkConfig",
    "GemmModel",
    "HardwareConfig",
    "LlmModel",
    "LstmModel",
    "ModelConfig",
    "VitModel",
    "budget_problems",
    "canonical_override",
    "did_you_mean",
    "flatten",
    "json_schema",
    "load_framework_config",
    "load_hardware_config",
    "load_model_config",
    "parse_quantity",
    "parse_yaml_value",
    "read_yaml",
    "split_overrides",
    "with_overrides",
]
