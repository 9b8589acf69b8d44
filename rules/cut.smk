rule parts:
    """Find what the parts of a model cost in a unit: times are measured (`parts_timed`), all else is counted."""
    input:
        model=paths.MODEL,
    output:
        paths.COSTS,
    log:
        log_of(paths.COSTS),
    benchmark:
        benchmark_of(paths.COSTS)
    wildcard_constraints:
        unit=any_of(one for one in UNITS if one not in TIMED),
    priority: CHOOSES
    threads: 1
    resources:
        **takes("parts"),
        gpu=0,
    params:
        options=models.parts_options,
        code=code_of("parts"),
    message:
        "{wildcards.unit} of the parts of {wildcards.model}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme parts {input.model:q} --of {wildcards.unit}"
        " {params.options} --threads {threads} --out {output:q} 2> {log:q}"


use rule parts as parts_timed with:
    # with the machine to itself, before other jobs fill it
    wildcard_constraints:
        unit=any_of(TIMED),
    priority: FIRST
    threads: all_cores()
    resources:
        **takes("parts"),
        gpu=models.gpus,


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
