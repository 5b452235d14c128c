"""What a transformer consists of: parameters, work, kept bytes and exchanges of every kind."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.config.model import LlmModel
from deepflow.errors import InfeasiblePoint
from deepflow.workload.operators import (
    Attention,
    Collective,
    Elementwise,
    Gemm,
    GroupedGemm,
    backward,
)
from deepflow.workload.transformer import (
    active_parameter_count,
    layer_kinds,
    model_flops_per_token,
    parameter_count,
    segment_work,
    transformer_blocks,
)

GPT = LlmModel(
    global_batch_size=8, seq_len=512, hidden_dim=256, num_heads=8, vocab_size=1000, num_layers=4
)
LLAMA = replace(
    GPT,
    num_kv_heads=2,
    ffn_dim=768,
    activation="swiglu",
    normalization="rmsnorm",
    position_embedding="rotary",
)
MIXTURE = replace(LLAMA, num_experts=8, experts_per_token=2, expert_ffn_dim=384)
LATENT = replace(
    MIXTURE,
    num_kv_heads=None,
    num_shared_experts=1,
    num_dense_layers=1,
    head_dim=32,
    kv_latent_dim=64,
    query_latent_dim=96,
    rotary_head_dim=16,
    value_head_dim=32,
)

MIXTRAL = replace(
    LLAMA,
    seq_len=4096,
    hidden_dim=4096,
    num_heads=32,
    num_kv_heads=8,
    ffn_dim=14336,
    vocab_size=32000,
    num_layers=32,
    num_experts=8,
    experts_per_token=2,
)
DEEPSEEK_V3 = replace(
    LATENT,
    seq_len=4096,
    hidden_dim=7168,
    num_heads=128,
    head_dim=128,
    ffn_dim=18432,
    vocab_size=129280,
    num_layers=61,
    num_experts=256,
    experts_per_token=8,
    expert_ffn_dim=2048,
    num_dense_layers=3,
    kv_latent_dim=512,
    query_latent_dim=1536,
    rotary_head_dim=64,
    value_head_dim=128,
)
VIT_LARGE = replace(
    GPT,
    seq_len=197,
    hidden_dim=1024,
    num_heads=16,
    num_layers=24,
    position_embedding="learned",
    causal=False,
    patch_dim=16 * 16 * 3,
    num_classes=1000,
)


def the_layer(model, **options):
    (block,) = transformer_blocks(model, 2, 2, "fused", **options).layers.values()
    return block


def flops(block):
    kinds = (Gemm, GroupedGemm, Attention)
    return sum(operator.flops for operator in block.operators if isinstance(operator, kinds))


def collectives(block):
    return [operator for operator in block.operators if isinstance(operator, Collective)]


def named(block, name):
    (found,) = [operator for operator in block.operators if operator.name == name]
    return found


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [
        # Jiang et al. 2024, Mixtral of Experts; DeepSeek-AI 2024, DeepSeek-V3, without the module
        # for multi-token prediction; Dosovitskiy et al. 2021 as counted by torchvision 0.17.
        (MIXTRAL, 46.7e9, 12.9e9),
        (DEEPSEEK_V3, 671.03e9, 37.5e9),
        (VIT_LARGE, 304_326_632, 304_326_632),
    ],
)
def test_parameters_are_the_published_ones(model, total, active):
    assert parameter_count(model) == pytest.approx(total, rel=1e-3)
    assert active_parameter_count(model) == pytest.approx(active, rel=3e-3)


def test_gpt_parameters_follow_the_formula_of_megatron():
    # Narayanan et al. 2021, arXiv 2104.04473, section 5, without the final norm's 2 h
    model = replace(GPT, position_embedding="learned", tie_embeddings=True)
    layers, width, positions = model.num_layers, model.hidden_dim, model.seq_len
    formula = (
        12
        * layers
        * width**2
        * (1 + 13 / (12 * width) + (model.vocab_size + positions) / (12 * layers * width))
    )
    assert parameter_count(model) - 2 * width == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_kept_activations_are_those_of_korthikanti(micro_batch_size):
    # Korthikanti et al. 2022, arXiv 2205.05198: equation 1; equation 6 with selective
    # recomputation, there with tensor parallelism, here without
    model = replace(GPT, dropout=0.1)
    layer = transformer_blocks(model, micro_batch_size, 2, "fused", unfused_attention=True).layers[
        "dense"
    ]
    sbh = model.seq_len * micro_batch_size * model.hidden_dim
    scores = 5 * model.num_heads * model.seq_len / model.hidden_dim
    kept = layer.saved_sequence + layer.saved_feature
    assert kept == sbh * (34 + scores)
    assert layer.saved_sequence == sbh * 10
    (core,) = [part for part in layer.recomputable if part.name == "core_attention"]
    assert core.saved_feature == sbh * scores


def test_fused_attention_keeps_no_scores():
    short, long = the_layer(GPT), the_layer(replace(GPT, seq_len=2 * GPT.seq_len))
    assert long.saved_feature == 2 * short.saved_feature
    unfused = the_layer(GPT, unfused_attention=True)
    assert unfused.saved_feature > short.saved_feature


@pytest.mark.parametrize("fusion", ["fused", "eager"])
@pytest.mark.parametrize("model", [GPT, LLAMA, MIXTURE, LATENT])
def test_recomputable_parts_are_operators_of_the_block_and_kept_bytes_of_it(model, fusion):
    blocks = transformer_blocks(replace(model, dropout=0.1), 2, 2, fusion, unfused_attention=True)
    for block in blocks.layers.values():
        names = {operator.name for operator in block.operators}
        assert len(names) == len(block.operators)
        assert {part.name for part in block.recomputable} == {"core_attention", "elementwise"}
        for part in block.recomputable:
            assert set(part.operators) <= names
        assert sum(part.saved_sequence for part in block.recomputable) < block.saved_sequence
        assert sum(part.saved_feature for part in block.recomputable) < block.saved_feature


def test_layers_have_experts_where_the_model_says_so():
    assert layer_kinds(GPT) == ("dense",) * 4
    assert layer_kinds(MIXTURE) == ("experts",) * 4
    assert layer_kinds(replace(MIXTURE, num_dense_layers=1)) == ("dense",) + ("experts",) * 3
    alternating = replace(MIXTURE, num_layers=6, num_dense_layers=1, expert_layer_period=2)
    assert layer_kinds(alternating) == ("dense", "experts") * 3
    assert set(transformer_blocks(alternating, 1, 2, "fused").layers) == {"dense", "experts"}


def test_chosen_experts_work_as_much_as_one_layer_of_their_widths_together():
    wide = replace(LLAMA, ffn_dim=MIXTURE.experts_per_token * MIXTURE.expert_ffn_dim)
    router = MIXTURE.hidden_dim * MIXTURE.num_experts
    assert segment_work(MIXTURE)["experts"] == segment_work(wide)["dense"] + router
    tokens = 2 * MIXTURE.seq_len
    assert flops(the_layer(MIXTURE)) == flops(the_layer(wide)) + 2 * tokens * router
    shared = replace(MIXTURE, experts_per_token=1, num_shared_experts=1)
    assert segment_work(shared) == segment_work(MIXTURE)
    # As many weights are trained as there are experts, but no more work is useful.
    more = replace(MIXTURE, num_experts=16)
    assert parameter_count(more) > 1.5 * parameter_count(MIXTURE)
    assert model_flops_per_token(more) == pytest.approx(model_flops_per_token(MIXTURE), rel=1e-2)


def test_capacity_and_imbalance_change_rows_but_not_useful_work():
    even = the_layer(MIXTURE)
    rows = 2 * MIXTURE.seq_len * MIXTURE.experts_per_token
    assert named(even, "expert_up").rows == named(even, "expert_down").rows == rows
    assert named(even, "expert_dispatch").message_bytes == rows * MIXTURE.hidden_dim * 2
    for change, factor in (
        ({"expert_imbalance": 1.5}, 1.5),
        ({"expert_capacity_factor": 1.25}, 1.25),
        ({"expert_capacity_factor": 0.75, "expert_imbalance": 3.0}, 0.75),
    ):
        model = replace(MIXTURE, **change)
        layer = the_layer(model)
        assert named(layer, "expert_up").rows == rows * factor
        assert named(layer, "expert_dispatch").message_bytes == pytest.approx(
            rows * factor * MIXTURE.hidden_dim * 2
        )
        assert model_flops_per_token(model) == model_flops_per_token(MIXTURE)


def test_tokens_travel_to_experts_and_back_in_both_directions():
    forward = the_layer(MIXTURE)
    names = [operator.name for operator in forward.operators]
    order = ["expert_permutation", "expert_dispatch", "expert_up", "expert_activation"]
    order += ["expert_down", "expert_combine", "expert_unpermutation", "feed_forward_residual"]
    assert [name for name in names if name in order] == order
    for block in (forward, backward(forward)):
        assert [item.kind for item in collectives(block)] == ["all_to_all"] * 2
        assert {item.group for item in collectives(block)} == {"expert"}


def test_latent_attention_expands_keys_and_values_to_all_heads():
    layer = transformer_blocks(LATENT, 2, 2, "fused").layers["experts"]
    attention = named(layer, "attention")
    assert (attention.kv_heads, attention.head_dim, attention.value_dim) == (8, 48, 32)
    direct = transformer_blocks(replace(LATENT, query_latent_dim=None), 2, 2, "fused").layers[
        "experts"
    ]
    down_and_up = LATENT.query_latent_dim * (256 + 8 * 48 + 1)
    assert (
        layer.parameters + layer.replicated_parameters - down_and_up
        == direct.parameters + direct.replicated_parameters - 256 * 8 * 48
    )


@pytest.mark.parametrize("method", ["ring", "all_gather"])
@pytest.mark.parametrize("model", [GPT, LLAMA, MIXTURE, replace(LATENT, num_dense_layers=0)])
def test_devices_of_a_context_group_share_the_work_and_the_kept_bytes(model, method):
    alone, shared = the_layer(model), the_layer(model, context=4, context_method=method)
    assert 4 * flops(shared) == pytest.approx(flops(alone))
    assert 4 * flops(backward(shared)) == pytest.approx(flops(backward(alone)))
    assert 4 * shared.saved_sequence == pytest.approx(alone.saved_sequence)
    assert 4 * shared.saved_feature == pytest.approx(alone.saved_feature)
    assert shared.parameters == alone.parameters
    # Tokens that a device sends to experts are its own.
    sent = [
        sum(item.message_bytes for item in collectives(block) if item.group == "expert")
        for block in (alone, shared)
    ]
    assert sent[0] == 4 * sent[1]


def exchanges(block):
    """What the context group passes around attention: kind, bytes, where, and beside what."""
    (place,) = [index for index, item in enumerate(block.operators) if isinstance(item, Attention)]
    return [
        (item.kind, item.message_bytes, index < place, item.beside)
        for index, item in enumerate(block.operators)
        if isinstance(item, Collective) and item.kind != "none"
    ]


def test_a_ring_passes_keys_and_values_and_backward_their_gradients_too():
    layer = the_layer(LLAMA, context=4)
    own = 2 * 512 // 4 * 2 * LLAMA.kv_heads * LLAMA.head_width * 2
    assert exchanges(layer) == [("ring_exchange", own, True, 1)]
    gradient = backward(layer)
    assert exchanges(gradient) == [("ring_exchange", 2 * own, True, 1)]
    names = [operator.name for operator in gradient.operators]
    assert names.index("attention.gradient") - 1 == names.index(
        "attention_exchange_backward.gradient"
    )


def test_gathered_keys_and_values_are_gathered_again_and_their_gradients_scattered():
    layer = the_layer(LLAMA, context=4, context_method="all_gather")
    whole = 2 * 512 * 2 * LLAMA.kv_heads * LLAMA.head_width * 2
    assert exchanges(layer) == [("all_gather", whole, True, 0)]
    assert exchanges(backward(layer)) == [
        ("all_gather", whole, True, 0),
        ("reduce_scatter", whole, False, 0),
    ]


def test_a_ring_needs_fused_attention():
    with pytest.raises(InfeasiblePoint, match="context_method ring"):
        the_layer(GPT, context=2, unfused_attention=True)
    gathered = the_layer(GPT, context=2, context_method="all_gather", unfused_attention=True)
    assert named(gathered, "attention_scores").m == GPT.seq_len // 2


def test_unfused_attention_computes_what_a_mask_hides():
    encoder = replace(GPT, causal=False)
    assert flops(the_layer(encoder, unfused_attention=True)) == flops(the_layer(encoder))
    unfused = the_layer(GPT, unfused_attention=True)
    assert flops(unfused) == flops(the_layer(encoder)) > flops(the_layer(GPT))
    # Backward, fused attention computes the scores again: five products instead of four.
    extra = named(the_layer(encoder), "attention").flops / 2
    assert flops(backward(the_layer(encoder))) - flops(
        backward(the_layer(encoder, unfused_attention=True))
    ) == pytest.approx(extra)


def test_a_window_and_a_mask_leave_less_work():
    full, masked = the_layer(replace(GPT, causal=False)), the_layer(GPT)
    windowed = the_layer(replace(GPT, attention_window=64))
    assert flops(windowed) < flops(masked) < flops(full)
    assert flops(the_layer(replace(GPT, attention_window=GPT.seq_len))) == flops(masked)


@pytest.mark.parametrize("fusion", ["fused", "eager"])
@pytest.mark.parametrize("model", [GPT, LLAMA, MIXTURE])
def test_dropout_costs_traffic_and_keeps_masks(model, fusion):
    plain = transformer_blocks(model, 2, 2, fusion)
    dropped = transformer_blocks(replace(model, dropout=0.1), 2, 2, fusion)
    elements = 2 * model.seq_len * model.hidden_dim
    for before, after, masks in (
        (plain.embedding, dropped.embedding, 1),
        *zip(plain.layers.values(), dropped.layers.values(), (2,), strict=True),
    ):
        assert after.saved_sequence == before.saved_sequence + masks * elements
        assert traffic(after) > traffic(before)
        assert traffic(backward(after)) > traffic(backward(before))


def traffic(block):
    return sum(item.bytes_moved for item in block.operators if isinstance(item, Elementwise))


def test_images_are_projected_and_classified_once():
    blocks = transformer_blocks(VIT_LARGE, 4, 2, "fused")
    patches = named(blocks.embedding, "patch_embedding")
    assert (patches.m, patches.k, patches.n) == (4 * 197, 768, 1024)
    classifier = named(blocks.head, "classifier")
    assert (classifier.m, classifier.k, classifier.n) == (4, 1024, 1000)
    assert blocks.head.saved_feature < blocks.layers["dense"].saved_feature / 100
    work = segment_work(VIT_LARGE)
    assert work["head"] == 1024 * 1000 / 197
    assert model_flops_per_token(VIT_LARGE) == pytest.approx(
        6 * (work["embedding"] + 24 * work["dense"] + work["head"])
    )


SIZES = {
    "seq_len": st.integers(1, 64).map(lambda value: 16 * value),
    "num_heads": st.integers(1, 8).map(lambda value: 2 * value),
    "head_dim": st.integers(1, 128),
    "hidden_dim": st.integers(1, 512),
    "ffn_dim": st.integers(1, 2048),
    "expert_ffn_dim": st.integers(1, 512),
    "experts_per_token": st.integers(1, 8),
    "expert_imbalance": st.floats(1, 4),
    "num_shared_experts": st.integers(0, 3),
    "vocab_size": st.integers(1, 10_000),
    "kv_latent_dim": st.integers(1, 256),
    "query_latent_dim": st.integers(1, 256),
}


@given(
    st.sampled_from([GPT, LLAMA, MIXTURE, LATENT]),
    st.sampled_from(sorted(SIZES)),
    st.booleans(),
    st.sampled_from(["fused", "eager"]),
    st.data(),
)
def test_a_bigger_model_never_has_less_of_anything(model, name, unfused, fusion, data):
    if getattr(model, name) is None and name not in ("head_dim", "ffn_dim"):
        return
    small, big = sorted((data.draw(SIZES[name]), data.draw(SIZES[name])))

    def totals(value):
        # Otherwise more heads are narrower ones.
        sized = replace(model, **{"head_dim": 32, name: value})
        blocks = transformer_blocks(sized, 2, 2, fusion, unfused_attention=unfused)
        found = [float(parameter_count(sized)), model_flops_per_token(sized)]
        for block in (blocks.embedding, *blocks.layers.values(), blocks.head):
            for passed in (block, backward(block)):
                sent = sum(item.message_bytes for item in collectives(passed))
                found += [flops(passed), traffic(passed), sent]
            found += [block.saved_sequence, block.saved_feature]
        return found

    for before, after in zip(totals(small), totals(big), strict=True):
        assert after >= before
