# One table per sweep.


localrules:
    gather,
    csv,


rule gather:
    input:
        gathered_files,
    output:
        "results/{sweep}/summary.parquet",
    log:
        "results/{sweep}/logs/gather.log",
    params:
        digest=lambda wildcards: get_sweep(wildcards.sweep).digest,
    run:
        settle_times(input)
        deepflow(
            ["sweep", "gather", SWEEP_FILES[wildcards.sweep]]
            + ["--results", f"results/{wildcards.sweep}", "--output", output[0]],
            log[0],
        )


rule csv:
    input:
        "results/{sweep}/summary.parquet",
    output:
        report(
            "results/{sweep}/summary.csv",
            caption="captions/table.rst",
            category="{sweep}",
            subcategory="points",
            labels={"what": "table"},
        ),
    log:
        "results/{sweep}/logs/csv.log",
    run:
        settle_times(input)
        deepflow(
            ["sweep", "csv", SWEEP_FILES[wildcards.sweep]]
            + ["--summary", input[0], "--output", output[0]],
            log[0],
        )
