rule heal:
    """A shortened checkpoint after a short training of its transform, of adapters or of all weights."""
    input:
        merged="results/{model}/{calibration}/{cut}/{fit}/model/replaceme.json",
        tokens=healing_tokens,
    output:
        config="results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/model/config.json",
        card="results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/model/README.md",
        record="results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/model/replaceme.json",
        report="results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/healing.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/healed/{healing}/heal.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/healed/{healing}/heal.tsv"
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("heal"),
        runtime=minutes("heal"),
    params:
        source=lambda wildcards, input: Path(input.merged).parent,
        folder=lambda wildcards, output: Path(output.record).parent,
        options=lambda wildcards: to_flags(CONFIG.healings[wildcards.healing], TRAINING),
        device=device_options,
        code=code_of("heal"),
    message:
        "heal {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}: {wildcards.healing}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme heal {params.source:q} {input.tokens:q}"
        " {params.options} {params.device} --threads {threads} --report {output.report:q} --out {params.folder:q} 2> {log:q}"


use rule evaluate as evaluate_healed with:
    input:
        model="results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/model/replaceme.json",
        tasks=lambda wildcards: evaluation_files(wildcards.evaluation),
    output:
        "results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/evaluation/{evaluation}.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/healed/{healing}/evaluation/{evaluation}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/healed/{healing}/evaluation/{evaluation}.tsv"


use rule speed as speed_healed with:
    input:
        model="results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/model/replaceme.json",
    output:
        "results/{model}/{calibration}/{cut}/{fit}/healed/{healing}/speed.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/healed/{healing}/speed.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/healed/{healing}/speed.tsv"
