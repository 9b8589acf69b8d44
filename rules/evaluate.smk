rule evaluate:
    """Run benchmarks on a shortened model."""
    input:
        model=checkpoint_files(paths.OF_FIT)["record"],
        tasks=measures.task_files,
    output:
        f"{paths.OF_FIT}/{paths.EVALUATION}",
    log:
        log_of(f"{paths.OF_FIT}/{paths.EVALUATION}"),
    benchmark:
        benchmark_of(f"{paths.OF_FIT}/{paths.EVALUATION}")
    priority: MEASURES
    threads: some_cores() if DEVICES.gpu else 1  # those that make text into tokens, beside a GPU
    resources:
        **takes("evaluate"),
        gpu=models.gpus,
    params:
        model=model_of,
        device=models.device_options,
        options=measures.evaluation_options,
        files=measures.evaluation_stamps,
        code=code_of("evaluate"),
    message:
        "evaluate {output}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme evaluate {params.model:q} {params.options}"
        " {params.device} --threads {threads} --out {output:q} 2> {log:q}"


rule divergence:
    """Measure how far a shortened model predicts otherwise than the original, on text that it was not made with."""
    input:
        original=paths.MODEL,
        model=checkpoint_files(paths.OF_FIT)["record"],
        tokens=measures.divergence_tokens,
        seen=measures.seen_tokens,
    output:
        f"{paths.OF_FIT}/{paths.DIVERGENCE}",
    log:
        log_of(f"{paths.OF_FIT}/{paths.DIVERGENCE}"),
    benchmark:
        benchmark_of(f"{paths.OF_FIT}/{paths.DIVERGENCE}")
    priority: MEASURES
    threads: 1
    resources:
        **takes("divergence"),
        gpu=models.gpus,
    params:
        model=model_of,
        device=models.device_options,
        options=measures.divergence_options,
        code=code_of("divergence"),
    message:
        "divergence {output}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme divergence {input.original:q} {params.model:q}"
        " --tokens {input.tokens:q} --seen {input.seen:q} {params.options} {params.device} --threads {threads} --out {output:q} 2> {log:q}"


rule speed:
    """Measure size, throughput and memory of a shortened model, with the machine to itself."""
    input:
        model=checkpoint_files(paths.OF_FIT)["record"],
    output:
        f"{paths.OF_FIT}/{paths.SPEED}",
    log:
        log_of(f"{paths.OF_FIT}/{paths.SPEED}"),
    benchmark:
        benchmark_of(f"{paths.OF_FIT}/{paths.SPEED}")
    priority: MEASURES
    threads: all_cores()
    resources:
        **takes("speed"),
        gpu=models.gpus,
    params:
        model=model_of,
        device=models.device_options,
        options=measures.speed_options,
        code=code_of("speed"),
    message:
        "speed {output}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme speed {params.model:q} {params.options}"
        " {params.device} --threads {threads} --out {output:q} 2> {log:q}"


use rule evaluate as evaluate_baseline with:
    input:
        model=paths.MODEL,
        tasks=measures.task_files,
    output:
        f"{paths.OF_BASELINE}/{paths.EVALUATION}",
    log:
        log_of(f"{paths.OF_BASELINE}/{paths.EVALUATION}"),
    benchmark:
        benchmark_of(f"{paths.OF_BASELINE}/{paths.EVALUATION}")


use rule speed as speed_baseline with:
    input:
        model=paths.MODEL,
    output:
        f"{paths.OF_BASELINE}/{paths.SPEED}",
    log:
        log_of(f"{paths.OF_BASELINE}/{paths.SPEED}"),
    benchmark:
        benchmark_of(f"{paths.OF_BASELINE}/{paths.SPEED}")


use rule evaluate as evaluate_healed with:
    input:
        model=checkpoint_files(paths.OF_HEALING)["record"],
        tasks=measures.task_files,
    output:
        f"{paths.OF_HEALING}/{paths.EVALUATION}",
    log:
        log_of(f"{paths.OF_HEALING}/{paths.EVALUATION}"),
    benchmark:
        benchmark_of(f"{paths.OF_HEALING}/{paths.EVALUATION}")


use rule divergence as divergence_healed with:
    input:
        original=paths.MODEL,
        model=checkpoint_files(paths.OF_HEALING)["record"],
        tokens=measures.divergence_tokens,
        seen=measures.seen_tokens,
    output:
        f"{paths.OF_HEALING}/{paths.DIVERGENCE}",
    log:
        log_of(f"{paths.OF_HEALING}/{paths.DIVERGENCE}"),
    benchmark:
        benchmark_of(f"{paths.OF_HEALING}/{paths.DIVERGENCE}")


use rule speed as speed_healed with:
    input:
        model=checkpoint_files(paths.OF_HEALING)["record"],
    output:
        f"{paths.OF_HEALING}/{paths.SPEED}",
    log:
        log_of(f"{paths.OF_HEALING}/{paths.SPEED}"),
    benchmark:
        benchmark_of(f"{paths.OF_HEALING}/{paths.SPEED}")
