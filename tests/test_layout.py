"""Layouts of parallel dimensions on wafers, their derates, and their use in a hardware file."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations, product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.config import with_overrides
from deepflow.config.hardware import PARALLEL_DIMENSIONS
from deepflow.config.model import LstmModel
from deepflow.errors import ConfigError, InfeasiblePoint
from deepflow.hardware import load_hardware, parallel_links
from deepflow.mapping.layout import (
    Degrees,
    best_layout,
    dimension_load,
    layout_derates,
    layouts,
    make_layout,
    place,
    routed_loads,
    seen_by_dimension,
)
from deepflow.prediction import predict

# The technology studies used here spend more power than their TDP on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*power_breakdown")

WAFERS = "configs/hardware-config/exp_config_new_MCM.yaml"


def with_layout(hardware, degrees):
    """``hardware`` with the derates of its layout written into its file, as the original did."""
    derates = layout_derates(hardware.config, degrees, hardware.config.system_hierarchy.layout)
    return replace(hardware, config=with_overrides(hardware.config, derates))


# --- The original's layouts -----------------------------------------------------------------


def reference_records():
    with gzip.open("tests/data/reference/device_mapping.json.gz", "rt") as file:
        return json.load(file)


def degrees_of(record):
    return Degrees(**{name: record["model"][name] for name in PARALLEL_DIMENSIONS})


def title(record):
    shape = record["model"]
    split = "-".join(f"{name}{shape[name]}" for name in PARALLEL_DIMENSIONS if shape[name] > 1)
    return f"{shape['num_wafer']}x{shape['wafer_dim']}x{shape['wafer_dim']}-{split}"


def has_equal_degrees(record):
    """Two dimensions are split alike: where B12 strikes."""
    split = [degree for degree in degrees_of(record) if degree > 1]
    return len(set(split)) < len(split)


def as_reference(layout, degrees):
    return {
        "order": [PARALLEL_DIMENSIONS.index(name) for name in layout.order],
        "dim": [degrees.of(name) for name in layout.order],
        "inter_derate": layout.inter_derate,
        "intra_derate": layout.intra_derate,
        "cross": {name: name in layout.crossing for name in PARALLEL_DIMENSIONS},
    }


def found_layouts(record):
    degrees = degrees_of(record)
    machine = record["model"]["wafer_dim"], record["model"]["num_wafer"]
    return [as_reference(layout, degrees) for layout in layouts(degrees, *machine)]


def test_the_reference_is_complete():
    records = reference_records()
    assert len(records) == 196
    assert sum(has_equal_degrees(record) for record in records) == 86


@pytest.mark.parametrize(
    "record", [each for each in reference_records() if not has_equal_degrees(each)], ids=title
)
def test_layouts_are_those_of_the_original(record):
    assert found_layouts(record) == record["outputs"]


@pytest.mark.parametrize(
    "record", [each for each in reference_records() if has_equal_degrees(each)], ids=title
)
def test_b12_layouts_of_equal_sizes_are_kept_apart(record):
    """B12: the original drops a layout whose sizes, in order, it has seen before.

    The first of each kind agrees; ours are more.
    """
    first_by_sizes = {}
    for layout in found_layouts(record):
        first_by_sizes.setdefault(tuple(layout["dim"]), layout)
    assert list(first_by_sizes.values()) == record["outputs"]
    assert len(found_layouts(record)) > len(record["outputs"])


def test_b12_drops_layouts_that_differ():
    """Whether the ring (dp) or the chain (lp) of four stays within a wafer."""
    orders = {layout.order[:2]: layout for layout in layouts(Degrees(dp=4, lp=4), 2, 4)}
    inner_ring, inner_chain = orders["dp", "lp"], orders["lp", "dp"]
    assert (inner_ring.inter_derate, inner_ring.crossing) == (2, {"lp"})
    assert (inner_chain.inter_derate, inner_chain.crossing) == (4, {"dp"})


# --- Rules, checked on a walk that takes every transfer step by step ------------------------


def walk(start, end, wafer_dim):
    """Places from ``start`` to ``end``, each (wafer, x, y): along x, along y, to the next wafer."""
    places = [start]

    def go(axis, target):
        while places[-1][axis] != target:
            step = list(places[-1])
            step[axis] += 1 if target > step[axis] else -1
            places.append(tuple(step))

    edges = (wafer_dim - 1, 0) if end[0] > start[0] else (0, wafer_dim - 1)
    if start[0] != end[0]:
        go(1, edges[0])
        go(2, end[2])
        places.append((end[0], edges[1], end[2]))
    go(1, end[1])
    go(2, end[2])
    return places


def transfers(placement, dimension):
    """(start, end) of every pair of neighbours along ``dimension``."""
    shape, axis = placement.x.shape, placement.order.index(dimension)
    for index in product(*map(range, shape)):
        following = list(index)
        following[axis] += 1
        if following[axis] == shape[axis]:
            if dimension == "lp" or shape[axis] <= 2:
                continue
            following[axis] = 0
        yield tuple(
            tuple(int(part[tuple(at)]) for part in (placement.wafer, placement.x, placement.y))
            for at in (index, following)
        )


def charges(start, end, wafer_dim):
    """What each step of a transfer is counted on, by the rules of the module."""
    places = walk(start, end, wafer_dim)
    for here, there in pairwise(places):
        if here[0] != there[0]:
            yield ("wafers", *min((start[0], start[2]), (end[0], end[2])))
        elif here[1] != there[1]:
            yield ("x", here[0], here[2], min(here[1], there[1]))
        else:
            yield ("y", here[0], here[1], here[2])


def counted(placement, dimensions=PARALLEL_DIMENSIONS):
    return Counter(
        charge
        for dimension in dimensions
        for start, end in transfers(placement, dimension)
        for charge in charges(start, end, placement.wafer_dim)
    )


@st.composite
def placements(draw):
    degrees = Degrees(*(draw(st.integers(1, 6)) for _ in PARALLEL_DIMENSIONS))
    order = draw(st.permutations(PARALLEL_DIMENSIONS))
    return place(degrees, tuple(order), draw(st.integers(1, 6)))


@given(placements())
@settings(max_examples=50)
def test_every_device_has_a_place_of_its_own(placement):
    places = set(zip(placement.wafer.flat, placement.x.flat, placement.y.flat, strict=True))
    assert len(places) == placement.x.size == prod(placement.x.shape)
    assert 0 <= placement.x.min() <= placement.x.max() < placement.wafer_dim
    assert 0 <= placement.y.min() <= placement.y.max() < placement.wafer_dim
    assert set(placement.wafer.flat) == set(range(placement.num_wafers))


@given(placements())
@settings(max_examples=25)
def test_loads_count_every_step_of_every_transfer(placement):
    loads = routed_loads(placement)
    expected = counted(placement)
    found = Counter()
    for kind, array in (
        ("x", loads.along_x),
        ("y", loads.along_y),
        ("wafers", loads.between_wafers),
    ):
        for index in zip(*array.nonzero(), strict=True):
            found[(kind, *map(int, index))] = int(array[index])
    assert found == expected
    assert loads.crossing == {
        dimension
        for dimension in PARALLEL_DIMENSIONS
        if any(start[0] != end[0] for start, end in transfers(placement, dimension))
    }


@given(placements())
@settings(max_examples=25)
def test_sharing_links_never_helps(placement):
    loads = routed_loads(placement)
    together = max(loads.along_x.max(), loads.along_y.max(), loads.between_wafers.max())
    alone = [max(counted(placement, [name]).values(), default=0) for name in PARALLEL_DIMENSIONS]
    assert max(alone) <= together <= sum(alone)


@given(st.tuples(*[st.integers(1, 4)] * 4).map(lambda degrees: Degrees(*degrees)))
@settings(max_examples=25)
def test_without_meshes_every_layout_has_the_same_transfers(degrees):
    """On wafers of one device, a transfer is one crossing; an order moves but does not add any."""
    totals = {
        int(routed_loads(place(degrees, order, 1)).between_wafers.sum())
        for order in permutations(PARALLEL_DIMENSIONS)
    }
    links = {name: degrees.of(name) - (degrees.of(name) <= 2) for name in ("kp1", "kp2", "dp")}
    links["lp"] = degrees.lp - 1
    assert totals == {sum(links[name] * degrees.num_devices // degrees.of(name) for name in links)}


@given(
    st.tuples(*[st.sampled_from([1, 2, 3, 4])] * 4).map(lambda degrees: Degrees(*degrees)),
    st.permutations(PARALLEL_DIMENSIONS),
    st.integers(1, 4),
)
@settings(max_examples=25)
def test_rings_are_alike_and_a_chain_costs_no_more(degrees, order, wafer_dim):
    def derates(degrees, order):
        layout = make_layout(degrees, tuple(order), wafer_dim, degrees.num_devices)
        return layout.intra_derate, layout.inter_derate

    renamed = {"kp1": "dp", "dp": "kp1"}
    swapped = degrees._replace(kp1=degrees.dp, dp=degrees.kp1)
    assert derates(swapped, [renamed.get(name, name) for name in order]) == derates(degrees, order)

    renamed = {"lp": "dp", "dp": "lp"}
    if degrees.lp == 1:
        chain = degrees._replace(lp=degrees.dp, dp=1)
        as_chain = derates(chain, [renamed.get(name, name) for name in order])
        assert all(x <= y for x, y in zip(as_chain, derates(degrees, order), strict=True))


@pytest.mark.parametrize(
    ("degrees", "wafer_dim", "intra_derate"),
    [
        (Degrees(), 4, 0),
        (Degrees(kp1=2), 4, 1),
        (Degrees(lp=4), 4, 1),  # a chain up a column
        (Degrees(dp=4), 4, 2),  # a ring in a column: the way back shares its links
        (Degrees(dp=4), 2, 1),  # a ring around a square
        (Degrees(kp1=2, dp=2), 2, 1),
        (Degrees(kp1=3, dp=3), 3, 2),
        (Degrees(dp=6), 3, 1),  # two columns of three
    ],
)
def test_small_layouts_by_hand(degrees, wafer_dim, intra_derate):
    layout = next(layouts(degrees, wafer_dim, 1))
    assert (layout.intra_derate, layout.inter_derate, layout.crossing) == (
        intra_derate,
        0,
        frozenset(),
    )


def test_charging_the_sender_differs_from_counting_links():
    """Kept from the original: two rings of eight around the wafer, with pairs across.

    No link carries more than two transfers, but a port also serves the pair next to it.
    """
    placement = place(Degrees(kp1=2, dp=8), ("kp1", "dp", "kp2", "lp"), 4)
    per_link = Counter(
        (*sorted((here, there)),)
        for dimension in PARALLEL_DIMENSIONS
        for start, end in transfers(placement, dimension)
        for places in [walk(start, end, 4)]
        for here, there in pairwise(places)
    )
    assert max(per_link.values()) == 2
    assert routed_loads(placement).along_y.max() == 3


# --- Choice and use -------------------------------------------------------------------------


@given(st.tuples(*[st.sampled_from([1, 2, 4])] * 4).map(lambda degrees: Degrees(*degrees)))
@settings(max_examples=25)
def test_the_best_layout_keeps_kernel_parallelism_within_wafers_if_any_does(degrees):
    wafers = max(1, degrees.num_devices // 4)
    kernel = {"kp1", "kp2"}
    fewest = min(len(layout.crossing & kernel) for layout in layouts(degrees, 2, wafers))
    assert len(best_layout(degrees, 2, wafers).crossing & kernel) == fewest


def wafer_scale(**system):
    """Sixteen devices on four wafers of 2 x 2, data 4 x pipeline 4."""
    return load_hardware(
        WAFERS,
        {
            "system_hierarchy.num_nodes": 4,
            "system_hierarchy.num_devices_per_node": 4,
            **{f"system_hierarchy.{key}": value for key, value in system.items()},
        },
    )


def test_a_file_without_a_layout_keeps_its_derates():
    hardware = wafer_scale(intra_derate=7, inter_derate=5)
    seen = seen_by_dimension(hardware, Degrees(dp=4, lp=4))
    assert all(machine is hardware for machine in seen.values())


@pytest.mark.parametrize(
    ("name", "intra", "inter", "crossing"),
    [
        ("dp-lp-kp1-kp2", 3, 2, "lp"),
        ("kp1-dp-kp2-lp", 3, 2, "lp"),  # dimensions of degree 1 may stand anywhere
        ("lp-dp-kp1-kp2", 3, 4, "dp"),
        ("auto", 3, 2, "lp"),
    ],
)
def test_a_layout_sets_what_collectives_see(name, intra, inter, crossing):
    hardware = with_layout(wafer_scale(layout=name, intra_derate=9), Degrees(dp=4, lp=4))
    within = hardware.accelerator.intra_node.bandwidth / intra
    between = hardware.accelerator.inter_node.bandwidth / inter
    assert within > 0
    assert between > 0
    for dimension, (bandwidth, _) in parallel_links(hardware).items():
        expected = min(within, between) if dimension == crossing else within
        assert bandwidth == pytest.approx(expected, rel=1e-12), dimension


@given(placements())
@settings(max_examples=25)
def test_b14_a_dimension_alone_sees_its_own_transfers(placement):
    """Derates and distances, against the walk; never more than all dimensions at once."""
    sizes = dict(zip(placement.order, placement.x.shape, strict=True))
    together = routed_loads(placement)
    for dimension in PARALLEL_DIMENSIONS:
        load = dimension_load(Degrees(**sizes), placement.order, placement.wafer_dim, dimension)
        charged = counted(placement, [dimension])
        busiest = {
            kind: max((count for key, count in charged.items() if key[0] == kind), default=0)
            for kind in ("x", "y", "wafers")
        }
        assert load.intra_derate == max(busiest["x"], busiest["y"])
        assert load.inter_derate == busiest["wafers"]
        assert load.intra_derate <= max(together.along_x.max(), together.along_y.max())
        assert load.inter_derate <= together.between_wafers.max()
        passed = {False: [0], True: []}
        for start, end in transfers(placement, dimension):
            across = start[0] != end[0]
            steps = len(walk(start, end, placement.wafer_dim)) - 1
            passed[across].append(steps - across)
        assert load.links == max(passed[False])
        assert load.links_across == max(passed[True], default=None)


def test_b14_latency_grows_with_the_links_and_derates_are_of_the_dimension():
    """kp1 is a ring of four up a column, dp one along the rows: both close over three links.

    The original gave all dimensions the derate of all at once, and the latency of one link.
    """
    degrees = Degrees(kp1=4, dp=4)
    hardware = wafer_scale(num_nodes=1, num_devices_per_node=16, layout="kp1-dp-kp2-lp")
    seen = seen_by_dimension(hardware, degrees)
    link = hardware.accelerator.intra_node
    original = parallel_links(with_layout(hardware, degrees))
    for dimension in ("kp1", "dp"):
        bandwidth, latency = parallel_links(seen[dimension])[dimension]
        assert bandwidth == link.bandwidth / 2
        assert latency == 3 * link.latency
        assert original[dimension] == (link.bandwidth / 2, link.latency)
    # Rings of eight around the wafer beside pairs across: 3 all at once, 2 and 1 alone.
    degrees = Degrees(kp1=2, dp=8)
    seen = seen_by_dimension(hardware, degrees)
    found = {name: link.bandwidth / parallel_links(seen[name])[name][0] for name in ("kp1", "dp")}
    assert found == pytest.approx({"kp1": 1, "dp": 2})
    assert parallel_links(with_layout(hardware, degrees))["kp1"][0] == link.bandwidth / 3


def test_b14_a_transfer_to_another_wafer_passes_links_of_both():
    """Four wafers of 2 x 2: to the next wafer a device passes at most one link in x and one in y,
    and from the last wafer back to the first the same."""
    hardware = wafer_scale(layout="lp-dp-kp1-kp2")
    seen = seen_by_dimension(hardware, Degrees(dp=4, lp=4))
    intra, inter = hardware.accelerator.intra_node, hardware.accelerator.inter_node
    bandwidth, latency = parallel_links(seen["dp"])["dp"]
    assert latency == pytest.approx(inter.latency + intra.latency)
    assert bandwidth == pytest.approx(min(inter.bandwidth / 4, intra.bandwidth / 2))
    assert parallel_links(seen["lp"])["lp"] == (intra.bandwidth, intra.latency)


def test_b14_layers_that_are_cut_otherwise_have_links_too():
    """The widest layer is cut over kp1 only, another one over kp1 and kp2."""
    hardware = wafer_scale(num_nodes=1, layout="kp1-kp2-dp-lp")
    config = with_overrides(
        hardware.config,
        {
            "scheduling_param.data": 1,
            "scheduling_param.pipeline": 1,
            "scheduling_param.kp1": None,
            "scheduling_param.kp2": None,
            "scheduling_param.kp_hidden_type": 2,
            "scheduling_param.kp_hidden_dim1": 4,
            "scheduling_param.kp_softmax_type": 2,
            "scheduling_param.kp_softmax_dim1": 2,
            "scheduling_param.kp_softmax_dim2": 2,
        },
    )
    prediction = predict(replace(hardware, config=config), LstmModel(64, 1000, 2, 256, 0, 4))
    assert prediction.num_devices == 4 and prediction.time_tensor_communication_s > 0


def test_b14_an_lstm_is_no_slower_than_with_the_derates_of_all_dimensions():
    """Latencies aside: what a layout costs is between no sharing and sharing with everybody."""
    model = LstmModel(256, 10_000, 4, 1024, 0, 8)
    without_latency = {
        f"tech_param.network.{name}.latency": 0 for name in ("intra_node", "inter_node")
    }
    degrees = {"kp1": 2, "kp2": 2, "data": 2, "pipeline": 2}
    overrides = {f"parallelism.{name}": degree for name, degree in degrees.items()}
    overrides |= {
        "system_hierarchy.num_nodes": 1,
        "system_hierarchy.num_devices_per_node": 16,
        "parallelism.t": "RC",
        **without_latency,
    }
    placed = load_hardware(WAFERS, overrides | {"system_hierarchy.layout": "kp1-kp2-dp-lp"})
    shared = with_layout(placed, Degrees(2, 2, 2, 2)).config.system_hierarchy
    times = [
        predict(hardware, model).time_s
        for hardware in (
            load_hardware(WAFERS, overrides),
            placed,
            load_hardware(
                WAFERS, overrides | {"system_hierarchy.intra_derate": shared.intra_derate}
            ),
        )
    ]
    assert times[0] <= times[1] < times[2]


def test_devices_that_are_nodes_of_their_own_have_no_mesh():
    hardware = load_hardware(
        "configs/hardware-config/waferscale_20v100_80hbm.yaml", {"system_hierarchy.layout": "auto"}
    )
    assert layout_derates(hardware.config, Degrees(kp1=20), "auto") == {
        "system_hierarchy.intra_derate": 0,
        "system_hierarchy.inter_derate": 2,
        "system_hierarchy.kp1_inter": True,
        "system_hierarchy.kp2_inter": False,
        "system_hierarchy.dp_inter": False,
        "system_hierarchy.lp_inter": False,
    }


def test_derates_of_a_layout_are_valid_in_a_hardware_file():
    config = wafer_scale().config
    for layout in layouts(Degrees(kp1=2, dp=4, lp=2), 2, 4):
        derates = layout_derates(config, Degrees(kp1=2, dp=4, lp=2), layout.name)
        system = with_overrides(config, derates).system_hierarchy
        assert (system.intra_derate, system.inter_derate) == (
            layout.intra_derate,
            layout.inter_derate,
        )


@pytest.mark.parametrize(
    ("nodes", "devices_per_node", "degrees", "layout", "reason"),
    [
        (1, 8, Degrees(dp=8), "auto", "no square"),
        (1, 4, Degrees(dp=5), "auto", "no layout of kp1 1 x kp2 1 x dp 5"),
        (1, 4, Degrees(dp=5), "dp-lp-kp1-kp2", "needs 5 nodes of 2 x 2"),
        (1, 36, Degrees(kp1=4, dp=9), "kp1-dp-kp2-lp", "needs 3 nodes"),  # 4 of 6 rows: a gap
    ],
)
def test_layouts_that_cannot_be_are_infeasible(nodes, devices_per_node, degrees, layout, reason):
    hardware = wafer_scale(num_nodes=nodes, num_devices_per_node=devices_per_node, layout=layout)
    with pytest.raises(InfeasiblePoint, match=reason):
        with_layout(hardware, degrees)


def test_the_best_layout_is_one_that_fits():
    """Four of six rows leave a gap; blocks of three by three do not."""
    assert best_layout(Degrees(kp1=4, dp=9), 6, 1).order == ("dp", "kp1", "kp2", "lp")


def test_an_unknown_layout_is_refused():
    with pytest.raises(ConfigError, match=r"system_hierarchy\.layout"):
        wafer_scale(layout="dp-kp1")
