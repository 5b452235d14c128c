"""How the site is built: ``make docs``. Every page is Markdown that GitHub shows as well."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

from deepflow.version import __version__

LOGGER = logging.getLogger(__name__)

project = "DeepFlow"
author = "DeepFlow"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]

# Anchors of headings are those of GitHub, and every link to one is checked.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
nitpicky = True

html_theme = "furo"
html_title = f"DeepFlow {__version__}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_math_renderer = "mathml"

NAVIGATION = {
    "Tutorial": ["tutorial/*"],
    "Guides": [
        "configuration",
        "report",
        "explain",
        "sensitivity",
        "architecture-search",
        "technology",
        "slurm",
        "calibration",
    ],
    "The model": ["model", "accuracy", "gallery"],
    "Reference": ["reference/*"],
    "Contributors": ["architecture"],
}
"""Heading -> pages of the menu. Pages stay free of what only the site understands."""


def _add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "index":
        for caption, pages in NAVIGATION.items():
            source[0] += _contents(pages, f":caption: {caption}\n")
    elif (app.srcdir / page).is_dir():
        # A page with a folder of its name links its chapters in the order of reading.
        source[0] += _contents(re.findall(rf"\]\(({page}/\S+)\.md\)", source[0]))


def _contents(pages: Iterable[str], options: str = "") -> str:
    lines = "\n".join(dict.fromkeys(pages))
    return f"\n```{{toctree}}\n:hidden:\n:glob:\n{options}\n{lines}\n```\n"


# Browsers draw MathML themselves, so that formulas need no script from elsewhere.
def _math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_formula(node, as_block=False))
    raise nodes.SkipNode


def _math_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_formula(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _formula(node: nodes.Element, as_block: bool) -> str:
    tex = node.astext().replace(r"\gt", ">").replace(r"\lt", "<")
    try:
        return tex2mathml(tex, as_block=as_block)
    except ValueError as error:
        LOGGER.warning("formula that is not understood: %s (%s)", tex, error, location=node)
        return ""


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_math, None), (_math_block, None))
    app.connect("source-read", _add_navigation)
