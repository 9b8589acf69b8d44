rule model:
    """Find a model, check it, and record its commit, file hashes and sizes."""
    input:
        inputs_of(model_files),
    output:
        "results/{model}/model.json",
    log:
        "results/logs/{model}/model.log",
    benchmark:
        "results/benchmarks/{model}/model.tsv"
    resources:
        mem_mb=memory("model"),
        runtime=minutes("model"),
    params:
        source=lambda wildcards: CONFIG.models[wildcards.model].source,
        revision=lambda wildcards: to_flags(
            CONFIG.models[wildcards.model], ("revision",)
        ),
        stamps=lambda wildcards: stamps(model_files(wildcards)),
        code=code_of("model"),
    message:
        "model {wildcards.model}: {params.source}"
    shell:
        "replaceme model {params.revision} --out {output:q} -- {params.source:q} 2> {log:q}"


rule generate:
    """The model's own answers to the prompts of another calibration."""
    input:
        model="results/{model}/model.json",
        source=inputs_of(prompt_files),
    output:
        "results/{model}/{calibration}/generated.jsonl",
    log:
        "results/logs/{model}/{calibration}/generated.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/generated.tsv"
    wildcard_constraints:
        calibration=any_of(
            name for name, one in CONFIG.calibrations.items() if one.prompts
        ),
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("generate"),
        runtime=minutes("generate"),
    params:
        options=generate_options,
        device=device_options,
        stamps=lambda wildcards: stamps(prompt_files(wildcards)),
        code=code_of("generate"),
    message:
        "answers of {wildcards.model} for {wildcards.calibration}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme generate {input.model:q} {params.options}"
        " {params.device} --threads {threads} --out {output:q} 2> {log:q}"


rule mix:
    """Tokens of several calibrations in one, by weight."""
    input:
        mixed_tokens,
    output:
        "results/{model}/{calibration}/tokens.safetensors",
    log:
        "results/logs/{model}/{calibration}/tokens.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/tokens.tsv"
    wildcard_constraints:
        calibration=any_of(name for name, one in CONFIG.calibrations.items() if one.mix),
    resources:
        mem_mb=memory("mix"),
        runtime=minutes("mix"),
    params:
        options=mix_options,
        code=code_of("mix"),
    message:
        "mix {wildcards.calibration} for {wildcards.model}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme mix {input:q} {params.options} --out {output:q} 2> {log:q}"


rule tokens:
    """Calibration text to token ids and mask, or images to pixel values."""
    input:
        model="results/{model}/model.json",
        source=inputs_of(calibration_files),
    output:
        "results/{model}/{calibration}/tokens.safetensors",
    log:
        "results/logs/{model}/{calibration}/tokens.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/tokens.tsv"
    wildcard_constraints:
        calibration=any_of(
            name for name, one in CONFIG.calibrations.items() if one.mix is None
        ),
    resources:
        mem_mb=memory("tokens"),
        runtime=minutes("tokens"),
    params:
        options=token_options,
        stamps=calibration_stamps,
        code=code_of("tokens"),
    message:
        "tokens of {wildcards.calibration} for {wildcards.model}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme tokens {input.model:q} {params.options} --out {output:q} 2> {log:q}"


rule distances:
    """Distances between the hidden states of all pairs of blocks."""
    input:
        model="results/{model}/model.json",
        tokens="results/{model}/{calibration}/tokens.safetensors",
    output:
        matrices="results/{model}/{calibration}/distances.safetensors",
        csv="results/{model}/{calibration}/distances.csv",
    log:
        "results/logs/{model}/{calibration}/distances.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/distances.tsv"
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("distances"),
        runtime=minutes("distances"),
    params:
        options=forward_options,
        representations=representations_option,
        code=code_of("distances"),
    message:
        "distances of {wildcards.model} on {wildcards.calibration}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme distances {input.model:q} {input.tokens:q}"
        " {params.options} {params.representations} --threads {threads} --out {output.matrices:q} 2> {log:q}"
