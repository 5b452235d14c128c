"""One optimiser on one start of a case: evaluations in order, progress, going on after a stop.

Optimisers are functions that evaluate designs until they are stopped, and the same seed makes the
same designs. Going on therefore means to begin again with the evaluations that are known already.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from deepflow.errors import DeepFlowError
from deepflow.search.descent import descend
from deepflow.search.evaluate import Evaluate, Evaluation, evaluator
from deepflow.search.evolution import anneal, evolve
from deepflow.search.gradient import follow_gradient
from deepflow.search.space import Case, Search, Space

OPTIMIZERS: dict[str, Callable[[Evaluate, Space, int], None]] = {
    "gradient": follow_gradient,
    "descent": descend,
    "differential_evolution": evolve,
    "dual_annealing": anneal,
}
SECONDS_BETWEEN_REPORTS = 1.0
SECONDS_BETWEEN_SAVES = 20.0
"""Less is lost when a run is stopped than it takes to start a job."""

Known = Sequence[Evaluation]
Save = Callable[[Known], None]


class _BudgetSpentError(Exception):
    """All evaluations that an optimiser may have are done."""


@dataclass(frozen=True)
class Run:
    """All evaluations of one start of a case, in order."""

    search: Search
    case: Case
    start: int
    evaluations: tuple[Evaluation, ...]

    @property
    def best(self) -> Evaluation | None:
        """The cheapest feasible design, the first of equal ones."""
        return best_of(self.evaluations)


def best_of(evaluations: Known) -> Evaluation | None:
    """The cheapest feasible design, the first of equal ones."""
    feasible = [item for item in evaluations if item.feasible]
    return min(feasible, key=lambda item: item.cost, default=None)


def run_search(
    search: Search,
    case: Case,
    start: int,
    *,
    known: Known = (),
    save: Save | None = None,
    progress: TextIO | None = None,
) -> Run:
    """Runs one start of a case.

    ``known``: the first evaluations, from an earlier run. ``save`` is called now and then with all
    so far; ``progress`` gets a line now and then.

    Raises:
        DeepFlowError: ``known`` is not what this start evaluates first.
        ConfigError: the objective is not known for this model and hardware.
    """
    predict = evaluator(search, case, start)
    done: list[Evaluation] = []
    report = _Report(f"{search.name} {case.id} {start}", search.optimizer.evaluations, progress)
    saved = time.monotonic()

    def evaluate(design: Sequence[float]) -> Evaluation:
        nonlocal saved
        if len(done) >= search.optimizer.evaluations:
            raise _BudgetSpentError
        if len(done) < len(known):
            found = known[len(done)]
            if found.design != tuple(map(float, design)):
                raise DeepFlowError(
                    "evaluations of an earlier run do not fit; was DeepFlow changed?"
                )
        else:
            found = predict(design)
        done.append(found)
        report.count(found, len(done))
        if save is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            save(done)
            saved = time.monotonic()
        return found

    with suppress(_BudgetSpentError):
        OPTIMIZERS[search.optimizer.method](evaluate, search.space, search.optimizer.seed + start)
    report.end(len(done))
    return Run(search, case, start, tuple(done))


class _Report:
    """Progress for people: best so far and evaluations per second."""

    def __init__(self, what: str, total: int, output: TextIO | None) -> None:
        self._what, self._total, self._output = what, total, output
        self._best = math.inf
        self._started = self._reported = time.monotonic()

    def count(self, found: Evaluation, number: int) -> None:
        if found.feasible and found.cost < self._best:
            self._best = found.cost
        now = time.monotonic()
        if self._output is not None and now - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._print(number)

    def end(self, number: int) -> None:
        if self._output is not None:
            self._print(number)

    def _print(self, number: int) -> None:
        rate = number / max(time.monotonic() - self._started, 1e-9)
        best = "nothing feasible yet" if math.isinf(self._best) else f"best cost {self._best:.6g}"
        print(
            f"{self._what}: {number} of {self._total} evaluations, {best},"
            f" {rate:.0f} evaluations/s",
            file=self._output or sys.stderr,
            flush=True,
        )
