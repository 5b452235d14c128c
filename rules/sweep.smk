# Predictions: a file per point, or a file per shard of points.
#
# The digest among the params is the meaning of a point: Snakemake reruns a job when its digest
# changes. YAML files are therefore no inputs, and touching or re-commenting one reruns nothing.
# What the user's ASTRA-sim answers also depends on which build it is.
# The rest of a command is not recorded: how something is spelled may change without a rerun.


rule point:
    input:
        needed_collectives,
    output:
        "results/{sweep}/points/{point}.json",
    log:
        "results/{sweep}/logs/points/{point}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 2 * attempt,  # minutes
    params:
        digest=lambda wildcards: get_part("point", wildcards).digest,
        programs=lambda wildcards: get_part("point", wildcards).programs,
    run:
        settle_times(input)
        deepflow(
            ["predict", *point_options(wildcards), "--allow-infeasible", "--json"]
            + (["--collectives", COLLECTIVES] if input else [])
            + ["--expect-digest", params.digest, "--output", output[0]],
            log[0],
        )


rule shard:
    output:
        "results/{sweep}/shards/{shard}.parquet",
    log:
        "results/{sweep}/logs/shards/{shard}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        digest=lambda wildcards: get_part("shard", wildcards).digest,
        programs=lambda wildcards: get_sweep(wildcards.sweep).programs,
    run:
        deepflow(
            ["sweep", "shard", SWEEP_FILES[wildcards.sweep], wildcards.shard]
            + ["--expect-digest", params.digest, "--output", output[0]],
            log[0],
        )
