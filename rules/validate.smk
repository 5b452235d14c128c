# Predictions beside measurements: every table of a folder, and the page on accuracy.
#
#   snakemake --cores all validate --config tables=DIR             rows, plots by table
#   snakemake --cores all --force docs/accuracy.md --config tables=DIR     the page, from these
#
# Without tables=DIR these are the samples that the repository has.


localrules:
    validate,
    accuracy,


rule validate:
    input:
        validated,


rule validate_table:
    input:
        get_table,
    output:
        rows=f"{VALIDATION}/{{table}}/rows.csv",
        plot=f"{VALIDATION}/{{table}}/parity.png",
    log:
        f"{VALIDATION}/{{table}}/rows.log",
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        digest=get_model_digest,
    run:
        deepflow(
            ["validate", input[0], "--output", output.rows, "--plot", output.plot],
            log[0],
        )


rule validate_without:
    input:
        get_table,
    output:
        f"{VALIDATION}/{{table}}/without/{{ablation}}.csv",
    log:
        f"{VALIDATION}/{{table}}/without/{{ablation}}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        digest=get_model_digest,
        settings=lambda wildcards, input: get_ablations(input[0])[wildcards.ablation],
    run:
        settings = [
            option for text in params.settings for option in ("--set", text)
        ]
        deepflow(["validate", input[0], "--output", output[0], *settings], log[0])


rule accuracy:
    input:
        validated,
        ablated,
    output:
        page="docs/accuracy.md",
        plot="docs/images/accuracy.png",
    log:
        f"{VALIDATION}/accuracy.log",
    params:
        data=described_data,
    run:
        tables = ["--tables", *get_tables()]
        written = ["--output", output.page, "--plot", output.plot]
        data = ["--data", params.data]
        deepflow(["accuracy", VALIDATION, *tables, *data, *written], log[0])
