"""Enumeration of parallelism strategies."""

import gzip
import json
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config.hardware import PARALLEL_DIMENSIONS
from deepflow.hardware import load_hardware
from deepflow.mapping.layout import Degrees, layouts
from deepflow.mapping.strategies import Strategy, enumerate_strategies


def reference_records():
    with gzip.open("tests/data/reference/arch_search_enumeration.json.gz", "rt") as file:
        return json.load(file)


def as_the_original(record):
    shape = record["model"]
    return enumerate_strategies(
        shape["num_wafer"] * shape["wafer_dim"] ** 2,
        shape["batch_size"],
        pipeline_degrees=(1, 4),
        powers_of_two=True,
        deduplicate=False,
    )


def first_of_equal_sizes(found, degrees):
    """B12: the original drops a layout whose sizes, in order, it has seen before."""
    first = {}
    for layout in found:
        first.setdefault(tuple(degrees.of(name) for name in layout.order), layout)
    return list(first.values())


def job(strategy, layout, shape):
    """A job of the original's architecture search, without the number of its layout."""
    values = {
        "batch_size": shape["batch_size"],
        "hidden_dim": shape["hidden_dim"],
        "kp_type": {"CR": 1, "RC": 2}[strategy.kernel],
        **strategy.degrees._asdict(),
        "intra_derate": layout.intra_derate,
        "inter_derate": layout.inter_derate,
        **{f"{name}_inter": name in layout.crossing for name in PARALLEL_DIMENSIONS},
        "wafer_dim": shape["wafer_dim"],
        "index": 0,
    }
    return tuple(sorted((key, str(value)) for key, value in values.items()))


@pytest.mark.parametrize(
    ("record", "strategies", "jobs"),
    list(zip(reference_records(), (29, 55, 55), (51, 167, 167), strict=True)),
)
def test_strategies_and_jobs_of_the_original(record, strategies, jobs):
    found = list(as_the_original(record))
    assert [strategy.degrees._asdict() for strategy in found] == record["outputs"]["strategies"]
    assert len(found) == strategies

    shape = record["model"]
    found_jobs = Counter(
        job(strategy, layout, shape)
        for strategy in found
        for layout in first_of_equal_sizes(
            layouts(strategy.degrees, shape["wafer_dim"], shape["num_wafer"]), strategy.degrees
        )
    )
    # The original numbers the layouts of a strategy in no particular order.
    assert found_jobs == Counter(
        tuple(sorted((key, value) for key, value in job.items() if key != "layout"))
        for job in record["outputs"]["jobs_per_search"]
    )
    assert found_jobs.total() == jobs


@pytest.mark.parametrize("record", reference_records())
def test_duplicates_of_the_original_are_those_without_kernel_parallelism(record):
    """kp1 = kp2 = 1 comes as CR and as RC, at lp 1 and at lp 4: two strategies too many."""
    shape, found = record["model"], list(as_the_original(record))
    devices = shape["num_wafer"] * shape["wafer_dim"] ** 2
    once = list(
        enumerate_strategies(
            devices, shape["batch_size"], pipeline_degrees=(1, 4), powers_of_two=True
        )
    )
    assert once == [
        strategy
        if strategy.degrees.kp1 * strategy.degrees.kp2 > 1
        else Strategy(None, strategy.degrees)
        for strategy in found
        if strategy.kernel == "CR" or strategy.degrees.kp1 * strategy.degrees.kp2 > 1
    ]
    assert len(found) - len(once) == 2


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=40)
def test_b13_all_divisors_are_tried(num_devices, batch_size):
    """B13: the original tries powers of two only. Compared with trying every combination."""
    expected = set()
    for kp1, kp2, lp in product(range(1, num_devices + 1), repeat=3):
        if num_devices % (kp1 * kp2 * lp) == 0:
            degrees = Degrees(kp1, kp2, num_devices // (kp1 * kp2 * lp), lp)
            kernels = ["RC", "CR"] if kp2 == 1 else ["RC"]
            if degrees.dp <= batch_size:
                expected |= {
                    Strategy(kernel if kp1 * kp2 > 1 else None, degrees) for kernel in kernels
                }
    found = list(enumerate_strategies(num_devices, batch_size))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_b13_machines_that_are_no_power_of_two_have_strategies():
    assert list(enumerate_strategies(48, 256, powers_of_two=True, pipeline_degrees=(1, 4))) == []
    degrees = {strategy.degrees for strategy in enumerate_strategies(48, 256)}
    assert Degrees(kp1=4, dp=12) in degrees
    assert Degrees(kp1=8, kp2=2, lp=3) in degrees


def test_a_replica_needs_a_sample():
    largest = {
        kernel: max(
            strategy.degrees.dp for strategy in enumerate_strategies(64, 16, kernels=[kernel])
        )
        for kernel in ("CR", "RC")
    }
    assert largest == {"CR": 16, "RC": 16}


def test_a_strategy_configures_hardware():
    for strategy in enumerate_strategies(12, 256):
        hardware = load_hardware(
            "configs/hardware-config/v100.yaml",
            {"system_hierarchy.num_nodes": 12, **strategy.overrides()},
        )
        asked = hardware.config.scheduling_param
        assert (asked.t, asked.kp1, asked.kp2, asked.data, asked.pipeline) == (
            strategy.kernel,
            *strategy.degrees,
        )
