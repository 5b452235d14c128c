"""Tables of measurements: reading them, writing them with predictions, and errors by group."""

from __future__ import annotations

import csv
import gzip
import io
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from deepflow.errors import ConfigError
from deepflow.record import record

ADDED_COLUMNS = ("predicted", "error_percent", "not_predicted")


@record(frozen=True)
class ValidatedRow:
    """A row of the table with what was predicted for it, in the row's unit.

    ``yes_or_no``: the measured value is 1 or 0. ``explicable``: false for runs of a framework
    with a known fault, which no model of its design can predict; their errors are shown and
    count nowhere else.
    """

    row: dict[str, str]
    group: str
    measured: float | None
    predicted: float | None
    not_predicted: str
    yes_or_no: bool = False
    explicable: bool = True

    @property
    def error_percent(self) -> float | None:
        """Signed, of the measured value; of a yes (1) or no (0), the whole for a wrong answer."""
        if self.predicted is None or self.measured is None:
            return None
        if self.yes_or_no:
            return 100 * (self.predicted - self.measured)
        if not self.measured:
            return None
        return 100 * (self.predicted / self.measured - 1)

    def as_row(self) -> dict[str, Any]:
        error = self.error_percent
        added = (
            "" if self.predicted is None else f"{self.predicted:.6g}",
            "" if error is None else f"{error:.3f}",
            self.not_predicted,
        )
        return self.row | dict(zip(ADDED_COLUMNS, added, strict=True))


@record(frozen=True)
class GroupError:
    """Errors of the predicted rows of one group, in per cent of the measured values."""

    group: str
    rows: int
    predicted: int
    median_absolute: float | None
    mean_absolute: float | None
    percentile_90: float | None
    largest: float | None
    median_signed: float | None
    explicable: bool

    def as_row(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzip-compressed if its name ends in .gz.

    Raises:
        ConfigError: the file is missing, empty, or no CSV table.
    """
    file = str(path)
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if file.endswith(".gz") else content).decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
    except FileNotFoundError:
        raise ConfigError("no such file", file=file) from None
    except (OSError, UnicodeDecodeError, csv.Error, EOFError, zlib.error) as error:
        raise ConfigError(f"cannot be read as a CSV table: {error}", file=file) from None
    if not rows:
        raise ConfigError("has no rows", file=file)
    return rows


def write_table(rows: Iterable[ValidatedRow], path: str | Path) -> None:
    """The table as it was, with the added columns."""
    records = [row.as_row() for row in rows]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def summarize(rows: Iterable[ValidatedRow]) -> list[GroupError]:
    """Errors by group, in the order of appearance."""
    groups: dict[str, list[ValidatedRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [group_error(group, members) for group, members in groups.items()]


def group_error(group: str, rows: list[ValidatedRow]) -> GroupError:
    """Errors of ``rows``, called ``group``; None where none of them has an error."""
    signed = sorted(row.error_percent for row in rows if row.error_percent is not None)
    absolute = sorted(abs(error) for error in signed)
    explicable = all(row.explicable for row in rows)
    if not absolute:
        return GroupError(group, len(rows), 0, None, None, None, None, None, explicable)
    return GroupError(
        group,
        len(rows),
        len(absolute),
        statistics.median(absolute),
        statistics.fmean(absolute),
        absolute[min(len(absolute) - 1, int(0.9 * len(absolute)))],
        absolute[-1],
        statistics.median(signed),
        explicable,
    )


def reasons_text(rows: Iterable[ValidatedRow], most: int = 3) -> str:
    """Why rows are not predicted, the most frequent reasons first; empty if all are."""
    reasons = Counter(item.not_predicted for item in rows if item.not_predicted).most_common()
    lines = [f"not predicted: {count} rows: {reason}" for reason, count in reasons[:most]]
    if rest := sum(count for _, count in reasons[most:]):
        lines.append(f"not predicted: {rest} rows for other reasons")
    return "\n".join(lines)


def summary_text(groups: Iterable[GroupError]) -> str:
    """``summarize`` as a table for a terminal."""
    groups = list(groups)
    width = max(44, *(len(item.group) for item in groups))
    heads = " ".join(f"{head:>9}" for head in ("predicted", "median", "mean", "90 %", "bias"))
    lines = [f"{'group':{width}} {'rows':>6} {heads}"]
    for item in groups:
        figures = (
            item.median_absolute,
            item.mean_absolute,
            item.percentile_90,
            item.median_signed,
        )
        shown = " ".join(f"{'-' if value is None else f'{value:.1f} %':>9}" for value in figures)
        lines.append(f"{item.group:{width}} {item.rows:>6} {item.predicted:>9} {shown}")
    return "\n".join(lines)
