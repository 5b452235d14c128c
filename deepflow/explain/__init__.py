"""Why a point takes as long as it does.

- ``text.py``: words and numbers for a terminal
- ``timeline.py``: what runs when, as the schedule computed it: ``training.py``, ``inference.py``,
  ``recurrent.py`` for those models; of ``blocks.py``, on ``lanes.py``
- ``trace.py``: a time line as a file for trace viewers
- ``pictures.py``: the schedule of a pipeline, and a roofline
- ``command.py``: the command ``deepflow explain``
"""

from __future__ import annotations

from deepflow.explain.text import explain

__all__ = ("explain",)
