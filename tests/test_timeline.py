"""Traces and pictures show what was predicted: valid, complete, as long, and of bounded size."""

import gzip
import json
import math
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.cli import main
from deepflow.config import load_hardware_config, load_model_config
from deepflow.cost.operators import Cost, OperatorCost, total
from deepflow.errors import DeepFlowError
from deepflow.explain.blocks import chain_block, fitted, seconds_of, summed, waiting_block
from deepflow.explain.lanes import DEVICE, in_turn
from deepflow.explain.pictures import draw_roofline, draw_schedule
from deepflow.explain.timeline import timeline
from deepflow.explain.trace import MEMORY, trace_events, write_trace
from deepflow.hardware import derive_hardware
from deepflow.prediction import predict
from deepflow.workload.operators import Collective, Gemm

H100 = "nvidia_h100_sxm_80gb"
A100_TP = "a100_80GB_tp"
SMALL = {"num_layers": 8, "global_batch_size": 32}
INFERENCE = {
    "num_layers": 8,
    "run_type": "inference",
    "prompt_len": 512,
    "output_len": 32,
    "global_batch_size": 16,
}
TRAINING = {
    "1f1b": ("Llama2-7B", {"parallelism.tensor": 2, "parallelism.pipeline": 4}, SMALL),
    "gpipe": (
        "Llama2-7B",
        {
            "parallelism.pipeline": 2,
            "parallelism.schedule": "gpipe",
            "parallelism.recompute": "full",
        },
        SMALL,
    ),
    "interleaved": (
        "Llama2-7B",
        {
            "parallelism.pipeline": 2,
            "parallelism.schedule": "interleaved",
            "parallelism.virtual_stages": 2,
        },
        SMALL,
    ),
    "zero_bubble": (
        "Llama2-7B",
        {
            "parallelism.pipeline": 4,
            "parallelism.schedule": "zero_bubble",
            "system_hierarchy.num_nodes": 2,
            "parallelism.zero": 1,
        },
        {**SMALL, "tie_embeddings": True},
    ),
    "sharded": ("Llama2-7B", {"parallelism.zero": 3, "parallelism.recompute": "full"}, SMALL),
    "gradients_sharded": (
        "Llama2-7B",
        {"parallelism.zero": 2, "parallelism.pipeline": 2, "system_hierarchy.num_nodes": 2},
        SMALL,
    ),
    "experts": (
        "Mixtral-8x7B",
        {"parallelism.expert": 8, "parallelism.overlap_expert_communication": True},
        SMALL,
    ),
    "offload": (
        "Llama2-7B",
        {"parallelism.offload": "optimizer_and_activations", "sw_param.host_bandwidth": "50 GB/s"},
        SMALL,
    ),
    "images": ("ViT-L16", {}, {"global_batch_size": 512}),
    "hybrid": (
        "Llama2-7B",
        {"parallelism.tensor": 4, "parallelism.pipeline": 2, "execution_backend.model": "astra"},
        {**SMALL, "global_batch_size": 8},
    ),
    "simulated_pipeline": (
        "Llama2-7B",
        {
            "parallelism.tensor": 4,
            "parallelism.pipeline": 2,
            "execution_backend.model": "astra",
            "execution_backend.astra.mode": "full_astrasim_hierarchical",
        },
        {**SMALL, "global_batch_size": 8},
    ),
}
OTHERS = {
    "requests": (H100, "Llama3.1-8B", {"parallelism.tensor": 4}, INFERENCE),
    "pieces_of_prompts": (H100, "Llama3.1-8B", {}, {**INFERENCE, "prompt_len": 20000}),
    "chunked": (
        H100,
        "Llama3.1-8B",
        {"sw_param.chunked_prefill": True},
        {**INFERENCE, "global_batch_size": 64, "prompt_len": 3000},
    ),
    "in_turns": (
        H100,
        "Llama3.1-8B",
        {},
        {**INFERENCE, "prompt_len": 20000, "global_batch_size": 200, "wait_when_full": True},
    ),
    "disaggregated": (
        H100,
        "Llama3.1-8B",
        {"parallelism.data": 8, "parallelism.prompt_replicas": 3},
        INFERENCE,
    ),
    "draft": (
        H100,
        "Llama3.1-8B",
        {},
        {**INFERENCE, "draft_len": 3, "draft_layers": 2, "draft_acceptance": 0.7},
    ),
    "gemm": (H100, "GEMM", {}, {"backward": True}),
    "distributed_gemm": (A100_TP, "GEMM", {}, {}),
    "lstm": ("a100_80GB", "LSTM", {}, {"seq_len": 12}),
    "distributed_lstm": (
        A100_TP,
        "LSTM",
        {"parallelism.t": "RC", "parallelism.kp1": 2, "parallelism.kp2": 2},
        {"seq_len": 12},
    ),
    "collective": (H100, "collective", {"system_hierarchy.num_nodes": 2}, {"repeats": 5}),
}
CASES = {name: (H100, *case) for name, case in TRAINING.items()} | OTHERS


@cache
def point(name):
    hardware, model, overrides, changes = CASES[name]
    with_overrides = load_hardware_config(f"configs/hardware-config/{hardware}.yaml", overrides)
    derived = derive_hardware(with_overrides)
    model = load_model_config(f"configs/model-config/{model}.yaml", changes)
    return derived, model, predict(derived, model)


@cache
def trace_of(name, limit=10**6):
    hardware, model, prediction = point(name)
    found = timeline(hardware, model, prediction, limit)
    # As a viewer reads it.
    return found, json.loads(json.dumps(list(trace_events(found)))), prediction


def check_format(events):
    """What the Trace Event Format asks of the events that are used."""
    names = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    lanes = {}
    flows = {}
    for event in events:
        assert event["ph"] in ("M", "X", "s", "f", "C")
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert math.isfinite(event["ts"]) and event["ts"] >= 0
        assert event["pid"] in processes
        if event["ph"] == "X":
            assert event["name"] and math.isfinite(event["dur"]) and event["dur"] >= 0
            assert (event["pid"], event["tid"]) in names
            lanes.setdefault((event["pid"], event["tid"]), []).append(event)
        elif event["ph"] in ("s", "f"):
            flows.setdefault(event["id"], []).append(event)
        elif event["ph"] == "C":
            assert all(value >= 0 for value in event["args"].values())
    for lane in lanes.values():
        check_nesting(lane)
    for start, end in flows.values():
        assert (start["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert start["ts"] <= end["ts"] and start["name"] == end["name"]
        for event in (start, end):
            # An arrow ends where something begins, else a viewer does not draw it.
            lane = lanes[event["pid"], event["tid"]]
            assert any(other["ts"] == event["ts"] for other in lane)


def check_nesting(lane):
    """Events of a thread follow each other or lie within each other."""
    within = []
    ordered = sorted((nanoseconds(e["ts"]), -nanoseconds(e["ts"] + e["dur"])) for e in lane)
    for start, negative_end in ordered:
        while within and within[-1] <= start:
            within.pop()
        assert not within or -negative_end <= within[-1]
        within.append(-negative_end)


def nanoseconds(microseconds):
    return round(microseconds * 1000)


@pytest.mark.parametrize("name", CASES)
def test_traces_are_valid_and_as_long_as_predicted(name):
    _, events, prediction = trace_of(name)
    check_format(events)
    spans = [event for event in events if event["ph"] == "X"]
    assert min(event["ts"] for event in spans) == 0
    end = max(nanoseconds(event["ts"] + event["dur"]) for event in spans)
    assert abs(end - prediction.time_s * 1e9) <= 1
    on_devices = [event for event in spans if event["cat"] == "device"]
    assert max(nanoseconds(e["ts"] + e["dur"]) for e in on_devices) == pytest.approx(end, abs=2)


# Columns are averages over devices, which do different things in these.
@pytest.mark.parametrize("name", [name for name in CASES if name != "disaggregated"])
def test_classes_of_time_add_up_to_the_columns(name):
    found, _, prediction = trace_of(name)
    by_process = {}
    for span in found.spans:
        classes = by_process.setdefault(span.process, Counter())
        classes.update(span.seconds)
    busiest = max(by_process.values(), key=lambda classes: sum(classes.values()))
    row = prediction.as_row()
    for column, seconds in busiest.items():
        assert seconds == pytest.approx(row[column], rel=2e-3, abs=1e-6 * row["time_s"])
    idle = prediction.time_pipeline_bubble_s or 0.0
    assert sum(busiest.values()) + idle == pytest.approx(prediction.time_s, rel=1e-3)


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "interleaved", "zero_bubble", "sharded"])
def test_every_pass_and_every_operation_is_there_once(name):
    found, _, prediction = trace_of(name)
    assert found.detail.text == "every operator"
    passes = Counter(
        (span.process, span.details["phase"], span.details["microbatch"], span.name)
        for span in found.spans
        if "phase" in span.details
    )
    assert set(passes.values()) == {1}
    phases = 3 if name == "zero_bubble" else 2
    parts = {"interleaved": 4, "sharded": 1}.get(name, prediction.pipeline_parallel)
    assert len(passes) == parts * phases * prediction.num_microbatches
    operations = sum(
        span.details["flop"]
        for span in found.spans
        if "flop" in span.details and span.lane == DEVICE
    )
    ranks = prediction.num_devices / prediction.pipeline_parallel
    assert operations * ranks == pytest.approx(prediction.executed_flops, rel=1e-3)


def test_transfers_begin_with_the_end_of_a_pass_and_come_before_the_next():
    found, _, prediction = trace_of("1f1b")
    microbatches = prediction.num_microbatches
    ends = {(s.process, s.end) for s in found.spans if s.details.get("phase") == "forward"}
    starts = {(s.process, s.start) for s in found.spans if "phase" in s.details}
    transfers = {(s.process, s.lane, s.start): s for s in found.spans if "part" in s.lane}
    assert len(transfers) == len(found.arrows) == 2 * 3 * microbatches
    for arrow in found.arrows:
        transfer = transfers[arrow.start]
        process, _, used = arrow.end
        assert (process, used) in starts and transfer.end <= used * (1 + 1e-12)
        if arrow.name.startswith("activations"):
            assert (transfer.process, transfer.start) in ends
            assert process == transfer.process + 1


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "interleaved", "zero_bubble", "sharded"])
def test_memory_over_time_peaks_at_what_was_predicted(name):
    _, events, prediction = trace_of(name)
    levels = [event for event in events if event["name"] == MEMORY]
    most = max(sum(level["args"].values()) for level in levels)
    assert most == pytest.approx(prediction.peak_memory_bytes, rel=1e-6)
    last = {level["pid"]: level["args"]["kept activations"] for level in levels}
    assert max(last.values()) < 1e-6 * most


@pytest.mark.parametrize(
    ("name", "limit"), [("1f1b", 3000), ("1f1b", 300), ("zero_bubble", 120), ("lstm", 60)]
)
def test_traces_are_bounded_and_say_what_they_leave_out(name, limit):
    found, events, prediction = trace_of(name, limit)
    assert len(events) == found.events <= limit
    assert any("only some are shown" in note for note in found.notes)
    check_format(events)
    # Coarser, and still complete.
    gemm = Counter()
    for span in found.spans:
        gemm[span.process] += span.seconds.get("time_gemm_s", 0.0)
    assert max(gemm.values()) == pytest.approx(prediction.time_gemm_s, rel=1e-6)


def test_thousands_of_ranks_and_microbatches_stay_within_the_default():
    overrides = {
        "system_hierarchy.num_nodes": 512,
        "parallelism.tensor": 8,
        "parallelism.pipeline": 64,
    }
    hardware = derive_hardware(
        load_hardware_config(f"configs/hardware-config/{H100}.yaml", overrides)
    )
    changes = {"num_layers": 128, "global_batch_size": 8 * 1024}
    model = load_model_config("configs/model-config/Megatron-1T.yaml", changes)
    prediction = predict(hardware, model)
    assert prediction.num_devices == 4096 and prediction.num_microbatches >= 1024
    found = timeline(hardware, model, prediction)
    assert 10_000 < found.events <= 200_000 and found.notes


def test_a_limit_that_holds_nothing_is_an_error():
    hardware, model, prediction = point("1f1b")
    with pytest.raises(DeepFlowError, match="--trace-events 12 is too few"):
        timeline(hardware, model, prediction, 12)


# --- Blocks ---------------------------------------------------------------------------------

positive = st.floats(1e-6, 1.0)


def computed(time, launch):
    return OperatorCost(Gemm("product", 1, 1, 1), Cost(gemm=time, launch=launch), "compute")


def sent(group, beside, time, launch):
    name = {"tensor": "communication", "expert": "expert_communication"}[group]
    operator = Collective("sum", "all_reduce", group, 1.0, beside=beside)
    return OperatorCost(operator, Cost(launch=launch, **{name: time}), f"{group} network", 2)


operators = st.one_of(
    st.builds(computed, positive, positive),
    st.builds(sent, st.sampled_from(["tensor", "expert"]), st.integers(0, 3), positive, positive),
)


@given(st.lists(operators, min_size=1, max_size=8))
def test_a_chain_is_shown_as_it_is_added_up(chain):
    block = chain_block("chain", chain)
    assert summed(block.children) == pytest.approx(seconds_of(total(chain)), rel=1e-9, abs=1e-12)
    for use in block.links:
        assert 0 <= use.start <= use.end <= block.time * (1 + 1e-9)


@given(st.lists(operators, min_size=1, max_size=6), positive, st.floats(0.0, 1.0))
def test_blocks_take_the_time_they_are_given(chain, launch, kept):
    whole = total(chain)
    less = Cost(
        communication=-kept * whole.communication,
        expert_communication=-kept * whole.expert_communication,
        launch=launch,
    )
    whole += less
    block = chain_block("chain", chain, whole)
    inside = summed(block.children)
    for column, seconds in seconds_of(whole).items():
        assert inside.get(column, 0.0) == pytest.approx(seconds, rel=1e-6, abs=1e-9)
    ordered = sorted(block.links, key=lambda use: (use.lane, use.start))
    for before, after in pairwise(ordered):
        assert before.lane != after.lane or before.end <= after.start + 1e-9


def test_only_waits_give_way():
    wait = waiting_block("wait", "time_data_communication_s", 2.0)
    work = chain_block("work", [computed(3.0, 0.5)])
    whole = {"time_gemm_s": 3.0, "time_data_communication_s": 1.0, "time_launch_s": 1.0}
    block = fitted("both", [wait, work], whole)
    # Half a second of the wait is what the host needs, and half a second is not there.
    assert [child.time for child in block.children] == pytest.approx([1.5, 3.5])
    assert block.children[0].seconds["time_launch_s"] == pytest.approx(0.5)


@given(st.integers(1, 50), st.integers(0, 20))
def test_groups_cover_everything_once(count, single):
    groups = list(in_turn(count, single))
    assert [first for first, _ in groups] == [
        sum(n for _, n in groups[:k]) for k in range(len(groups))
    ]
    assert sum(number for _, number in groups) == count
    assert all(number == 1 for _, number in groups) or len(groups) == 2 * single + 1


# --- Command line and files -----------------------------------------------------------------

LONG_POINT = (
    "explain",
    "--hardware",
    f"configs/hardware-config/{H100}.yaml",
    "--model",
    "configs/model-config/Llama2-7B.yaml",
    "--set",
    "parallelism.pipeline=4",
    "--set",
    "model.num_layers=8",
    "--set",
)
POINT = (*LONG_POINT, "model.global_batch_size=32")
GEMM = (*POINT[:4], "configs/model-config/GEMM.yaml")
COLLECTIVE = (*POINT[:4], "configs/model-config/collective.yaml")


def test_a_trace_says_what_it_is_of(tmp_path, capsys):
    plain, packed = tmp_path / "trace.json", tmp_path / "trace.json.gz"
    for path in (plain, packed):
        assert main([*POINT, "--trace", str(path), "--trace-events", "2000"]) == 0
    output = capsys.readouterr()
    assert "Where the step goes" in output.out
    assert f"note: {plain}: of more than 2,000 events only some are shown" in output.err
    text = plain.read_text()
    assert gzip.decompress(packed.read_bytes()).decode() == text
    trace = json.loads(text)
    assert len(trace["traceEvents"]) <= 2000
    other = trace["otherData"]
    assert other["hardware"] == H100 and len(other["configuration_digest"]) == 32
    assert other["notes"] and other["detail"] in other["notes"][0]
    assert max(e["ts"] + e["dur"] for e in trace["traceEvents"] if e["ph"] == "X") == (
        pytest.approx(other["time_s"] * 1e6)
    )


def test_the_same_trace_is_the_same_file(tmp_path):
    hardware, model, prediction = point("requests")
    files = [tmp_path / name for name in ("first.json.gz", "second.json.gz")]
    for file in files:
        found = timeline(hardware, model, prediction)
        write_trace(file, found, prediction, hardware.config, model, "digest")
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*POINT, "--trace-events", "500"), "needs --trace"),
        ((*GEMM, "--schedule", "x.svg"), "--schedule draws passes through stages"),
        ((*COLLECTIVE, "--roofline", "x.svg"), "--roofline draws what is computed"),
        ((*POINT, "--trace", "README.md/x.json"), "README.md/x.json cannot be written"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


@pytest.mark.parametrize("wrong", [("--roofline", "x.jpeg"), ("--trace-events", "5")])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*POINT, *wrong])
    assert stopped.value.code == 2 and wrong[1] in capsys.readouterr().err


def texts_of(path: Path) -> str:
    """All text of a picture."""
    return " ".join("".join(re.findall(r">([^<]*)<", path.read_text())).split())


def test_pictures_show_stages_and_operators(tmp_path):
    schedule, roofline = tmp_path / "schedule.svg", tmp_path / "roofline.svg"
    assert main([*POINT, "--schedule", str(schedule), "--roofline", str(roofline)]) == 0
    drawn = texts_of(schedule)
    for text in ("pipeline stage", "forward", "backward", "update", "idle", "time (ms)"):
        assert text in drawn
    drawn = texts_of(roofline)
    for text in ("attention", "feed forward up", "compute", "DRAM", "FLOP per byte"):
        assert text in drawn


def test_a_long_schedule_says_what_it_does_not_show(tmp_path):
    path = tmp_path / "schedule.svg"
    assert main([*LONG_POINT, "model.global_batch_size=512", "--schedule", str(path)]) == 0
    assert "Not shown:" in texts_of(path)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("requests", ("prompts", "many steps of generation", "step: feed forward up")),
        ("disaggregated", ("0, prompts", "0, generation", "DRAM")),
        ("distributed_lstm", ("Numbers are those of time steps", "update")),
        ("interleaved", ("Lighter: every second part", "Not shown:", "compute")),
    ],
)
def test_pictures_fit_a_column(name, texts, tmp_path):
    hardware, model, prediction = point(name)
    files = [tmp_path / picture for picture in ("schedule.svg", "roofline.svg")]
    draw_schedule(str(files[0]), hardware, model, prediction, "column")
    draw_roofline(str(files[1]), hardware, model, prediction, "column")
    drawn = " ".join(map(texts_of, files))
    for text in texts:
        assert text in drawn
    for file in files:
        width = float(re.search(r'width="([\d.]+)pt"', file.read_text()).group(1))
        assert width == pytest.approx(85 / 25.4 * 72)
