"""What is said of a comparison: text for people, records for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from deepflow.compare.points import ABSENT, PointComparison, Setting, Term
from deepflow.compare.sweeps import SweepComparison
from deepflow.prediction import COLUMNS
from deepflow.sweep.quantity import scale_of

MOST_SETTINGS = 40
MOST_POINTS = 5


def point_text(found: PointComparison) -> str:
    """The comparison of two points as tables."""
    a, b = found.a, found.b
    lines = [
        f"A: {a.source}: {a.model} on {a.hardware}",
        f"B: {b.source}: {b.model} on {b.hardware}",
    ]
    if found.versions_differ:
        lines.append(_versions_text(a.versions["model_version"], b.versions["model_version"]))
    lines.append(f"status: {_change(a.columns['status'], b.columns['status'])}")
    lines += [
        f"  {side}: {result.columns['reason']}"
        for side, result in (("A", a), ("B", b))
        if result.columns["reason"]
    ]
    lines += ["", *_settings_text(found.settings)]
    for name, total in found.totals.items():
        if not any(term.difference for term in (total, *found.parts[name])):
            lines += ["", f"{name}: {number_text(total.a, total.unit)} in both"]
            continue
        lines += ["", f"{name}: its parts"]
        lines += _table([*found.parts[name], total], of_total=total)
    if found.terms:
        lines += ["", "other numbers that differ"]
        lines += _table(found.terms, of_total=None)
    return "\n".join(lines)


def _versions_text(one: str, other: str) -> str:
    return (
        f"made by different versions: model {one} and {other}; some of the difference may be"
        " the model's"
    )


def _change(one: object, other: object) -> str:
    return str(one) if one == other else f"{one} -> {other}"


def _settings_text(settings: Sequence[Setting]) -> list[str]:
    if not settings:
        return ["configurations: equal"]
    lines = [f"configurations: keys that differ: {len(settings)}"]
    width = max(len(setting.key) for setting in settings[:MOST_SETTINGS])
    for setting in settings[:MOST_SETTINGS]:
        values = [value_text(value, setting.unit) for value in (setting.a, setting.b)]
        lines.append(f"  {setting.key.ljust(width)}  {values[0]} -> {values[1]}")
    if len(settings) > MOST_SETTINGS:
        lines.append(f"  and {len(settings) - MOST_SETTINGS} more (--json has all)")
    return lines


def value_text(value: Any, unit: str) -> str:
    """A value of a key with its unit, as files have it; "(absent)" for ``ABSENT``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return f"({ABSENT})" if value == ABSENT else str(value)
    return number_text(value, unit)


def number_text(value: float | None, unit: str) -> str:
    """A number with its unit, four digits; "-" for none."""
    if value is None:
        return "-"
    factor, prefixed = scale_of(value, unit)
    return f"{value / factor:.4g} {prefixed}".rstrip()


def percent(relative: float) -> str:
    """``+1.23 %``; of what rounds to zero no sign."""
    rounded = round(100 * relative, 2)
    return f"{rounded:+.2f} %" if rounded else "0.00 %"


def _table(terms: Sequence[Term], of_total: Term | None) -> list[str]:
    """Rows of name, A, B, difference, relative, and (of a total) share of its difference."""
    rows = [("", "A", "B", "B - A", "relative", "of the total" if of_total else "")]
    for term in terms:
        relative = "" if term.relative is None else percent(term.relative)
        share = ""
        if of_total is not None and of_total.difference and term.difference:
            share = percent(term.difference / of_total.difference)
        difference = number_text(term.difference, term.unit)
        rows.append(
            (
                term.name,
                number_text(term.a, term.unit),
                number_text(term.b, term.unit),
                difference if term.difference <= 0 else f"+{difference}",
                relative,
                share,
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(6)]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(row[place].rjust(widths[place]) for place in range(1, 6))]
        ).rstrip()
        for row in rows
    ]


def point_record(found: PointComparison) -> dict[str, Any]:
    """The comparison of two points, for JSON; the parts of a total add up to its difference."""
    return {
        **{
            side: {
                "source": result.source,
                "hardware": result.hardware,
                "model": result.model,
                "status": result.columns["status"],
                "reason": result.columns["reason"],
                **result.versions,
            }
            for side, result in (("a", found.a), ("b", found.b))
        },
        "configuration": [_setting_record(setting) for setting in found.settings],
        "totals": {name: _term_record(term) for name, term in found.totals.items()},
        "parts": {
            name: [_term_record(term) for term in terms] for name, terms in found.parts.items()
        },
        "others": [_term_record(term) for term in found.terms],
    }


def _setting_record(setting: Setting) -> dict[str, Any]:
    """A key that a configuration lacks has no "a", or no "b"."""
    return {name: value for name, value in asdict(setting).items() if value != ABSENT}


def _term_record(term: Term) -> dict[str, Any]:
    return {**asdict(term), "difference": term.difference, "relative": term.relative}


def sweep_text(found: SweepComparison) -> str:
    """The comparison of two tables."""
    a, b = found.a, found.b
    by = "id" if found.keys == ("point",) else ", ".join(found.keys)
    lines = [
        f"A: {a.source}: {len(a.rows)} points",
        f"B: {b.source}: {len(b.rows)} points",
        f"in both, by {by}: {len(found.joined)}",
    ]
    for side, points in (("A", found.only_a), ("B", found.only_b)):
        if points:
            lines.append(f"only in {side}: {len(points)}: {_some(points)}")
    if found.versions[0] != found.versions[1]:
        lines.append(_versions_text(*(", ".join(side) or "unknown" for side in found.versions)))
    lines += ["", "status"]
    lines += [f"  {_change(one, other)}: {count}" for (one, other), count in found.statuses.items()]
    lines += ["", *_settings_text(found.settings), "", "changes, B / A - 1"]
    header = ("", "changed", "median", "90 % below", "least", "most")
    rows = [
        (
            item.column,
            f"{item.changed} of {item.points}",
            *(percent(value) for value in (item.median, item.magnitude_90, item.least, item.most)),
        )
        for item in found.distributions
    ]
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(6)]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [row[place].rjust(widths[place]) for place in range(1, 6)]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    if found.largest:
        unit = COLUMNS[found.column].unit
        lines += ["", f"largest changes of {found.column}"]
        for change in found.largest:
            cause = f"{change.cause} {_signed(change.cause_s)}" if change.cause else ""
            lines.append(
                f"  {percent(change.relative)}  {number_text(change.a, unit)} ->"
                f" {number_text(change.b, unit)}  {change.point}  {cause}".rstrip()
            )
    return "\n".join(lines)


def _signed(seconds: float) -> str:
    return ("+" if seconds > 0 else "") + number_text(seconds, "s")


def _some(points: Iterable[str]) -> str:
    names = list(points)
    more = ", ..." if len(names) > MOST_POINTS else ""
    return ", ".join(names[:MOST_POINTS]) + more


def sweep_record(found: SweepComparison) -> dict[str, Any]:
    """The comparison of two tables, for JSON."""
    return {
        "a": {
            "source": found.a.source,
            "points": len(found.a.rows),
            "model_versions": list(found.versions[0]),
        },
        "b": {
            "source": found.b.source,
            "points": len(found.b.rows),
            "model_versions": list(found.versions[1]),
        },
        "joined_by": list(found.keys),
        "in_both": len(found.joined),
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "statuses": [
            {"a": one, "b": other, "points": count}
            for (one, other), count in found.statuses.items()
        ],
        "configuration": [_setting_record(setting) for setting in found.settings],
        "changes": [asdict(item) for item in found.distributions],
        "column": found.column,
        "largest": [asdict(change) for change in found.largest],
    }
