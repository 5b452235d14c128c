"""What the validate rules ask for: the tables of a folder, ablations, when to run again."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from deepflow.config import flatten, load_framework_config, load_hardware_config
from deepflow.errors import DeepFlowError
from deepflow.validate.ablations import ABLATIONS
from deepflow.validate.machines import FRAMEWORK_FILES, HARDWARE_FILES
from deepflow.validate.rows import is_recognised
from deepflow.validate.tables import read_table
from deepflow.version import MODEL_VERSION

SAMPLES = "tests/data/measured"
ENDINGS = (".csv.gz", ".csv")


def tables_in(folder: str | Path) -> dict[str, str]:
    """Name -> file of the CSV tables in ``folder`` that have a row of a kind that is predicted.

    Raises:
        DeepFlowError: there is none, or two files share a name.
    """
    found: dict[str, str] = {}
    for path in sorted(Path(folder).glob("*.csv*")):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None or not is_recognised(read_table(path)):
            continue
        name = path.name.removesuffix(ending)
        if name in found:
            raise DeepFlowError(f"{found[name]} and {path} would share a folder of results")
        found[name] = str(path)
    if not found:
        raise DeepFlowError(f"{folder} has no table of measurements (.csv or .csv.gz)")
    return found


def ablations_of(table: str | Path) -> dict[str, list[str]]:
    """Name -> settings (PATH=VALUE) of the ablations that can change rows of this table."""
    rows = read_table(table)
    return {
        ablation.name: list(ablation.options) for ablation in ABLATIONS if ablation.concerns(rows)
    }


@lru_cache(maxsize=1)
def hardware_digest() -> str:
    """Fingerprint of the meaning of all hardware and framework files and the model's version."""
    meanings: list[object] = [MODEL_VERSION]
    for path in sorted(Path().glob(HARDWARE_FILES)):
        meanings.append(sorted(flatten(load_hardware_config(path)).items(), key=str))
    for path in sorted(Path().glob(FRAMEWORK_FILES)):
        framework = load_framework_config(path)
        meanings.append((framework.name, framework.aliases, framework.values))
    return hashlib.sha256(repr(meanings).encode()).hexdigest()[:32]
