rule merge:
    """Write the shortened checkpoint, with the transform folded in."""
    input:
        model=paths.MODEL,
        cut=paths.CUT,
        transform=paths.TRANSFORM,
    output:
        **checkpoint_files(paths.OF_FIT),
    log:
        log_of(paths.FIT, "merge"),
    benchmark:
        benchmark_of(paths.FIT, "merge")
    resources:
        **takes("merge"),
    params:
        folder=made_model,
        code=partial(code.code_of_merge, CONFIG),
    message:
        "merge {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme merge {input.model:q} {input.cut:q} {input.transform:q} --out {params.folder:q} 2> {log:q}"


rule verify:
    """Compare the shortened checkpoint, loaded by plain transformers in a fresh process, with the original."""
    input:
        model=paths.MODEL,
        cut=paths.CUT,
        transform=paths.TRANSFORM,
        merged=checkpoint_files(paths.OF_FIT)["record"],
    output:
        paths.VERIFY,
    log:
        log_of(paths.VERIFY),
    benchmark:
        benchmark_of(paths.VERIFY)
    # measurements do not wait for it, but tables do. Measurements that had it as an `ancient` input were left out
    # without a word by a run in which the check alone had to be made again
    priority: CHECKS
    threads: some_cores()
    resources:
        **takes("verify"),
        gpu=models.check_gpus,
    params:
        folder=lambda wildcards, input: paths.model_at(input.merged),
        code=partial(code.code_of_verify, CONFIG),
    message:
        "verify {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme verify"
        " {input.model:q} {input.cut:q} {input.transform:q} {params.folder:q} --device auto --threads {threads} --out {output:q} 2> {log:q}"


rule export:
    """Have another program load the shortened checkpoint, and compare its likelihoods with those of transformers."""
    input:
        model=checkpoint_files(paths.OF_FIT)["record"],
    output:
        f"{paths.OF_FIT}/{paths.EXPORT}",
    log:
        log_of(f"{paths.OF_FIT}/{paths.EXPORT}"),
    benchmark:
        benchmark_of(f"{paths.OF_FIT}/{paths.EXPORT}")
    priority: MEASURES
    threads: some_cores()
    resources:
        **takes("export"),
        gpu=lambda wildcards: DEVICES.gpu * (wildcards.program == "vllm"),
    params:
        model=model_of,
        code=code.code_of_export,
    message:
        "export {output}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme verify {params.model:q}"
        " --with {wildcards.program} --threads {threads} --out {output:q} 2> {log:q}"


use rule export as export_healed with:
    input:
        model=checkpoint_files(paths.OF_HEALING)["record"],
    output:
        f"{paths.OF_HEALING}/{paths.EXPORT}",
    log:
        log_of(f"{paths.OF_HEALING}/{paths.EXPORT}"),
    benchmark:
        benchmark_of(f"{paths.OF_HEALING}/{paths.EXPORT}")
