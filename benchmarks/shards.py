"""How fast a large sweep goes end to end: Snakemake, shards, gathering, two cores."""

from __future__ import annotations

import argparse

from measure import Row, print_table, run_snakemake, sweep_text, workspace


def measure(points: int) -> list[Row]:
    """Runs a sharded sweep of ``points`` LLM predictions, then once more with nothing to do."""
    with workspace() as folder:
        (folder / "sweeps" / "large.yaml").write_text(sweep_text(points, "points_per_job: 500\n"))
        sweep = ("--config", "sweeps=sweeps/large.yaml")
        first = run_snakemake(folder, *sweep)
        if not (folder / "results/large/summary.parquet").exists():
            raise RuntimeError("the sweep ended without a summary")
        again = run_snakemake(folder, *sweep)
    return [
        Row(f"{points} points in shards", f"{points / first.wall_seconds:.0f} points/s", ">= 300"),
        Row(f"{points} points in shards: CPU", f"{first.cpu_seconds:.1f} s"),
        Row(
            f"{points} points in shards: memory of all processes",
            f"{first.peak_bytes / 2**20:.0f} MiB",
            "< 1024 MiB",
        ),
        Row(f"{points} points again, nothing to do: wall", f"{again.wall_seconds:.1f} s"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000, help="a multiple of 200")
    print_table(measure(parser.parse_args().points))
