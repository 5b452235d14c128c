"""The schedule of a pipelined step, against closed forms and laws."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.errors import DeepFlowError
from deepflow.schedule import pipeline
from deepflow.schedule.pipeline import microbatch_order, pipeline_graph, stage_kind
from deepflow.schedule.streams import StreamGraph


def run(schedule, stages, microbatches, forward, backward, hop=0.0, layers=1, **gradient):
    """Ends of a step with equal stages; ``backward`` per stage, spread over its layers."""
    graph = pipeline_graph(
        schedule,
        (layers,) * stages,
        microbatches,
        bool(gradient),
        gradient.get("overlaps", True),
        False,
    )
    durations = [0.0] * stage_kind(stages, 0)
    for stage in range(stages):
        durations[stage_kind(stage, pipeline.FORWARD)] = forward
        durations[stage_kind(stage, pipeline.BACKWARD)] = backward
    durations[pipeline.LAYER_BACKWARD] = backward / layers
    durations[pipeline.LAYER_GRADIENT] = gradient.get("reduction", 0.0)
    ends = graph.graph.execute(durations, (0.0, hop))
    return graph, durations, ends


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["1f1b", "gpipe"]),
    st.integers(1, 8),
    st.integers(1, 20),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
)
def test_equal_stages_take_the_textbook_time(schedule, stages, microbatches, forward, backward):
    """(m + p - 1) (f + b): the bubble fraction (p - 1) / m of GPipe and 1F1B."""
    _, _, ends = run(schedule, stages, microbatches, forward, backward)
    expected = (microbatches + stages - 1) * (forward + backward)
    assert max(ends) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["1f1b", "gpipe"]),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_pass_runs_once_and_streams_never_overlap(
    schedule, stages, microbatches, layers, overlaps
):
    graph, durations, ends = run(
        schedule,
        stages,
        microbatches,
        1.0,
        2.0,
        hop=0.3,
        layers=layers,
        reduction=0.7,
        overlaps=overlaps,
    )
    compiled = graph.graph
    passes = [label for label in compiled.label if label[0] == "forward"]
    assert sorted(passes) == sorted(
        ("forward", stage, index) for stage in range(stages) for index in range(microbatches)
    )
    work = {(stage, index): 0.0 for stage in range(stages) for index in range(microbatches)}
    for task, (what, stage, index) in enumerate(compiled.label):
        if what == "backward":
            work[stage, index] += durations[compiled.kind[task]]
    assert all(total == pytest.approx(2.0) for total in work.values())
    by_stream = {}
    for task, stream in enumerate(compiled.stream):
        start = ends[task] - durations[compiled.kind[task]]
        by_stream.setdefault(stream, []).append((start, ends[task]))
    for spans in by_stream.values():
        for (_, end), (start, _) in pairwise(spans):
            assert start >= end - 1e-12


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["1f1b", "gpipe"]), st.integers(2, 6), st.integers(1, 12), st.data())
def test_a_pass_waits_for_its_neighbour_and_the_hop(schedule, stages, microbatches, data):
    hop = data.draw(st.floats(0, 3))
    graph, durations, ends = run(schedule, stages, microbatches, 1.0, 2.0, hop=hop, layers=2)
    compiled = graph.graph
    start, end = {}, {}
    for task, label in enumerate(compiled.label):
        start[label] = min(start.get(label, 1e9), ends[task] - durations[compiled.kind[task]])
        end[label] = max(end.get(label, 0.0), ends[task])
    for what, stage, index in compiled.label:
        if what == "forward" and stage:
            assert start[what, stage, index] >= end[what, stage - 1, index] + hop - 1e-9
        if what == "backward":
            assert start[what, stage, index] >= end["forward", stage, index] - 1e-9
            if stage < stages - 1:
                assert start[what, stage, index] >= end[what, stage + 1, index] + hop - 1e-9


def test_1f1b_holds_no_more_microbatches_than_stages_behind():
    for stages in (1, 3, 8):
        for stage in range(stages):
            held = worst = 0
            for is_forward, _ in microbatch_order("1f1b", stages, stage, 20):
                held += 1 if is_forward else -1
                worst = max(worst, held)
            assert worst == min(20, stages - stage)


def test_overlapped_reduction_hides_all_but_the_last_layer():
    """Reductions shorter than a layer's backward pass: only the last one sticks out."""
    _, _, ends = run("1f1b", 1, 4, 1.0, 2.0, layers=4, reduction=0.25, overlaps=True)
    assert max(ends) == pytest.approx(4 * 3.0 + 0.25)
    _, _, ends = run("1f1b", 1, 4, 1.0, 2.0, layers=4, reduction=0.25, overlaps=False)
    assert max(ends) == pytest.approx(4 * 3.0 + 4 * 0.25)


def test_execution_is_the_longest_path_of_random_graphs():
    generator = random.Random(7)
    for _ in range(30):
        graph, durations = StreamGraph(), [generator.random() for _ in range(5)]
        before_in_stream: dict[int, int] = {}
        edges = []
        for task in range(40):
            stream, kind = generator.randrange(4), generator.randrange(5)
            waits = [(generator.randrange(task), 1) for _ in range(2)] if task else []
            assert graph.add(("task", 0, task), stream, kind, waits) == task
            edges.append(
                (
                    kind,
                    [
                        *waits,
                        *([(before_in_stream[stream], 0)] if stream in before_in_stream else []),
                    ],
                )
            )
            before_in_stream[stream] = task
        ends = graph.compile().execute(durations, (0.0, 0.1))

        def longest(task, edges=edges, durations=durations):
            kind, waits = edges[task]
            arrivals = [longest(other) + 0.1 * delay for other, delay in waits]
            return durations[kind] + max(arrivals, default=0.0)

        assert ends[-1] == pytest.approx(longest(39), rel=1e-12)


def test_a_circle_is_a_deadlock_and_not_a_wrong_time():
    graph = StreamGraph()
    graph.add(("a", 0, 0), 0, 0, [(1, 0)])
    graph.add(("b", 0, 0), 1, 0, [(0, 0)])
    with pytest.raises(DeepFlowError, match="2 of 2 tasks wait"):
        graph.compile()
