"""Requests put together from passes: prompts, then tokens one after the other.

``global_batch_size`` clients send requests of the same lengths. Prompts are processed in batches
of up to ``max_batched_tokens`` tokens, before anybody's next token; then every pass gives each
sequence a token, or with a draft as many as the model agrees with. The context grows by what has
been generated, and attention is integrated over it: between the contexts at which its slope
changes it is linear, so few of them have to be looked at.

Over its life a request sees the prompts of all, be it before its first token or between later ones,
and its own tokens:

    end to end = host + batches of prompts + steps (pass + host)

On a pipeline with a group of sequences on each stage the slowest stage sets the pace.

What of that comes before the first token depends on when requests start. Those that all start at
once wait for their turn, half of all prompts on average. Later on those that were started together
end together, and the next ones wait for their own batch of prompts only; the batches of others then
come between tokens. ``requests_per_client`` says how many of both there are. With a
``request_rate`` requests arrive at random, and prompts queue up one at a time.

With ``chunked_prefill`` a pass over others' prompts is a step of generation, too (SARATHI, arXiv
2308.16369). Replicas that only process prompts (``prompt_replicas``; DistServe, arXiv 2401.09670)
hold nobody up who generates; if they cannot keep up, requests wait for them. There is a steady
stream of requests then, whatever ``requests_per_client`` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from deepflow.config.model import LlmModel
from deepflow.cost.operators import Cost, OperatorCost, block_costs, operator_cost
from deepflow.errors import InfeasiblePoint
from deepflow.hardware import Hardware
from deepflow.mapping.inference import (
    InferenceMapping,
    map_inference,
    numbers_of,
    sharded_pass,
)
from deepflow.mapping.parallelism import EMBEDDING, HEAD, TrainingMapping
from deepflow.record import record
from deepflow.schedule.simulated import (
    FLATTENED,
    PIPELINES,
    chain_items,
    chain_total,
    machine_pass_time,
    pass_time,
    simulated_mode,
    with_time,
)
from deepflow.workload.inference import (
    Numbers,
    attends_to,
    cached_elements,
    head_for,
    pass_blocks,
)
from deepflow.workload.operators import (
    FP32,
    Attention,
    Block,
    Collective,
    Cut,
    Gemm,
    GroupedGemm,
    stays_wide,
)

# Contexts closer to each other than this are not told apart, where attention goes in steps.
CONTEXT_STEP = 32
SAME = 1e-9
# More at once is as good as no limit.
MOST_SEQUENCES = 2**40

NOTHING = Cost()


@record(frozen=True)
class PassCosts:
    """One pass over one group of sequences: its segments by name, and the whole of it.

    ``stages``: seconds on each stage. ``latency``: through all of them, transfers included.
    ``cost``: of all stages together.
    """

    segments: dict[str, tuple[OperatorCost, ...]]
    stages: tuple[float, ...]
    latency: float
    cost: Cost


@record(frozen=True)
class ServingMemory:
    """Bytes on the fullest device, by part; ``cache``: keys and values of all its sequences.

    ``largest_batch``: sequences of these lengths that all devices together can hold.
    """

    weights: float
    cache: float
    activations: float
    logits: float
    buffers: float
    allocator: float
    reserved: float
    largest_batch: int

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        used = self.weights + self.cache + self.activations + self.logits + self.buffers
        return used + self.allocator + self.reserved


@record(frozen=True)
class Phases:
    """What a request goes through, in this order; seconds that add up to its ``end_to_end``.

    ``before_turn``: others have their answers first; ``queue``: their prompts come first; ``host``
    before the first token; ``prompt``: its own batch; ``others``: batches of others, beside which
    nobody generates (where other replicas do they are no part of the sum); ``waiting`` for replicas
    that only process prompts; ``handover`` of the cache; ``generation``: of ``steps``. ``riding``:
    what steps of others add to each pass over prompts.
    """

    before_turn: float
    queue: float
    host: float
    prompt: float
    others: float
    waiting: float
    handover: float
    generation: float
    steps: float
    riding: Cost


@record(frozen=True)
class _ServedStage:
    """Bytes on a device of a stage; ``positions``: rows of logits for each sequence in a pass."""

    weights: float
    cache_of_sequence: float
    logits_of_row: float
    positions: int


@record(frozen=True)
class InferenceRun:
    """All that is known about answering one prompt per client. Times in seconds.

    ``prompt``: a pass over ``pieces``-th parts of the prompts of a batch, of which a replica has
    ``batches``. ``step``: the average pass of generation, of ``steps``, draft included, without
    what ``host`` takes between passes; ``step_time``: from one pass of a sequence to its next;
    ``waited``: a device for the host in all. ``new_tokens``:
    tokens of a prompt that are not cached.
    ``handover``: of one prompt's cache to the replica that generates, if that is another one.
    ``everything``: what all devices do together. ``turns``: how often the sequences at work give
    way to others until everybody has been answered once.
    """

    mapping: InferenceMapping
    prompt: PassCosts
    batches: float
    batch_prompts: int
    pieces: int
    new_tokens: int
    step: PassCosts
    steps: float
    step_time: float
    host: float
    waited: float
    handover: Cost
    first_token: float
    end_to_end: float
    everything: Cost
    memory: ServingMemory
    phases: Phases
    turns: float = 1.0

    @property
    def devices(self) -> int:
        """Devices of all replicas, whatever they do."""
        return self.mapping.layout.num_devices


def run_inference(hardware: Hardware, model: LlmModel) -> InferenceRun:
    """Costs and schedules the answers to one prompt of every client.

    Raises:
        InfeasiblePoint: degrees or networks do not fit together, or the model does not generate.
        NetworkError, AstraSimError: the simulator that is asked for has no answer.
    """
    mapping = map_inference(hardware, model)
    layout, software = mapping.layout, hardware.config.sw_param
    if layout.expert == 1:
        # A device that holds all experts has all rows, whatever the routing.
        model = replace(model, expert_imbalance=1.0)
    numbers = numbers_of(hardware)
    new = max(1, model.prompt_tokens - int(model.cached_prompt * model.prompt_tokens))
    rate = model.request_rate
    at_once = max(1, software.max_batched_tokens // new)
    if mapping.disaggregated or rate is not None:
        # A steady stream: a prompt that is alone need not wait for others to fill a batch.
        at_once = 1
    batches, batch_prompts = _batched(mapping.prompts, at_once)
    pieces = -(-new // software.max_batched_tokens)
    queries = -(-new // pieces)
    generated = {
        name: _step_blocks(model, mapping, numbers, number)
        for name, number in _generated(model).items()
    }
    head = head_for(generated["step"][HEAD], batch_prompts)
    prompted = _prompt_blocks(model, mapping, numbers, batch_prompts, queries)
    passes = {"prompt": {**prompted, HEAD: head}, **generated}
    shards, costs = _costs(hardware, mapping, passes)
    rows = -(-batch_prompts * queries // layout.context)
    of_prompt = _in_pieces(costs["prompt"], hardware, mapping, new, pieces)
    halves = layout.asked.overlap_expert_communication and rows > 1
    prompt = _passed(
        hardware, mapping, of_prompt, rows * model.hidden_dim, graph=False, halves=halves
    )
    step = _generation(hardware, model, mapping, costs)

    steps = (model.output_len - 1) / _tokens_per_pass(model.draft_len, model.draft_acceptance)
    host = software.host_time_per_decode_step + mapping.sequences * software.host_time_per_sequence
    # Every stage works on all groups of sequences in turn, the slowest one without a rest.
    step_time = max(step.latency + host, mapping.groups * max(step.stages))
    along, alone = NOTHING, steps
    if software.chunked_prefill and not mapping.disaggregated:
        shared = (batches - 1) * pieces
        # Of requests with few tokens most are not generating while others' prompts are processed.
        share = min(1.0, steps / shared) if shared else 0.0
        generating = share * (mapping.sequences - batch_prompts)
        along = _going_along(mapping, prompt, step, batch_prompts * queries, generating)
        alone = max(0.0, steps - shared)
    of_stage = max(prompt.stages) + along.time / layout.pipeline
    own = prompt.latency + along.time + (pieces - 1) * of_stage
    first = software.host_time_per_request + own + host
    queue = 0.0
    if rate is not None:
        queue = _queue(rate * own / mapping.prompting, own)
        first += queue
    others = (batches - 1) * pieces * of_stage
    handover = NOTHING
    if mapping.disaggregated:
        handover = _handover(hardware, model, mapping, numbers)
    generation = handover.time + alone * step_time
    if mapping.disaggregated:
        # Others' prompts hold nobody up who generates, but prompts in their turn.
        busy = own + others + mapping.prompts * handover.time
        end_to_end = max(first + generation, busy)
        waited = alone * host * mapping.generating / layout.data
        first_token = end_to_end - generation
    else:
        end_to_end = first + others + generation
        waited = software.host_time_per_request + (1 + alone) * host
        first_token, asked = first, model.requests_per_client
        if asked is not None and rate is None:
            first_token += others / 2 / asked
    ranks = layout.tensor * layout.context
    return InferenceRun(
        mapping,
        prompt,
        batches,
        batch_prompts,
        pieces,
        new,
        step,
        steps,
        step_time,
        host,
        waited,
        handover,
        first_token,
        end_to_end,
        (prompt.cost + along) * (batches * pieces * mapping.prompting * ranks)
        + step.cost * (alone * mapping.groups * mapping.generating * ranks)
        + handover * (mapping.prompts * mapping.prompting * ranks * layout.pipeline),
        _memory(hardware, model, mapping, numbers, prompt, at_once, queries, shards),
        Phases(
            0.0,
            queue,
            software.host_time_per_request + host,
            own,
            others,
            max(0.0, end_to_end - first - generation) if mapping.disaggregated else 0.0,
            handover.time,
            alone * step_time,
            alone,
            along,
        ),
    )


def _batched(prompts: int, at_once: int) -> tuple[float, int]:
    """How many batches ``prompts`` make with ``at_once`` at most, and prompts in each.

    Batches are as even as they can be. Of the last one, which may be smaller, counts the part that
    there is.
    """
    each = -(-prompts // -(-prompts // at_once))
    return prompts / each, each


def time_per_output_token(run: InferenceRun, model: LlmModel) -> float | None:
    """Average time between a request's tokens, others' prompts included; None with one token."""
    if model.output_len == 1:
        return None
    return (run.end_to_end - run.first_token) / (model.output_len - 1)


def run_requests(hardware: Hardware, model: LlmModel) -> tuple[LlmModel, InferenceRun]:
    """``run_inference`` with as many requests at once as the model's rate and targets make.

    Without any these are ``global_batch_size``, which is the limit otherwise, but for those that
    wait for memory (``wait_when_full``). With a rate they are the fewest that carry it (Little's
    law), with targets only the most that meet them and fit. Both are found by doubling or halving:
    more requests are slower, and more of them get done.

    Raises:
        InfeasiblePoint: no number of requests up to the limit will do.
    """
    rate, first, further = model.request_rate, model.first_token_target, model.output_token_target
    limit = model.global_batch_size
    capacity = hardware.accelerator.memory[-1].size

    def tried(requests: int) -> tuple[LlmModel, InferenceRun]:
        asked = replace(model, global_batch_size=requests)
        return asked, run_inference(hardware, asked)

    def meets(asked: LlmModel, run: InferenceRun) -> bool:
        token = time_per_output_token(run, asked)
        late = first is not None and run.first_token > first
        return not (late or (further is not None and token is not None and token > further))

    def carries(asked: LlmModel, run: InferenceRun) -> bool:
        return rate is None or asked.global_batch_size >= rate * run.end_to_end

    def described(asked: LlmModel, run: InferenceRun) -> str:
        token = time_per_output_token(run, asked)
        return (
            f"{asked.global_batch_size} at once take {run.first_token:.3g} s to the first token"
            + ("" if token is None else f", {token:.3g} s for each further one")
            + f" and {run.memory.total / 2**30:.3g} GiB of a device"
        )

    if rate is not None:
        low, most = 0, tried(1)
        while not carries(*most):
            low = most[0].global_batch_size
            if low == limit:
                raise InfeasiblePoint(
                    f"{limit} requests at once (model.global_batch_size) are"
                    f" {limit / most[1].end_to_end:.3g} per second, fewer than"
                    f" model.request_rate {rate:g}"
                )
            most = tried(min(2 * low, limit))
        while most[0].global_batch_size - low > 1:
            middle = tried((most[0].global_batch_size + low) // 2)
            if carries(*middle):
                most = middle
            else:
                low = middle[0].global_batch_size
        if not meets(*most):
            raise InfeasiblePoint(
                "model.first_token_target or output_token_target is not met at"
                f" model.request_rate {rate:g}: {described(*most)}"
            )
        return most
    most = tried(limit)
    if first is None and further is None:
        room = min(most[1].memory.largest_batch, limit - 1)
        if not model.wait_when_full or most[1].memory.total <= capacity or room < 1:
            return most
        runs = {room: tried(room)[1]}
        # The last batch of prompts may be too small to be worth it.
        full = room - room % (runs[room].batch_prompts * runs[room].mapping.generating)
        if 0 < full < room:
            runs[full] = tried(full)[1]
        held = min(runs, key=lambda requests: runs[requests].end_to_end / requests)
        return most[0], _in_turns(runs[held], limit / held)
    if meets(*most) and most[1].memory.total <= capacity:
        return most
    least, high = tried(1), limit
    if not meets(*least) or least[1].memory.total > capacity:
        raise InfeasiblePoint(
            "model.first_token_target, output_token_target or the memory cannot be met:"
            f" {described(*least)}"
        )
    while high - least[0].global_batch_size > 1:
        middle = tried((high + least[0].global_batch_size) // 2)
        if meets(*middle) and middle[1].memory.total <= capacity:
            least = middle
        else:
            high = middle[0].global_batch_size
    return least


def _in_turns(run: InferenceRun, turns: float) -> InferenceRun:
    """``run`` for ``turns`` times as many clients, who wait for a place as in a steady stream."""
    waiting = (turns - 1) * run.end_to_end
    return replace(
        run,
        first_token=run.first_token + waiting,
        end_to_end=run.end_to_end + waiting,
        everything=run.everything * turns,
        waited=run.waited * turns,
        phases=replace(run.phases, before_turn=waiting),
        turns=turns,
    )


def _queue(load: float, service: float) -> float:
    """Mean wait for prompts before one's own, each of which takes ``service`` seconds.

    Arrivals at random and equal services (M/D/1; Pollaczek 1930, Khinchine 1932).

    Raises:
        InfeasiblePoint: there are more prompts than can be processed.
    """
    if load >= 1:
        raise InfeasiblePoint(
            f"prompts alone would keep the replicas busy {load:.3g} times at this"
            " model.request_rate"
        )
    return load / (2 * (1 - load)) * service


def _going_along(
    mapping: InferenceMapping, prompt: PassCosts, step: PassCosts, tokens: int, others: float
) -> Cost:
    """What a pass over ``tokens`` of prompts takes longer with a step of ``others``.

    Attention is that of the step. The rest reads its weights once for both, so it grows with the
    tokens at most, and is no more than the step on its own.
    """
    whole = step.cost * (mapping.groups * others / mapping.sequences)
    if not others:
        return NOTHING
    rest = (prompt.cost.time - prompt.cost.attention) * others / tokens
    time = min(whole.time, whole.attention + rest)
    return replace(whole * (time / whole.time), flops=whole.flops)


def _handover(
    hardware: Hardware, model: LlmModel, mapping: InferenceMapping, numbers: Numbers
) -> Cost:
    """A device sends keys and values of one prompt to the replica that generates."""
    layers = -(-model.num_layers // mapping.layout.pipeline)
    held = -(-_held_tokens(model.prompt_tokens, model) // mapping.layout.context)
    message = layers * held * _rank_elements(model, mapping) * numbers.cached
    transfer = Collective("cache_handover", "send", "data", message)
    return operator_cost(transfer, hardware, mapping.layout.groups).cost


def _held_tokens(tokens: int, model: LlmModel) -> int:
    window = model.attention_window
    return tokens if window is None else min(tokens, window)


def _rank_elements(model: LlmModel, mapping: InferenceMapping) -> float:
    """Elements of keys and values of one position in one layer on one rank."""
    elements = cached_elements(model)
    if model.kv_latent_dim is not None:
        return elements
    return elements * max(1, model.kv_heads // mapping.layout.tensor) / model.kv_heads


def _tokens_per_pass(proposed: int, acceptance: float) -> float:
    """Tokens that a pass yields on average: 1 + a + ... + a^proposed (arXiv 2211.17192, 3.1)."""
    return sum(acceptance**number for number in range(proposed + 1))


def _prompt_blocks(
    model: LlmModel, mapping: InferenceMapping, numbers: Numbers, prompts: int, queries: int
) -> dict[str, Block]:
    """A pass over ``queries`` positions each of ``prompts``, without its head."""
    layout = mapping.layout
    blocks = pass_blocks(
        model,
        numbers,
        sequences=prompts,
        queries=queries,
        keys=model.prompt_tokens,
        generates=False,
        context=layout.context,
        context_method=layout.asked.context_method,
    )
    return {EMBEDDING: blocks.embedding, **blocks.layers}


def _generated(model: LlmModel) -> dict[str, int]:
    """Positions of every sequence in the passes of a step: the model's, and a draft's."""
    return {"step": model.draft_len + 1, **({"draft": 1} if model.draft_len else {})}


def _step_blocks(
    model: LlmModel, mapping: InferenceMapping, numbers: Numbers, positions: int
) -> dict[str, Block]:
    """A pass of generation over the first context."""
    blocks = pass_blocks(
        model,
        numbers,
        sequences=mapping.group_sequences,
        queries=positions,
        keys=model.prompt_tokens + 1,
        generates=True,
        context=mapping.layout.context,
    )
    return {EMBEDDING: blocks.embedding, **blocks.layers, HEAD: blocks.head}


def _costs(
    hardware: Hardware, mapping: InferenceMapping, passes: Mapping[str, Mapping[str, Block]]
) -> tuple[dict[str, Block], dict[str, dict[str, tuple[OperatorCost, ...]]]]:
    """One rank's shards of the blocks of a step, and costs of those of all passes, by name."""
    shards = [
        sharded_pass(block, hardware, mapping)
        for blocks in passes.values()
        for block in blocks.values()
    ]
    found = iter(block_costs(shards, hardware, mapping.layout.groups))
    costs = {name: {part: next(found) for part in blocks} for name, blocks in passes.items()}
    parts = len(passes["step"])
    return dict(zip(passes["step"], shards[parts:], strict=False)), costs


def _in_pieces(
    costs: dict[str, tuple[OperatorCost, ...]],
    hardware: Hardware,
    mapping: InferenceMapping,
    new: int,
    pieces: int,
) -> dict[str, tuple[OperatorCost, ...]]:
    """``costs`` of the average of ``pieces`` that a prompt's ``new`` positions are cut into.

    The last part looks at everything before it, the first one at what is cached and itself.
    """
    if pieces == 1:
        return costs
    found = {}
    for name, chain in costs.items():
        items = list(chain)
        for place, item in enumerate(chain):
            if isinstance(item.operator, Attention):
                whole = operator_cost(
                    replace(item.operator, query_len=new), hardware, mapping.layout.groups
                )
                cost = replace(whole.cost * (1 / pieces), launch=whole.cost.launch)
                items[place] = replace(whole, cost=cost)
        found[name] = tuple(items)
    return found


def _generation(
    hardware: Hardware,
    model: LlmModel,
    mapping: InferenceMapping,
    costs: Mapping[str, dict[str, tuple[OperatorCost, ...]]],
) -> PassCosts:
    """The average pass of generation, what a draft does before it included."""
    graph = hardware.config.sw_param.decode_graph
    first = model.prompt_tokens + 1
    last = model.prompt_tokens + max(1, model.output_len - 1)
    averages: dict[Attention, OperatorCost] = {}

    def grown(item: OperatorCost) -> OperatorCost:
        operator = item.operator
        if not isinstance(operator, Attention):
            return item
        if operator not in averages:
            averages[operator] = _over_contexts(item, hardware, mapping, first, last)
        return averages[operator]

    step = {name: tuple(map(grown, chain)) for name, chain in costs["step"].items()}
    rows = mapping.group_sequences * (model.draft_len + 1)
    verified = _passed(hardware, mapping, step, rows * model.hidden_dim, graph=graph)
    if "draft" not in costs:
        return verified
    # The draft's layers and head are like the model's, on the devices that hold the last ones.
    gap = 0.0 if graph else hardware.config.sw_param.kernel_gap
    kind = layer_names(costs["draft"])[-1]
    layer = _segment_total(tuple(map(grown, costs["draft"][kind])), hardware, mapping, gap)
    head = _segment_total(costs["draft"][HEAD], hardware, mapping, gap)
    draft = (layer * model.draft_layers + head) * model.draft_len
    stages = (*verified.stages[:-1], verified.stages[-1] + draft.time)
    return PassCosts(
        verified.segments, stages, verified.latency + draft.time, verified.cost + draft
    )


def layer_names(segments: Mapping[str, object]) -> list[str]:
    """Kinds of layer among segments."""
    return [name for name in segments if name not in (EMBEDDING, HEAD)]


def _segment_total(
    chain: tuple[OperatorCost, ...], hardware: Hardware, mapping: InferenceMapping, gap: float
) -> Cost:
    kernels = sum(item.kernels for item in chain)
    whole = chain_total(chain, hardware, mapping.layout.groups, issued=True)
    return whole + Cost(launch=gap * kernels)


def _passed(
    hardware: Hardware,
    mapping: InferenceMapping,
    costs: dict[str, tuple[OperatorCost, ...]],
    boundary_elements: int,
    *,
    graph: bool,
    halves: bool = False,
) -> PassCosts:
    """A pass through all stages; a ``graph`` needs no time of the host for its kernels.

    With ``halves`` one half of the tokens is computed while the other travels to its experts.
    """
    software, layout = hardware.config.sw_param, mapping.layout
    gap = 0.0 if graph else software.kernel_gap
    totals = {name: _segment_total(chain, hardware, mapping, gap) for name, chain in costs.items()}
    size = boundary_elements * software.precision / layout.tensor
    hop = NOTHING
    if layout.pipeline > 1:
        transfer = Collective("stage_transfer", "send", "pipeline", size)
        hop = operator_cost(transfer, hardware, layout.groups).cost
    stages = []
    for stage in range(layout.pipeline):
        cost = NOTHING
        for name, count in Counter(layout.parts[stage]).items():
            cost += totals[name] * count
        if halves:
            cost += Cost(expert_communication=-_hidden(cost))
        stages.append(cost if graph else cost.paced())
    transfers = hop * (layout.pipeline - 1)
    latency = sum(cost.time for cost in stages) + transfers.time
    mode = simulated_mode(hardware)
    if mode == FLATTENED and layout.num_devices > 1:
        if halves:
            from deepflow.network.graph import NetworkError

            raise NetworkError(
                "parallelism.overlap_expert_communication runs two halves of prompts at once, which"
                f" the mode {mode} does not"
            )
        latency = _machine_time(hardware, layout, costs, stages, size)
        *stages, transfers = with_time([*stages, transfers], latency)
    elif mode in PIPELINES and layout.pipeline > 1:
        times = [cost.time for cost in stages]
        latency = pass_time(times, size, hardware, layout.groups["pipeline"])
        (transfers,) = with_time([transfers], latency - sum(times))
    times = [cost.time for cost in stages]
    return PassCosts(costs, tuple(times), latency, sum(stages, transfers))


def _hidden(cost: Cost) -> float:
    """Seconds of communication with experts that go on beside computing.

    Two halves of a batch take turns (DeepSeek-V3, arXiv 2412.19437, 3.4.1); nothing is computed
    beside what the first one sends at the beginning and the second one in the end. In steps of
    generation, which would have to read all weights for each half, it is not done.
    """
    return min(cost.expert_communication, cost.time - cost.expert_communication) / 2


def _machine_time(
    hardware: Hardware,
    layout: TrainingMapping,
    costs: Mapping[str, tuple[OperatorCost, ...]],
    stages: Sequence[Cost],
    hop_bytes: float,
) -> float:
    """A pass in which all ranks are simulated, each with its operators and collectives."""
    from deepflow.astra.export import Item

    items = {name: chain_items(chain, hardware) for name, chain in costs.items()}
    launches = {name: sum(item.cost.launch for item in chain) for name, chain in costs.items()}
    chains = []
    for content, cost in zip(layout.parts, stages, strict=True):
        # What stages lose between kernels and by waiting for the host.
        lost = max(0.0, cost.launch - sum(launches[name] for name in content))
        chains.append([*(items[name] for name in content), (Item(compute=lost),)])
    groups = {
        "tensor": (layout.groups["tensor"], 1),
        "context": (layout.groups["context"], layout.tensor),
        "expert": (layout.groups["expert"], layout.tensor),
    }
    return machine_pass_time(chains, hop_bytes, hardware, groups, layout.num_devices)


def _over_contexts(
    item: OperatorCost, hardware: Hardware, mapping: InferenceMapping, first: int, last: int
) -> OperatorCost:
    """``item``, an attention, with its average cost over contexts from ``first`` to ``last``."""
    operator, groups = item.operator, mapping.layout.groups
    assert isinstance(operator, Attention)

    def cost_at(keys: int) -> Cost:
        attention = attends_to(operator, keys, mapping.layout.context)
        return operator_cost(attention, hardware, groups).cost

    average = _average(cost_at, first, last)
    return replace(item, cost=average)


def _average(cost_at: Callable[[int], Cost], first: int, last: int) -> Cost:
    """Mean of ``cost_at`` over the integers from ``first`` to ``last``.

    Exact where it is linear in pieces: intervals are halved until their middle lies on the chord.
    """
    start, end = cost_at(first), cost_at(last)
    if first == last:
        return start

    def summed(low: int, high: int, at_low: Cost, at_high: Cost) -> Cost:
        """Sum over ``low`` to ``high``, the latter left out."""
        chord = (at_low + at_high) * 0.5
        # Of n points on a line the mean is that of the first and the last one.
        without_last = (at_low * (high - low + 1) + at_high * (high - low - 1)) * 0.5
        if high - low < CONTEXT_STEP:
            return without_last
        middle = (low + high) // 2
        at_middle = cost_at(middle)
        share = (middle - low) / (high - low)
        expected = at_low.time + share * (at_high.time - at_low.time)
        if abs(at_middle.time - expected) <= SAME * chord.time:
            return without_last
        lower = summed(low, middle, at_low, at_middle)
        return lower + summed(middle, high, at_middle, at_high)

    return (summed(first, last, start, end) + end) * (1 / (last - first + 1))


def _memory(
    hardware: Hardware,
    model: LlmModel,
    mapping: InferenceMapping,
    numbers: Numbers,
    prompt: PassCosts,
    at_once: int,
    queries: int,
    shards: Mapping[str, Block],
) -> ServingMemory:
    """Memory of the fullest stage's devices when all sequences have reached their full length.

    ``prompt``: a pass over ``queries`` positions of each of as many prompts as ``_batched`` says,
    ``at_once`` at most. A server fills its batches, so there is room for ``at_once``.
    """
    software, layout = hardware.config.sw_param, mapping.layout
    tokens = _held_tokens(model.prompt_tokens + model.output_len, model)
    block = software.kv_block_tokens
    held = -(-tokens // (block * layout.context)) * block
    of_layer = held * _rank_elements(model, mapping) * numbers.cached
    largest = max(
        operator.m * (operator.k + operator.n) * operator.batch
        if isinstance(operator, Gemm)
        else operator.rows * (operator.k + operator.n)
        for chain in prompt.segments.values()
        for item in chain
        if isinstance(operator := item.operator, Gemm | GroupedGemm)
    )
    boundary = max(
        (
            operator.m * model.hidden_dim
            for item in prompt.segments[next(iter(layer_names(prompt.segments)))]
            if isinstance(operator := item.operator, Gemm)
        ),
    )
    weights_of = _weights(hardware, numbers, shards)
    found = []
    capacity = hardware.accelerator.memory[-1].size
    for part in layout.parts:
        counts = Counter(part)
        layers = sum(count for name, count in counts.items() if name not in (EMBEDDING, HEAD))
        weights = sum(weights_of[name] * count for name, count in counts.items())
        if EMBEDDING in counts and HEAD in counts and model.tie_embeddings:
            weights -= weights_of[HEAD]
        if HEAD in counts and model.draft_len:
            # The draft lives where its layers are run.
            layers += model.draft_layers
            weights += model.draft_layers * weights_of[layer_names(shards)[-1]] + weights_of[HEAD]
        of_row = model.vocab_size * (numbers.activation + FP32) if HEAD in counts else 0.0
        found.append(_ServedStage(weights, layers * of_layer, of_row, model.draft_len + 1))

    def rows_of(prompts: int) -> int:
        return -(-prompts * queries // layout.context)

    _, batch_prompts = _batched(mapping.prompts, at_once)
    activations = (largest + 2 * boundary) * numbers.activation
    buffers = 2 * boundary * numbers.activation if layout.tensor * layout.pipeline > 1 else 0.0

    def used(stage: _ServedStage, sequences: int) -> tuple[float, float, float, float]:
        """Activations, buffers, logits and cache with so many sequences in a replica."""
        prompts = -(-sequences * mapping.generating // mapping.prompting)
        passed = rows_of(min(prompts, at_once)) / rows_of(batch_prompts)
        rows = -(-sequences // min(layout.pipeline, sequences)) * stage.positions
        return (
            activations * passed,
            buffers * passed,
            rows * stage.logits_of_row,
            sequences * stage.cache_of_sequence,
        )

    def room(stage: _ServedStage, sequences: int) -> float:
        """Bytes for the cache beside everything else."""
        usable = (capacity - software.reserved_memory) / (1 + software.allocator_overhead)
        beside = stage.weights + sum(used(stage, sequences)[:3])
        return software.cache_memory_share * (usable - beside)

    def fits(sequences: int) -> bool:
        return all(sequences * stage.cache_of_sequence <= room(stage, sequences) for stage in found)

    def memory_of(stage: _ServedStage) -> ServingMemory:
        moving, buffered, logits, cache = used(stage, mapping.sequences)
        unused = cache * (1 / software.cache_memory_share - 1)
        fixed = stage.weights + moving + logits + buffered
        return ServingMemory(
            stage.weights,
            cache,
            moving,
            logits,
            buffered,
            software.allocator_overhead * (fixed + cache + unused) + unused,
            software.reserved_memory,
            mapping.generating * most,
        )

    # With activations as now the cache fills the room. They grow with sequences, so that is near.
    guess = min(
        (
            room(stage, mapping.sequences) / stage.cache_of_sequence
            for stage in found
            if stage.cache_of_sequence
        ),
        default=float(mapping.sequences),
    )
    most = _largest_that(fits, max(1, int(guess)))
    return max(map(memory_of, found), key=lambda memory: memory.total)


def _largest_that(fits: Callable[[int], bool], guess: int) -> int:
    """The largest number that ``fits``, 0 if none does; ``guess``: about that."""
    low, high, step = 0, guess, 1
    while high < MOST_SEQUENCES and fits(high):
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _weights(hardware: Hardware, numbers: Numbers, shards: Mapping[str, Block]) -> dict[str, float]:
    """Bytes of a rank's weights by segment."""
    stored = hardware.config.sw_param.weight_bytes
    sizes = {}
    for name, shard in shards.items():
        each = numbers.activation if name in (EMBEDDING, HEAD) else stored
        # Matrices that every rank has whole are stored like others, norms and the router are not.
        whole = sum(
            item.k * item.n
            for item in shard.operators
            if isinstance(item, Gemm)
            and item.weight
            and item.cut is Cut.SEQUENCE
            and not stays_wide(item)
        )
        sizes[name] = (shard.parameters + shard.expert_parameters + whole) * each
        sizes[name] += (shard.replicated_parameters - whole) * numbers.activation
    return sizes
