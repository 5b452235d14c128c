"""Pipeline schedules: textbook times, laws of time and of memory."""

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.errors import DeepFlowError, InfeasiblePoint
from deepflow.schedule.pipeline import (
    PipelineShape,
    device_order,
    peak_in_flight,
    pipeline_graph,
)

TOLERANCE = 1e-9
seconds = st.floats(0.1, 10)


@st.composite
def sizes(draw, max_stages=5):
    """(schedule, stages, virtual stages, microbatches) that exist."""
    schedule = draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble"]))
    stages = draw(st.integers(1, max_stages))
    if schedule != "interleaved":
        return schedule, stages, 1, draw(st.integers(1, 20))
    return schedule, stages, draw(st.integers(1, 3)), stages * draw(st.integers(1, 5))


class Run:
    """A step with the given seconds per part; the last backward pass split evenly."""

    def __init__(self, size, forward, backward, weight=None, hop=0.0, segments=1, **options):
        schedule, stages, virtual_stages, microbatches = size
        parts = stages * virtual_stages
        self.shape = PipelineShape(
            schedule,
            stages,
            virtual_stages,
            microbatches,
            tuple((part,) * segments for part in range(parts)),
            reduces_gradients="reduction" in options,
            overlaps=options.get("overlaps", True),
            tied="tied" in options,
        )
        self.graph = graph = pipeline_graph(self.shape)
        self.durations = graph.durations()
        weight = weight or [0.0] * parts
        for part in range(parts):
            whole = backward[part]
            self.durations[graph.forward(part)] = forward[part]
            if schedule == "zero_bubble":
                whole = weight[part]
                self.durations[graph.backward_input(part)] = backward[part]
                self.durations[graph.backward_weight(part)] = whole
            else:
                self.durations[graph.backward(part)] = whole
            self.durations[graph.segment_backward(part)] = whole / segments
            self.durations[graph.segment_gradient(part)] = options.get("reduction", 0.0)
        self.durations[graph.tied_gradient] = options.get("tied", 0.0)
        self.ends = graph.graph.execute(self.durations, (0.0, hop))
        self.time = max(self.ends)
        self.kind = dict(zip(graph.graph.task, graph.graph.kind, strict=True))

    def start(self, task):
        return self.ends[task] - self.durations[self.kind[task]]


def equal(size, forward, backward, weight=0.0, **options):
    parts = size[1] * size[2]
    return Run(size, [forward] * parts, [backward] * parts, [weight] * parts, **options)


def unequal(data, size, **options):
    """Random seconds per part, as (forward, backward, weight)."""
    parts = size[1] * size[2]
    return [data.draw(st.lists(seconds, min_size=parts, max_size=parts)) for _ in range(3)]


@settings(max_examples=60)
@given(st.sampled_from(["1f1b", "gpipe"]), st.integers(1, 8), st.integers(1, 20), seconds, seconds)
def test_equal_stages_take_the_textbook_time(schedule, stages, microbatches, forward, backward):
    """(m + p - 1) (f + b): the bubble fraction (p - 1) / m of GPipe and 1F1B."""
    run = equal((schedule, stages, 1, microbatches), forward, backward)
    assert run.time == pytest.approx((microbatches + stages - 1) * (forward + backward))


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), seconds, seconds)
def test_interleaving_divides_the_bubble_by_the_parts_per_device(
    stages, virtual_stages, groups, forward, backward
):
    """arXiv 2104.04473, 2.2.2: a bubble of (p - 1) / (m v) of the work."""
    microbatches = stages * groups
    run = equal(("interleaved", stages, virtual_stages, microbatches), forward, backward)
    work = microbatches * virtual_stages * (forward + backward)
    bubble = (stages - 1) / (microbatches * virtual_stages)
    assert run.time == pytest.approx(work * (1 + bubble))


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(0, 9), seconds, seconds, st.floats(0, 1))
def test_zero_bubble_takes_the_time_of_its_paper(stages, more, forward, backward, share):
    """arXiv 2401.10241, table 1: ZB-H1 idles (p - 1) (F + B - W), for W no longer than F or B."""
    weight = share * min(forward, backward)
    microbatches = 2 * stages + more
    run = equal(("zero_bubble", stages, 1, microbatches), forward, backward, weight)
    work = microbatches * (forward + backward + weight)
    assert run.time == pytest.approx(work + (stages - 1) * (forward + backward - weight))


@settings(max_examples=80)
@given(st.integers(1, 6), st.integers(1, 14), seconds, st.floats(0, 3), st.data())
def test_zero_bubble_is_never_slower_than_1f1b(stages, microbatches, weight, hop, data):
    """However unequal the stages are otherwise, with one time of passes for weights."""
    forward, backward, _ = unequal(data, ("", stages, 1, microbatches))
    split = Run(("zero_bubble", stages, 1, microbatches), forward, backward, [weight] * stages, hop)
    together = [time + weight for time in backward]
    whole = Run(("1f1b", stages, 1, microbatches), forward, together, hop=hop)
    assert split.time <= whole.time + TOLERANCE


@settings(max_examples=80)
@given(sizes(), st.integers(1, 3), st.booleans(), st.data())
def test_every_pass_runs_once_and_streams_never_overlap(size, segments, overlaps, data):
    times = unequal(data, size)
    run = Run(size, *times, hop=0.3, segments=segments, reduction=0.7, overlaps=overlaps)
    _, stages, virtual_stages, microbatches = size
    compiled = run.graph.graph
    assert sorted(compiled.task) == list(range(len(compiled.task)))
    count = {kind: compiled.kind.count(kind) for kind in compiled.kind}
    work = [count.get(kind, 0) * time for kind, time in enumerate(run.durations)]
    for part in range(stages * virtual_stages):
        assert count[run.graph.forward(part)] == microbatches
        assert count[run.graph.segment_gradient(part)] == segments
        passed = work[run.graph.backward(part)] + work[run.graph.segment_backward(part)]
        expected = microbatches * times[1][part]
        if size[0] == "zero_bubble":
            passed += work[run.graph.backward_weight(part)]
            expected += microbatches * times[2][part]
        assert passed == pytest.approx(expected)
    spans = {}
    for task, stream in zip(compiled.task, compiled.stream, strict=True):
        spans.setdefault(stream, []).append((run.start(task), run.ends[task]))
    for stream in spans.values():
        assert all(start >= end - TOLERANCE for (_, end), (start, _) in pairwise(stream))


@settings(max_examples=80)
@given(sizes(), st.floats(0, 3), st.data())
def test_a_pass_waits_for_its_neighbour_and_the_hop(size, hop, data):
    run = Run(size, *unequal(data, size), hop=hop)
    _, stages, virtual_stages, microbatches = size
    parts = stages * virtual_stages
    sent = hop if stages > 1 else 0.0

    def number(what, part, microbatch):
        return (what * parts + part) * microbatches + microbatch

    for part in range(parts):
        for microbatch in range(microbatches):
            forward, backward, weight = (number(what, part, microbatch) for what in range(3))
            assert run.start(backward) >= run.ends[forward] - TOLERANCE
            if part:
                before = number(0, part - 1, microbatch)
                assert run.start(forward) >= run.ends[before] + sent - TOLERANCE
            if part < parts - 1:
                behind = number(1, part + 1, microbatch)
                assert run.start(backward) >= run.ends[behind] + sent - TOLERANCE
            if size[0] == "zero_bubble":
                assert run.start(weight) >= run.ends[backward] - TOLERANCE


@settings(max_examples=80)
@given(sizes(), st.floats(0, 3), st.integers(1, 3), st.data())
def test_a_step_takes_no_less_than_its_devices_work_and_one_way_through(size, hop, segments, data):
    forward, backward, weight = unequal(data, size)
    run = Run(size, forward, backward, weight, hop, segments)
    schedule, stages, virtual_stages, microbatches = size
    parts = stages * virtual_stages
    if schedule != "zero_bubble":
        weight = [0.0] * parts
    for device in range(stages):
        here = range(device, parts, stages)
        once = sum(forward[part] + backward[part] + weight[part] for part in here)
        assert run.time >= microbatches * once - TOLERANCE
    hops = 2 * (parts - 1) * (hop if stages > 1 else 0.0)
    assert run.time >= sum(forward) + sum(backward) + hops - TOLERANCE


@settings(max_examples=80)
@given(sizes(), st.floats(0, 3), st.data())
def test_more_microbatches_and_slower_passes_never_take_less_time(size, hop, data):
    schedule, stages, virtual_stages, microbatches = size
    times = unequal(data, size)
    time = Run(size, *times, hop=hop).time
    more = microbatches + (stages if schedule == "interleaved" else 1)
    assert Run((schedule, stages, virtual_stages, more), *times, hop=hop).time >= time - TOLERANCE
    slower = [
        [value * 1.5 if index == 0 else value for value in each] for index, each in enumerate(times)
    ]
    assert Run(size, *slower, hop=hop).time >= time - TOLERANCE
    assert Run(size, *times, hop=hop + 1).time >= time - TOLERANCE


@settings(max_examples=80)
@given(sizes(), st.data())
def test_peak_in_flight_is_the_worst_moment_of_the_time_line(size, data):
    run = Run(size, *unequal(data, size))
    schedule, stages, virtual_stages, microbatches = size
    parts = stages * virtual_stages
    frees = 2 if schedule == "zero_bubble" else 1
    for device in range(stages):
        weights = data.draw(
            st.lists(st.floats(0, 5), min_size=virtual_stages, max_size=virtual_stages)
        )
        changes = []
        for chunk, part in enumerate(range(device, parts, stages)):
            for what, change in ((0, weights[chunk]), (frees, -weights[chunk])):
                first = (what * parts + part) * microbatches
                tasks = range(first, first + microbatches)
                changes += [(run.ends[task], change) for task in tasks]
        held = worst = 0.0
        for _, change in sorted(changes):
            held += change
            worst = max(worst, held)
        counts = peak_in_flight(*size, device, weights)
        assert all(0 <= count <= microbatches for count in counts)
        total = sum(count * weight for count, weight in zip(counts, weights, strict=True))
        assert total == pytest.approx(worst, abs=1e-9)


@given(st.integers(1, 8), st.integers(1, 20), st.data())
def test_microbatches_in_flight_are_those_of_the_papers(stages, microbatches, data):
    device = data.draw(st.integers(0, stages - 1))

    def held(schedule, virtual_stages=1, count=microbatches):
        ones = [1.0] * virtual_stages
        return sum(peak_in_flight(schedule, stages, virtual_stages, count, device, ones))

    assert held("gpipe") == microbatches
    assert held("1f1b") == min(microbatches, stages - device)
    # ZB-H1: on no device more than 1F1B holds on the first one.
    assert held("1f1b") <= held("zero_bubble") <= min(microbatches, stages)
    # Interleaved: 1 + (p - 1) / (p v) times the first device's memory under 1F1B.
    if device == 0 and stages > 1:
        assert held("interleaved", 3, 4 * stages) == 3 * stages + stages - 1


def test_overlapped_reduction_hides_all_but_the_last_segment():
    """Reductions shorter than a segment's backward pass: only the last one sticks out."""
    for overlaps, exposed in ((True, 0.25), (False, 4 * 0.25)):
        run = equal(("1f1b", 1, 1, 4), 1.0, 2.0, segments=4, reduction=0.25, overlaps=overlaps)
        assert run.time == pytest.approx(4 * 3.0 + exposed)
        late = run.ends[run.graph.last_gradient[0]] - run.ends[run.graph.last_backward[0]]
        assert late == pytest.approx(exposed)


def test_interleaved_reduces_a_part_beside_the_parts_below_it():
    """The upper part's reduction is as long as the lower part's backward passes."""
    run = equal(("interleaved", 2, 2, 2), 1.0, 2.0, reduction=4.0)
    assert run.time == pytest.approx(equal(("interleaved", 2, 2, 2), 1.0, 2.0).time + 4.0)


def test_zero_bubble_reduces_with_the_last_passes_for_weights():
    size = ("zero_bubble", 1, 1, 3)
    assert equal(size, 1.0, 1.0, 1.0, segments=4, reduction=0.2).time == pytest.approx(9.2)


@pytest.mark.parametrize("stages, longer", [(1, 0.0), (2, 3.0), (4, 3.0)])
def test_tied_gradients_are_added_up_between_first_and_last_stage(stages, longer):
    size = ("1f1b", stages, 1, 4)
    for options in ({}, {"reduction": 0.5}):
        apart = equal(size, 1.0, 2.0, **options)
        tied = equal(size, 1.0, 2.0, tied=3.0, **options)
        assert tied.time == pytest.approx(apart.time + longer)


def test_every_update_waits_for_the_norm_over_all_devices():
    run = equal(("1f1b", 3, 1, 2), 1.0, 2.0, reduction=0.5)
    for device in range(3):
        run.durations[run.graph.update(device)] = 1.0 + device
    ends = run.graph.graph.execute(run.durations, (0.0, 0.0))
    ready = max(ends[task] for task in run.graph.last_gradient)
    assert ends[run.graph.gradients_ready] == ready
    assert [ends[task] - ready for task in run.graph.updates] == pytest.approx([1.0, 2.0, 3.0])


def test_passes_that_are_not_split_have_nothing_to_reduce():
    shape = PipelineShape("1f1b", 2, 1, 3, ((), ()), True, True, False)
    graph = pipeline_graph(shape)
    assert graph.last_gradient == graph.last_backward
    durations = graph.durations()
    for part in range(2):
        durations[graph.forward(part)], durations[graph.backward(part)] = 1.0, 2.0
    assert max(graph.graph.execute(durations, (0.0, 0.0))) == pytest.approx(4 * 3.0)


@given(sizes())
def test_orders_hold_every_pass_of_their_device(size):
    schedule, stages, virtual_stages, microbatches = size
    passes = stages * virtual_stages * microbatches
    orders = [device_order(*size, device) for device in range(stages)]
    kinds = 3 if schedule == "zero_bubble" else 2
    assert sorted(chain.from_iterable(orders)) == list(range(kinds * passes))
    for device, order in enumerate(orders):
        assert {number // microbatches % stages for number in order} == {device}


@pytest.mark.parametrize(
    "size, message",
    [
        (("1f1b", 2, 2, 4), "1f1b has one part per device"),
        (("interleaved", 4, 2, 6), "groups of 4 microbatches"),
    ],
)
def test_schedules_that_do_not_exist_are_infeasible(size, message):
    with pytest.raises(InfeasiblePoint, match=message):
        device_order(*size, 0)


def test_an_unknown_schedule_is_not_taken_for_another():
    with pytest.raises(DeepFlowError, match="unknown pipeline schedule"):
        device_order("2f2b", 2, 1, 4, 0)
