"""The network simulator: short cuts against the event model, and both against ASTRA-sim's cost.

Single collectives, the memory that they take by ranks, and a Llama 2 70B on 64 ranks in all modes
of the astra backend. The baseline is ``simulate_events``, every message an event, in the same run.
The CPU seconds of ASTRA-sim's own binaries for the same inputs (64 MiB over a switch, 4 chunks) are
given beside it; they were taken on another machine. ``--exact`` runs all reference cases on both
backends and both ways and counts those in which every rank has the binary's cycles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deepflow import load_hardware, load_model, predict
from deepflow.network.graph import Network, NetworkError, Node, Options, SystemSettings
from deepflow.network.simulate import CollectiveTimes, simulate, simulate_events
from measure import Row, describe_machine, median_seconds, print_table
from tests import network_cases

SIZE = 64 * 2**20
# CPU seconds of the binaries: ranks, algorithm, collective -> unaware, aware.
BINARY_SECONDS = {
    (64, "ring", "ALL_REDUCE"): (0.03, 0.05),
    (64, "halvingDoubling", "ALL_REDUCE"): (0.02, 0.02),
    (64, "doubleBinaryTree", "ALL_REDUCE"): (0.02, 0.02),
    (64, "direct", "ALL_TO_ALL"): (0.04, 0.06),
    (256, "ring", "ALL_REDUCE"): (0.36, 0.57),
    (256, "halvingDoubling", "ALL_REDUCE"): (0.10, 0.10),
    (256, "doubleBinaryTree", "ALL_REDUCE"): (0.10, 0.10),
    (256, "direct", "ALL_TO_ALL"): (1.2, 2.0),
    (1024, "ring", "ALL_REDUCE"): (9.6, 19.7),
    (1024, "halvingDoubling", "ALL_REDUCE"): (1.4, 1.4),
    (1024, "direct", "ALL_TO_ALL"): (61.0, None),
}
LARGEST_EVENT_MODEL = 256  # ranks; beyond that the baseline takes minutes


def switch(ranks: int) -> Network:
    return Network(("Switch",), (ranks,), (50.0,), (500.0,))


def system(algorithm: str, dimensions: int = 1) -> SystemSettings:
    algorithms = (algorithm,) * dimensions
    return SystemSettings(
        scheduling_policy="LIFO",
        collective_optimization="localBWAware",
        preferred_dataset_splits=4,
        local_mem_bw=1600,
        all_reduce_implementation=algorithms,
        all_gather_implementation=algorithms,
        reduce_scatter_implementation=algorithms,
        all_to_all_implementation=algorithms,
    )


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def collectives() -> list[Row]:
    rows = []
    for (ranks, algorithm, kind), seconds in BINARY_SECONDS.items():
        node = Node(1, "COLL", collective=kind, size_bytes=SIZE)
        traces = ((node,),) * ranks
        for congestion in (False, True):
            binary = seconds[congestion]
            options = Options(congestion=congestion)
            name = f"{kind.lower()}, {algorithm}, {ranks} ranks{', aware' * congestion}"

            inputs = (traces, switch(ranks), system(algorithm), options)
            shortest = partial(simulate, *inputs, exact_order=False)
            short = min(cpu_seconds(shortest) for _ in range(3))
            times = [f"{short * 1e3:.2f} ms"]
            if ranks <= LARGEST_EVENT_MODEL:
                events = cpu_seconds(partial(simulate_events, *inputs))
                times.append(f"event model {events * 1e3:.0f} ms")
                if binary:
                    times.append(f"= {events / binary:.1f} x binary")
            if binary:
                times.append(f"binary {binary:g} s = {binary / short:,.0f} x")
            target = ">= 1,000 x faster than the binary" if ranks == 1024 else "events <= 3 x"
            rows.append(Row(name, ", ".join(times), target))
    return rows


def closed_forms() -> list[Row]:
    rows = []
    for algorithm in ("ring", "direct", "halvingDoubling"):
        times = CollectiveTimes(switch(8), system(algorithm))

        def new_size(index: int, times: CollectiveTimes = times) -> int:
            return times.cycles("ALL_REDUCE", SIZE + 4096 * index)

        seconds = median_seconds(new_size, 200)
        rows.append(
            Row(f"one new all_reduce, {algorithm}, 8 ranks", f"{seconds * 1e6:.0f} us", "10-50 us")
        )
    return rows


def chain(count: int) -> tuple[Node, ...]:
    nodes = []
    for index in range(count):
        before = (2 * index - 1,) if index else ()
        nodes.append(Node(2 * index, "COMP", duration_us=100, dependencies=before))
        nodes.append(
            Node(
                2 * index + 1,
                "COLL",
                collective="ALL_REDUCE",
                size_bytes=SIZE,
                dependencies=(2 * index,),
            )
        )
    return tuple(nodes)


def graphs() -> list[Row]:
    short = cpu_seconds(lambda: simulate([chain(1000)] * 64, switch(64), system("ring")))
    events = cpu_seconds(lambda: simulate_events([chain(10)] * 64, switch(64), system("ring")))
    value = f"{short * 1e3:.0f} ms; event model {events * 100:.0f} s (from 10 of them), binary 25 s"
    return [Row("1,000 x (compute, ring all_reduce), 64 ranks", value, "< 1 s")]


def memory() -> list[Row]:
    """Peak memory of the event model above that of the process, each in a process of its own."""
    rows = []
    for algorithm, congestion in (("halvingDoubling", False), ("halvingDoubling", True)):
        for ranks in (256, 1024, 4096):
            arguments = [sys.executable, __file__, "--memory", algorithm, str(ranks)]
            run = subprocess.run(
                [*arguments, *(["--aware"] if congestion else [])],
                check=True,
                capture_output=True,
                text=True,
            )
            name = f"memory, {algorithm}, {ranks} ranks{', aware' * congestion}"
            rows.append(Row(name, f"{float(run.stdout):.1f} MiB", "linear in ranks"))
    return rows


def peak_mebibytes(algorithm: str, ranks: int, congestion: bool) -> float:
    before = high_water_mark()
    node = Node(1, "COLL", collective="ALL_REDUCE", size_bytes=SIZE)
    options = Options(congestion=congestion)
    simulate_events(((node,),) * ranks, switch(ranks), system(algorithm), options)
    return (high_water_mark() - before) / 1024


def high_water_mark() -> int:
    """Peak resident KiB of this program; getrusage would count the one that started it as well."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def points() -> list[Row]:
    """A training step of Llama 2 70B: tensor 8, pipeline 4, data 2, for some global batches."""
    rows = []
    targets = {
        "hybrid": "<= 20 ms after the first",
        "hybrid_congestion": "",
        "full_astrasim_hierarchical": "<= 1 s",
        "full_astrasim_flattened": "<= 30 s",
    }
    for mode, target in targets.items():
        for batch in (64, 512, 1024):
            hardware = load_hardware(
                "configs/hardware-config/nvidia_h100_sxm_80gb.yaml",
                {
                    "system_hierarchy.num_nodes": 8,
                    "parallelism.tensor": 8,
                    "parallelism.pipeline": 4,
                    "execution_backend.model": "astra",
                    "execution_backend.astra.mode": mode,
                    "execution_backend.astra.fallback": "error",
                },
            )
            shape = {"global_batch_size": batch}
            model = load_model("configs/model-config/Llama2-70B.yaml", shape)
            point = partial(predict, hardware, model)
            first, again = cpu_seconds(point), cpu_seconds(point)
            value = f"{first * 1e3:,.0f} ms, again {again * 1e3:,.1f} ms"
            rows.append(Row(f"70B on 64 ranks, {batch} sequences, {mode}", value, target))
    return rows


def exactness() -> list[Row]:
    counts: Counter[str] = Counter()
    for entry in network_cases.read("cases"):
        for backend, congestion in network_cases.BACKENDS.items():
            case = network_cases.build(entry, congestion)
            expected = entry["result"][backend]
            answered = expected["rc"] == 0 and None not in expected["cycles"]
            for way in (simulate, simulate_events):
                name = f"{way.__name__}, {backend}"
                arguments = (case.traces, case.network, case.system, case.options, case.groups)
                try:
                    result = way(*arguments)
                except NetworkError:
                    counts[
                        f"{name}: {'wrong' if answered else 'error where the binary fails'}"
                    ] += 1
                    continue
                same = (list(result.cycles), list(result.exposed), list(result.order)) == (
                    expected["cycles"],
                    expected["exposed"],
                    expected["order"],
                )
                counts[f"{name}: {'exact' if same else 'wrong'}"] += 1
    return [Row(name, f"{count} cases", "no wrong one") for name, count in sorted(counts.items())]


def measure() -> list[Row]:
    return [*closed_forms(), *points(), *graphs(), *collectives(), *memory()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exact", action="store_true", help="all reference cases instead")
    parser.add_argument("--memory", nargs=2, metavar=("ALGORITHM", "RANKS"), help="of one case")
    parser.add_argument("--aware", action="store_true", help="with congestion, for --memory")
    arguments = parser.parse_args()
    if arguments.memory:
        algorithm, ranks = arguments.memory
        print(peak_mebibytes(algorithm, int(ranks), arguments.aware))
        return
    rows = exactness() if arguments.exact else measure()
    print(describe_machine(), end="\n\n")
    print_table(rows)


if __name__ == "__main__":
    main()
