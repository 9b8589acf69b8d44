"""What jobs ask a scheduler for (replaceme/planning/job_resources.py); ignored where Snakemake runs them itself."""

from functools import cache

from replaceme.planning.job_resources import UNKNOWN, needs, outline_for
from replaceme.planning.job_work import rule_of_fit, work_of

KNOWN = {}


def outline_of_model(name):
    """What is known of a model; of one that is not here yet, once it is."""
    if name not in KNOWN:
        section = CONFIG.models[name]
        found = outline_for(section, f"results/{name}/model.json")
        if found is None:
            warn_of_unknown(name)
            return UNKNOWN
        KNOWN[name] = found
    return KNOWN[name]


@cache
def warn_of_unknown(name):
    """Say once that a model's jobs ask for what a common size takes."""
    if CLUSTER:
        logger.warning(
            f"models.{name}: not here yet, so its jobs ask for memory and time as one of 8 billion parameters does; "
            f"make results/{name}/model.json first, or use --set-resources"
        )


def asked(rule, wildcards):
    """Memory and time of a job."""
    outline = outline_of_model(wildcards.model)
    names = dict(wildcards.items())
    if "candidates" in names:  # any cut that uses them
        names["cut"] = next(
            name
            for name, cut in CONFIG.cuts.items()
            if candidates_name(cut) == wildcards.candidates
        )
    work = work_of(rule, CONFIG, names, outline)
    entry = rule_of_fit(CONFIG, names) if rule == "transform" else rule
    return needs(entry, outline, work, "cuda" if GPU else "cpu")


def memory(rule):
    """The resource `mem_mb` of the jobs of a rule; twice as much at the second attempt."""
    return lambda wildcards, attempt: asked(rule, wildcards).mem_mb * attempt


def minutes(rule):
    """The resource `runtime` of the jobs of a rule, likewise."""
    return lambda wildcards, attempt: asked(rule, wildcards).runtime * attempt
