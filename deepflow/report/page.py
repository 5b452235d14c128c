"""Puts content, template, style, scripts and the plotting library into one HTML file."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from deepflow.files import atomic_output

_SCRIPTS = ("values.js", "figures.js", "page.js")


def write_page(content: Mapping[str, Any], output: str | Path) -> None:
    """Write ``content`` (see ``content.gather_content``) as a page that needs no other file."""
    with atomic_output(output) as temporary:
        temporary.write_text(page(content), encoding="utf-8")


def page(content: Mapping[str, Any]) -> str:
    """The page as text."""
    parts = {
        "title": html.escape(f"{content['name']} - DeepFlow"),
        "style": _file("page.css"),
        "content": script_safe(json.dumps(content, allow_nan=False, separators=(",", ":"))),
        "library": _library(),
        "script": "\n".join(_file(name) for name in _SCRIPTS),
    }
    text = _file("page.html")
    for name, part in parts.items():
        before, marker, after = text.partition(f"<!-- {name} -->")
        assert marker, f"page.html has a place for {name}"
        text = before + part + after
    return text


def script_safe(text: str) -> str:
    """JSON that cannot end the script element that it stands in, whatever texts it holds."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _file(name: str) -> str:
    return files("deepflow.report").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _library() -> str:
    """plotly.js, which the package plotly ships, compressed: it is most of a page otherwise."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), 6, mtime=0)
    return base64.b64encode(packed).decode()
