# Predictions: a file per point, or a file per shard of points.
#
# The digest among the params is the meaning of a point: Snakemake reruns a job when its digest
# changes. YAML files are therefore no inputs, and touching or re-commenting one reruns nothing.
# The rest of a command is not recorded: how something is spelled may change without a rerun.


rule point:
    input:
        needed_collectives,
    output:
        "results/{sweep}/points/{point}.json",
    log:
        "results/{sweep}/logs/points/{point}.log",
    params:
        digest=lambda wildcards: get_part("point", wildcards).digest,
    run:
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
    params:
        digest=lambda wildcards: get_part("shard", wildcards).digest,
    run:
        deepflow(
            ["sweep", "shard", SWEEP_FILES[wildcards.sweep], wildcards.shard]
            + ["--expect-digest", params.digest, "--output", output[0]],
            log[0],
        )
