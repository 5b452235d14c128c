"""Many points at once: the numbers of the single point, an array per result column.

What a point means is (hardware, model) with overrides. ``evaluate`` predicts one, and
``predict_points`` all positions of a sweep that are asked for: matrix multiplications and training
steps together, everything else one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from deepflow.config import HardwareConfig, ModelConfig, with_overrides
from deepflow.config.model import GemmModel, LlmModel, VitModel
from deepflow.errors import ConfigError, DeepFlowError, InfeasiblePoint
from deepflow.hardware import derive_hardware
from deepflow.prediction import COLUMNS, Prediction, predict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]
    Overrides = Sequence[Sequence[tuple[Mapping[str, object], Mapping[str, object]]]]

Model = TypeVar("Model", bound=ModelConfig)


class PointError(DeepFlowError):
    """A mistake in one of many points; ``index`` says in which of those asked for."""

    def __init__(self, index: int, error: DeepFlowError) -> None:
        self.index = index
        super().__init__(str(error))


@dataclass(frozen=True)
class Outcome:
    """A prediction with the configuration it was made from, overrides applied."""

    prediction: Prediction
    hardware: HardwareConfig
    model: ModelConfig


def overridden(
    hardware: HardwareConfig,
    model: Model,
    hardware_overrides: Mapping[str, object],
    model_overrides: Mapping[str, object],
) -> tuple[HardwareConfig, Model]:
    """Both configurations with canonical overrides; raises InfeasiblePoint if they contradict."""
    try:
        if hardware_overrides:
            hardware = with_overrides(hardware, hardware_overrides)
        if model_overrides:
            model = with_overrides(model, model_overrides)
    except ConfigError as error:
        # Every value has been accepted by itself, so it is their combination that is wrong.
        raise InfeasiblePoint(str(error)) from None
    return hardware, model


def evaluate(
    hardware: HardwareConfig,
    model: ModelConfig,
    hardware_overrides: Mapping[str, object],
    model_overrides: Mapping[str, object],
) -> Outcome:
    """Predict ``hardware`` and ``model`` with canonical overrides applied.

    Raises InfeasiblePoint if the combination cannot exist, DeepFlowError for mistakes.
    """
    hardware, model = overridden(hardware, model, hardware_overrides, model_overrides)
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


def predict_points(
    hardware: HardwareConfig,
    model: ModelConfig,
    overrides: Overrides,
    positions: NDArray[np.int64],
) -> Columns:
    """``evaluate_or_explain`` of every row of ``positions`` (points, axes), by result column.

    ``overrides[axis][position]``: hardware and model changes, canonical path -> value in SI units.
    Columns of text are arrays of objects, all others float64 with NaN for None.

    Raises PointError for the first point that is a mistake.
    """
    try:
        match model:
            case GemmModel():
                from deepflow.batch.gemm import predict_gemm_points

                return predict_gemm_points(hardware, model, overrides, positions)
            case LlmModel() | VitModel() if _trains(model, overrides):
                from deepflow.batch.training import predict_training_points

                return predict_training_points(hardware, model, overrides, positions)
            case _:
                pass
    except DeepFlowError:
        # Which point it is, only that point by itself can say.
        pass
    columns = empty_columns(len(positions))
    fill_one_by_one(columns, range(len(positions)), hardware, model, overrides, positions)
    return columns


def _trains(model: LlmModel | VitModel, overrides: Overrides) -> bool:
    """Whether every point is a step of training, and none an inference."""
    if isinstance(model, VitModel):
        return True
    asked = [model.run_type]
    asked += [
        str(changes["run_type"])
        for axis in overrides
        for _, changes in axis
        if "run_type" in changes
    ]
    return "inference" not in asked


def empty_columns(points: int) -> Columns:
    """Every column for so many points, without values."""
    import numpy as np

    return {
        name: np.full(points, None, object) if column.dtype is str else np.full(points, np.nan)
        for name, column in COLUMNS.items()
    }


def fill(columns: Columns, which: int | NDArray[np.int64], prediction: Prediction) -> None:
    """The same prediction for the points with the numbers ``which``, in empty columns."""
    for name, value in prediction.as_row().items():
        if value is not None:
            columns[name][which] = value


def fill_one_by_one(
    columns: Columns,
    which: Iterable[int],
    hardware: HardwareConfig,
    model: ModelConfig,
    overrides: Overrides,
    positions: NDArray[np.int64],
) -> None:
    """Predicts the points with the numbers ``which`` by themselves.

    Raises PointError for the first one that is a mistake.
    """
    for index in which:
        of_hardware, of_model = changes_at(overrides, positions[index].tolist())
        try:
            outcome = evaluate_or_explain(hardware, model, of_hardware, of_model)
        except DeepFlowError as error:
            raise PointError(index, error) from error
        fill(columns, index, outcome.prediction)


def changes_at(
    overrides: Overrides, positions: Sequence[int]
) -> tuple[dict[str, object], dict[str, object]]:
    """Hardware and model changes of the point at one position on every axis."""
    of_hardware: dict[str, object] = {}
    of_model: dict[str, object] = {}
    for axis, position in zip(overrides, positions, strict=True):
        of_hardware.update(axis[position][0])
        of_model.update(axis[position][1])
    return of_hardware, of_model
