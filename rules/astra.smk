# Results of the user's ASTRA-sim: a file per collective, shared by all points and sweeps.
#
# Only where sweeps have a job per point and ask for this program (backend.astra.simulator). Which
# collectives a point needs is found while the DAG is made; their names are what they depend on,
# program included. A time of failure among the params has what failed tried again.


rule collective:
    output:
        f"{COLLECTIVES}/{{collective}}.json",
    log:
        f"{COLLECTIVES}/logs/{{collective}}.log",
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        # Minutes; ASTRA-sim is stopped at its own limit.
        runtime=lambda wildcards: 2 + int(get_collective(wildcards).timeout) // 60,
    params:
        meaning=lambda wildcards: get_collective(wildcards).meaning,
        last_failure=lambda wildcards: get_last_failure(wildcards.collective),
    run:
        wanted = get_collective(wildcards)
        deepflow(
            ["astra-collective", params.meaning, "--binary", wanted.binary.path]
            + ["--timeout", str(wanted.timeout), "--output", output[0]]
            + ["--last-failure", params.last_failure],
            log[0],
        )
