"""Versions that results carry.

``MODEL_VERSION`` is part of every point's digest: raise it whenever predictions change, so
that sweeps made with the older model run again. ``tests/test_model_version.py`` fails when
predictions change and this number does not.
"""

__version__ = "0.1.0"
MODEL_VERSION = "5"
