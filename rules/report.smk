# Pages about sweeps and searches: one HTML file each, which needs no network.
#
#   snakemake --cores all report                              of all chosen sweeps
#   snakemake --cores all results/<sweep>/report.html         of one
#   snakemake --cores all results/searches/NAME/report.html   of a search

from deepflow.sweep.identity import text_hash


localrules:
    sweep_report,
    search_report,
    report,


rule sweep_report:
    input:
        "results/{sweep}/summary.parquet",
    output:
        report(
            "results/{sweep}/report.html",
            caption="captions/page.rst",
            category="{sweep}",
            subcategory="points",
            labels={"what": "page"},
        ),
    log:
        "results/{sweep}/logs/report.log",
    params:
        # The page shows the text of the sweep, comments and all.
        text=lambda wildcards: text_hash(get_sweep(wildcards.sweep).text),
    run:
        settle_times(input)
        deepflow(
            ["report", SWEEP_FILES[wildcards.sweep]]
            + ["--summary", input[0], "--output", output[0]],
            log[0],
        )


rule search_report:
    input:
        f"{SEARCHES}/{{search}}/evaluations.parquet",
    output:
        report(
            f"{SEARCHES}/{{search}}/report.html",
            caption="captions/search_page.rst",
            category="{search}",
            subcategory="designs",
            labels={"what": "page"},
        ),
    log:
        f"{SEARCHES}/{{search}}/logs/report.log",
    params:
        text=lambda wildcards: text_hash(get_search(wildcards.search).text),
    run:
        settle_times(input)
        deepflow(
            ["report", get_search(wildcards.search).file]
            + ["--summary", input[0], "--output", output[0]],
            log[0],
        )


rule report:
    input:
        [f"results/{name}/report.html" for name in CHOSEN],
