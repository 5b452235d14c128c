# Entry of the workflow: predicts design spaces, gathers tables, draws plots.
#
#   snakemake --cores all                                         the sweeps named below
#   snakemake --cores all --config sweeps=sweeps/gemm_shapes.yaml one sweep, or several: a.yaml,b.yaml
#   snakemake --cores 1 results/<sweep>/points/<id>.json          one point (deepflow sweep points)
#   snakemake --cores all validate --config tables=DIR            tables of measurements, predicted
#   snakemake --cores all results/searches/NAME/best.txt          a search of searches/
#   snakemake --cores all report                                  a page about each sweep
#   snakemake --cores all figures                                 the figures of docs/gallery.md
#   snakemake --dry-run                                           what would run, and why


include: "rules/common.smk"
include: "rules/astra.smk"
include: "rules/sweep.smk"
include: "rules/gather.smk"
include: "rules/plot.smk"
include: "rules/sensitivity_common.smk"
include: "rules/sensitivity.smk"
include: "rules/search_common.smk"
include: "rules/search.smk"
include: "rules/report.smk"
include: "rules/validate.smk"


rule all:
    default_target: True
    input:
        lambda wildcards: [target for name in CHOSEN for target in sweep_targets(name)],
        lambda wildcards: [
            target for name in CHOSEN for target in collective_targets(name)
        ],
