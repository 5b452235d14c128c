"""A time line as a file for trace viewers: Perfetto (ui.perfetto.dev) and chrome://tracing.

The Trace Event Format in its JSON object form: complete events (``X``) on threads, which are lanes
of processes, arrows between them (``s``, ``f``), counters (``C``) and names (``M``). Times are in
microseconds, whole nanoseconds each, so that events that touch do so in the file, too.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from deepflow.config import HardwareConfig, ModelConfig
from deepflow.explain.lanes import DEVICE, Timeline
from deepflow.files import atomic_output
from deepflow.prediction import Prediction
from deepflow.version import MODEL_VERSION, __version__

MEMORY = "memory of a device (bytes)"


def write_trace(
    path: str | Path,
    timeline: Timeline,
    prediction: Prediction,
    hardware: HardwareConfig,
    model: ModelConfig,
    digest: str,
) -> None:
    """Writes a trace into ``path``, compressed if that ends in .gz.

    ``digest``: of the point's configuration. Raises DeepFlowError if the file cannot be written.
    """
    other = {
        "hardware": hardware.name,
        "model": model.name,
        "configuration_digest": digest,
        "deepflow_version": __version__,
        "model_version": MODEL_VERSION,
        "time_s": prediction.time_s,
        "backend": prediction.backend_used,
        "fallback_reason": prediction.fallback_reason,
        "detail": timeline.detail.text,
        "notes": timeline.notes,
    }
    compressed = str(path).endswith(".gz")
    with atomic_output(path) as temporary, _opened(temporary, compressed) as file:
        file.write(f'{{"otherData":{_json(other)},"traceEvents":[\n')
        separator = ""
        for event in trace_events(timeline):
            file.write(f"{separator}{_json(event)}")
            separator = ",\n"
        file.write("\n]}\n")


@contextmanager
def _opened(path: Path, compressed: bool) -> Iterator[TextIO]:
    if not compressed:
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    # Without name and date: the same trace is the same file.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        import io

        text = io.TextIOWrapper(packed, encoding="utf-8")
        yield text
        text.flush()
        text.detach()


def trace_events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """The events of a trace, names first."""
    lanes = _lanes(timeline)
    for process, name in timeline.processes.items():
        yield _meta("process_name", process, 0, {"name": name})
        yield _meta("process_sort_index", process, 0, {"sort_index": process})
    for (process, lane), thread in lanes.items():
        yield _meta("thread_name", process, thread, {"name": lane})
        yield _meta("thread_sort_index", process, thread, {"sort_index": thread})
    # What layers and microbatches that are alike have in common is shortened once.
    arguments: dict[tuple[int, int], dict[str, Any]] = {}
    for span in timeline.spans:
        start, end = _nanoseconds(span.start), _nanoseconds(span.end)
        key = id(span.details), id(span.seconds)
        if key not in arguments:
            seconds = {"seconds": span.seconds} if span.seconds else {}
            arguments[key] = _shortened({**span.details, **seconds})
        yield {
            "ph": "X",
            "name": span.name,
            "cat": "device" if span.lane == DEVICE else "link",
            "pid": span.process,
            "tid": lanes[span.process, span.lane],
            "ts": start / 1000,
            "dur": (end - start) / 1000,
            "args": arguments[key],
        }
    for number, arrow in enumerate(timeline.arrows):
        common = {"name": arrow.name, "cat": "transfer", "id": number}
        for phase, (process, lane, time) in (("s", arrow.start), ("f", arrow.end)):
            yield {
                "ph": phase,
                **common,
                **({"bp": "e"} if phase == "f" else {}),
                "pid": process,
                "tid": lanes[process, lane],
                "ts": _nanoseconds(time) / 1000,
            }
    for level in timeline.levels:
        yield {
            "ph": "C",
            "name": MEMORY,
            "pid": level.process,
            "tid": 0,
            "ts": _nanoseconds(level.time) / 1000,
            "args": _shortened(level.parts),
        }


def _lanes(timeline: Timeline) -> dict[tuple[int, str], int]:
    """Numbers of the threads: the device first, then links by name."""
    used = sorted(
        timeline.lanes,
        key=lambda place: (place[0], place[1] != DEVICE, place[1]),
    )
    numbers: dict[int, int] = {}
    lanes = {}
    for process, lane in used:
        numbers[process] = lanes[process, lane] = numbers.get(process, 0) + 1
    return lanes


def _meta(name: str, process: int, thread: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "ts": 0, "args": arguments}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _shortened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without digits that nobody reads and that make files twice as long."""
    return {
        name: float(f"{value:.9g}")
        if isinstance(value, float)
        else _shortened(value)
        if isinstance(value, Mapping)
        else value
        for name, value in values.items()
    }


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
