"""Task graphs on in-order streams."""

import random

import pytest

from deepflow.errors import DeepFlowError
from deepflow.schedule.streams import compile_streams


def test_execution_is_the_longest_path_of_random_graphs():
    generator = random.Random(7)
    delays = (0.0, 0.1)
    for _ in range(30):
        durations = [generator.random() for _ in range(5)]
        queues = [[] for _ in range(4)]
        kind, wait, delay, before = [], [], [], []
        for task in range(40):
            queue = generator.choice(queues)
            before.append(queue[-1] if queue else -1)
            queue.append(task)
            kind.append(generator.randrange(5))
            wait.append(generator.randrange(-1, task))
            delay.append(generator.randrange(2) if wait[-1] >= 0 else 0)
        ends = compile_streams(queues, kind, wait, delay).execute(durations, delays)
        longest = []
        for task in range(40):
            arrivals = [0.0]
            if wait[task] >= 0:
                arrivals.append(longest[wait[task]] + delays[delay[task]])
            if before[task] >= 0:
                arrivals.append(longest[before[task]])
            longest.append(durations[kind[task]] + max(arrivals))
        assert ends == pytest.approx(longest, rel=1e-12)


def test_a_circle_is_a_deadlock_and_not_a_wrong_time():
    with pytest.raises(DeepFlowError, match="2 of 3 tasks wait"):
        compile_streams([[0, 1], [2]], [0, 0, 0], [-1, 2, 1], [0, 0, 0])
