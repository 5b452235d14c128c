"""Training runs of measured tables: which model, layout and quantity a row states.

Three layouts of columns are read: one column per key of the run (``run_type``, ``n_layers``,
``tp``, ``metric`` ...), those of a calculator's check (``quantity``, ``tensor_par``,
``activation_recompute`` ...), and those of published summaries, which name a model by its size
(``phase``, ``scheme``, ``model``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deepflow.config import with_overrides
from deepflow.config.model import LlmModel
from deepflow.errors import DeepFlowError
from deepflow.hardware import Hardware, derive_hardware
from deepflow.prediction import Prediction, predict
from deepflow.record import record
from deepflow.validate.collectives import predicted_seconds as collective_seconds
from deepflow.validate.machines import Machines
from deepflow.workload.transformer import parameter_count

GIB = 2**30


@record(frozen=True)
class Run:
    """A training run: ``model`` on ``devices`` of ``machine``; hashable.

    ``settings`` are (hardware path, value) pairs; ``texts`` name the framework, ``network`` the
    links.
    ``node_bus_bandwidth``: measured in an all-reduce within a node of this run, in bytes/s.
    """

    machine: str
    devices: int
    model: LlmModel
    settings: tuple[tuple[str, object], ...]
    texts: tuple[str, ...]
    node_bus_bandwidth: float | None = None
    network: str = ""


@record(frozen=True)
class Metric:
    """What a row measured: ``value`` gets it, in the row's unit, from a prediction."""

    name: str
    value: Callable[[Prediction, Run], float | bool | None]
    is_time: bool = True


def _column(name: str, scale: float = 1.0) -> Callable[[Prediction, Run], float | bool | None]:
    def value(prediction: Prediction, run: Run) -> float | bool | None:
        found = getattr(prediction, name)
        return None if found is None else found * scale

    return value


def _executed_teraflops(prediction: Prediction, run: Run) -> float:
    """TFLOP/s per device with recomputation counted, as in arXiv 2104.04473, section 3.

    F = 96 B s l h^2 (1 + s / (6 h) + V / (16 l h)) FLOP per step with full recomputation; the
    96 is 72 without.
    """
    model = run.model
    h, s, layers = model.hidden_dim, model.seq_len, model.num_layers
    per_layer = 96 if dict(run.settings).get("scheduling_param.recompute") == "full" else 72
    flops = model.global_batch_size * s * h * h * layers * per_layer * (1 + s / (6 * h))
    flops += 6.0 * model.global_batch_size * s * h * model.vocab_size
    return flops / _seconds(prediction) / run.devices * 1e-12


def _days_per_300_billion_tokens(prediction: Prediction, run: Run) -> float:
    tokens = run.model.global_batch_size * run.model.seq_len
    return 300e9 / tokens * _seconds(prediction) / 86400


def _allocator_gibibytes(prediction: Prediction, run: Run) -> float:
    """What the framework's allocator holds at the worst moment: driver and libraries are not in."""
    peak, reserved = prediction.peak_memory_bytes, prediction.reserved_bytes
    assert peak is not None and reserved is not None  # A training step has both.
    return (peak - reserved) / GIB


def _updating_gibibytes(prediction: Prediction, run: Run) -> float:
    """What is in use while weights are updated, when no activations are.

    nanotron logs the peak of that phase. With ZeRO 1 and 2 the weights of all ranks arrive in
    buffers before they are copied to where they belong.
    """
    static, weights = prediction.static_memory_bytes, prediction.weights_bytes
    assert static is not None and weights is not None  # A training step has both.
    settings = dict(run.settings)
    gathers = settings.get("scheduling_param.zero") in (1, 2)
    ranks = settings.get("scheduling_param.data", 1)
    return (static + (weights if gathers and ranks != 1 else 0.0)) / GIB


def _seconds(prediction: Prediction) -> float:
    assert prediction.time_s is not None  # A training step that was predicted has a time.
    return prediction.time_s


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tok_per_s_per_gpu", _column("tokens_per_second_per_device")),
        Metric("tokens/s per GPU", _column("tokens_per_second_per_device")),
        Metric("throughput", _column("tokens_per_second")),
        Metric("step_time", _column("time_s")),
        Metric("step_time_derived", _column("time_s")),
        Metric("iteration_time", _column("time_s")),
        Metric("training_iteration_time", _column("time_s")),
        Metric("model_tflops_per_gpu", _column("flops_per_second_per_device", 1e-12)),
        Metric("TFLOP/s per GPU", _executed_teraflops),
        Metric("days per 300B tokens", _days_per_300_billion_tokens),
        Metric("mfu", _column("model_flops_utilization", 100.0)),
        Metric("mem_allocated", _updating_gibibytes, is_time=False),
        Metric("mem_reserved", _allocator_gibibytes, is_time=False),
        Metric("fits_in_memory", _column("fits_in_memory"), is_time=False),
    )
}

# Layers, width and heads of the models of arXiv 2104.04473, table 1, by their size in billions.
MEGATRON_MODELS = {
    "1.7B": (24, 2304, 24),
    "3.6B": (30, 3072, 32),
    "7.5B": (36, 4096, 32),
    "18.4B": (40, 6144, 48),
    "39.1B": (48, 8192, 64),
    "76.1B": (60, 10240, 80),
    "145.6B": (80, 12288, 96),
    "174.6B": (96, 12288, 96),
    "310.1B": (96, 16384, 128),
    "529.6B": (105, 20480, 128),
    "1008.0B": (128, 25600, 160),
}
MEGATRON_VOCABULARY = 51200

# See ``_software``.
CHECKED_GATHER_GBPS = 252.0
CHECKED_COLLECTIVES = "TORCH_DISTRIBUTED_DEBUG=DETAIL"

# Dropout of Megatron-LM's GPT runs: arXiv 2205.05198, section 4, counts the masks.
MEGATRON_DROPOUT = 0.1


def recognise(row: Mapping[str, str]) -> Callable[[Mapping[str, str]], tuple[Run, Metric]] | None:
    """The function that reads ``row``, or None if it is no run of training or inference.

    It raises DeepFlowError with the reason if the row cannot be predicted, KeyError or
    ValueError for a column that is missing or not a number.
    """
    if row.get("run_type") == "train":
        return _read_run
    if row.get("run_type") == "inference":
        from deepflow.validate.inference import read_run

        return read_run
    if row.get("quantity") == "training_iteration_time":
        return _read_calculation
    if row.get("phase") == "train":
        return _read_publication
    return None


def metric_name(row: Mapping[str, str]) -> str:
    """What a row measured, without a remark in brackets such as the meaning of 1 and 0."""
    name = row.get("metric") or row.get("quantity") or row.get("unit", "")
    return name.partition("(")[0].strip()


def measured_value(row: Mapping[str, str]) -> float:
    """The measurement of a training row, in its unit."""
    return float(row["measured_value"] if "measured_value" in row else row["value"])


def is_explicable(row: Mapping[str, str]) -> bool:
    """Whether the framework ran as it was meant to, and the quantity is what its name says.

    Pipelines of the Ultra-Scale study before its fix (``after_pp_fix``) did not: their times are
    no property of a schedule. Memory was not affected.
    """
    if row.get("run_type") == "inference":
        from deepflow.validate.inference import is_no_first_token

        return not is_no_first_token(row)
    metric = METRICS.get(metric_name(row))
    timed = metric is not None and metric.is_time
    return not (timed and row.get("after_pp_fix") == "False" and row.get("pp", "1") != "1")


def why_inexplicable(row: Mapping[str, str]) -> str:
    """What is the matter with a row that is not explicable, in a few words."""
    if row.get("run_type") == "inference":
        return "not a time to the first token"
    return "before the framework's pipeline fix"


class Predictor:
    """Predictions of runs; rows of one run, which differ in their metric, share one."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._done: dict[Run, Prediction | DeepFlowError] = {}

    def predict(self, run: Run) -> Prediction:
        """The prediction of ``run``; raises DeepFlowError if there is none."""
        if run not in self._done:
            try:
                self._done[run] = self._predict(run)
            except DeepFlowError as error:
                self._done[run] = error
        result = self._done[run]
        if isinstance(result, DeepFlowError):
            raise result
        return result

    def _predict(self, run: Run) -> Prediction:
        framework = self._machines.framework(run.texts)
        config = self._machines.find(run.machine, dict(run.settings), framework, run.network)
        per_node = min(run.devices, config.system_hierarchy.num_devices_per_node)
        config = with_overrides(
            config,
            {
                "system_hierarchy.num_devices_per_node": per_node,
                "system_hierarchy.num_nodes": -(-run.devices // per_node),
            },
        )
        hardware = derive_hardware(config)
        if run.node_bus_bandwidth is not None:
            hardware = _with_measured_links(hardware, run.node_bus_bandwidth)
        return predict(hardware, run.model)


def _with_measured_links(hardware: Hardware, measured: float) -> Hardware:
    """``hardware`` with the links within a node that a run had, if they were far from normal.

    ``measured``: bus bandwidth of an all-reduce of 1 GiB over the devices of a node, which moves
    2 (n - 1) / n bytes per byte. Links are slowed down by its ratio to what the machine's links
    should reach, if that is less than half, as without peer-to-peer copies; smaller differences
    are none of the links.
    """
    config = hardware.config
    ranks = config.system_hierarchy.num_devices_per_node
    link = config.tech_param.network.intra_node.bandwidth
    if ranks == 1 or link is None:
        return hardware
    test = {"op": "all_reduce", "ranks": str(ranks), "bytes": str(GIB)}
    expected = 2 * (ranks - 1) / ranks * GIB / collective_seconds(test, hardware)
    if measured >= expected / 2:
        return hardware
    slowed = {"tech_param.network.intra_node.bandwidth": link * measured / expected}
    return derive_hardware(with_overrides(config, slowed))


def _metric(row: Mapping[str, str]) -> Metric:
    metric = METRICS.get(metric_name(row))
    if metric is None:
        raise DeepFlowError(f"{metric_name(row)!r} is not predicted")
    return metric


def _settings(values: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple((f"scheduling_param.{key}", value) for key, value in values.items())


def _recompute(text: str) -> str:
    """Fused attention recomputes its scores by itself, which no setting has to ask for."""
    if "FlashAttention" in text or text in ("", "none", "False"):
        return "none"
    if text in ("full", "selective"):
        return text
    raise DeepFlowError(f"recompute = {text} is not modelled")


# --- One column per key -----------------------------------------------------------------------


def _read_run(row: Mapping[str, str]) -> tuple[Run, Metric]:
    layout: dict[str, object] = {
        "tensor": int(row["tp"]),
        "pipeline": int(row["pp"]),
        "data": int(row["dp"]),
        "context": int(row.get("cp") or 1),
        "expert": int(row.get("ep") or 1),
        "zero": int(row.get("zero") or 0),
        "sequence_parallel": row.get("sp", "").startswith("True"),
        "recompute": _recompute(row.get("recompute", "")),
    }
    if row.get("micro_batch"):
        layout["micro_batch_size"] = int(row["micro_batch"])
    measured = row.get("ar_intra_GBps")
    run = Run(
        row["hardware"] + (" EFA" if "EFA" in row.get("interconnect", "") else ""),
        int(row["n_gpus"]),
        stated_model(row),
        _settings(layout) + _interleaving(row),
        _software(row),
        float(measured) * 1e9 if measured else None,
        row.get("interconnect", ""),
    )
    return run, _metric(row)


def _software(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row says of its framework, in words and by what its own nodes measured.

    In two thirds of the runs of the Ultra-Scale study every collective takes the host a time per
    rank, whatever its size, and in the others none. The study does not say why; checks of every
    call by torch.distributed, at its debug level DETAIL, work like that. Which of the two a run is
    shows in the bandwidth of gathering 1 GiB within a node: two sharp values, 242 and 263 GB/s.
    Some 13 runs on nodes without copies between devices, at 42 GB/s, count with the former.
    """
    texts = (row.get("source", ""), row.get("variant", ""))
    gathered = row.get("ag_intra_GBps")
    if gathered and float(gathered) < CHECKED_GATHER_GBPS:
        return (*texts, CHECKED_COLLECTIVES)
    return texts


def _interleaving(row: Mapping[str, str]) -> tuple[tuple[str, object], ...]:
    """The schedule of the runs of arXiv 2205.05198 and of table 1 of arXiv 2104.04473.

    The former gives 175B and 530B three parts (table 3). The latter interleaves as well (section
    5.1) and does not say in how many parts: the fewest that layers divide into are taken. Rows of
    other sources say nothing about it and keep the framework's schedule.
    """
    source, layers, stages = row.get("source", ""), int(row["n_layers"]), int(row["pp"])
    if stages == 1:
        return ()
    if "Korthikanti" in source and layers in (96, 105):
        return _schedule(3)
    if "Narayanan" in source and layers % stages == 0 and layers > stages:
        each = layers // stages
        return _schedule(next(parts for parts in range(2, each + 1) if each % parts == 0))
    return ()


def _schedule(parts: int) -> tuple[tuple[str, object], ...]:
    if parts == 1:
        return _settings({"schedule": "1f1b"})
    return _settings({"schedule": "interleaved", "virtual_stages": parts})


def stated_model(row: Mapping[str, str]) -> LlmModel:
    """A row's model; the parameter count, if there is one, tells whether there is a gate."""

    def build(activation: str) -> LlmModel:
        gated = activation == "swiglu"
        return LlmModel(
            global_batch_size=int(row["global_batch"]),
            seq_len=int(row["seq_len"]),
            hidden_dim=int(row["hidden"]),
            num_heads=int(row["heads"]),
            num_kv_heads=int(row.get("kv_heads") or row["heads"]),
            ffn_dim=int(row["ffn_dim"]),
            vocab_size=int(row["vocab"]),
            num_layers=int(row["n_layers"]),
            tie_embeddings=row.get("tie_embeddings") == "True" or not gated,
            activation=activation,
            normalization="rmsnorm" if gated else "layernorm",
            position_embedding="rotary" if gated else "learned",
            dropout=0.0 if gated else MEGATRON_DROPOUT,
            name=row.get("model", ""),
        )

    if not row.get("params"):
        return build("swiglu")
    stated = float(row["params"])
    return min(
        (build("swiglu"), build("gelu")), key=lambda model: abs(parameter_count(model) - stated)
    )


# --- Columns of a calculator ------------------------------------------------------------------


def _read_calculation(row: Mapping[str, str]) -> tuple[Run, Metric]:
    recompute = {"full": "full", "attn_only": "selective", "none": "none"}
    if row["activation_recompute"] not in recompute:
        raise DeepFlowError(f"activation_recompute = {row['activation_recompute']} is unknown")
    layout = {
        "tensor": int(row["tensor_par"]),
        "pipeline": int(row["pipeline_par"]),
        "data": int(row["data_par"]),
        "micro_batch_size": int(row["microbatch_size"]),
        "sequence_parallel": row["tensor_par_comm_type"] == "rs_ag",
        "recompute": recompute[row["activation_recompute"]],
        "zero": 1 if row["optimizer_sharding"] == "True" else 0,
    }
    model = LlmModel(
        global_batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
        hidden_dim=int(row["hidden"]),
        num_heads=int(row["attn_heads"]),
        head_dim=int(row["attn_size"]),
        ffn_dim=int(row["feedforward"]),
        vocab_size=MEGATRON_VOCABULARY,
        num_layers=int(row["num_layers"]),
        tie_embeddings=True,
        position_embedding="learned",
        dropout=MEGATRON_DROPOUT,
        name=row["model"],
    )
    settings = _settings(layout) + _schedule(int(row["pipeline_interleaving"]))
    # The table has runs of this one framework, and says so by the paper's number.
    return Run(row["hardware"], int(row["num_procs"]), model, settings, ("Megatron-LM",)), _metric(
        row
    )


# --- Published summaries ----------------------------------------------------------------------


def _read_publication(row: Mapping[str, str]) -> tuple[Run, Metric]:
    metric = _metric(row)
    shape = MEGATRON_MODELS.get(row["model"])
    if not row["tp"] or not row["dp"]:
        raise DeepFlowError("the publication does not state the layout over devices")
    if shape is None:
        raise DeepFlowError(f"the shape of {row['model']!r} is not known")
    layers, width, heads = shape
    model = LlmModel(
        global_batch_size=int(row["global_batch"]),
        seq_len=int(row["seq_len"]),
        hidden_dim=width,
        num_heads=heads,
        vocab_size=MEGATRON_VOCABULARY,
        num_layers=layers,
        tie_embeddings=True,
        position_embedding="learned",
        dropout=MEGATRON_DROPOUT,
        name=row["model"],
    )
    layout = {
        "tensor": int(row["tp"]),
        "pipeline": int(row["pp"]),
        "data": int(row["dp"]),
        "micro_batch_size": int(row["microbatch"]),
        "sequence_parallel": False,
        # Every run of arXiv 2104.04473 recomputes whole layers (section 3.5).
        "recompute": "full",
        "zero": 3 if row["scheme"].startswith("ZeRO-3") else 0,
    }
    texts = (row["scheme"],)
    return Run(row["hardware"], int(row["num_gpus"]), model, _settings(layout), texts), metric
