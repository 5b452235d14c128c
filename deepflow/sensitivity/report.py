"""What is said of an analysis: text, columns, and files of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepflow.errors import DeepFlowError, InfeasiblePoint
from deepflow.files import atomic_output, to_json
from deepflow.prediction import COLUMNS, Column
from deepflow.sensitivity.analysis import Analysis, Change, Plan, Sensitivity
from deepflow.sweep.quantity import scale_of
from deepflow.version import MODEL_VERSION, __version__

PARAMETER_COLUMNS = {
    "parameter": Column(str, "", "hardware key, as for --set"),
    "unit": Column(str, "", "SI unit of value"),
    "value": Column(float, "", "value of the parameter, in unit"),
    "elasticity": Column(float, "", "relative change of the objective over that of the parameter"),
    "elasticity_above": Column(float, "", "the same, of a step up alone"),
    "elasticity_below": Column(float, "", "the same, of a step down alone"),
    "kink": Column(bool, "", "the two differ by more than a tenth, and by more than 0.01"),
    "effect": Column(bool, "", "a small or large change does something"),
    "doubled_factor": Column(float, "", "2, or what the range of the key allows"),
    "doubled_ratio": Column(float, "", "objective with the parameter times that, over the point's"),
    "doubled_status": Column(str, "", "status of that prediction"),
    "halved_factor": Column(float, "", "1/2, or what the range of the key allows"),
    "halved_ratio": Column(float, "", "objective with the parameter times that, over the point's"),
    "halved_status": Column(str, "", "status of that prediction"),
    "note": Column(str, "", "kinks, ends of ranges, what no longer fits"),
}
"""One row per parameter."""

ENDINGS = (".csv", ".json", ".parquet")


def parameter_row(item: Sensitivity) -> dict[str, Any]:
    """The ``PARAMETER_COLUMNS`` of one parameter."""

    def of(change: Change | None, name: str) -> Any:
        return None if change is None else getattr(change, name)

    return {
        "parameter": item.parameter,
        "unit": item.unit,
        "value": float(item.value),
        "elasticity": item.elasticity,
        "elasticity_above": item.up,
        "elasticity_below": item.down,
        "kink": item.kink,
        "effect": item.effect,
        **{
            f"{side}_{name}": of(change, name)
            for side, change in (("doubled", item.doubled), ("halved", item.halved))
            for name in ("factor", "ratio", "status")
        },
        "note": item.note,
    }


def analysis_record(
    plan: Plan, about: dict[str, Any], found: Analysis | InfeasiblePoint
) -> dict[str, Any]:
    """What the JSON of an analysis holds, or of a point that cannot exist; ``about`` names it."""
    if isinstance(found, InfeasiblePoint):
        outcome: dict[str, Any] = {"status": found.status, "reason": str(found)}
        results: dict[str, Any] = {"objective_value": None, "parameters": []}
    else:
        prediction = found.prediction
        outcome = {"status": prediction.status, "reason": prediction.reason}
        total, degree = found.balance
        results = {
            "objective_value": found.value,
            "predictions": found.predictions,
            "elasticities_by_seconds": total,
            "elasticities_by_seconds_expected": degree,
            "parameters": [parameter_row(item) for item in found.sensitivities],
        }
    return {
        **about,
        **outcome,
        "objective": plan.objective,
        "objective_unit": COLUMNS[plan.objective].unit,
        "step_percent": 100 * plan.step,
        "keys": list(plan.keys),
        "deepflow_version": __version__,
        "model_version": MODEL_VERSION,
        **results,
    }


def analysis_text(analysis: Analysis, title: str, everything: bool) -> str:
    """A table for people; without ``everything``, parameters that have no effect are counted."""
    plan = analysis.plan
    column = COLUMNS[plan.objective]
    factor, unit = scale_of(analysis.value, column.unit)
    shown = analysis.sensitivities if everything else analysis.with_effect
    header = ("parameter", "value", "elasticity", "doubled", "halved", "note")
    rows = [_cells(item) for item in shown]
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(5)]
    lines = [
        title,
        f"  {plan.objective} {analysis.value / factor:.4g} {unit}".rstrip()
        + f", {analysis.prediction.status}; elasticity: how many per cent {plan.objective} changes"
        f" when a parameter rises by 1 % (step {100 * plan.step:g} % to both sides)",
        "",
    ]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [row[place].rjust(widths[place]) for place in range(1, 5)]
        lines.append(f"  {'  '.join(cells)}  {row[5]}".rstrip())
    without = len(analysis.sensitivities) - len(analysis.with_effect)
    lines.append("")
    if without and not everything:
        lines.append(f"Without effect: {without} (--all lists them).")
    if not plan.keys:
        total, degree = analysis.balance
        lines.append(
            f"Elasticities in times less those in rates: {total:.3f}; {degree} if there is no kink"
            " and no other time."
        )
    return "\n".join(lines)


def _cells(item: Sensitivity) -> tuple[str, ...]:
    elasticity = "" if item.elasticity is None else f"{item.elasticity:+.3f}"
    return (
        item.parameter,
        quantity_text(item.value, item.unit),
        elasticity if item.effect else "0",
        _change_text(item.doubled, 2.0),
        _change_text(item.halved, 0.5),
        item.note,
    )


def _change_text(change: Change | None, wanted: float) -> str:
    if change is None:
        return "-"
    text = change.status if change.ratio is None else f"{100 * (change.ratio - 1):+.1f} %"
    return text if change.factor == wanted else f"x{change.factor:.3g}: {text}"


def quantity_text(value: float, unit: str) -> str:
    """A value with its unit, four digits."""
    factor, prefixed = scale_of(value, unit)
    return f"{value / factor:.4g} {prefixed}".rstrip()


def write_table(rows: Sequence[dict[str, Any]], output: str | Path) -> None:
    """Rows of ``PARAMETER_COLUMNS`` as CSV or Parquet, by the ending of ``output``.

    Raises DeepFlowError for another ending.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from deepflow.sweep.tables import arrow_fields

    table = pa.Table.from_pylist(list(rows), schema=pa.schema(arrow_fields(PARAMETER_COLUMNS)))
    check_ending(output)
    with atomic_output(output) as temporary:
        if str(output).endswith(".csv"):
            pa.csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def check_ending(output: str | Path) -> None:
    """Raises DeepFlowError unless ``output`` ends in one of ``ENDINGS``."""
    if Path(output).suffix not in ENDINGS:
        raise DeepFlowError(f"{output}: the ending says the format: {', '.join(ENDINGS)}")


def write_json(record: dict[str, Any], output: str | Path) -> None:
    """A record as JSON."""
    with atomic_output(output) as temporary:
        temporary.write_text(to_json(record) + "\n", encoding="utf-8")
