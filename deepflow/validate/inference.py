"""Inference in measured tables: which model, requests and quantity a row states.

One column per key, as for training runs: ``input_len``, ``output_len``, ``global_batch`` (requests
that are answered at the same time), ``tp``, ``metric`` ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from deepflow.errors import DeepFlowError
from deepflow.prediction import Prediction
from deepflow.validate.training import Metric, Run, metric_name, stated_model

Value = Callable[[Prediction, Run], float | bool | None]

# Sources that send the same prompt again and again to a server that keeps what it has computed of
# it. Koyeb's page has no word on this, but its times leave no room for prompts: 32 prompts of 1,513
# tokens alone would take the device 2.5 s at its peak rate, of 8.5 s for 512 tokens each, which do
# not get by with less memory traffic than 5.6 s at its peak bandwidth.
REPEATED_PROMPTS = "Koyeb"

# A source whose time per token is that of a request over its tokens, the prompt included; its times
# to the first token are about the same, and none of the sort.
ALL_IN_TOKENS = "uci_inf.csv"

# Precisions in which weights and activations are multiplied, and those in which weights are stored.
NARROW_PRODUCTS = ("fp8", "int8", "fp4")
NARROW_WEIGHTS = {"int4": "int4", "awq": "int4", "gptq": "int4", "w4a16": "int4", "w8a16": "int8"}

# Requests that each client of a benchmark sends, which no source says: a round figure that suits
# the times to the first token of inference_llama33_70b_nim. Their median error on H100 is 15 % with
# five or ten, 24 % with 20, 27 % without end and 32 % with three. Nothing else depends on it but
# how the wait for prompts is shared out between first and further tokens.
REQUESTS_PER_CLIENT = 10


def read_run(row: Mapping[str, str]) -> tuple[Run, Metric]:
    """The run and the quantity of ``row``.

    Raises:
        DeepFlowError: the quantity is not predicted.
        KeyError, ValueError: a column is missing, or not a number.
    """
    source = row.get("source", "")
    name = metric_name(row)
    value = _values(source).get(name)
    if value is None:
        raise DeepFlowError(f"{name!r} of inference is not predicted")
    input_len, output_len = int(row["input_len"]), int(row["output_len"])
    model = replace(
        stated_model(row),
        run_type="inference",
        prompt_len=input_len,
        output_len=output_len,
        max_position=input_len + output_len,
        cached_prompt=1.0 if REPEATED_PROMPTS in source else 0.0,
        requests_per_client=REQUESTS_PER_CLIENT,
        wait_when_full=True,
    )
    degrees = {
        "tensor": int(row["tp"]),
        "pipeline": int(row.get("pp") or 1),
        "data": int(row.get("dp") or 1),
        "context": int(row.get("cp") or 1),
        "expert": int(row.get("ep") or 1),
    }
    settings: tuple[tuple[str, object], ...] = tuple(
        (f"scheduling_param.{key}", value) for key, value in degrees.items()
    )
    settings += _number_formats(row.get("precision", ""))
    run = Run(
        row["hardware"],
        int(row["n_gpus"]),
        model,
        settings,
        (source,),
        network=row.get("interconnect", ""),
    )
    return run, Metric(name, value)


def _number_formats(precision: str) -> tuple[tuple[str, str], ...]:
    """Hardware settings for a row's ``precision``; of several that it names the first counts."""
    for word in re.split(r"[^a-z0-9]+", precision.casefold()):
        if word in NARROW_PRODUCTS:
            return (("sw_param.matrix_dtype", word),)
        if word in NARROW_WEIGHTS:
            return (("sw_param.weight_dtype", NARROW_WEIGHTS[word]),)
        if word:
            return ()
    return ()


def is_no_first_token(row: Mapping[str, str]) -> bool:
    """Whether a row's time to the first token is none; see ``ALL_IN_TOKENS``."""
    return metric_name(row) == "ttft" and ALL_IN_TOKENS in row.get("source", "")


def _values(source: str) -> dict[str, Value]:
    """What the names of quantities mean, in the rows' units."""
    times = ("e2e_latency", "e2e_latency_derived=ttft+itl*", "total_time")
    rates = ("throughput", "output_throughput", "output_tokens_per_s")
    values: dict[str, Value] = {
        **dict.fromkeys(times, _column("time_s")),
        **dict.fromkeys(rates, _column("tokens_per_second")),
        "ttft": _column("time_to_first_token_s"),
        "itl": _column("time_per_output_token_s"),
        "tpot": _column("time_per_output_token_s"),
        "requests_per_s": _column("requests_per_second"),
        "total_tokens_per_s": _every_token,
    }
    if ALL_IN_TOKENS in source:
        values["tpot"] = _time_over_tokens
    return values


def _column(name: str) -> Value:
    def value(prediction: Prediction, run: Run) -> float | None:
        found: float | None = getattr(prediction, name)
        return found

    return value


def _every_token(prediction: Prediction, run: Run) -> float:
    """Tokens per second, those of prompts included."""
    assert prediction.requests_per_second is not None
    return prediction.requests_per_second * (run.model.prompt_tokens + run.model.output_len)


def _time_over_tokens(prediction: Prediction, run: Run) -> float:
    assert prediction.time_s is not None
    return prediction.time_s / run.model.output_len
