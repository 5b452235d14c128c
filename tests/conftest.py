"""Settings and fixtures shared by all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine and run, and no verdict that depends on how busy it is.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout: where Snakefile, configs/ and sweeps/ are."""
    return Path(__file__).resolve().parent.parent
