# The figures that a sweep asks for, and those of the gallery in docs/.
#
#   snakemake --cores all figures            docs/images: a figure for each example


localrules:
    plot,
    figures,


rule plot:
    input:
        "results/{sweep}/summary.parquet",
    output:
        png="results/{sweep}/plots/{plot}.png",
        svg=report(
            "results/{sweep}/plots/{plot}.svg",
            caption="captions/figure.rst",
            category="{sweep}",
            subcategory="figures",
            labels={"what": "{plot}"},
        ),
    log:
        "results/{sweep}/logs/plots/{plot}.log",
    params:
        drawing=lambda wildcards: get_part("plot", wildcards).fingerprint,
    run:
        settle_times(input)
        deepflow(
            ["sweep", "plot", SWEEP_FILES[wildcards.sweep], wildcards.plot]
            + ["--summary", input[0], "--output", output.png, output.svg],
            log[0],
        )


# Without outputs, so that it looks at what the figures are made from whenever somebody asks.
rule figures:
    input:
        example_figures,
    log:
        "results/logs/figures.log",
    run:
        settle_times(input)
        copy_figures(input, "docs/images", log[0])
