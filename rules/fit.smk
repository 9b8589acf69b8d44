rule gram:
    """Statistics of a cut over one shard of the calibration tokens."""
    input:
        unpack(recycled_neurons),
        model="results/{model}/model.json",
        tokens="results/{model}/{calibration}/tokens.safetensors",
        cut="results/{model}/{calibration}/{cut}/cut.json",
    output:
        "results/{model}/{calibration}/{cut}/gram/{kind}/{shard}-of-{shards}.safetensors",
    log:
        "results/logs/{model}/{calibration}/{cut}/gram/{kind}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/gram/{kind}/{shard}-of-{shards}.tsv"
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("gram"),
        runtime=minutes("gram"),
    params:
        options=forward_options,
        regression=regression_options,
        recycled=recycled_options,
        code=code_of("gram"),
    message:
        "gram of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}: shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme gram {input.model:q} {input.tokens:q} {input.cut:q}"
        " --shard {wildcards.shard} --shards {wildcards.shards} {params.options} {params.regression} {params.recycled}"
        " --threads {threads} --out {output:q} 2> {log:q}"


rule recycle:
    """The neurons of the carriers that are given other work, and what it is."""
    input:
        model="results/{model}/model.json",
        statistics=sums_before,
    output:
        "results/{model}/{calibration}/{cut}/gram/{kind}/recycled-of-{shards}.safetensors",
    log:
        "results/logs/{model}/{calibration}/{cut}/gram/{kind}/recycled-of-{shards}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/gram/{kind}/recycled-of-{shards}.tsv"
    threads: 1
    resources:
        mem_mb=memory("recycle"),
        runtime=minutes("recycle"),
    params:
        options=regression_options,
        code=code_of("recycle"),
    message:
        "neurons to recycle of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme recycle {input.model:q} {input.statistics:q} {params.options}"
        " --threads {threads} --out {output:q} 2> {log:q}"


rule sum:
    """The statistics of all shards of a cut, added."""
    input:
        lambda wildcards: expand(
            "results/{{model}}/{{calibration}}/{{cut}}/gram/{{kind}}/{shard}-of-{{shards}}.safetensors",
            shard=range(int(wildcards.shards)),
        ),
    output:
        "results/{model}/{calibration}/{cut}/gram/{kind}/sum-of-{shards}.safetensors",
    log:
        "results/logs/{model}/{calibration}/{cut}/gram/{kind}/sum-of-{shards}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/gram/{kind}/sum-of-{shards}.tsv"
    resources:
        mem_mb=memory("sum"),
        runtime=minutes("sum"),
    params:
        shards=lambda wildcards: shard_files(
            gram_folder(wildcards, wildcards.kind), wildcards.shards
        ),
        code=code_of("sum"),
    message:
        "sum of {wildcards.shards} shards of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}"
    shell:
        "OMP_NUM_THREADS={threads} replaceme sum {params.shards} --out {output:q} 2> {log:q}"


rule rows:
    """What is regressed, and targets, of a cut, token by token, for the fits over rows; gone when those are done."""
    input:
        unpack(recycled_neurons),
        model="results/{model}/model.json",
        tokens="results/{model}/{calibration}/tokens.safetensors",
        cut="results/{model}/{calibration}/{cut}/cut.json",
    output:
        temp(
            directory(
                "results/{model}/{calibration}/{cut}/rows/{kind}/{fit_tokens}{exact}"
            )
        ),
    log:
        "results/logs/{model}/{calibration}/{cut}/rows/{kind}/{fit_tokens}{exact}.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/rows/{kind}/{fit_tokens}{exact}.tsv"
    threads: 1
    resources:
        gpu=gpus_of,
        mem_mb=memory("rows"),
        runtime=minutes("rows"),
    params:
        options=forward_options,
        regression=rows_options,
        recycled=recycled_options,
        fit_tokens=lambda wildcards: (
            ""
            if wildcards.fit_tokens == "all"
            else f"--fit-tokens {wildcards.fit_tokens}"
        ),
        state=lambda wildcards: "--state" if wildcards.exact else "",
        code=code_of("rows"),
    message:
        "rows of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}, {wildcards.kind}: {wildcards.fit_tokens} tokens"
    shell:
        "python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme rows {input.model:q} {input.tokens:q} {input.cut:q}"
        " {params.options} {params.regression} {params.recycled} {params.fit_tokens} {params.state} --threads {threads} --out {output:q} 2> {log:q}"


rule transform:
    """The linear map that replaces the removed blocks."""
    input:
        unpack(fit_evidence),
        model="results/{model}/model.json",
        cut="results/{model}/{calibration}/{cut}/cut.json",
    output:
        transform="results/{model}/{calibration}/{cut}/{fit}/transform.safetensors",
        report="results/{model}/{calibration}/{cut}/{fit}/fit.json",
    log:
        "results/logs/{model}/{calibration}/{cut}/{fit}/fit.log",
    benchmark:
        "results/benchmarks/{model}/{calibration}/{cut}/{fit}/fit.tsv"
    threads: 1
    resources:
        gpu=fit_gpu,
        mem_mb=memory("transform"),
        runtime=minutes("transform"),
    params:
        evidence=lambda wildcards, input: evidence_options(input),
        options=lambda wildcards: to_flags(CONFIG.fits[wildcards.fit]),
        forward=forward_options,
        folder=lambda wildcards, output: Path(output.report).parent,
        code=code_of_transform,
    message:
        "fit {wildcards.fit} of {wildcards.model}, {wildcards.calibration}, {wildcards.cut}"
    shell:
        "OMP_NUM_THREADS={threads} python -m replaceme.workflow.gpu_lock {resources.gpu} -- replaceme fit {input.model:q} {input.cut:q} {params.evidence}"
        " {params.options} {params.forward} --threads {threads} --out {params.folder:q} 2> {log:q}"
