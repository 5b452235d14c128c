"""What the schedule computed for a point, once for text, trace and pictures.

A run may be simulated for seconds; the last few are kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from deepflow.config.model import GemmModel, LlmModel, LstmModel
from deepflow.hardware import Hardware

if TYPE_CHECKING:
    from deepflow.schedule.gemm import GemmRun
    from deepflow.schedule.inference import InferenceRun
    from deepflow.schedule.recurrent import RecurrentRun
    from deepflow.schedule.training import TrainingRun

_KEPT = 2


@lru_cache(_KEPT)
def training_run(hardware: Hardware, model: LlmModel) -> TrainingRun:
    """``run_training``, with what it raises."""
    from deepflow.schedule.training import run_training

    return run_training(hardware, model)


@lru_cache(_KEPT)
def requests_run(hardware: Hardware, model: LlmModel) -> tuple[LlmModel, InferenceRun]:
    """``run_requests``, with what it raises."""
    from deepflow.schedule.inference import run_requests

    return run_requests(hardware, model)


@lru_cache(_KEPT)
def recurrent_run(hardware: Hardware, model: LstmModel) -> RecurrentRun:
    """``run_recurrent``, with what it raises."""
    from deepflow.schedule.recurrent import run_recurrent

    return run_recurrent(hardware, model)


@lru_cache(_KEPT)
def gemm_run(hardware: Hardware, model: GemmModel) -> GemmRun:
    """``run_gemm``, with what it raises."""
    from deepflow.schedule.gemm import run_gemm

    return run_gemm(hardware, model)
