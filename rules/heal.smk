rule heal:
    """Train the transform, adapters or all weights of a shortened checkpoint for a while."""
    input:
        model=checkpoint_files(paths.OF_FIT)["record"],
        tokens=measures.healing_tokens,
        original=measures.original,
    output:
        **checkpoint_files(paths.OF_HEALING),
        report=paths.HEALING,
    log:
        log_of(paths.HEALING, "heal"),
    benchmark:
        benchmark_of(paths.HEALING, "heal")
    threads: 1
    resources:
        **takes("heal"),
        gpu=models.gpus,
    params:
        model=model_of,
        folder=made_model,
        options=measures.training_options,
        device=models.device_options,
        code=code_of("heal"),
    message:
        "heal {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}: {wildcards.healing}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme heal {params.model:q} {input.tokens:q}"
        " {params.options} {params.device} --threads {threads} --report {output.report:q} --out {params.folder:q} 2> {log:q}"
