# Architecture search: a job per start of a case, tables of all of them, figures.
#
#   snakemake --cores all results/searches/NAME/best.txt                    all of searches/NAME.yaml
#   snakemake --cores 1 results/searches/NAME/runs/CASE/START.parquet       one start (--list)
#
# As for sweeps, the digest among the params says when a start is run again.


localrules:
    search_tables,
    search_figure,
    search_best,


rule search_start:
    output:
        f"{SEARCHES}/{{search}}/runs/{{case}}/{{start}}.parquet",
    log:
        f"{SEARCHES}/{{search}}/logs/{{case}}/{{start}}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,  # minutes
    params:
        digest=start_digest,
    run:
        deepflow(
            ["search", get_search(wildcards.search).file, "--case", wildcards.case]
            + ["--start", wildcards.start, "--expect-digest", params.digest]
            + ["--output", output[0]],
            log[0],
        )


rule search_tables:
    input:
        search_starts,
    output:
        f"{SEARCHES}/{{search}}/evaluations.parquet",
        f"{SEARCHES}/{{search}}/best.parquet",
        f"{SEARCHES}/{{search}}/pareto.parquet",
    log:
        f"{SEARCHES}/{{search}}/logs/tables.log",
    run:
        settle_times(input)
        deepflow(step_of(wildcards, "--gather"), log[0])


rule search_figure:
    input:
        f"{SEARCHES}/{{search}}/evaluations.parquet",
        f"{SEARCHES}/{{search}}/best.parquet",
        f"{SEARCHES}/{{search}}/pareto.parquet",
    output:
        png=f"{SEARCHES}/{{search}}/plots/{{figure}}.png",
        svg=report(
            f"{SEARCHES}/{{search}}/plots/{{figure}}.svg",
            caption="captions/search_figure.rst",
            category="{search}",
            subcategory="figures",
            labels={"what": "{figure}"},
        ),
    log:
        f"{SEARCHES}/{{search}}/logs/plots/{{figure}}.log",
    run:
        settle_times(input)
        figures = ["--figures", *output]
        deepflow(step_of(wildcards, "--plot", wildcards.figure) + figures, log[0])


rule search_best:
    input:
        f"{SEARCHES}/{{search}}/best.parquet",
        search_figures,
    output:
        report(
            f"{SEARCHES}/{{search}}/best.txt",
            caption="captions/search_best.rst",
            category="{search}",
            subcategory="designs",
            labels={"what": "best"},
        ),
    log:
        f"{SEARCHES}/{{search}}/logs/best.log",
    run:
        settle_times(input)
        deepflow(step_of(wildcards, "--best", "--output", output[0]), log[0])
