"""The time line of inference: prompts, the first steps of generation, and the others as one.

All devices of a replica's pipeline stage do the same. Requests that do not start at once see the
same passes at other times; the line is that of the requests whose answers take ``time_s``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from deepflow.config.model import LlmModel
from deepflow.cost.operators import Cost, total
from deepflow.explain.blocks import LAUNCH, Block, chain_block, fitted, seconds_of, summed
from deepflow.explain.lanes import DEVICE, Timeline, alike
from deepflow.explain.runs import requests_run
from deepflow.hardware import Hardware
from deepflow.mapping.parallelism import EMBEDDING, HEAD
from deepflow.schedule.inference import InferenceRun, PassCosts

SHOWN = 3
"""Passes over prompts and steps of generation that are shown one by one."""

_WAIT_COLUMNS = (
    "time_tensor_communication_s",
    "time_context_communication_s",
    "time_expert_communication_s",
)
_WORK = ("time_gemm_s", "time_attention_s", "time_elementwise_s")
_WAITS = (
    "expert_communication",
    "communication",
    "context_communication",
    "data_communication",
)
# Relative to the whole: sums in another order differ in the last digits.
_ROUNDING = 1e-9


def inference_filler(hardware: Hardware, model: LlmModel) -> Callable[[Timeline], None]:
    """What puts requests into a time line.

    Raises:
        InfeasiblePoint: as ``run_requests``.
    """
    _, run = requests_run(hardware, model)
    prompt = _stage_blocks(run, run.prompt, "prompts")
    step = _stage_blocks(run, run.step, "step")
    return lambda found: _fill(found, run, prompt, step)


def _fill(found: Timeline, run: InferenceRun, prompt: list[Block], step: list[Block]) -> None:
    mapping, stages = run.mapping, len(prompt)
    ranks = mapping.layout.tensor * mapping.layout.context
    apart = mapping.disaggregated
    first = 1
    generating = first + (stages if apart else 0)
    for stage in range(stages):
        title = f"stage {stage}: {_content(mapping.layout.parts[stage])}; "
        doing = "prompts, " if apart else ""
        count = (mapping.prompting if apart else mapping.layout.data) * ranks
        found.processes[first + stage] = title + doing + alike(count)
        if apart:
            count = mapping.generating * ranks
            found.processes[generating + stage] = f"{title}generation, {alike(count)}"
    detail, parts = found.detail, run.phases
    # What steps of others add to a pass over prompts, on each stage.
    added = parts.riding * (1 / stages)
    pace = max(run.prompt.stages) + added.time
    request = "a request"

    at = parts.before_turn
    if at:
        found.add(first, request, "waiting for a turn", 0.0, at)
    start, at = at, at + parts.queue
    if parts.queue:
        found.add(first, request, "waiting for prompts before", start, at)
    start, at = at, at + parts.host
    found.add(first, request, "the host", start, at)
    if parts.host:
        block = Block("waiting for the host", {LAUNCH: parts.host})
        found.put(first, block, start, 0, at)
    start, at = at, at + parts.prompt
    found.add(first, request, "its prompt", start, at, _prompt_details(run))
    starts = _stage_starts(run.prompt, added.time)
    shown = min(run.pieces, SHOWN)
    for stage, block in enumerate(prompt):
        begin = start + starts[stage]
        longer = _with_steps(block, added)
        for piece in range(shown):
            name = f"prompts, piece {piece}" if run.pieces > 1 else "prompts"
            where = begin + piece * pace
            found.put(
                first + stage,
                replace(longer, name=name, details={**_prompt_details(run), "piece": piece}),
                where,
                detail.ends if piece == 0 else detail.middle,
                where + longer.time,
            )
        _put_many(
            found,
            first + stage,
            longer,
            run.pieces - shown,
            "pieces of prompts",
            begin + shown * pace,
            begin + (run.pieces - 1) * pace + longer.time,
        )
    start, at = at, at + parts.others
    if parts.others:
        if not apart:
            found.add(first, request, "prompts of others", start, at)
        passes = (run.batches - 1) * run.pieces
        for stage, block in enumerate(prompt):
            _put_many(
                found,
                first + stage,
                _with_steps(block, added),
                passes,
                "passes over prompts of others",
                start,
                at,
            )
    if apart:
        # Nobody who generates waits for those.
        at = start
    start, at = at, at + parts.waiting
    if parts.waiting:
        found.add(first, request, "waiting for replicas that process prompts", start, at)
    start, at = at, at + parts.handover
    if parts.handover:
        found.add(first, request, "handing over keys and values", start, at)
    found.add(first, request, "generation", at, found.time, {"steps": parts.steps})
    _put_steps(found, run, step, at, generating)
    if parts.before_turn:
        _put_earlier_turns(found, parts.before_turn, run.turns - 1)


def _put_earlier_turns(found: Timeline, end: float, turns: float) -> None:
    """What devices do for those who come first: the same as later, so many times."""
    done: dict[int, dict[str, float]] = {}
    for span in found.spans:
        if span.lane == DEVICE:
            of_process = done.setdefault(span.process, {})
            for column, taken in span.seconds.items():
                of_process[column] = of_process.get(column, 0.0) + taken * turns
    details = {"aggregated": True, "turns": turns}
    for process, seconds in done.items():
        found.add(process, DEVICE, "requests of others", 0.0, end, details, seconds)


def _put_steps(
    found: Timeline, run: InferenceRun, step: Sequence[Block], at: float, process: int
) -> None:
    steps, groups, pace = run.phases.steps, run.mapping.groups, max(run.step.stages)
    starts = _stage_starts(run.step, 0.0)
    single = min(SHOWN, int(steps))
    for number in range(single):
        begin = at + number * run.step_time
        for group in range(groups):
            for stage, block in enumerate(step):
                where = begin + group * pace + starts[stage]
                name = f"step {number}" + (f", group {group}" if groups > 1 else "")
                found.put(
                    process + stage,
                    replace(block, name=name, details={"context": "average"}),
                    where,
                    found.detail.ends if number == 0 and not group else found.detail.middle,
                    where + block.time,
                )
        if len(step) == 1 and run.host:
            wait = Block("waiting for the host", {LAUNCH: run.host})
            found.put(process, wait, begin + run.step_time - run.host, 0, begin + run.step_time)
    left = steps - single
    if left <= _ROUNDING * steps:
        return
    for stage, block in enumerate(step):
        seconds = {name: taken * left * groups for name, taken in block.seconds.items()}
        if len(step) == 1 and run.host:
            seconds[LAUNCH] = seconds.get(LAUNCH, 0.0) + run.host * left
        found.add(
            process + stage,
            DEVICE,
            f"{left:.6g} further steps",
            at + single * run.step_time + starts[stage],
            found.time,
            {"aggregated": True, "steps": left, "groups": groups},
            seconds,
        )


def _put_many(
    found: Timeline, process: int, block: Block, count: float, what: str, start: float, end: float
) -> None:
    """``count`` blocks that are alike as one; of the last there may be a part only."""
    if count > 0:
        seconds = {name: taken * count for name, taken in block.seconds.items()}
        details = {"aggregated": True, "passes": count}
        found.add(process, DEVICE, f"{count:.4g} {what}", start, end, details, seconds)


def _prompt_details(run: InferenceRun) -> dict[str, int]:
    return {"prompts": run.batch_prompts, "new_tokens_each": run.new_tokens, "pieces": run.pieces}


def _with_steps(block: Block, added: Cost) -> Block:
    if not added.time:
        return block
    rider = Block("steps of others in the same pass", seconds_of(added))
    return fitted(block.name, [*block.children, rider], summed([block, rider]))


def _stage_starts(passed: PassCosts, added: float) -> list[float]:
    """When each stage begins with a pass, in seconds from its beginning."""
    hop = 0.0
    if len(passed.stages) > 1:
        hop = (passed.latency - sum(passed.stages)) / (len(passed.stages) - 1)
    starts = [0.0]
    for taken in passed.stages[:-1]:
        starts.append(starts[-1] + taken + added + max(0.0, hop))
    return starts


def _content(names: Sequence[str]) -> str:
    layers = sum(name not in (EMBEDDING, HEAD) for name in names)
    found = [EMBEDDING] * (EMBEDDING in names) + [f"{layers} layers"] + [HEAD] * (HEAD in names)
    return ", ".join(found)


def _stage_blocks(run: InferenceRun, passed: PassCosts, title: str) -> list[Block]:
    """A pass on each stage, with its layers."""
    children: list[list[Block]] = []
    number = 0
    made: dict[tuple[str, float], Block] = {}
    layout, kept = run.mapping.layout, _kept_waits(run, passed)
    for content, time in zip(layout.parts, passed.stages, strict=True):
        costs = {}
        for name in content:
            cost = total(passed.segments[name])
            less = {waits: getattr(cost, waits) * kept[waits] for waits in _WAITS}
            costs[name] = replace(cost, **less)
        shares = _shares(costs, content, time)
        blocks = []
        for name in content:
            key = name, time
            if key not in made:
                made[key] = chain_block(name, passed.segments[name], shares[name])
            label = name
            if name not in (EMBEDDING, HEAD):
                label, number = f"layer {number}", number + 1
            blocks.append(replace(made[key], name=label, details={"segment": name}))
        children.append(blocks)
    done = summed(block for blocks in children for block in blocks)
    whole = seconds_of(passed.cost)
    # A draft's passes are computed by the last stage, and are no segments of the model.
    columns = (*_WORK, *_WAIT_COLUMNS) if len(layout.parts) == 1 else _WORK
    draft = {column: whole.get(column, 0.0) - done.get(column, 0.0) for column in columns}
    draft = {name: more for name, more in draft.items() if more > _ROUNDING * passed.latency}
    if draft:
        children[-1].append(Block("passes of the draft", draft))
    stages = []
    for blocks, time in zip(children, passed.stages, strict=True):
        want = summed(blocks)
        want[LAUNCH] = want.get(LAUNCH, 0.0) + max(0.0, time - sum(want.values()))
        stages.append(fitted(title, blocks, want))
    return stages


def _kept_waits(run: InferenceRun, passed: PassCosts) -> dict[str, float]:
    """What a pass leaves of the waits of its segments one by one, by class.

    A pass over prompts computes beside the communication with experts.
    """
    counts = Counter(name for part in run.mapping.layout.parts for name in part)
    alone = Cost()
    for name, count in counts.items():
        alone += total(passed.segments[name]) * count
    kept = {}
    for waits in _WAITS:
        waiting = getattr(alone, waits)
        kept[waits] = min(1.0, getattr(passed.cost, waits) / waiting) if waiting else 1.0
    return kept


def _shares(costs: dict[str, Cost], content: Sequence[str], time: float) -> dict[str, Cost]:
    """Costs of segments; where a stage takes less than they do one by one, all wait less."""
    less = sum(costs[name].time for name in content) - time
    for waits in _WAITS:
        waiting = sum(getattr(costs[name], waits) for name in content)
        if less <= _ROUNDING * time or not waiting:
            continue
        kept = max(0.0, 1 - less / waiting)
        less -= waiting * (1 - kept)
        costs = {
            name: replace(cost, **{waits: getattr(cost, waits) * kept})
            for name, cost in costs.items()
        }
    return costs
