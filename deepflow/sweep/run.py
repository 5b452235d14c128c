"""Predicting points and writing what was found.

A configuration whose keys contradict each other, or that no machine can run, is a result in a
sweep: a row with a status and a reason. A mistake in the input is an error.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepflow.config import HardwareConfig, ModelConfig, flatten, with_overrides
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import derive_hardware
from deepflow.prediction import COLUMNS, Prediction, predict
from deepflow.sweep.quantity import scale_of
from deepflow.version import MODEL_VERSION, __version__

if TYPE_CHECKING:
    from deepflow.astra.store import StoredCollective
    from deepflow.sweep.points import Point

VERSIONS = {"deepflow_version": __version__, "model_version": MODEL_VERSION}


@dataclass(frozen=True)
class Outcome:
    """A prediction with the configuration it was made from, overrides applied."""

    prediction: Prediction
    hardware: HardwareConfig
    model: ModelConfig


def evaluate(
    hardware: HardwareConfig,
    model: ModelConfig,
    hardware_overrides: Mapping[str, object],
    model_overrides: Mapping[str, object],
) -> Outcome:
    """Predict ``hardware`` and ``model`` with canonical overrides applied.

    Raises InfeasiblePoint if the combination cannot exist, DeepFlowError for mistakes.
    """
    try:
        if hardware_overrides:
            hardware = with_overrides(hardware, hardware_overrides)
        if model_overrides:
            model = with_overrides(model, model_overrides)
    except ConfigError as error:
        # Every value has been accepted by itself, so it is their combination that is wrong.
        raise InfeasiblePoint(str(error)) from None
    return Outcome(predict(derive_hardware(hardware), model), hardware, model)


def evaluate_or_explain(
    hardware: HardwareConfig,
    model: ModelConfig,
    hardware_overrides: Mapping[str, object],
    model_overrides: Mapping[str, object],
) -> Outcome:
    """``evaluate``, with an infeasible point as an outcome that has a status and a reason."""
    try:
        return evaluate(hardware, model, hardware_overrides, model_overrides)
    except InfeasiblePoint as error:
        return Outcome(Prediction(status=error.status, reason=str(error)), hardware, model)


def collectives_of(point: Point) -> dict[str, StoredCollective]:
    """The results of ASTRA-sim that ``point`` needs, by the names of their files.

    Found by predicting the point once with times that mean nothing. Empty if the point needs none,
    or cannot be predicted with simulated collectives whatever they take.
    """
    if not point.may_run_astra_sim:
        return {}
    from deepflow.astra.store import recorded_collectives

    base = point.base
    # Whoever predicts the point says what there is to say about it.
    with warnings.catch_warnings(), recorded_collectives() as needed:
        warnings.simplefilter("ignore")
        try:
            outcome = evaluate(
                base.hardware, base.model, point.hardware_overrides, point.model_overrides
            )
        except DeepFlowError:
            return {}
    return needed if outcome.prediction.backend_used == "astra" else {}


def point_record(
    outcome: Outcome,
    digest: str,
    hardware_overrides: Mapping[str, object],
    model_overrides: Mapping[str, object],
) -> dict[str, Any]:
    """What a point's JSON file holds: its columns, fingerprint, versions and configuration."""
    return {
        "hardware": outcome.hardware.name,
        "model": outcome.model.name,
        **outcome.prediction.as_row(),
        "digest": digest,
        **VERSIONS,
        "configuration": {
            "hardware": {**flatten(outcome.hardware), **hardware_overrides},
            "model": {**flatten(outcome.model), **model_overrides},
        },
    }


def point_rows(points: Iterable[Point], total: int, what: str) -> Iterator[dict[str, Any]]:
    """The rows of ``points`` one after the other, with progress on stderr every few seconds.

    Raises DeepFlowError, naming the point, for the first one that fails.
    """
    started = reported = time.monotonic()
    for done, point in enumerate(points):
        now = time.monotonic()
        if now - reported >= 5:
            reported = now
            rate = done / (now - started)
            print(
                f"{what}: {done} of {total} points, {rate:.0f} points/s,"
                f" {(total - done) / rate:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        try:
            outcome = evaluate_or_explain(
                point.base.hardware,
                point.base.model,
                point.hardware_overrides,
                point.model_overrides,
            )
        except DeepFlowError as error:
            raise DeepFlowError(f"point {point.id}: {error}") from error
        yield {
            "point": point.id,
            "hardware": outcome.hardware.name,
            "model": outcome.model.name,
            "axes": point.axis_values,
            **outcome.prediction.as_row(),
            "digest": point.digest,
            **VERSIONS,
        }
    seconds = time.monotonic() - started
    print(f"{what}: {total} points in {seconds:.1f} s", file=sys.stderr)


def prediction_table(outcome: Outcome) -> str:
    """One line per column that has a value: name, value with unit, and meaning or a long text."""
    lines = [f"{outcome.model.name} on {outcome.hardware.name}"]
    for name, value in outcome.prediction.as_row().items():
        if value in (None, ""):
            continue
        column = COLUMNS[name]
        text = str(value)
        if column.dtype is float:
            factor, unit = scale_of(value, column.unit)
            text = f"{value / factor:.4g} {unit}"
        # A sentence, such as a reason, speaks for itself.
        doc = column.doc if len(text) <= 18 else ""
        lines.append(f"  {name:<30} {text:<18} {doc}".rstrip())
    return "\n".join(lines)
