"""Inference: where requests spend their time, what is conserved, and laws it keeps."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config import DeepFlowWarning, load_hardware_config, load_model_config
from deepflow.config.framework import load_framework_config
from deepflow.config.loading import with_overrides
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.explain import explain
from deepflow.hardware import derive_hardware
from deepflow.mapping.inference import map_inference, numbers_of
from deepflow.prediction import TIME_COLUMNS, predict
from deepflow.schedule.inference import run_inference
from deepflow.workload.inference import pass_blocks
from deepflow.workload.operators import Attention, Gemm
from deepflow.workload.transformer import active_parameter_count, parameter_count

H100 = "nvidia_h100_sxm_80gb"
MACHINES = (H100, "nvidia_a100_sxm_80gb", "nvidia_a100_pcie_80gb_nvlink_pairs", "amd_mi300x")
MODELS = ("Llama3.1-8B", "Llama2-7B", "GPT3-175B", "Mixtral-8x7B", "DeepSeek-V3")
FRAMEWORKS = ("vllm", "vllm_eager", "tensorrt_llm", "nemo")
# Sums in another order differ in the last digits.
ROUNDING = 1 + 1e-9


@cache
def machine(name, framework=None):
    config = load_hardware_config(f"configs/hardware-config/{name}.yaml", {})
    if framework is None:
        return config
    return load_framework_config(f"configs/framework-config/{framework}.yaml").applied_to(config)


@cache
def preset(name):
    return load_model_config(f"configs/model-config/{name}.yaml")


def hardware(name=H100, framework="vllm", **changes):
    """``changes``: keys of the parallelism section, or of sw_param or a whole path."""
    config = machine(name, framework)
    devices = 1
    for key in ("tensor", "context", "pipeline", "data"):
        devices *= changes.get(key, 1)
    per_node = min(devices, config.system_hierarchy.num_devices_per_node)
    paths = {
        "system_hierarchy.num_devices_per_node": per_node,
        "system_hierarchy.num_nodes": -(-devices // per_node),
    }
    paths |= {
        (key if "." in key else f"scheduling_param.{key}"): value for key, value in changes.items()
    }
    return derive_hardware(with_overrides(machine(name, framework), paths))


def model(name="Llama3.1-8B", **changes):
    asked = {"global_batch_size": 4, "prompt_len": 512, "output_len": 64, **changes}
    return replace(preset(name), run_type="inference", **asked)


# --- What a request goes through --------------------------------------------------------------


def test_a_single_request_is_a_prompt_and_its_tokens():
    found = predict(hardware(), model(global_batch_size=1, output_len=101))
    assert found.time_s == pytest.approx(
        found.time_to_first_token_s + 100 * found.time_per_output_token_s
    )
    assert found.time_per_output_token_s == pytest.approx(found.inter_token_latency_s)
    assert found.tokens_per_second == pytest.approx(101 / found.time_s)
    assert found.requests_per_second == pytest.approx(1 / found.time_s)


def test_one_token_is_a_prompt_only():
    found = predict(hardware(), model(output_len=1))
    assert found.time_s == pytest.approx(found.time_to_first_token_s)
    assert found.time_per_output_token_s is None


def test_a_token_cannot_be_faster_than_reading_the_weights():
    machine = hardware()
    found = predict(machine, model(global_batch_size=1, prompt_len=16))
    shape = preset("Llama3.1-8B")
    read = 2 * (parameter_count(shape) - shape.vocab_size * shape.hidden_dim)
    least = read / machine.accelerator.memory[-1].bandwidth
    assert least < found.inter_token_latency_s < 2 * least


def test_every_step_of_a_growing_context_counts():
    """All steps together take the sum of steps at each context, not one times their number."""
    machine = hardware("nvidia_a100_sxm_80gb")
    asked = model(global_batch_size=32, prompt_len=300, output_len=901)
    whole = run_inference(machine, asked)
    single = [
        run_inference(machine, replace(asked, prompt_len=context, output_len=2)).step.latency
        for context in range(300, 1200, 25)
    ]
    assert whole.step.latency == pytest.approx(sum(single) / len(single), rel=5e-3)
    assert single[0] < whole.step.latency < single[-1]


def test_prompts_of_others_come_before_the_first_token_or_between_tokens():
    """Whoever waits, nobody's work gets less."""
    asked = model(global_batch_size=24, prompt_len=4096)
    at_once = predict(hardware(), asked)
    later = predict(hardware(), replace(asked, requests_per_client=None))
    assert later.time_s == pytest.approx(at_once.time_s)
    assert later.time_to_first_token_s < at_once.time_to_first_token_s / 2
    assert later.time_per_output_token_s > at_once.time_per_output_token_s
    assert later.inter_token_latency_s == at_once.inter_token_latency_s


def test_a_cached_prompt_is_not_computed_again():
    new = predict(hardware(), model(prompt_len=4096))
    half = predict(hardware(), model(prompt_len=4096, cached_prompt=0.5))
    cached = predict(hardware(), model(prompt_len=4096, cached_prompt=1.0))
    assert cached.time_to_first_token_s < half.time_to_first_token_s < new.time_to_first_token_s
    assert cached.inter_token_latency_s == new.inter_token_latency_s
    assert cached.kv_cache_bytes == new.kv_cache_bytes


def test_a_draft_saves_passes_as_far_as_the_model_agrees():
    plain = predict(hardware(), model(global_batch_size=1))
    times = [
        predict(
            hardware(), model(global_batch_size=1, draft_len=4, draft_acceptance=acceptance)
        ).time_s
        for acceptance in (0.0, 0.5, 0.9)
    ]
    drafted = predict(hardware(), model(global_batch_size=1, draft_len=4))
    assert drafted.weights_bytes > plain.weights_bytes
    assert drafted.kv_cache_bytes == plain.kv_cache_bytes * 33 / 32
    assert times[2] < plain.time_s < times[0]
    assert times[0] > times[1] > times[2]


def test_without_a_graph_the_host_may_be_slower_than_the_device():
    """Passes that are issued kernel by kernel take the host's time, however fast the device."""
    slow = {"sw_param.host_time_per_kernel": 100e-6}
    eager = [
        predict(hardware(name, "vllm_eager", **slow), model()).inter_token_latency_s
        for name in (H100, "nvidia_a100_sxm_80gb")
    ]
    graph = predict(hardware(H100, "vllm", **slow), model()).inter_token_latency_s
    assert eager[0] == pytest.approx(eager[1])
    assert graph < eager[0] / 3


def test_encoders_do_not_generate():
    with pytest.raises(InfeasiblePoint, match="causal"):
        predict(hardware(), model(causal=False))


def test_explain_shows_prompts_and_generation():
    text = explain(hardware(tensor=2), model())
    for words in ("first token", "qkv_projection", "sampling", "keys and values", "all_reduce"):
        assert words in text


# --- Memory and traffic -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_cache_are_conserved_over_a_tensor_group(name):
    one, eight = (
        predict(hardware(tensor=degree), model(name, global_batch_size=8)) for degree in (1, 8)
    )
    assert one.weights_bytes == pytest.approx(2 * parameter_count(preset(name)), rel=1e-3)
    # Norms, and what latent attention projects down with, are on every device.
    copies = 8 * eight.weights_bytes - one.weights_bytes
    assert 0 <= copies <= 0.05 * one.weights_bytes
    shared = preset(name).kv_latent_dim is not None  # one latent for all heads
    assert eight.kv_cache_bytes == one.kv_cache_bytes / (1 if shared else 8)
    assert one.intra_node_bytes == one.inter_node_bytes == 0
    assert eight.intra_node_bytes > 0


def test_the_cache_is_what_the_definition_says():
    shape = preset("Llama3.1-8B")
    tokens = 512 + 64
    of_token = 2 * shape.num_layers * shape.kv_heads * shape.head_width
    found = predict(hardware(), model(global_batch_size=3))
    assert found.kv_cache_bytes == 3 * tokens * of_token * 2
    narrow = predict(hardware(**{"sw_param.kv_cache_dtype": "fp8"}), model(global_batch_size=3))
    assert narrow.kv_cache_bytes == found.kv_cache_bytes / 2
    assert narrow.inter_token_latency_s < found.inter_token_latency_s
    latent = preset("DeepSeek-V3")
    found = predict(hardware(), model("DeepSeek-V3", global_batch_size=1))
    of_token = latent.num_layers * (latent.kv_latent_dim + latent.rotary_head_dim)
    assert found.kv_cache_bytes == tokens * of_token * 2


@pytest.mark.parametrize("pipeline", [1, 2])
def test_the_largest_batch_fits_and_one_more_does_not(pipeline):
    machine = hardware(pipeline=pipeline, data=8 // pipeline)
    asked = model(prompt_len=4096)
    largest = predict(machine, asked).max_batch_size
    replicas = 8 // pipeline
    fits = predict(machine, replace(asked, global_batch_size=largest - pipeline * replicas))
    more = predict(machine, replace(asked, global_batch_size=largest + 2 * pipeline * replicas))
    assert (fits.status, more.status) == ("ok", "out_of_memory")


def test_requests_without_room_wait_for_others():
    asked = model(prompt_len=8192, requests_per_client=None, wait_when_full=True)
    room = predict(hardware(), asked).max_batch_size
    full, more, twice = (
        predict(hardware(), replace(asked, global_batch_size=number))
        for number in (room, room + 1, 2 * room)
    )
    assert (full.status, more.status, twice.status) == ("ok", "ok", "ok")
    assert full.time_s < more.time_s < twice.time_s
    # Who works is the same as before, so nothing gets done sooner; the others stand in line.
    assert twice.concurrent_requests == pytest.approx(room, rel=0.01)
    assert twice.tokens_per_second == pytest.approx(full.tokens_per_second, rel=0.01)
    assert twice.time_per_output_token_s == pytest.approx(full.time_per_output_token_s, rel=0.01)
    assert twice.time_to_first_token_s > 0.95 * full.time_s
    assert twice.energy_per_token_j == pytest.approx(full.energy_per_token_j, rel=0.01)
    waits_not = replace(asked, global_batch_size=2 * room, wait_when_full=False)
    assert predict(hardware(), waits_not).status == "out_of_memory"


def test_a_framework_may_keep_memory_from_the_cache():
    asked = model(prompt_len=8192)
    whole, part = (
        predict(hardware(framework="nemo", **{"sw_param.cache_memory_share": share}), asked)
        for share in (1.0, 0.9)
    )
    assert part.max_batch_size == pytest.approx(0.9 * whole.max_batch_size, abs=1)
    assert part.kv_cache_bytes == whole.kv_cache_bytes


def test_stored_weights_take_their_bits():
    full = predict(hardware(tensor=8), model("Llama3.1-70B"))
    sizes = {
        dtype: predict(
            hardware(tensor=8, **{"sw_param.weight_dtype": dtype}), model("Llama3.1-70B")
        )
        for dtype in ("int8", "int4", "fp4")
    }
    shape = preset("Llama3.1-70B")
    kept = 2 * 2 * shape.vocab_size * shape.hidden_dim / 8  # embedding and head
    for dtype, size in (("int8", 1), ("int4", 0.5 + 2 / 128), ("fp4", 0.5 + 1 / 16)):
        assert sizes[dtype].weights_bytes == pytest.approx(
            kept + (full.weights_bytes - kept) * size / 2, rel=1e-3
        )
        assert sizes[dtype].inter_token_latency_s < full.inter_token_latency_s
    # Widening weights is no help to long prompts, which their arithmetic bounds.
    long = {"global_batch_size": 1, "prompt_len": 8192}
    narrow = hardware(tensor=8, **{"sw_param.weight_dtype": "int4"})
    assert (
        predict(narrow, model("Llama3.1-70B", **long)).time_to_first_token_s
        > predict(hardware(tensor=8), model("Llama3.1-70B", **long)).time_to_first_token_s
    )


def test_weights_of_the_type_of_products_are_not_widened():
    narrow = {"sw_param.matrix_dtype": "fp8"}
    asked = model("Llama3.1-70B", global_batch_size=256, prompt_len=512)
    said, unsaid, fewer = (
        predict(hardware(tensor=8, **narrow, **more), asked)
        for more in ({"sw_param.weight_dtype": "fp8"}, {}, {"sw_param.weight_dtype": "int4"})
    )
    assert said.time_s == unsaid.time_s
    assert said.weights_bytes == unsaid.weights_bytes > fewer.weights_bytes
    # Products of weights in 4 bits run at the rate of 8 bits and no faster, and read less.
    full = predict(hardware(tensor=8, **{"sw_param.weight_dtype": "int4"}), asked)
    assert unsaid.time_to_first_token_s <= fewer.time_to_first_token_s < full.time_to_first_token_s
    one = model("Llama3.1-70B", global_batch_size=1, prompt_len=512)
    alone = [
        predict(hardware(tensor=8, **narrow, **more), one).inter_token_latency_s
        for more in ({}, {"sw_param.weight_dtype": "int4"})
    ]
    assert alone[1] < alone[0]


def test_weights_with_more_bits_than_products_are_refused():
    with pytest.raises(ConfigError, match="more bits than the products"):
        hardware(
            **{
                "tech_param.core.precision_rates.fp4": 4,
                "sw_param.matrix_dtype": "fp4",
                "sw_param.weight_dtype": "fp8",
            }
        )


def test_the_head_stays_wide_where_products_are_narrow():
    wide, narrow = (
        run_inference(hardware(**changes), model(global_batch_size=1)).step.segments
        for changes in ({}, {"sw_param.matrix_dtype": "fp8"})
    )

    def read(segments, name):
        return max(
            item.cost.dram_bytes
            for chain in segments.values()
            for item in chain
            if isinstance(item.operator, Gemm) and item.operator.name == name
        )

    head, layer = "vocabulary_projection", "feed_forward_up"
    assert read(narrow, head) == pytest.approx(read(wide, head))
    assert read(narrow, layer) == pytest.approx(read(wide, layer) / 2, rel=0.01)


def test_halves_of_prompts_travel_to_experts_beside_each_other():
    degrees = {"data": 8, "expert": 8, "system_hierarchy.num_devices_per_node": 8}
    asked = model("Mixtral-8x7B", global_batch_size=16, prompt_len=4096, output_len=8)
    apart, beside = (
        predict(hardware(**degrees, overlap_expert_communication=overlaps), asked)
        for overlaps in (False, True)
    )
    hidden = apart.time_s - beside.time_s
    assert 0 < hidden <= apart.time_expert_communication_s / 2
    assert beside.time_gemm_s == pytest.approx(apart.time_gemm_s)
    assert beside.inter_token_latency_s == pytest.approx(apart.inter_token_latency_s)
    flattened = {
        "execution_backend.model": "astra",
        "execution_backend.astra.mode": "full_astrasim_flattened",
    }
    with pytest.warns(DeepFlowWarning, match="two halves of prompts at once"):
        found = predict(hardware(**degrees, **flattened, overlap_expert_communication=True), asked)
    assert found.backend_used == "analytical"


def test_a_window_bounds_cache_and_attention():
    windowed = model("Llama2-7B", prompt_len=8192, attention_window=1024)
    found = predict(hardware(), windowed)
    shorter = predict(hardware(), replace(windowed, prompt_len=4096))
    assert found.kv_cache_bytes == shorter.kv_cache_bytes
    assert found.inter_token_latency_s == pytest.approx(shorter.inter_token_latency_s)


def test_generation_with_latent_attention_reads_the_latent_only():
    shape = preset("DeepSeek-V3")
    numbers = numbers_of(hardware())
    blocks = pass_blocks(shape, numbers, sequences=2, queries=1, keys=700, generates=True)
    attention = next(x for x in blocks.layers["dense"].operators if isinstance(x, Attention))
    assert (attention.kv_heads, attention.heads, attention.latent) == (1, shape.num_heads, True)
    names = [x.name for x in blocks.layers["dense"].operators if isinstance(x, Gemm)]
    assert "key_value_up_projection" not in names
    assert {"query_absorption", "value_up_projection"} <= set(names)
    # The absorbed matrices are those of the up-projection: no parameter is lost or won.
    training = {x.name: x for x in blocks.layers["dense"].operators if isinstance(x, Gemm)}
    absorbed = sum(
        x.batch * x.k * x.n
        for name, x in training.items()
        if name in ("query_absorption", "value_up_projection")
    )
    assert absorbed == shape.kv_latent_dim * shape.num_heads * (
        shape.head_width + shape.value_width
    )


# --- Parallelism ------------------------------------------------------------------------------


def test_replicas_share_the_requests():
    one = predict(hardware(), model())
    eight = predict(hardware(data=8), model(global_batch_size=32))
    assert eight.time_s == pytest.approx(one.time_s)
    assert eight.tokens_per_second == pytest.approx(8 * one.tokens_per_second)
    uneven = predict(hardware(data=8), model(global_batch_size=29))
    assert uneven.time_s == pytest.approx(eight.time_s)


def test_a_pipeline_has_a_group_of_sequences_on_each_stage():
    mapping = map_inference(hardware(pipeline=4, tensor=2), model(global_batch_size=12))
    assert (mapping.groups, mapping.group_sequences) == (4, 3)
    assert map_inference(hardware(pipeline=4, tensor=2), model(global_batch_size=2)).groups == 2


def test_the_slowest_stage_of_a_pipeline_sets_the_pace():
    # The vocabulary of a model with few layers is most of the last stage's work.
    asked = replace(model("Llama3.1-8B", global_batch_size=16), num_layers=4)
    run = run_inference(hardware(pipeline=4, **{"sw_param.host_time_per_decode_step": 0}), asked)
    assert max(run.step.stages) > 1.5 * min(run.step.stages)
    assert run.step_time == pytest.approx(4 * max(run.step.stages))
    alone = replace(asked, global_batch_size=1)
    run = run_inference(hardware(pipeline=4), alone)
    assert run.step_time == pytest.approx(run.step.latency + run.host)


def test_devices_that_share_a_context_share_its_cache():
    alone = predict(hardware(), model(prompt_len=32768))
    shared = predict(hardware(context=8), model(prompt_len=32768))
    assert shared.kv_cache_bytes == pytest.approx(alone.kv_cache_bytes / 8, rel=3e-3)
    assert shared.time_to_first_token_s < alone.time_to_first_token_s / 3
    assert shared.time_context_communication_s > 0


def test_prompts_and_generation_on_replicas_of_their_own():
    """Nobody who generates is held up; what crosses the network is the cache of every prompt."""
    asked = model(global_batch_size=64, prompt_len=4096, requests_per_client=None)
    together = predict(hardware(data=8, **{"sw_param.chunked_prefill": False}), asked)
    apart = predict(hardware(data=8, prompt_replicas=2), asked)
    assert apart.time_per_output_token_s == pytest.approx(apart.inter_token_latency_s, rel=0.02)
    assert together.time_per_output_token_s > 1.1 * together.inter_token_latency_s
    shape = preset("Llama3.1-8B")
    of_prompt = 4096 * 2 * shape.num_layers * shape.kv_heads * shape.head_width * 2
    assert apart.intra_node_bytes == pytest.approx(64 * of_prompt)
    # Too few of them, and requests queue up for their prompts.
    starved = predict(hardware(data=8, prompt_replicas=1), asked)
    assert starved.time_to_first_token_s > 2 * apart.time_to_first_token_s
    with pytest.raises(InfeasiblePoint, match="prompt_replicas 8"):
        predict(hardware(data=8, prompt_replicas=8), asked)


def test_targets_bound_the_requests_at_once():
    machine = hardware(data=4)
    asked = model(global_batch_size=4096, prompt_len=1024, requests_per_client=None)
    within = replace(asked, output_token_target=0.015)
    found = predict(machine, within)
    assert found.time_per_output_token_s <= 0.015
    assert 1 < found.concurrent_requests < 4096
    more = replace(asked, global_batch_size=found.concurrent_requests + 4)
    assert predict(machine, more).time_per_output_token_s > 0.015
    both = predict(machine, replace(within, first_token_target=0.05))
    assert both.time_to_first_token_s <= 0.05
    assert both.concurrent_requests < found.concurrent_requests
    with pytest.raises(InfeasiblePoint, match="cannot be met: 1 at once"):
        predict(machine, replace(asked, output_token_target=1e-4))


def test_a_rate_of_requests_is_carried_by_as_few_as_it_takes():
    machine = hardware(data=4)
    asked = model(global_batch_size=4096, prompt_len=1024)
    slow, fast = (predict(machine, replace(asked, request_rate=rate)) for rate in (5.0, 50.0))
    assert slow.concurrent_requests < fast.concurrent_requests < 4096
    for found, rate in ((slow, 5.0), (fast, 50.0)):
        assert found.requests_per_second == pytest.approx(rate, rel=1e-12)
        # One request fewer at once would not do (Little's law).
        assert found.concurrent_requests - 1 < rate * found.time_s
    assert fast.time_to_first_token_s > slow.time_to_first_token_s
    assert fast.time_per_output_token_s > slow.time_per_output_token_s
    for rate, named in ((300.0, "busy"), (30.0, r"fewer than model\.request_rate")):
        with pytest.raises(InfeasiblePoint, match=named):
            predict(machine, replace(asked, global_batch_size=8, request_rate=rate))
    with pytest.raises(InfeasiblePoint, match=r"not met at model\.request_rate"):
        predict(machine, replace(asked, request_rate=50.0, output_token_target=0.001))


def test_tokens_that_go_along_with_prompts_need_fewer_passes():
    asked = model(global_batch_size=64, prompt_len=2048, requests_per_client=None)
    held_up, along = (
        predict(hardware(**{"sw_param.chunked_prefill": chunked}), asked)
        for chunked in (False, True)
    )
    assert along.time_s < held_up.time_s
    assert along.time_to_first_token_s > held_up.time_to_first_token_s
    assert along.executed_flops == pytest.approx(held_up.executed_flops, rel=0.02)


def test_custom_all_reduces_are_for_short_messages():
    kinds = [
        predict(
            hardware(tensor=8, **{"sw_param.all_reduce_kernel": kind}),
            model(global_batch_size=1, prompt_len=8192),
        )
        for kind in ("library", "custom")
    ]
    assert kinds[1].inter_token_latency_s < 0.9 * kinds[0].inter_token_latency_s
    assert kinds[1].time_to_first_token_s == pytest.approx(kinds[0].time_to_first_token_s, rel=0.02)


SIMULATED = ("hybrid", "hybrid_congestion", "full_astrasim", "full_astrasim_flattened")


@pytest.mark.parametrize("degrees", [{"tensor": 8}, {"tensor": 2, "pipeline": 4}])
def test_the_network_simulator_times_inference(degrees):
    asked = model(output_len=8)
    plain = {"sw_param.all_reduce_kernel": "library", "sw_param.chunked_prefill": False}
    closed = predict(hardware(**degrees, **plain), asked)
    times = {}
    for mode in SIMULATED:
        backend = {"execution_backend.model": "astra", "execution_backend.astra.mode": mode}
        found = predict(hardware(**degrees, **plain, **backend), asked)
        assert (found.backend_used, found.fallback_reason) == ("astra", "")
        assert sum(getattr(found, name) or 0 for name in TIME_COLUMNS) == pytest.approx(
            found.time_s
        )
        assert found.time_gemm_s == pytest.approx(closed.time_gemm_s)
        assert found.time_tensor_communication_s > 0
        times[mode] = found.time_s
    # Where nothing meets on links, it makes no difference how much is simulated at once.
    together = (times["full_astrasim"], times["full_astrasim_flattened"])
    assert together == pytest.approx((times["hybrid"], times["hybrid"]), rel=1e-3)
    assert times["hybrid_congestion"] >= times["hybrid"] * 0.999


@pytest.mark.parametrize("name", ["Llama3.1-8B", "Mixtral-8x7B"])
def test_every_product_is_computed_once_however_it_is_cut(name):
    asked = model(name, global_batch_size=8)
    alone = predict(hardware(), asked)
    for layout in ({"tensor": 8}, {"pipeline": 4}, {"tensor": 2, "pipeline": 2}):
        cut = predict(hardware(**layout), asked)
        # But for the choice of tokens, which every device makes.
        assert cut.executed_flops == pytest.approx(alone.executed_flops, rel=2e-3)
    # Two per parameter and token, and more for attention.
    tokens = 8 * (512 + 63)
    shape = preset(name)
    products = active_parameter_count(shape) - 2 * shape.vocab_size * shape.hidden_dim
    assert 1 < alone.executed_flops / (2 * tokens * products) < 1.1


# --- Laws -------------------------------------------------------------------------------------

REQUESTS = st.fixed_dictionaries(
    {
        "global_batch_size": st.integers(1, 64),
        "prompt_len": st.integers(1, 20000),
        "output_len": st.integers(1, 600),
        "cached_prompt": st.sampled_from([0.0, 0.3, 1.0]),
        "requests_per_client": st.sampled_from([None, 1, 5]),
        "draft_len": st.sampled_from([0, 0, 3]),
    }
)
LAYOUTS = st.sampled_from(
    [
        {},
        {"tensor": 8},
        {"tensor": 2, "pipeline": 2},
        {"tensor": 2, "context": 2},
        {"pipeline": 4},
        {"data": 4, "prompt_replicas": 1},
    ]
)
POINTS = st.tuples(
    st.sampled_from(MACHINES), st.sampled_from(FRAMEWORKS), st.sampled_from(MODELS), LAYOUTS
)
SLOWER = 1 + 1e-6  # Between the contexts that are looked at, attention is taken to be straight.


def both(point, asked, more, changes=None):
    """Predictions of a point with and without ``more`` of the request and hardware ``changes``."""
    name, framework, shape, layout = point
    try:
        return (
            predict(hardware(name, framework, **layout), model(shape, **asked)),
            predict(
                hardware(name, framework, **layout, **(changes or {})),
                model(shape, **{**asked, **more}),
            ),
        )
    except (InfeasiblePoint, ConfigError):
        return None


@settings(max_examples=60, deadline=None)
@given(POINTS, REQUESTS, st.sampled_from(["prompt_len", "output_len", "global_batch_size"]))
def test_more_to_do_is_never_faster(point, asked, what):
    found = both(point, asked, {what: asked[what] + asked[what] // 3 + 1})
    # More and smaller batches of prompts fill a pipeline better; each of them is slower still.
    if found is not None and "pipeline" not in point[3]:
        assert found[1].time_s * SLOWER >= found[0].time_s
        assert found[1].kv_cache_bytes >= found[0].kv_cache_bytes


@settings(max_examples=60, deadline=None)
@given(
    POINTS,
    REQUESTS,
    st.sampled_from(
        [
            ("tech_param.DRAM.bandwidth", 1.5),
            ("tech_param.DRAM.size", 2.0),
            ("tech_param.core.operating_frequency", 1.2),
            ("tech_param.network.intra_node.bandwidth", 2.0),
            ("tech_param.network.intra_node.latency", 0.5),
            ("sw_param.kernel_launch_overhead", 0.5),
            ("sw_param.host_time_per_decode_step", 0.5),
        ]
    ),
)
def test_better_hardware_is_never_slower(point, asked, what):
    path, factor = what
    value = machine(point[0], point[1])
    for part in path.split("."):
        value = getattr(value, part)
    if value is None:
        return
    found = both(point, asked, {}, {path: value * factor})
    if found is not None:
        assert found[1].time_s <= found[0].time_s * SLOWER
        assert found[1].max_batch_size >= found[0].max_batch_size


@settings(max_examples=60, deadline=None)
@given(POINTS, REQUESTS, st.booleans())
def test_classes_of_time_and_parts_of_memory_add_up(point, asked, waits):
    found = both(point, {**asked, "wait_when_full": waits}, {})
    if found is None:
        return
    found = found[0]
    parts = [getattr(found, name) for name in TIME_COLUMNS]
    assert all(part is None or part >= 0 for part in parts)
    assert sum(part or 0.0 for part in parts) == pytest.approx(found.time_s, rel=1e-9)
    memory = ("weights", "kv_cache", "activations", "logits", "buffers", "allocator", "reserved")
    assert sum(getattr(found, f"{name}_bytes") for name in memory) == pytest.approx(
        found.peak_memory_bytes
    )
    assert found.time_to_first_token_s <= found.time_s * ROUNDING


def test_the_largest_batch_counts_its_own_activations_and_logits():
    """On every stage, with the activations and logits that the batch itself needs."""
    cases = (
        ({"tensor": 2}, {}),
        ({"tensor": 1, "data": 2}, {"prompt_len": 333, "output_len": 77}),
        ({"tensor": 2, "pipeline": 2}, {"prompt_len": 4000}),
    )
    for degrees, lengths in cases:
        machine, asked = hardware(**degrees), model("Llama3.1-8B", **lengths)
        largest = predict(machine, asked).max_batch_size
        replicas = degrees.get("data", 1)
        fits, more = (
            predict(machine, replace(asked, global_batch_size=batch))
            for batch in (largest, largest + replicas)
        )
        assert fits.fits_in_memory and not more.fits_in_memory
        # Whatever batch asks, the answer is the same.
        assert fits.max_batch_size == more.max_batch_size == largest


def test_no_more_requests_are_answered_than_arrive():
    asked = model(global_batch_size=64, prompt_len=256, output_len=16, request_rate=2.0)
    found = predict(hardware(), asked)
    assert found.requests_per_second <= 2.0 * (1 + 1e-12)
    assert found.tokens_per_second == pytest.approx(16 * found.requests_per_second)


def test_what_travels_to_experts_has_its_own_type():
    asked = model("Mixtral-8x7B", global_batch_size=64, prompt_len=1024, output_len=8)
    degrees = {"data": 8, "expert": 8, "system_hierarchy.num_devices_per_node": 8}
    wide, narrow = (
        predict(hardware(**degrees, **more), asked)
        for more in ({}, {"sw_param.dispatch_dtype": "fp8"})
    )
    assert narrow.time_expert_communication_s < wide.time_expert_communication_s


def test_a_request_needs_no_more_work_than_is_done_for_it():
    for name in ("Llama3.1-8B", "Mixtral-8x7B"):
        found = predict(hardware(tensor=8), model(name, global_batch_size=4, prompt_len=2000))
        assert 0.8 * found.executed_flops < found.model_flops <= found.executed_flops


@pytest.mark.parametrize("requests", [5, 8, 11])
def test_the_last_batch_of_prompts_takes_no_longer_than_its_prompts(requests):
    """Three prompts fit a batch; a little longer only two do, which is not faster."""
    software = {"sw_param.max_batched_tokens": 3 * 1024}
    short, longer = (
        predict(hardware(**software), model(global_batch_size=requests, prompt_len=length))
        for length in (1024, 1100)
    )
    assert short.executed_flops < longer.executed_flops
    assert short.time_s < longer.time_s
    each = predict(hardware(**software), model(global_batch_size=3, prompt_len=1024))
    assert short.executed_flops == pytest.approx(requests / 3 * each.executed_flops, rel=0.02)


def test_more_requests_never_need_less_memory():
    software = {"sw_param.max_batched_tokens": 4096}
    used = [
        predict(
            hardware(**software), model(global_batch_size=requests, prompt_len=1000)
        ).peak_memory_bytes
        for requests in range(1, 14)
    ]
    assert used == sorted(used)
