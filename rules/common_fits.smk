"""The functions with which the rules of cuts and fits find their inputs and options."""

from replaceme.config.fits import REGRESSION


def evidence_options(inputs):
    """`--name file ...` for the optional inputs of a job."""
    names = (
        "distances",
        "candidates",
        "statistics",
        "shards",
        "rows",
        "tokens",
        "recycled",
    )
    files = {name: flat(inputs[name]) for name in names if name in inputs.keys()}
    words = {name: shlex.join(map(str, paths)) for name, paths in files.items()}
    if "shards" in files:
        words["shards"] = shard_files(
            Path(files["shards"][0]).parent, len(files["shards"])
        )
    return " ".join(f"--{name} {text}" for name, text in words.items())


def flat(files):
    """One file or several, as a list."""
    return [files] if isinstance(files, str) else list(files)


def candidates_file(wildcards):
    """The shared file of post-fit metrics that a cut is chosen from."""
    name = candidates_name(CONFIG.cuts[wildcards.cut])
    return f"results/{wildcards.model}/{wildcards.calibration}/candidates/{name}.json"


def cut_evidence(wildcards):
    """What a cut is chosen from: candidates for a post-fit metric, distances for the paper's, nothing by hand."""
    cut = CONFIG.cuts[wildcards.cut]
    if cut.needs_candidates:
        return {"candidates": candidates_file(wildcards)}
    if cut.start is not None:
        return {}
    return {
        "distances": f"results/{wildcards.model}/{wildcards.calibration}/distances.safetensors"
    }


def candidate_options(wildcards):
    """Options of a candidates file, from any cut that uses it: they agree in these, and in needing the loss or not."""
    cut = next(
        cut
        for cut in CONFIG.cuts.values()
        if candidates_name(cut) == wildcards.candidates
    )
    options = (
        "blocks",
        "ratio",
        "groups",
        "search",
        "keep_first",
        "keep_last",
        *MERGING,
        "samples",
    )
    return to_flags(cut, (*options, "metric") if cut.needs_loss else options)


def gram_folder(wildcards, kind):
    """Where the sums of a kind lie."""
    calibration = f"results/{wildcards.model}/{wildcards.calibration}"
    return f"{calibration}/{wildcards.cut}/gram/{kind}"


def fit_evidence(wildcards):
    """What a fit is made from: the summed statistics, the shards for a ridge chosen by them, rows, tokens."""
    fit = CONFIG.fits[wildcards.fit]
    if fit.unfitted:
        return {}
    calibration = f"results/{wildcards.model}/{wildcards.calibration}"
    # always, as a model that is not here yet may turn out to have norms after its MLPs, which take forward passes
    files = {"tokens": f"{calibration}/tokens.safetensors"}
    if fit.is_other or fit.sequential(CONFIG.cuts[wildcards.cut].several):
        return files
    shards = CONFIG.calibrations[wildcards.calibration].shards
    folder = gram_folder(wildcards, fit.regression.kind)
    files["statistics"] = f"{folder}/sum-of-{shards}.safetensors"
    if fit.recycle is not None:
        files["recycled"] = f"{folder}/recycled-of-{shards}.safetensors"
    if fit.automatic:
        files["shards"] = [
            f"{folder}/{shard}-of-{shards}.safetensors" for shard in range(shards)
        ]
    if fit.needs_rows:
        exact = "-exact" if fit.needs_state else ""
        files["rows"] = (
            f"{calibration}/{wildcards.cut}/rows/{fit.regression.kind}/{fit.fit_tokens or 'all'}{exact}"
        )
    return files


def fit_gpu(wildcards):
    """The GPUs of a fit: the model's, which its text may take; none where there is nothing to solve."""
    return 0 if CONFIG.fits[wildcards.fit].unfitted else gpus_of(wildcards)


REGRESSIONS = {fit.regression.kind: fit.sums for fit in CONFIG.fits.values()}
BEFORE = {
    fit.regression.before.kind: fit
    for fit in CONFIG.fits.values()
    if fit.regression.before
}


def rows_options(wildcards):
    """Options of the rows of a kind, from any fit that uses them."""
    return to_flags(REGRESSIONS[wildcards.kind], ("placement", "recycle"))


def regression_options(wildcards):
    """Options of the sums of a kind, from any fit that uses them."""
    if wildcards.kind in REGRESSIONS:
        return to_flags(REGRESSIONS[wildcards.kind], REGRESSION)
    return to_flags(BEFORE[wildcards.kind], REGRESSION) + " --before"


def sums_before(wildcards):
    """The sums from which the recycled neurons of a kind are chosen."""
    kind = REGRESSIONS[wildcards.kind].regression.before.kind
    return f"{gram_folder(wildcards, kind)}/sum-of-{wildcards.shards}.safetensors"


def recycled_neurons(wildcards):
    """The neurons that are changed before the sums or the rows of a kind are taken, if any."""
    fit = REGRESSIONS.get(wildcards.kind)
    if fit is None or fit.recycle is None:
        return {}
    # rows have no shards: theirs are the neurons that all shards of the calibration chose
    shards = wildcards.get("shards", CONFIG.calibrations[wildcards.calibration].shards)
    folder = gram_folder(wildcards, wildcards.kind)
    return {"recycled": f"{folder}/recycled-of-{shards}.safetensors"}


def recycled_options(wildcards):
    """The option that names these neurons."""
    return evidence_options(recycled_neurons(wildcards))
