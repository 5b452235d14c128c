# Which hardware parameters matter at each point, for sweeps that ask for it: a file per point, or
# per shard of points, one table, and its figures.


localrules:
    sensitivity,
    sensitivity_plot,


rule sensitivity_point:
    output:
        "results/{sweep}/sensitivity/points/{point}.json",
    log:
        "results/{sweep}/logs/sensitivity/points/{point}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,  # minutes
    params:
        digest=lambda wildcards: get_part("point", wildcards).digest,
        plan=lambda wildcards: repr(get_plan(wildcards)),
        programs=lambda wildcards: get_part("point", wildcards).programs,
    run:
        deepflow(
            ["sensitivity", *point_options(wildcards)]
            + [*plan_options(get_plan(wildcards)), "--allow-infeasible"]
            + ["--expect-digest", params.digest, "--output", output[0]],
            log[0],
        )


rule sensitivity_shard:
    output:
        "results/{sweep}/sensitivity/shards/{shard}.parquet",
    log:
        "results/{sweep}/logs/sensitivity/shards/{shard}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        digest=lambda wildcards: get_analysed_shard(wildcards).digest,
        plan=lambda wildcards: repr(get_plan(wildcards)),
        programs=lambda wildcards: get_sweep(wildcards.sweep).programs,
    run:
        sweep = SWEEP_FILES[wildcards.sweep]
        deepflow(
            ["sweep", "sensitivity-shard", sweep, wildcards.shard]
            + ["--expect-digest", params.digest, "--output", output[0]],
            log[0],
        )


rule sensitivity:
    input:
        gathered_sensitivities,
    output:
        "results/{sweep}/sensitivity.parquet",
    log:
        "results/{sweep}/logs/sensitivity/gather.log",
    params:
        digest=lambda wildcards: get_sweep(wildcards.sweep).digest,
        plan=lambda wildcards: repr(get_plan(wildcards)),
    run:
        settle_times(input)
        deepflow(
            ["sweep", "sensitivity-gather", SWEEP_FILES[wildcards.sweep]]
            + ["--results", f"results/{wildcards.sweep}", "--output", output[0]],
            log[0],
        )


rule sensitivity_plot:
    input:
        "results/{sweep}/sensitivity.parquet",
    output:
        png="results/{sweep}/sensitivity/plots/{plot}.png",
        svg=report(
            "results/{sweep}/sensitivity/plots/{plot}.svg",
            caption="captions/sensitivity.rst",
            category="{sweep}",
            subcategory="sensitivities",
            labels={"what": "{plot}"},
        ),
    log:
        "results/{sweep}/logs/sensitivity/plots/{plot}.log",
    params:
        drawing=lambda wildcards: repr(get_figure(wildcards)),
    run:
        settle_times(input)
        deepflow(
            [
                "sweep",
                "sensitivity-plot",
                SWEEP_FILES[wildcards.sweep],
                wildcards.plot,
            ]
            + ["--table", input[0], "--output", output.png, output.svg],
            log[0],
        )
