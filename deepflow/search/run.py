"""One optimiser on one start of a case: evaluations in order, progress, going on after a stop.

Optimisers are functions that evaluate designs until they are stopped, and the same seed makes the
same designs. Going on therefore means to begin again with the evaluations that are known already.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TextIO

from deepflow.errors import DeepFlowError
from deepflow.search.descent import descend
from deepflow.search.evaluate import Evaluate, Evaluation, Expect, evaluator
from deepflow.search.evolution import anneal, evolve, evolve_front
from deepflow.search.gradient import follow_gradient
from deepflow.search.space import Case, Search, Space

OPTIMIZERS: dict[str, Callable[[Evaluate, Space, int, Expect], None]] = {
    "gradient": follow_gradient,
    "descent": descend,
    "differential_evolution": evolve,
    "dual_annealing": anneal,
    "nsga2": evolve_front,
}
SECONDS_BETWEEN_REPORTS = 10.0
SECONDS_BETWEEN_LIVE_REPORTS = 0.5
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
    progress: Progress | None = None,
) -> Run:
    """Runs one start of a case.

    ``known``: the first evaluations, from an earlier run. ``save`` is called now and then with all
    so far; ``progress`` hears of every evaluation.

    Raises:
        DeepFlowError: ``known`` is not what this start evaluates first.
        ConfigError: the objective is not known for this model and hardware.
    """
    predict = evaluator(search, case, start)
    done: list[Evaluation] = []
    if progress is not None:
        progress.begin(f"{case.id} {start}")
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
            found = replace(found, values=predict.values(found.prediction, found.device))
        else:
            found = predict(design)
        done.append(found)
        if progress is not None:
            progress.count(found, is_new=len(done) > len(known))
        if save is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            save(done)
            saved = time.monotonic()
        return found

    def expect(designs: Sequence[Sequence[float]]) -> None:
        left = designs[: search.optimizer.evaluations - len(done)]
        predict.expect(left[max(0, len(known) - len(done)) :])

    optimise = OPTIMIZERS[search.optimizer.method]
    with suppress(_BudgetSpentError):
        optimise(evaluate, search.space, search.optimizer.seed + start, expect)
    if progress is not None:
        progress.end()
    return Run(search, case, start, tuple(done))


class Progress:
    """Progress of several starts for people: best so far, evaluations per second, time left.

    On a terminal a line that changes; elsewhere, as in the log of a job, a line now and then and
    one at the end of each start.
    """

    def __init__(
        self, output: TextIO, starts: int, evaluations: int, *, same_costs: bool = True
    ) -> None:
        """``starts`` to come, of ``evaluations`` each.

        ``same_costs``: costs mean the same in all of them, and can be compared.
        """
        self._output, self._starts, self._evaluations = output, starts, evaluations
        self._same_costs = same_costs
        self._live = output.isatty()
        self._number = self._new = self._done = 0
        self._best_of_all = math.inf
        self._began = self._reported = time.monotonic()

    def skip(self) -> None:
        """A start is there already."""
        self._number += 1

    def begin(self, what: str) -> None:
        """A start, called ``what``, begins."""
        self._number += 1
        self._what, self._done, self._best = what, 0, math.inf

    def count(self, found: Evaluation, *, is_new: bool) -> None:
        """One more evaluation, which an earlier run made unless it ``is_new``."""
        self._done += 1
        self._new += is_new
        if found.feasible:
            self._best = min(self._best, found.cost)
            self._best_of_all = min(self._best_of_all, found.cost)
        now = time.monotonic()
        between = SECONDS_BETWEEN_LIVE_REPORTS if self._live else SECONDS_BETWEEN_REPORTS
        if now - self._reported >= between:
            self._reported = now
            # Back to the beginning of the line, and what is left of the old one away.
            if self._live:
                text = self._text()[: shutil.get_terminal_size().columns - 1]
                print(f"\r{text}\x1b[K", end="", file=self._output, flush=True)
            else:
                print(self._text(), file=self._output, flush=True)

    def end(self) -> None:
        """The start is over."""
        line = f"\r{self._text()}\x1b[K" if self._live else self._text()
        print(line, file=self._output, flush=True)

    def _text(self) -> str:
        rate = self._new / max(time.monotonic() - self._began, 1e-9)
        left = (self._starts - self._number + 1) * self._evaluations - self._done
        parts = [f"{self._done} of {self._evaluations} evaluations", _best_text(self._best)]
        if self._same_costs and self._best_of_all < self._best:
            parts.append(f"of all {self._best_of_all:.6g}")
        if rate:
            parts += [f"{rate:.0f} evaluations/s", f"{_duration(left / rate)} left"]
        return f"[{self._number}/{self._starts}] {self._what}: {', '.join(parts)}"


def _best_text(cost: float) -> str:
    return "nothing feasible yet" if math.isinf(cost) else f"best cost {cost:.6g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
