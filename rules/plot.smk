# The figures that a sweep asks for.


localrules:
    plot,


rule plot:
    input:
        "results/{sweep}/summary.parquet",
    output:
        png="results/{sweep}/plots/{plot}.png",
        svg="results/{sweep}/plots/{plot}.svg",
    log:
        "results/{sweep}/logs/plots/{plot}.log",
    params:
        drawing=lambda wildcards: repr(get_part("plot", wildcards)),
    run:
        settle_times(input)
        deepflow(
            ["sweep", "plot", SWEEP_FILES[wildcards.sweep], wildcards.plot]
            + ["--summary", input[0], "--output", output.png, output.svg],
            log[0],
        )
