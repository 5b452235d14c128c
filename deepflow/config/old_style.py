"""The older style of configuration: hardware and model in one file, budgets as fractions.

``translate`` turns the content of such a file into the sections of the current hardware and
model files, with the same meaning:

================================================  ============================================
older style                                       current style
================================================  ============================================
``model_param`` beside the hardware sections      a model file of its own
``model_param`` without ``mode``                  ``mode: LSTM``, the only kind there was
``tech_param.L2``, ``.shared_mem``, ``.reg_mem``  ``tech_param.SRAM-L2``, ``.SRAM-L1``,
                                                  ``.SRAM-R`` (also accepted in an older file)
``tech_param.core.FMA_width``                     ``FMA_d1`` and ``FMA_d2``, both that wide
``area_breakdown.node_area_budget``               ``area_breakdown.device_area_budget``, mm2
parts of ``area_breakdown``                       part x ``proc_chip_area_budget``, in mm2
parts of ``power_breakdown``                      part x ``TDP``, in W
``shared_mem`` in both breakdowns                 ``L1`` (also accepted in an older file)
``perimeter_breakdown``                           the same: fractions of the chip's edge
``system_hierarchy.num_nodes_per_wafer`` = P and  ``num_devices_per_node`` and ``num_nodes``:
``num_workers`` = W: W devices, up to P a wafer   W and 1 if W <= P, else P and W / P
``network_topology.inter_wafer``,                 ``network_topology.inter_node``,
``.intra_wafer``                                  ``.intra_node``
sections and keys that are left out               their defaults, as in a current file
everything else                                   the same
================================================  ============================================

That area is a fraction of the chip and not of the device follows from the V100 of the original
tool, which exists in both styles: its core takes 0.3 in the older file and 244.5 mm2 in the
current one, with a chip of 815 mm2 on a device of 1230 mm2, and the same factor holds for every
part. Power goes from 0.3745 to 112.35 W, with a TDP of 300 W.

Products are exact decimal arithmetic rounded once, so that 0.08062 of 815 mm2 is 65.7053 mm2.
Overrides come after the translation and use the paths and units of the current style: a new
TDP does not scale the parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from deepflow.config.hardware import (
    AreaBudget,
    HardwareConfig,
    NetworkTopology,
    PowerBudget,
    SystemHierarchy,
    TechnologyParameters,
)
from deepflow.config.schema import did_you_mean, keys_of, parse_at
from deepflow.config.units import parse_quantity, shown
from deepflow.errors import ConfigError
from deepflow.record import record

# The sections in which names differ.
_SECTIONS: dict[str, type[Any]] = {
    "tech_param": TechnologyParameters,
    "area_breakdown": AreaBudget,
    "power_breakdown": PowerBudget,
    "system_hierarchy": SystemHierarchy,
    "network_topology": NetworkTopology,
}
# Names that replace those of the current style in an older file, by section.
_OLDER_ONLY = {
    "area_breakdown": {"node_area_budget": "device_area_budget"},
    "system_hierarchy": {
        "num_nodes_per_wafer": "num_devices_per_node",
        "num_workers": "num_nodes",
    },
    "network_topology": {"inter_wafer": "inter_node", "intra_wafer": "intra_node"},
}
# Names that were already giving way to the current ones when the older style was in use.
_OLDER_OR_CURRENT = {
    "tech_param": {"L2": "SRAM-L2", "shared_mem": "SRAM-L1", "reg_mem": "SRAM-R"},
    "area_breakdown": {"shared_mem": "L1"},
    "power_breakdown": {"shared_mem": "L1"},
}
_FRACTIONS_OF = {"area_breakdown": "proc_chip_area_budget", "power_breakdown": "TDP"}
_PARTS = ("core", "DRAM", "L2", "L1", "shared_mem", "reg_mem")
# A published file gives 2.2 times its chip to shared memory and has to load; a number above
# this is no slip but mm2 or W.
_LARGEST_FRACTION = 10

_Data = Mapping[Any, Any]


@record(frozen=True)
class OldStyleFile:
    """An older file in the terms of the current style.

    ``hardware`` holds the sections of a hardware file, ``model`` those of a model file (none
    if the older file has only hardware), ``written`` the paths that have another name in the
    file: current path -> path in the file.
    """

    hardware: dict[Any, Any]
    model: dict[str, Any]
    written: dict[str, str]


def translate(data: _Data, file: str = "") -> OldStyleFile | None:
    """The content of a file in the older style translated, None for one in the current style.

    ``data`` is what ``read_yaml`` returns. Only what tells the styles apart is checked here;
    the result is to be loaded like any other file. Raises ConfigError if the file mixes names
    of both styles, misspells a name of the older one, or has a budget that is no fraction.
    """
    _refuse_stray_sections(data, file)
    older = list(_names_in(data, _older_names()))
    if not older and not ("model_param" in data and _hardware_sections(data)):
        return None
    _refuse_current_names(data, older, file)
    hardware = {key: value for key, value in data.items() if key != "model_param"}
    written = {
        f"{section}.{current}": f"{section}.{name}"
        for section, names in _OLDER_ONLY.items()
        for name, current in names.items()
    }
    for section, names in _older_names().items():
        content = hardware.get(section)
        if isinstance(content, Mapping):
            _refuse_unknown_names(section, content, file)
            if section in _FRACTIONS_OF:
                content = _absolute(section, content, file)
            if section == "system_hierarchy":
                content = _devices_and_nodes(content, file)
            if section == "tech_param":
                content = _with_fma_dimensions(content, written)
            hardware[section] = _renamed(section, content, names, written, file)
    model = {key: value for key, value in data.items() if key == "model_param"}
    parameters = model.get("model_param")
    if isinstance(parameters, Mapping) and "mode" not in parameters:
        model["model_param"] = {"mode": "LSTM", **parameters}
    return OldStyleFile(hardware, model, written)


@contextmanager
def keys_as_written(written: Mapping[str, str], overridden: Iterable[str] = ()) -> Iterator[None]:
    """Lets a ConfigError from the block name keys as the older file does.

    ``overridden`` are the paths that come from elsewhere and keep their names.
    """
    try:
        yield
    except ConfigError as error:
        for current, older in written.items():
            if error.key not in overridden and f"{error.key}.".startswith(f"{current}."):
                raise ConfigError(
                    error.problem,
                    file=error.file,
                    key=older + error.key.removeprefix(current),
                    value=error.value,
                    allowed=error.allowed,
                ) from None
        raise


def _hardware_sections(data: _Data) -> list[str]:
    sections = [key for key in keys_of(HardwareConfig) if key.section is not None]
    return [name for key in sections for name in key.spellings if name in data]


def _refuse_stray_sections(data: _Data, file: str) -> None:
    """A section of hardware in a model file is a mistake and not the older style."""
    found = _hardware_sections(data)
    if "model_param" not in data or not found:
        return
    keys = keys_of(HardwareConfig)
    known = ["model_param", *(spelling for key in keys for spelling in key.spellings)]
    for name in data:
        if name not in known:
            raise ConfigError(
                "unknown key" + did_you_mean(str(name), known), file=file, key=str(name)
            )
    for key in keys:
        if key.required and key.written not in found:
            raise ConfigError(
                "one file for hardware and model, the older style, has to have all of the"
                f" hardware, and there is no '{key.written}'; if this is a model file, move"
                f" '{found[0]}' to the hardware file",
                file=file,
                key=found[0],
            )


def _older_names() -> dict[str, dict[str, str]]:
    """Section -> older name -> current name."""
    return {
        section: _OLDER_ONLY.get(section, {}) | _OLDER_OR_CURRENT.get(section, {})
        for section in _SECTIONS
    }


def _names_in(data: _Data, names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Dotted paths of those names, given by section, that ``data`` has."""
    for section, wanted in names.items():
        content = data.get(section)
        if isinstance(content, Mapping):
            yield from (f"{section}.{name}" for name in wanted if name in content)


def _refuse_current_names(data: _Data, older: list[str], file: str) -> None:
    current = {section: list(names.values()) for section, names in _OLDER_ONLY.items()}
    for key in _names_in(data, current):
        if not older:
            raise ConfigError(
                "one file for hardware and model is the older style, in which budgets are"
                f" fractions, but '{key}' is of the current one; move model_param to a file of"
                " its own",
                file=file,
                key="model_param",
            )
        raise ConfigError(
            f"is of the current style, but '{older[0]}' is of the older one, in which budgets are"
            " fractions; use the names of one style",
            file=file,
            key=key,
        )


def _refuse_unknown_names(section: str, content: _Data, file: str) -> None:
    """An unknown key must not be answered with names that only the current style has."""
    replaced = _OLDER_ONLY.get(section, {})
    known = {spelling for key in keys_of(_SECTIONS[section]) for spelling in key.spellings}
    known = known.difference(replaced.values()).union(_older_names()[section])
    for name in content:
        if name not in known:
            suggestion = did_you_mean(str(name), sorted(known))
            raise ConfigError(
                "unknown key" + suggestion,
                file=file,
                key=f"{section}.{name}",
                allowed="" if suggestion else ", ".join(sorted(known)),
            )


def _absolute(section: str, content: _Data, file: str) -> dict[Any, Any]:
    """The section with its fractions multiplied by the whole."""
    name = _FRACTIONS_OF[section]
    place = f"{section}.{name}"
    if content.get(name) is None:
        raise ConfigError(
            "missing key: the budgets of the parts are fractions of it", file=file, key=place
        )
    whole = parse_at(HardwareConfig, place, content[name], file=file, shown_key=place)
    result = dict(content)
    for part in _PARTS:
        if part in content:
            result[part] = _share(content[part], whole, name, file, f"{section}.{part}")
    network = content.get("network")
    if isinstance(network, Mapping):
        result["network"] = {
            link: _share(value, whole, name, file, f"{section}.network.{link}")
            for link, value in network.items()
        }
    return result


def _share(value: object, whole: float, whole_name: str, file: str, key: str) -> float:
    fraction = parse_quantity(value, "", file=file, key=key)
    if not 0 <= fraction <= _LARGEST_FRACTION:
        raise ConfigError(
            f"is not a fraction of {whole_name}; in files of the older style budgets are",
            file=file,
            key=key,
            value=shown(value),
            allowed="0 to 1",
        )
    return float(Decimal(repr(fraction)) * Decimal(repr(whole)))


def _devices_and_nodes(content: _Data, file: str) -> dict[Any, Any]:
    """The section with the counts of the current style still under the older names."""
    names = ("num_nodes_per_wafer", "num_workers")
    if not any(name in content for name in names):
        return dict(content)
    counts = []
    for name in names:
        place = f"system_hierarchy.{name}"
        if name not in content:
            raise ConfigError("missing key: devices are counted by both", file=file, key=place)
        counts.append(
            parse_at(
                HardwareConfig,
                "system_hierarchy.num_devices_per_node",
                content[name],
                file=file,
                shown_key=place,
            )
        )
    room, workers = counts
    if workers > room and workers % room:
        raise ConfigError(
            f"does not fill wafers of {room} nodes evenly",
            file=file,
            key="system_hierarchy.num_workers",
            value=workers,
            allowed=f"up to {room}, or a multiple of {room}",
        )
    return {
        **content,
        names[0]: min(workers, room),
        names[1]: max(1, workers // room),
    }


def _with_fma_dimensions(content: _Data, written: dict[str, str]) -> dict[Any, Any]:
    """The section with FMA_width written out, in its place."""
    core = content.get("core")
    if not isinstance(core, Mapping) or core.get("FMA_width") is None:
        return dict(content)
    spelled_out: dict[Any, Any] = {}
    for name, value in core.items():
        if name == "FMA_width":
            for dimension in ("FMA_d1", "FMA_d2"):
                spelled_out[dimension] = value
                written[f"tech_param.core.{dimension}"] = "tech_param.core.FMA_width"
        elif name not in ("FMA_d1", "FMA_d2"):
            spelled_out[name] = value
    return {**content, "core": spelled_out}


def _renamed(
    section: str, content: _Data, names: Mapping[str, str], written: dict[str, str], file: str
) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for name, value in content.items():
        current = names.get(name, name)
        if current != name:
            if current in content:
                raise ConfigError(
                    f"given twice, as '{name}' and as '{current}'",
                    file=file,
                    key=f"{section}.{name}",
                )
            written[f"{section}.{current}"] = f"{section}.{name}"
        result[current] = value
    return result
