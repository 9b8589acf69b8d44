rule parts:
    """Find what the parts of a model cost in a unit: times are measured with the machine to itself, others counted."""
    input:
        model=paths.MODEL,
    output:
        paths.COSTS,
    log:
        log_of(paths.COSTS),
    benchmark:
        benchmark_of(paths.COSTS)
    priority: FIRST
    threads: cores_of_parts
    resources:
        **takes("parts"),
        gpu=models.parts_gpus,
    params:
        options=models.parts_options,
        code=code_of("parts"),
    message:
        "{wildcards.unit} of the parts of {wildcards.model}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme parts {input.model:q} --of {wildcards.unit}"
        " {params.options} --threads {threads} --out {output:q} 2> {log:q}"


rule candidates:
    """Measure the error that every cut of one size leaves after its own fit, on a subset of the tokens."""
    input:
        unpack(fits.candidate_costs),
        model=paths.MODEL,
        tokens=paths.TOKENS,
    output:
        paths.CANDIDATES,
    log:
        log_of(paths.CANDIDATES),
    benchmark:
        benchmark_of(paths.CANDIDATES)
    priority: CHOOSES
    threads: 1
    resources:
        **takes("candidates"),
        gpu=models.gpus,
    params:
        options=models.forward_options,
        size=fits.candidate_options,
        costs=fits.candidate_costs_option,
        code=code_of("candidates"),
    message:
        "candidate cuts of {wildcards.model} on {wildcards.calibration}: {wildcards.candidates}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme candidates {input.model:q} {input.tokens:q}"
        " {params.options} {params.size} {params.costs} --threads {threads} --out {output:q} 2> {log:q}"


rule cut:
    """Choose the blocks to remove."""
    input:
        unpack(fits.cut_evidence),
        model=paths.MODEL,
    output:
        paths.CUT,
    log:
        log_of(paths.CUT),
    benchmark:
        benchmark_of(paths.CUT)
    priority: CHOOSES
    localrule: True
    params:
        evidence=lambda wildcards, input: evidence_options(input),
        options=fits.cut_options,
        code=code_of("cut"),
    message:
        "cut {wildcards.cut} of {wildcards.model} on {wildcards.calibration}"
    shell:
        "replaceme cut {input.model:q} {params.evidence} {params.options} --out {output:q} 2> {log:q}"
