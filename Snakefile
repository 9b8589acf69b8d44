from snakemake.utils import min_version

min_version("9.0")

# a file given with --configfile replaces config.yaml, where Snakemake would merge the two
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


report: "rules/captions/workflow.rst"


container: "docker-daemon:replaceme:0.1.0"


include: "rules/common.smk"
include: "rules/preflight.smk"
include: "rules/calibrate.smk"
include: "rules/cut.smk"
include: "rules/fit.smk"
include: "rules/merge.smk"
include: "rules/heal.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    """Make every table and figure of the config, or those of its key `default`."""
    input:
        figures.target_files(CONFIG.default_names),
        figures.files_beside(CONFIG.default_names),
        f"{paths.PROVENANCE}.html",
