"""What a point of a per-point sweep costs beside the cheapest job that uses NumPy.

Two workflows with the same number of jobs and the same profile: the real one, gathering included,
and, before and after it, one whose jobs only run ``python -c 'import numpy'``. CPU seconds of
Snakemake and all its jobs; the ratio to the mean of the two is the result, because what else the
machine does then slows both down.
"""

from __future__ import annotations

import argparse

from measure import Row, print_table, run_snakemake, sweep_text, workspace

BASELINE_SNAKEFILE = """\
rule all:
    input:
        expand("results/baseline/{{index}}.txt", index=range({points})),


rule point:
    output:
        "results/baseline/{{index}}.txt",
    shell:
        "python -c 'import numpy' > {{output:q}}"
"""


def measure(points: int) -> list[Row]:
    """Runs both workflows with ``points`` jobs each, then the real one with nothing to do."""
    with workspace() as folder:
        (folder / "baseline.smk").write_text(BASELINE_SNAKEFILE.format(points=points))
        (folder / "sweeps" / "overhead.yaml").write_text(sweep_text(points, "points_per_job: 1\n"))
        sweep = ("--config", "sweeps=sweeps/overhead.yaml")
        before = run_snakemake(folder, "--snakefile", "baseline.smk")
        real = run_snakemake(folder, *sweep)
        after = run_snakemake(folder, "--snakefile", "baseline.smk", "--forceall")
        written = sum(1 for _ in (folder / "results/overhead/points").glob("*.json"))
        if written != points:
            raise RuntimeError(f"{written} of {points} points were written")
        again = run_snakemake(folder, *sweep)
    baseline = (before.cpu_seconds + after.cpu_seconds) / 2
    return [
        Row(f"{points} jobs `import numpy`: CPU", f"{baseline:.1f} s"),
        Row(f"{points} points, one job each: CPU", f"{real.cpu_seconds:.1f} s"),
        Row("ratio of the two", f"{real.cpu_seconds / baseline:.2f}", "<= 1.5"),
        Row(f"{points} points again, nothing to do: wall", f"{again.wall_seconds:.1f} s", "< 5 s"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000, help="a multiple of 200")
    print_table(measure(parser.parse_args().points))
