"""Reading hardware and model files: YAML in, checked frozen dataclasses out."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deepflow.config.hardware import (
    DTYPE_BYTES,
    STORED_BYTES,
    TOPOLOGY_NAMES,
    HardwareConfig,
    NetworkArea,
    NetworkPower,
    Parallelism,
)
from deepflow.config.model import (
    MODEL_MODES,
    CollectiveModel,
    GemmModel,
    LlmModel,
    LstmModel,
    ModelConfig,
    VitModel,
)
from deepflow.config.old_style import keys_as_written, translate
from deepflow.config.schema import (
    build,
    did_you_mean,
    keys_of,
    object_schema,
    parse_at,
    replace_paths,
    resolve_path,
)
from deepflow.config.units import shown
from deepflow.errors import ConfigError
from deepflow.files import read_limited

AnyConfig = TypeVar("AnyConfig", bound=HardwareConfig | ModelConfig)

_NO_OVERRIDES: Mapping[str, object] = {}
_OVERRIDE_ROOTS = ("hardware", "model", "parallelism", "backend")


class DeepFlowWarning(UserWarning):
    """A configuration that can be computed but is probably not what was meant."""


# --- YAML -----------------------------------------------------------------------------------

_CORE_TAG = "tag:yaml.org,2002:"

# Resolves plain scalars as YAML 1.2 does. PyYAML alone follows YAML 1.1, where 9e-6 is text,
# no is false and 1:30 is 90.
_Yaml12Loader: Any = type(
    "_Yaml12Loader",
    (getattr(yaml, "CSafeLoader", yaml.SafeLoader),),
    {"yaml_implicit_resolvers": {}},
)

for _name, _pattern, _first_characters in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Yaml12Loader.add_implicit_resolver(
        _CORE_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first_characters
    )


def read_yaml(path: str | Path) -> Any:
    """Plain data of a YAML file: mappings, lists, text, numbers, true, false and null.

    Raises ConfigError, with the line, for a missing or unreadable file, a syntax error, a
    key given twice, or a tag other than those of plain data.
    """
    try:
        content = read_limited(path)
    except FileNotFoundError:
        raise ConfigError("no such file", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=str(path)) from None
    return _parse_yaml(content, str(path))


def parse_yaml_value(text: str, *, file: str = "", key: str = "") -> Any:
    """The value that ``key: text`` would have in a file, for values given elsewhere."""
    return _parse_yaml(text.encode(), file, key)


def _parse_yaml(content: bytes, file: str, key: str = "") -> Any:
    try:
        _refuse_deep_nesting(content)
        loader = _Yaml12Loader(content)
        try:
            node = loader.get_single_node()
            return None if node is None else _plain_data(node, {})
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}" if mark is not None else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not valid YAML: {problem}", file=file, key=key or line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", file=file, key=key) from None
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply", file=file, key=key) from None


_MOST_LEVELS = 1000


def _refuse_deep_nesting(content: bytes) -> None:
    """Raises RecursionError for nesting by which PyYAML's parser in C would crash Python."""
    # What could open a level; every other file is told apart by a glance.
    if sum(map(content.count, (b"[", b"{", b"-", b"?", b":"))) < _MOST_LEVELS * 5:
        return
    depth = 0
    for event in yaml.parse(content, Loader=_Yaml12Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_LEVELS:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _plain_data(node: Any, done: dict[int, Any]) -> Any:
    """Python data of a YAML node; ``done`` holds finished nodes, which aliases share."""
    if id(node) in done:
        return done[id(node)]
    data: Any
    kind = node.tag.removeprefix(_CORE_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        data = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a single word", problem_mark=key_node.start_mark
                )
            key = _plain_data(key_node, done)
            if key in data:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            data[key] = _plain_data(value_node, done)
    elif isinstance(node, yaml.SequenceNode) and kind == "seq":
        data = [_plain_data(item, done) for item in node.value]
    elif isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            data = _SCALARS[kind](node.value)
        except ValueError:
            raise yaml.MarkedYAMLError(
                problem=f"cannot be read as {kind}", problem_mark=node.start_mark
            ) from None
    else:
        raise yaml.MarkedYAMLError(
            problem=f"tag '{node.tag}' is not allowed, only plain data",
            problem_mark=node.start_mark,
        )
    done[id(node)] = data
    return data


def _integer(text: str) -> int:
    number = int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    # Messages could not show it; decimal text of that length is refused by int itself.
    str(number)
    return number


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


# --- Files ----------------------------------------------------------------------------------


def load_hardware_config(
    path: str | Path, overrides: Mapping[str, object] = _NO_OVERRIDES
) -> HardwareConfig:
    """The hardware file at ``path`` with ``overrides`` put in its place.

    Override keys are dotted paths inside the file (``tech_param.DRAM.bandwidth``,
    ``parallelism.tensor``), values as in YAML, unit text included. Raises ConfigError for
    anything wrong with the file or an override; issues DeepFlowWarning for budgets whose
    parts add up to more than the whole. Files of the older style, one for hardware and model,
    are accepted and translated (see ``old_style.py``); override keys are the current ones.

    A file with ``base``, the path of another hardware file seen from its own folder, holds only
    what differs from that one. Names and aliases are its own.
    """
    file = str(path)
    data = _on_its_base(_mapping_of(read_yaml(path), file, "hardware"), path)
    _check_fma_spelling(data, file)
    written: Mapping[str, str] = {}
    older = translate(data, file)
    if older is not None:
        data, written = older.hardware, older.written
    _refuse_other_kind(data, file, wanted_model=False)
    with keys_as_written(written, overrides):
        config = build(HardwareConfig, data, file=file)
        config = replace(config, file=file, name=_name_of(config.name, path))
        config = replace_paths(config, _with_consequences(config, {}))
        config = with_overrides(config, _canonical_overrides(config, overrides, file))
    for problem in budget_problems(config):
        warnings.warn(f"{file}: {problem}", DeepFlowWarning, stacklevel=2)
    return config


def _on_its_base(
    data: Mapping[Any, object], path: str | Path, below: tuple[Path, ...] = ()
) -> Mapping[Any, object]:
    """The content of a hardware file, put over that of its ``base`` if it names one."""
    base = data.get("base")
    if "base" not in data:
        return data
    file = str(path)
    if not isinstance(base, str) or not base:
        raise ConfigError("is no path of a hardware file", file=file, key="base", value=base)
    below = (*below, Path(path).resolve())
    parent = Path(path).parent / base
    if parent.resolve() in below:
        raise ConfigError("leads back to the file itself", file=file, key="base", value=base)
    if not parent.is_file():
        raise ConfigError(f"there is no file {parent}", file=file, key="base", value=base)
    content = _mapping_of(read_yaml(parent), str(parent), "hardware")
    inherited = _on_its_base(content, parent, below)
    # A mistake in the other file is told as that file's.
    load_hardware_config(parent)
    own = {key: value for key, value in data.items() if key != "base"}
    kept = {key: value for key, value in inherited.items() if key not in ("name", "aliases")}
    return _merged(kept, own)


def _merged(below: Mapping[Any, object], above: Mapping[Any, object]) -> dict[Any, object]:
    """Both mappings in one, section by section; ``above`` wins."""
    result = dict(below)
    for key, value in above.items():
        other = result.get(key)
        both = isinstance(value, Mapping) and isinstance(other, Mapping)
        result[key] = _merged(other, value) if both else value  # type: ignore[arg-type]
    return result


def _name_of(given: str, path: str | Path) -> str:
    """A configuration's name, which tables and plots show: by default its file's."""
    if not given.isprintable() or "/" in given or "\\" in given:
        raise ConfigError(
            "cannot be shown in tables and plots",
            file=str(path),
            key="name",
            value=given,
            allowed="text on one line without slashes",
        )
    return given or Path(path).stem


def load_model_config(
    path: str | Path, overrides: Mapping[str, object] = _NO_OVERRIDES
) -> ModelConfig:
    """The model file at ``path`` with ``overrides`` put in its place.

    Override keys are relative to ``model_param`` (``global_batch_size``); values as in
    YAML. Raises ConfigError for anything wrong with the file or an override. Files of the
    older style, one for hardware and model, are accepted.
    """
    file = str(path)
    data = _mapping_of(read_yaml(path), file, "model")
    older = translate(data, file)
    if older is not None:
        data = older.model or older.hardware
    _refuse_other_kind(data, file, wanted_model=True)
    for section in data:
        if section != "model_param":
            raise ConfigError(
                "unknown key" + did_you_mean(str(section), ["model_param"]),
                file=file,
                key=str(section),
                allowed="model_param",
            )
    parameters = _mapping_of(data["model_param"], file, "model_param", key="model_param")
    mode = parameters.get("mode")
    modes = ", ".join(MODEL_MODES)
    if "mode" not in parameters:
        raise ConfigError(
            "missing key: kind of model", file=file, key="model_param.mode", allowed=modes
        )
    if not isinstance(mode, str) or mode not in MODEL_MODES:
        raise ConfigError(
            "no such kind of model",
            file=file,
            key="model_param.mode",
            value=shown(mode),
            allowed=modes,
        )
    config: ModelConfig = build(MODEL_MODES[mode], parameters, file=file, path="model_param")
    config = replace(config, name=_name_of(config.name, path))
    config = replace_paths(config, _canonical_overrides(config, overrides, file))
    check_model(config, file)
    return config


def _mapping_of(data: object, file: str, kind: str, key: str = "") -> Mapping[Any, object]:
    if data is None:
        raise ConfigError(f"is empty; expected the keys of a {kind} file", file=file, key=key)
    if not isinstance(data, Mapping):
        found = shown(data)
        raise ConfigError(
            f"expected a mapping, the keys of a {kind} file, and found {found}",
            file=file,
            key=key,
        )
    return data


def _refuse_other_kind(data: Mapping[Any, object], file: str, *, wanted_model: bool) -> None:
    """Tells hardware files and model files apart."""
    hardware_keys = {spelling for key in keys_of(HardwareConfig) for spelling in key.spellings}
    sections = sorted(hardware_keys.intersection(data) - {"name", "aliases"})
    has_model = "model_param" in data
    if has_model and not wanted_model:
        raise ConfigError(
            "this is a model file; a hardware file is needed here", file=file, key="model_param"
        )
    if not has_model and wanted_model:
        raise ConfigError(
            "this is a hardware file; a model file is needed here"
            if sections
            else "missing key: what is computed",
            file=file,
            key="model_param",
        )


# --- Overrides ------------------------------------------------------------------------------


def split_overrides(
    overrides: Mapping[str, object], source: str = ""
) -> tuple[dict[str, object], dict[str, object]]:
    """Full paths, with their root, to (overrides of hardware, overrides of model).

    Roots are ``hardware.``, ``model.`` and, for short, ``parallelism.`` and ``backend.``,
    which are sections of the hardware file. ``source`` is named in errors: ConfigError for
    another root.
    """
    hardware: dict[str, object] = {}
    model: dict[str, object] = {}
    for path, value in overrides.items():
        root, dot, rest = path.partition(".")
        if not dot or not rest or root not in _OVERRIDE_ROOTS:
            raise ConfigError(
                "not a path to a value" + _suggested_root(path),
                file=source,
                key=path,
                allowed="paths that start with hardware., model., parallelism. or backend.",
            )
        if root == "model":
            model[rest] = value
        else:
            hardware[rest if root == "hardware" else path] = value
    return hardware, model


def _suggested_root(path: str) -> str:
    """A full path that ends in ``path``, as a question."""
    if path.rstrip(".") in _OVERRIDE_ROOTS:
        return "; name a key below it"
    for root, section in (
        ("parallelism", Parallelism),
        ("hardware", HardwareConfig),
        ("model", LlmModel),
        ("model", LstmModel),
        ("model", GemmModel),
        ("model", VitModel),
        ("model", CollectiveModel),
    ):
        try:
            resolve_path(section, path)
        except ConfigError:
            continue
        return f"; did you mean '{root}.{path}'?"
    return did_you_mean(path.partition(".")[0], _OVERRIDE_ROOTS)


def canonical_override(
    config: HardwareConfig | ModelConfig,
    path: str,
    value: object,
    file: str = "",
    shown_key: str = "",
) -> tuple[str, object]:
    """(canonical path, value in SI units) of one override, checked on its own.

    ``shown_key`` is what errors call it (default: ``path``). Raises ConfigError if no such
    key exists or the value is of the wrong type, unit or range.
    """
    shown_key = shown_key or path
    if not isinstance(config, HardwareConfig):
        path = path.removeprefix("model_param.")
    canonical = resolve_path(type(config), path, file=file, shown_key=shown_key)
    checked = parse_at(type(config), canonical, value, file=file, shown_key=shown_key)
    return canonical, checked


def _canonical_overrides(
    config: HardwareConfig | ModelConfig, overrides: Mapping[str, object], file: str
) -> dict[str, object]:
    canonical: dict[str, object] = {}
    written: dict[str, str] = {}
    for path, value in overrides.items():
        key, checked = canonical_override(config, path, value, file)
        if key in written:
            raise ConfigError(
                f"overridden twice, as '{written[key]}' and as '{path}'", file=file, key=key
            )
        written[key] = path
        canonical[key] = checked
    return canonical


def with_overrides(config: AnyConfig, values: Mapping[str, object]) -> AnyConfig:
    """``config`` with values at canonical paths replaced, then checked as a whole.

    Paths and values are those of ``canonical_override`` and are not checked again. Of
    ``tensor`` and ``kp1 * kp2``, two ways to say the same, an override of one puts the other
    out of force. Raises ConfigError if the keys contradict each other.
    """
    if isinstance(config, HardwareConfig):
        values = _with_consequences(config, values)
    changed = replace_paths(config, values)
    if isinstance(changed, HardwareConfig):
        check_hardware(changed)
    else:
        check_model(changed)
    return changed


def _with_consequences(
    config: HardwareConfig, values: Mapping[str, object]
) -> Mapping[str, object]:
    """``values`` plus what follows from them, so that one meaning has one form.

    FMA_width is written out as FMA_d1 and FMA_d2; a new ``tensor`` puts ``kp1`` and ``kp2``
    out of force where they disagree, and the other way round.
    """
    result = dict(values)
    width_key = "tech_param.core.FMA_width"
    width = values.get(width_key, config.tech_param.core.FMA_width)
    if width is not None:
        for name in ("FMA_d1", "FMA_d2"):
            if result.setdefault(f"tech_param.core.{name}", width) != width:
                raise _fma_contradiction(config.file, name, values[f"tech_param.core.{name}"])
        result[width_key] = None
    tensor, kp1, kp2 = (f"scheduling_param.{name}" for name in ("tensor", "kp1", "kp2"))
    old = config.scheduling_param
    kernel_degree = _degree(values.get(kp1, old.kp1)) * _degree(values.get(kp2, old.kp2))
    if kernel_degree not in (1, values.get(tensor, old.tensor)):
        if tensor in values and kp1 not in values and kp2 not in values:
            result[kp1] = result[kp2] = None
        elif tensor not in values and (kp1 in values or kp2 in values):
            result[tensor] = None
    return result


def _degree(value: object) -> int:
    return value if isinstance(value, int) else 1


# --- Checks across keys ---------------------------------------------------------------------


def _check_fma_spelling(data: Mapping[Any, object], file: str) -> None:
    """FMA_width beside FMA_d1 or FMA_d2: seen only in the text, as both have defaults."""
    technology = data.get("tech_param")
    core = technology.get("core") if isinstance(technology, Mapping) else None
    if isinstance(core, Mapping) and core.get("FMA_width") is not None:
        for key in ("FMA_d1", "FMA_d2"):
            if key in core and core[key] != core["FMA_width"]:
                raise _fma_contradiction(file, key, core[key])


def _fma_contradiction(file: str, key: str, value: object) -> ConfigError:
    return ConfigError(
        "contradicts FMA_width; give one or the other",
        file=file,
        key=f"tech_param.core.{key}",
        value=shown(value),
    )


def check_hardware(config: HardwareConfig) -> None:
    """Raises ConfigError if keys of a hardware configuration contradict each other."""
    parallelism = config.scheduling_param
    if parallelism.tensor is not None:
        kernel_degree = (parallelism.kp1 or 1) * (parallelism.kp2 or 1)
        if kernel_degree not in (1, parallelism.tensor):
            raise ConfigError(
                f"contradicts kp1 * kp2 = {kernel_degree}; give one or the other",
                file=config.file,
                key="scheduling_param.tensor",
                value=parallelism.tensor,
                allowed=str(kernel_degree),
            )
    technology = config.tech_param
    dtype, precision = config.sw_param.dtype, config.sw_param.precision
    supported = technology.core.precision_rates.supported
    for key in ("dtype", "matrix_dtype"):
        asked = getattr(config.sw_param, key)
        if asked is not None and asked not in supported:
            raise ConfigError(
                "the device has no rate for it in tech_param.core.precision_rates",
                file=config.file,
                key=f"sw_param.{key}",
                value=asked,
                allowed=", ".join(supported) or "null: precision_rates is empty",
            )
    if dtype is not None and precision != DTYPE_BYTES[dtype]:
        raise ConfigError(
            f"is not the size of an element of sw_param.dtype = {dtype}",
            file=config.file,
            key="sw_param.precision",
            value=precision,
            allowed=str(DTYPE_BYTES[dtype]),
        )
    stored = config.sw_param.weight_dtype
    if stored is not None and STORED_BYTES[stored] >= 1 > config.sw_param.operand_bytes:
        raise ConfigError(
            "has more bits than the products of sw_param.matrix_dtype"
            f" = {config.sw_param.matrix_dtype}",
            file=config.file,
            key="sw_param.weight_dtype",
            value=stored,
            allowed="a type of as many bits or fewer, or null",
        )
    for place, part in (
        ("core", technology.core),
        ("DRAM", technology.DRAM),
        ("network.intra_node", technology.network.intra_node),
        ("network.inter_node", technology.network.inter_node),
    ):
        threshold, nominal = part.threshold_voltage, part.nominal_voltage
        if threshold is not None and nominal is not None and threshold >= nominal:
            raise ConfigError(
                "must be below nominal_voltage, or nothing switches",
                file=config.file,
                key=f"tech_param.{place}.threshold_voltage",
                value=threshold,
                allowed=f"below {nominal:g} V",
            )
    area = config.area_breakdown
    if area.device_area_budget < area.proc_chip_area_budget:
        raise ConfigError(
            "the chip does not fit on the device",
            file=config.file,
            key="area_breakdown.device_area_budget",
            value=area.device_area_budget,
            allowed=f"at least proc_chip_area_budget = {area.proc_chip_area_budget:g} mm2",
        )
    for key in ("intra_node", "inter_node"):
        name = getattr(config.network_topology, key)
        if name in TOPOLOGY_NAMES:
            continue
        # Old files may say anything here, even ``true``; only what must be a slip is refused.
        close = difflib.get_close_matches(name.lower(), TOPOLOGY_NAMES, n=1, cutoff=0.75)
        if close:
            raise ConfigError(
                f"no such topology; did you mean '{close[0]}'?",
                file=config.file,
                key=f"network_topology.{key}",
                value=name,
                allowed=", ".join(TOPOLOGY_NAMES),
            )
    try:
        config.network_topology.faults.links()
    except ValueError as error:
        raise ConfigError(
            "is no link",
            file=config.file,
            key="network_topology.faults",
            value=str(error),
            allowed="pairs such as 0-1, 9-switch or leaf0-spine1, with commas in between",
        ) from None
    levels = config.memory_hierarchy
    memories = [levels.l0.type, levels.l1.type, levels.l2.type, levels.l3.type]
    if memories[3] != "DRAM" or len(set(memories)) != len(memories):
        raise ConfigError(
            "the four levels must be four different memories, DRAM the last",
            file=config.file,
            key="memory_hierarchy",
            value=", ".join(memories),
        )


def check_model(config: ModelConfig, file: str = "") -> None:
    """Raises ConfigError if keys of a model configuration contradict each other."""
    problem: tuple[str, str] | None = None
    match config:
        case LlmModel():
            problem = _contradiction(config)
        case VitModel():
            if config.image_size % config.patch_size:
                problem = ("patch_size", f"must divide image_size = {config.image_size}")
            else:
                problem = _contradiction(config.transformer)
    if problem is not None:
        key, text = problem
        raise ConfigError(
            text, file=file, key=f"model_param.{key}", value=shown(getattr(config, key))
        )


def _contradiction(model: LlmModel) -> tuple[str, str] | None:
    """(key, what is wrong with it) for the first key that contradicts others."""
    if model.head_dim is None and model.hidden_dim % model.num_heads:
        return "num_heads", f"must divide hidden_dim = {model.hidden_dim}, unless head_dim is given"
    if model.num_heads % model.kv_heads:
        return "num_kv_heads", f"must divide num_heads = {model.num_heads}"
    if model.num_experts is None:
        for key in _EXPERT_KEYS:
            if getattr(model, key) != _LLM_DEFAULTS[key]:
                return key, "needs num_experts, without which all layers are dense"
    else:
        if model.experts_per_token > model.num_experts:
            return "experts_per_token", f"is more than num_experts = {model.num_experts}"
        if model.num_experts % model.expert_groups:
            return "expert_groups", f"must divide num_experts = {model.num_experts}"
        if model.groups_per_token > model.expert_groups:
            return "expert_groups_per_token", f"is more than expert_groups = {model.expert_groups}"
        reachable = model.num_experts // model.expert_groups * model.groups_per_token
        if model.experts_per_token > reachable:
            return "experts_per_token", f"is more than the {reachable} experts of the chosen groups"
        if model.num_dense_layers > model.num_layers:
            return "num_dense_layers", f"is more than num_layers = {model.num_layers}"
        if model.expert_capacity_factor is not None and model.expert_imbalance != 1:
            return (
                "expert_imbalance",
                "has no effect beside expert_capacity_factor, which states the rows of an expert",
            )
    if model.kv_latent_dim is None:
        for key in _LATENT_KEYS:
            if getattr(model, key) != _LLM_DEFAULTS[key]:
                return key, "needs kv_latent_dim, without which attention is not latent"
    elif model.kv_heads != model.num_heads:
        return (
            "num_kv_heads",
            f"must be num_heads = {model.num_heads} in latent attention (kv_latent_dim), where"
            " every head has keys and values",
        )
    if model.tie_embeddings and model.num_classes is not None:
        return "tie_embeddings", "needs an output embedding; num_classes asks for a classifier"
    if model.tie_embeddings and model.patch_dim is not None:
        return "tie_embeddings", "needs an embedding of tokens; patch_dim asks for one of patches"
    return None


_EXPERT_KEYS = (
    "experts_per_token",
    "expert_ffn_dim",
    "num_shared_experts",
    "num_dense_layers",
    "expert_layer_period",
    "expert_groups",
    "expert_groups_per_token",
    "expert_imbalance",
    "expert_capacity_factor",
)
_LATENT_KEYS = ("query_latent_dim", "rotary_head_dim")
_LLM_DEFAULTS = {key.name: key.default for key in keys_of(LlmModel)}


def budget_problems(config: HardwareConfig) -> Iterator[str]:
    """Budgets whose parts add up to more than the whole, one sentence each."""

    def total(parts: object, network: NetworkArea | NetworkPower) -> float:
        names = ("core", "DRAM", "L2", "L1", "reg_mem")
        shares = sum(float(getattr(parts, name)) for name in names)
        return shares + network.intra_node + network.inter_node

    area, power = config.area_breakdown, config.power_breakdown
    perimeter = config.perimeter_breakdown
    area_sum, power_sum = total(area, area.network), total(power, power.network)
    edge_sum = perimeter.DRAM + perimeter.intra_node + perimeter.inter_node
    rounding = 1.001  # Budgets are quoted to three or four digits.
    if area_sum > area.proc_chip_area_budget * rounding:
        yield (
            f"area_breakdown: the parts take {area_sum:g} mm2 of a chip of"
            f" {area.proc_chip_area_budget:g} mm2"
        )
    if power.TDP is not None and power_sum > power.TDP * rounding:
        yield f"power_breakdown: the parts take {power_sum:g} W of a TDP of {power.TDP:g} W"
    if edge_sum > rounding:
        yield f"perimeter_breakdown: the parts take {edge_sum:g} times the chip's edge"


# --- Schema ---------------------------------------------------------------------------------


def json_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a "hardware", "model" or "framework" file.

    Raises ConfigError for other kinds.
    """
    schema: dict[str, Any]
    if kind == "hardware":
        whole = object_schema(HardwareConfig)
        base = {"type": "string", "description": "hardware file that this one changes"}
        on_a_base = {"type": "object", "properties": {"base": base}, "required": ["base"]}
        schema = {"anyOf": [whole, on_a_base]}
    elif kind == "framework":
        # Frameworks are read with this module, so it cannot import them at the top.
        from deepflow.config.framework import framework_schema

        schema = framework_schema()
    elif kind == "model":
        schema = {
            "type": "object",
            "properties": {"model_param": {"anyOf": [_mode_schema(mode) for mode in MODEL_MODES]}},
            "required": ["model_param"],
            "additionalProperties": False,
        }
    else:
        raise ConfigError(
            "no such schema", key="kind", value=kind, allowed="hardware, model, framework"
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"DeepFlow {kind} file",
        **schema,
    }


def _mode_schema(mode: str) -> dict[str, Any]:
    schema = object_schema(MODEL_MODES[mode])
    return {**schema, "title": mode, "allOf": [*schema["allOf"], {"required": ["mode"]}]}
