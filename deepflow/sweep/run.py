"""What is written about a point, and which simulated collectives it needs.

A configuration whose keys contradict each other, or that no machine can run, is a result in a
sweep: a row with a status and a reason. A mistake in the input is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepflow.batch import Outcome, evaluate, evaluate_or_explain
from deepflow.config import flatten
from deepflow.errors import DeepFlowError
from deepflow.prediction import COLUMNS
from deepflow.sweep.quantity import scale_of
from deepflow.version import MODEL_VERSION, __version__

if TYPE_CHECKING:
    from deepflow.astra.store import StoredCollective
    from deepflow.sweep.points import Point

__all__ = (
    "VERSIONS",
    "Outcome",
    "collectives_of",
    "evaluate",
    "evaluate_or_explain",
    "point_record",
    "prediction_table",
)

VERSIONS = {"deepflow_version": __version__, "model_version": MODEL_VERSION}


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
        "hardware": hardware_overrides.get("name", outcome.hardware.name),
        "model": model_overrides.get("name", outcome.model.name),
        **outcome.prediction.as_row(),
        "digest": digest,
        **VERSIONS,
        "configuration": {
            "hardware": {**flatten(outcome.hardware), **hardware_overrides},
            "model": {**flatten(outcome.model), **model_overrides},
        },
    }


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
