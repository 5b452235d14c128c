"""The pages on the model: their worked examples, computed here by hand, and what they refer to.

Each example is arithmetic on the numbers of the example device that ``docs/model.md`` shows. The
code has to give the same, and the page has to state the result. What the two have in common is the
formula as the page has it, not a function.
"""

import math
import re
from dataclasses import replace

import pytest
import yaml

from deepflow.config import load_model_config
from deepflow.config.framework import SECTIONS, load_framework_config
from deepflow.config.hardware import HardwareConfig
from deepflow.config.model import CollectiveModel, GemmModel, LlmModel, LstmModel
from deepflow.config.schema import resolve_path
from deepflow.cost.attention import attention_cost, attention_limits
from deepflow.cost.collectives import collective_cost
from deepflow.cost.gemm import gemm_cost
from deepflow.cost.grouped_gemm import grouped_gemm_cost
from deepflow.cost.operators import Cost, operator_cost
from deepflow.errors import ConfigError
from deepflow.hardware import load_hardware
from deepflow.hardware.manufacturing import device_cost
from deepflow.mapping.groups import place_group
from deepflow.mapping.parallelism import map_training
from deepflow.mapping.training import segment_parameters
from deepflow.prediction import predict
from deepflow.schedule.passes import PassSegment, pass_time
from deepflow.schedule.pipeline import PipelineShape, pipeline_graph
from deepflow.schedule.training import run_training
from deepflow.workload.lstm import parameter_count as lstm_parameter_count
from deepflow.workload.operators import BACKWARD_PASSES, Attention
from deepflow.workload.transformer import (
    model_flops_per_token,
    parameter_count,
    transformer_blocks,
)

MIB, US = 2**20, 1e-6

# The example device.
FLOPS, USABLE = 800e12, 640e12
DRAM, DRAM_LATENCY, L2 = 2.7e12, 1e-7, 8e12
INTRA, INTER = 320e9, 40e9
LAUNCH = 3 * US
# Llama 2 7B.
WIDTH, LAYERS, HEADS, FFN, VOCABULARY, TOKENS = 4096, 32, 32, 11008, 32000, 4096
MATRICES = WIDTH * 3 * WIDTH + WIDTH * WIDTH + WIDTH * 2 * FFN + FFN * WIDTH


@pytest.fixture(scope="module")
def device(repository, tmp_path_factory):
    """Loads the example device of the index, with overrides."""
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```", (repository / "docs/model.md").read_text(), re.M | re.S
    )
    path = tmp_path_factory.mktemp("example") / "example.yaml"
    path.write_text(block)

    def load(**overrides):
        return load_hardware(path, {key.replace("__", "."): x for key, x in overrides.items()})

    return load


@pytest.fixture(scope="module")
def llama(repository):
    model = load_model_config(repository / "configs/model-config/Llama2-7B.yaml")
    return replace(model, global_batch_size=8)


@pytest.fixture
def states(repository):
    """Says whether a page's example has the numbers."""

    def check(page, *numbers):
        text = (repository / f"docs/model/{page}.md").read_text()
        example = " ".join(text[text.index("## Example") :].split())
        for number in numbers:
            assert re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)", example), number

    return check


def micro(seconds, digits=2):
    return f"{seconds / US:.{digits}f}"


def root(function, low, high):
    """Where a rising function is zero."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


def three_norm(one, other):
    return (one**3 + other**3) ** (1 / 3)


def chunked(sent, own, bandwidth, handshake, parts=1):
    """Seconds of a transfer in chunks."""
    data = (sent + own) / bandwidth
    chunk = min(data / parts, 24 * 512 * 1024 / bandwidth, math.sqrt(data * handshake))
    return sent / bandwidth + chunk + data / chunk * handshake


def ring(size, ranks, passes):
    """Seconds of a ring within a node, with the copy of the own part and without launch."""
    sent = passes * (ranks - 1) / ranks * size
    copy = 2 * size / ranks / DRAM + DRAM_LATENCY
    return chunked(sent, size / ranks, INTRA, 4 * US) + passes * (ranks - 1) * US + copy


# --- Examples -------------------------------------------------------------------------------


def test_device_from_power_area_and_edge(device, states):
    voltage = root(lambda v: v * (v - 0.2) ** 2 - 0.5 * 0.8 * 0.6**2, 0.2, 0.8)
    clock = 2e9 * ((voltage - 0.2) ** 2 / voltage) / (0.6**2 / 0.8)
    energy = 1 / (1000 * 2e9) * (voltage / 0.8) ** 2
    half = {"tech_param__core__operating_frequency": None}
    core = device(**half, power_breakdown__core=200).accelerator.core
    assert core.operating_voltage == pytest.approx(voltage)
    assert core.operating_frequency == pytest.approx(clock)
    assert core.peak_flops == pytest.approx(400 * 1000 * clock)
    assert core.energy_per_flop == pytest.approx(energy)
    states("device", f"{voltage:.5f}", f"{clock / 1e9:.5f}", f"{400 * clock / 1e9:.2f}")
    states("device", f"{energy * 1e12:.5f}")

    wanted = root(lambda v: v * (v - 0.2) ** 2 - 0.1 * 0.8 * 0.6**2, 0.2, 0.8)
    least = 2e9 * (0.35**2 / 0.55) / (0.6**2 / 0.8)
    core = device(**half, power_breakdown__core=40).accelerator.core
    assert core.operating_voltage == pytest.approx(0.55)
    assert core.operating_frequency == pytest.approx(least * (wanted / 0.55) ** 2)
    states("device", f"{wanted:.5f}", f"{least / 1e9:.5f}")
    states("device", f"{least * (wanted / 0.55) ** 2 / 1e9:.5f}")

    banks = math.floor(0.8 * 150 / (8 * 32768 * 0.15e-6))
    bandwidth = (20 - 8 * 32768 * banks * 8e-12) / (8 * 100e-15)
    derived = {f"tech_param__SRAM-L2__{key}": None for key in ("size", "bandwidth")}
    cache = device(**derived).accelerator.memory[2]
    assert (cache.num_banks, cache.size) == (banks, 32768 * banks)
    assert cache.bandwidth == pytest.approx(bandwidth)
    states("device", f"{banks:,}", f"{banks / 32:.2f}", f"{bandwidth / 1e12:.3f}")

    edge = 4 * math.sqrt(800)
    links = min(6 * 1024, int(edge * 0.6 * 100))
    nominal = 4e-12 * links * 5e9
    voltage = root(lambda v: v * (v - 0.4) ** 2 - 100 / nominal * 1.2 * 0.8**2, 0.4, 1.2)
    rate = 5e9 * ((voltage - 0.4) ** 2 / voltage) / (0.8**2 / 1.2)
    derived = {f"tech_param__DRAM__{key}": None for key in ("size", "bandwidth")}
    memory = device(**derived).accelerator.memory[3]
    assert (memory.num_stacks, memory.num_links) == (6, links)
    assert memory.bandwidth == pytest.approx(0.9 * links * rate / 8)
    states("device", f"{links:,}", f"{int(edge * 0.6 * 100):,}", f"{nominal:.1f}")
    states("device", f"{voltage:.5f}", f"{rate / 1e9:.4f}", f"{links * rate / 8e12:.4f}")

    links = int(min(10 / 0.002, edge * 0.3 * 50))
    nominal = 8e-12 * links * 10e9
    voltage = root(lambda v: v * (v - 0.3) ** 2 - 30 / nominal * 0.7**2, 0.3, 1)
    rate = 10e9 * ((voltage - 0.3) ** 2 / voltage) / 0.7**2
    link = device(tech_param__network__intra_node__bandwidth=None).accelerator.intra_node
    assert link.num_links == links
    assert link.bandwidth == pytest.approx(0.8 * links * rate / 8 / 4)
    states("device", f"{links:,}", f"{nominal:.1f}", f"{voltage:.5f}", f"{rate / 1e9:.4f}")
    states("device", f"{links * rate / 32e9:.2f}")


def test_cost_of_a_device(device, states):
    dies = math.pi * 150**2 / 800 - math.pi * 300 / math.sqrt(2 * 800)
    working = (1 + 8 * 0.1 / 2) ** -2
    price = 15_000 / (dies * working)
    found = device_cost(device(manufacturing__wafer_cost=15_000, manufacturing__memory_cost=10))
    assert found is not None
    assert found.die_yield == pytest.approx(working)
    assert found.total == pytest.approx(price + 80 * 10)
    states("device", f"{dies:.1f}", f"{working * 100:.1f}", f"{price:.2f}", f"{price + 800:,.2f}")


def test_products(device, states):
    accelerator = device().accelerator
    matrix = 2 * 2048**2
    dram = 3 * matrix / DRAM + DRAM_LATENCY
    rate = USABLE / 100 / 128
    elements = math.ceil(256 / 100) * 128 * 128 / 0.97
    arithmetic = 32 * elements / rate
    epilogue = matrix / DRAM / 2
    time = three_norm(arithmetic + epilogue, dram)
    l2 = (8 + 8 + 2) * matrix / L2
    registers = 2 * 2048**2 * 4095 * (16 / (8 * 15) + 1 / (256 * 15)) / 200e12
    found = gemm_cost(accelerator, 2048, 2048, 2048, 2)
    assert found.time == pytest.approx(time)
    assert found.level_times[0] == pytest.approx(registers)
    assert found.level_times[2] == pytest.approx(l2)
    assert found.level_times[3] == pytest.approx(dram)
    for seconds in (dram, arithmetic, epilogue, arithmetic + epilogue, time, l2, registers):
        states("gemm", micro(seconds, 3))
    states("gemm", f"{elements:,.0f}", micro(time + LAUNCH, 3))
    states("gemm", f"{2 * 2048**3 / (time + LAUNCH) / 1e12:.1f}")
    saved = 32 * elements / rate - 16 * 3 * 256 * 128 / rate
    states("gemm", micro(saved), micro(2 * 4 * 2 * 2048**2 / L2))

    dram = 2 * (8 * 4096 + 4096**2 + 8 * 4096) / DRAM + DRAM_LATENCY
    epilogue = 2 * 8 * 4096 / DRAM / 2
    alone = 64 * 4096 / 0.7 / rate
    shared = 32 * 2048 / 0.3 / rate
    wait = 2 * US + 2 * 4 * 2 * 8 * 4096 / L2
    time = three_norm(alone + epilogue, dram)
    assert gemm_cost(accelerator, 8, 4096, 4096, 2).time == pytest.approx(time)
    for seconds in (dram, alone, epilogue, alone + epilogue, time, shared + epilogue, wait):
        states("gemm", micro(seconds, 3))
    states("gemm", micro(three_norm(shared + epilogue, dram) + wait, 3))


def test_experts(device, states, repository):
    rows, experts, k, n = 4096, 8, 4096, 14336
    written = 2 * rows * n
    dram = (2 * experts * k * n + 2 * rows * k + written) / DRAM + DRAM_LATENCY
    blocks = experts * math.ceil(512 / 256) * math.ceil(n / 128)
    arithmetic = 2 * math.ceil(blocks / 100) * 100 * 256 * 128 * k / USABLE
    epilogue = written / DRAM / 2
    l2 = (0.5 * blocks * (256 + 128) * k * 2 + written) / L2
    time = three_norm(arithmetic + epilogue, dram)
    found = grouped_gemm_cost(device().accelerator, rows, experts, k, n, 2)
    assert found.time == pytest.approx(time)
    assert found.l2_bytes == pytest.approx(l2 * L2)
    states("experts", f"{blocks:,}")
    for seconds in (arithmetic, epilogue, arithmetic + epilogue, dram, l2, time):
        states("experts", micro(seconds))

    missed = math.prod((96 - drawn) / (128 - drawn) for drawn in range(8))
    nodes = 8 * (1 - (1 + missed) / 2)
    deepseek = load_model_config(repository / "configs/model-config/DeepSeek-V3.yaml")
    hardware = device(
        parallelism__expert=64,
        parallelism__expert_dispatch="per_node",
        system_hierarchy__num_nodes=8,
    )
    model = replace(deepseek, global_batch_size=64, num_layers=4)
    group = map_training(hardware, model).groups["expert"]
    assert group.shared_rows.between == pytest.approx(nodes / 8)
    states("experts", f"{missed:.4f}", f"{(1 + missed) / 2:.4f}", f"{nodes:.2f}")


def test_attention(device, states):
    limits = attention_limits(device())
    exponentials = 16 * 100 * 2e9
    key = 128 * (512 / (FLOPS / 2) + 1 / exponentials)
    seen = sum(64 * groups for groups in range(2, 65, 2))
    longest = 5 * US + 4096 * key * 100
    time = 32 * (32 * 5 * US / 200 + seen * key) + 0.65 * longest
    prompt = Attention("attention", 1, 32, 32, 4096, 4096, 128, 128)
    assert attention_cost(prompt, limits, 2, 2).time == pytest.approx(time)
    transfer = 2 * 256 * 2 * 32 * 4096 / DRAM + DRAM_LATENCY
    states("attention", f"{key * 1e12:.2f}", f"{seen:,}", micro(longest, 3), micro(time))
    states("attention", micro(transfer + 5 * US))

    key = 128 * (2 * (3 * 128 + 2 * 128) / 0.79 / (FLOPS / 2) + 1.6 / exponentials)
    longest = 5 * US + 4096 * key * 100
    apart = 32 * 4096 * (2 * 128 * 2 + 128 * (8 + 2)) / DRAM
    time = 32 * (32 * 5 * US / 200 + seen * key) + 0.65 * longest + apart
    backward = replace(prompt, passes=BACKWARD_PASSES)
    assert attention_cost(backward, limits, 2, 2).time == pytest.approx(time)
    states("attention", f"{time / US:,.2f}", micro(apart))

    moved = 2 * 256 * (64 * 32 + 64 * 8 * 4096)
    transfer = moved / DRAM + DRAM_LATENCY
    products = 64 * 8 * 64 * 4096 * (512 / (0.6 * FLOPS) + 1 / exponentials)
    time = transfer + products + 0.7 * 2 * 5 * US
    step = Attention("attention", 64, 32, 8, 1, 4096, 128, 128)
    assert attention_cost(step, limits, 2, 2).time == pytest.approx(time)
    states("attention", f"{moved / 1e6:,.1f}", micro(transfer), micro(products), micro(time))


def test_memory_bound_steps_and_the_host(device, states, llama):
    hardware = device(system_hierarchy__num_devices_per_node=1)

    def seconds(fusion, name):
        block = transformer_blocks(llama, 2, 2, fusion).layers["dense"]
        (step,) = (item for item in block.operators if item.name == name)
        cost = operator_cost(step, hardware, {}).cost
        return cost.elementwise, cost.launch

    norm = 2 * 2 * 8192 * WIDTH / DRAM + DRAM_LATENCY
    assert seconds("fused", "attention_norm") == pytest.approx((norm, LAUNCH))
    states("elementwise", micro(norm - DRAM_LATENCY), micro(norm))
    states("elementwise", micro(3 * 2 * 8192 * WIDTH / DRAM + DRAM_LATENCY))
    for fusion, accesses in (("fused", 3), ("eager", 5)):
        time = accesses * 2 * 8192 * FFN / DRAM + DRAM_LATENCY
        launches = LAUNCH * (1 if fusion == "fused" else 2)
        assert seconds(fusion, "activation") == pytest.approx((time, launches))
        states("elementwise", micro(time))
    waiting = Cost(elementwise=10 * 28 * US, launch=10 * LAUNCH, issue=10 * 45 * US).paced()
    assert waiting.time == pytest.approx(450 * US)
    assert waiting.launch == pytest.approx(10 * LAUNCH + 140 * US)
    states("elementwise", "140 us")


def test_collectives(device, states):
    size = 64 * MIB
    own = size / 8
    sent = 2 * 7 / 8 * size
    data = (sent + own) / INTRA
    time = ring(size, 8, 2) + LAUNCH
    result = predict(device(), CollectiveModel("all_reduce", size))
    assert result.time_s == pytest.approx(time)
    states("collectives", f"{sent / 1e6:.2f}", micro(sent / INTRA), micro(data))
    states("collectives", micro(math.sqrt(data * 4 * US)), micro(24 * 512 * 1024 / INTRA))
    states("collectives", micro(chunked(sent, own, INTRA, 4 * US)))
    states("collectives", micro(2 * own / DRAM + DRAM_LATENCY), micro(time))

    sent = 15 / 16 * size / 8
    between = chunked(sent, size / 16, INTER, 6 * US, parts=15)
    within = chunked(7 * sent, size / 16, INTRA, 4 * US)
    assert within < between
    copy = 2 * size / 16 / DRAM + DRAM_LATENCY
    time = between + 14 * US + 5 * US + copy + LAUNCH
    result = predict(device(system_hierarchy__num_nodes=2), CollectiveModel("all_gather", size))
    assert result.time_s == pytest.approx(time)
    data = (sent + size / 16) / INTER
    states("collectives", f"{sent / 1e6:.2f}", micro(sent / INTER), micro(data))
    states("collectives", micro(data / 15), micro(between), micro(copy), micro(time))


def test_network_simulator(device, states):
    size = 64 * MIB
    message = size // 4 // 4
    delay = int(1000 + message / (INTRA / 1e9))
    reduction = 3 * int(message / DRAM * 1e9)
    phase = 7 * 10 + 6 * delay + 3 * reduction
    copy = 2 * size / 4 / DRAM + DRAM_LATENCY
    time = 4 * phase * 1e-9 + copy + LAUNCH
    hardware = device(
        backend__model="astra",
        network_topology__intra_node="ring",
        system_hierarchy__num_devices_per_node=4,
    )
    assert predict(hardware, CollectiveModel("all_reduce", size)).time_s == pytest.approx(time)
    states("simulator", f"{delay:,}", f"{reduction:,}", f"{phase:,}", f"{4 * phase:,}")
    states("simulator", micro(copy), micro(time))


def test_transformers(states, llama):
    parameters = LAYERS * (MATRICES + 2 * WIDTH) + WIDTH + 2 * VOCABULARY * WIDTH
    flops = 6 * (LAYERS * MATRICES + VOCABULARY * WIDTH) + 12 * LAYERS * WIDTH * TOKENS
    assert parameter_count(llama) == parameters
    assert model_flops_per_token(llama) == flops
    states("transformer", f"{MATRICES:,}", f"{parameters:,}", f"{flops / 1e9:.3f}")
    norms = heads = 2 * 2 * TOKENS * WIDTH * 2
    statistics, activation = 4 * TOKENS * HEADS, 3 * TOKENS * FFN * 2
    kept = norms + heads + statistics + activation
    block = transformer_blocks(llama, 1, 2, "fused").layers["dense"]
    assert block.saved_sequence + block.saved_feature == kept
    for amount in (norms, heads, statistics, activation, kept):
        states("transformer", f"{amount / 1e6:.2f}")


def test_parallelism(device, states, llama):
    message = TOKENS * WIDTH * 2
    sent, own = 7 / 8 * message, message / 8
    run = run_training(device(parallelism__tensor=8), llama)
    collectives = [item for item in run.segments["dense"].forward if item.cost.communication]
    assert [item.operator.kind for item in collectives] == ["all_gather", "reduce_scatter"] * 2
    for item in collectives:
        assert item.cost.time == pytest.approx(ring(message, 8, 1) + LAUNCH)
    data = (sent + own) / INTRA
    states("parallelism", f"{message / 1e6:.2f}", f"{sent / 1e6:.2f}", micro(sent / INTRA))
    states("parallelism", micro(data), micro(math.sqrt(data * 4 * US)))
    states("parallelism", micro(chunked(sent, own, INTRA, 4 * US) + 7 * US))
    states("parallelism", micro(ring(message, 8, 1) + LAUNCH))
    (product,) = (
        item.cost.time
        for item in run.segments["dense"].forward
        if item.operator.name == "attention_output_projection"
    )
    states("parallelism", micro(product))

    layer = MATRICES + 2 * WIDTH
    step = run_training(device(parallelism__data=8, parallelism__zero=1), llama)
    assert segment_parameters(step.step.segments["dense"].forward).count == layer
    (reduction,) = step.segments["dense"].gradient
    assert reduction.cost.intra_node_bytes == 7 / 8 * 4 * layer
    states("parallelism", f"{layer:,}", f"{7 / 8 * 4 * layer / 1e6:.1f}")
    states("parallelism", f"{7 / 8 * 2 * layer / 1e6:.1f}")


def test_memory(device, states, llama):
    result = predict(device(parallelism__tensor=8), llama)
    parameters = (2 * VOCABULARY * WIDTH + LAYERS * MATRICES) / 8 + (2 * LAYERS + 1) * WIDTH
    norms = heads = 2 * 2 * TOKENS * WIDTH * 2
    feature = heads + 4 * TOKENS * HEADS + 3 * TOKENS * FFN * 2
    layers, head = LAYERS * (norms + feature) / 8, norms / 2 / 8
    logits = TOKENS * VOCABULARY * 2 / 8
    parts = {
        "weights_bytes": 2 * parameters,
        "gradients_bytes": 4 * parameters,
        "optimizer_bytes": 12 * parameters,
        "activations_bytes": layers + head,
        "logits_bytes": logits,
        "temporary_bytes": feature / 8,
        "buffers_bytes": 2 * TOKENS * WIDTH * 2,
    }
    for column, amount in parts.items():
        assert getattr(result, column) == pytest.approx(amount), column
    whole = sum(parts.values())
    assert result.peak_memory_bytes == pytest.approx(whole)
    states("memory", f"{parameters:,.0f}", *(f"{x / 1e6:,.2f}" for x in parts.values()))
    states("memory", f"{layers / 1e6:,.2f}", f"{head / 1e6:.2f}", f"{feature / 1e6:.2f}")
    states("memory", f"{whole / 1e6:,.2f}")

    serving = replace(llama, run_type="inference", prompt_len=1024, output_len=129)
    one = device(system_hierarchy__num_devices_per_node=1)
    position = 2 * LAYERS * WIDTH * 2
    cache = math.ceil(1153 / 16) * 16 * position
    assert predict(one, replace(serving, global_batch_size=4)).kv_cache_bytes == 4 * cache
    states("memory", f"{position:,}", f"{cache / 1e6:.2f}")


def test_schedule(states):
    def step(schedule, virtual_stages=1, hop=0.0):
        shape = PipelineShape(
            schedule, 4, virtual_stages, 8, ((),) * (4 * virtual_stages), False, False, False
        )
        graph = pipeline_graph(shape)
        durations = graph.durations()
        for part in range(shape.parts):
            durations[graph.forward(part)] = 1 / virtual_stages
            whole = 1 if schedule == "zero_bubble" else 2 / virtual_stages
            durations[graph.backward(part)] = whole
            if schedule == "zero_bubble":
                durations[graph.backward_weight(part)] = 1
        ends = graph.graph.execute(durations, (0.0, hop))
        return max(ends[task] for task in graph.updates)

    m, s, forward, backward, weights = 8, 4, 1, 2, 1
    assert step("1f1b") == step("gpipe") == (m + s - 1) * (forward + backward)
    assert step("interleaved", 2) == (m + (s - 1) / 2) * (forward + backward)
    idle = (s - 1) * (forward + backward - 2 * weights)
    assert step("zero_bubble") == m * (forward + backward) + idle
    states("schedule", "33 ms", "28.5 ms", "27 ms")

    def sharded(gather, *, prefetch):
        return pass_time([PassSegment(gather, 2.0, 0.0)] * 3, prefetch=prefetch)

    assert sharded(1.5, prefetch=True) == 1.5 + 3 * 2
    assert sharded(1.5, prefetch=False) == 3 * (1.5 + 2)
    assert sharded(3.0, prefetch=True) == 3 * 3 + 2
    states("schedule", "7.5 ms", "10.5 ms", "11 ms")


def test_inference(device, states, llama):
    tokens = 1 + 0.7 + 0.7**2 + 0.7**3
    states("inference", f"{tokens:.3f}", f"{128 / tokens:.1f}")
    one = device(system_hierarchy__num_devices_per_node=1)
    model = replace(
        llama, run_type="inference", prompt_len=1024, output_len=129, global_batch_size=4
    )
    result = predict(one, model)
    read = 2 * (LAYERS * MATRICES + VOCABULARY * WIDTH)
    step = result.inter_token_latency_s
    assert result.time_s == pytest.approx(result.time_to_first_token_s + 128 * step)
    assert step > read / DRAM
    states("inference", f"{read / 1e6:,.1f}", f"{read / DRAM * 1e3:.3f}")

    own = predict(one, replace(model, global_batch_size=1)).time_to_first_token_s
    rate = 0.5
    queued = predict(one, replace(model, global_batch_size=64, request_rate=rate))
    wait = rate * own / (2 * (1 - rate * own)) * own
    assert queued.time_to_first_token_s == pytest.approx(own + wait)
    states("inference", f"{0.5 * 28e-3 / (2 * (1 - 0.5 * 28e-3)) * 28:.3f}")


def test_distributed_products_and_lstm(device, states):
    side = 8192
    product = GemmModel(side, side, side)
    cut = predict(device(parallelism__t="CR", parallelism__kp1=8), product)
    whole = 2 * side * side
    time = ring(whole, 8, 1)
    assert cut.time_tensor_communication_s == pytest.approx(time)
    assert cut.executed_flops == 8 * 2 * side * 1024 * side
    data = whole / INTRA
    states("recurrent", f"{2 * side * 1024 * side / 1e9:.2f}", f"{whole / 1e6:.2f}")
    states("recurrent", micro(7 / 8 * whole / INTRA), micro(data))
    states("recurrent", micro(math.sqrt(data * 4 * US)), micro(time))
    states("recurrent", micro(data / (24 * 512 * 1024 / INTRA) * 4 * US))
    rows = predict(device(parallelism__t="RC", parallelism__kp1=2, parallelism__kp2=4), product)
    time = ring(whole / 2, 4, 1)
    assert rows.time_tensor_communication_s == pytest.approx(time)
    states("recurrent", f"{whole / 2 / 1e6:.2f}", micro(time))

    width, gates, layers, projected, vocabulary = 1024, 4, 2, 512, 10_000
    parameters = (
        vocabulary * width
        + layers * (2 * width + 1) * gates * width
        + width * projected
        + (projected + 1) * vocabulary
    )
    lstm = LstmModel(64, vocabulary, layers, width, projected, 20, gates)
    assert lstm_parameter_count(lstm) == parameters
    states("recurrent", f"{(2 * width + 1) * gates * width:,}", f"{parameters:,}")


def test_energy(device, states):
    result = predict(device(), GemmModel(2048, 2048, 2048))
    products = 2 * 2048**3 * 0.5e-12
    dram = 8 * 4e-12 * 3 * 2 * 2048**2
    cache = 8 * 100e-15 * 18 * 2 * 2048**2
    leakage = 8 * 40 * MIB * 8e-12 * result.time_s
    energy = products + dram + cache + leakage
    assert result.energy_j == pytest.approx(energy)
    assert result.average_power_w == pytest.approx(energy / result.time_s)
    assert result.model_flops_utilization == pytest.approx(2 * 2048**3 / result.time_s / FLOPS)
    for amount in (products, dram, cache, energy):
        states("energy", f"{amount * 1e3:.3f}")
    states("energy", f"{result.average_power_w:.1f}")
    states("energy", f"{result.model_flops_utilization * 100:.2f}")


def test_frameworks(states, repository, device):
    framework = load_framework_config(repository / "configs/framework-config/nanotron_checked.yaml")
    software = framework.applied_to(device().config).sw_param
    assert software.check_time(16, 8) == pytest.approx(8 * 215 * US + 8 * 315 * US)
    assert software.host_time_per_collective == pytest.approx(200 * US)
    states("frameworks", "4,240", "200 us", "45 us")


# --- Formulas of the pages that no example goes through --------------------------------------


def test_collectives_over_two_nodes_take_what_the_table_says(device):
    size, ranks, per_node = 64 * MIB, 16, 8

    def seconds(kind, algorithm="auto"):
        forced = {f"backend__astra__collectives__{kind}": algorithm}
        hardware = device(system_hierarchy__num_nodes=2, **forced)
        return collective_cost(kind, size, place_group(hardware, "all", ranks, 1, ())).time

    def longer(within, between, parts=1):
        return max(
            chunked(within, size / ranks, INTRA, 4 * US),
            chunked(between, size / ranks, INTER, 6 * US, parts),
        )

    sent = 2 * 15 / 16 * size
    ring_time = 2 * (14 + 5) * US + longer(sent * 7 / 8, sent / 8, parts=30)
    tree_time = 2 * (7 + 5) * US + longer(2 * 7 / 8 * size, 2 / 2 * size / per_node)
    assert seconds("all_reduce", "ring") == pytest.approx(ring_time)
    assert seconds("all_reduce", "doubleBinaryTree") == pytest.approx(tree_time)
    assert seconds("all_reduce") == pytest.approx(min(ring_time, tree_time))
    halving = 2 * (3 * (1 + 4) + (5 + 6)) * US
    halving += 2 * 7 / 8 * size / INTRA + 2 / 2 * size / per_node / INTER
    assert seconds("all_reduce", "halvingDoubling") == pytest.approx(halving)
    direct = 2 * 5 * US + longer(7 / 16 * size, 8 / 16 * size)
    assert seconds("all_to_all") == pytest.approx(direct)
    group = place_group(device(), "all", per_node, 1, ())
    short = 1e6
    two_shot = 2 * US + 4 * US + 2 * 7 * short / 8 / INTRA
    assert collective_cost("custom_all_reduce", short, group).time == pytest.approx(two_shot)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sharded_states_take_what_the_table_says(device, llama, zero):
    layer = MATRICES + 2 * WIDTH
    whole = LAYERS * layer + 2 * VOCABULARY * WIDTH + WIDTH
    own = whole / 8
    result = predict(device(parallelism__zero=zero), llama)
    assert result.weights_bytes == 2 * (own + 2 * layer if zero == 3 else whole)
    assert result.gradients_bytes == 4 * (own + layer if zero >= 2 else whole)
    assert result.optimizer_bytes == 12 * (own if zero >= 1 else whole)


def test_windows_and_latents_of_attention(device):
    limits = attention_limits(device())
    exponentials = 16 * 100 * 2e9
    key = 128 * (512 / (FLOPS / 2) + 1 / exponentials)
    reach = 64 * (math.ceil((1000 + 127) / 64) + 1)
    seen = sum(min(4096 - 128 * block, reach) for block in range(32))
    longest = 5 * US + reach * key * 100
    time = 32 * (32 * 5 * US / 200 + seen * key) + 0.65 * longest
    window = Attention("attention", 1, 32, 32, 4096, 4096, 128, 128, window=1000)
    assert attention_cost(window, limits, 2, 2).time == pytest.approx(time)

    sequences, keys, heads, features, values = 32, 4096, 128, 576, 512
    moved = 2 * (features + values) * sequences * heads + 2 * features * sequences * keys
    products = sequences * heads * keys
    products *= 2 * (features + values) / (0.6 * FLOPS) + 1 / exponentials
    time = moved / DRAM + DRAM_LATENCY + products + 0.7 * 2 * 5 * US
    latent = Attention("attention", sequences, heads, 1, 1, keys, features, values, latent=True)
    assert attention_cost(latent, limits, 2, 2).time == pytest.approx(time)


# --- What the pages refer to ----------------------------------------------------------------


def pages(repository):
    return [repository / "docs/model.md", *sorted((repository / "docs/model").glob("*.md"))]


def test_keys_and_files_that_the_pages_name_exist(repository):
    sections = {*SECTIONS, "tech_param", "network_topology", "system_hierarchy", "backend"}
    sections |= {"area_breakdown", "power_breakdown", "perimeter_breakdown", "manufacturing"}
    model_keys = set(LlmModel.__dataclass_fields__) | set(LstmModel.__dataclass_fields__)
    for page in pages(repository):
        text = page.read_text()
        for name in re.findall(r"`([A-Za-z_]+(?:\.[A-Za-z_0-9-]+)+)(?::[^`]*)?`", text):
            section, _, key = name.partition(".")
            if section == "model":
                assert key in model_keys, f"{page.name}: {name}"
            elif section in sections:
                try:
                    resolve_path(HardwareConfig, name, file=page.name, shown_key=name)
                except ConfigError as error:
                    assert "is a section" in str(error), error
        for path in re.findall(r"`((?:deepflow|tests|configs|docs)/[^`]*)`", text):
            assert (repository / path).exists(), f"{page.name}: {path}"


def test_every_chapter_is_in_the_index_and_its_links_lead_somewhere(repository):
    index, *chapters = pages(repository)
    listed = set(re.findall(r"\]\(model/([a-z_]+\.md)\)", index.read_text()))
    assert listed == {chapter.name for chapter in chapters}
    for page in (index, *chapters):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_framework_file_is_on_its_page(repository):
    page = (repository / "docs/model/frameworks.md").read_text()
    for path in (repository / "configs/framework-config").glob("*.yaml"):
        assert f"`{path.name}`" in page
        assert yaml.safe_load(path.read_text())["name"]
