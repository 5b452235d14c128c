"""Runs every benchmark and prints one table with the machine it was measured on."""

from __future__ import annotations

import argparse

import batch
import in_process
import network
import scale
import search
import shards
import sweep_overhead
from measure import describe_machine, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--points", type=int, default=1000, help="points of the per-point sweep, a multiple of 200"
    )
    parser.add_argument(
        "--shard-points", type=int, default=10_000, help="points of the sharded sweep, likewise"
    )
    parser.add_argument("--gemm-points", type=int, default=scale.GEMM_POINTS)
    parser.add_argument("--llm-points", type=int, default=scale.LLM_POINTS)
    parser.add_argument(
        "--search-seeds", type=int, default=10, help="starts of each kind of search"
    )
    arguments = parser.parse_args()
    rows = in_process.measure()
    rows += batch.measure()
    rows += network.measure()
    rows += sweep_overhead.measure(arguments.points)
    rows += shards.measure(arguments.shard_points)
    rows += scale.measure(arguments.gemm_points, arguments.llm_points)
    rows += search.measure(arguments.search_seeds)
    print(describe_machine(), end="\n\n")
    print_table(rows)


if __name__ == "__main__":
    main()
