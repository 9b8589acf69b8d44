rule dequantise:
    """Write the plain weights of a quantised model."""
    input:
        models.given_files,
    output:
        **paths.PLAIN,
    log:
        log_of(paths.PLAIN["record"], "dequantise"),
    benchmark:
        benchmark_of(paths.PLAIN["record"], "dequantise")
    wildcard_constraints:
        model=any_of(models.quantised),
    resources:
        **takes("dequantise"),
    params:
        source=models.given,
        revision=models.given_revision,
        stamps=models.given_stamps,
        folder=made_model,
        code=code_of("dequantise"),
    message:
        "plain weights of {wildcards.model}: {params.source}"
    shell:
        "replaceme dequantise {params.revision} --out {params.folder:q} -- {params.source:q} 2> {log:q}"


rule model:
    """Find a model, check it, and record its commit, file hashes and sizes."""
    input:
        models.files,
    output:
        paths.MODEL,
    log:
        log_of(paths.MODEL),
    benchmark:
        benchmark_of(paths.MODEL)
    resources:
        **takes("model"),
    params:
        source=models.source,
        revision=models.revision_option,
        stamps=models.file_stamps,
        code=code_of("model"),
    message:
        "model {wildcards.model}: {params.source}"
    shell:
        "replaceme model {params.revision} --out {output:q} -- {params.source:q} 2> {log:q}"


rule generate:
    """Have a model answer the prompts of another calibration."""
    input:
        model=paths.MODEL,
        source=models.prompt_files,
    output:
        paths.ANSWERS,
    log:
        log_of(paths.ANSWERS),
    benchmark:
        benchmark_of(paths.ANSWERS)
    wildcard_constraints:
        calibration=any_of(
            name for name, one in CONFIG.calibrations.items() if one.prompts
        ),
    threads: 1
    resources:
        **takes("generate"),
        gpu=models.gpus,
    params:
        options=models.generate_options,
        device=models.device_options,
        stamps=models.prompt_stamps,
        code=code_of("generate"),
    message:
        "answers of {wildcards.model} for {wildcards.calibration}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme generate {input.model:q} {params.options}"
        " {params.device} --threads {threads} --out {output:q} 2> {log:q}"


rule mix:
    """Mix the tokens of several calibrations by weight."""
    input:
        models.mixed_tokens,
    output:
        paths.TOKENS,
    log:
        log_of(paths.TOKENS),
    benchmark:
        benchmark_of(paths.TOKENS)
    wildcard_constraints:
        calibration=any_of(name for name, one in CONFIG.calibrations.items() if one.mix),
    resources:
        **takes("mix"),
    params:
        options=models.mix_options,
        code=code_of("mix"),
    message:
        "mix {wildcards.calibration} for {wildcards.model}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme mix {input:q} {params.options} --out {output:q} 2> {log:q}"


rule tokens:
    """Turn calibration text into token ids and mask, or images into pixel values."""
    input:
        model=paths.MODEL,
        source=models.text_files,
    output:
        paths.TOKENS,
    log:
        log_of(paths.TOKENS),
    benchmark:
        benchmark_of(paths.TOKENS)
    wildcard_constraints:
        calibration=any_of(
            name
            for name, one in CONFIG.calibrations.items()
            if one.mix is None and not one.automatic
        ),
    resources:
        **takes("tokens"),
    params:
        options=models.token_options,
        stamps=models.text_stamps,
        code=code_of("tokens"),
    message:
        "tokens of {wildcards.calibration} for {wildcards.model}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme tokens {input.model:q} {params.options} --out {output:q} 2> {log:q}"


use rule tokens as tokens_most with:
    output:
        paths.MOST,
    log:
        log_of(paths.MOST),
    benchmark:
        benchmark_of(paths.MOST)
    wildcard_constraints:
        calibration=any_of(
            name for name, one in CONFIG.calibrations.items() if one.automatic
        ),


rule enough:
    """Keep as much of a calibration as is enough for the fits on it."""
    input:
        model=paths.MODEL,
        tokens=paths.MOST,
    output:
        tokens=paths.TOKENS,
        report=paths.ENOUGH,
    log:
        log_of(paths.TOKENS),
    benchmark:
        benchmark_of(paths.TOKENS)
    wildcard_constraints:
        calibration=any_of(
            name for name, one in CONFIG.calibrations.items() if one.automatic
        ),
    threads: 1
    resources:
        **takes("enough"),
        gpu=models.gpus,
    params:
        options=models.forward_options,
        criterion=models.enough_options,
        code=code_of("enough"),
    message:
        "how much of {wildcards.calibration} is enough for {wildcards.model}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme enough {input.model:q} {input.tokens:q}"
        " {params.options} {params.criterion} --threads {threads} --report {output.report:q} --out {output.tokens:q}"
        " 2> {log:q}"


rule distances:
    """Measure distances between the hidden states of all pairs of blocks."""
    input:
        model=paths.MODEL,
        tokens=paths.TOKENS,
    output:
        matrices=paths.DISTANCES,
        csv=paths.DISTANCES_CSV,
    log:
        log_of(paths.DISTANCES),
    benchmark:
        benchmark_of(paths.DISTANCES)
    priority: CHOOSES
    threads: 1
    resources:
        **takes("distances"),
        gpu=models.gpus,
    params:
        options=models.forward_options,
        more=figures.distances_options,
        code=code_of("distances"),
    message:
        "distances of {wildcards.model} on {wildcards.calibration}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme distances {input.model:q} {input.tokens:q}"
        " {params.options} {params.more} --threads {threads} --out {output.matrices:q} 2> {log:q}"
