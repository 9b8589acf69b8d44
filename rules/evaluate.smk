rule evaluate:
    """Benchmarks of a shortened model."""
    input:
        model="results/{model}/{calibration}/{cut}/{fit}/model/replaceme.json",
        tasks=lambda wildcards: evaluation_files(wildcards.evaluation),
    output:
        "results/{model}/{calibration}/{cut}/{fit}/evaluation/{evaluation}.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/evaluation/{evaluation}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/evaluation/{evaluation}.tsv"
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        device=device_options,
        options=lambda wildcards: evaluation_options(wildcards.evaluation),
        files=lambda wildcards: evaluation_stamps(wildcards.evaluation),
        code=code_of("evaluate"),
    message:
        "evaluate {output}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme evaluate {params.model:q} {params.options}"
        " {params.device} --threads {threads} --out {output:q} 2> {log:q}"


use rule evaluate as evaluate_baseline with:
    input:
        model="results/{model}/model.json",
        tasks=lambda wildcards: evaluation_files(wildcards.evaluation),
    output:
        "results/{model}/baseline/evaluation/{evaluation}.json",
    log:
        "results/logs/{model}/baseline/evaluation/{evaluation}.log",
    benchmark:
        "results/benchmarks/{model}/baseline/evaluation/{evaluation}.tsv"
    params:
        model=lambda wildcards, input: input.model,
        device=device_options,
        options=lambda wildcards: evaluation_options(wildcards.evaluation),
        files=lambda wildcards: evaluation_stamps(wildcards.evaluation),
        code=code_of("evaluate"),


rule speed:
    """Size, throughput and memory of a shortened model, measured with the machine to itself."""
    input:
        model="results/{model}/{calibration}/{cut}/{fit}/model/replaceme.json",
    output:
        "results/{model}/{calibration}/{cut}/{fit}/speed.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/speed.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/speed.tsv"
    threads: all_cores()
    resources:
        gpu=gpus_of,
        mem_mb=memory("speed"),
        runtime=minutes("speed"),
    params:
        model=lambda wildcards, input: Path(input.model).parent,
        device=device_options,
        options=to_flags(CONFIG.speed),
        code=code_of("speed"),
    message:
        "speed {output}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme speed {params.model:q} {params.options}"
        " {params.device} --threads {threads} --out {output:q} 2> {log:q}"


use rule speed as speed_baseline with:
    input:
        model="results/{model}/model.json",
    output:
        "results/{model}/baseline/speed.json",
    log:
        "results/logs/{model}/baseline/speed.log",
    benchmark:
        "results/benchmarks/{model}/baseline/speed.tsv"
    params:
        model=lambda wildcards, input: input.model,
        device=device_options,
        options=to_flags(CONFIG.speed),
        code=code_of("speed"),
