from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")


if (
    not config
):  # a file given with --configfile replaces config.yaml instead of being merged into it

    configfile: "config.yaml"


container: "docker://python:3.11-slim"


include: "rules/common.smk"
include: "rules/calibrate.smk"
include: "rules/cut.smk"
include: "rules/fit.smk"
include: "rules/merge.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    """Every table and figure of the config."""
    input:
        table_files(),
        figure_files(),


onstart:
    sweep_temporaries("results")
