rule candidates:
    """What every cut of one size leaves unexplained after its own fit, on a subset of the tokens."""
    input:
        model="results/{model}/model.json",
        tokens="results/{model}/{calibration}/tokens.safetensors",
    output:
        "results/{model}/{calibration}/candidates/{candidates}.json",
    log:
        "results/logs/{model}/{calibration}/candidates/{candidates}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/candidates/{candidates}.tsv"
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("candidates"),
        runtime=minutes("candidates"),
    params:
        options=forward_options,
        size=candidate_options,
        code=code_of("candidates"),
    message:
        "candidate cuts of {wildcards.model} on {wildcards.calibration}: {wildcards.candidates}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme candidates {input.model:q} {input.tokens:q}"
        " {params.options} {params.size} --threads {threads} --out {output:q} 2> {log:q}"


rule cut:
    """The choice of the blocks to remove."""
    input:
        unpack(cut_evidence),
        model="results/{model}/model.json",
    output:
        "results/{model}/{calibration}/{cut}/cut.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/cut.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/cut.tsv"
    localrule: True
    params:
        evidence=lambda wildcards, input: evidence_options(input),
        options=lambda wildcards: to_flags(CONFIG.cuts[wildcards.cut]),
        code=code_of("cut"),
    message:
        "cut {wildcards.cut} of {wildcards.model} on {wildcards.calibration}"
    shell:
        "replaceme cut {input.model:q} {params.evidence} {params.options} --out {output:q} 2> {log:q}"
